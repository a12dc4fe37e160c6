"""Detector for YOLOv7 models exported to ONNX, run by onnxruntime.

Official exports contain no metadata, so the output layout is inferred from the shapes of the outputs. ultralytics would
mistake such files for its own layouts and return nonsense without an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as failures
from torch import Tensor

from patrolscope.pipeline.detect.boxes import Letterbox, ranked, select
from patrolscope.pipeline.detect.device import choose_device
from patrolscope.pipeline.detect.models.box_detector import BoxDetector, Options
from patrolscope.pipeline.errors import WeightsError

GRID, END_TO_END = "grid", "end2end"
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_ANCHORS = 3  # per cell
_GPU_BATCH = 16  # a guess, because torch cannot measure the memory of onnxruntime
_NO_MEMORY = re.compile(r"out of memory|Failed to allocate memory|smaller than requested")  # messages of onnxruntime
_FAILURES = (
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.NotImplemented,
    failures.RuntimeException,
)


def _graph(file: Path) -> Any:
    try:
        # Data outside the file is not loaded.
        return onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise WeightsError(f"{file.name} is not an ONNX file or is damaged: {error}") from error


def is_from_ultralytics(file: Path) -> bool:
    """Return whether ultralytics wrote the file; its exports contain metadata, official YOLOv7 exports do not."""
    return {"names", "stride", "task"} <= {entry.key for entry in _graph(file).metadata_props}


def layout_of(shapes: Sequence[tuple[int, ...]], height: int, width: int) -> str:
    """Infer the layout of an export from the shapes of its outputs.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Shape of each output.
    height, width : int
        Size of the network's input in pixels.

    Returns
    -------
    str
        `GRID` (decoded rows that need NMS) or `END_TO_END` (boxes after NMS).

    Raises
    ------
    WeightsError
        If the layout is not supported.
    """
    cells = [sum((height // stride) * (width // stride) for stride in strides) for strides in _STRIDES]
    if len(shapes) == 1:
        shape = shapes[0]
        if len(shape) == 3 and shape[1] in [_ANCHORS * number for number in cells] and shape[2] >= 6:
            return GRID
        if len(shape) == 2 and shape[1] == 7:
            return END_TO_END
        if len(shape) == 3 and shape[2] in cells:
            raise WeightsError(
                f"the export has the ultralytics layout {shape} without its metadata; export it again with ultralytics"
            )
        if len(shape) == 3 and shape[2] == 6:
            raise WeightsError(
                f"the export returns suppressed boxes {shape} in an unknown column order; export again with --grid"
            )
    elif len(shapes) in (3, 4) and all(len(shape) == 5 for shape in shapes):
        raise WeightsError(
            "the export returns raw feature maps, which cannot be decoded without anchors; export again with --grid"
        )
    raise WeightsError(
        f"the export returns shapes {', '.join(map(str, shapes))}; expected a YOLOv7 layout; export again with --grid"
    )


class Export:
    """An opened export.

    Attributes
    ----------
    height, width : int
        Size of the input in pixels.
    batch : int or None
        Fixed number of images per pass. None for any number.
    layout : str
        `GRID` or `END_TO_END`.
    classes : int or None
        Number of classes. None for an end-to-end export, which does not contain it.
    """

    def __init__(self, path: Path, device: torch.device, *, choice: str = "auto", threads: int | None = None) -> None:
        self._session = _session(path, device, choice, threads)
        images, *others = self._session.get_inputs()
        if others or images.type not in ("tensor(float)", "tensor(float16)") or len(images.shape) != 4:
            raise WeightsError(f"the input of {path.name} is {images.type} {images.shape}; expected float (N, 3, H, W)")
        batch, channels, height, width = images.shape
        if channels != 3 or not isinstance(height, int) or not isinstance(width, int):
            raise WeightsError(
                f"the input of {path.name} has shape {images.shape}; expected (N, 3, H, W) with fixed H and W"
            )
        self._input_name = images.name
        self._dtype: type[np.floating[Any]] = np.float16 if images.type == "tensor(float16)" else np.float32
        self.height, self.width = height, width
        self.batch: int | None = batch if isinstance(batch, int) else None
        # Output shapes are often undefined in the file, so run one empty batch.
        try:
            shapes = [output.shape for output in self.run(np.zeros((self.batch or 1, 3, height, width), np.float32))]
        except MemoryError as error:
            raise WeightsError(
                f"{path.name}: {self.batch or 1} images of {height}x{width} do not fit the memory of {device}; export "
                "the model for fewer or smaller images, or choose a different device"
            ) from error
        self.layout = layout_of(shapes, height, width)
        self.classes = shapes[0][2] - 5 if self.layout == GRID else None

    def run(self, images: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Compute the outputs for a batch (N, 3, H, W), scaled to 0..1.

        Raises
        ------
        MemoryError
            If the batch does not fit the device's memory.
        WeightsError
            If the export cannot be run.
        """
        try:
            outputs = self._session.run(None, {self._input_name: images.astype(self._dtype)})
        except _FAILURES as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise WeightsError(f"the export cannot be run: {str(error).splitlines()[0]}") from error
        return [np.asarray(output) for output in outputs]


class OnnxYolov7Detector(BoxDetector):
    """Official export in the layout `grid` (decoded rows that need NMS) or `end2end` (boxes after NMS)."""

    def __init__(self, path: Path, digest: str, options: Options, threads: int | None) -> None:
        if options.augment or options.compile or options.precision not in ("auto", "fp32"):
            raise WeightsError(
                f"{path.name} is an export with a fixed size and precision; remove augment, compile, and precision"
            )
        self._export = Export(path, choose_device(options.device), choice=options.device, threads=threads)
        height, width = self._export.height, self._export.width
        if options.size != max(height, width):
            raise WeightsError(f"{path.name} was exported for {height}x{width}; set size to {max(height, width)}")
        if self._export.layout == END_TO_END:
            _check_nms_limits(path, options)
        names = tuple(str(number) for number in range(self._export.classes or 0))
        super().__init__(digest, options, Letterbox(height, width), names, "fp32")

    def default_batch(self) -> int:
        """Return 1 on a CPU; on a GPU, the fixed batch of the export, or 16."""
        return (self._export.batch or _GPU_BATCH) if self.device.type == "cuda" else 1

    def _boxes(self, images: Tensor) -> list[Tensor]:
        pixels = images.cpu().numpy()
        batch = self._export.batch or len(pixels)
        boxes: list[Tensor] = []
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch]
            # Pad the last batch with empty images if the export has a fixed batch.
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            output = self._check_numbers(torch.from_numpy(self._export.run(filled)[0].astype(np.float32)))
            boxes += [self._image_boxes(output.to(self.device), image) for image in range(len(part))]
        return boxes

    def _image_boxes(self, output: Tensor, image: int) -> Tensor:
        options = self.options
        if self._export.layout == GRID:
            rows = output[image]
            return select(rows, min_score=options.min_score, nms_iou=options.nms_iou, classes=self.classes)
        # Columns: image, x1, y1, x2, y2, class, score.
        rows = output[output[:, 0] == image][:, [1, 2, 3, 4, 6, 5]]
        return ranked(rows, options.min_score, self.classes)


def describe_export(path: Path) -> dict[str, Any]:
    """Return facts about an export, for `patrolscope weights`."""
    export = Export(path, torch.device("cpu"))
    return {
        "layout": export.layout,
        "height": export.height,
        "width": export.width,
        "batch": export.batch or "any",
        "classes": "unknown" if export.classes is None else export.classes,
    }


def _session(path: Path, device: torch.device, choice: str, threads: int | None) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
        elif choice != "auto":
            raise WeightsError(
                f"device {choice} is not available; this onnxruntime has no CUDA support; install onnxruntime-gpu"
            )
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except _FAILURES as error:
        tensorrt = [node.op_type for node in _graph(path).graph.node if "TRT" in node.op_type]
        if tensorrt:
            raise WeightsError(
                f"{path.name} was exported for TensorRT (operator {tensorrt[0]}); export again with --grid only"
            ) from error
        raise WeightsError(f"onnxruntime cannot open {path.name}: {str(error).splitlines()[0]}") from error
    # onnxruntime silently falls back to the CPU if it cannot load the CUDA libraries.
    if device.type == "cuda" and choice != "auto" and "CUDAExecutionProvider" not in session.get_providers():
        raise WeightsError(
            f"device {choice} is not available; onnxruntime could not load CUDA; install matching versions of both"
        )
    return session


def _check_nms_limits(path: Path, options: Options) -> None:
    """Reject options that the NMS inside an export does not meet, as it has already dropped the boxes."""
    graph = _graph(path).graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer if not item.external_data}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    nms = [node for node in graph.node if node.op_type == "NonMaxSuppression"]
    limits = [constants.get(name) for name in nms[0].input[3:5]] if len(nms) == 1 else []
    if len(limits) != 2 or any(limit is None or limit.size != 1 for limit in limits):
        raise WeightsError(f"{path.name} does not contain the limits of its NMS; export again with --grid only")
    iou, score = (float(np.asarray(limit).reshape(-1)[0]) for limit in limits)
    if score > options.min_score + 1e-6:
        raise WeightsError(
            f"{path.name} drops boxes that score {score:g} or less; expected at most min_score "
            f"({options.min_score:g}); export again with --grid only, or set min_score to {score:g}"
        )
    if abs(iou - options.nms_iou) > 1e-6:
        raise WeightsError(
            f"{path.name} suppresses boxes above an overlap of {iou:g}; expected nms_iou ({options.nms_iou:g}); "
            f"export again with --grid only, or set nms_iou to {iou:g}"
        )

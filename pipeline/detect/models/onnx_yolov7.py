"""YOLOv7 exported to ONNX, run by onnxruntime: the layout of the output is recognized, or refused by name.

Official exports carry no metadata at all, so the layout is known by the shapes that come out. ultralytics takes such
files for layouts of its own and returns nonsense without an error.
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
from patrolscope.pipeline.detect.models.base import BoxDetector, Options, choose_device
from patrolscope.pipeline.errors import WeightsError

GRID, END_TO_END = "grid", "end2end"
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_ANCHORS = 3  # a cell
_GPU_BATCH = 16  # a guess: torch does not see what onnxruntime allocates
_NO_MEMORY = re.compile(r"out of memory|Failed to allocate memory|smaller than requested")  # onnxruntime's words
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
        # What a graph keeps outside its own file is not followed.
        return onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise WeightsError(f"{file.name} is no ONNX file, or is damaged: {error}") from error


def is_of_ultralytics(file: Path) -> bool:
    """Whether ultralytics wrote the file: its exports carry names and stride, official YOLOv7 exports carry nothing."""
    return {"names", "stride", "task"} <= {entry.key for entry in _graph(file).metadata_props}


def layout_of(shapes: Sequence[tuple[int, ...]], height: int, width: int) -> str:
    """The layout of outputs of these shapes for a batch of height x width.

    Raises
    ------
    WeightsError : it is another one; says which, and what to export instead
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
                f"the export has the layout of ultralytics {shape} without its metadata: export it again by ultralytics"
            )
        if len(shape) == 3 and shape[2] == 6:
            raise WeightsError(f"the export returns finished boxes {shape} in an order that it does not say")
    elif len(shapes) in (3, 4) and all(len(shape) == 5 for shape in shapes):
        raise WeightsError(
            "the export returns raw maps, without its anchors they can not be decoded: export again with --grid"
        )
    raise WeightsError(f"the export returns {', '.join(map(str, shapes))}: no layout of YOLOv7; export with --grid")


class Export:
    """An opened export: size and number of images that it takes, layout of what it returns."""

    def __init__(self, path: Path, device: torch.device, *, asked: str = "auto", threads: int | None = None) -> None:
        self._session = _session(path, device, asked, threads)
        given, *others = self._session.get_inputs()
        if others or given.type not in ("tensor(float)", "tensor(float16)") or len(given.shape) != 4:
            raise WeightsError(f"{path.name} reads {given.type} {given.shape}: float (N, 3, H, W) is expected")
        batch, channels, height, width = given.shape
        if channels != 3 or not isinstance(height, int) or not isinstance(width, int):
            raise WeightsError(f"{path.name} reads {given.shape}: (N, 3, H, W) with H and W fixed is expected")
        self._input_name = given.name
        self._numbers: type[np.floating[Any]] = np.float16 if given.type == "tensor(float16)" else np.float32
        self.height, self.width = height, width
        self.batch: int | None = batch if isinstance(batch, int) else None  # None: as many images as there are
        # Shapes of outputs are often left open in the file: one empty batch shows them.
        try:
            shapes = [output.shape for output in self.run(np.zeros((self.batch or 1, 3, height, width), np.float32))]
        except MemoryError as error:
            raise WeightsError(
                f"{path.name}: {self.batch or 1} images of {height}x{width} do not fit the memory of {device}: export "
                "it for fewer or smaller ones, or choose another device"
            ) from error
        self.layout = layout_of(shapes, height, width)
        self.classes = shapes[0][2] - 5 if self.layout == GRID else None  # end2end does not say how many there are

    def run(self, images: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Outputs for a batch (N, 3, H, W) in 0..1.

        Raises
        ------
        MemoryError : the batch does not fit the device
        WeightsError : the export can not be run
        """
        try:
            outputs = self._session.run(None, {self._input_name: images.astype(self._numbers)})
        except _FAILURES as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise WeightsError(f"the export can not be run: {str(error).splitlines()[0]}") from error
        return [np.asarray(output) for output in outputs]


class OnnxYolov7Detector(BoxDetector):
    """An official export: `grid`, decoded rows that need NMS, or `end2end`, boxes after the export's own NMS."""

    def __init__(self, path: Path, digest: str, options: Options, threads: int | None) -> None:
        if options.augment or options.compile or options.precision not in ("auto", "fp32"):
            raise WeightsError(
                f"{path.name} is an export with a fixed size and precision: no augment, compile, precision"
            )
        self._export = Export(path, choose_device(options.device), asked=options.device, threads=threads)
        height, width = self._export.height, self._export.width
        if options.size != max(height, width):
            raise WeightsError(f"{path.name} was exported for {height}x{width}: size must be {max(height, width)}")
        if self._export.layout == END_TO_END:
            _check_own_limits(path, options)
        names = tuple(str(number) for number in range(self._export.classes or 0))
        super().__init__(digest, options, Letterbox(height, width), names, "fp32")

    def default_batch(self) -> int:
        """As many as the export is fixed to, or some, on a GPU; one on a CPU."""
        return (self._export.batch or _GPU_BATCH) if self.device.type == "cuda" else 1

    def _boxes(self, images: Tensor) -> list[Tensor]:
        wanted = images.cpu().numpy()
        each = self._export.batch or len(wanted)
        found: list[Tensor] = []
        for start in range(0, len(wanted), each):
            part = wanted[start : start + each]
            # A file with a fixed number of images gets empty ones at the end.
            filled = np.concatenate([part, np.zeros((each - len(part), *part.shape[1:]), part.dtype)])
            output = self._check_numbers(torch.from_numpy(self._export.run(filled)[0].astype(np.float32)))
            found += [self._of_image(output.to(self.device), image) for image in range(len(part))]
        return found

    def _of_image(self, output: Tensor, image: int) -> Tensor:
        asked = self.options
        if self._export.layout == GRID:
            rows = output[image]
            return select(rows, min_score=asked.min_score, nms_iou=asked.nms_iou, classes=self.wanted)
        # Image, x1, y1, x2, y2, class, score.
        rows = output[output[:, 0] == image][:, [1, 2, 3, 4, 6, 5]]
        return ranked(rows, asked.min_score, self.wanted)


def describe_export(path: Path) -> dict[str, Any]:
    """Facts about an export, for `patrolscope weights`."""
    export = Export(path, torch.device("cpu"))
    return {
        "layout": export.layout,
        "height": export.height,
        "width": export.width,
        "batch": export.batch or "any",
        "classes": "not said" if export.classes is None else export.classes,
    }


def _session(path: Path, device: torch.device, asked: str, threads: int | None) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
        elif asked != "auto":
            raise WeightsError(
                f"device {asked} is asked for, but this onnxruntime has no CUDA: install onnxruntime-gpu"
            )
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except _FAILURES as error:
        foreign = [node.op_type for node in _graph(path).graph.node if "TRT" in node.op_type]
        if foreign:
            raise WeightsError(
                f"{path.name} was exported for TensorRT (operator {foreign[0]}): export again with --grid alone"
            ) from error
        raise WeightsError(f"{path.name} can not be opened by onnxruntime: {str(error).splitlines()[0]}") from error
    # It goes on with the CPU where it can not load CUDA's libraries.
    if device.type == "cuda" and asked != "auto" and "CUDAExecutionProvider" not in session.get_providers():
        raise WeightsError(f"device {asked} is asked for, but onnxruntime could not load CUDA: do their versions fit?")
    return session


def _check_own_limits(path: Path, options: Options) -> None:
    """An export with its own NMS has dropped boxes before they are seen: refuse to promise more than it returns."""
    graph = _graph(path).graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer if not one.external_data}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    own = [node for node in graph.node if node.op_type == "NonMaxSuppression"]
    limits = [constants.get(name) for name in own[0].input[3:5]] if len(own) == 1 else []
    if len(limits) != 2 or any(limit is None or limit.size != 1 for limit in limits):
        raise WeightsError(f"{path.name} does not say the limits of its own NMS: export again with --grid alone")
    iou, score = (float(np.asarray(limit).reshape(-1)[0]) for limit in limits)
    if score > options.min_score + 1e-6:
        raise WeightsError(
            f"{path.name} drops boxes up to a score of {score:g} by itself, boxes above {options.min_score:g} are "
            f"asked for: export again with --grid alone, or ask for {score:g}"
        )
    if abs(iou - options.nms_iou) > 1e-6:
        raise WeightsError(
            f"{path.name} suppresses above an overlap of {iou:g} by itself, {options.nms_iou:g} is asked for: "
            f"export again with --grid alone, or ask for {iou:g}"
        )

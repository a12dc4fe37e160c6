"""The detector protocol, and the loading of a detector from a weights file. Does not import torch by itself."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import fsspec
import numpy as np
from numpy.typing import NDArray

from patrolscope.pipeline.errors import WeightsError
from patrolscope.pipeline.study.remote import is_local

if TYPE_CHECKING:
    import torch

YOLOV7, YOLOV7_ONNX, ULTRALYTICS = "yolov7", "yolov7 onnx", "ultralytics"

# Name endings of the exports that ultralytics opens; opening one runs code in it.
_EXPORTS = (
    *(".torchscript", ".engine", ".pb", ".tflite", ".mlpackage", ".mnn"),
    *("_openvino_model", "_saved_model", "_paddle_model", "_ncnn_model"),
)


class Detector(Protocol):
    """An object detector that processes images in batches.

    Attributes
    ----------
    fingerprint : str
        Digest of the weights and of all options that change boxes.
    class_names : tuple of str
        Names by class number. Empty if the file does not contain the number of classes.
    """

    fingerprint: str
    class_names: tuple[str, ...]

    @property
    def jpegs(self) -> Callable[[Sequence[bytes], Sequence[tuple[int, int]]], list[torch.Tensor | None]] | None:
        """Decoder of plain JPEGs on the device, or None if the CPU decodes them.

        Takes file contents and (height, width) of each; returns prepared images (3, H, W), None for those that the CPU
        must decode.
        """

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of an image of this size after `prepare`. A batch holds images of one shape."""

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert an RGB image (h, w, 3) into the network's input (3, H, W). Thread-safe."""

    def upload(self, images: Sequence[torch.Tensor | NDArray[np.uint8]]) -> torch.Tensor | NDArray[np.uint8]:
        """Stack prepared images of one shape into a batch (n, 3, H, W) on the device, also during `predict`."""

    def default_batch(self) -> int:
        """Return the number of images per pass if the settings do not give one."""

    def predict(
        self, batch: torch.Tensor | NDArray[np.uint8], sizes: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.float32]]:
        """Detect objects in a batch.

        Parameters
        ----------
        batch : Tensor or ndarray of uint8, shape (n, 3, H, W)
            Prepared images of one shape.
        sizes : sequence of (int, int)
            Height and width of the n original images.

        Returns
        -------
        list of ndarray of float32, each (k, 6)
            x1, y1, x2, y2 in pixels of the original image, score, class. Highest score first.
        """


def load_detector(
    path: str,
    *,
    size: int,
    min_score: float = 0.01,
    nms_iou: float = 0.45,
    classes: Sequence[str | int] | None = None,
    augment: bool = False,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,  # noqa: A002 - torch's name for it
    jpeg: str = "auto",
    trust: bool = False,
    threads: int | None = None,
) -> Detector:
    """Load a detector from a weights file: YOLOv7 (.pt or ONNX export), or any model that ultralytics opens.

    Parameters
    ----------
    path : str
        Local path or fsspec URL.
    size : int
        Longer side of the network's input in pixels, a multiple of the model's stride.
    min_score : float, default 0.01
        Boxes must score higher than this (objectness times class probability).
    nms_iou : float, default 0.45
        Of two boxes of one class that overlap more than this, the lower score is dropped.
    classes : sequence of str or int, optional
        Names or numbers of the classes to keep. None keeps all.
    augment : bool, default False
        Test-time augmentation: join three passes, scaled and mirrored, before suppression (YOLOv7 .pt only).
    device : str, default "auto"
        `auto` (a GPU if there is one), `cpu`, or `cuda:0`.
    precision : {"auto", "fp32", "fp16", "bf16"}
        `auto` is fp16 on a GPU and fp32 elsewhere. Boxes are always decoded in float32.
    compile : bool, default False
        Compile the network with torch.compile, which takes a minute and pays off in long runs.
    jpeg : {"auto", "cpu", "device"}
        Decoder of plain JPEGs. `auto` uses nvJPEG on a GPU if torchvision has it, else the CPU.
    trust : bool, default False
        Open files that run code when opened (ultralytics .pt and most of its exports).
    threads : int, optional
        CPU threads per forward pass. None leaves the choice to torch.

    Raises
    ------
    WeightsError
        If the file cannot be opened or does not support an option.
    """
    require("torch", "torchvision", "cv2", "simplejpeg")
    import cv2
    import torch

    from patrolscope.pipeline.detect.models.box_detector import Options

    if not 0 <= min_score < 1 or not 0 < nms_iou <= 1:
        raise WeightsError(
            f"min_score is {min_score} and nms_iou is {nms_iou}; expected min_score in [0, 1) and nms_iou in (0, 1]"
        )
    cv2.setNumThreads(1)  # images are prepared in threads of the caller
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = None if classes is None else tuple(classes)
    options = Options(size, min_score, nms_iou, chosen, augment, device, precision, compile, jpeg)
    with local_copy(path) as file:
        kind = kind_of(file)
        if kind == YOLOV7:
            from patrolscope.pipeline.detect.models.yolov7_detector import Yolov7Detector

            return Yolov7Detector(file, _digest(file), options)
        if kind == YOLOV7_ONNX:
            from patrolscope.pipeline.detect.models.onnx_yolov7 import OnnxYolov7Detector

            return OnnxYolov7Detector(file, _digest(file), options, threads)
        return _ultralytics(file, options, trust)


def _ultralytics(file: Path, options: Any, trust: bool) -> Detector:
    # An ONNX file is a graph of known operators; every other form is, or contains, a program.
    if not trust and file.suffix.lower() != ".onnx":
        raise WeightsError(
            f"{file.name} is an ultralytics model, and opening it runs code in it; expected weights from a source you "
            "trust; if you trust this one, add --trust-weights"
        )
    require("ultralytics")
    from patrolscope.pipeline.detect.models.ultralytics_detector import UltralyticsDetector

    return UltralyticsDetector(file, _digest(file), options)


def kind_of(file: Path) -> str:
    """Return the kind of a local weights file, from its content if that can be read without running it.

    Raises
    ------
    WeightsError
        If the file is not of a supported kind.
    """
    from patrolscope.pipeline.detect.weights.restricted_unpickler import (
        LEGACY_MAGIC,
        ZIP_MAGIC,
        ForbiddenNameError,
        open_archive,
    )

    if file.name.lower().endswith(_EXPORTS):
        return ULTRALYTICS
    if file.is_dir():
        raise WeightsError(f"{file.name} is a folder, and not an ultralytics export by its name")
    with file.open("rb") as opened:
        start = opened.read(len(LEGACY_MAGIC))
    if not start:
        raise WeightsError(f"{file.name} is empty")
    if file.suffix.lower() == ".onnx":
        require("onnx", "onnxruntime")
        from patrolscope.pipeline.detect.models.onnx_yolov7 import is_from_ultralytics

        return ULTRALYTICS if is_from_ultralytics(file) else YOLOV7_ONNX
    if not start.startswith(ZIP_MAGIC) and start != LEGACY_MAGIC:
        raise WeightsError(f"{file.name} is neither a torch checkpoint nor an ONNX file; it starts with {start[:8]!r}")
    try:
        open_archive(file).close()
    except ForbiddenNameError as error:
        if error.name.startswith("ultralytics."):
            return ULTRALYTICS
        raise
    return YOLOV7


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """Yield a local file itself, or a temporary copy of a remote one.

    Raises
    ------
    WeightsError
        If the file does not exist.
    """
    fs, inside = fsspec.core.url_to_fs(path)
    if not fs.exists(inside):
        raise WeightsError(f"no weights at {path}")
    if is_local(fs):
        yield Path(str(inside))
        return
    folder = Path(tempfile.mkdtemp(prefix="weights-"))
    try:
        copy = folder / str(inside).rstrip("/").rsplit("/", 1)[-1]
        fs.get(inside, str(copy), recursive=fs.isdir(inside))
        yield copy
    finally:
        shutil.rmtree(folder)


def _digest(path: Path) -> str:
    """Compute the digest of a file, or of all files in a folder with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for part in sorted(part for part in path.rglob("*") if part.is_file()):
        total.update(f"{part.relative_to(path).as_posix()} {_digest(part)}\n".encode())
    return total.hexdigest()


def require(*modules: str) -> None:
    """Check that modules of the extra `detect` are installed.

    Raises
    ------
    WeightsError
        If a module is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise WeightsError(f"not installed: {', '.join(missing)} (pip install 'patrolscope[detect]')")

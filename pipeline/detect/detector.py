"""The protocol that every detector keeps, and the way from a file of weights to one. Imports no torch by itself."""

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

if TYPE_CHECKING:
    import torch

YOLOV7, YOLOV7_ONNX, ULTRALYTICS = "yolov7", "yolov7 onnx", "ultralytics"

# Exports that ultralytics opens, by the end of their name; opening runs what is in them.
_EXPORTS = (
    *(".torchscript", ".engine", ".pb", ".tflite", ".mlpackage", ".mnn"),
    *("_openvino_model", "_saved_model", "_paddle_model", "_ncnn_model"),
)


class Detector(Protocol):
    """Finds objects in images, batch by batch."""

    fingerprint: str  # digest of the weights' bytes and of everything that changes the boxes
    class_names: tuple[str, ...]  # empty where the file does not even say how many there are

    @property
    def jpegs(self) -> Callable[[Sequence[bytes], Sequence[tuple[int, int]]], list[torch.Tensor | None]] | None:
        """Decodes and prepares plain JPEGs on the device, by content and (height, width); None where the CPU decodes.

        It returns (3, H, W) of each, or None of one that it refuses, which is then the CPU's.
        """

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this size has after `prepare`: images of one shape make a batch."""

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The network's input, (3, H, W), of an RGB image (h, w, 3); may be called from several threads."""

    def upload(self, images: Sequence[torch.Tensor | NDArray[np.uint8]]) -> torch.Tensor | NDArray[np.uint8]:
        """A batch (n, 3, H, W) on the device, of prepared images of one shape; may be called while another predicts."""

    def default_batch(self) -> int:
        """Images in one pass, where nobody says how many."""

    def predict(
        self, batch: torch.Tensor | NDArray[np.uint8], sizes: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.float32]]:
        """Boxes of every image, (k, 6): x1 y1 x2 y2 in pixels of the original image, score, class; best first.

        Parameters
        ----------
        batch : (n, 3, H, W), uint8, images prepared to one shape
        sizes : height and width of the n original images
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
    compile: bool = False,  # noqa: A002 - torch's own word for it
    jpeg: str = "auto",
    trust: bool = False,
    threads: int | None = None,
) -> Detector:
    """The detector in a file of weights: YOLOv7 (.pt, or its ONNX exports), or what ultralytics opens.

    Parameters
    ----------
    path : a file, or any fsspec URL
    size : pixels of the network's input, longer side; a multiple of the model's stride
    min_score : a box needs a higher score (object times class)
    nms_iou : of two boxes of one class that overlap more, the lower score is dropped
    classes : names or numbers; None: all
    augment : three passes, scaled and mirrored, joined before one NMS (YOLOv7 .pt alone)
    device : `auto` (a GPU where there is one), `cpu`, `cuda:0`
    precision : `auto` (fp16 on a GPU, else fp32), `fp32`, `fp16`, `bf16`; boxes are decoded in float32 in any case
    compile : compile the network by torch.compile, which takes a minute and pays for long runs
    jpeg : who decodes plain JPEGs: `auto` (a GPU by nvJPEG where torchvision has it, else the CPU), `cpu`, `device`
    trust : open files that run what is in them (ultralytics .pt and most of its exports)
    threads : of one forward pass on a CPU; None: torch's own choice

    Raises
    ------
    WeightsError : the file can not be opened, or can not do what is asked; says in one line what and why
    """
    require("torch", "torchvision", "cv2")
    import cv2
    import torch

    from patrolscope.pipeline.detect.models.base import Options

    if not 0 <= min_score < 1 or not 0 < nms_iou <= 1:
        raise WeightsError(f"min_score {min_score} must lie in [0, 1), nms_iou {nms_iou} in (0, 1]")
    cv2.setNumThreads(1)  # images are prepared in threads of the caller
    if threads is not None:
        torch.set_num_threads(threads)
    wanted = None if classes is None else tuple(classes)
    options = Options(size, min_score, nms_iou, wanted, augment, device, precision, compile, jpeg)
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
    # An ONNX file is a graph of known operators; every other form is, or holds, a program.
    if not trust and file.suffix.lower() != ".onnx":
        raise WeightsError(
            f"{file.name} is a model of ultralytics: opening it runs what is in it. "
            "If you trust where it comes from, say --trust-weights"
        )
    require("ultralytics")
    from patrolscope.pipeline.detect.models.ultralytics_detector import UltralyticsDetector

    return UltralyticsDetector(file, _digest(file), options)


def kind_of(file: Path) -> str:
    """Which of the known kinds a local file of weights is, by its content where that can be read without running it.

    Raises
    ------
    WeightsError : it is none; says why
    """
    from patrolscope.pipeline.detect.weights.restricted import LEGACY_MAGIC, ZIP_MAGIC, ForbiddenName, open_archive

    if file.name.lower().endswith(_EXPORTS):
        return ULTRALYTICS
    if file.is_dir():
        raise WeightsError(f"{file.name} is a folder, and no export of ultralytics by its name")
    with file.open("rb") as opened:
        start = opened.read(len(LEGACY_MAGIC))
    if not start:
        raise WeightsError(f"{file.name} is empty")
    if file.suffix.lower() == ".onnx":
        require("onnx", "onnxruntime")
        from patrolscope.pipeline.detect.models.onnx_yolov7 import is_of_ultralytics

        return ULTRALYTICS if is_of_ultralytics(file) else YOLOV7_ONNX
    if not start.startswith(ZIP_MAGIC) and start != LEGACY_MAGIC:
        raise WeightsError(f"{file.name} is no checkpoint of torch and no ONNX file: it starts with {start[:8]!r}")
    try:
        open_archive(file).close()
    except ForbiddenName as error:
        if error.name.startswith("ultralytics."):
            return ULTRALYTICS
        raise
    return YOLOV7


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """The file itself where it is local, else a copy that exists as long as the block runs.

    Raises
    ------
    WeightsError : it is not there
    """
    fs, inside = fsspec.core.url_to_fs(path)
    if not fs.exists(inside):
        raise WeightsError(f"no weights at {path}")
    if "file" in np.atleast_1d(fs.protocol):
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
    """Digest of a file's bytes, or of all files of a folder with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for part in sorted(part for part in path.rglob("*") if part.is_file()):
        total.update(f"{part.relative_to(path).as_posix()} {_digest(part)}\n".encode())
    return total.hexdigest()


def require(*modules: str) -> None:
    """Say what is to be installed where one of these modules of the extra `detect` is not.

    Raises
    ------
    WeightsError : names what is missing
    """
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise WeightsError(f"not installed: {', '.join(missing)} (pip install 'patrolscope[detect]')")

"""Base class of all detectors: letterboxing, uploads, conversion of boxes to image pixels, and the fingerprint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patrolscope.pipeline.detect.boxes import BORDER, Letterbox, restore
from patrolscope.pipeline.detect.device import Uploader, choose_device, dtype_of, measured_batch
from patrolscope.pipeline.detect.device_jpeg import jpeg_decoder
from patrolscope.pipeline.errors import WeightsError

# Raised when a change of the code between pixels and boxes changes boxes; existing detections then become stale.
REVISION = 1


@dataclass(frozen=True)
class Options:
    """Options of a detector, as documented in `detector.load_detector`."""

    size: int  # pixels of the network's input, longer side
    min_score: float
    nms_iou: float
    classes: tuple[str | int, ...] | None
    augment: bool
    device: str
    precision: str
    compile: bool
    jpeg: str


def resolve_classes(classes: Sequence[str | int] | None, names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the numbers of classes that are given by name or number; None stands for all.

    Raises
    ------
    WeightsError
        If the model does not have one of the classes.
    """
    if classes is None:
        return None
    numbers = []
    for name_or_number in classes:
        if isinstance(name_or_number, str) and name_or_number in names:
            numbers.append(names.index(name_or_number))
        elif str(name_or_number).isdecimal() and (int(name_or_number) < len(names) or not names):
            numbers.append(int(name_or_number))
        else:
            known = ", ".join(f"{number} {name}" for number, name in enumerate(names)) or "a number (it has no names)"
            raise WeightsError(f"the model has no class {name_or_number!r}; expected one of {known}")
    return tuple(sorted(set(numbers)))


class BoxDetector(ABC):
    """Implementation of `detector.Detector`; a subclass converts a batch into boxes in pixels of the batch."""

    class_names: tuple[str, ...]
    letterbox: Letterbox

    def __init__(
        self, weights_digest: str, options: Options, letterbox: Letterbox, class_names: tuple[str, ...], precision: str
    ) -> None:
        self.class_names = class_names
        self.letterbox = letterbox
        self.options = options
        self.device = choose_device(options.device)
        self.dtype = dtype_of(precision)
        numbers = resolve_classes(options.classes, class_names)
        self.classes = None if numbers is None else torch.tensor(numbers, device=self.device)
        self._uploader = Uploader(self.device)
        self.jpegs = jpeg_decoder(options.jpeg, self._uploader, letterbox)
        # Excludes the device, as boxes of a CPU and a GPU differ by rounding only, but includes JPEG decoding by it.
        relevant = asdict(options) | {"classes": numbers, "precision": precision, "device": None, "compile": None}
        del relevant["jpeg"]
        if self.jpegs is not None:
            relevant["jpeg"] = "device"
        parts = [weights_digest, REVISION, type(self).__name__, asdict(letterbox), relevant]
        self.fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the network's input for an image of this size."""
        return self.letterbox.shape(height, width)

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Letterbox an RGB image (h, w, 3) into (3, H, W). Thread-safe."""
        return self.letterbox.prepare(image)

    def upload(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> Tensor | NDArray[np.uint8]:
        """Stack prepared images of one shape into a batch on the device, also during `predict`."""
        return self._uploader.upload(images)

    def default_batch(self) -> int:
        """Return the number of images per pass that fit the device's memory at the largest shape of the input.

        Batches do not help on a CPU (yolov7-tiny, one thread: 97 ms per image alone, 94 ms in batches of four).
        """
        if self.device.type != "cuda":
            return 1
        height, width = self.letterbox.height, self.letterbox.width

        def run(images: int) -> None:
            self.predict(np.full((images, 3, height, width), BORDER, dtype=np.uint8), [(height, width)] * images)

        return measured_batch(run, self.device)

    def predict(self, batch: Tensor | NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
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

        Raises
        ------
        ValueError
            If `batch` has another shape or type.
        WeightsError
            If the network returns NaN or infinity.
        """
        images = torch.as_tensor(batch)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[0] != len(sizes):
            raise ValueError(
                f"batch has shape {tuple(images.shape)} and type {images.dtype}; expected (n, 3, H, W) and uint8 for "
                f"{len(sizes)} images"
            )
        if not sizes:
            return []
        with torch.inference_mode():
            in_input = [boxes.float().cpu().numpy() for boxes in self._boxes(self._input(images))]
        shape = int(images.shape[2]), int(images.shape[3])
        return [restore(boxes, shape, size) for boxes, size in zip(in_input, sizes, strict=True)]

    def _input(self, images: Tensor) -> Tensor:
        """Return the batch on the device, scaled to 0..1."""
        moved = images.to(self.device, non_blocking=True).to(self.dtype, memory_format=torch.channels_last)
        return moved / 255

    @abstractmethod
    def _boxes(self, images: Tensor) -> list[Tensor]:
        """Return boxes (k, 6) per image, with corners in pixels of the input."""

    def _check_numbers(self, rows: Tensor) -> Tensor:
        """Reject NaN and infinity, which comparisons would silently drop as if the image had no box."""
        if not torch.isfinite(rows).all():
            raise WeightsError(
                f"the network returned NaN or infinity in {self.dtype}; expected finite numbers; try precision bf16 or "
                "fp32; if that does not help, the weights are damaged"
            )
        return rows

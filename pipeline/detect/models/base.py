"""What detectors of every kind share: letterbox, choice of boxes, the way back to the image, the fingerprint."""

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
from patrolscope.pipeline.detect.device import Arrivals, measured_batch
from patrolscope.pipeline.detect.device_jpeg import jpeg_decoder
from patrolscope.pipeline.errors import WeightsError

# Of what happens between pixels and boxes; raised when a change there changes boxes, so that detections are made again.
REVISION = 1


@dataclass(frozen=True)
class Options:
    """What is asked of a detector, apart from its weights."""

    size: int  # pixels of the network's input, longer side
    min_score: float
    nms_iou: float
    classes: tuple[str | int, ...] | None
    augment: bool
    device: str
    precision: str
    compile: bool
    jpeg: str  # auto, cpu, device: who decodes plain JPEGs


def resolve_classes(wanted: Sequence[str | int] | None, names: Sequence[str]) -> tuple[int, ...] | None:
    """Numbers of classes given by name or number; None stands for all.

    Raises
    ------
    WeightsError : the model has no such class; names those that it has
    """
    if wanted is None:
        return None
    numbers = []
    for one in wanted:
        if isinstance(one, str) and one in names:
            numbers.append(names.index(one))
        elif str(one).isdecimal() and (int(one) < len(names) or not names):
            numbers.append(int(one))
        else:
            known = ", ".join(f"{number} {name}" for number, name in enumerate(names)) or "known by number alone"
            raise WeightsError(f"the model has no class {one!r}: its classes are {known}")
    return tuple(sorted(set(numbers)))


def choose_device(device: str) -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `cuda:0`; one that computes fp32 as such, and not in TF32.

    Raises
    ------
    WeightsError : it is not there
    """
    torch.backends.cudnn.allow_tf32 = False  # convolutions would round to 10 bits by default
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise WeightsError(f"device {device!r} is none: auto, cpu, cuda or cuda:<number>") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise WeightsError(
            f"device {device!r} is asked for, torch sees {torch.cuda.device_count()} GPUs: use cpu or auto"
        )
    if chosen.type not in ("cpu", "cuda"):
        raise WeightsError(f"device {device!r} is not known here: auto, cpu, cuda or cuda:<number>")
    return chosen


_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_precision(precision: str, device: torch.device) -> str:
    """fp16 on a GPU and fp32 elsewhere for `auto`, else what is asked for.

    Raises
    ------
    WeightsError : it is none, or the device can not do it
    """
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if precision not in _PRECISIONS:
        raise WeightsError(f"precision {precision!r} is none: auto, {', '.join(_PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise WeightsError("fp16 is for GPUs: use fp32 or bf16 on a CPU")
    return precision


def dtype_of(precision: str) -> torch.dtype:
    """Torch's type of a precision."""
    return _PRECISIONS[precision]


class BoxDetector(ABC):
    """A detector of `detector.Detector`; a subclass turns a batch into boxes in pixels of the batch."""

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
        self.wanted = None if numbers is None else torch.tensor(numbers, device=self.device)
        self._arrivals = Arrivals(self.device)
        self.jpegs = jpeg_decoder(options.jpeg, self._arrivals, letterbox)
        # The device is left out: a CPU and a GPU agree but for rounding. Its own decoding of JPEGs is not.
        asked = asdict(options) | {"classes": numbers, "precision": precision, "device": None, "compile": None}
        del asked["jpeg"]
        if self.jpegs is not None:
            asked["jpeg"] = "device"
        parts = [weights_digest, REVISION, type(self).__name__, asdict(letterbox), asked]
        self.fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image of this size."""
        return self.letterbox.shape(height, width)

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Letterboxed (3, H, W) of an RGB image (h, w, 3); may be called from several threads."""
        return self.letterbox.prepare(image)

    def upload(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> Tensor | NDArray[np.uint8]:
        """A batch of prepared images of one shape, on the device; may be called while another batch is predicted."""
        return self._arrivals.bring(images)

    def default_batch(self) -> int:
        """Images in one pass that the device has memory for, at the largest shape that images are brought to.

        A CPU gains nothing by batches (yolov7-tiny, one thread: 97 ms an image alone, 94 ms in fours).
        """
        if self.device.type != "cuda":
            return 1
        height, width = self.letterbox.height, self.letterbox.width

        def run(images: int) -> None:
            self.predict(np.full((images, 3, height, width), BORDER, dtype=np.uint8), [(height, width)] * images)

        return measured_batch(run, self.device)

    def predict(self, batch: Tensor | NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
        """Boxes of every image: (k, 6) x1 y1 x2 y2 in pixels of the original image, score, class; best first.

        Parameters
        ----------
        batch : (n, 3, H, W), uint8, prepared
        sizes : height and width of the n original images

        Raises
        ------
        WeightsError : the network returned values that are not numbers
        """
        images = torch.as_tensor(batch)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[0] != len(sizes):
            raise ValueError(f"a batch of {tuple(images.shape)}, {images.dtype}, for {len(sizes)} images")
        if not sizes:
            return []
        with torch.inference_mode():
            found = [boxes.float().cpu().numpy() for boxes in self._boxes(self._input(images))]
        shape = int(images.shape[2]), int(images.shape[3])
        return [restore(boxes, shape, size) for boxes, size in zip(found, sizes, strict=True)]

    def _input(self, images: Tensor) -> Tensor:
        """The batch on the device, in 0..1."""
        moved = images.to(self.device, non_blocking=True).to(self.dtype, memory_format=torch.channels_last)
        return moved / 255

    @abstractmethod
    def _boxes(self, images: Tensor) -> list[Tensor]:
        """Of each image (k, 6), corners in pixels of the input."""

    def _check_numbers(self, rows: Tensor) -> Tensor:
        """Refuse what a comparison would drop in silence, as if nothing had been found."""
        if not torch.isfinite(rows).all():
            raise WeightsError(
                f"the network returned values that are not numbers in {self.dtype}: try precision bf16 or fp32; "
                "if they remain, the weights are damaged"
            )
        return rows

"""What a detector is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import SettingsError

Image = npt.NDArray[np.uint8]


class Detector(Protocol):
    """A network with its weights, thresholds and device."""

    fingerprint: str
    class_names: tuple[str, ...]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the network sees of an image of that size, pixels."""
        ...

    def prepare(self, image: Image) -> Image:
        """(3, H, W) what the network sees of an RGB image (h, w, 3); several threads can ask at a time."""
        ...

    def predict(self, batch: Image, sizes: Sequence[tuple[int, int]]) -> list[npt.NDArray[np.float32]]:
        """Boxes of each image of a batch (n, 3, H, W): (k, 6) x1 y1 x2 y2 in its own pixels, score, class; best first.

        `sizes` are the images' own heights and widths.
        """
        ...


def load_detector(
    path: str,
    *,
    size: int,
    score_above: float = 0.01,
    iou_above: float = 0.45,
    classes: Sequence[int | str] | None = None,
    augment: bool = False,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,  # noqa: A002
    trust: bool = False,
    threads: int | None = None,
) -> Detector:
    """Detector of a file of weights."""
    raise SettingsError(f"{path} is of no kind of weights that is known")

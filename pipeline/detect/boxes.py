"""From an image to the network's input, and from its maps back to boxes in pixels of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert, nms

BORDER = 114  # gray of the letterbox, of 255
MOST_CANDIDATES = 30_000  # an image, the best ones: official limit
MOST_BOXES = 300  # an image, the best ones: official limit
# Moves the boxes of each class to a place of their own, in pixels. In float64 it shifts no overlap; the official 4096
# in float32 rounds corners to 0.03 pixels.
_CLASS_OFFSET = 1e6


@dataclass(frozen=True)
class Letterbox:
    """How images are brought to the network's input: scaled to fit, with a gray border.

    With a `stride` the border is as narrow as the stride allows; without one the input is always `height` by `width`.
    """

    height: int  # pixels
    width: int
    stride: int | None = None

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after scaling, before the border."""
        gain = min(self.height / height, self.width / width)
        # An image more than `size` times as long as wide would vanish.
        return max(round(height * gain), 1), max(round(width * gain), 1)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image of this size."""
        if self.stride is None:
            return self.height, self.width
        rows, columns = self.scaled(height, width)
        return rows + (self.height - rows) % self.stride, columns + (self.width - columns) % self.stride

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column in the network's input at which an image of this size begins."""
        rows, columns = self.scaled(height, width)
        boxed_height, boxed_width = self.shape(height, width)
        # An odd border is one pixel wider below and on the right.
        return round((boxed_height - rows) / 2 - 0.1), round((boxed_width - columns) / 2 - 0.1)

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The letterboxed image, (3, H, W), of an RGB image (h, w, 3)."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"an image of shape {image.shape}, {image.dtype}: (h, w, 3), uint8 is expected")
        size = image.shape[:2]
        rows, columns = self.scaled(*size)
        height, width = self.shape(*size)
        if (rows, columns) != size:
            image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
        top, left = self.corner(*size)
        boxed = np.full((3, height, width), BORDER, np.uint8)
        boxed[:, top : top + rows, left : left + columns] = image.transpose(2, 0, 1)
        return boxed


def restore(boxes: NDArray[np.float32], shape: tuple[int, int], image: tuple[int, int]) -> NDArray[np.float32]:
    """Corners in pixels of the network's input (`shape`) as pixels of the original image, clipped to it.

    Parameters
    ----------
    boxes : (k, 4) or wider; x1 y1 x2 y2 first
    shape, image : height and width
    """
    gain = min(shape[0] / image[0], shape[1] / image[1])
    # Not rounded as the border itself was: so do the official scripts, and a score does not depend on it.
    left, top = (shape[1] - image[1] * gain) / 2, (shape[0] - image[0] * gain) / 2
    restored = boxes.copy()
    restored[:, [0, 2]] = ((boxes[:, [0, 2]] - left) / gain).clip(0, image[1])
    restored[:, [1, 3]] = ((boxes[:, [1, 3]] - top) / gain).clip(0, image[0])
    return restored


def decode(maps: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Boxes of all cells: (N, rows, 5 + classes) as center, width, height in pixels of the input, object, classes.

    Rows come level by level, in a level anchor by anchor, then by row and column. Always in float32: in half precision
    a coordinate moves in steps of 0.5 pixels from 512 on and of 1 from 1024 on.

    Parameters
    ----------
    maps : a level: (N, anchors, h, w, 5 + classes), before the sigmoid
    anchors : (levels, anchors, 2), float32, pixels
    """
    rows = []
    for values, sizes, stride in zip(maps, anchors, strides, strict=True):
        height, width = values.shape[2:4]
        cells = torch.stack(
            torch.meshgrid(
                torch.arange(width, device=values.device, dtype=torch.float32),
                torch.arange(height, device=values.device, dtype=torch.float32),
                indexing="xy",
            ),
            -1,
        )
        found = values.float().sigmoid()
        center = (2 * found[..., :2] - 0.5 + cells) * stride
        size = (2 * found[..., 2:4]) ** 2 * sizes[:, None, None]
        rows.append(torch.cat([center, size, found[..., 4:]], -1).flatten(1, 3))
    return torch.cat(rows, 1)


def select(rows: Tensor, *, min_score: float, nms_iou: float, classes: Tensor | None) -> Tensor:
    """The boxes that remain of one image's rows, (k, 6): x1 y1 x2 y2, score, class; best first.

    Parameters
    ----------
    rows : (rows, 5 + classes), float32, as `decode` returns them
    min_score : a box needs more than this
    nms_iou : of two boxes of a class that overlap more, the lower score is dropped
    classes : numbers of the classes wanted; None: all
    """
    rows = rows[rows[:, 4] > min_score]
    if rows.shape[1] == 6:
        # With one class its own output is untrained.
        score, kind = rows[:, 4], torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    else:
        score, kind = (rows[:, 5:] * rows[:, 4:5]).max(1)
    return suppress(box_convert(rows[:, :4], "cxcywh", "xyxy"), score, kind, min_score, nms_iou, classes)


def suppress(
    corners: Tensor, score: Tensor, kind: Tensor, min_score: float, nms_iou: float, classes: Tensor | None
) -> Tensor:
    """Greedy non-maximum suppression within each class, without a limit of time."""
    wanted = score > min_score
    if classes is not None:
        wanted &= torch.isin(kind, classes)
    corners, score, kind = corners[wanted], score[wanted], kind[wanted]
    best = score.argsort(descending=True, stable=True)[:MOST_CANDIDATES]
    corners, score, kind = corners[best], score[best], kind[best]
    kept = nms(corners.double() + kind.double()[:, None] * _CLASS_OFFSET, score.double(), nms_iou)[:MOST_BOXES]
    return torch.cat([corners[kept], score[kept, None], kind[kept, None].float()], 1)


def ranked(boxes: Tensor, min_score: float, classes: Tensor | None) -> Tensor:
    """Finished boxes (k, 6) that have the score and a class wanted, best first."""
    wanted = boxes[:, 4] > min_score
    if classes is not None:
        wanted &= torch.isin(boxes[:, 5].long(), classes)
    boxes = boxes[wanted]
    return boxes[boxes[:, 4].argsort(descending=True, stable=True)]

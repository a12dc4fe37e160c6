"""Letterboxing, decoding of feature maps into boxes, and non-maximum suppression."""

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
MOST_CANDIDATES = 30_000  # highest scores per image that enter suppression (official limit)
MOST_BOXES = 300  # highest scores per image that remain (official limit)
# Offset in pixels between the boxes of two classes, so that suppression acts within each class. In float64 it changes
# no overlap; the official 4096 in float32 rounds corners to 0.03 pixels.
_CLASS_OFFSET = 1e6


@dataclass(frozen=True)
class Letterbox:
    """Geometry of the network's input: the image scaled to fit, with a gray border.

    With a `stride`, the border is as narrow as the stride allows. Without one, the input is always `height` by `width`.
    """

    height: int  # pixels
    width: int  # pixels
    stride: int | None = None

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of an image after scaling, before the border."""
        gain = min(self.height / height, self.width / width)
        # At least 1: an extremely long image would otherwise vanish.
        return max(round(height * gain), 1), max(round(width * gain), 1)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the network's input for an image of this size."""
        if self.stride is None:
            return self.height, self.width
        rows, columns = self.scaled(height, width)
        return rows + (self.height - rows) % self.stride, columns + (self.width - columns) % self.stride

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return the row and column of the image's upper left corner in the network's input."""
        rows, columns = self.scaled(height, width)
        boxed_height, boxed_width = self.shape(height, width)
        # An odd border is one pixel wider at the bottom and on the right.
        return round((boxed_height - rows) / 2 - 0.1), round((boxed_width - columns) / 2 - 0.1)

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Letterbox an RGB image.

        Parameters
        ----------
        image : ndarray of uint8, shape (h, w, 3)
            RGB pixels.

        Returns
        -------
        ndarray of uint8, shape (3, H, W)

        Raises
        ------
        ValueError
            If `image` has another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"image has shape {image.shape} and type {image.dtype}; expected (h, w, 3) and uint8")
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
    """Convert box corners from pixels of the network's input to pixels of the original image, clipped to it.

    Parameters
    ----------
    boxes : ndarray of float32, shape (k, 4) or wider
        The first columns are x1, y1, x2, y2 in pixels of the network's input.
    shape : (int, int)
        Height and width of the network's input.
    image : (int, int)
        Height and width of the original image.

    Returns
    -------
    ndarray of float32, shape of `boxes`
        Further columns are unchanged.
    """
    gain = min(shape[0] / image[0], shape[1] / image[1])
    # The border itself was rounded, this is not: the official scripts do the same, and scores do not depend on it.
    left, top = (shape[1] - image[1] * gain) / 2, (shape[0] - image[0] * gain) / 2
    restored = boxes.copy()
    restored[:, [0, 2]] = ((boxes[:, [0, 2]] - left) / gain).clip(0, image[1])
    restored[:, [1, 3]] = ((boxes[:, [1, 3]] - top) / gain).clip(0, image[0])
    return restored


def decode(maps: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Decode feature maps into one box per cell and anchor.

    Computes in float32, because half precision resolves coordinates of 512 pixels or more to 0.5 pixels only, and
    those of 1,024 or more to 1 pixel.

    Parameters
    ----------
    maps : sequence of Tensor, each (N, n_anchors, h, w, 5 + n_classes)
        Feature maps before the sigmoid.
    anchors : Tensor of float32, shape (n_maps, n_anchors, 2)
        Width and height of each anchor, in pixels.
    strides : sequence of int
        Pixels of the network's input per cell of each feature map.

    Returns
    -------
    Tensor of float32, shape (N, n_rows, 5 + n_classes)
        Center x and y, width, and height in pixels of the network's input, objectness, class probabilities. Rows are
        ordered by feature map, anchor, row, and column.
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
        activated = values.float().sigmoid()
        center = (2 * activated[..., :2] - 0.5 + cells) * stride
        size = (2 * activated[..., 2:4]) ** 2 * sizes[:, None, None]
        rows.append(torch.cat([center, size, activated[..., 4:]], -1).flatten(1, 3))
    return torch.cat(rows, 1)


def select(rows: Tensor, *, min_score: float, nms_iou: float, classes: Tensor | None) -> Tensor:
    """Score the decoded rows of one image and suppress overlapping boxes.

    Parameters
    ----------
    rows : Tensor of float32, shape (n_rows, 5 + n_classes)
        One image of the result of `decode`.
    min_score : float
        Boxes must score higher than this.
    nms_iou : float
        Of two boxes of one class that overlap more than this (intersection over union), the lower score is dropped.
    classes : Tensor of int or None
        Numbers of the classes to keep; None keeps all.

    Returns
    -------
    Tensor of float32, shape (k, 6)
        x1, y1, x2, y2 in pixels of the network's input, score, class. Highest score first.
    """
    rows = rows[rows[:, 4] > min_score]
    if rows.shape[1] == 6:
        # The class output of a model with one class is untrained.
        score, class_number = rows[:, 4], torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    else:
        score, class_number = (rows[:, 5:] * rows[:, 4:5]).max(1)
    corners = box_convert(rows[:, :4], "cxcywh", "xyxy")
    return suppress(corners, score, class_number, min_score=min_score, nms_iou=nms_iou, classes=classes)


def suppress(
    corners: Tensor, score: Tensor, class_number: Tensor, *, min_score: float, nms_iou: float, classes: Tensor | None
) -> Tensor:
    """Suppress overlapping boxes within each class, greedily and without a time limit.

    Parameters
    ----------
    corners : Tensor of float32, shape (n, 4)
        x1, y1, x2, y2 in pixels of the network's input.
    score : Tensor of float32, shape (n,)
        Score of each box.
    class_number : Tensor of int64, shape (n,)
        Class of each box.
    min_score, nms_iou, classes
        As in `select`.

    Returns
    -------
    Tensor of float32, shape (k, 6)
        As in `select`.
    """
    kept = score > min_score
    if classes is not None:
        kept &= torch.isin(class_number, classes)
    corners, score, class_number = corners[kept], score[kept], class_number[kept]
    best = score.argsort(descending=True, stable=True)[:MOST_CANDIDATES]
    corners, score, class_number = corners[best], score[best], class_number[best]
    separated = corners.double() + class_number.double()[:, None] * _CLASS_OFFSET
    remaining = nms(separated, score.double(), nms_iou)[:MOST_BOXES]
    return torch.cat([corners[remaining], score[remaining, None], class_number[remaining, None].float()], 1)


def ranked(boxes: Tensor, min_score: float, classes: Tensor | None) -> Tensor:
    """Filter and sort boxes that have already been suppressed.

    Parameters
    ----------
    boxes : Tensor, shape (k, 6)
        x1, y1, x2, y2, score, class.
    min_score : float
        Boxes must score higher than this.
    classes : Tensor of int or None
        Numbers of the classes to keep; None keeps all.

    Returns
    -------
    Tensor, shape (at most k, 6)
        Highest score first.
    """
    kept = boxes[:, 4] > min_score
    if classes is not None:
        kept &= torch.isin(boxes[:, 5].long(), classes)
    boxes = boxes[kept]
    return boxes[boxes[:, 4].argsort(descending=True, stable=True)]

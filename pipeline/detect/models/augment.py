"""Test-time augmentation: the image as it is, smaller and mirrored, smaller still; all boxes go to one NMS."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_PASSES = ((1.0, False), (0.83, True), (0.67, False))  # scale, mirrored left to right
_BORDER = 0.447  # gray of the padding, of 1


def augmented(images: Tensor, forward: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    """Rows of three passes, in pixels of `images`, one pass after the other.

    Parameters
    ----------
    images : (N, 3, H, W), the network's input
    forward : rows (N, rows, 5 + classes) of an input, as `boxes.decode` returns them
    stride : the model's largest, to a multiple of which the smaller inputs are padded on the right and below
    """
    rows = []
    for scale, mirrored in _PASSES:
        found = forward(_scaled(images.flip(3) if mirrored else images, scale, stride))
        # By the nominal scale, although the smaller input was truncated to whole pixels: as the official model does.
        boxes = found[..., :4] / scale
        if mirrored:
            boxes[..., 0] = images.shape[3] - boxes[..., 0]
        rows.append(torch.cat([boxes, found[..., 4:]], -1))
    return torch.cat(rows, 1)


def _scaled(images: Tensor, scale: float, stride: int) -> Tensor:
    if scale == 1.0:
        return images
    height, width = images.shape[2:]
    small = int(height * scale), int(width * scale)
    below = math.ceil(height * scale / stride) * stride - small[0]
    right = math.ceil(width * scale / stride) * stride - small[1]
    resized = functional.interpolate(images, size=small, mode="bilinear", align_corners=False)
    return functional.pad(resized, [0, right, 0, below], value=_BORDER)

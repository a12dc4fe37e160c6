"""Test-time augmentation: one pass at full size, one smaller and mirrored, one smaller still, joined before NMS."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_PASSES = ((1.0, False), (0.83, True), (0.67, False))  # scale, mirrored left to right
_BORDER = 0.447  # gray of the padding, 0 to 1


def augmented(images: Tensor, forward: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    """Decode the boxes of three passes, in pixels of `images`.

    Parameters
    ----------
    images : Tensor, shape (N, 3, H, W)
        The network's input, 0 to 1.
    forward : callable
        Returns decoded rows (N, n_rows, 5 + n_classes) of an input, as `boxes.decode` does.
    stride : int
        Largest stride of the model. Smaller inputs are padded to a multiple of it, at the right and the bottom.

    Returns
    -------
    Tensor, shape (N, sum of n_rows, 5 + n_classes)
    """
    rows = []
    for scale, mirrored in _PASSES:
        decoded = forward(_scaled(images.flip(3) if mirrored else images, scale, stride))
        # The smaller input was truncated to whole pixels; the official model divides by the nominal scale all the same.
        boxes = decoded[..., :4] / scale
        if mirrored:
            boxes[..., 0] = images.shape[3] - boxes[..., 0]
        rows.append(torch.cat([boxes, decoded[..., 4:]], -1))
    return torch.cat(rows, 1)


def _scaled(images: Tensor, scale: float, stride: int) -> Tensor:
    if scale == 1.0:
        return images
    height, width = images.shape[2:]
    small = int(height * scale), int(width * scale)
    bottom = math.ceil(height * scale / stride) * stride - small[0]
    right = math.ceil(width * scale / stride) * stride - small[1]
    resized = functional.interpolate(images, size=small, mode="bilinear", align_corners=False)
    return functional.pad(resized, [0, right, 0, bottom], value=_BORDER)

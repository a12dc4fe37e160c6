"""Training images: mosaics, mixed, moved, scaled, mirrored, in other colors.

What happens to a sample follows from the seed, the epoch and the sample's number, whoever makes it and when. Pixels are
uint8 RGB; boxes are class, x1, y1, x2, y2 in pixels while they are moved about.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.detect.boxes import BORDER
from patrolscope.pipeline.detect.decode import decode
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.train.data import Example
from patrolscope.pipeline.train.settings import Recipe

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Generator = np.random.Generator

MAX_PIXELS = 100_000_000  # of an image
_NINE_SHARE = 0.2  # of the mosaics have nine images, the others four
_LEAST_SIDE, _LEAST_AREA, _MOST_ASPECT = 2.0, 0.1, 20.0  # of a box that is kept: pixels, share of before, ratio


@dataclass
class Pictures:
    """Images of a split, as large as a sample has room for; kept in memory as far as allowed."""

    examples: Sequence[Example]
    shape: tuple[int, int]  # height and width of a sample, pixels
    keep_bytes: int = 400_000_000
    _kept: dict[int, Pixels] = field(default_factory=dict, repr=False)
    _kept_bytes: int = 0

    def read(self, number: int) -> tuple[Pixels, Floats]:
        """Pixels of an image, and its boxes.

        Raises
        ------
        OSError : it can not be decoded any more
        """
        pixels = self._kept.get(number)
        if pixels is None:
            found = decode(self.examples[number].path.read_bytes(), max_pixels=MAX_PIXELS).pixels
            if found is None:
                raise OSError(f"{self.examples[number].path} can not be decoded")
            pixels = scaled(found, self.shape)
            if self._kept_bytes + pixels.nbytes <= self.keep_bytes:
                self._kept[number] = pixels
                self._kept_bytes += pixels.nbytes
        height, width = pixels.shape[:2]
        boxes = self.examples[number].boxes
        half = boxes[:, 3:] / 2
        scale = np.array([width, height])
        return pixels, np.column_stack([boxes[:, 0], (boxes[:, 1:3] - half) * scale, (boxes[:, 1:3] + half) * scale])


def shape_of_all(sizes: Floats, size: int, stride: int) -> tuple[int, int]:
    """Height and width, multiples of the stride, that hold images (n, 2: width, height) with `size` as longer side."""
    scaled_sizes = (sizes * (size / sizes.max(1, keepdims=True))).round()
    width, height = np.ceil(scaled_sizes.max(0) / stride).astype(int) * stride
    return int(height), int(width)


def scaled(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """The image as large as height and width allow."""
    gain = min(shape[0] / pixels.shape[0], shape[1] / pixels.shape[1])
    if gain == 1:
        return pixels
    width, height = (max(1, round(pixels.shape[axis] * gain)) for axis in (1, 0))
    how = cv2.INTER_AREA if gain < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=how), dtype=np.uint8)


def sample(pictures: Pictures, number: int, recipe: Recipe, seed: int, epoch: int) -> tuple[Pixels, Floats]:
    """A training image (height, width, 3) around image `number`, and its boxes as shares: class, center, size."""
    generator = stream(seed, "augmentation", epoch, number)
    pixels, boxes = _composed(pictures, number, recipe, generator)
    if recipe.mixup and generator.random() < recipe.mixup:
        other, more = _composed(pictures, _any(pictures, generator), recipe, generator)
        share = generator.beta(8.0, 8.0)
        pixels = (pixels * share + other * (1 - share)).astype(np.uint8)
        boxes = np.concatenate([boxes, more])
    pixels = recolored(pixels, recipe, generator)
    if generator.random() < recipe.mirror:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        width = pictures.shape[1]
        boxes = np.column_stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1], boxes[:, 4]])
    center, size = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    whole = np.array(pictures.shape[::-1])
    return pixels, np.column_stack([boxes[:, :1], center / whole, size / whole])


def _any(pictures: Pictures, generator: Generator) -> int:
    return int(generator.integers(len(pictures.examples)))


def _composed(pictures: Pictures, number: int, recipe: Recipe, generator: Generator) -> tuple[Pixels, Floats]:
    height, width = pictures.shape
    if generator.random() < recipe.mosaic:
        canvas, boxes = (mosaic_nine if generator.random() < _NINE_SHARE else mosaic_four)(pictures, number, generator)
        return moved(canvas, boxes, pictures.shape, recipe, generator)
    pixels, boxes = pictures.read(number)
    canvas = np.full((height, width, 3), BORDER, np.uint8)
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return moved(canvas, boxes + np.array([0, left, top, left, top]), pictures.shape, recipe, generator)


def mosaic_four(pictures: Pictures, number: int, generator: Generator) -> tuple[Pixels, Floats]:
    """Four images round a point, on a canvas of twice the sides."""
    high, wide = pictures.shape
    x, y = (int(generator.uniform(side / 2, 1.5 * side)) for side in (wide, high))
    canvas, found = np.full((2 * high, 2 * wide, 3), BORDER, np.uint8), []
    for corner, one in enumerate([number, *(_any(pictures, generator) for _ in range(3))]):
        pixels, boxes = pictures.read(one)
        height, width = pixels.shape[:2]
        left = x - width if corner % 2 == 0 else x
        top = y - height if corner < 2 else y
        found.append(_pasted(canvas, pixels, boxes, left, top))
    return canvas, np.concatenate(found)


def mosaic_nine(pictures: Pictures, number: int, generator: Generator) -> tuple[Pixels, Floats]:
    """Nine images, one in the middle and the others close round it, of which a canvas of twice the sides is cut."""
    high, wide = pictures.shape
    canvas, found = np.full((3 * high, 3 * wide, 3), BORDER, np.uint8), []
    middle, _ = pictures.read(number)
    below, beside = high + middle.shape[0], wide + middle.shape[1]
    for row, column in itertools.product(range(3), range(3)):
        pixels, boxes = pictures.read(number if row == column == 1 else _any(pictures, generator))
        height, width = pixels.shape[:2]
        left, top = (wide - width, wide, beside)[column], (high - height, high, below)[row]
        found.append(_pasted(canvas, pixels, boxes, left, top))
    x, y = (int(generator.uniform(0, side)) for side in (wide, high))
    boxes = np.concatenate(found) - np.array([0, x, y, x, y])
    boxes[:, 1:] = boxes[:, 1:].clip(0, 2 * np.array([wide, high, wide, high]))
    return canvas[y : y + 2 * high, x : x + 2 * wide], boxes


def _pasted(canvas: Pixels, pixels: Pixels, boxes: Floats, left: int, top: int) -> Floats:
    """Put an image on the canvas, as far as it lies on it; its boxes there."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + pixels.shape[1], width), min(top + pixels.shape[0], height)
    if x2 > x1 and y2 > y1:
        canvas[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
    placed = boxes + np.array([0, left, top, left, top])
    placed[:, 1::2] = placed[:, 1::2].clip(0, width)
    placed[:, 2::2] = placed[:, 2::2].clip(0, height)
    return placed


def moved(
    canvas: Pixels, boxes: Floats, shape: tuple[int, int], recipe: Recipe, generator: Generator
) -> tuple[Pixels, Floats]:
    """A part of the canvas, scaled and shifted; boxes are cut at its edges, and dropped where little is left.

    Parameters
    ----------
    shape : height and width of the part
    """
    height, width = canvas.shape[:2]
    high, wide = shape
    gain = generator.uniform(1 - recipe.scale, 1.1 + recipe.scale)
    shift = generator.uniform(0.5 - recipe.translate, 0.5 + recipe.translate, 2) * (wide, high)
    matrix = np.array([[gain, 0, shift[0] - gain * width / 2], [0, gain, shift[1] - gain * height / 2]])
    pixels = cv2.warpAffine(canvas, matrix, (wide, high), borderValue=(BORDER,) * 3)
    boxes = boxes.copy()
    before = (boxes[:, 3:] - boxes[:, 1:3]) * gain
    boxes[:, 1:] = boxes[:, 1:] * gain + np.tile(matrix[:, 2], 2)
    boxes[:, 1:] = boxes[:, 1:].clip(0, np.array([wide, high, wide, high]))
    return np.asarray(pixels, dtype=np.uint8), boxes[worth_keeping(before, boxes[:, 3:] - boxes[:, 1:3])]


def worth_keeping(before: Floats, after: Floats) -> npt.NDArray[np.bool_]:
    """Which boxes are still large enough, and enough of what they were; sides (k, 2) in pixels of the same scale."""
    aspect = np.maximum(after[:, 0] / (after[:, 1] + 1e-16), after[:, 1] / (after[:, 0] + 1e-16))
    share = after.prod(1) / (before.prod(1) + 1e-16)
    return np.asarray((after > _LEAST_SIDE).all(1) & (share > _LEAST_AREA) & (aspect < _MOST_ASPECT))


def recolored(pixels: Pixels, recipe: Recipe, generator: Generator) -> Pixels:
    """Hue, saturation and brightness, each by a factor of its own."""
    gains = np.array([recipe.hue, recipe.saturation, recipe.value])
    if not gains.any():
        return pixels
    factors = generator.uniform(-1, 1, 3) * gains + 1
    steps = np.arange(256)
    tables = [(steps * factors[0]) % 180, *((steps * factor).clip(0, 255) for factor in factors[1:])]
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    changed = cv2.LUT(hsv, np.stack(tables, -1).astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2RGB), dtype=np.uint8)

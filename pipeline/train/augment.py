"""Augmentation of training images: mosaic, mixup, shift, scale, mirroring, and colors.

A sample depends only on the seed, the epoch, and the number of its image. Pixels are uint8 RGB. Within this module,
boxes are class, x1, y1, x2, y2 in pixels.
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

MAX_PIXELS = 100_000_000  # per image
_NINE_SHARE = 0.2  # of the mosaics have nine images instead of four
_LEAST_SIDE, _LEAST_AREA, _MOST_ASPECT = 2.0, 0.1, 20.0  # of a box to keep: pixels, share of the original, ratio


@dataclass
class ImageCache:
    """Images of a split, resized to fit a sample and kept in memory up to a limit."""

    examples: Sequence[Example]
    shape: tuple[int, int]  # height and width of a sample, pixels
    keep_bytes: int = 400_000_000
    _kept: dict[int, Pixels] = field(default_factory=dict, repr=False)
    _kept_bytes: int = 0

    def read(self, number: int) -> tuple[Pixels, Floats]:
        """Return the pixels (height, width, 3) and boxes (k, 5) of an image.

        Raises
        ------
        OSError
            If the image cannot be decoded anymore.
        """
        pixels = self._kept.get(number)
        if pixels is None:
            decoded = decode(self.examples[number].path.read_bytes(), max_pixels=MAX_PIXELS).pixels
            if decoded is None:
                raise OSError(f"{self.examples[number].path} cannot be decoded")
            pixels = resize(decoded, self.shape)
            if self._kept_bytes + pixels.nbytes <= self.keep_bytes:
                self._kept[number] = pixels
                self._kept_bytes += pixels.nbytes
        height, width = pixels.shape[:2]
        boxes = self.examples[number].boxes
        half = boxes[:, 3:] / 2
        scale = np.array([width, height])
        return pixels, np.column_stack([boxes[:, 0], (boxes[:, 1:3] - half) * scale, (boxes[:, 1:3] + half) * scale])


def common_shape(sizes: Floats, size: int, stride: int) -> tuple[int, int]:
    """Return the smallest sample shape that fits all images.

    Parameters
    ----------
    sizes : ndarray of float64, shape (n, 2)
        Width and height of the images, pixels.
    size : int
        Longer side of each image after resizing, pixels.
    stride : int
        Height and width are multiples of the stride.

    Returns
    -------
    tuple of int
        Height and width, pixels.
    """
    resized = (sizes * (size / sizes.max(1, keepdims=True))).round()
    width, height = np.ceil(resized.max(0) / stride).astype(int) * stride
    return int(height), int(width)


def resize(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """Resize an image to the largest size that fits into height and width, keeping its aspect ratio."""
    gain = min(shape[0] / pixels.shape[0], shape[1] / pixels.shape[1])
    if gain == 1:
        return pixels
    width, height = (max(1, round(pixels.shape[axis] * gain)) for axis in (1, 0))
    interpolation = cv2.INTER_AREA if gain < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation), dtype=np.uint8)


def sample(images: ImageCache, number: int, recipe: Recipe, seed: int, epoch: int) -> tuple[Pixels, Floats]:
    """Return the augmented training sample of an image.

    Parameters
    ----------
    images : ImageCache
        Images of the train split.
    number : int
        Number of the image.
    recipe : Recipe
        Hyperparameters.
    seed : int
        Seed of the training.
    epoch : int
        Epoch, from 0.

    Returns
    -------
    pixels : ndarray of uint8, shape (height, width, 3)
        RGB pixels.
    boxes : ndarray of float64, shape (k, 5)
        Class, center x, center y, width, height; the last four as shares of the sample.
    """
    generator = stream(seed, "augmentation", epoch, number)
    pixels, boxes = _compose(images, number, recipe, generator)
    if recipe.mixup and generator.random() < recipe.mixup:
        other, more = _compose(images, _random_number(images, generator), recipe, generator)
        share = generator.beta(8.0, 8.0)
        pixels = (pixels * share + other * (1 - share)).astype(np.uint8)
        boxes = np.concatenate([boxes, more])
    pixels = jitter_colors(pixels, recipe, generator)
    if generator.random() < recipe.mirror:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        width = images.shape[1]
        boxes = np.column_stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1], boxes[:, 4]])
    center, size = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    whole = np.array(images.shape[::-1])
    return pixels, np.column_stack([boxes[:, :1], center / whole, size / whole])


def _random_number(images: ImageCache, generator: Generator) -> int:
    return int(generator.integers(len(images.examples)))


def _compose(images: ImageCache, number: int, recipe: Recipe, generator: Generator) -> tuple[Pixels, Floats]:
    height, width = images.shape
    if generator.random() < recipe.mosaic:
        canvas, boxes = (mosaic_nine if generator.random() < _NINE_SHARE else mosaic_four)(images, number, generator)
        return shift_and_scale(canvas, boxes, images.shape, recipe, generator)
    pixels, boxes = images.read(number)
    canvas = np.full((height, width, 3), BORDER, np.uint8)
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return shift_and_scale(canvas, boxes + np.array([0, left, top, left, top]), images.shape, recipe, generator)


def mosaic_four(images: ImageCache, number: int, generator: Generator) -> tuple[Pixels, Floats]:
    """Place four images around a random point on a canvas of twice the sample's height and width.

    Parameters
    ----------
    images : ImageCache
        Images of the train split.
    number : int
        Number of the first image; the others are random.
    generator : numpy.random.Generator
        Source of randomness.
    """
    high, wide = images.shape
    x, y = (int(generator.uniform(side / 2, 1.5 * side)) for side in (wide, high))
    canvas, found = np.full((2 * high, 2 * wide, 3), BORDER, np.uint8), []
    for corner, image in enumerate([number, *(_random_number(images, generator) for _ in range(3))]):
        pixels, boxes = images.read(image)
        height, width = pixels.shape[:2]
        left = x - width if corner % 2 == 0 else x
        top = y - height if corner < 2 else y
        found.append(_paste(canvas, pixels, boxes, left, top))
    return canvas, np.concatenate(found)


def mosaic_nine(images: ImageCache, number: int, generator: Generator) -> tuple[Pixels, Floats]:
    """Place nine images in a grid and cut out a canvas of twice the sample's height and width.

    Parameters
    ----------
    images : ImageCache
        Images of the train split.
    number : int
        Number of the central image; the others are random.
    generator : numpy.random.Generator
        Source of randomness.
    """
    high, wide = images.shape
    canvas, found = np.full((3 * high, 3 * wide, 3), BORDER, np.uint8), []
    middle, _ = images.read(number)
    below, beside = high + middle.shape[0], wide + middle.shape[1]
    for row, column in itertools.product(range(3), range(3)):
        pixels, boxes = images.read(number if row == column == 1 else _random_number(images, generator))
        height, width = pixels.shape[:2]
        left, top = (wide - width, wide, beside)[column], (high - height, high, below)[row]
        found.append(_paste(canvas, pixels, boxes, left, top))
    x, y = (int(generator.uniform(0, side)) for side in (wide, high))
    boxes = np.concatenate(found) - np.array([0, x, y, x, y])
    boxes[:, 1:] = boxes[:, 1:].clip(0, 2 * np.array([wide, high, wide, high]))
    return canvas[y : y + 2 * high, x : x + 2 * wide], boxes


def _paste(canvas: Pixels, pixels: Pixels, boxes: Floats, left: int, top: int) -> Floats:
    """Paste the visible part of an image onto the canvas; return its boxes there."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + pixels.shape[1], width), min(top + pixels.shape[0], height)
    if x2 > x1 and y2 > y1:
        canvas[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
    placed = boxes + np.array([0, left, top, left, top])
    placed[:, 1::2] = placed[:, 1::2].clip(0, width)
    placed[:, 2::2] = placed[:, 2::2].clip(0, height)
    return placed


def shift_and_scale(
    canvas: Pixels, boxes: Floats, shape: tuple[int, int], recipe: Recipe, generator: Generator
) -> tuple[Pixels, Floats]:
    """Cut out a randomly scaled and shifted part of the canvas; clip boxes and drop small remainders.

    Parameters
    ----------
    canvas : ndarray of uint8, shape (h, w, 3)
        RGB pixels.
    boxes : ndarray of float64, shape (k, 5)
        Class, x1, y1, x2, y2, pixels of the canvas.
    shape : tuple of int
        Height and width of the part, pixels.
    recipe : Recipe
        Hyperparameters.
    generator : numpy.random.Generator
        Source of randomness.
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
    return np.asarray(pixels, dtype=np.uint8), boxes[large_enough(before, boxes[:, 3:] - boxes[:, 1:3])]


def large_enough(before: Floats, after: Floats) -> npt.NDArray[np.bool_]:
    """Return whether boxes are still large enough after clipping.

    Parameters
    ----------
    before, after : ndarray of float64, shape (k, 2)
        Width and height, pixels of the sample.
    """
    aspect = np.maximum(after[:, 0] / (after[:, 1] + 1e-16), after[:, 1] / (after[:, 0] + 1e-16))
    share = after.prod(1) / (before.prod(1) + 1e-16)
    return np.asarray((after > _LEAST_SIDE).all(1) & (share > _LEAST_AREA) & (aspect < _MOST_ASPECT))


def jitter_colors(pixels: Pixels, recipe: Recipe, generator: Generator) -> Pixels:
    """Multiply hue, saturation, and brightness by random factors.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (h, w, 3)
        RGB pixels.
    recipe : Recipe
        Hyperparameters.
    generator : numpy.random.Generator
        Source of randomness.
    """
    gains = np.array([recipe.hue, recipe.saturation, recipe.value])
    if not gains.any():
        return pixels
    factors = generator.uniform(-1, 1, 3) * gains + 1
    steps = np.arange(256)
    tables = [(steps * factors[0]) % 180, *((steps * factor).clip(0, 255) for factor in factors[1:])]
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    jittered = cv2.LUT(hsv, np.stack(tables, -1).astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(jittered, cv2.COLOR_HSV2RGB), dtype=np.uint8)

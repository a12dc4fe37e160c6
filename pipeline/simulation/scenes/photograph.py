"""Photographs of scenes, with the blur, vignette, noise, and JPEG compression of a camera."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.simulation.scenes.compose import HEIGHT, WIDTH, compose
from patrolscope.pipeline.simulation.scenes.paint import Box, paint
from patrolscope.pipeline.simulation.scenes.scene import VEHICLE, Scene

_MOST_ATTEMPTS = 40
_TILE = 1024  # side of the noise from which all photographs take a part, pixels


@dataclass(frozen=True)
class Photograph:
    """JPEG file and the boxes it shows."""

    jpeg: bytes
    boxes: tuple[Box, ...]

    @property
    def shows_police(self) -> bool:
        """Whether a police vehicle has a box."""
        return any(box.kind == VEHICLE for box in self.boxes)


def photograph(seed: int, key: str, *, police: bool | None = None) -> Photograph:
    """Render the photograph of a key, which depends only on the arguments.

    Parameters
    ----------
    seed : int
        Seed, at least 0.
    key : str
        Any text, such as an `image_ref`.
    police : bool or None, default None
        Whether a police vehicle is visible. Scenes are drawn until one satisfies this. None: the first scene.

    Raises
    ------
    ValueError
        If none of 40 scenes satisfies `police`, which does not happen in practice.
    """
    generator = stream(seed, f"scene {key}")
    for _ in range(_MOST_ATTEMPTS):
        scene = compose(generator, police=police)
        pixels, boxes = paint(scene)
        if police is None or police == any(box.kind == VEHICLE for box in boxes):
            return Photograph(expose(pixels, scene, generator), tuple(boxes))
    raise ValueError(f"none of {_MOST_ATTEMPTS} scenes for {key!r} has a visible police vehicle: {police}")


def expose(pixels: npt.NDArray[np.uint8], scene: Scene, generator: np.random.Generator) -> bytes:
    """Encode rendered pixels as a JPEG of an inexpensive camera behind a windshield.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        RGB pixels.
    scene : Scene
        Scene, whose light affects blur and noise.
    generator : numpy.random.Generator
        Source of randomness.
    """
    image = Image.fromarray(pixels)
    image = image.filter(ImageFilter.BoxBlur(float(generator.uniform(0.1, 0.9 + 0.4 * scene.light.lamps))))
    noise = float(generator.uniform(1.5, 5.0) + 5.0 * scene.light.lamps * generator.random())
    row, column = generator.integers(0, _TILE - HEIGHT), generator.integers(0, _TILE - WIDTH)
    grain = _grain()[row : row + HEIGHT, column : column + WIDTH] * int(noise * 16)
    gain = float(generator.uniform(0.88, 1.12))
    # Integers, one color at a time, take a sixth of the time of floats for all colors.
    factor = (_vignette() * gain * 256).astype(np.int32)
    bands = []
    for band in image.split():
        values = np.asarray(band).astype(np.int32)
        values *= factor
        values += grain
        values >>= 8
        bands.append(Image.fromarray(values.clip(0, 255, out=values).astype(np.uint8)))
    finished = Image.merge("RGB", bands)
    file = io.BytesIO()
    finished.save(file, "JPEG", quality=int(generator.integers(55, 92)))
    return file.getvalue()


@cache
def _grain() -> npt.NDArray[np.int32]:
    noise = np.random.default_rng(0).standard_normal((_TILE, _TILE))
    return (noise * 16).astype(np.int32)


@cache
def _vignette() -> npt.NDArray[np.float64]:
    rows, columns = np.linspace(-1, 1, HEIGHT)[:, None], np.linspace(-1, 1, WIDTH)[None]
    return np.asarray(1.02 - 0.16 * (rows**2 + columns**2))


def label_text(boxes: Sequence[Box]) -> str:
    """Format boxes as a YOLO label file: lines `class cx cy w h` in shares of the image."""
    return "".join(
        f"{box.kind} {(box.x1 + box.x2) / 2 / WIDTH:.6f} {(box.y1 + box.y2) / 2 / HEIGHT:.6f} "
        f"{(box.x2 - box.x1) / WIDTH:.6f} {(box.y2 - box.y1) / HEIGHT:.6f}\n"
        for box in boxes
    )

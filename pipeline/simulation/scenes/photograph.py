"""What a camera makes of a scene: blur, vignette, noise and JPEG; and the picture that belongs to a key."""

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
_TILE = 1024  # pixels a side of the noise that all pictures take theirs from


@dataclass(frozen=True)
class Photograph:
    """A JPEG and what it shows."""

    jpeg: bytes
    boxes: tuple[Box, ...]

    @property
    def shows_police(self) -> bool:
        """Whether a police vehicle has a box."""
        return any(box.kind == VEHICLE for box in self.boxes)


def photograph(seed: int, key: str, *, police: bool | None = None) -> Photograph:
    """The picture of a key: the same bytes whoever asks, and when.

    Parameters
    ----------
    seed, key : any seed from 0 on and any text, such as an image_ref
    police : whether a police vehicle is to be seen; scenes that do not have it so are drawn again. None: as it comes

    Raises
    ------
    ValueError : no scene of many had it so, which does not happen
    """
    generator = stream(seed, f"scene {key}")
    for _ in range(_MOST_ATTEMPTS):
        scene = compose(generator, police=police)
        pixels, boxes = paint(scene)
        if police is None or police == any(box.kind == VEHICLE for box in boxes):
            return Photograph(exposed(pixels, scene, generator), tuple(boxes))
    raise ValueError(f"no scene of {_MOST_ATTEMPTS} for {key!r} shows what is asked for")


def exposed(pixels: npt.NDArray[np.uint8], scene: Scene, generator: np.random.Generator) -> bytes:
    """The JPEG file of painted pixels, as a cheap camera behind a windscreen takes it."""
    image = Image.fromarray(pixels)
    image = image.filter(ImageFilter.BoxBlur(float(generator.uniform(0.1, 0.9 + 0.4 * scene.light.lamps))))
    noise = float(generator.uniform(1.5, 5.0) + 5.0 * scene.light.lamps * generator.random())
    row, column = generator.integers(0, _TILE - HEIGHT), generator.integers(0, _TILE - WIDTH)
    grain = _grain()[row : row + HEIGHT, column : column + WIDTH] * int(noise * 16)
    gain = float(generator.uniform(0.88, 1.12))
    # In whole numbers, and color by color: a sixth of the time of floats of three colors at once.
    factor = (_vignette() * gain * 256).astype(np.int32)
    bands = []
    for band in image.split():
        shown = np.asarray(band).astype(np.int32)
        shown *= factor
        shown += grain
        shown >>= 8
        bands.append(Image.fromarray(shown.clip(0, 255, out=shown).astype(np.uint8)))
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
    """Lines `class cx cy w h` in shares of the picture: a YOLO label file."""
    return "".join(
        f"{box.kind} {(box.x1 + box.x2) / 2 / WIDTH:.6f} {(box.y1 + box.y2) / 2 / HEIGHT:.6f} "
        f"{(box.x2 - box.x1) / WIDTH:.6f} {(box.y2 - box.y1) / HEIGHT:.6f}\n"
        for box in boxes
    )

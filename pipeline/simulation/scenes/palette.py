"""Colors of rendered scenes, RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from patrolscope.pipeline.simulation.scenes.scene import Color

Generator = np.random.Generator

PLAIN = (  # colors of cars, repeated by frequency
    *((28, 28, 30), (28, 28, 30), (60, 62, 66), (60, 62, 66), (120, 122, 126), (176, 178, 180), (176, 178, 180)),
    *((226, 226, 224), (226, 226, 224), (226, 226, 224), (120, 24, 28), (28, 46, 96), (40, 84, 150), (52, 74, 60)),
    (150, 128, 96),
)
WHITE = ((236, 238, 240), (228, 230, 234), (242, 242, 240))
POLICE_BLUE = ((18, 44, 140), (24, 60, 160), (40, 84, 178), (14, 34, 104))
YELLOW = ((246, 190, 20), (240, 178, 12), (250, 200, 40))
WALLS = (
    *((150, 84, 66), (128, 70, 58), (168, 104, 82), (176, 156, 130), (196, 184, 162), (140, 136, 130)),
    *((112, 108, 106), (206, 200, 190), (98, 66, 56)),
)
SHOPS = ((150, 30, 34), (24, 80, 60), (28, 60, 120), (210, 160, 40), (60, 60, 64), (200, 200, 196))
CLOTHES = (
    *((30, 32, 40), (56, 60, 72), (96, 40, 44), (44, 70, 110), (150, 146, 140), (200, 190, 176), (70, 90, 70)),
    *((26, 34, 62), (180, 96, 50)),
)
SKINS = ((236, 196, 164), (208, 160, 122), (160, 112, 80), (108, 74, 54))
VEHICLE_PARTS: Mapping[str, Color] = {
    "tire": (22, 22, 24),
    "rim": (140, 142, 146),
    "trim": (34, 35, 38),
    "glass": (44, 52, 60),
    "windshield": (64, 76, 86),
    "tail": (204, 30, 30),
    "head": (244, 244, 232),
    "plate": (226, 206, 120),
    "grille": (30, 31, 34),
    "bar": (54, 56, 64),
    "red lamp": (255, 52, 48),
    "blue lamp": (64, 100, 255),
    "white lamp": (236, 240, 248),
    "amber": (255, 168, 30),
    "sign": (250, 240, 200),
    "rib": (150, 150, 148),
    "cab": (226, 226, 224),
}


def pick(generator: Generator, choices: Sequence[Color]) -> Color:
    """Draw one of the colors."""
    return choices[int(generator.integers(len(choices)))]


def vary(generator: Generator, color: Color, spread: float = 8) -> Color:
    """Add normal noise of standard deviation `spread` to a color.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of randomness.
    color : tuple of int
        RGB.
    spread : float, default 8
        Standard deviation per channel.
    """
    return tuple(int(value) for value in np.clip(np.array(color) + generator.normal(0, spread), 5, 250))  # type: ignore[return-value]

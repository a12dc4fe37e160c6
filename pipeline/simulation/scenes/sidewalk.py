"""Random people, trees, lamps, signs, and traffic lights of a scene."""

from __future__ import annotations

import numpy as np

from patrolscope.pipeline.simulation.scenes.palette import CLOTHES, SKINS, pick, vary
from patrolscope.pipeline.simulation.scenes.scene import OFFICER, Person, Post, Street

Generator = np.random.Generator


def draw_people(generator: Generator, street: Street) -> list[Person]:
    """Draw pedestrians and officers."""
    found = []
    for _ in range(int(generator.poisson(3.0))):
        if street.crossing is not None and generator.random() < 0.25:
            z = street.crossing - street.crossing_half - 2
            x = float(generator.uniform(-street.half_road, street.half_road))
        else:
            side = 1 if generator.random() < 0.5 else -1
            x = side * (street.half_road + float(generator.uniform(0.6, street.sidewalk)))
            z = float(generator.uniform(6, 45))
        if z > 4:
            found.append(_draw_pedestrian(generator, x, z))
    if generator.random() < 0.25:
        side = 1 if generator.random() < 0.5 else -1
        x = side * (street.half_road + float(generator.uniform(-1.2, street.sidewalk)))
        officers = 1 + int(generator.random() < 0.3)
        found += [
            _draw_officer(generator, x + 0.8 * number, float(generator.uniform(7, 24))) for number in range(officers)
        ]
    return found


def _draw_pedestrian(generator: Generator, x: float, z: float) -> Person:
    worker = generator.random() < 0.08
    colors = {
        "legs": pick(generator, CLOTHES),
        "torso": (paint := vary(generator, pick(generator, CLOTHES))),
        "arms": paint,
        "belt": paint,
        "skin": pick(generator, SKINS),
        "hair": vary(generator, (50, 40, 34), 20),
        "vest": (240, 110, 30),
        "band": (230, 230, 210),
        "cap": (236, 206, 60),
        "trim": (236, 206, 60),
        "badge": paint,
    }
    return Person(
        x,
        z,
        float(generator.uniform(1.5, 1.9)),
        colors,
        float(generator.uniform(-1, 1)),
        bool(generator.random() < 0.5),
        cap=bool(worker),
        vest=bool(worker),
    )


def _draw_officer(generator: Generator, x: float, z: float) -> Person:
    navy = vary(generator, (24, 30, 58), 5)
    colors = {
        "legs": (18, 22, 40),
        "torso": navy,
        "arms": navy,
        "belt": (8, 8, 10),
        "skin": pick(generator, SKINS),
        "hair": (40, 34, 30),
        "vest": (198, 226, 40),
        "band": (236, 236, 220),
        "cap": (16, 20, 40),
        "trim": (8, 8, 12),
        "badge": (236, 200, 90),
    }
    vest = bool(generator.random() < 0.3)
    stride, turned = float(generator.uniform(-0.5, 0.5)), bool(generator.random() < 0.3)
    return Person(x, z, float(generator.uniform(1.68, 1.9)), colors, stride, turned, True, vest, OFFICER)


def draw_posts(generator: Generator, street: Street) -> list[Post]:
    """Draw trees, lamps, signs, and traffic lights."""
    found = []
    gray = (78, 82, 84)
    for side in (-1, 1):
        edge = side * (street.half_road + 0.5)
        trees = generator.random() < 0.6
        z = float(generator.uniform(3, 14))
        while z < 80:
            sort = "tree" if trees and generator.random() < 0.6 else "lamp" if generator.random() < 0.45 else "sign"
            height = {"tree": 4.4, "lamp": 7.5, "sign": 2.7}[sort] * float(generator.uniform(0.9, 1.15))
            color = (84, 66, 50) if sort == "tree" else gray
            crossed = street.crossing is not None and abs(z - street.crossing) < street.crossing_half + 2
            if not crossed:
                found.append(Post(sort, edge, z, height, color, int(generator.integers(0, 1000))))
            z += float(generator.uniform(7, 18))
        if street.crossing is not None:
            at = street.crossing + side * (street.crossing_half + 1)
            found.append(Post("light", edge, max(at, 3.0), 4.6, (60, 64, 50), int(generator.integers(0, 1000))))
    return found

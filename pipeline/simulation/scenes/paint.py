"""Rendering of a scene to pixels and to the boxes of visible police vehicles and officers.

Things are painted from far to near at twice the size and averaged, which smooths edges. A mask records the number of
the thing that each pixel shows. It provides the visible share of each thing and its box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.simulation.scenes.canvas import SMOOTH, Canvas
from patrolscope.pipeline.simulation.scenes.paint_sidewalk import paint_person, paint_post
from patrolscope.pipeline.simulation.scenes.paint_street import paint_own_hood, paint_street
from patrolscope.pipeline.simulation.scenes.paint_vehicle import paint_vehicle
from patrolscope.pipeline.simulation.scenes.scene import Person, Post, Scene, Vehicle

LEAST_VISIBLE = 0.3  # visible share of a thing, below which it has no box
LEAST_PIXELS = 7  # longer side of the smallest box
_LEAST_SHORT_SIDE = 3  # pixels


@dataclass(frozen=True)
class Box:
    """Visible part of a thing, pixels."""

    kind: int  # class number
    x1: float
    y1: float
    x2: float
    y2: float
    visible: float  # share of the whole thing, which can be partly hidden or outside the image
    thing: int  # number among the things of the scene


def paint(scene: Scene) -> tuple[npt.NDArray[np.uint8], list[Box]]:
    """Render a scene; return its pixels (height, width, 3) and the boxes of things that have a class."""
    canvas = Canvas(scene)
    paint_street(canvas)
    far_to_near = sorted(range(len(scene.things)), key=lambda number: -scene.things[number].z)
    painted: dict[int, tuple[int, float]] = {}  # pixels of the unobstructed thing, and its share inside the image
    for number in far_to_near:
        thing = scene.things[number]
        if isinstance(thing, Vehicle):
            inside = paint_vehicle(canvas, thing, number + 1)
        elif isinstance(thing, Person):
            inside = paint_person(canvas, thing, number + 1)
        else:
            paint_post(canvas, thing, number + 1)
            continue
        if thing.kind is not None and inside is not None:
            painted[number] = canvas.mask.histogram()[number + 1], inside
    paint_own_hood(canvas)
    pixels = np.asarray(canvas.image.reduce(SMOOTH))
    return pixels, list(_boxes(scene, painted, np.asarray(canvas.mask)))


def _boxes(scene: Scene, painted: dict[int, tuple[int, float]], mask: npt.NDArray[np.uint8]) -> Iterator[Box]:
    for number, (pixels, inside) in sorted(painted.items()):
        rows, columns = np.nonzero(mask == number + 1)
        if not pixels or not len(rows):
            continue
        visible = inside * len(rows) / pixels
        x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        sides = x2 - x1, y2 - y1
        if visible >= LEAST_VISIBLE and max(sides) >= LEAST_PIXELS and min(sides) >= _LEAST_SHORT_SIDE:
            thing = scene.things[number]
            kind = None if isinstance(thing, Post) else thing.kind
            if kind is not None:
                yield Box(kind, float(x1), float(y1), float(x2), float(y2), float(visible), number)

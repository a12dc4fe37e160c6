"""Random scenes: a street of New York as seen by a dashcam by day, at dusk, and at night."""

from __future__ import annotations

import numpy as np

from patrolscope.pipeline.simulation.scenes.palette import PLAIN, SHOPS, WALLS, pick, vary
from patrolscope.pipeline.simulation.scenes.scene import (
    PARKING_M,
    Camera,
    Color,
    House,
    Light,
    Person,
    Post,
    Scene,
    Street,
    Vehicle,
)
from patrolscope.pipeline.simulation.scenes.sidewalk import draw_people, draw_posts
from patrolscope.pipeline.simulation.scenes.traffic import draw_cross_traffic, draw_parked, draw_traffic, place_police

Generator = np.random.Generator

WIDTH, HEIGHT = 640, 360  # pixels

_LANE_M = 3.3
_TIMES = {"day": 0.62, "dusk": 0.16, "night": 0.22}


def compose(generator: Generator, *, police: bool | None = None) -> Scene:
    """Draw a scene.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of randomness.
    police : bool or None, default None
        Whether there is a police vehicle, which can be hidden. None: in half of all scenes.
    """
    light = _draw_light(generator)
    lanes = int(generator.integers(1, 3))  # on each side of the middle
    one_way = generator.random() < 0.45
    half_road = lanes * _LANE_M + PARKING_M
    lane_middles = [(-half_road + PARKING_M) + _LANE_M * (lane + 0.5) for lane in range(2 * lanes)]
    own = int(generator.integers(0, 2 * lanes)) if one_way else int(generator.integers(lanes, 2 * lanes))
    camera = Camera(
        WIDTH,
        HEIGHT,
        focal=float(generator.uniform(420, 640)),
        horizon=HEIGHT * float(generator.uniform(0.4, 0.54)),
        middle=WIDTH * float(generator.uniform(0.42, 0.58)),
        x=lane_middles[own] + float(generator.normal(0, 0.3)),
        y=float(generator.uniform(1.2, 1.65)),
    )
    crossing = float(generator.uniform(14, 70)) if generator.random() < 0.55 else None
    street = _draw_street(generator, half_road, _lines(half_road, lanes), crossing)
    things: list[Vehicle | Person | Post] = []
    things += draw_traffic(generator, lane_middles, own, lanes, one_way=one_way)
    things += draw_parked(generator, street, one_way=one_way)
    if crossing is not None:
        things += draw_cross_traffic(generator, crossing, street.crossing_half)
    things += draw_people(generator, street)
    things += draw_posts(generator, street)
    police = bool(generator.random() < 0.5) if police is None else police
    if police:
        things = place_police(generator, things)
    return Scene(light, camera, street, tuple(things))


def _draw_light(generator: Generator) -> Light:
    name = str(generator.choice(list(_TIMES), p=list(_TIMES.values())))
    if name == "day":
        sunny = generator.random() < 0.55
        strength = float(generator.uniform(0.8, 1.1)) if sunny else float(generator.uniform(0.62, 0.85))
        sky: tuple[Color, Color] = ((96, 148, 214), (206, 222, 236)) if sunny else ((168, 174, 182), (208, 210, 212))
        tint = (1.04, 1.0, 0.94) if sunny else (0.97, 1.0, 1.03)
        return Light(name, strength, tint, sky, 0.0, 0.9 if sunny else 0.6, float(generator.uniform(160, 420)))
    if name == "dusk":
        sky = ((62, 78, 124), (232, 158, 104)) if generator.random() < 0.6 else ((70, 84, 110), (150, 150, 160))
        strength = float(generator.uniform(0.38, 0.55))
        return Light(name, strength, (1.06, 0.96, 0.92), sky, 0.5, 0.5, float(generator.uniform(130, 260)))
    sky = ((8, 10, 20), (26, 26, 36))
    return Light(name, float(generator.uniform(0.2, 0.32)), (1.05, 0.97, 0.9), sky, 1.0, 0.35, 120.0)


def _lines(half_road: float, lanes: int) -> list[float]:
    first = -half_road + PARKING_M
    return [first + _LANE_M * lane for lane in range(1, 2 * lanes)]


def _draw_street(generator: Generator, half_road: float, lanes: list[float], crossing: float | None) -> Street:
    sidewalk = float(generator.uniform(2.5, 4.5))
    half_crossing = float(generator.uniform(4.5, 7.5))
    houses: list[House] = []
    for side in (-1, 1):
        z = float(generator.uniform(-14, 0))
        # A gap for a park or yard.
        open_from = float(generator.uniform(0, 90)) if generator.random() < 0.3 else 1e9
        while z < 120:
            length = float(generator.uniform(9, 24))
            blocked = (
                crossing is not None and z < crossing + half_crossing + 3 and z + length > crossing - half_crossing - 3
            )
            if blocked and crossing is not None:
                z = crossing + half_crossing + 3 if z > crossing - half_crossing - 12 else z
                length = min(length, crossing - half_crossing - 3 - z) if z < crossing else length
            if not open_from < z < open_from + 40 and length > 3:
                houses.append(_draw_house(generator, side * (half_road + sidewalk), z, z + length))
            z += max(length, 1.0)
    dark = float(generator.uniform(72, 112))
    asphalt = (int(dark), int(dark), int(dark + 4))
    light = float(generator.uniform(140, 178))
    return Street(
        half_road,
        sidewalk,
        tuple(lanes),
        crossing,
        half_crossing,
        asphalt,
        (int(light), int(light - 3), int(light - 10)),
        tuple(houses),
        pick(generator, PLAIN) if generator.random() < 0.35 else None,
    )


def _draw_house(generator: Generator, x: float, near: float, far: float) -> House:
    floors = int(generator.integers(2, 8))
    return House(
        x,
        near,
        far,
        floors * float(generator.uniform(3.1, 3.7)),
        floors,
        max(2, int((far - near) / generator.uniform(2.8, 4.2))),
        vary(generator, pick(generator, WALLS)),
        vary(generator, (70, 80, 92), 14),
        vary(generator, pick(generator, SHOPS)) if generator.random() < 0.5 else None,
        int(generator.integers(0, 2**60)) & int(generator.integers(0, 2**60)),
    )

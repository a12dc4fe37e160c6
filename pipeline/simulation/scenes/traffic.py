"""Random vehicles of a scene: traffic, parked cars, and police vehicles."""

from __future__ import annotations

import math

import numpy as np

from patrolscope.pipeline.simulation.scenes import solids
from patrolscope.pipeline.simulation.scenes.palette import (
    PLAIN,
    POLICE_BLUE,
    SHOPS,
    VEHICLE_PARTS,
    WHITE,
    YELLOW,
    pick,
    vary,
)
from patrolscope.pipeline.simulation.scenes.scene import PARKING_M, VEHICLE, Color, Person, Post, Street, Vehicle

Generator = np.random.Generator


def _colors(**own: Color) -> dict[str, Color]:
    return {**VEHICLE_PARTS, **own}


def _draw_vehicle(generator: Generator, x: float, z: float, yaw: float) -> Vehicle:
    """Draw an ordinary vehicle; many resemble a police vehicle."""
    chance = generator.random()
    body = str(generator.choice(solids.BODIES, p=[0.42, 0.2, 0.38]))
    paint = vary(generator, pick(generator, PLAIN), 5)
    flashing = 0
    if chance < 0.56:
        livery = "livery" if generator.random() < 0.1 else "plain"
        model = solids.car(body, livery)
        colors = _colors(body=paint, stripe=pick(generator, SHOPS))
    elif chance < 0.72:
        model = solids.car(str(generator.choice(["sedan", "suv"])), "taxi")
        colors = _colors(body=pick(generator, YELLOW))
    elif chance < 0.78:
        model = solids.car("suv" if generator.random() < 0.5 else "sedan", "plain")
        colors = _colors(body=pick(generator, WHITE))
    elif chance < 0.87:
        firm = generator.random() < 0.6
        model = solids.van("firm" if firm else "plain")
        stripe = pick(generator, (*SHOPS, POLICE_BLUE[1]))
        colors = _colors(body=pick(generator, (*WHITE, (60, 62, 66), (96, 66, 40))), stripe=stripe)
    elif chance < 0.91:
        model = solids.van("ambulance")
        flashing = int(generator.random() < 0.4)
        colors = _colors(body=pick(generator, WHITE), stripe=pick(generator, ((210, 70, 30), (190, 30, 36))))
    elif chance < 0.95:
        model = solids.bus()
        colors = _colors(
            body=pick(generator, ((214, 220, 226), (34, 72, 150), (230, 230, 228))),
            stripe=pick(generator, ((26, 70, 160), (250, 200, 40))),
        )
    elif chance < 0.99:
        model = solids.truck()
        colors = _colors(body=pick(generator, (*WHITE, (196, 180, 60), (140, 44, 40))), stripe=pick(generator, SHOPS))
    else:
        model = solids.car("suv", "tow")
        flashing = 1
        colors = _colors(body=paint)
    return Vehicle(model, x, z, yaw, colors, None, flashing)


def _draw_police(generator: Generator, x: float, z: float, yaw: float) -> Vehicle:
    livery = "police" if generator.random() < 0.75 else "police-old"
    body = str(generator.choice(["sedan", "suv"], p=[0.45, 0.55]))
    flashing = int(generator.integers(1, 3)) if generator.random() < 0.45 else 0
    colors = _colors(body=pick(generator, WHITE), stripe=pick(generator, POLICE_BLUE))
    return Vehicle(solids.car(body, livery), x, z, yaw, colors, VEHICLE, flashing)


def _jitter(generator: Generator, yaw: float, spread: float = 0.03) -> float:
    return yaw + float(generator.normal(0, spread))


def draw_traffic(generator: Generator, middles: list[float], own: int, lanes: int, *, one_way: bool) -> list[Vehicle]:
    """Draw vehicles in the lanes of the street.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of randomness.
    middles : list of float
        Center of each lane, meters right of the center of the road.
    own : int
        Lane of the camera.
    lanes : int
        Lanes per side.
    one_way : bool
        Whether all lanes lead away from the camera.
    """
    found = []
    busy = generator.uniform(0.2, 0.85)
    for lane, x in enumerate(middles):
        away = one_way or lane >= lanes
        z = float(generator.uniform(6.5, 22)) if lane == own else float(generator.uniform(-2, 16))
        while z < 80:
            if generator.random() < busy:
                yaw = _jitter(generator, 0 if away else math.pi)
                found.append(_draw_vehicle(generator, x + float(generator.normal(0, 0.2)), z, yaw))
                z += found[-1].model.length / 2
            z += float(generator.uniform(5, 16))
    return found


def draw_parked(generator: Generator, street: Street, *, one_way: bool) -> list[Vehicle]:
    """Draw parked cars on both sides of the street.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of randomness.
    street : Street
        Street of the scene.
    one_way : bool
        Whether cars on both sides face away from the camera.
    """
    found = []
    for side in (-1, 1):
        if generator.random() < 0.12:
            continue
        full = generator.uniform(0.4, 0.95)
        z = float(generator.uniform(-3, 6))
        while z < 70:
            free = street.crossing is not None and abs(z - street.crossing) < street.crossing_half + 6
            if generator.random() < full and not free:
                yaw = _jitter(generator, 0 if side > 0 or one_way else math.pi)
                x = side * (street.half_road - PARKING_M / 2 + float(generator.normal(0, 0.1)))
                vehicle = _draw_vehicle(generator, x, z, yaw)
                if vehicle.model.length < 7:
                    found.append(vehicle)
            z += float(generator.uniform(5.6, 7.2))
    return found


def draw_cross_traffic(generator: Generator, crossing: float, half: float) -> list[Vehicle]:
    """Draw traffic of the cross street, seen from the side.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of randomness.
    crossing : float
        Distance of the cross street, meters.
    half : float
        Half its width, meters.
    """
    found = []
    for direction, z in ((1, crossing - half / 2), (-1, crossing + half / 2)):
        if generator.random() < 0.5:
            x = float(generator.uniform(-14, 14))
            yaw = direction * math.pi / 2
            found.append(_draw_vehicle(generator, x, z, _jitter(generator, yaw, 0.08)))
    return found


def place_police(generator: Generator, things: list[Vehicle | Person | Post]) -> list[Vehicle | Person | Post]:
    """Replace one to three vehicles by police vehicles; closer ones are more likely."""
    cars = [number for number, thing in enumerate(things) if isinstance(thing, Vehicle) and 6 < thing.z < 60]
    if not cars:
        things = [
            *things,
            _draw_police(generator, float(generator.uniform(-4, 4)), float(generator.uniform(9, 30)), 0.0),
        ]
        return things
    weights = np.array([1 / (8 + things[number].z) for number in cars])
    count = min(len(cars), 1 + int(generator.random() < 0.3) + int(generator.random() < 0.08))
    changed = list(things)
    for number in generator.choice(cars, count, replace=False, p=weights / weights.sum()):
        before = things[int(number)]
        if isinstance(before, Vehicle):
            # Some are stopped at an angle, as at an incident.
            angle = float(generator.uniform(-0.7, 0.7)) if generator.random() < 0.15 else 0.0
            changed[int(number)] = _draw_police(generator, before.x, before.z, before.yaw + angle)
    return changed

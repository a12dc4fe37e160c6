"""A scene drawn at random: a street of New York as a car's camera sees it, by day, at dusk and at night."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from patrolscope.pipeline.simulation.scenes import solids
from patrolscope.pipeline.simulation.scenes.scene import (
    OFFICER,
    VEHICLE,
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

Generator = np.random.Generator

WIDTH, HEIGHT = 640, 360  # pixels

_LANE_M, _PARKING_M = 3.3, 2.3
_TIMES = {"day": 0.62, "dusk": 0.16, "night": 0.22}
_PLAIN = (  # colors of cars, by how many there are
    *((28, 28, 30), (28, 28, 30), (60, 62, 66), (60, 62, 66), (120, 122, 126), (176, 178, 180), (176, 178, 180)),
    *((226, 226, 224), (226, 226, 224), (226, 226, 224), (120, 24, 28), (28, 46, 96), (40, 84, 150), (52, 74, 60)),
    (150, 128, 96),
)
_WHITE = ((236, 238, 240), (228, 230, 234), (242, 242, 240))
_POLICE_BLUE = ((18, 44, 140), (24, 60, 160), (40, 84, 178), (14, 34, 104))
_YELLOW = ((246, 190, 20), (240, 178, 12), (250, 200, 40))
_WALLS = (
    *((150, 84, 66), (128, 70, 58), (168, 104, 82), (176, 156, 130), (196, 184, 162), (140, 136, 130)),
    *((112, 108, 106), (206, 200, 190), (98, 66, 56)),
)
_SHOPS = ((150, 30, 34), (24, 80, 60), (28, 60, 120), (210, 160, 40), (60, 60, 64), (200, 200, 196))
_CLOTHES = (
    *((30, 32, 40), (56, 60, 72), (96, 40, 44), (44, 70, 110), (150, 146, 140), (200, 190, 176), (70, 90, 70)),
    *((26, 34, 62), (180, 96, 50)),
)
_SKINS = ((236, 196, 164), (208, 160, 122), (160, 112, 80), (108, 74, 54))
_FIXED: Mapping[str, Color] = {
    "tire": (22, 22, 24),
    "rim": (140, 142, 146),
    "trim": (34, 35, 38),
    "glass": (44, 52, 60),
    "windscreen": (64, 76, 86),
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


def compose(generator: Generator, *, police: bool | None = None) -> Scene:
    """A scene; what is in it follows from the generator alone.

    Parameters
    ----------
    police : whether there is a police vehicle, which can still be hidden; None: by chance, in a half of all scenes
    """
    light = _light(generator)
    lanes = int(generator.integers(1, 3))  # on each side of the middle
    one_way = generator.random() < 0.45
    half_road = lanes * _LANE_M + _PARKING_M
    lane_middles = [(-half_road + _PARKING_M) + _LANE_M * (lane + 0.5) for lane in range(2 * lanes)]
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
    street = _street(generator, half_road, _lines(half_road, lanes), crossing)
    things: list[Vehicle | Person | Post] = []
    things += _traffic(generator, lane_middles, own, lanes, one_way=one_way)
    things += _parked(generator, street, one_way=one_way)
    if crossing is not None:
        things += _across(generator, crossing, street.crossing_half)
    things += _people(generator, street)
    things += _posts(generator, street)
    police = bool(generator.random() < 0.5) if police is None else police
    if police:
        things = _with_police(generator, things)
    return Scene(light, camera, street, tuple(things))


def _pick(generator: Generator, choices: Sequence[Color]) -> Color:
    return choices[int(generator.integers(len(choices)))]


def _near(generator: Generator, color: Color, spread: float = 8) -> Color:
    return tuple(int(one) for one in np.clip(np.array(color) + generator.normal(0, spread), 5, 250))  # type: ignore[return-value]


def _light(generator: Generator) -> Light:
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
    first = -half_road + _PARKING_M
    return [first + _LANE_M * lane for lane in range(1, 2 * lanes)]


def _street(generator: Generator, half_road: float, lanes: list[float], crossing: float | None) -> Street:
    pavement = float(generator.uniform(2.5, 4.5))
    half_crossing = float(generator.uniform(4.5, 7.5))
    houses: list[House] = []
    for side in (-1, 1):
        z = float(generator.uniform(-14, 0))
        # Now and then a park, or a yard, instead of houses.
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
                houses.append(_house(generator, side * (half_road + pavement), z, z + length))
            z += max(length, 1.0)
    dark = float(generator.uniform(72, 112))
    asphalt = (int(dark), int(dark), int(dark + 4))
    light = float(generator.uniform(140, 178))
    return Street(
        half_road,
        pavement,
        tuple(lanes),
        crossing,
        half_crossing,
        asphalt,
        (int(light), int(light - 3), int(light - 10)),
        tuple(houses),
        _pick(generator, _PLAIN) if generator.random() < 0.35 else None,
    )


def _house(generator: Generator, x: float, near: float, far: float) -> House:
    storeys = int(generator.integers(2, 8))
    return House(
        x,
        near,
        far,
        storeys * float(generator.uniform(3.1, 3.7)),
        storeys,
        max(2, int((far - near) / generator.uniform(2.8, 4.2))),
        _near(generator, _pick(generator, _WALLS)),
        _near(generator, (70, 80, 92), 14),
        _near(generator, _pick(generator, _SHOPS)) if generator.random() < 0.5 else None,
        int(generator.integers(0, 2**60)) & int(generator.integers(0, 2**60)),
    )


# Vehicles.


def _colors(**own: Color) -> dict[str, Color]:
    return {**_FIXED, **own}


def _ordinary(generator: Generator, x: float, z: float, yaw: float) -> Vehicle:
    """A vehicle of no police; many look a little like one."""
    chance = generator.random()
    body = str(generator.choice(solids.BODIES, p=[0.42, 0.2, 0.38]))
    paint = _near(generator, _pick(generator, _PLAIN), 5)
    flashing = 0
    if chance < 0.56:
        livery = "livery" if generator.random() < 0.1 else "plain"
        model = solids.car(body, livery)
        colors = _colors(body=paint, stripe=_pick(generator, _SHOPS))
    elif chance < 0.72:
        model = solids.car(str(generator.choice(["sedan", "suv"])), "taxi")
        colors = _colors(body=_pick(generator, _YELLOW))
    elif chance < 0.78:
        model = solids.car("suv" if generator.random() < 0.5 else "sedan", "plain")
        colors = _colors(body=_pick(generator, _WHITE))
    elif chance < 0.87:
        firm = generator.random() < 0.6
        model = solids.van("firm" if firm else "plain")
        stripe = _pick(generator, (*_SHOPS, _POLICE_BLUE[1]))
        colors = _colors(body=_pick(generator, (*_WHITE, (60, 62, 66), (96, 66, 40))), stripe=stripe)
    elif chance < 0.91:
        model = solids.van("ambulance")
        flashing = int(generator.random() < 0.4)
        colors = _colors(body=_pick(generator, _WHITE), stripe=_pick(generator, ((210, 70, 30), (190, 30, 36))))
    elif chance < 0.95:
        model = solids.bus()
        colors = _colors(
            body=_pick(generator, ((214, 220, 226), (34, 72, 150), (230, 230, 228))),
            stripe=_pick(generator, ((26, 70, 160), (250, 200, 40))),
        )
    elif chance < 0.99:
        model = solids.truck()
        colors = _colors(
            body=_pick(generator, (*_WHITE, (196, 180, 60), (140, 44, 40))), stripe=_pick(generator, _SHOPS)
        )
    else:
        model = solids.car("suv", "tow")
        flashing = 1
        colors = _colors(body=paint)
    return Vehicle(model, x, z, yaw, colors, None, flashing)


def _police(generator: Generator, x: float, z: float, yaw: float) -> Vehicle:
    livery = "police" if generator.random() < 0.75 else "police-old"
    body = str(generator.choice(["sedan", "suv"], p=[0.45, 0.55]))
    flashing = int(generator.integers(1, 3)) if generator.random() < 0.45 else 0
    colors = _colors(body=_pick(generator, _WHITE), stripe=_pick(generator, _POLICE_BLUE))
    return Vehicle(solids.car(body, livery), x, z, yaw, colors, VEHICLE, flashing)


def _jitter(generator: Generator, yaw: float, spread: float = 0.03) -> float:
    return yaw + float(generator.normal(0, spread))


def _traffic(generator: Generator, middles: list[float], own: int, lanes: int, *, one_way: bool) -> list[Vehicle]:
    found = []
    busy = generator.uniform(0.2, 0.85)
    for lane, x in enumerate(middles):
        away = one_way or lane >= lanes
        z = float(generator.uniform(6.5, 22)) if lane == own else float(generator.uniform(-2, 16))
        while z < 80:
            if generator.random() < busy:
                yaw = _jitter(generator, 0 if away else math.pi)
                found.append(_ordinary(generator, x + float(generator.normal(0, 0.2)), z, yaw))
                z += found[-1].model.length / 2
            z += float(generator.uniform(5, 16))
    return found


def _parked(generator: Generator, street: Street, *, one_way: bool) -> list[Vehicle]:
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
                x = side * (street.half_road - _PARKING_M / 2 + float(generator.normal(0, 0.1)))
                one = _ordinary(generator, x, z, yaw)
                if one.model.length < 7:
                    found.append(one)
            z += float(generator.uniform(5.6, 7.2))
    return found


def _across(generator: Generator, crossing: float, half: float) -> list[Vehicle]:
    """Traffic of the cross street, seen from the side."""
    found = []
    for direction, z in ((1, crossing - half / 2), (-1, crossing + half / 2)):
        if generator.random() < 0.5:
            x = float(generator.uniform(-14, 14))
            yaw = direction * math.pi / 2
            found.append(_ordinary(generator, x, z, _jitter(generator, yaw, 0.08)))
    return found


def _with_police(generator: Generator, things: list[Vehicle | Person | Post]) -> list[Vehicle | Person | Post]:
    """One or two of the vehicles become police vehicles; the nearer ones more likely."""
    cars = [number for number, one in enumerate(things) if isinstance(one, Vehicle) and 6 < one.z < 60]
    if not cars:
        things = [*things, _police(generator, float(generator.uniform(-4, 4)), float(generator.uniform(9, 30)), 0.0)]
        return things
    weights = np.array([1 / (8 + things[number].z) for number in cars])
    wanted = min(len(cars), 1 + int(generator.random() < 0.3) + int(generator.random() < 0.08))
    changed = list(things)
    for number in generator.choice(cars, wanted, replace=False, p=weights / weights.sum()):
        before = things[int(number)]
        if isinstance(before, Vehicle):
            # Stopped at an angle, as at an incident, now and then.
            angle = float(generator.uniform(-0.7, 0.7)) if generator.random() < 0.15 else 0.0
            changed[int(number)] = _police(generator, before.x, before.z, before.yaw + angle)
    return changed


# People, and what stands on the pavement.


def _people(generator: Generator, street: Street) -> list[Person]:
    found = []
    for _ in range(int(generator.poisson(3.0))):
        if street.crossing is not None and generator.random() < 0.25:
            z = street.crossing - street.crossing_half - 2
            x = float(generator.uniform(-street.half_road, street.half_road))
        else:
            side = 1 if generator.random() < 0.5 else -1
            x = side * (street.half_road + float(generator.uniform(0.6, street.pavement)))
            z = float(generator.uniform(6, 45))
        if z > 4:
            found.append(_passer_by(generator, x, z))
    if generator.random() < 0.25:
        side = 1 if generator.random() < 0.5 else -1
        x = side * (street.half_road + float(generator.uniform(-1.2, street.pavement)))
        officers = 1 + int(generator.random() < 0.3)
        found += [_officer(generator, x + 0.8 * one, float(generator.uniform(7, 24))) for one in range(officers)]
    return found


def _passer_by(generator: Generator, x: float, z: float) -> Person:
    works = generator.random() < 0.08
    colors = {
        "legs": _pick(generator, _CLOTHES),
        "torso": (paint := _near(generator, _pick(generator, _CLOTHES))),
        "arms": paint,
        "belt": paint,
        "skin": _pick(generator, _SKINS),
        "hair": _near(generator, (50, 40, 34), 20),
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
        cap=bool(works),
        vest=bool(works),
    )


def _officer(generator: Generator, x: float, z: float) -> Person:
    navy = _near(generator, (24, 30, 58), 5)
    colors = {
        "legs": (18, 22, 40),
        "torso": navy,
        "arms": navy,
        "belt": (8, 8, 10),
        "skin": _pick(generator, _SKINS),
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


def _posts(generator: Generator, street: Street) -> list[Post]:
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

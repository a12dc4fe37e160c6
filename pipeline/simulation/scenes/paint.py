"""From a scene to pixels and to the boxes of what is seen of police vehicles and officers.

Painted from far to near at twice the size and averaged, so that edges are smooth. Beside the picture a mask is painted
in which every pixel has the number of the thing that it shows: from it comes how much of a thing is hidden, and where
what is left of it lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from patrolscope.pipeline.simulation.scenes.scene import Camera, Color, House, Light, Person, Post, Scene, Vehicle

Floats = npt.NDArray[np.float64]

_SMOOTH = 2  # painted at this many times the size
_NEAREST_M = 0.7  # nothing nearer is painted
LEAST_VISIBLE = 0.3  # share of a thing that must be seen for it to have a box
LEAST_PIXELS = 7  # height or width of the smallest box
_FULL = {"red lamp", "blue lamp", "white lamp", "amber"}  # shine when they flash
_LIT = {"head", "tail", "sign"}  # shine at night


@dataclass(frozen=True)
class Box:
    """What is seen of a thing, pixels."""

    kind: int
    x1: float
    y1: float
    x2: float
    y2: float
    visible: float  # share of the whole thing, of which parts may be hidden or outside
    thing: int  # position among the scene's things


def paint(scene: Scene) -> tuple[npt.NDArray[np.uint8], list[Box]]:
    """Pixels (height, width, 3) of a scene, and the boxes of what has a class and is seen enough of."""
    painter = _Painter(scene)
    painter.background()
    far_to_near = sorted(range(len(scene.things)), key=lambda number: -_distance(scene.things[number]))
    whole: dict[int, tuple[int, float]] = {}
    for number in far_to_near:
        thing = scene.things[number]
        if isinstance(thing, Vehicle):
            drawn = painter.vehicle(thing, number + 1)
        elif isinstance(thing, Person):
            drawn = painter.person(thing, number + 1)
        else:
            painter.post(thing, number + 1)
            continue
        if thing.kind is not None and drawn is not None:
            whole[number] = painter.count(number + 1), drawn
    painter.own_bonnet()
    pixels = np.asarray(painter.image.reduce(_SMOOTH))
    return pixels, painter.boxes(whole)


def _distance(thing: Vehicle | Person | Post) -> float:
    # By the nearest point: a long vehicle beside a short one is painted first only where it is behind.
    return thing.z


class _Painter:
    def __init__(self, scene: Scene) -> None:
        self.scene, self.light, self.camera = scene, scene.light, scene.camera
        self.image = _sky(scene.camera, scene.light)
        self.draw = ImageDraw.Draw(self.image, "RGBA" if scene.light.lamps else "RGB")
        self.mask = Image.new("L", (scene.camera.width, scene.camera.height))
        self.marks = ImageDraw.Draw(self.mask)
        self.focal, self.middle, self.horizon = (
            _SMOOTH * one for one in (scene.camera.focal, scene.camera.middle, scene.camera.horizon)
        )

    # From meters to pixels, and from daylight to the light there is. Written out: a scene has a thousand polygons.

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        scale = self.focal / (max(z, _NEAREST_M))
        return self.middle + scale * (x - self.camera.x), self.horizon + scale * (self.camera.y - y)

    def lit(self, color: Color, z: float, shade: float = 1.0) -> Color:
        light = self.light
        clear = math.exp(-z / light.haze_m)
        # Own headlights: what is near and ahead is seen at night, too.
        own = 0.55 * light.lamps * math.exp(-z / 22) if light.lamps else 0.0
        factor, haze = clear * shade * (light.ambient + own), 1 - clear
        (red, green, blue), (r, g, b), (far_r, far_g, far_b) = color, light.tint, light.sky[1]
        return (
            min(255, int(red * factor * r + haze * far_r)),
            min(255, int(green * factor * g + haze * far_g)),
            min(255, int(blue * factor * b + haze * far_b)),
        )

    def polygon(self, points: Sequence[tuple[float, float, float]], color: Color, shade: float = 1.0) -> None:
        z = max(sum([point[2] for point in points]) / len(points), _NEAREST_M)
        self.draw.polygon([self.at(x, y, z) for x, y, z in points], fill=self.lit(color, z, shade))

    # What does not move.

    def background(self) -> None:
        street, far = self.scene.street, 160.0
        inner, outer = street.half_road, street.half_road + street.pavement
        self.polygon([(-400, 0, far), (400, 0, far), (400, 0, 1), (-400, 0, 1)], street.concrete, 0.85)
        for house in sorted(street.houses, key=lambda house: -house.far):
            self.house(house)
        stops = [1.0, 4.0, 12.0, 40.0, far]
        for near, beyond in itertools.pairwise(stops):
            self.polygon(
                [(-outer, 0.14, near), (outer, 0.14, near), (outer, 0.14, beyond), (-outer, 0.14, beyond)],
                street.concrete,
            )
            self.polygon([(-inner, 0, near), (inner, 0, near), (inner, 0, beyond), (-inner, 0, beyond)], street.asphalt)
            for side in (-1, 1):
                self.polygon(
                    [(side * inner, y, z) for y, z in ((0, near), (0.14, near), (0.14, beyond), (0, beyond))],
                    street.concrete,
                    0.6,
                )
        if street.crossing is not None:
            self.crossing(street.crossing, street.crossing_half)
        for lane in street.lanes:
            self.line(lane)

    def line(self, x: float) -> None:
        street = self.scene.street
        yellow = abs(x) < 0.01 and len(street.lanes) > 1
        start = 1.0 + abs(7.3 * x) % 3
        while start < 90:
            crossed = street.crossing is not None and abs(start - street.crossing) < street.crossing_half + 5
            if not crossed:
                end = start + (6.0 if yellow else 3.0)
                self.polygon(
                    [(x - 0.07, 0, start), (x + 0.07, 0, start), (x + 0.07, 0, end), (x - 0.07, 0, end)],
                    (214, 172, 60) if yellow else (225, 225, 220),
                )
            start += 6.0 if yellow else 9.0

    def crossing(self, z: float, half: float) -> None:
        street = self.scene.street
        near, far = max(z - half, 1.0), z + half
        self.polygon([(-200, 0, near), (200, 0, near), (200, 0, far), (-200, 0, far)], street.asphalt)
        for edge in (z - half - 3.2, z + half + 0.6):
            if edge < 2:
                continue
            for number in range(int(2 * street.half_road / 1.2)):
                x = -street.half_road + 0.35 + 1.2 * number
                self.polygon(
                    [(x, 0, edge), (x + 0.55, 0, edge), (x + 0.55, 0, edge + 2.6), (x, 0, edge + 2.6)], (222, 222, 216)
                )

    def house(self, house: House) -> None:
        near, far = max(house.near, 1.2), house.far
        if far <= near:
            return
        x, top = house.x, house.height
        wall = [(x, 0, near), (x, 0, far), (x, top, far), (x, top, near)]
        self.polygon(wall, house.color, 0.8 if x > 0 else 0.92)
        # The end that looks at the camera.
        out = x + math.copysign(15, x)
        self.polygon([(x, 0, near), (out, 0, near), (out, top, near), (x, top, near)], house.color, 0.7)
        self.polygon([(x, top, near), (x, top, far), (x, top - 0.5, far), (x, top - 0.5, near)], house.color, 0.6)
        storey = top / house.storeys
        self.windows(house, near, storey)
        if house.shop is not None:
            for low, high, color in ((0.4, 0.7 * storey, house.glass), (0.75 * storey, storey, house.shop)):
                quad = [(x, low, near), (x, low, far), (x, high, far), (x, high, near)]
                if self.light.lamps > 0.5 and house.lit & 1:
                    self.glow(quad, (240, 214, 160) if color is house.glass else color, 0.75)
                else:
                    self.polygon(quad, color)

    def windows(self, house: House, near: float, storey: float) -> None:
        step = (house.far - house.near) / house.windows
        first = 0 if house.shop is None else 1
        for column in range(house.windows):
            start = house.near + (column + 0.25) * step
            end = start + 0.5 * step
            if start < near or abs(self.focal / start - self.focal / end) * abs(house.x - self.camera.x) < 1:
                continue  # behind the camera, or narrower than half a pixel
            dark, shining = (
                self.lit(house.glass, start),
                self.shining((236, 200, 130), start, 0.45 + 0.4 * self.light.lamps),
            )
            (left, _), (right, _) = self.at(house.x, 0, start), self.at(house.x, 0, end)
            near_scale, far_scale = self.focal / start, self.focal / end
            for row in range(first, house.storeys):
                low, high = self.camera.y - (row + 0.3) * storey, self.camera.y - (row + 0.75) * storey
                is_lit = self.light.lamps and house.lit >> (row * house.windows + column) % 60 & 1
                self.draw.polygon(
                    [
                        *((left, self.horizon + near_scale * low), (right, self.horizon + far_scale * low)),
                        *((right, self.horizon + far_scale * high), (left, self.horizon + near_scale * high)),
                    ],
                    fill=shining if is_lit else dark,
                )

    def shining(self, color: Color, z: float, strength: float) -> Color:
        """A color that is lit by itself."""
        clear = math.exp(-z / self.light.haze_m / 1.5)
        red, green, blue = (
            int(one * strength * clear + far * (1 - clear)) for one, far in zip(color, self.light.sky[1], strict=True)
        )
        return red, green, blue

    def glow(self, points: Sequence[tuple[float, float, float]], color: Color, strength: float) -> None:
        shown = self.shining(color, sum([point[2] for point in points]) / len(points), strength)
        self.draw.polygon([self.at(*point) for point in points], fill=shown)

    # What stands and moves.

    def vehicle(self, vehicle: Vehicle, number: int) -> float | None:
        """Paint a vehicle; its area on an endless canvas, in pixels of the mask, None where it is too near."""
        model, camera = vehicle.model, self.camera
        turn = np.array([[math.cos(vehicle.yaw), 0, math.sin(vehicle.yaw)], [0, 1, 0]])
        turn = np.vstack([turn, [-math.sin(vehicle.yaw), 0, math.cos(vehicle.yaw)]])
        place = np.array([vehicle.x - camera.x, 0.0, vehicle.z])
        corners = model.corners @ turn.T + place
        if corners[:, 2].min() < _NEAREST_M:
            return None
        eye = np.array([0.0, camera.y, 0.0])
        toward = eye - (model.middles @ turn.T + place)
        seen = np.einsum("fk,fk->f", model.normals @ turn.T, toward) > 0
        flat = np.column_stack(
            [
                camera.middle + camera.focal * corners[:, 0] / corners[:, 2],
                camera.horizon + camera.focal * (camera.y - corners[:, 1]) / corners[:, 2],
            ]
        )
        self._shadow(vehicle)
        small = np.ptp(flat[:, 0]) < 10
        # Lists: a slice of an array for each of a thousand faces takes longer than painting it.
        starts, outline, shades = model.starts.tolist(), model.outline.tolist(), model.shades.tolist()
        fills: dict[tuple[str, float], Color] = {}
        marked, painted = flat.ravel().tolist(), (flat * _SMOOTH).ravel().tolist()
        for face in np.flatnonzero(seen).tolist():
            if small and not outline[face]:
                continue
            corner = slice(2 * starts[face], 2 * starts[face + 1])
            look = model.materials[face], shades[face]
            fill = fills[look] = fills.get(look) or self._paint_of(vehicle, *look)
            self.draw.polygon(painted[corner], fill=fill)
            if outline[face]:
                self.marks.polygon(marked[corner], fill=number)
        self._lamps(vehicle, flat, seen)
        whole = np.ptp(flat[:, 0]) * np.ptp(flat[:, 1])
        inside = max(0.0, min(flat[:, 0].max(), camera.width) - max(flat[:, 0].min(), 0))
        inside *= max(0.0, min(flat[:, 1].max(), camera.height) - max(flat[:, 1].min(), 0))
        return float(inside / whole)

    def _shadow(self, vehicle: Vehicle) -> None:
        if not self.light.shadow:
            return
        half, end = vehicle.model.width / 2 + 0.06, vehicle.model.length / 2
        cos, sin = math.cos(vehicle.yaw), math.sin(vehicle.yaw)
        ground = [
            (vehicle.x + cos * a + sin * b, 0.0, vehicle.z - sin * a + cos * b)
            for a, b in ((-half, -end), (half, -end), (half, end), (-half, end))
        ]
        dark = 1 - 0.75 * self.light.shadow
        self.polygon(ground, self.scene.street.asphalt, dark)

    def _paint_of(self, vehicle: Vehicle, material: str, shade: float) -> Color:
        color = vehicle.colors[material]
        lamp = {"red lamp": 1, "blue lamp": 2}.get(material)
        if material in _FULL and vehicle.flashing and lamp in (None, vehicle.flashing):
            return color
        if material in _LIT and self.light.lamps:
            strength = self.light.lamps
            day = self.lit(color, vehicle.z, shade)
            return tuple(int((1 - strength) * a + strength * b) for a, b in zip(day, color, strict=True))  # type: ignore[return-value]
        if material in ("glass", "windscreen"):
            # Windows show the sky.
            sky = self.light.sky[1]
            color = tuple(int(0.75 * a + 0.25 * b) for a, b in zip(color, sky, strict=True))  # type: ignore[assignment]
        return self.lit(color, vehicle.z, shade)

    def _lamps(self, vehicle: Vehicle, flat: Floats, seen: npt.NDArray[np.bool_]) -> None:
        """Haloes round lamps that shine."""
        model = vehicle.model
        for face in np.flatnonzero(seen):
            material = model.materials[face]
            head = material == "head" and self.light.lamps > 0.3
            flash = vehicle.flashing and material == {1: "red lamp", 2: "blue lamp"}[vehicle.flashing]
            if not head and not (flash and self.light.lamps):
                continue
            points = flat[model.starts[face] : model.starts[face + 1]] * _SMOOTH
            middle = points.mean(0)
            size = max(np.ptp(points, axis=0).max(), 2.0)
            color = (255, 250, 225) if head else vehicle.colors[material]
            for radius, alpha in ((1.6, 40), (1.0, 90)) if head else ((2.4, 30), (1.3, 70)):
                r = radius * size
                box = [middle[0] - r, middle[1] - r, middle[0] + r, middle[1] + r]
                self.draw.ellipse(box, fill=(*color, int(alpha * self.light.lamps)))

    def person(self, person: Person, number: int) -> float | None:
        """Paint a person; the share of it inside the picture."""
        if person.z < 2:
            return None
        camera = self.camera
        unit = person.height
        parts: list[tuple[str, list[tuple[float, float]]]] = []
        step = 0.1 * person.stride
        wide = 0.1 if person.turned else 0.14
        for side in (-1, 1):
            foot = side * step + side * 0.04
            parts.append(
                ("legs", [(side * 0.02 - 0.05, 0.48), (side * 0.02 + 0.05, 0.48), (foot + 0.035, 0), (foot - 0.035, 0)])
            )
        for side in (-1, 1):
            hand = side * (wide + 0.03) - side * step * 0.6
            parts.append(
                (
                    "arms",
                    [(side * wide - 0.03, 0.8), (side * wide + 0.03, 0.8), (hand + 0.025, 0.45), (hand - 0.025, 0.45)],
                )
            )
        parts.append(("torso", [(-wide, 0.82), (wide, 0.82), (wide - 0.02, 0.45), (-wide + 0.02, 0.45)]))
        if person.vest:
            parts.append(("vest", [(-wide, 0.81), (wide, 0.81), (wide - 0.02, 0.52), (-wide + 0.02, 0.52)]))
            parts.append(("band", [(-wide, 0.64), (wide, 0.64), (wide, 0.6), (-wide, 0.6)]))
        parts.append(("belt", [(-wide + 0.02, 0.49), (wide - 0.02, 0.49), (wide - 0.02, 0.46), (-wide + 0.02, 0.46)]))
        angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
        parts.append(("skin", [(0.05 * math.cos(a), 0.91 + 0.075 * math.sin(a)) for a in angles]))
        if person.cap:
            parts.append(("cap", [(-0.065, 0.94), (0.065, 0.94), (0.055, 1.0), (-0.055, 1.0)]))
            parts.append(("trim", [(-0.07, 0.945), (0.07, 0.945), (0.07, 0.93), (-0.07, 0.93)]))
            parts.append(("badge", [(0.03, 0.75), (0.06, 0.75), (0.06, 0.71), (0.03, 0.71)]))
        else:
            parts.append(("hair", [(-0.055, 0.92), (0.055, 0.92), (0.05, 0.985), (-0.05, 0.985)]))
        xs, ys = [], []
        for material, outline in parts:
            points = [self.at(person.x + unit * x, unit * y + 0.05, person.z) for x, y in outline]
            shade = {"arms": 0.85, "legs": 0.9}.get(material, 1.0)
            bright = material in ("band", "vest") and self.light.lamps > 0.5
            fill = self.lit(person.colors[material], person.z * (0.5 if bright else 1), shade)
            self.draw.polygon(points, fill=fill)
            self.marks.polygon([(a / _SMOOTH, b / _SMOOTH) for a, b in points], fill=number)
            xs += [a / _SMOOTH for a, _ in points]
            ys += [b / _SMOOTH for _, b in points]
        inside = max(0.0, min(max(xs), camera.width) - max(min(xs), 0.0))
        inside *= max(0.0, min(max(ys), camera.height) - max(min(ys), 0.0))
        return inside / ((max(xs) - min(xs)) * (max(ys) - min(ys)))

    def post(self, post: Post, number: int) -> None:
        if post.z < 2:
            return
        thick = {"tree": 0.16, "lamp": 0.08, "light": 0.09, "sign": 0.035}[post.sort]
        self._strip(post.x, thick, 0, post.height, post.z, post.color, number)
        toward = -math.copysign(1, post.x)
        if post.sort == "tree":
            self._crown(post, number)
        elif post.sort == "lamp":
            self._strip(post.x + toward * 0.9, 0.9, post.height - 0.1, post.height, post.z, post.color, number)
            lamp = [(post.x + toward * a, post.height - 0.12, post.z) for a in (1.4, 1.9)]
            quad = [*lamp, *((x, y - 0.12, z) for x, y, z in reversed(lamp))]
            if self.light.lamps > 0.3:
                self.glow(quad, (255, 226, 160), 1.0)
                a, b = self.at(post.x + toward * 1.65, post.height - 0.2, post.z)
                r = 30 * self.camera.focal / 520 * 12 / post.z + 3
                for share, alpha in ((1.0, 26), (0.5, 50)):
                    self.draw.ellipse(
                        [a - share * r, b - share * r, a + share * r, b + share * r],
                        fill=(255, 214, 140, int(alpha * self.light.lamps)),
                    )
            else:
                self.polygon(quad, (200, 200, 195))
        elif post.sort == "light":
            self._strip(post.x + toward * 0.25, 0.16, post.height - 1.0, post.height, post.z, (70, 66, 30), number)
            shown = post.seed % 3
            for row, color in enumerate(((235, 50, 40), (240, 190, 50), (60, 220, 110))):
                a, b = self.at(post.x + toward * 0.25, post.height - 0.2 - 0.3 * row, post.z)
                r = 0.11 * self.camera.focal / post.z * _SMOOTH
                fill = color if row == shown else tuple(one // 5 for one in color)
                self.draw.ellipse([a - r, b - r, a + r, b + r], fill=fill)
        else:
            self._strip(post.x, 0.25, post.height - 0.7, post.height, post.z, (190, 45, 40), number)
            self._strip(post.x, 0.2, post.height - 0.45, post.height - 0.25, post.z, (235, 235, 230), number)

    def _strip(self, x: float, half: float, low: float, high: float, z: float, color: Color, number: int) -> None:
        points = [(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)]
        self.polygon(points, color, 0.9)
        self.marks.polygon([tuple(one / _SMOOTH for one in self.at(*point)) for point in points], fill=number)

    def _crown(self, post: Post, number: int) -> None:
        places = np.random.default_rng(post.seed).uniform(-1, 1, (9, 2))
        green = (58 + post.seed % 40, 92 + post.seed % 35, 46)
        for turn, (a, b) in enumerate(places):
            x, y = post.x + 1.3 * a, post.height + 0.9 * b
            (left, top), (right, low) = self.at(x - 0.9, y + 0.8, post.z), self.at(x + 0.9, y - 0.8, post.z)
            self.draw.ellipse([left, top, right, low], fill=self.lit(green, post.z, 0.7 + 0.05 * turn))
            self.marks.ellipse([left / _SMOOTH, top / _SMOOTH, right / _SMOOTH, low / _SMOOTH], fill=number)

    def own_bonnet(self) -> None:
        color = self.scene.street.bonnet
        if color is None:
            return
        wide, high = self.camera.width, self.camera.height
        outline = [(0.0, 1.0), (0.0, 0.97), (0.2, 0.925), (0.5, 0.91), (0.8, 0.925), (1.0, 0.97), (1.0, 1.0)]
        points = [(x * wide, y * high) for x, y in outline]
        self.draw.polygon([(x * _SMOOTH, y * _SMOOTH) for x, y in points], fill=self.lit(color, 1, 0.7))
        self.marks.polygon(points, fill=0)

    # What is seen.

    def count(self, number: int) -> int:
        """Pixels of the mask that have a number."""
        return self.mask.histogram()[number]

    def boxes(self, whole: dict[int, tuple[int, float]]) -> list[Box]:
        if not whole:
            return []
        return list(self._boxes(whole, np.asarray(self.mask)))

    def _boxes(self, whole: dict[int, tuple[int, float]], mask: npt.NDArray[np.uint8]) -> Iterator[Box]:
        for number, (pixels, inside) in sorted(whole.items()):
            rows, columns = np.nonzero(mask == number + 1)
            if not pixels or not len(rows):
                continue
            visible = inside * len(rows) / pixels
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            if visible >= LEAST_VISIBLE and max(x2 - x1, y2 - y1) >= LEAST_PIXELS and min(x2 - x1, y2 - y1) >= 3:
                thing = self.scene.things[number]
                kind = None if isinstance(thing, Post) else thing.kind
                if kind is not None:
                    yield Box(kind, float(x1), float(y1), float(x2), float(y2), float(visible), number)


def _sky(camera: Camera, light: Light) -> Image.Image:
    """From the color at the top to that of the horizon."""
    top, horizon = (np.array(color, dtype=np.float64) for color in light.sky)
    rows = np.linspace(0, 1.3, camera.height * _SMOOTH).clip(0, 1)[:, None]
    column = (top + (horizon - top) * rows).astype(np.uint8)
    return Image.fromarray(column[:, None]).resize(
        (camera.width * _SMOOTH, camera.height * _SMOOTH), Image.Resampling.NEAREST
    )

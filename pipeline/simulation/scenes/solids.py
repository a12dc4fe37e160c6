"""Models of vehicles: solids with flat faces, in meters.

A model lists its faces in painting order: tires, body, cabin, roof. Windows, stripes, and lamps on a face follow it and
are visible with it. In the coordinates of the vehicle, x points right, y up, and z forward; the origin is on the ground
below the center.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Profile = Sequence[tuple[float, float, float]]  # closed polygon of z, y, and half the width there

_LIFT_M = 0.004  # height of paint above its face
# Brightness of a face by axis of its normal: brightest from above, darker from the sides, darkest from below.
_SHADES = ((1, 1.0), (0, 0.82), (2, 0.92))
_UNDERSIDE = 0.45


@dataclass(frozen=True)
class Model:
    """Faces of a vehicle, as arrays over all corners."""

    corners: Floats  # (v, 3)
    starts: npt.NDArray[np.int64]  # (f + 1,) first corner of each face
    normals: Floats  # (f, 3) outward
    middles: Floats  # (f, 3)
    materials: tuple[str, ...]  # (f,)
    shades: Floats  # (f,)
    outline: npt.NDArray[np.bool_]  # (f,) part of the silhouette, unlike paint
    length: float
    width: float
    height: float


@dataclass
class _Builder:
    faces: list[tuple[Floats, Floats, str, bool]] = field(default_factory=list)

    def face(
        self, points: Sequence[Sequence[float]] | Floats, normal: Floats, material: str, *, outline: bool = False
    ) -> None:
        corners = np.array(points, dtype=np.float64)
        self.faces.append((corners if outline else corners + _LIFT_M * normal, normal, material, outline))

    def solid(self, profile: Profile, material: str) -> list[tuple[Floats, Floats]]:
        """Add a symmetric solid; return its faces across the vehicle with their normals, one per profile edge."""
        points = np.array([(z, y) for z, y, _ in profile])
        half = np.array([width for _, _, width in profile])
        center = np.array([0.0, points[:, 1].mean(), points[:, 0].mean()])
        for side in (-1, 1):
            corners = np.column_stack([side * half, points[:, 1], points[:, 0]])
            self.face(corners, np.array([side, 0.0, 0.0]), material, outline=True)
        across = []
        for (z1, y1, w1), (z2, y2, w2) in zip(profile, [*profile[1:], profile[0]], strict=True):
            corners = np.array([(-w1, y1, z1), (w1, y1, z1), (w2, y2, z2), (-w2, y2, z2)])
            normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
            normal /= np.linalg.norm(normal)
            normal *= np.sign(normal @ (corners.mean(0) - center))
            self.face(corners, normal, material, outline=True)
            across.append((corners, normal))
        return across

    def on(self, face: tuple[Floats, Floats], area: tuple[float, float, float, float], material: str) -> None:
        """Add paint on a face across; `area` is left, right, first, and second edge as shares of the face."""
        corners, normal = face
        left, right, low, high = area
        shares = [(left, low), (right, low), (right, high), (left, high)]
        points = [
            (1 - v) * ((1 - u) * corners[0] + u * corners[1]) + v * ((1 - u) * corners[3] + u * corners[2])
            for u, v in shares
        ]
        self.face(np.array(points), normal, material)

    def sides(
        self,
        points: Sequence[tuple[float, float]],
        half: float | Sequence[float],
        material: str,
        *,
        outline: bool = False,
    ) -> None:
        """Add the same polygon (z, y) on both sides."""
        widths = half if isinstance(half, Sequence) else [half] * len(points)
        for side in (-1, 1):
            corners = [(side * width, y, z) for (z, y), width in zip(points, widths, strict=True)]
            self.face(corners, np.array([side, 0.0, 0.0]), material, outline=outline)

    def band(
        self, z: tuple[float, float], y: tuple[float, float], half: float, material: str, slant: float = 0
    ) -> None:
        """Add a stripe along both sides."""
        self.sides([(z[0], y[0]), (z[1], y[0]), (z[1] + slant, y[1]), (z[0] + slant, y[1])], half, material)

    def letters(
        self, z: tuple[float, float], y: tuple[float, float], half: float, material: str, count: int = 6
    ) -> None:
        """Add a word on both sides, with one block per letter."""
        step = (z[1] - z[0]) / count
        for letter in range(count):
            start = z[0] + letter * step
            self.band((start, start + 0.7 * step), y, half, material)

    def word(self, face: tuple[Floats, Floats], area: tuple[float, float, float, float], material: str) -> None:
        left, right, low, high = area
        step = (right - left) / 6
        for letter in range(6):
            self.on(face, (left + letter * step, left + (letter + 0.7) * step, low, high), material)

    def wheels(self, places: Sequence[float], radius: float, half: float) -> None:
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        for place in places:
            for size, material in ((radius, "tire"), (0.55 * radius, "rim")):
                points = [(place + size * np.cos(a), radius + size * np.sin(a)) for a in angles]
                self.sides(points, half, material, outline=material == "tire")

    def box(
        self, z: tuple[float, float], y: tuple[float, float], half: float, material: str
    ) -> list[tuple[Floats, Floats]]:
        return self.solid([(z[0], y[0], half), (z[0], y[1], half), (z[1], y[1], half), (z[1], y[0], half)], material)

    def model(self, length: float, width: float, height: float) -> Model:
        corners = [corners for corners, *_ in self.faces]
        normals = np.array([normal for _, normal, *_ in self.faces])
        shades = sum(np.abs(normals[:, axis]) ** 2 * shade for axis, shade in _SHADES)
        return Model(
            np.concatenate(corners),
            np.cumsum([0, *map(len, corners)]),
            normals,
            np.array([face.mean(0) for face in corners]),
            tuple(material for *_, material, _ in self.faces),
            np.where(normals[:, 1] < -0.5, _UNDERSIDE, shades),
            np.array([outline for *_, outline in self.faces]),
            length,
            width,
            height,
        )


@dataclass(frozen=True)
class _Car:
    """Dimensions of a car, meters."""

    length: float
    half: float
    belt: float  # lower edge of the windows
    roof: float
    hood: float  # height of the front of the hood
    rear: tuple[float, float]  # z of the bottom and top of the rear window
    front: tuple[float, float]  # z of the top and bottom of the windshield
    trunk: float  # height of the rear end


_CARS = {
    "sedan": _Car(4.85, 0.92, 0.98, 1.46, 0.74, (-1.75, -1.05), (0.3, 1.15), 1.0),
    "hatch": _Car(4.1, 0.88, 0.98, 1.52, 0.78, (-1.95, -1.5), (0.3, 1.1), 0.96),
    "suv": _Car(4.95, 0.99, 1.12, 1.78, 0.95, (-2.35, -2.1), (0.35, 1.15), 1.1),
}
BODIES = tuple(_CARS)


@cache
def car(body: str, livery: str) -> Model:
    """Return a car of a body in `BODIES` with a livery: plain, livery, taxi, police, police-old, or tow."""
    size, build = _CARS[body], _Builder()
    half, end = size.half, size.length / 2
    build.wheels((-0.31 * size.length, 0.31 * size.length), 0.34, half)
    build.sides([(-end + 0.2, 0.2), (end - 0.2, 0.2), (end - 0.2, 0.45), (-end + 0.2, 0.45)], half - 0.1, "trim")
    across = build.solid(
        [
            *((-end, 0.3, half - 0.06), (-end, size.trunk - 0.12, half - 0.06), (size.rear[0] - 0.3, size.trunk, half)),
            *((size.front[1], size.belt, half), (end - 0.12, size.hood, half - 0.08)),
            *((end, size.hood - 0.12, half - 0.1), (end, 0.3, half - 0.08)),
        ],
        "body",
    )
    back, front = across[0], across[5]
    build.wheels((-0.31 * size.length, 0.31 * size.length), 0.34, half + 0.005)
    build.band((-end + 0.3, end - 0.3), (0.3, 0.38), half, "trim")
    build.on(back, (0.0, 1.0, 0.0, 0.22), "trim")
    build.on(back, (0.03, 0.2, 0.55, 0.85), "tail")
    build.on(back, (0.8, 0.97, 0.55, 0.85), "tail")
    build.on(back, (0.38, 0.62, 0.35, 0.55), "plate")
    build.on(front, (0.2, 0.8, 0.25, 0.75), "grille")
    build.on(front, (0.02, 0.18, 0.05, 0.45), "head")
    build.on(front, (0.82, 0.98, 0.05, 0.45), "head")
    build.on(front, (0.38, 0.62, 0.75, 0.95), "plate")
    _livery(build, livery, size, back, across[3])
    _cabin(build, size)
    top = size.roof
    if livery == "taxi":
        build.box((-0.15, 0.1), (top, top + 0.16), 0.3, "sign")
    if livery.startswith("police"):
        _light_bar(build, (-0.45, -0.15), top, half - 0.3)
    if livery == "tow":
        ends = build.box((-0.45, -0.2), (top, top + 0.12), half - 0.4, "amber")
        build.on(ends[0], (0.4, 0.6, 0, 1), "trim")
    return build.model(size.length, 2 * half, size.roof)


def _cabin(build: _Builder, size: _Car) -> None:
    narrow, wide = size.half - 0.25, size.half - 0.06
    (back_foot, back_top), (front_top, front_foot) = size.rear, size.front
    across = build.solid(
        [
            *((back_foot, size.belt, wide), (back_top, size.roof, narrow)),
            *((front_top, size.roof, narrow), (front_foot, size.belt, wide)),
        ],
        "body",
    )
    build.on(across[0], (0.08, 0.92, 0.1, 0.88), "glass")
    build.on(across[2], (0.06, 0.94, 0.08, 0.92), "windshield")
    low, high = size.belt + 0.04, size.roof - 0.07
    widths = [wide, wide, narrow + 0.03, narrow + 0.03]
    middle = (back_foot + front_foot) / 2 - 0.1
    build.sides(
        [(back_foot + 0.25, low), (middle - 0.06, low), (middle - 0.06, high), (back_top + 0.1, high)], widths, "glass"
    )
    build.sides(
        [(middle + 0.06, low), (front_foot - 0.2, low), (front_top - 0.02, high), (middle + 0.06, high)],
        widths,
        "glass",
    )


def _light_bar(build: _Builder, z: tuple[float, float], top: float, half: float) -> None:
    ends = build.box(z, (top + 0.02, top + 0.17), half, "bar")
    for face in (ends[0], ends[2]):
        build.on(face, (0.0, 0.36, 0.1, 0.9), "red lamp")
        build.on(face, (0.42, 0.58, 0.2, 0.8), "white lamp")
        build.on(face, (0.64, 1.0, 0.1, 0.9), "blue lamp")
    build.band((z[0], z[1]), (top + 0.04, top + 0.15), half, "blue lamp")


def _livery(build: _Builder, livery: str, size: _Car, back: tuple[Floats, Floats], hood: tuple[Floats, Floats]) -> None:
    half, end = size.half, size.length / 2
    belt = size.belt
    if livery == "taxi":
        build.letters((-0.3, 0.7), (0.62, 0.78), half, "trim", 4)
    elif livery == "police":
        # Two blue stripes that ascend to the front with the word between them, and the word on trunk and hood.
        build.band((-end + 0.1, end - 0.3), (0.42, 0.52), half, "stripe", 0.1)
        build.band((-end + 0.1, end - 0.9), (belt - 0.16, belt - 0.06), half, "stripe", 0.1)
        build.letters((-0.95, 0.95), (0.57, belt - 0.2), half, "stripe")
        build.on(back, (0.0, 1.0, 0.22, 0.32), "stripe")
        build.word(back, (0.24, 0.76, 0.62, 0.86), "stripe")
        build.word(hood, (0.25, 0.75, 0.3, 0.55), "stripe")
    elif livery == "police-old":
        # Blue lower half, as on older cars.
        build.band((-end + 0.15, end - 0.25), (0.4, 0.68), half, "stripe", 0.05)
        build.letters((-0.8, 0.8), (0.71, belt - 0.05), half, "stripe")
        build.on(back, (0.0, 1.0, 0.22, 0.5), "stripe")
        build.word(back, (0.24, 0.76, 0.62, 0.86), "stripe")
    elif livery == "livery":
        # Name of a company.
        build.letters((-0.6, 0.6), (0.55, 0.72), half, "stripe", 5)


@cache
def van(livery: str) -> Model:
    """Return a delivery van (`plain`, `firm`) or an ambulance."""
    build, half, end, top = _Builder(), 1.0, 2.85, 2.45
    build.wheels((-1.75, 1.8), 0.36, half)
    across = build.solid(
        [
            *((-end, 0.35, half), (-end, top - 0.05, half - 0.04), (-end + 0.1, top, half - 0.05)),
            *((1.2, top, half - 0.05), (2.05, 1.25, half), (end - 0.1, 1.05, half - 0.03)),
            *((end, 0.9, half - 0.05), (end, 0.35, half - 0.05)),
        ],
        "body",
    )
    back, screen, front = across[0], across[3], across[6]
    build.wheels((-1.75, 1.8), 0.36, half + 0.005)
    build.band((-end + 0.1, end - 0.2), (0.35, 0.45), half, "trim")
    build.on(back, (0.495, 0.505, 0.05, 0.95), "trim")
    build.on(back, (0.1, 0.45, 0.55, 0.85), "glass")
    build.on(back, (0.55, 0.9, 0.55, 0.85), "glass")
    build.on(back, (0.01, 0.08, 0.2, 0.45), "tail")
    build.on(back, (0.92, 0.99, 0.2, 0.45), "tail")
    build.on(back, (0.4, 0.6, 0.1, 0.18), "plate")
    build.on(back, (0.0, 1.0, 0.0, 0.07), "trim")
    build.on(screen, (0.06, 0.94, 0.1, 0.92), "windshield")
    build.on(front, (0.2, 0.8, 0.3, 0.85), "grille")
    build.on(front, (0.02, 0.18, 0.05, 0.4), "head")
    build.on(front, (0.82, 0.98, 0.05, 0.4), "head")
    build.sides([(0.5, 1.35), (1.75, 1.35), (1.2, 2.1), (0.5, 2.1)], half, "glass")
    if livery == "firm":
        build.letters((-2.3, 0.1), (1.35, 1.75), half, "stripe", 7)
        build.band((-end + 0.2, 2.0), (0.95, 1.15), half, "stripe")
        build.word(back, (0.2, 0.8, 0.35, 0.45), "stripe")
    if livery == "ambulance":
        build.band((-end + 0.1, 2.6), (0.9, 1.1), half, "stripe")
        build.letters((-2.2, 0.2), (1.45, 1.8), half, "stripe", 9)
        build.on(back, (0.0, 1.0, 0.3, 0.42), "stripe")
        bar = build.box((0.7, 1.0), (top, top + 0.18), half - 0.15, "bar")
        for face in (bar[0], bar[2]):
            build.on(face, (0.0, 0.4, 0.1, 0.9), "red lamp")
            build.on(face, (0.6, 1.0, 0.1, 0.9), "red lamp")
    return build.model(2 * end, 2 * half, top)


@cache
def bus() -> Model:
    """Return a city bus."""
    build, half, end, top = _Builder(), 1.27, 5.8, 3.05
    build.wheels((-3.2, 3.3), 0.48, half)
    across = build.solid([(-end, 0.35, half), (-end, top, half), (end, top, half), (end, 0.35, half)], "body")
    build.wheels((-3.2, 3.3), 0.48, half + 0.005)
    for window in range(8):
        start = -end + 0.5 + window * 1.3
        build.band((start, start + 1.15), (1.45, 2.45), half, "glass")
    build.band((-end, end), (0.85, 1.05), half, "stripe")
    build.on(across[0], (0.15, 0.85, 0.5, 0.8), "glass")
    build.on(across[0], (0.0, 1.0, 0.2, 0.27), "stripe")
    build.on(across[0], (0.02, 0.1, 0.3, 0.45), "tail")
    build.on(across[0], (0.9, 0.98, 0.3, 0.45), "tail")
    build.on(across[2], (0.05, 0.95, 0.18, 0.62), "windshield")
    build.on(across[2], (0.2, 0.8, 0.05, 0.14), "sign")
    build.on(across[2], (0.04, 0.16, 0.78, 0.88), "head")
    build.on(across[2], (0.84, 0.96, 0.78, 0.88), "head")
    return build.model(2 * end, 2 * half, top)


@cache
def truck() -> Model:
    """Return a box truck."""
    build, half, end, top = _Builder(), 1.2, 3.9, 3.3
    build.wheels((-2.4, 2.7), 0.48, half)
    outline = [(-end, 0.7), (-end, top), (1.8, top), (1.9, 2.5), (3.1, 2.5), (end, 1.5), (end, 0.5)]
    across = build.solid([(z, y, half) for z, y in outline], "body")
    build.wheels((-2.4, 2.7), 0.48, half + 0.005)
    build.sides([(1.9, 0.6), (end, 0.6), (end, 1.5), (3.1, 2.5), (1.9, 2.5)], half, "cab")
    build.on(across[0], (0.02, 0.98, 0.03, 0.06), "trim")
    build.on(across[0], (0.03, 0.1, 0.0, 0.05), "tail")
    build.on(across[0], (0.9, 0.97, 0.0, 0.05), "tail")
    for rib in range(6):
        build.on(across[0], (0.02, 0.98, 0.12 + 0.14 * rib, 0.13 + 0.14 * rib), "rib")
    build.letters((-2.9, 0.8), (1.7, 2.4), half, "stripe", 6)
    build.on(across[4], (0.0, 1.0, 0.0, 1.0), "cab")
    build.on(across[4], (0.06, 0.94, 0.06, 0.94), "windshield")
    build.sides([(2.4, 1.5), (3.4, 1.5), (3.0, 2.3), (2.4, 2.3)], half + 0.005, "glass")
    build.on(across[5], (0.0, 1.0, 0.0, 1.0), "cab")
    build.on(across[5], (0.2, 0.8, 0.3, 0.8), "grille")
    build.on(across[5], (0.03, 0.16, 0.35, 0.6), "head")
    build.on(across[5], (0.84, 0.97, 0.35, 0.6), "head")
    return build.model(2 * end, 2 * half, top)

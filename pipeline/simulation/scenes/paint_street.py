"""Painting of the street: road, sidewalks, houses, and the hood of the camera car."""

from __future__ import annotations

import itertools
import math

from patrolscope.pipeline.simulation.scenes.canvas import SMOOTH, Canvas
from patrolscope.pipeline.simulation.scenes.scene import House


def paint_street(canvas: Canvas) -> None:
    """Paint road, sidewalks, houses, and crossing."""
    street, far = canvas.scene.street, 160.0
    inner, outer = street.half_road, street.half_road + street.sidewalk
    canvas.polygon([(-400, 0, far), (400, 0, far), (400, 0, 1), (-400, 0, 1)], street.concrete, 0.85)
    for house in sorted(street.houses, key=lambda house: -house.far):
        _paint_house(canvas, house)
    stops = [1.0, 4.0, 12.0, 40.0, far]
    for near, beyond in itertools.pairwise(stops):
        canvas.polygon(
            [(-outer, 0.14, near), (outer, 0.14, near), (outer, 0.14, beyond), (-outer, 0.14, beyond)],
            street.concrete,
        )
        canvas.polygon([(-inner, 0, near), (inner, 0, near), (inner, 0, beyond), (-inner, 0, beyond)], street.asphalt)
        for side in (-1, 1):
            canvas.polygon(
                [(side * inner, y, z) for y, z in ((0, near), (0.14, near), (0.14, beyond), (0, beyond))],
                street.concrete,
                0.6,
            )
    if street.crossing is not None:
        _paint_crossing(canvas, street.crossing, street.crossing_half)
    for lane in street.lanes:
        _paint_lane_line(canvas, lane)


def _paint_lane_line(canvas: Canvas, x: float) -> None:
    street = canvas.scene.street
    yellow = abs(x) < 0.01 and len(street.lanes) > 1
    start = 1.0 + abs(7.3 * x) % 3
    while start < 90:
        crossed = street.crossing is not None and abs(start - street.crossing) < street.crossing_half + 5
        if not crossed:
            end = start + (6.0 if yellow else 3.0)
            canvas.polygon(
                [(x - 0.07, 0, start), (x + 0.07, 0, start), (x + 0.07, 0, end), (x - 0.07, 0, end)],
                (214, 172, 60) if yellow else (225, 225, 220),
            )
        start += 6.0 if yellow else 9.0


def _paint_crossing(canvas: Canvas, z: float, half: float) -> None:
    street = canvas.scene.street
    near, far = max(z - half, 1.0), z + half
    canvas.polygon([(-200, 0, near), (200, 0, near), (200, 0, far), (-200, 0, far)], street.asphalt)
    for edge in (z - half - 3.2, z + half + 0.6):
        if edge < 2:
            continue
        for number in range(int(2 * street.half_road / 1.2)):
            x = -street.half_road + 0.35 + 1.2 * number
            canvas.polygon(
                [(x, 0, edge), (x + 0.55, 0, edge), (x + 0.55, 0, edge + 2.6), (x, 0, edge + 2.6)], (222, 222, 216)
            )


def _paint_house(canvas: Canvas, house: House) -> None:
    near, far = max(house.near, 1.2), house.far
    if far <= near:
        return
    x, top = house.x, house.height
    wall = [(x, 0, near), (x, 0, far), (x, top, far), (x, top, near)]
    canvas.polygon(wall, house.color, 0.8 if x > 0 else 0.92)
    # End that faces the camera.
    out = x + math.copysign(15, x)
    canvas.polygon([(x, 0, near), (out, 0, near), (out, top, near), (x, top, near)], house.color, 0.7)
    canvas.polygon([(x, top, near), (x, top, far), (x, top - 0.5, far), (x, top - 0.5, near)], house.color, 0.6)
    floor_height = top / house.floors
    _paint_windows(canvas, house, near, floor_height)
    if house.shop is not None:
        for low, high, color in (
            (0.4, 0.7 * floor_height, house.glass),
            (0.75 * floor_height, floor_height, house.shop),
        ):
            quad = [(x, low, near), (x, low, far), (x, high, far), (x, high, near)]
            if canvas.light.lamps > 0.5 and house.lit & 1:
                canvas.glow(quad, (240, 214, 160) if color is house.glass else color, 0.75)
            else:
                canvas.polygon(quad, color)


def _paint_windows(canvas: Canvas, house: House, near: float, floor_height: float) -> None:
    step = (house.far - house.near) / house.windows
    first = 0 if house.shop is None else 1
    for column in range(house.windows):
        start = house.near + (column + 0.25) * step
        end = start + 0.5 * step
        if start < near or abs(canvas.focal / start - canvas.focal / end) * abs(house.x - canvas.camera.x) < 1:
            continue  # behind the camera, or narrower than half a pixel
        dark, shining = (
            canvas.lit(house.glass, start),
            canvas.shining((236, 200, 130), start, 0.45 + 0.4 * canvas.light.lamps),
        )
        (left, _), (right, _) = canvas.at(house.x, 0, start), canvas.at(house.x, 0, end)
        near_scale, far_scale = canvas.focal / start, canvas.focal / end
        for row in range(first, house.floors):
            low, high = canvas.camera.y - (row + 0.3) * floor_height, canvas.camera.y - (row + 0.75) * floor_height
            is_lit = canvas.light.lamps and house.lit >> (row * house.windows + column) % 60 & 1
            canvas.draw.polygon(
                [
                    *((left, canvas.horizon + near_scale * low), (right, canvas.horizon + far_scale * low)),
                    *((right, canvas.horizon + far_scale * high), (left, canvas.horizon + near_scale * high)),
                ],
                fill=shining if is_lit else dark,
            )


def paint_own_hood(canvas: Canvas) -> None:
    """Paint the hood of the camera car, if it is visible."""
    color = canvas.scene.street.own_hood
    if color is None:
        return
    wide, high = canvas.camera.width, canvas.camera.height
    outline = [(0.0, 1.0), (0.0, 0.97), (0.2, 0.925), (0.5, 0.91), (0.8, 0.925), (1.0, 0.97), (1.0, 1.0)]
    points = [(x * wide, y * high) for x, y in outline]
    canvas.draw.polygon([(x * SMOOTH, y * SMOOTH) for x, y in points], fill=canvas.lit(color, 1, 0.7))
    canvas.marks.polygon(points, fill=0)

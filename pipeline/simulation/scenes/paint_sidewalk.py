"""Painting of people, trees, lamps, signs, and traffic lights."""

from __future__ import annotations

import math

import numpy as np

from patrolscope.pipeline.simulation.scenes.canvas import SMOOTH, Canvas
from patrolscope.pipeline.simulation.scenes.scene import Color, Person, Post


def paint_person(canvas: Canvas, person: Person, number: int) -> float | None:
    """Paint a person; return the share of the bounding box inside the image, or None if it is too close.

    Parameters
    ----------
    canvas : Canvas
        Canvas of the scene.
    person : Person
        Person to paint.
    number : int
        Value of its pixels in the mask.
    """
    if person.z < 2:
        return None
    camera = canvas.camera
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
        points = [canvas.at(person.x + unit * x, unit * y + 0.05, person.z) for x, y in outline]
        shade = {"arms": 0.85, "legs": 0.9}.get(material, 1.0)
        bright = material in ("band", "vest") and canvas.light.lamps > 0.5
        fill = canvas.lit(person.colors[material], person.z * (0.5 if bright else 1), shade)
        canvas.draw.polygon(points, fill=fill)
        canvas.marks.polygon([(a / SMOOTH, b / SMOOTH) for a, b in points], fill=number)
        xs += [a / SMOOTH for a, _ in points]
        ys += [b / SMOOTH for _, b in points]
    inside = max(0.0, min(max(xs), camera.width) - max(min(xs), 0.0))
    inside *= max(0.0, min(max(ys), camera.height) - max(min(ys), 0.0))
    return inside / ((max(xs) - min(xs)) * (max(ys) - min(ys)))


def paint_post(canvas: Canvas, post: Post, number: int) -> None:
    """Paint a tree, lamp, sign, or traffic light.

    Parameters
    ----------
    canvas : Canvas
        Canvas of the scene.
    post : Post
        Thing to paint.
    number : int
        Value of its pixels in the mask.
    """
    if post.z < 2:
        return
    thick = {"tree": 0.16, "lamp": 0.08, "light": 0.09, "sign": 0.035}[post.sort]
    _paint_strip(canvas, post.x, thick, 0, post.height, post.z, post.color, number)
    toward = -math.copysign(1, post.x)
    if post.sort == "tree":
        _paint_crown(canvas, post, number)
    elif post.sort == "lamp":
        _paint_strip(canvas, post.x + toward * 0.9, 0.9, post.height - 0.1, post.height, post.z, post.color, number)
        lamp = [(post.x + toward * a, post.height - 0.12, post.z) for a in (1.4, 1.9)]
        quad = [*lamp, *((x, y - 0.12, z) for x, y, z in reversed(lamp))]
        if canvas.light.lamps > 0.3:
            canvas.glow(quad, (255, 226, 160), 1.0)
            a, b = canvas.at(post.x + toward * 1.65, post.height - 0.2, post.z)
            r = 30 * canvas.camera.focal / 520 * 12 / post.z + 3
            for share, alpha in ((1.0, 26), (0.5, 50)):
                canvas.draw.ellipse(
                    [a - share * r, b - share * r, a + share * r, b + share * r],
                    fill=(255, 214, 140, int(alpha * canvas.light.lamps)),
                )
        else:
            canvas.polygon(quad, (200, 200, 195))
    elif post.sort == "light":
        _paint_strip(canvas, post.x + toward * 0.25, 0.16, post.height - 1.0, post.height, post.z, (70, 66, 30), number)
        shown = post.seed % 3
        for row, color in enumerate(((235, 50, 40), (240, 190, 50), (60, 220, 110))):
            a, b = canvas.at(post.x + toward * 0.25, post.height - 0.2 - 0.3 * row, post.z)
            r = 0.11 * canvas.camera.focal / post.z * SMOOTH
            fill = color if row == shown else tuple(value // 5 for value in color)
            canvas.draw.ellipse([a - r, b - r, a + r, b + r], fill=fill)
    else:
        _paint_strip(canvas, post.x, 0.25, post.height - 0.7, post.height, post.z, (190, 45, 40), number)
        _paint_strip(canvas, post.x, 0.2, post.height - 0.45, post.height - 0.25, post.z, (235, 235, 230), number)


def _paint_strip(
    canvas: Canvas, x: float, half: float, low: float, high: float, z: float, color: Color, number: int
) -> None:
    points = [(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)]
    canvas.polygon(points, color, 0.9)
    canvas.marks.polygon([tuple(value / SMOOTH for value in canvas.at(*point)) for point in points], fill=number)


def _paint_crown(canvas: Canvas, post: Post, number: int) -> None:
    offsets = np.random.default_rng(post.seed).uniform(-1, 1, (9, 2))
    green = (58 + post.seed % 40, 92 + post.seed % 35, 46)
    for turn, (a, b) in enumerate(offsets):
        x, y = post.x + 1.3 * a, post.height + 0.9 * b
        (left, top), (right, low) = canvas.at(x - 0.9, y + 0.8, post.z), canvas.at(x + 0.9, y - 0.8, post.z)
        canvas.draw.ellipse([left, top, right, low], fill=canvas.lit(green, post.z, 0.7 + 0.05 * turn))
        canvas.marks.ellipse([left / SMOOTH, top / SMOOTH, right / SMOOTH, low / SMOOTH], fill=number)

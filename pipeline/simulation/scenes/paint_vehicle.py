"""Painting of vehicles with shadows and lamps."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.simulation.scenes.canvas import NEAREST_M, SMOOTH, Canvas
from patrolscope.pipeline.simulation.scenes.scene import Color, Vehicle

Floats = npt.NDArray[np.float64]

_FLASHING = {"red lamp", "blue lamp", "white lamp", "amber"}
_LIT = {"head", "tail", "sign"}  # shine at night


def paint_vehicle(canvas: Canvas, vehicle: Vehicle, number: int) -> float | None:
    """Paint a vehicle; return the share of its bounding box inside the image, or None if it is too close.

    Parameters
    ----------
    canvas : Canvas
        Canvas of the scene.
    vehicle : Vehicle
        Vehicle to paint.
    number : int
        Value of its pixels in the mask.
    """
    model, camera = vehicle.model, canvas.camera
    turn = np.array([[math.cos(vehicle.yaw), 0, math.sin(vehicle.yaw)], [0, 1, 0]])
    turn = np.vstack([turn, [-math.sin(vehicle.yaw), 0, math.cos(vehicle.yaw)]])
    position = np.array([vehicle.x - camera.x, 0.0, vehicle.z])
    corners = model.corners @ turn.T + position
    if corners[:, 2].min() < NEAREST_M:
        return None
    eye = np.array([0.0, camera.y, 0.0])
    toward = eye - (model.middles @ turn.T + position)
    visible = np.einsum("fk,fk->f", model.normals @ turn.T, toward) > 0
    flat = np.column_stack(
        [
            camera.middle + camera.focal * corners[:, 0] / corners[:, 2],
            camera.horizon + camera.focal * (camera.y - corners[:, 1]) / corners[:, 2],
        ]
    )
    _paint_shadow(canvas, vehicle)
    small = np.ptp(flat[:, 0]) < 10
    # Lists, since slicing an array takes longer than painting a face.
    starts, outline, shades = model.starts.tolist(), model.outline.tolist(), model.shades.tolist()
    fills: dict[tuple[str, float], Color] = {}
    marked, painted = flat.ravel().tolist(), (flat * SMOOTH).ravel().tolist()
    for face in np.flatnonzero(visible).tolist():
        if small and not outline[face]:
            continue
        corner = slice(2 * starts[face], 2 * starts[face + 1])
        appearance = model.materials[face], shades[face]
        fill = fills[appearance] = fills.get(appearance) or _face_color(canvas, vehicle, *appearance)
        canvas.draw.polygon(painted[corner], fill=fill)
        if outline[face]:
            canvas.marks.polygon(marked[corner], fill=number)
    _paint_halos(canvas, vehicle, flat, visible)
    whole = np.ptp(flat[:, 0]) * np.ptp(flat[:, 1])
    inside = max(0.0, min(flat[:, 0].max(), camera.width) - max(flat[:, 0].min(), 0))
    inside *= max(0.0, min(flat[:, 1].max(), camera.height) - max(flat[:, 1].min(), 0))
    return float(inside / whole)


def _paint_shadow(canvas: Canvas, vehicle: Vehicle) -> None:
    if not canvas.light.shadow:
        return
    half, end = vehicle.model.width / 2 + 0.06, vehicle.model.length / 2
    cos, sin = math.cos(vehicle.yaw), math.sin(vehicle.yaw)
    ground = [
        (vehicle.x + cos * a + sin * b, 0.0, vehicle.z - sin * a + cos * b)
        for a, b in ((-half, -end), (half, -end), (half, end), (-half, end))
    ]
    dark = 1 - 0.75 * canvas.light.shadow
    canvas.polygon(ground, canvas.scene.street.asphalt, dark)


def _face_color(canvas: Canvas, vehicle: Vehicle, material: str, shade: float) -> Color:
    color = vehicle.colors[material]
    lamp = {"red lamp": 1, "blue lamp": 2}.get(material)
    if material in _FLASHING and vehicle.flashing and lamp in (None, vehicle.flashing):
        return color
    if material in _LIT and canvas.light.lamps:
        strength = canvas.light.lamps
        day = canvas.lit(color, vehicle.z, shade)
        return tuple(int((1 - strength) * a + strength * b) for a, b in zip(day, color, strict=True))  # type: ignore[return-value]
    if material in ("glass", "windshield"):
        # Reflection of the sky.
        sky = canvas.light.sky[1]
        color = tuple(int(0.75 * a + 0.25 * b) for a, b in zip(color, sky, strict=True))  # type: ignore[assignment]
    return canvas.lit(color, vehicle.z, shade)


def _paint_halos(canvas: Canvas, vehicle: Vehicle, flat: Floats, visible: npt.NDArray[np.bool_]) -> None:
    """Paint halos around lamps that shine."""
    model = vehicle.model
    for face in np.flatnonzero(visible):
        material = model.materials[face]
        head = material == "head" and canvas.light.lamps > 0.3
        flash = vehicle.flashing and material == {1: "red lamp", 2: "blue lamp"}[vehicle.flashing]
        if not head and not (flash and canvas.light.lamps):
            continue
        points = flat[model.starts[face] : model.starts[face + 1]] * SMOOTH
        middle = points.mean(0)
        size = max(np.ptp(points, axis=0).max(), 2.0)
        color = (255, 250, 225) if head else vehicle.colors[material]
        for radius, alpha in ((1.6, 40), (1.0, 90)) if head else ((2.4, 30), (1.3, 70)):
            r = radius * size
            box = [middle[0] - r, middle[1] - r, middle[0] + r, middle[1] + r]
            canvas.draw.ellipse(box, fill=(*color, int(alpha * canvas.light.lamps)))

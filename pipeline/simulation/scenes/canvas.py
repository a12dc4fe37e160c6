"""Canvas of a scene: pixels, mask of visible things, projection, and colors under the light of the scene."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from patrolscope.pipeline.simulation.scenes.scene import Camera, Color, Light, Scene

SMOOTH = 2  # supersampling factor
NEAREST_M = 0.7  # nothing closer is painted


class Canvas:
    """Supersampled image and mask of a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.light, self.camera = scene, scene.light, scene.camera
        self.image = _sky(scene.camera, scene.light)
        self.draw = ImageDraw.Draw(self.image, "RGBA" if scene.light.lamps else "RGB")
        self.mask = Image.new("L", (scene.camera.width, scene.camera.height))
        self.marks = ImageDraw.Draw(self.mask)
        self.focal, self.middle, self.horizon = (
            SMOOTH * value for value in (scene.camera.focal, scene.camera.middle, scene.camera.horizon)
        )

    # The methods below are written out without arrays, since a scene has about 1,000 polygons.

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Project a point in meters to supersampled pixels.

        Parameters
        ----------
        x, y, z : float
            Meters right of the center of the road, above the road, and ahead of the camera.
        """
        scale = self.focal / (max(z, NEAREST_M))
        return self.middle + scale * (x - self.camera.x), self.horizon + scale * (self.camera.y - y)

    def lit(self, color: Color, z: float, shade: float = 1.0) -> Color:
        """Return a color under the light of the scene at distance z, meters.

        Parameters
        ----------
        color : tuple of int
            RGB in daylight.
        z : float
            Meters ahead of the camera.
        shade : float, default 1.0
            Brightness of the surface.
        """
        light = self.light
        clear = math.exp(-z / light.haze_m)
        # Headlights of the camera car.
        own = 0.55 * light.lamps * math.exp(-z / 22) if light.lamps else 0.0
        factor, haze = clear * shade * (light.ambient + own), 1 - clear
        (red, green, blue), (r, g, b), (far_r, far_g, far_b) = color, light.tint, light.sky[1]
        return (
            min(255, int(red * factor * r + haze * far_r)),
            min(255, int(green * factor * g + haze * far_g)),
            min(255, int(blue * factor * b + haze * far_b)),
        )

    def shining(self, color: Color, z: float, strength: float) -> Color:
        """Return the color of a light source at distance z, meters.

        Parameters
        ----------
        color : tuple of int
            RGB of the light source.
        z : float
            Meters ahead of the camera.
        strength : float
            Brightness, 0 to 1.
        """
        clear = math.exp(-z / self.light.haze_m / 1.5)
        red, green, blue = (
            int(value * strength * clear + far * (1 - clear))
            for value, far in zip(color, self.light.sky[1], strict=True)
        )
        return red, green, blue

    def polygon(self, points: Sequence[tuple[float, float, float]], color: Color, shade: float = 1.0) -> None:
        """Paint a polygon with corners in meters.

        Parameters
        ----------
        points : sequence of tuple of float
            Corners x, y, z, as in `at`.
        color : tuple of int
            RGB in daylight.
        shade : float, default 1.0
            Brightness of the surface.
        """
        z = max(sum([point[2] for point in points]) / len(points), NEAREST_M)
        self.draw.polygon([self.at(x, y, z) for x, y, z in points], fill=self.lit(color, z, shade))

    def glow(self, points: Sequence[tuple[float, float, float]], color: Color, strength: float) -> None:
        """Paint a polygon that is a light source.

        Parameters
        ----------
        points : sequence of tuple of float
            Corners x, y, z, as in `at`.
        color : tuple of int
            RGB of the light source.
        strength : float
            Brightness, 0 to 1.
        """
        fill = self.shining(color, sum([point[2] for point in points]) / len(points), strength)
        self.draw.polygon([self.at(*point) for point in points], fill=fill)


def _sky(camera: Camera, light: Light) -> Image.Image:
    """Return the vertical gradient of the sky."""
    top, horizon = (np.array(color, dtype=np.float64) for color in light.sky)
    rows = np.linspace(0, 1.3, camera.height * SMOOTH).clip(0, 1)[:, None]
    column = (top + (horizon - top) * rows).astype(np.uint8)
    return Image.fromarray(column[:, None]).resize(
        (camera.width * SMOOTH, camera.height * SMOOTH), Image.Resampling.NEAREST
    )

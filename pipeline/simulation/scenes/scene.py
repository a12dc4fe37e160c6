"""A scene as a description: light, street, vehicles, people, poles. `compose` draws one, `paint` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from patrolscope.pipeline.simulation.scenes.solids import Model

Color = tuple[int, int, int]

OFFICER, VEHICLE = 0, 1  # class numbers, as in the study's class_names
CLASS_NAMES = ("police officer", "police vehicle")


@dataclass(frozen=True)
class Light:
    """Time of day and weather, as factors on the colors of daylight."""

    name: str  # day, dusk, night
    ambient: float  # of 1: what is not lit by itself
    tint: tuple[float, float, float]
    sky: tuple[Color, Color]  # at the top, at the horizon
    lamps: float  # 0..1: how bright headlights, street lamps and windows are
    shadow: float  # 0..1
    haze_m: float  # distance at which two thirds of a color are the horizon's


@dataclass(frozen=True)
class Camera:
    """A dashcam: 1.2 to 1.6 m above the road, looking ahead."""

    width: int  # pixels
    height: int
    focal: float  # pixels
    horizon: float  # pixels from the top
    middle: float  # pixels from the left: where straight ahead is
    x: float  # meters right of the road's middle
    y: float  # above the road


@dataclass(frozen=True)
class Vehicle:
    """A vehicle on the road."""

    model: Model
    x: float  # meters right of the road's middle
    z: float  # ahead of the camera, of its middle
    yaw: float  # radians; 0: drives away, pi: comes toward
    colors: Mapping[str, Color]
    kind: int | None = None  # class of its box, where it has one
    flashing: int = 0  # 0: light bar off, 1 and 2: one or the other lamp


@dataclass(frozen=True)
class Person:
    """Somebody on foot."""

    x: float
    z: float
    height: float  # meters
    colors: Mapping[str, Color]
    stride: float  # -1..1
    turned: bool
    cap: bool = False
    vest: bool = False
    kind: int | None = None


@dataclass(frozen=True)
class Post:
    """What stands on a pavement: lamp, tree, sign, traffic light."""

    sort: str
    x: float
    z: float
    height: float
    color: Color
    seed: int = 0


@dataclass(frozen=True)
class House:
    """A front along the street, from the pavement's outer edge up."""

    x: float
    near: float  # meters ahead
    far: float
    height: float
    storeys: int
    windows: int  # in a storey
    color: Color
    glass: Color
    shop: Color | None
    lit: int  # bits: which windows are lit at night


@dataclass(frozen=True)
class Street:
    """The road and what lines it; meters."""

    half_road: float
    pavement: float
    lanes: tuple[float, ...]  # where lines are painted
    crossing: float | None  # distance of a cross street
    crossing_half: float
    asphalt: Color
    concrete: Color
    houses: tuple[House, ...]
    bonnet: Color | None  # of the camera's own car, where it is seen


@dataclass(frozen=True)
class Scene:
    """All that is in a picture before the camera spoils it."""

    light: Light
    camera: Camera
    street: Street
    things: tuple[Vehicle | Person | Post, ...]

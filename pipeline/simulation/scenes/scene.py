"""Description of a scene: light, street, vehicles, people, and posts. `compose` draws it, `paint` renders it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from patrolscope.pipeline.simulation.scenes.solids import Model

Color = tuple[int, int, int]

OFFICER, VEHICLE = 0, 1  # class numbers, as in the study's class_names
CLASS_NAMES = ("police officer", "police vehicle")

PARKING_M = 2.3  # width of a parking lane


@dataclass(frozen=True)
class Light:
    """Time of day and weather, as factors of the colors in daylight."""

    name: str  # day, dusk, night
    ambient: float  # brightness of everything but light sources, 1 by day
    tint: tuple[float, float, float]
    sky: tuple[Color, Color]  # at the top, at the horizon
    lamps: float  # 0..1: brightness of headlights, street lamps, and windows
    shadow: float  # 0..1
    haze_m: float  # distance at which two thirds of a color are that of the horizon


@dataclass(frozen=True)
class Camera:
    """Dashcam, 1.2 to 1.65 m above the road, facing forward."""

    width: int  # pixels
    height: int
    focal: float  # pixels
    horizon: float  # pixels from the top
    middle: float  # pixels from the left: vanishing point
    x: float  # meters right of the center of the road
    y: float  # meters above the road


@dataclass(frozen=True)
class Vehicle:
    """Vehicle on the road."""

    model: Model
    x: float  # meters right of the center of the road
    z: float  # meters ahead of the camera, of its center
    yaw: float  # radians; 0: drives away, pi: approaches
    colors: Mapping[str, Color]
    kind: int | None = None  # class number; None: no box
    flashing: int = 0  # 0: light bar off, 1: red lamp, 2: blue lamp


@dataclass(frozen=True)
class Person:
    """Pedestrian or officer."""

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
    """Lamp, tree, sign, or traffic light on a sidewalk."""

    sort: str  # tree, lamp, sign, light
    x: float
    z: float
    height: float
    color: Color
    seed: int = 0


@dataclass(frozen=True)
class House:
    """House front along the street, at the outer edge of the sidewalk."""

    x: float
    near: float  # meters ahead
    far: float
    height: float
    floors: int
    windows: int  # per floor
    color: Color
    glass: Color
    shop: Color | None
    lit: int  # bits: windows that are lit at night


@dataclass(frozen=True)
class Street:
    """Road, sidewalks, and houses; lengths in meters."""

    half_road: float
    sidewalk: float
    lanes: tuple[float, ...]  # positions of painted lines
    crossing: float | None  # distance of a cross street
    crossing_half: float
    asphalt: Color
    concrete: Color
    houses: tuple[House, ...]
    own_hood: Color | None  # of the camera car, if visible


@dataclass(frozen=True)
class Scene:
    """Everything in an image, before the effects of the camera."""

    light: Light
    camera: Camera
    street: Street
    things: tuple[Vehicle | Person | Post, ...]

"""The city as pages show it: places at every level, their shapes, and which of them lies under a pixel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.raster import in_feet
from patrolscope.dashboards.maps.filters import LEVELS
from patrolscope.dashboards.maps.points import Box, Window, load_ground, read_levels
from patrolscope.pipeline.geography.layers import AREAS_FILE, PLACES_FILE, load_stations
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.study.store import Study

LEVEL_NAMES = {
    "area": ("area", "areas"),
    "precinct": ("precinct", "precincts"),
    "neighborhood": ("neighborhood", "neighborhoods"),
    "community_district": ("community district", "community districts"),
    "borough": ("borough", "boroughs"),
}
# Digits of the census's codes.
AREA_NAMES = {11: ("tract", "tracts"), 12: ("block group", "block groups")}
OUTSIDE = -1


@dataclass(frozen=True)
class Level:
    """Places of one level.

    Attributes
    ----------
    places : names, in the order of numbers
    of_area : (areas,) number of the place that each area belongs to, or `OUTSIDE`
    shapes : number of the place under a point, feet from the city's south-western corner
    side_ft : of a square as large as the median place
    """

    name: str
    places: tuple[str, ...]
    of_area: npt.NDArray[np.intp]
    shapes: PolygonIndex
    side_ft: float


@dataclass(frozen=True, eq=False)
class City:
    """Places of a study.

    Attributes
    ----------
    areas : one row an area, in the order of the study's own file: zone, people, place at each level
    box : west, south, east, north of all areas, feet in the study's projection
    stations_ft : (n, 2) from the south-western corner
    """

    study: Study
    areas: pd.DataFrame
    box: Box
    stations_ft: npt.NDArray[np.float64]

    @classmethod
    def load(cls, study: Study) -> City:
        """Read the layers of a study.

        Raises
        ------
        StageNotRunError : it has none yet
        """
        codes, box = load_ground(study, study.record("layers").fingerprint)
        stations = load_stations(study).places_ft - np.array(box[:2])
        return cls(study, read_levels(study, codes), box, stations)

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """Levels that the study has places of, the finest first."""
        known = set(self.study.read(PLACES_FILE)["level"])
        return tuple(level for level in LEVELS if level == "area" or level in known)

    @cached_property
    def names(self) -> dict[str, tuple[str, str]]:
        """What one place of a level is called, and many of them; an area by the length of its code."""
        digits = {len(code) if code.isdigit() else 0 for code in self.areas["area"]}
        return LEVEL_NAMES | {"area": AREA_NAMES.get(digits.pop() if len(digits) == 1 else 0, LEVEL_NAMES["area"])}

    def called(self, level: str, place: str) -> str:
        """A place for a reader: one that has a code or a number for its name is told with its level."""
        return f"{self.names[level][0].capitalize()} {place}" if level in ("area", "precinct") else place

    @property
    def size_ft(self) -> tuple[float, float]:
        """Width and height."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def level(self, name: str) -> Level:
        """Places of a level; made when first asked for."""
        return _level(self, name)

    @property
    def ground(self) -> Level:
        """The coarsest level, which says where land is: areas can reach into the water."""
        return self.level(self.levels[-1])

    def under(self, level: str, window: Window) -> npt.NDArray[np.int32]:
        """Number of the place under the center of each pixel, (rows, columns), the southernmost row first."""
        return (_kept if window.is_screen else _under)(self, level, window)

    def place_at(self, level: str, x_ft: float, y_ft: float) -> str:
        """Name of the place at a point; empty where there is none."""
        (found,) = self.level(level).shapes.locate([x_ft], [y_ft])
        return "" if found == OUTSIDE else self.level(level).places[found]

    def has(self, level: str, place: str) -> bool:
        """Whether there is such a place."""
        return level in self.levels and place in self.level(level).places

    def bounds_of(self, level: str, place: str) -> Box | None:
        """West, south, east, north of a place, feet from the south-western corner; None: there is no such place."""
        one = self.level(level)
        if place not in one.places:
            return None
        return tuple(map(float, one.shapes.shapes[one.places.index(place)].bounds))  # type: ignore[return-value]


@lru_cache(maxsize=16)
def _level(city: City, name: str) -> Level:
    if name == "area":
        shapes = in_feet(city.study.read(AREAS_FILE, geometry=True), city.study.settings.city.crs)
        shapes = shapes.rename(columns={"area": "place"})
    else:
        places = city.study.read(PLACES_FILE, geometry=True)
        shapes = in_feet(places[places["level"] == name], city.study.settings.city.crs)
    moved = gpd.GeoSeries(shapes.geometry).translate(-city.box[0], -city.box[1])
    # Projecting can let a boundary cross itself by a hair (of the embedded city's districts three do).
    faulty = ~moved.is_valid
    moved[faulty] = moved[faulty].make_valid().buffer(0)
    found = PolygonIndex.build(shapes["place"].to_numpy(dtype=str), moved.to_numpy())
    names = tuple(found.keys.tolist())
    side_ft = float(np.sqrt(moved.area.median()))
    return Level(name, names, pd.Index(names).get_indexer(city.areas[name].array), found, side_ft)


def _under(city: City, level: str, window: Window) -> npt.NDArray[np.int32]:
    shapes = city.level(level).shapes
    across, up = window.pixel_ft, (window.north_ft - window.south_ft) / window.rows
    x_ft = window.west_ft + (np.arange(window.columns) + 0.5) * across
    y_ft = window.south_ft + (np.arange(window.rows) + 0.5) * up

    def rows(some: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        x, y = np.meshgrid(x_ft, some)
        return shapes.locate(x.ravel(), y.ravel()).reshape(x.shape)

    with ThreadPoolExecutor(2) as pool:
        return np.concatenate(list(pool.map(rows, np.array_split(y_ft, 2))))


_kept = lru_cache(maxsize=24)(_under)  # some 2.5 MB each

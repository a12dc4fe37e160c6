"""City of a study: regions of every geography, their shapes, and the region under each pixel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.raster import in_feet
from patrolscope.dashboards.maps.areas import Box, load_extent, read_areas
from patrolscope.dashboards.maps.filters import GEOGRAPHIES
from patrolscope.dashboards.maps.points import Window
from patrolscope.pipeline.geography.layers import AREAS_FILE, BOUNDARIES_FILE, load_stations
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.study.store import Study

GEOGRAPHY_NAMES = {
    "area": ("area", "areas"),
    "precinct": ("precinct", "precincts"),
    "neighborhood": ("neighborhood", "neighborhoods"),
    "community_district": ("community district", "community districts"),
    "borough": ("borough", "boroughs"),
}
AREA_NAMES = {11: ("tract", "tracts"), 12: ("block group", "block groups")}  # by the length of their census codes
OUTSIDE = -1


@dataclass(frozen=True)
class Geography:
    """Division of the city into regions.

    Attributes
    ----------
    regions : tuple of str
        Names in the order of their numbers.
    of_area : ndarray of intp, shape (n_areas,)
        Number of the region of each area, or `OUTSIDE`.
    index : PolygonIndex
        Number of the region at a location, in feet from the city's southwestern corner.
    side_ft : float
        Side of a square as large as the median region.
    """

    name: str
    regions: tuple[str, ...]
    of_area: npt.NDArray[np.intp]
    index: PolygonIndex
    side_ft: float


@dataclass(frozen=True, eq=False)
class City:
    """Areas and geographies of a study.

    Attributes
    ----------
    areas : DataFrame
        One row per area, in the order of the study's file: zone, residents, and region in every geography.
    box : tuple of float
        West, south, east, north of all areas, in feet of the study's projection.
    stations_ft : ndarray of float64, shape (n_stations, 2)
        Police stations in feet from the southwestern corner.
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
        StageNotRunError
            If the study has no layers.
        """
        codes, box = load_extent(study, study.record("layers").content)
        stations = load_stations(study).places_ft - np.array(box[:2])
        return cls(study, read_areas(study, codes), box, stations)

    @cached_property
    def geographies(self) -> tuple[str, ...]:
        """Geographies of the study, the finest first."""
        known = set(self.study.read(BOUNDARIES_FILE)["geography"])
        return tuple(name for name in GEOGRAPHIES if name == "area" or name in known)

    @cached_property
    def names(self) -> dict[str, tuple[str, str]]:
        """Display name of one region of each geography, and of several; areas are named after their census codes."""
        digits = {len(code) if code.isdigit() else 0 for code in self.areas["area"]}
        area = AREA_NAMES.get(digits.pop() if len(digits) == 1 else 0, GEOGRAPHY_NAMES["area"])
        return GEOGRAPHY_NAMES | {"area": area}

    def display_name(self, geography: str, region: str) -> str:
        """Return the name of a region, with its kind where the name is only a code or a number."""
        return f"{self.names[geography][0].capitalize()} {region}" if geography in ("area", "precinct") else region

    @property
    def size_ft(self) -> tuple[float, float]:
        """Width and height."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def geography(self, name: str) -> Geography:
        """Return a geography, which is built at the first call."""
        return _geography(self, name)

    @property
    def land(self) -> Geography:
        """Coarsest geography, which delimits the land: areas can extend into the water."""
        return self.geography(self.geographies[-1])

    def region_grid(self, geography: str, window: Window) -> npt.NDArray[np.int32]:
        """Return the number of the region at the center of each pixel, southernmost row first."""
        return (_cached_region_grid if window.is_screen else _region_grid)(self, geography, window)

    def region_at(self, geography: str, x_ft: float, y_ft: float) -> str:
        """Return the name of the region at a location, or an empty string outside all regions.

        Parameters
        ----------
        geography : str
            Geography of the region.
        x_ft, y_ft : float
            Location in the city's projected system, feet.
        """
        (number,) = self.geography(geography).index.locate([x_ft], [y_ft])
        return "" if number == OUTSIDE else self.geography(geography).regions[number]

    def has(self, geography: str, region: str) -> bool:
        """Return whether the region exists."""
        return geography in self.geographies and region in self.geography(geography).regions

    def bounds_of(self, geography: str, region: str) -> Box | None:
        """Return west, south, east, north of a region in feet from the southwestern corner; None if unknown."""
        regions, index = self.geography(geography).regions, self.geography(geography).index
        if region not in regions:
            return None
        return tuple(map(float, index.shapes[regions.index(region)].bounds))  # type: ignore[return-value]


@lru_cache(maxsize=16)
def _geography(city: City, name: str) -> Geography:
    if name == "area":
        shapes = in_feet(city.study.read(AREAS_FILE, geometry=True), city.study.settings.city.crs)
        shapes = shapes.rename(columns={"area": "region"})
    else:
        boundaries = city.study.read(BOUNDARIES_FILE, geometry=True)
        shapes = in_feet(boundaries[boundaries["geography"] == name], city.study.settings.city.crs)
    moved = gpd.GeoSeries(shapes.geometry).translate(-city.box[0], -city.box[1])
    # Rounding in the projection can make a boundary cross itself (three of the embedded city's community districts).
    invalid = ~moved.is_valid
    moved[invalid] = moved[invalid].make_valid().buffer(0)
    index = PolygonIndex.build(shapes["region"].to_numpy(dtype=str), moved.to_numpy())
    regions = tuple(index.keys.tolist())
    side_ft = float(np.sqrt(moved.area.median()))
    return Geography(name, regions, pd.Index(regions).get_indexer(city.areas[name].array), index, side_ft)


def _region_grid(city: City, geography: str, window: Window) -> npt.NDArray[np.int32]:
    index = city.geography(geography).index
    across, up = window.pixel_ft, (window.north_ft - window.south_ft) / window.rows
    x_ft = window.west_ft + (np.arange(window.columns) + 0.5) * across
    y_ft = window.south_ft + (np.arange(window.rows) + 0.5) * up

    def locate(rows_ft: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        x, y = np.meshgrid(x_ft, rows_ft)
        return index.locate(x.ravel(), y.ravel()).reshape(x.shape)

    with ThreadPoolExecutor(2) as pool:
        return np.concatenate(list(pool.map(locate, np.array_split(y_ft, 2))))


_cached_region_grid = lru_cache(maxsize=24)(_region_grid)  # about 2.5 MB each

"""Check of reference layers against the city's box, so that the layer of another city is refused."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.crs import WGS84
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Box

Floats = npt.NDArray[np.float64]


def count_outside(layer: pd.DataFrame, bounds: Box) -> int:
    """Count the features of a layer outside a box, without points that have no location."""
    west, south, east, north = _extents(layer)
    return int((~np.isnan(west) & ~_touches(bounds, west, south, east, north)).sum())


def check_extent(layer: pd.DataFrame, entry: str, bounds: Box) -> None:
    """Check that a layer has a feature in the city's box.

    Parameters
    ----------
    layer : DataFrame or GeoDataFrame
        Boundaries with a CRS, or points in columns lat and lng (EPSG:4326). Other tables, and tables without any
        location, pass.
    entry : str
        Entry of the data catalog that describes the layer.
    bounds : Box
        Box of the city.

    Raises
    ------
    SourceError
        If no feature touches the box.
    """
    if not isinstance(layer, gpd.GeoDataFrame) and not {"lng", "lat"} <= set(layer):
        return
    west, south, east, north = _extents(layer)
    known = ~np.isnan(west)
    if not known.any() or _touches(bounds, west, south, east, north).any():
        return
    if _touches(bounds, south, west, north, east).any():
        fix = "latitude and longitude are swapped: correct the columns, the file, or its crs in the data catalog"
    else:
        fix = (
            "under layers of study.yaml, name the file of this city, or null if it has none; or correct city.bounds, "
            "or the crs of the file in the data catalog"
        )
    raise SourceError(
        f"{entry}: none of its {int(known.sum()):,} features is in city.bounds (longitude {bounds.west} to "
        f"{bounds.east}, latitude {bounds.south} to {bounds.north}); the first is at longitude {west[known][0]:.4f}, "
        f"latitude {south[known][0]:.4f}; {fix}"
    )


def _extents(layer: pd.DataFrame) -> tuple[Floats, Floats, Floats, Floats]:
    """Return west, south, east, and north of each feature; missing for a point without a location."""
    if isinstance(layer, gpd.GeoDataFrame):
        # A feature that cannot be converted to degrees is outside.
        west, south, east, north = layer.geometry.to_crs(WGS84).bounds.fillna(np.inf).to_numpy(dtype=np.float64).T
        return west, south, east, north
    lng, lat = layer["lng"].to_numpy(dtype=np.float64), layer["lat"].to_numpy(dtype=np.float64)
    return lng, lat, lng, lat


def _touches(bounds: Box, west: Floats, south: Floats, east: Floats, north: Floats) -> npt.NDArray[np.bool_]:
    return (west <= bounds.east) & (east >= bounds.west) & (south <= bounds.north) & (north >= bounds.south)

"""Check of reference layers against the city's box, so that another city's layer is not used without a word."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.crs import WGS84
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Box
from patrolscope.pipeline.study.ledger import Ledger


def check_extent(layer: pd.DataFrame, name: str, bounds: Box, ledger: Ledger) -> None:
    """Refuse a layer without a feature in the box, and note how many features are outside.

    Parameters
    ----------
    layer : DataFrame or GeoDataFrame
        Boundaries with a CRS, or points in columns lat and lng (EPSG:4326). Points without a location are not counted.
    name : str
        Name of the layer under `layers` of study.yaml.
    bounds : Box
        Box of the city.
    ledger : Ledger
        Ledger for the note.

    Raises
    ------
    SourceError
        If no feature touches the box.
    """
    west, south, east, north = _extents(layer)
    known = np.isfinite(west)
    inside = _touches(bounds, west, south, east, north)
    if inside.any() or not known.any():
        if outside := int((known & ~inside).sum()):
            ledger.note(f"features of layers.{name} outside city.bounds", outside)
        return
    if _touches(bounds, south, west, north, east).any():
        fix = "its coordinates are swapped: x is longitude and y is latitude; correct the file or its crs"
    else:
        fix = f"set layers.{name} to the file of this city (null if it has none), or correct city.bounds or the file's crs"
    raise SourceError(
        f"layers.{name}: none of {int(known.sum()):,} features is in city.bounds, which span longitude {bounds.west} to "
        f"{bounds.east}, latitude {bounds.south} to {bounds.north}; the first is at longitude {west[known][0]:.4f}, "
        f"latitude {south[known][0]:.4f}; {fix}"
    )


Floats = npt.NDArray[np.float64]


def _extents(layer: pd.DataFrame) -> tuple[Floats, Floats, Floats, Floats]:
    if isinstance(layer, gpd.GeoDataFrame):
        west, south, east, north = layer.geometry.to_crs(WGS84).bounds.to_numpy(dtype=np.float64).T
        return west, south, east, north
    lng, lat = layer["lng"].to_numpy(dtype=np.float64), layer["lat"].to_numpy(dtype=np.float64)
    return lng, lat, lng, lat


def _touches(bounds: Box, west: Floats, south: Floats, east: Floats, north: Floats) -> npt.NDArray[np.bool_]:
    return (west <= bounds.east) & (east >= bounds.west) & (south <= bounds.north) & (north >= bounds.south)

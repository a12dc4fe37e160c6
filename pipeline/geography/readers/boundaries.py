"""Readers of polygons: areas, tracts, regions, and zoning districts, in the coordinate system of the file."""

from __future__ import annotations

import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.catalog import CatalogEntry
from patrolscope.pipeline.geography.readers.columns import (
    as_numbers,
    as_text,
    check_unique,
    decode,
    find_column,
    optional_columns,
    require_column,
    select_rows,
    text_table,
)

# Optional columns of tracts: measures are numbers, the others text.
_MEASURES = ("shape_length_ft", "shape_area_sqft")
TRACT_DETAILS = (
    "label",
    "tract_in_borough",
    "borough_tract",
    "borough_code",
    "neighborhood_code",
    "community_district_code",
    "community_district",
    "cdbg_eligibility",
    *_MEASURES,
)


def read_areas(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Read areas, or tracts as areas: area (code), geometry. Areas that are all water are included."""
    own = "area" if "area" in entry.columns else "tract"
    return _read_polygons(path, entry, {"area": own}, key="area")


def read_tracts(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Read tracts: tract (code), neighborhood, borough, the available columns of `TRACT_DETAILS`, geometry."""
    names = {name: name for name in ("tract", "neighborhood", "borough")}
    return _read_polygons(path, entry, names, key="tract", optional=TRACT_DETAILS)


def read_tract_places(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read the table that assigns tracts to regions: tract (code), and the available columns of `TRACT_DETAILS`."""
    table = text_table(path, {"tract": entry.columns["tract"]}, optional_columns(entry, TRACT_DETAILS))
    check_unique(table["tract"], path)
    for name in table.columns.intersection([*_MEASURES]):
        table[name] = as_numbers(table[name], path, name, optional=True)
    return table.mask(table == "").reset_index(drop=True)


def read_regions(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Read neighborhoods, boroughs, or precincts: region (name or number), geometry."""
    return _read_polygons(path, entry, {"region": "region"}, key="region")


def read_districts(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Read zoning districts: district (such as R6B, on many rows), geometry."""
    return _read_polygons(path, entry, {"district": "district"}, key=None)


def _read_polygons(
    path: Path, entry: CatalogEntry, names: dict[str, str], *, key: str | None, optional: tuple[str, ...] = ()
) -> gpd.GeoDataFrame:
    """Read a boundary file.

    Parameters
    ----------
    path : Path
        Boundary file in any format that `_read_file` supports.
    entry : CatalogEntry
        Entry of the data set.
    names : dict of str to str
        Required columns: our name, and the entry's name for it.
    key : str, optional
        Column whose values must be unique.
    optional : tuple of str
        Columns that are included if the file has them. Empty cells are missing.

    Returns
    -------
    GeoDataFrame
        `attrs["repaired"]` counts the polygons that were invalid.
    """
    raw = _read_file(path, entry)
    if not isinstance(raw, gpd.GeoDataFrame):
        raise SourceError(f"{path} holds a table without polygons; expected {entry.format}")
    columns = {}
    for ours, role in names.items():
        values = as_text(raw[require_column(path, entry.columns[role], raw.columns)], path)
        columns[ours] = decode(values, entry.codes.get(role, {}), path)
    for ours, accepted in optional_columns(entry, optional).items():
        if (name := find_column(accepted, raw.columns)) is not None:
            columns[ours] = _optional_values(raw[name], path, numeric=ours in _MEASURES)
    shapes, repaired = _repair(raw.geometry)
    frame = gpd.GeoDataFrame(columns, geometry=shapes, crs=_crs(raw, path, entry))
    frame = select_rows(frame, entry, names)
    if key is not None:
        check_unique(frame[key], path)
    bad = ~frame.geom_type.isin(["Polygon", "MultiPolygon"]) | frame.geometry.is_empty
    if bad.any():
        raise SourceError(f"{path}: {int(bad.sum())} rows without a polygon, first {frame[bad].iloc[0, 0]!r}")
    frame = frame.reset_index(drop=True)
    frame.attrs["repaired"] = repaired
    return frame


def _optional_values(values: pd.Series[Any], path: Path, *, numeric: bool) -> pd.Series[Any]:
    present = values.notna() & (values.astype("str").str.strip() != "")
    if not present.any():
        return pd.Series(np.nan, index=values.index, dtype="float64" if numeric else "str")
    if not numeric:
        return as_text(values[present], path).reindex(values.index)
    numbers = pd.to_numeric(values.where(present), errors="coerce").astype("float64")
    bad = present & ~numbers.between(0, np.inf, inclusive="left")
    if bad.any():
        raise SourceError(f"{path}: {values.name} is {values[bad].iloc[0]!r}; expected a number, at least 0")
    return numbers


def _read_file(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    try:
        if path.suffix == ".parquet":
            return gpd.read_parquet(path)
        if path.suffix == ".zip":
            return gpd.read_file(f"/vsizip/{path}/{archive_member(path, entry.member)}")
        if path.suffix == ".gz":
            return gpd.read_file(f"/vsigzip/{path}")
        return gpd.read_file(path)
    except (DataSourceError, DataLayerError, zipfile.BadZipFile, pa.ArrowException, ValueError) as error:
        raise SourceError(f"{path} is not a boundary file ({error}); expected {entry.format}") from error


def archive_member(path: Path, pattern: str) -> str:
    """Return the name of the only file in a zip archive that matches a pattern.

    The official archives keep the shapefile in a folder, where GDAL does not find it by itself.

    Raises
    ------
    SourceError
        If no file matches, or several do.
    """
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if fnmatchcase(name, pattern) and not name.startswith("__MACOSX")]
    if len(found) != 1:
        raise SourceError(f"{path} holds {', '.join(found) or 'no file'} of the form {pattern}; expected exactly one")
    return found[0]


def _crs(raw: gpd.GeoDataFrame, path: Path, entry: CatalogEntry) -> CRS:
    """Return the CRS of a file, or that of its entry if the file has none, or degrees without a code.

    The city portal exports borough boundaries in degrees of "WGS84(DD)", which is not registered.
    """
    if raw.crs is None or (raw.crs.to_epsg() is None and raw.crs.is_geographic):
        if entry.crs is None:
            raise SourceError(f"{path} has no coordinate system; set crs of its entry in data_catalog.yaml")
        crs = CRS.from_user_input(entry.crs)
        if crs.is_geographic and not _are_degrees(raw.total_bounds):
            raise SourceError(f"{path} has no coordinate system, and {entry.crs} does not fit its coordinates")
        return crs
    return raw.crs


def _are_degrees(bounds: np.ndarray) -> bool:
    west, south, east, north = bounds
    return bool(west >= -180 and south >= -90 and east <= 180 and north <= 90)


def _repair(shapes: gpd.GeoSeries) -> tuple[np.ndarray, int]:
    """Repair invalid polygons, and count them."""
    values = shapes.to_numpy().copy()
    broken = ~shapely.is_valid(values) & ~shapely.is_missing(values)
    values[broken] = shapely.make_valid(values[broken], method="structure", keep_collapsed=False)
    return values, int(broken.sum())

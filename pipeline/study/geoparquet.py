"""Conversion of frames to Arrow tables and back; tables with a geometry are GeoParquet 1.1 on disk.

Boundaries are written as WKB. The location of an image is a native point, a pair of numbers: Parquet then keeps
statistics of easting and northing for every row group, and frames have two plain columns instead of geometry objects.
"""

from __future__ import annotations

import json
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from patrolscope.pipeline.contract.columns import POINT_COLUMN, Table
from patrolscope.pipeline.crs import city_crs, feet_per_unit
from patrolscope.pipeline.errors import SourceError

_POINT_NOTE = b"point"  # schema metadata: columns of a frame behind the point, x then y


def to_arrow(table: Table, frame: pd.DataFrame, crs: str) -> pa.Table:
    """Convert a frame to an Arrow table in the schema on disk.

    Parameters
    ----------
    table : Table
        Declaration that the frame conforms to.
    frame : DataFrame
        Rows; coordinates of points in feet.
    crs : str
        Projected coordinate system of the city, in whose units points are stored.

    Raises
    ------
    SourceError
        If boundaries have no coordinate system.
    """
    schema = table.arrow_schema()
    if table.point is not None:
        return _with_point(table.point, frame, crs, schema)
    if table.geometry is None:
        return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
        raise SourceError(f"{table.name}: boundaries have no coordinate system; expected one in their file")
    shapes = frame.geometry.to_numpy()
    plain = pd.DataFrame(frame).assign(**{table.geometry: shapely.to_wkb(shapes)})
    arrow = pa.Table.from_pandas(plain, schema=schema, preserve_index=False)
    geo = _geo(table.geometry, "WKB", frame.crs, sorted(set(frame.geom_type)), frame.total_bounds.tolist())
    return arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"geo": geo})


def _with_point(point: tuple[str, str], frame: pd.DataFrame, crs: str, schema: pa.Schema) -> pa.Table:
    # In the units of the system; the divisor is exactly 1 if they are feet.
    axes = [frame[name].to_numpy() / feet_per_unit(crs) for name in point]
    others = pa.schema([field for field in schema if field.name != POINT_COLUMN])
    arrow = pa.Table.from_pandas(frame[others.names], schema=others, preserve_index=False)
    field = schema.field(POINT_COLUMN)
    points = pa.StructArray.from_arrays([pa.array(axis) for axis in axes], fields=list(field.type))
    arrow = arrow.add_column(schema.get_field_index(POINT_COLUMN), field, points)
    bounds = [float(reduce(axis)) for reduce in (np.min, np.max) for axis in axes] if len(frame) else []
    geo = _geo(POINT_COLUMN, "point", city_crs(crs), ["Point"], bounds)
    # Without pandas metadata, which would describe columns that do not exist.
    return arrow.replace_schema_metadata(
        {**(schema.metadata or {}), b"geo": geo, _POINT_NOTE: ",".join(point).encode()}
    )


def _geo(column: str, encoding: str, crs: Any, kinds: list[str], bounds: list[float]) -> bytes:
    """Return GeoParquet metadata of a table with one geometry column."""
    about = {"encoding": encoding, "crs": crs.to_json_dict(), "geometry_types": kinds}
    if bounds:
        about["bbox"] = bounds
    return json.dumps({"version": "1.1.0", "primary_column": column, "columns": {column: about}}).encode()


def point_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of a frame that a file stores as a point; empty without a point."""
    note = (schema.metadata or {}).get(_POINT_NOTE, b"")
    return tuple(note.decode().split(",")) if note else ()


def columns_on_disk(schema: pa.Schema, columns: list[str] | None) -> list[str] | None:
    """Return the columns of a file that hold the named columns of a frame."""
    standing_for = point_columns(schema)
    if columns is None or not standing_for:
        return columns
    return list(dict.fromkeys(POINT_COLUMN if name in standing_for else name for name in columns))


def to_frame(arrow: pa.Table, columns: list[str] | None) -> pd.DataFrame:
    """Convert an Arrow table to a frame with `columns` in that order (None: all); points are two columns in feet."""
    names = point_columns(arrow.schema)
    if names and POINT_COLUMN in arrow.column_names:
        about = json.loads(arrow.schema.metadata[b"geo"])["columns"][POINT_COLUMN]
        factor = feet_per_unit(json.dumps(about["crs"]))
        place = arrow.column_names.index(POINT_COLUMN)
        points = arrow.column(place).combine_chunks()
        arrow = arrow.remove_column(place)
        for offset, (name, axis) in enumerate(zip(names, points.flatten(), strict=True)):
            values = axis if factor == 1 else pa.array(axis.to_numpy() * factor)
            arrow = arrow.add_column(place + offset, name, values)
    frame = arrow.to_pandas()
    return frame if columns is None else frame[columns]

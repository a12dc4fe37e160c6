"""Frames as Arrow tables and back; what has a geometry is GeoParquet 1.1 on disk.

Boundaries are written as WKB. The place of an image is a native point, a pair of numbers: Parquet then keeps statistics
of easting and northing for every row group, and a frame has them as two plain columns without a geometry object a row.
"""

from __future__ import annotations

import json
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from pyproj import CRS

from patrolscope.pipeline.contract.columns import POINT_COLUMN, Table
from patrolscope.pipeline.crs import feet_per_unit
from patrolscope.pipeline.errors import SourceError

_POINT_NOTE = b"point"  # schema metadata: the columns of a frame that the point stands for, x then y


def to_arrow(table: Table, frame: pd.DataFrame, crs: str) -> pa.Table:
    """Arrow table in the schema on disk of a frame that conforms to `table`.

    Parameters
    ----------
    crs : projected system of the city, of which the points of `table` are coordinates; they are in feet in the frame
    """
    schema = table.arrow_schema()
    if table.point is not None:
        return _with_point(table.point, frame, crs, schema)
    if table.geometry is None:
        return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
        raise SourceError(f"{table.name}: the boundaries have no coordinate system")
    shapes = frame.geometry.to_numpy()
    plain = pd.DataFrame(frame).assign(**{table.geometry: shapely.to_wkb(shapes)})
    arrow = pa.Table.from_pandas(plain, schema=schema, preserve_index=False)
    geo = _geo(table.geometry, "WKB", frame.crs, sorted(set(frame.geom_type)), frame.total_bounds.tolist())
    return arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"geo": geo})


def _with_point(point: tuple[str, str], frame: pd.DataFrame, crs: str, schema: pa.Schema) -> pa.Table:
    # In the units of the system: feet are divided by exactly 1 where it is in feet.
    axes = [frame[name].to_numpy() / feet_per_unit(crs) for name in point]
    others = pa.schema([field for field in schema if field.name != POINT_COLUMN])
    arrow = pa.Table.from_pandas(frame[others.names], schema=others, preserve_index=False)
    field = schema.field(POINT_COLUMN)
    points = pa.StructArray.from_arrays([pa.array(axis) for axis in axes], fields=list(field.type))
    arrow = arrow.add_column(schema.get_field_index(POINT_COLUMN), field, points)
    bounds = [float(reduce(axis)) for reduce in (np.min, np.max) for axis in axes] if len(frame) else []
    geo = _geo(POINT_COLUMN, "point", CRS.from_user_input(crs), ["Point"], bounds)
    # No pandas metadata: it would describe columns that are not there.
    return arrow.replace_schema_metadata(
        {**(schema.metadata or {}), b"geo": geo, _POINT_NOTE: ",".join(point).encode()}
    )


def _geo(column: str, encoding: str, crs: Any, kinds: list[str], bounds: list[float]) -> bytes:
    """GeoParquet's metadata of a table with one geometry column."""
    about = {"encoding": encoding, "crs": crs.to_json_dict(), "geometry_types": kinds}
    if bounds:
        about["bbox"] = bounds
    return json.dumps({"version": "1.1.0", "primary_column": column, "columns": {column: about}}).encode()


def point_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Columns of a frame that the point of a file stands for; none where it has no point."""
    note = (schema.metadata or {}).get(_POINT_NOTE, b"")
    return tuple(note.decode().split(",")) if note else ()


def columns_on_disk(schema: pa.Schema, columns: list[str] | None) -> list[str] | None:
    """Columns of a file that hold the named columns of a frame."""
    standing_for = point_columns(schema)
    if columns is None or not standing_for:
        return columns
    return list(dict.fromkeys(POINT_COLUMN if name in standing_for else name for name in columns))


def to_frame(arrow: pa.Table, columns: list[str] | None) -> pd.DataFrame:
    """Frame of what was read from a file: its point in feet, as two columns; `columns` in their order, None for all."""
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

"""Random input for tests: frames of any declared table, and raw metadata files with faults."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from hypothesis import strategies as st

from patrolscope.pipeline.contract.columns import Column, Table

_WIDTHS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
# Beyond 2**53 a bound, which is a float, and a whole number do not compare exactly.
_LARGEST = 2**53
_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_YEARS_MS = (int(datetime(1900, 1, 1, tzinfo=UTC).timestamp() * 1000), 4_102_444_800_000)  # 1900 to 2100


def frames(table: Table, *, min_rows: int = 0, max_rows: int = 12) -> st.SearchStrategy[pd.DataFrame]:
    """Frames that conform to a table, no two rows with the same key."""
    row = st.fixed_dictionaries({column.name: values(column) for column in table})
    unique: Callable[[dict[str, Any]], Any] | None = None
    if table.key:
        unique = lambda row: tuple(row[name] for name in table.key)  # noqa: E731
    rows = st.lists(row, min_size=min_rows, max_size=max_rows, unique_by=unique)
    return rows.map(lambda drawn: _frame(table, drawn))


def values(column: Column) -> st.SearchStrategy[Any]:
    """Valid values of a column; None if missing."""
    some = _some(column)
    return st.none() | some if column.nullable else some


def _some(column: Column) -> st.SearchStrategy[Any]:
    low = -np.inf if column.low is None else column.low
    high = np.inf if column.high is None else column.high
    if column.kind == "string":
        return st.sampled_from(column.allowed) if column.allowed else _TEXT
    if column.kind == "bool":
        return st.booleans()
    if column.kind in _WIDTHS:
        edge = min(2 ** (_WIDTHS[column.kind] - 1), _LARGEST)
        return st.integers(int(max(low, -edge)), int(min(high, edge - 1)))
    if column.kind == "float64":
        bounds = {"min_value": column.low, "max_value": column.high}
        return st.floats(**bounds, allow_nan=False, allow_infinity=False)
    if column.kind in ("instant", "wall_time"):
        zone = "UTC" if column.kind == "instant" else None
        return st.integers(*_YEARS_MS).map(lambda ms: pd.Timestamp(ms, unit="ms", tz=zone))
    if column.kind == "float32_list":
        return st.lists(st.floats(low, min(high, 2.0**20), width=32), max_size=3).map(np.float32)
    if column.kind == "int32_list":
        return st.lists(st.integers(int(max(low, -(2**31))), 2**31 - 1), max_size=3).map(np.int32)
    corner = st.tuples(st.floats(-170, 170), st.floats(-80, 80))
    return corner.map(lambda at: shapely.box(at[0], at[1], at[0] + 1, at[1] + 1))


def _frame(table: Table, rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = {
        column.name: pd.Series([row[column.name] for row in rows], dtype=column.pandas_dtype)
        for column in table
        if column.kind != "geometry"
    }
    if table.geometry is None:
        return pd.DataFrame(columns)
    shapes = gpd.GeoSeries([row[table.geometry] for row in rows], crs="EPSG:4326")
    return gpd.GeoDataFrame({**columns, table.geometry: shapes}, geometry=table.geometry)[table.names]


# Raw metadata files.

HEADER = ("image_ref", "timestamp", "lat", "lng", "split")
_NOON = datetime(2020, 10, 7, 16, tzinfo=UTC)


@st.composite
def good_lines(draw: st.DrawFn) -> str:
    """A line of raw metadata of the default study, from few values, so that some lines repeat."""
    ride = draw(st.sampled_from(["9f2c", "07aa", "51b3"]))
    file = draw(st.integers(0, 20))
    at = _NOON + timedelta(minutes=draw(st.sampled_from([-3000, -700, -60, 0, 0, 1, 50, 600])))
    lat = draw(st.sampled_from([40.7, 40.75, 40.7501, 40.8]))
    lng = draw(st.sampled_from([-73.9, -73.95, -74.0]))
    split = draw(st.sampled_from([0, 1, 1]))
    return f"ride/{ride}/{file}.jpg,{int(at.timestamp() * 1000)},{lat},{lng},{split}"


_STRANGE_NUMBERS = (
    "nan",
    "inf",
    "-1",
    "1e3",
    "+40.7",
    " 40.7 ",
    "040.70",
    "0x10",
    "2",
    "1.0",
    "9" * 25,
    "0" * 30 + "1",
)
_STRANGE_TEXTS = (
    "",
    " ",
    "'",
    '"',
    '""',
    'a"b',
    '"a,b"',
    "ride/../x.jpg",
    "/ride/a/b",
    "ride/a/b/c",
    "é",
    "\ufeff",
    "\x00",
)
_GARBAGE = st.sampled_from(_STRANGE_NUMBERS + _STRANGE_TEXTS) | st.text(
    st.characters(codec="utf-8", exclude_characters="\n"), max_size=6
)


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    """A line with one fault, or with something that looks like one."""
    fields = draw(good_lines()).split(",")
    place = draw(st.integers(0, len(fields) - 1))
    damage = draw(st.sampled_from(["drop", "add", "replace", "quote", "insert", "truncate", "blank", "bytes", "split"]))
    if damage == "drop":
        del fields[place]
    elif damage == "add":
        fields.insert(place, draw(_GARBAGE))
    elif damage == "replace":
        fields[place] = draw(_GARBAGE)
    elif damage == "quote":
        fields[place] = f'"{fields[place]}"'
    line = ",".join(fields).encode()
    at = draw(st.integers(0, len(line)))
    if damage == "insert":
        line = line[:at] + draw(_GARBAGE).encode() + line[at:]
    elif damage == "truncate":
        line = line[:at]
    elif damage == "blank":
        line = b""
    elif damage == "bytes":
        line = line[:at] + draw(st.sampled_from([b"\xff", b"\xc3", b"\r", b'"', b"\xef\xbb\xbf"])) + line[at:]
    elif damage == "split":
        line = line[:at] + b"\n" + line[at:]
    return line


@st.composite
def raw_files(draw: st.DrawFn) -> bytes:
    """A raw metadata file with valid and damaged lines, with or without BOM, CRLF, and final line end."""
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    lines = draw(st.lists(good_lines().map(str.encode) | damaged_lines(), max_size=40))
    text = end.join([",".join(HEADER).encode(), *lines])
    text += draw(st.sampled_from([b"", end])) if lines else end
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text

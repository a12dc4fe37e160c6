"""Column and Table: one declaration provides Dask's meta, the Arrow schema, validation, and the data dictionary.

`patrolscope.pipeline.contract.tables` holds the declarations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from patrolscope.pipeline.errors import ContractError

Kind = Literal[
    "string",
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "float64",
    "instant",
    "wall_time",
    "geometry",
    "float32_list",
    "int32_list",
]

# Times have milliseconds, the unit of the published `timestamp`. An instant is a point in time (UTC on disk), a wall
# time is the local time of the city.
_PANDAS: dict[str, str] = {
    "string": "str",
    "instant": "datetime64[ms, UTC]",
    "wall_time": "datetime64[ms]",
    "geometry": "geometry",
    "float32_list": "object",
    "int32_list": "object",
}
_ARROW: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "instant": pa.timestamp("ms", tz="UTC"),
    "wall_time": pa.timestamp("ms"),
    "geometry": pa.binary(),
    "float32_list": pa.list_(pa.float32()),
    "int32_list": pa.list_(pa.int32()),
}
# Unit and bounds of a coordinate column.
LAT: dict[str, Any] = {"unit": "degrees north, WGS 84", "low": -90.0, "high": 90.0}
LNG: dict[str, Any] = {"unit": "degrees east, WGS 84", "low": -180.0, "high": 180.0}
# Name of the column that holds both coordinates of a point on disk.
POINT_COLUMN = "geometry"
_INTEGERS = frozenset({"int8", "int16", "int32", "int64"})
# Each value is an array of any length, an object in pandas; bounds apply to its elements.
_LISTS: dict[str, Any] = {"float32_list": np.float32, "int32_list": np.int32}


@dataclass(frozen=True)
class Column:
    """Declaration of a column: type, meaning, unit, and valid values.

    Attributes
    ----------
    name : str
        Name in the table.
    kind : str
        Type, a key of the mappings above.
    meaning, unit : str
        Texts for the data dictionary.
    low, high : float, optional
        Bounds, inclusive.
    nullable : bool
        Whether values may be missing.
    allowed : tuple of str
        Valid values; empty for any.
    published : str
        Name in the published file; empty for none.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    nullable: bool = False
    allowed: tuple[str, ...] = ()
    published: str = ""

    @property
    def pandas_dtype(self) -> str:
        """Name of the pandas dtype that holds the column."""
        if self.nullable and (self.kind in _INTEGERS or self.kind == "bool"):
            return "boolean" if self.kind == "bool" else self.kind.capitalize()
        return _PANDAS.get(self.kind, self.kind)

    def arrow_field(self) -> pa.Field:
        """Return the Arrow field with unit, meaning, and published name in its metadata."""
        notes = {"meaning": self.meaning, "unit": self.unit, "published_name": self.published}
        return pa.field(
            self.name,
            _ARROW[self.kind],
            nullable=self.nullable,
            metadata={key: value for key, value in notes.items() if value},
        )

    def values(self) -> str:
        """Describe the valid values as text."""
        low = "" if self.low is None else f"from {self.low:g}"
        high = "" if self.high is None else f"to {self.high:g}"
        parts = [
            " ".join(filter(None, (low, high))),
            ", ".join(self.allowed),
            "may be missing" if self.nullable else "",
        ]
        return "; ".join(filter(None, parts))

    def cast(self, values: pd.Series[Any], table: str) -> pd.Series[Any]:
        """Convert values to the type of the column.

        Raises
        ------
        ContractError
            If the conversion would change a value.
        """
        if self.kind == "geometry" or (str(values.dtype) == self.pandas_dtype and self.kind not in _LISTS):
            return values
        try:
            return self._converted(values)
        except (TypeError, ValueError, OverflowError) as error:
            message = f"{table}.{self.name}: {values.dtype} does not fit {self.kind}: {error}"
            raise ContractError(message) from error

    def _converted(self, values: pd.Series[Any]) -> pd.Series[Any]:
        if self.kind in _LISTS:
            items = [_to_array(value, _LISTS[self.kind]) for value in values]
            return pd.Series(_objects(items), index=values.index, dtype=object)
        if self.kind in _INTEGERS:
            whole = _to_integer(values.dropna() if self.nullable else values, self.kind)
            return values.astype(self.pandas_dtype) if self.nullable else whole  # type: ignore[call-overload]
        converted = values.astype(self.pandas_dtype)  # type: ignore[call-overload]
        if self.kind == "string":
            same = values.isna() if values.dtype.kind == "f" else True  # a float would turn a code into 36061.0
        else:
            same = (converted == values) | (converted.isna() & values.isna())
        if not np.all(same):
            raise ValueError("values would change")
        return converted

    def check(self, values: pd.Series[Any], table: str) -> None:
        """Check for missing values, values out of bounds, and values outside `allowed`.

        Raises
        ------
        ContractError
            If a value is invalid; it names the column, the count, and an example.
        """
        missing = values.isna()
        if not self.nullable and missing.any():
            _refuse(f"{table}.{self.name}", values, missing, "a value in every row")
        if self.kind in _LISTS:
            present = list(values[~missing])
            values = pd.Series(np.concatenate(present) if present else np.empty(0, _LISTS[self.kind]))
            missing = values.isna()
        if self.low is not None or self.high is not None:
            low = -np.inf if self.low is None else self.low
            high = np.inf if self.high is None else self.high
            outside = ~missing & ~values.between(low, high)
            if outside.any():
                _refuse(f"{table}.{self.name}", values, outside, f"between {low:g} and {high:g} {self.unit}")
        if self.allowed:
            unknown = ~missing & ~values.isin(self.allowed)
            if unknown.any():
                _refuse(f"{table}.{self.name}", values, unknown, "one of " + ", ".join(self.allowed))


@dataclass(frozen=True)
class Table:
    """Declaration of a table that crosses a stage.

    Attributes
    ----------
    name, row : str
        Name of the table, and the meaning of a row.
    key : tuple of str
        Columns that identify a row.
    columns : tuple of Column
        Columns in order.
    made_by : str
        Command that writes the table.
    stored : str
        Folder or file in a study; by default the folder with the name of the table.
    point : tuple of str, optional
        Easting and northing columns, stored as one GeoParquet point.
    """

    name: str
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    made_by: str = ""
    stored: str = ""
    point: tuple[str, str] | None = None
    _by_name: dict[str, Column] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name.update({column.name: column for column in self.columns})
        if len(self._by_name) != len(self.columns):
            raise ValueError(f"table {self.name} declares a column twice")
        if unknown := {*self.key, *(self.point or ())} - set(self._by_name):
            raise ValueError(f"table {self.name}: key or point columns {sorted(unknown)} are not declared")

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __getitem__(self, name: str) -> Column:
        return self._by_name[name]

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return list(self._by_name)

    @property
    def geometry(self) -> str | None:
        """Name of the geometry column, if the table has one."""
        return next((column.name for column in self.columns if column.kind == "geometry"), None)

    def empty(self) -> pd.DataFrame:
        """Return a frame without rows in the declared types, for use as Dask's meta."""
        plain = {
            column.name: pd.Series([], dtype=column.pandas_dtype)
            for column in self.columns
            if column.kind != "geometry"
        }
        if self.geometry is None:
            return pd.DataFrame(plain)
        frame = gpd.GeoDataFrame({**plain, self.geometry: gpd.GeoSeries([])}, geometry=self.geometry)
        return frame[self.names]

    def arrow_schema(self) -> pa.Schema:
        """Return the schema on disk, with units and meanings in the field metadata."""
        notes = {"table": self.name, "row": self.row, "key": ",".join(self.key)}
        fields = {column.name: column.arrow_field() for column in self.columns}
        if self.point is not None:
            axes = [pa.field(axis, pa.float64(), nullable=False) for axis in ("x", "y")]
            meaning = " and ".join(self[name].meaning for name in self.point)
            x, y = self.point
            fields[x] = pa.field(POINT_COLUMN, pa.struct(axes), nullable=False, metadata={"meaning": meaning})
            del fields[y]
        return pa.schema(list(fields.values()), metadata=notes)

    def conform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the declared columns of `frame` in order and type, and check every value.

        Raises
        ------
        ContractError
            If a column is missing or a value is invalid; it names the column, the count, and an example.
        """
        if missing := [name for name in self.names if name not in frame.columns]:
            raise ContractError(
                f"{self.name} needs {', '.join(missing)}; the frame has {', '.join(map(str, frame.columns))}"
            )
        columns = {}
        for column in self.columns:
            values = column.cast(frame[column.name], self.name)
            column.check(values, self.name)
            columns[column.name] = values
        if self.geometry is None:
            return pd.DataFrame(columns, index=frame.index, copy=False)
        return gpd.GeoDataFrame(columns, index=frame.index, geometry=self.geometry)

    def check_key(self, frame: pd.DataFrame) -> None:
        """Check that keys are unique.

        Raises
        ------
        ContractError
            If two rows have the same key.
        """
        twice = frame.duplicated(list(self.key), keep=False)
        if twice.any():
            example = frame.loc[twice, list(self.key)].iloc[0].to_dict()
            raise ContractError(
                f"{self.name}: {int(twice.sum())} rows share the key {', '.join(self.key)}, first {example}"
            )

    def published_names(self) -> dict[str, str]:
        """Map column names to published names, for the columns with one."""
        return {column.name: column.published for column in self.columns if column.published}

    def describe(self) -> dict[str, Any]:
        """Return the entry of the data dictionary, as texts."""
        columns = [
            {
                "name": column.name,
                "type": column.kind.replace("_", " "),
                "meaning": column.meaning,
                "unit": column.unit,
                "values": column.values(),
                "published_name": column.published,
            }
            for column in self.columns
        ]
        return {"table": self.name, "row": self.row, "key": list(self.key), "made_by": self.made_by, "columns": columns}

    def fingerprint(self) -> str:
        """Return a digest of names and types; tables written with another digest are stale."""
        shape = [{key: asdict(column)[key] for key in ("name", "kind", "nullable")} for column in self.columns]
        return hashlib.sha256(json.dumps([shape, self.point]).encode()).hexdigest()[:16]


def _to_array(value: Any, dtype: Any) -> npt.NDArray[Any] | None:
    """Convert a value of a list column; None if it is missing."""
    if not isinstance(value, (list, tuple, np.ndarray)):
        if pd.isna(value):
            return None
        raise TypeError(f"{value!r} is not a list")
    items = np.asarray(value)
    converted = items.astype(dtype)
    if converted.ndim != 1 or (converted.dtype.kind == "i" and (converted != items).any()):
        raise ValueError(f"{value!r} is not a list of {np.dtype(dtype)}")
    return converted


def _objects(items: list[Any]) -> npt.NDArray[np.object_]:
    # np.array would build a matrix from arrays of equal length.
    objects = np.empty(len(items), dtype=object)
    objects[:] = items
    return objects


def _to_integer(values: pd.Series[Any], kind: str) -> pd.Series[Any]:
    whole = values.astype(kind)  # type: ignore[call-overload]
    if (whole != values).any():
        raise ValueError("values are not whole numbers, or too large")
    return whole


def _refuse(name: str, values: pd.Series[Any], bad: pd.Series[bool], expected: str) -> None:
    (example,) = values[bad].head(1).tolist()
    raise ContractError(
        f"{name}: {int(bad.sum())} of {len(values)} values are wrong, first {example!r}; expected {expected}"
    )

"""Columns of source files: lookup by accepted names, conversion, and checks shared by the readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.catalog import CatalogEntry

GEOID_LENGTHS = (11, 12, 15)  # digits of the codes of tracts, block groups, and blocks


def find_column(accepted: tuple[str, ...], present: pd.Index[str]) -> str | None:
    """Return the first accepted name that a file has, or None."""
    return next((name for name in accepted if name in present), None)


def require_column(path: Path, accepted: tuple[str, ...], present: pd.Index[str]) -> str:
    """Return the first accepted name that a file has.

    Parameters
    ----------
    path : Path
        File, for the message.
    accepted : tuple of str
        Accepted names, the preferred one first.
    present : Index of str
        Columns of the file.

    Raises
    ------
    SourceError
        If the file has none of them.
    """
    name = find_column(accepted, present)
    if name is not None:
        return name
    columns = ", ".join(map(str, present)) or "none"
    raise SourceError(f"{path} has no column {' or '.join(accepted)}; it has {columns}")


def optional_columns(entry: CatalogEntry, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the accepted names of those columns that an entry declares."""
    return {name: entry.columns[name] for name in names if name in entry.columns}


def text_table(
    path: Path, names: Mapping[str, tuple[str, ...]], optional: Mapping[str, tuple[str, ...]] | None = None
) -> pd.DataFrame:
    """Read columns of a small CSV file as text, under our names.

    Parameters
    ----------
    path : Path
        CSV file in UTF-8.
    names : mapping of str to tuple of str
        Accepted names in the file of each required column.
    optional : mapping of str to tuple of str, optional
        The same for columns that the file may lack.

    Returns
    -------
    DataFrame
        The index is the line number in the file; the header is line 1.

    Raises
    ------
    SourceError
        If the file is not CSV or lacks a required column.
    """
    try:
        # index_col=False: a comma at the end of every line does not shift the columns.
        raw = pd.read_csv(path, dtype="str", keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise SourceError(f"{path} is not a CSV file in UTF-8: {error}") from error
    columns = {ours: raw[require_column(path, accepted, raw.columns)] for ours, accepted in names.items()}
    for ours, accepted in (optional or {}).items():
        if (name := find_column(accepted, raw.columns)) is not None:
            columns[ours] = raw[name]
    return pd.DataFrame(columns).set_axis(raw.index + 2)


def as_text(values: pd.Series[Any], path: Path) -> pd.Series[str]:
    """Convert codes and names to text, and whole numbers without a decimal point (shapefiles store 5 as 5.0).

    Raises
    ------
    SourceError
        If a value is missing, or a number is not whole.
    """
    if values.isna().any():
        raise SourceError(f"{path}: {int(values.isna().sum())} rows have no {values.name}; every row needs one")
    if pd.api.types.is_numeric_dtype(values):
        whole = values.astype("int64")
        if (whole != values).any():
            raise SourceError(f"{path}: {values.name} is {values[whole != values].iloc[0]}; expected a whole number")
        values = whole
    return values.astype("str").str.strip()


def decode(values: pd.Series[str], codes: dict[str, str], path: Path) -> pd.Series[str]:
    """Replace the codes of a file by our values; without `codes`, return the values unchanged.

    Parameters
    ----------
    values : Series of str
        Codes as in the file.
    codes : dict of str to str
        Values by code.
    path : Path
        File, for the message.

    Raises
    ------
    SourceError
        If a value is not among the codes.
    """
    if not codes:
        return values
    unknown = ~values.isin(codes)
    if unknown.any():
        raise SourceError(f"{path}: {values.name} is {values[unknown].iloc[0]!r}; expected one of {', '.join(codes)}")
    return values.map(codes).astype("str")


def select_rows(frame: Any, entry: CatalogEntry, names: dict[str, str]) -> Any:
    """Return the rows that an entry selects; `names` maps columns of the frame to columns of the entry.

    Codes of the Census Bureau that have lost the zero of a selected prefix get it back.

    Parameters
    ----------
    frame : DataFrame or GeoDataFrame
        Rows of a file.
    entry : CatalogEntry
        Entry with the values to select by column.
    names : dict of str to str
        Columns of the entry by column of the frame.
    """
    for column, name in names.items():
        if prefixes := entry.select.get(name):
            frame = frame.assign(**{column: _with_zeros(frame[column], prefixes)})
            frame = frame[frame[column].str.startswith(prefixes)]
    return frame


def _with_zeros(codes: pd.Series[str], prefixes: tuple[str, ...]) -> pd.Series[str]:
    bare = tuple(prefix[1:] for prefix in prefixes if prefix.startswith("0"))
    full = "0" + codes
    lost = codes.str.startswith(bare) & ~codes.str.startswith(prefixes) & codes.str.isdecimal()
    return codes.mask(lost & full.str.len().isin(GEOID_LENGTHS), full)


def check_unique(keys: pd.Series[str], path: Path) -> None:
    """Raise SourceError if there are no keys, or a key is repeated.

    Raises
    ------
    SourceError
        If there are no keys, or a key is repeated.
    """
    if len(keys) == 0:
        raise SourceError(f"{path} has no row of the city; check that it is the right file")
    repeated = keys.duplicated()
    if repeated.any():
        raise SourceError(f"{path}: the {keys.name} {keys[repeated].iloc[0]!r} occurs in several rows; expected one")


def check_cells(cells: pd.Series[str], bad: pd.Series[bool], path: Path, expected: str) -> None:
    """Raise SourceError with file and line of the first bad cell, if there is one.

    Parameters
    ----------
    cells : Series of str
        Cells of one column; the index is the line number.
    bad : Series of bool
        Which cells to reject.
    path : Path
        File of the cells.
    expected : str
        Description of a valid cell.

    Raises
    ------
    SourceError
        If a cell is bad.
    """
    if bad.any():
        line, cell = next(cells[bad].items())
        raise SourceError(f"{path}, line {line}: {cell!r} is not {expected} ({int(bad.sum())} such cells)")


def as_numbers(
    cells: pd.Series[str], path: Path, name: str, *, optional: bool = False, low: float = 0
) -> pd.Series[float]:
    """Convert cells to numbers.

    Parameters
    ----------
    cells : Series of str
        Cells of one column; the index is the line number.
    path : Path
        File of the cells, for errors.
    name : str
        Name of the column, for errors.
    optional : bool
        Whether a cell may be empty, which becomes NaN.
    low : float
        Least accepted number.

    Raises
    ------
    SourceError
        If a cell is not a number, or less than `low`.
    """
    numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
    bad = ~numbers.between(low, np.inf, inclusive="left")
    if optional:
        bad &= cells != ""
    check_cells(cells, bad, path, f"a number for {name}, at least {low:g}")
    return numbers

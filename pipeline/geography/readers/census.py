"""Readers of census tables and of the zoning shares of areas."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError

from patrolscope.pipeline.contract.tables import B03002_PUBLISHED, CENSUS, PEOPLE_VARIABLES
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.catalog import CatalogEntry
from patrolscope.pipeline.geography.readers.boundaries import archive_member
from patrolscope.pipeline.geography.readers.columns import (
    as_numbers,
    as_text,
    check_cells,
    check_unique,
    optional_columns,
    require_column,
    select_rows,
    text_table,
)

# Annotations in place of an estimate (table notes of the ACS): none, not applicable, too few sample cases.
NO_ESTIMATE = ("", "-", "*", "**", "***", "*****", "N", "(X)", "null")
# Numbers in place of an estimate in answers of the Census Bureau's API (notes on ACS estimate and annotation values).
_SENTINEL = r"-([235689])\1{8}(\.0*)?"
_INCOME = r"(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?[+-]?"


def read_population(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read residents by origin and race: area (code), name (if available), b03002_001e, b03002_001m, ...

    Table B03002 is accepted with the column names of data.census.gov, and with those of the study's authors. The file
    must have the estimates of `PEOPLE_VARIABLES`, under these names or the entry's; other columns are optional. A
    margin is missing if the bureau gives an annotation instead, and any number is if the bureau's API gives a sentinel
    such as -666666666.
    """
    names = {name: (name.upper(), published) for name, published in B03002_PUBLISHED.items()}
    needed = {"area": entry.columns["area"]}
    for role, name in PEOPLE_VARIABLES.items():
        needed[name] = tuple(dict.fromkeys((*entry.columns.get(role, ()), *names.pop(name))))
    table = _census_table(path, entry, needed, names | optional_columns(entry, ("name",)))
    columns = {
        name: _census_numbers(_without_annotations(table[name]), path, name, optional=True)
        if name.endswith("m")
        else _census_numbers(table[name], path, name)
        for name in B03002_PUBLISHED
        if name in table
    }
    return pd.DataFrame({**table[table.columns.intersection(["area", "name"])], **columns}).reset_index(drop=True)


def _without_annotations(cells: pd.Series[str]) -> pd.Series[str]:
    text = cells.str.strip()
    return text.mask(text.isin(NO_ESTIMATE), "")


def _is_sentinel(cells: pd.Series[str]) -> pd.Series[bool]:
    return cells.str.strip().str.fullmatch(_SENTINEL)


def _census_numbers(cells: pd.Series[str], path: Path, name: str, *, optional: bool = False) -> pd.Series[float]:
    """Convert cells to numbers as `as_numbers` does; sentinels become NaN."""
    sentinel = _is_sentinel(cells)
    return as_numbers(cells.mask(sentinel, "0"), path, name, optional=optional).mask(sentinel)


def read_income(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read the median household income: area (code), income_usd, income_margin_usd (if the file has it).

    Values are missing where there is no estimate. The margin is also missing for incomes at an end of the scale.
    """
    needed = {name: entry.columns[name] for name in ("area", "income_usd")}
    table = _census_table(path, entry, needed, optional_columns(entry, ("income_margin_usd",)))
    columns = {name: parse_income(table[name], path) for name in table if name != "area"}
    return pd.DataFrame({"area": table["area"], **columns}).reset_index(drop=True)


def parse_income(cells: pd.Series[str], path: Path) -> pd.Series[float]:
    """Convert the Census Bureau's income cells to US dollars, including the ends of the scale, `2,500-` and `250,000+`.

    Raises
    ------
    SourceError
        If a cell is neither a number nor one of the bureau's annotations; the message names file and line.
    """
    text = cells.str.strip()
    missing = text.isin(NO_ESTIMATE) | _is_sentinel(text)
    check_cells(cells, ~missing & ~text.str.fullmatch(_INCOME), path, "a median income, such as 66,250 or 250,000+")
    amount = text.mask(missing).str.replace(",", "").str.rstrip("+-")
    return amount.astype("float64")


def read_area_attributes(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read the attributes of the Census Bureau's boundary file: area (code), and the entry's columns of `CENSUS`.

    The attributes are in the .dbf table of the shapefile, alone or in its archive. Land and water are in square meters.

    Raises
    ------
    SourceError
        If the file has no such table, or lacks a column of the entry.
    """
    where = str(path) if path.suffix == ".dbf" else f"/vsizip/{path}/{archive_member(path, entry.member)}"
    try:
        raw = pyogrio.read_dataframe(where, read_geometry=False)
    except (DataSourceError, DataLayerError) as error:
        raise SourceError(f"{path} is not an attribute table ({error}); expected {entry.format}") from error
    columns = {
        ours: as_text(raw[require_column(path, accepted, raw.columns)], path)
        for ours, accepted in entry.columns.items()
    }
    table = select_rows(pd.DataFrame(columns), entry, {"area": "area"})
    check_unique(table["area"], path)
    for name in table:
        if CENSUS[str(name)].kind == "float64":
            table[name] = as_numbers(table[name], path, str(name), low=-180)
    return table.reset_index(drop=True)


def read_zoning(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read the share of each area per zone: area (code), share_r, share_c, share_m (0 to about 1.05)."""
    names = ("share_r", "share_c", "share_m")
    table = _census_table(path, entry, {name: entry.columns[name] for name in ("area", *names)})
    shares = {name: _census_numbers(table[name], path, name, optional=True) for name in names}
    return pd.DataFrame({"area": table["area"], **shares}).reset_index(drop=True)


def read_tract_counts(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read the tract counts of the 2020 census: tract (code), persons, persons_white, ... as the entry names them.

    Columns percent_... are shares as published, whose cells may be empty.

    Raises
    ------
    SourceError
        If the file lacks a column of the entry, or a count is not a number.
    """
    try:
        # The first sheet is an explanation; three title lines precede the names.
        raw = pd.read_excel(path, sheet_name=1, header=3, dtype="str", keep_default_na=False)
    except (ValueError, IndexError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} is not {entry.format}: {error}") from error
    table = pd.DataFrame(
        {ours: raw[require_column(path, names, raw.columns)] for ours, names in entry.columns.items()}
    ).set_axis(raw.index + 5)
    table = table[table["level"] == "CT2020"]
    check_unique(table["tract"], path)
    groups = [name for name in entry.columns if name not in ("level", "tract")]
    counts = {name: _census_numbers(table[name], path, name, optional=name.startswith("percent_")) for name in groups}
    return pd.DataFrame({"tract": table["tract"], **counts}).reset_index(drop=True)


def _census_table(
    path: Path,
    entry: CatalogEntry,
    names: Mapping[str, tuple[str, ...]],
    optional: Mapping[str, tuple[str, ...]] | None = None,
) -> pd.DataFrame:
    """Read text columns of the entry's areas, with codes stripped of their prefix `1500000US` (the summary level)."""
    table = text_table(path, names, optional)
    # Downloads of data.census.gov have a second header line with descriptions.
    table = table[table["area"] != "Geography"]
    table["area"] = table["area"].str.replace(r"^\d{7}US", "", regex=True)
    table = select_rows(table, entry, {"area": "area"})
    check_unique(table["area"], path)
    return table

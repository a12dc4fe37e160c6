"""Codes of areas and tracts in several files: leading zeros that numbers have lost, and areas without residents."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from patrolscope.pipeline.contract.tables import PEOPLE_VARIABLES
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.ledger import Ledger


def respell(codes: pd.Series[str], spellings: Iterable[str]) -> pd.Series[str]:
    """Spell codes as another file does, where they differ in leading zeros only.

    A file that holds codes as numbers, such as a GeoJSON or a CSV saved by a spreadsheet, has 60371000001 for
    060371000001. All states with FIPS codes 01 to 09 are concerned.

    Parameters
    ----------
    codes : Series of str
        Distinct codes of one file.
    spellings : iterable of str
        Codes of the other file.

    Returns
    -------
    Series of str
        Codes; those that the other file does not have, or has in two spellings, are unchanged. All are unchanged if two
        would become the same.
    """
    known = pd.Series(sorted(set(spellings)), dtype="str")
    known = known[known.str.isdecimal()]
    numbers = known.str.lstrip("0")
    by_number = pd.Series(known.to_numpy(), index=numbers)[~numbers.duplicated(keep=False).to_numpy()]
    found = codes.where(codes.str.isdecimal()).str.lstrip("0").map(by_number)
    changed = codes.mask(found.notna(), found)
    return codes if changed.duplicated().any() else changed


def respell_tables(
    areas: pd.Series[str], tables: Iterable[pd.DataFrame | None]
) -> tuple[pd.Series[str], list[pd.DataFrame | None], int]:
    """Restore leading zeros: of the areas from any table that has them, then of every table from the areas.

    Returns the codes, the tables, and the number of changed codes in all files.

    Parameters
    ----------
    areas : Series of str
        Codes of the areas.
    tables : iterable of DataFrame or None
        Tables with a column `area`. Others, such as zoning districts, are unchanged.
    """
    listed = list(tables)
    codes = areas
    for table in listed:
        if table is not None and "area" in table:
            codes = respell(codes, table["area"][table["area"].str.startswith("0")])
    changed = int((codes != areas).sum())
    for number, table in enumerate(listed):
        if table is not None and "area" in table:
            own = respell(table["area"], codes)
            changed += int((own != table["area"]).sum())
            listed[number] = table.assign(area=own)
    return codes, listed, changed


def check_population(
    areas: pd.Series[str], population: pd.DataFrame | None, most_missing: float, ledger: Ledger
) -> None:
    """Count areas without a number of residents, which count as empty, and refuse too many of them.

    Parameters
    ----------
    areas : Series of str
        Codes of the areas.
    population : DataFrame, optional
        area and residents by group; None for a study without.
    most_missing : float
        Largest share of areas that may be missing.
    ledger : Ledger
        Ledger for the count.

    Raises
    ------
    SourceError
        If more areas are missing. The message has a code of both files.
    """
    if population is None:
        return
    complete = population[list(PEOPLE_VARIABLES.values())].notna().all(axis="columns")
    missing = areas[~areas.isin(population["area"][complete])]
    if missing.empty:
        return
    if len(missing) > most_missing * len(areas):
        raise SourceError(
            f"layers.population has no residents of {len(missing)} of {len(areas)} areas, such as "
            f"{missing.iloc[0]!r}; its first code is {population['area'].iloc[0]!r}; expected at most "
            f"{100 * most_missing:g}%; compare the codes of layers.areas and layers.population, or raise "
            "estimate.missing_population if these areas really are empty"
        )
    ledger.note(
        f"areas without residents in layers.population, such as {missing.iloc[0]}: count as empty", len(missing)
    )

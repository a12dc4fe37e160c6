"""Readers of police stations, felonies, and published deployment rates."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from patrolscope.pipeline.contract.tables import FELONIES, STATIONS
from patrolscope.pipeline.errors import ContractError, SourceError
from patrolscope.pipeline.geography.catalog import CatalogEntry
from patrolscope.pipeline.geography.readers.columns import as_numbers, check_unique, require_column, text_table
from patrolscope.pipeline.study.ledger import Ledger

COMPLAINTS = {
    "felony_id": "CMPLNT_NUM",
    "date": "CMPLNT_FR_DT",
    "time": "CMPLNT_FR_TM",
    "category": "LAW_CAT_CD",
    "offense": "OFNS_DESC",
    "lat": "Latitude",
    "lng": "Longitude",
}
_NO_VALUE = ("", "NA", "(null)")  # empty cells in older and newer exports of the city portal
_BLOCK_BYTES = 8 * 2**20  # source text held at a time, which bounds the memory for files of 2 GB
_FIRST_YEAR = 1900  # earlier years in the police files are typing errors


def read_stations(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read police stations (`STATIONS`), numbered from 0 in file order unless the entry names a column.

    Raises
    ------
    SourceError
        If the file is unreadable, or a station has no location.
    """
    names = {name: columns for name, columns in entry.columns.items() if name in STATIONS.names}
    table = text_table(path, names)
    frame = pd.DataFrame({name: as_numbers(table[name], path, name, low=-180) for name in names})
    frame = frame.reset_index(drop=True)
    if "station_id" not in names:
        frame["station_id"] = np.arange(len(frame))
    try:
        frame = STATIONS.conform(frame)
        STATIONS.check_key(frame)
    except ContractError as error:
        raise SourceError(f"{path}: {error}") from error
    return frame


def read_levels(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Read published deployment rates: neighborhood (name), level (mean calibrated probability, 0 to 1)."""
    table = text_table(path, {name: entry.columns[name] for name in ("neighborhood", "level")})
    check_unique(table["neighborhood"], path)
    level = as_numbers(table["level"], path, "level")
    return pd.DataFrame({"neighborhood": table["neighborhood"], "level": level}).reset_index(drop=True)


def read_felonies(path: Path, *, category: str, time_zone: str) -> tuple[pd.DataFrame, Ledger]:
    """Read the complaints of one category with known start and location, in a stream.

    A local time in the repeated hour means its first occurrence; a nonexistent time becomes the next one that exists.

    Parameters
    ----------
    path : Path
        NYPD Complaint Data, a CSV file of 24 or 35 columns, plain or gzip.
    category : str
        Value of LAW_CAT_CD, such as FELONY.
    time_zone : str
        IANA time zone of the clock times in the file.

    Returns
    -------
    felonies : DataFrame
        `FELONIES`, sorted by start, then by complaint number as a number.
    ledger : Ledger
        Rows read, and rows dropped per reason.

    Raises
    ------
    SourceError
        If the file lacks a column, or is not CSV.
    """
    ledger = Ledger("felonies", 0)
    parts = [
        _felonies(rows, ledger, category=category, time_zone=time_zone)
        for rows in _text_batches(path, COMPLAINTS, ledger)
    ]
    felonies = pd.concat([FELONIES.empty(), *parts], ignore_index=True)
    repeated = int(felonies["felony_id"].duplicated().sum())
    if repeated:
        ledger.note("complaint number repeats that of an earlier row", repeated)
    number = pd.to_numeric(felonies["felony_id"].str.extract(r"^([0-9]{1,15})", expand=False))
    felonies = felonies.assign(_number=number).sort_values(
        ["started_at_utc", "_number", "felony_id"], ignore_index=True, kind="stable"
    )
    return FELONIES.conform(felonies), ledger


def _felonies(rows: pa.Table, ledger: Ledger, *, category: str, time_zone: str) -> pd.DataFrame:
    selected = rows.filter(pc.equal(rows["category"], category))
    ledger.drop(len(rows) - len(selected), why=f"category is not {category}")
    frame = selected.to_pandas()
    frame = ledger.keep(frame, frame["felony_id"] != "", why="no complaint number")
    frame = _with_location(frame, ledger)
    frame["started_at_utc"] = _start(frame["date"], frame["time"], time_zone)
    frame = ledger.keep(frame, frame["started_at_utc"].notna(), why="unreadable start")
    frame["offense"] = frame["offense"].mask(frame["offense"].isin(_NO_VALUE))
    return FELONIES.conform(frame)


def _text_batches(path: Path, names: dict[str, str], ledger: Ledger) -> Iterator[pa.Table]:
    """Yield batches of a large CSV file as trimmed text, under our names.

    The ledger counts all rows, and drops those with the wrong number of cells, such as a truncated last line.
    """
    _check_header(path, names)
    ragged: list[int] = []

    def skip(row: Any) -> str:
        ragged.append(row.actual_columns)  # Arrow calls this from threads of its parser: do no more than append
        return "skip"

    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(names.values()),
        column_types=dict.fromkeys(names.values(), pa.string()),
        strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    read = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES)
    try:
        with (
            pa.input_stream(str(path)) as stream,
            pyarrow.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
        ):
            for batch in reader:
                ledger.rows_in += len(batch)
                cells = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                yield pa.table(cells, names=list(names))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is not a CSV file in UTF-8: {error}") from error
    ledger.rows_in += len(ragged)
    ledger.drop(len(ragged), why="wrong number of cells")


def _check_header(path: Path, names: dict[str, str]) -> None:
    """Reject a file without a required column before reading gigabytes of it."""
    try:
        with pa.input_stream(str(path)) as stream:
            first = stream.read(2**16).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    header = next(csv.reader(first.splitlines()), [])
    for column in names.values():
        require_column(path, (column,), pd.Index(header))


def _with_location(frame: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """Keep rows with valid coordinates; (0, 0) stands for an unknown location."""
    lat, lng = (pd.to_numeric(frame[name], errors="coerce").astype("float64") for name in ("lat", "lng"))
    known = lat.between(-90, 90) & lng.between(-180, 180) & ~((lat == 0) & (lng == 0))
    return ledger.keep(frame.assign(lat=lat, lng=lng), known, why="no position")


def _start(date: pd.Series[str], time: pd.Series[str], time_zone: str) -> pd.Series[pd.Timestamp]:
    """Return instants of local times; missing if unreadable, such as 24:00:00, or before 1900."""
    local = pd.to_datetime(date + " " + time, format="%m/%d/%Y %H:%M:%S", errors="coerce").astype("datetime64[ms]")
    local = local.where(local.dt.year >= _FIRST_YEAR)
    daylight = np.ones(len(local), dtype=bool)  # the first occurrence of the repeated hour
    instants = local.dt.tz_localize(time_zone, ambiguous=daylight, nonexistent="shift_forward")
    return instants.dt.tz_convert("UTC").dt.as_unit("ms")

"""Readers of police stations, felonies, and published deployment rates."""

from __future__ import annotations

import codecs
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

# Columns of an entry for a file of crimes. Without `time`, the date includes it; without `category`, all rows count.
_REQUIRED = ("felony_id", "date", "lat", "lng")
_OPTIONAL = ("time", "category", "offense")
_NO_VALUE = ("", "NA", "(null)")  # empty cells in older and newer exports of the city portal
_BLOCK_BYTES = 8 * 2**20  # source text held at a time, which bounds the memory for files of 2 GB
_UNREADABLE = "unreadable start"
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


def read_felonies(path: Path, entry: CatalogEntry, *, category: str, time_zone: str, ledger: Ledger) -> pd.DataFrame:
    """Read the complaints of one category with known start and location, in a stream.

    A local time in the repeated hour means its first occurrence; a nonexistent time becomes the next one that exists.

    Parameters
    ----------
    path : Path
        CSV file such as NYPD Complaint Data (24 or 35 columns), plain or compressed.
    entry : CatalogEntry
        Names of the columns felony_id, date, lat, lng, and optionally time, category, and offense; the codes of the
        categories; and the format of the date and the time.
    category : str
        Value of the category, such as FELONY.
    time_zone : str
        IANA time zone of the clock times in the file.
    ledger : Ledger
        Ledger for the rows read, and the rows dropped per reason.

    Returns
    -------
    DataFrame
        `FELONIES`, sorted by start, then by complaint number as a number.

    Raises
    ------
    SourceError
        If the file or the entry lacks a column, the file is not CSV, or no start can be read.
    """
    names = _columns_of(path, entry)
    unreadable: list[str] = []
    parts = [
        _felonies(rows, entry, ledger, unreadable, category=category, time_zone=time_zone)
        for rows in _text_batches(path, names, ledger)
    ]
    felonies = pd.concat([FELONIES.empty(), *parts], ignore_index=True)
    if felonies.empty and unreadable:
        raise SourceError(
            f"{path}: none of {ledger.dropped[_UNREADABLE]} starts can be read, the first {unreadable[0]!r}; expected "
            f"the form {entry.time_format}; set time_format of its entry in data_catalog.yaml"
        )
    repeated = int(felonies["felony_id"].duplicated().sum())
    if repeated:
        ledger.note("complaint number repeats that of an earlier row", repeated)
    number = pd.to_numeric(felonies["felony_id"].str.extract(r"^([0-9]{1,15})", expand=False))
    felonies = felonies.assign(_number=number).sort_values(
        ["started_at_utc", "_number", "felony_id"], ignore_index=True, kind="stable"
    )
    return FELONIES.conform(felonies)


def _columns_of(path: Path, entry: CatalogEntry) -> dict[str, str]:
    """Return the name in the file of each column, and reject a file without one before reading gigabytes of it."""
    if missing := [name for name in _REQUIRED if name not in entry.columns]:
        raise SourceError(
            f"the entry of {path} ({entry.title}) does not name {', '.join(missing)}; expected {', '.join(_REQUIRED)}, "
            f"and optionally {', '.join(_OPTIONAL)}; add them to its columns in data_catalog.yaml"
        )
    header = _header_of(path)
    return {
        name: require_column(path, entry.columns[name], header)
        for name in (*_REQUIRED, *_OPTIONAL)
        if name in entry.columns
    }


def _felonies(
    rows: pa.Table, entry: CatalogEntry, ledger: Ledger, unreadable: list[str], *, category: str, time_zone: str
) -> pd.DataFrame:
    selected = rows
    if "category" in rows.column_names:
        codes = entry.codes.get("category", {})
        wanted = [theirs for theirs, ours in {category: category, **codes}.items() if ours == category]
        selected = rows.filter(pc.is_in(rows["category"], pa.array(wanted, pa.string())))
    ledger.drop(len(rows) - len(selected), why=f"category is not {category}")
    frame = selected.to_pandas()
    frame = ledger.keep(frame, frame["felony_id"] != "", why="no complaint number")
    frame = _with_location(frame, ledger)
    text = frame["date"] + " " + frame["time"] if "time" in frame else frame["date"]
    frame["started_at_utc"] = _start(text, entry.time_format, time_zone)
    readable = frame["started_at_utc"].notna()
    unreadable += text[~readable].head(1).tolist()
    frame = ledger.keep(frame, readable, why=_UNREADABLE)
    offense = frame["offense"] if "offense" in frame else pd.Series("", index=frame.index, dtype="str")
    frame["offense"] = offense.mask(offense.isin(_NO_VALUE))
    return FELONIES.conform(frame)


def _text_batches(path: Path, names: dict[str, str], ledger: Ledger) -> Iterator[pa.Table]:
    """Yield batches of a large CSV file as trimmed text, under our names.

    The ledger counts all rows, and drops those with the wrong number of cells, such as a truncated last line.
    """
    ragged: list[int] = []

    def skip(row: Any) -> str:
        ragged.append(row.actual_columns)  # Arrow calls this from threads of its parser: do no more than append
        return "skip"

    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(dict.fromkeys(names.values())),
        column_types=dict.fromkeys(names.values(), pa.string()),
        strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    read = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES)
    try:
        with (
            pa.input_stream(str(path)) as file,
            pa.PythonFile(_Utf8(file), mode="r") as stream,
            pyarrow.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
        ):
            for batch in reader:
                ledger.rows_in += len(batch)
                yield pa.table({ours: pc.utf8_trim_whitespace(batch[theirs]) for ours, theirs in names.items()})
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not a CSV file in UTF-8: {error}") from error
    ledger.rows_in += len(ragged)
    ledger.drop(len(ragged), why="wrong number of cells")


class _Utf8:
    """Stream that is checked to be UTF-8. Arrow checks cells only, and cannot pass on other rows that are not."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.closed = False

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._decoder.decode(data, final=size > 0 and not data)
        return data

    def close(self) -> None:
        self.closed = True


def _header_of(path: Path) -> pd.Index[str]:
    try:
        with pa.input_stream(str(path)) as stream:
            first = stream.read(2**16).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    return pd.Index(next(csv.reader(first.splitlines()), []))


def _with_location(frame: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """Keep rows with valid coordinates; (0, 0) stands for an unknown location."""
    lat, lng = (pd.to_numeric(frame[name], errors="coerce").astype("float64") for name in ("lat", "lng"))
    known = lat.between(-90, 90) & lng.between(-180, 180) & ~((lat == 0) & (lng == 0))
    return ledger.keep(frame.assign(lat=lat, lng=lng), known, why="no position")


def _start(text: pd.Series[str], time_format: str, time_zone: str) -> pd.Series[pd.Timestamp]:
    """Return instants of local times; missing if unreadable, such as 24:00:00, or before 1900."""
    local = pd.to_datetime(text, format=time_format, errors="coerce").astype("datetime64[ms]")
    local = local.where(local.dt.year >= _FIRST_YEAR)
    daylight = np.ones(len(local), dtype=bool)  # the first occurrence of the repeated hour
    instants = local.dt.tz_localize(time_zone, ambiguous=daylight, nonexistent="shift_forward")
    return instants.dt.tz_convert("UTC").dt.as_unit("ms")

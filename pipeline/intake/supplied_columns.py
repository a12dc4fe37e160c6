"""What an annotated file says of columns that annotate computes: read on the way in, held against or instead of them.

The published annotated file was written by pandas: codes and flags may be floats (36061.0, 1.0), times carry an offset,
a missing value is an empty field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patrolscope.pipeline.contract.columns import Column
from patrolscope.pipeline.contract.tables import DIFFERENCES, METADATA, given_table
from patrolscope.pipeline.errors import ContractError
from patrolscope.pipeline.intake.raw_csv import Header, unknown_columns
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study

FOLDER = "given"
CONF_UNREADABLE = "conf_unreadable"
KEPT = "kept_"  # begins the name of a column whose meaning is not known
EXAMPLES = 100  # differences of a column that are kept, a file
# Two floats are the same number: as far apart as a text of 12 digits, or a projection on another machine, puts them.
RELATIVE, ABSOLUTE = 1e-9, 1e-6  # the absolute one in the unit of the column: feet, or 1

_DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_WHOLE = r"^[+-]?[0-9]{1,9}(\.0*)?$"
_WHOLE_CODE = r"^([0-9]+)\.0*$"
_FLAGS = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}
# Every form that Arrow reads as a time with an offset (Postgres writes hours alone: -04), and those without one.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?(Z|[+-]\d\d(:?\d\d)?)?", re.ASCII)

Mask = npt.NDArray[np.bool_]


# Which columns of a file are read.


def columns_read(header: Header, settings: Settings, kept: Mapping[tuple[str, int], str]) -> dict[int, str]:
    """Place in the header of the columns to read as text, and our name for each.

    Parameters
    ----------
    kept : as `kept_names` gives it; empty where unknown columns are left out
    """
    published = given_table(settings.annotate.felony_windows_h).published_names()
    ours = {theirs: name for name, theirs in published.items()}
    read = {place: ours[name] for place, name in enumerate(header.columns) if name in ours}
    return {place: kept[cell] for place, cell in _unknown_cells(header) if cell in kept} | read


def kept_names(headers: Iterable[Header]) -> dict[tuple[str, int], str]:
    """Column of given/ for each unknown column of a study's files, by its name and how often that stood before it.

    The same whatever the order of the files: `kept_`, then letters, digits and underscores of the name, then a number
    where two names are left alike.
    """
    names: dict[tuple[str, int], str] = {}
    for cell in sorted({cell for header in headers for _, cell in _unknown_cells(header)}):
        stem = KEPT + (re.sub(r"[^0-9A-Za-z]+", "_", cell[0]).strip("_").lower() or "unnamed")
        name, number = stem, 1
        while name in names.values():
            number += 1
            name = f"{stem}_{number}"
        names[cell] = name
    return names


def _unknown_cells(header: Header) -> list[tuple[int, tuple[str, int]]]:
    seen: Counter[str] = Counter()
    cells = []
    for place, name in unknown_columns(header.columns):
        cells.append((place, (name, seen[name])))
        seen[name] += 1
    return cells


def absent_columns(read: Mapping[int, str], settings: Settings) -> list[str]:
    """Columns of given/ that a file lacks."""
    present = set(read.values())
    return [name for name in given_table(settings.annotate.felony_windows_h).published_names() if name not in present]


# From text to typed columns.


def typed_columns(rows: pa.Table, settings: Settings, names: Sequence[str]) -> tuple[pa.Table, Counter[str]]:
    """Columns of given/ from their text, and of how many rows a value could not be read, by column.

    A value that can not be read, or that the column may not take, is missing.
    """
    kept = tuple(name for name in names if name.startswith(KEPT))
    table = given_table(settings.annotate.felony_windows_h, kept)
    unreadable: Counter[str] = Counter()
    columns = {}
    for name in names:
        text = rows[name].combine_chunks()
        if name in kept:
            columns[name] = pc.if_else(pc.equal(text, ""), None, text)
            continue
        trimmed = pc.ascii_trim_whitespace(text)
        present = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
        columns[name] = _typed(present, table[name], settings.city.clock)
        unreadable[table[name].published] += columns[name].null_count - present.null_count
        if name == "conf":
            columns[CONF_UNREADABLE] = pc.and_(present.is_valid(), columns[name].is_null())
    schema = pa.schema([table[name].arrow_field() for name in columns])
    return pa.table(list(columns.values()), schema=schema), +unreadable


def _typed(text: pa.Array, column: Column, clock: ZoneInfo) -> pa.Array:
    """Values of a column from trimmed texts; missing where a text can not be read."""
    kind = column.arrow_field().type
    if column.kind == "float64":
        return _within(_floats(text), column)
    if column.kind == "instant":
        return _instants(text, clock).cast(kind)
    if column.kind == "wall_time":
        local = _instants(text, clock).to_pandas().dt.tz_convert(clock).dt.tz_localize(None)
        return pa.array(local, type=kind, from_pandas=True)
    # Few different values: each is read once.
    coded = text.dictionary_encode()
    values = coded.dictionary
    if column.kind == "string":
        read = pc.replace_substring_regex(values, _WHOLE_CODE, r"\1")  # a code that went through a float
    elif column.kind == "bool":
        read = pa.array([_FLAGS.get(value) for value in values.to_pylist()], type=kind)
    else:
        read = _within(_floats(pc.if_else(pc.match_substring_regex(values, _WHOLE), values, None)), column).cast(kind)
    return read.take(coded.indices)


def _floats(text: pa.Array) -> pa.Array:
    try:
        numbers = text.cast(pa.float64())
    except pa.ArrowInvalid:
        numbers = pc.if_else(pc.match_substring_regex(text, _DECIMAL), text, None).cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, None)


def _within(numbers: pa.Array, column: Column) -> pa.Array:
    low = -np.inf if column.low is None else column.low
    high = np.inf if column.high is None else column.high
    inside = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
    return pc.if_else(inside, numbers, None)


def _instants(text: pa.Array, clock: ZoneInfo) -> pa.Array:
    """Moments, milliseconds UTC; a time without an offset is by the city's clock, its first pass where it is twice."""
    moment = pa.timestamp("ms", tz="UTC")
    try:
        exact = text.cast(pa.timestamp("us", tz="UTC"))
    except pa.ArrowInvalid:
        coded = text.dictionary_encode()
        read = pa.array(
            [_instant(value, clock) for value in coded.dictionary.to_pylist()], pa.timestamp("us", tz="UTC")
        )
        exact = read.take(coded.indices)
    return pc.floor_temporal(exact, unit="millisecond").cast(moment)


def _instant(text: str, clock: ZoneInfo) -> datetime | None:
    if _TIME.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=clock)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


# For annotate.


def given_of(study: Study, metadata_file: str) -> pd.DataFrame | None:
    """What the sources say of the rows of a file of metadata/, in its order; None where no annotated file has any."""
    file = metadata_file.replace(f"{METADATA.name}/", f"{FOLDER}/", 1)
    if not study.exists(file):
        return None
    with study.fs.open(study.path(file), "rb") as handle:
        table = pq.read_table(handle, partitioning=None)
    nullable = {pa.bool_(): pd.BooleanDtype(), pa.int8(): pd.Int8Dtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame.assign(given=frame["given"].astype("bool"))


def without_unknown_areas(given: pd.DataFrame, areas: Sequence[str], ledger: Ledger) -> pd.DataFrame:
    """`given` with areas that the study does not have missing: nothing is known of them, nor can be estimated.

    Parameters
    ----------
    areas : codes of the study's areas
    ledger : told of the rows
    """
    unknown = given["area"].notna() & ~given["area"].isin(areas)
    if unknown.any():
        ledger.note("area: not taken from the source, as the study has no such area", int(unknown.sum()))
    return given.assign(area=given["area"].mask(unknown))


def reconcile(computed: pd.DataFrame, given: pd.DataFrame | None, *, trust: bool, ledger: Ledger) -> pd.DataFrame:
    """`computed`, with what the source says in its place where it is trusted; every other value is counted.

    Parameters
    ----------
    computed : rows of annotated/
    given : the same rows in the same order, as `given_of` gives them; None: nothing is given
    trust : a value that the source has replaces the computed one. Else the computed one stays, and where the two are
        not the same (floats: 1e-9 of the value, or 1e-6), or only one is missing, the ledger counts a difference
    ledger : told, by column, of rows taken or different

    Returns
    -------
    DataFrame like `computed`. A trusted confidence says that its image was processed; the identifier of a felony is
    missing where what is said of it comes from the source and is not what was computed

    Raises
    ------
    ContractError : the rows are not the same
    """
    if given is None:
        return computed
    differs = _differences(computed, given)
    if not trust:
        for name, rows in differs.items():
            if rows.any():
                ledger.note(f"{name}: the source differs from what was computed", int(rows.sum()))
        return computed
    columns: dict[str, Any] = {}
    for name, rows in differs.items():
        present = given[name].notna().to_numpy()
        ledger.note(f"{name}: taken from the source", int(present.sum()))
        values = given[name].where(present, computed[name]).astype(computed[name].dtype)
        columns[name] = values.set_axis(computed.index)
        if name == "conf":
            columns["processed"] = computed["processed"] | present
        if identifier := _felony_id(name):
            known = columns.get(identifier, computed[identifier])
            columns[identifier] = known.mask(rows & present)
    return computed.assign(**columns)


def differences_of(computed: pd.DataFrame, given: pd.DataFrame | None) -> pd.DataFrame:
    """Examples of given values that are not the computed ones: `DIFFERENCES`, the first of every column."""
    parts = [DIFFERENCES.empty()]
    if given is None:
        return parts[0]
    for name, rows in _differences(computed, given).items():
        first = np.flatnonzero(rows)[:EXAMPLES]
        parts.append(
            pd.DataFrame(
                {
                    "source": computed["source"].to_numpy()[first],
                    "source_row": computed["source_row"].to_numpy()[first],
                    "column": name,
                    "given": _as_text(given[name].iloc[first]),
                    "computed": _as_text(computed[name].iloc[first]),
                }
            )
        )
    return DIFFERENCES.conform(pd.concat(parts, ignore_index=True).astype({"given": "str", "computed": "str"}))


def detections_from(given: pd.DataFrame, ledger: Ledger, *, prediction_above: float) -> pd.DataFrame:
    """Detections of a study without label files: what its annotated file says of them.

    Parameters
    ----------
    prediction_above : confidence above which a box is a prediction

    Returns
    -------
    DataFrame indexed like `given`: `processed` (the row stands in an annotated file and its conf, if it has one, can be
    read: its image was looked at, and we know with what result), `score`
    (missing: no box), `score_any` (missing: the file does not tell it) and `has_prediction` (where the flag is missing,
    whether the score says so)
    """
    unreadable = given[CONF_UNREADABLE].fillna(False).astype("bool")
    processed = given["given"] & ~_lacks(given, "conf") & ~unreadable
    ledger.note("detections taken from the annotated file", int(processed.sum()))
    return pd.DataFrame(
        {
            "processed": processed,
            "score": given["conf"].astype("float64").where(processed),
            "score_any": np.nan,
            "has_prediction": given["has_prediction"].fillna(given["conf"] > prediction_above).astype("bool")
            & processed,
        },
        index=given.index,
    )


def _lacks(given: pd.DataFrame, name: str) -> pd.Series[bool]:
    """Whether the file of each row has no such column."""
    lacking = [text for text in given["absent"].unique() if name in text.split(",")]
    return given["absent"].isin(lacking)


def _differences(computed: pd.DataFrame, given: pd.DataFrame) -> dict[str, Mask]:
    """(n,) of every column that can be given, in order: whether the source says something else."""
    key = ["source", "source_row"]
    if len(computed) != len(given) or not np.array_equal(computed[key].to_numpy(), given[key].to_numpy()):
        raise ContractError(
            f"{len(given)} given rows are not those of the {len(computed)} computed ones, in order: run `patrolscope "
            f"ingest` again"
        )
    names = [name for name in given.columns if name in computed.columns and name not in key]
    return {
        name: given["given"].to_numpy() & ~_lacks(given, name).to_numpy() & ~_same(given[name], computed[name])
        for name in names
    }


def _same(given: pd.Series[Any], computed: pd.Series[Any]) -> Mask:
    absent, missing = given.isna().to_numpy(), computed.isna().to_numpy()
    if given.dtype.kind == "f":
        ours, theirs = computed.to_numpy(), given.to_numpy()
        equal = np.abs(theirs - ours) <= np.maximum(RELATIVE * np.abs(ours), ABSOLUTE)
    else:
        equal = (given.reset_index(drop=True) == computed.reset_index(drop=True)).fillna(False).to_numpy(dtype=bool)
    return np.where(absent | missing, absent == missing, equal)


def _felony_id(name: str) -> str | None:
    """Identifier of the felony that a column is about."""
    found = re.match(r"felony_\d+h_", name)
    return f"{found[0]}id" if found else None


def _as_text(values: pd.Series[Any]) -> list[str | None]:
    return [None if pd.isna(value) else str(value) for value in values]

"""Supplied columns: values of an annotated CSV for columns that `annotate` computes.

`ingest` reads them, and `annotate` compares them with its own values, or uses them instead. The published file was
written by pandas: codes and flags can be floats (36061.0, 1.0), times have an offset, and missing values are empty.
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

from patrolscope.pipeline.contract.columns import Column
from patrolscope.pipeline.contract.tables import DIFFERENCES, METADATA, supplied_table
from patrolscope.pipeline.errors import ContractError
from patrolscope.pipeline.intake.raw_csv import DECIMAL, Header, unknown_columns
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study

FOLDER = "supplied"
CONF_UNREADABLE = "conf_unreadable"
KEPT = "kept_"  # prefix of columns with unknown meaning
EXAMPLES = 100  # stored differences per column and file
# Tolerance of equal floats: the effect of 12 digits of text, or of a projection on another machine.
RELATIVE, ABSOLUTE = 1e-9, 1e-6  # ABSOLUTE in the unit of the column: feet, or 1

_WHOLE = r"^[+-]?[0-9]{1,9}(\.0*)?$"
_WHOLE_CODE = r"^([0-9]+)\.0*$"
_FLAGS = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}
# All forms that Arrow reads as a time with offset (also -04, as in Postgres), and the same without offset.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?(Z|[+-]\d\d(:?\d\d)?)?", re.ASCII)

Mask = npt.NDArray[np.bool_]


# Columns of a file.


def columns_read(header: Header, settings: Settings, kept: Mapping[tuple[str, int], str]) -> dict[int, str]:
    """Return our name for each column to read as text, by its position in the header.

    Parameters
    ----------
    header : Header
        Header of the file.
    settings : Settings
        Settings of the study.
    kept : mapping
        Names of unknown columns from `kept_names`; empty to omit them.
    """
    published = supplied_table(settings.annotate.felony_windows_h).published_names()
    ours = {theirs: name for name, theirs in published.items()}
    read = {position: ours[name] for position, name in enumerate(header.columns) if name in ours}
    return {position: kept[key] for position, key in _unknown_keys(header) if key in kept} | read


def kept_names(headers: Iterable[Header]) -> dict[tuple[str, int], str]:
    """Return the column of supplied/ for each unknown column, by its name and its earlier occurrences in the header.

    A column is called `kept_`, followed by the letters, digits, and underscores of its name, and a number if needed for
    uniqueness. The order of the files does not matter.
    """
    names: dict[tuple[str, int], str] = {}
    for key in sorted({key for header in headers for _, key in _unknown_keys(header)}):
        stem = KEPT + (re.sub(r"[^0-9A-Za-z]+", "_", key[0]).strip("_").lower() or "unnamed")
        name, number = stem, 1
        while name in names.values():
            number += 1
            name = f"{stem}_{number}"
        names[key] = name
    return names


def _unknown_keys(header: Header) -> list[tuple[int, tuple[str, int]]]:
    seen: Counter[str] = Counter()
    keys = []
    for position, name in unknown_columns(header.columns):
        keys.append((position, (name, seen[name])))
        seen[name] += 1
    return keys


def missing_columns(read: Mapping[int, str], settings: Settings) -> list[str]:
    """Return the columns of supplied/ that a file lacks; `read` is the result of `columns_read`."""
    present = set(read.values())
    table = supplied_table(settings.annotate.felony_windows_h)
    return [name for name in table.published_names() if name not in present]


# From text to typed columns.


def typed_columns(rows: pa.Table, settings: Settings, names: Sequence[str]) -> tuple[pa.Table, Counter[str]]:
    """Convert text columns to the types of supplied/.

    Parameters
    ----------
    rows : Table
        Text columns.
    settings : Settings
        Settings of the study.
    names : sequence of str
        Columns to convert.

    Returns
    -------
    columns : Table
        Typed columns; unreadable or invalid values are missing.
    unreadable : Counter
        Unreadable or invalid values, by published name of the column.
    """
    kept = tuple(name for name in names if name.startswith(KEPT))
    table = supplied_table(settings.annotate.felony_windows_h, kept)
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
    """Convert trimmed texts to the type of a column; unreadable values are missing."""
    kind = column.arrow_field().type
    if column.kind == "float64":
        return _within(_floats(text), column)
    if column.kind == "instant":
        return _instants(text, clock).cast(kind)
    if column.kind == "wall_time":
        local = _instants(text, clock).to_pandas().dt.tz_convert(clock).dt.tz_localize(None)
        return pa.array(local, type=kind, from_pandas=True)
    # There are few distinct values, so convert each once.
    coded = text.dictionary_encode()
    values = coded.dictionary
    if column.kind == "string":
        read = pc.replace_substring_regex(values, _WHOLE_CODE, r"\1")  # a code that was once a float
    elif column.kind == "bool":
        read = pa.array([_FLAGS.get(value) for value in values.to_pylist()], type=kind)
    else:
        read = _within(_floats(pc.if_else(pc.match_substring_regex(values, _WHOLE), values, None)), column).cast(kind)
    return read.take(coded.indices)


def _floats(text: pa.Array) -> pa.Array:
    try:
        numbers = text.cast(pa.float64())
    except pa.ArrowInvalid:
        numbers = pc.if_else(pc.match_substring_regex(text, DECIMAL), text, None).cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, None)


def _within(numbers: pa.Array, column: Column) -> pa.Array:
    low = -np.inf if column.low is None else column.low
    high = np.inf if column.high is None else column.high
    inside = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
    return pc.if_else(inside, numbers, None)


def _instants(text: pa.Array, clock: ZoneInfo) -> pa.Array:
    """Convert to milliseconds UTC; times without offset are local, and mean the first occurrence if repeated."""
    try:
        exact = text.cast(pa.timestamp("us", tz="UTC"))
    except pa.ArrowInvalid:
        coded = text.dictionary_encode()
        read = pa.array(
            [_instant(value, clock) for value in coded.dictionary.to_pylist()], pa.timestamp("us", tz="UTC")
        )
        exact = read.take(coded.indices)
    return pc.floor_temporal(exact, unit="millisecond").cast(pa.timestamp("ms", tz="UTC"))


def _instant(text: str, clock: ZoneInfo) -> datetime | None:
    if _TIME.fullmatch(text) is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=clock)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


# Use by annotate.


def read_supplied(study: Study, metadata_file: str) -> pd.DataFrame | None:
    """Read the supplied values of the rows of a file of metadata/, in its order; None if there are none."""
    file = metadata_file.replace(f"{METADATA.name}/", f"{FOLDER}/", 1)
    if not study.exists(file):
        return None
    table = study.read_arrow(file)
    nullable = {pa.bool_(): pd.BooleanDtype(), pa.int8(): pd.Int8Dtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame.assign(supplied=frame["supplied"].astype("bool"))


def without_unknown_areas(supplied: pd.DataFrame, areas: Sequence[str], ledger: Ledger) -> pd.DataFrame:
    """Remove supplied areas that the study does not have.

    Parameters
    ----------
    supplied : DataFrame
        Supplied values.
    areas : sequence of str
        Codes of the study's areas.
    ledger : Ledger
        Ledger for the count of rows.
    """
    unknown = supplied["area"].notna() & ~supplied["area"].isin(areas)
    if unknown.any():
        ledger.note("area: not taken from the source, as the study has no such area", int(unknown.sum()))
    return supplied.assign(area=supplied["area"].mask(unknown))


def reconcile(computed: pd.DataFrame, supplied: pd.DataFrame | None, *, trust: bool, ledger: Ledger) -> pd.DataFrame:
    """Reconcile computed columns with supplied ones, and count the differences.

    Parameters
    ----------
    computed : DataFrame
        Rows of annotated/.
    supplied : DataFrame, optional
        Supplied values of the same rows in the same order, from `read_supplied`.
    trust : bool
        Whether supplied values replace computed ones. Otherwise the computed values stay, and the ledger counts
        differences: values beyond the tolerance (floats: 1e-9 of the value, or 1e-6), or only one of the two missing.
    ledger : Ledger
        Ledger for the count of rows taken or different, by column.

    Returns
    -------
    DataFrame
        Columns of `computed`. An image with a trusted confidence is processed. The identifier of a felony is missing
        if a trusted value about the felony differs from the computed one.

    Raises
    ------
    ContractError
        If the rows differ.
    """
    if supplied is None:
        return computed
    differs = _differences(computed, supplied)
    if not trust:
        for name, rows in differs.items():
            if rows.any():
                ledger.note(f"{name}: the source differs from what was computed", int(rows.sum()))
        return computed
    columns: dict[str, Any] = {}
    for name, rows in differs.items():
        present = supplied[name].notna().to_numpy()
        ledger.note(f"{name}: taken from the source", int(present.sum()))
        values = supplied[name].where(present, computed[name]).astype(computed[name].dtype)
        columns[name] = values.set_axis(computed.index)
        if name == "conf":
            columns["processed"] = computed["processed"] | present
        if identifier := _felony_id(name):
            known = columns.get(identifier, computed[identifier])
            columns[identifier] = known.mask(rows & present)
    return computed.assign(**columns)


def differences_of(computed: pd.DataFrame, supplied: pd.DataFrame | None) -> pd.DataFrame:
    """Return the first supplied values of each column that differ from the computed ones: `DIFFERENCES`."""
    parts = [DIFFERENCES.empty()]
    if supplied is None:
        return parts[0]
    for name, rows in _differences(computed, supplied).items():
        first = np.flatnonzero(rows)[:EXAMPLES]
        parts.append(
            pd.DataFrame(
                {
                    "source": computed["source"].to_numpy()[first],
                    "source_row": computed["source_row"].to_numpy()[first],
                    "column": name,
                    "supplied": _as_text(supplied[name].iloc[first]),
                    "computed": _as_text(computed[name].iloc[first]),
                }
            )
        )
    return DIFFERENCES.conform(pd.concat(parts, ignore_index=True).astype({"supplied": "str", "computed": "str"}))


def supplied_detections(supplied: pd.DataFrame, ledger: Ledger, *, prediction_above: float) -> pd.DataFrame:
    """Return the detections of an annotated file, for studies without other detections.

    Parameters
    ----------
    supplied : DataFrame
        Supplied values.
    ledger : Ledger
        Ledger for the count of detections.
    prediction_above : float
        Confidence above which a box is a prediction.

    Returns
    -------
    DataFrame
        Indexed like `supplied`: `processed` (the row is from an annotated file with a column conf, and its value is
        empty or readable), `score` (missing without a box), `score_any` (missing, as the file lacks it), and
        `has_prediction` (by the score if the flag is missing).
    """
    unreadable = supplied[CONF_UNREADABLE].fillna(False).astype("bool")
    processed = supplied["supplied"] & ~_lacks(supplied, "conf") & ~unreadable
    ledger.note("detections taken from the annotated file", int(processed.sum()))
    return pd.DataFrame(
        {
            "processed": processed,
            "score": supplied["conf"].astype("float64").where(processed),
            "score_any": np.nan,
            "has_prediction": supplied["has_prediction"].fillna(supplied["conf"] > prediction_above).astype("bool")
            & processed,
        },
        index=supplied.index,
    )


def _lacks(supplied: pd.DataFrame, name: str) -> pd.Series[bool]:
    """Return whether the file of each row lacks a column."""
    lacking = [text for text in supplied["missing_columns"].unique() if name in text.split(",")]
    return supplied["missing_columns"].isin(lacking)


def _differences(computed: pd.DataFrame, supplied: pd.DataFrame) -> dict[str, Mask]:
    """Return whether the supplied value of each row differs from the computed one, by column."""
    key = ["source", "source_row"]
    if len(computed) != len(supplied) or not np.array_equal(computed[key].to_numpy(), supplied[key].to_numpy()):
        raise ContractError(
            f"{len(supplied)} supplied rows do not match {len(computed)} computed rows in order; "
            "run `patrolscope ingest`"
        )
    from_annotated = supplied["supplied"].to_numpy()
    names = [name for name in supplied.columns if name in computed.columns and name not in key]
    return {
        name: from_annotated & ~_lacks(supplied, name).to_numpy() & ~_same(supplied[name], computed[name])
        for name in names
    }


def _same(supplied: pd.Series[Any], computed: pd.Series[Any]) -> Mask:
    no_supplied, no_computed = supplied.isna().to_numpy(), computed.isna().to_numpy()
    if supplied.dtype.kind == "f":
        ours, theirs = computed.to_numpy(), supplied.to_numpy()
        equal = np.abs(theirs - ours) <= np.maximum(RELATIVE * np.abs(ours), ABSOLUTE)
    else:
        equal = (supplied.reset_index(drop=True) == computed.reset_index(drop=True)).fillna(False).to_numpy(dtype=bool)
    return np.where(no_supplied | no_computed, no_supplied == no_computed, equal)


def _felony_id(name: str) -> str | None:
    """Return the identifier column of the felony that a column describes."""
    found = re.match(r"felony_\d+h_", name)
    return f"{found[0]}id" if found else None


def _as_text(values: pd.Series[Any]) -> list[str | None]:
    return [None if pd.isna(value) else str(value) for value in values]

"""Order of the rows of metadata/, and the columns of metadata/ and supplied/, computed on Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.contract.tables import METADATA, QUARANTINE, supplied_table
from patrolscope.pipeline.geography.curve_order import hilbert_key
from patrolscope.pipeline.intake.supplied_columns import KEPT
from patrolscope.pipeline.study.ledger import Ledger

STAGED = Table(
    "staged",
    row="one image, as read from a block of a raw file",
    key=("row",),
    columns=(
        *(METADATA[name] for name in ("image_ref", "captured_at_utc", "lat", "lng", "split")),
        Column("row", "int64", "row in the block, the first is 0", low=0),
    ),
    made_by="patrolscope ingest",
)
STAGED_BAD = Table(
    "staged_bad",
    row="one rejected line of a block",
    key=("row",),
    columns=(STAGED["row"], QUARANTINE["reason"], QUARANTINE["text"]),
    made_by="patrolscope ingest",
)


def staged_rows(rows: pa.Table, supplied: pa.Table, rows_before: int) -> pa.Table:
    """Return parsed rows as `STAGED`, with their supplied columns, numbered from `rows_before`.

    Parameters
    ----------
    rows : Table
        Parsed rows.
    supplied : Table
        Their supplied columns.
    rows_before : int
        Number of the first row.
    """
    columns = {
        "captured_at_utc": rows["timestamp"].cast(pa.timestamp("ms", tz="UTC")),
        "row": pc.add(rows["row"], rows_before),
    }
    schema = STAGED.arrow_schema()
    arrays = [columns[name] if name in columns else rows[name] for name in schema.names]
    return pa.table([*arrays, *supplied.columns], schema=pa.schema([*schema, *supplied.schema]))


def rows_in_slice(batch: pa.RecordBatch, work: dict[str, Any]) -> pa.RecordBatch:
    """Return the rows of a slice of a day, as `plan_arrange` describes it."""
    time_ms = batch["captured_at_utc"].view(pa.int64()).to_numpy()
    mask = (time_ms >= work["from_ms"]) & (time_ms < work["until_ms"])
    if work["shares"] > 1:
        mask &= _share_of(batch, work["shares"]) == work["share"]
    return batch if mask.all() else batch.filter(mask)


def _share_of(rows: pa.RecordBatch, shares: int) -> npt.NDArray[np.uint64]:
    """Assign each row to a share by its location and time only, so that duplicates are in the same share.

    The shares are about equal for any times and locations, even if a file has only times at midnight.
    """
    # Odd multipliers without a pattern (fractions of the golden ratio, and of the square roots of 2 and 3).
    mixed = rows["captured_at_utc"].view(pa.int64()).to_numpy().view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for name, factor in (("lat", 0x6A09E667F3BCC909), ("lng", 0xBB67AE8584CAA73B)):
        bits = (rows[name].to_numpy() + 0.0).view(np.uint64)  # 0.0 and -0.0 are the same location
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ bits) * np.uint64(factor)
    return (mixed >> np.uint64(32)) % np.uint64(shares)


def order_rows(
    staged: pa.Table, *, box: tuple[float, float, float, float], midnight_ms: int, order_hours: int, ledger: Ledger
) -> npt.NDArray[np.int64]:
    """Order the rows of a day, without duplicates.

    Rows are sorted by block of hours, position along the Hilbert curve, time, and source order. Of rows with the same
    split, location, and time, the first in source order stays: the method takes the split before it drops duplicates.

    Parameters
    ----------
    staged : Table
        `STAGED`, in one chunk. Rows with equal times are in source order.
    box : tuple of float
        West, south, east, north of the city in degrees.
    midnight_ms : int
        Start of the local day, ms since 1970 UTC.
    order_hours : int
        Length of a block in hours. The first starts at midnight; on a day of 25 hours, the last may be shorter.
    ledger : Ledger
        Ledger for the dropped duplicates.

    Returns
    -------
    (n,) int64
        Positions in `staged`.
    """
    lat, lng, split = (staged[name].to_numpy() for name in ("lat", "lng", "split"))
    time_ms = staged["captured_at_utc"].cast(pa.int64()).to_numpy() - midnight_ms
    block_ms = order_hours * 3_600_000
    time_bits = (block_ms - 1).bit_length()
    # A day has at most 25 hours, so the block and the time need 32 bits or less, besides 32 bits of the curve.
    key = (time_ms // block_ms) << (32 + time_bits)
    key |= hilbert_key(lng, lat, box).astype(np.int64) << time_bits
    key |= time_ms % block_ms
    order = np.argsort(key, kind="stable")
    repeated = _repeated(order, key[order], pd.DataFrame({"split": split, "lat": lat, "lng": lng}))
    ledger.drop(int(repeated.sum()), why="duplicate")
    return order[~repeated]


def _repeated(order: npt.NDArray[np.int64], key: npt.NDArray[np.int64], values: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return whether each row repeats an earlier one. Duplicates have equal keys, so few rows are compared."""
    same = key[1:] == key[:-1]
    candidates = np.flatnonzero(np.append(same, False) | np.append(False, same))
    repeated = np.zeros(len(order), dtype=bool)
    compared = values.take(order[candidates]).assign(key=key[candidates])
    repeated[candidates] = compared.duplicated()
    return repeated


def arrange(staged: pa.Table, order: npt.NDArray[np.int64], sources: Sequence[str]) -> pa.Table:
    """Return rows in an order as `METADATA`; the column `part` is the position of a row's source in `sources`.

    Parameters
    ----------
    staged : Table
        Rows of `STAGED`.
    order : ndarray of int64, shape (n,)
        Positions of the rows in their new order.
    sources : sequence of str
        Names of sources; the column `part` is a position among them.
    """
    rows = staged.drop_columns("row").take(order)
    columns = {"ride_id": _ride_ids(rows["image_ref"]), "source": _per_part(rows, sources, pa.string())}
    # READ has validated all values, so the contract's schema fits.
    schema = METADATA.arrow_schema()
    return pa.table([columns[name] if name in columns else rows[name] for name in schema.names], schema=schema)


def arrange_supplied(
    rows: pa.Table, order: npt.NDArray[np.int64], parts: Sequence[dict[str, Any]], windows_h: tuple[int, ...]
) -> pa.Table:
    """Return the supplied values of rows as `supplied_table`.

    Parameters
    ----------
    rows : Table
        Supplied columns of the staged rows, with `source_row` and `part`.
    order : (n,) int64
        Positions in `rows`.
    parts : sequence of dict
        Source, whether it is annotated, and missing columns of each part.
    windows_h : tuple of int
        Felony windows of the study in hours.
    """
    rows = rows.take(order)
    kept = tuple(sorted(name for name in rows.column_names if name.startswith(KEPT)))
    schema = supplied_table(windows_h, kept).arrow_schema()
    columns = {
        "source": _per_part(rows, [part["source"] for part in parts], pa.string()),
        "supplied": _per_part(rows, [part["annotated"] for part in parts], pa.bool_()),
        "missing_columns": _per_part(rows, [part["missing_columns"] for part in parts], pa.string()),
    }
    for field in schema:
        if field.name in rows.column_names:
            columns[field.name] = rows[field.name]
        elif field.name not in columns:
            columns[field.name] = pa.nulls(rows.num_rows, field.type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _per_part(rows: pa.Table, values: Sequence[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """Return the value of each row's part."""
    return pc.take(pa.array(values, type=kind), rows["part"])


def _ride_ids(image_refs: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the second part of each ride/<ride>/<file>."""
    if not len(image_refs):
        return image_refs
    start = len("ride/")
    # Nearly always, all are as long as the first, and slicing takes a tenth of the time of splitting.
    stop = image_refs[0].as_py().encode().index(b"/", start)
    raw = image_refs.cast(pa.binary())
    if pc.all(pc.equal(pc.binary_slice(raw, stop, stop + 1), b"/")).as_py():
        return pc.binary_slice(raw, start, stop).cast(pa.string())
    return pc.list_element(pc.split_pattern(image_refs, "/"), 1)

"""From raw metadata files to metadata/: three stages.

READ takes blocks of the files apart: rows that can be used go to staging/ by day, lines that can not are put aside
with their reason. A block does not know how many lines stand before it, so rows are numbered in the block. SET_ASIDE
and ARRANGE know it from the records of READ: they write quarantine/ and metadata/ with the line's place in its file.
Nothing in the result depends on where the blocks were cut.

Rows stay in Arrow from the parser to the file. What is staged is in Arrow's own format, as large as the source and
written in a third of the time that Parquet takes; a record batch holds rows of one day.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import IO, Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.contract.tables import GIVEN, METADATA, QUARANTINE, given_table
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.geography.curve_order import ROW_GROUP_ROWS, hilbert_key
from patrolscope.pipeline.intake.raw_csv import (
    BEYOND_BYTES,
    COLUMNS,
    PIECE_BYTES,
    SPLIT_OF_ANNOTATED,
    Limits,
    cut_lines,
    owned_lines,
    packed_lines,
    read_rows,
    unknown_columns,
)
from patrolscope.pipeline.intake.raw_files import RawFile, identity, raw_files
from patrolscope.pipeline.intake.supplied_columns import KEPT, absent_columns, columns_read, kept_names, typed_columns
from patrolscope.pipeline.study.adopt import adopt as adopt_settings
from patrolscope.pipeline.study.config import Period, Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.remote import remote_errors
from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint

STAGED_FOLDER = "staging/metadata"
BAD_FOLDER = "staging/quarantine"
_SOUGHT = ("captured_at_utc", "lat", "lng", "split")  # whose ranges a reader asks the row groups for
# Encodings by what a column is: measurements and rising numbers; the others repeat themselves, but for image_ref. A day
# of metadata/ is 14 MB (13 with zstd, and 18 with neither), written and read in the shortest time.
_ENCODINGS = {
    pa.float64(): "BYTE_STREAM_SPLIT",
    pa.int64(): "DELTA_BINARY_PACKED",
    pa.timestamp("ms"): "DELTA_BINARY_PACKED",
    pa.timestamp("ms", tz="UTC"): "DELTA_BINARY_PACKED",
}
# Rows are counted by quarter of an hour since local midnight: the finest that a day can be cut to.
BIN_MS = 15 * 60 * 1000
# A slice has fewer rows where more columns are read as text: a million rows of eight texts are 0.4 GB, and held twice.
TEXTS_A_SLICE = 8
_BINS_A_DAY = 256  # more than the longest day has

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
    row="one line of a block that could not be used",
    key=("row",),
    columns=(STAGED["row"], QUARANTINE["reason"], QUARANTINE["text"]),
    made_by="patrolscope ingest",
)


# The settings.


def adopt(root: str, *, sources: Sequence[str], trust: bool | None, keep_unknown: bool | None) -> list[str]:
    """Write what a command asks for to study.yaml; None, or no sources, leave what is there.

    Returns
    -------
    A line that says what has changed, or none

    Raises
    ------
    SettingsError : there is no study, and no sources to make one for
    SourceError : the sources can not serve; nothing is written then
    StudyLockedError : a run is at work on the study
    """
    changes: dict[str, dict[str, Any]] = {
        "sources": {"metadata": tuple(sources) or None},
        "ingest": {"trust": trust, "keep_unknown": keep_unknown},
    }
    return adopt_settings(root, changes, may_make=bool(sources), check=raw_files if sources else None)


# Days.


@dataclass(frozen=True)
class Calendar:
    """The study's local days."""

    days: tuple[date, ...]
    midnights_ms: npt.NDArray[np.int64]  # (days + 1,) when each begins and the last ends, ms since 1970 UTC

    @classmethod
    def of(cls, period: Period, clock: ZoneInfo) -> Calendar:
        """Days of a period by a city's clock; a day has 23 to 25 hours."""
        count = (period.end - period.start).days + 1
        days = [period.start + timedelta(days=day) for day in range(count + 1)]
        starts = [datetime.combine(day, time(), clock).timestamp() for day in days]
        return cls(tuple(days[:-1]), (np.array(starts) * 1000).astype(np.int64))

    def bins(self, timestamp_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) number of the day times `_BINS_A_DAY`, plus the quarter of an hour in it."""
        day = np.searchsorted(self.midnights_ms, timestamp_ms, side="right") - 1
        return day * _BINS_A_DAY + (timestamp_ms - self.midnights_ms[day]) // BIN_MS


def limits_of(settings: Settings) -> Limits:
    """What a row of the study can hold."""
    box = settings.city.bounds
    midnights = Calendar.of(settings.period, settings.city.clock).midnights_ms
    return Limits((box.west, box.south, box.east, box.north), int(midnights[0]), int(midnights[-1]))


# READ: blocks of raw files to staged rows and bad lines.


def plan_read(study: Study) -> list[Shard]:
    """One shard a block of every raw file, in source order: by the numbers in the file's name, then the name.

    Raises
    ------
    SourceError : there is no file, two have the same name, or one has another header
    """
    settings = study.settings
    files = raw_files(study)
    kept = kept_names(source.header for source in files) if settings.ingest.keep_unknown else {}
    given = given_table(settings.annotate.felony_windows_h).fingerprint()
    rules = fingerprint(settings.city.bounds.model_dump(), settings.city.time_zone, settings.period.model_dump())
    return [
        Shard(
            name=f"{quote(source.name, safe='')}-{number:05d}",
            work={
                "source": source.name,
                "path": source.path,
                "bytes": source.bytes,
                "modified": source.modified,
                "packed": source.packed,
                "columns": source.header.columns,
                "texts": sorted(columns_read(source.header, settings, kept).items()),
                "annotated": source.header.annotated,
                "first": source.header.end,
                "start": start,
                "stop": stop,
            },
            size=stop - start,
            made_from=fingerprint(rules, given) if source.header.annotated else rules,
        )
        for source in files
        for number, (start, stop) in enumerate(_blocks(source, settings.ingest.block_bytes))
    ]


def _blocks(source: RawFile, block_bytes: int) -> Iterator[tuple[int, int]]:
    first = source.header.end
    if source.packed or source.bytes == first:
        yield 0, source.bytes  # can not be cut; or nothing to cut
        return
    for start in range(first, source.bytes, block_bytes):
        yield start, min(start + block_bytes, source.bytes)


def process_read(study: Study, shard: Shard) -> Output:
    """Stage the rows of one block by local day, and its bad lines.

    Raises
    ------
    SourceError : the file can not be read, or is another one than when the work was planned
    """
    work = shard.work
    calendar = Calendar.of(study.settings.period, study.settings.city.clock)
    limits = limits_of(study.settings)
    texts = dict(work["texts"])
    files: list[str] = []
    staged: list[tuple[str, dict[str, list[int]]]] = []
    reasons: Counter[str] = Counter()
    unreadable: Counter[str] = Counter()
    lines = rows_out = 0
    for piece, text in enumerate(_texts(study, work)):
        read = read_rows(text, work["columns"], limits, texts)
        leaf = f"{shard.name}-{piece:05d}"
        if read.rows.num_rows:
            file = f"{STAGED_FOLDER}/{leaf}.arrow"
            given, failed = typed_columns(read.rows, study.settings, list(texts.values()))
            unreadable += failed
            staged.append((file, _write_staged(study, file, _staged(read.rows, given, lines), calendar)))
            files.append(file)
            rows_out += read.rows.num_rows
        if len(read.bad):
            reasons.update(read.bad["reason"])
            bad = read.bad.assign(row=read.bad["row"] + lines)
            files.append(study.write(STAGED_BAD, bad, f"{BAD_FOLDER}/{leaf}.parquet"))
        lines += read.lines
    ledger = Ledger("read", lines)
    for reason, count in sorted(reasons.items()):
        ledger.drop(count, why=reason)
    if not work["columns"]:
        ledger.note(f"{work['source']}: empty file", 1)
    elif not lines and work["start"] == 0:
        ledger.note(f"{work['source']}: a header and no rows", 1)
    _note_columns(ledger, work, lines)
    for name, count in sorted(unreadable.items()):
        ledger.note(f"{name} can not be read: missing", count)
    absent = absent_columns(texts, study.settings)
    facts = {"lines": lines, "staged": staged, "annotated": work["annotated"], "absent": absent, "texts": len(texts)}
    return Output(tuple(files), lines, rows_out, (ledger.close(rows_out),), facts)


def _note_columns(ledger: Ledger, work: dict[str, Any], lines: int) -> None:
    """Say which columns of a file are not read, kept as they are, or taken for granted."""
    texts = dict(work["texts"])
    unknown = unknown_columns(work["columns"])
    for place, name in unknown:
        if not texts.get(place, KEPT).startswith(KEPT):
            continue  # about a felony window that this study has, and the published file not
        said = f"column kept as {texts[place]}" if place in texts else "column not used"
        ledger.note(f"{said}: {name or '(no name)'}", lines)
    if work["annotated"]:
        unread = len(work["columns"]) - len({*texts, *dict(unknown)}) - len(set(COLUMNS).intersection(work["columns"]))
        ledger.note(f"annotated file: {unread} published columns not read", lines)
        if "split" not in work["columns"]:
            ledger.note(f"annotated file without the column split: taken as {SPLIT_OF_ANNOTATED}", lines)


def _texts(study: Study, work: dict[str, Any]) -> Iterator[Iterator[bytes | memoryview]]:
    """Whole lines of a block, in pieces; of a packed file as many blocks' worth as it holds."""
    fs, place = fsspec.core.url_to_fs(study.resolve(work["path"]))
    start, stop, first, end = (work[name] for name in ("start", "stop", "first", "bytes"))
    with _readable(place):
        if identity(fs, place) != (end, work["modified"]):
            raise SourceError(f"{place} has changed since this run began: start it again when the file is complete")
        with fs.open(place, "rb", compression="gzip" if work["packed"] else None) as file:
            if work["packed"]:
                file.read(first)
                for text in packed_lines(file, study.settings.ingest.block_bytes):
                    yield cut_lines(text)
            elif start >= first:
                yield _pieces(file, start, stop, first=first, end=end, where=place)


def _pieces(file: IO[bytes], start: int, stop: int, *, first: int, end: int, where: str) -> Iterator[memoryview]:
    """A piece holds until the next one is asked for."""
    # One buffer for all pieces but the first and the last. Dask has the allocator give memory back at once; a new one
    # for every piece costs as much as half of the parsing.
    buffer = bytearray(1 + PIECE_BYTES + BEYOND_BYTES)

    def read(since: int, until: int) -> bytes | bytearray:
        file.seek(since)
        if until - since == len(buffer) == file.readinto(buffer):  # type: ignore[attr-defined]
            return buffer
        file.seek(since)
        return file.read(until - since)

    for at in range(start, stop, PIECE_BYTES):
        with _readable(where):
            piece = owned_lines(read, at, min(at + PIECE_BYTES, stop), first=first, end=end)
        yield piece


@contextmanager
def _readable(place: str) -> Iterator[None]:
    try:
        yield
    except remote_errors(EOFError, zlib.error) as error:
        raise SourceError(f"{place} can not be read, or is damaged: {error}. Restore it and start again") from error


def _staged(rows: pa.Table, given: pa.Table, lines_before: int) -> pa.Table:
    columns = {
        "captured_at_utc": rows["timestamp"].cast(pa.timestamp("ms", tz="UTC")),
        "row": pc.add(rows["row"], lines_before),
    }
    schema = STAGED.arrow_schema()
    arrays = [columns[name] if name in columns else rows[name] for name in schema.names]
    return pa.table([*arrays, *given.columns], schema=pa.schema([*schema, *given.schema]))


def _write_staged(study: Study, file: str, rows: pa.Table, calendar: Calendar) -> dict[str, list[int]]:
    """Write rows by day, in the order of the source.

    Returns
    -------
    Of each day: its first batch in the file and the one after its last; its first quarter of an hour with rows; the
    rows of that and of each after it
    """
    bins = calendar.bins(rows["captured_at_utc"].cast(pa.int64()).to_numpy())
    days = bins // _BINS_A_DAY
    if (days[1:] < days[:-1]).any():
        # Numbers of 16 bits are sorted 20 times as fast.
        order = np.argsort(days.astype(np.uint16), kind="stable")
        rows, bins, days = rows.take(order), bins[order], days[order]
    starts = np.flatnonzero(np.append(True, days[1:] != days[:-1]))
    by_day, batch = {}, 0
    with study.aside(file) as path, _sink(study, path) as handle, pa.ipc.new_file(handle, rows.schema) as writer:
        for start, stop in zip(starts, np.append(starts[1:], len(days)), strict=True):
            batches = rows.slice(start, stop - start).to_batches()
            for one in batches:
                writer.write_batch(one)
            counts = np.bincount(bins[start:stop] - days[start] * _BINS_A_DAY)
            first = int(np.flatnonzero(counts)[0])
            by_day[str(calendar.days[days[start]])] = [batch, batch + len(batches), first, *counts[first:].tolist()]
            batch += len(batches)
    return by_day


def _sink(study: Study, path: str) -> Any:
    """File to write to; on this machine without a detour through Python, which takes as long as the writing."""
    return pa.OSFile(path, "wb") if study.is_local else study.fs.open(path, "wb")


def _read_staged(study: Study, file: str, first: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Batches [first, stop) of a staged file."""
    path = study.path(file)
    with pa.memory_map(path) if study.is_local else study.fs.open(path, "rb") as handle:
        reader = pa.ipc.open_file(handle)
        for number in range(first, stop):
            yield reader.get_batch(number)


# What the other two know of READ.


@dataclass(frozen=True)
class _StagedFile:
    """A file of staged rows."""

    block: _Block
    name: str
    by_day: dict[str, list[int]]  # as `_write_staged` tells them

    def part(self, day: str) -> dict[str, Any]:
        """What `process_arrange` needs to know of its rows of a day."""
        facts = self.block.record.facts
        return {
            "source": self.block.source,
            "offset": self.block.offset,
            "file": self.name,
            "batches": self.batches(day),
            "annotated": facts["annotated"],
            "absent": ",".join(facts["absent"]) if facts["annotated"] else "",
            "has_given": facts["texts"] > 0,
        }

    def batches(self, day: str) -> tuple[int, int]:
        """Its first batch of a day, and the one after the last."""
        first, stop, *_ = self.by_day[day]
        return first, stop

    def bins(self, day: str) -> npt.NDArray[np.int64]:
        """(_BINS_A_DAY,) rows of a day by quarter of an hour."""
        counts = np.zeros(_BINS_A_DAY, dtype=np.int64)
        _, _, first, *rows = self.by_day[day]
        counts[first : first + len(rows)] = rows
        return counts


@dataclass(frozen=True)
class _Block:
    """A finished block: where its first row stands in its file, and what it left."""

    shard: str
    source: str
    offset: int  # rows of the file before it
    record: Record

    def bad_files(self) -> list[str]:
        """Files with its bad lines."""
        return [name for name in self.record.files if name.startswith(f"{BAD_FOLDER}/")]

    def staged(self) -> Iterator[_StagedFile]:
        """Its files with rows, in source order."""
        for name, by_day in self.record.facts["staged"]:
            yield _StagedFile(self, name, by_day)


def _finished_blocks(study: Study) -> list[_Block]:
    """All blocks in source order.

    Raises
    ------
    StageNotRunError : a block is not read yet, or not in its present form
    """
    shards = READ.plan(study)
    records = study.records(READ.name)
    done = [
        shard
        for shard in shards
        if shard.name in records and records[shard.name].fingerprint == READ.fingerprint(shard)
    ]
    if len(done) < len(shards):
        raise StageNotRunError(
            f"{len(shards) - len(done)} of {len(shards)} blocks of raw metadata are not read yet: "
            f"run `patrolscope ingest --study {study.root}`"
        )
    blocks = []
    lines: Counter[str] = Counter()
    for shard in shards:
        source, record = shard.work["source"], records[shard.name]
        blocks.append(_Block(shard.name, source, lines[source], record))
        lines[source] += record.facts["lines"]
    return blocks


# SET_ASIDE: bad lines to quarantine/.


def plan_set_aside(study: Study) -> list[Shard]:
    """One shard a block that has bad lines."""
    return [
        Shard(
            name=block.shard,
            work={"source": block.source, "offset": block.offset, "files": block.bad_files()},
            size=block.record.rows_in - block.record.rows_out,
            made_from=block.record.fingerprint,
        )
        for block in _finished_blocks(study)
        if block.bad_files()
    ]


def process_set_aside(study: Study, shard: Shard) -> Output:
    """Write a block's bad lines with their place in the file."""
    written, lines = [], 0
    for file in shard.work["files"]:
        bad = study.read(file)
        # The header is line 1, row 0 is line 2.
        placed = bad.assign(source=shard.work["source"], line=bad["row"] + shard.work["offset"] + 2)
        leaf = file.rsplit("/", 1)[-1]
        written.append(study.write(QUARANTINE, QUARANTINE.conform(placed), f"quarantine/{leaf}"))
        lines += len(bad)
    return Output(tuple(written), lines, lines, (Ledger("quarantine", lines).close(lines),))


# ARRANGE: staged rows to metadata/.


def plan_arrange(study: Study) -> list[Shard]:
    """One shard a slice of a local day: a time range of at most `slice_rows` rows.

    The slices follow from the rows of the study, not from how the files were cut into blocks.
    """
    settings = study.settings
    calendar = Calendar.of(settings.period, settings.city.clock)
    midnights = {str(day): int(start) for day, start in zip(calendar.days, calendar.midnights_ms, strict=False)}
    rules = fingerprint(METADATA.fingerprint(), settings.ingest.order_hours, settings.city.bounds.model_dump())
    given_rules = given_table(settings.annotate.felony_windows_h).fingerprint()
    of_day: defaultdict[str, list[_StagedFile]] = defaultdict(list)
    blocks = _finished_blocks(study)
    # Rows with many columns as text, such as unknown ones that are kept, are held fewer at a time.
    texts = max((block.record.facts["texts"] for block in blocks), default=0)
    most = max(1, settings.ingest.slice_rows // max(1, texts // TEXTS_A_SLICE))
    for block in blocks:
        for file in block.staged():
            for day in file.by_day:
                of_day[day].append(file)
    shards = []
    for day, files in sorted(of_day.items()):
        bins = [file.bins(day) for file in files]
        total = np.sum(bins, axis=0)
        for number, (first, stop, share, shares) in enumerate(_slices(total, most)):
            used = [file for file, rows in zip(files, bins, strict=True) if rows[first:stop].any()]
            work: dict[str, Any] = {
                "file": f"metadata/day={day}/slice-{number:03d}.parquet",
                "midnight_ms": midnights[day],
                "from_ms": midnights[day] + first * BIN_MS,
                "until_ms": midnights[day] + stop * BIN_MS,
                "share": share,
                "shares": shares,
                "parts": [file.part(day) for file in used],
            }
            given = given_rules if any(part["has_given"] for part in work["parts"]) else ""
            made_from = fingerprint(rules, given, sorted({file.block.record.fingerprint for file in used}))
            shards.append(Shard(f"{day}-{number:03d}", work, int(total[first:stop].sum()) // shares, made_from))
    return shards


def _slices(rows: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of bins of at most `most` rows; a bin of more is shared out: which share of how many."""
    for first, stop in cut_day(rows, most):
        shares = -(-int(rows[first:stop].sum()) // most)
        for share in range(shares):
            yield first, stop, share, shares


def cut_day(rows: npt.NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Ranges of bins that hold all rows and at most `most` each; a bin that alone holds more is a range."""
    ranges: list[tuple[int, int]] = []
    held = 0
    for place in np.flatnonzero(rows).tolist():
        if ranges and held + rows[place] <= most:
            ranges[-1] = (ranges[-1][0], place + 1)
            held += rows[place]
        else:
            ranges.append((place, place + 1))
            held = rows[place]
    return ranges


def process_arrange(study: Study, shard: Shard) -> Output:
    """Write one slice of metadata/, and of given/ where a source says more than metadata/ holds."""
    work, settings = shard.work, study.settings
    box = settings.city.bounds
    staged = _slice_rows(study, work, STAGED.names)
    ledger = Ledger("ingest", staged.num_rows)
    order = order_rows(
        staged,
        box=(box.west, box.south, box.east, box.north),
        midnight_ms=work["midnight_ms"],
        order_hours=settings.ingest.order_hours,
        ledger=ledger,
    )
    files = []
    # A share of a quarter of an hour can be empty: its rows were all in the others.
    if len(order):
        sources = [part["source"] for part in work["parts"]]
        files.append(_write(study, arrange(staged, order, sources), work["file"]))
    if len(order) and any(part["has_given"] for part in work["parts"]):
        del staged  # a slice is held once
        name = work["file"].replace(f"{METADATA.name}/", f"{GIVEN.name}/", 1)
        files.append(_write(study, _given_rows(study, work, order), name))
    return Output(tuple(files), ledger.rows_in, len(order), (ledger.close(len(order)),))


def _slice_rows(study: Study, work: dict[str, Any], names: Sequence[str] | None = None) -> pa.Table:
    """Staged rows of a slice in source order, with `source_row` and the number of the `part` that each comes from.

    `names` are the columns to take, those there are; None: what was read as text.
    """
    tables = []
    for number, part in enumerate(work["parts"]):
        for batch in _read_staged(study, part["file"], *part["batches"]):
            own = _in_slice(batch, work)
            row = pc.add(own["row"], part["offset"])
            own = own.select(names or [name for name in own.schema.names if name not in STAGED.names])
            own = own.append_column("source_row", row)
            own = own.append_column("part", pa.array(np.full(own.num_rows, number, dtype=np.int32)))
            tables.append(pa.Table.from_batches([own]))
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _of_part(rows: pa.Table, values: Sequence[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """What is said of each part, for each row."""
    return pc.take(pa.array(values, type=kind), rows["part"])


def _given_rows(study: Study, work: dict[str, Any], order: npt.NDArray[np.int64]) -> pa.Table:
    """Rows of a slice as given/ has them, in an order."""
    rows = _slice_rows(study, work).take(order)
    kept = tuple(sorted(name for name in rows.column_names if name.startswith(KEPT)))
    schema = given_table(study.settings.annotate.felony_windows_h, kept).arrow_schema()
    columns = {
        "source": _of_part(rows, [part["source"] for part in work["parts"]], pa.string()),
        "given": _of_part(rows, [part["annotated"] for part in work["parts"]], pa.bool_()),
        "absent": _of_part(rows, [part["absent"] for part in work["parts"]], pa.string()),
    }
    for field in schema:
        if field.name in rows.column_names:
            columns[field.name] = rows[field.name]
        elif field.name not in columns:
            columns[field.name] = pa.nulls(rows.num_rows, field.type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _in_slice(batch: pa.RecordBatch, work: dict[str, Any]) -> pa.RecordBatch:
    time_ms = batch["captured_at_utc"].view(pa.int64()).to_numpy()
    mask = (time_ms >= work["from_ms"]) & (time_ms < work["until_ms"])
    if work["shares"] > 1:
        mask &= _share_of(batch, work["shares"]) == work["share"]
    return batch if mask.all() else batch.filter(mask)


def _share_of(rows: pa.RecordBatch, shares: int) -> npt.NDArray[np.uint64]:
    """(n,) share that each row belongs to, by its position and time alone: duplicates meet in the same.

    Shares are about even whatever the times and positions: a file whose times are all midnight can be cut, too.
    """
    # Multipliers are odd numbers without a pattern (fractions of the golden ratio and of roots of 2 and 3).
    mixed = rows["captured_at_utc"].view(pa.int64()).to_numpy().view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for name, factor in (("lat", 0x6A09E667F3BCC909), ("lng", 0xBB67AE8584CAA73B)):
        bits = (rows[name].to_numpy() + 0.0).view(np.uint64)  # the two zeros are one position
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ bits) * np.uint64(factor)
    return (mixed >> np.uint64(32)) % np.uint64(shares)


def order_rows(
    staged: pa.Table, *, box: tuple[float, float, float, float], midnight_ms: int, order_hours: int, ledger: Ledger
) -> npt.NDArray[np.int64]:
    """Rows of a day by block of hours, along the Hilbert curve, by time, then in source order; each image once.

    Parameters
    ----------
    staged : `STAGED`, one chunk; rows of the same time in source order
    box : west, south, east, north of the city; degrees
    midnight_ms : when the local day begins, ms since 1970 UTC
    order_hours : length of a block; the first begins at midnight, and one on a day of 25 hours may be shorter
    ledger : told of the duplicates

    Returns
    -------
    Positions in `staged`. Of rows with the same split, position and time the first in source order stays (the method
    takes the split first, and looks for duplicates then)
    """
    lat, lng, split = (staged[name].to_numpy() for name in ("lat", "lng", "split"))
    time_ms = staged["captured_at_utc"].cast(pa.int64()).to_numpy() - midnight_ms
    block_ms = order_hours * 3_600_000
    time_bits = (block_ms - 1).bit_length()
    # A day has 25 hours at most: 32 bits of the curve, and 32 or less of blocks and time.
    place = (time_ms // block_ms) << (32 + time_bits)
    place |= hilbert_key(lng, lat, box).astype(np.int64) << time_bits
    place |= time_ms % block_ms
    order = np.argsort(place, kind="stable")
    repeated = _repeated(order, place[order], pd.DataFrame({"split": split, "lat": lat, "lng": lng}))
    ledger.drop(int(repeated.sum()), why="duplicate")
    return order[~repeated]


def arrange(staged: pa.Table, order: npt.NDArray[np.int64], sources: Sequence[str]) -> pa.Table:
    """Rows of a slice as `METADATA`, in an order; `part` of a row is the place of its source in `sources`."""
    rows = staged.drop_columns("row").take(order)
    columns = {"ride_id": _ride_ids(rows["image_ref"]), "source": _of_part(rows, sources, pa.string())}
    # Every value was judged by READ; the schema is the contract's.
    schema = METADATA.arrow_schema()
    return pa.table([columns[name] if name in columns else rows[name] for name in schema.names], schema=schema)


def _repeated(
    order: npt.NDArray[np.int64], place: npt.NDArray[np.int64], values: pd.DataFrame
) -> npt.NDArray[np.bool_]:
    """(n,) whether the row at each place of the order repeats an earlier one.

    Two such rows have the same key in `place`, so that few are compared.
    """
    same = place[1:] == place[:-1]
    candidates = np.flatnonzero(np.append(same, False) | np.append(False, same))
    repeated = np.zeros(len(order), dtype=bool)
    compared = values.take(order[candidates]).assign(place=place[candidates])
    repeated[candidates] = compared.duplicated()
    return repeated


def _ride_ids(image_refs: pa.ChunkedArray) -> pa.ChunkedArray:
    """Second part of each ride/<ride>/<file>."""
    if not len(image_refs):
        return image_refs
    start = len("ride/")
    # Nearly always all are as long as the first one, and cutting them out costs a tenth of splitting.
    stop = image_refs[0].as_py().encode().index(b"/", start)
    raw = image_refs.cast(pa.binary())
    if pc.all(pc.equal(pc.binary_slice(raw, stop, stop + 1), b"/")).as_py():
        return pc.binary_slice(raw, start, stop).cast(pa.string())
    return pc.list_element(pc.split_pattern(image_refs, "/"), 1)


def _write(study: Study, rows: pa.Table, name: str) -> str:
    encodings = {field.name: _ENCODINGS[field.type] for field in rows.schema if field.type in _ENCODINGS}
    texts = [field.name for field in rows.schema if field.name not in {*encodings, "image_ref"}]
    with study.aside(name) as path, _sink(study, path) as file:
        pq.write_table(
            rows,
            file,
            compression="lz4",
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=texts,
            column_encoding=encodings,
            write_statistics=[name for name in rows.column_names if name in _SOUGHT],
        )
    return name


READ = Stage("read", unit="bytes", folders=(STAGED_FOLDER, BAD_FOLDER), plan=plan_read, process=process_read, version=2)
SET_ASIDE = Stage("quarantine", unit="rows", folders=("quarantine",), plan=plan_set_aside, process=process_set_aside)
ARRANGE = Stage(
    "ingest", unit="rows", folders=("metadata", "given"), plan=plan_arrange, process=process_arrange, version=2
)
STAGES = (READ, SET_ASIDE, ARRANGE)

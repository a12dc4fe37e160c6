"""From raw metadata files to metadata/: three stages.

READ takes blocks of the files apart: rows that can be used go to staging/ by local day, lines that can not are put
aside with their reason. A block does not know how many lines stand before it, so rows are numbered in the block.
SET_ASIDE and ARRANGE know it from the records of READ: they write quarantine/ and metadata/ with the line's place in
its file. Nothing in the result depends on where the blocks were cut.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Period, Settings
from pipeline.contract import Column, Table
from pipeline.errors import NotYetMade, SourceError
from pipeline.ledger import Ledger
from pipeline.rawcsv import Limits, count_lines, owned_lines, packed_lines, read_rows, unknown_columns
from pipeline.rawfiles import RawFile, identity, raw_files
from pipeline.spatial.order import hilbert_key
from pipeline.stages import Shard, Stage
from pipeline.store import Record, Study, fingerprint
from pipeline.tables import METADATA, QUARANTINE

STAGED_FOLDER = "staging/metadata"
BAD_FOLDER = "staging/quarantine"
# Rows are counted by quarter of an hour since local midnight: the finest that a day can be cut to.
BIN_MS = 15 * 60 * 1000
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
    box = settings.city.box
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
    rules = fingerprint(settings.city.box.model_dump(), settings.city.time_zone, settings.period.model_dump())
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
                "first": source.header.end,
                "start": start,
                "stop": stop,
            },
            size=stop - start,
            made_from=rules,
        )
        for source in raw_files(study)
        for number, (start, stop) in enumerate(_blocks(source, settings.ingest.block_bytes))
    ]


def _blocks(source: RawFile, block_bytes: int) -> Iterator[tuple[int, int]]:
    first = source.header.end
    if source.packed or source.bytes == first:
        yield 0, source.bytes  # can not be cut; or nothing to cut
        return
    for start in range(first, source.bytes, block_bytes):
        yield start, min(start + block_bytes, source.bytes)


def process_read(study: Study, shard: Shard) -> Record:
    """Stage the rows of one block by local day, and its bad lines.

    Raises
    ------
    SourceError : the file can not be read, or is another one than when the work was planned
    """
    work = shard.work
    calendar = Calendar.of(study.settings.period, study.settings.city.clock)
    limits = limits_of(study.settings)
    files: list[str] = []
    reasons: Counter[str] = Counter()
    bins: Counter[int] = Counter()
    lines = 0
    for piece, text in enumerate(_texts(study, work)):
        rows, bad = read_rows(text, work["columns"], limits)
        leaf = f"{shard.name}-{piece:05d}.parquet"
        rows = rows.assign(row=rows["row"] + lines, bin=calendar.bins(rows["timestamp"].to_numpy()))
        for number, count in zip(*np.unique(rows["bin"], return_counts=True), strict=True):
            bins[int(number)] += int(count)
        for day, part in _by_day(calendar, rows):
            files.append(study.write(STAGED, _staged(part), f"{STAGED_FOLDER}/day={day}/{leaf}"))
        if len(bad):
            reasons.update(bad["reason"])
            files.append(study.write(STAGED_BAD, bad.assign(row=bad["row"] + lines), f"{BAD_FOLDER}/{leaf}"))
        lines += count_lines(text)
    ledger = Ledger("read", lines)
    for reason, count in sorted(reasons.items()):
        ledger.drop(count, why=reason)
    if not work["columns"]:
        ledger.note(f"{work['source']}: empty file", 1)
    elif not lines and work["start"] == 0:
        ledger.note(f"{work['source']}: a header and no rows", 1)
    for name in unknown_columns(work["columns"]):
        ledger.note(f"column not used: {name or '(no name)'}", lines)
    rows_out = sum(bins.values())
    facts = {"lines": lines, "bins": {str(day): counts for day, counts in _bins_by_day(calendar, bins)}}
    return Record("", "", tuple(files), lines, rows_out, (ledger.close(rows_out),), facts)


def _texts(study: Study, work: dict[str, Any]) -> Iterator[bytes]:
    """Whole lines of a block: in one piece, or of a packed file in pieces of the block's size."""
    fs, place = fsspec.core.url_to_fs(study.resolve(work["path"]))
    try:
        if identity(fs, place) != (work["bytes"], work["modified"]):
            raise SourceError(f"{place} has changed since this run began: start it again when the file is complete")
        if work["packed"]:
            with fs.open(place, "rb", compression="gzip") as file:
                file.read(work["first"])
                yield from packed_lines(file, study.settings.ingest.block_bytes)
        elif work["start"] >= work["first"]:
            yield owned_lines(
                lambda start, stop: bytes(fs.cat_file(place, start=start, end=stop)),
                work["start"],
                work["stop"],
                first=work["first"],
                end=work["bytes"],
            )
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{place} can not be read, or is damaged: {error}. Restore it and start again") from error


def _staged(rows: pd.DataFrame) -> pd.DataFrame:
    captured = rows["timestamp"].astype("datetime64[ms]").dt.tz_localize("UTC")
    return STAGED.conform(rows.assign(captured_at_utc=captured, split=rows["split"].astype("int8")))


def _by_day(calendar: Calendar, rows: pd.DataFrame) -> Iterator[tuple[date, pd.DataFrame]]:
    """Rows of each local day, by quarter of an hour: a reader of one slice of a long day then skips the others.

    Rows of the same time keep their order in the source.
    """
    if not rows["bin"].is_monotonic_increasing:
        rows = rows.take(np.argsort(rows["bin"].to_numpy(), kind="stable"))
    days, starts = np.unique(rows["bin"] // _BINS_A_DAY, return_index=True)
    for day, start, stop in zip(days, starts, np.append(starts, len(rows))[1:], strict=True):
        yield calendar.days[day], rows.iloc[start:stop]


def _bins_by_day(calendar: Calendar, bins: dict[int, int]) -> Iterator[tuple[date, list[int]]]:
    """Of each day with rows: the first quarter of an hour that has any, then the rows of that and of each after it."""
    by_day: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for number, count in bins.items():
        day, quarter = divmod(number, _BINS_A_DAY)
        by_day[day][quarter] = count
    for day, counts in sorted(by_day.items()):
        quarters = range(min(counts), max(counts) + 1)
        yield calendar.days[day], [quarters.start, *(counts.get(quarter, 0) for quarter in quarters)]


# What the other two know of READ.


@dataclass(frozen=True)
class _Block:
    """A finished block: where its first row stands in its file, and what it left."""

    shard: str
    source: str
    offset: int  # rows of the file before it
    record: Record

    def files(self, folder: str) -> list[str]:
        """Its files in a folder."""
        return [name for name in self.record.files if name.startswith(f"{folder}/")]

    def bins(self, day: str) -> npt.NDArray[np.int64]:
        """(_BINS_A_DAY,) rows of a day by quarter of an hour."""
        counts = np.zeros(_BINS_A_DAY, dtype=np.int64)
        first, *rows = self.record.facts["bins"].get(day, [0])
        counts[first : first + len(rows)] = rows
        return counts


def _finished_blocks(study: Study) -> list[_Block]:
    """All blocks in source order.

    Raises
    ------
    NotYetMade : a block is not read yet, or not in its present form
    """
    shards = READ.plan(study)
    records = study.records(READ.name)
    done = [
        shard
        for shard in shards
        if shard.name in records and records[shard.name].fingerprint == READ.fingerprint(shard)
    ]
    if len(done) < len(shards):
        raise NotYetMade(
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
            work={"source": block.source, "offset": block.offset, "files": block.files(BAD_FOLDER)},
            size=block.record.rows_in - block.record.rows_out,
            made_from=block.record.fingerprint,
        )
        for block in _finished_blocks(study)
        if block.files(BAD_FOLDER)
    ]


def process_set_aside(study: Study, shard: Shard) -> Record:
    """Write a block's bad lines with their place in the file."""
    written, lines = [], 0
    for file in shard.work["files"]:
        bad = study.read(file)
        # The header is line 1, row 0 is line 2.
        placed = bad.assign(source=shard.work["source"], line=bad["row"] + shard.work["offset"] + 2)
        leaf = file.rsplit("/", 1)[-1]
        written.append(study.write(QUARANTINE, QUARANTINE.conform(placed), f"quarantine/{leaf}"))
        lines += len(bad)
    return Record("", "", tuple(written), lines, lines, (Ledger("quarantine", lines).close(lines),))


# ARRANGE: staged rows to metadata/.


def plan_arrange(study: Study) -> list[Shard]:
    """One shard a slice of a local day: a time range of at most `slice_rows` rows, or a quarter of an hour.

    The slices follow from the rows of the study, not from how the files were cut into blocks.
    """
    settings = study.settings
    calendar = Calendar.of(settings.period, settings.city.clock)
    midnights = {str(day): int(start) for day, start in zip(calendar.days, calendar.midnights_ms, strict=False)}
    blocks = _finished_blocks(study)
    of_day: defaultdict[str, list[_Block]] = defaultdict(list)
    for block in blocks:
        for day in block.record.facts["bins"]:
            of_day[day].append(block)
    shards = []
    for day, parts in sorted(of_day.items()):
        bins = [block.bins(day) for block in parts]
        total = np.sum(bins, axis=0)
        for number, (first, stop) in enumerate(cut_day(total, settings.ingest.slice_rows)):
            used = [block for block, rows in zip(parts, bins, strict=True) if rows[first:stop].any()]
            work = {
                "file": f"metadata/day={day}/slice-{number:03d}.parquet",
                "from_ms": midnights[day] + first * BIN_MS,
                "until_ms": midnights[day] + stop * BIN_MS,
                "parts": [[block.source, block.offset, block.files(f"{STAGED_FOLDER}/day={day}")] for block in used],
            }
            made_from = fingerprint(METADATA.fingerprint(), [block.record.fingerprint for block in used])
            shards.append(Shard(f"{day}-{number:03d}", work, int(total[first:stop].sum()), made_from))
    return shards


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


def process_arrange(study: Study, shard: Shard) -> Record:
    """Write one slice of metadata/."""
    staged = pd.concat(list(_slice_parts(study, shard.work)), ignore_index=True)
    ledger = Ledger("ingest", len(staged))
    box = study.settings.city.box
    metadata = arrange(staged, (box.west, box.south, box.east, box.north), ledger)
    file = study.write(METADATA, metadata, shard.work["file"])
    return Record("", "", (file,), len(staged), len(metadata), (ledger.close(len(metadata)),))


def _slice_parts(study: Study, work: dict[str, Any]) -> Iterator[pd.DataFrame]:
    since, until = (pd.Timestamp(work[name], unit="ms", tz="UTC") for name in ("from_ms", "until_ms"))
    during = [("captured_at_utc", ">=", since), ("captured_at_utc", "<", until)]
    for source, offset, files in work["parts"]:
        for file in files:
            part = study.read(file, filters=during)
            yield part.assign(source=source, source_row=part["row"] + offset)


def arrange(staged: pd.DataFrame, box: tuple[float, float, float, float], ledger: Ledger) -> pd.DataFrame:
    """Rows along the Hilbert curve, then by time, then in source order, each image once.

    Parameters
    ----------
    staged : `STAGED` with `source` and `source_row`; rows of the same time in source order
    box : west, south, east, north of the city; degrees
    ledger : told of the duplicates

    Returns
    -------
    DataFrame that conforms to `METADATA`. Of rows with the same split, position and time the first in source order
    stays (the method takes the split first, and looks for duplicates then)
    """
    key = hilbert_key(staged["lng"], staged["lat"], box).astype(np.uint64)
    # A slice lasts a day at most, so its milliseconds fit below the key; a stable sort keeps the source order.
    time_ms = staged["captured_at_utc"].dt.as_unit("ms").astype("int64").to_numpy()
    place = (key << np.uint64(32)) | (time_ms - time_ms.min(initial=np.iinfo(np.int64).max)).astype(np.uint64)
    order = np.argsort(place, kind="stable")
    rows = staged.take(order).reset_index(drop=True)
    first = pd.Series(~_is_repeated(rows, place[order]), index=rows.index, dtype="bool")
    rows = ledger.keep(rows, first, why="duplicate")
    return METADATA.conform(rows.assign(ride_id=_ride_ids(rows["image_ref"])))


def _is_repeated(rows: pd.DataFrame, place: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether a row repeats an earlier one; `place` is the same for both, so that few rows are compared."""
    same = place[1:] == place[:-1]
    candidates = np.flatnonzero(np.append(same, False) | np.append(False, same))
    repeated = np.zeros(len(rows), dtype=bool)
    repeated[candidates] = rows.iloc[candidates].duplicated(["split", "lat", "lng", "captured_at_utc"])
    return repeated


def _ride_ids(image_refs: pd.Series[str]) -> pd.Series[str]:
    parts = pc.split_pattern(pa.array(image_refs, type=pa.string()), "/")
    return pc.list_element(parts, 1).to_pandas().set_axis(image_refs.index)


READ = Stage("read", unit="bytes", folders=(STAGED_FOLDER, BAD_FOLDER), plan=plan_read, process=process_read)
SET_ASIDE = Stage("quarantine", unit="rows", folders=("quarantine",), plan=plan_set_aside, process=process_set_aside)
ARRANGE = Stage("ingest", unit="rows", folders=("metadata",), plan=plan_arrange, process=process_arrange)
STAGES = (READ, SET_ASIDE, ARRANGE)

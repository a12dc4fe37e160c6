"""Files between the stages of `ingest`: blocks of raw files, and staged rows by day.

Staged rows are stored in Arrow's own format, as large as the source, which takes a third of the time of Parquet to
write. A record batch holds rows of one day.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.curve_order import ROW_GROUP_ROWS
from patrolscope.pipeline.intake.arrange import STAGED, rows_in_slice
from patrolscope.pipeline.intake.compression import open_text, readable
from patrolscope.pipeline.intake.days import BINS_PER_DAY, Calendar
from patrolscope.pipeline.intake.raw_files import RawFile, identity
from patrolscope.pipeline.intake.raw_lines import BEYOND_BYTES, PIECE_BYTES, cut_lines, owned_lines, packed_lines
from patrolscope.pipeline.study.store import Record, Study

STAGED_FOLDER = "staging/metadata"
BAD_FOLDER = "staging/quarantine"
_WITH_STATISTICS = ("captured_at_utc", "lat", "lng", "split")  # columns by which readers select row groups
# Encodings of measurements and ascending numbers; other columns except image_ref repeat values. A day of metadata/ is
# 14 MB (13 with zstd, 18 without both), and the fastest to write and read.
_ENCODINGS = {
    pa.float64(): "BYTE_STREAM_SPLIT",
    pa.int64(): "DELTA_BINARY_PACKED",
    pa.timestamp("ms"): "DELTA_BINARY_PACKED",
    pa.timestamp("ms", tz="UTC"): "DELTA_BINARY_PACKED",
}


def blocks(source: RawFile, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of a raw file's blocks; a compressed or empty file is one block."""
    first = source.header.end
    if source.form or source.bytes == first:
        yield 0, source.bytes
        return
    for start in range(first, source.bytes, block_bytes):
        yield start, min(start + block_bytes, source.bytes)


def block_texts(study: Study, work: dict[str, Any]) -> Iterator[Iterator[bytes | memoryview]]:
    """Yield the complete lines of a block, in pieces; those of a compressed file block by block.

    Raises
    ------
    SourceError
        If the file is unreadable, or has changed since the work was planned.
    """
    fs, path = fsspec.core.url_to_fs(study.resolve(work["path"]))
    start, stop, first, end = (work[name] for name in ("start", "stop", "first", "bytes"))
    with readable(path):
        if identity(fs, path) != (end, work["modified"]):
            raise SourceError(f"{path} has changed since this run began; run the command again when it is complete")
        if work["form"]:
            with open_text(fs, path, work["form"], end) as packed:
                packed.read(first)
                for text in packed_lines(packed, study.settings.ingest.block_bytes):
                    yield cut_lines(text)
        elif start >= first:
            with fs.open(path, "rb") as file:
                yield _pieces(file, start, stop, first=first, end=end, where=path)


def _pieces(file: IO[bytes], start: int, stop: int, *, first: int, end: int, where: str) -> Iterator[memoryview]:
    """Yield the pieces of a block. The next piece overwrites the previous one."""
    # All pieces but the first and the last share a buffer. Dask makes the allocator return memory at once, so a new
    # buffer per piece would take half as long as the parsing.
    buffer = bytearray(1 + PIECE_BYTES + BEYOND_BYTES)

    def read(since: int, until: int) -> bytes | bytearray:
        file.seek(since)
        if until - since == len(buffer) == file.readinto(buffer):  # type: ignore[attr-defined]
            return buffer
        file.seek(since)
        return file.read(until - since)

    for at in range(start, stop, PIECE_BYTES):
        with readable(where):
            piece = owned_lines(read, at, min(at + PIECE_BYTES, stop), first=first, end=end)
        yield piece


def write_staged(study: Study, file: str, rows: pa.Table, calendar: Calendar) -> dict[str, list[int]]:
    """Write rows by day, in source order.

    Parameters
    ----------
    study : Study
        Study to write to.
    file : str
        File of the study.
    rows : Table
        `STAGED`, with supplied columns.
    calendar : Calendar
        Days of the study.

    Returns
    -------
    dict of str to list of int
        For each day: its first batch in the file, the batch after its last, its first bin with rows, and the rows in
        this bin and each later one.
    """
    bins = calendar.bins(rows["captured_at_utc"].cast(pa.int64()).to_numpy())
    days = bins // BINS_PER_DAY
    if (days[1:] < days[:-1]).any():
        # 16-bit numbers are sorted 20 times as fast.
        order = np.argsort(days.astype(np.uint16), kind="stable")
        rows, bins, days = rows.take(order), bins[order], days[order]
    starts = np.flatnonzero(np.append(True, days[1:] != days[:-1]))
    by_day, batch = {}, 0
    with study.aside(file) as path, _sink(study, path) as handle, pa.ipc.new_file(handle, rows.schema) as writer:
        for start, stop in zip(starts, np.append(starts[1:], len(days)), strict=True):
            batches = rows.slice(start, stop - start).to_batches()
            for part in batches:
                writer.write_batch(part)
            counts = np.bincount(bins[start:stop] - days[start] * BINS_PER_DAY)
            first = int(np.flatnonzero(counts)[0])
            by_day[str(calendar.days[days[start]])] = [batch, batch + len(batches), first, *counts[first:].tolist()]
            batch += len(batches)
    return by_day


def _sink(study: Study, path: str) -> Any:
    """Open a file for writing; a local one without Python in between, which would take as long as the writing."""
    return pa.OSFile(path, "wb") if study.is_local else study.fs.open(path, "wb")


def _read_staged(study: Study, file: str, first: int, stop: int) -> Iterator[pa.RecordBatch]:
    path = study.path(file)
    with pa.memory_map(path) if study.is_local else study.fs.open(path, "rb") as handle:
        reader = pa.ipc.open_file(handle)
        for number in range(first, stop):
            yield reader.get_batch(number)


def read_slice(study: Study, work: dict[str, Any], names: Sequence[str] | None = None) -> pa.Table:
    """Read the staged rows of a slice in source order.

    Parameters
    ----------
    study : Study
        Study to read from.
    work : dict
        Work of a shard of ARRANGE.
    names : sequence of str, optional
        Columns to read; by default the supplied columns.

    Returns
    -------
    Table
        The columns, `source_row`, and `part`, the position in `work["parts"]`.
    """
    tables = []
    for number, part in enumerate(work["parts"]):
        for batch in _read_staged(study, part["file"], *part["batches"]):
            own = rows_in_slice(batch, work)
            row = pc.add(own["row"], part["offset"])
            own = own.select(names or [name for name in own.schema.names if name not in STAGED.names])
            own = own.append_column("source_row", row)
            own = own.append_column("part", pa.array(np.full(own.num_rows, number, dtype=np.int32)))
            tables.append(pa.Table.from_batches([own]))
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def write_rows(study: Study, rows: pa.Table, name: str) -> str:
    """Write a file of metadata/ or supplied/.

    Parameters
    ----------
    study : Study
        Study to write to.
    rows : Table
        Rows in the schema of the file.
    name : str
        Path relative to the study, which is returned.
    """
    encodings = {field.name: _ENCODINGS[field.type] for field in rows.schema if field.type in _ENCODINGS}
    texts = [field.name for field in rows.schema if field.name not in {*encodings, "image_ref"}]
    with study.aside(name) as path, _sink(study, path) as file:
        pq.write_table(
            rows,
            file,
            write_page_checksum=True,
            compression="lz4",
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=texts,
            column_encoding=encodings,
            write_statistics=[name for name in rows.column_names if name in _WITH_STATISTICS],
        )
    return name


@dataclass(frozen=True)
class StagedFile:
    """File of staged rows."""

    block: FinishedBlock
    name: str
    by_day: dict[str, list[int]]  # from `write_staged`

    def part(self, day: str) -> dict[str, Any]:
        """Describe the rows of a day for the work of a shard of ARRANGE."""
        facts = self.block.record.facts
        first, stop, *_ = self.by_day[day]
        return {
            "source": self.block.source,
            "offset": self.block.offset,
            "file": self.name,
            "batches": (first, stop),
            "annotated": facts["annotated"],
            "missing_columns": ",".join(facts["missing_columns"]) if facts["annotated"] else "",
            "has_supplied": facts["texts"] > 0,
        }

    def bins(self, day: str) -> npt.NDArray[np.int64]:
        """Return the rows of a day per bin, (BINS_PER_DAY,)."""
        counts = np.zeros(BINS_PER_DAY, dtype=np.int64)
        _, _, first, *rows = self.by_day[day]
        counts[first : first + len(rows)] = rows
        return counts


@dataclass(frozen=True)
class FinishedBlock:
    """Block of a raw file that READ has finished."""

    shard: str
    source: str
    offset: int  # rows of the file before the block
    record: Record

    def bad_files(self) -> list[str]:
        """Return the files with rejected lines."""
        return [name for name in self.record.files if name.startswith(f"{BAD_FOLDER}/")]

    def staged(self) -> Iterator[StagedFile]:
        """Yield the files with rows, in source order."""
        for name, by_day in self.record.facts["staged"]:
            yield StagedFile(self, name, by_day)

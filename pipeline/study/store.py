"""The study folder: files that appear whole or not at all, and the record of which shards are finished.

A shard is finished when its record stands in manifest/<stage>/. The record is written last, names the shard's
files and row counts and carries the fingerprint of what made them, so an interrupted run is simply started again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import fsspec
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from patrolscope.pipeline.contract.columns import Table
from patrolscope.pipeline.errors import (
    SettingsError,
    StageNotRunError,
    StorageError,
    StorageFullError,
    StudyLockedError,
)
from patrolscope.pipeline.study.config import Settings, dump_settings, parse_settings
from patrolscope.pipeline.study.geoparquet import columns_on_disk, to_arrow, to_frame
from patrolscope.pipeline.study.remote import contents_of

SETTINGS_FILE = "study.yaml"
_LOCK = ".lock"
# Rows of one Parquet row group, where the order of the rows tells a reader nothing.
ROW_GROUP_ROWS = 65_536


def fingerprint(*parts: object) -> str:
    """Digest of plain values (JSON types, dates, nested tuples): what a shard was made from."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def modified_at(info: dict[str, Any]) -> datetime | None:
    """When a file was changed last, from what a file system says of it; None where it says nothing."""
    times = [info[key] for key in ("LastModified", "last_modified", "mtime", "updated", "created") if info.get(key)]
    modified = times[0] if times else None
    if isinstance(modified, (int, float)):
        return datetime.fromtimestamp(modified, UTC)
    return datetime.fromisoformat(modified) if isinstance(modified, str) else modified


@dataclass(frozen=True)
class Output:
    """Files and counts that a stage returns for one shard."""

    files: tuple[str, ...]  # below the study's root
    rows_in: int
    rows_out: int
    ledger: tuple[dict[str, Any], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)  # what later stages need to plan, such as rows by hour


@dataclass(frozen=True, kw_only=True)
class Record(Output):
    """Manifest entry of a finished shard: its output, and what the engine adds to it."""

    shard: str
    fingerprint: str
    seconds: float = 0.0

    def files_in(self, folder: str) -> list[str]:
        """Files of the shard in a folder."""
        return [name for name in self.files if name.startswith(f"{folder}/")]

    def to_json(self) -> str:
        """Text of the record's file."""
        return json.dumps(self.__dict__, sort_keys=True, default=list)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Record from its file's text."""
        content = json.loads(text)
        return cls(**{**content, "files": tuple(content["files"]), "ledger": tuple(content["ledger"])})


def study_files(root: str) -> tuple[Any, str]:
    """File system of a study, and its root there.

    Listings are not kept: on an object store a process would not see what others write.
    """
    fs, base = fsspec.core.url_to_fs(root, use_listings_cache=False)
    return fs, str(base).rstrip("/")


@dataclass(frozen=True)
class Study:
    """A study folder, local or any fsspec URL, and its settings. Small; travels to workers as it is.

    `run` is what `lock` calls the run that writes: once another one holds the study, it writes nothing more. Tasks of a
    run that was stopped go on for a while on workers that stay.
    """

    root: str
    settings: Settings
    run: str = field(default="", compare=False)

    @cached_property
    def fs(self) -> Any:
        """File system of the study."""
        return study_files(self.root)[0]

    @cached_property
    def base(self) -> str:
        """Root as the file system names it."""
        return study_files(self.root)[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "settings": self.settings, "run": self.run}

    @property
    def is_local(self) -> bool:
        """Whether the study lies on a file system of this machine."""
        return "file" in np.atleast_1d(self.fs.protocol)

    def path(self, *parts: str) -> str:
        """Full path of something in the study, as its file system names it."""
        return "/".join((self.base, *parts))

    def resolve(self, path: str) -> str:
        """A source path of study.yaml: relative ones count from the study folder."""
        if "://" in path or Path(path).is_absolute():
            return path
        return self.path(path) if self.is_local else str(self.fs.unstrip_protocol(self.path(path)))

    # Reading.

    def exists(self, *parts: str) -> bool:
        """Whether the file or folder is there."""
        return bool(self.fs.exists(self.path(*parts)))

    def read_bytes(self, *parts: str) -> bytes:
        """Content of a file."""
        with self.fs.open(self.path(*parts), "rb") as file:
            return bytes(file.read())

    def files(self, table: str) -> list[str]:
        """Parquet files of a table, sorted, as paths below the root.

        Raises
        ------
        StageNotRunError : there are none; says which command makes them
        """
        parts = sorted(
            n for n in self.find(table) if n.endswith(".parquet") and not n.rsplit("/", 1)[-1].startswith(".")
        )
        if not parts:
            raise StageNotRunError(f"{self.root} has no {table}/ yet: run `patrolscope run --study {self.root}`")
        return parts

    def find(self, folder: str) -> list[str]:
        """All files below a folder, as paths below the root; none where there is no such folder."""
        found = self.fs.find(self.path(folder)) if self.exists(folder) else []
        return [str(name)[len(self.base) + 1 :] for name in found]

    def read(
        self,
        file: str,
        columns: list[str] | None = None,
        filters: list[tuple[str, str, Any]] | None = None,
        geometry: bool = False,
    ) -> pd.DataFrame:
        """One Parquet file of the study as a frame; a GeoDataFrame with its CRS when `geometry`."""
        with self._opened(file) as handle:
            if geometry:
                return gpd.read_parquet(handle, columns=columns)
            stored = columns_on_disk(pq.read_schema(handle), columns)
            # ParquetFile semantics: no guessing of partition columns from folder names.
            table = pq.read_table(handle, columns=stored, filters=filters, partitioning=None)
        return to_frame(table, columns)

    def batches(self, file: str, columns: list[str], rows: int) -> Iterator[pd.DataFrame]:
        """Named columns of one Parquet file in frames of at most `rows` rows: memory does not grow with the file."""
        with self.fs.open(self.path(file), "rb") as handle, pq.ParquetFile(handle) as parquet:
            stored = columns_on_disk(parquet.schema_arrow, columns)
            for batch in parquet.iter_batches(rows, columns=stored):
                yield to_frame(pa.Table.from_batches([batch]), columns)

    def read_arrow(self, file: str, columns: list[str]) -> pa.Table:
        """Columns of one Parquet file of the study as Arrow holds them: text stays bytes."""
        with self._opened(file) as handle:
            return pq.read_table(handle, columns=columns, partitioning=None)

    @contextlib.contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        """A file of Arrow's.

        Raises
        ------
        StorageError : it is damaged
        """
        try:
            with self.fs.open(self.path(file), "rb") as handle:
                yield handle
        except pa.ArrowInvalid as error:
            why = str(error).partition("\n")[0]
            raise StorageError(
                f"{file} of {self.root} is damaged ({why}): remove it, and `patrolscope run --study {self.root}` makes "
                "it again"
            ) from error

    @contextlib.contextmanager
    def open_parts(self, file: str) -> Iterator[pa.ipc.RecordBatchFileReader]:
        """A file of `write_parts`: any part can be read without the others, by `get_batch`."""
        with self._opened(file) as handle, pa.ipc.open_file(handle) as reader:
            yield reader

    # Writing.

    def write_bytes(self, content: bytes, *parts: str) -> str:
        """Write a file whole or not at all; returns its path below the root."""
        return self.write_text([content], "/".join(parts))

    def write_text(self, parts: Iterable[bytes], name: str) -> str:
        """Write a file part by part, whole or not at all; returns its path below the root."""
        with self.aside(name) as path, self.fs.open(path, "wb") as file:
            for part in parts:
                file.write(part)
        return name

    def write(self, table: Table, frame: pd.DataFrame, name: str, row_group_rows: int = ROW_GROUP_ROWS) -> str:
        """Write a frame that conforms to `table` as one Parquet file; GeoParquet when it has a geometry or points."""
        arrow = to_arrow(table, frame, self.settings.city.crs)
        with self.aside(name) as path, self.fs.open(path, "wb") as file:
            pq.write_table(
                arrow,
                file,
                compression="lz4",  # read and written in two thirds of the time of zstd, a fifth larger
                row_group_size=row_group_rows,
                use_dictionary=[name for name in arrow.column_names if _repeats(arrow[name])],
            )
        return name

    def map_parts(self, file: str) -> list[pa.RecordBatch]:
        """All parts of a file of `write_parts` without compression, mapped from disk where it is on this machine."""
        if self.is_local:
            with pa.memory_map(self.path(file)) as source, pa.ipc.open_file(source) as reader:
                return [reader.get_batch(number) for number in range(reader.num_record_batches)]
        with self.open_parts(file) as reader:
            return [reader.get_batch(number) for number in range(reader.num_record_batches)]

    def write_parts(
        self,
        parts: Iterable[pa.RecordBatch],
        schema: pa.Schema,
        name: str,
        compression: Literal["lz4"] | None = "lz4",
    ) -> str:
        """Write parts of one schema as one Arrow file, from which each can be read alone."""
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with (
            self.aside(name) as path,
            self.fs.open(path, "wb") as file,
            pa.ipc.new_file(file, schema, options=options) as writer,
        ):
            for part in parts:
                writer.write_batch(part)
        return name

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[str]:
        """Path to write to; what was written there takes the final name when the block ends without error.

        Raises
        ------
        StorageError : there can be no such folder
        StudyLockedError : the run that writes does not hold the study any more
        StorageFullError : no room is left; what was written so far is gone, and makes none less
        """
        final = self.path(name)
        folder, leaf = final.rsplit("/", 1)
        # Also on an object store: fsspec closes a file after an error, and so would show what was written until then.
        aside = f"{folder}/.{leaf}.{uuid.uuid4().hex}.tmp"
        try:
            self._make_folder(folder)
            yield aside
            self._refuse_if_replaced(name)
            if self.is_local:
                os.replace(aside, final)  # noqa: PTH105 - the path is a string of the file system
            else:
                self.fs.cp_file(aside, final)  # by its name; `mv` would read it as a pattern
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageFullError(
                f"no room is left for {name} of {self.root} ({error.strerror or error}): make room there, and the same "
                "command goes on from here"
            ) from error
        finally:
            if self.fs.exists(aside):
                self.fs.rm_file(aside)

    def _make_folder(self, path: str) -> None:
        try:
            self.fs.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            raise StorageError(f"{path} can be no folder ({error.strerror}): name another place") from error

    def _refuse_if_replaced(self, name: str) -> None:
        if not self.run:
            return
        try:
            holder = self.read_bytes(_LOCK)
        except FileNotFoundError:
            holder = b""
        if not holder.endswith(self.run.encode()):
            raise StudyLockedError(
                f"{name} is not written: the run that asked for it does not hold {self.root} any more"
            )

    # Records.

    def commit(self, stage: str, record: Record) -> None:
        """Declare a shard finished; its files must be in place."""
        self.write_bytes(record.to_json().encode(), "manifest", stage, f"{record.shard}.json")

    def records(self, stage: str) -> dict[str, Record]:
        """Finished shards of a stage, by name."""
        folder = self.path("manifest", stage)
        if not self.fs.exists(folder):
            return {}
        names = [str(name) for name in self.fs.find(folder) if str(name).endswith(".json")]
        records = (Record.from_json(text.decode()) for text in contents_of(self.fs, names))
        return {record.shard: record for record in sorted(records, key=lambda record: record.shard)}

    def record(self, stage: str) -> Record:
        """The record of a stage that has a single shard.

        Raises
        ------
        StageNotRunError : the stage has not run; says which command makes it
        """
        records = list(self.records(stage).values())
        if not records:
            raise StageNotRunError(
                f"stage {stage} of {self.root} has not run yet: run `patrolscope run --study {self.root}`"
            )
        return records[0]

    def finished_at(self, stage: str) -> list[datetime]:
        """When each finished shard of a stage was, in order, as far as the file system says."""
        if not self.exists("manifest", stage):
            return []
        found = self.fs.find(self.path("manifest", stage), detail=True)
        times = (modified_at(info) for name, info in found.items() if str(name).endswith(".json"))
        return sorted(time for time in times if time is not None)

    def stages(self) -> list[str]:
        """Stages that have a record, sorted by name."""
        if not self.exists("manifest"):
            return []
        return sorted(
            str(name).rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(self.path("manifest"), detail=False)
        )

    def discard(self, stage: str, record: Record, keep: frozenset[str] = frozenset()) -> None:
        """Forget a shard and remove its files, but not those named in `keep`."""
        self.fs.rm_file(self.path("manifest", stage, f"{record.shard}.json"))
        for name in record.files:
            if name not in keep and self.exists(name):
                self.fs.rm_file(self.path(name))

    def sweep(self, folder: str, keep: frozenset[str]) -> None:
        """Remove what no record names from a folder: files of interrupted or earlier runs, and empty folders."""
        if not self.exists(folder):
            return
        found = map(str, self.fs.find(self.path(folder), withdirs=self.is_local))
        for path in sorted(found, reverse=True):  # what lies in a folder comes before the folder
            if self.is_local and self.fs.isdir(path):
                if not self.fs.ls(path, detail=False):
                    self.fs.rmdir(path)
            elif path[len(self.base) + 1 :] not in keep:
                self.fs.rm_file(path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[Study]:
        """Hold the study against a second run; gives the study as this run writes into it.

        Raises
        ------
        StudyLockedError : another run holds it; says which
        """
        mine = replace(self, run=uuid.uuid4().hex)
        since = datetime.now(UTC)
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {since:%Y-%m-%d %H:%M} UTC\n{mine.run}"
        if self.is_local:
            with _local_lock(Path(self.path(_LOCK)), holder, self.root):
                yield mine
            return
        marker = self.path(_LOCK)
        if self.fs.exists(marker):
            other = _holder(self.fs.cat_file(marker))
            raise StudyLockedError(
                f"{self.root} is in use by {other}. If that run is dead, remove {marker} and start again"
            )
        self.fs.pipe_file(marker, holder.encode())
        try:
            yield mine
        finally:
            self.fs.rm_file(marker)


@contextlib.contextmanager
def _local_lock(path: Path, holder: str, root: str) -> Iterator[None]:
    """An advisory lock that the system itself releases when the process dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = _holder(os.read(descriptor, 500)) or "another process"
            raise StudyLockedError(f"{root} is in use by {other}: wait for it, or stop it") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        yield
    finally:
        os.close(descriptor)


def _holder(content: bytes) -> str:
    """Who holds a study, from its lock: the first line; the second names the run."""
    return content.decode(errors="replace").partition("\n")[0]


def _repeats(values: pa.ChunkedArray) -> bool:
    """Whether a dictionary pays: without one, columns of different values are written in half the time."""
    if pa.types.is_nested(values.type):
        return False
    head = values.slice(0, 10_000)
    return bool(2 * len(head.unique()) <= len(head))


def study_at(root: str | Path, settings: Settings) -> Study:
    """The study at a folder or URL as these settings make it; nothing is read or written."""
    url = str(root)
    return Study(root=url if "://" in url else str(Path(url).resolve()), settings=settings)


def open_study(root: str | Path) -> Study:
    """The study at a folder or URL.

    Raises
    ------
    SettingsError : there is no study.yaml, or it can not be used
    """
    url = str(root)
    fs, base = study_files(url)
    where = f"{base}/{SETTINGS_FILE}"
    if not fs.isfile(where):
        raise SettingsError(
            f"{url} is no study: it has no {SETTINGS_FILE}. `patrolscope simulate {url} --images 100000` makes one, "
            f"`patrolscope init {url}` one for your own data"
        )
    try:
        text = fs.cat_file(where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where} is not UTF-8 ({error}): save it as UTF-8") from error
    return study_at(root, parse_settings(text, where=where))


def create_study(root: str | Path, settings: Settings) -> Study:
    """A new study folder with its study.yaml; an existing one gets these settings."""
    study = study_at(root, settings)
    study.write_bytes(dump_settings(settings).encode(), SETTINGS_FILE)
    return study

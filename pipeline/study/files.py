"""Files of a study folder, which appear completely or not at all, and its Parquet tables."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsspec
import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import xxhash
from pyproj.exceptions import CRSError

from patrolscope.pipeline.contract.columns import Table
from patrolscope.pipeline.errors import StageNotRunError, StorageError, StorageFullError, StudyLockedError
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.geoparquet import columns_on_disk, to_arrow, to_frame
from patrolscope.pipeline.study.remote import is_local

_BLOCK_BYTES = 2**22  # of a file that is read for its checksum
LOCK_FILE = ".lock"  # holder of the study; its last line is the id of the run
# Rows of one Parquet row group, where the order of the rows carries no information.
ROW_GROUP_ROWS = 65_536


def modified_at(info: dict[str, Any]) -> datetime | None:
    """Return when a file was last changed according to its file system's entry; None if it does not tell."""
    times = [info[key] for key in ("LastModified", "last_modified", "mtime", "updated", "created") if info.get(key)]
    modified = times[0] if times else None
    if isinstance(modified, (int, float)):
        return datetime.fromtimestamp(modified, UTC)
    return datetime.fromisoformat(modified) if isinstance(modified, str) else modified


def study_files(root: str) -> tuple[Any, str]:
    """Return the file system of a study, and its root there.

    Listings are not cached: on an object store a process would not see what others write.
    """
    fs, base = fsspec.core.url_to_fs(root, use_listings_cache=False)
    return fs, str(base).rstrip("/")


class FileState(NamedTuple):
    """Size of a file, and what its file system has about its version: modification time or ETag."""

    size: int
    version: str


class Digest(NamedTuple):
    """Size, version, and checksum (XXH3, 128 bits) of a file that a stage has written."""

    size: int
    version: str
    checksum: str


def is_inside(name: str) -> bool:
    """Return whether a relative path has only plain steps down, without `..` and the like."""
    return not any(step in ("", ".", "..") or "\0" in step for step in name.rstrip("/").split("/"))


def _state(info: dict[str, Any]) -> FileState:
    keys = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
    return FileState(int(info["size"]), next((str(info[key]) for key in keys if info.get(key)), ""))


def _local_state(status: os.stat_result) -> FileState:
    return FileState(status.st_size, str(status.st_mtime_ns))


@dataclass(frozen=True)
class StudyFiles:
    """Files of a study folder on a local disk or at any fsspec URL. Small, so that it is sent to workers.

    Attributes
    ----------
    root : str
        Absolute path or URL.
    settings : Settings
        Content of study.yaml.
    run : str
        Id of the run that writes, from `Study.lock`. Once another run holds the study, this one writes nothing more:
        tasks of a stopped run continue for a while on workers that stay. Empty outside a run.
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
        """Root in the file system's own notation."""
        return study_files(self.root)[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "settings": self.settings, "run": self.run}

    @cached_property
    def is_local(self) -> bool:
        """Whether the study is on a file system of this machine."""
        return is_local(self.fs)

    @cached_property
    def written(self) -> dict[str, Digest]:
        """Digests of the files that were written through this object, by path relative to the root."""
        return {}

    def path(self, *parts: str) -> str:
        """Return the full path of something in the study, in the file system's own notation.

        Names can come from records of a study that somebody else made.

        Raises
        ------
        StorageError
            If the path is outside the study, or a symbolic link leads there.
        """
        full = "/".join((self.base, *parts))
        if not all(is_inside(part) for part in parts if part):
            raise StorageError(
                f"{'/'.join(parts)!r} is not a path inside {self.root}; expected one below it, or an absolute path"
            )
        if self.is_local:
            real = os.path.realpath(full)
            if real != self._real_base and not real.startswith(f"{self._real_base}/"):
                raise StorageError(
                    f"{'/'.join(parts)} of {self.root} leads to {real} through a symbolic link; a study is confined to "
                    "its folder; replace the link by its content, or name the folder by its absolute path in study.yaml"
                )
        return full

    @cached_property
    def _real_base(self) -> str:
        return os.path.realpath(self.base).rstrip("/")

    def resolve(self, path: str) -> str:
        """Return a path of study.yaml as an absolute path or URL. Relative ones start at the study folder.

        Raises
        ------
        StorageError
            If a relative path leads out of the study. An absolute one says openly what it means.
        """
        if "://" in path or Path(path).is_absolute():
            return path
        inside = posixpath.normpath(path)
        full = self.path() if inside == "." else self.path(inside)
        return full if self.is_local else str(self.fs.unstrip_protocol(full))

    # Reading.

    def exists(self, *parts: str) -> bool:
        """Return whether a file or folder exists."""
        return bool(self.fs.exists(self.path(*parts)))

    def read_bytes(self, *parts: str) -> bytes:
        """Return the content of a file."""
        with self.fs.open(self.path(*parts), "rb") as file:
            return bytes(file.read())

    def files(self, table: str) -> list[str]:
        """Return the Parquet files of a table, sorted, as paths relative to the root.

        Raises
        ------
        StageNotRunError
            If there are none. The message names the command that writes them.
        """
        parts = sorted(
            n for n in self.find(table) if n.endswith(".parquet") and not n.rsplit("/", 1)[-1].startswith(".")
        )
        if not parts:
            raise StageNotRunError(f"{self.root} has no {table}/ yet; run `patrolscope run --study {self.root}`")
        return parts

    def find(self, folder: str) -> list[str]:
        """Return all files below a folder, relative to the root; empty if the folder does not exist."""
        return sorted(self.states(folder))

    def states(self, folder: str) -> dict[str, FileState]:
        """Return the states of all files below a folder or at a path, by path relative to the root.

        Raises
        ------
        StorageError
            If something in a local folder is a symbolic link: links are not followed, and not overlooked.
        """
        if not self.exists(folder):
            return {}
        if not self.is_local:
            found = self.fs.find(self.path(folder), detail=True)
            return {str(name)[len(self.base) + 1 :]: _state(info) for name, info in found.items()}
        top = self.path(folder)
        if os.path.isfile(top):  # noqa: PTH113 - the path is a string of the file system
            return {folder: self._state(top)}
        prefix = f"{folder}/" if folder else ""
        return {f"{prefix}{name}": state for name, state in self._walk(top.rstrip("/"))}

    def _walk(self, top: str) -> Iterator[tuple[str, FileState]]:
        waiting = [""]
        while waiting:
            below = waiting.pop()
            with os.scandir(f"{top}/{below}") as entries:
                for entry in entries:
                    if entry.is_symlink():
                        raise StorageError(
                            f"{entry.path} is a symbolic link; a study holds files and folders only; replace the link "
                            "by its content"
                        )
                    if entry.is_dir():
                        waiting.append(f"{below}{entry.name}/")
                    else:
                        yield f"{below}{entry.name}", _local_state(entry.stat())

    def digest(self, name: str) -> Digest:
        """Read a file, given relative to the root, and return its digest.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        """
        path = self.path(name)
        return Digest(*self._state(path), self._checksum(path))

    def _state(self, path: str) -> FileState:
        return _local_state(os.stat(path)) if self.is_local else _state(self.fs.info(path))  # noqa: PTH116

    def _checksum(self, path: str) -> str:
        checksum = xxhash.xxh3_128()
        with self.fs.open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                checksum.update(block)
        return checksum.hexdigest()

    def read(
        self,
        file: str,
        columns: list[str] | None = None,
        filters: list[tuple[str, str, Any]] | None = None,
        geometry: bool = False,
    ) -> pd.DataFrame:
        """Read one Parquet file.

        Parameters
        ----------
        file : str
            Path relative to the root.
        columns : list of str, optional
            Columns to read, in this order; all by default.
        filters : list of tuple, optional
            Row filters as `pyarrow.parquet.read_table` takes them.
        geometry : bool, default False
            Whether to return a GeoDataFrame with its CRS.
        """
        with self._opened(file) as handle:
            if geometry:
                return gpd.read_parquet(handle, columns=columns, page_checksum_verification=True)
            stored = columns_on_disk(pq.read_schema(handle), columns)
            # Without partition columns from folder names.
            table = pq.read_table(
                handle, columns=stored, filters=filters, partitioning=None, page_checksum_verification=True
            )
            return to_frame(table, columns)

    def batches(self, file: str, columns: list[str], rows: int) -> Iterator[pd.DataFrame]:
        """Yield frames of at most `rows` rows of one Parquet file, so that memory does not grow with the file.

        Parameters
        ----------
        file : str
            Path relative to the root.
        columns : list of str
            Columns to read, in this order.
        rows : int
            Most rows per frame.
        """
        with self._opened(file) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as parquet:
            stored = columns_on_disk(parquet.schema_arrow, columns)
            for batch in parquet.iter_batches(rows, columns=stored):
                yield to_frame(pa.Table.from_batches([batch]), columns)

    def read_arrow(self, file: str, columns: list[str] | None = None) -> pa.Table:
        """Read columns of one Parquet file as an Arrow table, where text stays bytes; all by default."""
        with self._opened(file) as handle:
            return pq.read_table(handle, columns=columns, partitioning=None, page_checksum_verification=True)

    @contextlib.contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        """Open a file of Arrow or Parquet.

        Raises
        ------
        StorageError
            If the file is damaged.
        """
        try:
            with self.fs.open(self.path(file), "rb") as handle:
                yield handle
        except (
            *(pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, OSError),
            *(json.JSONDecodeError, UnicodeDecodeError, CRSError),  # in metadata about the columns
        ) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise  # of the disk; pyarrow raises plain errors without a number about a file's content
            why = str(error).partition("\n")[0]
            raise StorageError(
                f"{file} of {self.root} is damaged ({why}); remove it and run `patrolscope run --study {self.root}` "
                "to rebuild it"
            ) from error

    @contextlib.contextmanager
    def open_parts(self, file: str) -> Iterator[pa.ipc.RecordBatchFileReader]:
        """Open a file of `write_parts`, of which `get_batch` reads any part without the others."""
        with self._opened(file) as handle, pa.ipc.open_file(handle) as reader:
            yield reader

    # Writing.

    def write_bytes(self, content: bytes, *parts: str) -> str:
        """Write a file atomically and durably, and return its path relative to the root."""
        return self.write_text([content], "/".join(parts))

    def write_text(self, parts: Iterable[bytes], name: str) -> str:
        """Write a file part by part, but atomically and durably, and return its path relative to the root."""
        with self.aside(name, durable=True) as path, self.fs.open(path, "wb") as file:
            for part in parts:
                file.write(part)
        return name

    def write(self, table: Table, frame: pd.DataFrame, name: str, row_group_rows: int = ROW_GROUP_ROWS) -> str:
        """Write a frame as one Parquet file, and return its path relative to the root.

        Parameters
        ----------
        table : Table
            Declaration that the frame conforms to. With a geometry or a point, the file is GeoParquet.
        frame : DataFrame
            Rows.
        name : str
            Path relative to the root.
        row_group_rows : int
            Rows per row group.
        """
        arrow = to_arrow(table, frame, self.settings.city.crs)
        with self.aside(name) as path, self.fs.open(path, "wb") as file:
            pq.write_table(
                arrow,
                file,
                write_page_checksum=True,
                compression="lz4",  # takes 2/3 of the time of zstd to read and write; files are 20% larger
                row_group_size=row_group_rows,
                use_dictionary=[name for name in arrow.column_names if _repeats(arrow[name])],
            )
        return name

    def map_parts(self, file: str) -> list[pa.RecordBatch]:
        """Return all parts of an uncompressed file of `write_parts`, memory-mapped if the file is local."""
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
        """Write parts of one schema as one Arrow file, from which each can be read alone.

        Parameters
        ----------
        parts : iterable of RecordBatch
            Parts in order.
        schema : pyarrow.Schema
            Schema of all parts.
        name : str
            Path relative to the root, which is returned.
        compression : {"lz4"} or None
            None for files that are memory-mapped.
        """
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
    def aside(self, name: str, *, durable: bool = False) -> Iterator[str]:
        """Yield a temporary path; the file there gets its final name when the block ends without error.

        Parameters
        ----------
        name : str
            Path relative to the root.
        durable : bool, default False
            Whether the file must survive a power cut: it is flushed to a local disk before and after it gets its
            name. Files without it that a power cut damages differ from their record and are rebuilt.

        Raises
        ------
        StorageError
            If the folder cannot be created.
        StudyLockedError
            If the run that writes no longer holds the study.
        StorageFullError
            If the disk is full. The unfinished file is removed.
        """
        final = self.path(name)
        folder, leaf = final.rsplit("/", 1)
        # On an object store too: fsspec closes a file after an error, which would publish what was written until then.
        aside = f"{folder}/.{leaf}.{uuid.uuid4().hex}.tmp"
        try:
            self._make_folder(folder)
            yield aside
            checksum = self._checksum(aside)
            if durable and self.is_local:
                _flush(aside)
            self._check_lock(name)
            if self.is_local:
                os.replace(aside, final)  # noqa: PTH105 - the path is a string of the file system
                if durable:
                    _flush(folder)
            else:
                self.fs.cp_file(aside, final)  # `mv` would take the name as a pattern
            self.written[name] = Digest(*self._state(final), checksum)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageFullError(
                f"no space left for {name} of {self.root} ({error.strerror or error}); free some space there and "
                "rerun the command"
            ) from error
        finally:
            if self.fs.exists(aside):
                self.fs.rm_file(aside)

    def _make_folder(self, path: str) -> None:
        try:
            self.fs.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            raise StorageError(f"cannot create folder {path} ({error.strerror}); choose a different folder") from error

    def _check_lock(self, name: str) -> None:
        if not self.run:
            return
        try:
            holder = self.read_bytes(LOCK_FILE)
        except FileNotFoundError:
            holder = b""
        if not holder.endswith(self.run.encode()):
            raise StudyLockedError(f"{name} was not written: its run no longer holds {self.root}; rerun the command")


def _flush(path: str) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _repeats(values: pa.ChunkedArray) -> bool:
    """Return whether a dictionary pays off. Columns of distinct values are written in half the time without one."""
    if pa.types.is_nested(values.type):
        return False
    head = values.slice(0, 10_000)
    return bool(2 * len(head.unique()) <= len(head))

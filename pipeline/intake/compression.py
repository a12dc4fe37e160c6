"""Compressed raw files: their forms, and their text as a stream of bounded length."""

from __future__ import annotations

import bz2
import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol

import pyarrow as pa

from patrolscope.pipeline.errors import BadFileError, SourceError
from patrolscope.pipeline.study.remote import remote_errors

ENDINGS = (".csv", ".csv.gz", ".csv.bz2", ".csv.zip", ".csv.zst")  # in upper or lower case

# First bytes of a file. Both are magic numbers of zip: an archive without members has only the second. pzstd starts a
# file with a frame to skip.
_MAGIC = {
    "gzip": (b"\x1f\x8b",),
    "bz2": (b"BZh",),
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "zstd": (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
}
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA takes as much memory as a file asks
# Rows of images shrink to a tenth (gzip) or a fifteenth (zstd) of their size. A file that expands further than these
# limits does not hold metadata, and could fill a disk with rejected lines.
MOST_EXPANSION = 200
LEAST_LIMIT_BYTES = 16 * 2**20
# Decoders report damage by these errors, or by an OSError without a number.
_DAMAGE = (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile)

# Python's zipfile raises these, too, for a damaged directory: an empty name, a name that is not UTF-8, an odd version.
_ARCHIVE_DAMAGE = (IndexError, NotImplementedError, ValueError, OverflowError, struct.error)


class Readable(Protocol):
    """Stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes: `size`, or fewer at the end."""


def form_of(head: bytes) -> str:
    """Return the name of the compression of a file with these first bytes, whatever its name is; "" for plain text."""
    return next((form for form, magic in _MAGIC.items() if head.startswith(magic)), "")


@contextmanager
def open_text(fs: Any, path: str, form: str, packed_bytes: int) -> Iterator[Readable]:
    """Open the text of a compressed file.

    Parameters
    ----------
    fs : fsspec file system
        Where the file is.
    path : str
        The file, in the file system's notation.
    form : str
        Compression, from `form_of`.
    packed_bytes : int
        Size of the file. The text may be `MOST_EXPANSION` times as long, or `LEAST_LIMIT_BYTES`.

    Raises
    ------
    BadFileError
        If the file is damaged, expands too far, or is an archive of no or several files.
    SourceError
        If the file cannot be read.
    """
    most = max(MOST_EXPANSION * packed_bytes, LEAST_LIMIT_BYTES)
    with readable(path, f" {form} data"), fs.open(path, "rb") as file, _unpacked(file, form, path) as stream:
        yield _Bounded(stream, most, path)


def read_text(fs: Any, path: str) -> bytes:
    """Read the text of a small file, plain or compressed.

    Raises
    ------
    SourceError
        If the file cannot be read, as in `open_text`.
    """
    with readable(path):
        content: bytes = fs.cat_file(path)
    form = form_of(content)
    if not form:
        return content
    with open_text(fs, path, form, len(content)) as text:
        return b"".join(iter(lambda: text.read(2**20), b""))


@contextmanager
def _unpacked(file: IO[bytes], form: str, path: str) -> Iterator[Any]:
    if form == "gzip":
        with gzip.open(file) as stream:
            yield stream
    elif form == "bz2":
        with bz2.open(file) as stream:
            yield stream
    elif form == "zstd":
        with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
            yield stream
    else:
        with _open_member(file, path) as stream:
            yield stream


def _open_member(file: IO[bytes], path: str) -> IO[bytes]:
    try:
        archive = zipfile.ZipFile(file)
        return archive.open(_only_member(archive, path))
    except _ARCHIVE_DAMAGE as error:
        raise BadFileError(f"{path} is a damaged zip archive: {error}; restore it and run the command again") from error


def _only_member(archive: zipfile.ZipFile, path: str) -> zipfile.ZipInfo:
    """Return the member of an archive, without folders and the hidden files of macOS."""
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not member.filename.rsplit("/", 1)[-1].startswith(".")
    ]
    if len(members) != 1:
        raise BadFileError(f"{path} holds {len(members)} files; expected one CSV file; unpack it")
    if members[0].flag_bits & 1:
        raise BadFileError(f"{path} is encrypted; expected one CSV file; unpack it")
    if members[0].compress_type not in _ZIP_METHODS:
        raise BadFileError(f"{path} is packed by a method that is not read; expected deflate; unpack it")
    return members[0]


class _Bounded:
    """Stream of at most `most` bytes, whose `read` is short only at the end."""

    def __init__(self, stream: Readable, most: int, path: str) -> None:
        self._stream, self._most, self._path = stream, most, path
        self._read = 0

    def read(self, size: int, /) -> bytes:
        parts = []
        left = size
        while left and (part := self._stream.read(left)):
            parts.append(part)
            left -= len(part)
        self._read += size - left
        if self._read > self._most:
            raise BadFileError(
                f"{self._path} expands to more than {self._most:,} bytes; expected at most {MOST_EXPANSION} times its "
                "size; unpack it if it really holds metadata"
            )
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def readable(path: str, what: str = "") -> Iterator[None]:
    """Turn errors of a file into one line, which calls its content `what`.

    Raises
    ------
    BadFileError
        If the file is damaged.
    SourceError
        If a disk or an object store fails.
    """
    try:
        yield
    except remote_errors(*_DAMAGE) as error:
        damaged = isinstance(error, _DAMAGE) or (type(error) is OSError and error.errno is None)
        kind = BadFileError if damaged else SourceError
        raise kind(f"{path} is unreadable or damaged{what}: {error}; restore it and run the command again") from error

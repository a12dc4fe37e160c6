"""Members of a tar file, found by a walk over its headers that continues behind damage.

Python's tarfile ends its iteration at the first bad header behind the start, as if the archive ended there, and can
loop or recurse without end on negative sizes and long chains of headers. Here, every step moves forward, and each
header is read on its own, so that time is linear in the size of the archive. Memory holds one extended header.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

_BLOCK = tarfile.BLOCKSIZE
_MAGIC, _MAGIC_AT = b"ustar", 257
_CHUNK = 2**20  # bytes read at once in search of the next header; a multiple of the block
_LARGEST_EXTENSION = 2**20  # bytes of a long name or of pax records; paths are at most a few kilobytes
_NEXT_EXTENDED_AT = 482  # whether extended sparse headers follow the header of a sparse member
_MORE_EXTENDED_AT = 504  # whether another one follows an extended sparse header
_PAX_LENGTH = re.compile(rb"(\d{1,7}) ")
_PAX_SIZE = re.compile(r"\d{1,19}")
_MAX_HOPS = 40  # links from one name to its content, as on Linux

Kind = Literal["file", "sparse", "hard link", "symbolic link", "special", "damage"]


@dataclass(frozen=True)
class Member:
    """A member of a tar file, or a damaged stretch of it (`damage`).

    Names are normalized. Bytes that are not UTF-8 are surrogates.
    """

    kind: Kind
    name: str = ""
    offset: int = 0  # of the content, in bytes
    bytes: int = 0
    target: str = ""  # of a link, as a name in the tar file


_DAMAGE = Member("damage")


def tar_members(file: IO[bytes], size: int) -> Iterator[Member]:
    """Yield the members of an uncompressed tar file without its folders.

    A member whose content is not completely in the file is damage. Behind damage, the walk continues at the next header
    with a magic number and a correct checksum. Archives that were put together are read as one.

    Parameters
    ----------
    file : binary file
        File that can seek.
    size : int
        Size of the file in bytes.
    """
    position, has_end = 0, False
    extension: dict[str, str] = {}
    while True:
        block = _read(file, position, _BLOCK)
        if len(block) < _BLOCK:
            # Without zeros at the end, the file was cut, perhaps where a member starts.
            if block.strip(b"\0") or not has_end:
                yield _DAMAGE
            return
        if not block.strip(b"\0"):
            following = _after_zeros(file, position)
            has_end = True
            # An archive ends with two blocks of zeros at least. One of them is a header that was lost.
            lost = following - position < 2 * _BLOCK and following < size
            position, extension = following, {}
            if lost or (following < size and not _is_header(_read(file, following, _BLOCK))):
                yield _DAMAGE
                position = _next_header(file, following)
            continue
        has_end = False
        member, stop = _member(file, position, block, extension)
        if member is _DAMAGE or stop > size:
            yield _DAMAGE
            position, extension = _next_header(file, position + _BLOCK), {}
            has_end = position >= size  # one count per damaged stretch
            continue
        position = stop
        if member is None:
            continue
        extension = {}
        if member.kind != "special" or member.name:
            yield member


def resolve(links: dict[str, str], name: str) -> str | None:
    """Follow links to the name of their content; None if they lead nowhere."""
    for _ in range(_MAX_HOPS):
        if name not in links:
            return name
        name = links[name]
    return None


def _member(file: IO[bytes], position: int, block: bytes, extension: dict[str, str]) -> tuple[Member | None, int]:
    """Return the member of a header and where the next header starts.

    The member is None for a header that extends the next one, whose records are added to `extension`.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return _DAMAGE, 0
    start = position + _BLOCK
    if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX):
        if not 0 <= header.size <= _LARGEST_EXTENSION:
            return _DAMAGE, 0
        records = _extension(header.type, _read(file, start, header.size))
        if records is None:
            return _DAMAGE, 0
        extension.update(records)
        return None, start + _padded(header.size)
    if header.type == tarfile.GNUTYPE_SPARSE:
        start = _after_sparse(file, start, block[_NEXT_EXTENDED_AT])
    length = header.size
    if "size" in extension:
        length = int(extension["size"]) if _PAX_SIZE.fullmatch(extension["size"]) else -1
    has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
    if length < 0:
        return _DAMAGE, 0
    stop = start + (_padded(length) if has_content else 0)
    if header.isdir():
        return Member("special"), stop
    return _named(header, extension, start, length if has_content else 0), stop


def _after_sparse(file: IO[bytes], start: int, more: int) -> int:
    """Return where the content of a sparse member starts."""
    while more:
        extended = _read(file, start, _BLOCK)
        more = extended[_MORE_EXTENDED_AT] if len(extended) == _BLOCK else 0
        start += _BLOCK
    return start


def _named(header: tarfile.TarInfo, extension: dict[str, str], offset: int, length: int) -> Member:
    name = posixpath.normpath(extension.get("path", header.name))
    target = extension.get("linkpath", header.linkname)
    if header.islnk():
        return Member("hard link", name, target=posixpath.normpath(target))
    if header.issym():
        target = posixpath.join(posixpath.dirname(name), target)
        return Member("symbolic link", name, target=posixpath.normpath(target))
    if header.ischr() or header.isblk() or header.isfifo():
        return Member("special", name)
    if header.issparse() or any(key.startswith("GNU.sparse.") for key in extension):
        return Member("sparse", name)
    return Member("file", name, offset, length)


_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)


def _extension(kind: bytes, content: bytes) -> dict[str, str] | None:
    """Return what an extended header states on the next member, or None if it is damaged."""
    if kind == tarfile.XGLTYPE:
        return {}  # states times and owners in practice
    if kind not in _PAX:
        key = "path" if kind == tarfile.GNUTYPE_LONGNAME else "linkpath"
        return {key: content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    records: dict[str, str] = {}
    position = 0
    while position < len(content) and content[position]:
        length = _PAX_LENGTH.match(content, position)
        stop = position + int(length[1]) if length else 0
        if length is None or stop > len(content) or stop <= length.end() or content[stop - 1 : stop] != b"\n":
            return None
        name, equals, value = content[length.end() : stop - 1].partition(b"=")
        if not equals:
            return None
        records[name.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        position = stop
    return records


def _read(file: IO[bytes], position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _is_header(block: bytes) -> bool:
    """Return whether a block is a header beyond doubt: any block of data could be one without a magic number."""
    if block[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _after_zeros(file: IO[bytes], position: int) -> int:
    """Return the position of the first block from `position` that holds more than zeros, or the end of the file."""
    while chunk := _read(file, position, _CHUNK):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return position + zeros // _BLOCK * _BLOCK
        position += len(chunk)
    return position


def _next_header(file: IO[bytes], position: int) -> int:
    """Return the position of the first header from `position`, or the end of the file."""
    while chunk := _read(file, position, _CHUNK):
        found = chunk.find(_MAGIC)
        while found >= 0:
            start = found - _MAGIC_AT
            if start >= 0 and start % _BLOCK == 0 and _is_header(chunk[start : start + _BLOCK]):
                return position + start
            found = chunk.find(_MAGIC, found + 1)
        position += len(chunk)
    return position

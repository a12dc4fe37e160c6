"""Raw files of a study: which there are, in which order, and whether they are still the same."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.intake.raw_csv import HEADER_BYTES, Header, parse_header
from patrolscope.pipeline.study.store import Study

ENDINGS = (".csv", ".csv.gz")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class RawFile:
    """A raw file; `name` is what rows know it by."""

    name: str
    path: str  # for study.resolve
    bytes: int
    modified: str
    packed: bool
    header: Header


def raw_files(study: Study) -> list[RawFile]:
    """All raw files of `sources.metadata`, in source order: by the numbers in the name, then by name.

    Raises
    ------
    SourceError : there is none, two have the same name, or one has another header
    """
    if not study.settings.sources.metadata:
        raise SourceError(f"{study.root}/study.yaml names no raw metadata: put files or folders under sources.metadata")
    places: dict[str, tuple[Any, str]] = {}
    for entry in study.settings.sources.metadata:
        fs, found = _find(study.resolve(entry))
        if not found:
            raise SourceError(f"sources.metadata: {entry} is no {' or '.join(ENDINGS)} file, and holds none")
        for place in found:
            name = place.rsplit("/", 1)[-1]
            _, other = places.setdefault(name, (fs, place))
            if other != place:
                raise SourceError(
                    f"{other} and {place} have the same name, by which a row is known: rename or remove one of them"
                )
    return [_open(study, *places[name]) for name in sorted(places, key=_by_number)]


def _by_number(name: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)], name


def _find(path: str) -> tuple[Any, list[str]]:
    """File system, and the raw files that a path, folder or glob pattern names; hidden ones are left out."""
    fs, place = fsspec.core.url_to_fs(path)
    place = str(place).rstrip("/")
    if fs.isdir(place):
        found = fs.find(place, maxdepth=1)
    elif fs.exists(place):
        found = [place]
    else:
        found = fs.glob(place)
    names = [str(name) for name in found]
    return fs, [name for name in names if name.endswith(ENDINGS) and not name.rsplit("/", 1)[-1].startswith(".")]


def _open(study: Study, fs: Any, place: str) -> RawFile:
    size, modified = identity(fs, place)
    head = fs.cat_file(place, start=0, end=min(size, HEADER_BYTES)) if size else b""
    packed = head.startswith(_GZIP_MAGIC)
    if packed:
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, HEADER_BYTES)
        except zlib.error as error:
            raise SourceError(f"{place} is a damaged gzip file: {error}") from error
    if place.startswith(f"{study.base}/") and type(fs) is type(study.fs):
        path = place.removeprefix(f"{study.base}/")  # the study folder can be moved
    else:
        path = place if "file" in np.atleast_1d(fs.protocol) else fs.unstrip_protocol(place)
    return RawFile(place.rsplit("/", 1)[-1], path, size, modified, packed, parse_header(head, where=place))


def identity(fs: Any, place: str) -> tuple[int, str]:
    """Size and what the file system says of a file's version: changes when the file does.

    Raises
    ------
    SourceError : it does not say the size, as some web servers do not
    """
    info = fs.info(place)
    if info["size"] is None:
        raise SourceError(f"{place}: the server does not say how large it is; put a copy on a disk or an object store")
    keys = ("mtime", "ETag", "etag", "generation", "LastModified", "last_modified", "created")
    return int(info["size"]), next((f"{key} {info[key]}" for key in keys if info.get(key)), "")

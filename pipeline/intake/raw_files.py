"""Raw files of a study: their order and versions."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.intake.raw_csv import Header, parse_header
from patrolscope.pipeline.intake.raw_lines import HEADER_BYTES
from patrolscope.pipeline.study.adopt import adopt as adopt_settings
from patrolscope.pipeline.study.store import Study

ENDINGS = (".csv", ".csv.gz")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class RawFile:
    """Raw file of metadata."""

    name: str  # the source of its rows
    path: str  # for study.resolve
    bytes: int
    modified: str
    packed: bool
    header: Header


def adopt(root: str, *, sources: Sequence[str], trust: bool | None, keep_unknown: bool | None) -> list[str]:
    """Write the options of `ingest` to study.yaml.

    Parameters
    ----------
    root : str
        Study folder; created if it does not exist and there are sources.
    sources : sequence of str
        Files or folders of raw metadata; none to keep the setting.
    trust : bool, optional
        Value of `ingest.trust`; None to keep the setting.
    keep_unknown : bool, optional
        Value of `ingest.keep_unknown`; None to keep the setting.

    Returns
    -------
    list of str
        A line about the change, or none.

    Raises
    ------
    SettingsError
        If there is neither a study, nor sources to create one.
    SourceError
        If the sources are unusable; nothing is written.
    StudyLockedError
        If a run is working on the study.
    """
    changes: dict[str, dict[str, Any]] = {
        "sources": {"metadata": tuple(sources) or None},
        "ingest": {"trust": trust, "keep_unknown": keep_unknown},
    }
    return adopt_settings(root, changes, may_make=bool(sources), check=raw_files if sources else None)


def raw_files(study: Study) -> list[RawFile]:
    """Return the raw files of `sources.metadata` in source order: by the numbers in the name, then by name.

    Raises
    ------
    SourceError
        If there are none, two have the same name, or a header is invalid.
    """
    if not study.settings.sources.metadata:
        raise SourceError(f"{study.root}/study.yaml has no raw metadata; add files or folders to sources.metadata")
    places: dict[str, tuple[Any, str]] = {}
    for entry in study.settings.sources.metadata:
        fs, found = _find(study.resolve(entry))
        if not found:
            raise SourceError(f"sources.metadata: {entry} holds no file; expected {' or '.join(ENDINGS)}")
        for place in found:
            name = place.rsplit("/", 1)[-1]
            _, other = places.setdefault(name, (fs, place))
            if other != place:
                raise SourceError(
                    f"{other} and {place} have the same name, which identifies their rows; rename or remove one of them"
                )
    return [_open(study, *places[name]) for name in sorted(places, key=_by_number)]


def _by_number(name: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)], name


def _find(path: str) -> tuple[Any, list[str]]:
    """Return the file system and the raw files of a path, folder, or glob pattern, without hidden files."""
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
    """Return the size of a file, and a version from the file system that changes with the file.

    Raises
    ------
    SourceError
        If the size is unknown, as on some web servers.
    """
    info = fs.info(place)
    if info["size"] is None:
        raise SourceError(f"{place}: the server does not report its size; copy it to a disk or an object store")
    keys = ("mtime", "ETag", "etag", "generation", "LastModified", "last_modified", "created")
    return int(info["size"]), next((f"{key} {info[key]}" for key in keys if info.get(key)), "")

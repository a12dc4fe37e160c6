"""Detection files: YOLO text files with detector output, one per image, with a line `class cx cy w h conf` per box."""

from __future__ import annotations

import codecs
import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from patrolscope.pipeline.contract.tables import DETECTIONS
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.names import is_utf8
from patrolscope.pipeline.study.adopt import adopt
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.remote import contents_of, is_local, remote_errors
from patrolscope.pipeline.study.store import Study, open_study

FOLDER = "detections/labels"
ENDING = ".txt"
FILES_PER_SHARD = 20_000
LARGEST_FILE = 2**20  # bytes, far above a few hundred boxes of 60 bytes; larger files are not detection files
_USUAL_FILE = 2**14  # bytes; nearly all detection files are shorter
# Threads that read files, as the disk takes most of the time: 20,000 uncached files took 0.5 s, and 1.2 s in sequence.
_READERS = 4
_FILES_PER_READER = 16
_FILES_AT_ONCE = _READERS * _FILES_PER_READER
_BATCH_BYTES = 16 * 2**20  # parsed at once

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_BOX = rf"^[0-9]{{1,9}}(?: {_NUMBER}){{5}}$"
_BOX_WITHOUT_CONF = rf"^[0-9]{{1,9}}(?: {_NUMBER}){{4}}$"
_FIELDS = ["class", "cx", "cy", "w", "h", "conf"]
_READ = {"image_id", "status", "score", "score_any", "boxes"}
# Columns that detection files do not provide, such as the size of the image.
NOT_IN_LABELS = dict.fromkeys((name for name in DETECTIONS.names if name not in _READ), None)


def read_labels(contents: Sequence[bytes], *, police_class: int, ledger: Ledger) -> pd.DataFrame:
    """Parse detection files.

    A file is unreadable if one of its lines is not a box with confidence, because the other lines do not tell what that
    line was. A file without lines is an image without boxes. A detector that runs again appends to its files, so
    repeated boxes count once.

    Parameters
    ----------
    contents : sequence of bytes
        Content of each file.
    police_class : int
        Number of the class of police vehicles, whose highest confidence is the score.
    ledger : Ledger
        Ledger for notes on the files.

    Returns
    -------
    DataFrame
        `status`, `score`, `score_any`, `boxes` of `DETECTIONS`, one row per file, in order.
    """
    count = len(contents)
    too_large = np.array([len(content) > LARGEST_FILE for content in contents], dtype=bool)
    lines, file_of = _lines([b"" if large else text for text, large in zip(contents, too_large, strict=True)])
    well_formed = pc.match_substring_regex(lines, _BOX).to_numpy(zero_copy_only=False)
    parts = pc.split_pattern(lines.filter(pa.array(well_formed)), " ").flatten()  # six per line
    boxes = pd.DataFrame(parts.cast(pa.float64()).to_numpy().reshape(-1, len(_FIELDS)), columns=_FIELDS)
    boxes["file"] = file_of[well_formed]
    usable = np.isfinite(boxes[_FIELDS].to_numpy()).all(axis=1) & boxes["conf"].between(0, 1).to_numpy()
    bad = np.ones(len(file_of), dtype=bool)
    bad[np.flatnonzero(well_formed)[usable]] = False
    short = pc.match_substring_regex(lines, _BOX_WITHOUT_CONF).to_numpy(zero_copy_only=False)

    without_conf = _contains_any(file_of[short], count)
    unreadable = _contains_any(file_of[bad], count) | too_large
    valid = boxes[usable & ~unreadable[boxes["file"]]]
    distinct = valid.drop_duplicates()
    of_police = distinct[distinct["class"] == police_class]
    notes = {
        "detection file larger than 1 MiB: unreadable": too_large,
        "detection file with a box without confidence: unreadable": without_conf,
        "detection file with a line that is not a box: unreadable": unreadable & ~without_conf & ~too_large,
        "detection file without lines: image without boxes": ~unreadable & ~_contains_any(file_of, count),
        "box repeated in the same file: counted once": valid.duplicated(),
    }
    for what, found in notes.items():
        if found.any():
            ledger.note(what, int(found.sum()))
    files = pd.RangeIndex(count)
    return pd.DataFrame(
        {
            "status": pd.Series(np.where(unreadable, "unreadable", "scored"), dtype="str"),
            "score": of_police.groupby("file")["conf"].max().reindex(files),
            "score_any": distinct.groupby("file")["conf"].max().reindex(files),
            "boxes": distinct.groupby("file").size().reindex(files, fill_value=0).astype("int32"),
        }
    )


def _lines(contents: Sequence[bytes]) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Return the lines that are not blank, with single spaces between their parts, and the file number of each."""
    ended = [content.removeprefix(codecs.BOM_UTF8) + b"\n" for content in contents]
    text = b"".join(ended).decode(errors="replace")
    lines = pc.list_flatten(pc.split_pattern(pa.array([text], type=pa.large_string()), "\n"))
    lines = pc.utf8_trim_whitespace(pc.replace_substring_regex(lines, r"[ \t]+", " "))
    file_of = np.repeat(np.arange(len(ended)), [content.count(b"\n") for content in ended])
    # The last line feed is followed by an empty part.
    lines = lines.slice(0, len(file_of))
    filled = pc.not_equal(lines, "")
    return lines.filter(filled), file_of[filled.to_numpy(zero_copy_only=False)]


def _contains_any(files: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    """Return whether each of `count` files is among `files`."""
    found = np.zeros(count, dtype=bool)
    found[files] = True
    return found


def choose_labels(root: str) -> list[str]:
    """Set detection.source in study.yaml to detection files if it names other detections.

    Returns
    -------
    list of str
        A line about the change, or none.

    Raises
    ------
    SettingsError
        If there is no study.
    """
    settings = open_study(root).settings
    others = settings.images.weights is not None or settings.detection.source is not None
    return adopt(root, {"detection": {"source": "labels" if others else None}})


# Listing.


@dataclass
class FileGroup:
    """Detection files of one shard."""

    # Folder below the root ("" or ending in "/"), first name, last name; the names in between belong to the shard.
    segments: list[tuple[str, str, str]] = field(default_factory=list)
    files: int = 0
    digest: Any = field(default_factory=hashlib.sha256)  # of names and versions

    def add(self, folder: str, names: Sequence[str], versions: Sequence[str]) -> None:
        """Add the next files of a folder."""
        self.segments.append((folder, names[0], names[-1]))
        self.files += len(names)
        self.digest.update("\n".join([folder, *names, *versions]).encode(errors="surrogateescape"))


def list_roots(study: Study, left_out: Counter[str]) -> list[tuple[str, list[FileGroup]]]:
    """List the folders of `sources.detections`, with their files in groups of at most `FILES_PER_SHARD`.

    Files are in the order of their paths. Memory holds the names of one folder at a time.

    Parameters
    ----------
    study : Study
        Study with the setting.
    left_out : Counter
        Receives the number of other files, by reason.

    Raises
    ------
    SourceError
        If a folder is missing, holds no detection files, or is inside another one.
    """
    entries = study.settings.sources.detections
    roots = [fsspec.core.url_to_fs(study.resolve(entry)) for entry in entries]
    refuse_overlap([posixpath.normpath(str(path)) for _, path in roots], "sources.detections")
    listed = []
    for entry, (fs, path) in zip(entries, roots, strict=True):
        if not fs.isdir(path):
            raise SourceError(
                f"sources.detections: {entry} is not a folder; expected one with detection files (*{ENDING})"
            )
        groups = list(_groups(fs, str(path).rstrip("/"), left_out))
        if not groups:
            # Images without a file have no boxes, so all images would count as such.
            raise SourceError(
                f"sources.detections: {entry} holds no detection file (*{ENDING}); check that the disk is mounted, or "
                "remove a folder in which the detector found nothing"
            )
        listed.append((entry, groups))
    return listed


def refuse_overlap(paths: Sequence[str], setting: str) -> None:
    """Reject folders that are listed twice, or inside another one.

    Raises
    ------
    SourceError
        If there are such folders; the message names two of them.
    """
    for first, path in enumerate(paths):
        for other in paths[first + 1 :]:
            if f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/"):
                raise SourceError(f"{setting}: {path} and {other} hold the same files; list one of them")


def _groups(fs: Any, root: str, left_out: Counter[str]) -> Iterator[FileGroup]:
    group = FileGroup()
    for folder, names in _walk(fs, root, "", left_out):
        start = 0
        while start < len(names):
            chunk = names[start : start + FILES_PER_SHARD - group.files]
            group.add(folder, chunk, [_version(fs, f"{root}/{folder}{name}") for name in chunk])
            start += len(chunk)
            if group.files == FILES_PER_SHARD:
                yield group
                group = FileGroup()
    if group.files:
        yield group


def _walk(fs: Any, root: str, folder: str, left_out: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders that hold detection files, and the file names, both sorted; count everything else."""
    names, folders = [], []
    for name, reason in sorted(_entries(fs, f"{root}/{folder}")):
        if reason == _FOLDER:
            folders.append(name)
        elif reason:
            left_out[reason] += 1
        else:
            names.append(name)
    if names:
        yield folder, names
    for name in folders:
        yield from _walk(fs, root, f"{folder}{name}/", left_out)


_FOLDER = "folder"


def _entries(fs: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the names in a folder without hidden ones, each with the reason for not being a detection file."""
    if is_local(fs):
        with os.scandir(path) as entries:  # 20 times as fast as fsspec
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name, _reason(entry.name, entry.is_dir(follow_symlinks=False)) or _special(entry)
        return
    for info in fs.ls(path.rstrip("/"), detail=True, refresh=True):  # refresh: this process may have a cached listing
        name = str(info["name"]).rstrip("/").rsplit("/", 1)[-1]
        if not name.startswith("."):
            yield name, _reason(name, info["type"] == "directory")


def _reason(name: str, is_folder: bool) -> str:
    if not is_utf8(name):
        return "name that is not UTF-8"
    if is_folder:
        return _FOLDER
    if name.lower().endswith(ENDING):
        return ""
    extension = name.rpartition(".")[1:]
    return f"extension {''.join(extension).lower()[:20]}" if extension[0] else "no extension"


def _special(entry: os.DirEntry[str]) -> str:
    """Return why an entry with the extension of detection files cannot be one, or an empty string."""
    try:
        if entry.is_file():
            return ""
        return "link to a folder" if entry.is_dir() else "broken link, pipe, or device"
    except OSError:  # a link to itself
        return "broken link, pipe, or device"


def _version(fs: Any, path: str) -> str:
    if is_local(fs):
        status = os.stat(path)  # noqa: PTH116 - a Path takes twice as long
        return f"{status.st_size} {status.st_mtime_ns}"
    info = fs.info(path)  # from the cached listing
    return " ".join(
        str(info[key]) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created") if key in info
    )


def list_segments(study: Study, root: str, segments: Sequence[tuple[str, str, str]]) -> list[str]:
    """List the present files of a group, relative to their root.

    Parameters
    ----------
    study : Study
        Study of the group.
    root : str
        Folder of detection files, as in study.yaml.
    segments : sequence of tuple of str
        Folder, first name, and last name of each part of the group.
    """
    fs, path = _open_root(study, root)
    return [
        f"{folder}{name}"
        for folder, first, last in segments
        for name in sorted(
            name for name, reason in _entries(fs, f"{path}/{folder}") if not reason and first <= name <= last
        )
    ]


def _open_root(study: Study, root: str) -> tuple[Any, str]:
    fs, path = fsspec.core.url_to_fs(study.resolve(root))
    return fs, str(path).rstrip("/")


# Reading.


def read_contents(study: Study, root: str, files: Sequence[str]) -> Iterator[list[bytes]]:
    """Yield the content of files below a root, in batches of bounded size.

    Parameters
    ----------
    study : Study
        Study of the root.
    root : str
        Entry of `sources.detections`.
    files : sequence of str
        Files from `list_segments`.

    Raises
    ------
    SourceError
        If a file is unreadable.
    """
    fs, folder = _open_root(study, root)
    paths = [f"{folder}/{file}" for file in files]
    batch: list[bytes] = []
    held_bytes = 0
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(paths), _FILES_AT_ONCE):
            chunk = paths[start : start + _FILES_AT_ONCE]
            try:
                contents = _read_all(fs, chunk, readers)
            except remote_errors() as error:
                raise SourceError(
                    f"cannot read a detection file: {error}; restore it and run the command again"
                ) from error
            batch += contents
            held_bytes += sum(map(len, contents))
            if held_bytes >= _BATCH_BYTES:
                yield batch
                batch, held_bytes = [], 0
    if batch or not paths:
        yield batch


def _read_all(fs: Any, paths: list[str], readers: ThreadPoolExecutor) -> list[bytes]:
    if not is_local(fs):
        return contents_of(fs, paths)
    shares = [paths[start : start + _FILES_PER_READER] for start in range(0, len(paths), _FILES_PER_READER)]
    return [content for share in readers.map(_heads, shares) for content in share]


def _heads(paths: list[str]) -> list[bytes]:
    return [_head(path) for path in paths]


def _head(path: str) -> bytes:
    """Read a file, or enough of it to recognize that it is too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Allocating a buffer for the largest file takes longer than reading most files.
        content = os.read(descriptor, _USUAL_FILE)
        while len(content) <= LARGEST_FILE and (more := os.read(descriptor, LARGEST_FILE)):
            content += more
        return content
    finally:
        os.close(descriptor)

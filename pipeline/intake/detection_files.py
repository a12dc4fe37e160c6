"""Detections that exist already, as YOLO label files: one file an image, one line `class cx cy w h conf` a box."""

from __future__ import annotations

import codecs
import hashlib
import os
import posixpath
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
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.adopt import adopt
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.remote import contents_of, remote_errors
from patrolscope.pipeline.study.store import Output, Study, fingerprint, open_study

FOLDER = "detections/labels"
ENDING = ".txt"
FILES_A_SHARD = 20_000
LARGEST_FILE = 2**20  # bytes: a detector's some hundred boxes of 60 bytes are far below; a larger file is no label file
_USUAL_FILE = 2**14  # bytes: nearly every label file is shorter
# Files are read by several threads, as most of the time is spent waiting for the disk: 20,000 files that were not in
# memory took 0.5 s, one after the other 1.2 s.
_READERS = 4
_FILES_A_READER = 16
_FILES_AT_ONCE = _READERS * _FILES_A_READER
_BATCH_BYTES = 16 * 2**20  # of label files parsed at once

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_BOX = rf"^[0-9]{{1,9}}(?: {_NUMBER}){{5}}$"
_BOX_WITHOUT_CONF = rf"^[0-9]{{1,9}}(?: {_NUMBER}){{4}}$"
_FIELDS = ["class", "cx", "cy", "w", "h", "conf"]
_READ = {"image_id", "status", "score", "score_any", "boxes"}
# A label file has no size of the image, in pixels of which boxes are kept.
NOT_IN_LABELS = dict.fromkeys((name for name in DETECTIONS.names if name not in _READ), None)


def read_labels(contents: Sequence[bytes], *, police_class: int, ledger: Ledger) -> pd.DataFrame:
    """What each label file says of its image.

    Parameters
    ----------
    contents : content of each file
    police_class : number of the class that `score` is taken from
    ledger : told of what a reader should know of

    Returns
    -------
    DataFrame, one row a file in the same order: `status`, `score`, `score_any`, `boxes` of `DETECTIONS`

    A file with any line that is not a box with its confidence is unreadable: what stands in the other lines is no
    evidence of what stood in that one. A file without a line is an image without a box. The detector appends when it
    is run again, so a box that is given again counts once.
    """
    count = len(contents)
    too_large = np.array([len(content) > LARGEST_FILE for content in contents], dtype=bool)
    lines, file_of = _lines([b"" if large else text for text, large in zip(contents, too_large, strict=True)])
    shaped = pc.match_substring_regex(lines, _BOX).to_numpy(zero_copy_only=False)
    # Split at single blanks, each of these lines has six parts.
    parts = pc.split_pattern(lines.filter(pa.array(shaped)), " ").flatten()
    boxes = pd.DataFrame(parts.cast(pa.float64()).to_numpy().reshape(-1, len(_FIELDS)), columns=_FIELDS)
    boxes["file"] = file_of[shaped]
    usable = np.isfinite(boxes[_FIELDS].to_numpy()).all(axis=1) & boxes["conf"].between(0, 1).to_numpy()
    strange = np.ones(len(file_of), dtype=bool)
    strange[np.flatnonzero(shaped)[usable]] = False
    short = pc.match_substring_regex(lines, _BOX_WITHOUT_CONF).to_numpy(zero_copy_only=False)

    without_conf = _any(file_of[short], count)
    unreadable = _any(file_of[strange], count) | too_large
    known = boxes[usable & ~unreadable[boxes["file"]]]
    different = known.drop_duplicates()
    of_police = different[different["class"] == police_class]
    notes = {
        "label file larger than 1 MiB: unreadable": too_large,
        "label file with a box without confidence: unreadable": without_conf,
        "label file with a line that is no box: unreadable": unreadable & ~without_conf & ~too_large,
        "label file without a line: image without a box": ~unreadable & ~_any(file_of, count),
        "box given again in the same file: counted once": known.duplicated(),
    }
    for what, found in notes.items():
        if found.any():
            ledger.note(what, int(found.sum()))
    files = pd.RangeIndex(count)
    return pd.DataFrame(
        {
            "status": pd.Series(np.where(unreadable, "unreadable", "scored"), dtype="str"),
            "score": of_police.groupby("file")["conf"].max().reindex(files),
            "score_any": different.groupby("file")["conf"].max().reindex(files),
            "boxes": different.groupby("file").size().reindex(files, fill_value=0).astype("int32"),
        }
    )


def _lines(contents: Sequence[bytes]) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Lines that are not blank, their parts one blank apart, and the number of the file that each stands in."""
    ended = [content.removeprefix(codecs.BOM_UTF8) + b"\n" for content in contents]
    text = b"".join(ended).decode(errors="replace")
    lines = pc.list_flatten(pc.split_pattern(pa.array([text], type=pa.large_string()), "\n"))
    lines = pc.utf8_trim_whitespace(pc.replace_substring_regex(lines, r"[ \t]+", " "))
    file_of = np.repeat(np.arange(len(ended)), [content.count(b"\n") for content in ended])
    # The last line feed ends the text, after it stands one empty part.
    lines = lines.slice(0, len(file_of))
    filled = pc.not_equal(lines, "")
    return lines.filter(filled), file_of[filled.to_numpy(zero_copy_only=False)]


def _any(files: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    """(count,) whether a file is among `files`."""
    found = np.zeros(count, dtype=bool)
    found[files] = True
    return found


# What the command asks.


def choose_labels(root: str) -> list[str]:
    """Say in study.yaml that label files are what to use, where it says something else; a line on what has changed.

    Raises
    ------
    SettingsError : there is no study
    """
    settings = open_study(root).settings
    others = settings.images.weights is not None or settings.detection.source is not None
    return adopt(root, {"detection": {"source": "labels" if others else None}})


# The stage.


@dataclass
class _Cut:
    """Files of one shard."""

    # Folder below the root ("" or ending in "/"), first name, last name: the files between are the shard's.
    segments: list[tuple[str, str, str]] = field(default_factory=list)
    files: int = 0
    digest: Any = field(default_factory=hashlib.sha256)  # of names and versions

    def add(self, folder: str, names: Sequence[str], versions: Sequence[str]) -> None:
        """Take the next files of a folder."""
        self.segments.append((folder, names[0], names[-1]))
        self.files += len(names)
        self.digest.update("\n".join([folder, *names, *versions]).encode(errors="surrogateescape"))


def plan_labels(study: Study) -> list[Shard]:
    """Shards of at most `FILES_A_SHARD` label files, in the order of their paths.

    Names of one folder are held at a time.

    Raises
    ------
    SourceError : a folder is not there, holds no label file, or lies in another one
    """
    settings = study.settings
    roots = [fsspec.core.url_to_fs(study.resolve(root)) for root in settings.sources.detections]
    refuse_overlap([posixpath.normpath(str(place)) for _, place in roots], "sources.detections")
    shards = []
    for number, (entry, (fs, place)) in enumerate(zip(settings.sources.detections, roots, strict=True)):
        if not fs.isdir(place):
            raise SourceError(
                f"sources.detections: {entry} is not a folder; expected one with YOLO label files (*{ENDING})"
            )
        cuts = list(_cuts(fs, str(place).rstrip("/")))
        if not cuts:
            # An image without a file is one without a box: every image would count as such.
            raise SourceError(
                f"sources.detections: {entry} holds no label file (*{ENDING}): is the disk there? A folder in which the "
                "detector found nothing at all is to be left out"
            )
        for part, cut in enumerate(cuts):
            made_from = fingerprint(
                cut.digest.hexdigest(), settings.detection.police_class_number, DETECTIONS.fingerprint()
            )
            work = {"root": entry, "segments": cut.segments}
            shards.append(Shard(f"{number:02d}-{part:05d}", work, cut.files, made_from))
    return shards


def refuse_overlap(places: Sequence[str], setting: str) -> None:
    """Refuse folders of which one lies in another, or is named twice.

    Raises
    ------
    SourceError : names two of them
    """
    for first, place in enumerate(places):
        for other in places[first + 1 :]:
            if f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/"):
                raise SourceError(f"{setting}: {place} and {other} hold the same files: name one of them")


def _cuts(fs: Any, root: str) -> Iterator[_Cut]:
    cut = _Cut()
    for folder, names in _walk(fs, root, ""):
        start = 0
        while start < len(names):
            some = names[start : start + FILES_A_SHARD - cut.files]
            cut.add(folder, some, [_version(fs, f"{root}/{folder}{name}") for name in some])
            start += len(some)
            if cut.files == FILES_A_SHARD:
                yield cut
                cut = _Cut()
    if cut.files:
        yield cut


def _walk(fs: Any, root: str, folder: str) -> Iterator[tuple[str, list[str]]]:
    """Folders that hold label files, and their names, both sorted; links to folders are not followed."""
    names, folders = _listed(fs, f"{root}/{folder}")
    if names:
        yield folder, names
    for name in folders:
        yield from _walk(fs, root, f"{folder}{name}/")


def _listed(fs: Any, place: str) -> tuple[list[str], list[str]]:
    """Names of the label files and of the folders in a folder, sorted."""
    shown = sorted(_entries(fs, place))
    return (
        [name for name, is_folder in shown if _is_label_file(name, is_folder)],
        [name for name, is_folder in shown if is_folder],
    )


def _is_label_file(name: str, is_folder: bool) -> bool:
    return not is_folder and name.endswith(ENDING)


def _entries(fs: Any, place: str) -> Iterator[tuple[str, bool]]:
    """Name of everything in a folder, and whether it is a folder; hidden ones are left out."""
    if _is_local(fs):
        with os.scandir(place) as entries:  # 20 times faster than through fsspec
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name, entry.is_dir(follow_symlinks=False)
        return
    for one in fs.ls(place.rstrip("/"), detail=True, refresh=True):  # not what this process saw before
        name = str(one["name"]).rstrip("/").rsplit("/", 1)[-1]
        if not name.startswith("."):
            yield name, one["type"] == "directory"


def _is_local(fs: Any) -> bool:
    return "file" in np.atleast_1d(fs.protocol)


def _version(fs: Any, path: str) -> str:
    if _is_local(fs):
        status = os.stat(path)  # noqa: PTH116 - a Path costs twice the call
        return f"{status.st_size} {status.st_mtime_ns}"
    info = fs.info(path)  # answered from the listing
    return " ".join(
        str(info[key]) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created") if key in info
    )


def process_labels(study: Study, shard: Shard) -> Output:
    """Read the label files of one shard.

    Raises
    ------
    SourceError : a file can not be read, or files came or went since they were listed
    """
    fs, place = fsspec.core.url_to_fs(study.resolve(shard.work["root"]))
    root = str(place).rstrip("/")
    files = [
        f"{folder}{name}"
        for folder, first, last in shard.work["segments"]
        for name in sorted(
            name
            for name, is_folder in _entries(fs, f"{root}/{folder}")
            if first <= name <= last and _is_label_file(name, is_folder)
        )
    ]
    if len(files) != shard.size:
        raise SourceError(
            f"sources.detections: {shard.work['root']} had {shard.size} label files for shard {shard.name} when they were "
            f"listed, and has {len(files)} now: start again when nothing writes there any more"
        )
    ledger = Ledger("labels", len(files))
    police_class = study.settings.detection.police_class_number
    parts = [
        read_labels(contents, police_class=police_class, ledger=ledger)
        for contents in _contents(fs, [f"{root}/{file}" for file in files])
    ]
    image_ids = pd.Series([file.removesuffix(ENDING) for file in files], dtype="str")
    detections = DETECTIONS.conform(pd.concat(parts, ignore_index=True).assign(image_id=image_ids, **NOT_IN_LABELS))
    file = study.write(DETECTIONS, detections, f"{FOLDER}/{shard.name}.parquet")
    return Output((file,), len(files), len(detections), (ledger.close(len(detections)),))


def _contents(fs: Any, paths: list[str]) -> Iterator[list[bytes]]:
    """Content of files, in batches of a bounded size.

    Raises
    ------
    SourceError : a file can not be read
    """
    batch: list[bytes] = []
    held_bytes = 0
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(paths), _FILES_AT_ONCE):
            some = paths[start : start + _FILES_AT_ONCE]
            try:
                contents = _read_all(fs, some, readers)
            except remote_errors() as error:
                raise SourceError(f"a label file can not be read: {error}. Restore it and start again") from error
            batch += contents
            held_bytes += sum(map(len, contents))
            if held_bytes >= _BATCH_BYTES:
                yield batch
                batch, held_bytes = [], 0
    if batch or not paths:
        yield batch


def _read_all(fs: Any, paths: list[str], readers: ThreadPoolExecutor) -> list[bytes]:
    if not _is_local(fs):
        return contents_of(fs, paths)
    shares = [paths[start : start + _FILES_A_READER] for start in range(0, len(paths), _FILES_A_READER)]
    return [content for share in readers.map(_heads, shares) for content in share]


def _heads(paths: list[str]) -> list[bytes]:
    return [_head(path) for path in paths]


def _head(path: str) -> bytes:
    """Content of a file, of one that is too large just enough to tell."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A buffer for the largest file would take longer to get than most files to read.
        content = os.read(descriptor, _USUAL_FILE)
        while len(content) <= LARGEST_FILE and (more := os.read(descriptor, LARGEST_FILE)):
            content += more
        return content
    finally:
        os.close(descriptor)


LABELS = Stage("labels", unit="files", folders=(FOLDER,), plan=plan_labels, process=process_labels)

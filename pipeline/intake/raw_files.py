"""Raw files of a study: their order and versions."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from patrolscope.pipeline.engine.entries import ENTRIES
from patrolscope.pipeline.errors import BadFileError, SourceError
from patrolscope.pipeline.intake.compression import ENDINGS, form_of, open_text, readable
from patrolscope.pipeline.intake.raw_csv import Header, parse_header
from patrolscope.pipeline.intake.raw_lines import HEADER_BYTES
from patrolscope.pipeline.names import shown
from patrolscope.pipeline.study.adopt import adopt as adopt_settings
from patrolscope.pipeline.study.remote import is_local
from patrolscope.pipeline.study.store import Study

_CHUNK = 2**20  # bytes of text
SHOWN_NAMES = 10  # of files that are left out for one reason
# Folders of a study that hold its output. A simulated study also has source/, which holds raw files.
_WRITTEN = {written.split("/")[0] for entry in ENTRIES for written in entry.writes} - {"source"}


@dataclass(frozen=True)
class RawFile:
    """Raw file of metadata."""

    name: str  # the source of its rows
    path: str  # for study.resolve
    bytes: int
    modified: str
    form: str  # of the compression; "" for plain text
    header: Header


@dataclass
class RawFiles:
    """Files found under `sources.metadata`."""

    read: list[RawFile] = field(default_factory=list)  # in source order
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> sorted names of other files
    skipped: list[str] = field(default_factory=list)  # fault of each file that `ingest.skip_bad_files` skips


def adopt(
    root: str, *, sources: Sequence[str], trust: bool | None, keep_unknown: bool | None, skip_bad_files: bool | None
) -> list[str]:
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
    skip_bad_files : bool, optional
        Value of `ingest.skip_bad_files`; None to keep the setting.

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
        "ingest": {"trust": trust, "keep_unknown": keep_unknown, "skip_bad_files": skip_bad_files},
    }
    return adopt_settings(root, changes, may_make=bool(sources), check=find_raw_files if sources else None)


def find_raw_files(study: Study) -> RawFiles:
    """Find the raw files of `sources.metadata`, and read their headers.

    Folders are searched with their subfolders. A file is named by its path in the folder or below the fixed part of the
    pattern, so that every folder can have a metadata.csv. The order is by the numbers in the name, then by name.

    Raises
    ------
    SourceError
        If no file can be read, two have the same name, or files are unusable and `ingest.skip_bad_files` is not set.
        The message lists all of these faults.
    """
    if not study.settings.sources.metadata:
        raise SourceError(f"{study.root}/study.yaml has no raw metadata; add files or folders to sources.metadata")
    found = RawFiles()
    files: dict[str, tuple[Any, str]] = {}
    reasons: dict[str, str] = {}  # by path; a path can be listed under several entries
    faults: list[str] = []
    labeled = _labeled_sets(study)
    for entry in study.settings.sources.metadata:
        fs, candidates = _find(study.resolve(entry), faults)
        for name, place in candidates.items():
            if place in reasons:
                continue
            reasons[place] = _left_out(study, fs, name, place, labeled)
            if reasons[place]:
                found.left_out.setdefault(reasons[place], []).append(name)
                continue
            _, other = files.setdefault(name, (fs, place))
            if other != place:
                faults.append(
                    f"{other} and {place} have the same name, which identifies their rows; rename or remove one of them"
                )
        if all(reasons[place] for place in candidates.values()):
            faults.append(f"sources.metadata: {entry} holds no file; expected {_listed(ENDINGS)}{_others(candidates)}")
    bad: list[str] = []
    for name in sorted(files, key=_by_number):
        try:
            found.read.append(_open(study, name, *files[name]))
        except SourceError as error:
            bad.append(str(error))
    for names in found.left_out.values():
        names.sort()
    if faults or (bad and not (study.settings.ingest.skip_bad_files and found.read)):
        # Nothing will be read, so damage further inside is looked for now: all faults are reported at once.
        raise SourceError(listed_faults(faults, bad + _damage(found.read, files)))
    found.skipped = bad
    return found


def _damage(sources: Sequence[RawFile], files: Mapping[str, tuple[Any, str]]) -> list[str]:
    """Read compressed files to their ends, and return their faults."""
    faults = []
    for source in sources:
        if source.form:
            try:
                with open_text(*files[source.name], source.form, source.bytes) as text:
                    while text.read(_CHUNK):
                        pass
            except SourceError as error:
                faults.append(str(error))
    return faults


def listed_faults(faults: Sequence[str], bad: Sequence[str]) -> str:
    """Return a message about faults of the sources, and about bad files, which can be skipped."""
    lines = [*faults, *bad]
    if len(lines) == 1 and not bad:
        return lines[0]
    skip = f"; fix or remove {'it' if len(bad) == 1 else 'them'}, or run `patrolscope ingest --skip-bad-files`"
    if len(lines) == 1:
        return f"{lines[0]}{skip}"
    return f"{len(lines)} faults in sources.metadata{skip if bad else ''}:\n  " + "\n  ".join(lines)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _others(candidates: Collection[str]) -> str:
    return f"; it has {len(candidates)} others, such as {shown(min(candidates))}" if candidates else ""


def _by_number(name: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)], name


def _find(path: str, faults: list[str]) -> tuple[Any, dict[str, str]]:
    """Return the file system and the files of a path, folder, or glob pattern: path by name."""
    fs, place = fsspec.core.url_to_fs(path)
    # Without "." as a part, with which the parts of a study have no common start.
    place = str(PurePosixPath(place)) if is_local(fs) else str(place).rstrip("/")
    if fs.isdir(place):
        return fs, {file[len(place) + 1 :]: file for file in _files_below(fs, place, faults)}
    if fs.exists(place):
        return fs, {place.rsplit("/", 1)[-1]: place}
    fixed = re.split(r"[*?\[]", place, maxsplit=1)[0].rpartition("/")[0]
    matches = [str(match) for match in fs.glob(place)]
    files = [file for match in matches for file in (_files_below(fs, match, faults) if fs.isdir(match) else [match])]
    return fs, {file[len(fixed) + 1 :]: file for file in files}


def _files_below(fs: Any, folder: str, faults: list[str]) -> list[str]:
    """Return all files of a folder and its subfolders, without following links to folders."""
    if not is_local(fs):
        return [str(name) for name in fs.find(folder)]
    # fsspec omits folders that it cannot list.
    walked = os.walk(folder, onerror=lambda error: faults.append(f"cannot list {error.filename}: {error.strerror}"))
    found = []
    for root, folders, names in walked:
        found += [f"{root}/{name}" for name in (*names, *folders) if name in names or Path(root, name).is_symlink()]
    return found


def _labeled_sets(study: Study) -> set[str]:
    sources = study.settings.sources
    paths = (sources.validation, sources.test)
    return {_real(*fsspec.core.url_to_fs(study.resolve(path))) for path in paths if path}


def _real(fs: Any, place: str) -> str:
    """Return a path by which a file is recognized: without links, if it is local."""
    return os.path.realpath(place) if is_local(fs) else str(place)


def _left_out(study: Study, fs: Any, name: str, place: str, labeled: Collection[str]) -> str:
    """Return why a file is not read; "" if it is."""
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden"
    if not name.lower().endswith(ENDINGS):
        return f"name does not end with {_listed(ENDINGS)}"
    real, base = _real(fs, place), _real(study.fs, study.base)
    if real in labeled:
        return "labeled set of study.yaml"
    if real.startswith(f"{base}/") and real[len(base) + 1 :].split("/")[0] in _WRITTEN:
        return "written by patrolscope"
    if is_local(fs) and not Path(place).is_file():
        return "not a file, but a device, or a link to nothing or to a folder"
    return ""


def _open(study: Study, name: str, fs: Any, place: str) -> RawFile:
    if shown(name) != name:
        raise BadFileError(f"{shown(place)} has a name with control characters or in another encoding; rename it")
    with readable(place):
        size, modified = identity(fs, place)
        head = fs.cat_file(place, start=0, end=min(size, HEADER_BYTES)) if size else b""
    form = form_of(head)
    if form:
        with open_text(fs, place, form, size) as text:
            head = text.read(HEADER_BYTES)
    if place.startswith(f"{study.base}/") and type(fs) is type(study.fs):
        path = place.removeprefix(f"{study.base}/")  # the study folder can be moved
    else:
        path = place if is_local(fs) else fs.unstrip_protocol(place)
    return RawFile(name, path, size, modified, form, parse_header(head, where=place))


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

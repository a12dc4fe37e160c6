"""Public data sets: what data_catalog.yaml says of them, how they come into the cache, where a study finds them.

The cache holds <entry>/<file> and beside it <entry>.json, which says what came, from where and when. A file has its
final name only when it is whole and verified.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.resources
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any

import pooch
import requests
import tqdm
import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Frozen, Layer
from patrolscope.pipeline.study.store import Study, fingerprint

CATALOG_FILE = "data_catalog.yaml"
PACKAGE = "package:"
_LOCK = ".lock"
# Seconds for the connection, and between two pieces: the city's portal thinks for half a minute before a large export.
_TIMEOUT_S = (30, 120)
# Small enough that a broken connection costs little of what had come.
_PIECE_BYTES = 64 * 2**10


class AcceptedFile(Frozen):
    """A file that an entry's reader can read."""

    name: str  # or a glob pattern; the first of an entry is the official one, and the name under which it is stored
    sha256: str | None = None  # where one file and no other can have this name
    note: str = ""

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, digest: str | None) -> str | None:
        if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError("64 hexadecimal digits in lower case")
        return digest


class CatalogEntry(Frozen):
    """One public data set."""

    title: str
    agency: str
    address: str  # official, or of the public file where there is no official one; package:NAME lies in a package
    downloadable: bool = True  # `address` delivers the file
    how: str = ""  # else: what the user does to get it
    format: str
    crs: str | None = None  # of the first file; taken where a file does not name its own
    license: str
    vintage: str
    columns: dict[str, tuple[str, ...]]  # what we call it -> its name in the file, or names, the first that is there
    codes: dict[str, dict[str, str]] = Field(default_factory=dict)  # ours -> value in the file -> our value
    select: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # ours -> only rows whose value begins so
    member: str = "*.shp"  # which file of a zip archive, a pattern
    files: tuple[AcceptedFile, ...]
    reader: str  # function of pipeline.readers
    used_by: tuple[str, ...]

    @field_validator("columns", mode="before")
    @classmethod
    def _one_or_many(cls, columns: Any) -> Any:
        if not isinstance(columns, dict):
            return columns
        return {key: (names,) if isinstance(names, str) else names for key, names in columns.items()}

    @model_validator(mode="after")
    def _can_be_had(self) -> CatalogEntry:
        if not self.files:
            raise ValueError("files: at least one file name")
        if self.downloadable and any(sign in self.files[0].name for sign in "*?["):
            raise ValueError(f"files: {self.files[0].name} is a pattern; a download needs a name to be stored under")
        if self.downloadable == bool(self.how):
            raise ValueError("how: says how to get a file that is not downloadable, and only that")
        return self

    @property
    def package(self) -> str:
        """Python package that holds the file, or nothing."""
        return self.address.removeprefix(PACKAGE) if self.address.startswith(PACKAGE) else ""

    def accepted(self, name: str) -> AcceptedFile | None:
        """The accepted file that a name matches."""
        return next((file for file in self.files if fnmatchcase(name, file.name)), None)


class Fetched(Frozen):
    """What came for an entry: the content of <entry>.json in the cache."""

    file: str
    sha256: str
    bytes: int
    modified_ns: int  # of the file in the cache
    source: str  # address, or path of the file that was copied
    fetched_at: str  # UTC, ISO 8601


def parse_catalog(text: str, *, where: str) -> dict[str, CatalogEntry]:
    """Entries by name from the text of a data_catalog.yaml; `where` names it in errors.

    Raises
    ------
    SourceError : not YAML, an unknown key, a missing one; every fault is named
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SourceError(f"{where} is not YAML: {error}") from error
    try:
        entries = TypeAdapter(dict[str, CatalogEntry]).validate_python(content)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise SourceError("\n".join([f"{where}:", *faults])) from error
    for name in entries:
        if not re.fullmatch("[a-z0-9_]+", name):
            raise SourceError(
                f"{where}: {name!r} must be of small letters, digits and _: it names a folder of the cache"
            )
    return entries


@cache
def load_catalog() -> Mapping[str, CatalogEntry]:
    """Entries by name, of the data_catalog.yaml that comes with the program; read once a process."""
    path = files("patrolscope") / CATALOG_FILE
    return parse_catalog(path.read_text(encoding="utf-8"), where=str(path))


def study_entries(study: Study) -> dict[str, CatalogEntry]:
    """Entries of a data_catalog.yaml in the study's own folder: data sets of another city."""
    if not study.exists(CATALOG_FILE):
        return {}
    return parse_catalog(study.read_bytes(CATALOG_FILE).decode(), where=study.path(CATALOG_FILE))


def cache_dir(override: str | Path | None = None) -> Path:
    """Folder that keeps fetched files: `override`, or the user's cache folder of this program."""
    return Path(pooch.os_cache("patrolscope") if override is None else override).expanduser().absolute()


# Finding what is there.


def locate(layer: Layer, study: Study, cache: Path | None = None) -> tuple[CatalogEntry, Path]:
    """Entry of a layer, and the file that holds it: the study's own, the cached one, or that of a package.

    Raises
    ------
    SourceError : the file is not there, or is not what was fetched; says which command brings it
    """
    own = study_entries(study)
    entry = _entry({**load_catalog(), **own}, layer.entry)
    if layer.path is not None:
        where = study.resolve(layer.path)
        if not Path(where).is_file():
            raise SourceError(f"{where}, which study.yaml names for {layer.entry}, is no file on this machine")
        return entry, Path(where)
    if entry.package:
        return entry, _package_file(entry)
    if layer.entry in own:
        raise SourceError(
            f"{layer.entry} is an entry of {study.path(CATALOG_FILE)}: say in study.yaml where its file lies "
            f"({{entry: {layer.entry}, path: FILE}})"
        )
    cache = cache_dir(cache)
    fetched = _read_fetched(cache, layer.entry)
    if fetched is None or not (cache / layer.entry / fetched.file).is_file():
        raise SourceError(f"{layer.entry} ({entry.title}) is not in {cache}: {_how_to_get(layer.entry, entry)}")
    path = cache / layer.entry / fetched.file
    if not _is_current(entry, fetched, path):
        raise SourceError(f"{path} is not the file that was fetched: {_how_to_get(layer.entry, entry)}")
    return entry, path


def layer_files(study: Study) -> list[str]:
    """Files of this machine that a study's layers are read from, but for those that come with a package.

    Files that are not there are left out: the stage that reads the layers says which.
    """
    files = []
    for _, layer in study.settings.layers:
        if layer is None:
            continue
        try:
            entry, path = locate(layer, study, None if study.settings.cache is None else Path(study.settings.cache))
        except SourceError:
            continue
        if layer.path is not None or not entry.package:
            files.append(str(path))
    return files


def layer_fingerprint(entry: CatalogEntry, path: Path) -> str:
    """Digest of a file's content and of how its entry reads it: a changed boundary makes shards stale.

    A cached file that has not been touched is not read again: its digest was taken when it was fetched.
    """
    fetched = _read_fetched(path.parent.parent, path.parent.name)
    state = path.stat()
    known = fetched is not None and (fetched.file, fetched.bytes, fetched.modified_ns) == (
        path.name,
        state.st_size,
        state.st_mtime_ns,
    )
    digest = fetched.sha256 if known and fetched is not None else pooch.file_hash(str(path))
    return fingerprint(digest, entry.reader, entry.columns, entry.codes, entry.select, entry.member, entry.crs)


def _entry(entries: Mapping[str, CatalogEntry], name: str) -> CatalogEntry:
    if name not in entries:
        raise SourceError(f"there is no data set {name!r}; there are {', '.join(entries)}")
    return entries[name]


def _package_file(entry: CatalogEntry) -> Path:
    resource = importlib.resources.files(entry.package).joinpath(entry.files[0].name)
    path = Path(str(resource))
    if not path.is_file():
        raise SourceError(f"{path} is missing: the package {entry.package} is broken or too new, install it again")
    return path


def _read_fetched(cache: Path, name: str) -> Fetched | None:
    try:
        return Fetched.model_validate_json((cache / f"{name}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _is_current(entry: CatalogEntry, fetched: Fetched, path: Path) -> bool:
    """Whether the file in the cache is the one that came, and still the one that the catalog wants."""
    wanted = entry.accepted(fetched.file)
    return (
        path.is_file()
        and path.stat().st_size == fetched.bytes
        and wanted is not None
        and wanted.sha256 in (None, fetched.sha256)
    )


def _how_to_get(name: str, entry: CatalogEntry) -> str:
    files = " or ".join(file.name for file in entry.files)
    from_folder = f"`patrolscope fetch --from DIR {name}` takes it from a folder that holds {files}"
    if entry.downloadable:
        return f"`patrolscope fetch {name}` (with --cache, if given here) brings it from {entry.address}; {from_folder}"
    return f"{from_folder}. {entry.how} ({entry.address})"


# Fetching.


def fetch_all(
    names: Sequence[str], *, cache: Path | None = None, from_dir: Path | None = None, progress: bool = True
) -> Iterator[str]:
    """Fetch entries, all when none is named, and say a line of each.

    Without names, what a folder does not hold or what can not be downloaded is said and passed over.

    Raises
    ------
    SourceError : an entry that is named can not be had; a download failed
    """
    entries = load_catalog()
    folder = cache_dir(cache)
    for name in names or entries:
        entry = _entry(entries, name)
        if not names and from_dir is not None and not entry.package and _find(entry, from_dir) is None:
            yield f"{name}: none of {', '.join(file.name for file in entry.files)} in {from_dir}"
            continue
        if not names and from_dir is None and not entry.downloadable and _cached(folder, name, entry) is None:
            yield f"{name}: {entry.how}"
            continue
        path = fetch(name, entry, folder, from_dir=from_dir, progress=progress)
        yield f"{name}: {path} ({path.stat().st_size / 1e6:,.1f} MB)"


def fetch(
    entry_name: str, entry: CatalogEntry, cache: Path, from_dir: Path | None = None, progress: bool = True
) -> Path:
    """Bring an entry's file into the cache, verified and whole; what is there already is left.

    Parameters
    ----------
    cache : folder of the cache; the file becomes cache/<entry_name>/<file name>
    from_dir : take the file from this folder (searched through) instead of from the network
    progress : draw a bar on the standard error output

    A download that was interrupted goes on where it stopped, if the server can do that and its file is the same.

    Raises
    ------
    SourceError : there is no such file in the folder, or several; the network failed; the checksum is another
    """
    if entry.package:
        return _package_file(entry)
    folder = cache / entry_name
    with _hold(folder, entry_name):
        if from_dir is not None:
            path, source = _copy(entry_name, entry, from_dir, folder)
        elif (there := _cached(cache, entry_name, entry)) is not None:
            return there
        elif entry.downloadable:
            path, source = _download(entry, folder, progress=progress), entry.address
        else:
            raise SourceError(entry.how)
        _record(path, source, cache / f"{entry_name}.json")
        _sweep(folder, keep=path)
    return path


def _cached(cache: Path, name: str, entry: CatalogEntry) -> Path | None:
    fetched = _read_fetched(cache, name)
    if fetched is None or not _is_current(entry, fetched, cache / name / fetched.file):
        return None
    return cache / name / fetched.file


@contextlib.contextmanager
def _hold(folder: Path, name: str) -> Iterator[None]:
    """Keep a second `fetch` from writing into the same half file; the system lets go when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise SourceError(f"the cache can not be written to: {error}. Name another folder with --cache") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SourceError(f"{name} is being fetched by another process: wait for it, or stop it") from error
        yield


def _record(path: Path, source: str, where: Path) -> None:
    state = path.stat()
    fetched = Fetched(
        file=path.name,
        sha256=pooch.file_hash(str(path)),
        bytes=state.st_size,
        modified_ns=state.st_mtime_ns,
        source=source,
        fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    aside = where.with_suffix(".tmp")
    aside.write_text(fetched.model_dump_json(indent=1) + "\n")
    aside.replace(where)


def _sweep(folder: Path, keep: Path) -> None:
    """Remove what an earlier file or a killed process left."""
    for path in folder.iterdir():
        if path not in (keep, folder / _LOCK):
            path.unlink()


# From a folder.


def _find(entry: CatalogEntry, from_dir: Path) -> tuple[AcceptedFile, list[Path]] | None:
    """First accepted file of an entry that lies in a folder or below it, and everything that matches it."""
    if not from_dir.is_dir():
        raise SourceError(f"{from_dir} is no folder")
    below = sorted(path for path in from_dir.rglob("*") if path.is_file())
    for file in entry.files:
        if matches := [path for path in below if fnmatchcase(path.name, file.name)]:
            return file, matches
    return None


def _copy(name: str, entry: CatalogEntry, from_dir: Path, folder: Path) -> tuple[Path, str]:
    found = _find(entry, from_dir)
    if found is None:
        accepted = ", ".join(file.name for file in entry.files)
        raise SourceError(f"{from_dir} holds no file for {name} ({entry.title}): looked for {accepted}")
    file, matches = found
    if len(matches) > 1:
        listed = ", ".join(map(str, matches))
        raise SourceError(f"several files for {name}: {listed}. Name a folder that holds one, or remove the others")
    source = matches[0]
    aside = folder / f"{source.name}.tmp"
    try:
        shutil.copyfile(source, aside)
        if file.sha256 is not None and (came := pooch.file_hash(str(aside))) != file.sha256:
            raise SourceError(
                f"{source} has the SHA-256 checksum {came}, {CATALOG_FILE} says {file.sha256}: "
                "it is damaged or another issue. Take a good copy"
            )
        path = folder / source.name
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path, str(source)


# From the network.


def _download(entry: CatalogEntry, folder: Path, *, progress: bool) -> Path:
    file = entry.files[0]
    path = folder / file.name
    if file.sha256 is None:
        path.unlink(missing_ok=True)  # pooch would take a file of unknown checksum for good
    pooch.get_logger().setLevel(logging.WARNING)  # it advises developers; the bar shows what happens

    def resume(address: str, output_file: str, _pooch: object) -> None:
        _download_rest(address, folder / f"{file.name}.part", progress=progress)
        (folder / f"{file.name}.part").replace(output_file)

    try:
        pooch.retrieve(
            entry.address,
            known_hash=None if file.sha256 is None else f"sha256:{file.sha256}",
            fname=file.name,
            path=folder,
            downloader=resume,
        )
    except ValueError as error:  # pooch's word for a wrong checksum
        raise SourceError(
            f"{entry.address} delivered something else than {CATALOG_FILE} describes, and it was not kept: {error}"
        ) from error
    return path


def _download_rest(address: str, part: Path, *, progress: bool) -> None:
    """Make `part` the whole file of an address; what it holds of that file already is not asked for again."""
    notes = part.with_name(f"{part.name}.json")
    have = part.stat().st_size if part.is_file() else 0
    version = _version_of_part(notes, address)
    headers = {"User-Agent": "patrolscope", "Accept-Encoding": "identity"}  # else ranges count compressed bytes
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with requests.get(address, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            span = response.headers.get("Content-Range", "")
            # A server that can not resume, or whose file has changed, answers 200 with everything.
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT and span.startswith(f"bytes {have}-")
            strange = response.status_code in (
                HTTPStatus.PARTIAL_CONTENT,
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            )
            if "Range" in headers and strange and not resumed:
                if span == f"bytes */{have}":
                    return  # it stopped after the last byte
                part.unlink()
                _download_rest(address, part, progress=progress)
                return
            response.raise_for_status()
            length = None if "Content-Encoding" in response.headers else response.headers.get("Content-Length")
            whole = None if length is None else int(length) + (have if resumed else 0)
            notes.write_text(json.dumps({"address": address, "version": _version(response)}))
            bar = tqdm.tqdm(
                desc=part.stem,
                total=whole,
                initial=have if resumed else 0,
                unit="B",
                unit_scale=True,
                disable=not progress,
            )
            with part.open("ab" if resumed else "wb") as file, bar:
                for piece in response.iter_content(_PIECE_BYTES):
                    file.write(piece)
                    bar.update(len(piece))
    except requests.HTTPError as error:
        raise SourceError(f"{error}. Look for the file in a browser, then `patrolscope fetch --from DIR`") from error
    except requests.RequestException as error:
        came = part.stat().st_size if part.is_file() else 0
        raise SourceError(
            f"{address} failed after {came:,} bytes ({error}): start the same command again when the network is back, "
            "it goes on from there; or get the file elsewhere and use `patrolscope fetch --from DIR`"
        ) from error
    if whole is not None and part.stat().st_size != whole:
        raise SourceError(
            f"{address} ended after {part.stat().st_size:,} of {whole:,} bytes: start the same command again"
        )
    notes.unlink()


def _version(response: requests.Response) -> str | None:
    """What names this state of the file for If-Range: a strong ETag, else the time of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _version_of_part(notes: Path, address: str) -> str | None:
    try:
        content = json.loads(notes.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return content.get("version") if content.get("address") == address else None

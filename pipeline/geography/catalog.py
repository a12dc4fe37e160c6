"""Public data sets: the entries of data_catalog.yaml, and the files where a study finds them.

The cache holds <entry>/<file>, and <entry>.json with the source and date of the file. A file has its final name only
when it is complete and verified.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pooch
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Frozen, Layer
from patrolscope.pipeline.study.store import Study, fingerprint
from patrolscope.safe_yaml import YamlFileError, load_yaml

CATALOG_FILE = "data_catalog.yaml"
PACKAGE = "package:"


class AcceptedFile(Frozen):
    """File that an entry's reader accepts."""

    name: str  # or a glob pattern; the first of an entry is the official name, under which a download is stored
    sha256: str | None = None  # if only one file can have this name
    note: str = ""

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, digest: str | None) -> str | None:
        if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError("expected 64 hexadecimal digits in lower case")
        return digest


class CatalogEntry(Frozen):
    """Public data set."""

    title: str
    agency: str
    address: str  # official, or a public copy where there is no official file; package:NAME is inside a package
    downloadable: bool = True  # `address` delivers the file
    how: str = ""  # how the user gets a file that is not downloadable
    format: str
    crs: str | None = None  # of the first file; used for files without a CRS
    license: str
    vintage: str
    columns: dict[str, tuple[str, ...]]  # our name -> accepted names in the file, of which the first present one counts
    codes: dict[str, dict[str, str]] = Field(default_factory=dict)  # our column -> value in the file -> our value
    select: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # our column -> prefixes of the selected values
    time_format: str = "%m/%d/%Y %H:%M:%S"  # of local dates, with a blank before the time if it has its own column
    member: str = "*.shp"  # pattern of the file to read in a zip archive
    files: tuple[AcceptedFile, ...]
    reader: str  # function in pipeline.geography.readers
    used_by: tuple[str, ...]

    @field_validator("columns", mode="before")
    @classmethod
    def _as_tuples(cls, columns: Any) -> Any:
        if not isinstance(columns, dict):
            return columns
        return {key: (names,) if isinstance(names, str) else names for key, names in columns.items()}

    @field_validator("time_format")
    @classmethod
    def _holds_a_date(cls, text: str) -> str:
        day = datetime(2020, 10, 5)  # noqa: DTZ001 - local time
        try:
            read = datetime.strptime(day.strftime(text), text)  # noqa: DTZ007
        except ValueError as error:
            raise ValueError(f"{text!r} is not a format: {error}") from error
        if read != day:
            raise ValueError(f"{text!r} holds no day, or an offset; expected a local time, such as %Y-%m-%d %H:%M:%S")
        return text

    @model_validator(mode="after")
    def _check_source(self) -> CatalogEntry:
        if not self.files:
            raise ValueError("files: expected at least one file name")
        if self.downloadable and any(sign in self.files[0].name for sign in "*?["):
            raise ValueError(f"files: {self.files[0].name} is a pattern; a download needs a file name")
        if self.downloadable == bool(self.how):
            raise ValueError("how: required for a file that is not downloadable, and for no other")
        return self

    @property
    def package(self) -> str:
        """Python package that contains the file, or an empty string."""
        return self.address.removeprefix(PACKAGE) if self.address.startswith(PACKAGE) else ""

    def accepted(self, name: str) -> AcceptedFile | None:
        """Return the first accepted file that matches a name."""
        return next((file for file in self.files if fnmatchcase(name, file.name)), None)


class Fetched(Frozen):
    """Source of a cached file: the content of <entry>.json in the cache."""

    file: str
    sha256: str
    bytes: int
    modified_ns: int  # of the cached file
    source: str  # address, or path of the copied file
    fetched_at: str  # UTC, ISO 8601


def parse_catalog(text: str | bytes, *, where: str) -> dict[str, CatalogEntry]:
    """Parse the content of a data_catalog.yaml into entries by name; `where` names it in errors.

    Raises
    ------
    SourceError
        If it is not YAML in UTF-8, or has duplicate, unknown, or missing keys; the message lists every problem.
    """
    try:
        content = load_yaml(text, where=where)
    except YamlFileError as error:
        raise SourceError(str(error)) from error
    try:
        entries = TypeAdapter(dict[str, CatalogEntry]).validate_python(content)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise SourceError("\n".join([f"{where}:", *faults])) from error
    for name in entries:
        if not re.fullmatch("[a-z0-9_]+", name):
            raise SourceError(
                f"{where}: {name!r} names a folder of the cache; expected lowercase letters, digits, and underscores"
            )
    return entries


@cache
def load_catalog() -> Mapping[str, CatalogEntry]:
    """Load the entries of the data_catalog.yaml that is part of patrolscope, once per process."""
    path = files("patrolscope") / CATALOG_FILE
    return parse_catalog(path.read_text(encoding="utf-8"), where=str(path))


def study_entries(study: Study) -> dict[str, CatalogEntry]:
    """Return the entries of a data_catalog.yaml in the study folder, which describe data sets of another city."""
    if not study.exists(CATALOG_FILE):
        return {}
    return parse_catalog(study.read_bytes(CATALOG_FILE), where=study.path(CATALOG_FILE))


def cache_dir(override: str | Path | None = None) -> Path:
    """Return the folder of cached files: `override`, or the user's cache folder of patrolscope."""
    return Path(pooch.os_cache("patrolscope") if override is None else override).expanduser().absolute()


def locate(layer: Layer, study: Study, cache: Path | None = None) -> tuple[CatalogEntry, Path]:
    """Find the entry of a layer and its file: the study's own, the cached one, or that of a package.

    Parameters
    ----------
    layer : Layer
        Layer from the settings of the study.
    study : Study
        Study of the layer.
    cache : Path, optional
        Cache folder instead of the user's.

    Raises
    ------
    SourceError
        If the file is missing, or differs from the fetched one; the message gives the command that fetches it.
    """
    own = study_entries(study)
    entry = find_entry({**load_catalog(), **own}, layer.entry)
    if layer.path is not None:
        where = study.resolve(layer.path)
        if not Path(where).is_file():
            raise SourceError(f"{where}, the path of {layer.entry} in study.yaml, is not a file on this machine")
        return entry, Path(where)
    if entry.package:
        return entry, package_file(entry)
    if layer.entry in own:
        raise SourceError(
            f"{layer.entry} is an entry of {study.path(CATALOG_FILE)} without a file; add its path to study.yaml "
            f"({{entry: {layer.entry}, path: FILE}})"
        )
    cache = cache_dir(cache)
    fetched = read_fetched(cache, layer.entry)
    if fetched is None or not (cache / layer.entry / fetched.file).is_file():
        raise SourceError(f"{layer.entry} ({entry.title}) is not in {cache}; {_how_to_get(layer.entry, entry)}")
    path = cache / layer.entry / fetched.file
    if not is_current(entry, fetched, path):
        raise SourceError(f"{path} is not the file that was fetched; {_how_to_get(layer.entry, entry)}")
    return entry, path


def layer_files(study: Study) -> list[str]:
    """Return the local files of a study's layers, without those inside packages.

    Missing files are left out; the stage that reads the layers reports them.
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
    """Compute a digest of a file's content and of the way its entry reads it, so that changes make shards stale.

    The digest of a cached file was computed when it was fetched, and serves as long as the file is untouched.
    """
    fetched = read_fetched(path.parent.parent, path.parent.name)
    state = path.stat()
    known = fetched is not None and (fetched.file, fetched.bytes, fetched.modified_ns) == (
        path.name,
        state.st_size,
        state.st_mtime_ns,
    )
    digest = fetched.sha256 if known and fetched is not None else pooch.file_hash(str(path))
    return fingerprint(
        digest, entry.reader, entry.columns, entry.codes, entry.select, entry.member, entry.crs, entry.time_format
    )


def find_entry(entries: Mapping[str, CatalogEntry], name: str) -> CatalogEntry:
    """Return an entry by name.

    Raises
    ------
    SourceError
        If there is no such entry.
    """
    if name not in entries:
        raise SourceError(f"there is no data set {name!r}; expected one of {', '.join(entries)}")
    return entries[name]


def package_file(entry: CatalogEntry) -> Path:
    """Return the file of an entry inside its Python package.

    Raises
    ------
    SourceError
        If the package does not contain it.
    """
    resource = importlib.resources.files(entry.package).joinpath(entry.files[0].name)
    path = Path(str(resource))
    if not path.is_file():
        raise SourceError(f"{path} is missing: the package {entry.package} is broken or too new; reinstall it")
    return path


def read_fetched(cache: Path, name: str) -> Fetched | None:
    """Read <entry>.json of the cache; None if it is missing or damaged."""
    try:
        return Fetched.model_validate_json((cache / f"{name}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def is_current(entry: CatalogEntry, fetched: Fetched, path: Path) -> bool:
    """Return whether a cached file is the fetched one, and still accepted by the catalog.

    Parameters
    ----------
    entry : CatalogEntry
        Entry of the data set.
    fetched : Fetched
        Record of the fetched file.
    path : Path
        Cached file.
    """
    accepted = entry.accepted(fetched.file)
    return (
        path.is_file()
        and path.stat().st_size == fetched.bytes
        and accepted is not None
        and accepted.sha256 in (None, fetched.sha256)
    )


def _how_to_get(name: str, entry: CatalogEntry) -> str:
    files = " or ".join(file.name for file in entry.files)
    from_folder = f"`patrolscope fetch --from DIR {name}` copies it from a folder that holds {files}"
    if entry.downloadable:
        return f"`patrolscope fetch {name}` (with --cache, if used here) downloads {entry.address}; {from_folder}"
    return f"{from_folder}. {entry.how} ({entry.address})"

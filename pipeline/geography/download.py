"""Fetching of public data sets into the cache, from the network or from a folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path

import pooch
import requests
import tqdm

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.catalog import (
    CATALOG_FILE,
    AcceptedFile,
    CatalogEntry,
    Fetched,
    cache_dir,
    find_entry,
    is_current,
    load_catalog,
    package_file,
    read_fetched,
)

_LOCK = ".lock"
# Seconds to connect, and between two chunks: the city portal prepares a large export for half a minute.
_TIMEOUT_S = (30, 120)
_CHUNK_BYTES = 64 * 2**10  # lost at most when a connection breaks


def fetch_all(
    names: Sequence[str], *, cache: Path | None = None, from_dir: Path | None = None, progress: bool = True
) -> Iterator[str]:
    """Fetch entries, and yield a line about each.

    Parameters
    ----------
    names : sequence of str
        Entries to fetch; none for all. With none, files that are missing from `from_dir`, or that cannot be downloaded,
        are reported and skipped.
    cache : Path, optional
        Cache folder instead of the user's.
    from_dir : Path, optional
        Folder to copy the files from, instead of a download.
    progress : bool
        Whether to draw a progress bar.

    Raises
    ------
    SourceError
        If a named entry is not available, or a download fails.
    """
    entries = load_catalog()
    folder = cache_dir(cache)
    for name in names or entries:
        entry = find_entry(entries, name)
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
    """Fetch an entry's file into the cache, and verify it; keep a file that is already cached.

    An interrupted download resumes if the server supports it and the file is unchanged.

    Parameters
    ----------
    entry_name : str
        Name of the entry.
    entry : CatalogEntry
        Entry of the data set.
    cache : Path
        Cache folder; the file becomes cache/<entry_name>/<file name>.
    from_dir : Path, optional
        Folder to search, with its subfolders, for the file, instead of a download.
    progress : bool
        Whether to draw a progress bar on standard error.

    Returns
    -------
    Path
        Cached file.

    Raises
    ------
    SourceError
        If the folder holds no such file or several, the network fails, or the checksum differs.
    """
    if entry.package:
        return package_file(entry)
    folder = cache / entry_name
    with _hold(folder, entry_name):
        if from_dir is not None:
            path, source = _copy(entry_name, entry, from_dir, folder)
        elif (cached := _cached(cache, entry_name, entry)) is not None:
            return cached
        elif entry.downloadable:
            path, source = _download(entry, folder, progress=progress), entry.address
        else:
            raise SourceError(entry.how)
        _record(path, source, cache / f"{entry_name}.json")
        _sweep(folder, keep=path)
    return path


def _cached(cache: Path, name: str, entry: CatalogEntry) -> Path | None:
    fetched = read_fetched(cache, name)
    if fetched is None or not is_current(entry, fetched, cache / name / fetched.file):
        return None
    return cache / name / fetched.file


@contextlib.contextmanager
def _hold(folder: Path, name: str) -> Iterator[None]:
    """Lock a folder of the cache against a second `fetch`; the system releases the lock when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise SourceError(f"cannot write to the cache: {error}; choose a different folder with --cache") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SourceError(f"{name} is being fetched by another process; wait for it, or stop it") from error
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
    temporary = where.with_suffix(".tmp")
    temporary.write_text(fetched.model_dump_json(indent=1) + "\n")
    temporary.replace(where)


def _sweep(folder: Path, keep: Path) -> None:
    """Remove earlier files, and leftovers of killed processes."""
    for path in folder.iterdir():
        if path not in (keep, folder / _LOCK):
            path.unlink()


# Copies from a folder.


def _find(entry: CatalogEntry, from_dir: Path) -> tuple[AcceptedFile, list[Path]] | None:
    """Find the first accepted file of an entry in a folder or below it, and all paths that match it."""
    if not from_dir.is_dir():
        raise SourceError(f"{from_dir} is not a folder")
    below = sorted(path for path in from_dir.rglob("*") if path.is_file())
    for file in entry.files:
        if matches := [path for path in below if fnmatchcase(path.name, file.name)]:
            return file, matches
    return None


def _copy(name: str, entry: CatalogEntry, from_dir: Path, folder: Path) -> tuple[Path, str]:
    found = _find(entry, from_dir)
    if found is None:
        accepted = ", ".join(file.name for file in entry.files)
        raise SourceError(f"{from_dir} holds no file for {name} ({entry.title}); expected one of {accepted}")
    file, matches = found
    if len(matches) > 1:
        listed = ", ".join(map(str, matches))
        raise SourceError(f"several files for {name}: {listed}; choose a folder with one of them, or remove the others")
    source = matches[0]
    temporary = folder / f"{source.name}.tmp"
    try:
        shutil.copyfile(source, temporary)
        if file.sha256 is not None and (digest := pooch.file_hash(str(temporary))) != file.sha256:
            raise SourceError(
                f"{source} has the SHA-256 checksum {digest}; expected {file.sha256} ({CATALOG_FILE}); the file is "
                "damaged or another release, use a good copy"
            )
        path = folder / source.name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path, str(source)


# Downloads.


def _download(entry: CatalogEntry, folder: Path, *, progress: bool) -> Path:
    file = entry.files[0]
    path = folder / file.name
    if file.sha256 is None:
        path.unlink(missing_ok=True)  # pooch would accept an existing file without a checksum
    pooch.get_logger().setLevel(logging.WARNING)  # its messages address developers; the bar shows the progress

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
    except ValueError as error:  # raised by pooch for a wrong checksum
        raise SourceError(
            f"{entry.address} delivered a file that differs from {CATALOG_FILE}, which was discarded: {error}"
        ) from error
    return path


def _download_rest(address: str, part: Path, *, progress: bool) -> None:
    """Complete `part` to the file at an address, without requesting the bytes that it already has."""
    notes = part.with_name(f"{part.name}.json")
    have = part.stat().st_size if part.is_file() else 0
    version = _version_of_part(notes, address)
    headers = {"User-Agent": "patrolscope", "Accept-Encoding": "identity"}  # ranges would count compressed bytes
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with requests.get(address, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            span = response.headers.get("Content-Range", "")
            # A server that cannot resume, or whose file has changed, answers 200 with the complete file.
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT and span.startswith(f"bytes {have}-")
            unexpected = response.status_code in (
                HTTPStatus.PARTIAL_CONTENT,
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            )
            if "Range" in headers and unexpected and not resumed:
                if span == f"bytes */{have}":
                    return  # the part is complete already
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
                for chunk in response.iter_content(_CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
    except requests.HTTPError as error:
        raise SourceError(f"{error}; find the file in a browser, then run `patrolscope fetch --from DIR`") from error
    except requests.RequestException as error:
        received = part.stat().st_size if part.is_file() else 0
        raise SourceError(
            f"{address} failed after {received:,} bytes ({error}); run the same command to resume when the network is "
            "back, or get the file elsewhere and run `patrolscope fetch --from DIR`"
        ) from error
    if whole is not None and part.stat().st_size != whole:
        raise SourceError(
            f"{address} ended after {part.stat().st_size:,} of {whole:,} bytes; run the same command to resume"
        )
    notes.unlink()


def _version(response: requests.Response) -> str | None:
    """Return the validator of this version of a file for If-Range: a strong ETag, or the time of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _version_of_part(notes: Path, address: str) -> str | None:
    try:
        content = json.loads(notes.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return content.get("version") if content.get("address") == address else None

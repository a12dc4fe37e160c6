"""`patrolscope index`: which images an image store holds, in pieces for the detector.

PREFIXES lists the uppermost folders until there is work for many; INDEX then lists what lies below them, each task some
of these folders, and cuts what it found into shards for the detector. Later runs take the index as it is;
`patrolscope index` lists everything again.

A shard's name is the digest of what is in it: where each image lies, its size and its version. It depends on nothing
else, so where nothing was added or changed, what the detector made of it stays.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from patrolscope.pipeline.contract.tables import IMAGE_INDEX
from patrolscope.pipeline.engine.run import unfinished
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.intake.detection_files import refuse_overlap
from patrolscope.pipeline.study.adopt import adopt
from patrolscope.pipeline.study.files import modified_at
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.remote import remote_errors
from patrolscope.pipeline.study.store import Output, Study, fingerprint, open_study

FOLDER = "image_index"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TAR_ENDING = ".tar"
_EXPECTED = f"expected a folder, s3:// or gs:// with images ({', '.join(IMAGE_ENDINGS)} or {TAR_ENDING})"
# A folder has the same bucket at every listing. More than the workers of most clusters, and few enough for the records.
BUCKETS = 64
# Small folders share a shard; one that fills an eighth of it has its own, which later folders do not change.
_OWN_SHARD_SHARE = 8


# What lies where.


@dataclass(frozen=True)
class Store:
    """A folder or URL that holds images."""

    source: str  # as study.yaml names it
    fs: Any
    root: str

    @classmethod
    def of(cls, study: Study, source: str) -> Store:
        """The store at an entry of `images.sources`.

        Raises
        ------
        SourceError : it is no folder, or can not be reached
        """
        fs, root = _located(study, source)
        try:
            # What was listed in this process before is not asked for again otherwise.
            fs.invalidate_cache()
            found = "folder" if fs.isdir(root) else "file" if fs.exists(root) else ""
        except remote_errors() as error:
            raise SourceError(f"images.sources: {source} can not be listed ({error}); {_EXPECTED}") from error
        if found != "folder":
            what = "is a file" if found else "is not there"
            raise SourceError(f"images.sources: {source} {what}; {_EXPECTED}")
        return cls(source, fs, root)

    @property
    def is_local(self) -> bool:
        """Whether the store lies on a file system of this machine."""
        return "file" in np.atleast_1d(self.fs.protocol)

    def place(self, path: str) -> str:
        """A path below the root as the file system names it."""
        return f"{self.root}/{path}" if path else self.root

    def entries(self, folder: str) -> tuple[list[Entry], list[str]]:
        """Files of a folder, and the paths of the folders in it; hidden ones are left out, links not followed."""
        files, folders = [], []
        for name, is_folder, entry in self._shown(folder):
            path = f"{folder}/{name}" if folder else name
            if is_folder:
                folders.append(path)
            elif entry is not None:
                files.append(Entry(path, *entry))
        return files, sorted(folders)

    def below(self, folder: str) -> Iterator[Entry]:
        """Files of a folder and of all folders in it."""
        if self.is_local:
            files, folders = self.entries(folder)
            yield from files
            for one in folders:
                yield from self.below(one)
            return
        # Without folders in between, an object store answers a thousand files at a time.
        for name, info in self.fs.find(self.place(folder), detail=True).items():
            path = str(name)[len(self.root) + 1 :]
            if not any(part.startswith(".") for part in path.split("/")):
                yield Entry(path, *_known(info))
        self.fs.invalidate_cache()

    def version(self, path: str) -> str | None:
        """What the file system says now of a file's version; None where it is gone.

        Raises
        ------
        SourceError : it does not answer
        """
        try:
            if self.is_local:
                return str(os.stat(self.place(path)).st_mtime_ns)  # noqa: PTH116 - a Path costs twice the call
            return _known(self.fs.info(self.place(path)))[1]
        except FileNotFoundError:
            return None
        except remote_errors() as error:
            raise self._unread(path, error) from error

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Content of a file, or bytes [start, stop) of it; None where it is gone.

        Raises
        ------
        SourceError : it can not be read
        """
        try:
            return bytes(self.fs.cat_file(self.place(path), start=start, end=stop))
        except FileNotFoundError:
            return None
        except remote_errors() as error:
            raise self._unread(path, error) from error

    def _unread(self, path: str, error: Exception) -> SourceError:
        return SourceError(f"{self.place(path)} can not be read ({error}): mend it, or start again when it can")

    def _shown(self, folder: str) -> Iterator[tuple[str, bool, tuple[int, str, datetime | None] | None]]:
        if self.is_local:
            with os.scandir(self.place(folder)) as found:  # 20 times faster than through fsspec
                for entry in found:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name, True, None
                    elif entry.is_file():
                        status = entry.stat()
                        modified = datetime.fromtimestamp(status.st_mtime, UTC)
                        yield entry.name, False, (status.st_size, str(status.st_mtime_ns), modified)
            return
        place = self.place(folder)
        for info in self.fs.ls(place, detail=True, refresh=True):
            name = str(info["name"]).rstrip("/")
            leaf = name.rsplit("/", 1)[-1]
            # An object store can hold an object of the folder's own name.
            if name != place and not leaf.startswith("."):
                yield leaf, info["type"] == "directory", _known(info)


def _located(study: Study, source: str) -> tuple[Any, str]:
    """File system of a source, and its root there.

    Raises
    ------
    SourceError : there is no such file system, or its package is not installed
    """
    try:
        fs, root = fsspec.core.url_to_fs(study.resolve(source))
    except (ValueError, ImportError) as error:
        raise SourceError(f"images.sources: {source} can not be listed ({error}); {_EXPECTED}") from error
    return fs, str(root).rstrip("/")


@dataclass(frozen=True)
class Entry:
    """A file of a store."""

    path: str
    bytes: int
    version: str
    modified: datetime | None


def _known(info: dict[str, Any]) -> tuple[int, str, datetime | None]:
    """Size, version and time of change, from what a file system says of a file."""
    modified = modified_at(info)
    # The same content written again has the same ETag.
    versions = [info[key] for key in ("ETag", "etag", "md5Hash") if info.get(key)]
    return int(info["size"] or 0), str(versions[0] if versions else modified), modified


def image_id_of(path: str, member: str | None = None) -> str:
    """What an image is known by: its path without the ending.

    An image in a tar file goes by its path there; where that has no folder, the tar file stands for one.
    """
    if member is not None:
        path = member if "/" in member else f"{path.removesuffix(TAR_ENDING)}/{member}"
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rsplit('.', 1)[0]}"


# PREFIXES: the uppermost folders.


def plan_prefixes(study: Study) -> list[Shard]:
    """One shard, or none where the study has no images.

    Raises
    ------
    SourceError : a source lies in another one
    """
    sources = study.settings.images.sources
    places = [posixpath.normpath(_located(study, source)[1]) for source in sources]
    refuse_overlap(places, "images.sources")
    return [Shard("uppermost", {"sources": sources})] if sources else []


def process_prefixes(study: Study, shard: Shard) -> Output:
    """List folders level by level until there are as many as buckets.

    Raises
    ------
    SourceError : a source can not be listed
    """
    buckets: dict[str, list[tuple[str, str, bool]]] = {}
    for source in shard.work["sources"]:
        for folder, deep in _spread(Store.of(study, source)):
            bucket = int(_digest(source, folder)[:8], 16) % BUCKETS
            buckets.setdefault(f"{bucket:02d}", []).append((source, folder, deep))
    folders = sum(map(len, buckets.values()))
    return Output((), folders, folders, (Ledger("prefixes", folders).close(folders),), {"buckets": buckets})


def _spread(store: Store) -> list[tuple[str, bool]]:
    """Folders that hold everything, and whether what lies in folders below them belongs to it."""
    shallow: list[str] = []
    deep = [""]
    while len(deep) < BUCKETS:
        listed = {folder: store.entries(folder) for folder in deep}
        below = [name for _, folders in listed.values() for name in folders]
        if not below:
            break
        shallow += [folder for folder, (files, _) in listed.items() if files]
        deep = below
    return [(folder, False) for folder in shallow] + [(folder, True) for folder in deep]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


PREFIXES = Stage("prefixes", unit="listings", folders=(), plan=plan_prefixes, process=process_prefixes)


# INDEX: everything below them.


def plan_index(study: Study) -> list[Shard]:
    """One shard a bucket of folders, as the last listing of the uppermost folders found them."""
    if not study.settings.images.sources:
        return []
    made_from = fingerprint(IMAGE_INDEX.fingerprint(), study.settings.images.shard_images)
    buckets = study.record(PREFIXES.name).facts["buckets"]
    return [
        Shard(name, {"folders": folders}, size=len(folders), made_from=made_from)
        for name, folders in sorted(buckets.items())
    ]


def process_index(study: Study, shard: Shard) -> Output:
    """List the images of some folders, and cut them into shards for the detector.

    Memory holds what is listed: 0.5 kB an image.

    Raises
    ------
    SourceError : a source can not be listed
    """
    stores = {source: Store.of(study, source) for source in {source for source, _, _ in shard.work["folders"]}}
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for source, folder, deep in shard.work["folders"]:
        store = stores[source]
        try:
            for entry in store.below(folder) if deep else store.entries(folder)[0]:
                rows += _images(store, entry, left_out)
        except FileNotFoundError as error:
            raise SourceError(
                f"{store.place(folder)} went while it was listed ({error}): start `patrolscope index` again"
            ) from error
        except remote_errors() as error:
            raise SourceError(f"{store.place(folder)} can not be listed ({error}): start again when it can") from error
    rows.sort(key=lambda row: (row["source"], row["path"].rpartition("/")[0], row["path"], row["offset"] or 0))
    ledger = Ledger("index", len(rows) + left_out.total())
    for why, count in sorted(left_out.items()):
        ledger.drop(count, why=why)
    # By name: statistics of row groups then lead to a shard, and reading one costs the same in a file of any size
    # (of 1.5 million images 15 ms instead of 190 ms).
    cuts = sorted(cut(rows, study.settings.images.shard_images), key=lambda one: one[0])
    for name, some in cuts:
        for row in some:
            row["shard"] = name
    rows = [row for _, some in cuts for row in some]
    files: tuple[str, ...] = ()
    if rows:
        index = pd.DataFrame(rows)
        frame = IMAGE_INDEX.conform(
            index.assign(
                member=index["member"].astype("str"),
                offset=index["offset"].astype("Int64"),
                modified_at_utc=pd.to_datetime(index["modified_at_utc"], utc=True).astype("datetime64[ms, UTC]"),
            )
        )
        files = (study.write(IMAGE_INDEX, frame, f"{FOLDER}/{shard.name}.parquet"),)
    facts = {
        "shards": [(name, len(some), sum(row["bytes"] for row in some)) for name, some in cuts],
        "bytes": sum(row["bytes"] for row in rows),
    }
    return Output(files, ledger.rows_in, len(rows), (ledger.close(len(rows)),), facts)


def _images(store: Store, entry: Entry, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of the index for one file; what is no image is counted by its reason."""
    lower = entry.path.lower()
    if lower.endswith(IMAGE_ENDINGS):
        yield _row(store, entry, None, None, entry.bytes)
    elif lower.endswith(TAR_ENDING):
        yield from _members(store, entry, left_out)
    elif lower.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        left_out["packed tar file, of which no part can be read alone: unpack it to .tar"] += 1
    else:
        left_out["file that is no image by its ending"] += 1


def _members(store: Store, entry: Entry, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        # Only the headers are read, and what the file system reads ahead of them.
        with store.fs.open(store.place(entry.path), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if not member.isfile():
                    continue
                if name.startswith(("/", "../")):
                    left_out["member of a tar file with a path outside of it"] += 1
                elif name.lower().endswith(IMAGE_ENDINGS) and not member.issparse():
                    found.append(_row(store, entry, name, member.offset_data, member.size))
                else:
                    left_out["file that is no image by its ending"] += 1
    except (tarfile.TarError, EOFError, ValueError):
        left_out["tar file that is damaged: only what stands before the damage is indexed"] += 1
    yield from found


def _row(store: Store, entry: Entry, member: str | None, offset: int | None, size: int) -> dict[str, Any]:
    return {
        "image_id": image_id_of(entry.path, member),
        "source": store.source,
        "path": entry.path,
        "member": member,
        "offset": offset,
        "bytes": size,
        "modified_at_utc": entry.modified,
        "version": entry.version,
    }


def cut(rows: Sequence[dict[str, Any]], at_most: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Shards of at most so many images: name and rows.

    Parameters
    ----------
    rows : of the index, sorted, those of a folder together; a tar file counts as a folder

    Where a shard begins depends on what stands there and not on what stands before it: what is added to a store thus
    changes the shard that it falls in, and no other. A folder of an eighth of a shard or more is a shard of its own.
    """
    shards: list[list[dict[str, Any]]] = []
    open_run: list[dict[str, Any]] = []

    def close() -> None:
        nonlocal open_run
        if open_run:
            shards.append(open_run)
        open_run = []

    for folder, of_folder in groupby(rows, key=_folder):
        images = list(of_folder)
        alone = _OWN_SHARD_SHARE * len(images) >= at_most
        if alone:
            close()
        # What fits no shard is cut between its images.
        pieces = [images] if len(images) <= at_most else [[image] for image in images]
        for piece in pieces:
            at = folder if piece is images else _place(piece[0])
            # Odds of two images in a shard's worth: shards are about half full, and few are cut because they are full.
            begins = int(_digest(at)[:8], 16) * at_most < 2 * len(piece) * 16**8
            if len(open_run) + len(piece) > at_most or begins:
                close()
            open_run += piece
        if alone:
            close()
    close()
    return [(_name(shard), shard) for shard in shards]


def _folder(row: dict[str, Any]) -> str:
    path: str = row["path"] if row["member"] is not None else row["path"].rpartition("/")[0]
    return f"{row['source']}\n{path}"


def _place(row: dict[str, Any]) -> str:
    return f"{row['source']}\n{row['path']}\n{row['member']}"


def _name(shard: Sequence[dict[str, Any]]) -> str:
    return _digest(*(f"{_place(row)}\n{row['offset']} {row['bytes']} {row['version']}" for row in shard))[:16]


INDEX = Stage("index", unit="folders", folders=(FOLDER,), plan=plan_index, process=process_index)


# What the command asks.


def adopt_sources(root: str, sources: Sequence[str]) -> list[str]:
    """Write folders or URLs to study.yaml; none leave what is there. Returns a line on what has changed, or none.

    Raises
    ------
    SettingsError : there is no study, and no sources to make one for
    SourceError : a source can not be listed, or the study names none; nothing is written then
    """
    changed = adopt(root, {"images": {"sources": tuple(sources) or None}}, may_make=bool(sources), check=_reachable)
    _reachable(open_study(root))
    return changed


def _reachable(study: Study) -> None:
    if not study.settings.images.sources:
        raise no_images(study)
    plan_prefixes(study)
    for source in study.settings.images.sources:
        Store.of(study, source)


def no_images(study: Study) -> SourceError:
    """What to say of a study without an image."""
    sources = ", ".join(study.settings.images.sources)
    if not sources:
        return SourceError(
            f"study.yaml names no images: `patrolscope index IMAGES --study {study.root}`, with a folder or URL"
        )
    return SourceError(
        f"images.sources: {sources} holds no image; expected {', '.join(IMAGE_ENDINGS)} or such in {TAR_ENDING}"
    )


def summary(study: Study) -> list[str]:
    """What the index holds, in lines for a reader.

    Raises
    ------
    SourceError : it holds no image
    """
    shards = list(indexed_shards(study))
    if not shards:
        raise no_images(study)
    images, size = sum(images for _, images, _, _ in shards), sum(size for _, _, size, _ in shards)
    return [f"{images:,} images, {size / 1e9:,.2f} GB, in {len(shards):,} shards for the detector"]


def list_again(study: Study) -> None:
    """Forget a finished index, so that the next run lists everything; one that was interrupted is gone on with."""
    with study.lock():
        listed = study.records(PREFIXES.name)
        indexed = study.records(INDEX.name)
        if unfinished(study, PREFIXES, plan_prefixes(study), listed) or unfinished(
            study, INDEX, plan_index(study), indexed
        ):
            return
        for stage, records in ((INDEX, indexed), (PREFIXES, listed)):
            for record in records.values():
                study.discard(stage.name, record)


def indexed_shards(study: Study) -> Iterator[tuple[str, int, int, str]]:
    """Shards for the detector: name, images, bytes, and the file of the index that they stand in."""
    for record in study.records(INDEX.name).values():
        for name, images, size in record.facts["shards"]:
            yield name, images, size, record.files[0]

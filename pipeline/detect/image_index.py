"""The image index: rows for the images of a store, and their division into shards for the detector.

The name of a shard is a digest of its content: the location, size, and version of each image. Detections of a shard
therefore stay up to date until an image in it is added, removed, or changed.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from patrolscope.pipeline.contract.tables import IMAGE_INDEX
from patrolscope.pipeline.detect.image_store import (
    DEAD_LINK,
    IMAGE_ENDINGS,
    NOT_UTF8,
    SPECIAL_FILE,
    TAR_ENDING,
    Entry,
    ImageStore,
)
from patrolscope.pipeline.detect.tar_members import Member, resolve, tar_members
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.names import is_utf8

# Groups of folders that are listed in parallel; a folder is in the same group at every listing. More than most clusters
# have workers, and few enough for the manifest.
BUCKETS = 64
# Small folders share a shard. One that fills this fraction of a shard has its own, which other folders do not change.
_OWN_SHARD_FRACTION = 8
NO_IMAGE = "file without an image extension"


def image_id_of(path: str, member: str | None = None) -> str:
    """Return the ID of an image: its path without the extension.

    For an image in a tar file, this is the path in the tar file. A tar file stands for a folder if that path has none.
    """
    if member is not None:
        path = member if "/" in member else f"{path.removesuffix(TAR_ENDING)}/{member}"
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rsplit('.', 1)[0]}"


def bucket_of(source: str, folder: str) -> str:
    """Return the bucket that lists a folder."""
    return f"{int(_digest(source, folder)[:8], 16) % BUCKETS:02d}"


def top_folders(store: ImageStore) -> list[tuple[str, bool]]:
    """List the uppermost folders of a store, one level at a time, until there is one for each bucket.

    Returns
    -------
    list of (str, bool)
        Folder, and whether it stands for all folders below it. Together they cover the store.
    """
    shallow: list[str] = []
    deep = [""]
    while len(deep) < BUCKETS:
        below: list[str] = []
        with_files: list[str] = []
        for folder in deep:
            skipped: Counter[str] = Counter()
            files, folders = store.entries(folder, skipped)
            below += folders
            if files or skipped:  # listed again, so that what is left out is counted
                with_files.append(folder)
        if not below:
            break
        shallow += with_files
        deep = below
    return [(folder, False) for folder in shallow] + [(folder, True) for folder in deep]


def index_rows(store: ImageStore, entries: Iterable[Entry], skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield a row of the index for each image among the entries of a store, also in tar files.

    Parameters
    ----------
    store : ImageStore
        Store of the entries.
    entries : iterable of Entry
        Files of the store.
    skipped : Counter
        Counts files without an image by reason, in place.
    """
    for entry in entries:
        name = entry.path.lower()
        if name.endswith(IMAGE_ENDINGS):
            yield _row(store, entry, None, None, entry.bytes)
        elif name.endswith(TAR_ENDING):
            yield from _tar_rows(store, entry, skipped)
        elif name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
            skipped["compressed tar file, whose images cannot be read one by one: unpack it to .tar"] += 1
        else:
            skipped[_no_image(entry.path)] += 1


def _tar_rows(store: ImageStore, entry: Entry, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    places: dict[str, list[tuple[int, int]]] = {}  # offset and size of each image by its name
    links: dict[str, str] = {}
    for member in _members_of(store, entry):
        if reason := _left_out(member, entry.path):
            skipped[reason] += 1
        elif member.kind == "file":
            places.setdefault(member.name, []).append((member.offset, member.bytes))
        elif member.name not in places:
            links[member.name] = member.target
        else:  # its name has content already
            skipped[DEAD_LINK] += 1
    for name in links:
        content = places.get(resolve(links, name) or "")
        if content is None:
            skipped[DEAD_LINK] += 1
        else:
            # Of members with one name, the last one is what unpacking leaves.
            yield _row(store, entry, name, *content[-1])
    for name, content in places.items():
        for offset, size in content:
            yield _row(store, entry, name, offset, size)


def _left_out(member: Member, tar_path: str) -> str:
    """Return why a member of a tar file cannot be an image, or nothing."""
    if member.kind == "damage":
        return f"damaged part of a tar file, around which images are indexed: {tar_path}"
    if member.name.startswith(("/", "../")):
        return "tar member whose path leaves the tar file"
    if not is_utf8(member.name):
        return NOT_UTF8
    if member.kind == "special":
        return SPECIAL_FILE
    if not member.name.lower().endswith(IMAGE_ENDINGS):
        return _no_image(member.name)
    if member.kind == "sparse":
        return "sparse tar member, whose content is not in one piece: pack it without holes"
    return ""


def _members_of(store: ImageStore, entry: Entry) -> Iterator[Member]:
    path = store.full_path(entry.path)
    try:
        # Reads only the headers, and what the file system reads ahead of them.
        with store.fs.open(path, "rb") as file:
            yield from tar_members(file, entry.bytes)
    except ValueError as error:
        raise SourceError(
            f"cannot read parts of {path} ({error}); expected a server that answers byte ranges; unpack the tar file "
            "there or download it"
        ) from error


def _no_image(name: str) -> str:
    """Return why a file without an image extension is left out, by its extension."""
    ending = posixpath.splitext(name)[1].lower()
    return f"{NO_IMAGE} ({ending})" if re.fullmatch(r"\.[a-z0-9]{1,8}", ending) else NO_IMAGE


def _row(store: ImageStore, entry: Entry, member: str | None, offset: int | None, size: int) -> dict[str, Any]:
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


def cut(rows: Iterable[dict[str, Any]], max_images: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Divide rows of the index into shards for the detector.

    The start of a shard depends on the image or folder there and not on those before it, so that an addition to a store
    changes the shard that it falls in, and no other. A folder that fills at least an eighth of a shard has its own.

    Parameters
    ----------
    rows : iterable of dict
        Rows of the index, in any order. A tar file counts as a folder.
    max_images : int
        Maximum number of images per shard.

    Returns
    -------
    list of (str, list of dict)
        Name and rows of each shard, in the order of the rows' locations.
    """
    shards: list[list[dict[str, Any]]] = []
    current: list[dict[str, Any]] = []

    def close() -> None:
        nonlocal current
        if current:
            shards.append(current)
        current = []

    for folder, rows_of_folder in groupby(sorted(rows, key=_sort_key), key=_folder):
        images = list(rows_of_folder)
        has_own_shard = _OWN_SHARD_FRACTION * len(images) >= max_images
        if has_own_shard:
            close()
        # A folder too large for one shard is split by image.
        groups = [images] if len(images) <= max_images else [[image] for image in images]
        for group in groups:
            start = folder if group is images else _location(group[0])
            # On average two starts per `max_images`: shards are about half full, and few end because they are full.
            starts_shard = int(_digest(start)[:8], 16) * max_images < 2 * len(group) * 16**8
            if len(current) + len(group) > max_images or starts_shard:
                close()
            current += group
        if has_own_shard:
            close()
    close()
    return [(_shard_name(shard), shard) for shard in shards]


def _sort_key(row: dict[str, Any]) -> tuple[str, str, str, int, str]:
    return row["source"], row["path"].rpartition("/")[0], row["path"], row["offset"] or 0, row["member"] or ""


def _folder(row: dict[str, Any]) -> str:
    path: str = row["path"] if row["member"] is not None else row["path"].rpartition("/")[0]
    return f"{row['source']}\n{path}"


def _location(row: dict[str, Any]) -> str:
    return f"{row['source']}\n{row['path']}\n{row['member']}"


def _shard_name(shard: Sequence[dict[str, Any]]) -> str:
    return _digest(*(f"{_location(row)}\n{row['offset']} {row['bytes']} {row['version']}" for row in shard))[:16]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def index_table(shards: Sequence[tuple[str, list[dict[str, Any]]]]) -> pd.DataFrame:
    """Build the table `IMAGE_INDEX` from named shards with at least one row in total."""
    index = pd.DataFrame([row for _, rows in shards for row in rows])
    return IMAGE_INDEX.conform(
        index.assign(
            shard=[name for name, rows in shards for _ in rows],
            member=index["member"].astype("str"),
            offset=index["offset"].astype("Int64"),
            modified_at_utc=pd.to_datetime(index["modified_at_utc"], utc=True).astype("datetime64[ms, UTC]"),
        )
    )

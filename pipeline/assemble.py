"""Which detection belongs to which image, decided once for the whole study.

Detections are matched by file name without its ending, as published; where a name is not unique, by the path below
the root; what stays ambiguous is refused and counted. An image whose name is claimed by a refused detection
was looked at, but nobody knows with what result: it is no evidence.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.ledger import Ledger
from pipeline.stages import Shard, Stage
from pipeline.store import Record, Study, fingerprint
from pipeline.tables import DETECTIONS

MATCHES_FILE = "staging/matches/matches.npz"
Keys = npt.NDArray[np.uint64]
# Two independent keys of 64 bits: at 24.8 million names a chance match of both has odds of about 1e-24.
_HASH_KEYS = ("patrolscope name", "patrolscope path")


def name_keys(refs: pd.Series[str]) -> Keys:
    """(n,) keys of file names without folder and ending."""
    names = pc.replace_substring_regex(_paths(refs), r"^.*/", "")
    return _hash(names, _HASH_KEYS[0])


def path_keys(refs: pd.Series[str]) -> Keys:
    """(n,) keys of paths without ending."""
    return _hash(_paths(refs), _HASH_KEYS[1])


def _paths(refs: pd.Series[str]) -> pa.Array:
    return pc.replace_substring_regex(pa.array(refs, type=pa.string()), r"\.[A-Za-z0-9]{1,5}$", "")


def _hash(texts: pa.Array, key: str) -> Keys:
    return pd.util.hash_array(texts.to_numpy(zero_copy_only=False), hash_key=key, categorize=False)


@dataclass(frozen=True)
class Matches:
    """Detections by key, sorted: what a worker needs to find the detection of an image.

    An image whose name is in `shared_names` is looked up by path, every other image by name.
    """

    shared_names: Keys  # names that stand for several images or several detections
    names: Keys
    paths: Keys
    name_rows: npt.NDArray[np.int64]  # row of `found` for each of `names`
    path_rows: npt.NDArray[np.int64]
    found: npt.NDArray[np.float64]  # (n, 3): score, score_any, 1 when the image could be read
    refused_names: Keys  # names claimed by a detection that was refused
    processed_names: Keys
    processed_paths: Keys
    has_processed_list: bool

    def look_up(self, refs: pd.Series[str]) -> pd.DataFrame:
        """Detection of every image.

        Returns
        -------
        DataFrame indexed like `refs`: `processed` (bool), `score` and `score_any` (1, missing: no box)
        """
        names, paths = name_keys(refs), path_keys(refs)
        by_path = _contains(self.shared_names, names)
        row = np.where(
            by_path,
            _position(self.paths, paths, self.path_rows),
            _position(self.names, names, self.name_rows),
        )
        seen = row >= 0
        found = np.full((len(refs), 3), np.nan)
        found[seen] = self.found[row[seen]]
        processed = np.where(seen, found[:, 2] == 1, ~(by_path & _contains(self.refused_names, names)))
        if self.has_processed_list:
            listed = np.where(
                by_path, _contains(self.processed_paths, paths), _contains(self.processed_names, names)
            ) | _contains(self.processed_paths, paths)
            processed &= seen | listed
        return pd.DataFrame(
            {
                "processed": processed.astype(bool),
                "score": np.where(processed, found[:, 0], np.nan),
                "score_any": np.where(processed, found[:, 1], np.nan),
            },
            index=refs.index,
        )


def match(
    detections: pd.DataFrame, images: tuple[Keys, Keys], processed: pd.Series[str] | None, ledger: Ledger
) -> Matches:
    """Decide how detections and images are matched.

    Parameters
    ----------
    detections : `DETECTIONS` of the whole study
    images : name and path keys of all images of the metadata
    processed : names or paths of the images that were run through the detector; None: all were
    """
    shared_by_images = _names_of_several(*images)
    names, paths = name_keys(detections["image_id"]), path_keys(detections["image_id"])
    shared = np.union1d(shared_by_images, _twice(names))
    by_path = _contains(shared, names)
    twice = _contains(_twice(paths), paths)
    image_paths = np.unique(images[1])
    ambiguous = by_path & (twice | ~_contains(image_paths, paths))
    ledger.drop(int(ambiguous.sum()), why="ambiguous: the name fits several images and the path fits none or several")
    usable = ~ambiguous
    unused = usable & ~by_path & ~_contains(np.unique(images[0]), names)
    ledger.note("detections without an image in the metadata", int(unused.sum()))
    found = detections.loc[:, ["score", "score_any"]].to_numpy(dtype=np.float64)
    found = np.column_stack([found, (detections["status"] == "scored").to_numpy(dtype=np.float64)])
    name_rows, path_rows = np.flatnonzero(usable & ~by_path), np.flatnonzero(usable & by_path)
    name_rows = name_rows[np.argsort(names[name_rows], kind="stable")]
    path_rows = path_rows[np.argsort(paths[path_rows], kind="stable")]
    if processed is None:
        ledger.note("no list of processed images: every image of the metadata counts as processed", 1)
    listed = pd.Series([], dtype="str") if processed is None else processed
    return Matches(
        shared_names=shared,
        names=names[name_rows],
        paths=paths[path_rows],
        name_rows=name_rows,
        path_rows=path_rows,
        found=found,
        refused_names=np.unique(names[ambiguous]),
        processed_names=np.unique(name_keys(listed)),
        processed_paths=np.unique(path_keys(listed)),
        has_processed_list=processed is not None,
    )


def _twice(keys: Keys) -> Keys:
    unique, count = np.unique(keys, return_counts=True)
    return unique[count > 1]


def _names_of_several(names: Keys, paths: Keys) -> Keys:
    """Names that stand for more than one path; a path that occurs again is the same image."""
    order = np.lexsort((paths, names))
    names, paths = names[order], paths[order]
    same_name = names[1:] == names[:-1]
    return np.unique(names[1:][same_name & (paths[1:] != paths[:-1])])


def _contains(sorted_keys: Keys, keys: Keys) -> npt.NDArray[np.bool_]:
    return _position(sorted_keys, keys, np.arange(len(sorted_keys))) >= 0


def _position(sorted_keys: Keys, keys: Keys, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row of each key, -1 where it is not there."""
    if len(sorted_keys) == 0:
        return np.full(len(keys), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[at] == keys, rows[at], -1)


# The stage.


def plan_match(study: Study) -> list[Shard]:
    """One shard, made from all metadata and all detections."""
    made_from = [[record.fingerprint for record in study.records(stage).values()] for stage in ("ingest", "labels")]
    processed = study.settings.sources.processed
    listed = None if processed is None else fingerprint(_read_text(study.resolve(processed)))
    return [Shard("matches", {"processed": listed}, made_from=fingerprint(made_from))]


def process_match(study: Study, _shard: Shard) -> Record:
    """Write the matches; memory: 16 bytes an image of the metadata, and the detections."""
    detections = _all_detections(study)
    names, paths = zip(*_image_keys(study), strict=True)
    ledger = Ledger("match", len(detections))
    listed = study.settings.sources.processed
    processed = None if listed is None else _processed_list(_read_text(study.resolve(listed)))
    matches = match(detections, (np.concatenate(names), np.concatenate(paths)), processed, ledger)
    rows_out = len(matches.names) + len(matches.paths)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **matches.__dict__)
    file = study.write_bytes(buffer.getvalue(), MATCHES_FILE)
    return Record("", "", (file,), len(detections), rows_out, (ledger.close(rows_out),))


@lru_cache(maxsize=2)
def load_matches(study: Study, _made_from: str) -> Matches:
    """The study's matches, once a worker process; `_made_from` is the match record's fingerprint."""
    with np.load(io.BytesIO(study.read_bytes(MATCHES_FILE)), allow_pickle=False) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    arrays["has_processed_list"] = bool(arrays["has_processed_list"])
    return Matches(**arrays)


def _all_detections(study: Study) -> pd.DataFrame:
    columns = ["image_id", "status", "score", "score_any"]
    files = [file for record in study.records("labels").values() for file in record.files]
    parts = [study.read(file, columns=columns) for file in files]
    return pd.concat(parts, ignore_index=True) if parts else DETECTIONS.empty()[columns]


def _image_keys(study: Study) -> Iterator[tuple[Keys, Keys]]:
    for file in study.files("metadata"):
        refs = study.read(file, columns=["image_ref"])["image_ref"]
        yield name_keys(refs), path_keys(refs)


def _read_text(path: str) -> str:
    fs, name = fsspec.core.url_to_fs(path)
    if not fs.exists(name):
        raise SourceError(
            f"{path} does not exist; sources.processed of study.yaml names it as the list of processed images"
        )
    return str(fs.cat_file(name).decode("utf-8-sig"))


def _processed_list(text: str) -> pd.Series[str]:
    lines = (line.strip() for line in text.splitlines())
    return pd.Series([line for line in lines if line and not line.startswith("#")], dtype="str")


MATCH = Stage("match", unit="files", folders=("staging/matches",), plan=plan_match, process=process_match)

"""Which detection belongs to which image.

Detections are matched by file name without its ending, as published; where a name is not unique, by the path below
the root; what stays ambiguous is refused and counted. An image whose name is claimed by a refused detection
was looked at, but nobody knows with what result: it is no evidence.

Everything of one name stands in one bucket of keys (`matching.keys`), so buckets are decided each for itself. The
answers of a bucket are one file with one part for each file of metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import LedgerError, StageNotRunError
from patrolscope.pipeline.hashing import Keys
from patrolscope.pipeline.matching.keys import DETECTIONS, IMAGES, INDEXED, KEYS, PROCESSED, SCHEMAS, from_images
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint

FOLDER = "staging/matches"
ANSWERS = ["processed", "score", "score_any"]
# An image's row in its metadata file, and what is known of it; the order of the parts stands in the schema's metadata.
_ANSWERED = pa.schema(
    [("row", pa.uint32()), ("processed", pa.bool_()), ("score", pa.float64()), ("score_any", pa.float64())]
)
_PARTS = b"parts"


def match(
    images: pd.DataFrame,
    detections: pd.DataFrame,
    processed: pd.DataFrame | None,
    ledger: Ledger,
    what: str = "detections",
) -> pd.DataFrame:
    """Detection of every image.

    Parameters
    ----------
    images : `name`, `path`: keys of images; all images of a name, or none
    detections : `name`, `path`, `score`, `score_any` (1, missing: no box), `readable`; all of these names
    processed : `name`, `path` of what was run through the detector, all of these names; None: all images were
    ledger : told of the detections that are refused, and of those without an image
    what : they are, for the ledger

    Returns
    -------
    DataFrame indexed like `images`: `processed` (bool), `score` and `score_any` (1, missing: no box)
    """
    names, paths = (images[key].to_numpy() for key in ("name", "path"))
    claims, claimed_paths = (detections[key].to_numpy() for key in ("name", "path"))
    image_names = np.sort(names)

    # Names that stand for several images or several detections: these are told apart by path.
    shared = np.union1d(_names_of_several(names, paths), _twice(claims))
    by_path = _contains(shared, claims)
    image_by_path = _contains(shared, names)
    has_image = np.where(
        by_path, _contains(np.sort(paths[image_by_path]), claimed_paths), _contains(image_names, claims)
    )
    refused = by_path & (~has_image | _contains(_twice(claimed_paths), claimed_paths))
    ledger.drop(int(refused.sum()), why="ambiguous: the name fits several images and the path fits none or several")
    ledger.note(f"{what} without an image in the metadata", int((~by_path & ~has_image).sum()))

    found = np.where(
        image_by_path,
        _position(claimed_paths, np.flatnonzero(by_path & ~refused), paths),
        _position(claims, np.flatnonzero(~by_path), names),
    )
    seen = found >= 0
    evidence = ~(image_by_path & _contains(np.unique(claims[refused]), names))
    if processed is not None:
        listed_name = _contains(np.sort(processed["name"].to_numpy()), names)
        listed_path = _contains(np.sort(processed["path"].to_numpy()), paths)
        evidence &= listed_path | (listed_name & ~image_by_path)
    evidence[seen] = detections["readable"].to_numpy()[found[seen]]
    answers = pd.DataFrame({"processed": evidence}, index=images.index)
    for column in ("score", "score_any"):
        values = np.full(len(images), np.nan)
        values[seen] = detections[column].to_numpy()[found[seen]]
        answers[column] = np.where(evidence, values, np.nan)
    return answers


def _twice(keys: Keys) -> Keys:
    """Keys that occur more than once, sorted."""
    ordered = np.sort(keys)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _names_of_several(names: Keys, paths: Keys) -> Keys:
    """Names that stand for more than one path, sorted; a path that occurs again is the same image."""
    order = np.argsort(names)
    names, paths = names[order], paths[order]
    # Of several paths under one name, two stand beside each other in any order.
    return np.unique(names[1:][(names[1:] == names[:-1]) & (paths[1:] != paths[:-1])])


def _contains(ordered: Keys, keys: Keys) -> npt.NDArray[np.bool_]:
    if len(ordered) == 0:
        return np.zeros(len(keys), dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def _position(among: Keys, rows: npt.NDArray[np.intp], keys: Keys) -> npt.NDArray[np.intp]:
    """Which of `rows`, whose keys in `among` differ, has each key; -1 where none has."""
    if len(rows) == 0:
        return np.full(len(keys), -1)
    rows = rows[np.argsort(among[rows])]
    ordered = among[rows]
    at = np.minimum(np.searchsorted(ordered, keys), len(rows) - 1)
    return np.where(ordered[at] == keys, rows[at], -1)


# The stage.


def plan_match(study: Study) -> list[Shard]:
    """One shard a bucket.

    Raises
    ------
    StageNotRunError : there are no keys of images yet
    """
    keys = list(study.records(KEYS.name).values())
    images = [record for record in keys if record.facts["kind"] == IMAGES]
    if not images:
        raise StageNotRunError(
            f"{study.root} has no images: `patrolscope ingest --study {study.root}` reads them; where it has run, "
            f"quarantine/ and ledger.jsonl say why no row could be used"
        )
    # Made from images, detections have a row for every image that was looked at: all others were not. Where there are
    # no detections of any kind, none was.
    sources = study.settings.sources
    listed = from_images(study) or sources.processed is not None or not sources.detections
    work = {
        # Each file of keys, the file of metadata that it was made from, and its rows.
        IMAGES: [[*record.files, *record.facts["files"], record.rows_out] for record in images],
        DETECTIONS: _files(keys, DETECTIONS),
        PROCESSED: _files(keys, PROCESSED) if listed else None,
    }
    # The index has no say in which detection is whose: detections made from it are keyed themselves.
    made_from = fingerprint([record.fingerprint for record in keys if record.facts["kind"] != INDEXED])
    buckets = images[0].facts["buckets"]
    return [Shard(f"{bucket:05d}", {"bucket": bucket, **work}, made_from=made_from) for bucket in range(buckets)]


def _files(records: Sequence[Record], kind: str) -> list[str]:
    return [file for record in records if record.facts["kind"] == kind for file in record.files]


def process_match(study: Study, shard: Shard) -> Output:
    """Write the answers for the images of one bucket."""
    work = shard.work
    bucket = work["bucket"]
    image_parts = _parts(study, [file for file, _, _ in work[IMAGES]], bucket)
    images = pa.Table.from_batches(image_parts, SCHEMAS[IMAGES])
    detections = _frame(study, work[DETECTIONS], bucket, DETECTIONS)
    processed = None if work[PROCESSED] is None else _frame(study, work[PROCESSED], bucket, PROCESSED)
    ledger = Ledger("match", len(detections))
    answers = match(images.select(["name", "path"]).to_pandas(), detections, processed, ledger)
    if processed is None and bucket == 0:
        ledger.note("no list of processed images: every image of the metadata counts as processed", 1)
    rows = images.select(["row"])
    for column in ANSWERS:
        rows = rows.append_column(column, pa.array(answers[column], from_pandas=True))
    written = study.write_parts(
        _split(rows, [len(part) for part in image_parts]),
        _ANSWERED.with_metadata({_PARTS: json.dumps([[file, total] for _, file, total in work[IMAGES]])}),
        f"{FOLDER}/{shard.name}.arrow",
    )
    rows_out = len(detections) - ledger.dropped.total()
    return Output((written,), len(detections), rows_out, (ledger.close(rows_out),))


def _parts(study: Study, files: Iterable[str], bucket: int) -> list[pa.RecordBatch]:
    """One bucket of each file of keys."""
    parts = []
    for file in files:
        with study.open_parts(file) as reader:
            parts.append(reader.get_batch(bucket))
    return parts


def _frame(study: Study, files: Iterable[str], bucket: int, kind: str) -> pd.DataFrame:
    return pa.Table.from_batches(_parts(study, files, bucket), SCHEMAS[kind]).to_pandas()


def _split(rows: pa.Table, sizes: Iterable[int]) -> Iterator[pa.RecordBatch]:
    """Consecutive rows in parts of these sizes."""
    whole = pa.RecordBatch.from_arrays([column.combine_chunks() for column in rows.columns], schema=_ANSWERED)
    start = 0
    for size in sizes:
        yield whole.slice(start, size)
        start += size


# What the index holds of the images, known before a detector spends hours on them.


def plan_known(study: Study) -> list[Shard]:
    """One shard a bucket of names; none without metadata or index."""
    keys = list(study.records(KEYS.name).values())
    work = {kind: _files(keys, kind) for kind in (IMAGES, INDEXED)}
    if not all(work.values()):
        return []
    made_from = fingerprint([record.fingerprint for record in keys if record.facts["kind"] in work])
    buckets = keys[0].facts["buckets"]
    return [Shard(f"{bucket:05d}", {"bucket": bucket, **work}, made_from=made_from) for bucket in range(buckets)]


def process_known(study: Study, shard: Shard) -> Output:
    """Count what of one bucket fits; files are matched to images as their detections will be."""
    images, files = (_frame(study, shard.work[kind], shard.work["bucket"], kind) for kind in (IMAGES, INDEXED))
    ledger = Ledger("match_index", len(files))
    claims = files.assign(score=np.nan, score_any=np.nan, readable=True)
    # A "processed list" of all files: what is not in it has no file.
    found = match(images, claims, files, ledger, what="files of the index")
    ledger.note("images of the metadata without a file in the index", int((~found["processed"]).sum()))
    rows_out = len(files) - ledger.dropped.total()
    return Output((), len(files), rows_out, (ledger.close(rows_out),))


KNOWN = Stage("match_index", unit="parts", folders=(), plan=plan_known, process=process_known)

MATCH = Stage("match", unit="parts", folders=(FOLDER,), plan=plan_match, process=process_match, version=2)


# What the next stage asks.


def matches_fingerprint(study: Study) -> str:
    """Digest of what all answers were made from.

    Raises
    ------
    StageNotRunError : nothing has been matched
    """
    return fingerprint([record.fingerprint for record in _records(study)])


def detections_of(study: Study, metadata_file: str) -> pd.DataFrame:
    """Detection of every image of a file of metadata, in the order of its rows; memory: that of the file's rows.

    Returns
    -------
    DataFrame: `processed` (bool), `score` and `score_any` (1, missing: no box)

    Raises
    ------
    StageNotRunError : the file has not been matched
    LedgerError : an image has no answer, or several
    """
    parts = []
    total = 0
    for record in _records(study):
        (file,) = record.files
        with study.open_parts(file) as reader:
            places = json.loads(reader.schema.metadata[_PARTS])
            number = next((place for place, (name, _) in enumerate(places) if name == metadata_file), None)
            if number is None:
                raise StageNotRunError(
                    f"{metadata_file} is not matched yet: run `patrolscope run --study {study.root}`"
                )
            total = places[number][1]
            parts.append(reader.get_batch(number))
    return _in_row_order(pa.Table.from_batches(parts), total, metadata_file)


def _in_row_order(answered: pa.Table, total: int, metadata_file: str) -> pd.DataFrame:
    row = answered["row"].to_numpy()
    answers = np.bincount(row, minlength=total)
    if len(answers) != total or (answers != 1).any():
        raise LedgerError(
            f"match: {metadata_file} has {total} images and {len(row)} answers, for {len(np.unique(row))} different "
            f"rows. This is a defect: please report it"
        )
    place = np.empty(total, dtype=np.intp)
    place[row] = np.arange(total)
    return answered.select(ANSWERS).take(pa.array(place)).to_pandas()


def _records(study: Study) -> list[Record]:
    records = list(study.records(MATCH.name).values())
    if not records:
        raise StageNotRunError(f"nothing of {study.root} is matched yet: run `patrolscope run --study {study.root}`")
    return records

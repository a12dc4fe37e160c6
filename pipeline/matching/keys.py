"""Keys of every image, detection, file of the image index and line of the processed list, in buckets by name.

What has the same name has the same bucket, so MATCH decides one bucket after the other, in memory of one. A file of
keys holds one part a bucket.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patrolscope.pipeline.detect.stages import INDEX, INDEX_FOLDER, stage_name
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.hashing import Keys, image_keys
from patrolscope.pipeline.intake.detection_files import LABELS
from patrolscope.pipeline.intake.raw_csv import owned_lines
from patrolscope.pipeline.intake.raw_files import identity
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.remote import remote_errors
from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint

FOLDER = "staging/keys"
IMAGES, DETECTIONS, INDEXED, PROCESSED = "images", "detections", "indexed", "processed"
ROWS_A_BUCKET = 2_000_000  # of one kind, at most about that many: MATCH holds some 100 bytes a row
# Detector output comes in files of 20,000 rows. Taken together, a bucket is read from 60 times fewer files.
DETECTIONS_A_SHARD = 1_000_000
_BYTES_A_LINE = 60  # of the processed list, about: its lines are not counted before they are read

_KEYS = [("name", pa.uint64()), ("path", pa.uint64())]
SCHEMAS = {
    IMAGES: pa.schema([*_KEYS, ("row", pa.uint32())]),  # row in the metadata file
    DETECTIONS: pa.schema([*_KEYS, ("score", pa.float64()), ("score_any", pa.float64()), ("readable", pa.bool_())]),
    INDEXED: pa.schema(_KEYS),
    PROCESSED: pa.schema(_KEYS),
}


def keyed_images(refs: pa.ChunkedArray) -> pa.RecordBatch:
    """Keys of the images of one file, with their row in it."""
    names, paths = image_keys(refs)
    return _batch(IMAGES, names, paths, np.arange(len(refs), dtype=np.uint32))


def keyed_detections(detections: pa.Table, *, without_ending: bool = False) -> pa.RecordBatch:
    """Keys of detections (`DETECTIONS`), with what MATCH hands on of them; a missing score is NaN.

    Ids from images are surely `without_ending`, so that a dot in one belongs to the name; those from label files can be
    the name of an image with its ending.
    """
    ids = detections["image_id"]
    names, paths = _keys_of_images(ids) if without_ending else image_keys(ids)
    score, score_any = (detections[name].to_numpy() for name in ("score", "score_any"))
    return _batch(DETECTIONS, names, paths, score, score_any, pc.equal(detections["status"], "scored").to_numpy())


def keyed_index(ids: pa.ChunkedArray) -> pa.RecordBatch:
    """Keys of images of the index, whose ids have no ending."""
    return _batch(INDEXED, *_keys_of_images(ids))


def _keys_of_images(ids: pa.ChunkedArray) -> tuple[Keys, Keys]:
    return image_keys(pc.binary_join_element_wise(ids, "jpg", "."))


def keyed_lines(text: bytes, ledger: Ledger) -> pa.RecordBatch:
    """Keys of the names or paths in a text, one a line; `ledger` is told how many lines hold none.

    Raises
    ------
    UnicodeDecodeError : the text is not UTF-8
    """
    parts = pc.list_flatten(pc.split_pattern(pa.array([text.decode()], type=pa.large_string()), "\n"))
    lines = pc.utf8_trim_whitespace(parts.slice(0, _count_lines(text)))
    told = lines.filter(pc.and_(pc.not_equal(lines, ""), pc.invert(pc.starts_with(lines, "#"))))
    ledger.drop(len(lines) - len(told), why="line of the processed list that is blank or a comment")
    return _batch(PROCESSED, *image_keys(told))


def _count_lines(text: bytes) -> int:
    """Number of lines; the last one may lack its end."""
    return text.count(b"\n") + bool(text and not text.endswith(b"\n"))


def _batch(kind: str, *columns: npt.NDArray[Any]) -> pa.RecordBatch:
    schema = SCHEMAS[kind]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def bucket_of(names: Keys, buckets: int) -> npt.NDArray[np.uint16]:
    """(n,) bucket of each name key, from 0; all equally full, as keys are spread evenly."""
    high = names >> np.uint64(32)
    return ((high * np.uint64(buckets)) >> np.uint64(32)).astype(np.uint16)


def in_buckets(rows: pa.RecordBatch, buckets: int) -> list[pa.RecordBatch]:
    """The rows of each bucket, in their order."""
    bucket = bucket_of(rows["name"].to_numpy(), buckets)
    edges = np.append(0, np.bincount(bucket, minlength=buckets).cumsum())
    ordered = rows.take(pa.array(np.argsort(bucket, kind="stable")))
    return [ordered.slice(start, stop - start) for start, stop in pairwise(edges.tolist())]


# Where detections come from.


def from_images(study: Study) -> bool:
    """Whether the study's detections are made from its images, and not read from label files.

    Raises
    ------
    SettingsError : the study names both, and does not say which
    """
    settings = study.settings
    images, labels = settings.images.weights is not None, bool(settings.sources.detections)
    if images and labels and settings.detection.source is None:
        raise SettingsError(
            f"{study.root}/study.yaml names label files (sources.detections) and a detector's weights (images.weights): "
            f"say which of them to use, detection.source: labels or detect"
        )
    return settings.detection.source == "detect" or (settings.detection.source is None and images)


def detections_from(study: Study) -> str:
    """Name of the stage whose records hold the detections to use.

    Raises
    ------
    StageNotRunError : they are to be made from images, and have not been
    SettingsError : the study does not say which to use
    """
    return stage_name(study) if from_images(study) else LABELS.name


# The stage.


def plan_keys(study: Study) -> list[Shard]:
    """One shard a file of metadata, a run of files of detections or of the index, and a block of the processed list.

    Raises
    ------
    SourceError : the processed list is not there
    """
    images, detections, indexed = (
        list(study.records(stage).values()) for stage in ("ingest", detections_from(study), INDEX.name)
    )
    indexed = [record for record in indexed if record.files]
    # What was looked at is known image by image where images were, and not from a list.
    blocks = [] if from_images(study) else _blocks(study)
    rows = max(
        sum(record.rows_out for record in images),
        sum(record.rows_out for record in detections),
        sum(record.rows_out for record in indexed),
        sum(work["stop"] - work["start"] for work in blocks) // _BYTES_A_LINE,
    )
    buckets = bucket_count(rows)
    return [
        # A share of a slice can be without rows, and then without a file.
        *(_shard(IMAGES, record.shard, [record], buckets) for record in images if record.files_in("metadata")),
        *(
            _shard(DETECTIONS, f"{number:05d}", records, buckets)
            for number, records in enumerate(_runs(detections, DETECTIONS_A_SHARD))
        ),
        *(
            _shard(INDEXED, f"{number:05d}", records, buckets)
            for number, records in enumerate(_runs(indexed, DETECTIONS_A_SHARD))
        ),
        *(
            Shard(f"{PROCESSED}-{number:05d}", {"kind": PROCESSED, "buckets": buckets, **work})
            for number, work in enumerate(blocks)
        ),
    ]


def bucket_count(rows: int) -> int:
    """Buckets for so many rows: a power of two, so that a study that grows seldom needs others."""
    return 1 << (max(rows - 1, 0) // ROWS_A_BUCKET).bit_length()


def _shard(kind: str, name: str, records: Sequence[Record], buckets: int) -> Shard:
    folder = {IMAGES: "metadata", DETECTIONS: "detections", INDEXED: INDEX_FOLDER}[kind]
    files = [file for record in records for file in record.files_in(folder)]
    work = {"kind": kind, "buckets": buckets, "files": files}
    return Shard(f"{kind}-{name}", work, made_from=fingerprint([record.fingerprint for record in records]))


def _runs(records: Sequence[Record], rows: int) -> Iterator[list[Record]]:
    """Consecutive records of at most so many rows together, or one that alone has more."""
    run: list[Record] = []
    rows_of_run = 0
    for record in records:
        if run and rows_of_run + record.rows_out > rows:
            yield run
            run, rows_of_run = [], 0
        run.append(record)
        rows_of_run += record.rows_out
    if run:
        yield run


def _blocks(study: Study) -> list[dict[str, Any]]:
    """Blocks of the processed list, and which version of it they are of."""
    path = study.settings.sources.processed
    if path is None:
        return []
    fs, place = fsspec.core.url_to_fs(study.resolve(path))
    if not fs.isfile(place):
        raise SourceError(
            f"{place} is no file; sources.processed of study.yaml names it as the list of processed images"
        )
    size, modified = identity(fs, place)
    step = study.settings.ingest.block_bytes
    whole = {"path": path, "bytes": size, "modified": modified}
    return [{**whole, "start": start, "stop": min(start + step, size)} for start in range(0, size, step)]


def process_keys(study: Study, shard: Shard) -> Output:
    """Write the keys of one shard.

    Raises
    ------
    SourceError : the processed list can not be read, or is another one than when the work was planned
    """
    work = shard.work
    if work["kind"] == PROCESSED:
        text = _text(study, work)
        ledger = Ledger("keys", _count_lines(text))
        try:
            rows = keyed_lines(text, ledger)
        except UnicodeDecodeError as error:
            raise SourceError(f"{work['path']} is not UTF-8 ({error}): save it as UTF-8 and start again") from error
    else:
        if work["kind"] == IMAGES:
            (file,) = work["files"]
            rows = keyed_images(study.read_arrow(file, ["image_ref"])["image_ref"])
        elif work["kind"] == INDEXED:
            ids = [study.read_arrow(file, ["image_id"])["image_id"] for file in work["files"]]
            rows = pa.concat_batches([keyed_index(some) for some in ids])
        else:
            columns = ["image_id", "status", "score", "score_any"]
            whole = from_images(study)
            rows = pa.concat_batches(
                [keyed_detections(study.read_arrow(file, columns), without_ending=whole) for file in work["files"]]
            )
        ledger = Ledger("keys", len(rows))
    written = study.write_parts(in_buckets(rows, work["buckets"]), rows.schema, f"{FOLDER}/{shard.name}.arrow")
    facts = {"kind": work["kind"], "buckets": work["buckets"], "files": work.get("files", [])}
    return Output((written,), ledger.rows_in, len(rows), (ledger.close(len(rows)),), facts)


def _text(study: Study, work: dict[str, Any]) -> bytes:
    """Whole lines of a block of the processed list, without a byte order mark."""
    fs, place = fsspec.core.url_to_fs(study.resolve(work["path"]))
    try:
        if identity(fs, place) != (work["bytes"], work["modified"]):
            raise SourceError(f"{place} has changed since this run began: start it again when the file is complete")
        lines = owned_lines(
            lambda start, stop: bytes(fs.cat_file(place, start=start, end=stop)),
            work["start"],
            work["stop"],
            first=0,
            end=work["bytes"],
        )
    except remote_errors() as error:
        raise SourceError(f"{place} can not be read: {error}. Restore it and start again") from error
    return bytes(lines) if work["start"] else bytes(lines).removeprefix(codecs.BOM_UTF8)


KEYS = Stage("keys", unit="parts", folders=(FOLDER,), plan=plan_keys, process=process_keys)

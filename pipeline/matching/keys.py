"""Keys of images, detections, files of the image index, and lines of the processed list, in buckets by name.

Equal names are in the same bucket, so MATCH works on one bucket at a time. A file of keys has one part per bucket.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patrolscope.pipeline.detect.stages import stage_name
from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.hashing import Keys, image_keys
from patrolscope.pipeline.intake.stages import LABELS
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study

IMAGES, DETECTIONS, INDEXED, PROCESSED = "images", "detections", "indexed", "processed"
DUPLICATES, REJECTED = "duplicates", "rejected"  # rows of the raw files that are not in metadata/
ROWS_PER_BUCKET = 2_000_000  # of one kind, approximate maximum; MATCH holds about 100 bytes per row

_KEYS = [("name", pa.uint64()), ("path", pa.uint64())]
SCHEMAS = {
    IMAGES: pa.schema([*_KEYS, ("row", pa.uint32())]),  # row in the metadata file
    DETECTIONS: pa.schema([*_KEYS, ("score", pa.float64()), ("score_any", pa.float64()), ("readable", pa.bool_())]),
    INDEXED: pa.schema(_KEYS),
    PROCESSED: pa.schema(_KEYS),
    DUPLICATES: pa.schema(_KEYS),
    REJECTED: pa.schema(_KEYS),
}
# First field of a rejected line that looks like the name of a file. The columns can be in any order.
_FILE_NAME = r'(?:^|[,"])(?P<ref>[^,"]*\.[A-Za-z]{3,4})(?:[",\r]|$)'


def keyed_images(refs: pa.ChunkedArray) -> pa.RecordBatch:
    """Return the keys of the images of one file, with their row in it."""
    names, paths = image_keys(refs)
    return _batch(IMAGES, names, paths, np.arange(len(refs), dtype=np.uint32))


def keyed_detections(detections: pa.Table, *, without_ending: bool = False) -> pa.RecordBatch:
    """Return the keys of detections (`DETECTIONS`) with the columns that MATCH passes on; missing scores are NaN.

    Ids from images are `without_ending`, so that a dot belongs to the name. Ids from detection files can be the name of
    an image with its ending.
    """
    ids = detections["image_id"]
    names, paths = _keys_of_images(ids) if without_ending else image_keys(ids)
    score, score_any = (detections[name].to_numpy() for name in ("score", "score_any"))
    return _batch(DETECTIONS, names, paths, score, score_any, pc.equal(detections["status"], "scored").to_numpy())


def keyed_duplicates(refs: pa.ChunkedArray) -> pa.RecordBatch:
    """Return the keys of images that were dropped as duplicates."""
    return _batch(DUPLICATES, *image_keys(refs))


def keyed_rejected(lines: pa.ChunkedArray) -> pa.RecordBatch:
    """Return the keys of the images of lines in quarantine, as far as they name one."""
    refs = pc.struct_field(pc.extract_regex(lines, _FILE_NAME), "ref")
    return _batch(REJECTED, *image_keys(refs.drop_null()))


def keyed_index(ids: pa.ChunkedArray) -> pa.RecordBatch:
    """Return the keys of images of the index, whose ids have no ending."""
    return _batch(INDEXED, *_keys_of_images(ids))


def _keys_of_images(ids: pa.ChunkedArray) -> tuple[Keys, Keys]:
    return image_keys(pc.binary_join_element_wise(ids, "jpg", "."))


def keyed_lines(text: bytes, ledger: Ledger) -> pa.RecordBatch:
    """Return the keys of the names or paths in a text, one per line; the ledger counts other lines.

    Raises
    ------
    UnicodeDecodeError
        If the text is not UTF-8.
    """
    parts = pc.list_flatten(pc.split_pattern(pa.array([text.decode()], type=pa.large_string()), "\n"))
    lines = pc.utf8_trim_whitespace(parts.slice(0, count_lines(text)))
    listed = lines.filter(pc.and_(pc.not_equal(lines, ""), pc.invert(pc.starts_with(lines, "#"))))
    ledger.drop(len(lines) - len(listed), why="line of the processed list that is blank or a comment")
    return _batch(PROCESSED, *image_keys(listed))


def count_lines(text: bytes) -> int:
    """Count lines; the last one may lack its line feed."""
    return text.count(b"\n") + bool(text and not text.endswith(b"\n"))


def _batch(kind: str, *columns: npt.NDArray[Any]) -> pa.RecordBatch:
    schema = SCHEMAS[kind]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def bucket_of(names: Keys, buckets: int) -> npt.NDArray[np.uint16]:
    """Return the bucket of each name key, from 0; buckets are about equal, because keys are uniform."""
    high = names >> np.uint64(32)
    return ((high * np.uint64(buckets)) >> np.uint64(32)).astype(np.uint16)


def in_buckets(rows: pa.RecordBatch, buckets: int) -> list[pa.RecordBatch]:
    """Split rows by bucket, in their order."""
    bucket = bucket_of(rows["name"].to_numpy(), buckets)
    edges = np.append(0, np.bincount(bucket, minlength=buckets).cumsum())
    ordered = rows.take(pa.array(np.argsort(bucket, kind="stable")))
    return [ordered.slice(start, stop - start) for start, stop in pairwise(edges.tolist())]


def bucket_count(rows: int) -> int:
    """Return the number of buckets for a number of rows: a power of two, so that a growing study rarely needs more."""
    return 1 << (max(rows - 1, 0) // ROWS_PER_BUCKET).bit_length()


# Source of detections.


def from_images(study: Study) -> bool:
    """Return whether the study runs a detector on its images, instead of importing detection files.

    Raises
    ------
    SettingsError
        If the study has both, and does not set detection.source.
    """
    settings = study.settings
    images, labels = settings.images.weights is not None, bool(settings.sources.detections)
    if images and labels and settings.detection.source is None:
        raise SettingsError(
            f"{study.root}/study.yaml has detection files (sources.detections) and detector weights (images.weights); "
            f"set detection.source to labels or detect"
        )
    return settings.detection.source == "detect" or (settings.detection.source is None and images)


def detection_stage(study: Study) -> str:
    """Return the name of the stage whose records hold the study's detections.

    Raises
    ------
    StageNotRunError
        If the detector has not run on the images.
    SettingsError
        If the study has two kinds of detections, and does not set detection.source.
    """
    return stage_name(study) if from_images(study) else LABELS.name

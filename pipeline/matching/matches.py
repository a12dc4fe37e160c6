"""Files of matches: one per bucket of names, with a part for each file of metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from patrolscope.pipeline.errors import LedgerError, StageNotRunError
from patrolscope.pipeline.study.store import Record, Study, fingerprint

STAGE = "match"  # name of the stage MATCH
FOLDER = "staging/matches"
COLUMNS = ["processed", "score", "score_any"]
_SCHEMA = pa.schema(
    [("row", pa.uint32()), ("processed", pa.bool_()), ("score", pa.float64()), ("score_any", pa.float64())]
)  # `row` in the metadata file; the schema's metadata holds the order of the parts
_PARTS = b"parts"


def write_matches(
    study: Study, name: str, matches: pa.Table, sizes: Sequence[int], metadata_files: Sequence[tuple[str, int]]
) -> str:
    """Write the matches of one bucket.

    Parameters
    ----------
    study : Study
        Study to write to.
    name : str
        Name of the file, without folder and ending.
    matches : Table
        `row` and `COLUMNS`, ordered by file of metadata.
    sizes : sequence of int
        Rows of each part.
    metadata_files : sequence of (str, int)
        File of metadata of each part, and its total number of rows.
    """
    whole = pa.RecordBatch.from_arrays([column.combine_chunks() for column in matches.columns], schema=_SCHEMA)
    schema = _SCHEMA.with_metadata({_PARTS: json.dumps(metadata_files)})
    return study.write_parts(_split(whole, sizes), schema, f"{FOLDER}/{name}.arrow")


def _split(rows: pa.RecordBatch, sizes: Sequence[int]) -> Iterator[pa.RecordBatch]:
    start = 0
    for size in sizes:
        yield rows.slice(start, size)
        start += size


def matches_fingerprint(study: Study) -> str:
    """Compute a digest of the inputs of all matches.

    Raises
    ------
    StageNotRunError
        If nothing has been matched.
    """
    return fingerprint([record.content for record in _records(study)])


def detections_of(study: Study, metadata_file: str) -> pd.DataFrame:
    """Read the detection of each image of a file of metadata, in the order of its rows.

    Returns
    -------
    DataFrame
        `processed` (bool), `score` and `score_any` (missing without a box).

    Raises
    ------
    StageNotRunError
        If the file has not been matched.
    LedgerError
        If an image has no match, or several.
    """
    parts = []
    total = 0
    for record in _records(study):
        (file,) = record.files
        with study.open_parts(file) as reader:
            listed = json.loads(reader.schema.metadata[_PARTS])
            number = next((number for number, (name, _) in enumerate(listed) if name == metadata_file), None)
            if number is None:
                raise StageNotRunError(
                    f"{metadata_file} has not been matched; run `patrolscope run --study {study.root}`"
                )
            total = listed[number][1]
            parts.append(reader.get_batch(number))
    return _in_row_order(pa.Table.from_batches(parts), total, metadata_file)


def _in_row_order(matches: pa.Table, total: int, metadata_file: str) -> pd.DataFrame:
    row = matches["row"].to_numpy()
    per_row = np.bincount(row, minlength=total)
    if len(per_row) != total or (per_row != 1).any():
        raise LedgerError(
            f"match: {metadata_file} has {total} images and {len(row)} matches of {len(np.unique(row))} different "
            "rows; expected one per image; please report this defect"
        )
    position = np.empty(total, dtype=np.intp)
    position[row] = np.arange(total)
    return matches.select(COLUMNS).take(pa.array(position)).to_pandas()


def _records(study: Study) -> list[Record]:
    records = list(study.records(STAGE).values())
    if not records:
        raise StageNotRunError(
            f"detections of {study.root} have not been matched; run `patrolscope run --study {study.root}`"
        )
    return records

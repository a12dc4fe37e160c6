"""Stages that match detections to images, and annotate images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from patrolscope.pipeline.contract.tables import DIFFERENCES, annotated_table
from patrolscope.pipeline.detect.stages import INDEX, INDEX_FOLDER
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.geography.curve_order import ROW_GROUP_ROWS
from patrolscope.pipeline.geography.layers import (
    AREA_INDEX_FILE,
    AREAS_FILE,
    FELONIES_FILE,
    PRECINCT_INDEX_FILE,
    load_index,
    load_stations,
)
from patrolscope.pipeline.hashing import Keys
from patrolscope.pipeline.intake.stages import ARRANGE, DUPLICATES_FOLDER, SET_ASIDE
from patrolscope.pipeline.intake.supplied_columns import (
    differences_of,
    read_supplied,
    reconcile,
    supplied_detections,
    without_unknown_areas,
)
from patrolscope.pipeline.matching import matches, processed_list
from patrolscope.pipeline.matching.annotate import Felonies, ReferenceLayers, annotate
from patrolscope.pipeline.matching.keys import (
    DETECTIONS,
    DUPLICATES,
    IMAGES,
    INDEXED,
    PROCESSED,
    REJECTED,
    SCHEMAS,
    bucket_count,
    count_lines,
    detection_stage,
    from_images,
    in_buckets,
    keyed_detections,
    keyed_duplicates,
    keyed_images,
    keyed_index,
    keyed_lines,
    keyed_rejected,
)
from patrolscope.pipeline.matching.match import match
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint

KEYS_FOLDER = "staging/keys"
# Detector output has 20,000 rows per file. Combined, a bucket is in 60 times fewer files.
DETECTIONS_PER_SHARD = 1_000_000
_FOLDERS = {
    IMAGES: "metadata",
    DETECTIONS: "detections",
    INDEXED: INDEX_FOLDER,
    DUPLICATES: DUPLICATES_FOLDER,
    REJECTED: "quarantine",
}
_REMOVED = {DUPLICATES: "that were dropped as duplicates", REJECTED: "in quarantine"}
_BYTES_PER_LINE = 60  # of the processed list, approximately, to estimate the number of its lines


def plan_keys(study: Study) -> list[Shard]:
    """Plan a shard per file of metadata, group of files of detections or of the index, and block of the processed list.

    Raises
    ------
    SourceError
        If the processed list is missing.
    """
    images, quarantined, detections, indexed = (
        list(study.records(stage).values())
        for stage in (ARRANGE.name, SET_ASIDE.name, detection_stage(study), INDEX.name)
    )
    detections, indexed = ([record for record in records if record.files] for records in (detections, indexed))
    duplicates = [record for record in images if record.files_in(_FOLDERS[DUPLICATES])]
    # With a detector, its output shows which images were processed, and the list is not used.
    blocks = [] if from_images(study) else processed_list.list_blocks(study)
    rows = max(
        sum(record.rows_out for record in images),
        sum(record.rows_out for record in detections),
        sum(record.rows_out for record in indexed),
        sum(record.rows_out for record in quarantined),
        sum(record.rows_in - record.rows_out for record in duplicates),
        sum(work["stop"] - work["start"] for work in blocks) // _BYTES_PER_LINE,
    )
    buckets = bucket_count(rows)
    return [
        # A share of a slice can have no rows, and then no file.
        *(_keys_shard(IMAGES, record.shard, [record], buckets) for record in images if record.files_in("metadata")),
        *(
            _keys_shard(kind, f"{number:05d}", records, buckets)
            for kind, all_records in (
                (DETECTIONS, detections),
                (INDEXED, indexed),
                (DUPLICATES, duplicates),
                (REJECTED, quarantined),
            )
            for number, records in enumerate(_group_records(all_records, DETECTIONS_PER_SHARD))
        ),
        *(
            Shard(f"{PROCESSED}-{number:05d}", {"kind": PROCESSED, "buckets": buckets, **work})
            for number, work in enumerate(blocks)
        ),
    ]


def _keys_shard(kind: str, name: str, records: Sequence[Record], buckets: int) -> Shard:
    files = [file for record in records for file in record.files_in(_FOLDERS[kind])]
    work = {"kind": kind, "buckets": buckets, "files": files}
    return Shard(
        f"{kind}-{name}", work, made_from={_FOLDERS[kind]: fingerprint([record.content for record in records])}
    )


def _group_records(records: Sequence[Record], max_rows: int) -> Iterator[list[Record]]:
    """Group consecutive records with at most `max_rows` rows together; a record with more is a group."""
    group: list[Record] = []
    rows = 0
    for record in records:
        if group and rows + record.rows_out > max_rows:
            yield group
            group, rows = [], 0
        group.append(record)
        rows += record.rows_out
    if group:
        yield group


def process_keys(study: Study, shard: Shard) -> Output:
    """Write the keys of one shard.

    Raises
    ------
    SourceError
        If the processed list is unreadable, or has changed since the work was planned.
    """
    work = shard.work
    if work["kind"] == PROCESSED:
        text = processed_list.read_block(study, work)
        ledger = Ledger("keys", count_lines(text))
        try:
            rows = keyed_lines(text, ledger)
        except UnicodeDecodeError as error:
            raise SourceError(f"{work['path']} is not UTF-8 ({error}); save it as UTF-8") from error
    else:
        if work["kind"] == IMAGES:
            (file,) = work["files"]
            rows = keyed_images(study.read_arrow(file, ["image_ref"])["image_ref"])
        elif work["kind"] == INDEXED:
            ids = [study.read_arrow(file, ["image_id"])["image_id"] for file in work["files"]]
            rows = pa.concat_batches([keyed_index(column) for column in ids])
        elif work["kind"] in (DUPLICATES, REJECTED):
            column, keyed = ("image_ref", keyed_duplicates) if work["kind"] == DUPLICATES else ("text", keyed_rejected)
            rows = pa.concat_batches([keyed(study.read_arrow(file, [column])[column]) for file in work["files"]])
        else:
            columns = ["image_id", "status", "score", "score_any"]
            without_ending = from_images(study)
            rows = pa.concat_batches(
                [
                    keyed_detections(study.read_arrow(file, columns), without_ending=without_ending)
                    for file in work["files"]
                ]
            )
        ledger = Ledger("keys", len(rows))
    written = study.write_parts(in_buckets(rows, work["buckets"]), rows.schema, f"{KEYS_FOLDER}/{shard.name}.arrow")
    facts = {"kind": work["kind"], "buckets": work["buckets"], "files": work.get("files", [])}
    return Output((written,), ledger.rows_in, len(rows), (ledger.close(len(rows)),), facts)


def plan_match(study: Study) -> list[Shard]:
    """Plan a shard per bucket.

    Raises
    ------
    StageNotRunError
        If there are no keys of images.
    """
    keys = list(study.records(KEYS.name).values())
    images = [record for record in keys if record.facts["kind"] == IMAGES]
    if not images:
        raise StageNotRunError(
            f"{study.root} has no images; run `patrolscope ingest --study {study.root}`, or, if it has run, see the "
            "reasons in quarantine/ and ledger.jsonl"
        )
    # A detector writes a row for each processed image, so all others are unprocessed. Without detections, all are.
    sources = study.settings.sources
    listed = from_images(study) or sources.processed is not None or not sources.detections
    work = {
        # Each file of keys, its file of metadata, and the rows of that file.
        IMAGES: [[*record.files, *record.facts["files"], record.rows_out] for record in images],
        DETECTIONS: _files(keys, DETECTIONS),
        PROCESSED: _files(keys, PROCESSED) if listed else None,
        **{kind: _files(keys, kind) for kind in _REMOVED},
    }
    # The index is left out: it has no influence on matches.
    made_from = fingerprint([record.content for record in keys if record.facts["kind"] != INDEXED])
    buckets = images[0].facts["buckets"]
    return [Shard(f"{bucket:05d}", {"bucket": bucket, **work}, made_from=made_from) for bucket in range(buckets)]


def _files(records: Sequence[Record], kind: str) -> list[str]:
    return [file for record in records if record.facts["kind"] == kind for file in record.files]


def process_match(study: Study, shard: Shard) -> Output:
    """Match the images of one bucket."""
    work = shard.work
    bucket = work["bucket"]
    image_parts = _read_parts(study, [file for file, _, _ in work[IMAGES]], bucket)
    images = pa.Table.from_batches(image_parts, SCHEMAS[IMAGES])
    detections = _read_keys(study, work[DETECTIONS], bucket, DETECTIONS)
    processed = None if work[PROCESSED] is None else _read_keys(study, work[PROCESSED], bucket, PROCESSED)
    ledger = Ledger("match", len(detections))
    matched = match(
        images.select(["name", "path"]).to_pandas(), detections, processed, ledger, removed=_removed(study, work)
    )
    if processed is None and bucket == 0:
        ledger.note("no list of processed images: every image of the metadata counts as processed", 1)
    rows = images.select(["row"])
    for column in matches.COLUMNS:
        rows = rows.append_column(column, pa.array(matched[column], from_pandas=True))
    sizes = [len(part) for part in image_parts]
    metadata_files = [(file, total) for _, file, total in work[IMAGES]]
    written = matches.write_matches(study, shard.name, rows, sizes, metadata_files)
    rows_out = len(detections) - ledger.dropped.total()
    return Output((written,), len(detections), rows_out, (ledger.close(rows_out),))


def _removed(study: Study, work: dict[str, Any]) -> dict[str, Keys]:
    """Return the names of images that the study has removed, of one bucket, by reason."""
    return {
        reason: _read_keys(study, work[kind], work["bucket"], kind)["name"].to_numpy()
        for kind, reason in _REMOVED.items()
    }


def _read_parts(study: Study, files: Iterable[str], bucket: int) -> list[pa.RecordBatch]:
    """Read one bucket of each file of keys."""
    parts = []
    for file in files:
        with study.open_parts(file) as reader:
            parts.append(reader.get_batch(bucket))
    return parts


def _read_keys(study: Study, files: Iterable[str], bucket: int, kind: str) -> pd.DataFrame:
    return pa.Table.from_batches(_read_parts(study, files, bucket), SCHEMAS[kind]).to_pandas()


def plan_match_index(study: Study) -> list[Shard]:
    """Plan a shard per bucket of names; none without metadata or index."""
    keys = list(study.records(KEYS.name).values())
    work = {kind: _files(keys, kind) for kind in (IMAGES, INDEXED)}
    if not all(work.values()):
        return []
    work |= {kind: _files(keys, kind) for kind in _REMOVED}
    made_from = fingerprint([record.content for record in keys if record.facts["kind"] in work])
    buckets = keys[0].facts["buckets"]
    return [Shard(f"{bucket:05d}", {"bucket": bucket, **work}, made_from=made_from) for bucket in range(buckets)]


def process_match_index(study: Study, shard: Shard) -> Output:
    """Count the matches of images and indexed files of one bucket, by the rules for detections.

    This shows mismatches before a detector runs for hours.
    """
    images, files = (_read_keys(study, shard.work[kind], shard.work["bucket"], kind) for kind in (IMAGES, INDEXED))
    ledger = Ledger("match_index", len(files))
    detections = files.assign(score=np.nan, score_any=np.nan, readable=True)
    # The index serves as the list of processed images, so that images without a file count as unprocessed.
    matched = match(images, detections, files, ledger, "files of the index", _removed(study, shard.work))
    ledger.note("images of the metadata without a file in the index", int((~matched["processed"]).sum()))
    rows_out = len(files) - ledger.dropped.total()
    return Output((), len(files), rows_out, (ledger.close(rows_out),))


@lru_cache(maxsize=2)
def load_reference_layers(study: Study, _fingerprint: str) -> ReferenceLayers:
    """Load the reference layers, once per worker process and fingerprint of the layers."""
    index = load_index(study, AREA_INDEX_FILE, _fingerprint)
    names = study.read(AREAS_FILE, columns=["area", "neighborhood", "borough"]).set_index("area")
    return ReferenceLayers(
        areas=index,
        area_names=names.reindex(pd.Index(index.keys)).reset_index(drop=True),
        precincts=load_index(study, PRECINCT_INDEX_FILE, _fingerprint) if study.exists(PRECINCT_INDEX_FILE) else None,
        stations=load_stations(study),
        felonies=Felonies.build(study.read(FELONIES_FILE), study.settings.city.crs),
    )


def plan_annotate(study: Study) -> list[Shard]:
    """Plan a shard per file of metadata."""
    layers = study.record("layers")
    settings = study.settings
    common = {
        "annotate": settings.annotate.model_dump(mode="json"),
        "detection": settings.detection.model_dump(mode="json"),
        "city": settings.city.model_dump(mode="json", include={"time_zone", "crs", "sun"}),
        "table": annotated_table(settings.annotate.felony_windows_h).fingerprint(),
        "layers": layers.content,
        "matches": matches.matches_fingerprint(study),
        "own detections": bool(settings.sources.detections) or from_images(study),
        "trust": settings.ingest.trust,
    }
    return [
        Shard(record.shard, {"file": file, **common}, size=record.rows_out, made_from={file: record.content})
        for record in study.records("ingest").values()
        for file in record.files_in("metadata")
    ]


def process_annotate(study: Study, shard: Shard) -> Output:
    """Annotate one file of metadata, in the order of its rows."""
    file = shard.work["file"]
    settings = study.settings
    metadata = study.read(file)
    supplied = read_supplied(study, file)
    ledger = Ledger("annotate", len(metadata))
    found = _detections(study, file, supplied, ledger)
    layers = load_reference_layers(study, shard.work["layers"])
    computed = annotate(metadata, found=found, layers=layers, settings=settings)
    trusted = supplied
    if supplied is not None and settings.ingest.trust:
        trusted = without_unknown_areas(supplied, layers.areas.keys.tolist(), ledger)
    table = annotated_table(settings.annotate.felony_windows_h)
    frame = reconcile(computed, trusted, trust=settings.ingest.trust, ledger=ledger)
    if frame is not computed:
        frame = table.conform(frame)
    ledger.note("outside every area: kept, area missing", int(frame["area"].isna().sum()))
    ledger.note("unprocessed by the detector", int((~frame["processed"]).sum()))
    name = file.replace("metadata/", "annotated/", 1)
    files = [study.write(table, frame, name, row_group_rows=ROW_GROUP_ROWS)]
    differences = differences_of(computed, supplied)
    if len(differences):
        files.append(study.write(DIFFERENCES, differences, file.replace("metadata/", "differences/", 1)))
    return Output(tuple(files), len(metadata), len(frame), (ledger.close(len(frame)),))


def _detections(study: Study, file: str, supplied: pd.DataFrame | None, ledger: Ledger) -> pd.DataFrame:
    """Return the matched detections of a file of metadata, or supplied ones if the study has no others."""
    prediction_above = study.settings.detection.prediction_above
    if supplied is not None and not study.settings.sources.detections and not from_images(study):
        return supplied_detections(supplied, ledger, prediction_above=prediction_above)
    found = matches.detections_of(study, file)
    return found.assign(has_prediction=found["score_any"] > prediction_above)


KEYS = Stage("keys", unit="parts", folders=(KEYS_FOLDER,), plan=plan_keys, process=process_keys)
MATCH_INDEX = Stage(
    "match_index", unit="parts", folders=(), plan=plan_match_index, process=process_match_index, version=2
)
MATCH = Stage(matches.STAGE, unit="parts", folders=(matches.FOLDER,), plan=plan_match, process=process_match, version=3)
ANNOTATE = Stage(
    "annotate",
    unit="rows",
    folders=("annotated", "differences"),
    plan=plan_annotate,
    process=process_annotate,
    version=3,
)

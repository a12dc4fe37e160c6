"""Stages that index the image store and run the detector.

PREFIXES lists the uppermost folders until there is work for many workers. INDEX lists everything below them, some
folders per shard, and divides the images into shards for the detector. Later runs reuse the index; `patrolscope index`
lists all images again.

WEIGHTS opens the weights on a worker, so that errors show before hours of work, and names the result after the weights
and all settings that change boxes. `detect_stage` then processes the shards of the index. Other weights or settings
give another result, which is stored beside the first.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from patrolscope.pipeline.contract.tables import DETECTIONS, IMAGE_INDEX
from patrolscope.pipeline.detect.detection_table import detection_table
from patrolscope.pipeline.detect.image_index import bucket_of, cut, index_rows, index_table, top_folders
from patrolscope.pipeline.detect.image_store import IMAGE_ENDINGS, TAR_ENDING, ImageStore, image_reader, located
from patrolscope.pipeline.detect.inference import Clock, Detection, infer
from patrolscope.pipeline.detect.malloc import kept_memory
from patrolscope.pipeline.detect.worker_detector import weights_path, weights_version, worker_detector
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError, StageNotRunError, WeightsError
from patrolscope.pipeline.intake.detection_files import refuse_overlap
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.remote import remote_errors
from patrolscope.pipeline.study.store import Output, Study, fingerprint

INDEX_FOLDER = "image_index"
RESOURCE = "GPU"  # one per shard; if no worker offers it, all workers detect
INDEX_VERSION = 2  # raised when a change of listing changes which images are indexed
VERSION = 2  # raised when a change of image decoding changes boxes or statuses
_REMOTE_THREADS = 16  # that read and decode from a remote store, which mostly wait
_BYTES_PER_PIXEL = 8  # in the largest supported form: 16 bits, four channels, uncompressed
WITHOUT_BOX = "image without a box"
_UNPROCESSED = {
    "unreadable": "unreadable: damaged, or not an image",
    "missing": "missing: no longer in the image store",
    "too_large": "too_large: more pixels than images.max_megapixels",
}
_INDEX_COLUMNS = [
    IMAGE_INDEX[name].name for name in ("image_id", "source", "path", "member", "offset", "bytes", "version")
]


# PREFIXES: the uppermost folders.


def plan_prefixes(study: Study) -> list[Shard]:
    """Plan one shard, or none if the study has no images.

    Raises
    ------
    SourceError
        If an entry of `images.sources` is inside another one.
    """
    sources = study.settings.images.sources
    roots = [posixpath.normpath(located(study, source)[1]) for source in sources]
    refuse_overlap(roots, "images.sources")
    return [Shard("uppermost", {"sources": sources})] if sources else []


def process_prefixes(study: Study, shard: Shard) -> Output:
    """List the uppermost folders and assign them to buckets.

    Raises
    ------
    SourceError
        If a source cannot be listed.
    """
    buckets: dict[str, list[tuple[str, str, bool]]] = {}
    for source in shard.work["sources"]:
        for folder, with_subfolders in top_folders(ImageStore.of(study, source)):
            buckets.setdefault(bucket_of(source, folder), []).append((source, folder, with_subfolders))
    folders = sum(map(len, buckets.values()))
    return Output((), folders, folders, (Ledger("prefixes", folders).close(folders),), {"buckets": buckets})


PREFIXES = Stage("prefixes", unit="listings", folders=(), plan=plan_prefixes, process=process_prefixes)


# INDEX: all images below them.


def plan_index(study: Study) -> list[Shard]:
    """Plan one shard per bucket of folders from the last run of PREFIXES."""
    if not study.settings.images.sources:
        return []
    made_from = fingerprint(INDEX_VERSION, IMAGE_INDEX.fingerprint(), study.settings.images.shard_images)
    buckets = study.record(PREFIXES.name).facts["buckets"]
    return [
        Shard(name, {"folders": folders}, size=len(folders), made_from=made_from)
        for name, folders in sorted(buckets.items())
    ]


def process_index(study: Study, shard: Shard) -> Output:
    """List the images of some folders, and divide them into shards for the detector. Needs 0.5 kB per image.

    Raises
    ------
    SourceError
        If a source cannot be listed.
    """
    stores = {source: ImageStore.of(study, source) for source in {source for source, _, _ in shard.work["folders"]}}
    rows: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for source, folder, with_subfolders in shard.work["folders"]:
        store = stores[source]
        try:
            entries = store.entries_below(folder, skipped) if with_subfolders else store.entries(folder, skipped)[0]
            rows += index_rows(store, entries, skipped)
        except FileNotFoundError as error:
            raise SourceError(
                f"{store.full_path(folder)} was removed while it was listed ({error}); run `patrolscope index` again"
            ) from error
        except remote_errors() as error:
            raise SourceError(
                f"cannot list {store.full_path(folder)} ({error}); run the same command again to resume"
            ) from error
    ledger = Ledger("index", len(rows) + skipped.total())
    for reason, count in sorted(skipped.items()):
        ledger.drop(count, why=reason)
    # In the order of names, so that the statistics of row groups lead to a shard: reading one takes 15 ms in a file of
    # 1.5 million images, instead of 190 ms.
    shards = sorted(cut(rows, study.settings.images.shard_images), key=lambda named: named[0])
    files: tuple[str, ...] = ()
    if shards:
        files = (study.write(IMAGE_INDEX, index_table(shards), f"{INDEX_FOLDER}/{shard.name}.parquet"),)
    facts = {
        "shards": [(name, len(images), sum(row["bytes"] for row in images)) for name, images in shards],
        "bytes": sum(row["bytes"] for row in rows),
    }
    return Output(files, ledger.rows_in, len(rows), (ledger.close(len(rows)),), facts)


INDEX = Stage("index", unit="folders", folders=(INDEX_FOLDER,), plan=plan_index, process=process_index)


def indexed_shards(study: Study) -> Iterator[tuple[str, int, int, str]]:
    """Yield the shards for the detector: name, number of images, bytes, and the file of the index with their rows."""
    for record in study.records(INDEX.name).values():
        for name, images, size in record.facts["shards"]:
            yield name, images, size, record.files[0]


def no_images(study: Study) -> SourceError:
    """Return the error for a study without images."""
    sources = ", ".join(study.settings.images.sources)
    if not sources:
        return SourceError(
            f"study.yaml names no images; run `patrolscope index IMAGES --study {study.root}` with a folder or URL"
        )
    return SourceError(
        f"images.sources: {sources} holds no image; expected {', '.join(IMAGE_ENDINGS)}, also in {TAR_ENDING} files"
    )


# WEIGHTS: the name of the result.


def plan_weights(study: Study) -> list[Shard]:
    """Plan one shard, or none if the study has no weights.

    Raises
    ------
    WeightsError
        If the weights do not exist.
    """
    if study.settings.images.weights is None:
        return []
    images = study.settings.images.model_dump(mode="json", exclude={"sources", "shard_images", "batch", "compile"})
    detection = {"police_class": study.settings.detection.police_class, "names": study.settings.detection.class_names}
    return [Shard("weights", {"images": images, "version": weights_version(weights_path(study)), **detection})]


def process_weights(study: Study, _shard: Shard) -> Output:
    """Open the weights, check the classes of the settings, and name the result.

    Raises
    ------
    WeightsError
        If the weights cannot be opened or do not have a class.
    """
    detector = worker_detector(study).detector
    police_class = police_class_number(study, detector.class_names)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(weights_path(study)).stem).strip("-") or "weights"
    digest = fingerprint(detector.fingerprint, police_class, study.settings.images.max_megapixels, VERSION)
    facts = {
        "result": f"{stem}-{digest[:8]}",
        "detector": detector.fingerprint,
        "class_names": detector.class_names,
        "police_class": police_class,
    }
    return Output((), 1, 1, (Ledger("weights", 1).close(1),), facts)


def police_class_number(study: Study, names: Sequence[str]) -> int:
    """Return the number of the police class.

    Parameters
    ----------
    study : Study
        Study whose settings name the class.
    names : sequence of str
        Class names of the weights. Empty if the weights do not contain them.

    Raises
    ------
    WeightsError
        If the weights do not have the class, or `images.classes` excludes its boxes.
    """
    police_class = study.settings.detection.police_class
    classes = study.settings.images.classes
    if not names:
        number = study.settings.detection.police_class_number
    elif isinstance(police_class, str) and police_class in names:
        number = names.index(police_class)
    elif isinstance(police_class, int) and police_class < len(names):
        number = police_class
    else:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise WeightsError(
            f"the weights have no class {police_class!r}; expected one of {known}; set --police-class "
            f"(detection.police_class in study.yaml) to its number"
        )
    if classes and not {number, str(number), *names[number : number + 1]} & set(classes):
        raise WeightsError(
            f"images.classes is {', '.join(map(str, classes))}; expected to include the police class {police_class!r} "
            f"({number}), which gives the score; add it"
        )
    return number


WEIGHTS = Stage("weights", unit="files", folders=(), plan=plan_weights, process=process_weights, resource=RESOURCE)


def weights_stage(study: Study) -> Stage:
    """Return WEIGHTS with the memory that the network needs, so that small workers are rejected before any work.

    Raises
    ------
    WeightsError
        If the weights do not exist.
    """
    return replace(WEIGHTS, memory_gb=_memory_gb(weights_version(weights_path(study))[0]))


def _memory_gb(file_bytes: int) -> float:
    """Estimate the memory of a worker that holds the network of a weights file.

    One core without a GPU needed 0.98 GB at most with yolov7-tiny at 640 pixels (12 MB), and 2.12 GB with yolov7-e6e at
    1280 pixels (331 MB). Dask kills a worker at 95% of its memory.
    """
    return max(WEIGHTS.memory_gb, round((1.0 + 3.5 * file_bytes / 1e9) / 0.9, 1))


# The stage of a result.


def detect_stage(study: Study) -> Stage:
    """Return the stage that computes the result of the study's settings; WEIGHTS must be up to date."""
    return Stage(
        stage_name(study),
        unit="images",
        folders=(f"detections/{result_name(study)}",),
        plan=plan_detect,
        process=process_detect,
        resource=RESOURCE,
        memory_gb=_memory_gb(weights_version(weights_path(study))[0]),
    )


def result_name(study: Study) -> str:
    """Return the name of the result of the study's settings, which is also the name of its folder.

    Raises
    ------
    StageNotRunError
        If WEIGHTS has not run since the weights or a setting changed.
    """
    records = study.records(WEIGHTS.name)
    for shard in plan_weights(study):
        record = records.get(shard.name)
        if record is not None and record.fingerprint == WEIGHTS.fingerprint(shard):
            return str(record.facts["result"])
    raise StageNotRunError(
        f"no detections for the settings in study.yaml; run `patrolscope detect --study {study.root}`"
    )


def stage_name(study: Study) -> str:
    """Return the name of the stage that computes the result of the study's settings."""
    return f"detect-{result_name(study)}"


def plan_detect(study: Study) -> list[Shard]:
    """Plan one shard per shard of the index.

    Raises
    ------
    StageNotRunError
        If there is no index.
    SourceError
        If the index has no images.
    """
    facts = study.record(WEIGHTS.name).facts
    work = {"result": facts["result"], "detector": facts["detector"], "police_class": facts["police_class"]}
    table = DETECTIONS.fingerprint()  # computed once, as 248 million images have 124,000 shards
    shards = [
        Shard(name, work, size=images, made_from=table, found_in=file)
        for name, images, _, file in indexed_shards(study)
    ]
    if not shards:
        raise no_images(study)
    return shards


def process_detect(study: Study, shard: Shard) -> Output:
    """Run the detector over the images of one shard.

    Raises
    ------
    SourceError
        If a file cannot be read for another reason than that it no longer exists.
    WeightsError
        If the weights have changed since the shard was planned.
    """
    index = study.read(shard.found_in, columns=_INDEX_COLUMNS, filters=[("shard", "==", shard.name)])
    worker = worker_detector(study)
    if worker.detector.fingerprint != shard.work["detector"]:
        raise WeightsError(
            f"{study.settings.images.weights} has changed since this run began, or this worker's device differs from "
            f"the one that opened it first; expected the same detector on all workers; run the command again once the "
            f"file is complete, or set images.precision, and images.jpeg to cpu, to use GPUs and CPUs on one study"
        )
    max_pixels = int(study.settings.images.max_megapixels * 1e6)
    stores = {source: ImageStore.of(study, source) for source in index["source"].unique()}
    is_remote = any(not store.is_local for store in stores.values())
    clock = Clock()
    # A larger file has too many pixels, whatever its header says.
    readable = np.flatnonzero(index["bytes"] <= _BYTES_PER_PIXEL * max_pixels)
    detections = [Detection("too_large")] * len(index)
    with worker.lock, kept_memory():
        results = infer(
            worker.detector,
            image_reader(index.iloc[readable], stores),
            len(readable),
            batch=worker.batch,
            threads=max(worker.threads, _REMOTE_THREADS if is_remote else 1),
            max_pixels=max_pixels,
            clock=clock,
        )
    for position, result in zip(readable, results, strict=True):
        detections[position] = result
    rows = detection_table(index["image_id"], detections, shard.work["police_class"])
    file = study.write(DETECTIONS, rows, f"detections/{shard.work['result']}/{shard.name}.parquet")
    statuses = Counter(str(detection.status) for detection in detections)
    ledger = Ledger("detect", len(index))
    for status, note in _UNPROCESSED.items():
        if statuses[status]:
            ledger.note(note, statuses[status])
    if without_box := sum(detection.status == "scored" and not len(detection.boxes) for detection in detections):
        ledger.note(WITHOUT_BOX, without_box)
    facts = {
        "bytes": int(index["bytes"].sum()),
        "statuses": dict(statuses),
        "waiting_s": round(clock.waiting_s, 3),
        "predicting_s": round(clock.predicting_s, 3),
    }
    return Output((file,), len(index), len(rows), (ledger.close(len(rows)),), facts)

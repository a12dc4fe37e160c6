"""`patrolscope detect`: every image of the index through the detector.

WEIGHTS opens the weights on a worker, before hours are spent, and names the result after the weights and all settings
that change a box. A stage made for that result then takes the shards of the index one after the other. Other weights or
settings are another result, which lies beside it.

A worker process holds one detector, loaded when its first shard comes.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from patrolscope.pipeline.contract.tables import DETECTIONS, IMAGE_INDEX
from patrolscope.pipeline.detect import detector as detectors
from patrolscope.pipeline.detect.detector import Detector
from patrolscope.pipeline.detect.image_index import Store, indexed_shards, no_images
from patrolscope.pipeline.detect.inference import Batch, Clock, Found, infer
from patrolscope.pipeline.detect.memory import kept_memory
from patrolscope.pipeline.detect.weights.training_result import RESULT_FILE, trained_threshold
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError, StageNotRunError, WeightsError
from patrolscope.pipeline.intake.raw_files import identity
from patrolscope.pipeline.study.adopt import adopt
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.remote import remote_errors
from patrolscope.pipeline.study.store import Output, Study, fingerprint, open_study

RESOURCE = "GPU"  # of workers; where none offers it, all of them do the work
VERSION = 1  # raised when images are decoded otherwise, so that their boxes change
# Threads that read and decode: one keeps ahead of a CPU's network, and a store far away is a matter of waiting.
_GPU_THREADS = 8
_REMOTE_THREADS = 16
_BYTES_A_PIXEL = 8  # of the largest form of an image: 16 bits of four channels, not packed
_EDGES = ("x1", "y1", "x2", "y2")
_NOTES = {
    "unreadable": "not an image that can be read, or damaged: unreadable, no evidence",
    "missing": "gone since it was listed: missing, no evidence",
    "too_large": "more pixels than images.max_megapixels: too_large, no evidence",
}


# The detector of a worker.


@dataclass
class _Held:
    """The detector of this process, and the batch that fits its device."""

    detector: Detector
    batch: Batch
    threads: int
    busy: threading.Lock = field(default_factory=threading.Lock)  # one shard at a time has the device


_held: dict[str, _Held] = {}
_loading = threading.Lock()


def _detector_of(study: Study) -> _Held:
    """The detector that the study asks for; loaded once, in place of another one.

    Raises
    ------
    WeightsError : the weights can not be opened, or can not do what is asked
    """
    asked = study.settings.images
    path = _weights(study)
    options: dict[str, Any] = {
        "size": asked.size,
        "min_score": asked.min_score,
        "nms_iou": asked.nms_iou,
        "classes": asked.classes or None,
        "augment": asked.augment,
        "device": asked.device,
        "precision": asked.precision,
        "compile": asked.compile,
        "jpeg": asked.jpeg,
        "trust": asked.trust_weights,
    }
    key = fingerprint(path, _version(path), options, asked.batch)
    with _loading:
        if key not in _held:
            _held.clear()
            on_gpu = asked.device != "cpu" and _has_gpu()
            detector = detectors.load_detector(path, **options)
            _held[key] = _Held(
                detector,
                Batch(asked.batch or detector.default_batch()),
                min(_GPU_THREADS, len(os.sched_getaffinity(0))) if on_gpu else 1,
            )
        return _held[key]


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _weights(study: Study) -> str:
    weights = study.settings.images.weights
    if weights is None:
        raise StageNotRunError(f"study.yaml names no weights: `patrolscope detect --weights FILE --study {study.root}`")
    return study.resolve(weights)


def _version(path: str) -> tuple[int, str]:
    """Size and version of the file of weights.

    Raises
    ------
    WeightsError : it is not there, or can not be reached
    """
    try:
        fs, place = fsspec.core.url_to_fs(path)
        return identity(fs, str(place))
    except FileNotFoundError as error:
        raise WeightsError(
            f"no weights at {path}: images.weights of study.yaml, or --weights, names the file"
        ) from error
    except (ValueError, ImportError) as error:
        raise WeightsError(f"images.weights: {path} is no path or URL that can be opened: {error}") from error
    except remote_errors() as error:
        raise WeightsError(f"the weights at {path} can not be reached: {error}") from error


# WEIGHTS: what the result is called.


def plan_weights(study: Study) -> list[Shard]:
    """One shard, or none where the study has no weights.

    Raises
    ------
    WeightsError : there is no such file
    """
    if study.settings.images.weights is None:
        return []
    images = study.settings.images.model_dump(mode="json", exclude={"sources", "shard_images", "batch", "compile"})
    detection = {"police_class": study.settings.detection.police_class, "names": study.settings.detection.class_names}
    return [Shard("weights", {"images": images, "version": _version(_weights(study)), **detection})]


def process_weights(study: Study, _shard: Shard) -> Output:
    """Open the weights, and look whether they know the classes that are asked for.

    Raises
    ------
    WeightsError : they can not be opened, or do not know a class
    """
    detector = _detector_of(study).detector
    number = police_class_number(study, detector.class_names)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(_weights(study)).stem).strip("-") or "weights"
    rules = fingerprint(detector.fingerprint, number, study.settings.images.max_megapixels, VERSION)
    facts = {
        "result": f"{stem}-{rules[:8]}",
        "detector": detector.fingerprint,
        "class_names": detector.class_names,
        "police_class": number,
    }
    return Output((), 1, 1, (Ledger("weights", 1).close(1),), facts)


def police_class_number(study: Study, names: Sequence[str]) -> int:
    """Number of the police class among the classes that weights know; none are given where they do not name them.

    Raises
    ------
    WeightsError : the weights have no such class, or its boxes are not asked for
    """
    wanted = study.settings.detection.police_class
    chosen = study.settings.images.classes
    if not names:
        number = study.settings.detection.police_class_number
    elif isinstance(wanted, str) and wanted in names:
        number = names.index(wanted)
    elif isinstance(wanted, int) and wanted < len(names):
        number = wanted
    else:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise WeightsError(
            f"the weights do not know the class {wanted!r}, only {known}: give its number as --police-class "
            f"(detection.police_class of study.yaml)"
        )
    if chosen and not {number, str(number), *names[number : number + 1]} & set(chosen):
        raise WeightsError(
            f"images.classes asks for {', '.join(map(str, chosen))} and not for the police class {wanted!r} "
            f"({number}), of which a score is taken: add it"
        )
    return number


WEIGHTS = Stage("weights", unit="files", folders=(), plan=plan_weights, process=process_weights, resource=RESOURCE)


def weights_stage(study: Study) -> Stage:
    """WEIGHTS, on a worker that can hold the network: a pool that is too small is refused before anything is begun.

    Raises
    ------
    WeightsError : there is no such file
    """
    return replace(WEIGHTS, memory_gb=_memory_gb(_version(_weights(study))[0]))


# What the command asks.


def adopt_detector(
    root: str,
    asked: dict[str, Any],
    *,
    classes: Sequence[int | str] | None,
    police_class: int | str | None,
    threshold: float | None = None,
) -> list[str]:
    """Write what a command asks of the detector to study.yaml, and that its detections are the ones to use.

    Other weights bring the threshold along that their training found best on its validation split.

    Parameters
    ----------
    asked : settings of the section `images`; None leaves what is there
    classes : names or numbers; `all` for every class
    threshold : an image is positive above it; None: that of the weights' training, if there is one

    Returns
    -------
    Lines that say what has changed

    Raises
    ------
    SettingsError : there is no study, or a value is impossible
    WeightsError : there are no weights; nothing is written then
    """
    before = open_study(root).settings
    every = classes is not None and "all" in classes
    source = "detect" if before.sources.detections or before.detection.source is not None else None
    weights = asked.get("weights")
    trained = None
    if threshold is None and weights is not None and weights != before.images.weights:
        wanted = before.detection.police_class if police_class is None else police_class
        trained = trained_threshold(weights, wanted)
    changes = {
        "images": {**asked, "classes": () if every else classes},
        "detection": {"police_class": police_class, "source": source},
        "estimate": {"threshold": trained if threshold is None else threshold},
    }
    changed = adopt(root, changes, check=_reachable)
    _reachable(open_study(root))
    if trained is not None:
        changed.append(
            f"estimate.threshold is that of the weights' training ({RESULT_FILE}); --threshold takes another"
        )
    return changed


def _reachable(study: Study) -> None:
    _version(_weights(study))
    if not study.settings.images.sources:
        raise no_images(study)


# The stage of a result.


def detect_stage(study: Study) -> Stage:
    """The stage that makes the result which the study's settings ask for; WEIGHTS must be up to date."""
    return Stage(
        stage_name(study),
        unit="images",
        folders=(f"detections/{result_name(study)}",),
        plan=plan_detect,
        process=process_detect,
        resource=RESOURCE,
        memory_gb=_memory_gb(_version(_weights(study))[0]),
    )


def _memory_gb(file_bytes: int) -> float:
    """Of a worker that holds the network of a file of weights.

    One core without a GPU took 0.98 GB at most with yolov7-tiny at 640 pixels (12 MB), 2.12 GB with yolov7-e6e at 1280
    (331 MB); Dask ends a worker at 95 % of its memory.
    """
    return max(WEIGHTS.memory_gb, round((1.0 + 3.5 * file_bytes / 1e9) / 0.9, 1))


def result_name(study: Study) -> str:
    """Name of the result that the settings ask for, and of its folder.

    Raises
    ------
    StageNotRunError : the weights have not been looked at since they, or a setting, changed
    """
    records = study.records(WEIGHTS.name)
    for shard in plan_weights(study):
        record = records.get(shard.name)
        if record is not None and record.fingerprint == WEIGHTS.fingerprint(shard):
            return str(record.facts["result"])
    raise StageNotRunError(
        f"the detections that study.yaml asks for are not made yet: run `patrolscope detect --study {study.root}`"
    )


def stage_name(study: Study) -> str:
    """Name of the stage whose records are the result that the settings ask for."""
    return f"detect-{result_name(study)}"


def plan_detect(study: Study) -> list[Shard]:
    """One shard for every shard of the index.

    Raises
    ------
    StageNotRunError, SourceError : there is no index, or no image in it
    """
    facts = study.record(WEIGHTS.name).facts
    work = {"result": facts["result"], "detector": facts["detector"], "police_class": facts["police_class"]}
    table = DETECTIONS.fingerprint()  # once: there are 124,000 shards of 248 million images
    shards = [
        Shard(name, work, size=images, made_from=table, found_in=file)
        for name, images, _, file in indexed_shards(study)
    ]
    if not shards:
        raise no_images(study)
    return shards


def process_detect(study: Study, shard: Shard) -> Output:
    """Run the images of one shard through the detector.

    Raises
    ------
    SourceError : a file can not be read, for another reason than that it is not there
    WeightsError : the weights are others than when the work was planned
    """
    index = study.read(shard.found_in, columns=_INDEX_COLUMNS, filters=[("shard", "==", shard.name)])
    held = _detector_of(study)
    if held.detector.fingerprint != shard.work["detector"]:
        raise WeightsError(
            f"{study.settings.images.weights} has changed since this run began, or this worker's device differs from "
            f"the one that looked at it: start again when the file is complete; where a GPU and a CPU work on one "
            f"study, name images.precision, and cpu as images.jpeg"
        )
    max_pixels = int(study.settings.images.max_megapixels * 1e6)
    stores = {source: Store.of(study, source) for source in index["source"].unique()}
    far = any(not store.is_local for store in stores.values())
    clock = Clock()
    # A file of that size has more pixels, whatever its header says.
    fits = np.flatnonzero(index["bytes"] <= _BYTES_A_PIXEL * max_pixels)
    found = [Found("too_large")] * len(index)
    with held.busy, kept_memory():
        results = infer(
            held.detector,
            image_reader(index.iloc[fits], stores),
            len(fits),
            batch=held.batch,
            threads=max(held.threads, _REMOTE_THREADS if far else 1),
            max_pixels=max_pixels,
            clock=clock,
        )
    for position, result in zip(fits, results, strict=True):
        found[position] = result
    detections = rows_of(index["image_id"], found, shard.work["police_class"])
    file = study.write(DETECTIONS, detections, f"detections/{shard.work['result']}/{shard.name}.parquet")
    statuses = Counter(one.status for one in found)
    ledger = Ledger("detect", len(index))
    for status, what in _NOTES.items():
        if statuses[status]:  # type: ignore[index]
            ledger.note(what, statuses[status])  # type: ignore[index]
    if without := sum(one.status == "scored" and len(one.boxes) == 0 for one in found):
        ledger.note("image without a box", without)
    facts = {
        "bytes": int(index["bytes"].sum()),
        "statuses": dict(statuses),
        "waiting_s": round(clock.waiting_s, 3),
        "predicting_s": round(clock.predicting_s, 3),
    }
    return Output((file,), len(index), len(detections), (ledger.close(len(detections)),), facts)


_INDEX_COLUMNS = [
    IMAGE_INDEX[name].name for name in ("image_id", "source", "path", "member", "offset", "bytes", "version")
]


def rows_of(image_ids: pd.Series[str], found: Sequence[Found], police_class: int) -> pd.DataFrame:
    """Rows of `DETECTIONS` of images and what was found in each."""
    scored = [one.status == "scored" for one in found]
    of_police = [one.boxes[one.boxes[:, 5] == police_class, 4] for one in found]
    lists = {f"box_{edge}": [one.boxes[:, number] for one in found] for number, edge in enumerate(_EDGES)}
    lists["box_score"] = [one.boxes[:, 4] for one in found]
    lists["box_class"] = [one.boxes[:, 5].astype(np.int32) for one in found]
    frame = {
        "image_id": image_ids.reset_index(drop=True),
        "status": pd.Series([one.status for one in found], dtype="str"),
        "score": _highest(of_police),
        "score_any": _highest(lists["box_score"]),
        "boxes": pd.Series([len(one.boxes) for one in found], dtype="int32"),
        "width": pd.Series([one.width for one in found], dtype="Int32"),
        "height": pd.Series([one.height for one in found], dtype="Int32"),
        "seconds": pd.Series([round(one.seconds, 6) for one in found], dtype="float64"),
    }
    for name, values in lists.items():
        frame[name] = pd.Series([list(value) if good else None for value, good in zip(values, scored, strict=True)])
    return DETECTIONS.conform(pd.DataFrame(frame))


def _highest(scores: Sequence[Any]) -> pd.Series[float]:
    return pd.Series([float(some.max()) if len(some) else None for some in scores], dtype="float64")


def image_reader(index: pd.DataFrame, stores: dict[str, Store]) -> Callable[[int], bytes | None]:
    """Function that gives the content of an image of the index by its position; None where it is gone.

    Raises
    ------
    SourceError : a tar file is another one than when it was listed
    """
    in_tar = index["member"].notna()
    gone = set()
    for source, path, version in index.loc[in_tar, ["source", "path", "version"]].drop_duplicates().to_numpy():
        now = stores[source].version(path)
        if now is None:
            gone.add((source, path))
        elif now != version:
            raise SourceError(f"{path} in {source} has changed since it was listed: run `patrolscope index` again")
    rows = list(index[["source", "path", "offset", "bytes"]].itertuples(index=False, name=None))

    def read(position: int) -> bytes | None:
        source, path, offset, size = rows[position]
        if (source, path) in gone:
            return None
        start = None if pd.isna(offset) else int(offset)
        return stores[source].read(path, start, None if start is None else start + int(size))

    return read


def summary(study: Study) -> list[str]:
    """What the detections of the study hold, in lines for a reader."""
    records = list(study.records(stage_name(study)).values())
    statuses = Counter[str]()
    for record in records:
        statuses.update(record.facts["statuses"])
    images = sum(record.rows_out for record in records)
    with_box = images - sum(line["notes"].get("image without a box", 0) for one in records for line in one.ledger)
    with_box -= images - statuses["scored"]
    worker_s = sum(record.seconds for record in records)
    rate = f", {images / worker_s:,.1f} a second and worker" if worker_s else ""
    return [
        f"{images:,} images{rate}: " + ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items())),
        f"{with_box:,} with a box ({with_box / max(statuses['scored'], 1):.2%} of those scored)",
    ]

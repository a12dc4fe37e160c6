"""The parts of `patrolscope index` and `patrolscope detect` that precede and follow their stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from patrolscope.pipeline.detect.image_store import ImageStore
from patrolscope.pipeline.detect.stages import (
    INDEX,
    PREFIXES,
    WITHOUT_BOX,
    indexed_shards,
    no_images,
    plan_index,
    plan_prefixes,
    stage_name,
)
from patrolscope.pipeline.detect.weights.training_result import RESULT_FILE, trained_threshold
from patrolscope.pipeline.detect.worker_detector import weights_path, weights_version
from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.study.adopt import adopt
from patrolscope.pipeline.study.store import Study, open_study


def adopt_sources(root: str, sources: Sequence[str]) -> list[str]:
    """Write the image sources of a command to study.yaml; without any, keep those that it names.

    Returns
    -------
    list of str
        A line that reports the change, or none.

    Raises
    ------
    SettingsError
        If there is no study and no source to create one for.
    SourceError
        If a source cannot be listed, or the study names none. Nothing is written then.
    """
    changed = adopt(root, {"images": {"sources": tuple(sources) or None}}, may_make=bool(sources), check=_check_sources)
    _check_sources(open_study(root))
    return changed


def _check_sources(study: Study) -> None:
    if not study.settings.images.sources:
        raise no_images(study)
    plan_prefixes(study)
    for source in study.settings.images.sources:
        ImageStore.of(study, source)


def adopt_detector(
    root: str,
    images: dict[str, Any],
    *,
    classes: Sequence[int | str] | None,
    police_class: int | str | None,
    threshold: float | None = None,
) -> list[str]:
    """Write the options of a command to study.yaml, and select the detector's results for the estimates.

    New weights bring the threshold that was best on the validation split of their training.

    Parameters
    ----------
    root : str
        Path or URL of the study.
    images : dict
        Settings of the section `images`. None keeps the current value.
    classes : sequence of int or str, optional
        Names or numbers. `all` selects every class.
    police_class : int or str, optional
        Name or number of the class that gives the score.
    threshold : float, optional
        Images that score higher are positive. None uses that of the weights' training, if there is one.

    Returns
    -------
    list of str
        Lines that report changes.

    Raises
    ------
    SettingsError
        If there is no study or a value is impossible.
    StageNotRunError
        If neither the command nor study.yaml names weights. Nothing is written then.
    WeightsError
        If the weights do not exist. Nothing is written then.
    """
    before = open_study(root).settings
    all_classes = classes is not None and "all" in classes
    source = "detect" if before.sources.detections or before.detection.source is not None else None
    weights = images.get("weights")
    trained = None
    if threshold is None and weights is not None and weights != before.images.weights:
        trained = trained_threshold(weights, before.detection.police_class if police_class is None else police_class)
    changes = {
        "images": {**images, "classes": () if all_classes else classes},
        "detection": {"police_class": police_class, "source": source},
        "estimate": {"threshold": trained if threshold is None else threshold},
    }
    changed = adopt(root, changes, check=_check_inputs)
    _check_inputs(open_study(root))
    if trained is not None:
        changed.append(
            f"estimate.threshold comes from the training of the weights ({RESULT_FILE}); --threshold overrides it"
        )
    return changed


def _check_inputs(study: Study) -> None:
    weights_version(weights_path(study))
    if not study.settings.images.sources:
        raise no_images(study)


def list_again(study: Study) -> None:
    """Discard a finished index, so that the next run lists all images. An interrupted listing is kept and resumed."""
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


def index_summary(study: Study) -> list[str]:
    """Summarize the image index in lines for the terminal.

    Raises
    ------
    SourceError
        If the index has no images.
    """
    shards = list(indexed_shards(study))
    if not shards:
        raise no_images(study)
    images, size = sum(images for _, images, _, _ in shards), sum(size for _, _, size, _ in shards)
    return [f"{images:,} images, {size / 1e9:,.2f} GB, in {len(shards):,} shards for the detector"]


def detection_summary(study: Study) -> list[str]:
    """Summarize the detections of the study in lines for the terminal."""
    records = list(study.records(stage_name(study)).values())
    statuses = Counter[str]()
    for record in records:
        statuses.update(record.facts["statuses"])
    images = sum(record.rows_out for record in records)
    without_box = sum(line["notes"].get(WITHOUT_BOX, 0) for record in records for line in record.ledger)
    with_box = statuses["scored"] - without_box
    worker_s = sum(record.seconds for record in records)
    rate = f", {images / worker_s:,.1f} images per second and worker" if worker_s else ""
    return [
        f"{images:,} images{rate}: " + ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items())),
        f"{with_box:,} with a box ({with_box / max(statuses['scored'], 1):.2%} of those scored)",
    ]

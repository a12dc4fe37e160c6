"""Power of a study, from its finished counts."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from patrolscope.analysis.estimators.power import Sample, Target, power_table
from patrolscope.analysis.estimators.rates import area_means
from patrolscope.analysis.estimators.unit_counts import UNITS_FOR_AN_INTERVAL
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.counts import COUNTS, UNIT_COUNTS, load_unit_counts
from patrolscope.analysis.stages.designs import composite_of
from patrolscope.analysis.stages.replicates import bootstrap_inputs, refuse_empty
from patrolscope.pipeline.engine.freshness import outdated
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.study.store import Study

POWER_FOLDER = "power"
_WHOLE = ("positives", "positives_compared", "images", "rides", "labels_random", "labels_planned")


@dataclass(frozen=True)
class StudyPower:
    """Power of a study.

    Attributes
    ----------
    table : DataFrame
        From `power_table`.
    target : Target
    images : int
        Analyzed images.
    rides : int or None
        None if the settings take images as independent.
    floor : float
        False omission rate relative to the city average, the lowest relative rate.
    validation_images : int
    """

    table: pd.DataFrame
    target: Target
    images: int
    rides: int | None
    floor: float
    validation_images: int

    @property
    def csv(self) -> bytes:
        """The table as CSV, with counts as whole numbers."""
        return self.table.astype(dict.fromkeys(_WHOLE, "Int64")).to_csv(index=False).encode()


def power_of(study: Study, target: Target) -> StudyPower:
    """Compute the power of a study from its counts, with rides if its settings resample them.

    Raises
    ------
    StageNotRunError
        If the counts are missing, unfinished, or of other settings.
    SourceError
        If no image is positive, or the rides are too few.
    """
    load_calibration(study)
    if missing := outdated(study, [COUNTS, UNIT_COUNTS]):
        raise StageNotRunError(
            f"the images of {study.root} are not counted with its present settings and files ({', '.join(missing)}); "
            f"expected finished counts; run `patrolscope run --study {study.root}`"
        )
    inputs, *_, counts = bootstrap_inputs(study)
    refuse_empty(study, inputs, counts)
    calibration, _, _ = load_calibration(study)
    if not inputs.inside[:, 1].any():
        raise SourceError(
            f"no image of {study.root} in an area is positive, so the variance of its rates is unknown; expected at "
            "least one score above estimate.threshold; check the detections and the threshold"
        )
    by_ride = "ride" in study.settings.estimate.bootstrap
    rides = load_unit_counts(study, "ride") if by_ride else None
    if rides is not None and rides.number < UNITS_FOR_AN_INTERVAL:
        raise SourceError(
            f"rides with analyzed images in {study.root}: {rides.number}; expected at least {UNITS_FOR_AN_INTERVAL}, "
            "as images of one ride are not independent; add images of further rides"
        )
    composite = composite_of(study, "ride" if by_ride else "image")
    images = int(counts["images"].sum())
    table = power_table(
        inputs.panels,
        composite.design,
        composite.shares(inputs.inside),
        calibration,
        Sample(images, rides),
        target,
    )
    rates = area_means(inputs.inside[:, 1], inputs.inside.sum(axis=1), calibration.ppv, calibration.false_omission_rate)
    average = float(inputs.panels[0].means(rates[:, None])[0, 0])
    return StudyPower(
        table,
        target,
        images,
        None if rides is None else rides.number,
        calibration.false_omission_rate / average,
        calibration.positive + calibration.negative,
    )

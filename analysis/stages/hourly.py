"""Images, counted by area, day, hour, light and score: what every variant of the sensitivity analysis is made from.

One pass over the images serves all variants. Whole counts, and sums of whole multiples of a power of two, add up to the
same whatever files the images lie in.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.stages.calibrate import (
    Adjusted,
    Isotonic,
    TwoClass,
    isotonic,
    read_labeled_sets,
    station_adjusted,
    two_class,
)
from patrolscope.analysis.stages.cells import annotated_shards, whole_steps
from patrolscope.analysis.stages.evaluate import ThresholdRule, choose_threshold
from patrolscope.pipeline.contract.tables import HOURLY
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.geography.layers import load_stations
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study

HOURS = 24
CALIBRATIONS_FILE = "staging/recalibrate/calibrations.json"
_KEY = ["area", "day", "hour", "nighttime", "step"]
_COLUMNS = ["area", "conf", "processed", "split", "captured_local", "nighttime", "station_distance_ft"]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


# Calibrations.


@dataclass(frozen=True)
class Threshold:
    """A threshold that is tried, and its calibration or why there is none."""

    name: str  # "given", "best-f1" or the number
    value: float | None
    calibration: TwoClass | None
    reason: str = ""  # of having no calibration


@dataclass(frozen=True)
class Calibrations:
    """Every calibration that the variants need; the first threshold is the study's own."""

    thresholds: tuple[Threshold, ...]
    logistic: Adjusted | None
    isotonic: Isotonic

    @property
    def steps(self) -> list[float]:
        """Thresholds with a calibration, rising, none twice: an image's step is how many of them it is above."""
        return sorted({one.calibration.threshold for one in self.thresholds if one.calibration is not None})

    def to_json(self) -> str:
        """Text of the file."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Calibrations:
        """Calibrations from their file's text."""
        content = json.loads(text)
        thresholds = [
            Threshold(**{**one, "calibration": None if one["calibration"] is None else TwoClass(**one["calibration"])})
            for one in content["thresholds"]
        ]
        logistic = None if content["logistic"] is None else Adjusted(**content["logistic"])
        steps = {name: tuple(values) for name, values in content["isotonic"].items()}
        return cls(tuple(thresholds), logistic, Isotonic(**steps))


def recalibrate(validation: pd.DataFrame, station_ft: npt.ArrayLike, settings: Settings) -> Calibrations:
    """Calibrations on the validation set, at every threshold and by every method.

    Parameters
    ----------
    validation : `LABELED`
    station_ft : (images,) distance to the nearest station, feet

    Raises
    ------
    SourceError : the study's own threshold can not be calibrated
    """
    truth, score = validation["ground_truth"].to_numpy(), validation["score"].to_numpy()
    given = settings.estimate.threshold
    thresholds = [Threshold("given", given, two_class(truth, score, given))]
    tried: list[tuple[str, float]] = [(f"{value:g}", value) for value in settings.sensitivity.thresholds]
    if settings.sensitivity.best_f1:
        # The given threshold has images on both sides, so that there are scores to choose from.
        tried.append(("best-f1", choose_threshold(ThresholdRule("best-f1"), truth, score, given=given)))
    for name, value in tried:
        thresholds.append(_calibrated(name, value, truth, score, taken={one.value: one.name for one in thresholds}))
    return Calibrations(tuple(thresholds), station_adjusted(truth, score, station_ft), isotonic(truth, score))


def _calibrated(
    name: str, value: float, truth: npt.NDArray[Any], score: Floats, taken: dict[float | None, str]
) -> Threshold:
    if value in taken:
        return Threshold(name, value, None, f"{value:g} is the threshold {taken[value]!r}")
    above = int((np.nan_to_num(score) > value).sum())
    if above in (0, len(score)):
        side = "above" if above else "at or below"
        return Threshold(
            name, value, None, f"all {len(score)} validation images are {side} {value:g}: one class can not be known"
        )
    return Threshold(name, value, two_class(truth, score, value))


def plan_recalibrate(study: Study) -> list[Shard]:
    """One shard, made from what the study's own calibration was made from."""
    rules = study.settings.sensitivity
    work = {"thresholds": list(rules.thresholds), "best_f1": rules.best_f1}
    return [Shard("calibrations", work, made_from=study.record("calibrate").fingerprint)]


def process_recalibrate(study: Study, _shard: Shard) -> Output:
    """Write the calibrations of all variants."""
    validation = read_labeled_sets(study)["validation"]
    places_ft = project_ft(validation["lng"], validation["lat"], study.settings.city.crs)
    _, station_ft = load_stations(study).nearest(*places_ft)
    made = recalibrate(validation, station_ft, study.settings)
    file = study.write_bytes(made.to_json().encode(), CALIBRATIONS_FILE)
    return Output((file,), len(validation), len(validation))


@lru_cache(maxsize=4)
def load_calibrations(study: Study, _made_from: str) -> Calibrations:
    """Calibrations of the study, once a worker process; `_made_from` is the fingerprint of their record."""
    return Calibrations.from_json(study.read_bytes(CALIBRATIONS_FILE).decode())


# Counts of one file.


def count_hourly(images: pd.DataFrame, calibrations: Calibrations) -> pd.DataFrame:
    """Counts of images: `HOURLY`; a missing conf counts as 0.

    Parameters
    ----------
    images : conf, captured_local, nighttime, area and station_distance_ft of images that were processed
    """
    conf = np.nan_to_num(images["conf"].to_numpy(dtype=np.float64))
    # The parts of the key as numbers in one: grouping by it takes a third of the time of grouping by the columns.
    area, areas = pd.factorize(images["area"])  # -1: outside
    day, days = pd.factorize(images["captured_local"].dt.normalize())
    steps = calibrations.steps
    code = (area.astype(np.int64) + 1) * len(days) + day
    code = code * HOURS + images["captured_local"].dt.hour.to_numpy()
    code = code * 2 + images["nighttime"].to_numpy(dtype=np.int64)
    code = code * (len(steps) + 1) + np.searchsorted(steps, conf, side="left")
    codes, cell = np.unique(code, return_inverse=True)
    logistic = np.full(len(images), np.nan)
    if calibrations.logistic is not None:
        logistic = calibrations.logistic.probability(conf, images["station_distance_ft"].to_numpy())
    codes, step = np.divmod(codes, len(steps) + 1)
    codes, night = np.divmod(codes, 2)
    codes, hour = np.divmod(codes, HOURS)
    area, day = np.divmod(codes, max(1, len(days)))
    return HOURLY.conform(
        pd.DataFrame(
            {
                "area": areas.array.take(area - 1, allow_fill=True),
                "day": days.take(day),
                "hour": hour,
                "nighttime": night == 1,
                "step": step,
                "images": np.bincount(cell, minlength=len(codes)),
                "logistic_sum": np.bincount(cell, whole_steps(logistic), minlength=len(codes)),
                "isotonic_sum": np.bincount(cell, whole_steps(calibrations.isotonic.probability(conf)), len(codes)),
            }
        )
    )


def plan_hourly(study: Study) -> list[Shard]:
    """One shard a file of annotated/.

    Raises
    ------
    StageNotRunError : the study has no annotated images
    """
    study.files("annotated")
    work = {
        "split": study.settings.estimate.split,
        "calibrations": study.record("recalibrate").fingerprint,
        "table": HOURLY.fingerprint(),
    }
    return annotated_shards(study, work)


def process_hourly(study: Study, shard: Shard) -> Output:
    """Count one file of annotated images; those before the first day stay, for the variant that takes them in."""
    images = study.read(shard.work["file"], columns=_COLUMNS)
    ledger = Ledger("images counted by area, hour and score", len(images))
    images = ledger.keep(images, images["split"] == shard.work["split"], why=f"not of split {shard.work['split']}")
    images = ledger.keep(images, images["processed"], why="not processed by the detector")
    counted = count_hourly(images, load_calibrations(study, shard.work["calibrations"]))
    file = study.write(HOURLY, counted, shard.work["file"].replace("annotated/", "staging/hourly/", 1))
    return Output((file,), ledger.rows_in, len(images), (ledger.close(len(images)),))


RECALIBRATE = Stage(
    "recalibrate", unit="files", folders=("staging/recalibrate",), plan=plan_recalibrate, process=process_recalibrate
)
HOURLY_STAGE = Stage("hourly", unit="rows", folders=("staging/hourly",), plan=plan_hourly, process=process_hourly)


# Counts of the whole study.


@dataclass(frozen=True)
class HourlyCounts:
    """All counts of a study, dense by day and area: some 200 MB for 24.8 million images of 60 days.

    Attributes
    ----------
    days : local days with images, rising
    areas : codes; the last place of every axis of areas is of the images outside every area
    images : (nights, steps, days, areas) by light (day, night) and step of the score
    by_hour : (classes, days, areas, hours) images that are negative, positive at the study's threshold
    logistic_sum, isotonic_sum : (days, areas) sums of probabilities
    """

    days: pd.DatetimeIndex
    areas: pd.Index[str]
    images: npt.NDArray[np.int32]
    by_hour: npt.NDArray[np.int32]
    logistic_sum: Floats
    isotonic_sum: Floats

    @classmethod
    def collect(
        cls, parts: list[pd.DataFrame] | Any, areas: pd.Series[str], days: pd.DatetimeIndex, steps: int, given_step: int
    ) -> HourlyCounts:
        """Add up parts, one at a time.

        Parameters
        ----------
        parts : frames of `HOURLY`, in any order
        days : every day of the parts
        steps : number of thresholds
        given_step : an image of a step above it is positive at the study's threshold
        """
        index = pd.Index(areas)
        shape = (len(days), len(index) + 1)
        made = cls(
            days,
            index,
            np.zeros((2, steps + 1, *shape), np.int32),
            np.zeros((2, *shape, HOURS), np.int32),
            np.zeros(shape),
            np.zeros(shape),
        )
        for part in parts:
            area = index.get_indexer(pd.Index(part["area"]))  # outside: -1, the last place
            day = days.get_indexer(pd.Index(part["day"]))
            night, step = part["nighttime"].to_numpy(dtype=np.intp), part["step"].to_numpy(dtype=np.intp)
            images = part["images"].to_numpy().astype(np.int32)
            np.add.at(made.images, (night, step, day, area), images)
            np.add.at(made.by_hour, ((step > given_step).astype(np.intp), day, area, part["hour"].to_numpy()), images)
            np.add.at(made.logistic_sum, (day, area), part["logistic_sum"].to_numpy())
            np.add.at(made.isotonic_sum, (day, area), part["isotonic_sum"].to_numpy())
        return made


def load_hourly(study: Study, areas: pd.Series[str], calibrations: Calibrations) -> HourlyCounts:
    """Counts of the whole study; files are read one at a time."""
    files = [file for record in study.records("hourly").values() for file in record.files]
    days: set[pd.Timestamp] = set()
    for file in files:
        days |= set(study.read(file, columns=["day"])["day"].unique())
    steps = calibrations.steps
    given = steps.index(study.settings.estimate.threshold)
    parts = (study.read(file) for file in files)
    return HourlyCounts.collect(parts, areas, pd.DatetimeIndex(sorted(days)), len(steps), given)

"""Stage `recalibrate`: calibrations of all variants of the sensitivity analysis."""

from __future__ import annotations

from functools import lru_cache

import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.calibration import Calibrations, calibrate_variants, two_class
from patrolscope.analysis.stages.calibrate import read_labeled_sets, station_distances_ft
from patrolscope.analysis.stages.evaluate import ThresholdRule, choose_threshold
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Output, Study

CALIBRATIONS_FILE = "staging/recalibrate/calibrations.json"


def plan_recalibrate(study: Study) -> list[Shard]:
    """Plan one shard, which depends on the inputs of `calibrate` and the thresholds."""
    rules = study.settings.sensitivity
    work = {"thresholds": list(rules.thresholds), "best_f1": rules.best_f1}
    return [Shard("calibrations", work, made_from=study.record("calibrate").content)]


def process_recalibrate(study: Study, _shard: Shard) -> Output:
    """Write the calibrations of all variants of the sensitivity analysis."""
    validation = read_labeled_sets(study)["validation"]
    calibrations = recalibrate(validation, station_distances_ft(study, validation), study.settings)
    file = study.write_bytes(calibrations.to_json().encode(), CALIBRATIONS_FILE)
    return Output((file,), len(validation), len(validation))


def recalibrate(validation: pd.DataFrame, station_ft: npt.ArrayLike, settings: Settings) -> Calibrations:
    """Calibrate at every threshold and by every method of the sensitivity analysis.

    Parameters
    ----------
    validation : DataFrame
        `LABELED`.
    station_ft : array_like, shape (n,)
        Distance to the nearest police station, feet.
    settings : Settings

    Raises
    ------
    SourceError
        If the threshold of the study cannot be calibrated.
    """
    truth, score = validation["ground_truth"].to_numpy(), validation["score"].to_numpy()
    given = settings.estimate.threshold
    others = [(f"{value:g}", value) for value in settings.sensitivity.thresholds]
    if settings.sensitivity.best_f1:
        two_class(truth, score, given)  # fails if there is no threshold to choose
        others.append(("best-f1", choose_threshold(ThresholdRule("best-f1"), truth, score, given=given)))
    return calibrate_variants(truth, score, station_ft, given=given, others=others)


@lru_cache(maxsize=4)
def load_calibrations(study: Study, _made_from: str) -> Calibrations:
    """Read the calibrations of all variants once per process.

    Parameters
    ----------
    study : Study
    _made_from : str
        Fingerprint of their record, for the cache.
    """
    return Calibrations.from_json(study.read_bytes(CALIBRATIONS_FILE).decode())


RECALIBRATE = Stage(
    "recalibrate", unit="files", folders=("staging/recalibrate",), plan=plan_recalibrate, process=process_recalibrate
)

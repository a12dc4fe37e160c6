"""From the detector's confidence to a probability, learned on images that people labeled.

Section 4.2 of the paper: an image is classified positive when its confidence exceeds the threshold; its calibrated
prediction is the share of validation images of its class that do show a police vehicle.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import linprog
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from patrolscope.pipeline.contract.tables import LABELED
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.geography.layers import load_stations
from patrolscope.pipeline.study.store import Output, Study, fingerprint

CALIBRATION_FILE = "calibration/calibration.json"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TwoClass:
    """Calibration by class, with the whole counts that it rests on."""

    threshold: float
    positive: int  # validation images above the threshold
    true_positive: int  # of them, images that show a police vehicle
    negative: int
    false_negative: int

    @property
    def p_positive(self) -> float:
        """Pr(police vehicle | classified positive)."""
        return self.true_positive / self.positive

    @property
    def p_negative(self) -> float:
        """Pr(police vehicle | classified negative)."""
        return self.false_negative / self.negative

    @property
    def precision(self) -> float:
        """Share of positive images that show a police vehicle: the same as `p_positive`."""
        return self.p_positive

    @property
    def recall(self) -> float:
        """Share of images that show a police vehicle that are classified positive."""
        return self.true_positive / (self.true_positive + self.false_negative)


@dataclass(frozen=True)
class Adjusted:
    """Logistic regression of the truth on confidence and distance to the nearest station, without penalty."""

    intercept: float
    score: float  # log odds for 1 of confidence
    station_ft: float  # log odds for 1 ft of distance

    def probability(self, score: Floats, station_ft: Floats) -> Floats:
        """Pr(police vehicle); a missing score counts as 0."""
        return np.asarray(expit(self.intercept + self.score * np.nan_to_num(score) + self.station_ft * station_ft))


@dataclass(frozen=True)
class Isotonic:
    """Isotonic regression of the truth on confidence: a line through its corners, flat beyond the outer ones."""

    scores: tuple[float, ...]  # rising
    probabilities: tuple[float, ...]  # never falling

    def probability(self, score: Floats) -> Floats:
        """Pr(police vehicle); a missing score counts as 0."""
        return np.interp(np.nan_to_num(score), self.scores, self.probabilities)


def read_labeled(path: str, *, where: str) -> pd.DataFrame:
    """Labeled images: `LABELED`.

    Parameters
    ----------
    path : CSV (path or URL) with ground_truth, Model_predicted_score, lat, lng, timestamp (epoch milliseconds)
    where : the setting that names the file, for errors

    Raises
    ------
    SourceError : no such file, a column is missing, a value can not be read, a score outside 0..1
    """
    names = {column.published: column.name for column in LABELED}
    fs, name = fsspec.core.url_to_fs(path)
    if not fs.exists(name):
        raise SourceError(f"{path} does not exist; {where} of study.yaml names it as the labeled images")
    try:
        with fs.open(name, "rb") as file:
            frame = pd.read_csv(file, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} ({where}) is not a CSV file: {error}") from error
    if absent := [column for column in names if column not in frame.columns]:
        raise SourceError(f"{path} ({where}) has no column {', '.join(absent)}; it has {', '.join(frame.columns)}")
    if frame.empty:
        raise SourceError(f"{path} ({where}) has a header and no rows: expected labeled images")
    frame = frame[list(names)].rename(columns=names)
    for column in ("ground_truth", "score", "captured_at_utc", "lat", "lng"):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            unreadable = frame[column][pd.to_numeric(frame[column], errors="coerce").isna() & frame[column].notna()]
            raise SourceError(f"{path} ({where}): {column} holds {unreadable.iloc[0]!r}; expected numbers")
    frame["captured_at_utc"] = pd.to_datetime(frame["captured_at_utc"], unit="ms", utc=True).dt.as_unit("ms")
    return LABELED.conform(frame)


def read_labeled_sets(study: Study) -> dict[str, pd.DataFrame]:
    """Labeled images of the sets that study.yaml names, validation and test: `LABELED`."""
    return {
        name: read_labeled(study.resolve(path), where=f"sources.{name}")
        for name, path in _labeled_sources(study).items()
    }


def labeled_contents(study: Study) -> dict[str, str]:
    """Digest of the file of each labeled set that study.yaml names.

    Raises
    ------
    SourceError : a file does not exist
    """
    contents = {}
    for name, path in _labeled_sources(study).items():
        fs, file = fsspec.core.url_to_fs(study.resolve(path))
        if not fs.exists(file):
            raise SourceError(f"{study.resolve(path)} does not exist; sources.{name} of study.yaml names it")
        contents[name] = fingerprint(fs.cat_file(file).hex())
    return contents


def _labeled_sources(study: Study) -> dict[str, str]:
    sources = study.settings.sources
    paths = {"validation": sources.validation, "test": sources.test}
    return {name: path for name, path in paths.items() if path is not None}


def two_class(truth: npt.ArrayLike, score: npt.ArrayLike, threshold: float) -> TwoClass:
    """Calibration by class; a missing score counts as 0.

    Raises
    ------
    SourceError : no labeled image is above the threshold, or none below it, or all have the same truth
    """
    shows = np.asarray(truth) == 1
    positive = np.nan_to_num(np.asarray(score, dtype=np.float64)) > threshold
    refuse_one_class(shows, "a validation set")
    if positive.all() or not positive.any():
        side = "above" if positive.any() else "below"
        raise SourceError(
            f"all {len(shows)} labeled images are {side} the threshold {threshold}: nothing can be calibrated on "
            f"the other side; check estimate.threshold and the scores of the validation set"
        )
    return TwoClass(
        threshold=threshold,
        positive=int(positive.sum()),
        true_positive=int((shows & positive).sum()),
        negative=int((~positive).sum()),
        false_negative=int((shows & ~positive).sum()),
    )


def refuse_one_class(shows: npt.NDArray[np.bool_], what: str) -> None:
    """Refuse labeled images that all have the same truth; `what` names them, such as "a validation set".

    Raises
    ------
    SourceError : all images show a police vehicle, or none does
    """
    if shows.all() or not shows.any():
        raise SourceError(
            f"all {len(shows)} labeled images {'show' if shows.any() else 'lack'} a police vehicle: {what} needs both "
            f"kinds"
        )


def station_adjusted(truth: npt.ArrayLike, score: npt.ArrayLike, station_ft: npt.ArrayLike) -> Adjusted | None:
    """Logistic regression without penalty; None where it has no finite solution, or none that the solver gets to."""
    columns = np.column_stack([np.nan_to_num(np.asarray(score, dtype=np.float64)), np.asarray(station_ft)])
    if not np.isfinite(columns).all():
        return None
    # Fitted on standardized columns: feet run to tens of thousands, and the solver stops early on raw ones.
    center, spread = columns.mean(axis=0), columns.std(axis=0)
    if (spread == 0).any():
        return None
    standard, shows = (columns - center) / spread, np.asarray(truth) == 1
    if _parted(standard, shows):
        return None
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(standard, shows)
        except ConvergenceWarning:
            return None
    slopes = model.coef_[0] / spread
    return Adjusted(float(model.intercept_[0] - slopes @ center), float(slopes[0]), float(slopes[1]))


def _parted(columns: Floats, shows: npt.NDArray[np.bool_]) -> bool:
    """Whether a line parts the images by truth, where images of both kinds may lie on the line itself.

    The likelihood then grows without end along the line's normal, and has a maximum nowhere (Albert and Anderson 1984).
    The solver does not tell: it stops, without a warning, at slopes that depend on its tolerance.
    """
    # How far each image lies on its own side, for coefficients within a box: all of them at least 0, and one above,
    # has a solution on the box's edge; else all coefficients are 0. 20,000 images take 0.08 s.
    sides = np.column_stack([np.ones(len(columns)), columns]) * np.where(shows, 1, -1)[:, None]
    found = linprog(-sides.sum(axis=0), A_ub=-sides, b_ub=np.zeros(len(sides)), bounds=(-1, 1))
    return bool(np.abs(found.x).max() > 0.5)


def isotonic(truth: npt.ArrayLike, score: npt.ArrayLike) -> Isotonic:
    """Isotonic regression of the truth on the score; a missing score counts as 0.

    scikit-learn's: images of one score are taken together, and between two scores the line is straight.
    """
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(np.nan_to_num(np.asarray(score, dtype=np.float64)), np.asarray(truth, dtype=np.float64))
    return Isotonic(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))


def quality(truth: npt.ArrayLike, score: npt.ArrayLike, threshold: float) -> dict[str, float]:
    """Quality of the detector on labeled images, as the paper's Table 1: a missing score counts as 0."""
    scores = np.nan_to_num(np.asarray(score, dtype=np.float64))
    positive = scores > threshold
    return {
        "images": len(scores),
        "auc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
        "precision": float(precision_score(truth, positive, zero_division=0)),
        "recall": float(recall_score(truth, positive)),
    }


# The stage.


def plan_calibrate(study: Study) -> list[Shard]:
    """One shard, made from the labeled images and the stations."""
    if study.settings.sources.validation is None:
        raise SourceError(
            "study.yaml names no validation set: put the path of a CSV file with ground_truth, Model_predicted_score, "
            "lat, lng and timestamp under sources.validation; without one no probability can be calibrated"
        )
    layers = study.record("layers")
    work = {
        "threshold": study.settings.estimate.threshold,
        "crs": study.settings.city.crs,
        "files": labeled_contents(study),
        "layers": layers.fingerprint,
    }
    return [Shard("calibration", work)]


def process_calibrate(study: Study, _shard: Shard) -> Output:
    """Write calibration.json: both calibrations and the detector's quality."""
    threshold = study.settings.estimate.threshold
    labeled = read_labeled_sets(study)
    validation = labeled["validation"]
    classes = two_class(validation["ground_truth"], validation["score"], threshold)
    places_ft = project_ft(validation["lng"], validation["lat"], study.settings.city.crs)
    _, distance_ft = load_stations(study).nearest(*places_ft)
    adjusted = station_adjusted(validation["ground_truth"], validation["score"], distance_ft)
    content: dict[str, Any] = {
        "two_class": asdict(classes),
        "adjusted": None if adjusted is None else asdict(adjusted),
        "quality": {
            name: quality(frame["ground_truth"], frame["score"], threshold)
            if frame["ground_truth"].nunique() == 2
            else None
            for name, frame in labeled.items()
        },
    }
    file = study.write_bytes(json.dumps(content, indent=1).encode(), CALIBRATION_FILE)
    return Output((file,), len(validation), len(validation))


def load_calibration(study: Study) -> tuple[TwoClass, Adjusted | None, dict[str, Any]]:
    """Both calibrations and the detector's quality by labeled set.

    Raises
    ------
    StageNotRunError : they are not there
    """
    if not study.exists(CALIBRATION_FILE):
        raise StageNotRunError(
            f"{study.root} has no {CALIBRATION_FILE} yet: run `patrolscope run --study {study.root}`"
        )
    content = json.loads(study.read_bytes(CALIBRATION_FILE))
    adjusted = content["adjusted"]
    return TwoClass(**content["two_class"]), None if adjusted is None else Adjusted(**adjusted), content["quality"]


CALIBRATE = Stage(
    "calibrate", unit="files", folders=("calibration",), plan=plan_calibrate, process=process_calibrate, version=2
)

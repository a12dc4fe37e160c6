"""Calibration: from the detector's score to the probability that an image shows a police vehicle.

Section 4.2 of the paper: an image is positive if its score exceeds the threshold. Its calibrated prediction is the
share of validation images of the same class that show a police vehicle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.special import expit

from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TwoClass:
    """Calibration by class, with the counts of validation images behind it.

    Attributes
    ----------
    threshold : float
        An image is positive if its score is above it.
    positive, negative : int
        Validation images of each class.
    true_positive, false_negative : int
        Images among them that show a police vehicle.
    """

    threshold: float
    positive: int
    true_positive: int
    negative: int
    false_negative: int

    @property
    def ppv(self) -> float:
        """Positive predictive value: Pr(police vehicle | positive)."""
        return self.true_positive / self.positive

    @property
    def false_omission_rate(self) -> float:
        """Pr(police vehicle | negative)."""
        return self.false_negative / self.negative

    @property
    def recall(self) -> float:
        """Share of images with a police vehicle that are positive."""
        return self.true_positive / (self.true_positive + self.false_negative)


@dataclass(frozen=True)
class Adjusted:
    """Station-adjusted calibration: logistic regression on score and distance to the nearest station, no penalty."""

    intercept: float
    score: float  # change of the log odds per unit of score
    station_ft: float  # change of the log odds per foot of distance

    def probability(self, score: Floats, station_ft: Floats) -> Floats:
        """Return Pr(police vehicle) of each image; a missing score counts as 0."""
        return np.asarray(expit(self.intercept + self.score * np.nan_to_num(score) + self.station_ft * station_ft))


@dataclass(frozen=True)
class Isotonic:
    """Isotonic regression on the score: linear between the knots, constant outside them."""

    scores: tuple[float, ...]  # ascending
    probabilities: tuple[float, ...]  # nondecreasing

    def probability(self, score: Floats) -> Floats:
        """Return Pr(police vehicle) of each image; a missing score counts as 0."""
        return np.interp(np.nan_to_num(score), self.scores, self.probabilities)


@dataclass(frozen=True)
class Threshold:
    """A threshold of the sensitivity analysis, with its calibration or the reason for having none."""

    name: str  # "given" (the threshold of the study), "best-f1", or the number
    value: float | None
    calibration: TwoClass | None
    reason: str = ""


@dataclass(frozen=True)
class Calibrations:
    """Calibrations of all variants of the sensitivity analysis; the first threshold is that of the study."""

    thresholds: tuple[Threshold, ...]
    logistic: Adjusted | None
    isotonic: Isotonic

    @property
    def steps(self) -> list[float]:
        """Distinct thresholds with a calibration, ascending."""
        return sorted({one.calibration.threshold for one in self.thresholds if one.calibration is not None})

    def to_json(self) -> str:
        """Return the calibrations as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Calibrations:
        """Return the calibrations that `to_json` wrote."""
        content = json.loads(text)
        thresholds = [
            Threshold(**{**one, "calibration": None if one["calibration"] is None else TwoClass(**one["calibration"])})
            for one in content["thresholds"]
        ]
        logistic = None if content["logistic"] is None else Adjusted(**content["logistic"])
        knots = {name: tuple(values) for name, values in content["isotonic"].items()}
        return cls(tuple(thresholds), logistic, Isotonic(**knots))


def two_class(truth: npt.ArrayLike, score: npt.ArrayLike, threshold: float) -> TwoClass:
    """Calibrate by class.

    Parameters
    ----------
    truth : array_like, shape (n,)
        1 if the image shows a police vehicle.
    score : array_like, shape (n,)
        0 to 1. A missing score counts as 0.
    threshold : float
        An image is positive if its score is above it.

    Raises
    ------
    SourceError
        If all labeled images have the same truth, or all are on the same side of the threshold.
    """
    shows = np.asarray(truth) == 1
    positive = _filled(score) > threshold
    refuse_one_class(shows, "a validation set")
    if positive.all() or not positive.any():
        side = "above" if positive.any() else "below"
        raise SourceError(
            f"all {len(shows)} labeled images are {side} the threshold {threshold}; calibration needs images on both "
            "sides; check estimate.threshold and the scores of the validation set"
        )
    return TwoClass(
        threshold=threshold,
        positive=int(positive.sum()),
        true_positive=int((shows & positive).sum()),
        negative=int((~positive).sum()),
        false_negative=int((shows & ~positive).sum()),
    )


def refuse_one_class(shows: Bools, what: str) -> None:
    """Check that some labeled images show a police vehicle and others do not.

    Parameters
    ----------
    shows : ndarray of bool, shape (n,)
        Whether the image shows a police vehicle.
    what : str
        Name of the labeled images in the message, such as "a validation set".

    Raises
    ------
    SourceError
        If all images have the same truth.
    """
    if shows.all() or not shows.any():
        raise SourceError(
            f"all {len(shows)} labeled images {'show' if shows.any() else 'lack'} a police vehicle; {what} needs "
            "images of both kinds; check the column ground_truth"
        )


def station_adjusted(truth: npt.ArrayLike, score: npt.ArrayLike, station_ft: npt.ArrayLike) -> Adjusted | None:
    """Fit the logistic regression of the truth on score and distance, with intercept and without penalty.

    Parameters
    ----------
    truth : array_like, shape (n,)
        1 if the image shows a police vehicle.
    score : array_like, shape (n,)
        0 to 1. A missing score counts as 0.
    station_ft : array_like, shape (n,)
        Distance to the nearest police station, feet.

    Returns
    -------
    Adjusted or None
        None if a distance is missing, a column is constant, the maximum likelihood is not finite, or the solver does
        not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    columns = np.column_stack([_filled(score), np.asarray(station_ft)])
    if not np.isfinite(columns).all():
        return None
    # Standardized columns: with distances of tens of thousands of feet, the solver stops early.
    center, spread = columns.mean(axis=0), columns.std(axis=0)
    if (spread == 0).any():
        return None
    standard, shows = (columns - center) / spread, np.asarray(truth) == 1
    if _is_separated(standard, shows):
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


def _is_separated(columns: Floats, shows: Bools) -> bool:
    """Return whether a hyperplane separates the images by truth; images of both kinds may lie on it.

    The likelihood then has no maximum at finite coefficients [1]_. The solver would stop, without a warning, at slopes
    that depend on its tolerance.

    References
    ----------
    .. [1] A. Albert and J. A. Anderson, "On the existence of maximum likelihood estimates in logistic regression
       models", Biometrika 71 (1984), 1-10.
    """
    # Linear program over coefficients in [-1, 1]: every signed distance must be at least 0, their sum is maximized. The
    # solution is 0 unless the images can be separated. 20,000 images take 0.08 s.
    sides = np.column_stack([np.ones(len(columns)), columns]) * np.where(shows, 1, -1)[:, None]
    solution = linprog(-sides.sum(axis=0), A_ub=-sides, b_ub=np.zeros(len(sides)), bounds=(-1, 1))
    return bool(np.abs(solution.x).max() > 0.5)


def isotonic(truth: npt.ArrayLike, score: npt.ArrayLike) -> Isotonic:
    """Fit the isotonic regression of the truth on the score; a missing score counts as 0."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(_filled(score), np.asarray(truth, dtype=np.float64))
    return Isotonic(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))


def quality(truth: npt.ArrayLike, score: npt.ArrayLike, threshold: float) -> dict[str, float]:
    """Compute the metrics of the paper's Table 1.

    Parameters
    ----------
    truth : array_like, shape (n,)
        1 if the image shows a police vehicle.
    score : array_like, shape (n,)
        0 to 1. A missing score counts as 0.
    threshold : float
        An image is positive if its score is above it.
    """
    from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

    scores = _filled(score)
    positive = scores > threshold
    return {
        "images": len(scores),
        "auc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
        "precision": float(precision_score(truth, positive, zero_division=0)),
        "recall": float(recall_score(truth, positive)),
    }


def calibrate_variants(
    truth: npt.ArrayLike,
    score: npt.ArrayLike,
    station_ft: npt.ArrayLike,
    *,
    given: float,
    others: Sequence[tuple[str, float]],
) -> Calibrations:
    """Calibrate at every threshold and by every method of the sensitivity analysis.

    Parameters
    ----------
    truth : array_like, shape (n,)
        1 if the image shows a police vehicle.
    score : array_like, shape (n,)
        0 to 1. A missing score counts as 0.
    station_ft : array_like, shape (n,)
        Distance to the nearest police station, feet.
    given : float
        Threshold of the study.
    others : sequence of (str, float)
        Name and value of further thresholds.

    Raises
    ------
    SourceError
        If the threshold of the study cannot be calibrated.
    """
    thresholds = [Threshold("given", given, two_class(truth, score, given))]
    scores = _filled(score)
    for name, value in others:
        earlier = next((one.name for one in thresholds if one.value == value), None)
        above = int((scores > value).sum())
        reason = ""
        if earlier is not None:
            reason = f"{value:g} is the threshold {earlier!r}"
        elif above in (0, len(scores)):
            side = "above" if above else "at or below"
            reason = f"all {len(scores)} validation images are {side} {value:g}: one class cannot be calibrated"
        thresholds.append(Threshold(name, value, None if reason else two_class(truth, score, value), reason))
    return Calibrations(tuple(thresholds), station_adjusted(truth, score, station_ft), isotonic(truth, score))


def _filled(score: npt.ArrayLike) -> Floats:
    """Return scores with 0 in place of missing values."""
    return np.nan_to_num(np.asarray(score, dtype=np.float64))

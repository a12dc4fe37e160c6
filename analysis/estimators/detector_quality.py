"""Detector metrics on labeled images: threshold, precision, recall, AUC, curves, and calibration bins.

Every metric depends on an image only through its score and its ground truth. Images are therefore counted by both, and
a bootstrap replicate of n images is one multinomial draw of n over these counts. This is exact, and one array operation
evaluates a whole block of replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.subgroups import Split
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.seeds import stream

QUANTITIES = ("auc", "average_precision", "precision", "recall", "f1")
ALL_IMAGES = "All images"  # name of the subgroup that holds the whole set
CURVE_POINTS = 500
CALIBRATION_BINS = 10
_BLOCK_COUNTS = 2**21  # counts per block of replicates; about 100 MB with intermediate results

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


# Choice of threshold.


@dataclass(frozen=True)
class ThresholdRule:
    """Rule that determines the threshold."""

    kind: Literal["study", "number", "best-f1", "precision"]
    value: float | None = None  # the threshold, or the required precision

    @classmethod
    def parse(cls, text: str) -> ThresholdRule:
        """Parse a rule as the command line spells it: study, best-f1, precision=0.9, or a number.

        Raises
        ------
        SettingsError
            If `text` is none of these, or its number is not between 0 and 1.
        """
        if text in ("study", "best-f1"):
            return cls("study" if text == "study" else "best-f1")
        kind: Literal["number", "precision"] = "precision" if text.startswith("precision=") else "number"
        try:
            value = float(text.removeprefix("precision="))
        except ValueError:
            value = np.nan
        if not 0 <= value <= 1:
            raise SettingsError(
                f"--threshold {text}: expected study (estimate.threshold of study.yaml), best-f1, precision=0.9 or "
                f"another share, or a threshold between 0 and 1"
            )
        return cls(kind, value)

    @property
    def text(self) -> str:
        """Spelling of the rule on the command line."""
        return {"number": f"{self.value}", "precision": f"precision={self.value}"}.get(self.kind, self.kind)


def choose_threshold(rule: ThresholdRule, truth: npt.ArrayLike, score: npt.ArrayLike, *, given: float) -> float:
    """Return the threshold of a rule; images with a higher score are positive.

    A threshold that the rule searches for is one of the scores, below the highest. Ties go to the higher threshold. For
    a required precision, the rule maximizes recall among the thresholds that reach it.

    Parameters
    ----------
    rule : ThresholdRule
        Rule to apply.
    truth : array_like of int, shape (n_images,)
        1 where the image shows a police vehicle, else 0. Both must occur.
    score : array_like of float, shape (n_images,)
        Detector score, 0 to 1. NaN (no box) counts as 0.
    given : float
        Threshold of the study, for the rule ``study``.

    Raises
    ------
    SourceError
        If all scores are equal, or no threshold reaches the required precision.
    """
    from sklearn.metrics import precision_recall_curve

    if rule.kind == "study":
        return given
    if rule.kind == "number":
        return float(rule.value or 0.0)
    precision, recall, scores = precision_recall_curve(truth, _filled(score))
    if len(scores) < 2:
        raise SourceError(
            f"all labeled images have the score {scores[0]}; expected at least two different scores; give --threshold "
            "a number"
        )
    # scikit-learn counts scores equal to its threshold as positive: its next threshold is "above" this one.
    thresholds, precision, recall = scores[:-1], precision[1:-1], recall[1:-1]
    if rule.kind == "best-f1":
        total = precision + recall
        merit = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    else:
        merit = np.where(precision >= rule.value, recall, -1.0)
        if (merit <= 0).all():
            raise SourceError(
                f"no threshold has a precision of {rule.value}; the highest is {precision.max():.3f}, at "
                f"{thresholds[precision.argmax()]}; lower --threshold precision={rule.value}"
            )
    return float(thresholds[len(merit) - 1 - merit[::-1].argmax()])


def _filled(score: npt.ArrayLike) -> Floats:
    """Return scores with 0 for missing ones (no box)."""
    return np.nan_to_num(np.asarray(score, dtype=np.float64))


# Metrics and their bootstrap.


@dataclass(frozen=True)
class ScoreCounts:
    """Labeled images counted by score and ground truth.

    Attributes
    ----------
    scores : ndarray of float64, shape (n_scores,)
        Distinct scores in ascending order.
    counts : ndarray of int64, shape (2, n_scores)
        Images without (row 0) and with (row 1) a police vehicle.
    """

    scores: Floats
    counts: Counts

    @classmethod
    def of(cls, truth: npt.ArrayLike, score: npt.ArrayLike) -> ScoreCounts:
        """Count labeled images; a missing score counts as 0."""
        scores, position = np.unique(_filled(score), return_inverse=True)
        shows = np.asarray(truth) == 1
        counts = np.stack([np.bincount(position[shows == kind], minlength=len(scores)) for kind in (False, True)])
        return cls(scores, counts.astype(np.int64))

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    @property
    def labeled_positives(self) -> int:
        """Number of images that show a police vehicle."""
        return int(self.counts[1].sum())

    def replicates(self, numbers: range, *, seed: int, name: str) -> Counts:
        """Draw bootstrap replicates.

        Parameters
        ----------
        numbers : range
            Numbers of the replicates. Each number has a random stream of its own.
        seed : int
            Seed of the study.
        name : str
            Name of the resampled set, part of the stream.

        Returns
        -------
        ndarray of int64, shape (n_replicates, 2, n_scores)
            Counts per replicate.
        """
        filled = np.flatnonzero(self.counts)
        drawn = np.zeros((len(numbers), self.counts.size), dtype=np.int64)
        if self.images:
            shares = self.counts.ravel()[filled] / self.images
            for row, number in enumerate(numbers):
                drawn[row, filled] = stream(seed, f"evaluate {name}", number).multinomial(self.images, shares)
        return drawn.reshape(len(numbers), *self.counts.shape)


def measure(counts: Counts, scores: Floats, threshold: float) -> Floats:
    """Compute the metrics `QUANTITIES` from counts by score and ground truth.

    Parameters
    ----------
    counts : ndarray of int64, shape (..., 2, n_scores)
        Images without and with a police vehicle, per score.
    scores : ndarray of float64, shape (n_scores,)
        Scores in ascending order.
    threshold : float
        Images with a higher score are positive.

    Returns
    -------
    ndarray of float64, shape (..., n_quantities)
        NaN where a metric is undefined. AUC and average precision need images of both classes, recall and F1 a labeled
        positive, and precision an image above the threshold.

    Notes
    -----
    Definitions follow scikit-learn (`roc_auc_score`, `average_precision_score`). Tied scores count half in the AUC.
    Average precision is the sum of precision over steps of recall, without interpolation.
    """
    absent, shows = counts[..., 0, :], counts[..., 1, :]
    negatives, positives = absent.sum(axis=-1), shows.sum(axis=-1)
    below = absent.cumsum(axis=-1)
    hits = shows[..., ::-1].cumsum(axis=-1)[..., ::-1]  # labeled positives with at least this score
    taken = hits + negatives[..., None] - below + absent
    above = scores > threshold
    true_positive, false_positive = shows[..., above].sum(axis=-1), absent[..., above].sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # All terms are multiples of 1/2, so the sum is exact.
        auc = (shows * (below - absent / 2)).sum(axis=-1) / (positives * negatives)
        average_precision = (shows * np.nan_to_num(hits / taken)).sum(axis=-1) / positives
        precision = true_positive / (true_positive + false_positive)
        recall = true_positive / positives
        f1 = np.where(positives > 0, 2 * true_positive / (positives + true_positive + false_positive), np.nan)
    average_precision = np.where(negatives > 0, average_precision, np.nan)
    return np.stack([auc, average_precision, precision, recall, f1], axis=-1)


def metrics_table(
    counts: ScoreCounts, threshold: float, *, name: str, replicates: int, seed: int, interval_percent: float
) -> pd.DataFrame:
    """Compute every metric with its percentile interval, one row per metric.

    Parameters
    ----------
    counts : ScoreCounts
        Labeled images.
    threshold : float
        Images with a higher score are positive.
    name : str
        Name of the set, part of the random stream.
    replicates : int
        Number of bootstrap replicates.
    seed : int
        Seed of the study.
    interval_percent : float
        Central share of the replicates that an interval holds, in percent.

    Returns
    -------
    DataFrame
        quantity, estimate, lower, upper, images, labeled_positives, replicates (those in which the metric is defined;
        the interval uses them), missing (the reason for a missing estimate, else empty).
    """
    estimate = measure(counts.counts, counts.scores, threshold)
    block = max(1, _BLOCK_COUNTS // max(1, counts.counts.size))
    resampled = np.concatenate(
        [
            measure(
                counts.replicates(range(start, min(start + block, replicates)), seed=seed, name=name),
                counts.scores,
                threshold,
            )
            for start in range(0, replicates, block)
        ]
    )
    resampled[:, np.isnan(estimate)] = np.nan
    lower, upper = percentile_interval(resampled, interval_percent)
    return pd.DataFrame(
        {
            "quantity": QUANTITIES,
            "estimate": estimate,
            "lower": lower,
            "upper": upper,
            "images": counts.images,
            "labeled_positives": counts.labeled_positives,
            "replicates": (~np.isnan(resampled)).sum(axis=0),
            "missing": [
                _why_missing(quantity, counts) if np.isnan(value) else ""
                for quantity, value in zip(QUANTITIES, estimate, strict=True)
            ],
        }
    )


def _why_missing(quantity: str, counts: ScoreCounts) -> str:
    if counts.images == 0:
        return "no image"
    if quantity == "precision":
        return "no image is above the threshold"
    return f"{'no' if counts.labeled_positives == 0 else 'every'} image shows a police vehicle"


def quality_table(
    images: pd.DataFrame, splits: list[Split], threshold: float, *, name: str, **bootstrap: Any
) -> pd.DataFrame:
    """Compute the metrics of a labeled set and of both sides of every split.

    Parameters
    ----------
    images : DataFrame, n_images rows
        Columns `ground_truth` (0 or 1) and `score` (0 to 1, NaN without a box).
    splits : list of Split
        Subgroups.
    threshold : float
        Images with a higher score are positive.
    name : str
        Name of the set.
    **bootstrap
        `replicates`, `seed`, and `interval_percent` of `metrics_table`.

    Returns
    -------
    DataFrame
        set, subgroup, side (all, true, false), and the columns of `metrics_table`.
    """
    truth, score = images["ground_truth"].to_numpy(), images["score"].to_numpy()
    parts = [(ALL_IMAGES, "all", np.ones(len(images), dtype=bool))]
    parts += [(split.name, side, split.side == code) for split in splits for side, code in (("true", 1), ("false", 0))]
    tables = []
    for subgroup, side, chosen in parts:
        counts = ScoreCounts.of(truth[chosen], score[chosen])
        table = metrics_table(counts, threshold, name=f"{name} {subgroup} {side}", **bootstrap)
        tables.append(table.assign(set=name, subgroup=subgroup, side=side))
    columns = ["set", "subgroup", "side", "quantity", "estimate", "lower", "upper", "images", "labeled_positives"]
    return pd.concat(tables, ignore_index=True)[[*columns, "replicates", "missing"]]


def quality_at(counts: ScoreCounts, threshold: float, *, interval_percent: float) -> pd.DataFrame:
    """Compute precision and recall at a threshold with Wilson intervals, which need no bootstrap.

    Parameters
    ----------
    counts : ScoreCounts
        Labeled images.
    threshold : float
        Images with a higher score are positive.
    interval_percent : float
        Confidence level in percent.

    Returns
    -------
    DataFrame
        quantity, hits, of, estimate, lower, upper; the last three are NaN where `of` is 0.
    """
    above = counts.scores > threshold
    hits = int(counts.counts[1, above].sum())
    rows = []
    for quantity, of in (("precision", int(counts.counts[:, above].sum())), ("recall", counts.labeled_positives)):
        estimate, lower, upper = np.nan, np.nan, np.nan
        if of:
            interval = binomtest(hits, of).proportion_ci(interval_percent / 100, method="wilson")
            estimate, lower, upper = hits / of, interval.low, interval.high
        rows.append((quantity, hits, of, estimate, lower, upper))
    return pd.DataFrame(rows, columns=["quantity", "hits", "of", "estimate", "lower", "upper"])


# Curves and calibration.


def curves(truth: npt.ArrayLike, score: npt.ArrayLike, points: int = CURVE_POINTS) -> pd.DataFrame:
    """Compute the ROC curve and the precision-recall curve.

    Parameters
    ----------
    truth : array_like of int, shape (n_images,)
        1 where the image shows a police vehicle, else 0.
    score : array_like of float, shape (n_images,)
        Detector score, 0 to 1. NaN (no box) counts as 0.
    points : int, default 500
        Maximum number of points per curve.

    Returns
    -------
    DataFrame
        curve (`roc` or `precision_recall`), from_score, x, y. x and y are false positive rate and recall, or recall and
        precision, when images with a score of at least `from_score` are positive. `from_score` is NaN at the end of a
        curve at which no image is positive.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    scores = _filled(score)
    false_positive_rate, recall_roc, from_score = roc_curve(truth, scores)
    precision, recall, cut = precision_recall_curve(truth, scores)
    whole = {
        "roc": (np.where(np.isinf(from_score), np.nan, from_score), false_positive_rate, recall_roc),
        "precision_recall": (np.append(cut, np.nan), recall, precision),
    }
    frames = []
    for curve, (at, x, y) in whole.items():
        kept = _thinned(x, y, points)
        frames.append(pd.DataFrame({"curve": curve, "from_score": at[kept], "x": x[kept], "y": y[kept]}))
    return pd.concat(frames, ignore_index=True)


def _thinned(x: Floats, y: Floats, points: int) -> npt.NDArray[np.intp]:
    """Return positions of at most `points` points, evenly spaced along the curve, with both ends."""
    if len(x) <= points:
        return np.arange(len(x))
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    kept = np.searchsorted(length, np.linspace(0, length[-1], points - 1))
    return np.unique(np.append(kept, len(x) - 1))


def calibration_bins(
    truth: npt.ArrayLike, score: npt.ArrayLike, *, interval_percent: float, bins: int = CALIBRATION_BINS
) -> pd.DataFrame:
    """Compute the share of labeled positives per score bin with Wilson intervals.

    Images without a box (score 0) form bin 0: nearly all images are there, and would fill every quantile. The others
    are divided into `bins` bins of equal count; images with equal scores stay together.

    Parameters
    ----------
    truth : array_like of int, shape (n_images,)
        1 where the image shows a police vehicle, else 0.
    score : array_like of float, shape (n_images,)
        Detector score, 0 to 1. NaN (no box) counts as 0.
    interval_percent : float
        Confidence level in percent.
    bins : int, default 10
        Number of bins of images with a box.

    Returns
    -------
    DataFrame
        bin, score_from, score_to, mean_score, images, labeled_positives, share, lower, upper; one row per nonempty bin.
    """
    frame = pd.DataFrame({"score": _filled(score), "shows": np.asarray(truth) == 1})
    scored = frame.loc[frame["score"] > 0, "score"]
    frame["bin"] = 0
    before = scored.rank(method="min") - 1  # images with a lower score; equal for equal scores
    frame.loc[scored.index, "bin"] = 1 + (before * bins // max(1, len(scored))).astype("int64")
    grouped = frame.groupby("bin")
    table = pd.DataFrame(
        {
            "score_from": grouped["score"].min(),
            "score_to": grouped["score"].max(),
            "mean_score": grouped["score"].mean(),
            "images": grouped.size(),
            "labeled_positives": grouped["shows"].sum(),
        }
    ).reset_index()
    table["share"] = table["labeled_positives"] / table["images"]
    intervals = [
        binomtest(int(positives), int(images)).proportion_ci(interval_percent / 100, method="wilson")
        for positives, images in zip(table["labeled_positives"], table["images"], strict=True)
    ]
    return table.assign(lower=[interval.low for interval in intervals], upper=[interval.high for interval in intervals])

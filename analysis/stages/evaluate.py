"""The detector against images that people labeled: quality with intervals, curves, calibration, choice of threshold.

The quantities see an image only through its score and its truth. Images are counted by both, and a bootstrap replicate
of n images is one multinomial draw of n over these counts: exact, and all replicates of a block are worked out at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from patrolscope.analysis.estimators.calibration import refuse_one_class
from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.subgroups import Split, locate, split_images
from patrolscope.analysis.stages.calibrate import labeled_contents, read_labeled_sets
from patrolscope.analysis.stages.ground_truth import join_labels, labeled_images, labels_content, read_labels
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.matching.annotate import load_surroundings
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study

QUANTITIES = ("auc", "average_precision", "precision", "recall", "f1")
ALL_IMAGES = "All images"  # the subgroup that holds the whole set
CURVE_POINTS = 500
CALIBRATION_BINS = 10
# Counts of one block of replicates: with the intermediate results, some 100 MB.
_BLOCK_COUNTS = 2**21

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


# Choice of threshold.


@dataclass(frozen=True)
class ThresholdRule:
    """How the threshold is found."""

    kind: Literal["given", "number", "best-f1", "precision"]
    value: float | None = None  # the number, or the precision that is asked for

    @classmethod
    def parse(cls, text: str) -> ThresholdRule:
        """From the command line: given, best-f1, precision=0.9, or a number.

        Raises
        ------
        SettingsError : none of these, or a number outside 0..1
        """
        if text in ("given", "best-f1"):
            return cls("given" if text == "given" else "best-f1")
        kind: Literal["number", "precision"] = "precision" if text.startswith("precision=") else "number"
        try:
            value = float(text.removeprefix("precision="))
        except ValueError:
            value = np.nan
        if not 0 <= value <= 1:
            raise SettingsError(
                f"--threshold {text}: expected given (estimate.threshold of study.yaml), best-f1, precision=0.9 or "
                f"another share, or a threshold between 0 and 1"
            )
        return cls(kind, value)

    @property
    def text(self) -> str:
        """As the command line has it."""
        return {"number": f"{self.value}", "precision": f"precision={self.value}"}.get(self.kind, self.kind)


def choose_threshold(choice: ThresholdRule, truth: npt.ArrayLike, score: npt.ArrayLike, *, given: float) -> float:
    """The threshold that a choice means on labeled images of both kinds; an image is positive when it scores above it.

    A threshold that is looked for is one of the scores, below the highest. Best F1: of equal ones the highest. Fixed
    precision: the one with the most recall among those that reach the precision, of equal ones the highest.

    Raises
    ------
    SourceError : all scores are the same, or no threshold reaches the precision
    """
    if choice.kind == "given":
        return given
    if choice.kind == "number":
        return float(choice.value or 0.0)
    precision, recall, scores = precision_recall_curve(truth, _filled(score))
    if len(scores) < 2:
        raise SourceError(f"all labeled images have the score {scores[0]}: no threshold tells them apart")
    # scikit-learn takes a score that equals its threshold as positive; above one score is from the next one on.
    thresholds, precision, recall = scores[:-1], precision[1:-1], recall[1:-1]
    if choice.kind == "best-f1":
        both = precision + recall
        worth = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    else:
        worth = np.where(precision >= choice.value, recall, -1.0)
        if (worth <= 0).all():
            raise SourceError(
                f"no threshold has a precision of {choice.value}: the highest is {precision.max():.3f}, at "
                f"{thresholds[precision.argmax()]}; ask for less"
            )
    return float(thresholds[len(worth) - 1 - worth[::-1].argmax()])


def _filled(score: npt.ArrayLike) -> Floats:
    """Scores, a missing one (no box) as 0."""
    return np.nan_to_num(np.asarray(score, dtype=np.float64))


# Quantities and their bootstrap.


@dataclass(frozen=True)
class ScoreCounts:
    """Images counted by score and truth."""

    scores: Floats  # (scores,) rising, none twice
    counts: Counts  # (2, scores): images that do not show a police vehicle, and that do

    @classmethod
    def of(cls, truth: npt.ArrayLike, score: npt.ArrayLike) -> ScoreCounts:
        """Count labeled images; a missing score counts as 0."""
        scores, place = np.unique(_filled(score), return_inverse=True)
        shows = np.asarray(truth) == 1
        counts = np.stack([np.bincount(place[shows == kind], minlength=len(scores)) for kind in (False, True)])
        return cls(scores, counts.astype(np.int64))

    @property
    def images(self) -> int:
        """All images."""
        return int(self.counts.sum())

    @property
    def positives(self) -> int:
        """Images that show a police vehicle."""
        return int(self.counts[1].sum())

    def replicates(self, numbers: range, *, seed: int, name: str) -> Counts:
        """Counts of bootstrap replicates, (replicates, 2, scores), by their numbers.

        Every replicate has a stream of its own, by the seed, the name of what is resampled and its number.
        """
        filled = np.flatnonzero(self.counts)
        drawn = np.zeros((len(numbers), self.counts.size), dtype=np.int64)
        if self.images:
            shares = self.counts.ravel()[filled] / self.images
            for row, number in enumerate(numbers):
                drawn[row, filled] = stream(seed, f"evaluate {name}", number).multinomial(self.images, shares)
        return drawn.reshape(len(numbers), *self.counts.shape)


def measure(counts: Counts, scores: Floats, threshold: float) -> Floats:
    """`QUANTITIES` of counts by score and truth; missing where not defined, never 0 for want of images.

    Parameters
    ----------
    counts : (..., 2, scores) images that do not show a police vehicle, and that do
    scores : (scores,) rising; above `threshold` an image is positive

    Returns
    -------
    (..., quantities). AUC and average precision need images of both kinds, recall and F1 one that shows a police
    vehicle, precision one above the threshold. Definitions are scikit-learn's: ties in the score count half in the AUC;
    average precision is the sum of precision over steps of recall, without interpolation.
    """
    absent, shows = counts[..., 0, :], counts[..., 1, :]
    negatives, positives = absent.sum(axis=-1), shows.sum(axis=-1)
    below = absent.cumsum(axis=-1)
    hits = shows[..., ::-1].cumsum(axis=-1)[..., ::-1]  # from each score on
    taken = hits + negatives[..., None] - below + absent
    above = scores > threshold
    true_positive, false_positive = shows[..., above].sum(axis=-1), absent[..., above].sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The sum has only halves, so that it is exact.
        auc = (shows * (below - absent / 2)).sum(axis=-1) / (positives * negatives)
        average_precision = (shows * np.nan_to_num(hits / taken)).sum(axis=-1) / positives
        precision = true_positive / (true_positive + false_positive)
        recall = true_positive / positives
        f1 = np.where(positives > 0, 2 * true_positive / (positives + true_positive + false_positive), np.nan)
    average_precision = np.where(negatives > 0, average_precision, np.nan)
    return np.stack([auc, average_precision, precision, recall, f1], axis=-1)


def measured(
    tally: ScoreCounts, threshold: float, *, name: str, replicates: int, seed: int, interval_percent: float
) -> pd.DataFrame:
    """One row a quantity: estimate and interval, what stands behind them, and why one is missing.

    `replicates` counts those in which the quantity is defined: the interval is of them.
    """
    estimate = measure(tally.counts, tally.scores, threshold)
    block = max(1, _BLOCK_COUNTS // max(1, tally.counts.size))
    drawn = np.concatenate(
        [
            measure(
                tally.replicates(range(start, min(start + block, replicates)), seed=seed, name=name),
                tally.scores,
                threshold,
            )
            for start in range(0, replicates, block)
        ]
    )
    drawn[:, np.isnan(estimate)] = np.nan
    lower, upper = percentile_interval(drawn, interval_percent)
    return pd.DataFrame(
        {
            "quantity": QUANTITIES,
            "estimate": estimate,
            "lower": lower,
            "upper": upper,
            "images": tally.images,
            "positives": tally.positives,
            "replicates": (~np.isnan(drawn)).sum(axis=0),
            "missing": [
                _why_missing(quantity, tally) if np.isnan(value) else ""
                for quantity, value in zip(QUANTITIES, estimate, strict=True)
            ],
        }
    )


def _why_missing(quantity: str, tally: ScoreCounts) -> str:
    if tally.images == 0:
        return "no image"
    if quantity == "precision":
        return "no image is above the threshold"
    return f"{'no' if tally.positives == 0 else 'every'} image shows a police vehicle"


def quality_table(
    images: pd.DataFrame, splits: list[Split], threshold: float, *, name: str, **bootstrap: Any
) -> pd.DataFrame:
    """`measured` of a whole set and of both sides of every split: set, subgroup, side, quantity, ...

    Parameters
    ----------
    images : `ground_truth` and `score`
    name : of the set
    bootstrap : replicates, seed and interval_percent of `measured`
    """
    truth, score = images["ground_truth"].to_numpy(), images["score"].to_numpy()
    everyone = np.ones(len(images), dtype=bool)
    parts = [(ALL_IMAGES, "all", everyone)]
    parts += [(split.name, side, split.side == code) for split in splits for side, code in (("true", 1), ("false", 0))]
    tables = []
    for subgroup, side, chosen in parts:
        tally = ScoreCounts.of(truth[chosen], score[chosen])
        table = measured(tally, threshold, name=f"{name} {subgroup} {side}", **bootstrap)
        tables.append(table.assign(set=name, subgroup=subgroup, side=side))
    columns = ["set", "subgroup", "side", "quantity", "estimate", "lower", "upper", "images", "positives"]
    return pd.concat(tables, ignore_index=True)[[*columns, "replicates", "missing"]]


# Curves and calibration.


def curves(truth: npt.ArrayLike, score: npt.ArrayLike, points: int = CURVE_POINTS) -> pd.DataFrame:
    """ROC and precision-recall curve, each of at most `points` points: curve, from_score, x, y.

    x and y are the false-positive rate and recall (`roc`), or recall and precision (`precision_recall`), when images
    that score at least `from_score` are positive; missing at the end of a curve where none is.
    """
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
    """Positions of at most `points` points, evenly along the curve, with both ends."""
    if len(x) <= points:
        return np.arange(len(x))
    way = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    kept = np.searchsorted(way, np.linspace(0, way[-1], points - 1))
    return np.unique(np.append(kept, len(x) - 1))


def calibration_bins(
    truth: npt.ArrayLike, score: npt.ArrayLike, *, interval_percent: float, bins: int = CALIBRATION_BINS
) -> pd.DataFrame:
    """Share of images that show a police vehicle by score, with Wilson's interval.

    Images without a box (score 0) are a bin of their own: they are nearly all, and would fill every quantile. The
    others are cut into `bins` of equal count; images of one score stay together.

    Returns
    -------
    bin (0: no box), score_from, score_to, mean_score, images, positives, share, lower, upper; one row a bin with images
    """
    frame = pd.DataFrame({"score": _filled(score), "shows": np.asarray(truth) == 1})
    scored = frame.loc[frame["score"] > 0, "score"]
    # Of each image the share that scores less: the same for images of one score.
    frame["bin"] = 0
    before = scored.rank(method="min") - 1
    frame.loc[scored.index, "bin"] = 1 + (before * bins // max(1, len(scored))).astype("int64")
    grouped = frame.groupby("bin")
    table = pd.DataFrame(
        {
            "score_from": grouped["score"].min(),
            "score_to": grouped["score"].max(),
            "mean_score": grouped["score"].mean(),
            "images": grouped.size(),
            "positives": grouped["shows"].sum(),
        }
    ).reset_index()
    table["share"] = table["positives"] / table["images"]
    intervals = [
        binomtest(int(positives), int(images)).proportion_ci(interval_percent / 100, method="wilson")
        for positives, images in zip(table["positives"], table["images"], strict=True)
    ]
    return table.assign(lower=[one.low for one in intervals], upper=[one.high for one in intervals])


def quality_at(tally: ScoreCounts, threshold: float, *, interval_percent: float) -> pd.DataFrame:
    """Precision and recall at a threshold, with Wilson's interval: at once, where a bootstrap takes a second.

    Returns
    -------
    quantity, hits, of, estimate, lower, upper; the last three are missing where there is nothing to be a share of
    """
    above = tally.scores > threshold
    hits = int(tally.counts[1, above].sum())
    rows = []
    for quantity, of in (("precision", int(tally.counts[:, above].sum())), ("recall", tally.positives)):
        estimate, lower, upper = np.nan, np.nan, np.nan
        if of:
            interval = binomtest(hits, of).proportion_ci(interval_percent / 100, method="wilson")
            estimate, lower, upper = hits / of, interval.low, interval.high
        rows.append((quantity, hits, of, estimate, lower, upper))
    return pd.DataFrame(rows, columns=["quantity", "hits", "of", "estimate", "lower", "upper"])


# A study.


@dataclass(frozen=True)
class Evaluation:
    """The detector on every labeled set of a study."""

    quality: pd.DataFrame  # of `quality_table`
    curves: pd.DataFrame  # of `curves`, with the set
    calibration: pd.DataFrame  # of `calibration_bins`, with the set
    summary: dict[str, Any]
    ledger: tuple[dict[str, Any], ...]

    @property
    def sets(self) -> list[str]:
        """Names of the sets, in their order."""
        return list(self.summary["sets"])

    @property
    def files(self) -> dict[str, bytes]:
        """Content of each file by name."""
        tables = {"evaluation": self.quality, "curves": self.curves, "calibration": self.calibration}
        return {
            **{f"{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()},
            "summary.json": json.dumps(self.summary, indent=1).encode(),
        }


def evaluation_inputs(study: Study, *, choice: ThresholdRule, replicates: int, labels: str | None) -> dict[str, Any]:
    """Everything that an evaluation depends on, as plain values.

    Raises
    ------
    SourceError : there is no set to choose a threshold on, or a file does not exist
    """
    sources = study.settings.sources
    if sources.validation is None and labels is None:
        raise SourceError(
            "study.yaml names no validation set: put the path of a CSV file with ground_truth, Model_predicted_score, "
            "lat, lng and timestamp under sources.validation; or give --labels, a CSV file with image_ref and "
            "ground_truth of images of the study"
        )
    rules = study.settings.estimate
    return {
        "threshold": choice.text,
        "given": rules.threshold,
        "replicates": replicates,
        "interval_percent": rules.interval_percent,
        "seed": rules.seed,
        "annotate": study.settings.annotate.model_dump(mode="json"),
        "city": study.settings.city.model_dump(mode="json"),
        "sources": labeled_contents(study),
        "labels": labels,
        "labels_content": None if labels is None else labels_content(labels),
        "layers": study.record("layers").fingerprint,
    }


def evaluate_study(study: Study, inputs: Mapping[str, Any]) -> Evaluation:
    """Evaluate the detector on the validation and test set, and on labels of the study's own images.

    The threshold is chosen on the validation set, or on the labels where there is none, and is the same for all sets.

    Parameters
    ----------
    inputs : of `evaluation_inputs`

    Raises
    ------
    SourceError : a set has no image of one kind
    """
    sets, ledger = _labeled_sets(study, inputs)
    for name, images in sets.items():
        refuse_one_class((images["ground_truth"] == 1).to_numpy(), f"the set {name!r}")
    chosen_on = next(name for name in ("validation", "labels") if name in sets)
    choice = ThresholdRule.parse(inputs["threshold"])
    threshold = choose_threshold(
        choice, sets[chosen_on]["ground_truth"], sets[chosen_on]["score"], given=inputs["given"]
    )
    areas = study.read(AREAS_FILE)
    looked_for = choice.kind in ("best-f1", "precision")
    return evaluate_sets(
        sets,
        threshold,
        {name: split_images(images, areas, study.settings.annotate.felony_windows_h) for name, images in sets.items()},
        about={"choice": choice.text, "chosen_on": chosen_on if looked_for else None, "labels": inputs["labels"]},
        ledger=tuple(ledger),
        **{key: inputs[key] for key in ("replicates", "seed", "interval_percent")},
    )


def evaluate_sets(
    sets: Mapping[str, pd.DataFrame],
    threshold: float,
    splits: Mapping[str, list[Split]],
    *,
    replicates: int,
    seed: int,
    interval_percent: float,
    about: Mapping[str, Any] | None = None,
    ledger: tuple[dict[str, Any], ...] = (),
) -> Evaluation:
    """Evaluate the detector at one threshold on labeled images of both kinds.

    Parameters
    ----------
    sets : by name, images with ground_truth and score
    splits : by name of a set, the subgroups to look at
    about : goes into the summary
    """
    bootstrap = {"replicates": replicates, "seed": seed, "interval_percent": interval_percent}
    quality, curve, calibration, facts = [], [], [], {}
    for name, images in sets.items():
        quality.append(quality_table(images, splits[name], threshold, name=name, **bootstrap))
        truth, score = images["ground_truth"], images["score"]
        curve.append(curves(truth, score).assign(set=name))
        bins = calibration_bins(truth, score, interval_percent=interval_percent)
        calibration.append(bins.assign(set=name))
        facts[name] = _facts(images, splits[name], quality[-1], threshold)
    summary = {
        "threshold": threshold,
        "replicates": replicates,
        "interval_percent": interval_percent,
        "sets": facts,
        **(about or {}),
    }
    return Evaluation(
        quality=pd.concat(quality, ignore_index=True),
        curves=_set_first(curve),
        calibration=_set_first(calibration),
        summary=summary,
        ledger=ledger,
    )


def _labeled_sets(study: Study, inputs: Mapping[str, Any]) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """Images of every set with truth, score, time, places and distances, and the account of each."""
    around = load_surroundings(study, inputs["layers"])
    sets, ledger = {}, []
    for name, labeled in read_labeled_sets(study).items():
        sets[name] = locate(labeled, around, study.settings)
        ledger.append(Ledger(name, len(labeled)).close(len(labeled)))
    if inputs["labels"] is not None:
        labels = read_labels(inputs["labels"])
        account = Ledger("labels", len(labels))
        sets["labels"] = join_labels(labels, labeled_images(study), account)
        ledger.append(account.close(len(sets["labels"])))
    return sets, ledger


def _facts(images: pd.DataFrame, splits: list[Split], quality: pd.DataFrame, threshold: float) -> dict[str, Any]:
    whole = quality[quality["side"] == "all"].set_index("quantity")[["estimate", "lower", "upper"]].astype("float64")
    found = whole.to_dict("index")
    shows, above = images["ground_truth"] == 1, images["score"] > threshold
    return {
        "images": len(images),
        "positives": int(shows.sum()),
        "above_threshold": int(above.sum()),
        "true_positives": int((shows & above).sum()),
        **{name: None if np.isnan(found[name]["estimate"]) else found[name] for name in QUANTITIES},
        "subgroups": {split.name: {"median": split.median, "left_out": split.left_out} for split in splits},
    }


def _set_first(frames: list[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(frames, ignore_index=True)
    return frame[["set", *(column for column in frame.columns if column != "set")]]

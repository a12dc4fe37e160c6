"""Evaluation of the detector on the labeled sets of a study: read the sets, locate them, and collect the tables.

`patrolscope.analysis.estimators.detector_quality` holds the computations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.calibration import refuse_one_class
from patrolscope.analysis.estimators.detector_quality import (
    QUANTITIES,
    ThresholdRule,
    calibration_bins,
    choose_threshold,
    curves,
    quality_table,
)
from patrolscope.analysis.estimators.subgroups import Split, split_images
from patrolscope.analysis.stages.calibrate import labeled_accounts, labeled_contents
from patrolscope.analysis.stages.ground_truth import join_labels, labeled_images, labels_content, read_labels
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.matching.annotate import (
    ReferenceLayers,
    area_columns,
    distance_columns,
    time_columns,
)
from patrolscope.pipeline.matching.stages import load_reference_layers
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study

__all__ = [
    "Evaluation",
    "ThresholdRule",
    "choose_threshold",
    "evaluate_sets",
    "evaluate_study",
    "evaluation_inputs",
    "locate",
]


@dataclass(frozen=True)
class Evaluation:
    """Detector metrics for each labeled set.

    Attributes
    ----------
    quality : DataFrame
        Output of `quality_table`, all sets.
    curves : DataFrame
        Output of `curves`, with a column `set`.
    calibration : DataFrame
        Output of `calibration_bins`, with a column `set`.
    summary : dict
        Threshold, counts, and metrics per set; content of summary.json.
    ledger : tuple of dict
        Ledger lines, one per set.
    """

    quality: pd.DataFrame
    curves: pd.DataFrame
    calibration: pd.DataFrame
    summary: dict[str, Any]
    ledger: tuple[dict[str, Any], ...]

    @property
    def sets(self) -> list[str]:
        """Names of the sets in order."""
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
    """Collect everything that an evaluation depends on, as plain values.

    Parameters
    ----------
    study : Study
        Study with finished layers.
    choice : ThresholdRule
        Rule that determines the threshold.
    replicates : int
        Number of bootstrap replicates.
    labels : str or None
        Path or URL of ground-truth labels for images of the study.

    Raises
    ------
    SourceError
        If the study has neither a validation set nor labels, or a file does not exist.
    """
    sources = study.settings.sources
    if sources.validation is None and labels is None:
        raise SourceError(
            "study.yaml names no validation set: put the path of a CSV file with ground_truth, Model_predicted_score, "
            "lat, lng and timestamp under sources.validation; or give --ground-truth, a CSV file with image_ref and "
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
        "period": study.settings.period.model_dump(mode="json"),
        "sources": labeled_contents(study),
        "labels": labels,
        "labels_content": None if labels is None else labels_content(labels),
        "layers": study.record("layers").content,
    }


def evaluate_study(study: Study, inputs: Mapping[str, Any]) -> Evaluation:
    """Evaluate the detector on the validation set, the test set, and labels of the study's own images.

    One threshold serves all sets. It is chosen on the validation set, or on the labels if there is none.

    Parameters
    ----------
    study : Study
        Study with finished layers.
    inputs : mapping
        Output of `evaluation_inputs`.

    Raises
    ------
    SourceError
        If a set lacks images of one class.
    """
    sets, ledger = _labeled_sets(study, inputs)
    for name, images in sets.items():
        refuse_one_class((images["ground_truth"] == 1).to_numpy(), f"the set {name!r}")
    chosen_on = next(name for name in ("validation", "labels") if name in sets)
    rule = ThresholdRule.parse(inputs["threshold"])
    threshold = choose_threshold(rule, sets[chosen_on]["ground_truth"], sets[chosen_on]["score"], given=inputs["given"])
    areas = study.read(AREAS_FILE)
    searched = rule.kind in ("best-f1", "precision")
    return evaluate_sets(
        sets,
        threshold,
        {name: split_images(images, areas, study.settings.annotate.felony_windows_h) for name, images in sets.items()},
        about={"choice": rule.text, "chosen_on": chosen_on if searched else None, "labels": inputs["labels"]},
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
    """Evaluate the detector at one threshold.

    Parameters
    ----------
    sets : mapping of str to DataFrame
        Labeled images per set, with `ground_truth` and `score`; each set has images of both classes.
    threshold : float
        Images with a higher score are positive.
    splits : mapping of str to list of Split
        Subgroups per set.
    replicates : int
        Number of bootstrap replicates.
    seed : int
        Seed of the study.
    interval_percent : float
        Confidence level in percent.
    about : mapping, optional
        Further entries of the summary.
    ledger : tuple of dict
        Ledger lines of the sets.
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


def locate(labeled: pd.DataFrame, layers: ReferenceLayers, settings: Settings) -> pd.DataFrame:
    """Add local time, area, borough, and distances to labeled images, by the rules for all images of a study.

    Parameters
    ----------
    labeled : DataFrame
        Labeled images, table `LABELED`.
    layers : ReferenceLayers
        Areas, precincts, stations, and felonies.
    settings : Settings
        Settings of the study.
    """
    lng, lat = labeled["lng"].to_numpy(), labeled["lat"].to_numpy()
    x_ft, y_ft = project_ft(lng, lat, settings.city.crs)
    at = labeled["captured_at_utc"]
    parts = [
        labeled,
        time_columns(at, settings),
        area_columns(lng, lat, layers).set_axis(labeled.index),
        distance_columns(x_ft, y_ft, at, layers, settings.annotate.felony_windows_h),
    ]
    return pd.concat(parts, axis=1)


def _labeled_sets(study: Study, inputs: Mapping[str, Any]) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """Read every labeled set with time, area, and distances, and its ledger line."""
    layers = load_reference_layers(study, inputs["layers"])
    sets, ledger = {}, []
    for name, (labeled, rows) in labeled_accounts(study).items():
        sets[name] = locate(labeled, layers, study.settings)
        ledger.append(rows.close(len(labeled)))
    if inputs["labels"] is not None:
        labels = read_labels(inputs["labels"])
        account = Ledger("labels", len(labels))
        sets["labels"] = join_labels(labels, labeled_images(study), account)
        ledger.append(account.close(len(sets["labels"])))
    return sets, ledger


def _facts(images: pd.DataFrame, splits: list[Split], quality: pd.DataFrame, threshold: float) -> dict[str, Any]:
    whole = quality[quality["side"] == "all"].set_index("quantity")[["estimate", "lower", "upper"]].astype("float64")
    metrics = whole.to_dict("index")
    shows, above = images["ground_truth"] == 1, images["score"] > threshold
    return {
        "images": len(images),
        "labeled_positives": int(shows.sum()),
        "above_threshold": int(above.sum()),
        "true_positives": int((shows & above).sum()),
        **{name: None if np.isnan(metrics[name]["estimate"]) else metrics[name] for name in QUANTITIES},
        "subgroups": {split.name: {"median": split.median, "left_out": split.left_out} for split in splits},
    }


def _set_first(frames: list[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(frames, ignore_index=True)
    return frame[["set", *(column for column in frame.columns if column != "set")]]

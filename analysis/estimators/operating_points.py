"""Position of one threshold on the curves of a detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal


def operating_point(counts: Mapping[str, Any], curve: Literal["roc", "precision_recall"]) -> tuple[float, float] | None:
    """Return the point of a curve that belongs to the threshold of an evaluation.

    Parameters
    ----------
    counts : mapping
        Facts of one labeled set in `Evaluation.summary`: images, labeled_positives, above_threshold, true_positives.
    curve : {"roc", "precision_recall"}
        The curve.

    Returns
    -------
    tuple of float or None
        False positive rate and recall, or recall and precision. None if no image is above the threshold, so that the
        precision is undefined.
    """
    above, hits, positives = counts["above_threshold"], counts["true_positives"], counts["labeled_positives"]
    recall = hits / positives
    if curve == "roc":
        return (above - hits) / (counts["images"] - positives), recall
    return (recall, hits / above) if above else None

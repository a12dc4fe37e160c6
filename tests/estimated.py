"""Estimates with replicates from counts, for tests."""

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.rates import Analysis, Population, analyses, panels
from patrolscope.analysis.estimators.replicates import (
    BootstrapInputs,
    area_replicates,
    image_replicates,
    two_class_means,
)
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.replicates import released


def by_images(
    areas: pd.DataFrame,
    inside: np.ndarray,
    probabilities: tuple[float, float],
    *,
    outside: np.ndarray | None = None,
    replicates: int,
    seed: int,
) -> dict[str, Released]:
    """Estimate every analysis that the areas allow, with the image bootstrap.

    Parameters
    ----------
    areas : DataFrame
        `AREAS`.
    inside, outside : ndarray of int64, shapes (n_areas, 2) and (2,)
        Negative and positive images.
    probabilities : tuple of float
        Pr(police vehicle) of positive and negative images.
    """
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    outside = np.zeros(2, dtype=np.int64) if outside is None else outside
    counted = BootstrapInputs(areas, inside, outside, panels(wanted, areas))
    by_class = np.array(probabilities)[::-1, None]
    means = two_class_means(inside[:, :, None], by_class)
    drawn = image_replicates(counted, by_class, replicates=range(replicates), seed=seed)
    return released(counted.panels, [panel.means(means)[:, 0] for panel in counted.panels], drawn)


def by_areas(
    areas: pd.DataFrame, inside: np.ndarray, probabilities: tuple[float, float], *, replicates: int, seed: int
) -> dict[str, Released]:
    """Estimate every analysis that the areas allow, with the area bootstrap."""
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    counted = BootstrapInputs(areas, inside, np.zeros(2, dtype=np.int64), panels(wanted, areas))
    means = two_class_means(inside[:, :, None], np.array(probabilities)[::-1, None])
    drawn = area_replicates(counted, means, replicates=range(replicates), seed=seed)
    return released(counted.panels, [panel.means(means)[:, 0] for panel in counted.panels], drawn)


def relative_levels(analysis: Analysis, frame: Population, means: np.ndarray, persons: np.ndarray) -> np.ndarray:
    """Return relative rates, shape (..., n_groups), from means of areas, shape (..., n_areas), in plain matrices."""
    total, levels = weighted_levels(analysis, frame, means, persons)
    return levels / total[..., None]


def weighted_levels(
    analysis: Analysis, frame: Population, means: np.ndarray, persons: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the overall mean, shape (...,), and means of groups, shape (..., n_groups)."""
    seen = ~np.isnan(means) & frame.areas
    weights = np.column_stack([persons, analysis.weights])
    with np.errstate(invalid="ignore", divide="ignore"):
        both = (np.where(seen, means, 0.0) @ weights) / (seen.astype(float) @ weights)
    return both[..., 0], both[..., 1:]

"""Sampling error of the census counts that population groups are weighted by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patrolscope.analysis.estimators.area_class_counts import Floats
from patrolscope.pipeline.seeds import stream

# Margins of error of the American Community Survey are of 90% intervals.
_MARGIN_Z = 1.645


def draw_residents(persons: Floats, margins: Floats, *, replicates: range, seed: int) -> npt.NDArray[np.float32]:
    """Draw the residents of each group in each area from their sampling distribution.

    Parameters
    ----------
    persons : ndarray of float64, shape (n_areas, 1 + n_groups)
        All residents, then those of each group.
    margins : ndarray of float64, shape (n_areas, n_groups)
        Margins of error at 90%; a missing one counts as 0.
    replicates : range
        Numbers of the replicates.
    seed : int
        Seed of the study.

    Returns
    -------
    ndarray of float32, shape (n_areas, 1 + n_groups, n_replicates)
        Counts from Normal(estimate, margin / 1.645), cut at 0. An estimate of 0 stays 0. All residents change by as
        much as the groups together. Correlations between counts of an area and between areas are unknown and ignored.
    """
    drawn = np.empty((*persons.shape, len(replicates)), dtype=np.float32)
    groups = persons[:, 1:]
    deviation = np.where(groups > 0, np.nan_to_num(margins), 0.0) / _MARGIN_Z
    for column, replicate in enumerate(replicates):
        normal = stream(seed, "census counts", replicate).standard_normal(groups.shape)
        counts = np.maximum(groups + deviation * normal, 0.0)
        drawn[:, 1:, column] = counts
        drawn[:, 0, column] = np.maximum(persons[:, 0] + (counts - groups).sum(axis=1), 0.0)
    return drawn


def means_with_residents(
    rates: Floats, residents: npt.NDArray[np.float32], population: npt.NDArray[np.bool_]
) -> Floats:
    """Compute weighted means of area rates, with the residents of each replicate.

    Parameters
    ----------
    rates : ndarray of float64, shape (n_areas, n_replicates)
        NaN for areas without images.
    residents : ndarray of float32, shape (n_areas, 1 + n_groups, n_replicates)
        From `draw_residents`.
    population : ndarray of bool, shape (n_areas,)
        Areas that count.

    Returns
    -------
    ndarray of float64, shape (1 + n_groups, n_replicates)
        NaN where no resident of a group lives in an area with images.
    """
    means = np.empty(residents.shape[1:])
    for column in range(residents.shape[2]):
        seen = population & ~np.isnan(rates[:, column])
        weights = residents[seen, :, column].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means[:, column] = rates[seen, column] @ weights / weights.sum(axis=0)
    return means

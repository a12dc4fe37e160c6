"""Intervals from replicates: percentile, basic, normal and BCa.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap, chapters 13 and 14; Davison and Hinkley, Bootstrap
Methods and their Application, chapter 5.

A replicate in which a group has no estimate is left out for that group; an interval that can not be had is missing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Method = Literal["percentile", "basic", "normal", "bca"]


def intervals(
    replicates: Floats, estimates: Floats, percent: float, *, acceleration: Floats | None = None
) -> dict[Method, tuple[Floats, Floats]]:
    """Lower and upper ends by every method, (groups,) each.

    Parameters
    ----------
    replicates : (replicates, groups)
    estimates : (groups,) from the data themselves
    percent : of the distribution that an interval holds, in the middle
    acceleration : (groups,) for BCa; None: there is no BCa interval
    """
    made: dict[Method, tuple[Floats, Floats]] = {"percentile": percentile_interval(replicates, percent)}
    lower, upper = made["percentile"]
    made["basic"] = (2 * estimates - upper, 2 * estimates - lower)
    reach = stats.norm.ppf(0.5 + percent / 200) * spread(replicates)
    made["normal"] = (estimates - reach, estimates + reach)
    if acceleration is not None:
        made["bca"] = bca_interval(replicates, estimates, percent, acceleration)
    return made


def percentile_interval(replicates: Floats, percent: float) -> tuple[Floats, Floats]:
    """Ends of the central `percent` of (replicates, groups), by linear interpolation, 2 x (groups,)."""
    lower, upper = np.full(replicates.shape[1], np.nan), np.full(replicates.shape[1], np.nan)
    touched = ~np.isnan(replicates).all(axis=0)
    tail = (100 - percent) / 2
    if touched.any():  # numpy has no percentiles of no columns
        lower[touched], upper[touched] = np.nanpercentile(replicates[:, touched], [tail, 100 - tail], axis=0)
    return lower, upper


def spread(replicates: Floats) -> Floats:
    """Standard deviation over replicates (ddof 0, as published), (groups,); missing where no replicate has one."""
    touched = ~np.isnan(replicates).all(axis=0)
    deviation = np.full(replicates.shape[1], np.nan)
    deviation[touched] = np.nanstd(replicates[:, touched], axis=0)
    return deviation


def bca_interval(replicates: Floats, estimates: Floats, percent: float, acceleration: Floats) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated percentile interval (Efron 1987), (replicates, groups) -> 2 x (groups,).

    Missing where all replicates lie on one side of the estimate, or where the acceleration is missing: there is then
    nothing to correct by. Replicates equal to the estimate count half.
    """
    known = ~np.isnan(replicates)
    counted = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = ((replicates < estimates).sum(axis=0) + (replicates == estimates).sum(axis=0) / 2) / counted
        bias = stats.norm.ppf(below)
        ends = []
        for side in (-1, 1):
            normal = bias + side * stats.norm.ppf(0.5 + percent / 200)
            ends.append(stats.norm.cdf(bias + normal / (1 - acceleration * normal)))
    lower, upper = np.full(len(estimates), np.nan), np.full(len(estimates), np.nan)
    for group in np.flatnonzero((below > 0) & (below < 1) & np.isfinite(acceleration)):
        values = replicates[known[:, group], group]
        lower[group], upper[group] = np.quantile(values, [ends[0][group], ends[1][group]])
    return lower, upper

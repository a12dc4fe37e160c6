"""Percentile, basic, normal, and BCa intervals from bootstrap replicates.

A replicate without an estimate for a group is ignored for that group. An interval that cannot be computed is missing.

References
----------
B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 14.
A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application" (1997), chapter 5.
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
    """Compute the lower and upper ends of intervals by every method.

    Parameters
    ----------
    replicates : ndarray of float64, shape (n_replicates, n_groups)
    estimates : ndarray of float64, shape (n_groups,)
    percent : float
        Nominal interval coverage.
    acceleration : ndarray of float64, shape (n_groups,), optional
        For BCa intervals, which are omitted without it.

    Returns
    -------
    dict of str to (ndarray of float64, ndarray of float64), shape (n_groups,) each
    """
    ends: dict[Method, tuple[Floats, Floats]] = {"percentile": percentile_interval(replicates, percent)}
    lower, upper = ends["percentile"]
    ends["basic"] = (2 * estimates - upper, 2 * estimates - lower)
    reach = stats.norm.ppf(0.5 + percent / 200) * spread(replicates)
    ends["normal"] = (estimates - reach, estimates + reach)
    if acceleration is not None:
        ends["bca"] = bca_interval(replicates, estimates, percent, acceleration)
    return ends


def percentile_interval(replicates: Floats, percent: float) -> tuple[Floats, Floats]:
    """Return the ends of the central `percent` of the replicates of each group, by linear interpolation."""
    lower, upper = np.full(replicates.shape[1], np.nan), np.full(replicates.shape[1], np.nan)
    touched = ~np.isnan(replicates).all(axis=0)
    tail = (100 - percent) / 2
    if touched.any():  # numpy fails without columns
        lower[touched], upper[touched] = np.nanpercentile(replicates[:, touched], [tail, 100 - tail], axis=0)
    return lower, upper


def spread(replicates: Floats) -> Floats:
    """Return the standard deviation over replicates (ddof 0, as published), shape (n_groups,); NaN without any."""
    touched = ~np.isnan(replicates).all(axis=0)
    deviation = np.full(replicates.shape[1], np.nan)
    deviation[touched] = np.nanstd(replicates[:, touched], axis=0)
    return deviation


def bca_interval(replicates: Floats, estimates: Floats, percent: float, acceleration: Floats) -> tuple[Floats, Floats]:
    """Compute the bias-corrected and accelerated percentile interval [1]_.

    Parameters
    ----------
    replicates : ndarray of float64, shape (n_replicates, n_groups)
    estimates : ndarray of float64, shape (n_groups,)
    percent : float
        Nominal interval coverage.
    acceleration : ndarray of float64, shape (n_groups,)

    Returns
    -------
    lower, upper : ndarray of float64, shape (n_groups,)
        NaN where all replicates lie on one side of the estimate or the acceleration is missing. Replicates equal to the
        estimate count half.

    References
    ----------
    .. [1] B. Efron, "Better bootstrap confidence intervals", Journal of the American Statistical Association 82 (1987),
       171-185.
    """
    known = ~np.isnan(replicates)
    counted = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = ((replicates < estimates).sum(axis=0) + (replicates == estimates).sum(axis=0) / 2) / counted
        bias = stats.norm.ppf(below)
        shares = []
        for side in (-1, 1):
            normal = bias + side * stats.norm.ppf(0.5 + percent / 200)
            shares.append(stats.norm.cdf(bias + normal / (1 - acceleration * normal)))
    lower, upper = np.full(len(estimates), np.nan), np.full(len(estimates), np.nan)
    for group in np.flatnonzero((below > 0) & (below < 1) & np.isfinite(acceleration)):
        values = replicates[known[:, group], group]
        lower[group], upper[group] = np.quantile(values, [shares[0][group], shares[1][group]])
    return lower, upper

"""Statements about many places at once: simultaneous intervals, calls at a false discovery rate, and rank sets.

Of 200 places, ten are outside their own 95% intervals by chance, and the ten with the highest estimates are not those
with the highest rates. Everything here is about the logarithms L of the relative rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from patrolscope.pipeline.seeds import stream

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

LEAST_POSITIVES = 20  # places with fewer are in no simultaneous statement
FALSE_DISCOVERY_RATE = 0.05
ENDS = 10  # places at each end of a ranking
# Replicates that a quantile of the largest of many statistics needs; below, it comes from normal draws.
_ENOUGH_REPLICATES = 1_000
_NORMAL_DRAWS = 10_000
_AT_ONCE = 200  # replicates at a time: 262 places have 34,191 pairs, 55 MB


@dataclass(frozen=True)
class Places:
    """Relative rates of places, and their replicates.

    Attributes
    ----------
    estimates : ndarray of float64, shape (n_places,)
        NaN without an estimate.
    replicates : ndarray of float64, shape (n_replicates, n_places)
    compared : ndarray of bool, shape (n_places,)
        Places that take part in simultaneous intervals and in pairs: those with enough positive images.
    """

    estimates: Floats
    replicates: Floats
    compared: Bools

    @classmethod
    def of(cls, estimates: Floats, replicates: Floats, positives: Counts | None = None) -> Places:
        """Return places, of which those with an interval and `LEAST_POSITIVES` positive images are compared.

        Parameters
        ----------
        estimates : ndarray of float64, shape (n_places,)
        replicates : ndarray of float64, shape (n_replicates, n_places)
        positives : ndarray of int64, shape (n_places,), optional
            Positive images. None: all places have enough.
        """
        with np.errstate(invalid="ignore"):
            known = (estimates > 0) & (replicates > 0).all(axis=0)
        varies = np.zeros(len(estimates), dtype=np.bool_)
        if len(replicates):
            varies = np.ptp(np.where(known, replicates, 1.0), axis=0) > 0
        enough = np.ones(len(estimates), dtype=np.bool_) if positives is None else positives >= LEAST_POSITIVES
        return cls(estimates, replicates, known & varies & enough)

    @property
    def logarithms(self) -> tuple[Floats, Floats]:
        """Logarithms of the compared places: estimates, shape (n,), and replicates, shape (n_replicates, n)."""
        return np.log(self.estimates[self.compared]), np.log(self.replicates[:, self.compared])


def compare_places(
    places: Places, tails: tuple[Floats, Floats] | None, *, percent: float, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Make all statements about places.

    Parameters
    ----------
    places : Places
    tails : tuple of ndarray of float64, shape (n_places,) each, or None
        Probability of a share below the city's under the lower distribution of `GammaDistributions`, and above it
        under the upper one. None: from the estimates, as normal.
    percent : float
        Nominal coverage of simultaneous intervals and rank sets.
    seed : int
        Seed of the study.

    Returns
    -------
    DataFrame
        simultaneous_lower, simultaneous_upper (missing for places that are not compared); p (two-sided, that the rate
        is the average), call (`above` or `below` the average at the false discovery rate, else empty); rank_first,
        rank_last (rank set, 1 for the highest; missing without an estimate); highest, lowest (`surely` or `possibly`
        among the ten at that end, else empty).
    dict of str to float
        critical (of simultaneous intervals), critical_pairs; NaN with fewer than two compared places.

    References
    ----------
    Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", Journal of the Royal Statistical Society B 57
    (1995), 289-300. M. Mogstad, J. P. Romano, A. M. Shaikh, and D. Wilhelm, "Inference for ranks", Review of Economic
    Studies 91 (2024), 476-518.
    """
    number = len(places.estimates)
    table = pd.DataFrame(
        {name: np.full(number, np.nan) for name in ("simultaneous_lower", "simultaneous_upper")} | _calls(places, tails)
    )
    ranks = np.full((2, number), np.nan)
    known = ~np.isnan(places.estimates)
    ranks[:, known] = [[1.0], [float(known.sum())]]
    critical = {"critical": np.nan, "critical_pairs": np.nan}
    if places.compared.sum() > 1:
        estimates, drawn = places.logarithms
        spread = drawn.std(axis=0)
        largest, largest_pair, pair_spread = _largest_statistics(estimates, drawn, seed)
        critical = {
            "critical": float(np.percentile(largest, percent)),
            "critical_pairs": float(np.percentile(largest_pair, percent)),
        }
        reach = critical["critical"] * spread
        table.loc[places.compared, "simultaneous_lower"] = np.exp(estimates - reach)
        table.loc[places.compared, "simultaneous_upper"] = np.exp(estimates + reach)
        apart = estimates[:, None] - estimates[None, :] > critical["critical_pairs"] * pair_spread
        ranks[0, places.compared] += apart.sum(axis=0)
        ranks[1, places.compared] -= apart.sum(axis=1)
    table["rank_first"], table["rank_last"] = ranks
    total = known.sum()
    table["highest"] = _at_end(ranks[1] <= ENDS, ranks[0] <= ENDS)
    table["lowest"] = _at_end(ranks[0] > total - ENDS, ranks[1] > total - ENDS)
    return table, critical


def _at_end(surely: Bools, possibly: Bools) -> npt.NDArray[np.object_]:
    return np.where(surely, "surely", np.where(possibly, "possibly", "")).astype(object)


def _calls(places: Places, tails: tuple[Floats, Floats] | None) -> dict[str, npt.NDArray[np.generic]]:
    """Return p-values, and calls by the procedure of Benjamini and Hochberg."""
    if tails is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.log(places.replicates).std(axis=0) if len(places.replicates) else np.nan
            above = stats.norm.cdf(np.log(places.estimates) / spread)
        lower, upper = 1 - above, above  # small where the rate is surely above, and where it is surely below
    else:
        lower, upper = tails
    smaller = np.minimum(lower, upper)
    p = np.where(np.isnan(places.estimates), np.nan, np.minimum(1.0, 2 * smaller))
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    passing = np.flatnonzero(p[order] <= FALSE_DISCOVERY_RATE * np.arange(1, len(order) + 1) / max(1, len(order)))
    called = np.zeros(len(p), dtype=np.bool_)
    if len(passing):
        called[order[: passing[-1] + 1]] = True
    direction = np.where(lower < upper, "above", "below")
    return {"p": p, "call": np.where(called, direction, "").astype(object)}


def _largest_statistics(estimates: Floats, drawn: Floats, seed: int) -> tuple[Floats, Floats, Floats]:
    """Return the largest statistic of all places and of all pairs in each replicate, and the spread of each pair.

    Parameters
    ----------
    estimates : ndarray of float64, shape (n,)
    drawn : ndarray of float64, shape (n_replicates, n)
        Replicates of them. With fewer than 1,000, both quantiles come from 10,000 normal draws with their spread; the
        places are then independent.
    seed : int
    """
    spread = drawn.std(axis=0)
    if len(drawn) < _ENOUGH_REPLICATES:
        normal = stream(seed, "many places").standard_normal((_NORMAL_DRAWS, len(estimates))) * spread
        pair_spread = np.sqrt(spread[:, None] ** 2 + spread[None, :] ** 2)
        centered = normal
    else:
        covariance = np.cov(drawn, rowvar=False, ddof=0)
        variance = np.diagonal(covariance)
        pair_spread = np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0.0))
        centered = drawn - estimates
    np.fill_diagonal(pair_spread, np.inf)
    # Places that always move together would otherwise be divided by a rounding error.
    pair_spread[pair_spread < 1e-12] = np.inf
    largest = (np.abs(centered) / spread).max(axis=1)
    upper = np.triu_indices(len(estimates), 1)
    weights = 1 / pair_spread[upper]
    of_pairs = np.empty(len(centered))
    for start in range(0, len(centered), _AT_ONCE):
        part = centered[start : start + _AT_ONCE]
        of_pairs[start : start + _AT_ONCE] = (np.abs(part[:, upper[0]] - part[:, upper[1]]) * weights).max(axis=1)
    return largest, of_pairs, pair_spread

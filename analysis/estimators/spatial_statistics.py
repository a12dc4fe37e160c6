"""Correlations of deployment rates with covariates of areas, and their spatial autocorrelation.

The unit is the area. Areas have equal weights, regardless of residents.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from scipy import sparse

from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.pipeline.crs import feet_per_unit

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LEVEL = "level"
FEWEST_AREAS = 3  # two points always have a correlation of 1 or -1
_AT_ONCE = 100  # replicates at a time; 6,000 areas take 5 MB per array of ranks
PERMUTATIONS = 999
_ROUNDING = 1e-12  # tolerance of Moran's I
TOUCHING_FT = 1.0  # rounded corners in boundary files leave gaps below 1 ft between neighbors


class MapSettings(Protocol):
    """Settings that `describe_map` reads: section `estimate` of study.yaml."""

    @property
    def correlation_persons(self) -> int:
        """Areas with more residents enter."""

    @property
    def replicates(self) -> int:
        """Number of bootstrap replicates."""

    @property
    def seed(self) -> int:
        """Seed of the study."""

    @property
    def interval_percent(self) -> float:
        """Confidence level in percent."""


def usable_areas(areas: pd.DataFrame, levels: pd.DataFrame, persons_above: int) -> npt.NDArray[np.bool_]:
    """Flag areas with images and more than `persons_above` residents.

    Parameters
    ----------
    areas : DataFrame, n_areas rows
        Areas, table `AREAS`.
    levels : DataFrame, n_areas rows
        Column `LEVEL`: deployment rate per area, NaN without images.
    persons_above : int
        Areas with at most this many residents are excluded.
    """
    return ((areas["persons"] > persons_above) & levels[LEVEL].notna().to_numpy()).to_numpy()


def area_variables(areas: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """Collect deployment rate, density, income, shares of residents, and mean distances per area.

    Parameters
    ----------
    areas : DataFrame, n_areas rows
        Areas, table `AREAS`.
    levels : DataFrame, n_areas rows
        Columns `LEVEL`, felony_distance_ft, and station_distance_ft, in the order of `areas`.

    Returns
    -------
    DataFrame, n_areas rows
        One column per variable; NaN for unknown values.
    """
    persons = areas["persons"].where(areas["persons"] > 0)
    columns = {
        LEVEL: levels[LEVEL],
        "density_per_sqmi": areas["density_per_sqmi"],
        "income_usd": areas["income_usd"],
        **{f"share_{race.removeprefix('persons_')}": areas[race] / persons for race in RACES},
        "felony_distance_ft": levels["felony_distance_ft"],
        "station_distance_ft": levels["station_distance_ft"],
    }
    return pd.DataFrame({name: values.to_numpy(dtype=np.float64) for name, values in columns.items()})


def describe_map(
    areas: gpd.GeoDataFrame, levels: pd.DataFrame, rules: MapSettings, crs: str
) -> dict[str, list[dict[str, Any]] | dict[str, Any]]:
    """Compute the correlations and Moran's I of a study, as in its summary.

    Parameters
    ----------
    areas : GeoDataFrame, n_areas rows
        Areas, table `AREAS`.
    levels : DataFrame, n_areas rows
        As for `area_variables`.
    rules : MapSettings
        Section `estimate` of the settings.
    crs : str
        Projected coordinate system of the city.

    Returns
    -------
    dict
        correlations (of the deployment rate), correlations_among_covariates, and moran.
    """
    usable = usable_areas(areas, levels, rules.correlation_persons)
    variables = area_variables(areas, levels)[usable]
    pairs = correlations(variables, replicates=rules.replicates, seed=rules.seed, percent=rules.interval_percent)
    shapes = areas.geometry[usable].to_crs(crs).to_numpy()
    touching = neighbors(shapes, TOUCHING_FT / feet_per_unit(crs))
    return {
        "correlations": [pair for pair in pairs if pair["with"] == LEVEL],
        "correlations_among_covariates": [pair for pair in pairs if pair["with"] != LEVEL],
        "moran": moran(variables[LEVEL].to_numpy(), touching, seed=rules.seed).as_dict(),
    }


# Correlations.


def correlations(variables: pd.DataFrame, *, replicates: int, seed: int, percent: float) -> list[dict[str, Any]]:
    """Compute Pearson and Spearman correlations of all pairs of variables with an area bootstrap.

    A replicate resamples all areas with replacement and recomputes the ranks. All pairs share the draws. A replicate in
    which a variable is constant has no correlation and is left out.

    Parameters
    ----------
    variables : DataFrame, shape (n_areas, n_variables)
        Variables per area. An area enters a pair if both values are known.
    replicates : int
        Number of replicates.
    seed : int
        Seed of the study.
    percent : float
        Central share of the replicates that an interval holds, in percent.

    Returns
    -------
    list of dict
        One entry per pair, in column order: with, covariate (names), areas, reason (for a missing correlation, else
        empty); for pearson and spearman the estimate, <name>_lower, <name>_upper, and <name>_replicates.
    """
    pairs = list(combinations(variables.columns, 2))
    once = np.ones((1, len(variables)), dtype=np.int64)
    estimates = _pairwise(variables, once)
    drawn = [
        _pairwise(variables, _draws(len(variables), range(first, min(first + _AT_ONCE, replicates)), seed))
        for first in range(0, replicates, _AT_ONCE)
    ]
    often = np.concatenate(drawn, axis=0)
    rows = []
    for number, (left, right) in enumerate(pairs):
        both = variables[[left, right]].dropna()
        reason = _why_not(both)
        row: dict[str, Any] = {"with": left, "covariate": right, "areas": len(both), "reason": reason}
        for kind, name in enumerate(("pearson", "spearman")):
            values = np.full((replicates, 1), np.nan) if reason else often[:, number, kind, None]
            lower, upper = percentile_interval(values, percent)
            row[name] = None if reason else float(estimates[0, number, kind])
            row[f"{name}_lower"] = None if np.isnan(lower[0]) else float(lower[0])
            row[f"{name}_upper"] = None if np.isnan(upper[0]) else float(upper[0])
            row[f"{name}_replicates"] = int((~np.isnan(values)).sum())
        rows.append(row)
    return rows


def _why_not(both: pd.DataFrame) -> str:
    if len(both) < FEWEST_AREAS:
        return f"fewer than {FEWEST_AREAS} areas have both"
    constant = [str(name) for name, values in both.items() if np.ptp(values) == 0]
    return f"{' and '.join(constant)} does not vary" if constant else ""


def _draws(areas: int, numbers: range, seed: int) -> Counts:
    """Draw bootstrap counts of shape (n_replicates, n_areas) with one random stream per replicate."""
    counts = np.empty((len(numbers), areas), dtype=np.int64)
    for row, number in enumerate(numbers):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(b"areas"), number)))
        counts[row] = np.bincount(generator.integers(areas, size=areas), minlength=areas) if areas else 0
    return counts


def _pairwise(variables: pd.DataFrame, counts: Counts) -> Floats:
    """Compute Pearson and Spearman correlations with area weights, shape (n_replicates, n_pairs, 2)."""
    values = variables.to_numpy()
    known = ~np.isnan(values)
    # Most pairs share their areas, so rank each variable once per set of areas, not once per pair.
    ranked: dict[tuple[int, bytes], Floats] = {}
    found = []
    for pair in combinations(range(values.shape[1]), 2):
        both = known[:, pair[0]] & known[:, pair[1]]
        weights = counts[:, both]
        plain, ranks = [], []
        for column in pair:
            key = (column, both.tobytes())
            if key not in ranked:
                ranked[key] = weighted_ranks(values[both, column], weights)
            ranks.append(ranked[key])
            plain.append(values[both, column][None, :])
        by_rank = _weighted_correlation(ranks[0], ranks[1], weights)
        # Ranks are multiples of 1/2, so their variance is exactly 0 if a variable is constant.
        by_value = np.where(np.isnan(by_rank), np.nan, _weighted_correlation(plain[0], plain[1], weights))
        found.append(np.stack([by_value, by_rank], axis=-1))
    return np.stack(found, axis=1) if found else np.empty((len(counts), 0, 2))


def weighted_ranks(values: Floats, counts: Counts) -> Floats:
    """Rank values with integer weights, as `scipy.stats.rankdata` ranks the repeated values.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        Values without NaN.
    counts : ndarray of int64, shape (n_replicates, n)
        Number of repetitions.

    Returns
    -------
    ndarray of float64, shape (n_replicates, n)
        Ranks, starting at 1. Equal values share their mean rank.
    """
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    if len(distinct) == 0:
        return np.empty(counts.shape)
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    repeats = np.add.reduceat(counts[:, order], starts, axis=1)
    return np.asarray((np.cumsum(repeats, axis=1) - (repeats - 1) / 2)[:, group])


def _weighted_correlation(left: Floats, right: Floats, counts: Counts) -> Floats:
    """Compute the Pearson correlation with integer weights per replicate; NaN if a variable is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = counts.sum(axis=1, keepdims=True)
        left = left - (left * counts).sum(axis=1, keepdims=True) / total
        right = right - (right * counts).sum(axis=1, keepdims=True) / total
        weighted = left * counts
        together = (weighted * right).sum(axis=1)
        spread = np.sqrt((weighted * left).sum(axis=1) * (counts * right**2).sum(axis=1))
        return np.where(spread > 0, np.clip(together / spread, -1, 1), np.nan)


# Moran's I.


@dataclass(frozen=True)
class Moran:
    """Moran's I: near 1 if neighboring areas have similar rates, near 0 under random arrangement.

    Attributes
    ----------
    areas, islands : int
        Areas with neighbors, and areas without, which are excluded.
    neighbors : float
        Mean number of neighbors.
    reason : str
        Reason for a missing index, else empty.
    index, expected : float or None
        Statistic, and its expectation under permutation, -1 / (areas - 1).
    z : float or None
        Distance from the mean of the permutations, in their standard deviations.
    p : float or None
        Two-sided share of permutations at least as far from their mean.
    permutations : int
        Number of permutations.
    """

    areas: int
    islands: int
    neighbors: float
    reason: str = ""
    index: float | None = None
    expected: float | None = None
    z: float | None = None
    p: float | None = None
    permutations: int = PERMUTATIONS

    def as_dict(self) -> dict[str, Any]:
        """Return the statistic as JSON types."""
        return asdict(self)


def neighbors(shapes: npt.NDArray[np.object_], within: float) -> sparse.csr_array:
    """Compute queen contiguity: polygons that share an edge or a corner.

    Parameters
    ----------
    shapes : ndarray of object, shape (n_areas,)
        Polygons in a projected coordinate system.
    within : float
        Maximum gap between touching boundaries, in units of that system.

    Returns
    -------
    csr_array, shape (n_areas, n_areas)
        1 for neighbors, else 0.
    """
    left, right = shapely.STRtree(shapes).query(shapes, predicate="dwithin", distance=within)
    other = left != right
    ones = np.ones(int(other.sum()))
    return sparse.csr_array((ones, (left[other], right[other])), shape=(len(shapes), len(shapes)))


def moran(values: Floats, touching: sparse.csr_array, *, seed: int, permutations: int = PERMUTATIONS) -> Moran:
    """Compute Moran's I with row-standardized weights and a permutation test.

    This replaces esda, which permutes with NumPy's global random state; tests compare both.

    Parameters
    ----------
    values : ndarray of float64, shape (n_areas,)
        Rates without NaN.
    touching : csr_array, shape (n_areas, n_areas)
        Output of `neighbors`.
    seed : int
        Seed of the study.
    permutations : int, default 999
        Number of permutations.

    Notes
    -----
    I = (n / S0) * sum_ij(w_ij z_i z_j) / sum_i(z_i**2), z = values - mean, S0 = sum_ij(w_ij) [1]_.

    References
    ----------
    .. [1] P. A. P. Moran, "Notes on continuous stochastic phenomena", Biometrika 37 (1950), 17-23.
    """
    islands = touching.sum(axis=1) == 0
    touching, values = touching[~islands][:, ~islands], values[~islands]
    n = len(values)
    degree = touching.sum(axis=1)
    about = Moran(n, int(islands.sum()), float(degree.mean()) if n else 0.0, permutations=permutations)
    if n < FEWEST_AREAS or np.ptp(values) == 0:
        few = f"fewer than {FEWEST_AREAS} areas have a neighbor"
        return replace(about, reason=few if n < FEWEST_AREAS else "the rate does not vary")
    weights = sparse.diags_array(1 / degree) @ touching
    centered = values - values.mean()
    spread = float(centered @ centered)
    index = float(centered @ (weights @ centered)) / spread  # S0 = n: each row of weights sums to 1
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(b"moran"),)))
    shuffled = np.empty(permutations)
    for number in range(permutations):
        mixed = generator.permutation(centered)
        shuffled[number] = mixed @ (weights @ mixed) / spread
    away = np.abs(shuffled - shuffled.mean())
    # The tolerance makes the comparison independent of rounding, which differs between processors.
    beyond = int((away >= abs(index - shuffled.mean()) * (1 - 1e-9) - _ROUNDING).sum())
    return replace(
        about,
        index=index,
        expected=-1 / (n - 1),
        # If all areas are neighbors of each other, all permutations have the same index.
        z=float((index - shuffled.mean()) / shuffled.std()) if shuffled.std() > _ROUNDING else None,
        p=(beyond + 1) / (permutations + 1),
    )

"""Correlations between the levels of areas and what is known of them, and how levels lie on the map.

Plain arrays and frames: no files, no Dask. Areas are the unit here, and each counts once, whoever lives there.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from scipy import sparse

from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.pipeline.crs import feet_per_unit
from patrolscope.pipeline.study.config import Estimate

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LEVEL = "level"
FEWEST_AREAS = 3  # two points always lie on a line
# Replicates held at once: 100 x 6,000 areas x 8 bytes are 5 MB for each array of ranks.
_AT_ONCE = 100
PERMUTATIONS = 999
_ROUNDING = 1e-12  # of an index, which lies around 0 and 1
# Boundaries that touch. Files with corners rounded one by one leave gaps of less than a foot between neighbors.
TOUCHING_FT = 1.0


def usable_areas(areas: pd.DataFrame, levels: pd.DataFrame, persons_above: int) -> npt.NDArray[np.bool_]:
    """Areas of more than `persons_above` persons that have images, (areas,)."""
    return ((areas["persons"] > persons_above) & levels[LEVEL].notna().to_numpy()).to_numpy()


def area_variables(areas: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """Level, density, income, shares of people and mean distances of every area; missing where not known.

    Parameters
    ----------
    areas, levels : `AREAS` and `results.area_table`, in the same order
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
    areas: gpd.GeoDataFrame, levels: pd.DataFrame, rules: Estimate, crs: str
) -> dict[str, list[dict[str, Any]] | dict[str, Any]]:
    """Correlations and Moran's I of a study, as its summary holds them.

    Parameters
    ----------
    areas, levels : `AREAS` and `results.area_table`, in the same order
    crs : projected system of the city
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
    """Pearson and Spearman correlation of every pair of variables, with intervals by resampling areas.

    A replicate draws as many areas as there are, with replacement, and is the same for every pair; ranks are taken
    anew in each. A replicate in which one of the two does not vary has no correlation: it is left out and not counted.

    Parameters
    ----------
    variables : (areas, variables); an area enters a pair when it has both
    percent : of the replicates that an interval holds, in the middle

    Returns
    -------
    one entry a pair, in the order of the columns: with, covariate (names), areas, reason (why there is none, else
    empty), and for pearson and spearman: the estimate, <name>_lower, <name>_upper, <name>_replicates
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
    """How often each replicate draws each area, (replicates, areas); every replicate has a seed of its own."""
    counts = np.empty((len(numbers), areas), dtype=np.int64)
    for row, number in enumerate(numbers):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(b"areas"), number)))
        counts[row] = np.bincount(generator.integers(areas, size=areas), minlength=areas) if areas else 0
    return counts


def _pairwise(variables: pd.DataFrame, counts: Counts) -> Floats:
    """Correlations where area a stands counts[r, a] times, (replicates, pairs, 2): Pearson, Spearman."""
    values = variables.to_numpy()
    known = ~np.isnan(values)
    # Most pairs share their areas: each variable is ranked once for each set of areas, not once for each pair.
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
        # Ranks are whole or half numbers, so their variance is 0 exactly where a variable does not vary.
        by_value = np.where(np.isnan(by_rank), np.nan, _weighted_correlation(plain[0], plain[1], weights))
        found.append(np.stack([by_value, by_rank], axis=-1))
    return np.stack(found, axis=1) if found else np.empty((len(counts), 0, 2))


def weighted_ranks(values: Floats, counts: Counts) -> Floats:
    """Mean rank of each value in the list in which it stands `counts` times, as scipy ranks that list.

    Parameters
    ----------
    values : (n,) without missing values
    counts : (replicates, n)

    Returns
    -------
    (replicates, n) : from 1 on; equal values share the mean of their ranks
    """
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    if len(distinct) == 0:
        return np.empty(counts.shape)
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    stands = np.add.reduceat(counts[:, order], starts, axis=1)
    return np.asarray((np.cumsum(stands, axis=1) - (stands - 1) / 2)[:, group])


def _weighted_correlation(left: Floats, right: Floats, counts: Counts) -> Floats:
    """Pearson correlation with whole weights, (replicates,); missing where one of the two does not vary."""
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
    """Whether areas with alike levels lie side by side: near 1 they do, near 0 levels lie as if shuffled."""

    areas: int  # with a neighbor
    islands: int  # without one: left out
    neighbors: float  # mean number of an area
    reason: str = ""  # why there is no index, else empty
    index: float | None = None
    expected: float | None = None  # of shuffled levels: -1 / (areas - 1)
    z: float | None = None  # distance from the mean of the permutations, in their standard deviations
    p: float | None = None  # share of permutations at least as far from their mean, on either side
    permutations: int = PERMUTATIONS

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def neighbors(shapes: npt.NDArray[np.object_], within: float) -> sparse.csr_array:
    """Which polygons share an edge or a corner (queen contiguity), (n, n) of 0 and 1.

    Parameters
    ----------
    shapes : in a projected system
    within : how far apart boundaries may lie and still touch, in its unit
    """
    left, right = shapely.STRtree(shapes).query(shapes, predicate="dwithin", distance=within)
    other = left != right
    ones = np.ones(int(other.sum()))
    return sparse.csr_array((ones, (left[other], right[other])), shape=(len(shapes), len(shapes)))


def moran(values: Floats, touching: sparse.csr_array, *, seed: int, permutations: int = PERMUTATIONS) -> Moran:
    """Moran's I with row-standardized weights, and its test by shuffling the values over the areas.

    Own code: esda's, which it is tested against, shuffles by numpy's global random state.

    Parameters
    ----------
    values : (n,) without missing values
    touching : (n, n) from `neighbors`
    """
    islands = touching.sum(axis=1) == 0
    touching, values = touching[~islands][:, ~islands], values[~islands]
    n = len(values)
    degree = touching.sum(axis=1)
    about = Moran(n, int(islands.sum()), float(degree.mean()) if n else 0.0, permutations=permutations)
    if n < FEWEST_AREAS or np.ptp(values) == 0:
        few = f"fewer than {FEWEST_AREAS} areas have a neighbor"
        return replace(about, reason=few if n < FEWEST_AREAS else "the level does not vary")
    weights = sparse.diags_array(1 / degree) @ touching
    centered = values - values.mean()
    spread = float(centered @ centered)
    index = float(centered @ (weights @ centered)) / spread  # the weights of each row, and so of all, sum to 1 (to n)
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(b"moran"),)))
    shuffled = np.empty(permutations)
    for number in range(permutations):
        mixed = generator.permutation(centered)
        shuffled[number] = mixed @ (weights @ mixed) / spread
    away = np.abs(shuffled - shuffled.mean())
    # What is the same but for rounding, which differs from one processor to the next, is as far away.
    beyond = int((away >= abs(index - shuffled.mean()) * (1 - 1e-9) - _ROUNDING).sum())
    return replace(
        about,
        index=index,
        expected=-1 / (n - 1),
        # Where every area touches every other, all permutations have the same index.
        z=float((index - shuffled.mean()) / shuffled.std()) if shuffled.std() > _ROUNDING else None,
        p=(beyond + 1) / (permutations + 1),
    )

"""Tables of estimates with intervals, of rates by area, and of the agreement with a known truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.intervals import Method, intervals, spread
from patrolscope.analysis.estimators.rates import TOTAL_KEY, Analysis, Population, area_means, group_labels
from patrolscope.analysis.stages.published import Released

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Accelerations = Mapping[str, Floats]  # by quantity, shape (1 + n_groups,), everyone first

AVERAGE = "All"  # the group of everyone, whose rate is the city average
QUANTITIES = ("weighted_mean", "relative_to_average")
# With fewer positive images a percentile interval is too narrow: k of them have a standard deviation of about sqrt(k)
# and are far from normal, and without any the interval is degenerate.
POSITIVES_FOR_AN_INTERVAL = 20


def released_table(
    analysis: str,
    released: Released,
    percent: float,
    method: Method = "percentile",
    acceleration: Accelerations | None = None,
    gamma: Bools | None = None,
) -> pd.DataFrame:
    """Return the estimates of one analysis with intervals, one row per group and quantity.

    Parameters
    ----------
    analysis : str
    released : Released
    percent : float
        Nominal interval coverage.
    method : str, default "percentile"
        Method of the interval.
    acceleration : mapping of str to ndarray, optional
        Required for BCa intervals.
    gamma : ndarray of bool, shape (1 + n_groups,), optional
        Groups, everyone first, whose replicates are quantiles of gamma distributions: their intervals are percentiles.

    Returns
    -------
    DataFrame
        analysis, group (display name), key (name in the released file), quantity, estimate, lower, upper, sd,
        replicates (those with an estimate), interval_method. The city average is the group `All`. Groups without an
        estimate have no row.
    """
    labels = group_labels(analysis)
    few = np.zeros(1 + len(released.keys), dtype=np.bool_) if gamma is None else gamma
    parts = []
    for quantity, keys, estimate, replicates, accelerated in _quantities(released, acceleration):
        ends = intervals(replicates, estimate, percent, acceleration=accelerated)
        replaced = few[:1] if keys == (TOTAL_KEY,) else few[1:]
        lower, upper = (
            np.where(replaced, by_gamma, end) for by_gamma, end in zip(ends["percentile"], ends[method], strict=True)
        )
        groups = [AVERAGE if key == TOTAL_KEY else labels.get(key, key) for key in keys]
        columns = {"group": groups, "key": keys, "quantity": quantity, "estimate": estimate}
        counted = (~np.isnan(replicates)).sum(axis=0)
        how = np.where(np.isnan(lower), "", np.where(replaced, "gamma", method))
        spreads = {"lower": lower, "upper": upper, "sd": spread(replicates), "replicates": counted}
        spreads["interval_method"] = how
        parts.append(pd.DataFrame({"analysis": analysis, **columns, **spreads}))
    table = pd.concat(parts, ignore_index=True)
    return table[table["estimate"].notna()]


def interval_table(analysis: str, released: Released, percent: float, acceleration: Accelerations) -> pd.DataFrame:
    """Return the intervals of one analysis by every method.

    Parameters
    ----------
    analysis : str
    released : Released
    percent : float
        Nominal interval coverage.
    acceleration : mapping of str to ndarray
        For BCa intervals.

    Returns
    -------
    DataFrame
        analysis, key, quantity, method, lower, upper, one row per group, quantity, and method. Groups without an
        estimate have no row.
    """
    parts = []
    for quantity, keys, estimate, replicates, accelerated in _quantities(released, acceleration):
        for method, (lower, upper) in intervals(replicates, estimate, percent, acceleration=accelerated).items():
            columns = {"key": keys, "quantity": quantity, "method": method, "lower": lower, "upper": upper}
            parts.append(pd.DataFrame({"analysis": analysis, **columns})[~np.isnan(estimate)])
    return pd.concat(parts, ignore_index=True)


def _quantities(
    released: Released, acceleration: Accelerations | None
) -> Iterator[tuple[str, tuple[str, ...], Floats, Floats, Floats | None]]:
    """Yield quantity, keys, estimates, replicates, and acceleration: relative rates, rates, and the city average."""
    total, replicate_totals = np.array([released.total]), released.replicate_totals[:, None]
    for quantity, keys, estimate, replicates, rows in (
        ("relative_to_average", released.keys, released.relative, released.replicate_relative, slice(1, None)),
        ("weighted_mean", released.keys, released.means, released.replicate_means, slice(1, None)),
        ("weighted_mean", (TOTAL_KEY,), total, replicate_totals, slice(0, 1)),
    ):
        yield quantity, keys, estimate, replicates, None if acceleration is None else acceleration[quantity][rows]


def with_counts(table: pd.DataFrame, analysis: Analysis, population: Population, images: Counts) -> pd.DataFrame:
    """Add the areas, images, and residents behind each row of `released_table`.

    Parameters
    ----------
    table : DataFrame
        From `released_table`.
    analysis : Analysis
    population : Population
        That of the analysis.
    images : ndarray of int64, shape (n_areas,)

    Returns
    -------
    DataFrame
        With areas, images, and persons. Images count where the group has residents: for population groups, nearly all.
    """
    behind = (analysis.weights > 0) & population.areas[:, None]
    counts = pd.DataFrame(
        {
            "areas": [*(behind & (images > 0)[:, None]).sum(axis=0), (population.areas & (images > 0)).sum()],
            "images": [*(behind.T @ images), images[population.areas].sum()],
            "persons": [*np.where(population.areas[:, None], analysis.weights, 0).sum(axis=0), np.nan],
        },
        index=[*analysis.keys, TOTAL_KEY],
    )
    return table.join(counts, on="key")


def with_bounds(table: pd.DataFrame, average: float, lowest: float) -> pd.DataFrame:
    """Add the lowest possible estimate, and mark groups of which only an upper bound is known.

    Parameters
    ----------
    table : DataFrame
        quantity, positives, and interval_method.
    average : float
        City average of the analysis.
    lowest : float
        Rate of a group without a positive image: the false omission rate. NaN if there is no such rate.

    Returns
    -------
    DataFrame
        With bound (`below` if no image is positive and the interval is a gamma interval) and floor.
    """
    few = (table["positives"] == 0) & (table["interval_method"] == "gamma")
    floor = np.where(table["quantity"] == "weighted_mean", lowest, lowest / average if average else np.nan)
    return table.assign(bound=np.where(few, "below", ""), floor=floor)


def from_the_highest(groups: pd.DataFrame) -> pd.DataFrame:
    """Sort groups by descending estimate, then by name."""
    return groups.sort_values(["estimate", "group"], ascending=[False, True], kind="stable")


def area_table(
    areas: pd.DataFrame, counts: pd.DataFrame, inside: Counts, probabilities: tuple[float, float]
) -> pd.DataFrame:
    """Return images, rates, and mean distances of every area.

    Parameters
    ----------
    areas : DataFrame
        `AREAS`.
    counts : DataFrame
        `AREA_CLASS_COUNTS`.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    probabilities : tuple of float
        Pr(police vehicle) of positive and negative images.
    """
    images = inside.sum(axis=1)
    rate = area_means(inside[:, 1], images, *probabilities)
    seen = images > 0
    persons = areas["persons"].to_numpy()
    average = (rate[seen] * persons[seen]).sum() / persons[seen].sum() if persons[seen].sum() else np.nan
    by_area = counts.groupby("area").sum(numeric_only=True, min_count=1).reindex(areas["area"])
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "area": areas["area"].to_numpy(),
                "images": images,
                "positives": inside[:, 1],
                "deployment_rate": rate,
                "relative_to_average": rate / average,
                "adjusted_level": by_area["adjusted_sum"].to_numpy() / images,
                "felony_distance_ft": (by_area["felony_ft_sum"] / by_area["felony_images"]).to_numpy(),
                "station_distance_ft": by_area["station_ft_sum"].to_numpy() / images,
            }
        )


def agreement(table: pd.DataFrame, true_rates: pd.Series[float], areas: pd.DataFrame, inside: Counts) -> dict[str, Any]:
    """Count the neighborhoods whose true relative rate lies in its interval.

    Parameters
    ----------
    table : DataFrame
        Rows of `with_counts`.
    true_rates : Series of float
        True deployment rate by area.
    areas : DataFrame
        `AREAS`.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images. The truth, too, is averaged over areas with images.

    Returns
    -------
    dict of str to Any
        Counts and shares over all neighborhoods, and over those with enough positive images for an interval.
    """
    rate = areas["area"].map(true_rates).to_numpy(dtype=np.float64)
    persons = np.where(inside.sum(axis=1) > 0, areas["persons"].to_numpy(), 0.0)
    average = (rate * persons).sum() / persons.sum()
    neighborhoods = pd.DataFrame(
        {"name": areas["neighborhood"], "sum": rate * persons, "persons": persons, "positives": inside[:, 1]}
    )
    neighborhoods = neighborhoods.groupby("name").sum()
    rows = table[(table["analysis"] == "neighborhood") & (table["quantity"] == "relative_to_average")].set_index("key")
    # A neighborhood without residents has no estimate and no row; one without an interval is not counted.
    rows = rows[rows["lower"].notna()]
    behind = neighborhoods.loc[rows.index]
    truth = behind["sum"] / behind["persons"] / average
    contained = truth.between(rows["lower"], rows["upper"])
    enough = behind["positives"] >= POSITIVES_FOR_AN_INTERVAL
    return {
        "neighborhoods": len(rows),
        "contained": int(contained.sum()),
        "share": float(contained.mean()) if len(rows) else None,
        "with_enough_positives": int(enough.sum()),
        "enough_positives": POSITIVES_FOR_AN_INTERVAL,
        "contained_with_enough": int(contained[enough].sum()),
        "share_with_enough": float(contained[enough].mean()) if enough.any() else None,
        "rank_correlation": float(stats.spearmanr(truth, rows["estimate"]).statistic) if len(rows) > 2 else None,
    }

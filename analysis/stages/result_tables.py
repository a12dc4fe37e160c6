"""From counts to tables: estimates with intervals, levels by area, agreement with a known truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.intervals import Method, intervals, spread
from patrolscope.analysis.estimators.rates import (
    TOTAL_KEY,
    Analysis,
    Population,
    area_means,
    group_labels,
)
from patrolscope.analysis.stages.published import Released

Floats = npt.NDArray[np.float64]

AVERAGE = "All"  # the group that holds everyone: the average that others are relative to


QUANTITIES = ("weighted_mean", "relative_to_average")
Accelerations = Mapping[str, Floats]  # by quantity, (1 + groups,), everyone first


def released_table(
    analysis: str,
    released: Released,
    percent: float,
    method: Method = "percentile",
    acceleration: Accelerations | None = None,
) -> pd.DataFrame:
    """One row a group and quantity of one analysis, as released: estimate, interval and spread over its replicates.

    The overall mean, to which groups are relative, is the group `All`. A group without an estimate has no row.

    Parameters
    ----------
    percent : of the replicates that an interval holds, in the middle
    method : of the interval
    acceleration : needed for bca

    Returns
    -------
    analysis, group (name for a reader), key (name in the released file), quantity, estimate, lower, upper, sd,
    replicates (those that touch the group)
    """
    labels = group_labels(analysis)
    parts = []
    for quantity, keys, estimate, replicates, accelerated in _quantities(released, acceleration):
        lower, upper = intervals(replicates, estimate, percent, acceleration=accelerated)[method]
        groups = [AVERAGE if key == TOTAL_KEY else labels.get(key, key) for key in keys]
        columns = {"group": groups, "key": keys, "quantity": quantity, "estimate": estimate}
        counted = (~np.isnan(replicates)).sum(axis=0)
        spreads = {"lower": lower, "upper": upper, "sd": spread(replicates), "replicates": counted}
        parts.append(pd.DataFrame({"analysis": analysis, **columns, **spreads}))
    table = pd.concat(parts, ignore_index=True)
    return table[table["estimate"].notna()]


def interval_table(analysis: str, released: Released, percent: float, acceleration: Accelerations) -> pd.DataFrame:
    """Intervals of one analysis by every method, with the sums that BCa rests on.

    Returns
    -------
    analysis, key, quantity, method, lower, upper, one row a group, quantity and method; groups without an estimate have
    none
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
    """Quantity, keys, estimates, replicates and acceleration: relative levels, means, and the mean of everyone."""
    total, replicate_totals = np.array([released.total]), released.replicate_totals[:, None]
    for quantity, keys, estimate, replicates, rows in (
        ("relative_to_average", released.keys, released.relative, released.replicate_relative, slice(1, None)),
        ("weighted_mean", released.keys, released.means, released.replicate_means, slice(1, None)),
        ("weighted_mean", (TOTAL_KEY,), total, replicate_totals, slice(0, 1)),
    ):
        yield quantity, keys, estimate, replicates, None if acceleration is None else acceleration[quantity][rows]


def with_counts(table: pd.DataFrame, analysis: Analysis, frame: Population, images: Counts) -> pd.DataFrame:
    """Rows of `released_table`, and what stands behind each: areas, images, persons.

    `images` counts the images in areas where the group lives: for population groups nearly all.
    """
    behind = (analysis.weights > 0) & frame.areas[:, None]
    counts = pd.DataFrame(
        {
            "areas": [*(behind & (images > 0)[:, None]).sum(axis=0), (frame.areas & (images > 0)).sum()],
            "images": [*(behind.T @ images), images[frame.areas].sum()],
            "persons": [*np.where(frame.areas[:, None], analysis.weights, 0).sum(axis=0), np.nan],
        },
        index=[*analysis.keys, TOTAL_KEY],
    )
    return table.join(counts, on="key")


def from_the_highest(groups: pd.DataFrame) -> pd.DataFrame:
    """Groups by falling estimate; ties by name."""
    return groups.sort_values(["estimate", "group"], ascending=[False, True], kind="stable")


def area_table(
    areas: pd.DataFrame, cells: pd.DataFrame, inside: Counts, probabilities: tuple[float, float]
) -> pd.DataFrame:
    """Level of every area: images, positives, mean calibrated probability, the same relative to the overall mean."""
    images = inside.sum(axis=1)
    level = area_means(inside[:, 1], images, *probabilities)
    seen = images > 0
    persons = areas["persons"].to_numpy()
    overall = (level[seen] * persons[seen]).sum() / persons[seen].sum() if persons[seen].sum() else np.nan
    by_area = cells.groupby("area").sum(numeric_only=True, min_count=1).reindex(areas["area"])
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "area": areas["area"].to_numpy(),
                "images": images,
                "positives": inside[:, 1],
                "level": level,
                "relative_to_average": level / overall,
                "adjusted_level": by_area["adjusted_sum"].to_numpy() / images,
                "felony_distance_ft": (by_area["felony_ft_sum"] / by_area["felony_images"]).to_numpy(),
                "station_distance_ft": by_area["station_ft_sum"].to_numpy() / images,
            }
        )


# Below this many positive images a percentile interval is known to be too narrow: with k of them its spread is some
# sqrt(k) of k, far from normal, and with none it has no width at all.
POSITIVES_FOR_AN_INTERVAL = 20


def agreement(
    table: pd.DataFrame, true_levels: pd.Series[float], areas: pd.DataFrame, inside: Counts
) -> dict[str, Any]:
    """How many true neighborhood levels, relative to average, lie in their intervals.

    Parameters
    ----------
    table : rows of `with_counts`
    true_levels : by area, the probability that an image there shows a police vehicle
    inside : (areas, 2) images that are negative, positive; the truth, too, is averaged over areas with an image

    Returns
    -------
    counts and shares over all neighborhoods, and over those with enough positive images for an interval
    """
    level = areas["area"].map(true_levels).to_numpy(dtype=np.float64)
    persons = np.where(inside.sum(axis=1) > 0, areas["persons"].to_numpy(), 0.0)
    overall = (level * persons).sum() / persons.sum()
    by_place = pd.DataFrame(
        {"place": areas["neighborhood"], "sum": level * persons, "persons": persons, "positives": inside[:, 1]}
    )
    by_place = by_place.groupby("place").sum()
    rows = table[(table["analysis"] == "neighborhood") & (table["quantity"] == "relative_to_average")].set_index("key")
    # A place without people has no estimate, and so no row; one without an interval holds and misses nothing.
    rows = rows[rows["lower"].notna()]
    places = by_place.loc[rows.index]
    truth = places["sum"] / places["persons"] / overall
    covered = truth.between(rows["lower"], rows["upper"])
    enough = places["positives"] >= POSITIVES_FOR_AN_INTERVAL
    return {
        "neighborhoods": len(rows),
        "covered": int(covered.sum()),
        "share": float(covered.mean()) if len(rows) else None,
        "with_enough_positives": int(enough.sum()),
        "enough_positives": POSITIVES_FOR_AN_INTERVAL,
        "covered_with_enough": int(covered[enough].sum()),
        "share_with_enough": float(covered[enough].mean()) if enough.any() else None,
        "rank_correlation": float(stats.spearmanr(truth, rows["estimate"]).statistic) if len(rows) > 2 else None,
    }

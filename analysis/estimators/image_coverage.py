"""Image coverage: images by hour, day, and area, and residents of areas with few images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.hourly_counts import HourlyCounts
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.analysis.estimators.variants import Variant

FEW = (10, 100)  # rates of areas with fewer images are unreliable
QUIET_HOURS = 3
EVERYONE = "Everyone"
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageCoverage:
    """Location and time of the analyzed images.

    Attributes
    ----------
    counts : DataFrame
        by (hour, day, area), value, images, positives. The empty area code stands for images outside all areas.
    people : DataFrame
        Output of `people_table`.
    areas : DataFrame, n_areas rows
        Images, and residents in total and per race, for curves.
    summary : dict
        Totals, unevenness, and the hours with the fewest images.
    """

    counts: pd.DataFrame
    people: pd.DataFrame
    areas: pd.DataFrame
    summary: dict[str, Any]


def cover(counts: HourlyCounts, base: Variant) -> ImageCoverage:
    """Compute the coverage by the images of the base; hours and days include images outside all areas."""
    by_class = counts.by_hour[:, base.days].astype(np.int64)  # (2, n_days, n_areas + 1, 24)
    return coverage_of(
        by_class.sum(axis=(1, 2)).T,
        by_class.sum(axis=(2, 3)).T,
        by_class.sum(axis=(1, 3)).T,
        days=counts.days[base.days],
        areas=base.areas,
    )


def coverage_of(
    by_hour: Counts, by_day: Counts, by_area: Counts, *, days: pd.DatetimeIndex, areas: pd.DataFrame
) -> ImageCoverage:
    """Compute coverage from images by hour, day, and area.

    Parameters
    ----------
    by_hour : ndarray of int64, shape (24, 2)
        Negative and positive images per local hour.
    by_day : ndarray of int64, shape (n_days, 2)
        Negative and positive images per local day.
    by_area : ndarray of int64, shape (n_areas + 1, 2)
        Negative and positive images per area; the last row is outside all areas.
    days : DatetimeIndex
        Local days.
    areas : DataFrame, n_areas rows
        Areas, table `AREAS`.
    """
    parts = (
        ("hour", [f"{hour}" for hour in range(len(by_hour))], by_hour),
        ("day", [f"{day:%Y-%m-%d}" for day in days], by_day),
        ("area", [*areas["area"], ""], by_area),
    )
    tables = [
        pd.DataFrame({"by": name, "value": values, "images": classes.sum(axis=1), "positives": classes[:, 1]})
        for name, values, classes in parts
    ]
    images = tables[2]["images"].to_numpy()[:-1]
    living = pd.DataFrame({"images": images, "borough": areas["borough"].to_numpy()})
    living[["persons", *RACES]] = areas[["persons", *RACES]].to_numpy()
    people = people_table(living)
    hours = tables[0].sort_values(["images", "value"], kind="stable")
    summary = {
        "images": int(tables[1]["images"].sum()),
        "outside_every_area": int(tables[2]["images"].iloc[-1]),
        "days": len(days),
        "areas": len(areas),
        "areas_never_seen": int((images == 0).sum()),
        **{f"areas_below_{few}": int((images < few).sum()) for few in FEW},
        "gini_of_images_over_areas": gini(images),
        "images_in_the_busiest_tenth_of_areas": _busiest(images, 0.1),
        "hours_with_the_fewest_images": {
            row["value"]: int(row["images"]) for row in hours.head(QUIET_HOURS).to_dict("records")
        },
    }
    return ImageCoverage(pd.concat(tables, ignore_index=True), people, living, summary)


def people_table(living: pd.DataFrame) -> pd.DataFrame:
    """Compute shares of residents in areas with few images or none.

    Parameters
    ----------
    living : DataFrame, n_areas rows
        images, borough, persons, and the columns `RACES`.

    Returns
    -------
    DataFrame
        kind (everyone, race, borough), group, persons, share_never_seen, share_below_10, share_below_100. Shares are
        NaN for groups without residents.
    """
    groups = [("everyone", EVERYONE, living["persons"])]
    groups += [("race", name, living[column]) for column, name in RACES.items()]
    groups += [
        ("borough", borough, living["persons"].where(living["borough"] == borough, 0.0))
        for borough in sorted(living["borough"].dropna().unique())
    ]
    rows = []
    for kind, group, persons in groups:
        total = persons.sum()
        row = {"kind": kind, "group": group, "persons": total}
        for name, below in (("never_seen", 1), *((f"below_{few}", few) for few in FEW)):
            row[f"share_{name}"] = persons[living["images"] < below].sum() / total if total else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def gini(counts: npt.NDArray[np.int64]) -> float:
    """Compute the Gini coefficient of nonnegative counts.

    Returns
    -------
    float
        0 if all counts are equal, near 1 if one holds everything; NaN if all are 0.

    Notes
    -----
    G = 2 * sum_i(i * x_i) / (n * sum_i(x_i)) - (n + 1) / n, x in ascending order, i from 1. It equals half the relative
    mean absolute difference (Gini 1912).
    """
    if counts.sum() == 0:
        return float("nan")
    ordered = np.sort(counts)
    rank = np.arange(1, len(ordered) + 1)
    return float((2 * (rank * ordered).sum() / ordered.sum() - (len(ordered) + 1)) / len(ordered))


def _busiest(counts: npt.NDArray[np.int64], share: float) -> float:
    """Compute the share of the total in the given share of areas with the highest counts."""
    if counts.sum() == 0:
        return float("nan")
    most = np.sort(counts)[::-1][: max(1, round(share * len(counts)))]
    return float(most.sum() / counts.sum())


def cumulative(
    images: npt.NDArray[np.integer], persons: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.integer], Floats]:
    """Compute the cumulative distribution of residents over images per area.

    Returns
    -------
    images : ndarray of int
        Distinct numbers of images in ascending order.
    shares : ndarray of float64
        Share of residents in areas with at most as many images.
    """
    order = np.argsort(images, kind="stable")
    at, last = np.unique(images[order][::-1], return_index=True)
    return at, persons[order].cumsum()[len(images) - 1 - last] / persons.sum()

"""What the images cover: hours, days, areas, and the people who live where no image was taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.hourly_counts import HOURS, HourlyCounts
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.analysis.estimators.variants import Variant

FEW = (10, 100)  # images of an area below which its mean says little
QUIET_HOURS = 3
EVERYONE = "Everyone"
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageCoverage:
    """Where and when the analyzed images are.

    Attributes
    ----------
    counts : by (hour, day, area), value, images, positives; the area without a code is outside every area
    people : kind (everyone, race, borough), group, persons, share_never_seen, share_below_10, share_below_100
    areas : images and persons of every area and group, for curves
    summary : totals, unevenness, the hours with the fewest images
    """

    counts: pd.DataFrame
    people: pd.DataFrame
    areas: pd.DataFrame
    summary: dict[str, Any]


def cover(counts: HourlyCounts, base: Variant) -> ImageCoverage:
    """Coverage by the analyzed images, those of `base`: also the ones outside every area, in hours and days."""
    by_class = counts.by_hour[:, base.days].astype(np.int64)  # classes, days, areas and outside, hours
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
    """Coverage by images counted in three ways, each (..., 2): those that are negative, positive.

    Parameters
    ----------
    by_hour : (24, 2) of the local time
    by_day : (days, 2)
    by_area : (areas + 1, 2), the last place outside every area
    days : local days
    areas : `AREAS`
    """
    parts = (
        ("hour", [f"{hour}" for hour in range(HOURS)], by_hour),
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
    """Shares of people in areas with few images or none; missing where nobody is of a group.

    Parameters
    ----------
    living : one row an area: images, borough, persons, and persons of each race
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
    """Gini coefficient: 0 where all have as much, toward 1 where one has all; missing where there is nothing."""
    if counts.sum() == 0:
        return float("nan")
    rising = np.sort(counts)
    rank = np.arange(1, len(rising) + 1)
    return float((2 * (rank * rising).sum() / rising.sum() - (len(rising) + 1)) / len(rising))


def _busiest(counts: npt.NDArray[np.int64], share: float) -> float:
    """Share of all that the given share of places has, those with the most."""
    if counts.sum() == 0:
        return float("nan")
    most = np.sort(counts)[::-1][: max(1, round(share * len(counts)))]
    return float(most.sum() / counts.sum())


def cumulative(
    images: npt.NDArray[np.integer], persons: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.integer], Floats]:
    """Share of people in areas with at most so many images: numbers of images, rising, and shares."""
    order = np.argsort(images, kind="stable")
    at, last = np.unique(images[order][::-1], return_index=True)
    return at, persons[order].cumsum()[len(images) - 1 - last] / persons.sum()

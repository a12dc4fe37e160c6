"""Calibrated level of every place from counts of its areas, with an interval: made anew at every filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.rates import area_means
from patrolscope.analysis.stages.results import UNKNOWN, Results
from patrolscope.dashboards.maps.city import OUTSIDE, City

Floats = npt.NDArray[np.float64]


def place_levels(
    city: City, level: str, counts: npt.NDArray[np.int64], calibration: TwoClass | None, *, percent: float
) -> pd.DataFrame:
    """What a map says of each place of a level.

    The level of a place is the mean over its residents of its areas' calibrated means, relative to that of all
    residents (docs/method.md); areas without images count nowhere, and areas without residents only for their own
    level. The images of a place are therefore those of areas with residents, as in estimates/. The interval is that of
    images drawn again, by its linear approximation: the areas' shares are independent, and the average moves with them.

    Parameters
    ----------
    counts : (areas + 1, 2) images that are not positive, positive; the last row is outside every area
    percent : of the interval

    Returns
    -------
    place, images, positives, share, images_without_residents (in other areas of the place), persons, relative, lower,
    upper, interval (percent and method); a row a place, in the level's order. Without a calibration the levels are
    missing.
    """
    places = city.level(level)
    inside = places.of_area != OUTSIDE
    number = places.of_area[inside]

    def summed(values: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> Floats:
        return np.bincount(number, values[inside], minlength=len(places.places)).astype(np.float64)

    images, positives = counts[:-1].sum(axis=1), counts[:-1, 1]
    persons = city.areas["persons"].to_numpy(dtype=np.float64)
    # An area where nobody lives has a level of its own, though none that an average over residents sees.
    alone = level == "area"
    counted = (persons > 0) | alone
    made = pd.DataFrame({"place": places.places})
    made["images"] = summed(images * counted).astype(np.int64)
    made["positives"] = summed(positives * counted).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        made["share"] = made["positives"] / made["images"]
    made["images_without_residents"] = summed(images * ~counted).astype(np.int64)
    made["persons"] = summed(persons)
    made[["relative", "lower", "upper"]] = np.nan
    made["interval"] = ""
    if calibration is None:
        return made
    weights = np.where(images > 0, persons, 0.0)
    own = np.where(images > 0, 1.0, 0.0) if alone else weights
    means = np.nan_to_num(area_means(positives, images, calibration.ppv, calibration.false_omission_rate))
    share = positives / np.maximum(images, 1)
    spread = (calibration.ppv - calibration.false_omission_rate) ** 2 * share * (1 - share) / np.maximum(images, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        overall = (weights * means).sum() / weights.sum()
        of_all = weights / weights.sum()
        total = summed(own)
        relative = summed(own * means) / total / overall
        within = summed(own**2 * spread) / total**2
        together = summed(own * of_all * spread) / total
        variance = (within - 2 * relative * together + relative**2 * (of_all**2 * spread).sum()) / overall**2
    half = stats.norm.ppf(0.5 + percent / 200) * np.sqrt(np.maximum(variance, 0))
    made["relative"] = relative
    made["lower"], made["upper"] = np.maximum(relative - half, 0), relative + half
    made.loc[made["lower"].notna(), "interval"] = f"{percent:g} %, linear approximation"
    return made


def with_bootstrap(levels: pd.DataFrame, level: str, stored: Results, *, percent: float) -> pd.DataFrame:
    """The same with the study's own intervals, where it has some of this level's places.

    Parameters
    ----------
    levels : of all images
    stored : two-class estimates
    """
    rows = stored.groups(level).set_index("key")[["lower", "upper"]].reindex(levels["place"])
    known = rows["lower"].notna().to_numpy()
    made = levels.copy()
    made.loc[known, ["lower", "upper"]] = rows.to_numpy()[known]
    made.loc[known, "interval"] = f"{percent:g} %, {stored.drawn[0]} drawn again"
    return made


def level_words(row: Any) -> str:
    """Level and interval of a place, a row of its levels, for a reader."""
    if pd.isna(row["relative"]):
        return f"level {UNKNOWN}"
    interval = f"{row['lower']:.2f} to {row['upper']:.2f}; {row['interval']}"
    return f"{row['relative']:.2f} times the average ({interval})"


def images_words(row: Any, positive: str) -> str:
    """Images of a place, a row of its levels, for a reader; `positive` says what some show."""
    told = f"{row['images']:,} images, {row['positives']:,} {positive}"
    more = row["images_without_residents"]
    return f"{told}; {more:,} more where nobody lives" if more else told

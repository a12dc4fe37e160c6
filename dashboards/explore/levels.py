"""Calibrated level of every place from counts of its areas, with an interval: made anew at every filter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from analysis.calibrate import TwoClass
from analysis.estimate import area_means
from dashboards.explore.city import OUTSIDE, City

Floats = npt.NDArray[np.float64]


def place_levels(
    city: City, level: str, counts: npt.NDArray[np.int64], calibration: TwoClass | None, *, percent: float = 95
) -> pd.DataFrame:
    """What a map says of each place of a level.

    The level of a place is the mean over its residents of its areas' calibrated means, relative to that of all
    residents (docs/method.md); areas without images count nowhere. The interval is that of images drawn again, by its
    linear approximation: the areas' shares are independent, and the average moves with them.

    Parameters
    ----------
    counts : (areas + 1, 2) images that are not positive, positive; the last row is outside every area
    percent : of the interval

    Returns
    -------
    place, images, positives, share, persons, relative, lower, upper; a row a place, in the level's order. Without a
    calibration the last three are missing.
    """
    places = city.level(level)
    inside = places.of_area != OUTSIDE
    number = places.of_area[inside]

    def summed(values: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> Floats:
        return np.bincount(number, values[inside], minlength=len(places.places)).astype(np.float64)

    images, positives = counts[:-1].sum(axis=1), counts[:-1, 1]
    persons = city.areas["persons"].to_numpy(dtype=np.float64)
    made = pd.DataFrame({"place": places.places})
    made["images"], made["positives"] = summed(images).astype(np.int64), summed(positives).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        made["share"] = made["positives"] / made["images"]
    made["persons"] = summed(persons)
    made[["relative", "lower", "upper"]] = np.nan
    if calibration is None:
        return made
    # An area where nobody lives has a level of its own, though none that an average over residents sees.
    alone = level == "area"
    weights = np.where(images > 0, persons, 0.0)
    own = np.where(images > 0, 1.0, 0.0) if alone else weights
    means = np.nan_to_num(area_means(positives, images, calibration.p_positive, calibration.p_negative))
    share = positives / np.maximum(images, 1)
    spread = (calibration.p_positive - calibration.p_negative) ** 2 * share * (1 - share) / np.maximum(images, 1)
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
    return made

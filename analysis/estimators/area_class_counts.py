"""Area-class counts: images per area and class.

A group mean depends on an image only through its area and its class. About 13,600 counts therefore stand for 24.8
million images exactly. Sums of whole multiples of a power of two are exact in floating point up to 2**53 multiples, so
no count or sum depends on how the images are split into files.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.calibration import Adjusted
from patrolscope.pipeline.contract.tables import AREA_CLASS_COUNTS

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PROBABILITY_STEP = 2.0**-24  # 6e-8 of a probability
_FEET_STEP = 2.0**-6  # 5 mm
_KEY = ["area", "positive"]


def adjusted_probability(images: pd.DataFrame, adjusted: Adjusted | None) -> Floats:
    """Return the station-adjusted probability of each image, shape (n,); NaN without such a calibration.

    Parameters
    ----------
    images : DataFrame
        conf (missing counts as 0) and station_distance_ft.
    adjusted : Adjusted or None
    """
    if adjusted is None:
        return np.full(len(images), np.nan)
    return adjusted.probability(images["conf"].to_numpy(), images["station_distance_ft"].to_numpy())


def whole_steps(values: Floats, step: float = PROBABILITY_STEP) -> Floats:
    """Round values to whole multiples of a step, whose sums are exact."""
    return np.round(values / step) * step


def area_classes(images: pd.DataFrame, areas: pd.Index[str], threshold: float) -> npt.NDArray[np.int32]:
    """Return the area class of each image: twice the position of its area, plus 1 if it is positive.

    Parameters
    ----------
    images : DataFrame
        area and conf; a missing conf counts as 0.
    areas : Index
        Codes of all areas. An image outside all of them has the position after the last.
    threshold : float
        An image is positive if its conf is above it.
    """
    position = areas.get_indexer(pd.Index(images["area"]))
    codes = 2 * np.where(position < 0, len(areas), position) + (images["conf"] > threshold).to_numpy()
    return codes.astype(np.int32)


def count_area_classes(
    images: pd.DataFrame,
    area_class: npt.NDArray[np.int32],
    probability: Floats,
    areas: pd.Index[str],
    *,
    felony_ft: str,
) -> pd.DataFrame:
    """Count analyzed images by area and class.

    Parameters
    ----------
    images : DataFrame
        Analyzed images: station_distance_ft and the column `felony_ft`.
    area_class : ndarray of int32, shape (n,)
        From `area_classes`.
    probability : ndarray of float64, shape (n,)
        Station-adjusted probability; NaN without such a calibration.
    areas : Index
        Codes of all areas.
    felony_ft : str
        Column with the distance to the nearest felony in the longest time window.

    Returns
    -------
    DataFrame
        `AREA_CLASS_COUNTS`.
    """
    size = 2 * (len(areas) + 1)
    counts = np.bincount(area_class, minlength=size)
    felony = images[felony_ft].to_numpy(dtype=np.float64)
    station = images["station_distance_ft"].to_numpy(dtype=np.float64)
    classes = np.flatnonzero(counts)
    position = np.where(classes // 2 < len(areas), classes // 2, -1)
    columns = {
        "images": counts,
        "adjusted_sum": _sums(area_class, whole_steps(probability), size),
        "adjusted_sum_2": _sums(area_class, whole_steps(probability**2), size),
        "adjusted_sum_3": _sums(area_class, whole_steps(probability**3), size),
        "felony_ft_sum": _sums(area_class, whole_steps(felony, _FEET_STEP), size),
        "felony_images": np.bincount(area_class[~np.isnan(felony)], minlength=size),
        "station_ft_sum": _sums(area_class, whole_steps(station, _FEET_STEP), size),
    }
    return AREA_CLASS_COUNTS.conform(
        pd.DataFrame(
            {
                "area": areas.array.take(position, allow_fill=True),
                "positive": classes % 2 == 1,
                **{name: values[classes] for name, values in columns.items()},
            }
        )
    )


def _sums(codes: npt.NDArray[np.int32], values: Floats, size: int) -> Floats:
    """Return the sum of `values` per code, without missing values; NaN where all are missing."""
    known = ~np.isnan(values)
    sums = np.bincount(codes, np.where(known, values, 0.0), minlength=size)
    return np.where(np.bincount(codes[known], minlength=size) > 0, sums, np.nan)


def add_area_class_counts(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Add up the area-class counts of several files, in any order."""
    if not parts:
        return AREA_CLASS_COUNTS.empty()
    grouped = pd.concat(parts, ignore_index=True).groupby(_KEY, dropna=False, sort=True)
    # The sum of missing values only is missing, not 0.
    return AREA_CLASS_COUNTS.conform(grouped.sum(min_count=1).reset_index())


def counts_by_area(counts: pd.DataFrame, areas: pd.Series[str]) -> tuple[Counts, Counts]:
    """Return images per area and class, and those outside all areas.

    Parameters
    ----------
    counts : DataFrame
        `AREA_CLASS_COUNTS`.
    areas : Series of str
        Codes of all areas.

    Returns
    -------
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    outside : ndarray of int64, shape (2,)
        The same for images outside all areas.
    """
    position = pd.Index(areas).get_indexer(pd.Index(counts["area"]))
    inside = np.zeros((len(areas), 2), dtype=np.int64)
    outside = np.zeros(2, dtype=np.int64)
    column = counts["positive"].to_numpy().astype(np.intp)
    lies_inside = position >= 0
    np.add.at(inside, (position[lies_inside], column[lies_inside]), counts["images"].to_numpy()[lies_inside])
    np.add.at(outside, column[~lies_inside], counts["images"].to_numpy()[~lies_inside])
    return inside, outside

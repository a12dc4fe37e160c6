"""Relative deployment rate of every region from counts of its areas, with an interval, for any filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse, stats

from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import AreaDesign
from patrolscope.analysis.estimators.gamma_intervals import with_common_effect
from patrolscope.analysis.estimators.rates import area_means, deployment_rate
from patrolscope.analysis.stages.results import UNKNOWN, Results
from patrolscope.dashboards.maps.city import OUTSIDE, City

Floats = npt.NDArray[np.float64]


def region_rates(
    city: City,
    geography: str,
    counts: npt.NDArray[np.int64],
    calibration: TwoClass | None,
    *,
    percent: float,
    design_effect: float | None = None,
) -> pd.DataFrame:
    """Estimate the relative deployment rate of every region of a geography.

    The rate of a region is the mean over its residents of the calibrated means of its areas, divided by the same mean
    over all residents (docs/method.md). Areas without images are excluded. Areas without residents count only in their
    own rate, so that the images of a region are those of its areas with residents, as in estimates/.

    Parameters
    ----------
    city : City
        City with the geography.
    geography : str
        Name of the geography.
    counts : ndarray of int64, shape (n_areas + 1, 2)
        Negative and positive images per area; the last row is for images outside all areas.
    calibration : TwoClass, optional
        Calibration of the study's threshold. Rates are missing without one.
    percent : float
        Confidence of the interval.
    design_effect : float, optional
        Of the rides of the whole study. With it, intervals are gamma intervals.

    Returns
    -------
    DataFrame
        One row per region: region, images, positives, detection_rate, images_without_residents (in areas without
        residents), persons, relative_to_average, lower, upper, interval (confidence and method), bound (`below` if the
        upper end is all that is known).

    Notes
    -----
    Without a design effect, the interval is the linear (delta-method) approximation of the image bootstrap, in which
    the detection rates of areas are independent and the city average varies with them. A gamma interval takes the city
    average and the calibration as known.
    """
    regions = city.geography(geography)
    inside = regions.of_area != OUTSIDE
    number = regions.of_area[inside]

    def summed(values: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> Floats:
        return np.bincount(number, values[inside], minlength=len(regions.regions)).astype(np.float64)

    images, positives = counts[:-1].sum(axis=1), counts[:-1, 1]
    persons = city.areas["persons"].to_numpy(dtype=np.float64)
    # An area without residents has a rate, but no weight in an average over residents.
    is_area = geography == "area"
    counted = (persons > 0) | is_area
    table = pd.DataFrame({"region": regions.regions})
    table["images"] = summed(images * counted).astype(np.int64)
    table["positives"] = summed(positives * counted).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["detection_rate"] = table["positives"] / table["images"]
    table["images_without_residents"] = summed(images * ~counted).astype(np.int64)
    table["persons"] = summed(persons)
    table[["relative_to_average", "lower", "upper"]] = np.nan
    table["interval"] = table["bound"] = ""
    if calibration is None:
        return table
    weights = np.where(images > 0, persons, 0.0)
    own = np.where(images > 0, 1.0, 0.0) if is_area else weights
    means = np.nan_to_num(area_means(positives, images, calibration.ppv, calibration.false_omission_rate))
    share = positives / np.maximum(images, 1)
    spread = (calibration.ppv - calibration.false_omission_rate) ** 2 * share * (1 - share) / np.maximum(images, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        average = (weights * means).sum() / weights.sum()
        of_all = weights / weights.sum()
        total = summed(own)
        relative = summed(own * means) / total / average
        within = summed(own**2 * spread) / total**2
        together = summed(own * of_all * spread) / total
        variance = (within - 2 * relative * together + relative**2 * (of_all**2 * spread).sum()) / average**2
    half = stats.norm.ppf(0.5 + percent / 200) * np.sqrt(np.maximum(variance, 0))
    table["relative_to_average"] = relative
    table["lower"], table["upper"] = np.maximum(relative - half, 0), relative + half
    table.loc[table["lower"].notna(), "interval"] = f"{percent:g}%, linear approximation"
    if design_effect is not None and average > 0:
        weighted = sparse.csr_array((own[inside], (number, np.flatnonzero(inside))), shape=(len(table), len(own)))
        lower, upper = _gamma_shares(city.areas, counts[:-1], weighted, design_effect, percent)
        ends = [deployment_rate(end, calibration.ppv, calibration.false_omission_rate) for end in (lower, upper)]
        table["lower"], table["upper"] = (end / average for end in ends)
        table["interval"] = np.where(table["lower"].notna(), f"{percent:g}%, gamma", "")
        table["bound"] = np.where((table["positives"] == 0) & table["lower"].notna(), "below", "")
    return table


def _gamma_shares(
    areas: pd.DataFrame,
    inside: npt.NDArray[np.int64],
    weights: sparse.csr_array,
    design_effect: float,
    percent: float,
) -> tuple[Floats, Floats]:
    """Return the ends of the gamma intervals of the shares of positives of regions; NaN without images."""
    design = AreaDesign.of(areas, inside, None)
    shares = Composite.of(areas, design).shares(inside)
    groups, distributions = with_common_effect(weights, design, shares, design_effect)
    ends = distributions.interval(percent)
    lower, upper = (np.where(np.isnan(groups.shares), np.nan, end) for end in ends)
    return lower, upper


def with_bootstrap(rates: pd.DataFrame, geography: str, stored: Results, *, percent: float) -> pd.DataFrame:
    """Replace intervals by those of the study's bootstrap, where it has the regions of a geography.

    Parameters
    ----------
    rates : DataFrame
        Result of `region_rates` for all images.
    geography : str
        Name of the geography.
    stored : Results
        Two-class estimates of the study.
    percent : float
        Confidence of the interval.
    """
    names = ["lower", "upper", "bound"]
    rows = stored.groups(geography).set_index("key")[names].reindex(rates["region"])
    # A region with too few resampling units has no interval there, and none here.
    known = rows["bound"].notna().to_numpy()
    table = rates.copy()
    for name in names:
        table.loc[known, name] = rows[name].to_numpy()[known]
    with_interval = known & table["lower"].notna()
    table.loc[known, "interval"] = ""
    table.loc[with_interval, "interval"] = f"{percent:g}%, bootstrap of {stored.drawn[0]}"
    return table


def rate_text(row: Any) -> str:
    """Return the relative rate and interval of a row of `region_rates` as text."""
    if pd.isna(row["relative_to_average"]):
        return f"relative rate {UNKNOWN}"
    if row["bound"] == "below":
        return f"below {row['upper']:.2f} times the city average ({row['interval']}); no positive image"
    if pd.isna(row["lower"]):
        return f"{row['relative_to_average']:.2f} times the city average (too few rides for an interval)"
    interval = f"{row['lower']:.2f} to {row['upper']:.2f}; {row['interval']}"
    return f"{row['relative_to_average']:.2f} times the city average ({interval})"


def images_text(row: Any) -> str:
    """Return the counts of images of a row of `region_rates` as text."""
    text = f"{row['images']:,} images, {row['positives']:,} positive"
    more = row["images_without_residents"]
    return f"{text}; {more:,} more in areas without residents" if more else text

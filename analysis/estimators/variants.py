"""Variants of the estimates for the sensitivity analysis: study settings with one change.

A variant is the base with fields of one change replaced, so that it cannot differ in two settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.calibration import Calibrations
from patrolscope.analysis.estimators.hourly_counts import HourlyCounts
from patrolscope.analysis.estimators.rates import deployment_rate
from patrolscope.pipeline.crs import SQFT_PER_SQMI
from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]

BASE = "base"
KINDS = (BASE, "threshold", "calibration", "area level", "minimum images", "dates", "time", "even hours")
SUMMED = ("persons", "persons_white", "persons_black", "persons_hispanic", "persons_asian", "area_sqft")
SATURDAY = 5
_BLOCK_NUMBERS = 2**20  # values per block of areas in each of about six arrays, about 50 MB in all
_TIMES = {"day": "daytime only", "night": "night only", "weekdays": "weekdays only", "weekend": "weekend only"}


@dataclass(frozen=True)
class VariantOptions:
    """Settings of the base and its variants.

    Attributes
    ----------
    first_day : date
        First analyzed local day.
    split : int
        Analyzed split, 0 or 1.
    threshold : float
        Score above which an image is positive.
    zone_share : float
        Share of an area that a zone must cover, 0 to 1.
    calibrations, geographies, dates, times : tuple of str
        Variants of each kind, as named in section `sensitivity` of study.yaml.
    minimum_images : tuple of int
        Areas with fewer images are left out, one variant per value.
    even_hours : bool
        Whether to include the variant with equal weights of all hours of the day.
    people_share : float
        Variants whose areas hold a smaller share of the base's residents are infeasible.
    """

    first_day: date
    split: int
    threshold: float
    zone_share: float
    calibrations: tuple[str, ...]
    geographies: tuple[str, ...]
    minimum_images: tuple[int, ...]
    dates: tuple[str, ...]
    times: tuple[str, ...]
    even_hours: bool
    people_share: float


@dataclass(frozen=True)
class Variant:
    """Images per area and day, and their probabilities.

    Attributes
    ----------
    kind, name : str
        Kind of the change, and the change itself.
    days : ndarray of intp, shape (n_days,)
        Positions among all days of the study.
    areas : DataFrame, n_areas rows
        Areas to average over, with the columns of `AREAS` that `analyses` reads.
    images : ndarray of int, shape (n_days, n_areas, n_strata)
        Images. The rate of an area is the mean over its strata with images; there is one stratum, except with equal
        weights of hours.
    sums : ndarray, same shape
        Positive images, or the sum of their calibrated probabilities.
    probabilities : tuple of float
        Probability of a unit of `sums`, and of the remaining images.
    minimum_images : int
        Areas with fewer images are left out.
    """

    kind: str
    name: str
    days: Positions
    areas: pd.DataFrame
    images: npt.NDArray[np.integer]
    sums: npt.NDArray[np.number]
    probabilities: tuple[float, float]
    minimum_images: int = 1

    @property
    def area_images(self) -> Counts:
        """Images per area, shape (n_areas,); 0 for areas left out."""
        images = self.images.sum(axis=(0, 2), dtype=np.int64)
        return np.where(images >= self.minimum_images, images, 0)

    @property
    def persons_seen(self) -> float:
        """Residents of the areas that are not left out."""
        return float(self.areas["persons"].to_numpy()[self.area_images > 0].sum())

    @property
    def days_with_images(self) -> int:
        """Number of days with an image in an area."""
        return int((self.images.sum(axis=(1, 2)) > 0).sum())

    def means(self, weights: npt.NDArray[np.int64] | None = None) -> Floats:
        """Compute the mean calibrated probability per area.

        Parameters
        ----------
        weights : ndarray of int64, shape (n_replicates, n_days), optional
            Weight of each day; one replicate with weights of 1 by default.

        Returns
        -------
        ndarray of float64, shape (n_replicates, n_areas)
            NaN for areas without images.
        """
        days, areas, strata = self.images.shape
        drawn = np.ones((1, days)) if weights is None else weights.astype(np.float64)
        means = np.empty((len(drawn), areas))
        block = max(1, _BLOCK_NUMBERS // (strata * max(1, len(drawn), days)))
        for start in range(0, areas, block):
            part = slice(start, start + block)
            # Integers below 2**53 and multiples of 2**-24: sums are exact in any order.
            images, sums = (
                (drawn @ counts[:, part].reshape(days, -1).astype(np.float64)).reshape(len(drawn), -1, strata)
                for counts in (self.images, self.sums)
            )
            means[:, part] = deployment_rate(_mean_share(sums, images), *self.probabilities)
        means[:, self.area_images == 0] = np.nan
        return means


def _mean_share(sums: Floats, images: Floats) -> Floats:
    """Average the shares of the strata with images over the last axis; NaN without images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(images > 0, sums / images, 0.0).sum(axis=-1) / (images > 0).sum(axis=-1)


@dataclass(frozen=True)
class InfeasibleVariant:
    """Variant that the study does not allow."""

    kind: str
    name: str
    reason: str


def make_variants(
    counts: HourlyCounts, areas: pd.DataFrame, calibrations: Calibrations, options: VariantOptions
) -> Iterator[Variant | InfeasibleVariant]:
    """Yield the base, then every variant.

    Parameters
    ----------
    counts : HourlyCounts
        Images by area, day, hour, night, and score.
    areas : DataFrame
        Areas, table `AREAS`, in the order of `counts.areas`.
    calibrations : Calibrations
        Calibrations; the first threshold is the study's own.
    options : VariantOptions
        Variants to build.

    Raises
    ------
    SourceError
        If no analyzed image is in an area with residents.
    """
    base = make_base(counts, areas, calibrations, options)
    yield base
    parts = (
        _thresholds(base, counts, calibrations),
        _calibrations(base, counts, calibrations, options.calibrations),
        _geographies(base, options.geographies, options.zone_share),
        (
            replace(base, kind="minimum images", name=f"at least {n:,} images", minimum_images=n)
            for n in options.minimum_images
        ),
        _dates(base, counts, calibrations, options),
        _times(base, counts, calibrations, options),
        _even_hours(base, counts) if options.even_hours else (),
    )
    for part in parts:
        for variant in part:
            yield variant if isinstance(variant, InfeasibleVariant) else _checked(variant, base, options.people_share)


def make_base(
    counts: HourlyCounts, areas: pd.DataFrame, calibrations: Calibrations, options: VariantOptions
) -> Variant:
    """Build the base: the study's own settings, as in estimates/.

    Parameters and errors are those of `make_variants`.
    """
    days = np.flatnonzero(counts.days >= pd.Timestamp(options.first_day))
    own = calibrations.thresholds[0].calibration
    if own is None:
        raise ValueError("the first threshold has no calibration; expected that of the study")
    images, positives = _by_day(counts, days, calibrations.steps.index(own.threshold))
    base = Variant(BASE, BASE, days, areas, images, positives, (own.ppv, own.false_omission_rate))
    if base.persons_seen == 0:
        raise SourceError(
            f"0 of {int(counts.images.sum())} images of split {options.split} are in an area with residents since "
            f"{options.first_day}; expected at least 1; check the sections estimate and layers of study.yaml"
        )
    return base


def _by_day(
    counts: HourlyCounts, days: Positions, step: int, nights: tuple[int, ...] = (0, 1)
) -> tuple[Counts, Counts]:
    """Count images, and those above threshold number `step`, of some days; both have shape (n_days, n_areas, 1)."""
    chosen = counts.images[list(nights)][:, :, days, :-1]
    images = chosen.sum(axis=(0, 1), dtype=np.int64)
    positives = chosen[:, step + 1 :].sum(axis=(0, 1), dtype=np.int64)
    return images[..., None], positives[..., None]


def _checked(variant: Variant, base: Variant, people_share: float) -> Variant | InfeasibleVariant:
    """Return the variant, or why it is infeasible: no images, too few residents, or no change."""
    images = variant.area_images
    share = variant.persons_seen / base.persons_seen
    reason = ""
    if not variant.images.any():
        reason = "no analyzed image in an area belongs to it"
    elif not images.any():
        reason = f"no area has {variant.minimum_images:,} images"
    elif share < people_share:
        reason = f"its areas hold {share:.0%} of the residents of the base's areas, less than {people_share:.0%}"
    elif (
        variant.areas is base.areas
        and variant.probabilities == base.probabilities
        and np.array_equal(images, base.area_images)
        and np.array_equal(variant.images, base.images)
        and np.array_equal(variant.sums, base.sums)
    ):
        reason = "it has the same images and probabilities as the base"
    return InfeasibleVariant(variant.kind, variant.name, reason) if reason else variant


def _thresholds(
    base: Variant, counts: HourlyCounts, calibrations: Calibrations
) -> Iterator[Variant | InfeasibleVariant]:
    for threshold in calibrations.thresholds[1:]:
        name = f"threshold {threshold.name}"
        if threshold.name == "best-f1":
            name = f"best F1 (threshold {threshold.value:.3g})"
        if threshold.calibration is None:
            yield InfeasibleVariant("threshold", name, threshold.reason)
            continue
        _, positives = _by_day(counts, base.days, calibrations.steps.index(threshold.calibration.threshold))
        probabilities = (threshold.calibration.ppv, threshold.calibration.false_omission_rate)
        yield replace(base, kind="threshold", name=name, sums=positives, probabilities=probabilities)


def _calibrations(
    base: Variant, counts: HourlyCounts, calibrations: Calibrations, wanted: tuple[str, ...]
) -> Iterator[Variant | InfeasibleVariant]:
    names = {"logistic": "logistic with station distance", "isotonic": "isotonic"}
    for method in wanted:
        if method == "logistic" and calibrations.logistic is None:
            reason = "the logistic regression has no finite solution on the validation set, or no station exists"
            yield InfeasibleVariant("calibration", names[method], reason)
            continue
        sums = (counts.logistic_sum if method == "logistic" else counts.isotonic_sum)[base.days, :-1, None]
        yield replace(base, kind="calibration", name=names[method], sums=sums, probabilities=(1.0, 0.0))


def _geographies(base: Variant, wanted: tuple[str, ...], zone_share: float) -> Iterator[Variant | InfeasibleVariant]:
    for geography in wanted:
        tract = base.areas[geography]
        if tract.isna().all():
            yield InfeasibleVariant("area level", f"{geography}s", f"the study has no {geography}s")
        elif not tract.dropna().duplicated().any():
            yield InfeasibleVariant("area level", f"{geography}s", f"the study's areas are already {geography}s")
        else:
            tracts = tracts_of(base.areas, zone_share)
            position = pd.Index(tracts["area"]).get_indexer(pd.Index(tract))
            images, sums = (_add_by(values, position, len(tracts)) for values in (base.images, base.sums))
            yield replace(base, kind="area level", name=f"{geography}s", areas=tracts, images=images, sums=sums)


def _add_by(values: npt.NDArray[Any], position: Positions, tracts: int) -> npt.NDArray[Any]:
    """Add values of shape (n_days, n_areas, 1) over areas by tract; position -1 leaves an area out."""
    added = pd.DataFrame(values[..., 0].T).groupby(position).sum()
    return added.reindex(range(tracts)).to_numpy().T[..., None]


def tracts_of(areas: pd.DataFrame, zone_share: float) -> pd.DataFrame:
    """Aggregate block groups to tracts, in the columns of `AREAS` that the estimators read.

    Residents, their groups, and size are sums. Density is residents divided by size. The zone is one whose block groups
    cover at least `zone_share` of the tract (R before C before M). Because medians cannot be summed, the income is the
    mean over block groups with an income, weighted by residents. Block groups whose centroid is in no tract are left
    out.
    """
    grouped = areas.groupby("tract", sort=True)
    tracts = grouped[list(SUMMED)].sum()
    tracts["density_per_sqmi"] = tracts["persons"] / tracts["area_sqft"] * SQFT_PER_SQMI
    for region in ("neighborhood", "borough"):  # a block group has those of its tract
        tracts[region] = grouped[region].first()
    shares = [
        areas["area_sqft"].where(areas["zone"] == zone, 0.0).groupby(areas["tract"]).sum() / tracts["area_sqft"]
        for zone in ("R", "C", "M")
    ]
    zone = np.select([share >= zone_share for share in shares], ["R", "C", "M"], default="")
    tracts["zone"] = pd.Series(zone, index=tracts.index, dtype="str").replace("", np.nan)
    weight = areas["persons"].where(areas["income_usd"].notna(), 0.0)
    weighted = (areas["income_usd"].fillna(0.0) * weight).groupby(areas["tract"]).sum()
    people = weight.groupby(areas["tract"]).sum()
    tracts["income_usd"] = weighted / people.where(people > 0)
    return tracts.rename_axis("area").reset_index()


def _of_days(base: Variant, kind: str, name: str, chosen: npt.NDArray[np.bool_]) -> Variant:
    return replace(
        base, kind=kind, name=name, days=base.days[chosen], images=base.images[chosen], sums=base.sums[chosen]
    )


def _dates(
    base: Variant, counts: HourlyCounts, calibrations: Calibrations, options: VariantOptions
) -> Iterator[Variant | InfeasibleVariant]:
    wanted, first = options.dates, options.first_day
    days = counts.days[base.days]
    if "halves" in wanted:
        # With an odd number of days, the second half has one more.
        second = np.arange(len(days)) >= len(days) // 2
        yield _of_days(base, "dates", "first half of the days", ~second)
        yield _of_days(base, "dates", "second half of the days", second)
    if "months" in wanted:
        months = days.to_period("M")
        for month in months.unique():
            yield _of_days(base, "dates", month.strftime("%B %Y"), months == month)
    if "every-day" in wanted:
        name = f"with days before {first}"
        every = np.arange(len(counts.days))
        if len(every) == len(base.days):
            yield InfeasibleVariant("dates", name, "the study has no images of these days")
            return
        images, sums = _by_day(counts, every, calibrations.steps.index(options.threshold))
        yield replace(base, kind="dates", name=name, days=every, images=images, sums=sums)


def _times(
    base: Variant, counts: HourlyCounts, calibrations: Calibrations, options: VariantOptions
) -> Iterator[Variant | InfeasibleVariant]:
    step = calibrations.steps.index(options.threshold)
    weekend = np.asarray(counts.days[base.days].day_of_week >= SATURDAY)
    for time in options.times:
        name = _TIMES[time]
        if time in ("day", "night"):
            images, sums = _by_day(counts, base.days, step, nights=(int(time == "night"),))
            yield replace(base, kind="time", name=name, images=images, sums=sums)
        else:
            yield _of_days(base, "time", name, weekend if time == "weekend" else ~weekend)


def _even_hours(base: Variant, counts: HourlyCounts) -> Iterator[Variant | InfeasibleVariant]:
    """Average each area over its hours of the day with images, with equal weights."""
    negative, positive = counts.by_hour[:, base.days, :-1]
    name = "every hour counts alike"
    if (negative + positive).any(axis=0).sum(axis=-1).max(initial=0) < 2:
        yield InfeasibleVariant("even hours", name, "no area has images of two hours of the day")
        return
    yield replace(base, kind="even hours", name=name, images=negative + positive, sums=positive)

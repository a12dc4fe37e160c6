"""The estimates made again with one thing changed: which images count, and for how much.

A variant is the base with one field replaced, so that it can not differ in two things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.calibration import Calibrations
from patrolscope.analysis.estimators.hourly_counts import HourlyCounts
from patrolscope.analysis.estimators.rates import deployment_rate
from patrolscope.pipeline.crs import SQFT_PER_SQMI
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Settings

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]

BASE = "base"
KINDS = (BASE, "threshold", "calibration", "area level", "minimum images", "dates", "time", "even hours")
SUMMED = ("persons", "persons_white", "persons_black", "persons_hispanic", "persons_asian", "area_sqft")
SATURDAY = 5
# Numbers of one block of areas in each of some six arrays: together some 50 MB.
_BLOCK_NUMBERS = 2**20
_TIMES = {"day": "daytime only", "night": "night only", "weekdays": "weekdays only", "weekend": "weekend only"}


@dataclass(frozen=True)
class Variant:
    """Images of areas by day, and the probability that each stands for.

    Attributes
    ----------
    days : positions of the days among all days of the study
    areas : the areas whose means are weighted, with the columns of `AREAS` that `analyses` reads
    images, sums : (days, areas, strata) images, and those of them that are positive or the sum of their probabilities.
        The mean of an area is the mean over its strata with images of their means; there is one stratum, except where
        hours count alike
    probabilities : what a unit of `sums`, and an image beyond them, adds to the mean
    minimum_images : an area with fewer is left out
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
        """Images of each area that is not left out, (areas,)."""
        images = self.images.sum(axis=(0, 2), dtype=np.int64)
        return np.where(images >= self.minimum_images, images, 0)

    @property
    def persons_seen(self) -> float:
        """People in areas that are not left out."""
        return float(self.areas["persons"].to_numpy()[self.area_images > 0].sum())

    @property
    def days_with_images(self) -> int:
        """Days with an image in an area."""
        return int((self.images.sum(axis=(1, 2)) > 0).sum())

    def means(self, weights: npt.NDArray[np.int64] | None = None) -> Floats:
        """Mean probability of each area, (replicates, areas); missing without images.

        Parameters
        ----------
        weights : (replicates, days) how often each day counts; by default once, in a single replicate
        """
        days, areas, strata = self.images.shape
        drawn = np.ones((1, days)) if weights is None else weights.astype(np.float64)
        means = np.empty((len(drawn), areas))
        block = max(1, _BLOCK_NUMBERS // (strata * max(1, len(drawn), days)))
        for start in range(0, areas, block):
            part = slice(start, start + block)
            # Whole numbers below 2**53, and multiples of 2**-24: the products are exact in whatever order they add up.
            images, sums = (
                (drawn @ counts[:, part].reshape(days, -1).astype(np.float64)).reshape(len(drawn), -1, strata)
                for counts in (self.images, self.sums)
            )
            means[:, part] = deployment_rate(_mean_share(sums, images), *self.probabilities)
        means[:, self.area_images == 0] = np.nan
        return means


def _mean_share(sums: Floats, images: Floats) -> Floats:
    """Mean share of the strata, the last axis, that have images; missing where none has."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(images > 0, sums / images, 0.0).sum(axis=-1) / (images > 0).sum(axis=-1)


@dataclass(frozen=True)
class InfeasibleVariant:
    """A variant that the study does not allow."""

    kind: str
    name: str
    reason: str


def make_variants(
    counts: HourlyCounts, areas: pd.DataFrame, calibrations: Calibrations, settings: Settings
) -> Iterator[Variant | InfeasibleVariant]:
    """The base, then every variant of the settings, one at a time.

    Parameters
    ----------
    areas : `AREAS`, in the order of `counts.areas`
    """
    base = make_base(counts, areas, calibrations, settings)
    yield base
    rules = settings.sensitivity
    parts = (
        _thresholds(base, counts, calibrations),
        _calibrations(base, counts, calibrations, rules.calibrations),
        _levels(base, rules.geographies, settings.estimate.zone_share),
        (
            replace(base, kind="minimum images", name=f"at least {n:,} images", minimum_images=n)
            for n in rules.minimum_images
        ),
        _dates(base, counts, calibrations, settings),
        _times(base, counts, calibrations, settings),
        _even_hours(base, counts) if rules.even_hours else (),
    )
    for part in parts:
        for variant in part:
            yield variant if isinstance(variant, InfeasibleVariant) else _checked(variant, base, rules.people_share)


def make_base(counts: HourlyCounts, areas: pd.DataFrame, calibrations: Calibrations, settings: Settings) -> Variant:
    """The study's own settings: what estimates/ holds."""
    days = np.flatnonzero(counts.days >= pd.Timestamp(settings.estimate.first_day))
    given = calibrations.thresholds[0].calibration
    if given is None:
        raise ValueError("the first threshold is the study's own, and has a calibration")
    images, positives = _by_day(counts, days, calibrations.steps.index(given.threshold))
    base = Variant(BASE, BASE, days, areas, images, positives, (given.ppv, given.false_omission_rate))
    if base.persons_seen == 0:
        raise SourceError(
            f"none of {int(counts.images.sum())} images of split {settings.estimate.split} lies in an area with people "
            f"from {settings.estimate.first_day} on: there is nothing to vary; check estimate: and layers:"
        )
    return base


def _by_day(
    counts: HourlyCounts, days: Positions, step: int, nights: tuple[int, ...] = (0, 1)
) -> tuple[Counts, Counts]:
    """Images, and those above the threshold of number `step`, of some days and lights: (days, areas, 1)."""
    chosen = counts.images[list(nights)][:, :, days, :-1]
    images = chosen.sum(axis=(0, 1), dtype=np.int64)
    positives = chosen[:, step + 1 :].sum(axis=(0, 1), dtype=np.int64)
    return images[..., None], positives[..., None]


def _checked(variant: Variant, base: Variant, people_share: float) -> Variant | InfeasibleVariant:
    """The variant, unless it has nothing to say, or speaks of other people."""
    images = variant.area_images
    share = variant.persons_seen / base.persons_seen
    reason = ""
    if not variant.images.any():
        reason = "no analyzed image in an area is of it"
    elif not images.any():
        reason = f"no area has {variant.minimum_images:,} images"
    elif share < people_share:
        reason = f"its areas hold {share:.0%} of the people of the base's: less than {people_share:.0%}"
    elif (
        variant.areas is base.areas
        and variant.probabilities == base.probabilities
        and np.array_equal(images, base.area_images)
        and np.array_equal(variant.images, base.images)
        and np.array_equal(variant.sums, base.sums)
    ):
        reason = "it leaves the same images with the same probabilities as the base"
    return InfeasibleVariant(variant.kind, variant.name, reason) if reason else variant


def _thresholds(
    base: Variant, counts: HourlyCounts, calibrations: Calibrations
) -> Iterator[Variant | InfeasibleVariant]:
    for one in calibrations.thresholds[1:]:
        name = f"threshold {one.name}"
        if one.name == "best-f1":
            name = f"best F1 (threshold {one.value:.3g})"
        if one.calibration is None:
            yield InfeasibleVariant("threshold", name, one.reason)
            continue
        _, positives = _by_day(counts, base.days, calibrations.steps.index(one.calibration.threshold))
        probabilities = (one.calibration.ppv, one.calibration.false_omission_rate)
        yield replace(base, kind="threshold", name=name, sums=positives, probabilities=probabilities)


def _calibrations(
    base: Variant, counts: HourlyCounts, calibrations: Calibrations, wanted: tuple[str, ...]
) -> Iterator[Variant | InfeasibleVariant]:
    names = {"logistic": "logistic with station distance", "isotonic": "isotonic"}
    for method in wanted:
        if method == "logistic" and calibrations.logistic is None:
            reason = "the logistic regression has no finite solution on the validation set, or the study no stations"
            yield InfeasibleVariant("calibration", names[method], reason)
            continue
        sums = (counts.logistic_sum if method == "logistic" else counts.isotonic_sum)[base.days, :-1, None]
        yield replace(base, kind="calibration", name=names[method], sums=sums, probabilities=(1.0, 0.0))


def _levels(base: Variant, wanted: tuple[str, ...], zone_share: float) -> Iterator[Variant | InfeasibleVariant]:
    for level in wanted:
        tract = base.areas[level]
        if tract.isna().all():
            yield InfeasibleVariant("area level", f"{level}s", f"the study has no {level}s")
        elif not tract.dropna().duplicated().any():
            yield InfeasibleVariant("area level", f"{level}s", f"the study's areas are {level}s already")
        else:
            tracts = tracts_of(base.areas, zone_share)
            place = pd.Index(tracts["area"]).get_indexer(pd.Index(tract))
            images, sums = (_add_by(one, place, len(tracts)) for one in (base.images, base.sums))
            yield replace(base, kind="area level", name=f"{level}s", areas=tracts, images=images, sums=sums)


def _add_by(values: npt.NDArray[Any], place: Positions, places: int) -> npt.NDArray[Any]:
    """(days, areas, 1) added up by the place of each area; one of place -1 is left out."""
    added = pd.DataFrame(values[..., 0].T).groupby(place).sum()
    return added.reindex(range(places)).to_numpy().T[..., None]


def tracts_of(areas: pd.DataFrame, zone_share: float) -> pd.DataFrame:
    """Tracts as areas: each the sum of its block groups, in the columns of `AREAS` that the estimators read.

    People, their groups and size are sums, so that nothing changes but the grain; density is people by size; the zone
    is one whose block groups cover at least `zone_share` of the tract (R before C before M); the income, as medians can
    not be summed, is the mean of those of its block groups that have one, weighted by their people. Block groups whose
    centroid lies in no tract are left out.
    """
    grouped = areas.groupby("tract", sort=True)
    tracts = grouped[list(SUMMED)].sum()
    tracts["density_per_sqmi"] = tracts["persons"] / tracts["area_sqft"] * SQFT_PER_SQMI
    for place in ("neighborhood", "borough"):  # a block group has those of its tract
        tracts[place] = grouped[place].first()
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
    base: Variant, counts: HourlyCounts, calibrations: Calibrations, settings: Settings
) -> Iterator[Variant | InfeasibleVariant]:
    wanted, first = settings.sensitivity.dates, settings.estimate.first_day
    days = counts.days[base.days]
    if "halves" in wanted:
        # Of an odd number of days the second half has one more.
        second = np.arange(len(days)) >= len(days) // 2
        yield _of_days(base, "dates", "first half of the days", ~second)
        yield _of_days(base, "dates", "second half of the days", second)
    if "months" in wanted:
        months = days.to_period("M")
        for month in months.unique():
            yield _of_days(base, "dates", f"{month:%B %Y}", months == month)
    if "every-day" in wanted:
        name = f"with days before {first}"
        every = np.arange(len(counts.days))
        if len(every) == len(base.days):
            yield InfeasibleVariant("dates", name, "the study has no image of them")
            return
        given = calibrations.steps.index(settings.estimate.threshold)
        images, sums = _by_day(counts, every, given)
        yield replace(base, kind="dates", name=name, days=every, images=images, sums=sums)


def _times(
    base: Variant, counts: HourlyCounts, calibrations: Calibrations, settings: Settings
) -> Iterator[Variant | InfeasibleVariant]:
    given = calibrations.steps.index(settings.estimate.threshold)
    weekend = np.asarray(counts.days[base.days].day_of_week >= SATURDAY)
    for time in settings.sensitivity.times:
        name = _TIMES[time]
        if time in ("day", "night"):
            images, sums = _by_day(counts, base.days, given, nights=(int(time == "night"),))
            yield replace(base, kind="time", name=name, images=images, sums=sums)
        else:
            yield _of_days(base, "time", name, weekend if time == "weekend" else ~weekend)


def _even_hours(base: Variant, counts: HourlyCounts) -> Iterator[Variant | InfeasibleVariant]:
    """An area's mean over its hours of the day with images, each hour counting the same."""
    negative, positive = counts.by_hour[:, base.days, :-1]
    name = "every hour counts alike"
    if (negative + positive).any(axis=0).sum(axis=-1).max(initial=0) < 2:
        yield InfeasibleVariant("even hours", name, "no area has images of two hours of the day")
        return
    yield replace(base, kind="even hours", name=name, images=negative + positive, sums=positive)

"""Design effects: how much the positives of one ride vary together, for areas and for groups.

Notation of docs/method.md, "Design effects": `n`, `k` images and positives of an area, `W` residents of a group in an
area divided by those in all areas with images, `v = W / n`, and `S = sum(v k)` the share of positives of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from patrolscope.analysis.estimators.area_class_counts import Counts, Floats
from patrolscope.analysis.estimators.unit_counts import UnitCounts

Codes = npt.NDArray[np.intp]

# Positives that the design effect of all neighborhoods stands for in that of a group.
_PRIOR_POSITIVES = 20


def pooling_regions(areas: pd.DataFrame) -> Codes:
    """Return the code of the neighborhood of each area; without one its borough, else the city, shape (n_areas,)."""
    names = "neighborhood " + areas["neighborhood"]
    return pd.factorize(names.fillna("borough " + areas["borough"]).fillna("city"))[0]


def pooled_rates(inside: Counts, regions: Codes) -> Floats:
    """Compute the share of positives of the region of each area, drawn slightly towards the city's.

    Parameters
    ----------
    inside : ndarray of int64, shape (n_areas, 2) or (n_areas, 2, n_replicates)
        Negative and positive images.
    regions : ndarray of intp, shape (n_areas,)
        From `pooling_regions`.

    Returns
    -------
    ndarray of float64, shape (n_areas,) or (n_areas, n_replicates)
        (k + 1/2) / (n + 1 / (2 s)) with the counts k, n of the region and the share s of the city; positive, unless no
        image of the city is.
    """
    positives, images = inside[:, 1], inside.sum(axis=1)
    member = sparse.csr_array((np.ones(len(regions)), (regions, np.arange(len(regions)))))
    city = positives.sum(axis=0) / np.maximum(1, images.sum(axis=0))
    with np.errstate(divide="ignore"):
        # Without a positive image in the city, the denominator is infinite and the rates are 0.
        return np.asarray(((member @ positives + 0.5) / (member @ images + 0.5 / city))[regions])


def ride_residuals(counts: UnitCounts, inside: Counts, pooled: Floats) -> sparse.csr_array:
    """Compute how far the positives of each ride in each area are from those expected.

    Parameters
    ----------
    counts : UnitCounts
        Counts by ride.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    pooled : ndarray of float64, shape (n_areas,)
        From `pooled_rates`.

    Returns
    -------
    csr_array of float64, shape (n_rides, n_areas)
        (k_r - n_r k / n) / sqrt(1 - n_r / n) with the counts k_r, n_r of the ride. The root corrects for the leverage
        of the ride: without it, areas with one or two rides have hardly any variance. Where a ride alone has all images
        of an area, k_r - n_r times the pooled rate.
    """
    areas = len(inside)
    seen = counts.area_class < 2 * areas
    area, positive = np.divmod(counts.area_class[seen], 2)
    of_ride = counts.images[seen].astype(np.float64)
    shape, at = (counts.number, areas), (counts.unit[seen], area)
    images = sparse.csr_array((of_ride, at), shape=shape)
    # The same entries as `images`, with 0 where a ride has no positive image in an area.
    positives = sparse.csr_array((of_ride * positive, at), shape=shape)
    of_area = inside.sum(axis=1)[images.indices]
    share = (inside[:, 1] / np.maximum(1, inside.sum(axis=1)))[images.indices]
    alone = images.data == of_area
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = (positives.data - images.data * share) / np.sqrt(1 - images.data / of_area)
    residual[alone] = (positives.data - images.data * pooled[images.indices])[alone]
    return sparse.csr_array((residual, images.indices, images.indptr), shape=shape)


def area_noise(inside: Counts, residuals: sparse.csr_array | None) -> Floats:
    """Compute the sampling variance of the share of positives of each area.

    Parameters
    ----------
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    residuals : csr_array, shape (n_rides, n_areas), or None
        From `ride_residuals`. None: images are independent.

    Returns
    -------
    ndarray of float64, shape (n_areas,)
        sum_r (e_r / n)^2, or s (1 - s) / (n - 1) for independent images. NaN for areas with too few images: none, or a
        single independent one.
    """
    images = inside.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if residuals is not None:
            squares = np.bincount(residuals.indices, residuals.data**2, minlength=len(inside))
            return np.asarray(squares / np.where(images > 0, images, np.nan) ** 2)
        share = inside[:, 1] / images
        return np.where(images > 1, share * (1 - share) / (images - 1), np.nan)


@dataclass(frozen=True)
class AreaDesign:
    """Counts of areas, their pooled rates, and the design effects of all groups.

    Attributes
    ----------
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    regions : ndarray of intp, shape (n_areas,)
        From `pooling_regions`.
    pooled : ndarray of float64, shape (n_areas,)
        From `pooled_rates`.
    residuals : csr_array, shape (n_rides, n_areas), or None
        From `ride_residuals`; None for independent images.
    of_areas : float
        Design effect of the positives of an area.
    of_regions : float
        Mean design effect of the regions, weighted by their positives.
    """

    inside: Counts
    regions: Codes
    pooled: Floats
    residuals: sparse.csr_array | None
    of_areas: float
    of_regions: float

    @classmethod
    def of(cls, areas: pd.DataFrame, inside: Counts, counts: UnitCounts | None) -> AreaDesign:
        """Return the design of a study.

        Parameters
        ----------
        areas : DataFrame
            neighborhood, borough, and persons.
        inside : ndarray of int64, shape (n_areas, 2)
            Negative and positive images.
        counts : UnitCounts or None
            Counts by ride; None for independent images.
        """
        regions = pooling_regions(areas)
        pooled = pooled_rates(inside, regions)
        total = inside[:, 1].sum()
        if counts is None or total == 0:
            return cls(inside, regions, pooled, None, 1.0, 1.0)
        residuals = ride_residuals(counts, inside, pooled)
        positives, ratios = _effects(_slopes(_residents(areas, regions), inside), inside, residuals)
        counted = positives.sum()
        return cls(
            inside,
            regions,
            pooled,
            residuals,
            max(1.0, float(residuals.data @ residuals.data) / int(total)),
            float(positives @ ratios / counted) if counted else 1.0,
        )


@dataclass(frozen=True)
class GroupDesign:
    """Positives and design effects of groups, shape (n_groups,) each.

    Attributes
    ----------
    slopes : csr_array, shape (n_groups, n_areas)
        Derivative `v` of the share of a group with respect to the positives of an area.
    shares : ndarray of float64
        Share of positives `S`, weighted by residents. NaN without residents in areas with images.
    positives : ndarray of float64
        Positive images where the group has residents.
    effects : ndarray of float64
        Design effect, at least 1.
    effective : ndarray of float64
        Effective positives, S^2 / (design effect * sum(v^2 k)): as many independent positives of equal weight would
        tell as much. 0 without a positive image.
    images : int
        Images of the study in areas.
    """

    slopes: sparse.csr_array
    shares: Floats
    positives: Floats
    effects: Floats
    effective: Floats
    images: int

    @classmethod
    def of(cls, weights: sparse.csr_array, design: AreaDesign) -> GroupDesign:
        """Return the design effects of groups from their residents, shape (n_groups, n_areas)."""
        inside = design.inside
        slopes = _slopes(weights, inside)
        positives, ratios = _effects(slopes, inside, design.residuals)
        effects = stable_effects(ratios, positives, design)
        shares = slopes @ inside[:, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            effective = np.where(shares > 0, shares**2 / (effects * (slopes.power(2) @ inside[:, 1])), 0.0)
        shares[np.diff(slopes.indptr) == 0] = np.nan
        return cls(slopes, shares, positives, effects, effective, int(inside.sum()))


def stable_effects(ratios: Floats, positives: Floats, design: AreaDesign) -> Floats:
    """Draw ratios of variances towards the mean of all regions, the more so the fewer positives they are from.

    Parameters
    ----------
    ratios : ndarray of float64, shape (n,)
        Variance over rides divided by that of independent positives.
    positives : ndarray of float64, shape (n,)
        Positive images behind each ratio.
    design : AreaDesign

    Returns
    -------
    ndarray of float64, shape (n,)
        Design effects, at least 1.
    """
    together = _PRIOR_POSITIVES * design.of_regions + positives * ratios
    return np.maximum(1.0, together / (_PRIOR_POSITIVES + positives))


def region_design(areas: pd.DataFrame, design: AreaDesign) -> GroupDesign:
    """Return the design effects of the regions of `pooling_regions`; `areas` has persons."""
    return GroupDesign.of(_residents(areas, design.regions), design)


def _residents(areas: pd.DataFrame, regions: Codes) -> sparse.csr_array:
    """Return the residents of each area in its region, shape (n_regions, n_areas)."""
    return sparse.csr_array((areas["persons"].to_numpy(), (regions, np.arange(len(areas)))))


def _slopes(weights: sparse.csr_array, inside: Counts) -> sparse.csr_array:
    """Return v = W / n, shape (n_groups, n_areas), with entries only where the group has residents and images."""
    images = inside.sum(axis=1)
    seen = sparse.csr_array(weights * (images > 0))
    seen.eliminate_zeros()
    with np.errstate(divide="ignore"):
        total = 1 / seen.sum(axis=1)
    rows = np.repeat(np.arange(seen.shape[0]), np.diff(seen.indptr))
    data = seen.data * total[rows] / images[seen.indices]
    return sparse.csr_array((data, seen.indices, seen.indptr), shape=seen.shape)


def _effects(slopes: sparse.csr_array, inside: Counts, residuals: sparse.csr_array | None) -> tuple[Floats, Floats]:
    """Return positives, and the variance over rides divided by that of independent positives; 0 without a positive."""
    positives = (slopes > 0) @ inside[:, 1]
    if residuals is None:
        return positives.astype(np.float64), np.where(positives > 0, 1.0, 0.0)
    by_ride = residuals @ slopes.T.tocsr()
    squares = np.bincount(by_ride.indices, by_ride.data**2, minlength=slopes.shape[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(positives > 0, squares / (slopes.power(2) @ inside[:, 1]), 0.0)
    return positives.astype(np.float64), ratios

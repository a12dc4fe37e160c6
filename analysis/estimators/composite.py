"""Composite rates of areas: between the rate of the area itself and the pooled rate of its region.

One area of 19 images can carry the ratio of a whole city. The composite rate of an area with few images is close to
that of its neighborhood. It is based on a model, in which the areas of a neighborhood are exchangeable: an area with an
unusual true rate is pulled toward the others. It is therefore reported with the direct rate and never replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, sparse
from scipy.special import gammaln

from patrolscope.analysis.estimators.area_class_counts import Counts, Floats
from patrolscope.analysis.estimators.design_effects import (
    AreaDesign,
    GroupDesign,
    area_noise,
    pooled_rates,
    region_design,
)
from patrolscope.pipeline.seeds import stream

# Bounds of the concentration: the fewest and most positives that the pooled rate of a region can stand for.
_LEAST, _MOST = 0.25, 64.0
# Regions with at least as many effective positives keep their direct rate.
BENCHMARK_EFFECTIVE = 50.0


def concentration(inside: Counts, pooled: Floats) -> float:
    """Estimate how many positives of an area its region stands for, by maximum likelihood.

    Parameters
    ----------
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    pooled : ndarray of float64, shape (n_areas,)
        From `pooled_rates`.

    Returns
    -------
    float
        c that maximizes the negative-binomial likelihood of the positives, with mean n * pooled and shape c; between
        0.25 and 64.
    """
    images, positives = inside.sum(axis=1), inside[:, 1]
    seen = images > 0
    positives, mean = positives[seen], images[seen] * pooled[seen]
    if not positives.any():
        return _MOST

    def unlikelihood(log_shape: float) -> float:
        shape = np.exp(log_shape)
        terms = gammaln(shape + positives) - gammaln(shape) + shape * np.log(shape / (shape + mean))
        return -float(np.sum(terms + positives * np.log(mean / (shape + mean))))

    found = optimize.minimize_scalar(
        unlikelihood, bounds=(np.log(_LEAST), np.log(_MOST)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def variance_shares(groups: GroupDesign, design: AreaDesign, probabilities: tuple[float, float]) -> Floats:
    """Compute the share of each area in the sampling variance of the relative rate of each group.

    Parameters
    ----------
    groups : GroupDesign
        Everyone first.
    design : AreaDesign
    probabilities : tuple of float
        PPV and FOR.

    Returns
    -------
    ndarray of float64, shape (n_groups, n_areas)
        z^2 e^2 over its sum over areas, with the influence z = (W - R W_all) (PPV - FOR) / M_all of an area on the
        relative rate R, the city average M_all, and the noise e^2 of `area_noise`. 0 in areas without images, and for
        groups without variance.
    """
    ppv, false_omission_rate = probabilities
    weights = (groups.slopes * design.inside.sum(axis=1)).toarray()
    rates = false_omission_rate + (ppv - false_omission_rate) * groups.shares
    influence = (weights - (rates / rates[0])[:, None] * weights[0]) * (ppv - false_omission_rate) / rates[0]
    parts = influence**2 * np.nan_to_num(area_noise(design.inside, design.residuals))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(parts / parts.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Composite:
    """Composite shares of positives, and what they are scaled to.

    Attributes
    ----------
    design : AreaDesign
    concentration : float
        From `concentration`.
    with_images : ndarray of bool, shape (n_areas,)
        Areas that have a composite rate.
    members : csr_array, shape (n_benchmarked, n_areas)
        Share of each area in the residents of a benchmarked region, among areas with images.
    """

    design: AreaDesign
    concentration: float
    with_images: npt.NDArray[np.bool_]
    members: sparse.csr_array

    @classmethod
    def of(cls, areas: pd.DataFrame, design: AreaDesign) -> Composite:
        """Return the composite of a study; `areas` has persons."""
        with_images = design.inside.sum(axis=1) > 0
        regions = region_design(areas, design)
        # An entry of the slopes is v = W / n, so v n is the weight of an area in its region.
        kept = regions.slopes[np.flatnonzero(regions.effective >= BENCHMARK_EFFECTIVE)]
        members = sparse.csr_array(kept * design.inside.sum(axis=1))
        return cls(design, concentration(design.inside, design.pooled), with_images, members)

    def shares(self, inside: Counts) -> Floats:
        """Compute composite shares of positives before benchmarking.

        Parameters
        ----------
        inside : ndarray of int64, shape (n_areas, 2) or (n_areas, 2, n_replicates)
            Negative and positive images, of the study or of replicates, whose pooled rates are taken again.

        Returns
        -------
        ndarray of float64, shape (n_areas,) or (n_areas, n_replicates)
            pooled (c + k / d) / (c + n pooled / d), with the design effect d of areas. NaN in areas without images in
            the study.
        """
        pooled = pooled_rates(inside, self.design.regions)
        effect, shape = self.design.of_areas, self.concentration
        shares = pooled * (shape + inside[:, 1] / effect) / (shape + inside.sum(axis=1) * pooled / effect)
        shares[~self.with_images] = np.nan
        return np.asarray(shares)

    def factors(self, shares: Floats, inside: Counts) -> Floats:
        """Compute the factor of each area that brings its region to the direct share.

        Parameters
        ----------
        shares : ndarray of float64, shape (n_areas,) or (n_areas, n_replicates)
            From `shares`.
        inside : ndarray of int64, shape (n_areas, 2) or (n_areas, 2, n_replicates)
            The counts that they were computed from.

        Returns
        -------
        ndarray of float64, shape of `shares`
            1 in regions that are not benchmarked, and where a replicate has no image of a region.
        """
        images = inside.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            direct = np.nan_to_num(inside[:, 1] / images)
            wanted = (self.members @ direct) / (self.members @ (images > 0).astype(np.float64))
            of_region = wanted / (self.members @ np.nan_to_num(shares))
        of_region[~np.isfinite(of_region)] = 1.0
        factors = np.ones_like(shares)
        rows = np.repeat(np.arange(self.members.shape[0]), np.diff(self.members.indptr))
        factors[self.members.indices] = of_region[rows]
        return factors

    def benchmarked(self, inside: Counts) -> Floats:
        """Return composite shares after benchmarking; the parameters are those of `shares`."""
        shares = self.shares(inside)
        return shares * self.factors(shares, inside)

    def draws(self, replicates: range, seed: int) -> Floats:
        """Draw the share of positives of each area from its distribution given the data.

        Parameters
        ----------
        replicates : range
            Numbers of the replicates.
        seed : int

        Returns
        -------
        ndarray of float64, shape (n_areas, n_replicates)
            From Gamma(shape c + k / d, rate c / pooled + n / d), times the factor of the area; at most 1. NaN in areas
            without images.
        """
        design = self.design
        images, positives = design.inside.sum(axis=1), design.inside[:, 1]
        with np.errstate(divide="ignore"):
            rate = self.concentration / design.pooled + images / design.of_areas
        scale = self.factors(self.shares(design.inside), design.inside) / rate
        shape = self.concentration + positives / design.of_areas
        drawn = np.column_stack(
            [stream(seed, "composite areas", number).standard_gamma(shape) * scale for number in replicates]
        )
        drawn[~self.with_images] = np.nan
        return np.minimum(drawn, 1.0)

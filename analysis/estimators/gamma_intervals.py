"""Gamma intervals for groups with few positive images.

With few positives a percentile interval is too narrow: it covers 72% for 1 or 2 and 90% for 11 to 50. With none, all
replicates are equal. The positives of a group are a weighted sum of nearly Poisson counts, whose interval follows from
two gamma distributions [1]_, with the mean weight of the next positive image [2]_ and a design effect for rides.

References
----------
.. [1] M. P. Fay and E. J. Feuer, "Confidence intervals for directly standardized rates: a method based on the gamma
   distribution", Statistics in Medicine 16 (1997), 791-801.
.. [2] R. C. Tiwari, L. X. Clegg, and Z. Zou, "Efficient interval estimation for age-adjusted cancer rates",
   Statistical Methods in Medical Research 15 (2006), 547-569.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse, stats

from patrolscope.analysis.estimators.area_class_counts import Counts, Floats
from patrolscope.analysis.estimators.design_effects import AreaDesign, GroupDesign
from patrolscope.analysis.estimators.rates import Panel
from patrolscope.pipeline.seeds import stream

# One positive image changes a share by about 1e-8, and rounding by 1e-17, which must not break ties.
_DECIMALS = 14


@dataclass(frozen=True)
class GammaDistributions:
    """Lower and upper distributions of the shares of positives of groups, shape (n_groups,) each.

    The lower one of a group without a positive image has all mass at 0; its scale is 0.
    """

    lower_shape: Floats
    lower_scale: Floats
    upper_shape: Floats
    upper_scale: Floats

    @classmethod
    def of(cls, groups: GroupDesign, inside: Counts, composite: Floats) -> GammaDistributions:
        """Return the distributions of groups.

        Parameters
        ----------
        groups : GroupDesign
        inside : ndarray of int64, shape (n_areas, 2)
            Negative and positive images.
        composite : ndarray of float64, shape (n_areas,)
            Composite shares before benchmarking, so that areas without a positive image count in the variance.
        """
        images, squares = inside.sum(axis=1), groups.slopes.power(2)
        observed = squares @ inside[:, 1]
        expected = squares @ (images * np.nan_to_num(composite))
        behind = (groups.slopes > 0) @ images
        share = np.nan_to_num(groups.shares)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = groups.effects * observed
            upper_variance = groups.effects * (observed + np.maximum(observed, expected)) / 2
            next_mean = groups.effects * (groups.slopes @ images) / behind
            next_square = groups.effects**2 * (squares @ images) / behind
            upper_mean = share + next_mean
            return cls(
                np.where(share > 0, share**2 / variance, 1.0),
                np.where(share > 0, variance / share, 0.0),
                upper_mean**2 / (upper_variance + next_square),
                (upper_variance + next_square) / upper_mean,
            )

    def tails(self, value: float) -> tuple[Floats, Floats]:
        """Return the probability below `value` in the lower and above it in the upper distribution."""
        with np.errstate(divide="ignore", invalid="ignore"):
            below = stats.gamma.cdf(value / self.lower_scale, self.lower_shape)
            above = stats.gamma.sf(value / self.upper_scale, self.upper_shape)
        return np.where(self.lower_scale > 0, below, 1.0), np.asarray(above)

    def interval(self, percent: float) -> tuple[Floats, Floats]:
        """Return the ends of the central interval of every group, with a known calibration; at most 1."""
        tail = (100 - percent) / 200
        lower = stats.gamma.ppf(tail, self.lower_shape) * self.lower_scale
        upper = stats.gamma.isf(tail, self.upper_shape) * self.upper_scale
        return np.minimum(lower, 1.0), np.minimum(upper, 1.0)

    def quantiles(self, group: int, levels: Floats) -> Floats:
        """Return quantiles of a group: below 1/2 of the lower distribution, else of the upper one; at most 1."""
        lower = stats.gamma.ppf(levels, self.lower_shape[group]) * self.lower_scale[group]
        upper = stats.gamma.ppf(levels, self.upper_shape[group]) * self.upper_scale[group]
        return np.minimum(np.where(levels < 0.5, lower, upper), 1.0)


def with_common_effect(
    weights: sparse.csr_array, design: AreaDesign, composite: Floats, effect: float
) -> tuple[GroupDesign, GammaDistributions]:
    """Return groups and their distributions with one design effect, for images that are not counted by ride.

    Parameters
    ----------
    weights : csr_array, shape (n_groups, n_areas)
        Residents of the groups.
    design : AreaDesign
        Of independent images.
    composite : ndarray of float64, shape (n_areas,)
        Composite shares before benchmarking.
    effect : float
        Design effect, at least 1.
    """
    groups = GroupDesign.of(weights, design)
    groups = replace(groups, effects=np.full(weights.shape[0], effect))
    return groups, GammaDistributions.of(groups, design.inside, composite)


def gamma_replicates(
    shares: Floats, distributions: GammaDistributions, group: int, *, seed: int, name: str, images: int
) -> Floats:
    """Replace the bootstrap shares of a group by quantiles of its distributions at the same ranks.

    Parameters
    ----------
    shares : ndarray of float64, shape (n_replicates,)
        Share of positives of the group in each replicate; NaN where a replicate has no image of it.
    distributions : GammaDistributions
    group : int
        Row of the group.
    seed : int
        Seed of the study.
    name : str
        Name of the group, for its random stream.
    images : int
        Images of the study, for its random stream. With one stream for all studies, two independent studies without a
        positive image would always have the same ranks, and the interval of their difference no width.

    Returns
    -------
    ndarray of float64, shape (n_replicates,)
        Equal shares are ranked at random, and missing ones lowest. The ranks keep the dependence between groups.
    """
    number = len(shares)
    chance = stream(seed, f"gamma interval of {name}", images).random((number, 2))
    known = np.where(np.isnan(shares), -1.0, shares)
    order = np.lexsort((chance[:, 0], np.round(known, _DECIMALS)))
    ranks = np.empty(number)
    ranks[order] = np.arange(1, number + 1)
    return distributions.quantiles(group, (ranks - chance[:, 1]) / number)


def with_gamma(
    panel: Panel,
    means: Floats,
    probabilities: Floats,
    groups: GroupDesign,
    distributions: GammaDistributions,
    *,
    below: float,
    seed: int,
) -> Floats:
    """Replace the replicates of groups with few effective positives.

    Parameters
    ----------
    panel : Panel
    means : ndarray of float64, shape (1 + n_groups, n_replicates)
        Deployment rates of everyone and of each group.
    probabilities : ndarray of float64, shape (2, n_replicates) or (2, 1)
        Pr(police vehicle) of negative and positive images that they were computed with.
    groups : GroupDesign
        That of the panel.
    distributions : GammaDistributions
        Those of the panel.
    below : float
        Groups with fewer effective positives are replaced.
    seed : int
        Seed of the study.

    Returns
    -------
    ndarray of float64, shape (1 + n_groups, n_replicates)
    """
    few = np.flatnonzero((groups.effective < below) & ~np.isnan(groups.shares))
    if len(few) == 0:
        return means
    base, slope = probabilities[0], probabilities[1] - probabilities[0]
    found = means.copy()
    for row in few:
        drawn = gamma_replicates(
            (means[row] - base) / slope,
            distributions,
            int(row),
            seed=seed,
            name=panel.names[row],
            images=groups.images,
        )
        found[row] = base + slope * drawn
    return found

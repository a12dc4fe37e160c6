"""Influence of single observations on an estimate: the acceleration of BCa intervals.

The acceleration is a = sum(U**3) / (6 sum(U**2)**1.5), a sixth of the skewness of the empirical influence values U of
all observations in all samples (B. Efron, "Better bootstrap confidence intervals", Journal of the American Statistical
Association 82 (1987), section 7). Group means are smooth functions of the means of areas, so U follows from
derivatives; no observation is left out in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.rates import Panel
from patrolscope.analysis.estimators.unit_counts import UnitCounts

Floats = npt.NDArray[np.float64]
_ROWS_AT_ONCE = 8  # groups; 200,000 rides take about 100 MB with squares and cubes


@dataclass(frozen=True)
class Moments:
    """Sums of squares and cubes of influence values, shape (2, 1 + n_groups): of weighted means and relative rates."""

    squares: Floats
    cubes: Floats

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.squares + other.squares, self.cubes + other.cubes)

    @property
    def acceleration(self) -> Floats:
        """Acceleration, shape (2, 1 + n_groups); NaN where no observation influences the estimate."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.cubes / (6 * self.squares**1.5))


@dataclass(frozen=True)
class Slopes:
    """Derivatives of the weighted means of a panel.

    Attributes
    ----------
    by_area : csr_array, shape (1 + n_groups, n_areas)
        Derivative of a weighted mean with respect to the mean of an area.
    means : ndarray of float64, shape (1 + n_groups,)
        Weighted means.
    """

    by_area: sparse.csr_array
    means: Floats

    @classmethod
    def of(cls, panel: Panel, means: Floats) -> Slopes:
        """Return the slopes at the means of areas, shape (n_areas,), which are NaN for areas without images."""
        with_images = (~np.isnan(means)).astype(np.float64)
        weights = panel.weights * with_images
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.nan_to_num(1 / weights.sum(axis=1), posinf=0.0)
        return cls(sparse.csr_array(sparse.diags_array(scale) @ weights), panel.means(means[:, None])[:, 0])

    def in_parts(self) -> Iterator[Slopes]:
        """Yield the slopes of a few groups at a time, each time with those of everyone first."""
        rows = self.by_area.shape[0]
        for start in range(0, rows, _ROWS_AT_ONCE):
            part = [0, *range(start, min(start + _ROWS_AT_ONCE, rows))]
            yield Slopes(self.by_area[part], self.means[part])

    def relative(self, changes: Floats) -> Floats:
        """Return changes of relative rates, shape (..., 1 + n_groups), from changes of weighted means."""
        average = self.means[0]
        return np.asarray((changes - changes[..., :1] * (self.means / average)) / average)

    def moments(self, changes: Floats, times: Floats | None = None) -> Moments:
        """Compute the moments of observations.

        Parameters
        ----------
        changes : ndarray of float64, shape (n, 1 + n_groups)
            Changes of the weighted means.
        times : ndarray of float64, shape (n,), optional
            Number of observations with these changes, by default 1.
        """
        both = np.stack([changes, self.relative(changes)])
        weights = np.ones(len(changes)) if times is None else times
        return Moments(np.einsum("o,qog->qg", weights, both**2), np.einsum("o,qog->qg", weights, both**3))


def image_moments(slopes: Slopes, images: Counts, second: Floats, third: Floats) -> Moments:
    """Compute the moments of single images.

    Parameters
    ----------
    slopes : Slopes
    images : ndarray of int64, shape (n_areas,)
    second, third : ndarray of float64, shape (n_areas,)
        Sums over the images of an area of the squared and cubed deviation of the prediction from the mean of the area.
    """
    with_images = images > 0
    squares = second[with_images] / images[with_images] ** 2.0
    cubes = third[with_images] / images[with_images] ** 3.0
    parts = []
    for part in slopes.in_parts():
        by_area = part.by_area.toarray().T[with_images]
        both = np.stack([by_area, part.relative(by_area)])
        parts.append(Moments(np.einsum("a,qag->qg", squares, both**2), np.einsum("a,qag->qg", cubes, both**3)))
    return _side_by_side(parts)


def unit_moments(slopes: Slopes, counts: UnitCounts, images: Counts, means: Floats, values: Floats) -> Moments:
    """Compute the moments of rides or days.

    Parameters
    ----------
    slopes : Slopes
    counts : UnitCounts
    images : ndarray of int64, shape (n_areas,)
    means : ndarray of float64, shape (n_areas,)
        Mean prediction.
    values : ndarray of float64, shape (n,)
        Sum of predictions in each row of `counts`.
    """
    inside = counts.area_class < 2 * len(images)
    area = counts.area_class[inside] // 2
    change = (values[inside] - means[area] * counts.images[inside]) / images[area]
    by_unit = sparse.csr_array((change, (counts.unit[inside], area)), shape=(counts.number, len(images)))
    return _side_by_side([part.moments(np.asarray(by_unit @ part.by_area.T.toarray())) for part in slopes.in_parts()])


def area_moments(slopes: Slopes, means: Floats) -> Moments:
    """Compute the moments of areas, which are resampled together with their residents."""
    with_images = np.flatnonzero(~np.isnan(means))
    by_area = slopes.by_area.toarray()[:, with_images]
    return slopes.moments((by_area * (means[with_images] - slopes.means[:, None])).T)


def validation_moments(slopes: Slopes, inside: Counts, calibration: TwoClass) -> Moments:
    """Compute the moments of the validation images, which act through the two probabilities.

    Parameters
    ----------
    slopes : Slopes
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    calibration : TwoClass
    """
    images = inside.sum(axis=1)
    shares = np.divide(inside, images[:, None], where=images[:, None] > 0, out=np.zeros(inside.shape))
    by_probability = (slopes.by_area @ shares).T
    changes, times = [], []
    for class_slope, true, total in (
        (by_probability[0], calibration.false_negative, calibration.negative),
        (by_probability[1], calibration.true_positive, calibration.positive),
    ):
        share = true / total
        changes += [class_slope * (1 - share) / total, -class_slope * share / total]
        times += [true, total - true]
    return slopes.moments(np.array(changes), np.array(times, dtype=np.float64))


def _side_by_side(parts: list[Moments]) -> Moments:
    """Join the moments of `Slopes.in_parts`, with those of everyone once."""
    squares = [part.squares[:, 1:] for part in parts]
    return Moments(np.concatenate(squares, axis=1), np.concatenate([part.cubes[:, 1:] for part in parts], axis=1))

"""How much single observations move an estimate: the acceleration of BCa intervals.

The acceleration is a sixth of the skewness of the empirical influence values U, sum U^3 / (6 (sum U^2)^1.5) (Efron
1987, section 7), of all observations of all samples. Group means are smooth in the means of areas, so U comes from
derivatives, not from leaving observations out one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.rates import Panel
from patrolscope.analysis.stages.calibrate import TwoClass
from patrolscope.analysis.stages.clusters import UnitCounts

Floats = npt.NDArray[np.float64]
_ROWS_AT_ONCE = 8  # groups: of 200,000 rides some 100 MB with squares and cubes


@dataclass(frozen=True)
class Moments:
    """Sums of squares and cubes of influence values, (2, 1 + groups) each: of weighted means, of relative levels."""

    squares: Floats
    cubes: Floats

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.squares + other.squares, self.cubes + other.cubes)

    @property
    def acceleration(self) -> Floats:
        """(2, 1 + groups); missing where no observation moves the estimate."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.cubes / (6 * self.squares**1.5))


@dataclass(frozen=True)
class Slopes:
    """What the groups of a panel gain from the means of areas.

    Attributes
    ----------
    by_area : (1 + groups, areas) derivative of a weighted mean by the mean of an area
    means : (1 + groups,) weighted means
    """

    by_area: sparse.csr_array
    means: Floats

    @classmethod
    def of(cls, panel: Panel, means: Floats) -> Slopes:
        """Slopes at the means of areas, (areas,), missing where an area has no image."""
        seen = (~np.isnan(means)).astype(np.float64)
        weights = panel.weights * seen
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.nan_to_num(1 / weights.sum(axis=1), posinf=0.0)
        return cls(sparse.csr_array(sparse.diags_array(scale) @ weights), panel.means(means[:, None])[:, 0])

    def in_parts(self) -> Iterator[Slopes]:
        """The slopes of some groups at a time, everyone's before them."""
        rows = self.by_area.shape[0]
        for start in range(0, rows, _ROWS_AT_ONCE):
            part = [0, *range(start, min(start + _ROWS_AT_ONCE, rows))]
            yield Slopes(self.by_area[part], self.means[part])

    def relative(self, changes: Floats) -> Floats:
        """Changes of relative levels, (..., 1 + groups), from those of weighted means."""
        average = self.means[0]
        return np.asarray((changes - changes[..., :1] * (self.means / average)) / average)

    def moments(self, changes: Floats, times: Floats | None = None) -> Moments:
        """Moments of observations that change the weighted means by (observations, 1 + groups).

        Parameters
        ----------
        times : (observations,) how many observations have these changes; None: one
        """
        both = np.stack([changes, self.relative(changes)])
        weights = np.ones(len(changes)) if times is None else times
        return Moments(np.einsum("o,qog->qg", weights, both**2), np.einsum("o,qog->qg", weights, both**3))


def image_moments(slopes: Slopes, images: Counts, second: Floats, third: Floats) -> Moments:
    """Moments of single images.

    Parameters
    ----------
    images : (areas,)
    second, third : (areas,) sums over the images of an area of the squared and cubed distance of the prediction from
        the area's mean
    """
    seen = images > 0
    squares, cubes = second[seen] / images[seen] ** 2.0, third[seen] / images[seen] ** 3.0
    parts = []
    for part in slopes.in_parts():
        by_area = part.by_area.toarray().T[seen]
        both = np.stack([by_area, part.relative(by_area)])
        parts.append(Moments(np.einsum("a,qag->qg", squares, both**2), np.einsum("a,qag->qg", cubes, both**3)))
    return _side_by_side(parts)


def cluster_moments(slopes: Slopes, clusters: UnitCounts, images: Counts, means: Floats, values: Floats) -> Moments:
    """Moments of whole clusters.

    Parameters
    ----------
    images, means : (areas,)
    values : (n,) sum of predictions in each row of `clusters`
    """
    inside = clusters.cell < 2 * len(images)
    area = clusters.cell[inside] // 2
    gain = (values[inside] - means[area] * clusters.images[inside]) / images[area]
    by_cluster = sparse.csr_array((gain, (clusters.cluster[inside], area)), shape=(clusters.number, len(images)))
    return _side_by_side(
        [part.moments(np.asarray(by_cluster @ part.by_area.T.toarray())) for part in slopes.in_parts()]
    )


def area_moments(slopes: Slopes, means: Floats) -> Moments:
    """Moments of whole areas, which bring their people along."""
    seen = np.flatnonzero(~np.isnan(means))
    by_area = slopes.by_area.toarray()[:, seen]
    return slopes.moments((by_area * (means[seen] - slopes.means[:, None])).T)


def validation_moments(slopes: Slopes, inside: Counts, calibration: TwoClass) -> Moments:
    """Moments of the validation images, through the two probabilities that they give.

    Parameters
    ----------
    inside : (areas, 2) images that are negative, positive
    """
    images = inside.sum(axis=1)
    shares = np.divide(inside, images[:, None], where=images[:, None] > 0, out=np.zeros(inside.shape))
    by_probability = (slopes.by_area @ shares).T
    changes, times = [], []
    for class_slope, right, total in (
        (by_probability[0], calibration.false_negative, calibration.negative),
        (by_probability[1], calibration.true_positive, calibration.positive),
    ):
        share = right / total
        changes += [class_slope * (1 - share) / total, -class_slope * share / total]
        times += [right, total - right]
    return slopes.moments(np.array(changes), np.array(times, dtype=np.float64))


def _side_by_side(parts: list[Moments]) -> Moments:
    """Moments of all groups from those of `Slopes.in_parts`, everyone's once."""
    squares = [part.squares[:, 1:] for part in parts]
    return Moments(np.concatenate(squares, axis=1), np.concatenate([part.cubes[:, 1:] for part in parts], axis=1))

"""Replicates of the nine published analyses: from resampled units to group means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.area_class_counts import PROBABILITY_STEP, Counts
from patrolscope.analysis.estimators.bootstrap import add_units, draw_units, resample_images
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.census_error import means_with_residents
from patrolscope.analysis.estimators.intervals import Method
from patrolscope.analysis.estimators.rates import TOTAL_KEY, Panel, area_means, populations
from patrolscope.analysis.estimators.unit_counts import UnitCounts
from patrolscope.pipeline.contract.tables import REPLICATES

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]


# Resampling units whose design effects are known.
DESIGNED = ("image", "ride")


@dataclass(frozen=True)
class ResamplingScheme:
    """How replicates are made.

    Attributes
    ----------
    prediction : str
        two_class or station_adjusted.
    unit : str
        Resampling unit: image, ride, day, or area.
    preset : str
        recommended, published, or custom.
    replicates : int
    resample_calibration : bool
        Whether the validation set is resampled, too.
    interval : str
        percentile, basic, normal, or bca.
    gamma_below_effective : float
        Groups with fewer effective positives have gamma intervals.
    census_error : bool
        Whether the residents of population groups are drawn, too.
    beside : bool
        Whether these are the published results beside the study's own.
    """

    prediction: str
    unit: str
    preset: str
    replicates: int
    resample_calibration: bool
    interval: Method
    gamma_below_effective: float
    census_error: bool
    beside: bool = False

    @property
    def with_design(self) -> bool:
        """Whether design effects are known, for gamma intervals and numbers of effective positives."""
        return self.prediction == "two_class" and self.unit in DESIGNED

    @property
    def with_composite(self) -> bool:
        """Whether groups have composite rates, too; published results beside the study's own have none."""
        return self.with_design and not self.beside

    @property
    def folder(self) -> str:
        """Name of the folder with the results of the scheme."""
        if self.beside:
            return "published"
        return self.unit if self.prediction == "two_class" else f"{self.unit}-{self.prediction}"


@dataclass(frozen=True)
class BootstrapInputs:
    """Inputs of every replicate of a study.

    Attributes
    ----------
    areas : DataFrame
        `AREAS`.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images per area.
    outside : ndarray of int64, shape (2,)
        The same for images outside all areas.
    panels : list of Panel
        The analyses, by population.
    """

    areas: pd.DataFrame
    inside: Counts
    outside: Counts
    panels: list[Panel]


def two_class_means(counts: Counts, probabilities: Floats) -> Floats:
    """Compute the mean calibrated prediction of each area.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_areas, 2, n_replicates)
        Negative and positive images.
    probabilities : ndarray of float64, shape (2, n_replicates) or (2, 1)
        Pr(police vehicle) of negative and positive images.

    Returns
    -------
    ndarray of float64, shape (n_areas, n_replicates)
        NaN for areas without images.
    """
    return area_means(counts[:, 1], counts.sum(axis=1), probabilities[1], probabilities[0])


def image_counts(inputs: BootstrapInputs, *, replicates: range, seed: int) -> dict[str, Counts]:
    """Resample single images, those of each population by themselves.

    Returns
    -------
    dict of str to ndarray of int64, shape (n_areas, 2, n_replicates)
        Negative and positive images per area for each population.
    """
    return resample_images(
        inputs.inside, inputs.outside, list(populations(inputs.areas).values()), replicates=replicates, seed=seed
    )


def image_replicates(inputs: BootstrapInputs, probabilities: Floats, *, replicates: range, seed: int) -> list[Floats]:
    """Compute replicates of the image bootstrap, in which each population is resampled by itself.

    Parameters
    ----------
    inputs : BootstrapInputs
    probabilities : ndarray of float64, shape (2, n_replicates) or (2, 1)
        Pr(police vehicle) of negative and positive images.
    replicates : range
        Numbers of the replicates.
    seed : int

    Returns
    -------
    list of ndarray of float64, shape (1 + n_groups, n_replicates)
        Means of everyone and of each group, per panel.
    """
    counts = image_counts(inputs, replicates=replicates, seed=seed)
    return panel_means(inputs, {name: two_class_means(one, probabilities) for name, one in counts.items()}, None)


def unit_resampled(inputs: BootstrapInputs, counts: UnitCounts, unit: str, *, replicates: range, seed: int) -> Counts:
    """Resample rides or days, shape (n_areas, 2, n_replicates); all populations share the draw."""
    times = draw_units(counts.number, unit, replicates=replicates, seed=seed)
    return unit_sums(counts, counts.images, times, len(inputs.inside))


def panel_means(inputs: BootstrapInputs, rates: Mapping[str, Floats], residents: Floats32 | None) -> list[Floats]:
    """Compute the means of everyone and of each group from the rates of areas.

    Parameters
    ----------
    inputs : BootstrapInputs
    rates : mapping of str to ndarray of float64, shape (n_areas, n_replicates)
        Deployment rates of areas by name of the population; NaN for areas without images.
    residents : ndarray of float32, shape (n_areas, 1 + n_groups, n_replicates), or None
        From `draw_residents`, for the panels of population groups. None: the census has no error.

    Returns
    -------
    list of ndarray of float64, shape (1 + n_groups, n_replicates)
        One per panel.
    """
    found = []
    for panel in inputs.panels:
        of_areas = rates[panel.population.name]
        if residents is not None and panel.of_population_groups:
            found.append(means_with_residents(of_areas, residents, panel.population.areas))
        else:
            found.append(panel.means(of_areas))
    return found


def area_replicates(inputs: BootstrapInputs, means: Floats, *, replicates: range, seed: int) -> list[Floats]:
    """Compute replicates of the area bootstrap; an area drawn twice counts as two areas.

    Parameters
    ----------
    inputs : BootstrapInputs
    means : ndarray of float64, shape (n_areas, 1) or (n_areas, n_replicates)
        Mean prediction of each area.
    replicates : range
        Numbers of the replicates.
    seed : int

    Returns
    -------
    list of ndarray of float64, shape (1 + n_groups, n_replicates)
        Means of everyone and of each group, per panel.
    """
    with_images = np.flatnonzero(inputs.inside.sum(axis=1))
    times = np.zeros((len(inputs.inside), len(replicates)), dtype=np.uint16)
    times[with_images] = draw_units(len(with_images), "area", replicates=replicates, seed=seed)
    return [panel.means(np.broadcast_to(means, times.shape), times) for panel in inputs.panels]


def unit_sums(counts: UnitCounts, values: npt.NDArray[np.integer], times: npt.NDArray[np.uint16], areas: int) -> Counts:
    """Add up values of unit counts by area and class, for units that are drawn several times.

    Parameters
    ----------
    counts : UnitCounts
    values : ndarray of integers, shape (n,)
        Images or steps of `counts`.
    times : ndarray of uint16, shape (n_units, n_replicates)
        How often each unit is drawn. All populations share the draw, each restricted to its areas.
    areas : int
        Number of areas.

    Returns
    -------
    ndarray of int64, shape (n_areas, 2, n_replicates)
    """
    sums = add_units(counts.area_class, counts.unit, values, times, 2 * areas)
    return sums.reshape(areas, 2, -1)


def adjusted_means(steps: Counts, images: Counts) -> Floats:
    """Return mean station-adjusted predictions from their sums, in steps, and the numbers of images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(steps * PROBABILITY_STEP / images)


def point_means(inputs: BootstrapInputs, counts: pd.DataFrame, prediction: str, calibration: TwoClass) -> Floats:
    """Compute the mean prediction of each area from the data.

    Parameters
    ----------
    inputs : BootstrapInputs
    counts : DataFrame
        `AREA_CLASS_COUNTS`.
    prediction : str
        two_class or station_adjusted.
    calibration : TwoClass

    Returns
    -------
    ndarray of float64, shape (n_areas,)
        NaN for areas without images.
    """
    if prediction == "two_class":
        return two_class_means(inputs.inside[:, :, None], probabilities_of(calibration))[:, 0]
    sums = counts.groupby("area")["adjusted_sum"].sum().reindex(inputs.areas["area"], fill_value=0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums.to_numpy() / inputs.inside.sum(axis=1))


def probabilities_of(calibration: TwoClass) -> Floats:
    """Return Pr(police vehicle) of negative and positive images, shape (2, 1)."""
    return np.array([[calibration.false_omission_rate], [calibration.ppv]])


def replicates_table(
    panels: list[Panel], direct: list[Floats], composite: list[Floats] | None, replicates: range
) -> pd.DataFrame:
    """Return replicates as a table, group by group.

    Parameters
    ----------
    panels : list of Panel
    direct : list of ndarray of float64, shape (1 + n_groups, n_replicates)
        Means of everyone and of each group, per panel.
    composite : list of ndarray of float64, or None
        The same from composite rates of areas.
    replicates : range
        Numbers of the replicates.

    Returns
    -------
    DataFrame
        `REPLICATES`.
    """
    names = [
        (analysis.name, key) for panel in panels for analysis in panel.analyses for key in (TOTAL_KEY, *analysis.keys)
    ]
    at = np.repeat(np.arange(len(names)), len(replicates))
    frame = pd.DataFrame(names, columns=["analysis", "key"], dtype="str").iloc[at].reset_index(drop=True)
    numbers = np.tile(np.arange(replicates.start, replicates.stop, dtype=np.int32), len(names))
    frame = frame.assign(replicate=numbers, weighted_mean=_rows(panels, direct))
    shrunken = np.full(len(frame), np.nan) if composite is None else _rows(panels, composite)
    return REPLICATES.conform(frame.assign(composite_mean=shrunken))


def _rows(panels: list[Panel], values: list[Floats]) -> Floats:
    """Return everyone, then the groups, of each analysis in turn."""
    return np.vstack(
        [
            row
            for panel, means in zip(panels, values, strict=True)
            for groups in panel.rows.values()
            for row in (means[:1], means[groups])
        ]
    ).ravel()


def panel_values(panels: list[Panel], rows: Floats) -> list[Floats]:
    """Return the means of everyone and of each group, per panel, from the rows of `replicates_table`.

    Parameters
    ----------
    panels : list of Panel
    rows : ndarray of float64, shape (n_rows, n_replicates)
        Everyone, then the groups, of each analysis in turn.
    """
    values, at = [], 0
    for panel in panels:
        parts: list[Floats] = []
        for analysis in panel.analyses:
            everyone, groups = rows[at : at + 1], rows[at + 1 : at + 1 + len(analysis.keys)]
            parts += [groups] if parts else [everyone, groups]
            at += 1 + len(analysis.keys)
        values.append(np.vstack(parts))
    return values

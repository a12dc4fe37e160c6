"""Choice of areas and groups to withhold: the sums that a release would publish, and their protection.

`patrolscope.analysis.disclosure.suppression` solves the problem on plain arrays; docs/release.md explains the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from patrolscope.analysis.disclosure.suppression import ALWAYS, ProtectionError, Quantity, Withheld, withhold
from patrolscope.analysis.disclosure.tables import RATE_DECIMALS, ROUNDED_TO
from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.rates import TOTAL_KEY, Analysis, Population, analyses
from patrolscope.analysis.stages.published import Released
from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]

# A published rate covers no withheld area or at least this many: with two, a resident who knows one area would know the
# other.
MIN_WITHHELD_PER_RATE = 3
_QUARTILE_COLUMNS = {"density": "density_per_sqmi", "income": "income_usd"}


@dataclass(frozen=True)
class Group:
    """One group of one population whose rate and number of images may be published.

    Attributes
    ----------
    analysis : str or None
        Analysis of the group. None: all residents of the population, the average of every analysis on it.
    key : str
        Name of the group in the JSON files.
    population : str
        Name of the population.
    weights : ndarray of float64, shape (n_areas,)
        Residents, 0 outside the population and in areas without images.
    counted : ndarray of bool, shape (n_areas,)
        Areas in the published number of images.
    rate : float
        Deployment rate.
    step : float
        The published number of images is a multiple of it; 0 if it is exact.
    """

    analysis: str | None
    key: str
    population: str
    weights: Floats
    counted: Bools
    rate: float
    step: float

    @property
    def identity(self) -> tuple[str | None, str, str]:
        """Analysis, key, and population."""
        return self.analysis, self.key, self.population


def groups_of(
    areas: pd.DataFrame,
    images: Whole,
    chosen: list[Analysis],
    populations: dict[str, Population],
    results: dict[str, Released],
    minimum: int,
) -> list[Group]:
    """List the average of every population, then every group with an estimate.

    Parameters
    ----------
    areas : DataFrame, n_areas rows
        Areas, table `AREAS`.
    images : ndarray of int64, shape (n_areas,)
        Analyzed images per area.
    chosen : list of Analysis
        Analyses to release.
    populations : dict of str to Population
        Populations by name.
    results : dict of str to Released
        Results per analysis.
    minimum : int
        Minimum number of images of a published area.
    """
    persons, seen = areas["persons"].to_numpy(), images > 0
    step = float(ROUNDED_TO * minimum)
    groups = []
    for name in dict.fromkeys(analysis.population for analysis in chosen):
        inside = populations[name].areas
        total = next(results[analysis.name].total for analysis in chosen if analysis.population == name)
        groups.append(Group(None, TOTAL_KEY, name, np.where(inside & seen, persons, 0.0), inside & seen, total, step))
    for analysis in chosen:
        released = results[analysis.name]
        rates = dict(zip(released.keys, released.means, strict=True))
        for key, column in zip(analysis.keys, analysis.weights.T, strict=True):
            weights = np.where(populations[analysis.population].areas & seen, column, 0.0)
            if not np.isnan(rates.get(key, np.nan)):
                own_step = 0.0 if analysis.name == "neighborhood" else step
                groups.append(
                    Group(analysis.name, key, analysis.population, weights, weights > 0, rates[key], own_step)
                )
    return groups


def choose_withheld(
    areas: pd.DataFrame,
    inside: Counts,
    groups: list[Group],
    probabilities: tuple[float, float],
    minimum: int,
    populations: dict[str, Population],
) -> Withheld:
    """Choose areas and groups to withhold: primary suppression, then complementary suppression.

    Parameters
    ----------
    areas : DataFrame, n_areas rows
        Areas, table `AREAS`.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images per area.
    groups : list of Group
        Output of `groups_of`.
    probabilities : tuple of float
        PPV and FOR.
    minimum : int
        Areas with fewer images are withheld.
    populations : dict of str to Population
        Populations by name.

    Raises
    ------
    SourceError
        If even the city average discloses a withheld area.
    """
    images = inside.sum(axis=1)
    few = np.array([images[group.counted].sum() < _enough(group, minimum) for group in groups])
    skipped = {group.population for group, small in zip(groups, few, strict=True) if small and group.analysis is None}
    primary = Withheld(
        (images > 0) & (images < minimum), few | np.array([group.population in skipped for group in groups])
    )
    if not primary.areas.any():
        return primary
    counts = _image_sums(areas, images, groups, few, skipped, minimum, populations)
    shares = _share_sums(inside, groups, probabilities, minimum)
    members = sparse.csr_array(np.array([group.counted for group in groups], dtype=np.float64))
    block = pd.factorize(areas["neighborhood"])[0].astype(np.int64)
    try:
        return withhold([counts, shares], primary, members, images, block)
    except ProtectionError as error:
        raise SourceError(
            f"the city average discloses areas with fewer than {minimum} images, even with all groups withheld; choose "
            "another --minimum-images, or release a study with more areas"
        ) from error


def _enough(group: Group, minimum: int) -> int:
    """Return the number of images below which a group is withheld.

    Twice the minimum, because withholding a group may disclose that it has fewer images: if every other area has one
    image, any single area may still have from 1 to 2 * (minimum - 1).
    """
    return int(group.counted.sum()) + 2 * (minimum - 1)


def _always(number: int, group: Group) -> int:
    return ALWAYS if group.analysis is None and group.population == "all" else number


def _image_sums(
    areas: pd.DataFrame,
    images: Whole,
    groups: list[Group],
    few: Bools,
    skipped: set[str],
    minimum: int,
    populations: dict[str, Population],
) -> Quantity:
    """Collect what a release discloses about numbers of images: sums by group, and quartiles.

    Withholding a group for few images may disclose that it has few; publishing it discloses that it has enough. The
    quartile of an area bounds the share of images below it: one inequality per cut point.
    """
    values = images.astype(np.float64)
    rows: list[tuple[Floats, float, float, int]] = []
    for number, group in enumerate(groups):
        counted = group.counted.astype(np.float64)
        if few[number]:
            rows.append((counted, -np.inf, _enough(group, minimum) - 1, ALWAYS))
            continue
        shown = round_to_step(values[group.counted].sum(), group.step)
        low, high = max(shown - group.step / 2, _enough(group, minimum)), shown + group.step / 2
        rows.append((counted, low, high, _always(number, group)))
    for name, cuts in analyses(areas, images)[2].items():
        if all(group.analysis != name or group.population in skipped for group in groups):
            continue
        population, column = next(
            (populations[group.population], _QUARTILE_COLUMNS[name.removesuffix("_residential")])
            for group in groups
            if group.analysis == name
        )
        covariate = areas[column].to_numpy(dtype=np.float64)
        counted = population.areas & ~np.isnan(covariate)
        for quarter, cut in enumerate(cuts, 1):
            share = quarter / 4 * counted
            below, up_to = counted & (covariate < cut), counted & (covariate <= cut)
            rows.append((below - share, -np.inf, 1 - quarter / 4, ALWAYS))
            rows.append((up_to - share, -quarter / 4, np.inf, ALWAYS))
    return _quantity(values, rows, floor=1.0, ceiling=float(values.sum()), width=float(minimum - 1), fewest=2)


def _share_sums(inside: Counts, groups: list[Group], probabilities: tuple[float, float], minimum: int) -> Quantity:
    """Collect what published rates disclose: sums of detection rates by area, weighted by residents."""
    images = inside.sum(axis=1)
    values = np.divide(inside[:, 1], images, out=np.zeros(len(images)), where=images > 0)
    ppv, false_omission_rate = probabilities
    rows = []
    for number, group in enumerate(groups):
        if ppv == false_omission_rate:
            break  # deployment rates do not depend on the class of an image
        shown = round(group.rate, RATE_DECIMALS)
        half = 0.5 * 10.0**-RATE_DECIMALS
        ends = np.sort((np.array([shown - half, shown + half]) - false_omission_rate) / (ppv - false_omission_rate))
        persons = group.weights.sum()
        rows.append((group.weights, ends[0] * persons, ends[1] * persons, _always(number, group)))
    return _quantity(values, rows, floor=0.0, ceiling=1.0, width=1 / minimum, fewest=MIN_WITHHELD_PER_RATE)


def _quantity(values: Floats, rows: list[tuple[Floats, float, float, int]], **known: Any) -> Quantity:
    return Quantity(
        values=values,
        weights=sparse.csr_array(np.array([row[0] for row in rows]).reshape(len(rows), len(values))),
        low=np.array([row[1] for row in rows], dtype=np.float64),
        high=np.array([row[2] for row in rows], dtype=np.float64),
        group=np.array([row[3] for row in rows], dtype=np.int64),
        **known,
    )


def round_to_step(total: float, step: float) -> float:
    """Round a total to a multiple of `step`; a step of 0 leaves it unchanged."""
    return total if step == 0 else float(np.round(total / step) * step)

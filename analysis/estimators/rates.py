"""Deployment rates of groups, and the nine published analyses.

The estimators take counts per area, for one data set or for many replicates at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from patrolscope.pipeline.contract.tables import PEOPLE_PUBLISHED
from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TOTAL_KEY = PEOPLE_PUBLISHED["persons"]
ZONE_NAMES = {"C": "Commercial", "M": "Manufacturing", "R": "Residential"}
RACES = {
    "persons_white": "White",
    "persons_black": "Black",
    "persons_hispanic": "Hispanic or Latino",
    "persons_asian": "Asian",
}
# Analyses of population groups, whose residents the census counts with an error of sampling.
POPULATION_GROUPS = ("race", "race_residential")
QUARTILE_NAMES = ("Quartile 1 (lowest)", "Quartile 2", "Quartile 3", "Quartile 4 (highest)")
QUARTILE_STEMS = {"density": "density_cbg", "income": "median_household_income"}

# The nine analyses in the order of the paper, and the file in which its authors released each.
PUBLISHED_FILES = {
    "race": "race_bootstraps.json",
    "race_residential": "race_residential_zones_only_bootstraps.json",
    "density": "density_cbg_bootstraps.json",
    "density_residential": "density_cbg_residential_only_bootstraps.json",
    "income": "median_household_income_bootstraps.json",
    "income_residential": "median_household_income_residential_only_bootstraps.json",
    "zone": "zone_bootstraps.json",
    "borough": "boro_bootstraps.json",
    "neighborhood": "neighborhood_bootstraps.json",
}


def group_labels(analysis: str) -> dict[str, str]:
    """Return the display name of each group by its published key; empty for regions, whose keys are their names."""
    kind = analysis.removesuffix("_residential")
    if kind == "race":
        return {PEOPLE_PUBLISHED[race]: name for race, name in RACES.items()}
    if kind in QUARTILE_STEMS:
        return {f"{QUARTILE_STEMS[kind]}_quartile_{number}": name for number, name in enumerate(QUARTILE_NAMES, 1)}
    return ZONE_NAMES if kind == "zone" else {}


# Reasons for a population without areas.
_NO_AREA = {
    "all": "the study has no area",
    "residential": "no area is known to be residential",
    "income": "no area has a known income",
    "residential_income": "no residential area has a known income",
}


@dataclass(frozen=True)
class Analysis:
    """Groups of residents or regions, and the population of images that they are estimated from.

    Attributes
    ----------
    name : str
    published_file : str
    population : str
        Name of a `Population`.
    keys, labels : tuple of str
        Names of the groups in the published files, and display names.
    weights : ndarray of float64, shape (n_areas, n_groups)
        Residents of each group in each area.
    """

    name: str
    published_file: str
    population: str
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    weights: Floats


@dataclass(frozen=True)
class Population:
    """Areas whose images an analysis resamples, with or without the images outside all areas."""

    name: str
    areas: Bools
    with_outside: bool


def populations(areas: pd.DataFrame) -> dict[str, Population]:
    """Return the four populations of docs/method.md: all, residential, with income, and both."""
    residential = (areas["zone"] == "R").to_numpy()
    income = areas["income_usd"].notna().to_numpy()
    return {
        population.name: population
        for population in (
            Population("all", np.ones(len(areas), dtype=np.bool_), with_outside=True),
            Population("residential", residential, with_outside=False),
            Population("income", income, with_outside=False),
            Population("residential_income", residential & income, with_outside=False),
        )
    }


def weighted_percentiles(values: Floats, counts: npt.NDArray[np.int64], percents: list[float]) -> Floats:
    """Compute percentiles of values that occur several times, equal to those of numpy for the repeated values.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        Without missing values.
    counts : ndarray of int64, shape (n,)
        How often each value occurs, at least once in total.
    percents : list of float
        Between 0 and 100; interpolation is linear.
    """
    order = np.argsort(values, kind="stable")
    values, ends = values[order], np.cumsum(counts[order])
    total = int(ends[-1])
    at = np.array(percents) / 100 * (total - 1)
    below = np.floor(at)
    low = values[np.searchsorted(ends, below, side="right")]
    high = values[np.searchsorted(ends, np.minimum(below + 1, total - 1), side="right")]
    # The same two expressions as in numpy, so that both round alike.
    share = at - below
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))


def quartile_of(values: Floats, cuts: Floats) -> npt.NDArray[np.int64]:
    """Return the quartile of each value, 0 to 3, or -1 if missing; a value on a cut point belongs to the upper one."""
    return np.where(np.isnan(values), -1, np.searchsorted(cuts, values, side="right"))


def analyses(
    areas: pd.DataFrame, images: npt.NDArray[np.int64]
) -> tuple[list[Analysis], dict[str, str], dict[str, Floats]]:
    """Return the published analyses that the areas of the study allow.

    Parameters
    ----------
    areas : DataFrame
        `AREAS`.
    images : ndarray of int64, shape (n_areas,)
        Analyzed images, from which the quartile cut points are computed.

    Returns
    -------
    analyses : list of Analysis
        In the order of the paper.
    skipped : dict of str to str
        Reason for each analysis that is not possible.
    cut_points : dict of str to ndarray
        The three cut points of each quartile analysis.
    """
    persons = areas["persons"].to_numpy()
    by_name = populations(areas)
    found: list[Analysis] = []
    skipped: dict[str, str] = {}
    cuts: dict[str, Floats] = {}

    for name, population in (("race", "all"), ("race_residential", "residential")):
        labels = group_labels(name)
        weights = areas[list(RACES)].to_numpy()
        found.append(Analysis(name, PUBLISHED_FILES[name], population, tuple(labels), tuple(labels.values()), weights))

    for name, column, population in (
        ("density", "density_per_sqmi", "all"),
        ("density_residential", "density_per_sqmi", "residential"),
        ("income", "income_usd", "income"),
        ("income_residential", "income_usd", "residential_income"),
    ):
        values = areas[column].to_numpy(dtype=np.float64)
        counted = np.where(by_name[population].areas & ~np.isnan(values), images, 0)
        if counted.sum() == 0:
            skipped[name] = f"no analyzed image lies in an area with a known {column}"
            continue
        known = counted > 0
        cuts[name] = weighted_percentiles(values[known], counted[known], [25, 50, 75])
        member = quartile_of(values, cuts[name])[:, None] == np.arange(4)
        labels = group_labels(name)
        weights = member * persons[:, None]
        found.append(Analysis(name, PUBLISHED_FILES[name], population, tuple(labels), tuple(labels.values()), weights))

    for name in ("zone", "borough", "neighborhood"):
        groups = sorted(areas[name].dropna().unique())
        if not groups:
            skipped[name] = f"the study has no layer that gives an area's {name}"
            continue
        member = areas[name].to_numpy()[:, None] == np.array(groups, dtype=object)
        labels = group_labels(name) or {group: group for group in groups}
        names = tuple(labels[group] for group in groups)
        found.append(Analysis(name, PUBLISHED_FILES[name], "all", tuple(groups), names, member * persons[:, None]))

    for analysis in found:
        inside = by_name[analysis.population].areas
        if analysis.name in skipped or persons[inside & (images > 0)].sum() > 0:
            continue
        without_residents = "the areas of its population with analyzed images have no residents"
        skipped[analysis.name] = without_residents if inside.any() else _NO_AREA[analysis.population]
    return [analysis for analysis in found if analysis.name not in skipped], skipped, cuts


def area_means(
    positives: npt.NDArray[np.int64] | Floats,
    images: npt.NDArray[np.int64] | Floats,
    ppv: float | Floats,
    false_omission_rate: float | Floats,
) -> Floats:
    """Compute the deployment rate of each area, its mean calibrated prediction.

    Parameters
    ----------
    positives, images : ndarray, shape (..., n_areas)
    ppv, false_omission_rate : float or ndarray
        Pr(police vehicle) of positive and negative images.

    Returns
    -------
    ndarray of float64, shape (..., n_areas)
        NaN for areas without images.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return deployment_rate(positives / images, ppv, false_omission_rate)


def deployment_rate(detection_rate: Floats, ppv: float | Floats, false_omission_rate: float | Floats) -> Floats:
    """Return the deployment rate of images, FOR + (PPV - FOR) * detection rate.

    Parameters
    ----------
    detection_rate : ndarray of float64
        Share of the images that are positive.
    ppv, false_omission_rate : float or ndarray
        Pr(police vehicle) of positive and negative images.

    Notes
    -----
    Equal detection rates give rates that are equal to the last digit, as ranks and ties require. Dividing the sum over
    both classes by the images would round differently for different numbers of images.
    """
    return np.asarray(false_omission_rate + (ppv - false_omission_rate) * detection_rate)


def _weighted(weights: sparse.csr_array, means: Floats, times: npt.NDArray[np.integer] | None = None) -> Floats:
    """Return weighted means, shape (n_groups, n), of means of areas, shape (n_areas, n).

    `times` is how often each area counts.
    """
    seen = ~np.isnan(means)
    # Deviations from the lowest mean are weighted: groups of which all areas have that mean, such as those without a
    # positive image, then have exactly the same mean, without rounding.
    lowest = np.fmin.reduce(means, axis=0, initial=np.inf)
    values, counted = means - lowest, seen.astype(np.float64)
    values[~seen] = 0.0
    if times is not None:
        values *= times
        counted *= times
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(axis=1)[:, None] if counted.all() and times is None else weights @ counted
        return np.asarray(lowest + (weights @ values) / total)


@dataclass(frozen=True)
class Panel:
    """Everyone and all groups of the analyses of one population, as the rows of one sparse matrix.

    Attributes
    ----------
    population : Population
    analyses : tuple of Analysis
    weights : csr_array, shape (1 + n_groups, n_areas)
        Residents: everyone, then the groups of each analysis; 0 in areas outside the population.
    """

    population: Population
    analyses: tuple[Analysis, ...]
    weights: sparse.csr_array

    @property
    def rows(self) -> dict[str, slice]:
        """Rows of the groups of each analysis, by its name."""
        ends = np.cumsum([1, *(len(analysis.keys) for analysis in self.analyses)])
        return {analysis.name: slice(ends[at], ends[at + 1]) for at, analysis in enumerate(self.analyses)}

    @property
    def names(self) -> tuple[str, ...]:
        """Name of everyone and of each group, different in every panel of a study."""
        groups = (f"{analysis.name} {key}" for analysis in self.analyses for key in analysis.keys)
        return (f"{self.population.name} {self.analyses[0].name} {TOTAL_KEY}", *groups)

    @property
    def of_population_groups(self) -> bool:
        """Whether the groups are counted by the census, such as White residents, and not regions or quartiles."""
        return self.analyses[0].name in POPULATION_GROUPS

    def means(self, means: Floats, times: npt.NDArray[np.integer] | None = None) -> Floats:
        """Compute the weighted means of everyone and of each group.

        Parameters
        ----------
        means : ndarray of float64, shape (n_areas, n)
            NaN for areas without images.
        times : ndarray of integers, shape (n_areas, n), optional
            How often each area counts, by default once.

        Returns
        -------
        ndarray of float64, shape (1 + n_groups, n)
            M_g = sum_a(w_ag m_a) / sum_a(w_ag) over areas with images (docs/method.md, "Estimators").
        """
        return _weighted(self.weights, means, times)


def panels(analyses: list[Analysis], areas: pd.DataFrame) -> list[Panel]:
    """Group analyses by population, those of population groups apart; there is no panel without an analysis.

    Raises
    ------
    SourceError
        If a number of residents is missing or negative.
    """
    persons = areas["persons"].to_numpy()
    found = []
    for population, by_census in product(populations(areas).values(), (True, False)):
        members = tuple(
            analysis
            for analysis in analyses
            if analysis.population == population.name and (analysis.name in POPULATION_GROUPS) == by_census
        )
        if members:
            columns = np.column_stack([persons, *(analysis.weights for analysis in members)])
            if wrong := int((~(columns >= 0)).any(axis=1).sum()):
                raise SourceError(
                    f"{wrong} areas have a missing or negative number of residents ({members[0].name}); residents are "
                    "the weights of all means; check layers.population"
                )
            found.append(Panel(population, members, sparse.csr_array((columns * population.areas[:, None]).T)))
    return found

"""Group means of the calibrated prediction, and the nine published analyses.

The estimators take counts by area, for one data set or for many replicates at once, and know nothing of images.
"""

from __future__ import annotations

from dataclasses import dataclass

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
QUARTILE_NAMES = ("Quartile 1 (lowest)", "Quartile 2", "Quartile 3", "Quartile 4 (highest)")
QUARTILE_STEMS = {"density": "density_cbg", "income": "median_household_income"}

# The nine analyses in the paper's order, and the file in which its authors released each.
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
    """Published key of every group of an analysis -> its name for a reader; empty for places, which name themselves."""
    kind = analysis.removesuffix("_residential")
    if kind == "race":
        return {PEOPLE_PUBLISHED[race]: name for race, name in RACES.items()}
    if kind in QUARTILE_STEMS:
        return {f"{QUARTILE_STEMS[kind]}_quartile_{number}": name for number, name in enumerate(QUARTILE_NAMES, 1)}
    return ZONE_NAMES if kind == "zone" else {}


# Why a frame has no area.
_NO_AREA = {
    "all": "the study has no area",
    "residential": "no area is known to be residential",
    "income": "no area has a known income",
    "residential_income": "no residential area has a known income",
}


@dataclass(frozen=True)
class Analysis:
    """One question: groups of people or places, and the images that answer it.

    Attributes
    ----------
    frame : which areas' images are resampled; only "all" has the images outside every area
    weights : (areas, groups) persons of each group in each area
    keys, labels : name of each group in the published files, and for a reader
    """

    name: str
    published_file: str
    frame: str
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    weights: Floats


@dataclass(frozen=True)
class Population:
    """Areas whose images an analysis uses, with or without the images outside every area."""

    name: str
    areas: Bools
    with_outside: bool


def frames(areas: pd.DataFrame) -> dict[str, Population]:
    """The four frames of docs/method.md: all, residential, with income, residential with income."""
    residential = (areas["zone"] == "R").to_numpy()
    income = areas["income_usd"].notna().to_numpy()
    return {
        frame.name: frame
        for frame in (
            Population("all", np.ones(len(areas), dtype=np.bool_), with_outside=True),
            Population("residential", residential, with_outside=False),
            Population("income", income, with_outside=False),
            Population("residential_income", residential & income, with_outside=False),
        )
    }


def weighted_percentiles(values: Floats, counts: npt.NDArray[np.int64], percents: list[float]) -> Floats:
    """Percentiles of `values` where each stands `counts` times: as numpy's linear interpolation on the long list.

    Parameters
    ----------
    values : (n,) without missing values
    counts : (n,) how often each stands, at least one in total
    """
    order = np.argsort(values, kind="stable")
    values, ends = values[order], np.cumsum(counts[order])
    total = int(ends[-1])
    at = np.array(percents) / 100 * (total - 1)
    below = np.floor(at)
    low = values[np.searchsorted(ends, below, side="right")]
    high = values[np.searchsorted(ends, np.minimum(below + 1, total - 1), side="right")]
    # The same two forms as numpy's, so that both round alike.
    share = at - below
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))


def quartile_of(values: Floats, cuts: Floats) -> npt.NDArray[np.int64]:
    """Quartile 0..3 of each value, -1 where it is missing; a value on a cut goes up."""
    return np.where(np.isnan(values), -1, np.searchsorted(cuts, values, side="right"))


def analyses(
    areas: pd.DataFrame, images: npt.NDArray[np.int64]
) -> tuple[list[Analysis], dict[str, str], dict[str, Floats]]:
    """The published analyses that the study's areas allow.

    Parameters
    ----------
    areas : `AREAS`
    images : (areas,) analyzed images of each area, from which the quartile cut points are taken

    Returns
    -------
    analyses : in the paper's order
    skipped : name of an analysis -> why it can not be made
    cut_points : name of a quartile analysis -> its three cut points
    """
    people = areas["persons"].to_numpy()
    all_frames = frames(areas)
    made: list[Analysis] = []
    skipped: dict[str, str] = {}
    cuts: dict[str, Floats] = {}

    for name, frame in (("race", "all"), ("race_residential", "residential")):
        labels = group_labels(name)
        weights = areas[list(RACES)].to_numpy()
        made.append(Analysis(name, PUBLISHED_FILES[name], frame, tuple(labels), tuple(labels.values()), weights))

    for name, column, frame in (
        ("density", "density_per_sqmi", "all"),
        ("density_residential", "density_per_sqmi", "residential"),
        ("income", "income_usd", "income"),
        ("income_residential", "income_usd", "residential_income"),
    ):
        values = areas[column].to_numpy(dtype=np.float64)
        counted = np.where(all_frames[frame].areas & ~np.isnan(values), images, 0)
        if counted.sum() == 0:
            skipped[name] = f"no analyzed image lies in an area with a known {column}"
            continue
        known = counted > 0
        cuts[name] = weighted_percentiles(values[known], counted[known], [25, 50, 75])
        member = quartile_of(values, cuts[name])[:, None] == np.arange(4)
        labels = group_labels(name)
        weights = member * people[:, None]
        made.append(Analysis(name, PUBLISHED_FILES[name], frame, tuple(labels), tuple(labels.values()), weights))

    for name in ("zone", "borough", "neighborhood"):
        groups = sorted(areas[name].dropna().unique())
        if not groups:
            skipped[name] = f"the study has no layer that gives an area's {name}"
            continue
        member = areas[name].to_numpy()[:, None] == np.array(groups, dtype=object)
        labels = group_labels(name) or {group: group for group in groups}
        names = tuple(labels[group] for group in groups)
        made.append(Analysis(name, PUBLISHED_FILES[name], "all", tuple(groups), names, member * people[:, None]))

    for one in made:
        inside = all_frames[one.frame].areas
        if one.name in skipped or people[inside & (images > 0)].sum() > 0:
            continue
        nobody = "nobody lives in an area of its frame with an analyzed image"
        skipped[one.name] = nobody if inside.any() else _NO_AREA[one.frame]
    return [analysis for analysis in made if analysis.name not in skipped], skipped, cuts


def area_means(
    positives: npt.NDArray[np.int64] | Floats,
    images: npt.NDArray[np.int64] | Floats,
    p_positive: float | Floats,
    p_negative: float | Floats,
) -> Floats:
    """Mean calibrated prediction of each area, (..., areas); missing where an area has no image."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return level_of_share(positives / images, p_positive, p_negative)


def level_of_share(share: Floats, p_positive: float | Floats, p_negative: float | Floats) -> Floats:
    """Mean calibrated prediction of images of which a share is positive.

    Equal shares have levels that are equal to the last digit: ranks, correlations and ties see no rounding. The sum of
    both classes by the images, which is the same number, rounds differently from one number of images to the next.
    """
    return np.asarray(p_negative + (p_positive - p_negative) * share)


def _weighted(weights: sparse.csr_array, means: Floats, times: npt.NDArray[np.integer] | None = None) -> Floats:
    """(groups, areas) weights and (areas, n) means to (groups, n); `times` says how often each area counts."""
    seen = ~np.isnan(means)
    # What lies above the lowest mean is weighed: a group of which every area has that one, as all without a positive
    # image have, then has exactly it, and is tied with the others of its kind, not some rounding above or below them.
    lowest = np.fmin.reduce(means, axis=0, initial=np.inf)
    values, counted = means - lowest, seen.astype(np.float64)
    values[~seen] = 0.0
    if times is not None:
        values *= times
        counted *= times
    with np.errstate(invalid="ignore", divide="ignore"):
        people = weights.sum(axis=1)[:, None] if counted.all() and times is None else weights @ counted
        return np.asarray(lowest + (weights @ values) / people)


@dataclass(frozen=True)
class Panel:
    """Everyone and all groups of the analyses of one frame, as the rows of one sparse matrix.

    Attributes
    ----------
    analyses : whose groups these are, in order
    weights : (1 + groups, areas) persons, of everyone first; none in areas outside the frame
    """

    frame: Population
    analyses: tuple[Analysis, ...]
    weights: sparse.csr_array

    @property
    def rows(self) -> dict[str, slice]:
        """Rows of the groups of each analysis."""
        ends = np.cumsum([1, *(len(analysis.keys) for analysis in self.analyses)])
        return {analysis.name: slice(ends[at], ends[at + 1]) for at, analysis in enumerate(self.analyses)}

    def means(self, means: Floats, times: npt.NDArray[np.integer] | None = None) -> Floats:
        """Means of everyone and of each group, (1 + groups, n), from those of areas, (areas, n).

        Parameters
        ----------
        means : (areas, n), missing where an area has no image
        times : (areas, n) how often each area counts; None: once
        """
        return _weighted(self.weights, means, times)


def panels(analyses: list[Analysis], areas: pd.DataFrame) -> list[Panel]:
    """Analyses by frame; frames without an analysis have no panel.

    Raises
    ------
    SourceError : a number of people is missing or below 0
    """
    persons = areas["persons"].to_numpy()
    made = []
    for frame in frames(areas).values():
        members = tuple(analysis for analysis in analyses if analysis.frame == frame.name)
        if members:
            columns = np.column_stack([persons, *(analysis.weights for analysis in members)])
            if wrong := int((~(columns >= 0)).any(axis=1).sum()):
                raise SourceError(
                    f"{wrong} areas have a number of people that is missing or below 0 ({members[0].name}): people are "
                    "the weights of every mean; check layers.population"
                )
            made.append(Panel(frame, members, sparse.csr_array((columns * frame.areas[:, None]).T)))
    return made

"""What of a study may be published: aggregates from which no area of few images can be told.

Frames and arrays in, frames out; `patrolscope.analysis.disclosure.release_folder` reads the study and writes the folder. docs/release.md says what
is withheld and why; `patrolscope.analysis.disclosure.suppression` chooses the areas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from patrolscope.analysis.disclosure.suppression import ALWAYS, CanNotBeProtected, Quantity, Withheld, withhold
from patrolscope.analysis.disclosure.synthetic_replicates import imagine, redraw
from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.rates import (
    TOTAL_KEY,
    Analysis,
    Population,
    analyses,
    area_means,
    panels,
    populations,
)
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.result_tables import AVERAGE, released_table
from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.contract.tables import AREAS
from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]

# Levels are published in steps of 1e-5: a thousandth of the average of New York, and finer than most intervals. With
# all digits two withheld areas of a neighborhood could be told apart: their shares are fractions with small
# denominators, and hardly two pairs of such fractions have the same sum to 15 digits.
LEVEL_DECIMALS = 5
RELATIVE_DECIMALS = 3
# Image counts of groups that cut across neighborhoods are rounded to this many times the minimum.
ROUNDED_TO = 10
# A published level has no withheld area behind it or at least so many: with two, one resident who knows the one area
# would know the other.
FEWEST_IN_A_LEVEL = 3
CUT_DIGITS = 3  # of the quartile cut points
# One reason for all, as one that tells which rule spoke tells how many images the areas have.
SKIPPED = "what it would show could tell of areas with few images"

_COUNT = {"unit": "images", "low": 0, "nullable": True}
_PROBABILITY = {"unit": "1", "low": 0, "high": 1, "nullable": True}
_RATIO = {"unit": "1", "low": 0, "nullable": True}
_FLAG = {"allowed": ("true", "false")}

RELEASED_AREAS = Table(
    "areas.csv",
    row="one area (block group) of the study",
    key=("area",),
    columns=(
        *(AREAS[name] for name in ("area", "neighborhood", "borough", "community_district", "zone")),
        *(column for column in AREAS if column.name.startswith("persons")),
        AREAS["income_usd"],
        AREAS["density_per_sqmi"],
        Column("images", "int64", "analyzed images; 0 is a fact about coverage and is shown", **_COUNT),  # type: ignore[arg-type]
        Column("positives", "int64", "of them classified as showing a police vehicle", **_COUNT),  # type: ignore[arg-type]
        Column("level", "float64", "mean calibrated probability that an image shows one", **_PROBABILITY),  # type: ignore[arg-type]
        Column("relative_to_average", "float64", "level by the released overall level", **_RATIO),  # type: ignore[arg-type]
        Column("withheld", "string", "images, positives and level are withheld", **_FLAG),  # type: ignore[arg-type]
    ),
)
RELEASED_NEIGHBORHOODS = Table(
    "neighborhoods.csv",
    row="one neighborhood in which somebody lives in an area with images",
    key=("nta",),
    columns=(
        Column("nta", "string", "name of the neighborhood tabulation area (the authors' column)"),
        Column("weighted_mean", "float64", "level, by people (the authors' column)", **_PROBABILITY),  # type: ignore[arg-type]
        Column("weighted_mean_lower", "float64", "lower end of its interval", **_PROBABILITY),  # type: ignore[arg-type]
        Column("weighted_mean_upper", "float64", "upper end of its interval", **_PROBABILITY),  # type: ignore[arg-type]
        Column("relative_to_average", "float64", "weighted_mean by the released overall level", **_RATIO),  # type: ignore[arg-type]
        Column("relative_lower", "float64", "lower end of its interval", **_RATIO),  # type: ignore[arg-type]
        Column("relative_upper", "float64", "upper end of its interval", **_RATIO),  # type: ignore[arg-type]
        Column("images", "int64", "analyzed images in its areas where people live", **_COUNT),  # type: ignore[arg-type]
        Column("persons", "float64", "people who live there", unit="persons", low=0),
        Column("areas", "int64", "areas with images in which people live", low=0),
        Column("areas_withheld", "int64", "of them withheld in areas.csv", low=0),
        Column("withheld", "string", "level, intervals and images are withheld", **_FLAG),  # type: ignore[arg-type]
    ),
)
RELEASED_GROUPS = Table(
    "groups.csv",
    row="one group and quantity of one analysis",
    key=("analysis", "key", "quantity"),
    columns=(
        Column("analysis", "string", "which of the nine analyses"),
        Column("group", "string", f"name for a reader; {AVERAGE} is the average that others are relative to"),
        Column("key", "string", "name in the JSON files"),
        Column("quantity", "string", "what is estimated", allowed=("relative_to_average", "weighted_mean")),
        Column("estimate", "float64", "from the point_estimate of the JSON file", **_RATIO),  # type: ignore[arg-type]
        Column("lower", "float64", "lower end of the interval, from the replicates of the JSON file", **_RATIO),  # type: ignore[arg-type]
        Column("upper", "float64", "upper end of the interval", **_RATIO),  # type: ignore[arg-type]
        Column("sd", "float64", "standard deviation over the replicates (ddof 0)", **_RATIO),  # type: ignore[arg-type]
        Column("replicates", "int64", "bootstrap replicates of the analysis", low=0),
        Column("areas", "int64", "areas with images in which the group lives", low=0),
        Column(
            "images",
            "int64",
            f"images in areas where the group lives; rounded to {ROUNDED_TO} times the minimum but for neighborhoods",
            **_COUNT,  # type: ignore[arg-type]
        ),
        Column(
            "persons", "float64", "people of the group; empty for the average", unit="persons", low=0, nullable=True
        ),
        Column("withheld", "string", "estimate, interval and images are withheld", **_FLAG),  # type: ignore[arg-type]
    ),
)
RELEASED_TABLES = (RELEASED_NEIGHBORHOODS, RELEASED_AREAS, RELEASED_GROUPS)


@dataclass(frozen=True)
class Release:
    """What may be published, and how much is not."""

    areas: pd.DataFrame  # RELEASED_AREAS
    neighborhoods: pd.DataFrame  # RELEASED_NEIGHBORHOODS
    groups: pd.DataFrame  # RELEASED_GROUPS
    results: dict[str, Released]  # replicates by analysis
    skipped: dict[str, str]  # analysis -> why it is not in the release
    too_few: int  # areas withheld as they have fewer images than the minimum
    besides: int  # areas withheld so that those can not be computed

    @property
    def groups_withheld(self) -> int:
        """Groups of any analysis whose estimates are withheld."""
        withheld = self.groups[self.groups["withheld"] == "true"]
        return len(withheld[["analysis", "key"]].drop_duplicates())


@dataclass(frozen=True)
class _Group:
    """One group of one frame whose level and number of images may be published."""

    analysis: str | None  # None: everyone of the frame, the average of every analysis on it
    key: str
    frame: str
    weights: Floats  # (areas,) persons, 0 outside the frame and where no image was taken
    counted: Bools  # (areas,) whose images the published count is of
    level: float
    step: float  # the published count is a multiple of it


def release(
    areas: pd.DataFrame,
    inside: Counts,
    results: dict[str, Released],
    probabilities: tuple[float, float],
    *,
    drawn: Floats,
    minimum: int,
    percent: float,
) -> Release:
    """Tables of a study with what could tell of an area of few images withheld, and replicates drawn from these tables.

    Parameters
    ----------
    areas : `AREAS`
    inside : (areas, 2) images that are negative, positive
    results : of the study's analyses; of these only the point estimates are released
    probabilities : Pr(police vehicle) of a positive and of a negative image
    drawn : (2, replicates) Pr(police vehicle) of a negative and of a positive image in each replicate
    minimum : images; an area with fewer is withheld, 1 withholds none
    percent : of the replicates that an interval holds, in the middle

    Raises
    ------
    SourceError : no area has enough images, or nothing that is published of the city can be protected
    """
    images = inside.sum(axis=1)
    if not (images >= minimum).any():
        raise SourceError(
            f"no area has {minimum} images (the most is {images.max(initial=0)}): nothing can be released at this "
            "minimum. Lower --minimum-images, or release a study of more images"
        )
    lowest = min(one.total for one in results.values())
    if round(lowest, LEVEL_DECIMALS) == 0:
        raise SourceError(f"the overall level is {lowest:.2g}: levels are released to {LEVEL_DECIMALS} decimals")
    made, all_frames = [one for one in analyses(areas, images)[0] if one.name in results], populations(areas)
    groups = _groups(areas, images, made, all_frames, results, minimum)
    state = _withheld(areas, inside, groups, probabilities, minimum, all_frames)

    hidden = {(group.analysis, group.key, group.frame): no for group, no in zip(groups, state.groups, strict=True)}
    skipped = {
        one.name: SKIPPED
        for one in made
        if hidden[None, TOTAL_KEY, one.population]
        or all(hidden[group.analysis, group.key, group.frame] for group in groups if group.analysis == one.name)
    }
    made = [one for one in made if one.name not in skipped]
    published = {one.name: _published(results[one.name], one, hidden) for one in made}
    average = next((published[one.name].total for one in made if one.population == "all"), np.nan)
    shown = _area_rows(areas, inside, state.areas, probabilities, average)
    places = _places(published, groups, images)
    published = _with_replicates(published, made, areas, (shown, places), probabilities, drawn, minimum)
    table = pd.concat(
        [
            _group_rows(one, all_frames[one.population], published[one.name], groups, hidden, images, percent)
            for one in made
        ]
        or [RELEASED_GROUPS.empty()],
        ignore_index=True,
    )
    return Release(
        areas=shown,
        neighborhoods=_neighborhood_rows(table, groups, state.areas),
        groups=RELEASED_GROUPS.conform(table),
        results=published,
        skipped=skipped,
        too_few=int(((images > 0) & (images < minimum)).sum()),
        besides=int((state.areas & (images >= minimum)).sum()),
    )


# What to withhold.


def _groups(
    areas: pd.DataFrame,
    images: Whole,
    made: list[Analysis],
    all_frames: dict[str, Population],
    results: dict[str, Released],
    minimum: int,
) -> list[_Group]:
    """The average of every frame, then every group that has an estimate."""
    persons, seen = areas["persons"].to_numpy(), images > 0
    step = float(ROUNDED_TO * minimum)
    groups = []
    for name in dict.fromkeys(one.population for one in made):
        inside = all_frames[name].areas
        total = next(results[one.name].total for one in made if one.population == name)
        groups.append(_Group(None, TOTAL_KEY, name, np.where(inside & seen, persons, 0.0), inside & seen, total, step))
    for one in made:
        released = results[one.name]
        levels = dict(zip(released.keys, released.means, strict=True))
        for key, column in zip(one.keys, one.weights.T, strict=True):
            weights = np.where(all_frames[one.population].areas & seen, column, 0.0)
            if not np.isnan(levels.get(key, np.nan)):
                exact = 0.0 if one.name == "neighborhood" else step
                groups.append(_Group(one.name, key, one.population, weights, weights > 0, levels[key], exact))
    return groups


def _enough(group: _Group, minimum: int) -> int:
    """Images with fewer than which a group is withheld.

    Twice the minimum, and not the minimum alone, as that a group is withheld may tell that it has fewer: with one image
    in each other area, any of its areas may still have from 1 to 2 * (minimum - 1).
    """
    return int(group.counted.sum()) + 2 * (minimum - 1)


def _withheld(
    areas: pd.DataFrame,
    inside: Counts,
    groups: list[_Group],
    probabilities: tuple[float, float],
    minimum: int,
    all_frames: dict[str, Population],
) -> Withheld:
    images = inside.sum(axis=1)
    few = np.array([images[group.counted].sum() < _enough(group, minimum) for group in groups])
    skipped = {group.frame for group, no in zip(groups, few, strict=True) if no and group.analysis is None}
    primary = Withheld((images > 0) & (images < minimum), few | np.array([group.frame in skipped for group in groups]))
    if not primary.areas.any():
        return primary
    counts = _image_sums(areas, images, groups, few, skipped, minimum, all_frames)
    shares = _share_sums(inside, groups, probabilities, minimum)
    members = sparse.csr_array(np.array([group.counted for group in groups], dtype=np.float64))
    block = pd.factorize(areas["neighborhood"])[0].astype(np.int64)
    try:
        return withhold([counts, shares], primary, members, images, block)
    except CanNotBeProtected as error:
        raise SourceError(
            f"with areas of fewer than {minimum} images withheld, the city's average still tells of them: choose "
            "another --minimum-images, or release a study of more areas"
        ) from error


def _always(number: int, group: _Group) -> int:
    return ALWAYS if group.analysis is None and group.frame == "all" else number


def _image_sums(
    areas: pd.DataFrame,
    images: Whole,
    groups: list[_Group],
    few: Bools,
    skipped: set[str],
    minimum: int,
    all_frames: dict[str, Population],
) -> Quantity:
    """Images by area, their sums by group, and what the quartile groups say of them.

    A group that is withheld for its few images may tell that it has few, and one that is not that it has enough. That
    an area is in a quartile says which share of the images lies below: an inequality for each cut point.
    """
    values = images.astype(np.float64)
    rows: list[tuple[Floats, float, float, int]] = []
    for number, group in enumerate(groups):
        counted = group.counted.astype(np.float64)
        if few[number]:
            rows.append((counted, -np.inf, _enough(group, minimum) - 1, ALWAYS))
            continue
        shown = _to_step(values[group.counted].sum(), group.step)
        low, high = max(shown - group.step / 2, _enough(group, minimum)), shown + group.step / 2
        rows.append((counted, low, high, _always(number, group)))
    for name, cuts in analyses(areas, images)[2].items():
        if all(group.analysis != name or group.frame in skipped for group in groups):
            continue
        frame, column = next(
            (all_frames[group.frame], _QUARTILE_COLUMNS[name.removesuffix("_residential")])
            for group in groups
            if group.analysis == name
        )
        covariate = areas[column].to_numpy(dtype=np.float64)
        counted = frame.areas & ~np.isnan(covariate)
        for quarter, cut in enumerate(cuts, 1):
            share = quarter / 4 * counted
            below, up_to = counted & (covariate < cut), counted & (covariate <= cut)
            rows.append((below - share, -np.inf, 1 - quarter / 4, ALWAYS))
            rows.append((up_to - share, -quarter / 4, np.inf, ALWAYS))
    return _quantity(values, rows, floor=1.0, ceiling=float(values.sum()), width=float(minimum - 1), fewest=2)


_QUARTILE_COLUMNS = {"density": "density_per_sqmi", "income": "income_usd"}


def _share_sums(inside: Counts, groups: list[_Group], probabilities: tuple[float, float], minimum: int) -> Quantity:
    """Share of positive images by area, and their sums, weighted by people, that published levels give."""
    images = inside.sum(axis=1)
    values = np.divide(inside[:, 1], images, out=np.zeros(len(images)), where=images > 0)
    p_positive, p_negative = probabilities
    rows = []
    for number, group in enumerate(groups):
        if p_positive == p_negative:
            break  # every image counts alike: levels say nothing
        shown = round(group.level, LEVEL_DECIMALS)
        half = 0.5 * 10.0**-LEVEL_DECIMALS
        ends = np.sort((np.array([shown - half, shown + half]) - p_negative) / (p_positive - p_negative))
        persons = group.weights.sum()
        rows.append((group.weights, ends[0] * persons, ends[1] * persons, _always(number, group)))
    return _quantity(values, rows, floor=0.0, ceiling=1.0, width=1 / minimum, fewest=FEWEST_IN_A_LEVEL)


def _quantity(values: Floats, rows: list[tuple[Floats, float, float, int]], **known: Any) -> Quantity:
    return Quantity(
        values=values,
        weights=sparse.csr_array(np.array([row[0] for row in rows]).reshape(len(rows), len(values))),
        low=np.array([row[1] for row in rows], dtype=np.float64),
        high=np.array([row[2] for row in rows], dtype=np.float64),
        group=np.array([row[3] for row in rows], dtype=np.int64),
        **known,
    )


def _to_step(total: float, step: float) -> float:
    return total if step == 0 else float(np.round(total / step) * step)


# What is published.


def _published(released: Released, one: Analysis, hidden: dict[tuple[str | None, str, str], bool]) -> Released:
    """Rounded levels of the groups that are not withheld, without replicates."""
    shown = np.array([not hidden.get((one.name, key, one.population), True) for key in released.keys], dtype=np.bool_)
    means = np.where(shown, released.means, np.nan).astype(np.float64).round(LEVEL_DECIMALS)
    empty = np.empty((0, len(means)))
    return Released(released.keys, round(released.total, LEVEL_DECIMALS), means, empty[:, 0], empty)


def _places(published: dict[str, Released], groups: list[_Group], images: Whole) -> pd.DataFrame:
    """Released level and images of each neighborhood, by name."""
    released = published.get("neighborhood")
    levels = {} if released is None else dict(zip(released.keys, released.means, strict=True))
    rows = {
        group.key: (levels[group.key], images[group.counted].sum())
        for group in groups
        if group.analysis == "neighborhood" and not np.isnan(levels.get(group.key, np.nan))
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["level", "images"], dtype=np.float64)


def _with_replicates(
    published: dict[str, Released],
    made: list[Analysis],
    areas: pd.DataFrame,
    shown: tuple[pd.DataFrame, pd.DataFrame],
    probabilities: tuple[float, float],
    drawn: Floats,
    minimum: int,
) -> dict[str, Released]:
    """Released levels with replicates around them, drawn from released numbers alone.

    Parameters
    ----------
    shown : `RELEASED_AREAS`, and what `_places` gives
    """
    if not published:
        return {}
    images, shares = imagine(*shown, next(iter(published.values())).total, probabilities, minimum)
    wanted = panels(made, areas)
    replicated = {}
    for panel, moved in zip(wanted, redraw(images, shares, wanted, probabilities, drawn), strict=True):
        for analysis in panel.analyses:
            one = published[analysis.name]
            rows = pd.DataFrame(moved[panel.rows[analysis.name]], index=list(analysis.keys)).loc[list(one.keys)]
            means = np.clip(one.means + rows.to_numpy().T, 0, 1).round(LEVEL_DECIMALS)
            totals = np.clip(one.total + moved[0], 0, 1).round(LEVEL_DECIMALS)
            replicated[analysis.name] = replace(one, replicate_totals=totals, replicate_means=means)
    return {name: replicated[name] for name in published}


def _group_rows(
    one: Analysis,
    frame: Population,
    published: Released,
    groups: list[_Group],
    hidden: dict[tuple[str | None, str, str], bool],
    images: Whole,
    percent: float,
) -> pd.DataFrame:
    """Rows of groups.csv of one analysis: estimates as the JSON file gives them, and what stands behind each."""
    of_it = [group for group in groups if group.frame == one.population and group.analysis in (None, one.name)]
    behind = pd.DataFrame(
        {
            "key": [group.key for group in of_it],
            "areas": [int((group.counted).sum()) for group in of_it],
            "images": [int(_to_step(float(images[group.counted].sum()), group.step)) for group in of_it],
            "withheld": [bool(hidden[group.analysis, group.key, group.frame]) for group in of_it],
        }
    ).set_index("key")
    persons = dict(zip(one.keys, one.weights[frame.areas].sum(axis=0), strict=True))
    table = _every_row(one, published, percent).join(behind, on="key", how="inner")
    table["persons"] = table["key"].map(persons).astype(np.float64)
    table["images"] = table["images"].astype("Int64").mask(table["withheld"])
    decimals = np.where(table["quantity"] == "weighted_mean", LEVEL_DECIMALS, RELATIVE_DECIMALS)
    for name in ("estimate", "lower", "upper", "sd"):
        rounded = [round(value, places) for value, places in zip(table[name], decimals, strict=True)]
        table[name] = np.array(rounded, dtype=np.float64)
    table["withheld"] = _as_text(table["withheld"])
    return table


def _every_row(one: Analysis, published: Released, percent: float) -> pd.DataFrame:
    """Rows of `released_table`, and an empty one for each group that has no estimate there."""
    table = released_table(one.name, published, percent)
    labels = dict(zip(one.keys, one.labels, strict=True))
    names = [(key, quantity) for quantity in ("relative_to_average", "weighted_mean") for key in published.keys]
    wanted = pd.DataFrame([*names, (TOTAL_KEY, "weighted_mean")], columns=["key", "quantity"])
    filled = wanted.merge(table.drop(columns=["analysis", "group"]), on=["key", "quantity"], how="left")
    filled["analysis"] = one.name
    filled["group"] = [labels.get(key, AVERAGE if key == TOTAL_KEY else key) for key in filled["key"]]
    filled["replicates"] = len(published.replicate_totals)
    return filled


def _neighborhood_rows(table: pd.DataFrame, groups: list[_Group], areas_hidden: Bools) -> pd.DataFrame:
    rows = table[(table["analysis"] == "neighborhood") & (table["key"] != TOTAL_KEY)]
    if rows.empty:
        return RELEASED_NEIGHBORHOODS.empty()
    means = rows[rows["quantity"] == "weighted_mean"].set_index("key")
    relative = rows[rows["quantity"] == "relative_to_average"].set_index("key").loc[means.index]
    hidden = {
        group.key: int((group.counted & areas_hidden).sum()) for group in groups if group.analysis == "neighborhood"
    }
    frame = pd.DataFrame(
        {
            "nta": means.index.astype("str"),
            "weighted_mean": means["estimate"],
            "weighted_mean_lower": means["lower"],
            "weighted_mean_upper": means["upper"],
            "relative_to_average": relative["estimate"],
            "relative_lower": relative["lower"],
            "relative_upper": relative["upper"],
            **{name: means[name] for name in ("images", "persons", "areas", "withheld")},
            "areas_withheld": [hidden[key] for key in means.index],
        }
    )
    return RELEASED_NEIGHBORHOODS.conform(frame.sort_values("nta").reset_index(drop=True))


def _area_rows(
    areas: pd.DataFrame, inside: Counts, hidden: Bools, probabilities: tuple[float, float], average: float
) -> pd.DataFrame:
    images = inside.sum(axis=1)
    level = np.round(area_means(inside[:, 1], images, *probabilities), LEVEL_DECIMALS)
    frame = areas.assign(
        images=pd.array(images, dtype="Int64"),
        positives=pd.array(inside[:, 1], dtype="Int64"),
        level=level,
        relative_to_average=np.round(level / average, RELATIVE_DECIMALS),
    )
    for name in ("images", "positives", "level", "relative_to_average"):
        frame[name] = frame[name].mask(hidden)
    frame["withheld"] = _as_text(pd.Series(hidden, index=areas.index))
    return RELEASED_AREAS.conform(pd.DataFrame(frame[RELEASED_AREAS.names]))


def _as_text(flags: pd.Series[bool]) -> pd.Series[str]:
    return flags.map({True: "true", False: "false"}).astype("str")


def round_to_digits(value: float, digits: int = CUT_DIGITS) -> float:
    """A number with so many significant digits."""
    return float(f"{value:.{digits}g}")

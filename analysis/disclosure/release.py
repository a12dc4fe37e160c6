"""Releasable aggregates that do not disclose areas with few images.

Frames and arrays in, frames out. `release_folder` reads the study and writes the folder; `protection` chooses what to
withhold. docs/release.md explains the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from patrolscope.analysis.disclosure.protection import (
    Bools,
    Floats,
    Group,
    Whole,
    choose_withheld,
    groups_of,
    round_to_step,
)
from patrolscope.analysis.disclosure.synthetic_replicates import synthetic_counts, synthetic_replicates
from patrolscope.analysis.disclosure.tables import (
    RATE_DECIMALS,
    RELATIVE_DECIMALS,
    RELEASED_AREAS,
    RELEASED_GROUPS,
    RELEASED_NEIGHBORHOODS,
)
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
from patrolscope.pipeline.errors import SourceError

# One reason for all analyses: naming the rule would disclose how many images the areas have.
SKIPPED = "it could disclose areas with few images"
Hidden = dict[tuple[str | None, str, str], bool]  # withheld or not, by `Group.identity`


@dataclass(frozen=True)
class Release:
    """Published aggregates of a study after disclosure control.

    Attributes
    ----------
    areas, neighborhoods, groups : DataFrame
        Tables `RELEASED_AREAS`, `RELEASED_NEIGHBORHOODS`, and `RELEASED_GROUPS`.
    results : dict of str to Released
        Estimates and synthetic replicates per analysis.
    skipped : dict of str to str
        Analyses that the release leaves out, with the reason.
    primary, complementary : int
        Areas withheld for few images, and areas withheld against differencing.
    """

    areas: pd.DataFrame
    neighborhoods: pd.DataFrame
    groups: pd.DataFrame
    results: dict[str, Released]
    skipped: dict[str, str]
    primary: int
    complementary: int

    @property
    def areas_withheld(self) -> int:
        """Number of withheld areas."""
        return self.primary + self.complementary

    @property
    def groups_withheld(self) -> int:
        """Number of groups of any analysis whose estimates are withheld."""
        withheld = self.groups[self.groups["withheld"] == "true"]
        return len(withheld[["analysis", "key"]].drop_duplicates())


def release(
    areas: pd.DataFrame,
    inside: Counts,
    results: dict[str, Released],
    probabilities: tuple[float, float],
    *,
    resampled: Floats,
    minimum: int,
    percent: float,
) -> Release:
    """Withhold what could disclose areas with few images, and generate synthetic replicates from the rest.

    Parameters
    ----------
    areas : DataFrame, n_areas rows
        Areas, table `AREAS`.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images per area.
    results : dict of str to Released
        Results of the study per analysis. Only their point estimates are released.
    probabilities : tuple of float
        PPV and FOR.
    resampled : ndarray of float64, shape (2, n_replicates)
        FOR and PPV in each replicate.
    minimum : int
        Areas with fewer images are withheld. 1 withholds none.
    percent : float
        Central share of the replicates that an interval holds, in percent.

    Raises
    ------
    SourceError
        If no area has enough images, the city average rounds to 0, or nothing published about the city can be
        protected.
    """
    images = inside.sum(axis=1)
    if not (images >= minimum).any():
        raise SourceError(
            f"no area has {minimum} images (the maximum is {images.max(initial=0)}); expected at least one; lower "
            "--minimum-images, or release a study with more images"
        )
    lowest = min(result.total for result in results.values())
    if round(lowest, RATE_DECIMALS) == 0:
        raise SourceError(
            f"the city average is {lowest:.2g}; expected at least {10.0**-RATE_DECIMALS:g}, the last digit"
        )
    by_name = populations(areas)
    chosen = [analysis for analysis in analyses(areas, images)[0] if analysis.name in results]
    groups = groups_of(areas, images, chosen, by_name, results, minimum)
    state = choose_withheld(areas, inside, groups, probabilities, minimum, by_name)

    hidden: Hidden = {group.identity: bool(flag) for group, flag in zip(groups, state.groups, strict=True)}
    skipped = {
        analysis.name: SKIPPED
        for analysis in chosen
        if hidden[None, TOTAL_KEY, analysis.population]
        or all(hidden[group.identity] for group in groups if group.analysis == analysis.name)
    }
    chosen = [analysis for analysis in chosen if analysis.name not in skipped]
    published = {analysis.name: _published(results[analysis.name], analysis, hidden) for analysis in chosen}
    average = next((published[analysis.name].total for analysis in chosen if analysis.population == "all"), np.nan)
    shown = _area_rows(areas, inside, state.areas, probabilities, average)
    neighborhoods = _neighborhood_rates(published, groups, images)
    published = _with_replicates(published, chosen, areas, (shown, neighborhoods), probabilities, resampled, minimum)
    tables = [
        _group_rows(analysis, by_name[analysis.population], published[analysis.name], groups, hidden, images, percent)
        for analysis in chosen
    ]
    table = pd.concat(tables or [RELEASED_GROUPS.empty()], ignore_index=True)
    return Release(
        areas=shown,
        neighborhoods=_neighborhood_rows(table, groups, state.areas),
        groups=RELEASED_GROUPS.conform(table),
        results=published,
        skipped=skipped,
        primary=int(((images > 0) & (images < minimum)).sum()),
        complementary=int((state.areas & (images >= minimum)).sum()),
    )


def _published(released: Released, analysis: Analysis, hidden: Hidden) -> Released:
    """Round the rates of the groups that are not withheld, and drop the replicates."""
    shown = np.array(
        [not hidden.get((analysis.name, key, analysis.population), True) for key in released.keys], dtype=bool
    )
    means = np.where(shown, released.means, np.nan).astype(np.float64).round(RATE_DECIMALS)
    empty = np.empty((0, len(means)))
    return Released(released.keys, round(released.total, RATE_DECIMALS), means, empty[:, 0], empty)


def _neighborhood_rates(published: dict[str, Released], groups: list[Group], images: Whole) -> pd.DataFrame:
    """Collect released rate and images per neighborhood, indexed by name."""
    released = published.get("neighborhood")
    rates = {} if released is None else dict(zip(released.keys, released.means, strict=True))
    rows = {
        group.key: (rates[group.key], images[group.counted].sum())
        for group in groups
        if group.analysis == "neighborhood" and not np.isnan(rates.get(group.key, np.nan))
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["deployment_rate", "images"], dtype=np.float64)


def _with_replicates(
    published: dict[str, Released],
    chosen: list[Analysis],
    areas: pd.DataFrame,
    shown: tuple[pd.DataFrame, pd.DataFrame],
    probabilities: tuple[float, float],
    resampled: Floats,
    minimum: int,
) -> dict[str, Released]:
    """Add synthetic replicates around the released rates, generated from released numbers only.

    `shown` is the table `RELEASED_AREAS` and the output of `_neighborhood_rates`.
    """
    if not published:
        return {}
    images, shares = synthetic_counts(*shown, next(iter(published.values())).total, probabilities, minimum)
    wanted = panels(chosen, areas)
    deviations = synthetic_replicates(images, shares, wanted, probabilities, resampled)
    replicated = {}
    for panel, moved in zip(wanted, deviations, strict=True):
        for analysis in panel.analyses:
            released = published[analysis.name]
            rows = pd.DataFrame(moved[panel.rows[analysis.name]], index=list(analysis.keys)).loc[list(released.keys)]
            means = np.clip(released.means + rows.to_numpy().T, 0, 1).round(RATE_DECIMALS)
            totals = np.clip(released.total + moved[0], 0, 1).round(RATE_DECIMALS)
            replicated[analysis.name] = replace(released, replicate_totals=totals, replicate_means=means)
    return {name: replicated[name] for name in published}


# Rows of the tables.


def _group_rows(
    analysis: Analysis,
    population: Population,
    published: Released,
    groups: list[Group],
    hidden: Hidden,
    images: Whole,
    percent: float,
) -> pd.DataFrame:
    """Build the rows of groups.csv for one analysis, with the estimates of its JSON file."""
    members = [group for group in groups if group.population == analysis.population]
    members = [group for group in members if group.analysis in (None, analysis.name)]
    facts = pd.DataFrame(
        {
            "key": [group.key for group in members],
            "areas": [int(group.counted.sum()) for group in members],
            "images": [int(round_to_step(float(images[group.counted].sum()), group.step)) for group in members],
            "withheld": [hidden[group.identity] for group in members],
        }
    ).set_index("key")
    persons = dict(zip(analysis.keys, analysis.weights[population.areas].sum(axis=0), strict=True))
    table = _complete_rows(analysis, published, percent).join(facts, on="key", how="inner")
    table["persons"] = table["key"].map(persons).astype(np.float64)
    table["images"] = table["images"].astype("Int64").mask(table["withheld"])
    decimals = np.where(table["quantity"] == "weighted_mean", RATE_DECIMALS, RELATIVE_DECIMALS)
    for name in ("estimate", "lower", "upper", "sd"):
        rounded = [round(value, places) for value, places in zip(table[name], decimals, strict=True)]
        table[name] = np.array(rounded, dtype=np.float64)
    table["withheld"] = _as_text(table["withheld"])
    return table


def _complete_rows(analysis: Analysis, published: Released, percent: float) -> pd.DataFrame:
    """Return the rows of `released_table`, and an empty one per group without an estimate there."""
    table = released_table(analysis.name, published, percent)
    labels = dict(zip(analysis.keys, analysis.labels, strict=True))
    names = [(key, quantity) for quantity in ("relative_to_average", "weighted_mean") for key in published.keys]
    wanted = pd.DataFrame([*names, (TOTAL_KEY, "weighted_mean")], columns=["key", "quantity"])
    filled = wanted.merge(table.drop(columns=["analysis", "group"]), on=["key", "quantity"], how="left")
    filled["analysis"] = analysis.name
    filled["group"] = [labels.get(key, AVERAGE if key == TOTAL_KEY else key) for key in filled["key"]]
    filled["replicates"] = len(published.replicate_totals)
    return filled


def _neighborhood_rows(table: pd.DataFrame, groups: list[Group], areas_hidden: Bools) -> pd.DataFrame:
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
    rate = np.round(area_means(inside[:, 1], images, *probabilities), RATE_DECIMALS)
    frame = areas.assign(
        images=pd.array(images, dtype="Int64"),
        positives=pd.array(inside[:, 1], dtype="Int64"),
        deployment_rate=rate,
        relative_to_average=np.round(rate / average, RELATIVE_DECIMALS),
    )
    for name in ("images", "positives", "deployment_rate", "relative_to_average"):
        frame[name] = frame[name].mask(hidden)
    frame["withheld"] = _as_text(pd.Series(hidden, index=areas.index))
    return RELEASED_AREAS.conform(pd.DataFrame(frame[RELEASED_AREAS.names]))


def _as_text(flags: pd.Series[bool]) -> pd.Series[str]:
    return flags.map({True: "true", False: "false"}).astype("str")

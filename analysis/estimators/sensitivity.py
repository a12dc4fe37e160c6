"""Which conclusions hold whatever is changed: estimates of every variant, with intervals over days.

Images of one day are not independent, nor are those of one ride, which lies within a day. A replicate draws the
analyzed days with replacement and counts each as often as it was drawn: a product of draws and daily counts. All
variants have the same draws, so that the difference between two of them has an interval as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from patrolscope.analysis.estimators.bootstrap import draw_units
from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.rates import analyses, panels, populations
from patrolscope.analysis.estimators.variants import BASE, InfeasibleVariant, Variant

Floats = npt.NDArray[np.float64]

# With fewer days that touch a group, draws of them say nothing: of 4 days one draw in 64 is a single day.
DAYS_FOR_AN_INTERVAL = 5
RANKED_ENDS = 10  # neighborhoods at each end of a ranking
# Analyses whose groups have an order of their own: the last is set against the first, not every pair.
ORDERED = ("density", "density_residential", "income", "income_residential")
PLACES = "neighborhood"  # too many groups for conclusions on each: their ranking is compared
_NOTHING = 1e-9  # a difference of rounding alone has no direction
HOLDS, DIRECTION, DEPENDS = "holds under all", "holds in direction only", "depends on"


def draw_days(analyzed: npt.NDArray[np.bool_], *, replicates: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each day is drawn, (replicates, days).

    Analyzed days are drawn among themselves, just as by the bootstrap of days, and so are those before the first day,
    which a single variant takes in: the draws of the others do not depend on them.
    """
    drawn = np.zeros((replicates, len(analyzed)), dtype=np.int64)
    for unit, days in (("day", analyzed), ("earlier day", ~analyzed)):
        if days.any():
            drawn[:, days] = draw_units(int(days.sum()), unit, replicates=range(replicates), seed=seed).T
    return drawn


@dataclass(frozen=True)
class Levels:
    """Levels relative to the average of every group of every analysis, under one variant.

    Attributes
    ----------
    groups : one row a group: analysis, group (name for a reader), key, images and areas behind it
    estimate : (groups,) missing where nobody of the group lives in an area with images
    replicates : (replicates, groups); none where the variant has too few days, missing where too few touch the group
    """

    kind: str
    name: str
    days: int
    images: int
    persons: float  # in areas that are not left out
    groups: pd.DataFrame
    estimate: Floats
    replicates: Floats
    skipped: dict[str, str]

    def in_order_of(self, base: Levels) -> tuple[Floats, Floats]:
        """Estimates and replicates of the groups of `base`, missing where this variant has no such group."""
        mine, theirs = (pd.MultiIndex.from_frame(one.groups[["analysis", "key"]]) for one in (self, base))
        place = mine.get_indexer(theirs)
        absent = place < 0
        estimate, replicates = self.estimate[place].copy(), self.replicates[:, place].copy()
        estimate[absent], replicates[:, absent] = np.nan, np.nan
        return estimate, replicates


def evaluate_variant(variant: Variant, draws: npt.NDArray[np.int64]) -> Levels:
    """Levels of every group under a variant.

    Parameters
    ----------
    draws : (replicates, days) from `draw_days`, of all days of the study
    """
    images = variant.area_images
    wanted, skipped, _ = analyses(variant.areas, images)
    point, drawn = variant.means(), np.empty((0, len(images)))
    if variant.days_with_images >= DAYS_FOR_AN_INTERVAL:
        drawn = variant.means(draws[:, variant.days])
    seen = (variant.images.any(axis=2) & (images > 0)).T.astype(np.int64)  # of each area and day
    relative = {}
    for panel in panels(wanted, variant.areas):
        once, often = panel.means(point.T), panel.means(drawn.T)
        days = ((panel.weights > 0) @ seen > 0).sum(axis=1)
        often[days < DAYS_FOR_AN_INTERVAL] = np.nan
        for name, rows in panel.rows.items():
            relative[name] = once[rows, 0] / once[0, 0], (often[rows] / often[0]).T
    all_frames = populations(variant.areas)
    groups = []
    for one in wanted:
        behind = (one.weights > 0) & all_frames[one.population].areas[:, None]
        groups.append(
            pd.DataFrame(
                {
                    "analysis": one.name,
                    "group": one.labels,
                    "key": one.keys,
                    "images": behind.T @ images,
                    "areas": (behind & (images > 0)[:, None]).sum(axis=0),
                }
            )
        )
    return Levels(
        variant.kind,
        variant.name,
        variant.days_with_images,
        int(images.sum()),
        variant.persons_seen,
        pd.concat(groups, ignore_index=True),
        np.concatenate([relative[one.name][0] for one in wanted]),
        np.concatenate([relative[one.name][1] for one in wanted], axis=1),
        skipped,
    )


def sensitivity_table(levels: Iterable[Levels], base: Levels, percent: float) -> pd.DataFrame:
    """One row a variant and group.

    Returns
    -------
    kind, variant, analysis, group, key, estimate, lower, upper, images, areas, days
    change, change_lower, change_upper : difference from the base, of the same draws of days

    A group without an estimate has no row; intervals are missing where too few days touch the group.
    """
    parts = []
    for one in levels:
        estimate, replicates = one.in_order_of(base)
        lower, upper = _interval(replicates, percent)
        paired = replicates - base.replicates if len(replicates) and len(base.replicates) else replicates[:0]
        change_lower, change_upper = _interval(paired, percent)
        place = pd.MultiIndex.from_frame(one.groups[["analysis", "key"]])
        counts = one.groups.set_index(place)[["images", "areas"]].reindex(
            pd.MultiIndex.from_frame(base.groups[["analysis", "key"]])
        )
        table = base.groups[["analysis", "group", "key"]].assign(
            estimate=estimate,
            lower=lower,
            upper=upper,
            images=counts["images"].to_numpy(),
            areas=counts["areas"].to_numpy(),
            days=one.days,
            change=estimate - base.estimate,
            change_lower=change_lower,
            change_upper=change_upper,
        )
        table.insert(0, "kind", one.kind)
        table.insert(1, "variant", one.name)
        parts.append(table[table["estimate"].notna()].astype({"images": "int64", "areas": "int64"}))
    return pd.concat(parts, ignore_index=True)


def _interval(replicates: Floats, percent: float) -> tuple[Floats, Floats]:
    if len(replicates) == 0:
        return np.full(replicates.shape[1], np.nan), np.full(replicates.shape[1], np.nan)
    return percentile_interval(replicates, percent)


# Conclusions.


@dataclass(frozen=True)
class Contrast:
    """What a conclusion compares: a group with the average, or with another; positions among the base's groups."""

    analysis: str
    above: int
    below: int | None = None

    def of(self, levels: Floats) -> Floats:
        """Difference of levels (..., groups): above 0 where the direction is that of the conclusion's words."""
        return levels[..., self.above] - (1.0 if self.below is None else levels[..., self.below])


def contrasts(base: Levels) -> list[Contrast]:
    """Every group against the average; every pair of groups, or the last against the first where they have an order."""
    made = []
    for analysis, rows in base.groups.groupby("analysis", sort=False):
        if analysis == PLACES:
            continue
        known = [place for place in rows.index if not np.isnan(base.estimate[place])]
        made += [Contrast(str(analysis), place) for place in known]
        pairs = [(one, other) for number, one in enumerate(known) for other in known[number + 1 :]]
        if analysis in ORDERED:
            pairs = [(known[0], known[-1])] if len(known) > 1 else []
        made += [Contrast(str(analysis), *_higher_first(pair, base.estimate)) for pair in pairs]
    return made


def _higher_first(pair: tuple[int, int], estimate: Floats) -> tuple[int, int]:
    return pair if estimate[pair[0]] >= estimate[pair[1]] else (pair[1], pair[0])


def conclusions(levels: list[Levels], percent: float) -> pd.DataFrame:
    """One row a conclusion, as the base has it, and what the variants say of it.

    Parameters
    ----------
    levels : the base first, then every variant

    Returns
    -------
    analysis, conclusion : in words, in the direction of the base
    estimate, lower, upper, compared_with : of the base: a level, compared with 1, or a difference of two, with 0
    variants, holding : with an estimate; of them, those with the base's direction
    with_interval, excluding : with an interval; of them, those whose interval lies beyond, in the base's direction
    smallest, smallest_variant, largest, largest_variant : over the base and all variants
    overturned_by, reversed : variants of another direction; of them, those whose whole interval is
    verdict : holds under all: the direction in every variant, and every interval, the base's too, beyond; holds in
        direction only: the direction in every variant; depends on ...: the variants of another direction
    """
    base, *others = levels
    ordered = [one.in_order_of(base) for one in levels]
    return pd.DataFrame([_conclude(one, base, others, ordered, percent) for one in contrasts(base)])


def _conclude(
    contrast: Contrast, base: Levels, others: list[Levels], ordered: list[tuple[Floats, Floats]], percent: float
) -> dict[str, Any]:
    shift = 1.0 if contrast.below is None else 0.0
    values = np.array([contrast.of(estimate) for estimate, _ in ordered])
    values[np.abs(values) < _NOTHING] = 0.0
    ends = np.array([np.ravel(_interval(contrast.of(replicates)[:, None], percent)) for _, replicates in ordered])
    sign = np.sign(values[0])
    known = ~np.isnan(values)
    same = np.sign(values) == sign
    has_interval = known & ~np.isnan(ends[:, 0])
    beyond = has_interval & (np.where(sign > 0, ends[:, 0], -ends[:, 1]) > 0)
    reversed_ = has_interval & (np.where(sign > 0, ends[:, 1], -ends[:, 0]) < 0)
    names = np.array([base.name, *(one.name for one in others)], dtype=object)
    overturned = names[known & ~same]
    if sign == 0:
        verdict = "the base has no direction"
    elif len(overturned):
        verdict = f"{DEPENDS} {'; '.join(overturned)}"
    else:
        verdict = HOLDS if has_interval[0] and beyond[has_interval].all() else DIRECTION
    least, most = int(np.nanargmin(values)), int(np.nanargmax(values))
    return {
        "analysis": contrast.analysis,
        "conclusion": _words(contrast, base, sign),
        "group": base.groups["group"][contrast.above],
        "estimate": values[0] + shift,
        "lower": ends[0, 0] + shift,
        "upper": ends[0, 1] + shift,
        "compared_with": shift,
        "variants": int(known[1:].sum()),
        "holding": int((known & same)[1:].sum()),
        "with_interval": int(has_interval[1:].sum()),
        "excluding": int(beyond[1:].sum()),
        "smallest": values[least] + shift,
        "smallest_variant": names[least],
        "largest": values[most] + shift,
        "largest_variant": names[most],
        "overturned_by": "; ".join(overturned),
        "reversed": int(reversed_[1:].sum()),
        "verdict": verdict,
    }


def _words(contrast: Contrast, base: Levels, sign: float) -> str:
    names = base.groups["group"]
    if contrast.below is not None:
        return f"{names[contrast.above]} above {names[contrast.below]}"
    return f"{names[contrast.above]} {'below' if sign < 0 else 'above'} the average"


# Rankings of neighborhoods, and the list of variants.


def compare_rankings(one: Levels, base: Levels, ranked_images: int) -> dict[str, Any]:
    """Neighborhoods ranked as in the base: how many, rank correlation, overlap of both ends.

    Ranked are those with at least `ranked_images` images in the base, and an estimate in both. Each end is of ten, or
    of half the neighborhoods where there are fewer than twenty. Where levels tie across the tenth place, in the base
    or the variant, nobody knows which are the ten, and their overlap is missing.
    """
    estimate, _ = one.in_order_of(base)
    chosen = (base.groups["analysis"] == PLACES).to_numpy() & (base.groups["images"] >= ranked_images).to_numpy()
    chosen &= ~np.isnan(estimate) & ~np.isnan(base.estimate)
    mine, theirs = estimate[chosen], base.estimate[chosen]
    ends = min(RANKED_ENDS, len(mine) // 2)
    highest, lowest = (_shared(_first(sign * mine, ends), _first(sign * theirs, ends)) for sign in (-1, 1))
    varies = len(mine) >= 3 and np.ptp(mine) > 0 and np.ptp(theirs) > 0
    return {
        "neighborhoods": len(mine),
        "rank_correlation": float(stats.spearmanr(mine, theirs).statistic) if varies else np.nan,
        "ends": ends,
        "highest_shared": highest,
        "lowest_shared": lowest,
    }


def _first(values: Floats, number: int) -> set[int] | None:
    """Places of the so many smallest values; None where a tie leaves open which they are."""
    order = np.argsort(values)
    if 0 < number < len(values) and values[order[number - 1]] == values[order[number]]:
        return None
    return set(order[:number].tolist())


def _shared(one: set[int] | None, other: set[int] | None) -> int | None:
    return None if one is None or other is None else len(one & other)


def variants_table(tried: list[Levels | InfeasibleVariant], ranked_images: int) -> pd.DataFrame:
    """One row a variant, also those that are not possible: kind, variant, made, reason, images, persons, days, ranking.

    `reason` says why a variant was not made, why it has no intervals, or which analyses it lacks.
    """
    base = next(one for one in tried if isinstance(one, Levels) and one.kind == BASE)
    rows: list[dict[str, Any]] = []
    for one in tried:
        row: dict[str, Any] = {"kind": one.kind, "variant": one.name, "made": isinstance(one, Levels)}
        if isinstance(one, InfeasibleVariant):
            rows.append(row | {"reason": one.reason})
            continue
        reasons = [f"{name}: {why}" for name, why in one.skipped.items()]
        if len(one.replicates) == 0:
            reasons.insert(0, f"no intervals: {one.days} days with images, at least {DAYS_FOR_AN_INTERVAL} are needed")
        facts = {"reason": "; ".join(reasons), "images": one.images, "persons": one.persons, "days": one.days}
        rows.append(row | facts | compare_rankings(one, base, ranked_images))
    columns = [
        "kind",
        "variant",
        "made",
        "reason",
        "images",
        "persons",
        "days",
        "neighborhoods",
        "rank_correlation",
        "ends",
    ]
    table = pd.DataFrame(rows, columns=[*columns, "highest_shared", "lowest_shared"])
    whole = ["images", "days", "neighborhoods", "ends", "highest_shared", "lowest_shared"]
    return table.astype(dict.fromkeys(whole, "Int64"))

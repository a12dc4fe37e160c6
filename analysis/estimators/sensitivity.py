"""Sensitivity analysis: estimates of every variant with intervals from a day bootstrap, and verdicts on conclusions.

Images of a day are not independent, nor are those of a ride, and a ride lies within a day. A replicate resamples the
analyzed days and weights the counts of each day by its number of draws. All variants share the draws, so that the
difference between two variants has an interval as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
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

# Minimum number of days with images of a group for an interval. With 4 days, 1 replicate in 64 repeats a single day.
DAYS_FOR_AN_INTERVAL = 5
RANKED_ENDS = 10  # neighborhoods at each end of a ranking
# Analyses with ordered groups: only the last is compared with the first, not every pair.
ORDERED = ("density", "density_residential", "income", "income_residential")
RANKED = "neighborhood"  # too many groups for conclusions on each; their ranking is compared
_ROUNDING = 1e-9  # smaller differences have no direction
ROBUST, DIRECTION_ONLY, SENSITIVE = "robust", "direction only", "sensitive"


def draw_days(analyzed: npt.NDArray[np.bool_], *, replicates: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw bootstrap counts per day.

    Analyzed days are resampled among themselves, as in the day bootstrap. Days before the first analyzed day, which
    only one variant uses, are resampled separately, so that the draws of other variants do not depend on them.

    Parameters
    ----------
    analyzed : ndarray of bool, shape (n_days,)
        Analyzed days.
    replicates : int
        Number of replicates.
    seed : int
        Seed of the study.

    Returns
    -------
    ndarray of int64, shape (n_replicates, n_days)
        Number of draws of each day.
    """
    drawn = np.zeros((replicates, len(analyzed)), dtype=np.int64)
    for unit, days in (("day", analyzed), ("earlier day", ~analyzed)):
        if days.any():
            drawn[:, days] = draw_units(int(days.sum()), unit, replicates=range(replicates), seed=seed).T
    return drawn


@dataclass(frozen=True)
class VariantRates:
    """Relative rates of every group of every analysis under one variant.

    Attributes
    ----------
    kind, name : str
        Kind and name of the variant.
    days, images : int
        Days with images, and images.
    persons : float
        Residents of the areas with images.
    groups : DataFrame, n_groups rows
        analysis, group (display name), key, images, areas.
    estimate : ndarray of float64, shape (n_groups,)
        Relative rate. NaN if no resident of the group lives in an area with images.
    replicates : ndarray of float64, shape (n_replicates, n_groups)
        Empty if the variant has too few days, NaN where too few days have images of the group.
    skipped : dict of str to str
        Analyses without an estimate, with the reason.
    """

    kind: str
    name: str
    days: int
    images: int
    persons: float
    groups: pd.DataFrame
    estimate: Floats
    replicates: Floats
    skipped: dict[str, str]

    def in_order_of(self, base: VariantRates) -> tuple[Floats, Floats]:
        """Return estimates and replicates in the group order of `base`; NaN for groups this variant lacks."""
        mine, theirs = (pd.MultiIndex.from_frame(rates.groups[["analysis", "key"]]) for rates in (self, base))
        place = mine.get_indexer(theirs)
        absent = place < 0
        estimate, replicates = self.estimate[place].copy(), self.replicates[:, place].copy()
        estimate[absent], replicates[:, absent] = np.nan, np.nan
        return estimate, replicates


def evaluate_variant(variant: Variant, draws: npt.NDArray[np.int64]) -> VariantRates:
    """Compute relative rates of every group under a variant.

    Parameters
    ----------
    variant : Variant
        Images per area and day, and their probabilities.
    draws : ndarray of int64, shape (n_replicates, n_days)
        Output of `draw_days` for all days of the study.
    """
    images = variant.area_images
    wanted, skipped, _ = analyses(variant.areas, images)
    point, drawn = variant.means(), np.empty((0, len(images)))
    if variant.days_with_images >= DAYS_FOR_AN_INTERVAL:
        drawn = variant.means(draws[:, variant.days])
    seen = (variant.images.any(axis=2) & (images > 0)).T.astype(np.int64)  # (n_areas, n_days)
    relative = {}
    for panel in panels(wanted, variant.areas):
        once, often = panel.means(point.T), panel.means(drawn.T)
        days = ((panel.weights > 0) @ seen > 0).sum(axis=1)
        often[days < DAYS_FOR_AN_INTERVAL] = np.nan
        for name, rows in panel.rows.items():
            relative[name] = once[rows, 0] / once[0, 0], (often[rows] / often[0]).T
    all_frames = populations(variant.areas)
    groups = []
    for analysis in wanted:
        counted = (analysis.weights > 0) & all_frames[analysis.population].areas[:, None]
        groups.append(
            pd.DataFrame(
                {
                    "analysis": analysis.name,
                    "group": analysis.labels,
                    "key": analysis.keys,
                    "images": counted.T @ images,
                    "areas": (counted & (images > 0)[:, None]).sum(axis=0),
                }
            )
        )
    return VariantRates(
        variant.kind,
        variant.name,
        variant.days_with_images,
        int(images.sum()),
        variant.persons_seen,
        pd.concat(groups, ignore_index=True),
        np.concatenate([relative[analysis.name][0] for analysis in wanted]),
        np.concatenate([relative[analysis.name][1] for analysis in wanted], axis=1),
        skipped,
    )


def sensitivity_table(rates: Iterable[VariantRates], base: VariantRates, percent: float) -> pd.DataFrame:
    """Tabulate the relative rates of all variants.

    Parameters
    ----------
    rates : iterable of VariantRates
        Variants, the base included.
    base : VariantRates
        Base.
    percent : float
        Central share of the replicates that an interval holds, in percent.

    Returns
    -------
    DataFrame
        kind, variant, analysis, group, key, estimate, lower, upper, images, areas, days; change, change_lower,
        change_upper (difference from the base with shared draws). One row per variant and group with an estimate.
        Intervals are NaN where too few days have images of the group.
    """
    parts = []
    for variant in rates:
        estimate, replicates = variant.in_order_of(base)
        lower, upper = _interval(replicates, percent)
        paired = replicates - base.replicates if len(replicates) and len(base.replicates) else replicates[:0]
        change_lower, change_upper = _interval(paired, percent)
        place = pd.MultiIndex.from_frame(variant.groups[["analysis", "key"]])
        counts = variant.groups.set_index(place)[["images", "areas"]].reindex(
            pd.MultiIndex.from_frame(base.groups[["analysis", "key"]])
        )
        table = base.groups[["analysis", "group", "key"]].assign(
            estimate=estimate,
            lower=lower,
            upper=upper,
            images=counts["images"].to_numpy(),
            areas=counts["areas"].to_numpy(),
            days=variant.days,
            change=estimate - base.estimate,
            change_lower=change_lower,
            change_upper=change_upper,
        )
        table.insert(0, "kind", variant.kind)
        table.insert(1, "variant", variant.name)
        parts.append(table[table["estimate"].notna()].astype({"images": "int64", "areas": "int64"}))
    return pd.concat(parts, ignore_index=True)


def _interval(replicates: Floats, percent: float) -> tuple[Floats, Floats]:
    if len(replicates) == 0:
        return np.full(replicates.shape[1], np.nan), np.full(replicates.shape[1], np.nan)
    return percentile_interval(replicates, percent)


# Conclusions.


@dataclass(frozen=True)
class Contrast:
    """Comparison of a group with the average, or with another group, by positions among the groups of the base."""

    analysis: str
    above: int
    below: int | None = None

    def of(self, rates: Floats) -> Floats:
        """Compute the difference of relative rates, shape (..., n_groups); positive in the direction of the text."""
        return rates[..., self.above] - (1.0 if self.below is None else rates[..., self.below])


def contrasts(base: VariantRates) -> list[Contrast]:
    """List comparisons of every group with the average, and of all pairs of groups (last with first if ordered)."""
    found = []
    for analysis, rows in base.groups.groupby("analysis", sort=False):
        if analysis == RANKED:
            continue
        known = [place for place in rows.index if not np.isnan(base.estimate[place])]
        found += [Contrast(str(analysis), place) for place in known]
        pairs = list(combinations(known, 2))
        if analysis in ORDERED:
            pairs = [(known[0], known[-1])] if len(known) > 1 else []
        found += [Contrast(str(analysis), *_higher_first(pair, base.estimate)) for pair in pairs]
    return found


def _higher_first(pair: tuple[int, int], estimate: Floats) -> tuple[int, int]:
    return pair if estimate[pair[0]] >= estimate[pair[1]] else (pair[1], pair[0])


def conclusions(rates: list[VariantRates], percent: float) -> pd.DataFrame:
    """Assess the conclusions of the base over all variants.

    Parameters
    ----------
    rates : list of VariantRates
        Base first, then every variant.
    percent : float
        Central share of the replicates that an interval holds, in percent.

    Returns
    -------
    DataFrame
        One row per conclusion:

        * analysis, conclusion, group: the conclusion as text, in the direction of the base
        * estimate, lower, upper, compared_with: base; a relative rate compared with 1, or a difference compared with 0
        * variants, holding: variants with an estimate, and those in the direction of the base
        * with_interval, excluding: variants with an interval, and those whose interval excludes `compared_with` in the
          direction of the base
        * smallest, smallest_variant, largest, largest_variant: range over the base and all variants
        * overturned_by, reversed: names of the variants without the direction of the base, and the number whose whole
          interval lies in the other direction
        * verdict: `robust` if every variant has the direction of the base and every interval, also that of the base,
          excludes `compared_with`; `direction only` if only the directions agree; `sensitive` otherwise
    """
    base, *others = rates
    ordered = [variant.in_order_of(base) for variant in rates]
    return pd.DataFrame([_conclude(contrast, base, others, ordered, percent) for contrast in contrasts(base)])


def _conclude(
    contrast: Contrast,
    base: VariantRates,
    others: list[VariantRates],
    ordered: list[tuple[Floats, Floats]],
    percent: float,
) -> dict[str, Any]:
    shift = 1.0 if contrast.below is None else 0.0
    values = np.array([contrast.of(estimate) for estimate, _ in ordered])
    values[np.abs(values) < _ROUNDING] = 0.0
    ends = np.array([np.ravel(_interval(contrast.of(replicates)[:, None], percent)) for _, replicates in ordered])
    sign = np.sign(values[0])
    known = ~np.isnan(values)
    same = np.sign(values) == sign
    has_interval = known & ~np.isnan(ends[:, 0])
    beyond = has_interval & (np.where(sign > 0, ends[:, 0], -ends[:, 1]) > 0)
    reversed_ = has_interval & (np.where(sign > 0, ends[:, 1], -ends[:, 0]) < 0)
    names = np.array([base.name, *(variant.name for variant in others)], dtype=object)
    overturned = names[known & ~same]
    if sign == 0:
        verdict = "the base has no direction"
    elif len(overturned):
        verdict = SENSITIVE
    else:
        verdict = ROBUST if has_interval[0] and beyond[has_interval].all() else DIRECTION_ONLY
    least, most = int(np.nanargmin(values)), int(np.nanargmax(values))
    return {
        "analysis": contrast.analysis,
        "conclusion": _conclusion_text(contrast, base, sign),
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


def _conclusion_text(contrast: Contrast, base: VariantRates, sign: float) -> str:
    names = base.groups["group"]
    if contrast.below is not None:
        return f"{names[contrast.above]} above {names[contrast.below]}"
    return f"{names[contrast.above]} {'below' if sign < 0 else 'above'} the average"


# Rankings of neighborhoods, and the list of variants.


def compare_rankings(variant: VariantRates, base: VariantRates, ranked_images: int) -> dict[str, Any]:
    """Compare the ranking of neighborhoods with that of the base.

    Each end holds 10 neighborhoods, or half of them if there are fewer than 20. If relative rates are tied across the
    boundary of an end, in the base or in the variant, its overlap is None.

    Parameters
    ----------
    variant : VariantRates
        Relative rates of the variant.
    base : VariantRates
        Relative rates of the base.
    ranked_images : int
        Minimum number of images of a ranked neighborhood in the base. Both must have an estimate.

    Returns
    -------
    dict
        neighborhoods, rank_correlation (Spearman), ends, highest_shared, lowest_shared.
    """
    estimate, _ = variant.in_order_of(base)
    chosen = (base.groups["analysis"] == RANKED).to_numpy() & (base.groups["images"] >= ranked_images).to_numpy()
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
    """Return positions of the `number` smallest values, or None if a tie makes them ambiguous."""
    order = np.argsort(values)
    if 0 < number < len(values) and values[order[number - 1]] == values[order[number]]:
        return None
    return set(order[:number].tolist())


def _shared(one: set[int] | None, other: set[int] | None) -> int | None:
    return None if one is None or other is None else len(one & other)


def variants_table(tried: list[VariantRates | InfeasibleVariant], ranked_images: int) -> pd.DataFrame:
    """Tabulate all variants.

    Parameters
    ----------
    tried : list of VariantRates or InfeasibleVariant
        Base and variants.
    ranked_images : int
        Minimum number of images of a ranked neighborhood.

    Returns
    -------
    DataFrame
        kind, variant, made, reason, images, persons, days, and the entries of `compare_rankings`; one row per variant.
        `reason` explains why a variant is infeasible, has no intervals, or lacks analyses.
    """
    base = next(variant for variant in tried if isinstance(variant, VariantRates) and variant.kind == BASE)
    rows: list[dict[str, Any]] = []
    for variant in tried:
        row: dict[str, Any] = {"kind": variant.kind, "variant": variant.name, "made": isinstance(variant, VariantRates)}
        if isinstance(variant, InfeasibleVariant):
            rows.append(row | {"reason": variant.reason})
            continue
        reasons = [f"{name}: {why}" for name, why in variant.skipped.items()]
        if len(variant.replicates) == 0:
            days = f"no intervals: {variant.days} days with images; expected at least {DAYS_FOR_AN_INTERVAL}"
            reasons.insert(0, days)
        facts = {"images": variant.images, "persons": variant.persons, "days": variant.days}
        rows.append(row | {"reason": "; ".join(reasons)} | facts | compare_rankings(variant, base, ranked_images))
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

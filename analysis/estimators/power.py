"""Power of a study: the smallest ratio of deployment rates that it can detect, and what a given ratio needs.

Notation of docs/method.md, "Power": `n`, `k` images and positives of an area, `W` residents of a group in an area
divided by those in all areas with images, `v = W / n`, the share `S = sum(v k)` of positives of a group, and its rate
`M = p- + (p+ - p-) S`, with the probabilities p- of negative and p+ of positive images.

The calibration acts on both rates alike. Their ratio is 1 exactly if the two shares are equal, so that only images
decide whether a test finds it different from 1. What the calibration adds to the uncertainty of the ratio itself is
reported apart.

The variance is that of the positives expected from composite shares, not of the observed ones: with few positives, one
in an area with few images and many residents doubles the observed standard deviation. In a simulated study of 900,000
images and known rates, the expected one was 0.97 to 1.14 times the true one for 16 ratios, the observed one 0.96 to 2.0
times.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, sparse, stats

from patrolscope.analysis.estimators.area_class_counts import Counts, Floats
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.design_effects import AreaDesign, Codes, GroupDesign, stable_effects
from patrolscope.analysis.estimators.many_places import LEAST_POSITIVES
from patrolscope.analysis.estimators.rates import Panel
from patrolscope.analysis.estimators.unit_counts import UNITS_FOR_AN_INTERVAL, UnitCounts, units_touching
from patrolscope.pipeline.errors import SettingsError

LEVEL_PERCENT = 5.0  # of the two-sided test
AVERAGE = "city average"
# Analyses whose groups are compared pair by pair, and those whose groups are compared with the average.
PAIRED, AGAINST_AVERAGE = ("race", "borough"), ("neighborhood",)
# Labels are drawn in areas without influence, too, in case the shares there are not what they seem.
_LEAST_SIZE = 0.05
_MARGIN = 1e-9
_PAIRS_AT_ONCE = 8  # 124,000 rides take 8 MB

COLUMNS = (
    *("analysis", "group", "compared_with", "ratio", "positives", "positives_compared", "effective_positives"),
    *("effective_positives_compared", "design_effect", "image_sd", "calibration_sd", "smallest_ratio"),
    *("smallest_ratio_simultaneous", "times_images", "images", "rides", "labels_random", "labels_planned", "reason"),
)


@dataclass(frozen=True)
class Target:
    """Ratio that a two-sided test should find different from 1, and with which probability (`power_percent`)."""

    ratio: float = 1.2
    power_percent: float = 80.0

    @classmethod
    def of(cls, ratio: float, power_percent: float) -> Target:
        """Return a target.

        Raises
        ------
        SettingsError
            If the ratio is 1 or not positive, or the power is not between the level of the test and 100%.
        """
        if not 0 < ratio < np.inf or ratio == 1:
            raise SettingsError(
                f"a ratio of {ratio:g} cannot be detected; expected a positive number other than 1; choose one such as "
                "--ratio 1.2"
            )
        if not LEVEL_PERCENT < power_percent < 100:
            raise SettingsError(
                f"no test has a power of {power_percent:g}%; expected more than its level of {LEVEL_PERCENT:g}%, and "
                "less than 100%; choose one such as --power 80"
            )
        return cls(ratio, power_percent)

    def distance(self, at_once: int = 1) -> float:
        """Return how many standard deviations from 0 a logarithm must be, 1.96 + 0.84 for a power of 80%.

        Parameters
        ----------
        at_once : int, default 1
            Independent tests that together have the level of one (Sidak 1967).
        """
        level = -np.expm1(np.log1p(-LEVEL_PERCENT / 100) / at_once)
        return float(stats.norm.isf(level / 2) + stats.norm.ppf(self.power_percent / 100))

    @property
    def variance(self) -> float:
        """Largest variance of the logarithm with which the ratio is detected."""
        return (np.log(self.ratio) / self.distance()) ** 2


@dataclass(frozen=True)
class Sample:
    """Analyzed images of a study, and their counts by ride; None if images are taken as independent."""

    images: int
    counts: UnitCounts | None


def power_table(
    panels: list[Panel],
    design: AreaDesign,
    composite: Floats,
    calibration: TwoClass,
    sample: Sample,
    target: Target,
) -> pd.DataFrame:
    """Compute what the study can tell, and what the target needs, for every comparison.

    Parameters
    ----------
    panels : list of Panel
        Of them, population groups and boroughs are compared pair by pair, and neighborhoods with the average.
    design : AreaDesign
    composite : ndarray of float64, shape (n_areas,)
        Composite shares of positives before benchmarking; they expect positives also where there are none.
    calibration : TwoClass
    sample : Sample
    target : Target

    Returns
    -------
    DataFrame
        `COLUMNS`, one row per comparison of groups with residents in areas with images:

        * analysis, group, compared_with; ratio of their rates
        * positives, effective_positives (of `GroupDesign`) of the group, and, with the suffix `_compared`, of the other
        * design_effect of the ratio
        * image_sd: standard deviation of the logarithm of the ratio if both rates were equal, from images; inversely
          proportional to the root of their number
        * calibration_sd: standard deviation of the logarithm of the present ratio from the validation set, which more
          images leave unchanged
        * smallest_ratio above 1 that a test finds different from 1 with the power of the target; its inverse below 1
        * smallest_ratio_simultaneous: the same for all neighborhoods with enough positive images at once
        * times_images, images, rides: those that the ratio of the target needs, in the same places and hours
        * labels_random, labels_planned: labeled images of the study that tell it without assuming one calibration for
          all places, in a simple random sample and drawn for this ratio; missing if all images do not suffice
        * reason for missing numbers
    """
    found = []
    for panel in panels:
        groups = GroupDesign.of(panel.weights, design)
        if compared := _compared(panel, ~np.isnan(groups.shares)):
            found.append(_of_panel(panel, groups, compared, design, composite, calibration, sample, target))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*COLUMNS])
    return _with_simultaneous(table, target)[[*COLUMNS]]


def _compared(panel: Panel, known: npt.NDArray[np.bool_]) -> list[tuple[str, int, int]]:
    """Return analysis and rows of every comparison of a panel, of groups with a rate; row 0 is everyone."""
    found = []
    if panel.population.name == "all":
        for analysis, rows in panel.rows.items():
            groups = [row for row in range(rows.start, rows.stop) if known[row]]
            if analysis in PAIRED:
                found += [(analysis, *pair) for pair in combinations(groups, 2)]
            elif analysis in AGAINST_AVERAGE:
                found += [(analysis, group, 0) for group in groups]
    return found


def _of_panel(
    panel: Panel,
    groups: GroupDesign,
    compared: list[tuple[str, int, int]],
    design: AreaDesign,
    composite: Floats,
    calibration: TwoClass,
    sample: Sample,
    target: Target,
) -> pd.DataFrame:
    analysis, one, other = zip(*compared, strict=True)
    pairs = _higher_first(np.array([one, other], dtype=np.intp), groups.shares)
    base, slope = calibration.false_omission_rate, calibration.ppv - calibration.false_omission_rate
    rates = base + slope * groups.shares
    expected = design.inside.sum(axis=1) * np.nan_to_num(composite)
    shares = groups.slopes @ expected
    # Both rates of a comparison are taken as equal: to the average, or to the geometric mean of the two.
    common = np.exp(np.log(base + slope * shares)[np.where(pairs[1] == 0, 0, pairs)].mean(axis=0))
    influence = np.sqrt(slope * (common - base))[:, None] / common[:, None] * _influence(groups, shares, pairs)
    effects = _effects(influence, groups.positives[pairs].min(axis=0), design)
    variance = effects * (influence**2 @ expected)
    labels = np.array([AVERAGE, *(label for made in panel.analyses for label in made.labels)], dtype=object)
    table = pd.DataFrame(
        {
            "analysis": analysis,
            "group": labels[pairs[0]],
            "compared_with": labels[pairs[1]],
            "ratio": rates[pairs[0]] / rates[pairs[1]],
            "positives": groups.positives[pairs[0]],
            "positives_compared": groups.positives[pairs[1]],
            "effective_positives": groups.effective[pairs[0]],
            "effective_positives_compared": groups.effective[pairs[1]],
            "design_effect": effects,
            "image_sd": np.sqrt(variance),
            "calibration_sd": _calibration_sd(groups.shares[pairs], rates[pairs], calibration),
            "smallest_ratio": np.exp(target.distance() * np.sqrt(variance)),
            "times_images": variance / target.variance,
        }
    )
    by_label = (groups.slopes[pairs[0]] - groups.slopes[pairs[1]]).toarray() / common[:, None]
    labeled = [needed_labels(row, design.inside, calibration, target.variance) for row in by_label]
    rides = sample.counts
    table = table.assign(
        images=np.ceil(table["times_images"] * sample.images),
        rides=np.nan if rides is None else np.ceil(table["times_images"] * rides.number),
        labels_random=[random for random, _ in labeled],
        labels_planned=[planned for _, planned in labeled],
        reason=_reasons(table, None if rides is None else units_touching(rides, panel.weights)[pairs]),
    )
    unknown = [name for name in table.columns[table.columns.get_loc("design_effect") :] if name != "reason"]
    table.loc[table["reason"] != "", unknown] = np.nan
    return table


def _higher_first(pairs: Codes, shares: Floats) -> Codes:
    """Order pairs of groups, shape (2, n), so that ratios are at least 1; the average, group 0, stays second."""
    swapped = (shares[pairs[1]] > shares[pairs[0]]) & (pairs[1] > 0)
    return np.where(swapped, pairs[::-1], pairs)


def _influence(groups: GroupDesign, shares: Floats, pairs: Codes) -> Floats:
    """Return v_g / sqrt(S_g) - v_h / sqrt(S_h), shape (n_pairs, n_areas).

    Its square, summed over the expected positives, is the variance of the logarithm of the ratio of two shares of 1.
    That of two shares of S is S times smaller.
    """
    with np.errstate(divide="ignore"):
        scale = 1 / np.sqrt(shares)
    scale[~np.isfinite(scale)] = 0.0
    scaled = sparse.csr_array(sparse.diags_array(scale) @ groups.slopes)
    return np.asarray((scaled[pairs[0]] - scaled[pairs[1]]).toarray())


def _effects(influence: Floats, positives: Floats, design: AreaDesign) -> Floats:
    """Return the design effects of ratios, drawn towards the mean by the positives of the group that has fewer."""
    if design.residuals is None:
        return np.ones(len(influence))
    over_rides = [
        np.square(design.residuals @ influence[start : start + _PAIRS_AT_ONCE].T).sum(axis=0)
        for start in range(0, len(influence), _PAIRS_AT_ONCE)
    ]
    independent = influence**2 @ design.inside[:, 1]
    ratios = np.divide(np.concatenate(over_rides), independent, out=np.zeros(len(influence)), where=independent > 0)
    return stable_effects(ratios, positives, design)


def _calibration_sd(shares: Floats, rates: Floats, calibration: TwoClass) -> Floats:
    """Return the standard deviation of the logarithm of ratios from the two probabilities, of Beta distributions."""
    of_positive = stats.beta.var(
        calibration.true_positive + 0.5, calibration.positive - calibration.true_positive + 0.5
    )
    of_negative = stats.beta.var(
        calibration.false_negative + 0.5, calibration.negative - calibration.false_negative + 0.5
    )
    by_positive, by_negative = shares / rates, (1 - shares) / rates
    return np.asarray(
        np.sqrt(
            (by_positive[0] - by_positive[1]) ** 2 * of_positive + (by_negative[0] - by_negative[1]) ** 2 * of_negative
        )
    )


def needed_labels(influence: Floats, inside: Counts, calibration: TwoClass, variance: float) -> tuple[float, float]:
    """Compute how many labeled images of the study bring the logarithm of a ratio to a variance.

    The truth of a labeled image is compared with the calibrated probability p of its class, and weighted by the inverse
    of its inclusion probability q, so that nothing is assumed about the detector elsewhere. The variance is the sum of
    z^2 p (1 - p) / q over all images.

    Parameters
    ----------
    influence : ndarray of float64, shape (n_areas,)
        Change z of the logarithm with the probability of one image of an area.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    calibration : TwoClass
    variance : float
        Variance to reach.

    Returns
    -------
    random : float
        In a simple random sample.
    planned : float
        With q = min(1, C max(abs(z), 5% of its mean) sqrt(p (1 - p))) (Neyman allocation). Both are NaN if labels of
        all images do not suffice.
    """
    true = np.array([calibration.false_negative, calibration.true_positive], dtype=np.float64)
    total = np.array([calibration.negative, calibration.positive])
    share = np.where((true > 0) & (true < total), true / total, (true + 0.5) / (total + 1))
    area, kind = np.nonzero(inside)
    images = inside[area, kind].astype(np.float64)
    size, spread = np.abs(influence[area]), np.sqrt(share * (1 - share))[kind]
    squares = images * (size * spread) ** 2
    if not 0 < squares.sum() <= variance:
        return np.nan, np.nan
    chance = np.maximum(size, _LEAST_SIZE * np.average(size, weights=images)) * spread
    scale = float((squares / chance).sum() / variance)
    if scale * chance.max() > 1:
        # Some images are surely labeled, so the others need more. The margins keep rounding out of the bracket.
        scale = optimize.brentq(
            lambda at: (squares / np.minimum(1, at * chance)).sum() / variance - 1,
            (1 - _MARGIN) * scale,
            (1 + _MARGIN) / chance.min(),
        )
    planned = (images * np.minimum(1, scale * chance)).sum()
    return float(np.ceil(images.sum() * squares.sum() / variance)), float(np.ceil(planned))


def _reasons(table: pd.DataFrame, rides: Counts | None) -> list[str]:
    """Return why a comparison has no power, or an empty text; `rides` that touch both groups has shape (2, n)."""
    reasons = [""] * len(table)
    if rides is not None:
        for touching, names in zip(rides, (table["group"], table["compared_with"]), strict=True):
            for row in np.flatnonzero(touching < UNITS_FOR_AN_INTERVAL):
                reasons[row] = (
                    f"rides that touch {names[row]}: {touching[row]}; expected at least {UNITS_FOR_AN_INTERVAL}"
                )
    return reasons


def _with_simultaneous(table: pd.DataFrame, target: Target) -> pd.DataFrame:
    """Add smallest_ratio_simultaneous to neighborhoods that take part in simultaneous statements."""
    many = table["analysis"].isin(AGAINST_AVERAGE) & (table["positives"] >= LEAST_POSITIVES) & (table["reason"] == "")
    distance = target.distance(max(1, int(many.sum())))
    return table.assign(smallest_ratio_simultaneous=np.exp(distance * table["image_sd"]).where(many))

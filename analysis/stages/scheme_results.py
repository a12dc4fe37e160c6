"""Results of one resampling scheme: estimates, replicates, and tables with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.area_class_counts import PROBABILITY_STEP, Counts, Floats
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.composite import variance_shares
from patrolscope.analysis.estimators.design_effects import GroupDesign
from patrolscope.analysis.estimators.gamma_intervals import GammaDistributions, with_gamma
from patrolscope.analysis.estimators.influence import (
    Moments,
    Slopes,
    area_moments,
    image_moments,
    unit_moments,
    validation_moments,
)
from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.many_places import Places, compare_places
from patrolscope.analysis.estimators.rates import TOTAL_KEY, Analysis, deployment_rate, populations
from patrolscope.analysis.estimators.replicates import (
    BootstrapInputs,
    ResamplingScheme,
    point_means,
    probabilities_of,
)
from patrolscope.analysis.estimators.unit_counts import UNITS_FOR_AN_INTERVAL, units_touching
from patrolscope.analysis.stages.counts import load_unit_counts
from patrolscope.analysis.stages.designs import composite_of
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.replicates import (
    load_replicates,
    released,
    scheme_probabilities,
    without_replicates,
)
from patrolscope.analysis.stages.result_tables import (
    QUANTITIES,
    Accelerations,
    interval_table,
    released_table,
    with_bounds,
    with_counts,
)
from patrolscope.pipeline.study.config import Estimate
from patrolscope.pipeline.study.store import Study

# In a group of fewer areas, each one has a large influence, and naming it is uninformative.
_LEAST_AREAS = 10
_KEY = ["analysis", "key", "quantity"]
_TAILS = ("below_average", "above_average")
PLACES = "neighborhood"  # analysis of many places


@dataclass(frozen=True)
class SchemeResults:
    """Estimates and replicates of every analysis under one resampling scheme.

    Attributes
    ----------
    scheme : ResamplingScheme
    results : dict of str to Released
        By analysis. The replicates of groups with few effective positives are quantiles of gamma distributions.
    resampled : dict of str to Released
        The same with the resampled replicates of all groups.
    composite : dict of str to Released
        From composite rates of areas; empty where the design of the resampling units is unknown.
    accelerated : dict of str to mapping
        For BCa intervals.
    units : dict of str to ndarray of int64, shape (1 + n_groups,)
        Resampling units with an image where a group has residents, everyone first.
    designs : dict of str to DataFrame
        positives, effective_positives, design_effect, and gamma (bool) of everyone and of each group. With a known
        design also below_average and above_average, from `GammaDistributions.tails` at the share of the city.
    design_effect : float or None
        Mean design effect of the regions; None without gamma intervals.
    calibration : TwoClass
    """

    scheme: ResamplingScheme
    results: dict[str, Released]
    resampled: dict[str, Released]
    composite: dict[str, Released]
    accelerated: dict[str, Accelerations]
    units: dict[str, Counts]
    designs: dict[str, pd.DataFrame]
    design_effect: float | None
    calibration: TwoClass

    def table(self, analyses: list[Analysis], inputs: BootstrapInputs, rules: Estimate) -> pd.DataFrame:
        """Return the rows of tables.csv.

        Parameters
        ----------
        analyses : list of Analysis
        inputs : BootstrapInputs
        rules : Estimate
            Settings of the study.
        """
        by_name, images = populations(inputs.areas), inputs.inside.sum(axis=1)
        rows = []
        for analysis in analyses:
            name, result = analysis.name, self.results[analysis.name]
            design = self.designs[name]
            table = released_table(
                name,
                result,
                rules.interval_percent,
                self.scheme.interval,
                self.accelerated[name],
                design["gamma"].to_numpy(),
            )
            table = with_counts(table, analysis, by_name[analysis.population], images)
            table = table.assign(
                resampling_units=table["key"].map(dict(zip(design.index, self.units[name], strict=True)))
            )
            table = table.join(design[["positives", "effective_positives", "design_effect"]], on="key")
            by_class = self.scheme.prediction == "two_class"
            table = with_bounds(table, result.total, self.calibration.false_omission_rate if by_class else np.nan)
            if self.composite:
                wanted = released_table(name, self.composite[name], rules.interval_percent)
                wanted = wanted[[*_KEY, "estimate", "lower", "upper"]].set_index(_KEY).add_prefix("composite_")
                table = table.join(wanted, on=_KEY)
            rows.append(table.assign(preset=self.scheme.preset))
        return pd.concat(rows, ignore_index=True)

    def intervals(self, analyses: list[Analysis], percent: float) -> pd.DataFrame:
        """Return the intervals of every method, for groups with few effective positives also the gamma interval.

        Parameters
        ----------
        analyses : list of Analysis
        percent : float
            Nominal interval coverage.
        """
        parts = []
        for analysis in analyses:
            name = analysis.name
            rows = interval_table(name, self.resampled[name], percent, self.accelerated[name])
            few = self.designs[name].query("gamma").index
            by_gamma = interval_table(name, self.results[name], percent, self.accelerated[name])
            by_gamma = by_gamma[by_gamma["key"].isin(few) & (by_gamma["method"] == "percentile")]
            parts += [rows, by_gamma.assign(method="gamma")]
        return pd.concat(parts, ignore_index=True)

    def places(self, percent: float, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Make statements about all neighborhoods together.

        Parameters
        ----------
        percent : float
            Nominal coverage.
        seed : int
            Seed of the study.

        Returns
        -------
        DataFrame
            key, and the columns of `compare_places`.
        dict of str to Any
            Numbers of places above and below the average by plain intervals, by calls, and by simultaneous intervals.
        """
        result, design = self.results[PLACES], self.designs[PLACES].iloc[1:]
        relative, drawn = result.relative, result.replicate_relative
        with_interval = ~np.isnan(drawn).all(axis=0)
        estimates = np.where(with_interval, relative, np.nan)
        tails = (design[_TAILS[0]].to_numpy(), design[_TAILS[1]].to_numpy()) if _TAILS[0] in design else None
        positives = design["positives"].to_numpy()
        table, critical = compare_places(Places.of(estimates, drawn, positives), tails, percent=percent, seed=seed)
        lower, upper = percentile_interval(drawn, percent)
        numbers = {
            "places": int(with_interval.sum()),
            "compared": int(table["simultaneous_lower"].notna().sum()),
            "plain": [int((lower > 1).sum()), int((upper < 1).sum())],
            "called": [int((table["call"] == side).sum()) for side in ("above", "below")],
            "simultaneous": [
                int((table["simultaneous_lower"] > 1).sum()),
                int((table["simultaneous_upper"] < 1).sum()),
            ],
            **{name: None if np.isnan(value) else value for name, value in critical.items()},
        }
        return table.assign(key=result.keys), numbers


def beside(table: pd.DataFrame, published: pd.DataFrame | None) -> pd.DataFrame:
    """Add the ends of the published intervals to the rows of tables.csv; missing without them."""
    if published is None:
        return table.assign(published_lower=np.nan, published_upper=np.nan)
    ends = published.set_index(_KEY)[["lower", "upper"]].add_prefix("published_")
    return table.join(ends, on=_KEY)


def estimate_scheme(
    study: Study, scheme: ResamplingScheme, inputs: BootstrapInputs, counts: pd.DataFrame, calibration: TwoClass
) -> SchemeResults:
    """Estimate every analysis, and read its replicates.

    Parameters
    ----------
    study : Study
    scheme : ResamplingScheme
    inputs : BootstrapInputs
    counts : DataFrame
        `AREA_CLASS_COUNTS`.
    calibration : TwoClass
    """
    means = point_means(inputs, counts, scheme.prediction, calibration)
    point = [panel.means(means[:, None])[:, 0] for panel in inputs.panels]
    drawn = load_replicates(study, scheme, inputs.panels, "weighted_mean")
    units = _units(study, scheme, inputs)
    too_few = {name: (touching < UNITS_FOR_AN_INTERVAL) & (scheme.unit != "image") for name, touching in units.items()}
    final, designs = drawn, _without_design(inputs)
    composite: dict[str, Released] = {}
    effect = None
    if scheme.with_design:
        final, designs = _with_design(study, scheme, inputs, drawn, calibration)
    if scheme.with_composite:
        model = composite_of(study, scheme.unit)
        effect = model.design.of_regions if scheme.gamma_below_effective else None
        rates = deployment_rate(model.benchmarked(inputs.inside), *probabilities_of(calibration)[::-1, 0])
        composite = released(
            inputs.panels,
            [panel.means(rates[:, None])[:, 0] for panel in inputs.panels],
            load_replicates(study, scheme, inputs.panels, "composite_mean"),
        )
    made = [released(inputs.panels, point, values) for values in (final, drawn)]
    final_results, resampled, composite = (
        {name: without_replicates(result, too_few[name]) for name, result in results.items()}
        for results in (*made, composite)
    )
    return SchemeResults(
        scheme,
        final_results,
        resampled,
        composite,
        _accelerations(study, scheme, inputs, counts, means, calibration),
        units,
        designs,
        effect,
        calibration,
    )


def composite_rates(
    study: Study, scheme: ResamplingScheme, inputs: BootstrapInputs, calibration: TwoClass
) -> pd.DataFrame:
    """Return the composite rate of each area with its interval.

    Parameters
    ----------
    study : Study
    scheme : ResamplingScheme
        With composite rates.
    inputs : BootstrapInputs
    calibration : TwoClass

    Returns
    -------
    DataFrame
        composite_rate, composite_lower, composite_upper; missing for areas without images.
    """
    rules, numbers = study.settings.estimate, range(scheme.replicates)
    composite = composite_of(study, scheme.unit)
    base, positive = scheme_probabilities(calibration, scheme.resample_calibration, numbers, rules.seed)
    drawn = composite.draws(numbers, rules.seed)
    lower, upper = percentile_interval(deployment_rate(drawn, positive, base).T, rules.interval_percent)
    shares = composite.benchmarked(inputs.inside)
    rate = deployment_rate(shares, calibration.ppv, calibration.false_omission_rate)
    return pd.DataFrame({"composite_rate": rate, "composite_lower": lower, "composite_upper": upper})


def influential_areas(
    study: Study, scheme: ResamplingScheme, inputs: BootstrapInputs, calibration: TwoClass
) -> list[dict[str, Any]]:
    """List the single areas that make more of the variance of a relative rate than `estimate.influence_share`.

    The parameters are those of `composite_rates`.

    Returns
    -------
    list of dict
        analysis, group, key, area, images, positives, share.
    """
    design = composite_of(study, scheme.unit).design
    codes, images = inputs.areas["area"].to_numpy(), inputs.inside.sum(axis=1)
    found = []
    for panel in inputs.panels:
        groups = GroupDesign.of(panel.weights, design)
        shares = variance_shares(groups, design, (calibration.ppv, calibration.false_omission_rate))
        shares[(panel.weights > 0) @ (images > 0) < _LEAST_AREAS] = 0.0
        for analysis in panel.analyses:
            of_groups = shares[panel.rows[analysis.name]]
            found += [
                {
                    "analysis": analysis.name,
                    "group": analysis.labels[row],
                    "key": analysis.keys[row],
                    "area": str(codes[area]),
                    "images": int(images[area]),
                    "positives": int(inputs.inside[area, 1]),
                    "share": float(of_groups[row, area]),
                }
                for row, area in np.argwhere(of_groups > study.settings.estimate.influence_share)
            ]
    return found


def _with_design(
    study: Study, scheme: ResamplingScheme, inputs: BootstrapInputs, drawn: list[Floats], calibration: TwoClass
) -> tuple[list[Floats], dict[str, pd.DataFrame]]:
    """Return replicates with gamma quantiles for groups with few effective positives, and the designs of all groups."""
    rules = study.settings.estimate
    composite = composite_of(study, scheme.unit)
    shares = composite.shares(inputs.inside)
    numbers = range(drawn[0].shape[1])
    probabilities = scheme_probabilities(calibration, scheme.resample_calibration, numbers, rules.seed)
    final, designs = [], {}
    for panel, means in zip(inputs.panels, drawn, strict=True):
        groups = GroupDesign.of(panel.weights, composite.design)
        distributions = GammaDistributions.of(groups, inputs.inside, shares)
        below = scheme.gamma_below_effective
        final.append(with_gamma(panel, means, probabilities, groups, distributions, below=below, seed=rules.seed))
        whole = pd.DataFrame(
            {
                "positives": groups.positives.astype(np.int64),
                "effective_positives": groups.effective,
                "design_effect": groups.effects,
                "gamma": (groups.effective < below) & ~np.isnan(groups.shares),
                **dict(zip(_TAILS, distributions.tails(float(groups.shares[0])), strict=True)),
            }
        )
        for analysis in panel.analyses:
            rows = pd.concat([whole.iloc[:1], whole.iloc[panel.rows[analysis.name]]])
            designs[analysis.name] = rows.set_axis([TOTAL_KEY, *analysis.keys], axis=0)
    return final, designs


def _without_design(inputs: BootstrapInputs) -> dict[str, pd.DataFrame]:
    """Return the positives of all groups, for resampling units whose design effects are unknown."""
    found = {}
    for panel in inputs.panels:
        positives = (panel.weights > 0) @ inputs.inside[:, 1]
        for analysis in panel.analyses:
            counted = [positives[0], *positives[panel.rows[analysis.name]]]
            rows = {"positives": counted, "effective_positives": np.nan, "design_effect": np.nan, "gamma": False}
            found[analysis.name] = pd.DataFrame(rows, index=[TOTAL_KEY, *analysis.keys])
    return found


def _accelerations(
    study: Study,
    scheme: ResamplingScheme,
    inputs: BootstrapInputs,
    counts: pd.DataFrame,
    means: Floats,
    calibration: TwoClass,
) -> dict[str, Accelerations]:
    """Return the accelerations of every analysis."""
    accelerated: dict[str, Accelerations] = {}
    for panel in inputs.panels:
        slopes = Slopes.of(panel, means)
        moments = _moments(study, scheme, inputs, counts, slopes, means, calibration)
        if scheme.resample_calibration:
            moments += validation_moments(slopes, inputs.inside, calibration)
        for name, rows in panel.rows.items():
            both = np.hstack([moments.acceleration[:, :1], moments.acceleration[:, rows]])
            accelerated[name] = dict(zip(QUANTITIES, both, strict=True))
    return accelerated


def _moments(
    study: Study,
    scheme: ResamplingScheme,
    inputs: BootstrapInputs,
    counts: pd.DataFrame,
    slopes: Slopes,
    means: Floats,
    calibration: TwoClass,
) -> Moments:
    """Compute the moments of the resampling units of a scheme."""
    images = inputs.inside.sum(axis=1)
    if scheme.unit == "area":
        return area_moments(slopes, means)
    if scheme.unit == "image":
        second, third = _deviations(inputs, counts, scheme.prediction, means, calibration)
        return image_moments(slopes, images, second, third)
    units = load_unit_counts(study, scheme.unit)
    if scheme.prediction == "two_class":
        probability = np.array([calibration.false_omission_rate, calibration.ppv])
        sums = units.images * probability[units.area_class % 2]
    else:
        sums = units.steps * PROBABILITY_STEP
    return unit_moments(slopes, units, images, means, sums)


def _deviations(
    inputs: BootstrapInputs, counts: pd.DataFrame, prediction: str, means: Floats, calibration: TwoClass
) -> tuple[Floats, Floats]:
    """Return sums of squared and cubed deviations of predictions from the mean of their area, shape (n_areas,) each."""
    if prediction == "two_class":
        deviation = np.array([calibration.false_omission_rate, calibration.ppv]) - means[:, None]
        return (inputs.inside * deviation**2).sum(axis=1), (inputs.inside * deviation**3).sum(axis=1)
    powers = ["adjusted_sum", "adjusted_sum_2", "adjusted_sum_3"]
    sums = counts.groupby("area")[powers].sum().reindex(inputs.areas["area"], fill_value=0.0)
    first, second, third = sums.to_numpy().T
    return second - means * first, third - 3 * means * second + 2 * means**2 * first


def _units(study: Study, scheme: ResamplingScheme, inputs: BootstrapInputs) -> dict[str, Counts]:
    """Count the resampling units with an image where a group has residents, shape (1 + n_groups,) per analysis."""
    images = inputs.inside.sum(axis=1)
    counts = load_unit_counts(study, scheme.unit) if scheme.unit in ("ride", "day") else None
    units = {}
    for panel in inputs.panels:
        if counts is not None:
            touching = units_touching(counts, panel.weights)
        else:
            touching = (panel.weights > 0) @ (images if scheme.unit == "image" else images > 0).astype(np.int64)
        for name, rows in panel.rows.items():
            units[name] = np.concatenate([touching[:1], touching[rows]])
    return units

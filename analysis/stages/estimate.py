"""Stage `estimate`: tables of estimates with intervals, replicates in the released form, and a summary."""

from __future__ import annotations

import json
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.area_class_counts import PROBABILITY_STEP
from patrolscope.analysis.estimators.bootstrap import Counts, Floats
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.influence import (
    Moments,
    Slopes,
    area_moments,
    image_moments,
    unit_moments,
    validation_moments,
)
from patrolscope.analysis.estimators.rates import TOTAL_KEY, Analysis, populations
from patrolscope.analysis.estimators.replicates import BootstrapInputs, ResamplingScheme, point_means
from patrolscope.analysis.estimators.spatial_statistics import describe_map
from patrolscope.analysis.estimators.unit_counts import units_touching
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.counts import load_unit_counts
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.replicates import (
    bootstrap_inputs,
    load_replicates,
    possible_schemes,
    released,
    without_replicates,
)
from patrolscope.analysis.stages.result_tables import (
    QUANTITIES,
    Accelerations,
    agreement,
    area_table,
    interval_table,
    released_table,
    with_counts,
)
from patrolscope.pipeline.contract.tables import AREA_CLASS_COUNTS
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Estimate
from patrolscope.pipeline.study.store import Output, Study, fingerprint

ESTIMATES = "estimates"
# Resampling units with images of a group: with fewer, no interval is shown. Of 4 units, 1 draw in 64 has a single one.
UNITS_FOR_AN_INTERVAL = 5
TABLES_FILE = f"{ESTIMATES}/tables.csv"
AREAS_CSV_FILE = f"{ESTIMATES}/areas.csv"
SUMMARY_FILE = f"{ESTIMATES}/summary.json"
AREA_CLASS_COUNTS_FILE = AREA_CLASS_COUNTS.stored


def plan_estimate(study: Study) -> list[Shard]:
    """Plan one shard, which depends on the counts, the replicates, and the settings of the estimates."""
    stages = dict.fromkeys([*registry.filtering(), *registry.inputs("estimate")])
    made_from = [[record.content for record in study.records(stage).values()] for stage in stages]
    work = {"rules": study.settings.estimate.model_dump(mode="json"), "truth": study.settings.sources.truth}
    return [Shard("estimates", work, made_from=fingerprint(made_from))]


def process_estimate(study: Study, _shard: Shard) -> Output:
    """Write estimates/; every further resampling scheme has a folder of its own."""
    rules = study.settings.estimate
    inputs, analyses, skipped, cuts, counts = bootstrap_inputs(study, geometry=True)
    calibration, adjusted, evaluation = load_calibration(study)
    inside, areas = inputs.inside, inputs.areas
    files = [study.write(AREA_CLASS_COUNTS, counts, AREA_CLASS_COUNTS_FILE)]
    tables: dict[str, pd.DataFrame] = {}
    described: list[dict[str, Any]] = []
    schemes, schemes_skipped = possible_schemes(study)
    for scheme in schemes:
        folder = f"{ESTIMATES}/{scheme.folder}" if tables else ESTIMATES
        results, accelerated = _results(study, scheme, inputs, counts, calibration)
        units = _units(study, scheme, inputs)
        if scheme.unit != "image":
            results = {
                name: without_replicates(result, units[name] < UNITS_FOR_AN_INTERVAL)
                for name, result in results.items()
            }
        tables[folder] = _tables(analyses, results, accelerated, units, inputs, rules)
        replicates = next(iter(results.values())).replicate_totals
        described.append(
            {
                "prediction": scheme.prediction,
                "unit": scheme.unit,
                "folder": folder,
                "replicates": len(replicates),
                "without_an_estimate": int(np.isnan(replicates).sum()),
                "without_intervals": _too_few(scheme, units),
                "resample_calibration": rules.resample_calibration and scheme.prediction == "two_class",
            }
        )
        for analysis in analyses:
            parts = (part.encode() for part in results[analysis.name].json_parts())
            files.append(study.write_text(parts, f"{folder}/{analysis.published_file}"))
        files.append(study.write_bytes(tables[folder].to_csv(index=False).encode(), folder, "tables.csv"))
        intervals = pd.concat(
            [
                interval_table(
                    analysis.name, results[analysis.name], rules.interval_percent, accelerated[analysis.name]
                )
                for analysis in analyses
            ]
        )
        files.append(study.write_bytes(intervals.to_csv(index=False).encode(), folder, "intervals.csv"))
    table = tables[ESTIMATES]
    rates = area_table(areas, counts, inside, (calibration.ppv, calibration.false_omission_rate))
    summary: dict[str, Any] = {
        "calibration": {
            "threshold": calibration.threshold,
            "validation_images": calibration.positive + calibration.negative,
            "positive": calibration.positive,
            "true_positive": calibration.true_positive,
            "negative": calibration.negative,
            "false_negative": calibration.false_negative,
            "ppv": calibration.ppv,
            "false_omission_rate": calibration.false_omission_rate,
            "precision": calibration.ppv,
            "recall": calibration.recall,
            "adjusted": None if adjusted is None else adjusted.__dict__,
        },
        "evaluation": evaluation,
        "images": {
            "analyzed": int(counts["images"].sum()),
            "positive": int(counts.loc[counts["positive"], "images"].sum()),
            "outside_every_area": int(inputs.outside.sum()),
            "funnel": funnel(study),
        },
        "interval_percent": rules.interval_percent,
        "interval": rules.interval,
        "replicates": rules.replicates,
        "schemes": described,
        "schemes_skipped": schemes_skipped,
        "cut_points": {name: [float(cut) for cut in cut_points] for name, cut_points in cuts.items()},
        "skipped": skipped,
        **describe_map(areas, rates.rename(columns={"deployment_rate": "level"}), rules, study.settings.city.crs),
        "truth": _truth(study, table, areas, inside),
    }
    files.append(study.write_bytes(rates.to_csv(index=False).encode(), AREAS_CSV_FILE))
    files.append(study.write_bytes(json.dumps(summary, indent=1).encode(), SUMMARY_FILE))
    return Output(tuple(files), len(counts), len(table))


def funnel(study: Study) -> list[tuple[str, int]]:
    """Return the rows left after each reason for dropping some, from the lines of the raw files to analyzed images."""
    steps: list[tuple[str, int]] = []
    for stage in registry.filtering():
        records = list(study.records(stage).values())
        left = sum(record.rows_in for record in records)
        if not steps:
            steps.append(("lines in the raw files", left))
        dropped: dict[str, int] = {}
        for record in records:
            for line in record.ledger:
                for why, rows in line["dropped"].items():
                    dropped[why] = dropped.get(why, 0) + rows
        for why, rows in dropped.items():
            left -= rows
            steps.append((why, left))
    return steps


def _results(
    study: Study, scheme: ResamplingScheme, inputs: BootstrapInputs, counts: pd.DataFrame, calibration: TwoClass
) -> tuple[dict[str, Released], dict[str, Accelerations]]:
    """Return the estimates and replicates of every analysis, and their accelerations."""
    means = point_means(inputs, counts, scheme.prediction, calibration)
    point = [panel.means(means[:, None])[:, 0] for panel in inputs.panels]
    accelerated: dict[str, Accelerations] = {}
    for panel in inputs.panels:
        slopes = Slopes.of(panel, means)
        moments = _moments(study, scheme, inputs, counts, slopes, means, calibration)
        if study.settings.estimate.resample_calibration and scheme.prediction == "two_class":
            moments += validation_moments(slopes, inputs.inside, calibration)
        for name, rows in panel.rows.items():
            both = np.hstack([moments.acceleration[:, :1], moments.acceleration[:, rows]])
            accelerated[name] = dict(zip(QUANTITIES, both, strict=True))
    return released(inputs.panels, point, load_replicates(study, scheme, inputs.panels)), accelerated


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


def _too_few(scheme: ResamplingScheme, units: dict[str, Counts]) -> str:
    """Return the reason if the resampling units are too few for any interval, else an empty text."""
    number = max(int(touching[0]) for touching in units.values())
    few = scheme.unit != "image" and number < UNITS_FOR_AN_INTERVAL
    return f"{number} {scheme.unit}s; an interval needs at least {UNITS_FOR_AN_INTERVAL}" if few else ""


def _tables(
    analyses: list[Analysis],
    results: dict[str, Released],
    accelerated: dict[str, Accelerations],
    units: dict[str, Counts],
    inputs: BootstrapInputs,
    rules: Estimate,
) -> pd.DataFrame:
    by_name, images = populations(inputs.areas), inputs.inside.sum(axis=1)
    rows = []
    for analysis in analyses:
        name = analysis.name
        table = released_table(name, results[name], rules.interval_percent, rules.interval, accelerated[name])
        touching = dict(zip((TOTAL_KEY, *analysis.keys), units[name], strict=True))
        table = with_counts(table, analysis, by_name[analysis.population], images)
        rows.append(table.assign(resampling_units=table["key"].map(touching)))
    return pd.concat(rows, ignore_index=True)


def _truth(study: Study, table: pd.DataFrame, areas: pd.DataFrame, inside: Counts) -> dict[str, Any] | None:
    if study.settings.sources.truth is None or areas["neighborhood"].isna().all():
        return None
    path = study.resolve(f"{study.settings.sources.truth}/areas.csv")
    with fsspec.open(path, "rb") as file:
        truth = pd.read_csv(file, dtype={"area": "str"})
    if "deployment_rate" not in truth:
        raise SourceError(f"{path} has no column deployment_rate; simulate the study again or remove sources.truth")
    return agreement(table, truth.set_index("area")["deployment_rate"], areas, inside)


ESTIMATE = Stage(
    "estimate", unit="files", folders=("estimates",), plan=plan_estimate, process=process_estimate, version=5
)

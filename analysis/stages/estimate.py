"""Stage `estimate`: tables of estimates with intervals, replicates in the released form, and a summary."""

from __future__ import annotations

import json
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.replicates import ResamplingScheme
from patrolscope.analysis.estimators.spatial_statistics import describe_map
from patrolscope.analysis.estimators.unit_counts import UNITS_FOR_AN_INTERVAL
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.replicates import bootstrap_inputs, possible_schemes
from patrolscope.analysis.stages.result_tables import agreement, area_table
from patrolscope.analysis.stages.scheme_results import (
    PLACES,
    beside,
    composite_rates,
    estimate_scheme,
    influential_areas,
)
from patrolscope.pipeline.contract.tables import AREA_CLASS_COUNTS
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.store import Output, Study, fingerprint

ESTIMATES = "estimates"
TABLES_FILE = f"{ESTIMATES}/tables.csv"
AREAS_CSV_FILE = f"{ESTIMATES}/areas.csv"
PLACES_FILE = f"{ESTIMATES}/places.csv"
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
    places: dict[str, Any] | None = None
    schemes, schemes_skipped = possible_schemes(study)
    for scheme in schemes:
        folder = f"{ESTIMATES}/{scheme.folder}" if tables else ESTIMATES
        made = estimate_scheme(study, scheme, inputs, counts, calibration)
        if not tables and any(analysis.name == PLACES for analysis in analyses):
            placed, places = made.places(rules.interval_percent, rules.seed)
            files.append(study.write_bytes(placed.to_csv(index=False).encode(), PLACES_FILE))
        tables[folder] = made.table(analyses, inputs, rules)
        replicates = next(iter(made.results.values())).replicate_totals
        described.append(
            {
                "prediction": scheme.prediction,
                "unit": scheme.unit,
                "preset": scheme.preset,
                "folder": folder,
                "replicates": len(replicates),
                "without_an_estimate": int(np.isnan(replicates).sum()),
                "without_intervals": _too_few(scheme, made.units),
                "resample_calibration": scheme.resample_calibration,
                "gamma_below_effective": scheme.gamma_below_effective,
                "census_error": scheme.census_error,
                "design_effect": made.design_effect,
            }
        )
        for analysis in analyses:
            parts = (part.encode() for part in made.results[analysis.name].json_parts())
            files.append(study.write_text(parts, f"{folder}/{analysis.published_file}"))
        intervals = made.intervals(analyses, rules.interval_percent)
        files.append(study.write_bytes(intervals.to_csv(index=False).encode(), folder, "intervals.csv"))
    tables[ESTIMATES] = beside(tables[ESTIMATES], tables.get(f"{ESTIMATES}/published"))
    for folder, written in tables.items():
        files.append(study.write_bytes(written.to_csv(index=False).encode(), folder, "tables.csv"))
    table = tables[ESTIMATES]
    rates = area_table(areas, counts, inside, (calibration.ppv, calibration.false_omission_rate))
    influential: list[dict[str, Any]] = []
    # The first scheme has composite rates, unless it resamples days or areas or predicts by station.
    if composite := next((scheme for scheme in schemes if scheme.with_composite), None):
        rates = pd.concat([rates, composite_rates(study, composite, inputs, calibration)], axis=1)
        influential = influential_areas(study, composite, inputs, calibration)
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
        "preset": rules.preset_in_use,
        "interval_percent": rules.interval_percent,
        "interval": rules.interval,
        "replicates": rules.replicates,
        "schemes": described,
        "places": places,
        "influential_areas": influential,
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


def _too_few(scheme: ResamplingScheme, units: dict[str, Counts]) -> str:
    """Return the reason if the resampling units are too few for any interval, else an empty text."""
    number = max(int(touching[0]) for touching in units.values())
    few = scheme.unit != "image" and number < UNITS_FOR_AN_INTERVAL
    return f"{number} {scheme.unit}s; an interval needs at least {UNITS_FOR_AN_INTERVAL}" if few else ""


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
    "estimate", unit="files", folders=("estimates",), plan=plan_estimate, process=process_estimate, version=8
)

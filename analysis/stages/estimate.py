"""The estimate stage: from cells to tables, replicates and a summary."""

from __future__ import annotations

import json
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.bootstrap import Counts, Floats
from patrolscope.analysis.estimators.influence import (
    Moments,
    Slopes,
    area_moments,
    cluster_moments,
    image_moments,
    validation_moments,
)
from patrolscope.analysis.estimators.rates import TOTAL_KEY, Analysis, frames
from patrolscope.analysis.estimators.spatial_statistics import describe_map
from patrolscope.analysis.stages.calibrate import TwoClass, load_calibration
from patrolscope.analysis.stages.cells import PROBABILITY_STEP
from patrolscope.analysis.stages.clusters import clusters_touching, load_clusters
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.replicates import (
    BootstrapInputs,
    ResamplingScheme,
    count,
    load_replicates,
    point_means,
    possible_ways,
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
from patrolscope.pipeline.contract.tables import CELLS
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Estimate
from patrolscope.pipeline.study.store import Output, Study, fingerprint

ESTIMATES = "estimates"
# Rides, days or areas that touch a group: with fewer, draws of them say nothing. Of 4 one draw in 64 is a single one.
UNITS_FOR_AN_INTERVAL = 5
TABLES_FILE = f"{ESTIMATES}/tables.csv"
AREAS_CSV_FILE = f"{ESTIMATES}/areas.csv"
SUMMARY_FILE = f"{ESTIMATES}/summary.json"
CELLS_FILE = f"{ESTIMATES}/cells.parquet"


def plan_estimate(study: Study) -> list[Shard]:
    """One shard, made from all cells, all replicates and the rules of estimation."""
    stages = dict.fromkeys([*registry.filtering(), *registry.inputs("estimate")])
    made_from = [[record.fingerprint for record in study.records(stage).values()] for stage in stages]
    work = {"rules": study.settings.estimate.model_dump(mode="json"), "truth": study.settings.sources.truth}
    return [Shard("estimates", work, made_from=fingerprint(made_from))]


def process_estimate(study: Study, _shard: Shard) -> Output:
    """Write estimates/: cells, replicates by analysis, tables, levels by area, summary; a folder a further way."""
    rules = study.settings.estimate
    counted, wanted, skipped, cuts, cells = count(study, geometry=True)
    calibration, adjusted, evaluation = load_calibration(study)
    inside, areas = counted.inside, counted.areas
    files = [study.write(CELLS, cells, CELLS_FILE)]
    tables: dict[str, pd.DataFrame] = {}
    made: list[dict[str, Any]] = []
    possible, impossible = possible_ways(study)
    for way in possible:
        folder = f"{ESTIMATES}/{way.folder}" if tables else ESTIMATES
        results, accelerated = _results(study, way, counted, cells, calibration)
        units = _units(study, way, counted)
        if way.unit != "image":
            results = {
                name: without_replicates(one, units[name] < UNITS_FOR_AN_INTERVAL) for name, one in results.items()
            }
        tables[folder] = _tables(wanted, results, accelerated, units, counted, rules)
        replicates = next(iter(results.values())).replicate_totals
        made.append(
            {
                "prediction": way.prediction,
                "unit": way.unit,
                "folder": folder,
                "replicates": len(replicates),
                "without_an_estimate": int(np.isnan(replicates).sum()),
                "without_intervals": _too_few(way, units),
                "resample_calibration": rules.resample_calibration and way.prediction == "two_class",
            }
        )
        for one in wanted:
            parts = (part.encode() for part in results[one.name].json_parts())
            files.append(study.write_text(parts, f"{folder}/{one.published_file}"))
        files.append(study.write_bytes(tables[folder].to_csv(index=False).encode(), folder, "tables.csv"))
        every = pd.concat(
            [
                interval_table(one.name, results[one.name], rules.interval_percent, accelerated[one.name])
                for one in wanted
            ]
        )
        files.append(study.write_bytes(every.to_csv(index=False).encode(), folder, "intervals.csv"))
    table = tables[ESTIMATES]
    levels = area_table(areas, cells, inside, (calibration.p_positive, calibration.p_negative))
    summary: dict[str, Any] = {
        "calibration": {
            "threshold": calibration.threshold,
            "validation_images": calibration.positive + calibration.negative,
            "positive": calibration.positive,
            "true_positive": calibration.true_positive,
            "negative": calibration.negative,
            "false_negative": calibration.false_negative,
            "p_positive": calibration.p_positive,
            "p_negative": calibration.p_negative,
            "precision": calibration.precision,
            "recall": calibration.recall,
            "adjusted": None if adjusted is None else adjusted.__dict__,
        },
        "evaluation": evaluation,
        "images": {
            "analyzed": int(cells["images"].sum()),
            "positive": int(cells.loc[cells["positive"], "images"].sum()),
            "outside_every_area": int(counted.outside.sum()),
            "funnel": funnel(study),
        },
        "interval_percent": rules.interval_percent,
        "interval": rules.interval,
        "replicates": rules.replicates,
        "ways": made,
        "ways_skipped": impossible,
        "cut_points": {name: [float(cut) for cut in cut_points] for name, cut_points in cuts.items()},
        "skipped": skipped,
        **describe_map(areas, levels, rules, study.settings.city.crs),
        "truth": _truth(study, table, areas, inside),
    }
    files.append(study.write_bytes(levels.to_csv(index=False).encode(), AREAS_CSV_FILE))
    files.append(study.write_bytes(json.dumps(summary, indent=1).encode(), SUMMARY_FILE))
    return Output(tuple(files), len(cells), len(table))


def funnel(study: Study) -> list[tuple[str, int]]:
    """From the lines of the raw files to the analyzed images: what is left after every reason to drop."""
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
    study: Study, way: ResamplingScheme, counted: BootstrapInputs, cells: pd.DataFrame, calibration: TwoClass
) -> tuple[dict[str, Released], dict[str, Accelerations]]:
    """Point estimates and replicates of every analysis, and their accelerations."""
    means = point_means(counted, cells, way.prediction, calibration)
    point = [panel.means(means[:, None])[:, 0] for panel in counted.panels]
    accelerated: dict[str, Accelerations] = {}
    for panel in counted.panels:
        slopes = Slopes.of(panel, means)
        moments = _moments(study, way, counted, cells, slopes, means, calibration)
        if study.settings.estimate.resample_calibration and way.prediction == "two_class":
            moments += validation_moments(slopes, counted.inside, calibration)
        for name, rows in panel.rows.items():
            both = np.hstack([moments.acceleration[:, :1], moments.acceleration[:, rows]])
            accelerated[name] = dict(zip(QUANTITIES, both, strict=True))
    return released(counted.panels, point, load_replicates(study, way, counted.panels)), accelerated


def _moments(
    study: Study,
    way: ResamplingScheme,
    counted: BootstrapInputs,
    cells: pd.DataFrame,
    slopes: Slopes,
    means: Floats,
    calibration: TwoClass,
) -> Moments:
    """Moments of the observations that a way draws."""
    images = counted.inside.sum(axis=1)
    if way.unit == "area":
        return area_moments(slopes, means)
    if way.unit == "image":
        second, third = _spread_within(counted, cells, way.prediction, means, calibration)
        return image_moments(slopes, images, second, third)
    clusters = load_clusters(study, way.unit)
    if way.prediction == "two_class":
        probability = np.array([calibration.p_negative, calibration.p_positive])
        sums = clusters.images * probability[clusters.cell % 2]
    else:
        sums = clusters.steps * PROBABILITY_STEP
    return cluster_moments(slopes, clusters, images, means, sums)


def _spread_within(
    counted: BootstrapInputs, cells: pd.DataFrame, prediction: str, means: Floats, calibration: TwoClass
) -> tuple[Floats, Floats]:
    """Sums of the squared and cubed distance of predictions from the mean of their area, (areas,) each."""
    if prediction == "two_class":
        away = np.array([calibration.p_negative, calibration.p_positive]) - means[:, None]
        return (counted.inside * away**2).sum(axis=1), (counted.inside * away**3).sum(axis=1)
    powers = ["adjusted_sum", "adjusted_sum_2", "adjusted_sum_3"]
    sums = cells.groupby("area")[powers].sum().reindex(counted.areas["area"], fill_value=0.0)
    first, second, third = sums.to_numpy().T
    return second - means * first, third - 3 * means * second + 2 * means**2 * first


def _units(study: Study, way: ResamplingScheme, counted: BootstrapInputs) -> dict[str, Counts]:
    """How many units of a way have an image where someone of a group lives, (1 + groups,) of each analysis."""
    images = counted.inside.sum(axis=1)
    clusters = load_clusters(study, way.unit) if way.unit in ("ride", "day") else None
    units = {}
    for panel in counted.panels:
        if clusters is not None:
            touching = clusters_touching(clusters, panel.weights)
        else:
            touching = (panel.weights > 0) @ (images if way.unit == "image" else images > 0).astype(np.int64)
        for name, rows in panel.rows.items():
            units[name] = np.concatenate([touching[:1], touching[rows]])
    return units


def _too_few(way: ResamplingScheme, units: dict[str, Counts]) -> str:
    """Why no group has an interval, where the units of a way are too few for everyone, else empty."""
    number = max(int(touching[0]) for touching in units.values())
    few = way.unit != "image" and number < UNITS_FOR_AN_INTERVAL
    return f"{number} {way.unit}s: fewer than {UNITS_FOR_AN_INTERVAL} say nothing" if few else ""


def _tables(
    wanted: list[Analysis],
    results: dict[str, Released],
    accelerated: dict[str, Accelerations],
    units: dict[str, Counts],
    counted: BootstrapInputs,
    rules: Estimate,
) -> pd.DataFrame:
    all_frames, images = frames(counted.areas), counted.inside.sum(axis=1)
    rows = []
    for one in wanted:
        table = released_table(
            one.name, results[one.name], rules.interval_percent, rules.interval, accelerated[one.name]
        )
        touching = dict(zip((TOTAL_KEY, *one.keys), units[one.name], strict=True))
        rows.append(with_counts(table, one, all_frames[one.frame], images).assign(units=table["key"].map(touching)))
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
    "estimate", unit="files", folders=("estimates",), plan=plan_estimate, process=process_estimate, version=4
)

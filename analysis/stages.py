"""The estimate stage: from cells to tables, replicates and a summary."""

from __future__ import annotations

import json
from typing import Any

import fsspec
import pandas as pd

from analysis.bootstrap import Counts, counts_by_area
from analysis.calibrate import load_calibration
from analysis.cells import load_cells
from analysis.estimate import analyses, frames
from analysis.results import agreement, area_table, estimate_all, group_table
from analysis.spatial_statistics import describe_map
from pipeline.errors import SourceError
from pipeline.layers import AREAS_FILE
from pipeline.stages import Shard, Stage
from pipeline.store import Record, Study, fingerprint
from pipeline.tables import CELLS

TABLES_FILE = "estimates/tables.csv"
AREAS_CSV_FILE = "estimates/areas.csv"
SUMMARY_FILE = "estimates/summary.json"
CELLS_FILE = "estimates/cells.parquet"


def plan_estimate(study: Study) -> list[Shard]:
    """One shard, made from all cells and the rules of estimation."""
    made_from = [
        [record.fingerprint for record in study.records(stage).values()] for stage in ("cells", "layers", "calibrate")
    ]
    work = {"rules": study.settings.estimate.model_dump(mode="json"), "truth": study.settings.sources.truth}
    return [Shard("estimates", work, made_from=fingerprint(made_from))]


def process_estimate(study: Study, _shard: Shard) -> Record:
    """Write estimates/: cells, replicates by analysis, tables, levels by area, summary."""
    rules = study.settings.estimate
    areas = study.read(AREAS_FILE, geometry=True)
    cells = load_cells(study)
    calibration, adjusted, evaluation = load_calibration(study)
    probabilities = (calibration.p_positive, calibration.p_negative)
    inside, outside = counts_by_area(cells, areas["area"])
    images = inside.sum(axis=1)
    _refuse_empty(study, int(cells["images"].sum()), int(images.sum()), float(areas["persons"][images > 0].sum()))

    wanted, skipped, cuts = analyses(areas, images)
    results = estimate_all(wanted, areas, inside, outside, probabilities, replicates=rules.replicates, seed=rules.seed)
    all_frames = frames(areas)
    table = pd.concat(
        [group_table(one, results[one.name], all_frames[one.frame], images, rules.interval_percent) for one in wanted],
        ignore_index=True,
    )
    levels = area_table(areas, cells, inside, probabilities)
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
            "analysed": int(cells["images"].sum()),
            "positive": int(cells.loc[cells["positive"], "images"].sum()),
            "outside_every_area": int(outside.sum()),
            "funnel": funnel(study),
        },
        "interval_percent": rules.interval_percent,
        "replicates": rules.replicates,
        "cut_points": {name: [float(cut) for cut in cut_points] for name, cut_points in cuts.items()},
        "skipped": skipped,
        **describe_map(areas, levels, rules, study.settings.city.crs),
        "truth": _truth(study, table, areas, inside),
    }
    files = [study.write(CELLS, cells, CELLS_FILE)]
    for one in wanted:
        text = results[one.name].to_json()
        files.append(study.write_bytes(text.encode(), f"estimates/{one.published_file}"))
    files.append(study.write_bytes(table.to_csv(index=False).encode(), TABLES_FILE))
    files.append(study.write_bytes(levels.to_csv(index=False).encode(), AREAS_CSV_FILE))
    files.append(study.write_bytes(json.dumps(summary, indent=1).encode(), SUMMARY_FILE))
    return Record("", "", tuple(files), len(cells), len(table))


def funnel(study: Study) -> list[tuple[str, int]]:
    """From the lines of the raw files to the analysed images: what is left after every reason to drop."""
    steps: list[tuple[str, int]] = []
    for stage in ("read", "ingest", "annotate", "cells"):
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


def _refuse_empty(study: Study, analysed: int, inside: int, persons: float) -> None:
    rules = study.settings.estimate
    if analysed == 0:
        raise SourceError(
            f"no image is left to analyse: of split {rules.split}, from {rules.first_day} on, run through the "
            f"detector. {study.root}/ledger.jsonl says where they went; the rules stand under estimate: in study.yaml"
        )
    if inside == 0:
        raise SourceError(f"none of {analysed} analysed images lies in an area: check layers.areas and city.box")
    if persons == 0:
        raise SourceError(
            "nobody lives in the areas with images: estimates are weighted by people; check layers.population"
        )


def _truth(study: Study, table: pd.DataFrame, areas: pd.DataFrame, inside: Counts) -> dict[str, Any] | None:
    if study.settings.sources.truth is None or areas["neighbourhood"].isna().all():
        return None
    path = study.resolve(f"{study.settings.sources.truth}/areas.csv")
    with fsspec.open(path, "rb") as file:
        truth = pd.read_csv(file, dtype={"area": "str"})
    return agreement(table, truth.set_index("area")["level"], areas, inside)


ESTIMATE = Stage(
    "estimate", unit="files", folders=("estimates",), plan=plan_estimate, process=process_estimate, version=2
)

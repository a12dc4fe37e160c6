"""Stages that draw: each one reads, calls the analysis, draws, and writes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial

from matplotlib.figure import Figure

from patrolscope.analysis.estimators.detector_quality import ThresholdRule
from patrolscope.analysis.stages.counts import load_raster
from patrolscope.analysis.stages.evaluate import evaluate_study, evaluation_inputs
from patrolscope.analysis.stages.results import read_results
from patrolscope.analysis.stages.sensitivity import (
    COVERAGE_FOLDER,
    SENSITIVITY_FOLDER,
    analyze_sensitivity,
    coverage_files,
    sensitivity_files,
)
from patrolscope.analysis.stages.street_scenes import quality_on_scenes, seen_by_detector
from patrolscope.dashboards.charts.evaluation import draw_evaluation
from patrolscope.dashboards.charts.figures import draw_figures
from patrolscope.dashboards.charts.image_coverage import coverage_figure
from patrolscope.dashboards.charts.matplotlib_renderer import to_png, to_svg
from patrolscope.dashboards.charts.sensitivity import sensitivity_figure
from patrolscope.dashboards.charts.street_scenes import choose_scenes, draw_sheet
from patrolscope.dashboards.maps.city_maps import draw_maps, load_city
from patrolscope.dashboards.report.report import REPORT_FILE, render_report
from patrolscope.pipeline.detect.stages import stage_name
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.simulation.files import IMAGES_SHOWN_FILE
from patrolscope.pipeline.simulation.scene_images import IMAGES_FOLDER
from patrolscope.pipeline.simulation.stages import SIMULATE_SHOWN
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study, fingerprint

FIGURES_FOLDER = "figures"
EVALUATION_FOLDER = "evaluation"
STREETS_FILE = "figures/streets.png"


# Maps and figures.


def plan_map(study: Study) -> list[Shard]:
    """Plan one shard, which depends on the counts, the estimates, and the settings that figures show."""
    settings = study.settings
    work = {
        "name": settings.name,
        "simulated": settings.simulated,
        "city": settings.city.model_dump(mode="json"),
        "layers": settings.layers.model_dump(mode="json"),
        "rules": settings.estimate.model_dump(mode="json"),
        "truth": settings.sources.truth,
    }
    return [Shard("figures", work, made_from=_made_from(study, "counts", "estimate"))]


def process_map(study: Study, _shard: Shard) -> Output:
    """Write figures/: maps as PNG, charts as SVG and PNG."""
    results = read_results(study)
    settings = study.settings
    city = load_city(study, results)
    raster = load_raster(study)
    files = [
        study.write_bytes(to_png(figure, dpi), FIGURES_FOLDER, f"{name}.png")
        for name, (figure, dpi) in draw_maps(study, city, raster).items()
    ]
    figures = draw_figures(results, interval_percent=settings.estimate.interval_percent, simulated=settings.simulated)
    files += _write_figures(study, FIGURES_FOLDER, figures)
    records = study.records("counts").values()
    ledger = Ledger("count images into cells of the map", sum(record.rows_in for record in records))
    for record in records:
        for line in record.ledger:
            for why, rows in line["dropped"].items():
                ledger.drop(rows, why=why)
    shown = int(raster.images.sum(dtype="int64"))
    ledger.drop(sum(record.rows_out for record in records) - shown, why="outside the map")
    return Output(tuple(files), ledger.rows_in, shown, (ledger.close(shown),))


# Sensitivity and image coverage.


def plan_sensitivity(study: Study) -> list[Shard]:
    """Plan one shard that depends on the hourly counts, the areas, and the settings."""
    settings = study.settings
    stages = ("layers", "recalibrate", "counts")
    made_from = [record.content for stage in stages for record in study.records(stage).values()]
    work = {
        "estimate": settings.estimate.model_dump(mode="json"),
        "sensitivity": settings.sensitivity.model_dump(mode="json"),
        "simulated": settings.simulated,
    }
    return [Shard("sensitivity", work, made_from=fingerprint(made_from))]


def process_sensitivity(study: Study, _shard: Shard) -> Output:
    """Write sensitivity/ and coverage/: tables as CSV, summaries, and charts as SVG and PNG."""
    results, coverage, images = analyze_sensitivity(study)
    simulated = study.settings.simulated
    files = []
    for folder, contents, figure in (
        (SENSITIVITY_FOLDER, sensitivity_files(results), sensitivity_figure(results, simulated=simulated)),
        (COVERAGE_FOLDER, coverage_files(coverage), coverage_figure(coverage, simulated=simulated)),
    ):
        files += _write_contents(study, folder, contents) + _write_figures(study, folder, {folder: figure})
    return Output(tuple(files), images, len(results.table))


# Evaluation of the detector.


def plan_evaluate(study: Study, *, choice: ThresholdRule, replicates: int, labels: str | None) -> list[Shard]:
    """Plan one shard that depends on the labeled images, the reference layers, and the threshold rule.

    Parameters
    ----------
    study : Study
        Study to evaluate.
    choice : ThresholdRule
        How the threshold is chosen.
    replicates : int
        Bootstrap replicates.
    labels : str or None
        CSV file with ground-truth labels of the study's own images.
    """
    inputs = evaluation_inputs(study, choice=choice, replicates=replicates, labels=labels)
    work = {"inputs": inputs, "simulated": study.settings.simulated}
    labeled = [record.content for record in study.records("labeled").values()] if labels is not None else []
    return [Shard("evaluation", work, made_from=fingerprint(labeled))]


def process_evaluate(study: Study, shard: Shard) -> Output:
    """Write evaluation/: tables as CSV, summary, and charts as SVG and PNG."""
    evaluation = evaluate_study(study, shard.work["inputs"])
    files = _write_contents(study, EVALUATION_FOLDER, evaluation.files)
    files += _write_figures(study, EVALUATION_FOLDER, draw_evaluation(evaluation, simulated=shard.work["simulated"]))
    rows_in = sum(line["rows_in"] for line in evaluation.ledger)
    rows_out = sum(line["rows_out"] for line in evaluation.ledger)
    return Output(tuple(files), rows_in, rows_out, evaluation.ledger)


def evaluate_stage(*, threshold: str, replicates: int, labels: str | None) -> Stage:
    """Return the stage that evaluates the detector.

    Parameters
    ----------
    threshold : str
        Threshold rule, as `ThresholdRule.parse` reads it.
    replicates : int
        Bootstrap replicates.
    labels : str or None
        CSV file with ground-truth labels of the study's own images.

    Raises
    ------
    SettingsError
        If `threshold` is not a threshold rule.
    """
    return Stage(
        "evaluate",
        unit="files",
        folders=(EVALUATION_FOLDER,),
        plan=partial(plan_evaluate, choice=ThresholdRule.parse(threshold), replicates=replicates, labels=labels),
        process=process_evaluate,
        version=3,
    )


# Rendered street scenes.


def plan_streets(study: Study) -> list[Shard]:
    """Plan one shard that depends on the detections and the true boxes; none if the images are not rendered."""
    if not study.exists(IMAGES_SHOWN_FILE):
        return []
    found = sorted(record.content for record in study.records(stage_name(study)).values())
    shown = sorted(record.content for record in study.records(SIMULATE_SHOWN.name).values())
    return [Shard("streets", {"threshold": study.settings.estimate.threshold}, made_from=fingerprint(found, shown))]


def process_streets(study: Study, _shard: Shard) -> Output:
    """Write a sheet of scenes with true and detected boxes; the record holds the quality of the detector."""
    scenes = seen_by_detector(study)
    threshold = study.settings.estimate.threshold
    chosen = choose_scenes(scenes, threshold)
    images = [study.read_bytes(IMAGES_FOLDER, scene.image_ref) for scene in chosen]
    file = io.BytesIO()
    draw_sheet(chosen, images, threshold).save(file, "PNG", optimize=True)
    quality = quality_on_scenes(scenes)
    facts: dict[str, object] = {name: None if value is None else round(value, 3) for name, value in quality.items()}
    written = study.write_bytes(file.getvalue(), STREETS_FILE)
    return Output((written,), len(scenes), len(scenes), (), {"images": len(scenes), **facts})


# Report.


def plan_report(study: Study) -> list[Shard]:
    """Plan one shard, which depends on the settings and on all earlier stages."""
    others = {name for name, entry in registry.ORDER.items() if not entry.in_report}
    stages = [name for name in study.stages() if name not in (REPORT.name, *others)]
    return [Shard("report", {"settings": study.settings.model_dump(mode="json")}, made_from=_made_from(study, *stages))]


def process_report(study: Study, _shard: Shard) -> Output:
    """Write report.html."""
    file = study.write_bytes(render_report(study, read_results(study)).encode(), REPORT_FILE)
    return Output((file,), 0, 0)


def _made_from(study: Study, *stages: str) -> str:
    return fingerprint([[record.content for record in study.records(name).values()] for name in stages])


def _write_contents(study: Study, folder: str, contents: Mapping[str, bytes]) -> list[str]:
    return [study.write_bytes(content, folder, name) for name, content in contents.items()]


def _write_figures(study: Study, folder: str, figures: Mapping[str, Figure]) -> list[str]:
    contents: dict[str, bytes] = {}
    for name, figure in figures.items():
        contents |= {f"{name}.svg": to_svg(figure), f"{name}.png": to_png(figure)}
    return _write_contents(study, folder, contents)


MAPS = Stage("figures", unit="files", folders=(FIGURES_FOLDER,), plan=plan_map, process=process_map, version=2)
SENSITIVITY = Stage(
    "sensitivity",
    unit="files",
    folders=(SENSITIVITY_FOLDER, COVERAGE_FOLDER),
    plan=plan_sensitivity,
    process=process_sensitivity,
    version=4,
)
STREETS = Stage("streets", unit="sheets", folders=(), plan=plan_streets, process=process_streets)
REPORT = Stage("report", unit="files", folders=(), plan=plan_report, process=process_report)

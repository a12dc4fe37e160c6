"""Stages of the figures and the report."""

from __future__ import annotations

from patrolscope.analysis.stages.counts import load_raster
from patrolscope.analysis.stages.results import read_results
from patrolscope.dashboards.charts.figures import draw_figures, to_png, to_svg
from patrolscope.dashboards.maps.city_maps import draw_maps, load_city
from patrolscope.dashboards.report.report import REPORT_FILE, render_report
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study, fingerprint

FIGURES_FOLDER = "figures"


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
    for name, figure in figures.items():
        files.append(study.write_bytes(to_svg(figure), FIGURES_FOLDER, f"{name}.svg"))
        files.append(study.write_bytes(to_png(figure), FIGURES_FOLDER, f"{name}.png"))
    records = study.records("counts").values()
    ledger = Ledger("count images into cells of the map", sum(record.rows_in for record in records))
    for record in records:
        for line in record.ledger:
            for why, rows in line["dropped"].items():
                ledger.drop(rows, why=why)
    shown = int(raster.images.sum(dtype="int64"))
    ledger.drop(sum(record.rows_out for record in records) - shown, why="outside the map")
    return Output(tuple(files), ledger.rows_in, shown, (ledger.close(shown),))


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
    return fingerprint([[record.fingerprint for record in study.records(name).values()] for name in stages])


MAPS = Stage("figures", unit="files", folders=(FIGURES_FOLDER,), plan=plan_map, process=process_map, version=2)
REPORT = Stage("report", unit="files", folders=(), plan=plan_report, process=process_report)

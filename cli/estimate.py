"""Commands for estimates: estimate, evaluate, sensitivity, power."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from patrolscope.cli.app import app
from patrolscope.cli.errors import echo, handle_errors
from patrolscope.cli.execution import command_stages, execute
from patrolscope.cli.options import ClusterOption, StudyOption, absolute

if TYPE_CHECKING:
    from patrolscope.pipeline.study.store import Study

PANEL = "Estimates"


@app.command(rich_help_panel=PANEL)
def estimate(
    study: StudyOption,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings of resampling and intervals: recommended, or published as in the paper. The published "
            "intervals are always in estimates/published, too."
        ),
    ] = None,
    replicates: Annotated[
        int | None, typer.Option(help="Number of bootstrap replicates. Existing ones are kept.")
    ] = None,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(help="Resampling unit: image, ride, day, or area. Figures show the first. Repeatable."),
    ] = None,
    prediction: Annotated[
        list[str] | None, typer.Option(help="Prediction type: two_class or station_adjusted. Repeatable.")
    ] = None,
    resample_calibration: Annotated[
        bool | None,
        typer.Option(
            "--resample-calibration/--fixed-calibration", help="Also resample the validation set in each replicate."
        ),
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Interval method of the tables: percentile, basic, normal, or bca.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the resampling.")] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Compute calibration, disparities, bootstrap, and sensitivity; write tables, maps, figures, and the report.

    Options are written to study.yaml, so that a later `run` uses them too (comments there are lost).
    """
    from patrolscope.pipeline.study.adopt import adopt

    options = {
        "preset": preset,
        "replicates": replicates,
        "bootstrap": bootstrap or None,
        "predictions": prediction or None,
        "resample_calibration": resample_calibration,
        "interval": interval,
        "seed": seed,
    }
    with handle_errors():
        for line in adopt(study, {"estimate": options}):
            echo(line)
        stages = command_stages("estimate", study)
    execute(study, stages, cluster)


@app.command(rich_help_panel=PANEL)
def evaluate(
    study: StudyOption,
    threshold: Annotated[
        str, typer.Option(help="study (estimate.threshold in study.yaml), best-f1, precision=0.9, or a number.")
    ] = "study",
    ground_truth: Annotated[
        str | None, typer.Option(help="CSV file of image_ref and ground_truth for images of the study.")
    ] = None,
    replicates: Annotated[int, typer.Option(min=2, help="Number of bootstrap replicates of every interval.")] = 1_000,
    cluster: ClusterOption = "local",
) -> None:
    """Compute detector metrics on labeled images, with intervals, curves, calibration, and subgroups.

    `best-f1` and `precision=` choose the threshold on the validation set; study.yaml stays unchanged.
    """
    with handle_errors():
        from patrolscope.pipeline.engine import registry
        from patrolscope.pipeline.engine.freshness import check_inputs
        from patrolscope.pipeline.study.store import open_study

        labels = None if ground_truth is None else absolute(ground_truth)
        if labels is not None:
            check_inputs("evaluate", open_study(study))
        labeled, evaluation = (registry.ORDER[name].load() for name in ("labeled", "evaluate"))
        stages = [labeled(labels), evaluation(threshold=threshold, replicates=replicates, labels=labels)]
    _print_evaluation(execute(study, stages, cluster))


def _print_evaluation(study: Study) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    from patrolscope.analysis.estimators.detector_quality import QUANTITIES
    from patrolscope.dashboards.stages import EVALUATION_FOLDER

    summary = json.loads(study.read_bytes(EVALUATION_FOLDER, "summary.json"))
    grid = Grid(
        title=f"{summary['interval_percent']:g}% intervals, {summary['replicates']:,} replicates", title_justify="left"
    )
    grid.add_column("")
    for name, facts in summary["sets"].items():
        counts = f"{facts['images']:,} images\n{facts['labeled_positives']:,} labeled positive"
        grid.add_column(f"{name}\n{counts}", justify="right")
    for quantity in QUANTITIES:
        values = [facts[quantity] for facts in summary["sets"].values()]
        grid.add_row(
            quantity.replace("_", " "),
            *(
                "-" if value is None else "{estimate:.3f}\n{lower:.3f} to {upper:.3f}".format(**value)
                for value in values
            ),
        )
    Console().print(grid)
    chosen = "study.yaml" if summary["chosen_on"] is None else f"{summary['choice']} on the {summary['chosen_on']} set"
    echo(f"threshold {summary['threshold']!r} ({chosen})")
    if summary["threshold"] != study.settings.estimate.threshold:
        echo(f"study.yaml still has {study.settings.estimate.threshold!r}. To use the new one, write under estimate:")
        echo(f"  threshold: {summary['threshold']!r}")
    echo(f"tables and figures: {study.path(EVALUATION_FOLDER)}")


@app.command(rich_help_panel=PANEL)
def sensitivity(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """Recompute the estimates with one change at a time, compare the conclusions, and tabulate image coverage.

    The section sensitivity: of study.yaml lists the changes. The study needs annotated images.
    """
    from patrolscope.analysis.stages.sensitivity import COVERAGE_FOLDER, SENSITIVITY_FOLDER, SENSITIVITY_SUMMARY

    with handle_errors():
        stages = command_stages("sensitivity", study)
    compared = execute(study, stages, cluster)
    summary = json.loads(compared.read_bytes(SENSITIVITY_SUMMARY))
    echo(f"{summary['variants']} variants; {summary['infeasible']} infeasible (variants.csv has the reasons)")
    if not summary["replicates"]:
        needed = summary["days_for_an_interval"]
        echo(f"no intervals: images cover {summary['days']} days; expected at least {needed}")
    for verdict, conclusions in summary["verdicts"].items():
        echo(f"{conclusions:>6} of {summary['conclusions']} conclusions: {verdict}")
    for folder in (SENSITIVITY_FOLDER, COVERAGE_FOLDER):
        echo(f"tables and figure: {compared.path(folder)}")


@app.command(rich_help_panel=PANEL)
def power(
    study: StudyOption,
    ratio: Annotated[
        float, typer.Option(help="Ratio of two deployment rates that a test should find different from 1.")
    ] = 1.2,
    power: Annotated[float, typer.Option(help="Probability that it does, in percent.")] = 80.0,
) -> None:
    """Compute the smallest detectable ratios of deployment rates, and the images, rides, and labels that a ratio needs.

    The tests are two-sided, at 5%. The study needs counted images: `run` or `estimate` counts them.
    """
    with handle_errors():
        from patrolscope.analysis.estimators.power import Target

        target = Target.of(ratio, power)

        from patrolscope.analysis.stages.power import POWER_FOLDER, power_of
        from patrolscope.dashboards.charts.matplotlib_renderer import to_png
        from patrolscope.dashboards.charts.power import power_figure
        from patrolscope.dashboards.report.power import print_power
        from patrolscope.pipeline.study.store import open_study

        opened = open_study(study)
        found = power_of(opened, target)
        figure = power_figure(found, simulated=opened.settings.simulated)
        with opened.lock() as held:
            held.write_bytes(found.csv, POWER_FOLDER, "power.csv")
            held.write_bytes(to_png(figure), POWER_FOLDER, "power.png")
        print_power(found)
        echo(f"table and figure: {opened.path(POWER_FOLDER)}")

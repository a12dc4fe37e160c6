"""Commands for whole studies: demo, streets, init, simulate, run, plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from patrolscope.cli.app import app
from patrolscope.cli.errors import echo, handle_errors
from patrolscope.cli.estimate import evaluate
from patrolscope.cli.execution import command_stages, execute, pools_of, without_gpus
from patrolscope.cli.options import ClusterOption, StudyOption, absolute

if TYPE_CHECKING:
    from patrolscope.pipeline.study.store import Study

PANEL = "Whole studies"


@app.command(rich_help_panel=PANEL)
def demo(
    study: StudyOption = "demo-study",
    images: Annotated[int, typer.Option(min=1, help="Number of simulated images.")] = 1_000_000,
    cluster: ClusterOption = "local",
) -> None:
    """Run a whole study of simulated images within the real boundaries of New York, without network access.

    With the extra `detect` installed, a small study of rendered street scenes follows.
    """
    simulate(study, images, cluster=cluster)
    run(study, cluster)
    _streets(f"{study.rstrip('/')}/streets", cluster, required=False)


@app.command(rich_help_panel=PANEL)
def streets(
    study: StudyOption = "demo-study/streets",
    images: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 300,
    cluster: ClusterOption = "local",
) -> None:
    """Run a study of rendered street scenes from images to estimates, and evaluate the bundled detector on them."""
    _streets(study, cluster, required=True, images=images)


def _streets(study: str, cluster: str, *, required: bool, images: int = 300) -> None:
    """Run the study of rendered scenes. Without the detector's packages, skip it unless it is `required`."""
    from patrolscope.pipeline.detect.detector import require
    from patrolscope.pipeline.errors import WeightsError

    with handle_errors():
        try:
            require("torch", "torchvision", "cv2", "simplejpeg", "pycocotools")
        except WeightsError as error:
            if required:
                raise
            echo(f"skipped street scenes: {error}, or make streets")
            return
    if not required:
        echo("\nA second study, of rendered street scenes:")
    simulate(study, images, scenes=True, cluster=cluster)
    run(study, cluster)
    from patrolscope.pipeline.simulation.files import IMAGES_SHOWN_FILE

    evaluate(study, ground_truth=f"{study}/{IMAGES_SHOWN_FILE}", cluster=cluster)
    with handle_errors():
        from patrolscope.pipeline.study.store import open_study

        opened = open_study(study)
        facts = opened.record("streets").facts
    echo(
        f"the detector on {facts['images']:,} rendered scenes (no photographs): average precision per image "
        f"{facts['image_ap']}, per box {facts['ap50']} at IoU 0.5 and {facts['ap']} at 0.5 to 0.95"
    )
    echo(f"rendered scenes with detected and true boxes: {opened.path('figures/streets.png')}")


@app.command(rich_help_panel=PANEL)
def init(
    study: Annotated[str, typer.Argument(help="Folder of the new study.")],
    metadata: Annotated[
        list[str] | None, typer.Option(help="CSV file, folder, or pattern with metadata. Repeatable.")
    ] = None,
    detections: Annotated[
        list[str] | None, typer.Option(help="Folder of YOLO text files with detector output. Repeatable.")
    ] = None,
    validation: Annotated[str | None, typer.Option(help="CSV file of labeled images for the calibration.")] = None,
    test: Annotated[str | None, typer.Option(help="CSV file of labeled images for the evaluation.")] = None,
) -> None:
    """Create a study.yaml for your own data, with the settings of the paper as defaults."""
    from patrolscope.pipeline.errors import SettingsError
    from patrolscope.pipeline.study.config import Settings, Sources
    from patrolscope.pipeline.study.store import SETTINGS_FILE, create_study

    sources = Sources(
        metadata=tuple(map(absolute, metadata or ())),
        detections=tuple(map(absolute, detections or ())),
        validation=None if validation is None else absolute(validation),
        test=None if test is None else absolute(test),
    )
    with handle_errors():
        if "://" not in study and (Path(study) / SETTINGS_FILE).exists():
            raise SettingsError(f"{study} already has a {SETTINGS_FILE}; edit it, or choose a different folder")
        created = create_study(study, Settings(sources=sources))
        for path in (*sources.metadata, *sources.detections, sources.validation, sources.test):
            if path is not None and "://" not in path and not any(Path("/").glob(path.lstrip("/"))):
                echo(f"{path} does not exist yet")
    echo(f"{created.path(SETTINGS_FILE)}: check it, then run `patrolscope run --study {study}`")


@app.command(rich_help_panel=PANEL)
def simulate(
    out: Annotated[str, typer.Argument(help="Folder of the new study.")],
    images: Annotated[int, typer.Option(min=1, help="Number of images.")],
    city: Annotated[
        Literal["embedded", "new-york"], typer.Option(help="embedded (no network) or new-york (fetched data sets).")
    ] = "embedded",
    rates: Annotated[
        Path | None, typer.Option(help="CSV file with nta and weighted_mean: true rate per neighborhood.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Number of days, from 2020-10-05 onward.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random streams.")] = 20230612,
    scenes: Annotated[
        bool, typer.Option("--scenes", help="Render JPEG files for the bundled detector instead of detection files.")
    ] = False,
    cache: Annotated[str | None, typer.Option(help="Folder of fetched data sets. Default: the user's cache.")] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Create a study with known truth: metadata, detections or images, validation set, and test set."""
    with handle_errors():
        from patrolscope.cli.progress import show_progress
        from patrolscope.cluster.connect import connection
        from patrolscope.pipeline.simulation.simulate import simulate as create

        with show_progress() as progress, connection(cluster, progress.log) as client:
            create(
                out,
                images=images,
                city=city,
                rates=rates,
                days=days,
                seed=seed,
                scenes=scenes,
                cache=cache,
                client=client,
                progress=progress,
            )


@app.command(rich_help_panel=PANEL)
def run(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """Run every stage that is not up to date, in order."""
    with handle_errors():
        from patrolscope.pipeline.engine import registry
        from patrolscope.pipeline.study.migration import remove_renamed_stages
        from patrolscope.pipeline.study.store import open_study

        stages = command_stages("run", study)
        _check_labeled_sets(study)
        for line in remove_renamed_stages(open_study(study), registry.ORDER):
            echo(line)
    _print_summary(execute(study, stages, cluster))


def _print_summary(study: Study) -> None:
    from patrolscope.analysis.stages.estimate import SUMMARY_FILE

    summary = json.loads(study.read_bytes(SUMMARY_FILE))
    images = summary["images"]
    echo("")
    echo(f"{images['analyzed']:,} images analyzed, {images['positive']:,} of them positive")
    if summary["truth"]:
        truth = summary["truth"]
        echo(
            f"{truth['contained']} of {truth['neighborhoods']} true rates of neighborhoods are in their "
            f"{summary['interval_percent']:g}% intervals"
            + ("" if truth["share"] is None else f" ({100 * truth['share']:.1f}%)")
        )
        if truth["with_enough_positives"]:
            echo(
                f"{truth['contained_with_enough']} of the {truth['with_enough_positives']} with at least "
                f"{truth['enough_positives']} positive images"
            )
    for name, file in (("map", "figures/map.png"), ("report", "report.html"), ("tables", "estimates/tables.csv")):
        echo(f"{name + ':':8} {study.path(file)}")


@app.command(rich_help_panel=PANEL)
def plan(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """Show stages, shards, memory, and hours of a run. Exit with status 2 if the workers cannot run it.

    The workers of a running scheduler are checked now: whether they see the study and its sources and have the same
    versions. Those of a profile are checked once `run` has started them, before any work.
    """
    with handle_errors():
        from patrolscope.cli.plan import print_plan
        from patrolscope.cluster.profiles import Address, load_profile
        from patrolscope.pipeline.engine.plan import check_capacity, check_inputs, plan_stages
        from patrolscope.pipeline.study.store import open_study

        pools = pools_of(cluster)
        planned = plan_stages(open_study(study), command_stages("run", study), pools)
        print_plan(planned, pools)
        for line in without_gpus(pools):
            echo(line)
        check_capacity(planned, pools)
        if isinstance(load_profile(cluster), Address):
            from patrolscope.cluster.connect import connection
            from patrolscope.pipeline.engine.distribute import check_workers
            from patrolscope.pipeline.geography.catalog import layer_files

            opened = open_study(study)
            with connection(cluster) as client:
                for offer in sorted({workers.offers for workers in pools.values()}):
                    check_workers(client(), opened, {offer: 1} if offer else None, layer_files(opened))
            echo("workers see the study and its sources, can write to it, and have the same versions")
        check_inputs(planned)
        _check_labeled_sets(study)


@app.command(rich_help_panel=PANEL)
def verify(study: StudyOption) -> None:
    """Compare every file of a study with its recorded checksum. Exit with status 3 if some differ.

    The shards of those files count as unfinished from then on, and the next `run` rebuilds them. `run` itself reads
    only files whose size or modification time differs from the record.
    """
    with handle_errors():
        from patrolscope.cli.progress import show_amount
        from patrolscope.pipeline.engine.verify import verify as verify_files
        from patrolscope.pipeline.study.store import open_study

        opened = open_study(study)
        with show_amount("bytes read") as progress:
            result = verify_files(opened, progress)
        checked = f"{result.files:,} files ({result.size_bytes / 1e9:,.2f} GB) of {opened.root}"
        if not result.files:
            echo(f"{opened.root} has no finished stage yet; run `patrolscope run --study {study}`")
        elif not result.faults:
            echo(f"{checked} are as recorded")
        else:
            for stage, faults in result.faults.items():
                for fault in faults:
                    echo(f"{stage}: {fault}")
            echo(f"of {checked}, these differ from their records; `patrolscope run --study {study}` rebuilds them")
            raise typer.Exit(3)


def _check_labeled_sets(root: str) -> None:
    """Read the labeled sets now, so that a mistake in them is reported before any stage runs."""
    from patrolscope.analysis.stages.calibrate import read_labeled_sets
    from patrolscope.pipeline.study.store import open_study

    read_labeled_sets(open_study(root))

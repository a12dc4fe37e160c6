"""`patrolscope`: parse, load, call, exit code.

Heavy imports wait inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import distributed
    from rich.progress import TaskID

    from patrolscope.pipeline.engine.plan import Planned, Workers
    from patrolscope.pipeline.engine.run import Outcome
    from patrolscope.pipeline.engine.stage import Shard, Stage
    from patrolscope.pipeline.study.store import Record, Study

app = typer.Typer(
    help="Where are police deployed? From dashcam images to disparities with intervals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
StudyOption = Annotated[str, typer.Option("--study", "-s", help="Study folder (a path, or any fsspec URL).")]
ClusterOption = Annotated[
    str,
    typer.Option("--cluster", help="Cluster profile (a name or .yaml), a scheduler's .json file, or tcp://host:port."),
]


@app.command()
def demo(study: StudyOption = "demo-study", images: int = 1_000_000, cluster: ClusterOption = "local") -> None:
    """The whole study on the embedded city, without network: real boundaries, simulated images and people.

    Where the extra `detect` is installed, a small study of rendered street scenes follows.
    """
    _simulate(study, images=images, city="embedded", cluster=cluster)
    run(study, cluster)
    _streets(f"{study.rstrip('/')}/streets", cluster, wanted=False)


@app.command()
def streets(
    study: StudyOption = "demo-study/streets",
    images: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 300,
    cluster: ClusterOption = "local",
) -> None:
    """From images to estimates: rendered street scenes, the detector that is shipped, and how well it does there."""
    _streets(study, cluster, wanted=True, images=images)


def _streets(study: str, cluster: str, *, wanted: bool, images: int = 300) -> None:
    """The study of rendered scenes; where the detector's packages are missing an error only if it is `wanted`."""
    from patrolscope.pipeline.detect.detector import require
    from patrolscope.pipeline.errors import WeightsError

    with _errors():
        try:
            require("torch", "torchvision", "cv2", "pycocotools")
        except WeightsError as error:
            if wanted:
                raise
            _say(f"street scenes are left out: {error}, or make streets")
            return
    if not wanted:
        _say("\nA second study, of rendered street scenes that the detector looks at:")
    _simulate(study, images=images, city="embedded", scenes=True, cluster=cluster)
    run(study, cluster)
    from patrolscope.pipeline.simulation.simulate import IMAGES_SHOWN_FILE

    evaluate(study, threshold="given", labels=f"{study}/{IMAGES_SHOWN_FILE}", replicates=1_000, cluster=cluster)
    with _errors():
        from patrolscope.dashboards.stages import STREETS
        from patrolscope.pipeline.study.store import open_study

        made = open_study(study)
        facts = made.record(STREETS.name).facts
    _say(
        f"the detector on {facts['images']:,} rendered scenes (no photographs): average precision of images "
        f"{facts['image_ap']}, of boxes {facts['ap50']} at IoU 0.5 and {facts['ap']} at 0.5 to 0.95"
    )
    _say(f"rendered scenes with the boxes found and the true ones: {made.path('figures/streets.png')}")


@app.command()
def init(
    study: Annotated[str, typer.Argument(help="Folder of the new study.")],
    metadata: Annotated[
        list[str] | None, typer.Option(help="Raw CSV file, folder or pattern; may be repeated.")
    ] = None,
    labels: Annotated[list[str] | None, typer.Option(help="Folder of YOLO label files; may be repeated.")] = None,
    validation: Annotated[str | None, typer.Option(help="CSV of labeled images for the calibration.")] = None,
    test: Annotated[str | None, typer.Option(help="CSV of labeled images for the evaluation.")] = None,
) -> None:
    """Make a study.yaml for data of your own, with the paper's settings as defaults."""
    from patrolscope.pipeline.errors import SettingsError
    from patrolscope.pipeline.study.config import Settings, Sources
    from patrolscope.pipeline.study.store import SETTINGS_FILE, create_study

    sources = Sources(
        metadata=tuple(map(_absolute, metadata or ())),
        detections=tuple(map(_absolute, labels or ())),
        validation=None if validation is None else _absolute(validation),
        test=None if test is None else _absolute(test),
    )
    with _errors():
        if "://" not in study and (Path(study) / SETTINGS_FILE).exists():
            raise SettingsError(f"{study} has a {SETTINGS_FILE} already: edit it, or name another folder")
        made = create_study(study, Settings(sources=sources))
        for path in (*sources.metadata, *sources.detections, sources.validation, sources.test):
            if path is not None and "://" not in path and not any(Path("/").glob(path.lstrip("/"))):
                _say(f"{path} is not there yet")
    _say(f"{made.path(SETTINGS_FILE)}: look it through, then `patrolscope run --study {study}`")


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Entries of data_catalog.yaml; none: all.")] = None,
    from_dir: Annotated[Path | None, typer.Option("--from", help="Take the files from this folder.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Cache folder instead of the user's.")] = None,
) -> None:
    """Public data sets, cached and verified."""
    from patrolscope.pipeline.geography.catalog import fetch_all

    with _errors():
        for line in fetch_all(names or [], cache=cache, from_dir=from_dir):
            _say(line)


@app.command()
def simulate(
    out: Annotated[str, typer.Argument(help="Folder of the new study.")],
    images: Annotated[int, typer.Option(min=1, help="Number of images.")],
    city: Annotated[str, typer.Option(help="embedded (no network), or new-york (fetched data sets).")] = "embedded",
    levels: Annotated[Path | None, typer.Option(help="CSV nta,weighted_mean: true level of each neighborhood.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days from 2020-10-05 on.")] = None,
    seed: int = 20230612,
    scenes: Annotated[
        bool, typer.Option("--scenes", help="Rendered JPEG files instead of label files, for the shipped detector.")
    ] = False,
    cache: Annotated[str | None, typer.Option(help="Folder of fetched data sets instead of the user's.")] = None,
    cluster: ClusterOption = "local",
) -> None:
    """A study whose truth is known: metadata, labels or images, validation and test set."""
    asked = {"images": images, "city": city, "levels": levels, "days": days, "seed": seed, "scenes": scenes}
    _simulate(out, **asked, cache=cache, cluster=cluster)


def _simulate(out: str, *, cluster: str, **arguments: Any) -> None:
    with _errors():
        from patrolscope.cluster.connect import connection
        from patrolscope.pipeline.simulation.simulate import simulate as make

        with _progress() as progress, connection(cluster, progress.tell) as client:
            make(out, client=client, progress=progress, **arguments)


@app.command()
def ingest(
    study: StudyOption,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="CSV files, folders or patterns; become sources.metadata."),
    ] = None,
    trust: Annotated[
        bool | None,
        typer.Option("--trust/--recompute", help="Take what an annotated file says, or compute it and compare."),
    ] = None,
    keep_unknown: Annotated[
        bool | None,
        typer.Option("--keep-unknown/--drop-unknown", help="Keep columns that are not known, as text, in given/."),
    ] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Metadata CSV, raw or annotated, to Parquet; bad rows to quarantine.

    What is asked for here is written to study.yaml, so that a later `run` does the same (comments there are lost); a
    study that does not exist yet is made.
    """
    from patrolscope.pipeline.intake.ingest import STAGES, adopt

    with _errors():
        for line in adopt(study, sources=tuple(map(_absolute, sources or ())), trust=trust, keep_unknown=keep_unknown):
            _say(line)
    made = _run(study, list(STAGES), cluster)
    with _errors():
        if not any(record.rows_out for record in made.records("ingest").values()):
            from patrolscope.pipeline.errors import SourceError

            raise SourceError(
                f"no image could be read: {made.path('quarantine')} and {made.path('ledger.jsonl')} say why"
            )


@app.command()
def index(
    study: StudyOption,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, s3:// or gs:// URLs of images or .tar files of them; become images.sources."),
    ] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Which images there are: everything is listed again, in parallel; `run` and `detect` take the list as it is."""
    with _errors():
        from patrolscope.pipeline.detect.image_index import INDEX, PREFIXES, adopt_sources, list_again, summary
        from patrolscope.pipeline.study.store import open_study

        for line in adopt_sources(study, tuple(map(_absolute, images or ()))):
            _say(line)
        list_again(open_study(study))
        made = _run(study, [PREFIXES, INDEX], cluster)
        for line in summary(made):
            _say(line)
        if not made.records("ingest"):
            _say("no metadata are ingested yet: which images they know is said when `index` runs after `ingest`")
            return
        from patrolscope.pipeline.matching.keys import KEYS
        from patrolscope.pipeline.matching.match import KNOWN

    _run(study, [KEYS, KNOWN], cluster)


@app.command()
def detect(
    study: StudyOption,
    weights: Annotated[
        str | None, typer.Option(help="YOLOv7 checkpoint or ONNX export, or an ultralytics model.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Pixels, longer side of what the network sees.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out boxes of a lower confidence.")] = None,
    nms_iou: Annotated[float | None, typer.Option(help="Of boxes that overlap more, the best one stays.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name or number; may be repeated. `all`: every class.")
    ] = None,
    police_class: Annotated[
        str | None, typer.Option(help="The class that a score is taken from, by name or number.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="An image is positive above it, instead of the weights' own or study.yaml's.")
    ] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Test-time augmentation: three passes.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images in one pass, instead of what fits.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16 or auto.")] = None,
    compile_: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile.")] = None,
    max_megapixels: Annotated[float | None, typer.Option(help="A larger image is not decoded.")] = None,
    trust_weights: Annotated[
        bool | None, typer.Option("--trust-weights/--no-trust-weights", help="Open weights by running code in them.")
    ] = None,
    write_labels: Annotated[
        str | None, typer.Option(help="Folder for YOLO text files, and the list of images.")
    ] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Boxes of every image of the index, by the detector of a file of weights.

    What is asked for here is written to study.yaml, so that a later `run` does the same; other weights or settings are
    another result, beside the earlier one.
    """
    with _errors():
        from patrolscope.pipeline.detect.image_index import INDEX, PREFIXES
        from patrolscope.pipeline.detect.labels_out import write_label_files
        from patrolscope.pipeline.detect.stage import adopt_detector, detect_stage, summary, weights_stage

        asked = {
            "weights": None if weights is None else _absolute(weights),
            "size": size,
            "min_score": min_score,
            "nms_iou": nms_iou,
            "augment": augment,
            "batch": batch,
            "device": device,
            "precision": precision,
            "compile": compile_,
            "max_megapixels": max_megapixels,
            "trust_weights": trust_weights,
        }
        chosen = None if classes is None else tuple(map(_name_or_number, classes))
        wanted = None if police_class is None else _name_or_number(police_class)
        for line in adopt_detector(study, asked, classes=chosen, police_class=wanted, threshold=threshold):
            _say(line)
        made = _run(study, [weights_stage, PREFIXES, INDEX, detect_stage], cluster)
        for line in summary(made):
            _say(line)
        if write_labels is not None:
            from patrolscope.cluster.connect import connection

            with _progress() as progress, connection(cluster, progress.tell) as client:
                _say(write_label_files(made, _absolute(write_labels), client=client, progress=progress))


def _name_or_number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


class Engine(StrEnum):
    """Whose trainer it is."""

    YOLOV7 = "yolov7"
    ULTRALYTICS = "ultralytics"


@app.command()
def train(
    data: Annotated[
        str, typer.Argument(help="Folder: images/ with labels/ and classes.txt, COCO or Scale AI .json, VOC .xml.")
    ],
    out: Annotated[Path | None, typer.Option(help="New folder for weights, curves and quality.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say what is in the set and wrong with it.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop where anything is wrong with the set.")] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="THEIRS=OURS: name of a class in the labels, and here; THEIRS= leaves it out."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="ultralytics trains a model of its own; it is AGPL-3.")
    ] = Engine.YOLOV7,
    variant: Annotated[str | None, typer.Option(help="Network to begin with: yolov7, yolov7-tiny, ...")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Checkpoint to begin with, instead of a variant; of ultralytics also yolo11n.yaml."),
    ] = None,
    trust_weights: Annotated[
        bool, typer.Option("--trust-weights", help="Open a file for ultralytics, which runs what is in it.")
    ] = False,
    width: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the variant's channels.")] = 1.0,
    size: Annotated[int, typer.Option(min=32, help="Pixels, longer side of what the network sees.")] = 640,
    rectangular: Annotated[
        bool, typer.Option("--rectangular", help="Samples as wide and high as the images, not square: less to compute.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1)] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Images in one pass; a step of the optimizer stands for 64.")] = 16,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a better one, after which it stops.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: another number of the recipe, as lr0=0.02. Again for more."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the forward pass: fp32, fp16, bf16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of a CPU; as many as it has cores otherwise.")] = None,
) -> None:
    """A detector from labeled images: YOLOv7, in the official form of checkpoints, or a model of ultralytics."""
    with _errors():
        from patrolscope.pipeline.detect.detector import require
        from patrolscope.pipeline.errors import SettingsError

        ours = engine == Engine.YOLOV7
        require("torch", "torchvision", "cv2", "pycocotools", *(() if ours else ("ultralytics",)))
        if variant is not None and weights is not None:
            raise SettingsError("a training begins with --variant or with --weights, not with both")
        if weights is not None and width != 1:
            raise SettingsError("--width narrows a --variant; the weights of a file have their own")
        if check:
            from patrolscope.pipeline.train.check import check as look
            from patrolscope.pipeline.train.data import class_mapping

            name = variant or "yolov7-tiny"
            for line in look(Path(data), class_mapping(classes or ()), size=size, name=name, strict=strict):
                _say(line)
            return
        if out is None:
            raise SettingsError("say where the weights are to go: --out DIR, a new folder (or --check, to look only)")
        import torch

        from patrolscope.pipeline.train.folder import BEST_FILE
        from patrolscope.pipeline.train.ranks import joined
        from patrolscope.pipeline.train.settings import TrainingOptions

        if threads is not None:
            torch.set_num_threads(threads)
        asked = TrainingOptions(
            data=_absolute(data),
            engine=engine.value,
            variant="yolov7-tiny" if ours and variant is None and weights is None else variant,
            weights=weights if weights is None or not (ours or Path(weights).is_file()) else _absolute(weights),
            width=width,
            size=size,
            rectangular=rectangular,
            epochs=epochs,
            batch=batch,
            seed=seed,
            patience=patience,
            changes=tuple(set_ or ()),
            classes=tuple(classes or ()),
            strict=strict,
            precision=precision,
            device=device,
        )
        with joined(device) as ranks:
            if ours:
                from patrolscope.pipeline.train.loop import train as train_yolov7

                train_yolov7(asked, out, resume=resume, say=_say, ranks=ranks)
            else:
                from patrolscope.pipeline.train.ultralytics_engine import train_ultralytics

                if resume or ranks.world > 1:
                    raise SettingsError("--resume and torchrun are for the engine yolov7")
                train_ultralytics(asked, out, trust=trust_weights, say=_say)
            if ranks.is_first:
                _say(f"weights: {out / BEST_FILE}; curves: {out / 'curves.png'}")


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="New folder, in the form that train reads.")],
    images: Annotated[int, typer.Option(min=100, help="Number of images; every tenth ten are for the test.")] = 4_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Rendered street scenes with labels, to try a training on; photographs they are not."""
    with _errors(stopped=f"remove {out}, and start again"):
        from rich.progress import track

        from patrolscope.pipeline.simulation.scenes.dataset import write_scenes

        for _ in track(write_scenes(out, images=images, seed=seed), "scenes", total=images, transient=True):
            pass
    _say(f"{out}: {images:,} images; then `patrolscope train {out} --out DIR --width 0.25 --size 416 --rectangular`")


@app.command()
def labels(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """Detections that exist as YOLO label files (sources.detections of study.yaml)."""
    from patrolscope.pipeline.intake.detection_files import LABELS, choose_labels

    with _errors():
        for line in choose_labels(study):
            _say(line)
    _run(study, [LABELS], cluster)


@app.command()
def annotate(
    study: StudyOption,
    cluster: ClusterOption = "local",
    join: Annotated[
        str | None,
        typer.Option(
            help="This time, instead of annotate.join of study.yaml: index, or reference (dask-geopandas, slower, the "
            "same on every point); the next run makes annotated/ again."
        ),
    ] = None,
) -> None:
    """Time, places, nearest felony and station for every image."""
    _run(study, _annotated_stages(), cluster, annotate={} if join is None else {"join": join})


@app.command()
def estimate(
    study: StudyOption,
    replicates: Annotated[
        int | None, typer.Option(help="Bootstrap replicates; those there are stay as they are.")
    ] = None,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(help="What is drawn: image, ride, day, area. Again for more; figures show the first."),
    ] = None,
    prediction: Annotated[
        list[str] | None, typer.Option(help="What is averaged: two_class, station_adjusted. Again for more.")
    ] = None,
    resample_calibration: Annotated[
        bool | None,
        typer.Option(
            "--resample-calibration/--fixed-calibration", help="Draw the validation set anew in each replicate, too."
        ),
    ] = None,
    interval: Annotated[str | None, typer.Option(help="Of the tables: percentile, basic, normal or bca.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Calibration, disparities, bootstrap, sensitivity; tables, map, figures and report.

    What is asked for here is written to study.yaml, so that a later `run` does the same (comments there are lost).
    """
    from patrolscope.pipeline.study.adopt import adopt

    asked = {
        "replicates": replicates,
        "bootstrap": bootstrap or None,
        "predictions": prediction or None,
        "resample_calibration": resample_calibration,
        "interval": interval,
        "seed": seed,
    }
    with _errors():
        for line in adopt(study, {"estimate": asked}):
            _say(line)
    _run(study, [*_annotated_stages(), *_estimate_stages()], cluster)


@app.command()
def evaluate(
    study: StudyOption,
    threshold: Annotated[
        str, typer.Option(help="given (study.yaml), best-f1, precision=0.9 or another share, or a number.")
    ] = "given",
    labels: Annotated[
        str | None, typer.Option(help="CSV of image_ref and ground_truth: labels of the study's own images.")
    ] = None,
    replicates: Annotated[int, typer.Option(min=2, help="Bootstrap replicates of every interval.")] = 1_000,
    cluster: ClusterOption = "local",
) -> None:
    """The detector against labeled images: quality with intervals, curves, calibration, by subgroup.

    A threshold that is looked for is the validation set's; study.yaml stays as it is.
    """
    with _errors():
        from patrolscope.analysis.stages.ground_truth import labeled_stage
        from patrolscope.dashboards.stages import evaluate_stage

        labels = None if labels is None else _absolute(labels)
        stages = [labeled_stage(labels), evaluate_stage(threshold=threshold, replicates=replicates, labels=labels)]
    _print_evaluation(_run(study, stages, cluster))


def _print_evaluation(study: Study) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    from patrolscope.analysis.stages.evaluate import QUANTITIES
    from patrolscope.dashboards.stages import EVALUATION_FOLDER

    summary = json.loads(study.read_bytes(EVALUATION_FOLDER, "summary.json"))
    grid = Grid(
        title=f"{summary['interval_percent']:g} % intervals, {summary['replicates']:,} replicates", title_justify="left"
    )
    grid.add_column("")
    for name, facts in summary["sets"].items():
        grid.add_column(f"{name}\n{facts['images']:,} images\n{facts['positives']:,} positive", justify="right")
    for quantity in QUANTITIES:
        found = [facts[quantity] for facts in summary["sets"].values()]
        grid.add_row(
            quantity.replace("_", " "),
            *("-" if one is None else "{estimate:.3f}\n{lower:.3f} to {upper:.3f}".format(**one) for one in found),
        )
    Console().print(grid)
    chosen = "given" if summary["chosen_on"] is None else f"{summary['choice']} on the {summary['chosen_on']} set"
    _say(f"threshold {summary['threshold']!r} ({chosen})")
    if summary["threshold"] != study.settings.estimate.threshold:
        _say(f"study.yaml keeps {study.settings.estimate.threshold!r}; to use this one, put there, under estimate:")
        _say(f"  threshold: {summary['threshold']!r}")
    _say(f"tables and figures: {study.path(EVALUATION_FOLDER)}")


@app.command()
def sensitivity(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """The estimates again with one thing changed at a time: which conclusions hold; and what the images cover.

    What is changed stands under sensitivity: of study.yaml. Needs annotated images.
    """
    from patrolscope.analysis.stages.calibrate import CALIBRATE
    from patrolscope.analysis.stages.sensitivity import COVERAGE_FOLDER, SENSITIVITY_FOLDER, SENSITIVITY_SUMMARY

    made = _run(study, [*_annotated_stages(), CALIBRATE, *_sensitivity_stages()], cluster)
    summary = json.loads(made.read_bytes(SENSITIVITY_SUMMARY))
    _say(f"{summary['variants']} variants, {summary['not_made']} more not possible (variants.csv says why)")
    if not summary["replicates"]:
        needed = summary["days_for_an_interval"]
        _say(f"no intervals: {summary['days']} days of images, at least {needed} are needed")
    for verdict, conclusions in summary["verdicts"].items():
        _say(f"{conclusions:>6} of {summary['conclusions']} conclusions: {verdict}")
    for folder in (SENSITIVITY_FOLDER, COVERAGE_FOLDER):
        _say(f"tables and figure: {made.path(folder)}")


@app.command()
def run(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """Every stage that is not up to date, in order."""
    with _errors():
        stages = _all_stages(study)
        _read_labeled(study)
    made = _run(study, stages, cluster)
    _summary(made)


@app.command()
def plan(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """What `run` would do: stages, shards, memory, hours; refused where the workers can not do it.

    A scheduler that runs is asked whether its workers see the study and its sources and have the same versions. Those
    of a profile are asked when `run` has started them, before any work.
    """
    with _errors():
        from patrolscope.pipeline.engine.plan import refuse_what_does_not_fit, refuse_what_is_missing
        from patrolscope.pipeline.study.store import open_study

        pools = _pools(cluster)
        planned = _plan(open_study(study), pools)
        _print_plan(planned, pools)
        for line in _without_gpus(pools):
            _say(line)
        refuse_what_does_not_fit(planned, pools)
        if _is_running(cluster):
            from patrolscope.cluster.connect import connection
            from patrolscope.pipeline.engine.distribute import check_workers

            with connection(cluster) as client:
                for offered in sorted({workers.offers for workers in pools.values()}):
                    check_workers(client(), open_study(study), {offered: 1} if offered else None)
            _say("workers see the study and its sources, can write there, and have the same versions")
        refuse_what_is_missing(planned)
        _read_labeled(study)


def _read_labeled(root: str) -> None:
    """Read the labeled sets now: what is wrong with them would be said after all other stages."""
    from patrolscope.analysis.stages.calibrate import read_labeled_sets
    from patrolscope.pipeline.study.store import open_study

    read_labeled_sets(open_study(root))


def _all_stages(root: str) -> list[Stage | Callable[[Study], Stage]]:
    from patrolscope.pipeline.intake.detection_files import LABELS
    from patrolscope.pipeline.intake.ingest import ARRANGE, READ, SET_ASIDE

    opened, looked_at = _stages_of_images(root)
    layers, *annotated = _annotated_stages()
    # First what needs data sets, weights and folders of images: that one is not there is said before hours are spent.
    rows = [layers, *opened, READ, SET_ASIDE, ARRANGE, LABELS, *looked_at, *annotated]
    return [*rows, *_estimate_stages(), *_stages_of_scenes(root)]


def _is_running(cluster: str) -> bool:
    from patrolscope.cluster.profiles import Address, load_profile

    return isinstance(load_profile(cluster), Address)


def _pools(cluster: str) -> dict[str, Workers]:
    """The pools of a profile, or those that a running scheduler has, as a plan looks at them."""
    from patrolscope.cluster.connect import connection, running_pools
    from patrolscope.cluster.profiles import Address, load_profile
    from patrolscope.pipeline.engine.plan import Workers

    profile = load_profile(cluster)
    if isinstance(profile, Address):
        with connection(cluster) as client:
            facts = running_pools(client())
    else:
        facts = profile.facts
    return {name: Workers(**one) for name, one in facts.items()}


def _without_gpus(pools: dict[str, Workers]) -> list[str]:
    """A line where images are looked at without GPUs."""
    from patrolscope.cluster.profiles import gpus_here

    if any(workers.offers == "GPU" for workers in pools.values()):
        return []
    hint = "; this machine has some, and --cluster local-gpu uses them" if gpus_here() else ""
    return [f"no pool has GPUs: images are looked at on CPU workers{hint}"]


def _plan(study: Study, pools: dict[str, Workers]) -> list[Planned]:
    from patrolscope.pipeline.engine.plan import plan_stages

    return plan_stages(study, _all_stages(study.root), pools)


def _print_plan(planned: list[Planned], pools: dict[str, Workers]) -> None:
    _say(f"{'stage':14} {'pool':8} {'shards':>8} {'done':>8} {'left':>22} {'GB a task':>10} {'hours':>8}")
    for one in planned:
        shards = "missing" if one.missing else "later" if one.shards is None else f"{one.shards:,}"
        left = "" if one.shards is None else f"{one.left:,} {one.unit}"
        hours = one.hours(pools)
        known = "" if one.shards is None else "unmeasured" if hours is None else f"{hours:.3f}"
        _say(
            f"{one.stage:14} {one.pool:8} {shards:>8} {one.done:>8,} {left:>22} {one.memory_gb or 2:>10.3g} {known:>8}"
        )
    for name, workers in pools.items():
        mine = [one for one in planned if one.pool == name]
        hours = sum(one.hours(pools) or 0.0 for one in mine)
        slot_hours = sum(one.slot_hours or 0.0 for one in mine)
        # What can not be said is said: an hour count without it would pass for the whole.
        without = [one.stage for one in mine if one.shards is None or one.slot_hours is None]
        beside = f", without {', '.join(without)}" if without else ""
        unit = "GPU" if workers.offers == "GPU" else "core"
        spent = f"{_hours(hours)} hours on {workers.slots} {unit}s, {_hours(slot_hours)} {unit} hours"
        _say(f"pool {name}: {spent}{beside}")


def _hours(hours: float) -> str:
    return "0" if hours == 0 else f"about {hours:.2f}" if hours >= 0.01 else "less than 0.01"


@app.command()
def export(
    study: StudyOption,
    out: Annotated[str, typer.Option(help="One file that ends in .csv or .parquet, or a folder for many.")],
    published: Annotated[
        bool, typer.Option("--published", help="The wide file, with the published names and order.")
    ] = False,
    form: Annotated[str | None, typer.Option("--format", help="Of the files in a folder: parquet or csv.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is no earlier export.")] = False,
    cluster: ClusterOption = "local",
) -> None:
    """Every image with everything known of its place, in one wide file or a folder of them."""
    with _errors():
        from patrolscope.cluster.connect import connection
        from patrolscope.pipeline.errors import SettingsError
        from patrolscope.pipeline.export.export import export_published
        from patrolscope.pipeline.study.store import open_study

        if not published:
            raise SettingsError("say what to export: --published is the wide file with the published names and order")
        opened = open_study(study)
        with _progress() as progress, connection(cluster, progress.tell) as client:
            written = export_published(opened, out, client=client, form=form, force=force, progress=progress)
    _say(written)


@app.command()
def reproduce(
    results: Annotated[str, typer.Argument(help="Folder with released JSON files, or estimates/ of a study.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures, new or of an earlier run.")],
) -> None:
    """The paper's tables, figures and map from released results, or from those of a study."""
    with _errors():
        from patrolscope.dashboards.report.reproduction import write_reproduction

        for line in write_reproduction(results, out):
            _say(line)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of results, as for reproduce.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the comparison as CSV.")] = None,
) -> None:
    """Two sets of results side by side: levels, intervals, difference, ratio, what only one of them has."""
    with _errors():
        from patrolscope.analysis.estimators.compare import compare as compare_tables
        from patrolscope.analysis.estimators.compare import summarize
        from patrolscope.analysis.stages.published import read_released
        from patrolscope.analysis.stages.reproduce import tabulate
        from patrolscope.dashboards.report.comparison import print_comparison
        from patrolscope.pipeline.study.output_folder import check_folder, fill_folder

        if out is not None:
            check_folder(out, known_by="comparison.csv")
        tables = []
        for name, folder in (("A", a), ("B", b)):
            released, absent = read_released(folder)
            tables.append(tabulate(released))
            _say(f"{name}: {folder}" + (f", without {', '.join(absent)}" if absent else ""))
        compared = compare_tables(*tables)
        summary = summarize(compared)
        print_comparison(compared, summary)
        if out is not None:
            frames = {"comparison.csv": compared, "summary.csv": summary}
            fill_folder(out, {name: frame.to_csv(index=False).encode() for name, frame in frames.items()})
            _say(f"{out}: {', '.join(frames)}")


@app.command()
def release(
    study: StudyOption,
    out: Annotated[Path, typer.Option(help="Folder of the release, new or of an earlier one.")],
    minimum_images: Annotated[int, typer.Option(help="Areas with fewer images are withheld; 1 withholds none.")] = 100,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds other files, too.")] = False,
) -> None:
    """Aggregates that may be published: areas of few images withheld, and whatever would give them away."""
    with _errors():
        from patrolscope.analysis.disclosure.release_folder import write_release
        from patrolscope.pipeline.study.store import open_study

        for line in write_release(open_study(study), out, minimum=minimum_images, force=force):
            _say(line)


@app.command()
def dashboard(
    study: StudyOption,
    address: Annotated[
        str, typer.Option(help="Listen at this address; others than loopback show it to the network.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 5006,
    allow: Annotated[
        list[str] | None, typer.Option(help="host:port under which browsers may open it; may be repeated.")
    ] = None,
    published: Annotated[str, typer.Option(help="Folder of released results to stand beside the study's.")] = "",
    static: Annotated[Path | None, typer.Option(help="Write HTML files that need no server into this folder.")] = None,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Open the browser.")] = False,
    cluster: ClusterOption = "local",
) -> None:
    """Explore the study in the browser: map, disparities, detector, coverage, run."""
    with _errors():
        from patrolscope.cluster.launch import dashboard_link

        stages, scheduler = tuple(_all_stages(study)), dashboard_link(cluster)
        _check_origins(allow or ())
        if published:
            from patrolscope.analysis.stages.published import read_released

            read_released(published)
    site = _site(study, cluster, published=published, stages=stages, scheduler=scheduler)
    with _errors():
        if static is not None:
            from patrolscope.dashboards.app.static import write_static

            for line in write_static(site, static):
                _say(line)
            return
        from patrolscope.dashboards.app.app import serve

        serve(site, address=address, port=port, origins=allow or (), show=show, say=_say)


def _check_origins(origins: Sequence[str]) -> None:
    from patrolscope.pipeline.errors import SettingsError

    for origin in origins:
        name, colon, port = origin.rpartition(":")
        if "/" in origin or (colon and not (name and port.isdecimal())):
            raise SettingsError(f"--allow {origin}: host:port is expected, as it stands in the browser's address")


@app.command(name="map")
def draw_map(
    study: StudyOption,
    out: Annotated[Path, typer.Option(help="PNG file.")],
    measure: Annotated[str, typer.Option(help="images, share or level.")] = "level",
    level: Annotated[str, typer.Option(help="area, precinct, neighborhood, community_district or borough.")] = (
        "neighborhood"
    ),
    within: Annotated[str, typer.Option(help="Only around this place of the level, instead of the whole city.")] = "",
    view: Annotated[str, typer.Option(help="What stands after ? in the address of a dashboard's map.")] = "",
    width: Annotated[int, typer.Option(min=800, help="Pixels.")] = 12_000,
    cluster: ClusterOption = "local",
) -> None:
    """A poster of the city, or of a part of it, with its legend."""
    with _errors():
        _check_png(out)
    site = _site(study, cluster)
    with _errors():
        from patrolscope.dashboards.app.poster import ask_for, write_poster

        asked = ask_for(site, measure=measure, level=level, within=within, query=view, width=width)
        with _rows() as say:
            content = write_poster(site, asked, say)
        out.write_bytes(content)
        _say(f"{out}: {asked.window.columns:,} x {asked.window.rows:,} pixels and the legend, {len(content):,} bytes")


def _check_png(out: Path) -> None:
    from patrolscope.pipeline.errors import SettingsError

    if out.suffix.lower() != ".png" or out.is_dir():
        raise SettingsError(f"--out {out}: the name of a PNG file is expected, such as city.png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {out}: its folder can not be made ({error.strerror})") from error


def _site(root: str, cluster: str, **options: Any) -> Any:
    """The study as dashboards see it; its points are packed first where that is to be done."""
    from patrolscope.dashboards.maps.points import POINTS

    opened = _run(root, [POINTS], cluster)
    with _errors():
        from patrolscope.dashboards.app.site import Site

        return Site.load(opened, **options)


@contextmanager
def _rows() -> Iterator[Callable[[int, int], None]]:
    """Progress of a picture."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows of pixels", total=None)

        def say(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield say


@app.command()
def dictionary(
    table: Annotated[str | None, typer.Argument(help="One table; none: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """What every column of every table means, its type, unit and bounds."""
    from patrolscope.pipeline.contract.tables import TABLES
    from patrolscope.pipeline.errors import SettingsError

    with _errors():
        wanted = [one for one in TABLES if table in (None, one.name)]
        if not wanted:
            raise SettingsError(f"no table {table!r}: {', '.join(one.name for one in TABLES)}")
        if as_json:
            _say(json.dumps([one.describe() for one in wanted], indent=1))
            return
        _print_dictionary(wanted)


def _print_dictionary(tables: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    for one in tables:
        grid = Grid(title=f"{one.name}: {one.row} (key: {', '.join(one.key) or 'none'})", title_justify="left")
        # The longest published names have more than a hundred characters and are folded; shorter ones stand in a line.
        grid.add_column("column", overflow="fold", width=min(30, max(map(len, one.names))))
        grid.add_column("type", overflow="fold", no_wrap=True)
        for heading in ("meaning", "unit", "values", "published as"):
            grid.add_column(heading, overflow="fold")
        for column in one.describe()["columns"]:
            grid.add_row(*(column[key] for key in ("name", "type", "meaning", "unit", "values", "published_name")))
        console.print(grid)


def _annotated_stages() -> list[Stage]:
    from patrolscope.pipeline.geography.layers import LAYERS
    from patrolscope.pipeline.matching.annotate import ANNOTATE
    from patrolscope.pipeline.matching.keys import KEYS
    from patrolscope.pipeline.matching.match import MATCH

    return [LAYERS, KEYS, MATCH, ANNOTATE]


cluster_app = typer.Typer(
    help="What a cluster profile means, and schedulers that outlive a command.", no_args_is_help=True
)
app.add_typer(cluster_app, name="cluster")
ProfileArgument = Annotated[str, typer.Argument(metavar="PROFILE", help="A name, a .yaml path, or a scheduler's file.")]


@cluster_app.command("show")
def cluster_show(
    profile: ProfileArgument,
    study: Annotated[str | None, typer.Option("--study", "-s", help="Also what it would cost for this study.")] = None,
) -> None:
    """Job scripts of every pool, and cores, GPUs and hours at most; nothing is started."""
    with _errors():
        from patrolscope.cluster.jobs import describe, job_script
        from patrolscope.cluster.profiles import Address, load_profile
        from patrolscope.pipeline.study.store import open_study

        loaded = load_profile(profile)
        if isinstance(loaded, Address):
            _say(f"a scheduler that runs already, at {loaded.address}: `patrolscope cluster status {profile}`")
            return
        for name, pool in loaded.pools.items():
            _say(f"--- pool {name}: {describe(pool)}")
            _say(job_script(loaded, name))
        if study is not None:
            pools = _pools(profile)
            _print_plan(_plan(open_study(study), pools), pools)


@cluster_app.command("launch")
def cluster_launch(
    profile: ProfileArgument,
    file: Annotated[str | None, typer.Option(help="Scheduler file (.json), instead of the one in its folder.")] = None,
) -> None:
    """Keep a scheduler and its pools up until `stop` or Ctrl-C; other commands take its file as --cluster."""
    with _errors():
        from patrolscope.cluster.launch import launch

        launch(profile, file, _say)


@cluster_app.command("status")
def cluster_status(profile: ProfileArgument) -> None:
    """Address, dashboard, workers and tasks of a scheduler that was launched."""
    with _errors():
        from patrolscope.cluster.launch import status

        for line in status(profile):
            _say(line)


@cluster_app.command("stop")
def cluster_stop(profile: ProfileArgument) -> None:
    """End a scheduler that was launched, with its workers and jobs."""
    with _errors():
        from patrolscope.cluster.launch import stop

        _say(stop(profile))


@app.command()
def weights(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A detector's weights; a path, or any fsspec URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """What is in a file of weights: kind, variant, classes, strides, anchors; nothing in it is executed."""
    with _errors():
        from patrolscope.pipeline.detect.weights.describe import describe

        facts = describe(file)
    if as_json:
        _say(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        _say(f"{name.replace('_', ' '):{width}}  {_in_words(value)}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, list):
        return " | ".join(" ".join(f"{n:g}" for n in one) if isinstance(one, list) else str(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not said" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _stages_of_images(root: str) -> tuple[list[Stage | Callable[[Study], Stage]], ...]:
    """Stages from images to detections, where the study has weights: those that open things, those that do the work."""
    from patrolscope.pipeline.detect.image_index import INDEX, PREFIXES
    from patrolscope.pipeline.detect.stage import detect_stage, weights_stage
    from patrolscope.pipeline.study.store import open_study

    images = open_study(root).settings.images
    opened: list[Stage | Callable[[Study], Stage]] = [PREFIXES] if images.sources else []
    looked_at: list[Stage | Callable[[Study], Stage]] = [INDEX] if images.sources else []
    if images.weights is not None:
        return [weights_stage, *opened], [*looked_at, detect_stage]
    return opened, looked_at


def _stages_of_scenes(root: str) -> list[Stage]:
    """The sheet of a study whose images are rendered."""
    from patrolscope.pipeline.simulation.simulate import IMAGES_SHOWN_FILE
    from patrolscope.pipeline.study.store import open_study

    if not open_study(root).exists(IMAGES_SHOWN_FILE):
        return []
    from patrolscope.dashboards.stages import STREETS

    return [STREETS]


def _estimate_stages() -> list[Stage]:
    from patrolscope.analysis.stages.calibrate import CALIBRATE
    from patrolscope.analysis.stages.cells import CELLS_STAGE
    from patrolscope.analysis.stages.clusters import CLUSTERS, PARTS
    from patrolscope.analysis.stages.estimate import ESTIMATE
    from patrolscope.analysis.stages.replicates import REPLICATE
    from patrolscope.dashboards.stages import MAPS, REPORT

    return [CALIBRATE, CELLS_STAGE, PARTS, CLUSTERS, REPLICATE, ESTIMATE, *_sensitivity_stages(), MAPS, REPORT]


def _sensitivity_stages() -> list[Stage]:
    from patrolscope.analysis.stages.hourly import HOURLY_STAGE, RECALIBRATE
    from patrolscope.dashboards.stages import SENSITIVITY

    return [RECALIBRATE, HOURLY_STAGE, SENSITIVITY]


def _run(
    root: str, stages: Sequence[Stage | Callable[[Study], Stage]], cluster: str, **changes: dict[str, Any]
) -> Study:
    """Run stages; `changes` of settings, by section, hold for this run only."""
    with _errors():
        from dataclasses import replace
        from functools import cache

        from patrolscope.cluster.connect import connection
        from patrolscope.pipeline.engine.plan import plan_stages, refuse_what_does_not_fit
        from patrolscope.pipeline.engine.run import run_stages
        from patrolscope.pipeline.study.config import with_changes
        from patrolscope.pipeline.study.store import open_study

        study = open_study(root)
        study = replace(study, settings=with_changes(study.settings, changes))
        with _progress() as progress, connection(cluster, progress.tell) as client:

            @cache
            def fitting() -> distributed.Client:
                # While it is still a plan: before a job is sent.
                pools = _pools(cluster)
                planned = plan_stages(study, stages, pools)
                refuse_what_does_not_fit(planned, pools)
                if any(one.wants == "GPU" and not one.is_done for one in planned):
                    for line in _without_gpus(pools):
                        progress.tell(line)
                return client()

            run_stages(study, stages, fitting, progress)
        return study


def _summary(study: Study) -> None:
    from patrolscope.analysis.stages.estimate import SUMMARY_FILE

    summary = json.loads(study.read_bytes(SUMMARY_FILE))
    images = summary["images"]
    _say("")
    _say(f"{images['analyzed']:,} images analyzed, {images['positive']:,} classified as showing a police vehicle")
    if summary["truth"]:
        truth = summary["truth"]
        _say(
            f"{truth['covered']} of {truth['neighborhoods']} true neighborhood levels lie in their "
            f"{summary['interval_percent']:g} % intervals"
            + ("" if truth["share"] is None else f" ({100 * truth['share']:.1f} %)")
        )
        if truth["with_enough_positives"]:
            _say(
                f"{truth['covered_with_enough']} of the {truth['with_enough_positives']} with at least "
                f"{truth['enough_positives']} positive images; below that, intervals are too narrow"
            )
    for name, file in (("map", "figures/map.png"), ("report", "report.html"), ("tables", "estimates/tables.csv")):
        _say(f"{name + ':':8} {study.path(file)}")


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).resolve())


def _say(text: str) -> None:
    typer.echo(text)


@contextmanager
def _errors(stopped: str = "the same command goes on from here") -> Iterator[None]:
    """A user's mistake ends with its message and status 2; a defect keeps its trace."""
    from patrolscope.cluster.profiles import ClusterError
    from patrolscope.pipeline.errors import PatrolscopeError
    from patrolscope.pipeline.study.remote import storage_faults_told

    try:
        with storage_faults_told():
            yield
    except (PatrolscopeError, ClusterError) as error:
        typer.secho(f"error: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
        raise typer.Exit(getattr(error, "status", 2)) from error
    except KeyboardInterrupt:
        typer.echo(f"stopped; {stopped}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _progress() -> Iterator[Any]:
    """Progress of stages on the terminal: bar, rate, time left; a line a stage where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description:10}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield _Drawn(bar, console.print)


class _Drawn:
    """Draws what `patrolscope.pipeline.engine.run` tells it."""

    def __init__(self, bar: Any, say: Callable[..., None]) -> None:
        self.bar, self.say = bar, say
        self.task: TaskID | None = None
        self.bytes = 0

    def tell(self, text: str) -> None:
        self.say(text, highlight=False, style="yellow")

    def start(self, stage: Stage, done: int, total: int) -> None:
        self.bytes = 0
        self.task = self.bar.add_task(stage.name, completed=done, total=total, amount=f"of {total:,} {stage.unit}")

    def advance(self, stage: Stage, shard: Shard, record: Record) -> None:
        task = self.bar.tasks[self.bar.task_ids.index(self.task)]
        rate = f", {task.speed:,.0f} {stage.unit}/s" if task.speed else ""
        self.bytes += record.facts.get("bytes", 0)
        read = f", {self.bytes / 1e9:,.2f} GB" if self.bytes else ""
        self.bar.update(self.task, advance=shard.size, amount=f"of {task.total:,.0f} {stage.unit}{rate}{read}")

    def finish(self, stage: Stage, outcome: Outcome) -> None:
        self.bar.remove_task(self.task)
        if outcome.done_now == 0:
            self.say(f"{stage.name:10} up to date", highlight=False)
            return
        self.say(f"{stage.name:10} {outcome.rows_in:>12,} in {outcome.rows_out:>12,} out", highlight=False)
        for why, rows in outcome.dropped.items():
            self.say(f"{'':10} {rows:>12,} dropped: {why}", highlight=False, style="yellow")
        for what, rows in outcome.notes.items():
            self.say(f"{'':10} {rows:>12,} {what}", highlight=False, style="dim")


def main() -> None:
    """Entry point of the command."""
    # Asked to end, as by a queue or a lost terminal, it puts away what it made, keys above all, as after Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, signal.default_int_handler)
    app()


if __name__ == "__main__":
    main()

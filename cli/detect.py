"""Commands for detectors: detect, weights."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from patrolscope.cli.app import app
from patrolscope.cli.errors import echo, handle_errors
from patrolscope.cli.execution import command_stages, execute
from patrolscope.cli.options import ClusterOption, StudyOption, absolute, name_or_number

PANEL = "Detectors"


@app.command(rich_help_panel=PANEL)
def detect(
    study: StudyOption,
    weights: Annotated[
        str | None, typer.Option(help="YOLOv7 checkpoint or ONNX export, or Ultralytics model: a path or URL.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Longer side of the network's input, in pixels.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest confidence of a box, 0 to 1.")] = None,
    nms_iou: Annotated[
        float | None, typer.Option(help="IoU above which the lower-scoring of two boxes of a class is dropped, 0 to 1.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name or number of a class, or `all`. Repeatable.")
    ] = None,
    police_class: Annotated[
        str | None, typer.Option(help="Name or number of the class whose confidence is the score.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Score above which an image is positive. Default: that of the weights.")
    ] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Test-time augmentation with three passes.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images per pass. Default: as many as fit in memory.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, or auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16, or auto.")] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compilation of the network by torch.compile.")
    ] = None,
    max_megapixels: Annotated[
        float | None, typer.Option(help="Size above which images are not decoded, in megapixels.")
    ] = None,
    trust_weights: Annotated[
        bool | None,
        typer.Option("--trust-weights/--no-trust-weights", help="Allow weights that execute code from their file."),
    ] = None,
    write_labels: Annotated[
        str | None, typer.Option(help="Folder for YOLO text files and the list of processed images.")
    ] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Run every image of the index through a detector.

    Options are written to study.yaml, so that a later `run` uses them too. Other weights or settings give another
    result next to the earlier one.
    """
    with handle_errors():
        from patrolscope.pipeline.detect.commands import adopt_detector, detection_summary
        from patrolscope.pipeline.detect.detection_writer import write_detection_files

        options = {
            "weights": None if weights is None else absolute(weights),
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
        selected = None if classes is None else tuple(map(name_or_number, classes))
        police = None if police_class is None else name_or_number(police_class)
        for line in adopt_detector(study, options, classes=selected, police_class=police, threshold=threshold):
            echo(line)
        detected = execute(study, command_stages("detect", study), cluster)
        for line in detection_summary(detected):
            echo(line)
        if write_labels is not None:
            from patrolscope.cli.progress import show_progress
            from patrolscope.cluster.connect import connection

            with show_progress() as progress, connection(cluster, progress.log) as client:
                echo(write_detection_files(detected, absolute(write_labels), client=client, progress=progress))


@app.command(rich_help_panel=PANEL)
def weights(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Weights of a detector: a path or URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Output as JSON.")] = False,
) -> None:
    """Show kind, variant, classes, strides, and anchors of detector weights, without running code in the file."""
    with handle_errors():
        from patrolscope.pipeline.detect.weights.describe import describe

        facts = describe(file)
    if as_json:
        echo(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        echo(f"{name.replace('_', ' '):{width}}  {_as_text(value)}")


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return " | ".join(" ".join(f"{n:g}" for n in item) if isinstance(item, list) else str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

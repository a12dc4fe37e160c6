"""Commands for training: train, scenes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from patrolscope.cli.app import app
from patrolscope.cli.detect import PANEL
from patrolscope.cli.errors import echo, handle_errors
from patrolscope.cli.options import absolute


class Engine(StrEnum):
    """Trainer."""

    YOLOV7 = "yolov7"
    ULTRALYTICS = "ultralytics"


@app.command(rich_help_panel=PANEL)
def train(
    data: Annotated[
        str,
        typer.Argument(help="Folder of images/ with labels/ and classes.txt, COCO or Scale AI .json, or VOC .xml."),
    ],
    out: Annotated[Path | None, typer.Option(help="New folder for weights, curves, and metrics.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Validate the data set and exit.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at any fault of the data set.")] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="OLD=NEW renames a class of the labels; OLD= drops it. Repeatable."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Trainer. ultralytics trains its own models and is licensed under AGPL-3.")
    ] = Engine.YOLOV7,
    variant: Annotated[str | None, typer.Option(help="Network to start from: yolov7, yolov7-tiny, ...")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Checkpoint to start from instead of a variant; for ultralytics also yolo11n.yaml."),
    ] = None,
    trust_weights: Annotated[
        bool, typer.Option("--trust-weights", help="Open a file for ultralytics, which runs code in it.")
    ] = False,
    width: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the variant's channels.")] = 1.0,
    size: Annotated[int, typer.Option(min=32, help="Longer side of the network's input, in pixels.")] = 640,
    rectangular: Annotated[
        bool, typer.Option("--rectangular", help="Samples in the images' aspect ratio instead of squares: less work.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Images per pass. An optimizer step covers 64 images.")] = 16,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without improvement before training stops.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Resume a stopped training.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random streams.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: another value of the recipe, such as lr0=0.02. Repeatable."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of the forward pass: fp32, fp16, bf16, or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: one per core.")] = None,
) -> None:
    """Train a detector on labeled images: YOLOv7 with official checkpoints, or a model of Ultralytics."""
    with handle_errors():
        from patrolscope.pipeline.detect.detector import require
        from patrolscope.pipeline.errors import SettingsError

        ours = engine == Engine.YOLOV7
        require("torch", "torchvision", "cv2", "simplejpeg", "pycocotools", *(() if ours else ("ultralytics",)))
        if variant is not None and weights is not None:
            raise SettingsError("--variant and --weights exclude each other; expected one of them; remove the other")
        if weights is not None and width != 1:
            raise SettingsError("--width cannot be combined with --weights, whose width is fixed; remove --width")
        if check:
            from patrolscope.pipeline.train.check import check as check_set
            from patrolscope.pipeline.train.data import class_mapping

            name = variant or "yolov7-tiny"
            for line in check_set(Path(data), class_mapping(classes or ()), size=size, name=name, strict=strict):
                echo(line)
            return
        if out is None:
            raise SettingsError("--out is missing; expected a new folder for the weights; add it, or use --check")
        import torch

        from patrolscope.pipeline.train.folder import BEST_FILE
        from patrolscope.pipeline.train.ranks import joined
        from patrolscope.pipeline.train.settings import TrainingOptions

        if threads is not None:
            torch.set_num_threads(threads)
        options = TrainingOptions(
            data=absolute(data),
            engine=engine.value,
            variant="yolov7-tiny" if ours and variant is None and weights is None else variant,
            weights=weights if weights is None or not (ours or Path(weights).is_file()) else absolute(weights),
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

                train_yolov7(options, out, resume=resume, log=echo, ranks=ranks)
            else:
                from patrolscope.pipeline.train.ultralytics_engine import train_ultralytics

                if resume or ranks.world > 1:
                    raise SettingsError("--resume and torchrun need --engine yolov7; remove them, or change --engine")
                train_ultralytics(options, out, trust=trust_weights, log=echo)
            if ranks.is_first:
                echo(f"weights: {out / BEST_FILE}; curves: {out / 'curves.png'}")


@app.command(rich_help_panel=PANEL)
def scenes(
    out: Annotated[Path, typer.Argument(help="New folder, in a form that `train` reads.")],
    images: Annotated[
        int, typer.Option(min=100, help="Number of images. Every tenth group of ten images is for tests.")
    ] = 4_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random streams.")] = 0,
) -> None:
    """Render street scenes with labels to try out training. They do not replace photographs."""
    with handle_errors(stopped=f"remove {out} and start again"):
        from rich.progress import track

        from patrolscope.pipeline.simulation.scenes.dataset import write_scenes

        for _ in track(write_scenes(out, images=images, seed=seed), "scenes", total=images, transient=True):
            pass
    echo(f"{out}: {images:,} images; next: `patrolscope train {out} --out DIR --width 0.25 --size 416 --rectangular`")

"""Training of an ultralytics model (AGPL-3) by the trainer and recipe of ultralytics.

The data set is written in the format of ultralytics to a temporary folder. The result is evaluated like any other
detector.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

import patrolscope.pipeline.detect.models.ultralytics_offline  # noqa: F401 - before ultralytics
from patrolscope.pipeline.detect.detector import ULTRALYTICS, kind_of, load_detector
from patrolscope.pipeline.detect.device import choose_device
from patrolscope.pipeline.errors import TrainingError, WeightsError
from patrolscope.pipeline.train.curves import write_curves
from patrolscope.pipeline.train.data import Collection
from patrolscope.pipeline.train.evaluate import MIN_SCORE, NMS_IOU, detect_with
from patrolscope.pipeline.train.folder import (
    BEST_FILE,
    Log,
    check_folder,
    check_stride,
    create_folder,
    read_data,
    write_quality,
)
from patrolscope.pipeline.train.settings import TrainingOptions

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # names here and in ultralytics
_REPORTS = ("sync", "clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")
_JPEGS, _JPEG_END = (".jpg", ".jpeg"), b"\xff\xd9"


def train_ultralytics(options: TrainingOptions, out: Path, *, trust: bool, log: Log) -> None:
    """Train an ultralytics model; write its best weights, learning curves, and quality on the test split.

    Parameters
    ----------
    options : TrainingOptions
        Options of the training. `weights` is a file that ultralytics opens, or the name of a model configuration that
        comes with it, such as yolo11n.yaml.
    out : Path
        New or empty folder.
    trust : bool
        Allow opening a file, which can run code.
    log : callable
        Receives one line of progress at a time.

    Raises
    ------
    SourceError
        If the images cannot be used.
    WeightsError
        If the model cannot be opened. Nothing is downloaded.
    TrainingError
        If an option is for the engine yolov7 only, or the folder is not empty.
    """
    _reject_yolov7_options(options)
    model = open_model(options.weights, trust=trust)
    check_stride(options.size, int(model.model.stride.max()))
    out = out.absolute()
    check_folder(out, options, resume=False)
    collection, sizes = read_data(options, log)
    create_folder(out, options)
    device = choose_device(options.device)
    log(f"{options.weights} by ultralytics (AGPL-3), {options.size} pixels, on {device}")
    with tempfile.TemporaryDirectory(prefix="patrolscope-train-") as scratch, contextlib.chdir(scratch):
        _disable_reporting()
        progress = _Progress(out, options, log)
        model.add_callback("on_train_epoch_start", progress.begin)
        model.add_callback("on_train_epoch_end", progress.end_training)
        model.add_callback("on_fit_epoch_end", progress.end)
        model.train(
            data=str(write_data_set(collection, Path(scratch) / "set")),
            project=scratch,
            name="run",
            exist_ok=True,
            epochs=options.epochs,
            batch=options.batch,
            imgsz=options.size,
            seed=options.seed,
            patience=options.patience,
            device="cpu" if device.type == "cpu" else str(device.index or 0),
            # With amp, ultralytics would download a model.
            amp=False,
            plots=False,
            verbose=False,
        )
        shutil.copyfile(model.trainer.best, out / BEST_FILE)
    detector = load_detector(
        str(out / BEST_FILE),
        size=options.size,
        min_score=MIN_SCORE,
        nms_iou=NMS_IOU,
        device=options.device,
        precision="fp32",
        trust=True,  # written above
    )
    write_quality(
        out,
        collection,
        sizes,
        lambda examples: detect_with(detector, examples),
        best_epoch=int(model.trainer.stopper.best_epoch),
        rows=progress.rows,
        log=log,
    )


def _reject_yolov7_options(options: TrainingOptions) -> None:
    yolov7_only = {
        "--variant": options.variant is not None,
        "--width": options.width != 1,
        "--set": bool(options.changes),
        "--rectangular": options.rectangular,
        "--precision": options.precision not in ("auto", "fp32"),
    }
    for name, is_set in yolov7_only.items():
        if is_set:
            raise TrainingError(f"{name} is for --engine yolov7 only; ultralytics trains in fp32 by its own recipe")


def _disable_reporting() -> None:
    """Disable reporting to services whose packages are installed, without changing the user's settings file."""
    from ultralytics.utils import SETTINGS

    disabled = {name: False for name in _REPORTS if name in SETTINGS}
    dict.update(SETTINGS, disabled)  # SETTINGS.update would write the file


def open_model(weights: str | None, *, trust: bool) -> Any:
    """Open an ultralytics model (`ultralytics.YOLO`) from a file or a configuration such as yolo11n.yaml.

    Raises
    ------
    WeightsError
        If the model is missing, is not trusted, or is not a trainable ultralytics detector.
    """
    from ultralytics import YOLO

    if weights is None:
        raise WeightsError("--engine ultralytics needs a model; add --weights with a file, or yolo11n.yaml")
    file = Path(weights)
    if file.is_file():
        if not trust:
            raise WeightsError(
                f"{file.name} is an ultralytics model, and opening it can run code; "
                "add --trust-weights if you trust its source"
            )
        if file.suffix not in (".yaml", ".yml") and kind_of(file) != ULTRALYTICS:
            raise WeightsError(f"{file.name} is a YOLOv7 checkpoint; remove --engine ultralytics to train it")
        weights = str(file.absolute())
    elif not _is_configuration(weights):
        raise WeightsError(
            f"--weights {weights} is neither a file nor a configuration of ultralytics, such as yolo11n.yaml; "
            "nothing is downloaded"
        )
    # ultralytics searches the working directory first; an empty one leaves only its own configurations.
    with tempfile.TemporaryDirectory(prefix="patrolscope-") as empty, contextlib.chdir(empty):
        try:
            model = YOLO(weights)
        except (ModuleNotFoundError, TypeError, RuntimeError, ValueError, KeyError, OSError) as error:
            raise WeightsError(f"ultralytics cannot open {file.name}: {str(error).splitlines()[0]}") from error
    if model.task != "detect" or not hasattr(model.model, "stride"):
        raise WeightsError(f"{file.name} is for the task {model.task!r}; expected a trainable model for detection")
    return model


def _is_configuration(name: str) -> bool:
    """Return whether ultralytics has a configuration of this name; yolo11.yaml, for example, covers yolo11n.yaml."""
    own = {path.name for path in Path(str(files("ultralytics") / "cfg" / "models")).rglob("*.yaml")}
    return name in own or re.sub(r"(\d+)[nslmx](.*)$", r"\1\2", name) in own


def write_data_set(collection: Collection, folder: Path) -> Path:
    """Write a data set in the format of ultralytics, with links to the images; return its YAML file.

    Images are numbered, since ultralytics derives the path of labels from the last folder named `images`.
    """
    folders = {}
    for ours, theirs in _SPLITS.items():
        examples = collection.splits[ours]
        if not examples:
            continue
        folders[theirs] = f"images/{theirs}"
        for kind in ("images", "labels"):
            (folder / kind / theirs).mkdir(parents=True)
        for number, example in enumerate(examples):
            name = f"{number:08}"
            _link_image(example.path.absolute(), folder / "images" / theirs / f"{name}{example.path.suffix.lower()}")
            lines = (f"{int(kind)} {x:.8f} {y:.8f} {w:.8f} {h:.8f}\n" for kind, x, y, w, h in example.boxes.tolist())
            (folder / "labels" / theirs / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    document = folder / "set.yaml"
    content = {"path": str(folder), **folders, "names": dict(enumerate(collection.class_names))}
    document.write_text(yaml.safe_dump(content), encoding="utf-8")
    return document


def _link_image(image: Path, link: Path) -> None:
    """Link an image; copy a JPEG with data after its end marker, which ultralytics would rewrite in place."""
    if image.suffix.lower() in _JPEGS and not image.read_bytes().endswith(_JPEG_END):
        shutil.copyfile(image, link)
    else:
        link.symlink_to(image)


class _Progress:
    """Trainer callbacks that write the learning curves and log a line after each epoch."""

    def __init__(self, out: Path, options: TrainingOptions, log: Log) -> None:
        self.out, self.options, self.log = out, options, log
        self.rows: list[dict[str, float]] = []
        self.start_s = 0.0
        self.trained_s: float | None = None  # end of the last batch of the epoch

    def begin(self, _trainer: Any) -> None:
        self.start_s = time.perf_counter()

    def end_training(self, _trainer: Any) -> None:
        self.trained_s = time.perf_counter()

    def end(self, trainer: Any) -> None:
        if self.trained_s is None:
            return  # final evaluation of the best weights
        epoch = len(self.rows) + 1
        losses = {
            name.removeprefix("train/").removesuffix("_loss"): float(value)
            for name, value in trainer.label_loss_items(trainer.tloss, prefix="train").items()
        }
        row = {
            "epoch": epoch,
            "iterations": epoch * len(trainer.train_loader),
            "learning_rate": float(trainer.lr["lr/pg0"]),
            **losses,
            "loss": sum(losses.values()),
            "ap50": float(trainer.metrics["metrics/mAP50(B)"]),
            "ap": float(trainer.metrics["metrics/mAP50-95(B)"]),
            "seconds": time.perf_counter() - self.start_s,
            "evaluating_s": time.perf_counter() - self.trained_s,
        }
        self.rows.append(row)
        self.trained_s = None
        write_curves(self.out, self.rows)
        self.log(
            f"epoch {epoch} of {self.options.epochs}: loss {row['loss']:.4f}, AP {row['ap50']:.3f} at IoU 0.5, "
            f"{row['ap']:.3f} at 0.5 to 0.95 (as ultralytics computes it), {row['seconds']:.0f} s"
        )

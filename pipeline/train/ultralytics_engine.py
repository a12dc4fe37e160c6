"""The same images learned by a model of ultralytics (AGPL-3), by its own trainer and recipe.

It reads a data set of its own form, which is written to a folder that ends with the training; what it finds is judged
as that of any other detector.
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
from patrolscope.pipeline.train.evaluate import IOU_ABOVE, SCORE_ABOVE, find_by
from patrolscope.pipeline.train.folder import BEST_FILE, Say, begin_folder, check_folder, read_set, write_quality
from patrolscope.pipeline.train.settings import TrainingOptions

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # ours, theirs
_REPORTS = ("sync", "clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")
_JPEGS, _JPEG_END = (".jpg", ".jpeg"), b"\xff\xd9"


def train_ultralytics(asked: TrainingOptions, out: Path, *, trust: bool, say: Say) -> None:
    """Train a model of ultralytics and write its best weights, the curves, and the quality on the test split.

    Parameters
    ----------
    asked : its `weights` are a file that ultralytics opens, or the name of a layout that comes with it (yolo11n.yaml)
    out : a new or empty folder
    trust : open a file, which runs what is in it

    Raises
    ------
    SourceError : the images can not be used
    WeightsError : the model can not be opened; nothing is downloaded
    TrainingError : what is asked is of the other engine
    """
    _refuse_what_is_of_yolov7(asked)
    model = open_model(asked.weights, trust=trust)
    stride = int(model.model.stride.max())
    if asked.size % stride:
        raise TrainingError(
            f"size {asked.size} is no multiple of the model's stride {stride}: {-(-asked.size // stride) * stride}"
        )
    out = out.absolute()
    check_folder(out, asked, resume=False)
    collection, sizes = read_set(asked, say)
    begin_folder(out, asked)
    device = choose_device(asked.device)
    say(f"{asked.weights} by ultralytics (AGPL-3), {asked.size} pixels, on {device}")
    with tempfile.TemporaryDirectory(prefix="patrolscope-train-") as scratch, contextlib.chdir(scratch):
        _report_to_nobody()
        telling = _Telling(out, asked, say)
        model.add_callback("on_train_epoch_start", telling.begin)
        model.add_callback("on_train_epoch_end", telling.learned)
        model.add_callback("on_fit_epoch_end", telling.end)
        model.train(
            data=str(write_data_set(collection, Path(scratch) / "set")),
            project=scratch,
            name="run",
            exist_ok=True,
            epochs=asked.epochs,
            batch=asked.batch,
            imgsz=asked.size,
            seed=asked.seed,
            patience=asked.patience,
            device="cpu" if device.type == "cpu" else str(device.index or 0),
            # The check of half precision would download a model.
            amp=False,
            plots=False,
            verbose=False,
        )
        shutil.copyfile(model.trainer.best, out / BEST_FILE)
    detector = load_detector(
        str(out / BEST_FILE),
        size=asked.size,
        min_score=SCORE_ABOVE,
        nms_iou=IOU_ABOVE,
        device=asked.device,
        precision="fp32",
        trust=True,  # it was written here
    )
    write_quality(
        out,
        collection,
        sizes,
        lambda examples: find_by(detector, examples),
        best_epoch=int(model.trainer.stopper.best_epoch),
        rows=telling.rows,
        say=say,
    )


def _refuse_what_is_of_yolov7(asked: TrainingOptions) -> None:
    options = {
        "--variant": asked.variant is not None,
        "--width": asked.width != 1,
        "--set": bool(asked.changes),
        "--rectangular": asked.rectangular,
        "--precision": asked.precision not in ("auto", "fp32"),
    }
    given = [name for name, is_given in options.items() if is_given]
    if given:
        raise TrainingError(f"{given[0]} is of the engine yolov7: ultralytics trains in fp32 by its own recipe")


def _report_to_nobody() -> None:
    """Services and tools that it would report to where their package is installed; the user's file stays as it is."""
    from ultralytics.utils import SETTINGS

    told = {name: False for name in _REPORTS if name in SETTINGS}
    dict.update(SETTINGS, told)  # its own update would write the file


def open_model(weights: str | None, *, trust: bool) -> Any:
    """The model (`ultralytics.YOLO`) in a file, or of a layout by its name, as yolo11n.yaml, with first values.

    Raises
    ------
    WeightsError : there is none; it is not trusted; it is no detector of ultralytics
    """
    from ultralytics import YOLO

    if weights is None:
        raise WeightsError("say which model ultralytics is to train: --weights yolo11n.yaml, or a file")
    file = Path(weights)
    if file.is_file():
        if not trust:
            raise WeightsError(
                f"{file.name} is a model of ultralytics: opening it runs what is in it. "
                "If you trust where it comes from, say --trust-weights"
            )
        if file.suffix not in (".yaml", ".yml") and kind_of(file) != ULTRALYTICS:
            raise WeightsError(f"{file.name} is a YOLOv7 checkpoint: train it without --engine ultralytics")
        weights = str(file.absolute())
    elif weights not in _layouts(weights):
        raise WeightsError(
            f"no file {weights}, and ultralytics brings no layout of this name (as yolo11n.yaml); nothing is downloaded"
        )
    # A layout is looked for in the working directory first: from an empty one only its own are found.
    with tempfile.TemporaryDirectory(prefix="patrolscope-") as empty, contextlib.chdir(empty):
        try:
            model = YOLO(weights)
        except (ModuleNotFoundError, TypeError, RuntimeError, ValueError, KeyError, OSError) as error:
            raise WeightsError(f"ultralytics can not open {file.name}: {str(error).splitlines()[0]}") from error
    if model.task != "detect" or not hasattr(model.model, "stride"):
        raise WeightsError(f"{file.name} is made for the task {model.task!r}: a model to detect and train is expected")
    return model


def _layouts(name: str) -> set[str]:
    """The name itself where ultralytics has its layout; one file holds all scales, as yolo11.yaml does yolo11n."""
    own = {path.name for path in Path(str(files("ultralytics") / "cfg" / "models")).rglob("*.yaml")}
    return {name} if {name, re.sub(r"(\d+)[nslmx](.*)$", r"\1\2", name)} & own else set()


def write_data_set(collection: Collection, folder: Path) -> Path:
    """A data set of ultralytics' form, with links to the images; its YAML file.

    Images are numbered: of a path it takes the last folder `images` for the place of labels.
    """
    there = {}
    for ours, theirs in _SPLITS.items():
        examples = collection.splits[ours]
        if not examples:
            continue
        there[theirs] = f"images/{theirs}"
        for kind in ("images", "labels"):
            (folder / kind / theirs).mkdir(parents=True)
        for number, one in enumerate(examples):
            name = f"{number:08}"
            _place(one.path.absolute(), folder / "images" / theirs / f"{name}{one.path.suffix.lower()}")
            lines = (f"{int(kind)} {x:.8f} {y:.8f} {w:.8f} {h:.8f}\n" for kind, x, y, w, h in one.boxes.tolist())
            (folder / "labels" / theirs / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    document = folder / "set.yaml"
    content = {"path": str(folder), **there, "names": dict(enumerate(collection.class_names))}
    document.write_text(yaml.safe_dump(content), encoding="utf-8")
    return document


def _place(image: Path, link: Path) -> None:
    """A link to an image; a copy of a JPEG with something behind its end, which ultralytics would write anew."""
    if image.suffix.lower() in _JPEGS and not image.read_bytes().endswith(_JPEG_END):
        shutil.copyfile(image, link)
    else:
        link.symlink_to(image)


class _Telling:
    """Curves and a line after each epoch, from what the trainer knows then."""

    def __init__(self, out: Path, asked: TrainingOptions, say: Say) -> None:
        self.out, self.asked, self.say = out, asked, say
        self.rows: list[dict[str, float]] = []
        self.start_s = 0.0
        self.learned_s: float | None = None  # when the epoch's last batch was done

    def begin(self, _trainer: Any) -> None:
        self.start_s = time.perf_counter()

    def learned(self, _trainer: Any) -> None:
        self.learned_s = time.perf_counter()

    def end(self, trainer: Any) -> None:
        if self.learned_s is None:
            return  # it evaluates its best weights once more at the end
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
            "evaluating_s": time.perf_counter() - self.learned_s,
        }
        self.rows.append(row)
        self.learned_s = None
        write_curves(self.out, self.rows)
        self.say(
            f"epoch {epoch} of {self.asked.epochs}: loss {row['loss']:.4f}, AP {row['ap50']:.3f} at 0.5, "
            f"{row['ap']:.3f} at 0.5 to 0.95 by its own measure, {row['seconds']:.0f} s"
        )

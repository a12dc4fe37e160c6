"""Output folder of a training, its data, and the quality of its best weights, for all engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.detect.weights.training_result import RESULT_FILE
from patrolscope.pipeline.errors import TrainingError
from patrolscope.pipeline.train.check import open_images, reject_faults
from patrolscope.pipeline.train.data import Collection, Example, check_classes, class_mapping, read_collection
from patrolscope.pipeline.train.evaluate import best_thresholds, quality
from patrolscope.pipeline.train.settings import TrainingOptions

BEST_FILE, STATE_FILE, SETTINGS_FILE = "best.pt", "state.pt", "training.json"

Log = Callable[[str], None]
Floats = npt.NDArray[np.float64]
Detect = Callable[[Sequence[Example]], list[npt.NDArray[np.float32]]]


def check_folder(out: Path, options: TrainingOptions, *, resume: bool) -> None:
    """Check that the folder is new or empty, or with `resume` that it holds a training with these options.

    Parameters
    ----------
    out : Path
        Output folder.
    options : TrainingOptions
        Options of the training.
    resume : bool
        Whether to continue the training in the folder.

    Raises
    ------
    TrainingError
        If the folder holds anything else.
    """
    settings = out / SETTINGS_FILE
    if out.is_file():
        raise TrainingError(f"--out {out} is a file; choose a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        if not settings.is_file():
            raise TrainingError(f"--out {out} is not empty and holds no training; choose a new or empty folder")
        if not resume:
            raise TrainingError(f"--out {out} already holds a training; add --resume or choose a different folder")
        before = json.loads(settings.read_text(encoding="utf-8"))
        for key, value in asdict(options).items():
            if key != "device" and before.get(key) != _as_json(value):
                raise TrainingError(
                    f"--out {out} holds a training with {key} {before.get(key)!r}, not {value!r}; "
                    "repeat the options of that training to resume it"
                )
    elif resume:
        raise TrainingError(f"--out {out} holds no training to resume; remove --resume")


def check_stride(size: int, stride: int) -> None:
    """Check that the input size is a multiple of the network's stride.

    Raises
    ------
    TrainingError
        If it is not.
    """
    if size % stride:
        raise TrainingError(
            f"--size {size} is not a multiple of the network's stride {stride}; use {-(-size // stride) * stride}"
        )


def create_folder(out: Path, options: TrainingOptions) -> None:
    """Create the folder and write the options."""
    out.mkdir(parents=True, exist_ok=True)
    (out / SETTINGS_FILE).write_text(json.dumps(asdict(options), indent=1), encoding="utf-8")


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_data(options: TrainingOptions, log: Log) -> tuple[Collection, dict[str, Floats]]:
    """Read the labeled images of a training; log a summary and all faults.

    Returns
    -------
    collection : Collection
        Images that can be decoded, with their boxes.
    sizes : dict of ndarray, shape (n, 2)
        Width and height of the images per split, pixels.

    Raises
    ------
    SourceError
        If the images cannot be read, or if they have a fault and the options are strict.
    """
    collection, sizes = open_images(read_collection(Path(options.data), class_mapping(options.classes)))
    faults = [*collection.faults, *check_classes(collection)]
    for line in (*collection.summary(), *faults):
        log(line)
    if options.strict:
        reject_faults(faults)
    return collection, sizes


def write_quality(
    out: Path,
    collection: Collection,
    sizes: Mapping[str, Floats],
    detect: Detect,
    *,
    best_epoch: int,
    rows: Sequence[Mapping[str, float]],
    log: Log,
) -> None:
    """Evaluate the best weights on the test split, or on the validation split without one; write and log the result.

    Parameters
    ----------
    out : Path
        Folder of the training.
    collection : Collection
        Labeled images.
    sizes : mapping of ndarray, shape (n, 2)
        Width and height of the images per split, pixels.
    detect : callable
        Returns the boxes that a detector with the best weights finds in each image.
    best_epoch : int
        Epoch of the best weights.
    rows : sequence of mapping
        Rows of the learning curves, one per epoch.
    log : callable
        Receives one line at a time.
    """
    split = "test" if collection.splits["test"] else "validation"
    examples, validation = collection.splits[split], collection.splits["validation"]
    found = quality(examples, detect(examples), collection.class_names, sizes[split])
    thresholds = best_thresholds(validation, detect(validation), collection.class_names)
    content = {
        "split": split,
        "images": len(examples),
        "best_epoch": best_epoch,
        "epochs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "thresholds": thresholds,
        **found.as_dict(),
    }
    (out / RESULT_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    log(f"best epoch {best_epoch}; {split} split: AP {found.ap50:.3f} at IoU 0.5, {found.ap:.3f} at 0.5 to 0.95")
    for name, facts in found.by_class.items():
        measures = "".join(
            f", {key.replace('_', ' ')} {value:.3f}"
            for key, value in facts.items()
            if key != "boxes" and value is not None
        )
        log(f"  {name}: {facts['boxes']:g} boxes{measures}")
        if thresholds[name]:  # 0 if the class was not detected at all
            log(f"  threshold {thresholds[name]:g}: best F1 of images on the validation split")

"""Before and after a training, whatever the engine: its folder, its images, the quality of its best weights."""

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
from patrolscope.pipeline.train.check import look_through, refuse
from patrolscope.pipeline.train.data import Collection, Example, check_classes, class_mapping, read_collection
from patrolscope.pipeline.train.evaluate import best_thresholds, quality
from patrolscope.pipeline.train.settings import TrainingOptions

BEST_FILE, STATE_FILE, SETTINGS_FILE = "best.pt", "state.pt", "training.json"

Say = Callable[[str], None]
Floats = npt.NDArray[np.float64]
Find = Callable[[Sequence[Example]], list[npt.NDArray[np.float32]]]


def check_folder(out: Path, asked: TrainingOptions, *, resume: bool) -> None:
    """Nothing is there yet; with `resume` the same training is.

    Raises
    ------
    TrainingError : the folder holds something else
    """
    there = out / SETTINGS_FILE
    if out.is_file():
        raise TrainingError(f"{out} is a file: name a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        if not there.is_file():
            raise TrainingError(f"{out} is not empty and holds no training: name a new or empty folder")
        if not resume:
            raise TrainingError(f"{out} holds a training already: --resume goes on with it, or name another folder")
        before = json.loads(there.read_text(encoding="utf-8"))
        differing = [
            key for key, value in asdict(asked).items() if key != "device" and before.get(key) != _as_json(value)
        ]
        if differing:
            key = differing[0]
            raise TrainingError(
                f"{out} holds a training with {key} {before.get(key)!r}, now asked {asdict(asked)[key]!r}: "
                "ask for the same to go on with it"
            )
        return
    if resume:
        raise TrainingError(f"{out} holds no training to go on with: leave --resume out")


def begin_folder(out: Path, asked: TrainingOptions) -> None:
    """Make the folder and write down what is asked."""
    out.mkdir(parents=True, exist_ok=True)
    (out / SETTINGS_FILE).write_text(json.dumps(asdict(asked), indent=1), encoding="utf-8")


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_set(asked: TrainingOptions, say: Say) -> tuple[Collection, dict[str, Floats]]:
    """Images that a training is asked for, with what is in the set and wrong with it told; their sizes by split.

    Raises
    ------
    SourceError : they can not be read; there is a fault, and the asked is strict
    """
    collection, sizes = look_through(read_collection(Path(asked.data), class_mapping(asked.classes)))
    faults = [*collection.faults, *check_classes(collection)]
    for line in (*collection.summary(), *faults):
        say(line)
    if asked.strict:
        refuse(faults)
    return collection, sizes


def write_quality(
    out: Path,
    collection: Collection,
    sizes: Mapping[str, Floats],
    find: Find,
    *,
    best_epoch: int,
    rows: Sequence[Mapping[str, float]],
    say: Say,
) -> None:
    """Evaluate the best weights on the test split (without one: validation), and write and tell what was found.

    Parameters
    ----------
    sizes : of the images of a split, (n, 2) width and height
    find : boxes that the best weights find, as a detector would load them
    rows : of the curves, an epoch each
    """
    split = "test" if collection.splits["test"] else "validation"
    examples, chosen_on = collection.splits[split], collection.splits["validation"]
    found = quality(examples, find(examples), collection.class_names, sizes[split])
    # With the best F1 of images of the validation split.
    thresholds = best_thresholds(chosen_on, find(chosen_on), collection.class_names)
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
    say(f"best epoch {best_epoch}; on the {split} split AP {found.ap50:.3f} at 0.5, {found.ap:.3f} at 0.5 to 0.95")
    for name, facts in found.by_class.items():
        shown = ", ".join(
            f"{key.replace('_', ' ')} {value:.3f}"
            for key, value in facts.items()
            if key != "boxes" and value is not None
        )
        say(f"  {name}: {facts['boxes']:g} boxes{', ' + shown if shown else ''}")
        if thresholds[name]:  # at 0 nothing was found
            say(f"  images above {thresholds[name]:g} are positive by the best F1 of the validation split")

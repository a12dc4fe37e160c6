"""The numbers of a training: the published recipes, and what a user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from patrolscope.pipeline.errors import SettingsError


@dataclass(frozen=True)
class TrainingOptions:
    """What a training was asked for; the same must be asked to go on with it."""

    data: str
    engine: str = "yolov7"  # or ultralytics
    variant: str | None = "yolov7-tiny"
    weights: str | None = None
    width: float = 1.0
    size: int = 640  # pixels, longer side
    rectangular: bool = False  # samples as wide and high as the images need, instead of squares
    epochs: int = 300
    batch: int = 16
    seed: int = 0
    patience: int = 100  # epochs without a better one, after which it stops
    changes: Sequence[str] = ()  # of the recipe, NAME=VALUE
    classes: Sequence[str] = ()  # what a class of the labels is called here, THEIRS=OURS
    strict: bool = False  # a fault in the set is an error
    precision: str = "auto"  # of the forward pass: fp16 on a GPU and fp32 elsewhere, or bf16
    device: str = "auto"


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the published trainings (custom: for fine-tuning)."""

    lr0: float = 0.01
    lrf: float = 0.1  # last learning rate, as a share of the first
    nominal_batch: float = 64  # images that a step of the optimizer stands for
    momentum: float = 0.937
    weight_decay: float = 5e-4
    warmup_epochs: float = 3.0  # or, where they are more, so many iterations
    warmup_iterations: float = 1_000
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05
    classes: float = 0.3
    objectness: float = 0.7
    label_smoothing: float = 0.0
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    translate: float = 0.2
    scale: float = 0.9
    mirror: float = 0.5  # chance
    mosaic: float = 1.0
    mixup: float = 0.15


RECIPES = {
    "p5": Recipe(),
    "p6": Recipe(lrf=0.2),
    "tiny": Recipe(lrf=0.01, classes=0.5, objectness=1.0, translate=0.1, scale=0.5, mixup=0.05),
    "custom": Recipe(scale=0.5, mixup=0.0),
}


def recipe_of(variant: str | None, levels: int, *, from_weights: bool) -> tuple[str, Recipe]:
    """Name and recipe that the publication used for such a network; `custom` where one is trained further."""
    if from_weights:
        name = "custom"
    elif levels == 4:
        name = "p6"
    else:
        name = "tiny" if variant is not None and "tiny" in variant else "p5"
    return name, RECIPES[name]


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with some numbers replaced, each as NAME=VALUE.

    Raises
    ------
    SettingsError : it has no such number, or the value is none that can be used
    """
    names = [one.name for one in fields(Recipe)]
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in names:
            raise SettingsError(f"a recipe has no {name!r}: {', '.join(names)}")
        try:
            values[name] = float(text)
        except ValueError:
            raise SettingsError(f"{name} is {text!r}: a number is expected, as in {name}=0.01") from None
        if not 0 <= values[name] < float("inf") or (name == "nominal_batch" and values[name] < 1):
            raise SettingsError(f"{name} is {text}: a number from 0 on is expected (nominal_batch: from 1 on)")
    return replace(recipe, **values)

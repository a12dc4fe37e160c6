"""Options of a training and the published hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from patrolscope.pipeline.errors import SettingsError


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training; a training resumes only under the same options."""

    data: str
    engine: str = "yolov7"  # or ultralytics
    variant: str | None = "yolov7-tiny"
    weights: str | None = None
    width: float = 1.0
    size: int = 640  # pixels, longer side
    rectangular: bool = False  # samples with the aspect ratio of the images instead of squares
    epochs: int = 300
    batch: int = 16
    seed: int = 0
    patience: int = 100  # epochs without improvement before training stops
    changes: Sequence[str] = ()  # of the recipe, NAME=VALUE
    classes: Sequence[str] = ()  # renamed classes, THEIRS=OURS
    strict: bool = False  # a fault in the data is an error
    precision: str = "auto"  # of the forward pass: fp16 on a GPU and fp32 elsewhere, or bf16
    device: str = "auto"


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the published trainings (`custom` is for fine-tuning)."""

    lr0: float = 0.01
    lrf: float = 0.1  # last learning rate, as a share of the first
    nominal_batch: float = 64  # images per optimizer step
    momentum: float = 0.937
    weight_decay: float = 5e-4
    warmup_epochs: float = 3.0
    warmup_iterations: float = 1_000  # minimum
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
    mirror: float = 0.5  # probability
    mosaic: float = 1.0
    mixup: float = 0.15


RECIPES = {
    "p5": Recipe(),
    "p6": Recipe(lrf=0.2),
    "tiny": Recipe(lrf=0.01, classes=0.5, objectness=1.0, translate=0.1, scale=0.5, mixup=0.05),
    "custom": Recipe(scale=0.5, mixup=0.0),
}


def choose_recipe(variant: str | None, feature_maps: int, *, from_weights: bool) -> tuple[str, Recipe]:
    """Choose the published recipe for a network; `custom` when training starts from a checkpoint.

    Parameters
    ----------
    variant : str or None
        Name of the network variant.
    feature_maps : int
        Number of feature maps of the network, 3 or 4.
    from_weights : bool
        Whether training starts from a checkpoint.

    Returns
    -------
    tuple of str and Recipe
        Name and recipe.
    """
    if from_weights:
        name = "custom"
    elif feature_maps == 4:
        name = "p6"
    else:
        name = "tiny" if variant is not None and "tiny" in variant else "p5"
    return name, RECIPES[name]


def apply_changes(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """Return the recipe with some hyperparameters replaced, each given as NAME=VALUE.

    Raises
    ------
    SettingsError
        If a name is unknown or a value is out of range.
    """
    names = [field.name for field in fields(Recipe)]
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in names:
            raise SettingsError(f"--set {change}: unknown hyperparameter {name!r}; expected one of {', '.join(names)}")
        try:
            values[name] = float(text)
        except ValueError:
            raise SettingsError(f"--set {change}: {text!r} is not a number; expected, say, {name}=0.01") from None
        if not 0 <= values[name] < float("inf") or (name == "nominal_batch" and values[name] < 1):
            lowest = 1 if name == "nominal_batch" else 0
            raise SettingsError(f"--set {change}: value out of range; expected a number of at least {lowest}")
    return replace(recipe, **values)

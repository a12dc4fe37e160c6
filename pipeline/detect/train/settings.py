"""The numbers of a training: the published recipes, and what a user asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

NOMINAL_BATCH = 64  # images an optimiser's step stands for
RATIO_CLASSES = 80  # the recipes' class gains are of this many classes


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the published trainings (custom: for fine-tuning)."""

    lr0: float = 0.01
    lrf: float = 0.1  # last learning rate, as a share of the first
    momentum: float = 0.937
    weight_decay: float = 5e-4
    warmup_epochs: float = 3.0
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
    return name, replace(RECIPES[name])

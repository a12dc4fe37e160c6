"""Arguments of a simulated study, and the images of each day that follow from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.simulation.rides import apportion
from patrolscope.pipeline.study.config import Frozen
from patrolscope.pipeline.study.store import Study

ARGUMENTS_FILE = "simulation.json"

REPEATED_SHARE = 1 / 20_000  # of the rows are duplicated in their file
IMAGES_PER_DAY = 10_000  # by default, so that small studies have few days
SCENES_PER_DAY = 100  # with rendered scenes, so that several workers share them
LABELED_IMAGES, LABELED_SCENES = 20_000, 400  # default size of the validation set and of the test set
MOST_DAYS = 42  # 5 October to 15 November 2020, the days analyzed in the reference study

_IMAGES_BY_WEEKDAY = (1.0, 1.0, 1.0, 1.05, 1.1, 1.0, 0.8)  # Monday first


class Arguments(Frozen):
    """Content of simulation.json."""

    images: int = Field(ge=1)
    city: Literal["embedded", "new-york"]
    seed: int = Field(ge=0)
    first_day: date
    days: int = Field(ge=1, le=3650)
    rates: dict[str, float] | None  # deployment rate by neighborhood; null: a simulated surface
    precision: float = Field(gt=0, le=1)
    recall: float = Field(gt=0, le=1)
    validation_images: int = Field(ge=1)
    test_images: int = Field(ge=0)
    scenes: bool = False  # rendered images for a real detector; precision and recall are then unused

    @property
    def repeated_rows(self) -> int:
        """Number of duplicate rows in addition to `images`, at least 1."""
        return max(1, round(self.images * REPEATED_SHARE))


def parse_arguments(**values: Any) -> Arguments:
    """Validate the arguments of a simulated study.

    Raises
    ------
    SettingsError
        If a value is out of range.
    """
    try:
        return Arguments(**values)
    except ValidationError as error:
        faults = [f"{fault['loc'][0]} {fault['input']!r} ({fault['msg']})" for fault in error.errors()]
        raise SettingsError("simulate cannot use " + "; ".join(faults)) from error


def read_arguments(study: Study) -> Arguments:
    """Read the arguments of a simulated study."""
    return parse_arguments(**json.loads(study.read_bytes(ARGUMENTS_FILE)))


def default_days(images: int, *, scenes: bool) -> int:
    """Return the number of days of a study by its number of images."""
    return min(MOST_DAYS, max(1, -(-images // (SCENES_PER_DAY if scenes else IMAGES_PER_DAY))))


@dataclass(frozen=True)
class DayPlan:
    """Local day and the number of rows in its file."""

    day: date
    images: int
    repeated: int  # duplicate rows


def day_plan(arguments: Arguments) -> list[DayPlan]:
    """Distribute the images and duplicate rows of a study over its days; omit days without images."""
    days = [arguments.first_day + timedelta(days=ahead) for ahead in range(arguments.days)]
    images = apportion(arguments.images, np.array([_IMAGES_BY_WEEKDAY[day.weekday()] for day in days]))
    repeated = apportion(arguments.repeated_rows, images.astype(np.float64))
    rows = zip(days, images.tolist(), repeated.tolist(), strict=True)
    return [DayPlan(day, count, duplicates) for day, count, duplicates in rows if count]

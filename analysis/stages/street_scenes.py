"""What a detector found in the rendered scenes of a study, beside what they show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.detect.stage import stage_name
from patrolscope.pipeline.simulation.files import BOXES_SHOWN_FILE, IMAGES_SHOWN_FILE
from patrolscope.pipeline.simulation.scenes.compose import HEIGHT, WIDTH
from patrolscope.pipeline.simulation.scenes.scene import CLASS_NAMES, VEHICLE
from patrolscope.pipeline.study.store import Study

_FOUND = [*(f"box_{edge}" for edge in ("x1", "y1", "x2", "y2")), "box_score", "box_class"]
_EDGES = ["x1", "y1", "x2", "y2"]


@dataclass(frozen=True)
class SceneResult:
    """An image, its true boxes and those found."""

    image_ref: str
    shown: npt.NDArray[np.float64]  # (k, 5) class, x1, y1, x2, y2 in pixels
    found: npt.NDArray[np.float32]  # (k, 6) x1, y1, x2, y2, score, class

    @property
    def shows_police(self) -> bool:
        """Whether a police vehicle is to be seen."""
        return bool((self.shown[:, 0] == VEHICLE).any())

    @property
    def score(self) -> float:
        """Of the best box of a police vehicle; 0 without one."""
        return float(self.found[self.found[:, 5] == VEHICLE, 4].max(initial=0))


def seen_by_detector(study: Study) -> list[SceneResult]:
    """Every scene of a simulated study with what its detector found, in the order of the images' names."""
    images = pd.read_csv(study.path(IMAGES_SHOWN_FILE))
    boxes = pd.read_csv(study.path(BOXES_SHOWN_FILE))
    shown = {ref: some[["kind", *_EDGES]].to_numpy(dtype=np.float64) for ref, some in boxes.groupby("image_ref")}
    files = [file for record in study.records(stage_name(study)).values() for file in record.files]
    rows = pd.concat([study.read(file, columns=["image_id", "status", *_FOUND]) for file in files])
    found = {
        row["image_id"]: np.column_stack([row[name] for name in _FOUND]).astype(np.float32)
        for row in rows[rows["status"] == "scored"].to_dict("records")
    }
    nothing = np.zeros((0, 5))
    return [
        SceneResult(ref, shown.get(ref, nothing), found[str(Path(ref).with_suffix(""))].reshape(-1, 6))
        for ref in sorted(images["image_ref"])
        if str(Path(ref).with_suffix("")) in found
    ]


def quality_on_scenes(seen: list[SceneResult]) -> dict[str, float | None]:
    """Average precision and AUC of images by their best police vehicle, AP of police vehicles' boxes."""
    from patrolscope.pipeline.train.data import Example
    from patrolscope.pipeline.train.evaluate import quality

    size = np.array([WIDTH, HEIGHT])
    examples = []
    for one in seen:
        low, high = one.shown[:, 1:3] / size, one.shown[:, 3:] / size
        boxes = np.column_stack([one.shown[:, 0], (low + high) / 2, high - low])
        examples.append(Example(Path(one.image_ref), one.image_ref, boxes))
    sizes = np.tile(size.astype(np.float64), (len(seen), 1))
    return quality(examples, [one.found for one in seen], CLASS_NAMES, sizes).by_class[CLASS_NAMES[VEHICLE]]

"""Rendered scenes for a simulated study: JPEG files of its images, and labeled sets scored by the shipped detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.detect.detector import Detector, load_detector
from patrolscope.pipeline.detect.weights import street_scenes
from patrolscope.pipeline.simulation.detector import VEHICLE
from patrolscope.pipeline.simulation.scenes.photograph import photograph
from patrolscope.pipeline.study.config import Images, Settings
from patrolscope.pipeline.study.store import Study

SCENES_VERSION = 1  # raised when the same key gives another picture
IMAGES_FOLDER, WEIGHTS_FILE = "source/images", "source/street-scenes.pt"
_SHARD_IMAGES = 100
_MAX_PIXELS = 1_000_000

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_COLUMNS = ["image_ref", "kind", "x1", "y1", "x2", "y2", "visible"]


def with_scenes(settings: Settings) -> Settings:
    """Settings of a study whose images are rendered scenes below its own folder."""
    known = street_scenes.facts()
    images = Images(sources=(IMAGES_FOLDER,), weights=WEIGHTS_FILE, size=known["size"], shard_images=_SHARD_IMAGES)
    simulated = (settings.simulated or "").replace("Images, detections,", "Images are rendered scenes; places,")
    return settings.model_copy(
        update={
            "name": f"{settings.name}, rendered scenes",
            "simulated": simulated.replace("Images, detections and", "Images are rendered scenes; places and"),
            "images": images,
            "sources": settings.sources.model_copy(update={"detections": ()}),
            "estimate": settings.estimate.model_copy(update={"threshold": known["threshold"]}),
        }
    )


def write_scenes(study: Study, refs: Bytes, shows: Flags, seed: int) -> pd.DataFrame:
    """Write the picture of each image; returns its boxes, and a row without one for an image that has none.

    Parameters
    ----------
    refs : (n, w) characters of the image_ref
    shows : (n,) whether a police vehicle is to be seen
    """
    rows: list[tuple[object, ...]] = []
    for characters, police in zip(refs, shows.tolist(), strict=True):
        ref = characters.tobytes().decode()
        taken = photograph(seed, ref, police=police)
        path = Path(study.path(IMAGES_FOLDER, ref))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(taken.jpeg)
        rows += [(ref, box.kind, box.x1, box.y1, box.x2, box.y2, round(box.visible, 4)) for box in taken.boxes] or [
            (ref, *[None] * 6)
        ]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"kind": "Int64"})


def score_scenes(study: Study, name: str, shows: Flags, seed: int) -> Floats:
    """(n,) the detector's best score of a police vehicle in each scene of a labeled set; missing: no box."""
    asked = study.settings.images
    detector = load_detector(
        study.path(WEIGHTS_FILE),
        size=asked.size,
        min_score=asked.min_score,
        nms_iou=asked.nms_iou,
        device=asked.device,
    )
    scenes = (photograph(seed, f"{name} {number}", police=bool(police)) for number, police in enumerate(shows))
    return np.array([best_score(detector, taken.jpeg) for taken in scenes])


def best_score(detector: Detector, jpeg: bytes) -> float:
    """Highest score of a police vehicle in an image; missing: no box."""
    from patrolscope.pipeline.detect.decode import decode

    pixels = decode(jpeg, max_pixels=_MAX_PIXELS).pixels
    if pixels is None:
        return float("nan")
    boxes = detector.predict(detector.prepare(pixels)[None], [(pixels.shape[0], pixels.shape[1])])[0]
    scores = boxes[boxes[:, 5] == VEHICLE, 4]
    return round(float(scores.max()), 6) if len(scores) else float("nan")

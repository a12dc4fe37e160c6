"""Rendered scenes of a simulated study: JPEG files of its images and scores of the shipped detector."""

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

SCENES_VERSION = 1  # increased whenever the image of a key changes
IMAGES_FOLDER, WEIGHTS_FILE = "source/images", "source/street-scenes.pt"
_SHARD_IMAGES = 100
_MAX_PIXELS = 1_000_000

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_COLUMNS = ["image_ref", "kind", "x1", "y1", "x2", "y2", "visible"]


def with_scenes(settings: Settings) -> Settings:
    """Return the settings of a study whose images are rendered scenes in its own folder."""
    facts = street_scenes.facts()
    images = Images(sources=(IMAGES_FOLDER,), weights=WEIGHTS_FILE, size=facts["size"], shard_images=_SHARD_IMAGES)
    simulated = (settings.simulated or "").replace("Images, detections,", "Images are rendered scenes; places,")
    return settings.model_copy(
        update={
            "name": f"{settings.name}, rendered scenes",
            "simulated": simulated.replace("Images, detections and", "Images are rendered scenes; places and"),
            "images": images,
            "sources": settings.sources.model_copy(update={"detections": ()}),
            "estimate": settings.estimate.model_copy(update={"threshold": facts["threshold"]}),
        }
    )


def write_scenes(study: Study, refs: Bytes, shows: Flags, seed: int) -> pd.DataFrame:
    """Write the JPEG file of each image.

    Parameters
    ----------
    study : Study
        Study to write to.
    refs : ndarray of uint8, shape (n, w)
        Characters of the `image_ref`.
    shows : ndarray of bool, shape (n,)
        Whether the image shows a police vehicle.
    seed : int
        Seed of the study.

    Returns
    -------
    DataFrame
        One row per box, and one row without a box per image that has none.
    """
    rows: list[tuple[object, ...]] = []
    for characters, police in zip(refs, shows.tolist(), strict=True):
        ref = characters.tobytes().decode()
        photo = photograph(seed, ref, police=police)
        path = Path(study.path(IMAGES_FOLDER, ref))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo.jpeg)
        rows += [(ref, box.kind, box.x1, box.y1, box.x2, box.y2, round(box.visible, 4)) for box in photo.boxes] or [
            (ref, *[None] * 6)
        ]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"kind": "Int64"})


def score_scenes(study: Study, name: str, shows: Flags, seed: int) -> Floats:
    """Render the scenes of a labeled set and score them with the shipped detector.

    Parameters
    ----------
    study : Study
        Study of rendered scenes.
    name : str
        Name of the labeled set.
    shows : ndarray of bool, shape (n,)
        Whether the scene shows a police vehicle.
    seed : int
        Seed of the study.

    Returns
    -------
    ndarray of float64, shape (n,)
        Highest score of a police vehicle, NaN without a box.
    """
    images = study.settings.images
    detector = load_detector(
        study.path(WEIGHTS_FILE),
        size=images.size,
        min_score=images.min_score,
        nms_iou=images.nms_iou,
        device=images.device,
    )
    scenes = (photograph(seed, f"{name} {number}", police=bool(police)) for number, police in enumerate(shows))
    return np.array([best_score(detector, photo.jpeg) for photo in scenes])


def best_score(detector: Detector, jpeg: bytes) -> float:
    """Return the highest score of a police vehicle in an image, NaN without a box."""
    from patrolscope.pipeline.detect.decode import decode

    pixels = decode(jpeg, max_pixels=_MAX_PIXELS).pixels
    if pixels is None:
        return float("nan")
    boxes = detector.predict(detector.prepare(pixels)[None], [(pixels.shape[0], pixels.shape[1])])[0]
    scores = boxes[boxes[:, 5] == VEHICLE, 4]
    return round(float(scores.max()), 6) if len(scores) else float("nan")

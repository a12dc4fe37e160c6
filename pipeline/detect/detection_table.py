"""Rows of the table `DETECTIONS`, from the detector output of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from patrolscope.pipeline.contract.tables import DETECTIONS
from patrolscope.pipeline.detect.inference import Detection

_EDGES = ("x1", "y1", "x2", "y2")


def detection_table(image_ids: pd.Series[str], detections: Sequence[Detection], police_class: int) -> pd.DataFrame:
    """Build rows of `DETECTIONS`.

    Parameters
    ----------
    image_ids : Series of str
        IDs of n images.
    detections : sequence of Detection, length n
        Detector output in the same order.
    police_class : int
        Number of the class whose highest confidence is the score.

    Returns
    -------
    DataFrame, n rows
        `score` and `score_any` are missing for images without such a box; boxes are missing for unprocessed images.
    """
    scored = [detection.status == "scored" for detection in detections]
    boxes = [detection.boxes for detection in detections]
    lists = {f"box_{edge}": [rows[:, number] for rows in boxes] for number, edge in enumerate(_EDGES)}
    lists["box_score"] = [rows[:, 4] for rows in boxes]
    lists["box_class"] = [rows[:, 5].astype(np.int32) for rows in boxes]
    frame = {
        "image_id": image_ids.reset_index(drop=True),
        "status": pd.Series([detection.status for detection in detections], dtype="str"),
        "score": _highest([rows[rows[:, 5] == police_class, 4] for rows in boxes]),
        "score_any": _highest(lists["box_score"]),
        "boxes": pd.Series([len(rows) for rows in boxes], dtype="int32"),
        "width": pd.Series([detection.width for detection in detections], dtype="Int32"),
        "height": pd.Series([detection.height for detection in detections], dtype="Int32"),
        "seconds": pd.Series([round(detection.seconds, 6) for detection in detections], dtype="float64"),
    }
    for name, values in lists.items():
        frame[name] = pd.Series(
            [list(value) if is_scored else None for value, is_scored in zip(values, scored, strict=True)]
        )
    return DETECTIONS.conform(pd.DataFrame(frame))


def _highest(scores: Sequence[Any]) -> pd.Series[float]:
    return pd.Series([float(values.max()) if len(values) else None for values in scores], dtype="float64")

"""Result file that `patrolscope train` writes beside its best weights."""

from __future__ import annotations

import json
from typing import Any

import fsspec

from patrolscope.pipeline.study.remote import remote_errors

RESULT_FILE = "evaluation.json"


def trained_threshold(weights: str, police_class: str | int) -> float | None:
    """Read the threshold with the best F1 of images on the validation split of a training.

    Parameters
    ----------
    weights : str
        Path or URL of `best.pt`.
    police_class : str or int
        Name or number of the class.

    Returns
    -------
    float or None
        Images that score higher are positive. None if there is no result beside the weights, or none for the class.
    """
    try:
        fs, place = fsspec.core.url_to_fs(weights)
        content: Any = json.loads(fs.cat_file(f"{str(place).rpartition('/')[0]}/{RESULT_FILE}"))
    except (ValueError, ImportError):  # not JSON, or an invalid URL, which opening the weights reports
        return None
    except remote_errors():
        return None
    thresholds = content.get("thresholds") if isinstance(content, dict) else None
    if not isinstance(thresholds, dict):
        return None
    if isinstance(police_class, int):
        police_class = dict(enumerate(thresholds)).get(police_class, "")
    threshold = thresholds.get(police_class)
    return threshold if isinstance(threshold, float) and 0 < threshold < 1 else None

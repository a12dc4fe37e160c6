"""What a training says of its best weights, in a file beside them."""

from __future__ import annotations

import json
from typing import Any

import fsspec

from patrolscope.pipeline.study.remote import remote_errors

RESULT_FILE = "evaluation.json"


def trained_threshold(weights: str, police_class: str | int) -> float | None:
    """Score above which images were best called positive on the validation split of the training of these weights.

    Parameters
    ----------
    weights : path or URL of `best.pt`
    police_class : name or number of the class

    Returns
    -------
    None where no training of `patrolscope train` left its result beside the weights, or it did not find the class
    """
    try:
        fs, place = fsspec.core.url_to_fs(weights)
        content: Any = json.loads(fs.cat_file(f"{str(place).rpartition('/')[0]}/{RESULT_FILE}"))
    except (ValueError, ImportError):  # not JSON, or no address: who opens the weights says so
        return None
    except remote_errors():
        return None
    thresholds = content.get("thresholds") if isinstance(content, dict) else None
    if not isinstance(thresholds, dict):
        return None
    if isinstance(police_class, int):
        police_class = dict(enumerate(thresholds)).get(police_class, "")
    found = thresholds.get(police_class)
    return found if isinstance(found, float) and 0 < found < 1 else None

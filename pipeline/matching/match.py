"""Matching of detections to images.

Detections match images by file name without its ending, as in the published study, or by the path below the root if the
name is not unique. Ambiguous detections are rejected and counted. An image with the name of a rejected detection
counts as unprocessed, because its result is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.hashing import Keys
from patrolscope.pipeline.study.ledger import Ledger


def match(
    images: pd.DataFrame,
    detections: pd.DataFrame,
    processed: pd.DataFrame | None,
    ledger: Ledger,
    what: str = "detections",
    removed: Mapping[str, Keys] | None = None,
) -> pd.DataFrame:
    """Find the detection of each image.

    All three tables must hold either all rows of a name or none.

    Parameters
    ----------
    images : DataFrame
        Keys `name` and `path` of images.
    detections : DataFrame
        Keys `name` and `path`; `score` and `score_any` (missing without a box); `readable`.
    processed : DataFrame, optional
        Keys `name` and `path` of processed images; None if all were processed.
    ledger : Ledger
        Ledger for the counts of ambiguous detections, and of those without an image.
    what : str
        Description of the detections for the ledger, in the plural.
    removed : mapping of str to ndarray of uint64, optional
        Keys `name` of images that the study has removed, by reason. Their detections are counted apart.

    Returns
    -------
    DataFrame
        Indexed like `images`: `processed` (bool), `score` and `score_any` (missing without a box).
    """
    names, paths = (images[key].to_numpy() for key in ("name", "path"))
    detected, detected_paths = (detections[key].to_numpy() for key in ("name", "path"))
    image_names = np.sort(names)

    # Names of several images or several detections are matched by path.
    shared = np.union1d(_shared_names(names, paths), _repeated(detected))
    by_path = _contains(shared, detected)
    image_by_path = _contains(shared, names)
    has_image = np.where(
        by_path, _contains(np.sort(paths[image_by_path]), detected_paths), _contains(image_names, detected)
    )
    ambiguous = by_path & (~has_image | _contains(_repeated(detected_paths), detected_paths))
    ledger.drop(int(ambiguous.sum()), why="ambiguous: the name fits several images and the path fits none or several")
    without_image = ~by_path & ~has_image
    for reason, keys in (removed or {}).items():
        of_reason = without_image & _contains(np.sort(keys), detected)
        if of_reason.any():
            ledger.note(f"{what} of images {reason}", int(of_reason.sum()))
        without_image &= ~of_reason
    ledger.note(f"{what} without an image in the metadata", int(without_image.sum()))

    found = np.where(
        image_by_path,
        _position(detected_paths, np.flatnonzero(by_path & ~ambiguous), paths),
        _position(detected, np.flatnonzero(~by_path), names),
    )
    matched = found >= 0
    is_processed = ~(image_by_path & _contains(np.unique(detected[ambiguous]), names))
    if processed is not None:
        listed_name = _contains(np.sort(processed["name"].to_numpy()), names)
        listed_path = _contains(np.sort(processed["path"].to_numpy()), paths)
        is_processed &= listed_path | (listed_name & ~image_by_path)
    is_processed[matched] = detections["readable"].to_numpy()[found[matched]]
    matches = pd.DataFrame({"processed": is_processed}, index=images.index)
    for column in ("score", "score_any"):
        values = np.full(len(images), np.nan)
        values[matched] = detections[column].to_numpy()[found[matched]]
        matches[column] = np.where(is_processed, values, np.nan)
    return matches


def _repeated(keys: Keys) -> Keys:
    """Return the keys that occur more than once, sorted."""
    ordered = np.sort(keys)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _shared_names(names: Keys, paths: Keys) -> Keys:
    """Return the names with more than one path, sorted; equal paths are the same image."""
    order = np.argsort(names)
    names, paths = names[order], paths[order]
    # If a name has several paths, two different ones are adjacent in any order.
    return np.unique(names[1:][(names[1:] == names[:-1]) & (paths[1:] != paths[:-1])])


def _contains(ordered: Keys, keys: Keys) -> npt.NDArray[np.bool_]:
    if len(ordered) == 0:
        return np.zeros(len(keys), dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def _position(among: Keys, rows: npt.NDArray[np.intp], keys: Keys) -> npt.NDArray[np.intp]:
    """Return the row with each key, of `rows` with distinct keys in `among`; -1 without such a row."""
    if len(rows) == 0:
        return np.full(len(keys), -1)
    rows = rows[np.argsort(among[rows])]
    ordered = among[rows]
    at = np.minimum(np.searchsorted(ordered, keys), len(rows) - 1)
    return np.where(ordered[at] == keys, rows[at], -1)

"""Label files of other tools: Pascal VOC (an XML file an image) and task exports of Scale AI (JSON).

Both name their classes and give boxes in pixels. What is read here is data of others: it is compared, never evaluated.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
from PIL import Image

from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Labeled = dict[str, Floats]  # rows of class, center x, center y, width, height as shares, by the image's name


def read_voc(
    documents: Sequence[Path], images: Mapping[str, Path], names: dict[str, int], faults: list[str]
) -> Labeled:
    """Boxes of Pascal VOC files.

    Parameters
    ----------
    images : files by their name below images/
    names : classes by name, to which new ones are added

    Raises
    ------
    SourceError : a file is no such XML
    """
    found: Labeled = {}
    by_leaf = _by_leaf(images)
    for document in documents:
        root = _xml(document)
        leaf = posixpath.basename(root.findtext("filename") or "") or document.stem
        name = by_leaf.get(Path(leaf).stem)
        if name is None:
            faults.append(f"{document.name}: of {leaf}, which is not there or not the only one of its name, left out")
            continue
        try:
            width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
            boxes = [
                (
                    names.setdefault(str(one.findtext("name")).strip(), len(names)),
                    *(float(one.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")),
                )
                for one in root.iter("object")
            ]
        except ValueError as error:
            raise SourceError(f"{document}: a side or an edge is no number ({error})") from error
        if width <= 0 or height <= 0:
            width, height = _size(images[name])
        found[name] = _shares(np.array(boxes).reshape(-1, 5), width, height)
    return found


def read_scale(
    document: Path, tasks: Sequence[Any], images: Mapping[str, Path], names: dict[str, int], faults: list[str]
) -> Labeled:
    """Boxes of a task export of Scale AI: tasks with `params.attachment` and `response.annotations`.

    Raises
    ------
    SourceError : a task is none; says which
    """
    found: Labeled = {}
    by_leaf = _by_leaf(images)
    for number, task in enumerate(tasks):
        where = f"{document.name}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("params"), dict):
            raise SourceError(f"{where} is no task of Scale AI: params and response are expected")
        if task.get("status", "completed") != "completed":
            faults.append(f"{where} is {task['status']}, left out")
            continue
        leaf = posixpath.basename(unquote(urlsplit(str(task["params"].get("attachment", ""))).path))
        name = by_leaf.get(Path(leaf).stem)
        if name is None:
            faults.append(f"{where}: of {leaf or 'no image'}, which is not there or not the only one, left out")
            continue
        rows = []
        for one in (task.get("response") or {}).get("annotations", []):
            if one.get("type", "box") != "box":
                faults.append(f"{where}: a {one['type']} is no box, left out")
                continue
            try:
                left, top, wide, high = (float(one[key]) for key in ("left", "top", "width", "height"))
            except (KeyError, TypeError, ValueError) as error:
                raise SourceError(f"{where}: a box lacks left, top, width or height ({error})") from error
            rows.append((names.setdefault(str(one["label"]), len(names)), left, top, left + wide, top + high))
        found[name] = _shares(np.array(rows).reshape(-1, 5), *_size(images[name]))
    return found


def _by_leaf(images: Mapping[str, Path]) -> dict[str, str]:
    """Names by the last part without its ending, of those that are the only ones."""
    times = Counter(Path(name).stem for name in images)
    return {Path(name).stem: name for name in images if times[Path(name).stem] == 1}


def _shares(corners: Floats, width: float, height: float) -> Floats:
    scale = np.array([width, height])
    low, high = corners[:, 1:3] / scale, corners[:, 3:] / scale
    return np.column_stack([corners[:, :1], (low + high) / 2, high - low])


def _size(path: Path) -> tuple[float, float]:
    try:
        with Image.open(path) as image:
            return float(image.width), float(image.height)
    except (OSError, Image.DecompressionBombError):
        return 1.0, 1.0  # can not be decoded: it is left out later, and listed


def _xml(path: Path) -> ET.Element:
    content = path.read_bytes()
    # Entities are what an XML file can do harm with; no label file has any.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise SourceError(f"{path} declares a document type or entities: no Pascal VOC file does")
    try:
        root = ET.fromstring(content)  # noqa: S314 - refused above
    except ET.ParseError as error:
        raise SourceError(f"{path} is no XML: {error}") from error
    if root.tag != "annotation":
        raise SourceError(f"{path} is no Pascal VOC file: its root is {root.tag!r}, annotation is expected")
    return root

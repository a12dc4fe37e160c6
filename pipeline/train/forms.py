"""Label files of other tools: Pascal VOC (one XML file per image) and task exports of Scale AI (JSON).

Both name their classes and give boxes in pixels. The files are untrusted input: their content is compared, never
evaluated.
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
Labeled = dict[str, Floats]  # by image name, (k, 5): class, center x, center y, width, height; shares of the image


def read_voc(
    documents: Sequence[Path], images: Mapping[str, Path], names: dict[str, int], faults: list[str]
) -> Labeled:
    """Read the boxes of Pascal VOC files.

    Parameters
    ----------
    documents : sequence of Path
        XML files.
    images : mapping of str to Path
        Image files by name relative to images/.
    names : dict of str to int
        Class numbers by name. New classes are added.
    faults : list of str
        Receives one line per item that is left out.

    Raises
    ------
    SourceError
        If a file is not Pascal VOC.
    """
    found: Labeled = {}
    by_leaf = _by_leaf(images)
    for document in documents:
        root = _xml(document)
        leaf = posixpath.basename(root.findtext("filename") or "") or document.stem
        name = by_leaf.get(Path(leaf).stem)
        if name is None:
            faults.append(f"{document.name}: image {leaf} is missing or its name is not unique, left out")
            continue
        try:
            width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
            boxes = [
                (
                    names.setdefault(str(labeled.findtext("name")).strip(), len(names)),
                    *(float(labeled.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")),
                )
                for labeled in root.iter("object")
            ]
        except ValueError as error:
            raise SourceError(f"{document}: size or bndbox is not numeric ({error})") from error
        if width <= 0 or height <= 0:
            width, height = _size(images[name])
        found[name] = _shares(np.array(boxes).reshape(-1, 5), width, height)
    return found


def read_scale(
    document: Path, tasks: Sequence[Any], images: Mapping[str, Path], names: dict[str, int], faults: list[str]
) -> Labeled:
    """Read the boxes of a Scale AI task export: tasks with `params.attachment` and `response.annotations`.

    Parameters
    ----------
    document : Path
        JSON file, for messages.
    tasks : sequence
        Decoded content of the file.
    images : mapping of str to Path
        Image files by name relative to images/.
    names : dict of str to int
        Class numbers by name. New classes are added.
    faults : list of str
        Receives one line per item that is left out.

    Raises
    ------
    SourceError
        If an entry is not a Scale AI task.
    """
    found: Labeled = {}
    by_leaf = _by_leaf(images)
    for number, task in enumerate(tasks):
        where = f"{document.name}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("params"), dict):
            raise SourceError(f"{where} is not a Scale AI task; expected params and response")
        if task.get("status", "completed") != "completed":
            faults.append(f"{where}: status is {task['status']}, left out")
            continue
        leaf = posixpath.basename(unquote(urlsplit(str(task["params"].get("attachment", ""))).path))
        name = by_leaf.get(Path(leaf).stem)
        if name is None:
            faults.append(f"{where}: image {leaf!r} is missing or its name is not unique, left out")
            continue
        rows = []
        for box in (task.get("response") or {}).get("annotations", []):
            if box.get("type", "box") != "box":
                faults.append(f"{where}: annotation of type {box['type']} is not a box, left out")
                continue
            try:
                left, top, wide, high = (float(box[key]) for key in ("left", "top", "width", "height"))
            except (KeyError, TypeError, ValueError) as error:
                raise SourceError(f"{where}: box is incomplete ({error}); expected left, top, width, height") from error
            rows.append((names.setdefault(str(box["label"]), len(names)), left, top, left + wide, top + high))
        found[name] = _shares(np.array(rows).reshape(-1, 5), *_size(images[name]))
    return found


def _by_leaf(images: Mapping[str, Path]) -> dict[str, str]:
    """Return image names by file stem, for stems that are unique."""
    counts = Counter(Path(name).stem for name in images)
    return {Path(name).stem: name for name in images if counts[Path(name).stem] == 1}


def _shares(corners: Floats, width: float, height: float) -> Floats:
    scale = np.array([width, height])
    low, high = corners[:, 1:3] / scale, corners[:, 3:] / scale
    return np.column_stack([corners[:, :1], (low + high) / 2, high - low])


def _size(path: Path) -> tuple[float, float]:
    try:
        with Image.open(path) as image:
            return float(image.width), float(image.height)
    except (OSError, Image.DecompressionBombError):
        return 1.0, 1.0  # `open_images` lists it and leaves it out


def _xml(path: Path) -> ET.Element:
    content = path.read_bytes()
    # Entities can expand without bound or read files; label files have none.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise SourceError(f"{path} declares a document type or entities; expected Pascal VOC, which has neither")
    try:
        root = ET.fromstring(content)  # noqa: S314 - without entities
    except ET.ParseError as error:
        raise SourceError(f"{path} is not valid XML: {error}") from error
    if root.tag != "annotation":
        raise SourceError(f"{path} is not a Pascal VOC file: root element is {root.tag!r}; expected 'annotation'")
    return root

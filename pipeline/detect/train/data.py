"""Labelled images of a folder: which there are, their boxes, how they are split. Decodes no image; knows no torch.

Two forms: YOLO text (`images/`, `labels/`, `classes.txt`) and COCO JSON (`images/`, one `.json` with `annotations`).
Images of one ride look alike, so all of a ride are in the same split. A ride is the folder that an image lies in; a
`splits.csv` with the columns `ride` and `split` says where each goes, and without it an eighth of the rides are for
validation and an eighth for the test, by a digest of the ride's name.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import SourceError
from pipeline.images import IMAGE_ENDINGS

Floats = npt.NDArray[np.float64]

SPLITS = ("train", "validation", "test")
_EXPECTED = "expected images/ with labels/ and classes.txt (YOLO text), or images/ with a COCO .json"
_LARGEST_EXCESS = 0.01  # of a box beyond the image that rounding may leave


@dataclass(frozen=True)
class Example:
    """An image and its boxes."""

    path: Path
    name: str  # below images/
    boxes: Floats = field(repr=False)  # (k, 5) class, centre x, centre y, width, height as shares of the image

    @property
    def ride(self) -> str:
        """The folder that the image lies in; an image in images/ itself is a ride of its own."""
        folder, _, leaf = self.name.rpartition("/")
        return folder or leaf


@dataclass(frozen=True)
class Collection:
    """The labelled images of a folder."""

    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    faults: tuple[str, ...]  # what was left out or mended, a line each

    def summary(self) -> list[str]:
        """Images, boxes and boxes of each class, by split."""
        lines = []
        for split, examples in self.splits.items():
            counts = Counter[int]()
            for one in examples:
                counts.update(one.boxes[:, 0].astype(int).tolist())
            kinds = ", ".join(f"{counts[number]:,} {name}" for number, name in enumerate(self.class_names))
            empty = sum(not len(one.boxes) for one in examples)
            lines.append(f"{split}: {len(examples):,} images, {empty:,} without a box; {kinds}")
        return lines


def read_collection(folder: Path) -> Collection:
    """Labelled images of a folder.

    Raises
    ------
    SourceError : the folder is in no known form, a label can not be read, a class is unknown; says which
    """
    if not (folder / "images").is_dir():
        raise SourceError(f"{folder} holds no folder images: {_EXPECTED}")
    documents = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    faults: list[str] = []
    if (folder / "labels").is_dir():
        names, examples = _yolo(folder, faults)
    elif documents:
        names, examples = _coco(folder, documents, faults)
    else:
        raise SourceError(f"{folder} holds neither labels/ nor a COCO .json: {_EXPECTED}")
    if not examples:
        raise SourceError(f"{folder}/images holds no image ({', '.join(IMAGE_ENDINGS)})")
    return Collection(names, _split(folder, examples), tuple(faults))


def _images(folder: Path) -> list[Path]:
    found = (path for path in (folder / "images").rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    return sorted(path for path in found if path.is_file())


def _yolo(folder: Path, faults: list[str]) -> tuple[tuple[str, ...], list[Example]]:
    listed = folder / "classes.txt"
    if not listed.is_file():
        raise SourceError(f"{folder} holds no classes.txt: one class name a line, in the order of their numbers")
    names = tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    if not names:
        raise SourceError(f"{listed} names no class: one a line is expected")
    examples = []
    for path in _images(folder):
        name = path.relative_to(folder / "images").as_posix()
        labels = folder / "labels" / Path(name).with_suffix(".txt")
        boxes = _yolo_boxes(labels, names, faults) if labels.is_file() else np.zeros((0, 5))
        examples.append(Example(path, name, boxes))
    return names, examples


def _yolo_boxes(path: Path, names: Sequence[str], faults: list[str]) -> Floats:
    boxes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(value) for value in line.split()]
        except ValueError:
            values = []
        if len(values) != 5 or not all(map(np.isfinite, values)):
            raise SourceError(
                f"{path} line {number} is {line[:60]!r}: class, centre x, centre y, width, height expected"
            )
        if values[0] not in range(len(names)):
            raise SourceError(
                f"{path} line {number} has the class {values[0]:g}: classes.txt names {len(names)}, from 0 on"
            )
        boxes.append(values)
    return _sound(np.array(boxes).reshape(-1, 5), str(path), faults)


def _sound(boxes: Floats, where: str, faults: list[str]) -> Floats:
    """The boxes, cut at the image's edges; those without an area are left out, and a copy of another, too."""
    half = boxes[:, 3:] / 2
    low, high = boxes[:, 1:3] - half, boxes[:, 1:3] + half
    if ((low < -_LARGEST_EXCESS) | (high > 1 + _LARGEST_EXCESS)).any():
        faults.append(f"{where}: a box reaches beyond the image, cut at its edge")
    low, high = low.clip(0, 1), high.clip(0, 1)
    cut = np.column_stack([boxes[:, 0], (low + high) / 2, high - low])
    sound = (cut[:, 3:] > 0).all(1)
    if not sound.all():
        faults.append(f"{where}: {(~sound).sum()} boxes without an area, left out")
    unique = np.unique(cut[sound], axis=0)
    if len(unique) < sound.sum():
        faults.append(f"{where}: {sound.sum() - len(unique)} boxes that are there twice, left out")
    return unique


def _coco(folder: Path, documents: Sequence[Path], faults: list[str]) -> tuple[tuple[str, ...], list[Example]]:
    names: dict[str, int] = {}
    found: dict[str, list[Floats]] = {}
    for document in documents:
        content = _json(document)
        by_id = _coco_classes(content, document, names)
        images = {one["id"]: one for one in content["images"]}
        for one in images.values():
            found.setdefault(str(one["file_name"]), [])
        for number, box in enumerate(content["annotations"]):
            where = f"{document.name}: annotation {number}"
            image = images.get(box.get("image_id"))
            if image is None:
                raise SourceError(f"{where} is of image {box.get('image_id')!r}, which the file does not list")
            if box.get("category_id") not in by_id:
                raise SourceError(
                    f"{where} has the class {box.get('category_id')!r}, which is not among its categories"
                )
            x, y, w, h = map(float, box["bbox"])
            width, height = float(image["width"]), float(image["height"])
            kind = by_id[box["category_id"]]
            row = [kind, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            found[str(image["file_name"])].append(np.array(row))
    examples = []
    for path in _images(folder):
        name = path.relative_to(folder / "images").as_posix()
        if name not in found:
            faults.append(f"images/{name}: no COCO file lists it, left out")
            continue
        boxes = np.array(found.pop(name)).reshape(-1, 5)
        examples.append(Example(path, name, _sound(boxes, name, faults)))
    faults += [f"images/{name}: listed, and not there" for name in sorted(found)]
    return tuple(names), examples


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path} is no JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise SourceError(f"{path} is no COCO file: lists {', '.join(parts)} are expected")
    return content


def _coco_classes(content: dict[str, Any], path: Path, names: dict[str, int]) -> dict[int, int]:
    """Our number of each category id; the same name in several files is the same class."""
    numbers = {}
    for one in sorted(content["categories"], key=lambda one: one["id"]):
        numbers[one["id"]] = names.setdefault(str(one["name"]), len(names))
    if not numbers:
        raise SourceError(f"{path} has no categories")
    return numbers


def _split(folder: Path, examples: Sequence[Example]) -> dict[str, tuple[Example, ...]]:
    given = folder / "splits.csv"
    rides = _given_splits(given) if given.is_file() else None
    parts: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for one in examples:
        if rides is None:
            split = _split_of(one.ride)
        elif one.ride in rides:
            split = rides[one.ride]
        else:
            raise SourceError(f"{given} does not say where the ride {one.ride!r} goes: {', '.join(SPLITS)}")
        parts[split].append(one)
    for split in ("train", "validation"):
        if not parts[split]:
            raise SourceError(
                f"the {split} split of {folder} is empty: a splits.csv with ride,split ({', '.join(SPLITS)}) says "
                f"where rides go; the ride of an image is its folder, and there are "
                f"{len({one.ride for one in examples})}"
            )
    return {split: tuple(some) for split, some in parts.items()}


def _split_of(ride: str) -> str:
    eighth = hashlib.sha256(ride.encode()).digest()[0] % 8
    return {0: "validation", 1: "test"}.get(eighth, "train")


def _given_splits(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"ride", "split"} <= rows[0].keys():
        raise SourceError(f"{path} has no rows with the columns ride and split")
    for row in rows:
        if row["split"] not in SPLITS:
            raise SourceError(f"{path} puts the ride {row['ride']!r} into {row['split']!r}: one of {', '.join(SPLITS)}")
    return {row["ride"]: row["split"] for row in rows}


def check_classes(collection: Collection) -> Iterator[str]:
    """Warnings: classes without a box to learn from."""
    seen = {int(kind) for one in collection.splits["train"] for kind in one.boxes[:, 0]}
    if not seen:
        raise SourceError("no image of the train split has a box: there is nothing to learn")
    for number, name in enumerate(collection.class_names):
        if number not in seen:
            yield f"no box of {name!r} in the train split: it can not be learned"


def without(collection: Collection, names: set[str], reason: str) -> Collection:
    """The collection without some images, which are listed among its faults."""
    splits = {split: tuple(one for one in some if one.name not in names) for split, some in collection.splits.items()}
    for split in ("train", "validation"):
        if not splits[split]:
            raise SourceError(f"no image of the {split} split can be read")
    listed = tuple(f"images/{name}: {reason}" for name in sorted(names))
    return replace(collection, splits=splits, faults=collection.faults + listed)

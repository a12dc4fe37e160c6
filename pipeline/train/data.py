"""Labeled images of a folder: files, boxes, and splits. Reads no pixels and imports no torch.

The labels beside `images/` are YOLO text (`labels/`, `classes.txt`), COCO JSON, Pascal VOC (`annotations/*.xml`), or a
task export of Scale AI (JSON). Images of one ride look alike, so a ride is never divided between splits. The ride of an
image is its folder. A `splits.csv` with columns `ride` and `split` assigns rides to splits. With columns `ride` and
`place`, all rides of one place share a split. Otherwise one eighth of the rides (or places) are for validation and one
eighth for testing, chosen by a digest of the name.
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

from patrolscope.pipeline.detect.image_store import IMAGE_ENDINGS
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.train.forms import Labeled, read_scale, read_voc

Floats = npt.NDArray[np.float64]

SPLITS = ("train", "validation", "test")
_EXPECTED = "expected images/ with labels/ and classes.txt (YOLO), a .json (COCO, Scale AI) or annotations/*.xml (VOC)"
_LARGEST_EXCESS = 0.01  # share of the image by which rounding may move a box beyond its edge


@dataclass(frozen=True)
class Example:
    """Image with its boxes."""

    path: Path
    name: str  # path relative to images/
    boxes: Floats = field(repr=False)  # (k, 5) class, center x, center y, width, height; shares of the image

    @property
    def ride(self) -> str:
        """Folder of the image; an image directly in images/ is a ride of its own."""
        folder, _, leaf = self.name.rpartition("/")
        return folder or leaf


@dataclass(frozen=True)
class Collection:
    """Labeled images of a folder."""

    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    faults: tuple[str, ...]  # one line per item that was left out or corrected

    def summary(self) -> list[str]:
        """Return one line per split: images, boxes per class, and share of images that show the class."""
        lines = []
        for split, examples in self.splits.items():
            boxes, images = Counter[int](), Counter[int]()
            for example in examples:
                classes = example.boxes[:, 0].astype(int).tolist()
                boxes.update(classes)
                images.update(set(classes))
            kinds = ", ".join(
                f"{boxes[number]:,} {name} (in {images[number] / max(len(examples), 1):.1%} of the images)"
                for number, name in enumerate(self.class_names)
            )
            empty = sum(not len(example.boxes) for example in examples)
            lines.append(f"{split}: {len(examples):,} images, {empty:,} without a box; {kinds}")
        return lines


def read_collection(folder: Path, mapping: Mapping[str, str] | None = None) -> Collection:
    """Read the labeled images of a folder.

    Parameters
    ----------
    folder : Path
        Folder with images/ and labels.
    mapping : mapping of str to str, optional
        New name of a class by its name in the labels; an empty name drops its boxes. Other classes keep their names.
        A classes.txt next to labels of any format defines the classes and their order.

    Raises
    ------
    SourceError
        If the format is unknown, a label cannot be read, or a class is unknown.
    """
    if not (folder / "images").is_dir():
        raise SourceError(f"{folder} has no folder images; {_EXPECTED}")
    documents = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    pages = sorted(folder.glob("annotations/**/*.xml"))
    faults: list[str] = []
    if (folder / "labels").is_dir():
        names, examples = _yolo(folder, faults)
    elif documents or pages:
        names, examples = _documents(folder, documents, pages, faults)
    else:
        raise SourceError(f"{folder} has neither labels/ nor a .json nor annotations/*.xml; {_EXPECTED}")
    if not examples:
        raise SourceError(f"{folder}/images has no images; expected files ending in {', '.join(IMAGE_ENDINGS)}")
    names, examples = _rename_classes(names, examples, mapping or {}, _read_class_names(folder), faults)
    return Collection(names, _split(folder, examples), tuple(faults))


def class_mapping(texts: Sequence[str]) -> dict[str, str]:
    """Parse THEIRS=OURS options into a mapping.

    Raises
    ------
    SourceError
        If an option has no `=`.
    """
    pairs = [text.partition("=") for text in texts]
    for theirs, sign, _ in pairs:
        if not sign:
            raise SourceError(f"--class {theirs!r} has no '='; expected THEIRS=OURS, such as 'cop car=police vehicle'")
    return {theirs.strip(): ours.strip() for theirs, _, ours in pairs}


def _images(folder: Path) -> list[Path]:
    found = (path for path in (folder / "images").rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    return sorted(path for path in found if path.is_file())


def _yolo(folder: Path, faults: list[str]) -> tuple[tuple[str, ...], list[Example]]:
    names = _read_class_names(folder)
    if names is None:
        raise SourceError(f"{folder} has no classes.txt; expected one class name per line, ordered by class number")
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
        if len(values) != 5 or not all(map(np.isfinite, values)) or values[0] % 1:
            raise SourceError(
                f"{path} line {number} is {line[:60]!r}; expected class, center x, center y, width, height"
            )
        if values[0] not in range(len(names)):
            faults.append(
                f"{path} line {number}: class {values[0]:g} is not one of the {len(names)} in classes.txt, left out"
            )
            continue
        boxes.append(values)
    return _valid_boxes(np.array(boxes).reshape(-1, 5), str(path), faults)


def _valid_boxes(boxes: Floats, where: str, faults: list[str]) -> Floats:
    """Clip boxes to the image and drop empty and duplicate boxes."""
    half = boxes[:, 3:] / 2
    low, high = boxes[:, 1:3] - half, boxes[:, 1:3] + half
    if ((low < -_LARGEST_EXCESS) | (high > 1 + _LARGEST_EXCESS)).any():
        faults.append(f"{where}: a box extends beyond the image, clipped")
    low, high = low.clip(0, 1), high.clip(0, 1)
    clipped = np.column_stack([boxes[:, 0], (low + high) / 2, high - low])
    valid = (clipped[:, 3:] > 0).all(1)
    if not valid.all():
        faults.append(f"{where}: {(~valid).sum()} boxes without an area, left out")
    unique = np.unique(clipped[valid], axis=0)
    if len(unique) < valid.sum():
        faults.append(f"{where}: {valid.sum() - len(unique)} duplicate boxes, left out")
    return unique


def _read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the classes in classes.txt, or None without the file."""
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not names:
        raise SourceError(f"{path} is empty; expected one class name per line")
    return names


def _rename_classes(
    names: Sequence[str],
    examples: list[Example],
    mapping: Mapping[str, str],
    fixed: tuple[str, ...] | None,
    faults: list[str],
) -> tuple[tuple[str, ...], list[Example]]:
    """Return the classes after the mapping, and the examples with their class numbers."""
    for name in mapping:
        if name not in names:
            raise SourceError(f"--class {name!r}: the labels have no such class; expected one of {', '.join(names)}")
    new_names = [mapping.get(name, name) for name in names]
    if mapping and fixed == tuple(names):
        fixed = None  # YOLO text: names before the mapping
    ours = fixed or tuple(dict.fromkeys(name for name in new_names if name))
    for number, name in enumerate(new_names):
        if name and name not in ours:
            count = sum(int((example.boxes[:, 0] == number).sum()) for example in examples)
            faults.append(f"{count:,} boxes of class {name!r}, which is not in classes.txt, left out")
    numbers = np.array([ours.index(name) if name in ours else -1 for name in new_names] or [-1])
    renamed = []
    for example in examples:
        boxes = _renumber(example.boxes, numbers)
        renamed.append(replace(example, boxes=boxes[boxes[:, 0] >= 0]))
    return ours, renamed


def _documents(
    folder: Path, documents: Sequence[Path], pages: Sequence[Path], faults: list[str]
) -> tuple[tuple[str, ...], list[Example]]:
    """Read COCO, Scale AI, or Pascal VOC files."""
    images = {path.relative_to(folder / "images").as_posix(): path for path in _images(folder)}
    names: dict[str, int] = {}
    found = read_voc(pages, images, names, faults) if pages else {}
    for document in documents:
        content = _json(document)
        if isinstance(content, list):
            more = read_scale(document, content, images, names, faults)
        else:
            more = _coco(document, content, names, faults)
        for name, boxes in more.items():
            found[name] = np.concatenate([found[name], boxes]) if name in found else boxes
    examples = []
    for name, path in images.items():
        if name in found:
            examples.append(Example(path, name, _valid_boxes(found.pop(name), name, faults)))
        else:
            faults.append(f"images/{name}: not in any label file, left out")
    faults += [f"images/{name}: listed but missing" for name in sorted(found)]
    if all(isinstance(_json(document), dict) for document in documents) and not pages:
        return tuple(names), examples  # ordered by COCO category id
    # These formats do not number classes; order them by name, independent of the order of files.
    ordered = sorted(names)
    numbers = np.array([ordered.index(name) for name in names] or [0])
    return tuple(ordered), [replace(example, boxes=_renumber(example.boxes, numbers)) for example in examples]


def _renumber(boxes: Floats, numbers: npt.NDArray[np.int64]) -> Floats:
    """Replace class numbers."""
    return np.column_stack([numbers[boxes[:, 0].astype(int)], boxes[:, 1:]])


def _coco(document: Path, content: dict[str, Any], names: dict[str, int], faults: list[str]) -> Labeled:
    by_id = _coco_classes(content, document, names)
    images = {image["id"]: image for image in content["images"]}
    rows: dict[str, list[list[float]]] = {str(image["file_name"]): [] for image in images.values()}
    for number, box in enumerate(content["annotations"]):
        where = f"{document.name}: annotation {number}"
        image = images.get(box.get("image_id"))
        if image is None:
            faults.append(f"{where}: image {box.get('image_id')!r} is not listed in the file, left out")
            continue
        if box.get("category_id") not in by_id:
            faults.append(f"{where}: class {box.get('category_id')!r} is not one of the categories, left out")
            continue
        try:
            (x, y, w, h), width, height = map(float, box["bbox"]), float(image["width"]), float(image["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{where} is incomplete; expected a bbox of four numbers and the width and height of its image"
            ) from error
        kind = by_id[box["category_id"]]
        rows[str(image["file_name"])].append([kind, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
    return {name: np.array(boxes, dtype=np.float64).reshape(-1, 5) for name, boxes in rows.items()}


def _json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path} is not valid JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise SourceError(f"{path} is not a COCO file; expected lists {', '.join(parts)}, or a list of Scale AI tasks")
    return content


def _coco_classes(content: dict[str, Any], path: Path, names: dict[str, int]) -> dict[int, int]:
    """Return class numbers by category id; equal names in several files are one class."""
    numbers = {}
    for category in sorted(content["categories"], key=lambda category: category["id"]):
        numbers[category["id"]] = names.setdefault(str(category["name"]), len(names))
    if not numbers:
        raise SourceError(f"{path} has no categories; expected at least one")
    return numbers


def _split(folder: Path, examples: Sequence[Example]) -> dict[str, tuple[Example, ...]]:
    path = folder / "splits.csv"
    split_of_ride = _read_splits(path) if path.is_file() else None
    parts: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example in examples:
        if split_of_ride is None:
            split = _split_by_digest(example.ride)
        elif example.ride in split_of_ride:
            split = split_of_ride[example.ride]
        else:
            raise SourceError(f"{path} has no row for ride {example.ride!r}; expected a split: {', '.join(SPLITS)}")
        parts[split].append(example)
    for split in ("train", "validation"):
        if not parts[split]:
            rides = len({example.ride for example in examples})
            raise SourceError(
                f"the {split} split of {folder} is empty; found {rides} rides (folders with images); "
                f"assign rides to {', '.join(SPLITS)} in a splits.csv with columns ride,split"
            )
    return {split: tuple(part) for split, part in parts.items()}


def _split_by_digest(name: str) -> str:
    """Return the split of a ride, or of all rides of a place."""
    eighth = hashlib.sha256(name.encode()).digest()[0] % 8
    return {0: "validation", 1: "test"}.get(eighth, "train")


def _read_splits(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0]) if rows else set()
    if "ride" not in columns or not columns & {"split", "place"}:
        raise SourceError(f"{path} has no usable rows; expected columns ride and split, or ride and place")
    splits: dict[str, str] = {}
    for row in rows:
        split = row["split"] if "split" in columns else _split_by_digest(row["place"])
        if split not in SPLITS:
            raise SourceError(f"{path} assigns ride {row['ride']!r} to {split!r}; expected one of {', '.join(SPLITS)}")
        if splits.setdefault(row["ride"], split) != split:
            raise SourceError(f"{path} assigns ride {row['ride']!r} to both {splits[row['ride']]} and {split}")
    return splits


def check_classes(collection: Collection) -> Iterator[str]:
    """Yield a warning for each class without a box in the train split.

    Raises
    ------
    SourceError
        If the train split has no boxes at all.
    """
    seen = {int(kind) for example in collection.splits["train"] for kind in example.boxes[:, 0]}
    if not seen:
        raise SourceError("the train split has no boxes; expected at least one labeled object")
    for number, name in enumerate(collection.class_names):
        if number not in seen:
            yield f"no box of {name!r} in the train split: the detector cannot learn it"


def without(collection: Collection, names: set[str], reason: str) -> Collection:
    """Return the collection without some images, which are added to its faults.

    Parameters
    ----------
    collection : Collection
        Labeled images.
    names : set of str
        Names of the images to leave out.
    reason : str
        Text of the fault.

    Raises
    ------
    SourceError
        If the train or validation split becomes empty.
    """
    splits = {
        split: tuple(example for example in examples if example.name not in names)
        for split, examples in collection.splits.items()
    }
    for split in ("train", "validation"):
        if not splits[split]:
            raise SourceError(f"no image of the {split} split can be read; expected at least one")
    listed = tuple(f"images/{name}: {reason}" for name in sorted(names))
    return replace(collection, splits=splits, faults=collection.faults + listed)

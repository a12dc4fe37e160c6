"""Labeled images of a folder: which there are, their boxes, how they are split. Decodes no image; knows no torch.

Beside `images/` lie YOLO text (`labels/`, `classes.txt`), COCO JSON, Pascal VOC (`annotations/*.xml`) or a task export
of Scale AI (JSON). Images of one ride look alike, so all of a ride are in the same split. A ride is the folder that an
image lies in; a `splits.csv` with the columns `ride` and `split` says where each goes; with `ride` and `place`
rides of one place go together. Without it an eighth of the rides are for validation and an eighth for the test, by a
digest of the ride's (or the place's) name.
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
_LARGEST_EXCESS = 0.01  # of a box beyond the image that rounding may leave


@dataclass(frozen=True)
class Example:
    """An image and its boxes."""

    path: Path
    name: str  # below images/
    boxes: Floats = field(repr=False)  # (k, 5) class, center x, center y, width, height as shares of the image

    @property
    def ride(self) -> str:
        """The folder that the image lies in; an image in images/ itself is a ride of its own."""
        folder, _, leaf = self.name.rpartition("/")
        return folder or leaf


@dataclass(frozen=True)
class Collection:
    """The labeled images of a folder."""

    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    faults: tuple[str, ...]  # what was left out or mended, a line each

    def summary(self) -> list[str]:
        """Images, boxes of each class and the share of images that show one, by split."""
        lines = []
        for split, examples in self.splits.items():
            boxes, images = Counter[int](), Counter[int]()
            for one in examples:
                found = one.boxes[:, 0].astype(int).tolist()
                boxes.update(found)
                images.update(set(found))
            kinds = ", ".join(
                f"{boxes[number]:,} {name} (in {images[number] / max(len(examples), 1):.1%} of the images)"
                for number, name in enumerate(self.class_names)
            )
            empty = sum(not len(one.boxes) for one in examples)
            lines.append(f"{split}: {len(examples):,} images, {empty:,} without a box; {kinds}")
        return lines


def read_collection(folder: Path, mapping: Mapping[str, str] | None = None) -> Collection:
    """Labeled images of a folder.

    Parameters
    ----------
    mapping : our class of a name that stands in the labels, empty to leave its boxes out; other names stay as they are.
        A classes.txt beside labels of any form gives the classes and their order

    Raises
    ------
    SourceError : the folder is in no known form, a label can not be read, a class is unknown; says which
    """
    if not (folder / "images").is_dir():
        raise SourceError(f"{folder} holds no folder images: {_EXPECTED}")
    documents = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    pages = sorted(folder.glob("annotations/**/*.xml"))
    faults: list[str] = []
    if (folder / "labels").is_dir():
        names, examples = _yolo(folder, faults)
    elif documents or pages:
        names, examples = _documents(folder, documents, pages, faults)
    else:
        raise SourceError(f"{folder} holds neither labels/ nor a .json nor annotations/*.xml: {_EXPECTED}")
    if not examples:
        raise SourceError(f"{folder}/images holds no image ({', '.join(IMAGE_ENDINGS)})")
    names, examples = _renamed(names, examples, mapping or {}, _listed(folder), faults)
    return Collection(names, _split(folder, examples), tuple(faults))


def class_mapping(texts: Sequence[str]) -> dict[str, str]:
    """THEIRS=OURS, as a mapping.

    Raises
    ------
    SourceError : a text without `=`
    """
    pairs = [text.partition("=") for text in texts]
    for theirs, sign, _ in pairs:
        if not sign:
            raise SourceError(f"--class {theirs!r}: THEIRS=OURS is expected, as in 'cop car=police vehicle'")
    return {theirs.strip(): ours.strip() for theirs, _, ours in pairs}


def _images(folder: Path) -> list[Path]:
    found = (path for path in (folder / "images").rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    return sorted(path for path in found if path.is_file())


def _yolo(folder: Path, faults: list[str]) -> tuple[tuple[str, ...], list[Example]]:
    names = _listed(folder)
    if names is None:
        raise SourceError(f"{folder} holds no classes.txt: one class name a line, in the order of their numbers")
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
                f"{path} line {number} is {line[:60]!r}: class, center x, center y, width, height expected"
            )
        if values[0] not in range(len(names)):
            faults.append(
                f"{path} line {number} has the class {values[0]:g}, classes.txt names {len(names)}, from 0 on: left out"
            )
            continue
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


def _listed(folder: Path) -> tuple[str, ...] | None:
    """Classes of classes.txt, where there is one."""
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not names:
        raise SourceError(f"{path} names no class: one a line is expected")
    return names


def _renamed(
    names: Sequence[str],
    examples: list[Example],
    mapping: Mapping[str, str],
    fixed: tuple[str, ...] | None,
    faults: list[str],
) -> tuple[tuple[str, ...], list[Example]]:
    """Classes after the mapping, and the examples with their numbers."""
    for name in mapping:
        if name not in names:
            raise SourceError(f"no label is of a class {name!r}: {', '.join(names)}")
    wanted = [mapping.get(name, name) for name in names]
    if mapping and fixed == tuple(names):
        fixed = None  # of YOLO text: the names before the mapping
    ours = fixed or tuple(dict.fromkeys(name for name in wanted if name))
    for number, name in enumerate(wanted):
        if name and name not in ours:
            count = sum(int((one.boxes[:, 0] == number).sum()) for one in examples)
            faults.append(f"{count:,} boxes of the class {name!r}, which classes.txt does not name, left out")
    numbers = np.array([ours.index(name) if name in ours else -1 for name in wanted] or [-1])
    changed = []
    for one in examples:
        boxes = _numbered(one.boxes, numbers)
        changed.append(replace(one, boxes=boxes[boxes[:, 0] >= 0]))
    return ours, changed


def _documents(
    folder: Path, documents: Sequence[Path], pages: Sequence[Path], faults: list[str]
) -> tuple[tuple[str, ...], list[Example]]:
    """Examples of COCO, Scale AI or Pascal VOC files."""
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
            examples.append(Example(path, name, _sound(found.pop(name), name, faults)))
        else:
            faults.append(f"images/{name}: no label file names it, left out")
    faults += [f"images/{name}: listed, and not there" for name in sorted(found)]
    if all(isinstance(_json(document), dict) for document in documents) and not pages:
        return tuple(names), examples  # in the order of COCO's own numbers
    # These forms number no class: by name, so that an order of files changes nothing.
    in_order = sorted(names)
    numbers = np.array([in_order.index(name) for name in names] or [0])
    return tuple(in_order), [replace(one, boxes=_numbered(one.boxes, numbers)) for one in examples]


def _numbered(boxes: Floats, numbers: npt.NDArray[np.int64]) -> Floats:
    """Boxes with other class numbers."""
    return np.column_stack([numbers[boxes[:, 0].astype(int)], boxes[:, 1:]])


def _coco(document: Path, content: dict[str, Any], names: dict[str, int], faults: list[str]) -> Labeled:
    by_id = _coco_classes(content, document, names)
    images = {one["id"]: one for one in content["images"]}
    rows: dict[str, list[list[float]]] = {str(one["file_name"]): [] for one in images.values()}
    for number, box in enumerate(content["annotations"]):
        where = f"{document.name}: annotation {number}"
        image = images.get(box.get("image_id"))
        if image is None:
            faults.append(f"{where} is of image {box.get('image_id')!r}, which the file does not list: left out")
            continue
        if box.get("category_id") not in by_id:
            kind = box.get("category_id")
            faults.append(f"{where} has the class {kind!r}, which is not among its categories: left out")
            continue
        try:
            (x, y, w, h), width, height = map(float, box["bbox"]), float(image["width"]), float(image["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{where}: a bbox of four numbers, and its image's width and height are expected"
            ) from error
        kind = by_id[box["category_id"]]
        rows[str(image["file_name"])].append([kind, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
    return {name: np.array(boxes, dtype=np.float64).reshape(-1, 5) for name, boxes in rows.items()}


def _json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path} is no JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise SourceError(
            f"{path} is no COCO file: lists {', '.join(parts)} are expected, or a list of Scale AI's tasks"
        )
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


def _split_of(name: str) -> str:
    """The split of a ride, or of all rides of a place."""
    eighth = hashlib.sha256(name.encode()).digest()[0] % 8
    return {0: "validation", 1: "test"}.get(eighth, "train")


def _given_splits(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0]) if rows else set()
    if "ride" not in columns or not columns & {"split", "place"}:
        raise SourceError(f"{path} has no rows with the columns ride and split, or ride and place")
    found: dict[str, str] = {}
    for row in rows:
        split = row["split"] if "split" in columns else _split_of(row["place"])
        if split not in SPLITS:
            raise SourceError(f"{path} puts the ride {row['ride']!r} into {split!r}: one of {', '.join(SPLITS)}")
        if found.setdefault(row["ride"], split) != split:
            raise SourceError(f"{path} puts the ride {row['ride']!r} into {found[row['ride']]} and into {split}")
    return found


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

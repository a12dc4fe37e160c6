"""Contents and faults of a set of labeled images, reported before training starts."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.detect.decode import decode
from patrolscope.pipeline.detect.models.architecture import variant
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.train.assign import MOST_RATIO
from patrolscope.pipeline.train.augment import MAX_PIXELS
from patrolscope.pipeline.train.data import Collection, Example, check_classes, read_collection, without

Floats = npt.NDArray[np.float64]

_MATCHING_BOXES = 0.98  # minimum share of boxes that match an anchor


def check(
    folder: Path,
    mapping: Mapping[str, str] | None = None,
    *,
    size: int,
    name: str = "yolov7-tiny",
    strict: bool = False,
) -> Iterator[str]:
    """Yield lines that describe a folder of labeled images: counts, box sizes, and faults.

    Parameters
    ----------
    folder : Path
        Folder with images and labels.
    mapping : mapping of str to str, optional
        New names of classes; see `read_collection`.
    size : int
        Longer side of the network input, pixels.
    name : str, default "yolov7-tiny"
        Network variant whose anchors are compared with the boxes.
    strict : bool, default False
        Raise an error after the last line if there are faults.

    Raises
    ------
    SourceError
        If the folder cannot be read, or if it has faults and `strict` is set.
    """
    collection, _ = open_images(read_collection(folder, mapping))
    yield from collection.summary()
    yield from _box_sizes(collection, size, name)
    faults = [*collection.faults, *check_classes(collection)]
    yield f"{len(faults):,} faults" + (":" if faults else "")
    yield from (f"  {fault}" for fault in faults)
    if strict:
        reject_faults(faults)


def reject_faults(faults: Sequence[str]) -> None:
    """Raise an error if there are faults.

    Raises
    ------
    SourceError
        If `faults` is not empty.
    """
    if faults:
        raise SourceError(f"found {len(faults):,} faults; --strict allows none; correct them or remove --strict")


def open_images(collection: Collection) -> tuple[Collection, dict[str, Floats]]:
    """Open every image of a collection.

    Returns
    -------
    collection : Collection
        The collection without images that cannot be decoded. These and duplicate images are listed as faults.
    sizes : dict of ndarray, shape (n, 2)
        Width and height of the remaining images per split, pixels.
    """
    sizes: dict[str, tuple[int, int]] = {}
    by_digest: dict[bytes, list[tuple[str, Example]]] = defaultdict(list)
    for split, examples in collection.splits.items():
        for example in examples:
            content = example.path.read_bytes()
            pixels = decode(content, max_pixels=MAX_PIXELS).pixels
            if pixels is not None:
                sizes[example.name] = pixels.shape[1], pixels.shape[0]
            by_digest[hashlib.sha256(content).digest()].append((split, example))
    broken = {example.name for example in itertools.chain(*collection.splits.values())} - sizes.keys()
    if broken:
        collection = without(collection, broken, "cannot be decoded, left out")
    collection = replace(collection, faults=(*collection.faults, *_duplicates(by_digest.values())))
    return collection, {
        split: np.array([sizes[example.name] for example in examples], dtype=np.float64).reshape(-1, 2)
        for split, examples in collection.splits.items()
    }


def _duplicates(groups: Iterable[list[tuple[str, Example]]]) -> Iterator[str]:
    """Yield a line for each group of identical images."""
    for group in groups:
        if len(group) > 1:
            splits = sorted({split for split, _ in group})
            where = f"in {' and '.join(splits)}" + (": training data leak" if len(splits) > 1 else "")
            yield f"images/{group[0][1].name}: identical to images/{group[1][1].name}, {where}"


def _box_sizes(collection: Collection, size: int, name: str) -> Iterator[str]:
    sides = np.concatenate([example.boxes[:, 3:] for example in itertools.chain(*collection.splits.values())]) * size
    if not len(sides):
        return
    longer = np.percentile(sides.max(1), [5, 50, 95])
    yield (
        f"longer side of boxes at {size} pixels: {longer[0]:.0f}, {longer[1]:.0f}, {longer[2]:.0f} "
        "(5th, 50th, 95th percentile)"
    )
    anchors = np.array(variant(name).anchors).reshape(-1, 2)
    ratio = sides[:, None] / anchors
    share = (np.maximum(ratio, 1 / ratio).max(2) < MOST_RATIO).any(1).mean()
    advice = "" if share >= _MATCHING_BOXES else "; choose a different --size"
    yield f"{share:.1%} of the boxes match an anchor of {name}{advice}"

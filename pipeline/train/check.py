"""What is in a set of labeled images, and what is wrong with it, before hours are spent on it."""

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

_FITTING = 0.98  # share of the boxes that should have an anchor


def check(
    folder: Path,
    mapping: Mapping[str, str] | None = None,
    *,
    size: int,
    name: str = "yolov7-tiny",
    strict: bool = False,
) -> Iterator[str]:
    """Lines on a folder: counts, sizes of boxes, and every fault that can be seen without training.

    Parameters
    ----------
    size : pixels, longer side of what the network is to see
    name : the variant whose anchors are to fit
    strict : a fault is an error, once all of them are told

    Raises
    ------
    SourceError : the folder can not be read at all
    """
    collection, _ = look_through(read_collection(folder, mapping))
    yield from collection.summary()
    yield from _sizes(collection, size, name)
    faults = [*collection.faults, *check_classes(collection)]
    yield f"{len(faults):,} faults" + (":" if faults else "")
    yield from (f"  {fault}" for fault in faults)
    if strict:
        refuse(faults)


def refuse(faults: Sequence[str]) -> None:
    """Raise SourceError where there is a fault."""
    if faults:
        raise SourceError(f"{len(faults):,} faults in the set, and --strict allows none: mend them or leave it out")


def look_through(collection: Collection) -> tuple[Collection, dict[str, Floats]]:
    """Open every image of a collection.

    Returns
    -------
    the collection without images that can not be decoded, these and images that are there twice among its faults;
    and width and height (n, 2) of the others, by split
    """
    sizes: dict[str, tuple[int, int]] = {}
    alike: dict[bytes, list[tuple[str, Example]]] = defaultdict(list)
    for split, examples in collection.splits.items():
        for one in examples:
            content = one.path.read_bytes()
            pixels = decode(content, max_pixels=MAX_PIXELS).pixels
            if pixels is not None:
                sizes[one.name] = pixels.shape[1], pixels.shape[0]
            alike[hashlib.sha256(content).digest()].append((split, one))
    broken = {one.name for one in itertools.chain(*collection.splits.values())} - sizes.keys()
    if broken:
        collection = without(collection, broken, "can not be decoded, left out")
    collection = replace(collection, faults=(*collection.faults, *_twice(alike.values())))
    by_split = {split: [sizes[one.name] for one in some] for split, some in collection.splits.items()}
    return collection, {split: np.array(some, dtype=np.float64).reshape(-1, 2) for split, some in by_split.items()}


def _twice(alike: Iterable[list[tuple[str, Example]]]) -> Iterator[str]:
    """Images that are there twice, worst in two splits."""
    for some in alike:
        if len(some) > 1:
            splits = sorted({split for split, _ in some})
            where = f"in {' and '.join(splits)}" + (": what is learned is tested" if len(splits) > 1 else "")
            yield f"images/{some[0][1].name}: the same as images/{some[1][1].name}, {where}"


def _sizes(collection: Collection, size: int, name: str) -> Iterator[str]:
    sides = np.concatenate([one.boxes[:, 3:] for one in itertools.chain(*collection.splits.values())]) * size
    if not len(sides):
        return
    longer = np.percentile(sides.max(1), [5, 50, 95])
    yield "longer side of a box at {} pixels: {:.0f}, {:.0f}, {:.0f} (5, 50, 95 %)".format(size, *longer)
    anchors = np.array(variant(name).anchors).reshape(-1, 2)
    ratio = sides[:, None] / anchors
    fit = (np.maximum(ratio, 1 / ratio).max(2) < MOST_RATIO).any(1).mean()
    yield f"{fit:.1%} of the boxes have an anchor of {name}" + (
        "" if fit >= _FITTING else ": another --size would fit better"
    )

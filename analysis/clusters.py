"""Images by ride and day: what a bootstrap of whole clusters needs to see of them.

Images of one ride follow one another through the same streets, so they are not independent. A cluster's images count
through their cells, area and class, just as single ones do: a table of how many images each ride has in each cell
stands for all of them.

Beside the counts stand sums of the station-adjusted prediction in whole steps of `PROBABILITY_STEP`: whole numbers, so
that neither partitions nor order change a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.config import Estimate
from pipeline.hashing import text_keys
from pipeline.stages import Shard, Stage
from pipeline.store import Record, Study, fingerprint

PARTS_FOLDER = "staging/clustered"
FOLDER = "staging/clusters"
# Parts of a file of PARTS_FOLDER, in this order. A part of what the settings do not ask for is empty.
PARTS = ("ride", "day", "image")

_PART = pa.schema(
    [
        pa.field("cluster", pa.uint64(), nullable=False),  # key of the ride, number of the day, or key of the image
        pa.field("cell", pa.int32(), nullable=False),  # twice the position of the area, and 1 more if positive
        pa.field("images", pa.int32(), nullable=False),
        pa.field("steps", pa.int64(), nullable=False),  # sum of the station-adjusted prediction
    ]
)
_NAMES = {"ride": "ride_id", "image": "image_ref"}
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Clusters:
    """All images by cell and cluster.

    Attributes
    ----------
    number : clusters, also those whose images all lie outside every area
    cell, cluster, images, steps : (n,) sorted by cell; a cell and cluster stand once
    """

    number: int
    cell: npt.NDArray[np.int32]
    cluster: npt.NDArray[np.int32]
    images: npt.NDArray[np.int32]
    steps: npt.NDArray[np.int64]


def parts_wanted(rules: Estimate) -> tuple[str, ...]:
    """Parts that a study's ways of resampling need; for the class of single images the cells are enough."""
    wanted: list[str] = [unit for unit in ("ride", "day") if unit in rules.bootstrap]
    if "image" in rules.bootstrap and "station_adjusted" in rules.predictions:
        wanted.append("image")
    return tuple(wanted)


def part_columns(parts: tuple[str, ...]) -> list[str]:
    """Columns of annotated images that `parts_of` needs beside those of the cells."""
    return [column for part, column in _NAMES.items() if part in parts]


def parts_of(
    images: pd.DataFrame,
    areas: pd.Index[str],
    positive: npt.NDArray[np.bool_],
    steps: npt.NDArray[np.int64],
    wanted: tuple[str, ...],
) -> list[pa.RecordBatch]:
    """The parts of one file of analysed images, in the order of `PARTS`.

    Parameters
    ----------
    areas : codes of all areas; an image outside every one has the position after the last
    positive, steps : (n,) class, and prediction in steps, of each image
    """
    position = areas.get_indexer(pd.Index(images["area"]))
    cell = (2 * np.where(position < 0, len(areas), position) + positive).astype(np.int32)
    batches = []
    for part in PARTS:
        if part not in wanted:
            batches.append(pa.RecordBatch.from_pylist([], schema=_PART))
            continue
        rows = pd.DataFrame({"cluster": _keys(images, part), "cell": cell, "images": 1, "steps": steps})
        if part != "image":
            rows = rows.groupby(["cluster", "cell"], as_index=False).sum()
        batches.append(pa.RecordBatch.from_pandas(rows, schema=_PART, preserve_index=False))
    return batches


def _keys(images: pd.DataFrame, part: str) -> npt.NDArray[np.uint64]:
    if part == "day":
        local = images["captured_local"].to_numpy().astype("datetime64[ms]").astype(np.int64)
        return (local // _DAY_MS).astype(np.uint64)
    return text_keys(pa.array(images[_NAMES[part]]))


def gather(parts: list[pa.RecordBatch]) -> tuple[pa.RecordBatch, int]:
    """All images by cell and cluster, sorted by both, and how many clusters there are; they are numbered by key."""
    cluster, cell, images, steps = (
        np.concatenate([part.column(name).to_numpy() for part in parts]) for name in _PART.names
    )
    keys, number = np.unique(cluster, return_inverse=True)
    place = cell.astype(np.int64) * len(keys) + number
    order = np.argsort(place, kind="stable")
    firsts = np.flatnonzero(np.diff(place[order], prepend=-1))
    chosen = order[firsts]
    columns = [
        number[chosen].astype(np.uint64),
        cell[chosen],
        *(np.add.reduceat(values[order], firsts) if len(firsts) else values for values in (images, steps)),
    ]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=_PART), len(keys)


# The stage.


def plan_clusters(study: Study) -> list[Shard]:
    """One shard a unit, made from all files of cells."""
    made_from = fingerprint([record.fingerprint for record in study.records("cells").values()])
    units = [part for part in parts_wanted(study.settings.estimate) if part != "image"]
    return [Shard(unit, {"unit": unit}, made_from=made_from) for unit in units]


def process_clusters(study: Study, shard: Shard) -> Record:
    """Write all images by cell and cluster of one unit."""
    parts = list(_read_parts(study, shard.work["unit"]))
    rows = sum(len(part) for part in parts)
    made, number = gather(parts)
    file = study.write_parts([made], _PART, f"{FOLDER}/{shard.name}.arrow")
    return Record("", "", (file,), rows, len(made), facts={"clusters": number})


def load_clusters(study: Study, unit: str) -> Clusters:
    """All images by cell and cluster of a unit, ride or day."""
    record = study.records("clusters")[unit]
    with study.open_parts(record.files[0]) as reader:
        part = reader.get_batch(0)
    cluster, cell, images, steps = (part.column(name).to_numpy() for name in _PART.names)
    return Clusters(record.facts["clusters"], cell, cluster.astype(np.int32), images, steps)


def read_images(
    study: Study,
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Key, position of the area and prediction in steps of every analysed image in an area, file by file."""
    areas = study.record("layers").facts.get("areas")
    for part in _read_parts(study, "image"):
        area = part.column("cell").to_numpy() // 2
        inside = area < areas
        yield part.column("cluster").to_numpy()[inside], area[inside], part.column("steps").to_numpy()[inside]


def _read_parts(study: Study, part: str) -> Iterator[pa.RecordBatch]:
    for record in study.records("cells").values():
        for file in record.files_in(PARTS_FOLDER):
            with study.open_parts(file) as reader:
                yield reader.get_batch(PARTS.index(part))


CLUSTERS = Stage("clusters", unit="files", folders=(FOLDER,), plan=plan_clusters, process=process_clusters)

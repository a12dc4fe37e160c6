"""Images by ride and day: what a bootstrap of whole clusters needs to see of them.

Images of one ride follow one another through the same streets, so they are not independent. A cluster's images count
through their cells, area and class, just as single ones do: a table of how many images each ride has in each cell
stands for all of them.

Beside the counts stand sums of the station-adjusted prediction in whole steps of `PROBABILITY_STEP`: whole numbers, so
that neither partitions nor order change a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import sparse

from patrolscope.analysis.stages.calibrate import Adjusted, load_calibration
from patrolscope.analysis.stages.cells import (
    COLUMNS,
    PROBABILITY_STEP,
    adjusted_probability,
    analyzed,
    annotated_shards,
)
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.hashing import text_keys
from patrolscope.pipeline.study.config import Estimate
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint

PARTS_FOLDER = "staging/clustered"
FOLDER = "staging/clusters"

_PART = pa.schema(
    [
        pa.field("cluster", pa.uint64(), nullable=False),  # key of the ride, number of the day, or key of the image
        pa.field("cell", pa.int32(), nullable=False),  # twice the position of the area, and 1 more if positive
        pa.field("images", pa.int32(), nullable=False),
        pa.field("steps", pa.int64(), nullable=False),  # sum of the station-adjusted prediction
    ]
)
_KEYS = {"ride": "ride_id", "image": "image_ref"}
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class UnitCounts:
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


def units_wanted(rules: Estimate) -> list[str]:
    """Units of which a study needs the rows of its images; of the class of single images, cells say enough."""
    wanted: list[str] = [unit for unit in ("ride", "day") if unit in rules.bootstrap]
    if "image" in rules.bootstrap and "station_adjusted" in rules.predictions:
        wanted.append("image")
    return wanted


def part_of(
    images: pd.DataFrame, unit: str, areas: pd.Index[str], threshold: float, adjusted: Adjusted | None
) -> pa.RecordBatch:
    """One file of analyzed images by cell and cluster of a unit; of the unit image, a row an image.

    Parameters
    ----------
    areas : codes of all areas; an image outside every one has the position after the last
    """
    position = areas.get_indexer(pd.Index(images["area"]))
    cell = 2 * np.where(position < 0, len(areas), position) + (images["conf"] > threshold).to_numpy()
    steps = np.round(np.nan_to_num(adjusted_probability(images, adjusted)) / PROBABILITY_STEP).astype(np.int64)
    rows = pd.DataFrame({"cluster": _keys(images, unit), "cell": cell.astype(np.int32), "images": 1, "steps": steps})
    if unit != "image":
        rows = rows.groupby(["cluster", "cell"], as_index=False).sum()
    return pa.RecordBatch.from_pandas(rows, schema=_PART, preserve_index=False)


def _keys(images: pd.DataFrame, unit: str) -> npt.NDArray[np.uint64]:
    if unit == "day":
        local = images["captured_local"].to_numpy().astype("datetime64[ms]").astype(np.int64)
        return (local // _DAY_MS).astype(np.uint64)
    return text_keys(pa.array(images[_KEYS[unit]]))


def gather(parts: list[pa.RecordBatch]) -> tuple[pa.RecordBatch, int]:
    """All images by cell and cluster, sorted by both, and how many clusters there are; they are numbered by key."""
    together = pa.Table.from_batches(parts, schema=_PART)
    cluster, cell, images, steps = (column.to_numpy() for column in together.columns)
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


def clusters_touching(clusters: UnitCounts, weights: sparse.csr_array) -> npt.NDArray[np.int64]:
    """How many clusters have an image where someone of a group lives, (groups,).

    Parameters
    ----------
    weights : (groups, areas) persons
    """
    areas = weights.shape[1]
    inside = clusters.cell < 2 * areas
    at = clusters.cluster[inside], clusters.cell[inside] // 2
    images = sparse.csr_array((clusters.images[inside], at), shape=(clusters.number, areas))
    return np.diff((images @ (weights > 0).T).tocsc().indptr)


# The stages: parts of one file and unit, so that another unit leaves those there as they are; then all of a unit.


def plan_parts(study: Study) -> list[Shard]:
    """One shard a unit and file of annotated/."""
    rules = study.settings.estimate
    made_from = [study.record(stage).fingerprint for stage in ("calibrate", "layers")]
    work = {"rules": [rules.split, str(rules.first_day), rules.threshold], "made_from": made_from}
    return [
        replace(shard, name=f"{unit}-{shard.name}")
        for unit in units_wanted(rules)
        for shard in annotated_shards(study, {"unit": unit, **work})
    ]


def process_parts(study: Study, shard: Shard) -> Output:
    """Count one file of annotated images by cell and cluster; the stage of cells accounts for what is not analyzed."""
    unit, file, rules = shard.work["unit"], shard.work["file"], study.settings.estimate
    images = study.read(file, columns=[*COLUMNS, *([_KEYS[unit]] if unit in _KEYS else [])])
    images = analyzed(images, rules, Ledger("clustered images", len(images)))
    areas = pd.Index(study.read(AREAS_FILE, columns=["area"])["area"])
    _, adjusted, _ = load_calibration(study)
    part = part_of(images, unit, areas, rules.threshold, adjusted)
    name = file.removeprefix("annotated/").removesuffix(".parquet")
    written = study.write_parts([part], _PART, f"{PARTS_FOLDER}/{unit}/{name}.arrow")
    return Output((written,), len(images), len(part), facts={"unit": unit})


def plan_clusters(study: Study) -> list[Shard]:
    """One shard a unit, made from all its parts."""
    return [
        Shard(unit, {"unit": unit}, made_from=fingerprint([record.fingerprint for record in _parts(study, unit)]))
        for unit in units_wanted(study.settings.estimate)
        if unit != "image"
    ]


def process_clusters(study: Study, shard: Shard) -> Output:
    """Write all images by cell and cluster of one unit."""
    parts = list(_read_parts(study, shard.work["unit"]))
    made, number = gather(parts)
    file = study.write_parts([made], _PART, f"{FOLDER}/{shard.name}.arrow")
    return Output((file,), sum(map(len, parts)), len(made), facts={"clusters": number})


def made_from_unit(study: Study, unit: str) -> list[str]:
    """Fingerprints of what `load_clusters`, or of the unit image `read_images`, gives."""
    if unit == "image":
        return [record.fingerprint for record in _parts(study, unit)]
    return [_gathered(study, unit).fingerprint]


def load_clusters(study: Study, unit: str) -> UnitCounts:
    """All images by cell and cluster of a unit, ride or day."""
    record = _gathered(study, unit)
    with study.open_parts(record.files[0]) as reader:
        part = reader.get_batch(0)
    cluster, cell, images, steps = (part.column(name).to_numpy() for name in _PART.names)
    return UnitCounts(record.facts["clusters"], cell, cluster.astype(np.int32), images, steps)


def read_images(
    study: Study,
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Key, position of the area and prediction in steps of every analyzed image in an area, file by file."""
    areas = study.record("layers").facts.get("areas")
    for part in _read_parts(study, "image"):
        area = part.column("cell").to_numpy() // 2
        inside = area < areas
        yield part.column("cluster").to_numpy()[inside], area[inside], part.column("steps").to_numpy()[inside]


def _gathered(study: Study, unit: str) -> Record:
    """The record of all images by cell and cluster of a unit.

    Raises
    ------
    StageNotRunError : they are not there
    """
    records = study.records("clusters")
    if unit not in records:
        raise StageNotRunError(f"{study.root} has no images by {unit} yet: run `patrolscope run --study {study.root}`")
    return records[unit]


def _parts(study: Study, unit: str) -> list[Record]:
    return [record for record in study.records("clustered").values() if record.facts["unit"] == unit]


def _read_parts(study: Study, unit: str) -> Iterator[pa.RecordBatch]:
    for record in _parts(study, unit):
        with study.open_parts(record.files[0]) as reader:
            yield reader.get_batch(0)


PARTS = Stage("clustered", unit="rows", folders=(PARTS_FOLDER,), plan=plan_parts, process=process_parts)
CLUSTERS = Stage("clusters", unit="files", folders=(FOLDER,), plan=plan_clusters, process=process_clusters)

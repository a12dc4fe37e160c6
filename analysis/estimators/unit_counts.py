"""Unit counts: images per resampling unit, area, and class.

Images of one ride follow each other along the same streets, so they are not independent. A ride or day enters a
replicate with its images per area and class. The sums of station-adjusted probabilities beside them are whole
multiples of `PROBABILITY_STEP`, so neither partitions nor order change a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import sparse

from patrolscope.analysis.estimators.area_class_counts import PROBABILITY_STEP
from patrolscope.pipeline.hashing import text_keys

Floats = npt.NDArray[np.float64]

UNITS = ("ride", "day")  # resampling units with counts; areas and single images follow from area-class counts
SCHEMA = pa.schema(
    [
        pa.field("unit", pa.uint64(), nullable=False),  # key of the ride or image, or number of the day
        pa.field("area_class", pa.int32(), nullable=False),  # twice the position of the area, plus 1 if positive
        pa.field("images", pa.int32(), nullable=False),
        pa.field("steps", pa.int64(), nullable=False),  # sum of station-adjusted probabilities
    ]
)
# Resampling units with images of a group: with fewer, it has no interval. Of 4 units, 1 draw in 64 has a single one.
UNITS_FOR_AN_INTERVAL = 5
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class UnitCounts:
    """Images per resampling unit, area, and class.

    Attributes
    ----------
    number : int
        Resampling units, including those whose images all lie outside the areas.
    area_class, unit : ndarray of int32, shape (n,)
        Sorted by area class; each pair occurs once.
    images : ndarray of int32, shape (n,)
    steps : ndarray of int64, shape (n,)
        Sum of station-adjusted probabilities, in multiples of `PROBABILITY_STEP`.
    """

    number: int
    area_class: npt.NDArray[np.int32]
    unit: npt.NDArray[np.int32]
    images: npt.NDArray[np.int32]
    steps: npt.NDArray[np.int64]


def probability_steps(probability: Floats) -> npt.NDArray[np.int64]:
    """Return probabilities in multiples of `PROBABILITY_STEP`; a missing one counts as 0."""
    return np.round(np.nan_to_num(probability) / PROBABILITY_STEP).astype(np.int64)


def unit_keys(images: pd.DataFrame, unit: str) -> npt.NDArray[np.uint64]:
    """Return the key of the resampling unit of each image, shape (n,).

    Parameters
    ----------
    images : DataFrame
        captured_local for days, ride_id for rides, image_ref for images.
    unit : str
        ride, day, or image.
    """
    if unit == "day":
        local = images["captured_local"].to_numpy().astype("datetime64[ms]").astype(np.int64)
        return (local // _DAY_MS).astype(np.uint64)
    return text_keys(pa.array(images["ride_id" if unit == "ride" else "image_ref"]))


def count_units(
    keys: npt.NDArray[np.uint64], area_class: npt.NDArray[np.int32], steps: npt.NDArray[np.int64]
) -> pa.RecordBatch:
    """Count the analyzed images of one file by resampling unit, area, and class.

    Parameters
    ----------
    keys : ndarray of uint64, shape (n,)
        From `unit_keys`.
    area_class : ndarray of int32, shape (n,)
        From `area_classes`.
    steps : ndarray of int64, shape (n,)
        From `probability_steps`.

    Returns
    -------
    RecordBatch
        `SCHEMA`, one row per unit and area class.
    """
    number, units = pd.factorize(keys)
    classes = int(area_class.max(initial=-1)) + 1
    codes, place = np.unique(number * classes + area_class, return_inverse=True)
    unit, area_class = np.divmod(codes, max(1, classes))
    # Sums of whole numbers below 2**53 are exact in float64.
    sums = np.bincount(place, steps, minlength=len(codes))
    return _batch(units[unit], area_class, np.bincount(place, minlength=len(codes)), sums)


def single_images(
    keys: npt.NDArray[np.uint64], area_class: npt.NDArray[np.int32], steps: npt.NDArray[np.int64]
) -> pa.RecordBatch:
    """Return one row of `SCHEMA` per image; the parameters are those of `count_units`."""
    return _batch(keys, area_class, np.ones(len(keys)), steps)


def _batch(*columns: npt.NDArray[np.generic]) -> pa.RecordBatch:
    typed = [
        pa.array(values.astype(field.type.to_pandas_dtype())) for values, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(typed, schema=SCHEMA)


def add_unit_counts(parts: list[pa.RecordBatch]) -> tuple[pa.RecordBatch, int]:
    """Add up the unit counts of all files.

    Returns
    -------
    counts : RecordBatch
        `SCHEMA`, sorted by area class and unit. Units are numbered in the order of their keys.
    number : int
        Resampling units.
    """
    together = pa.Table.from_batches(parts, schema=SCHEMA)
    unit, area_class, images, steps = (column.to_numpy() for column in together.columns)
    keys, number = np.unique(unit, return_inverse=True)
    place = area_class.astype(np.int64) * len(keys) + number
    order = np.argsort(place, kind="stable")
    firsts = np.flatnonzero(np.diff(place[order], prepend=-1))
    chosen = order[firsts]
    sums = (np.add.reduceat(values[order], firsts) if len(firsts) else values for values in (images, steps))
    return _batch(number[chosen], area_class[chosen], *sums), len(keys)


def units_touching(counts: UnitCounts, weights: sparse.csr_array) -> npt.NDArray[np.int64]:
    """Count the resampling units with an image in an area where the group has residents, shape (n_groups,).

    Parameters
    ----------
    counts : UnitCounts
    weights : csr_array, shape (n_groups, n_areas)
        Residents.
    """
    areas = weights.shape[1]
    inside = counts.area_class < 2 * areas
    at = counts.unit[inside], counts.area_class[inside] // 2
    images = sparse.csr_array((counts.images[inside], at), shape=(counts.number, areas))
    return np.diff((images @ (weights > 0).T).tocsc().indptr)

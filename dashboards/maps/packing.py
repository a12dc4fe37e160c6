"""File format of the dashboards' images: 14 bytes per image, ordered by local day and by tile of the city."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from patrolscope.dashboards.maps.areas import Box

# Tiles along each side. A view of the city reads all tiles, one of a street about 20, each 1/16,384 of the city.
TILES = 128
# Scores are stored as multiples of 1 / SCORE_STEPS, rounded up; images without a box have 0. A threshold that is such
# a multiple is exact.
SCORE_STEPS = 65_535
# First bits of the slot (hour and light) and of the area in an image's code. Bit 0 is set for positive images.
SLOT_BIT, AREA_BIT = 1, 7
SCHEMA = pa.schema(
    [
        ("day", pa.timestamp("s")),
        ("x_ft", pa.large_list(pa.float32())),  # from the city's western edge
        ("y_ft", pa.large_list(pa.float32())),  # from its southern edge
        ("code", pa.large_list(pa.uint32())),  # positive, night, hour, area
        ("score", pa.large_list(pa.uint16())),
        ("starts", pa.large_list(pa.int64())),  # first image of each tile, row by row, and the number of images
    ]
)


def pack(images: pd.DataFrame, areas: pd.Index[str], box: Box, threshold: float) -> pa.RecordBatch:
    """Pack analyzed images, one row per local day.

    Parameters
    ----------
    images : DataFrame
        Columns x_ft, y_ft, area, hour, nighttime, conf (missing counts as 0), captured_local.
    areas : Index
        Codes of all areas. Images outside all areas get the number after the last one.
    box : tuple of float
        West, south, east, north of the city in feet.
    threshold : float
        Images with a higher score are positive.

    Returns
    -------
    pyarrow.RecordBatch
        Rows of `SCHEMA`.
    """
    conf = np.nan_to_num(images["conf"].to_numpy(dtype=np.float64))
    area = areas.get_indexer(pd.Index(images["area"]))
    code = np.where(area < 0, len(areas), area).astype(np.uint32) << AREA_BIT
    slot = images["hour"].to_numpy(dtype=np.uint32) * 2 + images["nighttime"].to_numpy(dtype=np.uint32)
    code |= (slot << SLOT_BIT) | (conf > threshold)
    x_ft = (images["x_ft"].to_numpy() - box[0]).astype(np.float32)
    y_ft = (images["y_ft"].to_numpy() - box[1]).astype(np.float32)
    tile = tile_of(y_ft, box[3] - box[1]) * TILES + tile_of(x_ft, box[2] - box[0])
    day, days = pd.factorize(images["captured_local"].dt.normalize(), sort=True)
    # A stable order: files depend on the partitioning of the images, counts do not.
    order = np.argsort(day * TILES**2 + tile, kind="stable")
    ends = np.searchsorted(day[order], np.arange(len(days) + 1))
    score = np.ceil(conf * SCORE_STEPS).astype(np.uint16)
    lists = [_lists(values[order], ends) for values in (x_ft, y_ft, code, score)]
    steps = np.arange(TILES**2 + 1)
    starts = [np.searchsorted(tile[order[a:b]], steps) for a, b in itertools.pairwise(ends)]
    flat = np.concatenate([*starts, np.empty(0, np.int64)])
    lists.append(_lists(flat, np.arange(len(days) + 1) * len(steps)))
    return pa.RecordBatch.from_arrays([pa.array(days.to_numpy(), pa.timestamp("s")), *lists], schema=SCHEMA)


def unpack(column: pa.LargeListArray) -> list[npt.NDArray[Any]]:
    """Return the lists of a column without copying them."""
    values, ends = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(ends)]


def tile_of(along_ft: npt.ArrayLike, side_ft: float) -> npt.NDArray[np.int64]:
    """Return the row or column of tiles at a distance from the city's edge; the outermost tile beyond the city."""
    tile = np.floor(np.asarray(along_ft, dtype=np.float64) * (TILES / side_ft))
    return tile.clip(0, TILES - 1).astype(np.int64)


def _lists(values: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))

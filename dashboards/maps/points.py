"""Every analyzed image as 14 bytes, in an order that makes any part of the map, and any count, one short pass.

A file holds its images by local day, and those of a day by tile of the city: a view reads the tiles that it shows. The
columns are mapped from disk as they are.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numba as nb
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from patrolscope.analysis.stages.counts import analyzed, annotated_shards
from patrolscope.dashboards.maps.filters import HOURS, LEVELS, Filter
from patrolscope.dashboards.maps.merged import Merged
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.geography.layers import AREAS_FILE, CENSUS_FILE
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study

FOLDER = "explore/points"
_COLUMNS = ["x_ft", "y_ft", "area", "hour", "nighttime", "conf", "processed", "split", "captured_local"]
# Tiles along each side. A view of the whole city reads all, one of a street some 20, each a 16,000th of the images.
TILES = 128
# Scores are kept as their share of this, rounded up, none as 0: a threshold that is a multiple of it is exact.
SCORE_STEPS = 65_535
_SCREEN_PIXELS = 2_500_000
_POSITIVE, _SLOT, _AREA = 0, 1, 7  # first bits of an image's code
_SCHEMA = pa.schema(
    [
        ("day", pa.timestamp("s")),
        ("x_ft", pa.large_list(pa.float32())),  # from the city's western edge
        ("y_ft", pa.large_list(pa.float32())),  # from its southern edge
        ("code", pa.large_list(pa.uint32())),  # positive, night, hour, area
        ("score", pa.large_list(pa.uint16())),
        ("starts", pa.large_list(pa.int64())),  # of each tile, row by row, and the end
    ]
)

Axis = Literal["area", "day", "hour"]
Box = tuple[float, float, float, float]
Grid = npt.NDArray[np.uint32]


@lru_cache(maxsize=4)
def load_ground(study: Study, _made_from: str) -> tuple[pd.Index[str], Box]:
    """Codes of the areas, and west, south, east, north of them all in feet; `_made_from` is their fingerprint."""
    from patrolscope.analysis.estimators.raster import in_feet

    areas = in_feet(study.read(AREAS_FILE, geometry=True)[["area", "geometry"]], study.settings.city.crs)
    west, south, east, north = map(float, areas.total_bounds)
    return pd.Index(areas["area"]), (west, south, east, north)


# The stage.


def pack(images: pd.DataFrame, areas: pd.Index[str], box: Box, threshold: float) -> pa.RecordBatch:
    """Analyzed images as a file holds them, a row a local day.

    Parameters
    ----------
    images : x_ft, y_ft, area, hour, nighttime, conf (missing counts as 0), captured_local
    areas : all areas; an image outside has the number after the last one
    box : west, south, east, north of the city, feet
    """
    conf = np.nan_to_num(images["conf"].to_numpy(dtype=np.float64))
    area = areas.get_indexer(pd.Index(images["area"]))
    code = np.where(area < 0, len(areas), area).astype(np.uint32) << _AREA
    slot = images["hour"].to_numpy(dtype=np.uint32) * 2 + images["nighttime"].to_numpy(dtype=np.uint32)
    code |= (slot << _SLOT) | (conf > threshold)
    x_ft = (images["x_ft"].to_numpy() - box[0]).astype(np.float32)
    y_ft = (images["y_ft"].to_numpy() - box[1]).astype(np.float32)
    tile = tile_of(y_ft, box[3] - box[1]) * TILES + tile_of(x_ft, box[2] - box[0])
    day, days = pd.factorize(images["captured_local"].dt.normalize(), sort=True)
    # Ties in any order would make another file of other slices; pictures and counts do not mind.
    order = np.argsort(day * TILES**2 + tile, kind="stable")
    ends = np.searchsorted(day[order], np.arange(len(days) + 1))
    score = np.ceil(conf * SCORE_STEPS).astype(np.uint16)
    lists = [_lists(values[order], ends) for values in (x_ft, y_ft, code, score)]
    steps = np.arange(TILES**2 + 1)
    starts = [np.searchsorted(tile[order[a:b]], steps) for a, b in itertools.pairwise(ends)]
    flat = np.concatenate([*starts, np.empty(0, np.int64)])
    lists.append(_lists(flat, np.arange(len(days) + 1) * len(steps)))
    return pa.RecordBatch.from_arrays([pa.array(days.to_numpy(), pa.timestamp("s")), *lists], schema=_SCHEMA)


def _lists(values: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))


def tile_of(along_ft: npt.ArrayLike, side_ft: float) -> npt.NDArray[np.int64]:
    """Row or column of tiles; beyond the city's edge the last one."""
    place = np.floor(np.asarray(along_ft, dtype=np.float64) * (TILES / side_ft))
    return place.clip(0, TILES - 1).astype(np.int64)


def plan_points(study: Study) -> list[Shard]:
    """One shard a file of annotated/.

    Raises
    ------
    StageNotRunError : the study has no annotated images
    """
    study.files("annotated")
    rules = study.settings.estimate
    work = {
        "rules": [rules.split, str(rules.first_day), rules.threshold],
        "layers": study.record("layers").fingerprint,
    }
    return annotated_shards(study, work)


def process_points(study: Study, shard: Shard) -> Output:
    """Pack one file of annotated images."""
    rules = study.settings.estimate
    images = study.read(shard.work["file"], columns=_COLUMNS)
    ledger = Ledger("images of the dashboards", len(images))
    images = analyzed(images, rules, ledger)
    areas, box = load_ground(study, shard.work["layers"])
    batch = pack(images, areas, box, rules.threshold)
    name = shard.work["file"].replace("annotated/", f"{FOLDER}/", 1).removesuffix(".parquet") + ".arrow"
    file = study.write_parts([batch], _SCHEMA, name, compression=None)
    return Output((file,), ledger.rows_in, len(images), (ledger.close(len(images)),))


POINTS = Stage("points", unit="rows", folders=("explore",), plan=plan_points, process=process_points)


# What pages read.


@dataclass(frozen=True)
class Window:
    """A rectangle of the map and the pixels that show it, in feet from the city's south-western corner."""

    west_ft: float
    south_ft: float
    east_ft: float
    north_ft: float
    columns: int
    rows: int

    @property
    def pixel_ft(self) -> float:
        """Width of a pixel."""
        return (self.east_ft - self.west_ft) / self.columns

    @property
    def is_screen(self) -> bool:
        """Whether it is no larger than a screen: what is made of a poster's bands is not kept."""
        return self.columns * self.rows <= _SCREEN_PIXELS


@dataclass(frozen=True)
class _Block:
    """Images of one local day in one file."""

    day: int  # place among the days
    x_ft: npt.NDArray[np.float32]
    y_ft: npt.NDArray[np.float32]
    code: npt.NDArray[np.uint32]
    score: npt.NDArray[np.uint16]
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Points:
    """All analyzed images of a study.

    Attributes
    ----------
    days : local days with images, rising
    areas : one row an area, in the order of the study's own file: zone and the place at each level
    box : west, south, east, north of the city, feet in its projection
    """

    days: pd.DatetimeIndex
    areas: pd.DataFrame
    box: Box
    blocks: tuple[_Block, ...]

    @classmethod
    def load(cls, study: Study) -> Points:
        """Map the files of a study.

        Raises
        ------
        StageNotRunError : the stage has not been run
        """
        records = study.records(POINTS.name)
        if not records:
            raise StageNotRunError(
                f"{study.root} has no points for dashboards yet: run `patrolscope dashboard --study ...`"
            )
        batches = [batch for record in records.values() for file in record.files for batch in study.map_parts(file)]
        codes, box = load_ground(study, study.record("layers").fingerprint)
        return cls.of(batches, read_levels(study, codes), box)

    @classmethod
    def of(cls, batches: Sequence[pa.RecordBatch], areas: pd.DataFrame, box: Box) -> Points:
        """Points of batches that `pack` made, in any order."""
        rows = [
            (day, *columns)
            for batch in batches
            for day, *columns in zip(batch["day"].to_pylist(), *map(_parts, batch.columns[1:]), strict=True)
        ]
        days = pd.DatetimeIndex(sorted({day for day, *_ in rows}))
        places = {day: place for place, day in enumerate(days.to_pydatetime())}
        return cls(days, areas, box, tuple(_Block(places[day], *columns) for day, *columns in rows))

    @cached_property
    def images(self) -> int:
        """Number of all images."""
        return sum(len(block.code) for block in self.blocks)

    @cached_property
    def whole(self) -> tuple[float, float]:
        """Width and height of the city, feet."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @cached_property
    def merged(self) -> Merged:
        """The same images by cells of a few feet: 22 million take two to four seconds, 13 bytes each."""
        return Merged.of(self.blocks, TILES, self.whole, _threads())

    def raster(self, window: Window, keep: Filter) -> tuple[Grid, Grid]:
        """Images and positives of each pixel, (rows, columns) each, the southernmost row first.

        The pixels are those of Datashader: a point on a shared edge belongs to the one east or north of it, one on the
        eastern or northern edge of the window to the last. Where nothing is filtered and pixels are wide, an image can
        be up to 1 / 12 of one from where it is counted: see `Merged`.
        """
        first, last = tile_of([window.west_ft, window.east_ft], self.whole[0])
        low, high = tile_of([window.south_ft, window.north_ft], self.whole[1])
        scale = window.columns / (window.east_ft - window.west_ft), window.rows / (window.north_ft - window.south_ft)
        view = np.array([window.west_ft, window.east_ft, window.south_ft, window.north_ft, *scale])
        kept, slots, days = keep.area_mask(self.areas), keep.slot_mask(), keep.day_mask(self.days)

        def draw(blocks: Sequence[_Block]) -> npt.NDArray[np.uint32]:
            made = np.zeros((2, window.rows, window.columns), np.uint32)
            for block in blocks:
                place = (block.x_ft, block.y_ft, block.code, block.starts)
                _draw(*place, first, last, low, high, view, slots, kept, made)
            return made

        def add(lines: range) -> npt.NDArray[np.uint32]:
            made = np.zeros((2, window.rows, window.columns), np.uint32)
            merged.draw(view, (first, last, low, high), lines, made)
            return made

        if kept.all() and slots.all() and days.all():
            merged = self.merged
            images, positives = _sum(_threads().map(add, [range(low, high + 1)[at::_CORES] for at in range(_CORES)]))
        else:
            images, positives = self._spread(draw, keep)
        return images, positives

    def count(self, keep: Filter, *, by: Sequence[Axis], threshold: float | None = None) -> npt.NDArray[np.int64]:
        """Images that are not positive, and positive ones.

        Parameters
        ----------
        by : axes of the result, in order
        threshold : a positive image has a score above it; it is rounded to a multiple of 1 / `SCORE_STEPS`. None: the
            study's own, exactly

        Returns
        -------
        (..., 2); an axis of areas has one place more, for images outside every area
        """
        sizes = {"area": len(self.areas) + 1, "day": len(self.days), "hour": HOURS}
        shape = tuple(sizes[axis] for axis in by)
        strides = {axis: 2 * int(np.prod(shape[at + 1 :])) for at, axis in enumerate(by)}
        above = -1 if threshold is None else round(threshold * SCORE_STEPS)
        kept, slots = keep.area_mask(self.areas), keep.slot_mask()
        areas, hours = strides.get("area", 0), strides.get("hour", 0)

        def add(blocks: Sequence[_Block]) -> npt.NDArray[np.int64]:
            made = np.zeros(2 * int(np.prod(shape)), np.int64)
            for block in blocks:
                first = strides.get("day", 0) * block.day
                _count(block.code, block.score, above, slots, kept, first, areas, hours, made)
            return made

        return self._spread(add, keep).reshape(*shape, 2)

    def _spread(self, work: Any, keep: Filter) -> npt.NDArray[Any]:
        """Sum of what `work` makes of the days that are kept, on all cores."""
        days = keep.day_mask(self.days)
        kept = sorted((block for block in self.blocks if days[block.day]), key=lambda one: -len(one.code))
        parts = [kept[start::_CORES] for start in range(_CORES)]
        return _sum(_threads().map(work, parts))


@lru_cache(maxsize=64)  # 0.1 MB each, and a pass over all images that a choice of a reader asks for more than once
def area_counts(points: Points, keep: Filter, threshold: float | None = None) -> npt.NDArray[np.int64]:
    """Images of each area that a filter keeps, (areas + 1, 2): see `Points.count`."""
    return points.count(keep, by=["area"], threshold=threshold)


_CORES = max(1, min(8, os.cpu_count() or 1))


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CORES, thread_name_prefix="points")


def _sum(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return functools.reduce(np.add, parts)


def _parts(column: pa.LargeListArray) -> list[npt.NDArray[Any]]:
    """Its lists, without a copy."""
    values, ends = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(ends)]


def read_levels(study: Study, codes: pd.Index[str]) -> pd.DataFrame:
    """Zone of every area, and the place at every level that it lies in; precincts by its centroid, as in levels/."""
    areas = study.read(AREAS_FILE).drop(columns="geometry").set_index("area", drop=False)
    census = study.read(CENSUS_FILE).set_index("area")
    new = [column for column in LEVELS if column in census and column not in areas]
    return areas.join(census[new]).loc[codes].reset_index(drop=True)


@nb.njit(cache=True, nogil=True)
def _draw(  # pragma: no cover - compiled
    x_ft: Any,
    y_ft: Any,
    code: Any,
    starts: Any,
    first: int,
    last: int,
    low: int,
    high: int,
    view: Any,
    slots: Any,
    areas: Any,
    made: Any,
) -> None:
    west, east, south, north, across, up = view
    _, rows, columns = made.shape
    # The same sums as Datashader's, so that a point between two pixels ends in the same one.
    west_shift, south_shift = -west * across, -south * up
    for row in range(low, high + 1):
        for at in range(starts[row * TILES + first], starts[row * TILES + last + 1]):
            x, y = np.float64(x_ft[at]), np.float64(y_ft[at])
            if x < west or x > east or y < south or y > north:
                continue
            it = code[at]
            if not (slots[(it >> _SLOT) & 63] and areas[it >> _AREA]):
                continue
            column = min(int(x * across + west_shift), columns - 1)
            line = min(int(y * up + south_shift), rows - 1)
            made[0, line, column] += 1
            made[1, line, column] += it & 1


@nb.njit(cache=True, nogil=True)
def _count(  # pragma: no cover - compiled
    code: Any,
    score: Any,
    above: int,
    slots: Any,
    areas: Any,
    first: int,
    area_stride: int,
    hour_stride: int,
    made: Any,
) -> None:
    for at in range(len(code)):
        it = code[at]
        slot, area = (it >> _SLOT) & 63, it >> _AREA
        if slots[slot] and areas[area]:
            positive = it & 1 if above < 0 else np.int64(score[at] > above)
            made[first + area * area_stride + (slot >> 1) * hour_stride + positive] += 1

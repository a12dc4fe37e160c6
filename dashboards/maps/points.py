"""All analyzed images of a study in memory-mapped files, counted by pixel or by area, day, and hour."""

from __future__ import annotations

import functools
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

from patrolscope.dashboards.maps.aggregated_grid import AggregatedGrid
from patrolscope.dashboards.maps.areas import Box, load_extent, read_areas
from patrolscope.dashboards.maps.filters import HOURS, Filter
from patrolscope.dashboards.maps.packing import AREA_BIT, SCORE_STEPS, SLOT_BIT, TILES, tile_of, unpack
from patrolscope.dashboards.maps.stages import POINTS
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.study.store import Study

_SCREEN_PIXELS = 2_500_000

Axis = Literal["area", "day", "hour"]
Grid = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Window:
    """Rectangle of the map in feet from the city's southwestern corner, and its size in pixels."""

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
        """Whether the window is at most as large as a screen. Results for larger windows are not cached."""
        return self.columns * self.rows <= _SCREEN_PIXELS


@dataclass(frozen=True)
class _Block:
    """Images of one local day in one file."""

    day: int  # index into the days of the study
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
    days : DatetimeIndex
        Local days with images, ascending.
    areas : DataFrame
        One row per area, in the order of the study's file: zone, residents, and region in every geography.
    box : tuple of float
        West, south, east, north of the city, in feet of its projection.
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
        StageNotRunError
            If stage `points` has not run.
        """
        records = study.records(POINTS.name)
        if not records:
            raise StageNotRunError(f"{study.root} has no packed images; run `patrolscope dashboard --study STUDY`")
        batches = [batch for record in records.values() for file in record.files for batch in study.map_parts(file)]
        codes, box = load_extent(study, study.record("layers").content)
        return cls.of(batches, read_areas(study, codes), box)

    @classmethod
    def of(cls, batches: Sequence[pa.RecordBatch], areas: pd.DataFrame, box: Box) -> Points:
        """Build the points from batches of `pack`, in any order.

        Parameters
        ----------
        batches : sequence of RecordBatch
            Output of `pack`.
        areas : DataFrame
            Areas of the study in the order of their codes.
        box : Box
            Extent of the points in feet.
        """
        rows = [
            (day, *columns)
            for batch in batches
            for day, *columns in zip(batch["day"].to_pylist(), *map(unpack, batch.columns[1:]), strict=True)
        ]
        days = pd.DatetimeIndex(sorted({day for day, *_ in rows}))
        number = {day: index for index, day in enumerate(days.to_pydatetime())}
        return cls(days, areas, box, tuple(_Block(number[day], *columns) for day, *columns in rows))

    @cached_property
    def images(self) -> int:
        """Number of all images."""
        return sum(len(block.code) for block in self.blocks)

    @cached_property
    def size_ft(self) -> tuple[float, float]:
        """Width and height of the city in feet."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @cached_property
    def grid(self) -> AggregatedGrid:
        """Images by cells of a few feet. For 22 million images, building takes 2 to 4 s and 13 bytes per image."""
        return AggregatedGrid.of(self.blocks, TILES, self.size_ft, _threads())

    def raster(self, window: Window, keep: Filter) -> tuple[Grid, Grid]:
        """Count images and positive images per pixel.

        Pixels follow Datashader: a point on a shared edge belongs to the pixel east or north of it, one on the eastern
        or northern edge of the window to the last pixel. Without a filter and with wide pixels, an image may be counted
        up to 1/12 of a pixel from its location (see `AggregatedGrid`).

        Parameters
        ----------
        window : Window
            Extent and size of the raster.
        keep : Filter
            Images to count.

        Returns
        -------
        images, positives : ndarray of uint32, shape (n_rows, n_columns)
            The southernmost row comes first.
        """
        first, last = tile_of([window.west_ft, window.east_ft], self.size_ft[0])
        low, high = tile_of([window.south_ft, window.north_ft], self.size_ft[1])
        scale = window.columns / (window.east_ft - window.west_ft), window.rows / (window.north_ft - window.south_ft)
        view = np.array([window.west_ft, window.east_ft, window.south_ft, window.north_ft, *scale])
        kept, slots, days = keep.area_mask(self.areas), keep.slot_mask(), keep.day_mask(self.days)

        def draw(blocks: Sequence[_Block]) -> npt.NDArray[np.uint32]:
            counts = np.zeros((2, window.rows, window.columns), np.uint32)
            for block in blocks:
                columns = (block.x_ft, block.y_ft, block.code, block.starts)
                _draw(*columns, first, last, low, high, view, slots, kept, counts)
            return counts

        def add_cells(lines: range) -> npt.NDArray[np.uint32]:
            counts = np.zeros((2, window.rows, window.columns), np.uint32)
            grid.draw(view, (first, last, low, high), lines, counts)
            return counts

        if kept.all() and slots.all() and days.all():
            grid = self.grid
            lines = [range(low, high + 1)[start::_CORES] for start in range(_CORES)]
            images, positives = _sum(_threads().map(add_cells, lines))
        else:
            images, positives = self._sum_over_days(draw, keep)
        return images, positives

    def count(self, keep: Filter, *, by: Sequence[Axis], threshold: float | None = None) -> npt.NDArray[np.int64]:
        """Count negative and positive images.

        Parameters
        ----------
        keep : Filter
            Images to count.
        by : sequence of {"area", "day", "hour"}
            Axes of the result, in order.
        threshold : float, optional
            Images with a higher score are positive; rounded to a multiple of 1 / `SCORE_STEPS`. None uses the study's
            threshold exactly.

        Returns
        -------
        ndarray of int64, shape (..., 2)
            The last value of the area axis is for images outside all areas.
        """
        sizes = {"area": len(self.areas) + 1, "day": len(self.days), "hour": HOURS}
        shape = tuple(sizes[axis] for axis in by)
        strides = {axis: 2 * int(np.prod(shape[at + 1 :])) for at, axis in enumerate(by)}
        above = -1 if threshold is None else round(threshold * SCORE_STEPS)
        kept, slots = keep.area_mask(self.areas), keep.slot_mask()
        areas, hours = strides.get("area", 0), strides.get("hour", 0)

        def add(blocks: Sequence[_Block]) -> npt.NDArray[np.int64]:
            counts = np.zeros(2 * int(np.prod(shape)), np.int64)
            for block in blocks:
                first = strides.get("day", 0) * block.day
                _count(block.code, block.score, above, slots, kept, first, areas, hours, counts)
            return counts

        return self._sum_over_days(add, keep).reshape(*shape, 2)

    def _sum_over_days(self, work: Any, keep: Filter) -> npt.NDArray[Any]:
        """Sum the results of `work` over the days of a filter, on all cores."""
        days = keep.day_mask(self.days)
        kept = sorted((block for block in self.blocks if days[block.day]), key=lambda block: -len(block.code))
        parts = [kept[start::_CORES] for start in range(_CORES)]
        return _sum(_threads().map(work, parts))


@lru_cache(maxsize=64)  # 0.1 MB each; one choice on a page needs the same pass over all images several times
def area_counts(points: Points, keep: Filter, threshold: float | None = None) -> npt.NDArray[np.int64]:
    """Count negative and positive images per area, shape (n_areas + 1, 2). See `Points.count`.

    Parameters
    ----------
    points : Points
        Packed points.
    keep : Filter
        Images to count.
    threshold : float, optional
        Threshold of positive images; that of the study by default.
    """
    return points.count(keep, by=["area"], threshold=threshold)


_CORES = max(1, min(8, os.cpu_count() or 1))


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CORES, thread_name_prefix="points")


def _sum(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return functools.reduce(np.add, parts)


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
    counts: Any,
) -> None:
    west, east, south, north, across, up = view
    _, rows, columns = counts.shape
    # The arithmetic of Datashader, so that a point between two pixels falls into the same one.
    west_shift, south_shift = -west * across, -south * up
    for row in range(low, high + 1):
        for at in range(starts[row * TILES + first], starts[row * TILES + last + 1]):
            x, y = np.float64(x_ft[at]), np.float64(y_ft[at])
            if x < west or x > east or y < south or y > north:
                continue
            bits = code[at]
            if not (slots[(bits >> SLOT_BIT) & 63] and areas[bits >> AREA_BIT]):
                continue
            column = min(int(x * across + west_shift), columns - 1)
            line = min(int(y * up + south_shift), rows - 1)
            counts[0, line, column] += 1
            counts[1, line, column] += bits & 1


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
    counts: Any,
) -> None:
    for at in range(len(code)):
        bits = code[at]
        slot, area = (bits >> SLOT_BIT) & 63, bits >> AREA_BIT
        if slots[slot] and areas[area]:
            positive = bits & 1 if above < 0 else np.int64(score[at] > above)
            counts[first + area * area_stride + (slot >> 1) * hour_stride + positive] += 1

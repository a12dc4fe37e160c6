"""Images of the city counted into square cells, by Datashader: small grids from any number of rows.

A grid's first row is the southernmost. Counts of parts add up to the counts of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import datashader as ds
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.stages.cells import analyzed
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study

Grid = npt.NDArray[np.uint32]
Shares = npt.NDArray[np.float64]

COLUMNS = ("x_ft", "y_ft", "conf", "processed", "split", "captured_local")
# Rows in memory at once: about 50 MB with the six columns, and few enough calls that their fixed cost vanishes.
BATCH_ROWS = 1_000_000


@dataclass(frozen=True)
class Extent:
    """Rectangle of square cells in the city's projection, in feet."""

    west_ft: float
    south_ft: float
    cell_ft: float  # side of a cell
    columns: int
    rows: int

    @classmethod
    def around(cls, bounds_ft: tuple[float, float, float, float], *, cells: int, margin: float = 0.03) -> Extent:
        """Extent that holds the bounds (west, south, east, north) with a margin, `cells` along its longer side.

        `margin` is a share of the longer side. The shorter side ends on a whole cell.
        """
        west, south, east, north = map(float, bounds_ft)
        room_ft = margin * max(east - west, north - south)
        width_ft, height_ft = east - west + 2 * room_ft, north - south + 2 * room_ft
        cell_ft = max(width_ft, height_ft) / cells
        columns, rows = (min(cells, math.ceil(side / cell_ft)) for side in (width_ft, height_ft))
        west_ft = (west + east - columns * cell_ft) / 2
        south_ft = (south + north - rows * cell_ft) / 2
        return cls(west_ft, south_ft, cell_ft, columns, rows)

    @property
    def east_ft(self) -> float:
        """Eastern edge."""
        return self.west_ft + self.columns * self.cell_ft

    @property
    def north_ft(self) -> float:
        """Northern edge."""
        return self.south_ft + self.rows * self.cell_ft


@dataclass(frozen=True)
class Counts:
    """Images of each cell, and those of them that are classified positive: two (rows, columns) grids."""

    images: Grid
    positives: Grid

    @classmethod
    def none(cls, extent: Extent) -> Counts:
        """Counts of no images."""
        shape = (extent.rows, extent.columns)
        return cls(np.zeros(shape, np.uint32), np.zeros(shape, np.uint32))

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.images + other.images, self.positives + other.positives)


def count(images: pd.DataFrame, extent: Extent, *, threshold: float) -> Counts:
    """Images and positives of each cell.

    Parameters
    ----------
    images : one row an image, with x_ft, y_ft (feet in the city's projection) and conf (missing counts as 0)
    threshold : an image is positive when conf is above it

    A point on a shared edge belongs to the cell east or north of it; points outside the extent are not counted.
    """
    canvas = ds.Canvas(
        plot_width=extent.columns,
        plot_height=extent.rows,
        x_range=(extent.west_ft, extent.east_ft),
        y_range=(extent.south_ft, extent.north_ft),
    )
    positive = images["conf"] > threshold
    return Counts(*(_points(canvas, part) for part in (images, images[positive])))


def _points(canvas: ds.Canvas, frame: pd.DataFrame) -> Grid:
    grid = canvas.points(frame[["x_ft", "y_ft"]], "x_ft", "y_ft", ds.count())
    return np.asarray(grid.to_numpy(), dtype=np.uint32)


def count_study(study: Study, extent: Extent) -> tuple[Counts, Ledger]:
    """Counts over the analyzed images of a study, and the ledger of the rows read; memory is flat.

    Raises
    ------
    StageNotRunError : the study has no annotated images
    """
    ledger = Ledger("count images into cells of the map", 0)
    rules = study.settings.estimate
    counts = Counts.none(extent)
    for batch in read_batches(study):
        ledger.rows_in += len(batch)
        counts += count(analyzed(batch, rules, ledger), extent, threshold=rules.threshold)
    inside = int(counts.images.sum(dtype=np.int64))
    ledger.drop(ledger.rows_in - sum(ledger.dropped.values()) - inside, why="outside the map")
    return counts, ledger


def read_batches(study: Study) -> Iterator[pd.DataFrame]:
    """Annotated images in batches of at most `BATCH_ROWS` rows, with the columns that a raster needs."""
    for name in study.files("annotated"):
        yield from study.batches(name, list(COLUMNS), BATCH_ROWS)


def coarsen(grid: Grid, factor: int) -> Grid:
    """Sums over blocks of `factor` by `factor` cells; blocks at the northern and eastern edge may be cut."""
    rows, columns = (-side % factor for side in grid.shape)
    whole = np.pad(grid, ((0, rows), (0, columns)))
    blocks = whole.reshape(whole.shape[0] // factor, factor, whole.shape[1] // factor, factor)
    return np.asarray(blocks.sum(axis=(1, 3), dtype=np.uint32))


def smoothed_share(counts: Counts, *, least_images: int, widest_cells: int) -> Shares:
    """Share of images that are positive, around each cell: (rows, columns), missing where images are too few.

    Each cell shows the smallest square centered on it that holds at least `least_images` images: of 1, 3, 5, 7, 9, 13
    ... cells, up to `widest_cells`. So the map is sharp where images are many and smooth where they are few.
    """
    share = np.full(counts.images.shape, np.nan)
    images, positives = _integral(counts.images), _integral(counts.positives)
    for half in _half_widths((widest_cells - 1) // 2):
        seen = _square_sums(images, half)
        chosen = np.isnan(share) & (seen >= least_images)
        share[chosen] = _square_sums(positives, half)[chosen] / seen[chosen]
    return share


def _half_widths(widest: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 9 ... and at the end `widest`."""
    halves = [0]
    while halves[-1] < widest:
        halves.append(min(widest, max(halves[-1] + 1, halves[-1] * 3 // 2)))
    return halves


def _integral(grid: Grid) -> npt.NDArray[np.int64]:
    """Sums over all cells south and west: any rectangle is then four look-ups."""
    return np.pad(grid.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _square_sums(integral: npt.NDArray[np.int64], half: int) -> npt.NDArray[np.int64]:
    """Sums over the square of 2 half + 1 cells centered on each cell, cut at the edges of the grid."""
    rows, columns = (np.arange(side - 1) for side in integral.shape)
    south, north = np.maximum(rows - half, 0), np.minimum(rows + half + 1, len(rows))
    west, east = np.maximum(columns - half, 0), np.minimum(columns + half + 1, len(columns))
    return (
        integral[np.ix_(north, east)]
        - integral[np.ix_(south, east)]
        - integral[np.ix_(north, west)]
        + integral[np.ix_(south, west)]
    )

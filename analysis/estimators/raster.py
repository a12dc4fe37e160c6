"""Rasters of the city: images per square cell of a grid, and the detection rate around each cell.

The first row of a grid is the southernmost. The counts of parts add up to the counts of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.crs import city_crs, feet_per_unit

if TYPE_CHECKING:
    import datashader

Grid = npt.NDArray[np.uint32]
Shares = npt.NDArray[np.float64]

MAP_CELLS = 1800  # along the longer side of the map of the city: about one per pixel


@dataclass(frozen=True)
class Extent:
    """Rectangle of square cells in the projection of the city, in feet."""

    west_ft: float
    south_ft: float
    cell_ft: float  # side of a cell
    columns: int
    rows: int

    @classmethod
    def around(cls, bounds_ft: tuple[float, float, float, float], *, cells: int, margin: float = 0.03) -> Extent:
        """Return the extent that contains the bounds and a margin.

        Parameters
        ----------
        bounds_ft : tuple of float
            West, south, east, north, feet.
        cells : int
            Cells along the longer side; the shorter side ends on a whole cell.
        margin : float, default 0.03
            Share of the longer side.
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
    """Images and positive images per cell: two grids of shape (rows, columns)."""

    images: Grid
    positives: Grid

    @classmethod
    def none(cls, extent: Extent) -> Counts:
        """Return counts of 0."""
        shape = (extent.rows, extent.columns)
        return cls(np.zeros(shape, np.uint32), np.zeros(shape, np.uint32))

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.images + other.images, self.positives + other.positives)

    def occupied(self) -> tuple[npt.NDArray[np.int32], Grid, Grid]:
        """Return the index, images, and positive images of the cells with images, row by row, shape (n,) each."""
        cells = np.flatnonzero(self.images)
        return cells.astype(np.int32), self.images.ravel()[cells], self.positives.ravel()[cells]

    def add_occupied(self, cells: npt.NDArray[np.int32], images: Grid, positives: Grid) -> None:
        """Add the counts of `occupied` in place.

        Parameters
        ----------
        cells : ndarray of int32, shape (n,)
            Occupied cells, as flat positions.
        images, positives : ndarray, shape (n,)
            Counts of those cells.
        """
        self.images.reshape(-1)[cells] += images
        self.positives.reshape(-1)[cells] += positives


def in_feet(frame: pd.DataFrame, crs: str) -> gpd.GeoDataFrame:
    """Return the frame with its shapes in `crs`, a projected system, scaled to feet."""
    projected = gpd.GeoDataFrame(frame).to_crs(city_crs(crs))
    factor = feet_per_unit(crs)
    return projected.set_geometry(projected.geometry.affine_transform([factor, 0, 0, factor, 0, 0]))


def count(images: pd.DataFrame, extent: Extent, *, threshold: float) -> Counts:
    """Count images and positive images per cell with Datashader.

    A point on a shared edge belongs to the cell east or north of it. Points outside the extent are not counted.

    Parameters
    ----------
    images : DataFrame
        x_ft, y_ft (feet in the projection of the city) and conf (missing counts as 0).
    extent : Extent
    threshold : float
        An image is positive if its conf is above it.
    """
    import datashader  # loads Dask

    canvas = datashader.Canvas(
        plot_width=extent.columns,
        plot_height=extent.rows,
        x_range=(extent.west_ft, extent.east_ft),
        y_range=(extent.south_ft, extent.north_ft),
    )
    positive = images["conf"] > threshold
    return Counts(*(_points(canvas, part) for part in (images, images[positive])))


def _points(canvas: datashader.Canvas, frame: pd.DataFrame) -> Grid:
    grid = canvas.points(frame[["x_ft", "y_ft"]], "x_ft", "y_ft")  # the default aggregation counts
    return np.asarray(grid.to_numpy(), dtype=np.uint32)


def coarsen(grid: Grid, factor: int) -> Grid:
    """Sum over blocks of `factor` by `factor` cells; blocks at the northern and eastern edges may be smaller."""
    rows, columns = (-side % factor for side in grid.shape)
    whole = np.pad(grid, ((0, rows), (0, columns)))
    blocks = whole.reshape(whole.shape[0] // factor, factor, whole.shape[1] // factor, factor)
    return np.asarray(blocks.sum(axis=(1, 3), dtype=np.uint32))


def smoothed_share(counts: Counts, *, least_images: int, widest_cells: int) -> Shares:
    """Compute the detection rate around each cell.

    The rate of a cell is that of the smallest square centered on it with at least `least_images` images. The map is
    therefore sharp where images are many and smooth where they are few.

    Parameters
    ----------
    counts : Counts
    least_images : int
    widest_cells : int
        Largest side of a square. Sides are 1, 3, 5, 7, 9, 13, ... cells.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
        NaN where even the largest square has fewer images.
    """
    share = np.full(counts.images.shape, np.nan)
    images, positives = _integral(counts.images), _integral(counts.positives)
    for half in _half_widths((widest_cells - 1) // 2):
        seen = _square_sums(images, half)
        chosen = np.isnan(share) & (seen >= least_images)
        share[chosen] = _square_sums(positives, half)[chosen] / seen[chosen]
    return share


def _half_widths(widest: int) -> list[int]:
    """Return 0, 1, 2, 3, 4, 6, 9, ..., ending with `widest`."""
    halves = [0]
    while halves[-1] < widest:
        halves.append(min(widest, max(halves[-1] + 1, halves[-1] * 3 // 2)))
    return halves


def _integral(grid: Grid) -> npt.NDArray[np.int64]:
    """Return the sums over all cells to the south and west, which give the sum of any rectangle in four lookups."""
    return np.pad(grid.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _square_sums(integral: npt.NDArray[np.int64], half: int) -> npt.NDArray[np.int64]:
    """Return the sums over squares of 2 half + 1 cells centered on each cell, cut at the edges of the grid."""
    rows, columns = (np.arange(side - 1) for side in integral.shape)
    south, north = np.maximum(rows - half, 0), np.minimum(rows + half + 1, len(rows))
    west, east = np.maximum(columns - half, 0), np.minimum(columns + half + 1, len(columns))
    return (
        integral[np.ix_(north, east)]
        - integral[np.ix_(south, east)]
        - integral[np.ix_(north, west)]
        + integral[np.ix_(south, west)]
    )

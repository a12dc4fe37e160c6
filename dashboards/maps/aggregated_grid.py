"""Counts of all images by grid cells of a few feet, from which unfiltered maps are summed.

A patch of cells inside one pixel is a single addition. Where an edge between pixels crosses a patch, its cells are
added one by one; where it crosses a cell, its images are. Pixels then equal those of single images. If a pixel is at
least `COARSE` cells wide, a crossed cell counts as a whole in the pixel of its center: no image is counted more than
1/12 of a pixel from its location, and none is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

# Along a side of a tile. In New York a patch is 25 ft and a cell 6 ft wide, so that pixel edges cross few of them on
# maps of the city or a borough.
PATCHES, CELLS = 48, 192
_SIDE = CELLS // PATCHES
# Cells along a pixel. In pixels at least this wide, crossed cells are not split; in New York from 38 ft per pixel.
COARSE = 6
_SLACK_FT = 1e-6  # rounding can move an image this far out of its cell
_CROSSED, _OUTSIDE = -1, -2  # codes instead of a pixel: crossed by an edge, outside the view


class Squares(NamedTuple):
    """Patches or cells with images: position in the tile and counts, shape (n,) each."""

    column: npt.NDArray[np.uint8]
    row: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint32]
    positives: npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class AggregatedGrid:
    """Images ordered by tile (row by row), patch, and cell, with the positive images of a cell first.

    Attributes
    ----------
    locations_ft : ndarray of float32, shape (n_images, 2)
        Feet from the city's southwestern corner.
    patches, cells : Squares
        Patches and cells with images.
    cells_of : ndarray of uint8, shape (n_patches,)
        Number of cells with images per patch.
    starts : ndarray of int64, shape (n_tiles + 1, 3)
        First patch, cell, and image of each tile, and their numbers.
    tiles : int
        Tiles along each side of the city.
    size_ft : tuple of float
        Width and height of the city.
    """

    locations_ft: npt.NDArray[np.float32]
    patches: Squares
    cells: Squares
    cells_of: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    tiles: int
    size_ft: tuple[float, float]

    @classmethod
    def of(
        cls, blocks: Sequence[Any], tiles: int, size_ft: tuple[float, float], pool: ThreadPoolExecutor
    ) -> AggregatedGrid:
        """Merge blocks of images.

        Parameters
        ----------
        blocks : sequence
            Objects with arrays x_ft, y_ft, code (bit 0 is set for positive images), and starts (of each tile).
        tiles : int
            Tiles along each side of the city.
        size_ft : tuple of float
            Width and height of the city.
        pool : ThreadPoolExecutor
            Threads that merge the rows of tiles.
        """
        lines = list(pool.map(lambda line: _merge_line(blocks, line, tiles, size_ft), range(tiles)))
        locations_ft, patches, cells, cells_of, sizes = zip(*lines, strict=True)
        starts = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(np.concatenate(sizes), axis=0)])
        return cls(
            np.concatenate(locations_ft),
            Squares(*map(np.concatenate, zip(*patches, strict=True))),
            Squares(*map(np.concatenate, zip(*cells, strict=True))),
            np.concatenate(cells_of),
            starts,
            tiles,
            size_ft,
        )

    def draw(
        self,
        view: npt.NDArray[np.float64],
        span: tuple[int, int, int, int],
        lines: range,
        counts: npt.NDArray[np.uint32],
    ) -> None:
        """Add the images of some rows of tiles to pixels, in place.

        Parameters
        ----------
        view : ndarray of float64, shape (6,)
            West, east, south, north in feet; pixels per foot across and up.
        span : tuple of int
            First and last column, first and last row of the tiles in the view.
        lines : range
            Rows of tiles to add.
        counts : ndarray of uint32, shape (2, n_rows, n_columns)
            Images and positive images per pixel, the southernmost row first.
        """
        west, east, south, north, across, up = view
        first, last, low, high = span
        _, rows, columns = counts.shape
        columns_of, rows_of = (
            [self._pixels(*axis, squares) for squares in (PATCHES, CELLS)]
            for axis in ((first, last, 0, west, east, across, columns), (low, high, 1, south, north, up, rows))
        )
        for line in lines:
            row_of = [
                pixels[(line - low) * squares : (line - low + 1) * squares]
                for pixels, squares in zip(rows_of, (PATCHES, CELLS), strict=True)
            ]
            starts = self.starts[line * self.tiles + first : line * self.tiles + last + 2]
            _draw(
                self.locations_ft, *self.patches, *self.cells, self.cells_of, starts,
                *columns_of, *row_of, view, counts,
            )  # fmt: skip

    def _pixels(
        self, first: int, last: int, axis: int, low_ft: float, high_ft: float, scale: float, pixels: int, squares: int
    ) -> npt.NDArray[np.int32]:
        """Return the pixel, or `_CROSSED` or `_OUTSIDE`, of each column (axis 0) or row (axis 1) of squares."""
        edges_ft = np.arange(first * squares, (last + 1) * squares + 1) * (self.size_ft[axis] / (self.tiles * squares))
        from_ft, to_ft = edges_ft[:-1] - _SLACK_FT, edges_ft[1:] + _SLACK_FT
        # The arithmetic of single images. It is monotonic: a square whose ends fall into one pixel lies in that pixel.
        shift = -low_ft * scale
        pixel, end = (np.floor(ft * scale + shift).clip(-1, pixels) for ft in (from_ft, to_ft))
        found = np.where((pixel == end) & (from_ft >= low_ft) & (to_ft <= high_ft), pixel.clip(0, pixels - 1), _CROSSED)
        found[(to_ft < low_ft) | (from_ft > high_ft)] = _OUTSIDE
        if squares == CELLS and scale * (edges_ft[1] - edges_ft[0]) <= 1 / COARSE:
            inside = (found == _CROSSED) & (from_ft >= low_ft) & (to_ft <= high_ft)
            found[inside] = np.floor((from_ft + to_ft)[inside] / 2 * scale + shift).clip(0, pixels - 1)
        # The outermost tiles also hold images beyond the city's edge.
        for tile in {first, last} & {0, self.tiles - 1}:
            found[(tile - first) * squares : (tile - first + 1) * squares] = _CROSSED
        return found.astype(np.int32)


def _merge_line(blocks: Sequence[Any], line: int, tiles: int, size_ft: tuple[float, float]) -> tuple[Any, ...]:
    """Merge one row of tiles. The last value counts patches, cells, and images per tile, shape (n_tiles, 3)."""
    spans = [(block, block.starts[line * tiles : (line + 1) * tiles + 1]) for block in blocks]
    parts = [(block, slice(starts[0], starts[-1])) for block, starts in spans]
    x_ft, y_ft, code = (
        np.concatenate([np.empty(0, kind), *(getattr(block, name)[part] for block, part in parts)])
        for name, kind in (("x_ft", np.float32), ("y_ft", np.float32), ("code", np.uint32))
    )
    tile = np.concatenate([np.empty(0, np.int64), *(np.repeat(np.arange(tiles), np.diff(at)) for _, at in spans)])
    column, row = (
        (np.floor(ft * (tiles * CELLS / side)) - of * CELLS).clip(0, CELLS - 1).astype(np.uint32)
        for ft, side, of in ((x_ft.astype(float), size_ft[0], tile), (y_ft.astype(float), size_ft[1], line))
    )
    patch = (tile.astype(np.uint32) * PATCHES + row // _SIDE) * PATCHES + column // _SIDE
    key = (((patch * _SIDE + row % _SIDE) * _SIDE + column % _SIDE) << 1) | (~code & 1)
    order = np.argsort(key)
    key, column, row, tile = key[order], column[order], row[order], tile[order]
    before = np.concatenate([[0], np.cumsum(1 - (key & 1), dtype=np.int64)])  # positives

    def squares(number: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], Squares]:
        start = np.flatnonzero(np.diff(number, prepend=np.uint32(2**32 - 1)))
        images = np.diff(start, append=len(key)).astype(np.uint32)
        positives = np.diff(before[start], append=before[-1]).astype(np.uint32)
        return start, Squares(column[start].astype(np.uint8), row[start].astype(np.uint8), images, positives)

    cell, cells = squares(key >> 1)
    first, patches = squares((key >> 1) // _SIDE**2)
    patches = patches._replace(column=patches.column // _SIDE, row=patches.row // _SIDE)
    cells_of = np.diff(np.searchsorted(cell, first), append=len(cell)).astype(np.uint8)
    sizes = np.stack([np.bincount(of, minlength=tiles) for of in (tile[first], tile[cell], tile)], axis=1)
    return np.stack([x_ft[order], y_ft[order]], axis=1), patches, cells, cells_of, sizes


@nb.njit(cache=True, nogil=True)
def _draw(  # pragma: no cover - compiled
    locations_ft: Any,
    patch_column: Any,
    patch_row: Any,
    patch_images: Any,
    patch_positives: Any,
    cell_column: Any,
    cell_row: Any,
    cell_images: Any,
    cell_positives: Any,
    cells_of: Any,
    starts: Any,
    patch_pixel: Any,
    cell_pixel: Any,
    patch_line: Any,
    cell_line: Any,
    view: Any,
    counts: Any,
) -> None:
    west, east, south, north, across, up = view
    _, rows, columns = counts.shape
    west_shift, south_shift = -west * across, -south * up
    for tile in range(len(starts) - 1):
        cell, at = starts[tile, 1], starts[tile, 2]
        for patch in range(starts[tile, 0], starts[tile + 1, 0]):
            next_cell, next_at = cell + cells_of[patch], at + patch_images[patch]
            pixel, line = patch_pixel[tile * PATCHES + patch_column[patch]], patch_line[patch_row[patch]]
            if pixel >= 0 and line >= 0:
                counts[0, line, pixel] += patch_images[patch]
                counts[1, line, pixel] += patch_positives[patch]
            elif pixel != _OUTSIDE and line != _OUTSIDE:
                while cell < next_cell:
                    end, end_positive = at + cell_images[cell], at + cell_positives[cell]
                    pixel, line = cell_pixel[tile * CELLS + cell_column[cell]], cell_line[cell_row[cell]]
                    if pixel >= 0 and line >= 0:
                        counts[0, line, pixel] += cell_images[cell]
                        counts[1, line, pixel] += cell_positives[cell]
                    elif pixel != _OUTSIDE and line != _OUTSIDE:
                        for image in range(at, end):
                            x, y = np.float64(locations_ft[image, 0]), np.float64(locations_ft[image, 1])
                            if x < west or x > east or y < south or y > north:
                                continue
                            pixel = min(int(x * across + west_shift), columns - 1)
                            line = min(int(y * up + south_shift), rows - 1)
                            counts[0, line, pixel] += 1
                            counts[1, line, pixel] += image < end_positive
                    cell, at = cell + 1, end
            cell, at = next_cell, next_at

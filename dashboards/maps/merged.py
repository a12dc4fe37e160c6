"""All images of the city by cells of a few feet: where no filter takes any away, a map adds cells, not images.

A patch of cells that lies in one pixel is one addition. Of a patch that an edge between pixels cuts, cells are added
one by one; of a cell that it cuts, images. So pixels are those of single images, exactly. Only where a pixel is as
wide as `COARSE` cells, a cell that is cut goes as a whole to the pixel of its center: no image is counted further than
1 / 12 of a pixel from where it is, and a window has as many as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

# Along a side of a tile: of New York 25 feet and 6, so that few are cut by the pixels of the city, and of a borough.
PATCHES, CELLS = 48, 192
_SIDE = CELLS // PATCHES
# Cells along a pixel, from which on those that are cut are not looked into: of New York's, from 38 feet a pixel on.
COARSE = 6
# Feet that rounding can take an image out of its cell.
_SLACK_FT = 1e-6
_CUT, _BEYOND = -1, -2  # in the place of a pixel


class Squares(NamedTuple):
    """Patches or cells that have images, (n,) each: where in its tile, and how many."""

    column: npt.NDArray[np.uint8]
    row: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint32]
    positives: npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Merged:
    """Images by tile, row by row; those of a tile by patch; those of a patch by cell; those of a cell positives first.

    Attributes
    ----------
    places_ft : (images, 2) from the city's south-western corner; side by side, as few in a row are looked at
    cells_of : (patches,) how many cells with images each has
    starts : (tiles + 1, 3) first patch, cell and image of each tile, and the end
    tiles : along each side of the city
    whole : width and height of the city, feet
    """

    places_ft: npt.NDArray[np.float32]
    patches: Squares
    cells: Squares
    cells_of: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    tiles: int
    whole: tuple[float, float]

    @classmethod
    def of(cls, blocks: Sequence[Any], tiles: int, whole: tuple[float, float], pool: ThreadPoolExecutor) -> Merged:
        """Merge blocks: x_ft, y_ft, a code whose first bit says positive, and where each tile starts."""
        lines = list(pool.map(lambda line: _merge_line(blocks, line, tiles, whole), range(tiles)))
        places_ft, patches, cells, cells_of, sizes = zip(*lines, strict=True)
        starts = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(np.concatenate(sizes), axis=0)])
        return cls(
            np.concatenate(places_ft),
            Squares(*map(np.concatenate, zip(*patches, strict=True))),
            Squares(*map(np.concatenate, zip(*cells, strict=True))),
            np.concatenate(cells_of),
            starts,
            tiles,
            whole,
        )

    def draw(
        self, view: npt.NDArray[np.float64], span: tuple[int, int, int, int], lines: range, made: npt.NDArray[np.uint32]
    ) -> None:
        """Add the images of some rows of tiles to pixels.

        Parameters
        ----------
        view : west, east, south, north in feet, pixels a foot across and up
        span : first and last column, first and last row of tiles that the view shows
        lines : rows of tiles to add
        made : (2, rows, columns) images and positives of pixels, the southernmost row first
        """
        west, east, south, north, across, up = view
        first, last, low, high = span
        _, rows, columns = made.shape
        columns_of, rows_of = (
            [self._pixels(*some, squares) for squares in (PATCHES, CELLS)]
            for some in ((first, last, 0, west, east, across, columns), (low, high, 1, south, north, up, rows))
        )
        for line in lines:
            row_of = [
                pixels[(line - low) * squares : (line - low + 1) * squares]
                for pixels, squares in zip(rows_of, (PATCHES, CELLS), strict=True)
            ]
            starts = self.starts[line * self.tiles + first : line * self.tiles + last + 2]
            _draw(
                self.places_ft, *self.patches, *self.cells, self.cells_of, starts,
                *columns_of, *row_of, view, made,
            )  # fmt: skip

    def _pixels(
        self, first: int, last: int, axis: int, low_ft: float, high_ft: float, scale: float, pixels: int, squares: int
    ) -> npt.NDArray[np.int32]:
        """Pixel of each column (axis 0) or row (1) of squares in those tiles; or that it is cut, or beyond the view."""
        edges_ft = np.arange(first * squares, (last + 1) * squares + 1) * (self.whole[axis] / (self.tiles * squares))
        from_ft, to_ft = edges_ft[:-1] - _SLACK_FT, edges_ft[1:] + _SLACK_FT
        # The sums that place single images: they rise with the place, so what lies between two ends is in their pixel.
        shift = -low_ft * scale
        pixel, end = (np.floor(ft * scale + shift).clip(-1, pixels) for ft in (from_ft, to_ft))
        found = np.where((pixel == end) & (from_ft >= low_ft) & (to_ft <= high_ft), pixel.clip(0, pixels - 1), _CUT)
        found[(to_ft < low_ft) | (from_ft > high_ft)] = _BEYOND
        if squares == CELLS and scale * (edges_ft[1] - edges_ft[0]) <= 1 / COARSE:
            inside = (found == _CUT) & (from_ft >= low_ft) & (to_ft <= high_ft)
            found[inside] = np.floor((from_ft + to_ft)[inside] / 2 * scale + shift).clip(0, pixels - 1)
        # Images beyond the city's edge are in its outermost tiles.
        for tile in {first, last} & {0, self.tiles - 1}:
            found[(tile - first) * squares : (tile - first + 1) * squares] = _CUT
        return found.astype(np.int32)


def _merge_line(blocks: Sequence[Any], line: int, tiles: int, whole: tuple[float, float]) -> tuple[Any, ...]:
    """Columns of one row of tiles, and (tiles, 3) how many patches, cells and images each has."""
    spans = [(block, block.starts[line * tiles : (line + 1) * tiles + 1]) for block in blocks]
    parts = [(block, slice(starts[0], starts[-1])) for block, starts in spans]
    x_ft, y_ft, code = (
        np.concatenate([np.empty(0, kind), *(getattr(block, name)[some] for block, some in parts)])
        for name, kind in (("x_ft", np.float32), ("y_ft", np.float32), ("code", np.uint32))
    )
    tile = np.concatenate([np.empty(0, np.int64), *(np.repeat(np.arange(tiles), np.diff(at)) for _, at in spans)])
    column, row = (
        (np.floor(ft * (tiles * CELLS / side)) - of * CELLS).clip(0, CELLS - 1).astype(np.uint32)
        for ft, side, of in ((x_ft.astype(float), whole[0], tile), (y_ft.astype(float), whole[1], line))
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
    places_ft: Any,
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
    made: Any,
) -> None:
    west, east, south, north, across, up = view
    _, rows, columns = made.shape
    west_shift, south_shift = -west * across, -south * up
    for tile in range(len(starts) - 1):
        cell, at = starts[tile, 1], starts[tile, 2]
        for patch in range(starts[tile, 0], starts[tile + 1, 0]):
            next_cell, next_at = cell + cells_of[patch], at + patch_images[patch]
            pixel, line = patch_pixel[tile * PATCHES + patch_column[patch]], patch_line[patch_row[patch]]
            if pixel >= 0 and line >= 0:
                made[0, line, pixel] += patch_images[patch]
                made[1, line, pixel] += patch_positives[patch]
            elif pixel != _BEYOND and line != _BEYOND:
                while cell < next_cell:
                    end, found = at + cell_images[cell], at + cell_positives[cell]
                    pixel, line = cell_pixel[tile * CELLS + cell_column[cell]], cell_line[cell_row[cell]]
                    if pixel >= 0 and line >= 0:
                        made[0, line, pixel] += cell_images[cell]
                        made[1, line, pixel] += cell_positives[cell]
                    elif pixel != _BEYOND and line != _BEYOND:
                        for one in range(at, end):
                            x, y = np.float64(places_ft[one, 0]), np.float64(places_ft[one, 1])
                            if x < west or x > east or y < south or y > north:
                                continue
                            pixel = min(int(x * across + west_shift), columns - 1)
                            line = min(int(y * up + south_shift), rows - 1)
                            made[0, line, pixel] += 1
                            made[1, line, pixel] += one < found
                    cell, at = cell + 1, end
            cell, at = next_cell, next_at

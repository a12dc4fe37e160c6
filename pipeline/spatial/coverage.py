"""Point location in areas that tile a city: exact, and the same on every machine.

A grid is laid over the areas. A cell knows which area holds its centre, and the boundary segments that cross the
cell. From a point to its cell's centre runs a segment; every boundary that it crosses swaps the area on one side
for the area on the other. With areas numbered from 1 and 0 for outside, the swap is an exclusive or with
(number on the left) ^ (number on the right), so crossings may be taken in any order and the work for a point is
one look-up and a few orientation tests. Measured on one core: docs/benchmarks.md, `annotate`.

An orientation test in floating point can be wrong when a point lies on a boundary, or within rounding of it. The
error is bounded (Shewchuk 1997, "Adaptive precision floating-point arithmetic", bound A): a test inside the bound
is not trusted, and the point is put to GEOS, whose predicates are exact. Of the areas that touch such a point the
lowest key has it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
import shapely

from pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

# Cells per boundary segment, and the most cells: 4.2 million cells take 34 MB.
_CELLS_PER_SEGMENT = 8
_MOST_CELLS = 2**22
# (3 + 16 u) u with u = 2**-53: Shewchuk's bound on the error of the orientation determinant.
_ORIENTATION_BOUND = 3.3306690738754716e-16
# A centre closer to a boundary than this share of a cell is not used as a reference (rounding is 1e-9 of a cell).
_CENTRE_CLEARANCE = 1e-6
_ASK_GEOS = -1


@dataclass(frozen=True)
class Coverage:
    """Index over areas that tile a region.

    Attributes
    ----------
    keys : (n,) str, rising; `locate` answers with positions in it
    overlaps : pairs of keys whose areas overlap; points there go to the lower key
    """

    keys: npt.NDArray[np.str_]
    overlaps: npt.NDArray[np.str_]  # (k, 2)
    shapes: npt.NDArray[np.object_] = field(repr=False)
    grid: Floats = field(repr=False)  # x0, y0, cell width, cell height
    centres: Ints = field(repr=False)  # (ny, nx): 0 outside, number of the area from 1, -1: ask GEOS
    starts: Ints = field(repr=False)  # (ny * nx + 1,): where a cell's segments begin in `members`
    members: Ints = field(repr=False)
    segments: Floats = field(repr=False)  # (m, 4): x, y of both ends
    swaps: Ints = field(repr=False)  # (m,): number on the left ^ number on the right

    @classmethod
    def build(cls, keys: npt.NDArray[Any], shapes: npt.NDArray[np.object_]) -> Coverage:
        """Index over polygons in their own coordinates; keys and shapes in any order.

        Raises
        ------
        SourceError : no area, a key twice, an empty or invalid polygon
        """
        keys = np.asarray(keys, dtype=np.str_)
        order = np.argsort(keys, kind="stable")
        keys, shapes = keys[order], np.asarray(shapes, dtype=object)[order]
        _refuse_unusable(keys, shapes)
        ends, swaps = _segments(shapes)
        low, high = ends.reshape(-1, 2).min(axis=0), ends.reshape(-1, 2).max(axis=0)
        # A margin of one part in a million keeps the outermost boundary inside the grid.
        margin = np.maximum((high - low) * 1e-6, np.abs(high) * 1e-12)
        low, high = low - margin, high + margin
        cells = min(max(_CELLS_PER_SEGMENT * len(swaps), 1024), _MOST_CELLS)
        width, height = high - low
        nx = int(np.clip(np.sqrt(cells * width / height), 1, 2**15))
        ny = max(1, cells // nx)
        grid = np.array([low[0], low[1], width / nx, height / ny])
        starts = np.zeros(nx * ny + 1, dtype=np.int32)
        _visit_cells(ends, grid, nx, ny, starts[1:], np.empty(0, dtype=np.int32), counting=True)
        np.cumsum(starts, out=starts)
        members = np.empty(starts[-1], dtype=np.int32)
        _visit_cells(ends, grid, nx, ny, starts[:-1].copy(), members, counting=False)
        centres, unclear = _centres(ends, swaps, grid, nx, ny)
        overlaps, boxes = _overlaps(keys, shapes)
        for west, south, east, north in boxes:
            left, right = ((np.array([west, east]) - grid[0]) // grid[2]).astype(int)
            bottom, top = ((np.array([south, north]) - grid[1]) // grid[3]).astype(int)
            unclear[max(bottom - 1, 0) : top + 2, max(left - 1, 0) : right + 2] = True
        centres[unclear] = _ASK_GEOS
        return cls(keys, overlaps, shapes, grid, centres, starts, members, ends, swaps)

    def locate(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Ints:
        """Position in `keys` of the area that holds each point; -1 outside every area.

        Parameters
        ----------
        x, y : (n,) float, in the coordinates of the shapes. A coordinate that is not finite lies outside.

        A point on a boundary belongs to the lowest key among the areas that touch it; one on the outer edge is
        inside.
        """
        x = np.ascontiguousarray(x, dtype=np.float64)
        y = np.ascontiguousarray(y, dtype=np.float64)
        found = np.empty(len(x), dtype=np.int32)
        unsure = _locate(x, y, self.grid, self.centres, self.starts, self.members, self.segments, self.swaps, found)
        if unsure:
            asked = np.flatnonzero(found == _ASK_GEOS)
            found[asked] = self._touching(x[asked], y[asked]) + 1
        return found - 1

    def _touching(self, x: Floats, y: Floats) -> Ints:
        points, areas = self._tree.query(shapely.points(x, y), predicate="intersects")
        lowest = np.full(len(x), len(self.keys), dtype=np.int32)
        np.minimum.at(lowest, points, areas.astype(np.int32))
        lowest[lowest == len(self.keys)] = -1
        return lowest

    @cached_property
    def _tree(self) -> shapely.STRtree:
        shapely.prepare(self.shapes)
        return shapely.STRtree(self.shapes)

    def to_bytes(self) -> bytes:
        """The index as a NumPy archive without pickles: `from_bytes` reads it in a fraction of the build time."""
        wkb = shapely.to_wkb(self.shapes)
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "shapes"}
        arrays["wkb"] = np.frombuffer(b"".join(wkb), dtype=np.uint8)
        arrays["wkb_ends"] = np.cumsum([len(part) for part in wkb])
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Coverage:
        """The index that `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        wkb, ends = arrays.pop("wkb").tobytes(), arrays.pop("wkb_ends")
        starts = np.concatenate([[0], ends[:-1]])
        shapes = shapely.from_wkb([wkb[start:end] for start, end in zip(starts, ends, strict=True)])
        return cls(shapes=shapes, **arrays)


def _refuse_unusable(keys: npt.NDArray[np.str_], shapes: npt.NDArray[np.object_]) -> None:
    if len(keys) == 0:
        raise SourceError("a layer without a single area can not locate points: check its file")
    if len(keys) != len(shapes):
        raise SourceError(f"{len(keys)} keys for {len(shapes)} areas")
    twice = keys[1:][keys[1:] == keys[:-1]]
    if len(twice):
        raise SourceError(f"area {twice[0]} stands twice in its layer: merge its parts into one row")
    bad = shapely.is_missing(shapes) | shapely.is_empty(shapes) | ~shapely.is_valid(shapes)
    bad |= ~np.isin(shapely.get_type_id(shapes), [3, 6])
    if bad.any():
        raise SourceError(
            f"{int(bad.sum())} areas are not valid polygons, first {keys[bad][0]}: "
            f"{shapely.is_valid_reason(shapes[bad][0])}; repair the layer (shapely.make_valid)"
        )


def _segments(shapes: npt.NDArray[np.object_]) -> tuple[Floats, Ints]:
    """Boundary segments, each once, with the exclusive or of the areas' numbers along it."""
    parts, part_area = shapely.get_parts(shapes, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    inside = ring[1:] == ring[:-1]
    ends = np.hstack([points[:-1][inside], points[1:][inside]])
    number = (part_area[ring_part[ring[1:][inside]]] + 1).astype(np.int32)
    # Neighbours walk a shared boundary in opposite directions: the lower end comes first for both.
    backwards = (ends[:, 0] > ends[:, 2]) | ((ends[:, 0] == ends[:, 2]) & (ends[:, 1] > ends[:, 3]))
    ends[backwards] = ends[backwards][:, [2, 3, 0, 1]]
    order = np.lexsort(ends.T[::-1])
    ends, number = ends[order], number[order]
    first = np.concatenate([[True], (ends[1:] != ends[:-1]).any(axis=1)])
    swaps = np.bitwise_xor.reduceat(number, np.flatnonzero(first))
    ends = ends[first]
    matters = (swaps != 0) & ((ends[:, 0] != ends[:, 2]) | (ends[:, 1] != ends[:, 3]))
    return np.ascontiguousarray(ends[matters]), np.ascontiguousarray(swaps[matters])


def _overlaps(keys: npt.NDArray[np.str_], shapes: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.str_], Floats]:
    """Pairs of keys whose insides meet, and the boxes where they do."""
    if shapely.coverage_is_valid(shapes):
        return np.empty((0, 2), dtype=keys.dtype), np.empty((0, 4))
    tree = shapely.STRtree(shapes)
    left, right = tree.query(shapes, predicate="intersects")
    left, right = left[left < right], right[left < right]
    # "T********": the insides have a point in common.
    inside = shapely.relate_pattern(shapes[left], shapes[right], "T********")
    left, right = left[inside], right[inside]
    common = shapely.intersection(shapes[left], shapes[right])
    return np.column_stack([keys[left], keys[right]]), shapely.bounds(common).reshape(-1, 4)


@nb.njit(cache=True)
def _visit_cells(
    ends: Floats, grid: Floats, nx: int, ny: int, cursor: Ints, members: Ints, counting: bool
) -> None:  # pragma: no cover - compiled
    """For every segment the cells that it crosses: counted into `cursor`, or written at `cursor` into `members`."""
    x0, y0, width, height = grid
    # Cells a hair beyond the exact ones are visited, too: a test too many is harmless, one too few is not.
    slack_x, slack_y = 1e-6 * width, 1e-6 * height
    for index in range(len(ends)):
        ax, ay, bx, by = ends[index]
        low_y, high_y = min(ay, by), max(ay, by)
        bottom = max(int(np.floor((low_y - slack_y - y0) / height)), 0)
        top = min(int(np.floor((high_y + slack_y - y0) / height)), ny - 1)
        for row in range(bottom, top + 1):
            from_y = max(low_y, y0 + row * height - slack_y)
            to_y = min(high_y, y0 + (row + 1) * height + slack_y)
            if by == ay:
                x_first, x_last = min(ax, bx), max(ax, bx)
            else:
                slope = (bx - ax) / (by - ay)
                x_from = ax + (from_y - ay) * slope
                x_to = ax + (to_y - ay) * slope
                x_first = max(min(x_from, x_to), min(ax, bx))
                x_last = min(max(x_from, x_to), max(ax, bx))
            left = max(int(np.floor((x_first - slack_x - x0) / width)), 0)
            right = min(int(np.floor((x_last + slack_x - x0) / width)), nx - 1)
            for column in range(left, right + 1):
                cell = row * nx + column
                if not counting:
                    members[cursor[cell]] = index
                cursor[cell] += 1


@nb.njit(cache=True)
def _scan_centres(
    ends: Floats, swaps: Ints, grid: Floats, nx: int, ny: int, centres: Ints, unclear: npt.NDArray[np.bool_]
) -> None:  # pragma: no cover - compiled
    """Swaps along each row of centres, written where they take effect."""
    x0, y0, width, height = grid
    for index in range(len(ends)):
        ax, ay, bx, by = ends[index]
        low_y, high_y = min(ay, by), max(ay, by)
        bottom = max(int(np.floor((low_y - y0) / height - 0.5)) - 1, 0)
        top = min(int(np.floor((high_y - y0) / height - 0.5)) + 1, ny - 1)
        for row in range(bottom, top + 1):
            centre_y = y0 + (row + 0.5) * height
            if centre_y < low_y or centre_y >= high_y:
                continue
            crossing = ((ax + (centre_y - ay) * (bx - ax) / (by - ay)) - x0) / width - 0.5
            column = int(np.ceil(crossing))
            if column - crossing < _CENTRE_CLEARANCE and 0 <= column < nx:
                unclear[row, column] = True
            if crossing - (column - 1) < _CENTRE_CLEARANCE and 0 <= column - 1 < nx:
                unclear[row, column - 1] = True
            if column < nx:
                centres[row, max(column, 0)] ^= swaps[index]


def _centres(ends: Floats, swaps: Ints, grid: Floats, nx: int, ny: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Number of the area that holds each cell's centre, and where that is too close to call."""
    centres = np.zeros((ny, nx), dtype=np.int32)
    unclear = np.zeros((ny, nx), dtype=np.bool_)
    _scan_centres(ends, swaps, grid, nx, ny, centres, unclear)
    return np.bitwise_xor.accumulate(centres, axis=1), unclear


@nb.njit(cache=True, inline="always")
def _side(ax: float, ay: float, bx: float, by: float, px: float, py: float) -> int:  # pragma: no cover - compiled
    """1: p lies left of a -> b, -1: right, 0: too close to call."""
    left = (ax - px) * (by - py)
    right = (ay - py) * (bx - px)
    turn = left - right
    bound = _ORIENTATION_BOUND * (abs(left) + abs(right))
    return 1 if turn > bound else (-1 if turn < -bound else 0)


@nb.njit(cache=True, nogil=True)
def _locate(
    xs: Floats,
    ys: Floats,
    grid: Floats,
    centres: Ints,
    starts: Ints,
    members: Ints,
    ends: Floats,
    swaps: Ints,
    found: Ints,
) -> int:  # pragma: no cover - compiled
    """Number of the area of each point (0 outside) into `found`; -1 where floating point can not tell; their count."""
    x0, y0, width, height = grid
    ny, nx = centres.shape
    unsure = 0
    for point in range(len(xs)):
        x, y = xs[point], ys[point]
        column_at, row_at = (x - x0) / width, (y - y0) / height
        # Written so that a coordinate that is not a number fails it.
        if not (0 <= column_at < nx and 0 <= row_at < ny):
            found[point] = 0
            continue
        row, column = int(row_at), int(column_at)
        number = centres[row, column]
        cell = row * nx + column
        first, last = starts[cell], starts[cell + 1]
        if number >= 0 and first < last:
            cx, cy = x0 + (column + 0.5) * width, y0 + (row + 0.5) * height
            for position in range(first, last):
                index = members[position]
                ax, ay, bx, by = ends[index]
                side_a = _side(x, y, cx, cy, ax, ay)
                side_b = _side(x, y, cx, cy, bx, by)
                if side_a == side_b and side_a != 0:
                    continue
                side_point = _side(ax, ay, bx, by, x, y)
                side_centre = _side(ax, ay, bx, by, cx, cy)
                if side_point == side_centre and side_point != 0:
                    continue
                if side_a == 0 or side_b == 0 or side_point == 0 or side_centre == 0:
                    number = _ASK_GEOS
                    break
                number ^= swaps[index]
        if number < 0:
            unsure += 1
        found[point] = number
    return unsure

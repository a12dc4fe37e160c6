"""Point location in areas that tile a city: exact, and the same on every machine.

A grid is laid over the areas. A cell knows which area holds its center, and the boundary segments that cross the
cell. From a point to its cell's center runs a segment; every boundary that it crosses swaps the area on one side
for the area on the other. With areas numbered from 1 and 0 for outside, the swap is an exclusive or with
(number on the left) ^ (number on the right), so crossings may be taken in any order and the work for a point is
one look-up and a few orientation tests. Measured on one core: docs/benchmarks.md, `annotate`.

An orientation test in floating point can be wrong when a point lies on a boundary, or within rounding of it. The
error is bounded (Shewchuk 1997, "Adaptive precision floating-point arithmetic", bound A): a test inside the bound
is not trusted, and the point is put to GEOS, whose predicates are exact. Of the areas that touch such a point the
lowest key has it. One bound, for the longest segment, serves all tests; in New York it is worth less than a micrometer.
"""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
import shapely

from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

# Cells per boundary segment, and the most cells: 4.2 million cells take 34 MB.
_CELLS_PER_SEGMENT = 8
_MOST_CELLS = 2**22
# (3 + 16 u) u with u = 2**-53: Shewchuk's bound on the error of the orientation determinant.
_ORIENTATION_BOUND = 3.3306690738754716e-16
# A center closer to a boundary than this share of a cell is not used as a reference (rounding is 1e-9 of a cell).
_CENTER_CLEARANCE = 1e-6
_ASK_GEOS = -1
_PREPARED = threading.Lock()


@dataclass(frozen=True)
class PolygonIndex:
    """Index over areas that tile a region.

    Attributes
    ----------
    keys : (n,) str, rising (`in_order`); `locate` answers with positions in it
    overlaps : (k, 2) pairs of keys whose areas overlap; points there go to the lower key
    fingerprint : digest of keys and boundaries: says which layer the index belongs to
    """

    keys: npt.NDArray[np.str_]
    overlaps: npt.NDArray[np.str_]
    fingerprint: str
    wkb: npt.NDArray[np.uint8] = field(repr=False)  # the areas, one after the other
    wkb_ends: npt.NDArray[np.int64] = field(repr=False)  # (n,)
    grid: Floats = field(repr=False)  # x0, y0, cell width, cell height
    bound: float  # an orientation is trusted beyond it
    columns: int
    # (cells + 1, 2), row by row from the south-west: the area that holds the cell's center (0: outside, number from 1,
    # -1: ask GEOS), and where the segments that cross the cell begin in `segments`.
    cells: Ints = field(repr=False)
    # A segment stands there once for every cell that it crosses, so that a point reads one piece of memory, and in the
    # direction that has the cell's center on the left, so that most points are done with it after one test.
    segments: Floats = field(repr=False)  # (m, 4): x, y of both ends
    swaps: Ints = field(repr=False)  # (m,): number on the left ^ number on the right

    @classmethod
    def build(cls, keys: npt.NDArray[Any], shapes: npt.NDArray[np.object_]) -> PolygonIndex:
        """Index over polygons in their own coordinates; keys and shapes in any order.

        Raises
        ------
        SourceError : no area, a key twice, an empty or invalid polygon
        """
        keys = np.asarray(keys, dtype=np.str_)
        order = in_order(keys)
        keys, shapes = keys[order], np.asarray(shapes, dtype=object)[order]
        _refuse_unusable(keys, shapes)
        wkb = shapely.to_wkb(shapes)
        # A shape can carry a grid (shapely.set_precision), to which GEOS would round what two of them have in common.
        shapes = shapely.from_wkb(wkb)
        ends, swaps = _boundaries(shapes)
        grid, nx, ny = _grid_over(ends, len(swaps))
        starts, members = _crossed_cells(ends, grid, nx, ny)
        centers, unclear = _centers(ends, swaps, grid, nx, ny)
        overlaps, common = _overlaps(keys, shapes)
        centers[unclear | _touched_cells(common, grid, nx, ny)] = _ASK_GEOS
        segments, bound = ends[members], _trusted_beyond(ends, grid)
        aligned = _turn_to_centers(segments, starts, grid, nx, bound)
        cells = np.zeros((nx * ny + 1, 2), dtype=np.int32)
        cells[:-1, 0], cells[:, 1] = np.where(aligned, _ASK_GEOS, centers.ravel()), starts
        joined = b"".join(wkb)
        return cls(
            keys=keys,
            overlaps=overlaps,
            fingerprint=hashlib.sha256("\n".join(keys.tolist()).encode() + joined).hexdigest()[:16],
            wkb=np.frombuffer(joined, dtype=np.uint8),
            wkb_ends=np.cumsum([len(part) for part in wkb]),
            grid=grid,
            bound=bound,
            columns=nx,
            cells=cells,
            segments=segments,
            swaps=swaps[members],
        )

    def locate(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Ints:
        """Position in `keys` of the area that holds each point; -1 outside every area.

        Parameters
        ----------
        x, y : (n,) float, in the coordinates of the shapes. A coordinate that is not finite lies outside.

        A point on a boundary belongs to the lowest key among the areas that touch it; one on the outer edge is
        inside. Points in the order of a space-filling curve are answered two to three times as fast as shuffled ones.
        """
        x = np.ascontiguousarray(x, dtype=np.float64)
        y = np.ascontiguousarray(y, dtype=np.float64)
        found = np.empty(len(x), dtype=np.int32)
        if _locate(x, y, self.grid, self.columns, self.bound, self.cells, self.segments, self.swaps, found):
            asked = np.flatnonzero(found == _ASK_GEOS)
            found[asked] = self._touching(x[asked], y[asked]) + 1
        return found - 1

    def _touching(self, x: Floats, y: Floats) -> Ints:
        points = shapely.points(x, y)
        # The tree would prepare the points; prepared areas answer eight times faster. They index themselves when first
        # asked, which two threads at once must not make them do.
        with _PREPARED:
            point, area = self._tree.query(points)
            touches = shapely.intersects(self.shapes[area], points[point])
        lowest = np.full(len(x), len(self.keys), dtype=np.int32)
        np.minimum.at(lowest, point[touches], area[touches].astype(np.int32))
        lowest[lowest == len(self.keys)] = -1
        return lowest

    @cached_property
    def shapes(self) -> npt.NDArray[np.object_]:
        """(n,) the areas; made when first asked for, since few points need them."""
        content = self.wkb.tobytes()
        starts = np.concatenate([[0], self.wkb_ends[:-1]])
        return np.asarray(
            shapely.from_wkb([content[start:end] for start, end in zip(starts, self.wkb_ends, strict=True)])
        )

    @cached_property
    def _tree(self) -> shapely.STRtree:
        shapely.prepare(self.shapes)
        return shapely.STRtree(self.shapes)

    def to_bytes(self) -> bytes:
        """The index as a NumPy archive without pickles: `from_bytes` reads it in a fraction of the build time."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PolygonIndex:
        """The index that `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
        plain = {name: arrays[name].item() for name in ("fingerprint", "bound", "columns")}
        return cls(**{**arrays, **plain})


def in_order(keys: npt.NDArray[np.str_]) -> npt.NDArray[np.intp]:
    """Positions of keys from the lowest to the highest: whole numbers by value (precinct 9 before 13), else as text."""
    if np.char.isdecimal(keys).all():
        digits = np.char.lstrip(keys, "0")
        return np.lexsort((keys, digits, np.char.str_len(digits)))
    return np.argsort(keys, kind="stable")


def gaps(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Polygons inside the layer that no area covers: slivers between neighbors, and true holes such as lakes."""
    united = shapely.coverage_union_all(shapes) if shapely.coverage_is_valid(shapes) else shapely.union_all(shapes)
    rings = [ring for part in shapely.get_parts(united) for ring in shapely.get_rings(part)[1:]]
    return np.asarray(shapely.polygons(np.array(rings, dtype=object)))


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


def _boundaries(shapes: npt.NDArray[np.object_]) -> tuple[Floats, Ints]:
    """Boundary segments, each once, with the exclusive or of the areas' numbers along it."""
    parts, part_area = shapely.get_parts(shapes, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    ends = _edges(rings)
    number = (part_area[np.repeat(ring_part, shapely.get_num_points(rings) - 1)] + 1).astype(np.int32)
    # Neighbors walk a shared boundary in opposite directions: the lower end comes first for both.
    backwards = (ends[:, 0] > ends[:, 2]) | ((ends[:, 0] == ends[:, 2]) & (ends[:, 1] > ends[:, 3]))
    ends[backwards] = ends[backwards][:, [2, 3, 0, 1]]
    order = np.lexsort(ends.T[::-1])
    ends, number = ends[order], number[order]
    first = np.concatenate([[True], (ends[1:] != ends[:-1]).any(axis=1)])
    swaps = np.bitwise_xor.reduceat(number, np.flatnonzero(first))
    ends = ends[first]
    # A swap of 0 (three areas on one side, as 1 ^ 2 ^ 3) stays: areas that are all the same have no other segments.
    long = (ends[:, 0] != ends[:, 2]) | (ends[:, 1] != ends[:, 3])
    return np.ascontiguousarray(ends[long]), np.ascontiguousarray(swaps[long])


def _grid_over(ends: Floats, segments: int) -> tuple[Floats, int, int]:
    """Grid that holds all boundaries, with its numbers of columns and rows."""
    low, high = ends.reshape(-1, 2).min(axis=0), ends.reshape(-1, 2).max(axis=0)
    # A margin of one part in a million keeps the outermost boundary inside the grid.
    margin = np.maximum((high - low) * 1e-6, np.abs(high) * 1e-12)
    low, high = low - margin, high + margin
    cells = min(max(_CELLS_PER_SEGMENT * segments, 1024), _MOST_CELLS)
    width, height = high - low
    nx = int(np.clip(np.sqrt(cells * width / height), 1, 2**15))
    ny = max(1, cells // nx)
    return np.array([low[0], low[1], width / nx, height / ny]), nx, ny


def _crossed_cells(ends: Floats, grid: Floats, nx: int, ny: int) -> tuple[Ints, Ints]:
    """Segments that cross each cell: those of cell c are members[starts[c] : starts[c + 1]]."""
    starts = np.zeros(nx * ny + 1, dtype=np.int32)
    _visit_cells(ends, grid, nx, ny, starts[1:], np.empty(0, dtype=np.int32), counting=True)
    np.cumsum(starts, out=starts)
    members = np.empty(starts[-1], dtype=np.int32)
    _visit_cells(ends, grid, nx, ny, starts[:-1].copy(), members, counting=False)
    return starts, members


def _overlaps(
    keys: npt.NDArray[np.str_], shapes: npt.NDArray[np.object_]
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.object_]]:
    """Pairs of keys whose insides meet, and what each pair has in common."""
    if shapely.coverage_is_valid(shapes):
        return np.empty((0, 2), dtype=keys.dtype), np.empty(0, dtype=object)
    tree = shapely.STRtree(shapes)
    left, right = tree.query(shapes, predicate="intersects")
    left, right = left[left < right], right[left < right]
    # "T********": the insides have a point in common.
    inside = shapely.relate_pattern(shapes[left], shapes[right], "T********")
    left, right = left[inside], right[inside]
    return np.column_stack([keys[left], keys[right]]), shapely.intersection(shapes[left], shapes[right])


def _touched_cells(shapes: npt.NDArray[np.object_], grid: Floats, nx: int, ny: int) -> npt.NDArray[np.bool_]:
    """(ny, nx) whether a cell has a point in common with one of the shapes."""
    if len(shapes) == 0:
        return np.zeros((ny, nx), dtype=np.bool_)
    # One shape of disjoint parts. An overlap thinner than rounding comes as a line, as a shared boundary does.
    parts = shapely.get_parts(shapely.union_all(shapes))
    kind = shapely.get_type_id(parts)
    around = _edges(shapely.get_rings(parts[kind == shapely.GeometryType.POLYGON]))
    lines = _edges(parts[kind == shapely.GeometryType.LINESTRING])
    starts, _ = _crossed_cells(np.vstack([around, lines]), grid, nx, ny)
    inside, unclear = _centers(around, np.ones(len(around), dtype=np.int32), grid, nx, ny)
    return unclear | (inside > 0) | (np.diff(starts) > 0).reshape(ny, nx)


def _edges(lines: npt.NDArray[np.object_]) -> Floats:
    """(k, 4) both ends of every edge of the lines, in order."""
    points, line = shapely.get_coordinates(lines, return_index=True)
    same = line[1:] == line[:-1]
    return np.hstack([points[:-1][same], points[1:][same]])


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
def _scan_centers(
    ends: Floats, swaps: Ints, grid: Floats, nx: int, ny: int, centers: Ints, unclear: npt.NDArray[np.bool_]
) -> None:  # pragma: no cover - compiled
    """Swaps along each row of centers, written where they take effect."""
    x0, y0, width, height = grid
    for index in range(len(ends)):
        ax, ay, bx, by = ends[index]
        low_y, high_y = min(ay, by), max(ay, by)
        bottom = max(int(np.floor((low_y - y0) / height - 0.5)) - 1, 0)
        top = min(int(np.floor((high_y - y0) / height - 0.5)) + 1, ny - 1)
        for row in range(bottom, top + 1):
            center_y = y0 + (row + 0.5) * height
            if center_y < low_y or center_y >= high_y:
                continue
            crossing = ((ax + (center_y - ay) * (bx - ax) / (by - ay)) - x0) / width - 0.5
            column = int(np.ceil(crossing))
            if column - crossing < _CENTER_CLEARANCE and 0 <= column < nx:
                unclear[row, column] = True
            if crossing - (column - 1) < _CENTER_CLEARANCE and 0 <= column - 1 < nx:
                unclear[row, column - 1] = True
            if column < nx:
                centers[row, max(column, 0)] ^= swaps[index]


def _centers(ends: Floats, swaps: Ints, grid: Floats, nx: int, ny: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Number of the area that holds each cell's center, and where that is too close to call."""
    centers = np.zeros((ny, nx), dtype=np.int32)
    unclear = np.zeros((ny, nx), dtype=np.bool_)
    _scan_centers(ends, swaps, grid, nx, ny, centers, unclear)
    return np.bitwise_xor.accumulate(centers, axis=1), unclear


def _trusted_beyond(ends: Floats, grid: Floats) -> float:
    """Bound on the error of an orientation test between a segment, a point of a cell that it crosses, and the center.

    Shewchuk's bound is `_ORIENTATION_BOUND` times the sum of two products; a factor of theirs is at most the longest
    segment and a cell together.
    """
    farthest = np.abs(ends[:, 2:] - ends[:, :2]).max() + 2 * max(grid[2], grid[3])
    return float(_ORIENTATION_BOUND * 2 * farthest**2)


@nb.njit(cache=True, inline="always")
def _turn(ax: float, ay: float, bx: float, by: float, px: float, py: float) -> float:  # pragma: no cover - compiled
    """Positive: p lies left of a -> b, negative: right."""
    return (ax - px) * (by - py) - (ay - py) * (bx - px)


@nb.njit(cache=True)
def _turn_to_centers(
    segments: Floats, starts: Ints, grid: Floats, nx: int, bound: float
) -> npt.NDArray[np.bool_]:  # pragma: no cover - compiled
    """Turn the segments of each cell so that its center lies on their left; (cells,) whether it is in line with one."""
    x0, y0, width, height = grid
    aligned = np.zeros(len(starts) - 1, dtype=np.bool_)
    for cell in range(len(aligned)):
        cx, cy = x0 + (cell % nx + 0.5) * width, y0 + (cell // nx + 0.5) * height
        for index in range(starts[cell], starts[cell + 1]):
            ax, ay, bx, by = segments[index]
            turn = _turn(ax, ay, bx, by, cx, cy)
            if turn < -bound:
                segments[index, 0], segments[index, 1], segments[index, 2], segments[index, 3] = bx, by, ax, ay
            elif turn <= bound:
                aligned[cell] = True
    return aligned


@nb.njit(cache=True, nogil=True)
def _locate(
    xs: Floats, ys: Floats, grid: Floats, nx: int, bound: float, cells: Ints, segments: Floats, swaps: Ints, found: Ints
) -> int:  # pragma: no cover - compiled
    """Number of the area of each point (0 outside) into `found`; -1 where floating point can not tell; their count."""
    x0, y0, width, height = grid
    ny = (len(cells) - 1) // nx
    across, along = 1 / width, 1 / height
    unsure = 0
    for point in range(len(xs)):
        x, y = xs[point], ys[point]
        column_at, row_at = (x - x0) * across, (y - y0) * along
        # Written so that a coordinate that is not a number fails it.
        if not (0 <= column_at < nx and 0 <= row_at < ny):
            found[point] = 0
            continue
        row, column = int(row_at), int(column_at)
        cell = row * nx + column
        number = cells[cell, 0]
        if number >= 0:
            cx, cy = x0 + (column + 0.5) * width, y0 + (row + 0.5) * height
            for index in range(cells[cell, 1], cells[cell + 1, 1]):
                ax, ay, bx, by = segments[index]
                turn_point = _turn(ax, ay, bx, by, x, y)
                if turn_point > bound:  # on the side of the center
                    continue
                turn_a, turn_b = _turn(x, y, cx, cy, ax, ay), _turn(x, y, cx, cy, bx, by)
                if (turn_a > bound and turn_b > bound) or (turn_a < -bound and turn_b < -bound):
                    continue
                if turn_point < -bound and abs(turn_a) > bound and abs(turn_b) > bound:
                    number ^= swaps[index]
                else:
                    number = _ASK_GEOS
                    break
        if number < 0:
            unsure += 1
        found[point] = number
    return unsure

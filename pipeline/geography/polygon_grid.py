"""Grid over area boundaries, behind `PolygonIndex`: construction and lookup, in compiled loops.

Arrays share these conventions. `ends` is (m, 4) float64: x, y of both ends of each boundary segment. `swaps` is (m,)
int32: the area number to the left of a segment, exclusive or the one to the right. `grid` holds x0, y0, cell width, and
cell height; cells are numbered by row from the southwest. Areas are numbered from 1, and 0 is outside.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt
import shapely

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

# Cells per boundary segment, and the maximum number of cells: 4.2 million cells take 34 MB.
_CELLS_PER_SEGMENT = 8
_MAX_CELLS = 2**22
# (3 + 16 u) u with u = 2**-53: error bound of the orientation determinant (Shewchuk 1997, bound A).
_ORIENTATION_BOUND = 3.3306690738754716e-16
# Centers closer to a boundary than this share of a cell are not used as references (rounding is 1e-9 of a cell).
_CENTER_CLEARANCE = 1e-6
USE_GEOS = -1


def boundary_segments(shapes: npt.NDArray[np.object_]) -> tuple[Floats, Ints]:
    """Return the boundary segments without duplicates, with the exclusive or of the area numbers along each."""
    parts, part_area = shapely.get_parts(shapes, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    ends = _edges(rings)
    number = (part_area[np.repeat(ring_part, shapely.get_num_points(rings) - 1)] + 1).astype(np.int32)
    # Neighbors traverse a shared boundary in opposite directions; put the lower end first in both.
    backwards = (ends[:, 0] > ends[:, 2]) | ((ends[:, 0] == ends[:, 2]) & (ends[:, 1] > ends[:, 3]))
    ends[backwards] = ends[backwards][:, [2, 3, 0, 1]]
    order = np.lexsort(ends.T[::-1])
    ends, number = ends[order], number[order]
    first = np.concatenate([[True], (ends[1:] != ends[:-1]).any(axis=1)])
    swaps = np.bitwise_xor.reduceat(number, np.flatnonzero(first))
    ends = ends[first]
    # Keep swaps of 0 (three areas on one side, as 1 ^ 2 ^ 3): identical areas have no other segments.
    long = (ends[:, 0] != ends[:, 2]) | (ends[:, 1] != ends[:, 3])
    return np.ascontiguousarray(ends[long]), np.ascontiguousarray(swaps[long])


def grid_over(ends: Floats, segments: int) -> tuple[Floats, int, int]:
    """Return a grid that contains all boundaries, with its numbers of columns and rows."""
    low, high = ends.reshape(-1, 2).min(axis=0), ends.reshape(-1, 2).max(axis=0)
    # A margin of one part in a million keeps the outermost boundary inside the grid.
    margin = np.maximum((high - low) * 1e-6, np.abs(high) * 1e-12)
    low, high = low - margin, high + margin
    cells = min(max(_CELLS_PER_SEGMENT * segments, 1024), _MAX_CELLS)
    width, height = high - low
    nx = int(np.clip(np.sqrt(cells * width / height), 1, 2**15))
    ny = max(1, cells // nx)
    return np.array([low[0], low[1], width / nx, height / ny]), nx, ny


def crossed_cells(ends: Floats, grid: Floats, nx: int, ny: int) -> tuple[Ints, Ints]:
    """List the segments that cross each cell: those of cell c are members[starts[c] : starts[c + 1]].

    Parameters
    ----------
    ends : ndarray of float64, shape (m, 4)
        x, y of both ends of each boundary segment.
    grid : ndarray of float64, shape (4,)
        x0, y0, cell width, and cell height.
    nx, ny : int
        Number of columns and rows.
    """
    starts = np.zeros(nx * ny + 1, dtype=np.int32)
    _visit_cells(ends, grid, nx, ny, starts[1:], np.empty(0, dtype=np.int32), counting=True)
    np.cumsum(starts, out=starts)
    members = np.empty(starts[-1], dtype=np.int32)
    _visit_cells(ends, grid, nx, ny, starts[:-1].copy(), members, counting=False)
    return starts, members


def touched_cells(shapes: npt.NDArray[np.object_], grid: Floats, nx: int, ny: int) -> npt.NDArray[np.bool_]:
    """Return whether each cell of the grid, (ny, nx), intersects one of the shapes.

    Parameters
    ----------
    shapes : ndarray of geometries, shape (n,)
        Polygons in the coordinates of the grid.
    grid : ndarray of float64, shape (4,)
        x0, y0, cell width, and cell height.
    nx, ny : int
        Number of columns and rows.
    """
    if len(shapes) == 0:
        return np.zeros((ny, nx), dtype=np.bool_)
    # The union has disjoint parts. Shared boundaries, and overlaps thinner than rounding, are lines.
    parts = shapely.get_parts(shapely.union_all(shapes))
    kind = shapely.get_type_id(parts)
    around = _edges(shapely.get_rings(parts[kind == shapely.GeometryType.POLYGON]))
    lines = _edges(parts[kind == shapely.GeometryType.LINESTRING])
    starts, _ = crossed_cells(np.vstack([around, lines]), grid, nx, ny)
    inside, unclear = areas_at_centers(around, np.ones(len(around), dtype=np.int32), grid, nx, ny)
    return unclear | (inside > 0) | (np.diff(starts) > 0).reshape(ny, nx)


def _edges(lines: npt.NDArray[np.object_]) -> Floats:
    """Return both ends of every edge of the lines, (k, 4), in order."""
    points, line = shapely.get_coordinates(lines, return_index=True)
    same = line[1:] == line[:-1]
    return np.hstack([points[:-1][same], points[1:][same]])


@nb.njit(cache=True)
def _visit_cells(
    ends: Floats, grid: Floats, nx: int, ny: int, cursor: Ints, members: Ints, counting: bool
) -> None:  # pragma: no cover - compiled
    """Visit the cells that each segment crosses; count them in `cursor`, or write at `cursor` into `members`."""
    x0, y0, width, height = grid
    # Also visit cells slightly beyond the exact ones: an extra test is harmless, a missing one is not.
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
    """Write the swaps along each row of centers where they take effect."""
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


def areas_at_centers(ends: Floats, swaps: Ints, grid: Floats, nx: int, ny: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return the number of the area at each cell center, and which centers are too close to a boundary to decide.

    Parameters
    ----------
    ends : ndarray of float64, shape (m, 4)
        x, y of both ends of each boundary segment.
    swaps : ndarray of int32, shape (m,)
        Area number to the left of each segment, exclusive or the one to the right.
    grid : ndarray of float64, shape (4,)
        x0, y0, cell width, and cell height.
    nx, ny : int
        Number of columns and rows.
    """
    centers = np.zeros((ny, nx), dtype=np.int32)
    unclear = np.zeros((ny, nx), dtype=np.bool_)
    _scan_centers(ends, swaps, grid, nx, ny, centers, unclear)
    return np.bitwise_xor.accumulate(centers, axis=1), unclear


def orientation_bound(ends: Floats, grid: Floats) -> float:
    """Bound the error of an orientation test of a segment, a point in a cell that it crosses, and the cell center.

    Shewchuk's bound is `_ORIENTATION_BOUND` times the sum of two products. Each factor is at most the length of the
    longest segment plus the size of a cell.
    """
    farthest = np.abs(ends[:, 2:] - ends[:, :2]).max() + 2 * max(grid[2], grid[3])
    return float(_ORIENTATION_BOUND * 2 * farthest**2)


@nb.njit(cache=True, inline="always")
def _turn(ax: float, ay: float, bx: float, by: float, px: float, py: float) -> float:  # pragma: no cover - compiled
    """Return a positive number if p lies left of a -> b, and a negative one if it lies right."""
    return (ax - px) * (by - py) - (ay - py) * (bx - px)


@nb.njit(cache=True)
def orient_to_centers(
    segments: Floats, starts: Ints, grid: Floats, nx: int, bound: float
) -> npt.NDArray[np.bool_]:  # pragma: no cover - compiled
    """Orient the segments of each cell with its center on their left; return which centers are in line with one.

    Parameters
    ----------
    segments : ndarray of float64, shape (m, 4)
        Segments in the order of the cells; changed in place.
    starts : ndarray of int32, shape (nx * ny + 1,)
        First segment of each cell.
    grid : ndarray of float64, shape (4,)
        x0, y0, cell width, and cell height.
    nx : int
        Number of columns.
    bound : float
        Error bound of the orientation determinant: smaller values are undecided.
    """
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
def locate_points(
    xs: Floats,
    ys: Floats,
    grid: Floats,
    nx: int,
    bound: float,
    cells: Ints,
    segments: Floats,
    swaps: Ints,
    number: Ints,
) -> int:  # pragma: no cover - compiled
    """Write the area number of each point to `number` (0: outside, -1: undecided); return the undecided count.

    Parameters
    ----------
    xs, ys : ndarray of float64, shape (n,)
        Points in the coordinates of the shapes.
    grid : ndarray of float64, shape (4,)
        x0, y0, cell width, and cell height.
    nx : int
        Number of columns.
    bound : float
        Error bound of the orientation determinant: smaller values are undecided.
    cells : ndarray of int32, shape (nx * ny + 1, 2)
        Area number at the center of each cell, and its first segment.
    segments : ndarray of float64, shape (m, 4)
        Segments in the order of the cells.
    swaps : ndarray of int32, shape (m,)
        Area number to the left of each segment, exclusive or the one to the right.
    number : ndarray of int32, shape (n,)
        Receives the area numbers.
    """
    x0, y0, width, height = grid
    ny = (len(cells) - 1) // nx
    across, along = 1 / width, 1 / height
    undecided = 0
    for point in range(len(xs)):
        x, y = xs[point], ys[point]
        column_at, row_at = (x - x0) * across, (y - y0) * along
        # Also true for coordinates that are not numbers.
        if not (0 <= column_at < nx and 0 <= row_at < ny):
            number[point] = 0
            continue
        row, column = int(row_at), int(column_at)
        cell = row * nx + column
        area = cells[cell, 0]
        if area >= 0:
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
                    area ^= swaps[index]
                else:
                    area = USE_GEOS
                    break
        if area < 0:
            undecided += 1
        number[point] = area
    return undecided

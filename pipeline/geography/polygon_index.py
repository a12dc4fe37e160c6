"""Exact point-in-polygon lookup for areas that tile a city, with the same result on every machine.

The index lays a grid over the areas. Each cell stores the area that contains its center, and the boundary segments that
cross the cell. The straight line from a point to its cell's center crosses some of them, and each crossing swaps the
area on one side for the area on the other. With areas numbered from 1, and 0 for outside, the swap is an exclusive or
with (number on the left) ^ (number on the right), so the order of crossings does not matter. One lookup and a few
orientation tests locate a point. docs/benchmarks.md, `annotate`, has the measured speed.

A floating-point orientation test can fail for a point on a boundary, or within rounding of it. The error is bounded
(Shewchuk 1997, "Adaptive precision floating-point arithmetic", bound A). GEOS, whose predicates are exact, decides
points whose test falls within the bound; of the areas that touch such a point, the lowest key wins. A single bound,
that of the longest segment, serves all tests; in New York it corresponds to less than a micrometer.
"""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography import polygon_grid
from patrolscope.pipeline.geography.polygon_grid import USE_GEOS, Floats, Ints

_PREPARED = threading.Lock()


@dataclass(frozen=True)
class PolygonIndex:
    """Point-in-polygon index over areas that tile a city.

    Attributes
    ----------
    keys : (n,) str
        Keys in ascending order (`in_order`); `locate` returns positions in this array.
    overlaps : (k, 2) str
        Pairs of keys whose areas overlap. Points in an overlap go to the lower key.
    fingerprint : str
        Digest of keys and boundaries, which identifies the indexed layer.
    """

    keys: npt.NDArray[np.str_]
    overlaps: npt.NDArray[np.str_]
    fingerprint: str
    wkb: npt.NDArray[np.uint8] = field(repr=False)  # the areas, concatenated
    wkb_ends: npt.NDArray[np.int64] = field(repr=False)  # (n,)
    grid: Floats = field(repr=False)  # x0, y0, cell width, cell height
    bound: float  # an orientation beyond it is reliable
    columns: int
    # (cells + 1, 2), by row from the southwest: the area that contains the cell's center (0: outside, numbers from 1,
    # -1: use GEOS), and the first of the cell's segments in `segments`.
    cells: Ints = field(repr=False)
    # Segments are repeated for each cell that they cross, so that a lookup reads contiguous memory. Each is oriented
    # with the cell's center on its left, so that one test rules out most segments.
    segments: Floats = field(repr=False)  # (m, 4): x, y of both ends
    swaps: Ints = field(repr=False)  # (m,): number on the left ^ number on the right

    @classmethod
    def build(cls, keys: npt.NDArray[Any], shapes: npt.NDArray[np.object_]) -> PolygonIndex:
        """Build an index over polygons, in any order and in their own coordinates.

        Raises
        ------
        SourceError
            If there are no areas, a key is repeated, or a polygon is empty or invalid.
        """
        keys = np.asarray(keys, dtype=np.str_)
        order = in_order(keys)
        keys, shapes = keys[order], np.asarray(shapes, dtype=object)[order]
        _check_layer(keys, shapes)
        wkb = shapely.to_wkb(shapes)
        # Shapes with a precision grid (shapely.set_precision) would have their intersections rounded by GEOS.
        shapes = shapely.from_wkb(wkb)
        ends, swaps = polygon_grid.boundary_segments(shapes)
        grid, nx, ny = polygon_grid.grid_over(ends, len(swaps))
        starts, members = polygon_grid.crossed_cells(ends, grid, nx, ny)
        centers, unclear = polygon_grid.areas_at_centers(ends, swaps, grid, nx, ny)
        overlaps, common = _overlaps(keys, shapes)
        centers[unclear | polygon_grid.touched_cells(common, grid, nx, ny)] = USE_GEOS
        segments, bound = ends[members], polygon_grid.orientation_bound(ends, grid)
        aligned = polygon_grid.orient_to_centers(segments, starts, grid, nx, bound)
        cells = np.zeros((nx * ny + 1, 2), dtype=np.int32)
        cells[:-1, 0], cells[:, 1] = np.where(aligned, USE_GEOS, centers.ravel()), starts
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
        """Find the area that contains each point.

        A point on a shared boundary belongs to the lowest key among the areas that touch it; a point on the outer edge
        is inside. Points ordered along a space-filling curve take a half to a third of the time of shuffled ones.

        Parameters
        ----------
        x, y : (n,) float
            Points in the coordinates of the shapes. Points with coordinates that are not finite are outside.

        Returns
        -------
        (n,) int32
            Position of the area in `keys`; -1 outside all areas.
        """
        x = np.ascontiguousarray(x, dtype=np.float64)
        y = np.ascontiguousarray(y, dtype=np.float64)
        number = np.empty(len(x), dtype=np.int32)
        arrays = (self.grid, self.columns, self.bound, self.cells, self.segments, self.swaps)
        if polygon_grid.locate_points(x, y, *arrays, number):
            undecided = np.flatnonzero(number == USE_GEOS)
            number[undecided] = self._locate_exactly(x[undecided], y[undecided]) + 1
        return number - 1

    def _locate_exactly(self, x: Floats, y: Floats) -> Ints:
        points = shapely.points(x, y)
        # The tree would prepare the points, but prepared areas are eight times as fast. The first query indexes them,
        # which two threads must not do at once.
        with _PREPARED:
            point, area = self._tree.query(points)
            touches = shapely.intersects(self.shapes[area], points[point])
        lowest = np.full(len(x), len(self.keys), dtype=np.int32)
        np.minimum.at(lowest, point[touches], area[touches].astype(np.int32))
        lowest[lowest == len(self.keys)] = -1
        return lowest

    @cached_property
    def shapes(self) -> npt.NDArray[np.object_]:
        """Polygons in the order of `keys`, decoded at first use because few points need them."""
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
        """Serialize the index as a NumPy archive without pickles; reading it takes a fraction of the build time."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PolygonIndex:
        """Read an index that `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
        scalars = {name: arrays[name].item() for name in ("fingerprint", "bound", "columns")}
        return cls(**{**arrays, **scalars})


def in_order(keys: npt.NDArray[np.str_]) -> npt.NDArray[np.intp]:
    """Return the positions that sort keys: whole numbers by value (precinct 9 before 13), other keys as text."""
    if np.char.isdecimal(keys).all():
        digits = np.char.lstrip(keys, "0")
        return np.lexsort((keys, digits, np.char.str_len(digits)))
    return np.argsort(keys, kind="stable")


def gaps(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return the holes in the union of a layer: slivers between neighboring areas, and true holes such as lakes."""
    united = shapely.coverage_union_all(shapes) if shapely.coverage_is_valid(shapes) else shapely.union_all(shapes)
    rings = [ring for part in shapely.get_parts(united) for ring in shapely.get_rings(part)[1:]]
    return np.asarray(shapely.polygons(np.array(rings, dtype=object)))


def _check_layer(keys: npt.NDArray[np.str_], shapes: npt.NDArray[np.object_]) -> None:
    if len(keys) == 0:
        raise SourceError("a layer has no areas; expected at least 1; check its file")
    if len(keys) != len(shapes):
        raise SourceError(f"a layer has {len(keys)} keys and {len(shapes)} areas; expected equal numbers")
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if len(repeated):
        raise SourceError(f"area {repeated[0]} occurs more than once in its layer; merge its parts into one row")
    bad = shapely.is_missing(shapes) | shapely.is_empty(shapes) | ~shapely.is_valid(shapes)
    bad |= ~np.isin(shapely.get_type_id(shapes), [3, 6])
    if bad.any():
        raise SourceError(
            f"{int(bad.sum())} areas are not valid polygons, first {keys[bad][0]}: "
            f"{shapely.is_valid_reason(shapes[bad][0])}; repair the layer (shapely.make_valid)"
        )


def _overlaps(
    keys: npt.NDArray[np.str_], shapes: npt.NDArray[np.object_]
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.object_]]:
    """Return the pairs of keys whose interiors intersect, and the intersections."""
    if shapely.coverage_is_valid(shapes):
        return np.empty((0, 2), dtype=keys.dtype), np.empty(0, dtype=object)
    tree = shapely.STRtree(shapes)
    left, right = tree.query(shapes, predicate="intersects")
    left, right = left[left < right], right[left < right]
    # "T********": the interiors intersect.
    inside = shapely.relate_pattern(shapes[left], shapes[right], "T********")
    left, right = left[inside], right[inside]
    return np.column_stack([keys[left], keys[right]]), shapely.intersection(shapes[left], shapes[right])

"""Street network derived from the boundaries of areas, and random walks along it.

Boundaries of census areas follow streets. Where areas tile a city, neighbors share the vertices of their common
boundary, so the unique boundary segments form a graph. Junctions are the vertices at which one segment ends or at
least three meet; streets are the lines between junctions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import shapely

from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# On a sphere of radius 6,371 km; within 0.5% of the ellipsoid, as accurate as the location of a street.
M_PER_DEGREE = 111_195.0
# The boundary of only one area is the outer edge of the city, mostly shore, with few rides.
_OUTER_EDGE_WEIGHT = 0.02
# Density of ride starts far from the center, relative to the center.
_OUTSKIRTS_WEIGHT = 0.08


@dataclass(frozen=True)
class Streets:
    """Streets as concatenated polylines, and the junctions between them.

    A street k has two directions: 2 k in the order of its points, and 2 k + 1 against it.

    Attributes
    ----------
    points : ndarray of float64, shape (v, 2)
        Longitude and latitude, EPSG:4326 degrees, ordered by street.
    first : ndarray of int64, shape (k + 1,)
        Position of the first point of each street in `points`.
    along_m : ndarray of float64, shape (v,)
        Distance along all streets laid end to end, meters.
    head : ndarray of int64, shape (2 k,)
        Junction at the end of each direction.
    outer : ndarray of bool, shape (k,)
        Whether the street is on the outer edge of the city.
    """

    points: Floats = field(repr=False)
    first: Ints = field(repr=False)
    along_m: Floats = field(repr=False)
    head: Ints = field(repr=False)
    outer: npt.NDArray[np.bool_] = field(repr=False)

    @classmethod
    def build(cls, shapes: npt.NDArray[np.object_]) -> Streets:
        """Build the network from polygons that tile a city, in EPSG:4326 degrees.

        The result does not depend on the order of the polygons.

        Raises
        ------
        SourceError
            If the polygons have no boundary.
        """
        ends, outer = _unique_segments(shapes)
        if not len(ends):
            raise SourceError("the areas have no boundary; expected polygons; check layers.areas")
        parts = _merge_segments(ends)
        points, street = shapely.get_coordinates(parts, return_index=True)
        first = np.concatenate([[0], np.cumsum(np.bincount(street, minlength=len(parts)))])
        steps_m = np.hypot(*_meters(points[1:] - points[:-1], points[1:, 1]))
        steps_m[first[1:-1] - 1] = 0.0  # from the end of a street to the start of the next
        along_m = np.concatenate([[0.0], np.cumsum(steps_m)])
        tips = np.concatenate([points[first[:-1]], points[first[1:] - 1]])
        _, junction = np.unique(tips, axis=0, return_inverse=True)
        start, end = np.split(junction.ravel(), 2)
        head = np.column_stack([end, start]).ravel()
        # Streets are entirely inner or outer, since three segments meet where an inner boundary reaches the outer edge.
        is_outer = outer[_rows_of(points[first[:-1]], points[first[:-1] + 1], ends)]
        return cls(points, first, along_m, head, is_outer)

    @property
    def lengths_m(self) -> Floats:
        """Length of each street, shape (k,), meters."""
        return self.along_m[self.first[1:] - 1] - self.along_m[self.first[:-1]]

    @property
    def middles(self) -> Floats:
        """Longitude and latitude of the middle of each street, shape (k, 2)."""
        streets = np.arange(len(self.outer))
        return self.positions(streets, self.lengths_m / 2)

    def positions(self, street: Ints, offset_m: Floats) -> Floats:
        """Return longitude and latitude (n, 2) at a distance (n,) along a street (n,), in the order of its points."""
        at_m = self.along_m[self.first[street]] + offset_m
        before = np.searchsorted(self.along_m, at_m, side="right") - 1
        before = np.clip(before, self.first[street], self.first[street + 1] - 2)
        step_m = self.along_m[before + 1] - self.along_m[before]
        share = np.clip((at_m - self.along_m[before]) / np.where(step_m > 0, step_m, 1.0), 0.0, 1.0)[:, None]
        return self.points[before] * (1 - share) + self.points[before + 1] * share

    @cached_property
    def _turns(self) -> tuple[Ints, Floats]:
        """Possible next directions of each direction, and their cumulative probabilities; both (2 k, options)."""
        directions = np.arange(len(self.head))
        leaving = np.argsort(self.head[directions ^ 1], kind="stable")
        degree = np.bincount(self.head)
        begin = np.concatenate([[0], np.cumsum(degree)])
        options = np.arange(int(degree.max()))
        exists = options < degree[self.head][:, None]
        following = leaving[np.minimum(begin[self.head][:, None] + options, len(leaving) - 1)]
        allowed = exists & (following != (directions ^ 1)[:, None])
        # Rides turn back only in dead ends.
        allowed[~allowed.any(axis=1)] = exists[~allowed.any(axis=1)]
        weight = np.where(self.outer[following // 2], _OUTER_EDGE_WEIGHT, 1.0) * allowed
        cdf = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
        return following, cdf

    @cached_property
    def start_cdf(self) -> Floats:
        """Cumulative probability (k,) that a ride starts on a street, by length and distance to the center.

        The center is the median location of streets, and the scale is the median distance to it.
        """
        middles = self.middles
        # Exclude the shore, which would shift the center toward the longest coast.
        inner = middles[~self.outer] if (~self.outer).any() else middles
        center = np.median(inner, axis=0)
        distance_m = np.hypot(*_meters(middles - center, middles[:, 1]))
        scale_m = max(float(np.median(np.hypot(*_meters(inner - center, inner[:, 1])))), 1.0)
        weight = self.lengths_m * (_OUTSKIRTS_WEIGHT + np.exp(-((distance_m / scale_m) ** 2)))
        weight = weight * np.where(self.outer, _OUTER_EDGE_WEIGHT, 1.0)
        return np.cumsum(weight) / weight.sum()

    def draw_locations(self, count: int, generator: np.random.Generator) -> tuple[Ints, Floats]:
        """Draw locations on streets, denser in the center: street and distance along it in meters, both (count,)."""
        street = np.searchsorted(self.start_cdf, generator.random(count), side="right")
        street = np.minimum(street, len(self.outer) - 1)
        return street, generator.random(count) * self.lengths_m[street]

    def draw_walks(self, reach_m: Floats, generator: np.random.Generator) -> Walks:
        """Draw random walks of at least the given lengths (r,), meters, which turn back only in dead ends."""
        street, offset_m = self.draw_locations(len(reach_m), generator)
        lengths_m = self.lengths_m
        following, cdf = self._turns
        current = 2 * street + generator.integers(0, 2, len(reach_m))
        start_m = np.where(current % 2 == 0, offset_m, lengths_m[street] - offset_m)
        route, covered_m = [current], [lengths_m[street]]
        while (covered_m[-1] - start_m < reach_m).any():
            drawn = generator.random(len(reach_m))
            option = (drawn[:, None] >= cdf[current]).sum(axis=1)
            current = following[current, np.minimum(option, following.shape[1] - 1)]
            route.append(current)
            covered_m.append(covered_m[-1] + lengths_m[current // 2])
        return Walks(self, np.column_stack(route), np.column_stack(covered_m), start_m)


@dataclass(frozen=True)
class Walks:
    """Random walks through the network: directions (r, s) and the distance at the end of each (r, s), meters."""

    streets: Streets
    route: Ints = field(repr=False)
    covered_m: Floats = field(repr=False)
    start_m: Floats = field(repr=False)  # (r,) start of the walk along its first direction, meters

    def positions(self, walk: Ints, distance_m: Floats) -> Floats:
        """Return longitude and latitude (n, 2) after a distance (n,) along a walk (n,)."""
        at_m = self.start_m[walk] + distance_m
        # One sorted array serves all walks, with a separate range of distances for each.
        reach_m = float(self.covered_m[:, -1].max()) + 1.0
        ends = (self.covered_m + np.arange(len(self.covered_m))[:, None] * reach_m).ravel()
        step = np.searchsorted(ends, at_m + walk * reach_m, side="left") - walk * self.route.shape[1]
        step = np.clip(step, 0, self.route.shape[1] - 1)
        direction = self.route[walk, step]
        street, lengths_m = direction // 2, self.streets.lengths_m
        traveled_m = np.clip(at_m - (self.covered_m[walk, step] - lengths_m[street]), 0.0, lengths_m[street])
        return self.streets.positions(street, np.where(direction % 2 == 0, traveled_m, lengths_m[street] - traveled_m))


def displace(locations: Floats, east_m: Floats, north_m: Floats) -> Floats:
    """Move locations by some meters.

    Parameters
    ----------
    locations : ndarray of float64, shape (n, 2)
        Longitude and latitude, EPSG:4326 degrees.
    east_m, north_m : ndarray of float64, shape (n,)
        Displacement, meters.

    Returns
    -------
    ndarray of float64, shape (n, 2)
        Longitude and latitude.
    """
    per_degree_east_m = M_PER_DEGREE * np.cos(np.radians(locations[:, 1]))
    return locations + np.column_stack([east_m / per_degree_east_m, north_m / M_PER_DEGREE])


def _meters(degrees: Floats, lat: Floats) -> tuple[Floats, Floats]:
    return degrees[:, 0] * M_PER_DEGREE * np.cos(np.radians(lat)), degrees[:, 1] * M_PER_DEGREE


def _sorted_ends(a: Floats, b: Floats) -> Floats:
    """Return segment ends x, y, x, y (m, 4) with the lower end first, so that shared segments are equal."""
    ends = np.hstack([a, b])
    backwards = (ends[:, 0] > ends[:, 2]) | ((ends[:, 0] == ends[:, 2]) & (ends[:, 1] > ends[:, 3]))
    ends[backwards] = ends[backwards][:, [2, 3, 0, 1]]
    return ends


def _rows_of(a: Floats, b: Floats, ends: Floats) -> Ints:
    """Return the rows of the segments from a to b in `ends`, which is sorted."""
    whole_row = [("", np.float64)] * 4
    segments = np.ascontiguousarray(_sorted_ends(a, b)).view(whole_row).ravel()
    return np.searchsorted(np.ascontiguousarray(ends).view(whole_row).ravel(), segments)


def _unique_segments(shapes: npt.NDArray[np.object_]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the unique boundary segments (m, 4), sorted, and whether only one area has the segment (m,)."""
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(shapes)), return_index=True)
    inside = ring[1:] == ring[:-1]
    ends = _sorted_ends(points[:-1][inside], points[1:][inside])
    ends = ends[(ends[:, :2] != ends[:, 2:]).any(axis=1)]
    ends, times = np.unique(ends, axis=0, return_counts=True)
    return ends, times == 1


def _merge_segments(ends: Floats) -> npt.NDArray[np.object_]:
    """Merge segments into lines between junctions; order and direction follow from their coordinates."""
    segments = shapely.multilinestrings(shapely.linestrings(ends.reshape(-1, 2, 2)))
    lines = shapely.get_parts(shapely.line_merge(segments))
    points, line = shapely.get_coordinates(lines, return_index=True)
    first = np.searchsorted(line, np.arange(len(lines)), side="left")
    last = np.searchsorted(line, np.arange(len(lines)), side="right") - 1
    # Loops start and end at one point; compare their second and their second to last point.
    inward = (points[first] == points[last]).all(axis=1).astype(np.int64)
    start, end = points[first + inward], points[last - inward]
    swap = (start[:, 0] > end[:, 0]) | ((start[:, 0] == end[:, 0]) & (start[:, 1] > end[:, 1]))
    lines[swap] = shapely.reverse(lines[swap])
    points = shapely.get_coordinates(lines)
    return lines[np.lexsort([*points[first + 1].T[::-1], *points[first].T[::-1]])]

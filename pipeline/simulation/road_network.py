"""A street network made from the boundaries of areas, and rides along it.

Boundaries of census areas run along streets. Where areas tile a city, neighbors share the vertices of their common
boundary, so the boundary segments, each taken once, form a graph: junctions are vertices where other than two
segments meet, streets the lines between them.
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

# On a sphere of 6,371 km; within 0.5 % of the ellipsoid, which is as good as a street's own position.
M_PER_DEGREE = 111_195.0
# A boundary that belongs to one area only is the city's outer edge, mostly shore: rarely driven.
_OUTER_EDGE_WEIGHT = 0.02
# Far from the center streets are not empty: rides start there at this rate, relative to the center.
_OUTSKIRTS_WEIGHT = 0.08


@dataclass(frozen=True)
class Streets:
    """Streets as polylines one after the other, and the junctions that join them.

    A street has two directions: 2 k runs street k as its points are stored, 2 k + 1 runs it back.

    Attributes
    ----------
    points : (v, 2) longitude and latitude, EPSG:4326 degrees, street after street
    first : (k + 1,) where each street begins in `points`
    along_m : (v,) distance along all streets laid end to end, meters
    head : (2 k,) junction that each direction leads to
    outer : (k,) the street lies on the city's outer edge
    """

    points: Floats = field(repr=False)
    first: Ints = field(repr=False)
    along_m: Floats = field(repr=False)
    head: Ints = field(repr=False)
    outer: npt.NDArray[np.bool_] = field(repr=False)

    @classmethod
    def build(cls, shapes: npt.NDArray[np.object_]) -> Streets:
        """Network of the boundaries of polygons that tile a city, in EPSG:4326 degrees.

        The same areas give the same network, in whatever order they come.

        Raises
        ------
        SourceError : there is no boundary
        """
        ends, outer = _unique_segments(shapes)
        if not len(ends):
            raise SourceError("the areas have no boundary to ride along: check the layer of areas")
        parts = _merged(ends)
        points, street = shapely.get_coordinates(parts, return_index=True)
        first = np.concatenate([[0], np.cumsum(np.bincount(street, minlength=len(parts)))])
        steps_m = np.hypot(*_meters(points[1:] - points[:-1], points[1:, 1]))
        steps_m[first[1:-1] - 1] = 0.0  # from the end of a street to the start of the next
        along_m = np.concatenate([[0.0], np.cumsum(steps_m)])
        tips = np.concatenate([points[first[:-1]], points[first[1:] - 1]])
        _, junction = np.unique(tips, axis=0, return_inverse=True)
        start, end = np.split(junction.ravel(), 2)
        head = np.column_stack([end, start]).ravel()
        # Where an inner boundary meets the outer edge three segments meet: a street is wholly one or the other.
        is_outer = outer[_rows_of(points[first[:-1]], points[first[:-1] + 1], ends)]
        return cls(points, first, along_m, head, is_outer)

    @property
    def lengths_m(self) -> Floats:
        """(k,) length of each street."""
        return self.along_m[self.first[1:] - 1] - self.along_m[self.first[:-1]]

    @property
    def middles(self) -> Floats:
        """(k, 2) longitude and latitude half-way along each street."""
        streets = np.arange(len(self.outer))
        return self.positions(streets, self.lengths_m / 2)

    def positions(self, street: Ints, offset_m: Floats) -> Floats:
        """(n, 2) longitude and latitude at a distance along a street, in its stored direction; degrees."""
        at_m = self.along_m[self.first[street]] + offset_m
        before = np.searchsorted(self.along_m, at_m, side="right") - 1
        before = np.clip(before, self.first[street], self.first[street + 1] - 2)
        step_m = self.along_m[before + 1] - self.along_m[before]
        share = np.clip((at_m - self.along_m[before]) / np.where(step_m > 0, step_m, 1.0), 0.0, 1.0)[:, None]
        return self.points[before] * (1 - share) + self.points[before + 1] * share

    @cached_property
    def _turns(self) -> tuple[Ints, Floats]:
        """For each direction those that may follow it, and the running sum of their chances; both (2 k, most)."""
        directions = np.arange(len(self.head))
        leaving = np.argsort(self.head[directions ^ 1], kind="stable")
        degree = np.bincount(self.head)
        begin = np.concatenate([[0], np.cumsum(degree)])
        options = np.arange(int(degree.max()))
        there = options < degree[self.head][:, None]
        place = np.minimum(begin[self.head][:, None] + options, len(leaving) - 1)
        following = leaving[place]
        allowed = there & (following != (directions ^ 1)[:, None])
        # Only at the end of a dead end is the way back the way on.
        allowed[~allowed.any(axis=1)] = there[~allowed.any(axis=1)]
        weight = np.where(self.outer[following // 2], _OUTER_EDGE_WEIGHT, 1.0) * allowed
        chance = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
        return following, chance

    @cached_property
    def start_chances(self) -> Floats:
        """(k,) running sum of the chances that a ride starts on a street: by length, and more in the center.

        The center is the median street, the scale the median distance to it, so any city has one.
        """
        middles = self.middles
        # Without the shore, which would pull the center toward the longest coast.
        inner = middles[~self.outer] if (~self.outer).any() else middles
        center = np.median(inner, axis=0)
        away_m = np.hypot(*_meters(middles - center, middles[:, 1]))
        scale_m = max(float(np.median(np.hypot(*_meters(inner - center, inner[:, 1])))), 1.0)
        weight = self.lengths_m * (_OUTSKIRTS_WEIGHT + np.exp(-((away_m / scale_m) ** 2)))
        weight = weight * np.where(self.outer, _OUTER_EDGE_WEIGHT, 1.0)
        return np.cumsum(weight) / weight.sum()

    def draw_places(self, count: int, generator: np.random.Generator) -> tuple[Ints, Floats]:
        """Random places on streets, denser in the center: street and distance along it, meters."""
        street = np.searchsorted(self.start_chances, generator.random(count), side="right")
        street = np.minimum(street, len(self.outer) - 1)
        return street, generator.random(count) * self.lengths_m[street]

    def draw_walks(self, reach_m: Floats, generator: np.random.Generator) -> Walks:
        """Random walks that do not turn back, each at least as long as asked; one for each of `reach_m`."""
        street, offset_m = self.draw_places(len(reach_m), generator)
        lengths_m = self.lengths_m
        following, chance = self._turns
        current = 2 * street + generator.integers(0, 2, len(reach_m))
        start_m = np.where(current % 2 == 0, offset_m, lengths_m[street] - offset_m)
        route, covered_m = [current], [lengths_m[street]]
        while (covered_m[-1] - start_m < reach_m).any():
            drawn = generator.random(len(reach_m))
            option = (drawn[:, None] >= chance[current]).sum(axis=1)
            current = following[current, np.minimum(option, following.shape[1] - 1)]
            route.append(current)
            covered_m.append(covered_m[-1] + lengths_m[current // 2])
        return Walks(self, np.column_stack(route), np.column_stack(covered_m), start_m)


@dataclass(frozen=True)
class Walks:
    """Routes through the network: `route` (r, s) directions, `covered_m` (r, s) distance at the end of each."""

    streets: Streets
    route: Ints = field(repr=False)
    covered_m: Floats = field(repr=False)
    start_m: Floats = field(repr=False)  # (r,) where on its first direction a walk begins

    def positions(self, walk: Ints, distance_m: Floats) -> Floats:
        """(n, 2) longitude and latitude after a distance along a walk; degrees."""
        at_m = self.start_m[walk] + distance_m
        # One sorted array for all walks: each has its own range of distances.
        reach_m = float(self.covered_m[:, -1].max()) + 1.0
        ends = (self.covered_m + np.arange(len(self.covered_m))[:, None] * reach_m).ravel()
        step = np.searchsorted(ends, at_m + walk * reach_m, side="left") - walk * self.route.shape[1]
        step = np.clip(step, 0, self.route.shape[1] - 1)
        direction = self.route[walk, step]
        street, lengths_m = direction // 2, self.streets.lengths_m
        gone_m = np.clip(at_m - (self.covered_m[walk, step] - lengths_m[street]), 0.0, lengths_m[street])
        return self.streets.positions(street, np.where(direction % 2 == 0, gone_m, lengths_m[street] - gone_m))


def displaced(places: Floats, east_m: Floats, north_m: Floats) -> Floats:
    """(n, 2) longitude and latitude of places moved by some meters; degrees."""
    per_degree_east_m = M_PER_DEGREE * np.cos(np.radians(places[:, 1]))
    return places + np.column_stack([east_m / per_degree_east_m, north_m / M_PER_DEGREE])


def _meters(degrees: Floats, lat: Floats) -> tuple[Floats, Floats]:
    return degrees[:, 0] * M_PER_DEGREE * np.cos(np.radians(lat)), degrees[:, 1] * M_PER_DEGREE


def _sorted_ends(a: Floats, b: Floats) -> Floats:
    """(m, 4) x, y of both ends of segments, the lower end first, so that two neighbors' segments are equal."""
    ends = np.hstack([a, b])
    backwards = (ends[:, 0] > ends[:, 2]) | ((ends[:, 0] == ends[:, 2]) & (ends[:, 1] > ends[:, 3]))
    ends[backwards] = ends[backwards][:, [2, 3, 0, 1]]
    return ends


def _rows_of(a: Floats, b: Floats, ends: Floats) -> Ints:
    """Rows of `ends`, which are sorted, that hold the segments from a to b."""
    whole_row = [("", np.float64)] * 4
    wanted = np.ascontiguousarray(_sorted_ends(a, b)).view(whole_row).ravel()
    return np.searchsorted(np.ascontiguousarray(ends).view(whole_row).ravel(), wanted)


def _unique_segments(shapes: npt.NDArray[np.object_]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Boundary segments, each once, sorted: (m, 4) x, y of both ends, and whether one area only has it."""
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(shapes)), return_index=True)
    inside = ring[1:] == ring[:-1]
    ends = _sorted_ends(points[:-1][inside], points[1:][inside])
    ends = ends[(ends[:, :2] != ends[:, 2:]).any(axis=1)]
    ends, times = np.unique(ends, axis=0, return_counts=True)
    return ends, times == 1


def _merged(ends: Floats) -> npt.NDArray[np.object_]:
    """Lines between junctions, in an order and direction of their own coordinates."""
    segments = shapely.multilinestrings(shapely.linestrings(ends.reshape(-1, 2, 2)))
    lines = shapely.get_parts(shapely.line_merge(segments))
    points, line = shapely.get_coordinates(lines, return_index=True)
    first = np.searchsorted(line, np.arange(len(lines)), side="left")
    last = np.searchsorted(line, np.arange(len(lines)), side="right") - 1
    # A loop begins and ends at one point: its second point and its last but one decide.
    inward = (points[first] == points[last]).all(axis=1).astype(np.int64)
    start, end = points[first + inward], points[last - inward]
    swap = (start[:, 0] > end[:, 0]) | ((start[:, 0] == end[:, 0]) & (start[:, 1] > end[:, 1]))
    lines[swap] = shapely.reverse(lines[swap])
    points = shapely.get_coordinates(lines)
    return lines[np.lexsort([*points[first + 1].T[::-1], *points[first].T[::-1]])]

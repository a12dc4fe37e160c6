"""Exact nearest neighbors in compiled loops.

Candidates are compared by squared distance, computed the same way for each, so that equal distances are equal numbers.
Ties go to the first candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numba as nb
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CELLS = 256  # per side of the grid over the stations
_BUCKETS_PER_EVENT = 4
# Relative margin on distances to cell centers, far above their rounding error of 1e-16.
_SLACK = 1e-9


@dataclass(frozen=True)
class Stations:
    """Station locations, with a grid that lists the candidates for nearest station per cell.

    The 77 station houses of New York give an average of 2.4 candidates per cell, so that a point needs one lookup and
    about two distances. Points outside the grid are compared with all stations.
    """

    places_ft: Floats  # (s, 2) in the order of their ids
    grid: Floats = field(repr=False)  # west, south, cell width, cell height; feet
    starts: npt.NDArray[np.int32] = field(repr=False)  # (cells + 1,)
    candidates: npt.NDArray[np.int32] = field(repr=False)  # of cell c: candidates[starts[c] : starts[c + 1]], ascending

    @classmethod
    def build(cls, places_ft: Floats) -> Stations:
        """Build the grid for (s, 2) stations in feet, in the order of their ids."""
        places_ft = np.ascontiguousarray(places_ft, dtype=np.float64).reshape(-1, 2)
        low, high = (places_ft.min(axis=0), places_ft.max(axis=0)) if len(places_ft) else (np.zeros(2), np.ones(2))
        margin = np.maximum((high - low) / 4, 1.0)
        grid = np.concatenate([low - margin, (high - low + 2 * margin) / _CELLS])
        starts = np.zeros(_CELLS**2 + 1, dtype=np.int32)
        candidates = np.empty(0, dtype=np.int32)
        if len(places_ft):
            _list_candidates(places_ft, grid, starts[1:], candidates, counting=True)
            np.cumsum(starts, out=starts)
            candidates = np.empty(starts[-1], dtype=np.int32)
            _list_candidates(places_ft, grid, starts[:-1].copy(), candidates, counting=False)
        return cls(places_ft, grid, starts, candidates)

    def nearest(self, x_ft: Floats, y_ft: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
        """Find the station nearest to each point.

        Parameters
        ----------
        x_ft, y_ft : (n,) float64
            Points in feet.

        Returns
        -------
        position : (n,) int32
            Position of the station; -1 if there are no stations.
        distance_ft : (n,) float64
            Distance in feet; NaN if there are no stations.
        """
        position = np.full(len(x_ft), -1, dtype=np.int32)
        squared = np.full(len(x_ft), np.nan)
        if len(self.places_ft):
            _scan_stations(x_ft, y_ft, self.places_ft, self.grid, self.starts, self.candidates, position, squared)
        return position, np.sqrt(squared)


@nb.njit(cache=True)
def _list_candidates(
    places: Floats, grid: Floats, cursor: npt.NDArray[np.int32], candidates: npt.NDArray[np.int32], counting: bool
) -> None:  # pragma: no cover - compiled
    """List the stations that can be nearest to some point of each cell: count them, or write them at `cursor`.

    Let d be the distance from the center to its nearest station, and r to a corner. All points of the cell are within
    d + r of that station. A station farther than d + 2 r from the center is farther than d + r from all of them.
    """
    west, south, width, height = grid
    radius = np.hypot(width, height) / 2
    for row in range(_CELLS):
        y = south + (row + 0.5) * height
        for column in range(_CELLS):
            x = west + (column + 0.5) * width
            nearest = np.inf
            for station in range(len(places)):
                nearest = min(nearest, np.hypot(places[station, 0] - x, places[station, 1] - y))
            reach = (nearest + 2 * radius) * (1 + _SLACK)
            cell = row * _CELLS + column
            for station in range(len(places)):
                if np.hypot(places[station, 0] - x, places[station, 1] - y) <= reach:
                    if not counting:
                        candidates[cursor[cell]] = station
                    cursor[cell] += 1


@nb.njit(cache=True, nogil=True)
def _scan_stations(
    xs: Floats,
    ys: Floats,
    places: Floats,
    grid: Floats,
    starts: npt.NDArray[np.int32],
    candidates: npt.NDArray[np.int32],
    position: npt.NDArray[np.int32],
    squared: Floats,
) -> None:  # pragma: no cover - compiled
    west, south, width, height = grid
    for point in range(len(xs)):
        x, y = xs[point], ys[point]
        column_at, row_at = (x - west) / width, (y - south) / height
        best, best_squared = -1, np.inf
        if 0 <= column_at < _CELLS and 0 <= row_at < _CELLS:
            cell = int(row_at) * _CELLS + int(column_at)
            for at in range(starts[cell], starts[cell + 1]):
                station = candidates[at]
                dx, dy = places[station, 0] - x, places[station, 1] - y
                apart = dx * dx + dy * dy
                if apart < best_squared:
                    best, best_squared = station, apart
        else:
            for station in range(len(places)):
                dx, dy = places[station, 0] - x, places[station, 1] - y
                apart = dx * dx + dy * dy
                if apart < best_squared:
                    best, best_squared = station, apart
        if best >= 0:
            position[point], squared[point] = best, best_squared


@dataclass(frozen=True)
class Events:
    """Locations and times of events, with a table that replaces the search for the first event after an instant.

    The time span of the events is divided into equal buckets, four to eight per event, whose length in milliseconds is
    a power of two. `before` counts the events that start before each bucket.
    """

    x_ft: Floats  # (e,) by start, then by id
    y_ft: Floats
    start_ms: Ints
    bucket_bits: int  # a bucket is 2**bucket_bits ms long
    before: npt.NDArray[np.int32] = field(repr=False)

    @classmethod
    def build(cls, places_ft: Floats, start_ms: Ints) -> Events:
        """Build the table for (e, 2) locations and (e,) starts of events, sorted by start, then by id."""
        places_ft = np.asarray(places_ft, dtype=np.float64).reshape(-1, 2)
        span_ms = int(start_ms[-1] - start_ms[0]) + 1 if len(start_ms) else 1
        bucket_bits = max(1, span_ms // (_BUCKETS_PER_EVENT * max(len(start_ms), 1))).bit_length() - 1
        bucket_ms = 1 << bucket_bits
        edges = (start_ms[0] if len(start_ms) else 0) + np.arange(-(-span_ms // bucket_ms) + 1) * bucket_ms
        return cls(
            np.ascontiguousarray(places_ft[:, 0]),
            np.ascontiguousarray(places_ft[:, 1]),
            np.ascontiguousarray(start_ms, dtype=np.int64),
            bucket_bits,
            np.searchsorted(start_ms, edges).astype(np.int32),
        )

    def nearest_in_windows(
        self, x_ft: Floats, y_ft: Floats, at_ms: Ints, windows_ms: Ints
    ) -> tuple[npt.NDArray[np.int32], Floats]:
        """Find the nearest event that starts within each window after the time of a point.

        One pass over the events of the longest window serves all windows: about 90 felonies in six hours of New York.

        Parameters
        ----------
        x_ft, y_ft : (n,) float64
            Points in feet.
        at_ms : (n,) int64
            Times of the points in milliseconds.
        windows_ms : (w,) int64
            Lengths in milliseconds, ascending. A window [t, t + length] includes both ends.

        Returns
        -------
        position : (w, n) int32
            Position of the event; -1 if no event starts in the window.
        distance_ft : (w, n) float64
            Distance in feet; NaN if no event starts in the window.
        """
        position = np.full((len(windows_ms), len(x_ft)), -1, dtype=np.int32)
        squared = np.full((len(windows_ms), len(x_ft)), np.nan)
        if len(self.start_ms):
            _scan_windows(
                x_ft,
                y_ft,
                at_ms,
                self.x_ft,
                self.y_ft,
                self.start_ms,
                self.bucket_bits,
                self.before,
                np.asarray(windows_ms, dtype=np.int64),
                position,
                squared,
            )
        return position, np.sqrt(squared)


@nb.njit(cache=True, nogil=True, inline="always")
def _first_from(
    moment: int, starts: Ints, bucket_bits: int, before: npt.NDArray[np.int32]
) -> int:  # pragma: no cover - compiled
    """Count the events that start before an instant."""
    bucket = (moment - starts[0]) >> bucket_bits
    if bucket < 0:
        return 0
    if bucket >= len(before) - 1:
        return len(starts)
    event = before[bucket]
    while event < len(starts) and starts[event] < moment:
        event += 1
    return event


@nb.njit(cache=True, nogil=True)
def _scan_windows(
    xs: Floats,
    ys: Floats,
    at: Ints,
    event_x: Floats,
    event_y: Floats,
    event_ms: Ints,
    bucket_bits: int,
    before: npt.NDArray[np.int32],
    windows: Ints,
    position: npt.NDArray[np.int32],
    squared: Floats,
) -> None:  # pragma: no cover - compiled
    for point in range(len(xs)):
        x, y = xs[point], ys[point]
        best, best_squared = -1, np.inf
        first = _first_from(at[point], event_ms, bucket_bits, before)
        for window in range(len(windows)):
            last = _first_from(at[point] + windows[window] + 1, event_ms, bucket_bits, before)
            for event in range(first, last):  # not in the previous window
                dx, dy = event_x[event] - x, event_y[event] - y
                apart = dx * dx + dy * dy
                if apart < best_squared:
                    best, best_squared = event, apart
            first = last
            if best >= 0:
                position[window, point] = best
                squared[window, point] = best_squared

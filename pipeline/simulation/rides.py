"""Dashcam rides: runs of images along streets, with time, location, and file name of each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.simulation.road_network import Streets, displace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

BLOCK_RIDES = 256  # rides per block: about 51,000 images, 30 MB
RIDE_IMAGES = (60, 340)  # shortest and longest ride

_HOUR_MS = 3_600_000
# Rides by local hour: few at night, most between morning and evening.
_RIDES_BY_HOUR = (
    *(2.0, 1.4, 1.0, 0.9, 1.0, 1.6, 3.0, 4.8, 5.8, 6.0, 6.0, 6.2),
    *(6.4, 6.4, 6.5, 6.6, 6.6, 6.6, 6.2, 5.6, 5.0, 4.4, 3.6, 2.8),
)
_INTERVAL_S = (3.0, 7.0)  # between images; constant per ride up to jitter
_SPEED_M_PER_S = 6.0  # median: traffic and red lights included
_GPS_SD_M, _GPS_LIMIT_M = 2.5, 8.0  # along each axis
_POSITION_DECIMALS = 6  # 0.1 m


@dataclass(frozen=True)
class LocalDay:
    """Day in local time, with 23, 24, or 25 hours."""

    start_ms: int  # since 1970 UTC
    end_ms: int  # first millisecond of the next day
    start_cdf: Floats  # (h,) cumulative probability of the starting hour of a ride, from midnight

    @classmethod
    def of(cls, day: date, clock: ZoneInfo) -> LocalDay:
        """Return the day from midnight to midnight."""
        start_ms, end_ms = (
            round(datetime(midnight.year, midnight.month, midnight.day, tzinfo=clock).timestamp() * 1000)
            for midnight in (day, day + timedelta(days=1))
        )
        hours = np.arange(start_ms, end_ms, _HOUR_MS)
        weights = np.array([_RIDES_BY_HOUR[datetime.fromtimestamp(ms / 1000, clock).hour] for ms in hours])
        return cls(start_ms, end_ms, np.cumsum(weights) / weights.sum())

    def draw_starts(self, lengths_ms: Ints, generator: np.random.Generator) -> Ints:
        """Draw the start of rides of given lengths (r,) such that all end on the same day."""
        hour = np.searchsorted(self.start_cdf, generator.random(len(lengths_ms)), side="right")
        start_ms = self.start_ms + hour * _HOUR_MS + generator.integers(0, _HOUR_MS, len(lengths_ms))
        return np.minimum(start_ms, self.end_ms - 1 - lengths_ms)


@dataclass(frozen=True)
class Rides:
    """Images of several rides, ordered by ride and time."""

    ride: Ints  # (n,) number of the ride, from 0
    number: Ints  # (n,) number of the image in its ride, from 0
    captured_ms: Ints  # (n,) since 1970 UTC
    locations: Floats = field(repr=False)  # (n, 2) longitude and latitude, rounded as in the files

    def rows(self, rows: Ints) -> Rides:
        """Select images by number."""
        return Rides(self.ride[rows], self.number[rows], self.captured_ms[rows], self.locations[rows])

    @classmethod
    def together(cls, parts: list[Rides]) -> Rides:
        """Concatenate parts; each keeps its own ride numbers."""
        columns = ("ride", "number", "captured_ms", "locations")
        return cls(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


def ride_lengths(images: int, generator: np.random.Generator) -> Ints:
    """Draw the number of images per ride; the last ride can be short, so that the sum is `images`."""
    shortest, longest = RIDE_IMAGES
    lengths = generator.integers(shortest, longest + 1, -(-images // shortest))
    ends = np.cumsum(lengths)
    rides = int(np.searchsorted(ends, images)) + 1
    lengths = lengths[:rides]
    lengths[-1] -= ends[rides - 1] - images
    return lengths


def draw_rides(streets: Streets, lengths: Ints, day: LocalDay, generator: np.random.Generator) -> Rides:
    """Draw rides at street speed, with an image every few seconds and the scatter of a GPS receiver.

    Parameters
    ----------
    streets : Streets
        Street network of the city.
    lengths : ndarray of int64, shape (r,)
        Images per ride.
    day : LocalDay
        Day of the rides.
    generator : numpy.random.Generator
        Source of randomness.
    """
    rides, images = len(lengths), int(lengths.sum())
    ride = np.repeat(np.arange(rides), lengths)
    first = np.cumsum(lengths) - lengths
    interval_ms = np.round(1000 * generator.uniform(*_INTERVAL_S, rides))[ride] * generator.uniform(0.8, 1.2, images)
    after_ms = _since_start(np.round(interval_ms).astype(np.int64), first, ride)
    speed = _SPEED_M_PER_S * np.exp(0.3 * generator.standard_normal(rides))
    # From 0 (at a red light) to twice the speed of the ride.
    traveled_m = _since_start(speed[ride] * interval_ms / 1000 * generator.uniform(0.0, 2.0, images), first, ride)
    last = first + lengths - 1
    walks = streets.draw_walks(traveled_m[last], generator)
    scatter_m = np.clip(generator.normal(0.0, _GPS_SD_M, (2, images)), -_GPS_LIMIT_M, _GPS_LIMIT_M)
    locations = displace(walks.positions(ride, traveled_m), *scatter_m)
    start_ms = day.draw_starts(after_ms[last], generator)
    number = np.arange(images) - first[ride]
    return Rides(ride, number, start_ms[ride] + after_ms, np.round(locations, _POSITION_DECIMALS))


def _since_start(steps: Any, first: Ints, ride: Ints) -> Any:
    """Return the cumulative sum within each ride, 0 at its first image."""
    total = np.cumsum(steps)
    return total - total[first][ride]


def blocks(lengths: Ints) -> list[Ints]:
    """Divide the rides of a day into blocks."""
    return [lengths[start : start + BLOCK_RIDES] for start in range(0, len(lengths), BLOCK_RIDES)]


def apportion(total: int, weights: Floats) -> Ints:
    """Apportion `total` to integers in proportion to the weights, by the largest remainder method (Hamilton)."""
    exact = total * weights / weights.sum()
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]] += 1
    return whole


STEM = slice(len("ride/") + 33, -len(".jpg"))  # of an image_ref: file name without extension


def image_refs(rides: Rides, day: date, rides_before: int, generator: np.random.Generator) -> Bytes:
    """Return references `ride/<32 hex>/<day>-<ride of the day>-<image of the ride>.jpg`, unique within the study.

    Parameters
    ----------
    rides : Rides
        n images of a block of rides.
    day : date
        Local day.
    rides_before : int
        Number of rides of the day in earlier blocks.
    generator : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of uint8, shape (n, w)
        Characters.
    """
    count_of_rides = len(np.unique(rides.ride))
    hexes = np.frombuffer(generator.bytes(16 * count_of_rides).hex().encode(), dtype=np.uint8).reshape(-1, 32)
    parts = (
        b"ride/",
        hexes[rides.ride],
        f"/{day:%Y%m%d}-".encode(),
        _digits(rides_before + rides.ride, 7),
        b"-",
        _digits(rides.number, 3),
        b".jpg",
    )
    count = len(rides.ride)
    columns = [
        np.broadcast_to(np.frombuffer(part, dtype=np.uint8), (count, len(part))) if isinstance(part, bytes) else part
        for part in parts
    ]
    return np.hstack(columns)


def _digits(numbers: Ints, width: int) -> Bytes:
    """Return zero-padded digits (n, width) of integers (n,)."""
    return (numbers[:, None] // 10 ** np.arange(width)[::-1] % 10 + ord("0")).astype(np.uint8)

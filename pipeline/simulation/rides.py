"""Rides of dashcams: runs of images along streets, when and where each was taken, and what its file is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.simulation.road_network import Streets, displaced

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

BLOCK_RIDES = 256  # rides made at a time: about 51,000 images, 30 MB
RIDE_IMAGES = (60, 340)  # shortest and longest ride

_HOUR_MS = 3_600_000
# Rides by local hour: few at night, most between morning and evening.
_RIDES_BY_HOUR = (
    *(2.0, 1.4, 1.0, 0.9, 1.0, 1.6, 3.0, 4.8, 5.8, 6.0, 6.0, 6.2),
    *(6.4, 6.4, 6.5, 6.6, 6.6, 6.6, 6.2, 5.6, 5.0, 4.4, 3.6, 2.8),
)
_INTERVAL_S = (3.0, 7.0)  # between images; each ride has its own
_SPEED_M_PER_S = 6.0  # median: traffic and red lights included
_GPS_SD_M, _GPS_LIMIT_M = 2.5, 8.0  # along each axis
_POSITION_DECIMALS = 6  # 0.1 m


@dataclass(frozen=True)
class LocalDay:
    """A day by the city's clock, of 23, 24 or 25 hours."""

    start_ms: int  # since 1970 UTC
    end_ms: int  # first millisecond of the next day
    chances: Floats  # (h,) running sum over the hours from midnight on: a ride begins then

    @classmethod
    def of(cls, day: date, clock: ZoneInfo) -> LocalDay:
        """The day from midnight to midnight."""
        start_ms, end_ms = (
            round(datetime(on.year, on.month, on.day, tzinfo=clock).timestamp() * 1000)
            for on in (day, day + timedelta(days=1))
        )
        hours = np.arange(start_ms, end_ms, _HOUR_MS)
        weights = np.array([_RIDES_BY_HOUR[datetime.fromtimestamp(ms / 1000, clock).hour] for ms in hours])
        return cls(start_ms, end_ms, np.cumsum(weights) / weights.sum())

    def draw_starts(self, lengths_ms: Ints, generator: np.random.Generator) -> Ints:
        """(r,) when rides of these lengths begin, so that all end on the same day."""
        hour = np.searchsorted(self.chances, generator.random(len(lengths_ms)), side="right")
        start_ms = self.start_ms + hour * _HOUR_MS + generator.integers(0, _HOUR_MS, len(lengths_ms))
        return np.minimum(start_ms, self.end_ms - 1 - lengths_ms)


@dataclass(frozen=True)
class Rides:
    """Images of some rides, ride after ride, each in the order of time."""

    ride: Ints  # (n,) from 0
    number: Ints  # (n,) of the image in its ride, from 0
    captured_ms: Ints  # (n,) since 1970 UTC
    places: Floats = field(repr=False)  # (n, 2) longitude and latitude, rounded as the files hold them

    def rows(self, rows: Ints) -> Rides:
        """Some of the images."""
        return Rides(self.ride[rows], self.number[rows], self.captured_ms[rows], self.places[rows])

    @classmethod
    def together(cls, parts: list[Rides]) -> Rides:
        """Images of several, one after the other; the numbers of rides are those in their own part."""
        columns = ("ride", "number", "captured_ms", "places")
        return cls(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


def ride_lengths(images: int, generator: np.random.Generator) -> Ints:
    """Images in each ride; their sum is `images`, so the last ride may be short."""
    shortest, longest = RIDE_IMAGES
    lengths = generator.integers(shortest, longest + 1, -(-images // shortest))
    ends = np.cumsum(lengths)
    rides = int(np.searchsorted(ends, images)) + 1
    lengths = lengths[:rides]
    lengths[-1] -= ends[rides - 1] - images
    return lengths


def draw_rides(streets: Streets, lengths: Ints, day: LocalDay, generator: np.random.Generator) -> Rides:
    """Rides along streets at street speed, an image every few seconds, with the scatter of a GPS receiver."""
    rides, images = len(lengths), int(lengths.sum())
    ride = np.repeat(np.arange(rides), lengths)
    first = np.cumsum(lengths) - lengths
    interval_ms = np.round(1000 * generator.uniform(*_INTERVAL_S, rides))[ride] * generator.uniform(0.8, 1.2, images)
    after_ms = _since_start(np.round(interval_ms).astype(np.int64), first, ride)
    speed = _SPEED_M_PER_S * np.exp(0.3 * generator.standard_normal(rides))
    # Between standing at a light and twice the ride's speed.
    gone_m = _since_start(speed[ride] * interval_ms / 1000 * generator.uniform(0.0, 2.0, images), first, ride)
    last = first + lengths - 1
    walks = streets.draw_walks(gone_m[last], generator)
    scatter_m = np.clip(generator.normal(0.0, _GPS_SD_M, (2, images)), -_GPS_LIMIT_M, _GPS_LIMIT_M)
    places = displaced(walks.positions(ride, gone_m), *scatter_m)
    start_ms = day.draw_starts(after_ms[last], generator)
    number = np.arange(images) - first[ride]
    return Rides(ride, number, start_ms[ride] + after_ms, np.round(places, _POSITION_DECIMALS))


def _since_start(steps: Any, first: Ints, ride: Ints) -> Any:
    """Running sum of the steps within each ride; 0 at its first image."""
    total = np.cumsum(steps)
    return total - total[first][ride]


def blocks(lengths: Ints) -> list[Ints]:
    """The lengths of a day's rides, cut into the blocks in which they are made."""
    return [lengths[start : start + BLOCK_RIDES] for start in range(0, len(lengths), BLOCK_RIDES)]


def apportion(total: int, weights: Floats) -> Ints:
    """Whole numbers that add up to `total`, as near to the weights' shares as can be (largest remainders)."""
    exact = total * weights / weights.sum()
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]] += 1
    return whole


STEM = slice(len("ride/") + 33, -len(".jpg"))  # of an image_ref: the file's name without its ending


def image_refs(rides: Rides, day: date, rides_before: int, generator: np.random.Generator) -> Bytes:
    """(n, w) characters of `ride/<32 hex>/<day>-<ride of the day>-<image of the ride>.jpg`; unique in the study.

    Parameters
    ----------
    rides_before : number of rides of the day in earlier blocks
    """
    shown = np.unique(rides.ride)
    hexes = np.frombuffer(generator.bytes(16 * len(shown)).hex().encode(), dtype=np.uint8).reshape(-1, 32)
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
    """(n, width) characters of whole numbers, with zeros in front."""
    return (numbers[:, None] // 10 ** np.arange(width)[::-1] % 10 + ord("0")).astype(np.uint8)

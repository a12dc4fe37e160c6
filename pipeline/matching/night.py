"""Night at a location: after sunset and before sunrise, also where the sun does not rise or set every day.

An image is taken by night if the last event before it is a sunset. Dawn and dusk play no part, so that places without
civil twilight need no exception, and a sunset after midnight belongs to the evening before. All hours of a polar day
are day, and all hours of a polar night are night.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import degrees

import numpy as np
import numpy.typing as npt
from astral import SunDirection
from astral.julian import julianday, julianday_to_juliancentury
from astral.sun import (
    SUN_APPARENT_RADIUS,
    eq_of_time,
    hour_angle,
    minutes_to_timedelta,
    refraction_at_zenith,
    sun_declination,
)

DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZENITH = 90.0 + SUN_APPARENT_RADIUS  # of the upper edge of the sun on the horizon
_MOST_LATITUDE = 89.8  # as astral does: at the pole all directions are one


def is_night(at_ms: npt.NDArray[np.int64], latitude: float, longitude: float) -> npt.NDArray[np.bool_]:
    """Return whether the sun is down at each time, strictly before sunrise or after sunset.

    Parameters
    ----------
    at_ms : (n,) int64
        Epoch milliseconds.
    latitude, longitude : float
        Location of the observer, degrees of EPSG:4326.

    Returns
    -------
    (n,) bool
    """
    days = np.unique(at_ms // DAY_MS)
    # The last event before a time is in the solar day of its UTC day, in one of its neighbors, or in the one before.
    needed = np.unique(days[:, None] + np.arange(-2, 2)).tolist()
    changes = sorted(change for day in needed for change in _changes(day, latitude, longitude))
    if not changes:
        return np.zeros(len(at_ms), dtype=bool)
    start_ms, night = np.array([at for at, _ in changes]), np.array([night for _, night in changes])
    return night[np.searchsorted(start_ms, at_ms, side="right") - 1]


@lru_cache(maxsize=4096)
def _changes(day: int, latitude: float, longitude: float) -> tuple[tuple[float, bool], ...]:
    """Compute the first epoch millisecond of day and of night in a solar day; one of them if the sun stays up or down.

    `day` counts from 1970-01-01, at the longitude of the observer.
    """
    latitude = min(max(latitude, -_MOST_LATITUDE), _MOST_LATITUDE)
    try:
        rise, down = (
            _event_ms(day, latitude, longitude, direction) for direction in (SunDirection.RISING, SunDirection.SETTING)
        )
    except ValueError:  # hour_angle: the sun does not cross the horizon on this day
        declination = sun_declination(julianday_to_juliancentury(julianday((_EPOCH + timedelta(days=day)).date())))
        midnight_ms = day * DAY_MS - longitude / 360 * DAY_MS
        return ((midnight_ms, latitude * declination < 0),)
    return (rise, False), (float(np.nextafter(down, np.inf)), True)


def _event_ms(day: int, latitude: float, longitude: float, direction: SunDirection) -> float:
    """Compute sunrise or sunset of a solar day in epoch milliseconds.

    `astral.sun.time_of_transit` gives the same times, but by UTC day: it shifts events across midnight by a whole day,
    so that a sunrise can be missing between two days (Urumqi, twice a year).
    """
    start = _EPOCH + timedelta(days=day)
    julian = julianday(start.date())
    minutes = 0.0
    for _ in range(2):
        century = julianday_to_juliancentury(julian + minutes / 1440)
        zenith = _ZENITH + refraction_at_zenith(_ZENITH)
        angle = hour_angle(latitude, sun_declination(century), zenith, direction)
        minutes = 720 + 4 * (-longitude - degrees(angle)) - eq_of_time(century)
    return (start + minutes_to_timedelta(minutes)).timestamp() * 1000

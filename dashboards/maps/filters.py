"""Which images a view is of: days, hours, light, places; to and from the address of a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.rates import ZONE_NAMES

HOURS = 24
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
LIGHTS = ("all", "day", "night")
# Levels of places, the finest first; an area itself is the first one.
LEVELS = ("area", "precinct", "neighborhood", "community_district", "borough")

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Filter:
    """What a view shows of the analyzed images; without arguments all of them.

    Attributes
    ----------
    first_day, last_day : local, both included; None: no bound
    hours : first and last local hour, both included; over midnight where the first is later than the last
    weekdays : Monday is 0
    light : all, or of the day, or between sunset and sunrise
    zone : of the area, empty for all
    place : level and name of a place, as areas carry it
    """

    first_day: date | None = None
    last_day: date | None = None
    hours: tuple[int, int] = (0, HOURS - 1)
    weekdays: tuple[int, ...] = tuple(range(7))
    light: Literal["all", "day", "night"] = "all"
    zone: str = ""
    place: tuple[str, str] | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Filter()

    def hour_mask(self) -> Bools:
        """(24,) hours that are kept."""
        hour, (first, last) = np.arange(HOURS), self.hours
        return (first <= hour) & (hour <= last) if first <= last else (first <= hour) | (hour <= last)

    def slot_mask(self) -> Bools:
        """(48,) kept by hour and light: twice the hour, and one more at night."""
        light = np.array([self.light != "night", self.light != "day"])
        return (self.hour_mask()[:, None] & light).ravel()

    def day_mask(self, days: pd.DatetimeIndex) -> Bools:
        """(days,) local days that are kept."""
        kept = np.isin(days.day_of_week, self.weekdays)
        if self.first_day is not None:
            kept &= days >= pd.Timestamp(self.first_day)
        if self.last_day is not None:
            kept &= days <= pd.Timestamp(self.last_day)
        return kept

    def area_mask(self, areas: pd.DataFrame) -> Bools:
        """(areas + 1,) areas that are kept, the last place for images outside every area.

        Parameters
        ----------
        areas : with zone and a column for each level of places
        """
        kept = np.ones(len(areas) + 1, dtype=np.bool_)
        if self.zone:
            kept[:-1] &= (areas["zone"] == self.zone).to_numpy(dtype=np.bool_, na_value=False)
        if self.place is not None:
            level, name = self.place
            kept[:-1] &= (areas[level] == name).to_numpy(dtype=np.bool_, na_value=False)
        if self.zone or self.place is not None:
            kept[-1] = False
        return kept

    def in_words(self, *, every: str = "all images") -> str:
        """For a reader."""
        parts = []
        if self.first_day or self.last_day:
            parts.append(f"{self.first_day or 'the first day'} to {self.last_day or 'the last day'}")
        if self.hours != (0, HOURS - 1):
            parts.append(f"{self.hours[0]:02}:00 to {self.hours[1]:02}:59")
        if len(self.weekdays) < len(WEEKDAYS):
            parts.append(", ".join(WEEKDAYS[day] for day in self.weekdays) or "no weekday")
        if self.light != "all":
            parts.append("by daylight" if self.light == "day" else "at night")
        if self.zone:
            parts.append(f"{ZONE_NAMES[self.zone].lower()} zones")
        if self.place is not None:
            parts.append(f"{self.place[0].replace('_', ' ')} {self.place[1]}")
        return "; ".join(parts) or every


def to_query(keep: Filter) -> dict[str, str]:
    """What of a filter is not the default, as keys and values of an address."""
    written = {
        "first_day": keep.first_day.isoformat() if keep.first_day else "",
        "last_day": keep.last_day.isoformat() if keep.last_day else "",
        "hours": "-".join(map(str, keep.hours)),
        "weekdays": "".join(map(str, keep.weekdays)) or "none",
        "light": keep.light,
        "zone": keep.zone,
        "place": ":".join(keep.place) if keep.place else "",
    }
    return {one.name: written[one.name] for one in fields(Filter) if getattr(keep, one.name) != one.default}


def from_query(query: Mapping[str, str]) -> Filter:
    """The filter of an address; what can not be understood there is left out, as an address comes from anybody."""
    hours = query.get("hours", "").partition("-")
    days = query.get("weekdays", "")
    level, _, name = query.get("place", "").partition(":")
    light, zone = query.get("light", "all"), query.get("zone", "")
    every = Filter()
    first, last = (_number(part) for part in (hours[0], hours[2]))
    weekdays = tuple(sorted({int(day) for day in days if day in "0123456"})) if days else every.weekdays
    return Filter(
        first_day=_date(query.get("first_day", "")),
        last_day=_date(query.get("last_day", "")),
        hours=(first, last) if first is not None and last is not None else every.hours,
        weekdays=weekdays,
        light=cast("Literal['all', 'day', 'night']", light if light in LIGHTS else "all"),
        zone=zone if zone in ZONE_NAMES else "",
        place=(level, name) if level in LEVELS and name else None,
    )


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 3 and int(text) < HOURS else None

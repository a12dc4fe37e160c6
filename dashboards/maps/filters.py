"""Filters of the images on a page by day, hour, light, zone, and region, and their form in an address."""

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
GEOGRAPHIES = ("area", "precinct", "neighborhood", "community_district", "borough")  # finest first

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Filter:
    """Filter of the analyzed images. The default keeps all of them.

    Attributes
    ----------
    first_day, last_day : date, optional
        Local days, both included. None sets no bound.
    hours : tuple of int
        First and last local hour, both included. The range passes midnight if the first is later than the last.
    weekdays : tuple of int
        Monday is 0.
    light : {"all", "day", "night"}
        Night lasts from sunset to sunrise.
    zone : str
        Zone of the image's area. Empty keeps all zones.
    region : tuple of str, optional
        Geography and name of a region, as in the table of areas.
    """

    first_day: date | None = None
    last_day: date | None = None
    hours: tuple[int, int] = (0, HOURS - 1)
    weekdays: tuple[int, ...] = tuple(range(7))
    light: Literal["all", "day", "night"] = "all"
    zone: str = ""
    region: tuple[str, str] | None = None

    @property
    def is_all(self) -> bool:
        """Whether the filter keeps every image."""
        return self == Filter()

    def hour_mask(self) -> Bools:
        """Return which hours are kept, shape (24,)."""
        hour, (first, last) = np.arange(HOURS), self.hours
        return (first <= hour) & (hour <= last) if first <= last else (first <= hour) | (hour <= last)

    def slot_mask(self) -> Bools:
        """Return which slots are kept, shape (48,): index 2 * hour by day, 2 * hour + 1 at night."""
        light = np.array([self.light != "night", self.light != "day"])
        return (self.hour_mask()[:, None] & light).ravel()

    def day_mask(self, days: pd.DatetimeIndex) -> Bools:
        """Return which of the local days are kept, shape (n_days,)."""
        kept = np.isin(days.day_of_week, self.weekdays)
        if self.first_day is not None:
            kept &= days >= pd.Timestamp(self.first_day)
        if self.last_day is not None:
            kept &= days <= pd.Timestamp(self.last_day)
        return kept

    def area_mask(self, areas: pd.DataFrame) -> Bools:
        """Return which areas are kept.

        Parameters
        ----------
        areas : DataFrame, n_areas rows
            Columns zone and one per geography.

        Returns
        -------
        ndarray of bool, shape (n_areas + 1,)
            The last value is for images outside all areas.
        """
        kept = np.ones(len(areas) + 1, dtype=np.bool_)
        if self.zone:
            kept[:-1] &= (areas["zone"] == self.zone).to_numpy(dtype=np.bool_, na_value=False)
        if self.region is not None:
            geography, name = self.region
            kept[:-1] &= (areas[geography] == name).to_numpy(dtype=np.bool_, na_value=False)
        if self.zone or self.region is not None:
            kept[-1] = False
        return kept

    def describe(self) -> str:
        """Return the filter as text: "all images", or its conditions."""
        parts = []
        if self.first_day or self.last_day:
            parts.append(f"{self.first_day or 'the first day'} to {self.last_day or 'the last day'}")
        if self.hours != (0, HOURS - 1):
            parts.append(f"{self.hours[0]:02}:00 to {self.hours[1]:02}:59")
        if len(self.weekdays) < len(WEEKDAYS):
            parts.append(", ".join(WEEKDAYS[day] for day in self.weekdays) or "no weekday")
        if self.light != "all":
            parts.append("daylight" if self.light == "day" else "night")
        if self.zone:
            parts.append(f"{ZONE_NAMES[self.zone].lower()} zones")
        if self.region is not None:
            parts.append(f"{self.region[0].replace('_', ' ')} {self.region[1]}")
        return "; ".join(parts) or "all images"


def to_query(keep: Filter) -> dict[str, str]:
    """Return the values that differ from the default as keys and values of an address."""
    values = {
        "first_day": keep.first_day.isoformat() if keep.first_day else "",
        "last_day": keep.last_day.isoformat() if keep.last_day else "",
        "hours": "-".join(map(str, keep.hours)),
        "weekdays": "".join(map(str, keep.weekdays)) or "none",
        "light": keep.light,
        "zone": keep.zone,
        "region": ":".join(keep.region) if keep.region else "",
    }
    return {item.name: values[item.name] for item in fields(Filter) if getattr(keep, item.name) != item.default}


def from_query(query: Mapping[str, str]) -> Filter:
    """Read the filter from an address. Invalid values are ignored, since anyone can write an address."""
    hours = query.get("hours", "").partition("-")
    days = query.get("weekdays", "")
    geography, _, name = query.get("region", "").partition(":")
    light, zone = query.get("light", "all"), query.get("zone", "")
    default = Filter()
    first, last = (_hour(part) for part in (hours[0], hours[2]))
    weekdays = tuple(sorted({int(day) for day in days if day in "0123456"})) if days else default.weekdays
    return Filter(
        first_day=_date(query.get("first_day", "")),
        last_day=_date(query.get("last_day", "")),
        hours=(first, last) if first is not None and last is not None else default.hours,
        weekdays=weekdays,
        light=cast("Literal['all', 'day', 'night']", light if light in LIGHTS else "all"),
        zone=zone if zone in ZONE_NAMES else "",
        region=(geography, name) if geography in GEOGRAPHIES and name else None,
    )


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _hour(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 3 and int(text) < HOURS else None

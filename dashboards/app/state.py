"""What a reader has chosen on a page; it stands in the page's address, so that a view can be sent to somebody."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import param

from patrolscope.dashboards.maps.city import City
from patrolscope.dashboards.maps.compose import MEASURES
from patrolscope.dashboards.maps.filters import LEVELS, Filter, from_query, to_query

# Of a place and zoom in an address: to the foot, and to a hundredth of one.
_AT = 3


class State(param.Parameterized):  # type: ignore[misc]  # param ships no types
    """Choices of one reader."""

    filter = param.ClassSelector(class_=Filter, default=Filter())
    measure = param.Selector(objects=list(MEASURES))
    level = param.Selector(objects=list(LEVELS), default="neighborhood")
    chosen = param.String(doc="place of the level")
    at = param.Tuple(length=_AT, default=None, allow_None=True, doc="x_ft, y_ft of the center, feet a pixel")

    def read(self, query: Mapping[str, str]) -> None:
        """Take over what an address says, as far as it can be understood."""
        new: dict[str, Any] = {"filter": from_query(query)}
        if query.get("measure") in MEASURES:
            new["measure"] = query["measure"]
        if query.get("level") in LEVELS:
            new["level"] = query["level"]
        new["chosen"] = query.get("chosen", "")
        new["at"] = _numbers(query.get("at", ""))
        self.param.update(**new)

    def fit(self, city: City) -> None:
        """Drop what the city does not have: an address can name any level and any place."""
        if self.filter.place is not None and not city.has(*self.filter.place):
            self.filter = replace(self.filter, place=None)
        if self.level not in city.levels:
            self.level = self.param.level.default if self.param.level.default in city.levels else city.levels[-1]
        if not city.has(self.level, self.chosen):
            self.chosen = ""

    def query(self) -> str:
        """The address's query: what is not as on a fresh page."""
        written = to_query(self.filter)
        for name in ("measure", "level", "chosen"):
            if getattr(self, name) != self.param[name].default:
                written[name] = getattr(self, name)
        if self.at is not None:
            x_ft, y_ft, pixel_ft = self.at
            written["at"] = f"{x_ft:.0f},{y_ft:.0f},{pixel_ft:.2f}"
        return urlencode(written)

    def follow(self, location: Any, city: City) -> None:
        """Read the page's address now, and keep it up to date from now on.

        Parameters
        ----------
        location : `panel.state.location`
        city : whose places it can name
        """
        self.read(dict(parse_qsl((location.search or "").removeprefix("?"))))
        self.fit(city)

        def write(*_events: Any) -> None:
            query = self.query()
            location.search = f"?{query}" if query else ""

        self.param.watch(write, ["filter", "measure", "level", "chosen", "at"])


def _numbers(text: str) -> tuple[float, ...] | None:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        return None
    fine = len(values) == _AT and all(math.isfinite(value) and abs(value) < 1e8 for value in values) and values[2] > 0
    return values if fine else None

"""State of a page, which is kept in its address so that a view can be shared as a link."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import param

from patrolscope.dashboards.maps.city import City
from patrolscope.dashboards.maps.filters import GEOGRAPHIES, Filter, from_query, to_query
from patrolscope.dashboards.maps.painter import MEASURES

_AT = 3
_PIXEL_FT = 0.005, 1e5  # finest and coarsest view that an address can ask for


class State(param.Parameterized):  # type: ignore[misc]  # param ships no types
    """Filter, measure, geography, selected region, and view of one session."""

    filter = param.ClassSelector(class_=Filter, default=Filter())
    measure = param.Selector(objects=list(MEASURES))
    geography = param.Selector(objects=list(GEOGRAPHIES), default="neighborhood")
    selected = param.String(doc="region of the geography")
    at = param.Tuple(length=_AT, default=None, allow_None=True, doc="x_ft, y_ft of the center, feet per pixel")

    def read(self, query: Mapping[str, str]) -> None:
        """Take the state from an address. Invalid values are ignored."""
        new: dict[str, Any] = {"filter": from_query(query)}
        if query.get("measure") in MEASURES:
            new["measure"] = query["measure"]
        if query.get("geography") in GEOGRAPHIES:
            new["geography"] = query["geography"]
        new["selected"] = query.get("selected", "")
        new["at"] = _numbers(query.get("at", ""))
        self.param.update(**new)

    def fit(self, city: City) -> None:
        """Drop geographies and regions that the city does not have."""
        if self.filter.region is not None and not city.has(*self.filter.region):
            self.filter = replace(self.filter, region=None)
        if self.geography not in city.geographies:
            default = self.param.geography.default
            self.geography = default if default in city.geographies else city.geographies[-1]
        if not city.has(self.geography, self.selected):
            self.selected = ""

    def query(self) -> str:
        """Return the query of the address: all values that differ from the default."""
        values = to_query(self.filter)
        for name in ("measure", "geography", "selected"):
            if getattr(self, name) != self.param[name].default:
                values[name] = getattr(self, name)
        if self.at is not None:
            x_ft, y_ft, pixel_ft = self.at
            values["at"] = f"{x_ft:.0f},{y_ft:.0f},{pixel_ft:.2f}"
        return urlencode(values)

    def follow(self, location: Any, city: City) -> None:
        """Read the address of the page, and update it with every change of the state.

        Parameters
        ----------
        location : panel.io.location.Location
            Location of the page.
        city : City
            City whose regions an address can name.
        """
        self.read(dict(parse_qsl((location.search or "").removeprefix("?"))))
        self.fit(city)

        def write(*_events: Any) -> None:
            query = self.query()
            location.search = f"?{query}" if query else ""

        self.param.watch(write, ["filter", "measure", "geography", "selected", "at"])


def _numbers(text: str) -> tuple[float, ...] | None:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        return None
    if len(values) != _AT or not all(math.isfinite(value) and abs(value) < 1e8 for value in values):
        return None
    return values if _PIXEL_FT[0] <= values[2] <= _PIXEL_FT[1] else None

"""Filter controls at the side of every page."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any, cast

import panel as pn

from patrolscope.analysis.estimators.rates import ZONE_NAMES
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.maps.filters import HOURS, WEEKDAYS, Filter
from patrolscope.dashboards.maps.points import area_counts

_LIGHTS = {"Any light": "all", "Daylight": "day", "Night": "night"}
_EVERYWHERE = "the whole city"
# The first box of the second line is aligned with the first line, not indented.
_WRAPPED = """
.bk-input-group { flex-wrap: wrap; gap: 2px 5px; }
.bk-input-group.bk-inline > *:not(:first-child) { margin-left: 0; }
"""
_WIDE = {"sizing_mode": "stretch_width", "margin": (4, 0)}
_LEFT = {"sizing_mode": "stretch_width", "margin": (4, 8, 4, 0)}  # left of a second widget


def filter_panel(site: Site, state: State) -> pn.Column:
    """Return the filter controls with the number of images that they keep."""
    first, last = (day.date() for day in (site.points.days[0], site.points.days[-1]))
    hours = [f"{hour:02}:00" for hour in range(HOURS)]
    ends = [f"{hour:02}:59" for hour in range(HOURS)]
    # A city has thousands of areas, so that only an address can select one.
    selected = state.filter.region[0] if state.filter.region else ""
    offered = [name for name in site.city.geographies if name != "area" or selected == "area"]
    geographies = {_EVERYWHERE: "", **{site.city.names[name][0]: name for name in offered}}
    widgets = {
        "first_day": pn.widgets.DatePicker(label="From", start=first, end=last, value=first, **_LEFT),
        "last_day": pn.widgets.DatePicker(label="To", start=first, end=last, value=last, **_WIDE),
        "first_hour": pn.widgets.Select(label="From hour", options=hours, value=hours[0], **_LEFT),
        "last_hour": pn.widgets.Select(label="To hour", options=ends, value=ends[-1], **_WIDE),
        "weekdays": pn.widgets.CheckBoxGroup(
            label="Weekdays", options=list(WEEKDAYS), value=list(WEEKDAYS), inline=True, stylesheets=[_WRAPPED], **_WIDE
        ),
        "light": pn.widgets.Select(label="Light", options=_LIGHTS, **_WIDE),
        "zone": pn.widgets.Select(
            label="Zone", options={"All zones": "", **{name: zone for zone, name in ZONE_NAMES.items()}}, **_WIDE
        ),
        "geography": pn.widgets.Select(label="Only within", options=geographies, **_WIDE),
        "region": pn.widgets.Select(label="Region", options=[], visible=False, **_WIDE),
    }
    updating = {"widgets": False}

    def show(*_events: Any) -> None:
        """Copy the state to the widgets."""
        keep = state.filter
        updating["widgets"] = True
        geography, region = keep.region or ("", "")
        known = _regions(site, geography)
        widgets["geography"].value = geography if geography in site.city.geographies else ""
        value = region if region in known else None
        widgets["region"].param.update(options=known, visible=bool(geography), value=value)
        for name, value in (
            ("first_day", _within(keep.first_day or first, first, last)),
            ("last_day", _within(keep.last_day or last, first, last)),
            ("first_hour", hours[keep.hours[0]]),
            ("last_hour", ends[keep.hours[1]]),
            ("weekdays", [WEEKDAYS[day] for day in keep.weekdays]),
            ("light", keep.light),
            ("zone", keep.zone),
        ):
            widgets[name].value = value
        updating["widgets"] = False

    def take(event: Any) -> None:
        """Copy the widgets to the state."""
        if updating["widgets"]:
            return
        if event.obj is widgets["geography"]:
            known = _regions(site, event.new)
            updating["widgets"] = True
            widgets["region"].param.update(options=known, visible=bool(event.new), value=known[0] if known else None)
            updating["widgets"] = False
        values = {name: widget.value for name, widget in widgets.items()}
        state.filter = replace(
            Filter(),
            first_day=None if values["first_day"] in (None, first) else cast("date", values["first_day"]),
            last_day=None if values["last_day"] in (None, last) else cast("date", values["last_day"]),
            hours=(hours.index(values["first_hour"]), ends.index(values["last_hour"])),
            weekdays=tuple(number for number, name in enumerate(WEEKDAYS) if name in values["weekdays"]),
            light=values["light"],
            zone=values["zone"],
            region=(values["geography"], values["region"]) if values["geography"] and values["region"] else None,
        )

    def kept_text(keep: Filter) -> str:
        images = int(area_counts(site.points, keep).sum())
        share = images / site.points.images if site.points.images else 0.0
        reversed_days = keep.first_day and keep.last_day and keep.first_day > keep.last_day
        why = "<br>*From* is after *To*." if reversed_days else ""
        return f"**{images:,}** of {site.points.images:,} images ({100 * share:.1f}%){why}"

    def reset(_event: Any) -> None:
        state.filter = Filter()

    show()
    state.param.watch(show, "filter")
    for widget in widgets.values():
        widget.param.watch(take, "value")
    clear = pn.widgets.Button(label="Show all images", **_WIDE)
    clear.on_click(reset)
    return pn.Column(
        pn.pane.Markdown(pn.bind(kept_text, state.param.filter), margin=(0, 0, 6, 0)),
        pn.Row(widgets["first_day"], widgets["last_day"], sizing_mode="stretch_width", margin=0),
        pn.Row(widgets["first_hour"], widgets["last_hour"], sizing_mode="stretch_width", margin=0),
        pn.pane.Markdown("Weekdays", margin=0),
        widgets["weekdays"],
        *(widgets[name] for name in ("light", "zone", "geography", "region")),
        clear,
        sizing_mode="stretch_width",
    )


def _regions(site: Site, geography: str) -> list[str]:
    return list(site.city.geography(geography).regions) if geography in site.city.geographies else []


def _within(day: date, first: date, last: date) -> date:
    return min(max(day, first), last)

"""The column of filters that stands on every page."""

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
# A box that begins the second line stands below the first one, not indented.
_WRAPPED = """
.bk-input-group { flex-wrap: wrap; gap: 2px 5px; }
.bk-input-group.bk-inline > *:not(:first-child) { margin-left: 0; }
"""
_WIDE = {"sizing_mode": "stretch_width", "margin": (4, 0)}
_LEFT = {"sizing_mode": "stretch_width", "margin": (4, 8, 4, 0)}  # of another


def filter_panel(site: Site, state: State) -> pn.Column:
    """Filters of a page: what they leave is said below them."""
    first, last = (day.date() for day in (site.points.days[0], site.points.days[-1]))
    hours = [f"{hour:02}:00" for hour in range(HOURS)]
    ends = [f"{hour:02}:59" for hour in range(HOURS)]
    # Of single areas, thousands, only an address can ask.
    asked = state.filter.place[0] if state.filter.place else ""
    offered = [level for level in site.city.levels if level != "area" or asked == "area"]
    levels = {_EVERYWHERE: "", **{site.city.names[level][0]: level for level in offered}}
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
        "level": pn.widgets.Select(label="Only within", options=levels, **_WIDE),
        "place": pn.widgets.Select(label="Place", options=[], visible=False, **_WIDE),
    }
    busy = {"shows": False}

    def show(*_events: Any) -> None:
        """Let the widgets say what the state says."""
        keep = state.filter
        busy["shows"] = True
        level, place = keep.place or ("", "")
        known = _places(site, level)
        widgets["level"].value = level if level in site.city.levels else ""
        widgets["place"].param.update(options=known, visible=bool(level), value=place if place in known else None)
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
        busy["shows"] = False

    def take(event: Any) -> None:
        """Let the state say what a reader chose."""
        if busy["shows"]:
            return
        if event.obj is widgets["level"]:
            known = _places(site, event.new)
            busy["shows"] = True
            widgets["place"].param.update(options=known, visible=bool(event.new), value=known[0] if known else None)
            busy["shows"] = False
        chosen = {name: widget.value for name, widget in widgets.items()}
        state.filter = replace(
            Filter(),
            first_day=None if chosen["first_day"] in (None, first) else cast("date", chosen["first_day"]),
            last_day=None if chosen["last_day"] in (None, last) else cast("date", chosen["last_day"]),
            hours=(hours.index(chosen["first_hour"]), ends.index(chosen["last_hour"])),
            weekdays=tuple(number for number, name in enumerate(WEEKDAYS) if name in chosen["weekdays"]),
            light=chosen["light"],
            zone=chosen["zone"],
            place=(chosen["level"], chosen["place"]) if chosen["level"] and chosen["place"] else None,
        )

    def left(keep: Filter) -> str:
        images = int(area_counts(site.points, keep).sum())
        share = images / site.points.images if site.points.images else 0.0
        turned = keep.first_day and keep.last_day and keep.first_day > keep.last_day
        why = "<br>*From* is after *To*." if turned else ""
        return f"**{images:,}** of {site.points.images:,} images ({100 * share:.1f} %){why}"

    def reset(_event: Any) -> None:
        state.filter = Filter()

    show()
    state.param.watch(show, "filter")
    for widget in widgets.values():
        widget.param.watch(take, "value")
    clear = pn.widgets.Button(label="Show all images", **_WIDE)
    clear.on_click(reset)
    return pn.Column(
        pn.pane.Markdown(pn.bind(left, state.param.filter), margin=(0, 0, 6, 0)),
        pn.Row(widgets["first_day"], widgets["last_day"], sizing_mode="stretch_width", margin=0),
        pn.Row(widgets["first_hour"], widgets["last_hour"], sizing_mode="stretch_width", margin=0),
        pn.pane.Markdown("Weekdays", margin=0),
        widgets["weekdays"],
        *(widgets[name] for name in ("light", "zone", "level", "place")),
        clear,
        sizing_mode="stretch_width",
    )


def _places(site: Site, level: str) -> list[str]:
    return list(site.city.level(level).places) if level in site.city.levels else []


def _within(day: date, first: date, last: date) -> date:
    return min(max(day, first), last)

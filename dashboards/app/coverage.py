"""Image coverage page: images by time and area, and residents of areas with few images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import panel as pn
from bokeh.models import FixedTicker, NumeralTickFormatter
from markupsafe import Markup

from patrolscope.analysis.estimators.image_coverage import EVERYONE, ImageCoverage, coverage_of, cumulative
from patrolscope.dashboards.app.cards import CARD, Card, HtmlPane, cards, html_table, paragraph, share
from patrolscope.dashboards.app.charts import Chart, Line, day_chart, hour_chart, line_chart, week_chart
from patrolscope.dashboards.app.filtered_results import counts_of, images_kept
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.figures import INK
from patrolscope.dashboards.charts.image_coverage import LINES, PANELS, panel_figure, people_groups, week_figure
from patrolscope.dashboards.maps.filters import HOURS, WEEKDAYS, Filter

_DASHES = ("dashed", "dotted", "dashdot", "dotdash", "solid")
# Zero images are drawn half a decade below one image, since the axis is logarithmic.
_NEVER = 0.3


@dataclass(frozen=True)
class Covered:
    """Image coverage of the images that a filter keeps.

    Attributes
    ----------
    by_week : ndarray of int64, shape (7, 24)
        Images by weekday and local hour.
    coverage : ImageCoverage
        Images by hour, day, and area, and residents. Areas are limited to the filter's region and zone.
    """

    by_week: npt.NDArray[np.int64]
    coverage: ImageCoverage


@lru_cache(maxsize=16)
def covered(site: Site, keep: Filter) -> Covered:
    """Count the images that a filter keeps. Other days are omitted."""
    points = site.points
    kept = keep.day_mask(points.days)
    counts = points.count(keep, by=["day", "hour"])[kept]
    days = points.days[kept]
    by_week = np.zeros((len(WEEKDAYS), HOURS), dtype=np.int64)
    np.add.at(by_week, days.day_of_week, counts.sum(axis=2))
    within = keep.area_mask(points.areas)[:-1]
    by_area = counts_of(site, keep)[np.append(within, True)]
    coverage = coverage_of(counts.sum(axis=0), counts.sum(axis=1), by_area, days=days, areas=points.areas.loc[within])
    return Covered(by_week, coverage)


def time_charts(site: Site, keep: Filter) -> list[Chart]:
    """By hour, by day, by weekday and hour."""
    found = covered(site, keep)
    counts, simulated = found.coverage.counts, site.simulated
    part = "" if keep.is_all else keep.describe()
    hours = counts[counts["by"] == "hour"].drop(columns="by")
    days = counts[counts["by"] == "day"].drop(columns="by")
    if days.empty or not days["images"].sum():
        return [Chart("hour", PANELS["hour"][0], "", "No image is left.")]
    by_hour = hours["images"].to_numpy()
    busy, quiet = int(by_hour.argmax()), int(by_hour.argmin())
    told = f"Most at {busy:02}:00 ({by_hour[busy]:,} images), fewest at {quiet:02}:00 ({by_hour[quiet]:,})."
    by_day = days["images"].to_numpy()
    dates = pd.DatetimeIndex(days["value"])
    of_days = (
        f"{len(days):,} days from {dates[0]:%-d %B %Y} to {dates[-1]:%-d %B %Y}; between {by_day.min():,} and "
        f"{by_day.max():,} images a day."
        if len(days) > 1
        else f"One day, {dates[0]:%-d %B %Y}: {by_day[0]:,} images."
    )
    weekday, hour = divmod(int(found.by_week.argmax()), HOURS)
    of_week = f"Most on {WEEKDAYS[weekday]} at {hour:02}:00, {found.by_week.max():,} images in all."
    names = {"value": "hour"}
    week = pd.DataFrame(found.by_week, index=pd.Index(WEEKDAYS, name="weekday")).reset_index()
    return [
        Chart(
            "hour", PANELS["hour"][0], "", told, hour_chart(by_hour, alt=f"Images by hour. {told}"), (),
            hours.rename(columns=names), lambda: panel_figure(found.coverage, "hour", simulated=simulated, part=part),
        ),
        Chart(
            "day", PANELS["day"][0], "", of_days, day_chart(dates, by_day, alt=f"Images by day. {of_days}"), (),
            days.rename(columns={"value": "day"}),
            lambda: panel_figure(found.coverage, "day", simulated=simulated, part=part),
        ),
        Chart(
            "week", "By weekday and hour", "", of_week,
            week_chart(found.by_week, alt=f"Images by weekday and hour. {of_week}"), (), week,
            lambda: week_figure(found.by_week, WEEKDAYS, simulated=simulated, part=part),
        ),
    ]  # fmt: skip


def people_charts(site: Site, keep: Filter) -> list[Chart]:
    """Share of people in areas with at most so many images, by race and by borough."""
    found = covered(site, keep).coverage
    simulated, part = site.simulated, "" if keep.is_all else keep.describe()
    charts = []
    for by in ("race", "borough"):
        name = f"people_{by}"
        images = found.areas["images"].to_numpy()
        most = max(10, int(images.max(initial=0)))
        lines, rows = [], []
        groups = {group: persons for group, persons in people_groups(found, by).items() if persons.sum() > 0}
        others = [group for group in groups if group != EVERYONE]
        for group, persons in groups.items():
            at, shares = cumulative(images, persons.to_numpy())
            place = others.index(group) if group in others else -1
            color = INK if place < 0 else LINES[place % len(LINES)][0]
            dash = "solid" if place < 0 else _DASHES[place % len(_DASHES)]
            x = np.append(np.where(at == 0, _NEVER, at), most * 1.3)
            lines.append(
                Line(group, x, np.append(shares, 1.0), color, dash, step=True, width=2.6 if place < 0 else 1.8)
            )
            rows.append(pd.DataFrame({"group": group, "images_at_most": at, "share_of_people": shares}))
        if not lines:
            continue
        told = people_words(found, [one.name for one in lines])
        decades = [_NEVER, *(10.0**power for power in range(int(np.log10(most)) + 1))]
        plot = line_chart(
            lines,
            labels=("images of their area, at most", "share of people"),
            alt=f"{PANELS[name][0]}. {told}",
            hover={"x": "0,0", "y": "0.0%"},
            x_axis_type="log",
            x_range=(_NEVER * 0.9, most * 1.3),
            y_range=(0, 1.03),
        )
        plot.xaxis.ticker = FixedTicker(ticks=decades)
        plot.xaxis.major_label_overrides = {_NEVER: "never", **{one: f"{one:,.0f}" for one in decades[1:]}}
        plot.yaxis.formatter = NumeralTickFormatter(format="0%")
        charts.append(
            Chart(
                name, PANELS[name][0], "How many live in areas with few images; further left: fewer images.",
                told, plot, tuple((one.name, one.color, "s") for one in lines), pd.concat(rows, ignore_index=True),
                lambda name=name: panel_figure(found, name, simulated=simulated, part=part),  # type: ignore[misc]
            )
        )  # fmt: skip
    return charts


def people_words(found: ImageCoverage, groups: list[str]) -> str:
    """Return the share of residents in areas without images, by group, as text."""
    never = dict(zip(found.people["group"], found.people["share_never_seen"], strict=True))
    shares = "; ".join(f"{group} {share(never[group], 1)}" for group in groups)
    return f"Residents in areas without images: {shares}."


def area_html(site: Site, keep: Filter) -> Markup:
    """Render the coverage of areas and their residents as HTML."""
    found = covered(site, keep).coverage
    facts = found.summary
    where = Filter(zone=keep.zone, region=keep.region)
    text = "" if where.is_all else f"Areas and residents of {where.describe()} only. "
    text += (
        f"{facts['areas_never_seen']:,} of {facts['areas']:,} areas have no images, {facts['areas_below_100']:,} have "
        f"fewer than 100. The 10% of areas with the most images have "
        f"{share(facts['images_in_the_busiest_tenth_of_areas'], 1)} of all images. "
        f"{facts['outside_every_area']:,} images are outside all areas."
        if facts["images"]
        else "The filter keeps no images."
    )
    people = found.people[found.people["persons"] > 0] if not where.is_all else found.people
    table = pd.DataFrame(
        {
            "Group": people["group"],
            "Residents": [f"{persons:,.0f}" for persons in people["persons"]],
            **{
                title: [share(value, 1) if pd.notna(value) else "\u2013" for value in people[column]]
                for title, column in (
                    ("No images", "share_never_seen"),
                    ("Fewer than 10", "share_below_10"),
                    ("Fewer than 100", "share_below_100"),
                )
            },
        }
    )
    return (
        Markup("<h2>Areas with few images</h2>")
        + paragraph(text)
        + html_table(table, "Share of residents in areas with few images")
    )


# Page.


def page(site: Site, state: State) -> pn.viewable.Viewable:
    """Return the page of one session."""
    return _Page(site, state).view


class _Page:
    """Page of one session."""

    def __init__(self, site: Site, state: State) -> None:
        self.site, self.state = site, state
        self.status, self.areas = HtmlPane(), HtmlPane()
        self.charts = cards()
        self.view = pn.Column(
            self.status,
            self.charts,
            pn.Column(self.areas, styles=CARD, sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width",
            styles={"gap": "18px"},
        )
        self.shown: list[Card] = []
        state.param.watch(self._draw, "filter")
        self._draw()

    def _draw(self, *_: Any) -> None:
        keep = self.state.filter
        self.status.set_html(paragraph(f"{images_kept(self.site, keep)}."))
        self.areas.set_html(area_html(self.site, keep))
        charts = [*time_charts(self.site, keep), *people_charts(self.site, keep)]
        if [card.chart.name for card in self.shown] != [chart.name for chart in charts]:
            self.shown = [Card(chart, wide=chart.name == "week") for chart in charts]
            self.charts.objects = [card.view for card in self.shown]
            return
        for card, chart in zip(self.shown, charts, strict=True):
            card.show(chart)

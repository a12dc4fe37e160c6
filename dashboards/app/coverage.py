"""The page of coverage: when and where images were taken, and who lives where few were."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import panel as pn
from markupsafe import Markup

from patrolscope.analysis.estimators.image_coverage import ImageCoverage, coverage_of
from patrolscope.analysis.estimators.resident_curves import resident_curves, resident_groups
from patrolscope.dashboards.app.charts import (
    CARD,
    Card,
    Chart,
    HtmlPane,
    cards,
    chart_of,
    html_table,
    paragraph,
    share,
)
from patrolscope.dashboards.app.parts import counts_of, images_left
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.image_coverage import TITLES, day_chart, hour_chart, resident_chart, week_chart
from patrolscope.dashboards.maps.filters import HOURS, WEEKDAYS, Filter


@dataclass(frozen=True)
class Covered:
    """Images that a filter keeps, by time and place.

    Attributes
    ----------
    by_week : (7, 24) by weekday and local hour
    coverage : by hour, day and area, and the people there; areas are those of the filter's place and zone
    """

    by_week: npt.NDArray[np.int64]
    coverage: ImageCoverage


@lru_cache(maxsize=16)
def covered(site: Site, keep: Filter) -> Covered:
    """Coverage of the images that a filter keeps; days that it leaves out are left out."""
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
    part = "" if keep.is_all else keep.in_words()
    hours = counts[counts["by"] == "hour"].drop(columns="by")
    days = counts[counts["by"] == "day"].drop(columns="by")
    if days.empty or not days["images"].sum():
        return [Chart("hour", TITLES["hour"], "", "No image is left.")]
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
    week = pd.DataFrame(found.by_week, index=pd.Index(WEEKDAYS, name="weekday")).reset_index()
    text = {"simulated": simulated, "part": part}
    return [
        chart_of(
            "hour",
            hour_chart(found.coverage, **text),
            caption=told,
            frame=hours.rename(columns={"value": "hour"}),
        ),
        chart_of(
            "day",
            day_chart(found.coverage, **text),
            caption=of_days,
            frame=days.rename(columns={"value": "day"}),
        ),
        chart_of("week", week_chart(found.by_week, WEEKDAYS, **text), caption=of_week, frame=week),
    ]


def people_charts(site: Site, keep: Filter) -> list[Chart]:
    """Return the cumulative share of residents by the images of their area, by race and by borough."""
    found = covered(site, keep).coverage
    text = {"simulated": site.simulated, "part": "" if keep.is_all else keep.in_words()}
    charts = []
    kinds: tuple[Literal["race", "borough"], ...] = ("race", "borough")
    for by in kinds:
        curves = resident_curves(found.areas, resident_groups(found.areas, by))
        if curves.empty:
            continue
        chart = chart_of(
            f"people_{by}",
            resident_chart(found, by, **text),
            note="Share of residents by the number of images in their area. The legend has areas without images.",
            caption=people_words(found, list(dict.fromkeys(curves["group"]))),
            frame=curves,
        )
        charts.append(chart)
    return charts


def people_words(found: ImageCoverage, groups: list[str]) -> str:
    """Shares of people who live where no image was taken."""
    never = dict(zip(found.people["group"], found.people["share_never_seen"], strict=True))
    told = "; ".join(f"{group} {share(never[group], 1)}" for group in groups)
    return f"In areas without an image live: {told}."


def area_html(site: Site, keep: Filter) -> Markup:
    """How images are spread over areas, and who lives where few are, as HTML."""
    found = covered(site, keep).coverage
    facts = found.summary
    where = Filter(zone=keep.zone, place=keep.place)
    text = "" if where.is_all else f"Areas and people are those of {where.in_words()} alone. "
    text += (
        f"{facts['areas_never_seen']:,} of {facts['areas']:,} areas are never seen, {facts['areas_below_100']:,} have "
        f"fewer than 100 images. The tenth of areas with the most images has "
        f"{share(facts['images_in_the_busiest_tenth_of_areas'], 1)} of them. "
        f"{facts['outside_every_area']:,} images lie outside every area."
        if facts["images"]
        else "No image is left."
    )
    people = found.people[found.people["persons"] > 0] if not where.is_all else found.people
    table = pd.DataFrame(
        {
            "Group": people["group"],
            "People": [f"{persons:,.0f}" for persons in people["persons"]],
            **{
                title: [share(value, 1) if pd.notna(value) else "\u2013" for value in people[column]]
                for title, column in (
                    ("Never seen", "share_never_seen"),
                    ("Below 10 images", "share_below_10"),
                    ("Below 100", "share_below_100"),
                )
            },
        }
    )
    return (
        Markup("<h2>Where few images are</h2>")
        + paragraph(text)
        + html_table(table, "Share of people in areas with few images")
    )


# The page.


def page(site: Site, state: State) -> pn.viewable.Viewable:
    """When and where images were taken."""
    return _Page(site, state).view


class _Page:
    """The page of one session."""

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
        self.status.say(paragraph(f"{images_left(self.site, keep)}."))
        self.areas.say(area_html(self.site, keep))
        charts = [*time_charts(self.site, keep), *people_charts(self.site, keep)]
        if [card.chart.name for card in self.shown] != [chart.name for chart in charts]:
            self.shown = [Card(chart, wide=chart.name == "week") for chart in charts]
            self.charts.objects = [card.view for card in self.shown]
            return
        for card, chart in zip(self.shown, charts, strict=True):
            card.show(chart)

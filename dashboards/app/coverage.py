"""Image coverage page: images by time and area, and residents of areas with few images."""

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
from patrolscope.dashboards.app.cards import CARD, Card, HtmlPane, cards, html_table, paragraph, share
from patrolscope.dashboards.app.charts import Chart, chart_of
from patrolscope.dashboards.app.filtered_results import counts_of, images_kept
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.image_coverage import TITLES, day_chart, hour_chart, resident_chart, week_chart
from patrolscope.dashboards.maps.filters import HOURS, WEEKDAYS, Filter


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
    """Return the charts of images by hour, by day, and by weekday and hour."""
    found = covered(site, keep)
    counts = found.coverage.counts
    hours = counts[counts["by"] == "hour"].drop(columns="by")
    days = counts[counts["by"] == "day"].drop(columns="by")
    if days.empty or not days["images"].sum():
        return [Chart("hour", TITLES["hour"], "", "The filter keeps no images.")]
    by_hour = hours["images"].to_numpy()
    busy, quiet = int(by_hour.argmax()), int(by_hour.argmin())
    peaks = f"Most at {busy:02}:00 ({by_hour[busy]:,} images), fewest at {quiet:02}:00 ({by_hour[quiet]:,})."
    by_day = days["images"].to_numpy()
    dates = pd.DatetimeIndex(days["value"])
    of_days = (
        f"{len(days):,} days from {dates[0]:%-d %B %Y} to {dates[-1]:%-d %B %Y}; between {by_day.min():,} and "
        f"{by_day.max():,} images per day."
        if len(days) > 1
        else f"One day, {dates[0]:%-d %B %Y}: {by_day[0]:,} images."
    )
    weekday, hour = divmod(int(found.by_week.argmax()), HOURS)
    of_week = f"Most on {WEEKDAYS[weekday]} at {hour:02}:00, {found.by_week.max():,} images in all."
    week = pd.DataFrame(found.by_week, index=pd.Index(WEEKDAYS, name="weekday")).reset_index()
    text = {"simulated": site.simulated, "part": "" if keep.is_all else keep.describe()}
    return [
        chart_of(
            "hour",
            hour_chart(found.coverage, **text),
            caption=peaks,
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
    text = {"simulated": site.simulated, "part": "" if keep.is_all else keep.describe()}
    charts = []
    kinds: tuple[Literal["race", "borough"], ...] = ("race", "borough")
    for by in kinds:
        curves = resident_curves(found.areas, resident_groups(found.areas, by))
        if curves.empty:
            continue
        chart = chart_of(
            f"people_{by}",
            resident_chart(found, by, **text),
            note="Share of residents by the number of images in their area. The legend has areas without any image.",
            caption=people_words(found, list(dict.fromkeys(curves["group"]))),
            frame=curves,
        )
        charts.append(chart)
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

"""Deployment rates of groups relative to the city average, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pandas as pd

from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.dashboards.charts.axes import ratio_axis
from patrolscope.dashboards.charts.specs import IntervalChart, IntervalSeries, Row, Style, notes_of
from patrolscope.dashboards.charts.style import BLUE, GREEN, MEASURE, ORANGE, PURPLE

WHOLE_CITY = Style(BLUE, "o")
RESIDENTIAL = Style(ORANGE, "D", size=3.4)
PUBLISHED = {"": Style(GREEN, "s", size=3.4), "_residential": Style(PURPLE, "^")}  # by suffix of the analysis
TITLES = {
    "race": "Deployment rate by race and ethnicity",
    "density": "Deployment rate by population density",
    "income": "Deployment rate by median household income",
    "zone": "Deployment rate by zone",
    "borough": "Deployment rate by borough",
    "neighborhood": "Deployment rate by neighborhood",
}
ORDERED = ("density", "income")  # quartiles keep their order


class GroupEstimates(Protocol):
    """Estimates by analysis and group, of a study or as released."""

    @property
    def ranked_of(self) -> str:
        """Restriction on the neighborhoods that `ends` ranks; empty for none."""

    @property
    def drawn(self) -> Sequence[str]:
        """Names of the resampling units of the first and, if there is one, the second interval."""

    @property
    def open_marker_note(self) -> str:
        """Meaning of open markers, as a sentence."""

    def has(self, analysis: str) -> bool:
        """Return whether the results hold an analysis."""

    def groups(self, analysis: str) -> pd.DataFrame:
        """Return relative rates as `IntervalSeries.table`."""

    def ends(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the neighborhoods with the highest and with the lowest rates."""


def disparity_charts(
    results: GroupEstimates, *, interval_percent: float, simulated: str, part: str = ""
) -> dict[str, IntervalChart]:
    """Specify the interval charts that the results allow, by analysis.

    Parameters
    ----------
    results : GroupEstimates
        Estimates of a study, or released ones.
    interval_percent : float
        Width of the intervals, in percent.
    simulated : str
        Description of the simulated data; empty for real data.
    part : str
        Images that the results are restricted to; empty for all.
    """
    charts = {}
    for name, title in TITLES.items():
        series = city_and_residential(results, name)
        if not series:
            continue
        rows = rows_of_ends(*results.ends()) if name == "neighborhood" else rows_of_groups(name, series[0].table)
        if not rows:
            continue
        subtitle = interval_subtitle(interval_percent, results.drawn)
        if name == "neighborhood" and results.ranked_of:
            subtitle += f" {results.ranked_of}."
        charts[name] = interval_chart(
            series,
            rows,
            # A release can lack the analysis of the whole city.
            title=title if results.has(name) else f"{title}, {series[0].name}",
            subtitle=subtitle,
            simulated=simulated,
            degenerate=results.open_marker_note,
            part=part,
        )
    return charts


def city_and_residential(results: GroupEstimates, name: str) -> list[IntervalSeries]:
    """Return the estimates of the whole city and of residential zones, as far as the results hold them."""
    return [
        IntervalSeries(label, results.groups(analysis), style)
        for analysis, label, style in (
            (name, "whole city", WHOLE_CITY),
            (f"{name}_residential", "residential zones only", RESIDENTIAL),
        )
        if results.has(analysis)
    ]


def rows_of_groups(name: str, table: pd.DataFrame) -> list[Row]:
    """Return one row per group: quartiles in their order, other groups in descending order of their estimates."""
    groups = table if name in ORDERED else from_the_highest(table)
    return [Row(group, group) for group in groups["group"]]


def rows_of_ends(highest: pd.DataFrame, lowest: pd.DataFrame) -> list[Row]:
    """Return the rows of both ends of a ranking, each below a heading."""
    return [
        row
        for heading, groups in (("highest", highest), ("lowest", lowest))
        if len(groups)
        for row in (Row(f"{len(groups)} {heading} estimates"), *(Row(group, group) for group in groups["group"]))
    ]


def interval_subtitle(interval_percent: float, units: Sequence[str]) -> str:
    """Return the quantity and the meaning of the lines; `units` names the resampling units of one or two intervals."""
    interval = f"{interval_percent:g}% interval, resampling {units[0]}."
    if len(units) < 2:
        return f"{MEASURE}. Line: {interval}"
    return f"{MEASURE}. Thick line: {interval} Thin line: resampling {units[1]}."


def interval_chart(
    series: Sequence[IntervalSeries],
    rows: Sequence[Row],
    *,
    title: str,
    subtitle: str = "",
    simulated: str = "",
    degenerate: str = "",
    part: str = "",
) -> IntervalChart:
    """Specify points with intervals, a line at the city average, and a column of images or else of estimates.

    Parameters
    ----------
    series : sequence of IntervalSeries
        Estimates.
    rows : sequence of Row
        Groups and headings, from the top.
    title, subtitle, simulated, part : str
        Text, as for `disparity_charts`.
    degenerate : str
        Meaning of open markers.
    """
    groups = [row.group for row in rows if row.group is not None]
    shown = [one.of(groups) for one in series]
    with_images = all("images" in table for table in shown)
    column = "images" if with_images and any(_images_vary(table) for table in shown) else "estimate"
    named = tuple(
        IntervalSeries(_with_images(one), one.table, one.style) if with_images and column == "estimate" else one
        for one in series
    )
    return IntervalChart(
        title=title,
        subtitle=subtitle,
        notes=notes_of(
            simulated, degenerate=degenerate if any(table["none_positive"].any() for table in shown) else "", part=part
        ),
        x=ratio_axis(shown),
        rows=tuple(rows),
        series=named if len(series) > 1 else tuple(series),
        column=column,
        column_title=column,
    )


def _images_vary(table: pd.DataFrame) -> bool:
    """Return whether the images differ between groups, so that they deserve a column."""
    return len(table) == 1 or bool((table["images"] != table["images"].iloc[0]).any())


def _with_images(series: IntervalSeries) -> str:
    return f"{series.name}, {series.table['images'].iloc[0]:,.0f} images" if len(series.table) else series.name

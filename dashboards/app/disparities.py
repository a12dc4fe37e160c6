"""Disparities page: relative rates by group of residents and by region, with intervals, for any filter."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pandas as pd
import panel as pn
from markupsafe import Markup

from patrolscope.analysis.estimators.sensitivity import DIRECTION_ONLY, ROBUST, SENSITIVE
from patrolscope.analysis.stages.published import read_released
from patrolscope.analysis.stages.reproduce import tabulate
from patrolscope.analysis.stages.results import FEW_IMAGES, Results, resampled, results_of_scheme
from patrolscope.analysis.stages.sensitivity import SENSITIVITY_FOLDER, SENSITIVITY_SUMMARY
from patrolscope.dashboards.app.cards import CARD, Card, HtmlPane, cards, download, paragraph, with_interval
from patrolscope.dashboards.app.charts import Chart, chart_of
from patrolscope.dashboards.app.filtered_results import counts_of, filter_note, filtered_results, images_kept
from patrolscope.dashboards.app.messages import message, missing_html
from patrolscope.dashboards.app.neighborhood_table import (
    displayed_table,
    matching_names,
    neighborhood_table,
    tabulator,
)
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.disparities import (
    PUBLISHED,
    RESIDENTIAL,
    TITLES,
    WHOLE_CITY,
    disparity_charts,
    interval_chart,
    interval_subtitle,
    rows_of_groups,
)
from patrolscope.dashboards.charts.matplotlib_renderer import draw
from patrolscope.dashboards.charts.ranking import ranking_chart
from patrolscope.dashboards.charts.specs import IntervalChart, IntervalSeries
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.pipeline.study.store import Study

ZONES = {"Whole city": ("",), "Residential zones": ("_residential",), "Both": ("", "_residential")}
WHOLE, RESIDENTIAL_ONLY = "whole city", "residential zones only"
# Kinds of groups: title and note.
KINDS = {
    "race": (TITLES["race"], "Weighted by the residents of each group."),
    "income": (TITLES["income"], "Areas by quartile over images."),
    "density": (TITLES["density"], "Areas by quartile over images, residents per square mile."),
    "zone": (TITLES["zone"], ""),
    "borough": (TITLES["borough"], ""),
}
_BY_PLACE = ("zone", "borough", "neighborhood")  # not estimated for residential zones only
# Singular and plural.
VERDICTS = {
    ROBUST: ("is robust", "are robust"),
    DIRECTION_ONLY: ("holds in direction only", "hold in direction only"),
    SENSITIVE: ("is sensitive", "are sensitive"),
}
_EXPLANATION = "Relative rate: deployment rate divided by the city average, which is the line at 1."
NAMED = 5  # neighborhoods at each end in the caption


# Contents.


@lru_cache(maxsize=8)
def stored_results(site: Site, scheme: str) -> Results:
    """Read the study's estimates with the intervals of a resampling scheme, one of `schemes_of`.

    Raises
    ------
    ValueError
        If the study has no estimates.
    """
    if site.results is None:
        raise ValueError("the study has no estimates")
    return results_of_scheme(site.study, site.results, schemes_of(site.results)[scheme])


def schemes_of(results: Results) -> dict[str, dict[str, Any]]:
    """Return the study's resampling schemes by display name."""
    names = {"two_class": "", "station_adjusted": ", station-adjusted"}
    return {f"{resampled(scheme)}{names[scheme['prediction']]}": scheme for scheme in results.summary["schemes"]}


@lru_cache(maxsize=2)
def published_table(site: Site) -> pd.DataFrame:
    """Read the published estimates as rows of `patrolscope.analysis.stages.reproduce.tabulate`.

    Raises
    ------
    SourceError
        If the folder cannot be read.
    """
    return tabulate(read_released(site.published)[0])


def series_of(
    results: Results, kind: str, zones: tuple[str, ...], published: pd.DataFrame | None
) -> list[IntervalSeries]:
    """Return the series of a chart: the study's estimates and, beside each, the published ones.

    Parameters
    ----------
    results : Results
        Estimates of the study.
    kind : str
        Key of `KINDS`.
    zones : tuple of str
        Suffixes of the analyses: all images, those of residential zones.
    published : DataFrame or None
        Rows of `published_table`; None hides them.
    """
    series = []
    for suffix, name, style in (("", WHOLE, WHOLE_CITY), ("_residential", RESIDENTIAL_ONLY, RESIDENTIAL)):
        analysis = f"{kind}{suffix}"
        if suffix not in (("",) if kind in _BY_PLACE else zones):
            continue
        if results.has(analysis):
            series.append(IntervalSeries(name, results.groups(analysis), style))
        if published is not None and (published["analysis"] == analysis).any():
            rows = published[(published["analysis"] == analysis) & (published["quantity"] == "relative_to_average")]
            series.append(IntervalSeries(f"published, {name}", rows[rows["key"] != ""], PUBLISHED[suffix]))
    return series


def group_chart(
    site: Site, results: Results, kind: str, zones: tuple[str, ...], published: pd.DataFrame | None, keep: Filter
) -> Chart:
    """Return the chart of estimates and intervals of one kind of groups.

    Parameters
    ----------
    site : Site
        Study and its packed points.
    results : Results
        Estimates of the study, or of the filtered images.
    kind : str
        Kind of groups, such as "race".
    zones : tuple of str
        Zones whose analyses are shown.
    published : DataFrame or None
        Published estimates to draw beside them.
    keep : Filter
        Filter of the page, for the subtitle.
    """
    title, note = KINDS[kind]
    series = series_of(results, kind, zones, published)
    ours = [one for one in series if not one.name.startswith("published")]
    if not ours or all(one.table.empty for one in ours):
        wanted = kind if kind in _BY_PLACE or "" in zones else f"{kind}_residential"
        why = results.summary["skipped"].get(wanted, "the filter keeps no image in an area of these groups")
        return Chart(kind, title, note, f"Not estimated: {why}.")
    rows = rows_of_groups(kind, ours[0].table)
    estimates = ours[0].table.set_index("group")
    listed = "; ".join(f"{row.group} {with_interval(estimates.loc[row.group])}" for row in rows)
    cuts = quartile_limits(results, kind, zones)
    if cuts:
        note = f"{note.removesuffix('.')}, cut at {cuts}."
    caption = f"{ours[0].name[0].upper()}{ours[0].name[1:]}: {listed}."
    settings = site.study.settings
    spec = interval_chart(
        series,
        rows,
        title=title,
        subtitle=interval_subtitle(settings.estimate.interval_percent, results.drawn),
        simulated=settings.simulated,
        degenerate=results.open_marker_note,
        part=filter_note(keep),
    )
    frame = pd.concat([one.table.assign(series=one.name) for one in series], ignore_index=True)
    return chart_of(kind, spec, note=note, caption=caption, frame=frame)


def quartile_limits(results: Results, kind: str, zones: tuple[str, ...]) -> str:
    """Return the limits of the quartiles as text, for all images and for those of residential zones.

    Parameters
    ----------
    results : Results
        Estimates with their quartile limits.
    kind : str
        Kind of groups: "income" or "density".
    zones : tuple of str
        Zones whose analyses are shown.
    """
    unit = " USD" if kind == "income" else ""
    found = {
        name: results.summary["cut_points"].get(f"{kind}{suffix}")
        for suffix, name in (("", WHOLE), ("_residential", RESIDENTIAL_ONLY))
        if suffix in zones
    }
    return " and ".join(
        f"{'; '.join(f'{cut:,.0f}' for cut in cuts)}{unit} ({name})" for name, cuts in found.items() if cuts
    )


def place_chart(site: Site, results: Results, table: pd.DataFrame, chosen: list[str], keep: Filter) -> Chart:
    """Return the chart of all neighborhoods with enough images, by rank.

    Parameters
    ----------
    site : Site
        Study and its packed points.
    results : Results
        Estimates of neighborhoods.
    table : DataFrame
        One row per neighborhood with enough images, in order of its rank.
    chosen : list of str
        Neighborhoods to highlight.
    keep : Filter
        Filter of the page, for the subtitle.
    """
    title = TITLES["neighborhood"]
    if table.empty:
        why = results.summary["skipped"].get("neighborhood", "the filter keeps no image in a neighborhood")
        return Chart("neighborhood", title, "", f"Not estimated: {why}.")
    ranked = table[~table["few"] & ~table["none_positive"]].reset_index(drop=True)
    note = (
        f"Neighborhoods with at least {FEW_IMAGES} images and a positive one, {len(ranked):,} of {len(table):,}, from "
        "the highest estimate to the lowest."
    )
    if ranked.empty:
        return Chart("neighborhood", title, note, "No neighborhood has enough images to be ranked.", frame=table)
    head, tail = (part for part in (ranked.head(NAMED), ranked.iloc[NAMED:].tail(NAMED)))
    caption = (
        "Highest estimates: " + "; ".join(f"{row['group']} {with_interval(row)}" for _, row in head.iterrows()) + "."
    )
    if len(tail):
        caption += (
            " Lowest estimates: "
            + "; ".join(f"{row['group']} {with_interval(row)}" for _, row in tail.iterrows())
            + "."
        )
    chart = chart_of("neighborhood", ranking_chart(ranked, chosen), note=note, caption=caption, frame=table)
    return replace(chart, picture=lambda: draw(_ends_chart(site, results, keep)))


def _ends_chart(site: Site, results: Results, keep: Filter) -> IntervalChart:
    """Specify both ends of the ranking, for files."""
    settings = site.study.settings
    tables = results.tables[results.tables["analysis"] == "neighborhood"]
    return disparity_charts(
        replace(results, tables=tables),
        interval_percent=settings.estimate.interval_percent,
        simulated=settings.simulated,
        part=filter_note(keep),
    )["neighborhood"]


# The page.


def page(site: Site, state: State) -> pn.viewable.Viewable:
    """Return the page of one session."""
    if site.results is None:
        return message(missing_html("Estimates are", "run"))
    return _Page(site, state, site.results).view


class _Page:
    """Page of one session."""

    def __init__(self, site: Site, state: State, results: Results) -> None:
        self.site, self.state = site, state
        schemes = list(schemes_of(results))
        self.zones = pn.widgets.RadioButtonGroup(label="Images", options=list(ZONES), value="Both")
        self.scheme = pn.widgets.Select(label="Resampling unit", options=schemes, value=schemes[0], width=240)
        self.compare = pn.widgets.Checkbox(label="Show published results", value=bool(site.published))
        self.compare.visible = bool(site.published)
        self.search = pn.widgets.TextInput(label="Find a neighborhood", placeholder="part of a name", width=280)
        self.status = HtmlPane()
        self.results = self._results(intervals=False)
        self.cards = {kind: Card(self._group(kind), wide=kind == "race") for kind in KINDS}
        self.table = neighborhood_table(site, self.results, self._published())
        self.listed = tabulator(self.table)
        hint = HtmlPane(paragraph("Select rows to label neighborhoods in the chart.", "note"))
        self.places = Card(self._place(), beside=(self.search, hint, self.listed), wide=True)
        self._show_status()
        for widget in (self.zones, self.scheme, self.compare):
            widget.param.watch(self._changed, "value")
        self.search.param.watch(self._label, "value_input")
        self.listed.param.watch(self._label, "selection")
        state.param.watch(self._filtered, "filter")
        if not state.filter.is_all:
            pn.state.onload(self._add_intervals)

    @property
    def view(self) -> pn.viewable.Viewable:
        """Everything on the page."""
        controls = pn.FlexBox(
            pn.Column(HtmlPane(paragraph("Images", "note")), self.zones, width=290, margin=0),
            self.scheme,
            pn.Column(self.compare, margin=(24, 0, 0, 10)),
            sizing_mode="stretch_width",
            margin=(6, 0, 14, -6),
        )
        return pn.Column(
            self.status,
            controls,
            cards(*(card.view for card in self.cards.values()), self.places.view, sensitivity_view(self.site.study)),
            sizing_mode="stretch_width",
        )

    def _results(self, *, intervals: bool) -> Results:
        if self.state.filter.is_all:
            return stored_results(self.site, self.scheme.value)
        return filtered_results(self.site, self.state.filter, intervals=intervals)

    def _published(self) -> pd.DataFrame | None:
        return published_table(self.site) if self.compare.visible and self.compare.value else None

    def _group(self, kind: str) -> Chart:
        zones = ZONES[self.zones.value]
        return group_chart(self.site, self.results, kind, zones, self._published(), self.state.filter)

    def _place(self) -> Chart:
        chosen = matching_names(self.table, self.search.value_input or "")
        chosen += [self.table["group"].iloc[row] for row in self.listed.selection if row < len(self.table)]
        return place_chart(self.site, self.results, self.table, chosen, self.state.filter)

    def _show_status(self) -> None:
        self.scheme.disabled = not self.state.filter.is_all
        self.status.set_html(status_of(self.site, self.state.filter, self.results))

    def _draw(self) -> None:
        for kind, card in self.cards.items():
            card.show(self._group(kind))
        self.table = neighborhood_table(self.site, self.results, self._published())
        self.listed.selection = []
        self.listed.value = displayed_table(self.table)
        self.places.show(self._place())
        self._show_status()

    def _changed(self, *_: Any) -> None:
        self.results = self._results(intervals=True)
        self._draw()

    def _label(self, *_: Any) -> None:
        self.places.show(self._place())

    async def _filtered(self, *_: Any) -> None:
        """Show estimates immediately, and add their intervals later."""
        self.results = self._results(intervals=False)
        self._draw()
        await self._add_intervals()

    async def _add_intervals(self) -> None:
        """Compute intervals in a thread, and show them unless the filter has changed."""
        keep = self.state.filter
        if keep.is_all:
            return
        results = await asyncio.to_thread(filtered_results, self.site, keep, intervals=True)
        if self.state.filter == keep:
            self.results = results
            self._draw()


def status_of(site: Site, keep: Filter, results: Results) -> Markup:
    """Render the images and the method behind the estimates as HTML.

    Parameters
    ----------
    site : Site
        Study and its packed points.
    keep : Filter
        Filter of the page.
    results : Results
        Estimates that the page shows.
    """
    percent = site.study.settings.estimate.interval_percent
    scheme = results.summary["schemes"][0]
    if keep.is_all:
        images = results.summary["images"]["analyzed"]
        text = f"All {images:,} analyzed images. {_EXPLANATION} "
        few = scheme.get("without_intervals")
        text += f"No intervals: {few}." if few else f"Line: {percent:g}% interval, bootstrap of {results.drawn[0]}."
        return paragraph(f"{text} Open marker: no image is positive.")
    has_intervals = results.tables["lower"].notna().any()
    text = f"{images_kept(site, keep)}. "
    if not counts_of(site, keep).sum():
        return paragraph(text)
    text += "Two-class rates, recomputed from these images; 1 is their city average. "
    text += "Groups and quartiles are those of the whole study. "
    if has_intervals:
        text += f"Line: {percent:g}% interval, {scheme['replicates']} bootstrap replicates of single images."
    else:
        text += "Computing intervals \u2026"
    return paragraph(text)


# Sensitivity.


def sensitivity_html(study: Study) -> Markup:
    """Render the verdicts and the figure of the sensitivity analysis as HTML."""
    title = Markup("<h2>Sensitivity analysis</h2>")
    if not study.exists(SENSITIVITY_SUMMARY):
        return title + missing_html("The sensitivity analysis is", "sensitivity")
    facts = json.loads(study.read_bytes(SENSITIVITY_SUMMARY))
    verdicts = "; ".join(
        f"{number:,} {VERDICTS[verdict][number != 1]}" for verdict, number in facts["verdicts"].items()
    )
    text = (
        f"{facts['variants']:,} variants of the study with one change each: threshold, calibration, size of areas, "
        f"dates, or time of day. Of {facts['conclusions']:,} conclusions, {verdicts}."
    )
    address = base64.b64encode(study.read_bytes(SENSITIVITY_FOLDER, "sensitivity.svg")).decode()
    alt = f"Estimate and interval of every group, with one mark per variant. {verdicts}."
    picture = Markup(
        '<img src="data:image/svg+xml;base64,{}" alt="{}" style="width:100%;max-width:860px;margin:8px 0">'
    ).format(address, alt)
    return title + paragraph(text, "note") + picture


def sensitivity_view(study: Study) -> pn.viewable.Viewable:
    """Return the card of the sensitivity analysis, with its files."""
    parts: list[pn.viewable.Viewable] = [HtmlPane(sensitivity_html(study))]
    if study.exists(SENSITIVITY_SUMMARY):
        files = [f"sensitivity.{ending}" for ending in ("png", "svg", "csv")]
        parts.append(pn.Row(*(download(file, partial(study.read_bytes, SENSITIVITY_FOLDER, file)) for file in files)))
    return pn.Column(*parts, styles=CARD | {"flex": "1 1 100%"}, sizing_mode="stretch_width", margin=0)

"""The page of disparities: levels of groups of people and places with intervals, for all images or a part of them."""

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

from patrolscope.analysis.estimators.sensitivity import DEPENDS, DIRECTION, HOLDS
from patrolscope.analysis.stages.published import read_released
from patrolscope.analysis.stages.reproduce import tabulate
from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.analysis.stages.results import FEW_IMAGES, UNITS, Results, results_of_way
from patrolscope.analysis.stages.sensitivity import SENSITIVITY_FOLDER, SENSITIVITY_SUMMARY
from patrolscope.dashboards.app.charts import (
    CARD,
    Card,
    Chart,
    HtmlPane,
    cards,
    chart_of,
    download,
    paragraph,
    with_interval,
)
from patrolscope.dashboards.app.messages import message, not_yet
from patrolscope.dashboards.app.parts import counts_of, images_left, part_results, part_words
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
from patrolscope.dashboards.charts.style import MEASURE
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.pipeline.study.store import Study

ZONES = {"Whole city": ("",), "Residential zones": ("_residential",), "Both": ("", "_residential")}
WHOLE, RESIDENTIAL_ONLY = "whole city", "residential zones only"
# Kinds of groups: title, and how a reader knows what they are.
KINDS = {
    "race": (TITLES["race"], "Weighted by where people of each group live."),
    "income": (TITLES["income"], "Areas by quartile over images."),
    "density": (TITLES["density"], "Areas by quartile over images, people per square mile."),
    "zone": (TITLES["zone"], ""),
    "borough": (TITLES["borough"], ""),
}
_BY_PLACE = ("zone", "borough", "neighborhood")  # not made for residential zones alone
TABLE = {
    "group": "Neighborhood",
    "borough": "Borough",
    "estimate": "Times average",
    "lower": "Lower",
    "upper": "Upper",
    "level": "Level, %",
    "images": "Images",
    "note": "Note",
    "published": "Published",
}
TEXTS = ("group", "borough", "note")
# Of one conclusion, and of many.
VERDICTS = {
    HOLDS: ("holds under all changes", "hold under all changes"),
    DIRECTION: ("holds in direction only", "hold in direction only"),
    DEPENDS: ("depends on what is changed", "depend on what is changed"),
}
NAMED = 5  # neighborhoods at each end that are told in words


# What is shown.


@lru_cache(maxsize=8)
def stored_results(site: Site, way: str) -> Results:
    """Estimates as they stand in the study, with the intervals of one way of resampling.

    `way` is one of `ways_of`.
    """
    if site.results is None:
        raise ValueError("a page without estimates asks for none")
    return results_of_way(site.study, site.results, ways_of(site.results)[way])


def ways_of(results: Results) -> dict[str, dict[str, Any]]:
    """The study's ways of resampling, in words for a reader."""
    names = {"two_class": "", "station_adjusted": ", station-adjusted"}
    return {f"{UNITS[way['unit']]}{names[way['prediction']]}": way for way in results.summary["ways"]}


@lru_cache(maxsize=2)
def published_table(site: Site) -> pd.DataFrame:
    """Published estimates, as `patrolscope.analysis.stages.reproduce.tabulate` gives them.

    Raises
    ------
    SourceError : the folder that the site names can not be read
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
    """Intervals of one kind of groups."""
    title, note = KINDS[kind]
    series = series_of(results, kind, zones, published)
    ours = [one for one in series if not one.name.startswith("published")]
    if not ours or all(one.table.empty for one in ours):
        wanted = kind if kind in _BY_PLACE or "" in zones else f"{kind}_residential"
        why = results.summary["skipped"].get(wanted, "no image that is left lies in an area of these groups")
        return Chart(kind, title, note, f"Not estimated: {why}.")
    rows = rows_of_groups(kind, ours[0].table)
    estimates = ours[0].table.set_index("group")
    told = "; ".join(f"{row.group} {with_interval(estimates.loc[row.group])}" for row in rows)
    cuts = cuts_in_words(results, kind, zones)
    if cuts:
        note = f"{note.removesuffix('.')}, cut at {cuts}."
    caption = f"{ours[0].name[0].upper()}{ours[0].name[1:]}: {told}."
    settings = site.study.settings
    spec = interval_chart(
        series,
        rows,
        title=title,
        subtitle=interval_subtitle(settings.estimate.interval_percent, results.drawn),
        simulated=settings.simulated,
        degenerate=results.hollow_means,
        part=part_words(keep),
    )
    frame = pd.concat([one.table.assign(series=one.name) for one in series], ignore_index=True)
    return chart_of(kind, spec, note=note, caption=caption, frame=frame)


def cuts_in_words(results: Results, kind: str, zones: tuple[str, ...]) -> str:
    """Where the quartiles of one kind of groups are cut, for all images and for those of residential zones."""
    unit = " USD" if kind == "income" else ""
    found = {
        name: results.summary["cut_points"].get(f"{kind}{suffix}")
        for suffix, name in (("", WHOLE), ("_residential", RESIDENTIAL_ONLY))
        if suffix in zones
    }
    return " and ".join(
        f"{'; '.join(f'{cut:,.0f}' for cut in cuts)}{unit} ({name})" for name, cuts in found.items() if cuts
    )


def place_table(site: Site, results: Results, published: pd.DataFrame | None) -> pd.DataFrame:
    """Every neighborhood from the highest to the lowest, then those with few images.

    Returns
    -------
    columns of `TABLE`, few, hollow
    """
    rows = from_the_highest(results.groups("neighborhood"))
    level = results.groups("neighborhood", "weighted_mean").set_index("key")["estimate"]
    rows = rows.assign(level=100 * rows["key"].map(level), few=rows["images"] < FEW_IMAGES)
    few, none = "few images", "none with police"
    notes = {(True, True): f"{few}, {none}", (True, False): few, (False, True): none, (False, False): ""}
    rows["note"] = [notes[pair] for pair in zip(rows["few"], rows["hollow"], strict=True)]
    rows = rows.sort_values("few", kind="stable")
    boroughs = site.points.areas.dropna(subset=["neighborhood"]).groupby("neighborhood")["borough"].first()
    rows = rows.assign(borough=rows["key"].map(boroughs))
    if published is not None:
        theirs = published[(published["analysis"] == "neighborhood") & (published["quantity"] == "relative_to_average")]
        rows = rows.assign(published=rows["key"].map(theirs.set_index("key")["estimate"]))
    columns = [name for name in TABLE if name in rows]
    return rows[[*columns, "few", "hollow"]].reset_index(drop=True)


def place_chart(site: Site, results: Results, table: pd.DataFrame, chosen: list[str], keep: Filter) -> Chart:
    """Every neighborhood with enough images by its rank."""
    title = TITLES["neighborhood"]
    if table.empty:
        why = results.summary["skipped"].get("neighborhood", "no image that is left lies in a neighborhood")
        return Chart("neighborhood", title, "", f"Not estimated: {why}.")
    ranked = table[~table["few"]].reset_index(drop=True)
    note = (
        f"From the highest to the lowest, those with at least {FEW_IMAGES} images: {len(ranked):,} of {len(table):,}."
    )
    if ranked.empty:
        return Chart("neighborhood", title, note, "None has enough images for a ranking.", frame=table)
    head, tail = (part for part in (ranked.head(NAMED), ranked.iloc[NAMED:].tail(NAMED)))
    caption = "Highest: " + "; ".join(f"{row['group']} {with_interval(row)}" for _, row in head.iterrows()) + "."
    if len(tail):
        caption += " Lowest: " + "; ".join(f"{row['group']} {with_interval(row)}" for _, row in tail.iterrows()) + "."
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
        part=part_words(keep),
    )["neighborhood"]


def found_names(table: pd.DataFrame, text: str, most: int = 12) -> list[str]:
    """Neighborhoods, or those of a borough, whose name holds a text."""
    if not text.strip():
        return []
    found = table["group"].str.contains(text.strip(), case=False, regex=False)
    return table.loc[found & ~table["few"], "group"].head(most).to_list()


# The page.


def page(site: Site, state: State) -> pn.viewable.Viewable:
    """Intervals by race, income, density, zone, borough and neighborhood; what holds whatever is changed."""
    if site.results is None:
        return message(not_yet("Estimates are", "run"))
    return _Page(site, state, site.results).view


class _Page:
    """The page of one session."""

    def __init__(self, site: Site, state: State, results: Results) -> None:
        self.site, self.state = site, state
        ways = list(ways_of(results))
        self.zones = pn.widgets.RadioButtonGroup(label="Images", options=list(ZONES), value="Both")
        self.way = pn.widgets.Select(label="Intervals from drawing again", options=ways, value=ways[0], width=240)
        self.beside = pn.widgets.Checkbox(label="Published results beside ours", value=bool(site.published))
        self.beside.visible = bool(site.published)
        self.search = pn.widgets.TextInput(label="Find a neighborhood", placeholder="part of a name", width=280)
        self.status = HtmlPane()
        self.results = self._results(intervals=False)
        self.cards = {kind: Card(self._group(kind), wide=kind == "race") for kind in KINDS}
        self.table = place_table(site, self.results, self._published())
        self.listed = tabulator(self.table)
        tick = HtmlPane(paragraph("A row that is ticked is named in the chart, if it is ranked there.", "note"))
        self.places = Card(self._place(), beside=(self.search, tick, self.listed), wide=True)
        self._say()
        for widget in (self.zones, self.way, self.beside):
            widget.param.watch(self._changed, "value")
        self.search.param.watch(self._mark, "value_input")
        self.listed.param.watch(self._mark, "selection")
        state.param.watch(self._filtered, "filter")
        if not state.filter.is_all:
            pn.state.onload(self._follow)

    @property
    def view(self) -> pn.viewable.Viewable:
        """Everything on the page."""
        controls = pn.FlexBox(
            pn.Column(HtmlPane(paragraph("Images", "note")), self.zones, width=290, margin=0),
            self.way,
            pn.Column(self.beside, margin=(24, 0, 0, 10)),
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
            return stored_results(self.site, self.way.value)
        return part_results(self.site, self.state.filter, intervals=intervals)

    def _published(self) -> pd.DataFrame | None:
        return published_table(self.site) if self.beside.visible and self.beside.value else None

    def _group(self, kind: str) -> Chart:
        zones = ZONES[self.zones.value]
        return group_chart(self.site, self.results, kind, zones, self._published(), self.state.filter)

    def _place(self) -> Chart:
        chosen = found_names(self.table, self.search.value_input or "")
        chosen += [self.table["group"].iloc[row] for row in self.listed.selection if row < len(self.table)]
        return place_chart(self.site, self.results, self.table, chosen, self.state.filter)

    def _say(self) -> None:
        self.way.disabled = not self.state.filter.is_all
        self.status.say(status_of(self.site, self.state.filter, self.results))

    def _draw(self) -> None:
        for kind, card in self.cards.items():
            card.show(self._group(kind))
        self.table = place_table(self.site, self.results, self._published())
        self.listed.selection = []
        self.listed.value = shown_table(self.table)
        self.places.show(self._place())
        self._say()

    def _changed(self, *_: Any) -> None:
        self.results = self._results(intervals=True)
        self._draw()

    def _mark(self, *_: Any) -> None:
        self.places.show(self._place())

    async def _filtered(self, *_: Any) -> None:
        """Levels at once; the intervals of a part a moment later."""
        self.results = self._results(intervals=False)
        self._draw()
        await self._follow()

    async def _follow(self) -> None:
        """Intervals of a part, unless another filter was set meanwhile; not in the server's own thread."""
        keep = self.state.filter
        if keep.is_all:
            return
        results = await asyncio.to_thread(part_results, self.site, keep, intervals=True)
        if self.state.filter == keep:
            self.results = results
            self._draw()


def status_of(site: Site, keep: Filter, results: Results) -> Markup:
    """Which images the page is of, and where its numbers come from, as HTML."""
    percent = site.study.settings.estimate.interval_percent
    way = results.summary["ways"][0]
    if keep.is_all:
        images = results.summary["images"]["analyzed"]
        text = f"All {images:,} analyzed images: the study's own estimates. "
        few = way.get("without_intervals")
        text += f"No intervals: {few}. " if few else f"Line: {percent:g} % interval, {results.drawn[0]} drawn again. "
        return paragraph(f"{text}{MEASURE}; the line at 1 is the average. Hollow: none of the images is positive.")
    done = results.tables["lower"].notna().any()
    text = f"{images_left(site, keep)}. "
    if not counts_of(site, keep).sum():
        return paragraph(text)
    text += "Levels are made again from these images by the two-class prediction; the average, 1, is theirs. "
    text += "Groups are those of the whole study: quartiles stay as they are. "
    if done:
        text += f"Line: {percent:g} % interval from {way['replicates']} draws of single images."
    else:
        text += "Intervals follow."
    return paragraph(text)


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the table of neighborhoods under the names that a reader sees."""
    shown = table.drop(columns=["few", "hollow"])
    # An unknown number is an empty cell; NaN would be written there.
    return shown.astype(object).where(shown.notna(), None).rename(columns=TABLE)


def tabulator(table: pd.DataFrame) -> pn.widgets.Tabulator:
    """Neighborhoods, to be sorted and searched in the browser; every cell is shown as plain text."""
    shown = shown_table(table)
    texts = [TABLE[name] for name in TEXTS]
    decimals = {TABLE[name]: digits for name, digits in (("level", 3), ("images", 0))}
    money = {"type": "money", "thousand": ",", "decimal": ".", "symbol": ""}
    return pn.widgets.Tabulator(
        shown,
        show_index=False,
        disabled=True,
        pagination="local",
        page_size=12,
        layout="fit_data_stretch",
        selectable="checkbox",
        sizing_mode="stretch_width",
        header_filters={name: {"type": "input", "func": "like", "placeholder": "find"} for name in texts[:2]},
        formatters={
            name: {"type": "plaintext"} if name in texts else {**money, "precision": decimals.get(name, 3)}
            for name in TABLE.values()
        },
        text_align={name: "left" if name in texts else "right" for name in TABLE.values()},
        widths={TABLE["note"]: 190},
        theme="simple",
        configuration={"headerFilterLiveFilterDelay": 150},
        margin=(8, 0),
    )


# What holds whatever is changed.


def sensitivity_html(study: Study) -> Markup:
    """Verdicts and figure of the sensitivity analysis, as HTML."""
    title = Markup("<h2>Sensitivity: what holds whatever is changed</h2>")
    if not study.exists(SENSITIVITY_SUMMARY):
        return title + not_yet("The sensitivity analysis is", "sensitivity")
    facts = json.loads(study.read_bytes(SENSITIVITY_SUMMARY))
    counted = "; ".join(f"{number:,} {VERDICTS[verdict][number != 1]}" for verdict, number in facts["verdicts"].items())
    text = (
        f"The estimates of all images again, {facts['variants']:,} times, each with one thing changed: threshold, "
        f"calibration, size of areas, dates, time of day. Of {facts['conclusions']:,} conclusions: {counted}."
    )
    address = base64.b64encode(study.read_bytes(SENSITIVITY_FOLDER, "sensitivity.svg")).decode()
    alt = f"For every group the estimate, its interval and a mark for each variant. {counted}."
    picture = Markup(
        '<img src="data:image/svg+xml;base64,{}" alt="{}" style="width:100%;max-width:860px;margin:8px 0">'
    ).format(address, alt)
    return title + paragraph(text, "note") + picture


def sensitivity_view(study: Study) -> pn.viewable.Viewable:
    """The sensitivity analysis in a card, with its files."""
    parts: list[pn.viewable.Viewable] = [HtmlPane(sensitivity_html(study))]
    if study.exists(SENSITIVITY_SUMMARY):
        files = [f"sensitivity.{ending}" for ending in ("png", "svg", "csv")]
        parts.append(pn.Row(*(download(file, partial(study.read_bytes, SENSITIVITY_FOLDER, file)) for file in files)))
    return pn.Column(*parts, styles=CARD | {"flex": "1 1 100%"}, sizing_mode="stretch_width", margin=0)

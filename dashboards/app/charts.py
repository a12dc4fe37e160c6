"""Charts of the pages: title, legend, figure, caption, and data. Served and static pages show the same charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    DatetimeTickFormatter,
    FactorRange,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    NumeralTickFormatter,
    ResetTool,
    Span,
)
from bokeh.plotting import figure
from markupsafe import Markup
from matplotlib.figure import Figure

from patrolscope.dashboards.charts.figures import (
    BLUE,
    GRID,
    INK,
    MUTED,
    ORANGE,
    Series,
    ratio_text,
    ratio_ticks,
    to_png,
    to_svg,
)
from patrolscope.dashboards.maps.filters import HOURS, WEEKDAYS

FONT = '"Helvetica Neue", Helvetica, Arial, "DejaVu Sans", sans-serif'  # as in page.html
# One hue from pale to dark, readable without color.
SHADES = ("#f2f6fb", "#d9e6f4", "#b9d2ea", "#93b9dd", "#689cce", "#3b7dc4", "#2762a5", "#174881", "#0b2f5c")
MARKERS = {"o": "circle", "D": "diamond", "s": "square", "^": "triangle"}
GLYPHS = {"o": "\u25cf", "D": "\u25c6", "s": "\u25a0", "^": "\u25b2"}
ROW_PX = 26
NOTHING = Markup("")


@dataclass(frozen=True)
class Chart:
    """Chart with its title, legend, and caption.

    Attributes
    ----------
    name : str
        Stem of the names of saved files.
    note : str
        Explanation of the marks.
    caption : str
        Main numbers as text, for readers who cannot see the figure.
    figure : figure, optional
        None if there is nothing to draw; the caption then gives the reason.
    key : tuple of tuple of str
        Name, color, and marker of each kind of mark.
    frame : DataFrame
        Numbers of the figure.
    picture : callable, optional
        Draws the print version; None if there is none.
    """

    name: str
    title: str
    note: str = ""
    caption: str = ""
    figure: figure | None = None
    key: tuple[tuple[str, str, str], ...] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    picture: Callable[[], Figure] | None = None

    @property
    def files(self) -> dict[str, Callable[[], bytes]]:
        """Functions that return the content of a saved file, by its extension."""
        files: dict[str, Callable[[], bytes]] = {}
        if self.picture is not None:
            draw = self.picture
            files = {"png": lambda: to_png(draw()), "svg": lambda: to_svg(draw())}
        if len(self.frame.columns):
            files["csv"] = lambda: self.frame.to_csv(index=False).encode()
        return files

    def head(self, level: int = 2) -> Markup:
        """Render title, note, and legend as HTML."""
        marks = Markup("").join(
            Markup('<span><span style="color:{}" aria-hidden="true">{}</span> {}</span> ').format(
                color, GLYPHS[marker], name
            )
            for name, color, marker in self.key
        )
        parts = [Markup("<h{0}>{1}</h{0}>").format(level, self.title)]
        if self.note:
            parts.append(Markup('<p class="note">{}</p>').format(self.note))
        if self.key:
            parts.append(Markup('<p class="key">{}</p>').format(marks))
        return Markup("").join(parts)

    def foot(self) -> Markup:
        """Render the caption as HTML."""
        return Markup('<p class="caption">{}</p>').format(self.caption) if self.caption else NOTHING


# Intervals.


def interval_chart(series: Sequence[Series], groups: Sequence[str], *, alt: str) -> figure:
    """Dot and whisker of every group, the series of a group below each other; a line at the average.

    Parameters
    ----------
    series : rows with group, estimate, lower, upper; images and hollow where known
    groups : from the top
    """
    lanes = max(1, len(series))
    low, high = _ends(series, groups)
    height = 62 + int(len(groups) * ROW_PX * (1 + 0.5 * (lanes - 1)))
    # The number beside a whisker needs room.
    plot, limits = _ratio_figure(low, high, room=0.22, y_range=FactorRange(*reversed(groups)), height=height, alt=alt)
    plot.ygrid.grid_line_color = None
    plot.yaxis.major_tick_line_color = None
    plot.add_layout(Span(location=1, dimension="height", line_color=INK, line_width=1))
    for lane, one in enumerate(series):
        offset = 0.68 * ((lanes - 1) / 2 - lane) / lanes
        rows = one.rows[one.rows["group"].isin(groups)]
        source = ColumnDataSource(
            {
                "group": rows["group"].to_list(),
                "y": [(group, offset) for group in rows["group"]],
                **_numbers(rows),
                "images": rows["images"] if "images" in rows else np.full(len(rows), np.nan),
                "at": np.fmin(np.fmax(rows["estimate"], rows["upper"]), limits[1]),
                # Of more than two series the numbers would hide each other.
                "text": [f"{value:.2f}" if lanes < 3 else "" for value in rows["estimate"]],
                "face": _faces(rows, one.color),
                "of": [one.name] * len(rows),
            }
        )
        plot.segment("lower", "y", "upper", "y", source=source, line_color=one.color, line_width=2.2, line_alpha=0.75)
        dots = plot.scatter(
            "estimate", "y", source=source, marker=MARKERS[one.marker], size=8, line_color=one.color, fill_color="face"
        )
        plot.text(
            "at", "y", "text", source=source, x_offset=8, text_baseline="middle", text_font_size="11px",
            text_color=one.color if lanes > 1 else MUTED, text_font={"value": FONT},
        )  # fmt: skip
        plot.add_tools(_hover(dots, several=lanes > 1))
    return plot


def ranking_chart(rows: pd.DataFrame, chosen: Sequence[str], *, alt: str) -> figure:
    """Every group by its rank, from the highest; the chosen ones in another color, with their names.

    Parameters
    ----------
    rows : group, estimate, lower, upper, images, hollow; sorted
    """
    series = [Series("all", rows)]
    low, high = _ends(series, rows["group"].to_list())
    plot, limits = _ratio_figure(low, high, room=0.04, along="y", height=340, alt=alt)
    plot.xgrid.grid_line_color = None
    plot.xaxis.axis_label = "rank"
    plot.add_layout(Span(location=1, dimension="width", line_color=INK, line_width=1))
    ranked = rows.assign(rank=np.arange(1, len(rows) + 1))
    marked = ranked["group"].isin(list(chosen))
    for part, color, width in ((ranked[~marked], BLUE, 1.4), (ranked[marked], ORANGE, 2.6)):
        source = ColumnDataSource(
            {
                "group": part["group"].to_list(),
                "rank": part["rank"],
                **_numbers(part),
                "images": part["images"],
                "of": [f"rank {rank}" for rank in part["rank"]],
                "face": _faces(part, color),
            }
        )
        plot.segment(
            "rank", "lower", "rank", "upper", source=source, line_color=color, line_width=width, line_alpha=0.5
        )
        dots = plot.scatter("rank", "estimate", source=source, size=4 + width, line_color=color, fill_color="face")
        plot.add_tools(_hover(dots, several=True))
        if color == ORANGE and len(part) <= 12:
            right = part["rank"] > len(rows) / 2
            for side, aligned in ((part[~right], "left"), (part[right], "right")):
                place = ColumnDataSource(
                    {"x": side["rank"], "y": side["estimate"].clip(*limits), "text": side["group"].to_list()}
                )
                plot.text(
                    "x", "y", "text", source=place, x_offset=9 if aligned == "left" else -9, text_align=aligned,
                    text_baseline="middle", text_font_size="12px", text_color=INK, text_font={"value": FONT},
                )  # fmt: skip
    return plot


def _faces(rows: pd.DataFrame, color: str) -> list[str]:
    """Hollow where no image is positive, so that no interval can be known."""
    hollow = rows["hollow"] if "hollow" in rows else pd.Series(False, index=rows.index)
    return ["#ffffff" if one else color for one in hollow]


def _numbers(rows: pd.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
    return {name: rows[name].to_numpy(dtype=np.float64) for name in ("estimate", "lower", "upper")}


def _hover(dots: Any, *, several: bool) -> HoverTool:
    lines = [("", "@group"), ("times the average", "@estimate{0.000}"), ("interval", "@lower{0.000} to @upper{0.000}")]
    return HoverTool(
        renderers=[dots], tooltips=[*lines, ("images", "@images{0,0}"), *([("", "@of")] if several else [])]
    )


def _ends(series: Sequence[Series], groups: Sequence[str]) -> tuple[float, float]:
    values = [
        one.rows.loc[one.rows["group"].isin(groups), ["estimate", "lower", "upper"]].to_numpy(dtype=np.float64).ravel()
        for one in series
    ]
    known = np.concatenate([[1.0], *values])
    known = known[np.isfinite(known)]
    return float(known.min()), float(known.max())


def _ratio_figure(
    low: float, high: float, *, room: float, along: str = "x", alt: str, **parameters: Any
) -> tuple[figure, tuple[float, float]]:
    """Axes for ratios, and their limits: in steps of doubling where they differ much, else linear (as for print)."""
    doubling = low > 0 and high / low >= 6
    if doubling:
        span = high / low
        limits = (low / span**0.05, high * span**room)
    else:
        span = high - low or 0.2
        limits = (low - 0.06 * span, high + room * span)
    plot = bare(
        alt=alt, **{f"{along}_axis_type": "log" if doubling else "linear", f"{along}_range": limits}, **parameters
    )
    axis = plot.xaxis if along == "x" else plot.yaxis
    axis.axis_label = "times the average"
    if doubling:
        ticks = ratio_ticks(*limits)
        axis.ticker = FixedTicker(ticks=ticks)
        axis.major_label_overrides = {tick: ratio_text(tick) for tick in ticks}
    else:
        axis.ticker = BasicTicker(desired_num_ticks=4)
    return plot, limits


# Counts.


def hour_chart(counts: npt.NDArray[np.int64], *, alt: str) -> figure:
    """Images by local hour, (24,)."""
    plot = bare(alt=alt, height=240, x_range=(-0.7, HOURS - 0.3))
    source = ColumnDataSource({"hour": np.arange(HOURS), "images": counts})
    bars = plot.vbar("hour", width=0.82, top="images", source=source, color=BLUE, line_color=None)
    plot.add_tools(
        HoverTool(renderers=[bars], tooltips=[("", "@hour{00}:00 to @hour{00}:59"), ("images", "@images{0,0}")])
    )
    plot.xaxis.ticker = FixedTicker(ticks=list(range(0, HOURS, 6)))
    plot.xaxis.axis_label = "hour, local time"
    return _counted(plot)


def day_chart(days: pd.DatetimeIndex, counts: npt.NDArray[np.int64], *, alt: str) -> figure:
    """Images by local day."""
    plot = bare(alt=alt, height=240, x_axis_type="datetime")
    source = ColumnDataSource(
        {"day": days.to_numpy(), "images": counts, "name": [f"{day:%A, %-d %B %Y}" for day in days]}
    )
    bars = plot.vbar("day", width=0.8 * 86_400_000, top="images", source=source, color=BLUE, line_color=None)
    plot.add_tools(HoverTool(renderers=[bars], tooltips=[("", "@name"), ("images", "@images{0,0}")]))
    plot.xaxis.formatter = day_ticks()
    plot.xaxis.axis_label = "local day"
    return _counted(plot)


def day_ticks() -> DatetimeTickFormatter:
    """Days on an axis."""
    return DatetimeTickFormatter(days="%e %b", months="%b %Y", hours="%e %b")


def week_chart(counts: npt.NDArray[np.int64], *, alt: str) -> figure:
    """Images by weekday and local hour, (7, 24), the darker the more."""
    day, hour = np.divmod(np.arange(counts.size), HOURS)
    source = ColumnDataSource({"day": [WEEKDAYS[one] for one in day], "hour": hour, "images": counts.ravel()})
    plot = bare(alt=alt, height=270, x_range=(-0.5, HOURS - 0.5), y_range=FactorRange(*reversed(WEEKDAYS)))
    colors = LinearColorMapper(palette=list(SHADES), low=0, high=max(1, int(counts.max(initial=0))))
    tiles = plot.rect(
        "hour", "day", 1, 1, source=source, fill_color={"field": "images", "transform": colors}, line_color="#ffffff"
    )
    plot.add_tools(HoverTool(renderers=[tiles], tooltips=[("", "@day, @hour{00}:00"), ("images", "@images{0,0}")]))
    plot.grid.grid_line_color = None
    plot.xaxis.ticker = FixedTicker(ticks=list(range(0, HOURS, 6)))
    plot.xaxis.axis_label = "hour, local time"
    bar = ColorBar(
        color_mapper=colors, width=10, padding=4, title="images", title_text_font_style="normal",
        title_text_color=MUTED, title_text_font=FONT, title_text_font_size="11px", major_label_text_color=MUTED,
        major_label_text_font=FONT, major_tick_line_color=None, formatter=NumeralTickFormatter(format="0a"),
        ticker=BasicTicker(desired_num_ticks=4),
    )  # fmt: skip
    plot.add_layout(bar, "right")
    return plot


def _counted(plot: figure) -> figure:
    plot.xgrid.grid_line_color = None
    plot.y_range.start = 0
    plot.yaxis.axis_label = "images"
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[0]a")
    plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
    return plot


def bar_chart(names: Sequence[str], values: npt.NDArray[np.float64], label: str, *, alt: str, form: str) -> figure:
    """Bars with a name each, from the top; `form` is that of the number in the box at the pointer."""
    plot = bare(alt=alt, height=64 + 22 * len(names), y_range=FactorRange(*reversed(names)), x_range=(0, 1))
    plot.x_range.end = float(values.max(initial=0)) * 1.05 or 1
    source = ColumnDataSource({"name": list(names), "value": values})
    bars = plot.hbar("name", height=0.7, right="value", source=source, color=BLUE, line_color=None)
    plot.add_tools(HoverTool(renderers=[bars], tooltips=[("", "@name"), (label, f"@value{{{form}}}")]))
    plot.ygrid.grid_line_color = None
    plot.xaxis.axis_label = label
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=4)
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[0]")
    return plot


# Lines.


@dataclass(frozen=True)
class Line:
    """A line of a chart: name, places, color, dash of Bokeh, whether its points are joined by steps."""

    name: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    color: str
    dash: str = "solid"
    step: bool = False
    width: float = 2.0


def line_chart(
    lines: Sequence[Line],
    *,
    labels: tuple[str, str],
    alt: str,
    hover: Mapping[str, str] | None = None,
    **parameters: Any,
) -> figure:
    """Lines with a label at each axis; `hover` gives the form of x and y in the box at the pointer."""
    plot = bare(alt=alt, **{"height": 330, **parameters})
    form = {"x": "0.000", "y": "0.000", **(hover or {})}
    for one in lines:
        source = ColumnDataSource({"x": one.x, "y": one.y, "of": [one.name] * len(one.x)})
        draw = plot.step if one.step else plot.line
        style = {"mode": "after"} if one.step else {}
        drawn = draw("x", "y", source=source, line_color=one.color, line_width=one.width, line_dash=one.dash, **style)
        near = [(labels[0], f"@x{{{form['x']}}}"), (labels[1], f"@y{{{form['y']}}}")]
        plot.add_tools(HoverTool(renderers=[drawn], mode="mouse", tooltips=[("", "@of"), *near]))
    plot.xaxis.axis_label, plot.yaxis.axis_label = labels
    return plot


# The plain form of all charts.


def bare(*, alt: str, **parameters: Any) -> figure:
    """Axes in the project's lettering, with a light grid, as wide as there is room."""
    plot = figure(
        sizing_mode="stretch_width",
        min_width=260,
        tools=[BoxZoomTool(), ResetTool()],
        toolbar_location="above",
        html_attributes={"role": "img", "aria-label": alt},
        **parameters,
    )
    plot.toolbar.autohide = True
    plot.toolbar.logo = None
    plot.toolbar.active_drag = None
    return lettered(plot)


def lettered(plot: figure) -> figure:
    """The plot in the project's lettering, with a light grid."""
    plot.outline_line_color = None
    plot.min_border_right = 12
    plot.background_fill_color = plot.border_fill_color = "#ffffff"
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = GRID, 0.25
    plot.axis.axis_line_color, plot.axis.major_tick_line_color = GRID, GRID
    plot.axis.minor_tick_line_color = None
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font = plot.axis.major_label_text_font = FONT
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "12px"
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = MUTED
    if isinstance(plot.y_range, FactorRange):
        plot.yaxis.major_label_text_color = INK
        plot.yaxis.axis_line_color = None
    return plot

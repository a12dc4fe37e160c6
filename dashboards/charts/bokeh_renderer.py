"""Charts as Bokeh figures, for pages."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    FactorRange,
    FixedTicker,
    HoverTool,
    Label,
    LinearColorMapper,
    NumeralTickFormatter,
    ResetTool,
    Span,
)
from bokeh.plotting import figure

from patrolscope.dashboards.charts.specs import (
    Axis,
    BarChart,
    Curve,
    CurveChart,
    HeatmapChart,
    IntervalChart,
    ReferenceLine,
    Specification,
)
from patrolscope.dashboards.charts.style import BLUE, GRID, INK, MUTED

FONT = '"Helvetica Neue", Helvetica, Arial, "DejaVu Sans", sans-serif'  # also in page.html
MARKERS = {"o": "circle", "D": "diamond", "s": "square", "^": "triangle"}
# One hue from pale to dark, readable without color.
SHADES = ("#f2f6fb", "#d9e6f4", "#b9d2ea", "#93b9dd", "#689cce", "#3b7dc4", "#2762a5", "#174881", "#0b2f5c")
_ROW_PX = 26
_NUMBER_ROOM = 0.16  # share of the x-axis that the number beside an interval needs
_WIDE = 1.4  # lines on a screen are wider than in print


@singledispatch
def draw(spec: Specification, *, alt: str) -> figure:
    """Draw a chart without its title; `alt` is its description for screen readers."""
    raise TypeError(f"no Bokeh drawing of {type(spec).__name__}: {alt}")


def legend_entries(spec: Specification) -> tuple[tuple[str, str, str], ...]:
    """Return name, color, and marker of each series; empty for a single interval series."""
    if isinstance(spec, IntervalChart) and len(spec.series) > 1:
        return tuple((series.name, series.style.color, series.style.marker) for series in spec.series)
    if isinstance(spec, CurveChart):
        return tuple((curve.name, curve.style.color, curve.style.marker) for curve in spec.curves if curve.name)
    return ()


@draw.register
def _(spec: IntervalChart, *, alt: str) -> figure:
    lanes = max(1, len(spec.series))
    height = 62 + int(len(spec.rows) * _ROW_PX * (1 + 0.5 * (lanes - 1)))
    low, high = spec.x.limits
    high = high * (high / low) ** _NUMBER_ROOM if spec.x.scale == "log" else high + _NUMBER_ROOM * (high - low)
    plot = bare(
        alt=alt, height=height, x_axis_type=spec.x.scale, x_range=(low, high),
        y_range=FactorRange(*reversed(spec.groups)),
    )  # fmt: skip
    _set_axis(plot.xaxis, spec.x)
    plot.ygrid.grid_line_color = None
    plot.yaxis.major_tick_line_color = None
    plot.add_layout(Span(location=spec.reference, dimension="height", line_color=INK, line_width=1))
    for lane, series in enumerate(spec.series):
        offset = 0.68 * ((lanes - 1) / 2 - lane) / lanes
        rows, color = series.of(spec.groups), series.style.color
        numbers = {name: rows[name].to_numpy(dtype=np.float64) for name in ("estimate", "lower", "upper")}
        bounded = (rows["bound"] == "below").to_numpy()
        shown = np.where(bounded, numbers["upper"], numbers["estimate"])
        source = ColumnDataSource(
            {
                "group": rows["group"].to_list(),
                "y": [(group, offset) for group in rows["group"]],
                **numbers,
                "images": rows["images"] if "images" in rows else np.full(len(rows), np.nan),
                "at": np.fmin(np.fmax(numbers["estimate"], numbers["upper"]), high),
                # Numbers of more than two series would overlap.
                "text": [
                    f"{'< ' if below else ''}{value:.2f}" if lanes < 3 else ""
                    for value, below in zip(shown, bounded, strict=True)
                ],
                "shown": shown,
                "rate": [
                    f"below {value:.3f}: no positive image" if below else f"{value:.3f}"
                    for value, below in zip(shown, bounded, strict=True)
                ],
                "marker": np.where(bounded, "triangle", MARKERS[series.style.marker]).tolist(),
                "angle": np.where(bounded, np.pi / 2, 0.0),  # the triangle points to lower rates
                "face": ["#ffffff" if none_positive else color for none_positive in rows["none_positive"]],
                "of": [series.name] * len(rows),
            }
        )
        plot.segment("lower", "y", "upper", "y", source=source, line_color=color, line_width=2.2, line_alpha=0.75)
        if "second_lower" in rows:
            _second_intervals(plot, rows[~rows["none_positive"]], offset - 0.3 / lanes, color)
        points = plot.scatter(
            "shown", "y", source=source, marker="marker", angle="angle", size=8, line_color=color, fill_color="face",
        )  # fmt: skip
        plot.text(
            "at", "y", "text", source=source, x_offset=8, text_baseline="middle", text_font_size="11px",
            text_color=color if lanes > 1 else MUTED, text_font={"value": FONT},
        )  # fmt: skip
        tooltips = [("", "@group"), ("relative rate", "@rate"), _INTERVAL, ("images", "@images{0,0}")]
        plot.add_tools(HoverTool(renderers=[points], tooltips=[*tooltips, *([("", "@of")] if lanes > 1 else [])]))
    return plot


_INTERVAL = ("interval", "@lower{0.000} to @upper{0.000}")


def _second_intervals(plot: figure, rows: Any, offset: float, color: str) -> None:
    y = [(group, offset) for group in rows["group"]]
    ends = {"lower": rows["second_lower"], "upper": rows["second_upper"]}
    source = ColumnDataSource({"y": y, **{name: end.to_numpy(dtype=np.float64) for name, end in ends.items()}})
    plot.segment("lower", "y", "upper", "y", source=source, line_color=color, line_width=1)


@draw.register
def _(spec: CurveChart, *, alt: str) -> figure:
    plot = bare(
        alt=alt, height=340 if spec.square else 330, x_axis_type=spec.x.scale, y_axis_type=spec.y.scale,
        x_range=spec.x.limits, y_range=spec.y.limits,
    )  # fmt: skip
    _set_axis(plot.xaxis, spec.x)
    _set_axis(plot.yaxis, spec.y)
    for line in spec.references:
        _reference(plot, spec, line)
    for curve in spec.curves:
        _curve(plot, spec, curve)
    return plot


def _reference(plot: figure, spec: CurveChart, line: ReferenceLine) -> None:
    if line.kind == "diagonal":
        plot.line(spec.x.limits, spec.x.limits, line_color=line.color, line_dash=line.dash)
    else:
        across = "height" if line.kind == "vertical" else "width"
        plot.add_layout(Span(location=line.at, dimension=across, line_color=line.color, line_dash=line.dash))
    if line.label:
        plot.add_layout(
            Label(
                x=line.at, y=line.at, text=line.label, x_offset=-6, y_offset=2, text_align="right", text_color=MUTED,
                text_font=FONT, text_font_size="11px",
            )
        )  # fmt: skip


def _curve(plot: figure, spec: CurveChart, curve: Curve) -> None:
    style, count = curve.style, len(curve.x)
    columns: dict[str, Any] = {"x": curve.x, "y": curve.y, "of": list(curve.labels) or [curve.name] * count}
    tooltips = [("", "@of"), (spec.x.label, "@x{0.000}"), (spec.y.label, "@y{0.000}")]
    if curve.lower is not None and curve.upper is not None:
        columns |= {"lower": curve.lower, "upper": curve.upper}
        tooltips.append(_INTERVAL)
    if curve.images is not None:
        columns["images"] = curve.images
        tooltips.append(("images", "@images{0,0}"))
    source = ColumnDataSource(columns)
    if "lower" in columns:
        plot.segment("x", "lower", "x", "upper", source=source, line_color=style.color, line_width=1.6, line_alpha=0.6)
    if curve.kind == "points":
        drawn = plot.scatter(
            "x", "y", source=source, marker=MARKERS[style.marker], size=1.6 * style.size, line_color=style.color,
            fill_color=style.color if style.filled else "#ffffff",
        )  # fmt: skip
    else:
        line: dict[str, Any] = {"line_color": style.color, "line_width": _WIDE * style.width, "line_dash": style.dash}
        if curve.kind == "steps":
            drawn = plot.step("x", "y", source=source, mode="after", **line)
        else:
            drawn = plot.line("x", "y", source=source, **line)
    plot.add_tools(HoverTool(renderers=[drawn], mode="mouse", tooltips=tooltips))
    if curve.mark is not None:
        plot.scatter(*curve.mark, marker=MARKERS[style.marker], size=10, fill_color=style.color, line_color="#ffffff")
    if curve.named:
        _names(plot, spec, curve)


def _names(plot: figure, spec: CurveChart, curve: Curve) -> None:
    """Write the name of each point beside it, toward the middle of the chart."""
    middle = sum(spec.x.limits) / 2
    for chosen, align, offset in ((curve.x <= middle, "left", 9), (curve.x > middle, "right", -9)):
        text = [name for name, here in zip(curve.labels, chosen, strict=True) if here]
        source = ColumnDataSource({"x": curve.x[chosen], "y": curve.y[chosen].clip(*spec.y.limits), "text": text})
        plot.text(
            "x", "y", "text", source=source, x_offset=offset, text_align=align, text_baseline="middle",
            text_font_size="12px", text_color=INK, text_font={"value": FONT},
        )  # fmt: skip


@draw.register
def _(spec: BarChart, *, alt: str) -> figure:
    source = ColumnDataSource({"at": spec.positions, "value": spec.values, "name": list(spec.labels)})
    if spec.horizontal:
        names = [text for _, text in spec.y.ticks]
        source.data["at"] = names
        plot = bare(alt=alt, height=64 + 22 * len(names), x_range=spec.x.limits, y_range=FactorRange(*reversed(names)))
        bars = plot.hbar("at", height=0.7, right="value", source=source, color=BLUE, line_color=None)
        plot.ygrid.grid_line_color = None
        quantity = spec.x.label
    else:
        plot = bare(alt=alt, height=240, x_range=spec.x.limits, y_range=spec.y.limits)
        bars = plot.vbar("at", width=0.82, top="value", source=source, color=BLUE, line_color=None)
        plot.xgrid.grid_line_color = None
        _set_axis(plot.yaxis, spec.y)
        quantity = spec.y.label
    _set_axis(plot.xaxis, spec.x)
    plot.add_tools(HoverTool(renderers=[bars], tooltips=[("", "@name"), (quantity, "@value{0,0.[0]}")]))
    return plot


@draw.register
def _(spec: HeatmapChart, *, alt: str) -> figure:
    rows, columns = np.divmod(np.arange(spec.values.size), spec.values.shape[1])
    names = [spec.rows[row] for row in rows]
    source = ColumnDataSource({"row": names, "hour": columns, "at": columns + 0.5, "value": spec.values.ravel()})
    plot = bare(alt=alt, height=270, x_range=spec.x.limits, y_range=FactorRange(*reversed(spec.rows)))
    colors = LinearColorMapper(palette=list(SHADES), low=0, high=max(1, int(spec.values.max(initial=0))))
    tiles = plot.rect(
        "at", "row", 1, 1, source=source, fill_color={"field": "value", "transform": colors}, line_color="#ffffff"
    )
    plot.add_tools(HoverTool(renderers=[tiles], tooltips=[("", "@row, @hour{00}:00"), (spec.unit, "@value{0,0}")]))
    plot.grid.grid_line_color = None
    _set_axis(plot.xaxis, spec.x)
    bar = ColorBar(
        color_mapper=colors, width=10, padding=4, title=spec.unit, title_text_font_style="normal",
        title_text_color=MUTED, title_text_font=FONT, title_text_font_size="11px", major_label_text_color=MUTED,
        major_label_text_font=FONT, major_tick_line_color=None, formatter=NumeralTickFormatter(format="0a"),
        ticker=BasicTicker(desired_num_ticks=4),
    )  # fmt: skip
    plot.add_layout(bar, "right")
    return plot


def _set_axis(axis: Any, spec: Axis) -> None:
    axis.axis_label = spec.label
    axis.ticker = FixedTicker(ticks=[tick for tick, _ in spec.ticks])
    axis.major_label_overrides = dict(spec.ticks)


def bare(*, alt: str, **parameters: Any) -> figure:
    """Return axes with the project's font and a light grid, as wide as the page allows."""
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
    return set_fonts(plot)


def set_fonts(plot: figure) -> figure:
    """Set the project's font, colors, and grid on a plot, and return it."""
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

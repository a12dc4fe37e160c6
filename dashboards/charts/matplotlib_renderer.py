"""Charts as Matplotlib figures, for files.

The figures use Matplotlib's objects without its global state, so that the same chart gives the same bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from patrolscope.dashboards.charts.axes import short_count
from patrolscope.dashboards.charts.specs import (
    Axis,
    BarChart,
    Curve,
    CurveChart,
    HeatmapChart,
    IntervalChart,
    Specification,
    Style,
)
from patrolscope.dashboards.charts.style import (
    BLUE,
    GRID,
    INK,
    LABEL_PT,
    MUTED,
    PT_PER_INCH,
    SMALL_PT,
    TEXT_PT,
    WIDTH_PT,
)

# Verdana is as wide as DejaVu Sans, which few readers have.
SVG_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "patrolscope", "font.sans-serif": ["DejaVu Sans", "Verdana"]}
PNG_DPI = 240
_MARGIN_PT = 8.0
_SECOND_PT = 4.0  # distance between the two intervals of a group
_LABEL_CHARACTERS = 25  # longer row labels are wrapped
_PANEL_PT = 220.0  # height of bars, curves, and heat maps, with axis labels


def draw(spec: Specification, *, width_pt: float = WIDTH_PT) -> Figure:
    """Draw one chart."""
    figure, body = frame(spec, _height_pt(spec, width_pt), width_pt=width_pt)
    draw_axes(spec, body.add_subplot(), body)
    return fix_layout(figure)


def draw_panels(
    spec: Specification, panels: Sequence[Specification], *, columns: int, width_pt: float, shared_legend: bool = False
) -> Figure:
    """Draw several charts under one heading.

    Parameters
    ----------
    spec : Specification
        Title, subtitle, and notes of the figure.
    panels : sequence of Specification
        Charts, row by row; each title is drawn above its axes, and subtitles and notes are not.
    columns : int
        Panels per row.
    width_pt : float
        Width of the figure, in points.
    shared_legend : bool
        Whether one legend, that of the first panel, is above all panels.
    """
    rows = -(-len(panels) // columns)
    height_pt = sum(max(_height_pt(panel, width_pt / columns) for panel in panels[k::rows]) for k in range(rows))
    figure, body = frame(spec, height_pt + 24 * any(panel.title for panel in panels), width_pt=width_pt)
    for number, panel in enumerate(panels):
        axes = body.add_subplot(rows, columns, number + 1)
        if panel.title:
            axes.set_title(panel.title, fontsize=TEXT_PT, color=INK, loc="left", fontweight="bold", pad=7)
        draw_axes(panel, axes, body if not shared_legend or number == 0 else None)
    return fix_layout(figure)


def frame(spec: Specification, body_pt: float, *, width_pt: float) -> tuple[Figure, SubFigure]:
    """Return a figure with title, subtitle, and notes, and the part between them, which holds the axes.

    Parameters
    ----------
    spec : Specification
        Text of the figure; lines longer than the figure is wide are wrapped.
    body_pt : float
        Height of the part between subtitle and notes, in points.
    width_pt : float
        Width of the figure, in points.
    """
    # Text is measured at the resolution of the PNG files, where it is widest.
    layout = ConstrainedLayoutEngine(w_pad=6 / PT_PER_INCH, h_pad=3 / PT_PER_INCH)
    figure = Figure(figsize=(width_pt / PT_PER_INCH, 1), dpi=PNG_DPI, layout=layout)
    renderer = FigureCanvasAgg(figure).get_renderer()
    head = [(spec.title, {"fontsize": TEXT_PT + 1.5, "fontweight": "bold", "color": INK}, 5.0)]
    head += [(spec.subtitle, {"fontsize": LABEL_PT, "color": MUTED, "linespacing": 1.25}, 8.0)] if spec.subtitle else []
    foot = [(note.text, {"fontsize": SMALL_PT, "color": note.color}, 3.5) for note in spec.notes]

    def place(lines: list[tuple[str, dict[str, Any], float]]) -> tuple[list[tuple[Any, float]], float]:
        top, placed = 0.0, []
        for text, style, gap in lines:
            artist = figure.text(
                _MARGIN_PT / width_pt, 0.5, text, va="top", wrap=True, parse_math=False, in_layout=False, **style
            )
            placed.append((artist, top))
            top += artist.get_window_extent(renderer).height / PNG_DPI * PT_PER_INCH + gap
        return placed, top

    above, head_pt = place(head)
    below, foot_pt = place(foot)
    head_pt, foot_pt = head_pt + _MARGIN_PT, foot_pt + (_MARGIN_PT - 4) * bool(foot)
    height_pt = head_pt + body_pt + foot_pt
    figure.set_size_inches(width_pt / PT_PER_INCH, height_pt / PT_PER_INCH)
    for artist, top in above:
        artist.set_y(1 - (_MARGIN_PT + top) / height_pt)
    for artist, top in below:
        artist.set_y((foot_pt - top) / height_pt)
    parts = figure.subfigures(3, 1, height_ratios=[head_pt, body_pt, max(foot_pt, 1)], hspace=0, squeeze=False)
    return figure, parts[1, 0]


def fix_layout(figure: Figure) -> Figure:
    """Compute the layout of a figure once, so that every file of it is the same, and return the figure."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # The solver's results vary by about 1e-6 between runs, so positions are rounded to quarters of a point. The offset
    # keeps the thresholds away from whole pixels, where most results are.
    size_pt = figure.get_size_inches() * PT_PER_INCH

    def rounded(fractions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.floor(4 * np.asarray(fractions).reshape(2, 2) * size_pt + 0.37) / 4 / size_pt

    for part in figure.subfigs:
        part.bbox_relative.set_points(rounded(part.bbox_relative.get_points()))
    for axes in figure.axes:
        (left, bottom), (width, height) = rounded(axes.get_position(original=True).bounds).tolist()
        axes.set_position((left, bottom, width, height))
    return figure


def _height_pt(spec: Specification, width_pt: float) -> float:
    """Return the height of a chart with its axis labels and legend, in points."""
    if isinstance(spec, IntervalChart):
        # Rows need room for every series and, in print, for a second interval below the first.
        row_pt = 10.0 if spec.compact else 20.0 if len(spec.series) == 1 else 25.0 + 6.0 * max(0, len(spec.series) - 3)
        legend_pt = 18.0 * (len(spec.series) + 1) // 2 if len(spec.series) > 1 else 0.0
        return row_pt * len(spec.rows) + 38.0 + legend_pt + 14.0 * bool(spec.column)
    if isinstance(spec, CurveChart):
        if spec.square:
            return width_pt - 10
        return _PANEL_PT + (12.0 * (3 + len(spec.curves) // 2) if spec.legend == "below" else 0)
    if isinstance(spec, BarChart) and spec.horizontal:
        return 14.0 * len(spec.values) + 38
    return _PANEL_PT


@singledispatch
def draw_axes(spec: Specification, _axes: Axes, _body: SubFigure | None = None) -> None:
    """Draw a chart without its heading; `_body` gets the legend of interval charts."""
    raise TypeError(f"no Matplotlib drawing of {type(spec).__name__}")


# Points with intervals.


@draw_axes.register
def _(spec: IntervalChart, axes: Axes, body: SubFigure | None = None) -> None:
    bare(axes)
    axes.set_ylim(len(spec.rows) - 0.5, -0.5)
    set_axis(axes, spec.x, "x")
    axes.axvline(spec.reference, color=INK, linewidth=0.9, zorder=1)
    _row_labels(spec, axes)
    positions = {row.group: number for number, row in enumerate(spec.rows) if row.group is not None}
    scale = 0.7 if spec.compact else 1.0
    row_pt = 10.0 if spec.compact else 25.0 if len(spec.series) > 1 else 20.0
    spread = 0.42 if len(spec.series) < 4 else 0.66
    for number, series in enumerate(spec.series):
        lane = 0.0 if spec.compact or len(spec.series) == 1 else spread * (number / (len(spec.series) - 1) - 0.5)
        rows = series.of(spec.groups)
        y = rows["group"].map(positions).to_numpy(dtype=np.float64) + lane
        _points(axes, rows, y, series.style, second=scale * _SECOND_PT / row_pt, scale=scale)
        if spec.column:
            for height, value in zip(y, rows[spec.column], strict=True):
                text = f"{value:.3f}" if spec.column == "estimate" else f"{value:,.0f}"
                color = MUTED if number == 0 and len(spec.series) < 3 else series.style.color
                _beside(axes, height, text, color)
    if spec.column:
        axes.annotate(
            spec.column_title, (1, 1), xycoords="axes fraction", xytext=(48, 4), textcoords="offset points",
            fontsize=SMALL_PT, color=MUTED, ha="right", va="bottom", annotation_clip=False,
        )  # fmt: skip
    if (len(spec.series) > 1 or spec.compact) and body is not None:
        handles = [
            Line2D([], [], color=series.style.color, marker=series.style.marker, linestyle="none", markersize=5)
            for series in spec.series
        ]
        body.legend(
            handles, [series.name for series in spec.series], loc="outside upper left", ncols=2, frameon=False,
            fontsize=LABEL_PT, labelcolor=INK, handletextpad=0.2, columnspacing=1.2, borderpad=0.1, borderaxespad=0.3,
        )  # fmt: skip


def _row_labels(spec: IntervalChart, axes: Axes) -> None:
    """Label the rows, and shade every other one."""
    labels = [textwrap.fill(row.label or "(no name)", _LABEL_CHARACTERS) for row in spec.rows]
    if spec.compact:
        labels = [row.label for row in spec.rows]
    axes.yaxis.set_major_locator(FixedLocator(range(len(labels))))
    axes.yaxis.set_major_formatter(FixedFormatter(labels))
    axes.tick_params(axis="y", length=0, pad=5)
    for number, (row, label) in enumerate(zip(spec.rows, axes.get_yticklabels(), strict=True)):
        heading = row.group is None
        small = spec.compact or "\n" in labels[number]
        label.set(
            fontsize=SMALL_PT - 0.5 if small else TEXT_PT - 0.5,
            color=MUTED if heading else INK,
            fontweight="bold" if heading else "normal",
            linespacing=0.95,
            parse_math=False,
        )
        if number % 2 == 0 and not heading:
            axes.axhspan(number - 0.5, number + 0.5, color=GRID, alpha=0.08, linewidth=0, zorder=0)


def _points(axes: Axes, rows: Any, y: Any, style: Style, *, second: float, scale: float) -> None:
    """Draw estimates and intervals; `second` is the distance of a second interval below the first, in rows."""
    solid = ~rows["none_positive"].to_numpy()
    known = rows[solid]
    line: dict[str, Any] = {"color": style.color, "zorder": 3}
    axes.hlines(y[solid], known["lower"], known["upper"], linewidth=1.8 * scale, **line)
    if "second_lower" in known:
        ends = known["second_lower"], known["second_upper"]
        axes.hlines(y[solid] + second, *ends, linewidth=0.6 * scale, **line)
        for end in ends:
            axes.plot(end, y[solid] + second, "|", markersize=3.4 * scale, markeredgewidth=0.6, **line)
    bounded = (rows["bound"] == "below").to_numpy()
    bounds = rows[bounded]
    if bounded.any():
        ends = bounds["lower"], bounds["upper"]
        axes.hlines(y[bounded], *ends, linewidth=0.9 * scale, linestyles=(0, (1.5, 1.5)), **line)
    for chosen, at, marker, filled in (
        (solid, "estimate", style.marker, True),
        (~solid & ~bounded, "estimate", style.marker, False),
        (bounded, "upper", "<", False),
    ):
        if chosen.any():
            axes.plot(
                rows[at][chosen], y[chosen], marker, color=style.color, linestyle="none", zorder=4,
                markerfacecolor=style.color if filled else "none", markersize=style.size * scale,
            )  # fmt: skip
    for height in y[rows["estimate"].isna().to_numpy()]:
        axes.text(
            0.03, height, "no estimate", transform=axes.get_yaxis_transform(), fontsize=SMALL_PT - 0.5,
            color=style.color, va="center",
        )  # fmt: skip


def _beside(axes: Axes, y: float, text: str, color: str) -> None:
    axes.annotate(
        text, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(48, 0), textcoords="offset points",
        fontsize=SMALL_PT, color=color, ha="right", va="center", annotation_clip=False,
    )  # fmt: skip


# Curves, bars, and heat maps.


@draw_axes.register
def _(spec: CurveChart, axes: Axes, _body: SubFigure | None = None) -> None:
    bare(axes, both=True)
    set_axis(axes, spec.x, "x")
    set_axis(axes, spec.y, "y")
    if spec.square:
        axes.set_box_aspect(1)
    for line in spec.references:
        style: dict[str, Any] = {"color": line.color, "linewidth": 0.9, "linestyle": line.dash, "zorder": 1}
        if line.kind == "diagonal":
            axes.plot(spec.x.limits, spec.x.limits, scalex=False, scaley=False, **style)
        else:
            (axes.axvline if line.kind == "vertical" else axes.axhline)(line.at, **style)
        if line.label:
            axes.annotate(
                line.label, (line.at, line.at), xytext=(3, -3), textcoords="offset points", fontsize=SMALL_PT,
                color=MUTED, rotation=45, rotation_mode="anchor", va="top",
            )  # fmt: skip
    for curve in spec.curves:
        _curve(axes, curve)
    if any(curve.name for curve in spec.curves):
        place: dict[str, Any] = {"loc": spec.legend}
        if spec.legend == "below":
            place = {"loc": "upper left", "bbox_to_anchor": (-0.15, -0.22), "ncols": 2, "columnspacing": 0.8}
        legend = axes.legend(
            title=spec.legend_title or None, title_fontsize=SMALL_PT, alignment="left", fontsize=SMALL_PT,
            frameon=False, labelcolor=INK, handlelength=2.4, labelspacing=0.4, borderpad=0, **place,
        )  # fmt: skip
        legend.get_title().set_color(MUTED)


def _curve(axes: Axes, curve: Curve) -> None:
    style = curve.style
    label = curve.name or None
    if curve.lower is not None and curve.upper is not None and style.filled:
        axes.vlines(curve.x, curve.lower, curve.upper, color=style.color, linewidth=1.2, alpha=0.65, zorder=2)
    if curve.kind == "points":
        edge: dict[str, Any] = {"markeredgewidth": 0.7}
        if style.filled and style.size > 4:
            edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(
            curve.x, curve.y, style.marker, color=style.color, markersize=style.size, linestyle="none", label=label,
            markerfacecolor=style.color if style.filled else "none", zorder=3, **edge,
        )  # fmt: skip
    else:
        steps = "steps-post" if curve.kind == "steps" else "default"
        axes.plot(
            curve.x, curve.y, color=style.color, linestyle=style.dash, linewidth=style.width, drawstyle=steps,
            label=label, zorder=3,
        )  # fmt: skip
    if curve.mark is not None:
        axes.plot(
            *curve.mark, style.marker, color=style.color, markersize=style.size, markeredgecolor="white",
            markeredgewidth=0.8, zorder=4,
        )  # fmt: skip


@draw_axes.register
def _(spec: BarChart, axes: Axes, _body: SubFigure | None = None) -> None:
    bare(axes, both=not spec.horizontal)
    if spec.horizontal:
        axes.barh(spec.positions, spec.values, height=0.7, color=BLUE)
    else:
        axes.bar(spec.positions, spec.values, width=0.8, color=BLUE)
    set_axis(axes, spec.x, "x")
    set_axis(axes, spec.y, "y")


@draw_axes.register
def _(spec: HeatmapChart, axes: Axes, _body: SubFigure | None = None) -> None:
    bare(axes)
    axes.grid(visible=False)
    rows, columns = spec.values.shape
    shades = axes.pcolormesh(
        np.arange(columns + 1), np.arange(rows + 1), spec.values, cmap="Blues", vmin=0, linewidth=0
    )
    set_axis(axes, spec.x, "x")
    axes.set_ylim(rows, 0)
    axes.yaxis.set_major_locator(FixedLocator([row + 0.5 for row in range(rows)]))
    axes.yaxis.set_major_formatter(FixedFormatter(list(spec.rows)))
    bar = axes.figure.colorbar(shades, ax=axes, fraction=0.05, pad=0.03, format=lambda count, _: short_count(count))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_PT, labelcolor=MUTED, length=0)
    bar.ax.set_title(spec.unit, fontsize=SMALL_PT, color=MUTED)


# Axes.


def set_axis(axes: Axes, spec: Axis, which: str) -> None:
    """Set scale, limits, ticks, and label of the axis "x" or "y".

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to change.
    spec : Axis
        Specification of the axis.
    which : str
        "x" or "y".
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    if spec.scale == "log":
        axes.set(**{f"{which}scale": "log"})
    axes.set(**{f"{which}lim": spec.limits})
    axis.set_major_locator(FixedLocator([tick for tick, _ in spec.ticks]))
    axis.set_major_formatter(FixedFormatter([text for _, text in spec.ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_label_text(spec.label, fontsize=LABEL_PT, color=MUTED)
    axis.labelpad = 3


def bare(axes: Axes, *, both: bool = False) -> None:
    """Remove the box around axes and add a light grid: of both axes, or of the x-axis alone."""
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom" or (both and name == "left"))
        spine.set_color(GRID)
        spine.set_linewidth(0.7)
    axes.patch.set_visible(False)
    axes.grid(axis="both" if both else "x", color=GRID, alpha=0.28, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=2.5, width=0.7, color=GRID, labelsize=LABEL_PT, labelcolor=MUTED)


# Files.


def to_svg(figure: Figure) -> bytes:
    """Return a figure as SVG with text as text and without a background; the same figure gives the same bytes."""
    with mpl.rc_context(SVG_STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_png(figure: Figure, dpi: int = PNG_DPI) -> bytes:
    """Return a figure as PNG on white; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()

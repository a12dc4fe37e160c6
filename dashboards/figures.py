"""Figures with axes: estimates with their intervals, and estimates against the truth of a simulated study.

Drawn with matplotlib's objects, without its global state: every text and size is given where it is used.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from dashboards.results import FEW_IMAGES, Results, from_the_highest

INK = "#1b1f24"
MUTED = "#646d78"
GRID = "#8b949e"
# Apart for colour-blind readers too, and 3:1 against both a white and a nearly black page.
BLUE = "#3b7dc4"
ORANGE = "#cf6f14"
WARNING = "#b45309"

# Verdana is as wide as DejaVu Sans, which few readers have.
SVG_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "patrolscope", "font.sans-serif": ["DejaVu Sans", "Verdana"]}
PT_PER_INCH = 72
# As wide as a phone's page at the same size of text, half of a screen's page.
WIDTH_PT = 350.0
TEXT_PT = 9.0
SMALL_PT = 7.5
LINE_PT = 11.5
PNG_DPI = 240
MEASURE = "How often images show a police vehicle, times the average"


@dataclass(frozen=True)
class Series:
    """Intervals drawn in one colour and marker; `rows` has group, estimate, lower, upper, images."""

    name: str
    rows: pd.DataFrame
    colour: str = BLUE
    marker: str = "o"


@dataclass(frozen=True)
class Row:
    """One line of an interval figure: a group, or a heading between groups."""

    label: str
    group: str | None = None


def draw_figures(results: Results, *, interval_percent: float, simulated: str) -> dict[str, Figure]:
    """Figures that the results allow, by name: race, density, income, zone, borough, neighbourhood, truth."""
    figures = {}
    for name, title in (
        ("race", "By race and ethnicity"),
        ("density", "By population density"),
        ("income", "By median household income"),
        ("zone", "By zone"),
        ("borough", "By borough"),
        ("neighbourhood", "By neighbourhood"),
    ):
        rows = _rows(results, name)
        if rows:
            subtitle = f"{MEASURE}\nDot: estimate. Line: {interval_percent:g} % interval"
            if name == "neighbourhood":
                subtitle += f". Of those with at least {FEW_IMAGES} images"
            figures[name] = interval_figure(
                _series(results, name), rows, title=title, subtitle=subtitle, simulated=simulated
            )
    if results.truth is not None and results.has("neighbourhood"):
        figures["truth"] = truth_figure(results, interval_percent=interval_percent, simulated=simulated)
    return figures


def _series(results: Results, name: str) -> list[Series]:
    series = [Series("whole city", results.groups(name))]
    if results.has(f"{name}_residential"):
        series.append(Series("residential zones only", results.groups(f"{name}_residential"), ORANGE, "D"))
    return series


def _rows(results: Results, name: str) -> list[Row]:
    if name == "neighbourhood":
        return [
            row
            for heading, groups in zip(("highest", "lowest"), results.ends(), strict=True)
            if len(groups)
            for row in (Row(f"{len(groups)} {heading}"), *(Row(group, group) for group in groups["group"]))
        ]
    groups = results.groups(name)
    if name not in ("density", "income"):  # quartiles stand in their own order
        groups = from_the_highest(groups)
    return [Row(group, group) for group in groups["group"]]


def interval_figure(
    series: Sequence[Series], rows: Sequence[Row], *, title: str, subtitle: str, simulated: str
) -> Figure:
    """Dot and whisker for every group, a line at the average, the number of images on the right."""
    row_pt = 25.0 if len(series) > 1 else 20.0
    labels = [textwrap.wrap(row.label, 25) if row.group is not None else [row.label] for row in rows]
    label_chars = max((len(line) for row, lines in zip(rows, labels, strict=True) if row.group for line in lines))
    left_pt, right_pt = min(12 + 5.0 * label_chars, 138), 58.0
    shown = [one.rows[one.rows["group"].isin([row.group for row in rows])] for one in series]
    notice = notice_lines(simulated, hollow=any(frame["none_positive"].any() for frame in shown))
    top_pt = 12 + 3 * LINE_PT + (LINE_PT + 4 if len(series) > 1 else 0) + 14
    bottom_pt = 36 + LINE_PT * len(notice)
    height_pt = top_pt + row_pt * len(rows) + bottom_pt
    figure = Figure(figsize=(WIDTH_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    axes = figure.add_axes(
        (
            left_pt / WIDTH_PT,
            bottom_pt / height_pt,
            (WIDTH_PT - left_pt - right_pt) / WIDTH_PT,
            row_pt * len(rows) / height_pt,
        )
    )
    heading(figure, height_pt, title, subtitle, notice)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    bare(axes)
    axes.yaxis.set_major_locator(NullLocator())
    _ratio_scale(axes, pd.concat(shown))
    axes.axvline(1, color=INK, linewidth=0.9, zorder=1)
    for position, (row, lines) in enumerate(zip(rows, labels, strict=True)):
        _row_label(axes, position, row, lines, left_pt)
    place = {row.group: position for position, row in enumerate(rows) if row.group is not None}
    for number, (one, frame) in enumerate(zip(series, shown, strict=True)):
        offset = 0.42 * (number - (len(series) - 1) / 2)
        _whiskers(axes, frame.assign(y=frame["group"].map(place) + offset), one)
    _text(axes, 1, 1, "images", x_pt=right_pt - 6, y_pt=5, size=SMALL_PT, colour=MUTED, align="right")
    axes.set_xlabel("times the average", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    if len(series) > 1:
        _legend(figure, series, height_pt)
    return figure


def _whiskers(axes: Axes, frame: pd.DataFrame, series: Series) -> None:
    solid = frame[~frame["none_positive"]]
    axes.hlines(solid["y"], solid["lower"], solid["upper"], color=series.colour, linewidth=1.8, zorder=3)
    size = 5.0 if series.marker == "o" else 4.2
    for hollow, part in frame.groupby("none_positive"):
        face = "none" if hollow else series.colour
        axes.plot(
            part["estimate"],
            part["y"],
            series.marker,
            color=series.colour,
            markerfacecolor=face,
            markersize=size,
            linestyle="none",
            zorder=4,
        )
    for y, images in zip(frame["y"], frame["images"], strict=True):
        axes.annotate(
            f"{images:,.0f}",
            (1, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(52, 0),
            textcoords="offset points",
            fontsize=SMALL_PT,
            color=series.colour if series.marker != "o" else MUTED,
            ha="right",
            va="center",
            annotation_clip=False,
        )


def _row_label(axes: Axes, position: int, row: Row, lines: list[str], left_pt: float) -> None:
    heading = row.group is None
    axes.annotate(
        "\n".join(lines) if heading or row.label else "(no name)",
        (0, position + (0.12 if heading else 0)),
        xycoords=axes.get_yaxis_transform(),
        xytext=(8 - left_pt if heading else -6, 0),
        textcoords="offset points",
        fontsize=SMALL_PT if heading or len(lines) > 1 else TEXT_PT - 0.5,
        color=MUTED if heading else INK,
        fontweight="bold" if heading else "normal",
        ha="left" if heading else "right",
        va="center",
        linespacing=0.95,
        annotation_clip=False,
        parse_math=False,
        bbox=None,
    )
    if position % 2 == 0 and not heading:
        axes.axhspan(position - 0.5, position + 0.5, color=GRID, alpha=0.08, linewidth=0, zorder=0)


def _ratio_scale(axes: Axes, rows: pd.DataFrame) -> None:
    """Limits and ticks for ratios: in steps of doubling where they differ much, else linear."""
    low, high = float(np.nanmin([1, *rows["lower"]])), float(np.nanmax([1, *rows["upper"]]))
    if low <= 0 or high / low < 6:
        room = 0.06 * (high - low) or 0.1
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:.3g}"))
    else:
        room = (high / low) ** 0.06
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / room, high * room)
        axes.xaxis.set_major_locator(FixedLocator(_ratio_ticks(low / room, high * room)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_ratio_text))


def _ratio_text(ratio: float, _position: int | None = None) -> str:
    return {0.0625: "1/16", 0.125: "⅛", 0.25: "¼", 0.5: "½"}.get(ratio, f"{ratio:.3g}")


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Powers of two within the limits, and the round numbers between them where there are few."""
    doublings = [2.0**power for power in range(-8, 9)]
    between = [round(1.5 * tick, 4) for tick in doublings]
    ticks = doublings if high / low > 6 else sorted(doublings + between)
    return [tick for tick in ticks if low <= tick <= high]


def truth_figure(results: Results, *, interval_percent: float, simulated: str) -> Figure:
    """Estimated level of each neighbourhood against its true one, both relative to the average."""
    frame = against_truth(results)
    notice = notice_lines(simulated, hollow=bool(frame["none_positive"].any()))
    top_pt, bottom_pt, left_pt, right_pt = 48.0 + LINE_PT, 40.0 + LINE_PT * len(notice), 44.0, 12.0
    side_pt = WIDTH_PT - left_pt - right_pt
    height_pt = top_pt + side_pt + bottom_pt
    figure = Figure(figsize=(WIDTH_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    axes = figure.add_axes((left_pt / WIDTH_PT, bottom_pt / height_pt, side_pt / WIDTH_PT, side_pt / height_pt))
    found = results.summary["truth"]
    subtitle = f"{MEASURE}\nA dot a neighbourhood. Line: {interval_percent:g} % interval"
    if found is not None:
        subtitle += f"; {found['covered']:,} of {found['neighbourhoods']:,} hold the truth"
    heading(figure, height_pt, "Estimate against truth", subtitle, notice)
    bare(axes, both=True)
    many = frame["images"] >= FEW_IMAGES
    positive = frame[["truth", "estimate"]].gt(0).all(axis=1)
    values = frame.loc[positive & many, ["truth", "lower", "upper"]].replace(0, np.nan).to_numpy()
    low, high = (np.nanmin(values) / 1.15, np.nanmax(values) * 1.15) if np.isfinite(values).any() else (0.5, 2.0)
    for scale, limit, axis in (
        (axes.set_xscale, axes.set_xlim, axes.xaxis),
        (axes.set_yscale, axes.set_ylim, axes.yaxis),
    ):
        scale("log", base=2)
        limit(low, high)
        axis.set_major_locator(FixedLocator(_ratio_ticks(low, high)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_ratio_text))
    axes.plot([low, high], [low, high], color=INK, linewidth=0.9, zorder=1)
    hollow = frame["none_positive"]
    for chosen, colour, marker, face, label in (
        (positive & many & ~hollow, BLUE, "o", BLUE, f"at least {FEW_IMAGES} images"),
        (positive & ~many & ~hollow, GRID, "s", GRID, "fewer"),
        (positive & many & hollow, BLUE, "o", "none", None),
        (positive & ~many & hollow, GRID, "s", "none", None),
    ):
        part = frame[chosen]
        if part.empty:
            continue
        if face != "none":
            lower = part["lower"].clip(lower=low)
            axes.vlines(part["truth"], lower, part["upper"], color=colour, linewidth=0.9, alpha=0.55, zorder=2)
        axes.plot(
            part["truth"],
            part["estimate"],
            marker,
            color=colour,
            markerfacecolor=face,
            markeredgewidth=0.7,
            markersize=2.8,
            linestyle="none",
            label=label,
            zorder=3,
        )
    axes.legend(loc="upper left", fontsize=SMALL_PT, frameon=False, labelcolor=INK, handletextpad=0.2)
    axes.set_xlabel("truth, times the average", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    axes.set_ylabel("estimate, times the average", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    return figure


def against_truth(results: Results) -> pd.DataFrame:
    """Relative estimate and relative truth of every neighbourhood that has both: group, estimate, ..., truth."""
    frame = results.groups("neighbourhood")
    truth = frame["key"].map(pd.Series(dtype="float64") if results.truth is None else results.truth)
    return frame.assign(truth=truth).dropna(subset=["truth", "estimate"]).reset_index(drop=True)


# Shared parts of a figure.


def notice_lines(simulated: str, *, hollow: bool) -> list[tuple[str, str]]:
    """Lines at the foot of a figure, each with its colour."""
    lines = [("Hollow: none of the images is positive, so that no interval can be known.", MUTED)] * hollow
    if simulated:
        lines += [(line, WARNING) for line in textwrap.wrap(f"Simulated: {simulated}", 84)]
    return lines


def heading(figure: Figure, height_pt: float, title: str, subtitle: str, notice: list[tuple[str, str]]) -> None:
    """Title and subtitle at the head of a figure, and the lines of `notice_lines` at its foot."""

    def put(x_pt: float, y_pt: float, text: str, **style: Any) -> None:
        figure.text(x_pt / WIDTH_PT, y_pt / height_pt, text, parse_math=False, va="top", **style)

    put(8, height_pt - 8, title, fontsize=TEXT_PT + 1.5, fontweight="bold", color=INK)
    put(8, height_pt - 10 - LINE_PT - 3, subtitle, fontsize=SMALL_PT + 0.5, color=MUTED, linespacing=1.25)
    for number, (line, colour) in enumerate(notice):
        put(8, 4 + LINE_PT * (len(notice) - number), line, fontsize=SMALL_PT, color=colour)


def _legend(figure: Figure, series: Sequence[Series], height_pt: float) -> None:
    x_pt, y_pt = 12.0, height_pt - 12 - 3 * LINE_PT - 11
    for one in series:
        figure.add_artist(
            Line2D(
                [x_pt / WIDTH_PT],
                [y_pt / height_pt],
                marker=one.marker,
                color=one.colour,
                markersize=5,
                linestyle="none",
            )
        )
        figure.text(
            (x_pt + 7) / WIDTH_PT, (y_pt - 0.5) / height_pt, one.name, fontsize=SMALL_PT + 0.5, color=INK, va="center"
        )
        x_pt += 24 + 4.6 * len(one.name)


def bare(axes: Axes, *, both: bool = False) -> None:
    """No box, a light grid."""
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom" or (both and name == "left"))
        spine.set_color(GRID)
        spine.set_linewidth(0.7)
    axes.patch.set_visible(False)
    axes.grid(axis="both" if both else "x", color=GRID, alpha=0.28, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(
        axis="both", which="both", length=2.5, width=0.7, color=GRID, labelsize=SMALL_PT + 0.5, labelcolor=MUTED
    )


def _text(
    axes: Axes, x: float, y: float, text: str, *, x_pt: float, y_pt: float, size: float, colour: str, align: str
) -> None:
    axes.annotate(
        text,
        (x, y),
        xycoords="axes fraction",
        xytext=(x_pt, y_pt),
        textcoords="offset points",
        fontsize=size,
        color=colour,
        ha=align,
        va="bottom",
        annotation_clip=False,
    )


def to_svg(figure: Figure) -> bytes:
    """SVG with its text as text, without a background; the same figure gives the same bytes."""
    with mpl.rc_context(SVG_STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_png(figure: Figure, dpi: int = PNG_DPI) -> bytes:
    """PNG on white; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()

"""Figures with axes: estimates with their intervals, and estimates against the truth of a simulated study.

Drawn with matplotlib's objects, without its global state: every text and size is given where it is used.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.analysis.stages.results import FEW_IMAGES, Results

INK = "#1b1f24"
MUTED = "#646d78"
GRID = "#8b949e"
# Apart for color-blind readers too, and 3:1 against both a white and a nearly black page.
BLUE = "#3b7dc4"
ORANGE = "#cf6f14"
WARNING = "#b45309"

# Verdana is as wide as DejaVu Sans, which few readers have.
SVG_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "patrolscope", "font.sans-serif": ["DejaVu Sans", "Verdana"]}
# At 240 dpi, letters fitted to pixels make a sentence of these figures 3 to 4 % wider than its outline.
HINTED = 1.04
PT_PER_INCH = 72
# As wide as a phone's page at the same size of text, half of a screen's page.
WIDTH_PT = 350.0
TEXT_PT = 9.0
SMALL_PT = 7.5
LINE_PT = 11.5
PNG_DPI = 240
SUBTITLE_PT = SMALL_PT + 0.5
SECOND_PT = 4.0  # a second interval lies so far below the first, which it would hide or be hidden by
_LEGEND_PT, _MARK_PT = 12.0, 24.0  # left of a legend; a mark and the gap to the next
RANKING_COLUMNS = 3
RANKING_ROW_PT = 10.0
MEASURE = "How often images show a police vehicle, times the average"


@dataclass(frozen=True)
class Series:
    """Intervals drawn in one color and marker; `rows` are of `Grouped.groups`."""

    name: str
    rows: pd.DataFrame
    color: str = BLUE
    marker: str = "o"


@dataclass(frozen=True)
class Row:
    """One line of an interval figure: a group, or a heading between groups."""

    label: str
    group: str | None = None


class Grouped(Protocol):
    """Estimates by analysis and group, of a study or as released."""

    @property
    def ranked_of(self) -> str:
        """What is said of the neighborhoods that `ends` chooses from; nothing where it is all of them."""

    @property
    def drawn(self) -> Sequence[str]:
        """What is drawn again for the intervals, in words: one way, or two."""

    @property
    def hollow_means(self) -> str:
        """What is true of the groups that are drawn hollow, in words."""

    def has(self, analysis: str) -> bool:
        """Whether an analysis was made."""

    def groups(self, analysis: str) -> pd.DataFrame:
        """Levels relative to the average: group, estimate, lower, upper, hollow (its interval says nothing).

        Beside them images, second_lower and second_upper where known.
        """

    def ends(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Neighborhoods with the highest and with the lowest level."""


def draw_figures(results: Results, *, interval_percent: float, simulated: str) -> dict[str, Figure]:
    """Figures that a study's results allow, by name: those of `draw_groups`, truth."""
    figures = draw_groups(results, interval_percent=interval_percent, simulated=simulated)
    if results.truth is not None and results.has("neighborhood"):
        figures["truth"] = truth_figure(results, interval_percent=interval_percent, simulated=simulated)
    return figures


def draw_groups(results: Grouped, *, interval_percent: float, simulated: str, part: str = "") -> dict[str, Figure]:
    """Interval figures that the results allow, by name: race, density, income, zone, borough, neighborhood.

    `part` says of which part of the images the results are.
    """
    figures = {}
    for name, title in (
        ("race", "By race and ethnicity"),
        ("density", "By population density"),
        ("income", "By median household income"),
        ("zone", "By zone"),
        ("borough", "By borough"),
        ("neighborhood", "By neighborhood"),
    ):
        series = _series(results, name)
        rows = _rows(results, name, series)
        if not rows:
            continue
        subtitle = interval_subtitle(interval_percent, results.drawn)
        if name == "neighborhood" and results.ranked_of:
            subtitle += f". {results.ranked_of}"
        # Released results can lack the file of the whole city.
        of = "" if results.has(name) else f", {series[0].name}"
        figures[name] = interval_figure(
            series,
            rows,
            title=title + of,
            subtitle=subtitle,
            simulated=simulated,
            hollow_means=results.hollow_means,
            part=part,
        )
    return figures


def interval_subtitle(interval_percent: float, drawn: Sequence[str]) -> str:
    """What an interval figure shows, and how; `drawn` says what is drawn again for the line, and for a thinner one."""
    line = f"{MEASURE}\nDot: estimate. Line: {interval_percent:g} % interval"
    if len(drawn) < 2:
        return line
    return f"{line}, {drawn[0]} drawn again\nThin line below it: {drawn[1]} drawn again"


def _series(results: Grouped, name: str) -> list[Series]:
    """Groups of the whole city and of residential zones only, as far as the results have them."""
    parts = (
        (name, "whole city", BLUE, "o"),
        (f"{name}_residential", "residential zones only", ORANGE, "D"),
    )
    return [
        Series(label, results.groups(analysis), color, marker)
        for analysis, label, color, marker in parts
        if results.has(analysis)
    ]


def _rows(results: Grouped, name: str, series: list[Series]) -> list[Row]:
    if not series:
        return []
    if name == "neighborhood":
        return rows_of_ends(*results.ends())
    groups = series[0].rows
    if name not in ("density", "income"):  # quartiles stand in their own order
        groups = from_the_highest(groups)
    return [Row(group, group) for group in groups["group"]]


def rows_of_ends(highest: pd.DataFrame, lowest: pd.DataFrame) -> list[Row]:
    """Both ends of a ranking, each below its heading."""
    return [
        row
        for heading, groups in (("highest", highest), ("lowest", lowest))
        if len(groups)
        for row in (Row(f"{len(groups)} {heading}"), *(Row(group, group) for group in groups["group"]))
    ]


def interval_figure(
    series: Sequence[Series],
    rows: Sequence[Row],
    *,
    title: str,
    subtitle: str,
    simulated: str,
    hollow_means: str = "",
    part: str = "",
) -> Figure:
    """Dot and whisker for every group, a line at the average; on the right the images, else the estimate in figures."""
    row_pt = 25.0 if len(series) > 1 else 20.0
    labels = [textwrap.wrap(row.label, 25) if row.group is not None else [row.label] for row in rows]
    label_chars = max((len(line) for row, lines in zip(rows, labels, strict=True) if row.group for line in lines))
    left_pt, right_pt = min(12 + 5.0 * label_chars, 138), 58.0
    shown = [one.rows[one.rows["group"].isin([row.group for row in rows])] for one in series]
    hollow = any(frame["hollow"].any() for frame in shown)
    notice = notice_lines(simulated, hollow=hollow_means if hollow else "", part=part)
    counted = all("images" in frame for frame in shown) and any(map(_varied_images, shown))
    beside = "images" if counted else "estimate"
    head_pt = heading_pt(subtitle, WIDTH_PT)
    top_pt = head_pt + (LINE_PT + 7 if len(series) > 1 else 0) + 14
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
    heading(figure, title, subtitle, notice)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    bare(axes)
    axes.yaxis.set_major_locator(NullLocator())
    ratio_scale(axes, pd.concat(shown))
    axes.axvline(1, color=INK, linewidth=0.9, zorder=1)
    for position, (row, lines) in enumerate(zip(rows, labels, strict=True)):
        _row_label(axes, position, row, lines, left_pt)
    place = {row.group: position for position, row in enumerate(rows) if row.group is not None}
    for number, (one, frame) in enumerate(zip(series, shown, strict=True)):
        offset = 0.42 * (number - (len(series) - 1) / 2)
        placed = frame.assign(y=frame["group"].map(place) + offset)
        _whiskers(axes, placed, one, below=SECOND_PT / row_pt)
        _numbers(axes, placed, one, beside)
    _text(axes, 1, 1, beside, x_pt=right_pt - 6, y_pt=5, size=SMALL_PT, color=MUTED, align="right")
    axes.set_xlabel("times the average", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    if len(series) > 1:
        names = [one.name for one in series]
        longer = [_with_images(one.name, one.rows) for one in series]
        fits = _legend_pt(longer) <= WIDTH_PT
        _legend(figure, series, longer if beside != "images" and fits else names, head_pt + 11)
    return figure


def _varied_images(rows: pd.DataFrame) -> bool:
    """Whether images are worth a column: not the same number in every row."""
    return len(rows) == 1 or bool((rows["images"] != rows["images"].iloc[0]).any())


def _with_images(name: str, rows: pd.DataFrame) -> str:
    """A series' name with the number of images behind each of its rows, where it is known."""
    return f"{name}, {rows['images'].iloc[0]:,.0f} images" if "images" in rows else name


def _whiskers(axes: Axes, frame: pd.DataFrame, series: Series, *, below: float, scale: float = 1.0) -> None:
    """Dots and lines of groups at their height `y`, second intervals so far `below`; `scale` is for the size of all."""
    solid = frame[~frame["hollow"]]
    axes.hlines(solid["y"], solid["lower"], solid["upper"], color=series.color, linewidth=1.8 * scale, zorder=3)
    if "second_lower" in solid:
        second = solid["second_lower"], solid["second_upper"]
        style: dict[str, Any] = {"color": series.color, "zorder": 3}
        axes.hlines(solid["y"] + below, *second, linewidth=0.6 * scale, **style)
        for end in second:
            axes.plot(end, solid["y"] + below, "|", markersize=3.4 * scale, markeredgewidth=0.6, **style)
    # Small enough that the short intervals of large groups show beside it.
    size = 3.8 if series.marker == "o" else 3.4
    for hollow, part in frame.groupby("hollow"):
        face = "none" if hollow else series.color
        axes.plot(
            part["estimate"],
            part["y"],
            series.marker,
            color=series.color,
            markerfacecolor=face,
            markersize=size * scale,
            linestyle="none",
            zorder=4,
        )


def _numbers(axes: Axes, frame: pd.DataFrame, series: Series, beside: str) -> None:
    """The column `beside` in figures, right of the axes."""
    for y, value in zip(frame["y"], frame[beside], strict=True):
        axes.annotate(
            f"{value:,.0f}" if beside == "images" else f"{value:.3f}",
            (1, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(52, 0),
            textcoords="offset points",
            fontsize=SMALL_PT,
            color=series.color if series.marker != "o" else MUTED,
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
        fontsize=TEXT_PT - 0.5 if len(lines) == 1 and not heading else SMALL_PT - (len(lines) > 2),
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


def ratio_scale(axes: Axes, rows: pd.DataFrame) -> None:
    """Limits and ticks for ratios: in steps of doubling where they differ much, else linear."""
    drawn = ("estimate", "lower", "upper", "second_lower", "second_upper")  # a dot without a line needs its place, too
    ends = rows[[column for column in rows if column in drawn]]
    low, high = float(np.nanmin([1, *ends.min()])), float(np.nanmax([1, *ends.max()]))
    if low <= 0 or high / low < 6:
        room = 0.06 * (high - low) or 0.1
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(FixedLocator(linear_ticks(low - room, high + room)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:.3g}"))
    else:
        room = (high / low) ** 0.06
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / room, high * room)
        axes.xaxis.set_major_locator(FixedLocator(ratio_ticks(low / room, high * room)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(ratio_text))


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers within the limits: some five, and at least three with one on either side of 1 where that can be."""
    for most in range(5, 10):
        steps = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = [float(tick) for tick in steps if low <= tick <= high]
        if len(ticks) >= 3 and min(ticks) < 1 < max(ticks):
            break
    return ticks


def ratio_text(ratio: float, _position: int | None = None) -> str:
    """A ratio at a tick."""
    return {0.0625: "1/16", 0.125: "⅛", 0.25: "¼", 0.5: "½"}.get(ratio, f"{ratio:.3g}")


def ratio_ticks(low: float, high: float) -> list[float]:
    """Powers of two within the limits, and the round numbers between them where there are few."""
    doublings = [2.0**power for power in range(-8, 9)]
    between = [round(1.5 * tick, 4) for tick in doublings]
    ticks = doublings if high / low > 6 else sorted(doublings + between)
    return [tick for tick in ticks if low <= tick <= high]


def ranking_figure(
    series: Sequence[Series], *, title: str, subtitle: str, simulated: str, hollow_means: str = ""
) -> Figure:
    """Every group of the series, ranked together from the highest, in columns; a line at the average."""
    everything = from_the_highest(pd.concat([one.rows for one in series]))
    column_rows = math.ceil(len(everything) / RANKING_COLUMNS)
    notice = notice_lines(simulated, hollow=hollow_means if everything["hollow"].any() else "")
    label_pt, column_pt = 204.0, 340.0
    width_pt = RANKING_COLUMNS * column_pt + 8
    head_pt = heading_pt(subtitle, width_pt)
    top_pt, bottom_pt = head_pt + LINE_PT + 18, 36 + LINE_PT * len(notice)
    height_pt = top_pt + RANKING_ROW_PT * column_rows + bottom_pt
    figure = Figure(figsize=(width_pt / PT_PER_INCH, height_pt / PT_PER_INCH))
    heading(figure, title, subtitle, notice)
    _legend(figure, series, [one.name for one in series], head_pt + 11)
    ranks = {group: rank for rank, group in enumerate(everything["group"])}
    for column in range(RANKING_COLUMNS):
        inside = {group: rank % column_rows for group, rank in ranks.items() if rank // column_rows == column}
        place = (
            (column * column_pt + label_pt) / width_pt,
            bottom_pt / height_pt,
            (column_pt - label_pt - 6) / width_pt,
            RANKING_ROW_PT * column_rows / height_pt,
        )
        axes = figure.add_axes(place)
        axes.set_ylim(column_rows - 0.5, -0.5)
        bare(axes)
        axes.yaxis.set_major_locator(NullLocator())
        ratio_scale(axes, everything)
        axes.axvline(1, color=INK, linewidth=0.9, zorder=1)
        for group, row in inside.items():
            _rank_label(axes, row, f"{group}  {ranks[group] + 1:>3}")
        for one in series:
            shown = one.rows[one.rows["group"].isin(list(inside))]
            _whiskers(
                axes, shown.assign(y=shown["group"].map(inside)), one, below=0.7 * SECOND_PT / RANKING_ROW_PT, scale=0.7
            )
        axes.set_xlabel("times the average", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    return figure


def _rank_label(axes: Axes, row: int, text: str) -> None:
    axes.annotate(
        text,
        (0, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-6, 0),
        textcoords="offset points",
        fontsize=SMALL_PT - 0.5,
        color=INK,
        ha="right",
        va="center",
        annotation_clip=False,
        parse_math=False,
    )
    if row % 2 == 0:
        axes.axhspan(row - 0.5, row + 0.5, color=GRID, alpha=0.08, linewidth=0, zorder=0)


def truth_figure(results: Results, *, interval_percent: float, simulated: str) -> Figure:
    """Estimated level of each neighborhood against its true one, both relative to the average."""
    frame = against_truth(results)
    many = frame["images"] >= FEW_IMAGES
    positive = frame[["truth", "estimate"]].gt(0).all(axis=1)
    # Where few have many images the axes are theirs, as the intervals of others are wide.
    held = frame[positive & (many if (positive & many).any() else True)]
    values = held[["truth", "estimate", "lower", "upper"]].replace(0, np.nan).to_numpy()
    low, high = (np.nanmin(values) / 1.15, np.nanmax(values) * 1.15) if np.isfinite(values).any() else (0.5, 2.0)
    notice = [
        *_outside(frame, low, high),
        *notice_lines(simulated, hollow=results.hollow_means if frame["hollow"].any() else ""),
    ]
    subtitle = f"{MEASURE}\nA dot a neighborhood. Line: {interval_percent:g} % interval"
    if (found := results.summary["truth"]) is not None:
        subtitle += f"; {found['contained']:,} of {found['neighborhoods']:,} hold the truth"
    top_pt, bottom_pt = heading_pt(subtitle, WIDTH_PT) + 13, 40.0 + LINE_PT * len(notice)
    left_pt, right_pt = 44.0, 12.0
    side_pt = WIDTH_PT - left_pt - right_pt
    height_pt = top_pt + side_pt + bottom_pt
    figure = Figure(figsize=(WIDTH_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    axes = figure.add_axes((left_pt / WIDTH_PT, bottom_pt / height_pt, side_pt / WIDTH_PT, side_pt / height_pt))
    heading(figure, "Estimate against truth", subtitle, notice)
    bare(axes, both=True)
    for scale, limit, axis in (
        (axes.set_xscale, axes.set_xlim, axes.xaxis),
        (axes.set_yscale, axes.set_ylim, axes.yaxis),
    ):
        scale("log", base=2)
        limit(low, high)
        axis.set_major_locator(FixedLocator(ratio_ticks(low, high)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(ratio_text))
    axes.plot([low, high], [low, high], color=INK, linewidth=0.9, zorder=1)
    hollow = frame["hollow"]
    for chosen, color, marker, face, label in (
        (positive & many & ~hollow, BLUE, "o", BLUE, f"{FEW_IMAGES} images or more"),
        (positive & ~many & ~hollow, GRID, "s", GRID, f"fewer than {FEW_IMAGES} images"),
        (positive & many & hollow, BLUE, "o", "none", None),
        (positive & ~many & hollow, GRID, "s", "none", None),
    ):
        part = frame[chosen]
        if part.empty:
            continue
        if face != "none":
            lower = part["lower"].clip(lower=low)
            axes.vlines(part["truth"], lower, part["upper"], color=color, linewidth=0.9, alpha=0.55, zorder=2)
        axes.plot(
            part["truth"],
            part["estimate"],
            marker,
            color=color,
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


def _outside(frame: pd.DataFrame, low: float, high: float) -> list[tuple[str, str]]:
    """A line that says what the axes do not hold, if anything: estimates, and ends of the intervals of others."""
    beyond = ~frame[["truth", "estimate"]].apply(lambda values: values.between(low, high)).all(axis=1)
    inside = frame[~beyond & ~frame["hollow"]]
    ends = int((inside["lower"] < low).sum() + (inside["upper"] > high).sum())
    told = [
        f"{count:,} {what}{'s' * (count != 1)}"
        for count, what in ((int(beyond.sum()), "estimate"), (ends, "interval end"))
        if count
    ]
    return [(f"Outside the axes: {' and '.join(told)}.", MUTED)] if told else []


def against_truth(results: Results) -> pd.DataFrame:
    """Relative estimate and relative truth of every neighborhood that has both: group, estimate, ..., truth."""
    frame = results.groups("neighborhood")
    truth = frame["key"].map(pd.Series(dtype="float64") if results.truth is None else results.truth)
    return frame.assign(truth=truth).dropna(subset=["truth", "estimate"]).reset_index(drop=True)


# Shared parts of a figure.


def notice_lines(simulated: str, *, hollow: str = "", part: str = "") -> list[tuple[str, str]]:
    """Lines at the foot of a figure, each with its color.

    Parameters
    ----------
    hollow : what is true of the groups drawn hollow, if some are
    part : which images the figure is of, if not of all
    """
    lines = [(f"Hollow: {hollow}, so that the interval says nothing.", MUTED)] if hollow else []
    if part:
        lines += [(line, INK) for line in textwrap.wrap(f"Only: {part}", 84)]
    if simulated:
        lines += [(line, WARNING) for line in textwrap.wrap(f"Simulated: {simulated}", 84)]
    return lines


def heading_pt(subtitle: str, width_pt: float) -> float:
    """Height of the title and of the subtitle in as many lines as it takes."""
    return 12 + LINE_PT * (1 + len(_wrapped(subtitle, width_pt - 16, SUBTITLE_PT)))


def heading(figure: Figure, title: str, subtitle: str, notice: list[tuple[str, str]]) -> None:
    """Title and subtitle, wrapped, at the head of a figure, and the lines of `notice_lines` at its foot."""
    width_pt, height_pt = _size_pt(figure)
    lines = _wrapped(subtitle, width_pt - 16, SUBTITLE_PT)

    def put(x_pt: float, y_pt: float, text: str, **style: Any) -> None:
        figure.text(x_pt / width_pt, y_pt / height_pt, text, parse_math=False, va="top", **style)

    put(8, height_pt - 8, title, fontsize=TEXT_PT + 1.5, fontweight="bold", color=INK)
    put(8, height_pt - 10 - LINE_PT - 3, "\n".join(lines), fontsize=SUBTITLE_PT, color=MUTED, linespacing=1.25)
    for number, (line, color) in enumerate(notice):
        put(8, 4 + LINE_PT * (len(notice) - number), line, fontsize=SMALL_PT, color=color)


def text_pt(text: str, size_pt: float) -> float:
    """Width of a text on one line, as wide as it gets where letters are fitted to pixels."""
    if not text.strip():
        return 0.0
    path = TextPath((0, 0), text.replace("$", r"\$"), size=size_pt, prop=FontProperties(family="DejaVu Sans"))
    return HINTED * float(path.get_extents().width)


def _wrapped(text: str, width_pt: float, size_pt: float) -> list[str]:
    """Lines of a text, none wider than given unless one word is; a line break stays one."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and text_pt(f"{line} {word}", size_pt) > width_pt:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".lstrip()
        lines.append(line)
    return lines


def _legend_pt(names: Sequence[str]) -> float:
    """Width of a legend, its margins included."""
    return _LEGEND_PT + sum(_MARK_PT + text_pt(name, SUBTITLE_PT) for name in names)


def _legend(figure: Figure, series: Sequence[Series], names: Sequence[str], below_pt: float) -> None:
    """A mark and a name for each series, `below_pt` from the top."""
    width_pt, height_pt = _size_pt(figure)
    y_pt = height_pt - below_pt
    for number, (one, name) in enumerate(zip(series, names, strict=True)):
        x_pt = _legend_pt(names[:number])
        figure.add_artist(
            Line2D(
                [x_pt / width_pt],
                [y_pt / height_pt],
                marker=one.marker,
                color=one.color,
                markersize=5,
                linestyle="none",
            )
        )
        figure.text((x_pt + 7) / width_pt, (y_pt - 0.5) / height_pt, name, fontsize=SUBTITLE_PT, color=INK, va="center")


def _size_pt(figure: Figure) -> tuple[float, float]:
    """Width and height of a figure."""
    width_inch, height_inch = figure.get_size_inches()
    return width_inch * PT_PER_INCH, height_inch * PT_PER_INCH


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
    axes: Axes, x: float, y: float, text: str, *, x_pt: float, y_pt: float, size: float, color: str, align: str
) -> None:
    axes.annotate(
        text,
        (x, y),
        xycoords="axes fraction",
        xytext=(x_pt, y_pt),
        textcoords="offset points",
        fontsize=size,
        color=color,
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

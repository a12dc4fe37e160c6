"""Chart of the sensitivity analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from patrolscope.analysis.estimators.sensitivity import DEPENDS, DIRECTION, HOLDS
from patrolscope.analysis.estimators.sensitivity_tables import SensitivityTables
from patrolscope.analysis.estimators.variants import BASE, KINDS
from patrolscope.dashboards.charts.figures import (
    BLUE,
    GRID,
    INK,
    LINE_PT,
    MEASURE,
    MUTED,
    PT_PER_INCH,
    SMALL_PT,
    TEXT_PT,
    bare,
    heading,
    heading_pt,
    notice_lines,
    ratio_scale,
)

# Colors of Okabe and Ito, apart for color-blind readers, each with a marker of its own.
STYLES = {
    "threshold": ("#0072b2", "o", 3.6),
    "calibration": ("#d55e00", "D", 3.4),
    "area level": ("#009e73", "s", 3.6),
    "minimum images": ("#cc79a7", "^", 4.0),
    "dates": ("#b8860b", "v", 4.0),
    "time": ("#2f9fd0", "P", 4.4),
    "even hours": (INK, "X", 4.4),
}
SHOWN = {
    "race": "Race and ethnicity",
    "density": "Population density",
    "income": "Median household income",
    "zone": "Zone",
    "borough": "Borough",
}
VERDICTS = {HOLDS: "holds under all", DIRECTION: "direction only", DEPENDS: "depends"}
SHEET_PT = 500.0  # 1,667 pixels wide; at 1,200 the smallest letters are 16 pixels high
_ROW_PT, _LEFT_PT, _RIGHT_PT = 25.0, 112.0, 84.0
_ABOVE_PT, _BELOW_PT = 20.0, 17.0  # of a panel: its name, its ticks


def sensitivity_figure(found: SensitivityTables, *, simulated: str) -> Figure:
    """A panel an analysis, a row a group: interval and estimate of the base, a mark a variant, and the verdict."""
    base = found.table[found.table["kind"] == BASE]
    groups = {name: list(base.loc[base["analysis"] == name, "group"]) for name in SHOWN}
    panels = {name: members for name, members in groups.items() if members}
    kinds = [kind for kind in KINDS if kind in STYLES and (found.table["kind"] == kind).any()]
    notice = [*_notes(found.summary), *notice_lines(simulated)]
    varied = f"{found.summary['variants']} variants, each with one thing changed"
    subtitle = f"{MEASURE}\n{varied}. Every panel has its own scale"
    head_pt = heading_pt(subtitle, SHEET_PT)
    top_pt = head_pt + 6 + LINE_PT * 1.25 * -(-len(kinds) // 4)
    bottom_pt = 12 + LINE_PT * len(notice)
    height_pt = top_pt + sum(_ABOVE_PT + _ROW_PT * len(rows) + _BELOW_PT for rows in panels.values()) + bottom_pt
    figure = Figure(figsize=(SHEET_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    heading(figure, "What holds whatever is changed", subtitle, notice)
    _legend(figure, found.table, kinds, height_pt - head_pt - 10)
    above_pt = height_pt - top_pt
    for name, rows in panels.items():
        above_pt -= _ABOVE_PT + _ROW_PT * len(rows)
        place = (
            _LEFT_PT / SHEET_PT,
            above_pt / height_pt,
            (SHEET_PT - _LEFT_PT - _RIGHT_PT) / SHEET_PT,
            _ROW_PT * len(rows) / height_pt,
        )
        _panel(figure.add_axes(place), found, name, rows, kinds)
        above_pt -= _BELOW_PT
    return figure


def _panel(axes: Axes, found: SensitivityTables, analysis: str, groups: list[str], kinds: list[str]) -> None:
    bare(axes)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    shown = found.table[found.table["analysis"] == analysis]
    points = pd.DataFrame({"lower": shown["estimate"], "upper": shown["estimate"]})
    ratio_scale(axes, pd.concat([shown.loc[shown["kind"] == BASE, ["lower", "upper"]], points], ignore_index=True))
    axes.axvline(1, color=INK, linewidth=0.9, zorder=2)
    _label(axes, -0.5 - 9 / _ROW_PT, SHOWN[analysis], size=TEXT_PT - 0.5, at_pt=8 - _LEFT_PT, bold=True)
    for position, group in enumerate(groups):
        _label(axes, position, group, size=TEXT_PT - 0.5, at_pt=-6, bold=False)
        _row(axes, position, shown[shown["group"] == group], kinds)
        _verdict(axes, position, found.conclusions, analysis, group)


def _notes(summary: dict[str, Any]) -> list[tuple[str, str]]:
    interval = (
        f"Bar: {summary['interval_percent']:g} % interval of the base, over {summary['replicates']:,} draws of its "
        f"{summary['days']} days with replacement. Tick: estimate of the base."
    )
    if not summary["replicates"]:
        interval = (
            f"Tick: estimate of the base. No intervals: {summary['days']} days of images, at least "
            f"{summary['days_for_an_interval']} are needed."
        )
    return [
        (f"{interval} Line: the average.", MUTED),
        ("Holds under all: same side of 1 in every variant, and every interval excludes 1.", MUTED),
        ("Direction only: same side of 1 in every variant. Depends: on the other side in some.", MUTED),
    ]


def _row(axes: Axes, position: int, rows: pd.DataFrame, kinds: list[str]) -> None:
    axes.axhspan(position - 0.47, position + 0.47, color=GRID, alpha=0.07, linewidth=0, zorder=0)
    base = rows[rows["kind"] == BASE].iloc[0]
    if not np.isnan(base["lower"]):
        width = base["upper"] - base["lower"]
        axes.add_patch(
            Rectangle((base["lower"], position - 0.36), width, 0.72, color=BLUE, alpha=0.22, linewidth=0, zorder=1)
        )
    axes.vlines(base["estimate"], position - 0.42, position + 0.42, color=INK, linewidth=1.5, zorder=3)
    for number, kind in enumerate(kinds):
        color, marker, size = STYLES[kind]
        # A lane each, so that marks of two kinds do not hide one another.
        lane = position + 0.66 * ((number + 0.5) / len(kinds) - 0.5)
        estimates = rows.loc[rows["kind"] == kind, "estimate"]
        axes.plot(
            estimates,
            np.full(len(estimates), lane),
            marker,
            color=color,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.35,
            linestyle="none",
            zorder=4,
        )


def _label(axes: Axes, position: float, text: str, *, size: float, at_pt: float, bold: bool) -> None:
    axes.annotate(
        text,
        (0, position),
        xycoords=axes.get_yaxis_transform(),
        xytext=(at_pt, 0),
        textcoords="offset points",
        fontsize=size,
        color=MUTED if bold else INK,
        fontweight="bold" if bold else "normal",
        ha="left" if bold else "right",
        va="center",
        annotation_clip=False,
        parse_math=False,
    )


def _verdict(axes: Axes, position: int, found: pd.DataFrame, analysis: str, group: str) -> None:
    """What becomes of the group's conclusion against the average: a filled, an open mark, or words alone."""
    chosen = (found["analysis"] == analysis) & (found["group"] == group) & (found["compared_with"] == 1)
    for verdict in found.loc[chosen, "verdict"]:
        name = next((known for known in VERDICTS if verdict.startswith(known)), None)
        holds = name == HOLDS
        if name in (HOLDS, DIRECTION):
            axes.annotate(
                "\u25cf" if holds else "\u25cb",
                (1, position),
                xycoords=axes.get_yaxis_transform(),
                xytext=(7, 0),
                textcoords="offset points",
                fontsize=SMALL_PT + 1,
                color=INK,
                va="center",
                annotation_clip=False,
            )
        axes.annotate(
            VERDICTS[name] if name else "no direction",
            (1, position),
            xycoords=axes.get_yaxis_transform(),
            xytext=(17, 0),
            textcoords="offset points",
            fontsize=SMALL_PT,
            color=INK if holds else MUTED,
            fontweight="bold" if holds else "normal",
            va="center",
            annotation_clip=False,
        )


def _legend(figure: Figure, table: pd.DataFrame, kinds: list[str], top_pt: float) -> None:
    height_pt = figure.get_size_inches()[1] * PT_PER_INCH
    column_pt = (SHEET_PT - 20) / 4
    for number, kind in enumerate(kinds):
        color, marker, size = STYLES[kind]
        x_pt, y_pt = 14 + column_pt * (number % 4), top_pt - LINE_PT * 1.25 * (number // 4)
        variants = table.loc[table["kind"] == kind, "variant"].nunique()
        figure.add_artist(
            Line2D(
                [x_pt / SHEET_PT],
                [y_pt / height_pt],
                marker=marker,
                color=color,
                markersize=size + 1.2,
                linestyle="none",
            )
        )
        text = f"{kind} ({variants})"
        figure.text(
            (x_pt + 8) / SHEET_PT, (y_pt - 0.5) / height_pt, text, fontsize=SMALL_PT + 0.5, color=INK, va="center"
        )

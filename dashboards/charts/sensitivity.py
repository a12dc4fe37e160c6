"""Chart of the sensitivity analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator

from patrolscope.analysis.estimators.sensitivity import DIRECTION_ONLY, ROBUST, SENSITIVE
from patrolscope.analysis.estimators.sensitivity_tables import SensitivityTables
from patrolscope.analysis.estimators.variants import BASE, KINDS
from patrolscope.dashboards.charts.axes import ratio_axis
from patrolscope.dashboards.charts.matplotlib_renderer import bare, fix_layout, frame, set_axis
from patrolscope.dashboards.charts.specs import Note, Specification, Style, notes_of
from patrolscope.dashboards.charts.style import (
    BLUE,
    GRID,
    INK,
    LABEL_PT,
    MEASURE,
    MUTED,
    SHEET_PT,
    SMALL_PT,
    TEXT_PT,
)

# Colors of Okabe and Ito, distinguishable with color blindness, each with its own marker.
STYLES = {
    "threshold": Style("#0072b2", "o", size=3.6),
    "calibration": Style("#d55e00", "D", size=3.4),
    "area level": Style("#009e73", "s", size=3.6),
    "minimum images": Style("#cc79a7", "^", size=4.0),
    "dates": Style("#b8860b", "v", size=4.0),
    "time": Style("#2f9fd0", "P", size=4.4),
    "even hours": Style(INK, "X", size=4.4),
}
TITLES = {
    "race": "Race and ethnicity",
    "density": "Population density",
    "income": "Median household income",
    "zone": "Zone",
    "borough": "Borough",
}
VERDICTS = {ROBUST: "robust", DIRECTION_ONLY: "direction only", SENSITIVE: "sensitive"}
_ROW_PT, _AROUND_PT, _LEGEND_PT = 25.0, 46.0, 34.0


def sensitivity_figure(results: SensitivityTables, *, simulated: str) -> Figure:
    """Draw estimates of the base and of every variant, one panel per analysis and one row per group.

    Parameters
    ----------
    results : SensitivityTables
        Estimates, conclusions, and summary.
    simulated : str
        Description of the simulated data; empty for real data.
    """
    base = results.table[results.table["kind"] == BASE]
    panels = {name: groups for name in TITLES if (groups := list(base.loc[base["analysis"] == name, "group"]))}
    kinds = [kind for kind in KINDS if kind in STYLES and (results.table["kind"] == kind).any()]
    spec = Specification(
        title="Sensitivity of the relative rates",
        subtitle=(
            f"{MEASURE}. {results.summary['variants']} variants, each with one change of the settings. "
            "The scales of the panels differ."
        ),
        notes=(*_notes(results.summary), *notes_of(simulated)),
    )
    body_pt = sum(_AROUND_PT + _ROW_PT * len(groups) for groups in panels.values()) + _LEGEND_PT
    figure, body = frame(spec, body_pt, width_pt=SHEET_PT)
    heights = [len(groups) for groups in panels.values()]
    grid = body.add_gridspec(len(panels), 1, height_ratios=heights)
    for number, (name, groups) in enumerate(panels.items()):
        axes = body.add_subplot(grid[number])
        axes.set_title(TITLES[name], fontsize=TEXT_PT - 0.5, color=MUTED, fontweight="bold", loc="left", pad=5)
        _panel(axes, results, name, groups, kinds)
    counts = {kind: results.table.loc[results.table["kind"] == kind, "variant"].nunique() for kind in kinds}
    handles = [
        Line2D([], [], color=STYLES[kind].color, marker=STYLES[kind].marker, markersize=5, linestyle="none")
        for kind in kinds
    ]
    names = [f"{kind} ({counts[kind]})" for kind in kinds]
    body.legend(
        handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize=LABEL_PT, labelcolor=INK,
        handletextpad=0.2, borderpad=0.1,
    )  # fmt: skip
    return fix_layout(figure)


def _notes(summary: dict[str, Any]) -> list[Note]:
    interval = Note(
        f"Bar: {summary['interval_percent']:g}% interval of the base, from {summary['replicates']:,} bootstrap "
        f"replicates of its {summary['days']} days."
    )
    if not summary["replicates"]:
        interval = Note(
            f"No intervals: {summary['days']} days of images; at least {summary['days_for_an_interval']} are needed."
        )
    return [
        interval,
        Note("Tick: estimate of the base. Vertical line: city average."),
        Note("Robust: same side of 1 in every variant, and every interval excludes 1. "),
        Note("Direction only: same side of 1 in every variant. Sensitive: another side of 1 in at least one variant."),
    ]


def _panel(axes: Axes, results: SensitivityTables, analysis: str, groups: list[str], kinds: list[str]) -> None:
    bare(axes)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(groups))))
    axes.yaxis.set_major_formatter(FixedFormatter(groups))
    axes.tick_params(axis="y", length=0, pad=5, labelcolor=INK, labelsize=TEXT_PT - 0.5)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    shown = results.table[results.table["analysis"] == analysis]
    set_axis(axes, ratio_axis([shown[["estimate"]], shown.loc[shown["kind"] == BASE, ["lower", "upper"]]], ""), "x")
    axes.axvline(1, color=INK, linewidth=0.9, zorder=2)
    for position, group in enumerate(groups):
        _row(axes, position, shown[shown["group"] == group], kinds)
        _verdict(axes, position, results.conclusions, analysis, group)


def _row(axes: Axes, position: int, rows: pd.DataFrame, kinds: list[str]) -> None:
    axes.axhspan(position - 0.47, position + 0.47, color=GRID, alpha=0.07, linewidth=0, zorder=0)
    base = rows[rows["kind"] == BASE].iloc[0]
    if not np.isnan(base["lower"]):
        corner, width = (base["lower"], position - 0.36), base["upper"] - base["lower"]
        axes.add_patch(Rectangle(corner, width, 0.72, color=BLUE, alpha=0.22, linewidth=0, zorder=1))
    axes.vlines(base["estimate"], position - 0.42, position + 0.42, color=INK, linewidth=1.5, zorder=3)
    for number, kind in enumerate(kinds):
        # One lane per kind, so that markers of two kinds do not overlap.
        lane = position + 0.66 * ((number + 0.5) / len(kinds) - 0.5)
        estimates, style = rows.loc[rows["kind"] == kind, "estimate"], STYLES[kind]
        axes.plot(
            estimates, np.full(len(estimates), lane), style.marker, color=style.color, markersize=style.size,
            markeredgecolor="white", markeredgewidth=0.35, linestyle="none", zorder=4,
        )  # fmt: skip


def _verdict(axes: Axes, position: int, conclusions: pd.DataFrame, analysis: str, group: str) -> None:
    """Write the verdict on the group's comparison with the average, with a filled, an open, or no marker."""
    chosen = (
        (conclusions["analysis"] == analysis) & (conclusions["group"] == group) & (conclusions["compared_with"] == 1)
    )
    for verdict in conclusions.loc[chosen, "verdict"]:
        name = next((known for known in VERDICTS if verdict.startswith(known)), "")
        robust = name == ROBUST
        marker = {ROBUST: "\u25cf", DIRECTION_ONLY: "\u25cb"}.get(name, " ")
        axes.annotate(
            f"{marker} {VERDICTS.get(name, 'no direction')}", (1, position), xycoords=axes.get_yaxis_transform(),
            xytext=(7, 0), textcoords="offset points", fontsize=SMALL_PT, color=INK if robust else MUTED,
            fontweight="bold" if robust else "normal", va="center", annotation_clip=False,
        )  # fmt: skip

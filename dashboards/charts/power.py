"""Chart of the power of a study: the smallest detectable ratios."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from patrolscope.analysis.estimators.power import AGAINST_AVERAGE, LEVEL_PERCENT, Target
from patrolscope.analysis.stages.power import StudyPower
from patrolscope.dashboards.charts.axes import ratio_axis, ratio_ticks, share_axis
from patrolscope.dashboards.charts.matplotlib_renderer import draw_axes, fix_layout, frame
from patrolscope.dashboards.charts.specs import (
    Axis,
    Curve,
    CurveChart,
    IntervalChart,
    IntervalSeries,
    Note,
    ReferenceLine,
    Row,
    Specification,
    Style,
    notes_of,
)
from patrolscope.dashboards.charts.style import BLUE, INK, MUTED, ORANGE, SHEET_PT, TEXT_PT

HEADINGS = {"race": "population groups", "borough": "boroughs"}
_ROW_PT, _AROUND_PT, _CURVE_PT = 17.0, 66.0, 190.0
_MOST = 8.0  # larger ratios of neighborhoods are beyond the axis


def power_figure(power: StudyPower, *, simulated: str) -> Figure:
    """Draw the smallest ratio of every pair of groups, and its distribution over neighborhoods.

    Parameters
    ----------
    power : StudyPower
    simulated : str
        Description of the simulated data; empty for real data.
    """
    target, table = power.target, power.table
    panels: list[tuple[Specification, float]] = []
    pairs = pairs_chart(table, target)
    if pairs.rows:
        panels.append((pairs, _AROUND_PT + _ROW_PT * len(pairs.rows)))
    neighborhoods = table[table["analysis"].isin(AGAINST_AVERAGE)]
    if neighborhoods["smallest_ratio"].notna().any():
        panels.append((neighborhoods_chart(neighborhoods, target), _CURVE_PT))
    sample = f"{power.images:,} analyzed images" + ("" if power.rides is None else f" of {power.rides:,} rides")
    spec = Specification(
        title="Smallest detectable ratio of deployment rates",
        subtitle=(f"{sample}. Two-sided tests at {LEVEL_PERCENT:g}%, with a power of {target.power_percent:g}%."),
        notes=(
            Note(
                f"Vertical line: a ratio of {shown_ratio(target):g}. Comparisons to the left of it have enough images."
            ),
            *notes_of(simulated),
        ),
    )
    heights = [height for _, height in panels]
    figure, body = frame(spec, sum(heights), width_pt=SHEET_PT)
    grid = body.add_gridspec(len(panels), 1, height_ratios=heights)
    for number, (panel, _) in enumerate(panels):
        axes = body.add_subplot(grid[number])
        axes.set_title(panel.title, fontsize=TEXT_PT, color=MUTED, fontweight="bold", loc="left", pad=7)
        draw_axes(panel, axes, None)
    return fix_layout(figure)


def shown_ratio(target: Target) -> float:
    """Return the ratio of the target, or its inverse, above 1; both need the same."""
    return max(target.ratio, 1 / target.ratio)


def pairs_chart(table: pd.DataFrame, target: Target) -> IntervalChart:
    """Specify the smallest ratios of pairs of groups, those of each analysis in ascending order."""
    rows: list[Row] = []
    shown = []
    for analysis, heading in HEADINGS.items():
        pairs = table[table["analysis"] == analysis].sort_values("smallest_ratio", na_position="last", kind="stable")
        names = pairs["group"] + " and " + pairs["compared_with"]
        rows += [Row(heading)] * bool(len(pairs)) + [Row(name, f"{analysis} {name}") for name in names]
        shown.append(
            pd.DataFrame(
                {
                    "group": f"{analysis} " + names,
                    "estimate": pairs["smallest_ratio"],
                    "lower": 1.0,
                    "upper": pairs["smallest_ratio"],
                }
            )
        )
    estimates = pd.concat(shown, ignore_index=True)
    ratio = shown_ratio(target)
    axis = ratio_axis([estimates, pd.DataFrame({"estimate": [ratio]})], "smallest detectable ratio")
    return IntervalChart(
        title="Pairs of groups",
        x=axis,
        rows=tuple(rows),
        series=(IntervalSeries("smallest ratio", estimates),),
        reference=ratio,
        column="estimate",
        column_title="ratio",
    )


def neighborhoods_chart(rows: pd.DataFrame, target: Target) -> CurveChart:
    """Specify the share of neighborhoods whose smallest ratio is at most x: of each alone, and of all at once."""
    ratio = shown_ratio(target)
    curves = []
    for column, name, style in (
        ("smallest_ratio", "one neighborhood by itself", Style(BLUE)),
        ("smallest_ratio_simultaneous", "all with enough positive images at once", Style(ORANGE, dash="dashed")),
    ):
        known = np.sort(rows[column].dropna().to_numpy())
        share = np.arange(1, len(known) + 1) / len(rows)
        curves.append(Curve(name, np.append(known, np.inf), np.append(share, share[-1:]), style, "steps"))
    most = min(_MOST, max(1.5, 1.1 * ratio, float(rows["smallest_ratio"].quantile(0.95))))
    ticks = tuple((tick, f"{tick:.3g}") for tick in ratio_ticks(1, most))
    return CurveChart(
        title=f"{len(rows)} neighborhoods against the city average",
        x=Axis("smallest detectable ratio", (1.0, most), ticks, "log"),
        y=share_axis("share of neighborhoods", percent=True),
        curves=tuple(curve for curve in curves if len(curve.x) > 1),
        references=(ReferenceLine("vertical", ratio, color=INK),),
        legend="lower right",
    )

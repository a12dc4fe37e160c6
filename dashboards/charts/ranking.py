"""Ranking of neighborhoods by their deployment rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.dashboards.charts.axes import ratio_axis
from patrolscope.dashboards.charts.disparities import TITLES
from patrolscope.dashboards.charts.matplotlib_renderer import draw_panels
from patrolscope.dashboards.charts.specs import (
    Axis,
    Curve,
    CurveChart,
    IntervalChart,
    IntervalSeries,
    ReferenceLine,
    Row,
    Specification,
    Style,
    notes_of,
)
from patrolscope.dashboards.charts.style import BLUE, ORANGE

COLUMNS = 3
WIDTH_PT = 1028.0
MOST_NAMES = 12  # names in the chart; more would overlap


def ranking_chart(rows: pd.DataFrame, chosen: Sequence[str]) -> CurveChart:
    """Specify every group by its rank; chosen groups have a different color and, if they are few, their names.

    Parameters
    ----------
    rows : DataFrame
        Columns group, estimate, lower, upper, images, none_positive; in descending order of the estimate.
    chosen : sequence of str
        Groups to highlight.
    """
    ranked = rows.assign(rank=np.arange(1, len(rows) + 1))
    marked = ranked["group"].isin(list(chosen))
    none_positive = ranked["none_positive"].to_numpy(dtype=np.bool_)
    curves = []
    for color, highlighted in ((BLUE, False), (ORANGE, True)):
        for filled in (True, False):
            part = ranked[(marked == highlighted) & (none_positive != filled)]
            columns = {name: part[name].to_numpy(dtype=np.float64) for name in ("rank", "estimate", "lower", "upper")}
            curves.append(
                Curve(
                    "",
                    columns["rank"],
                    columns["estimate"],
                    Style(color, size=4.0 if highlighted else 3.4, filled=filled),
                    "points",
                    lower=columns["lower"],
                    upper=columns["upper"],
                    images=part["images"].to_numpy(),
                    labels=tuple(part["group"]),
                    named=highlighted and int(marked.sum()) <= MOST_NAMES,
                )
            )
    steps = [1, *(rank for rank in range(50, len(rows) + 1, 50))]
    return CurveChart(
        title=TITLES["neighborhood"],
        x=Axis("rank", (0.0, len(rows) + 1.0), tuple((float(rank), str(rank)) for rank in steps)),
        y=ratio_axis([rows]),
        curves=tuple(curve for curve in curves if len(curve.x)),
        references=(ReferenceLine("horizontal", 1.0),),
    )


def ranking_figure(
    series: Sequence[IntervalSeries], *, title: str, subtitle: str, simulated: str, degenerate: str = ""
) -> Figure:
    """Draw every group of several series, ranked together in descending order, in columns.

    Parameters
    ----------
    series : sequence of IntervalSeries
        Groups of each kind.
    title, subtitle, simulated : str
        Text of the figure.
    degenerate : str
        Meaning of open markers.
    """
    ranked = from_the_highest(pd.concat([one.table for one in series]))
    axis = ratio_axis([ranked])
    labels = [Row(f"{group}  {rank:>3}", group) for rank, group in enumerate(ranked["group"], 1)]
    per_column = math.ceil(len(labels) / COLUMNS)
    columns = [tuple(labels[first : first + per_column]) for first in range(0, len(labels), per_column)]
    # Empty rows keep the last column as high as the others.
    columns[-1] += (Row(" "),) * (per_column - len(columns[-1]))
    panels = [IntervalChart(title="", x=axis, rows=rows, series=tuple(series), compact=True) for rows in columns]
    notes = notes_of(simulated, degenerate=degenerate if ranked["none_positive"].any() else "")
    heading = Specification(title=title, subtitle=subtitle, notes=notes)
    return draw_panels(heading, panels, columns=COLUMNS, width_pt=WIDTH_PT, shared_legend=True)

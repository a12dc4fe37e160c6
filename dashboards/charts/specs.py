"""Specifications of charts: plain data that every renderer draws in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.dashboards.charts.style import BLUE, INK, MUTED, WARNING

Floats: TypeAlias = npt.NDArray[np.float64]
Dash: TypeAlias = Literal["solid", "dashed", "dashdot", "dotted"]


@dataclass(frozen=True)
class Style:
    """Look of a series; `marker` is a Matplotlib marker, `size` its size in points."""

    color: str = BLUE
    marker: str = "o"
    dash: Dash = "solid"
    width: float = 1.5
    size: float = 3.8
    filled: bool = True


@dataclass(frozen=True)
class Axis:
    """Quantity, unit, limits, and labeled ticks of one axis."""

    label: str
    limits: tuple[float, float]
    ticks: tuple[tuple[float, str], ...]
    scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True)
class ReferenceLine:
    """Line at a constant x, a constant y, or x = y (`at` is the position of the label), with an optional label."""

    kind: Literal["vertical", "horizontal", "diagonal"]
    at: float
    label: str = ""
    color: str = INK
    dash: Dash = "solid"


@dataclass(frozen=True)
class Note:
    """Line below a chart."""

    text: str
    color: str = MUTED


@dataclass(frozen=True, kw_only=True)
class Specification:
    """Text that every chart has."""

    title: str
    subtitle: str = ""
    notes: tuple[Note, ...] = ()


_PLAIN: dict[str, Any] = {"none_positive": False, "bound": ""}


@dataclass(frozen=True)
class IntervalSeries:
    """Estimates with intervals, drawn in one style.

    Attributes
    ----------
    name : str
        Name in the legend.
    table : DataFrame
        One row per group: group, estimate, lower, upper. Optional: second_lower and second_upper (a second interval),
        images, none_positive (bool; open marker), and bound ("below" if the upper end is all that is known, else
        ""). NaN where an end is unknown.
    style : Style
        Color and marker.
    """

    name: str
    table: pd.DataFrame
    style: Style = Style()

    def of(self, groups: list[str]) -> pd.DataFrame:
        """Return the rows of some groups, with the columns none_positive and bound."""
        rows = self.table[self.table["group"].isin(groups)]
        return rows.assign(**{name: value for name, value in _PLAIN.items() if name not in rows})


@dataclass(frozen=True)
class Row:
    """Line of an interval chart: a group, or a heading between groups if `group` is None."""

    label: str
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class IntervalChart(Specification):
    """Estimates of groups as points with intervals, one row per group.

    Attributes
    ----------
    x : Axis
        Axis of the estimates.
    rows : tuple of Row
        Rows from the top.
    series : tuple of IntervalSeries
        Series; those of one group are drawn below each other.
    reference : float
        Position of the vertical reference line.
    column : str
        Column of the tables that is printed on the right; empty for none.
    column_title : str
        Title of that column.
    compact : bool
        Whether rows are narrow, for rankings with many groups.
    """

    x: Axis
    rows: tuple[Row, ...]
    series: tuple[IntervalSeries, ...]
    reference: float = 1.0
    column: str = ""
    column_title: str = ""
    compact: bool = False

    @property
    def groups(self) -> list[str]:
        """Groups in the order of the rows."""
        return [row.group for row in self.rows if row.group is not None]


@dataclass(frozen=True)
class Curve:
    """Line or points of a curve chart.

    Attributes
    ----------
    name : str
        Name in the legend; empty for none.
    x, y : ndarray of float64, shape (n,)
        Coordinates.
    style : Style
        Look of line and points.
    kind : {"line", "steps", "points"}
        Points joined by a line, by steps that change at the next point, or not at all.
    lower, upper : ndarray of float64, shape (n,), or None
        Ends of the interval of y.
    mark : tuple of float or None
        A highlighted point on the curve.
    images : ndarray or None
        Images behind each point, shown at the pointer.
    labels : tuple of str
        Name of each point, shown at the pointer.
    named : bool
        Whether the names are also drawn beside the points.
    """

    name: str
    x: Floats
    y: Floats
    style: Style = Style()
    kind: Literal["line", "steps", "points"] = "line"
    lower: Floats | None = None
    upper: Floats | None = None
    mark: tuple[float, float] | None = None
    images: npt.NDArray[np.int64] | None = None
    labels: tuple[str, ...] = ()
    named: bool = False


@dataclass(frozen=True, kw_only=True)
class CurveChart(Specification):
    """Curves or points over two axes; `square` axes are equally long."""

    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    references: tuple[ReferenceLine, ...] = ()
    legend: str = "upper left"  # a location of Matplotlib's legends, or "below"
    legend_title: str = ""
    square: bool = False


@dataclass(frozen=True, kw_only=True)
class BarChart(Specification):
    """Bars at positions of the x-axis, or, if `horizontal`, rows from the top; `labels` name each bar."""

    x: Axis
    y: Axis
    positions: Floats
    values: npt.NDArray[np.int64] | Floats
    labels: tuple[str, ...]
    horizontal: bool = False


@dataclass(frozen=True, kw_only=True)
class HeatmapChart(Specification):
    """Counts by row and column, shape (rows, columns), as shades; column k covers k to k + 1 on the x-axis."""

    x: Axis
    rows: tuple[str, ...]
    values: npt.NDArray[np.int64]
    unit: str


def notes_of(simulated: str, *, degenerate: str = "", part: str = "") -> tuple[Note, ...]:
    """Return the lines below a chart.

    Parameters
    ----------
    simulated : str
        Description of the simulated data; empty for real data.
    degenerate : str
        Meaning of open markers; empty if there are none.
    part : str
        Images that the chart is restricted to; empty for all.
    """
    notes = []
    if degenerate:
        notes.append(Note(degenerate))
    if part:
        notes.append(Note(f"Only: {part}", INK))
    if simulated:
        notes.append(Note(f"Simulated: {simulated}", WARNING))
    return tuple(notes)

"""Estimated against true deployment rates of a simulated study."""

from __future__ import annotations

import numpy as np
import pandas as pd

from patrolscope.analysis.stages.results import FEW_IMAGES, Results
from patrolscope.analysis.stages.truth_comparison import estimates_and_truth
from patrolscope.dashboards.charts.axes import log_ratio_axis
from patrolscope.dashboards.charts.specs import Curve, CurveChart, Note, ReferenceLine, Style, notes_of
from patrolscope.dashboards.charts.style import BLUE, GRID, MEASURE

_MANY, _FEW = Style(BLUE, "o", size=2.8), Style(GRID, "s", size=2.8)


def truth_chart(results: Results, *, interval_percent: float, simulated: str) -> CurveChart:
    """Specify estimated against true relative rates, one point per neighborhood.

    Parameters
    ----------
    results : Results
        Estimates and truth of a simulated study.
    interval_percent : float
        Width of the intervals, in percent.
    simulated : str
        Description of the simulated data.
    """
    frame = estimates_and_truth(results)
    many = frame["images"] >= FEW_IMAGES
    positive = frame[["truth", "estimate"]].gt(0).all(axis=1)
    # Neighborhoods with many images set the limits, as intervals of the others are wide.
    inside = frame[positive & (many if (positive & many).any() else True)]
    values = inside[["truth", "estimate", "lower", "upper"]].replace(0, np.nan).to_numpy()
    low, high = (np.nanmin(values) / 1.15, np.nanmax(values) * 1.15) if np.isfinite(values).any() else (0.5, 2.0)
    subtitle = f"{MEASURE}. One point per neighborhood. Line: {interval_percent:g}% interval."
    if (truth := results.summary["truth"]) is not None:
        subtitle += f" {truth['contained']:,} of {truth['neighborhoods']:,} intervals contain the true value."
    none_positive = frame["none_positive"]
    curves = []
    for chosen, style, name in (
        (positive & many & ~none_positive, _MANY, f"{FEW_IMAGES} images or more"),
        (positive & ~many & ~none_positive, _FEW, f"fewer than {FEW_IMAGES} images"),
        (positive & many & none_positive, Style(BLUE, "o", size=2.8, filled=False), ""),
        (positive & ~many & none_positive, Style(GRID, "s", size=2.8, filled=False), ""),
    ):
        part = frame[chosen]
        if len(part):
            columns = {name: part[name].to_numpy() for name in ("truth", "estimate", "lower", "upper", "images")}
            curves.append(
                Curve(
                    name,
                    columns["truth"],
                    columns["estimate"],
                    style,
                    "points",
                    lower=np.maximum(columns["lower"], low),
                    upper=columns["upper"],
                    images=columns["images"],
                    labels=tuple(part["group"]),
                )
            )
    return CurveChart(
        title="Estimated and true deployment rates",
        subtitle=subtitle,
        notes=(
            *_outside(frame, low, high),
            *notes_of(simulated, degenerate=results.open_marker_note if none_positive.any() else ""),
        ),
        x=log_ratio_axis(low, high, "true relative rate (city average = 1)"),
        y=log_ratio_axis(low, high, "estimated relative rate (city average = 1)"),
        curves=tuple(curves),
        references=(ReferenceLine("diagonal", 1.0),),
        square=True,
    )


def _outside(frame: pd.DataFrame, low: float, high: float) -> list[Note]:
    """Return a note on estimates, and on interval ends of the other neighborhoods, that are outside the axes."""
    beyond = ~frame[["truth", "estimate"]].apply(lambda values: values.between(low, high)).all(axis=1)
    inside = frame[~beyond & ~frame["none_positive"]]
    ends = int((inside["lower"] < low).sum() + (inside["upper"] > high).sum())
    counts = [
        f"{count:,} {what}{'s' * (count != 1)}"
        for count, what in ((int(beyond.sum()), "estimate"), (ends, "interval end"))
        if count
    ]
    return [Note(f"Outside the axes: {' and '.join(counts)}.")] if counts else []

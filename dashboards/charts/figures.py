"""Charts of a study's estimates, as Matplotlib figures."""

from __future__ import annotations

from matplotlib.figure import Figure

from patrolscope.analysis.stages.results import Results
from patrolscope.dashboards.charts.disparities import disparity_charts
from patrolscope.dashboards.charts.matplotlib_renderer import draw
from patrolscope.dashboards.charts.truth import truth_chart


def draw_figures(results: Results, *, interval_percent: float, simulated: str) -> dict[str, Figure]:
    """Draw the charts that a study's results allow, by name.

    Parameters
    ----------
    results : Results
        Estimates of the study.
    interval_percent : float
        Width of the intervals, in percent.
    simulated : str
        Description of the simulated data; empty for real data.
    """
    charts = disparity_charts(results, interval_percent=interval_percent, simulated=simulated)
    figures = {name: draw(chart) for name, chart in charts.items()}
    if results.truth is not None and results.has("neighborhood"):
        figures["truth"] = draw(truth_chart(results, interval_percent=interval_percent, simulated=simulated))
    return figures

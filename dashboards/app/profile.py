"""Profile of the selected region: rates by hour and by day, compared with its borough."""

from __future__ import annotations

import html
from dataclasses import replace

import holoviews as hv
import numpy as np
import numpy.typing as npt
import pandas as pd
import panel as pn
from bokeh.models import DatetimeTickFormatter
from bokeh.plotting import figure

from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.rates import area_means
from patrolscope.analysis.stages.results import FEW_IMAGES
from patrolscope.dashboards.app.cards import HtmlPane, paragraph
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.charts.bokeh_renderer import FONT, set_fonts
from patrolscope.dashboards.charts.style import BLUE, INK, MUTED, ORANGE
from patrolscope.dashboards.maps.filters import HOURS, Filter
from patrolscope.dashboards.maps.region_rates import images_text, rate_text

_TALL_PX = 230
# Hours and days with fewer images are omitted: one more positive image would move the rate by 2 percentage points.
_MIN_IMAGES = 50


def profile(site: Site, keep: Filter, geography: str, region: str) -> pn.viewable.Viewable:
    """Return the numbers and curves of a region, or a hint if none is selected.

    Parameters
    ----------
    site : Site
        Study to show.
    keep : Filter
        Images to use. Its region is replaced.
    geography : str
        Geography of the region.
    region : str
        Name of the region; empty if none is selected.
    """
    if not region:
        return pn.pane.Markdown("Click the map or find a region to see its deployment rate by hour and by day.")
    rates = site.painter.rates(geography, keep)
    row = rates[rates["region"] == region].iloc[0]
    name = html.escape(site.city.display_name(geography, region))
    facts = [rate_text(row), images_text(row), f"{row['persons']:,.0f} residents"]
    if row["images"] < FEW_IMAGES or row["positives"] == 0:
        facts.append("<b>Too few images for a reliable rate</b>")
    borough = borough_of(site, geography, region)
    parts = [pn.pane.HTML(f"<h2 style='margin:10px 0 2px'>{name}</h2>{' · '.join(facts)}", sizing_mode="stretch_width")]
    filters = {region: replace(keep, region=(geography, region))}
    if borough and borough != region:
        filters[borough] = replace(keep, region=("borough", borough))
    # One pass over the images for both charts.
    counts = {name: site.points.count(one, by=["hour", "day"]) for name, one in filters.items()}
    for by, other in (("hour", 1), ("day", 0)):
        times: list[object] = list(range(HOURS)) if by == "hour" else list(site.points.days)
        curves = {name: by_time(part.sum(axis=other), site.calibration, times, by) for name, part in counts.items()}
        parts.append(pn.pane.HoloViews(_chart(curves, by), sizing_mode="stretch_width", height=_TALL_PX))
    charts = pn.FlexBox(*parts[1:], flex_direction="row")
    note = paragraph(f"Hours and days with fewer than {_MIN_IMAGES} images are omitted.", "note")
    return pn.Column(parts[0], charts, HtmlPane(note), sizing_mode="stretch_width")


def borough_of(site: Site, geography: str, region: str) -> str:
    """Return the borough with most of a region's areas; empty if the study has no boroughs.

    Parameters
    ----------
    site : Site
        Study and its areas.
    geography : str
        Geography of the region.
    region : str
        Name of the region.
    """
    areas = site.city.areas
    if "borough" not in areas or geography not in areas:
        return ""
    boroughs = areas.loc[areas[geography] == region, "borough"].dropna()
    return str(boroughs.mode().iloc[0]) if len(boroughs) else ""


def by_time(counts: npt.NDArray[np.int64], calibration: TwoClass | None, labels: list[object], by: str) -> pd.DataFrame:
    """Compute the deployment rate by hour or by day.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_times, 2)
        Negative and positive images.
    calibration : TwoClass, optional
        Calibration of the study's threshold. Without one, the result is the detection rate.
    labels : list
        Hours or days, n_times values.
    by : str
        Name of their column.

    Returns
    -------
    DataFrame
        Column `by`, percent (missing with too few images), images.
    """
    images = counts.sum(axis=1)
    p_positive, p_negative = (calibration.ppv, calibration.false_omission_rate) if calibration else (1.0, 0.0)
    rates = area_means(counts[:, 1], images, p_positive, p_negative)
    table = pd.DataFrame({by: labels, "percent": 100 * rates, "images": images})
    table.loc[table["images"] < _MIN_IMAGES, "percent"] = np.nan
    return table


def _chart(curves: dict[str, pd.DataFrame], by: str) -> hv.Overlay:
    colors = dict(zip(curves, (ORANGE, BLUE, MUTED), strict=False))
    drawn: list[hv.Element] = []
    for name, frame in curves.items():
        style = {"color": colors[name], "tools": ["hover"]}
        drawn.append(hv.Curve(frame, by, ["percent", "images"], label=name).opts(line_width=2, **style))
        # A point between two that are left out has no line.
        known = frame["percent"].notna()
        alone = known & ~known.shift(fill_value=False) & ~known.shift(-1, fill_value=False)
        drawn.append(hv.Scatter(frame[alone], by, ["percent", "images"], label=name).opts(size=6, **style))
    return hv.Overlay(drawn).opts(
        title=f"By {by}",
        xlabel="local hour" if by == "hour" else "local day",
        ylabel="% of images with police",
        legend_position="top_left",
        legend_opts={"background_fill_alpha": 0.5},
        responsive=True,
        height=_TALL_PX,
        toolbar=None,
        hooks=[lambda drawn, _: _as_other_charts(drawn.state, by)],
    )


def _as_other_charts(plot: figure, by: str) -> None:
    set_fonts(plot)
    plot.title.text_font, plot.title.text_color = FONT, INK
    if by == "day":
        plot.xaxis.formatter = DatetimeTickFormatter(days="%e %b", months="%b %Y", hours="%e %b")

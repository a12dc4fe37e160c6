"""What is known of the place that a reader chose: by hour, by day, beside its borough."""

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

from patrolscope.analysis.stages.calibrate import TwoClass
from patrolscope.analysis.stages.results import FEW_IMAGES
from patrolscope.dashboards.app.charts import HtmlPane, paragraph
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.charts.bokeh_renderer import FONT, set_fonts
from patrolscope.dashboards.charts.style import BLUE, INK, MUTED, ORANGE
from patrolscope.dashboards.maps.filters import HOURS, Filter
from patrolscope.dashboards.maps.levels import images_words, level_words

_TALL_PX = 230
# Hours with fewer images are left out of a curve: a positive one more would move it by a tenth of the scale.
_LEAST_A_POINT = 50


def profile(site: Site, keep: Filter, level: str, place: str) -> pn.viewable.Viewable:
    """Numbers and curves of a place; without one, how to choose it."""
    if not place:
        return pn.pane.Markdown("Click the map, or find a place by name, to see how its level changes by hour and day.")
    levels = site.painter.levels(level, keep)
    row = levels[levels["place"] == place].iloc[0]
    name = html.escape(site.city.called(level, place))
    said = [
        level_words(row),
        images_words(row, "with a detected police vehicle"),
        f"{row['persons']:,.0f} people",
    ]
    if row["images"] < FEW_IMAGES or row["positives"] == 0:
        said.append("<b>Too few images to say much</b>")
    around = borough_of(site, level, place)
    parts = [pn.pane.HTML(f"<h2 style='margin:10px 0 2px'>{name}</h2>{' · '.join(said)}", sizing_mode="stretch_width")]
    # A view of one place leaves other places out of the filter.
    mine = replace(keep, place=(level, place))
    wider = replace(keep, place=("borough", around)) if around and around != place else None
    # One pass over the images for both charts.
    counts = {name: site.points.count(one, by=["hour", "day"]) for name, one in ((place, mine), (around, wider)) if one}
    for by, other in (("hour", 1), ("day", 0)):
        times: list[object] = list(range(HOURS)) if by == "hour" else list(site.points.days)
        curves = {name: by_time(some.sum(axis=other), site.calibration, times, by) for name, some in counts.items()}
        parts.append(pn.pane.HoloViews(_chart(curves, by), sizing_mode="stretch_width", height=_TALL_PX))
    charts = pn.FlexBox(*parts[1:], flex_direction="row")
    left_out = paragraph(f"Hours and days with fewer than {_LEAST_A_POINT} images are left out.", "note")
    return pn.Column(parts[0], charts, HtmlPane(left_out), sizing_mode="stretch_width")


def borough_of(site: Site, level: str, place: str) -> str:
    """Borough in which most areas of a place lie; empty where the study has none."""
    areas = site.city.areas
    if "borough" not in areas or level not in areas:
        return ""
    found = areas.loc[areas[level] == place, "borough"].dropna()
    return str(found.mode().iloc[0]) if len(found) else ""


def by_time(counts: npt.NDArray[np.int64], calibration: TwoClass | None, labels: list[object], by: str) -> pd.DataFrame:
    """Calibrated probability that an image shows police, in percent, at every hour or day with enough images.

    Parameters
    ----------
    counts : (times, 2) images that are not positive, positive
    """
    images = counts.sum(axis=1)
    share = counts[:, 1] / np.maximum(images, 1)
    if calibration is not None:
        share = calibration.p_negative + (calibration.p_positive - calibration.p_negative) * share
    made = pd.DataFrame({by: labels, "percent": 100 * share, "images": images})
    made.loc[made["images"] < _LEAST_A_POINT, "percent"] = np.nan
    return made


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

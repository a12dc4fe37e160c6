"""Image coverage: images by hour, day, and weekday, and residents by the images of their area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patrolscope.analysis.estimators.hourly_counts import HOURS
from patrolscope.analysis.estimators.image_coverage import EVERYONE, ImageCoverage
from patrolscope.analysis.estimators.resident_curves import resident_curves, resident_groups
from patrolscope.dashboards.charts.axes import count_axis, share_axis, short_count
from patrolscope.dashboards.charts.matplotlib_renderer import draw_panels
from patrolscope.dashboards.charts.specs import (
    Axis,
    BarChart,
    Curve,
    CurveChart,
    HeatmapChart,
    Specification,
    Style,
    notes_of,
)
from patrolscope.dashboards.charts.style import INK, SHEET_PT

# Colors of Okabe and Ito, each with its own dash.
STYLES = (
    Style("#0072b2", "s", "solid", 1.2),
    Style("#d55e00", "s", "dashed", 1.2),
    Style("#009e73", "s", "dashdot", 1.2),
    Style("#cc79a7", "s", "dotted", 1.2),
    Style("#b8860b", "s", "dashed", 2.0),
)
_NO_IMAGE = 0.3  # position of 0 on a logarithmic axis, half a decade below 1
TITLES = {
    "hour": "Images by hour of the day",
    "day": "Images by day",
    "people_race": "Residents by race and ethnicity",
    "people_borough": "Residents by borough",
}


def coverage_figure(coverage: ImageCoverage, *, simulated: str, part: str = "") -> Figure:
    """Draw images by hour and day, and residents by the images of their area.

    Parameters
    ----------
    coverage : ImageCoverage
        Counts of images and residents.
    simulated : str
        Description of the simulated data; empty for real data.
    part : str
        Images that the counts are restricted to; empty for all.
    """
    summary = coverage.summary
    heading = Specification(
        title="Image coverage",
        subtitle=(
            f"{summary['images']:,} analyzed images of {summary['days']:,} days. "
            f"{summary['areas_never_seen']:,} of {summary['areas']:,} areas have no image."
        ),
        notes=notes_of(simulated, part=part),
    )
    panels = [hour_chart(coverage), day_chart(coverage), resident_chart(coverage, "race")]
    return draw_panels(heading, [*panels, resident_chart(coverage, "borough")], columns=2, width_pt=SHEET_PT)


def hour_chart(coverage: ImageCoverage, *, simulated: str = "", part: str = "") -> BarChart:
    """Specify images by local hour; `part` names the images that the counts are restricted to.

    Parameters
    ----------
    coverage : ImageCoverage
        Counts of images.
    simulated : str
        Note on simulated images, or an empty string.
    part : str
        Name of the images that the counts are restricted to.
    """
    counts = coverage.counts[coverage.counts["by"] == "hour"]
    images = counts["images"].to_numpy()
    return BarChart(
        title=TITLES["hour"],
        subtitle=_subtitle(coverage),
        notes=notes_of(simulated, part=part),
        x=_hour_axis((-0.6, HOURS - 0.4)),
        y=count_axis(images.max(initial=0), "images"),
        positions=counts["value"].to_numpy().astype(np.float64),
        values=images,
        labels=tuple(f"{hour:02}:00 to {hour:02}:59" for hour in range(HOURS)),
    )


def day_chart(coverage: ImageCoverage, *, simulated: str = "", part: str = "") -> BarChart:
    """Specify images by local day; `part` names the images that the counts are restricted to.

    Parameters
    ----------
    coverage : ImageCoverage
        Counts of images.
    simulated : str
        Note on simulated images, or an empty string.
    part : str
        Name of the images that the counts are restricted to.
    """
    counts = coverage.counts[coverage.counts["by"] == "day"]
    days, images = pd.DatetimeIndex(counts["value"]), counts["images"].to_numpy()
    positions = np.asarray((days - days[0]).days, dtype=np.float64)
    last = float(positions[-1])
    steps = [tick for tick in MaxNLocator(4, integer=True).tick_values(0, max(last, 1)) if 0 <= tick <= last]
    ticks = tuple((float(tick), f"{days[0] + pd.Timedelta(days=round(tick)):%-d %b}") for tick in steps)
    return BarChart(
        title=TITLES["day"],
        subtitle=_subtitle(coverage),
        notes=notes_of(simulated, part=part),
        x=Axis(f"day, local time, {days[0]:%Y}", (-0.6, last + 0.6), ticks),
        y=count_axis(images.max(initial=0), "images"),
        positions=positions,
        values=images,
        labels=tuple(f"{day:%A, %-d %B %Y}" for day in days),
    )


def week_chart(
    counts: npt.NDArray[np.int64], weekdays: Sequence[str], *, simulated: str = "", part: str = ""
) -> HeatmapChart:
    """Specify images by weekday and local hour.

    Parameters
    ----------
    counts : ndarray of int64, shape (7, 24)
        Images.
    weekdays : sequence of str
        Names of the rows.
    simulated, part : str
        Text, as for `coverage_figure`.
    """
    return HeatmapChart(
        title="Images by weekday and hour",
        subtitle=f"{counts.sum():,} analyzed images.",
        notes=notes_of(simulated, part=part),
        x=_hour_axis((0, HOURS)),
        rows=tuple(weekdays),
        values=counts,
        unit="images",
    )


def resident_chart(
    coverage: ImageCoverage, by: Literal["race", "borough"], *, simulated: str = "", part: str = ""
) -> CurveChart:
    """Specify the cumulative share of residents by the number of images of their area.

    Parameters
    ----------
    coverage : ImageCoverage
        Counts of images and residents.
    by : {"race", "borough"}
        Grouping of the residents.
    simulated, part : str
        Text, as for `coverage_figure`.
    """
    groups = resident_groups(coverage.areas, by)
    table = resident_curves(coverage.areas, groups)
    high = 1.3 * max(10, int(coverage.areas["images"].max()) if len(coverage.areas) else 0)
    others = [name for name in groups if name != EVERYONE]
    curves = []
    for name, rows in table.groupby("group", sort=False):
        at_most, share = rows["images_at_most"].to_numpy(), rows["share_of_people"].to_numpy()
        style = Style(INK, "s", width=1.8) if name == EVERYONE else STYLES[others.index(str(name)) % len(STYLES)]
        without = share[0] if at_most[0] == 0 else 0.0
        curves.append(
            Curve(
                f"{name}, {without:.1%}",
                np.append(np.where(at_most == 0, _NO_IMAGE, at_most), high),
                np.append(share, 1.0),
                style,
                "steps",
            )
        )
    decades = [10.0**power for power in range(int(np.log10(high)) + 1)]
    ticks = ((_NO_IMAGE, "0"), *((decade, short_count(decade)) for decade in decades))
    return CurveChart(
        title=TITLES[f"people_{by}"],
        subtitle=_subtitle(coverage),
        notes=notes_of(simulated, part=part),
        x=Axis("images in the area, at most", (_NO_IMAGE, high), ticks, "log"),
        y=share_axis("share of residents", percent=True),
        curves=tuple(curves),
        legend="below",
        legend_title="Residents in areas without images",
    )


def _subtitle(coverage: ImageCoverage) -> str:
    return f"{coverage.summary['images']:,} analyzed images."


def _hour_axis(limits: tuple[float, float]) -> Axis:
    return Axis("hour of the day, local time", limits, tuple((float(hour), str(hour)) for hour in range(0, HOURS, 6)))

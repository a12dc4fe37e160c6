"""When and where images were taken, and how many people live where few were, in one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator, PercentFormatter

from patrolscope.analysis.estimators.hourly_counts import HOURS
from patrolscope.analysis.estimators.image_coverage import EVERYONE, ImageCoverage, cumulative
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.dashboards.charts.figures import (
    BLUE,
    INK,
    LINE_PT,
    MUTED,
    PT_PER_INCH,
    SMALL_PT,
    TEXT_PT,
    WIDTH_PT,
    bare,
    heading,
    heading_pt,
    notice_lines,
)

SHEET_PT = 500.0
_PANEL_PT, _GAP_PT, _LEFT_PT, _MIDDLE_PT, _KEY_PT = 150.0, 60.0, 52.0, 56.0, 48.0
# Colors of Okabe and Ito, with lines of their own.
LINES = (("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", "-."), ("#cc79a7", ":"), ("#b8860b", (0, (5, 1, 1, 1, 1, 1))))


def coverage_figure(covered: ImageCoverage, *, simulated: str, part: str = "") -> Figure:
    """Images by hour and by day, and the share of people by the number of images in their area.

    `part` says of which part of the images it is.
    """
    notice = notice_lines(simulated, part=part)
    summary = covered.summary
    subtitle = (
        f"{summary['images']:,} analyzed images of {summary['days']} days\n"
        f"{summary['areas_never_seen']:,} of {summary['areas']:,} areas without any"
    )
    top_pt, bottom_pt = heading_pt(subtitle, SHEET_PT) + 18, 36 + _KEY_PT + LINE_PT * len(notice)
    height_pt = top_pt + 2 * _PANEL_PT + _GAP_PT + bottom_pt
    figure = Figure(figsize=(SHEET_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    heading(figure, "What the images cover", subtitle, notice)
    width_pt = (SHEET_PT - _LEFT_PT - _MIDDLE_PT - 12) / 2
    for number, (title, draw) in enumerate(PANELS.values()):
        row, column = divmod(number, 2)
        left_pt = _LEFT_PT + column * (width_pt + _MIDDLE_PT)
        below_pt = bottom_pt + (1 - row) * (_PANEL_PT + _GAP_PT)
        axes = figure.add_axes((left_pt / SHEET_PT, below_pt / height_pt, width_pt / SHEET_PT, _PANEL_PT / height_pt))
        bare(axes, both=True)
        axes.set_title(title, fontsize=TEXT_PT, color=INK, loc="left", fontweight="bold", pad=7)
        draw(axes, covered)
    return figure


def panel_figure(covered: ImageCoverage, name: str, *, simulated: str, part: str = "") -> Figure:
    """One of `PANELS` alone. `part` says of which part of the images it is."""
    title, draw = PANELS[name]
    figure, axes = _alone(
        f"{title}", f"{covered.summary['images']:,} analyzed images", simulated, part, keyed="people" in name
    )
    bare(axes, both=True)
    draw(axes, covered)
    return figure


def week_figure(counts: npt.NDArray[np.int64], weekdays: Sequence[str], *, simulated: str, part: str = "") -> Figure:
    """Images by weekday and local hour, (7, 24), the darker the more. `part` says of which part of the images it is."""
    figure, axes = _alone("By weekday and hour", f"{counts.sum():,} analyzed images", simulated, part, keyed=False)
    bare(axes)
    axes.grid(visible=False)
    drawn = axes.pcolormesh(
        np.arange(HOURS + 1), np.arange(len(weekdays) + 1), counts, cmap="Blues", vmin=0, linewidth=0
    )
    axes.set_ylim(len(weekdays), 0)
    axes.yaxis.set_major_locator(FixedLocator([place + 0.5 for place in range(len(weekdays))]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda at, _: weekdays[int(at)]))
    axes.xaxis.set_major_locator(MultipleLocator(6))
    axes.set_xlabel("hour, local time", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.03, format=FuncFormatter(_short))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_PT, labelcolor=MUTED, length=0)
    bar.ax.set_title("images", fontsize=SMALL_PT, color=MUTED)
    return figure


def _alone(title: str, subtitle: str, simulated: str, part: str, *, keyed: bool) -> tuple[Figure, Axes]:
    """A figure with one panel; `keyed` leaves room for a key below it."""
    notice = notice_lines(simulated, part=part)
    top_pt, bottom_pt = heading_pt(subtitle, WIDTH_PT) + 18, 36 + _KEY_PT * keyed + LINE_PT * len(notice)
    height_pt = top_pt + _PANEL_PT + bottom_pt
    figure = Figure(figsize=(WIDTH_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    heading(figure, title, subtitle, notice)
    width_pt = WIDTH_PT - _LEFT_PT - 14
    place = (_LEFT_PT / WIDTH_PT, bottom_pt / height_pt, width_pt / WIDTH_PT, _PANEL_PT / height_pt)
    return figure, figure.add_axes(place)


def people_groups(covered: ImageCoverage, by: Literal["race", "borough"]) -> dict[str, pd.Series[float]]:
    """People of each area: everyone, then of each race or in each borough."""
    everyone = covered.areas["persons"]
    if by == "race":
        return {EVERYONE: everyone} | {name: covered.areas[column] for column, name in RACES.items()}
    boroughs = sorted(covered.areas["borough"].dropna().unique())
    return {EVERYONE: everyone} | {
        str(borough): everyone.where(covered.areas["borough"] == borough, 0.0) for borough in boroughs
    }


def _by_hour(axes: Axes, covered: ImageCoverage) -> None:
    counts = covered.counts[covered.counts["by"] == "hour"]
    axes.bar(counts["value"].astype(int), counts["images"], width=0.8, color=BLUE)
    axes.xaxis.set_major_locator(MultipleLocator(6))
    axes.set_xlim(-0.6, 23.6)
    _counted(axes, "hour, local time")


def _by_day(axes: Axes, covered: ImageCoverage) -> None:
    counts = covered.counts[covered.counts["by"] == "day"]
    days = pd.to_datetime(counts["value"])
    since = (days - days.iloc[0]).dt.days
    axes.bar(since, counts["images"], width=0.8, color=BLUE)
    axes.set_xlim(-0.6, float(since.iloc[-1]) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda day, _: f"{days.iloc[0] + pd.Timedelta(days=round(day)):%-d %b}" if day >= 0 else "")
    )
    _counted(axes, f"local day, {days.iloc[0]:%Y}")


def _counted(axes: Axes, label: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_xlabel(label, fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    axes.set_ylabel("images", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)


def _short(count: float, _position: int | None = None) -> str:
    for unit, name in ((1e6, "m"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:g}{name}"
    return f"{count:g}"


def _people(axes: Axes, images: pd.Series[int], groups: dict[str, pd.Series[float]]) -> None:
    """Share of each group in areas with at most so many images; a group without people has no line."""
    most = max(10, int(images.max()))
    # Never seen stands half a decade below one image, as a logarithm has no 0.
    axes.set_xscale("log")
    axes.set_xlim(0.3, most * 1.3)
    others = [name for name in groups if name != EVERYONE]
    styles = {EVERYONE: (INK, "-")} | {name: LINES[number % len(LINES)] for number, name in enumerate(others)}
    for name, persons in groups.items():
        if persons.sum() == 0:
            continue
        at, share = cumulative(images.to_numpy(), persons.to_numpy())
        color, line = styles[name]
        axes.plot(
            np.append(np.where(at == 0, 0.3, at), most * 1.3),
            np.append(share, 1.0),
            drawstyle="steps-post",
            color=color,
            linestyle=line,
            linewidth=1.8 if name == EVERYONE else 1.2,
            label=f"{name}, {100 * share[0] if at[0] == 0 else 0:.1f} %",
        )
    decades = [10.0**power for power in range(int(np.log10(most)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([0.3, *decades]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: "0" if count < 1 else _short(count)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel("images of their area, at most", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    axes.set_ylabel("share of people", fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    axes.legend(
        title="share never seen",
        title_fontsize=SMALL_PT,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(-0.1, -0.2),
        ncols=2,
        fontsize=SMALL_PT,
        frameon=False,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=0.8,
        labelspacing=0.3,
        borderpad=0,
    ).get_title().set_color(MUTED)


# The panels of the figure, by name, in their order.
PANELS: dict[str, tuple[str, Callable[[Axes, ImageCoverage], None]]] = {
    "hour": ("By hour of the day", _by_hour),
    "day": ("By day", _by_day),
    "people_race": (
        "People, by race and ethnicity",
        lambda axes, covered: _people(axes, covered.areas["images"], people_groups(covered, "race")),
    ),
    "people_borough": (
        "People, by borough",
        lambda axes, covered: _people(axes, covered.areas["images"], people_groups(covered, "borough")),
    ),
}

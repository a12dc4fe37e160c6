"""Layout of map figures: title, panels with outlines and scale bar, legends, and sources."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, Locator, NullLocator

from patrolscope.analysis.estimators.raster import Extent
from patrolscope.dashboards.charts.style import INK, MUTED, PT_PER_INCH, WARNING

FEET_PER_MILE = 5280
KM_PER_MILE = 1.609344

WATER = "#e4ebf0"
LAND = "#f6f4ef"
OUTLINE = "#4a525b"

PANEL_PT = 720.0  # width of a panel
TEXT = 1.5  # text is read on a page that shows a map at a quarter of its size

BAR_BOX = (0.01, 0.34, 0.5, 0.17)  # color bar in its legend: left, bottom, width, height


class Outlines(Protocol):
    """Outlines that all panels show."""

    @property
    def extent(self) -> Extent:
        """Extent of the map."""

    @property
    def land(self) -> Path:
        """Outline of the land."""

    @property
    def boroughs(self) -> tuple[Path, ...]:
        """Outlines of the boroughs."""


@dataclass(frozen=True)
class Panel:
    """One map with its title. `draw` fills the axes of the map and of the legend."""

    name: str
    title: str
    subtitle: str
    draw: Callable[[Axes, Axes], None]


def compose(panels: Sequence[Panel], city: Outlines, source: str, *, simulated: str, title: str = "") -> Figure:
    """Draw panels side by side, each with title, map, legend, and source.

    Parameters
    ----------
    panels : sequence of Panel
        Maps from left to right.
    city : Outlines
        Outlines on every map.
    source : str
        Source of the images and boundaries.
    simulated : str
        Notice that data are simulated, at the top; empty for none.
    title : str
        Title above all panels; empty for none.
    """
    extent = city.extent
    map_pt = PANEL_PT - 32
    tall_pt = map_pt * extent.rows / extent.columns
    width_pt = PANEL_PT * len(panels)
    subtitles = [textwrap.wrap(panel.subtitle, int(map_pt / (5.9 * TEXT))) for panel in panels]
    lines = max(map(len, subtitles))
    source_lines = textwrap.wrap(source, int(map_pt / (4.5 * TEXT)))
    head_pt, legend_pt, foot_pt = (44 + 15 * lines) * TEXT, 72 * TEXT, (12 + 11 * len(source_lines)) * TEXT
    notice = textwrap.wrap(f"SIMULATED: {simulated}", int(width_pt / (6.2 * TEXT))) if simulated else []
    notice_pt = (16 * len(notice) + 12) * TEXT if notice else 0.0
    title_pt = 44 * TEXT if title else 6.0
    height_pt = notice_pt + title_pt + head_pt + tall_pt + legend_pt + foot_pt
    figure = Figure(figsize=(width_pt / PT_PER_INCH, height_pt / PT_PER_INCH), facecolor="white")

    def put(x_pt: float, y_pt: float, text: str, size: float, color: str, **style: Any) -> None:
        figure.text(
            x_pt / width_pt, y_pt / height_pt, text, fontsize=size * TEXT, color=color, parse_math=False, **style
        )

    def add_axes(x_pt: float, y_pt: float, wide_pt: float, high_pt: float) -> Axes:
        return figure.add_axes((x_pt / width_pt, y_pt / height_pt, wide_pt / width_pt, high_pt / height_pt))

    if notice:
        band = Rectangle((0, 1 - notice_pt / height_pt), 1, notice_pt / height_pt, color="#fff3d6", linewidth=0)
        figure.add_artist(band)
        put(16, height_pt - notice_pt / 2, "\n".join(notice), 10, WARNING, va="center", fontweight="bold")
    if title:
        put(16, height_pt - notice_pt - 12 * TEXT, title, 21, INK, va="top", fontweight="bold")
    top_pt = height_pt - notice_pt - title_pt
    for number, (panel, subtitle) in enumerate(zip(panels, subtitles, strict=True)):
        left_pt = 16 + PANEL_PT * number
        put(left_pt, top_pt - 4, panel.title, 17, INK, va="top", fontweight="bold")
        put(left_pt, top_pt - 4 - 26 * TEXT, "\n".join(subtitle), 11, MUTED, va="top", linespacing=1.3)
        axes = add_axes(left_pt, foot_pt + legend_pt, map_pt, tall_pt)
        legend = add_axes(left_pt, foot_pt, map_pt, legend_pt)
        _draw_base(axes, city)
        panel.draw(axes, legend)
        put(left_pt, foot_pt - 4 * TEXT, "\n".join(source_lines), 8.2, MUTED, va="top", linespacing=1.25)
    return figure


def _draw_base(axes: Axes, city: Outlines) -> None:
    """Draw water, land, boroughs, scale bar, and north arrow."""
    extent = city.extent
    axes.set_xlim(extent.west_ft, extent.east_ft)
    axes.set_ylim(extent.south_ft, extent.north_ft)
    axes.set_axis_off()
    corner, sides = (
        (extent.west_ft, extent.south_ft),
        (extent.east_ft - extent.west_ft, extent.north_ft - extent.south_ft),
    )
    axes.add_artist(Rectangle(corner, *sides, facecolor=WATER, edgecolor="none", zorder=0))
    axes.add_artist(PathPatch(city.land, facecolor=LAND, edgecolor="none", zorder=1))
    for shape in (city.land, *city.boroughs):
        axes.add_artist(PathPatch(shape, facecolor="none", edgecolor=OUTLINE, linewidth=0.6 * TEXT, zorder=3))
    _scale_bar(axes, extent)


def _scale_bar(axes: Axes, extent: Extent) -> None:
    width_ft = extent.east_ft - extent.west_ft
    miles = max((m for m in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if m * FEET_PER_MILE <= 0.25 * width_ft), default=0.1)
    bar_ft = miles * FEET_PER_MILE
    right_ft, y_ft = extent.east_ft - 0.035 * width_ft, extent.south_ft + 0.035 * width_ft
    thick_ft = 0.006 * width_ft
    for half, color in enumerate((INK, "white")):
        left_ft = right_ft - bar_ft + half * bar_ft / 2
        axes.add_artist(
            Rectangle((left_ft, y_ft), bar_ft / 2, thick_ft, facecolor=color, edgecolor=INK, linewidth=0.7, zorder=5)
        )
    label = f"{miles:g} mile{'s' * (miles != 1)} ({miles * KM_PER_MILE:.2g} km)"
    middle_ft = right_ft - bar_ft / 2
    axes.text(middle_ft, y_ft + 2 * thick_ft, label, fontsize=9.5 * TEXT, color=INK, ha="center", va="bottom", zorder=5)
    axes.annotate(
        "N",
        (middle_ft, y_ft + 0.125 * width_ft),
        xytext=(middle_ft, y_ft + 0.062 * width_ft),
        fontsize=11 * TEXT,
        fontweight="bold",
        color=INK,
        ha="center",
        va="center",
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 1, "shrinkB": 0},
        zorder=5,
    )


def add_color_bar(
    legend: Axes,
    norm: Normalize,
    cmap: Colormap,
    label: str,
    *,
    ticks: Locator,
    extend: str,
    patches: list[Patch] | None = None,
) -> None:
    """Add a color bar and swatches to a legend.

    Parameters
    ----------
    legend : Axes
        Axes of the legend.
    norm, cmap : Normalize, Colormap
        Scale of the bar.
    label : str
        Quantity and unit.
    ticks : Locator
        Positions of the tick marks.
    extend : {"neither", "min", "max", "both"}
        Ends with values beyond the bar.
    patches : list of Patch, optional
        Swatches of colors that are not on the bar.
    """
    legend.set_axis_off()
    bar = legend.inset_axes(BAR_BOX)
    colors = legend.figure.colorbar(
        ScalarMappable(norm, cmap), cax=bar, orientation="horizontal", extend=extend, extendfrac=0.03
    )
    colors.outline.set_visible(False)
    bar.tick_params(labelsize=10 * TEXT, labelcolor=INK, color=MUTED, length=3, width=0.6)
    bar.xaxis.set_major_locator(ticks)
    bar.xaxis.set_minor_locator(NullLocator())
    bar.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))
    add_label(legend, label)
    add_swatches(legend, patches or [])


def add_color_boxes(
    legend: Axes, cmap: ListedColormap, label: str, labels: Mapping[int, str], *, patches: list[Patch]
) -> None:
    """Add one box per color to a legend.

    Parameters
    ----------
    legend : Axes
        Axes of the legend.
    cmap : ListedColormap
        Colors from left to right.
    label : str
        Quantity and unit.
    labels : mapping of int to str
        Labels below boxes, by their index.
    patches : list of Patch
        Swatches of other colors.
    """
    legend.set_axis_off()
    bar = legend.inset_axes(BAR_BOX)
    bar.imshow(np.arange(cmap.N)[None, :], cmap=cmap, aspect="auto", interpolation="nearest")
    for spine in bar.spines.values():
        spine.set_visible(False)
    bar.set_xticks(list(labels), list(labels.values()))
    bar.set_yticks([])
    bar.tick_params(labelsize=10 * TEXT, labelcolor=INK, color=MUTED, length=3, width=0.6)
    add_label(legend, label)
    add_swatches(legend, patches)


def add_label(legend: Axes, label: str) -> None:
    """Add the label of a scale to a legend."""
    legend.text(
        BAR_BOX[0],
        BAR_BOX[1] + BAR_BOX[3] + 0.06,
        label,
        fontsize=10 * TEXT,
        color=INK,
        va="bottom",
        transform=legend.transAxes,
    )


def add_swatches(legend: Axes, patches: list[Patch]) -> None:
    """Add colors with their meaning to a legend."""
    if patches:
        legend.legend(
            handles=patches,
            loc="upper right",
            bbox_to_anchor=(1.0, 0.86),
            frameon=False,
            fontsize=9.5 * TEXT,
            labelcolor=INK,
            handlelength=1.6,
            handleheight=1.0,
            borderpad=0,
            labelspacing=0.5,
        )

"""Maps of the whole city: where images were taken, how many show police, the level by neighborhood.

Rasters come from Datashader, outlines and lettering from matplotlib; north is up, distances are in feet.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator

from patrolscope.analysis.stages.results import FEW_IMAGES, Results
from patrolscope.dashboards.charts.style import INK, MUTED, PT_PER_INCH, WARNING
from patrolscope.dashboards.maps.raster import Counts, Extent, coarsen, smoothed_share
from patrolscope.pipeline.crs import feet_per_unit
from patrolscope.pipeline.geography.catalog import load_catalog, study_entries
from patrolscope.pipeline.geography.layers import AREAS_FILE, PLACES_FILE
from patrolscope.pipeline.study.store import Study

FEET_PER_MILE = 5280
KM_PER_MILE = 1.609344

# Cells along the longer side: about one a pixel of a single map.
CELLS = 1800
# Occupied cells hold at least so many images on average; where images are few, cells are wider.
IMAGES_A_CELL = 4
# 10 images with police at a share of 1 %: the share is then known to about a third.
LEAST_IMAGES = 1000
WIDEST_FT = 2 * FEET_PER_MILE

WATER = "#e4ebf0"
LAND = "#f6f4ef"
EMPTY = "#bdbdb8"  # darker than the pale classes of the level, which it must not be taken for
OUTLINE = "#4a525b"
HATCHING = "/////"
HATCH = "#868c94"  # seen on the palest and on the darkest class

# One panel, in points; a single map is 2000 pixels wide.
PANEL_PT = 720.0
SINGLE_DPI = 200
TRIPLE_DPI = 120
TEXT = 1.5  # lettering is read on a page that shows a map at a quarter of its size

BAR_BOX = (0.01, 0.34, 0.5, 0.17)  # of a color bar in its legend: left, bottom, width, height

# Classes of the level: seven steps of the square root of two, the middle one around 1, and both open ends.
LEVEL_STEP = 0.5
LEVEL_CENTERS = np.arange(-2, 2.01, LEVEL_STEP)  # powers of two, from a quarter to four times
LEVEL_LABELS = {-2.0: "≤ ¼", -1.0: "½", 0.0: "1", 1.0: "2", 2.0: "≥ 4"}


@dataclass(frozen=True)
class City:
    """Outlines of the city in feet of its projection, simplified to what a map shows."""

    extent: Extent
    land: Path
    boroughs: tuple[Path, ...]
    level: gpd.GeoDataFrame  # places with relative (missing: no estimate), few and geometry
    level_of: str  # what a row of `level` is
    few_means: str  # what is hatched: the places with `few`


@dataclass(frozen=True)
class Panel:
    """One map with its lettering. `draw` fills the map's axes and the legend's."""

    name: str
    title: str
    subtitle: str
    draw: Callable[[Axes, Axes], None]


def load_city(study: Study, results: Results, *, cells: int = CELLS) -> City:
    """Outlines of a study's city, for a map of `cells` cells along its longer side.

    The land is that of the boroughs where the study has them, as areas can reach into the water.
    """
    crs = study.settings.city.crs
    areas = in_feet(study.read(AREAS_FILE, geometry=True), crs)
    places = in_feet(study.read(PLACES_FILE, geometry=True), crs)
    level, level_of = _level_places(results, areas, places)
    return outline_city(
        areas,
        places[places["level"] == "borough"],
        level,
        level_of=level_of,
        few_means=f"under {FEW_IMAGES} images, or none positive",
        cells=cells,
    )


def outline_city(
    areas: gpd.GeoDataFrame,
    boroughs: gpd.GeoDataFrame,
    level: gpd.GeoDataFrame,
    *,
    level_of: str,
    few_means: str,
    cells: int = CELLS,
) -> City:
    """City of shapes in feet, simplified to what a map of `cells` cells along its longer side shows.

    Parameters
    ----------
    areas : what the map must hold; the land, too, where there are no boroughs
    level, level_of, few_means : as in `City`
    """
    extent = Extent.around(tuple(areas.total_bounds), cells=cells)
    ground = boroughs if len(boroughs) else areas
    land = shapely.union_all(shapely.make_valid(ground.geometry.to_numpy()))
    return City(
        extent=extent,
        land=_path(_simple(land, extent)),
        boroughs=tuple(_path(_simple(shape, extent)) for shape in boroughs.geometry),
        level=level.set_geometry(level.geometry.map(lambda shape: _simple(shape, extent))),
        level_of=level_of,
        few_means=few_means,
    )


def in_feet(frame: pd.DataFrame, crs: str) -> gpd.GeoDataFrame:
    """Shapes in feet of the projected system `crs`."""
    projected = gpd.GeoDataFrame(frame).to_crs(crs)
    factor = feet_per_unit(crs)
    return projected.set_geometry(projected.geometry.affine_transform([factor, 0, 0, factor, 0, 0]))


def _level_places(results: Results, areas: gpd.GeoDataFrame, places: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, str]:
    """Shapes with images and relative level: neighborhoods, or the areas where the study has none."""
    if not results.has("neighborhood"):
        found = results.areas.set_index("area")[["images", "relative_to_average"]]
        found = found.assign(hollow=results.areas.set_index("area")["positives"] == 0)
        return _joined(areas[["area", "geometry"]], "area", found), "area"
    found = results.groups("neighborhood").set_index("key")[["images", "estimate", "hollow"]]
    shapes = places.loc[places["level"] == "neighborhood", ["place", "geometry"]]
    if shapes.empty:
        shapes = areas[["neighborhood", "geometry"]].dissolve("neighborhood").reset_index(names="place")
    return _joined(shapes, "place", found), "neighborhood"


def _joined(shapes: gpd.GeoDataFrame, key: str, found: pd.DataFrame) -> gpd.GeoDataFrame:
    columns = found.set_axis(["images", "relative", "hollow"], axis=1).reindex(shapes[key])
    few = (columns["images"] < FEW_IMAGES) | (columns["hollow"] == True)  # noqa: E712 - missing is not true
    return shapes.join(columns.assign(few=few).fillna({"images": 0}).set_index(shapes.index))


def _simple(shape: shapely.Geometry, extent: Extent) -> shapely.Geometry:
    return shapely.simplify(shape, extent.cell_ft / 3)


def _path(shape: shapely.Geometry) -> Path:
    """Outline of a polygon or of several, holes included."""
    polygons = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon" and not part.is_empty]
    rings = [
        Path(np.asarray(ring.coords), closed=True) for part in polygons for ring in (part.exterior, *part.interiors)
    ]
    return Path.make_compound_path(*rings)


def draw_maps(study: Study, city: City, counts: Counts) -> dict[str, tuple[Figure, int]]:
    """The three maps together and each alone: name -> figure and its dots per inch."""
    settings = study.settings
    source = source_line(study, int(counts.images.sum(dtype=np.int64)))
    panels = [density_panel(city, counts), share_panel(city, counts), level_panel(city)]
    maps = {
        f"map_{panel.name}": (_compose([panel], city, source, simulated=settings.simulated), SINGLE_DPI)
        for panel in panels
    }
    title = f"Police vehicles in dashcam images of {settings.city.name}"
    together = _compose(panels, city, source, simulated=settings.simulated, title=title)
    return {"map": (together, TRIPLE_DPI), **maps}


def draw_level(city: City, source: str, *, simulated: str) -> tuple[Figure, int]:
    """The map of levels alone, and its dots per inch."""
    return _compose([level_panel(city)], city, source, simulated=simulated), SINGLE_DPI


def source_line(study: Study, images: int) -> str:
    """Where the images and the boundaries come from."""
    settings = study.settings
    entries = {**load_catalog(), **study_entries(study)}
    layers = [settings.layers.areas, settings.layers.neighborhoods, settings.layers.boroughs]
    agencies = [entries[layer.entry].agency for layer in layers if layer is not None and layer.entry in entries]
    first = settings.estimate.first_day
    boundaries = f" Boundaries: {'; '.join(dict.fromkeys(agencies))}." if agencies else ""
    return (
        f"Images: {settings.name}, {images:,} analyzed, from {first.day} {first:%B %Y} on."
        f"{boundaries} Projection {settings.city.crs}."
    )


# The panels.


def density_panel(city: City, counts: Counts) -> Panel:
    """Number of images in each cell, on a logarithmic scale."""
    factor = 1
    while factor < 16 and _mean_occupied(coarsen(counts.images, factor)) < IMAGES_A_CELL:
        factor *= 2
    cell_ft = city.extent.cell_ft * factor

    def draw(axes: Axes, legend: Axes) -> None:
        grid = coarsen(counts.images, factor).astype(np.float64)
        grid[grid == 0] = np.nan
        high = max(10.0, float(np.nanpercentile(grid, 99.9))) if np.isfinite(grid).any() else 10.0
        norm, cmap = LogNorm(1, high, clip=True), _part(colormaps["YlGnBu"], 0.32, 1.0)
        _image(axes, city.extent, cmap(norm(grid), bytes=True), np.isfinite(grid), cell_ft)
        label = f"images in a cell of {cell_ft:,.0f} by {cell_ft:,.0f} ft (log scale)"
        ticks = [step * 10**power for power in range(8) for step in (1, 3) if step * 10**power <= high]
        _bar(legend, norm, cmap, label, ticks=FixedLocator(ticks), extend="max")

    subtitle = "Number of analyzed images. They come from rides, so coverage is uneven."
    return Panel("density", "Where images were taken", subtitle, draw)


def share_panel(city: City, counts: Counts) -> Panel:
    """Share of images that are classified positive, over the smallest surroundings with enough images."""
    # Two by two cells together: what is smoothed needs no finer grain.
    cell_ft = 2 * city.extent.cell_ft
    coarse = Counts(coarsen(counts.images, 2), coarsen(counts.positives, 2))
    percent = 100 * smoothed_share(coarse, least_images=LEAST_IMAGES, widest_cells=int(WIDEST_FT / cell_ft))
    known = np.isfinite(percent)

    def draw(axes: Axes, legend: Axes) -> None:
        axes.add_artist(PathPatch(city.land, facecolor=EMPTY, edgecolor="none", zorder=1))
        patches = [Patch(facecolor=EMPTY, label=f"under {LEAST_IMAGES:,} images within a mile")]
        if not known.any():
            legend.set_axis_off()
            _label(legend, "Too few images for a share anywhere")
            _swatches(legend, patches)
            return
        high = max(1e-3, float(np.percentile(percent[known], 99.7)))
        norm, cmap = Normalize(0, high, clip=True), _part(colormaps["YlOrRd"], 0.02, 0.98)
        picture = _image(axes, city.extent, cmap(norm(percent), bytes=True), known, cell_ft)
        picture.set_clip_path(city.land, axes.transData)
        label = "% of images with a detected police vehicle"
        _bar(legend, norm, cmap, label, ticks=MaxNLocator(6), patches=patches, extend="max")

    subtitle = (
        f"Images above the detector's threshold, before calibration. Each point shows the smallest square around it "
        f"that holds {LEAST_IMAGES:,} images."
    )
    return Panel("share", "Share of images with a police vehicle", subtitle, draw)


def level_panel(city: City) -> Panel:
    """Calibrated level of each neighborhood relative to the average, in steps of the square root of two."""

    def draw(axes: Axes, legend: Axes) -> None:
        edges = 2.0 ** np.concatenate([LEVEL_CENTERS - LEVEL_STEP / 2, LEVEL_CENTERS[-1:] + LEVEL_STEP / 2])
        cmap = ListedColormap(colormaps["PuOr_r"](np.linspace(0.04, 0.96, len(LEVEL_CENTERS))))
        norm = BoundaryNorm(edges, cmap.N, clip=True)
        places = city.level[~(city.level.geometry.is_empty | city.level.geometry.isna())]
        known = places["relative"].notna()
        few = known & places["few"]
        _shapes(axes, places.loc[~known, "geometry"], EMPTY)
        _shapes(axes, places.loc[known, "geometry"], cmap(norm(places.loc[known, "relative"].to_numpy())))
        patches = [Patch(facecolor=EMPTY, label="no images, or nobody lives there")]
        if few.any():
            _shapes(axes, places.loc[few, "geometry"], "none", edge=HATCH, hatch=HATCHING)
            hatched = Patch(facecolor="white", edgecolor=HATCH, linewidth=0.4, hatch=HATCHING, label=city.few_means)
            patches.insert(0, hatched)
        _classes(legend, cmap, patches=patches)

    subtitle = (
        f"Calibrated level of each {city.level_of} relative to the average over residents: "
        "how often an image there shows a police vehicle."
    )
    return Panel("level", f"Level by {city.level_of}", subtitle, draw)


def _mean_occupied(grid: npt.NDArray[np.uint32]) -> float:
    occupied = np.count_nonzero(grid)
    return float(grid.sum(dtype=np.int64)) / occupied if occupied else np.inf


def _part(cmap: Colormap, low: float, high: float) -> ListedColormap:
    return ListedColormap(cmap(np.linspace(low, high, 256)))


def _image(
    axes: Axes, extent: Extent, colors: npt.NDArray[np.uint8], shown: npt.NDArray[np.bool_], cell_ft: float
) -> AxesImage:
    """Draw one colored cell a value; blocks at the northern and eastern edge may reach over the extent."""
    colors[..., 3] = 255 * shown
    rows, columns = shown.shape
    east_ft, north_ft = extent.west_ft + columns * cell_ft, extent.south_ft + rows * cell_ft
    return axes.imshow(
        colors,
        extent=(extent.west_ft, east_ft, extent.south_ft, north_ft),
        origin="lower",
        interpolation="antialiased",
        interpolation_stage="rgba",
        zorder=2,
    )


def _shapes(
    axes: Axes, shapes: Iterable[shapely.Geometry], colors: Any, *, edge: str = OUTLINE, hatch: str | None = None
) -> None:
    drawn = PathCollection(
        [_path(shape) for shape in shapes], facecolors=colors, edgecolors=edge, linewidths=0.15, hatch=hatch, zorder=2
    )
    axes.add_collection(drawn, autolim=False)


# Composition.


def _compose(panels: list[Panel], city: City, source: str, *, simulated: str, title: str = "") -> Figure:
    """Panels side by side, each with title, map, legend and source; what is simulated stands on top."""
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

    def put(x_pt: float, y_pt: float, words: str, size: float, color: str, **style: Any) -> None:
        figure.text(
            x_pt / width_pt, y_pt / height_pt, words, fontsize=size * TEXT, color=color, parse_math=False, **style
        )

    def place(x_pt: float, y_pt: float, wide_pt: float, high_pt: float) -> Axes:
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
        axes = place(left_pt, foot_pt + legend_pt, map_pt, tall_pt)
        legend = place(left_pt, foot_pt, map_pt, legend_pt)
        _ground(axes, city)
        panel.draw(axes, legend)
        put(left_pt, foot_pt - 4 * TEXT, "\n".join(source_lines), 8.2, MUTED, va="top", linespacing=1.25)
    return figure


def _ground(axes: Axes, city: City) -> None:
    """Water, land, boroughs, scale bar and north arrow."""
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
    words = f"{miles:g} mile{'s' * (miles != 1)} ({miles * KM_PER_MILE:.2g} km)"
    middle_ft = right_ft - bar_ft / 2
    axes.text(middle_ft, y_ft + 2 * thick_ft, words, fontsize=9.5 * TEXT, color=INK, ha="center", va="bottom", zorder=5)
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


def _bar(
    legend: Axes,
    norm: Normalize,
    cmap: Colormap,
    label: str,
    *,
    ticks: Locator,
    extend: str,
    patches: list[Patch] | None = None,
) -> None:
    """Color bar with its label, and swatches for what the bar does not show."""
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
    _label(legend, label)
    _swatches(legend, patches or [])


def _classes(legend: Axes, cmap: ListedColormap, *, patches: list[Patch]) -> None:
    """One box a class of the level, labeled at its middle."""
    legend.set_axis_off()
    bar = legend.inset_axes(BAR_BOX)
    bar.imshow(np.arange(cmap.N)[None, :], cmap=cmap, aspect="auto", interpolation="nearest")
    for spine in bar.spines.values():
        spine.set_visible(False)
    positions = [int(np.flatnonzero(center == LEVEL_CENTERS)[0]) for center in LEVEL_LABELS]
    bar.set_xticks(positions, list(LEVEL_LABELS.values()))
    bar.set_yticks([])
    bar.tick_params(labelsize=10 * TEXT, labelcolor=INK, color=MUTED, length=3, width=0.6)
    _label(legend, "times the average; each box is a factor of 1.4")
    _swatches(legend, patches)


def _label(legend: Axes, label: str) -> None:
    legend.text(
        BAR_BOX[0],
        BAR_BOX[1] + BAR_BOX[3] + 0.06,
        label,
        fontsize=10 * TEXT,
        color=INK,
        va="bottom",
        transform=legend.transAxes,
    )


def _swatches(legend: Axes, patches: list[Patch]) -> None:
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

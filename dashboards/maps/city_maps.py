"""Maps of the whole city: number of images, detection rate, and relative deployment rate by neighborhood.

Datashader counts the images, Matplotlib draws outlines and text. North is up, distances are in feet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, MaxNLocator

from patrolscope.analysis.estimators.raster import Counts, Extent, coarsen, in_feet, smoothed_share
from patrolscope.analysis.stages.results import FEW_IMAGES, Results
from patrolscope.dashboards.maps.map_layout import (
    FEET_PER_MILE,
    OUTLINE,
    Panel,
    add_color_bar,
    add_color_boxes,
    add_label,
    add_swatches,
    compose,
)
from patrolscope.pipeline.geography.catalog import load_catalog, study_entries
from patrolscope.pipeline.geography.layers import AREAS_FILE, BOUNDARIES_FILE
from patrolscope.pipeline.study.store import Study

CELLS = 1800  # along the longer side: about one per pixel of a single map
IMAGES_PER_CELL = 4  # mean over occupied cells; with fewer images, cells are wider
# With a detection rate of 1%, 1,000 images hold 10 positive ones: a relative standard error of about a third.
LEAST_IMAGES = 1000
WIDEST_FT = 2 * FEET_PER_MILE

EMPTY = "#bdbdb8"  # darker than the pale classes of the rate
HATCHING = "/////"
HATCH = "#868c94"  # visible on the palest and on the darkest class

SINGLE_DPI = 200  # a single map is 2,000 pixels wide
TRIPLE_DPI = 120

# Classes of the relative rate: nine, each a factor of the square root of two; the middle one contains 1.
RATE_STEP = 0.5
RATE_CENTERS = np.arange(-2, 2.01, RATE_STEP)  # powers of two, from 1/4 to 4
RATE_LABELS = {-2.0: "≤ ¼", -1.0: "½", 0.0: "1", 1.0: "2", 2.0: "≥ 4"}


@dataclass(frozen=True)
class CityOutlines:
    """Outlines of the city in feet of its projection, simplified to the resolution of a map.

    Attributes
    ----------
    regions : GeoDataFrame
        Columns relative (relative rate; missing without an estimate), few (hatched), and geometry.
    geography : str
        Display name of one region.
    few_means : str
        Meaning of the hatching.
    """

    extent: Extent
    land: Path
    boroughs: tuple[Path, ...]
    regions: gpd.GeoDataFrame
    geography: str
    few_means: str


def load_city(study: Study, results: Results, *, cells: int = CELLS) -> CityOutlines:
    """Read the outlines of a study's city, for a map of `cells` cells along its longer side.

    Land is the union of the boroughs where the study has them, since areas can extend into the water.

    Parameters
    ----------
    study : Study
        Study with boundaries.
    results : Results
        Results, for the areas to draw.
    cells : int
        Cells along the longer side of the map.
    """
    crs = study.settings.city.crs
    areas = in_feet(study.read(AREAS_FILE, geometry=True), crs)
    boundaries = in_feet(study.read(BOUNDARIES_FILE, geometry=True), crs)
    regions, geography = _regions(results, areas, boundaries)
    return outline_city(
        areas,
        boundaries[boundaries["geography"] == "borough"],
        regions,
        geography=geography,
        few_means=f"under {FEW_IMAGES} images, or none positive",
        cells=cells,
    )


def outline_city(
    areas: gpd.GeoDataFrame,
    boroughs: gpd.GeoDataFrame,
    regions: gpd.GeoDataFrame,
    *,
    geography: str,
    few_means: str,
    cells: int = CELLS,
) -> CityOutlines:
    """Simplify shapes to the resolution of a map.

    Parameters
    ----------
    areas : GeoDataFrame
        Shapes in feet that the map must contain; also the land if there are no boroughs.
    boroughs : GeoDataFrame
        Shapes in feet; may be empty.
    regions, geography, few_means
        See `CityOutlines`.
    cells : int
        Cells along the longer side of the map.
    """
    extent = Extent.around(tuple(areas.total_bounds), cells=cells)
    source = boroughs if len(boroughs) else areas
    land = shapely.union_all(shapely.make_valid(source.geometry.to_numpy()))
    return CityOutlines(
        extent=extent,
        land=_path(_simple(land, extent)),
        boroughs=tuple(_path(_simple(shape, extent)) for shape in boroughs.geometry),
        regions=regions.set_geometry(regions.geometry.map(lambda shape: _simple(shape, extent))),
        geography=geography,
        few_means=few_means,
    )


def _regions(results: Results, areas: gpd.GeoDataFrame, boundaries: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, str]:
    """Return shapes with images and relative rate of neighborhoods, or of areas if the study has none."""
    if not results.has("neighborhood"):
        rows = results.areas.set_index("area")[["images", "relative_to_average"]]
        rows = rows.assign(none_positive=results.areas.set_index("area")["positives"] == 0)
        return _joined(areas[["area", "geometry"]], "area", rows), "area"
    rows = results.groups("neighborhood").set_index("key")[["images", "estimate", "none_positive"]]
    shapes = boundaries.loc[boundaries["geography"] == "neighborhood", ["region", "geometry"]]
    if shapes.empty:
        shapes = areas[["neighborhood", "geometry"]].dissolve("neighborhood").reset_index(names="region")
    return _joined(shapes, "region", rows), "neighborhood"


def _joined(shapes: gpd.GeoDataFrame, key: str, rows: pd.DataFrame) -> gpd.GeoDataFrame:
    columns = rows.set_axis(["images", "relative", "none_positive"], axis=1).reindex(shapes[key])
    few = (columns["images"] < FEW_IMAGES) | (columns["none_positive"] == True)  # noqa: E712 - missing is not true
    return shapes.join(columns.assign(few=few).fillna({"images": 0}).set_index(shapes.index))


def _simple(shape: shapely.Geometry, extent: Extent) -> shapely.Geometry:
    return shapely.simplify(shape, extent.cell_ft / 3)


def _path(shape: shapely.Geometry) -> Path:
    """Convert polygons with their holes to a path."""
    polygons = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon" and not part.is_empty]
    rings = [
        Path(np.asarray(ring.coords), closed=True) for part in polygons for ring in (part.exterior, *part.interiors)
    ]
    return Path.make_compound_path(*rings)


def draw_maps(study: Study, city: CityOutlines, counts: Counts) -> dict[str, tuple[Figure, int]]:
    """Draw the three maps side by side and separately.

    Parameters
    ----------
    study : Study
        Study with its settings.
    city : CityOutlines
        Outlines of the study's city.
    counts : Counts
        Images and positive images per cell of the outlines' extent.

    Returns
    -------
    dict of str to tuple
        Figure and its resolution in dots per inch, by file name without its extension.
    """
    settings = study.settings
    source = source_line(study, int(counts.images.sum(dtype=np.int64)))
    panels = [density_panel(city, counts), detection_rate_panel(city, counts), rate_panel(city)]
    maps = {
        f"map_{panel.name}": (compose([panel], city, source, simulated=settings.simulated), SINGLE_DPI)
        for panel in panels
    }
    title = f"Police vehicles in dashcam images of {settings.city.name}"
    together = compose(panels, city, source, simulated=settings.simulated, title=title)
    return {"map": (together, TRIPLE_DPI), **maps}


def draw_rates(city: CityOutlines, source: str, *, simulated: str) -> tuple[Figure, int]:
    """Draw the map of relative rates; return it with its resolution in dots per inch.

    Parameters
    ----------
    city : CityOutlines
        Outlines with the rates of the regions.
    source : str
        Source of the images and boundaries.
    simulated : str
        Notice that data are simulated, or an empty string.
    """
    return compose([rate_panel(city)], city, source, simulated=simulated), SINGLE_DPI


def source_line(study: Study, images: int) -> str:
    """Return the source of the images and boundaries as a sentence."""
    settings = study.settings
    entries = {**load_catalog(), **study_entries(study)}
    layers = [settings.layers.areas, settings.layers.neighborhoods, settings.layers.boroughs]
    agencies = [entries[layer.entry].agency for layer in layers if layer is not None and layer.entry in entries]
    first = settings.estimate.first_day
    boundaries = f" Boundaries: {'; '.join(dict.fromkeys(agencies))}." if agencies else ""
    return (
        f"Images: {settings.name}, {images:,} analyzed, from {first:%B} {first.day}, {first.year} onward."
        f"{boundaries} Projection {settings.city.crs}."
    )


# Panels.


def density_panel(city: CityOutlines, counts: Counts) -> Panel:
    """Return the map of the number of images per cell, on a logarithmic scale."""
    factor = 1
    while factor < 16 and _mean_occupied(coarsen(counts.images, factor)) < IMAGES_PER_CELL:
        factor *= 2
    cell_ft = city.extent.cell_ft * factor

    def draw(axes: Axes, legend: Axes) -> None:
        grid = coarsen(counts.images, factor).astype(np.float64)
        grid[grid == 0] = np.nan
        high = max(10.0, float(np.nanpercentile(grid, 99.9))) if np.isfinite(grid).any() else 10.0
        norm, cmap = LogNorm(1, high, clip=True), _part(colormaps["YlGnBu"], 0.32, 1.0)
        _image(axes, city.extent, cmap(norm(grid), bytes=True), np.isfinite(grid), cell_ft)
        label = f"images per cell of {cell_ft:,.0f} by {cell_ft:,.0f} ft (log scale)"
        ticks = [step * 10**power for power in range(8) for step in (1, 3) if step * 10**power <= high]
        add_color_bar(legend, norm, cmap, label, ticks=FixedLocator(ticks), extend="max")

    subtitle = "Analyzed images per grid cell. Images come from rides, so image coverage is uneven."
    return Panel("density", "Number of images", subtitle, draw)


def detection_rate_panel(city: CityOutlines, counts: Counts) -> Panel:
    """Return the map of the detection rate in the smallest square around each point with enough images."""
    # Blocks of 2 x 2 cells are fine enough for a smoothed rate.
    cell_ft = 2 * city.extent.cell_ft
    coarse = Counts(coarsen(counts.images, 2), coarsen(counts.positives, 2))
    percent = 100 * smoothed_share(coarse, least_images=LEAST_IMAGES, widest_cells=int(WIDEST_FT / cell_ft))
    known = np.isfinite(percent)

    def draw(axes: Axes, legend: Axes) -> None:
        axes.add_artist(PathPatch(city.land, facecolor=EMPTY, edgecolor="none", zorder=1))
        patches = [Patch(facecolor=EMPTY, label=f"under {LEAST_IMAGES:,} images within a mile")]
        if not known.any():
            legend.set_axis_off()
            add_label(legend, "Too few images for a detection rate anywhere")
            add_swatches(legend, patches)
            return
        high = max(1e-3, float(np.percentile(percent[known], 99.7)))
        norm, cmap = Normalize(0, high, clip=True), _part(colormaps["YlOrRd"], 0.02, 0.98)
        picture = _image(axes, city.extent, cmap(norm(percent), bytes=True), known, cell_ft)
        picture.set_clip_path(city.land, axes.transData)
        label = "% of images with a detected police vehicle"
        add_color_bar(legend, norm, cmap, label, ticks=MaxNLocator(6), patches=patches, extend="max")

    subtitle = (
        f"Share of images above the detector's threshold, uncalibrated. Each point shows the smallest square around it "
        f"that contains {LEAST_IMAGES:,} images."
    )
    return Panel("share", "Detection rate", subtitle, draw)


def rate_panel(city: CityOutlines) -> Panel:
    """Return the map of each region's deployment rate relative to the city average."""

    def draw(axes: Axes, legend: Axes) -> None:
        edges = 2.0 ** np.concatenate([RATE_CENTERS - RATE_STEP / 2, RATE_CENTERS[-1:] + RATE_STEP / 2])
        cmap = ListedColormap(colormaps["PuOr_r"](np.linspace(0.04, 0.96, len(RATE_CENTERS))))
        norm = BoundaryNorm(edges, cmap.N, clip=True)
        regions = city.regions[~(city.regions.geometry.is_empty | city.regions.geometry.isna())]
        known = regions["relative"].notna()
        few = known & regions["few"]
        _shapes(axes, regions.loc[~known, "geometry"], EMPTY)
        _shapes(axes, regions.loc[known, "geometry"], cmap(norm(regions.loc[known, "relative"].to_numpy())))
        patches = [Patch(facecolor=EMPTY, label="no images, or no residents")]
        if few.any():
            _shapes(axes, regions.loc[few, "geometry"], "none", edge=HATCH, hatch=HATCHING)
            hatched = Patch(facecolor="white", edgecolor=HATCH, linewidth=0.4, hatch=HATCHING, label=city.few_means)
            patches.insert(0, hatched)
        labels = {int(np.flatnonzero(center == RATE_CENTERS)[0]): text for center, text in RATE_LABELS.items()}
        add_color_boxes(
            legend, cmap, "relative rate (city average = 1); each box is a factor of 1.4", labels, patches=patches
        )

    subtitle = (
        f"Calibrated probability that an image shows a police vehicle, by {city.geography}, divided by the city "
        "average, which is weighted by residents."
    )
    return Panel("level", f"Relative deployment rate by {city.geography}", subtitle, draw)


def _mean_occupied(grid: npt.NDArray[np.uint32]) -> float:
    occupied = np.count_nonzero(grid)
    return float(grid.sum(dtype=np.int64)) / occupied if occupied else np.inf


def _part(cmap: Colormap, low: float, high: float) -> ListedColormap:
    return ListedColormap(cmap(np.linspace(low, high, 256)))


def _image(
    axes: Axes, extent: Extent, colors: npt.NDArray[np.uint8], shown: npt.NDArray[np.bool_], cell_ft: float
) -> AxesImage:
    """Draw one cell per value. Blocks at the northern and eastern edge may exceed the extent."""
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

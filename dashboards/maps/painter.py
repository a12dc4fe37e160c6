"""Map images: a measure, outlines, and hatching, painted in one pass over a window.

The same image serves the browser, the static pages, and posters. Color scales are those of the whole study, so that a
color has one meaning in every view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from scipy import ndimage

from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.raster import Counts, smoothed_share
from patrolscope.analysis.stages.results import FEW_IMAGES, Results
from patrolscope.dashboards.charts.style import INK
from patrolscope.dashboards.maps.city import OUTSIDE, City
from patrolscope.dashboards.maps.city_maps import EMPTY, HATCH, LEAST_IMAGES, RATE_CENTERS, RATE_STEP, WIDEST_FT
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.map_layout import LAND, OUTLINE, WATER
from patrolscope.dashboards.maps.points import Points, Window, area_counts
from patrolscope.dashboards.maps.region_rates import region_rates, with_bootstrap

Measure = Literal["images", "detection-rate", "deployment-rate"]
MEASURES: dict[Measure, str] = {
    "images": "Images",
    "detection-rate": "Detection rate",
    "deployment-rate": "Deployment rate",
}
# Images are counted in squares of this side, about the width of a street, or in pixels if those are wider.
STREET_FT = 100.0
# In narrower pixels, single images are dots.
DOTS_BELOW_FT = 4.0
# Side of the cells of the smoothed detection rate. New York has about 360,000 of them, which take 0.1 s.
CELL_FT = 250.0
_SCALE_COLUMNS = 1_000  # columns of the image that the color scales are derived from
_LEAST_PX = 12  # outlines of regions with fewer pixels across would hide the regions
_COLUMNS_PER_STROKE = 2_500  # columns of an image per pixel of line width
SELECTED = "#d6006c"  # outline of the selected region; in none of the three scales
THIN = "#8e9398"  # outlines inside a borough

RGB = npt.NDArray[np.uint8]
Picture = npt.NDArray[np.uint8]  # (rows, columns), indices into `PALETTE`
Mask = npt.NDArray[np.bool_]

_STEPS = 100  # colors of a continuous scale


def _table(name: str, low: float, high: float, steps: int = _STEPS) -> RGB:
    return (255 * colormaps[name](np.linspace(low, high, steps))[:, :3]).round().astype(np.uint8)


def _rgb(color: str) -> RGB:
    return (255 * np.array(to_rgb(color))).round().astype(np.uint8)


# The scales of the report's maps; all three are safe for color-blind readers.
TABLES: dict[Measure, RGB] = {
    "images": _table("YlGnBu", 0.32, 1.0),
    "detection-rate": _table("YlOrRd", 0.02, 0.98),
    "deployment-rate": _table("PuOr_r", 0.04, 0.96, len(RATE_CENTERS)),
}
_FIRST = {"images": 0, "detection-rate": _STEPS, "deployment-rate": 2 * _STEPS}  # index of a scale's first color
_PLAIN = {
    color: 2 * _STEPS + len(RATE_CENTERS) + index
    for index, color in enumerate((WATER, LAND, EMPTY, HATCH, OUTLINE, INK, SELECTED, THIN))
}
# All colors of all maps: an image of palette indices has a quarter of the bytes of one of colors.
PALETTE: RGB = np.concatenate([*TABLES.values(), np.stack([_rgb(color) for color in _PLAIN])])
RATE_EDGES = 2.0 ** (RATE_CENTERS[:-1] + RATE_STEP / 2)


@dataclass(frozen=True)
class View:
    """Contents of a map."""

    window: Window
    measure: Measure = "images"
    geography: str = "neighborhood"
    keep: Filter = field(default_factory=Filter)
    selected: str = ""  # region of the geography


@dataclass(frozen=True)
class Scales:
    """Upper ends of the color scales, from all images of the city."""

    images: float  # per square of `STREET_FT`; the scale starts at 1
    detection_rate: float


@dataclass(frozen=True, eq=False)
class Painter:
    """Painter of a study's maps.

    Attributes
    ----------
    stored : Results, optional
        Two-class estimates of the study, with their bootstrap intervals.
    """

    points: Points
    city: City
    calibration: TwoClass | None
    stored: Results | None = None

    def whole(self, columns: int, rows: int | None = None, margin: float = 0.02) -> Window:
        """Return a window of square pixels around the whole city.

        Parameters
        ----------
        columns : int
            Width in pixels.
        rows : int, optional
            Height in pixels; by default that of the city at this width.
        margin : float, default 0.02
            Share of the size that is left free on each side.
        """
        wide, tall = self.city.size_ft
        rows = rows or max(1, round(columns * tall / wide))
        pixel_ft = (1 + 2 * margin) * max(wide / columns, tall / rows)
        return window_around(wide / 2, tall / 2, pixel_ft, columns, rows)

    @cached_property
    def scales(self) -> Scales:
        """Color scales of the study."""
        window = self.whole(_SCALE_COLUMNS)
        density = _density(self.points.raster(window, Filter())[0], window)
        rate = _detection_rates(self, Filter())
        known = rate[np.isfinite(rate)]
        return Scales(
            images=max(10.0, float(np.percentile(density[density > 0], 99.9))) if density.any() else 10.0,
            detection_rate=max(1e-5, float(np.percentile(known, 99.7))) if len(known) else 0.01,
        )

    def rates(self, geography: str, keep: Filter) -> pd.DataFrame:
        """Return `region_rates` of a geography under a filter, with bootstrap intervals for all images."""
        return _rates(self, geography, keep)

    def paint(self, view: View) -> Picture:
        """Paint a view, southernmost row first. Images of a screen's size are cached."""
        return (_cached_paint if view.window.is_screen else _paint)(self, view)


def window_around(x_ft: float, y_ft: float, pixel_ft: float, columns: int, rows: int) -> Window:
    """Return a window of square pixels centered on a location.

    Parameters
    ----------
    x_ft, y_ft : float
        Center in feet from the city's southwestern corner.
    pixel_ft : float
        Side of a pixel.
    columns, rows : int
        Size in pixels.
    """
    wide, tall = columns * pixel_ft / 2, rows * pixel_ft / 2
    return Window(x_ft - wide, y_ft - tall, x_ft + wide, y_ft + tall, columns, rows)


@lru_cache(maxsize=128)
def _rates(painter: Painter, geography: str, keep: Filter) -> pd.DataFrame:
    percent = painter.city.study.settings.estimate.interval_percent
    counts = area_counts(painter.points, keep)
    effect = painter.stored.design_effect if painter.stored is not None else None
    rates = region_rates(painter.city, geography, counts, painter.calibration, percent=percent, design_effect=effect)
    if painter.stored is None or not keep.is_all:
        return rates
    return with_bootstrap(rates, geography, painter.stored, percent=percent)


def _paint(painter: Painter, view: View) -> Picture:
    city, window = painter.city, view.window
    picture = np.full((window.rows, window.columns), _PLAIN[WATER], np.uint8)
    land = city.region_grid(city.land.name, window) != OUTSIDE
    picture[land] = _PLAIN[LAND]
    regions = city.region_grid(view.geography, window)
    if view.measure == "deployment-rate":
        _fill_regions(picture, np.where(land, regions, OUTSIDE), painter.rates(view.geography, view.keep), window)
    else:
        _fill_points(picture, painter, view, land)
    _outline(picture, city, view, regions, land)
    picture.setflags(write=False)
    return picture


_cached_paint = lru_cache(maxsize=48)(_paint)  # about 0.6 MB each


def _fill_regions(picture: Picture, regions: npt.NDArray[np.int32], rates: pd.DataFrame, window: Window) -> None:
    relative = rates["relative_to_average"].to_numpy()
    colors = _FIRST["deployment-rate"] + np.searchsorted(RATE_EDGES, np.nan_to_num(relative, nan=1.0))
    colors[np.isnan(relative)] = _PLAIN[EMPTY]
    stroke = stroke_of(window)
    few = ((rates["images"] < FEW_IMAGES) | (rates["positives"] == 0)).to_numpy() & ~np.isnan(relative)
    # Stripes start at the city's corner, so that they move with the map.
    row, column = (round(side / window.pixel_ft) for side in (window.south_ft, window.west_ft))
    across, up = (
        np.arange(start, start + n, dtype=np.int32) for start, n in ((column, window.columns), (row, window.rows))
    )
    stripes = (up[:, None] - across) % (7 * stroke) < 2 * stroke
    # `OUTSIDE` is -1, so it indexes the last color.
    plain, hatched = (np.append(one, 0).astype(np.uint8) for one in (colors, np.where(few, _PLAIN[HATCH], colors)))
    np.copyto(picture, np.where(stripes, hatched[regions], plain[regions]), where=regions != OUTSIDE)


def _fill_points(picture: Picture, painter: Painter, view: View, land: Mask) -> None:
    window, scales = view.window, painter.scales
    dots = window.pixel_ft < DOTS_BELOW_FT
    if view.measure == "images" or dots:
        # Sums around the outermost pixels need images beyond the window.
        margin = _box(window) // 2
        images, positives = painter.points.raster(_wider(window, margin), view.keep)
        inner = np.s_[margin : margin + window.rows, margin : margin + window.columns]
    if view.measure == "images":
        values = _density(images, window)[inner]
        shown = values > 0
        fraction = np.log(np.maximum(values[shown], 1)) / np.log(scales.images)
    else:
        picture[land] = _PLAIN[EMPTY]
        values = _resampled(_detection_rates(painter, view.keep), window)
        shown = np.isfinite(values) & land
        fraction = values[shown] / scales.detection_rate
    steps = (fraction * (_STEPS - 1)).clip(0, _STEPS - 1).astype(np.uint8)
    picture[shown] = steps + np.uint8(_FIRST[view.measure])
    if dots:
        for counts, color, size in ((images, INK, 3), (positives, SELECTED, 5)):
            picture[ndimage.maximum_filter(counts[inner] > 0, size)] = _PLAIN[color]


def stroke_of(window: Window) -> int:
    """Return the line width in pixels: 1 on a screen, more on a poster."""
    return max(1, round(window.columns / _COLUMNS_PER_STROKE))


def _box(window: Window) -> int:
    """Return the side in pixels of the square in which images are counted, an odd number."""
    return max(1, 2 * round((STREET_FT / window.pixel_ft - 1) / 2) + 1)


def _wider(window: Window, margin: int) -> Window:
    across, up = window.pixel_ft, (window.north_ft - window.south_ft) / window.rows
    return Window(
        window.west_ft - margin * across,
        window.south_ft - margin * up,
        window.east_ft + margin * across,
        window.north_ft + margin * up,
        window.columns + 2 * margin,
        window.rows + 2 * margin,
    )


def _density(images: npt.NDArray[np.uint32], window: Window) -> npt.NDArray[np.float64]:
    """Return images per square of `STREET_FT` around each pixel."""
    side = _box(window)
    summed = images.astype(np.float64)
    if side > 1:
        # Sums of integers; anything else is rounding.
        summed = np.round(ndimage.uniform_filter(summed, side, mode="constant") * side**2)
    return summed * (STREET_FT / (side * window.pixel_ft)) ** 2


@lru_cache(maxsize=32)  # about 3 MB each
def _detection_rates(painter: Painter, keep: Filter) -> npt.NDArray[np.float64]:
    """Return the detection rate around every cell of the city, in the smallest square with enough images."""
    columns, rows = (max(1, math.ceil(side / CELL_FT)) for side in painter.city.size_ft)
    window = Window(0.0, 0.0, columns * CELL_FT, rows * CELL_FT, columns, rows)
    counts = Counts(*painter.points.raster(window, keep))
    return smoothed_share(counts, least_images=LEAST_IMAGES, widest_cells=int(WIDEST_FT / CELL_FT))


def _resampled(cells: npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.float64]:
    """Return the value of the cell at the center of each pixel, NaN outside the cells."""
    rows, columns = cells.shape
    across, up = window.pixel_ft, (window.north_ft - window.south_ft) / window.rows
    column = np.floor((window.west_ft + (np.arange(window.columns) + 0.5) * across) / CELL_FT).astype(np.intp)
    row = np.floor((window.south_ft + (np.arange(window.rows) + 0.5) * up) / CELL_FT).astype(np.intp)
    values = cells[np.ix_(row.clip(0, rows - 1), column.clip(0, columns - 1))]
    values[(row < 0) | (row >= rows)] = np.nan
    values[:, (column < 0) | (column >= columns)] = np.nan
    return values


def _outline(picture: Picture, city: City, view: View, regions: npt.NDArray[np.int32], land: Mask) -> None:
    stroke, geography = stroke_of(view.window), city.geography(view.geography)
    edges = _edges(regions) & land
    if geography.side_ft >= _LEAST_PX * stroke * view.window.pixel_ft:
        picture[ndimage.maximum_filter(edges, stroke)] = _PLAIN[THIN]
    coarse = _edges(city.region_grid(city.land.name, view.window))
    picture[ndimage.maximum_filter(coarse, stroke)] = _PLAIN[OUTLINE]
    if view.selected and view.selected in geography.regions:
        inside = regions == geography.regions.index(view.selected)
        picture[ndimage.maximum_filter(inside, 4 * stroke + 1) & ~inside] = _PLAIN[SELECTED]


def _edges(regions: npt.NDArray[np.int32]) -> Mask:
    """Return the pixels whose eastern or northern neighbor belongs to a different region."""
    edges = np.zeros(regions.shape, dtype=np.bool_)
    edges[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    edges[:-1] |= regions[:-1] != regions[1:]
    return edges

"""The map as pixels: measure, outlines, hatching, in one pass over what a window shows.

The same picture serves the browser, the static page and the poster; scales are those of the whole study, so that a
color means the same wherever one looks.
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

from patrolscope.analysis.stages.calibrate import TwoClass
from patrolscope.analysis.stages.results import FEW_IMAGES, Results
from patrolscope.dashboards.charts.style import INK
from patrolscope.dashboards.maps.city import OUTSIDE, City
from patrolscope.dashboards.maps.city_maps import (
    EMPTY,
    HATCH,
    LAND,
    LEAST_IMAGES,
    LEVEL_CENTERS,
    LEVEL_STEP,
    OUTLINE,
    WATER,
    WIDEST_FT,
)
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.levels import place_levels, with_bootstrap
from patrolscope.dashboards.maps.points import Points, Window, area_counts
from patrolscope.dashboards.maps.raster import Counts, smoothed_share

Measure = Literal["images", "share", "level"]
MEASURES: dict[Measure, str] = {
    "images": "Images",
    "share": "Share with police",
    "level": "Calibrated level",
}
# Images are counted in squares of this side, or of a pixel where that is wider: as wide as a street.
STREET_FT = 100.0
# Below this width of a pixel single images are dots.
DOTS_BELOW_FT = 4.0
# Side of the cells of the smoothed share: what is smoothed needs no finer grain, and some 360,000 take 0.1 s.
SHARE_FT = 250.0
_WHOLE_COLUMNS = 1_000  # of the picture that scales are taken from
# Outlines of places of fewer pixels across would hide what they divide.
_LEAST_PX = 12
_LINES_AT = 2_500  # columns for each pixel of a line's width
CHOSEN = "#d6006c"  # around the chosen place, away from all three scales
THIN = "#8e9398"  # of outlines inside a borough

RGB = npt.NDArray[np.uint8]
Picture = npt.NDArray[np.uint8]  # (rows, columns) places in `PALETTE`
Shown = npt.NDArray[np.bool_]

_STEPS = 100  # of a scale that is continuous


def _table(name: str, low: float, high: float, steps: int = _STEPS) -> RGB:
    return (255 * colormaps[name](np.linspace(low, high, steps))[:, :3]).round().astype(np.uint8)


def _rgb(color: str) -> RGB:
    return (255 * np.array(to_rgb(color))).round().astype(np.uint8)


# As in the report's maps; all three are safe for color-blind readers.
TABLES: dict[Measure, RGB] = {
    "images": _table("YlGnBu", 0.32, 1.0),
    "share": _table("YlOrRd", 0.02, 0.98),
    "level": _table("PuOr_r", 0.04, 0.96, len(LEVEL_CENTERS)),
}
_FIRST = {"images": 0, "share": _STEPS, "level": 2 * _STEPS}  # place of a scale's first color
_PLAIN = {
    color: 2 * _STEPS + len(LEVEL_CENTERS) + place
    for place, color in enumerate((WATER, LAND, EMPTY, HATCH, OUTLINE, INK, CHOSEN, THIN))
}
# All colors of all maps: a picture of places in it is a quarter of one of colors, for a browser to wait for.
PALETTE: RGB = np.concatenate([*TABLES.values(), np.stack([_rgb(color) for color in _PLAIN])])
LEVEL_EDGES = 2.0 ** (LEVEL_CENTERS[:-1] + LEVEL_STEP / 2)


@dataclass(frozen=True)
class View:
    """What a map shows."""

    window: Window
    measure: Measure = "images"
    level: str = "neighborhood"
    keep: Filter = field(default_factory=Filter)
    chosen: str = ""  # place of the level


@dataclass(frozen=True)
class Scales:
    """Ends of the color scales, over the whole city and all images."""

    images: float  # in a square of a street's width, where the scale ends; it begins at 1
    share: float


@dataclass(frozen=True, eq=False)
class Painter:
    """Makes pictures of a study.

    Attributes
    ----------
    stored : two-class estimates with the intervals of all images; None: there are none
    """

    points: Points
    city: City
    calibration: TwoClass | None
    stored: Results | None = None

    def whole(self, columns: int, rows: int | None = None, margin: float = 0.02) -> Window:
        """A window of square pixels that holds the whole city."""
        wide, tall = self.city.size_ft
        rows = rows or max(1, round(columns * tall / wide))
        pixel_ft = (1 + 2 * margin) * max(wide / columns, tall / rows)
        return window_around(wide / 2, tall / 2, pixel_ft, columns, rows)

    @cached_property
    def scales(self) -> Scales:
        """Scales of the study."""
        window = self.whole(_WHOLE_COLUMNS)
        density = _density(self.points.raster(window, Filter())[0], window)
        share = _shares(self, Filter())
        known = share[np.isfinite(share)]
        return Scales(
            images=max(10.0, float(np.percentile(density[density > 0], 99.9))) if density.any() else 10.0,
            share=max(1e-5, float(np.percentile(known, 99.7))) if len(known) else 0.01,
        )

    def levels(self, level: str, keep: Filter) -> pd.DataFrame:
        """Levels of all places of a level under a filter: see `place_levels`, and `with_bootstrap` for all images."""
        return _levels(self, level, keep)

    def paint(self, view: View) -> Picture:
        """What a view shows, the southernmost row first; one of a screen's size is kept for another time."""
        return (_kept if view.window.is_screen else _paint)(self, view)


def window_around(x_ft: float, y_ft: float, pixel_ft: float, columns: int, rows: int) -> Window:
    """Window of square pixels around a point."""
    wide, tall = columns * pixel_ft / 2, rows * pixel_ft / 2
    return Window(x_ft - wide, y_ft - tall, x_ft + wide, y_ft + tall, columns, rows)


@lru_cache(maxsize=128)
def _levels(painter: Painter, level: str, keep: Filter) -> pd.DataFrame:
    percent = painter.city.study.settings.estimate.interval_percent
    made = place_levels(painter.city, level, area_counts(painter.points, keep), painter.calibration, percent=percent)
    if painter.stored is None or not keep.is_all:
        return made
    return with_bootstrap(made, level, painter.stored, percent=percent)


def _paint(painter: Painter, view: View) -> Picture:
    city, window = painter.city, view.window
    picture = np.full((window.rows, window.columns), _PLAIN[WATER], np.uint8)
    land = city.under(city.ground.name, window) != OUTSIDE
    picture[land] = _PLAIN[LAND]
    under = city.under(view.level, window)
    if view.measure == "level":
        _fill_level(picture, np.where(land, under, OUTSIDE), painter.levels(view.level, view.keep), window)
    else:
        _fill_points(picture, painter, view, land)
    _outline(picture, city, view, under, land)
    picture.setflags(write=False)
    return picture


_kept = lru_cache(maxsize=48)(_paint)  # some 0.6 MB each


def _fill_level(picture: Picture, under: npt.NDArray[np.int32], levels: pd.DataFrame, window: Window) -> None:
    relative = levels["relative"].to_numpy()
    colors = _FIRST["level"] + np.searchsorted(LEVEL_EDGES, np.nan_to_num(relative, nan=1.0))
    colors[np.isnan(relative)] = _PLAIN[EMPTY]
    stroke = stroke_of(window)
    few = ((levels["images"] < FEW_IMAGES) | (levels["positives"] == 0)).to_numpy() & ~np.isnan(relative)
    # Counted from the city's corner, so that stripes stay where they are while the map moves.
    row, column = (round(side / window.pixel_ft) for side in (window.south_ft, window.west_ft))
    across, up = (
        np.arange(start, start + n, dtype=np.int32) for start, n in ((column, window.columns), (row, window.rows))
    )
    stripes = (up[:, None] - across) % (7 * stroke) < 2 * stroke
    # The last color is for `OUTSIDE`, which counts from the end.
    plain, hatched = (np.append(some, 0).astype(np.uint8) for some in (colors, np.where(few, _PLAIN[HATCH], colors)))
    np.copyto(picture, np.where(stripes, hatched[under], plain[under]), where=under != OUTSIDE)


def _fill_points(picture: Picture, painter: Painter, view: View, land: Shown) -> None:
    window, scales = view.window, painter.scales
    dots = window.pixel_ft < DOTS_BELOW_FT
    if view.measure == "images" or dots:
        # What is summed around a pixel at the edge lies beyond it.
        margin = _box(window) // 2
        images, positives = painter.points.raster(_wider(window, margin), view.keep)
        inner = np.s_[margin : margin + window.rows, margin : margin + window.columns]
    if view.measure == "images":
        values = _density(images, window)[inner]
        shown = values > 0
        place = np.log(np.maximum(values[shown], 1)) / np.log(scales.images)
    else:
        picture[land] = _PLAIN[EMPTY]
        values = _looked_up(_shares(painter, view.keep), window)
        shown = np.isfinite(values) & land
        place = values[shown] / scales.share
    steps = (place * (_STEPS - 1)).clip(0, _STEPS - 1).astype(np.uint8)
    picture[shown] = steps + np.uint8(_FIRST[view.measure])
    if dots:
        for counts, color, size in ((images, INK, 3), (positives, CHOSEN, 5)):
            picture[ndimage.maximum_filter(counts[inner] > 0, size)] = _PLAIN[color]


def stroke_of(window: Window) -> int:
    """Pixels across a line: one on a screen, more on a poster."""
    return max(1, round(window.columns / _LINES_AT))


def _box(window: Window) -> int:
    """Pixels along the square in which images are counted: odd."""
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
    """Images in a square of a street's width around each pixel."""
    side = _box(window)
    summed = images.astype(np.float64)
    if side > 1:
        # Sums of whole numbers: what is not whole is rounding.
        summed = np.round(ndimage.uniform_filter(summed, side, mode="constant") * side**2)
    return summed * (STREET_FT / (side * window.pixel_ft)) ** 2


@lru_cache(maxsize=32)  # some 3 MB each
def _shares(painter: Painter, keep: Filter) -> npt.NDArray[np.float64]:
    """Share of images with police around every cell of the city, over the smallest square with enough of them."""
    columns, rows = (max(1, math.ceil(side / SHARE_FT)) for side in painter.city.size_ft)
    window = Window(0.0, 0.0, columns * SHARE_FT, rows * SHARE_FT, columns, rows)
    counts = Counts(*painter.points.raster(window, keep))
    return smoothed_share(counts, least_images=LEAST_IMAGES, widest_cells=int(WIDEST_FT / SHARE_FT))


def _looked_up(cells: npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.float64]:
    """Value of the cell under the center of each pixel; missing outside the cells."""
    rows, columns = cells.shape
    across, up = window.pixel_ft, (window.north_ft - window.south_ft) / window.rows
    column = np.floor((window.west_ft + (np.arange(window.columns) + 0.5) * across) / SHARE_FT).astype(np.intp)
    row = np.floor((window.south_ft + (np.arange(window.rows) + 0.5) * up) / SHARE_FT).astype(np.intp)
    values = cells[np.ix_(row.clip(0, rows - 1), column.clip(0, columns - 1))]
    values[(row < 0) | (row >= rows)] = np.nan
    values[:, (column < 0) | (column >= columns)] = np.nan
    return values


def _outline(picture: Picture, city: City, view: View, under: npt.NDArray[np.int32], land: Shown) -> None:
    stroke = stroke_of(view.window)
    edges = _edges(under) & land
    if city.level(view.level).side_ft >= _LEAST_PX * stroke * view.window.pixel_ft:
        picture[ndimage.maximum_filter(edges, stroke)] = _PLAIN[THIN]
    ground = _edges(city.under(city.ground.name, view.window))
    picture[ndimage.maximum_filter(ground, stroke)] = _PLAIN[OUTLINE]
    if view.chosen and view.chosen in city.level(view.level).places:
        mine = under == city.level(view.level).places.index(view.chosen)
        picture[ndimage.maximum_filter(mine, 4 * stroke + 1) & ~mine] = _PLAIN[CHOSEN]


def _edges(under: npt.NDArray[np.int32]) -> Shown:
    """Pixels whose eastern or northern neighbor belongs to another place."""
    edges = np.zeros(under.shape, dtype=np.bool_)
    edges[:, :-1] |= under[:, :-1] != under[:, 1:]
    edges[:-1] |= under[:-1] != under[1:]
    return edges

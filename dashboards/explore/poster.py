"""The map as a figure with its legend, and as a poster of any size."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from dashboards.explore.compose import MEASURES, TABLES, View
from dashboards.explore.legend import notes_of, ticks_of, unit_of
from dashboards.explore.points import Window
from dashboards.explore.site import Site
from dashboards.figures import INK, MUTED, WARNING, to_png
from dashboards.maps import EMPTY, FEET_PER_MILE, HATCH, source_line

_WIDTH_IN, _STRIP_IN = 10.0, 1.35
_BAND_PIXELS = 8_000_000  # painted at a time: some 300 MB with what is counted on the way
MOST_PIXELS = 200_000_000


def map_figure(site: Site, view: View) -> Figure:
    """What a reader sees, with title, legend and source, for a file."""
    window = view.window
    tall_in = _WIDTH_IN * window.rows / window.columns
    figure = Figure(figsize=(_WIDTH_IN, tall_in + _STRIP_IN))
    share = _STRIP_IN / (tall_in + _STRIP_IN)
    axes = figure.add_axes((0, share, 1, 1 - share))
    axes.imshow(site.painter.paint(view), origin="lower", interpolation="none", aspect="auto")
    axes.set_axis_off()
    _strip(figure, site, view, share)
    return figure


def write_poster(site: Site, view: View, say: Callable[[int, int], None]) -> bytes:
    """PNG of a view with its legend: painted in bands, so that memory holds little more than the picture itself.

    Parameters
    ----------
    say : told rows done and rows in all
    """
    window = view.window
    width_px = window.columns
    strip = Image.open(io.BytesIO(to_png(_strip_figure(site, view), round(width_px / _WIDTH_IN)))).convert("RGB")
    picture = Image.new("RGB", (width_px, window.rows + strip.height), "white")
    for first, band in _bands(window):
        part = View(band, view.measure, view.level, view.keep, view.chosen)
        rows = np.ascontiguousarray(site.painter.paint_once(part)[::-1])
        picture.paste(Image.fromarray(rows), (0, window.rows - first - band.rows))
        say(first + band.rows, window.rows)
    picture.paste(strip, (0, window.rows))
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=6)
    return content.getvalue()


def _bands(window: Window) -> Iterator[tuple[int, Window]]:
    """First row and window of each band, from the south."""
    up = (window.north_ft - window.south_ft) / window.rows
    step = max(1, _BAND_PIXELS // window.columns)
    for first in range(0, window.rows, step):
        rows = min(step, window.rows - first)
        south = window.south_ft + first * up
        yield first, Window(window.west_ft, south, window.east_ft, south + rows * up, window.columns, rows)


def _strip_figure(site: Site, view: View) -> Figure:
    figure = Figure(figsize=(_WIDTH_IN, _STRIP_IN))
    _strip(figure, site, view, 1.0)
    return figure


def _strip(figure: Figure, site: Site, view: View, share: float) -> None:
    """Title, scale, notes and source in the lowest `share` of a figure."""

    def put(x_in: float, y_in: float, text: str, size: float, colour: str = INK, **style: object) -> None:
        figure.text(x_in / _WIDTH_IN, share * y_in / _STRIP_IN, text, fontsize=size, color=colour, **style)  # type: ignore[arg-type]

    def box(x_in: float, y_in: float, wide_in: float, tall_in: float) -> tuple[float, float, float, float]:
        return x_in / _WIDTH_IN, share * y_in / _STRIP_IN, wide_in / _WIDTH_IN, share * tall_in / _STRIP_IN

    figure.patches.append(
        Rectangle((0, 0), 1, share, facecolor="white", transform=figure.transFigure, figure=figure, zorder=-1)
    )
    put(0.25, 1.08, MEASURES[view.measure], 13, weight="bold")
    put(0.25, 0.88, view.keep.in_words(), 8.5, MUTED)
    scale = figure.add_axes(box(0.25, 0.52, 4.4, 0.16))
    scale.imshow(TABLES[view.measure][None], aspect="auto", extent=(0, 1, 0, 1), interpolation="none")
    scale.set_yticks([])
    marks = ticks_of(view.measure, site.painter.scales)
    scale.set_xticks([place for place, _ in marks], [text for _, text in marks], fontsize=8, color=INK)
    scale.tick_params(length=2, pad=2)
    for side in scale.spines.values():
        side.set_visible(False)
    put(0.25, 0.72, unit_of(view.measure, view.level), 8.5)
    for place, (colour, text) in enumerate(notes_of(view.measure)):
        y_in = 0.60 - 0.2 * place
        patch = figure.add_axes(box(5.1, y_in, 0.34, 0.13))
        patch.set_axis_off()
        hatched = colour != EMPTY
        patch.add_patch(
            Rectangle(
                (0, 0),
                1,
                1,
                facecolor="white" if hatched else EMPTY,
                edgecolor=HATCH,
                hatch="/////" if hatched else None,
            )
        )
        put(5.55, y_in + 0.01, text, 8.5)
    mile_in = FEET_PER_MILE / (view.window.east_ft - view.window.west_ft) * _WIDTH_IN
    miles = next((some for some in (10, 5, 2, 1, 0.5, 0.2, 0.1) if some * mile_in < 2), 0.05)
    bar = figure.add_axes(box(5.1, 0.92, miles * mile_in, 0.03))
    bar.set_facecolor(INK)
    bar.set_xticks([])
    bar.set_yticks([])
    put(5.1, 0.99, f"{miles:g} mi", 8.5)
    put(0.25, 0.1, source_line(site.study, site.points.images), 7, MUTED)
    if site.simulated:
        put(5.1, 1.18, site.simulated, 8.5, WARNING)

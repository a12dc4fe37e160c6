"""The map as a figure with its legend, and as a poster of any size."""

from __future__ import annotations

import difflib
import io
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from urllib.parse import parse_qsl

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.matplotlib_renderer import to_png
from patrolscope.dashboards.charts.style import INK, MUTED, WARNING
from patrolscope.dashboards.maps.city_maps import EMPTY, FEET_PER_MILE, HATCH, source_line
from patrolscope.dashboards.maps.compose import MEASURES, PALETTE, TABLES, View, stroke_of, window_around
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.legend import notes_of, ticks_of, unit_of
from patrolscope.dashboards.maps.points import Window
from patrolscope.pipeline.errors import SettingsError

_WIDTH_IN, _STRIP_IN = 10.0, 1.42
_BAND_PIXELS = 8_000_000  # painted at a time: some 300 MB with what is counted on the way
MOST_PIXELS = 200_000_000
_AROUND = 1.1  # of a place's sides
_SAID = {*(one.name for one in fields(Filter)), "measure", "level", "chosen", "at"}  # keys of an address
_SCREEN_PX, _SCREEN_SHAPE = 960, 2 / 3  # of the map in a browser, whose address says how much a pixel is


def ask_for(site: Site, *, measure: str, level: str, within: str, query: str, width: int) -> View:
    """The view of a poster.

    Parameters
    ----------
    within : place of the level to show; empty: the whole city, or where the query says
    query : of the address of a map page; what it says goes before the other choices
    width : pixels

    Raises
    ------
    SettingsError : a choice that the study does not have, or too many pixels
    """
    state = State(measure="images")
    said = dict(parse_qsl(query.partition("?")[2] or query, keep_blank_values=True))
    if query and not said.keys() <= _SAID:
        raise SettingsError(
            f"--view {query!r}: what stands after ? in a page's address is expected, such as hours=6-20"
        )
    state.read({"measure": measure, "level": level} | said)
    for name, value, known in (
        ("measure", said.get("measure", measure), tuple(MEASURES)),
        ("level", said.get("level", level), site.city.levels),
    ):
        if value not in known:
            raise SettingsError(f"{name} {value!r}: this study has {', '.join(known)}")
    if state.measure == "level" and site.calibration is None:
        raise SettingsError("the study has no calibration yet, so no levels: run `patrolscope run`, or --measure share")
    if state.filter.place is not None and not site.city.has(*state.filter.place):
        of, name = state.filter.place
        known = site.city.level(of).places if of in site.city.levels else ()
        raise SettingsError(f"no {of} {name!r}: {_like(name, known)}")
    whole = site.painter.whole(width)
    center_x, center_y, pixel_ft = site.city.size_ft[0] / 2, site.city.size_ft[1] / 2, whole.pixel_ft
    rows = whole.rows
    if within:
        bounds = site.city.bounds_of(state.level, within)
        if bounds is None:
            raise SettingsError(f"no {state.level} {within!r}: {_like(within, site.city.level(state.level).places)}")
        west, south, east, north = bounds
        center_x, center_y, pixel_ft = (west + east) / 2, (south + north) / 2, _AROUND * (east - west) / width
        rows = max(1, round(_AROUND * (north - south) / pixel_ft))
    elif state.at is not None:
        center_x, center_y, shown_ft = state.at
        pixel_ft, rows = shown_ft * _SCREEN_PX / width, round(width * _SCREEN_SHAPE)
    if width * rows > MOST_PIXELS:
        raise SettingsError(f"{width:,} x {rows:,} pixels: at most {MOST_PIXELS:,} in all; take another --width")
    window = window_around(center_x, center_y, pixel_ft, width, rows)
    return View(window, state.measure, state.level, state.filter, within or state.chosen)


def _like(name: str, places: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(name, places, n=4, cutoff=0.4)
    if found:
        return f"is it {' or '.join(found)}?"
    return f"there are {len(places)}, such as {places[0]}" if places else "this study has none"


def map_figure(site: Site, view: View) -> Figure:
    """What a reader sees, with title, legend and source, for a file."""
    window = view.window
    tall_in = _WIDTH_IN * window.rows / window.columns
    figure = Figure(figsize=(_WIDTH_IN, tall_in + _STRIP_IN))
    share = _STRIP_IN / (tall_in + _STRIP_IN)
    axes = figure.add_axes((0, share, 1, 1 - share))
    axes.imshow(PALETTE[site.painter.paint(view)], origin="lower", interpolation="none", aspect="auto")
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
    # Outlines of a band reach into its neighbors.
    beyond = 8 * stroke_of(window)
    for first, rows in _bands(window):
        band = part_of(window, first - beyond, rows + 2 * beyond)
        painted = site.painter.paint(replace(view, window=band))[beyond : beyond + rows]
        picture.paste(Image.fromarray(PALETTE[painted[::-1]]), (0, window.rows - first - rows))
        say(first + rows, window.rows)
    picture.paste(strip, (0, window.rows))
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=6)
    return content.getvalue()


def _bands(window: Window) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each band, from the south."""
    step = max(1, _BAND_PIXELS // window.columns)
    for first in range(0, window.rows, step):
        yield first, min(step, window.rows - first)


def part_of(window: Window, first: int, rows: int) -> Window:
    """Rows of a window, from the southernmost `first` on; also such as lie beyond it."""
    up = (window.north_ft - window.south_ft) / window.rows
    south = window.south_ft + first * up
    return Window(window.west_ft, south, window.east_ft, south + rows * up, window.columns, rows)


def _strip_figure(site: Site, view: View) -> Figure:
    figure = Figure(figsize=(_WIDTH_IN, _STRIP_IN))
    _strip(figure, site, view, 1.0)
    return figure


def _strip(figure: Figure, site: Site, view: View, share: float) -> None:
    """Title, scale, notes and source in the lowest `share` of a figure."""

    def put(x_in: float, y_in: float, text: str, size: float, color: str = INK, **style: object) -> None:
        figure.text(x_in / _WIDTH_IN, share * y_in / _STRIP_IN, text, fontsize=size, color=color, **style)  # type: ignore[arg-type]

    def box(x_in: float, y_in: float, wide_in: float, tall_in: float) -> tuple[float, float, float, float]:
        return x_in / _WIDTH_IN, share * y_in / _STRIP_IN, wide_in / _WIDTH_IN, share * tall_in / _STRIP_IN

    figure.patches.append(
        Rectangle((0, 0), 1, share, facecolor="white", transform=figure.transFigure, figure=figure, zorder=-1)
    )
    put(0.25, 1.08, MEASURES[view.measure] + (f", {view.chosen}" if view.chosen else ""), 13, weight="bold")
    put(0.25, 0.88, view.keep.in_words(), 8.5, MUTED)
    scale = figure.add_axes(box(0.25, 0.52, 4.4, 0.16))
    scale.imshow(TABLES[view.measure][None], aspect="auto", extent=(0, 1, 0, 1), interpolation="none")
    scale.set_yticks([])
    marks = ticks_of(view.measure, site.painter.scales)
    scale.set_xticks([place for place, _ in marks], [text for _, text in marks], fontsize=8, color=INK)
    scale.tick_params(length=2, pad=2)
    for side in scale.spines.values():
        side.set_visible(False)
    put(0.25, 0.72, unit_of(view.measure, site.city.names[view.level][0]), 8.5)
    for place, (color, text) in enumerate(notes_of(view.measure, view.level)):
        y_in = 0.58 - 0.19 * place
        patch = figure.add_axes(box(5.1, y_in, 0.34, 0.13))
        patch.set_axis_off()
        hatched = color != EMPTY
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
    bar = figure.add_axes(box(5.1, 0.84, miles * mile_in, 0.03))
    bar.set_facecolor(INK)
    bar.set_xticks([])
    bar.set_yticks([])
    put(5.1, 0.91, f"{miles:g} mi", 8.5)
    source = textwrap.wrap(source_line(site.study, site.points.images), 150)
    put(0.25, 0.06, "\n".join(source[:2]), 6.5, MUTED, va="bottom", linespacing=1.25)
    if site.simulated:
        put(5.1, 1.32, "\n".join(textwrap.wrap(site.simulated, 72)[:2]), 8, WARNING, va="top")

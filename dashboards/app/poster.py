"""Map with its legend as a figure, and as a poster of any size."""

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
from patrolscope.dashboards.maps.city_maps import EMPTY, HATCH, source_line
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.legend import notes_of, ticks_of, unit_of
from patrolscope.dashboards.maps.map_layout import FEET_PER_MILE
from patrolscope.dashboards.maps.painter import MEASURES, PALETTE, TABLES, View, stroke_of, window_around
from patrolscope.dashboards.maps.points import Window
from patrolscope.pipeline.errors import SettingsError

_WIDTH_IN, _STRIP_IN = 10.0, 1.42
_BAND_PIXELS = 8_000_000  # painted at a time; about 300 MB with the counts
MOST_PIXELS = 200_000_000
_MARGIN = 1.1  # times the width of a region
_KEYS = {*(field.name for field in fields(Filter)), "measure", "geography", "selected", "at"}  # of an address
_SCREEN_PX, _SCREEN_SHAPE = 960, 2 / 3  # of the map in a browser, whose address has the feet per pixel


def poster_view(site: Site, *, measure: str, geography: str, region: str, query: str, width: int) -> View:
    """Return the view of a poster.

    Parameters
    ----------
    site : Site
        Study to show.
    measure : str
        One of `MEASURES`.
    geography : str
        One of the study's geographies.
    region : str
        Region of the geography to show; empty for the whole city or the view of `query`.
    query : str
        Query of the address of a map page. It overrides the other arguments.
    width : int
        Pixels.

    Raises
    ------
    SettingsError
        If the study does not have the measure, geography, or region, or the poster has too many pixels.
    """
    state = State(measure="images")
    values = dict(parse_qsl(query.partition("?")[2] or query, keep_blank_values=True))
    if query and not values.keys() <= _KEYS:
        raise SettingsError(
            f"--view {query!r} is not the query of a map page; expected keys and values such as hours=6-20; "
            "copy the address of the page after the ?"
        )
    state.read({"measure": measure, "geography": geography} | values)
    for name, value, known in (
        ("measure", values.get("measure", measure), tuple(MEASURES)),
        ("geography", values.get("geography", geography), site.city.geographies),
    ):
        if value not in known:
            raise SettingsError(f"--{name} {value!r} is unknown; expected one of {', '.join(known)}")
    if state.measure == "deployment-rate" and site.calibration is None:
        raise SettingsError(
            "--measure deployment-rate needs a calibration; run `patrolscope run`, or use --measure detection-rate"
        )
    if state.filter.region is not None and not site.city.has(*state.filter.region):
        of, name = state.filter.region
        known = site.city.geography(of).regions if of in site.city.geographies else ()
        raise SettingsError(f"--view: {of} {name!r} does not exist; {_suggestion(name, known)}")
    whole = site.painter.whole(width)
    center_x, center_y, pixel_ft = site.city.size_ft[0] / 2, site.city.size_ft[1] / 2, whole.pixel_ft
    rows = whole.rows
    if region:
        bounds = site.city.bounds_of(state.geography, region)
        if bounds is None:
            known = site.city.geography(state.geography).regions
            raise SettingsError(f"--region: {state.geography} {region!r} does not exist; {_suggestion(region, known)}")
        west, south, east, north = bounds
        center_x, center_y, pixel_ft = (west + east) / 2, (south + north) / 2, _MARGIN * (east - west) / width
        rows = max(1, round(_MARGIN * (north - south) / pixel_ft))
    elif state.at is not None:
        center_x, center_y, screen_ft = state.at
        pixel_ft, rows = screen_ft * _SCREEN_PX / width, round(width * _SCREEN_SHAPE)
    if width * rows > MOST_PIXELS:
        raise SettingsError(
            f"--width {width} makes {width:,} x {rows:,} pixels; expected at most {MOST_PIXELS:,} in all; "
            "choose a smaller width"
        )
    window = window_around(center_x, center_y, pixel_ft, width, rows)
    return View(window, state.measure, state.geography, state.filter, region or state.selected)


def _suggestion(name: str, regions: tuple[str, ...]) -> str:
    similar = difflib.get_close_matches(name, regions, n=4, cutoff=0.4)
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    return f"expected one of {len(regions)}, such as {regions[0]}" if regions else "this study has none"


def map_figure(site: Site, view: View) -> Figure:
    """Draw a view with its title, legend, and source."""
    window = view.window
    tall_in = _WIDTH_IN * window.rows / window.columns
    figure = Figure(figsize=(_WIDTH_IN, tall_in + _STRIP_IN))
    share = _STRIP_IN / (tall_in + _STRIP_IN)
    axes = figure.add_axes((0, share, 1, 1 - share))
    axes.imshow(PALETTE[site.painter.paint(view)], origin="lower", interpolation="none", aspect="auto")
    axes.set_axis_off()
    _strip(figure, site, view, share)
    return figure


def write_poster(site: Site, view: View, progress: Callable[[int, int], None]) -> bytes:
    """Paint a view with its legend as PNG, in bands, so that memory holds little more than the image.

    Parameters
    ----------
    site : Site
        Study to show.
    view : View
        Contents of the poster.
    progress : callable
        Called with the painted rows and all rows of pixels.
    """
    window = view.window
    width_px = window.columns
    strip = Image.open(io.BytesIO(to_png(_strip_figure(site, view), round(width_px / _WIDTH_IN)))).convert("RGB")
    picture = Image.new("RGB", (width_px, window.rows + strip.height), "white")
    # Outlines extend into neighboring bands.
    beyond = 8 * stroke_of(window)
    for first, rows in _bands(window):
        band = part_of(window, first - beyond, rows + 2 * beyond)
        painted = site.painter.paint(replace(view, window=band))[beyond : beyond + rows]
        picture.paste(Image.fromarray(PALETTE[painted[::-1]]), (0, window.rows - first - rows))
        progress(first + rows, window.rows)
    picture.paste(strip, (0, window.rows))
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=6)
    return content.getvalue()


def _bands(window: Window) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of each band, from the south."""
    step = max(1, _BAND_PIXELS // window.columns)
    for first in range(0, window.rows, step):
        yield first, min(step, window.rows - first)


def part_of(window: Window, first: int, rows: int) -> Window:
    """Return `rows` rows of a window from row `first` northward. Rows outside the window are allowed.

    Parameters
    ----------
    window : Window
        Window of the whole map.
    first : int
        First row, counted from the south.
    rows : int
        Number of rows.
    """
    up = (window.north_ft - window.south_ft) / window.rows
    south = window.south_ft + first * up
    return Window(window.west_ft, south, window.east_ft, south + rows * up, window.columns, rows)


def _strip_figure(site: Site, view: View) -> Figure:
    figure = Figure(figsize=(_WIDTH_IN, _STRIP_IN))
    _strip(figure, site, view, 1.0)
    return figure


def _strip(figure: Figure, site: Site, view: View, share: float) -> None:
    """Draw title, color scale, notes, and source in the lowest `share` of a figure."""

    def put(x_in: float, y_in: float, text: str, size: float, color: str = INK, **style: object) -> None:
        figure.text(x_in / _WIDTH_IN, share * y_in / _STRIP_IN, text, fontsize=size, color=color, **style)  # type: ignore[arg-type]

    def box(x_in: float, y_in: float, wide_in: float, tall_in: float) -> tuple[float, float, float, float]:
        return x_in / _WIDTH_IN, share * y_in / _STRIP_IN, wide_in / _WIDTH_IN, share * tall_in / _STRIP_IN

    figure.patches.append(
        Rectangle((0, 0), 1, share, facecolor="white", transform=figure.transFigure, figure=figure, zorder=-1)
    )
    put(0.25, 1.08, MEASURES[view.measure] + (f", {view.selected}" if view.selected else ""), 13, weight="bold")
    put(0.25, 0.88, view.keep.describe(), 8.5, MUTED)
    scale = figure.add_axes(box(0.25, 0.52, 4.4, 0.16))
    scale.imshow(TABLES[view.measure][None], aspect="auto", extent=(0, 1, 0, 1), interpolation="none")
    scale.set_yticks([])
    marks = ticks_of(view.measure, site.painter.scales)
    scale.set_xticks([position for position, _ in marks], [text for _, text in marks], fontsize=8, color=INK)
    scale.tick_params(length=2, pad=2)
    for side in scale.spines.values():
        side.set_visible(False)
    put(0.25, 0.72, unit_of(view.measure, site.city.names[view.geography][0]), 8.5)
    for row, (color, text) in enumerate(notes_of(view.measure, view.geography)):
        y_in = 0.58 - 0.19 * row
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
    miles = next((length for length in (10, 5, 2, 1, 0.5, 0.2, 0.1) if length * mile_in < 2), 0.05)
    bar = figure.add_axes(box(5.1, 0.84, miles * mile_in, 0.03))
    bar.set_facecolor(INK)
    bar.set_xticks([])
    bar.set_yticks([])
    put(5.1, 0.91, f"{miles:g} mi", 8.5)
    source = textwrap.wrap(source_line(site.study, site.points.images), 150)
    put(0.25, 0.06, "\n".join(source[:2]), 6.5, MUTED, va="bottom", linespacing=1.25)
    if site.simulated:
        put(5.1, 1.32, "\n".join(textwrap.wrap(site.simulated, 72)[:2]), 8, WARNING, va="top")

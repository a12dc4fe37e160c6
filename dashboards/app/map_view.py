"""Interactive map, which the server repaints from all images at every pan and zoom."""

from __future__ import annotations

import asyncio
import html
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import panel as pn
from bokeh.events import MouseLeave, MouseMove, Tap
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    ImperialLength,
    LinearColorMapper,
    Range1d,
    ScaleBar,
)
from bokeh.plotting import figure

from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.painter import MEASURES, PALETTE, Painter, View, window_around
from patrolscope.dashboards.maps.points import Window
from patrolscope.dashboards.maps.region_rates import images_text, rate_text

_COLUMNS, _ROWS = 960, 640  # until the browser reports the size of its map
_TALL_PX = 640
_MOST_PX = 2_400  # along a side; a browser can report any size
_STEP = 1 / 3  # of the view, per arrow button
_FINEST_FT, _COARSEST = 0.25, 4.0  # feet per pixel; multiple of the whole city
_TOLERANCE = 1e-6  # of a side, within which two windows are equal
_BAR_LENGTHS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000]  # of the scale bar, in feet or miles
_HOVER_PX = 4  # pixels of the image per cell of the tooltip's lookup

# Browser and server exchange the ends of both axes together, as the plot's tags. Bokeh sends one axis after the other,
# and an image painted in between would be half moved.
_AXES = """
let queued = false;
export default ({ plot }, changed) => {
  const { x_range: x, y_range: y } = plot;
  if (changed === plot) {
    const [west, east, south, north] = plot.tags;
    x.setv({ start: west, end: east });
    y.setv({ start: south, end: north });
  } else if (!queued) {
    queued = true;
    queueMicrotask(() => {
      queued = false;
      const ends = [x.start, x.end, y.start, y.end];
      if (ends.some((end, number) => end !== plot.tags[number])) plot.tags = ends;
    });
  }
};
"""
# On a touch screen, a swipe scrolls the page. The buttons and the pan tool move the map.
_TOUCH = """
let first = true;
export default ({ pan }) => {
  if (first && window.matchMedia("(pointer: coarse)").matches) pan.active = false;
  first = false;
};
"""
# On a small screen, part of the page stays free for scrolling.
_LOWER = "@media (max-width: 860px) { :host { max-height: 60vh; } }"
_HOVER = Path(__file__).with_name("hover.js").read_text(encoding="utf-8")
_threads = ThreadPoolExecutor(2, thread_name_prefix="map")


def _colors() -> LinearColorMapper:
    names = ["#{:02x}{:02x}{:02x}".format(*map(int, color)) for color in PALETTE]
    return LinearColorMapper(palette=names, low=-0.5, high=len(names) - 0.5)


class MapView:
    """Map of one session."""

    def __init__(self, site: Site, state: State) -> None:
        self.site, self.state = site, state
        if state.measure == "deployment-rate" and site.calibration is None:
            state.measure = "images"
        self.size_px = _COLUMNS, _ROWS
        self.window = self._start(*self.size_px)
        # Tests and benchmarks read the number of the image.
        self.picture = ColumnDataSource(
            {name: [] for name in ("image", "x", "y", "dw", "dh", "number")}, name="picture"
        )
        self.regions = ColumnDataSource({name: [] for name in ("image", "x", "y", "dw", "dh")})
        self.tooltips = ColumnDataSource({name: [] for name in ("region", "rate", "images", "persons")})
        self.plot = self._figure()
        self.drawn = 0  # images sent
        self._scheduled = False
        self._target: list[float] = []  # ends of the axes in the browser, until the window follows them
        self.status = pn.pane.HTML("", styles={"color": "#5a636e", "font-size": "13px"}, margin=(2, 0))
        self._send(self._paint(), self._tooltips())
        state.param.watch(lambda *_: self.schedule(), ["filter", "measure", "geography", "selected"])

    # View.

    def _start(self, columns: int, rows: int) -> Window:
        """Return the window of the address, or the whole city."""
        if self.state.at is None:
            return self.site.painter.whole(columns, rows)
        x_ft, y_ft, pixel_ft = self.state.at
        return window_around(x_ft, y_ft, pixel_ft, columns, rows)

    def view(self) -> View:
        """Return the contents of the map."""
        state = self.state
        return View(self.window, state.measure, self.geography, state.filter, state.selected)

    @property
    def geography(self) -> str:
        """Geography of the state, or the coarsest if the city does not have it."""
        known = self.site.city.geographies
        return str(self.state.geography) if self.state.geography in known else known[-1]

    def show(self, window: Window) -> None:
        """Move to a window."""
        self.window = window
        self._set_axes()
        self.schedule()

    def move(self, across: float, up: float, zoom: float = 1.0) -> None:
        """Move by steps across and up, and zoom in by a factor.

        Parameters
        ----------
        across, up : float
            Steps to the east and to the north; a step is a fixed share of the view.
        zoom : float, default 1
            Factor by which the view is magnified.
        """
        window = self.window
        (x_ft, y_ft), pixel_ft = _center(window), window.pixel_ft
        step = _STEP * pixel_ft
        x_ft, y_ft = x_ft + across * step * window.columns, y_ft + up * step * window.rows
        self.show(self._around(x_ft, y_ft, pixel_ft / zoom))

    def show_city(self) -> None:
        """Show the whole city."""
        self.show(self.site.painter.whole(self.window.columns, self.window.rows))

    def show_region(self, region: str) -> None:
        """Show a region of the geography; do nothing if it does not exist."""
        bounds = self.site.city.bounds_of(self.geography, region)
        if bounds is not None:
            west, south, east, north = bounds
            window = self.window
            pixel_ft = 1.6 * max((east - west) / window.columns, (north - south) / window.rows)
            self.show(self._around((west + east) / 2, (south + north) / 2, pixel_ft))

    def _set_axes(self) -> None:
        """Send the window to the axes in the browser."""
        window = self.window
        self._target = []
        self.plot.tags = [window.west_ft, window.east_ft, window.south_ft, window.north_ft]

    def _around(self, x_ft: float, y_ft: float, pixel_ft: float) -> Window:
        coarsest = _COARSEST * self.site.painter.whole(self.window.columns, self.window.rows).pixel_ft
        return window_around(
            x_ft, y_ft, min(max(pixel_ft, _FINEST_FT), coarsest), self.window.columns, self.window.rows
        )

    def _moved(self, _attr: str, _old: object, ends: list[Any]) -> None:
        """Handle a pan or zoom, at every step. Bokeh's own event waits for half a second."""
        if len(ends) != 4 or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
            return
        west, east, south, north = ends
        window = self.window
        known = window.west_ft, window.east_ft, window.south_ft, window.north_ft
        off = max(abs(end - of) for end, of in zip(ends, known, strict=True))
        if west < east and south < north:
            # Changes by the server also arrive here, and a reader can return to the current window.
            self._target = ends if off > _TOLERANCE * (east - west) else []
        if self._target:
            self.schedule()

    def _follow(self) -> None:
        """Move the window to the axes in the browser."""
        if not self._target:
            return
        west, east, south, north = self._target
        self._target = []
        self._resize()
        pixel_ft = (east - west) / self.window.columns
        window = self._around((west + east) / 2, (south + north) / 2, pixel_ft)
        tall_ft = window.north_ft - window.south_ft
        off = max(abs(window.pixel_ft - pixel_ft) / pixel_ft, abs(north - south - tall_ft) / tall_ft)
        self.window = window
        if off > _TOLERANCE:  # beyond the limits of the zoom, or pixels that are not square
            self._set_axes()

    def _resize(self) -> None:
        """Adopt the size of the map in the browser, at the same scale."""
        columns, rows = self.size_px
        if (columns, rows) != (self.window.columns, self.window.rows):
            self.window = window_around(*_center(self.window), self.window.pixel_ft, columns, rows)

    def _fitted(self, name: str, _old: object, new: int) -> None:
        """Handle a new size of the map in the browser."""
        columns, rows = self.size_px
        side = min(max(1, int(new)), _MOST_PX)
        self.size_px = (side, rows) if name == "inner_width" else (columns, side)
        self.show(self._start(*self.size_px))

    def _tapped(self, event: Tap) -> None:
        self.state.selected = self.site.city.region_at(self.geography, event.x, event.y)

    # Drawing.

    def schedule(self) -> None:
        """Schedule painting. Requests until then share one image."""
        if self._scheduled:
            return
        self._scheduled = True
        document = pn.state.curdoc
        if document is None or document.session_context is None:
            self._scheduled = False
            self._send(self._paint(), self._tooltips())
            return
        document.add_next_tick_callback(self._draw)

    async def _draw(self) -> None:
        self._scheduled = False
        self._follow()
        loop = asyncio.get_running_loop()
        painted = await loop.run_in_executor(_threads, self._paint)
        tooltips = await loop.run_in_executor(_threads, self._tooltips)
        self._send(painted, tooltips)
        x_ft, y_ft = _center(self.window)
        whole = self.site.painter.whole(self.window.columns, self.window.rows)
        self.state.at = None if self.window == whole else (x_ft, y_ft, self.window.pixel_ft)

    def _paint(self) -> dict[str, Any]:
        view = self.view()
        picture = self.site.painter.paint(view)
        regions = self.site.city.region_grid(view.geography, view.window)[::_HOVER_PX, ::_HOVER_PX]
        return {"picture": picture, "regions": regions, "window": view.window}

    def _tooltips(self) -> dict[str, list[str]]:
        return region_tooltips(self.site.painter, self.geography, self.state.filter)

    def _send(self, painted: dict[str, Any], tooltips: dict[str, list[str]]) -> None:
        window = painted["window"]
        extent = {
            "x": [window.west_ft],
            "y": [window.south_ft],
            "dw": [window.east_ft - window.west_ft],
            "dh": [window.north_ft - window.south_ft],
        }
        self.drawn += 1
        self.picture.data = {"image": [painted["picture"]], "number": [self.drawn], **extent}
        self.status.object = html.escape(f"{MEASURES[self.state.measure]} · {self.state.filter.describe()}")
        # Tooltips may arrive after the image.
        self.regions.data = {"image": [painted["regions"]], **extent}
        if tooltips != self.tooltips.data:
            self.tooltips.data = tooltips

    def _figure(self) -> Any:
        window = self.window
        plot: Any = figure(
            name="map",
            # Their changes reach the server as tags: see `_AXES`.
            x_range=Range1d(window.west_ft, window.east_ft, syncable=False),
            y_range=Range1d(window.south_ft, window.north_ft, syncable=False),
            tools="pan,wheel_zoom,box_zoom,tap",
            active_scroll="wheel_zoom",
            height=_TALL_PX,
            stylesheets=[_LOWER],
            sizing_mode="stretch_width",
            toolbar_location="above",
            min_border=0,
            outline_line_color="#d9dde2",
            background_fill_color="#e4ebf0",
        )
        plot.toolbar.logo = None
        plot.toolbar.tools[2].match_aspect = True
        plot.axis.visible = plot.grid.visible = False
        extent = {"x": "x", "y": "y", "dw": "dw", "dh": "dh"}
        plot.image("image", **extent, source=self.picture, color_mapper=_colors())
        hover = CustomJS(args={"tooltips": self.tooltips, "regions": self.regions}, code=_HOVER)
        for event in (MouseMove, MouseLeave):
            plot.js_on_event(event, hover)
        # Bokeh's own lengths end at 60, so that every bar below a mile would be 60 ft long.
        lengths = ImperialLength(include=["ft", "mi"], ticks=_BAR_LENGTHS)
        bar = ScaleBar(range=plot.x_range, unit="ft", dimensional=lengths)
        bar.update(location="bottom_left", bar_length=0.12, background_fill_alpha=0.8, border_line_color=None)
        plot.add_layout(bar)
        plot.scatter(
            *self.site.city.stations_ft.T, marker="square_pin", size=7, fill_color="#1b1f24", line_color="white",
            name="stations",
        )  # fmt: skip
        axes = CustomJS(args={"plot": plot}, code=_AXES)
        for model, name in itertools.product((plot.x_range, plot.y_range), ("start", "end")):
            model.js_on_change(name, axes)
        plot.js_on_change("tags", axes)
        # `inner_width` is the first property that a browser reports.
        plot.js_on_change("inner_width", CustomJS(args={"pan": plot.toolbar.tools[0]}, code=_TOUCH))
        plot.on_change("tags", self._moved)
        plot.on_event(Tap, self._tapped)
        plot.on_change("inner_width", self._fitted)
        plot.on_change("inner_height", self._fitted)
        return plot


@lru_cache(maxsize=16)  # 2 MB each at 6,807 block groups
def region_tooltips(painter: Painter, geography: str, keep: Filter) -> dict[str, list[str]]:
    """Return the tooltip of each region as text. Cached, since moving the map does not change it.

    Parameters
    ----------
    painter : Painter
        Painter of the study's map.
    geography : str
        Geography of the regions.
    keep : Filter
        Images to count.
    """
    rows = painter.rates(geography, keep).to_dict("records")
    return {
        "region": [painter.city.display_name(geography, row["region"]) for row in rows],
        "rate": [rate_text(row) for row in rows],
        "images": [images_text(row) for row in rows],
        "persons": [f"{row['persons']:,.0f} residents" for row in rows],
    }


def _center(window: Window) -> tuple[float, float]:
    return (window.west_ft + window.east_ft) / 2, (window.south_ft + window.north_ft) / 2

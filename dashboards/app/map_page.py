"""The map: drawn anew on the server at every pan and zoom, from all images."""

from __future__ import annotations

import asyncio
import html
import io
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

from patrolscope.dashboards.app.profile import profile
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.maps.compose import MEASURES, PALETTE, Painter, View, window_around
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.legend import legend_html
from patrolscope.dashboards.maps.levels import images_words, level_words
from patrolscope.dashboards.maps.points import Window

# Before a browser has said how large its map is.
_COLUMNS, _ROWS = 960, 640
_TALL_PX = 640
_MOST_PX = 2_400  # along a side: a browser can say anything
_STEP = 1 / 3  # of the view, that an arrow moves
_FINEST_FT, _COARSEST = 0.25, 4.0  # a pixel; times the whole city
_SAME = 1e-6  # of a side, that two windows may differ and still be the same
_BAR_LENGTHS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000]  # feet or miles, of the scale bar
_HOVER_PX = 4  # of the picture, along a cell of what hovering looks up

# Reader and server tell each other the ends of both axes at once, as the plot's tags. Bokeh sends one axis after the
# other, and a picture between the two would be half moved.
_AXES = """
let telling = false;
export default ({ plot }, changed) => {
  const { x_range: x, y_range: y } = plot;
  if (changed === plot) {
    const [west, east, south, north] = plot.tags;
    x.setv({ start: west, end: east });
    y.setv({ start: south, end: north });
  } else if (!telling) {
    telling = true;
    queueMicrotask(() => {
      telling = false;
      const ends = [x.start, x.end, y.start, y.end];
      if (ends.some((end, number) => end !== plot.tags[number])) plot.tags = ends;
    });
  }
};
"""
# On a screen that is swiped, a swipe scrolls the page; the buttons, or the tool that drags, move the map.
_SWIPED = """
let first = true;
export default ({ pan }) => {
  if (first && window.matchMedia("(pointer: coarse)").matches) pan.active = false;
  first = false;
};
"""
# Of a small screen the page keeps some, by which it is scrolled.
_LOWER = "@media (max-width: 860px) { :host { max-height: 60vh; } }"
_HOVER = Path(__file__).with_name("hover.js").read_text(encoding="utf-8")
_threads = ThreadPoolExecutor(2, thread_name_prefix="map")


def map_page(site: Site, state: State) -> pn.viewable.Viewable:
    """The map with what steers it, its legend, and the profile of the place that was chosen."""
    return _Map(site, state).layout()


def _colors() -> LinearColorMapper:
    names = ["#{:02x}{:02x}{:02x}".format(*map(int, color)) for color in PALETTE]
    return LinearColorMapper(palette=names, low=-0.5, high=len(names) - 0.5)


class _Map:
    """The map of one reader."""

    def __init__(self, site: Site, state: State) -> None:
        self.site, self.state = site, state
        if state.measure == "level" and site.calibration is None:
            state.measure = "images"
        self.shown = _COLUMNS, _ROWS  # pixels
        self.window = self._start(*self.shown)
        # With the number of the picture, by which tests and benchmarks know it.
        self.picture = ColumnDataSource(
            {name: [] for name in ("image", "x", "y", "dw", "dh", "number")}, name="picture"
        )
        self.places = ColumnDataSource({name: [] for name in ("image", "x", "y", "dw", "dh")})
        self.cards = ColumnDataSource({name: [] for name in ("place", "level", "images", "persons")})
        self.plot = self._figure()
        self.drawn = 0  # pictures sent
        self._wanted = False
        self._told: list[float] = []  # ends of the axes that a reader has moved to, until they are followed
        self.status = pn.pane.HTML("", styles={"color": "#5a636e", "font-size": "13px"}, margin=(2, 0))
        self._put(self._paint(), self._describe())
        state.param.watch(lambda *_: self._ask(), ["filter", "measure", "level", "chosen"])

    # The view.

    def _start(self, columns: int, rows: int) -> Window:
        """Where the address says, or the whole city."""
        if self.state.at is None:
            return self.site.painter.whole(columns, rows)
        x_ft, y_ft, pixel_ft = self.state.at
        return window_around(x_ft, y_ft, pixel_ft, columns, rows)

    def _view(self) -> View:
        state = self.state
        return View(self.window, state.measure, self._level(), state.filter, state.chosen)

    def _level(self) -> str:
        levels = self.site.city.levels
        return str(self.state.level) if self.state.level in levels else levels[-1]

    def _show(self, window: Window) -> None:
        """Go to a window."""
        self.window = window
        self._place()
        self._ask()

    def _place(self) -> None:
        """Let the browser's axes show the window."""
        window = self.window
        self._told = []
        self.plot.tags = [window.west_ft, window.east_ft, window.south_ft, window.north_ft]

    def _around(self, x_ft: float, y_ft: float, pixel_ft: float) -> Window:
        coarsest = _COARSEST * self.site.painter.whole(self.window.columns, self.window.rows).pixel_ft
        return window_around(
            x_ft, y_ft, min(max(pixel_ft, _FINEST_FT), coarsest), self.window.columns, self.window.rows
        )

    def _moved(self, _attr: str, _old: object, ends: list[Any]) -> None:
        """The reader pans or zooms: told at every step, while Bokeh's own event of it waits for half a second."""
        if len(ends) != 4 or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
            return
        west, east, south, north = ends
        window = self.window
        known = window.west_ft, window.east_ft, window.south_ft, window.north_ft
        off = max(abs(end - of) for end, of in zip(ends, known, strict=True))
        if west < east and south < north:
            # The server's own change comes here, too, and a reader can go back to where the map still is.
            self._told = ends if off > _SAME * (east - west) else []
        if self._told:
            self._ask()

    def _follow(self) -> None:
        """Take the window that the reader has moved to."""
        if not self._told:
            return
        west, east, south, north = self._told
        self._told = []
        self._resize()
        pixel_ft = (east - west) / self.window.columns
        asked = self._around((west + east) / 2, (south + north) / 2, pixel_ft)
        tall_ft = asked.north_ft - asked.south_ft
        off = max(abs(asked.pixel_ft - pixel_ft) / pixel_ft, abs(north - south - tall_ft) / tall_ft)
        self.window = asked
        if off > _SAME:  # closer or further than the map goes, or pixels that are not square
            self._place()

    def _resize(self) -> None:
        """Take as many pixels as the browser shows, for the same scale."""
        columns, rows = self.shown
        if (columns, rows) != (self.window.columns, self.window.rows):
            self.window = window_around(*_center(self.window), self.window.pixel_ft, columns, rows)

    def _fitted(self, name: str, _old: object, new: int) -> None:
        """The browser has said how large the map is."""
        columns, rows = self.shown
        side = min(max(1, int(new)), _MOST_PX)
        self.shown = (side, rows) if name == "inner_width" else (columns, side)
        self._show(self._start(*self.shown))

    def _tapped(self, event: Tap) -> None:
        self.state.chosen = self.site.city.place_at(self._level(), event.x, event.y)

    # Drawing.

    def _ask(self) -> None:
        """Draw soon: what is asked for until then is one picture."""
        if self._wanted:
            return
        self._wanted = True
        document = pn.state.curdoc
        if document is None or document.session_context is None:
            self._wanted = False
            self._put(self._paint(), self._describe())
            return
        document.add_next_tick_callback(self._draw)

    async def _draw(self) -> None:
        self._wanted = False
        self._follow()
        loop = asyncio.get_running_loop()
        painted = await loop.run_in_executor(_threads, self._paint)
        described = await loop.run_in_executor(_threads, self._describe)
        self._put(painted, described)
        x_ft, y_ft = _center(self.window)
        whole = self.site.painter.whole(self.window.columns, self.window.rows)
        self.state.at = None if self.window == whole else (x_ft, y_ft, self.window.pixel_ft)

    def _paint(self) -> dict[str, Any]:
        view = self._view()
        picture = self.site.painter.paint(view)
        under = self.site.city.under(view.level, view.window)[::_HOVER_PX, ::_HOVER_PX]
        return {"picture": picture, "under": under, "window": view.window}

    def _describe(self) -> dict[str, list[str]]:
        return cards(self.site.painter, self._level(), self.state.filter)

    def _put(self, painted: dict[str, Any], described: dict[str, list[str]]) -> None:
        window = painted["window"]
        place = {
            "x": [window.west_ft],
            "y": [window.south_ft],
            "dw": [window.east_ft - window.west_ft],
            "dh": [window.north_ft - window.south_ft],
        }
        self.drawn += 1
        self.picture.data = {"image": [painted["picture"]], "number": [self.drawn], **place}
        self.status.object = html.escape(f"{MEASURES[self.state.measure]} · {self.state.filter.in_words()}")
        # What hovering says can come after what is seen.
        self.places.data = {"image": [painted["under"]], **place}
        if described != self.cards.data:
            self.cards.data = described

    def _figure(self) -> Any:
        window = self.window
        plot: Any = figure(
            name="map",
            # What moves them goes to the server as tags: see `_AXES`.
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
        place = {"x": "x", "y": "y", "dw": "dw", "dh": "dh"}
        plot.image("image", **place, source=self.picture, color_mapper=_colors())
        hover = CustomJS(args={"cards": self.cards, "places": self.places}, code=_HOVER)
        for event in (MouseMove, MouseLeave):
            plot.js_on_event(event, hover)
        # Bokeh's own ticks end at 60, which would be 60 ft for all that is shorter than a mile.
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
        # The first thing that a browser says of a plot.
        plot.js_on_change("inner_width", CustomJS(args={"pan": plot.toolbar.tools[0]}, code=_SWIPED))
        plot.on_change("tags", self._moved)
        plot.on_event(Tap, self._tapped)
        plot.on_change("inner_width", self._fitted)
        plot.on_change("inner_height", self._fitted)
        return plot

    # The page.

    def layout(self) -> pn.viewable.Viewable:
        """Everything on the page."""
        state, city = self.state, self.site.city
        measures = {title: name for name, title in MEASURES.items()}
        if self.site.calibration is None:
            measures.pop(MEASURES["level"])
        measure = pn.widgets.RadioButtonGroup(
            name="Measure", options=measures, value=state.measure, button_type="default", margin=(0, 12, 6, 0)
        )
        level = pn.widgets.Select(
            name="Areas",
            options={city.names[name][1]: name for name in city.levels},
            value=self._level(),
            width=190,
            margin=(0, 12, 6, 0),
        )
        _tie(measure, state, "measure")
        _tie(level, state, "level")
        find = pn.widgets.AutocompleteInput(
            name="Find a place",
            options=list(city.level(self._level()).places),
            value=state.chosen if state.chosen in city.level(self._level()).places else "",
            case_sensitive=False,
            search_strategy="includes",
            placeholder="name or code",
            width=230,
            margin=(0, 0, 6, 0),
        )

        def relist(*_events: Any) -> None:
            state.chosen = ""
            find.options = list(city.level(self._level()).places)

        def found(event: Any) -> None:
            bounds = city.bounds_of(self._level(), event.new) if event.new else None
            if bounds is None or event.new == state.chosen:
                return
            state.chosen = event.new
            west, south, east, north = bounds
            window = self.window
            pixel_ft = 1.6 * max((east - west) / window.columns, (north - south) / window.rows)
            self._show(self._around((west + east) / 2, (south + north) / 2, pixel_ft))

        state.param.watch(relist, "level")
        find.param.watch(found, "value")

        def named(event: Any) -> None:
            find.value = event.new if event.new in find.options else ""

        state.param.watch(named, "chosen")
        return pn.Column(
            pn.FlexBox(pn.Column("Measure", measure, margin=0), level, find, align_items="end"),
            self.plot,
            self._steering(),
            self.status,
            pn.pane.HTML(
                pn.bind(lambda measure, _: legend_html(self.site.painter, measure, self._level()),
                        state.param.measure, state.param.level),
                sizing_mode="stretch_width",
            ),
            self._exports(),
            pn.panel(pn.bind(self._profile, state.param.filter, state.param.chosen)),
            sizing_mode="stretch_width",
        )  # fmt: skip

    def _profile(self, keep: Filter, chosen: str) -> pn.viewable.Viewable:
        known = chosen in self.site.city.level(self._level()).places
        return profile(self.site, keep, self._level(), chosen if known else "")

    def _steering(self) -> pn.viewable.Viewable:
        """Buttons for what a mouse does, for whoever has none."""

        def move(across: float, up: float, closer: float = 1.0) -> Any:
            def go(_event: Any) -> None:
                window = self.window
                (x_ft, y_ft), pixel_ft = _center(window), window.pixel_ft
                step = _STEP * pixel_ft
                x_ft, y_ft = x_ft + across * step * window.columns, y_ft + up * step * window.rows
                self._show(self._around(x_ft, y_ft, pixel_ft / closer))

            return go

        def whole(_event: Any) -> None:
            self._show(self.site.painter.whole(self.window.columns, self.window.rows))

        buttons = []
        for label, what, go in (
            ("+", "Zoom in", move(0, 0, 2.0)),
            ("\u2212", "Zoom out", move(0, 0, 0.5)),
            ("\u2190", "Move west", move(-1, 0)),
            ("\u2192", "Move east", move(1, 0)),
            ("\u2191", "Move north", move(0, 1)),
            ("\u2193", "Move south", move(0, -1)),
            ("Whole city", "Show the whole city", whole),
        ):
            button = pn.widgets.Button(name=label, description=what, margin=(4, 4, 4, 0))
            button.on_click(go)
            buttons.append(button)
        return pn.FlexBox(*buttons)

    def _exports(self) -> pn.viewable.Viewable:
        def picture(kind: str) -> Any:
            def make() -> io.BytesIO:
                from patrolscope.dashboards.app.poster import map_figure
                from patrolscope.dashboards.charts.matplotlib_renderer import to_png, to_svg

                drawn = map_figure(self.site, self._view())
                return io.BytesIO(to_png(drawn, 200) if kind == "png" else to_svg(drawn))

            return make

        def table() -> io.BytesIO:
            levels = self.site.painter.levels(self._level(), self.state.filter)
            return io.BytesIO(levels.to_csv(index=False).encode())

        return pn.FlexBox(
            *(
                pn.widgets.FileDownload(
                    callback=make,
                    filename=f"map.{kind}",
                    label=f"{kind.upper()}",
                    button_type="light",
                    margin=(0, 8, 0, 0),
                )
                for kind, make in (("png", picture("png")), ("svg", picture("svg")), ("csv", table))
            )
        )


@lru_cache(maxsize=16)  # 2 MB each at 6,807 block groups
def cards(painter: Painter, level: str, keep: Filter) -> dict[str, list[str]]:
    """What hovering says of each place of a level, as text; kept, as a move of the map changes none of it."""
    rows = painter.levels(level, keep).to_dict("records")
    return {
        "place": [painter.city.called(level, row["place"]) for row in rows],
        "level": [level_words(row) for row in rows],
        "images": [images_words(row, "with police") for row in rows],
        "persons": [f"{row['persons']:,.0f} people" for row in rows],
    }


def _center(window: Window) -> tuple[float, float]:
    return (window.west_ft + window.east_ft) / 2, (window.south_ft + window.north_ft) / 2


def _tie(widget: Any, state: State, name: str) -> None:
    """A widget and a choice that always say the same."""

    def take(event: Any) -> None:
        setattr(state, name, event.new)

    def show(event: Any) -> None:
        widget.value = event.new

    widget.param.watch(take, "value")
    state.param.watch(show, name)

"""Map page: the map with its controls and legend, and the profile of the selected region."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import panel as pn

from patrolscope.dashboards.app.map_view import MapView
from patrolscope.dashboards.app.profile import profile
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.legend import legend_html
from patrolscope.dashboards.maps.painter import MEASURES


def map_page(site: Site, state: State) -> pn.viewable.Viewable:
    """Return the page of one session."""
    view = MapView(site, state)

    def region_profile(keep: Filter, selected: str) -> pn.viewable.Viewable:
        known = selected in site.city.geography(view.geography).regions
        return profile(site, keep, view.geography, selected if known else "")

    def legend(measure: Any, _geography: str) -> str:
        return legend_html(site.painter, measure, view.geography)

    return pn.Column(
        _controls(view),
        view.plot,
        _buttons(view),
        view.status,
        pn.pane.HTML(pn.bind(legend, state.param.measure, state.param.geography), sizing_mode="stretch_width"),
        _downloads(view),
        pn.panel(pn.bind(region_profile, state.param.filter, state.param.selected)),
        sizing_mode="stretch_width",
    )


def _controls(view: MapView) -> pn.viewable.Viewable:
    """Return the choice of measure and geography, and the search for a region."""
    state, city = view.state, view.site.city
    measures = {title: name for name, title in MEASURES.items()}
    if view.site.calibration is None:
        measures.pop(MEASURES["deployment-rate"])
    measure = pn.widgets.RadioButtonGroup(
        name="Measure", options=measures, value=state.measure, button_type="default", margin=(0, 12, 6, 0)
    )
    geography = pn.widgets.Select(
        name="Geography",
        options={city.names[name][1]: name for name in city.geographies},
        value=view.geography,
        width=190,
        margin=(0, 12, 6, 0),
    )
    _link(measure, state, "measure")
    _link(geography, state, "geography")

    def regions() -> list[str]:
        return list(city.geography(view.geography).regions)

    find = pn.widgets.AutocompleteInput(
        name="Find a region",
        options=regions(),
        value=state.selected if state.selected in regions() else "",
        case_sensitive=False,
        search_strategy="includes",
        placeholder="name or code",
        width=230,
        margin=(0, 0, 6, 0),
    )

    def change_geography(*_events: Any) -> None:
        state.selected = ""
        find.options = regions()

    def select(event: Any) -> None:
        if event.new in regions() and event.new != state.selected:
            state.selected = event.new
            view.show_region(event.new)

    def show_selected(event: Any) -> None:
        find.value = event.new if event.new in find.options else ""

    state.param.watch(change_geography, "geography")
    find.param.watch(select, "value")
    state.param.watch(show_selected, "selected")
    return pn.FlexBox(pn.Column("Measure", measure, margin=0), geography, find, align_items="end")


def _link(widget: Any, state: State, name: str) -> None:
    """Keep a widget and a parameter of the state equal."""

    def to_state(event: Any) -> None:
        setattr(state, name, event.new)

    def to_widget(event: Any) -> None:
        widget.value = event.new

    widget.param.watch(to_state, "value")
    state.param.watch(to_widget, name)


def _buttons(view: MapView) -> pn.viewable.Viewable:
    """Return buttons that move the map without a mouse."""
    actions: list[tuple[str, str, Callable[[], None]]] = [
        ("+", "Zoom in", lambda: view.move(0, 0, 2.0)),
        ("\u2212", "Zoom out", lambda: view.move(0, 0, 0.5)),
        ("\u2190", "Move west", lambda: view.move(-1, 0)),
        ("\u2192", "Move east", lambda: view.move(1, 0)),
        ("\u2191", "Move north", lambda: view.move(0, 1)),
        ("\u2193", "Move south", lambda: view.move(0, -1)),
        ("Show whole city", "Zoom out to the whole city", view.show_city),
    ]
    buttons = []
    for label, description, action in actions:
        button = pn.widgets.Button(name=label, description=description, margin=(4, 4, 4, 0))
        button.on_click(lambda _event, action=action: action())
        buttons.append(button)
    return pn.FlexBox(*buttons)


def _downloads(view: MapView) -> pn.viewable.Viewable:
    """Return buttons that save the map and its table."""

    def image(kind: str) -> Callable[[], io.BytesIO]:
        def content() -> io.BytesIO:
            from patrolscope.dashboards.app.poster import map_figure
            from patrolscope.dashboards.charts.matplotlib_renderer import to_png, to_svg

            figure = map_figure(view.site, view.view())
            return io.BytesIO(to_png(figure, 200) if kind == "png" else to_svg(figure))

        return content

    def table() -> io.BytesIO:
        rates = view.site.painter.rates(view.geography, view.state.filter)
        return io.BytesIO(rates.to_csv(index=False).encode())

    return pn.FlexBox(
        *(
            pn.widgets.FileDownload(
                callback=content,
                filename=f"map.{kind}",
                label=kind.upper(),
                button_type="light",
                margin=(0, 8, 0, 0),
            )
            for kind, content in (("png", image("png")), ("svg", image("svg")), ("csv", table))
        )
    )

"""The server of the dashboards: one application a page, on loopback unless told otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import holoviews as hv
import panel as pn

from dashboards.explore.filter_panel import filter_panel
from dashboards.explore.map_page import map_page
from dashboards.explore.site import Site
from dashboards.explore.state import State
from pipeline.errors import PatrolscopeError

Page = Callable[[Site, State], pn.viewable.Viewable]

PAGES: dict[str, tuple[str, Page]] = {"map": ("Map", map_page)}
_TEMPLATE = Path(__file__).with_name("page.html")
_logger = logging.getLogger(__name__)


def applications(site: Site) -> dict[str, Callable[[], pn.Template]]:
    """An application for every page, by its path."""
    hv.extension("bokeh", logo=False)
    pn.extension("tabulator", notifications=False)
    return {path: _application(site, path) for path in PAGES}


def _application(site: Site, path: str) -> Callable[[], pn.Template]:
    title, page = PAGES[path]

    def make() -> pn.Template:
        state = State()
        if pn.state.location is not None:
            state.follow(pn.state.location)
        template = pn.Template(_TEMPLATE.read_text(encoding="utf-8"), nb_template=None)
        for name, value in (
            ("page_title", title),
            ("study_name", site.name),
            ("simulated", site.simulated),
            ("here", path),
            ("pages", [(name, shown) for name, (shown, _) in PAGES.items()]),
        ):
            template.add_variable(name, value)
        template.add_panel("filters", _tried("filters", lambda: filter_panel(site, state)))
        template.add_panel("main", _tried(title, lambda: page(site, state)))
        return template

    return make


def _tried(what: str, make: Callable[[], pn.viewable.Viewable]) -> pn.viewable.Viewable:
    """What a page holds, or a box that says what is wrong with its tables."""
    try:
        return make()
    except PatrolscopeError as error:
        _logger.warning("%s: %s", what, error)
        return pn.pane.Alert(str(error), alert_type="warning", sizing_mode="stretch_width")


def serve(site: Site, *, address: str, port: int, origins: Sequence[str], show: bool) -> Any:
    """Serve until stopped.

    Parameters
    ----------
    address : that is listened at
    origins : host:port under which browsers may open it; empty: the address itself
    """
    apps = applications(site)
    site.painter.scales  # noqa: B018 - before the first reader waits for them
    return pn.serve(
        {"": apps["map"], **apps},
        address=address,
        port=port,
        websocket_origin=list(origins) or [f"{address}:{port}", f"localhost:{port}"],
        show=show,
        title="patrolscope",
        threaded=False,
        start=True,
    )

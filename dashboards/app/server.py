"""Server of the dashboards: one application per page, on loopback by default."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import holoviews as hv
import panel as pn

from patrolscope.dashboards.app import coverage, detector, disparities, run_page
from patrolscope.dashboards.app.filter_panel import filter_panel
from patrolscope.dashboards.app.guard import LOOPBACK, guard, websocket_origins
from patrolscope.dashboards.app.map_page import map_page
from patrolscope.dashboards.app.messages import error_html, message
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.pipeline.errors import PatrolscopeError, SettingsError

Page = Callable[[Site, State], pn.viewable.Viewable]

PAGES: dict[str, tuple[str, Page]] = {
    "map": ("Map", map_page),
    "disparities": ("Disparities", disparities.page),
    "detector": ("Detector", detector.page),
    "coverage": ("Coverage", coverage.page),
    "run": ("Run", run_page.page),
}
UNFILTERED = ("run",)
_TEMPLATE = Path(__file__).with_name("page.html")
_logger = logging.getLogger(__name__)


def applications(site: Site) -> dict[str, Callable[[], pn.Template]]:
    """Return the application of every page by its path."""
    hv.extension("bokeh", logo=False)
    pn.extension("tabulator", notifications=False)
    return {path: _application(site, path) for path in PAGES}


def _application(site: Site, path: str) -> Callable[[], pn.Template]:
    title, page = PAGES[path]

    def build() -> pn.Template:
        state = State()
        if pn.state.location is not None:
            state.follow(pn.state.location, site.city)
        template = pn.Template(_TEMPLATE.read_text(encoding="utf-8"), nb_template=None, location=True)
        for name, value in (
            ("page_title", title),
            ("study_name", site.name),
            ("simulated", site.simulated),
            ("current", path),
            ("filtered", path not in UNFILTERED),
            ("pages", [(name, page_title) for name, (page_title, _) in PAGES.items()]),
        ):
            template.add_variable(name, value)
        if path not in UNFILTERED:
            template.add_panel("filters", _view_or_error(site, "filters", lambda: filter_panel(site, state)))
        template.add_panel("main", _view_or_error(site, title, lambda: page(site, state)))
        return template

    return build


def _view_or_error(site: Site, name: str, build: Callable[[], pn.viewable.Viewable]) -> pn.viewable.Viewable:
    """Build a view. If its tables are missing or damaged, return a message instead."""
    try:
        return build()
    except PatrolscopeError as error:
        _logger.warning("%s: %s", name, error)
        return message(error_html(site.study, error))


def serve(
    site: Site, *, address: str, port: int, origins: Sequence[str], show: bool, echo: Callable[[str], None]
) -> None:
    """Serve the pages until stopped.

    Parameters
    ----------
    site : Site
        Study to show.
    address : str
        Address to listen on.
    port : int
        Port to listen on; 0 selects a free one.
    origins : sequence of str
        Origins (host:port) from which browsers may open the pages; empty for loopback only.
    show : bool
        Open the browser.
    echo : callable
        Called with each line of output.

    Raises
    ------
    SettingsError
        If the address or port is not available, or `address` is not loopback and `origins` is empty.
    """
    if address not in LOOPBACK and not origins:
        raise SettingsError(f"--address {address} is not loopback; expected --allow host:port; add it for each origin")
    port = _free_port(address, port)
    apps = applications(site)
    site.warm()
    origins = list(origins) or [f"{name}:{port}" for name in LOOPBACK]
    server = pn.io.server.get_server(
        {"": apps["map"], **apps},
        address=address,
        port=port,
        websocket_origin=websocket_origins(origins),
        show=show,
        title="patrolscope",
        verbose=False,
    )
    guard(server, origins)
    echo(f"http://{address}:{port}/map (stop with Ctrl-C)")
    if address not in LOOPBACK:
        echo(f"{address} is open to the network: anyone who reaches it can see the study")
    server.start()
    server.io_loop.start()


def _free_port(address: str, port: int) -> int:
    """Return the port if it is available, or a free one for 0."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {address}:{port} ({error.strerror}); choose a different --port or --address"
        ) from error

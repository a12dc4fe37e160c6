"""The server of the dashboards: one application a page, on loopback unless told otherwise."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import holoviews as hv
import panel as pn

from patrolscope.dashboards.app import coverage, detector, disparities, run_page
from patrolscope.dashboards.app.filter_panel import filter_panel
from patrolscope.dashboards.app.map_page import map_page
from patrolscope.dashboards.app.messages import message, told
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
UNFILTERED = ("run",)  # of records, not of images
LOOPBACK = ("127.0.0.1", "localhost")
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
            state.follow(pn.state.location, site.city)
        template = pn.Template(_TEMPLATE.read_text(encoding="utf-8"), nb_template=None, location=True)
        for name, value in (
            ("page_title", title),
            ("study_name", site.name),
            ("simulated", site.simulated),
            ("here", path),
            ("filtered", path not in UNFILTERED),
            ("pages", [(name, shown) for name, (shown, _) in PAGES.items()]),
        ):
            template.add_variable(name, value)
        if path not in UNFILTERED:
            template.add_panel("filters", _tried(site, "filters", lambda: filter_panel(site, state)))
        template.add_panel("main", _tried(site, title, lambda: page(site, state)))
        return template

    return make


def _tried(site: Site, what: str, make: Callable[[], pn.viewable.Viewable]) -> pn.viewable.Viewable:
    """What a page holds, or a box that says what is wrong with its tables."""
    try:
        return make()
    except PatrolscopeError as error:
        _logger.warning("%s: %s", what, error)
        return message(told(site.study, error))


def serve(
    site: Site, *, address: str, port: int, origins: Sequence[str], show: bool, say: Callable[[str], None]
) -> None:
    """Serve until stopped.

    Parameters
    ----------
    address : that is listened at
    port : 0 for any that is free
    origins : host:port under which browsers may open it; empty: the address itself

    Raises
    ------
    SettingsError : the address or port can not be had, or browsers could not open it
    """
    if address not in LOOPBACK and not origins:
        raise SettingsError(f"--address {address}: say with --allow host:port under which name browsers open it")
    port = _free(address, port)
    apps = applications(site)
    site.warm()
    say(f"http://{address}:{port}/map (Ctrl-C ends it)")
    if address not in LOOPBACK:
        say(f"{address} is open to the network: whoever reaches it sees the study")
    pn.serve(
        {"": apps["map"], **apps},
        address=address,
        port=port,
        websocket_origin=list(origins) or [f"{name}:{port}" for name in LOOPBACK],
        show=show,
        title="patrolscope",
        verbose=False,
    )


def _free(address: str, port: int) -> int:
    """The port, or a free one for 0."""
    try:
        with socket.socket() as knock:
            knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            knock.bind((address, port))
            return int(knock.getsockname()[1])
    except OSError as error:
        raise SettingsError(
            f"{address}:{port} can not be listened at ({error.strerror}): take another --port or --address"
        ) from error

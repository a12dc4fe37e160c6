"""Protection of the dashboards' server: known host names only, and headers that keep pages to themselves.

Without a check of the Host header, a page of another site could have its own name resolved to this machine (DNS
rebinding). The browser would then take the dashboards for a part of that site.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.routing import AnyMatches, HostMatches, Rule, RuleRouter
from tornado.web import OutputTransform

LOOPBACK = ("127.0.0.1", "localhost")
# Bokeh's models run JavaScript from text, and Panel's pages have inline scripts, modules as blobs, and inline styles.
_POLICY = (
    "default-src 'self'",
    "script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "worker-src 'self' blob:",
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",
    "frame-ancestors 'self'",
)


class _Headers(OutputTransform):  # type: ignore[misc]  # tornado ships no types
    """Adds the headers to every response, those of static files and errors included."""

    def transform_first_chunk(
        self,
        status_code: int,
        headers: HTTPHeaders,
        chunk: bytes,
        finishing: bool,  # noqa: ARG002
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers["Content-Security-Policy"] = "; ".join(_POLICY)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "SAMEORIGIN"
        headers["Referrer-Policy"] = "same-origin"
        # Bokeh lets pages of all sites read some of its answers, which contain a session's token.
        headers.pop("Access-Control-Allow-Origin", None)
        return status_code, headers, chunk


def guard(server: Any, origins: Sequence[str]) -> None:
    """Let a server answer requests for known host names only, with headers for the browser.

    Parameters
    ----------
    server : bokeh.server.server.Server
        Server that has not been started.
    origins : sequence of str
        Origins (host or host:port) of the pages, in addition to loopback.
    """
    names = {re.escape(name) for origin in (*LOOPBACK, *origins) for name in (_host(origin), f"[{_host(origin)}]")}
    server._tornado.add_transform(_Headers)  # noqa: SLF001 - Bokeh has no other way to its application
    known = Rule(HostMatches(f"({'|'.join(sorted(names))})$"), server._tornado)  # noqa: SLF001
    server._http.request_callback = RuleRouter([known, Rule(AnyMatches(), _refuse)])  # noqa: SLF001


def websocket_origins(origins: Sequence[str]) -> list[str]:
    """Return origins as Bokeh compares them. A browser leaves out the port of https, and Bokeh then expects 80."""
    return [*origins, *(f"{_host(origin)}:80" for origin in origins if origin.endswith(":443"))]


def _host(origin: str) -> str:
    return re.sub(r":\d+$", "", origin).strip("[]").lower()


def _refuse(request: HTTPServerRequest) -> None:
    text = b"This host name is not known to the dashboard; start it with --allow host:port.\n"
    headers = HTTPHeaders({"Content-Type": "text/plain", "Content-Length": str(len(text)), "Connection": "close"})
    connection = request.connection
    if connection is not None:
        connection.write_headers(ResponseStartLine("HTTP/1.1", 421, "Misdirected Request"), headers, text)
        connection.finish()

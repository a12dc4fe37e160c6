"""Messages in place of views that cannot be shown, without the paths of the study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import panel as pn
from markupsafe import Markup

from patrolscope.dashboards.app.cards import CARD, HtmlPane
from patrolscope.pipeline.errors import PatrolscopeError
from patrolscope.pipeline.study.store import Study

# A URL, or a path from the root or a home folder, up to its last part. Relative paths are kept.
_FOLDERS = re.compile(r"""(?:\w+://|(?<![\w.<])~?/)(?:[^\s/:;,()'"]+/)*(?=[^\s/])""")


def missing_html(what: str, command: str) -> Markup:
    """Render a notice that tables do not exist yet, with the command that creates them."""
    return Markup('<p class="status">{} missing. Run <code>patrolscope {} --study STUDY</code>.</p>').format(
        what, command
    )


def error_html(study: Study, error: PatrolscopeError) -> Markup:
    """Render an error as HTML with directory names removed."""
    text = str(error)
    for root in sorted({study.root, study.base}, key=len, reverse=True):
        text = text.replace(f"{root}/", "").replace(root, "STUDY")
    # The pattern below ends a path at a space, so folders in the settings are removed first.
    for path in sorted(_texts(study.settings.model_dump(mode="json")), key=len, reverse=True):
        folder = path.rpartition("/")[0]
        if folder and (path.startswith(("/", "~")) or "://" in path):
            text = text.replace(f"{folder}/", "")
    return Markup('<p class="status warning">{}</p>').format(_FOLDERS.sub("", text))


def _texts(value: Any) -> Iterator[str]:
    """Yield all strings in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def message(html: Markup) -> pn.Column:
    """Return a card with text only."""
    return pn.Column(HtmlPane(html), styles=CARD, sizing_mode="stretch_width", margin=0)

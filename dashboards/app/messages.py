"""What a page says in place of a view that can not be shown, without a path of the study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import panel as pn
from markupsafe import Markup

from patrolscope.dashboards.app.charts import CARD, HtmlPane
from patrolscope.pipeline.errors import PatrolscopeError
from patrolscope.pipeline.study.store import Study

# A URL, or a path from the root or a home folder, up to its last part. Paths that count from the study stay.
_FOLDERS = re.compile(r"""(?:\w+://|(?<![\w.<])~?/)(?:[^\s/:;,()'"]+/)*(?=[^\s/])""")


def not_yet(what: str, command: str) -> Markup:
    """That a view's tables do not exist yet, and what makes them, as HTML."""
    return Markup('<p class="status">{} not made yet. <code>patrolscope {} --study STUDY</code> makes it.</p>').format(
        what, command
    )


def told(study: Study, error: PatrolscopeError) -> Markup:
    """An error as HTML: the message without folders, as nobody but the study's owner is to know where it lies."""
    text = str(error)
    for root in sorted({study.root, study.base}, key=len, reverse=True):
        text = text.replace(f"{root}/", "").replace(root, "STUDY")
    # A folder with a blank in its name ends a path for the pattern below; those that the settings name are known.
    for path in sorted(_texts(study.settings.model_dump(mode="json")), key=len, reverse=True):
        folder = path.rpartition("/")[0]
        if folder and (path.startswith(("/", "~")) or "://" in path):
            text = text.replace(f"{folder}/", "")
    return Markup('<p class="status warning">{}</p>').format(_FOLDERS.sub("", text))


def _texts(value: Any) -> Iterator[str]:
    """All texts among settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def message(html: Markup) -> pn.Column:
    """A card with words alone."""
    return pn.Column(HtmlPane(html), styles=CARD, sizing_mode="stretch_width", margin=0)

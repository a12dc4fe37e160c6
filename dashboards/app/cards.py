"""Cards of the pages: a chart with its text and buttons to save it, and HTML fragments."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
from markupsafe import Markup

from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.app.charts import NOTHING, Chart
from patrolscope.dashboards.charts.bokeh_renderer import FONT
from patrolscope.dashboards.charts.style import INK, MUTED, ORANGE

LINE = "#d9dde2"
# Style of the text in a pane, which the style sheet of the page does not reach.
STYLE = f"""
:host {{ font-family: {FONT}; color: {INK}; line-height: 1.5; }}
h2 {{ font-size: 1.22rem; line-height: 1.3; margin: 0 0 .15rem; letter-spacing: -.005em; }}
h3 {{ font-size: 1.02rem; line-height: 1.3; margin: 0 0 .1rem; }}
p {{ margin: .1rem 0; max-width: 62rem; }}
p.note, p.key, p.caption {{ color: {MUTED}; font-size: .86rem; }}
p.key span {{ margin-right: 1.1rem; white-space: nowrap; }}
p.status {{ font-size: .95rem; }}
p.warning {{ border-left: 3px solid {ORANGE}; padding-left: .7rem; }}
code {{ background: #f4f6f8; border-radius: 3px; padding: .1rem .3rem; font-size: .92em; }}
table {{ border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; line-height: 1.35; }}
th, td {{ padding: .3rem .9rem .3rem 0; text-align: right; border-top: 1px solid {LINE}; vertical-align: top; }}
thead th {{ color: {MUTED}; font-weight: 600; border-top: 0; }}
th:first-child, td:first-child, td.text, th.text {{ text-align: left; }}
tbody td {{ white-space: nowrap; }} tbody td.text {{ white-space: normal; }}
td.text:last-child {{ min-width: 15rem; }}
/* A shadow marks hidden columns at the right; the first column stays visible. */
.scroll {{ overflow-x: auto;
  background: linear-gradient(90deg, transparent, #fff 60%) right / 36px 100% no-repeat local,
  linear-gradient(90deg, transparent, rgba(27, 31, 36, .22)) right / 14px 100% no-repeat scroll; }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: #fff; }}
a {{ color: #1f5fa8; }}
"""
CARD = {
    "background": "#ffffff",
    "border": f"1px solid {LINE}",
    "border-radius": "8px",
    "padding": "16px 18px 10px",
    "box-sizing": "border-box",
}


class HtmlPane(pn.pane.HTML):  # type: ignore[misc]  # panel ships no types
    """Pane of HTML whose values from data are already escaped."""

    def __init__(self, html: Markup = NOTHING, style: str = "") -> None:
        super().__init__("", sizing_mode="stretch_width", stylesheets=[STYLE, style], margin=0)
        self.set_html(html)

    def set_html(self, html: Markup) -> None:
        """Replace the HTML."""
        # A plain string: Panel escapes it for transport. It would skip a Markup, and the browser would then undo the
        # escaping of the names inside.
        self.object = str(html)


def paragraph(text: str, kind: str = "status") -> Markup:
    """Render plain text as a paragraph."""
    return Markup('<p class="{}">{}</p>').format(kind, text)


class Card:
    """Chart on a served page, which can be replaced by a different one."""

    def __init__(
        self, chart: Chart, *, level: int = 2, beside: Sequence[pn.viewable.Viewable] = (), wide: bool = False
    ) -> None:
        self.chart = chart
        self._level = level
        self._head, self._foot = HtmlPane(chart.head(level)), HtmlPane(chart.foot())
        self._plot = pn.pane.Bokeh(chart.figure, sizing_mode="stretch_width", margin=(6, 0))
        self._plot.visible = chart.figure is not None
        self._buttons = SaveButtons(chart.title, lambda: self.chart)
        self.view = pn.Column(
            self._head,
            self._plot,
            self._foot,
            *beside,
            self._buttons.view,
            styles=CARD | {"flex": "1 1 100%" if wide else "1 1 400px", "min-width": "min(100%, 340px)"},
            margin=0,
            sizing_mode="stretch_width",
        )

    def show(self, chart: Chart) -> None:
        """Replace the chart."""
        self.chart = chart
        self._head.set_html(chart.head(self._level))
        self._foot.set_html(chart.foot())
        self._plot.object = chart.figure
        self._plot.visible = chart.figure is not None
        self._buttons.refresh()


class SaveButtons:
    """Buttons that save the current chart of a card."""

    def __init__(self, title: str, chart: Callable[[], Chart]) -> None:
        self._chart = chart
        self._buttons = {ending: self._button(ending) for ending in ("png", "svg", "csv")}
        self.view = _Group(*self._buttons.values(), name=f"Save: {title}", margin=(4, 0, 0, -6), styles={"gap": "2px"})
        self.refresh()

    def refresh(self) -> None:
        """Name the files after the current chart, and hide the buttons of formats that it does not have."""
        chart = self._chart()
        for ending, button in self._buttons.items():
            button.filename = f"{chart.name}.{ending}"
            button.visible = ending in chart.files

    def _file(self, ending: str) -> bytes:
        """Return the file of the chart at the time of the click."""
        return self._chart().files[ending]()

    def _button(self, ending: str) -> pn.widgets.FileDownload:
        return download(f"chart.{ending}", lambda: self._file(ending))


def download(file: str, content: Callable[[], bytes]) -> pn.widgets.FileDownload:
    """Return a button that creates a file when clicked; its label is the extension of `file`."""
    return pn.widgets.FileDownload(
        callback=lambda: io.BytesIO(content()),
        filename=file,
        label=file.rsplit(".", 1)[-1].upper(),
        color="light",
        embed=False,
        auto=True,
        width=84,
        height=30,
        margin=0,
    )


class _Group(pn.Row):  # type: ignore[misc]  # panel ships no types
    """Row that a screen reader announces by its name."""

    def _get_properties(self, doc: Any) -> dict[str, Any]:
        named = {"html_attributes": {"role": "group", "aria-label": self.name}}
        return {**super()._get_properties(doc), **named}


def cards(*views: pn.viewable.Viewable) -> pn.FlexBox:
    """Arrange cards side by side, or below each other on a narrow screen."""
    return pn.FlexBox(*views, sizing_mode="stretch_width", gap="18px", margin=0)


def with_interval(row: Any) -> str:
    """Return the estimate and interval of a row as text, or its upper bound."""
    if row.get("bound") == "below":
        return f"below {row['upper']:.3f}"
    if np.isnan(row["lower"]):
        return f"{row['estimate']:.3f}"
    return f"{row['estimate']:.3f} ({row['lower']:.3f} to {row['upper']:.3f})"


def share(part: float, whole: float) -> str:
    """Return a share as a percentage."""
    if not whole:
        return UNKNOWN
    percent = 100 * part / whole
    return f"{percent:.1f}%" if percent >= 1 else f"{percent:.2g}%"


def html_table(frame: pd.DataFrame, title: str, *, text: Sequence[str] = ()) -> Markup:
    """Render a table of strings as HTML.

    Parameters
    ----------
    frame : DataFrame
        Strings.
    title : str
        Name of the table for screen readers.
    text : sequence of str
        Columns aligned to the left.
    """
    kinds = [Markup(' class="text"') if name in text else Markup("") for name in frame.columns]
    head = Markup("").join(
        Markup("<th scope=col{}>{}</th>").format(kind, name) for kind, name in zip(kinds, frame.columns, strict=True)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td{}>{}</td>").format(kind, value) for kind, value in zip(kinds, row, strict=True))
        )
        for row in frame.itertuples(index=False, name=None)
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{0}"><table aria-label="{0}">'
        "<thead><tr>{1}</tr></thead><tbody>{2}</tbody></table></div>"
    ).format(title, head, body)

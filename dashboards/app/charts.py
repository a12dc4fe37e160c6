"""Charts that pages share, and what stands around one: title, key, main numbers in words, buttons to save it.

A chart is a value: the served pages show it in a card, the static ones write it down, and both say the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
from bokeh.plotting import figure
from markupsafe import Markup
from matplotlib.figure import Figure

from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.charts import bokeh_renderer, matplotlib_renderer
from patrolscope.dashboards.charts.bokeh_renderer import FONT
from patrolscope.dashboards.charts.matplotlib_renderer import to_png, to_svg
from patrolscope.dashboards.charts.specs import Specification
from patrolscope.dashboards.charts.style import INK, MUTED, ORANGE

LINE = "#d9dde2"
GLYPHS = {"o": "\u25cf", "D": "\u25c6", "s": "\u25a0", "^": "\u25b2"}
NOTHING = Markup("")

# Of the words around a chart; the pages' own style sheet does not reach into them.
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
/* A shadow where there is more to the right; what the first column says stays. */
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


@dataclass(frozen=True)
class Chart:
    """A chart and the words around it.

    Attributes
    ----------
    name : of files that it is saved as
    note : how it is read
    caption : its main numbers in words, for whoever does not see it
    figure : None where there is nothing to draw; the caption then says why
    key : name, color and marker of each kind of mark
    frame : the numbers that it shows
    picture : draws it for print; None where it has no such form
    """

    name: str
    title: str
    note: str = ""
    caption: str = ""
    figure: figure | None = None
    key: tuple[tuple[str, str, str], ...] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    picture: Callable[[], Figure] | None = None

    @property
    def files(self) -> dict[str, Callable[[], bytes]]:
        """What it can be saved as, by the ending of the file."""
        made: dict[str, Callable[[], bytes]] = {}
        if self.picture is not None:
            draw = self.picture
            made = {"png": lambda: to_png(draw()), "svg": lambda: to_svg(draw())}
        if len(self.frame.columns):
            made["csv"] = lambda: self.frame.to_csv(index=False).encode()
        return made

    def head(self, level: int = 2) -> Markup:
        """Title, note and key, as HTML."""
        marks = Markup("").join(
            Markup('<span><span style="color:{}" aria-hidden="true">{}</span> {}</span> ').format(
                color, GLYPHS[marker], name
            )
            for name, color, marker in self.key
        )
        parts = [Markup("<h{0}>{1}</h{0}>").format(level, self.title)]
        if self.note:
            parts.append(Markup('<p class="note">{}</p>').format(self.note))
        if self.key:
            parts.append(Markup('<p class="key">{}</p>').format(marks))
        return Markup("").join(parts)

    def foot(self) -> Markup:
        """Main numbers in words, as HTML."""
        return Markup('<p class="caption">{}</p>').format(self.caption) if self.caption else NOTHING


def chart_of(
    name: str, spec: Specification, *, note: str = "", caption: str, frame: pd.DataFrame, alt: str = ""
) -> Chart:
    """Return a chart that a specification describes, for the page and for files.

    Parameters
    ----------
    name : str
        Name of its files.
    spec : Specification
        Drawn by Bokeh on the page and by Matplotlib in files.
    note : str
        How to read the chart.
    caption : str
        Main numbers as text.
    frame : DataFrame
        Numbers of the CSV file.
    alt : str
        Description for screen readers, if it differs from title and caption.
    """
    return Chart(
        name,
        spec.title,
        note,
        caption,
        bokeh_renderer.draw(spec, alt=alt or f"{spec.title}. {caption}"),
        bokeh_renderer.legend_entries(spec),
        frame,
        lambda: matplotlib_renderer.draw(spec),
    )


# Cards.


class HtmlPane(pn.pane.HTML):  # type: ignore[misc]  # panel ships no types
    """A pane of HTML, in which everything from data is escaped already."""

    def __init__(self, html: Markup = NOTHING, style: str = "") -> None:
        super().__init__("", sizing_mode="stretch_width", stylesheets=[STYLE, style], margin=0)
        self.say(html)

    def say(self, html: Markup) -> None:
        """Show other HTML."""
        # As a plain text: panel escapes it for the way, and a Markup would say that it is escaped already, so that the
        # browser would undo the escaping of names in it.
        self.object = str(html)


def paragraph(text: str, kind: str = "status") -> Markup:
    """A paragraph of plain text, as HTML."""
    return Markup('<p class="{}">{}</p>').format(kind, text)


class Card:
    """A chart on a served page, that can be changed for another one."""

    def __init__(
        self, chart: Chart, *, level: int = 2, beside: Sequence[pn.viewable.Viewable] = (), wide: bool = False
    ) -> None:
        self.chart = chart
        self._level = level
        self._head, self._foot = HtmlPane(chart.head(level)), HtmlPane(chart.foot())
        self._plot = pn.pane.Bokeh(chart.figure, sizing_mode="stretch_width", margin=(6, 0))
        self._plot.visible = chart.figure is not None
        self._saves = Saves(chart.title, lambda: self.chart)
        self.view = pn.Column(
            self._head,
            self._plot,
            self._foot,
            *beside,
            self._saves.view,
            styles=CARD | {"flex": "1 1 100%" if wide else "1 1 400px", "min-width": "min(100%, 340px)"},
            margin=0,
            sizing_mode="stretch_width",
        )

    def show(self, chart: Chart) -> None:
        """Show another chart in its place."""
        self.chart = chart
        self._head.say(chart.head(self._level))
        self._foot.say(chart.foot())
        self._plot.object = chart.figure
        self._plot.visible = chart.figure is not None
        self._saves.refresh()


class Saves:
    """Buttons that save what a card shows at the moment."""

    def __init__(self, title: str, chart: Callable[[], Chart]) -> None:
        self._chart = chart
        self._buttons = {ending: self._button(ending) for ending in ("png", "svg", "csv")}
        self.view = _Group(*self._buttons.values(), name=f"Save: {title}", margin=(4, 0, 0, -6), styles={"gap": "2px"})
        self.refresh()

    def refresh(self) -> None:
        """Name the files after the chart; what it can not be saved as has no button."""
        chart = self._chart()
        for ending, button in self._buttons.items():
            button.filename = f"{chart.name}.{ending}"
            button.visible = ending in chart.files

    def _file(self, ending: str) -> bytes:
        """What the card shows when the button is pressed, not when it was made."""
        return self._chart().files[ending]()

    def _button(self, ending: str) -> pn.widgets.FileDownload:
        return download(f"chart.{ending}", lambda: self._file(ending))


def download(file: str, make: Callable[[], bytes]) -> pn.widgets.FileDownload:
    """A button that makes a file when it is pressed, named by the file's ending."""
    return pn.widgets.FileDownload(
        callback=lambda: io.BytesIO(make()),
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
    """A row that a screen reader announces by its name."""

    def _get_properties(self, doc: Any) -> dict[str, Any]:
        named = {"html_attributes": {"role": "group", "aria-label": self.name}}
        return {**super()._get_properties(doc), **named}


def cards(*views: pn.viewable.Viewable) -> pn.FlexBox:
    """Cards side by side where there is room, below each other where there is none."""
    return pn.FlexBox(*views, sizing_mode="stretch_width", gap="18px", margin=0)


# Text and tables.


def with_interval(row: Any) -> str:
    """A ratio and its interval in words, from a row with estimate, lower and upper."""
    if np.isnan(row["lower"]):
        return f"{row['estimate']:.3f}"
    return f"{row['estimate']:.3f} ({row['lower']:.3f} to {row['upper']:.3f})"


def share(part: float, whole: float) -> str:
    """A share in percent, in words."""
    if not whole:
        return UNKNOWN
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"


def html_table(frame: pd.DataFrame, title: str, *, text: Sequence[str] = ()) -> Markup:
    """A small table of texts as HTML; columns in `text` stand to the left."""
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

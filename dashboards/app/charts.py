"""Charts of the pages: title, legend, figure, caption, and data. Served and static pages show the same charts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from bokeh.plotting import figure
from markupsafe import Markup
from matplotlib.figure import Figure

from patrolscope.dashboards.charts import bokeh_renderer, matplotlib_renderer
from patrolscope.dashboards.charts.matplotlib_renderer import to_png, to_svg
from patrolscope.dashboards.charts.specs import Specification

GLYPHS = {"o": "\u25cf", "D": "\u25c6", "s": "\u25a0", "^": "\u25b2"}
NOTHING = Markup("")


@dataclass(frozen=True)
class Chart:
    """Chart with its title, legend, and caption.

    Attributes
    ----------
    name : str
        Stem of the names of saved files.
    note : str
        Explanation of the marks.
    caption : str
        Main numbers as text, for readers who cannot see the figure.
    figure : figure, optional
        None if there is nothing to draw; the caption then gives the reason.
    key : tuple of tuple of str
        Name, color, and marker of each kind of mark.
    frame : DataFrame
        Numbers of the figure.
    picture : callable, optional
        Draws the print version; None if there is none.
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
        """Functions that return the content of a saved file, by its extension."""
        files: dict[str, Callable[[], bytes]] = {}
        if self.picture is not None:
            draw = self.picture
            files = {"png": lambda: to_png(draw()), "svg": lambda: to_svg(draw())}
        if len(self.frame.columns):
            files["csv"] = lambda: self.frame.to_csv(index=False).encode()
        return files

    def head(self, level: int = 2) -> Markup:
        """Render title, note, and legend as HTML."""
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
        """Render the caption as HTML."""
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

"""`patrolscope dashboard --static`: pages that open from a disk, without a server and without a network.

They show the whole study; what acts on the images themselves (filters, another threshold) needs the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
from bokeh.embed import components
from bokeh.util.paths import bokehjs_path
from markupsafe import Markup

from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.analysis.stages.sensitivity import SENSITIVITY_FOLDER
from patrolscope.dashboards.app.charts import Chart, html_table, paragraph
from patrolscope.dashboards.app.coverage import area_html, people_charts, time_charts
from patrolscope.dashboards.app.detector import curve_charts, evaluation_of, quality_html
from patrolscope.dashboards.app.disparities import (
    KINDS,
    TABLE,
    TEXTS,
    ZONES,
    group_chart,
    place_chart,
    place_table,
    published_table,
    sensitivity_html,
    status_of,
    stored_results,
    ways_of,
)
from patrolscope.dashboards.app.gallery import load_gallery
from patrolscope.dashboards.app.messages import not_yet
from patrolscope.dashboards.app.run_page import (
    ledger_html,
    ledger_table,
    stage_table,
    stages_html,
    summary_text,
    time_chart,
)
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.report.report import MAPS, headline
from patrolscope.dashboards.stages import FIGURES_FOLDER
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.study.output_folder import check_folder, fill_folder

STYLE_FILE = "patrolscope.css"  # a folder that has it is an earlier result
SCRIPT_FILE = "bokeh.min.js"
INDEX = "index.html"
PAGES = {
    INDEX: "Overview",
    "map.html": "Map",
    "disparities.html": "Disparities",
    "detector.html": "Detector",
    "coverage.html": "Coverage",
    "run.html": "Run",
}
ABOUT = {
    "map.html": "Where images were taken, and where they show a police vehicle.",
    "disparities.html": "How often images show one around different people and in different places, with intervals.",
    "detector.html": "How well the detector tells images apart, and what its score is worth.",
    "coverage.html": "When and where images were taken, and who lives where few were.",
    "run.html": "Stages, rates, and where every row went.",
}
MapPage = Callable[[Site], Markup | None]


@dataclass(frozen=True)
class Section:
    """A card of a static page: a chart, or HTML in which everything from data is escaped.

    Attributes
    ----------
    body : below the chart
    files : content of files beside the page, to be saved from the card
    """

    chart: Chart | None = None
    body: Markup = Markup("")  # noqa: RUF009 - it can not be changed
    name: str = ""
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    wide: bool = False


def write_static(site: Site, folder: Path, *, map_page: MapPage | None = None) -> Iterator[str]:
    """Write the pages and what they refer to; yields a line on what was written.

    Parameters
    ----------
    folder : new, or of an earlier result
    map_page : makes the HTML of the map's page, with its pictures as data; None, or where it gives None: the maps of
        figures/

    Raises
    ------
    SourceError : the folder holds other files, or can not be written to
    """
    check_folder(folder, known_by=STYLE_FILE)
    content: dict[str, bytes] = {
        STYLE_FILE: Path(__file__).with_name("static.css").read_bytes(),
        SCRIPT_FILE: (bokehjs_path() / "js" / SCRIPT_FILE).read_bytes(),
    }
    for name, page in _pages(site, map_page).items():
        content[name] = page.render(site, name, content).encode()
    fill_folder(folder, content)
    size = sum(map(len, content.values()))
    yield f"{folder / INDEX}: {len(content)} files, {size / 1e6:.1f} MB; opens without a server and without a network"


@dataclass(frozen=True)
class Page:
    """A page before it is written; `ways` are pages of the same estimates with other intervals."""

    title: str
    sections: tuple[Section, ...]
    lead: Markup = Markup("")  # noqa: RUF009
    ways: dict[str, str] = field(default_factory=dict)

    def render(self, site: Site, here: str, content: dict[str, bytes]) -> str:
        """HTML of the page; the files of its cards are added to `content`."""
        plots = {
            section.chart.name: section.chart.figure
            for section in self.sections
            if section.chart is not None and section.chart.figure is not None
        }
        script, divisions = components(plots) if plots else ("", {})
        cards = []
        for section in self.sections:
            chart, files = section.chart, dict(section.files)
            if chart is not None:
                files |= {f"{chart.name}.{ending}": make for ending, make in chart.files.items()}
            # The second page of the same estimates has files of its own.
            beside = {_beside(here, file): make for file, make in files.items()}
            content |= {file: make() for file, make in beside.items()}
            cards.append(
                {
                    "head": chart.head() if chart else "",
                    "plot": divisions.get(chart.name, "") if chart else "",
                    "body": section.body,
                    "foot": chart.foot() if chart else "",
                    "name": chart.title if chart else section.name,
                    "files": list(beside),
                    "wide": section.wide,
                }
            )
        return _template().render(
            title=self.title,
            name=site.name,
            simulated=site.simulated,
            pages=PAGES,
            here=here,
            lead=self.lead,
            ways=self.ways,
            cards=cards,
            script=script,
            version=version("patrolscope"),
        )


def _beside(here: str, file: str) -> str:
    stem = here.removesuffix(".html")
    return file if here in PAGES else f"{stem}_{file}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("static.html")


# The pages.


def _pages(site: Site, map_page: MapPage | None) -> dict[str, Page]:
    return {
        INDEX: _overview(site),
        "map.html": _map(site, map_page),
        **_disparities(site),
        "detector.html": _detector(site),
        "coverage.html": _coverage(site),
        "run.html": _run(site),
    }


def _overview(site: Site) -> Page:
    city = site.study.settings.city.name
    title = f"How often do dashcam images of {city} show a police vehicle, and where?"
    if site.results is None:
        lead = not_yet("Estimates are", "run")
    else:
        percent = site.study.settings.estimate.interval_percent
        lead = paragraph(" ".join(headline(site.results, city, percent)), "lead")
    sections = tuple(
        Section(
            body=Markup('<h2><a href="{}">{}</a></h2>').format(file, PAGES[file]) + paragraph(about, "note"),
            name=PAGES[file],
        )
        for file, about in ABOUT.items()
    )
    return Page(title, sections, lead)


def _map(site: Site, map_page: MapPage | None) -> Page:
    made = map_page(site) if map_page is not None else None
    if made is not None:
        return Page("Map", (Section(body=made, wide=True),))
    sections = []
    for name, title, caption in MAPS:
        file = f"{name}.png"
        if not site.study.exists(FIGURES_FOLDER, file):
            continue
        city = site.study.settings.city.name
        picture = Markup('<h2>{}</h2><p class="note">{}</p><img src="{}" alt="{}" loading="lazy">').format(
            title, caption, file, f"Map of {city}: {title}. {caption}"
        )
        read = _reader(site, FIGURES_FOLDER, file)
        sections.append(Section(body=picture, name=title, files={file: read}))
    return Page("Map", tuple(sections) or (Section(body=not_yet("Maps are", "run")),))


def _reader(site: Site, *file: str) -> Callable[[], bytes]:
    return lambda: site.study.read_bytes(*file)


def _disparities(site: Site) -> dict[str, Page]:
    """A page for every way of resampling; the first has the plain name."""
    if site.results is None:
        return {"disparities.html": Page("Disparities", (Section(body=not_yet("Estimates are", "run")),))}
    ways = list(ways_of(site.results))
    files = {
        "disparities.html" if not number else f"disparities_{number + 1}.html": way for number, way in enumerate(ways)
    }
    published = published_table(site) if site.published else None
    pages = {}
    for file, way in files.items():
        results = stored_results(site, way)
        groups = [
            Section(group_chart(site, results, kind, ZONES["Both"], published, Filter()), wide=kind == "race")
            for kind in KINDS
        ]
        table = place_table(site, results, published)
        places = Section(place_chart(site, results, table, [], Filter()), found_table(table), wide=True)
        sections = [*groups, places]
        if file == "disparities.html":
            sections.append(_sensitivity(site))
        pages[file] = Page(
            "Disparities", tuple(sections), status_of(site, Filter(), results), files if len(files) > 1 else {}
        )
    return pages


def _sensitivity(site: Site) -> Section:
    files = [f"sensitivity.{ending}" for ending in ("png", "svg", "csv")]
    there = {
        name: _reader(site, SENSITIVITY_FOLDER, name) for name in files if site.study.exists(SENSITIVITY_FOLDER, name)
    }
    return Section(body=sensitivity_html(site.study), name="sensitivity", files=there, wide=True)


def found_table(table: pd.DataFrame) -> Markup:
    """Neighborhoods as a table that the page's script searches and sorts, as HTML."""
    columns = [name for name in TABLE if name in table]
    texts = set(TEXTS)
    digits = {"level": 3, "images": 0}
    head = Markup("").join(
        Markup('<th scope="col"{}><button type="button">{}</button></th>').format(
            Markup(' class="text"') if name in texts else "", TABLE[name]
        )
        for name in columns
    )
    body = []
    for row in table[columns].to_dict("records"):
        cells = []
        for name in columns:
            value = row[name]
            missing = pd.isna(value)
            if name in texts:
                cells.append(Markup('<td class="text">{}</td>').format("" if missing else value))
            else:
                shown = UNKNOWN if missing else f"{value:,.{digits.get(name, 3)}f}"
                cells.append(Markup('<td data-value="{}">{}</td>').format("" if missing else value, shown))
        body.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    return Markup(
        '<label for="find">Find a neighborhood or borough</label><br><input type="search" id="find">'
        '<div class="scroll" tabindex="0" role="region" aria-label="Neighborhoods">'
        '<table class="find" data-box="find" aria-label="Neighborhoods"><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(head, Markup("").join(body))


def _detector(site: Site) -> Page:
    evaluation = evaluation_of(site) if site.study.settings.sources.validation is not None else None
    if evaluation is None:
        return Page("Detector", (Section(body=paragraph("The study has no labeled images to evaluate it on.")),))
    threshold = site.study.settings.estimate.threshold
    quality = Markup("<h2>At the study\u2019s threshold, {:.6g}</h2>").format(threshold) + quality_html(site, threshold)
    sections = [*(Section(chart) for chart in curve_charts(site, evaluation)), Section(body=quality, wide=True)]
    try:
        gallery = load_gallery(site.study)
    except StageNotRunError:
        pass
    else:
        counts = pd.DataFrame(
            {"Status": list(gallery.statuses), "Images": [f"{images:,}" for images in gallery.statuses.values()]}
        )
        note = paragraph("Images themselves are shown by the server alone: a page can be passed on.", "note")
        sections.append(
            Section(
                body=Markup("<h2>Images looked at</h2>")
                + html_table(counts, "Images by status", text=["Status"])
                + note
            )
        )
    return Page("Detector", tuple(sections))


def _coverage(site: Site) -> Page:
    charts = [*time_charts(site, Filter()), *people_charts(site, Filter())]
    sections = [Section(chart, wide=chart.name == "week") for chart in charts]
    return Page("Coverage", (*sections, Section(body=area_html(site, Filter()), wide=True)))


def _run(site: Site) -> Page:
    table = stage_table(site)
    return Page(
        "Run",
        (
            Section(body=Markup("<h2>Stages</h2>") + stages_html(table), wide=True),
            Section(time_chart(site, table), wide=True),
            Section(body=Markup("<h2>Where rows went</h2>") + ledger_html(ledger_table(site.study)), wide=True),
        ),
        paragraph(summary_text(table), "lead"),
    )

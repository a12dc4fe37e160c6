"""Static pages of `patrolscope dashboard --static`, which need neither a server nor a network.

They show the whole study. Filters and other thresholds need the server.
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

from patrolscope.analysis.stages.sensitivity import SENSITIVITY_FOLDER
from patrolscope.dashboards.app.cards import html_table, paragraph
from patrolscope.dashboards.app.charts import Chart
from patrolscope.dashboards.app.coverage import area_html, people_charts, time_charts
from patrolscope.dashboards.app.detector import curve_charts, evaluation_of, quality_html
from patrolscope.dashboards.app.disparities import (
    KINDS,
    ZONES,
    group_chart,
    place_chart,
    published_table,
    schemes_of,
    sensitivity_html,
    status_of,
    stored_results,
)
from patrolscope.dashboards.app.gallery import load_gallery
from patrolscope.dashboards.app.messages import missing_html
from patrolscope.dashboards.app.neighborhood_table import neighborhood_table, static_table
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

STYLE_FILE = "patrolscope.css"  # marks the folder of an earlier result
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
    "map.html": "Number of images, detection rate, and deployment rate.",
    "disparities.html": "Relative deployment rates by group of residents and by region, with intervals.",
    "detector.html": "Accuracy and calibration of the detector.",
    "coverage.html": "Images by time and area, and residents of areas with few images.",
    "run.html": "Stages, processing rates, and the ledger of rows.",
}
MapPage = Callable[[Site], Markup | None]


@dataclass(frozen=True)
class Section:
    """Card of a static page: a chart, or HTML whose values from data are escaped.

    Attributes
    ----------
    body : Markup
        HTML below the chart.
    files : dict of str to callable
        Functions that return the content of files to download, by name.
    """

    chart: Chart | None = None
    body: Markup = Markup("")  # noqa: RUF009 - immutable
    name: str = ""
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    wide: bool = False


def write_static(site: Site, folder: Path, *, map_page: MapPage | None = None) -> Iterator[str]:
    """Write the pages and their files, and yield a line of output.

    Parameters
    ----------
    site : Site
        Study to show.
    folder : Path
        New folder, or that of an earlier result.
    map_page : callable, optional
        Returns the HTML of the map page with its images as data. Without it, or if it returns None, the page shows
        the maps of figures/.

    Raises
    ------
    SourceError
        If the folder contains other files or is not writable.
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
    yield f"{folder / INDEX}: {len(content)} files, {size / 1e6:.1f} MB; needs neither a server nor a network"


@dataclass(frozen=True)
class Page:
    """Page to be written. `units` links the pages of the same estimates with other resampling units, by file."""

    title: str
    sections: tuple[Section, ...]
    lead: Markup = Markup("")  # noqa: RUF009
    units: dict[str, str] = field(default_factory=dict)

    def render(self, site: Site, current: str, content: dict[str, bytes]) -> str:
        """Render the page, and add the files of its cards to `content`.

        Parameters
        ----------
        site : Site
            Study to show.
        current : str
            File name of the page.
        content : dict of str to bytes
            Files by name; changed in place.
        """
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
            downloads = {_file_name(current, file): make for file, make in files.items()}
            content |= {file: make() for file, make in downloads.items()}
            cards.append(
                {
                    "head": chart.head() if chart else "",
                    "plot": divisions.get(chart.name, "") if chart else "",
                    "body": section.body,
                    "foot": chart.foot() if chart else "",
                    "name": chart.title if chart else section.name,
                    "files": list(downloads),
                    "wide": section.wide,
                }
            )
        return _template().render(
            title=self.title,
            name=site.name,
            simulated=site.simulated,
            pages=PAGES,
            current=current,
            lead=self.lead,
            units=self.units,
            cards=cards,
            script=script,
            version=version("patrolscope"),
        )


def _file_name(page: str, file: str) -> str:
    """Return the name of a download. Further pages of the same estimates have their own files."""
    stem = page.removesuffix(".html")
    return file if page in PAGES else f"{stem}_{file}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("static.html")


# Pages.


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
    title = f"Police vehicles in dashcam images of {city}"
    if site.results is None:
        lead = missing_html("Estimates are", "run")
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
    body = map_page(site) if map_page is not None else None
    if body is not None:
        return Page("Map", (Section(body=body, wide=True),))
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
    return Page("Map", tuple(sections) or (Section(body=missing_html("Maps are", "run")),))


def _reader(site: Site, *file: str) -> Callable[[], bytes]:
    return lambda: site.study.read_bytes(*file)


def _disparities(site: Site) -> dict[str, Page]:
    """Return one page per resampling scheme; the first is disparities.html."""
    if site.results is None:
        return {"disparities.html": Page("Disparities", (Section(body=missing_html("Estimates are", "run")),))}
    schemes = list(schemes_of(site.results))
    files = {
        "disparities.html" if not number else f"disparities_{number + 1}.html": scheme
        for number, scheme in enumerate(schemes)
    }
    published = published_table(site) if site.published else None
    pages = {}
    for file, scheme in files.items():
        results = stored_results(site, scheme)
        groups = [
            Section(group_chart(site, results, kind, ZONES["Both"], published, Filter()), wide=kind == "race")
            for kind in KINDS
        ]
        table = neighborhood_table(site, results, published)
        places = Section(place_chart(site, results, table, [], Filter()), static_table(table), wide=True)
        sections = [*groups, places]
        if file == "disparities.html":
            sections.append(_sensitivity(site))
        pages[file] = Page(
            "Disparities", tuple(sections), status_of(site, Filter(), results), files if len(files) > 1 else {}
        )
    return pages


def _sensitivity(site: Site) -> Section:
    files = [f"sensitivity.{ending}" for ending in ("png", "svg", "csv")]
    existing = {
        name: _reader(site, SENSITIVITY_FOLDER, name) for name in files if site.study.exists(SENSITIVITY_FOLDER, name)
    }
    return Section(body=sensitivity_html(site.study), name="sensitivity", files=existing, wide=True)


def _detector(site: Site) -> Page:
    evaluation = evaluation_of(site) if site.study.settings.sources.validation is not None else None
    if evaluation is None:
        return Page("Detector", (Section(body=paragraph("The study has no labeled images to evaluate the detector.")),))
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
        note = paragraph("Only the server shows images, since static pages may be shared.", "note")
        sections.append(
            Section(
                body=Markup("<h2>Images by status</h2>")
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
            Section(body=Markup("<h2>Ledger of rows</h2>") + ledger_html(ledger_table(site.study)), wide=True),
        ),
        paragraph(summary_text(table), "lead"),
    )

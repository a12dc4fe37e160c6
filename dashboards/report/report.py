"""report.html: one page that opens from disk without a network and holds all that a study found.

Everything that comes from data is escaped by the template; pictures are embedded.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from patrolscope.analysis.stages.estimate import UNITS_FOR_AN_INTERVAL
from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.analysis.stages.results import ANALYSES, FEW_IMAGES, UNKNOWN, Results
from patrolscope.analysis.stages.results import UNITS as DRAWN
from patrolscope.analysis.stages.sensitivity import (
    COVERAGE_FOLDER,
    COVERAGE_SUMMARY,
    SENSITIVITY_FOLDER,
    SENSITIVITY_SUMMARY,
)
from patrolscope.dashboards.charts.style import GRID, INK, MUTED, WARNING
from patrolscope.pipeline.contract.tables import (
    ANNOTATED,
    AREAS,
    CELLS,
    CENSUS,
    DETECTIONS,
    LEVELS,
    METADATA,
    PLACES,
    QUARANTINE,
    TRACTS,
)
from patrolscope.pipeline.engine.run import LEDGER_FILE
from patrolscope.pipeline.study.config import dump_settings
from patrolscope.pipeline.study.store import Study

REPORT_FILE = "report.html"
PACKAGES = (
    "patrolscope",
    "numpy",
    "pandas",
    "pyarrow",
    "geopandas",
    "shapely",
    "dask",
    "datashader",
    "matplotlib",
    "scikit-learn",
)

# The sections on groups: figure, heading, analyses, and what the groups are.
SECTIONS = (
    ("race", "Race and ethnicity", "Weighted by where people of each group live."),
    ("density", "Population density", "Areas by quartile of people per square mile, over images."),
    ("income", "Median household income", "Areas by quartile of median household income, over images."),
    ("zone", "Zone", "Areas by the zone that covers at least {zone_share} of them."),
    ("borough", "Borough", ""),
    ("neighborhood", "Neighborhood", ""),
)
MAPS = (
    ("map_level", "Level by neighborhood", "How often an image shows a police vehicle, relative to the average."),
    (
        "map_share",
        "Share of images with a police vehicle",
        "Images above the detector's threshold, before calibration, in the smallest surroundings with enough images.",
    ),
    ("map_density", "Where images were taken", "Number of analyzed images, on a logarithmic scale."),
)
COVARIATES = {
    "density_per_sqmi": "People per square mile",
    "income_usd": "Median household income",
    "share_white": "Share of White residents",
    "share_black": "Share of Black residents",
    "share_hispanic": "Share of Hispanic or Latino residents",
    "share_asian": "Share of Asian residents",
    "felony_distance_ft": "Mean distance to the nearest felony",
    "station_distance_ft": "Mean distance to the nearest police station",
}
NBSP = "\u00a0"
UNITS = {"density": "people per square mile", "income": "USD"}
STAGE_ORDER = (
    "layers",
    "labels",
    "match",
    "read",
    "quarantine",
    "ingest",
    "calibrate",
    "annotate",
    "cells",
    "hourly",
    "map",
)
# Stages that other commands run when the report is there: it neither tells of them nor is made again for them.
AFTER_THE_REPORT = ("points",)
FILES = {
    "study.yaml": "the settings",
    "metadata/": METADATA.row,
    "quarantine/": QUARANTINE.row,
    "detections/": DETECTIONS.row,
    "areas/areas.parquet": AREAS.row,
    "areas/census.parquet": CENSUS.row,
    "areas/tracts.parquet": TRACTS.row,
    "areas/levels.parquet": LEVELS.row,
    "areas/places.parquet": PLACES.row,
    "annotated/": ANNOTATED.row,
    "estimates/tables.csv": "every estimate of this page: one row a group and quantity, with interval, spread, and the "
    "areas, images, people and units drawn behind it",
    "estimates/areas.csv": "one row an area: images, positives, level",
    "estimates/cells.parquet": CELLS.row,
    "estimates/summary.json": "calibration, quality of the detector, counts, cut points, correlations",
    "evaluation/": "the detector against labeled images: quality by subgroup, curves, calibration, pictures",
    "sensitivity/": "the estimates with one thing changed at a time, and which conclusions hold",
    "coverage/": "images by hour, day and area, and the people in areas with few images or none",
    "figures/map.png": "the three maps in one picture",
    LEDGER_FILE: "rows in, rows out and why, one line a step and shard",
}


@dataclass
class Step:
    """Account of one step of a stage over all its shards."""

    stage: str
    step: str
    shards: int = 0
    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Picture:
    """A figure as the page embeds it, and its files beside the page by their kind."""

    uri: str
    files: dict[str, str]


def render_report(study: Study, results: Results) -> str:
    """Text of report.html."""
    settings = study.settings
    pictures = {
        name: _picture(study, name)
        for name in (*(name for name, _, _ in MAPS), *(name for name, _, _ in SECTIONS), "truth")
    }
    return _template().render(
        study=settings,
        percent=f"{settings.estimate.interval_percent:g}{NBSP}%",
        drawn=results.drawn,
        prediction=results.prediction,
        without_intervals={
            DRAWN[way["unit"]]: way["without_intervals"]
            for way in results.summary["ways"]
            if way.get("without_intervals") and way["prediction"] == results.prediction
        },
        headline=headline(results, settings.city.name, settings.estimate.interval_percent),
        maps=[{"name": n, "title": t, "caption": c, "picture": pictures[n]} for n, t, c in MAPS if pictures[n]],
        sections=[
            _section(results, *section, picture=pictures[section[0]], zone_share=settings.estimate.zone_share)
            for section in SECTIONS
        ],
        ends=[
            {"title": f"{len(groups)} {heading}", "rows": _with_levels(results, "neighborhood", groups)}
            for heading, groups in zip(("highest", "lowest"), results.ends(), strict=True)
            if len(groups)
        ],
        truth=results.summary["truth"],
        truth_picture=pictures["truth"],
        sensitivity=_sensitivity(study),
        coverage=_coverage(study),
        summary=results.summary,
        covariates=COVARIATES,
        few_images=FEW_IMAGES,
        units_for_an_interval=UNITS_FOR_AN_INTERVAL,
        steps=[step for step in read_steps(study) if step.stage not in AFTER_THE_REPORT],
        settings_text=dump_settings(settings),
        files={path: meaning for path, meaning in FILES.items() if study.exists(path.rstrip("/"))},
        versions={"Python": python_version(), **{package: version(package) for package in PACKAGES}},
    )


def headline(results: Results, city: str, interval_percent: float) -> list[str]:
    """The main numbers in two sentences, about images, not about officers.

    Where two ways of resampling give intervals it is the second that is named: single images make too narrow ones.
    """
    images = results.summary["images"]
    share = images["positive"] / images["analyzed"] if images["analyzed"] else 0.0
    images_sentence = (
        f"Of {images['analyzed']:,} analyzed dashcam images of {city}, the detector finds a police vehicle in "
        f"{images['positive']:,} ({percentage(share, 2)})."
    )
    for analysis, start, place in (
        ("race", "Weighted by where people live, images", "around {} residents"),
        ("borough", "Images", "in {}"),
    ):
        groups = results.groups(analysis).sort_values("estimate", kind="stable")
        if len(groups) >= 2:
            low, high = groups.iloc[0], groups.iloc[-1]
            interval = f"{interval_percent:g}{NBSP}% interval, {results.drawn[-1]} drawn again: "
            first = _in_brackets(high, interval)
            second = _in_brackets(low, "" if interval in first else interval)
            groups_sentence = (
                f"{start} show one most often {place.format(high['group'])}, {ratio(high['estimate'])} times the "
                f"city's average{first}, and least often {place.format(low['group'])}, {ratio(low['estimate'])} "
                f"times{second}."
            )
            return [images_sentence, groups_sentence]
    return [images_sentence]


def _in_brackets(row: pd.Series[Any], interval: str = "") -> str:
    """The last of a group's intervals, and what it leaves open; nothing where there is none."""
    if row["hollow"]:
        return " (none of its images is positive)"
    lower, upper = (row.get(f"second_{end}", row[end]) for end in ("lower", "upper"))
    if np.isnan(lower) or np.isnan(upper):
        return ""
    left_open = ", not distinguishable from the average" if lower <= 1 <= upper else ""
    return f" ({interval}{ratio(lower)} to {ratio(upper)}{left_open})"


def _section(
    results: Results, name: str, title: str, about: str, *, picture: Picture | None, zone_share: float
) -> dict[str, Any]:
    """What the template shows of one kind of group: figure, tables, and what was not estimated."""
    analyses = [analysis for analysis in (name, f"{name}_residential") if analysis in ANALYSES]
    cuts = results.summary["cut_points"]
    return {
        "name": name,
        "title": title,
        "about": about.format(zone_share=percentage(zone_share, 0)),
        "picture": picture,
        "tables": [
            {
                "title": ANALYSES[analysis],
                "average": results.average(analysis),
                "rows": table_rows(results, analysis),
                "cuts": [f"{cut:,.0f}" for cut in cuts.get(analysis, [])],
                "unit": UNITS.get(name, ""),
            }
            for analysis in analyses
            if results.has(analysis)
        ],
        "skipped": [
            {"title": ANALYSES[analysis], "reason": results.summary["skipped"].get(analysis, "no estimate was made")}
            for analysis in analyses
            if not results.has(analysis)
        ],
    }


def table_rows(results: Results, analysis: str) -> list[dict[str, Any]]:
    """Groups of an analysis as the report lists them: both quantities side by side.

    Quartiles keep their order, other groups go from the highest to the lowest.
    """
    groups = results.groups(analysis)
    if not analysis.startswith(("density", "income")):
        groups = from_the_highest(groups)
    return _with_levels(results, analysis, groups)


def _with_levels(results: Results, analysis: str, groups: pd.DataFrame) -> list[dict[str, Any]]:
    levels = results.groups(analysis, "weighted_mean")[["key", "estimate"]]
    frame = groups.merge(levels, on="key", how="left", suffixes=("", "_level"))
    return list(frame.to_dict("records"))  # type: ignore[arg-type]


def same_images(rows: list[dict[str, Any]]) -> float | None:
    """Images behind every row of a table, where all rows of several have the same number."""
    images = {row["images"] for row in rows}
    return images.pop() if len(images) == 1 and len(rows) > 1 else None


def read_steps(study: Study) -> list[Step]:
    """The ledger by stage and step, in the order of the work."""
    if not study.exists(LEDGER_FILE):
        return []
    steps: dict[tuple[str, str], Step] = {}
    for text in study.read_bytes(LEDGER_FILE).decode().splitlines():
        line = json.loads(text)
        key = (line["stage"], line["step"])
        step = steps.setdefault(key, Step(*key))
        step.shards += 1
        step.rows_in += line["rows_in"]
        step.rows_out += line["rows_out"]
        step.dropped.update(line["dropped"])
        step.notes.update(line["notes"])
    place = {stage: number for number, stage in enumerate(STAGE_ORDER)}
    return sorted(steps.values(), key=lambda step: (place.get(step.stage, len(place)), step.stage, step.step))


# Sensitivity and coverage.


def _sensitivity(study: Study) -> dict[str, Any] | None:
    """Conclusions with their verdicts, variants and picture; None where sensitivity/ has not been made."""
    if not study.exists(SENSITIVITY_SUMMARY):
        return None
    return {
        "summary": json.loads(study.read_bytes(SENSITIVITY_SUMMARY)),
        "conclusions": _records(study, f"{SENSITIVITY_FOLDER}/conclusions.csv"),
        "variants": _records(study, f"{SENSITIVITY_FOLDER}/variants.csv"),
        "titles": ANALYSES,
        "picture": _picture(study, SENSITIVITY_FOLDER, SENSITIVITY_FOLDER),
    }


def _coverage(study: Study) -> dict[str, Any] | None:
    """Who lives where no image was taken, and picture; None where coverage/ has not been made."""
    if not study.exists(COVERAGE_SUMMARY):
        return None
    return {
        "summary": json.loads(study.read_bytes(COVERAGE_SUMMARY)),
        "people": _records(study, f"{COVERAGE_FOLDER}/people.csv"),
        "picture": _picture(study, COVERAGE_FOLDER, COVERAGE_FOLDER),
    }


def _records(study: Study, file: str) -> list[dict[Any, Any]]:
    # A group can be called "NA" or "None".
    frame = pd.read_csv(io.BytesIO(study.read_bytes(file)), keep_default_na=False, na_values=[""])
    return frame.to_dict("records")


# Pictures in the page.


def _picture(study: Study, name: str, folder: str = "figures") -> Picture | None:
    """A figure, embedded as SVG where there is one, else as PNG; None where it was not drawn."""
    files = {ending: file for ending in ("svg", "png") if study.exists(file := f"{folder}/{name}.{ending}")}
    if not files:
        return None
    ending, file = next(iter(files.items()))
    content = study.read_bytes(file)
    if ending == "svg":
        content = _for_both_schemes(content.decode()).encode()
    kind = {"svg": "svg+xml", "png": "png"}[ending]
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, {ending.upper(): file for ending, file in files.items()})


def _for_both_schemes(svg: str) -> str:
    """The figure with light lettering where the reader prefers a dark page."""
    light = {INK: "#e6edf3", MUTED: "#a3adb8", GRID: "#8b949e", WARNING: "#f0b463"}
    rules = "".join(
        f'[style*="{what}: {dark}"]{{{what}:{bright}!important}}'
        for dark, bright in light.items()
        for what in ("fill", "stroke")
    )
    return svg.replace("</style>", f"@media (prefers-color-scheme:dark){{{rules}}}</style>", 1)


# Numbers as the page shows them.


def ratio(value: float) -> str:
    """A ratio with three decimals."""
    return UNKNOWN if value is None or np.isnan(value) else f"{value:.3f}"


def span(lower: float, upper: float) -> str:
    """An interval of ratios."""
    return UNKNOWN if np.isnan(lower) else f"{ratio(lower)} to {ratio(upper)}"


def percentage(value: float, digits: int = 3) -> str:
    """A share in percent."""
    return UNKNOWN if value is None or np.isnan(value) else f"{100 * value:.{digits}f}{NBSP}%"


def number(value: float) -> str:
    """A count with separators."""
    return UNKNOWN if value is None or np.isnan(value) else f"{value:,.0f}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"ratio": ratio, "span": span, "percentage": percentage, "number": number}
    environment.filters |= {"same_images": same_images}
    return environment.get_template("report.html.j2")

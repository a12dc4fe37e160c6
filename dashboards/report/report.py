"""report.html, one page with all results of a study that opens from disk without a network.

The template escapes all text from data, and embeds the figures.
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

from patrolscope.analysis.estimators.unit_counts import UNITS_FOR_AN_INTERVAL
from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.analysis.stages.results import ANALYSES, FEW_IMAGES, UNKNOWN, Results
from patrolscope.analysis.stages.results import UNITS as UNIT_NAMES
from patrolscope.analysis.stages.sensitivity import (
    COVERAGE_FOLDER,
    COVERAGE_SUMMARY,
    SENSITIVITY_FOLDER,
    SENSITIVITY_SUMMARY,
)
from patrolscope.dashboards.charts.style import GRID, INK, MUTED, WARNING
from patrolscope.pipeline.contract.tables import (
    ANNOTATED,
    AREA_CLASS_COUNTS,
    AREAS,
    BOUNDARIES,
    CENSUS,
    DETECTIONS,
    METADATA,
    QUARANTINE,
    REGIONS,
    TRACTS,
)
from patrolscope.pipeline.engine import registry
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

# Sections on groups: figure, heading, and description of the groups.
SECTIONS = (
    ("race", "Race and ethnicity", "Areas weighted by the residents of each group."),
    (
        "density",
        "Population density",
        "Areas in quartiles of residents per square mile, each with about a quarter of the images.",
    ),
    (
        "income",
        "Median household income",
        "Areas in quartiles of median household income, each with about a quarter of the images.",
    ),
    ("zone", "Zone", "Areas by the zone that covers at least {zone_share} of them."),
    ("borough", "Borough", ""),
    ("neighborhood", "Neighborhood", ""),
)
MAPS = (
    ("map_level", "Deployment rate by neighborhood", "Relative to the city average."),
    (
        "map_share",
        "Detection rate",
        "Share of positive images, before calibration, in the smallest window with enough images.",
    ),
    ("map_density", "Number of images", "Analyzed images, on a logarithmic scale."),
)
COVARIATES = {
    "density_per_sqmi": "Residents per square mile",
    "income_usd": "Median household income",
    "share_white": "Share of White residents",
    "share_black": "Share of Black residents",
    "share_hispanic": "Share of Hispanic or Latino residents",
    "share_asian": "Share of Asian residents",
    "felony_distance_ft": "Mean distance to the nearest felony",
    "station_distance_ft": "Mean distance to the nearest police station",
}
UNITS = {"density": "residents per square mile", "income": "USD"}
FILES = {
    "study.yaml": "the settings",
    "metadata/": METADATA.row,
    "quarantine/": QUARANTINE.row,
    "detections/": DETECTIONS.row,
    "areas/areas.parquet": AREAS.row,
    "areas/census.parquet": CENSUS.row,
    "areas/tracts.parquet": TRACTS.row,
    "areas/regions.parquet": REGIONS.row,
    "areas/boundaries.parquet": BOUNDARIES.row,
    "annotated/": ANNOTATED.row,
    "estimates/tables.csv": "all estimates of this page, one row per group and quantity: interval, spread, "
    "areas, images, residents, and resampling units",
    "estimates/areas.csv": "one row per area: images, positives, deployment rate, composite rate with interval",
    "estimates/places.csv": "one row per neighborhood: simultaneous interval, call, rank set",
    "estimates/published/": "the estimates with the intervals of the paper",
    "estimates/area_class_counts.parquet": AREA_CLASS_COUNTS.row,
    "estimates/summary.json": "calibration, detector quality, counts, quartile boundaries, correlations",
    "evaluation/": "detector quality on labeled images: subgroups, curves, calibration, figures",
    "sensitivity/": "estimates under variants of the settings, and verdicts on the conclusions",
    "coverage/": "images by hour, day, and area; residents in areas with few images or none",
    "figures/map.png": "the three maps in one figure",
    LEDGER_FILE: "rows in, rows out, and rows dropped by reason, one line per step and shard",
}


@dataclass
class Step:
    """Ledger of one step of a stage over all its shards."""

    stage: str
    step: str
    shards: int = 0
    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class EmbeddedFigure:
    """Figure as a data URI, and its files beside the page by format."""

    uri: str
    files: dict[str, str]


def render_report(study: Study, results: Results) -> str:
    """Return the text of report.html."""
    settings = study.settings
    pictures = {
        name: _picture(study, name)
        for name in (*(name for name, _, _ in MAPS), *(name for name, _, _ in SECTIONS), "truth")
    }
    return _template().render(
        study=settings,
        percent=f"{settings.estimate.interval_percent:g}%",
        drawn=results.drawn,
        prediction=results.prediction,
        composite="composite_estimate" in results.tables,
        without_intervals={
            UNIT_NAMES[scheme["unit"]]: scheme["without_intervals"]
            for scheme in results.summary["schemes"]
            if scheme.get("without_intervals") and scheme["prediction"] == results.prediction
        },
        headline=headline(results, settings.city.name, settings.estimate.interval_percent),
        maps=[{"name": n, "title": t, "caption": c, "picture": pictures[n]} for n, t, c in MAPS if pictures[n]],
        sections=[
            _section(results, *section, picture=pictures[section[0]], zone_share=settings.estimate.zone_share)
            for section in SECTIONS
        ],
        ends=[
            {"title": f"{len(groups)} {heading} estimates", "rows": _with_levels(results, "neighborhood", groups)}
            for heading, groups in zip(("highest", "lowest"), results.ends(), strict=True)
            if len(groups)
        ],
        ranks=results.places is not None,
        surely=_surely(results),
        truth=results.summary["truth"],
        truth_picture=pictures["truth"],
        sensitivity=_sensitivity(study),
        coverage=_coverage(study),
        summary=results.summary,
        covariates=COVARIATES,
        few_images=FEW_IMAGES,
        units_for_an_interval=UNITS_FOR_AN_INTERVAL,
        steps=[
            step
            for step in read_steps(study)
            if step.stage not in registry.ORDER or registry.ORDER[step.stage].in_report
        ],
        settings_text=dump_settings(settings),
        files={path: meaning for path, meaning in FILES.items() if study.exists(path.rstrip("/"))},
        versions={"Python": python_version(), **{package: version(package) for package in PACKAGES}},
    )


def _surely(results: Results) -> dict[str, Any]:
    """Return the names of the neighborhoods that are surely among the ten highest, and how many more may be."""
    if results.places is None:
        return {}
    groups = results.groups("neighborhood")
    return {
        "highest": groups.loc[groups["highest"] == "surely", "group"].to_list(),
        "possibly": int((groups["highest"] == "possibly").sum()),
    }


def headline(results: Results, city: str, interval_percent: float) -> list[str]:
    """Return the main results in two sentences.

    Parameters
    ----------
    results : Results
        Estimates of the study.
    city : str
        Name of the city.
    interval_percent : float
        Width of the intervals, in percent.
    """
    images = results.summary["images"]
    share = images["positive"] / images["analyzed"] if images["analyzed"] else 0.0
    images_sentence = (
        f"Of {images['analyzed']:,} analyzed dashcam images of {city}, the detector finds a police vehicle in "
        f"{images['positive']:,} ({percentage(share, 2)})."
    )
    for analysis, start, place in (
        ("race", "Weighted by residents, images", "around {} residents"),
        ("borough", "Images", "in {}"),
    ):
        groups = results.groups(analysis).sort_values("estimate", kind="stable")
        groups = groups[~groups["none_positive"]]
        if len(groups) >= 2:
            low, high = groups.iloc[0], groups.iloc[-1]
            interval = f"{interval_percent:g}% interval, resampling {results.drawn[0]}: "
            first = _in_brackets(high, interval)
            second = _in_brackets(low, "" if interval in first else interval)
            groups_sentence = (
                f"{start} show a police vehicle most often {place.format(high['group'])}, {ratio(high['estimate'])} "
                f"times the city's average{first}, and least often {place.format(low['group'])}, "
                f"{ratio(low['estimate'])} times{second}."
            )
            return [images_sentence, groups_sentence]
    return [images_sentence]


def _in_brackets(row: pd.Series[Any], interval: str = "") -> str:
    """Return the interval of a group, and whether it includes the average; empty without an interval."""
    lower, upper = row["lower"], row["upper"]
    if np.isnan(lower) or np.isnan(upper):
        return ""
    inconclusive = ", not distinguishable from the average" if lower <= 1 <= upper else ""
    return f" ({interval}{ratio(lower)} to {ratio(upper)}{inconclusive})"


def _section(
    results: Results, name: str, title: str, about: str, *, picture: EmbeddedFigure | None, zone_share: float
) -> dict[str, Any]:
    """Return figure, tables, and skipped analyses of one kind of group, for the template."""
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
                "floor": results.floor(analysis),
                "influential": results.influential(analysis),
                "rows": table_rows(results, analysis),
                "cuts": [f"{cut:,.0f}" for cut in cuts.get(analysis, [])],
                "unit": UNITS.get(name, ""),
            }
            for analysis in analyses
            if results.has(analysis)
        ],
        "skipped": [
            {
                "title": ANALYSES[analysis],
                "reason": results.summary["skipped"].get(analysis, "the estimates do not include it"),
            }
            for analysis in analyses
            if not results.has(analysis)
        ],
    }


def table_rows(results: Results, analysis: str) -> list[dict[str, Any]]:
    """Return the groups of an analysis with both quantities side by side.

    Quartiles keep their order; other groups are in descending order of the relative rate.
    """
    groups = results.groups(analysis)
    if not analysis.startswith(("density", "income")):
        groups = from_the_highest(groups)
    return _with_levels(results, analysis, groups)


def _with_levels(results: Results, analysis: str, groups: pd.DataFrame) -> list[dict[str, Any]]:
    levels = results.groups(analysis, "weighted_mean")[["key", "estimate", "upper"]]
    frame = groups.merge(levels, on="key", how="left", suffixes=("", "_level"))
    return list(frame.to_dict("records"))  # type: ignore[arg-type]


def same_images(rows: list[dict[str, Any]]) -> float | None:
    """Return the number of images if it is equal in all rows, and there are several; otherwise None."""
    images = {row["images"] for row in rows}
    return images.pop() if len(images) == 1 and len(rows) > 1 else None


def read_steps(study: Study) -> list[Step]:
    """Return the ledger by stage and step, in the order of the stages."""
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
    return sorted(steps.values(), key=lambda step: (registry.rank(step.stage), step.stage, step.step))


# Sensitivity and coverage.


def _sensitivity(study: Study) -> dict[str, Any] | None:
    """Return conclusions, variants, and figure; None if sensitivity/ does not exist."""
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
    """Return residents in areas with few images, and figure; None if coverage/ does not exist."""
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


# Figures in the page.


def _picture(study: Study, name: str, folder: str = "figures") -> EmbeddedFigure | None:
    """Return a figure, embedded as SVG or else as PNG; None if it does not exist."""
    files = {ending: file for ending in ("svg", "png") if study.exists(file := f"{folder}/{name}.{ending}")}
    if not files:
        return None
    ending, file = next(iter(files.items()))
    content = study.read_bytes(file)
    if ending == "svg":
        content = _for_both_schemes(content.decode()).encode()
    kind = {"svg": "svg+xml", "png": "png"}[ending]
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return EmbeddedFigure(uri, {ending.upper(): file for ending, file in files.items()})


def _for_both_schemes(svg: str) -> str:
    """Return a figure with light text for readers who prefer dark pages."""
    light = {INK: "#e6edf3", MUTED: "#a3adb8", GRID: "#8b949e", WARNING: "#f0b463"}
    rules = "".join(
        f'[style*="{what}: {dark}"]{{{what}:{bright}!important}}'
        for dark, bright in light.items()
        for what in ("fill", "stroke")
    )
    return svg.replace("</style>", f"@media (prefers-color-scheme:dark){{{rules}}}</style>", 1)


# Formats.


def ratio(value: float) -> str:
    """Return a ratio with three decimals."""
    return UNKNOWN if value is None or np.isnan(value) else f"{value:.3f}"


def span(lower: float, upper: float) -> str:
    """Return an interval of ratios."""
    return UNKNOWN if np.isnan(lower) else f"{ratio(lower)} to {ratio(upper)}"


def percentage(value: float, digits: int = 3) -> str:
    """Return a share in percent."""
    return UNKNOWN if value is None or np.isnan(value) else f"{100 * value:.{digits}f}%"


def number(value: float) -> str:
    """Return a count with separators."""
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

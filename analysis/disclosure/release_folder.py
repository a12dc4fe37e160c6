"""The folder of `patrolscope release`: tables, replicates, dictionary, settings, README, checksums.

The same study gives the same bytes: nothing here knows the time, the machine or a path.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import yaml

from patrolscope.analysis.disclosure.release import (
    FEWEST_IN_A_LEVEL,
    LEVEL_DECIMALS,
    RELATIVE_DECIMALS,
    RELEASED_AREAS,
    RELEASED_TABLES,
    ROUNDED_TO,
    SKIPPED,
    Release,
    release,
    round_to_digits,
)
from patrolscope.analysis.disclosure.synthetic_replicates import SEED
from patrolscope.analysis.estimators.area_class_counts import counts_by_area
from patrolscope.analysis.estimators.bootstrap import Floats, resample_probabilities
from patrolscope.analysis.estimators.rates import PUBLISHED_FILES
from patrolscope.analysis.estimators.replicates import probabilities_of
from patrolscope.analysis.estimators.spatial_statistics import describe_map
from patrolscope.analysis.stages.calibrate import CALIBRATE, load_calibration
from patrolscope.analysis.stages.counts import COUNTS, UNIT_COUNTS
from patrolscope.analysis.stages.estimate import AREA_CLASS_COUNTS_FILE, ESTIMATE, SUMMARY_FILE
from patrolscope.analysis.stages.published import read_released
from patrolscope.analysis.stages.replicates import REPLICATE
from patrolscope.pipeline.engine.run import outdated
from patrolscope.pipeline.errors import SettingsError, SourceError, StageNotRunError
from patrolscope.pipeline.geography.layers import AREAS_FILE, LAYERS
from patrolscope.pipeline.matching.annotate import ANNOTATE
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.output_folder import check_folder, fill_folder
from patrolscope.pipeline.study.store import Study

CHECKSUMS = "SHA256SUMS"
# Stages whose output a release is made from, in order.
_BEHIND = (LAYERS, ANNOTATE, CALIBRATE, COUNTS, UNIT_COUNTS, REPLICATE, ESTIMATE)
_SETTINGS_LEFT_OUT = (
    "cache, sources and the path of every layer (where files lie is private), estimate.seed (whoever knows it could "
    "draw the study's own replicates again)"
)
_JSON_MEANINGS = {
    "point_estimate": "<group>_weighted_mean: level; <group>_relative_to_average: by Estimate_Total_weighted_mean",
    "bootstrap_statistics": "the same names in every replicate, drawn from the release itself",
}
_SUMMARY_MEANINGS = {
    "minimum_images": "areas with fewer images are withheld",
    "areas": "areas of the study, without images, and withheld",
    "images": f"analyzed images in areas, rounded to {ROUNDED_TO} times the minimum",
    "calibration": "threshold and the two probabilities that images count with, from the validation set",
    "interval_percent": "of the replicates that an interval holds, in the middle",
    "cut_points": "of density (persons / sq mi) and income (USD) by image quartile, three significant digits",
    "skipped": "analyses that are not in the release, with the reason",
    "correlations": "of the levels of areas that are not withheld with what is known of them; three decimals",
    "moran": "Moran's I of the levels of areas that are not withheld; three decimals",
    "drawn": "what the bootstrap drew again, whatever study.yaml asks for",
    "intervals": "how they come from the replicates in the JSON files, whatever study.yaml asks for",
}


def write_release(study: Study, out: Path, *, minimum: int, force: bool) -> list[str]:
    """Write what may be published of a study into a folder; returns lines on what was withheld.

    Parameters
    ----------
    minimum : images; areas with fewer are withheld
    force : write into a folder that holds other files, too

    Raises
    ------
    StageNotRunError : the study has no estimates
    SettingsError : the minimum is below 1
    SourceError : the folder holds other files; nothing can be released at this minimum
    """
    if minimum < 1:
        raise SettingsError(f"--minimum-images {minimum}: at least 1, which withholds nothing")
    if not force:
        check_folder(out, known_by=CHECKSUMS)
    if missing := [name for name in (AREA_CLASS_COUNTS_FILE, SUMMARY_FILE, AREAS_FILE) if not study.exists(name)]:
        raise StageNotRunError(
            f"{study.root} has no {', '.join(missing)} yet: run `patrolscope run --study {study.root}`"
        )
    if stale := outdated(study, _BEHIND):
        raise SourceError(
            f"the estimates of {study.root} are not those that its study.yaml asks for ({', '.join(stale)} not up to "
            f"date): run `patrolscope run --study {study.root}` first"
        )
    areas = study.read(AREAS_FILE, geometry=True)
    inside, _ = counts_by_area(study.read(AREA_CLASS_COUNTS_FILE), areas["area"])
    summary = json.loads(study.read_bytes(SUMMARY_FILE))
    way = next((way for way in summary["schemes"] if way["prediction"] == "two_class"), None)
    if way is None:
        raise SourceError(
            "a release withholds what levels by class give away, and this study has none: put two_class under "
            "estimate.predictions of study.yaml"
        )
    results, _ = read_released(str(study.fs.unstrip_protocol(study.path(way["folder"]))))
    calibration = summary["calibration"]
    made = release(
        areas,
        inside,
        results,
        (calibration["ppv"], calibration["false_omission_rate"]),
        drawn=_drawn_probabilities(study),
        minimum=minimum,
        percent=summary["interval_percent"],
    )
    summary |= _described(made, areas, study.settings)
    fill_folder(out, release_files(made, study.settings, summary, minimum), may_have=PUBLISHED_FILES.values())
    lines = [_for_the_owner(made, minimum)]
    if made.skipped:
        lines.append(f"left out: {', '.join(made.skipped)}; {SKIPPED}")
    number = len(made.results)
    return [*lines, f"{out}: {len(made.areas):,} areas, {number} {'analysis' if number == 1 else 'analyses'}"]


def _drawn_probabilities(study: Study) -> Floats:
    """Pr(police vehicle) of negative and positive images in each replicate, (2, replicates): no image counts in it."""
    rules, (calibration, _, _) = study.settings.estimate, load_calibration(study)
    if rules.resample_calibration:
        return resample_probabilities(calibration, replicates=range(rules.replicates), seed=SEED)
    return np.repeat(probabilities_of(calibration), rules.replicates, axis=1)


def _described(made: Release, areas: gpd.GeoDataFrame, settings: Settings) -> dict[str, Any]:
    """Correlations and Moran's I of the levels as they are published: they tell nothing of a withheld area."""
    hidden = made.areas["withheld"] == "true"
    levels = pd.DataFrame({"level": made.areas["level"].mask(hidden), "felony_distance_ft": np.nan})
    described = describe_map(areas, levels.assign(station_distance_ft=np.nan), settings.estimate, settings.city.crs)
    correlated = pd.DataFrame(described["correlations"])
    known = correlated[~correlated["covariate"].str.endswith("_distance_ft")].to_dict("records")
    return {"correlations": known, "moran": described["moran"]}


def release_files(made: Release, settings: Settings, summary: dict[str, Any], minimum: int) -> dict[str, bytes]:
    """Content of every file by its name; the checksums last."""
    frames = dict(zip((table.name for table in RELEASED_TABLES), _frames(made), strict=True))
    content = {name: frame.to_csv(index=False) for name, frame in frames.items()}
    content |= {PUBLISHED_FILES[name]: released.to_json() + "\n" for name, released in made.results.items()}
    content["summary.json"] = json.dumps(_summary(made, summary, minimum), indent=1) + "\n"
    content["settings.yaml"] = public_settings(settings)
    content["dictionary.csv"] = pd.DataFrame(_dictionary(made)).to_csv(index=False)
    content["dictionary.json"] = json.dumps(_dictionary(made), indent=1) + "\n"
    content["README.md"] = _readme(made, settings, minimum)
    encoded = {name: text.encode() for name, text in content.items()}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(encoded.items()))
    return encoded | {CHECKSUMS: sums.encode()}


def _frames(made: Release) -> tuple[pd.DataFrame, ...]:
    return (made.neighborhoods, made.areas, made.groups)


def public_settings(settings: Settings) -> str:
    """Text of settings.yaml: every setting that names no place of the study's machine and no secret."""
    content = settings.model_dump(mode="json")
    del content["cache"], content["sources"], content["estimate"]["seed"]
    content["layers"] = {name: layer and layer["entry"] for name, layer in content["layers"].items()}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return f"# Left out: {_SETTINGS_LEFT_OUT}.\n{text}"


def _summary(made: Release, summary: dict[str, Any], minimum: int) -> dict[str, Any]:
    rounded_to = ROUNDED_TO * minimum
    inside = summary["images"]["analyzed"] - summary["images"]["outside_every_area"]
    return {
        "minimum_images": minimum,
        "areas": {
            "all": len(made.areas),
            "without_images": int((made.areas["images"] == 0).sum()),
            # Not how many of them for their few images: without any other, all would be known to be below the minimum.
            "withheld": made.too_few + made.besides,
        },
        "images": round(inside / rounded_to) * rounded_to,
        "calibration": summary["calibration"],
        "interval_percent": summary["interval_percent"],
        "drawn": "single images of the released tables",
        "intervals": "percentiles",
        "cut_points": {
            name: [round_to_digits(cut) for cut in cuts]
            for name, cuts in summary["cut_points"].items()
            if name in made.results
        },
        "skipped": summary["skipped"] | made.skipped,
        "correlations": [_three_decimals(row) for row in summary["correlations"]],
        "moran": _three_decimals(summary["moran"]),
    }


def _three_decimals(named: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in named.items()}


def _dictionary(made: Release) -> list[dict[str, str]]:
    """One entry a column of every file."""
    shown = {column.name for column in RELEASED_AREAS if not column.nullable}
    entries = []
    for table in RELEASED_TABLES:
        for column in table.describe()["columns"]:
            withheld = "" if column["name"] in shown or not column["unit"] else _how_withheld(table.name, column)
            entries.append(
                {
                    "file": table.name,
                    "row": table.row,
                    "column": column["name"],
                    "type": column["type"],
                    "meaning": column["meaning"],
                    "unit": column["unit"],
                    "values": column["values"],
                    "withheld": withheld,
                }
            )
    empty = {"row": "", "type": "", "unit": "1", "values": "", "withheld": ""}
    for name in made.results:
        for column, meaning in _JSON_MEANINGS.items():
            own = {"file": PUBLISHED_FILES[name], "column": column, "meaning": meaning}
            entries.append({**empty, **own, "withheld": "a group that is withheld is left out"})
    for column, meaning in _SUMMARY_MEANINGS.items():
        entries.append(
            {"file": "", **empty, "unit": "", "column": column, "meaning": meaning} | {"file": "summary.json"}
        )
    order = ("file", "row", "column", "type", "meaning", "unit", "values", "withheld")
    return [{name: entry[name] for name in order} for entry in entries]


def _how_withheld(file: str, column: dict[str, str]) -> str:
    if "may be missing" not in column["values"] or column["name"] in ("income_usd", "persons"):
        return ""
    also = ", and where no image was taken" if file == RELEASED_AREAS.name and column["unit"] == "1" else ""
    return f"empty where withheld is true{also}"


def _for_the_owner(made: Release, minimum: int) -> str:
    return (
        f"{made.too_few:,} of {len(made.areas):,} areas have images, but fewer than {minimum}, and are withheld; so "
        f"are {made.besides:,} more areas and {made.groups_withheld:,} groups, so that those can not be computed"
    )


def _readme(made: Release, settings: Settings, minimum: int) -> str:
    simulated = f"**Simulated: {settings.simulated}**\n\n" if settings.simulated else ""
    skipped = "".join(f"* {name}: not in the release; {reason}\n" for name, reason in made.skipped.items())
    return f"""# {settings.name}: released aggregates

{simulated}How likely a dashcam image of a place in {settings.city.name} shows a police vehicle: by neighborhood,
by area, by groups of people and places, with intervals. Made by patrolscope {version("patrolscope")}.

| file | a row is |
| --- | --- |
{"".join(f"| `{table.name}` | {table.row} |{chr(10)}" for table in RELEASED_TABLES)}\
| `*_bootstraps.json` | point estimates and bootstrap replicates of an analysis, in the form of the paper's release |
| `summary.json` | calibration, cut points, correlations, how much is withheld |
| `dictionary.csv`, `dictionary.json` | every column of every file: meaning, unit, how it is withheld |
| `settings.yaml` | the settings of the study; left out: {_SETTINGS_LEFT_OUT} |
| `{CHECKSUMS}` | SHA-256 of every other file (`sha256sum -c {CHECKSUMS}`) |

## What it is not

No image, ride, camera, time or position of an image is in it, and no number about fewer than {minimum} images but 0.
A level is a probability about images, not a count of officers or of what they do. It describes; it explains nothing.

## What is withheld

{made.too_few + made.besides:,} of {len(made.areas):,} areas are withheld: those that have images, but fewer than
{minimum}, and others, so that those can not be computed from what is published. {made.groups_withheld:,} groups are
withheld.

* A withheld area has images, positives and level empty and `withheld` true. Which areas are withheld for their few
  images, and which for the others' sake, is not told. An area without images is shown with 0.
* Correlations and Moran's I are computed from the published levels of the areas that are not withheld.
* All counts and levels that are published leave at least {minimum} values for a withheld number of images, and a
  range of at least 1/{minimum} for the share of them that is positive.
* Images of groups other than neighborhoods are rounded to {ROUNDED_TO * minimum:,}. Levels have {LEVEL_DECIMALS}
  decimals, relative levels {RELATIVE_DECIMALS}; these, intervals and spreads are computed from the rounded levels.
* A level has no withheld area behind it or at least {FEWEST_IN_A_LEVEL}.
* Replicates, intervals and spreads are drawn from these tables alone, and tell nothing that these do not. A shown area
  has its images. The withheld ones of a neighborhood share the rest of its images, at its level; where it is withheld,
  too, each has {minimum / 2:g} images at the overall level. Single images count as independent. Where many areas of a
  group are withheld, its interval is a model's.
{skipped}"""

"""Folder that `patrolscope release` writes: tables, replicates, dictionary, settings, README, and checksums.

Equal studies give equal bytes: no file depends on the time, the machine, or a path.
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

from patrolscope.analysis.disclosure.protection import MIN_WITHHELD_PER_RATE
from patrolscope.analysis.disclosure.release import SKIPPED, Release, release
from patrolscope.analysis.disclosure.synthetic_replicates import SEED
from patrolscope.analysis.disclosure.tables import (
    RATE_DECIMALS,
    RELATIVE_DECIMALS,
    RELEASED_AREAS,
    RELEASED_TABLES,
    ROUNDED_TO,
)
from patrolscope.analysis.estimators.area_class_counts import counts_by_area
from patrolscope.analysis.estimators.bootstrap import Floats, resample_probabilities
from patrolscope.analysis.estimators.rates import PUBLISHED_FILES
from patrolscope.analysis.estimators.replicates import probabilities_of
from patrolscope.analysis.estimators.spatial_statistics import LEVEL, describe_map
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.estimate import AREA_CLASS_COUNTS_FILE, SUMMARY_FILE
from patrolscope.analysis.stages.published import read_released
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.freshness import outdated
from patrolscope.pipeline.errors import SettingsError, SourceError, StageNotRunError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.output_folder import check_folder, fill_folder
from patrolscope.pipeline.study.store import Study

CHECKSUMS = "SHA256SUMS"
_SETTINGS_LEFT_OUT = (
    "cache, sources and the path of every layer (locations of files are private), estimate.seed (with it, anyone could "
    "recompute the study's own replicates)"
)
_JSON_MEANINGS = {
    "point_estimate": "<group>_weighted_mean: deployment rate; <group>_relative_to_average: that divided by "
    "Estimate_Total_weighted_mean",
    "bootstrap_statistics": "the same names in every synthetic replicate, generated from the release itself",
}
_SUMMARY_MEANINGS = {
    "minimum_images": "areas with fewer images are withheld",
    "areas": "number of areas: all, without images, and withheld",
    "images": f"analyzed images in areas, rounded to {ROUNDED_TO} times the minimum",
    "calibration": "threshold and the two calibrated probabilities, from the validation set",
    "interval_percent": "central share of the replicates that an interval holds",
    "cut_points": "quartiles over images of density (persons / sq mi) and income (USD), three significant digits",
    "skipped": "analyses that the release leaves out, with the reason",
    "correlations": "of the deployment rates of areas that are not withheld with their covariates; three decimals",
    "moran": "Moran's I of the deployment rates of areas that are not withheld; three decimals",
    "drawn": "resampling unit, independent of study.yaml",
    "intervals": "kind of interval over the replicates in the JSON files, independent of study.yaml",
}


def write_release(study: Study, out: Path, *, minimum: int, force: bool) -> list[str]:
    """Write the release of a study into a folder.

    Parameters
    ----------
    study : Study
        Study with current estimates.
    out : Path
        Folder to write; it is created if necessary.
    minimum : int
        Areas with fewer images are withheld.
    force : bool
        Also write into a folder that holds other files.

    Returns
    -------
    list of str
        Lines for the owner of the study: numbers of withheld areas and groups, analyses left out, and the folder.

    Raises
    ------
    StageNotRunError
        If the study has no estimates.
    SettingsError
        If `minimum` is below 1.
    SourceError
        If the folder holds other files, the estimates are stale, or nothing can be released at this minimum.
    """
    if minimum < 1:
        raise SettingsError(f"--minimum-images {minimum} is out of range; expected at least 1, which withholds nothing")
    if not force:
        check_folder(out, known_by=CHECKSUMS)
    if missing := [name for name in (AREA_CLASS_COUNTS_FILE, SUMMARY_FILE, AREAS_FILE) if not study.exists(name)]:
        raise StageNotRunError(
            f"{study.root} has no {', '.join(missing)} yet: run `patrolscope run --study {study.root}`"
        )
    if stale := outdated(study, [entry.load() for entry in registry.behind("estimate", since=["annotate"])]):
        raise SourceError(
            f"the estimates of {study.root} are stale ({', '.join(stale)}); expected those of its study.yaml; run "
            f"`patrolscope run --study {study.root}` first"
        )
    areas = study.read(AREAS_FILE, geometry=True)
    inside, _ = counts_by_area(study.read(AREA_CLASS_COUNTS_FILE), areas["area"])
    summary = json.loads(study.read_bytes(SUMMARY_FILE))
    way = next((way for way in summary["schemes"] if way["prediction"] == "two_class"), None)
    if way is None:
        raise SourceError(
            "the study has no estimates by class, which disclosure control requires; put two_class under "
            "estimate.predictions of study.yaml"
        )
    results, _ = read_released(str(study.fs.unstrip_protocol(study.path(way["folder"]))))
    calibration = summary["calibration"]
    released = release(
        areas,
        inside,
        results,
        (calibration["ppv"], calibration["false_omission_rate"]),
        resampled=_resampled_probabilities(study),
        minimum=minimum,
        percent=summary["interval_percent"],
    )
    summary |= _map_statistics(released, areas, study.settings)
    fill_folder(out, release_files(released, study.settings, summary, minimum), may_have=PUBLISHED_FILES.values())
    withheld = (
        f"{released.primary:,} of {len(released.areas):,} areas have images, but fewer than {minimum}, and are "
        f"withheld; complementary suppression withholds {released.complementary:,} more areas and "
        f"{released.groups_withheld:,} groups"
    )
    lines = [withheld]
    if released.skipped:
        lines.append(f"left out: {', '.join(released.skipped)}; {SKIPPED}")
    number = len(released.results)
    return [*lines, f"{out}: {len(released.areas):,} areas, {number} {'analysis' if number == 1 else 'analyses'}"]


def _resampled_probabilities(study: Study) -> Floats:
    """Return FOR and PPV in each replicate, shape (2, n_replicates); they depend on the validation set only."""
    rules, (calibration, _, _) = study.settings.estimate, load_calibration(study)
    if rules.resample_calibration:
        return resample_probabilities(calibration, replicates=range(rules.replicates), seed=SEED)
    return np.repeat(probabilities_of(calibration), rules.replicates, axis=1)


def _map_statistics(released: Release, areas: gpd.GeoDataFrame, settings: Settings) -> dict[str, Any]:
    """Compute correlations and Moran's I of the published rates, which disclose nothing about withheld areas."""
    hidden = released.areas["withheld"] == "true"
    rates = pd.DataFrame({LEVEL: released.areas["deployment_rate"].mask(hidden), "felony_distance_ft": np.nan})
    described = describe_map(areas, rates.assign(station_distance_ft=np.nan), settings.estimate, settings.city.crs)
    correlated = pd.DataFrame(described["correlations"])
    known = correlated[~correlated["covariate"].str.endswith("_distance_ft")].to_dict("records")
    return {"correlations": known, "moran": described["moran"]}


def release_files(made: Release, settings: Settings, summary: dict[str, Any], minimum: int) -> dict[str, bytes]:
    """Build the content of every file by name; the checksums come last.

    Parameters
    ----------
    made : Release
        Published aggregates.
    settings : Settings
        Settings of the study.
    summary : dict
        Content of estimates/summary.json, with correlations and Moran's I of the release.
    minimum : int
        Minimum number of images of a published area.
    """
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
    """Return the text of settings.yaml: all settings except paths, sources, and the seed."""
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
            # Only the sum: with no complementary suppression, all would be known to be below the minimum.
            "withheld": made.areas_withheld,
        },
        "images": round(inside / rounded_to) * rounded_to,
        "calibration": summary["calibration"],
        "interval_percent": summary["interval_percent"],
        "drawn": "single images of the released tables",
        "intervals": "percentiles",
        "cut_points": {
            name: [float(f"{cut:.3g}") for cut in cuts]
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
    """Describe every column of every file."""
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
            entries.append({**empty, **own, "withheld": "withheld groups are left out"})
    for column, meaning in _SUMMARY_MEANINGS.items():
        entries.append(
            {"file": "", **empty, "unit": "", "column": column, "meaning": meaning} | {"file": "summary.json"}
        )
    order = ("file", "row", "column", "type", "meaning", "unit", "values", "withheld")
    return [{name: entry[name] for name in order} for entry in entries]


def _how_withheld(file: str, column: dict[str, str]) -> str:
    if "may be missing" not in column["values"] or column["name"] in ("income_usd", "persons"):
        return ""
    also = ", and for areas without images" if file == RELEASED_AREAS.name and column["unit"] == "1" else ""
    return f"empty where withheld is true{also}"


def _readme(made: Release, settings: Settings, minimum: int) -> str:
    simulated = f"**Simulated: {settings.simulated}**\n\n" if settings.simulated else ""
    skipped = "".join(f"* {name}: not in the release; {reason}\n" for name, reason in made.skipped.items())
    return f"""# {settings.name}: released aggregates

{simulated}Deployment rates in {settings.city.name}: the probability that a dashcam image shows a police vehicle, by
neighborhood, area, and group, with intervals. Written by patrolscope {version("patrolscope")}.

| file | one row per |
| --- | --- |
{"".join(f"| `{table.name}` | {table.row.removeprefix('one ')} |{chr(10)}" for table in RELEASED_TABLES)}\
| `*_bootstraps.json` | (no rows) point estimates and synthetic replicates of an analysis, in the paper's format |
| `summary.json` | (no rows) calibration, cut points, correlations, number of withheld areas |
| `dictionary.csv`, `dictionary.json` | column of any file: meaning, unit, how it is withheld |
| `settings.yaml` | (no rows) settings of the study; left out: {_SETTINGS_LEFT_OUT} |
| `{CHECKSUMS}` | file: SHA-256 (`sha256sum -c {CHECKSUMS}`) |

## Scope

The release contains no image, ride, camera, time, or location of an image, and no number about fewer than {minimum}
images except 0. A deployment rate is a probability about images, not a count of officers or of their actions. It
describes and does not explain.

## Disclosure control

{made.areas_withheld:,} of {len(made.areas):,} areas are withheld: those with images, but
fewer than {minimum} (primary suppression), and others, so that those cannot be computed from published numbers
(complementary suppression).
{made.groups_withheld:,} groups are withheld.

* A withheld area has empty images, positives, and deployment_rate, and `withheld` is true. The release does not
  disclose which suppression applies to an area. Areas without images are shown with 0.
* Correlations and Moran's I use the published rates of the areas that are not withheld.
* The published counts and rates leave at least {minimum} possible values for a withheld number of images, and a range
  of at least 1/{minimum} for the detection rate.
* Images of groups other than neighborhoods are rounded to {ROUNDED_TO * minimum:,}. Rates have {RATE_DECIMALS}
  decimals, relative rates {RELATIVE_DECIMALS}. Relative rates, intervals, and standard deviations use rounded rates.
* A published rate covers either no withheld area or at least {MIN_WITHHELD_PER_RATE}.
* Replicates, intervals, and standard deviations are generated from these tables alone and disclose nothing beyond them.
  A shown area has its images. The withheld areas of a neighborhood share the rest of its images, at its rate. If the
  neighborhood is withheld as well, each has {minimum / 2:g} images at the city average. Images count as independent. If
  many areas of a group are withheld, its interval depends mostly on this model.
{skipped}"""

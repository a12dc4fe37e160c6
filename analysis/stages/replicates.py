"""Stage `replicates`: bootstrap replicates of the nine published analyses, in blocks.

A block holds up to 100 replicates of one resampling scheme and depends only on their numbers. A killed run resumes
with the next block, and raising the number of replicates from 1,000 to 10,000 computes 9,000 more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.area_class_counts import counts_by_area
from patrolscope.analysis.estimators.bootstrap import (
    add_weighted_images,
    draw_units,
    image_streams,
    resample_probabilities,
)
from patrolscope.analysis.estimators.rates import Analysis, Bools, Floats, Panel, analyses, panels
from patrolscope.analysis.estimators.replicates import (
    BootstrapInputs,
    ResamplingScheme,
    adjusted_means,
    area_replicates,
    image_replicates,
    panel_values,
    point_means,
    probabilities_of,
    replicates_table,
    two_class_means,
    unit_sums,
)
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.counts import (
    counted_from,
    load_area_class_counts,
    load_unit_counts,
    read_images,
    unit_counts_record,
)
from patrolscope.analysis.stages.published import Released
from patrolscope.pipeline.contract.tables import AREAS, REPLICATES
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.matching.keys import from_images
from patrolscope.pipeline.study.store import Output, Study, fingerprint

FOLDER = "replicates"
# A block has about 11 MB of counts by area and class and takes a second; 10,000 replicates are 100 blocks.
BLOCK = 100


def possible_schemes(study: Study) -> tuple[list[ResamplingScheme], dict[str, str]]:
    """Return the resampling schemes of the settings, and the reason for each that the study does not allow.

    The first scheme is that of tables.csv, figures, and report.

    Raises
    ------
    SourceError
        If the study allows none of them.
    """
    rules = study.settings.estimate
    schemes = [ResamplingScheme(prediction, unit) for prediction in rules.predictions for unit in rules.bootstrap]
    _, adjusted, _ = load_calibration(study)
    if adjusted is not None:
        return schemes, {}
    reason = (
        "the labeled images allow no station-adjusted calibration: there are no stations, or score and distance "
        "separate the images with a police vehicle from the others"
    )
    possible = [scheme for scheme in schemes if scheme.prediction != "station_adjusted"]
    if not possible:
        raise SourceError(f"{reason}; put two_class under estimate.predictions of study.yaml")
    return possible, {scheme.folder: reason for scheme in schemes if scheme not in possible}


def bootstrap_inputs(
    study: Study, *, geometry: bool = False
) -> tuple[BootstrapInputs, list[Analysis], dict[str, str], dict[str, Floats], pd.DataFrame]:
    """Read the inputs of the replicates of a study.

    Parameters
    ----------
    study : Study
    geometry : bool, default False
        Whether the areas have their shapes.

    Returns
    -------
    inputs : BootstrapInputs
    analyses : list of Analysis
        In the order of the paper.
    skipped : dict of str to str
        Reason for each analysis that is not possible.
    cut_points : dict of str to ndarray
        Cut points of the quartile analyses.
    counts : DataFrame
        `AREA_CLASS_COUNTS`.
    """
    columns = None if geometry else [name for name in AREAS.names if name != AREAS.geometry]
    areas = study.read(AREAS_FILE, columns=columns, geometry=geometry)
    counts = load_area_class_counts(study)
    inside, outside = counts_by_area(counts, areas["area"])
    possible, skipped, cuts = analyses(areas, inside.sum(axis=1))
    return BootstrapInputs(areas, inside, outside, panels(possible, areas)), possible, skipped, cuts, counts


def plan_replicates(study: Study) -> list[Shard]:
    """Plan one shard per block of each resampling scheme."""
    rules = study.settings.estimate
    inputs = [
        counted_from(study),
        *([record.content for record in study.records(stage).values()] for stage in ("layers", "calibrate")),
    ]
    shards = []
    for scheme in possible_schemes(study)[0]:
        made_from = list(inputs)
        if scheme.unit in ("ride", "day"):
            made_from.append([unit_counts_record(study, scheme.unit).content])
        for start in range(0, rules.replicates, BLOCK):
            stop = min(start + BLOCK, rules.replicates)
            work = {
                "prediction": scheme.prediction,
                "unit": scheme.unit,
                "start": start,
                "stop": stop,
                "seed": rules.seed,
                "resample_calibration": rules.resample_calibration and scheme.prediction == "two_class",
            }
            shards.append(
                Shard(f"{scheme.folder}-{start:06}", work, size=stop - start, made_from=fingerprint(made_from))
            )
    return shards


def process_replicates(study: Study, shard: Shard) -> Output:
    """Write one block of replicates: `REPLICATES`."""
    work = shard.work
    inputs, _, _, _, counts = bootstrap_inputs(study)
    refuse_empty(study, inputs, counts)
    replicates = range(work["start"], work["stop"])
    scheme = ResamplingScheme(work["prediction"], work["unit"])
    values = _replicates(study, inputs, counts, scheme, work, replicates)
    file = study.write(REPLICATES, replicates_table(inputs.panels, values, replicates), _file(scheme, work["start"]))
    return Output((file,), len(replicates), len(replicates))


def _replicates(
    study: Study,
    inputs: BootstrapInputs,
    counts: pd.DataFrame,
    scheme: ResamplingScheme,
    work: dict[str, Any],
    replicates: range,
) -> list[Floats]:
    seed = work["seed"]
    calibration, _, _ = load_calibration(study)
    probabilities = probabilities_of(calibration)
    if work["resample_calibration"]:
        probabilities = resample_probabilities(calibration, replicates=replicates, seed=seed)
    if scheme.unit == "area":
        means = point_means(inputs, counts, scheme.prediction, calibration)[:, None]
        if work["resample_calibration"]:
            means = two_class_means(inputs.inside[:, :, None], probabilities)
        return area_replicates(inputs, means, replicates=replicates, seed=seed)
    if scheme == ResamplingScheme("two_class", "image"):
        return image_replicates(inputs, probabilities, replicates=replicates, seed=seed)
    if scheme.unit == "image":
        images = np.zeros((len(inputs.areas), len(replicates)), dtype=np.int64)
        steps = np.zeros_like(images)
        streams = image_streams(replicates=replicates, seed=seed)
        for keys, area, value in read_images(study):
            add_weighted_images(keys, area, value, streams, images, steps)
        means = adjusted_means(steps, images)
    else:
        units, areas = load_unit_counts(study, scheme.unit), len(inputs.areas)
        times = draw_units(units.number, scheme.unit, replicates=replicates, seed=seed)
        resampled = unit_sums(units, units.images, times, areas)
        if scheme.prediction == "two_class":
            means = two_class_means(resampled, probabilities)
        else:
            means = adjusted_means(unit_sums(units, units.steps, times, areas).sum(axis=1), resampled.sum(axis=1))
    return [panel.means(means) for panel in inputs.panels]


def refuse_empty(study: Study, inputs: BootstrapInputs, counts: pd.DataFrame) -> None:
    """Check that the study has images to analyze, in areas with residents.

    Parameters
    ----------
    study : Study
    inputs : BootstrapInputs
    counts : DataFrame
        `AREA_CLASS_COUNTS`.

    Raises
    ------
    SourceError
        If no image is analyzed, none lies in an area, or no area with images has residents.
    """
    rules, images = study.settings.estimate, inputs.inside.sum(axis=1)
    if counts.empty:
        sources = study.settings.sources
        if not (sources.detections or sources.processed or from_images(study)):
            raise SourceError(
                f"{study.root} has no detections: name detection files (`patrolscope import-detections`), or images "
                "and a detector's weights (`patrolscope detect`)"
            )
        raise SourceError(
            f"no image is left to analyze; expected images of split {rules.split}, from {rules.first_day} onward, "
            f"processed by the detector; {study.root}/ledger.jsonl lists the rows dropped, and estimate: in study.yaml "
            "sets the rules"
        )
    if images.sum() == 0:
        raise SourceError(
            f"0 of {counts['images'].sum()} analyzed images lie in an area; expected at least 1; check layers.areas "
            "and city.bounds"
        )
    if inputs.areas["persons"][images > 0].sum() == 0:
        raise SourceError(
            "the areas with images have no residents; estimates are weighted by residents; check layers.population"
        )


def load_replicates(study: Study, scheme: ResamplingScheme, panels: list[Panel]) -> list[Floats]:
    """Read all replicates of a scheme.

    Parameters
    ----------
    study : Study
    scheme : ResamplingScheme
    panels : list of Panel

    Returns
    -------
    list of ndarray of float64, shape (1 + n_groups, n_replicates)
        Means of everyone and of each group, per panel.
    """
    blocks = []
    for shard in plan_replicates(study):
        if (shard.work["prediction"], shard.work["unit"]) == (scheme.prediction, scheme.unit):
            rows = study.read(_file(scheme, shard.work["start"]), columns=["weighted_mean"])
            blocks.append(rows["weighted_mean"].to_numpy().reshape(-1, shard.size))
    return panel_values(panels, np.concatenate(blocks, axis=1))


def _file(scheme: ResamplingScheme, start: int) -> str:
    return f"{FOLDER}/{scheme.folder}/{start:06}.parquet"


def released(panels: list[Panel], point: list[Floats], replicates: list[Floats]) -> dict[str, Released]:
    """Return every analysis in the released form.

    Parameters
    ----------
    panels : list of Panel
    point : list of ndarray of float64, shape (1 + n_groups,)
        Estimates of everyone and of each group, per panel.
    replicates : list of ndarray of float64, shape (1 + n_groups, n_replicates)
    """
    return {
        analysis.name: Released(
            analysis.keys,
            float(estimates[0]),
            estimates[panel.rows[analysis.name]],
            values[0],
            values[panel.rows[analysis.name]].T,
        )
        for panel, estimates, values in zip(panels, point, replicates, strict=True)
        for analysis in panel.analyses
    }


def without_replicates(results: Released, groups: Bools) -> Released:
    """Return the same estimates without the replicates of some groups.

    Parameters
    ----------
    results : Released
    groups : ndarray of bool, shape (1 + n_groups,)
        Groups without replicates, everyone first.
    """
    return replace(
        results,
        replicate_totals=np.where(groups[0], np.nan, results.replicate_totals),
        replicate_means=np.where(groups[1:], np.nan, results.replicate_means),
    )


REPLICATE = Stage(
    "replicates", unit="replicates", folders=(FOLDER,), plan=plan_replicates, process=process_replicates, version=3
)

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
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.census_error import draw_residents
from patrolscope.analysis.estimators.rates import (
    Analysis,
    Bools,
    Floats,
    Panel,
    analyses,
    deployment_rate,
    panels,
    populations,
)
from patrolscope.analysis.estimators.replicates import (
    DESIGNED,
    BootstrapInputs,
    ResamplingScheme,
    adjusted_means,
    area_replicates,
    image_counts,
    panel_means,
    panel_values,
    point_means,
    probabilities_of,
    replicates_table,
    two_class_means,
    unit_resampled,
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
from patrolscope.analysis.stages.designs import composite_of, counted_residents
from patrolscope.analysis.stages.published import Released
from patrolscope.pipeline.contract.tables import AREAS, REPLICATES
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.matching.keys import from_images
from patrolscope.pipeline.study.config import Estimate
from patrolscope.pipeline.study.store import Output, Study, fingerprint

FOLDER = "replicates"
# A block has about 11 MB of counts by area and class and takes a second; 10,000 replicates are 100 blocks.
BLOCK = 100


def possible_schemes(study: Study) -> tuple[list[ResamplingScheme], dict[str, str]]:
    """Return the resampling schemes of the settings, and the reason for each that the study does not allow.

    The first scheme is that of tables.csv, figures, and report; the published one follows, unless it is the first.

    Raises
    ------
    SourceError
        If the study allows none of them.
    """
    rules = study.settings.estimate
    schemes = [_scheme(rules, prediction, unit) for prediction in rules.predictions for unit in rules.bootstrap]
    if rules.preset_in_use != "published" and "two_class" in rules.predictions:
        as_published = Estimate(preset="published")
        schemes.insert(1, replace(_scheme(as_published, "two_class", "image"), beside=True))
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


def _scheme(rules: Estimate, prediction: str, unit: str) -> ResamplingScheme:
    by_class = prediction == "two_class"
    return ResamplingScheme(
        prediction,
        unit,
        rules.preset_in_use,
        rules.replicates,
        rules.resample_calibration and by_class,
        rules.interval,
        rules.gamma_below_effective if by_class and unit in DESIGNED else 0.0,
        rules.census_error and unit != "area",
    )


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
        for start in range(0, scheme.replicates, BLOCK):
            stop = min(start + BLOCK, scheme.replicates)
            work = {
                "prediction": scheme.prediction,
                "unit": scheme.unit,
                "folder": scheme.folder,
                "start": start,
                "stop": stop,
                "seed": rules.seed,
                "resample_calibration": scheme.resample_calibration,
                "census_error": scheme.census_error,
                "composite": scheme.with_composite,
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
    direct, composite = _replicates(study, inputs, counts, work, replicates)
    table = replicates_table(inputs.panels, direct, composite, replicates)
    file = study.write(REPLICATES, table, _file(work["folder"], work["start"]))
    return Output((file,), len(replicates), len(replicates))


def _replicates(
    study: Study, inputs: BootstrapInputs, counts: pd.DataFrame, work: dict[str, Any], replicates: range
) -> tuple[list[Floats], list[Floats] | None]:
    """Return means per panel from direct rates of areas, and from composite ones where the design is known."""
    seed, unit = work["seed"], work["unit"]
    calibration, _, _ = load_calibration(study)
    probabilities = scheme_probabilities(calibration, work["resample_calibration"], replicates, seed)
    residents = None
    if work["census_error"]:
        residents = draw_residents(*counted_residents(study, inputs.areas), replicates=replicates, seed=seed)
    if unit == "area":
        means = point_means(inputs, counts, work["prediction"], calibration)[:, None]
        if work["resample_calibration"]:
            means = two_class_means(inputs.inside[:, :, None], probabilities)
        return area_replicates(inputs, means, replicates=replicates, seed=seed), None
    if work["prediction"] == "station_adjusted":
        adjusted = _adjusted_rates(study, inputs, unit, replicates, seed)
        return panel_means(inputs, dict.fromkeys(populations(inputs.areas), adjusted), residents), None
    if unit == "image":
        resampled = image_counts(inputs, replicates=replicates, seed=seed)
    else:
        sums = unit_resampled(inputs, load_unit_counts(study, unit), unit, replicates=replicates, seed=seed)
        resampled = dict.fromkeys(populations(inputs.areas), sums)
    rates = {name: two_class_means(one, probabilities) for name, one in resampled.items()}
    direct = panel_means(inputs, rates, residents)
    if not work["composite"]:
        return direct, None
    composite = composite_of(study, unit)
    shrunken = deployment_rate(composite.benchmarked(resampled["all"]), probabilities[1], probabilities[0])
    return direct, panel_means(inputs, dict.fromkeys(populations(inputs.areas), shrunken), residents)


def scheme_probabilities(calibration: TwoClass, resample: bool, replicates: range, seed: int) -> Floats:
    """Return Pr(police vehicle) of negative and positive images, shape (2, n_replicates) or, fixed, (2, 1)."""
    if resample:
        return resample_probabilities(calibration, replicates=replicates, seed=seed)
    return probabilities_of(calibration)


def _adjusted_rates(study: Study, inputs: BootstrapInputs, unit: str, replicates: range, seed: int) -> Floats:
    """Return mean station-adjusted predictions of areas, shape (n_areas, n_replicates)."""
    areas = len(inputs.areas)
    if unit == "image":
        images = np.zeros((areas, len(replicates)), dtype=np.int64)
        steps = np.zeros_like(images)
        streams = image_streams(replicates=replicates, seed=seed)
        for keys, area, value in read_images(study):
            add_weighted_images(keys, area, value, streams, images, steps)
        return adjusted_means(steps, images)
    units = load_unit_counts(study, unit)
    times = draw_units(units.number, unit, replicates=replicates, seed=seed)
    resampled = unit_sums(units, units.images, times, areas)
    return adjusted_means(unit_sums(units, units.steps, times, areas).sum(axis=1), resampled.sum(axis=1))


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


def load_replicates(study: Study, scheme: ResamplingScheme, panels: list[Panel], column: str) -> list[Floats]:
    """Read all replicates of a scheme.

    Parameters
    ----------
    study : Study
    scheme : ResamplingScheme
    panels : list of Panel
    column : str
        weighted_mean or composite_mean.

    Returns
    -------
    list of ndarray of float64, shape (1 + n_groups, n_replicates)
        Means of everyone and of each group, per panel.
    """
    blocks = []
    for shard in plan_replicates(study):
        if shard.work["folder"] == scheme.folder:
            rows = study.read(_file(scheme.folder, shard.work["start"]), columns=[column])
            blocks.append(rows[column].to_numpy().reshape(-1, shard.size))
    return panel_values(panels, np.concatenate(blocks, axis=1))


def _file(folder: str, start: int) -> str:
    return f"{FOLDER}/{folder}/{start:06}.parquet"


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
    "replicates", unit="replicates", folders=(FOLDER,), plan=plan_replicates, process=process_replicates, version=5
)

"""Replicates of the nine analyses: from draws to group means, in blocks that are kept as they are finished.

A way of resampling is a unit (image, ride, day or area) of a prediction (two_class or station_adjusted). A block holds
some replicates of one way, and depends on nothing but their numbers: a killed run goes on with the next block, and
10,000 replicates after 1,000 are 9,000 more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.bootstrap import (
    Counts,
    Floats,
    add_clusters,
    add_weighted_images,
    counts_by_area,
    draw_clusters,
    image_streams,
    redraw_probabilities,
    resample_images,
)
from patrolscope.analysis.estimators.rates import (
    TOTAL_KEY,
    Analysis,
    Bools,
    Panel,
    analyses,
    area_means,
    frames,
    panels,
)
from patrolscope.analysis.stages.calibrate import TwoClass, load_calibration
from patrolscope.analysis.stages.cells import PROBABILITY_STEP, load_cells
from patrolscope.analysis.stages.clusters import UnitCounts, load_clusters, made_from_unit, read_images
from patrolscope.analysis.stages.published import Released
from patrolscope.pipeline.contract.tables import AREAS, REPLICATES
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.matching.keys import from_images
from patrolscope.pipeline.study.store import Output, Study, fingerprint

FOLDER = "replicates"
# One block is some 11 MB of counts by area and class, and a second of work; 10,000 replicates are 100 blocks.
BLOCK = 100


@dataclass(frozen=True)
class ResamplingScheme:
    """One way of resampling: which unit is drawn, and which prediction is averaged."""

    prediction: str
    unit: str

    @property
    def folder(self) -> str:
        """Name of the way's files."""
        return self.unit if self.prediction == "two_class" else f"{self.unit}-{self.prediction}"


def possible_ways(study: Study) -> tuple[list[ResamplingScheme], dict[str, str]]:
    """Ways that the settings ask for, and why some of them can not be had.

    The first way is that of tables.csv, figures and report.

    Raises
    ------
    SourceError : no way is left
    """
    rules = study.settings.estimate
    wanted = [ResamplingScheme(prediction, unit) for prediction in rules.predictions for unit in rules.bootstrap]
    _, adjusted, _ = load_calibration(study)
    if adjusted is not None:
        return wanted, {}
    why = (
        "the labeled images give no station-adjusted calibration: there are no stations, or score and distance part "
        "the images that show a police vehicle from the others, and no regression fits best"
    )
    possible = [way for way in wanted if way.prediction != "station_adjusted"]
    if not possible:
        raise SourceError(f"{why}; put two_class under estimate.predictions of study.yaml")
    return possible, {way.folder: why for way in wanted if way not in possible}


@dataclass(frozen=True)
class BootstrapInputs:
    """Everything that replicates of a study are drawn from.

    Attributes
    ----------
    areas : `AREAS`
    inside, outside : images by area and class, from `counts_by_area`
    panels : the analyses, by frame
    """

    areas: pd.DataFrame
    inside: Counts
    outside: Counts
    panels: list[Panel]


def count(
    study: Study, *, geometry: bool = False
) -> tuple[BootstrapInputs, list[Analysis], dict[str, str], dict[str, Floats], pd.DataFrame]:
    """What replicates are drawn from, the analyses in order, those skipped, cut points, and cells of a study."""
    columns = None if geometry else [name for name in AREAS.names if name != AREAS.geometry]
    areas = study.read(AREAS_FILE, columns=columns, geometry=geometry)
    cells = load_cells(study)
    inside, outside = counts_by_area(cells, areas["area"])
    wanted, skipped, cuts = analyses(areas, inside.sum(axis=1))
    return BootstrapInputs(areas, inside, outside, panels(wanted, areas)), wanted, skipped, cuts, cells


# From draws to means of groups.


def two_class_means(drawn: Counts, probabilities: Floats) -> Floats:
    """Mean prediction of areas, (areas, n), from images by class, (areas, 2, n), and (2, n) or (2, 1) probabilities.

    Missing where an area has no image.
    """
    return area_means(drawn[:, 1], drawn.sum(axis=1), probabilities[1], probabilities[0])


def image_replicates(counted: BootstrapInputs, probabilities: Floats, *, replicates: range, seed: int) -> list[Floats]:
    """(1 + groups, replicates) of each panel, with single images drawn from each frame."""
    drawn = resample_images(
        counted.inside, counted.outside, list(frames(counted.areas).values()), replicates=replicates, seed=seed
    )
    return [panel.means(two_class_means(drawn[panel.frame.name], probabilities)) for panel in counted.panels]


def area_replicates(counted: BootstrapInputs, means: Floats, *, replicates: range, seed: int) -> list[Floats]:
    """(1 + groups, replicates) of each panel, with whole areas drawn: one that is drawn twice counts as two areas.

    Parameters
    ----------
    means : (areas, 1) or (areas, replicates)
    """
    seen = np.flatnonzero(counted.inside.sum(axis=1))
    times = np.zeros((len(counted.inside), len(replicates)), dtype=np.uint16)
    times[seen] = draw_clusters(len(seen), "area", replicates=replicates, seed=seed)
    return [panel.means(np.broadcast_to(means, times.shape), times) for panel in counted.panels]


def cluster_sums(
    clusters: UnitCounts, values: npt.NDArray[np.integer], times: npt.NDArray[np.uint16], areas: int
) -> Counts:
    """Sums by area and class, (areas, 2, replicates), of one value a row of `clusters`.

    Parameters
    ----------
    times : (clusters, replicates) how often each cluster is drawn, of those of all analyzed images: every frame takes
        its areas of the same draw
    """
    sums = add_clusters(clusters.cell, clusters.cluster, values, times, 2 * areas)
    return sums.reshape(areas, 2, -1)


def adjusted_means(steps: Counts, images: Counts) -> Floats:
    """Mean station-adjusted prediction of areas from its sum, in steps, and the number of images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(steps * PROBABILITY_STEP / images)


def point_means(counted: BootstrapInputs, cells: pd.DataFrame, prediction: str, calibration: TwoClass) -> Floats:
    """Mean prediction of each area, (areas,), of the data themselves; missing where an area has no image."""
    if prediction == "two_class":
        return two_class_means(counted.inside[:, :, None], probabilities_of(calibration))[:, 0]
    sums = cells.groupby("area")["adjusted_sum"].sum().reindex(counted.areas["area"], fill_value=0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums.to_numpy() / counted.inside.sum(axis=1))


def probabilities_of(calibration: TwoClass) -> Floats:
    """(2, 1) Pr(police vehicle) of negative and positive images."""
    return np.array([[calibration.p_negative], [calibration.p_positive]])


# The stage.


def plan_replicates(study: Study) -> list[Shard]:
    """One shard a block of a way."""
    rules = study.settings.estimate
    shards = []
    for way in possible_ways(study)[0]:
        made_from = [
            [record.fingerprint for record in study.records(stage).values()]
            for stage in ("cells", "layers", "calibrate")
        ]
        if way.unit in ("ride", "day") or way == ResamplingScheme("station_adjusted", "image"):
            made_from.append(made_from_unit(study, way.unit))
        for start in range(0, rules.replicates, BLOCK):
            stop = min(start + BLOCK, rules.replicates)
            work = {
                "prediction": way.prediction,
                "unit": way.unit,
                "start": start,
                "stop": stop,
                "seed": rules.seed,
                "resample_calibration": rules.resample_calibration and way.prediction == "two_class",
            }
            shards.append(Shard(f"{way.folder}-{start:06}", work, size=stop - start, made_from=fingerprint(made_from)))
    return shards


def process_replicates(study: Study, shard: Shard) -> Output:
    """Write one block of replicates: `REPLICATES`."""
    work = shard.work
    counted, _, _, _, cells = count(study)
    refuse_empty(study, counted, cells)
    replicates = range(work["start"], work["stop"])
    way = ResamplingScheme(work["prediction"], work["unit"])
    values = _replicates(study, counted, cells, way, work, replicates)
    frame = block_frame(counted.panels, values, replicates)
    file = study.write(REPLICATES, frame, _file(way, work["start"]))
    return Output((file,), len(replicates), len(replicates))


def _replicates(
    study: Study,
    counted: BootstrapInputs,
    cells: pd.DataFrame,
    way: ResamplingScheme,
    work: dict[str, int],
    replicates: range,
) -> list[Floats]:
    seed = work["seed"]
    calibration, _, _ = load_calibration(study)
    probabilities = probabilities_of(calibration)
    if work["resample_calibration"]:
        probabilities = redraw_probabilities(calibration, replicates=replicates, seed=seed)
    if way.unit == "area":
        means = point_means(counted, cells, way.prediction, calibration)[:, None]
        if work["resample_calibration"]:
            means = two_class_means(counted.inside[:, :, None], probabilities)
        return area_replicates(counted, means, replicates=replicates, seed=seed)
    if way == ResamplingScheme("two_class", "image"):
        return image_replicates(counted, probabilities, replicates=replicates, seed=seed)
    if way.unit == "image":
        images = np.zeros((len(counted.areas), len(replicates)), dtype=np.int64)
        steps = np.zeros_like(images)
        streams = image_streams(replicates=replicates, seed=seed)
        for keys, area, value in read_images(study):
            add_weighted_images(keys, area, value, streams, images, steps)
        means = adjusted_means(steps, images)
    else:
        clusters, areas = load_clusters(study, way.unit), len(counted.areas)
        times = draw_clusters(clusters.number, way.unit, replicates=replicates, seed=seed)
        drawn = cluster_sums(clusters, clusters.images, times, areas)
        if way.prediction == "two_class":
            means = two_class_means(drawn, probabilities)
        else:
            means = adjusted_means(cluster_sums(clusters, clusters.steps, times, areas).sum(axis=1), drawn.sum(axis=1))
    return [panel.means(means) for panel in counted.panels]


def refuse_empty(study: Study, counted: BootstrapInputs, cells: pd.DataFrame) -> None:
    """Refuse a study of which no image, no area or no person is left to analyze.

    Raises
    ------
    SourceError : says which, and where to look
    """
    rules, images = study.settings.estimate, counted.inside.sum(axis=1)
    if cells.empty:
        sources = study.settings.sources
        if not (sources.detections or sources.processed or from_images(study)):
            raise SourceError(
                f"{study.root} has no detections: name detection files (`patrolscope import-detections`) or images and "
                "a detector's weights (`patrolscope detect`)"
            )
        raise SourceError(
            f"no image is left to analyze: of split {rules.split}, from {rules.first_day} on, run through the "
            f"detector. {study.root}/ledger.jsonl says where they went; the rules stand under estimate: in study.yaml"
        )
    if images.sum() == 0:
        raise SourceError(
            f"none of {cells['images'].sum()} analyzed images lies in an area: check layers.areas and city.bounds"
        )
    if counted.areas["persons"][images > 0].sum() == 0:
        raise SourceError(
            "nobody lives in the areas with images: estimates are weighted by people; check layers.population"
        )


def block_frame(wanted: list[Panel], values: list[Floats], replicates: range) -> pd.DataFrame:
    """`REPLICATES` of (1 + groups, replicates) of each panel: group by group, in the order of the replicates."""
    names = _names(wanted)
    rows = [
        row
        for panel, means in zip(wanted, values, strict=True)
        for part in panel.rows.values()
        for row in (means[:1], means[part])
    ]
    at = np.repeat(np.arange(len(names)), len(replicates))
    frame = pd.DataFrame(names, columns=["analysis", "key"], dtype="str").iloc[at].reset_index(drop=True)
    numbers = np.tile(np.arange(replicates.start, replicates.stop, dtype=np.int32), len(names))
    return REPLICATES.conform(frame.assign(replicate=numbers, weighted_mean=np.vstack(rows).ravel()))


def _names(wanted: list[Panel]) -> list[tuple[str, str]]:
    """Analysis and key of each row of a block: everyone, then the groups, of each analysis."""
    return [
        (analysis.name, key) for panel in wanted for analysis in panel.analyses for key in (TOTAL_KEY, *analysis.keys)
    ]


def load_replicates(study: Study, way: ResamplingScheme, wanted: list[Panel]) -> list[Floats]:
    """(1 + groups, replicates) of each panel, of all blocks."""
    blocks = []
    for shard in plan_replicates(study):
        if (shard.work["prediction"], shard.work["unit"]) == (way.prediction, way.unit):
            rows = study.read(_file(way, shard.work["start"]), columns=["weighted_mean"])
            blocks.append(rows["weighted_mean"].to_numpy().reshape(-1, shard.size))
    values = np.concatenate(blocks, axis=1)
    made, at = [], 0
    for panel in wanted:
        parts: list[Floats] = []
        for analysis in panel.analyses:
            everyone, groups = values[at : at + 1], values[at + 1 : at + 1 + len(analysis.keys)]
            parts += [groups] if parts else [everyone, groups]
            at += 1 + len(analysis.keys)
        made.append(np.vstack(parts))
    return made


def _file(way: ResamplingScheme, start: int) -> str:
    return f"{FOLDER}/{way.folder}/{start:06}.parquet"


def released(wanted: list[Panel], point: list[Floats], replicates: list[Floats]) -> dict[str, Released]:
    """Every analysis in the released form, from (1 + groups,) and (1 + groups, replicates) of each panel."""
    return {
        analysis.name: Released(
            analysis.keys, float(once[0]), once[panel.rows[analysis.name]], often[0], often[panel.rows[analysis.name]].T
        )
        for panel, once, often in zip(wanted, point, replicates, strict=True)
        for analysis in panel.analyses
    }


def without_replicates(one: Released, groups: Bools) -> Released:
    """The same estimates, with replicates that say nothing of some groups: (1 + groups,), everyone first."""
    return replace(
        one,
        replicate_totals=np.where(groups[0], np.nan, one.replicate_totals),
        replicate_means=np.where(groups[1:], np.nan, one.replicate_means),
    )


REPLICATE = Stage(
    "replicates", unit="replicates", folders=(FOLDER,), plan=plan_replicates, process=process_replicates, version=2
)

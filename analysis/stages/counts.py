"""Stages `counts` and `unit_counts`: one pass over annotated/ counts the images for every later stage.

Per file of annotated images, `counts` writes area-class counts, unit counts, hourly counts, and the raster of the map.
Counts and sums are exact, so their totals do not depend on the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from patrolscope.analysis.estimators.area_class_counts import (
    add_area_class_counts,
    adjusted_probability,
    area_classes,
    count_area_classes,
)
from patrolscope.analysis.estimators.calibration import Calibrations
from patrolscope.analysis.estimators.hourly_counts import HourlyCounts, count_hourly
from patrolscope.analysis.estimators.raster import MAP_CELLS, Counts, Extent, count, in_feet
from patrolscope.analysis.estimators.unit_counts import (
    SCHEMA,
    UNITS,
    UnitCounts,
    add_unit_counts,
    count_units,
    probability_steps,
    single_images,
    unit_keys,
)
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.recalibrate import load_calibrations
from patrolscope.pipeline.contract.tables import AREA_CLASS_COUNTS, HOURLY
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.study.config import Estimate
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint

FOLDER = "staging/counts"
UNITS_FOLDER = "staging/unit_counts"
_AREA_CLASSES, _HOURLY = f"{FOLDER}/area_classes", f"{FOLDER}/hourly"
_UNITS, _RASTER, _IMAGES = f"{FOLDER}/units", f"{FOLDER}/raster", f"{FOLDER}/images"
_VERSION = 1
_COLUMNS = (
    *("area", "conf", "processed", "split", "captured_local", "nighttime", "station_distance_ft"),
    *("ride_id", "x_ft", "y_ft"),
)
_RASTER_SCHEMA = pa.schema([("cell", pa.int32()), ("images", pa.uint32()), ("positives", pa.uint32())])


def annotated_shards(study: Study, work: dict[str, Any]) -> list[Shard]:
    """Return one shard per file of annotated/, each with `work` and the name of its file."""
    return [
        Shard(record.shard, {"file": file, **work}, size=record.rows_out, made_from={file: record.content})
        for record in study.records("annotate").values()
        for file in record.files_in("annotated")
    ]


def analyzed(images: pd.DataFrame, rules: Estimate, ledger: Ledger) -> pd.DataFrame:
    """Return the images that are analyzed (docs/method.md); `ingest` has dropped duplicates.

    Parameters
    ----------
    images : DataFrame
        split, captured_local, and processed.
    rules : Estimate
        Settings of the study.
    ledger : Ledger
        Counts the rows dropped.
    """
    images = ledger.keep(images, images["split"] == rules.split, why=f"not of split {rules.split}")
    first = pd.Timestamp(rules.first_day)
    images = ledger.keep(images, images["captured_local"] >= first, why=f"before {rules.first_day}")
    return ledger.keep(images, images["processed"], why="not processed by the detector")


def with_single_images(rules: Estimate) -> bool:
    """Return whether a resampling scheme needs one row per image.

    The image bootstrap of the two-class prediction needs area-class counts only.
    """
    return "image" in rules.bootstrap and "station_adjusted" in rules.predictions


# The stage `counts`.


def plan_counts(study: Study) -> list[Shard]:
    """Plan one shard per file of annotated/.

    Raises
    ------
    StageNotRunError
        If the study has no annotated images.
    """
    study.files("annotated")
    rules, layers = study.settings.estimate, study.record("layers").content
    work = {
        "rules": [rules.split, str(rules.first_day), rules.threshold],
        "calibration": study.record("calibrate").content,
        "calibrations": study.record("recalibrate").content,
        "layers": layers,
        "felony_ft": f"felony_{study.settings.annotate.felony_windows_h[-1]}h_distance_ft",
        "extent": asdict(map_extent(study)),
        "single_images": with_single_images(rules),
        "tables": [AREA_CLASS_COUNTS.fingerprint(), HOURLY.fingerprint()],
    }
    return annotated_shards(study, work)


def process_counts(study: Study, shard: Shard) -> Output:
    """Count one file of annotated images.

    Hourly counts include images before the first day, for the variant of the sensitivity analysis that adds them.
    """
    work, rules = shard.work, study.settings.estimate
    columns = [*_COLUMNS, work["felony_ft"], *(["image_ref"] if work["single_images"] else [])]
    annotated = study.read(work["file"], columns=columns)
    areas = _area_codes(study, work["layers"])
    ledger = Ledger("analyzed images", len(annotated))
    images = analyzed(annotated, rules, ledger)
    processed = annotated[(annotated["split"] == rules.split) & annotated["processed"]]
    ledger.note("images counted by hour, also before the first day", len(processed))

    _, adjusted, _ = load_calibration(study)
    probability = adjusted_probability(images, adjusted)
    area_class = area_classes(images, areas, rules.threshold)
    steps = probability_steps(probability)
    raster = count(images, Extent(**work["extent"]), threshold=rules.threshold)
    cells = pa.RecordBatch.from_arrays([pa.array(values) for values in raster.occupied()], schema=_RASTER_SCHEMA)

    name = work["file"].removeprefix("annotated/").removesuffix(".parquet")
    files = [
        study.write(
            AREA_CLASS_COUNTS,
            count_area_classes(images, area_class, probability, areas, felony_ft=work["felony_ft"]),
            f"{_AREA_CLASSES}/{name}.parquet",
        ),
        study.write(
            HOURLY,
            count_hourly(processed, load_calibrations(study, work["calibrations"])),
            f"{_HOURLY}/{name}.parquet",
        ),
        study.write_parts(
            [count_units(unit_keys(images, unit), area_class, steps) for unit in UNITS],
            SCHEMA,
            f"{_UNITS}/{name}.arrow",
        ),
        study.write_parts([cells], _RASTER_SCHEMA, f"{_RASTER}/{name}.arrow"),
    ]
    if work["single_images"]:
        rows = single_images(unit_keys(images, "image"), area_class, steps)
        files.append(study.write_parts([rows], SCHEMA, f"{_IMAGES}/{name}.arrow"))
    # Area-class and unit counts do not depend on the thresholds of the sensitivity analysis, nor on the map.
    counted_from = {key: work[key] for key in ("file", "rules", "calibration", "layers", "felony_ft", "tables")}
    facts = {"counted_from": fingerprint(_VERSION, shard.name, shard.made_from, counted_from)}
    return Output(tuple(files), ledger.rows_in, len(images), (ledger.close(len(images)),), facts)


COUNTS = Stage("counts", unit="rows", folders=(FOLDER,), plan=plan_counts, process=process_counts, version=_VERSION)


@lru_cache(maxsize=4)
def _area_codes(study: Study, _layers: str) -> pd.Index[str]:
    """Read the codes of all areas once per process; `_layers` is the fingerprint of their record."""
    return pd.Index(study.read(AREAS_FILE, columns=["area"])["area"])


def map_extent(study: Study) -> Extent:
    """Return the extent of the map of the city, around all areas."""
    return _map_extent(study, study.record("layers").content)


@lru_cache(maxsize=4)
def _map_extent(study: Study, _layers: str) -> Extent:
    areas = in_feet(study.read(AREAS_FILE, geometry=True), study.settings.city.crs)
    return Extent.around(tuple(areas.total_bounds), cells=MAP_CELLS)


# The stage `unit_counts`.


def plan_unit_counts(study: Study) -> list[Shard]:
    """Plan one shard per resampling unit of the settings that has counts: ride and day."""
    made_from = fingerprint(counted_from(study))
    return [
        Shard(unit, {"unit": unit}, made_from=made_from) for unit in UNITS if unit in study.settings.estimate.bootstrap
    ]


def process_unit_counts(study: Study, shard: Shard) -> Output:
    """Write the images of the whole study per resampling unit, area, and class."""
    parts = list(_read_parts(study, _UNITS, UNITS.index(shard.work["unit"])))
    counts, number = add_unit_counts(parts)
    file = study.write_parts([counts], SCHEMA, f"{UNITS_FOLDER}/{shard.name}.arrow")
    return Output((file,), sum(map(len, parts)), len(counts), facts={"units": number})


UNIT_COUNTS = Stage(
    "unit_counts", unit="files", folders=(UNITS_FOLDER,), plan=plan_unit_counts, process=process_unit_counts
)


# Counts of the whole study.


def counted_from(study: Study) -> list[str]:
    """Return digests of everything that area-class and unit counts depend on, one per file."""
    return [record.facts["counted_from"] for record in study.records("counts").values()]


def load_area_class_counts(study: Study) -> pd.DataFrame:
    """Read the area-class counts of the whole study: `AREA_CLASS_COUNTS`."""
    return add_area_class_counts([study.read(file) for file in _files(study, _AREA_CLASSES)])


def load_unit_counts(study: Study, unit: str) -> UnitCounts:
    """Read the unit counts of the whole study.

    Parameters
    ----------
    study : Study
    unit : str
        ride or day.

    Raises
    ------
    StageNotRunError
        If the stage `unit_counts` has not counted this unit.
    """
    record = unit_counts_record(study, unit)
    with study.open_parts(record.files[0]) as reader:
        counts = reader.get_batch(0)
    units, area_class, images, steps = (counts.column(name).to_numpy() for name in SCHEMA.names)
    return UnitCounts(record.facts["units"], area_class, units.astype(np.int32), images, steps)


def unit_counts_record(study: Study, unit: str) -> Record:
    """Return the record of the unit counts of the whole study.

    Raises
    ------
    StageNotRunError
        If the stage `unit_counts` has not counted this unit.
    """
    records = study.records("unit_counts")
    if unit not in records:
        raise StageNotRunError(f"{study.root} has no counts by {unit} yet: run `patrolscope run --study {study.root}`")
    return records[unit]


def read_images(
    study: Study,
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Yield key, position of the area, and probability in steps of the analyzed images in areas, file by file."""
    areas = study.record("layers").facts.get("areas")
    for part in _read_parts(study, _IMAGES, 0):
        area = part.column("area_class").to_numpy() // 2
        inside = area < areas
        yield part.column("unit").to_numpy()[inside], area[inside], part.column("steps").to_numpy()[inside]


def load_hourly(study: Study, areas: pd.Series[str], calibrations: Calibrations) -> HourlyCounts:
    """Read the hourly counts of the whole study, one file at a time.

    Parameters
    ----------
    study : Study
    areas : Series of str
        Codes of all areas.
    calibrations : Calibrations
        Those that the images were counted with.
    """
    files = _files(study, _HOURLY)
    days: set[pd.Timestamp] = set()
    for file in files:
        days |= set(study.read(file, columns=["day"])["day"].unique())
    steps = calibrations.steps
    given = steps.index(study.settings.estimate.threshold)
    parts = (study.read(file) for file in files)
    return HourlyCounts.collect(parts, areas, pd.DatetimeIndex(sorted(days)), len(steps), given)


def load_raster(study: Study) -> Counts:
    """Read the analyzed images per cell of the map of the city, one file at a time.

    Raises
    ------
    StageNotRunError
        If the stage `counts` has not run.
    """
    files = _files(study, _RASTER)
    if not files:
        raise StageNotRunError(f"{study.root} has no counts yet: run `patrolscope run --study {study.root}`")
    raster = Counts.none(map_extent(study))
    for part in _read_parts(study, _RASTER, 0):
        raster.add_occupied(*(part.column(name).to_numpy() for name in _RASTER_SCHEMA.names))
    return raster


def _files(study: Study, folder: str) -> list[str]:
    return [file for record in study.records("counts").values() for file in record.files_in(folder)]


def _read_parts(study: Study, folder: str, number: int) -> Iterator[pa.RecordBatch]:
    for file in _files(study, folder):
        with study.open_parts(file) as reader:
            yield reader.get_batch(number)

"""Stage `calibrate`: probabilities from the validation set, and metrics of the detector."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.calibration import Adjusted, TwoClass, quality, station_adjusted, two_class
from patrolscope.pipeline.contract.tables import LABELED
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.geography.layers import load_stations
from patrolscope.pipeline.study.store import Output, Study, fingerprint

CALIBRATION_FILE = "calibration/calibration.json"


def read_labeled(path: str, *, where: str) -> pd.DataFrame:
    """Read labeled images from a CSV file: `LABELED`.

    Parameters
    ----------
    path : str
        Path or URL of a CSV with ground_truth, Model_predicted_score, lat, lng, and timestamp (epoch milliseconds).
    where : str
        Setting that names the file, for messages.

    Raises
    ------
    SourceError
        If the file does not exist, is empty, lacks a column, or has a value that is not a number.
    """
    names = {column.published: column.name for column in LABELED}
    fs, name = fsspec.core.url_to_fs(path)
    if not fs.exists(name):
        raise SourceError(f"{path} does not exist; {where} of study.yaml names it as the labeled images")
    try:
        with fs.open(name, "rb") as file:
            frame = pd.read_csv(file, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} ({where}) is not a CSV file: {error}") from error
    if missing := [column for column in names if column not in frame.columns]:
        raise SourceError(f"{path} ({where}) has no column {', '.join(missing)}; it has {', '.join(frame.columns)}")
    if frame.empty:
        raise SourceError(f"{path} ({where}) has a header and no rows; expected labeled images")
    frame = frame[list(names)].rename(columns=names)
    for column in ("ground_truth", "score", "captured_at_utc", "lat", "lng"):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            unreadable = frame[column][pd.to_numeric(frame[column], errors="coerce").isna() & frame[column].notna()]
            raise SourceError(f"{path} ({where}): {column} holds {unreadable.iloc[0]!r}; expected numbers")
    frame["captured_at_utc"] = pd.to_datetime(frame["captured_at_utc"], unit="ms", utc=True).dt.as_unit("ms")
    return LABELED.conform(frame)


def read_labeled_sets(study: Study) -> dict[str, pd.DataFrame]:
    """Read the validation set and the test set of a study, as far as study.yaml names them: `LABELED`."""
    return {
        name: read_labeled(study.resolve(path), where=f"sources.{name}")
        for name, path in _labeled_sources(study).items()
    }


def labeled_contents(study: Study) -> dict[str, str]:
    """Return the digest of the file of each labeled set.

    Raises
    ------
    SourceError
        If a file does not exist.
    """
    contents = {}
    for name, path in _labeled_sources(study).items():
        fs, file = fsspec.core.url_to_fs(study.resolve(path))
        if not fs.exists(file):
            raise SourceError(f"{study.resolve(path)} does not exist; sources.{name} of study.yaml names it")
        contents[name] = fingerprint(fs.cat_file(file).hex())
    return contents


def _labeled_sources(study: Study) -> dict[str, str]:
    sources = study.settings.sources
    paths = {"validation": sources.validation, "test": sources.test}
    return {name: path for name, path in paths.items() if path is not None}


def plan_calibrate(study: Study) -> list[Shard]:
    """Plan one shard, which depends on the labeled images and the stations.

    Raises
    ------
    SourceError
        If study.yaml names no validation set.
    """
    if study.settings.sources.validation is None:
        raise SourceError(
            "study.yaml names no validation set; expected the path of a CSV file with ground_truth, "
            "Model_predicted_score, lat, lng and timestamp; put it under sources.validation"
        )
    layers = study.record("layers")
    work = {
        "threshold": study.settings.estimate.threshold,
        "crs": study.settings.city.crs,
        "files": labeled_contents(study),
        "layers": layers.content,
    }
    return [Shard("calibration", work)]


def process_calibrate(study: Study, _shard: Shard) -> Output:
    """Write calibration.json: both calibrations and the metrics of the detector."""
    threshold = study.settings.estimate.threshold
    labeled = read_labeled_sets(study)
    validation = labeled["validation"]
    classes = two_class(validation["ground_truth"], validation["score"], threshold)
    adjusted = station_adjusted(
        validation["ground_truth"], validation["score"], station_distances_ft(study, validation)
    )
    content: dict[str, Any] = {
        "two_class": asdict(classes),
        "adjusted": None if adjusted is None else asdict(adjusted),
        "quality": {
            name: quality(frame["ground_truth"], frame["score"], threshold)
            if frame["ground_truth"].nunique() == 2
            else None
            for name, frame in labeled.items()
        },
    }
    file = study.write_bytes(json.dumps(content, indent=1).encode(), CALIBRATION_FILE)
    return Output((file,), len(validation), len(validation))


def station_distances_ft(study: Study, labeled: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the distance of each labeled image to the nearest station, feet."""
    locations_ft = project_ft(labeled["lng"], labeled["lat"], study.settings.city.crs)
    _, distance_ft = load_stations(study).nearest(*locations_ft)
    return distance_ft


def load_calibration(study: Study) -> tuple[TwoClass, Adjusted | None, dict[str, Any]]:
    """Read both calibrations, and the metrics of the detector on each labeled set.

    Raises
    ------
    StageNotRunError
        If the stage `calibrate` has not run.
    """
    if not study.exists(CALIBRATION_FILE):
        raise StageNotRunError(
            f"{study.root} has no {CALIBRATION_FILE} yet: run `patrolscope run --study {study.root}`"
        )
    content = json.loads(study.read_bytes(CALIBRATION_FILE))
    adjusted = content["adjusted"]
    return TwoClass(**content["two_class"]), None if adjusted is None else Adjusted(**adjusted), content["quality"]


CALIBRATE = Stage(
    "calibrate", unit="files", folders=("calibration",), plan=plan_calibrate, process=process_calibrate, version=2
)

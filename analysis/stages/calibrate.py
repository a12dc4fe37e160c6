"""Stage `calibrate`: probabilities from the validation set, and metrics of the detector."""

from __future__ import annotations

import io
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
from patrolscope.pipeline.intake.compression import read_text, readable
from patrolscope.pipeline.intake.days import limits_of
from patrolscope.pipeline.intake.raw_csv import DECIMAL, OUTSIDE_CITY, OUTSIDE_PERIOD, WHOLE, Limits
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study, fingerprint

CALIBRATION_FILE = "calibration/calibration.json"


def read_labeled(path: str, *, where: str, limits: Limits) -> tuple[pd.DataFrame, Ledger]:
    """Read labeled images from a CSV file.

    Times and places are checked by the rules for raw metadata: rows outside the city or the period are dropped.

    Parameters
    ----------
    path : str
        Path or URL of a CSV with ground_truth, Model_predicted_score, lat, lng, and timestamp (epoch milliseconds).
    where : str
        Setting that names the file, for messages.
    limits : Limits
        Valid locations and times of the study.

    Returns
    -------
    labeled : DataFrame
        `LABELED`, in the order of the file.
    ledger : Ledger
        Rows read, and rows dropped per reason.

    Raises
    ------
    SourceError
        If the file does not exist, is empty, lacks a column, has a value that is not a number, a time that is not a
        whole number, or no row inside the city and the period.
    ContractError
        If a value is missing or out of its bounds.
    """
    names = {column.published: column.name for column in LABELED}
    frame = _labeled_text(path, where, list(names)).rename(columns=names)
    # pandas writes a column of truth values as True and False, and one of whole numbers with gaps as 1.0.
    frame["ground_truth"] = frame["ground_truth"].str.lower().replace({"true": "1", "false": "0"})
    numbers = pd.DataFrame(
        {name: _labeled_numbers(frame[name], f"{path} ({where})") for name in ("ground_truth", "score", "lat", "lng")}
    )
    time_ms = _labeled_times(frame["captured_at_utc"], f"{path} ({where})")
    ledger = Ledger(where.rpartition(".")[2], len(frame))
    west, south, east, north = limits.box
    inside = numbers["lng"].between(west, east) & numbers["lat"].between(south, north)
    # A missing value is refused by the contract.
    inside |= numbers["lng"].isna() | numbers["lat"].isna()
    during = (time_ms >= limits.from_ms) & (time_ms < limits.until_ms)
    ledger.drop(int((~inside).sum()), why=OUTSIDE_CITY)
    ledger.drop(int((inside & ~during).sum()), why=OUTSIDE_PERIOD)
    kept = inside & during
    if not kept.any():
        reasons = ", ".join(f"{count} with {why}" for why, count in ledger.dropped.items())
        period = " to ".join(str(pd.Timestamp(ms, unit="ms")) for ms in (limits.from_ms, limits.until_ms))
        raise SourceError(
            f"{path} ({where}): none of {len(frame)} rows can be used: {reasons}; line {frame.index[0]} has the "
            f"timestamp {frame['captured_at_utc'].iloc[0]} at {frame['lat'].iloc[0]}, {frame['lng'].iloc[0]}; expected "
            f"epoch milliseconds from {period} UTC, and degrees inside city.bounds; check the file, city.bounds, and "
            "period"
        )
    labeled = numbers.assign(captured_at_utc=pd.to_datetime(time_ms[kept], unit="ms", utc=True).dt.as_unit("ms"))
    return LABELED.conform(labeled[kept].reset_index(drop=True)), ledger


def _labeled_text(path: str, where: str, names: list[str]) -> pd.DataFrame:
    """Read columns of a labeled set as trimmed text; the index is the line, and empty lines are left out."""
    fs, name = fsspec.core.url_to_fs(path)
    if not fs.exists(name):
        raise SourceError(f"{path} does not exist; {where} of study.yaml names it as the labeled images")
    text = io.BytesIO(read_text(fs, name))
    try:
        # index_col=False: a comma at the end of every line does not shift the columns.
        frame = pd.read_csv(text, encoding="utf-8-sig", dtype="str", index_col=False, skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} ({where}) is not a CSV file: {error}") from error
    if missing := [column for column in names if column not in frame.columns]:
        raise SourceError(f"{path} ({where}) has no column {', '.join(missing)}; it has {', '.join(frame.columns)}")
    frame = frame.set_axis(frame.index + 2).dropna(how="all")
    if frame.empty:
        raise SourceError(f"{path} ({where}) has a header and no rows; expected labeled images")
    return frame[names].apply(lambda column: column.str.strip(" \t"))


def _labeled_numbers(text: pd.Series[str], where: str) -> pd.Series[float]:
    _refuse(text, text.notna() & ~text.str.fullmatch(DECIMAL).astype("bool"), where, "numbers")
    return text.astype("float64")


def _labeled_times(text: pd.Series[str], where: str) -> pd.Series[int]:
    """Return epoch milliseconds; 1.603E+12 has lost its last digits."""
    _refuse(text, text.isna(), where, "a time in every row")
    whole = text.str.replace(r"\.0*$", "", regex=True)
    _refuse(text, ~whole.str.fullmatch(WHOLE).astype("bool"), where, "whole numbers of milliseconds since 1970")
    return whole.astype("int64")


def _refuse(text: pd.Series[str], bad: pd.Series[bool], where: str, expected: str) -> None:
    if bad.any():
        line, value = next(text[bad].items())
        held = "nothing" if pd.isna(value) else repr(value)
        raise SourceError(
            f"{where}: {LABELED[str(text.name)].published} holds {held} in line {line} "
            f"({int(bad.sum())} of {len(text)} rows); expected {expected}"
        )


def labeled_accounts(study: Study) -> dict[str, tuple[pd.DataFrame, Ledger]]:
    """Read the validation set and the test set of a study, as far as study.yaml names them, with their ledgers."""
    limits = limits_of(study.settings)
    return {
        name: read_labeled(study.resolve(path), where=f"sources.{name}", limits=limits)
        for name, path in _labeled_sources(study).items()
    }


def read_labeled_sets(study: Study) -> dict[str, pd.DataFrame]:
    """Read the validation set and the test set of a study, as far as study.yaml names them: `LABELED`."""
    return {name: labeled for name, (labeled, _) in labeled_accounts(study).items()}


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
        with readable(file):
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
        "limits": asdict(limits_of(study.settings)),
        "layers": layers.content,
    }
    return [Shard("calibration", work)]


def process_calibrate(study: Study, _shard: Shard) -> Output:
    """Write calibration.json: both calibrations and the metrics of the detector."""
    threshold = study.settings.estimate.threshold
    accounts = labeled_accounts(study)
    labeled = {name: frame for name, (frame, _) in accounts.items()}
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
    ledger = tuple(account.close(len(frame)) for frame, account in accounts.values())
    return Output((file,), accounts["validation"][1].rows_in, len(validation), ledger)


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
    "calibrate", unit="files", folders=("calibration",), plan=plan_calibrate, process=process_calibrate, version=3
)

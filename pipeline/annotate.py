"""Everything that is known of an image: detection, local time, places, distances.

Each step takes a frame and returns the columns that it adds; `annotate` lists them in order. docs/method.md, "One
image", defines the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
from astral import Observer
from astral.sun import sun

from pipeline.assemble import Matches, load_matches
from pipeline.config import Settings
from pipeline.layers import (
    AREA_INDEX_FILE,
    AREAS_FILE,
    FELONIES_FILE,
    PRECINCT_INDEX_FILE,
    STATIONS_FILE,
    load_index,
)
from pipeline.ledger import Ledger
from pipeline.spatial.coverage import Coverage
from pipeline.spatial.crs import project_ft
from pipeline.spatial.nearest import nearest_in_windows, nearest_station
from pipeline.stages import Shard, Stage
from pipeline.store import Record, Study
from pipeline.tables import annotated_table

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Surroundings:
    """What an image is joined to; small, and the same on every worker."""

    areas: Coverage
    area_names: pd.DataFrame  # neighbourhood and borough, in the order of areas.keys
    precincts: Coverage | None
    stations_ft: npt.NDArray[np.float64]  # (s, 2), in the order of their ids
    felonies: pd.DataFrame  # `FELONIES` with x_ft, y_ft, sorted by start, then complaint number


def annotate(metadata: pd.DataFrame, *, matches: Matches, around: Surroundings, settings: Settings) -> pd.DataFrame:
    """Annotated images, one row for each row of `metadata`, in its order: `annotated_table`."""
    lng, lat = metadata["lng"].to_numpy(), metadata["lat"].to_numpy()
    x_ft, y_ft = project_ft(lng, lat, settings.city.crs)
    parts = [
        metadata,
        detection_columns(metadata["image_ref"], matches, settings.detection.prediction_above),
        time_columns(metadata["captured_at_utc"], settings),
        pd.DataFrame({"x_ft": x_ft, "y_ft": y_ft}, index=metadata.index),
        area_columns(lng, lat, around).set_axis(metadata.index),
        distance_columns(x_ft, y_ft, metadata["captured_at_utc"], around, settings.annotate.felony_windows_h),
    ]
    return annotated_table(settings.annotate.felony_windows_h).conform(pd.concat(parts, axis=1))


def annotate_in(metadata: pd.DataFrame, *, study: Study, layers: str, matches: str) -> pd.DataFrame:
    """`annotate` with what the study holds; `layers` and `matches` are the fingerprints of those stages' records."""
    return annotate(
        metadata,
        matches=load_matches(study, matches),
        around=load_surroundings(study, layers),
        settings=study.settings,
    )


def detection_columns(image_refs: pd.Series[str], matches: Matches, prediction_above: float) -> pd.DataFrame:
    """processed, conf and has_prediction."""
    found = matches.look_up(image_refs)
    return pd.DataFrame(
        {
            "processed": found["processed"],
            "conf": found["score"],
            "has_prediction": found["score_any"] > prediction_above,
        }
    )


def time_columns(captured_at_utc: pd.Series[pd.Timestamp], settings: Settings) -> pd.DataFrame:
    """Clock and calendar of the city, daylight saving handled, and night by the sun over the city."""
    clock = settings.city.clock
    aware = captured_at_utc.dt.tz_convert(clock)
    local = aware.dt.tz_localize(None)
    weekday = local.dt.day_of_week
    day_of, days = pd.factorize(local.to_numpy().astype("datetime64[D]").astype(np.int64))
    place = settings.city.sun
    daylight_ms = np.array(
        [_daylight_ms(day, place.latitude, place.longitude, clock) for day in days.astype("datetime64[D]").tolist()]
    ).reshape(-1, 2)
    at_ms = epoch_ms(captured_at_utc)
    rise_ms, set_ms = daylight_ms[day_of].T
    return pd.DataFrame(
        {
            "captured_local": local,
            "hour": local.dt.hour.astype("int8"),
            "day_of_week": weekday.astype("int8"),
            "day_of_month": local.dt.day.astype("int8"),
            "month": local.dt.month.astype("int8"),
            "weekend": weekday >= 5,
            "phase": (local >= pd.Timestamp(settings.annotate.phase_from)).astype("int8"),
            "nighttime": (at_ms < rise_ms) | (at_ms > set_ms),
        },
        index=captured_at_utc.index,
    )


@lru_cache(maxsize=1024)
def _daylight_ms(day: date, latitude: float, longitude: float, clock: ZoneInfo) -> tuple[float, float]:
    """Sunrise and sunset of a local date, epoch milliseconds."""
    times = sun(Observer(latitude, longitude), date=day, tzinfo=clock)
    return times["sunrise"].timestamp() * 1000, times["sunset"].timestamp() * 1000


def epoch_ms(instants: pd.Series[pd.Timestamp]) -> npt.NDArray[np.int64]:
    """Epoch milliseconds of instants."""
    return instants.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[ms]").astype(np.int64)


def area_columns(lng: npt.ArrayLike, lat: npt.ArrayLike, around: Surroundings) -> pd.DataFrame:
    """Area of each point with its neighbourhood and borough, and the precinct; missing outside."""
    position = around.areas.locate(lng, lat)
    columns = {
        "area": _taken(pd.Series(around.areas.keys, dtype="str"), position),
        "neighbourhood": _taken(around.area_names["neighbourhood"], position),
        "borough": _taken(around.area_names["borough"], position),
    }
    if around.precincts is None:
        columns["precinct"] = pd.array([np.nan] * len(position), dtype="str")
    else:
        columns["precinct"] = _taken(pd.Series(around.precincts.keys, dtype="str"), around.precincts.locate(lng, lat))
    return pd.DataFrame(columns)


def _taken(values: pd.Series[str], position: npt.NDArray[np.integer]) -> pd.api.extensions.ExtensionArray:
    """Values at positions, missing where the position is -1."""
    return values.array.take(position, allow_fill=True)


def distance_columns(
    x_ft: npt.NDArray[np.float64],
    y_ft: npt.NDArray[np.float64],
    captured_at_utc: pd.Series[pd.Timestamp],
    around: Surroundings,
    windows_h: tuple[int, ...],
) -> pd.DataFrame:
    """Distance to the nearest station, and the nearest felony of each window."""
    columns: dict[str, object] = {"station_distance_ft": nearest_station(x_ft, y_ft, around.stations_ft)[1]}
    felonies = around.felonies
    position, distance_ft = nearest_in_windows(
        x_ft,
        y_ft,
        epoch_ms(captured_at_utc),
        felonies[["x_ft", "y_ft"]].to_numpy(),
        epoch_ms(felonies["started_at_utc"]),
        np.array(windows_h) * HOUR_MS,
    )
    for column, hours in enumerate(windows_h):
        nearest = position[:, column]
        columns[f"felony_{hours}h_distance_ft"] = distance_ft[:, column]
        columns[f"felony_{hours}h_id"] = _taken(felonies["felony_id"], nearest)
        columns[f"felony_{hours}h_offence"] = _taken(felonies["offence"], nearest)
        columns[f"felony_{hours}h_started_at_utc"] = _taken(felonies["started_at_utc"], nearest)
    return pd.DataFrame(columns, index=captured_at_utc.index)


def order_felonies(felonies: pd.DataFrame, crs: str) -> pd.DataFrame:
    """Felonies with their place in feet, by start, then complaint number: the order that decides ties."""
    x_ft, y_ft = project_ft(felonies["lng"], felonies["lat"], crs)
    # Complaint numbers are digits: the shorter is the lower.
    return (
        felonies.assign(x_ft=x_ft, y_ft=y_ft, digits=felonies["felony_id"].str.len())
        .sort_values(["started_at_utc", "digits", "felony_id"], ignore_index=True)
        .drop(columns="digits")
    )


@lru_cache(maxsize=2)
def load_surroundings(study: Study, _made_from: str) -> Surroundings:
    """What images are joined to, once a worker process; `_made_from` is the layers' fingerprint."""
    index = load_index(study, AREA_INDEX_FILE, _made_from)
    names = study.read(AREAS_FILE, columns=["area", "neighbourhood", "borough"]).set_index("area")
    stations = study.read(STATIONS_FILE)
    crs = study.settings.city.crs
    return Surroundings(
        areas=index,
        area_names=names.reindex(pd.Index(index.keys)).reset_index(drop=True),
        precincts=load_index(study, PRECINCT_INDEX_FILE, _made_from) if study.exists(PRECINCT_INDEX_FILE) else None,
        stations_ft=np.column_stack(project_ft(stations["lng"], stations["lat"], crs)),
        felonies=order_felonies(study.read(FELONIES_FILE), crs),
    )


# The stage.


def plan_annotate(study: Study) -> list[Shard]:
    """One shard a file of metadata."""
    layers, matches = study.record("layers"), study.record("match")
    settings = study.settings
    common = {
        "annotate": settings.annotate.model_dump(mode="json"),
        "detection": settings.detection.model_dump(mode="json"),
        "city": settings.city.model_dump(mode="json"),
        "table": annotated_table(settings.annotate.felony_windows_h).fingerprint(),
        "layers": layers.fingerprint,
        "matches": matches.fingerprint,
    }
    return [
        Shard(record.shard, {"file": file, **common}, size=record.rows_out, made_from=record.fingerprint)
        for record in study.records("ingest").values()
        for file in record.files
        if file.startswith("metadata/")
    ]


def process_annotate(study: Study, shard: Shard) -> Record:
    """Annotate one file of metadata; the rows keep their order."""
    file = shard.work["file"]
    metadata = study.read(file)
    frame = annotate_in(metadata, study=study, layers=shard.work["layers"], matches=shard.work["matches"])
    ledger = Ledger("annotate", len(metadata))
    ledger.note("outside every area: kept, area missing", int(frame["area"].isna().sum()))
    ledger.note("not processed by the detector: no evidence", int((~frame["processed"]).sum()))
    table = annotated_table(study.settings.annotate.felony_windows_h)
    written = study.write(table, frame, file.replace("metadata/", "annotated/", 1))
    return Record("", "", (written,), len(metadata), len(frame), (ledger.close(len(frame)),))


ANNOTATE = Stage("annotate", unit="rows", folders=("annotated",), plan=plan_annotate, process=process_annotate)

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

from patrolscope.pipeline.contract.tables import DIFFERENCES, annotated_table
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.geography.curve_order import ROW_GROUP_ROWS
from patrolscope.pipeline.geography.layers import (
    AREA_INDEX_FILE,
    AREAS_FILE,
    FELONIES_FILE,
    PRECINCT_INDEX_FILE,
    load_index,
    load_stations,
)
from patrolscope.pipeline.geography.nearest import Events, Stations
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.intake.supplied_columns import (
    detections_from,
    differences_of,
    given_of,
    reconcile,
    without_unknown_areas,
)
from patrolscope.pipeline.matching.keys import from_images
from patrolscope.pipeline.matching.match import detections_of, matches_fingerprint
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Felonies:
    """Felonies by start, then complaint number: the order that decides ties."""

    rows: pd.DataFrame  # `FELONIES`
    events: Events  # of the same rows

    @classmethod
    def build(cls, felonies: pd.DataFrame, crs: str) -> Felonies:
        """`FELONIES` in any order; `crs` is the city's projected system."""
        # Complaint numbers are digits: the shorter is the lower.
        rows = (
            felonies.assign(digits=felonies["felony_id"].str.len())
            .sort_values(["started_at_utc", "digits", "felony_id"], ignore_index=True)
            .drop(columns="digits")
        )
        places_ft = np.column_stack(project_ft(rows["lng"], rows["lat"], crs))
        return cls(rows, Events.build(places_ft, epoch_ms(rows["started_at_utc"])))


@dataclass(frozen=True)
class ReferenceLayers:
    """What an image is joined to; small, and the same on every worker."""

    areas: PolygonIndex
    area_names: pd.DataFrame  # neighborhood and borough, in the order of areas.keys
    precincts: PolygonIndex | None
    stations: Stations
    felonies: Felonies


def annotate(
    metadata: pd.DataFrame, *, found: pd.DataFrame, around: ReferenceLayers, settings: Settings
) -> pd.DataFrame:
    """Annotated images, one row for each row of `metadata`, in its order: `annotated_table`.

    Parameters
    ----------
    metadata : `METADATA`
    found : detection of each image, indexed like `metadata`: `processed`, `score` (missing: no box), `has_prediction`
    """
    lng, lat = metadata["lng"].to_numpy(), metadata["lat"].to_numpy()
    x_ft, y_ft = project_ft(lng, lat, settings.city.crs)
    parts = [
        metadata,
        found[["processed", "score", "has_prediction"]].rename(columns={"score": "conf"}),
        time_columns(metadata["captured_at_utc"], settings),
        pd.DataFrame({"x_ft": x_ft, "y_ft": y_ft}, index=metadata.index, copy=False),
        area_columns(lng, lat, around).set_axis(metadata.index),
        distance_columns(x_ft, y_ft, metadata["captured_at_utc"], around, settings.annotate.felony_windows_h),
    ]
    return annotated_table(settings.annotate.felony_windows_h).conform(pd.concat(parts, axis=1))


def annotate_in(metadata: pd.DataFrame, *, found: pd.DataFrame, study: Study, layers: str) -> pd.DataFrame:
    """`annotate` with what the study holds; `layers` is the fingerprint of that stage's record."""
    return annotate(metadata, found=found, around=load_surroundings(study, layers), settings=study.settings)


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
        copy=False,
    )


@lru_cache(maxsize=1024)
def _daylight_ms(day: date, latitude: float, longitude: float, clock: ZoneInfo) -> tuple[float, float]:
    """Sunrise and sunset of a local date, epoch milliseconds."""
    times = sun(Observer(latitude, longitude), date=day, tzinfo=clock)
    return times["sunrise"].timestamp() * 1000, times["sunset"].timestamp() * 1000


def epoch_ms(instants: pd.Series[pd.Timestamp]) -> npt.NDArray[np.int64]:
    """Epoch milliseconds of instants."""
    return instants.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[ms]").astype(np.int64)


def area_columns(lng: npt.ArrayLike, lat: npt.ArrayLike, around: ReferenceLayers) -> pd.DataFrame:
    """Area of each point with its neighborhood and borough, and the precinct; missing outside."""
    position = around.areas.locate(lng, lat)
    columns = {
        "area": _taken(pd.Series(around.areas.keys, dtype="str"), position),
        "neighborhood": _taken(around.area_names["neighborhood"], position),
        "borough": _taken(around.area_names["borough"], position),
    }
    if around.precincts is None:
        columns["precinct"] = pd.array([np.nan] * len(position), dtype="str")
    else:
        columns["precinct"] = _taken(pd.Series(around.precincts.keys, dtype="str"), around.precincts.locate(lng, lat))
    return pd.DataFrame(columns, copy=False)


def _taken(values: pd.Series[str], position: npt.NDArray[np.integer]) -> pd.api.extensions.ExtensionArray:
    """Values at positions, missing where the position is -1."""
    return values.array.take(position, allow_fill=True)


def distance_columns(
    x_ft: npt.NDArray[np.float64],
    y_ft: npt.NDArray[np.float64],
    captured_at_utc: pd.Series[pd.Timestamp],
    around: ReferenceLayers,
    windows_h: tuple[int, ...],
) -> pd.DataFrame:
    """Distance to the nearest station, and the nearest felony of each window."""
    columns: dict[str, object] = {"station_distance_ft": around.stations.nearest(x_ft, y_ft)[1]}
    felonies = around.felonies.rows
    position, distance_ft = around.felonies.events.nearest_in_windows(
        x_ft, y_ft, epoch_ms(captured_at_utc), np.array(windows_h) * HOUR_MS
    )
    for hours, nearest, apart_ft in zip(windows_h, position, distance_ft, strict=True):
        columns[f"felony_{hours}h_distance_ft"] = apart_ft
        columns[f"felony_{hours}h_id"] = _taken(felonies["felony_id"], nearest)
        columns[f"felony_{hours}h_offense"] = _taken(felonies["offense"], nearest)
        columns[f"felony_{hours}h_started_at_utc"] = _taken(felonies["started_at_utc"], nearest)
    return pd.DataFrame(columns, index=captured_at_utc.index, copy=False)


@lru_cache(maxsize=2)
def load_surroundings(study: Study, _made_from: str) -> ReferenceLayers:
    """What images are joined to, once a worker process; `_made_from` is the layers' fingerprint."""
    index = load_index(study, AREA_INDEX_FILE, _made_from)
    names = study.read(AREAS_FILE, columns=["area", "neighborhood", "borough"]).set_index("area")
    return ReferenceLayers(
        areas=index,
        area_names=names.reindex(pd.Index(index.keys)).reset_index(drop=True),
        precincts=load_index(study, PRECINCT_INDEX_FILE, _made_from) if study.exists(PRECINCT_INDEX_FILE) else None,
        stations=load_stations(study),
        felonies=Felonies.build(study.read(FELONIES_FILE), study.settings.city.crs),
    )


# The stage.


def plan_annotate(study: Study) -> list[Shard]:
    """One shard a file of metadata."""
    layers = study.record("layers")
    settings = study.settings
    common = {
        "annotate": settings.annotate.model_dump(mode="json"),
        "detection": settings.detection.model_dump(mode="json"),
        "city": settings.city.model_dump(mode="json", include={"time_zone", "crs", "sun"}),
        "table": annotated_table(settings.annotate.felony_windows_h).fingerprint(),
        "layers": layers.fingerprint,
        "matches": matches_fingerprint(study),
        "own detections": bool(settings.sources.detections) or from_images(study),
        "trust": settings.ingest.trust,
    }
    return [
        Shard(record.shard, {"file": file, **common}, size=record.rows_out, made_from=record.fingerprint)
        for record in study.records("ingest").values()
        for file in record.files_in("metadata")
    ]


def process_annotate(study: Study, shard: Shard) -> Output:
    """Annotate one file of metadata; the rows keep their order."""
    file = shard.work["file"]
    metadata = study.read(file)
    given = given_of(study, file)
    ledger = Ledger("annotate", len(metadata))
    found = detections(study, file, given, ledger)
    computed = annotate_in(metadata, found=found, study=study, layers=shard.work["layers"])
    trust = study.settings.ingest.trust
    said = given
    if given is not None and trust:
        areas = load_surroundings(study, shard.work["layers"]).areas.keys
        said = without_unknown_areas(given, areas.tolist(), ledger)
    table = annotated_table(study.settings.annotate.felony_windows_h)
    frame = reconcile(computed, said, trust=trust, ledger=ledger)
    if frame is not computed:  # what was computed conforms already
        frame = table.conform(frame)
    ledger.note("outside every area: kept, area missing", int(frame["area"].isna().sum()))
    ledger.note("not processed by the detector: no evidence", int((~frame["processed"]).sum()))
    name = file.replace("metadata/", "annotated/", 1)
    files = [study.write(table, frame, name, row_group_rows=ROW_GROUP_ROWS)]
    differences = differences_of(computed, given)
    if len(differences):
        files.append(study.write(DIFFERENCES, differences, file.replace("metadata/", "differences/", 1)))
    return Output(tuple(files), len(metadata), len(frame), (ledger.close(len(frame)),))


def detections(study: Study, file: str, given: pd.DataFrame | None, ledger: Ledger) -> pd.DataFrame:
    """Detection of every image of a file of metadata, as `annotate` takes it.

    From the label files or the images; in a study without either, from the annotated file that the rows came from.
    """
    prediction_above = study.settings.detection.prediction_above
    if given is not None and not study.settings.sources.detections and not from_images(study):
        return detections_from(given, ledger, prediction_above=prediction_above)
    found = detections_of(study, file)
    return found.assign(has_prediction=found["score_any"] > prediction_above)


ANNOTATE = Stage(
    "annotate", unit="rows", folders=("annotated", "differences"), plan=plan_annotate, process=process_annotate
)

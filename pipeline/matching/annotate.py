"""Annotation of images: detection, local time, area, regions, and distances.

Each function takes a frame and returns the columns that it adds; `annotate` joins them. docs/method.md, "One image",
defines the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.contract.tables import annotated_table
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.geography.nearest import Events, Stations
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.matching.night import is_night
from patrolscope.pipeline.study.config import Settings

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Felonies:
    """Felonies sorted by start, then by complaint number; the first wins ties."""

    rows: pd.DataFrame  # `FELONIES`
    events: Events  # of the same rows

    @classmethod
    def build(cls, felonies: pd.DataFrame, crs: str) -> Felonies:
        """Sort and project `FELONIES`; `crs` is the projected CRS of the city."""
        # Complaint numbers are digits, so shorter ones are lower.
        rows = (
            felonies.assign(digits=felonies["felony_id"].str.len())
            .sort_values(["started_at_utc", "digits", "felony_id"], ignore_index=True)
            .drop(columns="digits")
        )
        points_ft = np.column_stack(project_ft(rows["lng"], rows["lat"], crs))
        return cls(rows, Events.build(points_ft, epoch_ms(rows["started_at_utc"])))


@dataclass(frozen=True)
class ReferenceLayers:
    """Public data joined to images; small, and the same on all workers."""

    areas: PolygonIndex
    area_names: pd.DataFrame  # neighborhood and borough, in the order of areas.keys
    precincts: PolygonIndex | None
    stations: Stations
    felonies: Felonies


def annotate(
    metadata: pd.DataFrame, *, found: pd.DataFrame, layers: ReferenceLayers, settings: Settings
) -> pd.DataFrame:
    """Annotate images.

    Parameters
    ----------
    metadata : DataFrame
        `METADATA`.
    found : DataFrame
        Detection of each image, indexed like `metadata`: `processed`, `score` (missing without a box),
        `has_prediction`.
    layers : ReferenceLayers
        Reference layers of the study.
    settings : Settings
        Settings of the study.

    Returns
    -------
    DataFrame
        `annotated_table`, in the order of `metadata`.
    """
    lng, lat = metadata["lng"].to_numpy(), metadata["lat"].to_numpy()
    x_ft, y_ft = project_ft(lng, lat, settings.city.crs)
    parts = [
        metadata,
        found[["processed", "score", "has_prediction"]].rename(columns={"score": "conf"}),
        time_columns(metadata["captured_at_utc"], settings),
        pd.DataFrame({"x_ft": x_ft, "y_ft": y_ft}, index=metadata.index, copy=False),
        area_columns(lng, lat, layers).set_axis(metadata.index),
        distance_columns(x_ft, y_ft, metadata["captured_at_utc"], layers, settings.annotate.felony_windows_h),
    ]
    return annotated_table(settings.annotate.felony_windows_h).conform(pd.concat(parts, axis=1))


def time_columns(captured_at_utc: pd.Series[pd.Timestamp], settings: Settings) -> pd.DataFrame:
    """Compute local clock time and calendar, with daylight saving time, and whether the sun was down in the city."""
    aware = captured_at_utc.dt.tz_convert(settings.city.clock)
    local = aware.dt.tz_localize(None)
    weekday = local.dt.day_of_week
    sun = settings.city.sun
    return pd.DataFrame(
        {
            "captured_local": local,
            "hour": local.dt.hour.astype("int8"),
            "day_of_week": weekday.astype("int8"),
            "day_of_month": local.dt.day.astype("int8"),
            "month": local.dt.month.astype("int8"),
            "weekend": weekday >= 5,
            "phase": (local >= pd.Timestamp(settings.annotate.phase_from)).astype("int8"),
            "nighttime": is_night(epoch_ms(captured_at_utc), sun.latitude, sun.longitude),
        },
        index=captured_at_utc.index,
        copy=False,
    )


def epoch_ms(instants: pd.Series[pd.Timestamp]) -> npt.NDArray[np.int64]:
    """Return the epoch milliseconds of instants."""
    return instants.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[ms]").astype(np.int64)


def area_columns(lng: npt.ArrayLike, lat: npt.ArrayLike, layers: ReferenceLayers) -> pd.DataFrame:
    """Find the area of each point with its neighborhood and borough, and the precinct.

    Parameters
    ----------
    lng, lat : (n,) float64
        Points in degrees.
    layers : ReferenceLayers
        Reference layers of the study.

    Returns
    -------
    DataFrame
        area, neighborhood, borough, precinct; missing outside all areas or precincts.
    """
    position = layers.areas.locate(lng, lat)
    columns = {
        "area": _taken(pd.Series(layers.areas.keys, dtype="str"), position),
        "neighborhood": _taken(layers.area_names["neighborhood"], position),
        "borough": _taken(layers.area_names["borough"], position),
    }
    if layers.precincts is None:
        columns["precinct"] = pd.array([np.nan] * len(position), dtype="str")
    else:
        columns["precinct"] = _taken(pd.Series(layers.precincts.keys, dtype="str"), layers.precincts.locate(lng, lat))
    return pd.DataFrame(columns, copy=False)


def _taken(values: pd.Series[str], position: npt.NDArray[np.integer]) -> pd.api.extensions.ExtensionArray:
    """Take values at positions; missing where the position is -1."""
    return values.array.take(position, allow_fill=True)


def distance_columns(
    x_ft: npt.NDArray[np.float64],
    y_ft: npt.NDArray[np.float64],
    captured_at_utc: pd.Series[pd.Timestamp],
    layers: ReferenceLayers,
    windows_h: tuple[int, ...],
) -> pd.DataFrame:
    """Find the distance to the nearest station, and the nearest felony of each window.

    Parameters
    ----------
    x_ft, y_ft : (n,) float64
        Points in feet, in the projected CRS of the city.
    captured_at_utc : Series of Timestamp
        Time of each point.
    layers : ReferenceLayers
        Reference layers of the study.
    windows_h : tuple of int
        Lengths in hours of the windows after the time of a point, ascending.

    Returns
    -------
    DataFrame
        station_distance_ft and, per window, distance_ft, id, offense, and started_at_utc of the felony; missing without
        a felony in the window.
    """
    columns: dict[str, object] = {"station_distance_ft": layers.stations.nearest(x_ft, y_ft)[1]}
    felonies = layers.felonies.rows
    position, distance_ft = layers.felonies.events.nearest_in_windows(
        x_ft, y_ft, epoch_ms(captured_at_utc), np.array(windows_h) * HOUR_MS
    )
    for hours, nearest, apart_ft in zip(windows_h, position, distance_ft, strict=True):
        columns[f"felony_{hours}h_distance_ft"] = apart_ft
        columns[f"felony_{hours}h_id"] = _taken(felonies["felony_id"], nearest)
        columns[f"felony_{hours}h_offense"] = _taken(felonies["offense"], nearest)
        columns[f"felony_{hours}h_started_at_utc"] = _taken(felonies["started_at_utc"], nearest)
    return pd.DataFrame(columns, index=captured_at_utc.index, copy=False)

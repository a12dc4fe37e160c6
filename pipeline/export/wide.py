"""Rows of the published file: images joined to the tables of areas, tracts, and felonies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from patrolscope.pipeline.contract.tables import AREAS, CENSUS, TRACTS, annotated_table, published_table
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.errors import ContractError
from patrolscope.pipeline.geography.layers import AREAS_FILE, CENSUS_FILE, FELONIES_FILE, TRACTS_FILE
from patrolscope.pipeline.matching.annotate import epoch_ms
from patrolscope.pipeline.study.store import Study

Rows = npt.NDArray[np.int64]
Columns = TypeVar("Columns", pa.Array, pa.Table)
WKT_DECIMALS = 3  # a thousandth of a foot; lat and lng keep the exact location


@dataclass(frozen=True)
class Gazetteer:
    """Tables joined to images by row number; small, and the same on all workers."""

    areas: pd.Index[str]  # codes, in the order of `of_area`
    of_area: pa.Table  # published columns of areas and their tracts, one row per area
    felony_keys: pd.MultiIndex  # complaint number and start (epoch ms) of each felony, sorted and unique
    felony_rows: Rows  # (keys + 1,) start of the felonies of each key
    felonies_ft: npt.NDArray[np.float64]  # (f, 2)
    felony_points: pa.Array


def build_gazetteer(
    areas: pd.DataFrame, census: pd.DataFrame, tracts: pd.DataFrame, felonies: pd.DataFrame, crs: str
) -> Gazetteer:
    """Build the gazetteer of a study.

    Parameters
    ----------
    areas : DataFrame
        `AREAS`.
    census : DataFrame
        `CENSUS`, in the order of `areas`.
    tracts : DataFrame
        `TRACTS`.
    felonies : DataFrame
        `FELONIES`.
    crs : str
        Projected CRS of the city.
    """
    felonies = felonies.assign(at_ms=epoch_ms(felonies["started_at_utc"]))
    # Felonies with the same number and start are distinguished by distance, so any fixed order serves.
    felonies = felonies.sort_values(["felony_id", "at_ms", "lat", "lng"], ignore_index=True)
    first = np.flatnonzero(~felonies.duplicated(["felony_id", "at_ms"]))
    keys = pd.MultiIndex.from_frame(felonies.loc[first, ["felony_id", "at_ms"]])
    x_ft, y_ft = project_ft(felonies["lng"], felonies["lat"], crs)
    return Gazetteer(
        areas=pd.Index(areas["area"]),
        of_area=_columns_of_areas(areas, census, tracts),
        felony_keys=keys,
        felony_rows=np.append(first, len(felonies)),
        felonies_ft=np.column_stack([x_ft, y_ft]),
        felony_points=_points(x_ft, y_ft),
    )


def _columns_of_areas(areas: pd.DataFrame, census: pd.DataFrame, tracts: pd.DataFrame) -> pa.Table:
    """Collect the published columns of areas, one row per area."""
    tract = pd.Index(tracts["tract"]).get_indexer(areas["tract"])
    columns: dict[str, pa.Array] = {}
    for table, frame in ((AREAS, areas), (CENSUS, census)):
        for column in table:
            if column.published:
                columns[column.published] = _array(frame[column.name])
    for column in TRACTS:
        if column.published:
            columns[column.published] = _taken(_array(tracts[column.name]), tract)
    own = pa.array(np.arange(len(areas), dtype=np.float64))
    columns |= {
        "index_right": own,
        "index": own,
        "GEO_ID": columns["GEOID20"],
        "centroid": _points(census["centroid_x_ft"], census["centroid_y_ft"]),
        "index_ct": pa.array(tract.astype(np.float64), mask=tract < 0),
        "BCT2020": columns["boroct2020"],
        "GeoID": columns["geoid"],
    }
    declared = published_table()
    names = [name for name in declared.names if name in columns]
    fields = [declared[name].arrow_field() for name in names]
    return pa.table([columns[name] for name in names], schema=pa.schema(fields))


def image_columns(windows_h: tuple[int, ...]) -> list[str]:
    """Return the columns of annotated/ that the published file needs."""
    in_other_tables = ("neighborhood", "borough", "captured_local")
    others = ("x_ft", "y_ft", "precinct", *(f"felony_{window_h}h_id" for window_h in windows_h))
    return [
        column.name
        for column in annotated_table(windows_h)
        if column.name in others or (column.published and column.name not in in_other_tables)
    ]


def wide(images: pd.DataFrame, gazetteer: Gazetteer, windows_h: tuple[int, ...], time_zone: str) -> pa.Table:
    """Build the rows of the published file.

    Parameters
    ----------
    images : DataFrame
        Columns `image_columns` of `annotated_table`.
    gazetteer : Gazetteer
        Gazetteer of the study.
    windows_h : tuple of int
        Felony windows in hours.
    time_zone : str
        Time zone of the city.

    Returns
    -------
    Table
        `published_table`, in the order of `images`.

    Raises
    ------
    ContractError
        If an area or a felony of the images is not in the gazetteer.
    """
    declared = annotated_table(windows_h)
    columns = {declared[str(name)].published: _array(images[name]) for name in images}
    columns |= {
        "timestamp": pa.array(epoch_ms(images["captured_at_utc"])),
        "time_and_date_of_image": _iso_times(images["captured_at_utc"], time_zone),
        "geometry": _points(images["x_ft"], images["y_ft"]),
        "precinct": _array(images["precinct"]),
    }
    for window_h in windows_h:
        row = _felony_rows(images, window_h, gazetteer)
        columns[f"point_of_nearest_crime_{window_h}hr"] = _taken(gazetteer.felony_points, row)
        starts = images[f"felony_{window_h}h_started_at_utc"]
        columns[f"time_of_nearest_crime_{window_h}hr"] = _iso_times(starts, time_zone)
    area = gazetteer.areas.get_indexer(pd.Index(images["area"]))
    _check_known(images["area"], area, AREAS_FILE)
    of_area = _taken(gazetteer.of_area, area)
    columns |= dict(zip(of_area.column_names, of_area.columns, strict=True))
    schema = published_table(windows_h).arrow_schema()
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _felony_rows(images: pd.DataFrame, window_h: int, gazetteer: Gazetteer) -> Rows:
    """Return the row of each image's nearest felony, or -1.

    Of felonies with the same number and start, the one closest to the distance in `images` is chosen.
    """
    felony = images[f"felony_{window_h}h_id"]
    row = np.full(len(images), -1)
    present = np.flatnonzero(felony.notna())
    starts = images[f"felony_{window_h}h_started_at_utc"].iloc[present]
    key = gazetteer.felony_keys.get_indexer(pd.MultiIndex.from_arrays([felony.iloc[present], epoch_ms(starts)]))
    _check_known(felony.iloc[present], key, FELONIES_FILE)
    first, end = gazetteer.felony_rows[key], gazetteer.felony_rows[key + 1]
    row[present] = first
    several = np.flatnonzero(end - first > 1)
    points_ft = images[["x_ft", "y_ft"]].to_numpy()
    distance_ft = images[f"felony_{window_h}h_distance_ft"].to_numpy()
    for at in several:
        candidates = np.arange(first[at], end[at])
        image = present[at]
        apart_ft = np.hypot(*(gazetteer.felonies_ft[candidates] - points_ft[image]).T)
        row[image] = candidates[np.argmin(np.abs(apart_ft - distance_ft[image]))]
    return row


def _check_known(names: pd.Series[str], found: npt.NDArray[np.integer], file: str) -> None:
    unknown = (found < 0) & names.notna().to_numpy()
    if unknown.any():
        raise ContractError(f"{names[unknown].iloc[0]!r} in annotated/ is not in {file}; run `patrolscope annotate`")


def _array(values: pd.Series[Any]) -> pa.Array:
    return pa.array(values, from_pandas=True)


def _taken(columns: Columns, rows: npt.NDArray[np.integer]) -> Columns:
    """Take rows of a column or table; missing for row -1."""
    return columns.take(pa.array(rows, mask=rows < 0))


def _points(x_ft: npt.ArrayLike, y_ft: npt.ArrayLike) -> pa.Array:
    """Format points as WKT."""
    x, y = (pc.cast(pc.round(pa.array(axis), WKT_DECIMALS), pa.string()) for axis in (x_ft, y_ft))
    return pc.binary_join_element_wise("POINT (", x, " ", y, ")", "")


def _iso_times(instants: pd.Series[pd.Timestamp], time_zone: str) -> pa.Array:
    """Format local times as ISO 8601, in milliseconds, with the offset from UTC."""
    local = instants.dt.tz_convert(time_zone).dt.tz_localize(None)
    # Arrow's strftime would take five times as long.
    text = pc.utf8_replace_slice(pc.cast(pa.array(local), pa.string()), 10, 11, "T")
    offset_ms = local.to_numpy().astype("datetime64[ms]").astype(np.int64) - epoch_ms(instants)
    kinds, kind = np.unique(offset_ms // 60_000, return_inverse=True)
    offsets = [f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}" for minutes in kinds]
    return pc.binary_join_element_wise(text, pa.array(offsets, pa.string()).take(pa.array(kind)), "")


@lru_cache(maxsize=2)
def load_gazetteer(study: Study, _fingerprint: str) -> Gazetteer:
    """Load the gazetteer of a study, once per worker process and fingerprint of the layers."""
    areas, census, tracts = (
        study.read(file, columns=[column.name for column in table if column.kind != "geometry"])
        for file, table in ((AREAS_FILE, AREAS), (CENSUS_FILE, CENSUS), (TRACTS_FILE, TRACTS))
    )
    return build_gazetteer(areas, census, tracts, study.read(FELONIES_FILE), study.settings.city.crs)

"""The rows of the released file: every image with everything known of its place.

A study keeps what it knows of an area, a tract or a felony once; here it is joined to every image, by row number.
"""

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
WKT_DECIMALS = 3  # a thousandth of a foot; lat and lng hold the position as it came


@dataclass(frozen=True)
class Gazetteer:
    """What images are joined to by row number; small, and the same on every worker."""

    areas: pd.Index[str]  # codes, in the order of `of_area`
    of_area: pa.Table  # published columns of areas and their tracts, one row an area
    felony_keys: pd.MultiIndex  # complaint number and start (epoch ms) of each felony, sorted, none twice
    felony_rows: Rows  # (keys + 1,) where the felonies of each key begin
    felonies_ft: npt.NDArray[np.float64]  # (f, 2)
    felony_points: pa.Array


def build_gazetteer(
    areas: pd.DataFrame, census: pd.DataFrame, tracts: pd.DataFrame, felonies: pd.DataFrame, crs: str
) -> Gazetteer:
    """Gazetteer of a study.

    Parameters
    ----------
    areas, census, tracts, felonies : `AREAS`, `CENSUS` in the same order, `TRACTS`, `FELONIES`
    crs : projected system of the city
    """
    felonies = felonies.assign(at_ms=epoch_ms(felonies["started_at_utc"]))
    # Several places for one number and start are told apart by their distance: any fixed order does.
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
    """Published columns that belong to an area, one row an area."""
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
    wanted = [name for name in declared.names if name in columns]
    fields = [declared[name].arrow_field() for name in wanted]
    return pa.table([columns[name] for name in wanted], schema=pa.schema(fields))


def image_columns(windows_h: tuple[int, ...]) -> list[str]:
    """Columns of annotated/ that the released file is made from."""
    in_other_tables = ("neighborhood", "borough", "captured_local")
    others = ("x_ft", "y_ft", "precinct", *(f"felony_{window_h}h_id" for window_h in windows_h))
    return [
        column.name
        for column in annotated_table(windows_h)
        if column.name in others or (column.published and column.name not in in_other_tables)
    ]


def wide(images: pd.DataFrame, gazetteer: Gazetteer, windows_h: tuple[int, ...], time_zone: str) -> pa.Table:
    """Rows of the released file, one for each row of `images`, in their order: `published_table`.

    Parameters
    ----------
    images : the columns of `annotated_table` that `image_columns` names
    windows_h : of the nearest felonies, hours
    time_zone : of the city

    Raises
    ------
    ContractError : the images name an area or a felony that the gazetteer does not have
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
    _refuse_unknown(images["area"], area, AREAS_FILE)
    of_area = _taken(gazetteer.of_area, area)
    columns |= dict(zip(of_area.column_names, of_area.columns, strict=True))
    schema = published_table(windows_h).arrow_schema()
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _felony_rows(images: pd.DataFrame, window_h: int, gazetteer: Gazetteer) -> Rows:
    """Row of each image's nearest felony, -1 where it has none.

    Of felonies that share number and start, the one that is as far away as the image says.
    """
    felony = images[f"felony_{window_h}h_id"]
    row = np.full(len(images), -1)
    some = np.flatnonzero(felony.notna())
    starts = images[f"felony_{window_h}h_started_at_utc"].iloc[some]
    key = gazetteer.felony_keys.get_indexer(pd.MultiIndex.from_arrays([felony.iloc[some], epoch_ms(starts)]))
    _refuse_unknown(felony.iloc[some], key, FELONIES_FILE)
    first, end = gazetteer.felony_rows[key], gazetteer.felony_rows[key + 1]
    row[some] = first
    several = np.flatnonzero(end - first > 1)
    places_ft = images[["x_ft", "y_ft"]].to_numpy()
    said_ft = images[f"felony_{window_h}h_distance_ft"].to_numpy()
    for one in several:
        candidates = np.arange(first[one], end[one])
        away_ft = np.hypot(*(gazetteer.felonies_ft[candidates] - places_ft[some[one]]).T)
        row[some[one]] = candidates[np.argmin(np.abs(away_ft - said_ft[some[one]]))]
    return row


def _refuse_unknown(names: pd.Series[str], found: npt.NDArray[np.integer], file: str) -> None:
    unknown = (found < 0) & names.notna().to_numpy()
    if unknown.any():
        raise ContractError(
            f"annotated/ names {names[unknown].iloc[0]!r}, which is not in {file}: run `patrolscope annotate` again"
        )


def _array(values: pd.Series[Any]) -> pa.Array:
    return pa.array(values, from_pandas=True)


def _taken(columns: Columns, rows: npt.NDArray[np.integer]) -> Columns:
    """Rows of a column or a table; missing where the row is -1."""
    return columns.take(pa.array(rows, mask=rows < 0))


def _points(x_ft: npt.ArrayLike, y_ft: npt.ArrayLike) -> pa.Array:
    """Points as WKT."""
    x, y = (pc.cast(pc.round(pa.array(axis), WKT_DECIMALS), pa.string()) for axis in (x_ft, y_ft))
    return pc.binary_join_element_wise("POINT (", x, " ", y, ")", "")


def _iso_times(instants: pd.Series[pd.Timestamp], time_zone: str) -> pa.Array:
    """Local times as ISO 8601, to the millisecond, with the offset from UTC."""
    local = instants.dt.tz_convert(time_zone).dt.tz_localize(None)
    # Arrow's strftime takes five times as long.
    text = pc.utf8_replace_slice(pc.cast(pa.array(local), pa.string()), 10, 11, "T")
    offset_ms = local.to_numpy().astype("datetime64[ms]").astype(np.int64) - epoch_ms(instants)
    kinds, kind = np.unique(offset_ms // 60_000, return_inverse=True)
    offsets = [f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}" for minutes in kinds]
    return pc.binary_join_element_wise(text, pa.array(offsets, pa.string()).take(pa.array(kind)), "")


@lru_cache(maxsize=2)
def load_gazetteer(study: Study, _made_from: str) -> Gazetteer:
    """The study's gazetteer, once a worker process; `_made_from` is the layers' fingerprint."""
    areas, census, tracts = (
        study.read(file, columns=[column.name for column in table if column.kind != "geometry"])
        for file, table in ((AREAS_FILE, AREAS), (CENSUS_FILE, CENSUS), (TRACTS_FILE, TRACTS))
    )
    return build_gazetteer(areas, census, tracts, study.read(FELONIES_FILE), study.settings.city.crs)

"""The city of a study: its areas with people, income and zone, its tracts, places, stations and felonies.

Small tables, made once, from which every worker takes what it needs.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from patrolscope.pipeline.contract.tables import (
    AREAS,
    CENSUS,
    FELONIES,
    LEVELS,
    PEOPLE_VARIABLES,
    PLACES,
    STATIONS,
    TRACTS,
)
from patrolscope.pipeline.crs import SQFT_PER_SQMI, WGS84, feet_per_unit, project_ft
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.geography import catalog, readers
from patrolscope.pipeline.geography.census import (
    build_census,
    build_levels,
    build_tracts,
    community_districts,
    with_places,
)
from patrolscope.pipeline.geography.nearest import Stations
from patrolscope.pipeline.geography.polygon_index import PolygonIndex, gaps
from patrolscope.pipeline.geography.zones import zone_shares
from patrolscope.pipeline.study.config import Layer
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study

PLACE_LEVELS = {"neighborhood": "neighborhoods", "borough": "boroughs", "precinct": "precincts"}
AREAS_FILE = "areas/areas.parquet"
CENSUS_FILE = "areas/census.parquet"
TRACTS_FILE = "areas/tracts.parquet"
LEVELS_FILE = "areas/levels.parquet"
PLACES_FILE = "areas/places.parquet"
STATIONS_FILE = "areas/stations.parquet"
FELONIES_FILE = "areas/felonies.parquet"
AREA_INDEX_FILE = "areas/areas.npz"
PRECINCT_INDEX_FILE = "areas/precincts.npz"


def read_layer(study: Study, layer: Layer | None, reader: str | None = None) -> Any:
    """Frame of a layer as its own reader, or the one named, gives it; None where the study has no such layer."""
    if layer is None:
        return None
    entry, path = _locate(study, layer)
    return readers.read_layer(entry, path, reader)


def _locate(study: Study, layer: Layer) -> tuple[catalog.CatalogEntry, Path]:
    cache = study.settings.cache
    return catalog.locate(layer, study, None if cache is None else Path(cache))


def read_tracts(study: Study) -> gpd.GeoDataFrame | None:
    """Tracts with the places that they lie in, in the coordinates of their file; None where the study has no tracts."""
    layers = study.settings.layers
    tracts = read_layer(study, layers.tracts)
    return None if tracts is None else with_places(tracts, read_layer(study, layers.tract_places))


def build_areas(study: Study) -> gpd.GeoDataFrame:
    """Areas of the study with everything known of them: `AREAS`, sorted by code.

    Images are located in degrees, so that a boundary file in degrees is used as it is and no point moves across an
    edge; a projected one is brought to degrees. Centroids and sizes are taken in the city's projection.
    """
    layers = study.settings.layers
    # Not the entry's own reader: tracts can serve as areas, too.
    areas = read_layer(study, layers.areas, "read_areas").to_crs(WGS84).sort_values("area", ignore_index=True)
    ground = areas.geometry.to_crs(study.settings.city.crs)
    areas["area_sqft"] = ground.area * feet_per_unit(study.settings.city.crs) ** 2
    areas = areas.join(_tract_of(ground.centroid, read_tracts(study)))
    areas = areas.join(_people(areas["area"], read_layer(study, layers.population)))
    areas["density_per_sqmi"] = areas["persons"] / areas["area_sqft"] * SQFT_PER_SQMI
    areas["income_usd"] = _looked_up(areas["area"], read_layer(study, layers.income), "income_usd")
    zoning = read_layer(study, layers.zoning)
    if isinstance(zoning, gpd.GeoDataFrame):  # the districts themselves, not their shares
        zoning = zone_shares(areas, zoning, study.settings.city.crs)
    areas["zone"] = zone_of(zoning, areas["area"], study.settings.estimate.zone_share)
    return gpd.GeoDataFrame(AREAS.conform(areas))


def zone_of(zoning: pd.DataFrame | None, areas: pd.Series[str], share: float) -> pd.Series[Any]:
    """Zone that covers at least `share` of each area, else missing; R before C before M where two do."""
    reaches = [_looked_up(areas, zoning, f"share_{name}") >= share for name in ("r", "c", "m")]
    return (
        pd.Series(np.select(reaches, ["R", "C", "M"], default=""), index=areas.index).replace("", np.nan).astype("str")
    )


def _tract_of(centroids: gpd.GeoSeries, tracts: gpd.GeoDataFrame | None) -> pd.DataFrame:
    """Tract that contains each centroid, and the places of the tract; missing where no tract does."""
    names = ["tract", "neighborhood", "borough", "community_district"]
    if tracts is None:
        return pd.DataFrame({name: pd.Series(np.nan, index=centroids.index, dtype="str") for name in names})
    index = PolygonIndex.build(tracts["tract"].to_numpy(), tracts.geometry.to_numpy())
    points = centroids.to_crs(tracts.crs)
    position = index.locate(points.x, points.y)
    found = tracts.set_index("tract").loc[index.keys].reset_index()[names]
    return found.reindex(np.where(position < 0, len(found), position)).set_axis(centroids.index)


def _people(areas: pd.Series[str], population: pd.DataFrame | None) -> pd.DataFrame:
    """Counts by group; an area without a count has none (docs/method.md: a missing population counts as 0)."""
    if population is None:
        return pd.DataFrame(0.0, index=areas.index, columns=list(PEOPLE_VARIABLES))
    return pd.DataFrame(
        {name: _looked_up(areas, population, variable).fillna(0.0) for name, variable in PEOPLE_VARIABLES.items()}
    )


def _looked_up(areas: pd.Series[str], table: pd.DataFrame | None, column: str) -> pd.Series[float]:
    if table is None:
        return pd.Series(np.nan, index=areas.index)
    return areas.map(table.set_index("area")[column]).astype("float64")


def build_places(study: Study, tracts: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Boundaries of neighborhoods, boroughs, precincts and, from `tracts`, community districts: `PLACES`."""
    districts = community_districts(tracts)
    parts = [districts] if len(districts) else []
    for level, name in PLACE_LEVELS.items():
        frame = read_layer(study, getattr(study.settings.layers, name))
        if frame is not None:
            parts.append(frame[["place", "geometry"]].to_crs(WGS84).assign(level=level))
    if not parts:
        return gpd.GeoDataFrame(PLACES.empty(), geometry="geometry", crs=WGS84)
    return gpd.GeoDataFrame(PLACES.conform(pd.concat(parts, ignore_index=True)))


# The stage.


def plan_layers(study: Study) -> list[Shard]:
    """One shard, made from the content of every layer file."""
    made_from = {}
    for name, layer in study.settings.layers:
        if layer is not None:
            entry, path = _locate(study, layer)
            made_from[name] = (layer.entry, catalog.layer_fingerprint(entry, path))
    settings = study.settings
    work = {
        "files": made_from,
        "city": settings.city.model_dump(mode="json", include={"time_zone", "crs"}),
        "zone_share": settings.estimate.zone_share,
        "felony_category": settings.annotate.felony_category,
        "tables": [table.fingerprint() for table in (AREAS, CENSUS, TRACTS, LEVELS, PLACES, STATIONS, FELONIES)],
    }
    return [Shard("layers", work)]


def process_layers(study: Study, _shard: Shard) -> Output:
    """Write areas/: the tables and the indices for point location."""
    settings = study.settings
    layers, crs = settings.layers, settings.city.crs
    areas = build_areas(study)
    tracts = build_tracts(read_tracts(study), read_layer(study, layers.tract_counts), crs)
    census = build_census(
        areas,
        population=read_layer(study, layers.population),
        income=read_layer(study, layers.income),
        attributes=read_layer(study, layers.area_attributes),
        precincts=read_layer(study, layers.precincts),
        crs=crs,
    )
    places = build_places(study, tracts)
    stations = read_layer(study, layers.stations)
    stations = STATIONS.conform(STATIONS.empty() if stations is None else stations)
    felonies, ledger = FELONIES.empty(), Ledger("felonies", 0)
    if layers.complaints is not None:
        _, path = _locate(study, layers.complaints)
        felonies, ledger = readers.read_felonies(
            path, category=settings.annotate.felony_category, time_zone=settings.city.time_zone
        )
    files = [
        study.write(AREAS, areas, AREAS_FILE),
        study.write(CENSUS, census, CENSUS_FILE),
        study.write(TRACTS, tracts, TRACTS_FILE),
        study.write(LEVELS, build_levels(areas, census, tracts), LEVELS_FILE),
        study.write(PLACES, places, PLACES_FILE),
        study.write(STATIONS, stations.sort_values("station_id", ignore_index=True), STATIONS_FILE),
        study.write(FELONIES, felonies, FELONIES_FILE),
    ]
    precincts = places[places["level"] == "precinct"]
    for what, layer, key, file in (
        ("areas", areas, "area", AREA_INDEX_FILE),
        ("precincts", precincts, "place", PRECINCT_INDEX_FILE),
    ):
        if len(layer):
            index = _index(layer, key)
            report_faults(what, layer, index, settings.city.crs, ledger)
            files.append(study.write_bytes(index.to_bytes(), file))
    facts = {"areas": len(areas), "persons": float(areas["persons"].sum()), "stations": len(stations)}
    return Output(
        files=tuple(files),
        rows_in=ledger.rows_in,
        rows_out=len(felonies),
        ledger=(ledger.close(len(felonies)),),
        facts=facts,
    )


def _index(frame: gpd.GeoDataFrame, key: str) -> PolygonIndex:
    return PolygonIndex.build(frame[key].to_numpy(), shapely.make_valid(frame.geometry.to_numpy()))


def report_faults(what: str, layer: gpd.GeoDataFrame, index: PolygonIndex, crs: str, ledger: Ledger) -> None:
    """Note where the areas of a layer overlap, and what lies between them and in none; sizes in the projection `crs`.

    A gap can be a lake; so can a hole that somebody forgot to fill. Both are said, with the largest, and left.
    """
    if len(index.overlaps):
        pairs = ", ".join(f"{low} and {high}" for low, high in index.overlaps[:3].tolist())
        ledger.note(f"pairs of {what} that overlap, such as {pairs}: points there go to the lower", len(index.overlaps))
    holes = gpd.GeoSeries(gaps(shapely.make_valid(layer.geometry.to_numpy())), crs=layer.crs)
    if len(holes):
        size_sqft = holes.to_crs(crs).area * feet_per_unit(crs) ** 2
        at = holes.iloc[int(size_sqft.argmax())].representative_point()
        ledger.note(
            f"gaps between {what}, the largest of {size_sqft.max():,.0f} sq ft at {at.y:.5f}, {at.x:.5f}: "
            "points there are outside",
            len(holes),
        )


@lru_cache(maxsize=4)
def load_index(study: Study, file: str, _made_from: str) -> PolygonIndex:
    """Index of point location, once a worker process; `_made_from` is the layers' fingerprint."""
    return PolygonIndex.from_bytes(study.read_bytes(file))


def load_stations(study: Study) -> Stations:
    """Police stations of the study, in the order of their ids."""
    stations = study.read(STATIONS_FILE)
    return Stations.build(np.column_stack(project_ft(stations["lng"], stations["lat"], study.settings.city.crs)))


LAYERS = Stage(
    "layers",
    unit="files",
    folders=("areas",),
    plan=plan_layers,
    process=process_layers,
    version=2,
    sources=catalog.layer_files,
)

"""Layers of a study: areas with residents, income, and zone, and the boundaries of regions.

The tables are small and built once; each worker reads what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from patrolscope.pipeline.contract.tables import AREAS, BOUNDARIES, PEOPLE_VARIABLES
from patrolscope.pipeline.crs import SQFT_PER_SQMI, WGS84, feet_per_unit, project_ft
from patrolscope.pipeline.geography import catalog, readers
from patrolscope.pipeline.geography.census import community_districts, with_places
from patrolscope.pipeline.geography.codes import respell_tables
from patrolscope.pipeline.geography.extent import check_extent
from patrolscope.pipeline.geography.nearest import Stations
from patrolscope.pipeline.geography.polygon_index import PolygonIndex, gaps
from patrolscope.pipeline.geography.zones import zone_shares
from patrolscope.pipeline.study.config import Layer
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study

GEOGRAPHY_LAYERS = {"neighborhood": "neighborhoods", "borough": "boroughs", "precinct": "precincts"}
AREAS_FILE = "areas/areas.parquet"
CENSUS_FILE = "areas/census.parquet"
TRACTS_FILE = "areas/tracts.parquet"
REGIONS_FILE = "areas/regions.parquet"
BOUNDARIES_FILE = "areas/boundaries.parquet"
STATIONS_FILE = "areas/stations.parquet"
FELONIES_FILE = "areas/felonies.parquet"
AREA_INDEX_FILE = "areas/areas.npz"
PRECINCT_INDEX_FILE = "areas/precincts.npz"


def read_layer(study: Study, layer: Layer | None, reader: str | None = None) -> Any:
    """Read a layer of a study.

    Parameters
    ----------
    study : Study
        Study of the layer.
    layer : Layer, optional
        Layer from the settings.
    reader : str, optional
        Name of a reader to use instead of the one in the layer's entry.

    Returns
    -------
    DataFrame or GeoDataFrame, or None without a layer

    Raises
    ------
    SourceError
        If the file is missing or invalid, or has no feature in the city's box.
    """
    if layer is None:
        return None
    entry, path = locate_layer(study, layer)
    table = readers.read_layer(entry, path, reader)
    check_extent(table, layer.entry, study.settings.city.bounds)
    return table


def locate_layer(study: Study, layer: Layer) -> tuple[catalog.CatalogEntry, Path]:
    """Find the entry and the file of a layer, with the cache folder of the study's settings."""
    cache = study.settings.cache
    return catalog.locate(layer, study, None if cache is None else Path(cache))


def read_tracts(study: Study) -> gpd.GeoDataFrame | None:
    """Read the tracts with their regions, in the CRS of their file; None if the study has no tracts."""
    layers = study.settings.layers
    tracts = read_layer(study, layers.tracts)
    return None if tracts is None else with_places(tracts, read_layer(study, layers.tract_places))


@dataclass(frozen=True)
class AreaTables:
    """Boundaries of the areas, and tables about them under the same codes; None if the study has none."""

    boundaries: gpd.GeoDataFrame
    population: pd.DataFrame | None
    income: pd.DataFrame | None
    zoning: pd.DataFrame | None
    attributes: pd.DataFrame | None
    respelled: int  # codes whose leading zeros differed between the files


def read_area_tables(study: Study) -> AreaTables:
    """Read the areas of a study in EPSG:4326, sorted by code, and the tables about them."""
    layers = study.settings.layers
    # Tracts can serve as areas, so the reader can differ from the entry's own.
    areas = read_layer(study, layers.areas, "read_areas").to_crs(WGS84)
    about = (layers.population, layers.income, layers.zoning, layers.area_attributes)
    codes, tables, changed = respell_tables(areas["area"], (read_layer(study, layer) for layer in about))
    population, income, zoning, attributes = tables
    areas = areas.assign(area=codes).sort_values("area", ignore_index=True)
    return AreaTables(areas, population, income, zoning, attributes, changed)


def build_areas(study: Study, tables: AreaTables) -> gpd.GeoDataFrame:
    """Build the areas of a study with all their attributes: `AREAS`, sorted by code.

    Images are located in degrees, so that boundaries in degrees stay unchanged and no point moves across an edge;
    projected boundaries are converted to degrees. Centroids and sizes are computed in the city's projection.
    """
    areas = tables.boundaries.copy()
    projected = areas.geometry.to_crs(study.settings.city.crs)
    areas["area_sqft"] = projected.area * feet_per_unit(study.settings.city.crs) ** 2
    areas = areas.join(_tract_of(projected.centroid, read_tracts(study)))
    areas = areas.join(_residents(areas["area"], tables.population))
    areas["density_per_sqmi"] = areas["persons"] / areas["area_sqft"] * SQFT_PER_SQMI
    areas["income_usd"] = _look_up(areas["area"], tables.income, "income_usd")
    zoning = tables.zoning
    if isinstance(zoning, gpd.GeoDataFrame):  # zoning districts instead of shares
        zoning = zone_shares(areas, zoning, study.settings.city.crs)
    areas["zone"] = zone_of(zoning, areas["area"], study.settings.estimate.zone_share)
    return gpd.GeoDataFrame(AREAS.conform(areas))


def zone_of(zoning: pd.DataFrame | None, areas: pd.Series[str], share: float) -> pd.Series[Any]:
    """Return the zone of each area.

    Parameters
    ----------
    zoning : DataFrame, optional
        area, share_r, share_c, share_m.
    areas : Series of str
        Codes of areas.
    share : float
        Least share of an area for its zone. If several zones reach it, R precedes C, and C precedes M.

    Returns
    -------
    Series of str
        R, C, or M; missing if no zone reaches the share.
    """
    reaches = [_look_up(areas, zoning, f"share_{name}") >= share for name in ("r", "c", "m")]
    return (
        pd.Series(np.select(reaches, ["R", "C", "M"], default=""), index=areas.index).replace("", np.nan).astype("str")
    )


def _tract_of(centroids: gpd.GeoSeries, tracts: gpd.GeoDataFrame | None) -> pd.DataFrame:
    """Return the tract that contains each centroid, and its regions; missing outside all tracts."""
    names = ["tract", "neighborhood", "borough", "community_district"]
    if tracts is None:
        return pd.DataFrame({name: pd.Series(np.nan, index=centroids.index, dtype="str") for name in names})
    index = PolygonIndex.build(tracts["tract"].to_numpy(), tracts.geometry.to_numpy())
    points = centroids.to_crs(tracts.crs)
    position = index.locate(points.x, points.y)
    found = tracts.set_index("tract").loc[index.keys].reset_index()[names]
    return found.reindex(np.where(position < 0, len(found), position)).set_axis(centroids.index)


def _residents(areas: pd.Series[str], population: pd.DataFrame | None) -> pd.DataFrame:
    """Return counts by group; a missing population counts as 0 (docs/method.md)."""
    if population is None:
        return pd.DataFrame(0.0, index=areas.index, columns=list(PEOPLE_VARIABLES))
    return pd.DataFrame(
        {name: _look_up(areas, population, variable).fillna(0.0) for name, variable in PEOPLE_VARIABLES.items()}
    )


def _look_up(areas: pd.Series[str], table: pd.DataFrame | None, column: str) -> pd.Series[float]:
    if table is None:
        return pd.Series(np.nan, index=areas.index)
    return areas.map(table.set_index("area")[column]).astype("float64")


def build_boundaries(study: Study, tracts: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Build the boundaries of neighborhoods, boroughs, precincts, and community districts (from `tracts`)."""
    districts = community_districts(tracts)
    parts = [districts] if len(districts) else []
    for geography, name in GEOGRAPHY_LAYERS.items():
        frame = read_layer(study, getattr(study.settings.layers, name))
        if frame is not None:
            parts.append(frame[["region", "geometry"]].to_crs(WGS84).assign(geography=geography))
    if not parts:
        return gpd.GeoDataFrame(BOUNDARIES.empty(), geometry="geometry", crs=WGS84)
    return gpd.GeoDataFrame(BOUNDARIES.conform(pd.concat(parts, ignore_index=True)))


def build_index(frame: gpd.GeoDataFrame, key: str) -> PolygonIndex:
    """Build the polygon index of a layer by its key column; invalid polygons are repaired."""
    return PolygonIndex.build(frame[key].to_numpy(), shapely.make_valid(frame.geometry.to_numpy()))


def report_faults(what: str, layer: gpd.GeoDataFrame, index: PolygonIndex, crs: str, ledger: Ledger) -> None:
    """Note overlaps and gaps of a layer in the ledger, with an example. A gap can be a lake, or an error of the layer.

    Parameters
    ----------
    what : str
        Description of the polygons, in the plural.
    layer : GeoDataFrame
        Layer of the index.
    index : PolygonIndex
        Index of the layer.
    crs : str
        Projected CRS for sizes.
    ledger : Ledger
        Ledger for the notes.
    """
    if len(index.overlaps):
        pairs = ", ".join(f"{low} and {high}" for low, high in index.overlaps[:3].tolist())
        ledger.note(f"pairs of {what} that overlap, such as {pairs}: points there go to the lower", len(index.overlaps))
    holes = gpd.GeoSeries(gaps(shapely.make_valid(layer.geometry.to_numpy())), crs=layer.crs)
    if len(holes):
        size_sqft = holes.to_crs(crs).area * feet_per_unit(crs) ** 2
        largest = holes.iloc[int(size_sqft.argmax())].representative_point()
        ledger.note(
            f"gaps between {what}, the largest of {size_sqft.max():,.0f} sq ft at {largest.y:.5f}, {largest.x:.5f}: "
            "points there are outside",
            len(holes),
        )


@lru_cache(maxsize=4)
def load_index(study: Study, file: str, _fingerprint: str) -> PolygonIndex:
    """Load a polygon index, once per worker process and fingerprint of the layers."""
    return PolygonIndex.from_bytes(study.read_bytes(file))


def load_stations(study: Study) -> Stations:
    """Load the police stations of a study, in the order of their ids."""
    stations = study.read(STATIONS_FILE)
    return Stations.build(np.column_stack(project_ft(stations["lng"], stations["lat"], study.settings.city.crs)))

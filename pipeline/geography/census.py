"""Census tables of areas, tracts, and regions."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from patrolscope.pipeline.contract.tables import B03002_PUBLISHED, BOUNDARIES, CENSUS, REGIONS, TRACTS
from patrolscope.pipeline.crs import SQFT_PER_SQMI, WGS84, feet_per_unit
from patrolscope.pipeline.geography.codes import respell
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.geography.readers.boundaries import TRACT_DETAILS

ESTIMATES = [name for name in B03002_PUBLISHED if name.endswith("e")]
MARGINS = [name for name in B03002_PUBLISHED if name.endswith("m")]
# Geographies of areas, with the column of the tracts that holds the codes of their regions.
REGION_CODES = {
    "neighborhood": "neighborhood_code",
    "borough": "borough_code",
    "community_district": "community_district_code",
    "precinct": None,
    "zone": None,
}


def with_places(tracts: gpd.GeoDataFrame, places: pd.DataFrame | None) -> gpd.GeoDataFrame:
    """Add the columns of `TRACT_DETAILS` that the tracts lack, from `places` if it has them.

    Other columns are missing. The name of a community district defaults to its code.
    """
    filled = tracts.copy()
    if places is not None:
        places = places.assign(tract=respell(places["tract"], tracts["tract"]))
    for name in TRACT_DETAILS:
        if name not in filled and places is not None and name in places:
            filled[name] = filled["tract"].map(places.set_index("tract")[name])
        elif name not in filled:
            filled[name] = TRACTS.empty()[name].reindex(filled.index)
    filled["community_district"] = filled["community_district"].fillna(filled["community_district_code"])
    return filled


def build_tracts(tracts: gpd.GeoDataFrame | None, counts: pd.DataFrame | None, crs: str) -> gpd.GeoDataFrame:
    """Add the counts of the 2020 census to tracts.

    Parameters
    ----------
    tracts : GeoDataFrame, optional
        Tracts from `with_places`, in any CRS; None if the study has none.
    counts : DataFrame, optional
        Counts from `read_tract_counts`. Tracts without counts have missing counts and density.
    crs : str
        Projected CRS of the city, for sizes.

    Returns
    -------
    GeoDataFrame
        `TRACTS`, sorted by code.
    """
    if tracts is None:
        return gpd.GeoDataFrame(TRACTS.empty(), geometry="geometry", crs=WGS84)
    frame = tracts.sort_values("tract", ignore_index=True)
    feet = feet_per_unit(crs)
    projected = frame.geometry.to_crs(crs)
    frame["area_sqft"] = projected.area * feet**2
    frame["shape_area_sqft"] = frame["shape_area_sqft"].fillna(frame["area_sqft"])
    frame["shape_length_ft"] = frame["shape_length_ft"].fillna(projected.length * feet)
    names = [name for name in TRACTS.names if name.startswith(("persons", "percent_"))]
    if counts is not None:
        counts = counts.assign(tract=respell(counts["tract"], frame["tract"]))
    frame[names] = _look_up(frame["tract"], counts, "tract", names)
    frame["density_per_sqmi"] = frame["persons"] / frame["area_sqft"] * SQFT_PER_SQMI
    return gpd.GeoDataFrame(TRACTS.conform(frame.to_crs(WGS84)))


def build_census(
    areas: gpd.GeoDataFrame,
    *,
    population: pd.DataFrame | None,
    income: pd.DataFrame | None,
    attributes: pd.DataFrame | None,
    precincts: gpd.GeoDataFrame | None,
    crs: str,
) -> pd.DataFrame:
    """Collect the census data of areas.

    Parameters
    ----------
    areas : GeoDataFrame
        `AREAS`.
    population, income, attributes : DataFrame, optional
        Tables from their readers; None if the study has none.
    precincts : GeoDataFrame, optional
        region and geometry. An area belongs to the precinct that contains its centroid.
    crs : str
        Projected CRS of the city, for centroids.

    Returns
    -------
    DataFrame
        `CENSUS`, in the order of `areas`; missing values where a layer has none.
    """
    codes = areas["area"]
    centroids = areas.geometry.to_crs(crs).centroid
    parts = [codes.to_frame()]
    for table, first, last in (
        (population, "name", MARGINS[-1]),
        (income, "income_usd", "income_margin_usd"),
        (attributes, "state", "internal_lng"),
    ):
        names = CENSUS.names[CENSUS.names.index(first) : CENSUS.names.index(last) + 1]
        parts.append(_look_up(codes, table, "area", names))
    feet = feet_per_unit(crs)
    parts.append(pd.DataFrame({"centroid_x_ft": centroids.x * feet, "centroid_y_ft": centroids.y * feet}))
    parts.append(_precinct_of(centroids, precincts).to_frame())
    return CENSUS.conform(pd.concat(parts, axis=1))


def _look_up(keys: pd.Series[str], table: pd.DataFrame | None, key: str, names: list[str]) -> pd.DataFrame:
    """Return columns of a table in the order of `keys`; missing without the table, the column, or the row."""
    found = pd.DataFrame(index=keys) if table is None else table.set_index(key).reindex(keys)
    declared = TRACTS if key == "tract" else CENSUS
    dtypes = {name: declared[name].pandas_dtype for name in names}
    return found.reindex(columns=names).astype(dtypes).set_axis(keys.index)


def _precinct_of(centroids: gpd.GeoSeries, precincts: gpd.GeoDataFrame | None) -> pd.Series[str]:
    if precincts is None or precincts.empty:
        return pd.Series(np.nan, index=centroids.index, dtype="str", name="precinct")
    index = PolygonIndex.build(precincts["region"].to_numpy(), shapely.make_valid(precincts.geometry.to_numpy()))
    points = centroids.to_crs(precincts.crs)
    found = pd.Series(index.keys, dtype="str").array.take(index.locate(points.x, points.y), allow_fill=True)
    return pd.Series(found, index=centroids.index, name="precinct")


def build_regions(areas: pd.DataFrame, census: pd.DataFrame, tracts: pd.DataFrame) -> pd.DataFrame:
    """Sum the areas of each region of each geography.

    The margin of error of a sum is the root of the sum of the squared margins of the estimates above 0 and of the
    largest squared margin of the estimates of 0, which counts once [1]_. A missing margin makes that of the sum
    missing. Covariances are left out. Medians such as income cannot be summed, and are left out.

    Parameters
    ----------
    areas : DataFrame
        `AREAS`.
    census : DataFrame
        `CENSUS`, in the order of `areas`.
    tracts : DataFrame
        `TRACTS`, for the codes of regions.

    Returns
    -------
    DataFrame
        `REGIONS`, sorted by geography and region.

    References
    ----------
    .. [1] US Census Bureau, training slides on margins of error of aggregated estimates (April 2018, slide 52), and
       "Multiyear accuracy of the data" (2015), page 21. The steps of chapter 8 of the Bureau's handbook sum all.
    """
    amounts = pd.concat([census[ESTIMATES], areas["area_sqft"]], axis=1)
    squares = census[MARGINS] ** 2
    estimates = census[ESTIMATES].set_axis(MARGINS, axis=1)
    # Zero estimates enter by their largest margin, and areas without counts add nothing.
    others = squares.mask(((estimates == 0) & squares.notna()) | estimates.isna(), 0.0)
    of_zero = squares.where(estimates == 0)
    parts = []
    for geography, code in REGION_CODES.items():
        region = census["precinct"] if geography == "precinct" else areas[geography]
        grouped = amounts.groupby(region)
        sums = grouped.sum(min_count=1)
        squared = others.groupby(region).sum(skipna=False) + of_zero.groupby(region).max().fillna(0.0)
        sums[MARGINS] = squared.pow(0.5).where(sums[ESTIMATES].notna().to_numpy())
        sums["areas"] = grouped.size()
        sums["code"] = None if code is None else sums.index.map(_codes(tracts, geography, code))
        parts.append(sums.rename_axis("region").reset_index().assign(geography=geography))
    regions = pd.concat(parts, ignore_index=True).astype({"region": "str", "code": "str"})
    regions["density_per_sqmi"] = regions[ESTIMATES[0]] / regions["area_sqft"] * SQFT_PER_SQMI
    return REGIONS.conform(regions.sort_values(["geography", "region"], ignore_index=True))


def _codes(tracts: pd.DataFrame, name: str, code: str) -> dict[str, str]:
    """Return the code of each name that has exactly one."""
    pairs = tracts[[name, code]].dropna().drop_duplicates()
    return dict(pairs[~pairs[name].duplicated(keep=False)].to_numpy().tolist())


def _union(parts: npt.NDArray[np.object_]) -> shapely.Geometry:
    if shapely.coverage_is_valid(parts):
        return shapely.coverage_union_all(parts)
    # Tracts with separately rounded corners overlap, or leave gaps of less than a millimeter. On this grid (degrees)
    # their union has no holes there; without it, that of the embedded city has 109.
    return shapely.union_all(parts, grid_size=1e-8)


def community_districts(tracts: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Unite the tracts of each community district: rows of `BOUNDARIES`, EPSG:4326."""
    known = tracts.dropna(subset="community_district")
    shapes = known.groupby("community_district")["geometry"].apply(lambda parts: _union(parts.to_numpy()))
    columns = {"geography": "community_district", "region": shapes.index.astype("str")}
    return gpd.GeoDataFrame(columns, geometry=shapes.to_numpy(), crs=WGS84)[BOUNDARIES.names]

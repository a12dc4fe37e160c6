"""The small tables of areas, tracts and places: what the census says of each, once, not once an image."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from patrolscope.pipeline.contract.tables import B03002_PUBLISHED, CENSUS, LEVELS, PLACES, TRACTS
from patrolscope.pipeline.crs import SQFT_PER_SQMI, WGS84, feet_per_unit
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.geography.readers import TRACT_DETAILS

ESTIMATES = [name for name in B03002_PUBLISHED if name.endswith("e")]
MARGINS = [name for name in B03002_PUBLISHED if name.endswith("m")]
# Levels that an area belongs to, with the column of the tracts that holds the code of a place.
LEVEL_CODES = {
    "neighborhood": "neighborhood_code",
    "borough": "borough_code",
    "community_district": "community_district_code",
    "precinct": None,
    "zone": None,
}


def with_places(tracts: gpd.GeoDataFrame, places: pd.DataFrame | None) -> gpd.GeoDataFrame:
    """Tracts with every column of `TRACT_DETAILS`, those that their file lacks from `places`; else missing.

    A community district without a name anywhere is called by its code.
    """
    filled = tracts.copy()
    for name in TRACT_DETAILS:
        if name not in filled and places is not None and name in places:
            filled[name] = filled["tract"].map(places.set_index("tract")[name])
        elif name not in filled:
            filled[name] = TRACTS.empty()[name].reindex(filled.index)
    filled["community_district"] = filled["community_district"].fillna(filled["community_district_code"])
    return filled


def build_tracts(tracts: gpd.GeoDataFrame | None, counts: pd.DataFrame | None, crs: str) -> gpd.GeoDataFrame:
    """Tracts with the counts of the 2020 census: `TRACTS`, sorted by code.

    Parameters
    ----------
    tracts : as `with_places` gives them, in any coordinate system; None: the study has none
    counts : `readers.read_tract_counts`; a tract that is not in it has counts and density missing
    crs : projected system of the city, for sizes
    """
    if tracts is None:
        return gpd.GeoDataFrame(TRACTS.empty(), geometry="geometry", crs=WGS84)
    frame = tracts.sort_values("tract", ignore_index=True)
    feet = feet_per_unit(crs)
    ground = frame.geometry.to_crs(crs)
    frame["area_sqft"] = ground.area * feet**2
    frame["shape_area_sqft"] = frame["shape_area_sqft"].fillna(frame["area_sqft"])
    frame["shape_length_ft"] = frame["shape_length_ft"].fillna(ground.length * feet)
    names = [name for name in TRACTS.names if name.startswith(("persons", "percent_"))]
    frame[names] = _looked_up(frame["tract"], counts, "tract", names)
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
    """What the census says of each area: `CENSUS`, in the order of `areas`; missing what no layer says.

    Parameters
    ----------
    areas : `AREAS`
    population, income, attributes : frames of their readers; None: the study has none
    precincts : place and geometry; the one that contains an area's centroid, taken in `crs`
    crs : projected system of the city
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
        parts.append(_looked_up(codes, table, "area", names))
    feet = feet_per_unit(crs)
    parts.append(pd.DataFrame({"centroid_x_ft": centroids.x * feet, "centroid_y_ft": centroids.y * feet}))
    parts.append(_precinct_of(centroids, precincts).to_frame())
    return CENSUS.conform(pd.concat(parts, axis=1))


def _looked_up(keys: pd.Series[str], table: pd.DataFrame | None, key: str, names: list[str]) -> pd.DataFrame:
    """Columns of a table in the order of `keys`; missing where the table, the column or the row is not there."""
    found = pd.DataFrame(index=keys) if table is None else table.set_index(key).reindex(keys)
    declared = TRACTS if key == "tract" else CENSUS
    dtypes = {name: declared[name].pandas_dtype for name in names}
    return found.reindex(columns=names).astype(dtypes).set_axis(keys.index)


def _precinct_of(centroids: gpd.GeoSeries, precincts: gpd.GeoDataFrame | None) -> pd.Series[str]:
    if precincts is None or precincts.empty:
        return pd.Series(np.nan, index=centroids.index, dtype="str", name="precinct")
    index = PolygonIndex.build(precincts["place"].to_numpy(), shapely.make_valid(precincts.geometry.to_numpy()))
    points = centroids.to_crs(precincts.crs)
    found = pd.Series(index.keys, dtype="str").array.take(index.locate(points.x, points.y), allow_fill=True)
    return pd.Series(found, index=centroids.index, name="precinct")


def build_levels(areas: pd.DataFrame, census: pd.DataFrame, tracts: pd.DataFrame) -> pd.DataFrame:
    """Every place of every level as the sum of its areas: `LEVELS`, sorted by level and place.

    The margin of a sum is the root of the sum of the squared margins, the Census Bureau's rule for sums. Medians can
    not be summed: there is no income here.

    Parameters
    ----------
    areas, census : `AREAS` and `CENSUS`, in the same order
    tracts : `TRACTS`, for the codes of places
    """
    amounts = pd.concat([census[ESTIMATES], census[MARGINS] ** 2, areas["area_sqft"]], axis=1)
    parts = []
    for level, code in LEVEL_CODES.items():
        place = census["precinct"] if level == "precinct" else areas[level]
        grouped = amounts.groupby(place)
        sums = grouped.sum(min_count=1)
        sums[MARGINS] = np.sqrt(sums[MARGINS])
        sums["areas"] = grouped.size()
        sums["code"] = None if code is None else sums.index.map(_codes(tracts, level, code))
        parts.append(sums.rename_axis("place").reset_index().assign(level=level))
    levels = pd.concat(parts, ignore_index=True).astype({"place": "str", "code": "str"})
    levels["density_per_sqmi"] = levels[ESTIMATES[0]] / levels["area_sqft"] * SQFT_PER_SQMI
    return LEVELS.conform(levels.sort_values(["level", "place"], ignore_index=True))


def _codes(tracts: pd.DataFrame, name: str, code: str) -> dict[str, str]:
    """Code of each name that has exactly one."""
    pairs = tracts[[name, code]].dropna().drop_duplicates()
    return dict(pairs[~pairs[name].duplicated(keep=False)].to_numpy().tolist())


def _union(parts: npt.NDArray[np.object_]) -> shapely.Geometry:
    if shapely.coverage_is_valid(parts):
        return shapely.coverage_union_all(parts)
    # Tracts whose corners were rounded one by one overlap or leave gaps of less than a millimeter: on this grid of
    # degrees their union has no hole for each (the embedded city: 109 without it).
    return shapely.union_all(parts, grid_size=1e-8)


def community_districts(tracts: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Boundaries of the community districts, each the union of its tracts, EPSG:4326: rows of `PLACES`."""
    known = tracts.dropna(subset="community_district")
    shapes = known.groupby("community_district")["geometry"].apply(lambda parts: _union(parts.to_numpy()))
    columns = {"level": "community_district", "place": shapes.index.astype("str")}
    return gpd.GeoDataFrame(columns, geometry=shapes.to_numpy(), crs=WGS84)[PLACES.names]

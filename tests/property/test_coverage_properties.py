"""Point location on random tilings and in New York, equal to GEOS for every point."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.pipeline.geography.polygon_index import PolygonIndex


def lowest_touching(shapes: np.ndarray, points: np.ndarray) -> np.ndarray:
    at, area = shapely.STRtree(shapes).query(points, predicate="intersects")
    lowest = np.full(len(points), len(shapes))
    np.minimum.at(lowest, at, area)
    return np.where(lowest == len(shapes), -1, lowest)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), areas=st.integers(2, 60), digits=st.integers(1, 15))
def test_random_tilings_with_coarse_and_fine_coordinates_agree_with_geos(seed, areas, digits):
    rng = np.random.default_rng(seed)
    # Few digits put many points exactly on boundaries.
    seeds = shapely.MultiPoint(np.unique(rng.uniform(0, 3, (areas, 2)).round(digits), axis=0))
    cells = shapely.get_parts(shapely.voronoi_polygons(seeds, extend_to=shapely.box(-1, -1, 4, 4)))
    shapes = cells[shapely.is_valid(cells) & (shapely.get_type_id(cells) == 3)]
    if len(shapes) < 2 or not shapely.coverage_is_valid(shapes):
        return
    keys = np.array([f"{number:03d}" for number in range(len(shapes))])
    index = PolygonIndex.build(keys, shapes)
    xy = np.vstack([rng.uniform(-1.5, 4.5, (400, 2)).round(digits), shapely.get_coordinates(shapes)])
    np.testing.assert_array_equal(index.locate(*xy.T), lowest_touching(shapes, shapely.points(xy)))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "key", "areas"),
    [("nyc_block_groups_2020.parquet", "GEOID20", 6670), ("nyc_census_tracts_2020.parquet", "GEOID", 2325)],
)
def test_street_points_of_the_real_city_fall_in_the_same_areas_as_with_geopandas(shared_data, file, key, areas):
    layer = gpd.read_parquet(shared_data / "boundaries" / file)
    assert len(layer) == areas
    index = PolygonIndex.build(layer[key].to_numpy(), layer.geometry.to_numpy())
    assert len(index.overlaps) == 0
    rng = np.random.default_rng(4)
    ends = index.segments[rng.integers(0, len(index.segments), 40_000)]
    along = ends[:, :2] + rng.random((len(ends), 1)) * (ends[:, 2:] - ends[:, :2])
    # A third on vertices, a third on edges up to rounding, a third some meters off: streets are boundaries.
    points = np.vstack([ends[:, :2], along, along + rng.normal(0, 5e-5, along.shape)])
    joined = gpd.sjoin(
        gpd.GeoDataFrame(geometry=gpd.points_from_xy(*points.T, crs=layer.crs)),
        layer[[key, "geometry"]],
        how="left",
        predicate="intersects",
    )
    expected = joined.groupby(level=0)[key].min()
    found = index.locate(*points.T)
    ours = pd.Series(np.where(found < 0, "", index.keys[found]))
    assert (ours == expected.fillna("").astype(object)).all()

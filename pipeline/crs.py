"""From degrees to feet on the ground."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer

Floats = npt.NDArray[np.float64]

WGS84 = "EPSG:4326"
US_SURVEY_FOOT_M = 1200 / 3937
SQFT_PER_SQMI = 5280.0**2  # 27,878,400


def feet_per_unit(crs: str) -> float:
    """US survey feet in one unit of a projected system; exactly 1 for EPSG:2263, 3.28 for one in meters."""
    axis_m = float(CRS.from_user_input(crs).axis_info[0].unit_conversion_factor)
    factor = axis_m / US_SURVEY_FOOT_M
    return 1.0 if abs(factor - 1) < 1e-12 else factor


@lru_cache(maxsize=8)
def _to_city(crs: str) -> tuple[Transformer, float]:
    return Transformer.from_crs(WGS84, crs, always_xy=True), feet_per_unit(crs)


def project_ft(lng: npt.ArrayLike, lat: npt.ArrayLike, crs: str) -> tuple[Floats, Floats]:
    """Easting and northing in feet of positions in EPSG:4326 degrees.

    Parameters
    ----------
    lng, lat : (n,) float, degrees
    crs : projected system of the city; one that is not in feet is converted
    """
    transformer, factor = _to_city(crs)
    x, y = transformer.transform(np.asarray(lng, dtype=np.float64), np.asarray(lat, dtype=np.float64))
    return np.asarray(x) * factor, np.asarray(y) * factor

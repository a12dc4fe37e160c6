"""Projection from longitude and latitude to feet."""

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
    """Return US survey feet per unit of a projected CRS: exactly 1 for EPSG:2263, 3.28 for a CRS in meters."""
    axis_m = float(CRS.from_user_input(crs).axis_info[0].unit_conversion_factor)
    factor = axis_m / US_SURVEY_FOOT_M
    return 1.0 if abs(factor - 1) < 1e-12 else factor


@lru_cache(maxsize=8)
def _to_city(crs: str) -> tuple[Transformer, float]:
    return Transformer.from_crs(WGS84, crs, always_xy=True), feet_per_unit(crs)


def project_ft(lng: npt.ArrayLike, lat: npt.ArrayLike, crs: str) -> tuple[Floats, Floats]:
    """Project longitude and latitude to easting and northing in feet.

    Parameters
    ----------
    lng, lat : array_like of float, shape (n,)
        EPSG:4326 degrees.
    crs : str
        Projected CRS of the city. Other units are converted to US survey feet.

    Returns
    -------
    tuple of two ndarrays of float64, shape (n,)
        Easting and northing, US survey feet.
    """
    transformer, factor = _to_city(crs)
    x, y = transformer.transform(np.asarray(lng, dtype=np.float64), np.asarray(lat, dtype=np.float64))
    return np.asarray(x) * factor, np.asarray(y) * factor

"""Projection from longitude and latitude to feet."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Proj, Transformer
from pyproj.exceptions import CRSError

Floats = npt.NDArray[np.float64]

WGS84 = "EPSG:4326"
US_SURVEY_FOOT_M = 1200 / 3937
SQFT_PER_SQMI = 5280.0**2  # 27,878,400


MOST_SCALE_ERROR = 0.01  # of a length, along the meridian or the parallel
_GRID = 9  # points per side of the box at which the scale is computed, edges included
# Conversions whose axes point south and west, and the same conversion with axes to the east and north.
_NORTH_ORIENTED = {
    "Transverse Mercator (South Orientated)": "Transverse Mercator",
    "Krovak": "Krovak (North Orientated)",
}
_EAST_NORTH = {"east", "north"}


class ProjectionError(ValueError):
    """Coordinate system that does not suit a city; the message names the fix."""


@lru_cache(maxsize=8)
def city_crs(crs: str) -> CRS:
    """Return a projected CRS with its first axis to the east and its second to the north.

    A system whose axes point west and south, such as EPSG:2048, would turn maps by 180 degrees; it is replaced by the
    same projection with the opposite signs. The order of the axes does not matter, as all conversions use x, y.

    Raises
    ------
    ProjectionError
        If the text is not a projected CRS with two axes in a unit of length, or its axes cannot be turned.
    """
    advice = "expected a projected system, such as EPSG:2263 for New York or the UTM zone of the city"
    try:
        system = CRS.from_user_input(crs)
    except CRSError as error:
        raise ProjectionError(f"{crs!r} is not a coordinate system; expected a code such as EPSG:2263") from error
    if not system.is_projected or any("degree" in axis.unit_name for axis in system.axis_info):
        raise ProjectionError(f"{crs!r} is in degrees; {advice}")
    if len(system.axis_info) != 2:
        raise ProjectionError(f"{crs!r} has {len(system.axis_info)} axes; {advice}, without heights")
    directions = {axis.direction.lower() for axis in system.axis_info}
    if directions == _EAST_NORTH:
        return system
    content = system.to_json_dict()
    method = content.get("conversion", {}).get("method", {}).get("name")
    if directions != {"west", "south"} or method not in _NORTH_ORIENTED:
        named = " and ".join(axis.direction for axis in system.axis_info)
        raise ProjectionError(f"{crs!r} has axes to the {named}; expected east and north; {advice}")
    content["conversion"]["method"] = {"name": _NORTH_ORIENTED[method]}
    unit = content["coordinate_system"]["axis"][0]["unit"]
    content["coordinate_system"]["axis"] = [
        {"name": "Easting", "abbreviation": "X", "direction": "east", "unit": unit},
        {"name": "Northing", "abbreviation": "Y", "direction": "north", "unit": unit},
    ]
    content["name"] = f"{content['name']} (axes to the east and north)"
    content.pop("id", None)
    return CRS.from_json_dict(content)


def check_scale(crs: str, west: float, south: float, east: float, north: float) -> None:
    """Check that lengths in a projected CRS are right within 1% all over a box.

    Parameters
    ----------
    crs : str
        Projected CRS of the city.
    west, south, east, north : float
        Box in degrees of EPSG:4326.

    Raises
    ------
    ProjectionError
        If the scale along the meridian or the parallel differs from 1 by more than `MOST_SCALE_ERROR`.
    """
    lng, lat = map(np.ravel, np.meshgrid(np.linspace(west, east, _GRID), np.linspace(south, north, _GRID)))
    factors = Proj(city_crs(crs)).get_factors(lng, lat)  # infinite where the projection is not defined
    scales = np.stack([factors.meridional_scale, factors.parallel_scale])
    error = np.where(np.isfinite(scales), np.abs(scales - 1), np.inf).max(axis=0)
    worst = int(error.argmax())
    if error[worst] <= MOST_SCALE_ERROR:
        return
    by = f"{scales[:, worst].max():.3g}" if np.isfinite(error[worst]) else "not defined"
    zone = min(int((west + east + 360) // 12) + 1, 60)
    utm = f"EPSG:{(32600 if south + north >= 0 else 32700) + zone}"
    raise ProjectionError(
        f"{crs!r} has scale {by} at latitude {lat[worst]:.4g}, longitude {lng[worst]:.4g} of city.bounds; expected 1 "
        f"within {MOST_SCALE_ERROR:.0%}; check that west and east are longitudes, and set city.crs to a projection for "
        f"the city, such as its UTM zone {utm}"
    )


def feet_per_unit(crs: str) -> float:
    """Return US survey feet per unit of a projected CRS: exactly 1 for EPSG:2263, 3.28 for a CRS in meters."""
    axis_m = float(CRS.from_user_input(crs).axis_info[0].unit_conversion_factor)
    factor = axis_m / US_SURVEY_FOOT_M
    return 1.0 if abs(factor - 1) < 1e-12 else factor


@lru_cache(maxsize=8)
def _to_city(crs: str) -> tuple[Transformer, float]:
    return Transformer.from_crs(WGS84, city_crs(crs), always_xy=True), feet_per_unit(crs)


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
        Easting and northing, US survey feet; to the east and north also where the axes of `crs` point elsewhere.
    """
    transformer, factor = _to_city(crs)
    x, y = transformer.transform(np.asarray(lng, dtype=np.float64), np.asarray(lat, dtype=np.float64))
    return np.asarray(x) * factor, np.asarray(y) * factor

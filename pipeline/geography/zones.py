"""Shares of areas in residential, commercial, and manufacturing zones, from the polygons of zoning districts.

Zoning districts do not tile the city: they leave gaps, and those of one zone touch and overlap. A spatial join finds
the pairs of areas and districts, and their intersections give the shares.
"""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from patrolscope.pipeline.engine.distribute import intersecting_pairs

ZONES = ("R", "C", "M")


def zone_of_district(districts: pd.Series[str]) -> pd.Series[str]:
    """Return the zone (R, C, or M) of zoning districts such as R6B, C4-2, M1-5/R9; missing without such a letter.

    The published shares follow this rule: a name with an R is residential, else one with a C is commercial, else one
    with an M is manufacturing. PARK and mixed districts such as M1-5/R9 therefore count as R.
    """
    names = districts.str.upper()
    holds = [names.str.contains(zone, regex=False) for zone in ZONES]
    return pd.Series(np.select(holds, ZONES, default=""), index=districts.index).replace("", np.nan).astype("str")


def zone_shares(areas: gpd.GeoDataFrame, districts: gpd.GeoDataFrame, crs: str) -> pd.DataFrame:
    """Compute the share of each area in the districts of each zone.

    Parameters
    ----------
    areas : GeoDataFrame
        area (code) and geometry.
    districts : GeoDataFrame
        district (name) and geometry. Overlaps of districts of one zone count once.
    crs : str
        Projected CRS of the city, for sizes.

    Returns
    -------
    DataFrame
        area, share_r, share_c, share_m (0 to 1).
    """
    shapes = areas[["area", "geometry"]].to_crs(crs)
    zoned = districts[["geometry"]].to_crs(crs).assign(zone=zone_of_district(districts["district"]))
    zoned = zoned[zoned["zone"].notna()].reset_index(drop=True)
    pairs = intersecting_pairs(shapes, zoned)
    common = shapely.intersection(shapes.geometry.to_numpy()[pairs["left"]], zoned.geometry.to_numpy()[pairs["right"]])
    number = {zone: at for at, zone in enumerate(ZONES)}
    pieces = pd.DataFrame(
        {"area": pairs["left"], "zone": zoned["zone"].map(number).to_numpy()[pairs["right"]], "piece": common}
    )
    united = pieces.groupby(["area", "zone"])["piece"].agg(lambda parts: shapely.area(shapely.union_all(parts)))
    shares = np.zeros((len(shapes), len(ZONES)))
    shares[united.index.get_level_values("area"), united.index.get_level_values("zone")] = united
    shares /= shapes.area.to_numpy()[:, None]
    columns = {f"share_{zone.lower()}": shares[:, number] for number, zone in enumerate(ZONES)}
    return pd.DataFrame({"area": areas["area"].to_numpy(), **columns})

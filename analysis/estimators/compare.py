"""Comparison of two sets of results, group by group."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from patrolscope.analysis.estimators.rates import PUBLISHED_FILES

_KEY = ["analysis", "group", "key", "quantity"]
_NUMBERS = ["estimate", "lower", "upper", "sd", "replicates"]
# A rank correlation of two groups is always 1 or -1.
_LEAST_GROUPS = 3


def compare(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Join two sets of results by group and quantity.

    Parameters
    ----------
    a, b : DataFrame
        Output of `patrolscope.analysis.stages.reproduce.tabulate`.

    Returns
    -------
    DataFrame
        analysis, group, key, quantity; found_in (`both`, `a`, or `b`); estimate, lower, upper, sd, and replicates with
        suffixes `_a` and `_b`; difference (b - a); ratio (b / a); intervals_overlap (NA if a set has no interval). Each
        analysis is in the order of `a`, followed by groups that only `b` has.
    """
    left, right = (rows[_KEY + _NUMBERS].astype({"replicates": "Int64"}) for rows in (a, b))
    both = left.merge(right, on=_KEY, how="outer", suffixes=("_a", "_b"), indicator="found_in")
    # An outer merge sorts by its key; restore the order of the paper.
    order = pd.concat([a[_KEY], b[_KEY]]).drop_duplicates(ignore_index=True)
    place = order["analysis"].map({name: number for number, name in enumerate(PUBLISHED_FILES)})
    both = order.loc[place.sort_values(kind="stable").index].merge(both, on=_KEY)
    both["found_in"] = both["found_in"].astype("str").replace({"left_only": "a", "right_only": "b"})
    both["difference"] = both["estimate_b"] - both["estimate_a"]
    both["ratio"] = both["estimate_b"].div(both["estimate_a"]).where(both["estimate_a"] != 0)
    apart = (both["lower_a"] > both["upper_b"]) | (both["lower_b"] > both["upper_a"])
    known = both[["lower_a", "upper_a", "lower_b", "upper_b"]].notna().all(axis=1)
    both["intervals_overlap"] = (~apart).astype("boolean").where(known)
    first = [*_KEY, "found_in", *(f"{name}_a" for name in _NUMBERS), *(f"{name}_b" for name in _NUMBERS)]
    return both[[*first, "difference", "ratio", "intervals_overlap"]]


def summarize(compared: pd.DataFrame) -> pd.DataFrame:
    """Summarize the agreement of two sets of relative rates per analysis.

    The group without a name is not a region, so the rank correlation excludes it.

    Parameters
    ----------
    compared : DataFrame
        Output of `compare`.

    Returns
    -------
    DataFrame
        analysis; both, only_a, only_b (numbers of groups); with_intervals (groups with an interval in both sets);
        overlapping (those whose intervals overlap); rank_correlation (Spearman, NaN below three groups); largest_ratio
        (maximum over groups of the higher rate divided by the lower). One row per analysis.
    """
    rates = compared[compared["quantity"] == "relative_to_average"]
    rows = []
    for analysis, groups in rates.groupby("analysis", sort=False):
        both = groups[groups["found_in"] == "both"]
        named = both[both["key"] != ""]
        ranked = len(named) >= _LEAST_GROUPS and min(named["estimate_a"].nunique(), named["estimate_b"].nunique()) > 1
        rows.append(
            {
                "analysis": analysis,
                "both": len(both),
                "only_a": int((groups["found_in"] == "a").sum()),
                "only_b": int((groups["found_in"] == "b").sum()),
                "with_intervals": int(both["intervals_overlap"].notna().sum()),
                "overlapping": int(both["intervals_overlap"].fillna(value=False).sum()),
                "rank_correlation": float(stats.spearmanr(named["estimate_a"], named["estimate_b"]).statistic)
                if ranked
                else np.nan,
                "largest_ratio": float(np.exp(np.log(both["ratio"].where(both["ratio"] > 0)).abs().max())),
            }
        )
    return pd.DataFrame(rows)

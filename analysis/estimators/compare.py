"""Two sets of results side by side: what both say of a group, and what only one of them has."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from patrolscope.analysis.estimators.rates import PUBLISHED_FILES

_KEY = ["analysis", "group", "key", "quantity"]
_NUMBERS = ["estimate", "lower", "upper", "sd", "replicates"]
# A rank correlation of two groups is 1 or -1, whatever their levels.
_LEAST_GROUPS = 3


def compare(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Every group and quantity of either set; of each analysis in the order of `a`, then what only `b` has.

    Parameters
    ----------
    a, b : from `patrolscope.analysis.stages.reproduce.tabulate`

    Returns
    -------
    analysis, group, key, quantity; found_in (`both`, `a` or `b`); estimate, lower, upper, sd, replicates of each, with
    _a and _b; difference (b - a); ratio (b / a); intervals_overlap (missing where a set has no interval)
    """
    one, other = (rows[_KEY + _NUMBERS].astype({"replicates": "Int64"}) for rows in (a, b))
    both = one.merge(other, on=_KEY, how="outer", suffixes=("_a", "_b"), indicator="found_in")
    # An outer merge sorts by its key; a reader expects the order of the paper.
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
    """How far two sets agree, one row an analysis, over their levels relative to the average.

    The group without a name takes part in no rank correlation: it is no place.

    Parameters
    ----------
    compared : from `compare`

    Returns
    -------
    analysis; both, only_a, only_b (groups); with_intervals (groups with an interval in both sets), overlapping (of
    them, those whose intervals overlap); rank_correlation (Spearman's, missing below three groups); largest_ratio (of
    the two levels of a group, the higher by the lower)
    """
    levels = compared[compared["quantity"] == "relative_to_average"]
    rows = []
    for analysis, groups in levels.groupby("analysis", sort=False):
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

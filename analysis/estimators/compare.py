"""Comparison of two sets of results, group by group, with intervals of differences and ratios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from patrolscope.analysis.estimators.rates import PUBLISHED_FILES

Floats = npt.NDArray[np.float64]
Replicates = Mapping[tuple[str, str, str], Floats]  # by analysis, key, and quantity, shape (n_replicates,)

_KEY = ["analysis", "group", "key", "quantity"]
_NUMBERS = ["estimate", "lower", "upper", "sd", "replicates", "bound"]
_INTERVALS = ["difference_lower", "difference_upper", "ratio_lower", "ratio_upper"]
_FEWEST_REPLICATES = 2
# A rank correlation of two groups is always 1 or -1.
_LEAST_GROUPS = 3


def compare(
    a: pd.DataFrame, b: pd.DataFrame, replicates: tuple[Replicates, Replicates], *, percent: float, dependence: str = ""
) -> pd.DataFrame:
    """Join two sets of results by group and quantity, and compute intervals of their differences and ratios.

    Replicates of both sets are paired by number, so that calibration draws that both share cancel. Where a set has only
    limits, the intervals are those of `mover`.

    Parameters
    ----------
    a, b : DataFrame
        analysis, group, key, quantity, estimate, lower, upper, sd, replicates, and, if known, bound (`below` where the
        upper limit is all that is known).
    replicates : tuple of mapping
        Replicates of `a` and of `b`.
    percent : float
        Nominal coverage of the intervals.
    dependence : str, optional
        Reason why the sets are not independent. No interval is then computed.

    Returns
    -------
    DataFrame
        analysis, group, key, quantity; found_in (`both`, `a`, or `b`); estimate, lower, upper, sd, replicates, bound
        with suffixes `_a` and `_b`; difference (b - a) and ratio (b / a), missing where a set has only a bound; their
        limits; interval_method (`replicates`, `limits`, or empty); no_interval (the reason if there is none). Each
        analysis is in the order of `a`, followed by groups that only `b` has.
    """
    left, right = (_prepared(rows) for rows in (a, b))
    both = left.merge(right, on=_KEY, how="outer", suffixes=("_a", "_b"), indicator="found_in")
    # An outer merge sorts by its key; restore the order of the paper.
    order = pd.concat([a[_KEY], b[_KEY]]).drop_duplicates(ignore_index=True)
    place = order["analysis"].map({name: number for number, name in enumerate(PUBLISHED_FILES)})
    both = order.loc[place.sort_values(kind="stable").index].merge(both, on=_KEY)
    both["found_in"] = both["found_in"].astype("str").replace({"left_only": "a", "right_only": "b"})
    pointed = (both[["bound_a", "bound_b"]] != "below").all(axis=1)
    both["difference"] = (both["estimate_b"] - both["estimate_a"]).where(pointed)
    both["ratio"] = both["estimate_b"].div(both["estimate_a"]).where(pointed & (both["estimate_a"] > 0))
    found = [_row_intervals(row, replicates, percent, dependence) for row in both.to_dict("records")]
    columns = [*_INTERVALS, "interval_method", "no_interval"]
    both[columns] = pd.DataFrame(found, columns=columns, index=both.index)
    first = [*_KEY, "found_in", *(f"{name}_a" for name in _NUMBERS), *(f"{name}_b" for name in _NUMBERS)]
    return both[[*first, "difference", *_INTERVALS[:2], "ratio", *_INTERVALS[2:], "interval_method", "no_interval"]]


def _prepared(rows: pd.DataFrame) -> pd.DataFrame:
    bound = rows.get("bound", "")
    return rows.assign(bound=bound)[_KEY + _NUMBERS].astype({"replicates": "Int64"})


def _row_intervals(
    row: dict[Any, Any], replicates: tuple[Replicates, Replicates], percent: float, dependence: str
) -> tuple[float, float, float, float, str, str]:
    """Return limits of the difference and of the ratio, their method, and the reason if there are none."""
    if row["found_in"] != "both":
        return *(np.nan,) * 4, "", f"only in {str(row['found_in']).upper()}"
    if dependence:
        return *(np.nan,) * 4, "", dependence
    lacking = [name.upper() for name in "ab" if np.isnan(float(row[f"lower_{name}"]))]
    if lacking:
        return *(np.nan,) * 4, "", f"no interval in {' and '.join(lacking)}"
    key = (str(row["analysis"]), str(row["key"]), str(row["quantity"]))
    drawn = [one.get(key, np.empty(0)) for one in replicates]
    if min(map(len, drawn)) >= _FEWEST_REPLICATES:
        return *paired_intervals(drawn[0], drawn[1], percent), "replicates", ""
    ends = [tuple(float(row[f"{name}_{side}"]) for name in ("estimate", "lower", "upper")) for side in "ab"]
    difference = mover(*ends)
    ratio = (np.nan, np.nan)
    if min(*ends[0], *ends[1]) > 0:
        low, high = mover(*(tuple(np.log(side)) for side in ends))
        ratio = float(np.exp(low)), float(np.exp(high))
    return *difference, *ratio, "limits", ""


def paired_intervals(a: Floats, b: Floats, percent: float) -> tuple[float, float, float, float]:
    """Compute percentile intervals of the difference and ratio of two sets of replicates, paired by number.

    Parameters
    ----------
    a, b : ndarray of float64, shape (n_replicates_a,) and (n_replicates_b,)
        Of unequal numbers, the first are used. Pairs with a missing value are left out.
    percent : float
        Nominal coverage.

    Returns
    -------
    tuple of float
        Lower and upper limit of b - a, then of b / a. A ratio without a limit, as of a rate of 0, is missing.
    """
    number = min(len(a), len(b))
    a, b = a[:number], b[:number]
    known = ~np.isnan(a) & ~np.isnan(b)
    if known.sum() < _FEWEST_REPLICATES:
        return (np.nan,) * 4
    a, b = a[known], b[known]
    ends = [50 - percent / 2, 50 + percent / 2]
    low, high = np.percentile(b - a, ends)
    if not (a > 0).all():
        return float(low), float(high), np.nan, np.nan
    ratio_low, ratio_high = np.percentile(b / a, ends)
    return float(low), float(high), float(ratio_low), float(ratio_high)


def mover(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    """Recover limits of a difference from the estimates and limits of its two terms [1]_.

    Parameters
    ----------
    a, b : tuple of float
        Estimate, lower limit, and upper limit of independent quantities.

    Returns
    -------
    lower, upper : float
        Limits of b - a.

    References
    ----------
    .. [1] G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures: a general approach",
       Statistics in Medicine 27 (2008), 1693-1702.
    """
    (a_point, a_low, a_high), (b_point, b_low, b_high) = a, b
    difference = b_point - a_point
    lower = difference - np.hypot(b_point - b_low, a_high - a_point)
    upper = difference + np.hypot(b_high - b_point, a_point - a_low)
    return float(lower), float(upper)


def summarize(compared: pd.DataFrame) -> pd.DataFrame:
    """Summarize the comparison of relative rates per analysis.

    The group without a name is not a region, so the rank correlation excludes it.

    Parameters
    ----------
    compared : DataFrame
        Output of `compare`.

    Returns
    -------
    DataFrame
        analysis; both, only_a, only_b (numbers of groups); with_intervals (groups with an interval of the difference);
        higher, lower (those whose interval lies above 0, and below); rank_correlation (Spearman, NaN below three
        groups); largest_ratio (maximum over groups of the higher rate divided by the lower). One row per analysis.
    """
    rates = compared[compared["quantity"] == "relative_to_average"]
    rows = []
    for analysis, groups in rates.groupby("analysis", sort=False):
        both = groups[groups["found_in"] == "both"]
        named = both[(both["key"] != "") & both["difference"].notna()]
        ranked = len(named) >= _LEAST_GROUPS and min(named["estimate_a"].nunique(), named["estimate_b"].nunique()) > 1
        rows.append(
            {
                "analysis": analysis,
                "both": len(both),
                "only_a": int((groups["found_in"] == "a").sum()),
                "only_b": int((groups["found_in"] == "b").sum()),
                "with_intervals": int(both["difference_lower"].notna().sum()),
                "higher": int((both["difference_lower"] > 0).sum()),
                "lower": int((both["difference_upper"] < 0).sum()),
                "rank_correlation": float(stats.spearmanr(named["estimate_a"], named["estimate_b"]).statistic)
                if ranked
                else np.nan,
                "largest_ratio": float(np.exp(np.log(both["ratio"].where(both["ratio"] > 0)).abs().max())),
            }
        )
    return pd.DataFrame(rows)

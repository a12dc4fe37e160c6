"""Axes of ratios, shares, and counts: limits and ticks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from patrolscope.dashboards.charts.specs import Axis
from patrolscope.dashboards.charts.style import RELATIVE_RATE

_ENDS = ("estimate", "lower", "upper", "second_lower", "second_upper", "truth")
_LOG_FROM = 6  # ratio of the largest to the smallest value from which an axis is logarithmic


def ratio_axis(tables: Iterable[pd.DataFrame], label: str = RELATIVE_RATE) -> Axis:
    """Return an axis for ratios to 1: logarithmic if they differ by a factor of 6, else linear."""
    values = [table[[column for column in table if column in _ENDS]].to_numpy(dtype=np.float64) for table in tables]
    known = np.concatenate([[1.0], *(table.ravel() for table in values)])
    known = known[np.isfinite(known)]
    low, high = float(known.min()), float(known.max())
    if low <= 0 or high / low < _LOG_FROM:
        margin = 0.06 * (high - low) or 0.1
        limits = low - margin, high + margin
        return Axis(label, limits, tuple((tick, f"{tick:.3g}") for tick in linear_ticks(*limits)))
    margin = (high / low) ** 0.06
    return log_ratio_axis(low / margin, high * margin, label)


def log_ratio_axis(low: float, high: float, label: str) -> Axis:
    """Return a logarithmic axis for ratios.

    Parameters
    ----------
    low, high : float
        Smallest and largest ratio to show, positive.
    label : str
        Title of the axis.
    """
    return Axis(label, (low, high), tuple((tick, _ratio_text(tick)) for tick in ratio_ticks(low, high)), "log")


def linear_axis(values: Iterable[float], label: str, ticks: int = 3) -> Axis:
    """Return a linear axis around some values, with a margin.

    Parameters
    ----------
    values : iterable of float
        Values to show.
    label : str
        Title of the axis.
    ticks : int, default 3
        Approximate number of ticks.
    """
    known = np.asarray([value for value in values if np.isfinite(value)])
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.1
    limits = float(low - margin), float(high + margin)
    return Axis(label, limits, tuple((tick, f"{tick:.3g}") for tick in _round_numbers(*limits, ticks)))


def share_axis(label: str, *, margin: float = 0.02, percent: bool = False) -> Axis:
    """Return an axis from 0 to 1 with ticks at multiples of 0.2.

    Parameters
    ----------
    label : str
        Title of the axis.
    margin : float, default 0.02
        Space beyond 0 and 1.
    percent : bool, default False
        Whether ticks are in percent.
    """
    ticks = tuple((k / 5, f"{20 * k}%" if percent else f"{k / 5:g}") for k in range(6))
    return Axis(label, (-margin, 1 + margin), ticks)


def count_axis(most: float, label: str, *, whole: bool = True) -> Axis:
    """Return an axis from 0 for counts, or, if not `whole`, for other amounts.

    Parameters
    ----------
    most : float
        Largest value to show.
    label : str
        Title of the axis.
    whole : bool, default True
        Whether ticks are integers.
    """
    high = 1.05 * (max(float(most), 1.0) if whole else float(most) or 1.0)
    ticks = [tick for tick in _round_numbers(0, high, 4) if not whole or tick == round(tick)]
    return Axis(label, (0.0, high), tuple((tick, short_count(tick)) for tick in ticks))


def linear_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers in the limits; if possible at least three, with one on either side of 1."""
    for most in range(5, 10):
        ticks = _round_numbers(low, high, most)
        if len(ticks) >= 3 and min(ticks) < 1 < max(ticks):
            break
    return ticks


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    steps = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in steps if low <= tick <= high]


def ratio_ticks(low: float, high: float) -> list[float]:
    """Return the powers of two in the limits, and round numbers between them if there are few."""
    powers = [2.0**power for power in range(-8, 9)]
    between = [round(1.5 * tick, 4) for tick in powers]
    ticks = powers if high / low > _LOG_FROM else sorted(powers + between)
    return [tick for tick in ticks if low <= tick <= high]


def _ratio_text(ratio: float) -> str:
    return {0.0625: "1/16", 0.125: "⅛", 0.25: "¼", 0.5: "½"}.get(ratio, f"{ratio:.3g}")


def short_count(count: float) -> str:
    """Return a count with k for thousands and m for millions."""
    for unit, name in ((1e6, "m"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:g}{name}"
    return f"{count:g}"

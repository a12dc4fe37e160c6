"""Comparison of two sets of results on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from patrolscope.analysis.stages.results import ANALYSES, UNKNOWN

# Analyses with more groups are summarized, not listed.
LISTED_GROUPS = 30
# Without a terminal, Rich uses 80 columns, which are too few for a row.
_PIPED_COLUMNS = 140
_UNNAMED = "(no name)"


def print_comparison(compared: pd.DataFrame, summary: pd.DataFrame, console: Console | None = None) -> None:
    """Print one table per analysis, and lines on the differences between the two sets.

    Parameters
    ----------
    compared, summary : DataFrame
        From `patrolscope.analysis.estimators.compare`.
    console : Console, optional
        Console to print to.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=_PIPED_COLUMNS)
    rates = compared[compared["quantity"] == "relative_to_average"]
    for _, facts in summary.iterrows():
        groups = rates[rates["analysis"] == facts["analysis"]]
        title = ANALYSES[facts["analysis"]]
        console.print()
        if facts["both"] and len(groups) <= LISTED_GROUPS:
            console.print(_table(title, groups))
        else:
            console.print(Text(title, style="bold"))
        for line in summary_lines(groups, facts):
            console.print(line, markup=False, highlight=False)


def _table(title: str, groups: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("times the average", overflow="fold")
    for heading in ("A", "B", "B - A", "B / A"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in groups.iterrows():
        table.add_row(
            Text(row["group"] or _UNNAMED),
            *(_rate(row, side) for side in "ab"),
            _interval(row["difference"], row["difference_lower"], row["difference_upper"], "+.3f"),
            _interval(row["ratio"], row["ratio_lower"], row["ratio_upper"], ".3f"),
        )
    return table


def _rate(row: pd.Series[Any], side: str) -> str:
    if row[f"bound_{side}"] == "below":
        return f"below {row[f'upper_{side}']:.3f}"
    return _interval(row[f"estimate_{side}"], row[f"lower_{side}"], row[f"upper_{side}"], ".3f")


def _interval(estimate: float, lower: float, upper: float, digits: str) -> str:
    """Format an estimate with its interval; an interval without an estimate stands alone."""
    interval = "" if np.isnan(lower) else f"({lower:{digits}} to {upper:{digits}})"
    point = "" if np.isnan(estimate) else f"{estimate:{digits}}"
    return f"{point} {interval}".strip() or UNKNOWN


def summary_lines(groups: pd.DataFrame, facts: pd.Series[Any]) -> Iterator[str]:
    """Yield lines on the differences of one analysis, and on groups that only one set has."""
    if not facts["both"]:
        yield f"only in {'A' if facts['only_a'] else 'B'}"
        return
    line = "no intervals of differences"
    if facts["with_intervals"]:
        line = (
            f"of {facts['with_intervals']} intervals of B - A, {facts['higher']} lie above 0 and {facts['lower']} below"
        )
    if pd.notna(facts["rank_correlation"]):
        line += f"; rank correlation {facts['rank_correlation']:.3f}"
    if pd.notna(facts["largest_ratio"]):
        line += f"; rates differ by a factor of at most {facts['largest_ratio']:.3f}"
    yield line
    for found, name in (("a", "A"), ("b", "B")):
        alone = [group or _UNNAMED for group in groups.loc[groups["found_in"] == found, "group"]]
        if alone:
            yield f"only in {name}: {'; '.join(alone)}"

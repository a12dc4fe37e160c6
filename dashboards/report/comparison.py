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
_PIPED_COLUMNS = 110
_UNNAMED = "(no name)"


def print_comparison(compared: pd.DataFrame, summary: pd.DataFrame, console: Console | None = None) -> None:
    """Print one table per analysis, and a line on the agreement of the two sets.

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
    levels = compared[compared["quantity"] == "relative_to_average"]
    for _, facts in summary.iterrows():
        groups = levels[levels["analysis"] == facts["analysis"]]
        title = ANALYSES[facts["analysis"]]
        console.print()
        if facts["both"] and len(groups) <= LISTED_GROUPS:
            console.print(_table(title, groups))
        else:
            console.print(Text(title, style="bold"))
        for line in agreement_lines(groups, facts):
            console.print(line, markup=False, highlight=False)


def _table(title: str, groups: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("times the average", overflow="fold")
    for heading in ("A", "B", "B - A", "B / A", "overlap"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in groups.iterrows():
        table.add_row(
            Text(row["group"] or _UNNAMED),
            _interval(row["estimate_a"], row["lower_a"], row["upper_a"]),
            _interval(row["estimate_b"], row["lower_b"], row["upper_b"]),
            UNKNOWN if pd.isna(row["difference"]) else f"{row['difference']:+.3f}",
            UNKNOWN if pd.isna(row["ratio"]) else f"{row['ratio']:.3f}",
            {True: "yes", False: "no"}.get(row["intervals_overlap"], UNKNOWN),
        )
    return table


def _interval(estimate: float, lower: float, upper: float) -> str:
    if np.isnan(estimate):
        return UNKNOWN
    return f"{estimate:.3f}" if np.isnan(lower) else f"{estimate:.3f} ({lower:.3f} to {upper:.3f})"


def agreement_lines(groups: pd.DataFrame, facts: pd.Series[Any]) -> Iterator[str]:
    """Yield lines on the agreement of the rates of one analysis, and on groups that only one set has."""
    if not facts["both"]:
        yield f"only in {'A' if facts['only_a'] else 'B'}"
        return
    line = "no intervals to compare"
    if facts["with_intervals"]:
        line = f"{facts['overlapping']} of {facts['with_intervals']} intervals overlap"
    if pd.notna(facts["rank_correlation"]):
        line += f"; rank correlation {facts['rank_correlation']:.3f}"
    if pd.notna(facts["largest_ratio"]):
        line += f"; levels differ by a factor of at most {facts['largest_ratio']:.3f}"
    yield line
    for found, name in (("a", "A"), ("b", "B")):
        alone = [group or _UNNAMED for group in groups.loc[groups["found_in"] == found, "group"]]
        if alone:
            yield f"only in {name}: {'; '.join(alone)}"

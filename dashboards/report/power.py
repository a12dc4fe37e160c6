"""Power of a study on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from patrolscope.analysis.estimators.power import AGAINST_AVERAGE, LEVEL_PERCENT
from patrolscope.analysis.stages.power import StudyPower
from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.charts.power import HEADINGS

# Without a terminal, Rich uses 80 columns, which are too few for a row.
_PIPED_COLUMNS = 120
_FORMS = {
    "ratio": ".3f",
    "smallest_ratio": ".3f",
    "times_images": ".2f",
    "images": ",.0f",
    "rides": ",.0f",
    "labels_planned": ",.0f",
}


def print_power(power: StudyPower, console: Console | None = None) -> None:
    """Print one row per pair of groups, and sentences on the neighborhoods and on what the numbers mean."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=_PIPED_COLUMNS)
    for line in lead_lines(power):
        console.print(line, markup=False, highlight=False)
    for analysis, heading in HEADINGS.items():
        rows = power.table[power.table["analysis"] == analysis]
        if len(rows):
            console.print()
            console.print(_pairs(heading, rows))
    console.print()
    for line in (*neighborhood_lines(power), *limit_lines(power)):
        console.print(line, markup=False, highlight=False)


def _pairs(heading: str, rows: pd.DataFrame) -> Table:
    grid = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False)
    grid.add_column("ratio of deployment rates", overflow="fold")
    for name in ("now", "smallest\ndetectable", "times as\nmany images", "images", "rides", "labels"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        grid.add_row(
            Text(f"{row['group']} / {row['compared_with']}"),
            *(_number(row[name], form) for name, form in _FORMS.items()),
        )
    return grid


def _number(value: float, form: str) -> str:
    return UNKNOWN if np.isnan(value) else f"{value:{form}}"


def lead_lines(power: StudyPower) -> Iterator[str]:
    """Yield what the columns of the table are."""
    target = power.target
    rides = " taken as independent" if power.rides is None else f" of {power.rides:,} rides"
    yield (
        f"{power.images:,} analyzed images{rides}. Two-sided tests at {LEVEL_PERCENT:g}%, with a power of "
        f"{target.power_percent:g}%."
    )
    yield f"Images, rides, and labels are the numbers that detect a ratio of {target.ratio:g}."


def neighborhood_lines(power: StudyPower) -> Iterator[str]:
    """Yield what the study can tell about neighborhoods."""
    rows = power.table[power.table["analysis"].isin(AGAINST_AVERAGE)]
    known = rows[rows["smallest_ratio"].notna()]
    if known.empty:
        return
    enough = int((known["times_images"] <= 1).sum())
    ratio = f"{power.target.ratio:g}"
    yield (
        f"Neighborhoods: a ratio of {ratio} to the city average is detectable in {enough} of {len(rows)}. In the "
        f"median one the smallest such ratio is {known['smallest_ratio'].median():.3g}, and {ratio} needs "
        f"{known['times_images'].median():.3g} times as many images."
    )
    together = rows["smallest_ratio_simultaneous"].dropna()
    if len(together):
        yield (
            f"In statements about {len(together)} neighborhoods at once, the median one needs a ratio of "
            f"{together.median():.3g}."
        )


def limit_lines(power: StudyPower) -> Iterator[str]:
    """Yield what limits the numbers, and what more images leave unchanged."""
    yield (
        f"A group without a positive image has {power.floor:.2f} times the average rate, so that ratios of rates are "
        "closer to 1 than those of detection rates."
    )
    pairs = power.table[~power.table["analysis"].isin(AGAINST_AVERAGE)]
    known = pairs[pairs["calibration_sd"].notna()].sort_values("calibration_sd", kind="stable")
    if len(known):
        row = known.to_dict("records")[-1]
        pair = f"{row['group']} / {row['compared_with']}, standard deviation"
        yield (
            f"The {power.validation_images:,} validation images do not affect whether a ratio is detected. They "
            f"make the ratio itself uncertain, by up to {100 * row['calibration_sd']:.1f}% ({pair}), and more images "
            "of the study do not change that."
        )
    yield (
        "The numbers are for the positive images to be expected. The study's own interval of a ratio can be wider, "
        "where an area with many residents has few images."
    )
    yield (
        "Labels are images of the study, drawn for the pair. With them, the ratio does not depend on one calibration "
        f"of the whole city. {UNKNOWN}: labels of all images would not suffice, or too few rides."
    )

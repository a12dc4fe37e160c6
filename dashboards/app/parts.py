"""What pages show of a part of the images: how many are left, and the levels made again from them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pandas as pd

from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.stages.results import Results
from patrolscope.analysis.stages.subset import QUICK_REPLICATES, Groups
from patrolscope.dashboards.app.charts import share
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.points import area_counts

# Ways of `Results.summary`: quick intervals are of single images.
_QUICK = {"prediction": "two_class", "unit": "image"}


def counts_of(site: Site, keep: Filter, threshold: float | None = None) -> Counts:
    """Images of each area that a filter keeps, (areas + 1, 2): negative, positive; the last place outside every area.

    `threshold` of a score; None: the study's own.
    """
    return area_counts(site.points, keep, threshold)


@lru_cache(maxsize=2)
def groups_of(site: Site) -> Groups:
    """Groups of the whole study."""
    return Groups.of(site.points.areas, counts_of(site, Filter())[:-1].sum(axis=1))


@lru_cache(maxsize=32)
def part_results(site: Site, keep: Filter, *, intervals: bool) -> Results:
    """Results of the images that a filter keeps, made again from their counts; without intervals at once.

    Raises
    ------
    ValueError : the study has no estimates
    """
    if site.results is None or site.calibration is None:
        raise ValueError("a page without estimates asks for none of a part")
    rules = site.study.settings.estimate
    counts, groups = counts_of(site, keep), groups_of(site)
    if intervals:
        levels = groups.with_replicates(
            counts, site.calibration, seed=rules.seed, resample_calibration=rules.resample_calibration
        )
    else:
        levels = groups.levels(counts, site.calibration)
    table = groups.table(levels, counts, percent=rules.interval_percent)
    summary = site.results.summary | {"schemes": [{**_QUICK, "replicates": QUICK_REPLICATES}]}
    return replace(site.results, tables=table, summary=summary, second=None)


def levels_at(site: Site, keep: Filter, calibration: TwoClass, threshold: float | None) -> pd.DataFrame:
    """Levels at another threshold with its own calibration: rows of tables.csv, without intervals.

    `threshold` as for `counts_of`: the study's own is compared exactly where it is None.
    """
    counts, groups = counts_of(site, keep, threshold), groups_of(site)
    percent = site.study.settings.estimate.interval_percent
    return groups.table(groups.levels(counts, calibration), counts, percent=percent)


def part_words(keep: Filter) -> str:
    """Which images a figure is of whose levels are made again, and how; empty for all."""
    return "" if keep.is_all else f"{keep.in_words()}; two-class prediction"


def images_left(site: Site, keep: Filter) -> str:
    """How many images a filter leaves, and which share, in words."""
    left, whole = (int(counts_of(site, one).sum()) for one in (keep, Filter()))
    if keep.is_all:
        return f"All {whole:,} analyzed images"
    return f"{left:,} images, {share(left, whole)} of all: {keep.in_words()}"

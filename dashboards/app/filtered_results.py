"""Counts and estimates for the images that a filter keeps."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pandas as pd

from patrolscope.analysis.estimators.bootstrap import Counts
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.stages.results import Results
from patrolscope.analysis.stages.subset import QUICK_REPLICATES, Groups
from patrolscope.dashboards.app.cards import share
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.points import area_counts

# Resampling scheme of the intervals under a filter, as in `Results.summary`.
_QUICK = {"prediction": "two_class", "unit": "image"}


def counts_of(site: Site, keep: Filter, threshold: float | None = None) -> Counts:
    """Count images per area.

    Parameters
    ----------
    site : Site
        Study to count.
    keep : Filter
        Images to count.
    threshold : float, optional
        Images with a higher score are positive. None uses the study's threshold.

    Returns
    -------
    ndarray of int64, shape (n_areas + 1, 2)
        Negative and positive images; the last row is for images outside all areas.
    """
    return area_counts(site.points, keep, threshold)


@lru_cache(maxsize=2)
def groups_of(site: Site) -> Groups:
    """Return the groups of the whole study."""
    return Groups.of(site.points.areas, counts_of(site, Filter())[:-1].sum(axis=1))


@lru_cache(maxsize=32)
def filtered_results(site: Site, keep: Filter, *, intervals: bool) -> Results:
    """Recompute the estimates from the images that a filter keeps.

    Parameters
    ----------
    site : Site
        Study with estimates.
    keep : Filter
        Images to use.
    intervals : bool
        Compute intervals. Without them, the result is immediate.

    Raises
    ------
    ValueError
        If the study has no estimates.
    """
    if site.results is None or site.calibration is None:
        raise ValueError("the study has no estimates")
    rules = site.study.settings.estimate
    counts, groups = counts_of(site, keep), groups_of(site)
    if intervals:
        rates = groups.with_replicates(
            counts,
            site.calibration,
            seed=rules.seed,
            resample_calibration=rules.resample_calibration,
            design_effect=site.results.design_effect,
        )
    else:
        rates = groups.levels(counts, site.calibration)
    gamma = site.results.design_effect is not None
    table = groups.table(
        rates, counts, percent=rules.interval_percent, calibration=site.calibration, gamma=gamma and intervals
    )
    scheme = {**_QUICK, "replicates": QUICK_REPLICATES, "resample_calibration": rules.resample_calibration}
    summary = site.results.summary | {"schemes": [scheme]}
    return replace(site.results, tables=table, summary=summary, second=None, places=None)


def rates_at(site: Site, keep: Filter, calibration: TwoClass, threshold: float | None) -> pd.DataFrame:
    """Estimate rates at a different threshold with its own calibration.

    Parameters
    ----------
    site : Site
        Study to estimate.
    keep : Filter
        Images to use.
    calibration : TwoClass
        Calibration at the threshold.
    threshold : float, optional
        See `counts_of`. None compares scores with the study's threshold exactly.

    Returns
    -------
    DataFrame
        Rows of estimates/tables.csv without intervals.
    """
    counts, groups = counts_of(site, keep, threshold), groups_of(site)
    percent = site.study.settings.estimate.interval_percent
    return groups.table(groups.levels(counts, calibration), counts, percent=percent, calibration=calibration)


def filter_note(keep: Filter) -> str:
    """Describe the images and the prediction of a figure under a filter; empty without a filter."""
    return "" if keep.is_all else f"{keep.describe()}; two-class prediction"


def images_kept(site: Site, keep: Filter) -> str:
    """Return the number and percentage of the images that a filter keeps as text."""
    kept, total = (int(counts_of(site, images).sum()) for images in (keep, Filter()))
    if keep.is_all:
        return f"All {total:,} analyzed images"
    return f"{kept:,} images, {share(kept, total)} of all: {keep.describe()}"

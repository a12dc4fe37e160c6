"""Estimates of a simulated study beside their true values."""

from __future__ import annotations

import pandas as pd

from patrolscope.analysis.stages.results import Results


def estimates_and_truth(results: Results) -> pd.DataFrame:
    """Return relative estimate and relative truth of every neighborhood that has both.

    Returns
    -------
    DataFrame
        Columns of `Results.groups`, and truth.
    """
    frame = results.groups("neighborhood")
    truth = frame["key"].map(pd.Series(dtype="float64") if results.truth is None else results.truth)
    return frame.assign(truth=truth).dropna(subset=["truth", "estimate"]).reset_index(drop=True)

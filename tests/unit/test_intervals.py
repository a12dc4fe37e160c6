"""Intervals by every method, held against scipy's bootstrap and their formulas."""

from typing import get_args

import numpy as np
import pytest
from scipy import stats

from patrolscope.analysis.estimators.intervals import Method, intervals


def skewed(replicates: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(8)
    sample = generator.exponential(size=25)
    drawn = sample[generator.integers(0, 25, (replicates, 25))].mean(axis=1)
    return sample, drawn[:, None]


@pytest.mark.parametrize(("ours", "theirs"), [("percentile", "percentile"), ("basic", "basic"), ("bca", "BCa")])
def test_an_interval_is_that_of_scipys_bootstrap_of_the_same_replicates(ours, theirs):
    sample, replicates = skewed()
    away = sample - sample.mean()
    acceleration = np.array([(away**3).sum() / (6 * (away**2).sum() ** 1.5)])
    lower, upper = intervals(replicates, np.array([sample.mean()]), 90, acceleration=acceleration)[ours]
    given = stats._resampling.BootstrapResult(
        confidence_interval=None, bootstrap_distribution=replicates[:, 0], standard_error=0.0
    )
    expected = stats.bootstrap(
        (sample,), np.mean, n_resamples=0, bootstrap_result=given, confidence_level=0.9, method=theirs
    ).confidence_interval
    assert lower[0] == pytest.approx(expected.low, rel=1e-6)
    assert upper[0] == pytest.approx(expected.high, rel=1e-6)


def test_the_normal_interval_is_the_published_estimate_and_1_96_standard_deviations():
    _, replicates = skewed()
    lower, upper = intervals(replicates, np.array([1.5]), 95)["normal"]
    reach = stats.norm.ppf(0.975) * replicates.std()
    assert (lower[0], upper[0]) == pytest.approx((1.5 - reach, 1.5 + reach))


def test_without_an_acceleration_there_is_no_bca_interval():
    _, replicates = skewed()
    assert set(intervals(replicates, np.array([1.0]), 95)) == set(get_args(Method)) - {"bca"}


def test_a_group_that_no_replicate_touches_has_no_interval_of_any_kind():
    replicates = np.column_stack([skewed()[1][:, 0], np.full(2_000, np.nan)])
    for method, ends in intervals(replicates, np.array([1.0, np.nan]), 95, acceleration=np.zeros(2)).items():
        for end in ends:
            assert np.isfinite(end[0]), method
            assert np.isnan(end[1]), method


def test_bca_is_missing_where_all_replicates_are_on_one_side_or_the_jackknife_is_constant():
    replicates = np.column_stack([np.arange(1.0, 101), np.full(100, 3.0)])
    lower, upper = intervals(replicates, np.array([0.0, 3.0]), 95, acceleration=np.array([0.1, np.nan]))["bca"]
    assert np.isnan([lower, upper]).all()


def test_replicates_without_an_estimate_are_left_out():
    _, replicates = skewed()
    holes = np.vstack([replicates, np.full((50, 1), np.nan)])
    same = intervals(replicates, np.array([1.0]), 95, acceleration=np.array([0.05]))
    for method, ends in intervals(holes, np.array([1.0]), 95, acceleration=np.array([0.05])).items():
        np.testing.assert_allclose(ends, same[method])

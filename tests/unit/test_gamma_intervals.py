"""Gamma intervals of groups with few positive images."""

import numpy as np
import pytest
from scipy import stats

from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import AreaDesign, GroupDesign
from patrolscope.analysis.estimators.gamma_intervals import GammaDistributions, gamma_replicates
from tests.small_rides import counts_of, group_weights, small_city

LEVELS = np.array([0.025, 0.2, 0.4999, 0.5, 0.8, 0.975])


@pytest.fixture(scope="module")
def study():
    frame, rows = small_city(2)
    inside, counts = counts_of(rows, len(frame))
    inside[12] = [inside[12].sum(), 0]
    design = AreaDesign.of(frame, inside, counts)
    groups = GroupDesign.of(group_weights(frame), design)
    shares = Composite.of(frame, design).shares(inside)
    return frame, inside, design, groups, shares, GammaDistributions.of(groups, inside, shares)


def test_quantiles_follow_the_definition(study):
    frame, inside, _, groups, shares, distributions = study
    images, k = inside.sum(axis=1), inside[:, 1]
    for number, residents in enumerate(group_weights(frame).toarray()):
        seen = (images > 0) & (residents > 0)
        v = np.where(seen, residents, 0) / residents[seen].sum() / np.maximum(images, 1)
        effect, share = groups.effects[number], (v * k).sum()
        variance = effect * (v**2 * k).sum()
        expected = np.nansum(v**2 * images * shares)
        upper_variance = effect * ((v**2 * k).sum() + max((v**2 * k).sum(), expected)) / 2
        first = effect * (v * images).sum() / images[seen].sum()
        second = effect**2 * (v**2 * images).sum() / images[seen].sum()
        lower = stats.gamma(share**2 / variance, scale=variance / share).ppf(LEVELS)
        spread = (upper_variance + second) / (share + first)
        upper = stats.gamma((share + first) ** 2 / (upper_variance + second), scale=spread).ppf(LEVELS)
        wanted = np.minimum(np.where(LEVELS < 0.5, lower, upper), 1)
        np.testing.assert_allclose(distributions.quantiles(number, LEVELS), wanted, rtol=1e-9)
        ends = [end[number] for end in distributions.interval(95)]
        np.testing.assert_allclose(ends, [wanted[0], wanted[-1]], rtol=1e-9)


def test_one_area_of_independent_images_has_the_exact_poisson_interval():
    """Fay and Feuer's interval of equal weights is Garwood's, whose ends are chi-square quantiles."""
    import pandas as pd
    from scipy import sparse

    frame = pd.DataFrame({"neighborhood": ["a"], "borough": ["b"], "persons": [10.0]})
    for positives in (0, 1, 4):
        inside = np.array([[100_000 - positives, positives]])
        groups = GroupDesign.of(sparse.csr_array(np.array([[10.0]])), AreaDesign.of(frame, inside, None))
        # With the observed share as that expected, no positive is added for unseen ones.
        distributions = GammaDistributions.of(groups, inside, np.array([positives / 100_000]))
        lower, upper = (end[0] * 100_000 for end in distributions.interval(95))
        assert lower == pytest.approx(stats.chi2.ppf(0.025, 2 * positives) / 2 if positives else 0)
        assert upper == pytest.approx(stats.chi2.ppf(0.975, 2 * positives + 2) / 2)


def test_a_group_without_a_positive_image_reaches_from_zero_to_an_upper_limit():
    frame, rows = small_city(3)
    inside, counts = counts_of(rows, len(frame))
    inside[(frame["neighborhood"] == "place 1").to_numpy(), 1] = 0
    design = AreaDesign.of(frame, inside, counts)
    groups = GroupDesign.of(group_weights(frame), design)
    distributions = GammaDistributions.of(groups, inside, Composite.of(frame, design).shares(inside))
    lower, upper = distributions.interval(95)
    assert lower[2] == 0
    assert upper[2] > 0
    below, above = distributions.tails(0.01)
    assert below[2] == 1
    assert 0 < above[2] < 1
    drawn = gamma_replicates(np.zeros(1_000), distributions, 2, seed=1, name="place 1", images=9)
    assert (drawn == 0).sum() == 500
    assert np.percentile(drawn, 97.5) == pytest.approx(upper[2], rel=0.02)


def test_replicates_keep_the_ranks_of_the_resampled_shares(study):
    *_, distributions = study
    shares = np.random.default_rng(1).random(500)
    drawn = gamma_replicates(shares, distributions, 1, seed=1, name="x", images=9)
    np.testing.assert_array_equal(np.argsort(drawn), np.argsort(shares))
    np.testing.assert_allclose(
        np.percentile(drawn, [2.5, 97.5]), [end[1] for end in distributions.interval(95)], rtol=0.02
    )


def test_rounding_breaks_no_tie_and_a_missing_share_is_the_lowest(study):
    *_, distributions = study
    tied = np.full(200, 0.01) + np.random.default_rng(1).uniform(-1e-17, 1e-17, 200)
    exact = gamma_replicates(np.full(200, 0.01), distributions, 1, seed=1, name="x", images=9)
    np.testing.assert_array_equal(gamma_replicates(tied, distributions, 1, seed=1, name="x", images=9), exact)
    with_gap = np.linspace(0.1, 0.2, 200)
    with_gap[150] = np.nan
    assert gamma_replicates(with_gap, distributions, 1, seed=1, name="x", images=9).argmin() == 150


def test_groups_have_streams_of_their_own(study):
    *_, distributions = study
    drawn = [gamma_replicates(np.zeros(300), distributions, 1, seed=1, name=name, images=9) for name in ("a", "b")]
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.25


def test_independent_studies_have_streams_of_their_own(study):
    *_, distributions = study
    drawn = [gamma_replicates(np.zeros(300), distributions, 1, seed=1, name="a", images=one) for one in (1_000, 1_001)]
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.25

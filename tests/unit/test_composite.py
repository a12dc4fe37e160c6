"""Composite rates of areas, against plain formulas, and their purpose in a simulation."""

import numpy as np
import pytest
from scipy import optimize, stats

from patrolscope.analysis.estimators.composite import Composite, concentration, variance_shares
from patrolscope.analysis.estimators.design_effects import AreaDesign, GroupDesign, area_noise
from tests.small_rides import counts_of, group_weights, reference_pooled, small_city


@pytest.fixture(scope="module")
def study():
    frame, rows = small_city(4, areas=40, rides=400)
    inside, counts = counts_of(rows, len(frame))
    return frame, inside, AreaDesign.of(frame, inside, counts)


def test_the_concentration_maximizes_the_negative_binomial_likelihood(study):
    _, inside, design = study
    seen = inside.sum(axis=1) > 0
    mean = (inside.sum(axis=1) * design.pooled)[seen]

    def unlikelihood(shape):
        return -stats.nbinom(shape, shape / (shape + mean)).logpmf(inside[seen, 1]).sum()

    best = optimize.minimize_scalar(unlikelihood, bounds=(0.25, 64), method="bounded").x
    assert concentration(inside, design.pooled) == pytest.approx(best, rel=1e-3)


def test_the_concentration_finds_the_variation_of_simulated_areas():
    generator = np.random.default_rng(1)
    images = generator.integers(500, 5_000, 5_000)
    pooled = np.full(5_000, 0.01)
    for shape in (0.5, 4, 20):
        positives = generator.poisson(images * pooled * generator.gamma(shape, 1 / shape, 5_000))
        found = concentration(np.stack([images - positives, positives], axis=1), pooled)
        assert found == pytest.approx(shape, rel=0.12)
    everywhere = generator.poisson(images * pooled)
    assert concentration(np.stack([images - everywhere, everywhere], axis=1), pooled) == pytest.approx(64, rel=0.2)


def test_shares_follow_the_definition(study):
    frame, inside, design = study
    composite = Composite.of(frame, design)
    pooled, c, d = reference_pooled(frame, inside), composite.concentration, design.of_areas
    images, k = inside.sum(axis=1), inside[:, 1]
    expected = np.where(images > 0, pooled * (c + k / d) / (c + images * pooled / d), np.nan)
    np.testing.assert_allclose(composite.shares(inside), expected)


def test_benchmarked_neighborhoods_keep_their_direct_share(study):
    frame, inside, design = study
    composite = Composite.of(frame, design)
    assert 0 < composite.members.shape[0] < 6  # some are benchmarked, others are not
    weights = group_weights(frame)
    groups = GroupDesign.of(weights, design)
    shares = np.nan_to_num(composite.benchmarked(inside))
    persons = weights.toarray() * (inside.sum(axis=1) > 0)
    means = persons @ shares / persons.sum(axis=1)
    before = persons @ np.nan_to_num(composite.shares(inside)) / persons.sum(axis=1)
    for place in range(1, 6):
        wanted = groups.shares[place] if groups.effective[place] >= 50 else before[place]
        assert means[place] == pytest.approx(wanted)


def test_shares_of_replicates_are_those_of_each_replicate_with_the_model_of_the_study(study):
    frame, inside, design = study
    composite = Composite.of(frame, design)
    several = np.stack([inside, 2 * inside], axis=2)
    several[3, :, 1] = 0  # an area without images in the replicate keeps a composite share
    found = composite.benchmarked(several)
    np.testing.assert_allclose(found[:, 0], composite.benchmarked(inside))
    np.testing.assert_allclose(found[:, 1], composite.benchmarked(several[:, :, 1]))
    assert found[3, 1] > 0
    assert np.isnan(found[inside.sum(axis=1) == 0]).all()


def test_draws_of_areas_have_the_mean_and_variance_of_the_model(study):
    frame, inside, design = study
    composite = Composite.of(frame, design)
    drawn = composite.draws(range(20_000), seed=1)
    seen = inside.sum(axis=1) > 0
    factor = composite.factors(composite.shares(inside), inside)
    shape = composite.concentration + inside[:, 1] / design.of_areas
    rate = composite.concentration / design.pooled + inside.sum(axis=1) / design.of_areas
    np.testing.assert_allclose(drawn.mean(axis=1)[seen], composite.benchmarked(inside)[seen], rtol=0.05)
    np.testing.assert_allclose(drawn.std(axis=1)[seen], (factor * np.sqrt(shape) / rate)[seen], rtol=0.05)
    np.testing.assert_array_equal(drawn[:, 7:9], composite.draws(range(7, 9), seed=1))


def test_shares_of_the_variance_follow_the_definition(study):
    frame, inside, design = study
    weights = group_weights(frame)
    groups = GroupDesign.of(weights, design)
    found = variance_shares(groups, design, (0.8, 0.002))
    persons = weights.toarray() * (inside.sum(axis=1) > 0)
    of_all = persons / persons.sum(axis=1, keepdims=True)
    rates = 0.002 + 0.798 * groups.shares
    noise = np.nan_to_num(area_noise(inside, design.residuals))
    for group in range(1, 6):
        influence = (of_all[group] - rates[group] / rates[0] * of_all[0]) * 0.798 / rates[0]
        parts = influence**2 * noise
        np.testing.assert_allclose(found[group], parts / parts.sum(), atol=1e-12)
    assert (found[0] == 0).all()  # the ratio of everyone to the average is always 1


def test_one_heavy_area_of_few_images_does_not_carry_the_composite_estimate():
    """Estimate the share of a group half of which lives in one area of 20 images, over 400 studies."""
    import pandas as pd
    from scipy import sparse

    generator = np.random.default_rng(5)
    persons = np.array([5_000.0, *np.full(50, 100.0)])
    frame = pd.DataFrame({"neighborhood": "a", "borough": "b", "persons": persons})
    images, errors = np.array([20, *np.full(50, 2_000)]), []
    for _ in range(400):
        share = 0.01 * generator.gamma(4, 0.25, 51)
        k = generator.binomial(images, share)
        inside = np.stack([images - k, k], axis=1)
        design = AreaDesign.of(frame, inside, None)
        direct = GroupDesign.of(sparse.csr_array(persons[None]), design).shares[0]
        # Without benchmarking, which would return the direct share of the only neighborhood.
        composite = np.average(Composite.of(frame, design).shares(inside), weights=persons)
        truth = np.average(share, weights=persons)
        errors.append([(direct - truth) ** 2, (composite - truth) ** 2])
    direct, composite = np.mean(errors, axis=0)
    assert composite < 0.5 * direct

"""Sampling error of census counts in the ratios of population groups."""

import numpy as np

from patrolscope.analysis.estimators.census_error import draw_residents, means_with_residents

PERSONS = np.array([[1_000.0, 500, 300, 0], [40, 20, 10, 5], [0, 0, 0, 0]])
MARGINS = np.array([[164.5, 82.25, 12], [30, np.nan, 8], [12, 12, 12]])


def test_counts_are_normal_around_the_estimates_with_the_margin_as_a_90_percent_interval():
    drawn = draw_residents(PERSONS, MARGINS, replicates=range(4_000), seed=1)
    np.testing.assert_allclose(drawn[0, 1].mean(), 500, atol=6)
    np.testing.assert_allclose(drawn[0, 1].std(), 100, rtol=0.05)
    np.testing.assert_allclose(drawn[0, 2].std(), 50, rtol=0.05)
    assert (np.abs(drawn[0, 1] - 500) < 164.5).mean() > 0.88
    assert drawn.min() >= 0


def test_a_count_of_zero_stays_zero_and_a_missing_margin_is_no_error():
    drawn = draw_residents(PERSONS, MARGINS, replicates=range(100), seed=1)
    assert (drawn[0, 3] == 0).all()
    assert (drawn[2] == 0).all()
    assert (drawn[1, 2] == 10).all()


def test_all_residents_change_by_as_much_as_the_groups_together():
    drawn = draw_residents(PERSONS, MARGINS, replicates=range(200), seed=1).astype(float)
    change = drawn[:, 0] - PERSONS[:, :1]
    of_groups = (drawn[:, 1:] - PERSONS[:, 1:, None]).sum(axis=1)
    np.testing.assert_allclose(change, np.maximum(of_groups, -PERSONS[:, :1]), atol=1e-3)


def test_a_replicate_does_not_depend_on_the_others():
    every = draw_residents(PERSONS, MARGINS, replicates=range(20), seed=1)
    np.testing.assert_array_equal(
        every[:, :, 11:13], draw_residents(PERSONS, MARGINS, replicates=range(11, 13), seed=1)
    )


def test_means_are_weighted_by_the_residents_of_each_replicate_in_areas_with_images():
    generator = np.random.default_rng(2)
    residents = generator.integers(0, 100, (6, 3, 4)).astype(np.float32)
    rates = generator.random((6, 4))
    rates[1, 2] = np.nan
    population = np.array([True, True, True, False, True, True])
    residents[:, 2, 3] = 0
    found = means_with_residents(rates, residents, population)
    for column in range(4):
        for group in range(3):
            seen = population & ~np.isnan(rates[:, column])
            weights = residents[seen, group, column]
            expected = np.average(rates[seen, column], weights=weights) if weights.sum() else np.nan
            np.testing.assert_allclose(found[group, column], expected)

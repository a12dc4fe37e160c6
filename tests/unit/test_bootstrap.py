"""The draws of the bootstrap, held against plain numpy, exact distributions and the rows themselves."""

import itertools

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from patrolscope.analysis.estimators.bootstrap import (
    _alias_table,
    add_units,
    add_weighted_images,
    draw_units,
    image_streams,
    resample_images,
    resample_probabilities,
)
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.rates import Population


def frame(name: str, areas: list[bool], *, with_outside: bool = False) -> Population:
    return Population(name, np.array(areas), with_outside)


def test_small_counts_have_exactly_the_probabilities_of_a_multinomial():
    """Every possible outcome of six images, 40,000 times, in two frames that share their draws."""
    inside, outside = np.array([[2, 1], [0, 1]]), np.array([2, 0])
    frames = [frame("all", [True, True], with_outside=True), frame("one", [True, False])]
    replicates = 40_000
    drawn = resample_images(inside, outside, frames, replicates=range(replicates), seed=1)
    for name, cells, total in (("all", [2, 1, 1, 2], 6), ("one", [2, 1], 3)):
        shares = np.array(cells) / total
        counted = drawn[name].reshape(4, -1)[[0, 1, 3] if name == "all" else [0, 1]]
        outcomes = [counts for counts in itertools.product(range(total + 1), repeat=len(cells)) if sum(counts) == total]
        seen = pd.Series(list(map(tuple, counted.T.tolist()))).value_counts()
        keys = [counts[:3] if name == "all" else counts for counts in outcomes]
        expected = replicates * np.array([stats.multinomial.pmf(counts, total, shares) for counts in outcomes])
        observed = seen.reindex(pd.Index(keys, tupleize_cols=False), fill_value=0).to_numpy()
        assert observed.sum() == replicates
        rare = expected < 5
        observed, expected = (np.append(part[~rare], part[rare].sum()) for part in (observed, expected))
        some = expected > 0
        assert stats.chisquare(observed[some], expected[some]).pvalue > 1e-4


def test_large_counts_have_the_means_and_covariances_of_a_multinomial_whether_topped_up_or_drawn_anew():
    inside = np.array([[300, 40], [150, 10], [80, 0], [5, 3]])
    frames = [
        *(frame("all", [True] * 4), frame("some", [True, False, True, False]), frame("none", [False] * 4)),
        frame("few", [False, False, False, True]),
    ]
    replicates = 20_000
    drawn = resample_images(inside, np.zeros(2, dtype=np.int64), frames, replicates=range(replicates), seed=2)
    assert not drawn["none"].any()
    for name, rows in (("all", [0, 1, 2, 3]), ("some", [0, 2]), ("few", [3])):
        cells = inside[rows].ravel()
        counts = drawn[name][rows].reshape(len(cells), -1)
        assert (counts.sum(axis=0) == cells.sum()).all()
        assert not counts[cells == 0].any()
        shares = cells / cells.sum()
        covariance = cells.sum() * (np.diag(shares) - np.outer(shares, shares))
        np.testing.assert_allclose(counts.mean(axis=1), cells, atol=5 * np.sqrt(cells.max() / replicates))
        # A variance of 20,000 replicates has a relative error of a hundredth.
        np.testing.assert_allclose(np.cov(counts), covariance, atol=0.05 * covariance.max())


def test_a_study_without_an_image_has_replicates_without_an_image():
    nothing = np.zeros((2, 2), dtype=np.int64)
    drawn = resample_images(nothing, nothing[0], [frame("all", [True, True])], replicates=range(3), seed=1)
    assert drawn["all"].shape == (2, 2, 3)
    assert not drawn["all"].any()


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=40).filter(any))
def test_an_alias_table_gives_every_cell_its_share(weights):
    shares = np.array(weights) / sum(weights)
    keep, other = _alias_table(shares.copy())
    given = np.clip(keep, 0, 1).copy()
    np.add.at(given, other, 1 - np.clip(keep, 0, 1))
    np.testing.assert_allclose(given / len(shares), shares, atol=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 9)), max_size=30),
    st.integers(1, 7),
)
def test_clusters_add_up_like_rows_repeated_as_often_as_their_cluster_is_taken(rows, replicates):
    cell, cluster, values = np.array(sorted(rows), dtype=np.int32).reshape(-1, 3).T
    times = draw_units(5, "ride", replicates=range(replicates), seed=4)
    assert (times.sum(axis=0) == 5).all()
    got = add_units(cell, cluster, values, times, 4)
    for replicate in range(replicates):
        often = times[cluster, replicate]
        long = pd.Series(np.repeat(values, often)).groupby(np.repeat(cell, often)).sum()
        assert got[:, replicate].tolist() == long.reindex(range(4), fill_value=0).tolist()


def test_sums_beyond_32_bits_are_right():
    cell, cluster = np.zeros(2, dtype=np.int32), np.arange(2, dtype=np.int32)
    values = np.array([2**40, 2**41])
    times = draw_units(2, "day", replicates=range(20), seed=1)
    np.testing.assert_array_equal(add_units(cell, cluster, values, times, 1)[0], values @ times.astype(np.int64))


def test_draws_of_clusters_depend_on_their_number_and_unit_alone():
    together = draw_units(50, "ride", replicates=range(12), seed=9)
    np.testing.assert_array_equal(together[:, 7:9], draw_units(50, "ride", replicates=range(7, 9), seed=9))
    assert (together != draw_units(50, "day", replicates=range(12), seed=9)).any()


def test_weights_of_images_are_poisson_and_depend_on_key_and_replicate_alone():
    generator = np.random.default_rng(3)
    images, areas, replicates = 30_000, 3, 6
    keys = generator.integers(0, 2**64, images, dtype=np.uint64)
    area = generator.integers(0, areas, images, dtype=np.int32)
    values = generator.integers(0, 2**24, images)
    streams = image_streams(replicates=range(replicates), seed=5)

    def added(parts: list[np.ndarray], which: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        counts = np.zeros((areas, len(streams[which])), dtype=np.int64)
        sums = np.zeros_like(counts)
        for part in parts:
            add_weighted_images(keys[part], area[part], values[part], streams[which], counts, sums)
        return counts, sums

    order = generator.permutation(images)
    whole = added([np.arange(images)])
    for parts in (3, 8):
        for one, other in zip(whole, added(np.array_split(order, parts)), strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole[1][:, 4:5], added([order], slice(4, 5))[1])
    assert len(np.unique(whole[1])) == whole[1].size

    # One image an area shows the weights themselves.
    each = np.zeros((images, replicates), dtype=np.int64)
    add_weighted_images(keys, np.arange(images, dtype=np.int32), values, streams, each, np.zeros_like(each))
    seen = np.bincount(each.ravel(), minlength=7)
    expected = each.size * stats.poisson.pmf(np.arange(6), 1)
    observed = np.append(seen[:6], seen[6:].sum())
    assert stats.chisquare(observed, np.append(expected, each.size - expected.sum())).pvalue > 1e-4
    between = np.corrcoef(each.T) - np.eye(replicates)
    assert np.abs(between).max() < 5 / np.sqrt(images)
    neighbors = np.corrcoef(each[:-1, 0], each[1:, 0])[0, 1]
    assert abs(neighbors) < 5 / np.sqrt(images)


def test_a_redrawn_validation_set_spreads_its_probabilities_as_binomials_do():
    calibration = TwoClass(0.77, positive=264, true_positive=205, negative=19_736, false_negative=42)
    drawn = resample_probabilities(calibration, replicates=range(4_000), seed=1)
    for row, (right, total) in enumerate(((42, 19_736), (205, 264))):
        share = right / total
        sd = np.sqrt(share * (1 - share) / total)
        assert abs(drawn[row].mean() - share) < 5 * sd / np.sqrt(4_000)
        assert abs(np.log(drawn[row].std() / sd)) < 0.06
    np.testing.assert_array_equal(drawn[:, 9:10], resample_probabilities(calibration, replicates=range(9, 10), seed=1))


def test_few_labels_of_a_kind_give_probabilities_from_their_posterior_distributions():
    tiny = TwoClass(0.5, positive=12, true_positive=12, negative=300, false_negative=0)
    drawn = resample_probabilities(tiny, replicates=range(4_000), seed=1)
    for row, (right, wrong) in enumerate(((0, 300), (12, 0))):
        posterior = stats.beta(right + 0.5, wrong + 0.5)
        assert stats.kstest(drawn[row], posterior.cdf).pvalue > 0.001
    assert ((drawn > 0) & (drawn < 1)).all()


def test_draws_of_the_validation_set_depend_on_its_counts_alone():
    first = TwoClass(0.5, positive=264, true_positive=205, negative=19_736, false_negative=42)
    second = TwoClass(0.9, positive=264, true_positive=205, negative=19_736, false_negative=42)
    drawn = [resample_probabilities(one, replicates=range(20), seed=1) for one in (first, second)]
    np.testing.assert_array_equal(*drawn)

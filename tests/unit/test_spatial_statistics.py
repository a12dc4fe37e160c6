"""Correlations over areas with their intervals, and Moran's I."""

import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from patrolscope.analysis.estimators.rates import area_means
from patrolscope.analysis.estimators.spatial_statistics import (
    area_variables,
    correlations,
    moran,
    neighbors,
    usable_areas,
    weighted_ranks,
)


def frame(areas: int, seed: int = 0) -> pd.DataFrame:
    """Three variables, the second with many ties, the third with some values missing."""
    generator = np.random.default_rng(seed)
    level = generator.normal(size=areas)
    tied = generator.integers(0, 4, areas) + (level > 0)
    partly = np.where(generator.uniform(size=areas) < 0.2, np.nan, level + generator.normal(size=areas))
    return pd.DataFrame({"level": level, "tied": tied.astype(float), "partly": partly})


def grid(side: int) -> np.ndarray:
    return np.array([shapely.box(x, y, x + 1, y + 1) for y in range(side) for x in range(side)])


def test_estimates_are_scipys_over_areas_that_have_both():
    variables = frame(200)
    rows = correlations(variables, replicates=2, seed=1, percent=95)
    assert [(row["with"], row["covariate"]) for row in rows] == [
        ("level", "tied"),
        ("level", "partly"),
        ("tied", "partly"),
    ]
    for row in rows:
        both = variables[[row["with"], row["covariate"]]].dropna().to_numpy().T
        assert row["areas"] == both.shape[1]
        assert row["pearson"] == pytest.approx(stats.pearsonr(*both).statistic, abs=1e-12)
        assert row["spearman"] == pytest.approx(stats.spearmanr(*both).statistic, abs=1e-12)


def test_intervals_are_the_percentiles_of_areas_drawn_again_and_ranked_anew():
    variables, seed = frame(60, seed=3), 11
    found = correlations(variables, replicates=120, seed=seed, percent=90)
    replicates = {("level", "tied"): [], ("level", "partly"): [], ("tied", "partly"): []}
    for number in range(120):
        key = (zlib.crc32(b"areas"), number)
        chosen = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).integers(60, size=60)
        again = variables.iloc[chosen]
        for pair, values in replicates.items():
            both = again[list(pair)].dropna().to_numpy().T
            values.append([stats.pearsonr(*both).statistic, stats.spearmanr(*both).statistic])
    for row in found:
        ends = np.percentile(replicates[row["with"], row["covariate"]], [5, 95], axis=0)
        expected = [*ends[:, 0], *ends[:, 1]]
        got = [row[f"{name}_{end}"] for name in ("pearson", "spearman") for end in ("lower", "upper")]
        np.testing.assert_allclose(got, expected, atol=1e-12)


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    data=st.data(),
)
def test_weighted_ranks_are_scipys_ranks_of_the_long_list(values, data):
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    ranks = weighted_ranks(np.array(values, dtype=float), np.array([counts]))[0]
    long = np.repeat(values, counts)
    of_value = dict(zip(long.tolist(), stats.rankdata(long).tolist(), strict=True))
    for value, count, rank in zip(values, counts, ranks, strict=True):
        assert count == 0 or rank == of_value[value]


def test_more_replicates_leave_the_first_as_they_were_and_another_seed_gives_another_interval():
    variables = frame(50)
    ends = [
        correlations(variables, replicates=number, seed=seed, percent=100)[0]
        for number, seed in ((100, 1), (150, 1), (100, 2))
    ]
    assert ends[1]["pearson_lower"] <= ends[0]["pearson_lower"]
    assert ends[1]["pearson_upper"] >= ends[0]["pearson_upper"]
    assert ends[2]["pearson_lower"] != ends[0]["pearson_lower"]
    assert ends[0] == correlations(variables, replicates=100, seed=1, percent=100)[0]


def test_a_correlation_that_is_not_defined_is_missing_with_the_reason():
    variables = pd.DataFrame({"level": [1.0, 2.0, 4.0], "flat": [5.0, 5.0, 5.0], "rare": [1.0, 3.0, np.nan]})
    flat, rare, _ = correlations(variables, replicates=5, seed=0, percent=95)
    assert (flat["pearson"], flat["reason"]) == (None, "flat does not vary")
    assert (rare["spearman"], rare["reason"]) == (None, "fewer than 3 areas have both")
    assert flat["pearson_replicates"] == rare["spearman_replicates"] == 0
    assert rare["pearson_lower"] is rare["pearson_upper"] is None


# A calibration of which n times Pr(police vehicle | negative), divided by n, is not that probability for many n.
CALIBRATION = 162 / 209, 33 / 19_791


def test_areas_without_a_positive_image_are_tied_whatever_their_images():
    """2,000 areas of 1 to 60 images, most without a positive one: ranked are their shares, not what rounding leaves."""
    generator = np.random.default_rng(0)
    images = generator.integers(1, 60, 2_000)
    positives = generator.binomial(images, 0.004)
    other = images + generator.normal(size=2_000)
    levels = area_means(positives, images, *CALIBRATION)
    (row,) = correlations(pd.DataFrame({"level": levels, "other": other}), replicates=2, seed=1, percent=95)
    assert 1_000 < (positives == 0).sum() < 2_000
    assert row["spearman"] == pytest.approx(stats.spearmanr(positives / images, other).statistic, abs=1e-13)
    assert row["pearson"] == pytest.approx(stats.pearsonr(positives / images, other).statistic, abs=1e-9)


def test_where_no_image_is_positive_the_level_has_no_correlation_and_no_index():
    images = np.sort(np.random.default_rng(0).integers(1, 60, 400))  # neighbors have as many images
    levels = area_means(np.zeros(400, dtype=np.int64), images, *CALIBRATION)
    (row,) = correlations(pd.DataFrame({"level": levels, "images": images}), replicates=2, seed=1, percent=95)
    found = moran(levels, neighbors(grid(20), 0.0), seed=1)
    assert (row["spearman"], row["reason"]) == (None, "level does not vary")
    assert (found.index, found.p, found.reason) == (None, None, "the rate does not vary")


def test_a_replicate_that_draws_one_value_alone_is_left_out_and_not_counted():
    variables = pd.DataFrame({"level": [0.1, 0.7, 0.3], "other": [3.0, 1.0, 2.0]})
    (row,) = correlations(variables, replicates=300, seed=4, percent=95)
    assert 240 < row["pearson_replicates"] < 300  # one in nine draws the same area three times
    assert row["pearson_replicates"] == row["spearman_replicates"]


def test_no_area_at_all_gives_reasons_and_no_warning():
    rows = correlations(frame(5).iloc[:0], replicates=3, seed=0, percent=95)
    assert {row["reason"] for row in rows} == {"fewer than 3 areas have both"}


def test_only_areas_of_more_persons_than_set_that_have_images_are_used():
    areas = pd.DataFrame({"persons": [500.0, 501.0, 900.0]})
    levels = pd.DataFrame({"level": [0.1, 0.2, np.nan]})
    assert usable_areas(areas, levels, 500).tolist() == [False, True, False]


def test_shares_are_of_all_persons_and_missing_where_nobody_lives():
    columns = {f"persons_{race}": [10.0, 0.0] for race in ("white", "black", "hispanic", "asian")}
    areas = pd.DataFrame(
        {"persons": [40.0, 0.0], "density_per_sqmi": [7.0, 0.0], "income_usd": [1.0, np.nan], **columns}
    )
    levels = pd.DataFrame({"level": [0.1, 0.2], "felony_distance_ft": [1.0, 2.0], "station_distance_ft": [3.0, 4.0]})
    shares = area_variables(areas, levels)["share_asian"]
    assert shares[0] == 0.25
    assert np.isnan(shares[1])


def test_queens_neighbors_share_an_edge_or_a_corner():
    touching = neighbors(grid(3), 0.0).toarray()
    assert touching.sum(axis=1).tolist() == [3, 5, 3, 5, 8, 5, 3, 5, 3]
    assert (touching == touching.T).all()
    assert np.trace(touching) == 0


def test_boundaries_that_miss_each_other_by_less_than_the_tolerance_touch():
    shapes = np.array([shapely.box(0, 0, 1, 1), shapely.box(1.001, 0, 2, 1)])
    assert neighbors(shapes, 0.0).sum() == 0
    assert neighbors(shapes, 0.01).sum() == 2


def rook(side: int):
    """Neighbors by edges alone, on a grid."""
    touching = neighbors(grid(side), 0.0)
    left, right = touching.nonzero()
    far = np.abs(left // side - right // side) + np.abs(left % side - right % side) > 1
    touching[left[far], right[far]] = 0
    touching.eliminate_zeros()
    return touching


def test_a_checkerboard_has_index_minus_one():
    board = np.indices((8, 8)).sum(axis=0).ravel() % 2
    found = moran(board.astype(float), rook(8), seed=1)
    assert found.index == pytest.approx(-1)
    assert found.p == 0.001
    assert found.z < -5


def test_a_gradient_has_an_index_near_one():
    slope = np.indices((20, 20)).sum(axis=0).ravel().astype(float)
    found = moran(slope, neighbors(grid(20), 0.0), seed=1)
    assert found.index > 0.9
    assert found.p == 0.001


def test_shuffled_levels_have_an_index_near_its_expectation_and_nothing_to_show():
    values = np.random.default_rng(5).normal(size=400)
    found = moran(values, neighbors(grid(20), 0.0), seed=1)
    assert found.expected == -1 / 399
    assert abs(found.index - found.expected) < 0.08
    assert found.p > 0.05


@pytest.mark.parametrize("seed", [0, 1])
def test_the_index_and_its_test_are_those_of_esda(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        esda = pytest.importorskip("esda")
        graph = pytest.importorskip("libpysal.graph").Graph
    values = np.random.default_rng(seed).gamma(0.5, size=225) + np.arange(225) / 300
    touching = neighbors(grid(15), 0.0)
    theirs = esda.Moran(values, graph.from_sparse(touching.tocoo()), permutations=2)
    ours = moran(values, touching, seed=seed)
    assert ours.index == pytest.approx(theirs.I, rel=1e-12)
    assert ours.expected == pytest.approx(theirs.EI, rel=1e-12)
    assert ours.z == pytest.approx(theirs.z_rand, rel=0.15)  # permutations against the analytic variance


def test_islands_are_left_out_and_counted():
    shapes = np.array([*grid(4), shapely.box(100, 100, 101, 101)])
    values = np.arange(17.0)
    alone = moran(values, neighbors(shapes, 0.0), seed=3)
    without = moran(values[:16], neighbors(shapes[:16], 0.0), seed=3)
    assert (alone.islands, alone.areas) == (1, 16)
    assert (alone.index, alone.p) == (without.index, without.p)


@pytest.mark.parametrize(
    ("values", "reason"),
    [([1.0] * 9, "the rate does not vary"), ([1.0, 2.0], "fewer than 3 areas have a neighbor"), ([], "fewer than 3")],
)
def test_a_missing_morans_i_has_a_reason(values, reason):
    found = moran(np.array(values), neighbors(grid(3)[: len(values)], 0.0), seed=0)
    assert found.index is None
    assert reason in found.reason


def test_areas_that_all_touch_each_other_have_an_index_and_no_z():
    found = moran(np.array([1.0, 5.0, 2.0, 9.0]), neighbors(grid(2), 0.0), seed=0)
    assert found.index == pytest.approx(-1 / 3)
    assert (found.z, found.p) == (None, 1.0)

"""Simultaneous intervals, calls, and rank sets of many places."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.many_places import Places, compare_places
from patrolscope.analysis.stages.published import read_released


def drawn(seed: int, places: int = 12, replicates: int = 1_200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logarithms = generator.normal(0, 0.5, places)
    common = generator.normal(0, 0.1, (replicates, 1))
    noise = generator.normal(0, 0.15, (replicates, places)) * generator.uniform(0.5, 2, places)
    return np.exp(logarithms), np.exp(logarithms + common + noise)


def test_simultaneous_intervals_and_rank_sets_follow_the_definition():
    estimates, replicates = drawn(1)
    found, critical = compare_places(Places.of(estimates, replicates), None, percent=95, seed=1)
    logs, logs_b = np.log(estimates), np.log(replicates)
    spread = logs_b.std(axis=0)
    c = np.percentile((np.abs(logs_b - logs) / spread).max(axis=1), 95)
    assert critical["critical"] == pytest.approx(c)
    np.testing.assert_allclose(found["simultaneous_lower"], estimates * np.exp(-c * spread))
    pairs = [(h, k) for h in range(12) for k in range(h)]
    largest = np.max(
        [
            np.abs(logs_b[:, h] - logs_b[:, k] - logs[h] + logs[k]) / (logs_b[:, h] - logs_b[:, k]).std()
            for h, k in pairs
        ],
        axis=0,
    )
    c_pairs = np.percentile(largest, 95)
    assert critical["critical_pairs"] == pytest.approx(c_pairs)
    for h in range(12):
        apart = [
            np.sign(logs[k] - logs[h])
            if k != h and abs(logs[k] - logs[h]) > c_pairs * (logs_b[:, k] - logs_b[:, h]).std()
            else 0
            for k in range(12)
        ]
        assert found.loc[h, "rank_first"] == 1 + apart.count(1)
        assert found.loc[h, "rank_last"] == 12 - apart.count(-1)


def test_calls_are_those_of_benjamini_and_hochberg():
    lower, upper = np.array([0.001, 0.9, 0.02, 0.4, 1.0, 0.003]), np.array([0.999, 0.01, 0.98, 0.6, 0.001, 0.997])
    estimates, replicates = drawn(2, places=6)
    estimates[3] = np.nan
    found, _ = compare_places(Places.of(estimates, replicates), (lower, upper), percent=95, seed=1)
    p = 2 * np.minimum(lower, upper)
    np.testing.assert_allclose(found["p"].drop(3), np.delete(p, 3))
    adjusted = stats.false_discovery_control(np.delete(p, 3))
    expected = np.where(adjusted <= 0.05, np.where(np.delete(lower < upper, 3), "above", "below"), "")
    assert found["call"].drop(3).tolist() == expected.tolist()
    assert found.loc[3, "call"] == ""
    assert np.isnan(found.loc[3, "rank_first"])


def test_a_place_with_few_positives_may_have_any_rank():
    estimates, replicates = drawn(3)
    positives = np.full(12, 50)
    positives[estimates.argmax()] = 19
    found, _ = compare_places(Places.of(estimates, replicates, positives), None, percent=95, seed=1)
    row = found.loc[estimates.argmax()]
    assert (row["rank_first"], row["rank_last"]) == (1, 12)
    assert np.isnan(row["simultaneous_lower"])
    # It may also be above any other place.
    assert found["rank_last"].max() == 12


def test_without_two_places_to_compare_nothing_is_said():
    estimates, replicates = drawn(4, places=3)
    found, critical = compare_places(Places.of(estimates, replicates, np.array([50, 3, 0])), None, percent=95, seed=1)
    assert np.isnan(list(critical.values())).all()
    assert (found["rank_first"] == 1).all()
    assert (found["rank_last"] == 3).all()
    assert found["simultaneous_lower"].isna().all()


def test_ranks_are_in_their_sets_and_wrong_calls_are_rare():
    """Estimate 20 places, half of them average, in 300 studies with known errors."""
    generator = np.random.default_rng(5)
    truth = np.where(np.arange(20) < 10, 0.0, generator.normal(0, 0.4, 20))
    spread = generator.uniform(0.05, 0.3, 20)
    held, wrong = [], []
    for study in range(300):
        logs = truth + generator.normal(0, spread)
        replicates = np.exp(logs + generator.normal(0, spread, (1_000, 20)))
        found, _ = compare_places(Places.of(np.exp(logs), replicates), None, percent=95, seed=study)
        above = np.array([(truth > one).sum() for one in truth])
        ties = np.array([(truth == one).sum() for one in truth])
        # With ties, any rank of the tied places is true.
        held.append(((found["rank_first"] <= above + ties) & (found["rank_last"] >= above + 1)).all())
        called = found["call"].to_numpy()
        errors = ((called == "above") & (truth <= 0)) | ((called == "below") & (truth >= 0))
        wrong.append(errors.sum() / max(1, (called != "").sum()))
    assert np.mean(held) > 0.93
    assert np.mean(wrong) < 0.06


def test_the_published_neighborhoods_have_the_documented_rank_sets(shared_data):
    released = read_released(str(Path(shared_data) / "paper" / "plot_data"))[0]["neighborhood"]
    named = np.array(released.keys) != ""
    keys = np.array(released.keys)[named]
    estimates, replicates = released.relative[named], released.replicate_relative[:, named]
    found, critical = compare_places(Places.of(estimates, replicates), None, percent=95, seed=1)
    lower, upper = percentile_interval(replicates, 95)
    assert abs((lower > 1).sum() - 66) <= 2
    assert abs((upper < 1).sum() - 132) <= 2
    assert abs((found["call"] == "above").sum() - 65) <= 2
    assert abs((found["call"] == "below").sum() - 131) <= 2
    assert abs((found["simultaneous_lower"] > 1).sum() - 59) <= 2
    assert abs((found["simultaneous_upper"] < 1).sum() - 119) <= 2
    assert critical["critical"] == pytest.approx(3.67, abs=0.05)
    surely = set(keys[found["highest"] == "surely"])
    assert surely == {"Gramercy", "SoHo-Little Italy-Hudson Square", "Midtown-Times Square"}
    assert abs((found["highest"] != "").sum() - 21) <= 2
    ranks = found.set_index(keys)[["rank_first", "rank_last"]]
    assert ranks.loc["Gramercy"].tolist() == [1, 3]
    assert ranks.loc["Rikers Island", "rank_first"] == 1
    assert abs(ranks.loc["Rikers Island", "rank_last"] - 35) <= 2

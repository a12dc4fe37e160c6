"""The detector's quality against scikit-learn, against counts done by hand, and against a known truth."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from patrolscope.analysis.estimators.subgroups import Split
from patrolscope.analysis.stages.evaluate import (
    QUANTITIES,
    ScoreCounts,
    ThresholdRule,
    calibration_bins,
    choose_threshold,
    curves,
    measure,
    measured,
    quality_table,
)
from patrolscope.pipeline.errors import SettingsError, SourceError

BOOTSTRAP = {"replicates": 40, "seed": 5, "interval_percent": 95}


def labeled(images: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Truth and score with many ties; a third of the images has no box."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < 0.2
    score = np.clip(np.round(rng.normal(0.3 + 0.3 * truth, 0.2), 2), 0.01, 1)
    return truth.astype(int), np.where(rng.random(images) < 0.33, np.nan, score)


def by_scikit_learn(truth, score, threshold, weight=None) -> list[float]:
    positive = score > threshold
    return [
        roc_auc_score(truth, score, sample_weight=weight),
        average_precision_score(truth, score, sample_weight=weight),
        precision_score(truth, positive, sample_weight=weight),
        recall_score(truth, positive, sample_weight=weight),
        f1_score(truth, positive, sample_weight=weight),
    ]


def labeled_sets(smallest: int = 2):
    """Small sets of both kinds, with ties."""
    row = st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]))
    return st.lists(row, min_size=smallest, max_size=14).filter(lambda rows: len({truth for truth, _ in rows}) == 2)


def test_quantities_are_those_of_scikit_learn():
    truth, score = labeled(3_000)
    tally = ScoreCounts.of(truth, score)
    assert measure(tally.counts, tally.scores, 0.5) == pytest.approx(
        by_scikit_learn(truth, np.nan_to_num(score), 0.5), rel=1e-12
    )


def test_a_replicate_has_the_quantities_of_weighted_images_as_scikit_learn_has_them():
    truth, score = labeled(500)
    tally = ScoreCounts.of(truth, score)
    drawn = tally.replicates(range(20), seed=3, name="a set")
    assert drawn.shape == (20, 2, len(tally.scores))
    assert (drawn.sum(axis=(1, 2)) == 500).all()
    kind, place = np.indices(tally.counts.shape)
    for counts, found in zip(drawn, measure(drawn, tally.scores, 0.5), strict=True):
        expected = by_scikit_learn(kind.ravel(), tally.scores[place.ravel()], 0.5, weight=counts.ravel())
        assert found == pytest.approx(expected, rel=1e-12)


@given(labeled_sets(), st.sampled_from([0.0, 0.1, 0.3, 0.75]))
def test_small_sets_with_ties_agree_with_scikit_learn_wherever_a_quantity_is_defined(rows, threshold):
    truth, score = map(np.array, zip(*rows, strict=True))
    tally = ScoreCounts.of(truth, score)
    found = measure(tally.counts, tally.scores, threshold)
    if not (score > threshold).any():
        assert np.isnan(found[2])
        assert found[3] == found[4] == 0
        return
    assert found == pytest.approx(by_scikit_learn(truth, score, threshold), abs=1e-12)


def test_a_set_of_five_images_by_hand():
    tally = ScoreCounts.of([1, 0, 1, 0, 0], [0.9, 0.9, 0.4, np.nan, 0.2])
    auc, average_precision, precision, recall, f1 = measure(tally.counts, tally.scores, 0.3)
    assert auc == (2.5 + 2) / 6  # the first beats two and ties with one of three, the second beats two
    assert average_precision == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 3)
    assert (precision, recall, f1) == (2 / 3, 1, 0.8)


@pytest.mark.parametrize(
    ("truth", "score", "missing"),
    [
        ([1, 1], [0.9, 0.1], {"auc": "every image shows", "average_precision": "every image shows"}),
        ([0, 0], [0.9, 0.1], dict.fromkeys(("auc", "average_precision", "recall", "f1"), "no image shows")),
        ([1, 0], [0.2, 0.1], {"precision": "no image is above the threshold"}),
        ([], [], dict.fromkeys(QUANTITIES, "no image")),
    ],
)
def test_what_is_not_defined_is_missing_with_its_reason_and_never_zero(truth, score, missing):
    table = measured(ScoreCounts.of(truth, score), 0.5, name="few", **BOOTSTRAP).set_index("quantity")
    for quantity, row in table.iterrows():
        assert row["missing"].startswith(missing.get(quantity, "")), quantity
        assert bool(row["missing"]) == (quantity in missing)
        assert pd.isna(row[["estimate", "lower", "upper"]]).all() == (quantity in missing)
        assert (row["replicates"] == 0) == (quantity in missing)


def test_replicates_in_which_a_quantity_is_not_defined_are_left_out_and_counted():
    table = measured(ScoreCounts.of([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3]), 0.5, name="four", **BOOTSTRAP).set_index(
        "quantity"
    )
    assert 0 < table.loc["auc", "replicates"] < 40  # of four images the only positive one is often not drawn
    assert table.loc["auc", ["lower", "upper"]].tolist() == [1, 1]


def test_more_replicates_leave_the_first_ones_as_they_were_and_names_have_streams_of_their_own():
    tally = ScoreCounts.of(*labeled(300))
    ten = tally.replicates(range(10), seed=1, name="a")
    assert (tally.replicates(range(4, 10), seed=1, name="a") == ten[4:]).all()
    assert (tally.replicates(range(10), seed=1, name="b") != ten).any()
    assert (tally.replicates(range(10), seed=2, name="a") != ten).any()


def test_intervals_do_not_depend_on_the_size_of_a_block(monkeypatch):
    tally = ScoreCounts.of(*labeled(300))
    whole = measured(tally, 0.5, name="a", **BOOTSTRAP)
    monkeypatch.setattr("patrolscope.analysis.stages.evaluate._BLOCK_COUNTS", 7 * tally.counts.size)
    pd.testing.assert_frame_equal(measured(tally, 0.5, name="a", **BOOTSTRAP), whole)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Scores of two normal distributions 1.5 apart: AUC, recall and precision are known."""
    rng = np.random.default_rng(8)
    share, apart, threshold, studies = 0.3, 1.5, 1.0, 200
    recall, false_alarm = norm.sf(threshold - apart), norm.sf(threshold)
    true_precision = share * recall / (share * recall + (1 - share) * false_alarm)
    known = {"auc": norm.cdf(apart / np.sqrt(2)), "recall": recall, "precision": true_precision}
    held = dict.fromkeys(known, 0)
    for number in range(studies):
        truth = rng.random(400) < share
        tally = ScoreCounts.of(truth, rng.normal(apart * truth))
        table = measured(tally, threshold, name=f"{number}", replicates=200, seed=1, interval_percent=90)
        rows = table.set_index("quantity")
        for quantity, value in known.items():
            held[quantity] += rows.loc[quantity, "lower"] <= value <= rows.loc[quantity, "upper"]
    # 90 % of 200 is 180; three standard errors are 13.
    assert all(180 - 13 <= times <= 180 + 13 for times in held.values()), held


def test_every_side_of_a_split_is_the_quality_of_its_own_images():
    truth, score = labeled(400)
    side = np.repeat([1, 0, -1], [150, 200, 50]).astype(np.int8)
    images = pd.DataFrame({"ground_truth": truth, "score": score})
    table = quality_table(images, [Split("Half", side)], 0.5, name="test", **BOOTSTRAP)
    assert table["set"].unique().tolist() == ["test"]
    for row, chosen in (
        (("All images", "all"), side < 9),
        (("Half", "true"), side == 1),
        (("Half", "false"), side == 0),
    ):
        part = table[(table["subgroup"] == row[0]) & (table["side"] == row[1])]
        expected = by_scikit_learn(truth[chosen], np.nan_to_num(score[chosen]), 0.5)
        assert part["estimate"].tolist() == pytest.approx(expected)
        assert part["images"].unique().tolist() == [chosen.sum()]
        assert part["positives"].unique().tolist() == [truth[chosen].sum()]


# Choice of threshold.


@given(labeled_sets(), st.sampled_from(["best-f1", "precision=0.5", "precision=0.8"]))
def test_the_chosen_threshold_is_the_best_of_all_by_trying_each(rows, text):
    truth, score = map(np.array, zip(*rows, strict=True))
    choice = ThresholdRule.parse(text)
    tried = {}
    for threshold in np.unique(score)[:-1]:
        positive = score > threshold
        precision, recall = precision_score(truth, positive), recall_score(truth, positive)
        if choice.kind == "best-f1":
            tried[threshold] = f1_score(truth, positive)
        elif precision >= choice.value and recall > 0:
            tried[threshold] = recall
    if not tried:
        with pytest.raises(SourceError, match=r"no threshold has a precision|no threshold tells"):
            choose_threshold(choice, truth, score, given=0.7)
        return
    found = choose_threshold(choice, truth, score, given=0.7)
    assert tried[found] == pytest.approx(max(tried.values()))
    assert not any(worth > tried[found] + 1e-12 for worth in tried.values())


def test_of_equally_good_thresholds_the_highest_is_taken():
    assert (
        choose_threshold(ThresholdRule.parse("precision=0.5"), [1, 0, 0, 1, 0], [0.9, 0.8, 0.7, 0.9, 0.1], given=0)
        == 0.8
    )


def test_a_given_threshold_and_a_number_are_taken_as_they_are():
    assert choose_threshold(ThresholdRule.parse("study"), [1, 0], [0.9, 0.1], given=0.770508) == 0.770508
    assert choose_threshold(ThresholdRule.parse("0.25"), [1, 0], [0.9, 0.1], given=0.770508) == 0.25
    assert choose_threshold(ThresholdRule.parse("0"), [1, 0], [0.9, 0.1], given=0.770508) == 0


@pytest.mark.parametrize("text", ["best", "1.2", "-0.1", "precision=90", "precision=", "nan"])
def test_a_choice_that_can_not_be_understood_is_refused(text):
    with pytest.raises(
        SettingsError, match=r"expected given \(estimate.threshold of study.yaml\), best-f1, precision=0.9"
    ):
        ThresholdRule.parse(text)


def test_a_precision_that_no_threshold_has_is_refused_with_the_highest_there_is():
    with pytest.raises(SourceError, match=r"no threshold has a precision of 0.9: the highest is 0.500, at 0.1"):
        choose_threshold(ThresholdRule.parse("precision=0.9"), [1, 0, 0], [0.8, 0.8, 0.1], given=0)


def test_equal_scores_can_not_choose_a_threshold():
    with pytest.raises(SourceError, match=r"all labeled images have the score 0.0: no threshold tells them apart"):
        choose_threshold(ThresholdRule.parse("best-f1"), [1, 0], [np.nan, np.nan], given=0)


# Curves and calibration.


def test_a_short_curve_is_scikit_learns_whole_one():
    truth, score = labeled(2_000)
    table = curves(truth, score)
    roc, precision_recall = (table[table["curve"] == name] for name in ("roc", "precision_recall"))
    x, y, _ = roc_curve(truth, np.nan_to_num(score))
    assert roc["x"].tolist() == x.tolist()
    assert roc["y"].tolist() == y.tolist()
    precision, recall, at = precision_recall_curve(truth, np.nan_to_num(score))
    assert precision_recall["x"].tolist() == recall.tolist()
    assert precision_recall["y"].tolist() == precision.tolist()
    assert precision_recall["from_score"].iloc[:-1].tolist() == at.tolist()
    assert roc["from_score"].isna().tolist() == [True] + [False] * (len(x) - 1)


def test_a_long_curve_is_thinned_to_points_of_the_whole_one_with_both_ends():
    rng = np.random.default_rng(2)
    truth = (rng.random(6_000) < 0.5).astype(int)
    score = np.clip(rng.normal(0.4 + 0.1 * truth, 0.1), 0, 1)
    whole, thin = curves(truth, score, points=10**6), curves(truth, score)
    for name in ("roc", "precision_recall"):
        every, kept = (table[table["curve"] == name] for table in (whole, thin))
        assert len(every) > 1_000
        assert 300 < len(kept) <= 500
        points = list(zip(kept["x"], kept["y"], strict=True))
        assert set(points) <= set(zip(every["x"], every["y"], strict=True))
        assert points[0] == (every["x"].iloc[0], every["y"].iloc[0])
        assert points[-1] == (every["x"].iloc[-1], every["y"].iloc[-1])
        # Evenly along the curve: no gap is wider than a share of its length and one step of its own.
        step, gap = (np.hypot(table["x"].diff(), table["y"].diff()) for table in (every, kept))
        assert gap.max() <= step.sum() / 499 + step.max()


def test_calibration_bins_hold_equal_counts_and_images_without_a_box_are_one_of_their_own():
    score = np.concatenate([np.full(30, np.nan), np.arange(1, 41) / 40])
    truth = np.concatenate([np.zeros(30), np.arange(1, 41) > 20]).astype(int)
    table = calibration_bins(truth, score, interval_percent=95, bins=4)
    assert table["bin"].tolist() == [0, 1, 2, 3, 4]
    assert table["images"].tolist() == [30, 10, 10, 10, 10]
    assert table["positives"].tolist() == [0, 0, 0, 10, 10]
    assert table["mean_score"].tolist() == pytest.approx([0, 5.5 / 40, 15.5 / 40, 25.5 / 40, 35.5 / 40])
    # Wilson's interval of none of 10, of all of 10.
    z_squared = norm.ppf(0.975) ** 2
    assert table["lower"].tolist() == pytest.approx([0, 0, 0, 10 / (10 + z_squared), 10 / (10 + z_squared)], abs=1e-12)
    assert table["upper"].iloc[1] == pytest.approx(z_squared / (10 + z_squared))


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.9]), min_size=1, max_size=40))
def test_images_of_one_score_stay_in_one_calibration_bin(score):
    table = calibration_bins([1] * len(score), score, interval_percent=95, bins=3)
    assert table["images"].sum() == len(score)
    assert (table["score_from"].to_numpy()[1:] > table["score_to"].to_numpy()[:-1]).all()

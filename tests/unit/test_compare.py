"""Two sets of results side by side."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from patrolscope.analysis.estimators.compare import compare, mover, paired_intervals, summarize
from patrolscope.analysis.stages.compared_results import ComparedResults, find_dependence, read_results
from patrolscope.analysis.stages.published import Released, read_released
from patrolscope.analysis.stages.reproduce import tabulate
from patrolscope.dashboards.report.comparison import print_comparison
from tests.released import made_released, write_released


def results(*analyses, **changes):
    return {name: made_released(name, **changes) for name in analyses}


def compared_sets(a, b, dependence=""):
    """Compare two mappings of `Released`."""
    sets = [ComparedResults("", one, tabulate(one).assign(bound=""), [], "", None) for one in (a, b)]
    return compare(
        sets[0].table,
        sets[1].table,
        (sets[0].replicates, sets[1].replicates),
        percent=95,
        dependence=dependence,
    )


def released(means, replicate_means):
    replicates = np.array(replicate_means, dtype=float)
    return Released(tuple(means), 1e-2, np.array(list(means.values())), np.full(len(replicates), 1e-2), replicates)


def printed(compared):
    out = io.StringIO()
    print_comparison(compared, summarize(compared), Console(file=out))
    return out.getvalue()


def one_sided():
    """Boroughs: X in both, Y only in the first, Z only in the second, none named alike twice."""
    a = {"borough": released({"": 0.01, "X": 0.01, "Y": 0.02}, [[0.01, 0.009, 0.02], [0.01, 0.011, 0.02]])}
    b = {"borough": released({"X": 0.02, "Z": 0.03}, [[0.019, 0.03], [0.021, 0.03], [0.5, 0.5]])}
    return compared_sets(a, b)


def test_every_group_of_either_set_has_a_row_that_names_its_set():
    compared = one_sided()
    rates = compared[compared["quantity"] == "relative_to_average"]
    assert dict(zip(rates["group"], rates["found_in"], strict=True)) == {"": "a", "X": "both", "Y": "a", "Z": "b"}
    assert len(compared) == 4 + 4 + 1  # both quantities, and the overall mean
    alone = rates[rates["found_in"] != "both"]
    assert alone[["difference", "ratio", "difference_lower", "ratio_upper"]].isna().all(axis=None)
    assert alone["no_interval"].tolist() == ["only in A", "only in A", "only in B"]


def test_intervals_are_percentiles_over_replicates_paired_by_number():
    row = one_sided().query("group == 'X' and quantity == 'relative_to_average'").iloc[0]
    assert (row["difference"], row["ratio"]) == (pytest.approx(1), pytest.approx(2))
    # The third replicate of the second set has no partner.
    differences, ratios = np.array([1.9 - 0.9, 2.1 - 1.1]), np.array([1.9 / 0.9, 2.1 / 1.1])
    np.testing.assert_allclose(
        row[["difference_lower", "difference_upper"]].astype(float), np.percentile(differences, [2.5, 97.5])
    )
    np.testing.assert_allclose(row[["ratio_lower", "ratio_upper"]].astype(float), np.percentile(ratios, [2.5, 97.5]))
    assert row["interval_method"] == "replicates"


def test_pairs_with_a_missing_replicate_are_left_out():
    a, b = np.array([1.0, np.nan, 3.0, 4.0]), np.array([2.0, 9.0, np.nan, 8.0])
    np.testing.assert_allclose(paired_intervals(a, b, 95)[:2], np.percentile([1.0, 4.0], [2.5, 97.5]))
    assert np.isnan(paired_intervals(a[:2], b[:2], 95)).all()
    assert np.isnan(paired_intervals(np.array([0.0, 1.0]), np.array([1.0, 1.0]), 95)[2:]).all()


def test_limits_alone_give_intervals_by_the_published_formula():
    a, b = results("race", replicates=0), results("race", replicates=0, seed=2)
    tables = [
        tabulate(one).assign(lower=lambda rows: rows["estimate"] * 0.9, upper=lambda rows: rows["estimate"] * 1.3)
        for one in (a, b)
    ]
    row = compare(*tables, ({}, {}), percent=95).iloc[0]
    x, y = row["estimate_a"], row["estimate_b"]
    assert row["interval_method"] == "limits"
    assert row["difference_lower"] == pytest.approx(y - x - np.sqrt((0.1 * y) ** 2 + (0.3 * x) ** 2))
    assert row["difference_upper"] == pytest.approx(y - x + np.sqrt((0.3 * y) ** 2 + (0.1 * x) ** 2))
    reach = np.hypot(np.log(0.9), np.log(1.3))
    assert row["ratio_lower"] == pytest.approx(y / x * np.exp(-reach))
    assert row["ratio_upper"] == pytest.approx(y / x * np.exp(reach))
    assert mover((1.0, 0.5, 2.0), (3.0, 2.0, 5.0)) == (
        pytest.approx(2 - np.sqrt(2)),
        pytest.approx(2 + np.sqrt(4.25)),
    )


def test_sets_that_share_images_have_no_interval_and_the_reason():
    compared = compared_sets(results("race"), results("race", seed=2), "both are results of one study")
    assert compared["difference"].notna().all()
    assert compared[["difference_lower", "ratio_lower"]].isna().all(axis=None)
    assert (compared["no_interval"] == "both are results of one study").all()


def test_a_rate_below_a_bound_gives_an_interval_without_a_point():
    a, b = results("race"), results("race", seed=2)
    table = tabulate(b).assign(bound="")
    table.loc[0, "bound"] = "below"
    sets = [ComparedResults("", one, tabulate(one), [], "", None) for one in (a, b)]
    compared = compare(sets[0].table, table, (sets[0].replicates, sets[1].replicates), percent=95)
    assert compared.loc[0, ["difference", "ratio"]].isna().all()
    assert compared.loc[0, "difference_lower"] < compared.loc[0, "difference_upper"]
    (line,) = [line for line in printed(compared).splitlines() if line.startswith("White")]
    assert f"below {table.loc[0, 'upper']:.3f}" in line


def test_a_set_without_replicates_has_no_interval_and_is_named():
    compared = compared_sets(results("race"), results("race", replicates=0))
    assert (compared["no_interval"] == "no interval in B").all()
    assert summarize(compared)[["both", "with_intervals", "higher"]].to_numpy().tolist() == [[4, 0, 0]]
    assert "no intervals of differences; rank correlation" in printed(compared)


def test_swapping_the_sets_turns_differences_around():
    a, b = results("race", "zone"), results("race", "zone", seed=2)
    there, back = compared_sets(a, b), compared_sets(b, a)
    np.testing.assert_allclose(there["difference_lower"], -back["difference_upper"])
    np.testing.assert_allclose(there["ratio_lower"], 1 / back["ratio_upper"], rtol=5e-3)
    assert summarize(there)["higher"].tolist() == summarize(back)["lower"].tolist()
    assert summarize(there)["rank_correlation"].tolist() == summarize(back)["rank_correlation"].tolist()


def test_equal_results_outside_a_study_are_recognized(tmp_path):
    one, same = (read_results(str(write_released(tmp_path / name))) for name in "ab")
    other = read_results(str(write_released(tmp_path / "c", seed=2)))
    assert "the same estimates" in find_dependence(one, same)
    assert find_dependence(one, other) == ""


@pytest.mark.parametrize("shared", [True, False])
def test_intervals_of_differences_and_ratios_cover_their_true_values(shared):
    """Compare 400 pairs of studies with binomial counts, and 400 validation images of each class."""
    generator = np.random.default_rng(11)
    shares, images, size, ppv, omitted = (0.02, 0.03), 20_000, 400, 0.8, 0.02
    truth = [omitted + (ppv - omitted) * share for share in shares]
    number = 400
    covered = []
    for _ in range(number):
        replicates, validation = [], None
        for share in shares:
            if validation is None or not shared:
                labeled = generator.binomial(size, [ppv, omitted]) / size
                validation = generator.binomial(size, labeled, (500, 2)) / size
            positives = generator.binomial(images, share) / images
            drawn = generator.binomial(images, positives, 500) / images
            replicates.append(validation[:, 1] + (validation[:, 0] - validation[:, 1]) * drawn)
        low, high, ratio_low, ratio_high = paired_intervals(*replicates, 95)
        covered.append(
            (low <= truth[1] - truth[0] <= high, ratio_low <= truth[1] / truth[0] <= ratio_high),
        )
    error = np.sqrt(0.93 * 0.07 / number)
    assert (np.mean(covered, axis=0) >= 0.93 - 2 * error).all()
    assert (np.mean(covered, axis=0) <= 0.99).all()


def test_fewer_than_three_groups_or_equal_levels_have_no_rank_correlation():
    assert np.isnan(summarize(one_sided())["rank_correlation"].iloc[0])
    alike = tabulate(results("race")).assign(estimate=1.0)
    compared = compare(alike, tabulate(results("race")), ({}, {}), percent=95)
    assert np.isnan(summarize(compared)["rank_correlation"].iloc[0])


def test_analyses_are_in_the_papers_order_in_both_sets():
    compared = compared_sets(results("zone", "neighborhood"), results("race", "borough", "zone"))
    assert compared["analysis"].unique().tolist() == ["race", "zone", "borough", "neighborhood"]
    assert summarize(compared)[["both", "only_a", "only_b"]].to_numpy().tolist() == [
        [0, 0, 4],
        [3, 0, 0],
        [0, 0, 6],
        [0, 6, 0],
    ]


def test_short_analyses_are_printed_with_all_intervals_and_groups_of_one_set_are_named():
    text = printed(one_sided())
    (row,) = [line for line in text.splitlines() if line.startswith("X")]
    assert row.split()[:9] == ["X", "1.000", "(0.905", "to", "1.095)", "2.000", "(1.910", "to", "47.605)"]
    assert row.split()[9:] == ["+1.000", "(+1.000", "to", "+1.000)", "2.000", "(1.914", "to", "2.106)"]
    assert "only in A: (no name); Y" in text
    assert "only in B: Z" in text
    assert "of 1 intervals of B - A, 1 lie above 0 and 0 below; rates differ by a factor of at most 2.000" in text


def test_names_are_printed_as_they_are():
    a = {"borough": released({"[bold]X[/bold]": 0.01, "[red]Y": 0.01}, [[0.01, 0.01]])}
    b = {"borough": released({"[bold]X[/bold]": 0.01}, [[0.01]])}
    text = printed(compared_sets(a, b))
    assert "[bold]X[/bold]" in text
    assert "only in A: [red]Y" in text


def test_an_analysis_that_only_one_set_has_is_named():
    text = printed(compared_sets(results("zone"), results("race")))
    assert "Zone\nonly in A" in text
    assert "Race and ethnicity\nonly in B" in text


@pytest.mark.shared
def test_the_paper_is_compared_in_all_218_groups_of_neighborhoods(shared_data):
    paper = read_released(str(shared_data / "paper" / "plot_data"))[0]
    summary = summarize(compared_sets(paper, paper)).set_index("analysis")
    assert summary.loc["neighborhood", ["both", "higher", "lower"]].tolist() == [218, 0, 0]
    assert "of 6 intervals of B - A, 0 lie above 0" in printed(compared_sets({"borough": paper["borough"]}, paper))

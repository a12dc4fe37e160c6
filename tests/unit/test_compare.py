"""Two sets of results side by side."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from patrolscope.analysis.estimators.compare import compare, summarize
from patrolscope.analysis.stages.published import Released, read_released
from patrolscope.analysis.stages.reproduce import tabulate
from patrolscope.dashboards.report.comparison import print_comparison
from tests.released import made_released, write_released


def tables(*analyses, **changes):
    return tabulate({name: made_released(name, **changes) for name in analyses})


def released(means, replicate_means):
    replicates = np.array(replicate_means, dtype=float)
    return Released(tuple(means), 1e-2, np.array(list(means.values())), np.full(len(replicates), 1e-2), replicates)


def printed(compared):
    out = io.StringIO()
    print_comparison(compared, summarize(compared), Console(file=out))
    return out.getvalue()


def one_sided():
    """Boroughs: X in both, Y only in the first, Z only in the second, none named alike twice."""
    a = tabulate({"borough": released({"": 0.01, "X": 0.01, "Y": 0.02}, [[0.01, 0.009, 0.02], [0.01, 0.011, 0.02]])})
    b = tabulate({"borough": released({"X": 0.02, "Z": 0.03}, [[0.019, 0.03], [0.021, 0.03]])})
    return compare(a, b)


def test_every_group_of_either_set_has_a_row_that_names_its_set():
    compared = one_sided()
    levels = compared[compared["quantity"] == "relative_to_average"]
    assert dict(zip(levels["group"], levels["found_in"], strict=True)) == {"": "a", "X": "both", "Y": "a", "Z": "b"}
    assert len(compared) == 4 + 4 + 1  # both quantities, and the overall mean
    alone = levels[levels["found_in"] != "both"]
    assert alone[["difference", "ratio", "intervals_overlap"]].isna().all(axis=None)


def test_differences_and_ratios_are_of_the_second_to_the_first():
    row = one_sided().query("group == 'X' and quantity == 'relative_to_average'").iloc[0]
    assert row["estimate_a"] == pytest.approx(1)
    assert row["estimate_b"] == pytest.approx(2)
    assert row["difference"] == pytest.approx(1)
    assert row["ratio"] == pytest.approx(2)
    assert not row["intervals_overlap"]


def test_intervals_overlap_when_they_share_a_point():
    def interval(low, high):
        return tabulate({"borough": released({"X": 0.01}, [[low], [high]])}).assign(lower=low, upper=high)

    def overlap(*ends):
        return bool(compare(interval(*ends[:2]), interval(*ends[2:]))["intervals_overlap"].iloc[0])

    assert overlap(0.1, 0.2, 0.2, 0.3)
    assert overlap(0.1, 0.4, 0.2, 0.3)
    assert overlap(0.2, 0.3, 0.1, 0.2)
    assert not overlap(0.1, 0.2, 0.21, 0.3)
    assert not overlap(0.21, 0.3, 0.1, 0.2)


def test_a_set_without_replicates_has_no_intervals_that_could_overlap():
    compared = compare(tables("race"), tables("race", replicates=0))
    assert compared["intervals_overlap"].isna().all()
    assert compared["difference"].notna().all()
    assert summarize(compared)[["both", "with_intervals", "overlapping"]].to_numpy().tolist() == [[4, 0, 0]]
    text = printed(compared)
    assert "no intervals to compare; rank correlation 1.000" in text
    assert "overlap;" not in text


def test_of_the_groups_in_both_those_with_an_interval_in_both_can_overlap():
    """Four boroughs in both: W apart, X shares a point, Y and Z lack an interval in one of the sets."""
    means = dict.fromkeys("WXYZ", 0.01)
    a = tabulate({"borough": released(means, [[0.01, 0.01, np.nan, 0.01], [0.02, 0.02, np.nan, 0.01]])})
    b = tabulate({"borough": released(means, [[0.03, 0.01, 0.01, np.nan], [0.04, 0.02, 0.01, np.nan]])})
    compared = compare(a, b)
    assert summarize(compared)[["both", "with_intervals", "overlapping"]].to_numpy().tolist() == [[4, 2, 1]]
    assert "1 of 2 intervals overlap" in printed(compared)


def test_the_same_set_twice_agrees_in_everything():
    compared = compare(tables("race", "neighborhood"), tables("race", "neighborhood"))
    assert (compared["difference"] == 0).all()
    assert compared["intervals_overlap"].all()
    summary = summarize(compared).set_index("analysis")
    assert summary["largest_ratio"].tolist() == [1, 1]
    np.testing.assert_allclose(summary["rank_correlation"], 1)
    assert summary["both"].tolist() == [4, 6]


def test_swapping_the_sets_turns_differences_around():
    a, b = tables("race", "zone"), tables("race", "zone", seed=2)
    there, back = compare(a, b), compare(b, a)
    np.testing.assert_allclose(there["difference"], -back["difference"])
    np.testing.assert_allclose(there["ratio"], 1 / back["ratio"])
    assert there["intervals_overlap"].tolist() == back["intervals_overlap"].tolist()
    pd.testing.assert_frame_equal(summarize(there), summarize(back))


def test_the_rank_correlation_is_spearmans_over_named_groups_in_both():
    a, b = tables("neighborhood"), tables("neighborhood", seed=2)
    b = b[b["group"] != "Rosedale"]
    found = summarize(compare(a, b)).iloc[0]
    levels = [
        one[(one["quantity"] == "relative_to_average") & ~one["group"].isin(["", "Rosedale"])].set_index("group")
        for one in (a, b)
    ]
    ranks = [one["estimate"].rank() for one in levels]
    assert found["rank_correlation"] == pytest.approx(np.corrcoef(ranks[0], ranks[1][ranks[0].index])[0, 1])
    assert found[["both", "only_a", "only_b"]].tolist() == [5, 1, 0]


def test_fewer_than_three_groups_or_equal_levels_have_no_rank_correlation():
    assert np.isnan(summarize(one_sided())["rank_correlation"].iloc[0])
    alike = tables("race")
    alike["estimate"] = 1.0
    assert np.isnan(summarize(compare(alike, tables("race")))["rank_correlation"].iloc[0])


def test_analyses_are_in_the_papers_order_in_both_sets():
    compared = compare(tables("zone", "neighborhood"), tables("race", "borough", "zone"))
    assert compared["analysis"].unique().tolist() == ["race", "zone", "borough", "neighborhood"]
    assert summarize(compared)[["both", "only_a", "only_b"]].to_numpy().tolist() == [
        [0, 0, 4],
        [3, 0, 0],
        [0, 0, 6],
        [0, 6, 0],
    ]


def test_short_analyses_are_printed_with_both_intervals_and_groups_of_one_set_are_named():
    text = printed(one_sided())
    (row,) = [line for line in text.splitlines() if line.startswith("X")]
    assert row.split() == [
        "X",
        "1.000",
        "(0.905",
        "to",
        "1.095)",
        "2.000",
        "(1.905",
        "to",
        "2.095)",
        "+1.000",
        "2.000",
        "no",
    ]
    assert "only in A: (no name); Y" in text
    assert "only in B: Z" in text
    assert "0 of 1 intervals overlap; levels differ by a factor of at most 2.000" in text


def test_names_are_printed_as_they_are():
    a = tabulate({"borough": released({"[bold]X[/bold]": 0.01, "[red]Y": 0.01}, [[0.01, 0.01]])})
    text = printed(compare(a, a[a["group"] != "[red]Y"]))
    assert "[bold]X[/bold]" in text
    assert "only in A: [red]Y" in text


def test_an_analysis_that_only_one_set_has_is_named():
    text = printed(compare(tables("zone"), tables("race")))
    assert "Zone\nonly in A" in text
    assert "Race and ethnicity\nonly in B" in text


@pytest.mark.shared
def test_the_paper_agrees_with_itself_in_217_neighborhoods(shared_data, tmp_path):
    paper = tabulate(read_released(str(shared_data / "paper" / "plot_data"))[0])
    made = tabulate(read_released(str(write_released(tmp_path)))[0])
    summary = summarize(compare(paper, paper)).set_index("analysis")
    assert summary.loc["neighborhood", ["both", "overlapping"]].tolist() == [218, 218]  # with the one without a name
    text = printed(compare(paper, made))
    assert "only in A:" in text
    assert "Midtown-Times Square" in text

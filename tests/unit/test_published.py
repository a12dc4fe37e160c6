"""The released form, there and back, and the authors' own files."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.bootstrap import percentile_interval, spread
from analysis.published import Released
from pipeline.errors import SourceError


def test_results_come_back_as_they_were_written_and_a_missing_group_is_left_out():
    made = Released(
        keys=("A", "B"),
        total=0.01,
        means=np.array([0.02, np.nan]),
        replicate_totals=np.array([0.01, 0.02]),
        replicate_means=np.array([[0.02, np.nan], [0.03, np.nan]]),
    )
    content = json.loads(made.to_json())
    assert content["point_estimate"] == {
        "Estimate_Total_weighted_mean": 0.01,
        "A_weighted_mean": 0.02,
        "A_relative_to_average": 2.0,
    }
    again = Released.from_json(made.to_json(), where="race.json")
    assert again.keys == ("A",)
    np.testing.assert_array_equal(again.replicate_relative, [[2.0], [1.5]])


@pytest.mark.parametrize("text", ['{"point_estimate": {"A', "[]", '{"point_estimate": {}, "bootstrap_statistics": []}'])
def test_a_file_that_is_no_released_result_is_named(text):
    with pytest.raises(SourceError, match=r"race\.json is not"):
        Released.from_json(text, where="race.json")


@pytest.mark.shared
def test_the_authors_files_give_their_published_levels_and_intervals(shared_data):
    published = pd.read_csv(shared_data / "paper" / "paper_results.csv", keep_default_na=False)
    checked = 0
    for file, rows in published.groupby("source_file"):
        released = Released.from_json((shared_data / "paper" / "plot_data" / file).read_text(), where=file)
        lower, upper = percentile_interval(released.replicate_relative, 95)
        table = pd.DataFrame({"relative": released.relative, "lower": lower, "upper": upper}, index=released.keys)
        table["sd"] = spread(released.replicate_relative)
        for _, row in rows.iterrows():
            # The published table shortens the names of groups; a level identifies its row.
            ours = table.iloc[np.argmin(np.abs(table["relative"] - row["relative_to_average"]))]
            np.testing.assert_allclose(
                ours,
                row[["relative_to_average", "ci_low_2_5", "ci_high_97_5", "sd_bootstrap"]].astype(float),
                rtol=1e-9,
            )
            checked += 1
    assert checked == len(published) == 251

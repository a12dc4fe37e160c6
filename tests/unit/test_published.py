"""The released form, there and back, and the authors' own files."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patrolscope.analysis.estimators.rates import PUBLISHED_FILES, RACES, TOTAL_KEY, analyses, group_labels
from patrolscope.analysis.stages.published import Released, read_released
from patrolscope.analysis.stages.result_tables import released_table
from patrolscope.pipeline.errors import SourceError
from tests.released import change, made_released, write_released


def test_results_are_read_as_they_were_written_without_missing_groups():
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


@pytest.mark.parametrize(
    "text", ['{"point_estimate": {"A', "[]", '{"point_estimate": {}, "bootstrap_statistics": {}}', "1"]
)
def test_a_file_that_is_no_released_result_is_named(text):
    with pytest.raises(SourceError, match=r"race\.json is not"):
        Released.from_json(text, where="race.json")


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(SourceError, match="is not text"):
        Released.from_json(b"\x93\x80\xff", where="race.json")


GOOD = Released(("A",), 0.01, np.array([0.02]), np.array([0.01, 0.02]), np.array([[0.02], [0.03]])).to_json()
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
documents = st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(
    st.one_of(
        st.binary(max_size=200),
        documents.map(json.dumps),
        st.tuples(st.integers(0, len(GOOD) - 1), st.text(max_size=3)).map(
            lambda at: GOOD[: at[0]] + at[1] + GOOD[at[0] + 1 :]
        ),
        st.tuples(documents, documents).map(
            lambda parts: json.dumps({"point_estimate": parts[0], "bootstrap_statistics": parts[1]})
        ),
    )
)
def test_any_content_is_a_released_result_or_one_error_with_the_name_of_its_file(content):
    try:
        found = Released.from_json(content, where="race.json")
    except SourceError as error:
        assert "race.json" in str(error)  # noqa: PT017
    else:
        assert 0 <= found.total <= 1


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, GOOD.replace("0.01", "1" + "0" * 5_000), GOOD.replace("0.01", "1e999")],
    ids=["nested too deeply", "number of 5,000 digits", "number beyond float64"],
)
def test_numbers_and_nesting_beyond_the_limits_of_json_are_refused(content):
    with pytest.raises(SourceError, match=r"race\.json"):
        Released.from_json(content, where="race.json")


WHITE = "Estimate_Total_Not_Hispanic_or_Latino_White_alone"


def first(content):
    return content["bootstrap_statistics"][0]


FAULTS = {
    "no overall mean": (
        lambda c: c["point_estimate"].pop(f"{TOTAL_KEY}_weighted_mean"),
        "point_estimate has no Estimate",
    ),
    "a value that is text": (
        lambda c: first(c).update({f"{WHITE}_weighted_mean": "0.01"}),
        "is '0.01'; expected a number",
    ),
    "a value that is not a number": (lambda c: first(c).update({f"{WHITE}_weighted_mean": float("nan")}), "is nan"),
    "an infinite value": (lambda c: c["point_estimate"].update({f"{WHITE}_weighted_mean": 10**400}), "is inf"),
    "a value that is true": (lambda c: first(c).update({f"{WHITE}_relative_to_average": True}), "is True"),
    "a value that is nothing": (lambda c: first(c).update({f"{WHITE}_relative_to_average": None}), "is None"),
    "a group in a replicate alone": (
        lambda c: first(c).update(X_weighted_mean=0.1),
        "statistics 1 has 'X_weighted_mean'",
    ),
    "another quantity": (lambda c: c["point_estimate"].update(White_median=0.1), "point_estimate has 'White_median'"),
    "percents": (lambda c: first(c).update({f"{TOTAL_KEY}_weighted_mean": 1.2}), "expected probabilities"),
    "a mean below 0": (lambda c: first(c).update({f"{WHITE}_weighted_mean": -0.1}), "expected probabilities"),
    "an overall mean of 0": (
        lambda c: first(c).update({f"{TOTAL_KEY}_weighted_mean": 0}),
        "is 0, but relative rates are present",
    ),
    "a relative rate that is not the quotient": (
        lambda c: first(c).update({f"{WHITE}_relative_to_average": 1.5}),
        f"{WHITE}_relative_to_average is not",
    ),
    "half of a group": (lambda c: first(c).pop(f"{WHITE}_relative_to_average"), f"{WHITE}_relative_to_average is not"),
    "replicates that are a mapping": (lambda c: c.update(bootstrap_statistics={"1": {}}), "is not a released result"),
    "a replicate that is a list": (lambda c: c["bootstrap_statistics"].append([1]), "is not a released result"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_with_a_fault_is_refused_in_one_line_that_names_file_and_fault(tmp_path, fault):
    edit, message = FAULTS[fault]
    change(write_released(tmp_path), "race", edit)
    with pytest.raises(SourceError) as caught:
        read_released(str(tmp_path))
    assert f"{tmp_path}/race_bootstraps.json" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_a_replicate_does_not_touch_is_missing_there_and_left_out_of_its_interval(tmp_path):
    def untouched(content):
        for kind in ("weighted_mean", "relative_to_average"):
            first(content).pop(f"{WHITE}_{kind}")

    change(write_released(tmp_path), "race", untouched)
    released = read_released(str(tmp_path))[0]["race"]
    assert np.isnan(released.replicate_means[0, 0])
    row = released_table("race", released, 95).query("group == 'White' and quantity == 'weighted_mean'").iloc[0]
    assert row["replicates"] == 19  # one does not touch the group
    touched = made_released("race").replicate_means[1:, 0]
    np.testing.assert_allclose([row["lower"], row["upper"]], np.percentile(touched, [2.5, 97.5]), rtol=1e-12)
    assert row["sd"] == pytest.approx(np.std(touched))


def test_results_without_replicates_have_estimates_and_no_intervals():
    table = released_table("race", made_released("race", replicates=0), 95)
    assert table["estimate"].notna().all()
    assert table[["lower", "upper", "sd"]].isna().all(axis=None)


def test_a_folder_is_read_in_the_papers_order_and_what_it_lacks_is_named(tmp_path):
    released, absent = read_released(str(write_released(tmp_path, "zone", "race")))
    assert list(released) == ["race", "zone"]
    assert absent == [file for name, file in PUBLISHED_FILES.items() if name not in released]
    np.testing.assert_array_equal(released["zone"].means, made_released("zone").means)


def test_a_folder_without_results_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere is not a folder; expected one with"):
        read_released(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"none of the 9 result files .*; give a folder"):
        read_released(str(tmp_path))
    write_released(tmp_path / "estimates", "race")
    with pytest.raises(SourceError, match=r"did you mean .*/estimates\?"):
        read_released(str(tmp_path))


def test_another_analysis_under_the_name_of_a_file_is_noticed(tmp_path):
    (write_released(tmp_path) / PUBLISHED_FILES["zone"]).write_text(made_released("borough").to_json())
    with pytest.raises(
        SourceError,
        match=r"zone_bootstraps\.json has the groups '', 'Bronx', .*check that this is the file",
    ):
        read_released(str(tmp_path))


@pytest.mark.shared
def test_our_names_of_files_and_groups_are_the_published_ones(shared_data):
    folder = shared_data / "paper" / "plot_data"
    assert sorted(PUBLISHED_FILES.values()) == sorted(path.name for path in folder.iterdir())
    released, absent = read_released(str(folder))
    assert absent == []
    for name, one in released.items():
        if labels := group_labels(name):
            assert set(one.keys) == set(labels), name
    areas = made_areas()
    for analysis in analyses(areas, np.full(len(areas), 7))[0]:
        published = set(released[analysis.name].keys)
        assert set(analysis.keys) <= published, analysis.name
        labels = group_labels(analysis.name)
        assert analysis.labels == tuple(labels.get(key, key) for key in analysis.keys)


@pytest.mark.shared
def test_the_authors_files_are_written_back_as_they_were_read(shared_data):
    for file in (shared_data / "paper" / "plot_data").iterdir():
        text = file.read_text()
        again = json.loads(Released.from_json(text, where=file.name).to_json())
        assert again == json.loads(text), file.name


def made_areas():
    """Areas that give every analysis a group in each of its kinds."""
    number = np.arange(40)
    return pd.DataFrame(
        {
            "area": number.astype(str),
            "neighborhood": np.where(number % 2, "Gramercy", "Rosedale"),
            "borough": np.where(number % 2, "Manhattan", "Queens"),
            "zone": np.array(["R", "R", "C", "M"])[number % 4],
            "density_per_sqmi": number * 10.0,
            "income_usd": number * 1000.0,
            "persons": 100.0,
            **dict.fromkeys(RACES, 25.0),
        }
    )

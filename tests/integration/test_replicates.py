"""Replicates on a real cluster: they do not depend on how the data lie, outlive a killed run, and can be extended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from patrolscope.analysis.stages.published import read_released
from patrolscope.analysis.stages.replicates import REPLICATE
from patrolscope.analysis.stages.reproduce import tabulate
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.errors import SourceError
from tests.integration.studies import TO_ESTIMATES, branch, table
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
ALL_SCHEMES = {
    "bootstrap": ["image", "ride", "day", "area"],
    "predictions": ["two_class", "station_adjusted"],
    "resample_calibration": True,
    "census_error": False,  # the area bootstrap has none, and is compared with the others
}
KEY = ["analysis", "key", "replicate"]


@pytest.fixture(scope="module")
def all_schemes(simulated, client):
    study = branch(simulated, "all-schemes", estimate={**ALL_SCHEMES, "replicates": 130})
    run_stages(study, TO_ESTIMATES, lambda: client)
    return study


def replicates(study) -> dict[str, pd.DataFrame]:
    folders = sorted(path.name for path in Path(study.path("replicates")).iterdir())
    return {name: table(study, f"replicates/{name}", KEY) for name in folders}


def test_every_unit_and_prediction_has_its_own_replicates_around_the_same_estimates(all_schemes):
    summary = json.loads(all_schemes.read_bytes("estimates/summary.json"))
    schemes = [scheme for scheme in summary["schemes"] if scheme["preset"] != "published"]
    made = {(scheme["prediction"], scheme["unit"]): scheme for scheme in schemes}
    assert len(summary["schemes"]) == len(schemes) + 1
    assert len(made) == 8
    assert {scheme["replicates"] for scheme in made.values()} == {130}
    for prediction in ("two_class", "station_adjusted"):
        tables = {
            unit: pd.read_csv(all_schemes.path(made[prediction, unit]["folder"], "tables.csv"))
            for unit in ALL_SCHEMES["bootstrap"]
        }
        for unit, one in tables.items():
            pd.testing.assert_series_equal(one["estimate"], tables["image"]["estimate"], obj=unit)
        # Races are estimated from nearly all images: there, the mean of the replicates is close to the estimate.
        race = {unit: one[one["analysis"] == "race"] for unit, one in tables.items()}
        assert race.pop("day")[["lower", "upper", "sd"]].isna().all(axis=None)  # fewer than five days
        assert made[prediction, "day"]["without_intervals"] == "3 days; an interval needs at least 5"
        for unit, one in race.items():
            assert one["estimate"].between(one["lower"] - one["sd"], one["upper"] + one["sd"]).all(), unit
        # Gamma intervals, for few positive images of the two classes, are wider than those from resampling images.
        if prediction == "station_adjusted":
            assert race["area"]["sd"].mean() > race["image"]["sd"].mean()
        else:
            assert set(race["image"]["interval_method"]) == {"gamma"}
            assert set(race["area"]["interval_method"]) == {"percentile"}
    two, adjusted = (
        pd.read_csv(all_schemes.path(made[prediction, "image"]["folder"], "tables.csv")).set_index(
            ["analysis", "key", "quantity"]
        )["sd"]
        for prediction in ("two_class", "station_adjusted")
    )
    # The calibration is redrawn for the classes alone, and adds its own spread to the mean level.
    everyone = ("race", "Estimate_Total", "weighted_mean")
    assert two[everyone] > 1.2 * adjusted[everyone]


def test_a_group_has_an_interval_when_five_rides_days_or_areas_touch_it(all_schemes):
    """Units counted on the annotated images in plain pandas: those with an image where someone of a group lives."""
    images = table(all_schemes, "annotated", ["image_ref"])
    rules, areas = all_schemes.settings.estimate, all_schemes.read("areas/areas.parquet").set_index("area")
    analyzed = (images["split"] == rules.split) & images["processed"]
    images = images[analyzed & (images["captured_local"] >= pd.Timestamp(rules.first_day)) & images["area"].notna()]
    lived_in = images[images["area"].map(areas["persons"]) > 0]
    place = lived_in["area"].map(areas["neighborhood"])
    unit_of = {"ride": lived_in["ride_id"], "day": lived_in["captured_local"].dt.date, "area": lived_in["area"]}
    unit_of["image"] = lived_in["image_ref"]
    for scheme in json.loads(all_schemes.read_bytes("estimates/summary.json"))["schemes"]:
        unit, folder = scheme["unit"], scheme["folder"]
        rows = pd.read_csv(all_schemes.path(folder, "tables.csv"))
        rows = rows[rows["analysis"] == "neighborhood"].set_index("key")
        expected = unit_of[unit].groupby(place).nunique()
        expected["Estimate_Total"] = unit_of[unit].nunique()
        assert rows["resampling_units"].to_dict() == expected[rows.index].to_dict()
        few = (rows["resampling_units"] < 5) & (unit != "image")
        assert unit == "image" or few.sum() > 0
        columns = ["lower", "upper", "sd"]
        assert rows.loc[few, columns].isna().all(axis=None)
        assert rows.loc[~few, columns].notna().all(axis=None)
        assert (rows.loc[few, "replicates"] == 0).all()
        assert rows["estimate"].notna().all()
        every = pd.read_csv(all_schemes.path(folder, "intervals.csv"))
        every = every[every["analysis"] == "neighborhood"].set_index("key")
        assert every.loc[rows.index[few].unique(), ["lower", "upper"]].isna().all(axis=None)
        # Who reads the released form and takes percentiles of it finds no interval of them, either.
        again = (
            tabulate(read_released(all_schemes.path(folder))[0]).query("analysis == 'neighborhood'").set_index("key")
        )
        assert set(again.index[again["lower"].isna()]) == set(rows.index[few])


def test_further_schemes_are_in_the_released_form_in_folders_of_their_own(all_schemes):
    for folder in ("estimates", "estimates/ride", "estimates/area-station_adjusted"):
        results, absent = read_released(all_schemes.path(folder))
        assert not absent
        assert results["race"].replicate_means.shape == (130, 4)


def test_every_method_has_its_intervals(all_schemes):
    rows = pd.read_csv(all_schemes.path("estimates/ride/intervals.csv"))
    assert set(rows["method"]) == {"percentile", "basic", "normal", "bca", "gamma"}
    race = rows[(rows["analysis"] == "race") & (rows["quantity"] == "relative_to_average")]
    race = race[race["method"] != "gamma"]
    assert race[["lower", "upper"]].notna().all(axis=None)
    wide = race.assign(width=race["upper"] - race["lower"]).pivot_table(index="key", columns="method", values="width")
    assert (wide.max(axis=1) < 2 * wide.min(axis=1)).all()
    table_rows = pd.read_csv(all_schemes.path("estimates/ride/tables.csv"))
    named = {"left_on": [*KEY[:2], "quantity", "method"], "right_on": [*KEY[:2], "quantity", "interval_method"]}
    chosen = rows.merge(table_rows, **named)
    assert len(chosen) == table_rows["lower"].notna().sum()
    assert set(chosen["method"]) == {"gamma"}  # no group has 200 effective positives
    assert chosen["lower_x"].equals(chosen["lower_y"])


def test_replicates_do_not_depend_on_the_files_of_the_images(simulated, all_schemes, client):
    other = branch(simulated, "sliced", ingest={"slice_rows": 4_000}, estimate={**ALL_SCHEMES, "replicates": 130})
    run_stages(other, TO_ESTIMATES, lambda: client)
    assert len(other.files("annotated")) > 2 * len(all_schemes.files("annotated"))
    for name, expected in replicates(all_schemes).items():
        pd.testing.assert_frame_equal(replicates(other)[name], expected, obj=name)
    for file in ("tables.csv", "intervals.csv"):
        for folder in ("estimates", "estimates/ride"):
            assert other.read_bytes(folder, file) == all_schemes.read_bytes(folder, file)


def test_more_replicates_keep_the_first_ones(simulated, all_schemes, client):
    study = branch(simulated, "growing", estimate={**ALL_SCHEMES, "replicates": 100})
    run_stages(study, TO_ESTIMATES, lambda: client)
    blocks = {file: Path(study.path(file)).stat().st_mtime_ns for file in study.files("replicates")}
    content = study.settings.model_dump(mode="json")
    content["estimate"]["replicates"] = 130
    grown = study.__class__(study.root, study.settings.__class__.model_validate(content))
    outcomes = {outcome.stage: outcome for outcome in run_stages(grown, TO_ESTIMATES, lambda: client)}
    assert outcomes["counts"].done_now == outcomes["unit_counts"].done_now == 0
    assert outcomes["replicates"].done_now == 8
    assert all(Path(study.path(file)).stat().st_mtime_ns == time_ns for file, time_ns in blocks.items())
    for name, expected in replicates(all_schemes).items():
        pd.testing.assert_frame_equal(replicates(grown)[name], expected, obj=name)


def test_another_scheme_keeps_the_replicates_of_the_others(simulated, client):
    study = branch(simulated, "another", estimate={"bootstrap": ["image", "ride"], "replicates": 100})
    run_stages(study, TO_ESTIMATES, lambda: client)
    content = study.settings.model_dump(mode="json")
    content["estimate"] |= {"bootstrap": ["image", "ride", "day"], "predictions": ["two_class", "station_adjusted"]}
    more = study.__class__(study.root, study.settings.__class__.model_validate(content))
    outcomes = {outcome.stage: outcome for outcome in run_stages(more, TO_ESTIMATES, lambda: client)}
    # One row per image is needed now; the other counts come out the same, and so what depends on them stays.
    assert outcomes["counts"].done_now == len(study.files("annotated"))
    assert outcomes["unit_counts"].done_now == 1
    assert (outcomes["replicates"].shards, outcomes["replicates"].done_now) == (7, 4)


def test_a_run_killed_during_its_replicates_resumes_with_the_next_block(simulated, all_schemes, client):
    study = branch(
        simulated,
        "killed-replicates",
        estimate={**ALL_SCHEMES, "replicates": 60_000, "bootstrap": ["ride"], "predictions": ["two_class"]},
    )
    run_stages(study, TO_ESTIMATES[:-2], lambda: client)
    command = [sys.executable, "-m", "patrolscope", "estimate", "--study", study.root]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(study.records("replicates")) >= 3, process=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = study.records("replicates")
    assert 3 <= len(finished) < 600
    content = study.settings.model_dump(mode="json")
    content["estimate"]["replicates"] = 100 * (max(int(name.rsplit("-")[-1]) for name in finished) // 100 + 2)
    shorter = study.__class__(study.root, study.settings.__class__.model_validate(content))
    (outcome,) = run_stages(shorter, [REPLICATE], lambda: client)
    assert outcome.done_now == outcome.shards - len(finished)
    held = replicates(shorter)["ride"]
    expected = replicates(all_schemes)["ride"]
    expected = expected[expected["replicate"] < 100].reset_index(drop=True)
    got = held[held["replicate"] < 100].reset_index(drop=True)
    pd.testing.assert_frame_equal(got, expected)
    assert not held["weighted_mean"][held["key"] == "Estimate_Total"].isna().any()


def test_a_study_without_stations_skips_the_station_adjusted_scheme_with_the_reason(simulated, client):
    study = branch(
        simulated, "no-stations", layers={"stations": None}, estimate={"predictions": ["station_adjusted", "two_class"]}
    )
    run_stages(study, TO_ESTIMATES, lambda: client)
    summary = json.loads(study.read_bytes("estimates/summary.json"))
    assert "no stations" in summary["schemes_skipped"]["ride-station_adjusted"]
    assert [scheme["prediction"] for scheme in summary["schemes"]] == ["two_class", "two_class"]
    alone = branch(simulated, "alone", layers={"stations": None}, estimate={"predictions": ["station_adjusted"]})
    with pytest.raises(SourceError, match=r"no stations.*two_class under estimate\.predictions"):
        run_stages(alone, TO_ESTIMATES, lambda: client)

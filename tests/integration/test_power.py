"""The command `power` on a finished study, and what it refuses."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from patrolscope import cli
from patrolscope.analysis.estimators.power import COLUMNS
from patrolscope.analysis.stages import power
from patrolscope.analysis.stages.results import read_results
from patrolscope.pipeline.study.store import open_study


def invoke(root, *arguments):
    result = CliRunner().invoke(cli.app, ["power", "--study", str(root), *arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def study(finished, tmp_path):
    shutil.copytree(finished.base, tmp_path / "study", copy_function=os.link)
    return open_study(tmp_path / "study")


def read_power(study):
    return pd.read_csv(io.BytesIO(study.read_bytes("power", "power.csv")), keep_default_na=False, na_values=[""])


def test_a_finished_study_gets_a_table_a_figure_and_sentences(study):
    code, output = invoke(study.root)
    assert code == 0, output
    table = read_power(study)
    assert list(table.columns) == list(COLUMNS)
    assert (table["analysis"].value_counts()[["race", "borough"]] == [6, 10]).all()
    # Positives and ratios are those of the estimates.
    estimates = read_results(study)
    for analysis in ("borough", "neighborhood"):
        groups = estimates.groups(analysis).set_index("group")
        rows = table[table["analysis"] == analysis].set_index("group")
        assert set(rows.index) <= set(groups.index)
        np.testing.assert_array_equal(rows["positives"], groups.loc[rows.index, "positives"])
        if analysis == "neighborhood":
            assert len(rows) == len(groups)
            np.testing.assert_allclose(rows["ratio"], groups.loc[rows.index, "estimate"])
    assert Image.open(io.BytesIO(study.read_bytes("power", "power.png"))).size[0] > 1_000
    images = int(estimates.summary["images"]["analyzed"])
    assert f"{images:,} analyzed images of " in output
    assert "Two-sided tests at 5%, with a power of 80%." in output
    assert "Brooklyn / Queens" in output or "Queens / Brooklyn" in output
    assert "validation images do not affect whether a ratio is detected." in output
    assert "table and figure: " in output


def test_a_larger_ratio_needs_fewer_images_and_more_power_more(study):
    needed = []
    for options in ((), ("--ratio", "1.5"), ("--power", "95")):
        assert invoke(study.root, *options)[0] == 0
        needed.append(read_power(study)["times_images"].dropna())
    expected = {1: np.log(1.2) / np.log(1.5), 2: (1.959964 + 1.644854) / (1.959964 + 0.841621)}
    for number, factor in expected.items():
        assert len(needed[number]) == len(needed[0]) > 20
        np.testing.assert_allclose(needed[number] / needed[0], factor**2, rtol=1e-5)


def test_the_same_study_gives_the_same_bytes(study):
    written = []
    for _ in range(2):
        assert invoke(study.root)[0] == 0
        written.append([study.read_bytes("power", name) for name in ("power.csv", "power.png")])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ratio", "1"), "a ratio of 1 cannot be detected; expected a positive number other than 1"),
        (("--ratio", "0"), "a ratio of 0 cannot be detected"),
        (("--ratio", "-1.2"), "a ratio of -1.2 cannot be detected"),
        (("--power", "0"), "no test has a power of 0%; expected more than its level of 5%, and less than 100%"),
        (("--power", "100"), "a power of 100%"),
    ],
)
def test_impossible_options_are_refused(study, options, message):
    code, output = invoke(study.root, *options)
    assert (code, message in output) == (2, True)
    assert not study.exists("power", "power.csv")


def test_a_study_that_has_not_run_is_refused_with_the_command_to_run(simulated):
    code, output = invoke(simulated.root)
    assert (code, f"run `patrolscope run --study {simulated.root}`" in output) == (2, True)


def test_counts_of_other_settings_are_refused(study):
    path = Path(study.base, "study.yaml")
    text = path.read_text()
    path.unlink()  # a link to that of other tests
    path.write_text(text.replace("threshold: 0.770508", "threshold: 0.6"))
    code, output = invoke(study.root)
    assert code == 2
    assert "are not counted with its present settings and files (counts" in output
    assert "patrolscope run --study" in output


def test_a_study_without_a_positive_image_is_refused(study, monkeypatch):
    inputs, *others = power.bootstrap_inputs(study)
    none = np.column_stack([inputs.inside.sum(axis=1), np.zeros(len(inputs.inside), dtype=np.int64)])
    monkeypatch.setattr(power, "bootstrap_inputs", lambda study: (replace(inputs, inside=none), *others))
    code, output = invoke(study.root)
    assert (code, "is positive, so the variance of its rates is unknown; expected at least one" in output) == (2, True)


def test_a_study_of_one_ride_is_refused(study, monkeypatch):
    rides = power.load_unit_counts(study, "ride")
    monkeypatch.setattr(power, "load_unit_counts", lambda study, unit: replace(rides, number=1))
    code, output = invoke(study.root)
    assert (code, ": 1; expected at least 5, as images of one ride are not independent" in output) == (2, True)

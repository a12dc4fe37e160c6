"""A release of a whole simulated study."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from patrolscope import cli
from patrolscope.analysis.stages.published import Released
from patrolscope.pipeline.engine.run import run_stages
from tests.attack import Attacker
from tests.integration.studies import TO_ESTIMATES, branch

pytestmark = pytest.mark.slow


def invoke(*arguments: str):
    result = CliRunner().invoke(cli.app, ["release", *arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "out"
    code, output = invoke("--study", finished.root, "--out", str(out), "--minimum-images", "20")
    assert code == 0, output
    assert "areas have images, but fewer than 20, and are withheld; complementary" in output
    return out


def test_areas_with_few_images_are_withheld_and_the_others_equal_the_studys(finished, folder):
    ours = pd.read_csv(finished.path("estimates/areas.csv"), dtype={"area": str})
    released = pd.read_csv(folder / "areas.csv", dtype={"area": str})
    assert released["area"].tolist() == ours["area"].tolist()
    assert released.loc[ours["images"].between(1, 19), "withheld"].all()
    shown = ~released["withheld"]
    assert shown.sum() > 300
    assert (released.loc[shown, "images"] == ours.loc[shown, "images"]).all()
    assert (released.loc[shown, "positives"] == ours.loc[shown, "positives"]).all()
    assert released.loc[~shown, ["images", "positives", "deployment_rate", "relative_to_average"]].isna().all(axis=None)


def test_withheld_areas_of_a_whole_study_withstand_the_attacker(folder):
    attacker = Attacker(folder)
    assert attacker.hidden.sum() > 100
    assert attacker.determined() == []
    sample = np.arange(attacker.hidden.sum()) % (attacker.hidden.sum() // 5) == 0  # a linear program takes 0.1 s
    images, shares = attacker.image_bounds(sample), attacker.share_bounds(sample)
    assert len(images) >= 5
    assert (images["high"] - images["low"] >= 19 * 0.999).all()
    assert (shares["high"] - shares["low"] >= 0.999 / 20).all()


def test_no_file_contains_an_image_ride_time_or_path(finished, folder):
    metadata = finished.read(finished.files("metadata")[0])
    refs = metadata["image_ref"].str.split("/")
    rides, names = set(refs.str[1]), set(refs.str[2].head(2_000))
    forbidden = [b"ride/", b".jpg", finished.base.encode(), Path.home().as_posix().encode(), b"image_ref", b"timestamp"]
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not [word for word in forbidden if word in content], path.name
        text = content.decode()
        assert not rides & set(re.findall(r"[0-9a-f]{32}", text)), path.name
        assert not [name for name in names if name in text]
        assert not re.search(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\b16\d{11}\b", text), path.name


def test_settings_contain_no_path_and_no_seed(folder):
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    assert not {"cache", "sources"} & set(settings)
    assert "seed" not in settings["estimate"]
    assert settings["estimate"]["threshold"] == 0.770508
    assert all(entry is None or isinstance(entry, str) for entry in settings["layers"].values())


def test_a_release_has_as_many_replicates_as_the_study_and_states_their_source(finished, folder):
    released = Released.from_json((folder / "boro_bootstraps.json").read_bytes(), where="boro")
    studys = Released.from_json(finished.read_bytes("estimates/boro_bootstraps.json"), where="boro")
    assert released.replicate_means.shape[0] == studys.replicate_means.shape[0]
    common = [studys.keys.index(key) for key in released.keys]
    assert not np.isclose(released.replicate_means, studys.replicate_means[:, common], atol=1e-5).all(axis=0).any()
    assert json.loads((folder / "summary.json").read_text())["drawn"] == "single images of the released tables"
    assert "are generated from these tables alone" in (folder / "README.md").read_text()


def test_replicates_of_an_area_bootstrap_carry_only_its_resampled_calibration(finished, client, folder, tmp_path):
    other = branch(finished, "areas", estimate={"bootstrap": ["area"], "resample_calibration": False})
    run_stages(other, TO_ESTIMATES, lambda: client)
    assert invoke("--study", other.root, "--out", str(tmp_path), "--minimum-images", "20")[0] == 0
    assert json.loads((tmp_path / "summary.json").read_text())["drawn"] == "single images of the released tables"
    resampled, fixed = (pd.read_csv(path / "groups.csv") for path in (folder, tmp_path))
    average = (fixed["key"] == "Estimate_Total").to_numpy()
    assert (resampled["key"] == fixed["key"]).all()
    assert (resampled["sd"] > 1.2 * fixed["sd"])[average].all()


def test_a_second_release_replaces_the_first_with_the_same_bytes(finished, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert invoke("--study", finished.root, "--out", str(folder), "--minimum-images", "20")[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_study_without_estimates_is_refused(simulated, tmp_path):
    code, output = invoke("--study", simulated.root, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "has no estimates/area_class_counts.parquet" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("minimum", ["0", "-3"])
def test_a_minimum_below_1_is_refused(finished, tmp_path, minimum):
    code, output = invoke("--study", finished.root, "--out", str(tmp_path / "out"), "--minimum-images", minimum)
    assert code == 2
    assert "expected at least 1, which withholds nothing" in output


def test_a_minimum_that_no_area_reaches_is_refused(finished, tmp_path):
    code, output = invoke("--study", finished.root, "--out", str(tmp_path / "out"), "--minimum-images", "1000000")
    assert code == 2
    assert "no area has 1000000 images" in output


def test_a_folder_with_other_files_is_refused_unless_forced(finished, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ("--study", finished.root, "--out", str(tmp_path), "--minimum-images", "1")
    code, output = invoke(*arguments)
    assert (code, "not an earlier result of this command" in output) == (2, True)
    assert invoke(*arguments, "--force")[0] == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "summary.json").read_text())["areas"]["withheld"] == 0


def test_stale_estimates_are_refused_with_the_command_to_run(finished, tmp_path):
    old = branch(finished, "other-seed", estimate={"seed": 998_877})
    for folder in ("estimates", "areas", "manifest"):
        shutil.copytree(finished.path(folder), old.path(folder))
    code, output = invoke("--study", old.root, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "expected those of its study.yaml" in output
    assert "run `patrolscope run --study" in output
    assert not (tmp_path / "out").exists()


def test_a_study_with_station_adjusted_rates_only_is_refused_with_the_setting_to_change(finished, client, tmp_path):
    other = branch(finished, "adjusted-alone", estimate={"predictions": ["station_adjusted"], "replicates": 2})
    for folder in Path(finished.base).iterdir():
        if folder.is_dir() and not other.exists(folder.name):
            shutil.copytree(folder, other.path(folder.name))
    run_stages(other, TO_ESTIMATES, lambda: client)
    code, output = invoke("--study", other.root, "--out", str(tmp_path / "out"))
    assert (code, "put two_class under estimate.predictions" in output.replace("\n", " ")) == (2, True)
    assert not (tmp_path / "out").exists()

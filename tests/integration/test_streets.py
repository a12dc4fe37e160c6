"""A study of rendered scenes, from images to estimates, with the shipped detector."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("torch")

from patrolscope.analysis.stages.street_scenes import quality_on_scenes, seen_by_detector
from patrolscope.dashboards.stages import STREETS
from patrolscope.pipeline.detect.stages import INDEX, PREFIXES, WEIGHTS, detect_stage
from patrolscope.pipeline.detect.weights import street_scenes
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.errors import WeightsError
from patrolscope.pipeline.intake.stages import ARRANGE, READ, SET_ASIDE
from patrolscope.pipeline.matching.stages import KEYS, MATCH
from patrolscope.pipeline.simulation.arguments import read_arguments
from patrolscope.pipeline.simulation.files import BOXES_SHOWN_FILE, IMAGES_SHOWN_FILE, METADATA_FOLDER
from patrolscope.pipeline.simulation.scene_images import IMAGES_FOLDER
from patrolscope.pipeline.simulation.scenes.photograph import photograph
from patrolscope.pipeline.simulation.simulate import simulate
from patrolscope.pipeline.simulation.stages import SIMULATE_CITY, SIMULATE_DAYS, SIMULATE_LABELED, SIMULATE_SHOWN

IMAGES = 130


@pytest.fixture(scope="module")
def study(tmp_path_factory, client):
    """Study of 130 scenes on two days, with labeled sets of 60 and 40."""
    return simulate(
        str(tmp_path_factory.mktemp("streets") / "study"),
        images=IMAGES,
        client=lambda: client,
        scenes=True,
        validation_images=60,
        test_images=40,
    )


@pytest.fixture(scope="module")
def detected(study, client):
    """The study after processing by the detector."""
    run_stages(
        study, [READ, SET_ASIDE, ARRANGE, WEIGHTS, PREFIXES, INDEX, detect_stage, KEYS, MATCH, STREETS], lambda: client
    )
    return study


def metadata(study):
    files = sorted(Path(study.path(METADATA_FOLDER)).glob("*.csv"))
    return pd.concat([pd.read_csv(file) for file in files]).drop_duplicates("image_ref")


def test_every_row_of_metadata_has_an_image_that_follows_from_its_name(study):
    rows = metadata(study)
    assert len(rows) == IMAGES
    shown = pd.read_csv(study.path(IMAGES_SHOWN_FILE)).set_index("image_ref")["ground_truth"]
    assert sorted(shown.index) == sorted(rows["image_ref"])
    for ref in rows["image_ref"].iloc[::13]:
        content = study.read_bytes(IMAGES_FOLDER, ref)
        expected = photograph(read_arguments(study).seed, ref, police=bool(shown[ref]))
        assert content == expected.jpeg
        assert Image.open(io.BytesIO(content)).size == (640, 360)
    images = list(Path(study.path(IMAGES_FOLDER)).rglob("*.jpg"))
    assert len(images) == IMAGES


def test_exactly_the_images_that_show_police_have_vehicle_boxes(study):
    shown = pd.read_csv(study.path(IMAGES_SHOWN_FILE))
    boxes = pd.read_csv(study.path(BOXES_SHOWN_FILE))
    assert set(boxes.loc[boxes["kind"] == 1, "image_ref"]) == set(shown.loc[shown["ground_truth"] == 1, "image_ref"])
    assert 0.03 < shown["ground_truth"].mean() < 0.4
    assert (boxes["x1"] < boxes["x2"]).all()
    assert boxes["x2"].max() <= 640


def test_labeled_sets_have_scores_of_the_shipped_detector(study):
    for name, images in (("validation", 60), ("test", 40)):
        rows = pd.read_csv(study.path(f"source/{name}.csv"))
        assert list(rows) == ["ground_truth", "Model_predicted_score", "lat", "lng", "timestamp"]
        assert len(rows) == images
        assert 0 < rows["ground_truth"].sum() < images
        assert rows["Model_predicted_score"].dropna().between(0.01, 1).all()
        shows = rows["ground_truth"] == 1
        score = rows["Model_predicted_score"].fillna(0)
        assert score[shows].mean() > score[~shows].mean()


def test_the_same_arguments_give_the_same_study_in_one_process(study, tmp_path):
    from patrolscope.pipeline.study.store import create_study

    other = create_study(tmp_path / "again", study.settings)
    other.write_bytes(study.read_bytes("simulation.json"), "simulation.json")
    for stage in (SIMULATE_CITY, SIMULATE_LABELED, SIMULATE_DAYS, SIMULATE_SHOWN):
        for shard in reversed(stage.plan(other)):
            stage.finish(other, shard)
    for name in (IMAGES_SHOWN_FILE, BOXES_SHOWN_FILE, "truth/truth.json", "source/test.csv"):
        if name.endswith("test.csv"):
            # The last digit of a score can depend on the number of threads.
            a, b = (pd.read_csv(folder.path(name))["Model_predicted_score"] for folder in (study, other))
            np.testing.assert_allclose(a, b, atol=1e-4)
        else:
            assert other.read_bytes(name) == study.read_bytes(name), name


def test_the_detector_detects_police_in_the_scenes_and_the_figure_reports_it(detected):
    seen = seen_by_detector(detected)
    assert len(seen) == IMAGES
    found = quality_on_scenes(seen)
    facts = detected.record(STREETS.name).facts
    assert facts["images"] == IMAGES
    assert facts["ap50"] == round(found["ap50"], 3)
    # Lower than in the model card, since there are few positive images.
    assert found["ap50"] > 0.6
    assert found["image_auc"] > 0.85
    with Image.open(detected.path("figures/streets.png")) as sheet:
        assert sheet.size[0] > 1_500


def test_the_shipped_weights_are_small_and_documented():
    checkpoint = read_checkpoint(street_scenes.WEIGHTS)
    assert checkpoint.class_names == ("police officer", "police vehicle")
    assert street_scenes.WEIGHTS.stat().st_size < 2_000_000
    card = street_scenes.WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    for number in ("ap50", "ap", "image_auc", "image_ap"):
        assert f"{street_scenes.facts()['test']['police vehicle'][number]:.3f}" in card


def test_without_torch_the_error_gives_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"not installed: torch, .* \(pip install 'patrolscope\[detect\]'\)"):
        simulate(str(tmp_path / "out"), images=5, client=lambda: None, scenes=True)

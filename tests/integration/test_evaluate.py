"""`patrolscope evaluate` on a simulated study: files, figures, choices, restarts, and what it refuses."""

import io
import json
import os
import shutil
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

from patrolscope import cli
from patrolscope.analysis.stages.evaluate import evaluate_study, locate
from patrolscope.analysis.stages.ground_truth import labeled_images, labeled_stage
from patrolscope.dashboards.charts.evaluation import draw_evaluation
from patrolscope.dashboards.stages import evaluate_stage
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.errors import ContractError, SourceError, StageNotRunError
from patrolscope.pipeline.matching.stages import load_reference_layers
from patrolscope.pipeline.study.store import create_study, open_study
from tests.integration.studies import table

FIGURES = ["roc", "precision_recall", "calibration", "subgroups_validation", "subgroups_test"]
TABLES = ["evaluation.csv", "curves.csv", "calibration.csv", "summary.json"]
OPTIONS = {"threshold": "study", "replicates": 20, "labels": None}


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory):
    """Copy the finished study, because an evaluation adds to its folder and ledger."""
    folder = tmp_path_factory.mktemp("evaluated") / "study"
    shutil.copytree(finished.base, folder)
    return open_study(folder)


@pytest.fixture(scope="module")
def images(study):
    return table(study, "annotated", ["source", "source_row"])


@pytest.fixture(scope="module")
def evaluated(study, client):
    run_stages(study, [evaluate_stage(**OPTIONS)], lambda: client)
    return study


def evaluate(study, client, *arguments):
    options = ("--study", study.base, "--cluster", client.scheduler.address, "--replicates", "20")
    result = CliRunner().invoke(cli.app, ["evaluate", *options, *arguments])
    return result.exit_code, result.output


def read(study, name):
    return pd.read_csv(study.path("evaluation", name))


def labels_of(images: pd.DataFrame, path) -> str:
    """Write labels for every image with a high score, and for some others."""
    chosen = pd.concat([images[images["conf"] > 0.7], images.iloc[::40]]).drop_duplicates("image_ref")
    truth = (chosen["conf"].fillna(0) > 0.85).astype(int)
    pd.DataFrame({"image_ref": chosen["image_ref"], "ground_truth": truth}).to_csv(path, index=False)
    return str(path)


def test_evaluation_contains_both_sets_and_all_their_subgroups(evaluated):
    quality = read(evaluated, "evaluation.csv")
    columns = "set subgroup side quantity estimate lower upper images labeled_positives replicates missing"
    assert quality.columns.tolist() == columns.split()
    assert not quality.duplicated(["set", "subgroup", "side", "quantity"]).any()
    assert len(quality) == 2 * (1 + 2 * 14) * 5
    known = quality.dropna(subset="estimate")
    assert ((known["lower"] >= 0) & (known["upper"] <= 1)).all()
    assert (known["lower"] <= known["upper"]).all()
    assert (quality["estimate"].isna() == quality["missing"].notna()).all()
    before = quality[(quality["subgroup"] == "Phase 1") & (quality["side"] == "false")]  # no image is that early
    assert before["missing"].unique().tolist() == ["no image"]


def test_metrics_of_whole_sets_equal_those_of_scikit_learn(evaluated):
    quality = read(evaluated, "evaluation.csv")
    whole = quality[quality["side"] == "all"].set_index(["set", "quantity"])
    for name in ("validation", "test"):
        labeled = pd.read_csv(evaluated.path("source", f"{name}.csv"))
        truth, score = labeled["ground_truth"], labeled["Model_predicted_score"].fillna(0)
        assert whole.loc[(name, "auc"), "estimate"] == pytest.approx(roc_auc_score(truth, score))
        assert whole.loc[(name, "average_precision"), "estimate"] == pytest.approx(
            average_precision_score(truth, score)
        )
        assert whole.loc[(name, "auc"), "images"] == len(labeled)
        assert whole.loc[(name, "auc"), "labeled_positives"] == truth.sum()


def test_sides_and_left_out_images_add_up_to_the_set(evaluated):
    summary = json.loads(evaluated.read_bytes("evaluation/summary.json"))
    sides = read(evaluated, "evaluation.csv").query("quantity == 'auc' and side != 'all'")
    for (name, subgroup), part in sides.groupby(["set", "subgroup"]):
        left_out = summary["sets"][name]["subgroups"][subgroup]["left_out"]
        assert part["images"].sum() + left_out == summary["sets"][name]["images"], subgroup


def test_labeled_images_get_the_same_columns_as_in_annotated(study, images):
    around = load_reference_layers(study, study.record("layers").fingerprint)
    some = images.iloc[::97].reset_index(drop=True)
    labeled = some.assign(ground_truth=0, score=some["conf"])[
        ["ground_truth", "score", "captured_at_utc", "lat", "lng"]
    ]
    located = locate(labeled, around, study.settings)
    columns = ["area", "borough", "phase", "weekend", "nighttime", "station_distance_ft"]
    columns += [f"felony_{hours}h_distance_ft" for hours in (1, 3, 6)]
    pd.testing.assert_frame_equal(located[columns], some[columns])


def test_figures_are_drawn_with_their_texts(evaluated):
    for name in FIGURES:
        assert imread(io.BytesIO(evaluated.read_bytes("evaluation", f"{name}.png")))[..., :3].std() > 0.05
        content = evaluated.read_bytes("evaluation", f"{name}.svg")
        text = " ".join(
            "".join(node.itertext()) for node in ET.fromstring(content).iter("{http://www.w3.org/2000/svg}text")
        )
        assert "Simulated:" in text, name
        assert "95% interval" in text, name
        assert len(content) < 150_000
    written = evaluated.read_bytes("evaluation", "subgroups_test.svg").decode()
    assert "no estimate" in written
    assert "Manhattan" in written


def test_a_second_run_does_nothing_and_another_threshold_recomputes(study, client):
    run_stages(study, [evaluate_stage(**OPTIONS)], lambda: client)
    before = {name: study.read_bytes("evaluation", name) for name in TABLES}
    (second,) = run_stages(study, [evaluate_stage(**OPTIONS)], lambda: pytest.fail("nothing is left to do"))
    assert second.done_now == 0
    run_stages(study, [evaluate_stage(**OPTIONS | {"threshold": "best-f1"})], lambda: client)
    assert study.read_bytes("evaluation", "evaluation.csv") != before["evaluation.csv"]
    run_stages(study, [evaluate_stage(**OPTIONS)], lambda: client)
    assert {name: study.read_bytes("evaluation", name) for name in TABLES} == before


def test_the_command_prints_the_threshold_and_the_line_for_the_settings(study, client):
    settings = study.read_bytes("study.yaml")
    code, output = evaluate(study, client, "--threshold", "best-f1")
    assert code == 0, output
    chosen = json.loads(study.read_bytes("evaluation/summary.json"))["threshold"]
    assert f"threshold {chosen!r} (best-f1 on the validation set)" in output
    assert f"\n  threshold: {chosen!r}\n" in output
    for word in ("validation", "test", "precision", "recall", "f1", "auc"):
        assert word in output
    assert study.read_bytes("study.yaml") == settings
    code, output = evaluate(study, client)
    assert f"threshold {study.settings.estimate.threshold!r} (study.yaml)\ntables" in output


def test_a_threshold_that_no_image_exceeds_leaves_precision_missing_and_the_figures_drawn(study):
    (shard,) = evaluate_stage(**OPTIONS | {"threshold": "1"}).plan(study)
    evaluation = evaluate_study(study, shard.work["inputs"])
    quality = evaluation.quality.set_index(["set", "subgroup", "side", "quantity"])
    assert quality.loc[("test", "All images", "all", "precision"), "missing"] == "no image is above the threshold"
    assert quality.loc[("test", "All images", "all", "recall"), "estimate"] == 0
    assert evaluation.summary["sets"]["test"]["precision"] is None
    assert set(draw_evaluation(evaluation, simulated="")) == set(FIGURES)


def test_labels_are_joined_with_the_detections_of_the_study(study, images, client, tmp_path):
    path = labels_of(images, tmp_path / "labels.csv")
    labels = pd.read_csv(path)
    pd.concat([labels, pd.DataFrame({"image_ref": ["ride/x/none.jpg"], "ground_truth": [1]})]).to_csv(path, index=False)
    options = OPTIONS | {"labels": path}
    outcomes = run_stages(study, [labeled_stage(path), evaluate_stage(**options)], lambda: client)
    assert outcomes[0].rows_in == len(images)
    assert outcomes[1].dropped["no image of this name in annotated/"] == 1
    expected = labels.merge(images, on="image_ref").query("processed")
    auc = read(study, "evaluation.csv").query("set == 'labels' and side == 'all' and quantity == 'auc'").iloc[0]
    assert auc["images"] == len(expected)
    assert auc["estimate"] == pytest.approx(roc_auc_score(expected["ground_truth"], expected["conf"].fillna(0)))
    assert study.exists("evaluation/subgroups_labels.png")
    assert len(labeled_images(study)) == len(labels)

    run_stages(study, [labeled_stage(None), evaluate_stage(**OPTIONS)], lambda: client)
    assert not study.exists("evaluation/subgroups_labels.png")
    assert not study.records("labeled")


def test_labels_of_images_outside_the_study_are_refused(study, client, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_ref,ground_truth\nride/x/a.jpg,1\nride/x/b.jpg,0\n")
    code, output = evaluate(study, client, "--ground-truth", str(path))
    assert code == 2
    assert "none of 2 labels matches exactly one image of the study, the first" in output


def test_without_a_validation_set_labels_choose_the_threshold_and_without_both_it_is_refused(
    study, images, client, tmp_path
):
    sources = study.settings.sources.model_copy(update={"validation": None, "test": None})
    alone = replace(study, settings=study.settings.model_copy(update={"sources": sources}))
    with pytest.raises(SourceError, match=r"names no validation set: .*; or give --ground-truth"):
        evaluate_stage(**OPTIONS).plan(alone)
    options = {"threshold": "best-f1", "replicates": 5, "labels": labels_of(images, tmp_path / "labels.csv")}
    run_stages(alone, [labeled_stage(options["labels"])], lambda: client)
    (shard,) = evaluate_stage(**options).plan(alone)
    evaluation = evaluate_study(alone, shard.work["inputs"])
    assert evaluation.sets == ["labels"]
    assert evaluation.summary["chosen_on"] == "labels"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ground_truth": 0}, "labeled images lack a police vehicle; the set 'validation' needs images of both kinds"),
        ({"Model_predicted_score": 1.5}, "labeled.score"),
        ({"ground_truth": np.nan}, "labeled.ground_truth"),
    ],
)
def test_an_invalid_labeled_set_is_refused(study, tmp_path, change, message):
    validation = pd.read_csv(study.path("source", "validation.csv")).assign(**change)
    validation.to_csv(tmp_path / "validation.csv", index=False)
    sources = study.settings.sources.model_copy(update={"validation": str(tmp_path / "validation.csv")})
    other = create_study(tmp_path / "study", study.settings.model_copy(update={"sources": sources}))
    for folder in ("source", "areas", "manifest"):
        shutil.copytree(study.path(folder), tmp_path / "study" / folder, copy_function=os.link)
    (shard,) = evaluate_stage(**OPTIONS).plan(other)
    with pytest.raises((SourceError, ContractError), match=message):
        evaluate_study(other, shard.work["inputs"])


def test_a_study_without_layers_is_refused_with_the_stage_to_run(study, tmp_path):
    sources = study.settings.sources.model_copy(
        update={name: study.resolve(f"source/{name}.csv") for name in ("validation", "test")}
    )
    other = create_study(tmp_path / "study", study.settings.model_copy(update={"sources": sources}))
    with pytest.raises(StageNotRunError, match=r"stage layers .* has not run yet"):
        evaluate_stage(**OPTIONS).plan(other)


def test_an_invalid_threshold_is_refused_before_anything_starts(study, client):
    code, output = evaluate(study, client, "--threshold", "best")
    assert code == 2
    assert "--threshold best: expected study" in output

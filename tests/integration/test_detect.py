"""From an image store to detections, on a real cluster with a network of a few channels."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import distributed
import numpy as np
import pandas as pd
import pytest

from benchmarks.measure import two_workers
from patrolscope.pipeline.contract.tables import DETECTIONS
from patrolscope.pipeline.detect.commands import adopt_detector, list_again
from patrolscope.pipeline.detect.detection_writer import write_detection_files
from patrolscope.pipeline.detect.stages import INDEX, PREFIXES, WEIGHTS, detect_stage, result_name
from patrolscope.pipeline.engine.distribute import finish_shards
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError, SourceError, StageNotRunError, WeightsError
from patrolscope.pipeline.intake.stages import LABELS
from patrolscope.pipeline.intake.stages import STAGES as TO_METADATA
from patrolscope.pipeline.matching.matches import detections_of
from patrolscope.pipeline.matching.stages import ANNOTATE, KEYS, MATCH
from patrolscope.pipeline.study.config import Settings, with_changes
from patrolscope.pipeline.study.store import Output, Record, Study, create_study, open_study
from tests.image_files import encoded, of_every_kind, picture
from tests.image_study import TO_ESTIMATES, copy_of
from tests.integration.test_cli import invoke
from tests.official_form import save

DETECT = [WEIGHTS, PREFIXES, INDEX, detect_stage]
RIDES = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Create rides of images of two shapes, files of every kind, and two weights files."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(11)
    for ride in range(RIDES):
        (folder / "store" / "ride" / f"{ride:032x}").mkdir(parents=True)
        for number in range(5):
            size = (96, 64) if number % 2 else (64, 96)
            image = picture(*size, color=tuple(rng.integers(0, 256, 3).tolist()))
            content = encoded(image, quality=95)
            (folder / "store" / "ride" / f"{ride:032x}" / f"{ride}{number}.jpg").write_bytes(content)
    (folder / "store" / "odd").mkdir()
    for name, (content, _) in of_every_kind().items():
        (folder / "store" / "odd" / name).write_bytes(content)
    save(folder / "small.pt")
    save(folder / "other.pt", seed=8)
    return folder


def study_of(folder: Path, source: Path, *, detection=(), sources=(), **images) -> Study:
    shutil.copytree(source, folder / "source")
    images = {"sources": ["source/store"], "weights": "source/small.pt", "size": 64, "device": "cpu", **images}
    settings = {"images": images, "detection": {"police_class": 1, **dict(detection)}, "sources": dict(sources)}
    return create_study(folder, Settings.model_validate(settings))


def changed(study: Study, **images) -> Study:
    return create_study(study.root, with_changes(study.settings, {"images": images}))


def detections(study: Study) -> pd.DataFrame:
    files = study.files(f"detections/{result_name(study)}")
    rows = pd.concat([study.read(file) for file in files], ignore_index=True)
    return rows.sort_values("image_id", ignore_index=True)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Compare detections, except for times."""
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"))


def assert_close(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Compare detections, except for times and rounding, which can change the order of boxes with equal scores."""
    lists = [column.name for column in DETECTIONS if column.kind.endswith("list")]
    for left, right in zip(one[lists].to_numpy(), other[lists].to_numpy(), strict=True):
        assert (left[0] is None) == (right[0] is None)
        if left[0] is not None and len(left[0]):
            distance = np.abs(np.stack(left)[:, :, None] - np.stack(right)[:, None, :]).max(axis=0)
            assert max(distance.min(axis=0).max(), distance.min(axis=1).max()) < 1e-3
    plain = [name for name in DETECTIONS.names if name not in (*lists, "seconds")]
    pd.testing.assert_frame_equal(one[plain], other[plain], atol=1e-3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source, client) -> Study:
    study = study_of(tmp_path_factory.mktemp("finished"), source)
    run_stages(study, DETECT, lambda: client)
    return study


def test_every_image_of_the_store_has_a_row_with_its_status(finished):
    rows = detections(finished)
    DETECTIONS.check_key(rows.drop_duplicates("image_id"))
    status = rows.set_index("image_id")["status"]
    for name, (_, expected) in of_every_kind().items():
        assert status[f"odd/{Path(name).stem}"] == expected, name
    assert (status[status.index.str.startswith("ride/")] == "scored").sum() == 5 * RIDES
    scored = rows[rows["status"] == "scored"]
    assert (scored["box_score"].map(len) == scored["boxes"]).all()
    assert scored["boxes"].sum() > 0
    assert rows.loc[rows["status"] != "scored", ["score", "score_any"]].isna().all(axis=None)
    assert rows.loc[rows["status"] != "scored", "box_x1"].isna().all()
    of_police = [
        max((s for s, c in zip(scores, classes, strict=True) if c == 1), default=np.nan)
        for scores, classes in zip(scored["box_score"], scored["box_class"], strict=True)
    ]
    np.testing.assert_array_equal(scored["score"], of_police)
    for edge, side in (("box_x2", "width"), ("box_y2", "height")):
        assert all((edges <= limit).all() for edges, limit in zip(scored[edge], scored[side], strict=True))
    turned = rows.set_index("image_id").loc["odd/turned"]
    assert (turned["width"], turned["height"]) == (64, 96)


@pytest.mark.parametrize(("shard_images", "shards"), [(1_000, 1), (15, 3), (2, 8)])
def test_detections_do_not_depend_on_the_size_of_shards(finished, source, tmp_path, client, shard_images, shards):
    study = study_of(tmp_path, source, shard_images=shard_images)
    run_stages(study, DETECT, lambda: client)
    assert len(study.records(f"detect-{result_name(study)}")) >= shards
    assert_same(detections(study), detections(finished))


def test_batches_change_results_by_rounding_only(finished, source, tmp_path, client):
    study = study_of(tmp_path, source, batch=4)
    run_stages(study, DETECT, lambda: client)
    assert result_name(study) == result_name(finished)
    assert_close(detections(study), detections(finished))


def records_of(study: Study) -> dict[str, float]:
    folder = Path(study.path("manifest", f"detect-{result_name(study)}"))
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}


def no_cluster():
    raise AssertionError("a study that is up to date started a cluster")


def test_added_images_change_no_other_shard(source, tmp_path, client):
    study = study_of(tmp_path, source, shard_images=10)
    run_stages(study, DETECT, lambda: client)
    before = records_of(study)
    run_stages(study, DETECT, no_cluster)
    new = tmp_path / "source" / "store" / "ride" / "new"
    new.mkdir()
    for number in range(3):
        (new / f"{number}.jpg").write_bytes(encoded(picture()))
    run_stages(study, DETECT, no_cluster)
    list_again(study)
    *_, outcome = run_stages(study, DETECT, lambda: client)
    after = records_of(study)
    assert (outcome.done_now, len(after) - len(before)) == (1, 1)
    assert {name: after[name] for name in before} == before
    (new / "1.jpg").unlink()
    list_again(study)
    run_stages(study, DETECT, lambda: client)
    assert "ride/new/1" not in detections(study)["image_id"].tolist()


def test_a_file_that_was_removed_after_indexing_is_missing(source, tmp_path, client):
    study = study_of(tmp_path, source)
    run_stages(study, DETECT[:3], lambda: client)
    (tmp_path / "source" / "store" / "odd" / "plain.jpg").unlink()
    run_stages(study, DETECT, lambda: client)
    row = detections(study).set_index("image_id").loc["odd/plain"]
    assert row["status"] == "missing"
    assert row[["score", "width", "box_x1"]].isna().all()


def test_other_weights_give_another_result_beside_the_first(source, tmp_path, client):
    study = study_of(tmp_path, source)
    run_stages(study, DETECT, lambda: client)
    first, before = detections(study), result_name(study)
    other = changed(study, weights="source/other.pt")
    with pytest.raises(StageNotRunError, match="patrolscope detect"):
        result_name(other)
    run_stages(other, DETECT, lambda: client)
    assert result_name(other) != before
    assert (detections(other)["score_any"] != first["score_any"]).any()
    # A copy of the weights under another name has the same digest.
    shutil.copy(tmp_path / "source" / "small.pt", tmp_path / "source" / "copy.pt")
    restored = changed(study, weights="source/small.pt")
    *_, outcome = run_stages(restored, DETECT, lambda: client)
    assert (outcome.done_now, result_name(restored)) == (0, before)
    pd.testing.assert_frame_equal(detections(restored), first)
    copied = changed(study, weights="source/copy.pt")
    run_stages(copied, [WEIGHTS], lambda: client)
    assert result_name(copied).split("-")[1] == before.split("-")[1]


# Workers.


def test_killing_a_worker_in_the_middle_of_a_shard_repeats_that_shard_only(source, tmp_path):
    study = study_of(tmp_path, source, shard_images=10)
    with two_workers() as client:
        run_stages(study, DETECT[:3], lambda: client)
        # Reading a pipe instead of an image blocks the worker in the middle of a shard.
        stuck = tmp_path / "source" / "store" / "ride" / f"{2:032x}" / "23.jpg"
        content = stuck.read_bytes()
        stuck.unlink()
        os.mkfifo(stuck)
        stage = detect_stage(study)
        shards = stage.plan(study)
        finishing = finish_shards(client, study, stage, shards)
        done = [next(finishing).shard for _ in range(len(shards) - 1)]
        before = records_of(study)
        ((address, _),) = [(worker, keys) for worker, keys in client.processing().items() if keys]
        pid = client.run(os.getpid, workers=[address])[address]
        stuck.unlink()
        stuck.write_bytes(content)
        os.kill(pid, signal.SIGKILL)
        done += [record.shard for record in finishing]
    assert sorted(done) == sorted(shard.name for shard in shards)
    after = records_of(study)
    assert {name: after[name] for name in before} == before
    assert (detections(study)["status"] == "scored").sum() >= 5 * RIDES
    # A second run has nothing to do, and no partial files remain.
    run_stages(study, DETECT, no_cluster)
    assert list(Path(study.base).rglob("*.tmp")) == []


def worker_name(_study: Study, _shard: Shard) -> Record:
    time.sleep(0.05)
    return Output((), 0, 0, (), {"worker": distributed.get_worker().name})


def test_a_stage_runs_on_workers_with_its_resource_or_on_all_if_none_has_it(tmp_path):
    study = create_study(tmp_path, Settings())
    options = {"host": "127.0.0.1", "dashboard": False}
    workers = {
        "plain": {"cls": distributed.Worker, "options": options},
        "with gpu": {"cls": distributed.Worker, "options": {**options, "resources": {"GPU": 1}}},
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    shards = [Shard(f"{number}", {}) for number in range(12)]
    with (
        distributed.SpecCluster(workers=workers, scheduler=scheduler) as cluster,
        distributed.Client(cluster) as client,
    ):

        def workers_of(resource: str) -> set[str]:
            stage = Stage(f"where-{resource}", "images", (), lambda _: shards, worker_name, resource=resource)
            return {record.facts["worker"] for record in finish_shards(client, study, stage, shards)}

        assert workers_of("GPU") == {"with gpu"}
        assert workers_of("TPU") == {"plain", "with gpu"}


# Use of detections by later stages.


def with_metadata(folder: Path, refs: list[str]) -> None:
    lines = [f"{ref},{1601900000000 + 1000 * number},40.7,-73.9,1" for number, ref in enumerate(refs)]
    (folder / "1601856000000.csv").write_text("\n".join(["image_ref,timestamp,lat,lng,split", *lines, ""]))


def matched_detections(study: Study) -> pd.DataFrame:
    (file,) = study.files("metadata")
    images = pd.concat([study.read(file), detections_of(study, file)], axis=1)
    return images.set_index("image_ref")[["processed", "score", "score_any"]]


def test_only_readable_images_that_were_run_through_the_detector_are_processed(source, tmp_path, client):
    ride = f"{0:032x}"
    store = source / "store" / "ride" / ride
    named = tmp_path / "named"
    shutil.copytree(source, named)
    dotted = named / "store" / "ride" / ride / "2020.10.05.jpg"
    shutil.copy(store / "00.jpg", dotted)
    shutil.copy(source / "store" / "odd" / "half.jpg", named / "store" / "ride" / ride / "half.jpg")
    (named / "store" / "odd" / "half.jpg").unlink()
    folder = tmp_path / "study"
    folder.mkdir()
    refs = [f"ride/{ride}/{name}.jpg" for name in ("00", "01", "2020.10.05", "half", "never")]
    with_metadata(folder, refs)
    study = study_of(folder, named, sources={"metadata": "1601856000000.csv"})
    run_stages(study, [*TO_METADATA, *DETECT, KEYS, MATCH], lambda: client)
    matched = matched_detections(study)
    assert matched.loc[refs, "processed"].tolist() == [True, True, True, False, False]
    scores = detections(study).set_index("image_id")["score_any"]
    for ref in refs[:3]:
        assert matched.loc[ref, "score_any"] == scores[ref.removesuffix(".jpg")]


def test_written_detection_files_are_read_back_unchanged(finished, source, tmp_path, client):
    (tmp_path / "a").mkdir()
    refs = [f"ride/{ride:032x}/{ride}{number}.jpg" for ride in range(RIDES) for number in range(5)] + ["ride/x/n.jpg"]
    with_metadata(tmp_path / "a", refs)
    # A high threshold leaves some images without a box.
    threshold = float(detections(finished)["score_any"].median())
    study = study_of(tmp_path / "a", source, sources={"metadata": "1601856000000.csv"}, min_score=threshold)
    run_stages(study, [*TO_METADATA, *DETECT, KEYS, MATCH], lambda: client)
    for _ in range(2):
        write_detection_files(study, str(tmp_path / "out"), client=lambda: client)
    written = {
        file.relative_to(tmp_path / "out" / "labels").as_posix() for file in tmp_path.glob("out/labels/**/*.txt")
    }
    rows = detections(study)
    assert written == {f"{image_id}.txt" for image_id in rows.loc[rows["boxes"] > 0, "image_id"]}
    assert 0 < len(written) < (rows["status"] == "scored").sum()
    listed = (tmp_path / "out" / "processed.txt").read_text().split()
    assert sorted(listed) == sorted(rows.loc[rows["status"] == "scored", "image_id"])

    sources = {"metadata": str(tmp_path / "a" / "1601856000000.csv"), "detections": str(tmp_path / "out" / "labels")}
    sources["processed"] = str(tmp_path / "out" / "processed.txt")
    settings = {"sources": sources, "detection": {"police_class": 1}}
    imported = create_study(tmp_path / "b", Settings.model_validate(settings))
    run_stages(imported, [*TO_METADATA, LABELS, KEYS, MATCH], lambda: client)
    pd.testing.assert_frame_equal(matched_detections(imported), matched_detections(study), rtol=1e-7)


def test_images_that_share_an_id_have_no_detection_file_and_are_not_on_the_list(source, tmp_path, client):
    store = tmp_path / "store"
    store.mkdir()
    for name, form in (("a.jpg", "JPEG"), ("a.png", "PNG"), ("b.jpg", "JPEG")):
        (store / name).write_bytes(encoded(picture(), form))
    study = study_of(tmp_path / "study", source, min_score=1e-9)
    study = create_study(study.root, with_changes(study.settings, {"images": {"sources": [str(store)]}}))
    run_stages(study, DETECT, lambda: client)
    assert sorted(detections(study)["image_id"]) == ["a", "a", "b"]
    write_detection_files(study, str(tmp_path / "out"), client=lambda: client)
    assert [file.name for file in tmp_path.glob("out/labels/**/*.txt")] == ["b.txt"]
    assert (tmp_path / "out" / "processed.txt").read_text() == "b\n"
    dropped = [json.loads(line)["dropped"] for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert dropped == [{"ID of several images, which would share a detection file: not on the list": 2}]


def test_detection_files_are_not_written_among_other_files(finished, tmp_path, client):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="did not write"):
        write_detection_files(finished, str(tmp_path), client=lambda: client)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_study_with_detection_files_and_weights_must_select_one(source, tmp_path, client):
    with_metadata(tmp_path, ["ride/x/00.jpg"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "00.txt").write_text("1 0.5 0.5 0.1 0.1 0.75\n")
    study = study_of(tmp_path, source, sources={"metadata": "1601856000000.csv", "detections": "labels"})
    stages = [*TO_METADATA, LABELS, *DETECT, KEYS, MATCH]
    with pytest.raises(SettingsError, match=r"set detection\.source to labels or detect"):
        run_stages(study, stages, lambda: client)
    imported = create_study(study.root, with_changes(study.settings, {"detection": {"source": "labels"}}))
    run_stages(imported, stages, lambda: client)
    assert matched_detections(imported)["score"].tolist() == [0.75]
    detected = create_study(study.root, with_changes(study.settings, {"detection": {"source": "detect"}}))
    run_stages(detected, stages, lambda: client)
    rows = detections(detected).set_index("image_id")
    assert matched_detections(detected)["score"].tolist() == [rows.loc[f"ride/{0:032x}/00", "score"]]


def test_scores_in_the_metadata_do_not_replace_those_of_the_detector(undisturbed, tmp_path, client):
    study = copy_of(undisturbed, tmp_path / "study")
    for file in Path(study.path("source", "metadata")).glob("*.csv"):
        rows = pd.read_csv(file)
        rows.assign(conf=0.123, camera="A").to_csv(file, index=False)
    study = create_study(study.root, with_changes(study.settings, {"ingest": {"keep_unknown": True}}))
    run_stages(study, TO_ESTIMATES[: TO_ESTIMATES.index(ANNOTATE) + 1], lambda: client)
    assert study.exists("supplied")
    conf = [
        pd.concat([one.read(file) for file in one.files("annotated")]).set_index("image_ref")["conf"].sort_index()
        for one in (study, undisturbed)
    ]
    assert conf[1].notna().any()
    pd.testing.assert_series_equal(*conf)


# Errors before any work.


@pytest.mark.parametrize(
    ("detection", "images", "message"),
    [
        (
            {"police_class": "police vehicle"},
            {},
            "have no class 'police vehicle'; expected one of 0 officer, 1 vehicle",
        ),
        ({"police_class": 2}, {}, "have no class 2"),
        ({}, {"classes": ["bus"]}, "no class 'bus'"),
        ({}, {"classes": [0]}, "expected to include the police class 1"),
        ({}, {"weights": "source/store/odd/plain.jpg"}, "plain.jpg is neither a torch checkpoint"),
        ({}, {"weights": "nowhere.pt"}, r"no weights at .*nowhere\.pt"),
    ],
)
def test_settings_that_the_weights_do_not_support_are_reported_before_images_are_listed(
    source, tmp_path, client, detection, images, message
):
    study = study_of(tmp_path, source, detection=detection, **images)
    with pytest.raises(WeightsError, match=message):
        run_stages(study, DETECT, lambda: client)
    assert not study.exists("image_index")


def test_a_store_without_images_is_an_error(source, tmp_path, client):
    study = study_of(tmp_path, source, sources=())
    shutil.rmtree(tmp_path / "source" / "store")
    (tmp_path / "source" / "store").mkdir()
    with pytest.raises(SourceError, match="holds no image"):
        run_stages(study, DETECT, lambda: client)


def test_the_commands_index_and_detect(source, tmp_path, client):
    shutil.copytree(source, tmp_path / "source")
    root, cluster = str(tmp_path / "study"), client.scheduler.address
    store, weights = str(tmp_path / "source" / "store"), str(tmp_path / "source" / "small.pt")
    code, output = invoke("index", store, "--study", root, "--cluster", cluster)
    assert (code, f"now has images.sources: {store}" in output) == (0, True)
    assert f"{5 * RIDES + len(of_every_kind())} images" in output
    out = str(tmp_path / "out")
    options = ["--weights", weights, "--size", "64", "--class", "1", "--police-class", "1", "--write-labels", out]
    code, output = invoke("detect", "--study", root, *options, "--cluster", cluster)
    assert code == 0, output
    assert "scored" in output
    assert (tmp_path / "out" / "processed.txt").is_file()
    study = open_study(root)
    assert study.settings.images.classes == (1,)
    assert set(np.concatenate([value for value in detections(study)["box_class"] if value is not None])) == {1}
    code, output = invoke("detect", "--study", root, "--cluster", "tcp://127.0.0.1:9")
    assert (code, "now has" in output) == (0, False)


def adopted(study, **options):
    """Adopt weights, and return the threshold of the study and the lines of the command."""
    images = {"weights": study.resolve(options.pop("weights", "source/other.pt"))}
    lines = adopt_detector(study.root, images, classes=None, police_class=None, **options)
    return open_study(study.root).settings.estimate.threshold, " ".join(lines)


def test_new_weights_bring_the_threshold_of_their_training(source, tmp_path):
    study = study_of(tmp_path, source, detection={"police_class": "police vehicle"})
    before = study.settings.estimate.threshold
    result = tmp_path / "source" / "evaluation.json"
    result.write_text(json.dumps({"thresholds": {"police officer": 0.9, "police vehicle": 0.25}}))
    threshold, lines = adopted(study)
    assert threshold == 0.25
    assert "estimate.threshold: 0.25" in lines
    assert "(evaluation.json)" in lines
    # The same weights keep a threshold that was changed since; other weights or an option replace it.
    assert adopted(study, threshold=0.4)[0] == 0.4
    assert adopted(study) == (0.4, "")
    assert adopted(study, weights="source/small.pt", threshold=0.3)[0] == 0.3
    assert adopted(study)[0] == 0.25
    assert before != 0.25


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not JSON",
        "[]",
        '{"thresholds": 1}',
        '{"thresholds": {"police vehicle": null}}',
        '{"thresholds": {"police vehicle": "0.5"}}',
        '{"thresholds": {"police vehicle": 7.5}}',
        '{"thresholds": {"dog": 0.5}}',
    ],
)
def test_a_training_result_without_a_threshold_keeps_that_of_the_study(source, tmp_path, content):
    study = study_of(tmp_path, source, detection={"police_class": "police vehicle"})
    (tmp_path / "source" / "evaluation.json").write_text(content)
    assert adopted(study)[0] == study.settings.estimate.threshold


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "{root}/nowhere"], "nowhere does not exist; expected a folder"),
        (["index", "{root}/study.yaml"], "study.yaml is a file; expected a folder"),
        (["index"], "names no images"),
        (["detect"], "names no weights"),
        (["detect", "--weights", "{root}/nowhere.pt"], "no weights at"),
        (["detect", "--weights", "{root}/study.yaml"], "names no images"),
        (["detect", "--weights", "{root}/study.yaml", "--size", "7"], "images.size"),
        (["detect", "--precision", "int4"], "images.precision"),
        (["detect", "--threshold", "7"], "estimate.threshold"),
        (["detect", "--weights", "nothing://bucket/a.pt"], "expected a path or URL"),
    ],
)
def test_invalid_arguments_are_reported_and_leave_the_settings_unchanged(tmp_path, arguments, message):
    (tmp_path / "study.yaml").write_text("name: mine")
    code, output = invoke(*(argument.format(root=tmp_path) for argument in arguments), "--study", str(tmp_path))
    assert code == 2
    assert message in output
    assert "Traceback" not in output
    assert (tmp_path / "study.yaml").read_text() == "name: mine"


@pytest.mark.gpu
def test_detections_of_a_gpu_equal_those_of_a_cpu(source, tmp_path, client):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    results = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "fp16")):
        folder = tmp_path / f"{device}-{precision}"
        # nvJPEG decodes to other pixels; tests/unit/test_device.py covers it.
        study = study_of(folder, source, device=device, precision=precision, jpeg="cpu")
        run_stages(study, DETECT, lambda: client)
        results[device, precision] = detections(study)
    assert_close(results["cuda", "fp32"], results["cpu", "fp32"])
    scores = [results[key]["score_any"].to_numpy() for key in (("cuda", "fp16"), ("cpu", "fp32"))]
    np.testing.assert_allclose(*scores, atol=0.02)

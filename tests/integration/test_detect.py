"""From an image store to detections, on a real cluster, with a real network of a few channels."""

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
from patrolscope.pipeline.detect.image_index import INDEX, PREFIXES, list_again
from patrolscope.pipeline.detect.labels_out import write_label_files
from patrolscope.pipeline.detect.stage import WEIGHTS, adopt_detector, detect_stage, result_name
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
    """Rides of noisy pictures of two shapes, every kind of file, and two files of weights."""
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
    asked = {"sources": ["source/store"], "weights": "source/small.pt", "size": 64, "device": "cpu", **images}
    settings = {"images": asked, "detection": {"police_class": 1, **dict(detection)}, "sources": dict(sources)}
    return create_study(folder, Settings.model_validate(settings))


def changed(study: Study, **images) -> Study:
    return create_study(study.root, with_changes(study.settings, {"images": images}))


def detections(study: Study) -> pd.DataFrame:
    files = study.files(f"detections/{result_name(study)}")
    rows = pd.concat([study.read(file) for file in files], ignore_index=True)
    return rows.sort_values("image_id", ignore_index=True)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same but for the time that it took."""
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"))


def assert_close(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same but for rounding, by which boxes of equal scores can change places, and for the time."""
    lists = [column.name for column in DETECTIONS if column.kind.endswith("list")]
    for left, right in zip(one[lists].to_numpy(), other[lists].to_numpy(), strict=True):
        assert (left[0] is None) == (right[0] is None)
        if left[0] is not None and len(left[0]):
            apart = np.abs(np.stack(left)[:, :, None] - np.stack(right)[:, None, :]).max(axis=0)
            assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-3
    plain = [name for name in DETECTIONS.names if name not in (*lists, "seconds")]
    pd.testing.assert_frame_equal(one[plain], other[plain], atol=1e-3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source, client) -> Study:
    study = study_of(tmp_path_factory.mktemp("finished"), source)
    run_stages(study, DETECT, lambda: client)
    return study


def test_every_image_of_the_store_ends_as_a_row_with_its_status(finished):
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
def test_detections_do_not_depend_on_how_the_work_is_cut(finished, source, tmp_path, client, shard_images, shards):
    study = study_of(tmp_path, source, shard_images=shard_images)
    run_stages(study, DETECT, lambda: client)
    assert len(study.records(f"detect-{result_name(study)}")) >= shards
    assert_same(detections(study), detections(finished))


def test_batches_change_no_result_but_for_rounding(finished, source, tmp_path, client):
    study = study_of(tmp_path, source, batch=4)
    run_stages(study, DETECT, lambda: client)
    assert result_name(study) == result_name(finished)
    assert_close(detections(study), detections(finished))


def records_of(study: Study) -> dict[str, float]:
    folder = Path(study.path("manifest", f"detect-{result_name(study)}"))
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}


def no_cluster():
    raise AssertionError("a study that is up to date asked for a cluster")


def test_added_images_only_add(source, tmp_path, client):
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


def test_a_file_that_went_since_it_was_listed_is_missing_and_no_evidence(source, tmp_path, client):
    study = study_of(tmp_path, source)
    run_stages(study, DETECT[:3], lambda: client)
    (tmp_path / "source" / "store" / "odd" / "plain.jpg").unlink()
    run_stages(study, DETECT, lambda: client)
    row = detections(study).set_index("image_id").loc["odd/plain"]
    assert row["status"] == "missing"
    assert row[["score", "width", "box_x1"]].isna().all()


def test_other_weights_and_settings_are_another_result_beside_the_first(source, tmp_path, client):
    study = study_of(tmp_path, source)
    run_stages(study, DETECT, lambda: client)
    first, before = detections(study), result_name(study)
    other = changed(study, weights="source/other.pt")
    with pytest.raises(StageNotRunError, match="patrolscope detect"):
        result_name(other)
    run_stages(other, DETECT, lambda: client)
    assert result_name(other) != before
    assert (detections(other)["score_any"] != first["score_any"]).any()
    # A copy of the same weights under another name and time is the same result.
    shutil.copy(tmp_path / "source" / "small.pt", tmp_path / "source" / "copy.pt")
    back = changed(study, weights="source/small.pt")
    *_, outcome = run_stages(back, DETECT, lambda: client)
    assert (outcome.done_now, result_name(back)) == (0, before)
    pd.testing.assert_frame_equal(detections(back), first)
    copied = changed(study, weights="source/copy.pt")
    run_stages(copied, [WEIGHTS], lambda: client)
    assert result_name(copied).split("-")[1] == before.split("-")[1]


# Workers.


def test_a_worker_killed_in_the_middle_of_a_shard_costs_that_shard_alone(source, tmp_path):
    study = study_of(tmp_path, source, shard_images=10)
    with two_workers() as client:
        run_stages(study, DETECT[:3], lambda: client)
        # An image that does not answer holds its worker in the midst of a shard.
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
    # A second run does nothing, and leaves nothing that was half written.
    run_stages(study, DETECT, no_cluster)
    assert list(Path(study.base).rglob("*.tmp")) == []


def where(_study: Study, _shard: Shard) -> Record:
    time.sleep(0.05)
    return Output((), 0, 0, (), {"worker": distributed.get_worker().name})


def test_only_workers_that_offer_the_resource_work_and_all_of_them_where_none_does(tmp_path):
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

        def asked(resource: str) -> set[str]:
            stage = Stage(f"where-{resource}", "images", (), lambda _: shards, where, resource=resource)
            return {record.facts["worker"] for record in finish_shards(client, study, stage, shards)}

        assert asked("GPU") == {"with gpu"}
        assert asked("TPU") == {"plain", "with gpu"}


# What the rest of the study makes of it.


def with_metadata(folder: Path, refs: list[str]) -> None:
    lines = [f"{ref},{1601900000000 + 1000 * number},40.7,-73.9,1" for number, ref in enumerate(refs)]
    (folder / "1601856000000.csv").write_text("\n".join(["image_ref,timestamp,lat,lng,split", *lines, ""]))


def evidence(study: Study) -> pd.DataFrame:
    (file,) = study.files("metadata")
    images = pd.concat([study.read(file), detections_of(study, file)], axis=1)
    return images.set_index("image_ref")[["processed", "score", "score_any"]]


def test_only_images_that_were_looked_at_are_evidence(source, tmp_path, client):
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
    found = evidence(study)
    assert found.loc[refs, "processed"].tolist() == [True, True, True, False, False]
    scores = detections(study).set_index("image_id")["score_any"]
    for ref in refs[:3]:
        assert found.loc[ref, "score_any"] == scores[ref.removesuffix(".jpg")]


def test_label_files_that_are_written_read_back_as_the_same_evidence(finished, source, tmp_path, client):
    (tmp_path / "a").mkdir()
    refs = [f"ride/{ride:032x}/{ride}{number}.jpg" for ride in range(RIDES) for number in range(5)] + ["ride/x/n.jpg"]
    with_metadata(tmp_path / "a", refs)
    # So that some images have no box.
    threshold = float(detections(finished)["score_any"].median())
    study = study_of(tmp_path / "a", source, sources={"metadata": "1601856000000.csv"}, min_score=threshold)
    run_stages(study, [*TO_METADATA, *DETECT, KEYS, MATCH], lambda: client)
    for _ in range(2):
        write_label_files(study, str(tmp_path / "out"), client=lambda: client)
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
    again = create_study(tmp_path / "b", Settings.model_validate(settings))
    run_stages(again, [*TO_METADATA, LABELS, KEYS, MATCH], lambda: client)
    pd.testing.assert_frame_equal(evidence(again), evidence(study), rtol=1e-7)


def test_images_that_share_an_id_get_no_label_file_and_are_not_on_the_list(source, tmp_path, client):
    store = tmp_path / "store"
    store.mkdir()
    for name, form in (("a.jpg", "JPEG"), ("a.png", "PNG"), ("b.jpg", "JPEG")):
        (store / name).write_bytes(encoded(picture(), form))
    study = study_of(tmp_path / "study", source, min_score=1e-9)
    study = create_study(study.root, with_changes(study.settings, {"images": {"sources": [str(store)]}}))
    run_stages(study, DETECT, lambda: client)
    assert sorted(detections(study)["image_id"]) == ["a", "a", "b"]
    write_label_files(study, str(tmp_path / "out"), client=lambda: client)
    assert [file.name for file in tmp_path.glob("out/labels/**/*.txt")] == ["b.txt"]
    assert (tmp_path / "out" / "processed.txt").read_text() == "b\n"
    dropped = [json.loads(line)["dropped"] for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert dropped == [{"id of several images, which would share a label file: not on the list": 2}]


def test_label_files_are_not_written_among_files_of_others(finished, tmp_path, client):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="did not write"):
        write_label_files(finished, str(tmp_path), client=lambda: client)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_study_with_label_files_and_weights_must_say_which_to_use(source, tmp_path, client):
    with_metadata(tmp_path, ["ride/x/00.jpg"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "00.txt").write_text("1 0.5 0.5 0.1 0.1 0.75\n")
    study = study_of(tmp_path, source, sources={"metadata": "1601856000000.csv", "detections": "labels"})
    stages = [*TO_METADATA, LABELS, *DETECT, KEYS, MATCH]
    with pytest.raises(SettingsError, match=r"set detection\.source to labels or detect"):
        run_stages(study, stages, lambda: client)
    labeled = create_study(study.root, with_changes(study.settings, {"detection": {"source": "labels"}}))
    run_stages(labeled, stages, lambda: client)
    assert evidence(labeled)["score"].tolist() == [0.75]
    detected = create_study(study.root, with_changes(study.settings, {"detection": {"source": "detect"}}))
    run_stages(detected, stages, lambda: client)
    rows = detections(detected).set_index("image_id")
    assert evidence(detected)["score"].tolist() == [rows.loc[f"ride/{0:032x}/00", "score"]]


def test_what_the_metadata_say_of_detections_does_not_take_the_place_of_those_of_the_images(
    undisturbed, tmp_path, client
):
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


# What can not work is said before hours are spent.


@pytest.mark.parametrize(
    ("detection", "images", "complaint"),
    [
        ({"police_class": "police vehicle"}, {}, "do not know the class 'police vehicle', only 0 officer, 1 vehicle"),
        ({"police_class": 2}, {}, "do not know the class 2"),
        ({}, {"classes": ["bus"]}, "no class 'bus'"),
        ({}, {"classes": [0]}, "not for the police class 1"),
        ({}, {"weights": "source/store/odd/plain.jpg"}, "plain.jpg is no checkpoint"),
        ({}, {"weights": "nowhere.pt"}, r"no weights at .*nowhere\.pt"),
    ],
)
def test_what_the_weights_can_not_do_is_said_before_an_image_is_listed(
    source, tmp_path, client, detection, images, complaint
):
    study = study_of(tmp_path, source, detection=detection, **images)
    with pytest.raises(WeightsError, match=complaint):
        run_stages(study, DETECT, lambda: client)
    assert not study.exists("image_index")


def test_a_store_without_an_image_is_said(source, tmp_path, client):
    study = study_of(tmp_path, source, sources=())
    shutil.rmtree(tmp_path / "source" / "store")
    (tmp_path / "source" / "store").mkdir()
    with pytest.raises(SourceError, match="holds no image"):
        run_stages(study, DETECT, lambda: client)


def test_the_commands_index_and_detect_as_a_user_gives_them(source, tmp_path, client):
    shutil.copytree(source, tmp_path / "source")
    root, cluster = str(tmp_path / "study"), client.scheduler.address
    store, weights = str(tmp_path / "source" / "store"), str(tmp_path / "source" / "small.pt")
    code, output = invoke("index", store, "--study", root, "--cluster", cluster)
    assert (code, f"now says images.sources: {store}" in output) == (0, True)
    assert f"{5 * RIDES + len(of_every_kind())} images" in output
    out = str(tmp_path / "out")
    asked = ["--weights", weights, "--size", "64", "--class", "1", "--police-class", "1", "--write-labels", out]
    code, output = invoke("detect", "--study", root, *asked, "--cluster", cluster)
    assert code == 0, output
    assert "scored" in output
    assert (tmp_path / "out" / "processed.txt").is_file()
    study = open_study(root)
    assert study.settings.images.classes == (1,)
    assert set(np.concatenate([value for value in detections(study)["box_class"] if value is not None])) == {1}
    code, output = invoke("detect", "--study", root, "--cluster", "tcp://127.0.0.1:9")
    assert (code, "now says" in output) == (0, False)


def adopted(study, **options):
    """Threshold of a study after a command that names its weights, and what the command says."""
    asked = {"weights": options.pop("weights", "source/other.pt")}
    asked["weights"] = study.resolve(asked["weights"])
    said = adopt_detector(study.root, asked, classes=None, police_class=None, **options)
    return open_study(study.root).settings.estimate.threshold, " ".join(said)


def test_the_threshold_of_a_training_is_carried_into_the_study_with_its_weights(source, tmp_path):
    study = study_of(tmp_path, source, detection={"police_class": "police vehicle"})
    before = study.settings.estimate.threshold
    result = tmp_path / "source" / "evaluation.json"
    result.write_text(json.dumps({"thresholds": {"police officer": 0.9, "police vehicle": 0.25}}))
    threshold, said = adopted(study)
    assert threshold == 0.25
    assert "estimate.threshold: 0.25" in said
    assert "(evaluation.json)" in said
    # The same weights again leave what a reader has changed since; other ones, or an option, do not.
    assert adopted(study, threshold=0.4)[0] == 0.4
    assert adopted(study) == (0.4, "")
    assert adopted(study, weights="source/small.pt", threshold=0.3)[0] == 0.3
    assert adopted(study)[0] == 0.25
    assert before != 0.25


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "[]",
        '{"thresholds": 1}',
        '{"thresholds": {"police vehicle": null}}',
        '{"thresholds": {"police vehicle": "0.5"}}',
        '{"thresholds": {"police vehicle": 7.5}}',
        '{"thresholds": {"dog": 0.5}}',
    ],
)
def test_a_result_that_names_no_threshold_leaves_the_one_of_the_study(source, tmp_path, content):
    study = study_of(tmp_path, source, detection={"police_class": "police vehicle"})
    (tmp_path / "source" / "evaluation.json").write_text(content)
    assert adopted(study)[0] == study.settings.estimate.threshold


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["index", "{root}/nowhere"], "nowhere is not there; expected a folder"),
        (["index", "{root}/study.yaml"], "study.yaml is a file; expected a folder"),
        (["index"], "names no images"),
        (["detect"], "names no weights"),
        (["detect", "--weights", "{root}/nowhere.pt"], "no weights at"),
        (["detect", "--weights", "{root}/study.yaml"], "names no images"),
        (["detect", "--weights", "{root}/study.yaml", "--size", "7"], "images.size"),
        (["detect", "--precision", "int4"], "images.precision"),
        (["detect", "--threshold", "7"], "estimate.threshold"),
        (["detect", "--weights", "nothing://bucket/a.pt"], "is no path or URL that can be opened"),
    ],
)
def test_what_can_not_be_asked_for_is_one_line_and_leaves_the_settings(tmp_path, arguments, complaint):
    (tmp_path / "study.yaml").write_text("name: mine")
    code, output = invoke(*(one.format(root=tmp_path) for one in arguments), "--study", str(tmp_path))
    assert code == 2
    assert complaint in output
    assert "Traceback" not in output
    assert (tmp_path / "study.yaml").read_text() == "name: mine"


@pytest.mark.gpu
def test_a_gpu_finds_what_a_cpu_finds(source, tmp_path, client):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "fp16")):
        folder = tmp_path / f"{device}-{precision}"
        # nvJPEG's pixels are others; what it does is tested beside this.
        study = study_of(folder, source, device=device, precision=precision, jpeg="cpu")
        run_stages(study, DETECT, lambda: client)
        found[device, precision] = detections(study)
    assert_close(found["cuda", "fp32"], found["cpu", "fp32"])
    scores = [found[key]["score_any"].to_numpy() for key in (("cuda", "fp16"), ("cpu", "fp32"))]
    np.testing.assert_allclose(*scores, atol=0.02)

"""Training of an ultralytics model: no network access and no leftover files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from patrolscope.pipeline.errors import TrainingError, WeightsError
from patrolscope.pipeline.train.data import read_collection
from patrolscope.pipeline.train.settings import TrainingOptions
from patrolscope.pipeline.train.ultralytics_engine import open_model, train_ultralytics, write_data_set
from tests import official_form
from tests.labeled_squares import NAMES, write

ROOT = Path(__file__).resolve().parents[2]
APART = """
import socket, sys
def refuse(*_args, **_options):
    print("network access", file=sys.stderr)
    raise OSError("no network here")
socket.getaddrinfo = socket.socket.connect = refuse
sys.path.insert(0, sys.argv.pop(1))
from patrolscope import cli
cli.main()
"""


def patrolscope(folder, *arguments):
    """Run the command in an empty home folder with its own folder for temporary files."""
    home, scratch = folder / "home", folder / "scratch"
    for path in (home, scratch):
        path.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("YOLO_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", APART, str(ROOT), "train", *map(str, arguments)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )
    left = [
        path for root in (home, scratch) for path in root.rglob("*") if path.is_file() and ".cache" not in path.parts
    ]
    return done, left


@pytest.mark.slow
def test_an_ultralytics_model_is_trained_and_evaluated_like_any_other(tmp_path):
    data, out = write(tmp_path / "data", 48), tmp_path / "out"
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    options = ["--engine", "ultralytics", "--size", "64", "--epochs", "2", "--batch", "8", "--device", "cpu"]
    done, left = patrolscope(tmp_path, data, "--out", out, "--weights", "yolo11n.yaml", *options, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no network access and no reporting"
    assert left == []
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in out.iterdir()) == [
        *("best.pt", "curves.csv", "curves.png", "evaluation.json", "training.json"),
    ]
    rows = list(csv.DictReader((out / "curves.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["loss"]) == pytest.approx(sum(float(row[n]) for n in ("box", "cls", "dfl"))) for row in rows)
    result = json.loads((out / "evaluation.json").read_text())
    assert (result["split"], result["images"], result["epochs"]) == ("test", 6, 2)
    assert set(result["by_class"]) == set(NAMES)
    # The resulting weights are a file, which opens only if trusted.
    again = [data, "--out", tmp_path / "again", "--weights", out / "best.pt", *options]
    done, _ = patrolscope(tmp_path, *again)
    assert done.returncode == 2
    assert "add --trust-weights" in done.stderr


def test_the_data_set_has_the_same_splits_boxes_and_classes_and_links_to_the_images(tmp_path):
    collection = read_collection(write(tmp_path / "data", 24))
    document = write_data_set(collection, tmp_path / "set")
    assert "names:\n  0: red\n  1: blue\n" in document.read_text()
    for ours, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        links = sorted((tmp_path / "set" / "images" / theirs).iterdir())
        assert [link.resolve() for link in links] == [example.path for example in collection.splits[ours]]
        for link, example in zip(links, collection.splits[ours], strict=True):
            label = tmp_path / "set" / "labels" / theirs / f"{link.stem}.txt"
            rows = np.loadtxt(label, ndmin=2).reshape(-1, 5) if label.stat().st_size else np.zeros((0, 5))
            np.testing.assert_allclose(rows, example.boxes, atol=1e-8)


def test_a_jpeg_that_ultralytics_would_rewrite_is_copied(tmp_path):
    data = write(tmp_path / "data", 24)
    for number in (0, 1):
        path = data / f"images/ride{number}/000{number}.png"
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    (data / "images/ride1/0001.jpg").write_bytes((data / "images/ride1/0001.jpg").read_bytes() + b"behind the end")
    write_data_set(read_collection(data), tmp_path / "set")
    found = {path.is_symlink() for path in (tmp_path / "set/images/train").glob("*.jpg")}
    assert found == {True, False}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "needs a model"),
        ("yolo11n.pt", "yolo11n.pt is neither a file .* nothing is downloaded"),
        ("yolo99n.yaml", "yolo99n.yaml is neither a file"),
        ("https://example.org/yolo11n.pt", "https.* is neither a file"),
        ("yolo11n-seg.yaml", "is for the task 'segment'"),
    ],
)
def test_an_unknown_model_is_rejected_in_one_line(weights, message):
    with pytest.raises(WeightsError, match=message) as refused:
        open_model(weights, trust=False)
    assert "\n" not in str(refused.value)


def test_a_configuration_file_of_the_user_must_be_trusted(tmp_path, monkeypatch):
    """ultralytics evaluates the value of `activation`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolo11n.yaml").write_text("activation: exit()")
    with pytest.raises(WeightsError, match="opening it can run code"):
        open_model("yolo11n.yaml", trust=False)


def test_a_yolov7_checkpoint_is_rejected(tmp_path):
    official_form.save(tmp_path / "seven.pt", names=("a", "b"))
    with pytest.raises(WeightsError, match="is a YOLOv7 checkpoint; remove --engine"):
        open_model(str(tmp_path / "seven.pt"), trust=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "yolov7"}, "--variant is for --engine yolov7 only"),
        ({"width": 0.5}, "--width is for"),
        ({"changes": ("lr0=1",)}, "--set is for"),
        ({"precision": "bf16"}, "--precision is for"),
        ({"rectangular": True}, "--rectangular is for"),
        ({"size": 72}, "--size 72 is not a multiple of the network's stride 32; use 96"),
    ],
)
def test_options_of_the_other_engine_are_rejected(tmp_path, changes, message):
    options = {"data": str(tmp_path), "engine": "ultralytics", "variant": None, "weights": "yolo11n.yaml"}
    options = TrainingOptions(**(options | changes))
    with pytest.raises(TrainingError, match=message):
        train_ultralytics(options, tmp_path / "out", trust=False, log=print)
    assert not (tmp_path / "out").exists()

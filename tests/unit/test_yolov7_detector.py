"""The YOLOv7 detector from weights and images to boxes, its options and errors, and `patrolscope weights`."""

import json
import math
from importlib.resources import files
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from patrolscope.cli import app
from patrolscope.pipeline.detect.detector import Detector, load_detector
from patrolscope.pipeline.detect.models.architecture import variant
from patrolscope.pipeline.detect.models.augment import augmented
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint
from patrolscope.pipeline.detect.weights.checkpoint_writer import save_checkpoint
from patrolscope.pipeline.errors import WeightsError
from tests import reference_yolov7 as reference
from tests.official_form import SMALL, save


@pytest.fixture(scope="module")
def photograph():
    """Load a photograph of a street with a bus and people, 1080 x 810, from the ultralytics package."""
    bus = files("ultralytics") / "assets" / "bus.jpg"
    return cv2.imread(str(bus))[..., ::-1]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Save random weights whose scores are spread over 0..1."""
    path = tmp_path_factory.mktemp("weights") / "small.pt"

    def spread_scores(content, _classes):
        for conv in content["model"].model[-1].m:
            nn.init.normal_(conv.weight, 0, 0.5)

    save(path, change=spread_scores)
    return str(path)


def load(path, **options) -> Detector:
    return load_detector(path, **({"size": 128, "device": "cpu", "threads": 1} | options))


def run(detector, *images):
    return detector.predict(
        np.stack([detector.prepare(image) for image in images]), [image.shape[:2] for image in images]
    )


def test_boxes_of_a_photograph_equal_those_of_plain_functions(small, photograph):
    """Letterbox, network, decoding, suppression, and conversion to image pixels are repeated in plain form."""
    boxes = run(load(small, min_score=0.3), photograph)[0]
    image = cv2.resize(photograph, (96, 128), interpolation=cv2.INTER_LINEAR)
    boxed = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None] / 255
    state = read_checkpoint(Path(small)).state
    rows = reference.decode(reference.forward(SMALL, state, boxed), SMALL["anchors"], (8, 16))
    expected = torch.tensor(reference.select(rows, 0.3, 0.45))
    scale = 1080 / 128
    corners = (expected[:, :4] * scale).clamp(min=0).numpy()
    corners = np.minimum(corners, [810, 1080, 810, 1080])
    assert len(boxes) == len(expected) > 10
    assert np.abs(boxes[:, :4] - corners).max() < 0.05
    assert np.abs(boxes[:, 4] - expected[:, 4].numpy()).max() < 1e-4
    assert np.array_equal(boxes[:, 5], expected[:, 5].numpy())


def test_an_image_has_the_same_boxes_alone_and_in_a_batch(small, photograph):
    detector = load(small, min_score=0.2)
    images = [photograph, photograph[::-1].copy(), photograph[:, ::-1].copy()]
    assert {detector.shape(*image.shape[:2]) for image in images} == {(128, 96)}
    together = run(detector, *images)
    for image, boxes in zip(images, together, strict=True):
        alone = run(detector, image)[0]
        assert len(boxes) == len(alone) > 0
        np.testing.assert_allclose(boxes, alone, atol=1e-3)
    assert all((boxes[:-1, 4] >= boxes[1:, 4]).all() and boxes.dtype == np.float32 for boxes in together)


def test_a_tensor_gives_the_same_boxes_as_an_array(small, photograph):
    detector = load(small)
    batch = detector.prepare(photograph)[None]
    first, second = (detector.predict(images, [(1080, 810)])[0] for images in (batch, torch.from_numpy(batch)))
    assert np.array_equal(first, second)
    assert detector.predict(batch[:0], []) == []


@pytest.mark.parametrize("batch", [np.zeros((1, 3, 64, 64), np.float32), np.zeros((2, 3, 64, 64), np.uint8)])
def test_a_batch_of_another_form_is_rejected(small, batch):
    with pytest.raises(ValueError, match=r"expected \(n, 3, H, W\) and uint8 for 1 images"):
        load(small).predict(batch, [(64, 64)])


def test_classes_are_chosen_by_name_or_number(small, photograph):
    all_boxes = run(load(small, min_score=0.2), photograph)[0]
    assert set(all_boxes[:, 5]) == {0, 1}
    for classes in (["vehicle"], [1], ["1"]):
        boxes = run(load(small, min_score=0.2, classes=classes), photograph)[0]
        assert set(boxes[:, 5]) == {1}
    assert len(run(load(small, min_score=0.2, classes=["vehicle", "officer"]), photograph)[0]) == len(all_boxes)


def test_augmentation_joins_the_boxes_of_three_passes(small, photograph):
    plain, with_passes = (load(small, min_score=0.2, augment=augment) for augment in (False, True))
    rows = {}
    for name, detector in (("plain", plain), ("augmented", with_passes)):
        inner = detector._rows
        rows[name] = []

        def recorded(images, inner=inner, passes=rows[name]):
            passes.append(inner(images))
            return passes[-1]

        detector._rows = recorded
    few, many = run(plain, photograph)[0], run(with_passes, photograph)[0]
    assert [decoded.shape[1] for decoded in rows["plain"]] == [3 * (16 * 12 + 8 * 6)]
    # 128 x 96 at 0.83 is 106 x 79 in 112 x 80, at 0.67 85 x 64 in 96 x 80 (0.67 * 96 is 64.32: five strides of 16).
    assert [decoded.shape[1] for decoded in rows["augmented"]] == [
        3 * 240,
        3 * (14 * 10 + 7 * 5),
        3 * (12 * 10 + 6 * 5),
    ]
    plain_boxes = {tuple(np.round(box[:4])) for box in few}
    assert len(many) > 0
    assert any(tuple(np.round(box[:4])) not in plain_boxes for box in many)


TINY, E6E = (8, 16, 32), (8, 16, 32, 64)


@pytest.mark.parametrize(
    ("strides", "height", "width", "rows"),
    [(TINY, 320, 320, 14_490), (TINY, 256, 320, 11_655), (E6E, 256, 320, 13_260), (E6E, 1280, 1280, 225_675)],
)
def test_augmentation_has_as_many_rows_as_in_the_official_models(strides, height, width, rows):
    def forward(images):
        h, w = images.shape[2:]
        return torch.zeros(1, 3 * sum(h // s * (w // s) for s in strides), 6)

    assert augmented(torch.zeros(1, 3, height, width), forward, strides[-1]).shape[1] == rows


def test_bf16_changes_boxes_little(small, photograph):
    exact, rough = (
        run(load(small, min_score=0.3, precision=precision), photograph)[0] for precision in ("fp32", "bf16")
    )
    assert abs(len(exact) - len(rough)) <= 0.2 * len(exact)
    assert abs(exact[0, 4] - rough[0, 4]) < 0.05


def test_nan_from_the_network_is_an_error_and_not_an_image_without_boxes(tmp_path, photograph):
    def break_it(content, _classes):
        content["model"].model[3].bn.bias.data[0] = math.inf

    save(tmp_path / "broken.pt", change=break_it)
    with pytest.raises(WeightsError, match=r"NaN or infinity in torch\.float32"):
        run(load(str(tmp_path / "broken.pt")), photograph)


def test_the_fingerprint_depends_only_on_options_that_change_boxes(small, tmp_path):
    other = tmp_path / "other.pt"
    save(other, seed=11)
    base = load(small).fingerprint
    copy = tmp_path / "same weights under another name.pt"
    copy.write_bytes(Path(small).read_bytes())
    same = [load(small), load(str(copy)), load(small, threads=2), load(small, precision="fp32")]
    assert {detector.fingerprint for detector in same} == {base}
    different = [
        load(str(other)),
        load(small, size=160),
        load(small, min_score=0.02),
        load(small, nms_iou=0.5),
        load(small, classes=[1]),
        load(small, augment=True),
        load(small, precision="bf16"),
    ]
    assert len({base, *(detector.fingerprint for detector in different)}) == 8
    assert load(small, classes=["vehicle"]).fingerprint == load(small, classes=[1]).fingerprint


def test_weights_are_read_from_any_file_system(small, photograph):
    with fsspec.open("memory://store/best.pt", "wb") as file:
        file.write(Path(small).read_bytes())
    remote, local = load("memory://store/best.pt"), load(small)
    assert remote.fingerprint == local.fingerprint
    assert np.array_equal(run(remote, photograph)[0], run(local, photograph)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 120}, "size 120 is not a multiple of the model's stride of 16; use 128"),
        ({"size": 0}, "size 0 is not a multiple"),
        ({"classes": ["taxi"]}, "no class 'taxi'; expected one of 0 officer, 1 vehicle"),
        ({"classes": [2]}, "no class 2"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown; expected auto, fp32, fp16, bf16"),
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        ({"device": "abacus"}, "device 'abacus' is unknown"),
        ({"device": "meta"}, "device 'meta' is not supported"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available; torch sees"),
        ({"min_score": 1.5}, "min_score is 1.5"),
        ({"nms_iou": 0}, "nms_iou is 0; expected"),
    ],
)
def test_unsupported_options_are_reported_in_one_line(small, options, message):
    with pytest.raises(WeightsError, match=message) as raised:
        load(small, **options)
    assert "\n" not in str(raised.value)


def test_a_missing_extra_is_reported_with_its_command(small, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        WeightsError,
        match=r"not installed: torch, torchvision, cv2, simplejpeg \(pip install 'patrolscope\[detect\]'\)",
    ):
        load(small)


def test_a_compiled_network_replaces_the_plain_one(small, photograph, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    assert np.array_equal(run(load(small, compile=True), photograph)[0], run(load(small), photograph)[0])
    assert len(compiled) == 1


def test_other_files_than_weights_are_rejected(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    (tmp_path / "folder").mkdir()
    for path, message in {
        str(tmp_path / "none.pt"): "no weights at",
        str(tmp_path / "folder"): "is a folder, and not an ultralytics export",
        write("empty.pt", b""): "is empty",
        write(
            "notes.pt", b"These are my notes"
        ): "neither a torch checkpoint nor an ONNX file; it starts with b'These ar'",
        write("model.engine", b"x"): "opening it runs code in it.*--trust-weights",
    }.items():
        with pytest.raises(WeightsError, match=message):
            load(path)


def test_a_model_with_one_class_scores_by_objectness(tmp_path, photograph):
    """Its class output is untrained."""
    save(tmp_path / "one.pt", {**SMALL, "nc": 1}, names=["vehicle"])
    boxes = run(load(str(tmp_path / "one.pt"), min_score=0.01), photograph)[0]
    rows = load(str(tmp_path / "one.pt"))._rows(
        torch.from_numpy(load(str(tmp_path / "one.pt")).prepare(photograph))[None].float() / 255
    )
    assert boxes[0, 4] == pytest.approx(rows[0, :, 4].max().item(), abs=1e-5)


def test_the_paper_s_size_and_stride_with_a_real_variant(tmp_path, photograph):
    """yolov7-tiny, as `patrolscope train` writes it, from file to boxes."""
    torch.manual_seed(3)
    network = Network(variant("yolov7-tiny", 2))
    save_checkpoint(tmp_path / "tiny.pt", network, class_names=["officer", "vehicle"])
    detector = load(str(tmp_path / "tiny.pt"), size=256, min_score=0.2)
    assert detector.shape(720, 1280) == (160, 256)
    assert detector.class_names == ("officer", "vehicle")
    boxes = run(detector, photograph)[0]
    assert boxes.shape[1] == 6
    assert (boxes[:, 4] > 0.2).all()


@pytest.mark.shared
def test_street_images_are_prepared_to_shapes_that_fit_the_stride(shared_data, small):
    detector = load(small)
    images = sorted((shared_data / "street_images").rglob("*.jpg"))[:3]
    assert images
    for path in images:
        image = cv2.imread(str(path))[..., ::-1]
        boxes = run(detector, image)[0]
        height, width = image.shape[:2]
        assert (boxes[:, [0, 1]] >= 0).all()
        assert (boxes[:, [2, 3]] <= [width, height]).all()


def test_the_weights_command_describes_a_file(tmp_path):
    path = tmp_path / "under any name.pt"
    save_checkpoint(path, Network(variant("yolov7-tiny", 2)), class_names=["officer", "vehicle"], image_size=1280)
    answer = CliRunner().invoke(app, ["weights", str(path), "--json"])
    assert answer.exit_code == 0, answer.output
    facts = json.loads(answer.stdout)
    assert facts == {
        "file": str(path),
        "kind": "yolov7",
        "variant": "yolov7-tiny",
        "layers": 78,
        "head": "IDetect",
        "classes": {"0": "officer", "1": "vehicle"},
        "strides": [8, 16, 32],
        "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]],
        "parameters": 6_017_694,
        "parameters_fused": 6_219_709 - 78 * 3 * (128 + 256 + 512 + 3),
        "weights": "model",
        "folded": False,
        "stored_as": "float16",
        "epoch": -1,
        "training_image_size": 1280,
    }
    text = CliRunner().invoke(app, ["weights", str(path)]).stdout
    assert "0 officer, 1 vehicle" in text
    assert "10 13 16 30 33 23 | 30 61 62 45 59 119" in text
    assert "6,017,694" in text


def test_the_weights_command_rejects_a_program_in_one_line(tmp_path):
    torch.save({"model": print}, tmp_path / "program.pt")
    answer = CliRunner().invoke(app, ["weights", str(tmp_path / "program.pt")])
    assert answer.exit_code == 2
    assert "names __builtin__.print" in answer.stderr
    assert answer.stderr.count("\n") == 1

"""Models of ultralytics behind the same protocol, opened only when they are trusted."""

import warnings

import cv2
import numpy as np
import pytest

from patrolscope.pipeline.detect.detector import load_detector
from patrolscope.pipeline.detect.weights.describe import describe
from patrolscope.pipeline.errors import WeightsError
from tests.ultralytics_models import BUS, made


@pytest.fixture(scope="module")
def photograph():
    return cv2.imread(str(BUS))[..., ::-1]


@pytest.fixture(scope="module", params=["yolo11n", "yolo26n"])
def weights(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("ultralytics"), request.param)


def load(path, **options):
    return load_detector(str(path), **({"size": 160, "device": "cpu", "threads": 1, "trust": True} | options))


def run(detector, *images):
    return detector.predict(np.stack([detector.prepare(one) for one in images]), [one.shape[:2] for one in images])


def test_a_model_is_opened_only_when_it_is_trusted(weights):
    with pytest.raises(WeightsError, match=r"opening it runs what is in it.*--trust-weights"):
        load(weights, trust=False)
    facts = describe(str(weights))
    assert facts["kind"] == "ultralytics"
    assert facts["needs_trust"] is True


def test_boxes_are_those_of_ultralytics_itself(weights, photograph):
    """Its own predict pads and scales back in whole pixels of the network's input: half of one is 3.4 of the image."""
    from ultralytics import YOLO

    detector = load(weights, min_score=0.6)
    assert detector.class_names[:2] == ("kind 0", "kind 1")
    assert detector.shape(1080, 810) == (160, 128)
    found = run(detector, photograph)[0]
    theirs = (
        YOLO(str(weights))
        .predict(photograph[..., ::-1].copy(), imgsz=160, conf=0.6, iou=0.45, device="cpu", verbose=False)[0]
        .boxes.data.numpy()
    )
    assert len(found) > 3
    assert abs(len(found) - len(theirs)) <= 0.05 * len(theirs)
    near = [np.abs(theirs[theirs[:, 5] == box[5]][:, :5] - box[:5]).max(1).min(initial=99) < 5 for box in found]
    assert np.mean(near) > 0.95


def test_an_image_has_the_same_boxes_alone_and_in_a_batch(weights, photograph):
    detector = load(weights, min_score=0.6)
    together = run(detector, photograph, photograph[::-1].copy())
    np.testing.assert_allclose(together[0], run(detector, photograph)[0], atol=0.5)
    assert (together[0][:-1, 4] >= together[0][1:, 4]).all()


def test_classes_are_chosen_by_name(weights, photograph):
    every = run(load(weights, min_score=0.3), photograph)[0]
    kind = int(every[0, 5])
    found = run(load(weights, min_score=0.3, classes=[f"kind {kind}"]), photograph)[0]
    assert set(found[:, 5]) == {kind}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 150}, "size 150 is no multiple of the model's stride of 32: use 160"),
        ({"augment": True}, "augment and compile are for YOLOv7"),
        ({"precision": "bf16"}, "no bf16"),
        ({"classes": ["taxi"]}, "no class 'taxi'"),
    ],
)
def test_what_it_can_not_do_is_said(weights, options, message):
    with pytest.raises(WeightsError, match=message):
        load(weights, **options)


@pytest.fixture(scope="module")
def exported(weights):
    from ultralytics import YOLO

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        return YOLO(str(weights)).export(format="onnx", imgsz=160, simplify=False, device="cpu", verbose=False)


def test_its_onnx_export_needs_no_trust_and_gives_the_same_boxes(weights, exported, photograph):
    square = np.ascontiguousarray(photograph[:800, :800])
    ours = load(exported, min_score=0.6, trust=False)
    assert ours.shape(1080, 810) == (160, 160)
    found = run(ours, square, square)
    expected = run(load(weights, min_score=0.6), square)[0]
    assert len(expected) > 3
    for boxes in found:
        assert abs(len(boxes) - len(expected)) <= 1
        near = [np.abs(expected[:, :5] - box[:5]).max(1).min() < 1 for box in boxes]
        assert np.mean(near) > 0.95
    with pytest.raises(WeightsError, match="was exported for 160x160: size must be 160"):
        load(exported, size=320)

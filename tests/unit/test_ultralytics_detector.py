"""Ultralytics models behind the detector protocol, opened only if they are trusted."""

import warnings

import cv2
import numpy as np
import pytest

from patrolscope.pipeline.detect.detector import load_detector
from patrolscope.pipeline.detect.weights.describe import describe
from patrolscope.pipeline.errors import WeightsError
from tests.ultralytics_models import BUS, save_untrained


@pytest.fixture(scope="module")
def photograph():
    return cv2.imread(str(BUS))[..., ::-1]


@pytest.fixture(scope="module", params=["yolo11n", "yolo26n"])
def weights(request, tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("ultralytics"), request.param)


def load(path, **options):
    return load_detector(str(path), **({"size": 160, "device": "cpu", "threads": 1, "trust": True} | options))


def run(detector, *images):
    return detector.predict(
        np.stack([detector.prepare(image) for image in images]), [image.shape[:2] for image in images]
    )


def test_a_model_is_opened_only_if_it_is_trusted(weights):
    with pytest.raises(WeightsError, match=r"opening it runs code in it.*--trust-weights"):
        load(weights, trust=False)
    facts = describe(str(weights))
    assert facts["kind"] == "ultralytics"
    assert facts["needs_trust"] is True


def test_boxes_equal_those_of_ultralytics(weights, photograph):
    """Its predict works in whole pixels of the network's input; half a pixel there is 3.4 pixels in the image."""
    from ultralytics import YOLO

    detector = load(weights, min_score=0.6)
    assert detector.class_names[:2] == ("kind 0", "kind 1")
    assert detector.shape(1080, 810) == (160, 128)
    boxes = run(detector, photograph)[0]
    theirs = (
        YOLO(str(weights))
        .predict(photograph[..., ::-1].copy(), imgsz=160, conf=0.6, iou=0.45, device="cpu", verbose=False)[0]
        .boxes.data.numpy()
    )
    assert len(boxes) > 3
    assert abs(len(boxes) - len(theirs)) <= 0.05 * len(theirs)
    near = [np.abs(theirs[theirs[:, 5] == box[5]][:, :5] - box[:5]).max(1).min(initial=99) < 5 for box in boxes]
    assert np.mean(near) > 0.95


def test_an_image_has_the_same_boxes_alone_and_in_a_batch(weights, photograph):
    detector = load(weights, min_score=0.6)
    together = run(detector, photograph, photograph[::-1].copy())
    np.testing.assert_allclose(together[0], run(detector, photograph)[0], atol=0.5)
    assert (together[0][:-1, 4] >= together[0][1:, 4]).all()


def test_classes_are_chosen_by_name(weights, photograph):
    all_boxes = run(load(weights, min_score=0.3), photograph)[0]
    number = int(all_boxes[0, 5])
    boxes = run(load(weights, min_score=0.3, classes=[f"kind {number}"]), photograph)[0]
    assert set(boxes[:, 5]) == {number}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 150}, "size 150 is not a multiple of the model's stride of 32; use 160"),
        ({"augment": True}, "augment and compile are only available for YOLOv7"),
        ({"precision": "bf16"}, "does not support bf16"),
        ({"classes": ["taxi"]}, "no class 'taxi'"),
    ],
)
def test_unsupported_options_are_reported(weights, options, message):
    with pytest.raises(WeightsError, match=message):
        load(weights, **options)


@pytest.fixture(scope="module")
def exported(weights):
    from ultralytics import YOLO

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in torch's exporter
        return YOLO(str(weights)).export(format="onnx", imgsz=160, simplify=False, device="cpu", verbose=False)


def test_an_onnx_export_gives_the_same_boxes_and_needs_no_trust(weights, exported, photograph):
    square = np.ascontiguousarray(photograph[:800, :800])
    ours = load(exported, min_score=0.6, trust=False)
    assert ours.shape(1080, 810) == (160, 160)
    results = run(ours, square, square)
    expected = run(load(weights, min_score=0.6), square)[0]
    assert len(expected) > 3
    for boxes in results:
        assert abs(len(boxes) - len(expected)) <= 1
        near = [np.abs(expected[:, :5] - box[:5]).max(1).min() < 1 for box in boxes]
        assert np.mean(near) > 0.95
    with pytest.raises(WeightsError, match="was exported for 160x160; set size to 160"):
        load(exported, size=320)

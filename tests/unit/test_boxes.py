"""Letterboxing, decoding, and suppression, compared with plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.pipeline.detect.boxes import Letterbox, decode, ranked, restore, select
from patrolscope.pipeline.detect.models.augment import augmented
from tests import reference_yolov7 as reference


def test_the_border_is_as_narrow_as_the_stride_allows():
    image = np.zeros((333, 499, 3), np.uint8)
    boxed = Letterbox(640, 640, 32).prepare(image)
    assert boxed.shape == (3, 448, 640)
    gray = (boxed == 114).all((0, 2))
    assert (gray[:10].all(), gray[10:437].any(), gray[437:].all()) == (True, False, True)


@pytest.mark.parametrize(
    ("letterbox", "image", "shape"),
    [
        (Letterbox(1280, 1280, 64), (720, 1280), (768, 1280)),
        (Letterbox(640, 640, 32), (720, 1280), (384, 640)),
        (Letterbox(640, 640, 32), (1280, 720), (640, 384)),
        (Letterbox(640, 640, 32), (640, 640), (640, 640)),
        (Letterbox(640, 640, 32), (5000, 1), (640, 32)),
        (Letterbox(640, 640), (333, 499), (640, 640)),
        (Letterbox(384, 640), (333, 499), (384, 640)),
    ],
)
def test_shape_predicts_the_shape_of_prepared_images(letterbox, image, shape):
    assert letterbox.shape(*image) == shape
    assert letterbox.prepare(np.zeros((*image, 3), np.uint8)).shape == (3, *shape)


def test_channels_stay_in_order_and_an_image_of_the_right_size_is_not_resampled():
    image = np.random.default_rng(5).integers(0, 256, (64, 32, 3), np.uint8)
    boxed = Letterbox(64, 64, 32).prepare(image)
    assert np.array_equal(boxed, image.transpose(2, 0, 1))


def test_scaling_is_bilinear_between_pixel_centers():
    """Equal to torch's interpolation without antialiasing, up to rounding."""
    image = np.random.default_rng(5).integers(0, 256, (60, 90, 3), np.uint8)
    boxed = Letterbox(640, 640, 32).prepare(image)
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1)[None]).float(), size=(427, 640), mode="bilinear", align_corners=False
    )[0]
    assert np.abs(boxed[:, 10:437].astype(float) - plain.numpy()).max() <= 1.01


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_than_rgb_images_are_rejected(wrong):
    with pytest.raises(ValueError, match=r"expected \(h, w, 3\) and uint8"):
        Letterbox(64, 64, 32).prepare(wrong)


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    size=st.sampled_from([320, 640, 1280]),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_restoring_boxes_inverts_the_letterbox(height, width, size, corners):
    letterbox = Letterbox(size, size, 64)
    shape = letterbox.shape(height, width)
    gain = min(shape[0] / height, shape[1] / width)
    box = np.array(corners) * [width, height, width, height]
    pad = [(shape[1] - width * gain) / 2, (shape[0] - height * gain) / 2] * 2
    in_input = (box * gain + pad).astype(np.float32)[None]
    restored = restore(in_input, shape, (height, width))[0]
    assert np.abs(restored - box).max() <= 1e-3 * max(height, width)
    assert (restored >= 0).all()
    assert (restored <= [width, height, width, height]).all()


def test_boxes_outside_the_image_are_clipped_to_it():
    boxes = np.array([[-50, -50, 900, 900, 0.5, 1]], np.float32)
    assert restore(boxes, (640, 640), (480, 640)).tolist() == [[0, 0, 640, 480, 0.5, 1]]


@pytest.mark.parametrize("classes", [1, 3])
def test_decoding_equals_the_plain_loop_over_cells(classes):
    torch.manual_seed(1)
    anchors = ((12.0, 16.0, 19.0, 36.0, 40.0, 28.0), (36.0, 75.0, 76.0, 55.0, 72.0, 146.0))
    maps = [torch.randn(1, 3, 4, 6, 5 + classes), torch.randn(1, 3, 2, 3, 5 + classes)]
    rows = decode(maps, torch.tensor(anchors).reshape(2, 3, 2), (8, 16))
    assert rows.shape == (1, 3 * (24 + 6), 5 + classes)
    torch.testing.assert_close(rows[0], reference.decode(maps, anchors, (8, 16)), atol=1e-4, rtol=1e-5)


def test_coordinates_from_a_half_precision_map_have_single_precision():
    """At 1,200 pixels half precision resolves whole pixels only."""
    value = torch.tensor([0.25, 0.25, 0, 0, 3, 3], dtype=torch.float16)
    maps = torch.zeros(1, 3, 1, 160, 6, dtype=torch.float16)
    maps[..., :] = value
    rows = decode([maps], torch.ones(1, 3, 2), (8,))
    assert rows.dtype == torch.float32
    expected = (2 / (1 + np.exp(-0.25)) - 0.5 + 150) * 8
    assert abs(rows[0, 150, 0].item() - expected) < 0.001


def random_rows(seed, count, classes):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * 120 + 40
    sizes = torch.rand(count, 2, generator=generator) * 60 + 5
    return torch.cat([centers, sizes, torch.rand(count, 1 + classes, generator=generator)], 1)


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 120),
    classes=st.sampled_from([1, 2, 5]),
    min_score=st.sampled_from([0.0, 0.01, 0.3]),
    nms_iou=st.sampled_from([0.2, 0.45, 0.65]),
    kept_classes=st.sampled_from([None, (0,), (1,), (0, 4)]),
)
@settings(max_examples=60)
def test_suppression_equals_the_plain_loop_over_pairs(seed, count, classes, min_score, nms_iou, kept_classes):
    rows = random_rows(seed, count, classes)
    numbers = None if kept_classes is None else torch.tensor(kept_classes)
    boxes = select(rows, min_score=min_score, nms_iou=nms_iou, classes=numbers)
    expected = reference.select(rows, min_score, nms_iou, kept_classes)
    assert boxes.shape == (len(expected), 6)
    torch.testing.assert_close(boxes, torch.tensor(expected).reshape(-1, 6).float(), atol=1e-3, rtol=1e-4)


def test_with_one_class_the_score_is_the_objectness():
    rows = torch.tensor([[50.0, 50, 10, 10, 0.8, 0.5]])
    assert select(rows, min_score=0.5, nms_iou=0.45, classes=None)[0, 4] == pytest.approx(0.8)


def test_the_300_highest_scores_of_an_image_remain():
    spread = torch.arange(400).float()[:, None] * 100
    rows = torch.cat([spread, spread, torch.full((400, 2), 10.0), torch.rand(400, 1), torch.ones(400, 1)], 1)
    boxes = select(rows, min_score=0.0, nms_iou=0.45, classes=None)
    assert boxes[:, 4].tolist() == sorted(rows[:, 4].tolist(), reverse=True)[:300]


def test_boxes_of_two_classes_do_not_suppress_each_other():
    rows = torch.tensor([[50.0, 50, 20, 20, 0.9, 0.9, 0.1], [50.0, 50, 20, 20, 0.9, 0.1, 0.8]])
    assert select(rows, min_score=0.1, nms_iou=0.45, classes=None)[:, 5].tolist() == [0, 1]


def test_suppressed_boxes_are_filtered_and_sorted():
    boxes = torch.tensor([[0.0, 0, 1, 1, 0.2, 1], [0, 0, 1, 1, 0.9, 0], [0, 0, 1, 1, 0.9, 1], [0, 0, 1, 1, 0.5, 1]])
    assert ranked(boxes, 0.2, torch.tensor([1]))[:, 4].tolist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize(
    ("stride", "height", "width", "inputs"),
    [
        (32, 320, 320, [(320, 320), (288, 288), (224, 224)]),
        (64, 320, 320, [(320, 320), (320, 320), (256, 256)]),
        (64, 256, 320, [(256, 320), (256, 320), (192, 256)]),
    ],
)
def test_augmentation_passes_have_the_official_sizes(stride, height, width, inputs):
    passes = []

    def forward(images):
        passes.append(images)
        return torch.zeros(1, 1, 6)

    augmented(torch.rand(1, 3, height, width), forward, stride)
    assert [tuple(images.shape[2:]) for images in passes] == inputs
    small = int(height * 0.83), int(width * 0.83)
    assert (passes[1][..., small[0] :, :] == 0.447).all()
    assert (passes[1][..., :, small[1] :] == 0.447).all()
    assert not (passes[1][..., : small[0], : small[1]] == 0.447).all()


def test_boxes_of_all_passes_are_in_pixels_of_the_input():
    """A detector of the brightest pixel returns the same location in all passes."""
    images = torch.zeros(1, 3, 320, 320)
    images[0, :, 96:104, 200:208] = 1.0

    def forward(batch):
        brightness = batch[0, 0] * (batch[0, 0] - 0.447).abs().gt(0.01)
        rows, columns = (brightness > 0.9 * brightness.max()).nonzero(as_tuple=True)
        x, y = columns.float().mean() + 0.5, rows.float().mean() + 0.5
        return torch.stack([x, y, torch.tensor(8.0), torch.tensor(8.0), torch.tensor(0.9), torch.tensor(0.8)])[
            None, None
        ]

    rows = augmented(images, forward, 32)[0]
    assert rows.shape == (3, 6)
    assert (rows[:, :2] - torch.tensor([204.0, 100.0])).abs().max() < 1.5
    torch.testing.assert_close(rows[:, 2], torch.tensor([8.0, 8 / 0.83, 8 / 0.67]))
    assert (rows[:, 4:] == torch.tensor([0.9, 0.8])).all()

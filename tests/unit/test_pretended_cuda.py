"""Detector and loss on a simulated CUDA device: every tensor is on the device that its operations expect.

Tests marked gpu check the results and the speed of a real GPU.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from patrolscope.pipeline.detect.boxes import decode, select  # noqa: E402
from patrolscope.pipeline.detect.detector import load_detector  # noqa: E402
from patrolscope.pipeline.detect.inference import Batch, infer  # noqa: E402
from patrolscope.pipeline.detect.models.architecture import variant, variant_names  # noqa: E402
from patrolscope.pipeline.detect.models.yolov7 import Network  # noqa: E402
from patrolscope.pipeline.detect.weights.street_scenes import WEIGHTS  # noqa: E402
from patrolscope.pipeline.train.loss import Criterion  # noqa: E402
from patrolscope.pipeline.train.network import narrowed, new_network  # noqa: E402
from patrolscope.pipeline.train.settings import RECIPES  # noqa: E402
from tests.pretend_cuda import OnCuda, pretended_cuda  # noqa: E402
from tests.ultralytics_models import BUS, save_untrained  # noqa: E402

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device; run pytest -m gpu"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision"),
]
CONTENTS = [BUS.read_bytes(), (BUS.parent / "zidane.jpg").read_bytes(), b"no image"]


@pytest.fixture
def cuda(monkeypatch):
    with pretended_cuda(monkeypatch) as device:
        yield device


def test_the_simulated_device_rejects_the_same_operations_as_cuda(cuda):
    on_cpu, on_cuda = torch.arange(3.0), torch.arange(3.0, device=cuda)
    for mixed in (lambda: on_cpu + on_cuda, lambda: torch.cat([on_cpu, on_cuda]), lambda: on_cpu[on_cuda.long()]):
        with pytest.raises(RuntimeError, match="expected all tensors on the same device"):
            mixed()
    assert (on_cuda + torch.tensor(1.0)).tolist() == [1, 2, 3]
    assert on_cuda[on_cpu > 1].tolist() == [2]
    assert on_cuda.cpu().numpy().tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError):
        on_cuda.numpy()


@pytest.mark.parametrize("name", variant_names())
def test_a_pass_of_every_variant_stays_on_the_device_in_half_precision(name, monkeypatch):
    network = Network(narrowed(variant(name, 2), 0.1)).eval().fuse()
    anchors = network.head.anchor_grid.reshape(len(network.strides), -1, 2).float()
    images = torch.rand(2, 3, 128, 192)
    with torch.no_grad():
        expected = decode(network(images), anchors, network.strides)
        with pretended_cuda(monkeypatch) as device:
            network.to(device, torch.float16).to(memory_format=torch.channels_last)
            maps = network(images.to(device, torch.float16, memory_format=torch.channels_last))
            assert {(type(feature_map), feature_map.dtype) for feature_map in maps} == {(OnCuda, torch.float16)}
            rows = decode(maps, anchors.to(device), network.strides)
            assert (type(rows), rows.dtype) == (OnCuda, torch.float32)
    np.testing.assert_allclose(rows.values_on_cpu, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("classes", [1, 3])
def test_boxes_are_suppressed_on_the_device_as_on_the_cpu(cuda, classes):
    rows = torch.rand(500, 5 + classes, generator=torch.Generator().manual_seed(4)) * torch.tensor(
        [64] * 4 + [1] * (1 + classes)
    )
    options = {"min_score": 0.1, "nms_iou": 0.45}
    boxes = select(rows.to(cuda), classes=torch.tensor([0], device=cuda), **options)
    assert type(boxes) is OnCuda
    assert len(boxes) > 5
    assert torch.equal(boxes.values_on_cpu, select(rows, classes=torch.tensor([0]), **options))


def detect(path, device, precision, *, jpeg="cpu", **options):
    detector = load_detector(str(path), device=device, precision=precision, min_score=0.001, jpeg=jpeg, **options)
    assert (detector.jpegs is None) == (jpeg == "cpu")
    # 7,000 bytes are free, of which a fifth is reserved; an image needs 1,000.
    assert detector.default_batch() == (4 if device == "cuda" else 1)
    return infer(detector, CONTENTS.__getitem__, len(CONTENTS), batch=Batch(2), threads=2, max_pixels=10**8)


def assert_similar(on_cpu, on_cuda, tolerance):
    for pair in zip(on_cpu, on_cuda, strict=True):
        assert pair[0].status == pair[1].status
        scores = [np.sort(detection.boxes[:, 4])[::-1][:5] for detection in pair]
        np.testing.assert_allclose(*scores, atol=tolerance)
    assert [len(detection.boxes) > 5 for detection in on_cpu] == [True, True, False]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 0.01), ("bf16", 0.03)])
def test_detections_of_the_device_equal_those_of_the_cpu(cuda, precision, tolerance, augment):
    options = {"size": 320, "classes": [1], "augment": augment}
    on_cpu, on_cuda = detect(WEIGHTS, "cpu", "fp32", **options), detect(WEIGHTS, "cuda", precision, **options)
    assert_similar(on_cpu, on_cuda, tolerance)


def test_jpegs_that_are_decoded_on_the_device_are_letterboxed_there(cuda):
    options = {"size": 320, "classes": [1]}
    on_cpu = detect(WEIGHTS, "cpu", "fp32", **options)
    on_cuda = detect(WEIGHTS, "cuda", "fp32", jpeg="device", **options)
    assert_similar(on_cpu, on_cuda, 0.1)  # pixels differ by one gray level of rounding
    assert [(detection.width, detection.height) for detection in on_cuda] == [(810, 1080), (1280, 720), (None, None)]


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 0.01)])
def test_ultralytics_detections_of_the_device_equal_those_of_the_cpu(name, precision, tolerance, tmp_path, monkeypatch):
    path = save_untrained(tmp_path, name)
    options = {"size": 160, "trust": True}
    on_cpu = detect(path, "cpu", "fp32", **options)
    with pretended_cuda(monkeypatch):
        assert_similar(on_cpu, detect(path, "cuda", precision, **options), tolerance)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "recipe"), [("yolov7-tiny", "tiny"), ("yolov7-w6", "p6")])
def test_the_loss_is_computed_on_the_device_as_on_the_cpu(name, recipe, precision, monkeypatch):
    network = new_network(name, classes=2, width=0.05, seed=1).train()
    criterion = Criterion(network, RECIPES[recipe], 128)
    images = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [0, 0, 0.2, 0.3, 0.1, 0.2], [2, 1, 0.7, 0.2, 0.5, 0.3]])

    def loss(device):
        with torch.no_grad(), torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            maps = network.to(device)(images.to(device).to(memory_format=torch.channels_last))
        return criterion(maps, targets.to(device))

    expected = loss(torch.device("cpu"))
    with pretended_cuda(monkeypatch) as device:
        on_cuda = loss(device)
        assert type(on_cuda.total) is OnCuda
    parts = [(float(losses.total), losses.box, losses.objectness, losses.classes) for losses in (on_cuda, expected)]
    np.testing.assert_allclose(*parts, rtol=1e-5 if precision == torch.float32 else 0.02)

"""Detector and loss on a CUDA device that is pretended: every tensor is where the operations on it expect it.

What a GPU computes, and in what time, is for the tests marked gpu.
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
from tests.ultralytics_models import BUS, made  # noqa: E402

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real CUDA device: pytest -m gpu"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision"),
]
CONTENTS = [BUS.read_bytes(), (BUS.parent / "zidane.jpg").read_bytes(), b"no image"]


@pytest.fixture
def cuda(monkeypatch):
    with pretended_cuda(monkeypatch) as device:
        yield device


def test_the_pretended_device_refuses_what_cuda_refuses(cuda):
    here, there = torch.arange(3.0), torch.arange(3.0, device=cuda)
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="expected all tensors on the same device"):
            mixed()
    assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3]
    assert there[here > 1].tolist() == [2]
    assert there.cpu().numpy().tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError):
        there.numpy()


@pytest.mark.parametrize("name", variant_names())
def test_a_pass_of_every_variant_stays_on_the_device_in_half_precision(name, monkeypatch):
    network = Network(narrowed(variant(name, 2), 0.1)).eval().fuse()
    anchors = network.head.anchor_grid.reshape(len(network.strides), -1, 2).float()
    images = torch.rand(2, 3, 128, 192)
    with torch.no_grad():
        wanted = decode(network(images), anchors, network.strides)
        with pretended_cuda(monkeypatch) as device:
            network.to(device, torch.float16).to(memory_format=torch.channels_last)
            maps = network(images.to(device, torch.float16, memory_format=torch.channels_last))
            assert {(type(one), one.dtype) for one in maps} == {(OnCuda, torch.float16)}
            rows = decode(maps, anchors.to(device), network.strides)
            assert (type(rows), rows.dtype) == (OnCuda, torch.float32)
    np.testing.assert_allclose(rows.held, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("classes", [1, 3])
def test_boxes_are_chosen_on_the_device_as_on_the_cpu(cuda, classes):
    rows = torch.rand(500, 5 + classes, generator=torch.Generator().manual_seed(4)) * torch.tensor(
        [64] * 4 + [1] * (1 + classes)
    )
    asked = {"min_score": 0.1, "nms_iou": 0.45}
    there = select(rows.to(cuda), classes=torch.tensor([0], device=cuda), **asked)
    assert type(there) is OnCuda
    assert len(there) > 5
    assert torch.equal(there.held, select(rows, classes=torch.tensor([0]), **asked))


def found(path, device, precision, *, jpeg="cpu", **options):
    detector = load_detector(str(path), device=device, precision=precision, min_score=0.001, jpeg=jpeg, **options)
    assert (detector.jpegs is None) == (jpeg == "cpu")
    # Of 7,000 bytes that are free a fifth is kept; an image takes 1,000.
    assert detector.default_batch() == (4 if device == "cuda" else 1)
    return infer(detector, CONTENTS.__getitem__, len(CONTENTS), batch=Batch(2), threads=2, max_pixels=10**8)


def assert_alike(here, there, within):
    for one, other in zip(here, there, strict=True):
        assert one.status == other.status
        scores = [np.sort(found.boxes[:, 4])[::-1][:5] for found in (one, other)]
        np.testing.assert_allclose(*scores, atol=within)
    assert [len(one.boxes) > 5 for one in here] == [True, True, False]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("fp16", 0.01), ("bf16", 0.03)])
def test_a_detector_finds_on_the_device_what_it_finds_on_the_cpu(cuda, precision, within, augment):
    asked = {"size": 320, "classes": [1], "augment": augment}
    assert_alike(found(WEIGHTS, "cpu", "fp32", **asked), found(WEIGHTS, "cuda", precision, **asked), within)


def test_jpegs_that_are_decoded_on_the_device_are_letterboxed_there(cuda):
    asked = {"size": 320, "classes": [1]}
    here, there = found(WEIGHTS, "cpu", "fp32", **asked), found(WEIGHTS, "cuda", "fp32", jpeg="device", **asked)
    assert_alike(here, there, 0.1)  # a gray level of rounding in a pixel
    assert [(one.width, one.height) for one in there] == [(810, 1080), (1280, 720), (None, None)]


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("fp16", 0.01)])
def test_so_does_a_model_of_ultralytics(name, precision, within, tmp_path, monkeypatch):
    path = made(tmp_path, name)
    asked = {"size": 160, "trust": True}
    here = found(path, "cpu", "fp32", **asked)
    with pretended_cuda(monkeypatch):
        assert_alike(here, found(path, "cuda", precision, **asked), within)


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

    wanted = loss(torch.device("cpu"))
    with pretended_cuda(monkeypatch) as device:
        found = loss(device)
        assert type(found.total) is OnCuda
    parts = [(float(one.total), one.box, one.objectness, one.classes) for one in (found, wanted)]
    np.testing.assert_allclose(*parts, rtol=1e-5 if precision == torch.float32 else 0.02)

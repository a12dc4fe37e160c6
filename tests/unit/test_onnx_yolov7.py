"""YOLOv7 exports: the layout is recognized or rejected by name, and a grid gives the boxes of the checkpoint."""

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from patrolscope.pipeline.detect.boxes import decode
from patrolscope.pipeline.detect.detector import load_detector
from patrolscope.pipeline.detect.models.onnx_yolov7 import END_TO_END, GRID, Export, layout_of
from patrolscope.pipeline.detect.weights.describe import describe
from patrolscope.pipeline.errors import WeightsError
from tests.official_form import save

ROWS = 3 * (16 * 16 + 8 * 8 + 4 * 4)  # of 128 x 128


def export(path, *values, batch=1, size=(128, 128), metadata=(), nms=None, repeat=True, numbers=TensorProto.FLOAT):
    """Write a graph that returns the given values for any image: an export without a network.

    With `repeat`, the first axis of the values is repeated for every image of a batch.
    """
    dtype = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}[numbers]
    nodes, outputs = [helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1)], []
    constants = [numpy_helper.from_array(np.zeros(1, dtype), "zero")]
    for index, value in enumerate(values):
        shape = [1] * (value.ndim - 1)
        constants.append(numpy_helper.from_array(value.astype(dtype), f"value{index}"))
        constants.append(numpy_helper.from_array(np.array([-1 if repeat else 1, *shape]), f"shape{index}"))
        start = "mean" if repeat else "zero"
        nodes += [
            helper.make_node("Reshape", [start, f"shape{index}"], [f"flat{index}"]),
            helper.make_node("Mul", [f"flat{index}", "zero"], [f"nothing{index}"]),
            helper.make_node("Add", [f"nothing{index}", f"value{index}"], [f"output{index}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"output{index}", numbers, None))
    if nms is not None:
        constants += [
            numpy_helper.from_array(np.array([limit], np.float32), f"limit{i}") for i, limit in enumerate(nms)
        ]
        constants += [
            numpy_helper.from_array(np.zeros((1, 1, 4), np.float32), "corners"),
            numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "scores"),
            numpy_helper.from_array(np.array([100]), "most"),
        ]
        nodes.append(helper.make_node("NonMaxSuppression", ["corners", "scores", "most", "limit0", "limit1"], ["kept"]))
    images = helper.make_tensor_value_info("images", numbers, [batch, 3, *size])
    graph = helper.make_graph(nodes, "export", [images], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in metadata:
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return str(path)


def load(path, **options):
    return load_detector(path, **({"size": 128, "device": "cpu", "threads": 1} | options))


@pytest.fixture(scope="module")
def photograph():
    image = cv2.imread(str(files("ultralytics") / "assets" / "bus.jpg"))[..., ::-1]
    return np.ascontiguousarray(image[200:1000, :800])


def run(detector, *images):
    return detector.predict(
        np.stack([detector.prepare(image) for image in images]), [image.shape[:2] for image in images]
    )


def rows_of(classes=2, count=ROWS, seed=3):
    generator = np.random.default_rng(seed)
    centers = generator.uniform(10, 118, (1, count, 2))
    return np.concatenate(
        [centers, generator.uniform(4, 40, (1, count, 2)), generator.random((1, count, 3 + classes - 2))], 2
    )


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_a_grid_gives_the_boxes_of_the_checkpoint(tmp_path, photograph, batch):
    """The export returns the rows of the network for a square photograph."""
    save(tmp_path / "small.pt")
    ours = load(str(tmp_path / "small.pt"), min_score=0.2)
    boxed = torch.from_numpy(ours.prepare(photograph))[None].float() / 255
    with torch.inference_mode():
        rows = decode(ours._network(boxed), ours.anchors, ours.strides)[0]
    # Two feature maps replace three; rows of zeros are below every score.
    padded = np.zeros((1, ROWS, 7), np.float32)
    padded[0, : len(rows)] = rows[:ROWS].numpy()
    path = export(tmp_path / "grid.onnx", padded, batch=batch)
    detector = load(path, min_score=0.2)
    assert detector.class_names == ("0", "1")
    results = run(detector, photograph, photograph, photograph)
    expected = run(ours, photograph)[0]
    assert len(expected) > 0
    for boxes in results:
        np.testing.assert_allclose(boxes, expected, atol=1e-3)


def test_a_grid_in_half_precision_is_read(tmp_path, photograph):
    path = export(tmp_path / "half.onnx", rows_of(), numbers=TensorProto.FLOAT16)
    assert len(run(load(path, min_score=0.3), photograph)[0]) > 10


def test_suppressed_boxes_are_returned_by_image_and_highest_score_first(tmp_path, photograph):
    """The columns are image, corners, class, and score."""
    boxes = np.array(
        [[0, 10, 20, 30, 40, 1, 0.5], [1, 1, 2, 3, 4, 1, 0.9], [0, 5, 6, 7, 8, 1, 0.8], [0, 5, 6, 7, 8, 0, 0.95]]
    )
    path = export(tmp_path / "end.onnx", boxes, nms=(0.45, 0.25), repeat=False, batch=2)
    detector = load(path, min_score=0.25, classes=[1])
    first, second = run(detector, photograph, photograph)
    scale = 800 / 128
    np.testing.assert_allclose(
        first,
        [
            [5 * scale, 6 * scale, 7 * scale, 8 * scale, 0.8, 1],
            [10 * scale, 20 * scale, 30 * scale, 40 * scale, 0.5, 1],
        ],
        rtol=1e-5,
    )
    assert second[:, 4].tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((0.45, 0.25), r"drops boxes that score 0.25 or less; expected at most min_score \(0.01\)"),
        ((0.65, 0.01), r"suppresses boxes above an overlap of 0.65; expected nms_iou \(0.45\)"),
        (None, "does not contain the limits of its NMS"),
    ],
)
def test_an_export_that_drops_too_many_boxes_is_rejected(tmp_path, limits, message):
    path = export(tmp_path / "end.onnx", np.zeros((3, 7)), nms=limits, repeat=False)
    with pytest.raises(WeightsError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 3, 16, 16, 7), (1, 3, 8, 8, 7), (1, 3, 4, 4, 7)], "raw feature maps"),
        ([(1, 84, 336)], "ultralytics layout"),
        ([(1, 300, 6)], "suppressed boxes"),
        ([(1, 1000)], "expected a YOLOv7 layout"),
        ([(1, ROWS, 5)], "expected a YOLOv7 layout"),
        ([(1, 1), (1, 100, 4), (1, 100), (1, 100)], "expected a YOLOv7 layout"),
    ],
)
def test_other_layouts_are_rejected_by_name(tmp_path, shapes, message):
    path = export(tmp_path / "other.onnx", *(np.zeros(shape) for shape in shapes))
    with pytest.raises(WeightsError, match=message) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_layouts_are_inferred_from_shapes():
    assert layout_of([(1, 25_200, 85)], 640, 640) == GRID
    # With one class the last dimension is 6, which ultralytics would mistake for suppressed boxes.
    assert layout_of([(1, 25_200, 6)], 640, 640) == GRID
    assert layout_of([(4, 102_000, 7)], 1280, 1280) == GRID
    assert layout_of([(0, 7)], 640, 640) == END_TO_END


def test_an_export_for_tensorrt_is_rejected_by_its_operator(tmp_path):
    path = export(tmp_path / "trt.onnx", rows_of())
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("EfficientNMS_TRT", ["images"], ["num_dets"], domain="TRT"))
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    onnx.save(model, path)
    with pytest.raises(WeightsError, match=r"exported for TensorRT \(operator EfficientNMS_TRT\)"):
        load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 640}, "was exported for 128x128; set size to 128"),
        ({"augment": True}, "remove augment"),
        ({"precision": "bf16"}, "remove augment, compile, and precision"),
        ({"classes": ["vehicle"]}, "no class 'vehicle'"),
        ({"classes": [2]}, "no class 2"),
    ],
)
def test_unsupported_options_are_reported(tmp_path, options, message):
    with pytest.raises(WeightsError, match=message):
        load(export(tmp_path / "grid.onnx", rows_of()), **options)


def out_of_memory(session, *_):
    raise failures.RuntimeException("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9")


def test_a_memory_shortage_is_distinguished_from_an_export_that_cannot_be_run(tmp_path, monkeypatch):
    file = export(tmp_path / "best.onnx", rows_of())
    detector = load(file)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", out_of_memory)
    with pytest.raises(MemoryError, match="Failed to allocate"):  # makes `infer` halve the batch
        detector.predict(np.zeros((1, 3, 128, 128), np.uint8), [(128, 128)])
    with pytest.raises(WeightsError, match=r"best\.onnx: 1 images of 128x128 do not fit the memory of cpu"):
        load(file)


def test_requested_cuda_that_onnxruntime_cannot_load_is_rejected(tmp_path, monkeypatch):
    """onnxruntime itself falls back to the CPU. Here it lists CUDA as available without having it."""
    file = Path(export(tmp_path / "best.onnx", rows_of()))
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers: real(*args, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(WeightsError, match="device cuda is not available; onnxruntime could not load CUDA"):
        Export(file, torch.device("cuda"), choice="cuda", threads=1)
    Export(file, torch.device("cuda"), choice="auto", threads=1)


def test_other_files_than_exports_are_rejected(tmp_path):
    (tmp_path / "notes.onnx").write_bytes(b"These are my notes")
    with pytest.raises(WeightsError, match="is not an ONNX file or is damaged"):
        load(str(tmp_path / "notes.onnx"))
    whole = export(tmp_path / "cut.onnx", rows_of())
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "cut.onnx").read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"damaged|cannot open"):
        load(whole)
    with pytest.raises(WeightsError, match="with fixed H and W"):
        load(export(tmp_path / "open.onnx", rows_of(), size=("h", "w")))


def test_an_export_is_described(tmp_path):
    path = export(tmp_path / "grid.onnx", rows_of(), batch="n")
    assert describe(path) == {
        "file": path,
        "kind": "yolov7 onnx",
        "layout": "grid",
        "height": 128,
        "width": 128,
        "batch": "any",
        "classes": 2,
    }

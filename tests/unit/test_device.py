"""GPU support, mostly tested without a GPU."""

import contextlib
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from benchmarks.detect import gpu_utilization, measure_loop, sampled_utilization
from patrolscope.pipeline.detect import device_jpeg
from patrolscope.pipeline.detect.boxes import Letterbox
from patrolscope.pipeline.detect.decode import decode
from patrolscope.pipeline.detect.detector import load_detector
from patrolscope.pipeline.detect.device import Uploader, images_that_fit, measured_batch
from patrolscope.pipeline.detect.device_jpeg import JpegDecoder, letterboxed
from patrolscope.pipeline.detect.inference import Batch, infer
from patrolscope.pipeline.detect.models.architecture import variant
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.weights.checkpoint_writer import save_checkpoint
from patrolscope.pipeline.errors import SettingsError, WeightsError
from tests.fake_detector import FakeDetector
from tests.image_files import encoded, of_every_kind, picture, turned
from tests.official_form import save

# torchvision's decode_jpeg announces its successor.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision")

MANY_PIXELS = 50_000_000
# Shift of the median box in half precision: 0.96 pixels on a CPU; 1.03 if the bias is added in half precision, as cuDNN
# does. bf16 shifts it by 6.9.
MAX_SHIFT = 2
GIB = 2**30


def plain(detections):
    return [(each.status, each.boxes.tolist(), each.width, each.height) for each in detections]


def run(detector, files, *, batch=4, threads=2):
    batch = batch if isinstance(batch, Batch) else Batch(batch)
    return infer(detector, files.__getitem__, len(files), batch=batch, threads=threads, max_pixels=MANY_PIXELS)


# Uploads during prediction.


class Recording(FakeDetector):
    """Detector that records its calls in order, and the threads of uploads and predictions."""

    def __init__(self, **options):
        super().__init__(**options)
        self.events, self.threads = [], {}

    def upload(self, images):
        self.events.append(("upload", len(images)))
        self.threads["upload"] = threading.current_thread()
        return super().upload(images)

    def predict(self, batch, sizes):
        boxes = super().predict(batch, sizes)
        self.threads["predict"] = threading.current_thread()
        self.events.append(("predict", len(sizes)))
        return boxes


def test_a_batch_is_uploaded_while_the_network_processes_the_one_before():
    """The second prediction waits for the third upload, which it would never see without concurrency."""
    third_upload, seen = threading.Event(), threading.Event()

    class Waiting(Recording):
        def upload(self, images):
            batch = super().upload(images)
            if len([event for event, _ in self.events if event == "upload"]) == 3:
                third_upload.set()
            return batch

        def predict(self, batch, sizes):
            if len(self.batches) == 1 and third_upload.wait(timeout=60):
                seen.set()
            return super().predict(batch, sizes)

    detector = Waiting()
    run(detector, [encoded(picture(8, 8))] * 12)
    assert seen.is_set()
    assert detector.threads["upload"] != detector.threads["predict"]
    assert [count for event, count in detector.events if event == "predict"] == [4, 4, 4]


def test_at_most_one_batch_is_uploaded_ahead():
    ready, counts = [], []

    class Counting(Recording):
        def upload(self, images):
            ready.append(1)
            counts.append(len(ready))
            return super().upload(images)

        def predict(self, batch, sizes):
            boxes = super().predict(batch, sizes)
            ready.pop()
            return boxes

    run(Counting(), [encoded(picture(8, 8))] * 40)
    assert max(counts) <= 2


def test_a_batch_that_does_not_fit_during_a_prediction_is_uploaded_afterwards():
    class Full(Recording):
        def upload(self, images):
            if threading.current_thread().name.startswith("upload") and len(images) > 1:
                raise MemoryError("out of memory")
            return super().upload(images)

    detector = Full()
    files = [encoded(picture(color=(20 * n, 0, 0)), "PNG") for n in range(10)]
    assert plain(run(detector, files)) == plain(run(FakeDetector(), files))
    assert {count for event, count in detector.events if event == "predict"} == {4, 2}


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_a_memory_shortage_is_recognized_by_the_messages_of_libraries(message):
    class Small(FakeDetector):
        def predict(self, batch, sizes):
            if len(sizes) > 2:
                raise RuntimeError(message)
            return super().predict(batch, sizes)

    files = [encoded(picture(color=(20 * n, 0, 0)), "PNG") for n in range(10)]
    batch = Batch(8)
    assert plain(run(Small(), files, batch=batch)) == plain(run(FakeDetector(), files))
    assert batch.size == 2


def test_an_uploaded_batch_is_halved_on_the_device():
    detector, batch = Recording(capacity=2), Batch(8)
    files = [encoded(picture(color=(10 * n, 0, 0)), "PNG") for n in range(20)]
    assert plain(run(detector, files, batch=batch)) == plain(run(FakeDetector(), files))
    assert batch.size == 2
    # Two batches were uploaded before the first prediction failed.
    assert [count for event, count in detector.events if event == "upload"][:2] == [8, 8]
    assert {count for event, count in detector.events if event == "predict"} == {2}


def test_an_error_during_upload_is_raised():
    class Broken(FakeDetector):
        def upload(self, images):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(Broken(), [encoded(picture())] * 9)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("upload", "decode"))]


@pytest.fixture
def cuda_calls(monkeypatch):
    """Record the CUDA calls of uploads as a list, and let the CPU execute them."""
    calls = []

    class Stream:
        def synchronize(self):
            calls.append("synchronize")

    @contextlib.contextmanager
    def stream(_stream):
        calls.append("on stream")
        yield
        calls.append("off stream")

    empty, to = torch.empty, torch.Tensor.to

    def pinned(*args, pin_memory=False, **options):
        calls.extend(["pinned"] if pin_memory else [])
        return empty(*args, **options)

    def moved(tensor, *args, non_blocking=False, **options):
        if args and isinstance(args[0], torch.device) and args[0].type == "cuda":
            calls.append(f"copy, non_blocking={non_blocking}")
            return tensor.clone()
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream of the network")
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: calls.append(f"used by {stream}"))
    return calls


def test_on_cuda_images_are_copied_from_pinned_memory_on_a_synchronized_stream(cuda_calls):
    images = list(np.random.default_rng(1).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8))
    batch = Uploader(torch.device("cuda")).upload(images)
    assert np.array_equal(batch.numpy(), np.stack(images))
    copy = ["on stream", "pinned", "copy, non_blocking=True", "synchronize", "off stream"]
    assert cuda_calls == [*copy, "used by the stream of the network"]


def test_images_on_the_device_and_in_memory_keep_their_order(cuda_calls):
    arrays = np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    mixed = [arrays[0], torch.from_numpy(arrays[1]), torch.from_numpy(arrays[2]), arrays[3]]
    for device in ("cpu", "cuda"):
        assert np.array_equal(torch.as_tensor(Uploader(torch.device(device)).upload(mixed)).numpy(), arrays)


def test_on_a_cpu_a_batch_stays_an_array():
    images = [np.zeros((3, 4, 4), np.uint8)] * 2
    assert isinstance(Uploader(torch.device("cpu")).upload(images), np.ndarray)


# Images per pass.


@given(st.integers(0, 10**10), st.integers(0, 10**9), st.integers(1, 10**9), st.integers(0, 10**11))
def test_the_batch_is_the_largest_power_of_two_that_fits_80_percent(held, fixed, per_image, free):
    def needed(images):
        return fixed + images * per_image

    images = images_that_fit(held=held, peak_of_one=held + needed(1), peak_of_two=held + needed(2), free=free)
    assert images in {1, 2, 4, 8, 16, 32}
    assert images == 1 or needed(images) <= 0.8 * free + 1
    assert images == 32 or needed(2 * images) > 0.8 * free - 1


def test_a_second_image_without_memory_counts_like_the_first():
    assert images_that_fit(held=GIB, peak_of_one=2 * GIB, peak_of_two=2 * GIB, free=10 * GIB) == 8


class SimulatedMemory:
    """Device of 16 GiB with a network of 1 GiB that keeps a workspace after its first pass."""

    def __init__(self, per_image):
        self.per_image, self.allocated, self.peak, self.passes = per_image, GIB, GIB, []

    def run(self, images):
        self.passes.append(images)
        self.allocated = GIB + GIB // 4
        self.peak = max(self.peak, self.allocated + images * self.per_image)
        if self.peak > 16 * GIB:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def install(self, monkeypatch):
        def reset(_device):
            self.peak = self.allocated

        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (16 * GIB - self.allocated, 16 * GIB))
        return self


@pytest.mark.parametrize(
    ("per_image", "batch"), [(GIB // 2, 16), (GIB, 8), (GIB // 100, 32), (10 * GIB, 1), (20 * GIB, 1)]
)
def test_the_batch_is_measured_by_passes_over_one_and_two_images(monkeypatch, per_image, batch):
    memory = SimulatedMemory(per_image).install(monkeypatch)
    assert measured_batch(memory.run, torch.device("cuda")) == batch
    assert max(memory.passes) == 2


# JPEG decoding on the device, simulated by the CPU.


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([Letterbox(128, 128, 32), Letterbox(96, 160)]))
def test_the_letterbox_of_the_device_equals_that_of_the_cpu_up_to_one_gray_level(height, width, letterbox):
    image = np.random.default_rng(height * 301 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    on_device = letterboxed(torch.from_numpy(image).permute(2, 0, 1), letterbox).numpy()
    assert on_device.shape == (3, *letterbox.shape(height, width))
    assert np.abs(on_device.astype(int) - letterbox.prepare(image)).max() <= 1


@pytest.mark.parametrize("size", [(720, 1280), (1080, 810), (640, 480), (2160, 3840)])
def test_the_letterbox_of_large_images_is_equal_too(size):
    image = cv2.resize(np.random.default_rng(1).integers(0, 256, (90, 160, 3), dtype=np.uint8), size[::-1])
    letterbox = Letterbox(1280, 1280, 64)
    on_device = letterboxed(torch.from_numpy(image).permute(2, 0, 1), letterbox).numpy()
    assert np.abs(on_device.astype(int) - letterbox.prepare(image)).max() <= 1


def rgb_jpeg():
    """Encode a JPEG that stores red, green, and blue."""
    return encoded(picture(), quality=95, keep_rgb=True)


def test_only_plain_complete_jpegs_are_left_to_the_device():
    left_to_device = set()
    files = {name: content for name, (content, _) in of_every_kind().items()}
    files |= {"rgb.jpg": rgb_jpeg(), "upright.jpg": turned(picture(), 1)}
    files["no_end.jpg"] = files["plain.jpg"][:-2]
    for name, content in files.items():
        decoded = decode(content, max_pixels=MANY_PIXELS)
        left = decode(content, max_pixels=MANY_PIXELS, leave_jpegs=True)
        assert (left.status, left.width, left.height) == (decoded.status, decoded.width, decoded.height), name
        if left.pixels is None and decoded.pixels is not None:
            left_to_device.add(name)
    assert left_to_device == {"plain.jpg", "gray.jpg", "upright.jpg"}
    assert decode(files["plain.jpg"], max_pixels=10, leave_jpegs=True).status == "too_large"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    save(path)
    return str(path)


def load(weights, **options):
    return load_detector(weights, **({"size": 128, "device": "cpu", "threads": 1, "min_score": 0.2} | options))


def damaged_jpeg():
    """Return a JPEG with an intact header and end, and a table with which nothing can be decoded."""
    content = bytearray(encoded(picture()))
    content[content.index(b"\xff\xc4") + 5 : content.index(b"\xff\xc4") + 21] = b"\xff" * 16
    return bytes(content)


def noisy_jpegs(count):
    rng = np.random.default_rng(3)
    sizes = [(96, 64), (64, 96)]
    images = [cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), sizes[n % 2]) for n in range(count)]
    return [encoded(Image.fromarray(image), quality=95) for image in images]


def test_the_decoder_of_jpegs_changes_no_status_and_boxes_by_rounding_only(weights):
    """The simulated device decodes as the CPU does, so that boxes differ by the letterbox only."""
    on_cpu, on_device = load(weights, jpeg="cpu"), load(weights, jpeg="device")
    files = [content for content, _ in of_every_kind().values()]
    files += [rgb_jpeg(), damaged_jpeg(), *noisy_jpegs(6), damaged_jpeg(), None]
    expected = run(on_cpu, files)
    assert expected[-2].status == "unreadable"
    for batch in (1, 4, 64):
        detections = run(on_device, files, batch=batch)
        for actual, desired in zip(detections, expected, strict=True):
            assert (actual.status, actual.width, actual.height) == (desired.status, desired.width, desired.height)
            assert actual.seconds > 0
            if len(desired.boxes):
                assert abs(len(actual.boxes) - len(desired.boxes)) <= 0.1 * len(desired.boxes) + 1
                np.testing.assert_allclose(actual.boxes[0, 4], desired.boxes[0, 4], atol=0.01)


def test_the_device_decodes_the_other_jpegs_of_a_batch_with_a_rejected_one(weights, monkeypatch):
    """The decoder of an image depends on that image only."""
    calls = []
    real = device_jpeg._decode

    def rejecting(contents, device):
        calls.append(len(contents))
        if files[2] in contents:
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 4")
        return real(contents, device)

    files = [*noisy_jpegs(6)[::2], encoded(picture())]
    detector = load(weights, jpeg="device")
    monkeypatch.setattr(device_jpeg, "_decode", rejecting)
    images = detector.jpegs(files, [(64, 96)] * 4)
    assert [image is None for image in images] == [False, False, True, False]
    assert calls == [4, 1, 1, 1, 1]
    detections = run(detector, files)
    assert [detection.status for detection in detections] == ["scored"] * 4
    expected = decode(files[2], max_pixels=MANY_PIXELS).pixels
    (alone,) = detector.predict(detector.prepare(expected)[None], [(64, 96)])
    np.testing.assert_allclose(detections[2].boxes, alone, atol=1e-3)


def test_a_jpeg_of_another_size_than_its_header_is_left_to_the_cpu(weights):
    (image,) = load(weights, jpeg="device").jpegs([encoded(picture())], [(64, 97)])
    assert image is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("Error while decoding JPEG images: Failed to decode jpeg stream: 5\nException raised from ..."),
    ],
)
def test_a_memory_shortage_during_decoding_halves_the_batch(weights, monkeypatch, error):
    real = device_jpeg._decode

    def small(contents, device):
        if len(contents) > 2:
            raise error
        return real(contents, device)

    files = noisy_jpegs(16)[::2]
    detector = load(weights, jpeg="device")
    expected = plain(run(detector, files, batch=2))
    monkeypatch.setattr(device_jpeg, "_decode", small)
    batch = Batch(8)
    assert plain(run(detector, files, batch=batch)) == expected
    assert batch.size == 2
    monkeypatch.setattr(device_jpeg, "_decode", lambda contents, device: (_ for _ in ()).throw(error))
    with pytest.raises(SettingsError, match=r"lower images\.size"):
        run(detector, files)


def test_many_jpegs_are_decoded_in_several_calls(monkeypatch):
    calls = []
    real = device_jpeg._decode
    monkeypatch.setattr(device_jpeg, "_decode", lambda files, device: calls.append(len(files)) or real(files, device))
    files = [encoded(picture(32 + n, 32)) for n in range(40)]
    images = JpegDecoder(Uploader(torch.device("cpu")), Letterbox(64, 64))(files, [(32, 32 + n) for n in range(40)])
    assert calls == [16, 16, 8]
    for content, image in zip(files, images, strict=True):
        pixels = decode(content, max_pixels=MANY_PIXELS).pixels
        assert np.abs(image.numpy().astype(int) - Letterbox(64, 64).prepare(pixels)).max() <= 1


@pytest.mark.parametrize(("top", "left", "complete"), [(8, 16, False), (9, 16, True), (None, None, True)])
def test_an_image_with_an_aligned_block_of_middle_gray_is_left_to_the_cpu(monkeypatch, top, left, complete):
    """A decoder of the device fills blocks without data with it, and hides that data were missing."""
    image = torch.full((3, 33, 47), 90, dtype=torch.uint8)
    if top is not None:
        image[:, top : top + 8, left : left + 8] = 128
    monkeypatch.setattr(device_jpeg, "_decode", lambda files, device: [image.clone() for _ in files])
    decoder = JpegDecoder(Uploader(torch.device("cpu")), Letterbox(64, 64))
    found = decoder([b""] * 3, [(33, 47), (33, 46), (33, 47)])
    assert [one is not None for one in found] == [complete, False, complete]


def test_an_image_smaller_than_a_block_is_decoded_on_the_device(monkeypatch):
    image = torch.full((3, 5, 40), 128, dtype=torch.uint8)
    monkeypatch.setattr(device_jpeg, "_decode", lambda files, device: [image])
    assert JpegDecoder(Uploader(torch.device("cpu")), Letterbox(64, 64))([b""], [(5, 40)])[0] is not None


def test_without_a_decoder_on_the_device_the_cpu_decodes(weights, monkeypatch):
    def reject(contents, device):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    assert load(weights).jpegs is None  # auto, on a CPU
    monkeypatch.setattr(device_jpeg, "_decode", reject)
    with pytest.raises(WeightsError, match=r"cannot decode JPEGs on cpu; set images\.jpeg to auto or cpu"):
        load(weights, jpeg="device")
    monkeypatch.setattr(Uploader, "__init__", lambda self, device: vars(self).update(device=device, _stream=None))
    cuda = Uploader(torch.device("cuda"))
    assert device_jpeg.jpeg_decoder("auto", cuda, Letterbox(64, 64)) is None
    monkeypatch.delattr(device_jpeg.io, "decode_jpeg")
    assert device_jpeg.jpeg_decoder("auto", cuda, Letterbox(64, 64)) is None


def test_the_fingerprint_depends_on_jpeg_decoding_by_the_device(weights):
    assert load(weights).fingerprint == load(weights, jpeg="cpu").fingerprint
    assert load(weights).fingerprint != load(weights, jpeg="device").fingerprint


# Benchmark.


def test_utilization_is_sampled_during_the_work_and_unknown_without_a_driver():
    exhausted = threading.Event()
    values = iter([40, 60, 80])

    def ask():
        value = next(values, None)
        if value is None:
            exhausted.set()
            return 60
        return value

    with sampled_utilization(ask, every_s=0.001) as percent:
        assert exhausted.wait(timeout=60)
    assert percent[:3] == [40, 60, 80]
    with sampled_utilization(None) as percent:
        pass
    assert percent == []


def test_the_benchmark_line_of_a_gpu_is_also_printed_on_a_cpu(weights):
    line = measure_loop(load(weights), noisy_jpegs(4), 8, threads=1, utilization_now=None)
    assert "images per second in batches of 1, utilization unknown, waiting for images" in line
    if not torch.cuda.is_available():
        assert gpu_utilization() is None


# A real GPU.


@pytest.fixture(scope="module")
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def photographs():
    rng = np.random.default_rng(8)
    return [cv2.resize(rng.integers(0, 256, (45, 80, 3), dtype=np.uint8), (1280, 720)) for _ in range(2)]


@pytest.fixture(scope="module", params=["yolov7-tiny", "yolov7-w6"])
def network(request, tmp_path_factory):
    """Save a variant with an eighth of its channels, with feature maps that vary like those of a trained network."""
    whole = variant(request.param, 2)
    layers = [replace(layer, channels=layer.channels and max(8, layer.channels // 8)) for layer in whole.layers]
    torch.manual_seed(5)
    narrow = Network(replace(whole, layers=tuple(layers)))
    image = torch.from_numpy(Letterbox(1280, 1280, 64).prepare(photographs()[0])[None]).float() / 255
    for module in narrow.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of the next batch replace earlier ones
    with torch.no_grad():
        narrow.train()(image)
        for conv, feature_map in zip(narrow.head.m, narrow.eval()(image), strict=True):
            conv.weight.mul_(0.3 / feature_map.std())
            conv.bias.zero_()
    path = tmp_path_factory.mktemp("network") / f"{request.param}.pt"
    save_checkpoint(path, narrow, class_names=["officer", "vehicle"])
    return str(path)


def load_full_size(network, **options):
    return load(network, **({"size": 1280, "jpeg": "cpu", "min_score": 0.3, "precision": "fp32"} | options))


def boxes_of(detector, batch):
    files = [encoded(Image.fromarray(image), "PNG") for image in photographs()]
    return [detection.boxes for detection in run(detector, files, batch=batch)]


def rows_of(detector):
    with torch.inference_mode():
        return detector._rows(detector._input(torch.from_numpy(detector.prepare(photographs()[1])[None]))).cpu()


def share_matched(boxes, others, pixels):
    """Compute the share of boxes with a counterpart of the same class whose corners are all within a distance."""
    distance = np.abs(boxes[:, None, :4] - others[None, :, :4]).max(2)
    return ((distance <= pixels) & (boxes[:, None, 5] == others[None, :, 5])).any(1).mean()


def assert_same_boxes(network, **options):
    """Compare boxes up to a thousandth of the image; of two with similar scores, either may suppress the other."""
    expected, actual = boxes_of(load_full_size(network), 1), boxes_of(load_full_size(network, **options), 2)
    for boxes, others in zip(expected, actual, strict=True):
        assert min(len(boxes), len(others)) > 20
        assert share_matched(boxes, others, 1e-3 * 1280) >= 0.98
        assert share_matched(others, boxes, 1e-3 * 1280) >= 0.98


def median_shift(network, **options):
    """Compute the median shift of boxes before suppression, as an untrained network amplifies rounding."""
    shift = rows_of(load_full_size(network, **options)) - rows_of(load_full_size(network))
    return shift[..., :4].abs().amax(2).median()


@pytest.mark.gpu
def test_boxes_of_a_gpu_equal_those_of_a_cpu(gpu, network):
    assert_same_boxes(network, device="cuda", precision="fp32")


@pytest.mark.gpu
def test_half_precision_on_a_gpu_shifts_boxes_by_about_a_pixel(gpu, network):
    assert median_shift(network, device="cuda", precision="fp16") <= MAX_SHIFT


@pytest.mark.parametrize("network", ["yolov7-w6"], indirect=True)
def test_the_tolerance_for_a_gpu_covers_rounding_only(network, monkeypatch):
    """On a CPU, half precision stays within the tolerance as well, and bf16 with its 8 bits does not."""
    assert_same_boxes(network)
    assert median_shift(network, precision="bf16") > MAX_SHIFT
    monkeypatch.setattr(
        "patrolscope.pipeline.detect.models.yolov7_detector.choose_precision", lambda precision, device: precision
    )
    assert median_shift(network, precision="fp16") <= MAX_SHIFT


@pytest.mark.gpu
def test_files_have_the_same_status_on_a_gpu_as_on_a_cpu(gpu, weights):
    files = [content for content, _ in of_every_kind().values()]
    files += [rgb_jpeg(), damaged_jpeg(), *noisy_jpegs(20), encoded(picture(), progressive=True), None]
    expected = run(load(weights, jpeg="cpu"), files)
    for jpeg in ("cpu", "auto"):
        detector = load(weights, device="cuda", precision="fp32", jpeg=jpeg)
        for batch in (1, 7, 64):
            detections = run(detector, files, batch=batch)
            assert [each.status for each in detections] == [each.status for each in expected]
            assert [(each.width, each.height) for each in detections] == [
                (each.width, each.height) for each in expected
            ]
    if detector.jpegs is not None:
        for repeated, first in zip(run(detector, files, batch=64), detections, strict=True):
            np.testing.assert_allclose(repeated.boxes, first.boxes, atol=1e-2)


@pytest.mark.gpu
def test_jpegs_decoded_by_a_gpu_resemble_those_of_a_cpu(gpu):
    decoder = device_jpeg.jpeg_decoder("auto", Uploader(gpu), Letterbox(1280, 1280, 64))
    if decoder is None:
        pytest.skip("this torchvision has no nvJPEG")
    files = [encoded(Image.fromarray(image), quality=95) for image in photographs()]
    files += [encoded(picture().convert("L")), encoded(picture(), progressive=True)]
    on_cpu = [decode(content, max_pixels=MANY_PIXELS).pixels for content in files]
    for pixels, on_gpu in zip(on_cpu, decoder(files, [image.shape[:2] for image in on_cpu]), strict=True):
        assert on_gpu is not None
        difference = np.abs(on_gpu.cpu().numpy().astype(int) - Letterbox(1280, 1280, 64).prepare(pixels))
        assert difference.mean() < 4  # the repeated colors of nvJPEG contribute 2.3 to 2.6


@pytest.mark.gpu
def test_images_uploaded_during_computation_arrive_intact(gpu):
    """Many different batches are uploaded while the device computes, which reveals memory that is reused too early."""
    uploader, rng = Uploader(gpu), np.random.default_rng(2)
    big = torch.rand(4096, 4096, device=gpu)
    for _ in range(50):
        images = list(rng.integers(0, 256, (8, 3, 256, 256), dtype=np.uint8))
        big = (big @ big).clamp(0, 1)
        batch = uploader.upload(images)
        assert np.array_equal(batch.cpu().numpy(), np.stack(images))


@pytest.mark.gpu
def test_the_measured_batch_fits(gpu, network):
    detector = load(network, size=640, device="cuda")
    size = detector.default_batch()
    assert 1 <= size <= 64
    images = np.zeros((size, 3, 640, 640), np.uint8)
    assert len(detector.predict(detector.upload(list(images)), [(640, 640)] * size)) == size


@pytest.mark.gpu
def test_the_driver_reports_the_utilization_of_a_gpu(gpu):
    ask = gpu_utilization()
    if ask is None:
        pytest.skip("no nvidia-ml-py, or a part of a GPU")
    assert 0 <= ask() <= 100

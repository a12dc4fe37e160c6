"""What is done for a GPU, as far as it can be tried without one."""

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

from benchmarks.detect import driver, measure_loop, utilization
from patrolscope.pipeline.detect import device_jpeg
from patrolscope.pipeline.detect.boxes import Letterbox
from patrolscope.pipeline.detect.decode import decode
from patrolscope.pipeline.detect.detector import load_detector
from patrolscope.pipeline.detect.device import Arrivals, images_that_fit, measured_batch
from patrolscope.pipeline.detect.device_jpeg import JpegDecoder, letterboxed
from patrolscope.pipeline.detect.inference import Batch, infer
from patrolscope.pipeline.detect.models.architecture import variant
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.weights.official import save_checkpoint
from patrolscope.pipeline.errors import SettingsError, WeightsError
from tests.fake_detector import FakeDetector
from tests.image_files import encoded, of_every_kind, picture, turned
from tests.official_form import save

# Of torchvision's decode_jpeg, which names its successor.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision")

MANY_PIXELS = 50_000_000
# Of the median box in half precision: 0.96 on a CPU; with the bias added in half, as cuDNN does, 1.03. bf16 makes 6.9.
HALF_PIXELS = 2
GIB = 2**30


def plain(found):
    return [(one.status, one.boxes.tolist(), one.width, one.height) for one in found]


def run(detector, files, *, batch=4, threads=2):
    batch = batch if isinstance(batch, Batch) else Batch(batch)
    return infer(detector, files.__getitem__, len(files), batch=batch, threads=threads, max_pixels=MANY_PIXELS)


# Images that come ahead.


class Log(FakeDetector):
    """Says what is asked of it, in order; batches come in one thread and are predicted in another."""

    def __init__(self, **options):
        super().__init__(**options)
        self.events, self.threads = [], {}

    def upload(self, images):
        self.events.append(("upload", len(images)))
        self.threads["upload"] = threading.current_thread()
        return super().upload(images)

    def predict(self, batch, sizes):
        found = super().predict(batch, sizes)
        self.threads["predict"] = threading.current_thread()
        self.events.append(("predict", len(sizes)))
        return found


def test_a_batch_comes_while_the_one_before_is_in_the_network():
    """The second batch is not predicted until a third is under way: if none came beside, this would wait for ever."""
    third, came = threading.Event(), threading.Event()

    class Waiting(Log):
        def upload(self, images):
            batch = super().upload(images)
            if len([what for what, _ in self.events if what == "upload"]) == 3:
                third.set()
            return batch

        def predict(self, batch, sizes):
            if len(self.batches) == 1 and third.wait(timeout=60):
                came.set()
            return super().predict(batch, sizes)

    detector = Waiting()
    run(detector, [encoded(picture(8, 8))] * 12)
    assert came.is_set()
    assert detector.threads["upload"] != detector.threads["predict"]
    assert [count for what, count in detector.events if what == "predict"] == [4, 4, 4]


def test_no_more_than_one_batch_lies_ready():
    ready, most = [], []

    class Counting(Log):
        def upload(self, images):
            ready.append(1)
            most.append(len(ready))
            return super().upload(images)

        def predict(self, batch, sizes):
            found = super().predict(batch, sizes)
            ready.pop()
            return found

    run(Counting(), [encoded(picture(8, 8))] * 40)
    assert max(most) <= 2


def test_a_batch_without_room_beside_the_network_comes_when_that_is_done():
    class Full(Log):
        def upload(self, images):
            if threading.current_thread().name.startswith("upload") and len(images) > 1:
                raise MemoryError("no room")
            return super().upload(images)

    detector = Full()
    files = [encoded(picture(color=(20 * n, 0, 0)), "PNG") for n in range(10)]
    assert plain(run(detector, files)) == plain(run(FakeDetector(), files))
    assert {count for what, count in detector.events if what == "predict"} == {4, 2}


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_a_lack_of_memory_is_known_by_what_libraries_say(said):
    class Small(FakeDetector):
        def predict(self, batch, sizes):
            if len(sizes) > 2:
                raise RuntimeError(said)
            return super().predict(batch, sizes)

    files = [encoded(picture(color=(20 * n, 0, 0)), "PNG") for n in range(10)]
    batch = Batch(8)
    assert plain(run(Small(), files, batch=batch)) == plain(run(FakeDetector(), files))
    assert batch.size == 2


def test_a_batch_that_is_there_is_halved_where_it_lies():
    detector, batch = Log(room=2), Batch(8)
    files = [encoded(picture(color=(10 * n, 0, 0)), "PNG") for n in range(20)]
    assert plain(run(detector, files, batch=batch)) == plain(run(FakeDetector(), files))
    assert batch.size == 2
    # What had come before the size was known, and then the sizes that fit.
    assert [count for what, count in detector.events if what == "upload"][:2] == [8, 8]
    assert {count for what, count in detector.events if what == "predict"} == {2}


def test_what_fails_on_the_way_to_the_device_is_raised():
    class Broken(FakeDetector):
        def upload(self, images):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(Broken(), [encoded(picture())] * 9)
    assert not [one for one in threading.enumerate() if one.name.startswith(("upload", "decode"))]


@pytest.fixture
def pretended_cuda(monkeypatch):
    """The calls of CUDA that bring images, as a list; what they do is done by the CPU."""
    calls = []

    class Stream:
        def synchronize(self):
            calls.append("synchronize")

    @contextlib.contextmanager
    def stream(one):
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
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "that of the network")
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, one: calls.append(f"in use by {one}"))
    return calls


def test_on_cuda_images_are_copied_from_pinned_memory_on_a_stream_that_is_waited_for(pretended_cuda):
    images = list(np.random.default_rng(1).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8))
    arrivals = Arrivals(torch.device("cuda"))
    batch = arrivals.bring(images)
    assert np.array_equal(batch.numpy(), np.stack(images))
    copy = ["on stream", "pinned", "copy, non_blocking=True", "synchronize", "off stream"]
    assert pretended_cuda == [*copy, "in use by that of the network"]


def test_images_that_are_on_the_device_already_keep_their_place_among_others(pretended_cuda):
    arrays = np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    mixed = [arrays[0], torch.from_numpy(arrays[1]), torch.from_numpy(arrays[2]), arrays[3]]
    for device in ("cpu", "cuda"):
        assert np.array_equal(torch.as_tensor(Arrivals(torch.device(device)).bring(mixed)).numpy(), arrays)


def test_on_a_cpu_a_batch_stays_an_array():
    images = [np.zeros((3, 4, 4), np.uint8)] * 2
    assert isinstance(Arrivals(torch.device("cpu")).bring(images), np.ndarray)


# How many fit.


@given(st.integers(0, 10**10), st.integers(0, 10**9), st.integers(1, 10**9), st.integers(0, 10**11))
def test_the_batch_is_the_largest_power_of_two_that_fits_four_fifths(held, for_all, each, free):
    def needs(images):
        return for_all + images * each

    images = images_that_fit(held=held, peak_of_one=held + needs(1), peak_of_two=held + needs(2), free=free)
    assert images in {1, 2, 4, 8, 16, 32}
    assert images == 1 or needs(images) <= 0.8 * free + 1
    assert images == 32 or needs(2 * images) > 0.8 * free - 1


def test_a_second_image_that_needs_nothing_is_not_believed():
    assert images_that_fit(held=GIB, peak_of_one=2 * GIB, peak_of_two=2 * GIB, free=10 * GIB) == 8


class PretendedMemory:
    """A device of 16 GiB with a network of 1 GiB that keeps a workspace after its first pass."""

    def __init__(self, each, *, room=15 * GIB):
        self.each, self.room, self.now, self.peak, self.passes = each, room, GIB, GIB, []

    def run(self, images):
        self.passes.append(images)
        self.now = GIB + GIB // 4
        self.peak = max(self.peak, self.now + images * self.each)
        if self.peak > GIB + self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def install(self, monkeypatch):
        def reset(_device):
            self.peak = self.now

        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: self.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (16 * GIB - self.now, 16 * GIB))
        return self


@pytest.mark.parametrize(("each", "batch"), [(GIB // 2, 16), (GIB, 8), (GIB // 100, 32), (10 * GIB, 1), (20 * GIB, 1)])
def test_the_batch_is_measured_by_passes_over_one_and_two(monkeypatch, each, batch):
    memory = PretendedMemory(each).install(monkeypatch)
    assert measured_batch(memory.run, torch.device("cuda")) == batch
    assert max(memory.passes) == 2


# JPEGs that the device decodes; a CPU stands in for it.


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([Letterbox(128, 128, 32), Letterbox(96, 160)]))
def test_the_letterbox_of_the_device_is_the_cpu_s_but_for_one_gray_level(height, width, letterbox):
    image = np.random.default_rng(height * 301 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    there = letterboxed(torch.from_numpy(image).permute(2, 0, 1), letterbox).numpy()
    assert there.shape == (3, *letterbox.shape(height, width))
    assert np.abs(there.astype(int) - letterbox.prepare(image)).max() <= 1


@pytest.mark.parametrize("size", [(720, 1280), (1080, 810), (640, 480), (2160, 3840)])
def test_the_letterbox_of_large_images_is_the_same_too(size):
    image = cv2.resize(np.random.default_rng(1).integers(0, 256, (90, 160, 3), dtype=np.uint8), size[::-1])
    letterbox = Letterbox(1280, 1280, 64)
    there = letterboxed(torch.from_numpy(image).permute(2, 0, 1), letterbox).numpy()
    assert np.abs(there.astype(int) - letterbox.prepare(image)).max() <= 1


def rgb_jpeg():
    """A JPEG that stores red, green and blue as they are."""
    return encoded(picture(), quality=95, keep_rgb=True)


def test_plain_whole_jpegs_alone_are_left_to_the_device():
    left = set()
    files = {name: content for name, (content, _) in of_every_kind().items()}
    files |= {"rgb.jpg": rgb_jpeg(), "upright.jpg": turned(picture(), 1)}
    files["no_end.jpg"] = files["plain.jpg"][:-2]
    for name, content in files.items():
        here = decode(content, max_pixels=MANY_PIXELS)
        there = decode(content, max_pixels=MANY_PIXELS, leave_jpegs=True)
        assert (there.status, there.width, there.height) == (here.status, here.width, here.height), name
        if there.pixels is None and here.pixels is not None:
            left.add(name)
    assert left == {"plain.jpg", "gray.jpg", "upright.jpg"}
    assert decode(files["plain.jpg"], max_pixels=10, leave_jpegs=True).status == "too_large"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    save(path)
    return str(path)


def load(weights, **options):
    return load_detector(weights, **({"size": 128, "device": "cpu", "threads": 1, "min_score": 0.2} | options))


def damaged_jpeg():
    """Whole by its header and its end, with a table of which nothing can be decoded."""
    content = bytearray(encoded(picture()))
    content[content.index(b"\xff\xc4") + 5 : content.index(b"\xff\xc4") + 21] = b"\xff" * 16
    return bytes(content)


def noisy_jpegs(count):
    rng = np.random.default_rng(3)
    sizes = [(96, 64), (64, 96)]
    images = [cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), sizes[n % 2]) for n in range(count)]
    return [encoded(Image.fromarray(one), quality=95) for one in images]


def test_by_whom_jpegs_are_decoded_changes_no_status_and_boxes_by_rounding_alone(weights):
    """The stand-in decodes as the CPU does, so that its boxes differ by the letterbox alone."""
    here, there = load(weights, jpeg="cpu"), load(weights, jpeg="device")
    files = [content for content, _ in of_every_kind().values()]
    files += [rgb_jpeg(), damaged_jpeg(), *noisy_jpegs(6), damaged_jpeg(), None]
    expected = run(here, files)
    assert expected[-2].status == "unreadable"
    for batch in (1, 4, 64):
        found = run(there, files, batch=batch)
        for one, other in zip(found, expected, strict=True):
            assert (one.status, one.width, one.height) == (other.status, other.width, other.height)
            assert one.seconds > 0
            if len(other.boxes):
                assert abs(len(one.boxes) - len(other.boxes)) <= 0.1 * len(other.boxes) + 1
                np.testing.assert_allclose(one.boxes[0, 4], other.boxes[0, 4], atol=0.01)


def test_a_refused_jpeg_leaves_the_others_of_its_batch_to_the_device(weights, monkeypatch):
    """By whom an image is decoded depends on that image alone, not on those beside it."""
    asked = []
    real = device_jpeg._decode

    def refusing(contents, device):
        asked.append(len(contents))
        if files[2] in contents:
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 4")
        return real(contents, device)

    files = [*noisy_jpegs(6)[::2], encoded(picture())]
    detector = load(weights, jpeg="device")
    monkeypatch.setattr(device_jpeg, "_decode", refusing)
    made = detector.jpegs(files, [(64, 96)] * 4)
    assert [one is None for one in made] == [False, False, True, False]
    assert asked == [4, 1, 1, 1, 1]
    found = run(detector, files)
    assert [one.status for one in found] == ["scored"] * 4
    expected = decode(files[2], max_pixels=MANY_PIXELS).pixels
    (alone,) = detector.predict(detector.prepare(expected)[None], [(64, 96)])
    np.testing.assert_allclose(found[2].boxes, alone, atol=1e-3)


def test_a_jpeg_of_another_size_than_its_header_says_is_left_to_the_cpu(weights):
    (one,) = load(weights, jpeg="device").jpegs([encoded(picture())], [(64, 97)])
    assert one is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("Error while decoding JPEG images: Failed to decode jpeg stream: 5\nException raised from ..."),
    ],
)
def test_a_lack_of_memory_is_no_matter_of_the_image_and_halves_the_batch(weights, monkeypatch, error):
    real, asked = device_jpeg._decode, []

    def small(contents, device):
        asked.append(len(contents))
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


def test_many_jpegs_are_decoded_some_at_a_time(monkeypatch):
    asked = []
    real = device_jpeg._decode
    monkeypatch.setattr(device_jpeg, "_decode", lambda some, device: asked.append(len(some)) or real(some, device))
    files = [encoded(picture(32 + n, 32)) for n in range(40)]
    made = JpegDecoder(Arrivals(torch.device("cpu")), Letterbox(64, 64))(files, [(32, 32 + n) for n in range(40)])
    assert asked == [16, 16, 8]
    for content, one in zip(files, made, strict=True):
        pixels = decode(content, max_pixels=MANY_PIXELS).pixels
        assert np.abs(one.numpy().astype(int) - Letterbox(64, 64).prepare(pixels)).max() <= 1


def test_without_a_decoder_on_the_device_the_cpu_decodes(weights, monkeypatch):
    def refuse(contents, device):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    assert load(weights).jpegs is None  # auto, on a CPU
    monkeypatch.setattr(device_jpeg, "_decode", refuse)
    with pytest.raises(WeightsError, match=r"decodes no JPEG on cpu: images\.jpeg must be auto or cpu"):
        load(weights, jpeg="device")
    monkeypatch.setattr(Arrivals, "__init__", lambda self, device: vars(self).update(device=device, _stream=None))
    cuda = Arrivals(torch.device("cuda"))
    assert device_jpeg.jpeg_decoder("auto", cuda, Letterbox(64, 64)) is None
    monkeypatch.delattr(device_jpeg.io, "decode_jpeg")
    assert device_jpeg.jpeg_decoder("auto", cuda, Letterbox(64, 64)) is None


def test_the_fingerprint_says_when_the_device_decodes_and_is_the_old_one_otherwise(weights):
    assert load(weights).fingerprint == load(weights, jpeg="cpu").fingerprint
    assert load(weights).fingerprint != load(weights, jpeg="device").fingerprint


# The benchmark.


def test_utilization_is_sampled_while_the_work_runs_and_unknown_without_a_driver():
    enough = threading.Event()
    answers = iter([40, 60, 80])

    def ask():
        value = next(answers, None)
        if value is None:
            enough.set()
            return 60
        return value

    with utilization(ask, every_s=0.001) as percent:
        assert enough.wait(timeout=60)
    assert percent[:3] == [40, 60, 80]
    with utilization(None) as percent:
        pass
    assert percent == []


def test_the_figures_of_a_gpu_are_a_line_on_a_cpu_too(weights):
    line = measure_loop(load(weights), noisy_jpegs(4), 8, threads=1, ask=None)
    assert "images/s in batches of 1, utilization of the device unknown, waiting for images" in line
    if not torch.cuda.is_available():
        assert driver() is None


# A GPU itself.


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
    """A checkpoint of a variant with an eighth of its channels, whose maps vary as those of a trained one do."""
    whole = variant(request.param, 2)
    layers = [replace(one, channels=one.channels and max(8, one.channels // 8)) for one in whole.layers]
    torch.manual_seed(5)
    made = Network(replace(whole, layers=tuple(layers)))
    image = torch.from_numpy(Letterbox(1280, 1280, 64).prepare(photographs()[0])[None]).float() / 255
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # takes over what it sees
    with torch.no_grad():
        made.train()(image)
        for conv, level in zip(made.head.m, made.eval()(image), strict=True):
            conv.weight.mul_(0.3 / level.std())
            conv.bias.zero_()
    path = tmp_path_factory.mktemp("network") / f"{request.param}.pt"
    save_checkpoint(path, made, class_names=["officer", "vehicle"])
    return str(path)


def in_full(network, **options):
    return load(network, **({"size": 1280, "jpeg": "cpu", "min_score": 0.3, "precision": "fp32"} | options))


def boxes_of(detector, batch):
    files = [encoded(Image.fromarray(one), "PNG") for one in photographs()]
    return [one.boxes for one in run(detector, files, batch=batch)]


def rows_of(detector):
    with torch.inference_mode():
        return detector._rows(detector._input(torch.from_numpy(detector.prepare(photographs()[1])[None]))).cpu()


def share_found_again(boxes, others, pixels):
    """Share of boxes for which there is another of the same class whose corners are all as near as that."""
    apart = np.abs(boxes[:, None, :4] - others[None, :, :4]).max(2)
    return ((apart <= pixels) & (boxes[:, None, 5] == others[None, :, 5])).any(1).mean()


def assert_same_boxes(network, **options):
    """But for a thousandth of the image; two of nearly one score may change places in the suppression."""
    for one, other in zip(boxes_of(in_full(network), 1), boxes_of(in_full(network, **options), 2), strict=True):
        assert min(len(one), len(other)) > 20
        assert share_found_again(one, other, 1e-3 * 1280) >= 0.98
        assert share_found_again(other, one, 1e-3 * 1280) >= 0.98


def pixels_apart(network, **options):
    """Before suppression, of the box in the middle: what is far from trained makes much of every rounding."""
    return (rows_of(in_full(network, **options)) - rows_of(in_full(network)))[..., :4].abs().amax(2).median()


@pytest.mark.gpu
def test_a_gpu_finds_the_boxes_of_a_cpu(gpu, network):
    assert_same_boxes(network, device="cuda", precision="fp32")


@pytest.mark.gpu
def test_half_precision_on_a_gpu_moves_boxes_by_about_a_pixel(gpu, network):
    assert pixels_apart(network, device="cuda", precision="fp16") <= HALF_PIXELS


@pytest.mark.parametrize("network", ["yolov7-w6"], indirect=True)
def test_the_comparison_with_a_gpu_allows_other_rounding_and_nothing_more(network, monkeypatch):
    """Half precision, which else is for GPUs, keeps its bound on a CPU, too; bf16 with its 8 bits does not."""
    assert_same_boxes(network)
    assert pixels_apart(network, precision="bf16") > HALF_PIXELS
    monkeypatch.setattr(
        "patrolscope.pipeline.detect.models.yolov7_detector.choose_precision", lambda precision, device: precision
    )
    assert pixels_apart(network, precision="fp16") <= HALF_PIXELS


@pytest.mark.gpu
def test_copies_and_jpegs_on_a_gpu_end_with_the_statuses_of_a_cpu(gpu, weights):
    files = [content for content, _ in of_every_kind().values()]
    files += [rgb_jpeg(), damaged_jpeg(), *noisy_jpegs(20), encoded(picture(), progressive=True), None]
    expected = run(load(weights, jpeg="cpu"), files)
    for jpeg in ("cpu", "auto"):
        detector = load(weights, device="cuda", precision="fp32", jpeg=jpeg)
        for batch in (1, 7, 64):
            found = run(detector, files, batch=batch)
            assert [one.status for one in found] == [one.status for one in expected]
            assert [(one.width, one.height) for one in found] == [(one.width, one.height) for one in expected]
    if detector.jpegs is not None:
        again = run(detector, files, batch=64)
        for one, other in zip(again, found, strict=True):
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


@pytest.mark.gpu
def test_a_gpu_s_jpegs_look_like_the_cpu_s(gpu):
    decoder = device_jpeg.jpeg_decoder("auto", Arrivals(gpu), Letterbox(1280, 1280, 64))
    if decoder is None:
        pytest.skip("this torchvision has no nvJPEG")
    files = [encoded(Image.fromarray(one), quality=95) for one in photographs()]
    files += [encoded(picture().convert("L")), encoded(picture(), progressive=True)]
    here = [decode(one, max_pixels=MANY_PIXELS).pixels for one in files]
    for pixels, there in zip(here, decoder(files, [one.shape[:2] for one in here]), strict=True):
        assert there is not None
        apart = np.abs(there.cpu().numpy().astype(int) - Letterbox(1280, 1280, 64).prepare(pixels))
        assert apart.mean() < 4  # that nvJPEG repeats colors alone makes 2.3 to 2.6 on these


@pytest.mark.gpu
def test_images_that_come_beside_the_network_are_those_that_were_sent(gpu):
    """Many batches of other content, while the device computes: memory that is used too early would show."""
    arrivals, rng = Arrivals(gpu), np.random.default_rng(2)
    big = torch.rand(4096, 4096, device=gpu)
    for _ in range(50):
        images = list(rng.integers(0, 256, (8, 3, 256, 256), dtype=np.uint8))
        big = (big @ big).clamp(0, 1)
        batch = arrivals.bring(images)
        assert np.array_equal(batch.cpu().numpy(), np.stack(images))


@pytest.mark.gpu
def test_the_measured_batch_fits(gpu, network):
    detector = load(network, size=640, device="cuda")
    size = detector.default_batch()
    assert 1 <= size <= 64
    images = np.zeros((size, 3, 640, 640), np.uint8)
    assert len(detector.predict(detector.upload(list(images)), [(640, 640)] * size)) == size


@pytest.mark.gpu
def test_the_driver_says_how_busy_a_gpu_is(gpu):
    ask = driver()
    if ask is None:
        pytest.skip("no nvidia-ml-py, or a part of a GPU")
    assert 0 <= ask() <= 100

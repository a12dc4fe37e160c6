"""Inference returns a detection for every file, in order, whatever the batches."""

import io
import struct
import threading
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from patrolscope.pipeline.detect.decode import decode
from patrolscope.pipeline.detect.detection_table import detection_table
from patrolscope.pipeline.detect.inference import Batch, infer
from patrolscope.pipeline.errors import SettingsError, SourceError
from tests.fake_detector import FakeDetector
from tests.image_files import encoded, of_every_kind, picture, sixteen_bits, turned

MANY_PIXELS = 50_000_000


def results(files, *, batch=3, threads=2, detector=None, max_pixels=MANY_PIXELS):
    detector = detector or FakeDetector()
    return infer(detector, files.__getitem__, len(files), batch=Batch(batch), threads=threads, max_pixels=max_pixels)


def plain(detections):
    return [(each.status, each.boxes.tolist(), each.width, each.height) for each in detections]


# Single files.


@pytest.mark.parametrize(("name", "file"), of_every_kind().items())
def test_every_kind_of_file_has_its_status(name, file):
    content, status = file
    decoded = decode(content, max_pixels=MANY_PIXELS)
    assert decoded.status == status, name
    if status == "scored":
        assert decoded.pixels.shape == (decoded.height, decoded.width, 3)
        assert decoded.pixels.dtype == np.uint8
    else:
        assert decoded.pixels is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_an_image_is_turned_upright(orientation, mode):
    content = turned(picture().convert(mode), orientation)
    decoded = decode(content, max_pixels=MANY_PIXELS)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert (decoded.width, decoded.height) == ((64, 96) if orientation > 4 else (96, 64))


def test_sixteen_bits_are_cut_to_the_upper_eight():
    decoded = decode(sixteen_bits(), max_pixels=MANY_PIXELS)
    np.testing.assert_array_equal(decoded.pixels[..., 1].ravel(), np.arange(256))


@pytest.mark.parametrize(("mode", "form"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG")])
def test_pixels_equal_those_of_pillow(mode, form):
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (61, 83, 3), dtype=np.uint8)).convert(mode)
    content = encoded(noise, form)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(content, max_pixels=MANY_PIXELS).pixels, expected)


def test_the_size_of_a_too_large_image_comes_from_its_header():
    decoded = decode(of_every_kind()["bomb.png"][0], max_pixels=MANY_PIXELS)
    assert (decoded.status, decoded.width, decoded.height) == ("too_large", 100_000, 100_000)
    edge = encoded(picture(50, 40))
    assert decode(edge, max_pixels=2_000).status == "scored"
    assert decode(edge, max_pixels=1_999).status == "too_large"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.sampled_from(sorted(of_every_kind())), st.integers(0, 400), st.binary(max_size=40))
@example("webp.webp", 15, b"X")  # its header then claims 103 billion pixels
def test_no_damage_to_a_file_stops_a_run(name, at, bytes_there):
    content = of_every_kind()[name][0]
    damaged = content[:at] + bytes_there + content[at + len(bytes_there) :]
    decoded = decode(damaged, max_pixels=1_000_000)
    assert decoded.status in ("scored", "unreadable", "too_large")
    assert (decoded.pixels is not None) == (decoded.status == "scored")


def photo(size=(1280, 720), mode="RGB", **options) -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (36, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


JPEG_FORMS = {
    "baseline": {},
    "gray": {"mode": "L"},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "no subsampling": {"subsampling": 0, "quality": 98},
    "small": {"size": (320, 240), "quality": 60},
    "cmyk": {"mode": "CMYK"},
}


PHOTOS = {form: photo(**options) for form, options in JPEG_FORMS.items()}


def with_a_lost_part(content: bytes, way: str) -> bytes:
    n = len(content)
    return {
        "cut, with an end": content[: n // 4] + b"\xff\xd9",
        "last tenth gone": content[: n - n // 10] + b"\xff\xd9",
        "zeros inside": content[: n // 4] + bytes(n // 2) + content[3 * n // 4 :],
        "sector of zeros": content[: n // 2] + bytes(4096) + content[n // 2 + 4096 :],
        "middle gone": content[: n // 4] + content[3 * n // 4 :],
    }[way]


@pytest.mark.parametrize("form", JPEG_FORMS)
@pytest.mark.parametrize(
    "way", ["cut, with an end", "last tenth gone", "zeros inside", "sector of zeros", "middle gone"]
)
def test_a_jpeg_with_a_missing_or_zeroed_part_is_unreadable(form, way):
    content = photo(**JPEG_FORMS[form])
    assert decode(content, max_pixels=MANY_PIXELS).status == "scored"
    lost = with_a_lost_part(content, way)
    assert decode(lost, max_pixels=MANY_PIXELS).status == "unreadable"


@given(
    # A cut of a progressive file can leave a complete one, of lower quality.
    form=st.sampled_from(sorted(JPEG_FORMS.keys() - {"progressive"})),
    at=st.floats(0.05, 0.9),
    lost=st.integers(600, 20_000),
    zeros=st.booleans(),
)
def test_a_jpeg_that_lost_any_part_of_its_data_is_unreadable(form, at, lost, zeros):
    content = PHOTOS[form]
    first = content.index(b"\xff\xda") + 20
    start = first + int(at * (len(content) - first))
    stop = min(start + lost, len(content) - 2)
    damaged = content[:start] + bytes(stop - start if zeros else 0) + content[stop:]
    assert decode(damaged, max_pixels=MANY_PIXELS).status == "unreadable"


@pytest.mark.parametrize("gray", [0, 127, 128, 255])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_complete_jpeg_of_one_color_is_scored(gray, options):
    file = io.BytesIO()
    Image.new("RGB", (640, 360), (gray, gray, gray)).save(file, "JPEG", **options)
    assert decode(file.getvalue(), max_pixels=MANY_PIXELS).status == "scored"


def wide_files() -> dict[str, bytes]:
    """Return tiny files whose headers state a width that does not fit 32 signed bits."""
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, -127, 64, 1, 24, 0, 0, 2835, 2835, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**32 - 1, 8, 8, 2, 0, 0, 0))
    entries = [(256, 4, 2**32 - 1), (257, 4, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, 8)]
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries))
    tiff += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return {
        "bmp": bmp + bytes(64),
        "png": png + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b""),
        "tiff": tiff + bytes(68),
    }


@pytest.mark.parametrize(("name", "content"), wide_files().items())
def test_a_width_beyond_32_bits_is_unreadable_and_has_a_row(name, content):
    detections = results([content])
    assert detection_table(pd.Series([name]), detections, 0)["status"].tolist() == ["unreadable"]


# Several files.


def test_detections_are_in_the_order_of_the_images_whatever_their_shapes():
    sizes = [(96, 64), (64, 96), (96, 64), (10, 200), (64, 96), (96, 64), (96, 64)]
    files = [encoded(picture(*size, color=(30 * n, 0, 0)), "PNG") for n, size in enumerate(sizes)]
    detections = results(files)
    assert [(detection.width, detection.height) for detection in detections] == sizes
    assert np.all(np.diff([detection.boxes[0, 4] for detection in detections]) > 0)
    for detection, (width, height) in zip(detections, sizes, strict=True):
        np.testing.assert_array_equal(detection.boxes[0, :4], [width / 4, height / 4, width * 3 / 4, height * 3 / 4])


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
@pytest.mark.parametrize("threads", [1, 4])
def test_batches_and_threads_change_no_result(batch, threads):
    files = [content for content, _ in of_every_kind().values()] + [None]
    assert plain(results(files, batch=batch, threads=threads)) == plain(results(files, batch=1, threads=1))


def test_a_batch_holds_images_of_one_shape():
    detector = FakeDetector()
    files = [encoded(picture(100, 20) if n % 2 else picture(20, 100)) for n in range(12)]
    results(files, batch=4, detector=detector)
    assert sorted(detector.batches) == [(2, 3, 32, 64), (2, 3, 64, 32), (4, 3, 32, 64), (4, 3, 64, 32)]


def test_an_image_without_a_box_is_scored_and_a_removed_one_is_missing():
    files = [encoded(picture(color=(0, 0, 255)).crop((40, 30, 90, 60)), "PNG"), None]
    no_box, removed = results(files)
    assert (no_box.status, len(no_box.boxes)) == ("scored", 0)
    assert (removed.status, removed.width) == ("missing", None)


def test_a_batch_that_does_not_fit_is_halved_for_good():
    detector, batch = FakeDetector(capacity=3), Batch(16)
    files = [encoded(picture(color=(n, 0, 0)), "PNG") for n in range(20)]
    detections = infer(detector, files.__getitem__, 20, batch=batch, threads=2, max_pixels=MANY_PIXELS)
    assert plain(detections) == plain(results(files))
    assert batch.size == 2
    assert max(shape[0] for shape in detector.batches) == 2


def test_an_image_that_does_not_fit_alone_is_an_error():
    with pytest.raises(SettingsError, match=r"lower images\.size"):
        results([encoded(picture())], detector=FakeDetector(capacity=0))


def test_an_error_of_the_detector_is_not_mistaken_for_a_memory_shortage():
    class Broken(FakeDetector):
        def predict(self, batch, sizes):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        results([encoded(picture())], detector=Broken())


def test_a_read_error_stops_inference_and_all_threads():
    def read(position):
        if position == 5:
            raise SourceError("the store does not answer")
        return encoded(picture())

    with pytest.raises(SourceError, match="does not answer"):
        infer(FakeDetector(), read, 1_000, batch=Batch(2), threads=2, max_pixels=MANY_PIXELS)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_images_are_read_ahead_by_a_bounded_number():
    read_positions: list[int] = []
    read_before_batch: list[int] = []

    class Watching(FakeDetector):
        def predict(self, batch, sizes):
            read_before_batch.append(len(read_positions))
            return super().predict(batch, sizes)

    def read(position):
        read_positions.append(position)
        return encoded(picture(8, 8))

    infer(Watching(), read, 300, batch=Batch(4), threads=2, max_pixels=MANY_PIXELS)
    done = 4 * np.arange(1, len(read_before_batch) + 1)
    assert len(read_positions) == 300
    assert np.max(np.array(read_before_batch) - done) <= 2 * 4 + 2

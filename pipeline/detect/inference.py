"""Inference over many images: threads read and decode ahead of the detector, and a batch holds images of one shape.

While the network processes a batch, the next batch is uploaded to the device, and decoded there if the device decodes
JPEGs. This module uses neither files nor tables: callers pass in a function that reads an image. Memory use is bounded
by the batch size, whatever the number of images.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.detect.decode import Status, decode
from patrolscope.pipeline.detect.detector import Detector
from patrolscope.pipeline.detect.device_memory import empty_cache, is_out_of_memory
from patrolscope.pipeline.errors import SettingsError

Boxes = npt.NDArray[np.float32]
NO_BOXES: Boxes = np.empty((0, 6), dtype=np.float32)
_BATCHES_AHEAD = 1  # read ahead, in addition to the batch that is being uploaded
_BATCHES_WAITING = 2  # of images whose batch is not full yet


@dataclass(frozen=True)
class Detection:
    """Detector output for one image.

    Attributes
    ----------
    status : Status
        Whether the image was scored, and if not, why.
    boxes : ndarray of float32, shape (k, 6)
        x1, y1, x2, y2 in pixels of the upright image, score, class. Highest score first.
    width, height : int or None
        Size of the upright image in pixels, None if no header contains it.
    seconds : float
        Time spent on this image: reading, decoding, and its share of the batch.
    """

    status: Status
    boxes: Boxes = field(default_factory=lambda: NO_BOXES)
    width: int | None = None
    height: int | None = None
    seconds: float = 0.0


@dataclass
class Batch:
    """Number of images per pass; halved, for all later passes too, when a batch does not fit the device's memory."""

    size: int


@dataclass
class Clock:
    """Time of the thread that runs the detector, in seconds."""

    waiting_s: float = 0.0  # for images to be read, decoded, and uploaded
    predicting_s: float = 0.0


@dataclass(frozen=True)
class _Prepared:
    """An image with its pixels, a JPEG for the device to decode, or neither if `detection` gives the reason."""

    position: int
    detection: Detection
    shape: tuple[int, ...] = ()  # of the network's input; empty without an image
    pixels: Any = None  # (3, H, W), in memory or on the device
    jpeg: bytes | None = None


@dataclass(frozen=True)
class _Uploaded:
    """A batch on the device. The device found the JPEGs of `unreadable` damaged when it decoded them."""

    images: list[_Prepared]
    pixels: Any  # (n, 3, H, W)
    unreadable: list[_Prepared]

    def part(self, start: int, stop: int) -> _Uploaded:
        return _Uploaded(self.images[start:stop], self.pixels[start:stop], [])


def infer(
    detector: Detector,
    read: Callable[[int], bytes | None],
    count: int,
    *,
    batch: Batch,
    threads: int,
    max_pixels: int,
    clock: Clock | None = None,
) -> list[Detection]:
    """Run the detector over images 0 to `count` - 1.

    Parameters
    ----------
    detector : Detector
        Detector that runs in the calling thread.
    read : callable
        Returns the content of an image file by its number, or None if the file is missing. Called from several threads;
        its exceptions propagate.
    count : int
        Number of images.
    batch : Batch
        Maximum number of images per pass; lowered in place when the device runs out of memory.
    threads : int
        Number of threads that read and decode.
    max_pixels : int
        Larger images are not decoded.
    clock : Clock, optional
        Accumulates waiting and predicting time.

    Returns
    -------
    list of Detection
        One per image, in order.

    Raises
    ------
    SettingsError
        If a single image does not fit the device's memory.
    """
    clock = clock or Clock()
    detections = [Detection("missing")] * count
    # Up to two batches: one is uploaded while the network processes the one before it.
    uploads: deque[tuple[list[_Prepared], Future[_Uploaded | None]]] = deque()

    def prepare(position: int) -> _Prepared:
        return _prepare(detector, read, position, max_pixels)

    def upload(images: list[_Prepared]) -> _Uploaded:
        return _upload(detector, images, max_pixels)

    def predict_next() -> None:
        images, uploading = uploads.popleft()
        start_s = time.perf_counter()
        uploaded = uploading.result()
        ready_s = time.perf_counter()
        for position, detection in _predict(detector, images, uploaded, upload, batch):
            detections[position] = detection
        clock.waiting_s += ready_s - start_s
        clock.predicting_s += time.perf_counter() - ready_s

    def submit(images: list[_Prepared]) -> None:
        uploads.append((images, uploader.submit(_upload_if_it_fits, upload, images)))
        if len(uploads) > 1:
            predict_next()

    before_s = time.perf_counter()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="upload") as uploader,
        closing(_in_order(prepare, count, threads, lambda: _BATCHES_AHEAD * batch.size + threads)) as prepared,
    ):
        for images in _by_shape(prepared, batch):
            clock.waiting_s += time.perf_counter() - before_s
            if images[0].shape:
                submit(images)
            else:
                detections[images[0].position] = images[0].detection
            before_s = time.perf_counter()
        while uploads:
            predict_next()
    return detections


def _by_shape(prepared: Iterator[_Prepared], batch: Batch) -> Iterator[list[_Prepared]]:
    """Group images of one shape into batches; each file without an image is yielded alone."""
    waiting: dict[tuple[int, ...], list[_Prepared]] = {}
    for image in prepared:
        if not image.shape:
            yield [image]
            continue
        same_shape = waiting.setdefault(image.shape, [])
        same_shape.append(image)
        if len(same_shape) >= batch.size:
            yield waiting.pop(image.shape)
        elif sum(map(len, waiting.values())) >= _BATCHES_WAITING * batch.size:
            # With many shapes, release the shape that has waited longest, so that images do not pile up.
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _in_order(
    prepare: Callable[[int], _Prepared], count: int, threads: int, ahead: Callable[[], int]
) -> Generator[_Prepared]:
    """Yield prepared images in order, with at most `ahead()` of them in progress."""
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        window: deque[Future[_Prepared]] = deque()
        try:
            for position in range(count):
                window.append(pool.submit(prepare, position))
                if len(window) >= ahead():
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()


def _prepare(detector: Detector, read: Callable[[int], bytes | None], position: int, max_pixels: int) -> _Prepared:
    start_s = time.perf_counter()
    content = read(position)
    if content is None:
        return _Prepared(position, Detection("missing", seconds=time.perf_counter() - start_s))
    return _decode(detector, position, content, max_pixels, start_s, leave_jpegs=detector.jpegs is not None)


def _decode(
    detector: Detector, position: int, content: bytes, max_pixels: int, start_s: float, *, leave_jpegs: bool
) -> _Prepared:
    decoded = decode(content, max_pixels=max_pixels, leave_jpegs=leave_jpegs)
    pixels = None if decoded.pixels is None else detector.prepare(decoded.pixels)
    detection = Detection(decoded.status, NO_BOXES, decoded.width, decoded.height, time.perf_counter() - start_s)
    if decoded.status != "scored":
        return _Prepared(position, detection)
    if pixels is not None:
        return _Prepared(position, detection, pixels.shape, pixels)
    return _Prepared(position, detection, (3, *detector.shape(*_size(detection))), jpeg=content)


def _size(detection: Detection) -> tuple[int, int]:
    return detection.height or 0, detection.width or 0


def _upload(detector: Detector, images: list[_Prepared], max_pixels: int) -> _Uploaded:
    """Upload images of one shape as a batch."""
    images = _decode_jpegs(detector, images, max_pixels)
    readable = [image for image in images if image.pixels is not None]
    pixels = detector.upload([image.pixels for image in readable]) if readable else None
    return _Uploaded(readable, pixels, [image for image in images if image.pixels is None])


def _decode_jpegs(detector: Detector, images: list[_Prepared], max_pixels: int) -> list[_Prepared]:
    """Decode the JPEGs among the images on the device, or on the CPU if the device refuses one."""
    files = [(image.jpeg, _size(image.detection)) for image in images if image.jpeg is not None]
    if not files or detector.jpegs is None:
        return images
    start_s = time.perf_counter()
    decoded = iter(detector.jpegs([content for content, _ in files], [size for _, size in files]))
    share_s = (time.perf_counter() - start_s) / len(files)
    result = []
    for image in images:
        if image.jpeg is None:
            result.append(image)
            continue
        pixels = next(decoded)
        if pixels is None:
            start_s = time.perf_counter() - share_s - image.detection.seconds
            result.append(_decode(detector, image.position, image.jpeg, max_pixels, start_s, leave_jpegs=False))
        else:
            detection = replace(image.detection, seconds=image.detection.seconds + share_s)
            result.append(replace(image, detection=detection, pixels=pixels, jpeg=None))
    return result


def _upload_if_it_fits(upload: Callable[[list[_Prepared]], _Uploaded], images: list[_Prepared]) -> _Uploaded | None:
    try:
        return upload(images)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    empty_cache()
    return None  # uploaded again once the batch before it is done


def _predict(
    detector: Detector,
    images: list[_Prepared],
    uploaded: _Uploaded | None,
    upload: Callable[[list[_Prepared]], _Uploaded],
    batch: Batch,
) -> Iterator[tuple[int, Detection]]:
    """Yield detections of images of one shape by position, in passes that fit the device's memory."""
    if uploaded is not None:
        yield from ((image.position, image.detection) for image in uploaded.unreadable)
        images = uploaded.images
    done = 0
    while done < len(images):
        part = images[done : done + batch.size]
        start_s = time.perf_counter()
        boxes = None
        try:
            current = upload(part) if uploaded is None else uploaded.part(done, done + len(part))
            sizes = [_size(image.detection) for image in current.images]
            boxes = detector.predict(current.pixels, sizes) if current.images else []
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise SettingsError(
                    f"a single image does not fit the memory of the detector's device ({reason}); lower images.size in "
                    "study.yaml"
                ) from error
        if boxes is None:
            empty_cache()
            batch.size = max(1, len(part) // 2)
            continue
        yield from ((image.position, image.detection) for image in current.unreadable)
        share_s = (time.perf_counter() - start_s) / len(part)
        for image, image_boxes in zip(current.images, boxes, strict=True):
            before = image.detection
            seconds = before.seconds + share_s
            yield image.position, Detection("scored", image_boxes, before.width, before.height, seconds)
        done += len(part)

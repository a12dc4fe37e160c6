"""Images through a detector: threads read and decode ahead of it, batches hold images of one shape.

While a batch is in the network the next one comes to the device, and is decoded there where the device decodes JPEGs.

Knows nothing of files and tables: it is given a function that reads an image. What is held at a time is bounded by the
size of a batch, whatever the number of images.
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
from patrolscope.pipeline.detect.room import empty_cache, is_out_of_memory
from patrolscope.pipeline.errors import SettingsError

Boxes = npt.NDArray[np.float32]
NO_BOXES: Boxes = np.empty((0, 6), dtype=np.float32)
# Batches that are read ahead, beside the one that comes to the device, and that wait until they are full.
_AHEAD = 1
_WAITING = 2


@dataclass(frozen=True)
class Found:
    """What the detector says of one image.

    `boxes` (k, 6): x1 y1 x2 y2 in pixels of the upright image, score, class; best first. Width and height are missing
    where no header said them.
    """

    status: Status
    boxes: Boxes = field(default_factory=lambda: NO_BOXES)
    width: int | None = None
    height: int | None = None
    seconds: float = 0.0


@dataclass
class Batch:
    """Number of images in one pass; halved where they do not fit the device's memory, and small from then on."""

    size: int


@dataclass
class Clock:
    """Where the time of a detector's thread went, in seconds."""

    waiting_s: float = 0.0  # for images to be read, decoded and brought to the device
    predicting_s: float = 0.0


@dataclass(frozen=True)
class _Prepared:
    """An image on its way: pixels, or a JPEG that is decoded on the device, or neither: `found` says why."""

    position: int
    found: Found
    shape: tuple[int, ...] = ()  # of the network's input
    pixels: Any = None  # (3, H, W), in memory or on the device
    jpeg: bytes | None = None


@dataclass(frozen=True)
class _Loaded:
    """A batch on the device: `pixels` of `images`; the others proved to be damaged when they were decoded there."""

    images: list[_Prepared]
    pixels: Any  # (n, 3, H, W)
    others: list[_Prepared]

    def part(self, start: int, stop: int) -> _Loaded:
        return _Loaded(self.images[start:stop], self.pixels[start:stop], [])


def infer(
    detector: Detector,
    read: Callable[[int], bytes | None],
    count: int,
    *,
    batch: Batch,
    threads: int,
    max_pixels: int,
    clock: Clock | None = None,
) -> list[Found]:
    """What the detector says of images 0 to `count` - 1, in their order.

    Parameters
    ----------
    read : content of an image; None: it is not there. Asked from several threads; what it raises is raised here
    batch : at most so many images in one pass
    threads : that read and decode
    max_pixels : a larger image is not decoded

    Raises
    ------
    SettingsError : a single image does not fit the device's memory
    """
    clock = clock or Clock()
    found = [Found("missing")] * count
    # A batch comes to the device while the one before it is there in the network.
    ahead: deque[tuple[list[_Prepared], Future[_Loaded | None]]] = deque()

    def prepare(position: int) -> _Prepared:
        return _prepare(detector, read, position, max_pixels)

    def load(images: list[_Prepared]) -> _Loaded:
        return _load(detector, images, max_pixels)

    def predict_next() -> None:
        images, loading = ahead.popleft()
        start_s = time.perf_counter()
        loaded = loading.result()
        ready_s = time.perf_counter()
        for position, result in _predict(detector, images, loaded, load, batch):
            found[position] = result
        clock.waiting_s += ready_s - start_s
        clock.predicting_s += time.perf_counter() - ready_s

    def put(images: list[_Prepared]) -> None:
        ahead.append((images, uploader.submit(_if_there_is_room, load, images)))
        if len(ahead) > 1:
            predict_next()

    before_s = time.perf_counter()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="upload") as uploader,
        closing(_in_order(prepare, count, threads, lambda: _AHEAD * batch.size + threads)) as prepared,
    ):
        for images in _alike(prepared, batch):
            clock.waiting_s += time.perf_counter() - before_s
            if images[0].shape:
                put(images)
            else:
                found[images[0].position] = images[0].found
            before_s = time.perf_counter()
        while ahead:
            predict_next()
    return found


def _alike(prepared: Iterator[_Prepared], batch: Batch) -> Iterator[list[_Prepared]]:
    """Batches of images of one shape; what is no image comes alone."""
    waiting: dict[tuple[int, ...], list[_Prepared]] = {}
    for one in prepared:
        if not one.shape:
            yield [one]
            continue
        alike = waiting.setdefault(one.shape, [])
        alike.append(one)
        if len(alike) >= batch.size:
            yield waiting.pop(one.shape)
        elif sum(map(len, waiting.values())) >= _WAITING * batch.size:
            # Many shapes: those that wait longest go, so that their images do not pile up.
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _in_order(
    prepare: Callable[[int], _Prepared], count: int, threads: int, ahead: Callable[[], int]
) -> Generator[_Prepared]:
    """Prepared images in their order, at most so many of them ahead of who takes them."""
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
        return _Prepared(position, Found("missing", seconds=time.perf_counter() - start_s))
    return _decode(detector, position, content, max_pixels, start_s, leave_jpegs=detector.jpegs is not None)


def _decode(
    detector: Detector, position: int, content: bytes, max_pixels: int, start_s: float, *, leave_jpegs: bool
) -> _Prepared:
    decoded = decode(content, max_pixels=max_pixels, leave_jpegs=leave_jpegs)
    pixels = None if decoded.pixels is None else detector.prepare(decoded.pixels)
    found = Found(decoded.status, NO_BOXES, decoded.width, decoded.height, time.perf_counter() - start_s)
    if decoded.status != "scored":
        return _Prepared(position, found)
    if pixels is not None:
        return _Prepared(position, found, pixels.shape, pixels)
    return _Prepared(position, found, (3, *detector.shape(*_size(found))), jpeg=content)


def _size(found: Found) -> tuple[int, int]:
    return found.height or 0, found.width or 0


def _load(detector: Detector, images: list[_Prepared], max_pixels: int) -> _Loaded:
    """Images of one shape as a batch on the device."""
    images = _with_pixels(detector, images, max_pixels)
    good = [one for one in images if one.pixels is not None]
    pixels = detector.upload([one.pixels for one in good]) if good else None
    return _Loaded(good, pixels, [one for one in images if one.pixels is None])


def _with_pixels(detector: Detector, images: list[_Prepared], max_pixels: int) -> list[_Prepared]:
    """The same images, with the JPEGs among them decoded: on the device, or by the CPU where the device refuses."""
    files = [(one.jpeg, _size(one.found)) for one in images if one.jpeg is not None]
    if not files or detector.jpegs is None:
        return images
    start_s = time.perf_counter()
    made = iter(detector.jpegs([content for content, _ in files], [size for _, size in files]))
    share_s = (time.perf_counter() - start_s) / len(files)
    done = []
    for image in images:
        one, content = image, image.jpeg
        if content is not None:
            pixels = next(made)
            if pixels is None:
                start_s = time.perf_counter() - share_s - image.found.seconds
                one = _decode(detector, image.position, content, max_pixels, start_s, leave_jpegs=False)
            else:
                found = replace(image.found, seconds=image.found.seconds + share_s)
                one = replace(image, found=found, pixels=pixels, jpeg=None)
        done.append(one)
    return done


def _if_there_is_room(load: Callable[[list[_Prepared]], _Loaded], images: list[_Prepared]) -> _Loaded | None:
    try:
        return load(images)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    empty_cache()
    return None  # it comes when the batch before it has gone


def _predict(
    detector: Detector,
    images: list[_Prepared],
    loaded: _Loaded | None,
    load: Callable[[list[_Prepared]], _Loaded],
    batch: Batch,
) -> Iterator[tuple[int, Found]]:
    """Results of images of one shape by position, in passes that fit the device's memory."""
    if loaded is not None:
        yield from ((one.position, one.found) for one in loaded.others)
        images = loaded.images
    done = 0
    while done < len(images):
        some = images[done : done + batch.size]
        start_s = time.perf_counter()
        boxes = None
        try:
            now = load(some) if loaded is None else loaded.part(done, done + len(some))
            boxes = detector.predict(now.pixels, [_size(one.found) for one in now.images]) if now.images else []
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(some) == 1:
                said = str(error).partition("\n")[0] or type(error).__name__
                raise SettingsError(
                    f"a single image does not fit the memory of the detector's device ({said}): lower images.size in "
                    "study.yaml"
                ) from error
        if boxes is None:
            empty_cache()
            batch.size = max(1, len(some) // 2)
            continue
        yield from ((one.position, one.found) for one in now.others)
        share_s = (time.perf_counter() - start_s) / len(some)
        for one, its_boxes in zip(now.images, boxes, strict=True):
            before = one.found
            yield one.position, Found("scored", its_boxes, before.width, before.height, before.seconds + share_s)
        done += len(some)

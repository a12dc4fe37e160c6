"""Images through a detector: threads read and decode ahead of it, batches hold images of one shape.

Knows nothing of files and tables: it is given a function that reads an image. What is held at a time is bounded by the
size of a batch, whatever the number of images.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.detect.decode import Status, decode
from pipeline.detect.detector import Detector
from pipeline.errors import SettingsError

Boxes = npt.NDArray[np.float32]
NO_BOXES: Boxes = np.empty((0, 6), dtype=np.float32)
# Batches that are read ahead, and that wait until they are full.
_AHEAD = 2
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

    waiting_s: float = 0.0  # for images to be read and decoded
    predicting_s: float = 0.0


@dataclass(frozen=True)
class _Prepared:
    position: int
    found: Found
    pixels: npt.NDArray[np.uint8] | None = None


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
    waiting: dict[tuple[int, ...], list[_Prepared]] = {}

    def predict(images: list[_Prepared]) -> None:
        start_s = time.perf_counter()
        for one, result in zip(images, _predict(detector, images, batch), strict=True):
            found[one.position] = result
        clock.predicting_s += time.perf_counter() - start_s

    def prepare(position: int) -> _Prepared:
        return _prepare(detector, read, position, max_pixels)

    before_s = time.perf_counter()
    for one in _in_order(prepare, count, threads, lambda: _AHEAD * batch.size + threads):
        clock.waiting_s += time.perf_counter() - before_s
        if one.pixels is None:
            found[one.position] = one.found
        else:
            alike = waiting.setdefault(one.pixels.shape, [])
            alike.append(one)
            if len(alike) >= batch.size:
                predict(waiting.pop(one.pixels.shape))
            elif sum(map(len, waiting.values())) >= _WAITING * batch.size:
                # Many shapes: those that wait longest go, so that their images do not pile up.
                predict(waiting.pop(next(iter(waiting))))
        before_s = time.perf_counter()
    for images in waiting.values():
        predict(images)
    return found


def _in_order(
    prepare: Callable[[int], _Prepared], count: int, threads: int, ahead: Callable[[], int]
) -> Iterator[_Prepared]:
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
    decoded = decode(content, max_pixels=max_pixels)
    pixels = None if decoded.pixels is None else detector.prepare(decoded.pixels)
    seconds = time.perf_counter() - start_s
    return _Prepared(position, Found(decoded.status, NO_BOXES, decoded.width, decoded.height, seconds), pixels)


def _predict(detector: Detector, images: Sequence[_Prepared], batch: Batch) -> Iterator[Found]:
    """Results of images of one shape, in passes that fit the device's memory."""
    done = 0
    while done < len(images):
        some = images[done : done + batch.size]
        start_s = time.perf_counter()
        try:
            boxes = detector.predict(
                np.stack([one.pixels for one in some if one.pixels is not None]),
                [(one.found.height or 0, one.found.width or 0) for one in some],
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _make_room(len(some), error)
            batch.size = max(1, len(some) // 2)
            continue
        share_s = (time.perf_counter() - start_s) / len(some)
        for one, its_boxes in zip(some, boxes, strict=True):
            before = one.found
            yield Found("scored", its_boxes, before.width, before.height, before.seconds + share_s)
        done += len(some)


def _is_out_of_memory(error: Exception) -> bool:
    # By its name: torch is not there with every detector. Of a CPU it raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _make_room(images: int, error: Exception) -> None:
    if images == 1:
        raise SettingsError(
            "a single image does not fit the memory of the detector's device: lower images.size in study.yaml"
        ) from error
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the failed pass left in pieces

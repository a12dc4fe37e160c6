"""What is particular to the device of a detector: how images come to it, and how many fit its memory in one pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patrolscope.pipeline.detect.room import is_out_of_memory

# Of the memory that is free: the rest is for images that come while others are computed, for many boxes, for pieces.
_SHARE = 0.8
# In one pass: more gain nothing, and the largest maps at 1280 have up to 65 million numbers an image (yolov7x; of
# yolov7-e6e 33), of which more than 2**31 at a time need other kernels.
_MOST_IMAGES = 32


class Arrivals:
    """Brings images to a device beside what it computes: on CUDA by pinned memory and a stream of their own.

    Whoever brings them waits until they are there, and does so in another thread than the one that computes: nothing
    else has to wait for the stream, and neither pinned memory nor files are let go of while they are being read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # What a library writes on a stream of its own does not wait for another thread's work on this one.
        self._alone = threading.Lock()

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is asked of the device in the block goes to the stream, and is done when the block ends."""
        if self._stream is None:
            yield
            return
        with self._alone, torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()

    def settle(self) -> None:
        """Wait for all that the device still does, on streams of libraries, too."""
        if self._stream is not None:
            torch.cuda.synchronize(self.device)

    def bring(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> Tensor | NDArray[np.uint8]:
        """A batch (n, 3, H, W) on the device, of images (3, H, W) that are in memory or there already."""
        arrays = [one for one in images if isinstance(one, np.ndarray)]
        if self._stream is None and len(arrays) == len(images):
            return np.stack(arrays)
        with self.work():
            copied = self._copied(arrays) if arrays else None
            if copied is not None and len(arrays) == len(images):
                batch = copied
            else:
                rest = iter(()) if copied is None else iter(copied)
                batch = torch.stack([one if isinstance(one, Tensor) else next(rest) for one in images])
        if self._stream is not None:
            # Else its memory would be free for the next images while a pass that was given up still reads it.
            batch.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def _copied(self, arrays: Sequence[NDArray[np.uint8]]) -> Tensor:
        shape = (len(arrays), *arrays[0].shape)
        pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=self._stream is not None)
        np.stack(arrays, out=pinned.numpy())
        return pinned.to(self.device, non_blocking=True)


def images_that_fit(*, held: int, peak_of_one: int, peak_of_two: int, free: int) -> int:
    """Images in one pass: a power of two.

    Parameters
    ----------
    held : bytes allocated before a pass, the network's above all
    peak_of_one, peak_of_two : most bytes allocated during a pass over one and over two images
    free : bytes that could be allocated beside those held
    """
    each = peak_of_two - peak_of_one
    if each <= 0:  # the second image found room in what the first had left
        each = max(peak_of_one - held, 1)
    for_all = peak_of_one - held - each  # that a pass needs whatever the number of images
    most = (int(_SHARE * free) - for_all) // each
    return 1 << (min(max(most, 1), _MOST_IMAGES).bit_length() - 1)


def measured_batch(run: Callable[[int], object], device: torch.device) -> int:
    """Images in one pass that fit the memory of a CUDA device, by passes over one and over two.

    Parameters
    ----------
    run : a pass over so many images
    """
    peaks = []
    try:
        run(2)  # libraries take what they keep
        held = torch.cuda.memory_allocated(device)
        for images in (1, 2):
            torch.cuda.reset_peak_memory_stats(device)
            run(images)
            peaks.append(torch.cuda.max_memory_allocated(device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 1  # where not even one fits, the first pass says so
    finally:
        torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return images_that_fit(held=held, peak_of_one=peaks[0], peak_of_two=peaks[1], free=free)

"""The device of a detector: choice of device and precision, uploads, and the number of images per pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patrolscope.pipeline.detect.device_memory import is_out_of_memory
from patrolscope.pipeline.errors import WeightsError

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Share of the free memory. The rest is for the next batch, for images with many boxes, and for fragmentation.
_MEMORY_SHARE = 0.8
# Images per pass. More gain nothing, and the largest feature maps at 1280 pixels have up to 65 million numbers per
# image (yolov7x; 33 million in yolov7-e6e). More than 2**31 numbers at a time need other kernels.
_MAX_IMAGES = 32


def choose_device(device: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda`, or `cuda:0`, and turn TF32 off for fp32 convolutions.

    Raises
    ------
    WeightsError
        If the device does not exist or is not supported.
    """
    torch.backends.cudnn.allow_tf32 = False  # by default, convolutions would round to 10 bits
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise WeightsError(f"device {device!r} is unknown; expected auto, cpu, cuda, or cuda:<number>") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise WeightsError(
            f"device {device!r} is not available; torch sees {torch.cuda.device_count()} GPUs; use cpu or auto"
        )
    if chosen.type not in ("cpu", "cuda"):
        raise WeightsError(f"device {device!r} is not supported; expected auto, cpu, cuda, or cuda:<number>")
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """Return the precision to compute in: for `auto`, fp16 on a GPU and fp32 elsewhere.

    Raises
    ------
    WeightsError
        If the precision is unknown or the device does not support it.
    """
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if precision not in _PRECISIONS:
        raise WeightsError(f"precision {precision!r} is unknown; expected auto, {', '.join(_PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise WeightsError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    return precision


def dtype_of(precision: str) -> torch.dtype:
    """Return the torch type of a precision."""
    return _PRECISIONS[precision]


class Uploader:
    """Uploads images to a device while it computes; on CUDA through pinned memory and a separate stream.

    The uploading thread waits for each copy to finish, so it must not be the thread that computes. No other thread then
    has to wait for the stream, and neither pinned memory nor file contents are freed while the device reads them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # A library that writes on its own stream does not wait for work that another thread puts on this one.
        self._lock = threading.Lock()

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Run the device work of the block on the upload stream, and wait for it at the end."""
        if self._stream is None:
            yield
            return
        with self._lock, torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()

    def synchronize(self) -> None:
        """Wait for all work on the device, including streams that belong to libraries."""
        if self._stream is not None:
            torch.cuda.synchronize(self.device)

    def upload(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> Tensor | NDArray[np.uint8]:
        """Stack images into a batch on the device.

        Parameters
        ----------
        images : sequence of array or Tensor of uint8, each (3, H, W)
            Arrays in memory and tensors that are already on the device.

        Returns
        -------
        Tensor or ndarray of uint8, shape (n, 3, H, W)
            An array when everything stays on the CPU.
        """
        arrays = [image for image in images if isinstance(image, np.ndarray)]
        if self._stream is None and len(arrays) == len(images):
            return np.stack(arrays)
        with self.on_stream():
            copied = self._copied(arrays) if arrays else None
            if copied is not None and len(arrays) == len(images):
                batch = copied
            else:
                rest = iter(()) if copied is None else iter(copied)
                batch = torch.stack([image if isinstance(image, Tensor) else next(rest) for image in images])
        if self._stream is not None:
            # Otherwise the next images could overwrite the memory while an abandoned pass still reads it.
            batch.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def _copied(self, arrays: Sequence[NDArray[np.uint8]]) -> Tensor:
        shape = (len(arrays), *arrays[0].shape)
        pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=self._stream is not None)
        np.stack(arrays, out=pinned.numpy())
        return pinned.to(self.device, non_blocking=True)


def images_that_fit(*, held: int, peak_of_one: int, peak_of_two: int, free: int) -> int:
    """Compute the number of images per pass, a power of two.

    Parameters
    ----------
    held : int
        Bytes allocated before a pass, mainly by the network.
    peak_of_one, peak_of_two : int
        Peak bytes allocated during a pass over one image and over two images.
    free : int
        Bytes that can be allocated in addition to `held`.
    """
    per_image = peak_of_two - peak_of_one
    if per_image <= 0:  # the second image fit into memory that the first one had left
        per_image = max(peak_of_one - held, 1)
    fixed = peak_of_one - held - per_image  # needed by a pass over any number of images
    most = (int(_MEMORY_SHARE * free) - fixed) // per_image
    return 1 << (min(max(most, 1), _MAX_IMAGES).bit_length() - 1)


def measured_batch(run: Callable[[int], object], device: torch.device) -> int:
    """Measure how many images per pass fit the memory of a CUDA device, by passes over one image and over two.

    Parameters
    ----------
    run : callable
        Runs a pass over the given number of images.
    device : torch.device
        CUDA device of the network.
    """
    peaks = []
    try:
        run(2)  # libraries allocate memory that they keep
        held = torch.cuda.memory_allocated(device)
        for images in (1, 2):
            torch.cuda.reset_peak_memory_stats(device)
            run(images)
            peaks.append(torch.cuda.max_memory_allocated(device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 1  # if not even one image fits, the first real pass reports it
    finally:
        torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return images_that_fit(held=held, peak_of_one=peaks[0], peak_of_two=peaks[1], free=free)

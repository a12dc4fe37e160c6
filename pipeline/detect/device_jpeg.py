"""Plain JPEGs decoded and letterboxed where the network is: by nvJPEG on CUDA.

nvJPEG repeats colors where libjpeg interpolates them (chroma is stored at half the size), which moves boxes by more
than rounding does. So the fingerprint of detections says when it has been used, and it depends on an image alone by
whom it is decoded: one that is refused as part of a batch is tried alone before it is left to the CPU.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import io

from patrolscope.pipeline.detect.boxes import BORDER, Letterbox
from patrolscope.pipeline.detect.device import Arrivals
from patrolscope.pipeline.errors import WeightsError

# Of torchvision 0.29 on: it names torchcodec, which is another library for each version of torch.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")

# Decoded at a time, as they are large before they are scaled.
_AT_ONCE = 16
# In torchvision's messages, all of one type: torch's own words, or NVJPEG_STATUS_ALLOCATOR_FAILURE at the end.
_NO_MEMORY = re.compile(r"out of memory|: 5$", re.MULTILINE)


class JpegDecoder:
    """From the bytes of plain JPEGs to the network's input."""

    def __init__(self, arrivals: Arrivals, letterbox: Letterbox) -> None:
        self._arrivals, self._letterbox = arrivals, letterbox

    def __call__(self, contents: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Tensor | None]:
        """Of each file (3, H, W), uint8, on the device; None: not decoded here.

        Parameters
        ----------
        sizes : height and width that the files' headers say
        """
        found: list[Tensor | None] = []
        for start in range(0, len(contents), _AT_ONCE):
            # A block of work each: nvJPEG writes without waiting for whoever used that memory before.
            with self._arrivals.work():
                whole = self._decoded(contents[start : start + _AT_ONCE])
                found += [
                    letterboxed(pixels, self._letterbox) if pixels is not None and pixels.shape[1:] == size else None
                    for pixels, size in zip(whole, sizes[start : start + _AT_ONCE], strict=True)
                ]
        return found

    def _decoded(self, contents: Sequence[bytes]) -> list[Tensor | None]:
        try:
            return list(_decode(contents, self._arrivals.device))
        except RuntimeError as error:
            self._arrivals.settle()  # nvJPEG may still write to what is let go of now
            if _NO_MEMORY.search(str(error)):
                # No matter of the image: it must not depend on memory by whom it is decoded.
                raise MemoryError(str(error)) from error
            if len(contents) == 1:
                return [None]
            return [one for content in contents for one in self._decoded([content])]


def jpeg_decoder(asked: str, arrivals: Arrivals, letterbox: Letterbox) -> JpegDecoder | None:
    """What decodes JPEGs on the device, or None where the CPU does.

    Parameters
    ----------
    asked : `auto` (on CUDA where torchvision has nvJPEG), `cpu`, `device`

    Raises
    ------
    WeightsError : it is asked for, and torchvision can not do it on this device
    """
    if asked == "cpu" or (asked == "auto" and arrivals.device.type != "cuda"):
        return None
    if _works(decoder := JpegDecoder(arrivals, letterbox)):
        return decoder
    if asked == "device":
        raise WeightsError(f"this torchvision decodes no JPEG on {arrivals.device}: images.jpeg must be auto or cpu")
    return None


def _works(decoder: JpegDecoder) -> bool:
    if not hasattr(io, "decode_jpeg"):  # torchvision means to part with it
        return False
    _, file = cv2.imencode(".jpg", np.full((16, 32, 3), 200, dtype=np.uint8))
    (probe,) = decoder([file.tobytes()], [(16, 32)])
    return probe is not None


def letterboxed(image: Tensor, letterbox: Letterbox) -> Tensor:
    """The same as `Letterbox.prepare` but for one gray level of rounding, (3, H, W), of (3, h, w), on any device."""
    size = int(image.shape[1]), int(image.shape[2])
    rows, columns = letterbox.scaled(*size)
    height, width = letterbox.shape(*size)
    top, left = letterbox.corner(*size)
    if (rows, columns) != size:
        scaled = functional.interpolate(image[None].float(), (rows, columns), mode="bilinear", align_corners=False)[0]
        image = scaled.round().to(torch.uint8)
    boxed = torch.full((3, height, width), BORDER, dtype=torch.uint8, device=image.device)
    boxed[:, top : top + rows, left : left + columns] = image
    return boxed


def _decode(contents: Sequence[bytes], device: torch.device) -> list[Tensor]:
    files = [torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy()) for content in contents]
    return list(io.decode_jpeg(files, mode=io.ImageReadMode.RGB, device=device))

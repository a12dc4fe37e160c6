"""JPEG decoding and letterboxing on the device of the network, by nvJPEG on CUDA.

nvJPEG repeats colors where libjpeg interpolates them (chroma is stored at half the size), which moves boxes by more
than rounding does. The fingerprint of detections therefore records its use. Which decoder reads an image must depend on
that image alone: one that is refused as part of a batch is retried alone before the CPU decodes it.
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
from patrolscope.pipeline.detect.decode import BLANK
from patrolscope.pipeline.detect.device import Uploader
from patrolscope.pipeline.errors import WeightsError

# torchvision 0.29 and later point to torchcodec, which is a separate library for each version of torch.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")

_FILES_PER_CALL = 16  # decoded images are large until they are scaled
# Messages of torchvision, whose errors are all of one type: torch's own text, or NVJPEG_STATUS_ALLOCATOR_FAILURE at the
# end of a line.
_NO_MEMORY = re.compile(r"out of memory|: 5$", re.MULTILINE)


class JpegDecoder:
    """Decoder of plain JPEGs into the network's input."""

    def __init__(self, uploader: Uploader, letterbox: Letterbox) -> None:
        self._uploader, self._letterbox = uploader, letterbox

    def __call__(self, contents: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Tensor | None]:
        """Decode and letterbox JPEG files on the device.

        Parameters
        ----------
        contents : sequence of bytes
            Contents of n files.
        sizes : sequence of (int, int)
            Height and width from the headers of the files, in pixels.

        Returns
        -------
        list of Tensor or None, length n
            Images (3, H, W) of uint8 on the device. None for a file that the CPU must decode.
        """
        prepared: list[Tensor | None] = []
        for start in range(0, len(contents), _FILES_PER_CALL):
            # Wait after each call: nvJPEG does not wait for earlier users of the memory that it writes to.
            with self._uploader.on_stream():
                images = self._decoded(contents[start : start + _FILES_PER_CALL])
                prepared += [
                    None if pixels is None else letterboxed(pixels, self._letterbox)
                    for pixels in _complete(images, sizes[start : start + _FILES_PER_CALL])
                ]
        return prepared

    def _decoded(self, contents: Sequence[bytes]) -> list[Tensor | None]:
        try:
            return list(_decode(contents, self._uploader.device))
        except RuntimeError as error:
            self._uploader.synchronize()  # nvJPEG may still write to memory that is freed next
            if _NO_MEMORY.search(str(error)):
                # The choice of decoder must not depend on the free memory.
                raise MemoryError(str(error)) from error
            if len(contents) == 1:
                return [None]
            return [pixels for content in contents for pixels in self._decoded([content])]


def _complete(images: Sequence[Tensor | None], sizes: Sequence[tuple[int, int]]) -> list[Tensor | None]:
    """Replace images that may be incomplete by None: of another size, or with a block of middle gray.

    Decoders fill blocks without data with that gray. The CPU decides on such a file from its data.
    """
    sized = [image for image, size in zip(images, sizes, strict=True) if image is not None and image.shape[1:] == size]
    # One transfer from the device for all images of a call.
    blank = torch.stack([_has_blank_block(image) for image in sized]).tolist() if sized else []
    complete = {id(image) for image, is_blank in zip(sized, blank, strict=True) if not is_blank}
    return [image if id(image) in complete else None for image in images]


def _has_blank_block(pixels: Tensor) -> Tensor:
    """Return whether all pixels of an aligned block of 8 by 8 are middle gray, as a tensor without dimensions."""
    rows, columns = (8 * (side // 8) for side in pixels.shape[1:])
    gray = (pixels[:, :rows, :columns] == BLANK).all(dim=0)
    return gray.reshape(rows // 8, 8, columns // 8, 8).all(dim=3).all(dim=1).any()


def jpeg_decoder(choice: str, uploader: Uploader, letterbox: Letterbox) -> JpegDecoder | None:
    """Create the decoder of JPEGs on the device; None if the CPU decodes them.

    Parameters
    ----------
    choice : {"auto", "cpu", "device"}
        `auto` uses the device on CUDA if torchvision has nvJPEG.
    uploader : Uploader
        Uploader of the device.
    letterbox : Letterbox
        Letterbox of the network's input.

    Raises
    ------
    WeightsError
        If `choice` is `device` and torchvision cannot decode on it.
    """
    if choice == "cpu" or (choice == "auto" and uploader.device.type != "cuda"):
        return None
    if _works(decoder := JpegDecoder(uploader, letterbox)):
        return decoder
    if choice == "device":
        raise WeightsError(f"this torchvision cannot decode JPEGs on {uploader.device}; set images.jpeg to auto or cpu")
    return None


def _works(decoder: JpegDecoder) -> bool:
    if not hasattr(io, "decode_jpeg"):  # torchvision announces its removal
        return False
    _, file = cv2.imencode(".jpg", np.full((16, 32, 3), 200, dtype=np.uint8))
    (probe,) = decoder([file.tobytes()], [(16, 32)])
    return probe is not None


def letterboxed(image: Tensor, letterbox: Letterbox) -> Tensor:
    """Letterbox an image on any device; equals `Letterbox.prepare` up to one gray level of rounding.

    Parameters
    ----------
    image : Tensor of uint8, shape (3, h, w)
        RGB image.
    letterbox : Letterbox
        Letterbox of the network's input.

    Returns
    -------
    Tensor of uint8, shape (3, H, W)
    """
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

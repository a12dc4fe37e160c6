"""From the bytes of an image file to pixels, or to the reason why there are none.

An image is turned upright by its EXIF orientation, as OpenCV and with it the training and detection scripts of the YOLO
family do: width, height and boxes are those of the upright image. Everything becomes 8-bit RGB: gray is repeated, CMYK
converted without a color profile, 16 bits cut to the upper 8, transparency left out, of an animation the first
frame taken. A file of which a part is missing is unreadable, as the missing part could have shown something.

Only the header is read to know the size, and only the readers of these formats are asked: no file can make a library
decode what it claims to be.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL import Image as Pillow

Status = Literal["scored", "unreadable", "missing", "too_large"]

# Of a damaged EXIF block, without which the image is what it is.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_READERS: tuple[tuple[bytes, type], ...] = (
    (_JPEG, JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
)
# What Pillow's readers raise of a damaged file.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    AttributeError,
    struct.error,
    zlib.error,
)
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class Decoded:
    """An image, or why there is none; width and height in pixels, of the upright image, where the header says them."""

    status: Status
    pixels: npt.NDArray[np.uint8] | None = None  # (height, width, 3) RGB
    width: int | None = None
    height: int | None = None


def decode(content: bytes, *, max_pixels: int, leave_jpegs: bool = False) -> Decoded:
    """Pixels of an image file; a file that can not be decoded is an answer, never an error.

    Parameters
    ----------
    max_pixels : an image with more is not decoded
    leave_jpegs : a plain whole JPEG is not decoded either: it is `scored` without pixels, for another to decode
    """
    reader = next((reader for magic, reader in _READERS if content.startswith(magic)), None)
    if reader is None:
        return Decoded("unreadable")
    try:
        # Not by Pillow's open(): it tries other formats, too, and only warns of a decompression bomb.
        image = reader(io.BytesIO(content))
        # A PNG would be decoded to look for what is not there; a TIFF is turned by its reader.
        turn = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info and image.format != "TIFF" else 1
        width, height = reversed(image.size) if turn in _SWAPS_SIDES else image.size
    except Pillow.DecompressionBombError:
        return Decoded("too_large")  # a WebP of more pixels than Pillow opens, whose size it does not let us see
    except _DAMAGED:
        return Decoded("unreadable")
    if width < 1 or height < 1:
        return Decoded("unreadable")
    if width * height > max_pixels:
        return Decoded("too_large", None, width, height)
    # OpenCV takes a JPEG without its end for whole, and fills it with gray: what has no end goes to Pillow.
    plain = content.startswith(_JPEG) and content.endswith(_JPEG_END) and image.mode in ("RGB", "L")
    if leave_jpegs and plain and turn not in _TURNS and not _stores_rgb(image):
        return Decoded("scored", None, width, height)
    try:
        pixels = _jpeg_pixels(content) if plain else _pixels(image)
    except _DAMAGED:
        return Decoded("unreadable", None, width, height)
    pixels = _upright(pixels, turn)
    return Decoded("scored", pixels, pixels.shape[1], pixels.shape[0])


def _stores_rgb(image: Pillow.Image) -> bool:
    """Whether a JPEG may hold red, green and blue themselves, by which marks libjpeg knows it and others do not."""
    ids = bytes(layer[0] for layer in getattr(image, "layer", ()))
    return image.mode == "RGB" and (image.info.get("adobe_transform", 1) != 1 or ids == b"RGB")


def _jpeg_pixels(content: bytes) -> npt.NDArray[np.uint8]:
    """Pixels of a whole gray or color JPEG as it is stored; a third of the time of Pillow's, and the same to the bit.

    Raises
    ------
    ValueError : the file is damaged
    """
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error as error:
        raise ValueError(str(error)) from error
    if pixels is None:
        raise ValueError("no JPEG that can be decoded")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), dtype=np.uint8)


def _pixels(image: Pillow.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        image = Pillow.fromarray(upper)
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no known range")
    if image.mode in ("P", "PA", "LA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _upright(pixels: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    return np.asarray(Pillow.fromarray(pixels).transpose(_TURNS[turn])) if turn in _TURNS else pixels

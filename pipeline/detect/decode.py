"""Decoding of image files into pixels, with a status for files that cannot be decoded.

Images are turned upright by their EXIF orientation, as OpenCV and therefore the training and detection scripts of the
YOLO family do. Width, height, and boxes refer to the upright image. All images become 8-bit RGB: gray is repeated, CMYK
is converted without a color profile, 16 bits are cut to the upper 8, transparency is dropped, and an animation yields
its first frame. A file with a missing part is unreadable, because the missing part could show a vehicle: warnings of
libjpeg about the data count as errors.

The size comes from the header alone, and only the readers of the supported formats are tried, so that a file cannot
choose the library that decodes it.
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

# A damaged EXIF block does not affect the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Lost sectors read as zeros. Encoded pictures rarely hold 64 of them, and the CPU decodes those that do.
_ZEROS = bytes(64)
BLANK = 128  # middle gray, with which decoders fill blocks without data
_READERS: tuple[tuple[bytes, type], ...] = (
    (_JPEG, JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
)
# Errors that Pillow's readers raise for a damaged file.
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
_LARGEST_SIDE = 2**31 - 1  # pixels
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
    """A decoded image, or the reason why it could not be decoded.

    Width and height are those of the upright image in pixels, None if the header does not contain them.
    """

    status: Status
    pixels: npt.NDArray[np.uint8] | None = None  # (height, width, 3) RGB
    width: int | None = None
    height: int | None = None


def decode(content: bytes, *, max_pixels: int, leave_jpegs: bool = False) -> Decoded:
    """Decode an image file. A file that cannot be decoded is a status, not an error.

    Parameters
    ----------
    content : bytes
        Content of the file.
    max_pixels : int
        Larger images are not decoded.
    leave_jpegs : bool, default False
        Return a plain, complete JPEG as `scored` without pixels, so that the device can decode it.
    """
    reader = next((reader for magic, reader in _READERS if content.startswith(magic)), None)
    if reader is None:
        return Decoded("unreadable")
    try:
        # Pillow's open() would try other formats as well, and would only warn of a decompression bomb.
        image = reader(io.BytesIO(content))
        # Without the first check, a PNG would be decoded fully in search of EXIF data. TIFF readers turn images.
        turn = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info and image.format != "TIFF" else 1
        width, height = reversed(image.size) if turn in _SWAPS_SIDES else image.size
    except Pillow.DecompressionBombError:
        return Decoded("too_large")  # a WebP with more pixels than Pillow opens; it does not reveal the size
    except _DAMAGED:
        return Decoded("unreadable")
    # The formats' own limit: a BMP states a signed number, which Pillow reads as unsigned.
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        return Decoded("unreadable")
    if width * height > max_pixels:
        return Decoded("too_large", None, width, height)
    is_jpeg = content.startswith(_JPEG)
    plain = is_jpeg and image.mode in ("RGB", "L")
    if leave_jpegs and plain and _can_be_left(content, image) and turn not in _TURNS:
        return Decoded("scored", None, width, height)
    try:
        if is_jpeg and not plain:
            _decode_strictly(content, "CMYK")  # Pillow, which converts it, hides warnings
        pixels = _decode_strictly(content, "RGB") if plain else _pixels(image)
    except _DAMAGED:
        return Decoded("unreadable", None, width, height)
    pixels = _upright(pixels, turn)
    return Decoded("scored", pixels, pixels.shape[1], pixels.shape[0])


def _can_be_left(content: bytes, image: JpegImagePlugin.JpegImageFile) -> bool:
    """Return whether other decoders than libjpeg read a JPEG in the same way, and notice what is missing."""
    # Headers may hold zeros, the data of the picture begin where the reader stands.
    whole = content.endswith(_JPEG_END) and image.fp is not None and content.find(_ZEROS, image.fp.tell()) < 0
    # libjpeg recognizes a file that stores red, green, and blue; other decoders do not.
    ids = bytes(layer[0] for layer in getattr(image, "layer", ()))
    stores_rgb = image.mode == "RGB" and (image.info.get("adobe_transform", 1) != 1 or ids == b"RGB")
    return whole and not stores_rgb


def _decode_strictly(content: bytes, colors: Literal["RGB", "CMYK"]) -> npt.NDArray[np.uint8]:
    """Decode a JPEG without turning it.

    Pixels equal those of Pillow and OpenCV, in three quarters of the time of the latter.

    Raises
    ------
    ValueError
        If the file is damaged, or data are missing or left over.
    """
    import simplejpeg

    return np.asarray(simplejpeg.decode_jpeg(content, colors, strict=True))


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

"""Decoding of image files into pixels, with a status for files that cannot be decoded.

Images are turned upright by their EXIF orientation, as OpenCV and therefore the training and detection scripts of the
YOLO family do. Width, height, and boxes refer to the upright image. All images become 8-bit RGB: gray is repeated, CMYK
is converted without a color profile, 16 bits are cut to the upper 8, transparency is dropped, and an animation yields
its first frame. A file with a missing part is unreadable, because the missing part could show a vehicle.

The size comes from the header alone, and only the readers of the supported formats are tried, so that a file cannot
choose the library that decodes it.
"""

from __future__ import annotations

import io
import re
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
# Lost sectors read as zeros; encoded pictures hold shorter runs, or are decoded once more without effect.
_ZEROS = bytes(64)
BLANK = 128
# Marker that ends a scan or a restart interval. In the data, 0xFF is followed by zero.
_SCAN_END = re.compile(rb"\xff[\xc4\xd0-\xd7\xd9\xda\xdb\xdd]")
_SCAN = b"\xff\xda"
_RESTART_INTERVAL = b"\xff\xdd\x00\x04"
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FILLING = bytes(range(1, 200)) * 4
_LAST_BYTES = 16  # more than a decoder reads ahead
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
    # Looked for in the scans alone: headers may hold zeros.
    scans = content[image.fp.tell() :] if is_jpeg and image.fp is not None else b""
    doubtful = _ZEROS in scans or _SCAN in scans
    # OpenCV accepts a JPEG without an end marker and fills the missing part with gray, so Pillow decodes those.
    plain = is_jpeg and content.endswith(_JPEG_END) and image.mode in ("RGB", "L")
    if plain:
        try:
            _check_restarts(content[: len(content) - len(scans)], scans, image)
        except ValueError:
            return Decoded("unreadable", None, width, height)
    if leave_jpegs and plain and not doubtful and turn not in _TURNS and not _stores_rgb(image):
        return Decoded("scored", None, width, height)
    try:
        pixels = _jpeg_pixels(content) if plain else _pixels(image)
        if plain and (doubtful or has_blank_block(pixels)):
            _check_complete(content, len(content) - len(scans), pixels)
    except _DAMAGED:
        return Decoded("unreadable", None, width, height)
    pixels = _upright(pixels, turn)
    return Decoded("scored", pixels, pixels.shape[1], pixels.shape[0])


def _stores_rgb(image: Pillow.Image) -> bool:
    """Return whether a JPEG may store red, green, and blue, which libjpeg recognizes and other decoders do not."""
    ids = bytes(layer[0] for layer in getattr(image, "layer", ()))
    return image.mode == "RGB" and (image.info.get("adobe_transform", 1) != 1 or ids == b"RGB")


def _jpeg_pixels(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode a complete gray or color JPEG without turning it.

    Takes a third of the time of Pillow and gives identical pixels.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error as error:
        raise ValueError(str(error)) from error
    if pixels is None:
        raise ValueError("the JPEG cannot be decoded")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), dtype=np.uint8)


def has_blank_block(pixels: npt.NDArray[np.uint8]) -> bool:
    """Return whether an aligned block of 8 by 8 pixels could be one that the decoder had no data for.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (h, w, 3)
        Decoded JPEG that is not turned.
    """
    # Decoders fill such blocks with middle gray. One pixel of each block, then the whole blocks that have it.
    first = pixels[::8, ::8]
    corners = (first[..., 0] == BLANK) & (first[..., 1] == BLANK) & (first[..., 2] == BLANK)
    return any((pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] == BLANK).all() for y, x in np.argwhere(corners))


def _check_restarts(header: bytes, scans: bytes, image: Pillow.Image) -> None:
    """Check that no restart marker of a JPEG with one scan is missing.

    Raises
    ------
    ValueError
        If one is missing or out of order.
    """
    at = header.rfind(_RESTART_INTERVAL)
    if at < 0 or _SCAN in scans:
        return
    interval = int.from_bytes(header[at + 4 : at + 6], "big")
    layers = getattr(image, "layer", ())
    across, down = (8 * max(layer[side] for layer in layers) if len(layers) > 1 else 8 for side in (1, 2))
    units = -(-image.size[0] // across) * -(-image.size[1] // down)
    expected = (units - 1) // interval if interval else 0
    found = [marker[1] & 7 for marker in _RESTART.findall(scans)]
    if found != [number % 8 for number in range(expected)]:
        raise ValueError("a restart marker of the JPEG is missing")


def _check_complete(content: bytes, start: int, pixels: npt.NDArray[np.uint8]) -> None:
    """Check that the decoder used up the data of each scan, no more and no less.

    OpenCV hides the warnings of libjpeg. Bytes that are put behind the data of a scan change the picture only if data
    were missing, and a change of its last bytes changes the picture unless the decoder was done before them.

    Raises
    ------
    ValueError
        If data are missing or left over.
    """
    filled = content[:start] + _SCAN_END.sub(_FILLING + rb"\g<0>", content[start:])
    if not np.array_equal(_jpeg_pixels(filled), pixels):
        raise ValueError("a part of the JPEG is missing")
    if (pixels == pixels[0, 0]).all():
        return  # codes of a picture of one color can be so few that other bytes mean nothing
    for end in _SCAN_END.finditer(content, start):
        if _ZEROS in content[start : end.start()]:
            changed = content[: end.start() - _LAST_BYTES] + _FILLING + content[end.start() :]
            if np.array_equal(_jpeg_pixels(changed), pixels):
                raise ValueError("a part of the JPEG is damaged")
        start = end.end()


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

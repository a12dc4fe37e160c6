"""Contents of image files of every kind, readable and unreadable."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

EXIF_QUARTER_TURN = 6


def picture(width: int = 96, height: int = 64, color=(200, 100, 50)) -> Image.Image:
    """Create an image of one color with a dark upper left corner, which shows its orientation."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:] = color
    pixels[: height // 4, : width // 4] = 0
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    """Encode an image as a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    """Encode a JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif, quality=95)


def png_that_claims(width: int, height: int) -> bytes:
    """Encode a PNG of few bytes whose header claims a large size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def sixteen_bits() -> bytes:
    """Encode a 16-bit gray PNG whose upper bytes are 0 to 255."""
    ramp = (np.arange(256, dtype=np.uint16) << 8 | 7).reshape(16, 16)
    return encoded(Image.fromarray(ramp), "PNG")


def of_every_kind() -> dict[str, tuple[bytes, str]]:
    """Return content and expected status of files by name."""
    jpeg = encoded(picture())
    return {
        "plain.jpg": (jpeg, "scored"),
        "png.png": (encoded(picture(), "PNG"), "scored"),
        "webp.webp": (encoded(picture(), "WEBP"), "scored"),
        "bmp.bmp": (encoded(picture(), "BMP"), "scored"),
        "tiff.tif": (encoded(picture(), "TIFF"), "scored"),
        "gray.jpg": (encoded(picture().convert("L")), "scored"),
        "cmyk.jpg": (encoded(picture().convert("CMYK")), "scored"),
        "palette.png": (encoded(picture().convert("P"), "PNG"), "scored"),
        "alpha.png": (encoded(picture().convert("RGBA"), "PNG"), "scored"),
        "sixteen.png": (sixteen_bits(), "scored"),
        "turned.jpg": (turned(picture(), EXIF_QUARTER_TURN), "scored"),
        "named_wrongly.jpg": (encoded(picture(), "PNG"), "scored"),
        "one_pixel.png": (encoded(picture(1, 1), "PNG"), "scored"),
        "empty.jpg": (b"", "unreadable"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "unreadable"),
        "header_alone.jpg": (jpeg[:20], "unreadable"),
        "text.jpg": (b"<html>not found</html>", "unreadable"),
        "zeros.jpg": (b"\xff\xd8" + bytes(1_000), "unreadable"),
        "huge.png": (png_that_claims(10_000, 10_000), "too_large"),
        "bomb.png": (png_that_claims(100_000, 100_000), "too_large"),
    }

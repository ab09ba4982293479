"""Encoded images -> uint8 arrays. JPEG by libjpeg-turbo, all else and all oddities by Pillow."""

import io
import re

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses: a decompression bomb
JPEG = b"\xff\xd8"


class BadImage(ValueError):
    """An image that cannot be read; the message names it. `data.on_bad_image` decides what then."""


def decode(data: bytes | np.ndarray, *, channels: int = 3, name: str = "image") -> np.ndarray:
    """Returns the pixels, uint8 [H, W, channels]: RGB for 3 channels, grey for 1.

    Orientation from EXIF is applied, transparency is dropped, 16 bits become 8, of an animation the
    first frame counts. An array is taken as pixels, uint8 [H, W, 1 or 3].

    Raises:
      BadImage: empty, damaged, truncated, too large or of an unknown format; it begins with `name`.
    """
    assert channels in (1, 3), channels
    if isinstance(data, np.ndarray):
        return _with_channels(data, channels)
    if not data:
        raise BadImage(f"{name}: the image is empty (0 bytes)")
    try:
        if data[:2] == JPEG:
            pixels = _decode_jpeg(data, channels)
            if pixels is not None:
                return pixels
        return _decode_any(data, channels)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        reason = "not an image that Pillow knows" if "cannot identify" in str(error) else error
        raise BadImage(f"{name}: cannot decode the image: {reason}") from error


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """Returns the pixels, or None for what needs Pillow: CMYK, a rotation, a stray byte, ..."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(width, height)
    if colorspace in ("CMYK", "YCCK") or (b"Exif\0\0" in data[:4096] and _is_turned(data)):
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", strict=True)
    except ValueError as error:
        # libjpeg fills what is missing with grey and warns; strict makes errors of its warnings.
        # Pillow overlooks data that ran out before a proper end; the harmless rest is left to it.
        if re.search("premature end|bad huffman", str(error), re.IGNORECASE):
            raise
        return None


def _decode_any(data: bytes, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
            grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
            return _with_channels(grey.astype(np.uint8)[..., None], channels)
        if image.mode == "F":
            raise ValueError("its pixels are floats of unknown range")
        if image.mode == "P":
            image = image.convert("RGBA")  # a palette with transparency cannot go to RGB directly
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
        return pixels if channels == 3 else pixels[..., None]


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width}x{height} is more than {MAX_PIXELS} pixels, a decompression bomb?"
        )


def _is_turned(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(0x0112, 1) != 1

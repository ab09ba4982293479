"""Encoded images -> uint8 arrays. JPEG by libjpeg-turbo, all else and all oddities by Pillow.

Of a JPEG no more is decoded than a crop needs: rows below it are left out, which changes no pixel;
and where it shall be made smaller, libjpeg-turbo's inverse cosine transform gives a half, a quarter
or an eighth of the size right away. Fractions between (n/8) have no vector code there and take
longer than the whole size. Always with the accurate transform and smooth upsampling of colours.
"""

import io
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the channels of an image
CHANNELS = tuple(MODES)
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses: a decompression bomb
JPEG = b"\xff\xd8"
MAX_SEGMENTS = 10_000  # of a JPEG's header that are looked at

# What Pillow may take a file for. Of its other kinds some start a program (EPS: Ghostscript), some
# are no images (HDF5, MPEG) and some have nothing that tells them from noise.
Image.init()
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
    if name in Image.OPEN  # not every build of Pillow has all
)
SUFFIXES = tuple(sorted(s for s, name in Image.EXTENSION.items() if name in FORMATS))

# What undoes an EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """An image that cannot be read; the message names it. `data.on_bad_image` decides what then."""


class Part(NamedTuple):
    """A rectangle of an image, in pixels of the whole, and the least size that it is wanted in."""

    top: int
    left: int
    height: int
    width: int
    least: tuple[int, int]  # height, width


def whole(height: int, width: int) -> Part:
    """Returns the part that is all of an image, in full size."""
    return Part(0, 0, height, width, (height, width))


def decode(
    data: bytes | np.ndarray,
    *,
    channels: int = 3,
    exif: bool = True,
    part: Callable[[int, int], Part] = whole,
    name: str = "",
) -> np.ndarray:
    """Returns the pixels, uint8 [H, W, channels]: RGB for 3 channels, grey for 1, RGBA for 4.

    With 4 channels the last is the transparency, or whatever a file of four bands has there; 255
    where it has three or less. Otherwise transparency is dropped. Of 16 bits the upper 8 are kept
    (0 to 65535 become 0 to 255), of an animation the first frame counts. An array is taken as
    pixels, uint8 [H, W, 1, 3 or 4].

    Args:
      data: encoded image, or pixels.
      channels: one of `CHANNELS`.
      exif: turn photographs as their EXIF orientation says.
      part: says of an image of (height, width) which part to return. It comes smaller by 2, 4 or 8
        if it then still has its least height and width and the image is a JPEG. May be called
        twice.
      name: what errors call the image.

    Raises:
      BadImage: empty, damaged, truncated, too large or of an unknown format. Damage below the part
        may go unnoticed, a missing end does not.
    """
    assert channels in CHANNELS, channels
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[-1] not in CHANNELS:
            raise ValueError(
                f"pixels are {data.dtype}{list(data.shape)}: give uint8 [H, W, 1, 3 or 4]"
            )
        return _with_channels(_cut(data, part(*data.shape[:2])), channels)
    name = f"{name}: " if name else ""
    if not data:
        raise BadImage(f"{name}the image is empty (0 bytes)")
    try:
        if data[:2] == JPEG:
            pixels = _decode_jpeg(data, channels, exif, part)
            if pixels is not None:
                return _with_channels(pixels, channels)
        pixels = _decode_any(data, channels, exif)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        reason = "not an image that Pillow knows" if "cannot identify" in str(error) else error
        raise BadImage(f"{name}cannot decode the image: {reason}") from error
    return _cut(pixels, part(*pixels.shape[:2]))


def _cut(image: np.ndarray, part: Part, factor: int = 1) -> np.ndarray:
    """Returns a part of an image that was decoded smaller by `factor`."""
    top, left = round(part.top / factor), round(part.left / factor)
    bottom = round((part.top + part.height) / factor)
    right = round((part.left + part.width) / factor)
    return image[top:bottom, left:right]


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns an image of 1, 3 or 4 channels with others, see `decode`."""
    there = image.shape[-1]
    if there == channels:
        return image
    color = np.repeat(image, 3, axis=-1) if there == 1 else image[..., :3]
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(color), cv2.COLOR_RGB2GRAY)[..., None]
    if channels == 3:
        return color
    return np.concatenate([color, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=-1)


def _decode_jpeg(
    data: bytes, channels: int, exif: bool, part: Callable[[int, int], Part]
) -> np.ndarray | None:
    """Returns the part's pixels, or None for what needs Pillow: CMYK, a rotation, a stray byte."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(width, height)
    if colorspace in ("CMYK", "YCCK"):
        return None
    if exif and _may_be_turned(data) and _is_turned(data):
        return None
    mode = "GRAY" if channels == 1 else "RGB"
    wanted = part(height, width)
    factor = 8
    while factor > 1 and (
        wanted.height < factor * wanted.least[0] or wanted.width < factor * wanted.least[1]
    ):
        factor //= 2
    # Two rows more: upsampled colours depend on their neighbours.
    rows = wanted.top + wanted.height + 2
    pixels = _decode_rows(data, mode, rows, width, factor) if rows < height else None
    if pixels is None:
        least = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
        try:
            pixels = simplejpeg.decode_jpeg(data, mode, strict=True, **least)
        except ValueError as error:
            # libjpeg fills what is missing with grey and warns; strict makes errors of its
            # warnings. Pillow overlooks data that ran out before a proper end; the harmless rest is
            # left to it.
            if re.search("premature end|bad huffman", str(error), re.IGNORECASE):
                raise
            return None
    return _cut(pixels, wanted, factor)


def _decode_rows(data: bytes, mode: str, rows: int, width: int, factor: int) -> np.ndarray | None:
    """Returns the first rows of a JPEG; None for kinds that have to be decoded whole.

    Where the data is in the order of the rows, it is enough to write a smaller height into the
    header. libjpeg then reads on to the end, and warns of what it skips; of several warnings it
    gives the first, so that damage before it is not overlooked.
    """
    height_at = _find_height(data)
    if height_at is None:
        return None
    shorter = bytearray(data)
    shorter[height_at : height_at + 2] = rows.to_bytes(2, "big")
    shape = (-(-rows // factor), -(-width // factor), len(mode) if mode == "RGB" else 1)
    pixels = np.empty(shape, np.uint8)
    least = {"min_height": shape[0], "min_width": shape[1]}
    try:
        simplejpeg.decode_jpeg(shorter, mode, buffer=pixels, strict=True, **least)
    except ValueError as error:
        if not SKIPPED.search(str(error)):
            return None
    return pixels


# before the end (0xd9) or one of the restart markers in between
SKIPPED = re.compile("extraneous bytes before marker 0xd[0-79]")


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields marker and place of the segments of a JPEG's header, the last one 0xda, a scan.

    Ends before that where they do not follow one another as they should.
    """
    at = 2
    for _ in range(MAX_SEGMENTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return
        yield data[at + 1], at
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA or length < 2:
            return
        at += 2 + length


def _find_height(data: bytes) -> int | None:
    """Returns where a JPEG has its height if it is sequential, else None."""
    for marker, at in _segments(data):
        if marker in (0xC0, 0xC1):  # baseline and extended; others are progressive, lossless, ...
            return at + 5
        if 0xC0 <= marker <= 0xDA and marker not in (0xC4, 0xCC):  # tables may come before
            return None
    return None


def _may_be_turned(data: bytes) -> bool:
    """Returns whether the header of a JPEG has one of the texts that an orientation comes with."""
    scans = (at for marker, at in _segments(data) if marker == 0xDA)
    end = next(scans, len(data))  # a strange header may be anywhere
    return any(data.find(text, 0, end) >= 0 for text in (b"Exif\0\0", b"tiff:Orientation"))


def _decode_any(data: bytes, channels: int, exif: bool) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        image.load()
        how = UPRIGHT.get(_orientation(image)) if exif else None
        if channels == 4 and _has_other_band(image):
            image = Image.fromarray(_four_bands(data))
        if how is not None:
            image = image.transpose(how)
        if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
            grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
            return _with_channels(grey.astype(np.uint8)[..., None], channels)
        if image.mode == "F":
            raise ValueError("its pixels are floats of unknown range")
        if image.mode == "P":
            image = image.convert("RGBA")  # a palette with transparency cannot go to RGB directly
        pixels = np.asarray(image.convert(MODES[channels]))
        return pixels if channels > 1 else pixels[..., None]


def _has_other_band(image: Image.Image) -> bool:
    """Returns whether it is a TIFF with a fourth band that Pillow leaves out: no transparency."""
    return image.format == "TIFF" and image.mode == "RGB" and image.tag_v2.get(277) == 4


def _four_bands(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[2:] != (4,) or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError("four bands, of which one cannot be read")
    pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width}x{height} is more than {MAX_PIXELS} pixels, a decompression bomb?"
        )


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _orientation(image) in UPRIGHT
    except (OSError, SyntaxError):  # libjpeg could read its header, and decides
        return False


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) where it cannot be read: the pixels are good."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF raises almost anything
        return 1
    return orientation if isinstance(orientation, int) else 1

"""What is not decoded: told by its header, before anything is unpacked."""

import io

import simplejpeg
from PIL import Image

from jaxcls.data.decode import FORMATS, JPEG

ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
SCAN = b"\xff\xda"  # begins each pass over a progressive JPEG; in its data 0xff is followed by 0
SCANS = 40  # of a JPEG; encoders write up to about 12, in whose time a bomb hides thousands


def check(data: bytes, pixels: int) -> None:
    """Refuses an image that should not be decoded.

    Args:
      data: encoded image.
      pixels: at most.

    Raises:
      ValueError: more pixels, several pictures, or a JPEG of more passes than any encoder writes.
        What is no image at all is left to the decoder, which says so.
    """
    if data[:2] == JPEG:  # the one that decodes it reads its header, too
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass
        else:
            _check_size(width, height, pixels)
        if data.count(SCAN) > SCANS:
            raise ValueError(f"a JPEG of more than {SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            several = image.format in ANIMATED and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as e:
        raise ValueError(str(e)) from e
    except MemoryError:
        raise
    except Exception:  # whatever the header is: the decoder says what is wrong
        return
    _check_size(width, height, pixels)
    if several:
        raise ValueError("several pictures in one: send them one by one")


def _check_size(width: int, height: int, pixels: int) -> None:
    if width * height > pixels:
        raise ValueError(f"{width} x {height} pixels, more than {pixels:,}")

"""Decoding, against Pillow; and parts of images against the same pixels of whole ones."""

import io
import warnings

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from jaxcls.command import exit_with
from jaxcls.data.decode import FORMATS, BadImage, Part, decode

RNG = np.random.default_rng(0)


def photo(height=40, width=60, channels=3):
    """A smooth image: JPEG keeps it to a few grey levels."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / (7 + c) + y / (11 - c) + c) for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


def noise(height=200, width=150):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def encode(image, kind, **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_decode_agrees_with_pillow(kind):
    data = encode(photo(), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    pixels = decode(data)
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    # libjpeg-turbo and Pillow's own copy may round the last bit differently
    assert np.abs(pixels - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_decode_jpeg_of_every_colour_space(mode):
    image = Image.fromarray(photo()).convert(mode)
    pixels = decode(encode(image, "JPEG", quality=95)).astype(int)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels - np.asarray(image.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_decode_png_of_every_mode(mode):
    image = Image.fromarray(photo()).convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(encode(image, "PNG"))
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_decode_16_bit_grey_keeps_the_high_byte():
    values = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    pixels = decode(encode(Image.fromarray(values), "PNG"))
    assert np.array_equal(pixels, np.repeat((values // 256)[..., None], 3, -1))


def test_decode_16_bit_colour_keeps_the_high_byte():
    values = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    data = cv2.imencode(".png", values[..., ::-1])[1].tobytes()
    assert np.array_equal(decode(data), values // 256)


def test_decode_takes_the_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == 10).all()


def test_decode_applies_exif_orientation():
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    turned = decode(encode(image, "JPEG", exif=exif, quality=95)).astype(int)
    assert turned.shape == (60, 40, 3)
    assert np.abs(turned - np.rot90(photo(), -1)).mean() < 4
    exif[0x0112] = 1
    assert decode(encode(image, "JPEG", exif=exif)).shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_a_choice(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), kind, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    # What the camera held at the top left is, in the stored rows and columns (EXIF 2.3, 4.6.4 A):
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation]
    for pixels, expected in (
        (decode(data), upright),
        (decode(data, exif=False), stored),
        (decode(data, part=lambda h, w: Part(3, 5, 20, 30, (20, 30))), upright[3:23, 5:35]),
    ):
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() <= 2


def turned(orientation, kind="JPEG", xmp=False):
    """Returns an image that says how it is turned, and its pixels upright, by Pillow."""
    if xmp:
        data = encode(photo(), kind, xmp=b'<x tiff:Orientation="%d"/>' % orientation)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(photo(), kind, exif=exif)
    return data


def assert_as_pillow(data):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels = decode(data).astype(int)
    assert pixels.shape == (upright.height, upright.width, 3)
    assert np.abs(pixels - np.asarray(upright)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_of_every_kind(kind):
    if kind not in FORMATS:
        pytest.skip(f"Pillow was built without {kind}")
    for orientation in range(10):
        assert_as_pillow(turned(orientation, kind))


def test_orientation_wherever_it_stands_in_a_jpeg():
    segment = b"\xff\xe2" + (60_000).to_bytes(2, "big") + bytes(59_998)
    hidden = b"\xff\xe3" + (8).to_bytes(2, "big") + b"\xff\xda\xff\xda\xff\xda"  # no scan
    for orientation in (1, 3, 5, 6):
        for xmp in (False, True):
            data = turned(orientation, xmp=xmp)
            shape = (60, 40, 3) if orientation in (5, 6) else (40, 60, 3)
            for before in (b"", segment, 5 * segment, hidden, segment + b"\xff\xff\xff"):
                longer = data[:2] + before + data[2:]
                assert_as_pillow(longer)
                assert decode(longer).shape == shape


def test_damaged_exif_does_no_harm():
    data = turned(6)
    begin, rng = data.index(b"Exif") + 6, np.random.default_rng(0)
    shapes = set()
    for _ in range(300):
        damaged = bytearray(data)
        for at in rng.integers(begin, begin + 26, 4):
            damaged[at] = rng.integers(256)
        shapes.add(decode(bytes(damaged)).shape)
    assert shapes == {(40, 60, 3), (60, 40, 3)}


def test_files_that_would_start_a_program_are_no_images():
    """Pillow hands EPS to Ghostscript."""
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(data)).format == "EPS"
    with pytest.raises(BadImage, match="not an image that Pillow knows"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode_to_one_channel(kind):
    data = encode(photo(), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    pixels = decode(data, channels=1)
    assert pixels.shape == (40, 60, 1)
    assert np.abs(pixels[..., 0] - expected).max() <= 3


def test_arrays_get_the_wanted_channels():
    grey = photo(channels=1)
    assert np.array_equal(decode(grey, channels=1), grey)
    assert np.array_equal(decode(grey), np.concatenate([grey] * 3, -1))
    assert decode(photo(), channels=1).shape == (40, 60, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.97])
def test_a_truncated_image_is_named(kind, share):
    data = encode(RNG.integers(0, 256, (64, 64, 3), np.uint8), kind)
    with pytest.raises(BadImage, match=r"^cats/1\.jpg: "):
        decode(data[: int(len(data) * share)], name="cats/1.jpg")


def test_a_truncated_jpeg_with_an_end_marker_is_noticed():
    data = encode(RNG.integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
    with pytest.raises(BadImage, match="premature end"):
        decode(data[: len(data) // 2] + b"\xff\xd9")


def test_stray_bytes_in_a_jpeg_do_no_harm():
    data = encode(photo(), "JPEG")
    stray = data[:-2] + b"\0\0\0" + data[-2:]
    assert np.abs(decode(stray).astype(int) - decode(data)).max() <= 2
    assert np.array_equal(decode(data + b"trailer"), decode(data))


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8\xff\xd9", bytes(100)])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(BadImage, match="^cannot decode the image: "):
        decode(data)


def test_decompression_bombs_are_refused():
    data = bytearray(encode(photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"  # height and width
    with pytest.raises(BadImage, match="65280x65280 is more than"):
        decode(bytes(data))
    with pytest.raises(BadImage, match="bomb"):
        decode(encode(Image.new("1", (20000, 20000)), "PNG"))


# -- parts -----------------------------------------------------------------------------------------

TALL = (200, 150)
PARTS = [(0, 0, 200, 150), (0, 0, 1, 1), (3, 7, 60, 50), (65, 1, 33, 149), (150, 0, 50, 150)]


def part(top, left, height, width, least=None):
    return lambda h, w: Part(top, left, height, width, least or (height, width))


def cut(image, top, left, height, width):
    return image[top : top + height, left : left + width]


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_has_the_pixels_of_the_whole(subsampling, channels):
    data = simplejpeg.encode_jpeg(noise(), 95, "RGB", subsampling)
    mode = "RGB" if channels == 3 else "GRAY"
    image = simplejpeg.decode_jpeg(data, mode)
    boxes = [*PARTS, *((top, 0, 40, 150) for top in range(20, 40))]
    for box in boxes:
        assert np.array_equal(decode(data, channels=channels, part=part(*box)), cut(image, *box))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 3}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("JPEG", {"comment": b"\xff\xc0 is no header here"}),
        ("PNG", {}),
    ],
)
def test_a_part_of_other_kinds(kind, options):
    data = encode(noise(), kind, **options)
    image = decode(data)
    for box in PARTS:
        assert np.array_equal(decode(data, part=part(*box)), cut(image, *box))


def test_a_part_of_an_array():
    image = noise()
    assert np.array_equal(decode(image, part=part(5, 6, 7, 8, (1, 1))), cut(image, 5, 6, 7, 8))


def test_rows_below_a_part_are_not_decoded():
    """The data for the lower rows is missing, which a decoder complains of if it needs it."""
    data = encode(noise(), "JPEG")
    harmed = data[: len(data) // 2] + b"\xff\xd9"
    image = simplejpeg.decode_jpeg(data)
    assert np.array_equal(decode(harmed, part=part(0, 0, 60, 150)), image[:60])
    with pytest.raises(BadImage, match="premature end"):
        decode(harmed, part=part(0, 0, 120, 150))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_a_missing_end_is_noticed_whatever_the_part(share, options):
    data = encode(noise(), "JPEG", **options)
    for box in PARTS:
        with pytest.raises(BadImage, match="^x: cannot decode"):
            decode(data[: int(len(data) * share)], part=part(*box), name="x")


@pytest.mark.parametrize("subsampling", ["444", "420"])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_large_part_comes_smaller(factor, subsampling):
    """Sides halve as long as they keep the least size; pixels are close to means of the whole."""
    y, x = np.mgrid[:640, :480]
    image = np.stack([128 + 100 * np.sin(x / 45 + y / 60 + c) for c in range(3)], -1)
    image = image.astype(np.uint8)
    data = simplejpeg.encode_jpeg(image, 98, "RGB", subsampling)
    box = (64, 32, 448, 384)
    least = (448 // factor, 384 // factor)
    pixels = decode(data, part=part(*box, least))
    assert pixels.shape == (*least, 3)
    means = cut(image, *box).reshape(448 // factor, factor, 384 // factor, factor, 3).mean((1, 3))
    assert np.abs(pixels - means).max() < 6
    for more in ((least[0] + 1, least[1]), (least[0], least[1] + 1)):
        larger = decode(data, part=part(*box, more)).shape[:2]
        assert larger == (448 // max(factor // 2, 1), 384 // max(factor // 2, 1))
    png = encode(image, "PNG")
    assert decode(png, part=part(*box, least)).shape == (448, 384, 3)


def test_a_smaller_part_has_the_pixels_of_the_smaller_whole():
    data = encode(noise(640, 480), "JPEG")
    half = simplejpeg.decode_jpeg(data, min_height=320, min_width=240)
    assert half.shape == (320, 240, 3)
    for top in (0, 34, 176):
        pixels = decode(data, part=part(top, 20, 400, 440, (200, 220)))
        assert np.array_equal(pixels, cut(half, top // 2, 10, 200, 220))


def test_pillow_does_not_talk_into_the_output():
    data = encode(photo(), "JPEG")
    cut = b"Exif\0\0II*\0\xff\xff\xff\xff"  # a directory beyond the end
    data = data[:2] + b"\xff\xe1" + (len(cut) + 2).to_bytes(2, "big") + cut + data[2:]
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        decode(data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            exit_with(lambda: decode(data).ndim)
    assert not said

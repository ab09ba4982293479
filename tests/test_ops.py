"""Decoding and the operations on single images, against Pillow and formulas written out here."""

import io
import pickle
import warnings
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import base
from jaxcls.data import decode, ops
from jaxcls.data.decode import BadImage

RNG = np.random.default_rng(0)


def photo(height=40, width=60, channels=3):
    """A smooth image: JPEG keeps it to a few grey levels."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / (7 + c) + y / (11 - c) + c) for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


def encode(image, kind, **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def transform(train=True, **changes):
    config = base.get_config()
    config.image.update(changes)
    return ops.make(**config.image, train=train)


# -- decode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_decode_agrees_with_pillow(kind):
    data = encode(photo(), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    pixels = decode.decode(data)
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    # libjpeg-turbo and Pillow's own copy may round the last bit differently
    assert np.abs(pixels - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_decode_jpeg_of_every_colour_space(mode):
    image = Image.fromarray(photo()).convert(mode)
    pixels = decode.decode(encode(image, "JPEG", quality=95)).astype(int)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels - np.asarray(image.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_decode_png_of_every_mode(mode):
    image = Image.fromarray(photo()).convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode.decode(encode(image, "PNG"))
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_decode_16_bit_grey_keeps_the_high_byte():
    values = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    pixels = decode.decode(encode(Image.fromarray(values), "PNG"))
    assert np.array_equal(pixels, np.repeat((values // 256)[..., None], 3, -1))


def test_decode_applies_exif_orientation():
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    turned = decode.decode(encode(image, "JPEG", exif=exif, quality=95)).astype(int)
    assert turned.shape == (60, 40, 3)
    assert np.abs(turned - np.rot90(photo(), -1)).mean() < 4
    exif[0x0112] = 1
    assert decode.decode(encode(image, "JPEG", exif=exif)).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode_to_one_channel(kind):
    data = encode(photo(), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    pixels = decode.decode(data, channels=1)
    assert pixels.shape == (40, 60, 1)
    assert np.abs(pixels[..., 0] - expected).max() <= 3


def test_arrays_get_the_wanted_channels():
    grey = photo(channels=1)
    assert decode.decode(grey, channels=1) is grey
    assert np.array_equal(decode.decode(grey), np.concatenate([grey] * 3, -1))
    assert decode.decode(photo(), channels=1).shape == (40, 60, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.97])
def test_a_truncated_image_is_named(kind, share):
    data = encode(RNG.integers(0, 256, (64, 64, 3), np.uint8), kind)
    with pytest.raises(BadImage, match=r"^cats/1\.jpg"):
        decode.decode(data[: int(len(data) * share)], name="cats/1.jpg")


def test_a_truncated_jpeg_with_an_end_marker_is_noticed():
    data = encode(RNG.integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
    with pytest.raises(BadImage, match="premature end"):
        decode.decode(data[: len(data) // 2] + b"\xff\xd9")


def test_stray_bytes_in_a_jpeg_do_no_harm():
    data = encode(photo(), "JPEG")
    stray = data[:-2] + b"\0\0\0" + data[-2:]
    assert np.abs(decode.decode(stray).astype(int) - decode.decode(data)).max() <= 2
    assert np.array_equal(decode.decode(data + b"trailer"), decode.decode(data))


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8\xff\xd9", bytes(100)])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(BadImage, match="cannot decode"):
        decode.decode(data)


def test_decompression_bombs_are_refused():
    data = bytearray(encode(photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"  # height and width
    with pytest.raises(BadImage, match="65280x65280 is more than"):
        decode.decode(bytes(data))
    with pytest.raises(BadImage, match="bomb"):
        decode.decode(encode(Image.new("1", (20000, 20000)), "PNG"))


# -- random_resized_crop ---------------------------------------------------------------------------


def coordinates(height, width):
    """An image whose pixels are where they are: (y, x, 0)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint8)


def crop_box(monkeypatch, image, rng, **changes):
    """Returns (y, x, height, width) of what a random resized crop hands to the resize."""
    boxes = []

    def note(part, width, height, interpolation):
        boxes.append((*part[0, 0, :2].astype(int), *part.shape[:2]))
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(ops, "_resize", note)
    f = transform(crop="random_resized", size=32, **changes)
    for _ in range(2000):
        f(image, rng)
    return np.array(boxes)


def test_random_resized_crop_draws_like_paddleclas(monkeypatch):
    height, width = 200, 250
    y, x, h, w = crop_box(monkeypatch, coordinates(height, width), np.random.default_rng(0)).T
    assert (y + h <= height).all()
    assert (x + w <= width).all()

    # RandCropImage, as its source states it, on another generator.
    rng = np.random.default_rng(1)
    expected = []
    for _ in range(20000):
        root = np.sqrt(rng.uniform(3 / 4, 4 / 3))
        rw, rh = root, 1 / root
        bound = min((width / height) / rw**2, (height / width) / rh**2)
        area = height * width * rng.uniform(min(0.08, bound), min(1.0, bound))
        ew, eh = int(np.sqrt(area) * rw), int(np.sqrt(area) * rh)
        expected.append((rng.integers(height - eh + 1), rng.integers(width - ew + 1), eh, ew))
    # Two-sample Kolmogorov-Smirnov distance; 1.95 sqrt(1/n + 1/m) is passed once in a thousand.
    for ours, theirs in zip((y, x, h, w), np.array(expected).T):
        grid = np.unique(np.concatenate([ours, theirs]))
        cdf = [np.searchsorted(np.sort(v), grid, "right") / len(v) for v in (ours, theirs)]
        assert np.abs(cdf[0] - cdf[1]).max() < 1.95 * np.sqrt(1 / len(y) + 1 / len(expected))


def test_random_resized_crop_of_the_whole_image(monkeypatch):
    boxes = crop_box(
        monkeypatch, coordinates(50, 50), RNG, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)
    )
    assert np.array_equal(np.unique(boxes, axis=0), [(0, 0, 50, 50)])


def test_random_resized_crop_resizes_with_opencv():
    image = photo(50, 50)
    f = transform(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), size=32, interpolation="bicubic")
    expected = cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(f(image, RNG), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_random_resized_crop_of_extreme_shapes(shape, channels):
    f = transform(size=8)
    for _ in range(50):
        out = f(photo(*shape, channels), RNG)
        assert out.shape == (8, 8, channels)
        assert out.dtype == np.uint8


def test_the_generator_decides():
    f = transform(size=16)
    image = photo(60, 80)
    first, again, other = (f(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# -- shift, center, evaluation ---------------------------------------------------------------------


def test_shift_is_pad_and_crop():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (12, 12, 3), np.uint8)
    f = transform(crop="shift", size=12, shift=2)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    windows = {padded[y : y + 12, x : x + 12].tobytes(): (y, x) for y in range(5) for x in range(5)}
    seen = [windows[f(image, rng).tobytes()] for _ in range(1000)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    # Chi-square with 24 degrees of freedom passes 51.2 once in a thousand.
    assert np.sum((counts - 40) ** 2 / 40) < 51.2


def test_center_and_evaluation_crop_the_centre():
    image = photo(41, 80)
    assert np.array_equal(transform(crop="center", size=41)(image, RNG), image[:, 19:60])
    f = transform(train=False, size=21, eval_resize=41)
    assert np.array_equal(f(image, None), image[10:31, 29:50])
    f = transform(train=False, size=99, eval_size=20, eval_resize=0)
    assert np.array_equal(f(image, None), image[10:30, 30:50])


def test_evaluation_resizes_the_short_side():
    image = photo(50, 83)
    large = cv2.resize(image, (53, 32), interpolation=cv2.INTER_LINEAR)  # 83 * 32 / 50 = 53.1
    f = transform(train=False, size=24, eval_resize=32)
    assert np.array_equal(f(image, None), large[4:28, 14:38])


def test_grey_images_keep_their_channel():
    for f in (transform(crop="shift", size=16, shift=2), transform(crop="center", size=16)):
        assert f(photo(20, 30, 1), RNG).shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random_resize"}, "did you mean random_resized"),
        ({"interpolation": "cubic"}, "did you mean bicubic"),
        ({"size": 0}, "config.image.size = 0"),
        ({"size": 288}, "crops 288 pixels .* eval_resize = 256"),
        ({"eval_size": -1}, "config.image.eval_size = -1 is negative"),
        ({"crop": "shift", "shift": -1}, "config.image.shift = -1 is negative"),
        ({"crop": "shift", "shift": 224}, "config.image.shift = 224 moves all"),
        ({"crop_scale": (0.0, 1.0)}, "config.image.crop_scale = .*0 < low"),
        ({"crop_scale": (0.5, 1.5)}, "config.image.crop_scale = .*high <= 1"),
        ({"crop_ratio": (2.0, 1.0)}, "config.image.crop_ratio"),
        ({"shift": 4}, "config.image.shift: not used by 'random_resized'"),
        ({"crop": "center", "crop_scale": (0.5, 1.0)}, "config.image.crop_scale: not used"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        transform(**changes)


def test_an_image_smaller_than_the_crop():
    f = transform(train=False, size=24, eval_resize=0)
    with pytest.raises(ValueError, match=r"20x30 pixels is smaller .* 24x24"):
        f(photo(30, 20), None)


def test_defaults_are_those_of_the_base_config():
    config = base.get_config()
    assert {key: config.image[key] for key in ops.DEFAULTS} == ops.DEFAULTS


def test_a_transform_pickles():
    f = transform(size=16)
    assert isinstance(f, partial)
    g = pickle.loads(pickle.dumps(f))
    image = photo()
    assert np.array_equal(f(image, np.random.default_rng(0)), g(image, np.random.default_rng(0)))

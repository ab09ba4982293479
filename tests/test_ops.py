"""Crops and resizes of single images, against OpenCV, Pillow and formulas written out here."""

import io
import pickle

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from configs import base
from jaxcls.data import ops
from jaxcls.data.decode import BadImage

RNG = np.random.default_rng(0)


GREY = {"mean": (0.5,), "std": (0.5,)}


def photo(height=40, width=60, channels=3):
    """A smooth image: JPEG keeps it to a few grey levels."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / (7 + c) + y / (11 - c) + c) for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


def jpeg(image, quality=95, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def transform(train=True, **changes):
    """Returns the transform with these keys of `crop` and of `image`."""
    config, augment = base.get_config(), changes.pop("augment", None)
    crop = dict(config.crop) | {key: changes.pop(key) for key in config.crop if key in changes}
    image = ops.Image(**dict(config.image) | changes)
    return ops.training(**crop, image=image, augment=augment) if train else image.transform


# -- random_resized_crop ---------------------------------------------------------------------------


def coordinates(height, width):
    """An image whose pixels are where they are: (y, x, 0)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint8)


def assert_same_distribution(ours, theirs):
    """Two-sample Kolmogorov-Smirnov; 1.95 sqrt(1/n + 1/m) is passed once in a thousand."""
    grid = np.unique(np.concatenate([ours, theirs]))
    cdf = [np.searchsorted(np.sort(v), grid, "right") / len(v) for v in (ours, theirs)]
    assert np.abs(cdf[0] - cdf[1]).max() < 1.95 * np.sqrt(1 / len(ours) + 1 / len(theirs))


def crop_box(monkeypatch, image, rng, **changes):
    """Returns (y, x, height, width) of what a random resized crop hands to the resize."""
    boxes = []

    def note(part, height, width, interpolation):
        boxes.append((*part[0, 0, :2].astype(int), *part.shape[:2]))
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(ops, "_resize", note)
    f = transform(name="random_resized", size=32, **changes)
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
    for ours, theirs in zip((y, x, h, w), np.array(expected).T):
        assert_same_distribution(ours, theirs)


def test_crop_ratio_can_be_uniform_in_its_logarithm(monkeypatch):
    """Square images and small parts: every ratio fits, and rounding hardly changes it."""
    changes = {"scale": (0.2, 0.25), "ratio": (0.25, 4.0), "log_ratio": True}
    image = np.zeros((2000, 2000, 3), np.uint8)
    _, _, h, w = crop_box(monkeypatch, image, np.random.default_rng(0), **changes).T
    expected = np.random.default_rng(1).uniform(np.log(0.25), np.log(4), 20000)
    assert_same_distribution(np.log(w / h), expected)


def test_random_resized_crop_of_the_whole_image(monkeypatch):
    boxes = crop_box(monkeypatch, coordinates(50, 50), RNG, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert np.array_equal(np.unique(boxes, axis=0), [(0, 0, 50, 50)])


def test_random_resized_crop_resizes_with_opencv():
    image = photo(50, 50)
    f = transform(scale=(1.0, 1.0), ratio=(1.0, 1.0), size=32, interpolation="bicubic")
    expected = cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(f(image, RNG), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_random_resized_crop_of_extreme_shapes(shape, channels):
    f = transform(size=8, **GREY) if channels == 1 else transform(size=8)
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


def test_random_interpolation_is_bilinear_or_bicubic():
    """PaddleClas's "random", each as often; the crop is drawn as with any other."""
    image = RNG.integers(0, 256, (40, 50, 3), np.uint8)
    random, *choices = (
        transform(size=16, scale=(0.5, 1.0), interpolation=i) for i in ("random", *KERNELS)
    )
    counts = np.zeros(2, int)
    for seed in range(400):
        out = random(image, np.random.default_rng(seed))
        same = [np.array_equal(out, f(image, np.random.default_rng(seed))) for f in choices]
        assert sum(same) == 1
        counts += same
    assert abs(counts[0] - 200) < 66  # 3.3 standard deviations: once in a thousand
    large = cv2.resize(image, (40, 32), interpolation=cv2.INTER_LINEAR)
    f = transform(train=False, size=24, eval_resize=32, interpolation="random")
    assert np.array_equal(f(image, None), large[4:28, 8:32])


KERNELS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def test_augment_comes_last_and_draws_after_the_crop():
    seen = []

    def invert(image, rng):
        seen.append((image.copy(), rng.random()))
        return 255 - image

    image = photo()
    out = transform(size=16, augment=invert)(image, np.random.default_rng(3))
    plain = transform(size=16)(image, np.random.default_rng(3))
    ((given, drawn),) = seen
    assert np.array_equal(given, plain)
    assert np.array_equal(out, 255 - plain)
    assert drawn == np.random.default_rng(3).random(5)[4]


# -- from encoded images ---------------------------------------------------------------------------


def landscape(height=900, width=1200, seed=0):
    """Noise with the spectrum of photographs: amplitude is 1 / frequency, colours go along."""
    rng = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    fall = 1 / np.maximum(np.hypot(y, x), 1 / width)

    def plane():
        spectrum = np.fft.rfft2(rng.normal(size=(height, width))) * fall
        values = np.fft.irfft2(spectrum, (height, width))
        return values / values.std()

    grey = plane()
    planes = [128 + 45 * grey + 12 * plane() for _ in range(3)]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def decibels(image, other):
    """Returns the peak signal-to-noise ratio."""
    return 10 * np.log10(255**2 / np.mean((image.astype(float) - other) ** 2))


SETTINGS = [
    {"size": 32},
    {"size": 32, "interpolation": "random", "log_ratio": True},
    {"size": 32, "name": "shift", "shift": 5},
    {"train": False, "size": 24, "eval_resize": 32},
    {"train": False, "size": 24, "eval_resize": 0},
]


@pytest.mark.parametrize("changes", SETTINGS)
@pytest.mark.parametrize("shape", [(120, 90), (33, 200)])
def test_encoded_images_give_what_their_pixels_give(changes, shape):
    """Without decoding at a smaller size the pixels are the same to the last bit."""
    data = jpeg(RNG.integers(0, 256, (*shape, 3), np.uint8), subsampling="4:2:0")
    pixels = simplejpeg.decode_jpeg(data)
    f = transform(**changes, scaled_decode="never")
    for seed in range(20):
        out, expected = (f(image, np.random.default_rng(seed)) for image in (data, pixels))
        assert np.array_equal(out, expected)


@pytest.mark.parametrize("changes", SETTINGS)
@pytest.mark.parametrize("shape", [(120, 90), (60, 63)])
def test_what_takes_an_images_place_gives_the_same(changes, shape):
    """Small images as pixels, those that may be decoded at a smaller size as they are."""
    data = jpeg(RNG.integers(0, 256, (*shape, 3), np.uint8))
    for scaled_decode in ("never", "train", "always"):
        f = transform(**changes, scaled_decode=scaled_decode)
        kept = f.decoded(data, "x")
        large = f.scaled_decode and min(shape) >= 64 and changes.get("eval_resize") != 0
        assert isinstance(kept, bytes if large else np.ndarray)
        for seed in range(10):
            out, expected = (f(image, np.random.default_rng(seed)) for image in (kept, data))
            assert np.array_equal(out, expected)
    assert f.decoded(data[:-9], "x") == data[:-9]  # of which a crop may be whole


@pytest.mark.parametrize("interpolation", ["bilinear", "area", "bicubic"])
@pytest.mark.parametrize("size", [224, 112, 56])
def test_decoding_at_a_smaller_size_costs_little(size, interpolation):
    """Against the mean of what each pixel covers (full decoding, area resize).

    On photographs the medians are 29 to 33 dB. OpenCV's bilinear and bicubic interpolations, which
    look at few of the pixels that they shrink, are further from the mean without it.
    """
    data = jpeg(landscape(), subsampling="4:2:0")
    changes = {"size": size, "scale": (0.5, 1.0), "interpolation": interpolation}
    scaled = transform(**changes)
    whole = transform(**changes, scaled_decode="never")
    mean = transform(**changes | {"interpolation": "area"}, scaled_decode="never")
    ratios = []
    for seed in range(8):
        image, full, expected = (
            f(data, np.random.default_rng(seed)) for f in (scaled, whole, mean)
        )
        assert not np.array_equal(image, full)
        ratios.append((decibels(image, expected), decibels(full, expected + 1e-3)))
    scaled_ratio, whole_ratio = np.median(ratios, 0)
    assert scaled_ratio > 26
    if interpolation != "area":
        assert scaled_ratio > whole_ratio + 3


def test_evaluation_decodes_at_a_smaller_size_if_it_may():
    data = jpeg(landscape())
    changes = {"train": False, "size": 100, "eval_resize": 112}
    train, never, always = (
        transform(**changes, scaled_decode=option)(data, None)
        for option in ("train", "never", "always")
    )
    assert np.array_equal(train, never)
    expected = transform(**changes, interpolation="area")(data, None)
    assert decibels(always, expected) > max(decibels(never, expected) + 3, 26)


def test_training_and_evaluation_see_the_same():
    data = jpeg(landscape())
    trained = transform(size=100, name="center")(data, np.random.default_rng(0))
    evaluated = transform(train=False, size=100, eval_resize=100)
    assert np.array_equal(trained, evaluated(data, None))
    evaluated = transform(train=False, size=100, eval_resize=100, scaled_decode="train")
    assert not np.array_equal(trained, evaluated(data, None))


def test_photographs_are_turned_if_wanted():
    image, exif = photo(60, 40), Image.Exif()
    exif[0x0112] = 8
    data = jpeg(image, exif=exif)
    for changes, expected in (({}, np.rot90(image)), ({"exif": False}, image)):
        f = transform(train=False, size=40, eval_resize=0, **changes)
        centre = expected[: min(expected.shape[:2])] if len(expected) == 40 else expected
        height, width = centre.shape[:2]
        y, x = (height - 40) // 2, (width - 40) // 2
        assert np.abs(f(data, None) - centre[y : y + 40, x : x + 40].astype(int)).mean() < 2


def test_errors_begin_with_the_name():
    item = {"image": b"", "label": 0, "name": "cats/1.jpg"}
    with pytest.raises(BadImage, match=r"^cats/1\.jpg: the image is empty"):
        ops.transformed(item, transform(), RNG)
    item["image"] = photo(30, 20)
    with pytest.raises(ValueError, match=r"^cats/1\.jpg: an image of 20x30 pixels is smaller"):
        ops.transformed(item, transform(train=False, size=24, eval_resize=0), None)


# -- shift, center, evaluation ---------------------------------------------------------------------


def test_shift_is_pad_and_crop():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (12, 12, 3), np.uint8)
    f = transform(name="shift", size=12, shift=2)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    windows = {padded[y : y + 12, x : x + 12].tobytes(): (y, x) for y in range(5) for x in range(5)}
    seen = [windows[f(image, rng).tobytes()] for _ in range(1000)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    # Chi-square with 24 degrees of freedom passes 51.2 once in a thousand.
    assert np.sum((counts - 40) ** 2 / 40) < 51.2


def test_center_and_evaluation_crop_the_centre():
    image = photo(41, 80)
    assert np.array_equal(transform(name="center", size=41)(image, RNG), image[:, 19:60])
    f = transform(train=False, size=21, eval_resize=41)
    assert np.array_equal(f(image, None), image[10:31, 29:50])
    f = transform(train=False, size=99, eval_size=20, eval_resize=0)
    assert np.array_equal(f(image, None), image[10:30, 30:50])


@pytest.mark.parametrize(
    "changes",
    [{}, {"eval_resize": 0}, {"interpolation": "random"}, {"scaled_decode": "train"}, GREY],
)
def test_training_may_see_images_as_evaluation_does(changes):
    keys = {"size": 32, "eval_resize": 37} | changes
    seen, other = (transform(name=name, flip=0.0, **keys) for name in ("eval", "center"))
    for image in (photo(), photo(90, 40), jpeg(photo(160, 200))):
        expected = transform(train=False, **keys)(image, None)
        np.testing.assert_array_equal(seen(image, np.random.default_rng(0)), expected)
        assert (other(image, np.random.default_rng(0)) != expected).any()
    with pytest.raises(ValueError, match="smaller than the evaluation's crop"):
        transform(name="eval", size=32, eval_resize=0)(photo(20, 20), None)
    assert transform(name="eval", size=24, eval_size=32, eval_resize=37)(photo(), None).shape == (
        24,
        24,
        3,
    )


def test_evaluation_resizes_the_short_side():
    image = photo(50, 83)
    large = cv2.resize(image, (53, 32), interpolation=cv2.INTER_LINEAR)  # 83 * 32 / 50 = 53.1
    f = transform(train=False, size=24, eval_resize=32)
    assert np.array_equal(f(image, None), large[4:28, 14:38])


@pytest.mark.parametrize("shape", [(1, 10_000), (65_000, 2)])
def test_a_line_of_pixels_is_enlarged_around_its_centre_alone(shape):
    """All of it would take gigabytes, of a file of a hundred bytes."""
    image = np.full((*shape, 3), 7, np.uint8)
    image[shape[0] // 2 - 30 :, shape[1] // 2 - 30 :][:60, :60] = 200
    f = transform(train=False, size=224, eval_resize=256)
    assert max(f.crop(*shape, 224, None).resized) <= ops.MAX_SIDE
    assert (f(image, None) == 200).all()
    assert f.crop(400, 60_000, 224, None).part == (0, 0, 400, 60_000)  # it becomes smaller


def test_grey_images_keep_their_channel():
    for changes in ({"name": "shift", "shift": 2}, {"name": "center"}, {"train": False}):
        f = transform(size=16, eval_resize=16, **changes, **GREY)
        assert f(photo(20, 30, 1), RNG).shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "random_resize"}, "did you mean random_resized"),
        ({"interpolation": "cubic"}, "did you mean bicubic"),
        ({"size": 0}, "config.image.size = 0"),
        ({"size": -1}, "config.image.size = -1: write a number of pixels above 0"),
        ({"size": 10**9}, "config.image.size = 1000000000: write at most 16384 pixels"),
        ({"eval_resize": 10**9}, "config.image.eval_resize = 1000000000: write at most 16384"),
        ({"ratio": (1e-300, 1e300)}, "config.crop.ratio = .*0.001 <= low"),
        ({"ratio": ()}, r"config.crop.ratio = \(\): write"),
        ({"scale": (1.0,)}, r"config.crop.scale = \(1.0,\): write"),
        ({"size": 288}, "crops 288 pixels .* eval_resize = 256"),
        ({"eval_size": -1}, "config.image.eval_size = -1 is negative"),
        ({"name": "shift", "shift": -1}, "config.crop.shift = -1 is negative"),
        ({"name": "shift", "shift": 224}, "config.crop.shift = 224 moves all"),
        ({"scale": (0.0, 1.0)}, "config.crop.scale = .*0 < low"),
        ({"scale": (0.5, 1.5)}, "config.crop.scale = .*high <= 1"),
        ({"ratio": (2.0, 1.0)}, "config.crop.ratio"),
        ({"shift": 4}, "config.crop.shift: not used by 'random_resized'"),
        ({"name": "center", "log_ratio": True}, "config.crop.log_ratio: not used"),
        ({"scaled_decode": "eval"}, "unknown config.image.scaled_decode 'eval'"),
        ({"mean": (0.5, 0.5)}, "config.image.mean has 2 numbers: write 3 "),
        ({"name": "center", "scale": (0.5, 1.0)}, "config.crop.scale: not used"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        transform(**changes)


def test_an_image_smaller_than_the_crop():
    f = transform(train=False, size=24, eval_resize=0)
    with pytest.raises(ValueError, match=r"20x30 pixels is smaller .* 24x24"):
        f(photo(30, 20), None)


def test_a_transform_pickles():
    f = transform(size=16)
    g = pickle.loads(pickle.dumps(f))
    image = photo()
    assert np.array_equal(f(image, np.random.default_rng(0)), g(image, np.random.default_rng(0)))

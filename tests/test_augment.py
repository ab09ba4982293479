"""Image transformations: each op against Pillow, what is drawn against the papers' tables."""

import colorsys
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from configs import base
from jaxcls.benchmark import pillow
from jaxcls.data import augment, primitives

DRAWS = 10_000
SIGMAS = 5  # a right frequency is further off once in two million
SIZES = [(224, 224, 3), (61, 83, 3), (32, 32, 3), (45, 31, 1)]


def photo(height, width, channels, seed=0, noise=12.0):
    """A smooth image that has no value 0 or 255, of which one channel is darker, with noise."""
    y, x = np.mgrid[:height, :width]
    planes = [
        (120 - 30 * c) + (80 - 20 * c) * np.sin(x / (17 + c) + y / (21 - c) + c)
        for c in range(channels)
    ]
    values = np.stack(planes, -1)
    values += np.random.default_rng(seed).normal(0, noise, values.shape)
    return np.clip(values, 3, 250).astype(np.uint8)


def to_pillow(image):
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def with_pillow(image, ops, **how):
    return np.asarray(pillow.apply(to_pillow(image), ops, **how)).reshape(image.shape)


def make(**changes):
    config = base.get_config()
    config.augment.update(changes)
    return augment.make(**config.augment)


def draws(policy, count=DRAWS):
    rng = np.random.default_rng(0)
    return [policy.draw(rng) for _ in range(count)]


def assert_frequency(count, total, probability):
    """`count` of `total` draws is what `probability` gives, within SIGMAS standard deviations."""
    deviation = max((total * probability * (1 - probability)) ** 0.5, 1e-9)
    assert abs(count - total * probability) <= SIGMAS * deviation, (count, total * probability)


# -- The ops, against Pillow -----------------------------------------------------------------------

EXACT = [
    ("Equalize", [None]),
    ("Invert", [None]),
    ("Grayscale", [None]),
    ("Posterize", range(1, 9)),
    ("Solarize", [0, 1, 256 / 9, 85.3, 128, 255, 256]),
    ("SolarizeAdd", range(0, 111, 11)),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "arguments"), EXACT, ids=[name for name, _ in EXACT])
def test_maps_of_values_are_pillows(name, arguments, size):
    for seed in range(3):
        image = photo(*size, seed=seed, noise=[0, 12, 60][seed])
        for argument in arguments:
            ours = primitives.apply(image, [(name, argument)])
            assert np.array_equal(ours, with_pillow(image, [(name, argument)]))


@pytest.mark.parametrize("size", SIZES)
def test_autocontrast_is_pillows(size):
    """Exactly, except where the result is a whole number that Pillow's float64 can miss."""
    for noise in (0, 12, 60):
        image = photo(*size, noise=noise) // 2 + 20
        low, high = (f(image, axis=(0, 1)).astype(int) for f in (np.min, np.max))
        ours = primitives.apply(image, [("AutoContrast", None)])
        exact, remainder = np.divmod((image - low) * 255, high - low)
        assert np.array_equal(ours, exact)
        theirs = with_pillow(image, [("AutoContrast", None)])
        assert np.array_equal(ours[remainder > 0], theirs[remainder > 0])
        assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Sharpness", "Contrast"])
def test_images_of_one_colour_are_pillows(name, value):
    image = np.full((9, 7, 3), value, np.uint8)
    image[..., 1] = 40
    op = (name, 1.6)
    assert np.array_equal(primitives.apply(image, [op]), with_pillow(image, [op]))


def test_equalize_of_few_pixels_is_pillows():
    for pixels in range(1, 40):
        image = photo(pixels, 9, 3, seed=pixels, noise=40)
        ops = [("Equalize", None)]
        assert np.array_equal(primitives.apply(image, ops), with_pillow(image, ops))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color", "Sharpness"])
def test_blends_are_pillows(name, size):
    """Exactly, except where the result is a whole number that Pillow's float32 can miss."""
    image = photo(*size, noise=20)
    black = with_pillow(image, [(name, 0.0)]).astype(np.float64)  # what it is blended from
    for factor in np.linspace(0, 2.5, 26):
        ours = primitives.apply(image, [(name, factor)]).astype(int)
        theirs = with_pillow(image, [(name, factor)])
        exact = black + factor * (image - black)
        whole = np.abs(exact - np.rint(exact)) < 2e-4
        assert np.array_equal(ours[~whole], theirs[~whole])
        assert np.abs(ours - theirs).max() <= 1


MOVES = [
    ("ShearX", [-0.3, -0.1, 0.15, 0.27]),
    ("ShearY", [-0.3, 0.2, 0.0333]),
    ("TranslateX", [-0.45, 0.0, 0.2266, 0.5, 1.0, -2.0]),
    ("TranslateY", [0.45, -0.1, 0.013]),
    ("Rotate", [-30, 3.33, 15, 77, 180]),
]


def source(name, value, height, width):
    """Returns x and y in the image of each pixel's middle, in pixels from the corner; float64."""
    y, x = np.mgrid[:height, :width] + 0.5
    if name == "Rotate":
        cos, sin = np.cos(np.radians(value)), np.sin(np.radians(value))
        dx, dy = x - width / 2, y - height / 2
        return width / 2 + cos * dx - sin * dy, height / 2 + sin * dx + cos * dy
    return {
        "ShearX": (x + value * y, y),
        "ShearY": (x, y + value * x),
        "TranslateX": (x + value * width, y),
        "TranslateY": (x, y + value * height),
    }[name]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "arguments"), MOVES, ids=[name for name, _ in MOVES])
def test_moves_to_the_nearest_pixel_are_pillows(name, arguments, size):
    """Exactly, except for points as near to the border of two pixels as coordinates are rounded."""
    image = photo(*size, noise=60)
    for value in arguments:
        how = {"interpolation": "nearest", "fill": 99}
        ours = primitives.apply(image, [(name, value)], **how)
        theirs = with_pillow(image, [(name, value)], **how)
        between = [np.abs(p - np.rint(p)) < 4e-3 for p in source(name, value, *size[:2])]
        different = (ours != theirs).any(-1)
        assert not (different & ~(between[0] | between[1])).any()
        assert not (different.any() and name.startswith("Translate"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "arguments"), MOVES, ids=[name for name, _ in MOVES])
def test_bilinear_moves(name, arguments, size):
    """Against the formula in float64, and Pillow, which rounds down what we round to the nearest.

    At the edge of the image, Pillow repeats its outermost pixels over half a pixel, and we blend
    them with the fill.
    """
    image = photo(*size, noise=0)
    height, width, _ = size
    for value in arguments:
        how = {"interpolation": "bilinear", "fill": 99}
        ours = primitives.apply(image, [(name, value)], **how).astype(int)
        x, y = (p - 0.5 for p in source(name, value, height, width))
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        outside = (x < -1) | (x > width) | (y < -1) | (y > height)
        x0, y0 = np.clip(np.floor((x, y)).astype(int), 0, [[[width - 2]], [[height - 2]]])
        fx, fy = (x - x0)[..., None], (y - y0)[..., None]
        rows = [
            image[y0 + k, x0] * (1 - fx) + image[y0 + k, np.minimum(x0 + 1, width - 1)] * fx
            for k in (0, 1)
        ]
        exact = rows[0] * (1 - fy) + rows[1] * fy
        # Half a grey level, and what 1/64 pixel each way makes in an image that changes by at
        # most 8 levels from pixel to pixel: OpenCV 4 rounds to 1/32 pixel.
        assert np.abs(ours - exact)[inside].max(initial=0) <= 0.5 + 0.25
        assert (ours[outside] == 99).all()
        assert np.abs(ours - with_pillow(image, [(name, value)], **how))[inside].max(initial=0) <= 1


def test_hue_turns_the_colours():
    """In 8 bits, as usual: the error is that of hue and saturation rounded to 1/256 and 1/255."""
    image = photo(32, 32, 3, noise=40)
    for turns in (-0.5, -0.1, 0.25, 0.4):
        ours = primitives.apply(image, [("Hue", turns)]).astype(int)
        for (r, g, b), got in zip(image.reshape(-1, 3) / 255, ours.reshape(-1, 3), strict=True):
            h, s, v = colorsys.rgb_to_hsv(r, g, b)
            expected = 255 * np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v))
            # Half a step of hue and of the shift moves a channel by 6 x 255 s v / 256, half a step
            # of saturation by v / 2; then it is rounded.
            assert np.abs(got - expected).max() <= 6 * s * v + 0.5 * v + 1


def test_lighting_adds_the_principal_colours():
    """Krizhevsky et al. 2012: [p1, p2, p3] [a1 l1, a2 l2, a3 l3], pixels in [0, 1]."""
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    assert np.allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)  # they are orthonormal
    image = photo(20, 30, 3)
    for alphas in ([0.1, 0, 0], [0.05, -0.2, 0.3], [-3, 1, 2]):
        shift = 255 * vectors @ (np.array(alphas) * [0.2175, 0.0188, 0.0045])
        expected = np.clip(image + shift, 0, 255)
        ours = primitives.apply(image, [("Lighting", alphas)])
        assert np.abs(ours - expected).max() <= 0.5 + 1e-6


def test_augmix_is_the_papers_formula():
    image = photo(64, 48, 3)
    for ops in draws(augment.AugMix(width=3, depth=0, severity=9.0, alpha=1.0), 20):
        [(name, (share, chains))] = ops
        assert name == "AugMix"
        weights = np.array([weight for weight, _ in chains])
        assert len(weights) == 3
        assert abs(weights.sum() - 1) < 1e-12
        mixed = sum(w * primitives.apply(image, chain).astype(np.float64) for w, chain in chains)
        expected = (1 - share) * image + share * mixed
        assert np.abs(primitives.apply(image, ops) - expected).max() <= 0.5 + 1e-3  # float32


@pytest.mark.parametrize("name", [*primitives.MOVES, *primitives.FUNCTIONS])
def test_ops_keep_shape_type_and_what_they_are_given(name):
    arguments = {"Posterize": 3, "Solarize": 100, "SolarizeAdd": 30, "Lighting": [0.1, 0.2, 0.3]}
    for size in SIZES[1:]:
        whole = photo(size[0] + 5, size[1] + 7, size[2])
        image = whole[2:-3, 4:-3]  # as a crop is: not contiguous
        image.flags.writeable = False
        before = image.copy()
        if name == "Lighting" and size[2] == 1:
            with pytest.raises(ValueError, match=r"config\.augment\.lighting"):
                primitives.apply(image, [(name, arguments[name])])
            continue
        out = primitives.apply(image, [(name, arguments.get(name, 0.3))])
        assert out.shape == size
        assert out.dtype == np.uint8
        assert np.array_equal(image, before)
        contiguous = primitives.apply(before, [(name, arguments.get(name, 0.3))])
        assert np.array_equal(out, contiguous)
        if size[2] == 1 and name in ("Color", "Hue", "Grayscale"):
            assert np.array_equal(out, before)


# -- Magnitudes ------------------------------------------------------------------------------------

# Table 6 of AutoAugment in 10 steps (factors as distances from 1), for magnitudes 0, 1, ..., 9.
AUTOAUGMENT = {
    "ShearX": np.linspace(0, 0.3, 10),
    "ShearY": np.linspace(0, 0.3, 10),
    "TranslateX": np.linspace(0, 150, 10) / 331,
    "TranslateY": np.linspace(0, 150, 10) / 331,
    "Rotate": np.linspace(0, 30, 10),
    "Posterize": [8, 8, 7, 7, 6, 6, 5, 5, 4, 4],
    "Solarize": np.linspace(256, 0, 10),
    "Color": np.linspace(0, 0.9, 10),
    "Contrast": np.linspace(0, 0.9, 10),
    "Brightness": np.linspace(0, 0.9, 10),
    "Sharpness": np.linspace(0, 0.9, 10),
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
}
# RandAugment: the same ranges in 11 steps, for magnitudes 0, 1, ..., 10.
RANDAUGMENT = {
    name: None if values is None else np.linspace(values[0], values[9], 11)
    for name, values in AUTOAUGMENT.items()
} | {
    "Posterize": [4, 4, 4, 3, 3, 2, 2, 2, 1, 1, 1],
    "Solarize": [256, 231, 205, 180, 154, 128, 103, 77, 52, 26, 0],
    "SolarizeAdd": [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 110],
}
TWO_SIDED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
FACTORS = {"Color", "Contrast", "Brightness", "Sharpness"}


def size_of(name, argument):
    """Returns how far an argument is from that of the image as it is, as the tables have it."""
    if argument is None:
        return 0.0
    return abs(argument - 1) if name in FACTORS else abs(argument)


def side_of(name, argument):
    return np.sign(argument - 1 if name in FACTORS else argument)


@pytest.mark.parametrize(
    ("scale", "table"), [("autoaugment", AUTOAUGMENT), ("randaugment", RANDAUGMENT)]
)
def test_arguments_are_the_papers(scale, table):
    steps = 9 if scale == "autoaugment" else 10
    for name, values in table.items():
        for magnitude in range(steps + 1):
            plus = augment.op(scale, name, magnitude / steps, 0.2)
            minus = augment.op(scale, name, magnitude / steps, 0.7)
            if values is None:
                assert plus == minus == (name, None)
                continue
            assert size_of(*plus) == pytest.approx(values[magnitude], abs=1e-12)
            assert size_of(*minus) == pytest.approx(values[magnitude], abs=1e-12)
            if name in TWO_SIDED | FACTORS and magnitude:
                assert (side_of(*plus), side_of(*minus)) == (1, -1)
            else:
                assert plus == minus


# -- What is drawn ---------------------------------------------------------------------------------

# AutoAugment's policy for ImageNet once more: op probability magnitude, op probability magnitude.
IMAGENET = """
Posterize .4 8 Rotate .6 9 | Solarize .6 5 AutoContrast .6 5 | Equalize .8 8 Equalize .6 3
Posterize .6 7 Posterize .6 6 | Equalize .4 7 Solarize .2 4 | Equalize .4 4 Rotate .8 8
Solarize .6 3 Equalize .6 7 | Posterize .8 5 Equalize 1 2 | Rotate .2 3 Solarize .6 8
Equalize .6 8 Posterize .4 6 | Rotate .8 8 Color .4 0 | Rotate .4 9 Equalize .6 2
Equalize 0 7 Equalize .8 8 | Invert .6 4 Equalize 1 8 | Color .6 4 Contrast 1 8
Rotate .8 8 Color 1 2 | Color .8 8 Solarize .8 7 | Sharpness .4 7 Invert .6 8
ShearX .6 5 Equalize 1 9 | Color .4 0 Equalize .6 3 | Equalize .4 7 Solarize .2 4
Solarize .6 5 AutoContrast .6 5 | Invert .6 4 Equalize 1 8 | Color .6 4 Contrast 1 8
Equalize .8 8 Equalize .6 3
"""


def test_autoaugment_draws_what_the_table_says():
    """Each sequence of ops and sizes as often as the 25 sub-policies give it."""
    expected = Counter()
    sub_policies = IMAGENET.replace("\n", "|").strip("|").split("|")
    assert len(sub_policies) == 25
    for sub_policy in sub_policies:
        name1, prob1, size1, name2, prob2, size2 = sub_policy.split()
        ops = []
        for name, magnitude in ((name1, size1), (name2, size2)):
            values = AUTOAUGMENT[name]
            ops.append((name, 0.0 if values is None else round(float(values[int(magnitude)]), 9)))
        prob1, prob2 = float(prob1), float(prob2)
        expected[tuple(ops)] += prob1 * prob2 / 25
        expected[tuple(ops[:1])] += prob1 * (1 - prob2) / 25
        expected[tuple(ops[1:])] += (1 - prob1) * prob2 / 25
        expected[()] += (1 - prob1) * (1 - prob2) / 25
    drawn = draws(make(policy="autoaugment"))
    found = Counter(tuple((n, round(float(size_of(n, a)), 9)) for n, a in ops) for ops in drawn)
    assert found.keys() <= {ops for ops, probability in expected.items() if probability}
    for ops, probability in expected.items():
        assert_frequency(found[ops], DRAWS, min(probability, 1.0))
    sides = [side_of(n, a) for ops in drawn for n, a in ops if n in TWO_SIDED and a]
    assert_frequency(sides.count(1), len(sides), 0.5)


def test_each_sub_policy_is_equally_likely():
    policy = augment.AutoAugment([(("Solarize", 1.0, k), ("Invert", 0.0, 0)) for k in range(25)])
    found = Counter(ops[0][1] for ops in draws(policy))
    assert len(found) == 25
    for count in found.values():
        assert_frequency(count, DRAWS, 1 / 25)


@pytest.mark.parametrize("policy", ["autoaugment_cifar10", "autoaugment_svhn"])
def test_other_tables_have_25_sub_policies_in_range(policy):
    table = make(policy=policy).policy.policy
    assert len(table) == 25
    for ops in table:
        assert len(ops) == 2
        for name, prob, magnitude in ops:
            assert name in AUTOAUGMENT
            assert 0 <= prob <= 1
            assert round(10 * prob) == pytest.approx(10 * prob)
            assert magnitude in range(10)


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_randaugment_draws_every_op_equally_often(num_layers):
    drawn = draws(make(policy="randaugment", num_layers=num_layers, magnitude=7.0))
    assert {len(ops) for ops in drawn} == {num_layers}
    ops = [op for ops in drawn for op in ops]
    found = Counter(name for name, _ in ops)
    assert found.keys() == AUTOAUGMENT.keys()  # PaddleClas's 14
    for name, argument in ops:
        values = RANDAUGMENT[name]
        assert values is None or size_of(name, argument) == pytest.approx(values[7])
    for name, count in found.items():
        assert_frequency(count, len(ops), 1 / 14)
        if name in TWO_SIDED | FACTORS:
            sides = [side_of(n, a) for n, a in ops if n == name]
            assert_frequency(sides.count(1), len(sides), 0.5)
    if num_layers > 1:  # drawn independently: the same op may come twice
        assert_frequency(sum(ops[0][0] == ops[1][0] for ops in drawn), DRAWS, 1 / 14)


def test_timm_notation():
    drawn = draws(make(policy="rand-m9-mstd0.5-inc1"))
    ops = [op for ops in drawn for op in ops]
    assert_frequency(len(ops), 2 * DRAWS, 0.5)  # timm applies half of those that it draws
    found = Counter(name for name, _ in ops)
    assert found.keys() == RANDAUGMENT.keys()  # 15 ops
    for count in found.values():
        assert_frequency(count, len(ops), 1 / 15)
    degrees = np.array([abs(a) for name, a in ops if name == "Rotate"]) / 3  # the magnitudes
    assert degrees.max() == 10  # clipped there
    assert abs(np.median(degrees) - 9) < SIGMAS * 1.26 * 0.5 / len(degrees) ** 0.5
    low = degrees[degrees < 9]  # where nothing is clipped: half of a normal distribution
    assert np.sqrt(np.mean((9 - low) ** 2)) == pytest.approx(0.5, rel=SIGMAS / len(low) ** 0.5)
    shifts = [abs(a) for name, a in ops if name == "TranslateX"]
    assert max(shifts) == pytest.approx(0.45)


def test_timm_notation_in_full():
    policy = make(policy="rand-n3-p1-inc0-m4").policy
    drawn = draws(policy, 2000)
    assert {len(ops) for ops in drawn} == {3}
    arguments = {
        name: {a for ops in drawn for n, a in ops if n == name} for name in augment.TIMM_OPS
    }
    assert arguments["Posterize"] == {1}  # bits: int(4 * 0.4)
    assert arguments["Solarize"] == {102}  # int(256 * 0.4)
    assert arguments["SolarizeAdd"] == {44}
    assert list(arguments["Color"]) == pytest.approx([0.82])  # 0.1 + 1.8 * 0.4
    assert sorted(arguments["Rotate"]) == pytest.approx([-12, 12])
    assert make(policy="rand-n2").policy == augment.timm_policy("rand-m10-n2-p0.5-mstd0-inc0")


def test_augmix_draws():
    alpha, width = 0.1, 3
    f = make(policy="augmix")
    drawn = draws(f)
    mixes = [ops[0][1] for ops in drawn if ops]
    assert_frequency(len(mixes), DRAWS, 0.5)
    n = len(mixes)
    shares = np.array([share for share, _ in mixes])
    weights = np.array([[w for w, _ in chains] for _, chains in mixes])
    assert weights.shape == (n, width)
    assert np.abs(weights.sum(1) - 1).max() < 1e-12
    # Mean and variance of Beta(a, a) and of a component of Dirichlet(a, a, a). The values lie in
    # [0, 1], so that their squared distances from the mean spread by 1/4 at most.
    assert abs(shares.mean() - 0.5) < SIGMAS * (0.25 / n) ** 0.5
    assert abs(shares.var() - 0.25 / (2 * alpha + 1)) < SIGMAS * 0.25 / n**0.5
    assert np.abs(weights.mean(0) - 1 / 3).max() < SIGMAS * (0.25 / n) ** 0.5
    assert np.abs(weights.var(0) - 2 / 9 / (3 * alpha + 1)).max() < SIGMAS * 0.25 / n**0.5
    chains = [chain for _, chains in mixes for _, chain in chains]
    assert {len(chain) for chain in chains} == {1}
    found = Counter(name for [(name, _)] in chains)
    assert found.keys() == set(AUTOAUGMENT) - FACTORS - {"Invert"}  # the paper's 9
    for count in found.values():
        assert_frequency(count, len(chains), 1 / 9)
    shears = np.array([abs(a) for [(name, a)] in chains if name == "ShearX"]) / 0.03
    assert shears.min() >= 0.1  # magnitudes are uniform in [0.1, severity]
    assert shears.max() <= 1
    assert abs(shears.mean() - 0.55) < SIGMAS * (0.9 / 12**0.5) / len(shears) ** 0.5
    drawn = draws(make(policy="augmix", prob=1.0, depth=0, severity=10.0, width=2, alpha=1.0), 999)
    depths = Counter(len(chain) for [(_, (_, chains))] in drawn for _, chain in chains)
    assert depths.keys() == {1, 2, 3}
    for count in depths.values():
        assert_frequency(count, 2 * 999, 1 / 3)


def test_rotation_jitter_grey_and_lighting():
    f = make(
        rotation=20.0,
        rotation_prob=0.3,
        color_jitter=(0.4, 0.0, 1.5, 0.1),
        color_jitter_prob=0.8,
        grayscale=0.2,
        lighting=0.1,
    )
    drawn = draws(f)
    names = Counter(name for ops in drawn for name, _ in ops)
    for name, probability in [("Rotate", 0.3), ("Brightness", 0.8), ("Grayscale", 0.2)]:
        assert_frequency(names[name], DRAWS, probability)
    assert names["Contrast"] == 0
    assert names["Color"] == names["Hue"] == names["Brightness"]
    assert names["Lighting"] == DRAWS
    ranges = {"Rotate": (-20, 20), "Brightness": (0.6, 1.4), "Color": (0, 2.5), "Hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        values = np.array([a for ops in drawn for n, a in ops if n == name])
        assert low <= values.min()
        assert values.max() <= high
        spread = (high - low) / 12**0.5
        assert abs(values.mean() - (low + high) / 2) < SIGMAS * spread / len(values) ** 0.5
    alphas = np.array([a for ops in drawn for n, a in ops if n == "Lighting"])
    assert abs(alphas.mean()) < SIGMAS * 0.1 / alphas.size**0.5
    assert alphas.std() == pytest.approx(0.1, rel=SIGMAS / (2 * alphas.size) ** 0.5)
    orders = Counter(
        tuple(n for n, _ in ops if n in ("Brightness", "Color", "Hue")) for ops in drawn
    )
    jittered = names["Brightness"]
    assert len(orders) == 7  # 6 orders, or none
    for order, count in orders.items():
        if order:
            assert_frequency(count, jittered, 1 / 6)


def test_order_of_the_parts():
    f = make(
        policy="randaugment",
        rotation=20.0,
        rotation_prob=1.0,
        color_jitter=(0.0, 0.0, 0.0, 0.1),
        grayscale=1.0,
        lighting=0.1,
    )
    names = [name for name, _ in f.draw(np.random.default_rng(0))]
    assert names[0] == "Rotate"
    assert set(names[1:3]) <= set(augment.RANDAUGMENT_OPS)
    assert names[3:] == ["Hue", "Grayscale", "Lighting"]


# -- As a whole ------------------------------------------------------------------------------------

POLICIES = [
    "autoaugment",
    "autoaugment_cifar10",
    "autoaugment_svhn",
    "randaugment",
    "augmix",
    "rand-m9-mstd0.5-inc1",
]


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "augmix"])
def test_policies_are_pillows(policy):
    """Images of whole policies, with the nearest pixels: the same, but for a grey level here and
    there that a later op can stretch."""
    f = make(policy=policy, interpolation="nearest")
    image = photo(64, 64, 3)
    same = []
    for seed in range(50):
        ours = f(image, np.random.default_rng(seed))
        theirs = with_pillow(image, f.draw(np.random.default_rng(seed)), interpolation="nearest")
        same.append(np.abs(ours.astype(int) - theirs) <= 1)
    assert np.mean(same) > 0.995


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_is_a_function_of_its_generator(policy):
    f = make(policy=policy, color_jitter=(0.4, 0.4, 0.4, 0.1), rotation=10.0, lighting=0.1)
    images = [photo(32, 40, 3, seed=k) for k in range(8)]

    def run(k, f=f):
        return f(images[k % 8], np.random.Generator(np.random.Philox(key=[7, k])))

    expected = [run(k) for k in range(64)]
    assert len({image.tobytes() for image in expected}) > 60
    with ThreadPoolExecutor(8) as pool:  # threads share nothing
        for ours, image in zip(pool.map(run, range(64)), expected, strict=True):
            assert np.array_equal(ours, image)
    copy = pickle.loads(pickle.dumps(f))  # as worker processes get it
    assert np.array_equal(run(3, copy), expected[3])


@pytest.mark.parametrize("policy", POLICIES)
def test_single_channel(policy):
    f = make(policy=policy, color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.5, rotation=10.0)
    image = photo(28, 28, 1)
    for seed in range(30):
        out = f(image, np.random.default_rng(seed))
        assert out.shape == (28, 28, 1)
        assert out.dtype == np.uint8


def test_prob_leaves_the_others_as_they_are():
    f = make(policy="randaugment", prob=0.25)
    image = photo(8, 8, 3)
    assert_frequency(sum(bool(ops) for ops in draws(f)), DRAWS, 0.25)
    unchanged = [f(image, np.random.default_rng(seed)) is image for seed in range(200)]
    assert_frequency(sum(unchanged), 200, 0.75)


def test_off_by_default():
    assert make() is None
    assert make(policy="randaugment") is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "autoagument"}, r"config\.augment\.policy 'autoagument': did you mean .*auto"),
        ({"policy": "rand-m11"}, r"config\.augment\.policy = 'rand-m11': 'm11' is not understood"),
        ({"policy": "rand"}, r"'rand': write \"randaugment\" for .* or timm's .*'rand-m9-mstd0"),
        ({"policy": "rand-"}, "'' is not understood"),
        ({"policy": "rand-m9-m8"}, "'m8' is not understood"),
        ({"policy": "rand-n1000000"}, "'n1000000' is not understood; write .* n1 to n100"),
        ({"policy": "augmix", "width": 10**9}, "augment.width = 1000000000: write a number from 1"),
        ({"policy": "rand-m9-w0"}, "'w0' is not understood"),
        ({"policy": "rand-m9-inc2"}, "'inc2'"),
        ({"policy": "rand-m9-n1.5"}, "'n1.5'"),
        ({"policy": "rand-m9-n0"}, "'n0'"),
        ({"policy": "rand-m9-p1.1"}, "'p1.1'"),
        ({"policy": "rand-m9-mstd-1"}, "'mstd'"),
        ({"policy": "rand-m9-"}, "''"),
        (
            {"policy": "randaugment", "magnitude": 11.0},
            r"config\.augment\.magnitude = 11.0.* 0 to 10",
        ),
        ({"policy": "randaugment", "magnitude": float("nan")}, r"config\.augment\.magnitude"),
        ({"policy": "randaugment", "num_layers": 0}, r"config\.augment\.num_layers = 0"),
        ({"policy": "randaugment", "prob": 1.5}, r"config\.augment\.prob"),
        ({"policy": "randaugment", "fill": 256}, r"config\.augment\.fill"),
        (
            {"policy": "randaugment", "interpolation": "cubic"},
            r"unknown config\.augment\.interpola",
        ),
        ({"policy": "augmix", "severity": 11.0}, r"config\.augment\.severity"),
        ({"policy": "augmix", "alpha": 0.0}, r"config\.augment\.alpha"),
        ({"policy": "augmix", "width": 0}, r"config\.augment\.width"),
        ({"policy": "augmix", "depth": -1}, r"config\.augment\.depth"),
        ({"rotation": 200.0}, r"config\.augment\.rotation"),
        ({"grayscale": -0.1}, r"config\.augment\.grayscale"),
        ({"lighting": -0.1}, r"config\.augment\.lighting"),
        ({"color_jitter": (0.4, 0.4, 0.4)}, r"config\.augment\.color_jitter"),
        (
            {"color_jitter": (0.4, 0.4, 0.4, 0.6)},
            r"config\.augment\.color_jitter.*hue at most 0\.5",
        ),
        ({"color_jitter": (-0.4, 0.4, 0.4, 0.1)}, r"config\.augment\.color_jitter"),
        # keys that nothing reads
        ({"magnitude": 9.0}, r"config\.augment\.magnitude: not used by 'no policy'"),
        ({"policy": "autoaugment", "num_layers": 3}, r"config\.augment\.num_layers: not used"),
        ({"policy": "rand-m9", "magnitude": 9.0}, r"config\.augment\.magnitude: not used"),
        ({"prob": 0.5}, r"config\.augment\.prob: not used"),
        ({"rotation_prob": 1.0}, r"config\.augment\.rotation_prob: not used"),
        ({"color_jitter_prob": 0.8}, r"config\.augment\.color_jitter_prob: not used"),
        ({"lighting": 0.1, "fill": 0}, r"config\.augment\.fill: not used"),
        (
            {"grayscale": 0.1, "interpolation": "nearest"},
            r"config\.augment\.interpolation: not used",
        ),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)

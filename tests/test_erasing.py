"""Erasing against the papers: areas, shapes and places of what is erased, over thousands of draws.

Statistical tests have a fixed key; their bounds are 5 standard deviations or p = 1e-4.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from configs import base
from jaxcls.data import erasing

N = 10_000
SMALL = {  # of each method, what it takes for images of 32 pixels
    "cutout": {"length": 16, "holes": 2},
    "random_erasing": {"prob": 0.7},
    "hide_and_seek": {"grids": (0, 2, 5, 8)},
    "grid_mask": {"d1": 14, "d2": 32, "rotate": 360, "mode": 1},
}


def make(name, **changes):
    return erasing.make(**(dict(base.get_config().erase) | {"name": name, **changes}))


def normalised(n=64, size=32, channels=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, size, size, channels)).astype(dtype)
    return {"image": image, "label": np.arange(n, dtype=np.int32)}


def draws(method, size=32, n=N, seed=0, **arguments):
    """Returns n masks, bool[n, size, size]."""
    f = jax.jit(partial(method, shape=(n, size, size), **arguments))
    return np.asarray(f(jax.random.key(seed)))


def rectangles(method, size, n=N, **arguments):
    """Returns top, left, height and width of n masks [4, n], all of which have to be rectangles."""

    @jax.jit
    def sides(rng):
        mask = method(rng, (n, size, size), **arguments)
        rows, columns = mask.any(2), mask.any(1)
        filled = mask.sum((1, 2)) == rows.sum(1) * columns.sum(1)
        return filled, rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)

    filled, *found = map(np.asarray, sides(jax.random.key(0)))
    assert filled.all()
    return np.stack(found)


def equally_likely(values, options):
    """Asserts that integers are uniform over 0, ..., options - 1."""
    counts = np.bincount(values, minlength=options)
    assert len(counts) == options
    assert stats.chisquare(counts).pvalue > 1e-4


def assert_share(hits, chance, n):
    """Asserts that a binomial share is as expected."""
    assert abs(hits / n - chance) <= 5 * (chance * (1 - chance) / n) ** 0.5


# -- Cutout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [7, 16])
def test_areas_of_cutout_are_those_of_clipped_squares(length):
    top, left, height, width = rectangles(erasing.cutout, 32, holes=1, length=length)
    # By brute force: the side that is left of a square around each of the 32 rows.
    sides = [len({*range(c - length // 2, c - length // 2 + length)} & {*range(32)})
             for c in range(32)]  # fmt: skip
    for found in (height, width):
        counts = np.bincount(found, minlength=length + 1)
        want = np.bincount(sides, minlength=length + 1) / 32 * N
        np.testing.assert_array_equal(counts[want == 0], 0)
        assert stats.chisquare(counts[want > 0], want[want > 0]).pvalue > 1e-4
    areas = np.outer(sides, sides)
    mean = (height * width).mean()
    assert abs(mean - areas.mean()) < 5 * areas.std() / N**0.5
    # the two coordinates have nothing to do with each other
    assert abs(np.corrcoef(top + height, left + width)[0, 1]) < 5 / N**0.5


def test_every_hole_of_cutout_is_drawn():
    mask = draws(erasing.cutout, holes=3, length=8)
    centres = np.arange(32)
    near = (centres[:, None] - 4 <= centres) & (centres < centres[:, None] + 4)
    once = near.mean(0)[:, None] * near.mean(0)  # a pixel is in one hole
    want = 1 - (1 - once) ** 3
    deviations = (mask.mean(0) - want) / (want * (1 - want) / N) ** 0.5
    assert abs(deviations).max() < 6  # of 1024 pixels
    assert abs(deviations.mean()) < 1


def test_pixels_of_the_authors_cutout():
    # An even length as in all experiments: from the centre - length / 2 on, `length` pixels.
    y, x, *_ = rectangles(erasing.cutout, 32, holes=1, length=4)
    equally_likely(np.maximum(y[y > 0] - 1, 0), 29)  # tops 1 to 29: centres 3 to 31
    equally_likely(x[x > 0] - 1, 29)


# -- Random erasing ----------------------------------------------------------------------------


def authors_rectangles(size, area, aspect, n, rng):
    """Returns top, left, height and width [4, n] of the authors' loop, in float64."""
    found = []
    while len(found) < n:
        target = rng.uniform(*area) * size * size
        ratio = rng.uniform(*aspect)
        height, width = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
        if height < size and width < size:
            place = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
            found.append((*place, height, width))
    return np.array(found).T


@pytest.mark.ci
@pytest.mark.parametrize(
    ("area", "aspect"),
    [((0.02, 0.4), (0.3, 1 / 0.3)), ((0.5, 0.9), (0.3, 1 / 0.3)), ((0.1, 0.1), (0.5, 0.5))],
)
def test_rectangles_are_those_of_the_authors_loop(area, aspect):
    got = rectangles(erasing.random_erasing, 96, area=area, aspect=aspect)
    want = authors_rectangles(96, area, aspect, N, np.random.default_rng(0))
    of = {
        "area": lambda top, left, height, width: height * width,
        "aspect": lambda top, left, height, width: height / width,
        "top": lambda top, left, height, width: top,
        "left": lambda top, left, height, width: left,
        "bottom": lambda top, left, height, width: top + height,
    }
    for name, f in of.items():
        assert stats.ks_2samp(f(*got), f(*want)).pvalue > 1e-4, name
    assert (got[:2] + got[2:] <= 96).all()


@pytest.mark.ci
def test_area_and_aspect_are_uniform_where_every_rectangle_fits():
    _, _, height, width = rectangles(
        erasing.random_erasing, 224, area=(0.02, 0.4), aspect=(0.5, 2.0)
    )
    area, aspect = height * width / 224**2, height / width
    # rounding to whole pixels moves a side of at least 22 pixels by up to half of one
    assert stats.kstest(area, stats.uniform(0.02, 0.38).cdf).pvalue > 1e-4
    assert abs(area.mean() - 0.21) < 5 * 0.38 / 12**0.5 / N**0.5
    assert abs(aspect.mean() - 1.25) < 5 * 1.5 / 12**0.5 / N**0.5


def test_nothing_is_erased_where_nothing_fits():
    assert not draws(erasing.random_erasing, n=100, area=(1.0, 1.0), aspect=(1.0, 1.0)).any()


# -- Hide-and-seek -----------------------------------------------------------------------------


def shown_grid(cells, pixels, size):
    """Returns the mask of cells that are hidden, by brute force."""
    mask = np.zeros((size, size), bool)
    for i, row in enumerate(cells):
        for j, hidden in enumerate(row):
            mask[i * pixels : (i + 1) * pixels, j * pixels : (j + 1) * pixels] = hidden
    return mask


@pytest.mark.parametrize(("pixels", "hide"), [(16, 0.5), (5, 0.3)])
def test_cells_are_hidden_or_not(pixels, hide):
    mask = draws(erasing.hide_and_seek, grids=(pixels,), hide=hide, n=2000)
    cells = mask[:, ::pixels, ::pixels]
    assert cells.shape[1] == -(-32 // pixels)  # the last may be cut off
    want = np.stack([shown_grid(c, pixels, 32) for c in cells])
    np.testing.assert_array_equal(mask, want)
    assert_share(cells.sum(), hide, cells.size)
    each = cells.reshape(len(cells), -1).astype(float)
    n, k = each.shape
    deviations = (each.mean(0) - hide) / (hide * (1 - hide) / n) ** 0.5
    assert abs(deviations).max() < 5
    assert abs(np.corrcoef(each.T) - np.eye(k)).max() < 5.5 / n**0.5  # of cells
    neighbours = np.corrcoef(each[:-1].ravel(), each[1:].ravel())[0, 1]  # of images
    assert abs(neighbours) < 5 / each[1:].size ** 0.5


def test_each_image_takes_one_of_the_grids():
    grids = (0, 5, 7, 8, 11)
    mask = draws(erasing.hide_and_seek, grids=grids, hide=0.5)
    # The grid that explains an image; a uniform one (4 in 10,000 or fewer) counts as the grid 0.
    explained = np.zeros((N, len(grids)), bool)
    for i, pixels in enumerate(grids):
        cells = pixels or 32
        whole = np.repeat(np.repeat(mask[:, ::cells, ::cells], cells, 1), cells, 2)
        explained[:, i] = (whole[:, :32, :32] == mask).all((1, 2))
    assert explained.any(1).all()
    choice = explained.argmax(1)
    several = explained.sum(1) > 1
    assert not mask[several & (choice > 0)].any(), "grids do not explain one another"
    assert abs(np.bincount(choice, minlength=5) / N - 0.2).max() < 5 * (0.16 / N) ** 0.5 + 4e-4
    for i, pixels in enumerate(grids):
        if pixels:
            hidden = mask[choice == i][:, ::pixels, ::pixels]
            assert_share(hidden.sum(), 0.5, hidden.size)


# -- GridMask ----------------------------------------------------------------------------------


def authors_bands(size, d, band, row, column):
    """Returns True in the bands that begin at `row` and `column`, by the authors' loops."""
    mask = np.zeros((size, size), bool)
    for i in range(-1, size // d + 1):
        mask[max(d * i + row, 0) : max(d * i + row + band, 0)] = True
        mask[:, max(d * i + column, 0) : max(d * i + column + band, 0)] = True
    return mask


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("ratio", [0.5, 0.6])
def test_lattices_are_those_of_the_authors(ratio, mode):
    size, d1, d2 = 24, 6, 12
    masks = draws(erasing.grid_mask, size, d1=d1, d2=d2, ratio=ratio, rotate=1, mode=mode)
    named = {}  # pattern -> (period, first row, first column): periods up to 11 repeat in 24 pixels
    for d in range(d1, d2):
        for row in range(d):
            for column in range(d):
                pattern = authors_bands(size, d, int(d * ratio + 0.5), row, column)
                named[(~pattern if mode else pattern).tobytes()] = d, row, column
    assert len(named) == sum(d * d for d in range(d1, d2))
    found = np.array([named[mask.tobytes()] for mask in masks])
    equally_likely(found[:, 0] - d1, d2 - d1)
    for d in range(d1, d2):
        of_period = found[found[:, 0] == d]
        equally_likely(of_period[:, 1] * d + of_period[:, 2], d * d)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"ratio": 0.5, "mode": 0, "rotate": 1}, lambda s: (1 - s) ** 2),
        ({"ratio": 0.6, "mode": 1, "rotate": 1}, lambda s: 1 - (1 - s) ** 2),
        ({"ratio": 0.6, "mode": 1, "rotate": 360}, lambda s: 1 - (1 - s) ** 2),
        ({"ratio": 0.4, "mode": 0, "rotate": 90}, lambda s: (1 - s) ** 2),
    ],
)
def test_kept_share_of_grid_mask_is_the_formula(arguments, kept):
    d1, d2 = 8, 20
    share = 1 - draws(erasing.grid_mask, 24, d1=d1, d2=d2, **arguments).mean((1, 2))
    d = np.arange(d1, d2)
    want = kept(np.floor(d * arguments["ratio"] + 0.5) / d).mean()
    assert abs(share.mean() - want) < 5 * share.std() / N**0.5


@pytest.mark.parametrize(("size", "angle"), [(40, 0), (40, 90), (40, 17), (41, 200), (64, 311)])
def test_lattices_turn_as_pillow_turns_them(size, angle):
    d, band, big = 13, 6, 3 * size
    phase = jnp.array([[3], [8]], jnp.int32)
    one = partial(jnp.full, (1,))
    got = erasing.lattice((size, size), one(d), one(band), phase, one(angle))[0]
    row, column = (size - int(p) for p in phase[:, 0])  # of a band
    upright = authors_bands(big, d, band, row % d, column % d)
    turned = np.asarray(Image.fromarray(upright.astype(np.uint8)).rotate(angle))
    want = turned[size : 2 * size, size : 2 * size].astype(bool)
    theta = np.deg2rad(angle)
    offset = np.arange(size) + 0.5 - size / 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    rows = np.cos(theta) * y + np.sin(theta) * x + size / 2
    columns = np.cos(theta) * x - np.sin(theta) * y + size / 2
    # both round, Pillow to 1 / 65536: where a position is a whole number they may differ
    clear = (abs(rows - rows.round()) > 1e-3) & (abs(columns - columns.round()) > 1e-3)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(np.asarray(got)[clear], want[clear])


def test_angles_of_grid_mask_are_below_rotate():
    # Bands as wide as all but one pixel of a long period leave lines, whose slope is the angle's.
    lines = ~draws(erasing.grid_mask, 32, n=200, d1=30, d2=31, ratio=0.5, rotate=360, mode=0)
    upright = (lines == lines[:, :1]).all((1, 2)) | (lines == lines[:, :, :1]).all((1, 2))
    squares = lines.any((1, 2))
    assert (~upright & squares).mean() > 0.5
    again = ~draws(erasing.grid_mask, 32, n=200, d1=30, d2=31, ratio=0.5, rotate=1, mode=0)
    rows, columns = again.any(2), again.any(1)
    np.testing.assert_array_equal(again, rows[:, :, None] & columns[:, None, :])


# -- All of them -------------------------------------------------------------------------------


def changed(before, after):
    return np.asarray(before["image"] != after["image"]).any(-1)


@pytest.mark.parametrize("name", SMALL)
def test_the_mask_of_the_method_is_what_changes(name):
    batch = normalised(n=256)
    erase = jax.jit(make(name, **SMALL[name] | {"prob": 1.0}))
    a, b, c = (erase(jax.random.key(k), batch, 5) for k in (1, 1, 2))
    np.testing.assert_array_equal(a["label"], batch["label"])
    np.testing.assert_array_equal(a["image"], b["image"])
    mask, other = changed(batch, a), changed(batch, c)
    assert (mask != other).any()
    assert not np.asarray(a["image"])[mask].any()
    _, rng, _ = jax.random.split(jax.random.key(1), 3)
    defaults = dict(base.get_config().erase) | SMALL[name]
    method = erasing.METHODS[name]
    arguments = {k: defaults[k] for k in inspect.signature(method).parameters if k in defaults}
    want = jax.jit(partial(method, shape=mask.shape, **arguments))(rng)
    np.testing.assert_array_equal(mask, want)
    # images differ, independently
    assert len(np.unique(mask.reshape(256, -1), axis=0)) > 100
    areas = mask.mean((1, 2))
    assert abs(np.corrcoef(areas[1:], areas[:-1])[0, 1]) < 5 / 256**0.5


def test_fillings():
    n = 300
    batch = {"image": jnp.full((n, 16, 16, 3), 7.0), "label": jnp.zeros(n, jnp.int32)}

    @jax.jit
    def all_of_them(rng):
        fills = (make("cutout", length=8, fill=fill) for fill in erasing.FILLS)
        return [erase(rng, batch, 0)["image"] for erase in fills]

    constant, colour, pixel = map(np.asarray, all_of_them(jax.random.key(0)))
    mask = (constant == 0).all(-1)
    np.testing.assert_array_equal(constant, np.where(mask[..., None], 0, batch["image"]))

    one = np.stack([image[m][0] for image, m in zip(colour, mask)])  # [n, 3]
    np.testing.assert_array_equal(colour, np.where(mask[..., None], one[:, None, None], 7))
    assert stats.kstest(one.ravel(), stats.norm.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(one.T) - np.eye(3)).max() < 5 / n**0.5

    np.testing.assert_array_equal((pixel != 7).any(-1), mask)
    noise = pixel[mask]
    assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / len(noise) ** 0.5


@pytest.mark.parametrize(
    ("name", "changes", "chance"),
    [
        ("cutout", {}, 1.0),
        ("random_erasing", {}, 0.5),  # of the paper
        ("random_erasing", {"prob": 0.2}, 0.2),
        ("cutout", {"prob": 0.0}, 0.0),
    ],
)
def test_each_image_is_erased_or_not(name, changes, chance):
    small = {"length": 2} if name == "cutout" else {"area": (0.2, 0.4)}
    batch = {"image": jnp.ones((N, 4, 4, 1)), "label": jnp.zeros(N, jnp.int32)}
    got = make(name, **small, **changes)(jax.random.key(0), batch, 0)
    erased = changed(batch, got).any((1, 2))
    assert_share(erased.sum(), chance, N)
    if 0 < chance < 1:
        assert abs(np.corrcoef(erased[1:], erased[:-1])[0, 1]) < 5 / N**0.5


@pytest.mark.parametrize(
    ("ramp", "steps"), [("100 steps", 100), ("4 epochs", 40), ("3200 examples", 50)]
)
def test_the_probability_rises_with_the_step(ramp, steps):
    batch = {"image": jnp.ones((N, 4, 4, 1)), "label": jnp.zeros(N, jnp.int32)}
    options = {"length": 2, "batch_size": 64, "steps_per_epoch": 10}
    erase = jax.jit(make("cutout", prob=0.8, ramp=ramp, **options))
    for share in (0, 0.25, 0.5, 1, 3):
        got = erase(jax.random.key(0), batch, jnp.int32(round(share * steps)))
        erased = changed(batch, got).any((1, 2)).sum()
        assert_share(erased, 0.8 * min(1, round(share * steps) / steps), N)


def every_method(rng, batch, step):
    """Returns the images of each method: one program, since compiling is what takes time."""
    options = {"fill": "pixel", "ramp": "10 steps"}
    return [make(name, **options, **SMALL[name])(rng, batch, step)["image"] for name in SMALL]


@pytest.mark.ci
def test_double_precision_erases_the_same():
    args = jax.random.key(0), normalised(dtype=np.float32), np.int32(7)
    single = [image != args[1]["image"] for image in jax.jit(every_method)(*args)]
    with jax.enable_x64(True):
        args = jax.random.key(0), normalised(dtype=np.float64), np.int32(7)
        double = jax.jit(every_method)(*args)
        assert all(image.dtype == np.float64 for image in double)
        double = [image != args[1]["image"] for image in double]
    np.testing.assert_array_equal(single, double)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_stays(dtype):
    batch = normalised(n=2, dtype=dtype)
    got = make("cutout", length=8, fill="pixel")(jax.random.key(0), batch, 0)
    assert got["image"].dtype == dtype


def test_off():
    assert erasing.make(**base.get_config().erase) is None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cutuot", {}, "unknown config.erase.name 'cutuot': did you mean cutout?"),
        ("", {"length": 8}, "config.erase.length: not used by 'no erasing'"),
        ("cutout", {"ratio": 0.6}, "config.erase.ratio: not used by 'cutout', which takes"),
        ("cutout", {}, "config.erase.length = 112: write pixels that fit images of 32, such as "
                       "length = 16"),
        ("cutout", {"length": 0}, "config.erase.length = 0"),
        ("cutout", {"length": 8, "holes": 0}, "config.erase.holes = 0"),
        ("cutout", {"length": 8, "holes": 10**6}, "config.erase.holes = 1000000: write a number"),
        ("random_erasing", {"area": ()}, r"config.erase.area = \(\): write"),
        ("random_erasing", {"aspect": (1e-300, 1e300)}, "config.erase.aspect"),
        ("hide_and_seek", {"grids": (2.5,)}, r"config.erase.grids = \(2.5,\)"),
        ("cutout", {"length": 8, "prob": 1.5}, r"config.erase.prob = 1.5: write a probability"),
        ("cutout", {"length": 8, "prob": float("nan")}, "config.erase.prob = nan"),
        ("cutout", {"length": 8, "fill": "mean"}, "unknown config.erase.fill 'mean'"),
        ("cutout", {"length": 8, "ramp": "5"}, "config.erase.ramp = '5' is not a duration"),
        ("random_erasing", {"area": (0.4, 0.1)}, r"config.erase.area = \(0.4, 0.1\): write"),
        ("random_erasing", {"area": (0.4, 1.1)}, r"config.erase.area = \(0.4, 1.1\): write"),
        ("random_erasing", {"aspect": (0.0, 2.0)}, r"config.erase.aspect = \(0.0, 2.0\)"),
        ("random_erasing", {"aspect": (1.0, float("inf"))}, "config.erase.aspect"),
        ("hide_and_seek", {}, r"fit images of 32, such as grids = \(0, 2, 5, 6, 8\)"),
        ("hide_and_seek", {"grids": ()}, r"config.erase.grids = \(\)"),
        ("hide_and_seek", {"grids": (4,), "hide": -0.1}, "config.erase.hide = -0.1"),
        ("grid_mask", {}, "config.erase.d2 = 224: write .* such as d1 = 14 and d2 = 32"),
        ("grid_mask", {"d1": 20, "d2": 20}, "config.erase.d2 = 20"),
        ("grid_mask", {"d1": 1, "d2": 20}, "config.erase.d1 = 1"),
        ("grid_mask", {"d1": 9, "d2": 20, "ratio": 1.0}, "config.erase.ratio = 1.0"),
        ("grid_mask", {"d1": 9, "d2": 20, "rotate": 0}, "config.erase.rotate = 0"),
        ("grid_mask", {"d1": 9, "d2": 20, "mode": 2}, "config.erase.mode = 2"),
    ],
)  # fmt: skip
def test_bad_values(name, changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(name, **changes), jax.random.key(0), normalised(), 0)

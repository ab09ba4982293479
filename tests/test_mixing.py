"""Normalising, flipping and mixing on the device; with erasing, on one device and on eight.

Statistical tests have a fixed key; their bounds are 5 standard deviations or p = 1e-4.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats
from scipy.special import logsumexp

from configs import base
from jaxcls import objectives
from jaxcls.data import device, erasing, mixing, ops
from jaxcls.keys import Keys

N = 10_000


def prepare(flip=0.0, dtype=jnp.float32, **changes):
    """Returns f(key, batch) -> batch: flipped and normalised, as the config says."""
    image = ops.Image(**(dict(base.get_config().image) | changes))
    transform = ops.training(**(dict(base.get_config().crop) | {"flip": flip}), image=image)
    normalise = partial(device.normalise, mean=image.mean, std=image.std, dtype=dtype)
    whole = device.make(flip=transform.flip, normalise=normalise, erase=None, mix=None)
    return lambda key, batch: whole(Keys(key, None, None, None), batch, 0)


def pixels(n=32, size=6, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    return {"image": jnp.array(image), "label": jnp.arange(n)}


def normalised(n=32, size=4, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, size, size, 3)).astype(dtype)
    return {"image": image, "label": np.arange(n, dtype=np.int32)}


# -- device.py --------------------------------------------------------------------------------


def test_normalises():
    batch = pixels()
    got = prepare()(jax.random.key(0), batch)
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    assert got["image"].dtype == jnp.float32
    want = (np.asarray(batch["image"]) / 255.0 - mean) / std
    np.testing.assert_allclose(got["image"], want, atol=1e-6)
    np.testing.assert_array_equal(got["label"], batch["label"])
    with jax.enable_x64(True):
        got = prepare(dtype=jnp.float64)(jax.random.key(0), batch)["image"]
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, atol=1e-14)


def test_floating_images_stay_as_they_are():
    batch = normalised(dtype=np.float16)
    got = prepare(flip=1.0)(jax.random.key(0), batch)
    assert got["image"].dtype == np.float16
    np.testing.assert_array_equal(got["image"], batch["image"])


def test_each_image_is_flipped_or_not():
    batch = pixels(n=2000, size=3)
    plain = prepare()(jax.random.key(0), batch)["image"]
    got = prepare(flip=0.3)(jax.random.key(0), batch)["image"]
    kept = (got == plain).all((1, 2, 3))
    mirrored = (got == plain[:, :, ::-1]).all((1, 2, 3))
    assert (kept | mirrored).all()
    assert not (kept & mirrored).any()
    # 6 standard deviations of a binomial.
    assert abs(float(mirrored.mean()) - 0.3) < 6 * (0.3 * 0.7 / 2000) ** 0.5
    again = prepare(flip=0.3)(jax.random.key(1), batch)["image"]
    assert (again != got).any()


@pytest.mark.parametrize("flip", [1.0, 0.0])
def test_flip_of_all_or_none(flip):
    batch = pixels()
    plain = prepare()(jax.random.key(0), batch)["image"]
    got = prepare(flip=flip)(jax.random.key(0), batch)["image"]
    np.testing.assert_array_equal(got, plain[:, :, ::-1] if flip else plain)


def test_grey_images():
    batch = pixels(channels=1)
    message = r"1 channel\(s\).* have 3: write 1-tuples, such as \(0\.5,\)"
    with pytest.raises(ValueError, match=message):
        prepare()(jax.random.key(0), batch)
    got = prepare(mean=(0.5,), std=(0.25,))(jax.random.key(0), batch)
    want = (np.asarray(batch["image"]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(got["image"], want, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, r"config\.crop\.flip = 1\.5"),
        ({"mean": (0.5,)}, "as many means as standard deviations"),
        ({"mean": (123.7, 116.3, 103.5)}, "pixels are numbers from 0 to 1 here; divide"),
        ({"std": (58.4, 57.1, 57.4)}, "pixels are numbers from 0 to 1 here; divide"),
        ({"std": (0.2, 0.2, 0.0)}, r"config\.image\.std = \(0\.2, 0\.2, 0\.0\)"),
    ],
)
def test_bad_image_values(changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(**changes)


def test_images_of_another_dtype():
    batch = pixels()
    with pytest.raises(ValueError, match=r"images are int32\[32, 6, 6, 3\]"):
        prepare()(jax.random.key(0), {**batch, "image": batch["image"].astype(np.int32)})


# -- mixing.py --------------------------------------------------------------------------------

ALL = {"mixup": 0.4, "cutmix": 1.0, "fmix": 1.0}


def make(group=None, **changes):
    return mixing.make(**(dict(base.get_config().mix) | changes), group=group)


def each(f, keys):
    """Returns f of each key, stacked; it compiles in a fraction of vmap's time."""
    return jax.jit(lambda keys: jax.lax.map(f, keys))(keys)


def lams(alpha, count=4000, **options):
    """Returns the lam of so many batches of two small images."""
    batch = {"image": jnp.zeros((2, 8, 8, 1)), "label": jnp.arange(2)}
    mix = make(**options)
    keys = jax.random.split(jax.random.key(0), count)
    lam = np.asarray(each(lambda k: mix(k, batch)["lam"], keys))
    assert (lam[:, 0] == lam[:, 1]).all()  # one for the batch
    assert ((lam >= 0) & (lam <= 1)).all()
    return lam[:, 0]


def test_off():
    assert make() is None


@pytest.mark.parametrize("group", [None, 8, 4, 2])
def test_mixed_images_are_the_formula(group):
    batch = normalised()
    mix = jax.jit(make(mixup=0.4, group=group))
    for seed in range(4):
        got = jax.tree.map(np.asarray, mix(jax.random.key(seed), batch))
        np.testing.assert_array_equal(got["label"], batch["label"])
        assert got["label2"].dtype == np.int32
        assert got["lam"].shape == (32,)
        assert got["lam"].dtype == np.float32
        lam = np.float64(got["lam"])[:, None, None, None]
        x = batch["image"].astype(np.float64)  # a label is the row of its image
        want = lam * x + (1 - lam) * x[got["label2"]]
        assert got["image"].dtype == np.float32
        np.testing.assert_allclose(got["image"], want, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "group", "size"),
    [(24, 12, 12), (24, 8, 8), (24, 2, 2), (24, None, 8), (20, None, 4), (9, None, 9)],
)
def test_partners_are_other_images_of_the_group(n, group, size):
    batch = normalised(n=n)
    draw = jax.jit(lambda rng: mixing.partners(rng, batch, group))
    rows = np.arange(n)
    seen = set()
    for seed in range(100):
        other = jax.tree.map(np.asarray, draw(jax.random.key(seed)))
        partner = other["label"]
        np.testing.assert_array_equal(other["image"], batch["image"][partner])
        assert sorted(partner) == list(rows)
        assert (partner // size == rows // size).all()
        assert (partner != rows).all()
        seen.add(int(partner[0]))
    assert seen == set(range(1, size))  # every other image of the group comes up


@pytest.mark.ci
@pytest.mark.parametrize("alpha", [0.2, 3.0])
def test_lam_is_beta_distributed(alpha):
    lam = lams(alpha, mixup=alpha)
    beta = stats.beta(alpha, alpha)
    assert abs(lam.mean() - 0.5) < 5 * beta.std() / 4000**0.5
    spread = ((beta.expect(lambda x: (x - 0.5) ** 4) - beta.var() ** 2) / 4000) ** 0.5
    assert abs(((lam - 0.5) ** 2).mean() - beta.var()) < 5 * spread
    assert stats.kstest(lam, beta.cdf).pvalue > 1e-4


def test_mixup_alone_draws_what_it_always_drew():
    # of the first release: runs go on as they began
    mix = jax.jit(make(mixup=0.4, group=16))
    got = [mix(jax.random.key(k), normalised()) for k in range(3)]
    want = ["0x1.1790220000000p-1", "0x1.9bd2860000000p-1", "0x1.af33f00000000p-8"]
    assert [float(batch["lam"][0]).hex() for batch in got] == want
    assert [int(batch["label2"][0]) for batch in got] == [2, 13, 8]


@pytest.mark.ci
@pytest.mark.parametrize("changes", [{"mixup": 0.4}, ALL | {"prob": 0.8}])
def test_the_key_decides(changes):
    batch = normalised()
    mix = jax.jit(make(group=16, **changes))
    a, b, c = (mix(jax.random.key(seed), batch) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a["image"], b["image"])
    assert (a["image"] != c["image"]).any()


# CutMix


def cut_boxes(alpha, size, count):
    """Returns lam, height and width of the boxes of so many batches [3, count]."""
    batch = {"image": jnp.eye(2)[:, None, None, :1] * jnp.ones((2, size, size, 1)),
             "label": jnp.arange(2)}  # fmt: skip
    mix = make(cutmix=alpha)

    def draw(key):
        got = mix(key, batch)
        mask = got["image"][0, :, :, 0] == 0  # the first image is 1, its partner 0
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        whole = (mask.sum() == rows * columns) & (got["image"][1, :, :, 0] == mask).all()
        return whole, got["lam"][0], rows, columns

    whole, *found = each(draw, jax.random.split(jax.random.key(0), count))
    assert whole.all()  # a box, and the same one in both
    return np.asarray(found)


def authors_boxes(alpha, size, count, rng):
    """Returns lam, height and width by the formulas of the paper, in float64 [3, count]."""
    side = np.sqrt(1 - rng.beta(alpha, alpha, count))
    sides = []
    for _ in range(2):
        length, centre = (size * side).astype(int), rng.integers(0, size, count)
        first = centre - length // 2
        sides.append(np.clip(first + length, 0, size) - np.clip(first, 0, size))
    return np.stack([1 - sides[0] * sides[1] / size**2, *sides])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_boxes_of_cutmix_are_those_of_the_paper(alpha):
    got = cut_boxes(alpha, 32, N)
    want = authors_boxes(alpha, 32, N, np.random.default_rng(0))
    np.testing.assert_allclose(got[0], 1 - got[1] * got[2] / 32**2, atol=1e-6)
    for mine, theirs in zip((*got, got[1] / 32 * got[2]), (*want, want[1] / 32 * want[2])):
        assert stats.ks_2samp(mine, theirs).pvalue > 1e-4
        spread = (mine.var() + theirs.var()) ** 0.5
        assert abs(mine.mean() - theirs.mean()) < 5 * spread / N**0.5


@pytest.mark.ci
def test_clipped_areas_of_cutmix_by_brute_force():
    # An alpha so large that lam is 1/2: all boxes are floor(32 / sqrt(2)) = 22 pixels long.
    _, height, width = cut_boxes(1e7, 32, N)
    sides = [len({*range(c - 11, c + 11)} & {*range(32)}) for c in range(32)]
    for found in (height, width):
        want = np.bincount(sides) / 32 * N
        counts = np.bincount(found.astype(int), minlength=len(want))
        np.testing.assert_array_equal(counts[want == 0], 0)
        assert stats.chisquare(counts[want > 0], want[want > 0]).pvalue > 1e-4
    areas = np.outer(sides, sides)
    assert abs((height * width).mean() - areas.mean()) < 5 * areas.std() / N**0.5


@pytest.mark.parametrize("changes", [{"cutmix": 1.0}, {"fmix": 1.0}])
def test_pixels_come_from_one_image_or_the_other(changes):
    batch = normalised(n=16, size=24)
    mix = jax.jit(make(group=8, **changes))
    for seed in range(4):
        got = jax.tree.map(np.asarray, mix(jax.random.key(seed), batch))
        other = batch["image"][got["label2"]]
        mine = (got["image"] == batch["image"]).all(-1)
        theirs = (got["image"] == other).all(-1)
        assert (mine ^ theirs).all()
        assert (mine == mine[0]).all()  # one mask for the batch
        np.testing.assert_allclose(got["lam"], mine.mean((1, 2)), atol=1e-6)


# FMix


def landscape(noise, decay_power, shape):
    """Returns the low-frequency image of the paper, in float64."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    frequency = np.maximum(np.sqrt(fy**2 + fx**2), 1 / max(shape))
    return np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**decay_power, s=shape)


@pytest.mark.parametrize("shape", [(24, 24), (17, 30)])
@pytest.mark.parametrize(("decay_power", "max_soft"), [(3.0, 0.0), (1.5, 0.1), (3.0, 0.5)])
def test_masks_are_the_highest_of_the_landscape(shape, decay_power, max_soft):
    pixels = shape[0] * shape[1]
    for seed, lam in enumerate((0.0, 0.07, 0.5, 0.83, 1.0)):
        key = jax.random.key(seed)
        got = mixing.fourier_mask(
            key, shape, jnp.float32(lam), decay_power=decay_power, max_soft=max_soft
        )
        noise = jax.random.normal(key, (2, shape[0], shape[1] // 2 + 1), jnp.float32)
        order = np.argsort(-landscape(np.float64(noise), decay_power, shape), axis=None)
        number = round(np.float64(np.float32(lam)) * pixels)
        soft = int(pixels * min(max_soft, lam, 1 - lam) + 1e-6)
        want = np.zeros(pixels)
        want[order[: number - soft]] = 1
        want[order[number - soft : number + soft]] = np.linspace(1, 0, 2 * soft)
        np.testing.assert_allclose(np.asarray(got), want.reshape(shape), atol=1e-6)
        assert abs(float(got.mean()) - lam) < 1 / pixels


@pytest.mark.ci
def test_masks_are_as_smooth_as_the_papers():
    shape, count = (32, 32), 1000

    def edges(masks):
        across = (masks[:, 1:] != masks[:, :-1]).mean((1, 2))
        return across + (masks[:, :, 1:] != masks[:, :, :-1]).mean((1, 2))

    rng = np.random.default_rng(0)
    means = []
    for decay_power in (0.0, 1.5, 3.0):
        draw = partial(
            mixing.fourier_mask,
            shape=shape,
            lam=jnp.float32(0.5),
            decay_power=decay_power,
            max_soft=0.0,
        )
        keys = jax.random.split(jax.random.key(0), count)
        mine = edges(np.asarray(each(draw, keys)))
        images = [landscape(rng.standard_normal((2, 32, 17)), decay_power, shape)
                  for _ in range(count)]  # fmt: skip
        theirs = edges(np.stack([image > np.median(image) for image in images]))
        spread = (mine.var() + theirs.var()) ** 0.5
        assert abs(mine.mean() - theirs.mean()) < 5 * spread / count**0.5
        means.append(mine.mean())
    assert means[0] > 2 * means[1] > 2 * means[2]


@pytest.mark.ci
def test_lam_of_fmix_is_beta_distributed():
    lam = lams(0.7, fmix=0.7)
    beta = stats.beta(0.7, 0.7)
    assert abs(lam.mean() - 0.5) < 5 * beta.std() / 4000**0.5
    pixels = np.round(64 * lam)  # a share of the 64 pixels: lam to the nearest one
    np.testing.assert_allclose(64 * lam, pixels, atol=1e-5)
    ends = np.clip((np.arange(66) - 0.5) / 64, 0, 1)
    want = 4000 * np.diff(beta.cdf(ends))
    counts = np.bincount(pixels.astype(int), minlength=65)
    assert stats.chisquare(counts, want).pvalue > 1e-4


# A choice


def kind_of(got):
    """Returns which kind mixed a batch of a white and a black image, alpha large: "" for none."""
    image, lam = np.asarray(got["image"][0]), float(got["lam"][0])
    if lam == 1:
        return ""
    if image.min() == image.max():
        return "mixup"
    return "cutmix" if set(np.unique(image)) == {0.0, 1.0} else "fmix"


@pytest.mark.ci
@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"cutmix": 50.0, "prob": 0.3}, {"cutmix": 0.3, "": 0.7}),
        (
            {"mixup": 50.0, "fmix": 50.0, "max_soft": 0.1, "weights": (1.0, 9.0, 3.0)},
            {"mixup": 1 / 4, "fmix": 3 / 4},
        ),
        (
            {"mixup": 50.0, "cutmix": 50.0, "fmix": 50.0, "max_soft": 0.1, "prob": 0.8}
            | {"weights": (2.0, 1.0, 1.0)},
            {"mixup": 0.4, "cutmix": 0.2, "fmix": 0.2, "": 0.2},
        ),
    ],
)
def test_kinds_are_drawn_as_often_as_asked(options, want):
    white = jnp.concatenate([jnp.ones((1, 8, 8, 1)), jnp.zeros((1, 8, 8, 1))])
    mix = make(**options)
    keys = jax.random.split(jax.random.key(0), 2000)
    batch = {"image": white, "label": jnp.array([5, 6])}
    got = jax.tree.map(np.asarray, each(lambda k: mix(k, batch), keys))
    kinds = [kind_of({k: v[i] for k, v in got.items()}) for i in range(2000)]
    assert set(kinds) == set(want)
    counts = [kinds.count(kind) for kind in want]
    assert stats.chisquare(counts, [2000 * share for share in want.values()]).pvalue > 1e-4
    plain = np.array([kind == "" for kind in kinds])
    np.testing.assert_array_equal(
        got["image"][plain], np.broadcast_to(white, got["image"].shape)[plain]
    )


# A draw for each image


def formula(batch, got):
    """Returns which kind mixed each image, in float64 by the formulas: "" for none."""
    x = batch["image"].astype(np.float64)
    other, lam = x[got["label2"]], np.float64(got["lam"])
    kinds = []
    for mine, theirs, image, weight in zip(x, other, np.float64(got["image"]), lam):
        taken = (image == theirs).all(-1)
        if weight == 1:
            np.testing.assert_array_equal(image, mine)
            kinds.append("")
        elif ((image == mine).all(-1) ^ taken).all():  # a mask, whose mean is the weight
            np.testing.assert_allclose(weight, 1 - taken.mean(), atol=1e-6)
            rectangle = np.outer(taken.any(1), taken.any(0))
            kinds.append("cutmix" if (rectangle == taken).all() else "fmix")
        else:
            np.testing.assert_allclose(image, weight * mine + (1 - weight) * theirs, atol=1e-6)
            kinds.append("mixup")
    return kinds


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k == "mixup" else [pytest.mark.ci]) for k in ALL]
)
@pytest.mark.parametrize("group", [None, 16])
def test_each_image_draws_for_itself(kind, group):
    batch = normalised(n=64, size=12)
    mix = jax.jit(make(group=group, each=True, **{kind: 1.0}))
    for seed in range(3):
        got = jax.tree.map(np.asarray, mix(jax.random.key(seed), batch))
        assert set(formula(batch, got)) <= {kind, "", "cutmix"}  # a mask may happen to be a box
        assert len(set(got["lam"].tolist())) > (32 if kind != "cutmix" else 16)
        rows = np.arange(64)
        assert (got["label2"] // (group or 8) == rows // (group or 8)).all()
        assert (got["label2"] != rows).all()


@pytest.mark.ci
def test_weights_of_each_image_are_beta_distributed():
    batch = {"image": jnp.zeros((N, 2, 2, 1)), "label": jnp.arange(N)}
    lam = np.asarray(make(mixup=0.3, each=True)(jax.random.key(0), batch)["lam"])
    assert stats.kstest(lam, stats.beta(0.3, 0.3).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(lam[1:], lam[:-1])[0, 1]) < 5 / N**0.5


@pytest.mark.ci
def test_kinds_of_each_image_are_drawn_as_often_as_asked():
    batch = normalised(n=2000, size=12)
    options = {"mixup": 9.0, "cutmix": 9.0, "fmix": 9.0, "prob": 0.8, "weights": (2.0, 1.0, 1.0)}
    mix = jax.jit(make(each=True, **options))
    kinds = formula(batch, jax.tree.map(np.asarray, mix(jax.random.key(0), batch)))
    want = {"mixup": 800, "cutmix": 400, "fmix": 400, "": 400}
    counts = [kinds.count(kind) for kind in want]
    assert stats.chisquare(counts, list(want.values())).pvalue > 1e-4


@pytest.mark.ci
@pytest.mark.parametrize("each_image", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_sum_to_one_and_give_the_loss(smoothing, each_image):
    classes, rng = 7, np.random.default_rng(0)
    loss = base.get_config().loss
    loss.label_smoothing = smoothing
    objective = objectives.make(**loss, outputs={})
    mix = jax.jit(make(**ALL, prob=0.7, each=each_image))
    batch = normalised(n=16) | {"label": rng.integers(0, classes, 16).astype(np.int32)}
    seen = set()
    for seed in range(12):
        got = mix(jax.random.key(seed), batch)
        logits = 3 * rng.standard_normal((16, classes)).astype(np.float32)
        loss, metrics = objective.loss({"logits": logits}, got)
        lam = np.float64(got["lam"])[:, None]
        hot = lam * np.eye(classes)[got["label"]] + (1 - lam) * np.eye(classes)[got["label2"]]
        soft = (1 - smoothing) * hot + smoothing / classes
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-14)
        assert (soft >= 0).all()
        log_p = logits - logsumexp(np.float64(logits), axis=1, keepdims=True)
        np.testing.assert_allclose(loss, -(soft * log_p).sum(1).mean(), rtol=1e-6)
        right = hot[np.arange(16), logits.argmax(1)]
        np.testing.assert_allclose(metrics["top1_mixed"], right.mean(), rtol=1e-5, atol=1e-7)
        marks = batch | {"label": np.eye(classes, dtype=np.int32)[batch["label"]]}
        got = objective.loss({"logits": logits}, mix(jax.random.key(seed), marks))
        np.testing.assert_allclose(got[0], loss, rtol=1e-6)
        seen |= set((lam[:, 0] == 1).tolist())
    assert seen == {True, False}  # mixed batches and others


@pytest.mark.ci
def test_precisions():
    mix = make(**ALL, prob=0.8)
    for dtype in (np.float16, jnp.bfloat16):
        got = jax.eval_shape(mix, jax.random.key(0), normalised(dtype=dtype))
        assert got["image"].dtype == got["lam"].dtype == jnp.float32
    single = jax.jit(mix)
    single = [single(jax.random.key(k), normalised()) for k in range(6)]
    with jax.enable_x64(True):
        double = jax.jit(mix)
        for k in range(6):
            got = double(jax.random.key(k), normalised(dtype=np.float64))
            assert got["image"].dtype == jnp.float64
            assert got["lam"].dtype == jnp.float32
            assert got["label2"].dtype == jnp.int32
            np.testing.assert_array_equal(got["label2"], single[k]["label2"])
            np.testing.assert_allclose(got["lam"], single[k]["lam"], rtol=1e-6)


def whole(group, changes, methods):
    """Returns all the device work of a training step: flip, normalise, erase, mix."""
    ready, mix = prepare(), make(group=group, **changes)
    erase = [
        erasing.make(**(dict(base.get_config().erase) | {"fill": "pixel"} | method))
        for method in methods
    ]

    def f(rng, batch):
        a, b, *keys = jax.random.split(rng, 2 + len(erase))
        batch = ready(a, batch)
        for key, one in zip(keys, erase):
            batch = one(key, batch, 0)
        return mix(b, batch)

    return f


METHODS = {
    "cutout": {"length": 16, "holes": 2},
    "random_erasing": {"prob": 0.7},
    "hide_and_seek": {"grids": (0, 2, 5, 8)},
    "grid_mask": {"d1": 14, "d2": 32, "rotate": 360},
}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("group", "changes", "methods"),
    [
        (None, {"mixup": 0.4}, ["cutout", "hide_and_seek"]),
        (16, {"cutmix": 1.0}, ["random_erasing"]),
        (4, ALL | {"prob": 0.9}, ["grid_mask"]),
        (8, {"mixup": 0.4, "cutmix": 1.0, "prob": 0.9, "each": True}, []),
    ],
)
def test_eight_devices_give_what_one_gives(group, changes, methods):
    batch = pixels(n=64, size=32)
    methods = [{"name": name, **METHODS[name]} for name in methods]
    assert len(jax.devices()) >= 8
    results = []
    for n in (1, 8):
        mesh = jax.make_mesh(
            (n,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:n]
        )
        rows = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        step = whole(group, changes, methods)
        step = jax.jit(step, in_shardings=(everywhere, rows), out_shardings=rows)
        args = jax.device_put(jax.random.key(3), everywhere), jax.device_put(batch, rows)
        results.append(jax.tree.map(np.asarray, step(*args)))
        program = step.lower(*args).compile().as_text()
        words = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
        talk = [x for x in program.splitlines() if any(f" {word}(" in x for word in words)]
        if "each" in changes:  # whether the samplers of all devices are done
            assert all("= pred[] all-reduce(" in line for line in talk)
        else:  # a device has 8 of the 64 images
            assert bool(talk) == (n == 8 and group == 16)
    for key in ("label", "label2", "lam"):
        np.testing.assert_array_equal(results[0][key], results[1][key])
    np.testing.assert_allclose(results[0]["image"], results[1]["image"], atol=1e-6)


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("alpha", [-0.1, float("inf"), float("nan")])
def test_bad_alpha(key, alpha):
    with pytest.raises(ValueError, match=rf"config\.mix\.{key} = "):
        make(**{key: alpha})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prob": 0.5}, "config.mix.prob: not used by 'no mixing'"),
        ({"each": True}, "config.mix.each: not used by 'no mixing'"),
        ({"mixup": 1e-9}, "config.mix.mixup = 1e-09: write an alpha from 0.001 to 1e"),
        ({"fmix": 1.0, "decay_power": 300.0}, "config.mix.decay_power = 300.0: write a number fr"),
        ({"mixup": 0.2, "prob": 0.0}, "config.mix.prob = 0.0: write a share of the batches"),
        ({"mixup": 0.2, "prob": 1.1}, "config.mix.prob = 1.1"),
        ({"mixup": 0.2, "weights": (1.0, 2.0, 1.0)}, "config.mix.weights: not used by 'mixup'"),
        ({"mixup": 0.2, "cutmix": 1.0, "weights": (1.0, 0.0, 1.0)}, "config.mix.weights = "),
        ({"mixup": 0.2, "cutmix": 1.0, "weights": (1.0, 1.0)}, "write three numbers above 0"),
        ({"cutmix": 1.0, "max_soft": 0.1}, "config.mix.max_soft: not used by 'cutmix'"),
        ({"fmix": 1.0, "max_soft": 0.6}, "config.mix.max_soft = 0.6: write a share"),
        ({"fmix": 1.0, "decay_power": -1.0}, "config.mix.decay_power = -1.0"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(**changes), jax.random.key(0), normalised())


@pytest.mark.parametrize(("n", "group"), [(32, 12), (32, 1), (1, None), (8, 16)])
def test_bad_groups(n, group):
    with pytest.raises(ValueError, match=f"a batch of {n} cannot be divided into groups of"):
        make(mixup=0.2, group=group)(jax.random.key(0), normalised(n=n))

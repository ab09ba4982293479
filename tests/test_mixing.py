"""Normalising, flipping and mixup on the device, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from configs import base
from jaxcls.data import device, mixing


def prepare(train=True, **changes):
    dtype = changes.pop("dtype", jnp.float32)
    return device.make(**(dict(base.get_config().image) | changes), train=train, dtype=dtype)


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
    got = prepare(train=False)(jax.random.key(0), batch)
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    assert got["image"].dtype == jnp.float32
    want = (np.asarray(batch["image"]) / 255.0 - mean) / std
    np.testing.assert_allclose(got["image"], want, atol=1e-6)
    np.testing.assert_array_equal(got["label"], batch["label"])
    with jax.enable_x64(True):
        got = prepare(train=False, dtype=jnp.float64)(jax.random.key(0), batch)["image"]
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, atol=1e-14)


@pytest.mark.parametrize("train", [True, False])
def test_floating_images_stay_as_they_are(train):
    batch = normalised(dtype=np.float16)
    got = prepare(train=train, flip=1.0)(jax.random.key(0), batch)
    assert got["image"].dtype == np.float16
    np.testing.assert_array_equal(got["image"], batch["image"])


def test_each_image_is_flipped_or_not():
    batch = pixels(n=2000, size=3)
    plain = prepare(train=False)(jax.random.key(0), batch)["image"]
    got = prepare(flip=0.3)(jax.random.key(0), batch)["image"]
    kept = (got == plain).all((1, 2, 3))
    mirrored = (got == plain[:, :, ::-1]).all((1, 2, 3))
    assert (kept | mirrored).all()
    assert not (kept & mirrored).any()
    # 6 standard deviations of a binomial.
    assert abs(float(mirrored.mean()) - 0.3) < 6 * (0.3 * 0.7 / 2000) ** 0.5
    again = prepare(flip=0.3)(jax.random.key(1), batch)["image"]
    assert (again != got).any()


@pytest.mark.parametrize(("train", "flip", "mirrored"), [(1, 1.0, 1), (1, 0.0, 0), (0, 1.0, 0)])
def test_flip_of_all_or_none(train, flip, mirrored):
    batch = pixels()
    plain = prepare(train=False)(jax.random.key(0), batch)["image"]
    got = prepare(train=bool(train), flip=flip)(jax.random.key(0), batch)["image"]
    np.testing.assert_array_equal(got, plain[:, :, ::-1] if mirrored else plain)


def test_grey_images():
    batch = pixels(channels=1)
    message = r"1 channel\(s\).* have 3: write 1-tuples, such as \(0\.5,\)"
    with pytest.raises(ValueError, match=message):
        prepare()(jax.random.key(0), batch)
    got = prepare(mean=(0.5,), std=(0.25,), train=False)(jax.random.key(0), batch)
    want = (np.asarray(batch["image"]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(got["image"], want, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, r"config\.image\.flip = 1\.5"),
        ({"mean": (0.5,)}, "as many means as standard deviations"),
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


def test_off():
    assert mixing.make(**base.get_config().mix) is None


@pytest.mark.parametrize("group", [None, 8, 4, 2])
def test_mixed_images_are_the_formula(group):
    batch = normalised()
    mix = jax.jit(mixing.make(mixup=0.4, group=group))
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


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_lam_is_beta_distributed(alpha):
    batch = {"image": jnp.zeros((2, 1, 1, 3)), "label": jnp.arange(2)}
    mix = mixing.make(mixup=alpha)
    keys = jax.random.split(jax.random.key(0), 4000)
    lam = np.asarray(jax.jit(jax.vmap(lambda k: mix(k, batch)["lam"]))(keys))
    assert (lam[:, 0] == lam[:, 1]).all()  # one for the batch
    assert ((lam >= 0) & (lam <= 1)).all()
    beta = stats.beta(alpha, alpha)
    assert abs(lam[:, 0].mean() - 0.5) < 5 * beta.std() / 4000**0.5
    spread = ((beta.expect(lambda x: (x - 0.5) ** 4) - beta.var() ** 2) / 4000) ** 0.5
    assert abs(((lam[:, 0] - 0.5) ** 2).mean() - beta.var()) < 5 * spread
    assert stats.kstest(lam[:, 0], beta.cdf).pvalue > 1e-4


def test_the_key_decides():
    batch = normalised()
    mix = jax.jit(mixing.make(mixup=0.2, group=16))
    a, b, c = (mix(jax.random.key(seed), batch) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a["image"], b["image"])
    assert (a["lam"] != c["lam"]).all()


def test_half_precision_images_are_mixed_in_float32():
    got = mixing.make(mixup=1.0)(jax.random.key(0), normalised(dtype=np.float16))
    assert got["image"].dtype == jnp.float32


def both(group):
    """Returns the device work of a training step: flip, normalise, mix."""
    ready, mix = prepare(), mixing.make(mixup=0.4, group=group)

    def f(rng, batch):
        a, b = jax.random.split(rng)
        return mix(b, ready(a, batch))

    return f


@pytest.mark.parametrize("group", [None, 4, 16])
def test_eight_devices_give_what_one_gives(group):
    batch = pixels(n=64)
    assert len(jax.devices()) >= 8
    results = []
    for n in (1, 8):
        mesh = jax.make_mesh(
            (n,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:n]
        )
        rows = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        step = jax.jit(both(group), in_shardings=(everywhere, rows), out_shardings=rows)
        args = jax.device_put(jax.random.key(3), everywhere), jax.device_put(batch, rows)
        results.append(jax.tree.map(np.asarray, step(*args)))
        program = step.lower(*args).compile().as_text()
        words = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
        communicates = any(word in program for word in words)
        assert communicates == (n == 8 and group == 16)  # a device has 8 of the 64 images
    for key in ("label", "label2", "lam"):
        np.testing.assert_array_equal(results[0][key], results[1][key])
    np.testing.assert_allclose(results[0]["image"], results[1]["image"], atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, float("inf"), float("nan")])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=r"config\.mix\.mixup = "):
        mixing.make(mixup=alpha)


@pytest.mark.parametrize(("n", "group"), [(32, 12), (32, 1), (1, None), (8, 16)])
def test_bad_groups(n, group):
    with pytest.raises(ValueError, match=f"a batch of {n} cannot be divided into groups of"):
        mixing.make(mixup=0.2, group=group)(jax.random.key(0), normalised(n=n))

"""Layers that several families share."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import layers
from jaxcls.models.count import equations
from jaxcls.models.googlenet import pool_to_3x3
from jaxcls.models.inception import mean_3x3
from jaxcls.models.layers import (
    BatchNorm,
    Dropout,
    DropPath,
    adaptive_mean,
    avg_pool_halve,
    drop_path_rates,
    global_mean,
    round_to_8,
)
from jaxcls.models.spec import Ctx
from jaxcls.precision import DTYPES


def batchnorm(c, x, scale, bias, running_mean=0.0):
    """Returns output and new running statistics of a BatchNorm in training; old variances are 1."""
    module = BatchNorm(c)
    variables = module.init(jax.random.key(0), x)
    dtypes = jax.tree.map(lambda p: p.dtype, variables["params"])
    assert dtypes == {"scale": c.param_dtype, "bias": c.param_dtype}
    params = {"scale": scale.astype(c.param_dtype), "bias": bias.astype(c.param_dtype)}
    stats = variables["batch_stats"]
    stats = {"mean": jnp.full_like(stats["mean"], running_mean), "var": stats["var"]}
    y, new = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    return y, new["batch_stats"]


def two_passes(x, scale, bias, group, epsilon=1e-5):
    """Returns output, mean and variance of BatchNorm in float64; statistics [groups, 1, ..., C]."""
    x, scale, bias = (np.asarray(a).astype(np.float64) for a in (x, scale, bias))
    grouped = x.reshape(-1, group, *x.shape[1:])
    axes = tuple(range(1, grouped.ndim - 1))
    mean = grouped.mean(axes, keepdims=True)
    var = ((grouped - mean) ** 2).mean(axes, keepdims=True)
    y = (grouped - mean) / np.sqrt(var + epsilon) * scale + bias
    return y.reshape(x.shape), mean, var


@pytest.mark.parametrize("mean", [0, 30, 300])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "O3", "O3_bfloat16"])
def test_batchnorm_in_half_precision_has_float32_statistics(name, mean):
    names = ("dtype", "feature_dtype", "param_dtype", "norm_dtype", "head_dtype")
    c = Ctx(train=True, **dict(zip(names, DTYPES[name])))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(mean, 1, (16, 8, 8, 5)), c.feature_dtype)
    # exact in 16 bits
    scale, bias = jnp.array([1, 0.5, 2, -1, 1.25]), jnp.array([0, 1, -2, 0.5, 3])
    near = 0.9 * mean if c.feature_dtype == jnp.bfloat16 else 0.0  # as in a run; nothing else looks
    y, stats = jax.jit(lambda x: batchnorm(c, x, scale, bias, near))(x)
    expected, expected_mean, expected_var = two_passes(x, scale, bias, 16)
    assert y.dtype == c.feature_dtype
    got = np.asarray(y, np.float64)
    np.testing.assert_allclose(got, expected, rtol=2 * float(jnp.finfo(y.dtype).eps), atol=2e-4)
    np.testing.assert_allclose(got.std((0, 1, 2)), np.abs(scale), rtol=3e-3)
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    expected_mean = 0.9 * near + 0.1 * expected_mean.ravel()
    np.testing.assert_allclose(stats["mean"], expected_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * expected_var.ravel(), rtol=1e-5)


@pytest.mark.parametrize("ratio", [10, 30, 100])
def test_sums_of_bfloat16_lose_less_than_its_features(ratio):
    """Where the running mean is not near yet: at the first step of a run."""
    c = Ctx(train=True, dtype=jnp.bfloat16, feature_dtype=jnp.bfloat16)
    exact = np.random.default_rng(1).normal(ratio, 1, (64, 28, 28, 4))
    x = jnp.asarray(exact, jnp.bfloat16)
    _, stats = jax.jit(lambda x: batchnorm(c, x, jnp.ones(4), jnp.zeros(4)))(x)
    var = 10 * (np.asarray(stats["var"], np.float64) - 0.9)
    rounded, true = (np.asarray(a).astype(np.float64).var((0, 1, 2)) for a in (x, exact))
    assert np.abs(var / rounded - 1).max() < np.abs(rounded / true - 1).max()


@pytest.mark.parametrize("first", [0, 50])  # how far the first image is from the others
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("ratio", [0, 10, 100, 1000])
def test_one_pass_of_batchnorm_is_two_passes(ratio, group, first):
    rng = np.random.default_rng(0)
    x = rng.normal(ratio, 1, (16, 28, 28, 6)).astype(np.float32)
    x[::4] += first
    scale, bias = jnp.linspace(0.5, 2, 6), jnp.linspace(-1, 1, 6)
    c = Ctx(train=True, bn_group=group)
    weight = rng.normal(size=x.shape).astype(np.float32)

    def loss(x):
        y, stats = batchnorm(c, x, scale, bias)
        return (weight * y).sum(), (y, stats)

    gradient, (y, stats) = jax.jit(jax.grad(loss, has_aux=True))(x)
    expected, mean, var = two_passes(x, scale, bias, group or 16)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    got = (np.asarray(stats["var"], np.float64) - 0.9) / 0.1
    np.testing.assert_allclose(got, var.reshape(-1, 6).mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        stats["mean"], 0.1 * mean.reshape(-1, 6).mean(0), rtol=1e-6, atol=1e-6
    )

    # Ioffe and Szegedy 2015, the derivatives of section 3, in float64
    normal = (x.reshape(-1, group or 16, *x.shape[1:]) - mean) / np.sqrt(var + 1e-5)
    g = (weight * np.asarray(scale, np.float64)).reshape(normal.shape)
    means = lambda a: a.mean((1, 2, 3), keepdims=True)
    g = (g - means(g) - normal * means(g * normal)) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(gradient, g.reshape(x.shape), atol=3e-5)


@pytest.mark.parametrize("downscale", [False, True])
@pytest.mark.parametrize(("own", "asked", "rate"), [(0.25, None, 0.25), (0.25, 0.6, 0.6)])
def test_dropout(own, asked, rate, downscale):
    x = jnp.full((100, 1000), 3.0)
    apply = lambda train: Dropout(Ctx(train=train, dropout=asked), own, downscale).apply(
        {}, x, rngs={"dropout": jax.random.key(0)}
    )
    trained, evaluated = np.asarray(apply(True)), np.asarray(apply(False))
    kept = 3.0 if downscale else 3.0 / (1 - rate)
    zero = trained == 0
    np.testing.assert_allclose(trained[~zero], kept, rtol=1e-6)
    assert zero.mean() == pytest.approx(rate, abs=0.01)  # 7 standard deviations
    np.testing.assert_allclose(evaluated, 3.0 * (1 - rate) if downscale else 3.0, rtol=1e-6)


def test_drop_path():
    x = jnp.full((10_000, 3, 2, 4), 3.0)
    apply = lambda train: DropPath(Ctx(train=train), 0.25).apply(
        {}, x, rngs={"dropout": jax.random.key(0)}
    )
    np.testing.assert_array_equal(apply(False), x)
    images = np.asarray(apply(True)).reshape(len(x), -1)
    dropped = images[:, 0] == 0
    np.testing.assert_allclose(images[~dropped], 3.0 / 0.75, rtol=1e-6)
    assert not images[dropped].any()
    assert dropped.mean() == pytest.approx(0.25, abs=0.025)  # 6 standard deviations


def test_drop_path_rates_rise_with_depth():
    # Huang et al. 2016, equation 4: block l of L survives with 1 - l / L (1 - p_L)
    first, others = drop_path_rates(Ctx(drop_path=0.4), (1, 3))
    np.testing.assert_allclose([*first, *others], [0.1, 0.2, 0.3, 0.4])
    assert drop_path_rates(Ctx(), (2,), own=0.2) == [[0.1, 0.2]]
    assert drop_path_rates(Ctx(drop_path=0.0), (2,), own=0.2) == [[0.0, 0.0]]


@pytest.mark.parametrize(("height", "width"), [(6, 6), (12, 18), (13, 7), (2, 1), (5, 11)])
def test_adaptive_mean(height, width):
    size = 6
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    expected = np.empty((2, size, size, 3))
    for i in range(size):
        for j in range(size):
            rows = slice(int(np.floor(i * height / size)), int(np.ceil((i + 1) * height / size)))
            columns = slice(int(np.floor(j * width / size)), int(np.ceil((j + 1) * width / size)))
            expected[:, i, j] = x[:, rows, columns].astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(adaptive_mean(jnp.asarray(x), size), expected, atol=1e-6)


MEANS = {
    "avg_pool_halve": avg_pool_halve,
    "mean_3x3": mean_3x3,
    "pool_to_3x3": pool_to_3x3,
    "adaptive_mean": lambda x: adaptive_mean(x, 5),
    "global_mean": lambda x: global_mean(x, Ctx(head_dtype=x.dtype)),
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", MEANS)
def test_means_of_half_precision_are_added_up_in_float32(name, dtype):
    """Sums end at 65504 in float16, means of as large numbers do not."""
    x = jnp.asarray(np.random.default_rng(0).uniform(20_000, 60_000, (2, 15, 15, 4)), dtype)
    y, wide = jax.jit(MEANS[name])(x), MEANS[name](x.astype(jnp.float32))
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=1.5 * float(jnp.finfo(dtype).eps))


def test_no_network_adds_up_means_otherwise():
    """In float16 the sum of a window is infinite where the mean is 40,000."""
    folder = Path(layers.__file__).parent
    uses = {path.name for path in folder.glob("*.py") if "nn.avg_pool" in path.read_text()}
    assert uses == {"layers.py"}


def test_round_to_8():
    # 11 -> 8 would lose more than a tenth
    features = {1: 8, 8: 8, 8.5: 8, 11: 16, 11.9: 16, 12: 16, 19: 24, 20: 24, 83: 80, 84: 88}
    assert {f: round_to_8(f) for f in features} == features


@pytest.mark.parametrize("size", [11, 12, 13])
def test_pool_to_3x3_has_the_windows_of_the_paper(size):
    x = np.random.default_rng(0).standard_normal((2, size, size, 4))
    expected = [
        [x[:, i : i + 5, j : j + 5].mean((1, 2)) for j in range(0, 9, 3)] for i in range(0, 9, 3)
    ]
    expected = np.moveaxis(np.array(expected), 2, 0)
    np.testing.assert_allclose(pool_to_3x3(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_pool_to_3x3_fits_all_sizes():
    for n in (*range(3, 16), 28, 59):
        x = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None], (n, 7))
        y = pool_to_3x3(x[None, :, :, None])
        assert y.shape == (1, 3, 3, 1)
        rows = y[0, :, 0, 0]
        assert 0 <= rows[0] < rows[1] < rows[2] <= n - 1


def correlated(x, w, stride, padding, dilation):
    """Returns the depthwise convolution of [B, H, W, C] with [h, w, 1, C] in float64."""
    x = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
    reach = [dilation * (k - 1) + 1 for k in w.shape[:2]]
    tops, lefts = (range(0, n - r + 1, stride) for n, r in zip(x.shape[1:3], reach))
    return np.stack(
        [
            np.stack(
                [
                    (x[:, t : t + reach[0] : dilation, s : s + reach[1] : dilation]
                     * np.float64(w)[None, :, :, 0]).sum((1, 2))
                    for s in lefts
                ], 1)
            for t in tops
        ], 1)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "explicit"),
    [
        ((9, 8), 3, 1, None, 1, ((1, 1), (1, 1))),
        ((9, 8), 3, 2, None, 1, ((1, 1), (1, 1))),
        ((9, 8), 5, 2, "SAME", 1, ((2, 2), (1, 2))),  # the odd pixel at the end
        ((12, 11), 3, 1, None, 2, ((2, 2), (2, 2))),
        ((9, 8), 3, 2, 0, 1, ((0, 0), (0, 0))),
        ((5, 5), (1, 5), 1, None, 1, ((0, 0), (2, 2))),
    ],
)
def test_depthwise_convolutions_by_platform(size, kernel, stride, padding, dilation, explicit):
    """On a CPU they are sums, for other platforms still convolutions; both say the same."""
    x = jax.random.normal(jax.random.key(1), (2, *size, 4))
    outputs = []
    for by_platform in (False, True):
        c = Ctx(by_platform=by_platform)
        conv = layers.Conv(c, 4, kernel, stride, padding, groups=4, dilation=dilation)
        variables = conv.init(jax.random.key(0), x)
        w = variables["params"]["kernel"]
        outputs.append(conv.apply(variables, x))
        np.testing.assert_allclose(
            outputs[-1], correlated(x, w, stride, explicit, dilation), atol=2e-6
        )
        for platform in ("cpu", "cuda"):
            lowered = jax.jit(conv.apply).trace(variables, x).lower(lowering_platforms=(platform,))
            summed = by_platform and platform == "cpu"
            assert ("stablehlo.convolution" in lowered.as_text()) != summed
    assert (outputs[0] != outputs[1]).any()


def test_other_convolutions_are_the_same_on_each_platform():
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 4))
    for features, groups in ((4, 1), (4, 2), (8, 4)):
        conv = layers.Conv(Ctx(by_platform=True), features, 3, groups=groups)
        variables = conv.init(jax.random.key(0), x)
        assert "stablehlo.convolution" in jax.jit(conv.apply).lower(variables, x).as_text()


def test_depthwise_sums_of_half_precision_are_in_float32():
    x = jnp.full((1, 5, 5, 2), 1, jnp.bfloat16)
    w = jnp.full((5, 5, 1, 2), 1.0, jnp.bfloat16).at[0, 0].set(256)
    y = layers.shifted(x, w, (1, 1), ((0, 0), (0, 0)), 1)
    assert y.dtype == jnp.bfloat16
    assert y.astype(float).ravel().tolist() == [280.0, 280.0]  # 256 + 1 is 256 in bfloat16


@pytest.mark.parametrize("platform", [None, "cpu", "tpu", "gpu"])
def test_only_programs_for_cpus_have_barriers(platform):
    """Also where they are compiled on a CPU: elsewhere statistics come with the convolution."""
    conv = layers.ConvBN(Ctx(dtype=jnp.bfloat16, feature_dtype=jnp.bfloat16, platform=platform), 4)
    program = str(jax.make_jaxpr(conv.init)(jax.random.key(0), jnp.zeros((2, 8, 8, 3))))
    assert ("optimization_barrier" in program) == (platform in (None, "cpu"))


SHIFTS = {"float16": [(2, 1, 6, 6, 3)], "bfloat16": []}  # what of the features they come from


@pytest.mark.parametrize("dtype", SHIFTS)
def test_what_of_a_group_the_shift_looks_at(dtype):
    """Features that are made wide would be kept by XLA for TPUs."""
    c = Ctx(train=True, dtype=dtype, feature_dtype=dtype, bn_group=4)
    norm, x = layers.BatchNorm(c), jnp.zeros((8, 6, 6, 3), dtype)
    variables = norm.init(jax.random.key(0), x)
    apply = lambda x: norm.apply(variables, x, mutable=["batch_stats"])
    slices = [e for e in equations(jax.make_jaxpr(apply)(x).jaxpr) if e.primitive.name == "slice"]
    assert [e.outvars[0].aval.shape for e in slices] == SHIFTS[dtype]
    assert all(e.invars[0].aval.dtype == dtype for e in slices)

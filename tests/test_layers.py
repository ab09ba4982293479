"""Layers that several families share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models.googlenet import pool_to_3x3
from jaxcls.models.layers import Dropout, DropPath, adaptive_mean, drop_path_rates, round_to_8
from jaxcls.models.spec import Ctx


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

"""Losses, ranks and the supervised objective against float64 NumPy, SciPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.metrics import log_loss, top_k_accuracy_score

from configs import base
from jaxcls import losses, objectives

B, K = 64, 11


def numpy_cross_entropy(logits, labels, smoothing=0.0):
    logits = np.asarray(logits, np.float64)
    target = np.full(logits.shape, smoothing / logits.shape[-1])
    target[np.arange(len(labels)), labels] += 1 - smoothing
    return -(target * (logits - logsumexp(logits, axis=-1, keepdims=True))).sum(-1)


def example(seed=0, classes=K):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((B, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, B).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_cross_entropy_is_the_formula(smoothing):
    logits, labels = example()
    got = losses.cross_entropy(logits, labels, smoothing)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, numpy_cross_entropy(logits, labels, smoothing), rtol=2e-6)


def test_cross_entropy_of_scikit_learn():
    logits, labels = example()
    p = np.exp(logits - logsumexp(logits, axis=-1, keepdims=True)).astype(np.float64)
    want = log_loss(labels, p / p.sum(-1, keepdims=True), labels=range(K))
    np.testing.assert_allclose(losses.cross_entropy(logits, labels).mean(), want, rtol=1e-6)


def test_cross_entropy_keeps_its_digits():
    logits, labels = example()
    half = jnp.asarray(logits, jnp.bfloat16)
    got = losses.cross_entropy(half, labels, 0.1)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, numpy_cross_entropy(half, labels, 0.1), rtol=2e-6)
    with jax.enable_x64(True):
        got = losses.cross_entropy(jnp.asarray(logits, jnp.float64), labels, 0.1)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, numpy_cross_entropy(logits, labels, 0.1), rtol=1e-13)


def test_cross_entropy_of_extreme_logits():
    logits = jnp.array([[1e4, -1e4, 0.0], [-jnp.inf, 0.0, 0.0]])
    got = losses.cross_entropy(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(got, [0.0, np.log(2)], rtol=1e-6)


def test_gradient_of_cross_entropy_is_softmax_minus_target():
    logits, labels = example()
    grad = jax.grad(lambda x: losses.cross_entropy(x, labels, 0.1).sum())(logits)
    p = np.exp(logits - logsumexp(logits.astype(np.float64), axis=-1, keepdims=True))
    target = 0.9 * np.eye(K)[labels] + 0.1 / K
    np.testing.assert_allclose(grad, p - target, atol=1e-6)


def test_rank_is_the_place_in_a_stable_sort():
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 4, (500, 9)).astype(np.float32)  # full of ties
    labels = rng.integers(0, 9, 500)
    order = np.argsort(-logits, axis=-1, kind="stable")
    want = np.argmax(order == labels[:, None], axis=-1)
    got = losses.rank(logits, labels)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.asarray(got) < 1, jnp.argmax(logits, -1) == labels)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_of_scikit_learn(k):
    logits, labels = example(2)
    want = top_k_accuracy_score(labels, logits, k=k, labels=range(K))
    assert np.mean(np.asarray(losses.rank(logits, labels)) < k) == pytest.approx(want)


def test_a_row_with_nan_is_wrong_for_every_k():
    nan = np.nan
    logits = np.array([[nan, 1, 2], [5, nan, 2], [nan, nan, nan], [5, 1, 2]], np.float32)
    np.testing.assert_array_equal(losses.rank(logits, np.zeros(4, np.int32)), [3, 3, 3, 0])


def supervised(smoothing=0.1, aux_weight=0.3):
    return objectives.supervised(label_smoothing=smoothing, aux_weight=aux_weight)


def test_objective_of_plain_batches():
    logits, labels = example()
    loss, metrics = jax.jit(lambda x, y: supervised()({"logits": x}, {"label": y}))(logits, labels)
    assert set(metrics) == {"loss", "top1", "top5"}
    assert loss.shape == ()
    assert all(m.shape == () for m in metrics.values())
    np.testing.assert_allclose(loss, numpy_cross_entropy(logits, labels, 0.1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss)
    for k in (1, 5):
        want = top_k_accuracy_score(labels, logits, k=k, labels=range(K))
        np.testing.assert_allclose(metrics[f"top{k}"], want, rtol=1e-6)
    _, metrics = supervised()({"logits": jnp.asarray(logits[:, :3])}, {"label": labels % 3})
    assert metrics["top5"] == 1.0  # of three classes the top five are all


def test_objective_of_mixed_batches():
    logits, first = example(3)
    second = np.roll(first, 1)
    lam = np.linspace(0, 1, B, dtype=np.float32)
    batch = {"label": first, "label2": second, "lam": lam}
    loss, metrics = supervised()({"logits": jnp.asarray(logits)}, batch)
    ce = [numpy_cross_entropy(logits, y, 0.1) for y in (first, second)]
    np.testing.assert_allclose(loss, np.mean(lam * ce[0] + (1 - lam) * ce[1]), rtol=1e-6)
    # The same as one cross-entropy against the mixed soft target.
    soft = lam[:, None] * np.eye(K)[first] + (1 - lam[:, None]) * np.eye(K)[second]
    soft = 0.9 * soft + 0.1 / K
    log_p = logits - logsumexp(logits.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(loss, -(soft * log_p).sum(-1).mean(), rtol=1e-6)
    best = logits.argmax(-1)
    want = np.mean(lam * (best == first) + (1 - lam) * (best == second))
    assert set(metrics) == {"loss", "top1_mixed"}
    np.testing.assert_allclose(metrics["top1_mixed"], want, rtol=1e-6)


def test_auxiliary_heads_add_their_share():
    (main, labels), (aux1, _), (aux2, _) = example(4), example(5), example(6)
    outputs = {"logits": main, "aux1": aux1, "aux2": aux2, "pre_logits": None, "stage1": None}
    loss, metrics = supervised(0.0, 0.3)(outputs, {"label": labels})
    ce = [numpy_cross_entropy(x, labels).mean() for x in (main, aux1, aux2)]
    np.testing.assert_allclose(loss, ce[0] + 0.3 * (ce[1] + ce[2]), rtol=1e-6)
    np.testing.assert_allclose(metrics["top1"], np.mean(main.argmax(-1) == labels), rtol=1e-6)


def test_config_section_fits():
    objectives.supervised(**base.get_config().loss)


@pytest.mark.parametrize(
    ("smoothing", "aux_weight", "message"),
    [
        (1.0, 0.3, r"config\.loss\.label_smoothing = 1\.0"),
        (-0.1, 0.3, r"config\.loss\.label_smoothing = -0\.1"),
        (float("nan"), 0.3, r"config\.loss\.label_smoothing = nan"),
        (0.1, -1.0, r"config\.loss\.aux_weight = -1\.0"),
    ],
)
def test_bad_values(smoothing, aux_weight, message):
    with pytest.raises(ValueError, match=message):
        supervised(smoothing, aux_weight)

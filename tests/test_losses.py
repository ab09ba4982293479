"""Losses, ranks and the supervised objective against float64 NumPy, SciPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import logsumexp
from sklearn.metrics import log_loss, top_k_accuracy_score

from configs import base
from jaxcls import losses, objectives, sharding

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


def several(seed=7):
    """Returns logits, and marks of none to four classes for each image, [B, K]."""
    rng = np.random.default_rng(seed)
    marks = rng.permuted(np.arange(K) < rng.integers(0, 5, (B, 1)), axis=1)
    assert set(marks.sum(1)) == {0, 1, 2, 3, 4}
    return example(seed)[0], marks.astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_that_are_missing_or_several(smoothing):
    """Each class that an image shows has the same share; without any the loss is 0."""
    logits, marks = several()
    want = np.zeros(B)
    for i, classes in enumerate(map(np.flatnonzero, marks)):
        one = [numpy_cross_entropy(logits[i : i + 1], [k], smoothing)[0] for k in classes]
        want[i] = np.mean(one or [0.0])
    got = losses.cross_entropy(logits, marks, smoothing)
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-6)

    labels = np.where(marks.any(1), marks.argmax(1), -1)
    want = np.where(labels >= 0, numpy_cross_entropy(logits, labels, smoothing), 0)
    got = losses.cross_entropy(logits, labels, smoothing)
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-6)
    grad = jax.grad(lambda x: losses.cross_entropy(x, labels, smoothing).sum())(logits)
    assert (np.any(grad, 1) == (labels >= 0)).all()


def test_rank_of_the_best_of_several_labels():
    _, marks = several()
    logits = np.random.default_rng(8).integers(0, 4, (B, K)).astype(np.float32)  # full of ties
    order = np.argsort(-logits, axis=-1, kind="stable")
    places = np.argsort(order, axis=-1)  # of each class
    want = np.where(marks, places, K).min(-1)
    np.testing.assert_array_equal(losses.rank(logits, marks), want)
    labels = np.where(marks.any(1), marks.argmax(1), -1)
    want = np.where(labels >= 0, places[np.arange(B), labels], K)
    np.testing.assert_array_equal(losses.rank(logits, labels), want)


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
@pytest.mark.parametrize("marks", [False, True])
def test_nothing_gathers_over_classes(shape, marks):
    """Of logits whose classes lie on several devices only sums of [B] are exchanged."""
    mesh = sharding.make(data=shape[0], fsdp=shape[1], model=1, fsdp_min_size=0, rules=()).mesh
    rows, cut = (NamedSharding(mesh, PartitionSpec(*a)) for a in (["data"], ["data", "fsdp"]))
    logits, labels = example(9, classes=4096)
    labels = np.eye(4096, dtype=np.int32)[labels] if marks else labels
    operations = {
        "rank": losses.rank,
        "loss": lambda x, y: losses.cross_entropy(x, y, 0.1),
        "gradient": jax.grad(lambda x, y: losses.cross_entropy(x, y, 0.1).mean()),
        "sorted": lambda x, y: jnp.sort(x, axis=-1)[:, :5],  # this one does
    }
    for name, operation in operations.items():
        args = [jax.device_put(logits, cut), jax.device_put(labels, cut if marks else rows)]
        text = jax.jit(operation).lower(*args).compile().as_text()
        moved = [s for s in ("all-gather", "all-to-all", "collective-permute") if s in text]
        assert bool(moved) == (name == "sorted"), (name, moved)
        np.testing.assert_allclose(
            jax.jit(operation)(*args), operation(logits, labels), rtol=1e-5, atol=1e-8
        )


def supervised(smoothing=0.1, aux_weight=0.3, outputs=("logits", "aux1", "aux2")):
    """Returns the loss of `config.loss` for a network with these outputs."""
    config = base.get_config()
    config.loss.update(label_smoothing=smoothing, aux_weight=aux_weight)
    return objectives.make(**config.loss, outputs=dict.fromkeys(outputs)).loss


def test_objective_of_plain_batches():
    logits, labels = example()
    plain = supervised(outputs=["logits"])
    loss, metrics = jax.jit(lambda x, y: plain({"logits": x}, {"label": y}))(logits, labels)
    assert set(metrics) == {"loss", "top1", "top5"}
    assert loss.shape == ()
    assert all(m.shape == () for m in metrics.values())
    np.testing.assert_allclose(loss, numpy_cross_entropy(logits, labels, 0.1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss)
    for k in (1, 5):
        want = top_k_accuracy_score(labels, logits, k=k, labels=range(K))
        np.testing.assert_allclose(metrics[f"top{k}"], want, rtol=1e-6)
    _, metrics = plain({"logits": jnp.asarray(logits[:, :3])}, {"label": labels % 3})
    assert metrics["top5"] == 1.0  # of three classes the top five are all


def test_objective_of_mixed_batches():
    logits, first = example(3)
    second = np.roll(first, 1)
    lam = np.linspace(0, 1, B, dtype=np.float32)
    batch = {"label": first, "label2": second, "lam": lam}
    loss, metrics = supervised(outputs=["logits"])({"logits": jnp.asarray(logits)}, batch)
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


@pytest.mark.parametrize("mixed", [False, True])
def test_images_without_a_label_do_not_count(mixed):
    (logits, labels), (aux1, second) = example(10), example(11)
    batch = {"label": labels.copy()}
    if mixed:
        batch |= {"label2": second.copy(), "lam": np.linspace(0, 1, B, dtype=np.float32)}
    some = np.arange(B) % 3 != 1
    known = {key: value[some] for key, value in batch.items()}
    for key in batch.keys() - {"lam"}:
        batch[key][~some] = -1
    loss = supervised(outputs=["logits", "aux1"])
    got = loss({"logits": jnp.asarray(logits), "aux1": jnp.asarray(aux1)}, batch)
    want = loss({"logits": jnp.asarray(logits[some]), "aux1": jnp.asarray(aux1[some])}, known)
    assert 0 < want[1]["top1_mixed" if mixed else "top1"] < 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    nothing = {key: jnp.full(B, -1) for key in ("label", "label2")} | {"lam": jnp.ones(B)}
    assert loss({"logits": jnp.asarray(logits), "aux1": jnp.asarray(aux1)}, nothing)[0] == 0


def test_auxiliary_heads_add_their_share():
    (main, labels), (aux1, _), (aux2, _) = example(4), example(5), example(6)
    outputs = {"logits": main, "aux1": aux1, "aux2": aux2, "pre_logits": None, "stage1": None}
    loss, metrics = supervised(0.0, 0.3)(outputs, {"label": labels})
    ce = [numpy_cross_entropy(x, labels).mean() for x in (main, aux1, aux2)]
    np.testing.assert_allclose(loss, ce[0] + 0.3 * (ce[1] + ce[2]), rtol=1e-6)
    np.testing.assert_allclose(metrics["top1"], np.mean(main.argmax(-1) == labels), rtol=1e-6)


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

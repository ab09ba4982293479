"""Weights of uneven classes, and the losses that they are for, against float64 NumPy."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import expit, log_expit, log_softmax

from configs import base
from jaxcls import balance, losses, objectives, sharding, train

COUNTS = np.array([500.0, 90.0, 8.0, 2.0])
NAMES = ("dog", "cat", "owl", "newt")
B, K = 48, len(COUNTS)
ORACLE = Path(__file__).parents[2] / "shared" / "oracle" / "losses.json"


def classes(counts=COUNTS, size=K):
    return balance.Classes(NAMES, lambda: (np.asarray(counts, float), 600.0), size)


def example(seed=0):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((B, K)).astype(np.float32), rng.integers(0, K, B)


def mixed(seed=0):
    """Returns a batch of mixed labels, some of them missing, and their soft targets [B, K]."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(-1, K, (2, B))
    lam = rng.random(B, np.float32)
    batch = {"label": jnp.array(first), "label2": jnp.array(second), "lam": jnp.array(lam)}
    one = lambda y: np.eye(K + 1)[y][:, :K]
    return batch, (lam[:, None] * one(first), (1 - lam[:, None]) * one(second))


def objective(name="supervised", counts=COUNTS, **keys):
    """Returns the loss of (logits, batch) that `config.loss` with these keys stands for."""
    config = base.get_config()
    config.loss.update({"name": name} | keys)
    outputs = {"logits": jax.ShapeDtypeStruct((B, K), jnp.float32)}
    given = {"class_names": NAMES, "class_counts": classes(counts).counts}
    made = objectives.make(**config.loss, outputs=outputs, **given)
    return jax.jit(lambda logits, batch: made.loss({"logits": logits}, batch)[0])


def gradients_agree(f, x, within=1e-5):
    """Compares the gradient of f: float32 [B, K] -> scalar with finite differences in float64."""
    with jax.enable_x64(True):
        x, f = jnp.asarray(x, jnp.float64), jax.jit(f)
        got = np.asarray(jax.jit(jax.grad(f))(x))
        rng = np.random.default_rng(0)
        for _ in range(4):
            d = jnp.asarray(rng.standard_normal(x.shape))
            want = (f(x + 1e-6 * d) - f(x - 1e-6 * d)) / 2e-6
            np.testing.assert_allclose((got * d).sum(), want, rtol=within, atol=1e-8)


# -- Weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "beta", "unscaled"),
    [
        (("inverse",), 0.999, 1 / COUNTS),
        (("effective",), 0.99, 0.01 / (1 - 0.99**COUNTS)),
        (("effective",), 0.0, np.ones(K)),
        (("auto",), 0.999, 1 / (1 - (1 - 1 / 150) ** COUNTS)),
        ((1, 2.0, 3.0, 0.5), 0.999, np.array([1, 2, 3, 0.5])),
        ((("owl", 5.0), ("newt", 7)), 0.999, np.array([1, 1, 5, 7])),
    ],
)
def test_class_weights_are_their_formulas_with_a_mean_of_one(given, beta, unscaled):
    got = balance.class_weights(given, beta, classes(size=K + 2))
    np.testing.assert_allclose(got[:K] / got[0], unscaled / unscaled[0], rtol=1e-12)
    np.testing.assert_allclose(COUNTS @ got[:K], COUNTS.sum())
    assert got[K:].tolist() == [1, 1]


def test_beta_near_one_is_the_inverse():
    near = balance.class_weights(("effective",), 1 - 1e-15, classes())
    np.testing.assert_allclose(near, balance.class_weights(("inverse",), 0.0, classes()), rtol=1e-9)


def test_weights_of_positives():
    got = balance.pos_weights(("balanced",), classes())
    np.testing.assert_allclose(got, (600 - COUNTS) / COUNTS)
    np.testing.assert_allclose(balance.pos_weights((1.0, 2.0, 3.0, 4.0), classes()), [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("class_weights", ("invers",), r'class_weights = \(\'invers\',\): write \("inverse",\)'),
        ("class_weights", (1.0, 2.0), "has 2 numbers, the data 4 classes"),
        ("class_weights", (1.0, 1.0, 1.0, 0.0), "a number above 0 for each class"),
        ("class_weights", (1.0, 1.0, 1.0, float("inf")), "a number above 0 for each class"),
        ("class_weights", (("cat", 1e39),), "pairs such as"),
        ("class_weights", (("cot", 2.0),), "there is no class 'cot': did you mean cat?"),
        ("class_weights", (("cat", 2.0), ("cat", 3.0)), "a class is there twice"),
        ("class_weights", ("cat", 2.0), "pairs such as"),
        ("effective_beta", 1.0, "config.loss.effective_beta = 1.0: write 0.0 to below 1"),
        ("effective_beta", 0.9, "does nothing without --config.loss.class_weights=effective"),
        ("focal_gamma", -1.0, "config.loss.focal_gamma = -1.0"),
        ("focal_gamma", float("nan"), "config.loss.focal_gamma = nan"),
        ("logit_adjustment", -0.5, "config.loss.logit_adjustment = -0.5"),
        ("pos_weights", ("balanced",), "pos_weights: not used by 'supervised'"),
    ],
)
def test_bad_values(key, value, message):
    with pytest.raises(ValueError, match=message):
        objective(**{key: value})


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("bce", "label_smoothing", 1.0, "config.loss.label_smoothing = 1.0"),
        ("bce", "target_threshold", 1.1, "config.loss.target_threshold = 1.1"),
        ("bce", "class_weights", ("inverse",), "class_weights: not used by 'bce', which takes"),
        ("bce", "logit_adjustment", 1.0, "logit_adjustment: not used by 'bce'"),
        ("bce", "pos_weights", ("inverse",), r'write \("balanced",\), a number'),
        ("asymmetric", "gamma_pos", -1.0, "config.loss.gamma_pos = -1.0"),
        ("asymmetric", "gamma_neg", -0.1, "config.loss.gamma_neg = -0.1"),
        ("asymmetric", "clip", 1.0, "config.loss.clip = 1.0: write a probability"),
        ("asymmetric", "focal_gamma", 2.0, "focal_gamma: not used by 'asymmetric'"),
    ],
)
def test_bad_values_of_binary_losses(name, key, value, message):
    with pytest.raises(ValueError, match=message):
        objective(name, **{key: value})


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("supervised", {"class_weights": ("auto",)}),
        ("supervised", {"logit_adjustment": 1.0}),
        ("bce", {"pos_weights": ("balanced",)}),
    ],
)
def test_a_class_without_images_is_named(name, keys):
    with pytest.raises(ValueError, match="no training image shows the class 'owl': give it images"):
        objective(name, counts=[5, 5, 0, 5], **keys)
    objective(counts=[5, 5, 0, 5], class_weights=(("owl", 3.0),))


def test_what_balances_twice_is_refused():
    with pytest.raises(ValueError, match="logit_adjustment = 1.0 does nothing: with"):
        objective(class_weights=("inverse",), logit_adjustment=1.0)
    with pytest.raises(
        ValueError, match="the network has 6 .config.model.num_classes., the data 4"
    ):
        balance.log_prior(None, classes(size=6))


def test_counting_waits_until_it_is_needed():
    config = base.get_config()
    count = lambda: pytest.fail("counted")
    objectives.make(**config.loss, outputs={}, class_names=NAMES, class_counts=count)


# -- Softmax ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("smoothing", "weights", "gamma", "tau"),
    [
        (0.0, ("effective",), 0.0, 0.0),
        (0.0, (), 0.5, 0.0),
        (0.0, (), 0.0, 1.5),
        (0.1, (), 2.0, 0.0),
        (0.1, ("auto",), 2.0, 1.0),
    ],
)
def test_the_supervised_loss_is_its_formula(smoothing, weights, gamma, tau):
    """Of mixed batches: plain ones are those with lam = 1."""
    keys = {"label_smoothing": smoothing, "focal_gamma": gamma, "logit_adjustment": tau}
    loss = objective(class_weights=weights, **keys)
    logits, _ = example()
    w = balance.class_weights(weights, 0.999, classes()) if weights else np.ones(K)
    prior = COUNTS * w / (COUNTS @ w)
    log_p = log_softmax(logits + tau * np.log(prior), axis=-1)
    log_p *= (1 - np.exp(log_p)) ** gamma

    def want(targets, labelled):
        values = 0
        for q in targets:  # smoothed and weighted each
            whole = q.sum(-1, keepdims=True)
            smooth = (1 - smoothing) * q + smoothing / K * whole
            values -= (q @ w / np.maximum(whole[:, 0], 1e-9)) * (smooth * log_p).sum(-1)
        return values.sum() / labelled.sum()

    batch, targets = mixed()
    labelled = (np.asarray(batch["label"]) >= 0) | (np.asarray(batch["label2"]) >= 0)
    np.testing.assert_allclose(loss(logits, batch), want(targets, labelled), rtol=1e-5)
    gradients_agree(lambda x: loss(x, batch), logits)
    plain = {"label": batch["label"]}
    target = np.eye(K + 1)[np.asarray(batch["label"])][:, :K]
    known = np.asarray(batch["label"]) >= 0
    np.testing.assert_allclose(loss(logits, plain), want([target], known), rtol=1e-5)


def test_focal_loss_of_torch():
    """Two classes with logits (0, z) have sigmoid(z).

    Recorded: (1 - p_t)^2 times torch 2.13's binary_cross_entropy_with_logits, in float64.
    """
    z = np.array([-3.0, -0.5, 0.0, 1.0, 4.0], np.float32)
    y = np.array([1, 0, 1, 1, 0])
    want = [2.766280441, 0.0675734905, 0.1732867951, 0.0226580575, 3.8749072380]
    logits = np.stack([np.zeros(5, np.float32), z], -1)
    np.testing.assert_allclose(losses.cross_entropy(logits, y, focal_gamma=2.0), want, rtol=1e-5)
    there = y[:, None].astype(np.float32)
    got = losses.binary_cross_entropy(z[:, None], there, 1 - there, gamma_pos=2.0, gamma_neg=2.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_has_gradients_where_the_answer_is_sure(gamma):
    logits = jnp.array([[200.0, 0.0], [-200.0, 0.0], [0.0, -jnp.inf], [0.0, 0.0]])
    f = lambda x: losses.cross_entropy(x, jnp.zeros(4, int), focal_gamma=gamma).sum()
    value, grad = jax.jit(jax.value_and_grad(f))(logits)
    np.testing.assert_allclose(value, 200 + np.log(2) / 2**gamma, rtol=1e-5)
    assert np.isfinite(grad[:, 0]).all()
    np.testing.assert_allclose(grad[:3, 0], [0, -1, 0], atol=1e-5)


def test_micro_batches_count_alike():
    """No sum of weights divides: the mean of two halves is the whole."""
    loss = objective(class_weights=("inverse",), label_smoothing=0.1)
    logits, labels = example()
    halves = [loss(logits[rows], {"label": labels[rows]}) for rows in (slice(24), slice(24, 48))]
    np.testing.assert_allclose(np.mean(halves), loss(logits, {"label": labels}), rtol=1e-5)


@pytest.mark.ci
def test_a_program_counts_the_training_images():
    """Of digits there are unequally many; the weighted step goes through on all devices."""
    config = runs.tiny("plain")
    config.loss.update({"class_weights": ("auto",), "logit_adjustment": 1.0, "focal_gamma": 1.0})
    config.optim.accumulate_steps = 2
    state, train_step, _ = train.setup(config)
    size = config.image.size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (config.batch_size, size, size, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, config.batch_size).astype(np.int32),
    }
    _, metrics = train_step(state, batch)
    assert bool(metrics["finite"])
    config.loss.class_weights = (("11", 2.0),)
    with pytest.raises(ValueError, match="config.loss.class_weights: there is no class '11'"):
        train.setup(config)


def test_adjustment_is_for_training_only():
    logits, labels = example()
    batch = {"label": jnp.array(labels)}
    config = base.get_config()
    config.loss.logit_adjustment = 1.0
    outputs = {"logits": jnp.asarray(logits)}
    made = objectives.make(
        **config.loss, outputs=outputs, class_names=NAMES, class_counts=classes().counts
    )
    _, metrics = made.loss(outputs, batch)
    np.testing.assert_allclose(metrics["top1"], (logits.argmax(-1) == labels).mean(), rtol=1e-6)
    of_each = objectives.per_image(outputs, batch)
    want = -log_softmax(logits, axis=-1)[np.arange(B), labels]
    np.testing.assert_allclose(of_each["loss"], want, rtol=1e-5)


# -- A binary loss for each class ------------------------------------------------------------------


def several(seed=1):
    """Returns marks [B, K]: none to all, soft ones, some unknown, images without a label."""
    rng = np.random.default_rng(seed)
    marks = (rng.random((B, K)) < 0.4).astype(np.float32)
    marks[:4] = 0
    marks[4:8] = -1
    marks[8:12, :2] = rng.random((4, 2))
    marks[12, 1] = -1
    return marks


def numpy_binary(logits, there, absent, gamma_pos=0.0, gamma_neg=0.0, clip=0.0):
    z = np.asarray(logits, np.float64)
    p = expit(z)
    m = np.maximum(p - clip, 0)
    log_not = np.log(1 - m) if clip else log_expit(-z)
    return -(there * (1 - p) ** gamma_pos * log_expit(z) + absent * m**gamma_neg * log_not).sum(-1)


def test_binary_cross_entropy_is_its_formula():
    logits, marks = example()[0], several()
    known = marks >= 0
    labelled = known.any(1).sum()
    there = np.where(known, marks, 0).astype(np.float64)
    want = numpy_binary(logits, there, known - there).sum() / labelled
    np.testing.assert_allclose(objective("bce")(logits, {"label": marks}), want, rtol=1e-6)
    of_each = objectives.per_image({"logits": jnp.asarray(logits)}, {"label": jnp.asarray(marks)})
    assert of_each.keys() == {"loss"}
    np.testing.assert_allclose(np.sum(of_each["loss"]) / labelled, want, rtol=1e-6)

    smooth, weights = 0.9 * there + 0.1 / K * known, (600 - COUNTS) / COUNTS
    keys = {"label_smoothing": 0.1, "pos_weights": ("balanced",)}
    want = numpy_binary(logits, smooth * weights, known - smooth).sum() / labelled
    got = objective("bce", **keys)
    np.testing.assert_allclose(got(logits, {"label": marks}), want, rtol=1e-6)
    gradients_agree(lambda x: got(x, {"label": marks}), logits)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize(("gamma_pos", "gamma_neg"), [(0.0, 4.0), (1.0, 4.0), (0.5, 0.5)])
def test_asymmetric_loss_is_its_formula(gamma_pos, gamma_neg, clip):
    keys = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "clip": clip}
    logits, marks = example(2)[0], several(3)
    known = marks >= 0
    there = np.where(known, marks, 0).astype(np.float64)
    want = numpy_binary(logits, there, known - there, **keys).sum() / known.any(1).sum()
    for whole in (False, True):
        loss = objective("asymmetric", **keys, focus_gradient=whole)
        np.testing.assert_allclose(loss(logits, {"label": marks}), want, rtol=2e-5)
    gradients_agree(lambda x: loss(x, {"label": marks}), logits)


def test_labels_of_one_class_and_mixed_ones_have_marks():
    batch, (first, second) = mixed(4)
    logits, labels = example(5)[0], np.asarray(batch["label"])
    labelled = (labels >= 0) | (np.asarray(batch["label2"]) >= 0)
    # a share whose class is not known has neither
    there = first + second
    absent = there.sum(-1, keepdims=True) - there
    want = numpy_binary(logits, there, absent).sum() / labelled.sum()
    np.testing.assert_allclose(objective("bce")(logits, batch), want, rtol=1e-6)
    plain = objective("asymmetric")(logits, {"label": batch["label"]})
    one = np.eye(K + 1)[labels][:, :K]
    absent = (labels >= 0)[:, None] - one
    want = numpy_binary(logits, one, absent, 1.0, 4.0, 0.05).sum() / (labels >= 0).sum()
    np.testing.assert_allclose(plain, want, rtol=1e-5)

    # "ResNet strikes back": what is there to a fifth is there
    both = (labels >= 0) & (np.asarray(batch["label2"]) >= 0)
    some = {key: value[both] for key, value in batch.items()}
    there = ((first + second)[both] >= 0.2).astype(float)
    assert {1.0, 2.0} == set(there.sum(-1))
    want = numpy_binary(logits[both], there, 1 - there).mean()
    got = objective("bce", target_threshold=0.2)(logits[both], some)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_training_reports_what_means_something():
    logits, marks = example(6)[0], several(7)
    config = base.get_config()
    config.loss.name = "bce"
    outputs = {"logits": jnp.asarray(logits)}
    made = objectives.make(**config.loss, outputs=outputs)
    _, metrics = made.loss(outputs, {"label": jnp.asarray(np.where(marks > 0, 1, marks))})
    known, there, said = marks >= 0, marks > 0, logits >= 0
    right, wrong = (said & there).sum(), (said & known & ~there).sum()
    assert metrics.keys() == {"loss", "micro_f1"}
    f1 = 2 * right / (2 * right + wrong + (there & ~said).sum())
    np.testing.assert_allclose(metrics["micro_f1"], f1, rtol=1e-6)
    _, metrics = made.loss(outputs, {"label": jnp.array(example()[1])})
    assert metrics.keys() == {"loss", "top1", "top5"}
    shares = {"label": marks, "label2": marks, "lam": jnp.ones(B)}
    assert made.loss(outputs, shares)[1].keys() == {"loss"}


def test_classes_that_the_data_does_not_have_are_left_alone():
    logits, marks = example(8)[0], several(9)
    wide = jnp.pad(logits, ((0, 0), (0, 2)), constant_values=5.0)
    of = lambda x: objectives.per_image({"logits": x}, {"label": jnp.asarray(marks)})["loss"]
    np.testing.assert_allclose(of(wide), of(jnp.asarray(logits)), rtol=1e-6)


RECORDED = {  # PaddleClas's, as in the file: (value, root mean square, first three of the gradient)
    "multi-label bce": (
        1.4159443378448486,
        (0.0040079395, -0.002542529, 0.0025137381, 0.0054517486),
    ),
    "multi-label asymmetric gamma 1 4 clip 0.05, sum": (
        108.40110778808594,
        (0.28096975, -0.16548999, 0.0057108793, 0.28658736),
    ),
}


def agrees_with_paddleclas(row):
    seed, size = row["seed"], row["K"]
    rng = lambda i: np.random.default_rng(1000 * seed + i)
    logits = (3 * rng(0).standard_normal((16, size))).astype(np.float32)
    marks = (rng(3).random((16, size)) < 0.2).astype(np.float32)
    name, scale = ("bce", 1 / size) if "bce" in row["loss"] else ("asymmetric", 16)
    loss = objective(name)
    f = lambda x: scale * loss(x, {"label": jnp.asarray(marks)})
    value, grad = jax.value_and_grad(f)(jnp.asarray(logits))
    got = [np.sqrt(np.mean(np.float64(grad) ** 2)), *np.ravel(grad)[:3]]
    np.testing.assert_allclose(value, row["value"], rtol=1e-5)
    np.testing.assert_allclose(got, row["gradient"], rtol=1e-5)


@pytest.mark.parametrize("name", RECORDED)
def test_paddleclas_has_the_same(name):
    value, gradient = RECORDED[name]
    agrees_with_paddleclas({"loss": name, "seed": 0, "K": 10, "value": value, "gradient": gradient})


def test_paddleclas_has_the_same_of_all_that_was_computed():
    if not ORACLE.is_file():
        pytest.skip("no reference data")
    rows = [row for row in json.loads(ORACLE.read_text()) if row["loss"].startswith("multi-label")]
    assert len(rows) == 8
    for row in rows:
        agrees_with_paddleclas(row)


# -- Devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [False, True])
def test_nothing_gathers_over_classes(marks):
    """Neither weights nor priors, of logits whose classes lie on several devices."""
    mesh = sharding.make(data=2, fsdp=4, model=1, fsdp_min_size=0, rules=()).mesh
    rows, cut = (NamedSharding(mesh, PartitionSpec(*a)) for a in (["data"], ["data", "fsdp"]))
    size, rng = 4096, np.random.default_rng(0)
    config = base.get_config()
    config.loss.update({"name": "asymmetric"} if marks else {"class_weights": ("effective",)})
    if not marks:
        config.loss.update({"logit_adjustment": 1.0, "focal_gamma": 2.0, "label_smoothing": 0.1})
    counts = lambda: (1.0 + np.arange(size), 1e6)
    outputs = {"logits": jax.ShapeDtypeStruct((16, size), jnp.float32)}
    made = objectives.make(
        **config.loss, outputs=outputs, class_names=[*map(str, range(size))], class_counts=counts
    )
    hard = lambda x, y: made.loss({"logits": x}, {"label": y})[0]
    logits = rng.standard_normal((16, size)).astype(np.float32)
    labels = rng.integers(0, size, 16).astype(np.int32)
    labels = np.eye(size, dtype=np.float32)[labels] if marks else labels
    args = [jax.device_put(logits, cut), jax.device_put(labels, cut if marks else rows)]
    f = jax.jit(jax.value_and_grad(hard))
    text = f.lower(*args).compile().as_text()
    assert not [s for s in ("all-gather", "all-to-all", "collective-permute") if s in text]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
        f(*args),
        jax.value_and_grad(hard)(logits, labels),
    )

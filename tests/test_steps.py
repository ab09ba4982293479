"""Parts of the train step: the moving average, accumulation, and the keys of a seed."""

import contextlib
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from jaxcls import averages, evaluate, objectives, precision, steps
from jaxcls.keys import first_keys, keys_of
from jaxcls.models.layers import BatchNorm, Conv
from jaxcls.models.spec import Ctx


class Scale(nn.Module):
    """Its gradient is the mean of its inputs, whatever its parameters are."""

    @nn.compact
    def __call__(self, x, train=True):
        w = self.param("w", lambda key: 1 + jax.random.uniform(key, (50,)))
        return {"logits": x.mean((0, 1, 2)) * w}


@pytest.mark.parametrize("ramp", [False, True])
def test_the_moving_average_is_that_of_float64(ramp):
    count, decay = 3000, 0.9999
    average = averages.make(decay=decay, ramp=ramp)
    model, tx = Scale(), optax.with_extra_args_support(optax.sgd(1.0))
    train_step = steps.make_train_step(
        model,
        tx,
        objectives.Objective(lambda outputs, batch, aux: (outputs["logits"].sum(), {})),
        prepare=lambda keys, batch, step: batch,
        learning_rate=lambda step: 1.0,
        average=average,
    )
    scale = precision.make(**runs.tiny("plain").precision, platform="cpu").initial_loss_scale()
    state = steps.init_state(model, tx, scale, (1, 1, 50), seed=0, average=average)
    images = np.random.default_rng(0).normal(0, 1e-3, (count, 1, 1, 1, 50)).astype(np.float32)

    def body(state, image):
        state, _ = train_step(state, {"image": image, "label": jnp.zeros(1, jnp.int32)})
        return state, state.params["w"]

    want = np.asarray(state.params["w"], np.float64)
    state, params = jax.jit(lambda state: jax.lax.scan(body, state, images))(state)
    for t, w in enumerate(np.asarray(params, np.float64)):
        d = min(decay, (1 + t) / (10 + t)) if ramp else decay
        want = d * want + (1 - d) * w
    np.testing.assert_allclose(state.averages["ema"]["params"]["w"], want, rtol=3e-6)


class Normalised(nn.Module):
    """Two BatchNorms, the second of what the first and a convolution make of the images."""

    c: Ctx = Ctx(bn_group=3)

    @nn.compact
    def __call__(self, x, train=False):
        c = self.c.replace(train=train)
        x = Conv(c, 4, name="conv")(BatchNorm(c, name="bn1")(x))
        return {"logits": BatchNorm(c, name="bn2")(x).mean((1, 2))}


def test_statistics_of_batchnorm_are_estimated_anew():
    """The mean over batches of each batch's own, over groups of 3 images, as in float64."""
    batches = np.random.default_rng(0).normal(3, 2, (5, 6, 4, 4, 2)).astype(np.float32)
    model = Normalised()
    variables = jax.device_get(model.init(jax.random.key(0), batches[0]))
    kernel = variables["params"]["conv"]["kernel"][0, 0].astype(np.float64)
    stale = jax.tree.map(lambda x: x + 100, variables["batch_stats"])
    step, stats = jax.jit(averages.make_statistics_step(model)), stale
    want = {"bn1": {"mean": [], "var": []}, "bn2": {"mean": [], "var": []}}
    for n, batch in enumerate(batches):
        stats = step({"params": variables["params"], "batch_stats": stats}, {"image": batch}, n)
        for group in batch.astype(np.float64).reshape(2, -1, 2):
            mean, var = group.mean(0), group.var(0)
            features = (group - mean) / np.sqrt(var + 1e-5) @ kernel
            for name, x in (("bn1", group), ("bn2", features)):
                want[name]["mean"].append(x.mean(0))
                want[name]["var"].append(x.var(0))
        for name, of_name in want.items():
            for kind, values in of_name.items():
                np.testing.assert_allclose(stats[name][kind], np.mean(values, 0), atol=2e-5)
    step = averages.make_statistics_step(model, frozen=["^bn1/"])  # it stands still
    after = step({"params": variables["params"], "batch_stats": stale}, {"image": batch}, 0)
    jax.tree.map(np.testing.assert_array_equal, after["bn1"], stale["bn1"])
    normalised = (batch.reshape(2, -1, 2) - stale["bn1"]["mean"]) / 101**0.5 @ kernel
    np.testing.assert_allclose(after["bn2"]["mean"], normalised.mean((0, 1)), rtol=1e-4)


class Softmax(nn.Module):
    """Softmax regression."""

    @nn.compact
    def __call__(self, x, train=True):
        return {"logits": x.reshape(len(x), -1) @ self.param("w", nn.initializers.normal(), (6, 5))}


@pytest.mark.parametrize("name", ["float32", "float16"])  # with a loss scale, too
@pytest.mark.parametrize("k", [1, 2, 8])
def test_accumulation_is_the_large_batch(k, name):
    tx = optax.with_extra_args_support(optax.sgd(1.0))
    train_step = steps.make_train_step(
        Softmax(),
        tx,
        objectives.make(**runs.tiny("plain").loss, outputs={}),
        prepare=lambda keys, batch, step: batch,
        learning_rate=lambda step: 1.0,
        accumulate_steps=k,
    )
    config = runs.tiny("plain").precision
    config.name = name
    scale = precision.make(**config, platform="cpu").initial_loss_scale()
    assert (scale.scale == 1) == (name == "float32")
    state = steps.init_state(Softmax(), tx, scale, (1, 2, 3), seed=0)
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(16, 1, 2, 3)).astype(np.float32), rng.integers(0, 5, 16)
    before = np.asarray(state.params["w"], np.float64)
    state, metrics = jax.jit(train_step)(state, {"image": x, "label": label})

    # in float64: p - onehot, times the features, is the gradient
    features = x.reshape(16, 6).astype(np.float64)
    p = np.exp(features @ before)
    p /= p.sum(1, keepdims=True)
    gradient = features.T @ (p - np.eye(5)[label]) / 16
    np.testing.assert_allclose(before - state.params["w"], gradient, atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], -np.log(p[range(16), label]).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["top1"], (p.argmax(1) == label).mean(), rtol=1e-6)


def test_every_64_bit_seed_is_another_one():
    def first(seed):
        scale = precision.make(**runs.tiny("plain").precision, platform="cpu").initial_loss_scale()
        tx = optax.with_extra_args_support(optax.sgd(1.0))
        state = steps.init_state(Scale(), tx, scale, (1, 1, 50), seed=seed)
        return np.asarray(state.rng).tobytes(), np.asarray(state.params["w"]).tobytes()

    small = (0, 1, 2**31, 2**32 - 1)
    seeds = (*small, 2**32, 2**32 + 1, 2**33, 2**63 - 1, 2**63, 2**64 - 1)
    firsts = [first(seed) for seed in seeds]
    for things in zip(*firsts):
        assert len(set(things)) == len(seeds)
    for seed, (run_key, _) in zip(small, firsts):  # what JAX makes of it
        key = jax.random.split(jax.random.key(seed))[1]
        assert np.asarray(jax.random.key_data(key)).tobytes() == run_key


@pytest.mark.parametrize("k", [1, 8])
def test_no_key_of_a_run_is_used_twice(k):
    init_key, run = first_keys(3)
    of_step = jax.vmap(lambda s, j: keys_of(run, s, j if k > 1 else None), (None, 0))
    keys = jax.jit(jax.vmap(of_step, (0, None)))(jnp.arange(50), jnp.arange(k))
    all_keys = [init_key, jax.random.wrap_key_data(run), *jax.tree.leaves(keys)]
    words = np.concatenate([jax.random.key_data(key).reshape(-1, 2) for key in all_keys])
    assert len(words) == len(np.unique(words, axis=0)) == 2 + 4 * 50 * k
    # seed, step and number say all
    again = keys_of(first_keys(3)[1], 7, k - 1 if k > 1 else None)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a == b[7, k - 1], again, keys)))


def test_an_evaluation_without_a_label_is_refused():
    class Batches(list):
        bad_images, know_bad_images = {}, staticmethod(list)

    batches = lambda batch_size: contextlib.nullcontext(Batches([{}]))
    feed = types.SimpleNamespace(source=[], eval_batches=batches, put=dict)
    with pytest.raises(ValueError, match="none of the evaluation images has a label"):
        evaluate.evaluate(lambda v, b: {"loss": 0.0, "count": 0}, feed, {}, batch_size=2)

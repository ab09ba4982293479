"""Parts of the train step: the moving average, accumulation, and the keys of a seed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from jaxcls import objectives, precision, steps


class Scale(nn.Module):
    """Its gradient is the mean of its inputs, whatever its parameters are."""

    @nn.compact
    def __call__(self, x, train=True):
        w = self.param("w", lambda key: 1 + jax.random.uniform(key, (50,)))
        return {"logits": x.mean((0, 1, 2)) * w}


@pytest.mark.parametrize("ramp", [False, True])
def test_the_moving_average_is_that_of_float64(ramp):
    count, decay = 3000, 0.9999
    model, tx = Scale(), optax.with_extra_args_support(optax.sgd(1.0))
    train_step = steps.make_train_step(
        model,
        tx,
        lambda outputs, batch: (outputs["logits"].sum(), {}),
        prepare=lambda rng, batch, step: batch,
        learning_rate=lambda step: 1.0,
        ema_decay=decay,
        ema_ramp=ramp,
    )
    scale = precision.make(**runs.tiny("plain").precision, platform="cpu").initial_loss_scale()
    state = steps.init_state(model, tx, scale, (1, 1, 50), seed=0, ema=True)
    images = np.random.default_rng(0).normal(0, 1e-3, (count, 1, 1, 1, 50)).astype(np.float32)

    def body(state, image):
        state, _ = train_step(state, {"image": image, "label": jnp.zeros(1, jnp.int32)})
        return state, state.params["w"]

    average = np.asarray(state.params["w"], np.float64)
    state, params = jax.jit(lambda state: jax.lax.scan(body, state, images))(state)
    for t, w in enumerate(np.asarray(params, np.float64)):
        d = min(decay, (1 + t) / (10 + t)) if ramp else decay
        average = d * average + (1 - d) * w
    np.testing.assert_allclose(state.ema["params"]["w"], average, rtol=3e-6)


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
        objectives.supervised(label_smoothing=0.0, aux_weight=0.0),
        prepare=lambda rng, batch, step: batch,
        learning_rate=lambda step: 1.0,
        accumulate_steps=k,
    )
    config = runs.tiny("plain").precision
    config.name = name
    scale = precision.make(**config, platform="cpu").initial_loss_scale()
    assert (scale.scale == 1) == (name == "float32")
    state = steps.init_state(Softmax(), tx, scale, (1, 2, 3), seed=0, ema=False)
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
        state = steps.init_state(Scale(), tx, scale, (1, 1, 50), seed=seed, ema=False)
        return np.asarray(state.rng).tobytes(), np.asarray(state.params["w"]).tobytes()

    small = (0, 1, 2**31, 2**32 - 1)
    seeds = (*small, 2**32, 2**32 + 1, 2**33, 2**63 - 1, 2**63, 2**64 - 1)
    firsts = [first(seed) for seed in seeds]
    for things in zip(*firsts):
        assert len(set(things)) == len(seeds)
    for seed, (run_key, _) in zip(small, firsts):  # what JAX makes of it
        key = jax.random.split(jax.random.key(seed))[1]
        assert np.asarray(jax.random.key_data(key)).tobytes() == run_key

"""Stochastic weight averaging: an equal mean of steps, with statistics of its own."""

import json
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from jaxcls import averages, choices, network, objectives, precision, program, steps, train, weights
from jaxcls.data.feed import Feed
from jaxcls.models.layers import BatchNorm
from jaxcls.models.spec import Ctx
from jaxcls.trees import EXTRA

LENGTHS = {"total_steps": 40, "batch_size": 10, "steps_per_epoch": 7}


def counted(**keys):
    """Returns which of the steps of a run count, the first being 1."""
    averaged = averages.stochastic(**{"every": "1 epochs"} | keys, **LENGTHS)
    return [s + 1 for s in range(40) if averaged["swa"](np.int32(s))]


def test_which_steps_count():
    assert averages.stochastic(start="", every="1 epochs", **LENGTHS) == {}
    assert counted(start="3 epochs") == [21, 28, 35]
    assert counted(start="1 steps", every="13 steps") == [1, 14, 27, 40]
    assert counted(start="40 steps") == [40]
    with pytest.raises(ValueError, match="swa.start = '6 epochs' is step 42, the whole run is 40"):
        counted(start="6 epochs")
    with pytest.raises(ValueError, match="swa.start = '0 epochs': write a duration of at least"):
        counted(start="0 epochs")
    with pytest.raises(ValueError, match="swa.every = '': write a duration of at least one step"):
        counted(start="3 epochs", every="")


class Scale(nn.Module):
    """Its gradient is the mean of its inputs, whatever its parameters are."""

    @nn.compact
    def __call__(self, x, train=True):
        w = self.param("w", lambda key: 1 + jax.random.uniform(key, (50,)))
        return {"logits": x.mean((0, 1, 2)) * w}


def test_the_mean_is_that_of_float64_and_skipped_steps_have_no_part_in_it():
    model, tx = Scale(), optax.with_extra_args_support(optax.sgd(1.0))
    average = averages.make(decay=0.9, ramp=False)
    average |= averages.stochastic(start="2 epochs", every="3 steps", **LENGTHS)
    train_step = jax.jit(
        steps.make_train_step(
            model,
            tx,
            objectives.Objective(lambda outputs, batch, aux: (outputs["logits"].sum(), {}), None),
            prepare=lambda keys, batch, step: batch,
            learning_rate=lambda step: 1.0,
            average=average,
        )
    )
    scale = precision.make(**runs.tiny("plain").precision, platform="cpu").initial_loss_scale()
    state = steps.init_state(model, tx, scale, (1, 1, 50), seed=0, average=average)
    rng, of = np.random.default_rng(0), []
    for number in range(1, 41):
        image = rng.normal(0, 1, (1, 1, 1, 50)).astype(np.float32)
        bad = number in (14, 15, 20, 24)  # 14 would be the first that counts, 20 another
        before = jax.device_get(state)
        batch = {"image": image * (np.inf if bad else 1), "label": jnp.zeros(1, jnp.int32)}
        state, metrics = train_step(state, batch)
        assert bool(metrics["finite"]) == (not bad)
        now = jax.device_get(state)
        if bad:  # no trace
            jax.tree.map(np.testing.assert_array_equal, now.averages, before.averages)
        elif number >= 14 and (number - 14) % 3 == 0:
            of.append(np.asarray(now.params["w"], np.float64))
        name = averages.preferred(state.averages)
        assert name == ("swa" if of else "ema")
        swa = now.variables("swa")
        assert swa.keys() == {"params", "batch_stats"}
        if of:
            assert now.averages["swa"]["count"] == len(of)
            np.testing.assert_allclose(swa["params"]["w"], np.mean(of, 0), atol=3e-6)
        else:  # what is trained
            np.testing.assert_array_equal(swa["params"]["w"], now.params["w"])
        if len(of) == 1:
            np.testing.assert_array_equal(swa["params"]["w"], of[0].astype(np.float32))
    assert len(of) == 7


class Extra(nn.Module):
    """Something that an objective trains besides, with statistics of its own."""

    @nn.compact
    def __call__(self, outputs, batch, train):
        x = outputs["pre_logits"][:, None, None] + self.param("b", nn.initializers.ones, (8,))
        return {"more": BatchNorm(Ctx(train=train), name="bn")(x)}


def built(monkeypatch=None, **changes):
    """Returns program, feed and start of a tiny run with averaging; with `Extra` if patched."""
    config = runs.tiny("plain")
    config.swa.start, config.swa.every = "6 steps", "2 steps"
    config.update_from_flattened_dict(changes)
    config, data = choices.open_data(config)
    if monkeypatch:
        plain = objectives.make
        monkeypatch.setattr(
            objectives, "make", lambda **keys: plain(**keys)._replace(extra=Extra())
        )
    made = program.build(config, num_train=len(data.train), num_classes=10)
    return config, made, Feed(data, data.train, made.transform, made.layout)


@pytest.mark.ci
def test_statistics_are_of_the_last_batches_and_what_is_trained_besides_survives(monkeypatch):
    config, made, feed = built(monkeypatch)
    state = made.init()
    assert averages.settled(state, made, feed, config.seed) is state  # it has not begun
    plan = made.plan
    with feed.train_batches(plan, config.seed, start_step=0) as batches:
        for _ in range(9):
            state, _ = made.train_step(state, feed.put(next(batches)))
    before = jax.device_get(state)
    settled = averages.settled(state, made, feed, config.seed)
    again = averages.settled(settled, made, feed, config.seed)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (settled, again)))
    now = jax.device_get(settled)
    stats = now.averages["swa"]["batch_stats"]
    for tree in ("params", "count"):
        same = now.averages["swa"][tree], before.averages["swa"][tree]
        jax.tree.map(np.testing.assert_array_equal, *same)
    jax.tree.map(np.testing.assert_array_equal, now.batch_stats, before.batch_stats)
    besides = stats[EXTRA], before.averages["swa"]["batch_stats"][EXTRA]
    jax.tree.map(np.testing.assert_array_equal, *besides)

    # of the first BatchNorm: moments of the stem's features, over an epoch of prepared batches
    kernel = now.averages["swa"]["params"]["stem"]["conv1"]["conv"]["kernel"]
    means, variances = [], []
    with feed.train_batches(plan, config.seed, start_step=30 - 7) as batches:
        for number, batch in enumerate(batches, start=30 - 7):
            image = made.prepare(np.int32(number), feed.put(batch))["image"]
            x = jax.lax.conv_general_dilated(
                image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
            means.append(x.mean(0))
            variances.append(x.var(0))
    assert len(means) == 7
    bn = stats["stem"]["conv1"]["bn"]
    np.testing.assert_allclose(bn["mean"], np.mean(means, 0), atol=1e-5)
    np.testing.assert_allclose(bn["var"], np.mean(variances, 0), rtol=1e-4)
    off = np.abs(before.averages["swa"]["batch_stats"]["stem"]["conv1"]["bn"]["var"] - bn["var"])
    assert off.max() > 1e-3


SWA = "--config.swa.start=13 steps", "--config.swa.every=3 steps"


@pytest.mark.ci
def test_a_run_that_was_killed_in_between_ends_with_the_same_mean(commands, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = f"--config={runs.TINY}", *SWA
    done = commands.fork(*command, f"--workdir={whole}")
    assert done.returncode == 0, done.err
    for at in (10, 20):
        with commands.started(*command, f"--workdir={cut}") as process:
            runs.wait_until(lambda: runs.logged(cut) >= at, process)  # noqa: B023
            assert runs.interrupt(process, signal.SIGKILL) == -signal.SIGKILL
    with commands.started(*command, f"--workdir={cut}") as process:
        runs.wait_until(lambda: runs.checkpoints(cut)[-1:] > [24], process)
        assert runs.interrupt(process, signal.SIGTERM) in (143, 0)
    done = commands.fork(*command, f"--workdir={cut}")
    assert done.returncode == 0, done.err
    runs.assert_same_run(cut, whole, 30)

    # the last evaluation is of the mean, and so is what others load
    last = runs.lines(whole)[-1]
    again = commands.fork(f"--workdir={whole}", "--mode=eval")
    assert again.returncode == 0, again.err
    result = json.loads(again.out)
    assert result["loss"] == pytest.approx(last["loss"], rel=1e-6)
    ema = commands.fork(f"--workdir={whole}", "--mode=eval", "--config.eval.average=ema")
    plain = commands.fork(f"--workdir={whole}", "--mode=eval", "--config.eval.ema=False")
    assert len({json.loads(found.out)["loss"] for found in (again, ema, plain)}) == 3
    state, _ = runs.saved(whole, 30)
    assert 3 < state["averages/swa/count"] <= 6  # 13, 16, ..., 28, but those skipped in float16
    for average, place in (
        (None, "averages/swa/"), ("swa", "averages/swa/"), ("ema", "averages/ema/"), ("", "")
    ):  # fmt: skip
        _, variables = network.load(whole, average=average)
        kernel = variables["params"]["stem"]["conv1"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel, state[f"{place}params/stem/conv1/conv/kernel"])
        var = variables["batch_stats"]["stem"]["conv1"]["bn"]["var"]
        np.testing.assert_array_equal(var, state[f"{place}batch_stats/stem/conv1/bn/var"])

    # before it has begun, it is none
    early = tmp_path / "early"
    short = "--config.duration=13 steps", "--config.swa.start=13 steps"
    with commands.started(*command, *short, f"--workdir={early}") as process:
        runs.wait_until(lambda: runs.checkpoints(early), process)
        runs.interrupt(process, signal.SIGKILL)
    step = runs.checkpoints(early)[-1]
    if step < 13:
        state, _ = runs.saved(early, step)
        variables, _ = weights.load(early)
        kernel = variables["params"]["stem"]["conv1"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel, state["averages/ema/params/stem/conv1/conv/kernel"])


@pytest.mark.ci
def test_fine_tuning_begins_with_the_mean(commands, tmp_path):
    done = commands.fork(f"--config={runs.TINY}:plain", *SWA, f"--workdir={tmp_path / 'a'}")
    assert done.returncode == 0, done.err
    config, _, _ = built()
    config.init.checkpoint = str(tmp_path / "a")
    state, _, _ = train.setup(config)
    saved, _ = runs.saved(tmp_path / "a", 30)
    mean = saved["averages/swa/params/stem/conv1/conv/kernel"]
    np.testing.assert_array_equal(state.params["stem"]["conv1"]["conv"]["kernel"], mean)
    assert int(state.averages["swa"]["count"]) == 0
    mean = state.averages["swa"]["params"]["stem"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(state.params["stem"]["conv1"]["conv"]["kernel"], mean)

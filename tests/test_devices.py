"""The same run on any number of devices and processes; exact evaluation; steps without a trace."""

import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jaxcls import choices, evaluate, models, program, sharding
from jaxcls.data.feed import Feed

pytestmark = pytest.mark.ci

STEPS = 20
BATCH = 64

# BatchNorm over the whole batch; in groups that lie within a device, with micro-batches
VARIANTS = {"whole": {"bn_group": None}, "groups": {"bn_group": 4, "accumulate_steps": 2}}


def make(variant, *, data, fsdp=1, precision="float32"):
    """Returns the config of a variant on data x fsdp devices; its momentum is the gradient."""
    config = runs.tiny("plain")
    config.batch_size = BATCH
    config.eval.batch_size = 0
    config.duration = f"{STEPS} steps"
    config.model.bn_group = VARIANTS[variant]["bn_group"]
    config.optim.accumulate_steps = VARIANTS[variant].get("accumulate_steps", 1)
    config.optim.momentum = 0.0
    config.optim.l2 = 0.0
    config.precision.name = precision
    config.mesh.data, config.mesh.fsdp, config.mesh.fsdp_min_size = data, fsdp, 8
    return config


def build(config):
    return program.build(config, num_train=898, num_classes=10)


def batches_of(config, built):
    """Returns the batches of all steps, this process's rows."""
    _, data = choices.open_data(config)
    feed = Feed(data, data.train, built.transform, built.layout)
    return feed.train_batches(built.plan, config.seed, start_step=0)


def put(built, state):
    """Returns a NumPy state on the devices of a program."""
    return jax.tree.map(
        lambda x, a: jax.make_array_from_callback(a.shape, a.sharding, lambda i: x[i]),
        state,
        built.abstract_state,
    )


def record(config):
    """Returns a list of (state, batch, loss, gradients) of each step, as NumPy arrays."""
    built = build(config)
    state, steps = built.init(), []
    for batch in batches_of(config, built):
        before = jax.device_get(state)
        state, metrics = built.train_step(state, sharding.put(batch, built.layout.rows))
        gradients = jax.device_get(state.opt_state["momentum"].trace)
        steps.append((before, batch, float(metrics["loss"]), gradients))
    return steps


@pytest.fixture(scope="module")
def recorded():
    return {variant: record(make(variant, data=1)) for variant in VARIANTS}


def assert_steps_agree(config, steps):
    """Asserts that every step, from the recorded state, has the recorded loss and gradients."""
    built = build(config)
    rows = sharding.local_rows(built.layout.rows, BATCH)
    assert len(steps) == STEPS
    for (state, whole, loss, gradients), batch in zip(steps, batches_of(config, built)):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, whole[name][rows])
        after, metrics = built.train_step(put(built, state), sharding.put(batch, built.layout.rows))
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-6)
        ours = jax.tree.leaves(jax.device_get(after.opt_state["momentum"].trace))
        theirs = jax.tree.leaves(gradients)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in theirs))
        error = np.sqrt(sum(((a - b).astype(np.float64) ** 2).sum() for a, b in zip(ours, theirs)))
        assert error < 1e-5 * norm


@pytest.mark.parametrize(
    ("variant", "data", "fsdp"),
    [("whole", 2, 1), ("whole", 8, 1), ("whole", 2, 2), ("groups", 4, 1), ("groups", 8, 1)],
)
def test_a_float32_step_is_the_same_on_all_devices(recorded, variant, data, fsdp):
    config = make(variant, data=data, fsdp=fsdp)
    if fsdp > 1:
        cut = [x.sharding.spec for x in jax.tree.leaves(build(config).abstract_state)]
        assert any("fsdp" in spec for spec in cut)
    assert_steps_agree(config, recorded[variant])


def test_2_processes_with_2_devices_compute_the_same_steps(recorded, commands, tmp_path):
    path, port = tmp_path / "steps.pickle", runs.free_port()
    path.write_bytes(pickle.dumps(recorded))
    code = """
import pickle, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import test_devices
recorded = pickle.load(open(sys.argv[3], "rb"))
for variant, steps in recorded.items():
    test_devices.assert_steps_agree(test_devices.make(variant, data=4), steps)
"""
    environment = commands.environment(devices=2)
    environment["PYTHONPATH"] += f":{runs.ROOT / 'tests'}"
    peers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(port), str(i), str(path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        errors = [peer.communicate(timeout=runs.PATIENCE)[1] for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
    assert [peer.returncode for peer in peers] == [0, 0], "\n".join(errors)


def run_freely(variant, data, fsdp):
    """Returns the losses and the last parameters of a float64 run."""
    config = make(variant, data=data, fsdp=fsdp, precision="float64")
    config.optim.momentum = 0.9
    built = build(config)
    state, losses = built.init(), []
    for batch in batches_of(config, built):
        state, metrics = built.train_step(state, sharding.put(batch, built.layout.rows))
        losses.append(float(metrics["loss"]))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float64)}
    leaves = [np.ravel(x) for x in jax.tree.leaves((state.params, state.batch_stats))]
    return np.array(losses), np.concatenate(leaves)


def test_20_free_steps_in_float64(commands):
    code = """
import numpy as np, test_devices
for variant in test_devices.VARIANTS:
    losses, params = test_devices.run_freely(variant, 1, 1)
    assert losses[-1] < losses[0]
    for data, fsdp in ((2, 1), (8, 1)) if variant == "whole" else ((4, 1), (2, 2)):
        ours, theirs = test_devices.run_freely(variant, data, fsdp)
        np.testing.assert_allclose(ours, losses, rtol=1e-10)
        np.testing.assert_allclose(theirs, params, rtol=0, atol=1e-10 * abs(params).max())
"""
    environment = commands.environment(devices=8, JAX_ENABLE_X64="1")
    environment["PYTHONPATH"] += f":{runs.ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def all_reduces(group):
    """Returns how many all-reduces the compiled train step has on 4 devices."""
    config = make("whole", data=4)
    config.model.bn_group = group
    built = build(config)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, 8, 8, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    text = built.train_step.lower(built.abstract_state, batch).compile().as_text()
    assert not re.search(r" (all-gather|all-to-all|collective-permute)[\w-]*\(", text)
    layers = str(built.abstract_state.batch_stats).count("'mean'")
    return len(re.findall(r" all-reduce[\w-]*\(", text)), layers


def test_groups_of_batchnorm_need_no_communication():
    within, layers = all_reduces(group=8)
    across, _ = all_reduces(group=None)
    assert within <= 2  # the gradients
    assert across >= layers


# -- Evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (1, 1000), (2, 64), (8, 104)])
def test_evaluation_is_exact(devices, batch_size):
    config = runs.tiny("plain")
    config.precision.name = "float32"
    config.mesh.data = devices
    config.eval.batch_size = batch_size
    _, data = choices.open_data(config)
    built = build(config)
    state = built.init()
    # fresh networks say nearly the same about every image
    head = jax.tree.map(lambda x: 30 * x, state.params["head"])
    state = state.replace(params={**state.params, "head": head})
    feed = Feed(data, data.eval, built.network.transform, built.layout)
    halved = jax.tree.map(lambda x: x / 2, state.variables())
    results = evaluate.evaluate(
        built.eval_step, feed, state.variables(), halved, batch_size=built.plan.eval_batch_size
    )
    result, other = results
    assert other["images"] == result["images"]
    assert other["loss"] != result["loss"]

    items = [data.eval[i] for i in range(len(data.eval))]
    label = np.array([item["label"] for item in items])
    image = np.stack([built.network.transform(item["image"], None) for item in items])
    image = (image / 255 - config.image.mean[0]) / config.image.std[0]
    options = dict(config.model.options)
    module = models.build(config.model.name, num_classes=10, **options)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = module.apply(jax.device_get(variables), jnp.asarray(image, jnp.float32))["logits"]
    logits = np.asarray(logits, np.float64)
    right = logits[np.arange(len(label)), label]
    ranks = (logits > right[:, None]).sum(1)
    largest = logits.max(1)
    loss = np.log(np.exp(logits - largest[:, None]).sum(1)) + largest - right
    assert 0 < (ranks < 1).sum() < (ranks < 5).sum() < len(label)
    assert result["images"] == len(label) == 899
    assert result["top1"] == (ranks < 1).sum() / 899
    assert result["top5"] == (ranks < 5).sum() / 899
    assert result["loss"] == pytest.approx(loss.mean(), rel=1e-6)


# -- Steps that are not finite ---------------------------------------------------------------------


def small(precision, accumulate_steps):
    config = runs.tiny("plain")
    config.batch_size = 8
    config.lr.warmup = ""  # its first step has the rate 0
    config.ema.decay = 0.5
    config.mix.mixup = 0.0
    config.optim.accumulate_steps = accumulate_steps
    config.precision.name = precision
    return config


def noise():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(8, 8, 8, 1)).astype(np.float32)
    return {"image": image, "label": np.arange(8, dtype=np.int32)}


def bits(state):
    """Returns all that a skipped step may not touch."""
    kept = (state.params, state.batch_stats, state.opt_state, state.averages, state.rng)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(kept)]


def assert_skipped(built, state, batch, factor):
    """Takes a step that is not finite and returns the state after it."""
    before, scale = bits(state), float(state.loss_scale.scale)
    step, skipped = int(state.step), int(state.loss_scale.skipped)
    state, metrics = built.train_step(state, batch)
    assert not metrics["finite"]
    assert bits(state) == before
    assert int(state.step) == step + 1
    assert int(state.loss_scale.skipped) == int(metrics["skipped"]) == skipped + 1
    assert float(state.loss_scale.scale) == factor * scale
    return state


def assert_taken(built, state, batch):
    """Takes a finite step and returns the state after it."""
    before = bits(state)
    state, metrics = built.train_step(state, batch)
    assert metrics["finite"]
    assert int(state.loss_scale.skipped_in_a_row) == 0
    changed = [a != b for a, b in zip(bits(state), before)]
    assert sum(changed) >= len(changed) - 1  # all but the key
    return state


@pytest.mark.parametrize(
    ("precision", "accumulate_steps", "bad"),
    [
        ("float32", 1, np.nan),
        ("float32", 2, np.inf),
        ("bfloat16", 2, np.nan),
        ("float16", 1, 1e6),  # overflows in float16 alone
        ("float16", 2, 1e6),
    ],
)
def test_a_step_that_is_not_finite_leaves_no_trace(precision, accumulate_steps, bad):
    built = build(small(precision, accumulate_steps))
    good, batch = noise(), noise()
    batch["image"][1, 0, 0, 0] = bad  # row 1: of two micro-batches, the second
    factor = 0.5 if precision == "float16" else 1.0
    state = assert_taken(built, built.init(), good)
    state = assert_skipped(built, state, batch, factor)
    state = assert_skipped(built, state, batch, factor)
    assert int(state.loss_scale.skipped_in_a_row) == 2
    state = assert_taken(built, state, good)
    assert int(state.loss_scale.skipped) == 2


def test_gradients_that_overflow_under_a_finite_loss():
    config = small("float16", 1)
    config.precision.scale = 2.0**40
    built = build(config)
    _, metrics = built.train_step(built.init(), noise())
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    assert_skipped(built, built.init(), noise(), 0.5)


def test_an_update_that_overflows_with_finite_gradients():
    config = small("float32", 1)
    config.optim.lr_mults = (("^head/", 1e9),)
    config.lr.schedule, config.lr.peak = "constant", 1e38
    built = build(config)
    _, metrics = built.train_step(built.init(), noise())
    assert np.isfinite(metrics["grad_norm"])
    assert_skipped(built, built.init(), noise(), 1.0)


def test_a_run_that_diverges_stops_and_its_checkpoint_restores(commands, tmp_path):
    command = f"--config={runs.TINY}:plain", f"--workdir={tmp_path}"
    assert commands.fork(*command, "--config.duration=8 steps").returncode == 0
    command = *command, "--config.duration=14 steps"
    done = commands.fork(*command, "--config.lr.schedule=constant", "--config.lr.peak=1e37")
    assert done.returncode == 1
    found = re.fullmatch(
        r"jaxcls: step (9|10): loss or gradients are not finite \(loss \S+, gradient norm \S+, "
        r"learning rate 1e\+37\); lower config.lr.peak, .* step 8 is good\n",
        done.err,
    )
    assert found, done.err
    assert runs.checkpoints(tmp_path)[-1] == 8
    assert runs.logged(tmp_path) == 8
    done = commands.fork(*command)
    assert done.returncode == 0, done.err
    assert "resuming at step 8 of 14" in done.out
    assert runs.checkpoints(tmp_path)[-1] == 14

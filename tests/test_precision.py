"""Precisions, and the loss scale against flax.training.dynamic_scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax.training.dynamic_scale import DynamicScale
from sklearn.datasets import load_digits

from configs import base
from jaxcls import precision, program, sharding
from jaxcls.models.count import equations


def make(platform="cpu", **changes):
    return precision.make(**(dict(base.get_config().precision) | changes), platform=platform)


def test_auto_follows_the_platform():
    assert make("cpu").name == "float32"
    assert make("gpu").name == make("tpu").name == "bfloat16"
    assert make("gpu", name="O0").dtype == jnp.float32


@pytest.mark.parametrize("name", [n for n in precision.DTYPES if n != "float64"])
def test_levels(name):
    p = make(name=name)
    dtypes = [p.dtype, p.feature_dtype, p.param_dtype, p.head_dtype]
    half = jnp.bfloat16 if "bfloat16" in name else jnp.float16
    level = {"float32": "O0", "float16": "O2", "bfloat16": "O2"}.get(name, name[:2])
    halves = {"O0": 0, "O1": 1, "O2": 2, "O3": 4}[level]
    assert p.norm_dtype == jnp.float32
    assert dtypes == [half] * halves + [jnp.float32] * (4 - halves)
    assert p.matmul_precision == ("highest" if level == "O0" else "default")
    assert p.max_skipped == (50 if halves and half == jnp.float16 else 1)  # dynamic, or none
    with jax.default_matmul_precision(p.matmul_precision):  # JAX knows the word
        assert jnp.ones((2, 2)) @ jnp.ones((2, 2)) is not None


def test_float64_needs_64_bit_mode():
    with pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
        make(name="float64")
    with jax.enable_x64(True):
        p = make(name="float64")
        assert {p.dtype, p.feature_dtype, p.param_dtype, p.norm_dtype, p.head_dtype} == {
            jnp.float64
        }
        assert p.matmul_precision == "highest"
        grads = p.initial_loss_scale().unscale({"w": jnp.array([1 / 3], jnp.float64)})
        assert grads["w"].dtype == jnp.float64
        assert grads["w"][0] == 1 / 3


@pytest.mark.parametrize("seed", range(4))
def test_dynamic_scale_against_flax(seed):
    rng = np.random.default_rng(seed)
    interval, low = int(rng.integers(1, 6)), 2.0 ** rng.integers(-3, 4)
    growth, backoff = rng.choice([2.0, 4.0, 1.5]), rng.choice([0.5, 0.25, 0.75])
    first = 2.0 ** rng.integers(4, 20)
    ours = make(
        name="float16",
        scale=first,
        growth=growth,
        growth_interval=interval,
        backoff=backoff,
        min_scale=low,
    ).initial_loss_scale()
    # Flax's grows at the finite step that follows `growth_interval` others
    theirs = DynamicScale(growth, backoff, interval - 1, scale=first, minimum_scale=low)
    ours_step = jax.jit(lambda s, finite: s.update(finite))
    theirs_step = jax.jit(lambda s, x: s.value_and_grad(lambda w: w * x)(1.0)[0])
    skipped = in_a_row = 0
    for i in range(300):
        # Long good and long bad stretches reach both ends.
        finite = bool(rng.random() < (0.95, 0.2, 1.0)[i // 100])
        ours = ours_step(ours, finite)
        theirs = theirs_step(theirs, 0.0 if finite else jnp.inf)
        skipped, in_a_row = skipped + (not finite), 0 if finite else in_a_row + 1
        assert ours.scale == theirs.scale
        assert ours.good_steps == theirs.fin_steps
        assert (ours.skipped, ours.skipped_in_a_row) == (skipped, in_a_row)
    assert all(x.dtype == jnp.int32 for x in (ours.good_steps, ours.skipped, ours.skipped_in_a_row))
    assert ours.scale.dtype == jnp.float32


# What torch.amp.GradScaler(init_scale=64, growth_interval=3) has after each of these steps.
FINITE = [1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
TORCH = [64, 64, 128, 128, 128, 64, 64, 64, 32, 16, 16, 16, 32, 32, 32, 64, 64, 64]


def test_dynamic_scale_is_that_of_torch():
    state, scales = make(name="float16", scale=64.0, growth_interval=3).initial_loss_scale(), []
    for finite in FINITE:
        state = state.update(bool(finite))
        scales.append(float(state.scale))
    assert scales == TORCH


def test_dynamic_scale_stays_within_its_ends():
    """And a power of two, as torch's, so that scaling rounds nothing: 2^128 is no float32."""
    state = make(name="float16", growth_interval=1, min_scale=16.0).initial_loss_scale()
    for _ in range(400):
        state = state.update(True)
    assert state.scale == 2.0**127
    for _ in range(150):
        state = state.update(False)
    assert state.scale == 16.0


@pytest.mark.parametrize(
    ("changes", "scale", "max_skipped"),
    [
        ({"name": "float16", "loss_scale": "static", "scale": 128.0}, 128.0, 50),
        ({"name": "float32"}, 1.0, 1),
        ({"name": "bfloat16", "loss_scale": "none"}, 1.0, 1),
    ],
)
def test_other_scales_never_move_but_count(changes, scale, max_skipped):
    p = make(**changes)
    state = p.initial_loss_scale()
    rng = np.random.default_rng(0)
    finite = [bool(x) for x in rng.random(60) < 0.5] + [False, False, False]
    for f in finite:
        state = state.update(f)
        assert state.scale == scale
    assert state.skipped == finite.count(False)
    assert state.skipped_in_a_row >= 3
    assert p.max_skipped == max_skipped


def test_scaling_rescues_small_gradients():
    def grad(state, w):
        def loss(w):
            return state.scale_loss((w * jnp.float16(1e-5)).astype(jnp.float32) * 1e-4)

        return jax.grad(loss)(w)

    w = jnp.ones((), jnp.float16)
    none = make(name="float16", loss_scale="none").initial_loss_scale()
    dynamic = make(name="float16").initial_loss_scale()
    assert grad(none, w) == 0
    got = dynamic.unscale({"w": grad(dynamic, w)})["w"]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 1e-9, rtol=5e-3)


def test_counters_are_separate_buffers():
    state = make().initial_loss_scale()
    advance = jax.jit(lambda s: s.update(False), donate_argnums=0)
    assert advance(state).skipped == 1


def test_all_finite():
    good = {"a": jnp.ones((3, 4)), "b": [jnp.zeros(2, jnp.bfloat16), jnp.arange(3)]}
    assert precision.all_finite(good)
    assert precision.all_finite({})
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not precision.all_finite({**good, "a": good["a"].at[1, 2].set(bad)})
    assert not precision.all_finite(jnp.full(2, 1e5).astype(jnp.float16))
    assert jax.jit(precision.all_finite)(good).shape == ()


LEVELS = [n for n in precision.DTYPES if n not in ("float64", "float32", "float16")]  # = O0, O2


@pytest.mark.ci
@pytest.mark.parametrize("name", LEVELS)
def test_every_level_learns(name):
    config = runs.tiny("plain")
    config.precision.name = name
    config.batch_size = 64
    config.crop.flip = 0.0
    config.mix.mixup = 0.0
    config.lr.peak, config.lr.warmup = 0.3, ""
    config.duration = "70 steps"
    built = program.build(config, num_train=898, num_classes=10)
    digits = load_digits()
    images = (16 * digits.images[..., None] - 1).clip(0).astype(np.uint8)
    labels = digits.target.astype(np.int32)

    def batch(rows):
        rows = {"image": images[rows], "label": labels[rows]}
        return sharding.put(rows, built.layout.rows)

    state, losses = built.init(), []
    step = built.train_step.trace(state, batch(slice(64)))
    run = step.lower().compile()  # as it is in a run
    rng = np.random.default_rng(0)
    for _ in range(5):  # epochs
        order = rng.permutation(898)[: 14 * 64].reshape(14, 64)
        for rows in order:
            state, metrics = run(state, batch(rows))
            assert metrics["finite"]
            assert metrics["loss"].dtype == jnp.float32
            losses.append(float(metrics["loss"]))
    assert np.mean(losses[-14:]) < np.mean(losses[:14]) / 2
    sums = built.eval_step(state.variables(), batch(slice(899, 1795)))
    assert float(sums["top1"]) / 896 > 0.6  # of digits that were not trained on

    compute, _, param, norm, head = map(jnp.dtype, precision.DTYPES[name])
    dtypes = lambda tree: {x.dtype for x in jax.tree.leaves(tree)}
    assert dtypes(state.params) == {param}
    assert dtypes(state.batch_stats) == {norm}
    assert dtypes(state.opt_state) == {jnp.dtype("float32")}
    operands = lambda primitive: {
        v.aval.dtype
        for e in equations(step.jaxpr.jaxpr)
        if e.primitive.name == primitive
        for v in e.invars
    }
    assert operands("conv_general_dilated") == {compute}
    assert operands("dot_general") == {head}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "float6"}, r"unknown config\.precision\.name 'float6': did you mean float\d\d"),
        ({"name": "float16", "loss_scale": "dynamc"}, "did you mean dynamic"),
        ({"scale": 128.0}, r"config\.precision\.scale: not used by 'loss_scale = none'"),
        ({"name": "bfloat16", "max_skipped": 9}, r"config\.precision\.max_skipped: not used"),
        (
            {"name": "float16", "loss_scale": "static", "growth": 4.0},
            r"config\.precision\.growth: not used by .* takes max_skipped, scale",
        ),
        ({"name": "float16", "scale": 0.0}, r"config\.precision\.scale = 0\.0"),
        ({"name": "float16", "scale": float("inf")}, r"config\.precision\.scale = inf"),
        ({"name": "float16", "growth": 1.0}, r"config\.precision\.growth = 1\.0"),
        ({"name": "O1", "growth_interval": 0}, r"config\.precision\.growth_interval = 0"),
        ({"name": "O2", "backoff": 1.0}, r"config\.precision\.backoff = 1\.0"),
        ({"name": "O3", "min_scale": 1e9}, r"config\.precision\.min_scale = 1000000000\.0"),
        ({"name": "float16", "max_skipped": 0}, r"config\.precision\.max_skipped = 0"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_deterministic_run_is_compiled_with_an_option_of_xla(monkeypatch):
    assert [make(p, deterministic=True).compiler_options for p in ("cpu", "tpu")] == [{}, {}]
    options = make("gpu", deterministic=True).compiler_options
    assert (len(options), make("gpu").compiler_options) == (1, {})
    jax.jit(jnp.sin, compiler_options=options)(1.0)  # XLA knows it
    monkeypatch.setitem(precision.DETERMINISTIC, "cpu", {"xla_no_such_option": True})
    config = runs.tiny("plain")
    config.precision.deterministic = True
    built = program.build(config, num_train=898, num_classes=10)
    batch = {"image": jnp.zeros((8, 8, 8, 1), jnp.uint8), "label": jnp.zeros(8, jnp.int32)}
    lowered = built.eval_step.lower(built.abstract_state.variables(), batch)
    with pytest.raises(Exception, match="No such compile option: 'xla_no_such_option'"):
        lowered.compile()

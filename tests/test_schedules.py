"""Schedules against float64 NumPy formulas, and what torch 2.13 gave (torch_optim.json).

These are of one_cycle with 51 steps, a share of 0.3, of three phases 0.25 with divisors 10 and 100;
cyclic from 0.01 to 0.4 in 8 steps and back in 12, exp_range with 0.3 a cycle; plateau as in
`PLATEAUS`; all with a peak of 0.4.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from jaxcls import schedules

TORCH = json.loads((Path(__file__).parent / "golden" / "torch_optim.json").read_text())


def schedule(total_steps=1000, batch_size=20, steps_per_epoch=10, **changes):
    section = dict(base.get_config().lr) | changes
    return schedules.schedule(
        **section,
        total_steps=total_steps,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
    )


def numpy_rate(name, s, *, peak=0.1, w=0, total=1000, end=0.0, power=1.0, drops=(), gamma=0.1, n=1):
    """The rate at step `s`, in float64."""
    if s < w:
        return peak * s / w
    x = (s - w) / (total - w)
    return {
        "constant": lambda: peak,
        "cosine": lambda: end + (peak - end) * 0.5 * (1 + np.cos(np.pi * x)),
        "polynomial": lambda: end + (peak - end) * (1 - x) ** power,
        "piecewise": lambda: peak * gamma ** sum(s >= d for d in drops),
        "exponential": lambda: peak * gamma ** ((s - w) // n),
    }[name]()


CURVES = [
    ("constant", {}, {}),
    ("cosine", {}, {}),
    ("cosine", {"end": 1e-3}, {"end": 1e-3}),
    ("piecewise", {"milestones": ("30 epochs", "600 steps")}, {"drops": (300, 600)}),
    ("polynomial", {"power": 2.0, "end": 0.01}, {"power": 2.0, "end": 0.01}),
    ("exponential", {"gamma": 0.97}, {"gamma": 0.97, "n": 24}),
]


@pytest.mark.parametrize("warmup", [0, 50])
@pytest.mark.parametrize(("name", "keys", "numbers"), CURVES)
def test_curves(name, keys, numbers, warmup):
    rate = schedule(schedule=name, warmup=f"{warmup} steps", **keys)
    steps = np.arange(1000)
    want = [numpy_rate(name, s, w=warmup, **numbers) for s in steps]
    got = jax.jit(jax.vmap(rate))(jnp.arange(1000, dtype=jnp.int32))
    assert got.dtype == jnp.float32
    # Relative, so that the end of a decay to 0 counts as much as its beginning.
    np.testing.assert_allclose(got, want, rtol=2e-6)
    np.testing.assert_allclose([rate(int(s)) for s in steps[::97]], want[::97], rtol=2e-6)


def test_long_runs_stay_accurate():
    total = 2_000_000
    rate = schedule(total_steps=total, warmup="10000 steps")
    for s in (0, 1, 9_999, 10_000, 1_000_001, total - 1000, total - 1):
        x = (s - 10_000) / (total - 10_000)
        # 1 + cos cancels in float64 too at the very end; its square form does not.
        want = 0.1 * s / 10_000 if s < 10_000 else 0.1 * np.sin(np.pi / 2 * (1 - x)) ** 2
        np.testing.assert_allclose(rate(s), want, rtol=2e-6)
    assert rate(total) == rate(total + 5) == 0


def test_linear_scaling():
    rate = schedule(batch=5, warmup_if_scaled="10 epochs", warmup="2 epochs")
    np.testing.assert_allclose([rate(50), rate(100)], [0.2, 0.4], rtol=1e-6)  # 0.1 * 20 / 5
    rate = schedule(batch=20, warmup_if_scaled="10 epochs")
    np.testing.assert_allclose(rate(0), 0.1, rtol=1e-6)  # not scaled: no warmup
    rate = schedule(batch=40, warmup_if_scaled="10 epochs")
    np.testing.assert_allclose(rate(0), 0.05, rtol=1e-6)  # scaled down: none either
    rate = schedule(batch=5, warmup="2 epochs")
    np.testing.assert_allclose([rate(10), rate(20)], [0.2, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "unknown config.lr.schedule 'cosin': did you mean cosine"),
        ({"power": 2.0}, r"config\.lr\.power: not used by 'cosine', which takes end"),
        ({"milestones": ("3 epochs",)}, r"config\.lr\.milestones: not used by 'cosine'"),
        ({"schedule": "constant", "end": 0.1}, r"config\.lr\.end: not used by 'constant'"),
        ({"peak": -0.1}, r"config\.lr\.peak = -0\.1"),
        ({"peak": float("nan")}, r"config\.lr\.peak = nan"),
        ({"batch": -1}, r"config\.lr\.batch = -1"),
        ({"warmup": "5 epoch fast"}, r"config\.lr\.warmup = '5 epoch fast' is not a duration"),
        ({"warmup": "101 epochs"}, r"config\.lr\.warmup = '101 epochs' is 1010 steps.* 1000"),
        (
            {"batch": 10, "warmup_if_scaled": "200 epochs"},
            r"config\.lr\.warmup_if_scaled = '200 epochs' is 2000 steps",
        ),
        ({"warmup_if_scaled": "5 epochs"}, r"does nothing without config\.lr\.batch"),
        ({"end": 0.2}, r"config\.lr\.end = 0\.2: write a number from 0 to the peak, 0\.1"),
        ({"schedule": "piecewise"}, r"config\.lr\.milestones = \(\): write one or more"),
        (
            {"schedule": "piecewise", "milestones": ("60 epochs", "30 epochs")},
            r"config\.lr\.milestones = .* each longer than the one before",
        ),
        (
            {"schedule": "piecewise", "milestones": ("30 epoks",)},
            r"config\.lr\.milestones = '30 epoks' is not a duration",
        ),
        (
            {"schedule": "piecewise", "milestones": ("3 epochs",), "warmup": "5 epochs"},
            r"config\.lr\.milestones = .* begin within the warmup",
        ),
        ({"schedule": "exponential", "gamma": 0.0}, r"config\.lr\.gamma = 0\.0"),
        ({"schedule": "exponential", "every": "0.01 epochs"}, r"config\.lr\.every = '0.01 epochs'"),
        ({"schedule": "polynomial", "power": 0.0}, r"config\.lr\.power = 0\.0"),
        ({"warmup_start": 0.01}, r"warmup_start = 0\.01 does nothing without config\.lr\.warmup"),
        (
            {"warmup": "1 epochs", "warmup_start": 0.2},
            r"warmup_start = 0\.2: write .* the peak, 0\.1",
        ),
        (
            {"schedule": "cyclic", "warmup": "1 epochs"},
            r"lr\.warmup = '1 epochs': the .* 'cyclic' rise",
        ),
        ({"schedule": "one_cycle", "warmup": "9 steps"}, r"lr\.warmup = '9 steps': .* 'one_cycle'"),
        (
            {"schedule": "cyclic", "gamma": 0.5},
            r"lr\.gamma: not used by 'triangular', which takes cyc",
        ),
        (
            {"schedule": "cyclic", "mode": "triangle"},
            r"lr\.mode 'triangle': did you mean triangular",
        ),
        (
            {"schedule": "cyclic", "cycle": "1 steps"},
            r"config\.lr\.cycle = '1 steps': write a dura",
        ),
        ({"schedule": "cyclic", "rise": 1.0}, r"config\.lr\.rise = 1\.0: write a share above 0"),
        ({"schedule": "cyclic", "rise": 0.001}, r"config\.lr\.rise = 0\.001: .* of 100"),
        (
            {"schedule": "one_cycle", "rise": 0.6, "three_phase": True},
            r"lr\.rise = 0\.6: .* below 0\.5",
        ),
        ({"schedule": "one_cycle", "rise": 0.001}, r"lr\.rise = 0\.001: .* at least 2 of the 1000"),
        ({"schedule": "one_cycle", "div_factor": 0.5}, r"config\.lr\.div_factor = 0\.5"),
        ({"schedule": "one_cycle", "mode": "rel"}, r"lr\.mode 'rel': choose one of cos, linear"),
        ({"schedule": "plateau", "eval_every": 0}, r"only the end is evaluated: set config\.eval"),
        ({"schedule": "plateau", "eval_every": 1000}, r"only the end is evaluated: set config\.e"),
        ({"schedule": "plateau", "gamma": 1.0}, r"config\.lr\.gamma = 1\.0: .* below 1"),
        ({"schedule": "plateau", "patience": -1}, r"config\.lr\.patience = -1"),
        ({"schedule": "plateau", "cooldown": -1}, r"config\.lr\.cooldown = -1"),
        ({"schedule": "plateau", "threshold": -0.1}, r"config\.lr\.threshold = -0\.1"),
        ({"schedule": "plateau", "end": 0.2}, r"config\.lr\.end = 0\.2"),
        ({"patience": 3}, r"config\.lr\.patience: not used by 'cosine'"),
    ],
)
def test_bad_schedules(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


# -- As torch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("mode", ["cos", "linear"])
def test_one_cycle_is_that_of_torch(mode, three_phase):
    keys = {"rise": 0.25, "div_factor": 10.0, "final_div_factor": 100.0} if three_phase else {}
    keys |= {"schedule": "one_cycle", "peak": 0.4, "mode": mode, "three_phase": three_phase}
    rate = schedule(total_steps=51, **keys)
    got = jax.jit(jax.vmap(rate))(jnp.arange(51, dtype=jnp.int32))
    want = TORCH["rates"][f"one_cycle {mode} {three_phase}"]
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-9)
    assert rate(60) == rate(50)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cycles_are_those_of_torch(mode):
    keys = {"peak": 0.4, "end": 0.01, "cycle": "20 steps", "rise": 0.4, "mode": mode}
    keys |= {"gamma": 0.3} if mode == "exp_range" else {}
    rate = schedule(schedule="cyclic", **keys)
    got = jax.jit(jax.vmap(rate))(jnp.arange(60, dtype=jnp.int32))
    np.testing.assert_allclose(got, TORCH["rates"][f"cyclic {mode}"], rtol=2e-6)


@pytest.mark.parametrize("name", ["constant", "cosine", "plateau"])
def test_warmup_from_a_start_value(name):
    keys = {"peak": 0.4, "warmup": "10 steps", "warmup_start": 0.02, "schedule": name}
    rate = schedule(**keys)
    got = [rate(step) for step in range(11)]
    np.testing.assert_allclose(got, TORCH["rates"]["warmup"][:11], rtol=1e-6)
    without = schedule(**keys | {"warmup_start": 0.0})
    assert [rate(step) for step in range(10, 99)] == [without(step) for step in range(10, 99)]


PLATEAUS = {
    "top1 rel": {"gamma": 0.3, "patience": 2, "threshold": 1e-2},
    "top1 abs": {"gamma": 0.5, "patience": 1, "threshold": 5e-3, "cooldown": 3, "end": 0.02},
    "loss rel": {"gamma": 0.3, "patience": 0, "threshold": 0.0, "cooldown": 1, "end": 0.001},
    "loss abs": {"patience": 3, "threshold": 0.02},
}


@pytest.mark.parametrize("name", PLATEAUS)
def test_a_plateau_is_that_of_torch(name):
    metric, mode = name.split()
    rate = schedule(schedule="plateau", peak=0.4, mode=mode, metric=metric, **PLATEAUS[name])
    known, got = rate.start(), []
    for number, value in enumerate(TORCH["evaluations"][metric]):
        evaluation = {"step": 10 * number + 10, metric: value}
        known = rate.after(known, evaluation)
        again = rate.after(rate.after(known, evaluation), None)  # as where a run goes on
        jax.tree.map(np.testing.assert_array_equal, again, known)
        got.append(float(rate(number) * known.factor))
    np.testing.assert_allclose(got, TORCH["plateau"][name], rtol=1e-6)
    assert {x.dtype for x in jax.tree.leaves(known)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_what_a_plateau_does_not_count():
    keys = {"patience": 1, "threshold": 0.0, "mode": "abs", "warmup": "20 steps"}
    rate = schedule(schedule="plateau", **keys)

    def factors(*evaluations):
        known, out = rate.start(), []
        for step, value in evaluations:
            known = rate.after(known, {"step": step, "top1": value})
            out.append(round(float(known.factor), 6))
        return out

    # within the warmup; a metric that is no number is not better; nor is an equal one
    assert factors((10, 0.9), (20, 0.9), (30, 0.5), (40, None)) == [1, 1, 1, 1]
    assert factors((30, 0.5), (40, None), (50, 0.5), (60, 0.6), (70, 0.1)) == [1, 1, 0.1, 0.1, 0.1]

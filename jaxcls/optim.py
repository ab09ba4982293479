"""The optimizer as one named optax chain, and the schedules of its learning rate."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls import trees
from jaxcls.config import choose, refuse_unused, steps_of

Schedule = Callable[[Any], jax.Array]

# What each schedule takes besides peak, batch and warmup, and the defaults of configs/base.py.
SCHEDULES = {
    "constant": (),
    "cosine": ("end",),
    "piecewise": ("milestones", "gamma"),
    "polynomial": ("end", "power"),
    "exponential": ("gamma", "every"),
}
SCHEDULE_DEFAULTS = {
    "end": 0.0,
    "milestones": (),
    "gamma": 0.1,
    "every": "2.4 epochs",
    "power": 1.0,
}

# What each optimizer takes besides no_decay, lr_mults, frozen and clip_norm, and the defaults.
# adam has Paddle's coupled L2, adamw and lamb the decoupled decay that they were published with;
# rmsprop's momentum is over whole updates, where a decoupled decay has no place.
OPTIMIZERS = {
    "sgd": ("l2", "weight_decay"),
    "momentum": ("momentum", "nesterov", "l2", "weight_decay"),
    "adam": ("betas", "epsilon", "l2"),
    "adamw": ("betas", "epsilon", "weight_decay"),
    "rmsprop": ("momentum", "rho", "epsilon", "l2"),
    "adadelta": ("rho", "epsilon", "l2", "weight_decay"),
    "lamb": ("betas", "epsilon", "weight_decay"),
}
OPTIMIZER_DEFAULTS = {
    "momentum": 0.9,
    "nesterov": False,
    "betas": (0.9, 0.999),
    "rho": 0.9,
    "epsilon": None,
    "l2": 0.0,
    "weight_decay": 0.0,
}
EPSILONS = {"rmsprop": 1e-3, "adadelta": 1e-6}  # where epsilon is None; 1e-8 for the others


def _require(ok: bool, key: str, value: Any, want: str) -> None:
    if not ok:
        raise ValueError(f"config.{key} = {value!r}: write {want}")


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_rule(rule: Any) -> bool:
    """Returns whether this is a (pattern, factor) of `config.optim.lr_mults`."""
    pair = isinstance(rule, (tuple, list)) and len(rule) == 2
    return pair and isinstance(rule[0], str) and _number(rule[1]) and 0 <= rule[1] < 3.4e38


def _require_some(tree: Any, key: str, value: Any, problem: str) -> None:
    if not any(jax.tree.leaves(tree)):
        raise ValueError(f"config.{key} = {value!r} {problem}")


def schedule(
    *,
    peak: float,
    batch: int,
    schedule: str,
    warmup: str,
    warmup_if_scaled: str,
    end: float,
    milestones: Sequence[str],
    gamma: float,
    every: str,
    power: float,
    total_steps: int,
    batch_size: int,
    steps_per_epoch: int,
) -> Schedule:
    """Returns the learning rate as a function of the step, for `config.lr`.

    With `batch` set, the peak is peak * batch_size / batch (Goyal et al. 2017, arXiv:1706.02677).
    The rate of step s in a run of T = `total_steps`, w of them warmup:

        s < w        peak s / w
        constant     peak
        cosine       end + (peak - end) (1 + cos(pi (s - w) / (T - w))) / 2
        polynomial   end + (peak - end) (1 - (s - w) / (T - w))^power
        piecewise    peak gamma^(milestones that are <= s, counted from the start of the run)
        exponential  peak gamma^floor((s - w) / every)

    The function takes a Python int or an integer array, also under jit, and returns a float scalar.

    Raises:
      ValueError: an unknown schedule, a value out of range or of the wrong form, a key that the
        chosen schedule does not take.
    """
    choose("config.lr.schedule", schedule, SCHEDULES)
    values = {
        "end": end,
        "milestones": tuple(milestones),
        "gamma": gamma,
        "every": every,
        "power": power,
    }
    takes = SCHEDULES[schedule]
    refuse_unused("lr", schedule, values, SCHEDULE_DEFAULTS, takes)
    in_steps = functools.partial(steps_of, batch_size=batch_size, steps_per_epoch=steps_per_epoch)

    _require(0 <= peak < math.inf, "lr.peak", peak, "a number of at least 0")
    _require(batch >= 0, "lr.batch", batch, "the batch size that peak is meant for, or 0")
    if warmup_if_scaled and not batch:
        raise ValueError(
            f"config.lr.warmup_if_scaled = {warmup_if_scaled!r} does nothing without "
            "config.lr.batch: set config.lr.batch, or use config.lr.warmup"
        )
    warmup_key = "lr.warmup"
    if batch:
        peak = peak * batch_size / batch
        if batch_size > batch and warmup_if_scaled:
            warmup_key, warmup = "lr.warmup_if_scaled", warmup_if_scaled
    w = in_steps(warmup, key=warmup_key)
    if w > total_steps:
        raise ValueError(
            f"config.{warmup_key} = {warmup!r} is {w} steps, the whole run is {total_steps}: "
            "shorten it, or lengthen config.duration"
        )

    if "end" in takes:
        _require(0 <= end <= peak, "lr.end", end, f"a number from 0 to the peak, {peak:g}")
    if "gamma" in takes:
        _require(0 < gamma <= 1, "lr.gamma", gamma, "a factor above 0, at most 1")

    def left(step):  # share of the decay that is still to come: 1 after the warmup, 0 at the end
        return jnp.maximum(total_steps - step, 0) / max(total_steps - w, 1)

    if schedule == "constant":

        def decayed(step):
            return jnp.full_like(step, peak, dtype=float)

    elif schedule == "cosine":

        def decayed(step):
            # (1 + cos(pi x)) / 2 without its cancellation where the rate is small.
            return end + (peak - end) * jnp.sin(jnp.pi / 2 * left(step)) ** 2

    elif schedule == "polynomial":
        _require(0 < power < math.inf, "lr.power", power, "a number above 0")

        def decayed(step):
            return end + (peak - end) * left(step) ** power

    elif schedule == "piecewise":
        drops = [in_steps(m, key="lr.milestones") for m in milestones]
        _require(
            len(drops) > 0 and all(a < b for a, b in zip([0, *drops], drops)),
            "lr.milestones",
            milestones,
            'one or more durations, each longer than the one before: ("30 epochs", "60 epochs")',
        )
        if drops[0] < w:
            raise ValueError(
                f"config.lr.milestones = {milestones!r} begin within the warmup, "
                f"config.{warmup_key} = {warmup!r}: both count from the start of the run"
            )
        rates = peak * gamma ** np.arange(len(drops) + 1.0)

        def decayed(step):
            return jnp.array(rates)[jnp.searchsorted(jnp.array(drops), step, side="right")]

    else:
        interval = in_steps(every, key="lr.every")
        _require(interval > 0, "lr.every", every, 'a duration of at least one step: "2.4 epochs"')

        def decayed(step):
            return peak * gamma ** jnp.floor_divide(step - w, interval).astype(float)

    def learning_rate(step):
        step = jnp.asarray(step)
        return jnp.where(step < w, peak * (step / max(w, 1)), decayed(step))

    return learning_rate


def make(
    *,
    name: str,
    momentum: float,
    nesterov: bool,
    betas: tuple[float, float],
    rho: float,
    epsilon: float | None,
    l2: float,
    weight_decay: float,
    no_decay: Sequence[str],
    lr_mults: Sequence[tuple[str, float]],
    frozen: Sequence[str],
    clip_norm: float,
    accumulate_steps: int,
    params: Any,
    learning_rate: Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `config.optim`.

    `update(grads, opt_state, params, step=step)` returns what to add to the parameters. The
    learning rate is that of `step`, not of a count in the optimizer's state: a skipped step must
    not hold the schedule back. With g the gradient, p the parameter, m its factor of `lr_mults`,
    the chain is, each part only where it is on:

        clip_norm      g min(1, clip_norm / |g|), |g| over all parameters that are trained
        l2             g + l2 p
        sgd            g
        momentum       v = mu v + g;  v, with nesterov g + mu v
        adam(w), lamb  Kingma and Ba 2015, arXiv:1412.6980, with bias correction
        rmsprop        r = rho r + (1 - rho) g^2;  g / sqrt(r + epsilon)
        adadelta       Zeiler 2012, arXiv:1212.5701
        weight_decay   + weight_decay p
        trust_ratio    lamb: times |p| / |update| of each parameter (arXiv:1904.00962)
        lr_mults       times m
        learning_rate  times -learning_rate(step)
        velocity       rmsprop: v = mu v + update;  v
        frozen         0

    These are PaddlePaddle's formulas. In its RMSProp the learning rate is inside the momentum:
    a falling rate does not shrink what has been gathered. Frozen parameters have no state; the
    state of all others is float32, or float64 for float64 parameters.

    Args:
      name, ..., clip_norm: `config.optim`.
      accumulate_steps: is for the train step; only its range is checked here.
      params: the parameters, or their `jax.eval_shape`: names and shapes for the rules.
      learning_rate: from `schedule`.

    Raises:
      ValueError: an unknown optimizer, a value out of range, a key that the optimizer does not
        take, a pattern that matches no parameter.
    """
    choose("config.optim.name", name, OPTIMIZERS)
    values = {
        "momentum": momentum,
        "nesterov": nesterov,
        "betas": tuple(betas),
        "rho": rho,
        "epsilon": epsilon,
        "l2": l2,
        "weight_decay": weight_decay,
    }
    refuse_unused("optim", name, values, OPTIMIZER_DEFAULTS, OPTIMIZERS[name])
    _require(0 <= momentum < 1, "optim.momentum", momentum, "a number from 0 to below 1")
    _require(
        len(betas) == 2 and all(_number(b) and 0 <= b < 1 for b in betas),
        "optim.betas",
        betas,
        "two numbers from 0 to below 1",
    )
    _require(0 <= rho < 1, "optim.rho", rho, "a number from 0 to below 1")
    _require(
        epsilon is None or 0 < epsilon <= 1,
        "optim.epsilon",
        epsilon,
        "a number above 0, at most 1, or None",
    )
    _require(0 <= l2 < 1, "optim.l2", l2, "a number from 0 to below 1")
    _require(
        0 <= weight_decay < 1, "optim.weight_decay", weight_decay, "a number from 0 to below 1"
    )
    _require(
        0 <= clip_norm < math.inf, "optim.clip_norm", clip_norm, "a norm above 0, or 0.0 for none"
    )
    _require(
        all(map(_is_rule, lr_mults)),
        "optim.lr_mults",
        lr_mults,
        'pairs of a pattern and a factor of at least 0: (("^stem/", 0.1),)',
    )
    _require(accumulate_steps >= 1, "optim.accumulate_steps", accumulate_steps, "at least 1")
    trees.check(no_decay, params, "optim.no_decay")
    trees.check([pattern for pattern, _ in lr_mults], params, "optim.lr_mults")
    trees.check(frozen, params, "optim.frozen")

    is_frozen = trees.mask(params, frozen)
    trained = jax.tree.map(lambda f: not f, is_frozen)
    decayed = jax.tree.map(lambda t, n: t and not n, trained, trees.mask(params, no_decay))
    factors = trees.multipliers(params, lr_mults)
    _require_some(trained, "optim.frozen", frozen, "freezes every parameter: none would be trained")
    _require_some(factors, "optim.lr_mults", lr_mults, "is 0 for every parameter: none would learn")
    if l2 or weight_decay:
        _require_some(decayed, "optim.no_decay", no_decay, "leaves nothing that would decay")
    elif no_decay:
        raise ValueError(
            f"config.optim.no_decay = {no_decay!r}: nothing decays, config.optim.l2 and "
            "config.optim.weight_decay are 0"
        )
    eps = EPSILONS.get(name, 1e-8) if epsilon is None else epsilon
    b1, b2 = betas

    def on_trained(tx):  # a mask changes the structure of the state: only where it is needed
        return optax.masked(tx, trained) if frozen else tx

    directions = {
        "sgd": optax.identity(),
        "momentum": optax.trace(momentum, nesterov=nesterov),
        "adam": optax.scale_by_adam(b1, b2, eps),
        "adamw": optax.scale_by_adam(b1, b2, eps),
        "rmsprop": optax.scale_by_rms(rho, eps, initial_scale=0.0, eps_in_sqrt=True),
        "adadelta": optax.scale_by_adadelta(rho, eps),
        "lamb": optax.scale_by_adam(b1, b2, eps),
    }
    chain = []
    if clip_norm:
        chain.append(("clip_norm", on_trained(optax.clip_by_global_norm(clip_norm))))
    if l2:
        chain.append(("l2", optax.add_decayed_weights(l2, decayed)))
    chain.append((name, on_trained(directions[name])))
    if weight_decay:
        chain.append(("weight_decay", optax.add_decayed_weights(weight_decay, decayed)))
    if name == "lamb":
        chain.append(("trust_ratio", on_trained(optax.scale_by_trust_ratio())))
    if lr_mults:
        chain.append(("lr_mults", _scale_by_factors(factors)))
    chain.append(("learning_rate", _scale_by_learning_rate(learning_rate)))
    if name == "rmsprop" and momentum:
        chain.append(("velocity", on_trained(optax.trace(momentum))))
    if frozen:
        chain.append(("frozen", optax.transforms.freeze(is_frozen)))
    return _in_float32(optax.named_chain(*chain))


def _scale_by_factors(factors: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _scale_by_learning_rate(learning_rate: Schedule) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, step, **extra_args):
        del params, extra_args
        rate = learning_rate(step)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _in_float32(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Returns `tx` with state and arithmetic in float32 at least, for half-precision parameters."""

    def widen(tree):
        return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)

    def update(grads, state, params, **extra_args):
        return tx.update(widen(grads), state, widen(params), **extra_args)

    return optax.GradientTransformationExtraArgs(lambda params: tx.init(widen(params)), update)

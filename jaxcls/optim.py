"""The optimizer as one named optax chain, and the schedules of its learning rate."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls import trees
from jaxcls.config import choose, expect, steps_of, taken, tuples

Schedule = Callable[[Any], jax.Array]


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_rule(rule: Any) -> bool:
    """Returns whether this is a (pattern, factor) of `config.optim.lr_mults`."""
    pair = isinstance(rule, (tuple, list)) and len(rule) == 2
    return pair and isinstance(rule[0], str) and _number(rule[1]) and 0 <= rule[1] < 3.4e38


def _require_some(tree: Any, key: str, value: Any, problem: str) -> None:
    if not any(jax.tree.leaves(tree)):
        raise ValueError(f"config.{key} = {value!r} {problem}")


# -- The learning rate ---------------------------------------------------------------------------


class Lengths(NamedTuple):
    """What a schedule may know of a run besides its own keys."""

    peak: float
    warmup: int  # w, steps
    warmup_key: str  # where that is from
    total: int  # T, steps
    in_steps: Callable[..., int]  # (duration, key=)

    def left(self, step: jax.Array) -> jax.Array:
        """Returns the share of the decay to come: 1 after the warmup, 0 at the end."""
        return jnp.maximum(self.total - step, 0) / max(self.total - self.warmup, 1)


def constant(run: Lengths) -> Schedule:
    """Returns the peak at all steps."""
    return lambda step: jnp.full_like(step, run.peak, dtype=float)


def cosine(run: Lengths, *, end: float) -> Schedule:
    """Returns end + (peak - end) (1 + cos(pi (s - w) / (T - w))) / 2."""
    _check_end(end, run)
    # (1 + cos(pi x)) / 2 without its cancellation where the rate is small.
    return lambda step: end + (run.peak - end) * jnp.sin(jnp.pi / 2 * run.left(step)) ** 2


def polynomial(run: Lengths, *, end: float, power: float) -> Schedule:
    """Returns end + (peak - end) (1 - (s - w) / (T - w))^power."""
    _check_end(end, run)
    expect(0 < power < math.inf, "lr.power", power, "a number above 0")
    return lambda step: end + (run.peak - end) * run.left(step) ** power


def piecewise(run: Lengths, *, milestones: Sequence[str], gamma: float) -> Schedule:
    """Returns peak gamma^(milestones that are <= s, counted from the start of the run)."""
    _check_gamma(gamma)
    drops = [run.in_steps(m, key="lr.milestones") for m in milestones]
    expect(
        len(drops) > 0 and all(a < b for a, b in zip([0, *drops], drops)),
        "lr.milestones",
        milestones,
        'one or more durations, each longer than the one before: ("30 epochs", "60 epochs")',
    )
    if drops[0] < run.warmup:
        raise ValueError(
            f"config.lr.milestones = {milestones!r} begin within the warmup, "
            f"config.{run.warmup_key}: both count from the start of the run"
        )
    rates = run.peak * gamma ** np.arange(len(drops) + 1.0)
    return lambda step: jnp.array(rates)[jnp.searchsorted(jnp.array(drops), step, side="right")]


def exponential(run: Lengths, *, gamma: float, every: str) -> Schedule:
    """Returns peak gamma^floor((s - w) / every)."""
    _check_gamma(gamma)
    interval = run.in_steps(every, key="lr.every")
    expect(interval > 0, "lr.every", every, 'a duration of at least one step: "2.4 epochs"')
    return lambda step: (
        run.peak * gamma ** jnp.floor_divide(step - run.warmup, interval).astype(float)
    )


def _check_end(end: float, run: Lengths) -> None:
    expect(0 <= end <= run.peak, "lr.end", end, f"a number from 0 to the peak, {run.peak:g}")


def _check_gamma(gamma: float) -> None:
    expect(0 < gamma <= 1, "lr.gamma", gamma, "a factor above 0, at most 1")


SCHEDULES = {f.__name__: f for f in (constant, cosine, polynomial, piecewise, exponential)}


def schedule(
    *,
    peak: float,
    batch: int,
    schedule: str,
    warmup: str,
    warmup_if_scaled: str,
    total_steps: int,
    batch_size: int,
    steps_per_epoch: int,
    **keys: Any,
) -> Schedule:
    """Returns the learning rate as a function of the step, for `config.lr`.

    In a run of T = `total_steps`, w of them warmup, step s < w has peak s / w, the others what the
    function of `SCHEDULES` says. With `batch` set, the peak is peak * batch_size / batch (Goyal et
    al. 2017, arXiv:1706.02677). It takes a Python int or an integer array, also under jit, and
    returns a float scalar.

    Raises:
      ValueError: an unknown schedule, a value out of range or of the wrong form, a key that the
        chosen schedule does not take.
    """
    method = SCHEDULES[choose("config.lr.schedule", schedule, SCHEDULES)]
    takes = taken("lr", schedule, method, {key: tuples(value) for key, value in keys.items()})
    in_steps = functools.partial(steps_of, batch_size=batch_size, steps_per_epoch=steps_per_epoch)
    expect(0 <= peak < math.inf, "lr.peak", peak, "a number of at least 0")
    expect(batch >= 0, "lr.batch", batch, "the batch size that peak is meant for, or 0")
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
    run = Lengths(peak, w, f"{warmup_key} = {warmup!r}", total_steps, in_steps)
    decayed = method(run, **takes)

    def learning_rate(step):
        step = jnp.asarray(step)
        return jnp.where(step < w, peak * (step / max(w, 1)), decayed(step))

    return learning_rate


# -- The optimizers ------------------------------------------------------------------------------

Part = tuple[str, optax.GradientTransformation]  # of a chain, by its name in the optimizer's state


class Parts(NamedTuple):
    """Makes the parts of a chain that depend on names of parameters."""

    trained: Any  # tree of bool
    decayed: Any  # tree of bool
    frozen: bool  # whether any is

    def on_trained(self, name: str, tx: optax.GradientTransformation) -> Part:
        """Returns a part for all parameters that are trained; the others have no state."""
        # a mask changes the structure of the state: only where it is needed
        return name, optax.masked(tx, self.trained) if self.frozen else tx

    def decay(self, name: str, factor: float) -> list[Part]:
        """Returns the part that adds factor * parameter, where there is something to add."""
        expect(0 <= factor < 1, f"optim.{name}", factor, "a number from 0 to below 1")
        return [(name, optax.add_decayed_weights(factor, self.decayed))] if factor else []


def sgd(p: Parts, *, l2: float, weight_decay: float) -> list[Part]:
    """Returns g + l2 p, then + weight_decay p."""
    return [
        *p.decay("l2", l2),
        p.on_trained("sgd", optax.identity()),
        *p.decay("weight_decay", weight_decay),
    ]


def momentum(
    p: Parts, *, momentum: float, nesterov: bool, l2: float, weight_decay: float
) -> list[Part]:
    """Returns sgd with v = mu v + g in the place of g; with `nesterov` g + mu v."""
    _check_momentum(momentum)
    if nesterov and not momentum:
        raise ValueError("config.optim.nesterov = True does nothing without config.optim.momentum")
    return [
        *p.decay("l2", l2),
        p.on_trained("momentum", optax.trace(momentum, nesterov=nesterov)),
        *p.decay("weight_decay", weight_decay),
    ]


def adam(p: Parts, *, betas: tuple[float, float], epsilon: float | None, l2: float) -> list[Part]:
    """Returns Adam with Paddle's coupled L2 (Kingma and Ba 2015, arXiv:1412.6980)."""
    return [*p.decay("l2", l2), p.on_trained("adam", _adam(betas, epsilon))]


def adamw(
    p: Parts, *, betas: tuple[float, float], epsilon: float | None, weight_decay: float
) -> list[Part]:
    """Returns Adam with decoupled decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    return [
        p.on_trained("adamw", _adam(betas, epsilon)),
        *p.decay("weight_decay", weight_decay),
    ]


def rmsprop(
    p: Parts, *, momentum: float, rho: float, epsilon: float | None, l2: float
) -> list[Part]:
    """Returns r = rho r + (1 - rho) g^2, g / sqrt(r + epsilon), and momentum over whole updates.

    As in PaddlePaddle, the learning rate is inside the momentum: a falling rate does not shrink
    what has been gathered, and a decoupled decay has no place.
    """
    _check_momentum(momentum)
    _check_rho(rho)
    scale = optax.scale_by_rms(rho, _epsilon(epsilon, 1e-3), initial_scale=0.0, eps_in_sqrt=True)
    velocity = [p.on_trained("velocity", optax.trace(momentum))] if momentum else []
    return [*p.decay("l2", l2), p.on_trained("rmsprop", scale), LEARNING_RATE, *velocity]


def adadelta(
    p: Parts, *, rho: float, epsilon: float | None, l2: float, weight_decay: float
) -> list[Part]:
    """Returns Adadelta (Zeiler 2012, arXiv:1212.5701)."""
    _check_rho(rho)
    return [
        *p.decay("l2", l2),
        p.on_trained("adadelta", optax.scale_by_adadelta(rho, _epsilon(epsilon, 1e-6))),
        *p.decay("weight_decay", weight_decay),
    ]


def lamb(
    p: Parts, *, betas: tuple[float, float], epsilon: float | None, weight_decay: float
) -> list[Part]:
    """Returns adamw times |p| / |update| of each parameter (You et al. 2020, arXiv:1904.00962)."""
    return [
        p.on_trained("lamb", _adam(betas, epsilon)),
        *p.decay("weight_decay", weight_decay),
        p.on_trained("trust_ratio", optax.scale_by_trust_ratio()),
    ]


def _adam(betas: tuple[float, float], epsilon: float | None) -> optax.GradientTransformation:
    expect(
        len(betas) == 2 and all(_number(b) and 0 <= b < 1 for b in betas),
        "optim.betas",
        betas,
        "two numbers from 0 to below 1",
    )
    return optax.scale_by_adam(*betas, _epsilon(epsilon, 1e-8))


def _epsilon(epsilon: float | None, default: float) -> float:
    ok = epsilon is None or 0 < epsilon <= 1
    expect(ok, "optim.epsilon", epsilon, "a number above 0, at most 1, or None")
    return default if epsilon is None else epsilon


def _check_momentum(momentum: float) -> None:
    expect(0 <= momentum < 1, "optim.momentum", momentum, "a number from 0 to below 1")


def _check_rho(rho: float) -> None:
    expect(0 <= rho < 1, "optim.rho", rho, "a number from 0 to below 1")


OPTIMIZERS = {f.__name__: f for f in (sgd, momentum, adam, adamw, rmsprop, adadelta, lamb)}
LEARNING_RATE: Part = ("learning_rate", optax.identity())  # where `make` puts it, if not at the end


class Optimizer(NamedTuple):
    """What `config.optim` stands for."""

    tx: optax.GradientTransformationExtraArgs
    frozen: tuple[str, ...]  # patterns of parameters
    lr_mults: tuple[tuple[str, float], ...]  # factors of the learning rate, by pattern
    accumulate_steps: int  # micro-batches in a step


def make(
    *,
    name: str,
    no_decay: Sequence[str],
    lr_mults: Sequence[tuple[str, float]],
    frozen: Sequence[str],
    clip_norm: float,
    accumulate_steps: int,
    params: Any,
    learning_rate: Schedule,
    **keys: Any,
) -> Optimizer:
    """Returns the optimizer of `config.optim`.

    `tx.update(grads, opt_state, params, step=step)` returns what to add to the parameters. The
    learning rate is that of `step`, not of a count in the optimizer's state: a skipped step must
    not hold the schedule back. With g the gradient, p the parameter, m its factor of `lr_mults`,
    the chain is, each part only where it is on:

        clip_norm      g min(1, clip_norm / |g|), |g| over all parameters that are trained
        ...            the function of `OPTIMIZERS`; PaddlePaddle's formulas
        lr_mults       times m
        learning_rate  times -learning_rate(step)
        frozen         0

    Frozen parameters have no state; the state of all others is float32, or float64 for float64
    parameters.

    Args:
      name, ...: `config.optim`: a name of `OPTIMIZERS` and what it takes.
      params: the parameters, or their `jax.eval_shape`: names and shapes for the rules.
      learning_rate: from `schedule`.

    Raises:
      ValueError: an unknown optimizer, a value out of range, a key that the optimizer does not
        take, a pattern that matches no parameter.
    """
    method = OPTIMIZERS[choose("config.optim.name", name, OPTIMIZERS)]
    takes = taken("optim", name, method, {key: tuples(value) for key, value in keys.items()})
    expect(
        0 <= clip_norm < math.inf, "optim.clip_norm", clip_norm, "a norm above 0, or 0.0 for none"
    )
    expect(
        all(map(_is_rule, lr_mults)),
        "optim.lr_mults",
        lr_mults,
        'pairs of a pattern and a factor of at least 0: (("^stem/", 0.1),)',
    )
    expect(accumulate_steps >= 1, "optim.accumulate_steps", accumulate_steps, "at least 1")
    trees.check(no_decay, params, "optim.no_decay")
    trees.check([pattern for pattern, _ in lr_mults], params, "optim.lr_mults")
    trees.check(frozen, params, "optim.frozen")

    is_frozen = trees.mask(params, frozen)
    trained = jax.tree.map(lambda f: not f, is_frozen)
    decayed = jax.tree.map(lambda t, n: t and not n, trained, trees.mask(params, no_decay))
    factors = trees.multipliers(params, lr_mults)
    parts = Parts(trained, decayed, bool(frozen))
    chain = method(parts, **takes)
    _require_some(trained, "optim.frozen", frozen, "freezes every parameter: none would be trained")
    _require_some(factors, "optim.lr_mults", lr_mults, "is 0 for every parameter: none would learn")
    if {"l2", "weight_decay"} & {part for part, _ in chain}:
        _require_some(decayed, "optim.no_decay", no_decay, "leaves nothing that would decay")
    elif no_decay:
        raise ValueError(
            f"config.optim.no_decay = {no_decay!r}: nothing decays, config.optim.l2 and "
            "config.optim.weight_decay are 0"
        )
    if clip_norm:
        chain.insert(0, parts.on_trained("clip_norm", optax.clip_by_global_norm(clip_norm)))
    place = chain.index(LEARNING_RATE) if LEARNING_RATE in chain else len(chain)
    rates = [("lr_mults", _scale_by_factors(factors))] if lr_mults else []
    rates.append((LEARNING_RATE[0], _scale_by_learning_rate(learning_rate)))
    chain[place : place + 1] = rates
    if frozen:
        chain.append(("frozen", optax.transforms.freeze(is_frozen)))
    return Optimizer(
        _in_float32(optax.named_chain(*chain)), tuple(frozen), tuple(lr_mults), accumulate_steps
    )


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

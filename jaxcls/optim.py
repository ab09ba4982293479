"""The optimizer: `config.optim` as one named optax chain."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcls import trees
from jaxcls.config import choose, defaults, expect, taken, tuples
from jaxcls.schedules import Plateau, Schedule


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_rule(rule: Any) -> bool:
    """Returns whether this is a (pattern, factor) of `config.optim.lr_mults`."""
    pair = isinstance(rule, (tuple, list)) and len(rule) == 2
    return pair and isinstance(rule[0], str) and _number(rule[1]) and 0 <= rule[1] < 3.4e38


def _require_some(tree: Any, key: str, value: Any, problem: str) -> None:
    if not any(jax.tree.leaves(tree)):
        raise ValueError(f"config.{key} = {value!r} {problem}")


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

    def lasso(self, name: str, factor: float) -> list[Part]:
        """Returns the part that adds factor * sign(parameter), where there is something to add."""
        expect(0 <= factor < 1, f"optim.{name}", factor, "a number from 0 to below 1")
        add = lambda gradient, parameter: gradient + factor * jnp.sign(parameter)
        tx = optax.stateless(lambda gradients, params: jax.tree.map(add, gradients, params))
        return [(name, optax.masked(tx, self.decayed))] if factor else []


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


def lars(p: Parts, *, momentum: float, trust_coefficient: float, l2: float) -> list[Part]:
    """Returns LARS, for large batches (You et al. 2017, arXiv:1708.03888).

    The gradient g + l2 p of each parameter of two and more dimensions, kernels, is scaled by
    trust_coefficient |p| / (|g| + l2 |p|), by 1 where |p| or |g| is 0; biases and the parameters of
    norms are updated as they are. As in the paper the learning rate is inside the momentum, as with
    `rmsprop`. What `no_decay` names has no l2 in either place.
    """
    _check_momentum(momentum)
    key = "optim.trust_coefficient"
    expect(0 < trust_coefficient < math.inf, key, trust_coefficient, "a number above 0")
    expect(0 <= l2 < 1, "optim.l2", l2, "a number from 0 to below 1")

    def scaled(gradient, parameter, decayed):
        beta = l2 if decayed else 0.0
        update = gradient + beta * parameter
        if parameter.ndim < 2:
            return update
        of_p, of_g = (jnp.sqrt(jnp.sum(x * x)) for x in (parameter, gradient))
        ratio = trust_coefficient * of_p / (of_g + beta * of_p)
        return update * jnp.where((of_p > 0) & (of_g > 0), ratio, 1)

    # the frozen ones too, which have no say and no state
    scale = lambda gradients, params: jax.tree.map(scaled, gradients, params, p.decayed)
    velocity = [p.on_trained("velocity", optax.trace(momentum))] if momentum else []
    return [("lars", optax.stateless(scale)), LEARNING_RATE, *velocity]


def lion(p: Parts, *, lion_betas: tuple[float, float], weight_decay: float) -> list[Part]:
    """Returns sign(b1 m + (1 - b1) g), m = b2 m + (1 - b2) g (Chen et al. 2023, arXiv:2302.06675).

    Its updates are larger than Adam's: the paper takes a third to a tenth of adamw's learning rate
    and as many times its weight decay.
    """
    _check_betas("optim.lion_betas", lion_betas)
    return [
        p.on_trained("lion", optax.scale_by_lion(*lion_betas)),
        *p.decay("weight_decay", weight_decay),
    ]


class Slow(NamedTuple):
    """State of `slowed`."""

    count: jax.Array  # int32, updates so far
    slow: Any  # the slow weights


def slowed(k: int, alpha: float) -> optax.GradientTransformation:
    """Returns the last part of a chain whose parameters are the fast weights of Lookahead.

    At each k-th update the slow weights go the share `alpha` of their way to the fast ones, which
    go on from there (Zhang et al. 2019, arXiv:1907.08610). The state of the optimizer inside stays
    as it is. Skipped steps are no updates.
    """

    def init(params: Any) -> Slow:
        return Slow(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Slow, params: Any) -> tuple[Any, Slow]:
        # They begin where the parameters do, which fine-tuning sets after `init`.
        begin = lambda slow, p: jnp.where(state.count == 0, p, slow)
        count = state.count + 1
        now = count % k == 0
        move = lambda slow, p, u: jnp.where(now, slow + alpha * (p + u - slow), slow)
        slow = jax.tree.map(move, jax.tree.map(begin, state.slow, params), params, updates)
        updates = jax.tree.map(lambda u, s, p: jnp.where(now, s - p, u), updates, slow, params)
        return updates, Slow(count, slow)

    return optax.GradientTransformation(init, update)


def _adam(betas: tuple[float, float], epsilon: float | None) -> optax.GradientTransformation:
    _check_betas("optim.betas", betas)
    return optax.scale_by_adam(*betas, _epsilon(epsilon, 1e-8))


def _check_betas(key: str, betas: tuple[float, float]) -> None:
    ok = len(betas) == 2 and all(_number(b) and 0 <= b < 1 for b in betas)
    expect(ok, key, betas, "two numbers from 0 to below 1")


def _epsilon(epsilon: float | None, default: float) -> float:
    ok = epsilon is None or 0 < epsilon <= 1
    expect(ok, "optim.epsilon", epsilon, "a number above 0, at most 1, or None")
    return default if epsilon is None else epsilon


def _check_momentum(momentum: float) -> None:
    expect(0 <= momentum < 1, "optim.momentum", momentum, "a number from 0 to below 1")


def _check_rho(rho: float) -> None:
    expect(0 <= rho < 1, "optim.rho", rho, "a number from 0 to below 1")


OPTIMIZERS = {
    f.__name__: f for f in (sgd, momentum, adam, adamw, rmsprop, adadelta, lamb, lars, lion)
}
LEARNING_RATE: Part = ("learning_rate", optax.identity())  # where `make` puts it, if not at the end


class Optimizer(NamedTuple):
    """What `config.optim` stands for."""

    tx: optax.GradientTransformationExtraArgs
    frozen: tuple[str, ...]  # patterns of parameters
    factors: Any  # of the learning rate, a tree of floats
    accumulate_steps: int  # micro-batches in a step
    rate: Callable[[Any], jax.Array]  # train state -> learning rate of its step
    watched: Callable[[Any, Any], Any]  # (train state, evaluation or None) -> state, of a `Plateau`


def make(
    *,
    name: str,
    l1: float,
    no_decay: Sequence[str],
    lr_mults: Sequence[tuple[str, float]],
    layer_decay: float,
    frozen: Sequence[str],
    clip_norm: float,
    lookahead: int,
    lookahead_alpha: float,
    accumulate_steps: int,
    params: Any,
    learning_rate: Schedule,
    **keys: Any,
) -> Optimizer:
    """Returns the optimizer of `config.optim`.

    `tx.update(grads, opt_state, params, step=step)` returns what to add to the parameters. The
    learning rate is that of `step`, not of a count in the optimizer's state: a skipped step must
    not hold the schedule back. With g the gradient, p the parameter, m its factor of `lr_mults`
    times layer_decay^(layers above it, see `trees.layers_above`), the chain is, each part only
    where it is on:

        clip_norm      g min(1, clip_norm / |g|), |g| over all parameters that are trained
        l1             g + l1 sign(p)
        ...            the function of `OPTIMIZERS`; PaddlePaddle's formulas
        lr_mults       times m
        learning_rate  times -learning_rate(step), and the factor of a `Plateau`
        lookahead      `slowed`
        frozen         0

    Frozen parameters have no state; the state of all others is float32, or float64 for float64
    parameters.

    Args:
      name, ...: `config.optim`: a name of `OPTIMIZERS` and what it takes.
      params: the parameters, or their `jax.eval_shape`: names and shapes for the rules.
      learning_rate: from `schedule`.

    Raises:
      ValueError: an unknown optimizer, a value out of range, a key that the optimizer does not
        take, a pattern that matches no parameter, or freezes what an objective trains besides.
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
    expect(0 < layer_decay <= 1, "optim.layer_decay", layer_decay, "a factor above 0, at most 1")
    _check_lookahead(lookahead, lookahead_alpha)
    expect(accumulate_steps >= 1, "optim.accumulate_steps", accumulate_steps, "at least 1")
    trees.check(no_decay, params, "optim.no_decay")
    trees.check([pattern for pattern, _ in lr_mults], params, "optim.lr_mults")
    trees.check(frozen, params, "optim.frozen")

    own = (path for path in trees.paths(params) if path.startswith(f"{trees.EXTRA}/"))
    if path := next((path for path in own if trees.matches(frozen, path)), ""):
        raise ValueError(
            f"config.optim.frozen = {frozen!r} matches {path}, which is trained beside the network "
            f"and cannot be frozen: leave out {trees.EXTRA}/, as in '^stem/'"
        )
    is_frozen = trees.mask(params, frozen)
    trained = jax.tree.map(lambda f: not f, is_frozen)
    decayed = jax.tree.map(lambda t, n: t and not n, trained, trees.mask(params, no_decay))
    above = trees.layers_above(params)
    factors = jax.tree.map(
        lambda factor, layers: factor * layer_decay**layers,
        trees.multipliers(params, lr_mults),
        above,
    )
    parts = Parts(trained, decayed, bool(frozen))
    chain = [*parts.lasso("l1", l1), *method(parts, **takes)]
    _require_some(trained, "optim.frozen", frozen, "freezes every parameter: none would be trained")
    _require_some(factors, "optim.lr_mults", lr_mults, "is 0 for every parameter: none would learn")
    if layer_decay < 1:
        scaled = jax.tree.map(lambda t, layers: t and layers > 0, trained, above)
        problem = "does nothing: config.optim.frozen leaves the head alone, whose factor is 1"
        _require_some(scaled, "optim.layer_decay", layer_decay, problem)
    if l1 or any(takes.get(key) for key in ("l2", "weight_decay")):
        _require_some(decayed, "optim.no_decay", no_decay, "leaves nothing that would decay")
    elif no_decay:
        raise ValueError(
            f"config.optim.no_decay = {no_decay!r}: nothing decays, config.optim.l2, "
            "config.optim.weight_decay and config.optim.l1 are 0"
        )
    if clip_norm:
        chain.insert(0, parts.on_trained("clip_norm", optax.clip_by_global_norm(clip_norm)))
    place = chain.index(LEARNING_RATE) if LEARNING_RATE in chain else len(chain)
    scale = bool(lr_mults) or layer_decay < 1
    rates = [("lr_mults", _scale_by_factors(factors))] if scale else []
    rates.append((LEARNING_RATE[0], _scale_by_learning_rate(learning_rate)))
    chain[place : place + 1] = rates
    if lookahead:
        chain.append(parts.on_trained("lookahead", slowed(lookahead, lookahead_alpha)))
    if frozen:
        chain.append(("frozen", optax.transforms.freeze(is_frozen)))
    name, plateau = LEARNING_RATE[0], isinstance(learning_rate, Plateau)

    def rate(state: Any) -> jax.Array:
        now = learning_rate(state.step)
        return now * state.opt_state[name].factor if plateau else now

    def watched(state: Any, evaluation: Any) -> Any:
        if not plateau:
            return state
        new = learning_rate.after(state.opt_state[name], evaluation)
        return state.replace(opt_state=type(state.opt_state)(state.opt_state, **{name: new}))

    tx = _in_float32(optax.named_chain(*chain))
    return Optimizer(tx, tuple(frozen), factors, accumulate_steps, rate, watched)


def _check_lookahead(k: int, alpha: float) -> None:
    expect(k >= 0, "optim.lookahead", k, "a number of steps, or 0 for none")
    expect(0 < alpha <= 1, "optim.lookahead_alpha", alpha, "a share above 0, at most 1")
    if not k and alpha != defaults()[0]["optim.lookahead_alpha"]:
        raise ValueError(
            f"config.optim.lookahead_alpha = {alpha} does nothing without config.optim.lookahead"
        )


def _scale_by_factors(factors: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _scale_by_learning_rate(learning_rate: Schedule) -> optax.GradientTransformationExtraArgs:
    watched = isinstance(learning_rate, Plateau)

    def init(params):
        return learning_rate.start() if watched else optax.init_empty_state(params)

    def update(updates, state, params=None, *, step, **extra_args):
        del params, extra_args
        rate = learning_rate(step) * state.factor if watched else learning_rate(step)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _in_float32(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Returns `tx` with state and arithmetic in float32 at least, for half-precision parameters."""

    def widen(tree):
        return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)

    def update(grads, state, params, **extra_args):
        return tx.update(widen(grads), state, widen(params), **extra_args)

    return optax.GradientTransformationExtraArgs(lambda params: tx.init(widen(params)), update)

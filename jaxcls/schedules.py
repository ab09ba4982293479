"""The learning rate of a step: `config.lr`."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import choose, defaults, expect, refuse_unused, steps_of, taken, tuples

Schedule = Callable[[Any], jax.Array]


class Lengths(NamedTuple):
    """What a schedule may know of a run besides its own keys."""

    peak: float
    warmup: int  # w, steps
    warmup_key: str  # where that is from
    total: int  # T, steps
    in_steps: Callable[..., int]  # (duration, key=)
    metric: str  # of the evaluation, that tells the best
    eval_every: int  # steps; 0: only at the end

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


def cyclic(
    run: Lengths, *, end: float, cycle: str, rise: float | None, mode: str, gamma: float
) -> Schedule:
    """Returns the rate of cycles from `end` to the peak and back (Smith 2017, arXiv:1506.01186).

    Both ways are straight; `rise` is the share of the way up, 0.5 where it is None. By `mode` the
    height of a cycle is that of all ("triangular"), half that of the one before ("triangular2"), or
    falls steadily, by `gamma` in a cycle ("exp_range"; torch's CyclicLR has a gamma for each step).
    The momentum stays as it is.
    """
    _check_end(end, run)
    mode = _mode(mode, "triangular", "triangular2", "exp_range")
    if mode == "exp_range":
        _check_gamma(gamma)
    else:
        _refuse_gamma(gamma, mode)
    length = run.in_steps(cycle, key="lr.cycle")
    expect(length > 1, "lr.cycle", cycle, 'a duration of at least 2 steps: "10 epochs"')
    up = round(length * _rise(rise, 0.5))
    expect(0 < up < length, "lr.rise", rise, f"a share that is a step at least of {length}")

    def rate(step):
        number, place = jnp.divmod(step, length)
        height = jnp.where(place < up, place / up, (length - place) / (length - up))
        if mode == "triangular2":
            height *= 0.5 ** number.astype(float)
        elif mode == "exp_range":
            height *= gamma ** (step / length)
        return end + (run.peak - end) * height

    return rate


def one_cycle(
    run: Lengths,
    *,
    rise: float | None,
    mode: str,
    div_factor: float,
    final_div_factor: float,
    three_phase: bool,
) -> Schedule:
    """Returns the rate of one cycle over the whole run (Smith and Topin 2018, arXiv:1708.07120).

    With a = peak / div_factor it goes from a to the peak in the share `rise` of the run, 0.3 where
    it is None, and from there to a / final_div_factor, which the last step has; with `three_phase`
    before that back to a, in as many steps as it rose. By `mode` the ways are halves of a cosine
    ("cos") or straight ("linear"). As torch's OneCycleLR; the momentum stays as it is.
    """
    mode = _mode(mode, "cos", "linear")
    for key, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
        expect(1 <= value < math.inf, f"lr.{key}", value, "a number of at least 1")
    low = run.peak / div_factor
    rates = [low, run.peak, *([low] if three_phase else []), low / final_div_factor]
    top = _rise(rise, 0.3) * run.total - 1
    corners = [0.0, top, *([2 * top] if three_phase else []), float(run.total - 1)]
    most = 0.5 if three_phase else 1
    expect(
        all(a < b for a, b in itertools.pairwise(corners)),
        "lr.rise",
        rise,
        f"a share below {most}, and of at least 2 of the {run.total} steps",
    )

    def rate(step):
        out = jnp.full_like(step, rates[-1], dtype=float)
        for i in reversed(range(len(corners) - 1)):
            begin, finish = corners[i : i + 2]
            # towards the end of a way its rest is what is small
            done = jnp.sin(jnp.pi / 2 * (step - begin) / (finish - begin)) ** 2
            left = jnp.sin(jnp.pi / 2 * (finish - step) / (finish - begin)) ** 2
            if mode == "linear":
                left = (finish - step) / (finish - begin)
                done = (step - begin) / (finish - begin)
            way = rates[i] * left + rates[i + 1] * done
            out = jnp.where(step <= finish, way, out)
        return out

    return rate


class Watched(NamedTuple):
    """What `Plateau` knows, part of the optimizer's state. Scalars."""

    factor: jax.Array  # float32, of the learning rate
    best: jax.Array  # float32, value of the metric
    bad: jax.Array  # int32, evaluations in a row that were not better
    resting: jax.Array  # int32, evaluations to come that are not counted as such
    step: jax.Array  # int32, of the last evaluation


@dataclasses.dataclass(frozen=True)
class Plateau:
    """A schedule with a factor that evaluations lower, as torch's ReduceLROnPlateau.

    After more than `patience` evaluations in a row that were not better than the best one, the
    learning rate is multiplied by `gamma`, but not below `end` (a change of less than 1e-8 is
    none); then `cooldown` evaluations are not counted. Better is a metric that is above best
    (1 + threshold), or best + threshold if not `relative`; of a loss, below best (1 - threshold).
    Evaluations within the warmup do not count.
    """

    peak: float
    warmup: int  # steps
    metric: str
    end: float
    gamma: float
    patience: int
    threshold: float
    relative: bool
    cooldown: int
    rate: Schedule  # at a factor of 1

    def __call__(self, step: Any) -> jax.Array:
        """Returns the rate at a factor of 1."""
        return self.rate(step)

    def start(self) -> Watched:
        """Returns what it knows before the first evaluation."""
        # an array each: the step donates its state, and no buffer may stand in it twice
        zeros = (jnp.zeros((), jnp.int32) for _ in range(3))
        best = jnp.array(self._sign * -jnp.inf, jnp.float32)
        return Watched(jnp.ones((), jnp.float32), best, *zeros)

    def after(self, known: Watched, evaluation: Mapping[str, Any] | None) -> Watched:
        """Returns what it knows after an evaluation, {"step": ..., metric: ...}.

        One that it knows of already, or none, changes nothing: a checkpoint is saved before it is
        evaluated, so that a run that goes on may come here twice.
        """
        if evaluation is None:
            return known
        value = evaluation.get(self.metric)
        return self._after(known, math.nan if value is None else value, evaluation["step"])

    @property
    def _sign(self) -> int:
        return -1 if self.metric == "loss" else 1  # as in `checkpoint.better`

    @functools.partial(jax.jit, static_argnums=0)
    def _after(self, known: Watched, value: Any, step: Any) -> Watched:
        sign, value = self._sign, jnp.asarray(value, jnp.float32)
        margin = self.threshold * (known.best if self.relative else 1)
        # infinity times a threshold of 0 is no number
        margin = jnp.where(jnp.isfinite(known.best), margin, 0)
        better = sign * value > sign * known.best + margin
        resting = known.resting > 0
        bad = jnp.where(better | resting, 0, known.bad + 1)
        reduce = bad > self.patience
        least = self.end / self.peak if self.peak else 0.0
        lower = jnp.maximum(known.factor * self.gamma, least)
        lower = jnp.where(self.peak * (known.factor - lower) > 1e-8, lower, known.factor)
        new = Watched(
            factor=jnp.where(reduce, lower, known.factor),
            best=jnp.where(better, value, known.best),
            bad=jnp.where(reduce, 0, bad),
            resting=jnp.where(reduce, self.cooldown, known.resting - resting),
            step=jnp.asarray(step, jnp.int32),
        )
        counts = (step > known.step) & (step > self.warmup)
        return jax.tree.map(lambda n, o: jnp.where(counts, n, o).astype(o.dtype), new, known)


def plateau(
    run: Lengths,
    *,
    end: float,
    gamma: float,
    patience: int,
    threshold: float,
    mode: str,
    cooldown: int,
) -> Schedule:
    """Returns the peak, until `Plateau` lowers it."""
    if not 0 < run.eval_every < run.total:
        raise ValueError(
            "config.lr.schedule = 'plateau' does nothing where only the end is evaluated: set "
            "config.eval.every, to less than config.duration"
        )
    _check_end(end, run)
    expect(0 < gamma < 1, "lr.gamma", gamma, "a factor above 0 and below 1")
    expect(patience >= 0, "lr.patience", patience, "a number of evaluations, at least 0")
    expect(cooldown >= 0, "lr.cooldown", cooldown, "a number of evaluations, at least 0")
    expect(0 <= threshold < math.inf, "lr.threshold", threshold, "a number of at least 0")
    relative = _mode(mode, "rel", "abs") == "rel"
    its = {"end": end, "gamma": gamma, "patience": patience, "threshold": threshold}
    its |= {"relative": relative, "cooldown": cooldown, "rate": constant(run)}
    return Plateau(run.peak, run.warmup, run.metric, **its)


def _check_end(end: float, run: Lengths) -> None:
    expect(0 <= end <= run.peak, "lr.end", end, f"a number from 0 to the peak, {run.peak:g}")


def _check_gamma(gamma: float) -> None:
    expect(0 < gamma <= 1, "lr.gamma", gamma, "a factor above 0, at most 1")


def _refuse_gamma(gamma: float, mode: str) -> None:
    default = {"gamma": defaults()[0]["lr.gamma"]}
    refuse_unused("lr", mode, {"gamma": gamma}, default, ("cycle", "end", "mode", "rise"))


def _mode(mode: str, *modes: str) -> str:
    return choose("config.lr.mode", mode, modes) if mode else modes[0]


def _rise(rise: float | None, default: float) -> float:
    expect(rise is None or 0 < rise < 1, "lr.rise", rise, "a share above 0 and below 1, or None")
    return default if rise is None else rise


SCHEDULES = {
    f.__name__: f
    for f in (constant, cosine, polynomial, piecewise, exponential, cyclic, one_cycle, plateau)
}
RISING = ("cyclic", "one_cycle")  # by themselves, so that they take no warmup


def schedule(
    *,
    peak: float,
    batch: int,
    schedule: str,
    warmup: str,
    warmup_start: float,
    warmup_if_scaled: str,
    total_steps: int,
    batch_size: int,
    steps_per_epoch: int,
    metric: str = "top1",
    eval_every: int = 1,
    **keys: Any,
) -> Schedule:
    """Returns the learning rate as a function of the step, for `config.lr`.

    In a run of T = `total_steps`, w of them warmup, step s < w has start + (peak - start) s / w,
    where start is `warmup_start`, the others what the function of `SCHEDULES` says. With `batch`
    set, the peak is peak * batch_size / batch (Goyal et al. 2017, arXiv:1706.02677). It takes a
    Python int or an integer array, also under jit, and returns a float scalar.

    Args:
      peak, ...: `config.lr`.
      total_steps, batch_size, steps_per_epoch: of the run.
      metric: of its evaluations, that tells the best; the result is a `Plateau` where it counts.
      eval_every: steps between these; 0: there is one at the end.

    Raises:
      ValueError: an unknown schedule, a value out of range or of the wrong form, a key that the
        chosen schedule does not take.
    """
    method = SCHEDULES[choose("config.lr.schedule", schedule, SCHEDULES)]
    takes = taken("lr", schedule, method, {key: tuples(value) for key, value in keys.items()})
    given = {"peak": peak, "batch": batch, "warmup": warmup, "warmup_if_scaled": warmup_if_scaled}
    its = {"total_steps": total_steps, "batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
    run = lengths(**given, **its, metric=metric, eval_every=eval_every)
    start, peak, w = warmup_start, run.peak, run.warmup
    want = f"a number from 0 to the peak, {peak:g}"
    expect(0 <= start <= peak, "lr.warmup_start", start, want)
    if start and not (warmup or warmup_if_scaled):
        raise ValueError(f"config.lr.warmup_start = {start} does nothing without config.lr.warmup")
    if schedule in RISING and w:
        raise ValueError(
            f"config.{run.warmup_key}: the schedule {schedule!r} rises by itself: "
            "--config.lr.warmup='' --config.lr.warmup_if_scaled=''"
        )
    decayed = method(run, **takes)

    def learning_rate(step):
        step = jnp.asarray(step)
        rises, share = step < w, step / max(w, 1)
        rise = start + (peak - start) * share if start else peak * share
        return jnp.where(rises, rise, decayed(step))

    if isinstance(decayed, Plateau):
        return dataclasses.replace(decayed, rate=learning_rate)
    return learning_rate


def lengths(
    *,
    peak: float,
    batch: int,
    warmup: str,
    warmup_if_scaled: str,
    total_steps: int,
    batch_size: int,
    steps_per_epoch: int,
    metric: str = "top1",
    eval_every: int = 1,
) -> Lengths:
    """Returns what schedules know of a run; the arguments are those of `schedule`.

    Raises:
      ValueError: a value out of range or of the wrong form.
    """
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
    key = f"{warmup_key} = {warmup!r}"
    return Lengths(peak, w, key, total_steps, in_steps, metric, eval_every)

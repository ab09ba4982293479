"""Averages of variables over the steps of a run, by name.

"ema" moves by a share in every step. "swa" is the mean of the variables after some steps, all alike
(Izmailov et al. 2018, arXiv:1803.05407); it has their "count" besides, and is what is trained
until the first of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import trees
from jaxcls.barrier import when_compiled
from jaxcls.config import expect, steps_of

PREFERRED = ("swa", "ema")  # which of them is "the average" of a run: the first that has begun
COUNT = "count"  # int32, of the steps that a mean is of
BATCHES = 100  # at most, and at most an epoch, that BatchNorm statistics of a mean are of
Variables = Mapping[str, Any]  # {"params", "batch_stats"}
Share = Callable[[jax.Array], Any]  # step -> share of its variables; of a mean: whether they count


def make(*, decay: float, ramp: bool) -> dict[str, Share]:
    """Returns the averages of `config.ema`, {"ema": share}: 1 - decay; nothing for a decay of 0.

    With `ramp` the decay begins with (1 + step) / (10 + step), where that is less.

    Raises:
      ValueError: `decay` outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"config.ema.decay = {decay}: write a number in [0, 1)")
    # 1 - decay in Python's doubles: float32's 0.9999 is too far off
    ema = lambda step: jnp.maximum(1 - decay, 9 / (10 + step)) if ramp else 1 - decay
    return {"ema": ema} if decay else {}


def stochastic(
    *, start: str, every: str, total_steps: int, batch_size: int, steps_per_epoch: int
) -> dict[str, Share]:
    """Returns the averages of `config.swa`, {"swa": whether a step counts}; nothing without start.

    The mean is of the variables `start` after the beginning of the run and `every` so often from
    then on. A step that was skipped has no part in it.

    Raises:
      ValueError: what is no duration, or a start after the end.
    """
    lengths = {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
    first = steps_of(start, key="swa.start", **lengths)
    if not start:
        return {}
    want = 'a duration of at least one step, such as "1 steps" for all from the first, or ""'
    expect(first > 0, "swa.start", start, want)
    interval = steps_of(every, key="swa.every", **lengths)
    expect(interval > 0, "swa.every", every, 'a duration of at least one step: "1 epochs"')
    if first > total_steps:
        raise ValueError(
            f"config.swa.start = {start!r} is step {first}, the whole run is {total_steps}: begin "
            "earlier, or lengthen config.duration"
        )
    # `step` is the number of those before it
    return {"swa": lambda step: (step + 1 >= first) & ((step + 1 - first) % interval == 0)}


def start(variables: Variables, name: str = "ema") -> dict[str, Any]:
    """Returns the average of that name at its start: copies, in float32 at least."""
    # a copy: the step donates its state, and no buffer may stand in it twice
    wide = lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)
    counted = {COUNT: jnp.zeros((), jnp.int32)} if name == "swa" else {}
    return jax.tree.map(wide, dict(variables)) | counted


def after(average: Variables, new: Variables, share: Share, step: jax.Array) -> Variables:
    """Returns an average after a step that made the variables `new`.

    Args:
      average: before it.
      share: of `make` or `stochastic`.
      step: number of the steps before it.
    """
    if COUNT not in average:
        clock = step.astype(jnp.result_type(*jax.tree.leaves(average["params"])))
        return moved(average, new, share(clock))
    old, before, counts = {name: average[name] for name in new}, average[COUNT], share(step)
    count = before + counts
    mean = moved(old, new, jnp.where(counts, 1 / jnp.maximum(count, 1), 0))
    # a copy of the first, without the rounding of a difference
    mean = jax.tree.map(lambda m, n: jnp.where(before > 0, m, n.astype(m.dtype)), mean, new)
    return mean | {COUNT: count}


def moved(average: Variables, new: Variables, share: Any) -> Variables:
    """Returns (1 - share) average + share new."""
    # no product with the old one: the sum of two would drift by 2e-4
    move = lambda old, new: old + share * (new.astype(old.dtype) - old)
    return jax.tree.map(move, average, new)


def preferred(averages: Mapping[str, Variables]) -> str:
    """Returns the first name of `PREFERRED` whose average has begun; "" where there is none."""
    begun = lambda average: COUNT not in average or int(average[COUNT]) > 0
    return next((name for name in PREFERRED if name in averages and begun(averages[name])), "")


def make_statistics_step(
    model: nn.Module, frozen: Sequence[str] = ()
) -> Callable[[Variables, Any, jax.Array], Any]:
    """Returns f(variables, batch, n) -> batch_stats, which re-estimates those of BatchNorm.

    Averaged parameters have seen no batch. Called for n = 0, 1, ... with the result in `variables`
    each time, it returns the mean of the statistics of batches 0 to n, whatever they were before
    (Izmailov et al. 2018, arXiv:1803.05407, section 3.2).

    Args:
      model: of the train step. Batches are as it gets them there: prepared.
      frozen: patterns of parameters whose BatchNorms stand still.
    """
    keep = trees.frozen_modules(frozen) if frozen else None
    # without momentum the running ones are those of the batch; nothing is dropped, as in evaluation
    c = model.c.replace(bn_momentum=0.0, frozen=keep, dropout=0.0, drop_path=0.0)
    alone = model.clone(c=c)

    def statistics_step(variables: Variables, batch: Mapping[str, jax.Array], n: jax.Array) -> Any:
        _, new = alone.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        new, old = new.get("batch_stats", {}), variables["batch_stats"]
        old = jax.tree.map(lambda a, b: jnp.where(n == 0, b, a), old, new)  # it may be NaN
        return moved(old, new, 1 / (n + 1))

    return statistics_step


def settled(state: Any, program: Any, feed: Any, seed: int) -> Any:
    """Returns the train state of a run with BatchNorm statistics of its mean, where that has begun.

    They are of the run's last training batches, an epoch of them but at most `BATCHES`: the same
    at whatever step this is called.

    Args:
      state: `steps.TrainState`.
      program, feed, seed: of the run; the feed is that of training.
    """
    average = state.averages.get("swa", {})
    if not (int(average.get(COUNT, 0)) and jax.tree.leaves(average["batch_stats"])):
        return state
    step = when_compiled(program.statistics_step)
    stats = estimated(state.variables("swa"), step, program, feed, seed)
    return state.replace(averages=state.averages | {"swa": average | {"batch_stats": stats}})


def estimated(variables: Variables, step: Callable, program: Any, feed: Any, seed: int) -> Any:
    """Returns the BatchNorm statistics that variables have on the last training batches of a run.

    Args:
      variables: {"params", "batch_stats"}.
      step: of `make_statistics_step`, jitted.
      program, feed, seed: of the run; the feed is that of training.
    """
    plan = program.plan
    first = plan.total_steps - min(BATCHES, plan.steps_per_epoch, plan.total_steps)
    with feed.train_batches(plan, seed, start_step=first) as batches:
        for n, batch in enumerate(batches):
            batch = program.prepare(np.int32(first + n), feed.put(batch))
            stats = step(variables, batch, np.int32(n))
            variables = variables | {"batch_stats": stats}
    return variables["batch_stats"]

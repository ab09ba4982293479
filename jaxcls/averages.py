"""Averages of variables over the steps of a run, by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls import trees

Variables = Mapping[str, Any]  # {"params", "batch_stats"}
Share = Callable[[jax.Array], Any]  # step -> share of its variables in the average


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


def start(variables: Variables) -> Variables:
    """Returns an average at its start: copies, in float32 at least."""
    # a copy: the step donates its state, and no buffer may stand in it twice
    wide = lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)
    return jax.tree.map(wide, dict(variables))


def moved(average: Variables, new: Variables, share: Any) -> Variables:
    """Returns (1 - share) average + share new."""
    # no product with the old one: the sum of two would drift by 2e-4
    move = lambda old, new: old + share * (new.astype(old.dtype) - old)
    return jax.tree.map(move, average, new)


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

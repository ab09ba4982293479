"""Random keys of a run: seed and step say all, so that a resume needs nothing else."""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array


class Keys(NamedTuple):
    """Keys of what is random in a step."""

    flip: Array
    mix: Array
    erase: Array
    dropout: Array


def keys_of(run: Array, step: Array | int, micro_batch: Array | None = None) -> Keys:
    """Returns the keys of a step, or of a micro-batch of it: the only place that derives them.

    `run` is `TrainState.rng`, of `first_keys`.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(run), step)
    if micro_batch is not None:
        key = jax.random.fold_in(key, micro_batch)
    of_data, dropout = jax.random.split(key)
    return Keys(*jax.random.split(of_data, 3), dropout)


def first_keys(seed: int) -> tuple[Array, Array]:
    """Returns the key of the initial weights and `TrainState.rng`, for a seed in [0, 2**64)."""
    # jax.random.key drops the upper half where it computes in 32 bits
    words = jax.random.key_data(jax.random.key(seed % 2**32)).at[0].set(np.uint32(seed >> 32))
    init_key, run_key = jax.random.split(jax.random.wrap_key_data(words))
    return init_key, jax.random.key_data(run_key)

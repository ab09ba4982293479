"""What the commands share: time per step, a batch of noise on the devices."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcls import program, sharding

NUM_TRAIN, NUM_CLASSES = 1_281_167, 1000  # ImageNet's, where the config does not say


def seconds_per_step(run: Callable[[int], None], repetitions: int) -> list[float]:
    """Returns the time of a step in each repetition, after warming up.

    Args:
      run: takes so many steps and returns when the last one's output is there.
      repetitions: each of as many steps as a fifth of a second has, at least one.
    """
    run(3)

    def once(n):
        began = time.perf_counter()
        run(n)
        return (time.perf_counter() - began) / n

    n = max(1, min(100, round(0.2 / once(1))))
    once(n)
    return [once(n) for _ in range(repetitions)]


def repeat_step(step: Callable, state: Any, *arguments: Any) -> Callable[[int], None]:
    """Returns run(n): n train steps from where the last run has ended.

    Args:
      step, state: of a program.
      arguments: what `step` takes besides: a batch, the variables of teachers.
    """

    def run(n):
        nonlocal state
        metrics = None
        for _ in range(n):
            before = metrics
            state, metrics = step(state, *arguments)
            # One step ahead, as the real loop is: XLA's collectives on virtual CPU devices lock up
            # in a longer queue.
            jax.block_until_ready(before)
        jax.block_until_ready((state, metrics))

    return run


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Returns median and spread in milliseconds: {"step_ms", "step_ms_p10", "step_ms_p90"}."""
    p10, median, p90 = 1e3 * np.percentile(seconds, (10, 50, 90))
    return {"step_ms": median, "step_ms_p10": p10, "step_ms_p90": p90}


def num_classes(config: ConfigDict) -> int:
    """Returns the classes that the config speaks of, in its model or its fake data; or 1000."""
    return config.model.num_classes or config.data.num_classes or NUM_CLASSES


def device_batch(config: ConfigDict, built: program.Program) -> dict[str, jax.Array]:
    """Returns a global batch of noise, on the devices."""
    rng = np.random.default_rng(0)
    size, batch = config.image.size, built.plan.batch_size
    shape = (batch, size, size, len(config.image.mean))
    labels = rng.integers(0, num_classes(config), batch).astype(np.int32)
    batch = {"image": rng.integers(0, 256, shape, np.uint8), "label": labels}
    return sharding.put(batch, built.layout.rows)

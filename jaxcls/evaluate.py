"""Exact evaluation: every image counts once, whatever the batch size and the number of devices."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxcls import sharding


def evaluate(
    eval_step: Callable,
    state: Any,
    batches: Iterable[dict[str, np.ndarray]],
    batch_sharding: jax.sharding.NamedSharding,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Returns {"loss", "top1", "top5", "images"}: means over all images (accuracies in [0, 1]).

    Args:
      eval_step: from `jaxcls.train.setup`; gives sums over a batch.
      state: a train state.
      batches: host batches with `mask`; the last one is padded to full size.
      batch_sharding: where a global batch lies.
      stop: asked before each batch; the answer True gives up, and the result is None.
    """
    totals: dict[str, float] = {}
    late = None

    def add(sums):
        for name, value in jax.device_get(sums).items():
            totals[name] = totals.get(name, 0.0) + float(value)  # float64: no image gets lost

    for batch in batches:
        if stop():
            return None
        sums = eval_step(state, sharding.put(batch, batch_sharding))
        if late is not None:  # one batch late, so that the device does not wait
            add(late)
        late = sums
    if late is not None:
        add(late)
    images = int(totals.pop("count"))
    return {name: value / images for name, value in totals.items()} | {"images": images}

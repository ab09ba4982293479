"""What training minimises: objective(outputs, batch, aux) -> (loss, metrics), all scalars."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls import losses

Batch = Mapping[str, jax.Array]
Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def supervised(*, label_smoothing: float, aux_weight: float) -> Objective:
    """Returns the objective of plain classification, for `config.loss`.

    The objective is the mean cross-entropy over the batch, of "logits" plus `aux_weight` times that
    of each auxiliary head ("aux1", "aux2", ...). A mixed batch has two labels: every cross-entropy
    is lam CE(label) + (1 - lam) CE(label2), both smoothed. Its metrics are "loss" and, in [0, 1],
    "top1" and "top5" (top-K where there are K < 5 classes); of a mixed batch, where being right is
    a matter of degree, "top1_mixed" instead: top-1 of both labels, weighted like the loss.

    Raises:
      ValueError: `label_smoothing` outside [0, 1), `aux_weight` negative.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"config.loss.label_smoothing = {label_smoothing}: write a number from 0 to below 1"
        )
    if not aux_weight >= 0:
        raise ValueError(f"config.loss.aux_weight = {aux_weight}: write a number of at least 0")

    def objective(outputs: Mapping[str, jax.Array], batch: Batch, aux: Any = None):
        del aux  # teachers' outputs, for objectives that have teachers

        def mean_loss(logits):
            return _of_labels(lambda y: losses.cross_entropy(logits, y, label_smoothing), batch)

        logits = outputs["logits"]
        loss = mean_loss(logits)
        for name in sorted(outputs):
            if name.startswith("aux"):
                loss += aux_weight * mean_loss(outputs[name])

        def accuracy(k):
            return _of_labels(lambda y: (losses.rank(logits, y) < k).astype(jnp.float32), batch)

        if "label2" in batch:
            return loss, {"loss": loss, "top1_mixed": accuracy(1)}
        return loss, {"loss": loss, "top1": accuracy(1), "top5": accuracy(min(5, logits.shape[-1]))}

    return objective


def _of_labels(value: Callable[[jax.Array], jax.Array], batch: Batch) -> jax.Array:
    """Returns the mean of `value(labels)` [B], over both labels where the batch is mixed."""
    values = value(batch["label"])
    if "label2" in batch:
        values = batch["lam"] * values + (1 - batch["lam"]) * value(batch["label2"])
    return values.mean()

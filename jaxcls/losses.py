"""Losses and ranks of class scores: arrays in, arrays out. Nothing here knows trees or configs."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the cross-entropy of each example, [B], in nats.

        -sum_k q_k log softmax(logits)_k,   q = (1 - eps) onehot(label) + eps / K

    with eps = `label_smoothing` (Szegedy et al. 2016, arXiv:1512.00567, section 7). Computed in
    float32 at least: half precision has too few digits for the log of a sum over 1000 classes.

    Args:
      logits: [B, K], of any floating dtype.
      labels: int[B], each in [0, K).
      label_smoothing: eps, in [0, 1).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    loss = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    if label_smoothing:  # without it a class of probability 0 must not turn 0 * -inf into NaN
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(-1)
    return loss


def rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns how many classes come before the label, int32[B]: top-k is right where it is below k.

    Of equal logits the lower class comes first, as in argmax. A row that contains a NaN has the
    rank K, which is wrong for every k. Two comparisons a logit, no sorting.

    Args:
      logits: [B, K].
      labels: int[B], each in [0, K).
    """
    labels = labels[:, None]
    mine = jnp.take_along_axis(logits, labels, axis=-1)
    classes = jnp.arange(logits.shape[-1])
    before = (logits > mine) | ((logits == mine) & (classes < labels))
    return jnp.where(
        jnp.isnan(logits).any(-1), logits.shape[-1], before.sum(-1, dtype=jnp.int32)
    ).astype(jnp.int32)

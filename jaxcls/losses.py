"""Losses and ranks of class scores: arrays in, arrays out. Nothing here knows trees or configs.

A label is the number of a class, int[B], -1 where an image has none; or a mark for each class,
[B, K], of images that show several, all 0 where there is none. Nothing gathers over classes: where
these lie on several devices, each computes its own and sums of [B] are exchanged.
"""

import jax
import jax.numpy as jnp


def targets(labels: jax.Array, classes: int) -> jax.Array:
    """Returns where an image shows which class, bool [B, K]."""
    if labels.ndim == 2:
        return labels > 0
    return labels[:, None] == jnp.arange(classes)


def labelled(labels: jax.Array) -> jax.Array:
    """Returns which images have a label, bool [B]."""
    return (labels > 0).any(-1) if labels.ndim == 2 else labels >= 0


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the cross-entropy of each example, [B], in nats; 0 without a label.

        -sum_k q_k log softmax(logits)_k,   q = (1 - eps) onehot(label) + eps / K

    with eps = `label_smoothing` (Szegedy et al. 2016, arXiv:1512.00567, section 7). Of several
    classes that an image shows, each has the same share. Computed in float32 at least: half
    precision has too few digits for the log of a sum over 1000 classes.

    Args:
      logits: [B, K], of any floating dtype.
      labels: int[B] below K, or [B, K].
      label_smoothing: eps, in [0, 1).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    target = targets(labels, logits.shape[-1])
    # where, not a product: a class of probability 0 must not turn 0 * -inf into NaN
    loss = -jnp.where(target, log_p, 0).sum(-1)
    if labels.ndim == 2:
        loss /= jnp.maximum(target.sum(-1), 1)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(-1)
    return jnp.where(labelled(labels), loss, 0)


def rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns how many classes come before the label, int32[B]: top-k is right where it is below k.

    Of several labels the best counts. Of equal logits the lower class comes first, as in argmax. A
    row that contains a NaN, or has no label, has the rank K, which is wrong for every k. Two
    comparisons a logit, no sorting.

    Args:
      logits: [B, K].
      labels: int[B] below K, or [B, K].
    """
    target, classes = targets(labels, logits.shape[-1]), jnp.arange(logits.shape[-1])
    mine = jnp.where(target, logits, -jnp.inf).max(-1, keepdims=True)
    first = jnp.where(target & (logits == mine), classes, logits.shape[-1]).min(-1, keepdims=True)
    before = (logits > mine) | ((logits == mine) & (classes < first))
    wrong = jnp.isnan(logits).any(-1)
    return jnp.where(wrong, logits.shape[-1], before.sum(-1, dtype=jnp.int32)).astype(jnp.int32)

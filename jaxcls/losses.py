"""Losses and ranks of class scores: arrays in, arrays out. Nothing here knows trees or configs.

A label is the number of a class, int[B], -1 where an image has none; or a mark for each class,
[B, K], of images that may show several: 1 or 0, in soft labels a number between, -1 where it is not
known. Nothing gathers over classes: where these lie on several devices, each computes its own and
sums of [B] are exchanged.
"""

import jax
import jax.numpy as jnp


def targets(labels: jax.Array, classes: int) -> jax.Array:
    """Returns where an image shows which class, bool [B, K]."""
    if labels.ndim == 2:
        return _of_all(labels, classes) > 0
    return labels[:, None] == jnp.arange(classes)


def _of_all(labels: jax.Array, classes: int) -> jax.Array:
    """Returns marks for all classes of the network; -1 for those that the data does not have."""
    return jnp.pad(labels, ((0, 0), (0, classes - labels.shape[1])), constant_values=-1)


def labelled(labels: jax.Array) -> jax.Array:
    """Returns which images have a label, bool [B]; marks that are all 0 are one."""
    return (labels >= 0).any(-1) if labels.ndim == 2 else labels >= 0


def shown(labels: jax.Array) -> jax.Array:
    """Returns which images are known to show a class, bool [B]."""
    return (labels > 0).any(-1) if labels.ndim == 2 else labels >= 0


def wide(x: jax.Array) -> jax.Array:
    """Returns it in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> jax.Array:
    """Returns the cross-entropy of each example, [B], in nats; 0 if it shows no class.

        -sum_k q_k (1 - p_k)^gamma log p_k,   p = softmax(logits),   q = (1 - eps) y + eps / K

    with eps = `label_smoothing` (Szegedy et al. 2016, arXiv:1512.00567, section 7) and y one for
    the label. Of several classes that an image shows, each has the same share of y. With gamma =
    `focal_gamma` above 0 it is the focal loss (Lin et al. 2017, arXiv:1708.02002, equation 4, with
    softmax in place of their sigmoid: that form is `binary_cross_entropy`'s). Computed in float32
    at least: half precision has too few digits for the log of a sum over 1000 classes.

    Args:
      logits: [B, K], of any floating dtype.
      labels: int[B] below K, or [B, K].
      label_smoothing: eps, in [0, 1).
      focal_gamma: gamma, at least 0.
    """
    log_p = jax.nn.log_softmax(wide(logits))
    if focal_gamma:
        # at least the lowest number: the gradient at -inf would be 0 * inf
        log_p = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)
        log_p *= _power(-jnp.expm1(log_p), focal_gamma)
    target = targets(labels, logits.shape[-1])
    # where, not a product: a class of probability 0 must not turn 0 * -inf into NaN
    loss = -jnp.where(target, log_p, 0).sum(-1)
    if labels.ndim == 2:
        loss /= jnp.maximum(target.sum(-1), 1)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(-1)
    return jnp.where(shown(labels), loss, 0)


def weight(labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weight of each example, [B], the mean over the classes that it shows.

    Args:
      labels: int[B] below K, or [B, K].
      weights: of the classes, [K].
    """
    target = targets(labels, len(weights))
    total = jnp.where(target, weights, 0).sum(-1)
    return total / jnp.maximum(target.sum(-1), 1) if labels.ndim == 2 else total


def marks(labels: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """Returns how far an image shows each class, and how far it does not, two float32 [B, K].

    They sum up to 1, to 0 where it is not known.
    """
    if labels.ndim == 1:
        there, known = targets(labels, classes), labelled(labels)[:, None]
    else:
        labels = _of_all(labels, classes)
        there, known = jnp.maximum(labels, 0), labels >= 0
    there = there.astype(jnp.float32)
    return there, known - there


def binary_cross_entropy(
    logits: jax.Array,
    there: jax.Array,
    absent: jax.Array,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 0.0,
    clip: float = 0.0,
    focus_gradient: bool = True,
) -> jax.Array:
    """Returns the sum over classes of a binary cross-entropy for each, [B], in nats.

        -sum_k there_k (1 - p_k)^gamma_pos log p_k + absent_k m_k^gamma_neg log(1 - m_k)
        p = sigmoid(logits),   m = max(p - clip, 0)

    With gammas and a clip above 0 it is the asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119,
    equation 7), with the same gammas and no clip the focal loss as published (Lin et al. 2017,
    arXiv:1708.02002). PaddleClas's MultiLabelLoss is this, divided by K; its
    MultiLabelAsymmetricLoss the sum over the batch, without `focus_gradient`.

    Args:
      logits: [B, K], of any floating dtype.
      there, absent: weights of the two, [B, K], such as `marks`.
      gamma_pos, gamma_neg: at least 0.
      clip: in [0, 1).
      focus_gradient: whether the powers have a gradient, too, as in the formula; the published code
        of the asymmetric loss takes them as constants.
    """
    z = wide(logits)
    log_p, log_not = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    p, absence = jax.nn.sigmoid(z), jax.nn.sigmoid(-z)
    if clip:
        p, absence = jnp.maximum(p - clip, 0), jnp.minimum(absence + clip, 1)
        log_not = jnp.log(absence)
    focus = lambda x, gamma: _power(x if focus_gradient else jax.lax.stop_gradient(x), gamma)
    if gamma_pos:
        log_p *= focus(jax.nn.sigmoid(-z), gamma_pos)
    if gamma_neg:
        log_not *= focus(p, gamma_neg)
    return -(there * log_p + absent * log_not).sum(-1)


def _power(x: jax.Array, gamma: float) -> jax.Array:
    """Returns x^gamma of x >= 0, whose slope at 0 is a number for gamma < 1 too."""
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny) ** gamma


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

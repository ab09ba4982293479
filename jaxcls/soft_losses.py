"""Losses against another network's scores and features: arrays in, arrays out.

The teacher's side comes second and is a constant to whoever differentiates. Scores are logits
[B, K] of any floating dtype, computed with in float32 at least; p and q are their softmax, p the
teacher's. What is a mean over images comes as [B], so that a caller can weight; what compares
images with each other as a scalar, over groups of `group` images (None: of all) that divide the
batch: no other group, and no other device, is asked.

Those that PaddleClas has agree with it in value and gradient (its DistillationDMLLoss, which it
also calls JS, is `symmetric_kl`).
"""

import jax
import jax.numpy as jnp

from jaxcls import losses

Array = jax.Array
EXACT = jax.lax.Precision.HIGHEST  # of products whose differences count


def _log_softmax(logits: Array, temperature: float = 1.0) -> Array:
    return jax.nn.log_softmax(losses.wide(logits) / temperature)


def _expected(log_p: Array, value: Array) -> Array:
    """Returns sum_k p_k value_k, [B]; where, not a product: of -inf and 0 too."""
    p = jnp.exp(log_p)
    return jnp.where(p > 0, p * value, 0).sum(-1)


# -- Scores ----------------------------------------------------------------------------------------


def soft_cross_entropy(student: Array, teacher: Array, temperature: float = 1.0) -> Array:
    """Returns -sum_k p_k log q_k, [B], of the softmax of logits / temperature."""
    log_q, log_p = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    return -_expected(log_p, log_q)


def kl(student: Array, teacher: Array, temperature: float = 1.0) -> Array:
    """Returns T^2 KL(p || q), [B], of the softmax of logits / T.

    Hinton et al. 2015 (arXiv:1503.02531): T^2 keeps gradients as large as those at T = 1.
    """
    log_q, log_p = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    return temperature**2 * _expected(log_p, log_p - log_q)


def symmetric_kl(student: Array, teacher: Array) -> Array:
    """Returns (KL(p || q) + KL(q || p)) / 2, [B]: Jeffreys' divergence, halved.

    What SSLD trained with, under the name of JS divergence. PaddleClas's DistillationDMLLoss takes
    the mean over classes times their number K, which is this sum; with `sum_across_class_dim` its
    value is K times this one.
    """
    log_q, log_p = _log_softmax(student), _log_softmax(teacher)
    return ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(-1) / 2


def jensen_shannon(student: Array, teacher: Array) -> Array:
    """Returns (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, [B], at most log 2.

    Lin 1991, Divergence measures based on the Shannon entropy. Not what PaddleClas calls JS, which
    is `symmetric_kl`: that one has no bound.
    """
    log_q, log_p = _log_softmax(student), _log_softmax(teacher)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0).astype(log_p.dtype)
    return (_expected(log_p, log_p - log_m) + _expected(log_q, log_q - log_m)) / 2


def decoupled_kl(
    student: Array,
    teacher: Array,
    labels: Array,
    *,
    temperature: float,
    target: float,
    non_target: float,
) -> Array:
    """Returns T^2 (target * TCKD + non_target * NCKD), [B].

    DKD, Zhao et al. 2022 (arXiv:2203.08679): TCKD is the KL of (p_y, 1 - p_y), the label y against
    all others; NCKD that of the softmax over the others alone. Their sum with the weights 1 and
    1 - p_y is KL(p || q).

    Args:
      labels: int[B], of every image.
    """
    mine = losses.targets(labels, student.shape[-1])

    def parts(logits):
        logits = losses.wide(logits) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        others = jax.nn.logsumexp(logits, axis=-1, where=~mine)
        log_mine = jnp.where(mine, logits, 0).sum(-1) - total
        # of the others; of the label 0, so that nothing there is infinite
        log_others = jnp.where(mine, 0, logits - others[:, None])
        return jnp.stack([log_mine, others - total], -1), log_others

    (pair_q, rest_q), (pair_p, rest_p) = parts(student), parts(teacher)
    tckd = _expected(pair_p, pair_p - pair_q)
    nckd = jnp.where(mine, 0, jnp.exp(rest_p) * (rest_p - rest_q)).sum(-1)
    return temperature**2 * (target * tckd + non_target * nckd)


def weighted_soft_labels(
    student: Array, teacher: Array, labels: Array, *, temperature: float
) -> Array:
    """Returns T^2 w CE(p, q), [B], with w = 1 - exp(-CE(y, student) / CE(y, teacher)).

    WSL, Zhou et al. 2021 (arXiv:2102.00650): images that the student already knows better than the
    teacher count less. The weight is no part of the gradient.

    Args:
      labels: int[B], of every image.
    """
    ratio = losses.cross_entropy(student, labels) / (losses.cross_entropy(teacher, labels) + 1e-7)
    weight = jax.lax.stop_gradient(1 - jnp.exp(-ratio))
    return temperature**2 * weight * soft_cross_entropy(student, teacher, temperature)


def spherical(logits: Array, multiplier: float) -> Array:
    """Returns logits of mean 0 and standard deviation `multiplier` in every row.

    SKD, Guo et al. 2020 (arXiv:2010.07485), compares such logits of both: how sure a large network
    is a small one cannot imitate. As in PaddleClas the length is the same for all images.
    """
    logits = losses.wide(logits)
    centred = logits - logits.mean(-1, keepdims=True)
    return multiplier * centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-7)


def correlation(
    student: Array,
    teacher: Array,
    *,
    temperature: float,
    inter: float,
    intra: float,
    group: int | None = None,
) -> Array:
    """Returns T^2 (inter (1 - mean_i r(q_i, p_i)) + intra (1 - mean_k r(q_:k, p_:k))), a scalar.

    DIST, Huang et al. 2022 (arXiv:2205.10536): r is Pearson's correlation, of the classes of an
    image, and of the images of a group for a class.
    """
    q, p = (jnp.exp(_log_softmax(x, temperature)) for x in (student, teacher))

    def apart(a, b):
        a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
        norms = jnp.sqrt((a**2).sum(-1) * (b**2).sum(-1) + jnp.finfo(a.dtype).tiny)
        return 1 - ((a * b).sum(-1) / (norms + 1e-8)).mean()

    of_classes = _mean_of_groups(lambda a, b: apart(a.T, b.T), group, q, p)
    return temperature**2 * (inter * apart(q, p) + intra * of_classes)


# -- Features --------------------------------------------------------------------------------------


def mean_square(student: Array, teacher: Array) -> Array:
    """Returns the mean square of the differences of each image, [B]: FitNets (arXiv:1412.6550)."""
    square = (losses.wide(student) - losses.wide(teacher)) ** 2
    return square.reshape(len(square), -1).mean(-1)


def attention(student: Array, teacher: Array) -> Array:
    """Returns |a / |a| - b / |b||^2 / 2, [B], a and b being maps of attention, sum_c x_c^2.

    Zagoruyko & Komodakis 2017 (arXiv:1612.03928), equation 2, with the square of the norm, as their
    code has it, which takes its mean over the H W places too. Channels may differ.

    Args:
      student, teacher: features [B, H, W, C].
    """

    def attended(x):
        x = (losses.wide(x) ** 2).sum(-1).reshape(len(x), -1)
        return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)

    return ((attended(student) - attended(teacher)) ** 2).sum(-1) / 2


def relational_distance(student: Array, teacher: Array, group: int | None = None) -> Array:
    """Returns the Huber loss between the distances of all pairs of images, a scalar.

    RKD-D, Park et al. 2019 (arXiv:1904.05068), over features [B, D]; distances are in units of
    their mean over all pairs, those of an image with itself among them, as in PaddleClas.
    """

    def compared(student, teacher):
        def relative(x):
            distances = jnp.sqrt(_squares(x))
            return distances / (distances.mean() + 1e-12)

        return _huber(relative(student) - relative(teacher)).mean()

    return _mean_of_groups(compared, group, student, teacher)


def relational_angle(student: Array, teacher: Array, group: int | None = None) -> Array:
    """Returns the Huber loss between the cosines of the angles of all triples, a scalar.

    RKD-A, Park et al. 2019 (arXiv:1904.05068), over features [B, D]. Triples are B^3: see `group`.
    """

    def compared(student, teacher):
        def cosines(x):  # [i, j, k]: between x_j - x_i and x_k - x_i
            squares = _squares(x)
            apart = squares > 1e-12
            length = jnp.sqrt(squares)
            inner = (squares[:, :, None] + squares[:, None] - squares[None]) / 2
            both = apart[:, :, None] & apart[:, None]
            product = length[:, :, None] * length[:, None]
            return jnp.where(both, inner / jnp.where(both, product, 1), 0)

        return _huber(cosines(student) - cosines(teacher)).mean()

    return _mean_of_groups(compared, group, student, teacher)


def _squares(x: Array) -> Array:
    """Returns the squares of the distances of all pairs, [B, B], at least 1e-12."""
    x = losses.wide(x)
    x = x - x.mean(0)  # what is small then loses no digits
    inner = jnp.matmul(x, x.T, precision=EXACT)
    norms = jnp.diagonal(inner)
    return jnp.maximum(norms[:, None] + norms - 2 * inner, 1e-12)


def _huber(x: Array) -> Array:
    size = jnp.abs(x)
    return jnp.where(size < 1, x**2 / 2, size - 0.5)


def _mean_of_groups(f, group: int | None, *arrays: Array) -> Array:
    """Returns the mean of f(parts of arrays) over the groups of their rows."""
    if group is None:
        return f(*arrays)
    return jax.vmap(f)(*(x.reshape(-1, group, *x.shape[1:]) for x in arrays)).mean()

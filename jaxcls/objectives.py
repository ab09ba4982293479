"""What training minimises: a row of `OBJECTIVES`. What evaluation counts, whatever trained.

Evaluation needs nothing of an objective, neither its keys nor its teachers: `per_image` follows
the labels.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import balance, distillation, losses
from jaxcls.config import bound, choose, defaults, expect, keywords

Arrays = Mapping[str, jax.Array]
Loss = Callable[[jax.Array, Arrays], jax.Array]  # (logits [B, K], batch) -> scalar, a mean
# Of an evaluation; of images of one class, and of those that may show several.
METRICS = ("loss", "top1", "top5")
OF_SEVERAL = ("loss", "map", "macro_f1", "micro_f1")  # `report.measures.of_all_classes`


class Objective(NamedTuple):
    """The parts of an objective: functions of what the network returns, arrays in and out.

    `teachers` runs once a step, outside the gradient. Its variables are an argument of the step and
    no constants of its program. `extra` is a module that is trained with the network, such as
    projections of its features: `extra(outputs, batch, train)` returns further outputs. What it
    learns stands in the variables as "extra", which exports drop.
    """

    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]  # (outputs, batch, aux), scalars
    teachers: Callable[[Any, Arrays], Any] | None = None  # (teacher variables, batch) -> aux
    teacher_variables: Any = None
    extra: nn.Module | None = None


def make(
    *,
    name: str,
    outputs: Arrays,
    class_names: Sequence[str] = (),
    class_counts: Callable[[], tuple[np.ndarray, float]] | None = None,
    module: nn.Module | None = None,
    teachers: Any = None,
    **keys: Any,
) -> Objective:
    """Returns the objective of `config.loss`.

    Args:
      name, ...: `config.loss`: a name of `OBJECTIVES` and what it takes.
      outputs: shapes of what the network returns in training.
      class_names: of the data; (): numbers.
      class_counts: of the training images, only counted if the objective asks, which may take long;
        None: as many of each.
      module: the network, in training.
      teachers: of `config.teacher`.

    A method gets those of these that it has parameters for. With one of `distillation.PARTS` the
    loss of the labels is `supervised`.

    Raises:
      ValueError: an unknown name, a value out of range, a key that is not used.
    """
    method = OBJECTIVES[choose("config.loss.name", name, OBJECTIVES)]

    def classes():
        size = outputs["logits"].shape[-1]
        names = tuple(class_names) or tuple(map(str, range(size)))
        counts = class_counts or (lambda: (np.ones(len(names)), float(len(names))))
        return balance.Classes(names, counts, size)

    given = {"outputs": outputs, "classes": classes}
    given |= {"module": module, "teachers": teachers, "group": module and module.c.bn_group}

    def with_given(method):
        return functools.partial(method, **{k: given[k] for k in given.keys() & keywords(method)})

    if name not in distillation.PARTS:
        distillation.check_teachers(name, teachers, taught=False)
        return with_given(bound("loss", name, [method], keys)[0])()
    methods = supervised, method, distillation.mixed
    hard, part, mixed = map(with_given, bound("loss", name, methods, keys))
    part = part()
    loss = mixed(name, hard().loss, part)
    if not part.taught:
        return Objective(loss, extra=part.extra)
    return Objective(loss, teachers.apply, teachers.variables, part.extra)


# -- What it is made of ----------------------------------------------------------------------------


def _binary(outputs: Arrays, aux_weight: float, target: Callable, **options: Any) -> Objective:
    """Returns the objective of a binary cross-entropy for each class.

    Args:
      outputs, aux_weight: of the network.
      target: (there, absent) of the labels -> those that the loss takes.
      options: of `losses.binary_cross_entropy`.
    """

    def mean_loss(logits, batch):
        classes = logits.shape[-1]
        there, absent = losses.marks(batch["label"], classes)
        labelled = losses.labelled(batch["label"])
        if "label2" in batch:
            lam, other = batch["lam"][:, None], losses.marks(batch["label2"], classes)
            there, absent = (
                lam * a + (1 - lam) * b for a, b in zip((there, absent), other, strict=True)
            )
            labelled |= losses.labelled(batch["label2"])
        values = losses.binary_cross_entropy(logits, *target(there, absent), **options)
        return values.mean() * (labelled.size / jnp.maximum(labelled.sum(), 1))

    return _with_heads(mean_loss, aux_weight, outputs)


def _with_heads(mean_loss: Loss, aux_weight: float, outputs: Arrays) -> Objective:
    """Returns an objective: the loss of "logits", plus `aux_weight` times that of each "aux".

    Raises:
      ValueError: `aux_weight` is negative, or set for a network without auxiliary heads.
    """
    if not aux_weight >= 0:
        raise ValueError(f"config.loss.aux_weight = {aux_weight}: write a number of at least 0")
    heads = lambda outputs: sorted(name for name in outputs if name.startswith("aux"))
    if not heads(outputs) and aux_weight != defaults()[0]["loss.aux_weight"]:
        raise ValueError(
            f"config.loss.aux_weight = {aux_weight}: the network has no auxiliary heads"
        )

    def loss(outputs: Arrays, batch: Arrays, aux: Any = None):
        del aux
        loss = mean_loss(outputs["logits"], batch)
        for name in heads(outputs):
            loss += aux_weight * mean_loss(outputs[name], batch)
        return loss, {"loss": loss, **accuracies(outputs["logits"], batch)}

    return Objective(loss)


def accuracies(logits: jax.Array, batch: Arrays) -> dict[str, jax.Array]:
    """Returns what training reports of a batch besides losses: scalars in [0, 1].

    "top1" and "top5" (top-K where there are K < 5 classes); of a mixed batch, where being right is
    a matter of degree, "top1_mixed" instead: top-1 of both labels, weighted like the loss. Of
    images that may show several classes "micro_f1", of the classes with a probability of at least
    1/2; nothing where they are mixed.
    """
    if batch["label"].ndim == 2:
        if "label2" in batch:
            return {}
        there, absent = losses.marks(batch["label"], logits.shape[-1])
        said = logits >= 0
        right, wrong = (jnp.where(said, x, 0).sum() for x in (there, absent))
        return {"micro_f1": 2 * right / jnp.maximum(right + wrong + there.sum(), 1)}

    def accuracy(k):
        return _of_labels(lambda y: (losses.rank(logits, y) < k).astype(jnp.float32), batch)

    if "label2" in batch:
        return {"top1_mixed": accuracy(1)}
    return {"top1": accuracy(1), "top5": accuracy(min(5, logits.shape[-1]))}


def _of_labels(value: Callable[[jax.Array], jax.Array], batch: Arrays) -> jax.Array:
    """Returns the mean of `value(labels)` [B] over the images with a label, or two if mixed."""
    values, labelled = value(batch["label"]), losses.shown(batch["label"])
    if "label2" in batch:
        values = batch["lam"] * values + (1 - batch["lam"]) * value(batch["label2"])
        labelled |= losses.shown(batch["label2"])
    return values.mean() * (labelled.size / jnp.maximum(labelled.sum(), 1))


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"config.loss.label_smoothing = {label_smoothing}: write a number from 0 to below 1"
        )


# -- The rows --------------------------------------------------------------------------------------


def supervised(
    *,
    label_smoothing: float,
    class_weights: Sequence[Any],
    effective_beta: float,
    focal_gamma: float,
    logit_adjustment: float,
    aux_weight: float,
    outputs: Arrays,
    classes: Callable[[], balance.Classes],
) -> Objective:
    """Returns the objective of plain classification.

    Its loss is a mean over the images that have a label, of "logits" plus `aux_weight` times that
    of each auxiliary head ("aux1", "aux2", ...). That of an image is w_y L(z + tau log prior, y):

      L      the cross-entropy with `label_smoothing`, or with `focal_gamma` the focal loss:
             `losses.cross_entropy`
      w      `class_weights`: `balance.class_weights`, whose mean over the training images is 1. No
             sum of weights divides, so that every batch counts alike
      tau    `logit_adjustment` of the log of the classes' shares of the images, in training only
             (Menon et al. 2021, arXiv:2007.07314, equation 10: with tau = 1 the minimum is best in
             the mean of the classes' accuracies); of the weighted images, where there are weights

    A mixed batch has two labels: every loss is lam L(label) + (1 - lam) L(label2), both weighted
    and smoothed. Metrics: `accuracies`.

    Raises:
      ValueError: `label_smoothing` outside [0, 1), `effective_beta` outside [0, 1), a negative
        gamma or tau; weights that mean nothing; both weights and tau that balance all.
    """
    _check_smoothing(label_smoothing)
    expect(0 <= effective_beta < 1, "loss.effective_beta", effective_beta, "0.0 to below 1")
    expect(focal_gamma >= 0, "loss.focal_gamma", focal_gamma, "a number of at least 0")
    expect(logit_adjustment >= 0, "loss.logit_adjustment", logit_adjustment, "at least 0")
    default = defaults()[0]["loss.effective_beta"]
    if effective_beta != default and tuple(class_weights) != ("effective",):
        raise ValueError(
            f"config.loss.effective_beta = {effective_beta} does nothing without "
            "--config.loss.class_weights=effective"
        )
    if logit_adjustment and tuple(class_weights) == ("inverse",):
        raise ValueError(
            f"config.loss.logit_adjustment = {logit_adjustment} does nothing: with "
            'config.loss.class_weights = ("inverse",) all classes have the same share; set one'
        )
    weights, prior = None, None
    if class_weights:
        weights = balance.class_weights(class_weights, effective_beta, classes())
    if logit_adjustment:
        prior = logit_adjustment * balance.log_prior(weights, classes())

    def mean_loss(logits: jax.Array, batch: Arrays) -> jax.Array:
        if prior is not None:
            logits = losses.wide(logits)
            logits += jnp.asarray(prior, logits.dtype)

        def of_label(y):
            value = losses.cross_entropy(logits, y, label_smoothing, focal_gamma)
            if weights is not None:
                value *= losses.weight(y, jnp.asarray(weights, value.dtype))
            return value

        return _of_labels(of_label, batch)

    return _with_heads(mean_loss, aux_weight, outputs)


def bce(
    *,
    label_smoothing: float,
    target_threshold: float,
    pos_weights: Sequence[Any],
    aux_weight: float,
    outputs: Arrays,
    classes: Callable[[], balance.Classes],
) -> Objective:
    """Returns the objective of a binary cross-entropy for each class, the sum over classes.

    For images that show several classes, and for plain labels as in "ResNet strikes back" (Wightman
    et al. 2021, arXiv:2110.00476). A mark y becomes (1 - eps) y + eps / K with eps =
    `label_smoothing`, as PaddleClas's MultiLabelLoss has it; a class of a mixed batch is there by
    its share, or wholly from `target_threshold` on, and absent below, if that is above 0. The part
    of the classes that are there has the weights `pos_weights` (`balance.pos_weights`).

    Raises:
      ValueError: a value out of range, weights that mean nothing.
    """
    _check_smoothing(label_smoothing)
    expect(0 <= target_threshold <= 1, "loss.target_threshold", target_threshold, "a share, 0 to 1")
    weights = balance.pos_weights(pos_weights, classes()) if pos_weights else None

    def target(there, absent):
        whole = there + absent
        if target_threshold:
            there = jnp.where(there >= target_threshold, whole, 0)
        if label_smoothing:
            there = (1 - label_smoothing) * there + label_smoothing / there.shape[-1] * whole
        absent = whole - there
        return there if weights is None else there * jnp.asarray(weights, there.dtype), absent

    return _binary(outputs, aux_weight, target)


def asymmetric(
    *,
    gamma_pos: float,
    gamma_neg: float,
    clip: float,
    focus_gradient: bool,
    aux_weight: float,
    outputs: Arrays,
) -> Objective:
    """Returns the objective of the asymmetric loss, `losses.binary_cross_entropy` with powers.

    Raises:
      ValueError: a negative gamma, or `clip` outside [0, 1).
    """
    for key, gamma in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
        expect(gamma >= 0, f"loss.{key}", gamma, "a number of at least 0")
    expect(0 <= clip < 1, "loss.clip", clip, "a probability, 0 to below 1")
    focus = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "clip": clip}
    target = lambda there, absent: (there, absent)
    return _binary(outputs, aux_weight, target, **focus, focus_gradient=focus_gradient)


OBJECTIVES = {
    "supervised": supervised,
    "bce": bce,
    "asymmetric": asymmetric,
    **distillation.PARTS,
}
# Of them those that learn from images without a label, too: from a teacher or another student.
UNLABELLED = frozenset(distillation.PARTS)
MULTI_LABEL = ("bce", "asymmetric")  # those for images that may show several classes


def check_labels(name: str, best: str, classes: int, multi_label: bool) -> None:
    """Refuses a loss and a metric that mean nothing for labels of this kind.

    Args:
      name, best: `config.loss.name` and `config.checkpoint.best`.
      classes: of the data.
      multi_label: whether an image may show several.

    Raises:
      ValueError: there is one; the message says what to write.
    """
    kind = "may show several classes" if multi_label else "show one class each"
    metrics = OF_SEVERAL if multi_label else METRICS
    if multi_label and name not in MULTI_LABEL:
        raise ValueError(
            f"config.loss.name = {name!r} is for images of one class, and these {kind}: write "
            f"{' or '.join(MULTI_LABEL)}"
        )
    if best not in metrics:
        raise ValueError(
            f"config.checkpoint.best = {best!r}: the images {kind}: write one of "
            f"{', '.join(metrics[1:])}, loss"
        )
    if best == "top5" and classes <= 5:
        raise ValueError(
            "config.checkpoint.best = 'top5' is always 1 with up to 5 classes: write top1 or loss"
        )


# -- Evaluation ------------------------------------------------------------------------------------


def per_image(outputs: Arrays, batch: Arrays) -> dict[str, jax.Array]:
    """Returns what evaluation counts of each image, [B], after any objective.

    The loss is the cross-entropy, without smoothing and weights; "top1" and "top5" are whether the
    label is the first, or among five. Of images that may show several classes only the "loss": the
    binary cross-entropies, the sum over classes.
    """
    logits, label = outputs["logits"], batch["label"]
    if label.ndim == 2:
        marks = losses.marks(label, logits.shape[-1])
        return {"loss": losses.binary_cross_entropy(logits, *marks)}
    rank = losses.rank(logits, label)
    return {
        "loss": losses.cross_entropy(logits, label),
        "top1": rank < 1,
        "top5": rank < min(5, logits.shape[-1]),
    }

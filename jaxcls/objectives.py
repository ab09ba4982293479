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

from jaxcls import distillation, losses
from jaxcls.config import bound, choose, defaults, keywords

Arrays = Mapping[str, jax.Array]
Counts = Callable[[], np.ndarray]  # how often training sees each class in an epoch, [K]
METRICS = ("loss", "top1", "top5")  # of each image in evaluation


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
    class_counts: Counts | None = None,
    module: nn.Module | None = None,
    teachers: Any = None,
    **keys: Any,
) -> Objective:
    """Returns the objective of `config.loss`.

    Args:
      name, ...: `config.loss`: a name of `OBJECTIVES` and what it takes.
      outputs: shapes of what the network returns in training.
      class_names, class_counts: of the training images; counted only if the objective asks, which
        may take long.
      module: the network, in training.
      teachers: of `config.teacher`.

    A method gets those of these that it has parameters for. With one of `distillation.PARTS` the
    loss of the labels is `supervised`.

    Raises:
      ValueError: an unknown name, a value out of range, a key that is not used.
    """
    method = OBJECTIVES[choose("config.loss.name", name, OBJECTIVES)]
    given = {"outputs": outputs, "class_names": class_names, "class_counts": class_counts}
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


def supervised(*, label_smoothing: float, aux_weight: float, outputs: Arrays) -> Objective:
    """Returns the objective of plain classification.

    Its loss is the mean cross-entropy over the images that have a label, of "logits" plus
    `aux_weight` times that of each auxiliary head ("aux1", "aux2", ...). A mixed batch has two
    labels: every cross-entropy is lam CE(label) + (1 - lam) CE(label2), both smoothed. Its metrics
    are "loss" and, in [0, 1], "top1" and "top5" (top-K where there are K < 5 classes); of a mixed
    batch, where being right is a matter of degree, "top1_mixed" instead: top-1 of both labels,
    weighted like the loss.

    Raises:
      ValueError: `label_smoothing` outside [0, 1), `aux_weight` negative, or set for a network
        without auxiliary heads.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"config.loss.label_smoothing = {label_smoothing}: write a number from 0 to below 1"
        )
    if not aux_weight >= 0:
        raise ValueError(f"config.loss.aux_weight = {aux_weight}: write a number of at least 0")
    heads = lambda outputs: sorted(name for name in outputs if name.startswith("aux"))
    if not heads(outputs) and aux_weight != defaults()[0]["loss.aux_weight"]:
        raise ValueError(
            f"config.loss.aux_weight = {aux_weight}: the network has no auxiliary heads"
        )

    def loss(outputs: Arrays, batch: Arrays, aux: Any = None):
        del aux

        def mean_loss(logits):
            return _of_labels(lambda y: losses.cross_entropy(logits, y, label_smoothing), batch)

        logits = outputs["logits"]
        loss = mean_loss(logits)
        for name in heads(outputs):
            loss += aux_weight * mean_loss(outputs[name])

        def accuracy(k):
            return _of_labels(lambda y: (losses.rank(logits, y) < k).astype(jnp.float32), batch)

        if "label2" in batch:
            return loss, {"loss": loss, "top1_mixed": accuracy(1)}
        return loss, {"loss": loss, "top1": accuracy(1), "top5": accuracy(min(5, logits.shape[-1]))}

    return Objective(loss)


def per_image(outputs: Arrays, batch: Arrays) -> dict[str, jax.Array]:
    """Returns what evaluation counts of each image, `METRICS` [B], after any objective.

    The loss is the cross-entropy, without smoothing and weights; "top1" and "top5" are whether the
    label is the first, or among five.
    """
    logits, label = outputs["logits"], batch["label"]
    rank = losses.rank(logits, label)
    return {
        "loss": losses.cross_entropy(logits, label),
        "top1": rank < 1,
        "top5": rank < min(5, logits.shape[-1]),
    }


def _of_labels(value: Callable[[jax.Array], jax.Array], batch: Arrays) -> jax.Array:
    """Returns the mean of `value(labels)` [B] over the images with a label, or two if mixed."""
    values, labelled = value(batch["label"]), losses.labelled(batch["label"])
    if "label2" in batch:
        values = batch["lam"] * values + (1 - batch["lam"]) * value(batch["label2"])
        labelled |= losses.labelled(batch["label2"])
    return values.mean() * (labelled.size / jnp.maximum(labelled.sum(), 1))


OBJECTIVES = {"supervised": supervised, **distillation.PARTS}
# Of them those that learn from images without a label, too: from a teacher or another student.
UNLABELLED = frozenset(distillation.PARTS)

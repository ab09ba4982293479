"""Learning from a teacher, or from a peer: what `config.loss` adds to the loss of the labels.

A row of `PARTS` is a function of its keys that returns a `Part`. The objective
then is

    hard * (loss of the labels) + soft * sum_i w_i part(student, teacher i)

w_i being `config.teacher.weights`. Images without a label have no share in the first term and their
whole share in the second. Where a part needs a label itself (dkd, wsl), the teacher's most likely
class stands in for a missing one; mixed images have two, and a mean of both.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls import losses, models, soft_losses
from jaxcls.config import choose, expect

Array = jax.Array
Arrays = Mapping[str, jax.Array]
# Fields of `models.spec.Ctx` that are up to a run, not to its network.
OF_RUN = ("dtype", "feature_dtype", "param_dtype", "norm_dtype", "head_dtype", "bn_group")
PEER = "peer"  # what the second network of `dml` returns, among the outputs of the first


class Part(NamedTuple):
    """What a teacher adds to the loss."""

    # (outputs, those of a teacher, batch, number of the teacher) -> scalar
    loss: Callable[[Arrays, Arrays, Arrays, int], Array]
    hard: float  # weight of the labels' loss, as published
    extra: nn.Module | None = None  # trained with the network, see `objectives.Objective`
    # outputs -> those whose loss of the labels counts; the first has the metrics
    students: Callable[[Arrays], Sequence[Arrays]] = lambda outputs: [outputs]
    taught: bool = True  # by teachers; False: there are none


def mixed(
    name: str,
    supervised: Callable[[Arrays, Arrays], tuple[Array, dict[str, Array]]],
    part: Part,
    *,
    teachers: Any,
    hard: float | None,
    soft: float,
    label_smoothing: float,
    class_weights: Sequence[Any],
    focal_gamma: float,
    logit_adjustment: float,
) -> Callable[[Arrays, Arrays, Any], tuple[Array, dict[str, Array]]]:
    """Returns the loss of an objective, (outputs, batch, aux) -> (scalar, metrics).

    Its metrics are those of the labels' loss (0 where no image has a label) and "hard", "soft", the
    two terms without their weights, and "agreement": how often the student's first class is that of
    the teachers, by their weights, or of the peer.

    Args:
      name: of the part.
      supervised: loss of the labels, (outputs, batch) -> (scalar, metrics).
      part: of a row of `PARTS`.
      teachers: `jaxcls.teachers.Teachers`, or None.
      hard, soft, ...: `config.loss`; hard = None: that of the part. The keys of the labels' loss
        are `supervised`'s.

    Raises:
      ValueError: a weight out of range, teachers that are missing or too many, a key of the labels'
        loss where that does not count.
    """
    hard = part.hard if hard is None else hard
    expect(0 <= hard < math.inf, "loss.hard", hard, "a weight of at least 0, or None")
    expect(0 < soft < math.inf, "loss.soft", soft, "a weight above 0")
    theirs = {"label_smoothing": label_smoothing, "class_weights": class_weights}
    theirs |= {"focal_gamma": focal_gamma, "logit_adjustment": logit_adjustment}
    for key, value in theirs.items():
        if value and not hard:
            raise ValueError(
                f"config.loss.{key} = {value} does nothing: labels do not count in {name!r} with "
                "config.loss.hard = 0: write a weight above 0, or leave out the key"
            )
    check_teachers(name, teachers, part.taught)

    def loss(outputs: Arrays, batch: Arrays, aux: Any):
        theirs = aux if part.taught else (outputs[PEER],)
        weights = teachers.weights if part.taught else (1.0,)
        found = [supervised(student, batch) for student in part.students(outputs)]
        of_labels = sum(value for value, _ in found)
        of_teachers, agreement = 0.0, 0.0
        for number, (weight, other) in enumerate(zip(weights, theirs, strict=True)):
            of_teachers += weight * part.loss(outputs, other, batch, number)
            same = outputs["logits"].argmax(-1) == other["logits"].argmax(-1)
            agreement += weight * same.mean(dtype=jnp.float32)
        total = soft * of_teachers + (hard * of_labels if hard else 0)
        metrics = {"loss": total, "hard": of_labels, "soft": of_teachers, "agreement": agreement}
        return total, found[0][1] | metrics

    return loss


def check_teachers(name: str, teachers: Any, taught: bool) -> None:
    """Refuses a loss that needs teachers without any, and teachers for one that has no use of them.

    Raises:
      ValueError: it is so.
    """
    if taught and teachers is None:
        raise ValueError(
            f"config.loss.name = {name!r} learns from a teacher: write "
            "--config.teacher.checkpoints=RUN, a run, checkpoint or export with the same classes"
        )
    if not taught and teachers is not None:
        raise ValueError(
            f"config.teacher.checkpoints: config.loss.name = {name!r} learns from no teacher: "
            f"write one of {', '.join(sorted(TAUGHT))}, or config.teacher.checkpoints = ()"
        )


# -- Parts that compare scores ---------------------------------------------------------------------


def _scores(compare: Callable[..., Array], aux_weight: float, **part: Any) -> Part:
    """Returns the part of compare(student's logits, teacher's, batch), [B] or a scalar.

    Auxiliary heads are compared with the same logits, and count `aux_weight`.
    """

    def loss(outputs: Arrays, other: Arrays, batch: Arrays, number: int) -> Array:
        del number
        heads = sorted(name for name in outputs if name.startswith("aux"))
        value = compare(outputs["logits"], other["logits"], batch).mean()
        for name in heads:
            value += aux_weight * compare(outputs[name], other["logits"], batch).mean()
        return value

    return Part(loss, **part)


def _temperature(value: float | None, published: float) -> float:
    value = published if value is None else value
    expect(1e-3 <= value <= 1000, "loss.temperature", value, "a number from 0.001 to 1000, or None")
    return value


def _weights(**keys: float) -> None:
    for key, value in keys.items():
        expect(0 <= value < math.inf, f"loss.{key}", value, "a weight of at least 0")
    if not any(keys.values()):
        raise ValueError(f"config.loss: {' and '.join(keys)} are 0: write one above 0")


def _of_labels(value: Callable[[Array], Array], batch: Arrays, teacher: Array) -> Array:
    """Returns value(labels) [B]: the teacher's where one is missing, a mean where there are two."""

    def of(labels):
        if labels.ndim == 2:
            raise ValueError(
                "config.loss.name: dkd and wsl need one class an image, these have marks of "
                "several: write another, such as kl"
            )
        return value(jnp.where(losses.labelled(labels), labels, teacher.argmax(-1)))

    if "label2" not in batch:
        return of(batch["label"])
    return batch["lam"] * of(batch["label"]) + (1 - batch["lam"]) * of(batch["label2"])


def js(*, aux_weight: float) -> Part:
    """Jensen-Shannon divergence: `soft_losses.jensen_shannon`. Labels do not count."""
    return _scores(lambda s, t, _: soft_losses.jensen_shannon(s, t), aux_weight, hard=0.0)


def symmetric_kl(*, aux_weight: float) -> Part:
    """The symmetric KL that SSLD trained with, called JS there. Labels do not count."""
    return _scores(lambda s, t, _: soft_losses.symmetric_kl(s, t), aux_weight, hard=0.0)


def soft_ce(*, aux_weight: float) -> Part:
    """Cross-entropy with the teacher's probabilities. Labels do not count."""
    return _scores(lambda s, t, _: soft_losses.soft_cross_entropy(s, t), aux_weight, hard=0.0)


def kl(*, temperature: float | None, aux_weight: float) -> Part:
    """KL divergence with temperature, 4 if it is None: `soft_losses.kl`."""
    temperature = _temperature(temperature, 4.0)
    return _scores(lambda s, t, _: soft_losses.kl(s, t, temperature), aux_weight, hard=1.0)


def dkd(*, temperature: float | None, target: float, non_target: float, aux_weight: float) -> Part:
    """Decoupled KL, at a temperature of 4 if it is None: `soft_losses.decoupled_kl`."""
    _weights(target=target, non_target=non_target)
    given = {"target": target, "non_target": non_target}
    decoupled = functools.partial(
        soft_losses.decoupled_kl, temperature=_temperature(temperature, 4.0), **given
    )
    compare = lambda s, t, batch: _of_labels(lambda y: decoupled(s, t, y), batch, t)
    return _scores(compare, aux_weight, hard=1.0)


def wsl(*, temperature: float | None, aux_weight: float) -> Part:
    """Weighted soft labels, at a temperature of 2 if it is None.

    `soft_losses.weighted_soft_labels`. PaddleClas's recipe has soft = 2.5.
    """
    weighted = functools.partial(
        soft_losses.weighted_soft_labels, temperature=_temperature(temperature, 2.0)
    )
    compare = lambda s, t, batch: _of_labels(lambda y: weighted(s, t, y), batch, t)
    return _scores(compare, aux_weight, hard=1.0)


def skd(*, temperature: float | None, multiplier: float, aux_weight: float) -> Part:
    """Spherical distillation, at a temperature T of 1 if it is None.

    T^2 times the soft cross-entropy of `soft_losses.spherical` logits; the labels' loss is that of
    such logits too. PaddleClas's alpha is soft = alpha, hard = 1 - alpha: 0.9 and 0.1.
    """
    expect(0 < multiplier < math.inf, "loss.multiplier", multiplier, "a number above 0")
    temperature = _temperature(temperature, 1.0)
    sphere = functools.partial(soft_losses.spherical, multiplier=multiplier)

    def compare(s, t, batch):
        value = soft_losses.soft_cross_entropy(sphere(s), sphere(t), temperature)
        return temperature**2 * value

    def students(outputs):
        return [{k: sphere(v) if _is_score(k) else v for k, v in outputs.items()}]

    return _scores(compare, aux_weight, hard=0.1, students=students)


def dist(
    *,
    temperature: float | None,
    inter: float,
    intra: float,
    aux_weight: float,
    group: int | None,
) -> Part:
    """Correlations of classes and of images, at a temperature of 1 if it is None.

    `soft_losses.correlation`. PaddleClas's beta and gamma are inter and intra; its recipe has
    soft = 2.
    """
    _weights(inter=inter, intra=intra)
    related = functools.partial(
        soft_losses.correlation,
        temperature=_temperature(temperature, 1.0),
        inter=inter,
        intra=intra,
        group=group,
    )
    return _scores(lambda s, t, _: related(s, t), aux_weight, hard=1.0)


def _is_score(name: str) -> bool:
    return name == "logits" or name.startswith("aux")


# -- Parts that compare features -------------------------------------------------------------------


class Projections(nn.Module):
    """1x1 convolutions of features of the student to as many channels as a teacher has."""

    channels: tuple[tuple[str, str, int], ...]  # (name of the result, the student's feature, C)

    @nn.compact
    def __call__(self, outputs: Arrays, batch: Arrays, train: bool) -> dict[str, Array]:
        del batch, train
        found = {}
        for name, feature, channels in self.channels:
            x = losses.wide(outputs[feature])
            found[name] = nn.Dense(channels, name=name, dtype=x.dtype)(x)
        return found


def _features(
    compare: Callable[[Array, Array], Array],
    stages: Sequence[Any],
    outputs: Arrays,
    teachers: Any,
    *,
    kl_weight: float,
    temperature: float | None,
    aux_weight: float,
    project: bool = False,
    maps: bool = False,
) -> Part:
    """Returns the part of the sum over stages of the mean of compare(features, the teacher's).

    Args:
      stages: names of features that both have, or pairs of the student's and the teacher's.
      outputs, teachers: what both return.
      kl_weight: of `kl` beside it, with the temperature.
      project: compare features of as many channels.
      maps: compare features [B, H, W, C] only.
    """
    expect(0 <= kl_weight < math.inf, "loss.kl_weight", kl_weight, "a weight of at least 0")
    if temperature is not None and not kl_weight:
        raise ValueError(
            f"config.loss.temperature = {temperature} does nothing without config.loss.kl_weight"
        )
    of_scores = kl(temperature=temperature, aux_weight=aux_weight)
    others = teachers.outputs if teachers else ()
    pairs = _pairs(stages, outputs, others)
    projections = []
    for number, other in enumerate(others):
        for ours, theirs in pairs:
            shapes = [tree[name].shape for tree, name in ((outputs, ours), (other, theirs))]
            if len(shapes[0]) != len(shapes[1]) or (maps and len(shapes[0]) != 4):
                raise ValueError(
                    f"config.loss.stages: {ours} of the student is {_shape(shapes[0])}, {theirs} "
                    f"of teacher {number + 1} {_shape(shapes[1])}: they cannot be compared"
                )
            if project and shapes[0][-1] != shapes[1][-1]:
                projections.append((f"{ours}_as_{theirs}_{number + 1}", ours, shapes[1][-1]))
    projected = {name for name, _, _ in projections}

    def loss(outputs: Arrays, other: Arrays, batch: Arrays, number: int) -> Array:
        value = kl_weight * of_scores.loss(outputs, other, batch, number) if kl_weight else 0.0
        for ours, theirs in pairs:
            name = f"{ours}_as_{theirs}_{number + 1}"
            student = outputs[name if name in projected else ours]
            teacher = jax.lax.stop_gradient(other[theirs])
            if student.ndim == 4 and teacher.shape[1:3] != student.shape[1:3]:
                shape = (*student.shape[:3], teacher.shape[-1])
                teacher = jax.image.resize(teacher.astype(jnp.float32), shape, "linear")
            value += compare(student, teacher).mean()
        return value

    extra = Projections(tuple(projections)) if projections else None
    return Part(loss, hard=1.0, extra=extra)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, ('B', *shape[1:])))}]"


def _pairs(
    stages: Sequence[Any], outputs: Arrays, others: Sequence[Arrays]
) -> list[tuple[str, str]]:
    """Returns pairs of names of features, which all have.

    Raises:
      ValueError: there are none, or one that is not there.
    """
    pairs = [(stage, stage) if isinstance(stage, str) else stage for stage in stages]
    is_pair = lambda p: isinstance(p, tuple) and [*map(type, p)] == [str, str]
    good = pairs and all(map(is_pair, pairs))
    common = set(outputs).intersection(*others) - {"logits"}
    want = (
        "names of features that student and teacher have, or pairs of the student's and the "
        f"teacher's; both have {', '.join(sorted(common))}"
    )
    expect(bool(good) and len(set(pairs)) == len(pairs), "loss.stages", stages, want)
    for ours, theirs in pairs:
        for who, name, there in (
            ("the student", ours, [outputs]),
            ("the teacher", theirs, others),
        ):
            if {} in there:
                raise ValueError(
                    "config.loss.stages: the stored outputs of a teacher have no features: run it, "
                    "with config.teacher.checkpoints"
                )
            if missing := [tree for tree in there if name not in tree]:
                raise ValueError(
                    f"config.loss.stages: {who} has no feature {name!r}: choose one of "
                    f"{', '.join(sorted(missing[0]))}"
                )
    return pairs


def l2(
    *,
    stages: Sequence[Any],
    kl_weight: float,
    temperature: float | None,
    aux_weight: float,
    outputs: Arrays,
    teachers: Any,
) -> Part:
    """Mean square between features: `soft_losses.mean_square`.

    The student's go through a trained 1x1 convolution where channels differ (FitNets' regressor);
    the teacher's are resized where height and width do. The stage "logits" compares scores.
    """
    scores = {"kl_weight": kl_weight, "temperature": temperature, "aux_weight": aux_weight}
    return _features(soft_losses.mean_square, stages, outputs, teachers, project=True, **scores)


def attention(
    *,
    stages: Sequence[Any],
    kl_weight: float,
    temperature: float | None,
    aux_weight: float,
    outputs: Arrays,
    teachers: Any,
) -> Part:
    """Attention transfer: `soft_losses.attention`, of as many channels as there are."""
    scores = {"kl_weight": kl_weight, "temperature": temperature, "aux_weight": aux_weight}
    return _features(soft_losses.attention, stages, outputs, teachers, maps=True, **scores)


def rkd(
    *,
    stages: Sequence[Any],
    distance: float,
    angle: float,
    kl_weight: float,
    temperature: float | None,
    aux_weight: float,
    outputs: Arrays,
    teachers: Any,
    group: int | None,
) -> Part:
    """Relations of images: `soft_losses.relational_distance` and `relational_angle`, weighted.

    Of the means of features over height and width.
    """
    _weights(distance=distance, angle=angle)

    def compare(student, teacher):
        wide = map(losses.wide, (student, teacher))
        student, teacher = (x.mean((1, 2)) if x.ndim == 4 else x for x in wide)
        value = 0.0
        if distance:
            value += distance * soft_losses.relational_distance(student, teacher, group)
        if angle:
            value += angle * soft_losses.relational_angle(student, teacher, group)
        return value

    scores = {"kl_weight": kl_weight, "temperature": temperature, "aux_weight": aux_weight}
    return _features(compare, stages, outputs, teachers, **scores)


# -- A peer ----------------------------------------------------------------------------------------


class Peer(nn.Module):
    """A second network that learns with the first, from the same images."""

    peer: nn.Module
    name_of_peer: str

    def __call__(self, outputs: Arrays, batch: Arrays, train: bool) -> dict[str, Any]:
        del outputs
        try:
            found = self.peer(batch["image"], train=train)
        except ValueError as e:  # it takes no such images
            raise ValueError(f"config.loss.peer = {self.name_of_peer!r}: {e}") from e
        return {PEER: {name: x for name, x in found.items() if _is_score(name)}}


def dml(*, peer: str, aux_weight: float, module: nn.Module) -> Part:
    """Deep mutual learning, Zhang et al. 2018 (arXiv:1706.00384): two networks teach each other.

    KL(p' || p) + KL(p || p') at temperature 1, the first term's p' and the second's p being
    constants: each network learns from its own labels' loss and from the other as it is. Where
    PaddleClas lets the gradient of `soft_losses.symmetric_kl` pass into both, a network has half of
    this gradient, and half of that of the other direction.

    Args:
      peer: name of the second network; "": the first's. It is trained beside it, with other initial
        weights, and left out of exports.
      module: the first network, in training.
    """
    if peer:
        choose("config.loss.peer", peer, models.MODELS)
        given = {key: getattr(module.c, key) for key in OF_RUN}
        network = models.build(peer, num_classes=module.num_classes, **given)
    else:
        network = module.clone()
    constant = jax.lax.stop_gradient

    def compare(s, t, batch):
        return soft_losses.kl(s, constant(t)) + soft_losses.kl(t, constant(s))

    part = _scores(compare, aux_weight, hard=1.0, taught=False)
    students = lambda outputs: [outputs, outputs[PEER]]
    return part._replace(extra=Peer(network, peer), students=students)


PARTS = {
    f.__name__: f
    for f in (js, symmetric_kl, soft_ce, kl, dkd, wsl, skd, dist, l2, attention, rkd, dml)
}
TAUGHT = PARTS.keys() - {"dml"}

"""The networks that a run learns from: `config.teacher`.

A teacher is what `network.load` finds: a run, a checkpoint, an export, of any network. In the train
step it gets the images of the student, after all that training does to them, at the size that it
was trained at itself and normalised as it wants. Its weights are an argument of the step; they are
neither constants of its program nor part of its checkpoints.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import files, network
from jaxcls.config import choose, defaults, expect
from jaxcls.data.access import TEACHER, Source
from jaxcls.data.ops import Image, Shifted, Transform
from jaxcls.network import Network
from jaxcls.precision import DTYPES, dtypes

Arrays = Mapping[str, jax.Array]
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in decoding


class Teachers(NamedTuple):
    """One or several."""

    weights: tuple[float, ...]  # of each; their sum is 1
    outputs: tuple[Arrays, ...]  # shapes of what each returns for two images
    variables: Any  # of each, on the host
    apply: Callable[[Any, Arrays], tuple[Arrays, ...]]  # (variables, batch) -> what each returns


def make(
    *,
    checkpoints: Sequence[str],
    weights: Sequence[float],
    precision: str,
    stored: bool,
    student: Network,
    report: Callable[[str], None] = print,
) -> Teachers | None:
    """Returns the teachers of `config.teacher`; None where there are none.

    With `stored` there is one, which does not run: `check_stored` and `check_unchanged` say what
    that asks of images.

    Args:
      checkpoints, ...: `config.teacher`.
      student: the network that learns. `precision` "" is its own; "own" that of each teacher.
      report: is given a line about what is damaged in a checkpoint, or not said there.

    Raises:
      ValueError: a checkpoint that is none, of other classes or for other images; a value out of
        range; a key that does nothing without teachers.
    """
    if stored and checkpoints:
        raise ValueError(
            f"config.teacher.stored = True: outputs are read with the images, and {checkpoints!r} "
            "would not run: write config.teacher.checkpoints = (), or stored = False"
        )
    if not checkpoints:
        for key, value in {"weights": weights, "precision": precision}.items():
            if value != defaults()[0][f"teacher.{key}"]:
                raise ValueError(
                    f"config.teacher.{key} = {value!r} does nothing without "
                    "config.teacher.checkpoints"
                )
        return _stored(student.num_classes) if stored else None
    texts = all(isinstance(path, str) and path for path in checkpoints)
    want = 'checkpoints, such as ("RUN",) or ("RUN1", "RUN2")'
    expect(texts, "teacher.checkpoints", checkpoints, want)
    if precision not in ("", "own"):
        dtypes(choose("config.teacher.precision", precision, DTYPES), "config.teacher.precision")
    shares = tuple(weights) or (1.0,) * len(checkpoints)
    good = all(type(w) in (int, float) and 1e-30 < w < 1e30 for w in shares)
    want = f"{len(checkpoints)} numbers above 0, one for each of config.teacher.checkpoints, or ()"
    expect(good and len(shares) == len(checkpoints), "teacher.weights", weights, want)
    networks, variables = [], []
    for path in checkpoints:
        teacher, of_teacher = _load(path, student, files.only_process_0(report))
        if precision != "own":
            teacher = dataclasses.replace(teacher, precision=precision or student.precision)
        networks.append(teacher)
        variables.append(of_teacher)

    def apply(variables: Any, batch: Arrays) -> tuple[Arrays, ...]:
        views = (shown(batch["image"], student.image, teacher.image) for teacher in networks)
        return tuple(
            dict(teacher.predict(of_teacher, view))
            for teacher, of_teacher, view in zip(networks, variables, views, strict=True)
        )

    two = {"image": jax.ShapeDtypeStruct((2, *student.image.shape), jnp.float32)}
    return Teachers(
        weights=tuple(share / sum(shares) for share in shares),
        outputs=jax.eval_shape(apply, variables, two),
        variables=variables,
        apply=apply,
    )


def _stored(classes: int) -> Teachers:
    """Returns the teacher whose outputs are stored with the images."""

    def apply(variables: Any, batch: Arrays) -> tuple[Arrays, ...]:
        del variables
        return ({"logits": whole(*(batch[key] for key in sorted(TEACHER)), classes)},)

    return Teachers((1.0,), ({},), (), apply)


def whole(best: jax.Array, scores: jax.Array, classes: int) -> jax.Array:
    """Returns logits [B, K] from the stored ones: what is left goes to the other classes evenly.

    Args:
      best, scores: int32 [B, k], float16 [B, k + 1], see data/access.py.
      classes: K.
    """
    scores, k = scores.astype(jnp.float32), best.shape[1]
    rest = scores[:, k] - math.log(max(classes - k, 1))

    def of_image(best, scores, rest):
        return jnp.full(classes, rest).at[best].set(scores)

    return jax.vmap(of_image)(best, scores[:, :k], rest)


def check_stored(source: Source) -> None:
    """Refuses images without outputs of a teacher.

    Raises:
      ValueError: the first one has none.
    """
    if not source[0].keys() >= TEACHER:
        raise ValueError(
            "config.teacher.stored = True: the training images have no outputs of a teacher: write "
            "them with data_prep/teacher.py and read them with config.data.source = "
            '"array_record"'
        )


def check_unchanged(transform: Transform, erase: Any, mix: Any) -> None:
    """Refuses training that shows other images than those whose outputs are stored.

    A teacher saw the centre of each image; flips and shifts by a few pixels are taken to change
    nothing of what it would say.

    Raises:
      ValueError: images are cropped at random, augmented, erased or mixed.
    """
    changes = {
        "config.crop.name = 'random_resized' (write 'center' or 'shift')": not isinstance(
            transform.crop, Shifted
        ),
        "config.augment": transform.augment,
        "config.erase": erase,
        "config.mix": mix,
    }
    if found := [key for key, on in changes.items() if on]:
        raise ValueError(
            "config.teacher.stored = True: the outputs are those of whole images, and training "
            f"shows others, by {', '.join(found)}: turn that off, or run the teacher, with "
            "config.teacher.checkpoints"
        )


def _load(
    path: str, student: Network, report: Callable[[str], None]
) -> tuple[Network, dict[str, Any]]:
    key = f"config.teacher.checkpoints: {path!r}"
    try:
        teacher, variables = network.load(path, report=report)
    except ValueError as e:
        raise ValueError(f"{key}: {e}") from e
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(variables)):
        raise ValueError(f"{key}: its weights are not all finite numbers: choose another teacher")
    check_classes(teacher, student.num_classes, student.class_names, key)
    if {teacher.image.channels, student.image.channels} - {1, 3} and (
        teacher.image.channels != student.image.channels
    ):
        raise ValueError(
            f"{key} is for images of {teacher.image.channels} channels, config.image.mean for "
            f"{student.image.channels}"
        )
    return teacher, variables


def check_classes(teacher: Network, classes: int, class_names: Sequence[str], who: str) -> None:
    """Refuses a network whose classes are not those of the data.

    Args:
      teacher: its class names are compared where they are known.
      classes, class_names: of the data, or of the network that learns.
      who: what a message calls the network.

    Raises:
      ValueError: they are others.
    """
    if teacher.multi_label:
        raise ValueError(
            f"{who} is for images that may show several classes: choose a teacher that was trained "
            "on images of one class each"
        )
    if teacher.num_classes != classes:
        raise ValueError(
            f"{who} has {teacher.num_classes} classes, the student {classes}: choose a teacher "
            "that was trained on the classes of config.data"
        )
    pairs = enumerate(zip(teacher.class_names, class_names))
    if differ := [f"class {i} is {a!r} there, {b!r} here" for i, (a, b) in pairs if a != b]:
        raise ValueError(
            f"{who} has other classes than config.data: {files.some(differ, 3)}; choose a teacher "
            "that was trained on the same"
        )


def shown(images: jax.Array, ours: Image, theirs: Image) -> jax.Array:
    """Returns normalised images as another network takes them, [B, size, size, channels].

    Their size is that of the other network's training, by bilinear interpolation (where they become
    smaller over all pixels that a new one covers).

    Args:
      images: [B, H, W, C], normalised as `ours` says.
      ours: how images reach the network that they are for.
      theirs: how they reach the other.
    """
    size, channels = images.shape[1], images.shape[3]
    same = channels == theirs.channels and (ours.mean, ours.std) == (theirs.mean, theirs.std)
    if not same:
        array = functools.partial(jnp.asarray, dtype=images.dtype)
        images = images * array(ours.std) + array(ours.mean)
        if channels == 3 and theirs.channels == 1:
            images = (images * array(GREY)).sum(-1, keepdims=True)
        images = (images - array(theirs.mean)) / array(theirs.std)  # of grey ones all channels
    if size != theirs.size:
        shape = (len(images), theirs.size, theirs.size, theirs.channels)
        images = jax.image.resize(images, shape, "linear")
    return images

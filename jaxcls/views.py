"""Test-time augmentation and fusion: several views of each image, several networks, one mean.

A view is a crop, at a scale, mirrored or not; each network sees all views at its own resolution and
after its own preprocessing. Every crop and scale reads the images once more.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import losses, objectives
from jaxcls.config import choose, expect
from jaxcls.data import ops
from jaxcls.network import Network
from jaxcls.report.measures import of_all_classes
from jaxcls.report.scores import Scores

KEYS = ("tta", "tta_scales", "fuse", "weights", "mean")  # of the section `eval`
TTA = ("flip", "five_crop", "ten_crop")
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # shares of what is cut off: y, x
KINDS = {False: "one class each", True: "several classes"}
CHUNK = 4096  # images whose measures are computed together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the section `eval`: what the mean is taken over, and how.

    Raises:
      ValueError: a name, a number or a weight that cannot be meant; the message names the key.
    """

    tta: tuple[str, ...]
    tta_scales: tuple[float, ...]
    fuse: tuple[str, ...]
    weights: tuple[float, ...]  # of the network and of each of `fuse`
    mean: str  # "probabilities" or "logits"

    def __post_init__(self):
        for name in self.tta:
            choose("config.eval.tta", name, TTA)
        number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
        scales = all(number(x) and 0.1 <= x <= 10 for x in self.tta_scales)
        what = "factors from 0.1 to 10, such as (0.875, 1.0, 1.125)"
        expect(scales, "eval.tta_scales", self.tta_scales, what)
        paths = all(isinstance(path, str) and path.strip() for path in self.fuse)
        what = "runs, checkpoints or exports, such as ('runs/a', 'runs/b'); () for none"
        expect(paths, "eval.fuse", self.fuse, what)
        count = 1 + len(self.fuse)
        if self.weights and not self.fuse:
            raise ValueError(
                f"config.eval.weights = {self.weights}: there is nothing to weight without "
                "config.eval.fuse"
            )
        right = all(number(w) and w >= 0 for w in self.weights)
        right = right and len(self.weights) in (0, count)
        what = f"{count} numbers of at least 0: of this network, and of each of config.eval.fuse"
        expect(right, "eval.weights", self.weights, what)
        if self.weights and not sum(self.weights) > 0:
            raise ValueError(
                f"config.eval.weights = {self.weights}: an ensemble of nothing; write a number "
                "above 0 for at least one network"
            )
        choose("config.eval.mean", self.mean, ("probabilities", "logits"))

    @property
    def used(self) -> list[str]:
        """The keys that ask for more than one network as it is."""
        return [key for key in ("tta", "tta_scales", "fuse") if getattr(self, key)]

    @property
    def shares(self) -> list[float]:
        """Returns the share of each network, with a sum of 1."""
        weights = self.weights or (1.0,) * (1 + len(self.fuse))
        return [w / sum(weights) for w in weights]

    def transforms(self, network: Network) -> list[ops.Transform]:
        """Returns what is done to an image on the host: a crop at a scale each."""
        plain, image, out = network.transform, network.image, []
        for scale in self.tta_scales or (1.0,):
            size, resize = (round(scale * n) for n in (image.shown, image.eval_resize))
            if scale != 1 and not resize:
                raise ValueError(
                    f"config.eval.tta_scales: {network.name} takes images without resizing them: "
                    "set config.image.eval_resize, the pixels of their short side"
                )
            at = dataclasses.replace(plain, size=size, crop=ops.Shifted(resize, 0))
            out.append(at)
            if "five_crop" in self.tta or "ten_crop" in self.tta:
                crops = (Corner(resize, 0, y, x) for y, x in CORNERS)
                out += [dataclasses.replace(at, crop=crop) for crop in crops]
        return out

    @property
    def flip(self) -> bool:
        """Whether each view is seen mirrored too."""
        return "flip" in self.tta or "ten_crop" in self.tta

    def described(self, networks: Sequence[Network]) -> str:
        """Returns what the mean is over, in words."""
        views = len(self.transforms(networks[0])) * (2 if self.flip else 1)
        names = " + ".join(
            network.name + (f" x {share:.3g}" if self.weights else "")
            for network, share in zip(networks, self.shares)
        )
        each = f"{views} views of " if views > 1 else ""
        return f"mean of {self.mean} over {each}{names}"


@dataclasses.dataclass(frozen=True)
class Corner(ops.Shifted):
    """A corner of the image after its short side was resized."""

    down: float  # share of what the crop leaves that lies above it
    right: float

    def __call__(
        self, height: int, width: int, size: int, rng: np.random.Generator | None
    ) -> ops.Crop:
        crop = super().__call__(height, width, size, rng)
        height, width = crop.resized
        window = round(self.down * (height - size)), round(self.right * (width - size))
        return crop._replace(window=window)


def check_classes(ours: Network, theirs: Network, path: str | os.PathLike, key: str) -> None:
    """Refuses a network of other classes.

    Raises:
      ValueError: their number or names differ; the message says where first.
    """
    where = f"config.{key}: {os.fspath(path)}"
    if ours.num_classes != theirs.num_classes:
        raise ValueError(
            f"{where} has {theirs.num_classes} classes, the network here {ours.num_classes}: give "
            "networks of the same classes"
        )
    if ours.multi_label != theirs.multi_label:
        raise ValueError(f"{where} is for images of {KINDS[theirs.multi_label]}, the network here "
                         f"for images of {KINDS[ours.multi_label]}")  # fmt: skip
    pairs = zip(theirs.class_names, ours.class_names)
    for i, (a, b) in enumerate(pairs):
        if a != b:
            raise ValueError(
                f"{where} has other classes: class {i} is {a!r} there, {b!r} here: give networks "
                "of the same classes in the same order"
            )


def values(network: Network, options: Options, several: bool) -> Callable[..., jax.Array]:
    """Returns f(variables, images) -> what is averaged of a view, float32 [B, K].

    Probabilities, or logits over temperature, by `options.mean`; also of the mirror image where
    `options.flip` says so.

    Args:
      network: that answers.
      options: what the mean is.
      several: whether an image may show several classes.
    """

    def of(variables, images):
        z = network.predict(variables, images)["logits"].astype(jnp.float32)
        z /= network.temperature
        if options.mean == "logits":
            return z
        return jax.nn.sigmoid(z) if several else jax.nn.softmax(z)

    def of_both(variables, images):
        return (of(variables, images) + of(variables, images[:, :, ::-1])) / 2

    return of_both if options.flip else of


def make_step(network: Network, options: Options) -> Callable[..., Any]:
    """Returns step(variables, batch) -> (sums, rows), as `scores.make_step`, of a view.

    In place of logits the rows have what is averaged, see `values`.
    """

    def step(variables, batch):
        answers = values(network, options, batch["label"].ndim == 2)(variables, batch["image"])
        rows = {"logits": answers, "label": batch["label"], "mask": batch["mask"]}
        labelled = losses.labelled(batch["label"]) & batch["mask"]
        return {"count": labelled.sum(dtype=jnp.int32)}, rows

    return step


class Mean:
    """The weighted mean of the scores of several views of the same images."""

    def __init__(self, options: Options):
        self.options = options
        self.scores: Scores | None = None

    def add(self, scores: Scores, share: float) -> None:
        """Takes the scores of a view."""
        scores.logits[:] *= share
        if self.scores is None:
            self.scores = scores
            return
        if not np.array_equal(scores.numbers, self.scores.numbers):
            raise ValueError("some images can be read for one of the views only: repair them")
        self.scores.logits[:] += scores.logits

    def finished(self) -> tuple[dict[str, float], Scores]:
        """Returns the means over all images, and scores whose logits give the mean."""
        z = self.scores.logits
        if self.options.mean == "probabilities":
            least = np.finfo(np.float32).tiny
            other = np.maximum(1 - z, least) if self.scores.labels.ndim == 2 else np.float32(1)
            z[:] = np.log(np.maximum(z, least)) - np.log(other)
        return measured(self.scores), self.scores


def measured(scores: Scores) -> dict[str, float]:
    """Returns the means over the images that have a label, as `evaluate` does."""
    sums: dict[str, float] = {}
    images = 0
    for start in range(0, len(scores.labels), CHUNK):
        rows = slice(start, start + CHUNK)
        batch: Mapping[str, Any] = {"label": jnp.asarray(scores.labels[rows])}
        mask = losses.labelled(batch["label"])
        images += int(mask.sum())
        for name, values in objectives.per_image({"logits": scores.logits[rows]}, batch).items():
            total = np.asarray(jnp.where(mask, values, 0), np.float64).sum()
            sums[name] = sums.get(name, 0.0) + float(total)
    result = {name: value / images for name, value in sums.items()}
    if scores.labels.ndim == 2:
        result |= of_all_classes(scores.logits, scores.labels)
    return result | {"images": images}

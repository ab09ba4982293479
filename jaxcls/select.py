"""python -m jaxcls.select --weights=RUN --images=DIR_OR_LIST --out=FILE.txt [--top=K] \\
    [--min-confidence=0.9] [--exclude=DIR_OR_LIST] [--similarity=0.995]

Chooses images without labels for training, by what a network says of them: the K surest of each
class, which is the data selection of SSLD, or pseudo-labels of all that it is sure enough of.
FILE.txt gets a line `path label` for each, as lists of PaddleClas have them, FILE.csv their
confidences too. What looks like an image of --exclude, such as the validation images, is left out;
so is what looks like a surer one of --images, or cannot be read. The list trains as it stands with
--config.data.source=list --config.data.train=FILE.txt, and what teachers say of its images with
--config.data.unlabelled=FILE.txt. Exit codes: 0; 2: a mistake in command or data.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import features, files, network, sharding
from jaxcls.command import Arguments, exit_with, start_jax, told
from jaxcls.console import Console
from jaxcls.data import copies, lists
from jaxcls.data.access import Source
from jaxcls.data.decode import decode
from jaxcls.data.feed import Feed
from jaxcls.data.folders import Files
from jaxcls.data.sources import Data
from jaxcls.network import Network, Variables

# Cosine. Measured with a small network (64 features, 58 % top-1) on 2,000 test images of CIFAR-10:
# 36 % of 500 mirrored ones, which hashes do not know, reach it, 23 % of those brightened by a
# fifth, 43 % of JPEGs of quality 40; of 4,000 other images 0.3 %, and 32 % reach 0.98. More
# features tell images apart at lower cosines.
SIMILARITY = 0.995
FIELDS = ("path", "label", "class", "confidence")


class Known(NamedTuple):
    """Images to leave out."""

    features: np.ndarray  # float32 [M, D], of length 1
    look: np.ndarray  # uint64 [M], perceptual hashes


class Scores(NamedTuple):
    """What a network says of N images."""

    label: np.ndarray  # int32 [N], the surest class; -1: the image cannot be read
    confidence: np.ndarray  # float32 [N], its probability
    similarity: np.ndarray  # float32 [N], to the most similar one that is known; -1 without any
    look: np.ndarray  # uint64 [N], perceptual hashes


class Looker:
    """A network that looks at images, on all devices."""

    def __init__(self, net: Network, variables: Variables, batch_size: int = 64):
        """Takes what `network.load` returns, and the images in a batch of a device."""
        self.layout = sharding.make(data=-1, fsdp=1, model=1, fsdp_min_size=0, rules=())
        if self.layout.platform == "cpu" and "16" in net.precision:
            net = dataclasses.replace(net, precision="float32")  # of 16 bits it takes far longer
        self.net, self.batch_size = net, batch_size * self.layout.mesh.size
        self.variables = jax.device_put(variables, self.layout.whole)
        self.console = Console()

    def known(self, source: Source) -> Known:
        """Returns what tells images from others; those that cannot be read are left out."""
        look = np.zeros(len(source), np.uint64)
        rows = [*self._rows(lambda outputs, _: {"x": _unit(outputs)}, source, look, jnp.zeros(0))]
        read = np.concatenate([row["number"] for row in rows])
        return Known(np.concatenate([row["x"] for row in rows]), look[read])

    def scores(self, source: Source, known: Known | None = None) -> Scores:
        """Returns what the network says of the images of a source, which are read once.

        Memory is that of a few batches, of what is known, and 20 bytes an image.
        """
        count = len(source)
        label, confidence = np.full(count, -1, np.int32), np.zeros(count, np.float32)
        similarity, look = np.full(count, -1, np.float32), np.zeros(count, np.uint64)

        def compute(outputs, others):
            chances = self.net.probabilities(outputs["logits"])
            row = {"class": chances.argmax(-1), "confidence": chances.max(-1)}
            if known:
                with jax.default_matmul_precision("highest"):
                    row["similarity"] = (_unit(outputs) @ others.T).max(-1)
            return row

        others = jnp.asarray(known.features if known else 0.0)
        for row in self._rows(compute, source, look, others):
            label[row["number"]], confidence[row["number"]] = row["class"], row["confidence"]
            similarity[row["number"]] = row.get("similarity", -1)
        return Scores(label, confidence, similarity, look)

    def _rows(
        self, compute: Callable, source: Source, look: np.ndarray, others: jax.Array
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields `compute(outputs, others)` of each batch; fills in `look`."""
        net, (whole, of_rows) = self.net, (self.layout.whole, self.layout.rows)
        how = {"channels": net.image.channels, "exif": net.image.exif}
        source = _Looked(source, look, how)
        data = Data(
            train=source,
            eval=source,
            class_names=net.class_names,
            on_bad_image="skip",
            max_bad_images=len(source),
            sampling="shuffle",
            repeats=1,
            cache="none",
        )
        both = lambda variables, others, images: compute(net.predict(variables, images), others)
        step = jax.jit(both, in_shardings=(whole, whole, of_rows))
        others = jax.device_put(others, whole)
        yield from features.each(
            lambda images: step(self.variables, others, images),
            Feed(data, source, net.transform, self.layout),
            batch_size=self.batch_size,
            progress=lambda done: self.console.status(f"{done:,} of {len(source):,} images done"),
        )
        self.console.erase()


@dataclasses.dataclass(frozen=True, eq=False)
class _Looked:
    """A source that notes the perceptual hashes of the images that are read."""

    source: Source
    look: np.ndarray
    how: dict[str, Any]  # arguments of `decode`

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.source[index]
        pixels = decode(item["image"], name=item["name"], **self.how)
        self.look[index] = copies.perceptual_hash(pixels)
        return item


def _unit(outputs: dict[str, jax.Array]) -> jax.Array:
    x = outputs["pre_logits"].astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def select(
    scores: Scores,
    known: Known | None = None,
    *,
    top: int = 0,
    min_confidence: float = 0.0,
    similarity: float = 1.0,
) -> tuple[np.ndarray, dict[str, int]]:
    """Returns the numbers of the images that are chosen, and how many are not, for what reason.

    They are in the order of their classes, and of each the surest first.

    Args:
      scores, known: of `Looker`.
      top: of each class at most so many; 0: all.
      min_confidence: least probability.
      similarity: cosine of features, from which on an image is taken for a known one. Copies, also
        of surer ones among these images, are those whose perceptual hashes differ in at most
        `copies.NEAR` bits.
    """
    left, reasons = scores.label >= 0, {}

    def leave_out(which: np.ndarray, reason: str) -> None:
        nonlocal left
        reasons[reason] = int((left & which).sum())
        left = left & ~which

    reasons["cannot be read"] = int((~left).sum())
    if known is not None:
        near, _ = copies.nearest(known.look, scores.look, copies.NEAR)
        leave_out((near >= 0) | (scores.similarity >= similarity), "look like one to leave out")
    leave_out(scores.confidence < min_confidence, "are not sure enough")
    surest = np.flatnonzero(left)
    surest = surest[np.argsort(-scores.confidence[surest], kind="stable")]
    again = np.zeros(len(left), bool)
    again[surest] = copies.repeated(scores.look[surest], copies.NEAR)
    leave_out(again, "look like a surer one")
    order = np.lexsort((np.arange(len(left)), -scores.confidence, scores.label))
    order = order[left[order]]
    label = scores.label[order]
    place = np.arange(len(order)) - np.searchsorted(label, label)
    chosen = order[place < top] if top else order
    reasons["are not among the surest of their class"] = len(order) - len(chosen)
    return chosen, reasons


def table(
    chosen: np.ndarray, scores: Scores, paths: Sequence[str], class_names: Sequence[str]
) -> tuple[str, str]:
    """Returns the texts of the list, `path label`, and of the CSV file."""
    names = dict(enumerate(class_names))
    lines, rows = [], [FIELDS]
    for number in chosen.tolist():
        label, path = int(scores.label[number]), paths[number]
        lines.append(f"{path} {label}\n")
        rows.append((path, label, names.get(label, label), f"{scores.confidence[number]:.6f}"))
    return "".join(lines), files.csv_of(rows)


def images(place: str, flag: str) -> Files:
    """Returns the images below a folder, or of a list."""
    try:
        return lists.open_unlabelled(place, root="", delimiter=" ", allowed=sys.maxsize)
    except ValueError as e:
        raise ValueError(str(e).replace("config.data.unlabelled", flag)) from e


def _paths(found: Files, out: Path) -> list[str]:
    """Returns the paths of images: relative to the list where they are below its folder."""
    root, base = Path(found.root).absolute(), out.absolute().parent
    whole = [os.path.join(root, path) for path in found.paths]
    inside = f"{base}{os.sep}"
    return [path.removeprefix(inside) for path in whole]


def share(low: float, high: float) -> Callable[[str], float]:
    """Returns the type of an argument that is a number from `low` to `high`."""

    def number(text: str) -> float:
        if not low <= (value := float(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text}: write a number from {low:g} to {high:g}")
        return value

    return number


@told
def main(argv: Sequence[str] | None = None) -> int:
    """Chooses images; returns the exit code."""
    usage, _, description = __doc__.partition("\n\n")
    parser = Arguments(prog="python -m jaxcls.select", usage=usage, description=description)
    parser.add_argument("--weights", required=True, help="a run, a checkpoint or an export")
    parser.add_argument("--images", required=True, help="a folder, or a list with a path in a line")
    parser.add_argument("--out", required=True, help="the list to write; FILE.csv is beside it")
    parser.add_argument("--top", type=int, default=0, help="images of a class at most; 0: all")
    parser.add_argument(
        "--min-confidence", type=share(0, 1), default=0.0, help="least probability of the class"
    )
    parser.add_argument("--exclude", help="images whose copies are left out: a folder or a list")
    parser.add_argument(
        "--similarity",
        type=share(0, 1),
        default=SIMILARITY,
        help="cosine of features, from which on two images are taken for the same; 0.995",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images, on each device")
    args = parser.parse_args(argv)
    for name, least in (("top", 0), ("batch_size", 1)):
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}={getattr(args, name)}: write at least {least}")
    out = Path(args.out).expanduser()
    if out.is_dir() or not out.parent.is_dir() or out.suffix == ".csv":
        raise ValueError(
            f"--out={out}: write the name of a list, FILE.txt, in a folder that is there"
        )
    found = images(args.images, "--images")
    others = images(args.exclude, "--exclude") if args.exclude else None
    start_jax()
    net, variables = network.load(args.weights, report=lambda line: print(line, file=sys.stderr))
    if net.multi_label:
        raise ValueError(
            f"--weights={args.weights}: for images that show several classes: a list has one each"
        )
    looker = Looker(net, variables, args.batch_size)
    known = None if others is None else looker.known(others)
    scores = looker.scores(found, known)
    chosen, reasons = select(
        scores,
        known,
        top=args.top,
        min_confidence=args.min_confidence,
        similarity=args.similarity,
    )
    listed, rows = table(chosen, scores, _paths(found, out), net.class_names)
    files.write_atomically(out, listed)
    files.write_atomically(out.with_suffix(".csv"), rows)
    counts = np.bincount(scores.label[chosen], minlength=net.num_classes)
    print(f"{len(chosen):,} of {len(found):,} images: {out}, {out.with_suffix('.csv')}")
    print(f"  {counts.min():,} to {counts.max():,} of a class, none of {(counts == 0).sum():,}")
    for reason, count in reasons.items():
        if count:
            print(f"  {count:,} {reason}")
    return 0


if __name__ == "__main__":
    exit_with(main)

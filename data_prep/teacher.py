"""Writes training images with what a teacher says of them: it need not run in training any more.

    python data_prep/teacher.py --config=configs/digits.py --teacher=RUN --out=RECORDS [--top=10] \\
        [--shards=16] [--batch_size=64] [--config.data.KEY=VALUE]
    python -m jaxcls.main --config=... --config.data.source=array_record \\
        --config.data.root=RECORDS --config.teacher.stored=True --config.loss.name=kl

The images are those of the config's `data`; the teacher, a run, checkpoint or export with the same
classes, sees each as in its own evaluation. RECORDS gets train-*.array_record with every image as
it is, its label, the --top likeliest classes and their probabilities in float16;
train-unlabelled-*.array_record with the images that have no label; val-*.array_record with the
evaluation images, without outputs; and classes.txt. Such outputs are of whole images: training
from them may flip and shift, but not crop at random, augment, erase or mix.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from absl import flags
from folder_to_array_record import Example, write_classes, write_split
from tqdm import tqdm

from jaxcls import choices, network, teachers
from jaxcls.command import define_config, exit_with, parse, told
from jaxcls.console import Console
from jaxcls.data.access import Source
from jaxcls.data.decode import BadImage
from jaxcls.data.ops import transformed
from jaxcls.data.records import UNLABELLED


@told
def main(argv: Sequence[str] = sys.argv) -> int:
    values = flags.FlagValues()
    define_config(values)
    flags.DEFINE_string("teacher", None, "run, checkpoint or export", flag_values=values)
    flags.DEFINE_string("out", None, "folder of the records", flag_values=values)
    flags.DEFINE_integer("top", 10, "classes that are kept of each image", flag_values=values)
    flags.DEFINE_integer("shards", 16, "files for each split", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "images at a time", flag_values=values)
    parse(argv, values, required=("teacher", "out"), help=__doc__)
    for key in ("top", "shards", "batch_size"):
        if values[key].value < 1:
            raise ValueError(f"--{key}={values[key].value}: write a number of at least 1")
    config = values.config
    with config.unlocked():
        config.teacher.stored = False  # that is what the records are for
    Console()  # shows what the input warns of
    net, variables = network.load(values.teacher)
    config, data = choices.open_data(config)
    who = f"--teacher={values.teacher}"
    teachers.check_classes(net, len(data.class_names), data.class_names, who)
    if values.top > net.num_classes:
        raise ValueError(f"--top={values.top}: {who} has {net.num_classes} classes")
    if data.train.marks:
        raise ValueError("config.data: records hold one class an image, these show several")

    known = data.train.has_label
    ask = outputs(net, variables, values.top)
    skip = data.on_bad_image == "skip"
    splits = {
        "train": (data.train, np.flatnonzero(known), ask),
        f"train-{UNLABELLED}".strip("-"): (data.train, np.flatnonzero(~known), ask),
        "val": (data.eval, np.arange(len(data.eval) if data.eval else 0), None),
    }
    options = argparse.Namespace(short_side=0, quality=90, raw=False, skip_bad=skip)
    for split, (source, indices, of_split) in splits.items():
        if len(indices):
            found = examples(source, indices, net, of_split, values.batch_size, skip)
            write_split(found, options, Path(values.out), split, min(values.shards, len(indices)))
    write_classes(Path(values.out), data.class_names)
    return 0


def outputs(
    net: network.Network, variables: dict, top: int
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns f(pixels) -> (classes int32 [B, k], scores float16 [B, k + 1]).

    Scores are the logarithms of the probabilities of the k likeliest classes, and of what the
    others have together.
    """
    variables = jax.device_put(variables)

    def ask(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = np.asarray(net.predict(variables, pixels)["logits"], np.float64)
        log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        order = np.argsort(-log_p, -1, kind="stable")
        sorted_ = np.take_along_axis(log_p, order, -1)
        rest = np.logaddexp.reduce(sorted_[:, top:], -1, keepdims=True, initial=-np.inf)
        scores = np.concatenate([sorted_[:, :top], rest], -1)
        return order[:, :top].astype(np.int32), scores.astype(np.float16)

    return ask


def examples(
    source: Source,
    indices: np.ndarray,
    net: network.Network,
    ask: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None,
    batch_size: int,
    skip: bool,
) -> Iterator[Example]:
    """Yields the images of a source with what the teacher says of them, in order.

    Raises:
      BadImage: one cannot be read, and `skip` is False.
    """

    def read(number: int):
        try:
            item = source[int(indices[number])]
            return item, transformed(item, net.transform, None) if ask else None
        except BadImage as error:
            if not skip:
                raise
            return error, None

    def asked(found: list) -> Iterator[Example]:
        for error in (x for x, _ in found if isinstance(x, BadImage)):
            print(f"skipped: {error}", file=sys.stderr)
        batch = [(x, pixels) for x, pixels in found if not isinstance(x, BadImage)]
        items = [(x["image"], x["label"], x["name"]) for x, _ in batch]
        if not ask or not batch:
            yield from items
            return
        pixels = [pixels for _, pixels in batch]
        pixels += pixels[:1] * (batch_size - len(pixels))  # one program for all batches
        for item, *teacher in zip(items, *ask(np.stack(pixels))):
            yield *item, tuple(teacher)

    starts = tqdm(range(0, len(indices), batch_size), unit="batch", disable=not sys.stderr.isatty())
    with ThreadPoolExecutor() as pool:
        reading = None
        for start in starts:
            ahead = pool.map(read, range(start, min(start + batch_size, len(indices))))
            if reading is not None:  # while the next ones are read
                yield from asked([*reading])
            reading = ahead
        yield from asked([*reading])


if __name__ == "__main__":
    exit_with(main)

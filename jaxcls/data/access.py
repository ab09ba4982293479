"""Random access to images by number, encoded as they lie on disk: what a source is.

A source has `len(source)`, `source.class_names`, `source.labels` (int [N] or marks [N, K], see
data/labels.py; records have to be read for it), `source.marks`, the K of marks or 0 where labels
are numbers, `source.has_label`, bool [N], which needs no reading, and `source[i]`, a dict of
  image  bytes (encoded) or uint8 [H, W, C]
  label  int below len(class_names), -1 where it has none; or a mark for each class, [K]; it is
         the source that makes sure of it
  name   str, what error messages call the image
and, where a teacher's outputs are stored, its k likeliest classes and k + 1 scores: the logarithms
of their probabilities, and of what the other classes have together,
  teacher_classes, teacher_scores  int32 [k], float16 [k + 1]
`source.identity` tells it from others: digests {"images", "labels"} of what the images are called
below their root and of their labels; of records, which would have to be read for both, one of their
files' names, sizes and numbers of records. Names say nothing of two classes that have changed
places, so "some" has {what was looked at: [what was found]}: digests of two images of each class,
labels of records; None where something cannot be read.
It pickles (files are opened late) and may be read from several threads at once.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

MAX_CLASSES = 10_000_000
TEACHER = {"teacher_classes", "teacher_scores"}  # keys of an item
SOME = 1000  # classes or records that are looked at, to tell images from others of the same name

T = TypeVar("T")


class Source(Protocol):
    class_names: tuple[str, ...]
    labels: np.ndarray
    marks: int
    has_label: np.ndarray
    identity: dict[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class BadLabel(ValueError):
    """A label that no class has."""

    item: dict[str, Any]  # that has it


def check_label(item: dict[str, Any], classes: int) -> None:
    """Refuses the label of an item, a number, that no class has.

    Raises:
      BadLabel: it is so.
    """
    label, name = item["label"], item["name"]
    if not 0 <= label < classes:
        error = BadLabel(f"{name}: the label {label} is out of range, there are {classes} classes")
        error.item = item
        raise error


def item_of(source: Source, index: int) -> dict[str, Any]:
    """Returns an item whatever its label is, for looking at it."""
    try:
        return source[index]
    except BadLabel as error:
        return error.item


def digest(things: Any) -> str:
    """Returns a digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(things).encode()).hexdigest()


def digest_of_labels(labels: np.ndarray) -> str:
    """Returns a digest of labels, int [N] or marks [N, K]."""
    if labels.ndim == 1:
        return digest(labels.tolist())
    whole = [str(labels.dtype), labels.shape, hashlib.sha256(labels.tobytes()).hexdigest()]
    return digest(whole)


def evenly(things: Sequence[T]) -> list[T]:
    """Returns some of the things, evenly spread, if they are many."""
    return [things[i] for i in np.linspace(0, len(things) - 1, min(len(things), SOME)).astype(int)]


def in_threads(f: Callable[[Any], T], things: Sequence[Any]) -> list[T]:
    """Returns f(thing) of each."""
    with ThreadPoolExecutor(16) as pool:
        return [*pool.map(f, things)]


def for_all(f: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """Yields f(0), ..., f(count - 1), made by a thread for each core.

    Shows the progress of `what`: as a bar on a terminal, as a line now and then elsewhere.
    """

    def part(start: int) -> list[T]:
        return [f(i) for i in range(start, min(start + 64, count))]

    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=count,
        desc=what,
        unit="image",
        mininterval=0.1 if terminal else 30,
        delay=0 if terminal else 10,
    )
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for results in pool.map(part, range(0, count, 64)):
                yield from results
                bar.update(len(results))
        finally:
            pool.shutdown(cancel_futures=True)

"""Feeding the device: batches of uint8 images, made ahead of time by threads or processes.

A training batch is a pure function of its step (batches.py), so the step is the whole position in
the data. Grain's threads make the batches of the next steps, or fetch them from processes that do
(workers.py), and hand them over in order.
"""

import atexit
import dataclasses
import logging
import os
import weakref
from collections.abc import Iterable, Iterator

import cv2
import grain
import numpy as np

from jaxcls.config import labelled_rows
from jaxcls.data.access import Source
from jaxcls.data.batches import Batch, MakeBatch, refuse
from jaxcls.data.ops import Transform
from jaxcls.data.sampling import MixedOrder, Order
from jaxcls.data.workers import WorkerDied, Workers

MAX_DEATHS = 3  # of workers in a row without a batch; one more stops the run
LIMITS = {"threads": (0, 1024), "workers": (0, 1024), "prefetch": (1, 1024)}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How batches are made, `config.loader`.

    Raises:
      ValueError: a number that cannot be meant; the message names the key.
    """

    threads: int  # in each process, 0: one for each core; with workers they share the cores
    workers: int  # processes; 0: threads of this process
    prefetch: int  # batches ready in advance, besides those that threads are making

    def __post_init__(self):
        for key, (least, most) in LIMITS.items():
            if not least <= (value := getattr(self, key)) <= most:
                raise ValueError(
                    f"config.loader.{key} = {value}: write a number from {least} to {most}"
                )


PLAIN = Options(threads=0, workers=0, prefetch=4)


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    sampling: str = "shuffle",
    repeats: int = 1,
    unlabelled_share: float = 0.0,
    rows: np.ndarray | None = None,
    on_bad_image: str = "error",
    max_bad_images: int = 100,
    options: Options = PLAIN,
) -> "Batches":
    """Returns an iterator over the batches of the steps `start_step` to `num_steps` - 1.

    Each is {"image": uint8 [L, S, S, C], "label": int32 [L]}, the L rows of this process; of
    a source with marks the label is float32 [L, K] (data/labels.py). An epoch is
    floor(N / batch_size) batches in an order of its own (data/sampling.py).

    Args:
      source: of N images.
      transform: of training, `ops.training`.
      batch_size: images in the global batch.
      seed: of order and augmentation, an int in [0, 2**64).
      start_step: step to begin with: 0, or where a resumed run goes on.
      num_steps: steps of the whole run.
      sampling, repeats: of `sampling.Order`.
      unlabelled_share: of each batch, images without a label (`sampling.MixedOrder`); an epoch is
        one of those with a label then. 0: in one order, whether they have a label or not.
      rows: numbers of this process's rows in the global batch; None: all.
      on_bad_image: "error", or "skip": the next readable image of the source takes its place.
      max_bad_images: with "skip", more different ones than this are an error.
      options: of threads, processes and batches in advance.

    Raises:
      ValueError: fewer images than a batch; from the iterator also an unreadable image (named), a
        label out of range, worker processes that die again and again.
    """
    has_label = source.has_label if unlabelled_share else np.ones(len(source), bool)
    count, rows_labelled = has_label.sum(), labelled_rows(batch_size, unlabelled_share)
    if count < rows_labelled:
        raise ValueError(
            f"{count} training images are fewer than one batch: lower config.batch_size = "
            f"{batch_size}"
        )
    ours = np.flatnonzero(has_label)
    labels = None if sampling == "shuffle" else source.labels
    order = Order(
        count=int(count),
        batch_size=rows_labelled,
        seed=seed,
        sampling=sampling,
        repeats=repeats,
        labels=labels if labels is None or not unlabelled_share else labels[ours],
    )
    if unlabelled_share:
        order = MixedOrder(order, ours, np.flatnonzero(~has_label), batch_size)
    make = MakeBatch(
        source=source,
        transform=transform,
        batch_size=batch_size,
        rows=np.arange(batch_size) if rows is None else np.asarray(rows),
        num_batches=num_steps,
        order=order,
        seed=seed,
        max_bad_images=_max_bad_images(on_bad_image, max_bad_images),
    )
    return Batches(make, start_step, options)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    on_bad_image: str = "error",
    max_bad_images: int = 100,
    options: Options = PLAIN,
) -> "Batches":
    """Returns an iterator over all images once, in order: ceil(N / batch_size) batches.

    Each is {"image": uint8 [L, S, S, C], "label": int32 [L] or float32 [L, K], "mask": bool
    [L]}. The last one is filled up with repeats, whose mask is False; all processes see the same
    number of batches. With `on_bad_image = "skip"` the mask of an unreadable image is False, so
    nothing counts twice.

    Args and errors: as `train_batches`; no images at all are a ValueError.
    """
    if not len(source):
        raise ValueError("there are no evaluation images")
    make = MakeBatch(
        source=source,
        transform=transform,
        batch_size=batch_size,
        rows=np.arange(batch_size) if rows is None else np.asarray(rows),
        num_batches=-(-len(source) // batch_size),
        order=None,
        seed=0,
        max_bad_images=_max_bad_images(on_bad_image, max_bad_images),
    )
    return Batches(make, 0, options)


def _max_bad_images(on_bad_image: str, max_bad_images: int) -> int | None:
    assert on_bad_image in ("error", "skip"), on_bad_image
    return max_bad_images if on_bad_image == "skip" else None


class Batches(Iterator[Batch]):
    """Batches in order, made ahead of time. `close()` it, or use it in a `with` statement.

    `bad_images` maps the number in the source of each unreadable image so far to its message.
    Where a worker process dies (out of memory, `kill -9`) all start again at the next batch.
    """

    def __init__(self, make: MakeBatch, start: int, options: Options):
        threads, workers, prefetch = options.threads, options.workers, options.prefetch
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._threads = threads or max((cores or 1) // max(workers, 1), 1)
        # A thread makes a whole batch, so fewer batches under way than threads would idle some.
        under_way = self._threads * max(workers, 1)
        self._options = grain.ReadOptions(
            num_threads=under_way, prefetch_buffer_size=under_way + prefetch
        )
        self.bad_images: dict[int, str] = {}
        self._max_bad_images = make.max_bad_images
        self._make, self._workers = make, workers
        cv2.setNumThreads(0)  # images run in parallel here: threads inside each would only compete
        self._step = start  # of the next batch
        self._deaths = 0  # of workers since the last batch
        self._start()

    def _start(self) -> None:
        workers, make = None, self._make
        if self._workers:
            try:
                make = workers = Workers(make, processes=self._workers, threads=self._threads)
            except OSError as e:
                raise ValueError(
                    f"config.loader.workers = {self._workers} with {self._threads} thread(s) each "
                    f"cannot be started: {e.strerror}"
                ) from e
        batches = grain.MapDataset.source(make)[self._step :].to_iter_dataset(self._options)
        self._iterator = iter(batches)
        # Also when it is garbage or the interpreter exits: workers ignore SIGTERM.
        self._finalizer = weakref.finalize(self, _close, self._iterator, workers)
        atexit.register(self._finalizer)  # before multiprocessing waits for them

    def __next__(self) -> Batch:
        if not self._finalizer.alive:
            raise StopIteration
        try:
            batch, bad = self._next()
            self._note(bad)
        except StopIteration:
            self.close()
            raise
        except ValueError as error:
            self.close()
            raise ValueError(str(error)) from error  # grain adds notes of its own
        self._step += 1
        self._deaths = 0
        return batch

    def _next(self) -> tuple[Batch, list[tuple[int, str]]]:
        while True:
            try:
                return next(self._iterator)
            except WorkerDied as error:
                self.close()
                code = error.code
            self._deaths += 1
            what = f"a process that loads data has died (exit code {code}), perhaps for lack of "
            if self._deaths > MAX_DEATHS:
                raise ValueError(
                    f"{what}memory, {self._deaths} times at step {self._step}: lower "
                    f"config.loader.workers = {self._workers} or config.loader.prefetch, or load "
                    "with threads (workers = 0)"
                )
            log.warning("%smemory; starting all again at step %d", what, self._step)
            self._start()

    def _note(self, bad: list[tuple[int, str]], quietly: bool = False) -> None:
        for index, message in bad:
            if index not in self.bad_images:
                if not quietly:
                    log.warning("skipped: %s", message)
                self.bad_images[index] = message
        limit = self._max_bad_images
        if limit is not None and len(self.bad_images) > limit:
            refuse(self.bad_images, self._max_bad_images)

    def know_bad_images(self, indices: Iterable[int]) -> None:
        """Counts images as bad that were met before this run was resumed, or by other processes.

        Raises:
          ValueError: they are too many.
        """
        self._note([(i, f"image {i}") for i in indices if i not in self.bad_images], quietly=True)

    def close(self) -> None:
        """Stops threads and worker processes; the iterator then is at its end."""
        self._finalizer()
        atexit.unregister(self._finalizer)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close(iterator: grain.DatasetIterator, workers: Workers | None) -> None:
    iterator.close()
    if workers is not None:
        workers.close()

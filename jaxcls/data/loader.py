"""Feeding the device: batches of uint8 images, made ahead of time by threads or processes.

A training batch is a pure function of its step: which images, in which order, augmented how. It
does not depend on the number of processes, threads and workers, so the step is the whole position
in the data. Image number g = step * batch_size + row of a run is

    order(epoch)[position in the epoch]      epoch = step // floor(N / batch_size)

and draws its augmentation from Philox, a counter-based generator, with the key (seed, g). Grain
makes the batches of the next steps in threads or worker processes and hands them over in order.
"""

import dataclasses
import gc
import logging
import multiprocessing
import os
import re
import signal
import threading
import weakref
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from jaxcls.data.decode import BadImage
from jaxcls.data.ops import Transform, transformed
from jaxcls.data.sampling import Order
from jaxcls.data.sources import Source

Batch = dict[str, np.ndarray]

MAX_DEATHS = 3  # of workers in a row without a batch; one more stops the run

log = logging.getLogger(__name__)


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
    rows: np.ndarray | None = None,
    on_bad_image: str = "error",
    max_bad_images: int = 100,
    threads: int = 0,
    workers: int = 0,
    prefetch: int = 4,
) -> "Batches":
    """Returns an iterator over the batches of the steps `start_step` to `num_steps` - 1.

    Each is {"image": uint8 [L, S, S, C], "label": int32 [L]}, the L rows of this process. An epoch
    is floor(N / batch_size) batches in an order of its own (data/sampling.py).

    Args:
      source: of N images.
      transform: `ops.make(train=True, ...)`.
      batch_size: images in the global batch.
      seed: of order and augmentation.
      start_step: step to begin with: 0, or where a resumed run goes on.
      num_steps: steps of the whole run.
      sampling, repeats: of `sampling.Order`.
      rows: numbers of this process's rows in the global batch; None: all.
      on_bad_image: "error", or "skip": the next readable image of the source takes its place.
      max_bad_images: with "skip", more different ones than this in this process are an error.
      threads: in each process, 0: one for each core; with workers they share the cores.
      workers: processes; 0: threads of this process.
      prefetch: batches ready in advance, besides those that threads are making.

    Raises:
      ValueError: fewer images than a batch; from the iterator also an unreadable image (named), a
        label out of range, worker processes that die again and again.
    """
    if len(source) < batch_size:
        raise ValueError(
            f"{len(source)} training images are fewer than one batch: lower config.batch_size = "
            f"{batch_size}"
        )
    make = _MakeBatch(
        source=source,
        transform=transform,
        batch_size=batch_size,
        rows=np.arange(batch_size) if rows is None else np.asarray(rows),
        num_batches=num_steps,
        order=Order(
            count=len(source),
            batch_size=batch_size,
            seed=seed % 2**64,
            sampling=sampling,
            repeats=repeats,
            labels=None if sampling == "shuffle" else source.labels,
        ),
        seed=seed % 2**64,
        max_bad_images=_max_bad_images(on_bad_image, max_bad_images),
    )
    return Batches(make, start_step, threads=threads, workers=workers, prefetch=prefetch)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    on_bad_image: str = "error",
    max_bad_images: int = 100,
    threads: int = 0,
    workers: int = 0,
    prefetch: int = 4,
) -> "Batches":
    """Returns an iterator over all images once, in order: ceil(N / batch_size) batches.

    Each is {"image": uint8 [L, S, S, C], "label": int32 [L], "mask": bool [L]}. The last one is
    filled up with repeats, whose mask is False; all processes see the same number of batches. With
    `on_bad_image = "skip"` the mask of an unreadable image is False, so nothing counts twice.

    Args and errors: as `train_batches`; no images at all are a ValueError.
    """
    if not len(source):
        raise ValueError("there are no evaluation images")
    make = _MakeBatch(
        source=source,
        transform=transform,
        batch_size=batch_size,
        rows=np.arange(batch_size) if rows is None else np.asarray(rows),
        num_batches=-(-len(source) // batch_size),
        order=None,
        seed=0,
        max_bad_images=_max_bad_images(on_bad_image, max_bad_images),
    )
    return Batches(make, 0, threads=threads, workers=workers, prefetch=prefetch)


def _max_bad_images(on_bad_image: str, max_bad_images: int) -> int | None:
    assert on_bad_image in ("error", "skip"), on_bad_image
    return max_bad_images if on_bad_image == "skip" else None


class Batches(Iterator[Batch]):
    """Batches in order, made ahead of time. `close()` it, or use it in a `with` statement.

    `bad_images` maps the number in the source of each unreadable image so far to its message.
    Where a worker process dies (out of memory, `kill -9`) all start again at the next batch.
    """

    def __init__(
        self, make: "_MakeBatch", start: int, *, threads: int, workers: int, prefetch: int
    ):
        for key, value in (("threads", threads), ("workers", workers), ("prefetch", prefetch)):
            if value < 0:
                raise ValueError(f"config.loader.{key} = {value} is negative")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = threads or max(cores // max(workers, 1), 1)
        prefetch = -(-prefetch // max(workers, 1))
        # A thread makes a whole batch, so fewer batches under way than threads would idle some.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + prefetch)

        def batches_from(step: int) -> grain.IterDataset:
            batches = grain.MapDataset.source(make)[step:].to_iter_dataset(options)
            if not workers:
                return batches
            return batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=max(prefetch, 1)
                ),
                worker_init_fn=_start_worker,
            )

        if workers and not flags.FLAGS.is_parsed():  # grain reads absl's flags in a new process
            flags.FLAGS.mark_as_parsed()
        self.bad_images: dict[int, str] = {}
        self._max_bad_images = make.max_bad_images
        self._batches_from, self._workers = batches_from, workers
        self._step = start  # of the next batch
        self._deaths = 0  # of workers since the last batch
        self._start()

    def _start(self) -> None:
        self._iterator = iter(self._batches_from(self._step))
        # Also when it is garbage or the interpreter exits: workers ignore SIGTERM.
        self._finalizer = weakref.finalize(self, _close, self._iterator, shared=self._workers > 0)

    def __next__(self) -> Batch:
        if not self._finalizer.alive:
            raise StopIteration
        try:
            batch, bad = self._next()
            if self._workers:  # out of shared memory, which must be gone before the interpreter is
                batch = {key: np.array(value) for key, value in batch.items()}
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
            except RuntimeError as error:
                self.close()
                died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
                if not died:
                    raise
            self._deaths += 1
            what = f"a process that loads data has died (exit code {died[1]}), perhaps for lack of "
            if self._deaths > MAX_DEATHS:
                raise ValueError(
                    f"{what}memory, {self._deaths} times at step {self._step}: lower "
                    f"config.loader.workers = {self._workers} or config.loader.prefetch, or load "
                    "with threads (workers = 0)"
                )
            log.warning("%smemory; starting all again at step %d", what, self._step)
            self._start()

    def _note(self, bad: list[tuple[int, str]]) -> None:
        for index, message in bad:
            if index not in self.bad_images:
                log.warning("skipped: %s", message)
                self.bad_images[index] = message
        if self.bad_images and len(self.bad_images) > self._max_bad_images:
            _refuse(self.bad_images, self._max_bad_images)

    def close(self) -> None:
        """Stops threads and worker processes; the iterator then is at its end."""
        self._finalizer()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close(iterator: grain.DatasetIterator, *, shared: bool) -> None:
    iterator.close()
    if shared:
        gc.collect()  # grain's last arrays are in cycles, and shared memory would leak at exit


def _refuse(bad_images: dict[int, str], limit: int) -> None:
    raise ValueError(
        f"{len(bad_images)} images cannot be read, config.data.max_bad_images = {limit}; the last: "
        f"{list(bad_images.values())[-1]}"
    )


def _start_worker(index: int, count: int) -> None:
    """Runs first in a worker process: signals are for its parent, whose end is its own end."""
    del index, count
    # Ctrl-C and a batch system's SIGTERM reach all processes of the group or job. The parent still
    # wants batches until it has saved, and stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def follow_parent() -> None:
        # It waits on a pipe that closes with the parent, however that dies. PR_SET_PDEATHSIG would
        # watch the thread that started this process, one of grain's own, and only on Linux.
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow_parent, daemon=True).start()


@dataclasses.dataclass(frozen=True, eq=False)
class _MakeBatch:
    """Random access to batches by step, for grain: (batch, [(index, message) of bad images])."""

    source: Source
    transform: Transform
    batch_size: int
    rows: np.ndarray  # int [L]
    num_batches: int
    order: Order | None  # None: evaluation
    seed: int
    max_bad_images: int | None  # None: a bad image is an error

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, step: int) -> tuple[Batch, list[tuple[int, str]]]:
        count = len(self.source)
        examples = step * self.batch_size + self.rows  # g of the module's docstring
        if self.order:
            per_epoch = count // self.batch_size
            epoch, step_in_epoch = divmod(step, per_epoch)
            indices = self.order(epoch)[step_in_epoch * self.batch_size + self.rows]
            mask = np.ones(len(indices), bool)
        else:
            indices = examples % count
            mask = examples < count

        rng = np.random.Generator(np.random.Philox(0))
        bad: dict[int, str] = {}
        images, labels = None, np.empty(len(indices), np.int32)
        for row, (index, example) in enumerate(zip(indices.tolist(), examples.tolist())):
            if row and not mask[row]:
                images[row], labels[row] = images[0], labels[0]
                continue
            image, labels[row], found = self._read(index, example, rng, bad)
            if found != index and not self.order:
                mask[row] = False
            if images is None:
                images = np.empty((len(indices), *image.shape), image.dtype)
            images[row] = image

        batch = {"image": images, "label": labels}
        return batch if self.order else batch | {"mask": mask}, list(bad.items())

    def _read(
        self, index: int, example: int, rng: np.random.Generator, bad: dict[int, str]
    ) -> tuple[np.ndarray, int, int]:
        """Returns the first readable image from `index` on, transformed, its label, and which.

        Raises:
          BadImage: `index` is unreadable and not to be skipped.
          ValueError: too many are unreadable; a label out of range.
        """
        for candidate in range(index, index + len(self.source)):
            candidate %= len(self.source)
            try:
                item = self.source[candidate]
                _seek(rng.bit_generator, self.seed, example)
                image = transformed(item, self.transform, rng)
            except BadImage as error:
                if self.max_bad_images is None:
                    raise
                bad[candidate] = str(error)
                if len(bad) > self.max_bad_images:
                    _refuse(bad, self.max_bad_images)
                continue
            if not 0 <= item["label"] < len(self.source.class_names):
                raise ValueError(
                    f"{item['name']}: the label {item['label']} is out of range, there are "
                    f"{len(self.source.class_names)} classes"
                )
            return image, item["label"], candidate
        raise ValueError(f"none of the {len(self.source)} images can be read: {bad[index]}")


def _seek(bits: np.random.Philox, seed: int, example: int) -> None:
    """Puts the generator where `Philox(key=[seed, example])` begins, in a sixth of the time."""
    bits.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.zeros(4, np.uint64),
            "key": np.array([seed, example], np.uint64),
        },
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # nothing in the buffer
        "has_uint32": 0,
        "uinteger": 0,
    }

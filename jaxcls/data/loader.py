"""Feeding the device: batches of uint8 images, made ahead of time by threads or processes.

A training batch is a pure function of its step: which images, in which order, augmented how. It
does not depend on the number of processes, threads and workers, so the step is the whole position
in the data. Image number g = step * batch_size + row of a run is

    order(seed, epoch)[position in the epoch]      epoch = step // floor(N / batch_size)

and draws its augmentation from Philox, a counter-based generator, with the key (seed, g). Grain
makes the batches of the next steps in threads or worker processes and hands them over in order.
"""

import dataclasses
import functools
import gc
import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxcls.data.decode import BadImage, decode
from jaxcls.data.ops import Transform
from jaxcls.data.sources import Source

Batch = dict[str, np.ndarray]

log = logging.getLogger(__name__)


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    rows: np.ndarray | None = None,
    channels: int = 3,
    on_bad_image: str = "error",
    max_bad_images: int = 100,
    threads: int = 0,
    workers: int = 0,
    prefetch: int = 4,
) -> "Batches":
    """Returns an iterator over the batches of the steps `start_step` to `num_steps` - 1.

    Each is {"image": uint8 [L, S, S, C], "label": int32 [L]}, the L rows of this process. An epoch
    is floor(N / batch_size) batches; every epoch has its own order and, in it, no image twice.

    Args:
      source: of N images.
      transform: `ops.make(train=True, ...)`.
      batch_size: images in the global batch.
      seed: of order and augmentation.
      start_step: step to begin with: 0, or where a resumed run goes on.
      num_steps: steps of the whole run.
      rows: numbers of this process's rows in the global batch; None: all.
      channels: 3 (RGB) or 1 (grey); images are converted.
      on_bad_image: "error", or "skip": the next readable image of the source takes its place.
      max_bad_images: with "skip", more different ones than this in this process are an error.
      threads: in each process, 0: one for each core; with workers they share the cores.
      workers: processes; 0: threads of this process.
      prefetch: batches ready in advance, besides those that threads are making.

    Raises:
      ValueError: fewer images than a batch; from the iterator also an unreadable image (named), a
        label out of range.
      RuntimeError: from the iterator: a worker process has died.
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
        train=True,
        seed=seed % 2**64,
        channels=channels,
        max_bad_images=_max_bad_images(on_bad_image, max_bad_images),
    )
    return Batches(make, start_step, threads=threads, workers=workers, prefetch=prefetch)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    channels: int = 3,
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
        train=False,
        seed=0,
        channels=channels,
        max_bad_images=_max_bad_images(on_bad_image, max_bad_images),
    )
    return Batches(make, 0, threads=threads, workers=workers, prefetch=prefetch)


def _max_bad_images(on_bad_image: str, max_bad_images: int) -> int | None:
    assert on_bad_image in ("error", "skip"), on_bad_image
    return max_bad_images if on_bad_image == "skip" else None


class Batches(Iterator[Batch]):
    """Batches in order, made ahead of time. `close()` it, or use it in a `with` statement.

    `bad_images` maps the number in the source of each unreadable image so far to its message.
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
        batches = grain.MapDataset.source(make)[start:].to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # grain reads absl's flags when it starts a process
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=max(prefetch, 1)
                ),
                worker_init_fn=_start_worker,
            )
        self.bad_images: dict[int, str] = {}
        self._max_bad_images = make.max_bad_images
        self._copy = workers > 0
        self._iterator = iter(batches)
        # Also when it is garbage or the interpreter exits: workers ignore SIGTERM.
        self._finalizer = weakref.finalize(self, _close, self._iterator, shared=workers > 0)

    def __next__(self) -> Batch:
        if not self._finalizer.alive:
            raise StopIteration
        try:
            batch, bad = next(self._iterator)
            if self._copy:  # out of shared memory, which must be gone before the interpreter is
                batch = {key: np.array(value) for key, value in batch.items()}
            self._note(bad)
        except StopIteration:
            self.close()
            raise
        except ValueError as error:
            self.close()
            raise ValueError(str(error)) from error  # grain adds notes of its own
        except RuntimeError as error:
            self.close()
            if "terminated unexpectedly" not in str(error):
                raise
            raise RuntimeError(
                f"a process that loads data has died, perhaps for lack of memory: {error}"
            ) from error
        return batch

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
    train: bool
    seed: int
    channels: int
    max_bad_images: int | None  # None: a bad image is an error

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, step: int) -> tuple[Batch, list[tuple[int, str]]]:
        count = len(self.source)
        examples = step * self.batch_size + self.rows  # g of the module's docstring
        if self.train:
            per_epoch = count // self.batch_size
            epoch, step_in_epoch = divmod(step, per_epoch)
            order = _order(count, self.seed, epoch)
            indices = order[step_in_epoch * self.batch_size + self.rows]
            mask = np.ones(len(indices), bool)
        else:
            indices = examples % count
            mask = examples < count

        bits = np.random.Philox(0)
        rng = np.random.Generator(bits)
        bad: dict[int, str] = {}
        images, labels = None, np.empty(len(indices), np.int32)
        for row, (index, example) in enumerate(zip(indices.tolist(), examples.tolist())):
            if row and not mask[row]:
                images[row], labels[row] = images[0], labels[0]
                continue
            pixels, item, found = self._read(index, bad)
            if found != index and not self.train:
                mask[row] = False
            _seek(bits, self.seed, example)
            try:
                image = self.transform(pixels, rng)
            except ValueError as error:
                raise ValueError(f"{item['name']}: {error}") from error
            if images is None:
                images = np.empty((len(indices), *image.shape), np.uint8)
            images[row], labels[row] = image, item["label"]

        batch = {"image": images, "label": labels}
        return batch if self.train else batch | {"mask": mask}, list(bad.items())

    def _read(self, index: int, bad: dict[int, str]) -> tuple[np.ndarray, dict[str, Any], int]:
        """Returns the pixels and the item of the first readable image from `index` on, and which.

        Raises:
          BadImage: `index` is unreadable and not to be skipped.
          ValueError: too many are unreadable; a label out of range.
        """
        for candidate in range(index, index + len(self.source)):
            candidate %= len(self.source)
            try:
                item = self.source[candidate]
                pixels = decode(item["image"], channels=self.channels, name=item["name"])
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
            return pixels, item, candidate
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


_order_lock = threading.Lock()


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the permutation of an epoch, int64 [count]: all threads wait for one to make it."""
    with _order_lock:
        return _make_order(count, seed, epoch)


@functools.lru_cache(maxsize=2)  # batches made ahead of time may belong to the next epoch
def _make_order(count: int, seed: int, epoch: int) -> np.ndarray:
    # Sorting raw numbers: NumPy promises that these stay the same in its next versions, while
    # Generator.permutation may change. The counter keeps clear of the examples' numbers.
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1])
    return np.argsort(bits.random_raw(count), kind="stable")

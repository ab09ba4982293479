"""Requests that arrive one by one, computed together."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class Busy(Exception):
    """There is as much as can be held."""


class Failed(Exception):
    """The network could not compute: not for what was asked."""


@dataclasses.dataclass
class Admission:
    """How much is held at once: what comes beyond that is sent away at the door.

    Memory is bounded by it, and so is how long an accepted request waits for others.
    """

    limit: int  # images; a request is one until more are known of it
    memory: int  # bytes of their files
    images: int = 0
    bytes: int = 0
    requests: int = 0

    @contextlib.contextmanager
    def admitted(self) -> Iterator["Held"]:
        """A request, while it is held.

        Raises:
          Busy: there is no room for it.
        """
        held = Held(self)
        try:
            held.take(images=1)
            self.requests += 1
            held.requests = 1
            yield held
        finally:
            self.images -= held.images
            self.bytes -= held.bytes
            self.requests -= held.requests


@dataclasses.dataclass
class Held:
    """What a request holds."""

    admission: Admission
    images: int = 0
    bytes: int = 0
    requests: int = 0

    def take(self, images: int = 0, size: int = 0) -> None:
        """Holds more: so many images, so many bytes.

        Raises:
          Busy: there is no room.
        """
        door = self.admission
        if door.images + images > door.limit:
            raise Busy(f"{door.images} images are waiting: try again later")
        if door.bytes + size > door.memory:
            raise Busy(f"{door.bytes:,} bytes are waiting: try again later")
        door.images += images
        door.bytes += size
        self.images += images
        self.bytes += size


class Workers:
    """Threads that work for requests."""

    def __init__(self, count: int, name: str):
        self._threads = ThreadPoolExecutor(count, name)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns what a function returns, in a thread."""
        work = [(function, arguments)]
        call = lambda: [f(*given) for f, given in work]
        try:
            [result] = await asyncio.wrap_future(self._threads.submit(call))
        finally:
            work.clear()  # what still waits for a thread holds nothing of a request that has gone
        return result

    def stop(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclasses.dataclass(eq=False)
class _Asked:
    image: Any  # None: nobody waits for it any more
    answer: asyncio.Future


class Batcher:
    """Images of all requests, computed in batches in a thread of their own.

    While a batch is computed the next one gathers, so that without load an image is computed by
    itself at once, and under load batches are as large as they may be.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], np.ndarray],
        *,
        batch_size: int,
        wait: float = 0.0,
        watch: Callable[[int, float], None] = lambda images, seconds: None,
        coming: Callable[[], int] = lambda: 1,
    ):
        """Takes what to do.

        Args:
          compute: what `submit` was given of each image -> a row for each.
          batch_size: images together, at most.
          wait: seconds that a batch waits for further images, if any are coming.
          coming: how many are, known of but not submitted yet.
          watch: told the number of images of each batch, and the seconds that they took.
        """
        self._compute, self._batch_size, self._wait, self._watch = compute, batch_size, wait, watch
        self._coming = coming
        self._queue: asyncio.Queue[_Asked] = asyncio.Queue()
        self._task: asyncio.Task | None = None

    async def submit(self, image: Any) -> np.ndarray:
        """Returns the row of an image.

        Raises:
          Failed: it could not be computed.
        """
        asked = _Asked(image, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(asked)
        try:
            return await asked.answer
        finally:
            asked.image = None  # also of who has given up waiting, while others are computed

    def start(self) -> None:
        """Begins to compute."""
        self._task = asyncio.create_task(self._run())

    async def stop(self, seconds: float) -> None:
        """Ends; what was submitted before is computed, if it takes no longer than that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), seconds)
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            batch = self._wanted([await self._queue.get()])
            there = self._queue.qsize() + 1
            if batch and self._wait and there < self._batch_size and self._coming():
                await asyncio.sleep(self._wait)
            while len(batch) < self._batch_size and not self._queue.empty():
                batch += self._wanted([self._queue.get_nowait()])
            if batch := self._wanted(batch):
                await self._answer(batch)
                for _ in batch:
                    self._queue.task_done()

    def _wanted(self, batch: list[_Asked]) -> list[_Asked]:
        # who has given up waiting is not computed for
        wanted = [asked for asked in batch if not asked.answer.done()]
        for _ in batch[len(wanted) :]:
            self._queue.task_done()
        return wanted

    async def _answer(self, batch: Sequence[_Asked]) -> None:
        images, begun = [asked.image for asked in batch], time.perf_counter()
        try:
            rows = await asyncio.to_thread(self._compute, images)
            if len(rows) != len(images) or not np.isfinite(rows).all():
                raise FloatingPointError("the network's answers are no numbers")
            self._watch(len(images), time.perf_counter() - begun)
        except Exception as error:  # of these images; the next ones have theirs
            logging.getLogger(__name__).exception("a batch of %d images failed", len(images))
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(Failed(f"the network failed: {_short(error)}"))
            return
        for asked, row in zip(batch, rows, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(row)


def _short(error: Exception) -> str:
    first, _, _ = f"{type(error).__name__}: {error}".partition("\n")
    return first[:200]

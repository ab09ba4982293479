"""A watchdog: says which step takes far longer than others, and ends a run that is stuck."""

import collections
import contextlib
import faulthandler
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import jax

from jaxcls import signals

TICK = 1.0  # seconds between two looks
KNOWN = 10  # steps that make a median
BEAT = 10.0  # seconds between two signs of life


class Watch:
    """Measures the steps of a run in the main thread, and looks at them from another one.

    The first step, which is compiled, is not looked at, nor counted.
    """

    def __init__(
        self,
        *,
        slow: float,
        least: float,
        stuck: float,
        in_steps: float = 0.0,
        beat: Callable[[], None] = lambda: None,
    ):
        """Begins with the first `step`.

        Args:
          slow: a step that takes so many times the median of the last ones is reported, with what
            every thread does; 0: none.
          least: seconds that a step which is reported takes at least.
          stuck: seconds without any progress that end the process with exit code 75; 0: never.
          in_steps: seconds that the run has spent in steps until here.
          beat: called in the main thread every 10 seconds as long as there is progress.

        Raises:
          ValueError: numbers that make no sense.
        """
        if slow and slow <= 1:
            raise ValueError(f"config.watch.slow = {slow:g}: write a factor above 1, or 0 for none")
        for name, value in (("least", least), ("stuck", stuck)):
            if value < 0:
                raise ValueError(f"config.watch.{name} = {value:g}: write seconds, 0 or more")
        self.in_steps = in_steps
        self._slow, self._least, self._stuck = slow, least, stuck
        self._beat = beat
        self._steps, self._took = 0, collections.deque(maxlen=100)  # of this start; seconds
        self._step = 0  # number in the run
        self._since = self._progress = self._beaten = time.monotonic()
        self._aside, self._doing, self._said = 0.0, "", False
        self._ended = threading.Event()

    def step(self, step: int) -> None:
        """The step after `step`, which is dispatched or done, begins."""
        now = time.monotonic()
        took = max(now - self._since - self._aside, 0.0)
        if self._steps > 1:  # the first is compiled
            self._took.append(took)
            self.in_steps += took
        if self._said:
            signals.say(f"jaxcls: {self._name()} took {took:.1f} s")
        self._since, self._aside, self._said = now, 0.0, False
        self._step = step + 1
        self._steps += 1
        if self._steps == 1:
            threading.Thread(target=self._look, daemon=True, name="watch").start()
        self.alive()

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Counts the time inside, for saving or evaluating, to no step."""
        began = self._progress = time.monotonic()
        self._doing = doing
        try:
            yield
        finally:
            self._doing = ""
            self._progress = time.monotonic()
            self._aside += self._progress - began

    def alive(self) -> None:
        """Notes that there is progress: a step, a batch of an evaluation."""
        self._progress = time.monotonic()
        if self._progress > self._beaten + BEAT:
            self._beaten = self._progress
            self._beat()

    def close(self) -> None:
        """Looks no more."""
        self._ended.set()

    def _name(self) -> str:
        who = f" of process {jax.process_index()} ({socket.gethostname()})"
        return f"step {self._step}{who if jax.process_count() > 1 else ''}"

    def _look(self) -> None:
        looked = time.monotonic()
        while not self._ended.wait(TICK):
            now = time.monotonic()
            if now - looked > 10 * TICK:  # the process was stopped, as by Ctrl-Z
                self._since += 0.0 if self._doing else now - looked  # else `paused` counts it
                self._progress += now - looked
            looked = now
            self._judge(now)

    def _judge(self, now: float) -> None:
        if self._steps < 2:  # it is compiled
            return
        waited = now - self._progress
        if self._stuck and waited > self._stuck:
            doing = self._doing or "computing"
            signals.say(f"jaxcls: {doing}, {self._name()}: what every thread does:")
            faulthandler.dump_traceback(2)
            text = f"jaxcls: no progress in {waited:.0f} s, config.watch.stuck = {self._stuck:g}"
            # not from which step: to look for it is to wait for storage, which may be what is stuck
            signals.end_process(f"{text}; the same command goes on", signals.AGAIN)
        if self._doing or self._said or not self._slow or len(self._took) < KNOWN:
            return
        took, median = now - self._since - self._aside, statistics.median(self._took)
        if took > max(self._slow * median, self._least):
            self._said = True
            signals.say(
                f"jaxcls: {self._name()} has taken {took:.1f} s until now, the median of the last "
                f"ones is {median:.3g} s; what every thread does:"
            )
            faulthandler.dump_traceback(2)

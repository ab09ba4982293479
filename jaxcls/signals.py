"""Ctrl-C, SIGTERM and SIGHUP, from the first line of a command to its end.

Before there is anything to save they end the command at once, then the first one asks the loop to
save and to leave, and the next one ends it. Python runs handlers only between two bytecodes of the
main thread, which may be minutes away while a program is compiled or a library is imported, and
what they raise is lost where nobody expects it. So a thread waits for what the interpreter writes
to a socket the moment that a signal comes.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; not on Windows
NUMBERS = (signal.SIGINT, signal.SIGTERM, *filter(None, [HANGUP]))
AGAIN = 75  # exit code of what may pass, so that launchers try again: EX_TEMPFAIL of sysexits.h
ECHO = 0.5  # seconds in which the same event may come twice: from a launcher and from the terminal
NAMES = {number: number.name for number in NUMBERS} | {signal.SIGINT: "Ctrl-C"}

before_exit: list[Callable[[], None]] = []  # what a signal that ends the process is to undo
on_exit: list[Callable[[int], None]] = []  # who is told its exit code
_watching: "Signals | None" = None


class Signals:
    """What came so far."""

    def __init__(self, *, at_once: str, numbers: Sequence[signal.Signals] = NUMBERS):
        """Begins to watch, in the main thread.

        Args:
          at_once: there is nothing to save yet: signals end the process, which says this, until
            `save_first`; "": they do not.
          numbers: of the signals.
        """
        self.received = 0  # the signal after which the loop is to save and leave
        self.passed_on = signal.SIGTERM  # what has become JAX's own SIGTERM, see `save_first`
        self._at_once, self._over, self._pass_on, self._seen = at_once, False, False, 0
        self._last = 0.0  # when the last signal came
        self._before = {number: signal.getsignal(number) for number in numbers}
        if self._before.get(HANGUP) == signal.SIG_IGN:  # nohup
            del self._before[HANGUP]
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, self._remember)
        threading.Thread(target=self._watch, daemon=True, name="signals").start()

    def save_first(self, pass_on: bool = False) -> None:
        """From now on the first signal is remembered: there is something to save.

        Args:
          pass_on: hand Ctrl-C on as a SIGTERM, which JAX takes itself where there are several
            processes: these agree on the step at which they save. Nothing is remembered here.
        """
        self._at_once, self._pass_on = "", pass_on

    def over(self) -> None:
        """From now on the first signal is ignored: only the interpreter has to end."""
        self._over = True

    def close(self) -> None:
        """Puts back the handlers that were there before."""
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._write.close()

    def _remember(self, number, frame) -> None:
        if not (self._at_once or self._pass_on):
            self.received = self.received or number

    def _watch(self) -> None:
        while data := self._read.recv(1):
            if data[0] in self._before:
                self._react(signal.Signals(data[0]))
        self._read.close()

    def _react(self, number: signal.Signals) -> None:
        name = NAMES[number]
        if self._at_once:
            self._end(number, f"{name}: {self._at_once}")
        before, self._last = self._last, time.monotonic()
        if before and self._last - before < ECHO:
            return
        self._seen += 1
        if self._seen > 1:
            self._end(number, f"{name} again: left at once, without saving")
        if not self._over:
            say(f"{name}: saving after this step, then leaving; once more leaves at once")
            if self._pass_on:
                self.passed_on = number
                os.kill(os.getpid(), signal.SIGTERM)

    def _end(self, number: int, text: str) -> None:
        end_process(text, 128 + number)


def end_process(text: str, code: int) -> None:
    """Undoes what is begun, says why, and ends the process, from any thread."""
    for tell in on_exit:
        with contextlib.suppress(Exception):
            tell(code)
    for undo in before_exit[::-1]:
        with contextlib.suppress(Exception):
            undo()
    say(text)
    os._exit(code)


def say(text: str) -> None:
    """Prints a line on stderr, from any thread, whatever the main thread does."""
    # Without Python's files, whose locks the main thread may hold.
    before, after = ("\r\x1b[K", "\r\n") if os.isatty(2) else ("", "\n")
    with contextlib.suppress(OSError):  # nobody may be listening any more
        os.write(2, f"{before}{text}{after}".encode())


def watch(stopped: str = "stopped, with nothing to save yet") -> None:
    """Begins to watch for a command, as its first act.

    Args:
      stopped: what it says when a signal ends it at once.
    """
    global _watching
    _watching = Signals(at_once=stopped)


@contextlib.contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Calls `undo` if the block fails, or a signal ends the process within it."""
    before_exit.append(undo)
    try:
        yield
    except BaseException:
        undo()
        raise
    finally:
        before_exit.remove(undo)


@contextlib.contextmanager
def watched(processes: int) -> Iterator[Signals]:
    """Gives what `watch` has begun; outside a command, a watch of its own that always saves.

    Args:
      processes: that compute together. JAX itself takes SIGTERM where they are several, which a
        handler of ours would disable.
    """
    if _watching is not None:
        try:
            yield _watching
        finally:
            _watching.over()
        return
    several = processes > 1
    here = Signals(at_once="", numbers=NUMBERS[:1] if several else NUMBERS)
    here.save_first(pass_on=several)
    try:
        yield here
    finally:
        here.close()

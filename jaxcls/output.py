"""stdout and stderr of a command: always there, in any encoding, also when nobody reads them."""

import contextlib
import io
import os
import re
import sys
from typing import Any, TextIO

LONGEST = 4000  # characters of a message
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # a terminal may obey them


def prepare() -> None:
    """Makes the standard streams usable, before a command opens any file.

    A stream that is closed (`>&-`, a service) becomes the null device: otherwise the first files
    that are opened take its number, and what C code or a signal says is written into them. What an
    encoding does not have is written as an escape: a class name is no reason to stop.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # takes the lowest number that is free: this one, at the start of a command
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def outlive_readers() -> None:
    """From now on what cannot be printed (`| head`, a closed terminal, a full disk) stops nothing.

    The first time that happens to stdout is told on stderr.
    """
    sys.stderr = _Heedless(sys.stderr)
    sys.stdout = _Heedless(
        sys.stdout, "jaxcls: nothing can be printed any more ({}): the run goes on"
    )


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line of at most `LONGEST` characters."""
    name = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    text = visible(" ".join(str(error).split())) or name
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... (JAXCLS_DEBUG=1 shows all)"


def visible(text: str) -> str:
    """Returns a text in one line that can be printed, and in which nothing commands a terminal."""
    text = text.encode(errors="backslashreplace").decode()  # bytes of names that are no text
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class _Heedless:
    """A text stream that is silent for good once it cannot be written."""

    def __init__(self, stream: TextIO, told: str = ""):
        self._stream, self._told = stream, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes if that is possible."""
        with self._whatever():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes if that is possible."""
        with self._whatever():
            self._stream.flush()

    @contextlib.contextmanager
    def _whatever(self):
        try:
            yield
        except OSError as e:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # what is still in buffers, and what C code says
            os.close(null)
            if self._told:
                print(self._told.format(e.strerror), file=sys.stderr, flush=True)

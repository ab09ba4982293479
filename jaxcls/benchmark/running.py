"""Processes of `runtimes`: each has the cores to itself while it is asked."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcls.benchmark import runtimes

# Variables that say how many threads to take: OpenMP's of PyTorch, XLA's, TensorFlow's.
THREADS = (
    "OMP_NUM_THREADS",
    "NPROC",
    "PJRT_NPROC",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


class Running(contextlib.AbstractContextManager):
    """A process of `runtimes`, on so many cores."""

    def __init__(self, threads: int, folder: Path):
        """Starts it.

        Args:
          threads: cores, and threads of what is opened.
          folder: for what it writes to stderr.
        """
        cores = str(threads)
        environment = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # others need memory of the device too
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **os.environ,
            **dict.fromkeys(THREADS, cores),
        }
        pinned = hasattr(os, "sched_setaffinity")
        ours = os.sched_getaffinity(0) if pinned else set()
        self.log = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        if pinned:
            os.sched_setaffinity(0, sorted(ours)[:threads])  # the child inherits it
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", runtimes.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for us: it ends when stdin does
            )
        finally:
            if pinned:
                os.sched_setaffinity(0, ours)
        self.opened = 0

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
        """Returns its reply.

        Raises:
          ValueError: it has failed.
        """
        try:
            print(json.dumps(what), file=self.process.stdin, flush=True)
            reply = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            code = self.process.wait()
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip().splitlines()
            why = "killed, out of memory?" if code == -9 else (said or [f"exit code {code}"])[-1]
            raise ValueError(f"its process has ended: {why}") from None
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply

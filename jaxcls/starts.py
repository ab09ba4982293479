"""starts.jsonl of a run, a line for each time it was started: what its restarts have cost.

A process that is killed cannot say how long it ran: the next one takes the last change of the files
that a run keeps writing for its end. A run touches starts.jsonl every 10 seconds; on gs:// the last
change is that of metrics.jsonl, at a checkpoint. When one ends in order summary.json says so.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from jaxcls import files

FILE = "starts.jsonl"
# of summary.json
TIMES = ("seconds", "restarts", "lost_seconds", "down_seconds", "goodput", "ended")
SIGNS = (FILE, "metrics.jsonl", "summary.json")  # of life


class Clock:
    """The time of a run, over all its starts. Every process has one; process 0 reads and writes."""

    def __init__(self, workdir: epath.Path):
        """Looks at what is there, before this start changes it."""
        self.began = self._until = time.time()
        self._path, self._before = workdir / FILE, 0.0
        self._lines: list[dict[str, Any]] = []
        if jax.process_index() == 0:
            self._lines = _read(self._path)
            self._until = _last_sign(workdir)
            self._summary = _summary(workdir)
            ended = self._summary.get("ended")
            began = self._lines[-1]["time"] if self._lines else math.inf
            if isinstance(ended, float) and ended >= began:  # a copy has other times of files
                self._until = min(ended, self.began)

    def start(self, step: int, known: Mapping[str, Any]) -> None:
        """Writes that this start begins at `step`, with what its checkpoint knows of the time."""
        self._before = known["seconds"]
        if jax.process_index():
            return
        line = {
            "time": round(self.began, 3),  # since 1970
            "step": step,
            "seconds": self._before,  # of the run, up to its checkpoint
            "processes": jax.process_count(),
            "devices": jax.device_count(),
        }
        if self._lines:  # when the start before this one was last seen
            line["last"] = round(min(max(self._until, self._lines[-1]["time"]), self.began), 3)
        self._lines.append(line)
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        files.write_atomically(self._path, text)
        self._until = 0.0  # it runs

    def beat(self) -> None:
        """Gives a sign of life."""
        if jax.process_index() == 0 and not files.remote(self._path):
            with contextlib.suppress(OSError):  # the next one may succeed
                os.utime(self._path)

    @property
    def seconds(self) -> float:
        """Of the run until now, without what was lost."""
        return round(self._before + time.time() - self.began, 1)

    def summary(self, known: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Returns seconds, restarts, seconds lost and down, goodput, its end: for summary.json.

        Lost is what came after a checkpoint and had to be computed again, down is the time between
        an end and the next start, and goodput the share of all other time that went into steps
        which counted. Neither has the imports of Python.

        Args:
          known: `in_steps`, seconds in steps; and `seconds`, where this start has taken none.
          step: that the run is at.
        """
        was = self._summary
        if self._until and was.get("complete") is True and was.get("steps") == step:
            return {key: was[key] for key in TIMES}
        seconds = known["seconds"] if self._until else self.seconds
        if not self._lines:  # of a version without this file
            return {"seconds": seconds}
        last = [line.get("last", line["time"]) for line in self._lines[1:]]
        down = 0.0 + sum(line["time"] - end for line, end in zip(self._lines[1:], last))
        last.append(self._until or time.time())
        ran = self._lines[0]["seconds"]
        ran += sum(max(end - line["time"], 0) for line, end in zip(self._lines, last))
        return {
            "seconds": seconds,
            "restarts": len(self._lines) - 1,
            "lost_seconds": round(max(ran - seconds, 0.0), 1),
            "down_seconds": round(down, 1),
            "goodput": round(min(known["in_steps"] / max(ran, seconds, 1e-3), 1.0), 4),
            "ended": round(self._until or time.time(), 3),
        }


def _read(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the lines that are whole."""
    if not path.exists():
        return []
    lines = []
    for text in files.patiently(path.read_text, path).splitlines():
        try:
            line = json.loads(text)
            lines.append({**line, "time": float(line["time"]), "seconds": float(line["seconds"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return lines


def _summary(workdir: epath.Path) -> dict[str, Any]:
    """Returns summary.json; {} where there is none, or another thing."""
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        return summary if summary.keys() >= {*TIMES} else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _last_sign(workdir: epath.Path) -> float:
    """Returns when a run was last seen, in seconds since 1970; 0.0: never."""
    times = [0.0]
    for name in SIGNS:
        try:
            times.append(float((workdir / name).stat().mtime))
        except OSError:
            continue
    return max(times)

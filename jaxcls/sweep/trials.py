"""A trial as it runs: a process of jaxcls.main in a directory of its own, and what it reports."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
from optuna.trial import TrialState

from jaxcls import checkpoint
from jaxcls.sweep.study import Claim, Study

RESTARTS = 2  # of a trial whose process was killed from outside, such as for memory
TO_SAVE = 300  # seconds that a process has to save, once it is told to leave
PREFIX = "jaxcls: "  # begins the line that says why a run ended


class Slot(NamedTuple):
    """Where one trial at a time runs."""

    cores: str  # that its process may use, "0,1"; "": all
    environment: dict[str, str]
    lock: int | None  # descriptor that holds the GPU

    def close(self) -> None:
        """Lets go of the GPU."""
        if self.lock is not None:
            os.close(self.lock)


class Stop(ValueError):
    """A trial ended with an error that the others would have too."""


def slots(jobs: int, workdir: Path) -> list[Slot]:
    """Returns places for `jobs` trials at once: a GPU each, or a share of the processor's cores.

    A GPU is held against other processes of the same sweep on this machine, by a file lock.

    Raises:
      ValueError: there are not so many GPUs that are free.
    """
    gpus = _gpus()
    if not gpus:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if jobs == 1 or not cores:
            return [Slot("", {}, None)] * jobs
        shares = [cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs] for i in range(jobs)]
        shares = [share or [cores[i % len(cores)]] for i, share in enumerate(shares)]
        return [Slot(",".join(map(str, share)), {}, None) for share in shares]
    found = []
    for gpu in gpus:
        path = workdir / "trials" / f".gpu-{socket.gethostname()}-{gpu.replace('/', '-')}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if len(found) < jobs and filelock.lock_descriptor(lock, blocking=False):
            found.append(Slot("", {"CUDA_VISIBLE_DEVICES": gpu}, lock))
        else:
            os.close(lock)
    if len(found) < jobs:
        for slot in found:
            slot.close()
        few = f"{len(found)} of {len(gpus)} GPU(s) are free"
        raise ValueError(
            f"--jobs={jobs}: {few}, and a trial has one of its "
            "own; JAX_PLATFORMS=cpu in the environment takes the processor"
        )
    return found


def _gpus() -> list[str]:
    """Returns the NVIDIA GPUs that processes started here would see; JAX is not asked: it would
    take their memory."""
    if os.environ.get("JAX_PLATFORMS", "").partition(",")[0] == "cpu":
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    with contextlib.suppress(OSError):
        return [str(i) for i in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    return []


class Trial:
    """A claimed trial whose process runs."""

    def __init__(self, study: Study, claim: Claim, slot: Slot, arguments: Sequence[str]):
        """Starts the process, unless what it has reported before is hopeless.

        Args:
          study, claim: that this process works on.
          slot: where it runs.
          arguments: of jaxcls.main, without --workdir.
        """
        self.study, self.claim, self.slot = study, claim, slot
        self.workdir = study.run_dir(claim.number)
        self.arguments = [*arguments, f"--workdir={self.workdir}"]
        self.evaluations: list[dict[str, Any]] = []
        self.process: subprocess.Popen | None = None
        self.began = time.monotonic()
        self.pruned = False
        self._restarts = 0
        self._told_to_leave = 0.0
        self._seen: tuple[int, float] | None = None
        self._log_from = os.fstat(claim.log).st_size
        self._asked = 0  # evaluation for which the pruner was last asked
        self._read()
        if not self.pruned:
            self._start()

    def _start(self) -> None:
        self._log_from = os.fstat(self.claim.log).st_size
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxcls.sweep.tied", self.slot.cores, *self.arguments],
            env={**os.environ, **self.slot.environment},
            stdin=subprocess.PIPE,
            stdout=self.claim.log,  # which it then holds too, should this process be killed
            stderr=self.claim.log,
            start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
        )

    def leave(self) -> None:
        """Asks the process to save and leave; the second time it is killed."""
        if self.process is None or self.process.poll() is not None:
            return
        if self._told_to_leave:
            self.process.kill()
            return
        self._told_to_leave = time.monotonic()
        self.process.send_signal(signal.SIGTERM)

    def poll(self, *, leaving: bool = False) -> TrialState | None:
        """Reads what has been reported; returns how the trial ended, and tells the study.

        Args:
          leaving: the sweep is asked to leave: the trial stays as it is, for the next.

        Raises:
          Stop: the run has a mistake that other trials would have too; the trial stays as it is.
        """
        code = self.process.poll() if self.process is not None else 0
        if not leaving and not self.pruned:
            self._read()
            if self.pruned:
                self.leave()
        if self._told_to_leave and time.monotonic() - self._told_to_leave > TO_SAVE:
            self.leave()
        if code is None:
            return None
        if leaving and code:
            return TrialState.RUNNING
        self._read()  # what came between the last look and the end
        if self.pruned:
            return self._tell(TrialState.PRUNED)
        if code == 0:
            return self._complete()
        return self._failed(code)

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation so far, as checkpoints have it."""
        best = None
        for evaluation in self.evaluations:
            best = checkpoint.better(best, evaluation, self.study.metric)
        return best

    def _read(self) -> None:
        """Reports the evaluations that metrics.jsonl has; gives the trial up if it is hopeless.

        That is asked of an evaluation once there are lines after it: the last one of a run, which
        has nothing left to save, is not asked for, however late this process looks.
        """
        path = self.workdir / "metrics.jsonl"
        try:
            state = path.stat()
            if self._seen == (state.st_size, state.st_mtime_ns):
                return
            self._seen = state.st_size, state.st_mtime_ns
            text = path.read_text()
        except FileNotFoundError:
            return
        lines = []
        for line in text.splitlines(keepends=True):
            with contextlib.suppress(ValueError):  # half-written, or damaged, which the run says
                if line.endswith("\n") and isinstance(entry := json.loads(line), dict):
                    lines.append(entry)
        self.evaluations = []
        for i, entry in enumerate(lines):
            if entry.get("split") != "eval":
                continue
            self.evaluations.append(entry)
            number, newest = len(self.evaluations), max(self.claim.known, default=0)
            if number > newest:
                self.study.report(self.claim, number, entry.get(self.study.metric))
            if number >= newest and number > self._asked and i + 1 < len(lines):
                self._asked = number
                if self.study.hopeless(self.claim):
                    self.pruned = True
                    return

    def _complete(self) -> TrialState:
        best = self.best
        if best is None:
            if not self.evaluations:
                raise Stop(
                    f"trial {self.claim.number:04d} was not evaluated, so that there is nothing to "
                    "compare: config.data needs evaluation images"
                )
            return self._tell(TrialState.FAIL, problem="no evaluation was finite")
        return self._tell(TrialState.COMPLETE, best[self.study.metric])

    def _failed(self, code: int) -> TrialState | None:
        text = self._output()
        told = [line for line in text.splitlines() if line.startswith(PREFIX)]
        line = (told or text.strip().splitlines() or [f"exit code {code}"])[-1]
        line = line.removeprefix(PREFIX)
        if code < 0 or code in (129, 130, 143):  # by somebody else
            self._restarts += 1
            if self._restarts <= RESTARTS:
                self._start()
                return None
            name = signal.Signals(-code if code < 0 else code - 128).name
            return self._tell(TrialState.FAIL, problem=f"ended by {name} {self._restarts} times")
        diverged = code == 1 and told
        first = not any(t.state == TrialState.COMPLETE for t in self.study.trials())
        if not diverged and (first or (code == 2 and self._begun())):
            log = self.study.log_file(self.claim.number)
            raise Stop(f"trial {self.claim.number:04d} ({log}): {line}")
        return self._tell(TrialState.FAIL, problem=line)

    def _begun(self) -> bool:
        """Returns whether the run has trained: what then stops it is not in its values."""
        return (self.workdir / "config.json").exists()

    def _output(self) -> str:
        with open(self.study.log_file(self.claim.number), "rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace")

    def _tell(self, state: TrialState, value: float | None = None, problem: str = "") -> TrialState:
        best, seconds = self.best, None
        with contextlib.suppress(OSError, ValueError):
            seconds = json.loads((self.workdir / "summary.json").read_bytes())["seconds"]
        about = {"step": best and best["step"], "seconds": seconds, "problem": problem}
        self.study.tell(
            self.claim, state, value, **{k: v for k, v in about.items() if v not in (None, "")}
        )
        if state != TrialState.COMPLETE:  # nobody goes on with it; 200 of them fill a disk
            shutil.rmtree(self.workdir / "checkpoints", ignore_errors=True)
        return state

    def close(self) -> None:
        """Lets go of the trial; its process, if it still runs, saves and leaves."""
        if self.process is not None:
            self.process.stdin.close()
        os.close(self.claim.log)

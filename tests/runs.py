"""Runs of the real command in processes of their own, and what they leave behind."""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxcls import starts, trees

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "configs" / "tiny.py"
TIMING = ("images_per_sec", "data_wait", "time")  # keys of metrics.jsonl that no two runs share
PATIENCE = 240  # seconds, on a busy machine


# Imports everything once; then each line on stdin is a command line, run in a fork of this process.
FORKS = """
import json, os, runpy, sys, traceback
import sklearn.datasets
import jaxcls.command, jaxcls.evaluate, jaxcls.train

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ["XLA_FLAGS"] = request["xla_flags"]
        sys.argv = ["jaxcls.main", *request["arguments"]]
        try:
            runpy.run_module("jaxcls.main", run_name="__main__")
        except SystemExit as e:
            code = e.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    out: str
    err: str


class Commands:
    """`python -m jaxcls.main` with the compiled programs that all tests share (`conftest`).

    `run` is the command itself; `fork` is the same in a fork of a process that has imported
    everything, which saves some seconds.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._forks: subprocess.Popen | None = None

    def fork(self, *arguments: Any, devices: int = 1) -> Done:
        """Runs the command to its end in a fork."""
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, "-c", FORKS],
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        files = {name: self.folder / name for name in ("out", "err")}
        request = {name: str(path) for name, path in files.items()}
        request["arguments"] = [str(argument) for argument in arguments]
        request["xla_flags"] = self.environment(devices)["XLA_FLAGS"]
        self._forks.stdin.write(json.dumps(request) + "\n")
        self._forks.stdin.flush()
        code = int(self._forks.stdout.readline())
        return Done(code, *(path.read_text() for path in files.values()))

    def close(self) -> None:
        """Ends the process that forks."""
        if self._forks is not None:
            self._forks.communicate()

    def environment(self, devices: int = 1, **variables: str) -> dict[str, str]:
        """Returns the environment of a process with so many virtual devices."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH")))),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **variables,
        }

    @contextlib.contextmanager
    def started(
        self, *arguments: Any, devices: int = 1, **variables: str
    ) -> Iterator[subprocess.Popen]:
        """Starts the command; kills it at the end of the `with` if it still runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxcls.main", *map(str, arguments)],
            env=self.environment(devices, **variables),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
                finish(process)
            finally:
                process.kill()

    def run(self, *arguments: Any, **options: Any) -> Done:
        """Runs the command to its end."""
        with self.started(*arguments, **options) as process:
            pass
        return Done(process.returncode, process.out, process.err)


def tiny(arg: str | None = None) -> ConfigDict:
    """Returns the config of `configs/tiny.py`, on one device."""
    config = runpy.run_path(str(TINY))["get_config"](arg)
    config.mesh.data = 1
    return config


def finish(process: subprocess.Popen) -> subprocess.Popen:
    """Waits for the end of a process and keeps what it has said."""
    if not hasattr(process, "out"):
        process.out, process.err = process.communicate(timeout=PATIENCE)
    return process


def wait_until(condition: Callable[[], Any], process: subprocess.Popen | None = None) -> None:
    """Waits until a condition holds, and while the process runs where one is given."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, f"ended too early:\n{finish(process).err}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def interrupt(process: subprocess.Popen, number: signal.Signals) -> int:
    """Sends a signal and returns the exit code."""
    process.send_signal(number)
    return finish(process).returncode


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of metrics.jsonl, without the keys that measure time."""
    path = Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in whole]


def logged(workdir: Path) -> int:
    """Returns the last step that metrics.jsonl knows."""
    return max((line["step"] for line in lines(workdir)), default=0)


def summary(workdir: Path) -> dict[str, Any]:
    """Returns summary.json."""
    return json.loads((Path(workdir) / "summary.json").read_text())


def checkpoints(workdir: Path) -> list[int]:
    """Returns the steps of the complete checkpoints, ascending."""
    folder = Path(workdir) / "checkpoints"
    found = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in found if name.isdigit())


def saved(workdir: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a checkpoint by path, and its meta data."""
    folder = Path(workdir).absolute() / "checkpoints" / str(step)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(folder / "state").item_metadata.tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(restore_args=kinds)
        state = checkpointer.restore(folder / "state", args=args)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        meta = checkpointer.restore(folder / "meta", args=ocp.args.JsonRestore())
    return dict(zip(trees.paths(state), jax.tree.leaves(state))), meta


def assert_same_state(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Asserts that two states agree in every bit."""
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        other = theirs[path]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), path
        assert array.tobytes() == other.tobytes(), path


def assert_same_run(ours: Path, theirs: Path, step: int) -> None:
    """Asserts that two runs ended at `step` with the same bits: state, log, evaluations."""
    assert checkpoints(ours)[-1] == checkpoints(theirs)[-1] == step
    (state, meta), (other_state, other_meta) = saved(ours, step), saved(theirs, step)
    assert_same_state(state, other_state)
    times = {"in_steps", *starts.TIMES}
    without_time = [{k: v for k, v in m.items() if k not in times} for m in (meta, other_meta)]
    assert without_time[0] == without_time[1]
    assert lines(ours) == lines(theirs)
    summaries = [summary(w) for w in (ours, theirs)]
    assert {s["seconds"] > 0 for s in summaries} == {True}
    without_time = [{k: v for k, v in s.items() if k not in times} for s in summaries]
    assert without_time[0] == without_time[1]

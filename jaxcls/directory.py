"""The working directory of a run: who holds it, and what may be in it."""

import contextlib
import datetime
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import jax
import numpy as np

from jaxcls import files, signals

LOCK = ".lock"
# What a run makes in its working directory before its first step is done.
OURS = {LOCK, "checkpoints", "tensorboard", "metrics.jsonl", "config.json"}
OURS |= {"classes.txt", "parameters.txt", "starts.jsonl"}
SEEN = 10.0  # seconds until a file of process 0 is seen by the others, over NFS


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[Callable[[], None]]:
    """Holds a working directory, which is made if need be, against a second run.

    Process 0 holds WORKDIR/.lock; the system releases it however the process ends. Remote
    directories (gs://) know no locks: nothing is held there. If the block fails, or a signal ends
    the process, before it has called what it is given, a directory that was made here goes again,
    unless there are files of others in it.

    Raises:
      ValueError: another run holds it, or it cannot be written.
      files.PassingError: storage does not answer.
    """
    workdir = os.fspath(workdir)
    held, made, problem = None, [], None

    def undo():
        if held is not None and made:
            _remove(made)

    def keep():
        made.clear()

    if jax.process_index() == 0 and not files.remote(workdir):
        paths = (Path(workdir), *Path(workdir).parents)
        made = [path for path in paths if not os.path.exists(path)]
        try:
            held = files.patiently(lambda: _acquire(workdir), workdir, print, "written")
        except ValueError as e:
            problem = e
        except FileExistsError as e:
            kind = "a broken link" if os.path.islink(e.filename) else "a file, not a folder"
            problem = ValueError(f"the working directory {workdir}: {e.filename} is {kind}")
        except OSError as e:
            text = f"cannot write to the working directory {workdir}: {e.strerror}"
            problem = ValueError(text)
    try:
        with signals.undone(undo):
            text = f"process 0 could not lock the working directory {workdir}"
            files.raise_together(problem, text, files.PassingError, ValueError)
            _check_shared(workdir)
            yield keep
    finally:
        if held is not None:
            os.close(held)


def _check_shared(workdir: str) -> None:
    """Refuses a working directory that is not the same place for every process.

    Raises:
      ValueError: some do not see what process 0 has written; the message names them.
    """
    if jax.process_count() == 1 or files.remote(workdir):
        return
    path, until = Path(workdir, LOCK), time.monotonic() + SEEN
    first = jax.process_index() == 0
    written = _holder(path) if first else ""
    ours = hashlib.sha256(written.encode()).digest()
    theirs = files.gathered(np.frombuffer(ours, np.uint8))[0].tobytes()
    while not (seen := first or hashlib.sha256(_holder(path).encode()).digest() == theirs):
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    blind = np.flatnonzero(~files.gathered(np.bool_(seen)))
    if blind.size:
        many = "es" * (blind.size > 1)
        raise ValueError(
            f"--workdir={workdir}: process{many} {', '.join(map(str, blind))} of "
            f"{jax.process_count()} cannot see what process 0 writes there: give a folder that "
            "all machines share, or gs://BUCKET/FOLDER"
        )


def _holder(path: Path) -> str:
    """Returns who holds the lock that this file is; "" where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(1)  # Windows lets nobody else read byte 0, which is locked
            return file.read(200).decode(errors="replace").strip()
    except OSError:
        return ""


def _acquire(workdir: str) -> int:
    """Returns the file descriptor that holds the lock."""
    while True:
        os.makedirs(workdir, exist_ok=True)
        # Stays when it is released: another run could hold a removed file, a third one a new one.
        file = os.open(os.path.join(workdir, LOCK), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = filelock.lock_descriptor(file, blocking=False)
        except OSError as e:
            if e.errno not in files.NO_LOCKS:
                os.close(file)
                raise
            locked = True
        if not locked:
            os.close(file)
            holder = _holder(Path(workdir, LOCK)) or "another process"
            raise ValueError(
                f"the working directory {workdir} is in use by {holder}: wait for that run, stop "
                "it, or choose another --workdir"
            )
        if os.fstat(file).st_nlink:
            break
        os.close(file)  # of a run that failed, which has just removed it
    now = datetime.datetime.now().isoformat(" ", "seconds")
    os.ftruncate(file, 0)
    os.write(file, f"\nprocess {os.getpid()} on {socket.gethostname()} since {now}\n".encode())
    return file


def _remove(made: list[Path]) -> None:
    """Removes the working directory made[0] with what a run writes, and its parents in `made`."""
    with contextlib.suppress(OSError):  # Windows removes no open file
        if OURS.issuperset(name.removesuffix(".tmp") for name in os.listdir(made[0])):
            shutil.rmtree(made[0])
            for folder in made[1:]:
                folder.rmdir()


def check_kinds(workdir: str | os.PathLike) -> None:
    """Refuses a working directory where a folder is in the place of a file, or the reverse.

    Raises:
      ValueError: it is so, or what is there cannot be written; the message names it.
    """
    workdir = Path(workdir)
    texts = "metrics.jsonl", "config.json", "starts.jsonl", "summary.json"
    for name in (*texts, "tensorboard", "checkpoints", "report"):
        path = workdir / name
        folder = "." not in name
        if not os.path.lexists(path):
            continue
        if path.is_dir() != folder or (not folder and not path.is_file()):
            here, wanted = ("no folder", "a folder") if folder else ("no file", "a file")
            here = "a folder" if path.is_dir() else here
            here = here if path.exists() else "a broken link"
            raise ValueError(
                f"{path} is {here}, where the run keeps {wanted}: move it away, or choose another "
                "--workdir"
            )
        if not os.access(path, os.W_OK | os.R_OK | (os.X_OK if folder else 0)):
            raise ValueError(
                f"{path} cannot be read and written: change its permissions, or choose another "
                "--workdir"
            )
    files.check_files(workdir / "checkpoints")

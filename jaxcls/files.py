"""Files of a run that are not checkpoints: the lock of its working directory."""

import contextlib
import datetime
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre mounted without them, ...


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds a working directory, which is made if need be, against a second run.

    Process 0 holds WORKDIR/.lock; the system releases it however the process ends. Remote
    directories (gs://) know no locks: nothing is held there. If the block fails and no file was
    written in a directory that was made here, the directory goes again.

    Raises:
      ValueError: another run holds it, or it cannot be written.
    """
    workdir = os.fspath(workdir)
    held, made, problem = None, [], ""
    if jax.process_index() == 0 and "://" not in workdir:
        paths = (Path(workdir), *Path(workdir).parents)
        made = [path for path in paths if not os.path.exists(path)]
        try:
            held = _acquire(workdir)
        except ValueError as e:
            problem = str(e)
        except OSError as e:
            problem = f"cannot write to the working directory {workdir}: {e.strerror}"
    try:
        if any_process(bool(problem)):
            raise ValueError(problem or f"process 0 could not lock the working directory {workdir}")
        yield
    except BaseException:
        if held is not None and made:
            _remove_empty(made)
        raise
    finally:
        if held is not None:
            os.close(held)


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is set in any process; every process calls it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def _acquire(workdir: str) -> int:
    """Returns the file descriptor that holds the lock."""
    while True:
        os.makedirs(workdir, exist_ok=True)
        # Stays when it is released: another run could hold a removed file, a third one a new one.
        file = os.open(os.path.join(workdir, LOCK), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = filelock.lock_descriptor(file, blocking=False)
        except OSError as e:
            if e.errno not in NO_LOCKS:
                os.close(file)
                raise
            return file
        if not locked:
            os.lseek(file, 1, os.SEEK_SET)  # Windows lets nobody else read byte 0, which is locked
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
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


def _remove_empty(made: list[Path]) -> None:
    """Removes the working directory made[0] and its parents in `made` if all is empty."""
    with contextlib.suppress(OSError):  # Windows removes no open file
        if [name for _, _, names in os.walk(made[0]) for name in names] == [LOCK]:
            os.remove(made[0] / LOCK)
            for folder, _, _ in os.walk(made[0], topdown=False):
                os.rmdir(folder)
            for folder in made[1:]:
                folder.rmdir()

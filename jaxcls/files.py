"""Whole writes, patient reads, and what several processes agree on."""

import contextlib
import csv
import errno
import hashlib
import os
import re
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxcls import barrier, signals

T = TypeVar("T")

LISTED = 10  # things in a message; it says how many more there are
DELAYS = (0.5, 1, 2, 4, 8)  # seconds until storage that failed is tried again
# What trying again does not change. All other errors (ESTALE, EIO, ETIMEDOUT, EMFILE, errors of
# remote file systems, which have no number) may pass.
KINDS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre mounted without them, ...
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write does not succeed later
# Packages of object stores, whose errors are not the system's, and what HTTP's codes from 400 to
# 499 may mean that passes: a time-out, too many requests.
STORES = ("gcsfs", "aiohttp", "google", "requests")
BUSY = (408, 429)
# How TensorStore's errors begin: what may pass, and what the store refuses.
LATER, REFUSED = "UNAVAILABLE|DEADLINE_EXCEEDED", "PERMISSION_DENIED|UNAUTHENTICATED"


class SaveError(ValueError):
    """A checkpoint could not be written: full disk, no permission, broken storage."""

    exit_code = 2


class StorageError(ValueError):
    """A file is there, but cannot be read: storage, network, permission. Nothing is known of it."""

    exit_code = 2


class PassingError(StorageError):
    """It may be read again later."""

    exit_code = signals.AGAIN


def patiently(
    call: Callable[[], T],
    path: Any,
    report: Callable[[str], None] = lambda line: None,
    what: str = "read",
) -> T:
    """Returns `call()`, tried again for about 15 seconds where storage fails.

    Args:
      call: may be called several times.
      path: that errors are about, unless they name another.
      report: is given a line before each wait.
      what: it does: "read" or "written".

    Raises:
      PassingError: it still fails.
      StorageError: at once where waiting does not help (no permission).
      FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError: as `call` does, at
        once; so does a write that waiting does not help (a full disk).
    """
    for delay in (*DELAYS, None):
        try:
            return call()
        except KINDS:
            raise
        except Exception as e:
            problem = storage_problem(e)
            number = getattr(e, "errno", None)
            if problem is None or (what == "written" and number and not passes(e)):
                raise
            name = getattr(e, "filename", None) or os.fspath(path)
            said = f"{name} cannot be {what}: {problem}"
            if not passes(e):
                raise StorageError(said) from e
            error = e
        if delay is not None:
            report(f"{said}; trying again in {delay} s")
            time.sleep(delay)
    raise PassingError(
        f"{said}, also after {sum(DELAYS):g} s. Nothing was changed: try again when the storage "
        "answers"
    ) from error


def storage_problem(error: BaseException) -> str | None:
    """Returns what storage says in an error: the system, TensorStore, a bucket; None in others."""
    if isinstance(error, OSError):
        return error.strerror or line(error)
    if of_store(error):
        return line(error)
    # "...: Failed to ...: Disk quota exceeded [os_error_code='EDQUOT'", "UNAVAILABLE: ..."
    if found := re.search(r"([^:]+) \[os_error_code", str(error)):
        return found[1].strip()
    if found := re.match(rf"(?:{LATER}|{REFUSED}): ([^\n\[]*)", str(error)):
        return found[1].strip()
    return None


def of_store(error: BaseException) -> bool:
    """Returns whether an error is one of an object store's package, with or without a number."""
    package = type(error).__module__.partition(".")[0]
    return package in STORES or _forbidden(error)


def _forbidden(error: BaseException) -> bool:
    return str(error).startswith("Forbidden: ")  # gcsfs, as an OSError without a number


def passes(error: BaseException) -> bool:
    """Returns whether an error is one of storage that may be gone a little later."""
    lasting = (*FULL, *LASTING)
    if storage_problem(error) is None or isinstance(error, KINDS):
        return False
    said = any(os.strerror(number) in str(error) for number in lasting)  # by TensorStore
    code = str(getattr(error, "code", ""))  # of HTTP
    refused = code.isdigit() and 400 <= int(code) < 500 and int(code) not in BUSY
    refused = refused or _forbidden(error) or bool(re.match(f"(?:{REFUSED}): ", str(error)))
    return getattr(error, "errno", None) not in lasting and not said and not refused


def line(error: Exception | None) -> str:
    """Returns the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def reason(error: Exception) -> str:
    """Returns why something could not be written."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full"
    return storage_problem(error) or line(error)


def digest(path: str | os.PathLike, kind: str = "sha256") -> str:
    """Returns the SHA-256, or another digest, of a file, in hexadecimal digits."""
    found = hashlib.new(kind, usedforsecurity=False)
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def some(lines: Sequence[str], limit: int = LISTED) -> str:
    """Returns the first lines as one, and how many more there are."""
    more = f"; and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a small file so that it is there whole or not at all, also after a loss of power."""
    write_together({path: text})


def write_together(texts: Mapping[str | os.PathLike, str]) -> None:
    """Writes small files of one folder, all of them or, on a full disk, none; each is there whole.

    Storage that fails is tried again.

    Raises:
      OSError: one cannot be written; it names that.
      PassingError: storage still fails.
    """
    patiently(lambda: _write_together(texts), next(iter(texts)), print, "written")


def _write_together(texts: Mapping[str | os.PathLike, str]) -> None:
    if remote(next(iter(texts))):
        for path, text in texts.items():  # object stores know no half-written objects
            try:
                epath.Path(path).write_text(text)
            except FileNotFoundError as e:  # they know no folders either
                raise ValueError(f"{os.fspath(path)}: there is no such bucket") from e
        return
    written: list[tuple[Path, Path]] = []
    try:
        for path, text in texts.items():
            path = Path(path)
            temporary = path.with_name(path.name + ".tmp")
            written.append((temporary, path))
            # names of files may have other bytes than UTF-8
            with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
        for temporary, path in written:
            temporary.replace(path)
    except OSError as e:
        e.filename = e.filename or os.fspath(path)  # a full disk does not say whose
        for temporary, _ in written:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise
    sync(path.parent)


def csv_of(rows: Iterable[Sequence[Any]]) -> str:
    """Returns the text of a CSV file whose lines end in "\\n", whatever is in its cells."""
    lines: list[str] = []
    # Python quotes what its own line ends consist of: "\r" is no part of ours, but of others'
    keep = types.SimpleNamespace(write=lambda line: lines.append(line[:-2] + "\n"))
    csv.writer(keep, lineterminator="\r\n").writerows(rows)
    return "".join(lines)


def sync(path: str | os.PathLike) -> None:
    """Makes a local file or the names in a folder durable, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems do not sync
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def check_place(path: str) -> None:
    """Refuses a URL whose storage cannot be reached from here.

    Raises:
      ValueError: why not.
      StorageError: it may not be read, or not at the moment.
    """
    if "://" not in path:
        return
    try:
        epath.Path(path).exists()
    except ImportError as e:
        raise ValueError(f"{path}: {e} (gs://: pip install 'jaxcls[gcs]')") from e
    except KeyError as e:
        raise ValueError(
            f"{path}: there is no such storage: give a folder, or gs://BUCKET/FOLDER"
        ) from e
    except Exception as e:  # after a minute in which gcsfs has tried, where it may pass
        if not of_store(e):
            raise
        kind = PassingError if passes(e) else StorageError
        raise kind(f"{path} cannot be read: {storage_problem(e)}") from e


def caches() -> Path:
    """Returns the folder of what is computed once for all runs of a user.

    Raises:
      RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcls"


def absolute(path: str | os.PathLike) -> epath.Path:
    """Returns a place that does not depend on the current directory; see `check_place`."""
    path = os.path.expanduser(path)  # a shell does not, after --config.init.checkpoint=
    check_place(path)
    return epath.Path(path if "://" in path else os.path.abspath(path))


def remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://BUCKET/FOLDER."""
    return "://" in os.fspath(path)


def names(directory: epath.Path) -> list[str]:
    """Returns what is in a folder; nothing if there is no such folder, but errors of storage."""
    try:
        if remote(directory):
            return [path.name for path in directory.iterdir()]
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def check_files(folder: str | os.PathLike) -> None:
    """Refuses what is neither a file nor a folder below a local folder: a pipe never ends.

    Raises:
      ValueError: there is such a thing; the message names it.
    """
    for place, _, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in names):
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError(f"{path} is no file: remove it")


def only_process_0(report: Callable[[str], None]) -> Callable[[str], None]:
    """Returns `report`, or a function that does nothing in the other processes."""
    return report if jax.process_index() == 0 else lambda line: None


def gathered(values: np.ndarray) -> np.ndarray:
    """Returns the values of all processes, stacked; every process calls it."""
    if jax.process_count() == 1:
        return values[None]
    barrier.wait()
    return np.asarray(multihost_utils.process_allgather(values))


def raise_together(problem: Exception | None, text: str, *kinds: type[Exception]) -> None:
    """Raises the problem that any process has in all of them; every process calls it.

    Args:
      problem: of this process; None: it has none.
      text: what those say that have none.
      kinds: of problems, of which they raise the first that there is.
    """
    for kind in kinds:
        if any_process(isinstance(problem, kind)):
            raise problem or kind(text)


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is set in any process; every process calls it."""
    return bool(np.any(gathered(np.bool_(flag))))


def differs(text: str) -> bool:
    """Returns whether the processes have different texts; every process calls it."""
    digests = gathered(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    return bool((digests != digests[0]).any())


def union(numbers: Iterable[int]) -> list[int]:
    """Returns the numbers, not negative, that any process has, sorted; every process calls it."""
    here = np.array(sorted(numbers), np.int64)
    if jax.process_count() > 1:
        most = int(np.max(gathered(np.int32(len(here)))))
        # as halves, because JAX cuts off 64 bits
        padded = np.concatenate([here, np.full(most - len(here), -1)]).view(np.int32)
        all_there = np.ascontiguousarray(gathered(padded), np.int32)
        here = np.setdiff1d(all_there.view(np.int64), -1)
    return here.tolist()

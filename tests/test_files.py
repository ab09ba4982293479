"""The lock of a working directory, released however the process ends; whole writes."""

import contextlib
import csv
import errno
import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import command, files, weights
from jaxcls.directory import check_kinds, lock

ROOT = Path(__file__).parents[1]


def test_a_second_run_on_a_workdir_is_refused(tmp_path):
    with lock(tmp_path / "new" / "run"):
        with (
            pytest.raises(ValueError, match=f"in use by process {os.getpid()} on .* since 20"),
            lock(tmp_path / "new" / "run"),
        ):
            pass
        with lock(tmp_path / "other"):
            pass
    with lock(tmp_path / "new" / "run"):
        pass


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
os.environ["JAX_PLATFORMS"] = "cpu"
from jaxcls.directory import lock
with lock({str(tmp_path)!r}):
    print("locked", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(ValueError, match=f"in use by process {holder.pid} "),
            lock(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
        with lock(tmp_path):
            pass


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            ValueError, match=r"cannot write to the working directory .*/file/run: Not a"
        ),
        lock(tmp_path / "file" / "run"),
    ):
        pass
    (tmp_path / "link").symlink_to("nowhere")
    for name, what in (("file", "file is a file, not a folder"), ("link", "link is a broken link")):
        with pytest.raises(ValueError, match=what), lock(tmp_path / name):
            pass
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0
    if root:  # whom no permission stops
        os.seteuid(65534)
    try:
        with (
            pytest.raises(ValueError, match=r"cannot write to the working directory .*Permission"),
            lock(tmp_path / "run"),
        ):
            pass
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(file, blocking):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with lock(tmp_path), lock(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()  # for the others


def test_a_working_directory_whose_storage_does_not_answer(tmp_path, monkeypatch):
    opened, tried = os.open, []

    def stale(path, *arguments):
        if str(path).endswith(".lock") and len(tried) < fails:
            tried.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", stale)
    monkeypatch.setattr(files, "DELAYS", (0, 0))
    fails = 2
    with lock(tmp_path):
        assert len(tried) == 2
    fails = 100
    with pytest.raises(files.PassingError, match=r"\.lock cannot be written: Stale file") as caught:
        lock(tmp_path).__enter__()
    assert caught.value.exit_code == 75


def test_remote_workdirs_are_not_locked():
    with lock("gs://bucket/run"), lock("gs://bucket/run"):
        assert not Path("gs:").exists()


def fails(workdir, makes):
    with contextlib.suppress(RuntimeError), lock(workdir):
        if makes.endswith("/"):
            (workdir / makes).mkdir()
        else:
            (workdir / makes).write_text("")
        raise RuntimeError


def test_a_start_that_fails_leaves_no_directory(tmp_path):
    (tmp_path / "old").mkdir()
    for workdir in (tmp_path / "new" / "run", tmp_path / "old" / "run"):
        fails(workdir, "checkpoints/")
    assert {path.name for path in tmp_path.rglob("*")} == {"old"}
    # What a run writes first goes too. One that was there, or has files of others in it, stays.
    fails(tmp_path / "new", "metrics.jsonl")
    assert not (tmp_path / "new").exists()
    for workdir, name in ((tmp_path / "old", "metrics.jsonl"), (tmp_path / "new", "mine.txt")):
        fails(workdir, name)
        (workdir / name).unlink()
    fails(tmp_path / "old", "checkpoints/")
    assert {path.name for path in tmp_path.rglob("*")} == {"old", "new", ".lock", "checkpoints"}


def test_whatever_is_in_its_cells_a_csv_file_can_be_read():
    rows = [["image", "label"], ['a,"b"', "x\r"], ["c\n", "\u4e2d'"], ["d\r\ne", " y "], ["", "1"]]
    text = files.csv_of(rows)
    assert text.startswith("image,label\n")
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows


def test_a_small_file_is_durable_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace

    def synced(file):
        done.append(("synced", os.fstat(file).st_ino))
        fsync(file)

    def replaced(path, target):
        done.append(("replaced", path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    for text in ("before", "after"):
        done.clear()
        files.write_atomically(tmp_path / "summary.json", text)
        file, folder = (path.stat().st_ino for path in (tmp_path / "summary.json", tmp_path))
        assert done == [("synced", file), ("replaced", file), ("synced", folder)]
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "after"


@pytest.mark.parametrize(("number", "times"), [(errno.EACCES, 1), (errno.EIO, 3)])
def test_what_waiting_does_not_change_is_not_tried_again(monkeypatch, number, times):
    def read():
        tried.append(number)
        raise OSError(number, os.strerror(number), "some file")

    tried, said = [], []
    monkeypatch.setattr(files, "DELAYS", (0, 0))
    with pytest.raises(files.StorageError, match=f"some file .*: {os.strerror(number)}"):
        files.patiently(read, "a folder", said.append)
    assert (len(tried), len(said)) == (times, times - 1)


class HttpError(Exception):
    """As gcsfs has it."""

    __module__ = "gcsfs.retry"

    def __init__(self, code):
        super().__init__(f"of the bucket, {code}")
        self.code = code


class ProxyError(OSError):
    """As gcsfs raises it after a 502: an error of the system without a number."""

    __module__ = "requests.exceptions"


@pytest.mark.parametrize("what", ["read", "written"])
@pytest.mark.parametrize(
    ("error", "kind", "times"),
    [
        (HttpError(503), files.PassingError, 3),
        (HttpError(429), files.PassingError, 3),
        (HttpError("500"), files.PassingError, 3),
        (HttpError(401), files.StorageError, 1),
        (OSError("Forbidden: b/o\nno permission"), files.StorageError, 1),
        (ProxyError("502"), files.PassingError, 3),
        (ValueError("PERMISSION_DENIED: Error reading o: no [http='403']"), files.StorageError, 1),
        (ValueError("UNAVAILABLE: Error reading o: later [http='503']"), files.PassingError, 3),
    ],
)
def test_what_a_bucket_says(monkeypatch, capsys, error, kind, times, what):
    tried = []

    def call():
        tried.append(what)
        raise error

    monkeypatch.setattr(files, "DELAYS", (0, 0))
    with pytest.raises(files.StorageError, match=rf"^gs://b/o cannot be {what}: ") as caught:
        files.patiently(call, "gs://b/o", what=what)
    assert (type(caught.value), len(tried)) == (kind, times)
    if not isinstance(error, ValueError):  # where nobody tries again

        def fails():
            raise error

        assert command.told(fails)() == (75 if kind is files.PassingError else 2)
        assert capsys.readouterr().err == f"jaxcls: {command.one_line(error)}\n"


def test_a_start_that_was_successful_keeps_its_directory(tmp_path):
    with contextlib.suppress(RuntimeError), lock(tmp_path / "new") as keep:
        keep()
        raise RuntimeError
    assert (tmp_path / "new" / ".lock").exists()


def test_a_lock_file_that_was_removed_in_between_is_not_held(tmp_path, monkeypatch):
    def locked(file, blocking, once=[]):  # noqa: B006
        if not once:
            once.append(True)
            (tmp_path / ".lock").unlink()  # as a run that fails just then
        return hold(file, blocking=blocking)

    hold = filelock.lock_descriptor
    monkeypatch.setattr(filelock, "lock_descriptor", locked)
    with lock(tmp_path), pytest.raises(ValueError, match="in use"), lock(tmp_path):
        pass


# -- Several processes -----------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch):
    """Returns call(f, *arguments) -> f(argument) of processes that compute together.

    Here they are threads, and gather what JAX would, in 32 bits.
    """
    me = threading.local()

    def call(f, *arguments):
        parts, everyone = [None] * len(arguments), threading.Barrier(len(arguments))

        def gather(value):
            parts[me.index] = np.asarray(jnp.asarray(value))
            everyone.wait(60)
            gathered = np.stack(parts)
            everyone.wait(60)
            return gathered

        def one(index):
            me.index = index
            return f(arguments[index])

        monkeypatch.setattr(files.multihost_utils, "process_allgather", gather)
        monkeypatch.setattr(jax, "process_count", lambda: len(arguments))
        with ThreadPoolExecutor(len(arguments)) as pool:
            return list(pool.map(one, range(len(arguments))))

    return call


def raised(problem):
    try:
        files.raise_together(problem, "of process 0", files.PassingError, ValueError, OSError)
    except (ValueError, OSError) as e:
        return e


def test_what_processes_tell_one_another(processes):
    for texts in (("a", "a", "a"), ("", ""), ("a",)):
        assert processes(files.differs, *texts) == [False] * len(texts)
    for texts in (("a", "a", "b"), ("b", "a", "a"), ("a", "a ")):
        assert processes(files.differs, *texts) == [True] * len(texts)
    assert processes(files.any_process, False, True) == [True, True]
    assert processes(files.any_process, False, False) == [False, False]
    for problem, kind in ((files.PassingError("a"), files.PassingError), (OSError(), OSError)):
        found = processes(raised, problem, None, None)
        assert [type(e) for e in found] == [kind] * 3
        assert found[0] is problem
        assert str(found[1]) == "of process 0"
    assert processes(raised, None, None) == [None] * 2
    large = 2**40 + 3  # of an image
    for sets in (({5, 3}, set(), {large, 5}), (set(), set()), ({0}, {0}), ({7, 1},)):
        assert processes(files.union, *sets) == [sorted(set().union(*sets))] * len(sets)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://host/x", "http://host/x: there is no such storage: give a folder, or gs://"),
        ("foo://x", "there is no such storage"),
        ("gs://bucket/x", r"gcsfs.*pip install 'jaxcls\[gcs\]'"),
    ],
)
def test_storage_that_cannot_be_reached(url, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(ValueError, match=text):
        files.check_place(url)
    with pytest.raises(ValueError, match=text):
        weights.exists(url)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes among its files")
def test_a_pipe_among_the_files_of_a_run_is_refused(tmp_path):
    folder = tmp_path / "checkpoints" / "7"
    folder.mkdir(parents=True)
    check_kinds(tmp_path)
    os.mkfifo(folder / "checksums.json")  # whoever opens it waits for somebody who writes
    with pytest.raises(ValueError, match=r"7/checksums\.json is no file: remove it"):
        check_kinds(tmp_path)
    (folder / "state").mkdir()
    with pytest.raises(ValueError, match=r"7/checksums\.json is no file: remove it"):
        weights.load(folder)
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"jsonl is no file, where the run keeps a file: move"):
        check_kinds(tmp_path)


def test_a_file_where_the_report_will_be_is_told_before_training(tmp_path):
    (tmp_path / "report").touch()
    with pytest.raises(ValueError, match="report is no folder, where the run keeps a folder: move"):
        check_kinds(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EFBIG, "File too large", "a/b"), "File too large"),
        (RuntimeError("INTERNAL: Error: File too large [os_error_code='EFBIG']"), "File too large"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError("of a bucket\n<html>"), "of a bucket"),
        (OSError(), "OSError"),
    ],
)
def test_why_nothing_was_written_is_a_line_whoever_says_so(error, said):
    assert files.reason(error) == said

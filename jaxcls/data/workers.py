"""Worker processes that compute `source[index]`, reached over sockets alone.

Shared memory and named semaphores, of which Python's queues between processes and grain's workers
are made, outlive a `kill -9` of the process group and need room in /dev/shm, of which a container
has 64 MB. A socket needs neither, is closed by the system however a process ends, and takes a
batch of 38 MB in 30 ms, with 8 ms of processor time here and none under Python's lock.
"""

import contextlib
import multiprocessing
import multiprocessing.util  # its hook at exit, which ours have to come before, is set now
import os
import pickle
import queue
import signal
import socket
import struct
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

# A terminal and a batch system send these to all processes of a group or job.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)]))
BUFFER = 4 << 20  # bytes on the way in a socket, as far as the system allows
PATIENCE = 10  # seconds for a killed process to be gone


class WorkerDied(RuntimeError):
    """A worker process has ended; `code` as in `multiprocessing.Process.exitcode`."""

    def __init__(self, code: int | None):
        super().__init__(f"a worker process has ended (exit code {code})")
        self.code = code


class Workers:
    """A source of random access whose items are computed by other processes, each in some threads.

    `processes * threads` threads of this process may ask at a time; one more waits. An item comes
    back pickled, its arrays without a copy; an exception with the traceback as a note. What was
    computed does not depend on who did it, so there is no order among the processes.
    """

    def __init__(self, source: Sequence, *, processes: int, threads: int):
        """Starts the processes, which live until `close`, or as long as this process.

        Args:
          source: has `len` and items; it is pickled.
          processes, threads: so many, and so many in each.

        Raises:
          OSError: the system has no more processes or open files.
        """
        self._length = len(source)
        self._processes: list[multiprocessing.Process] = []
        self._controls: list[socket.socket] = []
        self._idle: queue.SimpleQueue = queue.SimpleQueue()  # (process, connection)
        self._reaping = threading.Lock()
        message, connections = _dumps(source), []
        try:
            with _signals_blocked():
                for _ in range(processes):
                    connections.append(self._start(message, threads))
        except BaseException:
            self.close()
            raise
        for of_each_process in zip(*connections):  # the processes take turns
            for connection in of_each_process:
                self._idle.put(connection)

    def _start(self, message: list, threads: int) -> list[tuple[Any, socket.socket]]:
        pairs = [_pair() for _ in range(threads + 1)]
        (control, _), *connections = pairs
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=[theirs for _, theirs in pairs], daemon=True
        )
        process.start()
        self._processes.append(process)
        self._controls.append(control)
        for _, theirs in pairs:
            theirs.close()  # so that the end of the process is the end of the connection

        def introduce():  # takes until the process has imported what it needs
            with contextlib.suppress(OSError):
                _send(control, message)

        threading.Thread(target=introduce, daemon=True).start()
        return [(process, ours) for ours, _ in connections]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        process, connection = self._idle.get()
        try:
            connection.sendall(struct.pack("<q", index))
            item = _receive(connection)
        except (EOFError, OSError):
            with self._reaping:
                process.join(PATIENCE)
                raise WorkerDied(process.exitcode) from None
        finally:
            self._idle.put((process, connection))
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Ends the processes: whoever still asks gets `WorkerDied`."""
        for process in self._processes:
            process.kill()
        with self._reaping:
            for process in self._processes:
                process.join(PATIENCE)
        for control in self._controls:
            control.close()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Lets processes start with `SIGNALS` blocked, from their first instruction on.

    The parent still wants batches until it has saved, and ends its workers itself.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it is started with the first process and unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- In the worker -------------------------------------------------------------------------------


def _work(control: socket.socket, *connections: socket.socket) -> None:
    for number in SIGNALS:  # where they cannot be blocked before
        signal.signal(number, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in `command.quieten`
    cv2.setNumThreads(0)  # as in `loader.Batches`
    try:
        source = _receive(control)
        for connection in connections:
            threading.Thread(target=_serve, args=(source, connection), daemon=True).start()
        control.recv(1)  # nothing ever comes: returns when the parent has ended, however it did
    except (EOFError, OSError):
        pass
    os._exit(0)


def _serve(source: Sequence, connection: socket.socket) -> None:
    try:
        while True:
            (index,) = struct.unpack("<q", _exactly(connection, 8))
            try:
                message = _dumps(source[index])
            except Exception as e:
                message = _dumps(_portable(e))
            _send(connection, message)
    except (EOFError, OSError):
        os._exit(0)  # so has the parent


def _portable(error: Exception) -> Exception:
    """Returns the error, or its text if it cannot be pickled."""
    note = f"In a worker process:\n{traceback.format_exc()}"
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error


# -- Messages ------------------------------------------------------------------------------------


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    return pair


def _dumps(item: Any) -> list:
    """Returns what to send: number and lengths of the parts, the pickle, the arrays' own memory."""
    arrays: list[memoryview] = []
    head = pickle.dumps(item, protocol=5, buffer_callback=lambda b: arrays.append(b.raw()))
    lengths = [len(head), *(array.nbytes for array in arrays)]
    return [struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths), head, *arrays]


def _send(connection: socket.socket, parts: list) -> None:
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    (count,) = struct.unpack("<I", _exactly(connection, 4))
    lengths = struct.unpack(f"<{count}Q", _exactly(connection, 8 * count))
    head, *arrays = (_exactly(connection, length) for length in lengths)
    return pickle.loads(head, buffers=arrays)


def _exactly(connection: socket.socket, length: int) -> np.ndarray:
    """Returns the next bytes, uint8 [length]; EOFError if the connection ends before."""
    data = np.empty(length, np.uint8)
    rest = memoryview(data)
    while rest:
        received = connection.recv_into(rest)
        if not received:
            raise EOFError
        rest = rest[received:]
    return data

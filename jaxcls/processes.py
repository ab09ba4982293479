"""Several processes of one run: how they meet, and how the end of one becomes the end of all.

JAX itself notices after 100 seconds that a process was lost, and a process whose coordinator is
gone aborts at once with a trace of C++. So each process keeps a connection to process 0, which the
system closes when a process ends, however it does: the others then end in a second, with one line.
And JAX's own connections run over relays (relay.py), which break off a little later.

All of it, JAX's coordination service as well, is behind the one port of --coordinator. What a
process says on its connection are lines: `jaxcls hello NUMBER COUNT WHAT`, where WHAT is what
it runs (sameness.py) as JSON, then `end CODE`; process 0 answers `go` when all are there, `no
REASON` or `again REASON`, or `lost CODE TEXT`.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxcls import relay, sameness, signals
from jaxcls.signals import AGAIN

PATIENCE = 60.0  # seconds until all processes are there
CLUSTER_PATIENCE = 300.0  # on a cluster, whose machines start at different times
SAID = 10.0  # seconds of waiting until a line says what for
LOOK = 2.0  # seconds that the last line of a process waits for storage
LEAVING = 24 * 3600  # seconds of patience with process 0, which writes the report at the end
GRACE = 3.0  # seconds for a process to end by itself when another one has ended with an error
GOOD = (0, 129, 130, 143)  # exit codes after which the others end by themselves, in the same way
LINE = 1 << 20  # characters of a line at most
REFUSED = 5.0  # seconds for the others to come and hear, too, why the run does not begin


class LostError(ValueError):
    """Other processes are not there, or not any more: the next time they may be."""

    exit_code = AGAIN


def check(coordinator: str | None, count: int | None, number: int | None) -> tuple[str, int] | None:
    """Returns host and port of --coordinator; None without the flags of several processes.

    Raises:
      ValueError: they do not fit together.
    """
    if coordinator is None:
        for name, value in (("num_processes", count), ("process_id", number)):
            if value is not None:
                raise ValueError(
                    f"--{name}={value} needs --coordinator=HOST:PORT, the address of process 0 "
                    "(launch/local.sh starts several processes on one machine)"
                )
        return None
    host, colon, port = coordinator.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"--coordinator={coordinator}: write HOST:PORT, such as 10.0.0.1:1234")
    if count is None or number is None:
        missing = "num_processes" if count is None else "process_id"
        raise ValueError(f"--coordinator={coordinator} needs --{missing}, too")
    if count < 1:
        raise ValueError(f"--num_processes={count}: at least 1")
    if not 0 <= number < count:
        raise ValueError(
            f"--process_id={number} with --num_processes={count}: they count from 0 to {count - 1}"
        )
    return host, int(port)


def detect(
    patience: float = CLUSTER_PATIENCE,
) -> tuple[tuple[str, int], int, int, list[int] | None]:
    """Returns (host, port), number of processes, number of this one, its devices, of a cluster.

    Args:
      patience: seconds to wait for its answer, on Kubernetes and Cloud TPU.

    Raises:
      ValueError: JAX finds no cluster.
    """
    from jax._src import clusters

    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(patience)
    )
    coordinator, count, number, devices = found
    if None in (coordinator, count, number):
        raise ValueError(
            "--distributed: JAX finds no cluster here (TPU pod, Slurm, Open MPI, Kubernetes); give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I instead"
        )
    devices = None if _has_own_gpus() else devices
    return check(coordinator, count, number), count, number, devices


def _has_own_gpus() -> bool:
    """Returns whether all GPUs that this process of a cluster sees are its own.

    JAX gives each process of a node one GPU of all, by its number there. But one process a node has
    them all, and what Slurm binds to a process (--gpus-per-task) it sees as the first.
    """
    get = os.environ.get
    alone = get("SLURM_STEP_NUM_NODES") == get("SLURM_NTASKS", "")
    visible = get("CUDA_VISIBLE_DEVICES", "")
    return alone or bool(get("SLURM_GPUS_PER_TASK")) or bool(visible and "," not in visible)


class Processes:
    """The processes of a run, seen from one of them. It ends this process if another is lost."""

    def __init__(
        self,
        address: tuple[str, int],
        count: int,
        number: int,
        devices: list[int] | None = None,
        *,
        runs: Mapping[str, Any] | None = None,
        resume: Callable[[], str] = lambda: "",
        patience: float = PATIENCE,
    ):
        """Waits until all are there and connects JAX.

        Args:
          address: host and port of process 0.
          count: of processes.
          number: of this one.
          devices: numbers of its local devices; None: all.
          runs: its config; code and versions are compared, too.
          resume: returns what to do when a process was lost.
          patience: seconds to wait for the others.

        Raises:
          LostError: they do not meet; the message names the missing ones where they are known.
          ValueError: they do not run the same code and config.
        """
        self._address, self._count, self._number = address, count, number
        self._what, self._problem = sameness.describe(runs or {}), ""
        self._where = "{}:{}".format(*address)
        self._resume, self._until = resume, time.monotonic() + patience
        self._code: int | None = None  # what this process ends with, when it is done
        self._ended: dict[int, int] = {}  # exit codes of those that said so
        self._lines: dict[int, socket.socket] = {}  # to the others; from all but 0 only to 0
        self._changed = threading.Condition()
        self._resolve()
        if number == 0:
            with socket.create_server(("127.0.0.1", 0)) as private:
                here = "{}:{}".format(*private.getsockname())  # for JAX's service
            lines = socket.create_server(("127.0.0.1", 0))
            relay.thread(relay.accept, lines, self._serve)
            self._start_relay("", address[1], here, "{}:{}".format(*lines.getsockname()))
            self._gather()
        else:
            self._join()
            here = f"127.0.0.1:{self._start_relay('127.0.0.1', 0, self._where)}"
        signals.on_exit.append(self._tell_end)
        self._start_jax(here, devices)

    def leave(self, code: int) -> int:
        """Tells the others that this process ends with an exit code, and returns it.

        After an error it does not return: JAX would wait for the others.
        """
        self._code = code
        self._tell(f"end {code}", *self._lines.values())
        if code not in GOOD:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
        import jax

        jax.distributed.shutdown()  # waits for all
        if self._number == 0:  # JAX's last answers pass through this process
            with self._changed:
                self._changed.wait_for(lambda: not self._lines, relay.LINGER)
        else:
            relay.close(self._lines.pop(0))
        self._relay.kill()
        self._relay.wait()
        return code

    def await_verdict(self) -> None:
        """Called with an error that may come of a lost process: if so, does not return."""
        time.sleep(GRACE)

    # -- Meeting ---------------------------------------------------------------------------------

    def _resolve(self) -> None:
        """Waits until the coordinator's name is known: on Kubernetes when its pod has begun."""
        for _ in self._waiting("for the name"):
            try:
                socket.getaddrinfo(*self._address)
                return
            except (OSError, UnicodeError) as e:
                error = e
        reason = getattr(error, "strerror", None) or error
        raise LostError(f"--coordinator={self._where}: the host is not known ({reason})") from error

    def _waiting(self, what: str) -> Iterator[None]:
        """Gives turns, the first one at once, as long as there is patience; says so after a while.

        Args:
          what: is waited for, at the coordinator's address.
        """
        began, said = time.monotonic(), False
        yield
        while (now := time.monotonic()) <= self._until:
            if now > began + SAID and not said:
                signals.say(f"jaxcls: process {self._number} waits {what} at {self._where}")
                said = True
            time.sleep(0.2)
            yield

    def _start_relay(self, host: str, port: int, *targets: str) -> int:
        """Returns the port of a new relay, which lives a little longer than this process."""
        self._relay = subprocess.Popen(
            [sys.executable, "-m", "jaxcls.relay", host, str(port), *targets],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a signal to the group is not for it
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        answer = self._relay.stdout.readline().strip()
        if not answer.isdigit():
            raise ValueError(
                f"--coordinator={self._where}: process {self._number} cannot listen on this port "
                f"({answer}): choose another one"
            )
        return int(answer)

    def _gather(self) -> None:
        """Process 0 waits for all others."""
        everyone = set(range(1, self._count))

        def there():
            return everyone <= self._lines.keys()

        def complete():
            return self._problem or there()

        with self._changed:
            if not self._changed.wait_for(complete, min(SAID, self._until - time.monotonic())):
                signals.say(f"jaxcls: process 0 waits at {self._where} for {self._names(everyone)}")
            if not self._changed.wait_for(complete, self._until - time.monotonic()):
                text = (
                    f"{self._names(everyone)} of {self._count} did not come to process 0 at "
                    f"{self._where}: start one process with each --process_id from 0 to "
                    f"{self._count - 1} and the same --coordinator"
                )
                self._tell(f"again {text}", *self._lines.values())
                raise LostError(text)
            if self._problem:
                self._changed.wait_for(there, REFUSED)
                self._tell(f"no {self._problem}", *self._lines.values())
                raise ValueError(self._problem)
        self._tell("go", *self._lines.values())

    def _names(self, everyone: set[int]) -> str:
        missing = sorted(everyone - self._lines.keys())
        return f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))}"

    def _join(self) -> None:
        """Any other process comes to process 0 and waits for all."""
        for _ in self._waiting("for process 0"):
            try:
                line = socket.create_connection(self._address, timeout=5)
                break
            except OSError as e:
                error = e
        else:
            raise LostError(
                f"process {self._number} of {self._count} does not reach process 0 at "
                f"--coordinator={self._where} ({error.strerror or error}): is it started there?"
            ) from error
        relay.keep_alive(line)
        self._tell(
            f"{relay.HELLO.decode()}hello {self._number} {self._count} {json.dumps(self._what)}",
            line,
        )
        line.settimeout(max(self._until - time.monotonic(), 0) + GRACE)
        answers = line.makefile("r")
        try:
            word, _, text = answers.readline(LINE).strip().partition(" ")
        except OSError:
            word, text = "", ""
        if word in ("no", "again"):
            raise (LostError if word == "again" else ValueError)(text)
        if word != "go":  # nothing, or another program's answer
            raise LostError(f"process 0 at {self._where} has ended, or is not of a run")
        line.settimeout(None)
        self._lines[0] = line
        relay.thread(self._follow, answers)

    def _start_jax(self, here: str, devices: list[int] | None) -> None:
        os.environ.setdefault("no_grpc_proxy", "127.0.0.1")  # JAX's connections end in our relay
        import jax

        jax.config.update("jax_check_proxy_envs", False)
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        bind = {"coordinator_bind_address": here} if self._number == 0 else {}
        try:
            jax.distributed.initialize(
                here,
                self._count,
                self._number,
                local_device_ids=devices,
                shutdown_timeout_seconds=LEAVING,
                **bind,
            )
        except RuntimeError as e:
            self.await_verdict()
            first = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise ValueError(f"JAX cannot connect the processes at {self._where}: {first}") from e

    # -- Watching --------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        """Process 0 hears another process."""
        lines = connection.makefile("r")
        number, problem = -1, ""
        try:
            _, _, number, count, *rest = lines.readline(LINE).split(maxsplit=4)
            number, count = int(number), int(count)
            what = json.loads(rest[0]) if rest else {}
            what = what if isinstance(what, dict) else {}
        except (ValueError, RecursionError):
            connection.close()
            return
        with self._changed:
            if count != self._count:
                problem = (
                    f"process {number} was started with --num_processes={count}, process 0 at "
                    f"{self._where} with {self._count}"
                )
            elif not 0 < number < count or number in self._lines:
                problem = f"there are two processes with --process_id={number}"
            else:
                self._lines[number] = connection
                self._compare(number, what)
                self._changed.notify_all()
        if problem:
            self._tell(f"no {problem}", connection)
            relay.close(connection)
            return
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                word, _, code = line.partition(" ")
                if word == "end":
                    self._ended[number] = int(code)
        with self._changed:
            self._lines.pop(number)
            self._changed.notify_all()
        relay.close(connection)
        self._missing(number)

    def _compare(self, number: int, what: dict[str, Any]) -> None:
        names = [f"process {i} ({x.get('host')})" for i, x in ((0, self._what), (number, what))]
        if differences := sameness.difference(self._what, what, tuple(names)):
            self._problem = self._problem or (
                f"{names[0]} and {names[1]} do not run the same: {differences}. Start all with "
                "the same command and the same code"
            )

    def _follow(self, answers) -> None:
        """Any other process hears process 0."""
        with contextlib.suppress(OSError, ValueError):
            for line in answers:
                word, _, text = line.strip().partition(" ")
                if word == "end":
                    self._ended[0] = int(text)
                elif word == "lost":
                    code, _, text = text.partition(" ")
                    self._end(text, int(code))
        self._missing(0)

    def _missing(self, number: int) -> None:
        """Ends this process unless process `number`, which is gone, has left in peace."""
        code = self._ended.get(number)
        if code in GOOD:
            return
        who = f"process {number} of {self._count}"
        if code is None:
            text, code = f"{who} was lost (killed, out of memory, or its machine is gone)", AGAIN
        else:
            time.sleep(GRACE)  # an error of all: each says so itself
            text = f"{who} has ended with exit code {code}, its own message says why"
        self._tell(f"lost {code} {text}", *self._lines.values())
        self._end(text, code)

    def _end(self, text: str, code: int) -> None:
        # Process 0 may still be at work for all, on the report, when the others have done theirs.
        if self._code is not None and (self._number == 0 or 0 in self._ended):
            os._exit(self._code)
        answers: list[str] = []
        look = threading.Thread(target=lambda: answers.append(self._resume()), daemon=True)
        look.start()
        look.join(LOOK)  # storage may be what is lost
        text = "; ".join(filter(None, (text, *answers)))
        signals.end_process(f"jaxcls: {text}", code)

    def _tell_end(self, code: int) -> None:
        if code not in GOOD:  # of others the rest is to hear as of a lost one
            self._tell(f"end {code}", *self._lines.values())

    # -- Connections -----------------------------------------------------------------------------

    def _tell(self, line: str, *connections: socket.socket) -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(f"{line}\n".encode())


def how_to_resume(workdir: str | os.PathLike) -> str:
    """Returns what the same command does after a process was lost."""
    if "://" in os.fspath(workdir):
        return "the same command resumes from the last checkpoint"
    try:
        names = [path.name for path in (Path(workdir) / "checkpoints").iterdir()]
    except OSError:
        names = []
    steps = [int(name) for name in names if name.isdigit()]
    return f"the same command {f'resumes from step {max(steps)}' if steps else 'starts again'}"

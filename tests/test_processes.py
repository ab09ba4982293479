"""Several processes of a run meet, or say who is missing; the end of one is the end of all.

JAX itself needs 100 seconds to notice a lost process and then aborts (exit code 134) with a trace.
"""

import contextlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest
import runs

from jaxcls import barrier, processes

PEER = """
import sys
from jaxcls.command import complain
from jaxcls.processes import Processes
options = dict(runs={runs}, resume=lambda: "go on", patience={patience})
try:
    here = Processes(("127.0.0.1", {port}), {count}, {number}, **options)
except ValueError as e:
    sys.exit(complain(e))
import jax
assert (jax.process_count(), jax.process_index()) == ({count}, {number})
print("here", flush=True)
sys.stdin.readline()
sys.exit(here.leave({code}))
"""


@contextlib.contextmanager
def peers(*numbers, count=3, port=None, patience=120, code=0, configs=(), roots=()):
    """Starts processes with these numbers.

    Args:
      code: what they end with when a line comes.
      configs: of each.
      roots: where each has its code.
    """
    port = port or runs.free_port()
    started = []
    try:
        for i, number in enumerate(numbers):
            settings = {
                "port": port,
                "count": count if isinstance(count, int) else count[i],
                "patience": patience if isinstance(patience, int) else patience[i],
                "code": code,
                "runs": configs[i] if configs else {},
            }
            root = str(roots[i] if roots else runs.ROOT)
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", PEER.format(number=number, **settings)],
                    env=RUN.environment(PYTHONPATH=root),
                    cwd=root,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


RUN = runs.Commands(None)


def end(process):
    process.wait(timeout=runs.PATIENCE)  # with stdin open
    return process.returncode, process.stderr.read()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_with_one_line(victim):
    with peers(0, 1, 2) as started:
        for process in started:
            assert process.stdout.readline() == "here\n"
        started.pop(victim).kill()
        line = f"jaxcls: process {victim} of 3 was lost (killed, out of memory, or its machine is "
        assert [end(process) for process in started] == [(75, f"{line}gone); go on\n")] * 2


@pytest.mark.ci
def test_the_mistake_of_one_ends_the_others_and_a_normal_end_is_none():
    with peers(0, 1, count=2, code=2) as (zero, one):
        assert one.stdout.readline() == "here\n"
        one.stdin.write("\n")
        one.stdin.flush()
        text = "jaxcls: process 1 of 2 has ended with exit code 2, its own message says why; go on"
        assert (end(one), end(zero)) == ((2, ""), (2, f"{text}\n"))
    with peers(0, 1, count=2) as started:
        for process in started:
            assert process.stdout.readline() == "here\n"
        for process in started[::-1]:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [end(process) for process in started] == [(0, "")] * 2
    with peers(0, 1, count=2) as (zero, one):  # lost when all is done
        for process in (zero, one):
            assert process.stdout.readline() == "here\n"
        zero.stdin.write("\n")
        zero.stdin.flush()
        time.sleep(0.5)
        one.kill()
        assert end(zero) == (0, "")


@pytest.mark.ci
def test_process_0_is_lost_while_it_works_for_all_at_the_end():
    """As on the report; the others have nothing more to do, but the run is not complete."""
    with peers(0, 1, count=2) as (zero, one):
        for process in (zero, one):
            assert process.stdout.readline() == "here\n"
        one.stdin.write("\n")
        one.stdin.flush()
        time.sleep(0.5)
        zero.kill()
        text = "jaxcls: process 0 of 2 was lost (killed, out of memory, or its machine is gone)"
        assert end(one) == (75, f"{text}; go on\n")


def test_the_end_does_not_wait_for_storage(monkeypatch):
    here = object.__new__(processes.Processes)
    here._code, here._number, here._ended = None, 0, {}
    here._resume = threading.Event().wait  # a server that does not answer
    monkeypatch.setattr(processes, "LOOK", 0.1)
    ended = []
    monkeypatch.setattr(processes.signals, "end_process", lambda *said: ended.append(said))
    here._end("process 1 was lost", 75)
    assert ended == [("jaxcls: process 1 was lost", 75)]


@pytest.mark.ci
def test_who_is_missing_is_named():
    port = runs.free_port()
    with peers(0, 2, count=4, port=port, patience=(12, 60)) as started:
        text = (
            f"processes 1, 3 of 4 did not come to process 0 at 127.0.0.1:{port}: start one process "
            "with each --process_id from 0 to 3 and the same --coordinator\n"
        )
        (zero, said), (two, heard) = map(end, started)
        assert (zero, two) == (75, 75)
        waits = f"jaxcls: process 0 waits at 127.0.0.1:{port} for processes 1, 3\n"
        assert said == f"{waits}jaxcls: {text}"
        assert heard == f"jaxcls: {text}"


def test_processes_that_do_not_fit(tmp_path):
    with peers(0, 1, 1, 2, count=(3, 3, 3, 4)) as (_, *others):
        # one of the two with the same number, and the one with another count
        ended = [next(p for p in others[:2] if wait_for_end(others[:2]) is p), others[2]]
        assert "there are two processes with --process_id=1" in end(ended[0])[1]
        assert "started with --num_processes=4, process 0 at" in end(ended[1])[1]


def test_other_code_or_another_config_is_refused(tmp_path):
    shutil.copytree(runs.ROOT / "jaxcls", tmp_path / "jaxcls")
    (tmp_path / "jaxcls" / ".#steps.py").symlink_to("somebody@host.1")  # which Emacs edits
    with open(tmp_path / "jaxcls" / "steps.py", "a") as file:
        file.write("# another version\n")
    host = socket.gethostname()
    rates = ({"config.lr.peak": 0.1}, {"config.lr.peak": 0.1}, {"config.lr.peak": 0.2})
    differ = f"process 0 ({host}) and process {{}} ({host}) do not run the same: {{}}"
    differs = differ.format(2, f"config.lr.peak is 0.1 on process 0 ({host}), 0.2 on process 2 (")
    with peers(0, 1, 2, configs=rates) as started:
        for code, said in map(end, started):
            assert (code, said.count("\n")) == (2, 1)
            assert said.startswith(f"jaxcls: {differs}{host}). Start all with the same command")
    with peers(0, 1, count=2, roots=(runs.ROOT, tmp_path)) as started:
        text = differ.format(1, "jaxcls/steps.py is another file. Start all with the same command ")
        assert [end(p) for p in started] == [(2, f"jaxcls: {text}and the same code\n")] * 2


def wait_for_end(candidates):
    while True:
        for process in candidates:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                return process


def test_nobody_is_at_the_coordinator_and_the_port_is_in_use():
    port = runs.free_port()
    with pytest.raises(ValueError, match=rf"1 of 2 does not reach process 0 .*:{port} \(Conn"):
        processes.Processes(("127.0.0.1", port), 2, 1, patience=0)
    with socket.create_server(("", 0), family=socket.AF_INET) as server:
        port = server.getsockname()[1]
        server.listen()
        with pytest.raises(ValueError, match=rf":{port}: process 0 cannot listen .*: choose"):
            processes.Processes(("127.0.0.1", port), 2, 0, patience=0)
        answer = lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n")
        threading.Thread(target=answer).start()
        with pytest.raises(processes.LostError, match=rf":{port} has ended, or is not of a run$"):
            processes.Processes(("127.0.0.1", port), 2, 1, patience=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, 2, None), "--num_processes=2 needs --coordinator=HOST:PORT"),
        ((None, None, 0), "--process_id=0 needs --coordinator=HOST:PORT"),
        (("localhost:1234", None, None), "--coordinator=localhost:1234 needs --num_processes, too"),
        (("localhost:1234", 2, None), "--coordinator=localhost:1234 needs --process_id, too"),
        (("localhost:1234", 2, 2), "--process_id=2 with --num_processes=2: they count from 0 to 1"),
        (("localhost:1234", 2, -1), "--process_id=-1 with"),
        (("localhost:1234", 0, 0), "--num_processes=0: at least 1"),
        (("localhost", 2, 0), "--coordinator=localhost: write HOST:PORT"),
        (("", 2, 0), "--coordinator=: write HOST:PORT"),
        ((":1234", 2, 0), "--coordinator=:1234: write HOST:PORT"),
        (("localhost:http", 2, 0), "--coordinator=localhost:http: write HOST:PORT"),
        (("localhost:70000", 2, 0), "--coordinator=localhost:70000: write HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(ValueError) as caught:
        processes.check(*flags)
    assert str(caught.value).startswith(message)


def test_flags_that_fit():
    assert processes.check(None, None, None) is None
    assert processes.check("node-3:1234", 2, 1) == ("node-3", 1234)
    assert processes.check("[::1]:1234", 1, 0) == ("::1", 1234)


def test_a_coordinator_that_does_not_resolve(commands, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--coordinator=no.such:1234: the host is not known \("):
        processes.Processes(("no.such", 1234), 2, 0, patience=0)
    done = commands.fork(f"--config={runs.TINY}", f"--workdir={tmp_path}", "--num_processes=2")
    assert done.returncode == 2
    assert done.err.startswith("jaxcls: --num_processes=2 needs --coordinator")
    assert done.err.count("\n") == 1


def test_a_name_that_is_known_later_is_waited_for(monkeypatch, capfd):
    answers = iter([OSError("not yet")] * 3 + [[]])

    def look(*address):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(processes.socket, "getaddrinfo", look)
    monkeypatch.setattr(processes, "SAID", 0.3)
    here = object.__new__(processes.Processes)
    here._address, here._number, here._where = ("pod-0", 1234), 1, "pod-0:1234"
    here._until = time.monotonic() + 900  # --wait=900
    here._resolve()
    assert next(answers, None) is None
    assert capfd.readouterr().err == "jaxcls: process 1 waits for the name at pod-0:1234\n"


def test_slurm_is_detected(monkeypatch):
    with pytest.raises(ValueError, match="--distributed: JAX finds no cluster here"):
        processes.detect()
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node[3-4]", "NTASKS": "2", "PROCID": "1"}
    for name, value in (slurm | {"LOCALID": "0"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (host, port), *rest = processes.detect()
    assert (host, rest) == ("node3", [2, 1, [0]])
    assert port > 1024


@pytest.mark.parametrize(
    ("more", "devices"),
    [
        ({}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, [1]),  # all GPUs of the node
        ({"CUDA_VISIBLE_DEVICES": "1"}, None),  # the one that Slurm has bound to it
        ({"SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "2,3"}, None),
        ({"SLURM_STEP_NUM_NODES": "4", "SLURM_NTASKS": "4"}, None),  # one process a node
    ],
    ids=str,
)
def test_the_gpus_of_a_process_of_slurm(monkeypatch, more, devices):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "n[1-2]", "NTASKS": "4", "PROCID": "1", "LOCALID": "1"}
    slurm = {f"SLURM_{name}": value for name, value in slurm.items()}
    for name, value in (slurm | {"SLURM_STEP_NUM_NODES": "2"} | more).items():
        monkeypatch.setenv(name, value)
    assert processes.detect()[3] == devices


def test_the_others_are_waited_for_until_they_have_compiled(monkeypatch):
    calls = []

    class Program:
        def lower(self, x):
            return self

        def compile(self):
            calls.append("compile")

        def __call__(self, x):
            calls.append("compute")
            return x + 1

    class Client:
        def wait_at_barrier(self, name, milliseconds):
            calls.append(name)

    assert barrier.when_compiled(f := Program()) is f
    monkeypatch.setattr(barrier.distributed.global_state, "client", Client())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    first, second = barrier.when_compiled(Program()), barrier.when_compiled(Program())
    assert [first(1), first(2), second(3)] == [2, 3, 4]
    assert calls[1] != calls[5]  # a barrier has a name of its own
    waited = ["compile", calls[1], "compute", "compute", "compile", calls[5], "compute"]
    assert calls == waited


LOCKING = """
import sys
from jaxcls import directory
from jaxcls.command import complain
from jaxcls.processes import Processes
directory.SEEN = 1.0
here = Processes(("127.0.0.1", int(sys.argv[2])), 2, int(sys.argv[1]))
try:
    with directory.lock(sys.argv[3]):
        code = 0
except ValueError as e:
    code = complain(e)
sys.exit(here.leave(code))
"""


@pytest.mark.ci
def test_a_working_directory_that_one_process_does_not_see(tmp_path):
    for folders, code in ((("a", "b"), 2), (("a", "a"), 0)):
        port = str(runs.free_port())
        started = [
            subprocess.Popen(
                [sys.executable, "-c", LOCKING, str(i), port, str(tmp_path / folder)],
                env=RUN.environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
            for i, folder in enumerate(folders)
        ]
        said = [process.communicate(timeout=runs.PATIENCE)[1] for process in started]
        assert [process.returncode for process in started] == [code] * 2
        text = "process 1 of 2 cannot see what process 0 writes there: give a folder that all "
        assert [text in each for each in said] == [bool(code)] * 2


@pytest.mark.ci
def test_a_process_that_is_killed_in_mid_training(commands, tmp_path):
    shared = (
        f"--config={runs.TINY}:plain",
        f"--workdir={tmp_path}",
        "--config.mesh.data=-1",
        "--config.duration=100000 steps",
        "--num_processes=2",
    )
    for victim in (1, 0):
        port = runs.free_port()
        flags = [(*shared, f"--coordinator=127.0.0.1:{port}", f"--process_id={i}") for i in (0, 1)]
        before = runs.logged(tmp_path)
        with commands.started(*flags[0]) as zero, commands.started(*flags[1]) as one:
            runs.wait_until(lambda: runs.logged(tmp_path) >= before + 10, zero)  # noqa: B023
            (zero, one)[victim].send_signal(signal.SIGKILL)
            survivor = runs.finish((one, zero)[victim])
            assert survivor.returncode == 75
            step = runs.checkpoints(tmp_path)[-1]
            assert survivor.err == (
                f"jaxcls: process {victim} of 2 was lost (killed, out of memory, or its machine "
                f"is gone); the same command resumes from step {step}\n"
            )


@pytest.mark.ci
def test_a_save_that_fails_in_one_process_ends_all(commands, tmp_path):
    shared = (
        f"--config={runs.TINY}:plain",
        f"--workdir={tmp_path}",
        "--config.mesh.data=-1",
        "--config.duration=100000 steps",
        f"--coordinator=127.0.0.1:{runs.free_port()}",
        "--num_processes=2",
    )
    peers = [(*shared, f"--process_id={i}") for i in range(2)]
    with commands.started(*peers[0]) as zero, commands.started(*peers[1]) as one:
        runs.wait_until(lambda: runs.checkpoints(tmp_path), zero)
        resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # bytes: a full disk
        assert (runs.finish(one).returncode, runs.finish(zero).returncode) == (2, 2)
    step = runs.checkpoints(tmp_path)[-1]
    folder = tmp_path / "checkpoints"
    failed = rf"jaxcls: the checkpoint of step \d+ could not be written to {folder}: File too large"
    assert re.fullmatch(f"{failed}; the one of step {step} is intact\n", one.err)
    ended = "process 1 of 2 has ended with exit code 2, its own message says why"
    assert zero.err == f"jaxcls: {ended}; the same command resumes from step {step}\n"

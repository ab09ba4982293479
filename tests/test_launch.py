"""The launchers: signals reach every process once, a killed launcher stops all, mistakes once."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import yaml

from jaxcls import processes

LAUNCH = Path(__file__).parents[1] / "launch"

# In the place of jaxcls.main: prints what happens to it.
COMMAND = """
import os, signal, sys, time

if __name__ == "__main__":
    numbers = [a.partition("=")[2] for a in sys.argv if a.startswith("--process_id=")]
    number = int(*numbers)

    def say(text, file=1):
        os.write(file, f"{number} {text}\\n".encode())  # whole lines

    def stop(received, frame):
        say(f"saved {int(received)}")
        time.sleep(0.5)  # where a second signal would be seen
        sys.exit(128 + received)

    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, stop)
    if "--all" in sys.argv or f"--one={number}" in sys.argv:
        sys.exit(print("jaxcls: it is wrong", file=sys.stderr) or 2)
    say("warns", 2)
    if "--flood" in sys.argv and number:
        time.sleep(1)  # until nobody listens
        for _ in range(3):
            say("x" * 200_000, 2)
    say("ready")
    if any(a.startswith("--one") for a in sys.argv):
        time.sleep(3)
        sys.exit(print("jaxcls: process 1 has ended", file=sys.stderr) or 2)
    time.sleep(300)
"""


@pytest.fixture
def launched(tmp_path):
    (tmp_path / "jaxcls").mkdir()
    (tmp_path / "jaxcls" / "__init__.py").touch()
    (tmp_path / "jaxcls" / "main.py").write_text(COMMAND)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    processes = []

    def launch(*arguments):
        processes.append(
            subprocess.Popen(
                [LAUNCH / "local.sh", *map(str, arguments)],
                env=os.environ | {"PATH": path},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "kill -9"])
def test_every_process_saves_once_when_the_launcher_is_stopped(launched, count, how):
    process = launched(count, "--workdir=x")
    ready = {process.stdout.readline() for _ in range(count)}
    assert ready == {f"{i} ready\n" for i in range(count)}
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    out, err = process.communicate(timeout=runs.PATIENCE)  # to the end of the last process
    received = signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM
    assert sorted(out.splitlines()) == [f"{i} saved {received:d}" for i in range(count)]
    assert process.returncode == (-9 if how == "kill -9" else 128 + received)
    assert "Traceback" not in err


def test_a_mistake_is_said_once(launched):
    process = launched(3, "--all")
    assert process.communicate(timeout=runs.PATIENCE) == ("", "jaxcls: it is wrong\n")
    assert process.returncode == 2
    process = launched(2, "--one=1")
    out, err = process.communicate(timeout=runs.PATIENCE)
    assert (out, process.returncode) == ("0 ready\n", 2)
    lines = ["0 warns", "jaxcls: it is wrong", "jaxcls: process 1 has ended"]
    assert sorted(err.splitlines()) == lines


def test_nobody_listens_any_more(launched):
    process = launched(2, "--flood")
    assert {process.stderr.readline() for _ in range(2)} == {"0 warns\n", "1 warns\n"}
    process.stderr.close()
    assert {process.stdout.readline() for _ in range(2)} == {"0 ready\n", "1 ready\n"}


@pytest.mark.parametrize("arguments", [(), ("--config=x",), (0,), (-1,)])
def test_usage(launched, arguments):
    process = launched(*arguments)
    out, err = process.communicate(timeout=runs.PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("usage: launch/local.sh PROCESSES --config=FILE")


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_the_shell_reads_the_scripts(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_the_pods_of_kubernetes_find_process_0():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    host, port = processes.check(flags["coordinator"], int(flags["num_processes"]), 0)
    assert (host, int(flags["num_processes"])) == (
        f"{name}-0.{pod['subdomain']}",
        job["spec"]["completions"],
    )
    assert port == 1234
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy needs


@pytest.mark.ci
def test_a_killed_launcher_leaves_a_checkpoint(tmp_path):
    command = [
        *(sys.executable, LAUNCH / "local.py", "2", f"--config={runs.TINY}:plain"),
        f"--workdir={tmp_path}",
        *("--config.mesh.data=-1", "--config.duration=100000 steps", "--config.loader.workers=1"),
        *("--config.data.cache=none", "--config.checkpoint.every=100000 steps"),
    ]
    with subprocess.Popen(
        command,
        env=runs.Commands(tmp_path).environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            runs.wait_until(lambda: runs.logged(tmp_path) >= 5, process)
        finally:
            process.kill()
        out, err = process.communicate(timeout=runs.PATIENCE)
    assert "and saved" in out, err
    assert f"stopped at step {runs.checkpoints(tmp_path)[-1]} of" in out

"""Several processes on this machine: launch/local.sh PROCESSES --config=FILE --workdir=DIR ...

PROCESSES is a number, or `gpus`: one for each GPU. With GPUs, process i gets the i-th one. Ctrl-C
and SIGTERM are handed on once, and the exit code is that of the first process that failed. If this
process is killed, they save and stop.
"""

import contextlib
import itertools
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

USAGE = (
    "usage: launch/local.sh PROCESSES --config=FILE --workdir=DIR ... (PROCESSES: their number, or "
    "gpus: one for each GPU)"
)
GOOD = (0, 129, 130, 143)  # exit codes after which the others end in peace
PATIENCE = 10.0  # seconds for the others when one process has failed
SAME = 2.0  # seconds for process 0 to make the same mistake as another


def main(argv: list[str]) -> int:
    devices = gpus()
    wanted = argv[1] if len(argv) > 1 else ""
    if wanted == "gpus" and not devices:
        return mistake(
            "there is no GPU here (nvidia-smi names none, or JAX_PLATFORMS or CUDA_VISIBLE_DEVICES "
            "leaves none)"
        )
    wanted = str(len(devices)) if wanted == "gpus" else wanted
    if not wanted.isdigit() or not 1 <= int(wanted) <= 1024:
        print(USAGE, file=sys.stderr)
        return 2
    count, arguments = int(wanted), argv[2:]
    if devices and count > len(devices):
        return mistake(f"{count} processes, but {len(devices)} GPU(s)")
    if count > 1:
        port = os.environ.get("PORT") or "0"
        if not port.isdecimal() or int(port) > 65535:
            return mistake(f"PORT={port}: write the number of a free port, or leave it out")
        port = int(port) or free_port()
        arguments += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    processes, received, said = [], [], set()
    hand_on(processes, received)
    for i in range(count):
        if received:
            break
        environment = dict(os.environ)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[i]
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    "--",
                    str(i),
                    *arguments,
                    *[f"--process_id={i}"] * (count > 1),
                ],
                env=environment,
                stdin=subprocess.PIPE,  # closes when this process ends, however it does
                stderr=subprocess.PIPE if i else None,
                start_new_session=True,  # the terminal's Ctrl-C comes here alone
            )
        )
    relays = [
        threading.Thread(target=relay, args=(process.stderr, processes[0], said), daemon=True)
        for process in processes[1:]
    ]
    for thread in relays:
        thread.start()
    code = wait(processes)
    for thread in relays:
        thread.join(PATIENCE)
    return code


def gpus() -> list[str]:
    """Returns what CUDA_VISIBLE_DEVICES may be set to, for each GPU that JAX would take."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if shutil.which("nvidia-smi") is None or (platforms and not re.search("cuda|gpu", platforms)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # "" hides all, -1 those from there on
        names = [name.strip() for name in visible.split(",")]
        return list(itertools.takewhile(lambda name: name not in {"", "-1"}, names))
    found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    listed = [line for line in found.stdout.splitlines() if line.startswith("GPU ")]  # no errors
    return [str(i) for i, _ in enumerate(listed)]


def mistake(text: str) -> int:
    """Says what is wrong with the command; returns the exit code."""
    print(f"local.sh: {text}", file=sys.stderr)
    return 2


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def hand_on(processes: list[subprocess.Popen], received: list[int]) -> None:
    def send(number, frame):
        received.append(number)
        for process in processes:
            with contextlib.suppress(OSError, ValueError):  # Windows hands on nothing
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, send)


def relay(stream, first: subprocess.Popen, said: set[str]) -> None:
    """Shows what a process says, but for mistakes that process 0 makes and tells, too."""
    for line in stream:
        text = line.decode(errors="replace")
        if text.startswith("jaxcls: "):
            until = time.monotonic() + SAME
            while first.returncode is None and time.monotonic() < until:
                time.sleep(0.05)
            if text in said or ((first.returncode or 0) > 0 and first.returncode not in GOOD):
                continue
            said.add(text)
        with contextlib.suppress(OSError):  # nobody may be listening any more
            sys.stderr.write(text)
            sys.stderr.flush()


def exit_code(process: subprocess.Popen) -> int:
    """Returns it as a shell does; 0 as long as the process runs."""
    code = process.returncode or 0
    return 128 - code if code < 0 else code


def wait(processes: list[subprocess.Popen]) -> int:
    """Returns the exit code of the first process that fails, when all have ended."""
    code, until = 0, None
    while True:
        running = [process for process in processes if process.poll() is None]
        code = code or next(filter(None, map(exit_code, processes)), 0)
        if not running:
            return code
        if code not in GOOD:
            until = until or time.monotonic() + PATIENCE
            if time.monotonic() > until:
                for process in running:
                    process.kill()
        time.sleep(0.05)


def child(relayed: bool, arguments: list[str]) -> None:
    """Runs the command; when the launcher is gone, it is asked to save and stop.

    Args:
      relayed: its stderr goes through the launcher.
      arguments: of the command.
    """

    def follow():
        pipe = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with contextlib.suppress(OSError):
            while os.read(pipe, 1):
                pass
        if relayed:
            os.dup2(1, 2)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command takes it
    threading.Thread(target=follow, daemon=True).start()
    sys.path[0] = os.getcwd()  # as python -m does
    sys.argv = ["jaxcls.main", *arguments]
    runpy.run_module("jaxcls.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        child(sys.argv[2] != "0", sys.argv[3:])
    else:
        sys.exit(main(sys.argv))

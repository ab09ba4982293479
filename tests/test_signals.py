"""Ctrl-C, SIGTERM, SIGHUP: at once before there is anything to save, remembered after that."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import runs

from jaxcls import signals

COMMAND = """
import sys, time
from jaxcls import signals

signals.watch()
signals.before_exit.append(lambda: open(sys.argv[1], "w").close())
with signals.watched(1) as stop:
    if sys.argv[2] == "later":
        stop.save_first()
    print("ready", flush=True)
    while not stop.received or sys.argv[3] == "stays":
        time.sleep(0.01)
    print("saved", flush=True)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def started(tmp_path):
    processes = []
    # under nohup it would be ignored here, and so in what is started
    before = signals.HANGUP and signal.signal(signals.HANGUP, signal.SIG_DFL)

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(tmp_path / "undone"), *arguments],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        late = threading.Timer(60, process.kill)  # so that no line is waited for in vain
        late.start()
        processes.append((process, late))
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    if signals.HANGUP:
        signal.signal(signals.HANGUP, before)
    for process, late in processes:
        late.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_with_nothing_to_save_it_ends_at_once(started, tmp_path, number):
    process = started("now", "")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"{signals.NAMES[number]}: stopped, with nothing to save yet\n"
    assert (tmp_path / "undone").exists()


def test_the_first_one_saves_and_the_second_one_does_not(started):
    process = started("later", "stays")
    process.send_signal(signal.SIGINT)
    told = process.stderr.readline()
    assert told == "Ctrl-C: saving after this step, then leaving; once more leaves at once\n"
    time.sleep(2 * signals.ECHO)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err == "SIGTERM again: left at once, without saving\n"


@pytest.mark.skipif(not signals.HANGUP, reason="this system has no SIGHUP")
def test_nohup(started):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started("later", "stays")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2 * signals.ECHO)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("SIGTERM: saving")


def test_after_the_end_the_first_one_is_too_late(started, tmp_path):
    process = started("later", "")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    assert process.stdout.readline() == "ready\n"
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert not (tmp_path / "undone").exists()


# Ctrl-C comes in the middle of an import, which then goes on for long.
IMPORTING = """
import os, runpy, signal, sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == slow:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
_, slow, command, *arguments = sys.argv
sys.argv = [command, *arguments]
runpy.run_module(command, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        *(("main", "absl"), ("main", "jax"), ("main", "jaxcls.train")),
        *(("plan", "jax"), ("plan", "jaxcls.program"), ("convert", "jaxcls.convert.fetch")),
    ],
)
def test_a_command_ends_from_its_first_line_on(command, module, tmp_path):
    where = {"main": f"--workdir={tmp_path / 'run'}", "plan": "--devices=cpu:2"}.get(command, "")
    done = subprocess.run(
        [
            *(sys.executable, "-c", IMPORTING, module, f"jaxcls.{command}"),
            *(f"--config={runs.TINY}", where),
        ],
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "")
    nothing = ", with nothing to save yet" if command == "main" else ""
    assert done.stderr == f"Ctrl-C: stopped{nothing}\n"
    assert not (tmp_path / "run").exists()


def test_outside_a_command_handlers_are_put_back(capfd):
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    with signals.watched(1) as stop:
        assert stop.received == 0
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM  # nobody has to wait for a thread
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before

"""No reason to stop: closed streams, readers that have gone, encodings."""

import os
import subprocess
import sys

import pytest
import runs

COMMAND = """
import contextlib, os, sys
from jaxcls import output

output.prepare()
with open(sys.argv[1], "w") as file:  # must not take the place of a stream
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.write(number, b"C code\\n")
    if sys.argv[2:]:
        output.outlive_readers()
    for i in range(3):
        print("\\u65e5", i, flush=True)
        print("\\u65e5", i, file=sys.stderr, flush=True)
    file.write(f"{sys.stdout.isatty()} {sys.stderr.isatty()} {sys.stdin.read()!r}")
"""


def run(path, redirections, *arguments, encoding="utf-8"):
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "", sys.executable, "-c", COMMAND, path, *arguments],
        env={**os.environ, "PYTHONPATH": str(runs.ROOT), "PYTHONIOENCODING": encoding},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    assert run(tmp_path / "file", closed).returncode == 0
    assert (tmp_path / "file").read_text() == "False False ''"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_what_cannot_be_printed_stops_nothing_and_is_told_once(tmp_path):
    done = run(tmp_path / "file", "> /dev/full", "outlive")
    assert done.returncode == 0
    told = "jaxcls: nothing can be printed any more (No space left on device): the run goes on"
    lines = done.stderr.decode().splitlines()
    assert lines == ["C code", told, "日 0", "日 1", "日 2"]
    assert run(tmp_path / "file", "> /dev/full 2>&1", "outlive").returncode == 0
    assert run(tmp_path / "file", "> /dev/full").returncode != 0


def test_an_encoding_without_a_character(tmp_path):
    done = run(tmp_path / "file", "", encoding="ascii")
    assert done.stdout == b"C code\n\\u65e5 0\n\\u65e5 1\n\\u65e5 2\n"


@pytest.mark.ci
def test_a_run_outlives_its_reader(commands, tmp_path):
    with commands.started(f"--config={runs.TINY}", f"--workdir={tmp_path / 'run'}") as process:
        assert process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert err == "jaxcls: nothing can be printed any more (Broken pipe): the run goes on\n"
    assert runs.summary(tmp_path / "run")["complete"]

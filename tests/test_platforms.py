"""macOS and Windows: what these systems lack is not needed, and pip finds all packages for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs

ROOT = Path(__file__).parents[1]

# On Windows these are absent; array_record has no wheels for it. Python's own modules keep theirs.
WITHOUT = """
import asyncio, multiprocessing.popen_spawn_posix, os, platform, runpy, signal, sys

if __name__ == "__main__":
    import orbax.checkpoint

for name in ("fcntl", "array_record", "resource", "pwd", "grp", "termios"):
    assert not any(m == "jaxcls" for m in sys.modules)
    sys.modules[name] = None
for name in ("fork", "sched_getaffinity", "getpgid", "killpg", "setsid", "geteuid", "getuid"):
    delattr(os, name)
del signal.pthread_sigmask, signal.SIGHUP

if __name__ == "__main__":
    system, platform.system = platform.system, lambda: "Windows"
    import grain  # asks for the system before it imports array_record

    platform.system = system
    runpy.run_module("jaxcls.main", run_name="__main__")
"""


@pytest.fixture
def without(tmp_path):
    script = tmp_path / "without.py"
    script.write_text(WITHOUT)
    environment = runs.Commands(tmp_path).environment()

    def run(*arguments):
        return subprocess.run(
            [sys.executable, script, *arguments], env=environment, capture_output=True, text=True
        )

    return run


@pytest.mark.ci
def test_a_run_needs_nothing_that_windows_lacks(without, tmp_path):
    workdir = tmp_path / "run"
    command = (f"--config={runs.TINY}:plain", f"--workdir={workdir}")
    short = ("--config.duration=6 steps", "--config.data.cache=none", "--config.loader.workers=1")
    done = without(*command, *short)
    assert done.returncode == 0, done.stderr
    assert runs.checkpoints(workdir)[-1] == 6
    assert runs.summary(workdir)["complete"]


@pytest.mark.ci
@pytest.mark.parametrize("platform", ["windows", "aarch64-apple-darwin", "linux"])
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_pip_finds_all_packages(platform, python, tmp_path):
    """Wheels for all but `promise`, which is of pure Python; asks the package index."""
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", ROOT / "pyproject.toml", "--quiet"),
            *("--python-platform", platform, "--python-version", python),
            *("--only-binary", ":all:", "--no-binary", "promise", "--no-annotate", "--no-header"),
            *("--cache-dir", tmp_path),
        ],
        env=os.environ | ({"UV_DEFAULT_INDEX": index} if index else {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = {line.partition("==")[0] for line in done.stdout.splitlines()}
    assert {"jax", "flax", "grain", "filelock", "tensorflow-datasets", "simplejpeg"} <= names
    assert ("array-record" in names) == (platform != "windows")

"""What tests share: eight virtual CPU devices, set before JAX is imported, and compiled programs.

A test is in one of three tiers, by its marker:
- none, what `pytest` runs: messages, formulas, a small network of each family, one run that is
  killed and goes on; a few minutes on two cores.
- `ci`, with the default what decides whether a change lands (`.ci/run`): `pytest -m "not zoo"`.
- `zoo`, every name of the zoo and every family in every way: `pytest -m zoo`, or `--zoo-share=K/N`
  of it.

Programs are compiled once for all workers and processes, and kept in `.pytest_cache` for the next
time (`pytest --cache-clear` removes them), or where JAX_COMPILATION_CACHE_DIR says.
"""

import logging
import os
import re
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def share(text: str) -> tuple[int, int]:
    """Returns (K, N) of "K/N"."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise pytest.UsageError(f"--zoo-share={text}: write K/N, K from 0 to N - 1")
    return int(found[1]), int(found[2])


def pytest_addoption(parser):
    parser.addoption("--zoo-share", default="0/1", help="K/N: one of N shares of the tier `zoo`")


def pytest_configure(config):
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("xla")))


def pytest_collection_modifyitems(config, items):
    k, n = share(config.getoption("zoo_share"))
    mine = lambda item: (
        not item.get_closest_marker("zoo") or zlib.crc32(item.nodeid.encode()) % n == k
    )
    config.hook.pytest_deselected(items=[item for item in items if not mine(item)])
    items[:] = filter(mine, items)


@pytest.fixture
def caplog(caplog, monkeypatch):
    """pytest's, also after a run whose console has taken over what the input warns of."""
    monkeypatch.setattr(logging.getLogger("jaxcls.data"), "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """Runs of the real command."""
    import runs

    commands = runs.Commands(tmp_path_factory.getbasetemp())
    yield commands
    commands.close()

"""Weights by name, paddleclas:ResNet50_vd or timm:resnet50d.ra2_in1k: where they lie.

`python -m jaxcls.convert --fetch NAME` downloads and converts them. That runs as another program,
once: the converter is for entry points alone, and a device that this process holds is not needed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from jaxcls import files

ORIGINS = ("paddleclas", "timm")
NAMED = re.compile(rf"({'|'.join(ORIGINS)}):([A-Za-z0-9_][A-Za-z0-9_.-]*)")


def split(path: str | os.PathLike) -> tuple[str, str] | None:
    """Returns where weights are from and their name there; None for what is a path.

    Raises:
      ValueError: it begins like a name, and is none.
    """
    text = os.fspath(path)
    if not text.startswith(tuple(f"{origin}:" for origin in ORIGINS)):
        return None
    if not (found := NAMED.fullmatch(text)):
        raise ValueError(f"{text!r} is no name of weights: write paddleclas:NAME or timm:NAME")
    return found[1], found[2]


def folder(path: str | os.PathLike) -> Path:
    """Returns where the checkpoint of a name is, or will be.

    Raises:
      ValueError: it is no name, or there is no place for a cache.
    """
    if (found := split(path)) is None:
        raise ValueError(f"{os.fspath(path)!r}: write paddleclas:NAME or timm:NAME")
    try:
        caches = files.caches()
    except RuntimeError as e:  # a user without a home, as in containers
        raise ValueError(f"{os.fspath(path)}: there is no home: set XDG_CACHE_HOME") from e
    return caches / "weights" / found[0] / found[1]


def find(path: str | os.PathLike) -> str | os.PathLike:
    """Returns where the weights of a name are, which are fetched if need be; a path as it is.

    Progress is shown on stderr.

    Raises:
      ValueError: they cannot be fetched; the message says why.
    """
    if split(path) is None:
        return path
    place = folder(path)
    if not place.exists():
        _fetch(os.fspath(path))
    return place


def _fetch(name: str) -> None:
    package = os.fspath(Path(__file__).parents[1])
    python_path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "jaxcls.convert", f"--fetch={name}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path},
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__ if _is_open(sys.__stderr__) else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ValueError(last[0].removeprefix("jaxcls: "))


def _is_open(stream: object) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False

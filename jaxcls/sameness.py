"""What a process runs: its code, the packages that compute and its config; how two differ."""

import hashlib
import importlib.metadata
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# of other versions of these the processes could compute something else, or wait for each other
PACKAGES = ("jaxcls", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SHOWN = 3  # differences in a message


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what this process runs, as JSON can hold it.

    Args:
      config: {"section.key": value} and what else the processes must agree on.
    """
    root = Path(__file__).parent
    code = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(root.rglob("*.py"))
        if path.is_file()  # editors leave broken links
    }
    return {
        "host": socket.gethostname(),
        "config": dict(config),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from its folder
        return "not installed"


def difference(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Returns in what two processes differ, as `describe` has it; "" if in nothing.

    Args:
      first, second: what they run; of another version they may lack something.
      names: of the two.
    """
    found = []
    for kind, label in (("config", ""), ("packages", ""), ("code", "jaxcls/")):
        ours, theirs = first.get(kind, {}), second.get(kind, {})
        for key in sorted(ours.keys() | theirs.keys()):
            values = [side.get(key, "not there") for side in (ours, theirs)]
            if values[0] == values[1]:
                continue
            if kind == "code":
                found.append(f"{label}{key} is another file")
            else:
                found.append(
                    f"{key} is {_short(values[0])} on {names[0]}, {_short(values[1])} on {names[1]}"
                )
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."

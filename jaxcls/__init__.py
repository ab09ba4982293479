"""jaxcls: image classifiers on TPUs and GPUs with JAX and Flax."""

import importlib
from typing import Any

__version__ = "0.2.0"
# What is handed on from where it stands, when it is asked for: processes that read images import
# this package without JAX.
LATE = {"load": "jaxcls.predictor"}


def __getattr__(name: str) -> Any:
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LATE[name]), name)

"""Where the processes of a run wait for each other before they compute together.

On CPUs Gloo opens connections when a program first needs them, and gives up after 30 seconds
without the others, which may still be reading data or compiling. Later they wait without end.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

PATIENCE = 24 * 3600.0  # seconds; a process that ends is noticed otherwise (jaxcls.processes)

_names = (f"jaxcls {number}" for number in itertools.count())
_questions, _preempted = itertools.count(), False


def wait() -> None:
    """Returns when all processes have called this equally often."""
    if distributed.global_state.client is not None:
        distributed.global_state.client.wait_at_barrier(next(_names), int(1e3 * PATIENCE))


def reached_preemption() -> bool:
    """Returns whether all processes are to save and leave, since one has received SIGTERM.

    All ask equally often, and JAX has them agree on the first question that is answered with True.
    """
    global _preempted
    if not _preempted:
        _preempted = multihost_utils.reached_preemption_sync_point(next(_questions))
    return _preempted


def when_compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the jitted `f`, whose first call computes when all processes have compiled it."""
    if jax.process_count() == 1:
        return f
    waited = False

    @functools.wraps(f)
    def call(*arguments):
        nonlocal waited
        if not waited:
            f.lower(*arguments).compile()  # which the call finds
            wait()
            waited = True
        return f(*arguments)

    return call

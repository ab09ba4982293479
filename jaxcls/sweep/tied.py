"""python -m jaxcls.sweep.tied CORES ARGUMENTS: jaxcls.main that saves and leaves with its sweep.

The sweep holds the other end of stdin: however it ends, also by kill -9, this process gets the
SIGTERM of `jaxcls.signals`. CORES are the processor cores to use, "0,1", or "" for all.
"""

import os
import runpy
import signal
import sys
import threading


def _leave_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Runs jaxcls.main with the arguments that are left."""
    cores = sys.argv.pop(1)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.argv[0] = "jaxcls.main"
    runpy.run_module("jaxcls.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

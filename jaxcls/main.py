"""python -m jaxcls.main --config=FILE[:ARG] --workdir=DIR [--mode=train|eval] [--config.KEY=VALUE]

Trains a classifier, or evaluates one. The same command resumes a run that was interrupted; of a run
that was begun --workdir=DIR is enough, for both modes: DIR/config.json has its config.
Exit codes: 0 complete; 2 a mistake in command, config or data, or a full disk; 1 training stopped
because its numbers were not finite, or another process of the run was lost; 143, 130 and 129 saved
and stopped on SIGTERM, on Ctrl-C and on SIGHUP (the terminal was closed).
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxcls import output, signals

if __name__ == "__main__":  # before the imports that take a while
    output.prepare()
    signals.watch()

from absl import app, flags, logging

from jaxcls import processes
from jaxcls.command import complain, define_config, exit_with, heal_cache, parse

FLAGS = flags.FLAGS
STATUS = re.compile(r"[A-Z_]+: ")  # begins XLA's errors; one of a collective may be a ValueError


def define_flags() -> None:
    """Declares the command's flags."""
    app.define_help_flags()
    define_config(FLAGS)
    flags.DEFINE_string("workdir", None, "directory of the run: checkpoints, logs, summary")
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "train, or evaluate a checkpoint")
    flags.DEFINE_bool(
        "distributed", False, "one of several processes (TPU pod, Slurm: found by JAX)"
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where JAX cannot find it")
    flags.DEFINE_integer("num_processes", None, "number of processes, with --coordinator")
    flags.DEFINE_integer("process_id", None, "number of this process, with --coordinator")


def meet() -> processes.Processes | None:
    """Connects the processes of a run; returns None if it is one alone."""
    flags = FLAGS.num_processes, FLAGS.process_id
    address, devices = processes.check(FLAGS.coordinator, *flags), None
    if address is None:
        if not FLAGS.distributed:
            return None
        address, *flags, devices = processes.detect()
    training = FLAGS.mode == "train"
    resume = (lambda: processes.how_to_resume(FLAGS.workdir)) if training else (lambda: "")
    return processes.Processes(address, *flags, devices, resume=resume)


def start_jax() -> None:
    """Turns on the persistent compilation cache."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR has its say
        with contextlib.suppress(RuntimeError):  # a user without a home, as in containers
            caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            jax.config.update("jax_compilation_cache_dir", str(caches / "jaxcls" / "xla"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    heal_cache()


def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code; a user's mistake is one line on stderr."""
    try:
        parse(argv, FLAGS, required=("workdir",))
        logging.set_verbosity(logging.WARNING)
        if FLAGS.mode == "train":
            output.outlive_readers()
        if sys.stderr.isatty():
            print("starting JAX ...", end="", file=sys.stderr, flush=True)
        together = meet()
    except ValueError as e:
        return complain(e)
    if together is None:
        return _main()
    try:
        code = _main(together.await_verdict)
    except Exception as e:
        if isinstance(e, RuntimeError):  # of a collective, when another process was lost
            together.await_verdict()
        traceback.print_exc()
        code = 1
    return together.leave(code)


def _main(await_verdict: Callable[[], None] = lambda: None) -> int:
    try:
        start_jax()
        from jaxcls import evaluate, train  # only now: --help and a misspelt flag need no JAX

        command = {"train": train.run, "eval": evaluate.run}[FLAGS.mode]
        return command(FLAGS.config, FLAGS.workdir)
    except (ValueError, MemoryError) as e:
        if STATUS.match(str(e)):
            await_verdict()
        return complain(e)
    except BrokenPipeError:
        raise  # whoever read what is printed has gone: `exit_with` knows
    except OSError as e:  # of the system: storage, permissions, limits
        if e.errno is None:
            raise
        return complain(OSError(f"{e.filename or FLAGS.workdir}: {e.strerror}"))
    except KeyboardInterrupt:
        return 130
    except FloatingPointError as e:
        print(f"jaxcls: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    define_flags()
    exit_with(main)

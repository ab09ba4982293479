"""python -m jaxcls.main --config=FILE[:ARG] --workdir=DIR [--mode=train|eval] [--config.KEY=VALUE]

Trains a classifier, or evaluates one. The same command resumes a run that was interrupted.
Exit codes: 0 complete; 2 a mistake in command, config or data, or a full disk; 1 training stopped
because its numbers were not finite; 143 and 130 saved and stopped on SIGTERM and on Ctrl-C.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from jaxcls.config import closest, flatten

FLAGS = flags.FLAGS
USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def define_flags() -> None:
    """Declares the command's flags."""
    app.define_help_flags()
    config_flags.DEFINE_config_file("config", None, "config file, FILE or FILE:ARG")
    flags.DEFINE_string("workdir", None, "directory of the run: checkpoints, logs, summary")
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "train, or evaluate a checkpoint")
    flags.DEFINE_bool(
        "distributed", False, "one of several processes (TPU pod, Slurm: found by JAX)"
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where JAX cannot find it")
    flags.DEFINE_integer("num_processes", None, "number of processes, with --coordinator")
    flags.DEFINE_integer("process_id", None, "number of this process, with --coordinator")


def parse(
    argv: Sequence[str],
    values: flags.FlagValues = FLAGS,
    required: Sequence[str] = ("config", "workdir"),
) -> None:
    """Parses the command line into `values` and reads the config file.

    Raises:
      ValueError: one line about what is wrong with it.
    """
    try:
        rest = values(argv)[1:]
        for name in required:
            if not values[name].value:
                raise ValueError(f"--{name} is missing; see python -m jaxcls.main --help")
        flatten(values.config)  # a missing config file shows at the first access
    except SystemExit:
        sys.exit(0)  # --help, which absl leaves with 1
    except ValueError:
        raise
    except Exception as e:
        raise ValueError(_explain(argv, values, e)) from e
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}: every option begins with --")


def _explain(argv: Sequence[str], values: flags.FlagValues, error: Exception) -> str:
    """Returns what is wrong with a command line that could not be parsed."""
    path = next((arg.partition("=")[2] for arg in argv if arg.startswith("--config=")), "")
    if path and not Path(path.partition(":")[0]).is_file():
        return f"--config={path}: there is no such config file"
    try:  # the flag has no value where an override failed
        keys = list(flatten(values["config"].parser.parse(path)))
    except Exception:  # there is no readable config
        keys = []
    for arg in argv:
        key = arg.lstrip("-").partition("=")[0].partition("config.")[2]
        if arg.startswith("--config.") and keys and key not in keys:
            return f"there is no config.{key}{closest(key, keys)}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"unknown flag --{error.flagname}{closest(error.flagname, values)}"
    if not isinstance(error, flags.Error):
        return _explain_file(path.partition(":")[0], error)
    # absl quotes the traceback of an error in the config file; its last line says what is wrong
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].partition(": Error whilst parsing")[0]
    return lines[0] if len(lines) == 1 else f"{first}: {lines[-1]}"


def _explain_file(name: str, error: Exception) -> str:
    """Returns where a config file is wrong, and what is."""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [f.lineno for f in frames if Path(f.filename).name == Path(name).name]
    numbers += [error.lineno] if isinstance(error, SyntaxError) else []
    what = str(error.args[0] if error.args else "")
    # ml_collections quotes its message, and adds all names there are and the closest
    if close := re.search('Did you mean "(.*?)" instead of "(.*?)"', what):
        what = f"there is no {close[2]}: did you mean {close[1]}?"
    what = re.split(r" Other fields present|\\n|\n", what)[0].lstrip("'")
    where = f"{name}:{numbers[-1]}" if numbers else name
    return f"--config={where}: {type(error).__name__}: {what}"


def start_jax() -> None:
    """Connects the processes and turns on the persistent compilation cache."""
    import jax

    if FLAGS.distributed or FLAGS.coordinator:
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR has its say
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxcls" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code; a user's mistake is one line on stderr."""
    try:
        parse(argv)
        logging.set_verbosity(logging.WARNING)
        if sys.stderr.isatty():
            print("starting JAX ...", end="", file=sys.stderr, flush=True)
        start_jax()
        from jaxcls import evaluate, train  # only now: --help and a misspelt flag need no JAX

        command = {"train": train.run, "eval": evaluate.run}[FLAGS.mode]
        return command(FLAGS.config, FLAGS.workdir)
    except ValueError as e:
        return complain(e)
    except OSError as e:
        if e.errno in USER_ERRNOS:
            return complain(OSError(f"{e.filename or FLAGS.workdir}: {e.strerror}"))
        raise
    except KeyboardInterrupt:
        return 130
    except FloatingPointError as e:
        print(f"jaxcls: {e}", file=sys.stderr)
        return 1


def complain(error: Exception) -> int:
    """Prints a user's mistake; JAXCLS_DEBUG=1 shows where it was found. Returns 2."""
    if os.environ.get("JAXCLS_DEBUG"):
        raise error
    before = "\r\x1b[K" if sys.stderr.isatty() else ""  # what was shown while waiting
    print(f"{before}jaxcls: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    define_flags()
    sys.exit(main())

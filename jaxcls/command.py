"""What every command shares: flags, --config and --config.KEY, one-line errors, exit codes, JAX."""

import argparse
import contextlib
import errno
import functools
import glob
import json
import logging
import os
import re
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
from absl import flags

from jaxcls import config as configs
from jaxcls import hints, output, processes, signals
from jaxcls.output import one_line
from jaxcls.recipes import of_run, override, read

# what storage over a network says for a while
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH)
STATUS = re.compile(r"[A-Z_]+: ")  # begins XLA's errors; one of a collective may be a ValueError


# what XLA says where a collective or the coordination of processes failed
NETWORK = re.compile(r"(?i)gloo|nccl|^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): ")


def define_config(values: flags.FlagValues) -> None:
    """Declares --config; `parse` sets it to the config itself."""
    flags.disclaim_key_flags()  # it belongs to the command, and to its --help
    flags.DEFINE_string(
        "config",
        None,
        "config file, FILE or FILE:ARG; any key of it: --config.section.key=value",
        flag_values=values,
    )


def define_processes(values: flags.FlagValues) -> None:
    """Declares the flags of several processes, for `together`."""
    several = "one of several processes (TPU pod, Slurm: found by JAX)"
    flags.DEFINE_bool("distributed", False, several, flag_values=values)
    address = "HOST:PORT of process 0, where JAX cannot find it"
    flags.DEFINE_string("coordinator", None, address, flag_values=values)
    for name, what in (("num_processes", "processes"), ("process_id", "this process")):
        text = f"number of {what}, with --coordinator"
        flags.DEFINE_integer(name, None, text, flag_values=values)
    wait = f"seconds until all processes are there; {processes.PATIENCE:g}, or with --distributed "
    wait += f"{processes.CLUSTER_PATIENCE:g}"
    flags.DEFINE_float("wait", None, wait, lower_bound=0, flag_values=values)


def parse(
    argv: Sequence[str],
    values: flags.FlagValues,
    required: Sequence[str] = (),
    help: str = "",
) -> str:
    """Parses the command line into `values`; `values.config` then is the config, with overrides.

    Without --config it is that of the run in --workdir, where there is such a flag.

    Args:
      argv: sys.argv.
      values: of flags that `define_config` and others have declared.
      required: flags that must be given, besides.
      help: what --help prints; "": absl's list of the flags.

    Returns:
      Where the config is from.

    Raises:
      ValueError: one line about what is wrong with it.
      SystemExit: after --help.
    """
    if help and "--help" in argv:
        print(help)
        sys.exit(0)
    try:
        typed = values.read_flags_from_files(list(argv), force_gnu=False)
        argv, files, overrides = _split(typed)
        rest = values(argv)[1:]
    except SystemExit:
        sys.exit(0)  # --help, which absl leaves with 1
    except flags.UnrecognizedFlagError as e:
        raise ValueError(hints.unknown_flag(e.flagvalue, typed, values)) from e
    except flags.IllegalFlagValueError as e:
        raise ValueError(hints.illegal(str(e), values)) from e
    except flags.Error as e:
        raise ValueError(str(e)) from e
    for argument in typed[1:]:  # absl has some that would do nothing here, such as --pdb
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        name = name if name in values else name.removeprefix("no")
        if argument[:1] == "-" and name in values and name not in hints.own_flags(values):
            raise ValueError(hints.unknown_flag(argument, typed, values))
    if rest:
        raise ValueError(hints.unexpected(rest, typed))
    workdir = values["workdir"].value if "workdir" in values else ""
    if workdir:  # a shell leaves --workdir=~/run as it is
        values["workdir"].value = workdir = os.path.expanduser(workdir)
        if "://" in workdir:
            from jaxcls.files import check_place

            check_place(workdir)
    for name in required:
        if not values[name].value:
            raise ValueError(f"--{name} is missing; see --help")
    if len(files) > 1:
        raise ValueError(f"--config is given twice, {files[0]} and {files[1]}: give one file")
    try:
        config, source = (read(files[0]), files[0]) if files else of_run(workdir)
    except OSError as e:  # a name that is too long, a folder that may not be read
        raise ValueError(f"{e.filename}: {e.strerror}") from e
    for key, text in overrides:
        override(config, key, text)
    try:
        config = config.copy_and_resolve_references()  # a reference may compute with an override
    except Exception as e:
        raise ValueError(f"--config={source}: {type(e).__name__}: {one_line(e)}") from e
    configs.check(config)
    values["config"].value = config
    return source


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], list[tuple[str, str | None]]]:
    """Returns the arguments without those of the config, the config files, and the overrides."""
    rest, files, overrides = [], [], []
    arguments = iter(range(len(argv)))
    for i in arguments:
        name, equals, value = argv[i].partition("=")
        flag = name.lstrip("-") if name.startswith("-") and i else ""
        if flag != "config" and not re.match(r"(no)?config\.", flag):
            rest.append(argv[i])
            continue
        if not equals:  # the value stands in the next argument
            value = None
            if i + 1 < len(argv) and (argv[i + 1][:1] != "-" or hints.NUMBER.match(argv[i + 1])):
                value = argv[next(arguments)]
        if flag == "config":
            if not value:
                raise ValueError("--config needs a file: --config=FILE or --config=FILE:ARG")
            files.append(value)
        elif flag.startswith("no"):
            raise ValueError(f"--{flag}: write --{flag[2:]}=False")
        else:
            overrides.append((flag.removeprefix("config."), value))
    return rest, files, overrides


class Arguments(argparse.ArgumentParser):
    """For commands without a config; what is wrong is a ValueError of one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong with the command line."""
        raise ValueError(f"{message}; see {self.prog} --help")


def complain(error: Exception) -> int:
    """Prints a user's mistake; JAXCLS_DEBUG=1 shows where it was found.

    Returns the exit code: 2, or 75 for what may pass, so that it is worth to try again.
    """
    if os.environ.get("JAXCLS_DEBUG"):
        raise error
    before = "\r\x1b[K" if sys.stderr.isatty() else ""  # what was shown while waiting
    print(f"{before}jaxcls: {one_line(error)}", file=sys.stderr)
    return getattr(error, "exit_code", 2)


def told(main: Callable[..., int]) -> Callable[..., int]:
    """Returns a command's `main` that tells errors in one line and returns the exit code for them.

    That is 2 for a user's mistake and what the system refuses, 75 for what may pass, 1 where
    numbers are not finite, and 130 after Ctrl-C. What else is raised is a mistake of ours.
    """

    @functools.wraps(main)
    def run(*arguments: Any) -> int:
        try:
            return main(*arguments)
        except SystemExit as e:  # --help
            return e.code
        except (ValueError, MemoryError) as e:
            return complain(e)
        except BrokenPipeError:
            raise  # whoever read what is printed has gone: `exit_with` knows
        except KeyboardInterrupt:
            return 130
        except FloatingPointError as e:
            complain(e)
            return 1
        except Exception as e:
            from jaxcls import files

            if isinstance(e, OSError) and not files.of_store(e):  # of the system
                if e.errno is None:
                    raise
                complain(OSError(f"{e.filename}: {e.strerror}" if e.filename else e.strerror))
                return signals.AGAIN if e.errno in PASSING else 2
            if files.storage_problem(e) is None:
                raise
            complain(e)
            return signals.AGAIN if files.passes(e) else 2

    return run


def exit_with(main: Callable[[], int]) -> None:
    """Ends the process with the code that `main` returns; 141 if its reader has gone (`| head`)."""
    output.prepare()
    quieten()
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more
        code = 141
    sys.exit(code)


def quieten() -> None:
    """From now on libraries do not say what a user has no use for, or what we say in one line."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no image; damage is an error
    # Of a failed save orbax logs its own tracebacks. Writes that are still under way when it gives
    # up end in asyncio's complaints.
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # guesses, and tracebacks of its errors
    report = sys.unraisablehook

    def without_orphans(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = without_orphans


def start_jax() -> None:
    """Turns on the persistent compilation cache."""
    import jax

    from jaxcls import files

    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR has its say
        with contextlib.suppress(RuntimeError):  # a user without a home, as in containers
            jax.config.update("jax_compilation_cache_dir", str(files.caches() / "xla"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    heal_cache()


def heal_cache() -> None:
    """Lets compiled programs go that cannot be read, as a kill or a full disk leaves them.

    At every start JAX would say so in several lines, compile the program, and keep the entry.
    Removed when it says so, it is written anew. That they cannot be written is told once.
    """
    import jax

    show = warnings.showwarning
    told = False

    def heal(message: Warning | str, *where: Any, **options: Any) -> None:
        nonlocal told
        said = "Error (reading|writing) persistent compilation .*?'(.*?)': (.*)"
        if not (found := re.match(said, str(message), re.DOTALL)):
            return show(message, *where, **options)
        doing, program, why = found.groups()
        folder, removed = Path(jax.config.jax_compilation_cache_dir), False
        for entry in folder.glob(f"{glob.escape(program)}-*-cache"):
            with contextlib.suppress(OSError):
                try:
                    zlib.decompress(entry.read_bytes())
                except zlib.error:  # with the package zstandard JAX packs otherwise: all go
                    entry.unlink()
                    removed = True
        if doing == "writing" and not told:
            told = True
            line = f"compiled programs cannot be kept in {folder} ({output.visible(why)})"
            print(f"jaxcls: {line}: they are compiled anew each time", file=sys.stderr)
        elif doing == "reading" and not removed:
            show(message, *where, **options)

    warnings.showwarning = heal


def together(
    values: flags.FlagValues, run: Callable[[], int], resume: Callable[[], str] = lambda: ""
) -> int:
    """Runs with the other processes, where the flags say that there are any; returns the exit code.

    Args:
      values: of the flags that `define_processes` has declared.
      run: returns the exit code.
      resume: returns what to do when a process was lost.

    Raises:
      ValueError: the processes do not meet.
    """
    numbers = values.num_processes, values.process_id
    address, devices = processes.check(values.coordinator, *numbers), None
    patience = processes.PATIENCE if values.wait is None else values.wait
    if address is None:
        if not values.distributed:
            return run()
        patience = processes.CLUSTER_PATIENCE if values.wait is None else values.wait
        address, *numbers, devices = processes.detect(patience)
    asked = {"--mode": values.mode} if "mode" in values else {}
    flat = configs.flatten(json.loads(values.config.to_json_best_effort()))
    asked |= {f"config.{key}": value for key, value in flat.items()}
    if "workdir" in values and "://" in values.workdir:  # a folder is seen to be shared later
        asked["--workdir"] = values.workdir
    options = {"runs": asked, "resume": resume, "patience": patience}
    here = processes.Processes(address, *numbers, devices, **options)

    def patiently() -> int:
        try:
            return run()
        except Exception as e:
            if isinstance(e, RuntimeError) or STATUS.match(str(e)):  # another one may be lost
                here.await_verdict()
            if NETWORK.search(str(e)):  # nobody is, but they did not hear from each other
                text = f"the processes lost each other: {one_line(e)}; {resume()}"
                raise processes.LostError(text.removesuffix("; ")) from e
            raise

    try:
        code = told(patiently)()
    except Exception:
        traceback.print_exc()
        code = 1
    return here.leave(code)

"""What every command shares: the flags --config and --config.KEY, one-line errors, exit codes."""

import argparse
import contextlib
import glob
import os
import re
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict

from jaxcls import config as configs
from jaxcls import hints, output
from jaxcls.synonyms import SYNONYMS

flags.disclaim_key_flags()  # --config belongs to the command, and to its --help

LONGEST = 4000  # characters of a message


def define_config(values: flags.FlagValues) -> None:
    """Declares --config; `parse` sets it to the config itself."""
    flags.DEFINE_string(
        "config",
        None,
        "config file, FILE or FILE:ARG; any key of it: --config.section.key=value",
        flag_values=values,
    )


def parse(
    argv: Sequence[str],
    values: flags.FlagValues,
    required: Sequence[str] = (),
) -> str:
    """Parses the command line into `values`; `values.config` then is the config, with overrides.

    Without --config it is that of the run in --workdir, where there is such a flag.

    Args:
      argv: sys.argv.
      values: of flags that `define_config` and others have declared.
      required: flags that must be given, besides.

    Returns:
      Where the config is from.

    Raises:
      ValueError: one line about what is wrong with it.
    """
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
    if "workdir" in values and values["workdir"].value:  # a shell leaves --workdir=~/run as it is
        values["workdir"].value = os.path.expanduser(values["workdir"].value)
        if "://" in values["workdir"].value:
            from jaxcls.files import check_place

            check_place(values["workdir"].value)
    for name in required:
        if not values[name].value:
            raise ValueError(f"--{name} is missing; see --help")
    if len(files) > 1:
        raise ValueError(f"--config is given twice, {files[0]} and {files[1]}: give one file")
    try:
        config, source = (read(files[0]), files[0]) if files else _of_run(values)
    except OSError as e:  # a name that is too long, a folder that may not be read
        raise ValueError(f"{e.filename}: {e.strerror}") from e
    for key, text in overrides:
        _override(config, key, text)
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


def read(argument: str) -> ConfigDict:
    """Returns the config of FILE or FILE:ARG, locked; FILE may be a run's config.json too.

    Raises:
      ValueError: there is no such file, or something is wrong with it.
    """
    argument = os.path.expanduser(argument)
    name, colon, arg = argument, "", ""
    if not os.path.exists(argument):
        name, colon, arg = argument.rpartition(":")
        name = name if colon else argument
    path = Path(name)
    if not name or not os.path.exists(name):
        raise ValueError(
            f"--config={argument}: there is no such config file{hints.instead_of(argument)}"
        )
    if path.is_dir() and name:
        there = path / "config.json"
        hint = (
            f"of this run: --config={there}" if there.is_file() else "one such as configs/base.py"
        )
        raise ValueError(f"--config={argument} is a directory: give a file, {hint}")
    if path.suffix == ".json":
        from jaxcls import record

        return record.read(path)
    if path.suffix != ".py":
        raise ValueError(
            f"--config={argument}: a config is a Python file (FILE.py or FILE.py:ARG) or a run's "
            "config.json"
        )
    try:
        get_config = configs.run_file(path).get("get_config")
        if not callable(get_config):
            raise ValueError("it has no function get_config(), which returns the config")
        config = get_config(arg) if colon else get_config()
        if not isinstance(config, ConfigDict):
            raise ValueError(
                f"get_config() returns {configs.short(config)}, not a config: "
                "begin with c = base.get_config(), end with return c"
            )
        config = ConfigDict(config)  # not frozen
        configs.check(config)
    except (Exception, SystemExit) as e:
        raise ValueError(_explain(argument, path, e)) from e
    return config.lock()


def _of_run(values: flags.FlagValues) -> tuple[ConfigDict, str]:
    """Returns the config of the run in --workdir, and its file."""
    if "workdir" not in values or not values["workdir"].value:
        raise ValueError("--config is missing: write --config=FILE; see --help")
    from jaxcls import record

    path = record.find(values["workdir"].value)
    if path is None:
        raise ValueError(
            f"--config is missing, and {values['workdir'].value} is not a run that has "
            "a config.json: write --config=FILE; see --help"
        )
    return record.read(path), str(path)


def _override(config: ConfigDict, key: str, text: str | None) -> None:
    keys, kinds = configs.defaults()
    if key not in keys:
        raise ValueError(hints.no_key(key, text, keys))
    if text is None and kinds[key] is not bool:
        raise ValueError(f"--config.{key} needs a value: --config.{key}=VALUE")
    value = True if text is None else configs.from_text(key, text)
    section, _, name = key.rpartition(".")
    section = config[section] if section else config
    with section.ignore_type():  # a recipe that set None has lost it; `check_value` knows
        section[name] = value


def _explain(argument: str, path: Path, error: BaseException) -> str:
    """Returns where a config file is wrong, and what is."""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [f.lineno for f in frames if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        numbers.append(error.lineno)
    what = one_line(error) if len(error.args) != 1 else " ".join(str(error.args[0]).split())
    what = what or type(error).__name__
    # ml_collections adds all names there are and the closest
    if close := re.search('Did you mean "(.*?)" instead of "(.*?)"', what):
        what = f"there is no {close[2]}: did you mean {close[1]}?"
    elif added := re.search('Key "(.*?)" does not exist and cannot be added', what):
        hint = hints.hint_at(added[1], None).removeprefix("--config.").partition("=")[0]
        what = f"there is no {added[1]}" + (f": did you mean config.{hint}?" if hint else "")
    elif cast := re.search(
        r"override field '(.*?)'.*?\. (.*) is of .*<class '(.*?)'> .*<class '(.*?)'>", what
    ):
        field, value, theirs, ours = cast.groups()
        what = f"{field} = {value}: it is a {theirs}, not a value of type {ours}"
        if ours.endswith("ConfigDict"):
            hint = SYNONYMS.get(field, "").partition("=")[0]
            what = f"{field} = {value}: it is a section: write c.{hint} = {value}"
    what = re.split(r" Other fields present|\\n", what)[0]
    where = f"{path}:{numbers[-1]}" if numbers else argument
    kind = "" if type(error) is ValueError and not numbers else f"{type(error).__name__}: "
    return f"--config={where}: {kind}{what}"


class Arguments(argparse.ArgumentParser):
    """For commands without a config; what is wrong is a ValueError of one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong with the command line."""
        raise ValueError(f"{message}; see {self.prog} --help")


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line of at most `LONGEST` characters."""
    name = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    text = " ".join(str(error).split()) or name
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... (JAXCLS_DEBUG=1 shows all)"


def complain(error: Exception) -> int:
    """Prints a user's mistake; JAXCLS_DEBUG=1 shows where it was found. Returns 2."""
    if os.environ.get("JAXCLS_DEBUG"):
        raise error
    before = "\r\x1b[K" if sys.stderr.isatty() else ""  # what was shown while waiting
    print(f"{before}jaxcls: {one_line(error)}", file=sys.stderr)
    return 2


def heal_cache() -> None:
    """Lets compiled programs go that cannot be read, as a killed process leaves them.

    At every start JAX would say so in several lines, compile the program, and keep the entry.
    Removed when it says so, it is written anew.
    """
    import jax

    show = warnings.showwarning

    def heal(message: Warning | str, *where: Any, **options: Any) -> None:
        removed = False
        if found := re.match("Error reading persistent compilation .*'(.*?)'", str(message)):
            folder = Path(jax.config.jax_compilation_cache_dir)
            for entry in folder.glob(f"{glob.escape(found[1])}-*-cache"):
                with contextlib.suppress(OSError):
                    try:
                        zlib.decompress(entry.read_bytes())
                    except zlib.error:  # with the package zstandard JAX packs otherwise: all go
                        entry.unlink()
                        removed = True
        if not removed:
            show(message, *where, **options)

    warnings.showwarning = heal


def exit_with(main: Callable[[], int]) -> None:
    """Ends the process with the code that `main` returns; 141 if its reader has gone (`| head`).

    130 after Ctrl-C.
    """
    output.prepare()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no image; damage is an error
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more
        code = 141
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)

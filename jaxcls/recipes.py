"""Reads a config, FILE.py or FILE.py:ARG or a run's config.json, and what is to override it."""

import os
import re
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from jaxcls import config as configs
from jaxcls import hints
from jaxcls.output import one_line
from jaxcls.synonyms import SYNONYMS


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


def of_run(workdir: str | None) -> tuple[ConfigDict, str]:
    """Returns the config of the run in `workdir`, and its file.

    Raises:
      ValueError: there is none.
    """
    if not workdir:
        raise ValueError("--config is missing: write --config=FILE; see --help")
    from jaxcls import record

    path = record.find(workdir)
    if path is None:
        raise ValueError(
            f"--config is missing, and {workdir} is not a run that has a config.json: write "
            "--config=FILE; see --help"
        )
    return record.read(path), str(path)


def override(config: ConfigDict, key: str, text: str | None) -> None:
    """Sets a key to what was written on the command line; None: nothing was.

    Raises:
      ValueError: there is no such key, or this is no value for it.
    """
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

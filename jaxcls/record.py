"""config.json of a run: its config as it is now, and how it came to be."""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jaxcls import config as configs
from jaxcls.files import write_atomically

FILE = "config.json"
ABOUT = "run"  # what is no key of the config: class names, devices, versions
HISTORY = "history"  # what was changed since the run began: [{"step", "time", "changes"}, ...]


def find(workdir: str) -> epath.Path | None:
    """Returns the config.json of a run, of which `workdir` may be a checkpoint too, or None."""
    path = epath.Path(workdir if "://" in workdir else os.path.abspath(workdir))
    places = [path]
    for inside, run in ((path, path.parent), (path.parent, path.parent.parent)):
        if inside.name == "checkpoints":  # RUN/checkpoints, RUN/checkpoints/STEP
            places.append(run)
    return next((p / FILE for p in places if (p / FILE).is_file()), None)


def check_workdir(workdir: str) -> None:
    """Refuses a working directory inside the checkpoints of a run, which it would damage.

    Raises:
      ValueError: it is; the message names the run.
    """
    if (begun := find(workdir)) and not (epath.Path(workdir) / FILE).exists():
        raise ValueError(
            f"--workdir={workdir} is a checkpoint of a run: to go on with it, write "
            f"--workdir={begun.parent}; to begin another from it, choose another --workdir and "
            f"write --config.init.checkpoint={workdir}"
        )


def read(path: Path | epath.Path) -> ConfigDict:
    """Returns the config of a config.json, locked, with the types of `configs/base.py`.

    Raises:
      ValueError: the file is damaged, or its keys are not those of this version.
    """
    try:
        values = _values(path)
    except ValueError as e:
        raise ValueError(f"{path} {e}: give the config of the run with --config=FILE") from None
    keys = configs.defaults()[0]
    config = configs.run_file(configs.BASE)["get_config"]()
    typed = {}
    for key, value in values.items():
        if key not in keys:
            raise ValueError(
                f"{path}: config.{key} is not a key of this version: give the config of the run "
                "with --config=FILE"
            )
        try:
            typed[key] = configs.from_json(key, value)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None
    with config.ignore_type():
        config.update_from_flattened_dict(typed)
    return config.lock()


def _values(path: Path | epath.Path) -> dict[str, Any]:
    """Returns {"section.key": value} of the config in a config.json, by the names of today."""
    values = {key: value for key, value in _content(path).items() if key not in (HISTORY, ABOUT)}
    return {configs.MOVED.get(key, key): value for key, value in configs.flatten(values).items()}


def _content(path: Path | epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as e:
        raise ValueError(f"cannot be read ({e.strerror})") from None
    except ValueError:  # of JSON or of its encoding
        raise ValueError("is damaged: it is not JSON") from None
    except RecursionError:
        raise ValueError("is damaged: it is not a config") from None
    if not isinstance(content, dict) or not content:
        raise ValueError("is damaged: it is not a config")
    return content


def write(
    config: ConfigDict, workdir: epath.Path, step: int, about: Mapping[str, Any] | None = None
) -> None:
    """Writes config.json; a run that goes on prints and records what has changed in it.

    Args:
      config: of the run, from now on.
      workdir: of the run.
      step: where it begins or goes on.
      about: what else is to be known of the run, since its last start.
    """
    path = workdir / FILE
    ours = json.loads(config.to_json_best_effort())
    before, history = None, []
    if path.exists():
        try:
            before = _values(path)
            history = _content(path).get(HISTORY, [])
            history = history if isinstance(history, list) else []
        except ValueError as e:
            print(f"{path} {e}: it is written anew", flush=True)
    if before is not None:
        added = json.loads(json.dumps(configs.defaults()[0]))  # keys that it did not have yet
        changes = configs.differences(ours, added | before)
        for key, (old, new) in changes.items():
            print(f"config.{key} was {old!r} before, now {new!r}", flush=True)
        if not changes and _content(path).get(ABOUT) == about:
            return
        now = datetime.datetime.now().isoformat(" ", "seconds")
        changed = {key: list(values) for key, values in changes.items()}
        if changes:
            history.append({"step": step, "time": now, "changes": changed})
    content = ours | {ABOUT: about, HISTORY: history}
    write_atomically(path, json.dumps(content, indent=1) + "\n")

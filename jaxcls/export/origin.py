"""Where the weights of an export are from: the run that trained them, as far as it is known."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from jaxcls import config as configs
from jaxcls import files, record, weights
from jaxcls.report.write import folder_of

# of a config, what makes no other weights
ASIDE = ("checkpoint.", "data.cache", "eval.", "loader.", "log.", "mesh.", "report.")


class Origin(NamedTuple):
    """Of a run: what is not known is empty."""

    config: Mapping[str, Any] = {}  # {"section.key": value}
    recipe: Mapping[str, Any] = {}  # of these, what is not as usual
    data: Mapping[str, Any] = {}  # {"train": number of images, "eval": ...}
    metrics: Mapping[str, Any] = {}  # of its report, or less


def of(run: str | os.PathLike) -> Origin:
    """Returns what is known of the weights that `network.load` finds there."""
    path = files.absolute(run)
    _, meta = weights.load(path, report=lambda line: None)
    images = meta.get("data")
    counts = {}
    for split in ("train", "eval"):
        its = images.get(split) if isinstance(images, dict) else None
        if isinstance(its, dict) and isinstance(its.get("number"), int):
            counts[split] = its["number"]
    begun = record.find(os.fspath(path))
    config, recipe = {}, {}
    if begun is not None:
        try:
            its = record.read(begun)
        except ValueError:  # of another version: the weights are what counts
            its = None
        if its is not None:
            usual = configs.run_file(configs.BASE)["get_config"]()
            changed = configs.differences(its, usual)
            config = dict(configs.flatten(its))
            recipe = {k: new for k, (_, new) in changed.items() if not k.startswith(ASIDE)}
    return Origin(config, recipe, counts, _metrics(path, begun))


def _metrics(path: epath.Path, begun: epath.Path | None) -> dict[str, Any]:
    """Returns metrics.json of the report of these very weights, or the last line of the log."""
    step = _step(path, begun)
    folders = [folder_of(os.fspath(path), begun)]
    if begun is not None:
        folders.append(begun.parent / "report")
    for folder in folders:
        found = _json(folder / "metrics.json")
        if found and (step is None or found.get("step", step) == step):
            return found
    if begun is not None:
        summary = _json(begun.parent / "summary.json")
        for key in ("last", "best"):
            its = summary.get(key)
            if isinstance(its, dict) and its.get("step") == step:
                return its
    return {}


def _step(path: epath.Path, begun: epath.Path | None) -> int | None:
    if begun is None:
        return None
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return int(path.name)
    steps = [p.name for p in (begun.parent / "checkpoints").iterdir()]
    return max((int(name) for name in steps if name.isdigit()), default=None)


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

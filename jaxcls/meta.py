"""What a checkpoint of a run knows besides its arrays, as JSON can hold it."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from jaxcls import files, trees, weights
from jaxcls.data import identity
from jaxcls.data.sources import Data
from jaxcls.metrics import NO_LINES
from jaxcls.network import Network

# What has to be of the same type here, of a checkpoint from anywhere.
MADE_OF = {
    "network": {},
    "class_names": [],
    "data": {},
    "log": {},
    "window": {},
    "seconds": 0.0,
    "in_steps": 0.0,
}


def new(
    network: Network,
    crop: Mapping[str, Any],
    data: Data,
    teachers: Any = (),
    steps_per_epoch: int = 0,
) -> dict[str, Any]:
    """Returns what is known before the first step.

    Args:
      network, crop, data, steps_per_epoch: of the run.
      teachers: variables of those that it learns from.

    Raises:
      ValueError: the processes of the run see different data.
    """
    images = identity.of(data)
    if files.differs(json.dumps(images)):
        raise ValueError(
            "config.data: the processes see different images or classes; each needs the same "
            "files in config.data.root"
        )
    return {
        "network": network.described(),
        "crop": dict(crop),  # which fine-tuning on such images begins with
        **images,
        "teachers": trees.digest(teachers),
        "steps_per_epoch": steps_per_epoch,
        "log": NO_LINES,
        "window": {},  # means since its last line
        "seconds": 0.0,
        "in_steps": 0.0,  # of these
        "bad_images": [],  # numbers of the unreadable training images met so far
    }


def check(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    total: int,
    accept: bool,
    report: Callable[[str], None],
) -> None:
    """Refuses a checkpoint (`theirs`) that is not of this network, data and length of an epoch.

    Args:
      ours: of this run.
      theirs, path: of the checkpoint.
      total: steps of this run.
      accept: other images are wanted.
      report: is told what cannot be compared.

    Raises:
      ValueError: it is damaged or of another run.
    """
    if any(not isinstance(theirs.get(key, value), type(value)) for key, value in MADE_OF.items()):
        raise ValueError(f"checkpoint {path} is damaged: its meta data are not those of a run")
    names = [weights.described(meta)["name"] for meta in (theirs, ours)]
    if names[0] not in (None, names[1]):
        raise ValueError(
            f"checkpoint {path} is {names[0]}, the config asks for {names[1]}: choose another "
            "--workdir"
        )
    if "data" not in theirs:
        report(f"checkpoint {path} does not know its data: only the classes are compared")
    if theirs.get("teachers", ours["teachers"]) != ours["teachers"]:
        report(f"checkpoint {path} learned from other teachers, or from other weights of them")
    before = {"data": ours["data"], "class_names": ours["class_names"], **theirs}
    identity.check(before, ours, accept=accept, path=path)
    _check_place(ours, theirs, path, total, accept=accept, report=report)


def _check_place(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    path: str | os.PathLike,
    total: int,
    *,
    accept: bool,
    report: Callable[[str], None],
) -> None:
    """Refuses a checkpoint whose step would be another place in the data, perhaps the end."""
    now = ours["steps_per_epoch"]
    before = theirs.get("steps_per_epoch", now)
    if before == now:
        return
    step = int(os.path.basename(path))
    text = f"an epoch had {before} steps up to the checkpoint of step {step}, and has {now} now"
    if not accept:
        raise ValueError(
            f"{text}: put config.batch_size back, begin another run with these weights "
            "(--config.init.checkpoint), or go on in the new epochs with "
            "--config.checkpoint.changed_data=accept"
        )
    if step >= total:
        raise ValueError(
            f"{text}, so that the run would be over: say in --config.duration='N steps' how long "
            "it is to be"
        )
    report(text)


def taken_up(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run goes on with from the meta data of its checkpoint."""
    taken = {key: theirs.get(key) for key in ("log", "window")}
    taken["seconds"] = theirs.get("seconds") or 0.0
    taken["in_steps"] = theirs.get("in_steps", taken["seconds"])
    if identity.same_order(theirs, ours):
        taken["bad_images"] = theirs["bad_images"]
    return taken

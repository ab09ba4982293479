"""Which data a run is of: a checkpoint knows, and a resume with other data is refused.

A batch is a function of its step and of the number of images, a label the number of a class in a
list of names. With other data a run would go on with another order, other lengths of epochs, or
classes that have changed places, without a word.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxcls.data.access import Source
from jaxcls.data.folders import some
from jaxcls.data.sources import Data

LISTED = 5  # classes in a message


def of(data: Data) -> dict[str, Any]:
    """Returns what a checkpoint keeps of its data, as JSON can hold it; looks at some images."""

    def split(source: Source | None) -> dict[str, Any] | None:
        return None if source is None else {"number": len(source), **source.identity}

    return {
        "class_names": list(data.class_names),
        "data": {"train": split(data.train), "eval": split(data.eval)},
    }


def same_order(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Returns whether the training images have the same numbers; False if that is not known."""
    a, b = ((x.get("data") or {}).get("train") or {} for x in (before, now))
    return a.get("images") == b.get("images") and a.get("number") == b.get("number")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two identities, in words; nothing if they are the same."""
    found = _classes(before["class_names"], now["class_names"])
    for key, what in (("train", "training images"), ("eval", "evaluation images")):
        a, b = (x["data"][key] for x in (before, now))
        if not (a and b):  # a run may begin, or cease, to evaluate
            continue
        if a["number"] != b["number"]:
            found.append(f"{a['number']} {what} before, {b['number']} now")
        elif a.get("images") != b.get("images"):
            found.append(f"other {what}, or in another order, by their names")
        elif a.get("labels") != b.get("labels"):
            found.append(f"other labels of the {what}")
        elif others := _others(a.get("some", {}), b.get("some", {})):
            found.append(f"other {what}: those of {some(others)}")
    return found


def _others(before: Mapping[str, list], now: Mapping[str, list]) -> list[str]:
    """Returns where all that was looked at, as far as it could be read, is something else."""
    found = []
    for place in before.keys() & now.keys():
        pairs = [pair for pair in zip(before[place], now[place]) if None not in pair]
        if pairs and all(a != b for a, b in pairs):
            found.append(place)
    return sorted(found)


def _classes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    lines = [
        f"class {i} was {a!r}, now {b!r}" for i, (a, b) in enumerate(zip(before, now)) if a != b
    ]
    if len(before) != len(now):
        lines = lines[:1] + [f"{len(before)} classes before, {len(now)} now"]
    more = len(lines) - LISTED
    return lines[:LISTED] + ([f"{more} more classes have other names"] if more > 0 else [])


def check(before: Mapping[str, Any], now: Mapping[str, Any], *, accept: bool, path: Any) -> None:
    """Refuses data that are not those of a checkpoint.

    Args:
      before, now: identities.
      accept: other images are wanted. Classes still have to keep their numbers.
      path: of the checkpoint.

    Raises:
      ValueError: what differs, and how to go on.
    """
    found = differences(before, now)
    if not found:
        return
    what = f"the data are not those of checkpoint {path}: {'; '.join(found)}"
    moved = [
        f"{name!r} is class {before['class_names'].index(name)} there and {i} here"
        for i, name in enumerate(now["class_names"])
        if name in before["class_names"] and before["class_names"].index(name) != i
    ]
    if moved or len(before["class_names"]) != len(now["class_names"]):
        raise ValueError(
            f"{what}. A classifier cannot go on with other classes{_example(moved)}: put the data "
            "back as they were, or begin a run from these weights with another --workdir and "
            "--config.init.checkpoint"
        )
    if not accept:
        raise ValueError(
            f"{what}. Put them back as they were, choose another --workdir, or go on with "
            "--config.checkpoint.changed_data=accept"
        )


def _example(moved: Sequence[str]) -> str:
    return f" ({moved[0]})" if moved else ""

"""Durations, validation and differences of configs. Imports no jax: config files may use it."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

UNITS = ("epochs", "steps", "examples")


def closest(name: str, options: Iterable[str]) -> str:
    """Returns ": did you mean ...?" with the options most like `name`; "" if none is."""
    lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(lower[m] for m in close)}?" if close else ""


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """Returns `name` if it is one of `options`.

    Raises:
      ValueError: it is not; the message has the closest names.
    """
    options = sorted(options)
    if name in options:
        return name
    hint = closest(name, options) or f": choose one of {', '.join(options)}"
    raise ValueError(f"unknown {kind} {name!r}{hint}")


def steps_of(duration: str, *, key: str, batch_size: int, steps_per_epoch: int) -> int:
    """Returns the number of steps in a duration such as "90 epochs", "500 steps", "1e6 examples".

    Rounded to the nearest step; "" is 0.

    Raises:
      ValueError: not a duration; the message names `key`.
    """
    if not duration:
        return 0
    number, _, unit = str(duration).strip().partition(" ")
    unit = unit.strip()
    unit = unit if unit.endswith("s") else unit + "s"
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0 and unit in UNITS):
        raise ValueError(
            f"config.{key} = {duration!r} is not a duration: write a number and a unit, such as "
            '"90 epochs", "500 steps" or "1e6 examples"'
        )
    scale = {"epochs": steps_per_epoch, "steps": 1, "examples": 1 / batch_size}[unit]
    return round(value * scale)


def due(step: int, every: int, last: int) -> bool:
    """Returns whether something done `every` so many steps, and at the `last`, is due at `step`."""
    return step > 0 and ((every > 0 and step % every == 0) or step == last)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"section.key": value} of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {"section.key": (value in base, value in config)} where the two differ."""
    ours, theirs = flatten(config), flatten(base)
    missing = object()
    return {
        key: (theirs.get(key), ours.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, missing) != theirs.get(key, missing)
    }


def refuse_unused(
    section: str,
    chosen: str,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    takes: Iterable[str],
) -> None:
    """Refuses keys that were changed from their defaults though the choice does not take them.

    Raises:
      ValueError: such a key exists, for example `momentum` with `adam`.
    """
    takes = set(takes)
    dead = [k for k, v in values.items() if k not in takes and v != defaults[k]]
    if dead:
        keys = ", ".join(f"config.{section}.{k}" for k in sorted(dead))
        allowed = ", ".join(sorted(takes)) or "no further keys"
        raise ValueError(f"{keys}: not used by {chosen!r}, which takes {allowed}")


def stage_mults(*factors: float) -> tuple[tuple[str, float], ...]:
    """Returns learning-rate factors for the stem and each stage, for `optim.lr_mults`.

    `stage_mults(0.1, 0.1, 0.2, 0.2, 0.3)` gives the stem 0.1, stage1 0.1, ..., stage4 0.3; neck and
    head keep 1. (PaddleClas's `lr_mult_list`.)
    """
    names = ("stem", *(f"stage{i}" for i in range(1, len(factors))))
    return tuple((f"^{name}/", factor) for name, factor in zip(names, factors, strict=True))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's lengths in steps. An interval of 0 means: only at the end."""

    batch_size: int  # images per step, over all devices
    eval_batch_size: int
    steps_per_epoch: int
    total_steps: int
    eval_every: int
    save_every: int
    log_every: int

    def epoch(self, step: int) -> float:
        """Returns the epochs that `step` steps are."""
        return step / self.steps_per_epoch


def plan(config: ConfigDict, num_train: int) -> Plan:
    """Returns the lengths of a run over `num_train` training images.

    Raises:
      ValueError: a duration or a batch size that makes no sense.
    """
    batch = config.batch_size
    if batch < 1 or config.eval.batch_size < 0:
        raise ValueError(f"config.batch_size = {batch}: write a number of images above 0")
    if num_train < batch:
        raise ValueError(
            f"config.batch_size = {batch} is more than the {num_train} training images: "
            "an epoch would have no step; use a smaller batch"
        )
    steps_per_epoch = num_train // batch

    def steps(key: str, duration: str, at_least: int = 0) -> int:
        n = steps_of(duration, key=key, batch_size=batch, steps_per_epoch=steps_per_epoch)
        if n < at_least:
            raise ValueError(f"config.{key} = {duration!r} is less than a step")
        return n

    return Plan(
        batch_size=batch,
        eval_batch_size=config.eval.batch_size or batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps("duration", config.duration, at_least=1),
        eval_every=steps("eval.every", config.eval.every),
        save_every=steps("checkpoint.every", config.checkpoint.every),
        log_every=steps("log.every", config.log.every),
    )

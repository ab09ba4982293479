"""The space of a search: what some keys of a config may be.

A space file is Python with a function `get_space()` that returns {"lr.peak": log(1e-4, 0.1),
"mix.mixup": (0.0, 0.2), ...}: any keys of configs/base.py. A tuple is `choices` of its values.
Imports neither jax nor Optuna: space files may use it.
"""

import dataclasses
import difflib
import math
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcls import config as configs
from jaxcls import hints
from jaxcls.output import one_line

MOST_POINTS = 1_000_000  # of a grid
DIGITS = 4  # of a number that is drawn from a range, so that a config can be read


@dataclasses.dataclass(frozen=True)
class Choices:
    """One of several values of any kind."""

    values: tuple[Any, ...]

    @property
    def ordered(self) -> bool:
        """Whether they are numbers in order, so that neighbours are alike."""
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)
        return numbers and list(self.values) in (sorted(self.values), sorted(self.values)[::-1])


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False  # uniform in the logarithm
    step: int = 0  # of whole numbers; 0: they are not


Dimension = Choices | Range
Space = dict[str, Dimension]


def choices(*values: Any) -> Choices:
    """Returns a dimension that is one of `values`."""
    return Choices(values)


def linear(low: float, high: float) -> Range:
    """Returns a dimension of numbers from `low` to `high`."""
    return Range(low, high)


def log(low: float, high: float) -> Range:
    """Returns a dimension of numbers from `low` to `high`, above 0, uniform in the logarithm."""
    return Range(low, high, log=True)


def integers(low: int, high: int, *, step: int = 1, log: bool = False) -> Range:
    """Returns a dimension of whole numbers: low, low + step, ..., at most `high`."""
    return Range(low, high, log=log, step=step)


def read(file: str) -> Space:
    """Returns the space of a file.

    Raises:
      ValueError: there is no such file, or something in it is wrong; the message names the key.
    """
    path = Path(os.path.expanduser(file))
    if not path.is_file():
        folder = Path("configs", "spaces")
        folder = folder if folder.is_dir() else configs.BASE.parent / "spaces"
        ours = {p.stem: str(p) for p in sorted(folder.glob("*.py")) if p.stem != "__init__"}
        stem = re.match(r"\w*", path.name)[0]
        near = difflib.get_close_matches(stem, ours, n=1)
        hint = f": did you mean {ours[near[0]]}?" if near else f"; jaxcls has {folder}"
        raise ValueError(f"--space={file}: there is no such file{hint}")
    if path.suffix != ".py":
        raise ValueError(f"--space={file}: a space is a Python file with get_space()")
    try:
        get_space = configs.run_file(path).get("get_space")
        if not callable(get_space):
            raise ValueError("it has no function get_space(), which returns {key: what it may be}")
        space = get_space()
    except (Exception, SystemExit) as e:
        frames = traceback.extract_tb(e.__traceback__)
        numbers = [f.lineno for f in frames if f.filename == str(path)]
        if isinstance(e, SyntaxError) and e.filename == str(path):
            numbers.append(e.lineno)
        where = f"{path}:{numbers[-1]}" if numbers else file
        kind = "" if type(e) is ValueError else f"{type(e).__name__}: "
        raise ValueError(f"--space={where}: {kind}{one_line(e)}") from e
    try:
        return check(space)
    except ValueError as e:
        raise ValueError(f"--space={file}: {e}") from None


def check(space: Any) -> Space:
    """Returns a space whose keys, types and ranges are right for configs/base.py.

    Raises:
      ValueError: they are not; the message names the key.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            f"get_space() returns {configs.short(space)}: return keys and what they may be, such "
            'as {"lr.peak": (0.1, 0.01)}'
        )
    keys = configs.defaults()[0]
    checked: Space = {}
    for key, dimension in space.items():
        if key not in keys:
            raise ValueError(hints.no_key(str(key), None, keys).replace("write --", "write "))
        if key == "checkpoint.best":
            raise ValueError(
                "config.checkpoint.best is the metric that the search compares trials by: set it "
                "with --config.checkpoint.best"
            )
        if isinstance(dimension, (tuple, list)):
            dimension = Choices(tuple(dimension))
        if isinstance(dimension, Choices):
            checked[key] = _choices(key, dimension.values)
        elif isinstance(dimension, Range):
            checked[key] = _range(key, dimension)
        else:
            raise ValueError(
                f"config.{key}: {configs.short(dimension)} is no dimension: write a tuple of "
                "values, or linear, log or integers(low, high) of jaxcls.sweep.space"
            )
    return checked


def _choices(key: str, values: Sequence[Any]) -> Choices:
    if not values:
        raise ValueError(f"config.{key} has no choices: write at least one value")
    values = tuple(configs.from_json(key, value) for value in values)
    twice = [v for i, v in enumerate(values) if label(v) in map(label, values[:i])]
    if twice:
        raise ValueError(f"config.{key}: {twice[0]!r} is among its choices twice")
    return Choices(values)


def _range(key: str, r: Range) -> Range:
    kind = configs.defaults()[1][key]
    if kind not in (int, float):
        raise ValueError(f"config.{key} is no number: write choices, (VALUE, VALUE, ...)")
    for bound in (r.low, r.high):
        configs.check_value(key, bound)
    if kind is int and not r.step:
        raise ValueError(f"config.{key} is a whole number: write integers({r.low}, {r.high})")
    shown = f"{r.low:g} to {r.high:g}"
    if r.low >= r.high:
        raise ValueError(f"config.{key}: {shown} is no range: write the lower bound first")
    if r.log and r.low <= 0:
        raise ValueError(
            f"config.{key}: {shown} has no logarithm: begin above 0, or write linear(...) or "
            "choices (0.0, ...)"
        )
    whole = (r.low, r.high, r.step)
    if r.step and not all(isinstance(x, int) and not isinstance(x, bool) for x in whole):
        raise ValueError(f"config.{key}: integers{whole}: write whole numbers")
    if r.step < 0 or (r.log and r.step > 1):
        raise ValueError(f"config.{key}: step = {r.step}: write 1" + " or more" * (not r.log))
    return r


def label(value: Any) -> Any:
    """Returns how a database holds a choice: a number, a text, a bool or None as it stands."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def text(value: Any) -> str:
    """Returns a value as it is written after --config.KEY=."""
    return str(value)


def all_values(dimension: Dimension) -> Sequence[Any] | None:
    """Returns the values of a dimension; None where there is no end of them."""
    if isinstance(dimension, Choices):
        return dimension.values
    if dimension.step:
        return range(int(dimension.low), int(dimension.high) + 1, dimension.step)
    return None


def size(space: Space) -> int | None:
    """Returns the number of points of a space; None where there is no end of them."""
    counts = [all_values(dimension) for dimension in space.values()]
    return None if None in counts else math.prod(map(len, counts))


def point(space: Space, index: int) -> dict[str, Any]:
    """Returns a point of a space that has `size`: the last key changes fastest."""
    values = {}
    for key in reversed(space):
        there = all_values(space[key])
        index, place = divmod(index, len(there))
        values[key] = there[place]
    return {key: values[key] for key in space}


def trial_values(dimension: Dimension) -> tuple[Any, ...]:
    """Returns values of a dimension that show whether all of them can be used."""
    if isinstance(dimension, Choices):
        return dimension.values
    return dimension.low, dimension.high


def rounded(dimension: Dimension, value: Any) -> Any:
    """Returns a number of a range with few digits, as a config can be read."""
    if not isinstance(dimension, Range) or dimension.step:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high)


def described(space: Space) -> dict[str, Any]:
    """Returns a space as JSON can hold it, to be compared with another."""
    return {
        key: {"choices": [label(v) for v in dimension.values]}
        if isinstance(dimension, Choices)
        else dataclasses.asdict(dimension)
        for key, dimension in space.items()
    }


def shown(values: Mapping[str, Any]) -> str:
    """Returns the values of a trial in a line."""
    return "  ".join(f"{key} {short_number(value)}" for key, value in values.items())


def short_number(value: Any) -> str:
    """Returns a value in few characters."""
    plain = isinstance(value, float)
    return f"{value:g}" if plain else configs.short(value) if value == "" else str(value)

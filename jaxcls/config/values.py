"""Keys of configs: defaults, types, values from text, what is refused, differences."""

import ast
import contextlib
import difflib
import functools
import inspect
import math
import os
import shlex
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from jaxcls.synonyms import KNOWN_BY

T = TypeVar("T")

BASE = Path(__file__).parents[2] / "configs" / "base.py"
LARGEST = 2**31 - 1  # what a step, an index or a size on the device may be
# Keys that a config may leave open, with None: jaxcls/choices.py then chooses their value.
OPEN = (
    "model.name",
    "model.options",
    "data.eval_fraction",
    "image.size",
    "image.eval_size",
    "image.eval_resize",
    "image.mean",
    "image.std",
    "image.interpolation",
    "crop.name",
    "crop.shift",
    "crop.flip",
    "batch_size",
    "duration",
    "lr.peak",
    "lr.warmup",
    "optim.l2",
    "optim.lr_mults",
    "optim.frozen",
    "eval.every",
    "checkpoint.every",
)
# Keys that do nothing where others are off, all of them.
NEED = {
    ("ema.decay",): ("ema.ramp",),
    ("swa.start",): ("swa.every",),
    ("ema.decay", "swa.start"): ("eval.ema",),
    ("init.checkpoint",): ("init.ema", "init.reset"),
}
# Keys of versions before 0.2 that have another place now, for the config.json of their runs.
MOVED = {
    "image.crop": "crop.name",
    "image.crop_scale": "crop.scale",
    "image.crop_ratio": "crop.ratio",
    "image.crop_log_ratio": "crop.log_ratio",
    "image.shift": "crop.shift",
    "image.flip": "crop.flip",
}
# Keys of names, durations and places: a,b is two on the command line, unless a file is called so.
LISTS = ("loss.stages", "lr.milestones", "eval.tta", "eval.fuse", "teacher.checkpoints")
NONE = ("none", "null")  # how None is written on the command line, in any case
BOOLS = {"true": True, "t": True, "1": True, "yes": True, "y": True, "on": True} | dict.fromkeys(
    ("false", "f", "0", "no", "n", "off"), False
)


def closest(name: str, options: Iterable[str]) -> str:
    """Returns ": did you mean ...?" with the options most like `name`; "" if none is.

    Case counts for nothing, and "-" is "_". Of options such as "section.key", one whose key is that
    of `name` is most like it.
    """
    plain = lambda text: str(text).lower().replace("-", "_")
    by_plain = {plain(option): option for option in options}
    whole = plain(name)
    key = whole.rpartition(".")[2]
    same = [option for option in by_plain if option.rpartition(".")[2] == key]

    def like(option):
        begins = 0.3 if whole and option.startswith(whole) else 0.0
        return begins + difflib.SequenceMatcher(None, option, whole).ratio()

    likeness = {option: like(option) for option in same or by_plain}
    best = sorted(likeness, key=lambda option: (-likeness[option], option))
    if not same:  # what is hardly less like it than the best
        best = [o for o in best if likeness[o] >= max(0.6, likeness[best[0]] - 0.1)]
    return f": did you mean {' or '.join(by_plain[o] for o in best[:3])}?" if best else ""


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """Returns `name` if it is one of `options`.

    Raises:
      ValueError: it is not; the message has the closest names.
    """
    options = sorted(options)
    if name in options:
        return name
    few = ", ".join(option or '""' for option in options[:20])
    few += f", ... ({len(options)} in all)" if len(options) > 20 else ""
    ours = KNOWN_BY.get(kind.removeprefix("config."), {}).get(str(name).lower())
    near = f": did you mean {ours}?" if ours in options else closest(name, options)
    raise ValueError(f"unknown {kind} {short(name)}{near or f': choose one of {few}'}")


def consume(config: Mapping[str, Any], section: str, function: Callable[..., T], **given: Any) -> T:
    """Returns `function(**config[section], **given)`: what a section of a config stands for.

    A section is read here and nowhere else; the parameters of the function are its keys.

    Raises:
      ValueError: of the function, also for errors of arithmetic and types further inside; the
        message names the section.
    """
    with consuming(section):
        return function(**config[section], **given)


def keywords(method: Callable) -> set[str]:
    """Returns the names of the keyword-only parameters of a function."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def taken(section: str, chosen: str, method: Callable, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the keys of a section that a method takes: its keyword-only parameters.

    So the signature of an optimizer, a schedule, an augmentation is the list of its keys.

    Raises:
      ValueError: another of `keys` was changed from its default in configs/base.py, for example
        `momentum` with `adam`.
    """
    return bound(section, chosen, [method], keys)[0].keywords


def bound(
    section: str,
    chosen: str,
    methods: Sequence[Callable],
    keys: Mapping[str, Any],
    used: Iterable[str] = (),
) -> list[functools.partial]:
    """Returns methods with the keys of a section that each of them takes, as in `taken`.

    Raises:
      ValueError: a key was changed from its default that none of them takes, nor `used` names.
    """
    takes = [[key for key in keys if key in keywords(method)] for method in methods]
    values, _ = defaults()
    of_base = {key: values[f"{section}.{key}"] for key in keys}
    refuse_unused(section, chosen, keys, of_base, {*used}.union(*takes))
    return [
        functools.partial(method, **{key: keys[key] for key in its})
        for method, its in zip(methods, takes, strict=True)
    ]


def expect(right: bool, key: str, value: Any, want: str) -> None:
    """Refuses the value of a key that is not right.

    Raises:
      ValueError: the message names the key and says what to write.
    """
    if not right:
        raise ValueError(f"config.{key} = {value!r}: write {want}")


@contextlib.contextmanager
def consuming(section: str) -> Iterator[None]:
    """Names a section in errors of arithmetic and types that its values lead to further inside.

    Raises:
      ValueError: in place of such an error.
    """
    try:
        yield
    except (TypeError, ArithmeticError, LookupError) as e:
        raise ValueError(
            f"config.{section} has a value that cannot be used: {type(e).__name__}: {e} "
            "(JAXCLS_DEBUG=1 shows where)"
        ) from e


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"section.key": value} of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@functools.cache
def defaults() -> tuple[dict[str, Any], dict[str, type]]:
    """Returns the defaults and the types of `configs/base.py`, by "section.key".

    From the file beside this package: a user's own folder may be called `configs` too.
    """
    config = run_file(BASE)["get_config"]()
    values = flatten(config)
    kinds = {}
    for key in values:
        section, _, name = key.rpartition(".")
        kinds[key] = (config[section] if section else config).get_type(name)
    return values, kinds


def recipe(stem: str) -> str:
    """Returns the path of a config that comes with jaxcls: relative where that is found."""
    relative = Path("configs", f"{stem}.py")
    return str(relative if relative.is_file() else BASE.with_name(relative.name))


def run_file(path: Path) -> dict[str, Any]:
    """Returns the globals of a Python file that was run; leaves no byte code beside it."""
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    with _own_package() if path.parent == BASE.parent else contextlib.nullcontext():
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module.__dict__


@contextlib.contextmanager
def _own_package() -> Iterator[None]:
    """Lets `configs` be the folder of `BASE`, whatever package of a user is called so."""
    loaded = lambda: [name for name in sys.modules if name.partition(".")[0] == "configs"]
    theirs = {name: sys.modules.pop(name) for name in loaded()}
    ours = sys.modules["configs"] = types.ModuleType("configs")
    ours.__path__ = [str(BASE.parent)]
    try:
        yield
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(theirs)


def check(config: Mapping[str, Any]) -> None:
    """Refuses a config whose keys or types are not those of `configs/base.py`.

    Raises:
      ValueError: a key is missing, unknown or not of its type; a number is not finite or too large.
    """
    values, keys = flatten(config), defaults()[0]
    for key in keys:
        if key not in values:
            section = key.rpartition(".")[0]
            raise ValueError(
                f"config.{key} is missing: begin with c = base.get_config() and change what differs"
                + (f" in config.{section}" if section else "")
            )
    for key, value in values.items():
        if key not in keys:
            raise ValueError(f"there is no config.{key}{closest(key, keys)}")
        check_value(key, value)


def check_value(key: str, value: Any) -> None:
    """Refuses a value that is not of the type of its key.

    Raises:
      ValueError: it is not; the message says what to write.
    """
    default, kind = (table[key] for table in defaults())

    def plain(x):  # a number that float32 has
        return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 3.4e38

    if value is None and (default is None or key in OPEN):
        return
    if kind is bool:
        ok, want = isinstance(value, bool), "True or False"
    elif kind is int:
        # of a seed all digits may count; what it may be says who uses it
        most = math.inf if key.endswith("seed") else LARGEST
        ok = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= most
        want = "a whole number" if isinstance(value, str) else "a whole number below 2^31"
    elif kind is float:
        ok, want = plain(value), "a finite number" if isinstance(value, float) else "a number"
    elif kind is tuple and default:
        numbers = int if all(isinstance(x, int) for x in default) else (int, float)
        ok = isinstance(value, tuple) and all(isinstance(x, numbers) and plain(x) for x in value)
        want = f"numbers, such as {default!r}"
    elif kind is tuple:
        ok, want = isinstance(value, tuple), "a tuple, () for none"
    else:
        ok, want = isinstance(value, str) and "\0" not in value, "a text"
    if not ok:
        want += ", or None" if default is None else ""
        raise ValueError(f"config.{key} = {short(value)}: write {want}")


def short(value: Any) -> str:
    """Returns how to show a value that may be long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def from_text(key: str, text: str) -> Any:
    """Returns the value of a key that was written on the command line.

    A key whose default is None, and one of `OPEN`, takes None too. A tuple is written as in Python;
    a single value stands for a tuple of one, and of `LISTS` several may stand with commas.

    Raises:
      ValueError: it is not of the type of the key.
    """
    default, kind = (table[key] for table in defaults())
    value: Any = text
    if (default is None or key in OPEN) and text.strip().lower() in NONE:
        value = None
    elif kind is bool:
        value = BOOLS.get(text.strip().lower(), text)
    elif kind in (int, float):
        with contextlib.suppress(ValueError):
            value = kind(text)
    elif kind is tuple:
        # what cannot be read is a pattern without quotes; "\\d" would warn
        unreadable = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
        with contextlib.suppress(*unreadable), warnings.catch_warnings(action="ignore"):
            value = ast.literal_eval(text.strip())
        if key in LISTS and value is text and not os.path.exists(text):
            value = tuple(map(str.strip, text.split(",")))
        value = tuples(value) if isinstance(value, (tuple, list)) else (value,)
        value = value if text.strip() else ()
    check_value(key, value)
    return value


def from_json(key: str, value: Any) -> Any:
    """Returns the value of a key that JSON held, where tuples are lists.

    Raises:
      ValueError: it is not of the type of the key.
    """
    kind = defaults()[1][key]
    if kind is tuple:
        value = tuples(value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    check_value(key, value)
    return value


def tuples(value: Any) -> Any:
    """Returns a value with tuples in place of its lists."""
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


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
        without = (f"--config.{section}.{k}={shlex.quote(str(defaults[k]))}" for k in sorted(dead))
        raise ValueError(
            f"{keys}: not used by {chosen!r}, which takes {allowed}; without: {' '.join(without)}"
        )


def left_open(config: Mapping[str, Any]) -> list[str]:
    """Returns the keys of `OPEN` that are still to be chosen."""
    values = flatten(config)
    # what `data.eval_fraction` is then is up to the source
    return [k for k in OPEN if values[k] is None and k != "data.eval_fraction"]


def check_complete(config: Mapping[str, Any]) -> None:
    """Refuses a config that cannot be computed, as far as it alone tells.

    Raises:
      ValueError: `check`; a key of `OPEN` is None and nothing chooses it.
    """
    check(config)
    if left := left_open(config):
        keys = ", ".join(f"config.{key}" for key in left)
        raise ValueError(f"not set, and only chosen where images are read for a run: {keys}")
    keep = config["checkpoint"]["keep"]
    if keep < 1:
        raise ValueError(f"config.checkpoint.keep = {keep}: keep at least 1 checkpoint")


def refuse_idle(config: Mapping[str, Any]) -> None:
    """Refuses keys of training that do nothing where another one is off.

    Raises:
      ValueError: there is one of `NEED`.
    """
    values = flatten(config)
    for needed, keys in NEED.items():
        for key in keys:
            if not any(values[n] for n in needed) and values[key] != defaults()[0][key]:
                missing = " or ".join(f"config.{n}" for n in needed)
                raise ValueError(f"config.{key} = {values[key]} does nothing without {missing}")

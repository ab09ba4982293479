"""What a mistyped command line may mean, in the words of other programs too: lines for errors."""

import re
import shlex
from collections.abc import Iterable, Sequence

from absl import flags

from jaxcls import config as configs
from jaxcls.synonyms import KNOWN_BY, OVERRIDES, SYNONYMS

NUMBER = re.compile(r"-[\d.]")  # begins a value, though it begins like a flag


def instead_of(argument: str) -> str:
    """Returns which of the configs that come with jaxcls a name may mean."""
    stems = {path.stem for path in configs.BASE.parent.glob("*.py")} - {"__init__"}
    name, colon, arg = argument.strip(" \"'").partition(":")
    stem = re.split(r"[/\\.]", re.sub(r"\.\w{2,4}$", "", name))[-1]
    near = re.findall(r"[\w]+(?= or |\?)", configs.closest(stem, stems)) if stem else []
    if near:
        return f": did you mean {configs.recipe(near[0])}{colon}{arg}?"
    return f"; jaxcls has those beside {configs.recipe('base')}: {', '.join(sorted(stems))}"


def no_key(key: str, text: str | None, keys: Iterable[str]) -> str:
    """Returns that there is no such key, and which one may be meant."""
    sections = {k.rpartition(".")[0] for k in keys} - {""}
    what = f"config.{key} is a section" if key in sections else f"there is no config.{key}"
    if separated := re.fullmatch(r"([\w.]+)[:\s]\s*(.*)", key):  # --config.lr.peak:0.1
        hint = _hint_at_key(separated[1], separated[2])
    else:
        known = _spelt(key)
        hint = f"--config.{known}={_value(known, text)}" if known else hint_at(key, text)
    return f"{what}: write {hint}" if hint else what + configs.closest(key, keys)


def unknown_flag(argument: str, typed: Sequence[str], values: flags.FlagValues) -> str:
    """Returns that there is no such flag, and what may be meant.

    Args:
      argument: that is none.
      typed: all of the command line, for a value in the next argument.
      values: the flags.
    """
    flag, equals, text = argument.partition("=")
    place = next((i for i, a in enumerate(typed) if a == argument or a == f"{flag}={text}"), None)
    following = typed[place + 1] if place is not None and place + 1 < len(typed) else "-"
    if place is not None and "=" in typed[place]:
        text = typed[place].partition("=")[2]
    elif not equals and (following[:1] != "-" or NUMBER.match(following)):
        text = following
    name = flag.lstrip("-")
    if short := re.fullmatch(r"([a-zA-Z])(\d+)", name):  # -j4
        name, text = short[1], short[2]
    near = configs.closest(name, own_flags(values))
    if near and name.lower() in near:
        hint = ""
    elif name in ("train", "eval") and not text:
        hint = f"--mode={name}"
    elif name in OVERRIDES and "=" in text:  # -o Global.epochs=10
        name, _, text = text.partition("=")
        hint = _hint_at_key(name, text)
    else:
        hint = _hint_at_key(name, text)
    if hint[:2] == "--" and "." not in hint.partition("=")[0]:  # of another command
        hint = hint if hint[2:].partition("=")[0] in values else ""
    if not hint and not near:
        near = configs.closest(name, configs.defaults()[0]).replace("mean ", "mean --config.")
    return f"unknown flag {flag}" + (f": write {hint}" if hint else near or "; see --help")


def own_flags(values: flags.FlagValues) -> list[str]:
    """Returns the flags that do something here, and absl's for help."""
    theirs = ("absl.app", "absl.logging")
    return [
        name
        for name in values
        if name[:4] == "help" or values.find_module_defining_flag(name) not in theirs
    ]


def illegal(message: str, values: flags.FlagValues) -> str:
    """Returns what is wrong with the value of a flag, from absl's message."""
    message = message.removeprefix("flag ")
    name = re.match(r"--(\w+)=", message)
    kind = values[name[1]].flag_type() if name and name[1] in values else ""
    want = {"bool": "True or False", "int": "a whole number"}.get(kind)
    return re.sub(r": (invalid literal|\().*", f": write {want}", message) if want else message


def unexpected(rest: Sequence[str], typed: Sequence[str]) -> str:
    """Returns what is wrong with arguments that are no options, of a command line."""
    argument = rest[0]
    name, equals, text = argument.partition("=")
    hint = _hint_at_key(name.lstrip("+\u2013\u2014"), text) if equals else ""
    place = typed.index(argument)
    before = typed[place - 1]
    if argument.partition(":")[0].endswith((".py", ".json")):
        hint = f"--config={argument}"
    elif argument in ("train", "eval"):
        hint = f"--mode={argument}"
    elif before[:2] == "--" and before.endswith("="):
        hint = f"{before}{argument}, without a space"
    elif before == "=" and typed[place - 2][:2] == "--":
        hint = f"{typed[place - 2]}={argument}, without spaces"
    elif not equals:  # --config.duration=4 epochs, or --config.duration 4 epochs
        flag, separator, value = before.partition("=")
        flag, value = (flag, value) if separator else (typed[place - 2], before)
        kind = configs.defaults()[1].get(flag.removeprefix("--config."))
        if flag == "--workdir" or kind is str:
            hint = f'{flag}="{value} {" ".join(rest)}"'
    return f"unexpected argument {argument!r}: " + (
        f"write {hint}" if hint else "every option begins with --"
    )


def _spelt(name: str) -> str:
    """Returns the key that is written so but for case, separators and a "config." before; or ""."""
    plain = lambda text: re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    keys = {plain(key): key for key in configs.defaults()[0]}
    name = plain(name)
    return keys.get(name) or keys.get(re.sub("^(config|cfg|conf)_", "", name), "")


def _hint_at_key(name: str, text: str | None) -> str:
    """Returns what to write for a key that stands there without --config; "" if it is none."""
    key = _spelt(name)
    hint = "" if key else hint_at(name, text)
    if not key and not hint:
        last = name.lower().replace("-", "_").rpartition(".")[2]
        same = [k for k in configs.defaults()[0] if k.rpartition(".")[2] == last]
        key = same[0] if len(same) == 1 else ""
    return f"--config.{key}={_value(key, text)}" if key else hint


def hint_at(name: str, text: str | None) -> str:
    """Returns what to write for what other programs call `name`; "" if that is not known."""
    name = name.lower().replace("-", "_")
    section, _, last = name.rpartition(".")
    template = SYNONYMS.get(name)
    if template is None and section:  # of a section that is ours under another name
        ours = SYNONYMS.get(section.rpartition(".")[2], "").partition(".")[0]
        keys = (key for key in (f"{ours}.{last}", last) if key in configs.defaults()[0])
        template = next((f"{key}={{}}" for key in keys), SYNONYMS.get(last))
    if template is None:
        return ""
    target = template.partition("=")[0]
    value = _value(target, text)
    if '"{} ' in template:
        if re.fullmatch(r"'[\d.e]+ (epoch|step|example)s?'", value):
            template, value = template.partition('"')[0] + '"{}"', value.strip("'")
        elif not re.fullmatch(r"[\d.]+", value):
            value = "N"
    ours = "" if template.startswith(("--", "JAX_", "CUDA_")) else "--config."
    return ours + template.format(value)


def _value(target: str, text: str | None) -> str:
    """Returns what to write after `target=`, a key or a flag: what was typed, if that can be it."""
    text = (text or "").strip("\"'")
    text = KNOWN_BY.get(target, {}).get(text.lower(), text)
    kind = configs.defaults()[1].get(target)
    if kind in (None, str, tuple):
        never = text.lower() in ("", "true", "false", "yes", "no", "on", "off")
        return "VALUE" if never or (target[:2] == "--" and text == "1") else shlex.quote(text)
    try:
        configs.from_text(target, text)
    except ValueError:
        return "VALUE"
    return text

"""A config as a Python file that trains as it stands."""

from collections.abc import Mapping
from typing import Any

from jaxcls import config as configs


def written(config: Mapping[str, Any], docstring: str, found: Mapping[str, Any]) -> str:
    """Returns the text of a config file: what differs from configs/base.py, key by key.

    Args:
      config: with all keys.
      docstring: of the file.
      found: {"section.key": value} that a search has set, which come last.
    """
    values, keys = configs.flatten(config), configs.defaults()[0]
    lines = [
        f"    c.{key} = {_literal(values[key])}"
        for key in keys
        if key not in found and values[key] != keys[key]
    ]
    text = docstring.replace("\\", "\\\\").replace('"""', "'''")
    return "\n".join(
        [
            f'"""{text}"""',
            "",
            "from configs import base",
            "",
            "",
            "def get_config(arg=None):",
            '    """Returns the config."""',
            "    c = base.get_config(arg)",
            *lines,
            "    # what the search has set",
            *(f"    c.{key} = {_literal(value)}" for key, value in found.items()),
            "    return c",
            "",
        ]
    )


def _literal(value: Any) -> str:
    """Returns Python for a value, with double quotes where that is all there is to it."""
    if isinstance(value, str) and value.isprintable() and not {'"', "\\"} & {*value}:
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    return repr(value)

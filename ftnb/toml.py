"""TOML for recipes: Python's standard library reads it; writing the few types that a recipe has is done here."""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any


def toml_value(value: Any) -> str:
    """One value as TOML: text, a number, a truth value, a list of them, or a table (written inline).

    Raises:
        TypeError: for anything else; TOML has no null.
    """
    if isinstance(value, str):  # JSON's rules for text, except that TOML wants the character 127 escaped, too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"a recipe's file cannot hold a {type(value).__name__}: {value!r}.")


def toml_key(key: str) -> str:
    """A key, in quotes unless it is made of plain letters, digits, _ and - only."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def parse_value(text: str) -> Any:
    """Read what stands behind `key=` on a command line: as TOML if it is TOML, otherwise as the text it is."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    known = isinstance(value, str | bool | int | float | list | dict)  # a date is text to us
    return value if known and len(parsed) == 1 else text

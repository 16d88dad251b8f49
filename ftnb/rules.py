"""What a setting may hold, said as data: a kind, limits, choices, and a sentence for people.

Checking is strict about types because the languages around us are not: in Python `True` is the integer 1, and YAML
reads `1e-5` as text. A value is either right, or the message names the setting, what was expected and what came.
"""

import difflib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


class RecipeError(ValueError):
    """A recipe that cannot be run: an unknown setting, a wrong type, an impossible value, or a file that is none."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one setting may hold.

    Attributes:
        kind: "text", "whole number" or "number"; or "data", "columns", "strategy", which have a check of their own.
        help: one sentence for people.
        above: a limit that is itself refused; `low` and `high` are limits that are allowed.
        choices: the only texts allowed; empty allows all.
        pattern: a regular expression that a text must match as a whole; `help` says the same in words.
        optional: whether None is allowed; it means "off", and a file leaves the setting out.
        example: what a recipe with comments shows for a setting that is off and has no choices.
    """

    kind: str
    help: str
    above: float | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    optional: bool = False
    example: Any = 100

    def expects(self) -> str:
        """The rule in words, for an error: 'a whole number, at least 1'."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        if self.pattern:
            return f"one of {self.help}"
        limits = {"above": self.above, "at least": self.low, "at most": self.high}
        words = [f"{word} {limit:.10g}" for word, limit in limits.items() if limit is not None]
        name = "text that is not empty" if self.kind == "text" else f"a {self.kind}"
        return ", ".join([name, *words]) + (", or nothing" if self.optional else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion for a mistyped word, beginning with a space; empty when nothing is near."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check(key: str, value: Any, rule: Rule) -> Any:
    """Return a setting's value in the rule's own type.

    Raises:
        RecipeError: if it is of a wrong type or impossible; the message names the setting.
    """
    return None if value is None and rule.optional else CHECKS[rule.kind](key, value, rule)


def check_number(key: str, value: Any, rule: Rule) -> int | float:
    """Return `value` as a plain int or float within the rule's limits; True and "3" are no numbers."""
    whole = rule.kind == "whole number"
    right = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if right and isinstance(value, numbers.Integral) and not -(2**63) <= int(value) < 2**63:
        raise RecipeError(f"{key} must be {rule.expects()}; got a whole number of more than 64 bits.")
    if right and not math.isnan(value) and _within(value, rule):
        return int(value) if whole else float(value)
    quoted = isinstance(value, str) and re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", value.strip(), re.IGNORECASE)
    hint = " Write the number without quotes." if quoted else ""
    raise RecipeError(f"{key} must be {rule.expects()}; got {value!r}.{hint}")


def _within(value: float, rule: Rule) -> bool:
    return (
        (rule.above is None or value > rule.above)
        and (rule.low is None or value >= rule.low)
        and (rule.high is None or value <= rule.high)
    )


def check_text(key: str, value: Any, rule: Rule) -> str:
    """Return `value` as text that the rule allows; a path counts as its text."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip() or (rule.pattern and not re.fullmatch(rule.pattern, text)):
        raise RecipeError(f"{key} must be {rule.expects()}; got {value!r}.")
    if rule.choices and text not in rule.choices:
        raise RecipeError(f"{key} must be {rule.expects()}; got {value!r}.{did_you_mean(text, rule.choices)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecipeError(f"{key} holds characters that UTF-8 cannot write: {value!r}.") from None
    return text


TEXT = Rule(kind="text", help="")
PLACE = Rule(kind="whole number", help="", low=0)


def check_data(key: str, value: Any, rule: Rule) -> Any:
    """Return a name, a mapping split → data, or an object in memory as it is."""
    if value is None or isinstance(value, bool | numbers.Number | bytes):
        raise RecipeError(f"{key} must be a file, a folder, a name, or data in memory; got {value!r}.")
    if isinstance(value, str | os.PathLike):
        return check_text(key, value, TEXT)
    if type(value) is dict:  # split -> data; a DatasetDict, which is a dict too, stays what it is
        if not value:
            raise RecipeError(f"{key} must name the split 'train' at least; got an empty table.")
        return {check_text(f"a split of {key}", k, TEXT): check_data(f"{key}.{k}", v, rule) for k, v in value.items()}
    return value


def is_named(data: Any) -> bool:
    """Whether data is given by name (so that a file can say it), and not as an object in memory."""
    return isinstance(data, str) or (type(data) is dict and all(is_named(part) for part in data.values()))


SEVERAL_LABELS = (
    " Several labels of a text stand in one column: joined (\"a;b\"), with label_separator=';'; or as lists, which "
    "columns of 0 and 1 become by table['label'] = [[n for n in names if int(row[n])] for row in "
    "table.to_dict('records')]."
)


def check_columns(key: str, value: Any, rule: Rule) -> dict[str, str | int]:
    """Return a mapping role → column: a name, or a place counted from 0 in a file without a header line."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{key} must be a table of {rule.help}; got {value!r}.")
    columns: dict[str, str | int] = {}
    for role, column in value.items():
        name = f"{key}.{check_text(f'a role in {key}', role, TEXT)}"
        if isinstance(column, list | tuple | set):
            raise RecipeError(f"{name} must be one column; got {column!r}.{SEVERAL_LABELS if role == 'label' else ''}")
        columns[role] = (
            check_text(name, column, TEXT) if isinstance(column, str) else int(check_number(name, column, PLACE))
        )
    return columns


def check_strategy(key: str, value: Any, rule: Rule) -> str | dict[str, Any]:
    """Return a strategy's name, or its name with all its settings; a strategy object is written out as data."""
    data = value.to_dict() if hasattr(value, "to_dict") and not isinstance(value, type) else value
    if not isinstance(data, str | Mapping):
        raise RecipeError(f"{key} must be a name such as 'full', or a table with a name ({rule.help}); got {value!r}.")
    if data in ("full", {"name": "full"}):
        return "full"  # the default needs no look at the strategies, which bring torch with them
    try:
        full: dict[str, Any] = import_module("ftnb.strategies").strategy_from(data).to_dict()
    except ValueError as error:
        raise RecipeError(f"{key}: {error}") from None
    return str(full["name"]) if len(full) == 1 else dict(full)


CHECKS: dict[str, Callable[[str, Any, Rule], Any]] = {
    "text": check_text,
    "number": check_number,
    "whole number": check_number,
    "data": check_data,
    "columns": check_columns,
    "strategy": check_strategy,
}

"""Tasks by their Hugging Face names; a task's module is imported only when it is asked for."""

from difflib import get_close_matches
from importlib import import_module
from typing import Any

TASKS: dict[str, str] = {
    "text-classification": "ftnb.tasks.text_classification:TextClassification",
}


def task_class(name: str) -> Any:
    """The class of a task, for example `task_class("text-classification")`.

    Raises:
        ValueError: if there is no task of that name; the nearest one is suggested.
    """
    if name not in TASKS:
        near = get_close_matches(str(name), TASKS, n=1)
        suggestion = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task {name!r} is unknown; there are {', '.join(map(repr, TASKS))}.{suggestion}")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)

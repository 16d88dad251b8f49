"""The tensors inside what a module returns: taken out in a fixed order, and put back into the same structure."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a tensor was: its number in the list."""

    index: int


@dataclass(frozen=True)
class Node:
    """A container: its parts, and what makes it of them."""

    make: Callable[[list[Any]], Any]
    parts: tuple[Any, ...]


def take_apart(value: Any) -> tuple[list[Tensor], Any]:
    """The tensors inside a value, and a template of the rest.

    A value is a tensor, or tuples, lists and dictionaries of any depth. Numbers, texts and None stay in the template;
    other objects, such as a language model's cache of keys, become None.
    """
    tensors: list[Tensor] = []

    def walk(part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors.append(part)
            return Place(len(tensors) - 1)
        if isinstance(part, dict):
            return Node(_dict_maker(part), tuple(map(walk, part.values())))
        if isinstance(part, list | tuple):
            of: Any = type(part)
            make = (lambda items: of(*items)) if hasattr(part, "_fields") else of
            return Node(make, tuple(map(walk, part)))
        return part if isinstance(part, str | int | float | None) else None

    template = walk(value)
    return tensors, template


def _dict_maker(value: Any) -> Callable[[list[Any]], Any]:
    of, keys = type(value), list(value)
    if dataclasses.is_dataclass(value):  # an output of transformers
        return lambda items: of(**dict(zip(keys, items, strict=True)))
    return lambda items: of(zip(keys, items, strict=True))


def put_together(template: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse of `take_apart`, with other tensors."""
    if isinstance(template, Place):
        return tensors[template.index]
    if isinstance(template, Node):
        return template.make([put_together(part, tensors) for part in template.parts])
    return template


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside a value, in order."""
    yield from take_apart(value)[0]

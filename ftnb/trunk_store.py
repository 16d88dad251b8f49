"""What a trunk cache holds: tensors per example, without padding, in memory or in one memory-mapped file.

A file is named after everything that its numbers depend on, and beside it lies a hash of its bytes: a foreign or
damaged file is noticed when it is opened, and made again.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
PARTIAL = ".partial"
STALE = 86_400  # seconds after which nobody writes a partial file any more
ALIGN = 64  # bytes; a tensor of any type may begin at a multiple of it


@dataclass
class Group:
    """Examples whose inputs have the same shape, so that they were computed together without padding.

    Attributes:
        examples: their numbers.
        width: tokens of each, as wide as the attention mask; None without a mask.
        shapes: per leaf (a tensor that the trunk puts out), its shape for one example.
        values: per leaf, shape (examples, *shape); None where only the shape is needed.
    """

    examples: list[int]
    width: int | None
    shapes: list[tuple[int, ...]]
    values: list[Tensor | None]

    @property
    def num_bytes(self) -> int:
        """Memory of the values."""
        return sum(value.nbytes for value in self.values if value is not None)


@dataclass
class Store:
    """The groups of one split.

    Attributes:
        dtypes: per leaf, the type that a replay gives, which the values may be kept in less precision than.
        groups: what was computed.
    """

    dtypes: list[torch.dtype]
    groups: list[Group] = field(default_factory=list)
    _where: dict[int, tuple[Group, int]] = field(default_factory=dict)
    _token_axes: list[list[int]] = field(default_factory=list)

    def add(self, group: Group) -> None:
        """Take in a group."""
        self.groups.append(group)
        self._token_axes.clear()
        self._where.update({example: (group, row) for row, example in enumerate(group.examples)})

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return sum(group.num_bytes for group in self.groups)

    def __len__(self) -> int:
        return len(self._where)

    def bytes_of(self, example: int) -> int:
        """Bytes of one example's values."""
        group, _ = self._where[example]
        return group.num_bytes // len(group.examples)

    def batch(self, examples: Sequence[int], mask: Tensor | None) -> tuple[list[Tensor | None], list[tuple[int, ...]]]:
        """The leaves for a batch, padded with zeros, and their shapes for one example, those without values too.

        Args:
            examples: the examples of the batch.
            mask: the batch's attention mask, shape (batch, width); it tells how wide the batch is, and which side is
                padded. Without one, as wide as the widest example, padded behind.
        """
        rows = [self._where[example] for example in examples]
        left = mask is not None and bool((mask[:, 0] == 0).any())
        values, shapes = [], []
        for leaf, dtype in enumerate(self.dtypes):
            shape = self._padded_shape(leaf, [group for group, _ in rows], mask)
            kept = [group.values[leaf] for group, _ in rows]
            found = [value[row] for value, (_, row) in zip(kept, rows, strict=True) if value is not None]
            values.append(_pad(found, shape, left).to(dtype) if found else None)
            shapes.append(shape)
        return values, shapes

    def _padded_shape(self, leaf: int, groups: list[Group], mask: Tensor | None) -> tuple[int, ...]:
        shapes = {group.shapes[leaf] for group in groups}
        shape = [max(sizes) for sizes in zip(*shapes, strict=True)]
        for axis in self._axes_of_tokens()[leaf] if mask is not None else []:
            shape[axis] = mask.shape[1]  # type: ignore[union-attr]
        return tuple(shape)

    def _axes_of_tokens(self) -> list[list[int]]:
        """Per leaf, the axes that are as wide as the attention mask in every group."""
        if not self._token_axes:
            first = self.groups[0].shapes
            self._token_axes = [
                [axis for axis in range(len(shape)) if all(g.shapes[leaf][axis] == g.width for g in self.groups)]
                for leaf, shape in enumerate(first)
            ]
        return self._token_axes


def _pad(rows: list[Tensor], shape: tuple[int, ...], left: bool) -> Tensor:
    """Stack tensors, each filled up with zeros to a shape."""
    if all(row.shape == shape for row in rows):
        return torch.stack(rows)
    padded = rows[0].new_zeros((len(rows), *shape))
    for target, row in zip(padded, rows, strict=True):
        places = [slice(n - m, n) if left else slice(m) for n, m in zip(shape, row.shape, strict=True)]
        target[tuple(places)] = row
    return padded


class StoreFile:
    """A store being written to a file, group by group; it has its name only once it is complete.

    Args:
        path: of the file; its description lies beside it, with the ending `.json`.
        store: takes in the groups without their values, and, at the end, with values mapped from the file.
    """

    def __init__(self, path: Path, store: Store) -> None:
        self.path, self.store = path, store
        self._partial = path.with_suffix(f".{secrets.token_hex(4)}{PARTIAL}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        self._hash, self._size = hashlib.blake2b(), 0
        self._groups: list[dict[str, Any]] = []

    def add(self, group: Group) -> None:
        """Write a group down."""
        places = [None if value is None else self._write(value) for value in group.values]
        dtypes = [None if value is None else str(value.dtype).removeprefix("torch.") for value in group.values]
        self._groups.append(
            {
                "examples": group.examples,
                "width": group.width,
                "shapes": group.shapes,
                "places": places,
                "dtypes": dtypes,
            }
        )

    def _write(self, value: Tensor) -> int:
        data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        data += b"\0" * (-len(data) % ALIGN)
        place, self._size = self._size, self._size + len(data)
        self._file.write(data)
        self._hash.update(data)
        return place

    def finish(self) -> None:
        """Put the file safely on the disk, give it its name, and map it into the store."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._hash.update(json.dumps(self._groups).encode())
        about = {"format": FORMAT, "size": self._size, "content": self._hash.hexdigest(), "groups": self._groups}
        self.path.with_suffix(".json").unlink(missing_ok=True)  # it belongs to an older file of this name
        os.replace(self._partial, self.path)
        waiting = self._partial.with_suffix(f".about{PARTIAL}")
        waiting.write_text(json.dumps(about), encoding="utf-8")
        os.replace(waiting, self.path.with_suffix(".json"))
        _map(self.path, about, self.store)

    def abandon(self) -> None:
        """Close and remove what was written so far."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def read_store(path: Path, store: Store) -> bool:
    """Map a file into an empty store; False if there is none, or if it is not what its description says."""
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT or path.stat().st_size != about["size"]:
            return False
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b")
        content.update(json.dumps(about["groups"]).encode())
        if content.hexdigest() != about["content"]:
            return False
        _map(path, about, store)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        store.groups.clear()
        return False
    os.utime(path)  # the files used last are kept longest
    return True


def _map(path: Path, about: dict[str, Any], store: Store) -> None:
    size = about["size"]
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0)
    for group in about["groups"]:
        shapes = [tuple(shape) for shape in group["shapes"]]
        values: list[Tensor | None] = []
        for shape, place, name in zip(shapes, group["places"], group["dtypes"], strict=True):
            if place is None:
                values.append(None)
                continue
            dtype, whole = getattr(torch, name), (len(group["examples"]), *shape)
            num_bytes = torch.Size(whole).numel() * dtype.itemsize
            values.append(data[place : place + num_bytes].view(dtype).view(whole))
        store.add(Group(group["examples"], group["width"], shapes, values))


def make_room(folder: Path, needed: int, budget: int) -> None:
    """Remove the files of a folder that were used longest ago, until `needed` bytes more fit into the budget.

    What a killed process left half written goes as well.
    """
    files, room = _by_age(folder, "*.trunk"), budget - needed
    for path, _ in files:
        with suppress(OSError):  # another process may have removed it, or use it (Windows)
            room -= path.stat().st_size
            if room < 0:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)
    for path, used in _by_age(folder, f"*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - used > STALE:
                path.unlink()


def _by_age(folder: Path, pattern: str) -> list[tuple[Path, float]]:
    """The files of a folder with the time of their last use, newest first."""
    found = []
    for path in folder.glob(pattern):
        with suppress(OSError):
            found.append((path, path.stat().st_mtime))
    return sorted(found, key=lambda pair: -pair[1])

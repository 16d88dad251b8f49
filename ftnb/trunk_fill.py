"""Filling a trunk cache, a piece at a time: look at every example once, then compute those of equal shape together."""

import copy
import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftnb.data import Batches
from ftnb.step import Batch
from ftnb.trunk_checks import NoCache, costly_parts, without
from ftnb.trunk_store import Group, Store, StoreFile, make_room, read_store

PIECE = 64  # examples that are looked at in one piece of work
MASK = "attention_mask"
KEEP_BYTES = 256 * 2**20  # of what is left of examples whose picture or clip nobody needs any more


@dataclass(frozen=True)
class Shelf:
    """Where the tensors go.

    Attributes:
        kept: per leaf, whether its values are kept; of the others only shapes are.
        dtypes: per leaf, the type of a replay.
        low: keep decimal numbers in bf16.
        budget: bytes that may be filled.
        folder: for files; None keeps them in memory.
        key: everything but the data that the numbers depend on, as text.
    """

    kept: list[bool]
    dtypes: list[torch.dtype]
    low: bool
    budget: int = sys.maxsize
    folder: Path | None = None
    key: str = ""


class LightExamples:
    """Examples without what only the frozen layers read, where there is room to remember the rest.

    Args:
        examples: the full ones.
    """

    def __init__(self, examples: Any) -> None:
        self.examples = examples
        self.rest: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Any:
        return self.rest[i] if i in self.rest else self.examples[i]


@dataclass
class SplitFilling:
    """One split being put into a store.

    Attributes:
        batches: the examples.
        run: from a batch to the leaves of the trunk, each of shape (batch, …).
        shelf: where they go.
        unread: parts of an example that need not be made again once it is stored.
        store: the result.
        from_file: whether it was found complete on the disk.
        damaged: whether a file was there that could not be used.
    """

    batches: Batches
    run: Callable[[Batch], list[Tensor]]
    shelf: Shelf
    unread: list[str] = field(default_factory=list)
    store: Store = field(init=False)
    from_file: bool = False
    damaged: bool = False

    def __post_init__(self) -> None:
        self.store = Store(self.shelf.dtypes)
        lengths = self.batches.lengths
        self._order = list(range(self.batches.num_examples))
        if lengths is not None:
            self._order = np.argsort(np.asarray(lengths), kind="stable").tolist()
        self._seen, self._bytes, self._light_bytes = 0, 0, 0
        self._alike: dict[Any, list[int]] = {}
        self._digest = hashlib.blake2b(digest_size=16)
        self._groups: list[list[int]] | None = None
        self._file: StoreFile | None = None
        self.light = LightExamples(self.batches.examples)

    def work(self) -> bool:
        """Do one piece of work; whether the store is complete.

        Raises:
            NoCache: if it grows beyond the budget.
        """
        with torch.random.fork_rng(devices=[]):
            if self._groups is None:
                self._look()
                return False
            if self._groups and not self.from_file:
                self._fill(self._groups[0])
                self._groups.pop(0)  # only now: after an error, this group comes again
                return False
        if self._file is not None:
            self._file.finish()
            self._file = None
        return True

    def finish(self) -> None:
        """Do all the work."""
        while not self.work():
            pass

    def bytes_of(self, train: Batches, valid: Batches, picks: list[int]) -> int:
        """What whole splits will need, if this one holds their examples `picks`: a straight line through lengths."""
        sizes = [self.store.bytes_of(i) for i in range(len(picks))]
        if train.lengths is None or valid.lengths is None:
            return max(sizes) * (train.num_examples + valid.num_examples)
        short, long = train.lengths[picks[0]], train.lengths[picks[-1]]
        slope = (sizes[-1] - sizes[0]) / max(1, long - short)
        lengths = np.array([*train.lengths, *valid.lengths])
        return int(np.sum(sizes[0] + slope * (lengths - short)))

    def light_batches(self) -> Batches:
        """The batches, without the parts of their examples that nobody reads any more."""
        light = copy.copy(self.batches)
        light.examples = self.light if self.light.rest else self.batches.examples
        return light

    def _look(self) -> None:
        """Take the shapes and the fingerprint of some examples; after the last one, sort them into groups."""
        for i in self._order[self._seen : self._seen + PIECE]:
            example = self.batches.examples[i]
            tensors = inputs_of(self.batches.collate([example]))
            self._alike.setdefault(tuple((name, t.shape[1:]) for name, t in tensors.items()), []).append(i)
            self._digest.update(repr((i, [(name, t.dtype, t.shape) for name, t in tensors.items()])).encode())
            for tensor in tensors.values():
                self._digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            self._lighten(i, example)
            self._seen += 1
        if self._seen < len(self._order):
            return
        size = self.batches.batch_size
        self._groups = [of[i : i + size] for of in self._alike.values() for i in range(0, len(of), size)]
        if self.shelf.folder is not None:
            self._open(self.shelf.folder)

    def _lighten(self, i: int, example: Any) -> None:
        if not self.unread:
            return
        rest = {key: value for key, value in example.items() if key not in self.unread}
        self._light_bytes += sum(getattr(value, "nbytes", 64) for value in rest.values())
        if self._light_bytes <= KEEP_BYTES:
            self.light.rest[i] = without(example, self.unread)

    def _open(self, folder: Path) -> None:
        """Take the file of this name, if it is whole; else begin one."""
        named = hashlib.blake2b(f"{self.shelf.key}|{self.batches.batch_size}|{self.data}".encode(), digest_size=16)
        path = folder / f"{named.hexdigest()}.trunk"
        self.damaged = path.exists()
        if read_store(path, self.store) and len(self.store) == self.batches.num_examples:
            self.from_file, self.damaged = True, False
            return
        self.store = Store(self.shelf.dtypes)
        self._file = StoreFile(path, self.store)

    @property
    def data(self) -> str:
        """The hash of what the frozen layers read, complete when all examples have been looked at."""
        return self._digest.hexdigest()

    def _fill(self, examples: list[int]) -> None:
        """Compute one group and put it away."""
        batch = self.batches.collate([self.batches.examples[i] for i in examples])
        leaves = self.run(batch)
        values = [self._kept(leaf) if kept else None for leaf, kept in zip(leaves, self.shelf.kept, strict=True)]
        mask = batch.get(MASK)
        group = Group(
            examples,
            mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            [tuple(leaf.shape[1:]) for leaf in leaves],
            values,
        )
        self._bytes += group.num_bytes
        if self._bytes > self.shelf.budget:
            raise NoCache(f"it grew beyond the {in_words(self.shelf.budget)} that it may take.")
        if self._file is not None:
            self._file.add(group)
        else:
            self.store.add(group)

    def _kept(self, leaf: Tensor) -> Tensor:
        low = self.shelf.low and leaf.is_floating_point()
        return leaf.detach().to("cpu", torch.bfloat16 if low else leaf.dtype, copy=True)

    def abandon(self) -> None:
        """Remove a file that will not be finished."""
        if self._file is not None:
            self._file.abandon()
            self._file = None


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that a model reads: all but the labels."""
    return {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != "labels"}


def unread_parts(examples: Sequence[Any], same: Callable[[list[Any]], bool]) -> list[str]:
    """The costly parts of examples that nothing but the frozen layers reads.

    Args:
        examples: some examples.
        same: whether these examples give the same without such parts.
    """
    costly = costly_parts(examples[0]) if isinstance(examples[0], Mapping) else []
    return [key for keys in costly if same([without(example, keys) for example in examples]) for key in keys]


def in_words(num_bytes: float) -> str:
    """Bytes for people: "3.1 MB"."""
    for unit in ("bytes", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} GB"


def prepare_folder(folder: Path, needed: int, max_gb: float | None) -> int:
    """Make a folder for files, and room in it for so many bytes; returns how many may be filled.

    Args:
        folder: is made if it is missing; files in it that were used longest ago are removed.
        needed: bytes.
        max_gb: the most that the folder may hold; None is half of what is free on the disk.

    Raises:
        NoCache: if it does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    budget = int(max_gb * 1e9) if max_gb is not None else free // 2
    if needed > min(budget, free):
        raise NoCache(
            f"it would need {in_words(needed)} on the disk and may take {in_words(min(budget, free))}. "
            "Keep it in bf16, or allow more."
        )
    make_room(folder, needed, budget)
    return min(budget, free)

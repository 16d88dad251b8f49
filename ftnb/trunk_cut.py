"""The frozen modules of a model, computed alone or replayed, and a learner that replays them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ftnb.data import Batches
from ftnb.devices import to_device
from ftnb.nested import put_together, take_apart
from ftnb.step import Arithmetic, Batch, Learner
from ftnb.trunk_fill import MASK
from ftnb.trunk_store import Store

TRUNK, SHAPES = "trunk.", "trunk shapes"  # names in a batch: of each leaf that is kept, and of all leaves' shapes


@dataclass(frozen=True)
class Unit:
    """A frozen module that depends on nothing that trains, with the structure of its output and its leaves' numbers."""

    name: str
    module: nn.Module
    template: Any
    leaves: range


@dataclass(frozen=True)
class Cut:
    """The frozen trunk of a model: its modules in order and, for each tensor they put out, whether others need it."""

    units: list[Unit]
    dtypes: list[torch.dtype]
    kept: list[bool]


@contextmanager
def changed_forwards(changed: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules compute something else inside the `with` block."""
    before = {module: vars(module).get("forward") for module in changed}
    for module, forward in changed.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.forward
            else:
                module.forward = own


def replayed(units: Sequence[Unit], leaves: Sequence[Tensor]) -> Any:
    """A context in which the frozen modules do not compute, but give copies of what is in `leaves`."""

    def giving(unit: Unit) -> Callable[..., Any]:
        def forward(*_: Any, **__: Any) -> Any:
            copies = [leaves[i].clone(memory_format=torch.contiguous_format) for i in unit.leaves]
            return put_together(unit.template, copies)

        return forward

    return changed_forwards({unit.module: giving(unit) for unit in units})


class _ComputedError(Exception):
    """The last frozen module is computed; what comes after it is of no interest."""


def trunk_leaves(cut: Cut, learner: Learner, arithmetic: Arithmetic, batch: Batch) -> list[Tensor]:
    """Compute the frozen modules of a model for a batch, and nothing above them."""
    found: dict[int, Tensor] = {}

    def noting(unit: Unit) -> Callable[..., Any]:
        compute = unit.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = compute(*args, **kwargs)
            for i, tensor in zip(unit.leaves, take_apart(output)[0], strict=True):
                found[i] = tensor.clone() if cut.kept[i] else tensor
            if unit is cut.units[-1]:
                raise _ComputedError
            return output

        return forward

    noted = changed_forwards({unit.module: noting(unit) for unit in cut.units})
    with suppress(_ComputedError), noted, torch.no_grad(), arithmetic.autocast():
        learner.loss(learner.model, to_device(batch, arithmetic.device))
    return [found[i] for i in range(len(cut.dtypes))]


def trunk_hash(cut: Cut) -> str:
    """A hash of the names, weights and buffers of the frozen modules, and of which of their leaves are kept."""
    digest = hashlib.blake2b(repr((cut.kept, cut.dtypes)).encode(), digest_size=16)
    for unit in cut.units:
        for name, tensor in unit.module.state_dict(prefix=f"{unit.name}.").items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Shapes:
    """The shape of each leaf for one example. No list, since a list in a batch has one entry for each example."""

    of: list[tuple[int, ...]]


class ReplayedBatches(Batches):
    """Batches as they are, each with what the frozen layers put out for its examples.

    Args:
        plain: the batches.
        store: holds their examples.
    """

    def __init__(self, plain: Batches, store: Store) -> None:
        self.__dict__.update(vars(plain))
        self.plain, self.store = plain, store

    def __len__(self) -> int:
        return len(self.plain)

    def order(self, epoch: int = 0) -> list[list[int]]:
        """The indices of the examples in each batch of an epoch."""
        return self.plain.order(epoch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch number `start` on, with the leaves of the trunk."""
        for examples, batch in zip(self.order(epoch)[start:], self.plain.epoch(epoch, start), strict=True):
            values, shapes = self.store.batch(examples, batch.get(MASK))
            known = {f"{TRUNK}{i}": value for i, value in enumerate(values) if value is not None}
            yield {**batch, **known, SHAPES: Shapes(shapes)}


def full_leaves(cut: Cut, known: Mapping[int, Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """All leaves of a batch: those that are kept, and zeros of the right shape for those that nobody needs."""
    some = next(iter(known.values()))
    return [
        known[i] if i in known else torch.zeros((), dtype=dtype, device=some.device).expand(len(some), *shape)
        for i, (shape, dtype) in enumerate(zip(shapes, cut.dtypes, strict=True))
    ]


def replaying_learner(learner: Learner, cut: Cut, train: Batches, valid: Batches) -> Learner:
    """A learner that does the same as another one, except that the frozen modules are replayed.

    Args:
        learner: the other one.
        cut: its frozen modules.
        train: its training batches, with the leaves of the trunk.
        valid: its validation batches, with the leaves of the trunk.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        plain = {name: value for name, value in batch.items() if name != SHAPES and not name.startswith(TRUNK)}
        if SHAPES not in batch:  # a batch from elsewhere
            return learner.loss(model, plain)
        known = {int(name.removeprefix(TRUNK)): v for name, v in batch.items() if name.startswith(TRUNK)}
        with replayed(cut.units, full_leaves(cut, known, batch[SHAPES].of)):
            return learner.loss(model, plain)

    return replace(learner, train=train, valid=valid, loss=loss)

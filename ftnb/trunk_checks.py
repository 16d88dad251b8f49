"""What a training step gives, taken down so that two ways to compute it can be compared; nothing is left changed."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ftnb.data import Batches
from ftnb.nested import tensors_in
from ftnb.step import Arithmetic, Batch, moving_buffers, seed_generators

LossOf = Callable[[nn.Module, Batch], tuple[Tensor, Any]]


class NoCache(ValueError):  # noqa: N818  # a reason, and no mistake of anybody's
    """Why the output of the frozen layers cannot be kept, or is not worth it, in words."""


@dataclass(frozen=True)
class Outcome:
    """What a batch gives: loss and gradients in training mode, loss and outputs in eval mode."""

    training: list[Tensor]
    evaluation: list[Tensor]

    def same(self, other: "Outcome") -> bool:
        """Whether two outcomes are equal bit for bit (NaN equals nothing)."""
        mine, theirs = self.training + self.evaluation, other.training + other.evaluation
        return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))

    def distance(self, other: "Outcome") -> float:
        """How far apart loss and gradients are, relative to their size, and the losses in eval mode."""
        (loss, *grads), (loss_2, *grads_2) = self.training, other.training
        off = torch.stack([(a.float() - b.float()).norm() for a, b in zip(grads, grads_2, strict=True)]).norm()
        size = torch.stack([g.float().norm() for g in grads]).norm()
        pairs = ((loss, loss_2), (self.evaluation[0], other.evaluation[0]))
        of_losses = max(float((a - b).abs() / (a.abs() + 1e-6)) for a, b in pairs)
        worst = max(of_losses, float(off / (size + 1e-6)))
        return worst if worst == worst else float("inf")


def outcome(model: nn.Module, loss: LossOf, batch: Batch, arithmetic: Arithmetic) -> Outcome:
    """Compute a batch in the model's present modes and in eval mode; gradients, buffers and modes are put back."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    with undisturbed(model, arithmetic.device):
        value = training_pass(model, loss, batch, arithmetic)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainable]
        model.eval()
        with torch.no_grad(), arithmetic.autocast():
            evaluated, outputs = loss(model, batch)
    return Outcome([value, *grads], [evaluated.float(), *tensors_in(outputs)])


def training_pass(model: nn.Module, loss: LossOf, batch: Batch, arithmetic: Arithmetic, seed: int = 0) -> Tensor:
    """Loss and gradients of one batch, with the random numbers of a seed."""
    seed_generators(arithmetic.device, seed)
    with arithmetic.autocast():
        value, _ = loss(model, batch)
    value.backward()
    return value.detach().float()


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put back modes, gradients, moving statistics and random generators at the end."""
    modes = {module: module.training for module in model.modules()}
    buffers = moving_buffers(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def flops(work: Callable[[], object]) -> int:
    """Multiplications and additions of matrix products, convolutions and attention in a piece of work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def large_inputs(example: Mapping[str, Any]) -> list[str]:
    """Parts of an example that cost something to make: arrays of at least 256 decimal numbers (a picture, a clip)."""
    arrays = {key: value for key, value in example.items() if isinstance(value, Tensor | np.ndarray)}
    return [key for key, v in arrays.items() if _num_elements(v) >= 256 and "float" in str(v.dtype)]


def _num_elements(array: Tensor | np.ndarray) -> int:
    return array.numel() if isinstance(array, Tensor) else array.size


def without(example: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """An example with zeros in the place of some parts; they take no memory."""

    def nothing(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.zeros((), dtype=value.dtype).expand(value.shape)
        return np.broadcast_to(np.zeros((), dtype=value.dtype), value.shape)

    return {key: nothing(value) if key in keys else value for key, value in example.items()}


def three_examples(batches: Batches) -> list[int]:
    """The shortest, a middle and the longest example; of fewer than three, some come twice."""
    lengths = batches.lengths
    order = sorted(range(batches.num_examples), key=lambda i: lengths[i] if lengths is not None else i)
    return [order[0], order[len(order) // 2], order[-1]]


def refuse_random(batches: Batches, picks: list[int]) -> None:
    """Refuse examples that change from one epoch to the next.

    Raises:
        NoCache: if they are augmented at random.
    """
    examples = batches.examples
    kind = getattr(getattr(examples, "transform", None), "augment", "none")
    known = bool(getattr(examples, "train", False)) and kind != "none"
    for pick in picks if not known else []:
        seen = [_fetched(batches, pick, seed) for seed in range(4)]
        known = known or not all(len(seen[0]) == len(of) and all(map(torch.equal, seen[0], of)) for of in seen)
    if known:
        how = f" (augment={kind!r})" if kind != "none" else ""
        raise NoCache(
            f"the training examples change at random each time{how}, and so does what the frozen layers make of them. "
            "Train without augmentation, or without the cache."
        )


def _fetched(batches: Batches, pick: int, seed: int) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        state, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002  # somebody's transform may use it
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            return list(tensors_in(batches.collate([batches.examples[pick]])))
        finally:
            np.random.set_state(state)  # noqa: NPY002
            random.setstate(of_python)

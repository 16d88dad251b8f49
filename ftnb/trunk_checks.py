"""What a training step gives, taken down so that two ways to compute it can be compared; nothing is left changed."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ftnb.data import Batches
from ftnb.nested import tensors_in
from ftnb.step import Arithmetic, Batch, Learner, moving_buffers, seed_generators


class NoCache(ValueError):  # noqa: N818  # a reason, and no mistake of anybody's
    """Why the output of the frozen layers cannot be kept, or is not worth it, in words."""


@dataclass(frozen=True)
class Outcome:
    """What a batch gives: loss and gradients in training mode, loss and outputs in eval mode.

    `flops` counts the multiplications and additions of matrix products, convolutions and attention in training mode,
    where it was asked for.
    """

    training: list[Tensor]
    evaluation: list[Tensor]
    flops: int = 0

    def same(self, other: "Outcome") -> bool:
        """Whether two outcomes are equal, number by number (a NaN equals a NaN); on a GPU, nearly so.

        Some of a GPU's kernels add up in another order each time.
        """
        mine, theirs = self.training + self.evaluation, other.training + other.evaluation
        return len(mine) == len(theirs) and all(map(_equal, mine, theirs))

    def distance(self, other: "Outcome") -> float:
        """How far apart loss and gradients are, relative to their size, and the losses in eval mode."""
        (loss, *grads), (loss_2, *grads_2) = self.training, other.training
        off = torch.stack([(a.float() - b.float()).norm() for a, b in zip(grads, grads_2, strict=True)]).norm()
        size = torch.stack([g.float().norm() for g in grads]).norm()
        pairs = ((loss, loss_2), (self.evaluation[0], other.evaluation[0]))
        of_losses = max(float((a - b).abs() / (a.abs() + 1e-6)) for a, b in pairs)
        worst = max(of_losses, float(off / (size + 1e-6)))
        return worst if worst == worst else float("inf")


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if a.device.type == "cpu":
        return bool(((a == b) | ((a != a) & (b != b))).all())
    size = float(a.float().nan_to_num().abs().max()) if a.numel() else 0.0
    return torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-3 * size, equal_nan=True)


def outcome(learner: Learner, batch: Batch, arithmetic: Arithmetic, *, count: bool = False) -> Outcome:
    """Compute a batch in the model's present modes and in eval mode, with the same random numbers each time.

    Gradients, buffers, modes and generators are put back. With `count`, multiplications are counted, which takes time.
    """
    model, trainable = learner.model, [p for p in learner.model.parameters() if p.requires_grad]
    with undisturbed(model, arithmetic.device):
        seed_generators(arithmetic.device, 0)
        counter = FlopCounterMode(display=False)
        with counter if count else nullcontext():
            with arithmetic.autocast():
                value, _ = learner.loss(model, batch)
            value.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainable]
        model.eval()
        with torch.no_grad(), arithmetic.autocast():
            evaluated, outputs = learner.loss(model, batch)
        weight = torch.tensor(float(learner.weight(batch)))
    evaluation = [evaluated.float(), weight, *tensors_in((outputs, learner.metrics.inputs(outputs, batch)))]
    num_flops = int(counter.get_total_flops()) if count else 0
    return Outcome([value.detach().float(), *grads], evaluation, num_flops)


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


def costly_parts(example: Mapping[str, Any]) -> list[list[str]]:
    """Parts of an example that cost something to make or to collate, to be tried without.

    Arrays of at least 256 decimal numbers (a picture, a clip), one at a time; and all lists (tokens) at once.
    """
    arrays = {key: value for key, value in example.items() if isinstance(value, Tensor | np.ndarray)}
    large = [[key] for key, v in arrays.items() if "float" in str(v.dtype) and _num_elements(v) >= 256]
    lists = [key for key, value in example.items() if isinstance(value, list) and not key.startswith("label")]
    return [*large, *([lists] if lists else [])]


def _num_elements(array: Tensor | np.ndarray) -> int:
    return array.numel() if isinstance(array, Tensor) else array.size


def without(example: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """An example with some parts made cheap: zeros that take no memory, or the first token alone."""

    def nothing(value: Any) -> Any:
        if isinstance(value, list):
            return value[:1]
        if isinstance(value, Tensor):
            return torch.zeros((), dtype=value.dtype).expand(value.shape)
        return np.broadcast_to(np.zeros((), dtype=value.dtype), value.shape)

    return {key: nothing(value) if key in keys else value for key, value in example.items()}


def three_examples(batches: Batches) -> list[int]:
    """A short, a middle and a long example (longer than three quarters); of fewer than three, some come twice."""
    lengths = batches.lengths
    order = sorted(range(batches.num_examples), key=lambda i: lengths[i] if lengths is not None else i)
    return [order[0], order[len(order) // 2], order[3 * len(order) // 4]]


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

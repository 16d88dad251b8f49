"""Where numbers stop being numbers: which examples of a batch, and which layer, make a loss or a gradient not finite.

Called when it has happened already, to say it in words; nothing of the training is changed by looking.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftnb.devices import to_device
from ftnb.step import Arithmetic, Batch, Learner

MAX_LOOKED_AT, MAX_NAMED = 64, 5  # examples


def explain(learner: Learner, indices: Sequence[int], arithmetic: Arithmetic) -> str:
    """One or two sentences on what is not finite in a step on some examples, by the weights as they are now.

    Args:
        learner: model, loss and training data.
        indices: positions of the step's examples in `learner.train.examples`.
        arithmetic: device and precision of the training.
    """
    state = (*learner.model.named_parameters(), *learner.model.named_buffers())
    if (broken := next((name for name, tensor in state if not _finite(tensor)), None)) is not None:
        return f"The weights hold numbers that are not finite already, first in {broken}."
    with _untouched(learner.model, arithmetic.device):
        guilty = [i for i in indices[:MAX_LOOKED_AT] if not _finite(_loss(learner, [i], arithmetic))]
        looked_at = guilty[:1] or list(indices)
        where = _where(learner, looked_at, arithmetic)
    names = ", ".join(str(_row(learner.train.examples, i)) for i in (guilty or list(indices))[:MAX_NAMED])
    more = len(guilty or indices) - MAX_NAMED
    names += f" and {more} more" if more > 0 else ""
    if guilty:
        return f"The loss of row {names} is not finite: {where}."
    return f"It takes the examples together (rows {names}): {where}."


def _where(learner: Learner, indices: list[int], arithmetic: Arithmetic) -> str:
    """The first thing that is not finite: in the batch, in a layer's output, in the loss, in a gradient."""
    batch = _batch(learner, indices, arithmetic)
    bad = [name for name, value in _named_tensors(batch) if not _finite(value)]
    if bad:
        return f"{bad[0]} of the batch holds numbers that are not finite"
    with _watch_layers(learner.model) as first, arithmetic.autocast():
        loss, _ = learner.loss(learner.model, batch)
    if first:
        return f"the first output that is not finite is that of {first[0]}"
    if not _finite(loss):
        return "all layers' outputs are finite, the loss computed from them is not"
    trained = [(name, p) for name, p in learner.model.named_parameters() if p.requires_grad]
    gradients: Any = torch.autograd.grad(loss, [p for _, p in trained], allow_unused=True)  # None where unused
    broken = [name for (name, _), g in zip(trained, gradients, strict=True) if g is not None and not _finite(g)]
    if broken:
        return f"the loss is finite, the gradient of {broken[-1]} is not"
    return "seen again without dropout, everything is finite"


def _loss(learner: Learner, indices: list[int], arithmetic: Arithmetic) -> Tensor:
    with torch.no_grad(), arithmetic.autocast():
        return learner.loss(learner.model, _batch(learner, indices, arithmetic))[0]


def _batch(learner: Learner, indices: list[int], arithmetic: Arithmetic) -> Batch:
    train = learner.train
    batch: Batch = to_device(train.collate([train.examples[i] for i in indices]), arithmetic.device)
    return batch


def _row(examples: Any, i: int) -> Any:
    """What a person calls an example: its row in the source, where the data keeps that."""
    example = examples[i]
    return example["row"] if isinstance(example, dict) and "row" in example else i


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "the batch", value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _named_tensors(item, f"{name}.{key}" if name else str(key))


@contextlib.contextmanager
def _watch_layers(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules whose output is not finite, in the order in which they finish (inner ones first)."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            values = output if isinstance(output, dict | list | tuple) else [output]
            if not all(_finite(tensor) for _, tensor in _named_tensors(values)):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode and any random numbers inside, everything as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode

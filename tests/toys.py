"""A tiny learner for tests of the engine: points in a plane, a network with dropout and BatchNorm, ragged batches."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftnb.data import Batches
from ftnb.metrics import classification_metrics
from ftnb.step import Batch, Learner

torch.set_num_threads(1)  # "bitwise" holds for one thread; with two on a busy machine, sums came out in another order


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that another thread does; fail if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def points(num_examples: int, seed: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(num_examples, 6, generator=g)
    labels = (X[:, 0] + X[:, 1] > 0).long()
    return [{"x": x, "labels": y} for x, y in zip(X, labels, strict=True)]


def stack(examples: list[dict[str, Tensor]]) -> Batch:
    return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    logits = model(batch["x"])
    return F.cross_entropy(logits, batch["labels"]), logits


def toy_learner(num_examples: int = 50, batch_size: int = 8, seed: int = 0, model: nn.Module | None = None) -> Learner:
    """50 examples in batches of 8 give 7 batches, the last one with 2 examples."""
    if model is None:
        torch.manual_seed(seed)
        model = Net()
    metrics = classification_metrics(2)
    metrics.inputs = lambda outputs, batch: (outputs, batch["labels"])
    return Learner(
        model=model,
        train=Batches(points(num_examples, 1), stack, batch_size, shuffle=True, seed=seed),
        valid=Batches(points(40, 2), stack, 16),
        loss=loss,
        metrics=metrics,
        new_parameters=frozenset({"head.weight", "head.bias"}),
    )


def weights(model: nn.Module) -> Tensor:
    """All of a model's tensors, buffers too, as one vector."""
    return torch.cat([t.detach().flatten().float() for t in model.state_dict().values()])

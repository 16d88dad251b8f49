"""The cache of frozen layers: every task with and without it, what it refuses, and what it survives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftnb import Training
from ftnb.strategies import Head, TopK
from ftnb.tasks import TASKS, task_class
from ftnb.trunk_cache import TrunkCache
from tests.test_task_matrix import TINY


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return {task: make(tmp_path_factory.mktemp(task)) for task, make in TINY.items()}


def training(own: dict[str, Any], task: str, strategy: Any, cache: TrunkCache | None, **settings: Any) -> Training:
    options = {"image_size": own["image_size"]} if "image_size" in own else {}
    of = task_class(task).prepare(own["data"], own["model"], **options)
    learner = of.learner(batch_size=8)
    settings = {"lr": 1e-3, "num_epochs": 3, "device": "cpu", **settings}
    return Training(learner, strategy, cache=cache, **settings)


def weights(model: nn.Module) -> Tensor:
    """All parameters but the biases of keys: in exact arithmetic no gradient reaches those, and rounding moves them."""
    kept = [p for n, p in model.named_parameters() if not n.endswith(("key.bias", "k_proj.bias"))]
    return torch.cat([p.detach().flatten() for p in kept])


@pytest.mark.parametrize("strategy", [Head(), TopK(1)], ids=["head", "top-1"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_the_same_with_the_cache(tiny, task, strategy):
    plain, cached = (training(tiny[task], task, strategy, cache) for cache in (None, TrunkCache(min_speedup=1.0)))
    for of in (plain, cached):
        for _ in of:
            pass
    assert cached.cache.saving.reason == ""
    assert cached.cache.saving.speedup > 1.03
    assert (weights(plain.model) - weights(cached.model)).abs().max() < 1e-5

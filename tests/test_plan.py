"""Settings, plan, rates, best: the bookkeeping of a training."""

import math

import pytest
import torch
from torch import nn

from ftnb.plan import Best, Plan, Rates, Settings, TrainingError


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"num_epochs": 1.5}, "num_epochs"),
        ({"num_epochs": True}, "num_epochs"),
        ({"accumulation": 0}, "accumulation"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup": 1.0}, "warmup"),
        ({"schedule": "triangle"}, "schedule"),
        ({"eval_every": 0}, "eval_every"),
        ({"patience": 0}, "patience"),
    ],
)
def test_impossible_numbers_are_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        Settings(**wrong)


def test_phases_split_all_steps_and_each_starts_afresh():
    plan = Plan(num_batches=10, accumulation=4, num_epochs=4, shares=(0.25, 0.75))
    assert (plan.steps_per_epoch, plan.num_steps) == (3, 12)
    assert [plan.phase_at(step) for step in range(12)] == [0] * 3 + [1] * 9
    assert plan.progress(0) == plan.progress(3) == 0.0
    assert max(plan.progress(step) for step in range(12)) < 1


def test_a_phase_without_steps_is_refused():
    with pytest.raises(TrainingError, match="one of them gets no step"):
        Plan(num_batches=2, accumulation=1, num_epochs=1, shares=(0.1, 0.9))
    with pytest.raises(TrainingError, match="sum to 1"):
        Plan(num_batches=2, accumulation=1, num_epochs=1, shares=(0.5, 0.6))
    with pytest.raises(TrainingError, match="nothing to train on"):
        Plan(num_batches=0, accumulation=1, num_epochs=1)


def test_a_rate_for_all_keeps_proportions_and_a_single_one_stays_alone():
    rates, multipliers = Rates(1e-3), {"trunk": 0.1, "head": 1.0}
    assert rates.set(5e-4, "head", multipliers) == 1e-3
    assert rates.peak("trunk", 0.1) == pytest.approx(1e-4)
    assert rates.set(2e-3, None, multipliers) == 1e-3
    assert rates.peak("trunk", 0.1) == pytest.approx(2e-4)
    assert rates.peak("head", 1.0) == pytest.approx(1e-3)


@pytest.mark.parametrize(("higher", "values", "best"), [(True, [0.5, 0.7, 0.6], 0.7), (False, [0.5, 0.3, 0.6], 0.3)])
def test_best_follows_the_metrics_direction(higher, values, best):
    kept = Best(higher_is_better=higher)
    for step, value in enumerate(values):
        kept.offer(value, step)
    assert (kept.value, kept.step, kept.misses) == (best, 1, 1)


def test_nan_is_never_the_best_for_long():
    kept = Best(higher_is_better=True)
    assert [kept.offer(v, i) for i, v in enumerate([math.nan, 0.1, math.nan])] == [True, True, False]


def test_best_weights_are_copies():
    model, kept = nn.Linear(2, 2), Best(higher_is_better=True)
    before = model.weight.detach().clone()
    kept.keep(model, {"weight"})
    nn.init.zeros_(model.weight)
    kept.restore(model)
    assert torch.equal(model.weight.data, before)

"""Numbers that are none: caught in the step, said in words, and never let into the weights."""

import pytest
import torch
from torch import nn

from ftnb.events import Stepped, Warned
from ftnb.step import Arithmetic
from ftnb.train import Training
from tests.toys import Net, loss, points, toy_learner, weights

FAST = {"lr": 1e-2, "num_epochs": 2, "device": "cpu"}


def warned(training: Training) -> list[Warned]:
    for _ in training:
        pass
    return [event for event in training.log if isinstance(event, Warned)]


def poisoned(i: int, value: float = float("nan")):
    learner = toy_learner()
    learner.train.examples[i]["x"] = torch.full((6,), value)
    return learner


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_example_is_named_and_touches_nothing(value):
    training = Training(poisoned(17, value), **FAST)
    said = warned(training)
    assert len(said) == 2, "once in each epoch"
    for one, epoch in zip(said, (0, 1), strict=True):
        order = training.learner.train.order(epoch)
        assert one.step == epoch * 7 + next(k for k, batch in enumerate(order) if 17 in batch) + 1
        assert "this update was skipped. The loss of row 17 is not finite: x of the batch holds" in one.message
    assert torch.isfinite(weights(training.model)).all(), "BatchNorm's statistics, too"


def test_batchnorm_statistics_are_those_before_the_bad_step():
    learner = poisoned(17)
    at = next(k for k, batch in enumerate(learner.train.order(0)) if 17 in batch)
    training = Training(learner, **FAST)
    for _ in range(at):
        training.step()
    before = weights(training.model)
    training.step()
    assert torch.equal(weights(training.model), before)


class Layered(nn.Module):
    """Its second layer overflows for large inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), Power(), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


class Power(nn.Module):
    def forward(self, x):
        return torch.exp(x * 1.0)


def test_the_first_layer_is_named():
    torch.manual_seed(0)
    learner = toy_learner(model=Layered())
    learner.new_parameters = frozenset()
    learner.train.examples[3]["x"] = torch.full((6,), 1e4)
    (first, *_) = warned(Training(learner, **FAST))
    assert "row 3 is not finite: the first output that is not finite is that of second" in first.message


def test_a_loss_of_its_own_making_and_a_gradient_of_its_own_making():
    learner = toy_learner()
    learner.loss = lambda model, batch: (loss(model, batch)[0] / 0.0, model(batch["x"]))
    training = Training(learner, **FAST)
    training.step()
    assert "all layers' outputs are finite, the loss computed from them is not" in training.log[-1].message

    class Root(Net):
        def forward(self, x):
            return super().forward(x) + torch.sqrt((self.head.weight * 0.0).sum())  # the root's slope at 0 is infinite

    torch.manual_seed(0)
    training = Training(toy_learner(model=Root()), **FAST)
    training.step()
    assert "the loss is finite, the gradient of head.weight is not" in training.log[-1].message


def test_weights_that_were_broken_before_are_named():
    learner = toy_learner()
    with torch.no_grad():
        learner.model.head.bias[0] = float("nan")
    training = Training(learner, **FAST)
    training.step()
    assert "already, first in head.bias" in training.log[-1].message


def test_looking_changes_nothing():
    """Modes and gradients are as they were."""
    training = Training(poisoned(17), **FAST)
    modes = []
    for event in training:
        modes.append(training.model.training) if isinstance(event, Stepped) else None
    assert all(modes[:-1])
    assert all(p.grad is None for p in training.model.parameters())


def test_an_explanation_that_fails_costs_nothing():
    learner = poisoned(17)
    collate, calls = learner.train.collate, []

    def fails_when_asked_for_one(examples):
        calls.append(len(examples))
        if len(examples) == 1:
            raise RuntimeError("only whole batches")
        return collate(examples)

    learner.train.collate = fails_when_asked_for_one
    said = warned(Training(learner, **FAST))
    assert said[0].message.endswith("this update was skipped.")


def test_overflows_of_the_fp16_scaler_are_no_alarm():
    """The scaler begins high and finds its scale by overflowing; the arithmetic says so, the training says nothing."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    arithmetic = Arithmetic(torch.device("cpu"), "fp16")
    assert arithmetic.scaler.is_enabled()
    arithmetic.backward((weight * 1e38).sum(), 1.0)
    assert not torch.isfinite(arithmetic.update(optimizer))
    assert torch.equal(weight.data, torch.ones(2, 2))


@pytest.mark.parametrize("seed", range(5))
def test_no_false_alarm(seed):
    learner = toy_learner(seed=seed)
    learner.train.examples = points(50, seed + 10)
    assert warned(Training(learner, **FAST, seed=seed)) == []

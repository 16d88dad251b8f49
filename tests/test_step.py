"""One optimizer step: exact accumulation, what is frozen, garbage that must not reach the weights, repeatable dice."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftnb.step import (
    Arithmetic,
    Everything,
    ParamGroup,
    Phase,
    StepInHand,
    build_optimizer,
    moving_buffers,
    seed_generators,
    set_modes,
    set_trainable,
)
from tests.toys import Net, points, stack

CPU = torch.device("cpu")


def head_only(model: Net) -> Phase:
    trunk = ParamGroup("trunk", list(model.trunk.parameters()), 0.0, [model.trunk])
    return Phase("head", 1.0, [trunk, ParamGroup("head", list(model.head.parameters()))])


@pytest.mark.parametrize("cuts", [[], [1], [5, 9], [1, 2, 3, 30]])
def test_micro_batches_give_the_gradient_of_the_whole_batch(cuts):
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    X, y = torch.randn(32, 6).double(), torch.randint(2, (32,))
    F.cross_entropy(model(X), y).backward()
    whole = model.weight.grad.clone()
    model.zero_grad()
    for piece_X, piece_y in zip(X.tensor_split(cuts), y.tensor_split(cuts), strict=True):
        Arithmetic(CPU).backward(F.cross_entropy(model(piece_X), piece_y), len(piece_X) / 32)
    torch.testing.assert_close(model.weight.grad, whole, rtol=1e-12, atol=1e-12)


def test_frozen_means_constant():
    torch.manual_seed(0)
    model = Net()
    phase = head_only(model)
    set_trainable(phase)
    set_modes(model, phase)
    before = copy.deepcopy(model.trunk.state_dict())
    optimizer = build_optimizer(phase, 0.01, CPU)
    batch = stack(points(8, 0))
    outputs = [model.trunk(batch["x"]) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1]), "dropout acts in a frozen trunk"
    Arithmetic(CPU).backward(F.cross_entropy(model(batch["x"]), batch["labels"]), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    Arithmetic(CPU).update(optimizer)
    assert all(torch.equal(t, before[name]) for name, t in model.trunk.state_dict().items())


def test_weight_decay_spares_biases_and_norms():
    optimizer = build_optimizer(Everything().phases(model := Net(), frozenset())[0], 0.1, CPU)
    decayed = {p for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    assert decayed == {model.trunk[0].weight, model.head.weight}


def test_a_phase_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="'nothing' trains no parameters"):
        build_optimizer(Phase("nothing", 1.0, [ParamGroup("all", list(Net().parameters()), 0.0)]), 0.0, CPU)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_garbage_never_reaches_the_weights(garbage):
    model = Net()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(Everything().phases(model, frozenset())[0], 0.01, CPU)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    arithmetic = Arithmetic(CPU)
    arithmetic.backward(model.head.weight.sum() * garbage, 1.0)
    assert not torch.isfinite(arithmetic.update(optimizer))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()), "the bad gradients must not stay for the next step"


def test_clipping_bounds_the_joint_norm():
    weight = nn.Parameter(torch.zeros(2, 1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    Arithmetic(CPU, max_grad_norm=1.0).backward((weight * torch.tensor([[3.0], [4.0]])).sum(), 1.0)
    norm = Arithmetic(CPU, max_grad_norm=1.0).update(optimizer)
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(weight.data, torch.tensor([[-0.6], [-0.8]]))


def test_dice_depend_on_the_place_and_on_nothing_else():
    def draw(*place: int) -> list[float]:
        seed_generators(CPU, *place)
        return torch.rand(4).tolist()

    first = draw(0, 3, 1)
    torch.rand(100)
    assert draw(0, 3, 1) == first
    assert len({tuple(draw(*place)) for place in [(0, 3, 1), (0, 1, 3), (1, 3, 1), (0, 3, -1, 1), (0, 3)]}) == 5


def test_a_half_done_step_can_be_forgotten():
    torch.manual_seed(0)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    batch = stack(points(8, 0))
    step = StepInHand([batch], [8], moving_buffers(model), 1)
    F.cross_entropy(model(batch["x"]), batch["labels"]).backward()
    assert not torch.equal(model.trunk[1].running_mean, before["trunk.1.running_mean"])
    step.forget(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

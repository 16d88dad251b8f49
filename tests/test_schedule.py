import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftnb.schedule import SCHEDULES, lr_factor, lr_range_test, restored, smooth, suggest_lr
from ftnb.step import ParamGroup


@given(progress=st.floats(0, 1, exclude_max=True), warmup=st.floats(0, 0.99), schedule=st.sampled_from(SCHEDULES))
def test_factor_is_above_0_at_every_step_and_never_above_1(progress, warmup, schedule):
    assert 0 < lr_factor(progress, warmup=warmup, schedule=schedule) <= 1 or progress > 1 - 1e-7


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_factor_rises_to_1_then_never_rises_again(schedule):
    factors = [lr_factor(i / 1000, warmup=0.25, schedule=schedule) for i in range(1001)]
    assert factors[0] > 0
    assert factors[250] == 1.0
    assert factors[:251] == sorted(factors[:251])
    assert factors[250:] == sorted(factors[250:], reverse=True)


def test_factor_ends_where_the_shape_says():
    assert lr_factor(1.0, schedule="linear") == 0
    assert lr_factor(1.0, schedule="cosine") == pytest.approx(0)
    assert lr_factor(1.0, schedule="constant") == 1
    assert lr_factor(0.5, warmup=0.0, schedule="cosine") == pytest.approx(0.5)
    assert lr_factor(0.0, warmup=0.0) == 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"progress": 1.5}, "progress"),
        ({"progress": -0.1}, "progress"),
        ({"progress": math.nan}, "progress"),
        ({"progress": 0.5, "warmup": 1.0}, "warmup"),
        ({"progress": 0.5, "schedule": "step"}, "schedule"),
    ],
)
def test_factor_refuses_what_is_out_of_range(settings, word):
    with pytest.raises(ValueError, match=word):
        lr_factor(**settings)


class Rebinding(nn.Module):
    """Replaces a buffer by another tensor in its forward pass, as rotary embeddings do when a text is long."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.cache = torch.ones(5)
        return x


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), Rebinding(), nn.Linear(16, 2)
    )
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.full_like(model[5].weight, 7.0)
    return model


def make_batches(n=8, noise=0.0):
    g = torch.Generator().manual_seed(1)
    X = torch.randn(n, 16, 4, generator=g)
    return [{"x": x, "y": (x[:, 0] > 0).long() ^ (torch.rand(16, generator=g) < noise)} for x in X]


def cross_entropy(model, batch):
    logits = model(batch["x"])
    return nn.functional.cross_entropy(logits, batch["y"]), logits


def everything(model):
    """All that must come back: tensors and their identity, flags, modes, gradients, generators."""
    return {
        "values": [t.clone() for t in (*model.parameters(), *model.buffers())],
        "objects": [id(t) for t in (*model.parameters(), *model.buffers())],
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "generators": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # noqa: NPY002
    }


def assert_same(before, after):
    assert all(torch.equal(a, b) for a, b in zip(before["values"], after["values"], strict=True))
    assert all(before[key] == after[key] for key in ("objects", "flags", "modes", "generators"))
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a[0] == b[0] and torch.equal(a[1], b[1]))


def test_range_test_leaves_the_model_and_the_generators_bit_for_bit():
    model = make_model()

    def noisy_loss(model, batch):
        random.random(), np.random.rand()  # noqa: NPY002
        return cross_entropy(model, batch)

    before = everything(model)
    result = lr_range_test(model, noisy_loss, make_batches())
    assert_same(before, everything(model))
    assert len(result.losses) > 20


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_range_test_restores_when_it_fails_or_is_interrupted(error):
    model, calls = make_model(), []

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 15:
            raise error("stop")
        return cross_entropy(model, batch)

    before = everything(model)
    with pytest.raises(error):
        lr_range_test(model, failing, make_batches())
    assert_same(before, everything(model))


def test_a_run_after_the_range_test_is_the_run_without_it():
    def train(look):
        model = make_model().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        torch.manual_seed(3)
        for i, batch in enumerate(make_batches()):
            if look and i == 4:
                lr_range_test(model, cross_entropy, make_batches())
            optimizer.zero_grad()
            cross_entropy(model, batch)[0].backward()
            optimizer.step()
        return [p.clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_range_test_finds_a_rate_that_learns():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    result = lr_range_test(model, cross_entropy, make_batches(), max_lr=10.0)
    assert 1e-4 < result.suggestion < 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=result.suggestion)
    batches = make_batches(60)
    losses = []
    for batch in batches:
        loss, _ = cross_entropy(model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_range_test_stops_at_divergence_and_at_nan():
    model = nn.Sequential(nn.Linear(4, 1))

    def regression(model, batch):
        y = model(batch["x"])
        return (y - batch["x"].sum(1, keepdim=True)).square().mean(), y

    result = lr_range_test(model, regression, make_batches(), max_lr=1e6)
    assert "times its best" in result.stopped
    assert result.lrs[-1] < 1e6
    assert len(result.lrs) == len(result.losses) == len(result.smoothed)

    calls = []

    def breaking(model, batch):
        calls.append(1)
        loss, y = regression(model, batch)
        return loss * (math.nan if len(calls) > 30 else 1), y

    result = lr_range_test(model, breaking, make_batches())
    assert "nan" in result.stopped
    assert all(map(math.isfinite, result.losses))


def test_range_test_keeps_a_strategys_groups():
    model = make_model()
    body, head = model[:5], model[5]
    groups = [
        ParamGroup("body", list(body.parameters()), 0.0, list(body)),
        ParamGroup("head", list(head.parameters()), 1.0, [head]),
    ]
    seen = []

    def spying(model, batch):
        seen.append(
            (model[0].weight.clone(), model[3].training, model[0].weight.requires_grad, model[5].weight.clone())
        )
        return cross_entropy(model, batch)

    before = everything(model)
    lr_range_test(model, spying, make_batches(), param_groups=groups)
    assert_same(before, everything(model))
    assert all(torch.equal(weight, seen[0][0]) and not mode and not grad for weight, mode, grad, _ in seen)
    assert not torch.equal(seen[0][3], seen[-1][3])


def test_suggestion_lies_below_the_minimum_and_none_without_a_fall():
    lrs = np.geomspace(1e-7, 1, 100).tolist()
    valley = [1 - 0.8 * math.exp(-(((math.log10(lr) + 2) / 1.0) ** 2)) for lr in lrs]
    suggestion, reason = suggest_lr(lrs, valley, noise=0.01)
    assert 1e-4 < suggestion < 1e-2
    assert reason
    assert suggest_lr(lrs, [1.0] * 100, noise=0.01)[0] is None
    assert suggest_lr(lrs, [1 + lr for lr in lrs], noise=0.01)[0] is None
    nothing = lr_range_test(nn.Linear(4, 2), cross_entropy, make_batches(), max_lr=1e-5)
    assert nothing.suggestion is None
    assert "never clearly fell" in nothing.reason
    assert nothing.plot().axes


def test_a_dent_in_the_plateau_is_no_suggestion():
    lrs = np.geomspace(1e-7, 1, 100).tolist()
    valley = [1 - 0.8 * math.exp(-(((math.log10(lr) + 2) / 1.0) ** 2)) for lr in lrs]
    dented = [1 - 0.2 if i == 1 else value for i, value in enumerate(valley)]  # steeper than the valley's own fall
    assert suggest_lr(lrs, dented, noise=0.01) == suggest_lr(lrs, valley, noise=0.01)


def test_smoothing_keeps_a_straight_line_and_does_not_lag():
    line = smooth([float(i) for i in range(50)], 3.0)
    assert line[25] == pytest.approx(25)
    step = smooth([0.0] * 25 + [1.0] * 25, 3.0)
    assert step[24] + step[25] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"min_lr": 1.0, "max_lr": 0.1}, "min_lr"), ({"min_lr": 0.0}, "min_lr"), ({"num_steps": 3}, "num_steps")],
)
def test_range_test_refuses_impossible_ranges(settings, word):
    with pytest.raises(ValueError, match=word):
        lr_range_test(make_model(), cross_entropy, make_batches(), **settings)


def test_range_test_names_what_is_missing():
    with pytest.raises(ValueError, match="no batches"):
        lr_range_test(make_model(), cross_entropy, [])
    with pytest.raises(ValueError, match="read only once"):
        lr_range_test(make_model(), cross_entropy, iter(make_batches()))
    with pytest.raises(ValueError, match="no trainable parameters"):
        lr_range_test(make_model().requires_grad_(False), cross_entropy, make_batches())
    with pytest.raises(ValueError, match="not finite before any update"):
        lr_range_test(make_model(), lambda m, b: (m(b["x"]).sum() * math.nan, None), make_batches())


def test_range_test_draws_a_figure_with_the_suggestion():
    result = lr_range_test(nn.Linear(4, 2), cross_entropy, make_batches())
    ax = result.plot().axes[0]
    assert ax.get_xscale() == "log"
    assert f"suggestion {result.suggestion:.1e}" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_restored_keeps_an_optimizer_valid():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with restored(model):
        model.weight.data.fill_(9.0)
    before = model.weight.clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight, before - 0.1)


@pytest.mark.gpu
def test_range_test_restores_on_a_gpu():
    model = make_model()
    for p in model.parameters():
        p.grad = None
    model.cuda()
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.cuda.get_rng_state()
    result = lr_range_test(model, cross_entropy, make_batches())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(generator, torch.cuda.get_rng_state())
    assert result.losses

import copy
import json
import math

import pytest
import torch
import torchvision
import transformers as hf
from torch import nn

from ftnb.layers import layer_groups, what_is_training
from ftnb.step import build_optimizer, set_modes, set_trainable
from ftnb.strategies import LPFT, STRATEGIES, Full, Head, LayerDecay, StrategyError, TopK, apply, strategy_from

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
EXAMPLES = [Full(), Head(), TopK(2), LayerDecay(0.5), LPFT(0.25, head_lr=5.0, full_lr=0.5)]


def bert():
    torch.manual_seed(0)
    return hf.BertForSequenceClassification(hf.BertConfig(**SMALL)).eval()


def text_batch():
    g = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, 50, (4, 8), generator=g), "labels": torch.tensor([0, 1, 0, 1])}


def rates(phase, model):
    """Multiplier by layer group's name."""
    of = {p: group.multiplier for group in phase.groups for p in group.parameters}
    groups = layer_groups(model)
    found = {g.name: {of[model.get_parameter(p)] for p in g.parameters} for g in groups}
    assert all(len(values) == 1 for values in found.values())
    return {name: values.pop() for name, values in found.items()}


@pytest.mark.parametrize("strategy", EXAMPLES, ids=lambda s: s.name)
@pytest.mark.parametrize("build", [bert, lambda: torchvision.models.resnet18(num_classes=3)], ids=["bert", "resnet"])
def test_every_parameter_is_in_exactly_one_group_of_every_phase(strategy, build):
    model = build()
    phases = strategy.phases(model)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    for phase in phases:
        listed = [id(p) for group in phase.groups for p in group.parameters]
        assert sorted(listed) == sorted(map(id, model.parameters()))
        assert len({group.name for group in phase.groups}) == len(phase.groups)


def test_rates_are_what_each_strategy_says():
    model = bert()
    names = ["embeddings", "block 0", "block 1", "block 2", "block 3", "head"]
    assert rates(Full().phases(model)[0], model) == dict.fromkeys(names, 1.0)
    assert rates(Head().phases(model)[0], model) == dict.fromkeys(names, 0.0) | {"head": 1.0}
    top = rates(TopK(2).phases(model)[0], model)
    assert top == dict.fromkeys(names, 0.0) | {"block 2": 1.0, "block 3": 1.0, "head": 1.0}
    decay = rates(LayerDecay(0.5).phases(model)[0], model)
    assert decay == {name: 0.5 ** (5 - i) for i, name in enumerate(names)}
    first, second = LPFT(0.25, head_lr=5.0, full_lr=0.5).phases(model)
    assert rates(first, model) == dict.fromkeys(names, 0.0) | {"head": 5.0}
    assert rates(second, model) == dict.fromkeys(names, 0.5)
    assert (first.share, second.share) == (0.25, 0.75)


def test_groups_are_named_for_people():
    model = bert()
    assert [g.name for g in Full().phases(model)[0].groups] == ["backbone", "head"]
    assert [g.name for g in TopK(1).phases(model)[0].groups] == ["embeddings – block 2", "block 3", "head"]
    assert [g.name for g in TopK(4).phases(model)[0].groups] == ["embeddings", "block 0 – block 3", "head"]


def train(model, phase, steps=3):
    set_trainable(phase)
    set_modes(model, phase)
    optimizer = build_optimizer(phase, 0.01, torch.device("cpu"))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * group["multiplier"]
    for _ in range(steps):
        model(**text_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_frozen_is_constant_in_weights_outputs_and_statistics():
    model = bert()
    before = copy.deepcopy(model)
    train(model, Head().phases(model)[0])
    assert all(torch.equal(a, b) for a, b in zip(model.bert.parameters(), before.bert.parameters(), strict=True))
    assert not torch.equal(model.classifier.weight, before.classifier.weight)
    ids = text_batch()["input_ids"]
    assert torch.equal(model.bert(ids).last_hidden_state, before.bert(ids).last_hidden_state)
    assert not any(m.training for m in model.bert.modules())
    assert model.dropout.training
    assert model.classifier.training

    resnet = torchvision.models.resnet18(num_classes=3)
    phase = TopK(1).phases(resnet)[0]
    set_trainable(phase)
    set_modes(resnet, phase)
    resnet(torch.randn(4, 3, 32, 32))
    moved = {n for n, b in resnet.named_buffers() if n.endswith("running_mean") and b.any()}
    assert moved == {"layer4.1.bn1.running_mean", "layer4.1.bn2.running_mean"}


def test_modules_that_hold_only_frozen_parameters_are_in_eval_mode_too():
    # wav2vec2 drops layers and masks inputs by its own mode, not by that of a Dropout inside it
    config = {k: SMALL[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size")}
    config |= {"num_hidden_layers": 2, "num_feat_extract_layers": 1, "num_conv_pos_embedding_groups": 2}
    config |= {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 4}
    model = hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**config))
    set_modes(model, Head().phases(model)[0])
    assert not model.wav2vec2.training
    assert not model.wav2vec2.encoder.training
    assert model.training
    assert model.classifier.training


@pytest.mark.parametrize("strategy", EXAMPLES, ids=lambda s: s.name)
def test_what_is_training_finds_no_surprise_in_any_phase(strategy):
    model = bert()
    for phase in strategy.phases(model):
        table = what_is_training(model, text_batch(), strategy=phase)
        assert table.surprises == []
        expected = rates(phase, model)
        assert {row.name: row.moved == row.tensors for row in table.rows} == {n: m > 0 for n, m in expected.items()}


def test_new_parameters_train_with_the_head():
    model = bert()
    new = frozenset(n for n, _ in model.named_parameters() if "pooler" in n or "classifier" in n)
    head = Head().phases(model, new)[0].trainable
    assert {id(p) for p in head} == {id(model.get_parameter(n)) for n in new}


def test_apply_and_undo_leave_flags_and_modes_as_they_were():
    model = bert()
    model.bert.encoder.layer[1].train()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)

    def state():
        return [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]

    before = state()
    undo = apply(TopK(1).phases(model)[0], model)
    assert state() != before
    assert model.bert.encoder.layer[3].training
    assert not model.bert.encoder.layer[2].training
    undo()
    assert state() == before


@pytest.mark.parametrize("strategy", EXAMPLES, ids=lambda s: s.name)
def test_a_strategy_survives_the_way_through_json(strategy):
    data = json.loads(json.dumps(strategy.to_dict()))
    assert strategy_from(data) == strategy
    assert STRATEGIES[data["name"]] is type(strategy)
    assert strategy_from(strategy.name) == type(strategy)()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("ful", ["'ful'", "Did you mean 'full'"]),
        ("xyzzy", ["There is full, head, top-k"]),
        ({}, ["unknown strategy None"]),
        ({"name": ["full"]}, ["unknown strategy"]),
        ({"name": "top-k", "kk": 1}, ["no setting 'kk'", "Did you mean 'k'"]),
        ({"name": "full", "k": 1}, ["no setting 'k'", "none"]),
        ({"name": "top-k", "k": 0}, ["k counts", "0"]),
        ({"name": "top-k", "k": 1.5}, ["k counts", "1.5"]),
        ({"name": "top-k", "k": True}, ["k counts"]),
        ({"name": "layer-decay", "decay": 0}, ["decay", "above 0"]),
        ({"name": "layer-decay", "decay": "0.9"}, ["decay must be a finite number"]),
        ({"name": "layer-decay", "decay": math.nan}, ["decay must be a finite number"]),
        ({"name": "lp-ft", "head_share": 1.0}, ["head_share"]),
        ({"name": "lp-ft", "head_lr": -1.0}, ["head_lr"]),
        ({"name": "lp-ft", "full_lr": 0}, ["full_lr"]),
    ],
)
def test_impossible_strategies_are_refused_by_name(data, words):
    with pytest.raises(StrategyError) as caught:
        strategy_from(data)
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_does_not_fit_the_model_is_refused_before_training():
    with pytest.raises(StrategyError, match="k=5 is too large: BertForSequenceClassification has 4 blocks"):
        TopK(5).phases(bert())
    gpt2 = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50))
    for strategy in (Head(), LPFT()):
        with pytest.raises(StrategyError, match="GPT2LMHeadModel has no head of its own"):
            strategy.phases(gpt2)
    assert [g.multiplier for g in TopK(1).phases(gpt2)[0].groups] == [0.0, 1.0]


def test_a_plain_model_may_be_tuned_in_part():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    phase = TopK(1).phases(model)[0]
    assert [(g.name, g.multiplier) for g in phase.groups] == [("block 0", 0.0), ("block 1", 1.0), ("head", 1.0)]

"""Gradual unfreezing, surgical fine-tuning, BitFit and re-initialisation: what moves, what does not, and the way back.

On each of the eight tasks every strategy trains a tiny model; then every tensor is compared, bit for bit, with what it
was, and with the tensors that full fine-tuning can move at all (some, such as a mask that is never used, never do).
"""

import copy
import dataclasses
import json
import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
import transformers as hf
from torch import nn
from typer.testing import CliRunner

from ftnb import LoRA, Recipe, Training
from ftnb.adapter_layers import adapter_layers
from ftnb.cli import app
from ftnb.events import Changed
from ftnb.layers import layer_groups, what_is_training
from ftnb.more_strategies import BitFit, Gradual, Reinit, Surgical, reinitialise, undo
from ftnb.plan import TrainingError
from ftnb.rules import RecipeError
from ftnb.saved import load_task
from ftnb.schedule import lr_factor
from ftnb.step import set_modes, set_trainable
from ftnb.strategies import STRATEGIES, Full, LayerDecay, StrategyError, TopK, apply, strategy_from
from ftnb.tasks import TASKS, task_class
from ftnb.widgets.form import RecipeForm
from tests.test_task_matrix import TINY
from tests.tiny import tiny_bert, write_csv

EXAMPLES = [
    Gradual(2, 0.5),
    Surgical(1, 1, head_lr=2.0),
    BitFit(5.0, 2.0),
    Reinit(2, "full"),
    Reinit(1, LayerDecay(0.8)),
]
BATCH_NORM = nn.modules.batchnorm._NormBase
NO_BIASES = {("object-detection", "bitfit")}  # a detector's ResNet: plain convolutions, norms frozen as constants
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def bert():
    torch.manual_seed(0)
    return hf.BertForSequenceClassification(hf.BertConfig(**SMALL, vocab_size=50, max_position_embeddings=32)).eval()


def llama(**settings: Any):
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, vocab_size=50, **settings)).eval()


def gpt2():
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50, n_positions=32)).eval()


def text_batch():
    g = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, 50, (4, 8), generator=g), "labels": torch.tensor([0, 1, 0, 1])}


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in tensors(model).items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, t in tensors(model).items() if not torch.equal(t, before[name])}


def statistics(model: nn.Module) -> dict[str, str]:
    """Names of BatchNorm's running statistics, each with the name of its layer."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BATCH_NORM) and m.track_running_stats}
    return {f"{n}.{b}": n for n, m in layers.items() for b, _ in m.named_buffers(recurse=False)}


def members(model: nn.Module, new: frozenset[str], *names: str) -> set[str]:
    """The parameters of some layer groups."""
    return {p for g in layer_groups(model, new) if g.name in names for p in g.parameters}


# --- every task ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """For each task the task object, made once; its model is never trained, only copies of it are."""

    @cache
    def of(name: str) -> tuple[Any, Any]:
        folder = tmp_path_factory.mktemp(name)
        own = TINY[name](folder)
        if name == "text-generation":  # a language model of today has no biases
            config = hf.AutoConfig.from_pretrained(own["model"])
            config.update({"attention_bias": True, "mlp_bias": True})
            torch.manual_seed(7)
            hf.LlamaForCausalLM(config).save_pretrained(own["model"])
        options = {"image_size": own["image_size"]} if "image_size" in own else {}
        return task_class(name).prepare(own["data"], own["model"], **options), own["ask"]

    return of


def training_of(task: Any, strategy: Any, **settings: Any) -> Training:
    """A training of a copy of the task's model, in four steps or more."""
    learner = task.learner(batch_size=8)
    mine = dataclasses.replace(learner, model=copy.deepcopy(task.model))
    settings = {"lr": 1e-3, "num_epochs": 3, "device": "cpu", "seed": 3} | settings
    return Training(mine, strategy, **settings)


def trained(task: Any, strategy: Any, steps: int = 4) -> tuple[Training, dict[str, torch.Tensor], set[str]]:
    """A training after its first steps, the tensors as they were before, and the names of those that moved."""
    before = held(task.model)
    training = training_of(task, strategy)
    for _ in range(steps):
        training.step()
    return training, before, moved(training.model, before)


@pytest.fixture(scope="module")
def movable(prepared):
    """The tensors of a task's model that full fine-tuning moves."""

    @cache
    def of(name: str) -> frozenset[str]:
        return frozenset(trained(prepared(name)[0], Full())[2])

    return of


def body(model: nn.Module, new: frozenset[str]) -> list[str]:
    return [g.name for g in layer_groups(model, new) if g.name != "head"]


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_surgical_moves_the_chosen_groups_and_the_head_bit_for_bit(prepared, movable, name, start):
    task, _ = prepared(name)
    training, before, now = trained(task, Surgical(1, start))
    model, new = training.model, training.learner.new_parameters
    chosen = members(model, new, body(model, new)[start], "head")
    inside = {n for n, layer in statistics(model).items() if f"{layer}.weight" in chosen}
    assert now == (chosen | inside) & movable(name)
    assert members(model, new, "head") & now
    assert all(torch.equal(tensors(model)[n], before[n]) for n in before.keys() - chosen - inside)


@pytest.mark.parametrize("name", TASKS)
def test_bitfit_moves_biases_and_head_bit_for_bit(prepared, movable, name):
    task, _ = prepared(name)
    if (name, "bitfit") in NO_BIASES:
        with pytest.raises(StrategyError, match="has no bias vectors.*'lora'"):
            trained(task, BitFit())
        return
    training, _, now = trained(task, BitFit())
    model, new = training.model, training.learner.new_parameters
    head = members(model, new, "head")
    biases = {n for n, p in model.named_parameters() if n.endswith("bias") and p.ndim == 1}
    inside = {n for n, layer in statistics(model).items() if f"{layer}.weight" in head}  # the head's own BatchNorm
    assert now == (head | biases | inside) & movable(name)
    assert (biases - head) & now


@pytest.mark.parametrize("name", TASKS)
def test_gradual_moves_in_each_phase_what_has_thawed_bit_for_bit(prepared, movable, name):
    task, _ = prepared(name)
    training = training_of(task, Gradual(), num_epochs=4)
    model, new = training.model, training.learner.new_parameters
    groups = [g.name for g in layer_groups(model, new)]
    assert len(training.phases) == len(groups)
    starts = [*training.plan.phase_starts, training.plan.num_steps]
    for phase, (begin, end) in enumerate(pairwise(starts)):
        before = held(model)
        for _ in range(begin, end):
            training.step()
        thawed = members(model, new, *groups[-1 - phase :])
        inside = {n for n, layer in statistics(model).items() if f"{layer}.weight" in thawed}
        assert training.position.phase == phase
        assert moved(model, before) == (thawed | inside) & movable(name), phase


@pytest.mark.parametrize("name", TASKS)
def test_reinit_replaces_the_last_block_by_the_seed_and_undo_brings_it_back(prepared, name):
    task, _ = prepared(name)
    before = held(task.model)
    model = (training := training_of(task, Reinit())).model
    new = training.learner.new_parameters
    blocks = [group for group in body(model, new) if group.startswith("block")]
    block = members(model, new, blocks[-1])
    inside = {n for n, layer in statistics(model).items() if f"{layer}.weight" in block}
    fresh = {n: t.clone() for n, t in tensors(model).items() if n in block | inside}
    matrices = {n for n in block if fresh[n].ndim >= 2}
    assert matrices
    assert matrices <= moved(model, before) <= block | inside  # norms and biases of a tiny random model start alike
    again, other = training_of(task, Reinit()), training_of(task, Reinit(), seed=4)
    assert all(torch.equal(tensors(again.model)[n], t) for n, t in fresh.items())
    assert not any(torch.equal(tensors(other.model)[n], fresh[n]) for n in matrices)
    undo(model)
    assert moved(model, before) == set()
    for _ in range(2):
        again.step()
    after = held(again.model)
    undo(again.model)
    assert all(torch.equal(tensors(again.model)[n], before[n]) for n in block | inside)
    assert all(torch.equal(tensors(again.model)[n], after[n]) for n in before.keys() - block - inside)


@pytest.mark.parametrize("strategy", [Gradual(3), Surgical(1), BitFit(), Reinit()], ids=lambda s: s.name)
@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_by_every_strategy_to_a_plain_model(prepared, tmp_path, name, strategy):
    if (name, strategy.name) in NO_BIASES:
        pytest.skip("its backbone has no biases: the test of BitFit sees that it says so")
    task, ask = copy.deepcopy(prepared(name))
    training = Training(task.learner(batch_size=8), strategy, lr=1e-3, num_epochs=2, device="cpu")
    flags = [p.requires_grad for p in task.model.parameters()]
    list(training)
    assert training.reason == "done"
    assert [p.requires_grad for p in task.model.parameters()] == flags
    assert len([e for e in training.log if isinstance(e, Changed)]) == (len(training.phases) > 1) * len(training.phases)
    task.save(tmp_path / "model")
    (answer,), (again,) = task.predict([ask]), load_task(tmp_path / "model").predict([ask])
    assert str(again) == str(answer)


# --- what each says --------------------------------------------------------------------------------------------------


def rates(phase, model):
    of = {p: group.multiplier for group in phase.groups for p in group.parameters}
    found = {g.name: {of[model.get_parameter(p)] for p in g.parameters} for g in layer_groups(model)}
    assert all(len(values) == 1 for values in found.values())
    return {name: values.pop() for name, values in found.items()}


@pytest.mark.parametrize("strategy", EXAMPLES, ids=str)
@pytest.mark.parametrize(
    "build", [bert, gpt2, lambda: torchvision.models.resnet18(num_classes=3)], ids=["bert", "gpt2", "resnet"]
)
def test_every_parameter_is_in_exactly_one_group_of_every_phase(strategy, build):
    model = build()
    phases = strategy.phases(model)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert len({phase.name for phase in phases}) == len(phases)
    for phase in phases:
        listed = [id(p) for group in phase.groups for p in group.parameters]
        assert sorted(listed) == sorted(map(id, model.parameters()))
        assert len({group.name for group in phase.groups}) == len(phase.groups)


def test_gradual_thaws_from_the_head_down():
    model, names = bert(), ["embeddings", "block 0", "block 1", "block 2", "head"]
    one = Gradual().phases(model)
    assert [phase.name for phase in one] == ["head", *(f"down to {name}" for name in reversed(names[:-1]))]
    assert [[n for n, m in rates(phase, model).items() if m] for phase in one] == [names[-i:] for i in range(1, 6)]
    assert {phase.share for phase in one} == {0.2}
    three = Gradual(3, decay=0.5).phases(model)
    assert [rates(phase, model) for phase in three] == [
        dict.fromkeys(names, 0.0) | {"head": 1.0},
        {"embeddings": 0.0, "block 0": 0.125, "block 1": 0.25, "block 2": 0.5, "head": 1.0},
        {"embeddings": 0.0625, "block 0": 0.125, "block 1": 0.25, "block 2": 0.5, "head": 1.0},
    ]
    assert [phase.name for phase in Gradual(4).phases(model)] == ["head", "down to embeddings"]
    headless = Gradual(2).phases(gpt2())
    assert [phase.name for phase in headless] == ["down to block 1", "down to embeddings"]


def test_surgical_takes_neighbours_anywhere():
    model, names = bert(), ["embeddings", "block 0", "block 1", "block 2", "head"]
    none = dict.fromkeys(names, 0.0)
    assert rates(Surgical().phases(model)[0], model) == none | {"embeddings": 1.0, "block 0": 1.0, "head": 1.0}
    assert rates(Surgical(2, 2, 3.0).phases(model)[0], model) == none | {"block 1": 1.0, "block 2": 1.0, "head": 3.0}
    assert rates(Surgical(1, 1, 0.0).phases(model)[0], model) == none | {"block 0": 1.0}
    assert rates(Surgical(4).phases(model)[0], model) == dict.fromkeys(names, 1.0)


def test_surgical_leaves_the_layers_above_in_eval_and_passes_gradients_through():
    model = bert()
    undone = apply(Surgical(1, 1).phases(model)[0], model)
    layers = model.bert.encoder.layer
    assert [layer.training for layer in layers] == [True, False, False]
    assert not model.bert.embeddings.training
    model(**text_batch()).loss.backward()
    assert all(p.grad is not None for p in layers[0].parameters())
    assert all(p.grad is None for p in layers[1].parameters())
    undone()
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())


def test_modes_under_bitfit_dropout_is_on_batch_norm_stands_still_and_what_has_no_bias_is_in_eval():
    model = bert()
    (phase,) = BitFit().phases(model)
    set_modes(model, phase)
    assert all(m.training for m in model.modules())  # embeddings, too: their norm has a bias
    resnet = torchvision.models.resnet18(num_classes=3)
    (phase,) = BitFit().phases(resnet)
    set_trainable(phase)
    set_modes(resnet, phase)
    norms = [m for m in resnet.modules() if isinstance(m, BATCH_NORM)]
    assert not any(m.training for m in norms)
    assert all(m.bias.requires_grad and not m.weight.requires_grad for m in norms)
    assert all(m.training for m in (resnet.layer1, resnet.layer4[1], resnet.fc))
    before = held(resnet)
    resnet(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(m.bias.grad.any() for m in norms)
    assert moved(resnet, before) == set()
    language = gpt2()
    set_modes(language, BitFit().phases(language)[0])
    assert not language.transformer.wte.training
    assert not language.transformer.drop.training  # it lies between tables that have no bias
    assert language.transformer.h[0].training
    model = bert()
    before = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    apply(BitFit().phases(model)[0], model)()
    assert before == ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])


def test_bitfit_finds_biases_by_whatever_name_and_nothing_else():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, bias=True)  # in_proj_bias
            self.rnn = nn.GRU(8, 8)  # bias_ih_l0
            self.relative_position_bias_table = nn.Parameter(torch.zeros(4, 4))
            self.unbiased = nn.Parameter(torch.zeros(4))

    model = nn.Sequential(nn.Sequential(Block(), Block()), nn.Linear(8, 2))
    biases = next(g for g in BitFit().phases(model)[0].groups if g.name == "biases").parameters
    names = {n.rpartition(".")[2] for n, p in model.named_parameters() if any(p is bias for bias in biases)}
    assert names == {"in_proj_bias", "bias", "bias_ih_l0", "bias_hh_l0"}


@pytest.mark.parametrize("strategy", EXAMPLES, ids=str)
@pytest.mark.parametrize("build", [bert, gpt2], ids=["bert", "gpt2"])
def test_what_is_training_has_no_surprise_and_leaves_the_model_as_it_was(strategy, build):
    model = build()
    before, noted, generator = held(model), set(vars(model)), torch.get_rng_state()
    batch = text_batch() | ({"labels": text_batch()["input_ids"]} if build is gpt2 else {})
    table = what_is_training(model, batch, strategy=strategy)
    assert table.surprises == []
    assert moved(model, before) == set()
    assert set(vars(model)) == noted
    assert torch.equal(torch.get_rng_state(), generator)


# --- re-initialisation -----------------------------------------------------------------------------------------------


def test_the_new_numbers_are_those_of_the_models_own_initialiser():
    config = hf.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    config.initializer_range = 0.3
    model = hf.BertForSequenceClassification(config)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    reinitialise(model)
    block = model.bert.encoder.layer[1]
    for module in [*block.modules(), *model.bert.pooler.modules()]:
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.3, rel=0.1)
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones(64))
    assert all((p == 7).all() for p in model.bert.encoder.layer[0].parameters())
    deep = gpt2()  # its last matrix of a block starts smaller, which only its own initialiser knows
    reinitialise(deep, 1)
    last = deep.transformer.h[2]
    ratio = last.mlp.c_proj.weight.std() / last.mlp.c_fc.weight.std()
    assert ratio.item() == pytest.approx(1 / math.sqrt(2 * 3), rel=0.15)


def test_what_from_pretrained_marked_as_loaded_is_replaced_too(tmp_path):
    bert().save_pretrained(tmp_path)
    model = hf.BertForSequenceClassification.from_pretrained(tmp_path)
    before = held(model)
    reinitialise(model)
    layer = {n for n in before if ".layer.2." in n and "weight" in n and "LayerNorm" not in n}
    assert layer <= moved(model, before)


def test_batch_norm_starts_anew_and_comes_back():
    model = torchvision.models.resnet18(num_classes=3)
    model(torch.randn(4, 3, 32, 32))
    before = held(model)
    reinitialise(model)
    assert not model.layer4[1].bn1.running_mean.any()
    assert torch.equal(model.layer4[1].bn1.running_var, torch.ones(512))
    assert model.layer4[0].bn1.running_mean.any()
    undo(model)
    assert moved(model, before) == set()
    undo(model)  # nothing to do


def test_twice_is_once_and_other_blocks_must_be_undone_first():
    model = bert()
    torch.manual_seed(1)
    reinitialise(model, 1)
    once = held(model)
    reinitialise(model, 1)
    assert moved(model, once) == set()
    for other in (2, 3):
        with pytest.raises(StrategyError, match="Call undo"):
            reinitialise(model, other)
    undo(model)
    reinitialise(model, 2)


def test_a_new_pooler_is_the_heads_and_is_left_alone():
    model = bert()
    new = frozenset(n for n, _ in model.named_parameters() if "pooler" in n or "classifier" in n)
    before = held(model)
    reinitialise(model, 1, new)
    assert not any("pooler" in n for n in moved(model, before))
    undo(model)
    reinitialise(model, 1)
    assert any("pooler" in n for n in moved(model, before))


def test_a_parameter_that_nobody_knows_how_to_start_is_refused_and_nothing_changed():
    model = torchvision.models.convnext_tiny(num_classes=2)  # its layer_scale is filled in the constructor only
    before = held(model)
    with pytest.raises(StrategyError, match=r"does not say how .*layer_scale starts"):
        reinitialise(model)
    assert moved(model, before) == set()
    assert "replaced_weights" not in vars(model)


@pytest.mark.parametrize("then", ["head", LoRA(rank=2), TopK(1), Surgical(1)], ids=str)
def test_new_blocks_that_would_stay_random_are_refused(then):
    model = bert()
    before = held(model)
    with pytest.raises(StrategyError, match="does not train all of the last 2 blocks: random weights would stay"):
        Reinit(2, then).phases(model)
    assert moved(model, before) == set()
    assert not adapter_layers(model)
    assert Reinit(2, TopK(2)).phases(model)


def test_on_the_meta_device_reinit_only_says_what_trains():
    with torch.device("meta"):
        model = hf.BertForSequenceClassification(hf.BertConfig(**SMALL, vocab_size=50))
    (phase,) = Reinit(2).phases(model)
    assert len(phase.trainable) == len(list(model.parameters()))


# --- errors, recipes, form and command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "gradual", "groups": 0}, ["groups", "whole number from 1", "0"]),
        ({"name": "gradual", "groups": True}, ["groups"]),
        ({"name": "gradual", "decay": 0}, ["decay", "above 0"]),
        ({"name": "gradual", "decay": math.nan}, ["decay must be a finite number"]),
        ({"name": "gradual", "group": 1}, ["no setting 'group'", "Did you mean 'groups'"]),
        ({"name": "surgical", "k": 1.5}, ["k counts", "1.5"]),
        ({"name": "surgical", "start": -1}, ["start", "from 0", "-1"]),
        ({"name": "surgical", "head_lr": -0.5}, ["head_lr", "0"]),
        ({"name": "bitfit", "bias_lr": 0}, ["bias_lr must be above 0"]),
        ({"name": "bitfit", "head_lr": "1"}, ["head_lr must be a finite number"]),
        ({"name": "reinit", "blocks": 0}, ["blocks", "from 1"]),
        ({"name": "reinit", "then": "ful"}, ["'ful'", "Did you mean 'full'"]),
        ({"name": "reinit", "then": {"name": "top-k", "k": 0}}, ["k counts"]),
        ({"name": "reinit", "then": 3}, ["then", "3"]),
        ({"name": "reinit", "then": "reinit"}, ["another strategy"]),
        ("gradul", ["Did you mean 'gradual'"]),
        ("bit-fit", ["Did you mean 'bitfit'"]),
    ],
)
def test_impossible_numbers_are_refused_by_name(data, words):
    with pytest.raises(StrategyError) as caught:
        strategy_from(data)
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_does_not_fit_the_model_is_refused_before_training():
    with pytest.raises(StrategyError, match="has 4 layer groups below the head. Choose from 1 to 4"):
        Gradual(5).phases(bert())
    with pytest.raises(StrategyError, match=r"\(0 embeddings, 1 block 0, .*start \+ k is at most 4"):
        Surgical(2, 3).phases(bert())
    with pytest.raises(StrategyError, match="has 3 blocks. Choose from 1 to 3"):
        Reinit(4).phases(bert())
    for tied in (True, False):
        with pytest.raises(StrategyError, match="LlamaForCausalLM has no bias vectors.*'lora'"):
            BitFit().phases(llama(tie_word_embeddings=tied))
    model = bert()
    new = frozenset(n for n, _ in model.named_parameters() if "classifier" in n)
    with pytest.raises(StrategyError, match="would leave the head random"):
        Surgical(1, head_lr=0).phases(model, new)
    with pytest.raises(StrategyError, match="no head of its own .*'lora'"):
        strategy_from("head").phases(gpt2())


@pytest.mark.parametrize("strategy", EXAMPLES, ids=str)
def test_a_strategy_survives_the_way_through_recipe_json_and_toml(strategy):
    assert strategy_from(json.loads(json.dumps(strategy.to_dict()))) == strategy
    assert strategy_from(strategy.name) == type(strategy)()
    recipe = Recipe(strategy=strategy)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert strategy_from(recipe.strategy) == strategy
    assert recipe.strategy["name"] in STRATEGIES


def test_the_form_offers_them_with_their_settings():
    form = RecipeForm(Recipe(), lambda: None)
    assert {"gradual", "surgical", "bitfit", "reinit"} <= set(form.fields["strategy"].options)
    shown = {}
    for name in ("gradual", "surgical", "bitfit", "reinit"):
        form.fields["strategy"].value = name
        shown[name] = list(form._knobs)
        assert form.recipe() == Recipe(strategy=name)
    assert shown == {
        "gradual": ["groups", "decay"],
        "surgical": ["k", "start", "head_lr"],
        "bitfit": ["bias_lr", "head_lr"],
        "reinit": ["blocks", "then"],
    }
    form._knobs["then"].value = "layer-decay"
    assert form.recipe() == Recipe(strategy=Reinit(then="layer-decay"))
    form._knobs["then"].value = "head-only"
    with pytest.raises(RecipeError, match="unknown strategy 'head-only'"):
        form.recipe()
    given = Recipe(strategy=Reinit(2, TopK(2)))
    form.fill(given)
    assert form.recipe() == given


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    data, model = write_csv(folder / "reviews.csv", 60), tiny_bert(folder / "bert")
    return {"task": "text-classification", "data": data, "model": model}


def test_the_command_line_takes_them_by_name_and_says_what_does_not_fit(place, tmp_path, monkeypatch):
    monkeypatch.setenv("FTNB_RUNS", str(tmp_path / "runs"))
    Recipe(**place, lr=1e-3, num_epochs=2, batch_size=8, device="cpu").save(tmp_path / "recipe.toml")
    words = ["run", str(tmp_path / "recipe.toml"), "--set"]
    result = CliRunner().invoke(app, [*words, "strategy=gradual", "--set", "strategy.groups=3"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, [*words, "strategy=surgical", "--set", "strategy.k=9"])
    assert result.exit_code == 2
    assert "at most 3" in " ".join(result.output.split())


# --- the boundary between phases -------------------------------------------------------------------------------------


def gradual_training(place, **settings: Any) -> Training:
    task = task_class(place["task"]).prepare(place["data"], place["model"])
    settings = {"lr": 1e-3, "num_epochs": 4, "device": "cpu", "warmup": 0.25, "eval_every": 3} | settings
    return Training(task.learner(batch_size=8), Gradual(decay=0.5), **settings)


def test_moments_of_what_goes_on_are_kept_across_the_boundary_and_new_ones_start_at_zero(place):
    training = gradual_training(place)
    boundary = training.plan.phase_starts[2]
    for _ in range(boundary):
        training.step()
    old = {p: copy.deepcopy(state) for p, state in training.optimizer.state.items()}
    assert set(old) == set(training.phases[1].trainable)
    entered = training._enter(2)
    assert set(old) == set(entered.state)
    for p, state in old.items():
        assert state["step"].item() in (boundary, boundary - training.plan.phase_starts[1])
        assert all(torch.equal(entered.state[p][k], state[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    training.step()
    gains = {p: state["step"].item() - (old[p]["step"].item() if p in old else 0) for p, state in entered.state.items()}
    assert set(gains.values()) == {1}
    assert set(gains) == set(training.phases[2].trainable)


def test_the_schedule_starts_anew_in_each_phase(place):
    training = gradual_training(place)
    rates = [training.step().lr for _ in range(training.plan.num_steps)]
    starts = [*training.plan.phase_starts, training.plan.num_steps]
    expected = [
        1e-3 * lr_factor((step - begin) / (end - begin), warmup=0.25)
        for begin, end in pairwise(starts)
        for step in range(begin, end)
    ]
    assert rates == pytest.approx(expected)
    assert all(rates[start] < rates[start - 1] * 0.5 or rates[start] < 3e-4 for start in starts[1:-1])
    phases = [event for event in training.log if isinstance(event, Changed) and event.what == "phase"]
    assert [event.new for event in phases] == [phase.name for phase in training.phases]
    assert [event.step for event in phases] == starts[:-1]


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_resume_in_a_later_phase_is_bitwise(place, extra):
    whole, first, second = (gradual_training(place) for _ in range(3))
    list(whole)
    for _ in range(first.plan.phase_starts[2] + extra):  # just before the phase is entered, and in the middle of it
        first.step()
    state = first.state_dict()
    assert state["position"]["phase"] == (2 if extra else 1)
    second.load_state_dict(state)
    list(second)
    assert moved(second.model, held(whole.model)) == set()
    assert all(torch.equal(second.best.weights[n], t) for n, t in whole.best.weights.items())


@pytest.mark.parametrize("strategy", [Reinit(1), Reinit(1, Gradual(2)), BitFit(), Surgical(1)], ids=str)
def test_resume_of_the_others_is_bitwise(place, strategy):
    def training() -> Training:
        task = task_class(place["task"]).prepare(place["data"], place["model"])
        return Training(task.learner(batch_size=8), strategy, lr=1e-3, num_epochs=3, device="cpu")

    whole, first, second = training(), training(), training()
    list(whole)
    for _ in range(whole.plan.num_steps // 2):
        first.step()
    second.load_state_dict(first.state_dict())
    list(second)
    assert moved(second.model, held(whole.model)) == set()


def test_more_phases_than_steps_is_said_before_training(place):
    learner = task_class(place["task"]).prepare(place["data"], place["model"]).learner(batch_size=64)
    with pytest.raises(TrainingError, match="cannot be split into phases"):
        Training(learner, Gradual(), num_epochs=1, device="cpu")

import copy
import json
import math
import warnings

import pytest
import torch
import torchvision
import transformers as hf
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
)
from torch import nn
from typer.testing import CliRunner

from ftnb import Recipe, Run, Training, finetune
from ftnb.adapter_layers import adapter_layers, adapter_parameters
from ftnb.adapters import (
    Adapter,
    DoRA,
    LoRA,
    inject,
    load_adapter,
    merge,
    merged,
    save_adapter,
    target_layers,
    undo,
)
from ftnb.cli import app
from ftnb.events import Evaluate, Finished
from ftnb.layers import layer_groups, what_is_training
from ftnb.rules import RecipeError
from ftnb.saved import load_task
from ftnb.step import build_optimizer, set_modes, set_trainable
from ftnb.strategies import Full, Head, StrategyError, TopK, strategy_from
from ftnb.tasks import task_class
from ftnb.widgets.form import RecipeForm
from tests.tiny import tiny_bert, write_csv
from tests.tiny_images import stripe_folder, tiny_resnet

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 32}
SOUND = SMALL | {
    "num_feat_extract_layers": 1, "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4,
    "conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "mask_time_prob": 0.0,
}  # fmt: skip


def bert():
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT))


def vit():
    return hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=16, patch_size=8))


def resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return hf.ResNetForImageClassification(hf.ResNetConfig(**sizes, num_labels=2))


def wav2vec2():
    return hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**SOUND, num_labels=2))


def gpt2():
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32))


def torchvision_resnet():
    model = torchvision.models.resnet18(num_classes=2)
    with torch.no_grad():  # fill BatchNorm's statistics, or its outputs explode
        [model(torch.randn(8, 3, 32, 32)) for _ in range(20)]
    return model


def torchvision_vit():
    model = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 24, num_classes=2)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero, where nothing below gets a gradient
    return model


MODELS = {f.__name__: f for f in (bert, vit, resnet, wav2vec2, gpt2, torchvision_resnet, torchvision_vit)}


def made(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def batch_for(name):
    torch.manual_seed(1)
    if name in ("bert", "gpt2"):
        ids = torch.randint(0, 50, (4, 8))
        return {"input_ids": ids, "labels": ids if name == "gpt2" else torch.tensor([0, 1, 1, 1])}
    if name == "wav2vec2":
        return {"input_values": torch.randn(4, 400), "labels": torch.tensor([0, 1, 1, 1])}
    size = 32 if name == "torchvision_resnet" else 16
    return {"pixel_values": torch.randn(4, 3, size, size), "labels": torch.tensor([0, 1, 1, 1])}


def loss_and_logits(model, batch):
    if "pixel_values" in batch and not isinstance(model, hf.PreTrainedModel):
        logits = model(batch["pixel_values"])
    else:
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    targets = batch["labels"]
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()), logits


def logits_of(model, batch):
    model.eval()
    with torch.no_grad():
        return loss_and_logits(model, batch)[1]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def far(a, b):
    """The largest difference of logits, in units of the largest logit where that is above 1."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain_names(tensors):
    return {name.replace(".base_layer", ""): tensor for name, tensor in tensors.items()}


def shake(model, size=0.3):
    """Give adapters arbitrary weights, as a training would."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(torch.randn_like(parameter) * size)


def train(model, phase, batch, steps):
    set_trainable(phase)
    set_modes(model, phase)
    optimizer = build_optimizer(phase, 0.0, torch.device("cpu"))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * group["multiplier"]
    for _ in range(steps):
        loss_and_logits(model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("strategy", [LoRA(rank=2), DoRA(rank=2)], ids=lambda s: s.name)
@pytest.mark.parametrize("name", MODELS)
class TestEveryBackbone:
    def test_the_first_output_is_the_pretrained_models_and_every_parameter_has_its_group(self, name, strategy):
        model, batch = made(name), batch_for(name)
        before, groups = logits_of(model, batch), layer_groups(model)
        (phase,) = strategy.phases(model)
        assert adapter_layers(model)
        torch.testing.assert_close(logits_of(model, batch), before, rtol=1e-6, atol=1e-6)
        listed = [id(p) for group in phase.groups for p in group.parameters]
        assert sorted(listed) == sorted(map(id, model.parameters()))
        after = [group for group in layer_groups(model) if group.name != "adapters"]
        assert [g.name for g in after] == [g.name for g in groups]
        assert [[n.replace(".base_layer", "") for n in g.parameters] for g in after] == [
            [*g.parameters] for g in groups
        ]

    def test_what_moves_is_adapters_and_head_and_nothing_else(self, name, strategy):
        model, batch = made(name), batch_for(name)
        (phase,) = strategy.phases(model)
        head = {n for g in layer_groups(model) if g.name == "head" for n in g.parameters}
        added = {n for n, p in model.named_parameters() if p in adapter_parameters(model)}
        before = state(model)
        train(model, phase, batch, steps=1)
        moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
        first = {n for n in added if ".lora_A." not in n}  # B is 0, so no gradient reaches A yet
        if strategy.name == "lora":
            assert moved == first | head
        else:
            assert first | head <= moved <= added | head
        between = state(model)
        train(model, phase, batch, steps=1)
        moved |= {n for n, t in model.state_dict().items() if not torch.equal(t, between[n])}
        assert moved == added | head

    def test_frozen_is_in_eval_mode_and_adapters_train(self, name, strategy):
        model = made(name)
        (phase,) = strategy.phases(model)
        set_modes(model, phase)
        inside = {m for layer in adapter_layers(model).values() for m in layer.modules()}
        frozen = {m for g in layer_groups(model) if g.name.startswith(("emb", "block"))
                  for n in g.modules for m in model.get_submodule(n).modules()} - inside  # fmt: skip
        assert not any(m.training for m in frozen)
        assert all(m.training for m in inside)
        assert model.training

    def test_merged_equals_unmerged_and_comes_back_bitwise(self, name, strategy):
        model, batch = made(name), batch_for(name)
        names = list(model.state_dict())
        (phase,) = strategy.phases(model)
        train(model, phase, batch, steps=3)
        before, logits = state(model), logits_of(model, batch)
        assert (logits - logits_of(made(name), batch)).abs().max() > 1e-4
        with merged(model):
            assert list(model.state_dict()) == names
            assert far(logits_of(model, batch), logits) <= 1e-5
        assert same(state(model), before)
        assert torch.equal(logits_of(model, batch), logits)
        train(model, phase, batch, steps=1)  # and it goes on
        logits = logits_of(model, batch)
        merge(model)
        assert list(model.state_dict()) == names
        assert not adapter_layers(model)
        assert far(logits_of(model, batch), logits) <= 1e-5

    def test_undo_leaves_the_backbone_bitwise_as_it_was(self, name, strategy):
        model = made(name)
        before, kinds = state(model), [type(m) for m in model.modules()]
        (phase,) = strategy.phases(model)
        train(model, phase, batch_for(name), steps=2)
        undo(model)
        head = {n for g in layer_groups(model) if g.name == "head" for n in g.parameters}
        assert [type(m) for m in model.modules()] == kinds
        assert not same(state(model), before) or not head
        backbone = {n for n in before if n not in head}
        assert same({n: state(model)[n] for n in backbone}, {n: before[n] for n in backbone})
        assert not {"peft_config", "adapter_settings"} & set(vars(model))


@pytest.mark.parametrize("strategy", [LoRA(dropout=0.5), DoRA(dropout=0.5)], ids=lambda s: s.name)
def test_dropout_is_of_the_adapters_alone(strategy):
    model, batch = made("bert"), batch_for("bert")
    (phase,) = strategy.phases(model)
    set_modes(model, phase)
    model.dropout.eval()
    if strategy.name == "lora":  # B is 0, and the backbone drops nothing
        assert torch.equal(model(**batch).logits, model(**batch).logits)
    shake(model)
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_a_failed_block_gives_the_adapters_back():
    model = made("bert")
    LoRA(rank=2).phases(model)
    shake(model)
    before = state(model)
    with pytest.raises(RuntimeError, match="disk"), merged(model):
        raise RuntimeError("disk")
    assert same(state(model), before)


def test_putting_in_twice_changes_nothing_and_another_kind_is_refused():
    model = made("bert")
    LoRA(rank=2).phases(model)
    shake(model)
    before, flags = state(model), [p.requires_grad for p in model.parameters()]
    LoRA(rank=2, adapter_lr=3.0).phases(model)  # a rate is not part of the adapters
    assert same(state(model), before)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(flags)
    for other in (LoRA(rank=3), DoRA(rank=2), LoRA(rank=2, targets="attention")):
        with pytest.raises(StrategyError, match=r"merge\(model\) or undo\(model\)"):
            other.phases(model)
    assert same(state(model), before)


def test_other_strategies_see_adapters_as_a_group_of_their_own():
    model = made("bert")
    LoRA(rank=2).phases(model)
    assert [g.name for g in layer_groups(model)] == ["embeddings", "block 0", "block 1", "adapters", "head"]
    assert [(g.name, g.multiplier) for g in Head().phases(model)[0].groups] == [
        ("embeddings – adapters", 0.0), ("head", 1.0),
    ]  # fmt: skip
    assert all(g.multiplier == 1 for g in Full().phases(model)[0].groups)
    TopK(1).phases(model)


def test_which_layers():
    model = made("bert")
    ends = {name.rpartition(".")[2] for name in target_layers(model)}
    assert ends == {"query", "key", "value", "dense"}
    assert len(target_layers(model)) == 13
    assert len(target_layers(model, "attention")) == 8
    assert len(target_layers(model, "query, value")) == 4
    assert len(target_layers(model, "intermediate.dense")) == 2
    new = frozenset(n for n, _ in model.named_parameters() if "pooler" in n or "classifier" in n)
    assert len(target_layers(model, "all", new)) == 12  # what starts from random numbers trains by itself
    assert all("conv" in n or "shortcut" in n for n in target_layers(made("resnet")))
    assert not any("self_attention" in n for n in target_layers(made("torchvision_vit")))
    grouped = torchvision.models.mobilenet_v3_small(num_classes=2)
    assert all(grouped.get_submodule(name).groups == 1 for name in target_layers(grouped))
    assert target_layers(made("wav2vec2"), "attention")


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (lambda: LoRA(rank=0), ["rank", "0"]),
        (lambda: LoRA(rank=True), ["rank", "True"]),
        (lambda: LoRA(rank=2.5), ["rank", "2.5"]),
        (lambda: LoRA(alpha=0), ["alpha", "above 0"]),
        (lambda: LoRA(dropout=1.0), ["dropout", "below 1"]),
        (lambda: LoRA(adapter_lr=-1), ["adapter_lr"]),
        (lambda: LoRA(head_lr=math.nan), ["head_lr", "finite"]),
        (lambda: LoRA(targets=" , "), ["targets"]),
        (lambda: LoRA(targets=["query"]), ["targets"]),
        (lambda: LoRA(targets="qurey"), ["'qurey'", "Did you mean 'query'"]),
        (lambda: LoRA(targets="query, classifier"), ["'classifier'", "There is query, key, value, dense"]),
        (lambda: Adapter(LoraConfig(r=2, target_modules=["nonsense"])), ["LORA does not fit", "nonsense"]),
        (lambda: Adapter(LoraConfig(r=0, target_modules=["query"])), ["LORA does not fit", "`r`"]),
        (lambda: Adapter(LoraConfig(r=2, target_modules=["query", "classifier"])), ["classifier", "head"]),
        (lambda: Adapter(LoraConfig(r=2, target_modules=["query"], bias="all")), ["bias", "none"]),
        (lambda: Adapter(LoraConfig(r=2, modules_to_save=["classifier"])), ["modules_to_save"]),
        (lambda: Adapter(LoraConfig(r=2, init_lora_weights="pissa")), ["pissa", "own weights"]),
        (lambda: Adapter(AdaLoraConfig(total_step=10)), ["ADALORA", "after every step"]),
        (lambda: Adapter(PromptTuningConfig(num_virtual_tokens=3)), ["PROMPT_TUNING", "inputs"]),
        (lambda: Adapter(VeraConfig(r=2)), ["VERA", "shares weights"]),
        (lambda: Adapter({"peft_type": "LORAA"}), ["'LORAA'", "Did you mean 'LORA'"]),
        (lambda: Adapter({"peft_type": "LORA", "rank": 3}), ["LORA cannot be set up", "rank"]),
        (lambda: Adapter("lora"), ["config", "peft_type"]),
        (lambda: Adapter({"peft_type": "LORA", "r": "eight"}), ["LORA does not fit"]),
        (lambda: Adapter(BOFTConfig(boft_block_size=5)), ["BOFT does not fit"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_training(strategy, words):
    model = made("bert")
    before, kinds = state(model), [type(m) for m in model.modules()]
    with pytest.raises(StrategyError) as caught:
        strategy().phases(model)
    assert [word for word in words if word not in str(caught.value)] == []
    assert [type(m) for m in model.modules()] == kinds
    assert same(state(model), before)
    assert all(p.requires_grad for p in model.parameters())


def test_models_without_a_fitting_layer():
    with pytest.raises(StrategyError, match="ResNetForImageClassification fits targets='attention'"):
        LoRA(targets="attention").phases(made("resnet"))
    vit = made("torchvision_vit")
    with pytest.raises(StrategyError, match="no effect"):
        Adapter(LoraConfig(r=2, target_modules=["self_attention"])).phases(vit)
    with pytest.raises(StrategyError, match="no effect"):
        Adapter(LoraConfig(r=2, target_modules=["out_proj"])).phases(vit)
    assert not adapter_layers(vit)


CONFIGS = [
    LoraConfig(r=2, target_modules=["query", "value"], use_rslora=True),
    LoraConfig(r=2, lora_bias=True),
    LoraConfig(r=2, target_modules=r".*layer\.1.*query", rank_pattern={"query": 3}),
    IA3Config(),
    IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    LoHaConfig(r=2),
    OFTConfig(oft_block_size=4, target_modules=["query"]),
    BOFTConfig(boft_block_size=4, target_modules=["query"]),
    LNTuningConfig(target_modules=["LayerNorm"]),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.peft_type.value))
def test_any_method_of_peft_that_adds_weights_to_layers(config, tmp_path):
    strategy = Adapter(config)
    assert strategy_from(json.loads(json.dumps(strategy.to_dict()))) == strategy
    recipe = Recipe(strategy=strategy)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    model, batch = made("bert"), batch_for("bert")
    before = state(model)
    (phase,) = strategy.phases(model)
    strategy.phases(model)
    assert all(torch.equal(t, before[n.replace(".base_layer", "")]) for n, t in state(model).items()
               if n.replace(".base_layer", "") in before)  # fmt: skip
    train(model, phase, batch, steps=3)
    added = {n for n, p in model.named_parameters() if p in adapter_parameters(model)}
    frozen = {n.replace(".base_layer", "") for n in state(model)} - added
    frozen = {n for n in frozen if n in before and not n.startswith("classifier")}
    now = plain_names(state(model))
    assert all(torch.equal(now[n], before[n]) for n in frozen)
    logits, held = logits_of(model, batch), state(model)
    with merged(model):
        assert far(logits_of(model, batch), logits) <= 1e-5
    assert same(state(model), held)
    save_adapter(model, tmp_path)
    other = made("bert")
    load_adapter(other, tmp_path)
    assert torch.equal(logits_of(other, batch), logits)
    undo(model)
    now = state(model)
    assert all(torch.equal(now[n], before[n]) for n in before if not n.startswith("classifier"))


@pytest.mark.parametrize("strategy", [LoRA(rank=2), DoRA(rank=2)], ids=lambda s: s.name)
def test_the_adapter_alone_is_small_and_loads_here_and_in_peft(strategy, tmp_path):
    model, batch = made("bert"), batch_for("bert")
    (phase,) = strategy.phases(model)
    train(model, phase, batch, steps=3)
    save_adapter(model, tmp_path / "adapter")
    logits, held = logits_of(model, batch), sorted(p.name for p in (tmp_path / "adapter").iterdir())
    assert held == ["adapter_config.json", "adapter_model.safetensors"]
    other = made("bert")
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(logits_of(other, batch), logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(made("bert"), tmp_path / "adapter")
    assert torch.equal(logits_of(theirs, batch), logits)
    larger = hf.BertForSequenceClassification(hf.BertConfig(**TEXT | {"hidden_size": 32}))
    with pytest.raises(StrategyError, match="does not fit BertForSequenceClassification"):
        load_adapter(larger, tmp_path / "adapter")
    assert not adapter_layers(larger)
    with pytest.raises(StrategyError, match="holds no adapter_model"):
        load_adapter(made("bert"), tmp_path)
    merge(model)
    with pytest.raises(StrategyError, match="no adapters that could be saved"):
        save_adapter(model, tmp_path / "other")


def test_the_table_shows_adapters_and_leaves_the_model_as_it_was():
    model, batch = made("bert"), batch_for("bert")
    before = state(model)
    table = what_is_training(model, batch, strategy=LoRA(rank=2, adapter_lr=10, head_lr=2), lr=1e-4)
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["embeddings", "block 0", "block 1", "adapters", "head"]
    assert {n: (r.mode, r.trainable, r.moved) for n, r in rows.items() if n.startswith(("emb", "block"))} == {
        "embeddings": ("eval", 0, 0), "block 0": ("eval", 0, 0), "block 1": ("eval", 0, 0),
    }  # fmt: skip
    assert (rows["adapters"].mode, rows["adapters"].tensors, rows["adapters"].moved) == ("train", 26, 13)
    assert rows["adapters"].lrs == pytest.approx((1e-3,))
    assert rows["head"].lrs == pytest.approx((2e-4,))
    assert table.surprises == ["adapters: " + table.surprises[0].removeprefix("adapters: ")]
    assert "lora_A" in table.surprises[0]
    assert "exactly zero" in table.surprises[0]
    assert same(state(model), before)


@pytest.mark.parametrize("strategy", [LoRA(4, 8.0, 0.1, "query, value", 5.0, 2.0), DoRA(), "lora", "dora"], ids=str)
def test_recipes_hold_adapters_in_all_spellings(strategy):
    recipe = Recipe(strategy=strategy)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert strategy_from(recipe.strategy).to_dict() == recipe.strategy
    code = Recipe().override(["strategy=lora", "strategy.rank=4", "strategy.targets=query,value"])
    assert (code.strategy["rank"], code.strategy["targets"]) == (4, "query,value")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    data, model = write_csv(folder / "reviews.csv", 60), tiny_bert(folder / "bert")
    return {"task": "text-classification", "data": data, "model": model}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return {
        "task": "image-classification", "data": stripe_folder(folder / "data"), "model": tiny_resnet(folder / "model")
    }  # fmt: skip


NUMBERS = {"lr": 1e-3, "num_epochs": 2, "batch_size": 8, "device": "cpu"}


@pytest.mark.parametrize("strategy", ["lora", "dora", Adapter(IA3Config())], ids=["lora", "dora", "ia3"])
def test_a_run_leaves_plain_models(place, tmp_path, strategy):
    run = finetune(**place, **NUMBERS, strategy=strategy, folder=tmp_path / "run", progress=False)
    texts = ["the food was good", "the plot was dull", "we found a cold room"]
    answers = [str(a) for a in run.predict(texts)]
    assert not adapter_layers(run.model)
    assert not any("lora" in name or "ia3" in name for name in run.model.state_dict())
    for folder in ("model", "model-last"):
        loaded, info = hf.AutoModelForSequenceClassification.from_pretrained(
            run.folder / folder, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert list(loaded.state_dict()) == list(run.model.state_dict())
    assert [str(a) for a in load_task(run.folder / "model").predict(texts)] == answers
    run.task.save(tmp_path / "again")
    assert [str(a) for a in load_task(tmp_path / "again").predict(texts)] == answers
    classify = hf.pipeline("text-classification", str(run.folder / "model"), device="cpu")
    assert [c["label"] for c in classify(texts)] == [a.partition("\t")[0] for a in answers]
    started = next(e for e in run.events if hasattr(e, "num_trainable"))
    assert started.num_trainable < started.num_parameters / 2
    assert started.groups == ("backbone", "adapters", "head")


def test_a_run_of_pictures_keeps_batch_norm_as_it_was(pictures, tmp_path):
    run = finetune(**pictures, **NUMBERS, strategy=LoRA(rank=2), folder=tmp_path / "run", progress=False)
    start = hf.AutoModelForImageClassification.from_pretrained(pictures["model"]).state_dict()
    after = hf.AutoModelForImageClassification.from_pretrained(run.folder / "model").state_dict()
    norms = {n for n in start if "normalization" in n}
    assert norms
    assert all(torch.equal(start[n], after[n]) for n in norms)
    assert any(not torch.equal(start[n], after[n]) for n in start if "convolution.weight" in n)


def test_same_seed_same_run_and_another_seed_another(place, tmp_path):
    def final(seed, name):
        torch.rand(seed + 1)  # whatever else drew random numbers
        run = finetune(
            **place, **NUMBERS, strategy=LoRA(dropout=0.1), seed=seed, folder=tmp_path / name, progress=False
        )
        return state(run.model)

    first = final(0, "a")
    assert same(final(0, "b"), first)
    assert not same(final(1, "c"), first)


def test_paused_and_saved_in_between_it_ends_bitwise_the_same(place, tmp_path):
    recipe = Recipe(**place, **NUMBERS, strategy="dora", eval_every=2)  # many best models are written on the way
    whole = Run(recipe.replace(eval_every=None), tmp_path / "whole").start()
    whole.wait(60)
    steered = Run(recipe, tmp_path / "steered").start()
    steered.pause()
    steered.resume()
    steered.wait(60)
    last = [hf.AutoModelForSequenceClassification.from_pretrained(r.folder / "model-last") for r in (whole, steered)]
    assert same(state(last[0]), state(last[1]))


def learner(place):
    task = task_class(place["task"]).prepare(place["data"], place["model"])
    return task, task.learner(batch_size=8)


def test_a_training_goes_on_from_a_state_bitwise(place):
    def training():
        return Training(learner(place)[1], LoRA(rank=2, dropout=0.2), lr=1e-3, num_epochs=2, device="cpu", eval_every=3)

    whole, first, second = training(), training(), training()
    list(whole)
    for _ in range(4):
        first.step()
    second.load_state_dict(first.state_dict())
    list(second)
    assert same(state(whole.model), state(second.model))
    assert isinstance(second.log[-1], Finished)
    whole.load_best()
    second.load_best()
    assert same(state(whole.model), state(second.model))


def test_the_best_model_is_brought_back_and_may_be_saved_without_merging_first(place, tmp_path):
    task, of = learner(place)
    training = Training(of, LoRA(rank=2), lr=1e-3, num_epochs=2, device="cpu")
    for _ in range(3):
        training.step()
    training.request(Evaluate())
    training.step()
    best = {n: t.clone() for n, t in training.best.weights.items()}
    list(training)
    training.best.weights = best
    training.load_best()
    now = dict(task.model.named_parameters()) | dict(task.model.named_buffers())
    assert all(torch.equal(now[n], t) for n, t in best.items())
    assert any("lora_A" in n for n in best)
    texts = ["the food was good", "the plot was dull"]
    answers = [str(a) for a in task.predict(texts)]
    task.save(tmp_path / "model")
    assert adapter_layers(task.model)
    assert [str(a) for a in load_task(tmp_path / "model").predict(texts)] == answers
    merge(task.model)
    assert [str(a) for a in task.predict(texts)] == answers


def test_a_peft_config_is_not_changed_and_a_foreign_adapter_is_respected():
    config = LoraConfig(r=2)
    held = copy.deepcopy(config)
    inject(made("bert"), config)
    assert config == held
    model = made("bert")
    from peft import inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"]), model)
    with pytest.raises(StrategyError, match="other adapters"):
        LoRA(rank=2).phases(model)
    assert len(adapter_layers(model)) == 2


def test_the_form_shows_settings_that_are_text_and_keeps_those_that_it_cannot_show():
    form = RecipeForm(Recipe(strategy="lora"), lambda: None)
    options = form.fields["strategy"].options
    assert {"full", "lora", "dora"} <= set(options)
    assert "adapter" not in options  # a name alone does not say which
    assert list(form._knobs) == ["rank", "alpha", "dropout", "targets", "adapter_lr", "head_lr"]
    form._knobs["targets"].value = "query, value"
    assert form.recipe() == Recipe(strategy=LoRA(targets="query, value"))
    form._knobs["rank"].value = 0
    with pytest.raises(RecipeError, match="rank must be a whole number from 1"):
        form.recipe()
    given = Recipe(strategy=Adapter(IA3Config(target_modules=["key"], feedforward_modules=[])))
    form.fill(given)
    assert form.recipe() == given
    form.fields["strategy"].value = "full"
    assert form.recipe() == Recipe()


def test_the_command_line_takes_adapters_by_name(place, tmp_path, monkeypatch):
    monkeypatch.setenv("FTNB_RUNS", str(tmp_path / "runs"))
    Recipe(**place, **NUMBERS).save(tmp_path / "recipe.toml")
    words = ["run", str(tmp_path / "recipe.toml"), "--set", "strategy=lora", "--set", "strategy.rank=2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "'name': 'lora', 'rank': 2" in result.output
    result = CliRunner().invoke(app, [*words, "--set", "strategy.targets=qurey"])
    assert result.exit_code == 2
    assert "Did you mean 'query'" in result.output

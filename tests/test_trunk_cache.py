"""The cache of frozen layers: every task with and without it, what it refuses, and what it survives."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftnb import LoRA, Recipe, Run, Training
from ftnb.data import Batches
from ftnb.events import Changed, Evaluated, Stepped, Warned
from ftnb.layers import what_is_training
from ftnb.step import Learner, ParamGroup, Phase
from ftnb.strategies import LPFT, STRATEGIES, Full, Head, LayerDecay, TopK, strategy_from
from ftnb.tasks import TASKS, task_class
from ftnb.trunk_cache import TrunkCache, find_units, savings
from ftnb.trunk_store import Group, Store, make_room
from tests.test_task_matrix import TINY
from tests.tiny import tiny_bert, write_csv
from tests.toys import toy_learner


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return {task: make(tmp_path_factory.mktemp(task)) for task, make in TINY.items()}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("texts")
    return {"data": write_csv(folder / "reviews.csv", 60), "model": tiny_bert(folder / "bert")}


def training(
    own: dict[str, Any], strategy: Any, cache: Any = None, task: str = "text-classification", **settings: Any
) -> Training:
    options = {name: own[name] for name in ("image_size", "augment") if name in own}
    learner = task_class(task).prepare(own["data"], own["model"], **options).learner(batch_size=8)
    return Training(learner, strategy, cache=cache, **{"lr": 1e-3, "num_epochs": 3, "device": "cpu", **settings})


def finished(training: Training) -> Training:
    for _ in training:
        pass
    return training


def weights(model: nn.Module) -> Tensor:
    """All parameters but the biases of keys: in exact arithmetic no gradient reaches those, so rounding moves them."""
    kept = [p for n, p in model.named_parameters() if not n.endswith(("key.bias", "k_proj.bias"))]
    return torch.cat([p.detach().flatten() for p in kept])


def everything(model: nn.Module) -> Tensor:
    return torch.cat([t.detach().flatten().float() for t in model.state_dict().values()])


def said(training: Training) -> list[str]:
    changes = [e.new for e in training.log if isinstance(e, Changed) and e.what == "trunk_cache"]
    return [*changes, *(e.message for e in training.log if isinstance(e, Warned))]


@pytest.mark.parametrize("strategy", [Head(), TopK(1)], ids=["head", "top-1"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_the_same_with_the_cache(tiny, task, strategy):
    caches = (None, TrunkCache(min_speedup=1.0), TrunkCache(min_speedup=1.0))
    plain, cached, again = (finished(training(tiny[task], strategy, cache, task)) for cache in caches)
    assert cached.cache.saving.reason == ""
    assert cached.cache.saving.speedup > 1.03
    assert (weights(plain.model) - weights(cached.model)).abs().max() < 1e-5
    assert torch.equal(everything(cached.model), everything(again.model))
    for mine, theirs in zip(plain.log, [e for e in cached.log if e.kind != "changed"], strict=False):
        if isinstance(mine, Stepped | Evaluated):
            assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
            assert getattr(mine, "metrics", None) == pytest.approx(getattr(theirs, "metrics", None), abs=1e-4)


def test_the_store_holds_real_tokens_only(texts):
    cached = training(texts, TopK(1), TrunkCache())
    cached.step()
    for name, store in zip(("train", "valid"), (f.store for f in cached.cache._fillings), strict=True):
        tokens = sum(getattr(cached.plain, name).lengths)
        assert store.num_bytes == tokens * 16 * 4
    assert any("kept in memory" in line and "KB" in line for line in said(cached))


def test_a_batch_is_padded_as_its_mask_says():
    store = Store([torch.float32, torch.float32])
    for i, length in enumerate((2, 4)):
        value = torch.full((1, length, 3), i + 1.0)
        store.add(Group([i], length, [(length, 3), (length, length)], [value, None]))
    right = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    (value, nothing), shapes = store.batch([0, 1], right)
    assert value.shape == (2, 5, 3)
    assert value[0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert nothing is None
    assert shapes == [(5, 3), (5, 5)]
    (value, _), _ = store.batch([1, 0], right.flip(1).flip(0))
    assert value[1, :, 0].tolist() == [0, 0, 0, 1, 1]
    (value, _), _ = store.batch([0, 1], None)
    assert value.shape == (2, 4, 3)


def test_lp_ft_drops_the_cache_when_everything_trains(texts):
    plain, cached = (finished(training(texts, LPFT(), cache, num_epochs=6)) for cache in (None, TrunkCache()))
    assert (weights(plain.model) - weights(cached.model)).abs().max() < 1e-4
    planned, first, second = (e for e in cached.log if isinstance(e, Changed) and e.what == "trunk_cache")
    assert (planned.step, first.step) == (0, 0)
    assert "times as fast" in planned.new
    assert second.step == cached.plan.phase_starts[1]
    assert second.old == first.new
    assert "nothing at the bottom" in second.new
    assert not any(isinstance(e, Warned) for e in cached.log)


@dataclass(frozen=True)
class Thawing:
    """The head, then the last block too; the other way round with `reverse`."""

    reverse: bool = False

    def phases(self, model: nn.Module, new_parameters: frozenset[str]) -> list[Phase]:
        parts = [of.phases(model, new_parameters)[0] for of in (Head(), TopK(1))]
        return [replace(part, share=0.5) for part in (reversed(parts) if self.reverse else parts)]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_cut_moves_with_the_phase(texts, reverse):
    of = Thawing(reverse)
    plain, cached = (finished(training(texts, of, cache, num_epochs=5)) for cache in (None, TrunkCache(min_speedup=1)))
    assert (weights(plain.model) - weights(cached.model)).abs().max() < 1e-5
    cuts = [line.split(" kept")[0] for line in said(cached) if " kept" in line]
    assert cuts == ["embeddings – block 0", "embeddings – block 1"][:: -1 if not reverse else 1]


def refusal(training: Training) -> str:
    training.step()
    assert training.learner is training.plain
    (warning,) = (e for e in training.log if isinstance(e, Warned))
    assert warning.code == "no_trunk_cache"
    return warning.message


def test_it_says_why_there_is_no_cache(texts, tiny):
    assert "nothing at the bottom of the model is frozen" in refusal(training(texts, Full(), TrunkCache()))
    assert "nothing at the bottom" in refusal(training(texts, LayerDecay(), TrunkCache()))
    message = refusal(training(texts, TopK(1), TrunkCache(), num_epochs=1))
    assert "too little to save" in message
    assert "the phase has 1 epoch:" in message
    augmented = {**tiny["image-classification"], "augment": "flip"}
    message = refusal(training(augmented, Head(), TrunkCache(), "image-classification"))
    assert "change at random" in message
    assert "'flip'" in message


def test_adapters_inside_the_blocks_are_seen(texts):
    message = refusal(training(texts, LoRA(rank=2), TrunkCache()))
    assert "embeddings, all that is frozen at the bottom" in message


def test_random_examples_are_noticed_without_a_name(texts):
    learner = toy_learner()
    examples = learner.train.examples

    class Shaken:
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, i: int) -> Any:
            return {**examples[i], "x": examples[i]["x"] + 0.01 * torch.randn(6)}

    learner.train = Batches(Shaken(), learner.train.collate, 8, shuffle=True)
    assert "change at random" in refusal(Training(learner, Halves(), cache=TrunkCache(), num_epochs=3, device="cpu"))


@dataclass(frozen=True)
class Halves:
    """A strategy made by hand: the trunk is frozen, in eval mode or (wrongly) not."""

    modules: bool = True

    def phases(self, model: nn.Module, new_parameters: frozenset[str]) -> list[Phase]:
        trunk, head = model.get_submodule("trunk"), model.get_submodule("head")
        held = [trunk] if self.modules else []
        groups = [ParamGroup("trunk", [*trunk.parameters()], 0.0, held), ParamGroup("head", [*head.parameters()], 1.0)]
        return [Phase("head", 1.0, groups)]


def test_any_model_and_any_strategy_will_do():
    plain, cached = (
        finished(Training(toy_learner(), Halves(), cache=cache, num_epochs=5, device="cpu"))
        for cache in (None, TrunkCache())
    )
    assert cached.cache.saving.reason == ""
    assert (everything(plain.model) - everything(cached.model)).abs().max() < 1e-6


def test_frozen_layers_with_dropout_are_not_constant():
    message = refusal(Training(toy_learner(), Halves(modules=False), cache=TrunkCache(), num_epochs=5, device="cpu"))
    assert "frozen" in message


class NormedOverTime(nn.Module):
    """Its frozen part takes the mean over all positions, padding too, as wav2vec 2.0's first layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(1, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.trunk(x[:, None]).amax(-1))
        return out


def ragged_learner() -> Learner:
    torch.manual_seed(0)
    rows = [{"x": torch.randn(n), "labels": torch.tensor(n % 2)} for n in (5, 9, 14, 30)]

    def pad(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        x = nn.utils.rnn.pad_sequence([e["x"] for e in examples], batch_first=True)
        return {"x": x, "labels": torch.stack([e["labels"] for e in examples])}

    batches = Batches(rows, pad, 2, lengths=[len(row["x"]) for row in rows])
    return replace(toy_learner(model=NormedOverTime()), train=batches, valid=batches)


def test_what_depends_on_padding_is_refused():
    message = refusal(Training(ragged_learner(), Halves(), cache=TrunkCache(), num_epochs=9, device="cpu"))
    assert "depends on how far its batch is padded" in message


def test_budgets_are_checked_first(texts, tmp_path):
    message = refusal(training(texts, TopK(1), TrunkCache(max_gb=1e-5)))
    assert "of memory and may take 10 KB" in message
    folder = tmp_path / "trunks"
    message = refusal(training(texts, TopK(1), TrunkCache("disk", max_gb=1e-5, folder=folder)))
    assert "on the disk and may take 10 KB" in message
    assert not list(folder.iterdir())


def test_a_file_gives_the_same_as_memory_and_serves_again(texts, tmp_path):
    of = (TrunkCache(), *(TrunkCache("disk", folder=tmp_path) for _ in range(2)))
    memory, disk, again = (finished(training(texts, TopK(1), cache)) for cache in of)
    assert torch.equal(everything(memory.model), everything(disk.model))
    assert torch.equal(everything(memory.model), everything(again.model))
    assert [f.from_file for f in disk.cache._fillings] == [False, False]
    assert [f.from_file for f in again.cache._fillings] == [True, True]
    assert "read from the disk" in said(again)[-1]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_of_other_weights_is_another_file(texts, tmp_path):
    for scale in (1.0, 1.01):
        of = training(texts, TopK(1), TrunkCache("disk", folder=tmp_path))
        with torch.no_grad():
            next(of.model.parameters()).mul_(scale)
        of.step()
        assert not any(f.from_file for f in of.cache._fillings)
    assert len(list(tmp_path.glob("*.trunk"))) == 4


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def swap_examples(path: Path) -> None:
    about = json.loads(path.with_suffix(".json").read_text())
    about["groups"][0]["examples"], about["groups"][1]["examples"] = (
        about["groups"][1]["examples"],
        about["groups"][0]["examples"],
    )
    path.with_suffix(".json").write_text(json.dumps(about))


@pytest.mark.parametrize("harm", [flip_a_bit, swap_examples, lambda p: p.write_bytes(p.read_bytes()[:-64])])
def test_a_damaged_file_is_noticed_and_made_again(texts, tmp_path, harm):
    first = finished(training(texts, TopK(1), TrunkCache("disk", folder=tmp_path)))
    for path in tmp_path.glob("*.trunk"):
        harm(path)
    again = finished(training(texts, TopK(1), TrunkCache("disk", folder=tmp_path)))
    assert torch.equal(everything(first.model), everything(again.model))
    assert any("was damaged; it was made again" in line for line in said(again))
    third = training(texts, TopK(1), TrunkCache("disk", folder=tmp_path))
    third.step()
    assert all(f.from_file for f in third.cache._fillings)


def test_a_full_disk_costs_the_cache_and_not_the_training(texts, tmp_path, monkeypatch):
    of = training(texts, TopK(1), TrunkCache("disk", folder=tmp_path))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ftnb.trunk_store.StoreFile._write", full)
    finished(of)
    assert of.reason == "done"
    assert "No space left" in said(of)[-1]
    assert not list(tmp_path.iterdir())


def test_no_memory_to_fill_costs_the_cache_and_not_the_training(texts, monkeypatch):
    of = training(texts, TopK(1), TrunkCache())

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("ftnb.trunk_fill.SplitFilling._fill", full)
    finished(of)
    assert of.reason == "done"


def test_a_batch_can_be_cut_into_parts(texts):
    of = training(texts, TopK(1), TrunkCache())
    of.step()
    batch = next(iter(of.learner.train.epoch(1)))
    size = len(batch["labels"])
    whole, _ = of.learner.loss(of.model.eval(), batch)
    lists = {name: value for name, value in batch.items() if not isinstance(value, Tensor)}
    parts = [{n: v[i : i + 1] for n, v in batch.items() if n not in lists} | lists for i in range(size)]
    assert not any(isinstance(value, list | tuple) for value in lists.values())
    losses = [of.learner.loss(of.model, part)[0].item() for part in parts]
    assert sum(losses) / size == pytest.approx(whole.item(), rel=1e-5)


def test_old_files_make_room(tmp_path):
    for i, name in enumerate("abc"):
        path = tmp_path / f"{name}.trunk"
        path.write_bytes(b"x" * 100)
        path.with_suffix(".json").write_text("{}")
        os.utime(path, (i, i))
    make_room(tmp_path, 150, 300)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.trunk"]


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("stop", [3, 9])
def test_a_run_goes_on_from_its_state_bit_for_bit(texts, tmp_path, where, stop):
    caches = [TrunkCache(where, folder=tmp_path / str(i)) for i in range(3)]
    whole = finished(training(texts, Thawing(), caches[0], num_epochs=4, eval_every=5))
    first = training(texts, Thawing(), caches[1], num_epochs=4, eval_every=5)
    for _ in range(stop):
        first.step()
    second = training(texts, Thawing(), caches[2], num_epochs=4, eval_every=5)
    second.load_state_dict(first.state_dict())
    finished(second)
    assert torch.equal(everything(whole.model), everything(second.model))


def test_an_error_while_filling_leaves_the_training_able_to_go_on(texts):
    whole = finished(training(texts, TopK(1), TrunkCache()))
    of = training(texts, TopK(1), TrunkCache())
    collate, calls = of.plain.train.collate, iter(range(1000))

    def fails_once(examples: Any) -> Any:
        if next(calls) == 75:
            raise RuntimeError("a bad file")
        return collate(examples)

    of.plain.train.collate = fails_once
    with pytest.raises(RuntimeError, match="a bad file"):
        finished(of)
    assert of.learner is of.plain
    finished(of)
    assert torch.equal(everything(whole.model), everything(of.model))


def test_the_model_itself_computes_as_ever_between_two_steps(texts):
    of = training(texts, Head(), TrunkCache())
    of.step()
    batch = next(iter(of.plain.valid.epoch()))
    shuffled = {**batch, "input_ids": batch["input_ids"].flip(0), "attention_mask": batch["attention_mask"].flip(0)}
    del batch["labels"], shuffled["labels"]
    of.model.eval()
    with torch.no_grad():
        one, other = of.model(**batch).logits, of.model(**shuffled).logits
    assert torch.allclose(one, other.flip(0), atol=1e-5)
    assert not torch.allclose(one, other)


def test_bf16_takes_half(texts):
    full, low = (finished(training(texts, TopK(1), TrunkCache(low=low))) for low in (False, True))
    sizes = [of.cache._fillings[0].store.num_bytes for of in (full, low)]
    assert sizes[0] == 2 * sizes[1]
    assert 0 < (weights(full.model) - weights(low.model)).abs().max() < 0.1
    assert "in bf16" in said(low)[-1]


def test_several_levels_of_a_backbone_cross_the_cut(tiny):
    for task in ("object-detection", "image-segmentation"):
        of = training(tiny[task], Head(), TrunkCache(min_speedup=1.0), task)
        of.step()
        assert sum(of.cache._plan.cut.kept) > 1


def test_pictures_are_not_decoded_again(tiny, monkeypatch):
    of = training(tiny["image-classification"], Head(), TrunkCache(), "image-classification")
    of.step()
    assert of.cache._plan.unread == ["pixel_values"]
    monkeypatch.setattr(
        type(of.plain.train.examples), "__getitem__", lambda *_: pytest.fail("a picture was asked for again")
    )
    finished(of)


def test_it_works_with_processes_that_collate(texts):
    one, two = (training(texts, TopK(1), TrunkCache(), num_epochs=2) for _ in range(2))
    two.plain.train.num_workers = 2
    assert torch.equal(everything(finished(one).model), everything(finished(two).model))


def test_savings_are_told_before_the_start_and_change_nothing(texts):
    of = training(texts, LPFT(), num_epochs=10)
    before, modes = everything(of.model), [m.training for m in of.model.modules()]
    flags, state = [p.requires_grad for p in of.model.parameters()], torch.get_rng_state()
    head, full = savings(of)
    assert head.cut == "embeddings – block 1"
    assert 2 < head.speedup <= 3
    assert head.num_bytes == (54 + 6) * 16 * 4
    assert "times as fast" in str(head)
    assert full.reason
    assert "no cache" in str(full)
    assert torch.equal(before, everything(of.model))
    assert modes == [m.training for m in of.model.modules()]
    assert flags == [p.requires_grad for p in of.model.parameters()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in of.model.parameters())


def test_the_strategy_table_of_a_training_says_what_its_cache_will_save(texts):
    of = training(texts, LPFT(), TrunkCache(), num_epochs=10)
    before = everything(of.model)
    table = what_is_training(of)
    assert table.title.endswith("'head'")
    assert {row.name: row.moved > 0 for row in table.rows}["block 0"] is False
    first, second = table.notes
    assert "head: embeddings – block 1 computed once" in first
    assert "times as fast" in first
    assert "full: no cache" in second
    assert first in str(table)
    assert "times as fast" in table._repr_html_()
    assert torch.equal(before, everything(of.model))
    assert what_is_training(training(texts, LPFT())).notes == ()


def test_units_are_the_largest_frozen_modules_before_anything_trains():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4), nn.Linear(4, 2))
    model.requires_grad_(False)
    model[2].requires_grad_(True)
    model.eval()
    units, leaves = find_units(model, lambda: model(torch.randn(2, 3)), 2)
    assert [unit.name for unit in units] == ["0", "1"]  # "3" is frozen too, and depends on "2"
    assert [tuple(leaf.shape) for leaf in leaves] == [(2, 4), (2, 4)]


def test_a_recipe_switches_it_on(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(data=texts["data"], model=texts["model"], strategy="head", num_epochs=3, device="cpu", seed=1)
    for name in ("off", "memory", "disk-bf16"):
        run = Run(recipe.replace(trunk_cache=name, trunk_cache_gb=1.0), tmp_path / name).start()
        assert run.wait(60) == "done"
        told = [event.new for event in run.events if isinstance(event, Changed) and event.what == "trunk_cache"]
        assert len(told) == (0 if name == "off" else 2)
        assert all(("on the disk" in new) == (name == "disk-bf16") for new in told[1:])
    assert Recipe.load(tmp_path / "disk-bf16").trunk_cache == "disk-bf16"
    assert len(list((tmp_path / "cache" / "trunks").glob("*.trunk"))) == 2


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("dora", "adapter")])
def test_every_strategy_learns_the_same_with_the_cache(texts, name):
    plain, cached = (
        finished(training(texts, strategy_from(name), cache, num_epochs=4)) for cache in (None, TrunkCache())
    )
    assert (weights(plain.model) - weights(cached.model)).abs().max() < 1e-4
    assert said(cached)  # what it does, or why it does nothing

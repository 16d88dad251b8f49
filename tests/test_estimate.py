"""The estimate against what is really held: equal to the byte for what is exact, on all tasks by all strategies."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

import ftnb.forecast
from ftnb.cli import app
from ftnb.data import Batches
from ftnb.estimate import (
    CPU_BOUND,
    CPU_POINT,
    PhaseMemory,
    count_phase,
    count_phases,
    count_step,
    estimate,
    longest_batch,
    num_shapes,
)
from ftnb.forecast import duration, forecast, prepare_without_weights
from ftnb.ledger import Ledger, twin_of
from ftnb.metrics import classification_metrics
from ftnb.nested import tensors_in
from ftnb.plan import Settings
from ftnb.pretrained import ModelError
from ftnb.recipe import Recipe
from ftnb.step import Arithmetic, Learner, build_optimizer, set_modes, set_trainable
from ftnb.strategies import STRATEGIES, Full, StrategyError, strategy_from
from ftnb.tasks import TASKS, task_class
from tests.bench.estimate import estimate_table
from tests.test_task_matrix import TINY
from tests.tiny import tiny_bert, write_csv

CPU = torch.device("cpu")
SETTINGS = Settings(device="cpu", precision="fp32")
SMALLER: dict[str, Any] = {"lora": {"name": "lora", "rank": 2}, "gradual": {"name": "gradual", "groups": 2}}
NEEDED: dict[str, Any] = {"adapter": {"name": "adapter", "config": {"peft_type": "IA3"}}}


@pytest.fixture(scope="module")
def learners(tmp_path_factory):
    """A function that makes the tiny learner of a task anew."""
    made: dict[str, dict[str, Any]] = {}

    def learner(task: str) -> Learner:
        own = made.setdefault(task, {}) or made[task]
        if not own:
            own.update(TINY[task](tmp_path_factory.mktemp(task)))
        options = {"image_size": own["image_size"]} if "image_size" in own else {}
        found: Learner = task_class(task).prepare(own["data"], own["model"], **options).learner(batch_size=4)
        return found

    learner.made = made  # type: ignore[attr-defined]
    return learner


def held(learner: Learner, phase: Any, settings: Settings) -> tuple[int, int, int]:
    """Bytes of weights, gradients and AdamW's moments after one real step of a phase."""
    set_trainable(phase)
    set_modes(learner.model, phase)
    learner.model.zero_grad(set_to_none=True)
    arithmetic = Arithmetic(CPU, "fp32", settings.max_grad_norm)
    optimizer = build_optimizer(phase, settings.weight_decay, CPU)
    loss, _ = learner.loss(learner.model, longest_batch(learner.train))
    loss.backward()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(learner.model)}
    gradients = sum(p.grad.nbytes for p in learner.model.parameters() if p.grad is not None)
    arithmetic.update(optimizer)
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    return sum(storages.values()), gradients, moments


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.numel()]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_exact_is_what_a_real_training_holds_in_every_phase_of_every_strategy(learners, task):
    known: dict[frozenset[str], tuple[int, int, int]] = {}  # by what trains: phases of strategies repeat
    for name in STRATEGIES:
        strategy = strategy_from(SMALLER.get(name, NEEDED.get(name, name)))
        learner = learners(task)
        arithmetic = Arithmetic(CPU)
        try:
            twin, phases = twin_of(learner.model, strategy, learner.new_parameters, CPU)
        except StrategyError as error:  # no biases for bitfit
            with pytest.raises(StrategyError, match=str(error)[:30]):
                strategy.phases(learner.model, learner.new_parameters)
            continue
        real = strategy.phases(learner.model, learner.new_parameters)
        assert [phase.name for phase in real] == [phase.name for phase in phases]
        for mine, theirs in zip(phases, real, strict=True):
            trained = frozenset(n for n, p in learner.model.named_parameters() if any(p is q for q in theirs.trainable))
            assert {n for n, p in twin.named_parameters() if any(p is q for q in mine.trainable)} == trained
            if trained not in known:
                found = count_step(twin, mine, learner, arithmetic, SETTINGS, ledger := Ledger(CPU))
                known[trained] = (ledger.live["weights"], found.gradients, found.moments)
                assert known[trained] == held(learner, theirs, SETTINGS), (name, theirs.name)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", ["full", "head", "lora"])
def test_activations_and_peak_are_those_of_the_real_backward_pass(learners, task, strategy):
    learner, chosen = learners(task), strategy_from(SMALLER.get(strategy, strategy))
    settings = Settings(device="cpu", precision="fp32", accumulation=2)
    twin, (phase, *_) = twin_of(learner.model, chosen, learner.new_parameters, CPU)
    counted = count_phase(twin, phase, learner, Arithmetic(CPU), settings, {})
    (real, *_) = chosen.phases(learner.model, learner.new_parameters)
    measured = count_phase(learner.model, real, learner, Arithmetic(CPU), settings, {})
    assert counted.activations == measured.activations
    assert counted.moments_of["a step"] == measured.moments_of["a step"]
    left = sum(t.nbytes for t in tensors_in(longest_batch(learner.train)))  # may wait for the garbage collector
    counted_evaluation, evaluation = (sum(of.moments_of["an evaluation"].values()) for of in (counted, measured))
    if task != "object-detection":  # what a detector finds depends on its weights; a twin finds the most there can be
        assert abs(counted_evaluation - evaluation) <= left
    else:
        assert counted_evaluation >= evaluation - left


def kept_by_autograd(learner: Learner) -> int:
    """Bytes that the real forward pass keeps, by autograd's own hooks, with the batch and the outputs."""
    storages: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    batch = longest_batch(learner.train)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = learner.loss(learner.model.train(), batch)
    own = {t.untyped_storage().data_ptr() for t in tensors_of(learner.model)}
    assert loss.requires_grad
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_activations_are_what_autograd_says_it_keeps(learners, task):
    learner = learners(task)
    (found,) = count_phases(learner, Full(), SETTINGS, CPU)
    kept = kept_by_autograd(learner)
    assert 0.97 * kept <= found.activations <= 1.1 * kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_estimate_changes_nothing(learners, precision):
    learner = learners("text-classification")
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    flags = [(p.requires_grad, p.grad) for p in learner.model.parameters()]
    modes, numbers = [m.training for m in learner.model.modules()], torch.get_rng_state()
    for strategy in ("full", "lora", "reinit"):
        estimate(learner, strategy_from(strategy), device="cpu", precision=precision)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [(p.requires_grad, p.grad) for p in learner.model.parameters()] == flags
    assert [m.training for m in learner.model.modules()] == modes
    after = learner.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def random_texts(model: BertForSequenceClassification, batch_size: int, length: int) -> Learner:
    ids = torch.randint(5, model.config.vocab_size, (64, length), generator=torch.Generator().manual_seed(0))

    def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        stacked = torch.stack(rows)
        return {"input_ids": stacked, "attention_mask": torch.ones_like(stacked), "labels": stacked[:, 0] % 2}

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        outputs = model(**batch)
        return outputs.loss, outputs

    batches = Batches(ids, collate, batch_size)
    return Learner(model, batches, batches, loss, classification_metrics(2))


def bert(device: str = "meta", **changes: Any) -> BertForSequenceClassification:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    with torch.device(device):
        return BertForSequenceClassification(BertConfig(vocab_size=100, **{**sizes, **changes}))


def memory_of(learner: Learner, strategy: str = "full", **changes: Any) -> PhaseMemory:
    return estimate(learner, strategy_from(strategy), device="cpu", precision="fp32", **changes).worst


def test_no_weights_are_needed_and_the_choices_change_what_they_should():
    model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    whole, quarter = memory_of(random_texts(model, 16, 32)), memory_of(random_texts(model, 4, 32), accumulation=4)
    assert all(p.is_meta for p in model.parameters())
    assert quarter.moments == whole.moments == 2 * whole.gradients + 4 * len(list(model.parameters()))
    assert quarter.activations < 0.26 * whole.activations
    lora = memory_of(random_texts(model, 16, 32), "lora")
    assert lora.moments < 0.3 * whole.moments
    assert lora.activations > 0.8 * whole.activations
    assert whole.peak == sum(whole.parts.values())
    assert {"weights", "moments", "activations", "best weights"} <= whole.parts.keys()


def test_bf16_keeps_less_and_is_not_the_half():
    learner = random_texts(bert(), 16, 32)
    (low,) = estimate(learner, Full(), device="cpu", precision="bf16").phases
    high = memory_of(learner)
    assert 0.4 * high.activations < low.activations < 0.95 * high.activations
    assert low.programs[0] > 0 == high.programs[0]


def test_a_large_vocabulary_costs_logits():
    small, large = (memory_of(random_texts(bert(num_labels=n), 16, 32)) for n in (2, 50_000))
    assert large.activations - small.activations > 1.99 * 16 * 50_000 * 4


def test_a_ledger_counts_each_storage_once_while_it_lives():
    with Ledger(CPU) as ledger:
        a = torch.zeros(1000)
        view = a[10:20].view(2, 5)
        assert ledger.total == 4000
        b = a + 1
        del a, view
        assert (ledger.total, ledger.peak) == (4000, 8000)
        ledger.note(b, "weights")
        assert (ledger.live["weights"], ledger.live["activations"]) == (4000, 0)
        del b
    assert (ledger.total, ledger.freed) == (0, 8000)
    with Ledger(CPU, block=512) as ledger:
        tensor = torch.zeros(3)
        assert ledger.total == 512
    assert tensor.nbytes == 12


def test_longest_batch_and_shapes():
    examples = [[1] * n for n in (2, 9, 4, 7, 5)]
    batches = Batches(examples, lambda rows: {"n": torch.tensor([len(r) for r in rows])}, 2, lengths=[2, 9, 4, 7, 5])
    assert longest_batch(batches)["n"].tolist() == [9, 7]
    assert num_shapes(batches) == 3
    assert longest_batch(Batches(examples, lambda rows: {"n": torch.tensor(len(rows))}, 3))["n"] == 3


def test_the_bound_is_above_the_point_whatever_is_counted():
    for peak, churn, programs in ((1, 0, 0), (10**8, 10**9, 0), (10**6, 10**5, 1024), (10**10, 0, 5)):
        assert CPU_POINT.of(peak, churn, programs) < CPU_BOUND.of(peak, churn, programs)


@pytest.mark.parametrize("task", TASKS)
def test_a_recipe_is_counted_without_its_weights(learners, task, monkeypatch):
    learners(task)
    own = learners.made[task]
    options = {"image_size": own["image_size"]} if "image_size" in own else {}
    recipe = Recipe(
        task=task, data=own["data"], model=own["model"], batch_size=4, device="cpu", precision="fp32", **options
    )
    at_hand = forecast(recipe, dry_run=False)
    monkeypatch.setattr(ftnb.forecast, "SMALL", -1)
    without = forecast(recipe, dry_run=False)
    assert without.num_steps == at_hand.num_steps
    assert without.estimate.worst.peak == pytest.approx(at_hand.estimate.worst.peak, rel=0.02)
    if task in ("text-classification", "token-classification", "image-classification"):
        assert all(p.is_meta for p in prepare_without_weights(recipe).model.parameters())


def test_unknown_models_are_named_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = write_csv(tmp_path / "reviews.csv")
    with pytest.raises(ModelError, match=r"the Hub cannot be reached .* local folder"):
        forecast(Recipe(data=data, model="nobody/no-such-model"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        forecast(Recipe(data=data, model=str(tmp_path / "empty")))


def test_the_command_line_says_what_a_recipe_needs(tmp_path):
    data, model = write_csv(tmp_path / "reviews.csv"), tiny_bert(tmp_path / "bert")
    Recipe(data=data, model=model, device="cpu", num_epochs=2).save(tmp_path / "recipe.toml")
    result = CliRunner().invoke(app, ["estimate", str(tmp_path / "recipe.toml"), "--set", "strategy=lora"])
    assert result.exit_code == 0, result.output
    assert "strategy='lora'" in result.output or "'name': 'lora'" in result.output
    for words in ("memory: about ", ", at most ", "weights", "moments", "activations", "time: about ", " steps)"):
        assert words in result.output
    wrong = CliRunner().invoke(app, ["estimate", "--set", "model=./nowhere"])
    assert wrong.exit_code == 2
    assert "is no folder" in wrong.output + wrong.stderr


def test_durations_are_said_as_people_say_them():
    assert [duration(s) for s in (0.2, 40, 100, 7200)] == ["1 s", "40 s", "2 min", "2.0 h"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_benchmark_runs():
    said: list[str] = []
    table = estimate_table(1, seed=5, say=said.append, least=1e6, most=1e9, most_flops=4e9)
    assert table["configs"] == len(said) == 1
    assert 0 <= table["safe_bound_exceeded"] <= 1
    assert table["cpu_median_error"] >= 0
    json.dumps(table)

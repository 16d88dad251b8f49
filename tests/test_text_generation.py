"""From prompts and answers to a saved model: preparing, the loss, answers, pauses, and the folder that others load."""

import time

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaForCausalLM,
    Qwen3Config,
    pipeline,
)

from ftnb import Recipe, Run
from ftnb.adapters import LoRA
from ftnb.builtin.instructions import instruction_splits
from ftnb.events import Stepped, Warned
from ftnb.language.examples import IGNORE
from ftnb.layers import layer_groups
from ftnb.pretrained import ModelError
from ftnb.recipe import RecipeError
from ftnb.saved import load_task
from ftnb.strategies import Full, Head, LayerDecay, StrategyError, TopK
from ftnb.tables import DataError
from ftnb.tasks import TASKS, task_class
from ftnb.tasks.text_generation import TextGeneration, answer_loss
from ftnb.train import Training
from tests.tiny import tiny_bert, tiny_llama
from tests.toys import weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def task(tiny) -> TextGeneration:
    return TextGeneration.prepare(instruction_splits(), tiny)


def test_prepare_gathers_everything_a_training_needs(task):
    assert task.max_length == 96
    assert task.warnings == []
    assert [len(task.encoded[name]) for name in ("train", "valid", "test")] == [168, 42, 84]
    assert task.new_parameters == frozenset()
    assert task_class("text-generation") is TextGeneration
    assert TASKS["text-generation"].options == TextGeneration.options
    batch = next(iter(task.learner(8).train.epoch()))
    assert batch["num_answer_tokens"] == int((batch["labels"] != IGNORE).sum())


def test_the_loss_is_that_of_the_library_and_weighs_tokens(task):
    batch = next(iter(task.learner(8).valid.epoch()))
    loss, scores = answer_loss(task.model, batch)
    inputs = {name: value for name, value in batch.items() if name != "num_answer_tokens"}
    torch.testing.assert_close(loss, task.model(**inputs).loss)
    assert int(scores.num_tokens) == batch["num_answer_tokens"]
    found = task.evaluate("valid")
    assert found["perplexity"] == pytest.approx(torch.tensor(found["loss"]).exp().item(), rel=1e-4)
    assert 0 <= found["exact_match"] <= found["token_accuracy"] <= 1
    alone = task.evaluate("valid", batch_size=1, num_answers=0)
    assert alone["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert "exact_match" not in alone


def test_packing_gives_fewer_rows_and_the_same_sum_of_losses(tiny):
    plain = TextGeneration.prepare(instruction_splits(), tiny)
    packed = TextGeneration.prepare(instruction_splits(), tiny, packing="on")
    assert len(packed.encoded["train"]) < len(plain.encoded["train"]) / 2
    assert packed.encoded["valid"].column_names == plain.encoded["valid"].column_names
    sums = []
    for task in (plain, packed):
        total = number = 0.0
        with torch.no_grad():
            for batch in task.batches("train", 16).epoch():
                loss, scores = answer_loss(task.model, batch)
                total, number = total + loss.item() * int(scores.num_tokens), number + int(scores.num_tokens)
        sums.append((total, number))
    assert sums[0][1] == sums[1][1]
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)
    assert packed.evaluate("train", num_answers=0)["loss"] == pytest.approx(sums[0][0] / sums[0][1], rel=1e-5)
    assert len(packed.answers("train", 3)) == 3


def test_a_recipe_may_pack(tiny, tmp_path):
    recipe = Recipe(task="text-generation", data=ROWS, model=tiny, packing="on", num_epochs=1, device="cpu")
    run = Run(recipe, tmp_path / "run").start()
    assert run.wait(60) == "done"
    assert "position_ids" in run.task.encoded["train"].column_names
    assert run.history.best is not None
    with pytest.raises(RecipeError, match="packing must be one of 'off', 'on'"):
        recipe.replace(packing="yes")
    with pytest.raises(RecipeError, match="packing is no setting of text-classification"):
        Recipe(packing="on")


def test_everything_may_count(tiny):
    task = TextGeneration.prepare(instruction_splits(), tiny, loss_on="everything")
    assert task.encoded["train"]["labels"][0] == task.encoded["train"]["input_ids"][0]


ROWS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(40)]


@pytest.mark.parametrize(
    ("data", "kinds", "error", "expected"),
    [
        ([{"text": "a"}], {}, DataError, "a row needs 'prompt' and 'completion'"),
        ([*ROWS, {"prompt": "a", "completion": ""}], {}, DataError, "row 41: the answer is empty"),
        ([{"messages": [{"role": "bot", "content": "a"}]}], {}, DataError, "the role 'bot'"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {}, DataError, "there is no answer"),
        (ROWS, {"max_length": 8}, DataError, "every conversation reaches max_length=8 before its answer"),
        (ROWS, {"max_length": 200}, ModelError, "between 4 and 96"),
        (ROWS, {"packing": "yes"}, DataError, "packing must be 'off' or 'on', got 'yes'"),
        (ROWS, {"loss_on": "prompts"}, DataError, "loss_on must be 'answers' or 'everything'"),
        (ROWS, {"columns": {"prompt": "ask"}}, DataError, "column 'ask' not found"),
    ],
)
def test_whatever_is_wrong_is_said_before_training(tiny, data, kinds, error, expected):
    with pytest.raises(error, match=expected):
        TextGeneration.prepare(data, tiny, **kinds)


MARKED = [{**row, "prompt": f"<|user|> {row['prompt']}<|end|>"} for row in ROWS]
LONG = [*ROWS, *({"prompt": f"{i} cup" * 40, "completion": "a"} for i in range(40))]
WORDY = [{**row, "completion": row["completion"] * 9} for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "kinds", "expected"),
    [
        (MARKED, {}, "train: 36 of 36 conversations hold '<|end|>' as text"),
        ({"train": ROWS, "valid": ROWS[:30]}, {}, "30 of 30 prompts are also in train"),
        ({"train": ROWS, "valid": [{"prompt": "a", "completion": "b"}]}, {}, "valid: only 1 conversations"),
        (LONG, {}, "before their answer and are left out"),
        (WORDY, {"max_length": 48}, "36 of 36 answers lose their end, behind 48 tokens"),
    ],
)
def test_whatever_is_doubtful_is_counted(tiny, rows, kinds, expected):
    warnings = TextGeneration.prepare(rows, tiny, **kinds).warnings
    assert any(expected in warning for warning in warnings), warnings


SMALL = {"vocab_size": 1024, "max_position_embeddings": 96, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
OTHERS = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, **SMALL),
    "qwen3": Qwen3Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, **SMALL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_the_classes_of_larger_models_take_the_same_way(tiny, tmp_path, kind):
    AutoModelForCausalLM.from_config(OTHERS[kind]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    plain = TextGeneration.prepare(ROWS, str(tmp_path))
    packed = TextGeneration.prepare(ROWS, str(tmp_path), packing="on")
    losses = [task.evaluate("train", num_answers=0)["loss"] for task in (plain, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    row = next(packed.batches("train", 4).epoch())
    assert answer_loss(packed.model, row)[0].item() == pytest.approx(losses[0], abs=0.05)
    training = Training(packed.learner(4), LoRA(2), lr=1e-3, num_epochs=1, device="cpu")
    assert training.step().loss > 0
    assert len(packed.predict(["What is 3?"], max_new_tokens=3)) == 1


def test_without_a_network_a_name_on_the_hub_says_what_to_do():
    with pytest.raises(ModelError, match="the Hub cannot be reached.*HF_ENDPOINT"):
        TextGeneration.prepare(ROWS, "Qwen/Qwen3-0.6B-Base")


def test_an_encoder_is_refused_because_it_looks_ahead(tmp_path):
    folder = tiny_bert(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="looks ahead: it is an encoder such as BERT"):
        TextGeneration.prepare(ROWS, folder)


def test_a_tokenizer_without_padding_token_pads_with_its_end_token_and_still_learns_to_end(tiny, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), LlamaForCausalLM.from_pretrained(tiny)
    tokenizer.pad_token = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = TextGeneration.prepare(ROWS, str(tmp_path))
    assert any("has no padding token" in warning for warning in task.warnings)
    batch = next(iter(task.learner(8).train.epoch()))
    assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()


def test_layer_groups_of_a_tied_model_have_no_head_and_every_other_strategy_works(task):
    names = [group.name for group in layer_groups(task.model)]
    assert names == ["embeddings", "block 0", "block 1"]
    with pytest.raises(StrategyError, match="has no head of its own"):
        Head().phases(task.model)
    for strategy in (Full(), TopK(1), LayerDecay(0.5), LoRA(2)):
        training = Training(task.learner(8), strategy, lr=1e-3, num_epochs=1, device="cpu")
        before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
        training.step()
        training.step()
        moved = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
        assert ("model.embed_tokens.weight" in moved) == (strategy.name in ("full", "layer-decay"))
        assert task.model.lm_head.weight is task.model.model.embed_tokens.weight
        assert all("lora" in name for name in moved) == (strategy.name == "lora")


def test_an_untied_model_has_its_output_matrix_as_head(tmp_path):
    task = TextGeneration.prepare(ROWS, tiny_llama(tmp_path, tied=False))
    head = layer_groups(task.model)[-1]
    assert (head.name, head.parameters) == ("head", ("lm_head.weight",))


def test_lora_merges_into_the_same_answers_and_a_folder_without_traces(task, tmp_path):
    training = Training(task.learner(16), LoRA(4), lr=1e-2, num_epochs=1, device="cpu")
    for _ in training:
        pass
    batch = next(iter(task.learner(8).valid.epoch()))
    before, _ = answer_loss(task.model.eval(), batch)
    task.save(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    after, _ = answer_loss(saved.eval(), batch)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    assert not [name for name in saved.state_dict() if "lora" in name]


def test_the_saved_folder_answers_alike_in_a_pipeline(task, tmp_path):
    for _ in Training(task.learner(16), lr=3e-3, num_epochs=2, device="cpu"):
        pass
    task.save(tmp_path)
    questions = [row["prompt"] for row in instruction_splits()["test"][:4]]
    ours = task.predict(questions, max_new_tokens=12)
    write = pipeline("text-generation", str(tmp_path), device="cpu")
    for question, answer in zip(questions, ours, strict=True):
        written = write([{"role": "user", "content": question}], max_new_tokens=12, do_sample=False)
        assert written[0]["generated_text"][-1]["content"].strip() == answer.text
    assert [str(a) for a in load_task(tmp_path).predict(questions, max_new_tokens=12)] == [str(a) for a in ours]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("What?", "a list of prompts; got the text 'What\\?'"),
        ([5], "must be a list of messages"),
        ([""], "the text is empty"),
        ([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]], "ends with an answer"),
        (["cup " * 100], "leaves no room for an answer"),
    ],
)
def test_prompts_that_cannot_be_answered(task, prompts, expected):
    with pytest.raises(DataError, match=expected):
        task.predict(prompts)


def test_views_show_what_counts_and_what_is_wrong(task):
    assert "[ " in repr(task.show_batch(2))
    assert "of 42 valid answers are not exactly right" in task.show_errors(2)._repr_html_()
    assert len(task.show_samples(3)) == 3
    assert task.predict([]) == []
    with pytest.raises(DataError, match="no split 'dev'"):
        task.evaluate("dev")


def test_samples_in_a_pause_leave_the_same_weights(tiny, tmp_path):
    recipe = Recipe(
        task="text-generation", data=instruction_splits(), model=tiny, strategy="lora", num_epochs=2, device="cpu"
    )
    found = []
    for name, pauses in (("plain", ()), ("paused", (3, 9))):
        run = Run(recipe, tmp_path / name)
        run.subscribe(
            lambda event, run=run, pauses=pauses: (
                run.pause() if isinstance(event, Stepped) and event.step in pauses else None
            )
        )
        run.start()
        for _ in pauses:
            until = time.monotonic() + 60
            while run.state != "paused" and time.monotonic() < until:
                time.sleep(0.002)
            with run.at_rest() as task:
                assert len(task.show_samples(3)) == 3
            assert run.predict(["What does a cow do?"])
            run.resume()
            while run.state == "paused":
                time.sleep(0.002)
        assert run.wait(120) == "done"
        assert not [e for e in run.events if isinstance(e, Warned) and e.code == "rng_disturbed"]
        found.append(weights(run.model))
    assert torch.equal(*found)

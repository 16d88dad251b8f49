"""A real pretrained language model in llama2.c's layout and real instructions, by the paths a person's own take."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftnb.language.examples import IGNORE
from ftnb.language.llama2c import convert_llama2c
from ftnb.strategies import Full
from ftnb.tasks.text_generation import TextGeneration
from ftnb.train import Training

pytestmark = pytest.mark.realdata

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    'big red ball. She wanted to play with it, but it was too high. Her mom said, "Lily, let\'s go home." Lily was sad '
    "and went home with her mom."
)


@pytest.fixture(scope="module")
def stories260k(test_data: Path, tmp_path_factory) -> str:
    return str(convert_llama2c(test_data / "weights" / "stories260k_llama", tmp_path_factory.mktemp("stories260k")))


@torch.no_grad()
def loss_on(model, tokenizer, text: str) -> float:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    return model.eval()(ids, labels=ids).loss.item()


def test_the_converted_model_knows_stories_and_goes_on_with_them(stories260k):
    tokenizer, model = AutoTokenizer.from_pretrained(stories260k), AutoModelForCausalLM.from_pretrained(stories260k)
    assert sum(p.numel() for p in model.parameters()) == 260_032
    assert tokenizer.decode(tokenizer(STORY)["input_ids"]) == STORY
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(stories260k))
    trained, untrained = loss_on(model, tokenizer, STORY), loss_on(random, tokenizer, STORY)
    print(f"loss on a story: {trained:.2f}, random weights {untrained:.2f}")
    # A model of this size ends near 1.3 nats a token on such stories (its model card); a wrong layout gives above 4.
    assert trained < 1.6
    assert untrained > 5.5
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("Once upon a time")["input_ids"]]])
    written = tokenizer.decode(model.generate(ids, max_new_tokens=30, do_sample=False)[0], skip_special_tokens=True)
    print(written)
    assert "there was a little" in written


def test_fine_tuning_on_real_instructions_beats_the_frequencies_of_their_tokens(stories260k, test_data, tmp_path):
    rows = json.loads((test_data / "llm" / "instruction_1100" / "instruction-data.json").read_text(encoding="utf-8"))
    (tmp_path / "train.json").write_text(json.dumps(rows[:500]), encoding="utf-8")
    data = {"train": str(tmp_path / "train.json"), "valid": rows[500:600], "test": rows[800:950]}
    task = TextGeneration.prepare(data, stories260k, max_length=256)
    assert any("no chat template" in warning for warning in task.warnings)
    counts = torch.ones(task.model.config.vocab_size)
    for label in (i for row in task.encoded["train"]["labels"][:] for i in row if i != IGNORE):
        counts[label] += 1
    answers = [i for row in task.encoded["test"]["labels"][:] for i in row if i != IGNORE]
    unigram = -statistics.mean((counts / counts.sum()).log()[answers].tolist())
    before = task.evaluate("test", num_answers=0)["loss"]
    for _ in Training(task.learner(batch_size=16), Full(), lr=3e-3, num_epochs=2):
        pass
    after = task.evaluate("test", num_answers=0)["loss"]
    print(f"loss of an answer token: {before:.2f} before, {after:.2f} after; frequencies alone {unigram:.2f}")
    assert after < unigram - 1.0
    assert after < before - 1.0

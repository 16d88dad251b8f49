"""A real pretrained language model in llama2.c's layout and real instructions, by the paths a person's own take."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftnb.adapters import LoRA
from ftnb.language.examples import IGNORE
from ftnb.language.llama2c import convert_llama2c
from ftnb.strategies import Full, LayerDecay
from ftnb.tasks.text_generation import TextGeneration
from ftnb.train import Training

pytestmark = pytest.mark.realdata

STORY = (
    "Tom had a small dog. The dog liked to run in the garden and dig in the mud. One day, Tom could not find his shoe. "
    "He looked under the bed and behind the door. Then he saw the dog with the shoe in its mouth. Tom laughed and "
    'said, "Give it back, please!" The dog wagged its tail and they were both happy.'
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
    # 1.32 measured; with the rotary features in llama2.c's order instead of transformers' 4.6, with random weights 6.3
    assert trained < 1.6
    assert untrained > 5.5
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("Once upon a time")["input_ids"]]])
    written = tokenizer.decode(model.generate(ids, max_new_tokens=30, do_sample=False)[0], skip_special_tokens=True)
    print(written)
    assert "there was a little girl named Lily" in written  # what other programs write with this model, too


@pytest.mark.parametrize(
    ("strategy", "lr"), [(Full(), 3e-3), (LayerDecay(0.9), 3e-3), (LoRA(rank=8), 1e-3)], ids=["full", "decay", "lora"]
)
def test_fine_tuning_on_real_instructions_beats_the_frequencies_of_their_tokens(
    stories260k, test_data, tmp_path, strategy, lr
):
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
    for _ in Training(task.learner(batch_size=16), strategy, lr=lr, num_epochs=2, eval_every=10_000):
        pass
    after = task.evaluate("test", num_answers=0)["loss"]
    print(f"loss of an answer token: {before:.2f} before, {after:.2f} after; frequencies alone {unigram:.2f}")
    # Two epochs of 500 instructions, full: 4.7 before, 2.5 after, frequencies alone 4.6. On the validation rows, where
    # the rates come from, layer decay went from 5.2 to 2.7 and LoRA to 3.0. A head of its own this model has not.
    assert after < unigram - 1.0
    assert after < before - 1.0

"""The shipped language model is what its card says, loads everywhere, transfers; and pretraining can be run again."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import ftnb
from ftnb.builtin.instructions import instructions
from ftnb.builtin.stories import stories
from ftnb.pretraining import weights_hash
from ftnb.pretraining_language import (
    LanguagePretraining,
    build_tokenizer,
    cloze,
    finetuned_accuracy,
    main,
    new_model,
    next_token_loss,
    pretrain,
    save_checkpoint,
    text_rows,
)

SHIPPED = Path(ftnb.__file__).parent / "weights" / "lm-stories"
TINY = LanguagePretraining(num_documents=40, batch_size=8, probe_every=100)


def test_card_names_the_file_the_licence_and_the_measured_scores():
    card = (SHIPPED / "README.md").read_text()
    assert weights_hash(SHIPPED) in card
    assert "license: apache-2.0" in card
    scores = json.loads((SHIPPED / "scores.json").read_text())
    for start in ("fine-tuned", "from scratch"):
        for what in ("facts", "read", "all"):
            of = scores[f"{start}, {what}"]
            assert f"{of['mean']:.3f} ± {of['plus_minus']:.3f}" in card


def test_log_belongs_to_the_shipped_file_and_to_the_default_settings():
    log = json.loads((SHIPPED / "training_log.json").read_text())
    assert log["sha256"] == weights_hash(SHIPPED)
    assert log["settings"] == asdict(LanguagePretraining())


def test_checkpoint_is_small_and_holds_no_pickle():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 4_000_000
    assert not [path for path in SHIPPED.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


def test_every_weight_is_in_the_checkpoint_and_its_matrices_are_tied():
    model, info = AutoModelForCausalLM.from_pretrained(SHIPPED, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 623_488


def test_it_tells_facts_in_a_pipeline():
    write = pipeline("text-generation", str(SHIPPED), device="cpu")
    (told,) = write(" A dog", max_new_tokens=2, do_sample=False)
    assert told["generated_text"] == " A dog barks."


def test_the_tokenizer_knows_every_text_and_most_words_as_one_token():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()  # a new generator's words need a new checkpoint
    for text in (" Mia has a red ball.", "ÄÖ ñ 漢字 \n\t 1985"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    texts = [f" {text}" for text in stories(100, seed=9)]
    ids = tokenizer(texts)["input_ids"]
    words = sum(len(text.replace(".", " .").replace(":", " :").split()) for text in texts)
    assert sum(map(len, ids)) < 1.05 * words
    assert tokenizer.apply_chat_template([{"role": "user", "content": " a "}], tokenize=False) == "<|user|> a<|end|>"


def test_fine_tuning_beats_scratch_on_facts_that_no_instruction_tells():
    # A seed that no figure of the card or the lessons uses.
    transferred = finetuned_accuracy(SHIPPED, seed=5001, num_test=84)
    scratch = finetuned_accuracy(SHIPPED, seed=5001, num_test=84, pretrained=False)
    assert transferred["facts"] > scratch["facts"] + 0.2


def test_a_cloze_says_a_question_as_a_story_does():
    said = {row["kind"]: cloze(row) for row in instructions("test", 70)}
    assert said["opposite"].startswith(" The room is not ")
    assert said["has"].count("has a") >= 3
    assert "?" not in "".join(said[kind] for kind in said if kind != "repeat")


def test_rows_are_full_and_keep_the_text():
    tokenizer = build_tokenizer(200)
    texts = list(stories(20, seed=4))
    rows = text_rows(tokenizer, texts, 32)
    assert rows.shape[1] == 32
    text = tokenizer.decode(rows.flatten())
    assert f" {texts[0]}<|end|> {texts[1]}<|end|>".startswith(text[:200])


def test_the_first_loss_is_about_that_of_guessing():
    tokenizer = build_tokenizer(200)
    model = new_model(tokenizer, TINY)
    rows = text_rows(tokenizer, stories(20), 64)
    assert next_token_loss(model, rows).item() == pytest.approx(math.log(len(tokenizer)), abs=1.0)


def test_one_seed_gives_the_same_weights_twice(tmp_path):
    tokenizer, hashes = build_tokenizer(), []
    for name in ("first", "second"):
        model = new_model(tokenizer, TINY)
        rows = list(pretrain(model, tokenizer, TINY))
        assert len(rows) == 1
        assert math.isfinite(rows[0]["held_out_loss"])
        hashes.append(save_checkpoint(model, tokenizer, tmp_path / name))
    assert hashes[0] == hashes[1]


def test_command_writes_a_folder_that_loads(tmp_path):
    lines = []
    main([str(tmp_path / "lm"), "--documents", "40", "--score-seeds", "0"], report=lines.append)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "lm").config.hidden_size == 128
    log = json.loads((tmp_path / "lm" / "training_log.json").read_text())
    assert log["sha256"] == weights_hash(tmp_path / "lm")
    assert log["settings"]["num_documents"] == 40
    assert log["sha256"] in lines[-1]
    assert torch.is_tensor(AutoModelForCausalLM.from_pretrained(tmp_path / "lm").lm_head.weight)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_documents": 0}, "num_documents must be at least 1, got 0"),
        ({"row_length": 0}, "row_length must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"initializer_range": -0.1}, "initializer_range must be positive, got -0.1"),
    ],
)
def test_impossible_settings_are_refused_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        LanguagePretraining(**wrong)

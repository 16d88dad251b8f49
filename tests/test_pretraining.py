"""The shipped checkpoint is what its card says, loads everywhere, transfers; and pretraining can be run again."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, BertModel

import ftnb
from ftnb.builtin.reviews import labelled_reviews, unlabelled_reviews
from ftnb.pretraining import (
    Pretraining,
    build_tokenizer,
    finetuned_accuracy,
    main,
    mask_probabilities,
    mask_tokens,
    new_model,
    pretrain,
    pretraining_loss,
    save_checkpoint,
    weights_hash,
)

SHIPPED = Path(ftnb.__file__).parent / "weights" / "bert-reviews"
TINY = Pretraining(num_documents=64, num_epochs=1, batch_size=32, probe_every=100)


def test_card_names_the_file_the_licence_and_the_measured_scores():
    card = (SHIPPED / "README.md").read_text()
    assert weights_hash(SHIPPED) in card
    assert "license: apache-2.0" in card
    scores = json.loads((SHIPPED / "scores.json").read_text())
    for name in ("fine-tuned, unseen words", "from scratch, unseen words"):
        assert f"{scores[name]['mean']:.3f} ± {scores[name]['plus_minus']:.3f}" in card


def test_log_belongs_to_the_shipped_file_and_to_the_default_settings():
    log = json.loads((SHIPPED / "training_log.json").read_text())
    assert log["sha256"] == weights_hash(SHIPPED)
    assert log["settings"] == asdict(Pretraining())


def test_checkpoint_is_small_and_holds_no_pickle():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 4_000_000
    assert not [path for path in SHIPPED.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


@pytest.mark.parametrize(
    ("model_class", "new"),
    [
        (BertModel, set()),
        (AutoModelForMaskedLM, set()),
        (AutoModelForSequenceClassification, {"classifier.weight", "classifier.bias"}),
    ],
)
def test_every_class_finds_all_its_weights_in_the_checkpoint(model_class, new):
    _, info = model_class.from_pretrained(SHIPPED, output_loading_info=True)
    assert set(info["missing_keys"]) == new
    assert not info["mismatched_keys"]


def test_shipped_tokenizer_lowers_case_and_never_meets_an_unknown_word_in_our_text():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert tokenizer.is_fast
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()  # a new generator's words need a new checkpoint
    assert tokenizer.tokenize("Good!") == ["good", "!"]
    assert tokenizer.unk_token_id not in tokenizer("zombies from 1985")["input_ids"]
    texts = [*unlabelled_reviews(200), *(review["text"] for review in labelled_reviews("test", 100))]
    ids = tokenizer(texts)["input_ids"]
    assert all(tokenizer.unk_token_id not in row for row in ids)
    assert max(map(len, ids)) <= tokenizer.model_max_length
    assert [len(row) for row in ids] == [len(text.split()) + 2 for text in texts]  # one token a word


def test_fine_tuning_beats_scratch_on_words_without_labels():
    # A seed that no figure of the card or the lessons uses.
    transferred = finetuned_accuracy(SHIPPED, seed=5001, num_train=64)
    scratch = finetuned_accuracy(SHIPPED, seed=5001, num_train=64, pretrained=False)
    assert transferred["unseen"] > 0.7
    assert abs(scratch["unseen"] - 0.5) < 0.12
    assert scratch["unseen"] < transferred["unseen"] - 0.15


def test_masks_polar_words_most_and_special_tokens_never():
    tokenizer = build_tokenizer()
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(["[CLS]", "dull", "hotel", "[PAD]"])).repeat(5000, 1)
    generator = torch.Generator().manual_seed(0)
    masked, chosen = mask_tokens(ids, mask_probabilities(tokenizer), tokenizer.mask_token_id, generator)
    assert chosen.float().mean(0).tolist() == pytest.approx([0, 0.3, 0.1, 0], abs=0.03)
    assert torch.equal(masked[~chosen], ids[~chosen])
    changed = masked[chosen]
    assert (changed == tokenizer.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (changed == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert not set(changed.tolist()) & (set(tokenizer.all_special_ids) - {tokenizer.mask_token_id})


def test_sentence_loss_trains_the_pooler_and_word_loss_does_not():
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, TINY)
    ids = torch.tensor(tokenizer(["the room was dull and ugly ."])["input_ids"])
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[0, 4] = True
    word_loss, sentence_loss = pretraining_loss(model, ids, ids, chosen)
    pooler = model.bert.pooler.dense.weight
    assert torch.autograd.grad(word_loss, pooler, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(sentence_loss, pooler)[0].abs().sum() > 0


def test_padding_does_not_change_the_loss_of_a_review():
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, TINY).eval()
    ids = torch.tensor(tokenizer(["we loved this hotel ."])["input_ids"])
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=ids.dtype)], dim=1)
    losses = []
    for row in (ids, padded):
        chosen = torch.zeros_like(row, dtype=torch.bool)
        chosen[0, 2] = True
        losses.append(torch.stack(pretraining_loss(model, row, row, chosen)))
    torch.testing.assert_close(losses[0], losses[1])


def test_one_seed_gives_the_same_weights_twice(tmp_path):
    tokenizer, hashes = build_tokenizer(), []
    for name in ("first", "second"):
        model = new_model(tokenizer, TINY)
        rows = list(pretrain(model, tokenizer, TINY))
        assert [row["step"] for row in rows] == [2]
        hashes.append(save_checkpoint(model, tokenizer, tmp_path / name))
    assert hashes[0] == hashes[1]


def test_command_writes_a_folder_that_loads(tmp_path):
    lines = []
    main([str(tmp_path / "bert"), "--documents", "64", "--epochs", "1", "--score-seeds", "0"], report=lines.append)
    assert BertModel.from_pretrained(tmp_path / "bert").config.hidden_size == 128
    log = json.loads((tmp_path / "bert" / "training_log.json").read_text())
    assert log["sha256"] == weights_hash(tmp_path / "bert")
    assert log["settings"]["num_documents"] == 64
    assert log["sha256"] in lines[-1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_documents": 0}, "num_documents must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_epochs": -1}, "num_epochs must be at least 1, got -1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"initializer_range": -0.1}, "initializer_range must be positive, got -0.1"),
        ({"probe_every": 0}, "probe_every must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        Pretraining(**wrong)

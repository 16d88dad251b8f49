"""From recordings with transcripts to a saved recogniser: CTC by hand, both families, errors marked, loading back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

from ftnb.audio.recognisers import load_recogniser, make_tokenizer
from ftnb.pretrained import ModelError
from ftnb.saved import load_task, task_of_folder
from ftnb.tables import DataError
from ftnb.tasks.speech_recognition import (
    SpeechRecognition,
    align,
    collapse,
    ctc_by_hand,
    transcript_html,
    transcript_text,
)
from ftnb.train import Training
from tests.tiny_audio import RATE, song_folder, songs, tiny_wav2vec2

DATA = {"train": songs(60), "valid": songs(8, seed=1), "test": songs(10, seed=2)}


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory) -> str:
    return tiny_wav2vec2(tmp_path_factory.mktemp("wav2vec2"))


@pytest.fixture(scope="module")
def trained(wav2vec2) -> SpeechRecognition:
    task = SpeechRecognition.prepare(DATA, wav2vec2)
    for _ in Training(task.learner(batch_size=6), lr=2e-2, num_epochs=30, eval_every=1000, device="cpu"):
        pass
    return task


# -- CTC --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_recursion_is_pytorchs_loss_and_gradient(seed):
    g = torch.Generator().manual_seed(seed)
    moments, answers = int(torch.randint(5, 15, (), generator=g)), 5
    labels = torch.randint(1, answers, (int(torch.randint(0, 5, (), generator=g)),), generator=g).tolist()
    logits = torch.randn(moments, answers, generator=g, dtype=torch.float64).requires_grad_()
    ours = ctc_by_hand(logits.log_softmax(-1), labels)
    theirs = nn.functional.ctc_loss(
        logits.log_softmax(-1)[:, None],
        torch.tensor([labels]),
        torch.tensor([moments]),
        torch.tensor([len(labels)]),
        reduction="sum",
    )
    assert float(ours) == pytest.approx(float(theirs), abs=1e-9)
    if torch.isfinite(ours) and labels:
        (a,) = torch.autograd.grad(ours, logits, retain_graph=True)
        (b,) = torch.autograd.grad(theirs, logits)
        assert torch.allclose(a, b, atol=1e-9)


def test_a_transcript_that_does_not_fit_has_no_probability():
    log_probs = torch.zeros(2, 3).log_softmax(-1)
    assert torch.isinf(ctc_by_hand(log_probs, [1, 1]))  # a double letter needs three moments
    assert torch.isfinite(ctc_by_hand(log_probs, [1, 2]))


def test_paths_collapse():
    assert collapse([0, 1, 1, 0, 1, 2, 2, 0], 0) == [1, 1, 2]
    assert collapse([], 0) == collapse([0, 0], 0) == []


def test_errors_are_aligned_and_marked():
    said, heard = "a b c d".split(), "a x c d e".split()
    assert align(said, heard) == [
        ("same", "a", "a"),
        ("substituted", "b", "x"),
        ("same", "c", "c"),
        ("same", "d", "d"),
        ("inserted", "", "e"),
    ]
    assert transcript_text(said, heard) == "a [b→x] c d [+e+]"
    assert transcript_text(["a", "b"], ["b"]) == "[-a-] b"
    assert align([], ["a"]) == [("inserted", "", "a")]
    html = transcript_html(["<i>"], ["b"])
    assert "&lt;i&gt;→b" in html
    assert 'title="substituted"' in html


# -- CTC models -------------------------------------------------------------------------------------------------------


def test_songs_are_learnt(trained):
    measured = trained.evaluate("test")
    assert measured["wer"] < 0.3  # blanks alone give 1
    assert set(measured) == {"loss", "wer", "cer"}
    heard = [str(t) for t in trained.predict([row["audio"]["bytes"] for row in DATA["test"]])]
    pairs = [(a["text"].split(), b.split()) for a, b in zip(DATA["test"], heard, strict=True)]
    errors = sum(kind != "same" for said, told in pairs for kind, _, _ in align(said, told))
    assert errors / sum(len(said) for said, _ in pairs) == pytest.approx(measured["wer"], abs=1e-4)
    assert trained.predict([]) == []


def test_an_answer_does_not_depend_on_company(trained):
    clips = [row["audio"]["bytes"] for row in DATA["test"]]
    together = trained.predict(clips, batch_size=10)
    assert [trained.predict([clip])[0] for clip in clips] == together


def test_batches_hold_labels_and_lengths(wav2vec2):
    task = SpeechRecognition.prepare(DATA, wav2vec2)
    batch = next(iter(task.learner(batch_size=4).train.epoch()))
    assert batch["labels"].shape[0] == 4
    assert (batch["labels"] >= -100).all()
    assert batch["num_samples"].tolist() == batch["attention_mask"].sum(-1).tolist()
    tokens = task.recogniser.tokenizer.convert_ids_to_tokens(range(len(task.recogniser.tokenizer)))
    assert tokens == ["[PAD]", "[UNK]", "|", "a", "b", "c"]


def test_views(trained):
    assert trained.show_batch(2)._repr_html_().count("<audio") == 2
    blind = SpeechRecognition.prepare(DATA, "builtin:wav2vec2-babble")
    errors = blind.show_errors(2)
    assert "8 of 8 valid transcripts have errors" in errors.caption
    assert "[-" in repr(errors)
    assert 'title="deleted"' in errors._repr_html_()


def test_a_saved_recogniser_loads_in_pipeline_and_back(trained, tmp_path):
    trained.save(tmp_path / "m")
    assert task_of_folder(tmp_path / "m") == "automatic-speech-recognition"
    row = DATA["test"][0]["audio"]["bytes"]
    ours = trained.predict([row])[0]
    assert load_task(tmp_path / "m").predict([row])[0] == ours
    samples = trained.examples("test").clip(0)
    theirs = pipeline("automatic-speech-recognition", str(tmp_path / "m"))({"raw": samples, "sampling_rate": RATE})
    assert theirs["text"] == str(ours)
    assert "pipeline" in trained.loading_code("m")


def test_letters_and_head_are_kept_if_they_can_spell_the_transcripts(trained, tmp_path):
    folder = str(trained.save(tmp_path / "m"))
    same = load_recogniser(folder, ["a b"])
    assert not same.new_parameters
    assert torch.equal(same.model.lm_head.weight, trained.model.lm_head.weight)
    other = load_recogniser(folder, ["a z"])
    assert {"lm_head.weight", "lm_head.bias"} <= other.new_parameters
    assert any("lacks z" in notice for notice in other.notices)
    assert "z" in other.tokenizer.get_vocab()
    capital = make_tokenizer(["A", "B", "C"])
    capital.save_pretrained(folder)
    upper = load_recogniser(folder, ["a b c"])
    assert upper.upper
    assert upper.labels("a b") == [3, 2, 4]
    assert not upper.new_parameters
    scratch = load_recogniser(folder, ["a"], scratch=True)
    assert len(scratch.new_parameters) == len(list(scratch.model.parameters()))


def test_long_clips_and_impossible_ones_are_left_out(wav2vec2):
    rows = [*DATA["train"], {"audio": DATA["train"][0]["audio"], "text": "a" * 400}]
    task = SpeechRecognition.prepare({"train": rows, "valid": DATA["valid"]}, wav2vec2, max_seconds=0.5)
    said = " ".join(task.warnings)
    assert "are longer than 0.5 seconds and left out" in said
    assert max(task.examples("train").lengths()) <= RATE // 2
    task = SpeechRecognition.prepare({"train": rows, "valid": DATA["valid"]}, wav2vec2)
    assert any(
        "1 of 61 recordings are too short for their transcripts and left out (row 61" in w for w in task.warnings
    )


def test_bad_input_is_refused_before_training(wav2vec2, tmp_path):
    empty = [{**DATA["train"][0], "text": " … "}, *DATA["train"]]
    cases = [
        ({"train": empty, "valid": DATA["valid"]}, {}, "1 of 61 rows have no transcript"),
        (DATA, {"max_seconds": -1}, "above 0"),
        (DATA, {"max_seconds": 0.01}, "no recording is left of 60"),
        ([{"audio": b"x", "words": "a"}], {}, "column 'text' not found"),
        ([{"audio": b"x", "text": "a" * i} for i in range(1, 20)], {}, "no recording that can be read"),
        (str(tmp_path), {}, "holds no recording"),
    ]
    for data, settings, expected in cases:
        with pytest.raises(DataError, match=expected):
            SpeechRecognition.prepare(data, wav2vec2, **settings)
    for model, expected in (("builtin:bert-reviews", "cannot load"), ("nobody/nothing", "Hub")):
        with pytest.raises(ModelError, match=expected):
            SpeechRecognition.prepare(DATA, model)
    with pytest.raises(ModelError, match="nothing to write with"):
        SpeechRecognition.from_saved(wav2vec2)
    with pytest.raises(DataError, match="list of recordings"):
        SpeechRecognition.prepare(DATA, wav2vec2).predict("a.wav")


def test_a_folder_with_text_files_is_enough(tmp_path, wav2vec2):
    task = SpeechRecognition.prepare(song_folder(tmp_path, 20), wav2vec2, valid_fraction=0.2)
    assert sum(len(split) for _, split in task.splits.items()) == 20


# -- Whisper ----------------------------------------------------------------------------------------------------------


def tiny_whisper(folder: Path) -> str:
    words = ["<pad>", "<|startoftranscript|>", "<|endoftext|>", "<unk>", "a", "b", "c"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [("<|startoftranscript|>", 1), ("<|endoftext|>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        "<|startoftranscript|> $A <|endoftext|>", special_tokens=around
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|endoftext|>",
        bos_token="<|startoftranscript|>",
    )
    config = WhisperConfig(
        vocab_size=len(words), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        max_target_positions=32, num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, begin_suppress_tokens=None, suppress_tokens=None, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(3)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1, sampling_rate=RATE).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def test_whisper_goes_through_the_same_task(tmp_path):
    task = SpeechRecognition.prepare(DATA, tiny_whisper(tmp_path / "whisper"))
    assert not task.recogniser.ctc
    before = task.evaluate("valid")
    events = list(Training(task.learner(batch_size=6), lr=3e-3, num_epochs=12, eval_every=60, device="cpu"))
    assert events[-1].kind == "finished"
    after = task.evaluate("valid")
    assert after["loss"] < before["loss"]
    assert after["wer"] < 0.9
    row = DATA["test"][0]["audio"]["bytes"]
    ours = task.predict([row])
    task.save(tmp_path / "m")
    assert task_of_folder(tmp_path / "m") == "automatic-speech-recognition"
    assert load_task(tmp_path / "m").predict([row]) == ours
    assert np.isfinite(after["cer"])

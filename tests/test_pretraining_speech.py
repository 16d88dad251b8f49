"""How the built-in wav2vec 2.0 was made: classes of sounds, hidden spans, a checkpoint, its card and scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

import ftnb
from ftnb.audio.examples import extract
from ftnb.builtin.speech import babble
from ftnb.pretraining_speech import (
    SpeechPretraining,
    command_accuracy,
    describe,
    digits_error_rate,
    find_classes,
    hide,
    main,
    new_model,
    num_frames,
    pretrain,
    scores,
)
from ftnb.pretraining_vision import weights_hash

SHIPPED = Path(ftnb.__file__).parent / "weights" / "wav2vec2-babble"
TINY = SpeechPretraining(num_clips=48, num_steps=6, batch_size=8, num_classes=12)


@pytest.mark.parametrize("samples", [700, 4000, 16_000, 16_319])
def test_descriptions_and_outputs_belong_together(samples):
    model = new_model()
    sound = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    outputs = model.feature_extractor(torch.from_numpy(sound)[None]).shape[-1]
    assert outputs == num_frames(samples) == len(describe(sound))
    assert num_frames(100) == 0


def test_classes_are_those_of_similar_sounds():
    clips = babble(20)
    descriptions = [describe(clean) for clean, _ in clips]
    kmeans = find_classes(descriptions, 8, seed=0)
    classes = kmeans.predict(descriptions[0])
    assert set(classes) <= set(range(8))
    assert (kmeans.predict(descriptions[0]) == find_classes(descriptions, 8, seed=0).predict(descriptions[0])).all()


def test_spans_are_hidden_inside_the_clips():
    hidden = hide([100, 40, 5], 0.5, 8, np.random.default_rng(0))
    assert hidden.shape == (3, 100)
    assert not hidden[1, 40:].any()
    assert not hidden[2, 5:].any()
    assert 0.2 < float(hidden[0].float().mean()) < 0.55
    assert hidden[2].any()


def test_a_short_pretraining_learns_and_is_repeatable():
    runs = []
    for _ in range(2):
        model = new_model()
        rows = list(pretrain(model, TINY, every=2))
        runs.append((rows, {name: p.clone() for name, p in model.named_parameters()}))
    (first, weights), (second, again) = runs
    assert [row["audible"] for row in first] == [row["audible"] for row in second]
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert first[-1]["audible"] < first[0]["audible"]


def test_the_command_writes_a_checkpoint_that_loads(tmp_path, monkeypatch):
    said: list[str] = []
    main([str(tmp_path), "--steps", "2", "--clips", "32", "--score-seeds", "0"], said.append)
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == 128
    assert AutoFeatureExtractor.from_pretrained(tmp_path).sampling_rate == 16_000
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert log["sha256"] == weights_hash(tmp_path)
    assert log["settings"]["num_steps"] == 2
    monkeypatch.setattr("ftnb.pretraining_speech.scores", lambda folder, seeds: {"seeds": list(seeds)})
    main([str(tmp_path), "--score-only", "--score-seeds", "2"], said.append)
    assert json.loads((tmp_path / "scores.json").read_text()) == {"seeds": [1000, 1001]}
    assert log["sha256"] in said[-1]
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--score-seeds", "1"])


def test_scores_hold_every_seed_mean_and_error(monkeypatch):
    monkeypatch.setattr(
        "ftnb.pretraining_speech.command_accuracy", lambda *_, pretrained, num_clips: 0.5 + pretrained / 4
    )
    monkeypatch.setattr("ftnb.pretraining_speech.digits_error_rate", lambda _, seed, pretrained: seed / 10)
    table = scores("folder", [1, 2])
    assert table["fine-tuned"]["100"] == {"mean": 0.75, "plus_minus": 0.0, "values": [0.75, 0.75]}
    assert table["from scratch"]["digits, word error rate"] == {"mean": 0.15, "plus_minus": 0.1, "values": [0.1, 0.2]}


def test_measures_run_on_little(monkeypatch):
    monkeypatch.setattr("ftnb.pretraining_speech.NUM_STEPS", 1)
    assert 0 <= command_accuracy(SHIPPED, 0, num_clips=16) <= 1
    assert digits_error_rate(SHIPPED, 0, num_clips=4) > 0


def test_the_shipped_checkpoint_is_the_one_of_its_card_and_hears_without_regard_to_padding():
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert weights_hash(SHIPPED) in card
    assert weights_hash(SHIPPED) == json.loads((SHIPPED / "training_log.json").read_text())["sha256"]
    model, extractor = AutoModel.from_pretrained(SHIPPED), AutoFeatureExtractor.from_pretrained(SHIPPED)
    clips = [noisy for _, noisy in babble(3, seed=5)]
    with torch.no_grad():
        alone = model(**extract(extractor, clips[:1])).last_hidden_state
        together = model(**extract(extractor, clips)).last_hidden_state[:1, : alone.shape[1]]
    assert torch.allclose(alone[:, :-2], together[:, :-2], atol=1e-3)


def test_the_card_says_what_the_scores_say():
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    table = json.loads((SHIPPED / "scores.json").read_text())
    for kind in ("fine-tuned", "from scratch"):
        for of in ("50", "100", "200", "digits, word error rate"):
            assert f"{table[kind][of]['mean']:.3f} ± {table[kind][of]['plus_minus']:.3f}" in card

"""From recordings with labels to a saved classifier: batches, training, errors, predictions, loading back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from ftnb.audio.models import LogMelCNN, load_audio_classifier
from ftnb.layers import layer_groups
from ftnb.pretrained import ModelError
from ftnb.saved import load_task, task_of_folder
from ftnb.strategies import Head
from ftnb.tables import DataError
from ftnb.tasks.audio_classification import AudioClassification, confusion
from ftnb.train import Training
from tests.tiny_audio import RATE, tiny_wav2vec2, tone, tone_folder, tones

DATA = {"train": tones(40), "valid": tones(12, seed=1), "test": tones(20, seed=2)}


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory) -> str:
    return tiny_wav2vec2(tmp_path_factory.mktemp("wav2vec2"))


@pytest.fixture(scope="module")
def trained() -> AudioClassification:
    """The small network, which can tell two tones after a few steps."""
    task = AudioClassification.prepare(DATA, "logmel-cnn")
    for _ in Training(task.learner(batch_size=8), lr=5e-3, num_epochs=4, device="cpu"):
        pass
    return task


def test_tones_are_learnt_and_told_apart(trained):
    measured = trained.evaluate("test")
    assert measured["accuracy"] == 1
    answers = trained.predict([row["audio"]["bytes"] for row in DATA["test"]])
    assert [a.label for a in answers] == [row["label"] for row in DATA["test"]]
    assert sum(answers[0].scores.values()) == pytest.approx(1)
    assert trained.predict([]) == []


def test_an_answer_does_not_depend_on_company(trained, wav2vec2):
    for task in (trained, AudioClassification.prepare(DATA, wav2vec2)):
        clips = [row["audio"]["bytes"] for row in DATA["test"][:6]]
        together = task.predict(clips, batch_size=6)
        for alone, one in zip(together, clips, strict=True):
            assert task.predict([one])[0].score == pytest.approx(alone.score, abs=1e-3)


def test_batches_hold_padded_sound_masks_and_labels(wav2vec2):
    task = AudioClassification.prepare(DATA, wav2vec2)
    batch = next(iter(task.learner(batch_size=8).train.epoch()))
    assert batch["input_values"].shape == batch["attention_mask"].shape
    assert batch["labels"].shape == (8,)
    row = batch["input_values"][0][batch["attention_mask"][0].bool()]
    assert float(row.mean()) == pytest.approx(0, abs=1e-3)
    assert float(row.std()) == pytest.approx(1, abs=1e-2)
    lengths = task.examples("train").lengths()
    assert max(lengths) <= 0.4 * RATE + 1


def test_views(trained):
    assert trained.show_batch(3)._repr_html_().count("<audio") == 3
    assert "0 of 12 valid recordings are wrong" in trained.show_errors().caption
    blind = AudioClassification.prepare(DATA, "logmel-cnn")
    errors = blind.show_errors(2)
    assert 1 <= len(errors) <= 2
    assert errors._repr_html_().count("<audio") == len(errors)
    table = trained.confusion("test")
    assert table.rows[0] == ("high", "10", "")
    assert confusion(["a", "b"], ["b", "b"], ["a", "b"]).tolist() == [[0, 1], [0, 1]]


def test_the_small_network_saves_and_loads_with_its_answers(trained, tmp_path):
    trained.save(tmp_path / "m")
    assert task_of_folder(tmp_path / "m") == "audio-classification"
    again = load_task(tmp_path / "m")
    ask = [DATA["test"][0]["audio"]["bytes"]]
    assert again.predict(ask) == trained.predict(ask)
    assert "load_task" in trained.loading_code("m")
    other = load_audio_classifier(str(tmp_path / "m"), ["low", "high", "none"])
    assert other.new_parameters == {"classifier.weight", "classifier.bias"}
    assert torch.equal(other.model.blocks[0][0].weight, trained.model.blocks[0][0].weight)
    scratch = load_audio_classifier(str(tmp_path / "m"), ["low", "high"], scratch=True)
    assert not torch.equal(scratch.model.blocks[0][0].weight, trained.model.blocks[0][0].weight)


def test_wav2vec2_saves_for_pipeline_and_loads_back(wav2vec2, tmp_path):
    task = AudioClassification.prepare(DATA, wav2vec2)
    assert any("classifier" in name for name in task.audio.new_parameters)
    for _ in Training(task.learner(batch_size=8), Head(), lr=1e-2, num_epochs=1, device="cpu"):
        pass
    task.save(tmp_path / "m")
    assert task_of_folder(tmp_path / "m") == "audio-classification"
    clip = tone(300.0, 0.3, np.random.default_rng(5))
    ours = task.predict([(clip, RATE)])[0]
    assert load_task(tmp_path / "m").predict([(clip, RATE)])[0] == ours
    theirs = pipeline("audio-classification", str(tmp_path / "m"))({"raw": clip, "sampling_rate": RATE})
    assert theirs[0]["label"] == ours.label
    assert theirs[0]["score"] == pytest.approx(ours.score, abs=1e-3)
    assert "pipeline" in task.loading_code("m")


def hubert(folder: Path) -> str:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (20, 8), "conv_stride": (10, 8)}
    torch.manual_seed(1)
    HubertModel(
        HubertConfig(**sizes, **convolutions, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    ).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=False).save_pretrained(folder)
    return str(folder)


def spectrogram_transformer(folder: Path) -> str:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(1)
    ASTForAudioClassification(ASTConfig(**sizes, max_length=64, num_mel_bins=32)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("make", [hubert, spectrogram_transformer])
def test_other_families_train_and_are_cut_into_groups(tmp_path, make):
    task = AudioClassification.prepare(DATA, make(tmp_path / "model"))
    events = list(Training(task.learner(batch_size=8), lr=1e-3, num_epochs=1, device="cpu"))
    assert events[-1].kind == "finished"
    assert np.isfinite(task.evaluate("test")["loss"])
    assert [group.name for group in layer_groups(task.model, task.audio.new_parameters)][-1] == "head"


def test_the_log_mel_network_is_cut_into_blocks_and_a_head():
    network = LogMelCNN(3)
    assert [g.name for g in layer_groups(network, frozenset({"classifier.weight", "classifier.bias"}))] == [
        "block 0", "block 1", "block 2", "block 3", "head",
    ]  # fmt: skip
    assert network(torch.zeros(2, 50)).logits.shape == (2, 3)  # shorter than a window
    mask = torch.ones(1, 16_000, dtype=torch.long)
    sound = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    longer = torch.cat([sound, torch.zeros(1, 8000)], 1)
    more = torch.cat([mask, torch.zeros(1, 8000, dtype=torch.long)], 1)
    assert torch.allclose(network.eval()(sound, mask).logits, network(longer, more).logits, atol=0.05)


def test_bad_input_is_refused_before_training(wav2vec2, tmp_path):
    one_class = {"train": [row for row in DATA["train"] if row["label"] == "low"], "valid": DATA["valid"][:1]}
    cases = [
        (one_class, "logmel-cnn", {}, "at least two classes"),
        (
            {"train": DATA["train"], "valid": [{**DATA["valid"][0], "label": "middle"}]},
            "logmel-cnn",
            {},
            "never occurs in train",
        ),
        (
            {
                "train": [{"audio": f"no{i}.wav", "label": ("low", "high")[i % 2]} for i in range(8)],
                "valid": DATA["valid"],
            },
            "logmel-cnn",
            {},
            "no recording",
        ),
        (DATA, "logmel-cnn", {"max_seconds": 0}, "above 0"),
        ([{"sound": 1, "label": "a"}], "logmel-cnn", {}, "column 'audio' not found"),
        (str(tmp_path / "nowhere"), "logmel-cnn", {}, "no file and no folder"),
    ]
    for data, model, settings, expected in cases:
        with pytest.raises(DataError, match=expected):
            AudioClassification.prepare(data, model, **settings)
    for model, expected in (
        ("builtin:bert-reviews", "no feature extractor"),
        ("builtin:resnet-glyphs", "cannot load|no head"),
        ("nobody/nothing", "Hub"),
    ):
        with pytest.raises(ModelError, match=expected):
            AudioClassification.prepare(DATA, model)
    with pytest.raises(ModelError, match="without a trained head"):
        AudioClassification.from_saved(wav2vec2)


def test_warnings_name_what_was_cut_and_what_leaks():
    data = {"train": DATA["train"], "valid": [*DATA["valid"], DATA["train"][0]]}
    task = AudioClassification.prepare(data, "logmel-cnn", max_seconds=0.25)
    said = " ".join(task.warnings)
    assert "are cut to 0.25 seconds" in said
    assert "1 of 13 recordings are also in train" in said
    assert max(len(task.examples("train")[i]["samples"]) for i in range(40)) == RATE // 4


def test_a_folder_of_words_is_enough(tmp_path):
    task = AudioClassification.prepare(tone_folder(tmp_path, each=10), "logmel-cnn", valid_fraction=0.2)
    assert task.labels == ["high", "low"]
    assert [len(split) for _, split in task.splits.items()] == [16, 4]

"""Real voices: digits and strings of them by people who were not in training; speech as it lies on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftnb.audio.clips import as_wav, read_clip
from ftnb.audio.models import LogMelCNN
from ftnb.strategies import LPFT, Full, Head, LayerDecay
from ftnb.tasks.audio_classification import AudioClassification
from ftnb.tasks.speech_recognition import SpeechRecognition
from ftnb.train import Training

pytestmark = pytest.mark.realdata

NAMES = "zero one two three four five six seven eight nine".split()
TRAIN, VALID, TEST = ["george", "jackson", "lucas"], ["nicolas"], ["theo", "yweweler"]


def recordings(test_data: Path, speakers: list[str]) -> list[dict[str, Any]]:
    """Every recording of some speakers (8,000 samples a second) with its digit."""
    files = sorted((test_data / "speech_commands" / "fsdd900" / "recordings").glob("*.wav"))
    parts = [(path, path.stem.split("_")) for path in files]
    return [{"audio": str(path), "label": digit} for path, (digit, who, _) in parts if who in speakers]


def strings(test_data: Path, speakers: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Strings of two to four digits, each by one speaker, from recordings with a short pause between."""
    rng, rows = np.random.default_rng(seed), []
    own = {who: recordings(test_data, [who]) for who in speakers}
    for _ in range(count):
        who = str(rng.choice(speakers))
        chosen = [own[who][i] for i in rng.choice(len(own[who]), size=rng.integers(2, 5))]
        parts = [part for r in chosen for part in (read_clip(r["audio"], 8000), np.zeros(400, dtype=np.float32))]
        text = " ".join(NAMES[int(r["label"])] for r in chosen)
        rows.append({"audio": as_wav(np.concatenate(parts), 8000), "text": text})
    return rows


def plain_baseline(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    """Accuracy of logistic regression on a log-mel spectrogram of twelve moments, evenly spaced."""
    network = LogMelCNN(10)

    def features(rows: list[dict[str, Any]]) -> np.ndarray:
        found = []
        for row in rows:
            samples = read_clip(row["audio"], 16_000)
            bands = network.spectrogram(torch.from_numpy((samples - samples.mean()) / samples.std())[None])[0]
            moments = np.linspace(0, bands.shape[1] - 1, 12).round().astype(int)
            found.append(bands[:, moments].flatten().numpy())
        return np.stack(found)

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    model.fit(features(train), [row["label"] for row in train])
    return float(model.score(features(test), [row["label"] for row in test]))


def train_on_digits(test_data: Path, strategy: Any, lr: float, scratch: bool = False) -> tuple[float, float]:
    """Accuracy on two strangers, and that of the plain baseline; every other recording of four people to learn from."""
    data = {"train": recordings(test_data, [*TRAIN, *VALID])[::2], "valid": recordings(test_data, TEST)}
    task = AudioClassification.prepare(data, "builtin:wav2vec2-babble", scratch=scratch)
    assert any("were made at 8000 samples a second" in warning for warning in task.warnings)
    settings: dict[str, Any] = {"num_epochs": 5, "eval_every": 10_000, "device": "cpu", "precision": "fp32"}
    for _ in Training(task.learner(), strategy, lr=lr, **settings):
        pass
    return task.evaluate("valid")["accuracy"], plain_baseline(data["train"], data["valid"])


@pytest.fixture(scope="module")
def from_scratch(test_data) -> float:
    return train_on_digits(test_data, Full(), 1e-3, scratch=True)[0]


@pytest.mark.parametrize(("strategy", "lr"), [(Full(), 1e-3), (LayerDecay(0.8), 1.5e-3), (Head(), 5e-3)], ids=str)
def test_digits_by_strangers(test_data, from_scratch, strategy, lr):
    """What was learnt from a synthesiser's babble alone carries over to real voices; the floor is the same network
    from random weights, after the same steps.

    Rates were chosen with one of the four held out. The plain baseline is better than all of them on these short and
    clean recordings (a first floor above it did not hold), and is printed beside them.
    """
    measured, plain = train_on_digits(test_data, strategy, lr)
    print(f"{strategy}: {measured:.3f}, from scratch {from_scratch:.3f}, plain baseline {plain:.3f}")
    assert measured > from_scratch + 0.1


@pytest.mark.parametrize(
    ("strategy", "lr"),
    [(Full(), 1.5e-3), (LayerDecay(0.9), 2e-3), (LPFT(head_share=0.1, head_lr=5.0), 2e-3)],
    ids=["full", "layer-decay", "lp-ft"],
)
def test_strings_of_digits_by_strangers(test_data, strategy, lr):
    """The floor: one word for everything, the best there is, has a word error rate of 0.8 and more.

    Rates and shares were chosen with one of the four held out. The head alone is not among the strategies: after the
    same steps, at 1e-2, it writes nothing yet (word error rate 1.0): on a frozen body that never saw a letter CTC
    stays on its plateau of blanks. Nor are the last two blocks (0.97, also in three times the steps) and LoRA (1.0 in
    these steps at two rates; in nearly three times as many 1.0 at two and 0.87, one word's rate, at a third).
    """
    data = {"train": strings(test_data, [*TRAIN, *VALID], 200, 0), "valid": strings(test_data, TEST, 50, 1)}
    task = SpeechRecognition.prepare(data, "builtin:wav2vec2-babble")
    settings: dict[str, Any] = {"num_epochs": 6, "eval_every": 10_000, "device": "cpu", "precision": "fp32"}
    for _ in Training(task.learner(batch_size=4), strategy, lr=lr, **settings):
        pass
    said = [row["text"].split() for row in data["valid"]]
    constant = min(sum(len(words) - min(1, words.count(n)) for words in said) / sum(map(len, said)) for n in NAMES)
    measured = task.evaluate("valid")
    print(f"{measured}, one word for all {constant:.3f}")
    assert constant > 0.8
    assert measured["wer"] < constant - 0.1


@pytest.mark.parametrize(("folder", "count", "rate"), [("ljspeech32", 32, 22_050), ("speechbrain10", 10, 16_000)])
def test_speech_is_read_as_it_lies_on_disk(test_data, folder, count, rate):
    table = test_data / "speech_to_text" / folder / "transcripts.tsv"
    task = SpeechRecognition.prepare(
        table, "builtin:wav2vec2-babble", columns={"audio": 0, "text": 1}, valid_fraction=0.2
    )
    assert sum(len(split) for _, split in task.splits.items()) == count
    told = any(f"were made at {rate} samples a second" in warning for warning in task.warnings)
    assert told == (rate != 16_000)
    assert all(text == text.lower() and "," not in text for text in task.splits.train["text"])
    batch = next(iter(task.learner(batch_size=2).train.epoch()))
    loss, _ = task.learner().loss(task.model, batch)
    assert torch.isfinite(loss)
    assert task.show_batch(2)._repr_html_().count("<audio") == 2

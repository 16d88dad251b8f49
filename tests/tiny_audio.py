"""Tones as words and tiny audio models, laid out as a user's own are; for tests of whole runs."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from ftnb.audio.clips import as_wav

RATE = 16_000
TONES = {"low": 300.0, "high": 1800.0}
SYLLABLES = {"a": 300.0, "b": 900.0, "c": 2200.0}


def tone(hertz: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    wave = 0.4 * np.sin(2 * np.pi * hertz * rng.uniform(0.95, 1.05) * time + rng.uniform(0, 6))
    return (wave + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def tones(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Recordings of the classes "low" and "high", in turn."""
    rng = np.random.default_rng(seed)
    names = [list(TONES)[i % 2] for i in range(count)]
    return [{"audio": as_wav(tone(TONES[n], rng.uniform(0.2, 0.4), rng), RATE), "label": n} for n in names]


def songs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Recordings of two or three tones, with a letter for each as transcript."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        letters = rng.choice(list(SYLLABLES), size=rng.integers(2, 4)).tolist()
        gap = np.zeros(RATE // 20, dtype=np.float32)
        sound = np.concatenate([part for x in letters for part in (tone(SYLLABLES[x], 0.15, rng), gap)])
        rows.append({"audio": as_wav(sound, RATE), "text": " ".join(letters)})
    return rows


def tone_folder(folder: Path, each: int = 30) -> str:
    """A folder of WAV files for each class."""
    for i, row in enumerate(tones(2 * each)):
        place = folder / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03d}.wav").write_bytes(row["audio"]["bytes"])
    return str(folder)


def song_folder(folder: Path, count: int = 40) -> str:
    """A folder of WAV files, with a text file beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(songs(count)):
        (folder / f"{i:03d}.wav").write_bytes(row["audio"]["bytes"])
        (folder / f"{i:03d}.txt").write_text(row["text"] + "\n", encoding="utf-8")
    return str(folder)


def tiny_wav2vec2(folder: Path) -> str:
    """Save a random wav2vec 2.0 body of a few thousand parameters with its feature extractor, and no letters."""
    torch.manual_seed(7)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16, 16),
        conv_kernel=(20, 8, 4), conv_stride=(10, 8, 4), feat_extract_norm="layer", conv_bias=True,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, classifier_proj_size=16, layerdrop=0.0,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(folder)
    return str(folder)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE, **kinds: Any) -> Path:
    soundfile.write(path, samples, rate, **kinds)
    return path

# Exported from nbs/93_pretraining_speech.py: edit the lesson, then run `make export`.
"""How the built-in wav2vec 2.0 was made: guess the hidden sounds of babble that nobody transcribed."""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model
from transformers.audio_utils import mel_filter_bank

from ftnb.audio.clips import Samples
from ftnb.audio.examples import extract
from ftnb.builtin.speech import babble, spoken_commands, spoken_digits
from ftnb.builtin.voices import RATE
from ftnb.pretraining_vision import weights_hash
from ftnb.tasks.audio_classification import AudioClassification
from ftnb.tasks.speech_recognition import SpeechRecognition
from ftnb.train import Training

__all__ = [
    "KERNELS",
    "STRIDES",
    "FRAME",
    "WIDTH",
    "num_frames",
    "describe",
    "find_classes",
    "SpeechPretraining",
    "new_model",
    "feature_extractor",
    "hide",
    "pretrain",
    "save_checkpoint",
    "LABELS",
    "RATES",
    "NUM_STEPS",
    "command_accuracy",
    "digits_error_rate",
    "scores",
    "main",
]


KERNELS, STRIDES = (20, 8, 4, 4), (10, 4, 4, 2)  # of the convolutions: one output every 320 samples, 20 ms
FRAME, WIDTH = 320, 690  # samples from one output to the next, and samples that one output hears


def num_frames(num_samples: int) -> int:
    """How many outputs the convolutions give for so many samples."""
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return max(0, num_samples)


def describe(samples: Samples) -> NDArray[np.float32]:
    """What each output's stretch sounds like: log-mel spectra of it and its two neighbours, shape (frames, 120)."""
    mel = torch.tensor(mel_filter_bank(201, 40, 60.0, 7600.0, RATE, norm="slaney", mel_scale="slaney")).float()
    around = torch.from_numpy(samples)[(WIDTH - 400) // 2 :]  # the middle of what the output hears
    power = torch.stft(around, 400, FRAME, window=torch.hann_window(400), center=False, return_complex=True).abs() ** 2
    bands = (mel.T @ power).clamp(min=1e-5).log().T[: num_frames(len(samples))]
    bands = bands - bands.mean(0)
    described: NDArray[np.float32] = torch.cat([bands.roll(1, 0), bands, bands.roll(-1, 0)], 1).numpy()
    return described


def find_classes(descriptions: Sequence[NDArray[np.float32]], num_classes: int, seed: int) -> MiniBatchKMeans:
    """Typical descriptions; `predict` gives the class of others."""
    kmeans = MiniBatchKMeans(num_classes, random_state=seed, batch_size=4096, n_init=3)
    return kmeans.fit(np.concatenate(descriptions))


@dataclass(frozen=True)
class SpeechPretraining:
    """The knobs of the pretraining.

    Args:
        num_clips: how much babble, about 1.2 seconds a clip.
        num_steps: steps of `batch_size` clips.
        batch_size: clips in a step.
        lr: the peak rate; it rises over the first tenth and falls along a cosine.
        num_classes: of sounds.
        hidden: share of a clip that is hidden.
        span: frames that are hidden together.
        seed: decides babble, classes, weights and order.
    """

    num_clips: int = 4000
    num_steps: int = 2000
    batch_size: int = 24
    lr: float = 1.5e-3
    num_classes: int = 96
    hidden: float = 0.5
    span: int = 8
    seed: int = 0


def new_model(seed: int = 0) -> Wav2Vec2Model:
    """The network with random weights: about 0.9 million parameters."""
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=448,
        conv_dim=(64, 64, 96, 128), conv_kernel=KERNELS, conv_stride=STRIDES,
        feat_extract_norm="layer", conv_bias=True, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8,
        hidden_dropout=0.05, attention_dropout=0.05, activation_dropout=0.0, feat_proj_dropout=0.0,
        layerdrop=0.0, mask_time_prob=0.05, classifier_proj_size=128, final_dropout=0.0,
        ctc_loss_reduction="mean", ctc_zero_infinity=True,
    )  # fmt: skip
    return Wav2Vec2Model(config)


def feature_extractor() -> Wav2Vec2FeatureExtractor:
    """Samples to the network's input: mean 0, deviation 1, and a mask where a batch is padded.

    With layer normalisation in the convolutions, padding changes nothing; with the group normalisation of the first
    wav2vec 2.0 it would.
    """
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True, do_normalize=True)


def hide(lengths: Sequence[int], share: float, span: int, rng: np.random.Generator) -> Tensor:
    """Which frames of a batch are hidden, shape (clips, longest), true where hidden.

    Args:
        lengths: frames of each clip.
        share: about how much of each is hidden; spans may overlap.
        span: frames hidden together.
        rng: decides where.
    """
    hidden = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for row, length in enumerate(lengths):
        places = max(1, length - span)
        for start in rng.choice(places, size=min(places, max(1, int(length * share / span))), replace=False):
            hidden[row, start : start + span] = True
        hidden[row, length:] = False
    return hidden


def pretrain(model: Wav2Vec2Model, settings: SpeechPretraining, every: int = 100) -> Iterator[dict[str, Any]]:
    """Train the model to guess hidden sounds; yields a row of the log every `every` steps."""
    s, began = settings, time.time()
    clips = babble(s.num_clips, s.seed)
    descriptions = [describe(clean) for clean, _ in clips]
    kmeans = find_classes(descriptions[:1500], s.num_classes, s.seed)
    targets = [torch.from_numpy(kmeans.predict(d)).long() for d in descriptions]
    heard = [(noisy * 32767).astype(np.int16) for _, noisy in clips]  # half the memory
    del clips, descriptions
    rng = np.random.default_rng(s.seed)
    by_length = np.argsort([len(clip) for clip in heard], kind="stable")
    groups = [by_length[i : i + s.batch_size] for i in range(0, s.num_clips - s.batch_size + 1, s.batch_size)]
    torch.manual_seed(s.seed)
    guess = nn.Linear(model.config.hidden_size, s.num_classes)
    parameters = [*model.parameters(), *guess.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, s.lr, total_steps=s.num_steps, pct_start=0.1)
    extractor, losses = feature_extractor(), []
    model.train()
    for step in range(1, s.num_steps + 1):
        if (step - 1) % len(groups) == 0:
            order = rng.permutation(len(groups))
        chosen = groups[order[(step - 1) % len(groups)]]
        inputs = extract(extractor, [heard[i].astype(np.float32) / 32767 for i in chosen])
        lengths = [num_frames(len(heard[i])) for i in chosen]
        hidden = hide(lengths, s.hidden, s.span, rng)
        truth = nn.utils.rnn.pad_sequence([targets[i] for i in chosen], batch_first=True, padding_value=-100)
        logits = guess(model(**inputs, mask_time_indices=hidden).last_hidden_state)
        unheard = nn.functional.cross_entropy(logits[hidden], truth[hidden], ignore_index=-100)
        audible = nn.functional.cross_entropy(logits[~hidden], truth[~hidden], ignore_index=-100)
        (unheard + 0.5 * audible).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append((unheard.item(), audible.item()))
        if step % every == 0 or step == s.num_steps:
            means = np.mean(losses, 0).round(4).tolist()
            yield {"step": step, "hidden": means[0], "audible": means[1], "seconds": round(time.time() - began)}
            losses.clear()
    model.eval()


def save_checkpoint(model: Wav2Vec2Model, folder: str | Path) -> str:
    """Save model and feature extractor for `from_pretrained`; return the weights' SHA-256."""
    model.save_pretrained(folder)
    feature_extractor().save_pretrained(folder)
    return weights_hash(folder)


LABELS = (50, 100, 200)  # labelled commands
RATES = {True: 1.5e-3, False: 1.5e-3}  # from the checkpoint, from random weights: the best on development seeds 1 and 2
NUM_STEPS = 80  # of 16 clips, however many are labelled


def command_accuracy(
    folder: str | Path,
    seed: int,
    *,
    pretrained: bool = True,
    num_clips: int = 100,
    lr: float | None = None,
    split: Literal["valid", "test"] = "test",
) -> float:
    """Fine-tune a checkpoint (or the same network from random weights) on commands; accuracy on 200 of strangers.

    Args:
        folder: a checkpoint of `save_checkpoint`.
        seed: of the clips, their voices, the new weights and the order.
        pretrained: whether to start from the checkpoint's weights.
        num_clips: labelled clips.
        lr: the peak rate; by default that of `RATES`.
        split: whose voices to measure on.
    """
    data = {"train": spoken_commands("train", num_clips, seed), "valid": spoken_commands(split, 200, seed)}
    task = AudioClassification.prepare(data, str(folder), scratch=not pretrained, seed=seed)
    epochs = math.ceil(NUM_STEPS / math.ceil(num_clips / 16))
    settings: dict[str, Any] = {"num_epochs": epochs, "eval_every": 10_000, "seed": seed, "device": "cpu"}
    for _ in Training(task.learner(16, seed), lr=lr or RATES[pretrained], **settings):
        pass
    return task.evaluate("valid")["accuracy"]


def digits_error_rate(folder: str | Path, seed: int, *, pretrained: bool = True, num_clips: int = 200) -> float:
    """Fine-tune on strings of digits, eight epochs in batches of 4; word error rate on 60 strings of strangers.

    Args:
        folder: a checkpoint of `save_checkpoint`.
        seed: as for `command_accuracy`.
        pretrained: whether to start from the checkpoint's weights.
        num_clips: clips with a transcript.
    """
    data = {"train": spoken_digits("train", num_clips, seed), "valid": spoken_digits("test", 60, seed)}
    task = SpeechRecognition.prepare(data, str(folder), scratch=not pretrained, seed=seed)
    settings: dict[str, Any] = {"num_epochs": 8, "eval_every": 10_000, "seed": seed, "device": "cpu"}
    for _ in Training(task.learner(4, seed), lr=RATES[pretrained], **settings):
        pass
    return task.evaluate("valid")["wer"]


def scores(folder: str | Path, seeds: Iterable[int]) -> dict[str, Any]:
    """Accuracy on commands by labelled clips, and word error rate on digits: every seed, mean, two standard errors."""
    seeds = list(seeds)
    table: dict[str, Any] = {"seeds": seeds}
    for kind, pretrained in (("fine-tuned", True), ("from scratch", False)):
        of = {
            str(number): [command_accuracy(folder, s, pretrained=pretrained, num_clips=number) for s in seeds]
            for number in LABELS
        }
        of["digits, word error rate"] = [digits_error_rate(folder, s, pretrained=pretrained) for s in seeds]
        table[kind] = {name: _summary(values) for name, values in of.items()}
    return table


def _summary(values: list[float]) -> dict[str, Any]:
    error = 2 * statistics.stdev(values) / len(values) ** 0.5
    mean = round(statistics.mean(values), 3)
    return {"mean": mean, "plus_minus": round(error, 3), "values": [round(value, 4) for value in values]}


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> None:
    """Pretrain on babble, save a checkpoint with its log, and score it on fresh seeds."""
    parser = argparse.ArgumentParser(prog="python -m ftnb.pretraining_speech", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=SpeechPretraining.num_steps)
    parser.add_argument("--clips", type=int, default=SpeechPretraining.num_clips)
    parser.add_argument("--seed", type=int, default=SpeechPretraining.seed)
    parser.add_argument("--score-seeds", type=int, default=5, help="how many fresh seeds to score on (0: none)")
    parser.add_argument("--score-only", action="store_true", help="score the checkpoint that is in the folder")
    options = parser.parse_args(arguments)
    if options.score_seeds == 1 or options.score_seeds < 0:
        parser.error("--score-seeds must be 0 or at least 2: one seed has no standard error.")
    settings = replace(SpeechPretraining(), num_steps=options.steps, num_clips=options.clips, seed=options.seed)
    if not options.score_only:
        rows, model = [], new_model(settings.seed)
        for row in pretrain(model, settings):
            rows.append(row)
            report(json.dumps(row))
        log = {"settings": asdict(settings), "sha256": save_checkpoint(model, options.folder), "rows": rows}
        (options.folder / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    if options.score_seeds:
        result = scores(options.folder, range(1000, 1000 + options.score_seeds))
        (options.folder / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
        report(json.dumps(result, indent=1))
    report(f"{options.folder}: sha256 {weights_hash(options.folder)}")


if __name__ == "__main__" and __spec__ is not None:  # with `python -m`; in a notebook there is no __spec__
    main()

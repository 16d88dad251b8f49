"""The trunk cache and length buckets against `transformers.Trainer` on the same job: the last block and the head of a
pretrained BERT, ten epochs, batches of 16, on one thread.

The Trainer pads in three ways: each batch to its longest sentence, the same with batches grouped by length, and all
sentences to 128 tokens. It trains the very parameters that we train, by the same optimizer, schedule and clipping, in
float32, which is its default. Ours is measured twice: in the precision that it takes by itself (bf16 where the CPU has
instructions for it), and in float32.
Timed is the training alone (ours with planning, filling and its evaluations on `valid`); tokenizing is not.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from ftnb.devices import choose_precision
from ftnb.strategies import TopK
from ftnb.tasks.text_classification import TextClassification
from ftnb.train import Training
from ftnb.trunk_cache import TrunkCache

Rows = list[dict[str, str]]
PADDINGS = ("dynamic", "grouped", "max_length")
PRECISIONS = ("auto", "fp32")
LR, NUM_EPOCHS, BATCH_SIZE = 1e-4, 10, 16


def ours(
    source: Path, train: Rows, valid: Rows, test: Rows | None, seed: int, precision: str
) -> tuple[float, float | None, set[str]]:
    """Our training; returns seconds of the process, the accuracy on `test`, and the names of what trained."""
    data = {"train": train, "valid": valid, **({"test": test} if test else {})}
    task = TextClassification.prepare(data, str(source), seed=seed)
    learner = task.learner(batch_size=BATCH_SIZE, seed=seed)
    training = Training(
        learner, TopK(1), lr=LR, num_epochs=NUM_EPOCHS, seed=seed, device="cpu",
        precision=precision, cache=TrunkCache(),
    )  # fmt: skip
    begin = time.process_time()
    for _ in training:
        pass
    seconds = time.process_time() - begin
    trained = set(training.phases[0].trainable)
    names = {name for name, p in task.model.named_parameters() if p in trained}
    return seconds, task.evaluate("test")["accuracy"] if test else None, names


def theirs(
    source: Path, train: Rows, test: Rows | None, seed: int, padding: str, names: set[str], folder: Path
) -> tuple[float, float | None]:
    """The Trainer; returns seconds of the process and the accuracy on `test`."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    labels = sorted({row["label"] for row in train})
    fixed: dict[str, Any] = {"padding": "max_length", "max_length": 128} if padding == "max_length" else {}
    encoded = tokenizer([row["text"] for row in train], truncation=True, **fixed)
    rows = Dataset.from_dict({**encoded, "labels": [labels.index(row["label"]) for row in train]})
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH_SIZE, learning_rate=LR,
        num_train_epochs=NUM_EPOCHS, weight_decay=0.01, warmup_steps=0.1, seed=seed, use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
        train_sampling_strategy="group_by_length" if padding == "grouped" else "random",
    )  # fmt: skip
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), rows)
    begin = time.process_time()
    trainer.train()
    seconds = time.process_time() - begin
    return seconds, _accuracy(model, tokenizer, test, labels) if test else None


@torch.no_grad()
def _accuracy(model: nn.Module, tokenizer: Any, rows: Rows, labels: list[str]) -> float:
    model.eval()
    right = 0
    for i in range(0, len(rows), 32):
        some = rows[i : i + 32]
        inputs = tokenizer([row["text"] for row in some], truncation=True, padding=True, return_tensors="pt")
        predicted = model(**inputs).logits.argmax(-1).tolist()
        right += sum(labels[p] == row["label"] for p, row in zip(predicted, some, strict=True))
    return right / len(rows)


def against_trainer(
    pairs: int = 7,
    seeds: int = 5,
    *,
    source: Path,
    train: Rows,
    valid: Rows,
    test: Rows,
    folder: Path,
    paddings: tuple[str, ...] = PADDINGS,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The part "against_trainer" of `bench.json`.

    Args:
        pairs: how often each way of padding is timed beside ours.
        seeds: of how many seeds the accuracies are measured, ours and the Trainer's with dynamic padding.
        source: folder of a BERT with its tokenizer.
        train: training sentences, {"text", "label"}.
        valid: a few more.
        test: what the accuracies are of.
        folder: for the Trainer.
        paddings: the Trainer's ways of padding.
        say: told of every pair.

    Returns:
        For each way of padding how many times as fast we are (the median, and the range under "…_range"), and the
        mean accuracies with their standard deviations; the same for ours in float32 under "fp32"; and the "precision"
        that we took by ourselves.
    """
    ratios: dict[str, dict[str, list[float]]] = {of: {padding: [] for padding in paddings} for of in PRECISIONS}
    scores: dict[str, list[float]] = {**{of: [] for of in PRECISIONS}, "trainer": []}
    for number in range(max(pairs, seeds)):
        tested, mine, names = test if number < seeds else None, dict[str, float](), set[str]()
        for precision in PRECISIONS:
            mine[precision], score, names = ours(source, train, valid, tested, number, precision)
            scores[precision] += [score] if score is not None else []
        for padding in paddings if number < pairs else paddings[:1]:
            other, score = theirs(
                source, train, tested if padding == paddings[0] else None, number, padding, names, folder
            )
            scores["trainer"] += [score] if score is not None else []
            if number < pairs:
                for precision, seconds in mine.items():
                    ratios[precision][padding].append(other / seconds)
                    say(f"pair {number}: Trainer, {padding} {other:.1f} s / ours, {precision} {seconds:.1f} s")
    figures: dict[str, Any] = {"examples": len(train), "pairs": pairs, "seeds": seeds}
    figures["precision"] = choose_precision("auto", torch.device("cpu"), AutoModel.from_pretrained(source))
    figures |= {**_medians(ratios["auto"]), **_means("ours", scores["auto"]), **_means("trainer", scores["trainer"])}
    figures["fp32"] = {**_medians(ratios["fp32"]), **_means("ours", scores["fp32"])}
    return figures


def _medians(ratios: dict[str, list[float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for padding, of in ratios.items():
        figures |= {padding: statistics.median(of), f"{padding}_range": [min(of), max(of)]}
    return figures


def _means(who: str, scores: list[float]) -> dict[str, float | None]:
    return {
        f"accuracy_{who}": statistics.mean(scores) if scores else None,
        f"accuracy_{who}_deviation": statistics.stdev(scores) if len(scores) > 1 else None,
    }

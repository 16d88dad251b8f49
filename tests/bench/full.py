"""Full fine-tuning to the same accuracy: ours, tuned on other sentences, against `transformers.Trainer` as it comes.

"As it comes" means: `TrainingArguments` with nothing but the device, no saving, no logging and no bar: 3 epochs,
batches of 8 in random order, each padded to its longest sentence, rate 5e-5 falling in a line without warm-up, no
weight decay, clipping at 1, fused AdamW, float32. Ours are as many epochs of batches of 16 of similar lengths at twice
the rate, all chosen on training sentences that are in neither set here (two epochs of batches of 8 were faster, and a
hundredth worse), in the precision that is ours by default. Timed is the training (ours with its evaluations on
`valid`), not reading and tokenizing.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from ftnb.tasks.text_classification import TextClassification
from ftnb.train import Training
from tests.bench.against_trainer import Rows, _accuracy
from tests.bench.race import ratio

OURS: dict[str, Any] = {"lr": 1e-4, "num_epochs": 3}
BATCH_SIZE = 16


def ours(source: Path, train: Rows, valid: Rows, test: Rows, seed: int, **settings: Any) -> tuple[float, float, float]:
    """Our training; returns seconds of the process, of the wall, and the accuracy on `test`."""
    task = TextClassification.prepare({"train": train, "valid": valid, "test": test}, str(source), seed=seed)
    learner = task.learner(batch_size=BATCH_SIZE, seed=seed)
    training = Training(learner, seed=seed, device="cpu", **(OURS | settings))
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in training:
        pass
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    training.load_best()
    return cpu, wall, task.evaluate("test")["accuracy"]


def theirs(source: Path, train: Rows, test: Rows, seed: int, folder: Path) -> tuple[float, float, float]:
    """The Trainer with its defaults; returns the same."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    labels = sorted({row["label"] for row in train})
    encoded = tokenizer([row["text"] for row in train], truncation=True)
    rows = Dataset.from_dict({**encoded, "labels": [labels.index(row["label"]) for row in train]})
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, seed=seed, save_strategy="no", logging_strategy="no",
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), rows)
    trainer.remove_callback(PrinterCallback)
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu, wall, _accuracy(model, tokenizer, test, labels)


def full_against_trainer(
    pairs: int = 7,
    *,
    source: Path,
    train: Rows,
    valid: Rows,
    test: Rows,
    folder: Path,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The part "full_against_trainer" of `bench.json`.

    Args:
        pairs: trainings of each, every pair with a seed of its own.
        source: folder of a BERT with its tokenizer.
        train: training sentences, {"text", "label"}.
        valid: a few more, for ours to choose its best epoch by.
        test: what the accuracies are of.
        folder: for the Trainer.
        say: told of every pair.

    Returns:
        "ratio": Trainer's time over ours (the median, and the range under "ratio_range"; by the wall too), and the mean
        accuracies with their standard deviations.
    """
    mine, other = [], []
    for seed in range(pairs):
        mine.append(ours(source, train, valid, test, seed))
        other.append(theirs(source, train, test, seed, folder))
        (a, _, x), (b, _, y) = mine[-1], other[-1]
        say(f"pair {seed}: Trainer {b:.1f} s (accuracy {y:.3f}) / ours {a:.1f} s ({x:.3f}) = {b / a:.2f}")
    figures: dict[str, Any] = {"examples": len(train), "pairs": pairs, **OURS, "batch_size": BATCH_SIZE}
    for name, clock in (("ratio", 0), ("ratio_by_wall", 1)):
        figures[name], figures[f"{name}_range"] = ratio([of[clock] for of in other], [of[clock] for of in mine])
    for who, found in (("ours", mine), ("trainer", other)):
        scores = [of[2] for of in found]
        figures[f"accuracy_{who}"] = statistics.mean(scores)
        figures[f"accuracy_{who}_deviation"] = statistics.stdev(scores) if pairs > 1 else None
    return figures

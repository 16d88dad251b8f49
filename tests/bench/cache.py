"""What the cache of frozen layers saves, against the same training without it, beside the bound of lesson 23.

A pair is one training with the cache and one without, on the same sentences, taking turns after each step, so that
whatever else the machine does hits both; the figure is the median of the pairs' ratios. Whole trainings are timed,
planning, filling and evaluations included, by the process's own clock.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ftnb.step import Strategy
from ftnb.strategies import Head, TopK
from ftnb.tasks.text_classification import TextClassification
from ftnb.train import Training
from ftnb.trunk_cache import Saving, TrunkCache

CASES = ((6, 1, 4, 1024), (12, 1, 10, 256), (6, 0, 10, 1024))  # layers, trained ones (0: head alone), epochs, examples
Rows = list[dict[str, str]]


def bound(num_layers: int, k: int, num_epochs: int) -> float:
    """The most that a cache can save: see lesson 23."""
    if k == 0:
        return float(num_epochs)
    return (num_layers + 2 * k - 1) / (3 * k - 1 + (num_layers - k) / num_epochs)


def model_folder(source: Path, num_layers: int, sizes: dict[str, Any], folder: Path) -> str:
    """The pretrained model if it has so many layers and no other sizes are asked for, else a random one."""
    config = AutoConfig.from_pretrained(source)
    if config.num_hidden_layers == num_layers and not sizes:
        return str(source)
    torch.manual_seed(0)
    for name, value in {"num_hidden_layers": num_layers, **sizes}.items():
        setattr(config, name, value)
    AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


@dataclass
class Timed:
    """A training and the seconds it took so far, of the process and of the wall."""

    training: Training
    cpu: float = 0.0
    wall: float = 0.0

    def step(self) -> None:
        """Take one step, with whatever planning, filling or evaluation comes before it."""
        cpu, wall, before = time.process_time(), time.perf_counter(), self.training.position.step
        while self.training.position.step == before and not self.training.finished:
            self.training.work()
        self.cpu, self.wall = self.cpu + time.process_time() - cpu, self.wall + time.perf_counter() - wall


def pair(make: Callable[[], TextClassification], strategy: Strategy, num_epochs: int) -> tuple[Timed, Timed, Saving]:
    """Two whole trainings, without the cache and with it, taking turns after each step."""
    cache = TrunkCache()
    settings: dict[str, Any] = {"lr": 1e-4, "num_epochs": num_epochs, "device": "cpu", "precision": "fp32"}
    plain, cached = (
        Timed(Training(make().learner(batch_size=16), strategy, cache=kept, **settings)) for kept in (None, cache)
    )
    while not (plain.training.finished and cached.training.finished):
        plain.step()
        cached.step()
    assert cache.saving is not None
    assert cache.saving.reason == "", cache.saving.reason
    return plain, cached, cache.saving


def _weights(model: nn.Module) -> Tensor:
    """All parameters but the biases of keys: in exact arithmetic no gradient reaches those, so rounding moves them."""
    return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if not n.endswith("key.bias")])


def cache_table(
    pairs: int = 7,
    *,
    source: Path,
    rows: Rows,
    valid: Rows,
    folder: Path,
    cases: tuple[tuple[int, int, int, int], ...] = CASES,
    sizes: dict[str, Any] | None = None,
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Rows of the table "cache" of `bench.json`.

    Args:
        pairs: trainings with and without the cache, for each case.
        source: folder of a BERT with its tokenizer; models with another number of layers are made in its image.
        rows: training sentences, {"text", "label"}, as many as the largest case asks for.
        valid: a few more; the evaluations are part of what is timed.
        folder: for models that are made.
        cases: layers, trained layers, epochs and examples.
        sizes: other sizes of the model, for a quick run.
        say: told of every pair.

    Returns:
        For each case "speedup" (of the process's time; "by_wall" beside it) with its "_range" over the pairs, the
        "bound", the speed-up "counted" before the start from multiplications, and "max_abs_diff", how far apart the
        two trainings' weights ended.
    """
    table = []
    for num_layers, k, num_epochs, size in cases:
        path = model_folder(source, num_layers, sizes or {}, folder / f"{num_layers}-layers")
        strategy: Strategy = TopK(k) if k else Head()

        some = [rows[i * len(rows) // size] for i in range(size)]

        def make(path: str = path, some: Rows = some) -> TextClassification:
            return TextClassification.prepare({"train": some, "valid": valid}, path)

        ratios, by_wall, differences = [], [], []
        for number in range(pairs):
            plain, cached, saving = pair(make, strategy, num_epochs)
            ratios.append(plain.cpu / cached.cpu)
            by_wall.append(plain.wall / cached.wall)
            weights = [_weights(of.training.model) for of in (plain, cached)]
            differences.append((weights[0] - weights[1]).abs().max().item())
            times = f"{plain.cpu:.1f} s / {cached.cpu:.1f} s = {ratios[-1]:.2f}"
            say(f"L={num_layers} k={k} E={num_epochs}, pair {number}: {times}")
        table.append(
            {
                "model": "pretrained" if path == str(source) else f"random, {num_layers} layers",
                "L": num_layers,
                "k": k,
                "E": num_epochs,
                "speedup": statistics.median(ratios),
                "_range": [min(ratios), max(ratios)],
                "by_wall": statistics.median(by_wall),
                "bound": bound(num_layers, k, num_epochs),
                "counted": saving.speedup,
                "max_abs_diff": max(differences),
                "examples": size,
                "pairs": pairs,
            }
        )
    return table

# Exported from nbs/12_metrics.py: edit the lesson, then run `make export`.
"""What an accuracy says, what it hides, and how many test examples it takes to say it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

__all__ = [
    "Metrics",
    "classification_metrics",
    "accuracy_interval",
    "examples_needed",
]


@dataclass
class Metrics:
    """Metrics that count over the batches of an evaluation.

    Args:
        collection: the torchmetrics to compute, by name.
        inputs: from (outputs, batch) to the arguments of the metrics' `update`, for example logits and labels.
        main: the name of the metric that decides which weights are best.
        higher_is_better: whether a larger main metric is better.

    Raises:
        ValueError: if the main metric is not in the collection.
    """

    collection: MetricCollection
    inputs: Callable[[Any, dict[str, Any]], tuple[Any, ...]]
    main: str
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        names = list(self.collection.keys())
        if self.main not in names:
            raise ValueError(f"main metric {self.main!r} is not among the metrics {', '.join(map(repr, names))}.")

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.collection.reset()

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Count one batch; nothing is copied off the device."""
        self.collection.update(*self.inputs(outputs, batch))

    def compute(self) -> dict[str, float]:
        """The metrics over everything counted since the last reset, as Python numbers."""
        # rounded to what float32 holds, so that 0.54 is not reported as 0.5400000214576721
        return {name: round(float(value), 6) for name, value in self.collection.compute().items()}

    def to(self, device: torch.device | str) -> "Metrics":
        """Move the counters to a device; returns itself."""
        self.collection.to(device)
        return self


def classification_metrics(num_labels: int) -> Metrics:
    """Accuracy (the main metric) and macro F1, for outputs that carry `logits` of shape (examples, classes).

    Args:
        num_labels: number of classes, at least 2.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    if num_labels < 2:
        raise ValueError(f"num_labels must be at least 2, got {num_labels}.")
    collection = MetricCollection(
        {
            # average="micro" counts examples; the default of this class averages over classes instead
            "accuracy": MulticlassAccuracy(num_labels, average="micro", validate_args=False),
            "macro_f1": MulticlassF1Score(num_labels, average="macro", validate_args=False),
        }
    )
    return Metrics(collection, lambda outputs, batch: (outputs.logits, batch["labels"]), main="accuracy")


def accuracy_interval(correct: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The true accuracies that are compatible with `correct` right answers out of `total`.

    Args:
        correct: number of right answers.
        total: number of test examples, drawn independently of each other.
        confidence: how often such an interval should hold the true accuracy.

    Raises:
        ValueError: if the counts or the confidence are impossible.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"expected 0 <= correct <= total and total >= 1; got correct={correct}, total={total}.")
    z, p = _quantile(confidence), correct / total
    middle = p + z**2 / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, for example 0.95; got {confidence}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def examples_needed(accuracy: float, half_width: float, confidence: float = 0.95) -> int:
    """How many test examples make the interval of an expected accuracy at most ± `half_width`.

    Args:
        accuracy: the accuracy you expect, between 0 and 1.
        half_width: half the width of the interval, for example 0.02 for ± 2 points.
        confidence: as for `accuracy_interval`.

    Raises:
        ValueError: if a number is out of its range.
    """
    if not (0 <= accuracy <= 1 and 0 < half_width < 0.5):
        given = f"accuracy={accuracy}, half_width={half_width}"
        raise ValueError(f"expected 0 <= accuracy <= 1 and 0 < half_width < 0.5; got {given}.")
    z2, h2 = _quantile(confidence) ** 2, half_width**2
    b = z2 * (2 * h2 - accuracy * (1 - accuracy))
    c = z2**2 * (h2 - 0.25)
    return math.ceil((-b + math.sqrt(b**2 - 4 * h2 * c)) / (2 * h2))

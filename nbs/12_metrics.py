# %% [markdown]
# # Metrics
#
# > What an accuracy says, what it hides, and how many test examples it takes to say it.
#
# At the end you can read an accuracy together with its interval, see when it hides a class that is never found, and say how large a test set must be before two models can be told apart. Runs in about 15 s on a CPU.

# %%
#| default_exp metrics

# %%
#| export
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

# %%
import matplotlib.pyplot as plt
import numpy as np

from ftnb.builtin.reviews import labelled_reviews

# %% [markdown]
# ## Counting in batches
#
# An evaluation set does not fit into one batch, and most metrics are not the mean of their values on batches: a metric must *count* as batches come and divide once at the end. The torchmetrics library does that. What it cannot know is where a model's outputs hold the predictions; `Metrics` pairs a collection of metrics with a function that picks them out, and names the one metric that decides which weights are best.

# %%
#| export
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

# %%
#| export
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

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

# %% [markdown]
# Two batches of a two-class problem with a rare class. The mean of the batches' values is not the value of the whole, and which of the two you get depends on how the batches happened to be cut:

# %%
f1 = MulticlassF1Score(2, average="macro")
predicted, labels = torch.tensor([0, 0, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 0, 0, 1])
halves = [float(f1(predicted[s], labels[s])) for s in (slice(0, 3), slice(3, 6))]
f1.reset()
sum(halves) / 2, float(f1(predicted, labels))

# %%
assert abs(sum(halves) / 2 - float(f1(predicted, labels))) > 0.05

# %% [markdown]
# ## Accuracy, and what it hides
#
# Accuracy is the share of examples that are right. If 95 of 100 messages are harmless, a model that never raises an alarm reaches 0.95. The F1 score of a class looks at that class alone: with precision $P$ (of what was predicted as it, how much is) and recall $R$ (of what is it, how much was found)
#
# $$F_1 = \frac{2PR}{P + R},$$
#
# and *macro* F1 is the mean over classes, each counting the same however rare it is. We report both.

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

# %% [markdown]
# The model that never raises an alarm:

# %%
class Outputs:
    logits = torch.tensor([[1.0, 0.0]] * 100)

metrics = classification_metrics(2)
metrics.update(Outputs, {"labels": torch.tensor([0] * 95 + [1] * 5)})
metrics.compute()

# %%
assert metrics.compute()["accuracy"] == 0.95 and metrics.compute()["macro_f1"] < 0.5

# %% [markdown]
# ## How sure is an accuracy?
#
# An accuracy on $n$ test examples is itself a random number: other examples would have given another one. An interval says which true accuracies $p$ are compatible with what was seen. The textbook interval $\hat p \pm z\sqrt{\hat p(1-\hat p)/n}$ has width zero when all examples are right, which claims certainty from a handful of examples. Wilson's interval instead asks for which $p$ the observed $\hat p$ is no surprise, $|\hat p - p| \le z\sqrt{p(1-p)/n}$, and solves for $p$:
#
# $$\frac{\hat p + \frac{z^2}{2n} \pm z\sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}} .$$

# %%
#| export
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

# %% [markdown]
# The same accuracy from 50, 500 and 5,000 examples:

# %%
[tuple(round(end, 3) for end in accuracy_interval(0.8 * n, n)) for n in (50, 500, 5000)]

# %% [markdown]
# Turned around, it says how many test examples you need before you start collecting them. Setting the half width to $h$ gives a quadratic in $n$.

# %%
#| export
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

# %%
{f"± {100 * h:g} points": examples_needed(0.85, h) for h in (0.05, 0.02, 0.01, 0.005)}

# %% [markdown]
# Halving the interval takes about four times the examples. A gain of one point on a test set of a few hundred is within the noise.

# %%
low, high = accuracy_interval(0.85 * 1000, 1000)
assert (high - low) / 2 > 0.02 and 3.5 < examples_needed(0.85, 0.01) / examples_needed(0.85, 0.02) < 4.5

# %% [markdown]
# ## The experiment: do the intervals keep their word?
#
# **Claim.** A 95 % interval from one small test set holds the true accuracy about 95 times in 100; the textbook interval does not, least of all for a good model on few examples. We need a model and very many test sets, so the model is a simple one: word counts from 128 labelled reviews. Its true accuracy is that on 4,000 fresh reviews, and each small test set is drawn from those. The claim would be refuted if the two curves lay on each other, or if Wilson's fell below 0.92 (counts are whole numbers, so no interval keeps its word exactly).

# %%
def fit_word_scores(reviews: list[dict]) -> dict[str, float]:
    """How much more often a word occurs in positive than in negative reviews, as a log ratio."""
    counts = {"positive": {}, "negative": {}}
    for review in reviews:
        for word in set(review["text"].split()):
            counts[review["label"]][word] = counts[review["label"]].get(word, 0) + 1
    words = set(counts["positive"]) | set(counts["negative"])
    return {w: math.log((counts["positive"].get(w, 0) + 1) / (counts["negative"].get(w, 0) + 1)) for w in words}

def is_right(scores: dict[str, float], review: dict) -> bool:
    total = sum(scores.get(word, 0.0) for word in set(review["text"].split()))
    return (total > 0) == (review["label"] == "positive")

# %%
def answers(difficulty: float, num_examples: int = 4000) -> np.ndarray:
    scores = fit_word_scores(labelled_reviews("train", 128, seed=1, difficulty=difficulty))
    tests = labelled_reviews("test_seen", num_examples, seed=2, difficulty=difficulty)
    return np.array([is_right(scores, review) for review in tests])

right = {"hard reviews": answers(0.5), "easier reviews": answers(0.2)}
{name: of.mean().item() for name, of in right.items()}

# %%
def textbook_interval(correct: int, total: int) -> tuple[float, float]:
    p = correct / total
    half = 1.96 * math.sqrt(p * (1 - p) / total)
    return p - half, p + half

def coverage(of: np.ndarray, size: int, interval, num_sets: int = 4000) -> float:
    """The share of random test sets of this size whose interval holds the accuracy on all reviews."""
    counts = of[np.random.default_rng(3).integers(len(of), size=(num_sets, size))].sum(1)
    held = [low <= of.mean() <= high for low, high in (interval(int(c), size) for c in counts)]
    return float(np.mean(held))

# %%
sizes = [10, 20, 40, 80, 160]
kinds = {"Wilson": accuracy_interval, "textbook": textbook_interval}
covered = {(n, k): [coverage(of, s, interval) for s in sizes] for n, of in right.items() for k, interval in kinds.items()}

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=80, sharey=True, layout="constrained")
for ax, (name, of) in zip(axes, right.items(), strict=True):
    for kind in kinds:
        ax.plot(sizes, covered[name, kind], marker="o", label=kind)
    ax.axhline(0.95, color="grey", lw=1, ls=":")
    ax.set(xscale="log", xlabel="test examples", title=f"{name}: true accuracy {of.mean():.2f}")
    ax.set_xticks(sizes, map(str, sizes))
    ax.minorticks_off()
axes[0].set_ylabel("intervals that hold the truth")
axes[0].legend(frameon=False)
plt.show()

# %%
assert min(min(covered[name, "Wilson"]) for name in right) > 0.92
assert all(covered[name, "textbook"][0] < covered[name, "Wilson"][0] for name in right)

# %% [markdown]
# Where hardly anything is wrong, Wilson's interval fails too: a model with one error in a thousand or more usually shows none in 160 examples, and if it shows one, the interval already looks too low. On reviews without any difficulty (8,000 of them, since errors are so rare):

# %%
nearly_solved = answers(0.0, num_examples=8000)
nearly_solved.mean().item(), coverage(nearly_solved, 160, accuracy_interval)

# %%
assert nearly_solved.mean() > 0.998 and coverage(nearly_solved, 160, accuracy_interval) < 0.93

# %% [markdown]
# The interval speaks of *new examples like these*. It says nothing about other seeds of the training, nor about texts from elsewhere: those are separate questions with their own spread.
#
# ## The story: one name, two accuracies
#
# In November 2022 a medical imaging library found that its reported accuracy had changed by upgrading a dependency (microsoft/hi-ml#671): the general `Accuracy` of torchmetrics averages over examples, the `MulticlassAccuracy` that replaced it averages over *classes* unless told otherwise. The difference is still there, and is discussed in Lightning-AI/torchmetrics#2320. On the model that never raises an alarm:

# %%
arguments = Outputs.logits, torch.tensor([0] * 95 + [1] * 5)
float(MulticlassAccuracy(2)(*arguments)), float(MulticlassAccuracy(2, average="micro")(*arguments))

# %%
assert float(MulticlassAccuracy(2)(*arguments)) == 0.5

# %% [markdown]
# Both numbers are useful and both are called accuracy. Say which one you report.
#
# ## Exercises
#
# **1 (easy).** Write `overlap`: whether the intervals of two models on equally large test sets overlap, given their numbers of right answers.

# %% tags=["exercise"]
def overlap(correct_a: int, correct_b: int, total: int) -> bool:
    ...  # your code here

# %% tags=["solution"]
def overlap(correct_a: int, correct_b: int, total: int) -> bool:
    low, high = sorted((correct_a, correct_b))
    return accuracy_interval(low, total)[1] >= accuracy_interval(high, total)[0]

# %%
assert overlap(820, 840, 1000) and not overlap(820, 900, 1000)

# %% [markdown]
# **2 (medium).** Two models are tested on the *same* examples, so their luck is shared and separate intervals are too careful. Only the examples on which they differ tell them apart. If they are equally good, each of those goes either way like a coin. Write `sign_test`: the probability that a fair coin splits at least as unevenly as `only_a` to `only_b`.

# %% tags=["exercise"]
def sign_test(only_a: int, only_b: int) -> float:
    ...  # your code here

# %% tags=["solution"]
def sign_test(only_a: int, only_b: int) -> float:
    n, few = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(few + 1)) / 2**n
    return min(1.0, 2 * tail)

# %%
assert sign_test(5, 5) == 1.0 and abs(sign_test(2, 12) - 0.0129) < 1e-3

# %% [markdown]
# ## Summary
# - A metric counts over all batches and divides once at the end; a mean of batch values is something else.
# - Accuracy hides rare classes; macro F1 gives each class the same say. Report both, and say how they average.
# - Report an accuracy with its interval. Twice as exact takes four times the examples.
#
# **What next:** the next lesson is about what a training says while it runs. **Sources:** Wilson (1927); Brown, Cai and DasGupta (2001), "Interval estimation for a binomial proportion"; Card et al. (2020), "With little power comes great responsibility", on test sets too small for the claims made with them; the torchmetrics documentation.

"""Metrics that count over batches, and the interval of an accuracy."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torchmetrics import MeanSquaredError, MetricCollection

from ftnb.metrics import Metrics, accuracy_interval, classification_metrics, examples_needed


def test_batches_of_any_size_give_what_scikit_learn_gives_on_the_whole():
    g = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), 501, replacement=True, generator=g)
    logits = torch.randn(501, 3, generator=g) + 1.5 * torch.nn.functional.one_hot(labels, 3)
    metrics = classification_metrics(3)
    for start, end in ((0, 16), (16, 17), (17, 400), (400, 501)):
        metrics.update(SimpleNamespace(logits=logits[start:end]), {"labels": labels[start:end]})
    predicted = logits.argmax(-1)
    expected = {"accuracy": accuracy_score(labels, predicted), "macro_f1": f1_score(labels, predicted, average="macro")}
    assert metrics.compute() == pytest.approx(expected, abs=1e-6)
    assert all(type(value) is float for value in metrics.compute().values())


def test_reset_forgets_and_bf16_logits_count():
    metrics = classification_metrics(2)
    metrics.update(SimpleNamespace(logits=torch.eye(2)), {"labels": torch.tensor([1, 0])})
    metrics.reset()
    metrics.update(SimpleNamespace(logits=torch.eye(2).bfloat16()), {"labels": torch.tensor([0, 1])})
    assert metrics.compute() == {"accuracy": 1.0, "macro_f1": 1.0}
    assert metrics.to("cpu") is metrics
    assert metrics.main == "accuracy"
    assert metrics.higher_is_better


def test_accuracy_is_per_example_and_not_per_class():
    metrics = classification_metrics(2)
    logits = torch.tensor([[1.0, 0.0]] * 10)
    metrics.update(SimpleNamespace(logits=logits), {"labels": torch.tensor([0] * 9 + [1])})
    assert metrics.compute()["accuracy"] == 0.9
    assert metrics.compute()["macro_f1"] == pytest.approx((18 / 19 + 0) / 2, abs=1e-6)


def test_a_main_metric_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"'accuracy'.*'mse'"):
        Metrics(MetricCollection({"mse": MeanSquaredError()}), lambda o, b: (o, b["y"]), main="accuracy")
    with pytest.raises(ValueError, match="at least 2"):
        classification_metrics(1)


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (81, 100), (853, 1066)])
def test_the_interval_is_the_published_one(correct, total):
    from scipy.stats import binomtest

    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert accuracy_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_impossible_counts_are_refused():
    for correct, total in ((5, 0), (-1, 10), (11, 10)):
        with pytest.raises(ValueError, match="correct"):
            accuracy_interval(correct, total)
    with pytest.raises(ValueError, match="between 0 and 1"):
        accuracy_interval(5, 10, confidence=95)


@pytest.mark.parametrize("accuracy", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("half_width", [0.005, 0.02, 0.05])
def test_so_many_examples_are_enough_and_hardly_too_many(accuracy, half_width):
    def width(total: int) -> float:
        low, high = accuracy_interval(accuracy * total, total)
        return (high - low) / 2

    needed = examples_needed(accuracy, half_width)
    assert width(needed) <= half_width * 1.001
    assert width(int(needed * 0.95)) > half_width

# %% [markdown]
# # Text classification
#
# > One object from your table to a saved model: data, model, loss, metrics, and what to look at in between.
#
# At the end you can bring your own texts and labels into a training, look at what the model really sees, read its errors, and save a folder that `transformers.pipeline` loads. Runs in about 45 s on a CPU.

# %%
#| default_exp tasks.text_classification

# %%
#| export
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelExactMatch, MultilabelF1Score
from transformers import AutoConfig, DataCollatorWithPadding, PreTrainedModel

from ftnb.checks import check_text_labels, label_order, labels_of
from ftnb.data import Batches, Splits
from ftnb.devices import to_device
from ftnb.metrics import Metrics, classification_metrics
from ftnb.pretrained import (
    ModelError,
    find_model,
    load_pretrained,
    refuse_untrained,
    trained_labels,
)
from ftnb.saving import save_pretrained
from ftnb.schedule import LossFunction
from ftnb.step import Batch, Learner, batch_size
from ftnb.tables import DataError
from ftnb.tasks.display import TextTable
from ftnb.texts.sources import as_columns, load_text_splits
from ftnb.texts.tables import class_table, confusion_table

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from transformers import pipeline

from ftnb.builtin.reviews import labelled_reviews
from ftnb.builtin.words import SUBJECTS
from ftnb.pretrained import quiet_transformers
from ftnb.train import Training

# %% [markdown]
# ## From texts to token ids
#
# A tokenizer cuts a text into tokens of its fixed vocabulary. Two things happen there without any error message: a text longer than the model's limit is cut, and words that the vocabulary does not know fall into small pieces or become one token, `[UNK]`. All of that is counted and reported before training.

# %%
#| export
MULTI_LABEL: Literal["multi_label_classification"] = "multi_label_classification"  # transformers' word for it


def length_limit(model: PreTrainedModel, tokenizer: Any, max_length: int | None = None) -> int:
    """How many tokens a text may have: `max_length`, or what model and tokenizer allow.

    Raises:
        ModelError: if `max_length` is below 4 or above what the model has positions for.
    """
    limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    limit = min((n for n in limits if isinstance(n, int) and 0 < n < 10**6), default=512)
    if max_length is not None and not 4 <= max_length <= limit:
        raise ModelError(f"max_length must lie between 4 and {limit} tokens, the model's limit; got {max_length}.")
    return max_length or limit


def encode(
    texts: Sequence[str], tokenizer: Any, max_length: int, pairs: Sequence[str] | None = None
) -> tuple[dict[str, list[list[int]]], int, float]:
    """Cut texts into tokens.

    Args:
        texts: the texts.
        tokenizer: a transformers tokenizer.
        max_length: a longer text is cut to so many tokens; of a pair, the longer of the two.
        pairs: a second text for each, which the model reads together with the first.

    Returns:
        The model's inputs (lists of whole numbers per text, not padded), the number of texts that were cut, and the
        share of tokens that the vocabulary does not know.
    """
    both = (list(texts),) if pairs is None else (list(texts), list(pairs))
    inputs = tokenizer(*both, padding=False, truncation=False, verbose=False)
    lengths = [len(ids) for ids in inputs["input_ids"]]
    num_unknown = sum(ids.count(tokenizer.unk_token_id) for ids in inputs["input_ids"])
    num_cut = sum(length > max_length for length in lengths)
    if num_cut:
        inputs = tokenizer(*both, padding=False, truncation="longest_first", max_length=max_length)
    return dict(inputs), num_cut, num_unknown / sum(lengths)


def _pieces_per_word(texts: Sequence[str], inputs: Mapping[str, list[list[int]]]) -> float:
    # Tokens per word; 0 where a language does not put spaces between words.
    words = sum(len(text.split()) for text in texts)
    if words == 0 or sum(map(len, texts)) > 20 * words:
        return 0.0
    return sum(len(ids) - 2 for ids in inputs["input_ids"]) / words

# %% [markdown]
# The built-in model's vocabulary is small. A word that is not in it is spelled letter by letter (cut off here by the limit of 8 tokens), a character that is not in it becomes `[UNK]`:

# %%
tokenizer = load_pretrained("builtin:bert-reviews", "text-classification", ["negative", "positive"]).processor
inputs, num_cut, unknown = encode(["a lovely film .", "the plot was dull ☺ and flabbergasting ."], tokenizer, max_length=8)
[tokenizer.convert_ids_to_tokens(ids) for ids in inputs["input_ids"]], num_cut, round(unknown, 3)

# %%
assert num_cut == 1 and all(len(ids) <= 8 for ids in inputs["input_ids"]) and 0 < unknown < 0.2

# %% [markdown]
# ## Loss and predictions
#
# For an example with logits $z$ and class $y$ the loss is the cross-entropy
#
# $$\ell(z, y) = -\log \frac{e^{z_y}}{\sum_c e^{z_c}} ,$$
#
# averaged over the batch. It is computed in float32 whatever precision the model ran in: sums of exponentials lose digits in half precision.

# %%
#| export
def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """The mean cross-entropy of a batch, and the model's outputs.

    Args:
        model: returns an object with `logits` of shape (batch, classes).
        batch: the model's inputs, and "labels" of shape (batch,).
    """
    outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
    return nn.functional.cross_entropy(outputs.logits.float(), batch["labels"]), outputs

# %% [markdown]
# ## Several labels at once
#
# A film can be funny *and* too long, or neither. The softmax above cannot say so: its probabilities sum to one, so labels compete, and two cannot both be above a half. With several labels each gets a yes-or-no question of its own: the logit $z_l$ of label $l$ goes through a sigmoid $\sigma(z) = 1/(1+e^{-z})$, and with $y_l \in \{0, 1\}$ the loss is the mean cross-entropy of the $L$ answers,
#
# $$\ell(z, y) = -\frac1L \sum_{l=1}^{L} \big[\, y_l \log \sigma(z_l) + (1 - y_l) \log(1 - \sigma(z_l)) \,\big] .$$

# %%
#| export
def binary_cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """The cross-entropy of each label's yes or no, averaged over labels and examples, and the model's outputs.

    Args:
        model: returns an object with `logits` of shape (batch, labels).
        batch: the model's inputs, and "labels" of shape (batch, labels), each 0 or 1.
    """
    outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
    return nn.functional.binary_cross_entropy_with_logits(outputs.logits.float(), batch["labels"].float()), outputs


def text_metrics(num_labels: int, multi_label: bool = False) -> Metrics:
    """What a text classifier is measured by.

    Args:
        num_labels: number of classes, at least 2.
        multi_label: a text may have several. Then micro F1 (the main metric), macro F1, and how often the whole set
            is right, all with labels above a half counted as given. Otherwise accuracy (the main metric), macro F1
            and, from six classes on, the accuracy of the five best guesses.
    """
    if not multi_label:
        metrics = classification_metrics(num_labels)
        if num_labels > 5:
            top5 = MulticlassAccuracy(num_labels, top_k=5, average="micro", validate_args=False)
            metrics.collection.add_metrics({"top5": top5})
        return metrics
    kinds: dict[str, Metric | MetricCollection] = {
        "micro_f1": MultilabelF1Score(num_labels, average="micro", validate_args=False),
        "macro_f1": MultilabelF1Score(num_labels, average="macro", validate_args=False),
        "exact_match": MultilabelExactMatch(num_labels, validate_args=False),
    }
    return Metrics(
        MetricCollection(kinds),
        # Probabilities: of logits that all lie between 0 and 1, torchmetrics would think they were some.
        inputs=lambda outputs, batch: (outputs.logits.float().sigmoid(), batch["labels"].int()),
        main="micro_f1",
    )

# %% [markdown]
# Two labels that both fit and one that does not. The sigmoids say yes twice; the softmax splits its one:

# %%
z = torch.tensor([3.0, 3.0, -3.0])
z.sigmoid(), z.softmax(0)

# %%
assert (z.sigmoid() > 0.5).tolist() == [True, True, False] and not (z.softmax(0) > 0.5).any()

# %% [markdown]
# A model that predicts must not use dropout, and looking at predictions in the middle of a training must not change its mode.

# %%
#| export
@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def measure(
    model: nn.Module,
    batches: Batches,
    loss: LossFunction,
    metrics: Metrics,
    weight: Callable[[Batch], int] = batch_size,
) -> dict[str, float]:
    """Loss and metrics over batches, in eval mode and float32.

    Args:
        model: the model.
        batches: what to measure it on.
        loss: as in `ftnb.step.Learner`.
        metrics: what to count.
        weight: of how many terms the loss of a batch is the mean, by default examples.
    """
    device, total, terms = next(model.parameters()).device, 0.0, 0
    metrics.to(device)
    with evaluating(model):
        for batch in batches.epoch():
            on_device = to_device(batch, device)
            value, outputs = loss(model, on_device)
            total, terms = total + value.item() * weight(batch), terms + weight(batch)
            metrics.update(outputs, on_device)
    return {"loss": total / max(1, terms), **metrics.compute()}


def predict_probabilities(
    model: nn.Module, batches: Batches, device: torch.device, multi_label: bool = False
) -> Tensor:
    """Class probabilities, shape (examples, classes), in the order of the examples, on the CPU.

    Args:
        model: as for `cross_entropy`.
        batches: without labels, in a fixed order.
        device: where the model is.
        multi_label: each class has a probability of its own, a sigmoid; else they sum to 1, a softmax.
    """
    with evaluating(model):
        logits = [model(**to_device(batch, device)).logits.float().cpu() for batch in batches.epoch()]
    order = torch.tensor([i for batch in batches.order() for i in batch])
    ordered = torch.cat(logits)[order.argsort()]
    return ordered.sigmoid() if multi_label else ordered.softmax(dim=-1)


@dataclass(frozen=True)
class Prediction:
    """The most likely class of a text, its probability, and the probabilities of all classes."""

    label: str
    score: float
    scores: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.label}\t{self.score:.4f}"


@dataclass(frozen=True)
class LabelSet:
    """The labels of a text, those with a probability above a half, the likeliest first; and all probabilities."""

    labels: tuple[str, ...]
    scores: Mapping[str, float]

    @staticmethod
    def of(scores: Mapping[str, float], threshold: float = 0.5) -> "LabelSet":
        """The labels whose probability is above `threshold`."""
        ranked = sorted(scores, key=lambda label: -scores[label])
        return LabelSet(tuple(label for label in ranked if scores[label] > threshold), scores)

    def __str__(self) -> str:
        if not self.labels:
            return f"no label\t{max(self.scores.values()):.4f} at most"
        return f"{', '.join(self.labels)}\t{', '.join(f'{self.scores[label]:.4f}' for label in self.labels)}"

# %% [markdown]
# ## The task
#
# A task holds everything a training needs to know about text classification, and nothing about training. `prepare` does all the loading and all the checks, so that a fault in the data shows before the first step and not after an hour.

# %%
#| export
@dataclass
class TextClassification:
    """Texts, or pairs of texts, each with one of two or more labels or with several, and a model with a head for them.

    What kind it is stands in the model's configuration, and so in a saved folder.

    Args:
        model: a transformers model for sequence classification.
        tokenizer: the tokenizer that belongs to it.
        splits: the rows.
        labels: the classes, in the order of the model's outputs.
        max_length: longer texts are cut to so many tokens.
        new_parameters: names of parameters that start from random numbers.
        warnings: what checks and loading found.
        encoded: per split, the model's inputs and label ids, not padded.
    """

    model: PreTrainedModel
    tokenizer: Any
    splits: Splits
    labels: list[str]
    max_length: int
    new_parameters: frozenset[str] = frozenset()
    warnings: list[str] = field(default_factory=list)
    encoded: dict[str, Dataset] = field(default_factory=dict)

    name: ClassVar[str] = "text-classification"
    options: ClassVar[tuple[str, ...]] = ("max_length", "label_separator")

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        max_length: int | None = None,
        label_separator: str | None = None,
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "TextClassification":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: whatever `ftnb.data.load_splits` takes: a file, a folder, a table, a Hub id, "builtin:reviews". A
                label that is a list means several labels, a column "text_pair" means pairs of texts.
            model: whatever `ftnb.pretrained.load_pretrained` takes.
            columns: role ("text", "label", "text_pair") → column name, or position in a file without a header line.
            max_length: cut longer texts to so many tokens; None is the model's limit.
            label_separator: what stands between several labels in one cell, for example ";"; None: one label.
            seed: of the new parameters and of the cut into splits.
            scratch: random weights in place of the pretrained ones.
            valid_fraction: share of the training rows to validate on where there is no validation split.
            test_fraction: the same for the test; 0 means no test.

        Raises:
            DataError: if the data cannot be read or cannot be right.
            ModelError: if the model cannot be loaded or does not fit.
        """
        splits = load_text_splits(
            data, columns=columns, label_separator=label_separator,
            valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed,
        )
        problems = [problem.message for problem in check_text_labels(splits)]
        pretrained = load_pretrained(model, cls.name, label_order(splits), scratch=scratch, seed=seed)
        config = pretrained.model.config
        if not isinstance(splits.train["label"][0], str):
            config.problem_type = MULTI_LABEL  # a pipeline takes sigmoids then
        config.text_pairs = "text_pair" in splits.train.column_names
        limit = length_limit(pretrained.model, pretrained.processor, max_length)
        pretrained.processor.model_max_length = limit  # saved with the tokenizer, so a pipeline cuts where we do
        names = {int(i): name for i, name in (config.id2label or {}).items()}
        task = cls(
            model=pretrained.model,
            tokenizer=pretrained.processor,
            splits=splits,
            labels=[names[i] for i in range(len(names))],
            max_length=limit,
            new_parameters=pretrained.new_parameters,
            warnings=[*splits.notices, *problems, *pretrained.notices],
        )
        task._encode()
        return task

    @classmethod
    def from_saved(cls, folder: str | Path) -> "TextClassification":
        """A task without data around a trained model, for predictions.

        Raises:
            ModelError: if there is no such model.
        """
        labels = trained_labels(folder)
        found = load_pretrained(str(folder), cls.name, labels)
        refuse_untrained(folder, found.new_parameters)
        if AutoConfig.from_pretrained(find_model(str(folder))[0]).problem_type == MULTI_LABEL:
            found.model.config.problem_type = MULTI_LABEL
        nothing = Dataset.from_dict({})
        limit = length_limit(found.model, found.processor)
        return cls(found.model, found.processor, Splits(nothing, nothing), labels, limit)

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return bool(self.model.config.problem_type == MULTI_LABEL)

    @property
    def pairs(self) -> bool:
        """Whether the model was trained on pairs of texts."""
        return bool(getattr(self.model.config, "text_pairs", False))

    def _encode(self) -> None:
        for name, split in self.splits.items():
            pairs = split["text_pair"][:] if self.pairs else None
            inputs, num_cut, unknown = encode(split["text"][:], self.tokenizer, self.max_length, pairs)
            if num_cut:
                things = "pairs" if self.pairs else "texts"
                cut = f"{num_cut} of {len(split)} {things} were cut to {self.max_length} tokens."
                self.warnings.append(f"{name}: {cut}")
            if unknown > 0.05:
                what = f"{unknown:.0%} of the tokens are not in the model's vocabulary; does it fit this language?"
                self.warnings.append(f"{name}: {what}")
            if (pieces := _pieces_per_word([*split["text"][:], *(pairs or [])], inputs)) > 2.5:
                what = f"words fall into {pieces:.1f} pieces on average; the model's vocabulary hardly knows them."
                self.warnings.append(f"{name}: {what}")
            self.encoded[name] = Dataset.from_dict({**inputs, "label": [self._target(of) for of in split["label"][:]]})

    def _target(self, label: str | list[str]) -> int | list[float]:
        # The number of a class, or a 0 or 1 for each label.
        return self.labels.index(label) if isinstance(label, str) else [float(name in label) for name in self.labels]

    def learner(
        self, batch_size: int = 16, seed: int = 0, num_workers: int = 0, batch_tokens: int | None = None
    ) -> Learner:
        """Model, data, loss and metrics for a training.

        Args:
            batch_size: texts per batch; texts of similar length share a batch.
            seed: of the order of the texts.
            num_workers: processes that make batches; 0 means this one.
            batch_tokens: in place of `batch_size` as many texts as fit into so many tokens, padding included.
        """
        kinds: dict[str, Any] = {"max_tokens": batch_tokens, "num_workers": num_workers}
        return Learner(
            model=self.model,
            train=self.batches("train", batch_size, shuffle=True, seed=seed, **kinds),
            valid=self.batches("valid", 2 * batch_size, **kinds),
            loss=self.loss,
            metrics=self.metrics(),
            new_parameters=self.new_parameters,
        )

    @property
    def loss(self) -> LossFunction:
        """The loss: a cross-entropy over the classes or, with several labels, over each label's yes or no."""
        return binary_cross_entropy if self.multi_label else cross_entropy

    def batches(self, split: str | Dataset, batch_size: int, **kinds: Any) -> Batches:
        """A split (or examples already encoded) in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        encoded = self._split(split) if isinstance(split, str) else split
        lengths = [len(ids) for ids in encoded["input_ids"][:]]
        return Batches(encoded, self.collate, batch_size, lengths=lengths, **kinds)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Pad examples to the longest of them; on a GPU to a multiple of 8, which its matrix units work in."""
        multiple = 8 if torch.cuda.is_available() else None
        return dict(DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=multiple)(examples))

    def metrics(self) -> Metrics:
        """Accuracy and macro F1 over this task's classes; with several labels F1 and how often all are right."""
        return text_metrics(len(self.labels), self.multi_label)

    def predict(self, texts: Sequence[Any], batch_size: int = 32) -> list[Any]:
        """Classify texts.

        Args:
            texts: a list of texts (for a single one, a list of one). A model of pairs takes tuples (text, text_pair),
                or texts with a tab between the two.
            batch_size: texts per batch.

        Returns:
            For each text a `Prediction` or, where a text may have several labels, a `LabelSet`.

        Raises:
            DataError: if `texts` is a single string or holds something that is no text, or no pair.
        """
        first, second = as_columns(texts, self.pairs)
        if len(first) == 0:
            return []
        inputs, _, _ = encode(first, self.tokenizer, self.max_length, second)
        batches = self.batches(Dataset.from_dict(inputs), batch_size)
        rows = predict_probabilities(self.model, batches, self.model.device, self.multi_label).tolist()
        scores = [dict(zip(self.labels, row, strict=True)) for row in rows]
        if self.multi_label:
            return [LabelSet.of(of_text) for of_text in scores]
        best = [max(of_text, key=of_text.__getitem__) for of_text in scores]
        return [Prediction(label, of_text[label], of_text) for label, of_text in zip(best, scores, strict=True)]

    def evaluate(self, split: str = "test", batch_size: int = 32) -> dict[str, float]:
        """Loss and metrics on a split, computed in float32.

        Raises:
            DataError: if there is no such split.
        """
        return measure(self.model, self.batches(split, batch_size), self.loss, self.metrics())

    def show_batch(self, n: int = 6) -> TextTable:
        """The first texts of the first training batch as the model sees them, with what padding each one costs."""
        batch = next(iter(self.learner().train.epoch()))
        rows = []
        columns = (batch[name][:n] for name in ("input_ids", "attention_mask", "labels"))
        for ids, mask, label in zip(*columns, strict=True):
            text = self.tokenizer.decode(ids[mask.bool()], clean_up_tokenization_spaces=False)
            names = [self.labels[i] for i in (label.nonzero()[:, 0] if self.multi_label else [label])]
            rows.append((text, ", ".join(names), f"{int(mask.sum())} + {int((1 - mask).sum())}"))
        return TextTable(("text as the model sees it", "label", "tokens + padding"), rows)

    def show_errors(self, n: int = 6, split: str = "valid") -> TextTable:
        """The texts of a split that the model gets wrong, the most confident ones first.

        With several labels, a text is wrong if one of them is, and the last column shows the worst of them.

        Raises:
            DataError: if there is no such split.
        """
        rows, truth, predictions = self._answers(split)
        wrong: list[tuple[float, int, tuple[str, str, str]]] = []
        for i, (label, prediction) in enumerate(zip(truth, predictions, strict=True)):
            if self.multi_label:
                off = {name: abs(score - (name in label)) for name, score in prediction.scores.items()}
                worst = max(off, key=off.__getitem__)
                names = (", ".join(label), ", ".join(sorted(prediction.labels)))
                shown = (*names, f"{worst} {prediction.scores[worst]:.2f}")
                wrong += [(off[worst], i, shown)] if set(label) != set(prediction.labels) else []
            elif label != prediction.label:
                wrong.append((prediction.score, i, (label, prediction.label, f"{prediction.score:.2f}")))
        wrong.sort(key=lambda error: -error[0])
        texts = [role for role in ("text", "text_pair") if role in rows.column_names]
        cells = [(str(rows["row"][i]), *(rows[role][i] for role in texts), *of) for _, i, of in wrong[:n]]
        caption = f"{len(wrong)} of {len(rows)} {split} {'pairs' if self.pairs else 'texts'} are wrong; "
        caption += "the most confident first."
        return TextTable(("row", *texts, "label", "predicted", "probability"), cells, caption)

    def confused(self, n: int = 10, split: str = "valid") -> TextTable:
        """The pairs of classes that are mistaken for each other most often.

        Raises:
            DataError: if there is no such split, or a text may have several labels.
        """
        if self.multi_label:
            raise DataError("with several labels no class stands in the place of another; see per_class().")
        _, truth, predictions = self._answers(split)
        return confusion_table(truth, [prediction.label for prediction in predictions], n, split)

    def per_class(self, split: str = "valid") -> TextTable:
        """For each class how many texts there are, how many of them were found, and how often the name was right.

        Raises:
            DataError: if there is no such split.
        """
        _, truth, predictions = self._answers(split)
        given = [prediction.labels if self.multi_label else [prediction.label] for prediction in predictions]
        return class_table([labels_of(label) for label in truth], given, self.labels, split)

    def _answers(self, split: str) -> tuple[Dataset, list[Any], list[Any]]:
        # A split's rows, their true labels and the predictions.
        self._split(split)
        rows = dict(self.splits.items())[split]
        asked = list(zip(rows["text"][:], rows["text_pair"][:], strict=True)) if self.pairs else rows["text"][:]
        return rows, rows["label"][:], self.predict(asked)

    def save(self, folder: str | Path) -> Path:
        """Save model and tokenizer as a folder that `from_pretrained` and `transformers.pipeline` load.

        Returns:
            The folder.
        """
        return save_pretrained(folder, self.model, self.tokenizer)

    def _split(self, name: str) -> Dataset:
        if name not in self.encoded:
            raise DataError(f"there is no split {name!r}; there are {', '.join(map(repr, self.encoded))}.")
        return self.encoded[name]

# %% [markdown]
# ## From start to end
#
# Prepare, and look at what the model will see. A text is lower-cased and cut into tokens here; the padding is what the longest text of the batch costs the others.

# %%
task = TextClassification.prepare("builtin:reviews", "builtin:bert-reviews")
task.show_batch(3)

# %%
task.labels, sorted(task.new_parameters), task.warnings, task.evaluate("valid")

# %% [markdown]
# The head is random, so the accuracy is hardly better than a coin's. Now train. The loop is that of the previous lessons; the task only hands it a learner.

# %%
training = Training(task.learner(batch_size=16), lr=5e-4, num_epochs=3, device="cpu")
for event in training:
    if event.kind == "evaluated":
        print(f"step {event.step}: loss {event.loss:.3f}, accuracy {event.metrics['accuracy']:.3f}")
training.load_best()
after = task.evaluate("valid")
after

# %%
assert after["accuracy"] > 0.7

# %% [markdown]
# Numbers do not say *what* is wrong. Read the errors, the most confident first: there you find wrong labels, missing knowledge (negations, irony) and shortcuts. Row numbers are those of your file.

# %%
task.show_errors(4)

# %%
task.predict(["we loved this hotel . the room was lovely .", "the plot was dull ."])

# %% [markdown]
# Saved, it is an ordinary folder of the Hub's layout. Any program that knows transformers gives the same answers:

# %%
folder = task.save(tempfile.mkdtemp())
texts = task.splits.test["text"][:20]
with quiet_transformers():
    classify = pipeline("text-classification", str(folder), device="cpu", truncation=True)
theirs, ours = classify(texts), task.predict(texts)
theirs[0], ours[0]

# %%
assert all(a["label"] == b.label and abs(a["score"] - b.score) < 1e-4 for a, b in zip(theirs, ours, strict=True))

# %% [markdown]
# ## Several labels: what accuracy hides
#
# Rows whose label is a list make the task a multi-label one; so does a column of cells such as `praise;complaint`, with `label_separator=";"`. A table with a column of 0 and 1 for each label becomes one by `table["label"] = [[n for n in names if int(row[n])] for row in table.to_dict("records")]`. Here a text is the beginning of one review or of two. It may praise, complain or both, and a few speak of a *journey*.

# %%
def fit(task: TextClassification, num_epochs: int, seed: int) -> TextClassification:
    settings = {"lr": 5e-4, "num_epochs": num_epochs, "eval_every": 10_000, "seed": seed, "device": "cpu"}  # evaluates at the end only
    for _ in Training(task.learner(seed=seed), **settings):
        pass
    return task

# %%
journeys = set(SUBJECTS["flight"].names)

def beginning(review: dict) -> str:
    return " . ".join(review["text"].split(" . ")[:2])

def tagged(split: str, num_texts: int, seed: int) -> list[dict]:
    reviews = labelled_reviews(split, 2 * num_texts, seed=seed, difficulty=0)
    rows = []
    for i, pair in enumerate(zip(reviews[:num_texts], reviews[num_texts:], strict=True)):
        used = pair[: 1 + i % 2]
        text = " . ".join(beginning(review) for review in used)
        labels = {"praise" if review["label"] == "positive" else "complaint" for review in used}
        rows.append({"text": text, "label": [*sorted(labels), *(["journey"] if journeys & set(text.split()) else [])]})
    return rows

tagged("train", 3, seed=31)[1:]

# %% [markdown]
# **Claim.** After a short training the accuracy *per label* looks fine for all three, also for the rare one, which the model never finds; micro F1, which counts all labels together, looks fine as well; macro F1 shows it. A lower threshold, chosen on the validation texts, does not mend it: what was not learnt has no threshold. It would be refuted by an F1 above 0.4 for the rare label, with either threshold, on any of three seeds.

# %%
def truth_and_scores(task: TextClassification, split: str) -> tuple[np.ndarray, np.ndarray]:
    rows = dict(task.splits.items())[split]
    true = [[label in of for label in task.labels] for of in rows["label"]]
    scores = [[p.scores[label] for label in task.labels] for p in task.predict(rows["text"][:])]
    return np.array(true), np.array(scores)  # (texts, labels)

def learn_tags(seed: int) -> tuple[TextClassification, dict[str, tuple[np.ndarray, np.ndarray]]]:
    sizes = {"train": 200, "valid": 80, "test": 200}
    data = {split: tagged(split.replace("test", "test_seen"), n, seed) for split, n in sizes.items()}
    task = fit(TextClassification.prepare(data, "builtin:bert-reviews", max_length=40, seed=seed), 3, seed)
    return task, {split: truth_and_scores(task, split) for split in ("valid", "test")}

several = {seed: learn_tags(seed) for seed in (31, 32, 33)}
tags_task = several[31][0]
tags_task.per_class("test")

# %%
def f1(true: np.ndarray, given: np.ndarray) -> float:
    return float(2 * (true & given).sum() / max(1, true.sum() + given.sum()))

def what_hides(answers: dict[str, tuple[np.ndarray, np.ndarray]], label: int) -> dict[str, float]:
    true, scores = answers["valid"]
    threshold = max(scores[:, label], key=lambda t: f1(true[:, label], scores[:, label] >= t))
    true, scores = answers["test"]
    given = scores > 0.5
    return {
        "accuracy": float((true == given)[:, label].mean()), "F1": f1(true[:, label], given[:, label]),
        "F1, own threshold": f1(true[:, label], scores[:, label] >= threshold), "micro F1": f1(true, given),
        "macro F1": float(np.mean([f1(true[:, i], given[:, i]) for i in range(true.shape[1])])),
    }

hidden = {seed: what_hides(answers, tags_task.labels.index("journey")) for seed, (_, answers) in several.items()}
{seed: {name: round(value, 2) for name, value in of.items()} for seed, of in hidden.items()}

# %%
fig, ax = plt.subplots(figsize=(5, 2.2), dpi=80, layout="constrained")
tests = [answers["test"] for _, answers in several.values()]
for i in range(3):
    accuracies = [(true == (scores > 0.5))[:, i].mean() for true, scores in tests]
    ax.plot(accuracies, [i + 0.12] * 3, "o", color="tab:orange", mfc="none", label="" if i else "accuracy")
    ax.plot([f1(true[:, i], scores[:, i] > 0.5) for true, scores in tests], [i - 0.12] * 3, "o", color="tab:blue", label="" if i else "F1")
ax.set(yticks=range(3), yticklabels=tags_task.labels, ylim=(-0.5, 2.5), xlim=(-0.05, 1.05), xlabel="on 200 test texts", ylabel="label", title="A rare label: what accuracy hides (3 seeds)")
ax.legend(frameon=False, loc="center")
plt.show()

# %%
for of in hidden.values():
    assert of["accuracy"] > 0.93 and of["micro F1"] > 0.8 and of["macro F1"] < 0.75
    assert max(of["F1"], of["F1, own threshold"]) < 0.4
measured = tags_task.evaluate("test")
assert abs(measured["micro_f1"] - hidden[31]["micro F1"]) < 1e-5 and abs(measured["macro_f1"] - hidden[31]["macro F1"]) < 1e-5

# %% [markdown]
# So look at `per_class`, and give a rare label more examples before you turn at its threshold. The errors show the label that is most wrong:

# %%
tags_task.show_errors(2, split="test")

# %% [markdown]
# ## Two texts at once
#
# Does the second sentence follow from the first? Is this the same question? Then the model reads both: `[CLS] first [SEP] second [SEP]`, with a second kind of embedding (`token_type_ids`, 0 and 1) that tells them apart where the model has one. A column `text_pair` is all it takes. If a pair is too long, its longer text is cut.
#
# **Claim.** Whether two reviews are of the *same* opinion cannot be told from either alone. The built-in BERT, which read single reviews only, learns it from the beginnings of 400 pairs (of reviews whose opinions agree): above 0.8 on 200 new pairs, on each of three seeds. And it does use both texts: with the second texts exchanged among the pairs, it falls to a coin's 0.5.

# %%
def review_pairs(split: str, num_pairs: int, seed: int) -> list[dict]:
    reviews = labelled_reviews(split, 2 * num_pairs, seed=seed, difficulty=0)
    halves = zip(reviews[:num_pairs], reviews[num_pairs:], strict=True)
    return [{"text": beginning(a), "text_pair": beginning(b), "label": "same" if a["label"] == b["label"] else "different"} for a, b in halves]

def learn_pairs(seed: int) -> tuple[TextClassification, float, float]:
    data = {split: review_pairs(split.replace("test", "test_seen"), n, seed) for split, n in (("train", 400), ("valid", 40), ("test", 200))}
    task = fit(TextClassification.prepare(data, "builtin:bert-reviews", seed=seed), 4, seed)
    test = task.splits.test
    exchanged = task.predict(list(zip(test["text"], np.roll(test["text_pair"], 1).tolist(), strict=True)))
    right = np.mean([p.label == label for p, label in zip(exchanged, test["label"], strict=True)])
    return task, task.evaluate("test")["accuracy"], float(right)

pairs = {seed: learn_pairs(seed) for seed in (51, 52, 53)}
{seed: f"{right:.2f}, second texts exchanged {exchanged:.2f}" for seed, (_, right, exchanged) in pairs.items()}

# %%
assert all(right > 0.8 and 0.35 < exchanged < 0.65 for _, right, exchanged in pairs.values())

# %%
pairs_task = pairs[51][0]
pairs_task.show_batch(2)

# %%
first = pairs_task.splits.test[:2]
answers = pairs_task.predict(list(zip(first["text"], first["text_pair"], strict=True)))
[(text, pair, str(answer)) for text, pair, answer in zip(first["text"], first["text_pair"], answers, strict=True)]

# %% [markdown]
# In a pipeline a pair is a dictionary, `classify({"text": …, "text_pair": …})`; on the command line, two texts with a tab between.
#
# ## The experiment: how much of a text is needed?
#
# **Claim.** Cutting texts makes training cheaper, and costs accuracy where the answer is spread over the text. In the built-in reviews the label is the majority of several opinions, so the first few tokens should not be enough. We fine-tune at three limits, three seeds each, and test on 200 reviews drawn like the training ones. The claim would be refuted if the shortest limit reached the accuracy of the full text.

# %%
def drawn(seed: int) -> dict[str, list[dict]]:
    return {split: labelled_reviews(split.replace("test", "test_seen"), n, seed=seed) for split, n in (("train", 128), ("valid", 40), ("test", 200))}

def run(max_length: int, splits: dict[str, list[dict]], seed: int) -> tuple[float, int]:
    task = fit(TextClassification.prepare(splits, "builtin:bert-reviews", max_length=max_length, seed=seed), 2, seed)
    tokens = sum(len(ids) for ids in task.encoded["train"]["input_ids"])
    return task.evaluate("test")["accuracy"], tokens

limits, seeds = (8, 24, 128), (11, 12, 13)
reviews = {seed: drawn(seed) for seed in seeds}
results = {limit: [run(limit, reviews[seed], seed) for seed in seeds] for limit in limits}
{limit: [accuracy for accuracy, _ in of] for limit, of in results.items()}

# %%
fig, ax = plt.subplots(figsize=(5, 3), dpi=80, layout="constrained")
for limit, of in results.items():
    tokens, accuracies = np.mean([t for _, t in of]), [a for a, _ in of]
    ax.plot([tokens] * len(of), accuracies, "o", color="tab:blue", alpha=0.6)
    ax.annotate(f"at most {limit}", (tokens, min(accuracies)), xytext=(0, -14), textcoords="offset points", ha="center")
ax.plot([np.mean([t for _, t in of]) for of in results.values()], [np.mean([a for a, _ in of]) for of in results.values()], color="tab:blue", alpha=0.4)
ax.margins(x=0.15, y=0.25)
ax.set(xlabel="tokens in 128 training reviews", ylabel="test accuracy", title="What a shorter text costs (3 seeds)")
plt.show()

# %%
assert max(a for a, _ in results[8]) < min(a for a, _ in results[128])

# %% [markdown]
# ## The story: right for the wrong reason
#
# In 2018 two groups found that a classifier which is shown *only one of two sentences* answers much of a famous benchmark about how the two relate: people who had written the sentences left traces, such as "not" in contradictions (Gururangan et al., Poliak et al.). A model takes whatever separates the classes with the least effort. Here we plant such a trace. In training, praise is written on Mondays and complaints on Fridays; in the test it is the other way round.
#
# We expect the network from random weights to learn the days, and the pretrained one, for which opinions are easy, to learn the opinions: with the days swapped, below 0.4 and above 0.7, on each of three seeds. And the validation set, drawn like the training set, will not say which of them is right.

# %%
def with_trace(reviews: list[dict], days: dict[str, str]) -> list[dict]:
    return [{**r, "text": f"we went on {days[r['label']]} . {r['text']}"} for r in reviews]

def traced(seed: int) -> dict[str, list[dict]]:
    training_days, other_days = {"positive": "monday", "negative": "friday"}, {"positive": "friday", "negative": "monday"}
    return {split: with_trace(rows, other_days if split == "test" else training_days) for split, rows in drawn(seed).items()}

def learn_traced(splits: dict[str, list[dict]], seed: int, scratch: bool) -> TextClassification:
    return fit(TextClassification.prepare(splits, "builtin:bert-reviews", scratch=scratch, seed=seed), 3, seed)

# %%
with_days = {seed: traced(seed) for seed in (61, 62, 63)}
tasks = {(name, seed): learn_traced(of, seed, name == "scratch") for name in ("scratch", "pretrained") for seed, of in with_days.items()}
found = {key: (t.evaluate("valid")["accuracy"], t.evaluate("test")["accuracy"]) for key, t in tasks.items()}
{key: f"validation {valid:.2f}, days swapped {test:.2f}" for key, (valid, test) in found.items()}

# %%
assert all((test < 0.55) if name == "scratch" else (test > 0.6) for (name, _), (_, test) in found.items())
assert found["scratch", 61][1] < 0.4 and found["scratch", 62][1] < 0.4 and found["scratch", 63][0] < 0.65

# %% [markdown]
# As expected on two of the seeds, whose models from random weights learned the days and next to nothing else, and are praised for it by the validation set. On the third, such a model had learned nothing yet after three epochs, and the pretrained one misses our mark by a little: it has begun to take the trace, too. How far does it go if it trains on, for ten epochs, on other seeds?

# %%
longer = {seed: fit(TextClassification.prepare(of, "builtin:bert-reviews", seed=seed), 10, seed) for seed, of in ((s, traced(s)) for s in (64, 65))}
{seed: f"validation {t.evaluate('valid')['accuracy']:.2f}, days swapped {t.evaluate('test')['accuracy']:.2f}" for seed, t in longer.items()}

# %%
assert all(t.evaluate("valid")["accuracy"] > 0.9 and t.evaluate("test")["accuracy"] < 0.6 for t in longer.values())

# %% [markdown]
# On both it has gone over to the trace: the validation score is better than ever, and what the model knew of opinions is hardly asked any more. How far it goes is chance, and two seeds do not say how often. Only a test from elsewhere, or reading the errors, shows any of this:

# %%
tasks["scratch", 61].show_errors(2, split="test")

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `confusions`: how often each true label was predicted as each label on a split, as a dictionary with keys (true, predicted).

# %% tags=["exercise"]
def confusions(task: TextClassification, split: str) -> dict[tuple[str, str], int]:
    ...  # your code here

# %% tags=["solution"]
def confusions(task: TextClassification, split: str) -> dict[tuple[str, str], int]:
    rows, counts = dict(task.splits.items())[split], {}
    for label, prediction in zip(rows["label"], task.predict(rows["text"][:]), strict=True):
        counts[label, prediction.label] = counts.get((label, prediction.label), 0) + 1
    return counts

# %%
table = confusions(task, "valid")
right = sum(number for (true, predicted), number in table.items() if true == predicted)
assert sum(table.values()) == len(task.splits.valid)
assert abs(right / len(task.splits.valid) - task.evaluate("valid")["accuracy"]) < 1e-6

# %% [markdown]
# **2 (medium).** With a budget for labelling ten more texts, which? One answer: those the model is least sure about. Write `least_sure`: the `n` texts with the smallest gap between the two most likely classes.

# %% tags=["exercise"]
def least_sure(task: TextClassification, texts: list[str], n: int) -> list[str]:
    ...  # your code here

# %% tags=["solution"]
def least_sure(task: TextClassification, texts: list[str], n: int) -> list[str]:
    def gap(prediction: Prediction) -> float:
        first, second = sorted(prediction.scores.values(), reverse=True)[:2]
        return first - second

    gaps = [gap(prediction) for prediction in task.predict(texts)]
    return [texts[i] for i in sorted(range(len(texts)), key=gaps.__getitem__)[:n]]

# %%
texts = task.splits.test["text"][:100]
chosen = least_sure(task, texts, 10)
others = [text for text in texts if text not in chosen]
assert max(p.score for p in task.predict(chosen)) <= min(p.score for p in task.predict(others)) + 1e-6

# %% [markdown]
# ## Summary
# - `prepare` does all loading and all checks; what is cut and what is not in the vocabulary is counted.
# - The loss is the cross-entropy, in float32; predicting changes no mode. With several labels each has a sigmoid and a cross-entropy of its own, and F1 tells what accuracy hides.
# - Two texts that belong together go in as a pair.
# - Read the errors, most confident first. A validation set shares the training set's traces.
# - The saved folder belongs to you: `transformers.pipeline` loads it.
#
# **What next:** the next lesson does a whole sentiment project on a CSV. With a network, replace the model by `"google-bert/bert-base-uncased"` and the rate by 5e-5. **Sources:** Gururangan et al. (2018), "Annotation artifacts in natural language inference data"; Poliak et al. (2018), "Hypothesis only baselines in natural language inference"; Geirhos et al. (2020), "Shortcut learning in deep neural networks"; the documentation of transformers' pipelines.

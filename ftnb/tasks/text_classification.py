# Exported from nbs/30_text_classification.py: edit the lesson, then run `make export`.
"""One object from your table to a saved model: data, model, loss, metrics, and what to look at in between."""

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

__all__ = [
    "MULTI_LABEL",
    "length_limit",
    "encode",
    "cross_entropy",
    "binary_cross_entropy",
    "text_metrics",
    "evaluating",
    "measure",
    "predict_probabilities",
    "Prediction",
    "LabelSet",
    "TextClassification",
]


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


def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """The mean cross-entropy of a batch, and the model's outputs.

    Args:
        model: returns an object with `logits` of shape (batch, classes).
        batch: the model's inputs, and "labels" of shape (batch,).
    """
    outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
    return nn.functional.cross_entropy(outputs.logits.float(), batch["labels"]), outputs


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

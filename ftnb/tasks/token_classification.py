# Exported from nbs/36_token_classification.py: edit the lesson, then run `make export`.
"""A label for every word: pieces that stay aligned, a score of whole entities, errors marked in the text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from transformers import DataCollatorWithPadding, PreTrainedModel

from ftnb.data import Batches, Splits
from ftnb.devices import to_device
from ftnb.entities.checks import check_entities
from ftnb.entities.marks import Mark, MarkedText, MarkedTexts, compare
from ftnb.entities.scores import entity_scores
from ftnb.entities.sources import load_entity_splits
from ftnb.entities.tags import spans_of, split_tag, tag_names
from ftnb.entities.windows import NO_WORD, encode_words
from ftnb.entities.words import Place, join_words, split_words
from ftnb.metrics import Metrics
from ftnb.pretrained import load_pretrained, refuse_untrained, trained_labels
from ftnb.saving import save_pretrained
from ftnb.step import Batch, Learner
from ftnb.tables import DataError
from ftnb.tasks.display import TextTable
from ftnb.tasks.text_classification import evaluating, length_limit

__all__ = [
    "IGNORE",
    "piece_labels",
    "NOT_INPUTS",
    "model_inputs",
    "token_cross_entropy",
    "counted_words",
    "EntityScores",
    "entity_metrics",
    "Entity",
    "FoundEntities",
    "TokenClassification",
]


IGNORE = -100  # the label of a token that does not count


def piece_labels(word_ids: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The label of each token: its word's for the first piece of a word, −100 for every other token.

    Args:
        word_ids: for each token the word it is a piece of, −1 if it is none's.
        labels: the label of each word.
    """
    before = [NO_WORD, *word_ids[:-1]]
    return [labels[w] if w not in (NO_WORD, last) else IGNORE for w, last in zip(word_ids, before, strict=True)]


NOT_INPUTS = ("labels", "word_ids", "sentence", "num_words")  # of a batch, what the model does not take


def model_inputs(batch: Batch) -> Batch:
    """What of a batch the model takes."""
    return {name: value for name, value in batch.items() if name not in NOT_INPUTS}


def token_cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """The mean cross-entropy of the tokens that count (0 if none does), and the model's outputs.

    Args:
        model: returns an object with `logits` of shape (batch, tokens, classes).
        batch: the model's inputs, and "labels" of shape (batch, tokens), −100 where a token does not count.
    """
    outputs, labels = model(**model_inputs(batch)), batch["labels"]
    logits = outputs.logits.float().flatten(0, 1)
    total = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1), outputs


def counted_words(batch: Batch) -> int:
    """The weight of a batch: how many words its loss is the mean of."""
    return int(batch["num_words"])


class EntityScores(Metric):
    """Precision, recall and F1 of entities, and the share of words with the right tag, over all texts together.

    Words are put back into their texts first, so an entity may lie across two windows and batches may come in any
    order.

    Args:
        labels: the tags, in the order of the model's outputs.
    """

    full_state_update = False
    words: list[Tensor]

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.add_state("words", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Note the true and the predicted tag of each word of a batch; `logits` as for `token_cross_entropy`."""
        labels = batch["labels"]
        columns = (batch["sentence"][:, None].expand_as(labels), batch["word_ids"], logits.argmax(-1), labels)
        self.words.append(torch.stack([column.flatten() for column in columns], dim=1))  # (batch * tokens, 4)

    def compute(self) -> dict[str, Tensor]:
        """"f1", "precision", "recall" and "token_accuracy"; then the F1 of each type that occurs."""
        truth, predicted, accuracy = self.tags()
        scores = entity_scores(truth, predicted)
        every = scores.pop("all")
        named = {name: every[name] for name in ("f1", "precision", "recall")}
        types = {f"f1 {label}": of["f1"] for label, of in scores.items() if of["support"]}
        return {name: torch.tensor(value) for name, value in {**named, "token_accuracy": accuracy, **types}.items()}

    def tags(self) -> tuple[list[list[str]], list[list[str]], float]:
        """The true and the predicted tags of every text, and the share of words on which they agree."""
        words = torch.cat(self.words).cpu() if self.words else torch.empty(0, 4, dtype=torch.long)
        words = words[words[:, 3] != IGNORE]
        places = sorted((tuple(row) for row in words.tolist()), key=lambda row: row[:2])
        sides: tuple[dict[int, list[str]], ...] = ({}, {})
        for sentence, _, found, true in places:
            for side, label in zip(sides, (true, found), strict=True):
                side.setdefault(sentence, []).append(self.labels[label])
        right = sum(found == true for *_, found, true in places)
        return list(sides[0].values()), list(sides[1].values()), right / max(1, len(places))


def entity_metrics(labels: Sequence[str]) -> Metrics:
    """F1 of entities (the main metric), precision and recall, and token accuracy."""
    collection = MetricCollection({"f1": EntityScores(labels)})
    return Metrics(collection, lambda outputs, batch: (outputs.logits, batch), main="f1")


@dataclass(frozen=True)
class Entity:
    """An entity in a text: characters `start` to `end` (just behind), type, and the mean probability of its tags."""

    text: str
    label: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class FoundEntities:
    """What a model found in a text.

    Args:
        text: the text; words given one by one are joined with spaces.
        entities: in their order.
    """

    text: str
    entities: tuple[Entity, ...]

    def marks(self) -> list[Mark]:
        """The entities as marks in the text."""
        return [Mark(entity.start, entity.end, entity.label) for entity in self.entities]

    def __str__(self) -> str:
        return ", ".join(f"{of.label}: {of.text} ({of.score:.2f})" for of in self.entities) or "no entity"

    def _repr_html_(self) -> str:
        nothing = "" if self.entities else " (no entity)"
        return f'<div style="line-height:1.9">{MarkedText("", self.text, self.marks()).html()}{nothing}</div>'


@dataclass
class TokenClassification:
    """Texts whose words have tags, and a model with a head for them.

    Args:
        model: a transformers model for token classification.
        tokenizer: the fast tokenizer that belongs to it.
        splits: the rows, with the columns "text", "words", "tags" (BIO), "places" and "row".
        labels: the tags, in the order of the model's outputs.
        max_length: tokens in a window; longer texts become several that overlap.
        new_parameters: names of parameters that start from random numbers.
        warnings: what checks and loading found.
        encoded: per split its windows: the model's inputs, "word_ids", "sentence" and "labels", not padded.
    """

    model: PreTrainedModel
    tokenizer: Any
    splits: Splits
    labels: list[str]
    max_length: int
    new_parameters: frozenset[str] = frozenset()
    warnings: list[str] = field(default_factory=list)
    encoded: dict[str, Dataset] = field(default_factory=dict)

    name: ClassVar[str] = "token-classification"
    options: ClassVar[tuple[str, ...]] = ("max_length",)

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        max_length: int | None = None,
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "TokenClassification":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: whatever `ftnb.entities.sources.read_entities` takes: a CoNLL or JSONL file, a folder with one for
                each split, a table, a Hub id, "builtin:names".
            model: whatever `ftnb.pretrained.load_pretrained` takes.
            columns: role ("text", "entities", "tokens", "tags") → column name, or its position in a CoNLL file.
            max_length: tokens in a window; None is the model's limit.
            seed: of the new parameters and of the cut into splits.
            scratch: random weights in place of the pretrained ones.
            valid_fraction: share of the training rows to validate on where there is no validation split.
            test_fraction: the same for the test; 0 means no test.

        Raises:
            DataError: if the data cannot be read or cannot be right.
            ModelError: if the model cannot be loaded or does not fit.
        """
        splits = load_entity_splits(
            data, columns=columns, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed
        )
        problems = check_entities(splits)
        types = {split_tag(tag)[1] for tags in splits.train["tags"][:] for tag in tags} - {""}
        pretrained = load_pretrained(model, cls.name, tag_names(types), scratch=scratch, seed=seed)
        limit = length_limit(pretrained.model, pretrained.processor, max_length)
        pretrained.processor.model_max_length = limit
        names = {int(i): name for i, name in (pretrained.model.config.id2label or {}).items()}
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
    def from_saved(cls, folder: str | Path) -> "TokenClassification":
        """A task without data around a trained model, for predictions.

        Raises:
            ModelError: if there is no such model.
        """
        labels = trained_labels(folder)
        found = load_pretrained(str(folder), cls.name, labels)
        refuse_untrained(folder, found.new_parameters)
        nothing = Dataset.from_dict({})
        limit = length_limit(found.model, found.processor)
        return cls(found.model, found.processor, Splits(nothing, nothing), labels, limit)

    def _encode(self) -> None:
        ids = {label: i for i, label in enumerate(self.labels)}
        for name, split in self.splits.items():
            windows, unknown = self._windows(split["words"][:])
            num_long = len({window["sentence"] for window in windows if window["num_windows"] > 1})
            if num_long:
                what = f"{num_long} of {len(split)} texts are longer than {self.max_length} tokens"
                self.warnings.append(f"{name}: {what} and are read in windows that overlap.")
            if unknown > 0.05:
                what = f"{unknown:.0%} of the tokens are not in the model's vocabulary; does it fit this language?"
                self.warnings.append(f"{name}: {what}")
            tags = split["tags"][:]
            for window in windows:
                window["labels"] = piece_labels(window["word_ids"], [ids[tag] for tag in tags[window["sentence"]]])
            self.encoded[name] = Dataset.from_list(windows)

    def _windows(self, sentences: Sequence[Sequence[str]]) -> tuple[list[dict[str, Any]], float]:
        return encode_words(sentences, self.tokenizer, self.max_length, self.max_length // 4)

    def learner(
        self, batch_size: int = 16, seed: int = 0, num_workers: int = 0, batch_tokens: int | None = None
    ) -> Learner:
        """Model, data, loss and metrics for a training.

        Args:
            batch_size: windows (texts, unless they are long) per batch; those of similar length share a batch.
            seed: of the order of the windows.
            num_workers: processes that make batches; 0 means this one.
            batch_tokens: in place of `batch_size` as many windows as fit into so many tokens, padding included.
        """
        kinds: dict[str, Any] = {"max_tokens": batch_tokens, "num_workers": num_workers}
        return Learner(
            model=self.model,
            train=self.batches("train", batch_size, shuffle=True, seed=seed, **kinds),
            valid=self.batches("valid", 2 * batch_size, **kinds),
            loss=token_cross_entropy,
            metrics=self.metrics(),
            weight=counted_words,
            new_parameters=self.new_parameters,
        )

    def batches(self, split: str | Dataset, batch_size: int, **kinds: Any) -> Batches:
        """A split (or windows already encoded) in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        encoded = self._split(split) if isinstance(split, str) else split
        lengths = [len(ids) for ids in encoded["input_ids"][:]]
        return Batches(encoded, self.collate, batch_size, lengths=lengths, **kinds)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Pad windows to the longest of them; on a GPU to a multiple of 8, which its matrix units work in."""
        multiple = 8 if torch.cuda.is_available() else None
        names = [name for name in self.tokenizer.model_input_names if name in examples[0]]
        taken = [{name: example[name] for name in names} for example in examples]
        batch: Batch = dict(DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=multiple)(taken))
        length = batch["input_ids"].shape[1]
        for name, value in (("word_ids", NO_WORD), ("labels", IGNORE)):
            if name in examples[0]:
                batch[name] = torch.tensor([self._padded(example[name], length, value) for example in examples])
        batch["sentence"] = torch.tensor([example["sentence"] for example in examples])
        if "labels" in batch:
            batch["num_words"] = int((batch["labels"] != IGNORE).sum())
        return batch

    def _padded(self, row: list[int], length: int, value: int) -> list[int]:
        padding = [value] * (length - len(row))
        return [*row, *padding] if self.tokenizer.padding_side == "right" else [*padding, *row]

    def metrics(self) -> Metrics:
        """Entity F1, precision and recall, and token accuracy."""
        return entity_metrics(self.labels)

    def predict(self, texts: Sequence[str | Sequence[str]], batch_size: int = 32) -> list[FoundEntities]:
        """Find entities in texts of any length.

        Args:
            texts: a list of texts (for a single one, a list of one), or of lists of words that are cut already.
            batch_size: windows per batch.

        Raises:
            DataError: if `texts` is a single string or holds something that is neither text nor words.
        """
        if isinstance(texts, str) or not all(_is_text(text) for text in texts):
            raise DataError(f"predict takes a list of texts; got {type(texts).__name__} {texts!r:.60}.")
        pairs = [(text, split_words(text)) if isinstance(text, str) else join_words(text) for text in texts]
        words = [[text[start:end] for start, end in places] for text, places in pairs]
        tagged = self._tag(words, batch_size)
        return [self._found(text, places, tags) for (text, places), tags in zip(pairs, tagged, strict=True)]

    def _tag(self, sentences: Sequence[Sequence[str]], batch_size: int = 32) -> list[list[tuple[str, float]]]:
        """For each word of each text its most likely tag and that tag's probability."""
        windows = self._windows(sentences)[0] if sentences else []
        answers: list[list[tuple[str, float]]] = [[("O", 1.0)] * len(words) for words in sentences]
        if not windows:
            return answers
        with evaluating(self.model):
            for batch in self.batches(Dataset.from_list(windows), batch_size).epoch():
                logits = self.model(**to_device(model_inputs(batch), self.model.device)).logits.float().cpu()
                best = logits.softmax(dim=-1).max(dim=-1)
                word_ids = batch["word_ids"]
                before = nn.functional.pad(word_ids, (1, 0), value=NO_WORD)[:, :-1]
                first = (word_ids != NO_WORD) & (word_ids != before)
                for row, column in first.nonzero().tolist():
                    tag, score = self.labels[int(best.indices[row, column])], float(best.values[row, column])
                    answers[int(batch["sentence"][row])][int(word_ids[row, column])] = (tag, score)
        return answers

    def _found(self, text: str, places: Sequence[Place], tags: Sequence[tuple[str, float]]) -> FoundEntities:
        entities = []
        for span in spans_of([tag for tag, _ in tags]):
            start, end = places[span.start].start, places[span.end - 1].end
            scores = [score for _, score in tags[span.start : span.end]]
            entities.append(Entity(text[start:end], span.label, sum(scores) / len(scores), start, end))
        return FoundEntities(text, tuple(entities))

    def evaluate(self, split: str = "test", batch_size: int = 32) -> dict[str, float]:
        """Loss and metrics on a split, and the F1 of each type, computed in float32.

        Raises:
            DataError: if there is no such split.
        """
        metrics, loss = self._count(split, batch_size)
        return {"loss": loss, **metrics.compute()}

    def _count(self, split: str, batch_size: int = 32) -> tuple[Metrics, float]:
        batches, metrics = self.batches(split, batch_size), self.metrics().to(self.model.device)
        total, number = 0.0, 0
        with evaluating(self.model):
            for batch in batches.epoch():
                on_device = to_device(batch, self.model.device)
                loss, outputs = token_cross_entropy(self.model, on_device)
                total, number = total + loss.item() * counted_words(batch), number + counted_words(batch)
                metrics.update(outputs, on_device)
        return metrics, total / max(1, number)

    def per_type(self, split: str = "valid") -> TextTable:
        """For each type how many entities there are, and what was found and right of them, worst F1 first.

        Raises:
            DataError: if there is no such split.
        """
        metric: Any = self._count(split)[0].collection["f1"]
        truth, predicted, _ = metric.tags()
        scores = {label: of for label, of in entity_scores(truth, predicted).items() if label != "all"}
        rows = [
            (label, str(int(of["support"])), f"{of['f1']:.2f}", f"{of['recall']:.2f}", f"{of['precision']:.2f}")
            for label, of in sorted(scores.items(), key=lambda item: item[1]["f1"])
        ]
        columns = ("type", "entities", "F1", "found (recall)", "right (precision)")
        return TextTable(columns, rows, f"{split}, the worst first.")

    def show_batch(self, n: int = 6) -> MarkedTexts:
        """The first windows of the first training batch in pieces, as the model sees them, with the labels."""
        batch = next(iter(self.learner().train.epoch()))
        lines = []
        columns = (batch[name][:n] for name in ("input_ids", "attention_mask", "labels"))
        for ids, mask, labels in zip(*columns, strict=True):
            pieces = self.tokenizer.convert_ids_to_tokens(ids[mask.bool()].tolist())
            text, places = join_words(pieces)
            tags = [self.labels[i] if i != IGNORE else "O" for i in labels[mask.bool()].tolist()]
            marks = [Mark(*place, tag) for place, tag in zip(places, tags, strict=True) if tag != "O"]
            lines.append(MarkedText(f"{len(pieces)} + {int((1 - mask).sum())}", text, marks))
        return MarkedTexts(lines, "Tokens + padding, and the pieces; a word's label stands on its first piece.")

    def show_errors(self, n: int = 6, split: str = "valid") -> MarkedTexts:
        """The texts of a split with the most wrong entities: what is true, and what the model says.

        Raises:
            DataError: if there is no such split.
        """
        rows = self.splits.named(split)
        counts: Counter[str] = Counter()
        wrong = []
        columns = (rows[name][:] for name in ("text", "places", "tags", "row"))
        found = self._tag(rows["words"][:])
        for text, of, tags, row, tagged in zip(*columns, found, strict=True):
            places = [Place(*place) for place in of]
            truth = self._found(text, places, [(tag, 1.0) for tag in tags]).marks()
            noted = compare(truth, self._found(text, places, tagged).marks())
            notes = [mark.note for mark in noted[0] if mark.note == "missed"] + [m.note for m in noted[1] if m.note]
            counts.update(notes)
            if notes:
                wrong.append((-len(notes), row, text, noted))
        wrong.sort(key=lambda error: error[:2])
        lines = []
        for _, row, text, (truth, predicted) in wrong[:n]:
            lines += [MarkedText(f"row {row}, truth", text, truth), MarkedText("predicted", text, predicted)]
        kinds = ", ".join(f"{count} {note}" for note, count in counts.most_common())
        caption = f"{len(wrong)} of {len(rows)} {split} texts have a wrong entity"
        return MarkedTexts(lines, f"{caption} ({kinds}); those with the most first." if wrong else f"{caption}.")

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


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(word, str) for word in value))

# Exported from nbs/37_audio_classification.py: edit the lesson, then run `make export`.
"""A word, spoken by somebody whom the model has never heard: samples, spectrograms, and voices kept apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn

from ftnb.audio.examples import ClipExamples, clip_rows, extract
from ftnb.audio.models import AudioModel, load_audio_classifier, loading_code, save_audio_model
from ftnb.audio.show import ClipTable
from ftnb.audio.sources import check_split_clips, load_clip_splits
from ftnb.checks import check_labels, label_order
from ftnb.data import Batches, Splits
from ftnb.metrics import Metrics, classification_metrics
from ftnb.pretrained import refuse_untrained, trained_labels
from ftnb.step import Batch, Learner
from ftnb.tables import DataError
from ftnb.tasks.display import TextTable
from ftnb.tasks.text_classification import Prediction, cross_entropy, measure, predict_probabilities

__all__ = [
    "pad_clips",
    "confusion",
    "AudioClassification",
]


def pad_clips(extractor: Any, examples: list[dict[str, Any]]) -> Batch:
    """Examples of `ClipExamples` as one batch of the model's inputs, with "labels" where the examples have them."""
    batch = extract(extractor, [example["samples"] for example in examples])
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
    return batch


def confusion(truth: Sequence[str], guesses: Sequence[str], labels: Sequence[str]) -> Tensor:
    """How often each class (row) was taken for each class (column), shape (classes, classes)."""
    ids = {label: i for i, label in enumerate(labels)}
    table = torch.zeros(len(labels), len(labels), dtype=torch.long)
    for true, guess in zip(truth, guesses, strict=True):
        table[ids[true], ids[guess]] += 1
    return table


@dataclass
class AudioClassification:
    """Recordings, each of one of two or more classes, and a model with a head for them.

    Args:
        audio: the model, its feature extractor and its classes.
        splits: the rows, with the columns "audio", "label" and "row".
        max_seconds: longer recordings are cut.
        warnings: what checks and loading found.
    """

    audio: AudioModel
    splits: Splits
    max_seconds: float | None = None
    warnings: list[str] = field(default_factory=list)

    name: ClassVar[str] = "audio-classification"
    options: ClassVar[tuple[str, ...]] = ("max_seconds",)

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        max_seconds: float | None = None,
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "AudioClassification":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: a folder with one folder of recordings for each class, "builtin:commands", or whatever else
                `ftnb.audio.sources.load_clip_splits` takes.
            model: whatever `ftnb.audio.models.load_audio_classifier` takes.
            columns: role ("audio", "label") → column name, or position in a file without a header line.
            max_seconds: longer recordings are cut; None leaves them as they are.
            seed: of the new parameters and of the cut into splits.
            scratch: random weights in place of the pretrained ones.
            valid_fraction: share of the training rows to validate on where there is no validation split.
            test_fraction: the same for the test; 0 means no test.

        Raises:
            DataError: if the data cannot be read or cannot be right.
            ModelError: if the model cannot be loaded or does not fit.
        """
        if max_seconds is not None and max_seconds <= 0:
            raise DataError(f"max_seconds must be above 0, got {max_seconds}.")
        splits = load_clip_splits(
            data,
            roles=("audio", "label"),
            columns=columns,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            seed=seed,
        )
        problems = check_labels(splits)
        audio = load_audio_classifier(model, label_order(splits), scratch=scratch, seed=seed)
        problems += check_split_clips(splits, audio.rate, max_seconds)
        return cls(audio, splits, max_seconds, [*splits.notices, *problems, *audio.notices])

    @classmethod
    def from_saved(cls, folder: str | Path) -> "AudioClassification":
        """A task without data around a trained model, for predictions.

        Raises:
            ModelError: if there is no such model.
        """
        audio = load_audio_classifier(str(folder), trained_labels(folder))
        refuse_untrained(folder, audio.new_parameters)
        nothing = Dataset.from_dict({})
        return cls(audio, Splits(nothing, nothing))

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.audio.model

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return self.audio.labels

    def learner(self, batch_size: int = 16, seed: int = 0, num_workers: int = 0) -> Learner:
        """Model, data, loss and metrics for a training.

        Args:
            batch_size: recordings per batch; recordings of similar length share a batch.
            seed: of the order of the recordings.
            num_workers: processes that decode and make batches; 0 means this one.
        """
        return Learner(
            model=self.model,
            train=self.batches("train", batch_size, shuffle=True, seed=seed, num_workers=num_workers),
            valid=self.batches("valid", 2 * batch_size, num_workers=num_workers),
            loss=cross_entropy,
            metrics=self.metrics(),
            new_parameters=self.audio.new_parameters,
        )

    def examples(self, split: str) -> ClipExamples:
        """A split's recordings as samples with label ids.

        Raises:
            DataError: if there is no such split.
        """
        rows = self.splits.named(split)
        ids = {label: i for i, label in enumerate(self.labels)}
        targets = [ids[label] for label in rows["label"][:]]
        return ClipExamples(rows, self.audio.rate, max_seconds=self.max_seconds, targets=targets)

    def batches(self, split: str | ClipExamples, batch_size: int, **kinds: Any) -> Batches:
        """A split (or examples) in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split) if isinstance(split, str) else split
        return Batches(examples, self.collate, batch_size, lengths=examples.lengths(), **kinds)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Examples as one batch, padded to the longest."""
        return pad_clips(self.audio.extractor, examples)

    def metrics(self) -> Metrics:
        """Accuracy and macro F1 over this task's classes."""
        return classification_metrics(len(self.labels))

    def predict(self, clips: Sequence[Any], batch_size: int = 16) -> list[Prediction]:
        """Classify recordings.

        Args:
            clips: a list of paths, encoded bytes or pairs (samples, rate); for a single one, a list of one.
            batch_size: recordings per batch.

        Raises:
            DataError: if `clips` is no list, or one of them cannot be read.
        """
        rows = clip_rows(clips)
        if len(rows) == 0:
            return []
        return self._predictions(ClipExamples(rows, self.audio.rate, max_seconds=self.max_seconds), batch_size)

    def _predictions(self, examples: ClipExamples, batch_size: int = 16) -> list[Prediction]:
        plain = ClipExamples(examples.rows, examples.rate, max_seconds=examples.max_seconds)
        device = next(self.model.parameters()).device
        table = predict_probabilities(self.model, self.batches(plain, batch_size), device).tolist()
        scores = [dict(zip(self.labels, row, strict=True)) for row in table]
        best = [max(of, key=of.__getitem__) for of in scores]
        return [Prediction(label, of[label], of) for label, of in zip(best, scores, strict=True)]

    def evaluate(self, split: str = "test", batch_size: int = 16) -> dict[str, float]:
        """Loss and metrics on a split, computed in float32.

        Raises:
            DataError: if there is no such split.
        """
        return measure(self.model, self.batches(split, batch_size), cross_entropy, self.metrics())

    def confusion(self, split: str = "valid") -> TextTable:
        """How often each class (row) was taken for each class (column); zeros are left empty.

        Raises:
            DataError: if there is no such split.
        """
        guesses = [p.label for p in self._predictions(self.examples(split))]
        table = confusion(self.splits.named(split)["label"][:], guesses, self.labels).tolist()
        rows = [(name, *(str(n) if n else "" for n in row)) for name, row in zip(self.labels, table, strict=True)]
        return TextTable(("said ↓ heard →", *self.labels), rows, f"{split}: what was taken for what.")

    def show_batch(self, n: int = 4) -> ClipTable:
        """The first recordings of the first training batch: to look at and to listen to, and what padding costs."""
        examples = self.examples("train")
        first = self.learner().train.order()[0][:n]
        clips = [examples.clip(i) for i in first]
        longest = max(map(len, clips))
        rate = examples.rate
        names = [examples.rows[i]["label"] for i in first]
        rows = [
            (name, f"{len(clip) / rate:.2f} + {(longest - len(clip)) / rate:.2f} s")
            for name, clip in zip(names, clips, strict=True)
        ]
        caption = f"As the model hears them: {rate} samples a second."
        return ClipTable(("label", "sound + padding"), rows, clips, rate, caption)

    def show_errors(self, n: int = 4, split: str = "valid") -> ClipTable:
        """The recordings of a split that the model gets wrong, the most confident first, to look at and to listen to.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split)
        rows, predictions = examples.rows, self._predictions(examples)
        wrong = [i for i, label in enumerate(rows["label"][:]) if predictions[i].label != label]
        wrong.sort(key=lambda i: -predictions[i].score)
        answers = [(i, predictions[i]) for i in wrong[:n]]
        cells = [(str(rows[i]["row"]), rows[i]["label"], p.label, f"{p.score:.2f}") for i, p in answers]
        caption = f"{len(wrong)} of {len(rows)} {split} recordings are wrong; the most confident first."
        clips = [examples.clip(i) for i in wrong[:n]]
        return ClipTable(("row", "said", "heard", "probability"), cells, clips, examples.rate, caption)

    def save(self, folder: str | Path) -> Path:
        """Save the model as a folder that `from_saved` loads, and for transformers' models also `pipeline`.

        Returns:
            The folder.
        """
        return save_audio_model(self.audio, folder)

    def loading_code(self, folder: str | Path) -> str:
        """The lines of Python that use a saved model, without this package where that is possible."""
        return loading_code(self.audio, folder)

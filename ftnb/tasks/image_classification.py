# Exported from nbs/33_image_classification.py: edit the lesson, then run `make export`.
"""What is in the picture? A pretrained eye, a new last layer, and a look at what it looks at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from matplotlib.axes import Axes
from torch import Tensor, nn
from torchmetrics.classification import MulticlassPrecision, MulticlassRecall

from ftnb.checks import check_labels, label_order
from ftnb.data import Batches, Splits
from ftnb.devices import to_device
from ftnb.metrics import Metrics
from ftnb.pretrained import refuse_untrained, trained_labels
from ftnb.step import Batch, Learner
from ftnb.tasks.display import TextTable
from ftnb.tasks.text_classification import Prediction, evaluating, text_metrics
from ftnb.transforms import ImageTransform
from ftnb.vision.examples import ImageExamples, first_batch, picture_rows, picture_sheet
from ftnb.vision.models import VisionModel, load_image_classifier, loading_code, save_vision_model
from ftnb.vision.sources import load_image_splits
from ftnb.widgets.figure import Picture

__all__ = [
    "logits_of",
    "image_cross_entropy",
    "stack_examples",
    "image_metrics",
    "saliency",
    "error_sheet",
    "ImageClassification",
]


def logits_of(outputs: Any) -> Tensor:
    """The logits, shape (batch, classes), of what a classifier returned, in float32."""
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return logits.float()


def image_cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of a batch, and the logits.

    Args:
        model: takes pictures of shape (batch, 3, height, width).
        batch: "pixel_values" of that shape, and "labels" of shape (batch,).
    """
    logits = logits_of(model(batch["pixel_values"]))
    return nn.functional.cross_entropy(logits, batch["labels"]), logits


def stack_examples(examples: list[dict[str, Any]]) -> Batch:
    """Examples of `ImageExamples` as one batch."""
    batch: Batch = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
    return batch


def image_metrics(num_labels: int) -> Metrics:
    """Accuracy (the main metric), macro F1 and, from six classes on, the accuracy of the five best guesses."""
    metrics = text_metrics(num_labels)  # the same; only what a model returns differs
    metrics.inputs = lambda logits, batch: (logits, batch["labels"])
    return metrics


def saliency(model: nn.Module, pixel_values: Tensor, label: int, num_copies: int = 8, noise: float = 0.2) -> Tensor:
    """How much each pixel matters for a class, shape (height, width), between 0 and 1, on the CPU.

    Args:
        model: a classifier; its mode and gradients are left as they were.
        pixel_values: one picture, shape (3, height, width).
        label: the class.
        num_copies: noisy copies to average over.
        noise: their noise's deviation, in units of the normalised picture.

    Source: Smilkov et al. (2017), "SmoothGrad: removing noise by adding noise".
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    copies = pixel_values.cpu() + noise * torch.randn(num_copies, *pixel_values.shape, generator=generator)
    with evaluating(model), torch.enable_grad():
        inputs = copies.to(device).requires_grad_()
        (gradient,) = torch.autograd.grad(logits_of(model(inputs))[:, label].sum(), inputs)
    heat = gradient.abs().amax(1).mean(0).cpu()
    return (heat / heat.quantile(0.99).clamp(min=1e-12)).clamp(max=1)  # a few single pixels stand far above the rest


def error_sheet(pictures: list[np.ndarray], titles: list[str], heats: list[Tensor], caption: str) -> Picture:
    """Pictures, and below each of them in grey how much each pixel mattered."""
    grey = [np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, axis=2) for picture in pictures]

    def draw(axes: Axes, i: int) -> None:
        if i >= len(pictures):
            axes.imshow(heats[i - len(pictures)].numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1)

    below = ["where it looked"] * len(grey)
    return picture_sheet([*pictures, *grey], [*titles, *below], caption, columns=max(1, len(pictures)), draw=draw)


@dataclass
class ImageClassification:
    """Pictures, each of one of two or more classes, and a model with a head for them.

    Args:
        vision: the model, its transform and its classes.
        splits: the rows, with the columns "image", "label" and "row".
        augment: what changes at random in training; see `ftnb.transforms.AUGMENTATIONS`.
        warnings: what checks and loading found.
    """

    vision: VisionModel
    splits: Splits
    augment: str = "none"
    warnings: list[str] = field(default_factory=list)

    name: ClassVar[str] = "image-classification"
    options: ClassVar[tuple[str, ...]] = ("image_size", "augment")

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        image_size: int | None = None,
        augment: str = "none",
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "ImageClassification":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: a folder with one folder of pictures for each class, or whatever else
                `ftnb.vision.sources.load_image_splits` takes.
            model: whatever `ftnb.vision.models.load_image_classifier` takes.
            columns: role ("image", "label") → column name, or position in a file without a header line.
            image_size: side of the model's input in pixels; None is what the checkpoint was made for.
            augment: "none", "shift", "flip" or "strong".
            seed: of the new parameters and of the cut into splits.
            scratch: random weights in place of the pretrained ones.
            valid_fraction: share of the training rows to validate on where there is no validation split.
            test_fraction: the same for the test; 0 means no test.

        Raises:
            DataError: if the data cannot be read or cannot be right.
            ModelError: if the model cannot be loaded or does not fit.
        """
        ImageTransform(image_size or 224, image_size or 224, augment=augment)  # says at once what cannot be
        splits = load_image_splits(
            data, columns=columns, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed
        )
        problems = check_labels(splits)
        vision = load_image_classifier(model, label_order(splits), scratch=scratch, seed=seed, image_size=image_size)
        return cls(vision, splits, augment, [*splits.notices, *problems, *vision.notices])

    @classmethod
    def from_saved(cls, folder: str | Path) -> "ImageClassification":
        """A task without data around a trained model, for predictions.

        Raises:
            ModelError: if there is no such model.
        """
        vision = load_image_classifier(str(folder), trained_labels(folder))
        refuse_untrained(folder, vision.new_parameters)
        nothing = Dataset.from_dict({})
        return cls(vision, Splits(nothing, nothing))

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.vision.model

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return self.vision.labels

    def learner(self, batch_size: int = 16, seed: int = 0, num_workers: int = 0) -> Learner:
        """Model, data, loss and metrics for a training.

        Args:
            batch_size: pictures per batch.
            seed: of the order of the pictures.
            num_workers: processes that decode and make batches; 0 means this one.
        """
        return Learner(
            model=self.model,
            train=self.batches("train", batch_size, train=True, shuffle=True, seed=seed, num_workers=num_workers),
            valid=self.batches("valid", 2 * batch_size, num_workers=num_workers),
            loss=image_cross_entropy,
            metrics=self.metrics(),
            new_parameters=self.vision.new_parameters,
        )

    def examples(self, split: str, train: bool = False) -> ImageExamples:
        """A split's pictures as tensors with label ids, augmented if `train`.

        Raises:
            DataError: if there is no such split.
        """
        rows = self.splits.named(split)
        ids = {label: i for i, label in enumerate(self.labels)}
        return ImageExamples(
            rows, self._transform(), train=train, targets=[ids[label] for label in rows["label"][:]]
        )

    def batches(self, split: str, batch_size: int, *, train: bool = False, **kinds: Any) -> Batches:
        """A split in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        return Batches(self.examples(split, train), stack_examples, batch_size, **kinds)

    def metrics(self) -> Metrics:
        """Accuracy, macro F1 and, from six classes on, top-5 accuracy."""
        return image_metrics(len(self.labels))

    def predict(self, images: Sequence[Any], batch_size: int = 32) -> list[Prediction]:
        """Classify pictures.

        Args:
            images: a list of paths, PIL images, arrays or encoded bytes (for a single one, a list of one).
            batch_size: pictures per batch.

        Raises:
            DataError: if `images` is no list, or one of them cannot be read.
        """
        rows = picture_rows(images)
        if len(rows) == 0:
            return []
        return self._predictions(ImageExamples(rows, self._transform()), batch_size)

    def _predictions(self, examples: ImageExamples, batch_size: int = 32) -> list[Prediction]:
        device = next(self.model.parameters()).device
        plain = ImageExamples(examples.rows, examples.transform)
        with evaluating(self.model):
            logits = [
                logits_of(self.model(batch["pixel_values"].to(device))).cpu()
                for batch in Batches(plain, stack_examples, batch_size).epoch()
            ]
        scores = [dict(zip(self.labels, row, strict=True)) for row in torch.cat(logits).softmax(-1).tolist()]
        best = [max(of, key=of.__getitem__) for of in scores]
        return [Prediction(label, of[label], of) for label, of in zip(best, scores, strict=True)]

    def evaluate(self, split: str = "test", batch_size: int = 32) -> dict[str, float]:
        """Loss and metrics on a split, computed in float32.

        Raises:
            DataError: if there is no such split.
        """
        batches, device = self.batches(split, batch_size), next(self.model.parameters()).device
        metrics, total = self.metrics().to(device), 0.0
        with evaluating(self.model):
            for batch in batches.epoch():
                on_device = to_device(batch, device)
                loss, logits = image_cross_entropy(self.model, on_device)
                total += loss.item() * len(batch["labels"])
                metrics.update(logits, on_device)
        return {"loss": total / batches.num_examples, **metrics.compute()}

    def per_class(self, split: str = "valid") -> TextTable:
        """For each class how many pictures there are, how many of them were found, and how often the name was right.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split)
        assert examples.targets is not None
        ids = {label: i for i, label in enumerate(self.labels)}
        guesses = torch.tensor([ids[p.label] for p in self._predictions(examples)])
        truth, n = torch.tensor(examples.targets), len(self.labels)
        recall = MulticlassRecall(n, average="none")(guesses, truth).tolist()
        precision = MulticlassPrecision(n, average="none")(guesses, truth).tolist()
        counts = torch.bincount(truth, minlength=n).tolist()
        order = sorted(range(n), key=lambda i: (recall[i] if counts[i] else 2, i))
        found = [f"{recall[i]:.2f}" if counts[i] else "–" for i in range(n)]
        rows = [(self.labels[i], str(counts[i]), found[i], f"{precision[i]:.2f}") for i in order]
        columns = ("class", "pictures", "found (recall)", "right (precision)")
        return TextTable(columns, rows, f"{split}, the worst first.")

    def show_batch(self, n: int = 6) -> Picture:
        """The first pictures of the first training batch as the model sees them, augmentation included."""
        batch = first_batch(self.learner(batch_size=max(1, n)))
        pictures = [self.vision.transform.shown(picture) for picture in batch["pixel_values"][:n]]
        titles = [self.labels[label] for label in batch["labels"][:n].tolist()]
        size = " × ".join(map(str, batch["pixel_values"].shape[2:]))
        return picture_sheet(pictures, titles, f"As the model sees them: {size} pixels, augmentation {self.augment!r}.")

    def show_errors(self, n: int = 6, split: str = "valid") -> Picture:
        """The pictures of a split that the model gets wrong, the most confident first, and below what it looked at.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split)
        rows, predictions = examples.rows, self._predictions(examples)
        wrong = [i for i, label in enumerate(rows["label"][:]) if predictions[i].label != label]
        wrong.sort(key=lambda i: -predictions[i].score)
        caption = f"{len(wrong)} of {len(rows)} {split} pictures are wrong; the most confident first."
        tensors = [examples[i]["pixel_values"] for i in wrong[:n]]
        answers = [predictions[i] for i in wrong[:n]]
        titles = [
            f"{rows[i]['label']}, not {answer.label}\n({answer.score:.2f}) row {rows[i]['row']}"
            for i, answer in zip(wrong, answers, strict=False)
        ]
        heats = [saliency(self.model, x, self.labels.index(p.label)) for x, p in zip(tensors, answers, strict=True)]
        return error_sheet([self.vision.transform.shown(x) for x in tensors], titles, heats, caption)

    def save(self, folder: str | Path) -> Path:
        """Save the model as a folder that `from_pretrained` and `transformers.pipeline` load; `loading_code` says how.

        Returns:
            The folder.
        """
        return save_vision_model(self.vision, folder, self.name)

    def loading_code(self, folder: str | Path) -> str:
        """The lines of Python that use a saved model without this package."""
        return loading_code(self.vision, folder)

    def _transform(self) -> ImageTransform:
        return replace(self.vision.transform, augment=self.augment)

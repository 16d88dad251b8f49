# Exported from nbs/35_image_segmentation.py: edit the lesson, then run `make export`.
"""A class for every pixel: masks that stay exact, a loss and a score of what was labelled, errors you can see."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from ftnb.data import Batches, Splits
from ftnb.metrics import Metrics
from ftnb.pretrained import refuse_untrained, trained_labels
from ftnb.segmentation.checks import median_side
from ftnb.segmentation.examples import SegmentationExamples, add_legend, overlay, wrong_pixels
from ftnb.segmentation.masks import IGNORE_INDEX, ClassTable, Color
from ftnb.segmentation.models import load_segmentation_model, start_from_shares
from ftnb.segmentation.sources import Classes, load_segmentation_splits
from ftnb.step import Batch, Learner
from ftnb.tasks.display import TextTable
from ftnb.tasks.text_classification import evaluating
from ftnb.transforms import ImageTransform
from ftnb.vision.examples import first_batch, picture_rows, picture_sheet
from ftnb.vision.images import read_image
from ftnb.vision.models import VisionModel, save_vision_model
from ftnb.widgets.figure import Picture

__all__ = [
    "logits_of",
    "enlarge",
    "pixel_cross_entropy",
    "segmentation_loss",
    "stack_pixels",
    "counted_pixels",
    "class_iou",
    "MeanIoU",
    "PixelAccuracy",
    "segmentation_metrics",
    "confusion_of",
    "PredictedMask",
    "ImageSegmentation",
]


def logits_of(outputs: Any) -> Tensor:
    """The logits, shape (batch, classes, height, width), of what a model of either library gave, in float32."""
    logits: Tensor = outputs["out"] if "out" in outputs else outputs["logits"]
    return logits.float()


def enlarge(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits at another size (height, width), by bilinear interpolation."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return nn.functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of the pixels that count; 0 if none does.

    Args:
        logits: shape (batch, classes, height, width).
        labels: shape (batch, height, width), 255 where a pixel does not count.
    """
    total = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


def segmentation_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy over the batch's pixels that count, and the logits at the masks' size.

    A single photo in training goes through the model twice: some decoders shrink a map to one value, of which
    BatchNorm cannot take a variance.

    Args:
        model: takes photos of shape (batch, 3, height, width).
        batch: "pixel_values" of that shape and "labels" of shape (batch, height, width).
    """
    x, labels = batch["pixel_values"], batch["labels"]
    alone = model.training and len(x) == 1
    logits = logits_of(model(torch.cat([x, x]) if alone else x))[: len(x)]
    logits = enlarge(logits, labels.shape[-2:])
    return pixel_cross_entropy(logits, labels), logits


def stack_pixels(examples: list[dict[str, Any]]) -> Batch:
    """Examples of `SegmentationExamples` as one batch, with the number of pixels that count."""
    batch: Batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
    if "labels" in batch:
        batch["num_pixels"] = int((batch["labels"] != IGNORE_INDEX).sum())
    return batch


def counted_pixels(batch: Batch) -> int:
    """The weight of a batch: how many pixels its loss is the mean of."""
    return int(batch["num_pixels"])


def class_iou(confusion: Tensor) -> Tensor:
    """The intersection over union of each class; NaN for a class that does not occur.

    Args:
        confusion: pixels by true class (rows) and predicted class (columns), shape (classes, classes).

    Source: Everingham et al. (2015), "The PASCAL visual object classes challenge: a retrospective", section 4.
    """
    right, truth, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    iou = right / (truth + predicted - right).clamp(min=1)
    return torch.where(truth > 0, iou, torch.nan)


class MeanIoU(MulticlassConfusionMatrix):
    """The mean of `class_iou` over the classes that occur, from counts over all pictures."""

    def compute(self) -> Tensor:
        """A number between 0 and 1."""
        return class_iou(super().compute()).nanmean()


class PixelAccuracy(MulticlassConfusionMatrix):
    """The share of the counted pixels whose class is right."""

    def compute(self) -> Tensor:
        """A number between 0 and 1."""
        confusion = super().compute().double()
        return confusion.diagonal().sum() / confusion.sum().clamp(min=1)


def segmentation_metrics(num_labels: int) -> Metrics:
    """Mean IoU (the main metric) and pixel accuracy, for logits at the size of the labels; 255 does not count."""
    kinds: dict[str, Any] = {"num_classes": num_labels, "ignore_index": IGNORE_INDEX, "validate_args": False}
    collection = MetricCollection({"mean_iou": MeanIoU(**kinds), "pixel_accuracy": PixelAccuracy(**kinds)})
    return Metrics(collection, lambda logits, batch: (logits.argmax(1), batch["labels"]), main="mean_iou")


def confusion_of(metrics: Metrics) -> Tensor:
    """The confusion matrix that `segmentation_metrics` have counted, shape (classes, classes), on the CPU."""
    counts: Any = metrics.collection["mean_iou"].confmat
    return counts.cpu()


@dataclass(frozen=True)
class PredictedMask:
    """What a model says about a photo's pixels, at the photo's own size.

    Args:
        classes: class indices, uint8, shape (height, width).
        probability: of that class in each pixel, float32, shape (height, width).
        labels: the classes' names.
    """

    classes: NDArray[np.uint8]
    probability: NDArray[np.float32]
    labels: tuple[str, ...]

    def shares(self) -> dict[str, float]:
        """The share of the photo that each predicted class covers, the largest first."""
        counts = np.bincount(self.classes.ravel(), minlength=len(self.labels)) / self.classes.size
        return {self.labels[i]: float(counts[i]) for i in np.argsort(-counts) if counts[i] > 0}

    def __str__(self) -> str:
        return ", ".join(f"{label} {share:.1%}" for label, share in self.shares().items())


@dataclass
class ImageSegmentation:
    """Photos with a class for every pixel, and a model with a decoder for them.

    Args:
        vision: the model, its transform and its classes.
        splits: the rows, with the columns "image", "mask", "pixels" and "row".
        table: what the values of the masks mean, in the order of the model's outputs; None without data.
        augment: what changes at random in training; see `ftnb.transforms.AUGMENTATIONS`.
        warnings: what checks and loading found.
    """

    vision: VisionModel
    splits: Splits
    table: ClassTable | None = None
    augment: str = "none"
    warnings: list[str] = field(default_factory=list)

    name: ClassVar[str] = "image-segmentation"
    options: ClassVar[tuple[str, ...]] = ("image_size", "augment")

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        classes: Classes | None = None,
        ignore: Sequence[int | Color] | None = None,
        image_size: int | None = None,
        augment: str = "none",
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "ImageSegmentation":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: a folder of photos and masks, or whatever else `ftnb.segmentation.sources.read_segmentation` takes.
            model: whatever `ftnb.segmentation.models.load_segmentation_model` takes.
            columns: role ("image", "mask") → column name, where the data is a table.
            classes: class name → value (or colour) in the masks, a list of names, or a file of them.
            ignore: values (or colours) of pixels that do not count.
            image_size: side of the model's input in pixels; None is what the checkpoint was made for or, for a
                backbone without a decoder, about the side of the photos, at most 512.
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
        splits, table = load_segmentation_splits(
            data,
            classes=classes,
            ignore=ignore,
            columns=columns,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            seed=seed,
        )
        vision = load_segmentation_model(
            model,
            table.names,
            scratch=scratch,
            seed=seed,
            image_size=image_size,
            picture_size=median_side(splits.train["image"][:]),
        )
        task = cls(vision, splits, table.reordered(vision.labels), augment, [*splits.notices, *vision.notices])
        places = [table.names.index(label) for label in vision.labels]
        pixels = np.asarray(splits.train["pixels"][:]).sum(0)[places]
        start_from_shares(vision, (pixels / pixels.sum()).tolist())
        return task

    @classmethod
    def from_saved(cls, folder: str | Path) -> "ImageSegmentation":
        """A task without data around a trained model, for predictions.

        Raises:
            ModelError: if there is no such model, or its decoder was never trained.
        """
        vision = load_segmentation_model(str(folder), trained_labels(folder))
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
            batch_size: photos per batch.
            seed: of the order of the photos.
            num_workers: processes that decode and make batches; 0 means this one.
        """
        return Learner(
            model=self.model,
            train=self.batches("train", batch_size, train=True, shuffle=True, seed=seed, num_workers=num_workers),
            valid=self.batches("valid", batch_size, num_workers=num_workers),
            loss=segmentation_loss,
            metrics=self.metrics(),
            weight=counted_pixels,
            new_parameters=self.vision.new_parameters,
        )

    def examples(self, split: str, train: bool = False) -> SegmentationExamples:
        """A split's photos and masks as tensors, augmented if `train`.

        Raises:
            DataError: if there is no such split.
        """
        return SegmentationExamples(self.splits.named(split), self._transform(), self.table, train=train)

    def batches(self, split: str, batch_size: int, *, train: bool = False, **kinds: Any) -> Batches:
        """A split in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        return Batches(self.examples(split, train), self.collate, batch_size, **kinds)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Stack examples; all have the model's input size."""
        return stack_pixels(examples)

    def metrics(self) -> Metrics:
        """Mean IoU over the classes that occur, and pixel accuracy."""
        return segmentation_metrics(len(self.labels))

    def predict(self, images: Sequence[Any], batch_size: int = 8) -> list[PredictedMask]:
        """A class for every pixel of photos, at their own size.

        Args:
            images: a list of paths, PIL images, arrays or encoded bytes (for a single one, a list of one).
            batch_size: photos per batch.

        Raises:
            DataError: if `images` is no list, or one of them cannot be read.
        """
        rows = picture_rows(images)
        if len(rows) == 0:
            return []
        examples = SegmentationExamples(rows, self._transform())
        return [self._answer(logits) for logits in self._full_size_logits(examples, batch_size)]

    def evaluate(self, split: str = "test", batch_size: int = 8) -> dict[str, float]:
        """Loss, mean IoU, pixel accuracy and the IoU of each class, in float32 and at the masks' own size.

        Raises:
            DataError: if there is no such split.
        """
        metrics, loss, pixels = self._count(split, batch_size)
        per_class = class_iou(confusion_of(metrics)).tolist()
        found = {f"iou {name}": round(iou, 6) for name, iou in zip(self.labels, per_class, strict=True) if iou == iou}
        return {"loss": loss / max(1, pixels), **metrics.compute(), **found}

    def per_class(self, split: str = "valid") -> TextTable:
        """For each class its share of the pixels, its IoU, and how much of it was found and was right, worst first.

        Raises:
            DataError: if there is no such split.
        """
        metrics, _, _ = self._count(split, 8)
        confusion = confusion_of(metrics).double()
        iou, truth, predicted, right = class_iou(confusion), confusion.sum(1), confusion.sum(0), confusion.diagonal()
        occurs = [i for i in range(len(self.labels)) if truth[i] > 0]
        rows = [
            (
                self.labels[i],
                f"{truth[i] / truth.sum():.1%}",
                f"{iou[i]:.2f}",
                f"{right[i] / truth[i]:.2f}",
                f"{right[i] / predicted[i]:.2f}" if predicted[i] else "–",
            )
            for i in sorted(occurs, key=lambda i: float(iou[i]))
        ]
        columns = ("class", "pixels", "IoU", "found (recall)", "right (precision)")
        return TextTable(columns, rows, f"{split}, the worst first; classes that occur.")

    def show_batch(self, n: int = 6) -> Picture:
        """The first photos of the first training batch as the model sees them, their masks over them."""
        batch = first_batch(self.learner(batch_size=max(1, n)))
        masks = [mask.numpy().astype(np.uint8) for mask in batch["labels"][:n]]
        photos = [self.vision.transform.shown(photo) for photo in batch["pixel_values"][:n]]
        clear = self._clear()
        below = [overlay(photo, mask, len(self.labels), clear) for photo, mask in zip(photos, masks, strict=True)]
        size = " × ".join(map(str, batch["pixel_values"].shape[2:]))
        caption = f"As the model sees them: {size} pixels, augmentation {self.augment!r}."
        titles = ["photo"] * len(photos) + ["mask"] * len(photos)
        sheet = picture_sheet([*photos, *below], titles, caption, columns=len(photos))
        return add_legend(sheet, self.labels, masks, clear)

    def show_prediction(self, image: Any) -> Picture:
        """A photo, and what the model says about its pixels.

        Args:
            image: a path, a PIL image, an array or encoded bytes.

        Raises:
            DataError: if it cannot be read.
        """
        (predicted,) = self.predict([image])
        photo, clear = np.asarray(read_image(image)), self._clear()
        below = overlay(photo, predicted.classes, len(self.labels), clear)
        sheet = picture_sheet([photo, below], ["photo", "predicted"], str(predicted), columns=2, side=2.4)
        return add_legend(sheet, self.labels, [predicted.classes], clear)

    def show_errors(self, n: int = 4, split: str = "valid") -> Picture:
        """The photos of a split with the lowest mean IoU: photo, truth, prediction, and which pixels are wrong.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split)
        answers = [self._answer(logits) for logits in self._full_size_logits(examples)]
        scores = [self._score(answer.classes, examples.mask(i)) for i, answer in enumerate(answers)]
        worst = sorted(range(len(answers)), key=lambda i: scores[i])[: max(1, n)]
        sheet, titles, masks, clear, number = [], [], [], self._clear(), len(self.labels)
        for i in worst:
            photo, truth, predicted = np.asarray(examples.picture(i)), examples.mask(i), answers[i].classes
            wrong = (truth != predicted) & (truth != IGNORE_INDEX)
            sheet += [photo, overlay(photo, truth, number, clear), overlay(photo, predicted, number, clear)]
            sheet.append(wrong_pixels(photo, truth, predicted))
            name = Path(str(examples.rows[i]["row"])).name
            titles += [f"row {name}", "truth", f"predicted, IoU {scores[i]:.2f}", f"{wrong.mean():.1%} wrong"]
            masks += [truth, predicted]
        caption = f"The {len(worst)} of {len(answers)} {split} photos with the lowest mean IoU."
        return add_legend(picture_sheet(sheet, titles, caption, columns=4), self.labels, masks, clear)

    def save(self, folder: str | Path) -> Path:
        """Save the model as a folder; a transformers model loads with `from_pretrained` and `transformers.pipeline`.

        Returns:
            The folder.
        """
        return save_vision_model(self.vision, folder, self.name)

    def _full_size_logits(self, examples: SegmentationExamples, batch_size: int = 8) -> Iterator[Tensor]:
        """Logits of shape (classes, height, width) at each photo's own size, on the model's device."""
        device = next(self.model.parameters()).device
        plain = SegmentationExamples(examples.rows, examples.transform)
        place = 0
        for batch in Batches(plain, stack_pixels, batch_size).epoch():
            with evaluating(self.model):
                logits = logits_of(self.model(batch["pixel_values"].to(device)))
            for of_photo in logits:
                photo = examples.picture(place)
                yield enlarge(of_photo[None], (photo.height, photo.width))[0]
                place += 1

    def _answer(self, logits: Tensor) -> PredictedMask:
        probability, classes = logits.softmax(0).max(0)
        return PredictedMask(classes.byte().cpu().numpy(), probability.cpu().numpy(), tuple(self.labels))

    def _count(self, split: str, batch_size: int) -> tuple[Metrics, float, int]:
        examples, metrics = self.examples(split), self.metrics().to(next(self.model.parameters()).device)
        loss, pixels = 0.0, 0
        for i, logits in enumerate(self._full_size_logits(examples, batch_size)):
            labels = torch.from_numpy(examples.mask(i)).long()[None].to(logits.device)
            number = int((labels != IGNORE_INDEX).sum())
            loss, pixels = loss + pixel_cross_entropy(logits[None], labels).item() * number, pixels + number
            metrics.update(logits[None], {"labels": labels})
        return metrics, loss, pixels

    def _score(self, predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        counted, number = truth != IGNORE_INDEX, len(self.labels)
        pairs = truth[counted].astype(np.int64) * number + predicted[counted]
        confusion = torch.from_numpy(np.bincount(pairs, minlength=number**2).reshape(number, number))
        return float(class_iou(confusion).nanmean())

    def _clear(self) -> int | None:
        """The class that pictures leave without colour: one that has more than half of the pixels."""
        pixels = np.asarray(self.splits.train["pixels"][:])[:, :-1].sum(0)
        return int(pixels.argmax()) if pixels.max() > 0.5 * pixels.sum() else None

    def _transform(self) -> ImageTransform:
        return replace(self.vision.transform, augment=self.augment)

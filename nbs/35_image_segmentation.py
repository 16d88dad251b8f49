# %% [markdown]
# # Semantic segmentation
#
# > A class for every pixel: masks that stay exact, a loss and a score of what was labelled, errors you can see.
#
# At the end you can bring your own photos and masks into a training, say what a reported IoU counts and what it leaves out, and see which pixels are wrong. Runs in about 25 s on a CPU.

# %%
#| default_exp tasks.image_segmentation

# %%
#| export
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

# %%
import tempfile

import matplotlib.pyplot as plt
from PIL import Image
from torch.nn import functional as F
from transformers import pipeline

from ftnb.builtin.scenes import digit_scenes
from ftnb.pretrained import quiet_transformers
from ftnb.train import Training

# %% [markdown]
# ## A mask is a picture of class numbers
#
# A mask has the size of its photo, and each of its pixels holds the number of a class. The built-in scenes have eleven: 0 is the ground, 1 to 10 are the digits 0 to 9. One number is special: 255 means *nobody says what this is*, and such pixels count neither in the loss nor in the score.

# %%
labels = ["ground", *"0123456789"]
scenes = digit_scenes("train", 40)
photos = [np.array(scene["image"]) for scene in scenes]
masks = [np.array(scene["mask"]) for scene in scenes]
coloured = [overlay(photo, mask, len(labels), clear=0, strength=1.0) for photo, mask in zip(photos[:3], masks[:3], strict=True)]
pairs = [picture for pair in zip(photos[:3], coloured, strict=True) for picture in pair]
add_legend(picture_sheet(pairs, ["photo", "mask"] * 3), labels, masks[:3], clear=0)

# %% [markdown]
# **The first trap.** A photo is resized by blending neighbours. A mask must not be: halfway between class 0 and class 10 lies class 5, which is not in the picture. How many pixels get such a class?

# %%
def invented_share(how: Image.Resampling, side: int = 100) -> float:
    """The share of pixels whose class, after resizing, is none of the original mask."""
    resized = [np.array(Image.fromarray(mask).resize((side, side), how)) for mask in masks]
    return float(np.mean([~np.isin(small, np.unique(mask)) for small, mask in zip(resized, masks, strict=True)]))

invented = {how.name: invented_share(how) for how in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)}
on_digits = float(np.mean([mask > 0 for mask in masks]))
invented, on_digits

# %%
assert invented["NEAREST"] == 0 and invented["BILINEAR"] > 0.25 * on_digits

# %% [markdown]
# Set against the share of pixels that belong to a digit at all, that is a lot, and nothing crashes. JPEG does the same to a mask that is saved in it. The checks before training therefore look at every value of every mask, and the transform moves masks by the nearest neighbour:

# %%
torch.random.manual_seed(0)
moved = ImageTransform(100, 100, augment="shift")(scenes[0]["image"], mask=scenes[0]["mask"], train=True)
moved["mask"].shape, moved["mask"].unique().tolist()

# %%
assert set(moved["mask"].unique().tolist()) <= {*np.unique(masks[0]).tolist(), 255}

# %% [markdown]
# The random shift brought in pixels from outside the photo; they are 255, because there nothing can be known.
#
# ## The loss
#
# For each pixel $i$ a model gives logits $z_i$, and the mask a class $y_i$. With $V = \{i : y_i \neq 255\}$, the pixels that count, the loss is the cross-entropy
#
# $$L = -\frac{1}{|V|}\sum_{i \in V} \log \frac{e^{z_{i,y_i}}}{\sum_c e^{z_{i,c}}} .$$
#
# A network computes its maps at a fraction of the photo's size, often a quarter. *Logits* may be blended, classes may not: so the logits are enlarged to the mask, never the mask reduced to the logits.

# %%
#| export
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

# %% [markdown]
# What the model says about ignored pixels changes nothing, neither in the loss nor in the gradient:

# %%
torch.random.manual_seed(0)
z = torch.randn(2, 3, 4, 4, requires_grad=True)
y = torch.randint(0, 3, (2, 4, 4))
y[:, 0] = 255
loss = pixel_cross_entropy(z, y)
loss.backward()
other = z.detach().clone()
other[:, :, 0] += 100 * torch.randn(2, 3, 4)
loss.item(), pixel_cross_entropy(other, y).item(), z.grad[:, :, 0].abs().max().item()

# %%
assert abs(pixel_cross_entropy(other, y).item() - loss.item()) < 1e-6 and z.grad[:, :, 0].abs().max() == 0

# %% [markdown]
# A mean has a weight: the number of its terms. Two micro-batches with different numbers of counted pixels give the loss of the whole only if each is weighted by that number. The learner of this task says it, so that accumulated gradients are those of one large batch.

# %%
#| export
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

# %%
halves = [(z[:1].detach(), y[:1].clone()), (z[1:].detach(), y[1:].clone())]
halves[1][1][:, 1:3] = 255  # in the second, fewer pixels count
whole = pixel_cross_entropy(torch.cat([a for a, _ in halves]), torch.cat([b for _, b in halves]))
means = torch.stack([pixel_cross_entropy(a, b) for a, b in halves])
weights = torch.tensor([(b != 255).sum() for _, b in halves], dtype=torch.float)
whole.item(), means.mean().item(), ((means * weights).sum() / weights.sum()).item()

# %%
torch.testing.assert_close(whole, (means * weights).sum() / weights.sum())
assert abs(means.mean() - whole) > 1e-3

# %% [markdown]
# ## The score
#
# The share of right pixels deceives: most pixels are ground. Per class, the **intersection over union** compares where the class is and where it was predicted,
#
# $$\mathrm{IoU}_c = \frac{TP_c}{TP_c + FP_c + FN_c} ,$$
#
# and the *mean IoU* averages over the classes, rare ones as much as the ground. All three counts come from the confusion matrix, whose entry $(a, b)$ says how many pixels of class $a$ were predicted as $b$. It is summed over all pictures first. A class that no mask holds has no IoU and is left out of the mean.

# %%
#| export
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

# %% [markdown]
# What does a model score that says "ground" everywhere?

# %%
truth = torch.from_numpy(np.stack(masks)).long()

def scores(predicted: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    metrics = segmentation_metrics(len(labels))
    metrics.update(F.one_hot(predicted, len(labels)).movedim(-1, 1), {"labels": truth})
    return metrics.compute()

all_ground = scores(torch.zeros_like(truth), truth)
all_ground, scores(truth, truth)

# %%
assert all_ground["pixel_accuracy"] > 0.9 and all_ground["mean_iou"] < 0.1

# %% [markdown]
# **The ignored border.** Where exactly an object ends, annotators do not agree. PASCAL VOC therefore leaves a band of 255 around every object. That is fair, and it is worth knowing what it forgives. We predict every digit one pixel too fat, and score it with and without a band:

# %%
def fattened(masks: torch.Tensor, pixels: int = 1) -> torch.Tensor:
    """Masks whose objects have grown by some pixels."""
    grown = F.max_pool2d(masks[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0].long()
    return torch.where(masks > 0, masks, grown)

fat = fattened(truth)
with_band = torch.where(fat != truth, 255, truth)
exact, forgiving = scores(fat, truth)["mean_iou"], scores(fat, with_band)["mean_iou"]
exact, forgiving

# %%
assert exact < 0.75 and forgiving == 1.0

# %% [markdown]
# ## The task
#
# The task has the shape of the ones before: `prepare` reads photos and masks, looks into every mask, loads a model and puts a decoder on it where it has none. Two things are its own. Masks differ in size, so `evaluate` and `predict` enlarge the logits to each photo's own size and compare there; in training, validation runs at the model's input size, which is faster and differs a little. And errors are shown where they are: on the pixels.

# %%
#| export
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

# %% [markdown]
# ## From start to end
#
# To keep it short we segment three of the ten digits, in small scenes that hold no others. `classes` says what the masks' values mean: 0 is the ground, a digit $d$ has the value $d + 1$.

# %%
values = {"ground": 0, "0": 1, "1": 2, "4": 5}

def scenes_of(split: str, number: int, seed: int) -> list[dict]:
    """Scenes of 32 × 32 pixels that hold only the digits in `values`."""
    drawn = digit_scenes(split, 9 * number, seed=seed, size=32)
    return [scene for scene in drawn if set(scene["labels"]) <= set(values)][:number]

data = {"train": scenes_of("train", 96, 0), "valid": scenes_of("valid", 24, 0), "test": scenes_of("test", 80, 0)}
task = ImageSegmentation.prepare(data, "builtin:resnet-glyphs", classes=values, image_size=48)
task.show_batch(4)

# %%
task.warnings, len(task.vision.new_parameters), task.evaluate("valid")["mean_iou"]

# %% [markdown]
# The built-in ResNet has learned to tell printed characters apart. It has no decoder, so it gets a small UPerNet, which merges its maps from coarse to fine and starts from random numbers; only its output layer begins with the classes' shares of the pixels, so that no step is spent on learning that most of a picture is ground.

# %%
training = Training(task.learner(batch_size=8), lr=5e-3, num_epochs=8, device="cpu", eval_every=24)
for event in training:
    if event.kind == "evaluated":
        print(f"step {event.step}: loss {event.loss:.3f}, mean IoU {event.metrics['mean_iou']:.3f}, pixels right {event.metrics['pixel_accuracy']:.3f}")
training.load_best()
after = task.evaluate("test")
after

# %% [markdown]
# Compare it with the best constant mask, which has the ground's IoU for one class and 0 for the others:

# %%
pixels = np.asarray(task.splits.test["pixels"][:]).sum(0)[:-1]
constant = (pixels / pixels.sum()).max() / len(task.labels)
constant, after["mean_iou"]

# %%
assert after["mean_iou"] > constant + 0.25

# %% [markdown]
# Per class, the numbers say which; the pictures say where. Look whether a whole object has the wrong class, or only its rim: the first asks for more examples, the second for a finer map.

# %%
task.per_class("test")

# %%
task.show_errors(2, split="test")

# %% [markdown]
# The saved folder is in transformers' layout. Its pipeline gives one picture for each class, at the photo's own size:

# %%
folder = task.save(tempfile.mkdtemp())
photo = data["test"][0]["image"]
with quiet_transformers():
    parts = pipeline("image-segmentation", str(folder), device="cpu")(photo, subtask="semantic")
answer = task.predict([photo])[0]
theirs = np.zeros(answer.classes.shape, dtype=int)
for part in parts:
    theirs[np.array(part["mask"]) > 127] = task.labels.index(part["label"])
[part["label"] for part in parts], str(answer), float((theirs == answer.classes).mean())

# %%
assert (theirs == answer.classes).mean() > 0.98

# %% [markdown]
# ## The experiment: what pretraining is worth with few scenes
#
# **Claim.** With 48 labelled scenes a backbone that knows printed characters segments handwritten digits better than the same network from random weights. Same steps, same rate (chosen on other scenes: seeds 1 to 3 of the validation digits), three fresh seeds, each with its own scenes, tested on 80 others. The claim would be refuted if the two groups overlapped.

# %%
seeds = (1000, 1001, 1002)
few_scenes = {seed: scenes_of("train", 48, seed) for seed in seeds}

def run(seed: int, scratch: bool) -> float:
    few = {"train": few_scenes[seed], "valid": data["valid"], "test": data["test"]}
    task = ImageSegmentation.prepare(few, "builtin:resnet-glyphs", classes=values, image_size=48, scratch=scratch, seed=seed)
    for _ in Training(task.learner(batch_size=8, seed=seed), lr=3e-3, num_epochs=8, seed=seed, device="cpu", eval_every=1000):
        pass
    return task.evaluate("test")["mean_iou"]

results = {name: [run(seed, scratch) for seed in seeds] for name, scratch in (("from scratch", True), ("pretrained", False))}
{name: [round(iou, 3) for iou in of] for name, of in results.items()}

# %%
fig, ax = plt.subplots(figsize=(4.5, 2.2), dpi=80, layout="constrained")
for row, (name, of) in enumerate(results.items()):
    ax.plot(of, [row] * len(of), "o", alpha=0.7)
ax.axvline(constant, color="gray", linestyle=":")
ax.annotate("ground everywhere", (constant, 1.35), xytext=(4, 0), textcoords="offset points", fontsize=8, color="gray", va="center")
ax.set(yticks=range(len(results)), yticklabels=list(results), ylim=(-0.6, 1.7), xlabel="mean IoU on 80 test scenes (48 to train on)", ylabel="weights")
plt.show()

# %%
assert max(results["from scratch"]) < min(results["pretrained"])

# %% [markdown]
# ## The story: an IoU that forgave every false alarm
#
# In February 2023 somebody who trained a SegFormer on medical images reported that the `mean_iou` of a widely used library "computes recall instead of IoU" (huggingface/evaluate#421; then open-mmlab/mmsegmentation#2655, whose code it followed). A library's author answered that with `ignore_index=0` all pixels whose *true* class is 0, often the background, are left out, and that this is what ignoring means. Both were right. A false alarm is a background pixel that was called an object; if background pixels do not count, no false alarm does, and what remains of
#
# $$\frac{TP}{TP + FP + FN} \quad\text{is}\quad \frac{TP}{TP + FN} ,$$
#
# the recall. We let every digit grow by ten pixels, and ignore the ground:

# %%
bloated = fattened(truth, 10)
ground_ignored = torch.where(truth == 0, 255, truth)
honest, flattering = scores(bloated, truth)["mean_iou"], scores(bloated, ground_ignored)["mean_iou"]
coloured = [overlay(photos[0], mask, len(labels), clear=0, strength=1.0) for mask in (masks[0], bloated[0].numpy())]
picture_sheet([photos[0], *coloured], ["photo", "truth", f"predicted: IoU {honest:.2f},\nground ignored {flattering:.2f}"], side=1.7)

# %%
assert flattering == 1.0 and honest < 0.25

# %% [markdown]
# So read what a reported IoU ignores before you compare it. The ground is a class; what nobody labelled is not. That is why `ignore` is named here by the person who knows the masks, and what it leaves out is counted in the warnings.
#
# ## Exercises
#
# **1 (easy).** Medical papers report the Dice score, $2TP / (2TP + FP + FN)$. Write `class_dice` from a confusion matrix, and find how it follows from the IoU alone.

# %% tags=["exercise"]
def class_dice(confusion: torch.Tensor) -> torch.Tensor:
    ...  # your code here

# %% tags=["solution"]
def class_dice(confusion: torch.Tensor) -> torch.Tensor:
    iou = class_iou(confusion)
    return 2 * iou / (1 + iou)

# %%
confusion = torch.tensor([[50, 5, 0], [10, 30, 0], [0, 0, 0]])
dice = class_dice(confusion)
assert torch.allclose(dice[:2], torch.tensor([100 / 115, 60 / 75], dtype=torch.float64)) and dice[2].isnan()

# %% [markdown]
# **2 (medium).** A network that computes at a quarter of the size cannot draw a line of one pixel. Write `ceiling`: the mean IoU of the masks themselves when they are reduced by a factor and enlarged again, both by the nearest neighbour. It bounds what a coarse map can reach without blending.

# %% tags=["exercise"]
def ceiling(masks: torch.Tensor, factor: int) -> float:
    ...  # your code here; `scores` compares two stacks of masks

# %% tags=["solution"]
def ceiling(masks: torch.Tensor, factor: int) -> float:
    height, width = masks.shape[1:]
    small = F.interpolate(masks[:, None].float(), size=(height // factor, width // factor), mode="nearest-exact")
    return scores(F.interpolate(small, size=(height, width), mode="nearest-exact")[:, 0].long(), masks)["mean_iou"]

# %%
bounds = {factor: round(ceiling(truth, factor), 2) for factor in (1, 2, 4, 8)}
assert bounds[1] == 1.0 and bounds[2] > bounds[4] > bounds[8]
bounds

# %% [markdown]
# **3 (medium).** The mean of each photo's IoU is another number than the IoU of all photos together: a photo with a tiny object counts as much as one with a large object. Write `mean_of_photos`: the mean over photos of their own mean IoU.

# %% tags=["exercise"]
def mean_of_photos(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    ...  # your code here

# %% tags=["solution"]
def mean_of_photos(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    return float(np.mean([scores(p[None], t[None])["mean_iou"] for p, t in zip(predicted, truth, strict=True)]))

# %%
one_by_one, together = mean_of_photos(fat, truth), scores(fat, truth)["mean_iou"]
assert abs(mean_of_photos(truth, truth) - 1) < 1e-9 and abs(one_by_one - together) > 0.02
one_by_one, together

# %% [markdown]
# ## Summary
# - A mask holds class numbers: resize it by the nearest neighbour, store it as PNG, and blend logits instead.
# - The loss is the mean over the pixels that count; their number is the weight of a batch.
# - Pixel accuracy is the ground's share in disguise. IoU counts misses and false alarms for each class, over all pictures together.
# - What is ignored is forgiven: a band around objects forgives inexact outlines, an ignored ground forgives every false alarm.
# - `show_errors` puts the worst pictures first.
#
# **What next:** your own folder of photos and masks: `ImageSegmentation.prepare("my_folder", "torchvision:lraspp_mobilenet_v3_large", classes={…}, ignore=(255,))`, or with a network the SegFormer `"nvidia/mit-b0"`. **Sources:** Long, Shelhamer and Darrell (2015), "Fully convolutional networks for semantic segmentation"; Xiao et al. (2018), "Unified perceptual parsing for scene understanding" (UPerNet); Xie et al. (2021), "SegFormer"; Howard et al. (2019), "Searching for MobileNetV3" (LR-ASPP); Lin et al. (2017), "Focal loss for dense object detection"; Everingham et al. (2015), "The PASCAL visual object classes challenge: a retrospective"; huggingface/evaluate#421, open-mmlab/mmsegmentation#2655.

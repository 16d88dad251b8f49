# Exported from nbs/34_object_detection.py: edit the lesson, then run `make export`.
"""What is where? Boxes, how a detector learns them, and how its answers are counted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou, nms

from ftnb.data import Batches, Splits
from ftnb.detection.average_precision import Boxes, detection_metrics, match_boxes
from ftnb.detection.boxes import check_format
from ftnb.detection.examples import BoxExamples, Drawn, box_sheet, stack_boxes
from ftnb.detection.models import Detector, load_detector, loading_code, save_detector
from ftnb.detection.sources import load_detection_splits
from ftnb.devices import to_device
from ftnb.metrics import Metrics
from ftnb.pretrained import refuse_untrained, trained_labels
from ftnb.step import Batch, Learner
from ftnb.tasks.text_classification import evaluating
from ftnb.transforms import ImageTransform
from ftnb.vision.examples import first_batch, picture_rows
from ftnb.vision.images import read_image
from ftnb.widgets.figure import Picture

__all__ = [
    "answering",
    "detection_loss",
    "detect",
    "BoxErrors",
    "sort_errors",
    "Detection",
    "SAME_PLACE",
    "ERROR_COLORS",
    "num_boxes",
    "ObjectDetection",
]


@contextmanager
def answering(model: nn.Module, *, losses: bool) -> Iterator[None]:
    """Let a torchvision detector answer with losses or with detections, whatever mode its layers are in.

    Only the detector's own modules look at this switch; BatchNorm and dropout stay in the mode they are in. Afterwards
    everything is as it was.
    """
    own = [m for m in model.modules() if type(m).__module__.startswith("torchvision.models.detection")]
    modes = [module.training for module in own]
    for module in own:
        module.training = losses
    try:
        yield
    finally:
        for module, mode in zip(own, modes, strict=True):
            module.training = mode


def detection_loss(model: nn.Module, batch: Batch, detector: Detector) -> tuple[Tensor, Any]:
    """The loss of a batch and, in eval mode, the detections.

    Args:
        model: the detector's model.
        batch: "pixel_values" of shape (batch, 3, height, width), and "targets": per picture "boxes", shape (n, 4), in
            pixels of the input, and "labels", shape (n,).
        detector: what belongs to the model.

    Returns:
        A scalar, and per picture "boxes", "scores" and "labels"; None instead in training mode, where nobody asks.
    """
    pictures, targets = batch["pixel_values"], batch["targets"]
    if detector.processor is not None:
        outputs = model(pixel_values=pictures, labels=[_as_detr(target, pictures) for target in targets])
        return outputs.loss.float(), None if model.training else _from_detr(outputs, pictures, detector)
    shifted = [{"boxes": t["boxes"], "labels": t["labels"] + detector.first_label} for t in targets]
    with _same_samples(model, pictures.device), answering(model, losses=True):
        parts: dict[str, Tensor] = model(list(pictures), shifted)
    total = torch.stack([part.float() for part in parts.values()]).sum()
    return total, None if model.training else detect(model, pictures, detector)


@contextmanager
def _same_samples(model: nn.Module, device: torch.device) -> Iterator[None]:
    """In eval mode, let a detector that samples anchors for its loss draw the same ones each time."""
    if model.training:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def detect(model: nn.Module, pictures: Tensor, detector: Detector) -> list[dict[str, Tensor]]:
    """Per picture "boxes" (n, 4) in pixels of the input, "scores" (n,) and "labels" (n,), the surest first.

    Args:
        model: the detector's model, in eval mode.
        pictures: shape (batch, 3, height, width).
        detector: what belongs to the model.
    """
    if detector.processor is not None:
        return _from_detr(model(pixel_values=pictures), pictures, detector)
    with answering(model, losses=False):
        found: list[dict[str, Tensor]] = model(list(pictures))
    return [{**f, "boxes": f["boxes"].float(), "labels": f["labels"] - detector.first_label} for f in found]


def _as_detr(target: Boxes, pictures: Tensor) -> dict[str, Tensor]:
    height, width = pictures.shape[-2:]
    size = torch.tensor([width, height, width, height], device=pictures.device)
    return {"class_labels": target["labels"], "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / size}


def _from_detr(outputs: Any, pictures: Tensor, detector: Detector) -> list[dict[str, Tensor]]:
    sizes = [tuple(pictures.shape[-2:])] * len(pictures)
    found = detector.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    orders = [f["scores"].argsort(descending=True) for f in found]
    return [{key: f[key][order] for key in f} for f, order in zip(found, orders, strict=True)]


@dataclass(frozen=True)
class BoxErrors:
    """What became of a picture's detections and objects; positions in the lists given.

    Attributes:
        right: detections that found an object of their class.
        wrong_class: detections on an object of another class.
        misplaced: detections near an object of their class that overlap it too little.
        double: detections of an object that was found already.
        ground: detections where nothing is.
        missed: objects that no detection found, under any name.
    """

    right: list[int]
    wrong_class: list[int]
    misplaced: list[int]
    double: list[int]
    ground: list[int]
    missed: list[int]

    @property
    def kinds(self) -> dict[str, list[int]]:
        """The same by what to call them; those of "missed" are positions of objects, all others of detections."""
        return {
            "right": self.right,
            "missed": self.missed,
            "wrong class": self.wrong_class,
            "misplaced": self.misplaced,
            "double": self.double,
            "nothing there": self.ground,
        }

    @property
    def count(self) -> int:
        """How many errors there are."""
        return sum(len(positions) for kind, positions in self.kinds.items() if kind != "right")


def sort_errors(detected: Boxes, truth: Boxes, min_iou: float = 0.5, near: float = 0.1) -> BoxErrors:
    """Say of each detection whether it is right or in which way it is wrong.

    Args:
        detected: "boxes", "scores" and "labels" of one picture.
        truth: "boxes" and "labels" of the same.
        min_iou: the least overlap with which an object counts as found.
        near: the least overlap with which a detection was meant for an object.

    Source: the kinds follow Bolya et al. (2020), "TIDE: a general toolbox for identifying object detection errors".
    """
    iou = box_iou(detected["boxes"].float(), truth["boxes"].float()).cpu().numpy()  # (detections, objects)
    names, true_names = detected["labels"].cpu().numpy(), truth["labels"].cpu().numpy()
    order = detected["scores"].argsort(descending=True).tolist()
    same = names[:, None] == true_names[None, :]
    hits = match_boxes(np.where(same, iou, -1.0)[order], [min_iou])[0] if len(order) else []
    right = [i for i, hit in zip(order, hits, strict=True) if hit]
    kinds: dict[str, list[int]] = {"wrong_class": [], "misplaced": [], "double": [], "ground": []}
    for i in [i for i in order if i not in right]:
        mine, others = (np.where(of, iou[i], 0).max(initial=0) for of in (same[i], ~same[i]))
        tests = {"double": mine >= min_iou, "wrong_class": others >= min_iou, "misplaced": mine >= near, "ground": True}
        kinds[next(kind for kind, true in tests.items() if true)].append(i)
    touched = iou[[*right, *kinds["wrong_class"]]].max(axis=0, initial=0) >= min_iou
    return BoxErrors(right=right, missed=[j for j, hit in enumerate(touched) if not hit], **kinds)


@dataclass(frozen=True)
class Detection:
    """One object that was found: its class, how sure the model is, and [x1, y1, x2, y2] in pixels of the picture."""

    label: str
    score: float
    box: tuple[float, float, float, float]


SAME_PLACE = 0.7  # boxes that overlap more than this are told as one
ERROR_COLORS = {
    "right": "#7fd17f",
    "missed": "#ffd24d",
    "wrong class": "#ff7ad9",
    "misplaced": "#66b3ff",
    "double": "#c9a0ff",
    "nothing there": "#ff5a4d",
}


def num_boxes(batch: Batch) -> int:
    """How many objects a batch holds, at least 1: what the loss of a batch is a mean over."""
    return max(1, sum(len(target["labels"]) for target in batch["targets"]))


@dataclass
class ObjectDetection:
    """Pictures with boxes, each of a class, and a model that finds them.

    Args:
        detector: the model, its transform and its classes.
        splits: the rows, with the columns "image", "boxes", "labels" and "row".
        augment: what changes at random in training; see `ftnb.transforms.AUGMENTATIONS`.
        warnings: what checks and loading found.
    """

    detector: Detector
    splits: Splits
    augment: str = "none"
    warnings: list[str] = field(default_factory=list)

    name: ClassVar[str] = "object-detection"
    options: ClassVar[tuple[str, ...]] = ("box_format", "image_size", "augment")

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        box_format: str | None = None,
        image_size: int | None = None,
        augment: str = "none",
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "ObjectDetection":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: whatever `ftnb.detection.sources.read_detection` takes: a folder of COCO, Pascal VOC or YOLO
                annotations, a COCO file, rows in memory, "builtin:digit-scenes".
            model: whatever `ftnb.detection.models.load_detector` takes.
            columns: role ("image", "boxes", "labels") → column name, for tables and rows in memory.
            box_format: how the numbers of a box are meant, for example "xywh"; None is what the source's format says.
            image_size: side of the model's input in pixels, to which pictures are squeezed; None is the model's own.
            augment: "none", "shift", "flip" or "strong".
            seed: of the new parameters and of the cut into splits.
            scratch: random weights in place of the pretrained ones.
            valid_fraction: share of the training pictures to validate on where there is no validation split.
            test_fraction: the same for the test; 0 means no test.

        Raises:
            DataError: if the data cannot be read or cannot be right.
            ModelError: if the model cannot be loaded or does not fit.
        """
        ImageTransform(image_size or 224, image_size or 224, augment=augment)  # says at once what cannot be
        if box_format is not None:
            check_format(box_format)
        splits = load_detection_splits(
            data,
            box_format=box_format,
            columns=columns,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            seed=seed,
        )
        assert splits.label_names is not None
        detector = load_detector(model, splits.label_names, scratch=scratch, seed=seed, image_size=image_size)
        return cls(detector, splits, augment, [*splits.notices, *detector.notices])

    @classmethod
    def from_saved(cls, folder: str | Path) -> "ObjectDetection":
        """A task without data around a trained model, for predictions.

        Raises:
            ModelError: if there is no such model, or its head was never trained.
        """
        detector = load_detector(str(folder), trained_labels(folder))
        refuse_untrained(folder, detector.new_parameters)
        nothing = Dataset.from_dict({})
        return cls(detector, Splits(nothing, nothing))

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.detector.model

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return self.detector.labels

    def learner(self, batch_size: int = 8, seed: int = 0, num_workers: int = 0) -> Learner:
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
            loss=self.loss,
            metrics=self.metrics(),
            weight=num_boxes,
            new_parameters=self.detector.new_parameters,
        )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """The loss of a batch and, in eval mode, the detections; see `detection_loss`."""
        return detection_loss(model, batch, self.detector)

    def examples(self, split: str, train: bool = False) -> BoxExamples:
        """A split's pictures and boxes as tensors, augmented if `train`.

        Raises:
            DataError: if there is no such split.
        """
        return BoxExamples(self.splits.named(split), self._transform(), self.labels, train=train)

    def batches(self, split: str, batch_size: int, *, train: bool = False, **kinds: Any) -> Batches:
        """A split in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        return Batches(self.examples(split, train), self.collate, batch_size, **kinds)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Examples as one batch; see `ftnb.detection.examples.stack_boxes`."""
        return stack_boxes(examples)

    def metrics(self) -> Metrics:
        """COCO's mean average precision, over IoU 0.50 to 0.95 ("map", the main metric) and at 0.50 and 0.75."""
        return detection_metrics(len(self.labels))

    def predict(self, images: Sequence[Any], batch_size: int = 16, *, min_score: float = 0.5) -> list[list[Detection]]:
        """Find objects in pictures.

        Args:
            images: a list of paths, PIL images, arrays or encoded bytes (for a single one, a list of one).
            batch_size: pictures per batch.
            min_score: the least score of a detection to be told.

        Returns:
            For each picture its detections, the surest first. Where the model gives one place several names, the surest
            is told.

        Raises:
            DataError: if `images` is no list, or one of them cannot be read.
        """
        rows = picture_rows(images)
        if len(rows) == 0:
            return []
        examples = BoxExamples(rows, self._transform(), self.labels)
        found = self._detections(examples, min_score, batch_size)
        return [self._told(detected) for detected in found]

    def _told(self, detected: Boxes) -> list[Detection]:
        columns = (detected["labels"].tolist(), detected["scores"].tolist(), detected["boxes"].tolist())
        return [
            Detection(self.labels[label], score, (box[0], box[1], box[2], box[3]))
            for label, score, box in zip(*columns, strict=True)
        ]

    def _detections(
        self, examples: BoxExamples, min_score: float, batch_size: int = 16, same_place: float = SAME_PLACE
    ) -> list[dict[str, Tensor]]:
        """Detections in pixels of the pictures themselves, on the CPU."""
        device, found = next(self.model.parameters()).device, []
        with evaluating(self.model):
            for batch in Batches(examples, self.collate, batch_size).epoch():
                found += detect(self.model, batch["pixel_values"].to(device), self.detector)
        sure = [{key: value.cpu()[(f["scores"] >= min_score).cpu()] for key, value in f.items()} for f in found]
        if self.detector.processor is None:  # the DETR family gives a place one name by itself
            firsts = [nms(f["boxes"], f["scores"], same_place) for f in sure]
            sure = [{key: value[first] for key, value in f.items()} for f, first in zip(sure, firsts, strict=True)]
        return [{**f, "boxes": f["boxes"] * self._scale(examples, i)} for i, f in enumerate(sure)]

    def _scale(self, examples: BoxExamples, i: int) -> Tensor:
        picture, t = examples.pictures.picture(i), self.detector.transform
        return torch.tensor([picture.width / t.width, picture.height / t.height] * 2)

    def evaluate(self, split: str = "test", batch_size: int = 16) -> dict[str, float]:
        """Loss and metrics on a split, computed in float32.

        Raises:
            DataError: if there is no such split.
        """
        batches, device = self.batches(split, batch_size), next(self.model.parameters()).device
        metrics, total, weight = self.metrics().to(device), 0.0, 0
        with evaluating(self.model):
            for batch in batches.epoch():
                on_device, of_batch = to_device(batch, device), num_boxes(batch)
                loss, found = self.loss(self.model, on_device)
                total, weight = total + loss.item() * of_batch, weight + of_batch
                metrics.update(found, on_device)
        return {"loss": total / weight, **metrics.compute()}

    def show_batch(self, n: int = 4) -> Picture:
        """The first pictures of the first training batch as the model sees them, augmentation and boxes included."""
        batch = first_batch(self.learner(batch_size=max(1, n)))
        pictures = [self.detector.transform.shown(picture) for picture in batch["pixel_values"][:n]]
        pairs = [zip(t["boxes"].tolist(), t["labels"].tolist(), strict=True) for t in batch["targets"][:n]]
        drawn = [[Drawn(box, self.labels[label], "#ffffff") for box, label in of] for of in pairs]
        titles = [f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}" for boxes in drawn]
        size = " × ".join(map(str, batch["pixel_values"].shape[2:]))
        caption = f"As the model sees them: {size} pixels, augmentation {self.augment!r}."
        return box_sheet(pictures, titles, drawn, caption)

    def show_prediction(self, image: Any, *, min_score: float = 0.5) -> Picture:
        """A picture with what the model finds in it.

        Args:
            image: a path, a PIL image, an array or encoded bytes.
            min_score: the least score of a detection to be drawn.

        Raises:
            DataError: if it cannot be read.
        """
        (found,) = self.predict([image], min_score=min_score)
        drawn = [Drawn(list(of.box), f"{of.label} {of.score:.2f}", "#ffffff") for of in found]
        told = f"{len(found) or 'nothing'} found, score from {min_score:g}."
        return box_sheet([np.asarray(read_image(image))], [""], [drawn], told, columns=1)

    def errors(
        self, split: str = "valid", min_score: float = 0.5, *, same_place: float = SAME_PLACE
    ) -> list[BoxErrors]:
        """For each picture of a split what its detections are; see `sort_errors`.

        Args:
            split: "train", "valid" or "test".
            min_score: the least score of a detection that counts.
            same_place: of detections that overlap more than this, whatever their names, the surest counts.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split)
        found = self._detections(examples, min_score, same_place=same_place)
        return [sort_errors(f, _truth(examples, i)) for i, f in enumerate(found)]

    def show_errors(self, n: int = 4, split: str = "valid", *, min_score: float = 0.5) -> Picture:
        """The pictures of a split with the most errors: what was missed, and which detections are wrong, and how.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split)
        found = self._detections(examples, min_score)
        errors = [sort_errors(f, _truth(examples, i)) for i, f in enumerate(found)]
        worst = sorted((i for i in range(len(errors)) if errors[i].count), key=lambda i: -errors[i].count)[:n]
        drawn = [self._drawn_errors(found[i], _truth(examples, i), errors[i]) for i in worst]
        titles = [f"row {examples.rows[i]['row']}: {errors[i].count} errors" for i in worst]
        sums = {kind: sum(len(e.kinds[kind]) for e in errors) for kind in ERROR_COLORS}
        told = ", ".join(f"{count} {kind}" for kind, count in sums.items())
        caption = f"{split}, score from {min_score:g}: {told}."
        legend = {kind: (color, kind == "missed") for kind, color in ERROR_COLORS.items()}
        return box_sheet([np.asarray(examples.pictures.picture(i)) for i in worst], titles, drawn, caption, legend)

    def _drawn_errors(self, found: Boxes, truth: Boxes, errors: BoxErrors) -> list[Drawn]:
        drawn = []
        for kind, positions in errors.kinds.items():
            of, color = (truth if kind == "missed" else found), ERROR_COLORS[kind]
            for i in positions:
                score = "" if kind == "missed" else f" {float(found['scores'][i]):.2f}"
                text = self.labels[int(of["labels"][i])] + score
                drawn.append(Drawn(of["boxes"][i].tolist(), text, color, dashed=kind == "missed"))
        return drawn

    def save(self, folder: str | Path) -> Path:
        """Save the model as a folder that `from_saved` loads, and for the DETR family also `transformers.pipeline`.

        Returns:
            The folder.
        """
        return save_detector(self.detector, folder)

    def loading_code(self, folder: str | Path) -> str:
        """The lines of Python that use a saved model, without this package where that is possible."""
        return loading_code(self.detector, folder)

    def _transform(self) -> ImageTransform:
        return replace(self.detector.transform, augment=self.augment)


def _truth(examples: BoxExamples, i: int) -> dict[str, Tensor]:
    """The boxes of one picture in its own pixels."""
    return {"boxes": torch.tensor(examples.boxes[i]).reshape(-1, 4), "labels": examples.label_ids[i]}

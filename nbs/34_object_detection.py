# %% [markdown]
# # Object detection
#
# > What is where? Boxes, how a detector learns them, and how its answers are counted.
#
# At the end you can bring your own boxes in whatever format they are, fine-tune a detector on them, read its average precision and tell its kinds of error apart. Runs in about 30 s on a CPU.

# %%
#| default_exp tasks.object_detection

# %%
#| export
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

# %%
import matplotlib.pyplot as plt
from torchvision.ops import sigmoid_focal_loss

from ftnb.detection.average_precision import average_precision
from ftnb.detection.boxes import convert_boxes
from ftnb.builtin.scenes import digit_scenes
from ftnb.strategies import Head
from ftnb.tables import DataError
from ftnb.train import Training

# %% [markdown]
# ## Overlap
#
# A classifier is right or wrong; a box is never exactly right. What counts is how far the box found, $A$, and the true box, $B$, cover the same pixels: the intersection over the union,
#
# $$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|} .$$
#
# It is 1 for equal boxes and 0 for boxes apart, and does not depend on the picture's size. Half the size of a box in either direction is already much:

# %%
def iou(a: list[float], b: list[float]) -> float:
    """Overlap of two boxes [x1, y1, x2, y2]."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

# %%
true = [20.0, 20.0, 40.0, 40.0]
{shift: round(iou(true, [20.0 + shift, 20.0, 40.0 + shift, 40.0]), 3) for shift in (0, 1, 2, 5, 10)}

# %%
others = torch.rand(100, 4) * 30
others[:, 2:] += others[:, :2] + 1
mine = torch.tensor([iou(true, other) for other in others.tolist()])
torch.testing.assert_close(mine, box_iou(torch.tensor([true]), others)[0])

# %% [markdown]
# ## Four numbers, but which four?
#
# A box is four numbers, and nothing in them says which. COCO writes left, top, width and height; Pascal VOC left, top, right and bottom; YOLO the centre and the size, as shares of the picture; the inputs of DETR are like YOLO's and its outputs like VOC's. The same numbers in three readings:

# %%
scene = digit_scenes("train", 1, seed=4)[0]
numbers = convert_boxes(scene["boxes"], "xyxy", "xywh")  # as COCO would write these boxes
readings = {name: convert_boxes(numbers, name, "xyxy").tolist() for name in ("xywh", "xyxy", "cxcywh")}
box_sheet(
    [np.asarray(scene["image"])] * 3, [f"read as {name}" for name in readings],
    [[Drawn(box, "", "#ffd24d") for box in boxes if box[2] > box[0] and box[3] > box[1]] for boxes in readings.values()],
    "The same numbers, written as xywh (a box turned inside out is not drawn).", columns=3,
)

# %% [markdown]
# Read as a centre, every box moves up and left by half its size. Its overlap with the truth is then always the same, a quarter of the box out of seven:

# %%
moved = [iou(a, b) for a, b in zip(readings["cxcywh"], scene["boxes"], strict=True)]
[round(value, 3) for value in moved]

# %%
assert all(abs(value - 1 / 7) < 1e-6 for value in moved)

# %% [markdown]
# Loading looks at all boxes of a set together. Where they leave their pictures or have no area in the format they are said to have, and fit in another, it says so before anything is trained:

# %%
scenes = digit_scenes("train", 60, seed=4)
as_coco = [{**row, "boxes": convert_boxes(row["boxes"], "xyxy", "xywh").tolist()} for row in scenes]
try:
    load_detection_splits(as_coco, box_format="cxcywh")
except DataError as error:
    print(error)

# %%
same = load_detection_splits(as_coco, box_format="xywh", valid_fraction=0.2)
assert sorted(map(len, same.train["boxes"][:] + same.valid["boxes"][:])) == sorted(len(row["boxes"]) for row in scenes)

# %% [markdown]
# ## Counting answers: average precision
#
# A detector gives any number of boxes, each with a score. Sort them by score, and let each take the object of its class that it overlaps most, if the IoU reaches a threshold and no surer box has taken it before. Then, going down the list, precision is the share of boxes so far that found something, recall the share of objects found so far. Average precision is the area under the curve of the one over the other, where precision at recall $r$ is the best one at $r$ or above:
#
# $$\mathrm{AP} = \frac{1}{101} \sum_{r \in \{0, 0.01, \dots, 1\}} \max_{r' \ge r} \mathrm{precision}(r') .$$
#
# COCO's figure, called "map" below, is the mean of AP over all classes and over ten thresholds, 0.50, 0.55 … 0.95. Five answers for three objects, the surest first:

# %%
found = np.array([True, True, False, True, False])
recall = np.cumsum(found) / 3
precision = np.cumsum(found) / np.arange(1, 6)
best = np.maximum.accumulate(precision[::-1])[::-1]
fig, ax = plt.subplots(figsize=(4.6, 2.8), dpi=80, layout="constrained")
ax.plot(recall, precision, "o-", label="answers, from the surest on")
ax.step(np.r_[0, recall], np.r_[best[0], best], where="pre", label="best precision at this recall or above")
ax.set(xlabel="recall", ylabel="precision", ylim=(0, 1.1), title=f"average precision {average_precision(found, 3):.3f}")
ax.legend(frameon=False, fontsize=8)
plt.show()

# %%
assert abs(average_precision(found, 3) - (67 * 1 + 34 * 0.75) / 101) < 1e-9

# %% [markdown]
# Up to a recall of 2/3 (67 of the 101 points) precision is 1, from there on 3/4. A wrong box below the last right one costs nothing, so a low score threshold never hurts this figure; for people it does.

# %% [markdown]
# ## How a detector learns
#
# A dense detector such as FCOS answers at every place of its feature maps: a score for each class, and the distances to the four edges of the object there. Nearly all places show no object, and the sum of many small losses drowns the few that matter. The focal loss turns down what is already right: with $p_t$ the probability given to the truth,
#
# $$\mathrm{FL}(p_t) = -\alpha_t\,(1 - p_t)^{\gamma} \log p_t, \qquad \gamma = 2 .$$
#
# Take 3,000 places of which 10 show an object, and a detector that is fairly sure of the ground ($p = 0.05$ for an object) and unsure of the objects ($p = 0.3$). The share of the loss that the ground makes up:

# %%
targets = torch.zeros(3000)
targets[:10] = 1
logits = torch.logit(torch.where(targets == 1, 0.3, 0.05))
ground_share = {}
for name, gamma in (("cross-entropy", 0.0), ("focal loss", 2.0)):
    losses = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    ground_share[name] = round((losses[targets == 0].sum() / losses.sum()).item(), 3)
ground_share

# %%
assert ground_share["cross-entropy"] > 0.9 and ground_share["focal loss"] < 0.1

# %% [markdown]
# The DETR family goes another way. A fixed number $N$ of queries answers, the truth is filled up with "nothing" to the same number, and the loss takes the cheapest pairing $\sigma$ of the two:
#
# $$L = \sum_{i=1}^{N} \Big[ -\log p_{\sigma(i)}(c_i) + [c_i \ne \text{nothing}]\; L_\text{box}\big(b_i, \hat b_{\sigma(i)}\big) \Big], \qquad \sigma = \arg\min_\sigma \text{cost} .$$
#
# So each object has one query, and no clean-up of double boxes is needed.
#
# One thing stands in the way of a validation loss: a torchvision detector returns its losses in training mode only and its detections in evaluation mode only, and training mode would move BatchNorm's statistics. But the switch is read by the detector's own modules, not by the layers. So that switch alone is turned:

# %%
#| export
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

# %%
detector = load_detector("builtin:resnet-glyphs", list("0123456789"), scratch=True)
rows = load_detection_splits(scenes, valid_fraction=0.2).valid
batch = stack_boxes([BoxExamples(rows, detector.transform, detector.labels)[i] for i in range(4)])
before = {name: value.clone() for name, value in detector.model.state_dict().items()}
with evaluating(detector.model):
    loss, detections = detection_loss(detector.model, batch, detector)
loss, len(detections), sorted(detections[0])

# %%
after = detector.model.state_dict()
assert any("running_mean" in name for name in after) and all(torch.equal(after[name], before[name]) for name in after)

# %% [markdown]
# ## Kinds of error
#
# One number does not say what to do. A detection can be wrong in five ways: on an object but under another name; on the right object but too loosely; on an object that was found already; on nothing at all; and an object can be missed. The remedies differ: more examples of a class, better boxes, a lower threshold for doubles (below), pictures without objects.

# %%
#| export
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

# %%
truth = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]), "labels": torch.tensor([0, 1, 1])}
answers = {
    "boxes": torch.tensor([[0.0, 0, 10, 9], [1, 0, 10, 10], [20, 0, 30, 10], [60, 0, 70, 10]]),
    "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]), "labels": torch.tensor([0, 0, 0, 1]),
}
kinds = sort_errors(answers, truth).kinds
kinds

# %%
assert kinds == {"right": [0], "missed": [2], "wrong class": [2], "misplaced": [], "double": [1], "nothing there": [3]}

# %% [markdown]
# ## One object for the task
#
# It has the shape of the other tasks. The model can be one of torchvision's detectors, a model of the DETR family, or the body of any convolutional classifier: a light pyramid then hands what its coarse maps recognise down to the fine ones, and a new head answers at every place.

# %%
#| export
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

# %% [markdown]
# ## From start to end
#
# The built-in scenes hold one to three handwritten digits (the images of lesson 33); the body was pretrained on printed glyphs and stays frozen here, so that only pyramid and head train.

# %%
task = ObjectDetection.prepare("builtin:digit-scenes", "builtin:resnet-glyphs", augment="shift")
task.show_batch(3)

# %%
sizes = [sum(p.numel() for name, p in task.model.named_parameters() if name.startswith("backbone.body.") == body) for body in (True, False)]
{"warnings": task.warnings, "levels at every … pixels": task.model.backbone.strides, "frozen, trained parameters": sizes}

# %%
training = Training(task.learner(batch_size=8), Head(), lr=5e-3, num_epochs=12, eval_every=1000, device="cpu")
for event in training:
    if event.kind == "evaluated":
        print(f"step {event.step}: loss {event.loss:.2f}", event.metrics)

# %%
measured = task.evaluate("test")
measured

# %%
assert measured["map_50"] > 0.2

# %% [markdown]
# The pictures with most errors, on which each detection is drawn by its kind:

# %%
task.show_errors(3)

# %%
[(d.label, round(d.score, 2), [round(x) for x in d.box]) for d in task.predict([task.splits.test[0]["image"]], min_score=0.4)[0]]

# %% [markdown]
# ## The trap at the end: non-maximum suppression
#
# Neighbouring places find the same object. Of boxes of one class that overlap more than a threshold, only the surest is kept; that is non-maximum suppression (NMS). Too high a threshold leaves doubles, too low a one deletes true neighbours, which our digits hardly have: they do not cover each other. We measure it on the validation split:

# %%
thresholds = (0.1, 0.4, 0.6, 0.8, 1.0)
maps, doubles = [], []
for threshold in thresholds:
    task.model.nms_thresh = threshold
    maps.append(task.evaluate("valid")["map"])
    doubles.append(sum(len(errors.double) for errors in task.errors("valid", min_score=0.3, same_place=1.0)))
task.model.nms_thresh = 0.6  # torchvision's for FCOS
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), dpi=80, layout="constrained")
left.plot(thresholds, maps, "o-")
left.set(xlabel="NMS threshold (IoU)", ylabel="map", ylim=(0, 1.15 * max(maps)))
right.plot(thresholds, doubles, "o-", color="#d55e00")
right.set(xlabel="NMS threshold (IoU)", ylabel="double detections")
plt.show()

# %%
{threshold: (round(value, 3), count) for threshold, value, count in zip(thresholds, maps, doubles, strict=True)}

# %%
assert doubles[-1] > 20 * max(1, doubles[1]) and maps[-1] < 0.9 * max(maps)

# %% [markdown]
# ## The experiment: is the pretrained body worth it?
#
# **Claim.** With 40 scenes, a detector on the frozen pretrained body is better than the same architecture from random weights after the same number of steps. From random weights everything trains, since there is nothing to keep. The rate is 5e-3 for both; on two other seeds 2e-3 changed neither's place. Three fresh seeds draw scenes, order and new weights. The claim would be refuted if one of the three went the other way.

# %%
def map_after_training(seed: int, scratch: bool) -> float:
    data = {"train": digit_scenes("train", 40, seed=seed), "valid": digit_scenes("test", 40, seed=seed)}
    task = ObjectDetection.prepare(data, "builtin:resnet-glyphs", scratch=scratch, seed=seed)
    training = Training(task.learner(seed=seed), None if scratch else Head(), lr=5e-3, num_epochs=10, eval_every=1000, seed=seed, device="cpu")
    for _ in training:
        pass
    return task.evaluate("valid")["map_50"]

# %%
seeds = (2001, 2002, 2003)
results = {name: [map_after_training(seed, scratch) for seed in seeds] for name, scratch in (("pretrained body", False), ("from scratch", True))}
results

# %%
fig, ax = plt.subplots(figsize=(5.6, 2.4), dpi=80, layout="constrained")
for i, (name, values) in enumerate(results.items()):
    ax.plot(values, [i] * len(values), "o", markersize=9, alpha=0.7)
ax.set(yticks=range(2), yticklabels=results, ylim=(-0.5, 1.5), xlim=(0, None), xlabel="map at IoU 0.50 on 40 test scenes", title="40 scenes to learn from, three seeds")
plt.show()

# %%
assert all(a > b for a, b in zip(results["pretrained body"], results["from scratch"], strict=True))

# %% [markdown]
# ## The story: a format in a docstring
#
# In August 2024 a reader of the object detection guide of transformers noticed that a function of its example says, in its documentation, that it takes boxes in "COCO format" and explains this as centre, width and height; COCO's format is left, top, width and height (huggingface/transformers#32835). Whoever believed the explanation, or mixed it up once on the way, got boxes that lie half their size too far up and left. Nothing crashes: the loss falls, and the validation, whose boxes are wrong in the same way, praises the model. We do it on purpose, cutting the moved boxes off at the edge as many loaders do in silence:

# %%
def moved_boxes(rows):
    moved = []
    for row in rows:
        boxes = convert_boxes(convert_boxes(row["boxes"], "xyxy", "xywh"), "cxcywh", "xyxy").clip(0, 64)
        keep = [i for i, (x1, y1, x2, y2) in enumerate(boxes) if x2 - x1 > 2 and y2 - y1 > 2]
        moved.append({"image": row["image"], "boxes": boxes[keep].tolist(), "labels": [row["labels"][i] for i in keep]})
    return moved

# %%
train, test = digit_scenes("train", 60), digit_scenes("valid", 40)
mistaken = ObjectDetection.prepare({"train": moved_boxes(train), "valid": moved_boxes(test), "test": test}, "builtin:resnet-glyphs")
for _ in Training(mistaken.learner(), Head(), lr=5e-3, num_epochs=10, eval_every=1000, device="cpu"):
    pass
praised, really = mistaken.evaluate("valid"), mistaken.evaluate("test")
{"validation, mistaken alike": praised["map_50"], "true boxes": really["map_50"]}

# %%
mistaken.show_errors(3, "test", min_score=0.4)

# %% [markdown]
# The digits are found, half their size away from where they are. Only looking shows it: `show_batch` before the training, and `show_errors` after it.

# %%
assert praised["map_50"] > 5 * really["map_50"]

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `yolo_line`: the line of a YOLO label file for a box in pixels, "class cx cy w h" with four decimals.

# %% tags=["exercise"]
def yolo_line(box: list[float], label: int, size: tuple[int, int]) -> str:
    ...  # your code here

# %% tags=["solution"]
def yolo_line(box: list[float], label: int, size: tuple[int, int]) -> str:
    numbers = convert_boxes([box], "xyxy", "cxcywhn", size)[0]
    return " ".join([str(label), *(f"{value:.4f}" for value in numbers)])

# %%
assert yolo_line([0, 0, 32, 64], 3, (64, 64)) == "3 0.2500 0.5000 0.5000 1.0000"

# %% [markdown]
# **2 (medium).** Write non-maximum suppression for boxes of one class: the positions that stay, the surest first.

# %% tags=["exercise"]
def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    ...  # your code here

# %% tags=["solution"]
def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    overlap, kept = box_iou(boxes, boxes), []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap[i, j] <= threshold for j in kept):
            kept.append(i)
    return kept

# %%
corners = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 20
corners[:, 2:] += corners[:, :2] + 5
sure = torch.linspace(0, 1, 50)
assert suppress(corners, sure, 0.4) == nms(corners, sure, 0.4).tolist()

# %% [markdown]
# **3 (hard).** A detector that gives every box twice, with the same score: what becomes of its average precision for ten objects, all found? Write `doubled_ap`, without a detector.

# %% tags=["exercise"]
def doubled_ap(num_objects: int) -> float:
    ...  # your code here

# %% tags=["solution"]
def doubled_ap(num_objects: int) -> float:
    return average_precision(np.tile([True, False], num_objects), num_objects)

# %%
assert 0.6 < doubled_ap(10) < 0.65

# %% [markdown]
# ## Summary
#
# - IoU says how well a box fits; average precision counts which boxes found an object, going from the surest down, over all classes and ten thresholds.
# - Four numbers do not say which four. Name the format, look at the boxes on the pictures, and let the loader compare it with the whole set.
# - The focal loss keeps the ground from drowning the objects; the set loss of DETR pairs queries and objects.
# - Sort the errors by kind before choosing a remedy; doubles are a matter of the NMS threshold.
# - With few pictures a pretrained body, kept frozen, is worth more than training everything.
#
# **What next:** lesson 35 (a class for every pixel). Real models to try: `torchvision:fasterrcnn_mobilenet_v3_large_320_fpn`, `torchvision:fcos_resnet50_fpn`, `facebook/detr-resnet-50`, `PekingU/rtdetr_r18vd`.
#
# **Sources:** Tian et al. (2019), "FCOS: fully convolutional one-stage object detection", arXiv:1904.01355. Lin et al. (2017), "Focal loss for dense object detection", arXiv:1708.02002. Lin et al. (2017), "Feature pyramid networks", arXiv:1612.03144. Carion et al. (2020), "End-to-end object detection with transformers", arXiv:2005.12872. Lin et al. (2014), "Microsoft COCO", arXiv:1405.0312, and the code of pycocotools. Bolya et al. (2020), "TIDE", arXiv:2008.08115. huggingface/transformers#32835.

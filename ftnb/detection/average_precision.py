"""COCO's mean average precision of boxes, in numpy: what `pycocotools` computes, without its compiled code.

Torchmetrics' own metric hands the work to `pycocotools` or `faster-coco-eval` and, since both print, replaces
`sys.stdout` of the whole process meanwhile: with a training in a thread, whatever another cell prints in that time is
lost. The rules fit on a page, and lesson 34 teaches them. A test compares this module with torchmetrics'.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchvision.ops import box_iou

from ftnb.metrics import Metrics

IOU_THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))  # 0.50, 0.55 … 0.95
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # of one class in one picture; the rest is not looked at

Boxes = Mapping[str, Tensor]


def match_boxes(iou: NDArray[Any], thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """Which detections find an object, for each threshold; an object is found once.

    Detections choose in the order given, each the object that it overlaps most among those still free.

    Args:
        iou: overlaps, shape (detections, objects), the most confident detection first.
        thresholds: the least overlap that counts.

    Returns:
        Shape (thresholds, detections).
    """
    num_detections, num_objects = iou.shape
    found = np.zeros((len(thresholds), num_detections), dtype=bool)
    if num_objects == 0:
        return found
    least = np.minimum(np.asarray(thresholds), 1 - 1e-10)[:, None]
    free = np.ones((len(thresholds), num_objects), dtype=bool)
    every = np.arange(len(thresholds))
    for i, row in enumerate(iou):
        open_to = np.where(free & (row >= least), row, -1.0)  # (thresholds, objects)
        best = num_objects - 1 - open_to[:, ::-1].argmax(axis=1)  # of equal overlaps the last one, as in pycocotools
        found[:, i] = open_to[every, best] >= 0
        free[every, best] &= ~found[:, i]
    return found


def average_precision(found: NDArray[Any], num_objects: int) -> float:
    """The mean precision over 101 evenly spaced recalls, each time the best precision at that recall or above.

    Args:
        found: whether each detection found an object, the most confident first.
        num_objects: how many there are to find, at least 1.

    Source: `COCOeval.accumulate` of pycocotools (Lin et al. 2014, "Microsoft COCO").
    """
    if len(found) == 0:
        return 0.0
    hits = np.cumsum(found)
    recall = hits / num_objects
    precision = hits / np.arange(1, len(found) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    reached = np.append(best_from_here, 0.0)[at]  # a recall that is never reached has precision 0
    return float(reached.mean())


class BoxAveragePrecision(Metric):
    """Mean average precision of boxes over classes: "map" over IoU 0.50 to 0.95, "map_50" and "map_75" at one.

    A class without any object in the data does not count. Boxes are [x1, y1, x2, y2] in any one unit.

    Args:
        num_classes: number of classes; labels are 0 to `num_classes` − 1.
    """

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]
    found: list[Tensor]
    num_objects: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for state in ("scores", "labels", "found"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        self.add_state("num_objects", default=torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, detections: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        """Count the pictures of a batch.

        Args:
            detections: per picture "boxes" (n, 4), "scores" (n,) and "labels" (n,).
            targets: per picture "boxes" (m, 4) and "labels" (m,).
        """
        for detected, target in zip(detections, targets, strict=True):
            classes = target["labels"].to(self.num_objects.device)
            self.num_objects += torch.bincount(classes, minlength=len(self.num_objects))
            self._match(detected, target)

    def _match(self, detected: Boxes, target: Boxes) -> None:
        iou = box_iou(detected["boxes"].float(), target["boxes"].float()).cpu().double().numpy()
        scores = detected["scores"].float().cpu().numpy()
        labels, truth = detected["labels"].cpu().numpy(), target["labels"].cpu().numpy()
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            mine = mine[np.argsort(-scores[mine], kind="stable")][:MAX_DETECTIONS]
            found = match_boxes(iou[mine][:, truth == label], IOU_THRESHOLDS)
            device = self.num_objects.device
            self.scores.append(torch.from_numpy(scores[mine]).to(device))
            self.labels.append(torch.from_numpy(labels[mine]).to(device))
            self.found.append(torch.from_numpy(found.T).to(device))

    def per_class(self) -> NDArray[np.float64]:
        """Average precision, shape (classes, thresholds); not a number where a class has no object."""
        counts = self.num_objects.cpu().numpy()
        table = np.full((len(counts), len(IOU_THRESHOLDS)), np.nan)
        scores, labels, found = (self._together(state) for state in (self.scores, self.labels, self.found))
        for label in np.flatnonzero(counts):
            mine = np.flatnonzero(labels == label) if len(labels) else np.zeros(0, dtype=int)
            mine = mine[np.argsort(-scores[mine], kind="stable")]
            for i in range(len(IOU_THRESHOLDS)):
                of_threshold = found[mine, i] if len(mine) else np.zeros(0, dtype=bool)
                table[label, i] = average_precision(of_threshold, int(counts[label]))
        return table

    @staticmethod
    def _together(state: list[Tensor] | Tensor) -> NDArray[Any]:
        # a list while counting on one process, one tensor when processes have been put together
        whole = state if isinstance(state, Tensor) else torch.cat(state) if state else torch.zeros(0)
        return whole.cpu().numpy()

    def compute(self) -> dict[str, Tensor]:
        """The three figures; 0 where nothing was there to find."""
        table = self.per_class()
        table = table[~np.isnan(table).any(axis=1)]
        columns = {"map": slice(None), "map_50": slice(0, 1), "map_75": slice(5, 6)}
        return {n: torch.tensor(table[:, c].mean() if len(table) else 0.0).float() for n, c in columns.items()}


def detection_metrics(num_classes: int) -> Metrics:
    """COCO's mean average precision (the main metric), and that at IoU 0.50 and 0.75 alone.

    Args:
        num_classes: number of classes, at least 1.

    Raises:
        ValueError: if there is no class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
    collection = MetricCollection({"map": BoxAveragePrecision(num_classes)})
    return Metrics(collection, lambda outputs, batch: (outputs, batch["targets"]), main="map")

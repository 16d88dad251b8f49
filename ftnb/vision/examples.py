"""Pictures of a split as examples for batches, and a sheet of pictures for people."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from matplotlib.axes import Axes

from ftnb.step import Batch, Learner
from ftnb.tables import DataError
from ftnb.transforms import ImageTransform
from ftnb.vision.images import read_image, stored_image
from ftnb.widgets.figure import Picture, font_families

KEEP_BYTES = 256 * 2**20  # decoded pictures that are kept in memory, so that the second epoch decodes nothing


class ImageExamples:
    """Rows with a picture; each is decoded, changed at random in training, and made a tensor when it is asked for.

    Args:
        rows: with the column "image".
        transform: from a picture to a tensor.
        train: whether to change pictures at random.
        targets: per row, what to learn; None for pictures without.

    Indexing gives {"pixel_values": float tensor of shape (3, height, width)} and, with targets, "labels".
    """

    def __init__(
        self, rows: Dataset, transform: ImageTransform, *, train: bool = False, targets: Sequence[Any] | None = None
    ) -> None:
        self.rows, self.transform, self.train, self.targets = rows, transform, train, targets
        self._kept: dict[int, Any] = {}
        self._room = KEEP_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, i: int) -> Any:
        """The decoded picture of one row, an RGB image of PIL."""
        if i in self._kept:
            return self._kept[i]
        image = read_image(self.rows[i]["image"], place=f"row {self.rows[i].get('row', i + 1)}")
        size = 3 * image.width * image.height
        if size <= self._room:
            self._kept[i], self._room = image, self._room - size
        return image

    def __getitem__(self, i: int) -> dict[str, Any]:
        example: dict[str, Any] = self.transform(self.picture(i), train=self.train)
        return example if self.targets is None else {**example, "labels": self.targets[i]}


def picture_rows(images: Sequence[Any]) -> Dataset:
    """Pictures that a person passes to `predict` as rows with the columns "image" and "row" (counted from 1).

    Raises:
        DataError: if it is a single picture and no list, or holds something that is none.
    """
    if isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Sequence):
        raise DataError(f"predict takes a list of pictures; got {type(images).__name__}. For one: predict([it]).")
    stored = [stored_image(image, None, f"picture {i}") for i, image in enumerate(images, start=1)]
    return Dataset.from_dict({"image": stored, "row": list(range(1, len(images) + 1))})


def first_batch(learner: Learner) -> Batch:
    """The first training batch, augmented as a training's is; whoever looks at it changes no training."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return next(iter(learner.train.epoch()))


def picture_sheet(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    caption: str = "",
    *,
    columns: int = 6,
    draw: Callable[[Axes, int], object] | None = None,
    side: float = 1.45,
) -> Picture:
    """A sheet of pictures, each with a title.

    Args:
        pictures: uint8 arrays of shape (height, width, 3).
        titles: what to write above each.
        caption: a sentence above the sheet.
        columns: pictures a row.
        draw: called with a picture's axes and number, to draw over it.
        side: inches for each picture.
    """
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    width = max(side * columns, 5.0 if caption else 0.0)
    figure = Picture(
        figsize=(width, rows * (side + 0.17 * lines) + 0.3), dpi=80, layout="constrained", facecolor="white"
    )
    if caption:
        figure.suptitle(caption, x=0.01, ha="left", fontsize=9, color="#333333", family=font_families())
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if i < len(pictures):
            axes.imshow(pictures[i], interpolation="nearest" if max(pictures[i].shape[:2]) <= 96 else "antialiased")
            axes.set_title(titles[i], fontsize=8, family=font_families(), color="#222222", pad=3)
            if draw is not None:
                draw(axes, i)
    return figure

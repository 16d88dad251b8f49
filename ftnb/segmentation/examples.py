"""Photos with masks as examples for batches, and masks as pictures for people."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from ftnb.segmentation.masks import IGNORE_INDEX, ClassTable, load_mask
from ftnb.transforms import ImageTransform
from ftnb.vision.examples import KEEP_BYTES, ImageExamples
from ftnb.widgets.figure import Picture, font_families

_COLORS = ["#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#008080"]
_MAX_LEGEND = 12


class SegmentationExamples:
    """Rows with a photo and its mask; both are decoded, and changed at random alike, when an example is asked for.

    Args:
        rows: with the columns "image" and, for a split with masks, "mask".
        transform: from a photo and its mask to tensors.
        table: what the masks' values mean; None leaves the masks out.
        train: whether to change photos and masks at random.

    Indexing gives {"pixel_values": float tensor of shape (3, height, width)} and, with a table, "labels": whole
    numbers of shape (height, width), 255 where a pixel does not count.
    """

    def __init__(
        self, rows: Dataset, transform: ImageTransform, table: ClassTable | None = None, *, train: bool = False
    ) -> None:
        self.rows, self.transform, self.table, self.train = rows, transform, table, train
        self._photos = ImageExamples(rows, transform)
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._room = KEEP_BYTES // 2

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, i: int) -> Image.Image:
        """The decoded photo of one row, in RGB."""
        photo: Image.Image = self._photos.picture(i)
        return photo

    def mask(self, i: int) -> NDArray[np.uint8]:
        """The class indices of one row at their own size, shape (height, width).

        Raises:
            ValueError: if these examples have no masks.
        """
        if self.table is None:
            raise ValueError("these examples have no masks; make them with a class table.")
        if i not in self._kept:
            mask = load_mask(self.rows[i]["mask"], self.table, f"mask of row {self.rows[i].get('row', i + 1)}")
            if mask.size > self._room:
                return mask
            self._kept[i], self._room = mask, self._room - mask.size
        return self._kept[i]

    def __getitem__(self, i: int) -> dict[str, Any]:
        if self.table is None:
            return self.transform(self.picture(i), train=self.train)
        found = self.transform(self.picture(i), mask=Image.fromarray(self.mask(i)), train=self.train)
        return {"pixel_values": found["pixel_values"], "labels": found["mask"]}


def class_colors(number: int) -> NDArray[np.uint8]:
    """A colour for each class, shape (number, 3); the first ten are told apart well, later ones go round the hues."""
    colors = [tuple(int(text[i : i + 2], 16) for i in (1, 3, 5)) for text in _COLORS]
    for i in range(len(colors), number):
        hue = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.25 * (i % 3))
        colors.append((round(255 * hue[0]), round(255 * hue[1]), round(255 * hue[2])))
    return np.array(colors[:number], dtype=np.uint8)


def overlay(
    picture: NDArray[np.uint8], mask: NDArray[Any], number: int, clear: int | None = None, strength: float = 0.75
) -> NDArray[np.uint8]:
    """A photo in grey with its mask's colours over it, so that a colour is the one of the legend.

    Args:
        picture: uint8, shape (height, width, 3).
        mask: class indices, shape (height, width); pixels that do not count become light grey.
        number: how many classes there are.
        clear: a class that gets no colour, usually the ground.
        strength: 1 hides the photo.
    """
    colors = np.full((256, 3), 225, dtype=np.float64)
    colors[:number] = class_colors(number)
    weights = np.full(256, 0.85)
    weights[:number] = strength
    if clear is not None:
        weights[clear] = 0.0
    share = weights[mask][..., None]
    grey = picture.mean(axis=2, keepdims=True)
    blended = grey * (1 - share) + colors[mask] * share
    return blended.round().astype(np.uint8)


def wrong_pixels(picture: NDArray[np.uint8], truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.uint8]:
    """The photo in pale grey, with pixels in red where truth and prediction differ and the pixel counts."""
    grey = 120 + picture.mean(axis=2, keepdims=True) / 2.2
    pale = np.repeat(grey, 3, axis=2).clip(0, 255).astype(np.uint8)
    pale[(truth != predicted) & (truth != IGNORE_INDEX)] = (214, 39, 40)
    return pale


def add_legend(figure: Picture, labels: Sequence[str], masks: Sequence[NDArray[Any]], clear: int | None) -> Picture:
    """Write below a sheet which colour is which class, for the classes that its masks hold."""
    held = np.unique(np.concatenate([np.unique(mask) for mask in masks])) if masks else np.array([], dtype=int)
    colors = class_colors(len(labels)) / 255
    shown = [int(i) for i in held if i < len(labels) and i != clear]
    patches = [Patch(color=tuple(colors[i]), label=labels[i]) for i in shown[:_MAX_LEGEND]]
    if clear is not None and clear in held:
        patches.insert(0, Patch(facecolor="white", edgecolor="#999999", label=f"{labels[clear]} (no colour)"))
    if IGNORE_INDEX in held:
        patches.append(Patch(color="#e1e1e1", label="does not count"))
    if len(shown) > _MAX_LEGEND:
        patches.append(Patch(color="white", label=f"and {len(shown) - _MAX_LEGEND} more"))
    if patches:
        figure.legend(
            handles=patches,
            loc="outside lower left",
            ncols=-(-len(patches) // -(-len(patches) // 6)),  # rows of equal length, at most six
            frameon=False,
            handlelength=1.0,
            columnspacing=1.2,
            prop={"size": 8, "family": font_families()},
        )
    return figure

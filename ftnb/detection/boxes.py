"""Boxes in the formats that people and tools write them in, as corners in pixels, or an error that says why not.

A box is four numbers, and nothing in them says which four. The names of the formats are torchvision's; an "n" at the
end stands for normalised: x in widths and y in heights of the picture, from 0 to 1.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ftnb.tables import DataError

Floats = NDArray[np.float64]

BOX_FORMATS = {
    "xyxy": "left, top, right, bottom in pixels",
    "xywh": "left, top, width, height in pixels",
    "cxcywh": "centre x, centre y, width, height in pixels",
    "xyxyn": "left, top, right, bottom from 0 to 1",
    "xywhn": "left, top, width, height from 0 to 1",
    "cxcywhn": "centre x, centre y, width, height from 0 to 1",
}

CHANGES = {
    "clipped": "stick out of their picture and are cut off at its edge",
    "no area": "have no width or no height and are left out",
}


def check_format(name: str) -> str:
    """A box format's name, if there is one of that name.

    Raises:
        DataError: if there is not.
    """
    if name not in BOX_FORMATS:
        known = "; ".join(f"{known!r}: {meaning}" for known, meaning in BOX_FORMATS.items())
        raise DataError(f"box_format {name!r} is unknown. There are {known}.")
    return name


def convert_boxes(boxes: ArrayLike, source: str, target: str, size: ArrayLike | None = None) -> Floats:
    """Write boxes in another format.

    Args:
        boxes: shape (n, 4).
        source: their format, a key of `BOX_FORMATS`.
        target: the format wanted.
        size: (width, height) of the picture in pixels, or one such pair per box, shape (n, 2); only needed between
            pixels and normalised numbers.

    Returns:
        The boxes, shape (n, 4); no box is checked or changed on the way.

    Raises:
        DataError: if a format is unknown or the size is needed and not there.
    """
    check_format(source), check_format(target)
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if source == target:
        return array.copy()
    first, second = array[:, :2], array[:, 2:]
    if source.startswith("xyxy"):
        low, high = first, second
    elif source.startswith("xywh"):
        low, high = first, first + second
    else:
        low, high = first - second / 2, first + second / 2
    if source.endswith("n") != target.endswith("n"):
        if size is None:
            raise DataError(
                f"from {source!r} to {target!r} the size of the picture is needed; pass size=(width, height)."
            )
        scale = np.asarray(size, dtype=np.float64)
        low, high = (low * scale, high * scale) if source.endswith("n") else (low / scale, high / scale)
    if target.startswith("xyxy"):
        return np.concatenate([low, high], axis=1)
    return np.concatenate([low if target.startswith("xywh") else (low + high) / 2, high - low], axis=1)


def fits(boxes: ArrayLike, sizes: ArrayLike, box_format: str) -> NDArray[np.bool_]:
    """Which boxes, read in a format, have an area and lie inside their picture (a pixel more is let pass).

    Args:
        boxes: shape (n, 4).
        sizes: (width, height) in pixels, for all boxes or per box, shape (n, 2).
        box_format: how to read them. Numbers of at most 1 do not fit a format in pixels: no object is that small.
    """
    numbers = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    size = np.broadcast_to(np.asarray(sizes, dtype=np.float64), (len(numbers), 2))
    corners = convert_boxes(numbers, box_format, "xyxy", size)
    low, high = corners[:, :2], corners[:, 2:]
    inside = (low >= -1).all(1) & (high <= size + 1).all(1) & (high > low).all(1)
    return np.asarray(inside if box_format.endswith("n") else inside & (numbers > 1).any(1))


def check_box_format(boxes: ArrayLike, sizes: ArrayLike, box_format: str, place: str) -> None:
    """Refuse a whole set of boxes that does not fit its format while another format fits.

    Args:
        boxes: all boxes of a split, shape (n, 4).
        sizes: the size of each box's picture, shape (n, 2).
        box_format: the format they are said to have.
        place: what to call the split in a message.

    Raises:
        DataError: if less than 90 % of the boxes fit and at least 99 % do in another format; those are named.
    """
    numbers = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    share = fits(numbers, sizes, check_format(box_format)).mean() if len(numbers) else 1.0
    if share >= 0.9:
        return
    better = [name for name in BOX_FORMATS if name != box_format and fits(numbers, sizes, name).mean() >= 0.99]
    if better:
        shown = ", ".join(f"{value:g}" for value in numbers[~fits(numbers, sizes, box_format)][0])
        named = " or ".join(f"{name!r} ({BOX_FORMATS[name]})" for name in better)
        raise DataError(
            f"{place}: read as {box_format!r} ({BOX_FORMATS[box_format]}), {1 - share:.0%} of the {len(numbers)} boxes "
            f"have no area or leave their picture, for example ({shown}). The numbers look like {named}. Pass "
            f"box_format={better[0]!r}."
        )


@dataclass
class BoxNotes:
    """What had to be done to boxes, counted, with the first place of each kind.

    Attributes:
        total: boxes looked at.
        counts: how many boxes, by a key of `CHANGES`.
        places: where the first one is.
    """

    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, place: str) -> None:
        """Count one box."""
        self.counts[what] += 1
        self.places.setdefault(what, place)

    def messages(self) -> list[str]:
        """One sentence for each kind: "2 of 90 boxes have no width or no height …, for example a.jpg, box 3."."""
        return [
            f"{count} of {self.total} boxes {CHANGES[what]}, for example {self.places[what]}."
            for what, count in sorted(self.counts.items())
        ]


def check_boxes(
    boxes: Sequence[Any],
    size: tuple[int, int],
    box_format: str = "xyxy",
    place: str = "picture",
    notes: BoxNotes | None = None,
) -> tuple[list[list[float]], list[int]]:
    """Check the boxes of one picture.

    A box that sticks out is cut off at the edge, one without any area is left out; both are counted.

    Args:
        boxes: one sequence of four numbers per box.
        size: (width, height) of the picture in pixels.
        box_format: how the numbers are meant.
        place: what to call the picture in a message.
        notes: counts what had to be done.

    Returns:
        The boxes that stay as [x1, y1, x2, y2] in pixels, and their positions among those given.

    Raises:
        DataError: if a box is not four finite numbers, is inverted, normalised where pixels are expected or the
            reverse, or lies wholly outside the picture.
    """
    check_format(box_format)
    notes, kept, positions = notes or BoxNotes(), [], []
    for position, box in enumerate(boxes):
        numbers = _four_numbers(box, f"{place}, box {position + 1}")
        where = f"{place}, box {position + 1} ({', '.join(f'{value:g}' for value in numbers)})"
        _check_units(numbers, size, box_format, where)
        x1, y1, x2, y2 = convert_boxes(numbers, box_format, "xyxy", size)[0].tolist()
        notes.total += 1
        if x2 < x1 or y2 < y1:
            raise DataError(_inverted(numbers, size, box_format, where))
        if x2 == x1 or y2 == y1:
            notes.add("no area", where)
            continue
        if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
            raise DataError(
                f"{where}: lies wholly outside its picture of {size[0]} × {size[1]} pixels. Was the picture cut or "
                "made smaller after the boxes were drawn?"
            )
        inside = [max(0.0, x1), max(0.0, y1), min(float(size[0]), x2), min(float(size[1]), y2)]
        if max(abs(a - b) for a, b in zip(inside, (x1, y1, x2, y2), strict=True)) > 0.01:  # less is rounding
            notes.add("clipped", where)
        kept.append(inside)
        positions.append(position)
    return kept, positions


def _four_numbers(box: Any, where: str) -> Floats:
    try:
        numbers = np.asarray([float(value) for value in box], dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected four numbers, got {box!r:.60}.") from None
    if numbers.shape != (4,):
        raise DataError(f"{where}: expected four numbers, got {len(numbers)}: {box!r:.60}.")
    if not np.isfinite(numbers).all():
        raise DataError(f"{where}: {box!r:.60} holds a number that is not finite.")
    return numbers


def _check_units(numbers: Floats, size: tuple[int, int], box_format: str, where: str) -> None:
    meaning = f"{box_format!r} means {BOX_FORMATS[box_format]}"
    if box_format.endswith("n"):
        if numbers.max() > 2:  # up to 2 it may still be a box that sticks out
            raise DataError(f"{where}: these are pixels, but {meaning}. Pass box_format={box_format[:-1]!r}.")
    elif 0 < np.abs(numbers).max() <= 1 and max(size) > 2:
        raise DataError(f"{where}: these numbers are normalised, but {meaning}. Pass box_format='{box_format}n'.")


def _inverted(numbers: Floats, size: tuple[int, int], box_format: str, where: str) -> str:
    others = [name for name in BOX_FORMATS if name != box_format and fits(numbers, size, name).all()]
    if box_format.startswith("xyxy"):
        what = "its right edge lies left of its left one, or its bottom above its top"
    else:
        what = "its width or height is negative"
    hint = f" As {' or '.join(map(repr, others))} the numbers would fit." if others else " Exchange the corners."
    return f"{where}: read as {box_format!r}, {what}.{hint}"

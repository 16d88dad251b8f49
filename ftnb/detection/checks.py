"""Checks of boxes against their pictures, before training: up to five faults at once, what is doubtful counted."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ftnb.detection.boxes import BoxNotes, check_box_format, check_boxes
from ftnb.detection.files import Annotated, Found
from ftnb.tables import DataError, listing
from ftnb.vision.images import read_image

ORIENTATION = 0x0112  # the EXIF tag
MAX_PROBLEMS = 5


def shown_size(source: Any, place: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """A picture's (width, height) as a person sees it and as it is stored; of a file only the beginning is read.

    Raises:
        DataError: if there is no such picture or it cannot be opened.
    """
    if isinstance(source, str | os.PathLike) and Path(source).is_file():
        try:
            with Image.open(source) as image:
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                width, height = image.size
                return ((height, width) if turned else (width, height)), (width, height)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            pass  # read_image says what is wrong
    size = read_image(source, place=place).size
    return size, size


def checked_rows(part: Found, split: str, box_format: str, notices: list[str]) -> list[dict[str, Any]]:
    """The rows of a split with their boxes as corners in pixels; what had to be done is added to the notices.

    Raises:
        DataError: if there are no pictures, or with up to five faults, one a line.
    """
    if not part.rows:
        raise DataError(f"{split} ({part.source}) holds no pictures.")
    sizes, problems = [], []
    for row in part.rows:
        try:
            shown, stored = shown_size(row.image, row.place)
            _compare_sizes(row, shown, stored)
            sizes.append(shown)
        except DataError as error:
            problems.append(_in_place(error, row.place))
            if len(problems) == MAX_PROBLEMS:
                break
    if problems:
        raise DataError("\n".join(problems))
    _check_all_formats(part, sizes, box_format, f"{split} ({part.source})")
    notes, rows = BoxNotes(), []
    for row, size in zip(part.rows, sizes, strict=True):
        try:
            boxes, positions = check_boxes(row.boxes, size, box_format, row.place, notes)
        except DataError as error:
            problems.append(str(error))
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        labels = [row.labels[position] for position in positions]
        rows.append({"image": row.image, "boxes": boxes, "labels": labels, "row": row.row})
    if problems:
        raise DataError("\n".join(problems))
    notices += [f"{split}: {message}" for message in notes.messages()]
    return rows


def _in_place(error: DataError, place: str) -> str:
    return str(error) if str(error).startswith(place) else f"{place}: {error}"


def _compare_sizes(row: Annotated, shown: tuple[int, int], stored: tuple[int, int]) -> None:
    """Compare the size that an annotation states, where it states one, with that of its picture."""
    said = row.size
    if said is None or min(said) <= 0 or said == shown:
        return
    texts = [f"{width} × {height}" for width, height in (said, shown)]
    if said == stored:
        raise DataError(
            f"{row.place}: annotated on {texts[0]} pixels, but seen as its EXIF note says the picture has {texts[1]}. "
            "Turn the picture for good (PIL.ImageOps.exif_transpose, then save) and annotate that; or, if the boxes "
            "are right on the picture as it is stored, save it without the EXIF note."
        )
    factor = [a / b for a, b in zip(shown, said, strict=True)]
    same = " (the same shape, made smaller or larger)" if abs(factor[0] / factor[1] - 1) < 0.02 else ""
    raise DataError(
        f"{row.place}: annotated on {texts[0]} pixels, but the picture has {texts[1]}{same}. Use the picture that was "
        "annotated, or scale its boxes along."
    )


def _check_all_formats(part: Found, sizes: list[tuple[int, int]], box_format: str, place: str) -> None:
    """Look at all boxes of a split together; what is no box at all is left to the check of each."""
    pairs = [(box, size) for row, size in zip(part.rows, sizes, strict=True) for box in row.boxes]
    try:
        boxes = np.asarray([[float(value) for value in box] for box, _ in pairs], dtype=np.float64)
    except (TypeError, ValueError):
        return
    if boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all():
        check_box_format(boxes, [size for _, size in pairs], box_format, place)


def count_boxes(rows: list[dict[str, Any]], place: str, notices: list[str]) -> None:
    """Note how many pictures have no box.

    Raises:
        DataError: if none has one.
    """
    empty = sum(not row["boxes"] for row in rows)
    if empty == len(rows):
        raise DataError(f"{place}: none of the {len(rows)} pictures has a box. Were the annotations found?")
    if empty:
        what = "they stay, as examples of nothing to find"
        notices.append(f"{place}: {empty} of {len(rows)} pictures have no box; {what}.")


def compare_classes(splits: dict[str, list[dict[str, Any]]], names: tuple[str, ...], notices: list[str]) -> None:
    """Note the classes that train does not hold, and those of other splits among them."""
    held = {split: {label for row in rows for label in row["labels"]} for split, rows in splits.items()}
    if idle := [name for name in names if name not in held["train"]]:
        notices.append(f"{len(idle)} of {len(names)} classes have no box in train: {listing(idle)}.")
    for split in [split for split in held if split != "train"]:
        if new := sorted(held[split] - held["train"]):
            what = "never occur in train, so they cannot be found and count as missed"
            notices.append(f"{split}: {len(new)} classes {what}: {listing(new)}.")

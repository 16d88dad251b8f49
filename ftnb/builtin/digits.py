"""Real handwritten digits, 8 × 8 pixels: the 1,797 images that come with scikit-learn.

They are the test part of the "Optical Recognition of Handwritten Digits" data (Alpaydin and Kaynak 1998, UCI machine
learning repository): 13 people filled in forms, and the scans were reduced to counts of ink, 0 to 16, in 8 × 8 blocks.
The set holds no writer labels. Its order tells something of them: the images of one person stand together, and the
scikit-learn MOOC (lesson "Sample grouping") lists the rows at which another hand seems to begin. Our splits are cut at
such rows, so that a model is tested on hands it has not seen, as far as that can be known.
"""

from functools import cache
from random import Random
from typing import Literal, TypedDict, get_args

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from ftnb.tables import DataError

Split = Literal["train", "valid", "test"]

LABELS = tuple("0123456789")
SIZE = 8  # pixels, both ways
DEFAULT_NUM_PER_CLASS: dict[str, int | str] = {"train": 10, "valid": "all", "test": "all"}

# Rows of the data set; the borders are places where, by the scikit-learn MOOC, the writer changes.
_ROWS: dict[str, range] = {"train": range(915), "valid": range(915, 1287), "test": range(1287, 1797)}


class Digit(TypedDict):
    """One example, see `digit_images`."""

    image: Image.Image
    label: str


def digit_images(split: Split, num_per_class: int | str | None = None, seed: int = 0) -> list[Digit]:
    """Handwritten digits of one split, in random order.

    Args:
        split: "train" (915 images, 91 or more of each digit), "valid" (372) or "test" (510). They share no image.
        num_per_class: how many of each digit, or "all". By default 10 for "train", because few labels are the usual
            case, and all for the others. With one seed, fewer images are always among the more.
        seed: another seed draws other images of the same split.

    Returns:
        A list of dictionaries with keys "image" (mode "L", 8 × 8, ink 255 on ground 0) and "label" ("0" to "9").

    Raises:
        DataError: if the split is unknown, or has fewer images of a digit than asked for.
    """
    rows = digit_rows(split, DEFAULT_NUM_PER_CLASS.get(split, "all") if num_per_class is None else num_per_class, seed)
    images, labels = _all_digits()
    return [{"image": Image.fromarray(images[row]), "label": LABELS[labels[row]]} for row in rows]


def digit_rows(split: Split, num_per_class: int | str = "all", seed: int = 0) -> list[int]:
    """Which rows of `sklearn.datasets.load_digits()` `digit_images` takes.

    Raises:
        DataError: as `digit_images` does.
    """
    if split not in get_args(Split):
        raise DataError(f"split {split!r} is unknown; choose one of {', '.join(map(repr, get_args(Split)))}.")
    labels = _all_digits()[1]
    rng = Random(f"digits-{split}-{seed}")
    # Sorting by random() and not Random.shuffle: Python guarantees the sequence of random() alone.
    rows = sorted(_ROWS[split], key=lambda _: rng.random())
    if num_per_class == "all":
        return rows
    of_class = {digit: [row for row in rows if labels[row] == digit] for digit in range(len(LABELS))}
    fewest = min(map(len, of_class.values()))
    if not isinstance(num_per_class, int) or not 1 <= num_per_class <= fewest:
        raise DataError(
            f"num_per_class is {num_per_class!r}, but split {split!r} has {fewest} to "
            f"{max(map(len, of_class.values()))} images of a digit; ask for 1 to {fewest}, or for 'all'."
        )
    chosen = {row for of_one in of_class.values() for row in of_one[:num_per_class]}
    return [row for row in rows if row in chosen]


def digit_array(row: int) -> np.ndarray:
    """One image of `sklearn.datasets.load_digits()`, uint8, shape (8, 8), ink 255 on ground 0."""
    return _all_digits()[0][row].copy()


def digit_label(row: int) -> int:
    """The digit, 0 to 9, in a row of `sklearn.datasets.load_digits()`."""
    return int(_all_digits()[1][row])


@cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # counts of 0-16 as grey values
    return images, digits.target.astype(int)

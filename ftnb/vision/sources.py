"""Labelled pictures from wherever they are: a folder for each class, a table of paths, the Hub, memory, built-in."""

from collections.abc import Mapping
from typing import Any

from ftnb.data import split_tables
from ftnb.files import FileKind, duplicates, read_class_folders
from ftnb.sources import read_any
from ftnb.tables import DataError, Splits, Table, has_header, listing
from ftnb.vision.images import IMAGE_SUFFIXES, check_images, image_digest

BUILTIN_IMAGES = ("builtin:digits",)
PICTURES = FileKind("image", "picture", IMAGE_SUFFIXES)


def load_image_splits(
    data: Any,
    *,
    columns: Mapping[str, str | int] | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Load labelled pictures and bring them into splits; every picture is read once to see that it can be.

    Args:
        data: "builtin:digits"; a folder with one folder of pictures for each class (or such folders in "train",
            "valid", "test"); a table with a column of paths, relative to the table's own folder; or whatever else
            `ftnb.data.load_splits` takes, with pictures in the column "image".
        columns: role ("image", "label") → column name, or position in a file without a header line.
        valid_fraction: share of the training rows to cut off where there is no validation split.
        test_fraction: the same for the test; 0 means no test.
        seed: decides which rows are cut; equal pictures are never cut apart.

    Returns:
        Splits with the columns "image" (see `ftnb.vision.images.stored_image`), "label" and "row".

    Raises:
        DataError: if the data or a picture cannot be read.
    """
    columns = dict(columns or {})
    splits = split_tables(
        read_images(data, header=has_header(columns)),
        columns=columns,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        seed=seed,
        roles=("image", "label"),
    )
    return with_image_checks(splits)


def with_image_checks(splits: Splits) -> Splits:
    """The same splits with notices of what their pictures need and which of them are in two splits.

    Raises:
        DataError: naming up to five pictures that cannot be read.
    """
    pictures = {name: split["image"][:] for name, split in splits.items()}
    rows = {name: split["row"][:] for name, split in splits.items()}
    for name, of in pictures.items():
        splits.notices.extend(check_images(of, name, rows[name]))
    digests = {name: [image_digest(picture) for picture in of] for name, of in pictures.items()}
    splits.notices.extend(duplicates(digests, rows, "pictures"))
    return splits


def read_images(data: Any, *, header: bool = True) -> dict[str, Table]:
    """Read labelled pictures into tables by split, not yet decoded.

    Raises:
        DataError: if there are none, or the folders' order is not one that says which picture is of which class.
    """
    if isinstance(data, str) and data.startswith("builtin:"):
        return _builtin(data)
    found = read_class_folders(data, PICTURES)
    return read_any(data, header=header) if found is None else found


def _builtin(name: str) -> dict[str, Table]:
    if name not in BUILTIN_IMAGES:
        raise DataError(f"{name!r} is unknown; the built-in pictures are {listing(BUILTIN_IMAGES)}.")
    from ftnb.builtin.digits import digit_images  # brings scikit-learn, which takes a second to import

    return read_any({split: digit_images(split) for split in ("train", "valid", "test")})

"""Labelled pictures from wherever they are: a folder for each class, a table of paths, the Hub, memory, built-in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ftnb.data import split_tables
from ftnb.sources import SPLIT_NAMES, read_any
from ftnb.tables import SUFFIXES, DataError, Splits, Table, has_header, listing
from ftnb.vision.images import IMAGE_SUFFIXES, check_images, duplicates, image_digest

BUILTIN_IMAGES = ("builtin:digits",)


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
    splits.notices.extend(duplicates(digests, rows))
    return splits


def read_images(data: Any, *, header: bool = True) -> dict[str, Table]:
    """Read labelled pictures into tables by split, not yet decoded.

    Raises:
        DataError: if there are none, or the folders' order is not one that says which picture is of which class.
    """
    if isinstance(data, str) and data.startswith("builtin:"):
        return _builtin(data)
    if isinstance(data, str | os.PathLike):
        folder = Path(data).expanduser()
        if folder.is_dir() and (folders := _folders(folder)) and not _holds_tables(folder):
            return _read_split_folders(folder, folders)
        if folder.is_dir() and not _holds_tables(folder) and _pictures(folder):
            raise DataError(
                f"{folder} holds {len(_pictures(folder))} pictures and no folders, so nothing says what is on them. "
                "Put the pictures of each class in a folder of its name, or give a CSV with columns image and label."
            )
    return read_any(data, header=header)


def _builtin(name: str) -> dict[str, Table]:
    if name not in BUILTIN_IMAGES:
        raise DataError(f"{name!r} is unknown; the built-in pictures are {listing(BUILTIN_IMAGES)}.")
    from ftnb.builtin.digits import digit_images  # brings scikit-learn, which takes a second to import

    return read_any({split: digit_images(split) for split in ("train", "valid", "test")})


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without those that programs leave behind."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, by name."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds a table to train on (or a saved `datasets` folder), and not class folders only."""
    stems = {word for p in folder.iterdir() if p.suffix.lower() in SUFFIXES for word in p.stem.lower().split("_")}
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json"))
    return saved or any(SPLIT_NAMES.get(stem) == "train" for stem in stems)


def _read_split_folders(folder: Path, folders: list[Path]) -> dict[str, Table]:
    named = [(SPLIT_NAMES.get(p.name.lower()), p) for p in folders]
    splits = {split: p for split, p in named if split is not None}
    if not splits:
        return {"train": _read_class_folders(folder, folders)}
    if len(splits) < len(folders):
        odd = [p.name for split, p in named if split is None or splits[split] != p]
        raise DataError(
            f"{folder} holds folders for splits ({listing(sorted(splits))}) and also {listing(odd)}; keep one kind."
        )
    if "train" not in splits:
        raise DataError(f"{folder} has no folder 'train'; it has {listing([p.name for p in folders])}.")
    return {split: _read_class_folders(path, _folders(path)) for split, path in splits.items()}


def _read_class_folders(folder: Path, classes: list[Path]) -> Table:
    if not classes:
        raise DataError(f"{folder} holds no folders; there has to be one for each class, with its pictures in it.")
    pictures = {path.name: _pictures(path) for path in classes}
    empty = [name for name, of in pictures.items() if not of]
    if len(empty) == len(classes):
        raise DataError(
            f"{folder}: none of the {len(classes)} folders holds a picture ({', '.join(IMAGE_SUFFIXES[:6])} …)."
        )
    if empty:
        raise DataError(f"{folder}: no picture in the class folder {listing(empty)}. Fill it, or remove it.")
    rows = [(path, name) for name, of in pictures.items() for path in of]
    frame = pd.DataFrame({"image": [str(path.absolute()) for path, _ in rows], "label": [name for _, name in rows]})
    frame.index = pd.Index([path.relative_to(folder).as_posix() for path, _ in rows])
    other = sum(p.is_file() and p.suffix.lower() not in IMAGE_SUFFIXES for c in classes for p in c.rglob("[!.]*"))
    notices = (f"{folder.name}: {other} files that are no pictures are left out.",) if other else ()
    return Table(frame, folder.name, notices=notices)

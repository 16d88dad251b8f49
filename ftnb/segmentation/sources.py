"""Photos with masks from wherever they are: folders, COCO's JSON, a table of paths, the Hub, memory, built-in."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ftnb.data import split_tables
from ftnb.segmentation.checks import check_classes, count_classes, mask_notices, survey_masks, table_from_values
from ftnb.segmentation.classes import find_class_file, read_class_file, read_ignored
from ftnb.segmentation.coco import coco_files, read_coco
from ftnb.segmentation.folders import Rows, holds_masks, pair_folders, read_folder, split_of
from ftnb.segmentation.masks import IGNORE_INDEX, ClassTable, Color, stored_mask
from ftnb.sources import SPLIT_NAMES, read_any
from ftnb.tables import SUFFIXES, DataError, Splits, Table, has_header, listing, select_columns
from ftnb.vision.images import stored_image
from ftnb.vision.sources import with_image_checks

BUILTIN_SCENES = {"train": 160, "valid": 60, "test": 120}
SCENE_CLASSES = ("ground", *map(str, range(10)))
Classes = Mapping[str, int | Color] | Sequence[str] | str | os.PathLike[str]


@dataclass(frozen=True)
class SegmentationData:
    """Photos with masks as they were found.

    Args:
        splits: by split, rows with "image" and "mask" (stored, see `ftnb.vision.images.stored_image`), "row" (its
            number or file in the source) and "pixels" (of each class and, last, those that do not count).
        table: which values mean which class; `table.names` are the classes.
        sources: per split, what to call it in a message.
        notices: what a reader of the result should know.
        ignore_index: what a decoded mask holds where a pixel does not count.
    """

    splits: dict[str, Rows]
    table: ClassTable
    sources: Mapping[str, str]
    notices: list[str] = field(default_factory=list)
    ignore_index: int = IGNORE_INDEX


@dataclass
class _Found:
    """Rows by split before any mask was read, and what the source says about classes."""

    splits: dict[str, Rows]
    sources: dict[str, str]
    classes: Mapping[str, int | Color] | None = None
    notices: list[str] = field(default_factory=list)
    own_classes: bool = False  # the source itself says what its classes are
    ignored: Sequence[int | Color] | None = None  # what its file of class names says


def read_segmentation(
    data: Any,
    *,
    classes: Classes | None = None,
    ignore: Sequence[int | Color] | None = None,
    columns: Mapping[str, str | int] | None = None,
) -> SegmentationData:
    """Read photos with masks, look into every mask, and say what its values mean.

    Args:
        data: "builtin:digit-scenes"; a folder of photos and masks (see `ftnb.segmentation.folders.read_folder`) or
            {"images": folder, "masks": folder}; a COCO JSON with outlines or a folder with one for each split; a table
            of paths, a Hub id, or rows in memory with "image" and "mask"; or a mapping from "train", "valid", "test"
            to any of these.
        classes: class name → value, or → colour (r, g, b); a list of names, whose places are the values; or a file of
            names. None takes a file beside the data, else every value that occurs in train. Of COCO's JSON it selects
            categories by name.
        ignore: values (or colours) of pixels that do not count; None is what the file of names says under "ignore",
            else 255, unless that is a class.
        columns: role ("image", "mask") → column name, where the data is a table or in memory.

    Raises:
        DataError: if something is missing or damaged, or a mask cannot be right.
    """
    found = _find(data, classes, dict(columns or {}))
    names, from_file = found.classes, found.ignored
    if classes is not None and not found.own_classes:
        names, from_file = _named_values(classes, data)
    ignore = from_file if ignore is None else ignore
    in_file = classes is None or isinstance(classes, str | os.PathLike)
    table = _class_table(names, ignore, given=not (in_file or found.own_classes)) if names is not None else None
    coloured = table is not None and table.coloured
    found.splits = {split: found.splits[split] for split in ("train", "valid", "test") if split in found.splits}
    facts = {split: survey_masks(rows, split, coloured) for split, rows in found.splits.items()}
    notices = list(found.notices)
    if table is None:
        table = table_from_values(facts, (IGNORE_INDEX,) if ignore is None else ignore)
        notices.append(f"no class names were given; the values {listing(table.values)} of train count as classes.")
    splits = {}
    for split, rows in found.splits.items():
        pixels = count_classes(facts[split], table, split)
        notices += mask_notices(facts[split], pixels, split, ", ".join(map(str, table.ignored)))
        splits[split] = [{**row, "pixels": of} for row, of in zip(rows, pixels, strict=True) if sum(of[:-1])]
        if empty := [row["row"] for row, of in zip(rows, pixels, strict=True) if not sum(of[:-1])]:
            what = f"{len(empty)} of {len(rows)} masks hold only pixels that do not count"
            notices.append(f"{split}: {what} and are left out: {listing(empty[:3])}.")
        if not splits[split]:
            raise DataError(f"{split}: no mask has a pixel that counts; known are {', '.join(table.names)}.")
    return SegmentationData(splits, table, found.sources, notices)


def load_segmentation_splits(
    data: Any,
    *,
    classes: Classes | None = None,
    ignore: Sequence[int | Color] | None = None,
    columns: Mapping[str, str | int] | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> tuple[Splits, ClassTable]:
    """Read photos with masks (`read_segmentation`), bring them into splits, and check both.

    Args:
        data: as for `read_segmentation`.
        classes: the same.
        ignore: the same.
        columns: the same.
        valid_fraction: share of the training rows to cut off where there is no validation split.
        test_fraction: the same for the test; 0 means no test.
        seed: decides which rows are cut; equal photos are never cut apart.

    Returns:
        Splits with the columns "image", "mask", "pixels" and "row", and the table that decodes the masks.

    Raises:
        DataError: if something is missing or damaged, or cannot be right.
    """
    found = read_segmentation(data, classes=classes, ignore=ignore, columns=columns)
    roles = ("image", "mask", "pixels")
    tables = {}
    for split, rows in found.splits.items():
        frame = pd.DataFrame([{role: row[role] for role in roles} for row in rows], dtype=object)
        frame.index = pd.Index([row["row"] for row in rows])
        tables[split] = Table(frame, found.sources[split], notices=tuple(found.notices) if split == "train" else ())
    splits = split_tables(
        tables, columns={}, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed, roles=roles
    )
    splits = with_image_checks(splits)
    splits.notices.extend(check_classes(splits, found.table.names))
    return splits, found.table


def _find(data: Any, classes: Classes | None, columns: dict[str, str | int]) -> _Found:
    if isinstance(data, str) and data.startswith("builtin:"):
        return _builtin(data)
    if isinstance(data, Mapping) and set(data) == {"images", "masks"}:
        return _two_named_folders(data)
    if isinstance(data, Mapping) and not hasattr(data, "num_rows"):  # a DatasetDict is read as a table
        parts = {}
        for name, part in data.items():
            split = SPLIT_NAMES.get(str(name).lower())
            if split is None or split in parts:
                raise DataError(
                    f"split {name!r} is {'given twice' if split else 'unknown'}; expected 'train', 'valid', 'test'."
                )
            parts[split] = _only_train(_find(part, classes, columns), str(name))
        return _joined(parts)
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        if path.is_dir() and not _holds_tables(path):
            return _folder(path, classes)
        if path.is_file() and path.suffix.lower() == ".json":
            return _coco(path, classes)
    return _from_tables(read_any(data, header=has_header(columns)), columns)


def _builtin(name: str) -> _Found:
    if name != "builtin:digit-scenes":
        raise DataError(f"{name!r} is unknown; the built-in data set with masks is 'builtin:digit-scenes'.")
    from ftnb.builtin.scenes import digit_scenes  # brings scikit-learn, which takes a second to import

    scenes = {split: digit_scenes(split, number) for split, number in BUILTIN_SCENES.items()}  # type: ignore[arg-type]
    found = _from_tables(read_any(scenes), {})
    return replace(found, classes=_positions(SCENE_CLASSES), sources=dict.fromkeys(scenes, name))


def _two_named_folders(data: Mapping[str, Any]) -> _Found:
    images, masks = (Path(data[key]).expanduser() for key in ("images", "masks"))
    if gone := [folder for folder in (images, masks) if not folder.is_dir()]:
        raise DataError(f"there is no folder {str(gone[0])!r}.")
    pairs = pair_folders(images, masks, images)
    file = find_class_file([masks, masks.parent])
    names, ignored = (read_class_file(file), read_ignored(file)) if file else (None, None)
    return _Found({"train": pairs.complete()}, {"train": images.name}, names, pairs.notices, ignored=ignored)


def _only_train(found: _Found, name: str) -> _Found:
    if set(found.splits) != {"train"}:
        raise DataError(
            f"{name}: holds the splits {listing(list(found.splits))} itself; pass it alone, or one of them."
        )
    return found


def _joined(parts: Mapping[str, _Found]) -> _Found:
    if "train" not in parts:
        raise DataError(f"the mapping has no split 'train'; it has {listing(list(parts))}.")
    names = parts["train"].classes
    for split, part in parts.items():
        if part.classes is not None and part.classes != names:
            raise DataError(f"{split} has other classes than train: {listing(list(part.classes))}.")
    return _Found(
        {split: part.splits["train"] for split, part in parts.items()},
        {split: part.sources["train"] for split, part in parts.items()},
        names,
        [notice for part in parts.values() for notice in part.notices],
        parts["train"].own_classes,
        parts["train"].ignored,
    )


def _holds_tables(folder: Path) -> bool:
    names = [p.name.lower() for p in folder.iterdir() if p.is_file()]
    saved = {"dataset_dict.json", "dataset_info.json"} & set(names)
    return bool(saved) or any(Path(n).suffix in SUFFIXES and split_of(Path(n).stem) == "train" for n in names)


def _folder(folder: Path, classes: Classes | None) -> _Found:
    files = coco_files(folder)
    if files and not holds_masks(folder):
        return _joined({split: _coco(path, classes) for split, path in files.items()})
    splits, notices, masks = read_folder(folder)
    if files:
        notices = [*notices, f"the masks in {masks.name} are read, {listing([p.name for p in files.values()])} not."]
    names, ignored = None, None
    if classes is None and (file := find_class_file(sorted({folder, folder / "annotations", masks, masks.parent}))):
        names, ignored = read_class_file(file), read_ignored(file)
        notices = [*notices, f"class names are those of {file.name}."]
    return _Found(splits, dict.fromkeys(splits, folder.name), names, notices, ignored=ignored)


def _coco(path: Path, classes: Classes | None) -> _Found:
    if classes is not None and (isinstance(classes, str | os.PathLike | Mapping)):
        raise DataError(f"{path.name} says itself what its categories are; select some by classes=['person', …].")
    rows, names, notices = read_coco(path, classes)
    return _Found({"train": rows}, {"train": path.name}, _positions(names), notices, own_classes=True)


def _from_tables(tables: Mapping[str, Table], columns: dict[str, str | int]) -> _Found:
    splits = {}
    for split, whole in tables.items():
        table = select_columns(whole, columns, ("image", "mask"))
        splits[split] = [
            {
                "image": stored_image(image, table.folder, f"{split} ({table.source}), row {row}, image"),
                "mask": stored_mask(mask, table.folder, f"{split} ({table.source}), row {row}, mask"),
                "row": row,
            }
            for row, image, mask in zip(table.frame.index, table.frame["image"], table.frame["mask"], strict=True)
        ]
    return _Found(splits, {split: table.source for split, table in tables.items()})


def _positions(names: Sequence[str]) -> dict[str, int | Color]:
    return {name: place for place, name in enumerate(names)}


def _named_values(classes: Classes, data: Any) -> tuple[dict[str, int | Color], Sequence[int | Color] | None]:
    """Class names with their values, and what a file says is ignored, from whatever a person may give."""
    if isinstance(classes, Mapping):
        return dict(classes), None
    if not isinstance(classes, str | os.PathLike):
        if len(set(classes)) < len(classes):
            raise DataError(f"classes names one class twice: {listing(list(classes))}.")
        return _positions(classes), None
    path = Path(classes).expanduser()
    beside = Path(data) / path if isinstance(data, str | os.PathLike) else path
    file = path if path.is_file() or not beside.is_file() else beside
    return read_class_file(file), read_ignored(file)


def _class_table(names: Mapping[str, int | Color], ignore: Sequence[int | Color] | None, given: bool) -> ClassTable:
    """The table of the classes; a class that only a file names may be ignored, one that a person names may not."""
    if ignore is None:
        ignore = [IGNORE_INDEX] if all(isinstance(v, int) and v != IGNORE_INDEX for v in names.values()) else []
    kept = {name: value for name, value in names.items() if given or value not in ignore}
    if not kept:
        raise DataError(f"ignore={list(ignore)} leaves no class of {listing(list(names))}.")
    return ClassTable(tuple(map(str, kept)), tuple(kept.values()), tuple(ignore))

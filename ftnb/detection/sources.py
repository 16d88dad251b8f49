"""Pictures with boxes from wherever they are: COCO, Pascal VOC, YOLO, a table, the Hub, memory, built-in; all checked.

The format of a folder is found out from what lies in it and said in a notice. What comes out is one form: boxes as
corners in pixels of the picture as a person sees it (turned as its EXIF note says), and the name of each one's class.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import DatasetDict

from ftnb.data import split_tables
from ftnb.detection.boxes import check_format
from ftnb.detection.checks import checked_rows, compare_classes, count_boxes
from ftnb.detection.files import Annotated, Found, Tree
from ftnb.detection.formats import coco_files, read_coco, read_coco_folder, read_voc_folder, voc_files
from ftnb.detection.tables import read_tables
from ftnb.detection.yolo import label_sets, read_yolo_folder
from ftnb.sources import SPLIT_NAMES
from ftnb.tables import SUFFIXES, DataError, Splits, Table, listing
from ftnb.vision.images import IMAGE_SUFFIXES
from ftnb.vision.sources import with_image_checks

BUILTIN_SCENES = "builtin:digit-scenes"
NUM_SCENES = {"train": 100, "valid": 50, "test": 100}


@dataclass
class DetectionData:
    """Checked pictures with boxes.

    Attributes:
        splits: for "train" and, where present, "valid" and "test", rows with "image" (an absolute path, or a picture
            in memory), "boxes" ([x1, y1, x2, y2] in pixels of the picture as seen), "labels" (one class name a box)
            and "row" (the picture's 1-based number in its source).
        label_names: the classes in the source's order.
        sources: per split, what to call it in a message.
        notices: what was found and done.
    """

    splits: dict[str, list[dict[str, Any]]]
    label_names: tuple[str, ...]
    sources: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def load_detection_splits(
    data: Any,
    *,
    box_format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Load pictures with boxes and bring them into splits; every picture is read once to see that it can be.

    Args:
        data: see `read_detection`.
        box_format: see `read_detection`.
        columns: see `read_detection`.
        valid_fraction: share of the training pictures to cut off where there is no validation split.
        test_fraction: the same for the test; 0 means no test.
        seed: decides which pictures are cut; equal pictures are never cut apart.

    Returns:
        Splits with the columns "image" (see `ftnb.vision.images.stored_image`), "boxes", "labels" and "row".

    Raises:
        DataError: if the data, a picture or a box cannot be right.
    """
    found = read_detection(data, box_format, columns=columns)
    tables = {}
    for name, rows in found.splits.items():
        frame = pd.DataFrame(rows, index=[row["row"] for row in rows], dtype=object)
        tables[name] = Table(frame[["image", "boxes", "labels"]], found.sources[name])
    splits = split_tables(
        tables,
        columns={},
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        seed=seed,
        roles=("image", "boxes", "labels"),
    )
    named = replace(splits, label_names=found.label_names, notices=[*found.notices, *splits.notices])
    return with_image_checks(named)


def read_detection(
    data: Any, box_format: str | None = None, *, columns: Mapping[str, str | int] | None = None
) -> DetectionData:
    """Read pictures with boxes and check every box against its picture.

    Args:
        data: "builtin:digit-scenes"; a COCO JSON file; a folder of COCO, Pascal VOC or YOLO annotations; YOLO's
            data.yaml; rows in memory (a list of dictionaries, a DataFrame, a `datasets.Dataset` or `DatasetDict`), a
            JSONL or Parquet file or a Hub id, with the columns "image", "boxes", "labels" or with the Hub's usual
            "image" and "objects" (of "bbox" and "category"); or a mapping from split to any of these.
        box_format: how the numbers of a box are meant, a key of `ftnb.detection.boxes.BOX_FORMATS`; None is what the
            source's format says ("xywh" for COCO and the Hub's "objects", "xyxy" for Pascal VOC and tables, "cxcywhn"
            for YOLO).
        columns: role ("image", "boxes", "labels") → column name, for rows in memory and tables.

    Raises:
        DataError: if the data cannot be read, or a picture, a class or a box cannot be right.
    """
    if box_format is not None:
        check_format(box_format)
    found = _find(data, columns)
    if "train" not in found:
        raise DataError(f"there is no split 'train'; there are {listing(list(found))}.")
    found = {name: found[name] for name in ("train", "valid", "test") if name in found}
    notices = [notice for part in found.values() for notice in part.notices]
    splits = {name: checked_rows(part, name, box_format or part.box_format, notices) for name, part in found.items()}
    if not any(row["boxes"] for row in splits.get("test", [{"boxes": True}])):
        del splits["test"]
        notices.append(f"test ({found['test'].source}) has no boxes and is left out.")
    for name, rows in splits.items():
        count_boxes(rows, f"{name} ({found[name].source})", notices)
    names = tuple(dict.fromkeys(label for part in found.values() for label in part.label_names))
    compare_classes(splits, names, notices)
    return DetectionData(splits, names, {name: part.source for name, part in found.items()}, notices)


def _find(data: Any, columns: Mapping[str, str | int] | None) -> dict[str, Found]:
    """Whatever was passed, as splits that are not checked yet."""
    if isinstance(data, str) and data.startswith("builtin:"):
        return _builtin(data)
    if isinstance(data, Mapping) and not isinstance(data, DatasetDict):
        parts: dict[str, Found] = {}
        for name, part in data.items():
            split = SPLIT_NAMES.get(str(name).lower())
            if split is None or split in parts:
                problem = "given twice" if split in parts else "unknown"
                raise DataError(f"split {name!r} is {problem}; a mapping needs the keys 'train', 'valid', 'test'.")
            inner = _find(part, columns)
            if len(inner) > 1 or "train" not in inner:
                raise DataError(f"{name}: expected one split, found {listing(list(inner))}. Name a file or rows.")
            parts[split] = inner["train"]
        return parts
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        if path.is_file() and path.suffix.lower() == ".json":
            return {"train": read_coco(path.absolute())}
        if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
            return read_yolo_folder(Tree(path.absolute().parent), path.absolute())
        if path.is_dir() and not any((path / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
            return _find_in_folder(Tree(path.absolute()))
        if path.suffix.lower() == ".json":
            raise DataError(f"file {path} not found (looked in {path.absolute().parent}).")
    return read_tables(data, columns or {})


def _find_in_folder(tree: Tree) -> dict[str, Found]:
    jsons, xmls, labels = coco_files(tree), voc_files(tree), label_sets(tree)
    kinds = {
        "COCO JSON": [path.name for path in jsons],
        "Pascal VOC XML": [path.name for path in xmls],
        "YOLO text": sorted(labels),
    }
    there = [kind for kind, names in kinds.items() if names]
    if len(there) > 1:
        shown = "; ".join(f"{kind} ({listing(kinds[kind][:3])})" for kind in there)
        raise DataError(
            f"{tree.root} holds annotations in {len(there)} formats: {shown}. Pass the JSON file, the folder of the "
            "XML files or the data.yaml itself, or move the others away."
        )
    if jsons:
        found = read_coco_folder(tree, jsons)
        notice = f"{tree.root.name}: COCO format, {listing([part.source for part in found.values()])}."
        next(iter(found.values())).notices.insert(0, notice)
        return found
    if xmls:
        bare = next(tree.files(*IMAGE_SUFFIXES), None) is None  # the folder of the XML files alone
        return read_voc_folder(Tree(tree.root.parent) if bare else tree, xmls)
    if labels:
        return read_yolo_folder(tree)
    if any(name.lower().endswith(SUFFIXES) for name in tree.folders[tree.root]):
        return read_tables(tree.root, {})
    held = listing(sorted(name for names in tree.folders.values() for name in names)) or "nothing"
    raise DataError(
        f"{tree.root} holds no boxes. Expected a COCO JSON file, Pascal VOC XML files or YOLO text files in 'labels', "
        f"with the pictures; it holds {held}."
    )


def _builtin(name: str) -> dict[str, Found]:
    if name != BUILTIN_SCENES:
        raise DataError(f"{name!r} is unknown; the built-in pictures with boxes are {BUILTIN_SCENES!r}.")
    from ftnb.builtin.digits import LABELS  # brings scikit-learn, which takes a second to import
    from ftnb.builtin.scenes import digit_scenes

    found = {}
    for split, count in NUM_SCENES.items():
        scenes = digit_scenes(split, count)  # type: ignore[arg-type]  # the keys are its splits
        rows = [
            Annotated(scene["image"], list(scene["boxes"]), scene["labels"], i, f"{split}, scene {i}")
            for i, scene in enumerate(scenes, start=1)
        ]
        found[split] = Found(rows, name, "xyxy", tuple(LABELS))
    return found

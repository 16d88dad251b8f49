"""COCO's JSON and Pascal VOC's XML as rows of pictures with their boxes as written (YOLO: `ftnb.detection.yolo`).

What is read from which file is said in notices; the numbers are checked later, by `ftnb.detection.checks`.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftnb.detection.files import IMAGE_FOLDERS, Annotated, Found, Tree, split_of
from ftnb.sources import SPLIT_NAMES
from ftnb.tables import DataError, listing
from ftnb.vision.images import IMAGE_SUFFIXES

# -- COCO -------------------------------------------------------------------------------------------------------------


def coco_files(tree: Tree) -> list[Path]:
    """The JSON files in which one of COCO's keys stands; only their beginnings and ends are read for that."""
    found = []
    for path in tree.files(".json"):
        with path.open("rb") as file:
            head = file.read(2**16)
            file.seek(max(len(head), path.stat().st_size - 2**16))
            both = head + file.read()
        if any(key in both for key in (b'"annotations"', b'"categories"', b'"bbox"')):
            found.append(path)
    return found


def read_coco_folder(tree: Tree, files: list[Path]) -> dict[str, Found]:
    """One JSON file per split; the split is in the name of the file or of its folder."""
    of_split: dict[str, list[Path]] = {}
    for path in files:
        split = split_of(path.stem) or split_of(path.parent.name) if len(files) > 1 else "train"
        if split is not None:
            of_split.setdefault(split, []).append(path)
    for split, paths in of_split.items():  # COCO has captions and key points beside its instances
        of_split[split] = [p for p in paths if p.stem.startswith("instances")] or paths
    if "train" not in of_split or any(len(paths) > 1 for paths in of_split.values()):
        held = listing([path.relative_to(tree.root).as_posix() for path in files])
        raise DataError(
            f"{tree.root}: expected one COCO file per split, such as instances_train.json and instances_val.json; it "
            f"holds {held}. Name the files: {{'train': …, 'valid': …}}."
        )
    found = {split: read_coco(paths[0]) for split, paths in of_split.items()}
    chosen = {path for paths in of_split.values() for path in paths}
    if left := [path.name for path in files if path not in chosen]:
        found["train"].notices.append(f"JSON files that were not read: {listing(left)}.")
    return found


def read_coco(path: Path) -> Found:
    """Read one COCO JSON file; crowds are left out, and pictures without a box stay.

    Raises:
        DataError: if the file is broken, a key is missing, or a picture or category is spoken of but not there.
    """
    data = _load_json(path)
    names = _category_names(data["categories"], path)
    images = {}
    for number, image in enumerate(data["images"], start=1):
        if not isinstance(image, Mapping) or "id" not in image or not isinstance(image.get("file_name"), str):
            raise DataError(
                f"{path.name}, image {number}: expected an object with 'id' and 'file_name', got {image!r:.80}."
            )
        if image["id"] in images:
            raise DataError(f"{path.name}, image {number}: the id {image['id']!r} is there twice.")
        size = (image.get("width") or 0, image.get("height") or 0)
        place = f"{path.name}, image {number} ({Path(image['file_name']).name})"
        images[image["id"]] = Annotated(image["file_name"].replace("\\", "/"), [], [], number, place, size)
    crowds = _add_annotations(data["annotations"], images, names, path)
    rows = list(images.values())
    root = _image_root(path, [row.image for row in rows[:20]])
    for row in rows:
        row.image = str(root / row.image)
    notices = [f"{path.name}: {crowds} crowd regions (iscrowd) are left out."] if crowds else []
    return Found(rows, path.name, "xywh", tuple(dict.fromkeys(names.values())), notices)


def _load_json(path: Path) -> dict[str, list[Any]]:
    try:
        data = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name}, line {error.lineno}: not JSON ({error.msg}). Was the file cut off?") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8 ({error}). Save it as UTF-8.") from None
    keys = ("images", "annotations", "categories")
    held = list(data) if isinstance(data, Mapping) else type(data).__name__
    if not isinstance(data, Mapping) or any(not isinstance(data.get(key), list) for key in keys):
        raise DataError(
            f"{path.name}: COCO's format needs the lists 'images', 'annotations', 'categories'; got {held}."
        )
    return {key: data[key] for key in keys}


def _category_names(categories: list[Any], path: Path) -> dict[Any, str]:
    names = {}
    for category in categories:
        if not isinstance(category, Mapping) or "id" not in category or not str(category.get("name") or "").strip():
            raise DataError(f"{path.name}: expected categories with 'id' and 'name', got {category!r:.80}.")
        if category["id"] in names:
            raise DataError(f"{path.name}: the category id {category['id']!r} is there twice.")
        names[category["id"]] = str(category["name"]).strip()
    return names


def _add_annotations(annotations: list[Any], images: dict[Any, Annotated], names: dict[Any, str], path: Path) -> int:
    crowds = 0
    for number, annotation in enumerate(annotations, start=1):
        where = f"{path.name}, annotation {number}"
        missing = [key for key in ("image_id", "category_id", "bbox") if key not in annotation]
        if missing:
            raise DataError(f"{where}: no {listing(missing)} in {annotation!s:.80}. Detection needs boxes.")
        image, name = images.get(annotation["image_id"]), names.get(annotation["category_id"])
        if image is None:
            raise DataError(f"{where}: the image_id {annotation['image_id']!r} is not among the 'images'.")
        if name is None:
            known = listing(list(names))
            raise DataError(f"{where}: the category_id {annotation['category_id']!r} is unknown; there are {known}.")
        if annotation.get("iscrowd"):
            crowds += 1
            continue
        image.boxes.append(annotation["bbox"])
        image.labels.append(name)
    return crowds


def _image_root(path: Path, names: list[str]) -> Path:
    """Where the pictures of a COCO file lie: beside it, in `images`, or in a folder of the split's name."""
    near = [path.parent, path.parent.parent]
    roots = [*near, *(folder / name for folder in near for name in IMAGE_FOLDERS), near[1] / "JPEGImages"]
    split = split_of(path.stem) or split_of(path.parent.name)
    for folder in roots.copy():
        inner = sorted(folder.iterdir()) if split and folder.is_dir() else []
        roots += [p for p in inner if split_of(p.name) == split and p.is_dir()]
    return max(roots, key=lambda root: sum((root / name).is_file() for name in names))


# -- Pascal VOC -------------------------------------------------------------------------------------------------------


def voc_files(tree: Tree) -> list[Path]:
    """The XML files whose beginning holds the element `annotation`."""
    found = []
    for path in tree.files(".xml"):
        with path.open("rb") as file:
            if b"<annotation" in file.read(500):
                found.append(path)
    return found


def read_voc_folder(tree: Tree, files: list[Path]) -> dict[str, Found]:
    """One XML file per picture; splits by train.txt and test.txt with one name a line, or by folders.

    The numbers are taken as they stand; VOC itself counts pixels from 1, which shifts a box by at most one pixel.
    """
    lists = _split_lists(tree, {path.stem for path in files})
    by_stem = {path.stem: path for path in files}
    if lists:
        chosen = {split: [_listed(name, by_stem, path) for name in names] for split, (path, names) in lists.items()}
        how = f"split by {listing([path.name for path, _ in lists.values()])}"
    else:
        chosen = {}
        for path in files:
            inner = path.relative_to(tree.root).parts[:-1]
            chosen.setdefault(next((s for part in inner if (s := split_of(part))), "train"), []).append(path)
        how = "split by folder" if len(chosen) > 1 else "no split files"
    used = sum(map(len, chosen.values()))
    found = {split: _read_voc(tree, paths, split) for split, paths in chosen.items()}
    first = next(iter(found.values()))
    first.notices.insert(0, f"{tree.root.name}: Pascal VOC format, {used} of {len(files)} XML files are used, {how}.")
    taken = {Path(row.image) for part in found.values() for row in part.rows}
    folders = {path.parent for path in taken}
    if bare := [p for p in tree.files(*IMAGE_SUFFIXES) if p.parent in folders and p.stem not in by_stem]:
        what = "pictures have no XML file and are left out"
        first.notices.append(f"{tree.root.name}: {len(bare)} {what}, for example {bare[0].name}.")
    return found


def _split_lists(tree: Tree, stems: set[str]) -> dict[str, tuple[Path, list[str]]]:
    """Text files named after a split whose lines are names of annotations (a number may follow a name)."""
    found: dict[str, tuple[Path, list[str]]] = {}
    for path in tree.files(".txt"):
        split = SPLIT_NAMES.get(path.stem.lower(), "trainval" if path.stem.lower() == "trainval" else None)
        if split is None:
            continue
        lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        names = [_stem(words[0]) for words in lines if words]
        if not stems.intersection(names):
            continue
        if split in found:
            raise DataError(f"{tree.root}: both {found[split][0]} and {path} look like the {split} split.")
        found[split] = (path, names)
    both = found.pop("trainval", None)
    if both and "train" not in found:
        found["train"] = both
    return found


def _stem(name: str) -> str:
    name = Path(name).name
    return name[: -len(Path(name).suffix)] if name.lower().endswith((*IMAGE_SUFFIXES, ".xml")) else name


def _listed(name: str, by_stem: dict[str, Path], path: Path) -> Path:
    if name not in by_stem:
        raise DataError(f"{path.name} names {name!r}, for which there is no annotation {name}.xml.")
    return by_stem[name]


def _read_voc(tree: Tree, paths: list[Path], split: str) -> Found:
    rows, difficult = [], 0
    for number, path in enumerate(paths, start=1):
        row, of_row = _read_voc_file(tree, path, number)
        rows.append(row)
        difficult += of_row
    names = tuple(sorted({label for row in rows for label in row.labels}))
    notices = [f"{split}: {difficult} boxes are marked as difficult; they are kept."] if difficult else []
    return Found(rows, f"{paths[0].parent.name}/", "xyxy", names, notices)


def _read_voc_file(tree: Tree, path: Path, number: int) -> tuple[Annotated, int]:
    try:
        root = ET.fromstring(path.read_bytes())
    except ET.ParseError as error:
        raise DataError(f"{path.name}, line {error.position[0]}: broken XML ({error}).") from None
    boxes, labels, difficult = [], [], 0
    for position, element in enumerate(root.iter("object"), start=1):
        where = f"{path.name}, object {position}"
        label, box = (element.findtext("name") or "").strip(), element.find("bndbox")
        if not label or box is None:
            raise DataError(f"{where}: {'no <name>' if not label else 'no <bndbox>'}; an object needs both.")
        corners = [box.findtext(corner) for corner in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:
            raise DataError(f"{where}: <bndbox> needs xmin, ymin, xmax and ymax.")
        boxes.append(corners)
        labels.append(label)
        difficult += element.findtext("difficult") == "1"
    name = Path((root.findtext("filename") or path.stem).strip().replace("\\", "/")).name
    image = tree.find_image(_image_folders(tree, path.parent), name) or tree.find_image([path.parent], path.stem)
    image = image or tree.find_image(_image_folders(tree, path.parent), path.stem)
    size = tuple(int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    return Annotated(str(image or path.parent / name), boxes, labels, number, path.name, (size[0], size[1])), difficult


def _image_folders(tree: Tree, at: Path) -> list[Path]:
    """Where the pictures of an annotation folder may lie: in it, in a folder for images, in any other beside it."""
    beside = [folder for folder in tree.folders if folder.parent in (at.parent, at.parent.parent) and folder != at]
    named = [f for name in IMAGE_FOLDERS for f in beside if f.name.lower() == name]
    inner = [f for folder in named for f in tree.folders if f.parent == folder and f.name == at.name]
    return list(dict.fromkeys([at, *inner, *named, *beside, at.parent]))

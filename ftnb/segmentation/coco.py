"""Outlines and run lengths of COCO's JSON as masks: every pixel gets the class of the object it lies in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftnb.segmentation.folders import split_of
from ftnb.segmentation.masks import IGNORE_INDEX, MAX_CLASSES, stored_mask
from ftnb.tables import DataError, listing
from ftnb.vision.images import stored_image

BACKGROUND = "background"


def polygon_mask(points: Sequence[float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centre lies inside a polygon (even-odd rule), shape (height, width).

    Args:
        points: x1, y1, x2, y2, … in pixels; the centre of the first pixel is (0.5, 0.5).
        size: (width, height); what lies outside is cut off.

    Raises:
        DataError: if there are fewer than three points, half a point, or something that is no number.
    """
    try:
        corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise DataError(f"a polygon is a list of numbers x1, y1, x2, y2, …; got {points!r:.60}.") from None
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise DataError(f"a polygon needs at least three points with finite numbers; got {points!r:.60}.")
    width, height = size
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((y0, y1))
        # the rows whose centre the edge passes; an edge owns its lower end and not its upper one
        rows = np.arange(max(0, np.ceil(low - 0.5)), min(height, np.ceil(high - 0.5)), dtype=np.int64)
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
            crossings[rows, columns] += 1
    return crossings[:, :width].cumsum(axis=1) % 2 == 1


def _run_lengths(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, from the third on as a difference to the one before the last.

    Source: `rleFrString` in maskApi.c of github.com/cocodataset/cocoapi.
    """
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(text):
                raise ValueError("ends in the middle of a number")
            code = ord(text[place]) - 48
            value |= (code & 31) << shift
            more, place, shift = bool(code & 32), place + 1, shift + 5
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def rle_mask(rle: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A run-length encoded mask, shape (height, width).

    Args:
        rle: "size" ([height, width]) and "counts": how many pixels are outside, inside, outside …, column by column; a
            list, or COCO's compressed text.
        size: (width, height) that it must have.

    Raises:
        DataError: if it is damaged or has another size.
    """
    counts = rle.get("counts")
    try:
        runs = _run_lengths(counts) if isinstance(counts, str) else [int(n) for n in counts or ()]
    except (TypeError, ValueError) as error:
        raise DataError(f"run lengths {counts!r:.40} cannot be read ({error}).") from None
    width, height = size
    if list(rle.get("size", ())) != [height, width]:
        raise DataError(f"run lengths of size {rle.get('size')} (height, width) for a picture of {height} × {width}.")
    if min(runs, default=-1) < 0 or sum(runs) != width * height:
        raise DataError(f"run lengths cover {sum(runs)} pixels of {width * height}, or are negative: damaged.")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def _object_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    if isinstance(segmentation, Mapping):
        return rle_mask(segmentation, size)
    mask = np.zeros(size[::-1], dtype=np.bool_)
    for polygon in segmentation:
        mask |= polygon_mask(polygon, size)
    return mask


def scene_mask(objects: Sequence[tuple[int, Any, bool]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Class indices of a picture, shape (height, width); where objects overlap, the smaller lies on top.

    Args:
        objects: for each its class index, its polygons or run lengths, and whether it is a crowd. Of a crowd nobody
            drew the outlines, so its pixels do not count where no other object is.
        size: (width, height).

    Raises:
        DataError: if an outline is damaged.
    """
    shapes = [
        (IGNORE_INDEX if crowd else index, _object_mask(outline, size), crowd) for index, outline, crowd in objects
    ]
    mask = np.zeros(size[::-1], dtype=np.uint8)
    for index, inside, _ in sorted(shapes, key=lambda shape: (not shape[2], -int(shape[1].sum()))):
        mask[inside] = index
    return mask


def coco_files(folder: Path) -> dict[str, Path]:
    """The JSON files of a folder, its "annotations" or its folders for the splits, by split; "instances" come first.

    Raises:
        DataError: if two of them could be the same split.
    """
    inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and (p.name == "annotations" or split_of(p.name))]
    files = [p for place in (folder, *inner) for p in sorted(place.glob("*.json")) if p.name != "id2label.json"]
    found: dict[str, list[Path]] = {}
    for path in files:
        split = split_of(path.stem) or split_of(path.parent.name) or ("train" if len(files) == 1 else None)
        if split is not None:
            found.setdefault(split, []).append(path)
    for split, of in found.items():
        best = [path for path in of if "instances" in path.name] or of
        if len(best) > 1:
            raise DataError(
                f"{folder}: {listing([p.name for p in best])} all look like {split}; pass {{'train': file, …}}."
            )
        found[split] = best
    return {split: of[0] for split, of in found.items()} if "train" in found else {}


def read_coco(path: Path, classes: Sequence[str] | None = None) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Read one COCO JSON with outlines.

    Args:
        path: the JSON file.
        classes: the categories to take, in this order; other objects become background. None takes all.

    Returns:
        Rows with "image" (path), "mask" (stored, of class indices) and "row" (the file's name), the class names with
        the background first, and notices.

    Raises:
        DataError: naming the file and the picture or annotation that is wrong.
    """
    content = _load(path)
    names = _class_names(content["categories"], path, classes)
    places = {
        category["id"]: names.index(category["name"]) for category in content["categories"] if category["name"] in names
    }
    known = {category["id"] for category in content["categories"]}
    folder = _image_folder(path, content["images"])
    objects: dict[Any, list[tuple[int, Any, bool]]] = {image["id"]: [] for image in content["images"]}
    without = 0
    for annotation in content["annotations"]:
        where = f"{path.name}, annotation {annotation.get('id')}"
        if annotation.get("image_id") not in objects:
            raise DataError(f"{where}: no picture has the id {annotation.get('image_id')!r}.")
        if annotation.get("category_id") not in known:
            wrong = annotation.get("category_id")
            raise DataError(f"{where}: no category has the id {wrong!r}; there are {listing(sorted(known))}.")
        if not annotation.get("segmentation"):
            without += 1
        elif annotation["category_id"] in places:
            shape = (places[annotation["category_id"]], annotation["segmentation"], bool(annotation.get("iscrowd")))
            objects[annotation["image_id"]].append(shape)
    if content["annotations"] and without == len(content["annotations"]):
        raise DataError(f"{path.name} holds boxes and no outlines; that is data for object detection.")
    rows = [_row(image, folder, objects[image["id"]], path) for image in content["images"]]
    return rows, names, _notices(path, content, objects, without)


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as JSON ({error}).") from None
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        held = listing(list(content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path.name} is no COCO file: expected the lists 'images', 'annotations', 'categories'; it holds {held}."
        )
    if not content["images"]:
        raise DataError(f"{path.name} lists no pictures.")
    for part, keys in (("images", ("id", "file_name", "width", "height")), ("categories", ("id", "name"))):
        for entry in content[part]:
            if missing := [key for key in keys if key not in entry]:
                raise DataError(f"{path.name}: an entry of {part!r} has no {missing[0]!r}: {str(entry)[:60]}.")
    return content


def _class_names(categories: list[dict[str, Any]], path: Path, classes: Sequence[str] | None) -> list[str]:
    held = [str(category["name"]) for category in categories]
    if twice := [name for name in held if held.count(name) > 1]:
        raise DataError(f"{path.name} has two categories named {twice[0]!r}.")
    if unknown := [name for name in classes or () if name not in held and name != BACKGROUND]:
        raise DataError(f"{path.name} has no category {unknown[0]!r}; it has {listing(held)}.")
    names = [BACKGROUND, *(name for name in (classes or held) if name != BACKGROUND)]
    if len(names) > MAX_CLASSES:
        raise DataError(
            f"{path.name} has {len(names) - 1} categories; choose at most {MAX_CLASSES - 1} by classes=[…]."
        )
    return names


def _image_folder(path: Path, images: list[dict[str, Any]]) -> Path:
    """Where the pictures are: beside the JSON or its folder, in a folder there, or in one named as the split."""
    name = images[0]["file_name"]
    tops = (path.parent, path.parent.parent)
    folders = [
        folder for top in tops for folder in (top, top / "images", *sorted(p for p in top.glob("*") if p.is_dir()))
    ]
    folders += [
        folder / inner for folder in folders[: len(tops) * 2] for inner in (path.stem.split("_")[-1], path.stem)
    ]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    raise DataError(
        f"{path.name} lists {name!r}, which is not there; looked beside the file and its folder, in 'images' and in "
        f"every folder of {path.parent} and {path.parent.parent}."
    )


def _row(image: dict[str, Any], folder: Path, objects: list[tuple[int, Any, bool]], path: Path) -> dict[str, Any]:
    place = f"{path.name}, picture {image['file_name']!r}"
    if not all(isinstance(image[side], int) and 0 < image[side] < 2**15 for side in ("width", "height")):
        raise DataError(f"{place}: width and height are {image['width']!r} and {image['height']!r}.")
    try:
        mask = scene_mask(objects, (image["width"], image["height"]))
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    stored = stored_mask(mask, None, place)
    photo = stored_image((folder / image["file_name"]).absolute(), None, place)
    return {"image": photo, "mask": stored, "row": image["file_name"]}


def _notices(path: Path, content: dict[str, Any], objects: dict[Any, list[Any]], without: int) -> list[str]:
    total, found = len(content["images"]), []
    empty = sum(not held for held in objects.values())
    crowds = sum(crowd for held in objects.values() for _, _, crowd in held)
    if empty:
        found.append(f"{path.name}: {empty} of {total} pictures hold no object and are background throughout.")
    if crowds:
        found.append(f"{path.name}: the pixels of {crowds} crowds do not count.")
    if without:
        found.append(
            f"{path.name}: {without} of {len(content['annotations'])} annotations have no outline and are left out."
        )
    return found

"""Folders of photos and masks that belong together by their names, and what says which of them is in which split."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftnb.segmentation.masks import stored_mask
from ftnb.sources import SPLIT_NAMES
from ftnb.tables import DataError, listing
from ftnb.vision.images import IMAGE_SUFFIXES, stored_image

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos", "pictures")
# Beginnings of names, the surest first.
MASK_FOLDERS = (
    "mask",
    "trimap",
    "segmentationclass",
    "gtfine",
    "semantic",
    "segmentation",
    "seg",
    "label",
    "annotation",
    "gt",
)
_IMAGE_ENDS = re.compile(r"[_-](leftimg8bit|image|img)$", re.IGNORECASE)
_MASK_ENDS = re.compile(
    r"[_-](gtfine_labelids|gtfine_labeltrainids|masks?|labels?|seg|segmentation|gt|l)$", re.IGNORECASE
)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Pairs:
    """Photos with their masks.

    Args:
        rows: with "image", "mask" (stored) and "row", the photo's path below the data's folder.
        missing: the paths of photos without a mask.
        notices: what else was found.
    """

    rows: Rows
    missing: list[str]
    notices: list[str]

    def complete(self) -> Rows:
        """The rows, where no mask is missing.

        Raises:
            DataError: if photos have no mask.
        """
        if self.missing:
            raise DataError(
                f"{len(self.missing)} of {len(self.rows) + len(self.missing)} photos have no mask of the same name: "
                f"{listing(self.missing[:5])}. Add the masks, take the photos away, or list those to use in train.txt."
            )
        return self.rows


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name means: "train2017" is train, "val" is valid; None if it means none."""
    found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, in order; hidden files, which some archives bring, are passed over."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def holds_masks(folder: Path) -> bool:
    """Whether a folder, or its folders for the splits, holds photos and masks."""
    return any(_two_folders(top) for top in (folder, *(p for p in _folders(folder) if split_of(p.name))))


def read_folder(folder: Path) -> tuple[dict[str, Rows], list[str], Path]:
    """Pair photos and masks below a folder, and bring them into splits.

    Photos are in a folder such as images or JPEGImages, masks in one such as masks, trimaps or SegmentationClass, or
    beside the photos with a name that ends in "_mask". Splits are folders above or below these, or lists such as
    train.txt.

    Returns:
        Rows by split, notices, and the folder of the masks.

    Raises:
        DataError: if there are none, the folders can be understood in two ways, or a photo has no mask.
    """
    tops = {split: top for top in _folders(folder) if (split := split_of(top.name)) and _two_folders(top)}
    if "train" in tops:
        pairs = {split: pair_folders(*places, folder) for split, top in tops.items() if (places := _two_folders(top))}
        rows = {split: found.complete() for split, found in pairs.items()}
        return rows, [notice for found in pairs.values() for notice in found.notices], folder
    places = _two_folders(folder)
    if places is None:
        raise DataError(_no_folders(folder))
    found = pair_folders(*places, folder)
    if lists := _split_lists(folder):
        splits = _by_lists(found, lists, places[0])
        listed = {row["row"] for of in splits.values() for row in of}
        rest = len(found.rows) + len(found.missing) - len(listed)
        in_none = f"{rest} photos are in no list ({', '.join(p.name for p in lists.values())}) and are left out."
        return splits, [*found.notices, *([in_none] if rest else [])], places[1]
    return _by_folders(found.complete(), places[0]), found.notices, places[1]


def pair_folders(images: Path, masks: Path, top: Path) -> Pairs:
    """Photos with the masks of the same name; "street_mask.png" is the mask of "street.jpg" too.

    Args:
        images: the folder of the photos.
        masks: the folder of the masks; may be the same.
        top: names in messages are relative to it.

    Raises:
        DataError: if there is no photo or no mask, or a photo has two masks.
    """
    photos = [p for p in pictures(images) if images != masks or not _MASK_ENDS.search(p.stem)]
    files = [p for p in pictures(masks) if images != masks or _MASK_ENDS.search(p.stem)]
    if not photos or not files:
        raise DataError(f"{images if not photos else masks} holds no pictures ({', '.join(IMAGE_SUFFIXES[:6])} …).")
    keys: dict[Any, list[Path]] = {}
    for file in files:
        for stem in {file.stem, _MASK_ENDS.sub("", file.stem)}:
            keys.setdefault((file.relative_to(masks).parent, stem), []).append(file)
            keys.setdefault(stem, []).append(file)
    rows, missing, used = [], [], set()
    for photo in photos:
        stem = _IMAGE_ENDS.sub("", photo.stem)
        at = photo.relative_to(images).parent
        found = next((keys[key] for key in ((at, photo.stem), (at, stem), photo.stem, stem) if key in keys), [])
        name = _below(photo, top)
        if len(found) > 1:
            raise DataError(f"{name} has {len(found)} masks: {listing([_below(p, top) for p in found])}; keep one.")
        if not found:
            missing.append(name)
            continue
        used.add(found[0])
        rows.append(
            {
                "image": stored_image(photo.absolute(), None, name),
                "mask": stored_mask(found[0].absolute(), None, name),
                "row": name,
            }
        )
    stray = len(set(files) - used)
    notices = [f"{masks.name}: {stray} masks have no photo and are left out."] if stray else []
    return Pairs(rows, missing, notices)


def _below(path: Path, top: Path) -> str:
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.name


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _two_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folder of photos and that of masks, at most two levels down; None if there are not both."""
    below = [p for top in _folders(folder) for p in (top, *_folders(top))]
    held = [p for p in below if pictures(p)]
    images = [p for p in held if p.name.lower() in IMAGE_FOLDERS]
    held = [p for p in held if not re.search("object|instance", p.name.lower())]  # masks of another task
    masks = {start: [p for p in held if p.name.lower().startswith(start)] for start in MASK_FOLDERS}
    best = next((found for found in masks.values() if found), [])
    for what, found in (("photos", images), ("masks", best)):
        level = min((len(p.parts) for p in found), default=0)
        if sum(len(p.parts) == level for p in found) > 1:
            raise DataError(
                f"{folder} has {len(found)} folders of {what}: {listing([_below(p, folder) for p in found])}. Name the "
                "two to use: data={'images': …, 'masks': …}."
            )
    if images and best:
        return min(images, key=lambda p: len(p.parts)), min(best, key=lambda p: len(p.parts))
    alone = images[0] if images else folder
    return (alone, alone) if any(_MASK_ENDS.search(p.stem) for p in alone.glob("*.png")) else None


def _no_folders(folder: Path) -> str:
    held = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    return (
        f"{folder} needs a folder of photos (images, JPEGImages …) and one of masks (masks, trimaps, SegmentationClass "
        f"…) with pictures in both; it holds {listing(held) if held else 'nothing'}. Name yours: data={{'images': …, "
        "'masks': …}, or {'train': {'images': …, 'masks': …}, 'test': …}."
    )


def _by_folders(rows: Rows, images: Path) -> dict[str, Rows]:
    """Split by the folder below `images` that a photo is in, if those are named as splits; else all is train."""
    splits: dict[str, Rows] = {}
    for row in rows:
        parts = Path(row["image"]["path"]).relative_to(images.absolute()).parts
        splits.setdefault((len(parts) > 1 and split_of(parts[0])) or "", []).append(row)
    if set(splits) == {""}:
        return {"train": rows}
    if "" in splits or "train" not in splits:
        odd = splits.get("", rows)[0]["row"]
        raise DataError(
            f"{images}: some photos are in folders named as splits, others are not, or 'train' is not there: {odd!r}."
        )
    return splits


def _split_lists(folder: Path) -> dict[str, Path]:
    """Text files that list a split's pictures; "trainval" counts as train where there is no list of train alone."""
    places = (folder, folder / "ImageSets" / "Segmentation", folder / "splits", folder / "annotations")
    found: dict[str, Path] = {}
    for path in [p for place in places for p in sorted(place.glob("*.txt"))]:
        split = split_of(path.stem) if path.stem.lower() in SPLIT_NAMES else None
        if split is not None and path.stat().st_size:
            if split in found:
                raise DataError(
                    f"{folder}: both {_below(found[split], folder)} and {_below(path, folder)} list {split}."
                )
            found[split] = path
    if "train" not in found:
        both = [place / "trainval.txt" for place in places if (place / "trainval.txt").is_file()]
        found |= {"train": both[0]} if both else {}
    return found if "train" in found else {}


def _by_lists(pairs: Pairs, lists: Mapping[str, Path], images: Path) -> dict[str, Rows]:
    stems: dict[str, Rows] = {}
    for row in pairs.rows:
        stems.setdefault(Path(row["row"]).stem, []).append(row)
    missing = {Path(name).stem for name in pairs.missing}
    splits: dict[str, Rows] = {}
    for split, path in lists.items():
        splits[split] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            name = line.split()[0]
            found = stems.get(name, stems.get(Path(name).stem, []))
            if len(found) != 1:
                what = f"there are {len(found)} photos" if found else "there is no photo"
                what = (
                    f"there is no mask for the photo {name!r}."
                    if name in missing
                    else f"{what} named {name!r} in {images.name}."
                )
                raise DataError(f"{path.name}, line {number}: {what}")
            splits[split].append(found[0])
        if not splits[split]:
            raise DataError(f"{path.name} lists no photo.")
    return splits

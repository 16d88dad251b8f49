"""Every mask read once before training: what cannot be right is an error, what makes a result doubtful a warning."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ftnb.segmentation.masks import IGNORE_INDEX, ClassTable, Color, describe, mask_values, open_mask
from ftnb.tables import DataError, Splits, listing
from ftnb.vision.images import image_name, read_image

_FEW_VALUES = 40  # more values than this and no class names: not a mask of classes


@dataclass(frozen=True)
class MaskFacts:
    """What one mask holds.

    Args:
        name: what to call it in a message.
        counts: pixels of each value, or of each colour as a number.
        mode: PIL's name for its kind of pixels.
        turned: its photo's EXIF note: 1 is upright.
    """

    name: str
    counts: Mapping[int, int]
    mode: str
    turned: int


def survey_masks(rows: Sequence[Mapping[str, Any]], split: str, coloured: bool) -> list[MaskFacts]:
    """Read every mask of a split and compare its size with that of its photo.

    Args:
        rows: "image" and "mask" as stored, and "row".
        split: the split's name, for messages.
        coloured: whether classes are told apart by colour.

    Raises:
        DataError: naming up to five masks that are missing, damaged, of another kind or of another size.
    """
    facts, problems = [], []
    for row in rows:
        place = f"{split}, row {row['row']}"
        try:
            facts.append(_mask_facts(row, coloured, place))
        except DataError as error:
            problems.append(f"{place}: {error}")
    if problems:
        more = f"\n… and {len(problems) - 5} more of {split}." if len(problems) > 5 else ""
        raise DataError("\n".join(problems[:5]) + more)
    return facts


def _mask_facts(row: Mapping[str, Any], coloured: bool, place: str) -> MaskFacts:
    mask = open_mask(row["mask"], place)
    stored, turned = _photo_size(row["image"], place)
    upright = stored[::-1] if turned >= 5 else stored  # 5 to 8 turn by a quarter
    name = image_name(row["mask"], place)
    if mask.size != upright:
        raise DataError(_wrong_size(name, image_name(row["image"], place), mask.size, stored, upright))
    codes, counts = np.unique(mask_values(mask, coloured, f"mask {name}"), return_counts=True)
    return MaskFacts(name, dict(zip(codes.tolist(), counts.tolist(), strict=True)), mask.mode, turned)


def _photo_size(image: Mapping[str, Any], place: str) -> tuple[tuple[int, int], int]:
    """A photo's size as stored, from its header alone where that is readable, and how it has to be turned."""
    try:
        with Image.open(image["path"] or io.BytesIO(image["bytes"])) as photo:
            return photo.size, photo.getexif().get(0x0112, 1)  # the tag "orientation"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return read_image(image, place=place).size, 1  # says what is wrong with it


def median_side(images: Sequence[Mapping[str, Any]], limit: int = 200) -> int:
    """The median of the photos' longer sides as a multiple of 32, between 64 and 512: a size to train at.

    Args:
        images: stored photos; of more than `limit`, an evenly spaced part is looked at.
        limit: how many.
    """
    some = images[:: -(-len(images) // limit)]
    middle = float(np.median([max(_photo_size(image, "photo")[0]) for image in some]))
    return int(np.clip(round(middle / 32) * 32, 64, 512))


def _wrong_size(mask: str, photo: str, held: tuple[int, int], stored: tuple[int, int], upright: tuple[int, int]) -> str:
    message = f"mask {mask} has {held[0]} × {held[1]} pixels, its photo {photo} {upright[0]} × {upright[1]}"
    if held == stored:
        return (
            f"{message} after the turn that its EXIF note asks for; the mask fits the photo as stored. Turn the mask "
            "too, or save the photo upright: ImageOps.exif_transpose(photo)."
        )
    if held == upright[::-1]:
        return f"{message}: width and height are exchanged (was it made from a transposed array?)."
    return (
        f"{message}. Is it the mask of another photo? If only the scale differs, resize the mask by Image.NEAREST; "
        "other ways invent values."
    )


def table_from_values(facts: Mapping[str, Sequence[MaskFacts]], ignored: Sequence[int | Color]) -> ClassTable:
    """For masks without class names: every value that occurs in train, and is not ignored, is a class of that name.

    Raises:
        DataError: if there are fewer than two such values, or too many to be classes.
    """
    held = sorted({value for fact in facts["train"] for value in fact.counts})
    values = [value for value in held if value not in ignored]
    if len(values) < 2:
        hint = ""
        if len(held) == 2:
            hint = f" If {held[1]} is a class too: classes={{'ground': {held[0]}, 'object': {held[1]}}}."
        raise DataError(
            f"the masks of train hold the values {listing(held)}, of which {listing(list(ignored))} do not count; "
            f"segmentation needs at least two classes.{hint}"
        )
    if len(values) > _FEW_VALUES:
        raise DataError(
            f"the masks of train hold {len(values)} values ({listing(values)}), too many to be classes without names. "
            "Are they photos, depths, or resized with interpolation? If they are classes, name them: "
            "classes={'road': 7, …}."
        )
    return ClassTable(tuple(map(str, values)), tuple(values), tuple(ignored))


def count_pixels(facts: MaskFacts, table: ClassTable) -> tuple[list[int], list[int]]:
    """Pixels of each class and, last, of what does not count; and the values that the table does not know."""
    counts, unknown = [0] * (len(table.names) + 1), []
    for code, number in facts.counts.items():
        index = int(table.lookup[code])
        if index == IGNORE_INDEX:
            counts[-1] += number
        elif index < len(table.names):
            counts[index] += number
        else:
            unknown.append(code)
    return counts, unknown


def count_classes(facts: Sequence[MaskFacts], table: ClassTable, split: str) -> list[list[int]]:
    """`count_pixels` of every mask of a split.

    Raises:
        DataError: if masks hold values that the table does not know; values, pixels and masks are named.
    """
    rows: list[list[int]] = []
    pixels: Counter[int] = Counter()
    masks: dict[int, list[str]] = {}
    for fact in facts:
        counts, unknown = count_pixels(fact, table)
        rows.append(counts)
        for code in unknown:
            pixels[code] += fact.counts[code]
            masks.setdefault(code, []).append(fact.name)
    if pixels:
        what = [f"{table.show(c)} ({n} pixels in {len(masks[c])} masks)" for c, n in pixels.most_common(6)]
        more = f" and {len(pixels) - 6} more" if len(pixels) > 6 else ""
        name = masks[pixels.most_common(1)[0][0]][0]
        raise DataError(
            f"{split}: masks hold {', '.join(what)}{more}, which no class has, for example {name}. Known are "
            f"{describe(table)}. Name them in classes, or list them in ignore.{_kind_hint(facts, pixels, table)}"
        )
    return rows


def _kind_hint(facts: Sequence[MaskFacts], pixels: Counter[int], table: ClassTable) -> str:
    if table.coloured:
        return " Colours that lie between others come from resizing or JPEG; then the masks have to be made again."
    if any(fact.mode.startswith("I") for fact in facts) and max(pixels) > 255:
        return " Numbers above 255 are often instances (class × 1000 + number); then use the masks of classes instead."
    if len(pixels) > 10:
        return " So many values come from resizing with interpolation, from JPEG, or from photos in place of masks."
    return ""


def mask_notices(facts: Sequence[MaskFacts], rows: Sequence[Sequence[int]], split: str, ignored: str) -> list[str]:
    """What a reader of the result should know of a split's masks: what is ignored, and what may be turned wrongly."""
    found, total = [], sum(map(sum, rows))
    lost = sum(row[-1] for row in rows)
    if lost:
        found.append(f"{split}: {lost / total:.1%} of the pixels do not count ({ignored}).")
    grey = sum(fact.mode in ("RGB", "RGBA", "LA") for fact in facts)
    if grey and not ignored.startswith("("):
        found.append(f"{split}: {grey} masks have three equal channels and are read as one.")
    turned = [fact for fact in facts if fact.turned not in (0, 1)]
    if turned:
        what = f"{len(turned)} photos are turned as their EXIF note says; make sure that their masks are too"
        found.append(f"{split}: {what}, for example {turned[0].name}.")
    return found


def check_classes(splits: Splits, names: Sequence[str]) -> list[str]:
    """Check which classes occur where, once the splits are cut; the warnings as sentences.

    Args:
        splits: with the column "pixels": of each class and, last, ignored.
        names: the classes.

    Raises:
        DataError: if fewer than two classes occur in train.
    """
    pixels = {name: np.asarray(split["pixels"][:]).sum(axis=0)[:-1] for name, split in splits.items()}
    occurs = {name: [names[int(i)] for i in np.flatnonzero(counts)] for name, counts in pixels.items()}
    if len(occurs["train"]) < 2:
        raise DataError(
            f"every pixel of train that counts is {occurs['train'][0] if occurs['train'] else 'ignored'!r}; "
            "segmentation needs at least two classes."
        )
    found = []
    if missing := [name for name in names if name not in occurs["train"]]:
        what = f"{len(missing)} of {len(names)} classes have no pixel and cannot be learnt: {listing(missing)}."
        found.append(f"train: {what}")
    for split, held in occurs.items():
        lacking = [name for name in occurs["train"] if name not in held]
        if split != "train" and lacking:
            what = f"{len(lacking)} of {len(names)} classes have no pixel, so nothing says how well they are found"
            found.append(f"{split}: {what}: {listing(lacking)}.")
    share = pixels["train"] / pixels["train"].sum()
    if share.max() > 0.5:
        most = names[int(share.argmax())]
        found.append(f"train: {share.max():.0%} of the pixels are {most!r}; a mask of nothing else has that accuracy.")
    return found

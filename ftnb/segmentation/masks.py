"""Masks as class indices: which values or colours of a picture mean which class, and which pixels do not count.

A mask is a picture of the size of its photo whose pixels name classes. What a value means is not in the file: a
`ClassTable` says it. Decoded, a mask is an array of class indices 0, 1, 2 …, with 255 where a pixel does not count.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ftnb.tables import DataError, listing
from ftnb.vision.images import image_name, stored_image

IGNORE_INDEX = 255  # "void" in PASCAL VOC and in the training labels of Cityscapes
UNKNOWN = 254  # marks, within this module, a value that the table does not know
MAX_CLASSES = 254

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """Which values (or colours) of a mask mean which class, and which do not count.

    Args:
        names: the classes; a class's place here is its index in a decoded mask.
        values: for each class its value in the source, a whole number from 0 to 65535, or its colour (r, g, b).
        ignored: values (or colours) of pixels that do not count.

    Raises:
        DataError: if names or values are there twice, a class is also ignored, or numbers and colours are mixed.
    """

    names: tuple[str, ...]
    values: tuple[int | Color, ...]
    ignored: tuple[int | Color, ...] = (IGNORE_INDEX,)

    def __post_init__(self) -> None:
        for what, items in (("class", self.names), ("value", self.values)):
            if twice := [item for item in dict.fromkeys(items) if list(items).count(item) > 1]:
                raise DataError(f"the {what} {twice[0]!r} is given twice; every class needs a value of its own.")
        if len(self.names) != len(self.values) or not 1 <= len(self.names) <= MAX_CLASSES:
            raise DataError(f"expected 1 to {MAX_CLASSES} classes with one value each, got {len(self.names)} classes.")
        for value in (*self.values, *self.ignored):
            _check_value(value)
        if len({isinstance(value, tuple) for value in (*self.values, *self.ignored)}) > 1:
            raise DataError("classes and ignore mix numbers and colours (r, g, b); give only numbers, or only colours.")
        if both := set(self.values) & set(self.ignored):
            value = min(both, key=repr)
            name = self.names[self.values.index(value)]
            raise DataError(f"the value {value} is class {name!r} and ignored as well; take it out of one of the two.")

    @property
    def coloured(self) -> bool:
        """Whether classes are told apart by colour."""
        return isinstance(self.values[0], tuple)

    @cached_property
    def lookup(self) -> NDArray[np.uint8]:
        """The class index of every value, or of every colour as r · 65536 + g · 256 + b."""
        table = np.full(2**24 if self.coloured else 2**16, UNKNOWN, dtype=np.uint8)
        for value in self.ignored:
            table[color_code(value)] = IGNORE_INDEX
        for index, value in enumerate(self.values):
            table[color_code(value)] = index
        return table

    def reordered(self, names: Sequence[str]) -> "ClassTable":
        """The same table with its classes in another order, that of a model's outputs."""
        values = dict(zip(self.names, self.values, strict=True))
        return ClassTable(tuple(names), tuple(values[name] for name in names), self.ignored)

    def show(self, code: int) -> str:
        """A value as a person writes it: 7, or (128, 64, 0)."""
        return str((code >> 16, code >> 8 & 255, code & 255)) if self.coloured else str(code)


def _check_value(value: Any) -> None:
    numbers = value if isinstance(value, tuple) else (value,)
    top = 255 if isinstance(value, tuple) else 65535
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) and 0 <= n <= top for n in numbers)
    if not whole or len(numbers) not in (1, 3):
        raise DataError(
            f"{value!r} is no value of a mask; expected a whole number from 0 to 65535, or a colour (r, g, b) with "
            "numbers from 0 to 255."
        )


def color_code(value: int | Color) -> int:
    """A value as it is, a colour as the one number r · 65536 + g · 256 + b."""
    return (value[0] << 16) + (value[1] << 8) + value[2] if isinstance(value, tuple) else value


def stored_mask(source: Any, folder: Path | None, place: str) -> dict[str, Any]:
    """A mask as a row keeps it, not yet decoded: {"path": absolute path or None, "bytes": encoded, or None}.

    Args:
        source: a path, encoded bytes, a PIL image, such a dictionary, or an array of whole numbers or booleans of
            shape (height, width).
        folder: what a relative path is relative to; None is the working directory.
        place: where it stands, for messages.

    Raises:
        DataError: if it is none of these.
    """
    if isinstance(source, Image.Image) and source.mode == "I":  # 32 bits, which PNG has not
        source = np.asarray(source)
    if hasattr(source, "__array__") and not isinstance(source, Image.Image):
        array = np.asarray(source)
        if (
            array.ndim != 2
            or array.dtype.kind not in "bui"
            or array.size == 0
            or not 0 <= array.min() <= array.max() < 2**16
        ):
            raise DataError(
                f"{place}: a mask in memory is an array of shape (height, width) with whole numbers from 0 to 65535; "
                f"got shape {array.shape} of {array.dtype}."
            )
        source = Image.fromarray(array.astype(np.uint8 if array.max() < 256 else np.uint16))
    return stored_image(source, folder, place)


def open_mask(mask: dict[str, Any], place: str) -> Image.Image:
    """Open a stored mask and load it in full.

    Raises:
        DataError: if it is missing, damaged, no picture, a JPEG, or has several frames.
    """
    name = image_name(mask, place)
    if mask["path"] is not None and not Path(mask["path"]).is_file():
        raise DataError(f"there is no mask {mask['path']!r}.")
    try:
        image = Image.open(mask["path"] or io.BytesIO(mask["bytes"]))
        image.load()
    except UnidentifiedImageError:
        raise DataError(f"mask {name} is no picture that can be read; expected a PNG.") from None
    except (OSError, SyntaxError, ValueError, MemoryError) as error:  # PIL raises any of these on damaged files
        raise DataError(f"mask {name} is damaged and cannot be read in full ({error}). Make it again.") from None
    if image.format in ("JPEG", "MPO"):
        raise DataError(
            f"mask {name} is a JPEG, which changes values near every edge, so pixels there have classes that nobody "
            "drew. Export the masks as PNG. If a mask of two classes exists only so: "
            "Image.fromarray((np.asarray(mask.convert('L')) > 127).astype('uint8')).save('mask.png')."
        )
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"mask {name} holds {getattr(image, 'n_frames', 1)} frames; expected one.")
    return image


def mask_values(image: Image.Image, coloured: bool, place: str) -> NDArray[np.int32]:
    """The values of an opened mask, or its colours as numbers (`color_code`), shape (height, width).

    Of a palette picture the indices count, not the colours, unless classes are told apart by colour. A picture with
    three equal channels is one with a single channel.

    Raises:
        DataError: if it holds colours where values are expected, is transparent, or holds no whole numbers.
    """
    if coloured:
        if "A" in image.getbands() and np.asarray(image.getchannel("A")).min() < 255:
            raise DataError(f"{place} has transparent pixels, which have no class; fill them with a colour.")
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int32), 2, 0)
        return (red << 16) + (green << 8) + blue
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.int32)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise DataError(f"{place} holds values from {low} to {high}; expected 0 to 65535.")
        return values.astype(np.int32)
    if image.mode in ("RGB", "RGBA", "LA"):
        channels = np.asarray(image.convert("RGB"))
        if (channels == channels[..., :1]).all():
            return channels[..., 0].astype(np.int32)
        raise DataError(
            f"{place} holds colours, not class numbers: {_colors(channels)}. Save masks with one channel of class "
            "numbers, or say what the colours mean: classes={'road': (128, 64, 128), …}."
        )
    raise DataError(f"{place} has mode {image.mode!r}; expected a picture with one channel of whole numbers, as PNG.")


def _colors(channels: NDArray[np.uint8]) -> str:
    """The most frequent colours of a picture, for a message."""
    colors, counts = np.unique(channels.reshape(-1, 3), axis=0, return_counts=True)
    shown = [tuple(int(v) for v in colors[i]) for i in np.argsort(-counts)[:6]]
    return ", ".join(map(str, shown)) + (f" and {len(colors) - 6} more" if len(colors) > 6 else "")


def class_indices(values: NDArray[np.int32], table: ClassTable) -> NDArray[np.uint8]:
    """The class index of every pixel; `IGNORE_INDEX` where it does not count, `UNKNOWN` where no class has it."""
    return table.lookup[values]


def load_mask(mask: dict[str, Any], table: ClassTable, place: str = "mask") -> NDArray[np.uint8]:
    """Decode a stored mask into class indices, shape (height, width), 255 where a pixel does not count.

    Raises:
        DataError: if it cannot be read or holds a value that the table does not know.
    """
    values = mask_values(open_mask(mask, place), table.coloured, image_name(mask, place))
    indices = class_indices(values, table)
    if (indices == UNKNOWN).any():
        unknown = [table.show(int(code)) for code in np.unique(values[indices == UNKNOWN])]
        raise DataError(f"mask {image_name(mask, place)} holds {listing(unknown)}; known are {describe(table)}.")
    return indices


def describe(table: ClassTable) -> str:
    """The classes with their values and what is ignored, for messages."""
    pairs = [f"{name} = {value}" for name, value in zip(table.names, table.values, strict=True)]
    shown = ", ".join(pairs[:8]) + (f" and {len(pairs) - 8} more" if len(pairs) > 8 else "")
    return shown + f"; ignored: {', '.join(map(str, table.ignored)) or 'nothing'}"

"""Pictures as people have them: files, bytes, arrays; grey, transparent, turned, 16-bit; each as plain RGB or an error.

A picture is read the way its author saw it: turned as its EXIF note says, transparent parts on white, all bits of a
16-bit scan. Whatever cannot be read is a `DataError` that names the file and says what to do.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from ftnb.files import file_digest
from ftnb.tables import DataError, Table

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 90_000_000  # above it decoding takes seconds and gigabytes; PIL itself warns there

CHANGES = {
    "turned": "were turned as their EXIF note says",
    "transparent": "have transparent parts, which are put on white",
    "16-bit": "have 16 bits a channel, of which the upper 8 are used",
    "cmyk": "are in CMYK (made for print); their colours in RGB are approximate",
    "frames": "hold several frames, of which the first is used",
}


@dataclass
class ImageNotes:
    """What had to be done to pictures, counted; the first few names of each kind are kept.

    Attributes:
        counts: how many pictures, by a key of `CHANGES`.
        names: what the first three are called.
    """

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, name: str) -> None:
        """Count one picture."""
        self.counts[what] += 1
        if len(known := self.names.setdefault(what, [])) < 3:
            known.append(name)

    def messages(self, total: int) -> list[str]:
        """One sentence for each kind: "3 of 90 pictures were turned as their EXIF note says, for example 'a.jpg'."."""
        return [
            f"{count} of {total} pictures {CHANGES[what]}, for example {self.names[what][0]!r}."
            for what, count in sorted(self.counts.items())
        ]


def image_name(source: Any, place: str = "picture") -> str:
    """What to call a picture in a message: its file's name, or its place in the data."""
    path = source.get("path") if isinstance(source, Mapping) else source
    return Path(path).name if isinstance(path, str | os.PathLike) else place


def read_image(source: Any, *, place: str = "picture", notes: ImageNotes | None = None) -> Image.Image:
    """Read one picture as RGB with 8 bits a channel.

    Args:
        source: a path; encoded bytes; a PIL image; a NumPy array of shape (height, width) or (height, width, 1, 3 or
            4) with whole numbers from 0 to 255; or a mapping with "bytes" or "path", as `datasets` gives it.
        place: what to call it in a message when it has no file name, for example "train, row 3".
        notes: counts what had to be done.

    Returns:
        A loaded image of mode "RGB".

    Raises:
        DataError: if there is no such file, or it is no picture, damaged, empty or too large.
    """
    name = image_name(source, place)
    image = _opened(source, name)
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"{name} is empty: {width} × {height} pixels.")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width} × {height} pixels ({width * height / 1e6:.0f} megapixels, at most "
            f"{MAX_PIXELS / 1e6:.0f} are read). Make it smaller first: a model sees a few hundred pixels a side."
        )
    try:
        image.load()
        return _as_rgb(image, name, notes or ImageNotes())
    except (OSError, SyntaxError, ValueError, MemoryError) as error:  # PIL raises any of these on damaged files
        raise DataError(f"{name} is damaged and cannot be read in full ({error}). Replace or remove it.") from None


def _opened(source: Any, name: str) -> Image.Image:
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Image.Image):
        return source.copy()
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"there is no picture {str(path)!r}. Paths in a table are relative to the table's folder.")
        source = path
    elif isinstance(source, bytes | bytearray):
        source = io.BytesIO(bytes(source))
    else:
        raise DataError(f"{name}: expected a path, bytes, a PIL image or an array, got {type(source).__name__}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is said as an error
            return Image.open(source)
    except Image.DecompressionBombError:
        raise DataError(
            f"{name} has far more than {MAX_PIXELS / 1e6:.0f} megapixels. Make it smaller first: a model sees a few "
            "hundred pixels a side."
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is no picture that can be read ({', '.join(IMAGE_SUFFIXES[:6])} …).") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} cannot be opened ({error}). Replace or remove it.") from None


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    shown = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if shown.ndim not in (2, 3) or (shown.ndim == 3 and shown.shape[2] not in (3, 4)):
        hint = " Channels come last: array.transpose(1, 2, 0)." if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise DataError(f"{name}: an array of shape {array.shape} is no picture (height, width[, channels]).{hint}")
    if shown.dtype != np.uint8:
        whole = shown.size > 0 and np.array_equal(shown, np.clip(np.round(shown), 0, 255))
        if not whole or float(shown.max()) <= 1:
            raise DataError(
                f"{name}: an array of {shown.dtype} with values from {shown.min():g} to {shown.max():g}; expected "
                "whole numbers from 0 to 255. For values from 0 to 1: (array * 255).round().astype('uint8')."
            )
    return Image.fromarray(np.ascontiguousarray(shown.astype(np.uint8)))


def _as_rgb(image: Image.Image, name: str, notes: ImageNotes) -> Image.Image:
    if getattr(image, "n_frames", 1) > 1:
        notes.add("frames", name)
    if image.getexif().get(0x0112, 1) not in (0, 1):  # the tag "orientation"
        notes.add("turned", name)
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name} holds measurements, not colours (mode {image.mode}). Scale it to 0-255 first.")
        if values.max() > 255:
            notes.add("16-bit", name)
            values = values / 257
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        if np.asarray(coloured)[..., 3].min() < 255:
            notes.add("transparent", name)
            ground = Image.new("RGBA", coloured.size, "white")
            coloured = Image.alpha_composite(ground, coloured)
        return coloured.convert("RGB")
    if image.mode == "CMYK":
        notes.add("cmyk", name)
    return image.convert("RGB")


def stored_image(source: Any, folder: Path | None, place: str) -> dict[str, Any]:
    """A picture as a row keeps it, not yet decoded: {"path": absolute path or None, "bytes": encoded, or None}.

    Args:
        source: a path, encoded bytes, a PIL image, a NumPy array, or such a dictionary.
        folder: what a relative path is relative to; None is the working directory.
        place: where it stands, for messages.

    Raises:
        DataError: if it is none of these.
    """
    if isinstance(source, Mapping) and {"path", "bytes"} & set(source):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str | os.PathLike) and str(source).strip():
        path = Path(str(source).strip()).expanduser()
        return {"path": str(path if path.is_absolute() else ((folder or Path.cwd()) / path)), "bytes": None}
    if isinstance(source, bytes | bytearray):
        return {"path": None, "bytes": bytes(source)}
    if isinstance(source, Image.Image | np.ndarray):
        buffer = io.BytesIO()
        image = source if isinstance(source, Image.Image) else _from_array(source, place)
        kept = image.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
        (image if kept else read_image(image, place=place)).save(buffer, "PNG")
        return {"path": None, "bytes": buffer.getvalue()}
    raise DataError(f"{place}: expected a picture (a path, bytes, a PIL image or an array), got {source!r:.60}.")


def store_images(frame: pd.DataFrame, table: Table, split: str) -> pd.DataFrame:
    """A copy of a split's rows whose column "image" holds what `stored_image` makes of its cells.

    Raises:
        DataError: naming split and row of a cell that holds no picture.
    """
    place = f"{split} ({table.source}), row {{}}"
    images = [stored_image(value, table.folder, place.format(row)) for row, value in frame["image"].items()]
    return frame.assign(image=pd.Series(images, index=frame.index, dtype=object))


def image_digest(source: Any) -> bytes:
    """A fingerprint of a picture's stored bytes; equal files have equal ones (see `ftnb.files.file_digest`)."""
    data: Any = source.get("bytes") or source.get("path") if isinstance(source, Mapping) else source
    if isinstance(data, Image.Image):
        data = repr((data.mode, data.size)).encode() + data.tobytes()
    elif isinstance(data, np.ndarray):
        data = repr((data.dtype, data.shape)).encode() + np.ascontiguousarray(data).tobytes()
    return file_digest(data)


def check_images(sources: Sequence[Any], split: str, rows: Sequence[Any], limit: int = 5000) -> list[str]:
    """Read every picture once, before training; a damaged one would else stop the training in its tenth minute.

    Args:
        sources: what `read_image` takes.
        split: the split's name, for messages.
        rows: what to call each one's row in the source.
        limit: of more pictures than this, an evenly spaced part is read.

    Returns:
        What had to be done to pictures, as sentences; and that only a part was read.

    Raises:
        DataError: naming up to five pictures that cannot be read.
    """
    step = max(1, -(-len(sources) // limit))
    notes, problems = ImageNotes(), []
    for source, row in list(zip(sources, rows, strict=True))[::step]:
        try:
            read_image(source, place=f"row {row}", notes=notes)
        except DataError as error:
            problems.append(f"{split}, row {row}: {error}")
            if len(problems) == 5:
                break
    if problems:
        raise DataError("\n".join(problems))
    looked = len(sources[::step])
    part = [f"{split}: {looked} of {len(sources)} pictures were read to check them."] if step > 1 else []
    return [f"{split}: {message}" for message in notes.messages(looked)] + part

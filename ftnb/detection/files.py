"""What the readers of boxes share: a picture as it was annotated, a split as it was found, the files of a folder."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ftnb.sources import SPLIT_NAMES
from ftnb.vision.images import IMAGE_SUFFIXES

IMAGE_FOLDERS = ("images", "jpegimages", "image", "imgs", "img")
MAX_DEPTH = 5


@dataclass
class Annotated:
    """A picture and its boxes as they were written.

    Attributes:
        image: an absolute path, or a picture in memory.
        boxes: per box, what should be four numbers.
        labels: per box, the name of its class.
        row: 1-based number of the picture in its source.
        place: where to look, for a message.
        size: (width, height) that the annotation states, where it does.
    """

    image: Any
    boxes: list[Any]
    labels: list[str]
    row: int
    place: str
    size: tuple[int, int] | None = None


@dataclass
class Found:
    """One split as it was found: its pictures, its name for messages, its box format, and the source's classes."""

    rows: list[Annotated]
    source: str
    box_format: str
    label_names: tuple[str, ...] = ()
    notices: list[str] = field(default_factory=list)


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name speaks of ("instances_val2017" → "valid"), if it is one only."""
    words = re.split(r"[^a-z]+", name.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


@dataclass(frozen=True)
class Tree:
    """A folder and what lies in it, up to a few levels deep; hidden files and folders are passed over."""

    root: Path

    @cached_property
    def folders(self) -> dict[Path, list[str]]:
        """Every folder with the names of its files, sorted."""
        found: dict[Path, list[str]] = {}
        for at, inner, names in os.walk(self.root):
            here = Path(at)
            deep = len(here.relative_to(self.root).parts) >= MAX_DEPTH
            inner[:] = [] if deep else sorted(name for name in inner if not name.startswith("."))
            found[here] = sorted(name for name in names if not name.startswith("."))
        return found

    def files(self, *suffixes: str) -> Iterator[Path]:
        """The files with one of these suffixes."""
        for folder, names in self.folders.items():
            yield from (folder / name for name in names if name.lower().endswith(suffixes))

    def find_image(self, folders: list[Path], name: str) -> Path | None:
        """A picture by its file name, or by its stem where the name has no known suffix or is not there."""
        for folder in folders:
            if name in self._names.get(folder, {}):
                return folder / name
        stem = Path(name).stem if name.lower().endswith(IMAGE_SUFFIXES) else name
        return next(
            (folder / self._stems[folder][stem] for folder in folders if stem in self._stems.get(folder, {})), None
        )

    @cached_property
    def _names(self) -> dict[Path, set[str]]:
        return {folder: set(names) for folder, names in self.folders.items()}

    @cached_property
    def _stems(self) -> dict[Path, dict[str, str]]:
        pictures = {f: [n for n in names if n.lower().endswith(IMAGE_SUFFIXES)] for f, names in self.folders.items()}
        return {folder: {Path(name).stem: name for name in reversed(names)} for folder, names in pictures.items()}

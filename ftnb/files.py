"""What tasks on pictures and on recordings share: folders with one folder of files for each class, and equal files."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ftnb.sources import SPLIT_NAMES
from ftnb.tables import SUFFIXES, DataError, Table, listing


@dataclass(frozen=True)
class FileKind:
    """A kind of file: the role of its column, what one is called, and the endings of its names."""

    role: str
    noun: str
    suffixes: tuple[str, ...]


def read_class_folders(data: Any, kind: FileKind) -> dict[str, Table] | None:
    """Tables by split of the files in class folders (perhaps in "train", "valid", "test"); None if these are no such.

    Raises:
        DataError: if files lie in the folder itself, so that nothing says what is on them, or folders cannot be meant.
    """
    if not isinstance(data, str | os.PathLike) or not (folder := Path(data).expanduser()).is_dir():
        return None
    if holds_tables(folder):
        return None
    if folders := below(folder):
        return _read_split_folders(folder, folders, kind)
    if files := _files(folder, kind):
        raise DataError(
            f"{folder} holds {len(files)} {kind.noun}s and no folders, so nothing says what is on them. Put the "
            f"{kind.noun}s of each class in a folder of its name, or give a CSV with columns {kind.role} and label."
        )
    return None


def file_digest(data: Any) -> bytes:
    """A fingerprint of a file (a path, or its bytes); equal files have equal ones.

    Of a large file the size and both ends are read, so that a folder of a million files is not read twice.
    """
    if isinstance(data, str | os.PathLike):
        if not Path(data).is_file():  # said, with its row, when files are checked
            return repr(data).encode()
        with open(data, "rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(_END)
            file.seek(max(len(head), size - _END))
            return _digest(size, head, file.read())
    data = bytes(data)
    return _digest(len(data), data[:_END], data[max(_END, len(data) - _END) :])


def duplicates(digests: Mapping[str, Sequence[bytes]], rows: Mapping[str, Sequence[Any]], nouns: str) -> list[str]:
    """Warnings about files of a later split that are also in train, byte for byte, and about twins within train.

    Args:
        digests: by split, the fingerprint of each file.
        rows: by split, what to call each one's row in the source.
        nouns: what the files are, for example "pictures".
    """
    first = dict(zip(reversed(digests["train"]), reversed(rows["train"]), strict=True))
    found = []
    for name in digests:
        if name == "train":
            continue
        twins = [(r, first[d]) for d, r in zip(digests[name], rows[name], strict=True) if d in first]
        if twins:
            shown = listing([f"{row} = {of}" for row, of in twins[:3]])
            what = f"{len(twins)} of {len(rows[name])} {nouns} are also in train ({name} = train: {shown})"
            found.append(f"{name}: {what}; on these a model may just remember.")
    within = len(digests["train"]) - len(first)
    if within:
        found.append(f"train: {within} of {len(digests['train'])} {nouns} are there more than once.")
    return found


_END = 2**16  # bytes read from either end of a file


def _digest(size: int, head: bytes, tail: bytes) -> bytes:
    return hashlib.blake2b(size.to_bytes(8, "little") + head + tail, digest_size=16).digest()


def below(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without those that programs leave behind."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _files(folder: Path, kind: FileKind) -> list[Path]:
    """The files of a kind in a folder and below it, by name."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in kind.suffixes and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def holds_tables(folder: Path) -> bool:
    """Whether a folder holds a table to train on (or a saved `datasets` folder), and not class folders only."""
    stems = {word for p in folder.iterdir() if p.suffix.lower() in SUFFIXES for word in p.stem.lower().split("_")}
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json"))
    return saved or any(SPLIT_NAMES.get(stem) == "train" for stem in stems)


def _read_split_folders(folder: Path, folders: list[Path], kind: FileKind) -> dict[str, Table]:
    named = [(SPLIT_NAMES.get(p.name.lower()), p) for p in folders]
    splits = {split: p for split, p in named if split is not None}
    if not splits:
        return {"train": _read_classes(folder, folders, kind)}
    if len(splits) < len(folders):
        odd = [p.name for split, p in named if split is None or splits[split] != p]
        raise DataError(
            f"{folder} holds folders for splits ({listing(sorted(splits))}) and also {listing(odd)}; keep one kind."
        )
    if "train" not in splits:
        raise DataError(f"{folder} has no folder 'train'; it has {listing([p.name for p in folders])}.")
    return {split: _read_classes(path, below(path), kind) for split, path in splits.items()}


def _read_classes(folder: Path, classes: list[Path], kind: FileKind) -> Table:
    if not classes:
        raise DataError(f"{folder} holds no folders; there has to be one for each class, with its {kind.noun}s in it.")
    files = {path.name: _files(path, kind) for path in classes}
    empty = [name for name, of in files.items() if not of]
    if len(empty) == len(classes):
        raise DataError(
            f"{folder}: none of the {len(classes)} folders holds a {kind.noun} ({', '.join(kind.suffixes[:6])} …)."
        )
    if empty:
        raise DataError(f"{folder}: no {kind.noun} in the class folder {listing(empty)}. Fill it, or remove it.")
    rows = [(path, name) for name, of in files.items() for path in of]
    frame = pd.DataFrame({kind.role: [str(path.absolute()) for path, _ in rows], "label": [name for _, name in rows]})
    frame.index = pd.Index([path.relative_to(folder).as_posix() for path, _ in rows])
    other = sum(p.is_file() and p.suffix.lower() not in kind.suffixes for c in classes for p in c.rglob("[!.]*"))
    notices = (f"{folder.name}: {other} files that are no {kind.noun}s are left out.",) if other else ()
    return Table(frame, folder.name, notices=notices)

"""Whatever a person passes as data, as tables by split: files, folders, tables in memory, the Hub."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Image, load_dataset, load_from_disk

from ftnb.tables import SUFFIXES, DataError, Table, listing, read_file

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}


def read_any(data: Any, *, header: bool = True) -> dict[str, Table]:
    """Read whatever a person may pass as data into tables by split: "train" and, where present, "valid" and "test".

    Args:
        data: a file, a folder with one file per split, a Hub id ("owner/name" or "owner/name:config"), a DataFrame, a
            `datasets.Dataset` or `DatasetDict`, a list of dictionaries, or a mapping from split to any of these.
        header: see `read_file`.

    Raises:
        DataError: if it is none of these or cannot be read.
    """
    if isinstance(data, str | os.PathLike):
        return _read_named(os.fspath(data), header)
    if isinstance(data, Mapping):  # a DatasetDict too
        tables: dict[str, Table] = {}
        for name, part in data.items():
            split = SPLIT_NAMES.get(str(name).lower())
            if split is None or split in tables:
                problem = "given twice" if split in tables else "unknown"
                raise DataError(f"split {name!r} is {problem}; a mapping needs the keys 'train', 'valid', 'test'.")
            tables[split] = _read_part(part, header, str(name))
        return _with_train(tables, "the mapping")
    return {"train": _read_part(data, header, "table")}


def _read_named(name: str, header: bool) -> dict[str, Table]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _read_folder(path, header)
    if path.is_file():
        return {"train": read_file(path, header=header)}
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name) and path.suffix.lower() not in SUFFIXES
    if not is_hub_id or name.startswith("."):
        raise DataError(
            f"{name!r} is no file and no folder (looked for {path.absolute()}). Data is a path, "
            "'builtin:reviews', a Hub id such as 'owner/name', or a table in memory."
        )
    return _read_hub(name)


def _read_hub(name: str) -> dict[str, Table]:
    repository, _, config = name.partition(":")
    try:
        loaded = load_dataset(repository, config or None)
    except ConnectionError as error:  # datasets raises it for every way of not reaching the Hub
        raise DataError(
            f"cannot load {repository!r} from the Hub: {error}. Without a network give a local file or folder, or "
            "'builtin:reviews'; behind a mirror set HF_ENDPOINT to its address before Python starts."
        ) from error
    except Exception as error:
        hint = f" Name one as '{repository}:config'." if "onfig" in str(error) else ""
        raise DataError(f"cannot load {repository!r} from the Hub: {error}{hint}") from error
    return read_any(_known_splits(loaded, name))


def _known_splits(loaded: Any, name: str) -> Any:
    if not isinstance(loaded, Mapping):
        return loaded
    known = {split: part for split, part in loaded.items() if str(split).lower() in SPLIT_NAMES}
    if "train" not in {SPLIT_NAMES[str(split).lower()] for split in known}:
        raise DataError(f"{name!r} has the splits {listing(list(loaded))}; a split 'train' is needed.")
    return known


def _read_folder(folder: Path, header: bool) -> dict[str, Table]:
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
        return read_any(_known_splits(load_from_disk(str(folder)), folder.name))
    found: dict[str, Path] = {}
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    for path in files:
        words = re.split(r"[^a-z]+", path.stem.lower())
        splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if len(splits) != 1:
            continue
        (split,) = splits
        if split in found:
            raise DataError(f"{folder}: both {found[split].name} and {path.name} look like the {split} split.")
        found[split] = path
    if "train" not in found:
        held = listing([p.name for p in files]) if files else "no table"
        raise DataError(
            f"{folder} needs one file for training, such as train.csv (and valid.csv, test.csv; also .tsv, .jsonl, "
            f".parquet); it holds {held}."
        )
    return {split: read_file(path, header=header) for split, path in found.items()}


def _read_part(part: Any, header: bool, name: str) -> Table:
    if isinstance(part, str | os.PathLike):
        return read_file(Path(part).expanduser(), header=header)
    if isinstance(part, DatasetDict):
        raise DataError(f"{name}: a DatasetDict inside a mapping; pass the DatasetDict itself, or one of its splits.")
    orders: dict[str, tuple[str, ...]] = {}
    if isinstance(part, Dataset):
        orders = {c: tuple(f.names) for c, f in part.features.items() if isinstance(f, ClassLabel)}
        for column, feature in list(part.features.items()):
            if isinstance(feature, Image | Audio):  # decoded when it is needed
                part = part.cast_column(column, type(feature)(decode=False))
        frame = pd.DataFrame({column: list(part[column]) for column in part.column_names}, dtype=object)
        for column, names in orders.items():  # −1 marks a missing label
            frame[column] = [names[i] if i is not None and i >= 0 else None for i in frame[column]]
        for column, feature in part.features.items():  # several labels in a row, such as a tag for each word
            if isinstance(of := getattr(feature, "feature", None), ClassLabel):
                frame[column] = [None if ids is None else [of.names[i] for i in ids] for ids in frame[column]]
    elif isinstance(part, pd.DataFrame):
        frame = part.copy(deep=False)
    elif isinstance(part, Sequence) and all(isinstance(row, Mapping) for row in part):
        frame = pd.DataFrame([dict(row) for row in part], dtype=object)
    else:
        raise DataError(
            f"{name}: cannot read data of type {type(part).__name__}; expected a path, a DataFrame, a "
            "datasets.Dataset, a list of dictionaries, or a mapping from split to one of these."
        )
    if frame.empty:
        raise DataError(f"{name} holds no rows.")
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return Table(frame, "table", orders)


def _with_train(tables: dict[str, Table], name: str) -> dict[str, Table]:
    if "train" not in tables:
        raise DataError(f"{name} has no split 'train'; it has {listing(list(tables))}.")
    return tables

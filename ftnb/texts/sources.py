"""Texts with one label, with several labels, or in pairs, brought into splits from wherever they are."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, List, Value

from ftnb.data import load_splits, split_tables
from ftnb.rules import SEVERAL_LABELS
from ftnb.sources import read_any
from ftnb.tables import DataError, Splits, Table, has_header, listing, select_columns

ROLES = ("text", "label", "text_pair")
ALL = "all labels"  # a column that carries a row's labels through the cut into splits
NONE = "(none)"  # what a row without labels counts as in that cut


def load_text_splits(
    data: Any,
    *,
    columns: Mapping[str, str | int] | None = None,
    label_separator: str | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Load texts and labels; what the data is shows in what it holds.

    Texts come in pairs if `columns` names a "text_pair" or there is a column of that name. A row has several labels
    if its label is a list, or if `label_separator` says what stands between them in a cell.

    Args:
        data: whatever `ftnb.data.load_splits` takes.
        columns: role ("text", "label", "text_pair") → column name, or position in a file without a header line.
        label_separator: what stands between the labels in a cell, for example ";".
        valid_fraction: share of the training rows to cut off where there is no validation split.
        test_fraction: the same for the test; 0 means no test.
        seed: decides which rows are cut.

    Returns:
        Splits with the columns "text", "text_pair" (if there are pairs), "label" and "row"; "label" is a text, or with
        several labels a sorted list of texts, which may be empty.

    Raises:
        DataError: if the data cannot be read, or a row's labels are not what those of the others are.
    """
    columns = dict(columns or {})
    for role in columns:
        if role not in ROLES:
            raise DataError(f"columns names the role {role!r}; this task knows {listing(ROLES)}.")
        if not isinstance(columns[role], str | int):
            raise DataError(
                f"columns gives {role!r} {columns[role]!r}, but a role has one column."
                f"{SEVERAL_LABELS if role == 'label' else ''}"
            )
    fractions: dict[str, Any] = {"valid_fraction": valid_fraction, "test_fraction": test_fraction, "seed": seed}
    if isinstance(data, str) and data.startswith("builtin:"):
        if label_separator is not None:
            raise DataError(f"{data} has one label in each row; leave label_separator={label_separator!r} out.")
        return load_splits(data, columns=columns, **fractions)
    tables = read_any(data, header=has_header(columns))
    pairs = "text_pair" in columns or "text_pair" in tables["train"].frame.columns
    roles = ROLES if pairs else ROLES[:2]
    for table in tables.values():
        select_columns(table, columns, roles)  # says what is missing
    column = columns.get("label", "label")
    found = read_label_lists(tables, column, label_separator)
    if found is None:
        splits = split_tables(tables, columns=columns, roles=roles, **fractions)
    else:
        tables = with_label_lists(tables, column, found)
        named = {**columns, ALL: ALL}
        splits = _unpacked(split_tables(tables, columns=named, roles=(*roles, ALL), **fractions))
        splits.notices.insert(0, _how(column, label_separator, splits))
    if pairs:
        first, second = splits.columns["text"], splits.columns["text_pair"]
        splits.notices.insert(0, f"texts come in pairs: {first!r} and {second!r}.")
    return splits


def read_label_lists(
    tables: Mapping[str, Table], column: str | int, separator: str | None
) -> dict[str, list[list[str] | None]] | None:
    """The labels of each row, by split, where rows have several; None where each row has one.

    A row whose labels are not known has None, one that has none an empty list.

    Raises:
        DataError: if a label is no text, or lists are mixed with texts, or `separator` does not fit the labels.
    """
    cells = [cell for cell in tables["train"].frame[column] if not _missing(cell)]
    lists = any(_is_list(cell) for cell in cells)
    place = f"train ({tables['train'].source}), column {column!r}"
    if lists and separator is not None:
        raise DataError(f"{place}: labels are lists already; leave label_separator={separator!r} out.")
    if lists:
        _refuse_vectors(cells, place)
    else:
        texts = [cell for cell in cells if isinstance(cell, str)]
        if texts and sum(bool(re.fullmatch(r"\s*\[.*\]\s*", text)) for text in texts) > len(texts) / 2:
            raise DataError(
                f"{place}: {texts[0]!r} looks like a list written as text. Keep lists in a JSONL file, or join the "
                "labels of a row with a separator (\"a;b\") and pass label_separator=';'."
            )
        if separator is None:
            return None
        if not any(separator in text for text in texts):
            shown = repr(texts[0]) if texts else "nothing"
            raise DataError(
                f"{place}: the separator {separator!r} never occurs; a cell holds, for example, {shown}. Name the "
                "separator that is there, or leave label_separator out if every row has one label."
            )
    found: dict[str, list[list[str] | None]] = {}
    for split, table in tables.items():
        where = f"{split} ({table.source}), row {{}}, column {column!r}"
        found[split] = [
            _labels_of_list(cell, where.format(row)) if lists else _labels_of_cell(cell, separator, where.format(row))
            for row, cell in table.frame[column].items()
        ]
    return found


def with_label_lists(
    tables: Mapping[str, Table], column: str | int, found: Mapping[str, list[list[str] | None]]
) -> dict[str, Table]:
    """Tables whose label column holds each row's rarest label, by which rows are cut, and a column with all of them."""
    counts = Counter(label for labels in found["train"] for label in labels or ())
    packed = {}
    for split, table in tables.items():
        frame = table.frame.copy(deep=False)
        unlabelled = not any(found[split])  # a test without labels is left out
        rarest = [min(labels, key=lambda label: (counts[label], label)) if labels else NONE for labels in found[split]]
        frame[column] = pd.Series("" if unlabelled else rarest, index=frame.index, dtype=object)
        # Text, not lists, because the tables' cleaning compares cells.
        frame[ALL] = pd.Series([json.dumps(labels) for labels in found[split]], index=frame.index, dtype=object)
        packed[split] = replace(table, frame=frame, label_names={})
    return packed


def _unpacked(splits: Splits) -> Splits:
    """Splits whose label is the list of all labels."""

    def unpack(split: Dataset, name: str) -> Dataset:
        lists = [json.loads(labels) for labels in split[ALL][:]]
        unknown = [row for row, labels in zip(split["row"][:], lists, strict=True) if labels is None]
        if unknown:
            where = f"{name} ({splits.sources[name]}), row {unknown[0]}, column {splits.columns['label']!r}"
            raise DataError(f"{where}: the list of labels is missing ({len(unknown)} in all). No label is [].")
        return split.remove_columns(["label", ALL]).add_column("label", lists, feature=List(Value("string")))

    columns = {role: column for role, column in splits.columns.items() if role != ALL}
    unpacked = {name: unpack(split, name) for name, split in splits.items()}
    return replace(splits, **unpacked, columns=columns)


def _how(column: str | int, separator: str | None, splits: Splits) -> str:
    how = "holds lists" if separator is None else f"is cut at {separator!r}"
    names = {label for labels in splits.train["label"][:] for label in labels}
    mean = sum(map(len, splits.train["label"][:])) / len(splits.train)
    return f"several labels in a row: column {column!r} {how}; {len(names)} labels, {mean:.1f} in a row on average."


def _missing(cell: Any) -> bool:
    if _is_list(cell):  # an array compares element by element
        return False
    return cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell)) or cell == ""


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple | set | frozenset | np.ndarray)


def _refuse_vectors(cells: Sequence[Any], place: str) -> None:
    sizes = {len(cell) for cell in cells if _is_list(cell)}
    values = {value for cell in cells if _is_list(cell) for value in cell if isinstance(value, int | float | np.number)}
    if len(sizes) == 1 and sizes != {1} and values in ({0, 1}, {1}, {0}):
        raise DataError(
            f"{place}: {list(cells[0])} looks like a 0 or 1 for each label. Give the names of the labels that are 1: "
            "[name for name, flag in zip(names, row) if flag]."
        )


def _labels_of_list(cell: Any, place: str) -> list[str] | None:
    if _missing(cell):
        return None
    if not _is_list(cell):
        raise DataError(f"{place}: expected a list of labels as in other rows, got {type(cell).__name__} {cell!r}.")
    return sorted({_label(label, place) for label in cell})


def _labels_of_cell(cell: Any, separator: str | None, place: str) -> list[str] | None:
    parts = [] if _missing(cell) else cell.split(separator) if isinstance(cell, str) else [cell]
    return sorted({_label(part, place) for part in parts if not isinstance(part, str) or part.strip()})


def _label(label: Any, place: str) -> str:
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return str(int(label))
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"{place}: a label must be text, got {type(label).__name__} {label!r}.")
    return label.strip()


def as_columns(texts: Any, pairs: bool) -> tuple[list[str], list[str] | None]:
    """What a person asks a model about as texts and, for a model of pairs, the second texts.

    Args:
        texts: a list of texts; for pairs of tuples (text, text_pair), or of texts with a tab between the two.
        pairs: whether the model reads pairs.

    Raises:
        DataError: if it is anything else; the message says how to ask.
    """
    if not pairs:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"predict takes a list of texts; got {type(texts).__name__} {texts!r:.60}.")
        return list(texts), None
    asked = [tuple(text.split("\t")) if isinstance(text, str) else text for text in texts]
    asked = [(pair.get("text"), pair.get("text_pair")) if isinstance(pair, Mapping) else pair for pair in asked]
    if isinstance(texts, str) or not all(
        isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in asked
    ):
        raise DataError(
            "this model reads two texts together: predict([('first text', 'second text')]), or one text with a tab "
            f"between the two; got {texts!r:.60}."
        )
    return [pair[0] for pair in asked], [pair[1] for pair in asked]

"""Table files (CSV, TSV, JSONL, Parquet) as rows with the columns a task asks for.

Every row keeps the number it has in its source, so that a message can say where to look.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from datasets import Dataset

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class DataError(ValueError):
    """Something is wrong with the data or with how it was named; raised before any training."""


@dataclass(frozen=True)
class Table:
    """One split as it was found: its rows, where they came from, and how the source orders its labels.

    Args:
        frame: the rows; its index holds the 1-based row (line) numbers of the source.
        source: what to call it in a message, for example "reviews.csv".
        label_names: per column, the order of its classes where the source states one.
        folder: what relative paths in it are relative to; None is the working directory.
        notices: what was done while reading that a reader of the result should know.
    """

    frame: pd.DataFrame
    source: str
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """The rows to train on, to choose by, and to report on.

    Args:
        train, valid, test: `datasets.Dataset` with one column per role and "row", the 1-based row in the source.
        notices: what was done to the data that a reader of the result should know.
        sources: per split, what to call it in a message.
        columns: per role, the name (or position) of its column in the source.
        label_names: the order of the classes where the source states one.
    """

    train: Dataset
    valid: Dataset
    test: Dataset | None = None
    notices: list[str] = field(default_factory=list)
    sources: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str | int] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None

    def items(self) -> list[tuple[str, Dataset]]:
        """The splits that are there, by name, in the order train, valid, test."""
        pairs = [("train", self.train), ("valid", self.valid), ("test", self.test)]
        return [(name, split) for name, split in pairs if split is not None]

    def named(self, name: str) -> Dataset:
        """The rows of one split.

        Raises:
            DataError: if there is no such split, or it has no rows.
        """
        known = {split: rows for split, rows in self.items() if len(rows)}
        if name not in known:
            raise DataError(f"there is no split {name!r}; there are {', '.join(map(repr, known)) or 'none'}.")
        return known[name]


def normalise_text(text: str) -> str:
    """A text's form for comparison: Unicode NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_file(path: Path, *, header: bool = True) -> Table:
    """Read one CSV, TSV, JSONL or Parquet file; every field of a CSV or TSV stays a string.

    Text such as "NA" or "null" is text. A TSV is read without quoting, because sentences carry stray quotes.

    Args:
        path: the file; its suffix names the format.
        header: whether the first line of a CSV or TSV holds the column names; otherwise they are 0, 1, 2 …

    Raises:
        DataError: if the file is missing, empty, not UTF-8, or a row does not fit; the line is named.
    """
    if not path.is_file():
        raise DataError(f"file {path} not found (looked in {path.absolute().parent}).")
    if path.suffix.lower() in (".csv", ".tsv"):
        frame = _read_delimited(path, header)
    elif path.suffix.lower() == ".jsonl":
        frame = _read_jsonl(path)
    elif path.suffix.lower() == ".parquet":
        frame = pd.read_parquet(path)
        frame.index = pd.RangeIndex(1, len(frame) + 1)
    else:
        raise DataError(f"{path.name}: cannot read '{path.suffix}' files; expected one of {', '.join(SUFFIXES)}.")
    if frame.empty:
        raise DataError(f"{path.name} holds no rows.")
    return Table(frame, path.name, folder=path.absolute().parent)


def has_header(columns: Mapping[str, str | int]) -> bool:
    """Whether a file's first line holds names: not where columns are given by their places."""
    return not any(isinstance(column, int) for column in columns.values())


def select_columns(table: Table, columns: Mapping[str, str | int], roles: Sequence[str]) -> Table:
    """Pick the column of each role and rename it to the role.

    Args:
        table: rows as read.
        columns: role → column name, or position in a file without a header line.
        roles: the roles a task needs; a role that `columns` does not name has the column of the same name.

    Raises:
        DataError: if a role is unknown, or a column is missing or there twice.
    """
    for role in columns:
        if role not in roles:
            raise DataError(f"columns names the role {role!r}; this task knows {listing(roles)}.")
    names = list(table.frame.columns)
    wanted = {role: columns.get(role, role) for role in roles}
    for role, name in wanted.items():
        if names.count(name) != 1:
            raise DataError(_missing_column(table, role, name))
    if len(set(wanted.values())) < len(wanted):
        raise DataError(f"columns gives two roles the same column: {wanted}.")
    frame = table.frame[list(wanted.values())].set_axis(list(wanted), axis=1)
    orders = {role: table.label_names[str(name)] for role, name in wanted.items() if str(name) in table.label_names}
    return replace(table, frame=frame, label_names=orders)


def clean_columns(table: Table, columns: Mapping[str, str | int], split: str) -> pd.DataFrame:
    """Make text and label columns strings: whole numbers without ".0", a missing cell as an empty string.

    Raises:
        DataError: if a cell that should be text is something else; split, row and column are named.
    """
    cleaned = table.frame.astype(object).copy()
    for role in {"text", "text_pair", "label"} & set(cleaned.columns):
        place = f"{split} ({table.source}), row {{}}, column {columns.get(role, role)!r}"
        values = [_clean(value, role, place.format(row)) for row, value in table.frame[role].items()]
        cleaned[role] = pd.Series(values, index=cleaned.index, dtype=object)
    return cleaned


def _clean(value: Any, role: str, place: str) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, str):
        if _half_characters(value):
            raise DataError(f"{place}: half of a character (a lone \\ud800 or its like); remove it.")
        return value.strip() if role == "label" else value
    if role != "label":
        raise DataError(f"{place}: expected text, got {type(value).__name__} {value!r}.")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _half_characters(text: str) -> bool:
    """Whether a text holds surrogates, which no encoding can write: JSON's escapes and broken programs make them."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


def _missing_column(table: Table, role: str, name: str | int) -> str:
    names = list(table.frame.columns)
    if names.count(name) > 1:
        return f"{table.source} has {names.count(name)} columns named {name!r}; rename all but one."
    if isinstance(name, int):
        if not isinstance(names[0], int):
            return f"column {name} not found in {table.source}; it has {listing(names)}. Name the column."
        return f"column {name} not found in {table.source}; a row has {len(names)} fields, counted from 0."
    message = f"column {name!r} not found in {table.source}; it has {listing(names)}."
    near = get_close_matches(name, [n for n in names if isinstance(n, str)], n=1)
    suggestion = near[0] if near else f"the column that holds the {role}"
    message += f" Pass columns={{{role!r}: {suggestion!r}}}."
    if table.source.lower().endswith((".csv", ".tsv")):
        message += f" If the file has no header line, give positions, for example columns={{{role!r}: 0, …}}."
    return message


def listing(names: Sequence[Any]) -> str:
    """Names for a message, at most eight of them."""
    shown = [repr(n if not isinstance(n, str) or len(n) < 40 else n[:37] + "…") for n in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def read_text(path: Path) -> str:
    """A file's text, which must be UTF-8.

    Raises:
        DataError: if it is not there or not UTF-8; the line is named.
    """
    if not path.is_file():
        raise DataError(f"file {path} not found (looked in {path.absolute().parent}).")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        guess = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        reader = {".csv": "read_csv", ".tsv": "read_csv", ".jsonl": "read_json"}.get(path.suffix.lower())
        call = f"pandas.{reader}({path.name!r}, encoding={guess!r}, …)"
        other = f", or read it yourself and pass the table: {call}" if reader else f" (it may be {guess})"
        raise DataError(
            f"{path.name}, line {line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8. Save the "
            f"file as UTF-8{other}."
        ) from None


def _read_delimited(path: Path, header: bool) -> pd.DataFrame:
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter == "," and "," not in first:  # spreadsheets write ';' where ',' is the decimal sign
        delimiter = next((d for d in (";", "\t") if d in first), ",")
    # The csv module rather than pandas: it counts physical lines and refuses a row that does not fit.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    limit = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        rows, lines = _numbered(reader, path.name)
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise DataError(f"{path.name} is empty.")
    width = len(rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            hint = "" if quoting == csv.QUOTE_NONE else " A field that holds the separator must stand in double quotes."
            raise DataError(f"{path.name}, line {line}: {len(row)} fields, but the first line has {width}.{hint}")
    if header:
        return pd.DataFrame(rows[1:], columns=[name.strip() for name in rows[0]], index=lines[1:], dtype=object)
    return pd.DataFrame(rows, columns=range(width), index=lines, dtype=object)


def _numbered(reader: Any, name: str) -> tuple[list[list[str]], list[int]]:
    rows, lines, start = [], [], 1
    try:
        for row in reader:
            if row:  # a blank line is no row
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {start}: {error}. A field that holds a double quote must stand in double quotes, with "
            'every quote inside it doubled: "she said ""no""".'
        ) from None
    return rows, lines


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows, lines = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path.name}, line {number}: not JSON ({error}).") from None
        if "\\ud" in line.lower() and _half_characters(json.dumps(row, ensure_ascii=False)):
            raise DataError(f"{path.name}, line {number}: half of a character (a lone \\ud800 or its like); remove it.")
        if not isinstance(row, dict):
            raise DataError(f'{path.name}, line {number}: expected an object such as {{"text": …}}, got {line[:40]}.')
        rows.append(row)
        lines.append(number)
    return pd.DataFrame(rows, index=lines, dtype=object)

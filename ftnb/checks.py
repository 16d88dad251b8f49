"""Checks before training: what cannot be right is an error, what makes a result doubtful is a warning."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from ftnb.tables import DataError, Splits, normalise_text

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """Something that a check found: how bad it is, what to tell, and the rows (numbers or files) in the source."""

    level: Level
    message: str
    split: str
    rows: tuple[Any, ...] = ()


def _problem(splits: Splits, level: Level, split: str, role: str, rows: Sequence[Any], what: str) -> Problem:
    shown = ", ".join(map(str, rows[:5])) + (f" … ({len(rows)} in all)" if len(rows) > 5 else "")
    where = f"{split} ({splits.sources.get(split, split)})"
    where += f", row{'s' if len(rows) > 1 else ''} {shown}" if rows else ""
    return Problem(level, f"{where}, column {splits.columns.get(role, role)!r}: {what}", split, tuple(rows))


def find_errors(splits: Splits) -> list[Problem]:
    """Faults in labels, and in text where there is any, that no training can be right with."""
    found = []
    for name, split in splits.items():
        for role in [role for role in ("text", "label") if role in split.column_names]:
            rows = [row for row, value in zip(split["row"][:], split[role][:], strict=True) if not value.strip()]
            if rows:
                what = f"the {role} is empty; fill it in or remove the row."
                found.append(_problem(splits, "error", name, role, rows, what))
    known = set(splits.train["label"][:]) - {""}
    if len(known) < 2:
        what = f"every row has the label {next(iter(known), '')!r}; a classifier needs at least two classes."
        found.append(_problem(splits, "error", "train", "label", [], what))
    for name, split in splits.items()[1:]:
        odd = {row: v for row, v in zip(split["row"][:], split["label"][:], strict=True) if v and v not in known}
        if odd:
            labels = ", ".join(repr(v) for v in sorted(set(odd.values()))[:5])
            what = f"{labels} never occurs in train, so it cannot be predicted. Training knows {len(known)} classes."
            found.append(_problem(splits, "error", name, "label", list(odd), what))
    return found


def find_warnings(splits: Splits) -> list[Problem]:
    """Leakage between splits, equal texts with different labels, labels spelled two ways, classes too rare to learn."""
    found = _find_equal_texts(splits) + find_label_warnings(splits)
    return sorted(found, key=lambda problem: problem.split == "train")  # first what puts the measuring in doubt


def _find_equal_texts(splits: Splits) -> list[Problem]:
    found = []
    of_text: dict[str, dict[str, int]] = {}  # normalised text → label → its first row in train
    for row, text, label in zip(splits.train["row"][:], splits.train["text"][:], splits.train["label"][:], strict=True):
        of_text.setdefault(normalise_text(text), {}).setdefault(label, row)
    for name, split in splits.items()[1:]:
        rows = [r for r, text in zip(split["row"][:], split["text"][:], strict=True) if normalise_text(text) in of_text]
        if rows:
            what = f"{len(rows)} of {len(split)} texts are also in train; on these a model may just remember."
            found.append(_problem(splits, "warning", name, "text", rows, what))
    torn = sorted(row for labels in of_text.values() if len(labels) > 1 for row in labels.values())
    if torn:
        found.append(_problem(splits, "warning", "train", "label", torn, "equal texts carry different labels."))
    return found


def find_label_warnings(splits: Splits) -> list[Problem]:
    """Splits too small to measure by, labels spelled two ways, classes too rare to learn."""
    found = []
    for name, split in splits.items()[1:]:
        if len(split) < 20:
            what = f"only {len(split)} rows: each one right or wrong moves accuracy by {100 / len(split):.0f} points."
            found.append(_problem(splits, "warning", name, "label", [], what))
    counts = pd.Series(splits.train["label"][:]).value_counts()
    spelled = pd.Series(counts.index).groupby([normalise_text(label) for label in counts.index]).agg(list)
    for names in spelled[spelled.map(len) > 1]:
        what = f"{', '.join(map(repr, sorted(names)))} count as different classes; spell them alike if they are one."
        found.append(_problem(splits, "warning", "train", "label", [], what))
    rare = counts[counts < 3]
    if len(rare):
        what = f"{len(rare)} of {len(counts)} classes have fewer than 3 rows, for example {rare.index[0]!r}."
        found.append(_problem(splits, "warning", "train", "label", [], what))
    return found


def check_labels(splits: Splits) -> list[str]:
    """Check the labels of examples that are no text, before training; the warnings as sentences.

    Raises:
        DataError: if there are errors; the message holds all of them, one a line.
    """
    errors = find_errors(splits)
    if errors:
        raise DataError("\n".join(problem.message for problem in errors))
    return [problem.message for problem in find_label_warnings(splits)]


def check_text_labels(splits: Splits) -> list[Problem]:
    """Check text and labels before training.

    Returns:
        The warnings.

    Raises:
        DataError: if there are errors; the message holds all of them, one a line.
    """
    errors = find_errors(splits)
    if errors:
        raise DataError("\n".join(problem.message for problem in errors))
    return find_warnings(splits)


def label_order(splits: Splits) -> list[str]:
    """The classes in a fixed order: the source's own, else whole numbers by value, else by name."""
    names = set(splits.train["label"][:])
    if splits.label_names is not None:
        return [name for name in splits.label_names if name in names]
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)

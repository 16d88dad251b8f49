"""Checks before training: what cannot be right is an error, what makes a result doubtful is a warning."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from datasets import Dataset

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


def labels_of(label: Any) -> list[str]:
    """The labels of a row: its one label, or the list of them where rows have several; a missing one is none."""
    return [label] if isinstance(label, str) and label else list(label)


def _has_several(split: Dataset) -> bool:
    return not all(isinstance(label, str) for label in split["label"][:])


def find_errors(splits: Splits) -> list[Problem]:
    """Faults in labels, and in text where there is any, that no training can be right with."""
    found = []
    for name, split in splits.items():
        for role in [role for role in ("text", "text_pair", "label") if role in split.column_names]:
            cells = zip(split["row"][:], split[role][:], strict=True)
            rows = [row for row, value in cells if isinstance(value, str) and not value.strip()]
            if rows:
                what = f"the {role} is empty; fill it in or remove the row."
                found.append(_problem(splits, "error", name, role, rows, what))
    known = {label for row in splits.train["label"][:] for label in labels_of(row)}
    if len(known) < 2:
        only = repr(next(iter(known), ""))
        what = f"every row has the label {only}; a classifier needs at least two classes."
        if _has_several(splits.train):
            what = f"there is only the label {only}; make it two classes, such as {only} and 'other', one in each row."
        found.append(_problem(splits, "error", "train", "label", [], what))
    for name, split in splits.items()[1:]:
        odd = {
            row: new
            for row, label in zip(split["row"][:], split["label"][:], strict=True)
            if (new := set(labels_of(label)) - known)
        }
        if odd:
            labels = ", ".join(repr(label) for label in sorted(set().union(*odd.values()))[:5])
            what = f"{labels} never occurs in train, so it cannot be predicted. Training knows {len(known)} classes."
            found.append(_problem(splits, "error", name, "label", list(odd), what))
    return found


def find_warnings(splits: Splits) -> list[Problem]:
    """Leakage between splits, equal texts with different labels, labels spelled two ways, classes too rare to learn."""
    found = _find_equal_texts(splits) + find_label_warnings(splits)
    return sorted(found, key=lambda problem: problem.split == "train")  # first what puts the measuring in doubt


def _find_equal_texts(splits: Splits) -> list[Problem]:
    found = []
    of_text: dict[str, dict[str, int]] = {}  # normalised text, or pair → label → its first row in train
    for row, text, label in zip(splits.train["row"][:], _texts(splits.train), splits.train["label"][:], strict=True):
        of_text.setdefault(text, {}).setdefault(", ".join(labels_of(label)), row)
    for name, split in splits.items()[1:]:
        rows = [row for row, text in zip(split["row"][:], _texts(split), strict=True) if text in of_text]
        if rows:
            things = "pairs" if "text_pair" in split.column_names else "texts"
            what = f"{len(rows)} of {len(split)} {things} are also in train; on these a model may just remember."
            found.append(_problem(splits, "warning", name, "text", rows, what))
    torn = sorted(row for labels in of_text.values() if len(labels) > 1 for row in labels.values())
    if torn:
        found.append(_problem(splits, "warning", "train", "label", torn, "equal texts carry different labels."))
    return found


def _texts(split: Dataset) -> list[str]:
    """Each row's text, or its pair of texts, in its form for comparison."""
    texts = [normalise_text(text) for text in split["text"][:]]
    if "text_pair" not in split.column_names:
        return texts
    return [f"{a}\t{normalise_text(b)}" for a, b in zip(texts, split["text_pair"][:], strict=True)]


def find_label_warnings(splits: Splits) -> list[Problem]:
    """Splits too small to measure by, labels spelled two ways, classes too rare to learn."""
    found = []
    for name, split in splits.items()[1:]:
        if len(split) < 20:
            what = f"only {len(split)} rows: each one right or wrong moves accuracy by {100 / len(split):.0f} points."
            found.append(_problem(splits, "warning", name, "label", [], what))
    counts = pd.Series(splits.train["label"][:]).explode().value_counts()  # of each label, where rows have several
    spelled = pd.Series(counts.index).groupby([normalise_text(label) for label in counts.index]).agg(list)
    for names in spelled[spelled.map(len) > 1]:
        what = f"{', '.join(map(repr, sorted(names)))} count as different classes; spell them alike if they are one."
        found.append(_problem(splits, "warning", "train", "label", [], what))
    rare = counts[counts < 3]
    if len(rare):
        what = f"{len(rare)} of {len(counts)} classes have fewer than 3 rows, for example {rare.index[0]!r}."
        found.append(_problem(splits, "warning", "train", "label", [], what))
    return found + (_find_one_sided(splits, counts) if _has_several(splits.train) else [])


def _find_one_sided(splits: Splits, counts: pd.Series) -> list[Problem]:
    """Labels that every row has, and labels that no row has which they are measured on."""
    found = []
    if len(always := counts[counts == len(splits.train)]):
        what = f"every row has the label {always.index[0]!r}, so nothing can be learnt about it."
        found.append(_problem(splits, "warning", "train", "label", [], what))
    for name, split in splits.items()[1:]:
        absent = sorted(set(counts.index) - {label for row in split["label"][:] for label in row})
        if absent:
            shown = ", ".join(map(repr, absent[:5])) + (" …" if len(absent) > 5 else "")
            what = f"no row has the label {shown}; macro F1 counts a label that cannot be found as 0."
            found.append(_problem(splits, "warning", name, "label", [], what))
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
    names = {label for row in splits.train["label"][:] for label in labels_of(row)}
    if splits.label_names is not None:
        return [name for name in splits.label_names if name in names]
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)

"""Sentences with entities from wherever they are: CoNLL files, JSONL, folders, the Hub, memory, built-in."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ftnb.builtin.names import named_splits
from ftnb.data import split_tables
from ftnb.entities.conll import CONLL_SUFFIXES, read_conll
from ftnb.entities.examples import Sentence
from ftnb.entities.tags import name_scheme, orphans, split_tag, to_bio
from ftnb.entities.words import SpanFaults, tag_text
from ftnb.sources import SPLIT_NAMES, read_any
from ftnb.tables import SUFFIXES, DataError, Splits, Table, listing, read_file

# What the columns of a table may be called where nobody says it.
NAMES = {
    "text": ("text",),
    "entities": ("entities", "spans", "label", "labels"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
}
COLUMNS = ("text", "words", "tags", "places")  # of the splits that come out


@dataclass
class EntityData:
    """Sentences as they were found, with tags of any known scheme.

    Args:
        splits: sentences by split.
        sources: per split, what to call it in a message.
        notices: what a reader of the result should know.
    """

    splits: dict[str, list[Sentence]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def load_entity_splits(
    data: Any,
    *,
    columns: Mapping[str, str | int] | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Read sentences with entities (`read_entities`), bring their tags into one scheme, BIO, and cut them into splits.

    Returns:
        Splits with the columns "text", "words", "tags" (BIO), "places" ([start, end] of each word) and "row".

    Raises:
        DataError: if the data cannot be read.
    """
    found = read_entities(data, columns)
    notices = [*found.notices, *unify_tags(found)]
    tables = {}
    for split, sentences in found.splits.items():
        rows = {
            "text": [sentence.text for sentence in sentences],
            "words": [sentence.words for sentence in sentences],
            "tags": [sentence.tags for sentence in sentences],
            "places": [[list(place) for place in sentence.places] for sentence in sentences],
        }
        index = [sentence.row for sentence in sentences]
        tables[split] = Table(pd.DataFrame(rows, index=index, dtype=object), found.sources[split])
    splits = split_tables(
        tables, columns={}, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed, roles=COLUMNS
    )
    splits.notices[:0] = notices
    return splits


def read_entities(data: Any, columns: Mapping[str, str | int] | None = None) -> EntityData:
    """Read sentences with entities, and leave out those without a word.

    Args:
        data: "builtin:names"; a CoNLL file (a word and its tag on each line) or a folder with one for each split;
            JSONL, Parquet, a Hub id, or rows in memory, with "text" and "entities" (or "spans") counted in
            characters, or with "tokens" and "tags"; or a mapping from "train", "valid", "test" to any of these.
        columns: role ("text", "entities", "tokens", "tags") → column name, or its position in a CoNLL file.

    Raises:
        DataError: if it cannot be read.
    """
    columns = dict(columns or {})
    if unknown := [role for role in columns if role not in NAMES]:
        raise DataError(f"columns names the role {unknown[0]!r}; this task knows {listing(list(NAMES))}.")
    if isinstance(data, str) and data.startswith("builtin:"):
        if data != "builtin:names":
            raise DataError(f"{data!r} is unknown; the built-in data with entities is 'builtin:names'.")
        data = named_splits()
    found = EntityData()
    for split, part in _parts(data).items():
        if isinstance(part, Path):
            sentences, num_empty = read_conll(part, columns)
            found.sources[split] = part.name
            if num_empty:
                what = f"{num_empty} lines have a tag but no word and are passed over"
                found.notices.append(f"{split} ({part.name}): {what}.")
        else:
            found.sources[split] = part.source
            sentences = _read_table(part, columns, split, found.notices)
        found.splits[split] = [sentence for sentence in sentences if sentence.places]
        if empty := [sentence.row for sentence in sentences if not sentence.places]:
            what = f"{len(empty)} of {len(sentences)} sentences are empty and left out, {rows_of(empty)}"
            found.notices.append(f"{split} ({found.sources[split]}): {what}.")
        if not found.splits[split]:
            raise DataError(f"{split} ({found.sources[split]}) holds no words.")
    return found


def rows_of(rows: Sequence[Any], what: str = "row") -> str:
    """Up to five row (or line) numbers for a message, and how many there are."""
    rows = list(dict.fromkeys(rows))
    shown = ", ".join(map(str, rows[:5])) + (f" … ({len(rows)} in all)" if len(rows) > 5 else "")
    return f"{what}{'s' if len(rows) > 1 else ''} {shown}"


def unify_tags(found: EntityData) -> list[str]:
    """Bring the tags of all splits into BIO, in place; what was done, as sentences.

    Raises:
        DataError: if a tag has an unknown form; split and row are named.
    """
    for split, sentences in found.splits.items():
        for sentence in sentences:
            for tag in dict.fromkeys(sentence.tags):
                try:
                    split_tag(tag)
                except DataError as error:
                    raise DataError(f"{split} ({found.sources[split]}), row {sentence.row}: {error}") from None
    scheme = name_scheme(sentence.tags for sentences in found.splits.values() for sentence in sentences)
    notices = []
    if scheme == "IO":
        notices.append(
            "the tags are IO (no 'B-' occurs) and are turned into BIO; two neighbouring entities of one type cannot be "
            "told apart in IO and count as one."
        )
    elif scheme == "IOB1":
        notices.append("the tags are IOB1 ('B-' only between neighbouring entities) and are turned into BIO.")
    for split, sentences in found.splits.items():
        odd: list[int] = []
        for sentence in sentences:
            odd += [sentence.lines[i] if sentence.lines else sentence.row for i in orphans(sentence.tags)]
            sentence.tags = to_bio(sentence.tags)
        if odd and scheme == "BIO":
            of_lines = any(sentence.lines for sentence in sentences)
            where = rows_of(odd, "line" if of_lines else "row")
            what = f"{len(odd)} 'I-' tags continue no entity of their type and are read as 'B-'"
            notices.append(f"{split} ({found.sources[split]}), {where}: {what}.")
    return notices


def _parts(data: Any) -> dict[str, Table | Path]:
    """By split, the path of a CoNLL file or a table."""
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        if path.is_dir() and not any((path / f"dataset_{name}.json").exists() for name in ("dict", "info")):
            return {split: _file(of) for split, of in _split_files(path).items()}
        if path.is_file() or path.suffix.lower() in (*CONLL_SUFFIXES, *SUFFIXES):
            return {"train": _file(path)}
    elif isinstance(data, Mapping) and all(isinstance(part, str | os.PathLike) for part in data.values()):
        named = {SPLIT_NAMES.get(str(name).lower(), str(name)): Path(part).expanduser() for name, part in data.items()}
        if len(named) == len(data) and set(named) <= {"train", "valid", "test"} and "train" in named:
            return {split: _file(path) for split, path in named.items()}
    return dict(read_any(data))


def _file(path: Path) -> Table | Path:
    if path.suffix.lower() == ".csv":
        form = "one word a line and its tag behind a tab or spaces (CoNLL), or JSONL with 'text' and 'entities'"
        raise DataError(f"{path.name}: sentences with entities are not read from CSV; expected {form}.")
    is_table = path.suffix.lower() in (".jsonl", ".parquet")
    return read_file(path) if is_table else path


def _split_files(folder: Path) -> dict[str, Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (*CONLL_SUFFIXES, ".jsonl", ".parquet"))
    found: dict[str, Path] = {}
    for path in files:
        words = re.split(r"[^a-z]+", path.stem.lower())
        meant = {SPLIT_NAMES[end] for word in words for end in SPLIT_NAMES if word == end}
        if len(meant) != 1:
            continue
        (split,) = meant
        if split in found:
            raise DataError(f"{folder}: both {found[split].name} and {path.name} look like the {split} split.")
        found[split] = path
    if "train" not in found:
        held = listing([path.name for path in files]) if files else "no such file"
        what = "train.conll or train.jsonl (and valid, test)"
        raise DataError(f"{folder} needs one file for training, such as {what}; it holds {held}.")
    return found


def _read_table(table: Table, columns: Mapping[str, str | int], split: str, notices: list[str]) -> list[Sentence]:
    names = {role: _column(table, role, columns) for role in NAMES}
    of_spans = names["text"] is not None and names["entities"] is not None
    if not of_spans and (names["tokens"] is None or names["tags"] is None):
        held = listing(list(table.frame.columns))
        raise DataError(
            f"{table.source} has the columns {held}; expected 'text' and 'entities', or 'tokens' and 'tags'. Name "
            "them, for example columns={'tokens': 'words', 'tags': 'ner'}."
        )
    faults, sentences = SpanFaults(f"{split} ({table.source})"), []
    roles = ("text", "entities") if of_spans else ("tokens", "tags")
    columns_of = (table.frame[names[role]].tolist() for role in roles)
    for row, left, right in zip(table.frame.index, *columns_of, strict=True):
        place = f"{split} ({table.source}), row {row}"
        if of_spans:
            if not isinstance(left, str):
                raise DataError(f"{place}: expected text, got {type(left).__name__} {left!r:.60}.")
            places, tags = tag_text(left, _list(right, place), row, faults)
            sentences.append(Sentence(left, places, tags, row))
        else:
            sentences.append(_tagged(_list(left, place), _list(right, place), row, place))
    notices += _fault_notices(faults)
    return sentences


def _column(table: Table, role: str, columns: Mapping[str, str | int]) -> str | None:
    held = list(table.frame.columns)
    if role in columns:
        if columns[role] not in held:
            raise DataError(f"column {columns[role]!r} not found in {table.source}; it has {listing(held)}.")
        return str(columns[role])
    return next((name for name in NAMES[role] if name in held), None)


def _list(value: Any, place: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, np.ndarray):  # so Parquet gives lists
        return list(value)
    if isinstance(value, list | tuple):
        return list(value)
    raise DataError(f"{place}: expected a list, got {type(value).__name__} {value!r:.60}.")


def _tagged(words: list[Any], tags: list[Any], row: int, place: str) -> Sentence:
    if len(words) != len(tags):
        raise DataError(f"{place}: {len(words)} words have {len(tags)} tags; each word needs one.")
    for value in (*words, *tags):
        if not isinstance(value, str):
            hint = " Give the names of the tags, such as 'B-person', not their numbers." if value in tags else ""
            raise DataError(f"{place}: expected words and tags as text, got {value!r:.60}.{hint}")
    kept = [(word.strip(), tag) for word, tag in zip(words, tags, strict=True) if word.strip()]
    return Sentence.from_words([word for word, _ in kept], [tag for _, tag in kept], row)


def _fault_notices(faults: SpanFaults) -> list[str]:
    notices = []
    if faults.widened:
        what = f"{len(faults.widened)} entities begin or end inside a word and are widened to whole words"
        hint = ""
        if len(faults.one_short) == len(faults.widened) > 1:
            hint = " All lack their last character only: is 'end' the place of the last one? It must be one more."
        notices.append(f"{faults.source}, {rows_of(faults.widened)}: {what}.{hint}")
    if faults.overlapping:
        what = f"{len(faults.overlapping)} entities overlap a longer one and are left out; a word has one tag"
        notices.append(f"{faults.source}, {rows_of(faults.overlapping)}: {what}.")
    return notices

"""Conversations from wherever they are: prompts with answers, chat messages, Alpaca's form; files, the Hub, memory."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ftnb.builtin.instructions import instruction_splits
from ftnb.data import split_tables
from ftnb.sources import read_any
from ftnb.tables import DataError, Splits, Table, has_header, listing, read_text

Message = dict[str, str]  # {"role": "user", "content": "…"}
ROLES = ("system", "user", "assistant")
COLUMNS = ("messages", "prompt", "completion", "instruction", "input", "output")
BUILTIN = "builtin:instructions"
FORMS = (
    "'prompt' and 'completion', 'messages', or 'instruction' and 'output'. Other names: "
    "columns={'prompt': 'question', 'completion': 'answer'}"
)


def load_conversations(
    data: Any,
    *,
    columns: Mapping[str, str | int] | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Read conversations and cut them into splits; rows with one prompt stay together.

    Args:
        data: "builtin:instructions"; a JSONL, JSON, CSV, TSV or Parquet file; a folder with one such file per split; a
            Hub id; a table in memory; or a mapping from "train", "valid", "test" to any of these. A row has the columns
            "prompt" and "completion" (texts, or lists of messages), or "messages" (a list of {"role", "content"}), or
            "instruction", "output" and perhaps "input".
        columns: role → column name, where a column has another one.
        valid_fraction: share of the training rows to cut off where there is no validation split.
        test_fraction: the same for the test; 0 means no test.
        seed: decides which rows are cut.

    Returns:
        Splits with the columns "messages", "text" (what comes before the last answer) and "row".

    Raises:
        DataError: if the data cannot be read; every row that is no conversation is named.
    """
    columns = dict(columns or {})
    if unknown := [role for role in columns if role not in COLUMNS]:
        raise DataError(f"columns names the role {unknown[0]!r}; this task knows {listing(COLUMNS)}.")
    if isinstance(data, str) and data.startswith("builtin:"):
        if data != BUILTIN:
            raise DataError(f"{data!r} is unknown; the built-in conversations are {BUILTIN!r}.")
        data = instruction_splits()
    tables, notices = {}, []
    for split, table in read_any(_open_json(data), header=has_header(columns)).items():
        conversations, unanswered = read_table(table, columns)
        texts = ["\n".join(message["content"] for message in of[:-1]) for of in conversations]
        frame = pd.DataFrame({"messages": conversations, "text": texts}, index=table.frame.index, dtype=object)
        tables[split] = Table(frame, table.source, notices=table.notices)
        if unanswered:
            what = f"{unanswered} conversations end without an answer; what comes after the last one is left out"
            notices.append(f"{split} ({table.source}): {what}.")
    splits = split_tables(
        tables, columns={}, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed,
        roles=("messages", "text"),
    )  # fmt: skip
    splits.notices[:0] = notices
    return splits


def _open_json(data: Any) -> Any:
    """Read files that hold one JSON list, which the readers of tables do not know; the rest stays what it is."""
    if isinstance(data, Mapping):
        return data if hasattr(data, "column_names") else {name: _open_json(part) for name, part in data.items()}
    if not isinstance(data, str | os.PathLike) or Path(data).suffix.lower() != ".json":
        return data
    path = Path(data).expanduser()
    try:
        rows = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name} is not JSON ({error}). One object a line is JSONL: name it .jsonl.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path.name}: expected a list of objects, got {type(rows).__name__}.")
    return rows


def read_table(table: Table, columns: Mapping[str, str | int]) -> tuple[list[list[Message]], int]:
    """The conversation of each row, up to its last answer, and how many had something after it.

    Raises:
        DataError: if the columns are missing, or naming each row that is no conversation.
    """
    read = _reader(table, columns)
    errors: dict[str, list[Any]] = {}
    found, unanswered = [], 0
    for (row, _), cells in zip(table.frame.iterrows(), table.frame.to_dict("records"), strict=True):
        try:
            messages = read(cells)
            last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
            if last is None:
                raise ValueError("there is no answer (no message of the role 'assistant')")
        except ValueError as error:
            errors.setdefault(str(error), []).append(row)
            continue
        unanswered += last + 1 < len(messages)
        found.append(messages[: last + 1])
    if errors:
        lines = [f"{table.source}, {_rows(rows)}: {what}." for what, rows in errors.items()]
        raise DataError("\n".join(lines[:8]))
    return found, unanswered


def _rows(rows: Sequence[Any]) -> str:
    shown = ", ".join(map(str, rows[:5])) + (f" … ({len(rows)} in all)" if len(rows) > 5 else "")
    return f"row{'s' if len(rows) > 1 else ''} {shown}"


def _reader(table: Table, columns: Mapping[str, str | int]) -> Callable[[dict[Any, Any]], list[Message]]:
    names, source = list(table.frame.columns), table.source
    of = {role: columns.get(role, role) for role in COLUMNS}
    for role in columns:
        if of[role] not in names:
            raise DataError(f"column {of[role]!r} not found in {source}; it has {listing(names)}.")
    there = [role for role in COLUMNS if of[role] in names]
    if "messages" in there:
        return lambda cells: messages_of(cells[of["messages"]], "messages")
    for ask, answer in (("prompt", "completion"), ("instruction", "output")):
        if ask in there and answer in there:
            more = of["input"] if ask == "instruction" and "input" in there else None
            return lambda cells: _pair(cells, of[ask], of[answer], more)
        if ask in there:
            raise DataError(f"{source} has a column {of[ask]!r} but none for the answer ({answer!r}); give {FORMS}.")
    raise DataError(f"{source} has the columns {listing(names)}; a row needs {FORMS}.")


def _pair(cells: dict[Any, Any], ask: Any, answer: Any, more: Any) -> list[Message]:
    asked, answered = (cells[name] for name in (ask, answer))
    if not isinstance(asked, str) and not _missing(asked):
        return [*messages_of(asked, ask), *messages_of(answered, answer)]
    if more is not None and isinstance(cells[more], str) and cells[more].strip():
        asked = f"{asked}\n\n{cells[more]}"
    return [_message("user", asked, f"column {ask!r}"), _message("assistant", answered, f"column {answer!r}")]


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def messages_of(value: Any, name: Any) -> list[Message]:
    """A list of messages as data may hold it, checked.

    Raises:
        ValueError: saying what is wrong with it.
    """
    value = value.tolist() if hasattr(value, "tolist") else value  # from Parquet it is an array
    if not isinstance(value, list | tuple) or not all(isinstance(message, Mapping) for message in value):
        raise ValueError(f"column {name!r} must be a list of messages {{'role', 'content'}}, got {value!r:.60}")
    if not value:
        raise ValueError(f"column {name!r} holds no message")
    messages = []
    for number, message in enumerate(value, start=1):
        if not {"role", "content"} <= message.keys():
            raise ValueError(f"message {number} has the keys {listing(list(message))}; expected 'role' and 'content'")
        if message["role"] not in ROLES:
            raise ValueError(f"message {number} has the role {message['role']!r}; known are {listing(ROLES)}")
        messages.append(_message(message["role"], message["content"], f"message {number}"))
    return messages


def _message(role: str, content: Any, place: str) -> Message:
    what = "answer" if role == "assistant" else "text"
    if _missing(content) or (isinstance(content, str) and not content.strip()):
        raise ValueError(f"the {what} is empty ({place}); fill it in or remove the row")
    if not isinstance(content, str):
        raise ValueError(f"{place} must be text, got {type(content).__name__} {content!r:.40}")
    return {"role": role, "content": content}

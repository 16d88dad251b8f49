"""Recordings with a label or a transcript from wherever they are: folders, tables, the Hub, memory, built-in."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ftnb.audio.clips import RECORDINGS, check_clips, clip_digest, clip_seconds
from ftnb.data import split_tables
from ftnb.files import below, duplicates, holds_tables, read_class_folders
from ftnb.sources import SPLIT_NAMES, read_any
from ftnb.tables import DataError, Splits, Table, has_header, listing, read_file, read_text

BUILTIN_COMMANDS, BUILTIN_DIGITS = "builtin:commands", "builtin:spoken-digits"
COMMAND_CLIPS = {"train": 200, "valid": 100, "test": 200}
DIGIT_CLIPS = {"train": 200, "valid": 50, "test": 100}
TABLES = (
    "metadata.csv",
    "metadata.jsonl",
    "metadata.parquet",
    "transcripts.tsv",
    "transcripts.csv",
    "transcripts.jsonl",
)
PATHS, TEXTS = ("audio", "file_name", "path", "file"), ("text", "transcription", "transcript", "sentence")


def load_clip_splits(
    data: Any,
    *,
    roles: Sequence[str],
    columns: Mapping[str, str | int] | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Load recordings with labels or transcripts and bring them into splits; see also `check_split_clips`.

    Args:
        data: "builtin:commands" or "builtin:spoken-digits"; for labels a folder with one folder of recordings for each
            class (or such folders in "train", "valid", "test"); for transcripts what `read_transcripts` takes; a table
            with a column of paths, relative to the table's own folder; or whatever else `ftnb.data.load_splits` takes.
        roles: ("audio", "label") or ("audio", "text").
        columns: role → column name, or position in a file without a header line.
        valid_fraction: share of the training rows to cut off where there is no validation split.
        test_fraction: the same for the test; 0 means no test.
        seed: decides which rows are cut; equal recordings (or transcripts) are never cut apart.

    Returns:
        Splits with the columns "audio" (see `ftnb.audio.clips.stored_clip`), "label" or "text", and "row".

    Raises:
        DataError: if the data cannot be read.
    """
    columns = dict(columns or {})
    header = has_header(columns)
    tables = read_recordings(data, header=header) if "label" in roles else read_transcripts(data, header=header)
    return split_tables(
        tables, columns=columns, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed, roles=roles
    )


def check_split_clips(splits: Splits, rate: int, max_seconds: float | None = None) -> list[str]:
    """Read every recording once, before training; what they need, which will be cut, which are in two splits.

    Args:
        splits: with the columns "audio" and "row".
        rate: samples a second of the model.
        max_seconds: what longer recordings will be cut to.

    Raises:
        DataError: naming up to five recordings that cannot be read.
    """
    found, digests, rows = [], {}, {}
    for name, split in splits.items():
        rows[name] = split["row"][:]
        found += check_clips(split["audio"][:], name, rows[name], rate)
        digests[name] = [clip_digest(clip) for clip in split["audio"][:]]
        if max_seconds is not None:
            cut = sum(clip_seconds(clip)[0] > max_seconds for clip in split["audio"][:])
            found += [f"{name}: {cut} of {len(split)} recordings are cut to {max_seconds:g} seconds."] if cut else []
    return found + duplicates(digests, rows, "recordings")


def read_recordings(data: Any, *, header: bool = True) -> dict[str, Table]:
    """Read labelled recordings into tables by split, not yet decoded.

    Raises:
        DataError: if there are none, or the folders' order is not one that says which recording is of which class.
    """
    if isinstance(data, str) and data.startswith("builtin:"):
        if data != BUILTIN_COMMANDS:
            raise DataError(f"{data!r} is unknown; the built-in recordings with labels are {BUILTIN_COMMANDS!r}.")
        from ftnb.builtin.speech import spoken_commands

        return read_any({split: spoken_commands(split, n) for split, n in COMMAND_CLIPS.items()})  # type: ignore[arg-type]
    found = read_class_folders(data, RECORDINGS)
    return read_any(data, header=header) if found is None else found


def read_transcripts(data: Any, *, header: bool = True) -> dict[str, Table]:
    """Read recordings with transcripts into tables by split, not yet decoded.

    Args:
        data: "builtin:spoken-digits"; a folder (or one with folders "train", "valid", "test") with recordings and
            either a table (`TABLES`; a column of paths or names and one of texts), LJ Speech's metadata.csv
            (id|text|normalised text), LibriSpeech's *.trans.txt, or a text file beside each recording; a table of
            paths; or whatever else `ftnb.data.load_splits` takes.
        header: whether a table's first line holds the column names.

    Raises:
        DataError: if there are no transcripts.
    """
    if isinstance(data, str) and data.startswith("builtin:"):
        if data != BUILTIN_DIGITS:
            raise DataError(f"{data!r} is unknown; the built-in recordings with transcripts are {BUILTIN_DIGITS!r}.")
        from ftnb.builtin.speech import spoken_digits

        return read_any({split: spoken_digits(split, n) for split, n in DIGIT_CLIPS.items()})  # type: ignore[arg-type]
    folder = Path(data).expanduser() if isinstance(data, str | os.PathLike) else None
    if folder is None or not folder.is_dir() or holds_tables(folder):
        return {name: _with_known_names(table) for name, table in read_any(data, header=header).items()}
    splits = {SPLIT_NAMES[p.name.lower()]: p for p in below(folder) if p.name.lower() in SPLIT_NAMES}
    if splits and "train" not in splits:
        raise DataError(f"{folder} has no folder 'train'; it has {listing([p.name for p in below(folder)])}.")
    return {name: _read_folder(path, header) for name, path in (splits or {"train": folder}).items()}


def _with_known_names(table: Table) -> Table:
    # The first known name of a column becomes its role's, unless the role's own name is there.
    names = {}
    for role, known in (("audio", PATHS), ("text", TEXTS)):
        if found := [name for name in known if name in table.frame.columns]:
            names[found[0]] = role
    renamed = {name: role for name, role in names.items() if name != role}
    return replace(table, frame=table.frame.rename(columns=renamed))


def _read_folder(folder: Path, header: bool) -> Table:
    for name in TABLES:
        path = folder / name
        if path.is_file():
            piped = name == "metadata.csv" and "|" in read_text(path).partition("\n")[0]
            return _read_lj_speech(path) if piped else _with_known_names(read_file(path, header=header))
    clips = {p.with_suffix("").as_posix(): p for p in _recordings(folder)}
    if not clips:
        raise DataError(f"{folder} holds no recording ({', '.join(RECORDINGS.suffixes[:5])} …).")
    lists = sorted(folder.rglob("*.trans.txt"))
    if lists:
        return _read_librispeech(folder, lists)
    texts = {key: Path(f"{key}.txt") for key in clips}
    there = [key for key, text in texts.items() if text.is_file()]
    if not there:
        raise DataError(
            f"{folder} holds {len(clips)} recordings and no transcripts. Give a table with the columns audio and text "
            f"({', '.join(TABLES[:2])} …), or put a .txt of the same name beside each recording."
        )
    rows = [(clips[key], read_text(texts[key]).strip()) for key in there]
    missing = len(clips) - len(there)
    notes = (f"{folder.name}: {missing} recordings without a .txt beside them are left out.",) if missing else ()
    return _table(folder, rows, notes)


def _recordings(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in RECORDINGS.suffixes and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def _table(folder: Path, rows: Sequence[tuple[Path, str]], notices: tuple[str, ...] = ()) -> Table:
    frame = pd.DataFrame(
        {"audio": [str(p.absolute()) for p, _ in rows], "text": [text for _, text in rows]}, dtype=object
    )
    frame.index = pd.Index([p.relative_to(folder).as_posix() for p, _ in rows])
    return Table(frame, folder.name, notices=notices)


def _read_lj_speech(path: Path) -> Table:
    clips = {p.stem: p for p in _recordings(path.parent)}
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, *texts = line.split("|")
        if not texts:
            raise DataError(f"{path.name}, line {number}: expected id|text, got {line!r:.60}.")
        if name not in clips:
            raise DataError(f"{path.name}, line {number}: there is no recording {name!r} in {path.parent} or below it.")
        rows.append((clips[name], texts[-1].strip()))
    return _table(path.parent, rows)


def _read_librispeech(folder: Path, lists: Sequence[Path]) -> Table:
    rows = []
    for path in lists:
        clips = {p.stem: p for p in _recordings(path.parent)}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            name, _, text = line.strip().partition(" ")
            if name and name not in clips:
                raise DataError(f"{path.name}, line {number}: there is no recording {name!r} beside it.")
            if name:
                rows.append((clips[name], text.strip()))
    return _table(folder, rows)


def normalise_transcript(text: str) -> str:
    """A transcript as a recogniser is measured by: lower case, no punctuation but apostrophes, single spaces."""
    kept = re.sub(r"[^\w' ]+", " ", text.casefold().replace("’", "'")).replace("_", " ")
    return " ".join(kept.split())

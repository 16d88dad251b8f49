"""Files with one word a line and its tag in another column, sentences parted by blank lines (CoNLL and its kin)."""

from collections.abc import Mapping
from pathlib import Path

from ftnb.entities.examples import Sentence
from ftnb.entities.tags import is_tag
from ftnb.tables import DataError, read_text

CONLL_SUFFIXES = (".conll", ".txt", ".tsv", ".bio", ".iob", ".iob2", ".io", ".ner", ".annotated")


def read_conll(path: Path, columns: Mapping[str, str | int]) -> tuple[list[Sentence], int]:
    """Read the sentences of a file with a word and its tag on each line.

    Columns are parted by tabs where the first line of words has one, else by spaces. Lines of white space part
    sentences, and so do lines that begin with "-DOCSTART-". A line that begins with "# " and does not end in a tag is
    a comment.

    Args:
        path: the file, in UTF-8.
        columns: "tokens" and "tags" → place of the column, counted from 0, or from the end with −1; by default the
            first and the last.

    Returns:
        The sentences, and how many lines had a tag but no word; these are passed over.

    Raises:
        DataError: if the file cannot be read or a line does not fit; the line is named.
    """
    word_at, tag_at = (_position(columns, role, default) for role, default in (("tokens", 0), ("tags", -1)))
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    lines: list[int] = []
    separator: str | None = None
    width, num_empty = 0, 0

    def close() -> None:
        if words:
            sentences.append(Sentence.from_words(words[:], tags[:], lines[0], lines[:]))
        for column in (words, tags, lines):
            column.clear()

    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            close()
            continue
        if width == 0 and "\t" in line:
            separator = "\t"
        fields = [field.strip() for field in line.strip("\r\n").split(separator)]
        if line.startswith("# ") and not is_tag(fields[-1]):
            continue
        width = width or len(fields)
        _check_line(fields, width, separator, f"{path.name}, line {number}", (word_at, tag_at))
        if not fields[word_at]:
            num_empty += 1
            continue
        words.append(fields[word_at])
        tags.append(fields[tag_at])
        lines.append(number)
    close()
    if not sentences:
        raise DataError(
            f"{path.name} holds no words; expected lines such as 'Vienna B-place', blank between sentences."
        )
    return sentences, num_empty


def _position(columns: Mapping[str, str | int], role: str, default: int) -> int:
    place = columns.get(role, default)
    if isinstance(place, int):
        return place
    raise DataError(
        f"columns names {place!r} for {role}, but a file with a word on each line has no names for its columns; give "
        f"a position, for example columns={{{role!r}: {default}}}."
    )


def _check_line(fields: list[str], width: int, separator: str | None, place: str, used: tuple[int, int]) -> None:
    by = "tabs" if separator else "spaces"
    if len(fields) == 1:
        raise DataError(f"{place}: expected a word and its tag, parted by a tab or spaces; got only {fields[0]!r:.60}.")
    if len(fields) != width:
        raise DataError(f"{place}: {len(fields)} columns, parted by {by}, but the first line has {width}.")
    if any(not -width <= at < width for at in used):
        raise DataError(f"{place}: there are {width} columns, counted from 0; columns asks for {max(used)}.")
    if not is_tag(fields[used[1]]):
        raise DataError(
            f"{place}: {fields[used[1]]!r:.60} is no tag; expected 'O', or 'B-' or 'I-' and a type, such as "
            f"'B-person'. If the tag is in another column, give its position: columns={{'tags': 1}}."
        )

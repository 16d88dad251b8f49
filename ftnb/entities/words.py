"""Words of a running text with their places, and entities given by characters brought onto words."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ftnb.entities.tags import Span, tags_of
from ftnb.tables import DataError

# A word is a run of letters, digits and the signs that combine with letters (Hindi's vowels). Every other character
# that is no space, and every character of scripts without spaces between words, stands for itself, as in BERT.
_MARKS = "".join(chr(i) for i in range(0x10000) if unicodedata.category(chr(i)).startswith("M"))
_ALONE = "\u2e80-\u2fff\u3005-\u312f\u31a0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])[\w{re.escape(_MARKS)}])+|[^\w\s]")


class Place(NamedTuple):
    """Characters `start` to `end` (which is just behind) of a text."""

    start: int
    end: int


def split_words(text: str) -> list[Place]:
    """Where the words of a text are; punctuation is cut off, each mark on its own, as BERT's tokenizer does."""
    return [Place(*found.span()) for found in _WORD.finditer(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[Place]]:
    """Words with a space between them as one text, and where each is in it."""
    places, at = [], 0
    for word in words:
        places.append(Place(at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), places


@dataclass
class SpanFaults:
    """What had to be changed in a source's entities given by characters: row numbers, one for each change."""

    source: str
    widened: list[Any] = field(default_factory=list)
    one_short: list[Any] = field(default_factory=list)  # of these: whose last character alone was missing
    overlapping: list[Any] = field(default_factory=list)


def tag_text(text: str, entities: Sequence[Any], row: Any, faults: SpanFaults) -> tuple[list[Place], list[str]]:
    """The places of a text's words, and their BIO tags from entities given by characters.

    Args:
        text: the text.
        entities: each {"start": 0, "end": 4, "label": "person"} or [0, 4, "person"]; `end` is just behind.
        row: the number of the row in its source.
        faults: names the source, and takes down entities that cut a word (they are widened to whole words) or overlap
            (the longest stays).

    Raises:
        DataError: if an entity has another form, is empty, or lies outside the text.
    """
    places, place = split_words(text), f"{faults.source}, row {row}"
    spans: list[Span] = []
    for entity in entities:
        start, end, label = _read_span(entity, text, place)
        inside = [i for i, word in enumerate(places) if word.start < end and word.end > start]
        if not inside:
            raise DataError(f"{place}: the entity {label!r} at {start} to {end} holds only white space.")
        first, last = places[inside[0]], places[inside[-1]]
        if first.start < start or last.end > end:
            faults.widened.append(row)
            faults.one_short += [row] if first.start >= start and last.end == end + 1 else []
        spans.append(Span(inside[0], inside[-1] + 1, label))
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda span: (span.start - span.end, span.start)):
        if any(span.start < other.end and other.start < span.end for other in kept):
            faults.overlapping.append(row)
        else:
            kept.append(span)
    return places, tags_of(kept, len(places))


def _read_span(entity: Any, text: str, place: str) -> tuple[int, int, str]:
    if isinstance(entity, Mapping):
        start, end, label = (entity.get(key) for key in ("start", "end", "label"))
    else:
        start, end, label = entity if isinstance(entity, Sequence) and len(entity) == 3 else (None, None, None)
    if not (isinstance(label, str) and label.strip() and _whole(start) and _whole(end)):
        form = '{"start": 0, "end": 4, "label": "person"}'
        raise DataError(f"{place}: expected an entity such as {form}, counted in characters; got {entity!r:.80}.")
    start, end = int(start), int(end)  # type: ignore[arg-type]
    if not 0 <= start < end <= len(text):
        where = f"{start} to {end}"
        raise DataError(
            f"{place}: the entity {label!r} at {where} does not lie in the text of {len(text)} characters; start "
            "is the place of its first character, counted from 0, and end is just behind its last."
        )
    return start, end, label.strip()


def _whole(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))

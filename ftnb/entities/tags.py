"""Tags of words: what "B-person", "I-person" and "O" mean, other schemes turned into them, and back into entities."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ftnb.tables import DataError

# Tags that begin an entity, and tags inside or at the end of one, in the schemes that people use (BIO, BIOES, BILOU).
BEGIN, INSIDE = ("B", "S", "U"), ("I", "E", "L", "M")
_FORM = re.compile(rf"([{''.join((*BEGIN, *INSIDE))}])-(\S.*)")


class Span(NamedTuple):
    """An entity: words `start` to `end` (which is just behind it) and its type."""

    start: int
    end: int
    label: str


def split_tag(tag: str) -> tuple[str, str]:
    """("B" or "I", type) of a tag; ("O", "") for "O".

    Raises:
        DataError: if it has none of the known forms.
    """
    if tag == "O":
        return "O", ""
    found = _FORM.fullmatch(tag)
    if found is None:
        raise DataError(f"the tag {tag!r} has an unknown form; expected 'O', or 'B-' or 'I-' and a type: 'B-person'.")
    return ("B" if found[1] in BEGIN else "I"), found[2]


def is_tag(tag: str) -> bool:
    """Whether a text has the form of a tag."""
    return tag == "O" or _FORM.fullmatch(tag) is not None


def orphans(tags: Sequence[str]) -> list[int]:
    """The places of tags inside an entity that continue nothing: an "I-" after "O", after another type, or first."""
    found, before = [], ""
    for i, tag in enumerate(tags):
        prefix, label = split_tag(tag)
        if prefix == "I" and label != before:
            found.append(i)
        before = label
    return found


def to_bio(tags: Sequence[str]) -> list[str]:
    """Tags of any known scheme as BIO: each entity begins with "B-"; an "I-" that continues nothing begins one."""
    alone = set(orphans(tags))
    parts = (split_tag(tag) for tag in tags)
    return ["O" if p == "O" else f"{'B' if i in alone else p}-{label}" for i, (p, label) in enumerate(parts)]


def name_scheme(sentences: Iterable[Sequence[str]]) -> str:
    """Which scheme tagged sentences follow: "BIO"; "IO" (there is no "B-"), or "IOB1" ("B-" only parts neighbours)."""
    begins, neighbours, alone = 0, 0, 0
    for tags in sentences:
        alone += len(orphans(tags))
        before = ""
        for tag in tags:
            prefix, label = split_tag(tag)
            begins += prefix == "B"
            neighbours += prefix == "B" and label == before
            before = label
    if alone and begins == 0:
        return "IO"
    return "IOB1" if alone and begins == neighbours else "BIO"


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities that tags say. An "I-" that continues nothing begins an entity, as in transformers' pipeline.

    A tag of unknown form, which a model from elsewhere may have, counts as "I-" with the whole tag as its type.
    """
    spans: list[Span] = []
    open_from, open_label = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, label = split_tag(tag) if is_tag(tag) else ("I", tag)
        if open_label and (prefix != "I" or label != open_label):
            spans.append(Span(open_from, i, open_label))
            open_label = ""
        if label and not open_label:
            open_from, open_label = i, label
    return spans


def tags_of(spans: Iterable[Span], num_words: int) -> list[str]:
    """The BIO tags of words that hold these entities, which do not overlap."""
    tags = ["O"] * num_words
    for start, end, label in spans:
        tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
    return tags


def tag_names(types: Iterable[str]) -> list[str]:
    """All tags for some types: "O", then "B-" and "I-" of each type in alphabetical order."""
    return ["O", *(f"{prefix}-{label}" for label in sorted(set(types)) for prefix in "BI")]

"""Checks of sentences with entities: what cannot be right is an error, what makes a result doubtful is a warning."""

from collections import Counter
from typing import Any

from ftnb.entities.sources import rows_of
from ftnb.entities.tags import spans_of, split_tag
from ftnb.tables import DataError, Splits, listing, normalise_text


def check_entities(splits: Splits) -> list[str]:
    """Check tags and sentences before training.

    Returns:
        The warnings, those about validation and test first.

    Raises:
        DataError: if there is nothing to learn, or a split has types that training lacks; all of it in one message.
    """
    counts = {name: count_types(split["tags"][:]) for name, split in splits.items()}
    errors, warnings = [], []
    if not counts["train"]:
        errors.append(f"train ({splits.sources.get('train')}): no word is in an entity; every tag is 'O'.")
    for name, split in splits.items()[1:]:
        place = f"{name} ({splits.sources.get(name, name)})"
        odd = set(counts[name]) - set(counts["train"])
        if odd and counts["train"]:
            what = f"{listing(sorted(odd))} never occur in train, so they cannot be predicted"
            where = rows_of([row for row, tags in _rows(split) if odd & {split_tag(tag)[1] for tag in tags}])
            errors.append(
                f"{place}, {where}: entities of type {what}. Training knows {listing(sorted(counts['train']))}."
            )
        total = sum(counts[name].values())
        if total == 0:
            warnings.append(f"{place}: there is no entity, so its F1 is always 0.")
        elif total < 20:
            warnings.append(
                f"{place}: only {total} entities: each found or missed moves the recall by {100 / total:.0f} points."
            )
    if errors:
        raise DataError("\n".join(errors))
    warnings = [*_equal_sentences(splits), *warnings]
    for spelled in _spelled_twice(list(counts["train"])):
        warnings.append(f"train: {listing(spelled)} count as different types; spell them alike if they are one.")
    if rare := [label for label, count in counts["train"].items() if count < 3]:
        warnings.append(
            f"train: {len(rare)} of {len(counts['train'])} types have fewer than 3 entities, for example {rare[0]!r}."
        )
    return warnings


def count_types(sentences: list[list[str]]) -> Counter[str]:
    """How many entities of each type tagged sentences hold."""
    return Counter(span.label for tags in sentences for span in spans_of(tags))


def _rows(split: Any) -> list[tuple[int, list[str]]]:
    return list(zip(split["row"][:], split["tags"][:], strict=True))


def _equal_sentences(splits: Splits) -> list[str]:
    found = []
    of_text: dict[str, list[str]] = {}
    torn: list[int] = []
    columns = (splits.train[name][:] for name in ("row", "text", "tags"))
    for row, text, tags in zip(*columns, strict=True):
        if of_text.setdefault(normalise_text(text), tags) != tags:
            torn.append(row)
    for name, split in splits.items()[1:]:
        rows = [r for r, text in zip(split["row"][:], split["text"][:], strict=True) if normalise_text(text) in of_text]
        if rows:
            what = f"{len(rows)} of {len(split)} sentences are also in train; on these a model may just remember"
            found.append(f"{name} ({splits.sources.get(name, name)}), {rows_of(rows)}: {what}.")
    if torn:
        found.append(f"train, {rows_of(torn)}: equal sentences carry different tags.")
    return found


def _spelled_twice(labels: list[str]) -> list[list[str]]:
    alike: dict[str, list[str]] = {}
    for label in sorted(labels):
        alike.setdefault(normalise_text(label), []).append(label)
    return [names for names in alike.values() if len(names) > 1]

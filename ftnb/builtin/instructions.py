"""A small set of instructions whose transfer is provable: what the test asks for is in no training instruction.

Half of them ask about a short text that stands before the question; the texts of the test are new. The other half ask
for facts: the first two of every four (by their place in the lists of `ftnb.builtin.stories`) are asked in training,
the third in validation, the fourth in the test. So a model knows the answer to a question of the test only from the
stories that it was pretrained on.

Everything follows from the seed, as in the stories.
"""

import zlib
from random import Random
from typing import Literal, get_args

from ftnb.builtin.stories import (
    COLOURS,
    FOOD_COLOURS,
    HOMES,
    NAMES,
    OPPOSITES,
    PLACES,
    SOUNDS,
    THINGS,
    T,
    a,
    pick,
    several,
    shuffle,
)

Split = Literal["train", "valid", "test"]
Kind = Literal["has", "where", "repeat", "sound", "colour", "home", "opposite"]
KINDS: tuple[Kind, ...] = get_args(Kind)
READ: tuple[Kind, ...] = ("has", "where", "repeat")  # the answer stands in the prompt; the other kinds ask for facts
DEFAULT_SIZES: dict[str, int] = {"train": 168, "valid": 42, "test": 84}

_QUARTERS: dict[str, tuple[int, ...]] = {"train": (0, 1), "valid": (2,), "test": (3,)}


def instruction_splits(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The splits "train", "valid" and "test" at their default sizes."""
    return {split: instructions(split, seed=seed) for split in get_args(Split)}


def instructions(split: Split, num_examples: int | None = None, seed: int = 0) -> list[dict[str, str]]:
    """Prompts with their answers, the kinds in turn.

    Args:
        split: "train", "valid" or "test"; they share no prompt, whatever their seeds, and no fact.
        num_examples: how many; by default 168, 42 and 84.
        seed: another seed gives other instructions.

    Returns:
        Dictionaries with the keys "prompt", "completion" and "kind".

    Raises:
        ValueError: if the split is unknown or the number negative.
    """
    if split not in get_args(Split):
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(map(repr, get_args(Split)))}.")
    number = DEFAULT_SIZES[split] if num_examples is None else num_examples
    if number < 0:
        raise ValueError(f"num_examples must not be negative, got {num_examples}.")
    rng = Random(f"instructions-{split}-{seed}")
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    tries = 0
    while len(rows) < number:
        kind = KINDS[len(rows) % len(KINDS)]
        prompt, completion = _instruction(rng, kind, split)
        tries += 1
        # there are few different questions for facts: once they are used up they come again
        if kind in READ and (prompt in seen or zlib.crc32(prompt.encode()) % 4 not in _QUARTERS[split]):
            continue
        if prompt in seen and tries < 50:
            continue
        tries = 0
        seen.add(prompt)
        rows.append({"prompt": prompt, "completion": completion, "kind": kind})
    shuffle(rng, rows)
    return rows


def facts(kind: Kind, split: Split) -> dict[str, str]:
    """The facts that a split asks for.

    Args:
        kind: "sound", "colour", "home" or "opposite".
        split: "train", "valid" or "test".
    """
    known = {"sound": SOUNDS, "colour": FOOD_COLOURS, "home": HOMES, "opposite": OPPOSITES}[kind]
    mine = {word: of for i, (word, of) in enumerate(known.items()) if i % 4 in _QUARTERS[split]}
    if kind == "opposite":  # either way round
        mine |= {of: word for word, of in mine.items()}
    return mine


def _instruction(rng: Random, kind: Kind, split: Split) -> tuple[str, str]:
    if kind in READ:
        return _read(rng, kind)
    word, of = pick(rng, tuple(facts(kind, split).items()))
    if kind == "sound":
        return pick(rng, (f"What does {a(word)} do?", f"What do you hear from {a(word)}?")), f"{_an(word)} {of}."
    if kind == "colour":
        ask = (f"What colour is {word}?", f"Tell me the colour of {word}.")
        return pick(rng, ask), f"The colour of {word} is {of}."
    if kind == "home":
        return pick(
            rng, (f"Where does {a(word)} live?", f"Name the home of {a(word)}.")
        ), f"{_an(word)} lives in a {of}."
    return pick(rng, (f"What is it if it is not {word}?", f"Say the opposite of {word}.")), f"It is {of}."


def _an(word: str) -> str:
    return a(word).capitalize()


def _read(rng: Random, kind: Kind) -> tuple[str, str]:
    number = 2 + int(rng.random() * 2)
    names, things = several(rng, NAMES, number), several(rng, THINGS, number)
    colours, places = several(rng, COLOURS, number), several(rng, PLACES, number)
    one = int(rng.random() * number)
    owned = [f"{name} has {a(colour)} {thing}." for name, colour, thing in zip(names, colours, things, strict=True)]
    if kind == "has":
        return f"{' '.join(owned)} What does {names[one]} have?", owned[one]
    if kind == "where":
        placed = [f"The {thing} is in the {place}." for thing, place in zip(things, places, strict=True)]
        return f"{' '.join(placed)} Where is the {things[one]}?", placed[one]
    told = owned[one]
    return pick(rng, (f"Repeat: {told}", f"Say this again: {told}")), told


def by_kind(rows: list[dict[str, str]], values: list[T]) -> dict[str, list[T]]:
    """Values of rows, such as whether the answer was right, grouped by the rows' kinds."""
    return {kind: [value for row, value in zip(rows, values, strict=True) if row["kind"] == kind] for kind in KINDS}

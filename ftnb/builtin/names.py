"""Generated sentences with persons, places and organisations: no name of the test occurs in training.

The sentences are of the kind that `ftnb.builtin.reviews` writes, and so are most of their words. Places are the cities
of those reviews: one half for training and validation, the other for the test. Persons are made of syllables. An
organisation has a word for what it is ("gallery") beside a made-up name, or the name of a city: "Vienna Gallery" is an
organisation, while "the gallery in Vienna" is a gallery and a place. Made-up names, cities and words for organisations
of the test occur in no sentence of the other splits. So a name that was learned by heart is worth nothing; what counts
is the company a word keeps, its form, and what a model has read elsewhere.

Everything follows from the seed, as in the reviews.
"""

import zlib
from random import Random
from typing import Any, Literal, get_args

from ftnb.builtin.reviews import T
from ftnb.builtin.words import PEOPLE, PLACES, PLAIN, POLAR_WORDS, SUBJECTS, TIMES

Split = Literal["train", "valid", "test", "test_seen"]
TYPES = ("organisation", "person", "place")
DEFAULT_SIZES: dict[str, int] = {"train": 96, "valid": 100, "test": 200, "test_seen": 200}
DEFAULT_DIFFICULTY = 0.5

# Words that say what an organisation is: an even place makes one seen, an odd place one of the test.
KINDS = tuple("museum gallery hotel hostel airline ferry bakery cafe newspaper magazine orchestra band".split())
_STARTS = tuple("b br d dr f g gr h j k l m n p r s st t tr v z".split())
_MIDDLES = tuple("a e i o u ai ei ou".split())
_ENDS = tuple("l n r m nd rl ss x rt lm".split())
_LAST = tuple("a o in el us ert ika old".split())

_SEASONS = ("spring", "summer", "autumn", "winter")
_CAPITAL_TIMES = tuple(
    f"{first} {word.title()}"
    if (first == "in" and word not in _SEASONS) or (first == "last" and word.endswith("day"))
    else time
    for time in TIMES
    for first, _, word in [time.partition(" ")]
)

# In braces what is filled in; of the capital ones, an entity of that type comes out.
TYPED = (
    "my {relative} {PERSON} chose it for the evening .",
    "{PERSON} lent me a {plain} copy {time} .",
    "i saw it with my {relative} {PERSON} {time} .",
    "{PERSON} has the same {thing} .",
    "it was printed in {PLACE} .",
    "this {thing} is from {PLACE} .",
    "my {relative} went to {PLACE} {time} .",
    "the {kind} in {PLACE} was {polar} .",
    "{ORGANISATION} opens at nine and closes at six .",
    "we booked it online at {ORGANISATION} {time} .",
    "the {plain} box came by post from {ORGANISATION} .",
    "{PERSON} and my {relative} went to {PLACE} .",
    "{PERSON} called {ORGANISATION} {time} .",
    "{ORGANISATION} in {PLACE} has a {plain} {aspect} .",
)
OPEN = (  # here any of the three can stand
    "my {relative} asked about {ANY} .",
    "everyone liked {ANY} {time} .",
    "{ANY} was {polar} from start to finish .",
    "i found {ANY} {polar} .",
    "there is a {plain} {thing} from {ANY} .",
    "we thought {ANY} was very {polar} .",
    "i asked {ANY} about the {aspect} .",
    "what a {thing} , {ANY} and {ANY} !",
)
WITHOUT = (
    "the {aspect} was {polar} and {polar} .",
    "my {relative} asked about the {aspect} {time} .",
    "we found the {kind} {polar} .",
    "it replaced one that my {relative} gave me .",
    "the {plain} {thing} arrived {time} .",
    "everyone liked the {kind} and the {aspect} .",
    "there is a {plain} {aspect} in the {kind} .",
)


def named_splits(seed: int = 0, difficulty: float = DEFAULT_DIFFICULTY) -> dict[str, list[dict[str, Any]]]:
    """The splits "train", "valid" and "test" at their default sizes."""
    return {split: named_texts(split, seed=seed, difficulty=difficulty) for split in ("train", "valid", "test")}


def named_texts(
    split: Split, num_examples: int | None = None, seed: int = 0, difficulty: float = DEFAULT_DIFFICULTY
) -> list[dict[str, Any]]:
    """Short texts with the names in them.

    Args:
        split: "train" and "valid" (drawn alike), "test" (names that they never have) or "test_seen" (drawn like them).
        num_examples: how many; by default 96, 100, 200 and 200.
        seed: another seed gives other texts; splits never share a text, whatever their seeds.
        difficulty: 0 (what stands around a name says its type) to 1 (it never does).

    Returns:
        One dictionary a text: "text", and "entities", each {"start", "end", "label"} in characters, `end` just behind.

    Raises:
        ValueError: if the split is unknown, the number negative or the difficulty outside [0, 1].
    """
    if split not in get_args(Split):
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(map(repr, get_args(Split)))}.")
    number = DEFAULT_SIZES[split] if num_examples is None else num_examples
    if number < 0 or not 0 <= difficulty <= 1:
        given = f"num_examples={num_examples}, difficulty={difficulty}"
        raise ValueError(f"num_examples must not be negative and difficulty must lie between 0 and 1; got {given}.")
    rng = Random(f"names-{split}-{seed}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < number:
        row = _text(rng, split == "test", difficulty)
        if zlib.crc32(row["text"].encode()) % 4 == get_args(Split).index(split):
            rows.setdefault(row["text"], row)
    return list(rows.values())


def _pick(rng: Random, items: tuple[T, ...]) -> T:
    return items[int(rng.random() * len(items))]


def _other(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item for item in items if item not in KINDS)


def _half(items: tuple[str, ...], unseen: bool) -> tuple[str, ...]:
    return items[1::2] if unseen else items[::2]


def _text(rng: Random, unseen: bool, difficulty: float) -> dict[str, Any]:
    text, entities = "", []
    for _ in range(1 + int(rng.random() * 3)):
        templates = WITHOUT if rng.random() < 0.3 else OPEN if rng.random() < difficulty else TYPED
        sentence, found = _sentence(rng, _pick(rng, templates), unseen)
        shift = len(text) + bool(text)
        text += (" " if text else "") + sentence
        entities += [{**of, "start": of["start"] + shift, "end": of["end"] + shift} for of in found]
    return {"text": text, "entities": entities}


def _sentence(rng: Random, template: str, unseen: bool) -> tuple[str, list[dict[str, Any]]]:
    text, entities = "", []
    subject = _pick(rng, tuple(SUBJECTS.values()))
    for word in template.split():
        text += " " if text and word not in (".", ",", "!") else ""
        slot = word.strip("{}")
        label = _pick(rng, TYPES) if slot == "ANY" else slot.lower()
        if slot.isupper() and word != slot:
            name = _name(rng, label, unseen)
            entities.append({"start": len(text), "end": len(text) + len(name), "label": label})
            text += name
            continue
        plain = {
            "relative": PEOPLE, "plain": PLAIN, "time": _CAPITAL_TIMES,
            "thing": _other(subject.names), "aspect": _other(subject.aspects),
            "kind": _half(KINDS, unseen), "polar": POLAR_WORDS[_pick(rng, ("positive", "negative"))]["adjective"],
        }  # fmt: skip
        text += _pick(rng, plain[slot]) if word != slot else word
    text = text[0].upper() + text[1:]
    return text.replace(" i ", " I "), entities


def _name(rng: Random, label: str, unseen: bool) -> str:
    if label == "place":
        return _pick(rng, _half(PLACES, unseen)).capitalize()
    if label == "person":
        return _made_up(rng, unseen) + (f" {_made_up(rng, unseen)}" if rng.random() < 0.5 else "")
    kind = _pick(rng, _half(KINDS, unseen)).capitalize()
    own = _pick(rng, _half(PLACES, unseen)).capitalize() if rng.random() < 0.5 else _made_up(rng, unseen)
    return f"{kind} {own}" if kind == "Hotel" or (rng.random() < 0.2) else f"{own} {kind}"


def _made_up(rng: Random, unseen: bool) -> str:
    """A name of two or three syllables; a checksum says whether it is one of the test's."""
    while True:
        syllables = [_pick(rng, _STARTS) + _pick(rng, _MIDDLES) for _ in range(1 + int(rng.random() * 2))]
        name = ("".join(syllables) + _pick(rng, _ENDS) + _pick(rng, _LAST)).capitalize()
        if (zlib.crc32(name.encode()) % 2 == 1) == unseen:
            return name

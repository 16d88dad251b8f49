"""Generated reviews whose transfer is provable: the test's sentiment words never occur in labelled training reviews.

A review is a few sentences on one subject: opinions, each with one polar word, and facts without any. Labelled
training (and validation) reviews use the *seen* polar words only, test reviews the *unseen* ones only. The unlabelled
text uses all of them, and a review keeps mostly to one side; that is the only way to find out which side an unseen
word is on. A model without pretraining can do no better than chance on the test reviews.

Everything follows from the seed, on any machine and Python version: only `Random.random()` is drawn from, whose
sequence Python guarantees.
"""

import zlib
from collections.abc import Iterator
from random import Random
from typing import Literal, TypeVar, get_args

from ftnb.builtin.words import (
    DEGREES,
    DEGREES_VERB,
    GENERAL_FACTS,
    NEGATED,
    OPINIONS,
    PEOPLE,
    PLACES,
    PLAIN,
    POLAR_WORDS,
    SUBJECTS,
    TIMES,
    Part,
    Polarity,
    Subject,
)

T = TypeVar("T")
Split = Literal["train", "valid", "test", "test_seen"]

DEFAULT_SIZES: dict[str, int] = {"train": 128, "valid": 200, "test": 400, "test_seen": 400}
DEFAULT_DIFFICULTY = 0.5
LABELS: tuple[Polarity, Polarity] = ("negative", "positive")

# A text belongs to one bucket by its checksum, so two splits cannot share a text whatever their seeds.
_BUCKETS: dict[str, frozenset[int]] = {
    "train": frozenset({0}),
    "valid": frozenset({1}),
    "test": frozenset({2}),
    "test_seen": frozenset({3}),
    "unlabelled": frozenset(range(4, 16)),
}


def polar_words(polarity: Polarity, part: Part = "all") -> list[str]:
    """All polar words of one side, common ones first within adjectives, nouns and verbs.

    Args:
        polarity: "positive" or "negative".
        part: "seen" (in labelled training reviews), "unseen" (never there) or "all".

    Raises:
        ValueError: if `polarity` or `part` is none of these.
    """
    if polarity not in LABELS:
        raise ValueError(f"polarity {polarity!r} is unknown; choose 'positive' or 'negative'.")
    if part not in get_args(Part):
        raise ValueError(f"part {part!r} is unknown; choose one of {', '.join(map(repr, get_args(Part)))}.")
    return [word for words in POLAR_WORDS[polarity].values() for word in _part(words, part)]


def labelled_reviews(
    split: Split,
    num_examples: int | None = None,
    seed: int = 0,
    difficulty: float = DEFAULT_DIFFICULTY,
) -> list[dict[str, str]]:
    """Labelled reviews, half of them positive, in random order.

    Args:
        split: "train" and "valid" (seen words; validation is drawn like training, as it is in practice, so it cannot
            tell how a model does on unseen words), "test" (unseen words only) or "test_seen" (a test drawn like
            training).
        num_examples: how many; by default 128, 200, 400 and 400.
        seed: another seed gives other reviews; splits never share a text, whatever their seeds.
        difficulty: 0 (every opinion agrees with the label, no negation) to 1 (a third of the opinions disagree with
            the label, and a quarter are negations such as "was not good").

    Returns:
        A list of dictionaries with keys "text" and "label" ("positive" or "negative").

    Raises:
        ValueError: if the split is unknown, the number negative or the difficulty outside [0, 1].
    """
    if split not in DEFAULT_SIZES:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(map(repr, DEFAULT_SIZES))}.")
    if num_examples is None:
        num_examples = DEFAULT_SIZES[split]
    _check(num_examples, "num_examples", difficulty)
    part: Part = "unseen" if split == "test" else "seen"
    rng = Random(f"{split}-{seed}")
    labels = [LABELS[i % 2] for i in range(num_examples)]
    _shuffle(rng, labels)
    seen_texts: set[str] = set()
    return [{"text": _new_review(rng, label, part, difficulty, split, seen_texts), "label": label} for label in labels]


def unlabelled_reviews(num_documents: int, seed: int = 0, difficulty: float = DEFAULT_DIFFICULTY) -> Iterator[str]:
    """Reviews without labels, with all polar words: the text to pretrain on.

    Args:
        num_documents: how many reviews to yield.
        seed: another seed gives other reviews. They share no text with any labelled split.
        difficulty: as in `labelled_reviews`.

    Raises:
        ValueError: if the number is negative or the difficulty outside [0, 1].
    """
    _check(num_documents, "num_documents", difficulty)
    rng = Random(f"unlabelled-{seed}")

    def generate() -> Iterator[str]:
        texts: set[str] = set()
        for _ in range(num_documents):
            yield _new_review(rng, _pick(rng, LABELS), "all", difficulty, "unlabelled", texts)

    return generate()


def _check(number: int, name: str, difficulty: float) -> None:
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number}.")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be between 0 (easy) and 1 (hard), got {difficulty}.")


def _part(words: tuple[str, ...], part: Part) -> tuple[str, ...]:
    return {"seen": words[::2], "unseen": words[1::2], "all": words}[part]


def _pick(rng: Random, items: tuple[T, ...]) -> T:
    return items[int(rng.random() * len(items))]


def _pick_common(rng: Random, words: tuple[str, ...]) -> str:
    # As in real text, few words do most of the work: the first of 24 gets a third of all draws, the last one a 70th.
    return words[int(rng.random() ** 3 * len(words))]


def _new_review(rng: Random, label: Polarity, part: Part, difficulty: float, bucket: str, texts: set[str]) -> str:
    while True:
        text = _review(rng, label, part, difficulty)
        if text not in texts and zlib.crc32(text.encode()) % 16 in _BUCKETS[bucket]:
            texts.add(text)
            return text


def _shuffle(rng: Random, items: list[T]) -> None:
    for i in range(len(items) - 1, 0, -1):  # Fisher-Yates on rng.random() alone, see the module's docstring
        j = int(rng.random() * (i + 1))
        items[i], items[j] = items[j], items[i]


def _review(rng: Random, label: Polarity, part: Part, difficulty: float) -> str:
    subject = _pick(rng, tuple(SUBJECTS.values()))
    name = _pick(rng, subject.names)
    num_opinions = 3 + int(rng.random() * 4)
    num_against = sum(rng.random() < difficulty / 3 for _ in range(num_opinions))
    num_against = min(num_against, (num_opinions - 1) // 2)  # the label stays the majority's
    sides = [label] * (num_opinions - num_against) + [_other(label)] * num_against
    sentences = [_opinion(rng, subject, name, side, part, difficulty) for side in sides]
    sentences += [_fact(rng, subject, name) for _ in range(int(rng.random() * 3))]
    _shuffle(rng, sentences)
    return " ".join(sentences)


def _opinion(rng: Random, subject: Subject, name: str, side: Polarity, part: Part, difficulty: float) -> str:
    kind = _pick(rng, ("adjective",) * 7 + ("noun", "verb"))
    negated = rng.random() < difficulty / 4
    words = _part(POLAR_WORDS[_other(side) if negated else side][kind], part)
    word, word_2 = _pick_common(rng, words), _pick_common(rng, words)
    while word_2 == word:
        word_2 = _pick_common(rng, words)
    return _pick(rng, (NEGATED if negated else OPINIONS)[kind]).format(
        aspect=_pick(rng, subject.aspects),
        aspect_2=_pick(rng, subject.aspects),
        name=name,
        person=_pick(rng, PEOPLE),
        degree=_pick(rng, DEGREES),
        degree_verb=_pick(rng, DEGREES_VERB),
        polar=word,
        polar_2=word_2,
        a_polar=f"{'an' if word[0] in 'aeiou' else 'a'} {word}",
    )


def _fact(rng: Random, subject: Subject, name: str) -> str:
    return _pick(rng, subject.facts + GENERAL_FACTS).format(
        aspect=_pick(rng, subject.aspects),
        name=name,
        person=_pick(rng, PEOPLE),
        time=_pick(rng, TIMES),
        plain=_pick(rng, PLAIN),
        plain_place=_pick(rng, PLACES),
    )


def _other(side: Polarity) -> Polarity:
    return "negative" if side == "positive" else "positive"

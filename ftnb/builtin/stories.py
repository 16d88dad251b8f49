"""Generated tiny stories and facts: the text that the built-in language model was pretrained on.

A story is a few sentences on two people who have things in places, and on animals, plants and other matters of fact.
Whatever is said twice in a story agrees ("Ben has a blue kite" and, later, "Ben looks at the blue kite"), so who
predicts the next word has to remember who has what; and facts are always true ("the cow says moo").

Everything follows from the seed, on any machine and Python version: only `Random.random()` is drawn from, whose
sequence Python guarantees.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


NAMES = tuple(
    """Mia Ben Anna Tom Lily Max Sara Leo Nora Sam Ella Jack Zoe Finn Ruby Hugo Ida Paul Emma Noah Lucy Adam Clara
    Oscar""".split()
)
THINGS = tuple(
    """ball kite book cup hat drum boat doll lamp box key bell shell stone flute rope basket blanket mirror wagon coin
    candle feather ring brush map spoon pillow umbrella whistle""".split()
)
COLOURS = tuple("red blue green yellow white black brown orange pink purple grey silver".split())
PLACES = tuple(
    """garden kitchen park forest school barn river attic shop tower meadow cellar library station market
    castle""".split()
)
VERBS = tuple("sees finds likes holds wants paints washes carries".split())

# Facts: each word on the left has one word on the right. What is asked in an instruction goes by the place in these
# lists: the first two of four are for training, the third for validation, the fourth for the test.
SOUNDS = _pairs(
    """cow moos dog barks cat meows duck quacks sheep bleats pig grunts frog croaks bee buzzes horse neighs owl hoots
    lion roars snake hisses crow caws mouse squeaks wolf howls hen clucks bear growls donkey brays turkey gobbles
    cricket chirps elephant trumpets robin sings dove coos fly hums monkey chatters goose honks tiger snarls seal
    yelps"""
)
FOOD_COLOURS = _pairs(
    """lemon yellow tomato red carrot orange plum purple cucumber green strawberry red banana yellow pumpkin orange
    cherry red blueberry blue lettuce green coconut brown spinach green walnut brown corn yellow garlic white radish
    red pea green potato brown rice white butter yellow olive black milk white apricot orange flour white coal black
    lavender purple chestnut brown salt white rose red grass green sunflower yellow"""
)
HOMES = _pairs(
    """fox den bird nest bee hive rabbit burrow spider web horse stable pig sty dog kennel hen coop ant hill bear cave
    beaver lodge otter bank fish pond squirrel tree camel desert shark sea parrot jungle eagle cliff goat mountain
    penguin ice toad swamp bat roof mole tunnel"""
)
OPPOSITES = _pairs(
    """hot cold big small happy sad wet dry fast slow old new full empty clean dirty light heavy hard soft long short
    open closed loud quiet thick thin high low rich poor strong weak sweet sour early late wide narrow near far smooth
    rough brave afraid cheap costly deep shallow ripe rotten sharp blunt tidy messy tight loose awake asleep"""
)
SUBJECTS = tuple("soup road bag room door river wall song bread night street table coat cave tea bed game".split())


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items, by `rng.random()` alone."""
    return items[int(rng.random() * len(items))]


def shuffle(rng: Random, items: list[T]) -> None:
    """Put a list into random order, by `rng.random()` alone (Fisher and Yates)."""
    for i in range(len(items) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        items[i], items[j] = items[j], items[i]


def several(rng: Random, items: Sequence[T], number: int) -> list[T]:
    """Different items, in random order."""
    chosen = list(items)
    shuffle(rng, chosen)
    return chosen[:number]


def a(word: str) -> str:
    """A word with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def stories(num_documents: int, seed: int = 0) -> Iterator[str]:
    """Short texts to pretrain on.

    Args:
        num_documents: how many.
        seed: another seed gives other texts.

    Raises:
        ValueError: if the number is negative.
    """
    if num_documents < 0:
        raise ValueError(f"num_documents must not be negative, got {num_documents}.")
    rng = Random(f"stories-{seed}")
    return (story(rng) for _ in range(num_documents))


def story(rng: Random) -> str:
    """One text: two people with their things and facts in between, facts alone, or words that are said again."""
    kind = rng.random()
    if kind < 0.15:
        return " ".join(fact(rng) for _ in range(3 + int(rng.random() * 5)))
    if kind < 0.27:
        return echo(rng)
    names, things, places = several(rng, NAMES, 2), several(rng, THINGS, 2), several(rng, PLACES, 2)
    colours = several(rng, COLOURS, 2)
    opening, later = [], []
    for name, thing, colour, place in zip(names, things, colours, places, strict=True):
        opening.append(f"{name} has {a(colour)} {thing}.")
        if rng.random() < 0.6:
            opening.append(pick(rng, (f"The {thing} is in the {place}.", f"{name} is in the {place}.")))
        where = opening[-1].endswith(f"{place}.")
        later.append(f"{name} {pick(rng, VERBS)} the {colour} {thing}.")
        later.append(f"{_other(rng, names)} asks what {name} has. {name} has {a(colour)} {thing}.")
        if where:
            who = opening[-1].partition(" is ")[0]
            asked = who if who == name else who.lower()
            later.append(f"{_other(rng, names)} asks where {asked} is. {who} is in the {place}.")
        later.append(f"{_other(rng, names)} says: {name} has {a(colour)} {thing}.")
    shuffle(rng, later)
    sentences = [*opening, *later[: 5 + int(rng.random() * 4)]]
    for _ in range(int(rng.random() * 2)):
        sentences.insert(int(rng.random() * (len(sentences) + 1)), fact(rng))
    return " ".join(sentences)


def _other(rng: Random, names: Sequence[str]) -> str:
    while (name := pick(rng, NAMES)) in names:
        pass
    return name


def echo(rng: Random) -> str:
    """Words that one person says and others say again."""
    words = [pick(rng, (*THINGS, *COLOURS, *PLACES, *NAMES)) for _ in range(5 + int(rng.random() * 8))]
    return " ".join(f"{name} says: {' '.join(words)}." for name in several(rng, NAMES, 2 + int(rng.random() * 2)))


def fact(rng: Random) -> str:
    """One or two sentences that are true in every story."""
    name, kind = pick(rng, NAMES), int(rng.random() * 4)
    if kind == 0:
        animal = pick(rng, tuple(SOUNDS))
        told = f"{name} {pick(rng, ('hears', 'sees', 'meets'))} {a(animal)}. The {animal} {SOUNDS[animal]}."
        return pick(rng, (told, f"{a(animal).capitalize()} {SOUNDS[animal]}."))
    if kind == 1:
        food = pick(rng, tuple(FOOD_COLOURS))
        told = f"{name} {pick(rng, ('buys', 'wants', 'finds'))} {food}. The {food} is {FOOD_COLOURS[food]}."
        return pick(rng, (told, f"The colour of {food} is {FOOD_COLOURS[food]}."))
    if kind == 2:
        animal = pick(rng, tuple(HOMES))
        told = f"{name} looks for {a(animal)}. The {animal} is in its {HOMES[animal]}."
        return pick(rng, (told, f"{a(animal).capitalize()} lives in a {HOMES[animal]}."))
    word, other = pick(rng, tuple(OPPOSITES.items()))
    word, other = pick(rng, ((word, other), (other, word)))
    return pick(
        rng,
        (
            f"The {pick(rng, SUBJECTS)} is not {word}. It is {other}.",
            f"First the {pick(rng, SUBJECTS)} is {word}, then it is {other}.",
        ),
    )

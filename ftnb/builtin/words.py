"""The words and sentences that the generated reviews are made of.

Polar words are listed from common to rare, and alternate: an even place makes a word *seen* (it occurs in labelled
training reviews), an odd place *unseen* (only in the unlabelled text and in the test reviews). So both halves have
the same mix of common and rare words. No polar word occurs anywhere else on this page; a test proves it.
"""

from dataclasses import dataclass
from typing import Literal

Polarity = Literal["positive", "negative"]
Part = Literal["seen", "unseen", "all"]

POLAR_WORDS: dict[Polarity, dict[str, tuple[str, ...]]] = {
    "positive": {
        "adjective": tuple(
            """good great excellent wonderful lovely brilliant perfect superb delightful fantastic charming amazing
            impressive beautiful marvellous splendid elegant terrific memorable outstanding remarkable magnificent
            exquisite stunning""".split()
        ),
        "noun": tuple("pleasure delight joy masterpiece triumph treat".split()),
        "verb": tuple("loved enjoyed liked adored admired appreciated".split()),
    },
    "negative": {
        "adjective": tuple(
            """bad terrible awful horrible poor boring disappointing dreadful dull mediocre annoying clumsy miserable
            ugly pathetic tedious shoddy lousy forgettable unbearable sloppy atrocious frustrating
            appalling""".split()
        ),
        "noun": tuple("disappointment disaster mess failure nightmare letdown".split()),
        "verb": tuple("hated disliked regretted despised detested resented".split()),
    },
}


@dataclass(frozen=True)
class Subject:
    """What a review can be about.

    Attributes:
        names: nouns for the thing itself.
        aspects: its parts, of which a review gives opinions.
        facts: sentences without an opinion; `{person}`, `{time}`, `{aspect}` and `{plain}` are filled in.
    """

    names: tuple[str, ...]
    aspects: tuple[str, ...]
    facts: tuple[str, ...]


SHOWN = (
    "i saw it with my {person} {time} .",
    "my {person} chose it for the evening .",
    "it lasts about two hours .",
    "we watched it {time} .",
    "the doors opened at seven .",
    "we sat in the third row .",
    "our tickets cost twelve pounds each .",
    "there were subtitles in five languages .",
)
BOUGHT = (
    "i bought it {time} for my {person} .",
    "it arrived in a {plain} box {time} .",
    "my {person} has the same one .",
    "i have used it every day since .",
    "it replaced one that my {person} gave me .",
    "it weighs less than two kilos .",
    "the parcel came by post {time} .",
    "i ordered the {plain} model online .",
)
VISITED = (
    "we went there {time} with my {person} .",
    "my {person} had booked for four people .",
    "it is next to the {plain} station .",
    "we arrived {time} and left two hours later .",
    "you can park behind the church .",
    "it opens at nine and closes at six .",
    "there were six people in our group .",
    "we paid by card at the entrance .",
)
READ = (
    "i read it {time} on the train .",
    "my {person} lent me a {plain} copy .",
    "it has about three hundred pages .",
    "i took it with me {time} .",
    "the library keeps it on the top shelf .",
    "it was printed in {plain_place} .",
    "there is an index at the back .",
    "my {person} is halfway through .",
)


def _subject(names: str, aspects: str, facts: tuple[str, ...]) -> Subject:
    return Subject(tuple(names.split()), tuple(aspects.split()), facts)


SUBJECTS: dict[str, Subject] = {
    "film": _subject(
        "film movie thriller comedy drama",
        "acting plot script ending soundtrack cast dialogue photography direction opening costume editing",
        SHOWN,
    ),
    "series": _subject(
        "series show season episode pilot",
        "writing finale character story music tempo humour scene narrator setting cliffhanger cast",
        SHOWN,
    ),
    "concert": _subject(
        "concert gig recital festival",
        "singer band sound stage lighting drummer setlist orchestra hall encore guitarist conductor",
        SHOWN,
    ),
    "restaurant": _subject(
        "restaurant bistro diner pizzeria",
        "food service waiter soup dessert menu wine kitchen pasta steak salad portion sauce",
        VISITED,
    ),
    "cafe": _subject(
        "cafe bakery teahouse",
        "coffee cake tea bread barista sandwich terrace cocoa croissant counter muffin queue",
        VISITED,
    ),
    "hotel": _subject(
        "hotel hostel resort inn",
        "room bed bathroom breakfast lobby reception pool view pillow shower balcony lift carpet",
        VISITED,
    ),
    "museum": _subject(
        "museum gallery exhibition",
        "guide collection sculpture painting ticket tour garden shop audio hallway painter display",
        VISITED,
    ),
    "phone": _subject(
        "phone smartphone handset",
        "screen camera battery speaker keyboard charger case signal software button microphone display",
        BOUGHT,
    ),
    "laptop": _subject(
        "laptop computer notebook tablet",
        "keyboard touchpad fan hinge processor screen webcam memory adapter lid speaker system",
        BOUGHT,
    ),
    "book": _subject(
        "book novel biography memoir",
        "chapter prose hero cover plot translation author preface style villain ending paragraph",
        READ,
    ),
    "magazine": _subject(
        "magazine newspaper journal",
        "article cover interview editor essay crossword paper column photo headline recipe review",
        READ,
    ),
    "bicycle": _subject(
        "bicycle bike scooter",
        "saddle frame brake tyre chain bell wheel pedal gear lamp handlebar lock",
        BOUGHT,
    ),
    "kettle": _subject(
        "kettle toaster blender mixer",
        "handle spout cord motor blade jug switch filter base timer plug manual",
        BOUGHT,
    ),
    "jacket": _subject(
        "jacket coat sweater dress",
        "zip collar sleeve fabric lining hood pocket seam colour stitching cuff belt",
        BOUGHT,
    ),
    "game": _subject(
        "game puzzle adventure",
        "graphics level controls story music tutorial map multiplayer quest interface soundtrack enemy",
        BOUGHT,
    ),
    "course": _subject(
        "course class workshop seminar",
        "teacher lecture exercise textbook classroom exam slide pace homework video tutor handout",
        VISITED,
    ),
    "garden": _subject(
        "garden park zoo",
        "path pond bench greenhouse meadow fence playground aquarium signpost statue lawn keeper",
        VISITED,
    ),
    "flight": _subject(
        "flight airline ferry cruise",
        "seat crew boarding luggage lounge departure legroom meal check cabin blanket pilot",
        VISITED,
    ),
    "headphones": _subject(
        "headset microphone radio soundbar",
        "cable bass volume cushion adapter antenna socket remote bracket stand treble knob",
        BOUGHT,
    ),
    "armchair": _subject(
        "armchair sofa mattress desk",
        "cushion leg drawer spring armrest fabric screw varnish padding backrest instructions delivery",
        BOUGHT,
    ),
    "play": _subject(
        "play musical opera ballet",
        "stage costume chorus choreography overture dancer curtain monologue programme tenor scenery balcony",
        SHOWN,
    ),
    "website": _subject(
        "website app forum shop",
        "login menu search checkout newsletter password page support layout download font account",
        BOUGHT,
    ),
}

PEOPLE = tuple(
    """sister brother mother father friend cousin neighbour colleague daughter son uncle aunt wife husband boss
    grandmother grandfather roommate partner nephew niece landlord dentist plumber student trainer""".split()
)
TIMES = (
    *(f"last {t}" for t in "monday tuesday wednesday thursday friday saturday sunday week month year".split()),
    *(f"in {t}" for t in "january february march april may june july august september october november".split()),
    *(f"in {t}" for t in "december spring summer autumn winter".split()),
    "yesterday",
    "two days ago",
    "a year ago",
    "this morning",
    "on my birthday",
)
PLAIN = tuple(
    """big small red blue green grey brown white black yellow large square round wooden old new local second
    plastic paper purple orange metal glass narrow wide tall short front rear""".split()
)
PLACES = tuple(
    """paris london berlin madrid rome vienna dublin lisbon oslo prague tokyo sydney boston chicago toronto delhi
    cairo athens warsaw geneva""".split()
)
DEGREES = ("", "", "", "really ", "very ", "quite ", "truly ", "so ", "rather ", "simply ")
DEGREES_VERB = ("", "", "really ", "truly ", "rather ", "simply ")  # nobody "very loved" anything

OPINIONS: dict[str, tuple[str, ...]] = {
    "adjective": (
        "the {aspect} was {degree}{polar} .",
        "the {aspect} was {degree}{polar} .",
        "i found the {aspect} {degree}{polar} .",
        "we thought the {aspect} was {degree}{polar} .",
        "my {person} called the {aspect} {polar} .",
        "it has {a_polar} {aspect} .",
        "such {a_polar} {aspect} !",
        "what {a_polar} {name} !",
        "this is {a_polar} {name} .",
        "{degree}{polar} from start to finish .",
        "the {aspect} was {polar} and {polar_2} .",
        "the {aspect} was {polar} and {polar_2} .",
        "i found the {aspect} {polar} and {polar_2} .",
        "the {aspect} was {polar} , the {aspect_2} {polar_2} .",
        "{a_polar} and {polar_2} {name} .",
        "{polar} {aspect} , {polar_2} {aspect_2} .",
        "everything was {polar} and {polar_2} .",
    ),
    "noun": (
        "the {aspect} was {a_polar} .",
        "this {name} is {a_polar} .",
        "my {person} called the {name} {a_polar} .",
        "what {a_polar} !",
    ),
    "verb": (
        "i {degree_verb}{polar} the {aspect} .",
        "we {polar} this {name} .",
        "my {person} {polar} the {aspect} .",
        "everyone {polar} it .",
    ),
}
NEGATED: dict[str, tuple[str, ...]] = {
    "adjective": (
        "the {aspect} was not {polar} .",
        "i would not call the {aspect} {polar} .",
        "this is not {a_polar} {name} .",
        "the {aspect} was never {polar} .",
    ),
    "noun": ("the {aspect} was not {a_polar} .", "this {name} is not {a_polar} ."),
    "verb": ("i never {polar} the {aspect} .", "nobody {polar} it ."),
}
GENERAL_FACTS = (
    "the {aspect} is {plain} .",
    "there is a {plain} {aspect} .",
    "my {person} asked about the {aspect} .",
    "this {name} is from {plain_place} .",
)


def all_words() -> list[str]:
    """Every word and punctuation mark that a generated review can hold, sorted."""
    texts = [word for kinds in POLAR_WORDS.values() for words in kinds.values() for word in words]
    for subject in SUBJECTS.values():
        texts += [*subject.names, *subject.aspects, *subject.facts]
    texts += [*PEOPLE, *TIMES, *PLAIN, *PLACES, *DEGREES, *GENERAL_FACTS, "a an"]
    texts += [template for templates in (OPINIONS, NEGATED) for group in templates.values() for template in group]
    return sorted({word for text in texts for word in text.split() if not word.startswith("{")} - {"{"})

"""A sentence with a tag for each word, wherever it came from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ftnb.entities.words import Place, join_words


@dataclass
class Sentence:
    """Words with tags.

    Args:
        text: the running text that holds the words.
        places: where each word is in it.
        tags: the tag of each word, as found.
        row: the number of the row or line in the source.
        lines: the line of each word, where the source has one word a line.
    """

    text: str
    places: Sequence[Place]
    tags: list[str]
    row: int
    lines: Sequence[int] = field(default_factory=list)

    @classmethod
    def from_words(cls, words: Sequence[str], tags: list[str], row: int, lines: Sequence[int] = ()) -> "Sentence":
        """A sentence of words that have no text of their own: a space stands between them."""
        return cls(*join_words(words), tags, row, lines)

    @property
    def words(self) -> list[str]:
        """The words."""
        return [self.text[start:end] for start, end in self.places]

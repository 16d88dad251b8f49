"""Conversations as token ids with labels: −100 wherever the loss does not count."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ftnb.language.chats import answer_spans
from ftnb.language.sources import Message

IGNORE = -100  # the label of a token that does not count


@dataclass
class Encoded:
    """Conversations as tokens.

    Attributes:
        input_ids, labels: lists of whole numbers per conversation, equally long; a label is the token itself or −100.
        kept: which conversations they are (the others had no answer within the limit).
        num_cut: how many lost the end of an answer to the limit.
        num_lost: how many lost all of it, and are left out.
        num_merged: in how many a token would have reached across the border of an answer.
        num_partial: of how many only the last answer counts, see `ftnb.language.chats.answer_spans`.
        num_unknown: tokens that the vocabulary does not know; `num_tokens` is how many there are in all.
    """

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    num_cut: int = 0
    num_lost: int = 0
    num_merged: int = 0
    num_partial: int = 0
    num_unknown: int = 0
    num_tokens: int = 0


def encode_conversations(
    conversations: Sequence[Sequence[Message]], tokenizer: Any, max_length: int, loss_on: str = "answers"
) -> Encoded:
    """Apply the chat template, cut into tokens, and label the tokens of the answers.

    Args:
        conversations: lists of messages.
        tokenizer: with a chat template.
        max_length: what lies behind so many tokens is cut off; a conversation whose answers are cut off is left out.
        loss_on: "answers", or "everything" (prompts too).

    Raises:
        ftnb.tables.DataError: if the template refuses a conversation.
    """
    done = Encoded()
    for number, messages in enumerate(conversations):
        text, spans, whole = answer_spans(tokenizer, messages)
        ids, labels, merged = label_tokens(text, spans, tokenizer)
        labels = list(ids) if loss_on == "everything" else labels
        answers = sum(label != IGNORE for label in labels)
        left = sum(label != IGNORE for label in labels[1:max_length])  # the first token is predicted from nothing
        done.num_merged += merged
        done.num_partial += not whole
        done.num_tokens += len(ids)
        done.num_unknown += ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
        if left == 0:
            done.num_lost += 1
            continue
        done.num_cut += left < answers and len(ids) > max_length
        done.input_ids.append(ids[:max_length])
        done.labels.append(labels[:max_length])
        done.kept.append(number)
    return done


def label_tokens(text: str, spans: Sequence[tuple[int, int]], tokenizer: Any) -> tuple[list[int], list[int], bool]:
    """Cut a text into tokens; those of the spans are their own labels, all others have −100.

    When the model answers, it has read the prompt alone, cut into tokens without the answer. So a token must not reach
    across a border: where the text as a whole would be cut so, its parts are cut one by one.

    Args:
        text: the whole text.
        spans: (start, end) of each answer, in characters.
        tokenizer: special tokens in the text count as such; none are added.

    Returns:
        The ids, the labels, and whether a token would have reached across a border.
    """
    borders = [0, *(place for span in spans for place in span), len(text)]
    texts = [text, *(text[:border] for border in borders[1:-1])]
    ids, *before = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
    merged = any(ids[: len(prefix)] != prefix for prefix in before)
    if merged:
        pieces = [text[a:b] for a, b in pairwise(borders)]
        parts = tokenizer(pieces, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
    else:
        cuts = [0, *map(len, before), len(ids)]
        parts = [ids[a:b] for a, b in pairwise(cuts)]
    labels = [i if number % 2 else IGNORE for number, part in enumerate(parts) for i in part]
    return [i for part in parts for i in part], labels, merged

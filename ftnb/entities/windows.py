"""Words cut into a tokenizer's pieces, in windows that overlap where a text is longer than a model reads."""

from collections.abc import Sequence
from typing import Any

from ftnb.pretrained import ModelError

NO_WORD = -1  # in `word_ids`: a special token, padding, or a word that another window answers for


def prepare_words(sentences: Sequence[Sequence[str]], tokenizer: Any) -> list[list[str]]:
    """Words as the tokenizer must get them to cut them as it does in running text, none of them without a piece.

    A word of which the tokenizer leaves nothing (a zero-width space) stands as its token for unknown words.
    """
    space, unknown = " " if needs_space(tokenizer) else "", tokenizer.unk_token or "?"
    known = dict.fromkeys(space + word for words in sentences for word in words)
    cut = tokenizer(list(known), add_special_tokens=False, verbose=False)["input_ids"] if known else []
    stands = {word: word if ids else unknown for word, ids in zip(known, cut, strict=True)}
    return [[stands[space + word] for word in words] for words in sentences]


def needs_space(tokenizer: Any) -> bool:
    """Whether words that are given one by one need a space before them.

    Byte-level tokenizers (RoBERTa, GPT-2) know by it that a word begins, and with `is_split_into_words` see none.

    Raises:
        ModelError: if the tokenizer cannot say which word a piece belongs to.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{type(tokenizer).__name__} cannot say which word a piece belongs to; use a fast tokenizer.")
    text, word, spaced = (
        tokenizer(given, is_split_into_words=not isinstance(given, str), add_special_tokens=False)["input_ids"]
        for given in ("of of", ["of"], [" of"])
    )
    return bool(text == word + spaced != word + word)


def cut_windows(lengths: Sequence[int], limit: int, overlap: int) -> list[range]:
    """Ranges of words whose pieces fit into a window; neighbouring windows share about `overlap` pieces.

    Args:
        lengths: pieces of each word; one longer than a window counts as filling it.
        limit: pieces in a window.
        overlap: pieces that a window should have in common with the one before it, below `limit`.
    """
    windows: list[range] = []
    start = 0
    while True:
        stop, used = start, 0
        while stop < len(lengths) and (stop == start or used + lengths[stop] <= limit):
            used += lengths[stop]
            stop += 1
        windows.append(range(start, stop))
        if stop >= len(lengths):
            return windows
        after, shared = stop, 0
        while after - 1 > start and shared + lengths[after - 1] <= overlap:
            after -= 1
            shared += lengths[after]
        start = after


def owners(windows: Sequence[range]) -> list[int]:
    """For each word the window that answers for it: the one in which it stands farthest from a cut.

    The beginning and the end of the text are no cuts. Every word has exactly one window.
    """
    last = len(windows) - 1
    best: dict[int, tuple[float, int]] = {}
    for number, window in enumerate(windows):
        for word in window:
            left = float("inf") if number == 0 else word - window.start
            right = float("inf") if number == last else window.stop - 1 - word
            best[word] = max(best.get(word, (-1.0, 0)), (min(left, right), -number))
    return [-best[word][1] for word in sorted(best)]


def encode_words(
    sentences: Sequence[Sequence[str]], tokenizer: Any, max_length: int, overlap: int
) -> tuple[list[dict[str, Any]], float]:
    """Cut words into pieces, and texts that are too long into windows.

    Args:
        sentences: the words of each text.
        tokenizer: a fast tokenizer.
        max_length: tokens in a window, with the special ones.
        overlap: pieces that neighbouring windows share; see `cut_windows`.

    Returns:
        One dictionary a window: what the model takes (lists, not padded), "sentence" (the place of its text),
        "num_windows" (of its text) and "word_ids": for each token the word it is a piece of, −1 for special tokens and
        for words that another window of the text answers for. And the share of tokens that are unknown.
    """
    limit = max_length - tokenizer.num_special_tokens_to_add()
    prepared = prepare_words(sentences, tokenizer)
    examples = _cut(prepared, [range(len(words)) for words in sentences], range(len(sentences)), tokenizer)
    found: list[dict[str, Any]] = []
    for number, example in enumerate(examples):
        if len(example["input_ids"]) <= max_length:
            found.append({**example, "num_windows": 1})
            continue
        lengths = [0] * len(prepared[number])
        for word in example["word_ids"]:
            if word != NO_WORD:
                lengths[word] += 1
        windows = cut_windows(lengths, limit, overlap)
        parts = [prepared[number][window.start : window.stop] for window in windows]
        answers = owners(windows)
        pieces = _cut(parts, windows, [number] * len(windows), tokenizer, max_length)
        for place, window in enumerate(pieces):
            window["word_ids"] = [w if w != NO_WORD and answers[w] == place else NO_WORD for w in window["word_ids"]]
            window["num_windows"] = len(windows)
        found += pieces
    num_unknown = sum(example["input_ids"].count(tokenizer.unk_token_id) for example in found)
    return found, num_unknown / max(1, sum(len(example["input_ids"]) for example in found))


def _cut(
    parts: Sequence[Sequence[str]],
    windows: Sequence[range],
    numbers: Sequence[int],
    tokenizer: Any,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    kinds = {"truncation": True, "max_length": max_length} if max_length else {"truncation": False}
    inputs = tokenizer([list(part) for part in parts], is_split_into_words=True, verbose=False, **kinds)
    examples = []
    for i, (window, number) in enumerate(zip(windows, numbers, strict=True)):
        words = [NO_WORD if word is None else window.start + word for word in inputs.word_ids(i)]
        examples.append({**{key: inputs[key][i] for key in inputs}, "word_ids": words, "sentence": number})
    return examples

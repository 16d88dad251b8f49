"""Conversations as text: a tokenizer's chat template or a plain one, and where in the text the answers stand."""

from collections.abc import Sequence
from typing import Any

from ftnb.language.sources import Message
from ftnb.pretrained import ModelError
from ftnb.tables import DataError

MARKS = {"system": "### System:", "user": "### User:", "assistant": "### Assistant:"}


def default_template(tokenizer: Any) -> str:
    """A plain chat template for a tokenizer without one: headings in words, and its end token after each answer."""
    first = tokenizer("a")["input_ids"][:1]
    begin = "{{ bos_token }}" if tokenizer.bos_token and first == [tokenizer.bos_token_id] else ""
    # transformers drops a line break behind a tag, so all of them stand inside of expressions
    marks = "".join(f"{{% if m.role == '{role}' %}}{{{{ '{mark}\\n' }}}}{{% endif %}}" for role, mark in MARKS.items())
    end = "{{ eos_token if m.role == 'assistant' else '\\n\\n' }}"
    asked = f"{{% if add_generation_prompt %}}{{{{ '{MARKS['assistant']}\\n' }}}}{{% endif %}}"
    return f"{begin}{{% for m in messages %}}{marks}{{{{ m.content | trim }}}}{end}{{% endfor %}}{asked}"


def ensure_template(tokenizer: Any) -> list[str]:
    """Give a tokenizer the plain template if it has none; returns what was done, as sentences.

    Raises:
        ModelError: if it has no end token, so that a model could not learn when an answer is over.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end token (eos_token), so the model could not learn where an answer ends. Set "
            '"eos_token" in the folder\'s tokenizer_config.json to a token of its vocabulary.'
        )
    if tokenizer.chat_template:
        return []
    tokenizer.chat_template = default_template(tokenizer)
    return [f"the tokenizer has no chat template; a plain one is used ({MARKS['user']} … {MARKS['assistant']} …)."]


def render(tokenizer: Any, messages: Sequence[Message], ask: bool = False) -> str:
    """A conversation as the text that the model reads.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.
        ask: end with the beginning of an answer, for the model to go on.

    Raises:
        DataError: if the template refuses the conversation.
    """
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # a template is a program and may raise anything
        roles = " → ".join(message["role"] for message in messages)
        raise DataError(f"the chat template refuses a conversation {roles}: {error}.") from error


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens at which an answer ends: the end token, and what the template puts behind an answer."""
    asked: list[Message] = [{"role": "user", "content": "a"}]
    told = render(tokenizer, [*asked, {"role": "assistant", "content": "b"}]).rstrip()
    last = tokenizer(told, add_special_tokens=False)["input_ids"][-1]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted({tokenizer.eos_token_id} | ({last} & special))


def answer_spans(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]], bool]:
    """The text of a conversation, and where in it the answers stand, with the token that ends each.

    Returns:
        The text; (start, end) in characters of each answer; whether all answers were found. A template may show
        earlier answers otherwise than the last one (without their reasoning, say); then only the last one is given.

    Raises:
        DataError: if the template refuses the conversation, or changes its last answer.
    """
    whole = render(tokenizer, messages)
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = []
    for i in places:
        before = render(tokenizer, messages[:i], ask=True)
        until = render(tokenizer, messages[: i + 1]).rstrip()
        if whole.startswith(until) and until.startswith(before):
            spans.append((len(before), len(until)))
    if len(spans) == len(places):
        return whole, spans, True
    before = render(tokenizer, messages[: places[-1]], ask=True)
    answer = messages[places[-1]]["content"].strip()
    start = len(before) if whole.startswith(before) else whole.rfind(answer)
    if start < 0:
        raise DataError(f"the chat template changes an answer, so it cannot be found in the text: {answer!r:.60}.")
    return whole, [(start, len(whole.rstrip()))], False


def template_marks(tokenizer: Any) -> list[str]:
    """What stands in a text only if a template was applied to it: special tokens, and the plain template's headings."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    plain = list(MARKS.values()) if MARKS["assistant"] in tokenizer.chat_template else []
    return [mark for mark in [*special, *plain] if len(mark) > 2]

"""Answers, token by token: the most likely one each time, with the cache of keys and values, many prompts at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ftnb.pretrained import quiet_transformers
from ftnb.tasks.text_classification import evaluating


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without special tokens and white space around.
        finished: whether the model ended it itself, and not the limit.
        num_tokens: how many tokens it has, the end token included.
    """

    text: str
    finished: bool
    num_tokens: int

    def __str__(self) -> str:
        return self.text or "(nothing)" if self.finished else f"{self.text} …"


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    stop: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and with the first stop token.

    Prompts are filled up on the *left*: what a model writes stands behind the last token of its row, and padding there
    would stand between prompt and answer. No random number is drawn, and modes are as they were before.

    Args:
        model: a transformers model with `generate`.
        prompts: token ids.
        stop: ids at which an answer ends.
        pad_id: id to fill up with.
        max_new_tokens: at most so many tokens each.
        batch_size: prompts at once; similar lengths go together.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with quiet_transformers(), evaluating(model):
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            length = len(prompts[part[0]])
            ids = torch.tensor([[pad_id] * (length - len(prompts[i])) + prompts[i] for i in part], device=model.device)
            mask = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
            written = model.generate(
                input_ids=ids, attention_mask=mask.to(model.device), max_new_tokens=max_new_tokens,
                do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True,
                temperature=None, top_p=None, top_k=None, eos_token_id=list(stop), pad_token_id=pad_id,
            )  # fmt: skip
            for i, row in zip(part, written[:, length:].tolist(), strict=True):
                end = next((n for n, token in enumerate(row, start=1) if token in stop), len(row))
                answers[i] = row[:end]
    return answers


def read_answers(answers: Sequence[list[int]], tokenizer: Any, stop: Sequence[int]) -> list[Answer]:
    """Token ids as text."""
    return [
        Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), bool(ids) and ids[-1] in stop, len(ids))
        for ids in answers
    ]


def same_answer(answer: str, expected: str) -> bool:
    """Whether two answers are equal but for white space."""
    return answer.split() == expected.split()

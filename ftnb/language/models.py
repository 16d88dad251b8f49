"""Causal language models from transformers, with their tokenizer and a way to write a conversation down."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ftnb.language.chats import ensure_template
from ftnb.pretrained import ModelError, load_pretrained
from ftnb.tasks.text_classification import evaluating

TASK = "text-generation"


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and what belongs to it.

    Attributes:
        model: in eval mode, in float32.
        tokenizer: with a chat template, an end token and a padding token.
        new_parameters: names of the parameters that start from random numbers.
        notices: what a reader of the result should know.
    """

    model: PreTrainedModel
    tokenizer: Any
    new_parameters: frozenset[str] = frozenset()
    notices: list[str] = field(default_factory=list)


def load_language_model(name: str, *, scratch: bool = False, seed: int = 0) -> LanguageModel:
    """Load a model that predicts the next token.

    Args:
        name: "builtin:lm-stories", a folder in transformers' layout or a Hub id.
        scratch: the same architecture and tokenizer with random weights.
        seed: of the random numbers.

    Raises:
        ModelError: if it is not there or damaged, has no end token, or looks at what comes after a token.
    """
    found = load_pretrained(name, TASK, (), scratch=scratch, seed=seed)
    notices = [*found.notices, *ensure_template(found.processor)]
    refuse_lookahead(found.model, name)
    return LanguageModel(found.model, found.processor, found.new_parameters, notices)


def refuse_lookahead(model: Any, name: str) -> None:
    """Raise if what a model predicts depends on tokens that come later.

    transformers gives a BERT a head for the next token, too, and lets it look ahead; its loss is then nearly 0 and its
    text is nonsense.

    Raises:
        ModelError: if it does.
    """
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name!r} has an encoder and a decoder; this task is for models with a decoder alone.")
    a, b = (i % model.config.vocab_size for i in (1, 2))
    with evaluating(model):
        ids = torch.tensor([[a, b, a, b], [a, b, a, a]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits.float()
    change = (logits[0] - logits[1]).abs().amax(-1)  # only the last of the four tokens differs
    if change[:3].max() > 1e-3 * change[3]:
        raise ModelError(
            f"{name!r} ({type(model).__name__}) looks ahead: it is an encoder such as BERT, which fills gaps and "
            "cannot write. Choose a model that predicts the next token, such as GPT, Llama or Qwen."
        )

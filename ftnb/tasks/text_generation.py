# Exported from nbs/39_text_generation.py: edit the lesson, then run `make export`.
"""A language model that answers: loss on the answers alone, packing, sample answers, and what the model forgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedModel

from ftnb.data import Batches, Splits
from ftnb.devices import to_device
from ftnb.language.chats import render, stop_ids, template_marks
from ftnb.language.display import TokenRow, TokenTable
from ftnb.language.examples import IGNORE, Encoded, encode_conversations
from ftnb.language.generation import Answer, generate, read_answers, same_answer
from ftnb.language.models import load_language_model
from ftnb.language.packing import pack, pad_rows
from ftnb.language.sources import Message, load_conversations, messages_of
from ftnb.metrics import Metrics
from ftnb.pretrained import ModelError, refuse_untrained
from ftnb.saving import save_pretrained
from ftnb.step import Batch, Learner
from ftnb.tables import DataError, normalise_text
from ftnb.tasks.display import TextTable
from ftnb.tasks.text_classification import evaluating, length_limit

__all__ = [
    "AnswerScores",
    "answer_loss",
    "answer_tokens",
    "AnswerMetric",
    "answer_metrics",
    "Prompt",
    "conversation",
    "TextGeneration",
]


@dataclass
class AnswerScores:
    """What a batch says about its answer tokens: their loss (nats, not averaged), how many were guessed, the number."""

    losses: Tensor
    num_right: Tensor
    num_tokens: Tensor


def answer_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, AnswerScores]:
    """The mean cross-entropy of each answer token given all before it (0 if there is none), and its parts.

    Args:
        model: returns an object with `logits` of shape (batch, tokens, vocabulary); those at place t are for t + 1.
        batch: the model's inputs, and "labels" of shape (batch, tokens), −100 where a token does not count.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "num_answer_tokens")}
    logits = model(**inputs, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    labels = batch["labels"][:, 1:]
    counts = labels != IGNORE
    chosen, targets = logits[counts].float(), labels[counts]  # (answer tokens, V), (answer tokens,)
    losses = nn.functional.cross_entropy(chosen, targets, reduction="none")
    scores = AnswerScores(losses.detach().sum(), (chosen.argmax(-1) == targets).sum(), counts.sum())
    return losses.sum() / max(1, len(targets)), scores


def answer_tokens(batch: Batch) -> int:
    """The weight of a batch: how many tokens its loss is the mean of."""
    return int(batch["num_answer_tokens"])


class AnswerMetric(Metric):
    """Token accuracy and perplexity of answers, over all answer tokens together."""

    full_state_update = False
    losses: Tensor
    num_right: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("losses", "num_right", "num_tokens"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, scores: AnswerScores) -> None:
        """Count one batch."""
        self.losses = self.losses + scores.losses
        self.num_right = self.num_right + scores.num_right
        self.num_tokens = self.num_tokens + scores.num_tokens

    def compute(self) -> dict[str, Tensor]:
        """"token_accuracy" and "perplexity"."""
        number = self.num_tokens.clamp(min=1)
        return {"token_accuracy": self.num_right / number, "perplexity": (self.losses / number).exp()}


def answer_metrics() -> Metrics:
    """Token accuracy (the main metric) and perplexity of answers."""
    collection = MetricCollection({"token_accuracy": AnswerMetric()})
    return Metrics(collection, lambda outputs, _: (outputs,), main="token_accuracy")


Prompt = str | Sequence[Message]  # a question, or a whole conversation that ends with one


def conversation(prompt: Prompt) -> list[Message]:
    """A prompt as messages.

    Raises:
        DataError: if it is neither text nor a conversation, or there is nothing to answer in it.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = messages_of(prompt, "the prompt")
    except ValueError as error:
        raise DataError(f"{error}.") from None
    if messages[-1]["role"] == "assistant":
        raise DataError("the conversation ends with an answer; end it with a message of the role 'user'.")
    return messages


@dataclass
class TextGeneration:
    """Conversations, and a language model that learns to give their answers.

    Args:
        model: a transformers model that predicts the next token.
        tokenizer: the tokenizer that belongs to it, with a chat template.
        splits: the rows, with the columns "messages", "text" (what comes before the last answer) and "row".
        max_length: tokens of a conversation; what lies behind is cut off.
        packing: "on" puts several training conversations into one row.
        loss_on: "answers", or "everything" (prompts too).
        stop: ids of the tokens at which an answer ends.
        new_parameters: names of parameters that start from random numbers.
        warnings: what checks and loading found.
        encoded: per split "input_ids" and "labels" of its conversations, and "row"; for a packed training split those
            of its rows, and "position_ids".
    """

    model: PreTrainedModel
    tokenizer: Any
    splits: Splits
    max_length: int
    packing: str = "off"
    loss_on: str = "answers"
    stop: list[int] = field(default_factory=list)
    new_parameters: frozenset[str] = frozenset()
    warnings: list[str] = field(default_factory=list)
    encoded: dict[str, Dataset] = field(default_factory=dict)

    name: ClassVar[str] = "text-generation"
    options: ClassVar[tuple[str, ...]] = ("max_length", "packing", "loss_on")

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        max_length: int | None = None,
        packing: str = "off",
        loss_on: str = "answers",
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "TextGeneration":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: whatever `ftnb.language.sources.load_conversations` takes: a JSONL, JSON or CSV file with "prompt" and
                "completion", chat "messages", or "instruction" and "output"; a folder, a Hub id, a table in memory,
                "builtin:instructions".
            model: whatever `ftnb.language.models.load_language_model` takes.
            columns: role ("prompt", "completion", "messages" …) → column name.
            max_length: cut longer conversations to so many tokens; None is 1,024, or the model's limit if that is less.
            packing: "on" puts several training conversations into one row, which saves padding.
            loss_on: "answers", or "everything" (the prompts' tokens too).
            seed: of the new parameters and of the cut into splits.
            scratch: random weights in place of the pretrained ones.
            valid_fraction: share of the training rows to validate on where there is no validation split.
            test_fraction: the same for the test; 0 means no test.

        Raises:
            DataError: if the data cannot be read or cannot be right.
            ModelError: if the model cannot be loaded or does not fit.
        """
        choices = {"packing": (packing, "off", "on"), "loss_on": (loss_on, "answers", "everything")}
        for name, (value, *known) in choices.items():
            if value not in known:
                raise DataError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}.")
        splits = load_conversations(
            data, columns=columns, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed
        )
        found = load_language_model(model, scratch=scratch, seed=seed)
        if packing == "on":
            _refuse_packing(found.model)
        limit = length_limit(found.model, found.tokenizer, max_length)
        task = cls(
            model=found.model,
            tokenizer=found.tokenizer,
            splits=splits,
            max_length=limit if max_length else min(limit, 1024),
            packing=packing,
            loss_on=loss_on,
            stop=stop_ids(found.tokenizer),
            new_parameters=found.new_parameters,
            warnings=[*splits.notices, *_doubts(splits, found.tokenizer), *found.notices],
        )
        task._encode()
        return task

    @classmethod
    def from_saved(cls, folder: str | Path) -> "TextGeneration":
        """A task without data around a trained model, for answers.

        Raises:
            ModelError: if there is no such model.
        """
        found = load_language_model(str(folder))
        refuse_untrained(folder, found.new_parameters)
        nothing = Dataset.from_dict({})
        limit = length_limit(found.model, found.tokenizer)
        return cls(found.model, found.tokenizer, Splits(nothing, nothing), limit, stop=stop_ids(found.tokenizer))

    def _encode(self) -> None:
        for name, split in self.splits.items():
            done = encode_conversations(split["messages"][:], self.tokenizer, self.max_length, self.loss_on)
            self.warnings += _notes(name, done, len(split), self.max_length)
            if not done.input_ids:
                raise DataError(
                    f"{name}: every conversation reaches max_length={self.max_length} before its answer, so there is "
                    "nothing to learn. Raise max_length or shorten the prompts."
                )
            columns = {"input_ids": done.input_ids, "labels": done.labels}
            if name == "train" and self.packing == "on":
                self.encoded[name] = Dataset.from_dict(pack(**columns, max_length=self.max_length))
            else:
                self.encoded[name] = Dataset.from_dict({**columns, "place": done.kept})

    def learner(
        self, batch_size: int = 16, seed: int = 0, num_workers: int = 0, batch_tokens: int | None = None
    ) -> Learner:
        """Model, data, loss and metrics for a training.

        Args:
            batch_size: conversations (or packed rows) per batch; those of similar length share a batch.
            seed: of their order.
            num_workers: processes that make batches; 0 means this one.
            batch_tokens: in place of `batch_size` as many conversations as fit into so many tokens, padding included.
        """
        kinds: dict[str, Any] = {"max_tokens": batch_tokens, "num_workers": num_workers}
        return Learner(
            model=self.model,
            train=self.batches("train", batch_size, shuffle=True, seed=seed, **kinds),
            valid=self.batches("valid", 2 * batch_size, **kinds),
            loss=answer_loss,
            metrics=self.metrics(),
            weight=answer_tokens,
            new_parameters=self.new_parameters,
        )

    def batches(self, split: str | Dataset, batch_size: int, **kinds: Any) -> Batches:
        """A split (or examples already encoded) in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        encoded = self._split(split) if isinstance(split, str) else split
        lengths = [len(ids) for ids in encoded["input_ids"][:]]
        return Batches(encoded, self.collate, batch_size, lengths=lengths, **kinds)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Fill examples up to the longest of them; on a GPU to a multiple of 8, which its matrix units work in."""
        return pad_rows(examples, self.tokenizer.pad_token_id, 8 if torch.cuda.is_available() else 1)

    def metrics(self) -> Metrics:
        """Token accuracy and perplexity of answers."""
        return answer_metrics()

    def predict(self, prompts: Sequence[Prompt], batch_size: int = 32, max_new_tokens: int = 128) -> list[Answer]:
        """Answer prompts, taking the most likely token each time.

        Args:
            prompts: questions, or conversations (lists of messages) that end with one.
            batch_size: prompts at once.
            max_new_tokens: an answer is cut off after so many tokens; then it ends in "…".

        Raises:
            DataError: if `prompts` is a single string, holds something that is no prompt, or one leaves no room for an
                answer.
        """
        if isinstance(prompts, str):
            raise DataError(f"predict takes a list of prompts; got the text {prompts!r:.60}.")
        texts = [render(self.tokenizer, conversation(prompt), ask=True) for prompt in prompts]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return self._answer(ids, batch_size, max_new_tokens)

    def _answer(self, prompts: list[list[int]], batch_size: int, max_new_tokens: int) -> list[Answer]:
        longest = max(map(len, prompts), default=0)
        room = length_limit(self.model, self.tokenizer) - longest
        if room < 1:
            raise DataError(f"a prompt has {longest} tokens, which leaves no room for an answer; shorten it.")
        written = generate(
            self.model, prompts, stop=self.stop, pad_id=self.tokenizer.pad_token_id, batch_size=batch_size,
            max_new_tokens=min(room, max_new_tokens),
        )  # fmt: skip
        return read_answers(written, self.tokenizer, self.stop)

    def evaluate(self, split: str = "test", batch_size: int = 32, num_answers: int = 100) -> dict[str, float]:
        """Loss and metrics on a split, computed in float32, and the share of answers that are exactly right.

        Args:
            split: which.
            batch_size: conversations at once.
            num_answers: how many conversations, from the first on, are answered for "exact_match"; 0 leaves it out.

        Raises:
            DataError: if there is no such split.
        """
        self._split(split)
        encoded = self._plain(split)
        metrics, total, number = self.metrics().to(self.model.device), 0.0, 0
        with evaluating(self.model):
            for batch in self.batches(encoded, batch_size).epoch():
                loss, scores = answer_loss(self.model, to_device(batch, self.model.device))
                total, number = total + loss.item() * answer_tokens(batch), number + answer_tokens(batch)
                metrics.update(scores, batch)
        found = {"loss": total / max(1, number), **metrics.compute()}
        if num_answers:
            right = [same_answer(answer.text, expected) for _, _, expected, answer in self.answers(split, num_answers)]
            found["exact_match"] = sum(right) / len(right)
        return found

    def _plain(self, split: str) -> Dataset:
        """A split's conversations one by one, also where its rows are packed."""
        if "position_ids" not in self.encoded[split].column_names:
            return self.encoded[split]
        rows = self.splits.named(split)["messages"][:]
        done = encode_conversations(rows, self.tokenizer, self.max_length, self.loss_on)
        return Dataset.from_dict({"input_ids": done.input_ids, "labels": done.labels, "place": done.kept})

    def answers(
        self, split: str = "valid", num: int = 100, batch_size: int = 32
    ) -> list[tuple[int, str, str, Answer]]:
        """The last question of the first conversations of a split, answered by the model.

        Returns:
            Of each: its row in the source, what was asked, the right answer, and the model's. The longest right answer
            says how long an answer may get.

        Raises:
            DataError: if there is no such split.
        """
        rows = self.splits.named(split)
        kept = self._plain(split)["place"][:num]
        of = [(rows["row"][i], rows["messages"][i]) for i in kept]
        texts = [render(self.tokenizer, messages[:-1], ask=True) for _, messages in of]
        expected = [messages[-1]["content"].strip() for _, messages in of]
        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        longest = max(map(len, self.tokenizer(expected, add_special_tokens=False)["input_ids"]))
        answers = self._answer(prompts, batch_size, longest + 4)
        asked = [messages[-2]["content"] if len(messages) > 1 else "" for _, messages in of]
        return [(row, ask, right, got) for (row, _), ask, right, got in zip(of, asked, expected, answers, strict=True)]

    def show_batch(self, n: int = 6) -> TokenTable:
        """The first conversations of the first training batch in tokens; green are those that the loss counts."""
        batch = next(iter(self.learner().train.epoch()))
        rows = []
        for ids, labels in zip(batch["input_ids"][:n], batch["labels"][:n], strict=True):
            counted = (labels != IGNORE).tolist()
            tokens = [self.tokenizer.decode([i]) for i in ids.tolist()]
            rows.append(TokenRow(f"{sum(counted)} of {len(ids)}", tokens, counted))
        return TokenTable(rows, "Tokens that the loss counts (green, in brackets) of all, padding included.")

    def show_samples(self, n: int = 4, split: str = "valid") -> TextTable:
        """What the model answers now, beside what it should.

        Raises:
            DataError: if there is no such split.
        """
        cells = [(ask, right, str(got)) for _, ask, right, got in self.answers(split, n)]
        return TextTable(("asked", "right answer", "model"), cells)

    def show_errors(self, n: int = 6, split: str = "valid") -> TextTable:
        """Answers of a split that are not exactly right, among its first 100 conversations.

        Raises:
            DataError: if there is no such split.
        """
        found = self.answers(split)
        wrong = [(str(row), ask, right, str(got)) for row, ask, right, got in found if not same_answer(got.text, right)]
        caption = f"{len(wrong)} of {len(found)} {split} answers are not exactly right."
        return TextTable(("row", "asked", "right answer", "model"), wrong[:n], caption)

    def save(self, folder: str | Path) -> Path:
        """Save model and tokenizer as a folder that `from_pretrained` and `transformers.pipeline` load.

        Returns:
            The folder.
        """
        config: Any = self.model.generation_config
        config.eos_token_id, config.pad_token_id = self.stop, self.tokenizer.pad_token_id
        return save_pretrained(folder, self.model, self.tokenizer)

    def _split(self, name: str) -> Dataset:
        if name not in self.encoded:
            raise DataError(f"there is no split {name!r}; there are {', '.join(map(repr, self.encoded))}.")
        return self.encoded[name]


def _refuse_packing(model: Any) -> None:
    """Packing relies on positions that begin anew: raise for models that do not keep examples apart by them."""
    batch = pad_rows(
        [{"input_ids": [a, 3, 4, 5], "labels": [1, 1, 1, 1], "position_ids": [0, 1, 0, 1]} for a in (1, 2)], pad_id=0
    )
    ids, positions = batch["input_ids"].to(model.device), batch["position_ids"].to(model.device)
    try:
        with evaluating(model):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
        change = (logits[0] - logits[1]).abs().amax(-1)  # the rows differ in their first example, of two tokens
        apart = bool(change[2:].max() <= 1e-3 * change[0])
    except (TypeError, ValueError):
        apart = False
    if not apart:
        kind = type(model).__name__
        raise ModelError(f"{kind} cannot keep several examples in a row apart (it takes no positions); packing='off'.")


def _doubts(splits: Splits, tokenizer: Any) -> list[str]:
    """Prompts of validation or test that are also in train, few rows to measure by, and templates applied before."""
    found = []
    train = {normalise_text(text) for text in splits.train["text"][:]}
    for name, split in splits.items()[1:]:
        both = sum(normalise_text(text) in train for text in split["text"][:])
        if both:
            what = f"{both} of {len(split)} prompts are also in train; on these a model may just remember."
            found.append(f"{name} ({splits.sources.get(name, name)}): {what}")
        if len(split) < 20:
            found.append(f"{name}: only {len(split)} conversations; what is measured on them is uncertain.")
    marks = template_marks(tokenizer)
    for name, split in splits.items():
        texts = [[message["content"] for message in messages] for messages in split["messages"][:]]
        marked = [next((m for m in marks if any(m in text for text in of)), "") for of in texts]
        if number := sum(map(bool, marked)):
            example = next(filter(None, marked))
            what = f"{number} of {len(split)} conversations hold {example!r} as text, which the chat template adds."
            found.append(f"{name}: {what} Was a template applied before? Now it is applied twice; give bare texts.")
    return found


def _notes(name: str, done: Encoded, total: int, max_length: int) -> list[str]:
    """What a reader should know of how a split was cut into tokens."""
    found = []
    if done.num_lost:
        what = f"{done.num_lost} of {total} conversations reach {max_length} tokens before their answer"
        found.append(f"{name}: {what} and are left out.")
    if done.num_cut:
        found.append(f"{name}: {done.num_cut} of {total} answers lose their end, behind {max_length} tokens.")
    if done.num_merged:
        what = f"in {done.num_merged} of {total} conversations a token would reach from a prompt into an answer"
        found.append(f"{name}: {what}; the text is cut there, as it is when the model answers.")
    if done.num_partial:
        what = f"the chat template shows earlier answers otherwise than the last; of {done.num_partial} conversations"
        found.append(f"{name}: {what} only the last answer counts.")
    if done.num_unknown > 0.05 * done.num_tokens:
        share = done.num_unknown / done.num_tokens
        found.append(f"{name}: {share:.0%} of the tokens are not in the model's vocabulary; does it fit this language?")
    return found

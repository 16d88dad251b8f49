# %% [markdown]
# # Instruction tuning
#
# > A language model that answers: loss on the answers alone, packing, sample answers, and what the model forgets.
#
# At the end you can bring your own prompts and answers into a training, say which tokens it learns from, choose between full fine-tuning and LoRA with a measured price for each, and recognise a chat template that was applied twice. Runs in about 40 s on a CPU.

# %%
#| default_exp tasks.text_generation

# %%
#| export
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

# %%
import json
import math
import statistics
import tempfile

import matplotlib.pyplot as plt
from transformers import pipeline

from ftnb.adapters import LoRA, merged
from ftnb.builtin.instructions import instruction_splits, instructions
from ftnb.builtin.stories import stories
from ftnb.language.chats import answer_spans
from ftnb.language.packing import first_fit
from ftnb.layers import layer_groups
from ftnb.pretrained import quiet_transformers
from ftnb.strategies import Full, Head, StrategyError
from ftnb.train import Training

# %% [markdown]
# ## A model that goes on, and one that answers
#
# A causal language model gives each next token a probability, $p_\theta(x_t \mid x_{<t})$. Pretraining makes it go on with a text as its text did. The built-in one (623,000 parameters) has read tiny stories. Give it the beginning of one, and then a question:

# %%
found = load_language_model("builtin:lm-stories")
tokenizer, base = found.tokenizer, found.model

def go_on(text: str) -> str:
    ids, stop = tokenizer(text)["input_ids"], [tokenizer.eos_token_id]
    (written,) = generate(base, [ids], stop=stop, pad_id=0, max_new_tokens=12)
    return tokenizer.decode(written)

{text: go_on(text) for text in (" A cow", " The soup is not hot. It is", " What does a cow do?")}

# %% [markdown]
# It knows what a cow does. A question it has never seen, so it goes on as if a story had begun with one. *Instruction tuning* (supervised fine-tuning, SFT) shows it questions with their answers. Ours are generated; what the test asks for is in no training question, only in the stories.

# %%
splits = instruction_splits()
{name: len(rows) for name, rows in splits.items()}, splits["train"][:3]

# %% [markdown]
# ## A conversation as text
#
# A model reads one stream of tokens, so a conversation is written down with marks for who speaks. How, a *chat template* says, a small program that comes with the tokenizer. With `add_generation_prompt` the text ends where an answer begins.

# %%
chat = [
    {"role": "user", "content": "What does a cow do?"}, {"role": "assistant", "content": "A cow moos."},
    {"role": "user", "content": "And a dog?"}, {"role": "assistant", "content": "A dog barks."},
]  # fmt: skip
render(tokenizer, chat), render(tokenizer, chat[:1], ask=True)

# %% [markdown]
# ## Only the answers count
#
# The loss is the cross-entropy of pretraining, but a mask $m_t$ chooses whose tokens count: 1 in an answer *and for the token that ends it* (else the model never learns to stop), 0 elsewhere.
#
# $$\mathcal{L}(\theta) = -\frac{1}{\sum_t m_t}\sum_t m_t \log p_\theta(x_t \mid x_{<t})$$
#
# To find the answers we render the template up to each of them and compare. Then we cut the text into tokens. A token must not reach across the border: when the model answers, it has read the prompt alone. Where a tokenizer would join the last letter of a prompt with the first of an answer, we cut there.

# %%
text, spans, _ = answer_spans(tokenizer, chat)
[text[start:end] for start, end in spans]

# %% [markdown]
# In code −100 stands for $m_t = 0$. Here is what counts (green), in both turns:

# %%
done = encode_conversations([chat], tokenizer, max_length=64)
ids, labels = done.input_ids[0], done.labels[0]
counted = [label != IGNORE for label in labels]
TokenTable([TokenRow(f"{sum(counted)} of {len(ids)}", [tokenizer.decode([i]) for i in ids], counted)])

# %%
answers = tokenizer.decode([label for label in labels if label != IGNORE])
assert answers == "".join(text[start:end] for start, end in spans)

# %% [markdown]
# The loss takes the logits at $t-1$ for token $t$, for the tokens that count only. Beside it we count what was guessed right. A batch weighs as much as it has answer tokens, so that a step of several micro-batches is the mean over *tokens*: averaging the means of the batches gave short answers too much weight in many trainers until 2024.

# %%
#| export
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

# %%
batch = pad_rows([{"input_ids": ids, "labels": labels}], pad_id=tokenizer.pad_token_id)
loss, scores = answer_loss(base, batch)
with torch.no_grad():
    log_p = base(torch.tensor([ids])).logits[0].log_softmax(-1)
by_hand = -sum(log_p[t - 1, ids[t]] for t in range(1, len(ids)) if counted[t]) / sum(counted)
loss.item(), by_hand.item(), int(scores.num_tokens)

# %%
assert abs(loss.item() - by_hand.item()) < 1e-5 and int(scores.num_tokens) == sum(counted)

# %% [markdown]
# ## The task
#
# Everything above in one object of the shape that all tasks have: `prepare` loads and checks, `learner` goes into a training, `predict` answers.

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# What goes wrong in practice is said before training: an answer that is empty, a role that nobody knows, a prompt that is also in the test.

# %%
task = TextGeneration.prepare(splits, "builtin:lm-stories")
task.show_batch(3)

# %%
try:
    empty = {"prompt": "What does a dog do?", "completion": ""}
    TextGeneration.prepare([*splits["train"], empty], "builtin:lm-stories")
except DataError as error:
    print(error)

# %% [markdown]
# ## Sample answers while it trains
#
# The loss says little about what a model would say. So we stop at each evaluation and let it answer. In a running panel it is the same: **Pause**, then **Samples** or a question of your own, then **Resume**; the weights come out as if nobody had asked, because the most likely token is taken and no random number drawn.

# %%
asked = instructions("valid", 7, seed=1)[:4]
training = Training(task.learner(batch_size=16), lr=1e-3, num_epochs=5)
said = {}
for event in training:
    if event.kind == "evaluated" and event.epoch in (1, 3, 5):
        said[f"epoch {event.epoch:.0f}"] = task.predict([row["prompt"] for row in asked], max_new_tokens=16)

# %%
cells = [
    (row["prompt"], *map(str, answers), row["completion"])
    for row, *answers in zip(asked, *said.values(), strict=True)
]
TextTable(("asked", *said, "right"), cells)

# %%
test = task.evaluate("test")
test

# %% [markdown]
# `token_accuracy` (the main metric) and `perplexity` come from one pass and are cheap enough for every evaluation: each token is guessed with the *right* tokens before it. `exact_match` lets the model write, and one wrong token spoils an answer.

# %%
assert test["exact_match"] < test["token_accuracy"]
task.show_errors(4, "test")

# %% [markdown]
# ## Experiment 1: should the prompts count, too?
#
# **Expectation.** Prompts are about three quarters of the tokens here, and learning to write questions does not help to answer them. So the loss on answers alone should give more right answers after equally many steps. We train on three fresh sets of instructions either way, and test on as many fresh ones. The claim would be refuted if the means came out the other way round.

# %%
held_out = [f" {text}" for text in stories(60, seed=20_000)]  # text as in pretraining, not read before

@torch.no_grad()
def story_loss(model: nn.Module) -> float:
    rows = [tokenizer(text)["input_ids"] for text in held_out]
    batch = pad_rows([{"input_ids": ids, "labels": ids} for ids in rows], pad_id=tokenizer.pad_token_id)
    with evaluating(model):
        return answer_loss(model, batch)[0].item()

def tuned(seed: int, strategy: Any, loss_on: str = "answers") -> tuple[TextGeneration, dict[str, float]]:
    task = TextGeneration.prepare(instruction_splits(seed), "builtin:lm-stories", loss_on=loss_on)
    training = Training(task.learner(batch_size=16, seed=seed), strategy, lr=1e-3, num_epochs=4, seed=seed)
    for _ in training:
        pass
    task.loss_on = "answers"  # measured alike
    task._encode()
    trained = sum(p.numel() for p in training.phases[0].trainable)
    return task, {**task.evaluate("test"), "stories": story_loss(task.model), "trained": trained}

# %%
seeds = (3001, 3002, 3003)
tasks, full = zip(*(tuned(seed, Full()) for seed in seeds), strict=True)
everything = [tuned(seed, Full(), "everything")[1] for seed in seeds]

def means(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.mean(run[name] for run in runs), 3) for name in runs[0]}

{"answers only": means(full), "everything": means(everything)}

# %%
gains = [a["exact_match"] - b["exact_match"] for a, b in zip(full, everything, strict=True)]
gains

# %%
assert min(gains) > 0.1

# %% [markdown]
# As expected, and by much, on every seed. It is no law. Shi et al. (2024) found on large models that a loss on the prompts, too, can help, and most where prompts are long, answers short and examples few, which is how ours are. Their explanation is less overfitting to the answers. Our small model has the opposite trouble: after four epochs that are spent mostly on prompts it has not learned to answer yet. So measure it on your own data: `loss_on="everything"` is one setting.

# %% [markdown]
# ## Experiment 2: full or LoRA, and what is forgotten
#
# LoRA (lesson 22) freezes the model and trains a low-rank change of each matrix inside the blocks. The embeddings stay as they are, and with them the output matrix: here, as in many language models, both are *one* tensor (tied), so there is no head to train alone.

# %%
model = load_language_model("builtin:lm-stories").model
try:
    Head().phases(model)
except StrategyError as error:
    print(error)
[group.name for group in layer_groups(model)], model.lm_head.weight is model.model.embed_tokens.weight

# %% [markdown]
# **Expectation.** LoRA trains a small part of the weights, answers about as well (at most 0.05 fewer exactly right), and forgets less: the loss on stories that the model has not read rises less than after full fine-tuning. We measure that loss before and after, on the same three seeds.

# %%
before = story_loss(model)
adapted, lora = zip(*(tuned(seed, LoRA(rank=8)) for seed in seeds), strict=True)
table = {"full": means(full), "LoRA": means(lora)}
shown = {name: {key: row[key] for key in ("trained", "exact_match", "stories")} for name, row in table.items()}
{**shown, "stories before": round(before, 3)}

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), dpi=80, layout="constrained")
runs = {"everything": everything, "answers only": full, "LoRA": lora}
for ax, key, label in ((axes[0], "exact_match", "exactly right"), (axes[1], "stories", "nats per token")):
    for x, found in enumerate(runs.values()):
        ax.scatter([x] * len(found), [run[key] for run in found], s=40, alpha=0.7)
        ax.hlines(statistics.mean(run[key] for run in found), x - 0.25, x + 0.25, color="black", linewidth=1)
    ax.set(xticks=range(len(runs)), xlabel="fine-tuned on", ylabel=label, xlim=(-0.5, len(runs) - 0.5))
    ax.set_xticklabels(["full, everything", "full, answers", "LoRA, answers"])
axes[0].set(title="Answers of the test", ylim=(0, None))
axes[1].axhline(before, color="gray", linestyle="--", linewidth=1)
axes[1].set(title="Loss on unread stories (dashed: before)", ylim=(0, None))
plt.show()

# %% [markdown]
# With a twelfth of the weights LoRA answers as well, here a little better. But the last part of the expectation is *refuted* here: LoRA forgot more, not less, on each of the seeds. Why? A low-rank change need not be a small one. Here is how far the matrices inside the blocks have moved, against their own length:

# %%
def moved(model: Any) -> float:
    """Length of the change of the blocks' matrices over their length before."""
    own, old = model.state_dict(), base.state_dict()
    names = [name for name in old if ".layers." in name and old[name].ndim == 2]
    change = sum((own[name] - old[name]).square().sum() for name in names)
    return (change / sum(old[name].square().sum() for name in names)).sqrt().item()

with merged(adapted[0].model) as plain_model:
    distances = {"full": moved(tasks[0].model), "LoRA": moved(plain_model)}
distances

# %%
assert distances["LoRA"] > distances["full"]
assert all(a["stories"] > b["stories"] > before for a, b in zip(lora, full, strict=True))
assert table["LoRA"]["trained"] < 0.1 * table["full"]["trained"]
assert table["LoRA"]["exact_match"] > table["full"]["exact_match"] - 0.05

# %% [markdown]
# Its adapters learn at ten times the rate (lesson 22), and the model is small. Biderman et al. (2024) found what we expected, on models ten thousand times as large, trained for long. The lesson is to measure it: keep some text of the old kind, and look at its loss.
#
# Merging adds the low-rank change to the matrices. The model is then a plain one again, and computes the same:

# %%
task = adapted[0]
batch = next(task.batches("valid", 8).epoch())
loss = answer_loss(task.model.eval(), batch)[0].item()
with merged(task.model) as plain:
    difference = abs(answer_loss(plain, batch)[0].item() - loss)
difference

# %%
assert difference < 1e-5

# %% [markdown]
# ## Packing: rows without padding
#
# Conversations differ in length, and a batch is as wide as its longest. Packing puts several into one row. Two things must hold: no token sees a neighbour, and each example counts its positions from 0. transformers does the first by the second: where positions begin anew and there is no attention mask, it masks attention in blocks. The first token of an example has no label, because the token before it in the row belongs to another.

# %%
packed = TextGeneration.prepare(instruction_splits(), "builtin:lm-stories", packing="on", max_length=128)
plain = TextGeneration.prepare(instruction_splits(), "builtin:lm-stories")

def train_tokens(task: TextGeneration, batch_size: int) -> tuple[int, float, float]:
    width = total = number = 0.0
    for batch in task.batches("train", batch_size).epoch():
        with torch.no_grad():
            loss, scores = answer_loss(task.model, batch)
        width += batch["input_ids"].numel()
        total, number = total + loss.item() * int(scores.num_tokens), number + int(scores.num_tokens)
    return int(width), number, total / number

{"one by one": train_tokens(plain, 16), "packed": train_tokens(packed, 4)}

# %%
assert abs(train_tokens(plain, 16)[2] - train_tokens(packed, 4)[2]) < 1e-5

# %% [markdown]
# The number of answer tokens and their mean loss agree; the tests compare them token by token. What is saved is padding, and here there was little, since batches hold texts of similar length: packing pays where lengths differ much, on a GPU that wants full rows.
#
# ## The story: the template that was applied twice
#
# A template puts all special tokens there. Who renders it to a text, and gives that text to something that renders or adds special tokens again, gets them twice. This happened everywhere: OpenRLHF trained Llama 3 with two begin tokens (OpenRLHF/OpenRLHF#393), vLLM and llama-cpp-python had to detect prompts that came with a template already (vllm-project/vllm#27515, abetlen/llama-cpp-python#1439), and transformers' documentation repeats the warning in two places (huggingface/transformers#31796). Nothing crashes. Here are our three models, asked in both ways:

# %%
def exactly_right(task: TextGeneration, prompts: list[str], rows: list[dict]) -> float:
    answers = task.predict(prompts, max_new_tokens=16)
    return statistics.mean(same_answer(a.text, row["completion"]) for a, row in zip(answers, rows, strict=True))

def once_and_twice(task: TextGeneration, seed: int) -> tuple[float, float]:
    rows = instructions("test", seed=seed)
    bare = [row["prompt"] for row in rows]
    rendered = [render(task.tokenizer, conversation(prompt), ask=True) for prompt in bare]
    return exactly_right(task, bare, rows), exactly_right(task, rendered, rows)

both = [once_and_twice(task, seed) for task, seed in zip(tasks, seeds, strict=True)]
[tuple(round(share, 3) for share in pair) for pair in both]

# %%
assert all(twice < once for once, twice in both)

# %% [markdown]
# Every model answers fewer right, one of them an eighth of all questions fewer, another a twentieth: a mistake that can pass for a weak model. What they say then:

# %%
task, rows = tasks[0], instructions("test", seed=seeds[0])
rendered = [render(task.tokenizer, conversation(row["prompt"]), ask=True) for row in rows[:4]]
print(render(task.tokenizer, conversation(rendered[0]), ask=True))
for row, answer in zip(rows[:4], task.predict(rendered, max_new_tokens=16), strict=True):
    print(f"{row['prompt']:60} {answer}")

# %% [markdown]
# In training data the same mistake is seen before any step:

# %%
wrong = [{**row, "prompt": render(tokenizer, conversation(row["prompt"]), ask=True)} for row in splits["train"]]
[warning for warning in TextGeneration.prepare(wrong, "builtin:lm-stories").warnings if "twice" in warning]

# %% [markdown]
# ## Your own data
#
# One JSON object a line, with `prompt` and `completion`, or with chat `messages`, or with `instruction`, `input` and `output`. Then two lines train, and a folder comes out that `pipeline("text-generation")` loads.

# %%
folder = Path(tempfile.mkdtemp())
with open(folder / "train.jsonl", "w") as file:
    for row in instructions("train", 100, seed=7):
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        file.write(json.dumps({"messages": messages}) + "\n")
task = TextGeneration.prepare(folder / "train.jsonl", "builtin:lm-stories")  # a tenth is kept for validation
for _ in Training(task.learner(), Full(), lr=1e-3, num_epochs=6):
    pass
task.save(folder / "model")
with quiet_transformers():
    write = pipeline("text-generation", str(folder / "model"), device="cpu")
write([{"role": "user", "content": "What does a dog do?"}], max_new_tokens=16)[0]["generated_text"][-1]

# %% [markdown]
# The same from the command line: `ftnb run --set task=text-generation --set data=train.jsonl --set strategy=lora`, then `ftnb predict RUN "What does a dog do?"`.
#
# A real model is one argument away: `model="HuggingFaceTB/SmolLM2-135M"` with `lr=2e-4` and LoRA on a GPU, or `"Qwen/Qwen3-0.6B-Base"`. Base models often bring no chat template; then a plain one is used, and a notice says so.
#
# ## Exercises
#
# **1 (easy).** Which share of the training tokens teaches? Write `answer_share` from the lists of labels.

# %% tags=["exercise"]
def answer_share(labels: list[list[int]]) -> float:
    ...  # your code here

# %% tags=["solution"]
def answer_share(labels: list[list[int]]) -> float:
    flat = [label for row in labels for label in row]
    return sum(label != -100 for label in flat) / len(flat)

# %%
assert answer_share([[-100, -100, 5], [-100, 6, 7]]) == 0.5
round(answer_share(plain.encoded["train"]["labels"][:]), 2)

# %% [markdown]
# **2 (medium).** A perplexity needs something to be compared with. Write `unigram_loss`: the mean loss (nats) on the test answers' tokens of a model that knows only how often each token occurs in the training answers, with one added to every count.

# %% tags=["exercise"]
def unigram_loss(train: list[int], test: list[int], vocab_size: int) -> float:
    ...  # your code here

# %% tags=["solution"]
def unigram_loss(train: list[int], test: list[int], vocab_size: int) -> float:
    counts = torch.bincount(torch.tensor(train), minlength=vocab_size) + 1.0
    return -(counts / counts.sum()).log()[torch.tensor(test)].mean().item()

# %%
def answers_of(split: str) -> list[int]:
    return [label for row in plain.encoded[split]["labels"][:] for label in row if label != IGNORE]

assert abs(unigram_loss([0, 0, 1], [0], 2) + math.log(3 / 5)) < 1e-6
baseline = unigram_loss(answers_of("train"), answers_of("test"), len(tokenizer))
round(baseline, 2), round(means(full)["loss"], 2)

# %%
assert means(full)["loss"] < baseline

# %% [markdown]
# **3 (hard).** Packing well is a puzzle. `first_fit` takes the longest example first. How far is it from the fewest rows that could be possible? Write `fewest`, a bound from below.

# %% tags=["exercise"]
def fewest(lengths: list[int], max_length: int) -> int:
    ...  # your code here

# %% tags=["solution"]
def fewest(lengths: list[int], max_length: int) -> int:
    return math.ceil(sum(lengths) / max_length)

# %%
lengths = [len(ids) for ids in plain.encoded["train"]["input_ids"][:]]
found, bound = len(first_fit(lengths, 128)), fewest(lengths, 128)
assert fewest([3, 3, 3], 4) == 3 and bound <= found
found, bound

# %% [markdown]
# ## Summary
# - A conversation becomes one text by the chat template; the loss counts the answers' tokens and the token that ends each.
# - What is measured at each evaluation (token accuracy, perplexity) reads the right answer along; exact match lets the model write. Look at samples.
# - LoRA trains a twelfth of the weights here (of larger models less), merges into a plain model, and leaves the embeddings as they are.
# - Packing must keep examples apart (attention and positions); then it changes no loss.
# - A template applied twice raises no error. Give bare texts, or messages; add no special tokens by hand.
#
# **What next:** lesson 92 shows how the built-in model was made, lesson 22 what LoRA does, lesson 56 the panel with its samples. With a GPU try `model="Qwen/Qwen3-0.6B-Base"` on a thousand of your own examples before trying a larger model. **Sources:** Ouyang et al. (2022), "Training language models to follow instructions", arXiv:2203.02155; Taori et al. (2023), "Alpaca"; Hu et al. (2021), "LoRA", arXiv:2106.09685; Biderman et al. (2024), "LoRA learns less and forgets less", arXiv:2405.09673; Shi et al. (2024), "Instruction tuning with loss over instructions", arXiv:2405.14394; the documentation of TRL (dataset formats) and transformers (chat templates); Karpathy, llama2.c.

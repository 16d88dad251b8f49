# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Speech to text
#
# > A clip has fifty moments a second, its transcript a few letters, and nobody says which belongs to which.
#
# After this lesson you can fine-tune a speech recogniser on your own recordings with transcripts, explain how CTC learns without an alignment (and compute its loss by hand), and read a word error rate. It takes about 45 seconds.

# %%
#| default_exp tasks.speech_recognition

# %%
#| export
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.text import CharErrorRate, WordErrorRate

from ftnb.audio.examples import ClipExamples, clip_rows, extract
from ftnb.audio.recognisers import Recogniser, frames_of, load_recogniser, save_recogniser
from ftnb.audio.show import ClipTable
from ftnb.audio.sources import check_split_clips, load_clip_splits, normalise_transcript
from ftnb.data import Batches, Splits
from ftnb.devices import to_device
from ftnb.metrics import Metrics
from ftnb.pretrained import refuse_untrained
from ftnb.step import Batch, Learner
from ftnb.tables import DataError, listing
from ftnb.tasks.text_classification import evaluating, measure

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

from ftnb.audio.clips import read_clip
from ftnb.builtin.speech import spoken_commands, spoken_digits
from ftnb.pretrained import find_model
from ftnb.train import Training

# %% [markdown]
# ## The problem: no alignment
#
# wav2vec 2.0 gives 50 answers a second: at each moment a letter, or a *blank*, which means that nothing new is said. A transcript of eight letters fits a clip of a hundred moments in very many ways; any will do. A path of answers becomes a text in two steps: merge neighbours that are equal, then drop the blanks. So `s s – e e v – e – n` is *seven*, and a double letter needs a blank between its two halves.

# %%
#| export
def collapse(path: Sequence[int], blank: int) -> list[int]:
    """The labels that a path of answers spells: neighbours that are equal count once, blanks not at all."""
    return [label for i, label in enumerate(path) if label != blank and (i == 0 or path[i - 1] != label)]

# %%
letters = "–aelnv"
spelled = ["".join(letters[i] for i in collapse([letters.index(c) for c in path], 0)) for path in ("al–ll", "aall", "al–l", "a–l–l–")]
spelled

# %%
assert spelled == ["all", "al", "all", "all"]

# %% [markdown]
# ## The loss: all paths at once
#
# CTC (connectionist temporal classification, Graves et al. 2006) makes the transcript $y$ likely by whatever path. With $p_t(c)$ the probability of answer $c$ at moment $t$,
#
# $$L = -\log \sum_{\text{paths that spell } y} \; \prod_{t} p_t(\text{path}_t) .$$
#
# The sum has astronomically many terms, and a recursion does it in $T \cdot (2\lvert y \rvert + 1)$ steps. Write the transcript with a blank before, between and after its letters, $z = (-, y_1, -, y_2, -, \dots)$, and let $\alpha_t(s)$ be the probability of all beginnings of paths that at moment $t$ stand at $z_s$. One comes to $z_s$ from where one stood, from the place before, or over a blank from the letter before that (if it is another letter):
#
# $$\alpha_t(s) = p_t(z_s) \, \big( \alpha_{t-1}(s) + \alpha_{t-1}(s-1) + [z_s \ne -, \; z_s \ne z_{s-2}] \; \alpha_{t-1}(s-2) \big) .$$

# %%
#| export
def ctc_by_hand(log_probs: Tensor, labels: Sequence[int], blank: int = 0) -> Tensor:
    """CTC's loss of one clip by its forward recursion, for reading; trainings use PyTorch's.

    Args:
        log_probs: log-probabilities of the answers, shape (moments, answers).
        labels: the transcript, without blanks.
        blank: the blank's number.

    Returns:
        The negative log-probability of the transcript; infinite if it does not fit.

    Source: Graves et al. (2006), equations 6 to 8.
    """
    extended = [blank]
    for label in labels:
        extended += [label, blank]
    alpha: dict[int, Tensor] = {s: log_probs[0, z] for s, z in enumerate(extended[:2])}  # what is missing is impossible
    for t in range(1, len(log_probs)):
        before, alpha = alpha, {}
        for s, z in enumerate(extended):
            skips = z != blank and s >= 2 and z != extended[s - 2]
            ways = [before[r] for r in (s, s - 1, *([s - 2] if skips else [])) if r in before]
            if ways:
                alpha[s] = torch.logsumexp(torch.stack(ways), 0) + log_probs[t, z]
    ends = [alpha[s] for s in (len(extended) - 1, len(extended) - 2) if s in alpha]
    return -torch.logsumexp(torch.stack(ends), 0) if ends else torch.tensor(torch.inf)

# %%
answers = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
word = [letters.index(c) for c in "all"]
pytorch = nn.functional.ctc_loss(answers[:, None], torch.tensor([word]), torch.tensor([12]), torch.tensor([3]), reduction="sum")
ctc_by_hand(answers, word), pytorch

# %%
paths = torch.cartesian_prod(*[torch.arange(6)] * 5)  # all 7,776 paths of five moments
probable = [answers[torch.arange(5), path].sum().exp() for path in paths if collapse(path.tolist(), 0) == word]
len(probable), -torch.stack(probable).sum().log()

# %%
assert abs(ctc_by_hand(answers, word) - pytorch) < 1e-4
assert abs(ctc_by_hand(answers[:5], word) + torch.stack(probable).sum().log()) < 1e-4

# %% [markdown]
# Five moments hold *all* in only a few ways, since the two *l* need a blank between them. A clip with fewer moments than letters plus double letters cannot be learnt at all; the loader counts such clips.

# %% [markdown]
# ## Counting errors
#
# The word error rate compares the words heard with those said: the least number of substitutions, insertions and deletions that turns one into the other, divided by the number of words *said*. It can exceed 1. The character error rate does the same with letters.
#
# $$\mathrm{WER} = \frac{S + I + D}{N} .$$

# %%
#| export
def align(said: Sequence[str], heard: Sequence[str]) -> list[tuple[str, str, str]]:
    """The cheapest way from what was said to what was heard, by Levenshtein's table.

    Returns:
        In order (kind, said, heard), with the kinds "same", "substituted", "deleted" (heard is "") and "inserted" (said
        is "").
    """
    costs = [[i + j if i * j == 0 else 0 for j in range(len(heard) + 1)] for i in range(len(said) + 1)]
    for i, one in enumerate(said, start=1):
        for j, other in enumerate(heard, start=1):
            costs[i][j] = min(costs[i - 1][j] + 1, costs[i][j - 1] + 1, costs[i - 1][j - 1] + (one != other))
    steps, i, j = [], len(said), len(heard)
    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + (said[i - 1] != heard[j - 1]):
            kind = "same" if said[i - 1] == heard[j - 1] else "substituted"
            steps.append((kind, said[i - 1], heard[j - 1]))
            i, j = i - 1, j - 1
        elif i and costs[i][j] == costs[i - 1][j] + 1:
            steps.append(("deleted", said[i - 1], ""))
            i -= 1
        else:
            steps.append(("inserted", "", heard[j - 1]))
            j -= 1
    return steps[::-1]


STYLES = {
    "same": "",
    "substituted": "background:#f5c26b;color:#000;border-radius:3px;padding:0 3px",
    "deleted": "text-decoration:line-through;color:#b3261e",
    "inserted": "border-bottom:2px dashed #2e6fba",
}


def transcript_html(said: Sequence[str], heard: Sequence[str]) -> str:
    """What was heard, with the errors marked: said→heard on yellow, missed struck out, invented underlined."""
    words = []
    for kind, one, other in align(said, heard):
        text = f"{one}→{other}" if kind == "substituted" else one or other
        words.append(f'<span title="{kind}" style="{STYLES[kind]}">{escape(text)}</span>')
    return " ".join(words)


def transcript_text(said: Sequence[str], heard: Sequence[str]) -> str:
    """The same for a terminal: [said→heard], [-missed-], [+invented+]."""
    marks = {"same": "{0}", "substituted": "[{0}→{1}]", "deleted": "[-{0}-]", "inserted": "[+{1}+]"}
    return " ".join(marks[kind].format(one, other) for kind, one, other in align(said, heard))

# %%
transcript_text("four seven one".split(), "for seven one one".split())

# %%
steps = align("four seven one".split(), "for seven one one".split())
errors = sum(kind != "same" for kind, _, _ in steps)
assert errors == 2 and float(WordErrorRate()(["for seven one one"], ["four seven one"])) == torch.tensor(2 / 3)

# %% [markdown]
# ## The task object
#
# One task for both families of models: CTC (wav2vec 2.0, HuBERT, WavLM), and sequence to sequence (Whisper), which writes token after token with an eye on the whole clip. The first's loss is a mean over clips, the second's a mean over tokens; accumulated gradients are those of one large batch only if each micro-batch is weighted by what its loss is the mean of. Transcripts are normalised: lower case, no punctuation. A clip that is longer than `max_seconds` is left out, not cut: its transcript would go on where the sound has stopped.

# %%
#| export
def model_inputs(batch: Batch) -> Batch:
    """What of a batch the model takes."""
    return {name: value for name, value in batch.items() if name not in ("num_samples", "num_tokens")}


def speech_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """The model's own loss (CTC, or cross-entropy of each next token), and its outputs.

    In eval mode a sequence-to-sequence model also writes down what it hears, as `outputs.generated`.
    """
    inputs = model_inputs(batch)
    outputs = model(**inputs)
    any_model: Any = model
    if not model.training and any_model.can_generate():
        features = {name: value for name, value in inputs.items() if name != "labels"}
        longest = min(inputs["labels"].shape[1] + 8, any_model.config.max_target_positions)
        outputs["generated"] = any_model.generate(**features, max_length=longest, do_sample=False, num_beams=1)
    return outputs.loss, outputs


def speech_metrics(recogniser: Recogniser) -> Metrics:
    """Word error rate (the main metric; lower is better) and character error rate."""
    collection = MetricCollection({"wer": WordErrorRate(), "cer": CharErrorRate()})

    def texts(outputs: Any, batch: dict[str, Any]) -> tuple[list[str], list[str]]:
        return written(recogniser, outputs, batch["num_samples"]), spelled_out(recogniser, batch["labels"])

    return Metrics(collection, texts, main="wer", higher_is_better=False)


def written(recogniser: Recogniser, outputs: Any, num_samples: Tensor) -> list[str]:
    """What a model's outputs say, as normalised transcripts."""
    tokenizer = recogniser.tokenizer
    if not recogniser.ctc:
        texts = tokenizer.batch_decode(outputs["generated"], skip_special_tokens=True)
        return [normalise_transcript(text) for text in texts]
    paths = outputs.logits.argmax(-1).cpu()
    lengths = frames_of(recogniser, num_samples.cpu()).clamp(max=paths.shape[1])
    blank = tokenizer.pad_token_id
    labels = [collapse(path[:n].tolist(), blank) for path, n in zip(paths, lengths.tolist(), strict=True)]
    return [_joined(tokenizer, ids) for ids in labels]


def spelled_out(recogniser: Recogniser, labels: Tensor) -> list[str]:
    """Labels (−100 where there is none) as normalised transcripts."""
    rows = [row[row >= 0].tolist() for row in labels.cpu()]
    if recogniser.ctc:
        return [_joined(recogniser.tokenizer, row) for row in rows]
    return [normalise_transcript(text) for text in recogniser.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _joined(tokenizer: Any, ids: list[int]) -> str:
    space, special = tokenizer.word_delimiter_token, set(tokenizer.all_special_tokens)
    tokens = [token for token in tokenizer.convert_ids_to_tokens(ids) if token not in special or token == space]
    return normalise_transcript("".join(" " if token == space else token for token in tokens))


@dataclass(frozen=True)
class Transcript:
    """What was heard in a recording."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class SpeechRecognition:
    """Recordings with transcripts, and a model that writes down speech.

    Args:
        recogniser: the model, its feature extractor and its tokenizer.
        splits: the rows, with the columns "audio", "text" (normalised) and "row".
        max_seconds: longer recordings were left out.
        warnings: what checks and loading found.
    """

    recogniser: Recogniser
    splits: Splits
    max_seconds: float | None = None
    warnings: list[str] = field(default_factory=list)

    name: ClassVar[str] = "automatic-speech-recognition"
    options: ClassVar[tuple[str, ...]] = ("max_seconds",)

    @classmethod
    def prepare(
        cls,
        data: Any,
        model: str,
        *,
        columns: Mapping[str, str | int] | None = None,
        max_seconds: float | None = None,
        seed: int = 0,
        scratch: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> "SpeechRecognition":
        """Load data and model and check both; whatever is wrong is raised here, before any training.

        Args:
            data: a folder of recordings with transcripts, a table with the columns "audio" and "text",
                "builtin:spoken-digits", or whatever else `ftnb.audio.sources.load_clip_splits` takes.
            model: whatever `ftnb.audio.recognisers.load_recogniser` takes.
            columns: role ("audio", "text") → column name, or position in a file without a header line.
            max_seconds: longer recordings are left out; None keeps them all.
            seed: of the new parameters and of the cut into splits.
            scratch: random weights in place of the pretrained ones.
            valid_fraction: share of the training rows to validate on where there is no validation split.
            test_fraction: the same for the test; 0 means no test.

        Raises:
            DataError: if the data cannot be read or cannot be right.
            ModelError: if the model cannot be loaded or does not fit.
        """
        if max_seconds is not None and max_seconds <= 0:
            raise DataError(f"max_seconds must be above 0, got {max_seconds}.")
        splits = load_clip_splits(
            data,
            roles=("audio", "text"),
            columns=columns,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            seed=seed,
        )
        splits, notices = normalised(splits)
        texts = [text for _, split in splits.items() for text in split["text"][:]]
        recogniser = load_recogniser(model, texts, scratch=scratch, seed=seed)
        notices += check_split_clips(splits, recogniser.rate)
        splits, more = fitting(splits, recogniser, max_seconds)
        return cls(recogniser, splits, max_seconds, [*splits.notices, *notices, *more, *recogniser.notices])

    @classmethod
    def from_saved(cls, folder: str | Path) -> "SpeechRecognition":
        """A task without data around a trained model, for predictions.

        Raises:
            ModelError: if there is no such model.
        """
        recogniser = load_recogniser(str(folder), [])
        refuse_untrained(folder, recogniser.new_parameters)
        nothing = Dataset.from_dict({})
        return cls(recogniser, Splits(nothing, nothing))

    @property
    def model(self) -> nn.Module:
        """The model."""
        model: nn.Module = self.recogniser.model
        return model

    def learner(self, batch_size: int = 8, seed: int = 0, num_workers: int = 0) -> Learner:
        """Model, data, loss and metrics for a training.

        Args:
            batch_size: recordings per batch; recordings of similar length share a batch.
            seed: of the order of the recordings.
            num_workers: processes that decode and make batches; 0 means this one.
        """
        return Learner(
            model=self.model,
            train=self.batches("train", batch_size, shuffle=True, seed=seed, num_workers=num_workers),
            valid=self.batches("valid", 2 * batch_size, num_workers=num_workers),
            loss=speech_loss,
            metrics=self.metrics(),
            weight=self.weight,
            new_parameters=self.recogniser.new_parameters,
        )

    def weight(self, batch: Batch) -> int:
        """The weight of a batch: of how many terms its loss is the mean, clips for CTC, otherwise tokens."""
        return len(batch["labels"]) if self.recogniser.ctc else int(batch["num_tokens"])

    def examples(self, split: str) -> ClipExamples:
        """A split's recordings as samples with their transcripts' labels.

        Raises:
            DataError: if there is no such split.
        """
        rows = self.splits.named(split)
        targets = [self.recogniser.labels(text) for text in rows["text"][:]]
        return ClipExamples(rows, self.recogniser.rate, targets=targets)

    def batches(self, split: str | ClipExamples, batch_size: int, **kinds: Any) -> Batches:
        """A split (or examples) in batches; `kinds` are those of `ftnb.data.Batches`.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split) if isinstance(split, str) else split
        return Batches(examples, self.collate, batch_size, lengths=examples.lengths(), **kinds)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Examples as one batch: sound and labels padded, the labels with −100, and how many samples each clip has.

        "num_tokens" is how many labels they have together.
        """
        clips = [example["samples"] for example in examples]
        batch = extract(self.recogniser.extractor, clips)
        batch["num_samples"] = torch.tensor([len(clip) for clip in clips])
        if "labels" in examples[0]:
            labels = [torch.tensor(example["labels"]) for example in examples]
            batch["labels"] = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
            batch["num_tokens"] = sum(map(len, labels))
        return batch

    def metrics(self) -> Metrics:
        """Word and character error rate."""
        return speech_metrics(self.recogniser)

    def predict(self, clips: Sequence[Any], batch_size: int = 8) -> list[Transcript]:
        """Write down recordings.

        Args:
            clips: a list of paths, encoded bytes or pairs (samples, rate); for a single one, a list of one.
            batch_size: recordings per batch.

        Raises:
            DataError: if `clips` is no list, or one of them cannot be read.
        """
        rows = clip_rows(clips)
        if len(rows) == 0:
            return []
        return [Transcript(text) for text in self._heard(ClipExamples(rows, self.recogniser.rate), batch_size)]

    def _heard(self, examples: ClipExamples, batch_size: int = 8) -> list[str]:
        plain = ClipExamples(examples.rows, examples.rate)
        batches, device = self.batches(plain, batch_size), next(self.model.parameters()).device
        texts: list[str] = []
        with evaluating(self.model):
            for batch in batches.epoch():
                on_device = to_device(model_inputs(batch), device)
                model: Any = self.model
                if self.recogniser.ctc:
                    outputs: Any = model(**on_device)
                else:
                    longest = min(200, model.config.max_target_positions)
                    generated = model.generate(**on_device, max_length=longest, do_sample=False, num_beams=1)
                    outputs = {"generated": generated}
                texts += written(self.recogniser, outputs, batch["num_samples"])
        order = [i for batch in batches.order() for i in batch]
        return [text for _, text in sorted(zip(order, texts, strict=True))]

    def evaluate(self, split: str = "test", batch_size: int = 8) -> dict[str, float]:
        """Loss, word and character error rate on a split, computed in float32.

        Raises:
            DataError: if there is no such split.
        """
        return measure(self.model, self.batches(split, batch_size), speech_loss, self.metrics(), self.weight)

    def show_batch(self, n: int = 3) -> ClipTable:
        """The first recordings of the first training batch, to look at and to listen to, and their transcripts.

        Raises:
            DataError: if there are none.
        """
        examples = self.examples("train")
        first = self.learner().train.order()[0][:n]
        clips, rate = [examples.clip(i) for i in first], examples.rate
        assert examples.targets is not None
        rows = [(examples.rows[i]["text"], str(len(examples.targets[i]))) for i in first]
        caption = f"As the model hears them: {rate} samples a second."
        return ClipTable(("transcript", "labels"), rows, clips, rate, caption)

    def show_errors(self, n: int = 4, split: str = "valid") -> ClipTable:
        """The recordings of a split with the most wrong words, to listen to, with the errors marked.

        Raises:
            DataError: if there is no such split.
        """
        examples = self.examples(split)
        said, heard = examples.rows["text"][:], self._heard(examples)
        wrong = [sum(k != "same" for k, _, _ in align(a.split(), b.split())) for a, b in zip(said, heard, strict=True)]
        worst = sorted((i for i in range(len(said)) if wrong[i]), key=lambda i: -wrong[i])
        shown = worst[:n]
        facts = [(str(examples.rows[i]["row"]), said[i], said[i].split(), heard[i].split()) for i in shown]
        plain = [(row, text, transcript_text(a, b)) for row, text, a, b in facts]
        html = [(row, escape(text), transcript_html(a, b)) for row, text, a, b in facts]
        caption = f"{len(worst)} of {len(said)} {split} transcripts have errors; the worst first."
        clips = [examples.clip(i) for i in shown]
        return ClipTable(("row", "said", "heard"), plain, clips, examples.rate, caption, html)

    def save(self, folder: str | Path) -> Path:
        """Save model, feature extractor and tokenizer as a folder that `transformers.pipeline` loads.

        Returns:
            The folder.
        """
        return save_recogniser(self.recogniser, folder)

    def loading_code(self, folder: str | Path) -> str:
        """The lines of Python that use a saved model without this package."""
        return (
            "from transformers import pipeline\n\n"
            f'write_down = pipeline("automatic-speech-recognition", {str(folder)!r})\nwrite_down("clip.wav")'
        )


def normalised(splits: Splits) -> tuple[Splits, list[str]]:
    """The same rows with normalised transcripts, and notices.

    Raises:
        DataError: naming rows without a transcript.
    """
    notices, sets = [], {}
    for name, split in splits.items():
        texts = [normalise_transcript(text) for text in split["text"][:]]
        empty = [row for row, text in zip(split["row"][:], texts, strict=True) if not text]
        if empty:
            what = f"{name}: {len(empty)} of {len(split)} rows have no transcript (row {listing(empty[:5])})"
            raise DataError(f"{what}. Fill them in, or remove these rows.")
        changed = sum(a != b for a, b in zip(texts, split["text"][:], strict=True))
        if changed:
            what = "transcripts were brought to lower case without punctuation."
            notices.append(f"{name}: {changed} of {len(split)} {what}")
        sets[name] = split.remove_columns("text").add_column("text", texts)
    return Splits(**sets, notices=splits.notices, sources=splits.sources, columns=splits.columns), notices


def fitting(splits: Splits, recogniser: Recogniser, max_seconds: float | None) -> tuple[Splits, list[str]]:
    """The rows that can be learnt: not longer than `max_seconds`, and with as many moments as their letters need.

    Raises:
        DataError: if none is left in a split.
    """
    notices, sets = [], {}
    for name, split in splits.items():
        lengths = ClipExamples(split, recogniser.rate).lengths()
        keep = [max_seconds is None or n <= max_seconds * recogniser.rate for n in lengths]
        if (long := len(keep) - sum(keep)) > 0:
            what = f"recordings are longer than {max_seconds:g} seconds and left out."
            notices.append(f"{name}: {long} of {len(keep)} {what}")
        if recogniser.ctc:
            frames = frames_of(recogniser, torch.tensor(lengths)).tolist()
            needed = [len(text) + sum(a == b for a, b in pairwise(text)) for text in split["text"][:]]
            short = [i for i, (have, need) in enumerate(zip(frames, needed, strict=True)) if keep[i] and have < need]
            if short:
                example = split["row"][short[0]]
                what = f"recordings are too short for their transcripts and left out (row {example}"
                why = f"{frames[short[0]]} moments for {needed[short[0]]} labels)."
                notices.append(f"{name}: {len(short)} of {len(keep)} {what}: {why}")
            for i in short:
                keep[i] = False
        if not any(keep):
            raise DataError(f"{name}: no recording is left of {len(keep)}. " + " ".join(notices))
        sets[name] = split.select([i for i, kept in enumerate(keep) if kept])
    return Splits(**sets, notices=splits.notices, sources=splits.sources, columns=splits.columns), notices

# %% [markdown]
# ## From start to end
#
# Strings of two to five digits, in two dozen voices and much noise; the test voices are heard nowhere else. The checkpoint never saw a letter: the loader makes a vocabulary of those that occur, and a new head.

# %%
def digits(num_clips: int, seed: int):
    return {"train": spoken_digits("train", num_clips, seed), "valid": spoken_digits("valid", 40, seed), "test": spoken_digits("test", 60, seed)}

task = SpeechRecognition.prepare(digits(200, seed=0), "builtin:wav2vec2-babble")
task.show_batch(2)

# %%
{"warnings": task.warnings, "vocabulary": "".join(task.recogniser.tokenizer.convert_ids_to_tokens(range(3, len(task.recogniser.tokenizer))))}

# %%
training = Training(task.learner(batch_size=4), lr=1.5e-3, num_epochs=6, eval_every=75, device="cpu")
for event in training:
    if event.kind == "evaluated":
        print(f"step {event.step}: loss {event.loss:.2f}", event.metrics)

# %% [markdown]
# For a good while nothing but blanks comes out, and the error rates stay at 1: blanks alone are what is safest to say at most moments. Then letters appear, first those that are easy to hear. This plateau is typical of CTC, and no reason to stop.

# %%
measured = task.evaluate("test")
measured

# %%
assert measured["wer"] < 0.6  # strangers' voices; of ten digits, guessing has about 0.9

# %%
task.show_errors(3)

# %% [markdown]
# What the network says at each moment of a clip: one letter, or nothing. Nobody told it *when* a sound is spoken; only the order counts in the loss, and the moments came out of it.

# %%
row = task.splits.test[0]
clip = read_clip(row["audio"], 16_000)
inputs = extract(task.recogniser.extractor, [clip])
with torch.no_grad():
    probabilities = task.model(**inputs).logits.softmax(-1)[0]
tokens = task.recogniser.tokenizer.convert_ids_to_tokens(range(probabilities.shape[1]))
spoken = sorted(set(probabilities.argmax(-1).tolist()) - {0})
fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 3.8), dpi=80, layout="constrained")
top.specgram(clip + 1e-5, NFFT=400, noverlap=240, Fs=16_000, cmap="magma", vmin=-120, vmax=-40)
top.set(title=f"said: {row['text']}, heard: {task.predict([(clip, 16_000)])[0]}", ylabel="Hz", xticklabels=[], xlim=(0, len(clip) / 16_000))
time = np.arange(len(probabilities)) * 0.02 + 0.02
bottom.plot(time, probabilities[:, 0], color="lightgray", label="blank")
for i in spoken:
    bottom.plot(time, probabilities[:, i], linewidth=1)
path = probabilities.argmax(-1)
for start, end in pairwise([0, *(np.flatnonzero(np.diff(path)) + 1).tolist(), len(path)]):
    if path[start] != 0:
        bottom.text(time[start:end].mean(), 1.03, tokens[path[start]].replace("|", "_"), ha="center", fontsize=9)
bottom.set(xlabel="seconds", ylabel="probability", xlim=(0, len(clip) / 16_000), ylim=(0, 1.15))
bottom.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.3))
plt.show()

# %% [markdown]
# Your own recordings: a folder with a text file beside each, LJ Speech's or LibriSpeech's layout, or a table with the columns `audio` and `text`. Real models take the same place: `SpeechRecognition.prepare("my_folder", "facebook/wav2vec2-base-960h")` (CTC; it keeps its letters and its head if they can spell your transcripts) or `"openai/whisper-tiny"` (sequence to sequence), on a GPU. What comes out is a folder that `transformers.pipeline("automatic-speech-recognition", folder)` loads. Where the letters are new to a model, train all of it: in the real-data tests, on strings of digits by strangers, full training, layer decay and LP-FT come to word error rates of 0.61 to 0.70 within 300 steps, while the head alone still writes nothing.
#
# ## Is the pretraining worth it?
#
# Trainings from random weights need far more steps than a lesson has. So this figure comes from the scores of the shipped checkpoint (`python -m ftnb.pretraining_speech FOLDER --score-only` measures them again): word error rate on 60 strings by strangers, after the same 400 steps, for five fresh seeds.

# %%
scores = json.loads((Path(find_model("builtin:wav2vec2-babble")[0]) / "scores.json").read_text())
digit_errors = {kind: scores[kind]["digits, word error rate"] for kind in ("fine-tuned", "from scratch")}
fig, ax = plt.subplots(figsize=(5.6, 1.9), dpi=80, layout="constrained")
for i, of in enumerate(digit_errors.values()):
    ax.plot(of["values"], [i] * len(of["values"]), "o", markersize=9, alpha=0.7)
ax.set(yticks=range(2), yticklabels=["pretrained", "from scratch"], ylim=(-0.5, 1.5), xlim=(0, 1.1), xlabel="word error rate, 200 labelled clips")
plt.show()

# %%
digit_errors

# %%
assert max(digit_errors["fine-tuned"]["values"]) < min(digit_errors["from scratch"]["values"])

# %% [markdown]
# ## A trap: what counts as the same word
#
# A word error rate is only as meaningful as what was done to both texts before. Three transcripts of one sentence that nobody would call wrong:

# %%
said = "In 1455, Gutenberg's Bible was printed."
for heard in ("in 1455 gutenberg's bible was printed", "In fourteen fifty-five, Gutenberg's Bible was printed.", "in 1455 gutenbergs bible was printed"):
    raw, cleaned = float(WordErrorRate()([heard], [said])), float(WordErrorRate()([normalise_transcript(heard)], [normalise_transcript(said)]))
    print(f"{raw:.2f} as written, {cleaned:.2f} normalised: {heard}")

# %%
assert float(WordErrorRate()([normalise_transcript("in 1455 gutenberg's bible was printed")], [normalise_transcript(said)])) == 0

# %% [markdown]
# ## The story: words that nobody said
#
# In 2023 Koenecke and others gave 13,140 recordings of people with and without a language disorder to OpenAI's Whisper. About one transcript in a hundred held whole phrases that nobody had said, and nearly four in ten of these were harmful, such as invented violence (Koenecke et al. 2024). They came most where the recordings had long pauses. A recogniser has no way to say "I do not know this": it writes what is most likely given what it was trained on. Ours was trained on digits. We expect that it writes letters of digits for words that are none, and never says that it cannot:

# %%
others = spoken_commands("test", 40, seed=3)
heard = [str(t) for t in task.predict([row["audio"]["bytes"] for row in others])]
[(row["label"], text) for row, text in zip(others, heard, strict=True)][:10]

# %%
silence = [(np.random.default_rng(i).normal(0, 0.02, 16_000).astype(np.float32), 16_000) for i in range(20)]
{"something written for a word that is no digit": sum(map(bool, heard)) / len(heard), "for noise alone": sum(map(bool, (str(t) for t in task.predict(silence)))) / len(silence)}

# %%
assert sum(map(bool, heard)) / len(heard) > 0.7
assert not any(text == row["label"] for row, text in zip(others, heard, strict=True))

# %% [markdown]
# Test a recogniser on what it will meet and was not made for: silence, music, other languages, words outside its world.
#
# ## Exercises
#
# **1 (easy).** Write `least_moments`: how many answers a transcript needs at least under CTC.

# %% tags=["exercise"]
def least_moments(text: str) -> int:
    ...  # your code here

# %% tags=["solution"]
def least_moments(text: str) -> int:
    return len(text) + sum(a == b for a, b in pairwise(text))

# %%
assert least_moments("all") == 4 and least_moments("one") == 3

# %% [markdown]
# **2 (medium).** Write `word_error_rate` of many pairs (said, heard) together: all errors by all words said.

# %% tags=["exercise"]
def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    ...  # your code here

# %% tags=["solution"]
def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    errors = sum(kind != "same" for said, heard in pairs for kind, _, _ in align(said.split(), heard.split()))
    return errors / sum(len(said.split()) for said, _ in pairs)

# %%
check = [("four seven one", "for seven"), ("two", "two two")]
assert abs(word_error_rate(check) - float(WordErrorRate()([h for _, h in check], [s for s, _ in check]))) < 1e-6

# %% [markdown]
# **3 (hard).** Greedy decoding takes the best answer at each moment. The most likely *text* can be another one, since many paths may spell it. Write `best_text`: of some candidate texts, the one that CTC finds most likely, for log-probabilities and an alphabet whose first letter is the blank.

# %% tags=["exercise"]
def best_text(log_probs: Tensor, candidates: list[str], alphabet: str) -> str:
    ...  # your code here

# %% tags=["solution"]
def best_text(log_probs: Tensor, candidates: list[str], alphabet: str) -> str:
    return min(candidates, key=lambda text: float(ctc_by_hand(log_probs, [alphabet.index(c) for c in text])))

# %%
two_moments = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()  # blank 0.6, "a" 0.4
greedy = "".join("–a"[i] for i in collapse(two_moments.argmax(-1).tolist(), 0))
assert greedy == "" and best_text(two_moments, ["", "a"], "–a") == "a"  # 0.36 against 0.64

# %% [markdown]
# ## Summary
#
# - CTC sums over all ways to fit a transcript to a clip; a recursion makes that cheap. Expect a plateau of blanks first.
# - A word error rate needs one normalisation on both sides; it counts against the words said and can exceed 1.
# - Longer clips are left out, not cut; a clip with fewer moments than letters cannot be learnt.
# - A recogniser always writes what it knows. Listen to its errors.
#
# **What next:** lesson 39 (language models). Real models to try: `facebook/wav2vec2-base-960h`, `facebook/hubert-large-ls960-ft`, `openai/whisper-tiny`.
#
# **Sources:** Graves et al. (2006), "Connectionist temporal classification". Baevski et al. (2020), "wav2vec 2.0", arXiv:2006.11477. Radford et al. (2022), "Robust speech recognition via large-scale weak supervision", arXiv:2212.04356. Koenecke et al. (2024), "Careless Whisper: speech-to-text hallucination harms", FAccT 2024, arXiv:2402.08021.

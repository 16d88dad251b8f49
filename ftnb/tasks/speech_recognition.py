# Exported from nbs/38_speech_recognition.py: edit the lesson, then run `make export`.
"""A clip has fifty moments a second, its transcript a few letters, and nobody says which belongs to which."""

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

__all__ = [
    "collapse",
    "ctc_by_hand",
    "align",
    "STYLES",
    "transcript_html",
    "transcript_text",
    "model_inputs",
    "speech_loss",
    "speech_metrics",
    "written",
    "spelled_out",
    "Transcript",
    "SpeechRecognition",
    "normalised",
    "fitting",
]


def collapse(path: Sequence[int], blank: int) -> list[int]:
    """The labels that a path of answers spells: neighbours that are equal count once, blanks not at all."""
    return [label for i, label in enumerate(path) if label != blank and (i == 0 or path[i - 1] != label)]


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

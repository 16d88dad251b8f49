"""Recordings of a split as examples for batches, and what brings them into one."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ftnb.audio.clips import Samples, clip_seconds, read_clip, stored_clip
from ftnb.step import Batch
from ftnb.tables import DataError

KEEP_BYTES = 512 * 2**20  # decoded recordings that are kept in memory, so that the second epoch decodes nothing
SHORTEST = 0.1  # seconds; a shorter clip is filled with silence, or a convolution has nothing to look at


class ClipExamples:
    """Rows with a recording; each is decoded and cut when it is asked for.

    Args:
        rows: with the column "audio".
        rate: samples a second.
        max_seconds: longer recordings are cut; None leaves them as they are.
        targets: per row, what to learn; None for recordings without.

    Indexing gives {"samples": array of shape (n,)} and, with targets, "labels".
    """

    def __init__(
        self, rows: Dataset, rate: int, *, max_seconds: float | None = None, targets: Sequence[Any] | None = None
    ) -> None:
        self.rows, self.rate, self.max_seconds, self.targets = rows, rate, max_seconds, targets
        self._kept: dict[int, Samples] = {}
        self._room = KEEP_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def clip(self, i: int) -> Samples:
        """The samples of one row."""
        if i in self._kept:
            return self._kept[i]
        samples = read_clip(self.rows[i]["audio"], self.rate, place=f"row {self.rows[i].get('row', i + 1)}")
        if self.max_seconds is not None:
            samples = samples[: max(1, round(self.max_seconds * self.rate))]
        if short := max(0, round(SHORTEST * self.rate) - len(samples)):
            samples = np.pad(samples, (0, short))
        if samples.nbytes <= self._room:
            self._kept[i], self._room = samples, self._room - samples.nbytes
        return samples

    def lengths(self) -> list[int]:
        """Samples of each recording, by the files' heads."""
        seconds = [clip_seconds(clip)[0] for clip in self.rows["audio"][:]]
        longest = self.max_seconds if self.max_seconds is not None else float("inf")
        return [max(1, round(min(s, longest) * self.rate)) for s in seconds]

    def __getitem__(self, i: int) -> dict[str, Any]:
        example: dict[str, Any] = {"samples": self.clip(i)}
        return example if self.targets is None else {**example, "labels": self.targets[i]}


def extract(extractor: Any, clips: Sequence[Samples]) -> Batch:
    """Clips as one batch of a model's inputs, the shorter ones padded, where the model wants that with a mask.

    Args:
        extractor: transformers' feature extractor.
        clips: samples at its rate.
    """
    whole = getattr(extractor, "n_samples", None) or type(extractor).__name__ == "ASTFeatureExtractor"
    padding: dict[str, Any] = {} if whole else {"padding": True}  # Whisper's and AST's inputs have one length
    batch = extractor(list(clips), sampling_rate=extractor.sampling_rate, return_tensors="pt", **padding)
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def clip_rows(clips: Sequence[Any]) -> Dataset:
    """Recordings that a person passes to `predict` as rows with the columns "audio" and "row" (counted from 1).

    Raises:
        DataError: if it is a single recording and no list, or holds something that is none.
    """
    if isinstance(clips, str | bytes | os.PathLike) or not isinstance(clips, Sequence):
        raise DataError(f"predict takes a list of recordings; got {type(clips).__name__}. For one: predict([it]).")
    if isinstance(clips, tuple) and len(clips) == 2 and isinstance(clips[1], int):
        raise DataError("predict takes a list of recordings; got one (samples, rate). For one: predict([it]).")
    stored = [stored_clip(clip, None, f"recording {i}") for i, clip in enumerate(clips, start=1)]
    for i, clip in enumerate(stored, start=1):
        clip_seconds(clip, place=f"recording {i}")
    return Dataset.from_dict({"audio": stored, "row": list(range(1, len(clips) + 1))})

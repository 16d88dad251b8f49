# Exported from nbs/10_data.py: edit the lesson, then run `make export`.
"""Your own table, checked before training, in batches that waste no time on padding."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, get_worker_info

from ftnb.audio.clips import clip_digest, store_clips
from ftnb.builtin.reviews import labelled_reviews
from ftnb.sources import read_any
from ftnb.tables import DataError, Splits, Table, clean_columns, has_header, normalise_text, select_columns
from ftnb.vision.images import image_digest, store_images

__all__ = [
    "cut_split",
    "load_splits",
    "split_tables",
    "real_token_share",
    "pool_size",
    "batch_order",
    "token_chunks",
    "token_batch_order",
    "Batches",
]


def cut_split(frame: pd.DataFrame, fraction: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut a share of the rows off, class by class, keeping rows with equal text, picture or recording together.

    Args:
        frame: rows with the columns "text", "image" or "audio", and "label", where a task has them.
        fraction: share of each class to cut off, between 0 and 1; a class of one text gives none.
        seed: the same seed cuts the same rows.

    Returns:
        What stays and what was cut off, both in their old order.
    """
    keys = _row_keys(frame)
    labels = frame["label"].tolist() if "label" in frame else [""] * len(frame)
    first_label = dict(zip(reversed(keys), reversed(labels), strict=True))
    rng = np.random.default_rng(seed)
    chosen: set[Any] = set()
    for label in sorted(set(first_label.values())):
        of_label = [key for key in dict.fromkeys(keys) if first_label[key] == label]
        count = max(1, round(fraction * len(of_label))) if len(of_label) > 1 else 0
        chosen.update(of_label[i] for i in rng.permutation(len(of_label))[:count])
    cut = np.array([key in chosen for key in keys])
    return frame[~cut], frame[cut]


def _row_keys(frame: pd.DataFrame) -> list[Any]:
    """For each row what it must not share with a row of another split."""
    if "text" in frame:
        return [normalise_text(text) for text in frame["text"]]
    if "image" in frame:
        return [image_digest(image) for image in frame["image"]]
    return [clip_digest(clip) for clip in frame["audio"]] if "audio" in frame else list(range(len(frame)))


def load_splits(
    data: Any,
    *,
    columns: Mapping[str, str | int] | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    roles: Sequence[str] = ("text", "label"),
) -> Splits:
    """Load data from wherever it is and bring it into splits.

    Args:
        data: "builtin:reviews"; a CSV, TSV, JSONL or Parquet file; a folder with one such file per split; a Hub id
            ("owner/name" or "owner/name:config"); a DataFrame, a `datasets.Dataset` or `DatasetDict`; a list of
            dictionaries; or a mapping from "train", "valid", "test" to any of these.
        columns: role → column name; a number is a position in a file without a header line.
        valid_fraction: share of the training rows to cut off where there is no validation split.
        test_fraction: the same for the test; 0 means no test.
        seed: decides which rows are cut.
        roles: the columns that the task needs.

    Raises:
        DataError: if the data cannot be read, a column is missing, or there is nothing to validate on.
    """
    columns = dict(columns or {})
    if isinstance(data, str) and data.startswith("builtin:"):
        data = _builtin(data)
    tables = read_any(data, header=has_header(columns))
    return split_tables(
        tables, columns=columns, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed, roles=roles
    )


def split_tables(
    tables: Mapping[str, Table],
    *,
    columns: Mapping[str, str | int],
    valid_fraction: float,
    test_fraction: float,
    seed: int,
    roles: Sequence[str],
) -> Splits:
    """Bring tables, however they were read, into splits; the arguments are those of `load_splits`."""
    if not (0 < valid_fraction < 1 and 0 <= test_fraction < 1):
        given = f"valid_fraction={valid_fraction}, test_fraction={test_fraction}"
        raise DataError(f"fractions must lie between 0 and 1 (that of the test may be 0); got {given}.")
    tables = {name: select_columns(table, columns, roles) for name, table in tables.items()}
    frames = {name: clean_columns(table, columns, name) for name, table in tables.items()}
    for role, store in (("image", store_images), ("audio", store_clips)):
        if role in roles:
            frames = {name: store(frame, tables[name], name) for name, frame in frames.items()}
    sources = {name: table.source for name, table in tables.items()}
    notices = [notice for table in tables.values() for notice in table.notices]
    if "test" in frames and "label" in roles and (frames["test"]["label"] == "").all():
        del frames["test"]
        notices.append(f"test ({sources['test']}) has no labels and is left out.")
    for name, fraction in (("test", test_fraction), ("valid", valid_fraction)):
        if name not in frames and fraction > 0:
            total, source = len(frames["train"]), sources["train"]
            frames["train"], frames[name] = cut_split(frames["train"], fraction, seed)
            sources[name] = source
            cut = f"{len(frames[name])} of {total} rows"
            by_class = "class by class, " if "label" in roles else ""
            notices.append(f"{name}: {cut} cut from {source}, {by_class}seed {seed}.")
    for name, frame in frames.items():
        if frame.empty:
            raise DataError(f"{name} ({sources[name]}) has no rows left; give more rows or a {name} split of its own.")
    sets = {n: Dataset.from_dict({**f.to_dict("list"), "row": f.index.tolist()}) for n, f in frames.items()}
    named = {role: columns.get(role, role) for role in roles}
    order = tables["train"].label_names.get("label")
    return Splits(**sets, notices=notices, sources=sources, columns=named, label_names=order)


def _builtin(name: str) -> dict[str, list[dict[str, str]]]:
    if name != "builtin:reviews":
        raise DataError(f"{name!r} is unknown; the built-in data set is 'builtin:reviews'.")
    return {split: labelled_reviews(split) for split in ("train", "valid", "test")}


def real_token_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of tokens that are not padding when each batch is padded to its longest example.

    Args:
        lengths: tokens per example.
        batches: indices of the examples in each batch.
    """
    of_batch = [np.asarray(lengths)[list(batch)] for batch in batches]
    return float(sum(n.sum() for n in of_batch) / sum(n.max() * len(n) for n in of_batch))


def pool_size(num_batches: int) -> int:
    """How many batches are sorted by length together: up to 50 in equal pools, and two pools for few batches."""
    num_pools = 2 if num_batches < 25 else math.ceil(num_batches / 50)
    return math.ceil(num_batches / num_pools)


def batch_order(
    num_examples: int,
    batch_size: int,
    *,
    lengths: Sequence[int] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    epoch: int = 0,
) -> list[list[int]]:
    """The examples of each batch of one epoch; every example is in exactly one batch.

    Args:
        num_examples: how many there are.
        batch_size: examples per batch; one batch may be smaller.
        lengths: tokens per example; then a batch holds examples of similar length.
        shuffle: random order. Without it the order is fixed: as given or, with lengths, the longest first.
        seed: together with `epoch` it decides the order.
        epoch: the epoch, from 0.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(num_examples) if shuffle else np.arange(num_examples)
    sizes = [batch_size] * (num_examples // batch_size)
    pool = pool_size(math.ceil(num_examples / batch_size)) * batch_size if shuffle else num_examples
    if lengths is not None:
        pools = np.split(order, range(pool, num_examples, pool))
        order = np.concatenate([p[np.argsort(-np.asarray(lengths)[p], kind="stable")] for p in pools])
    if rest := num_examples % batch_size:  # anywhere in the last pool, or it would always hold the shortest examples
        first = (num_examples - 1) // pool * (pool // batch_size) if shuffle and lengths is not None else len(sizes)
        sizes.insert(int(rng.integers(first, len(sizes) + 1)), rest)
    batches = [batch.tolist() for batch in np.split(order, np.cumsum(sizes)[:-1])]
    return [batches[i] for i in rng.permutation(len(batches))] if shuffle and lengths is not None else batches


def token_chunks(lengths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """How examples, sorted from the longest to the shortest, are cut into batches under a budget of tokens.

    Args:
        lengths: tokens per example.
        max_tokens: the most tokens that a batch may have, padding included.

    Returns:
        Pairs (examples, batch size): the first so many examples in batches of that size, then those that follow.

    Raises:
        DataError: if the longest example alone is beyond the budget.
    """
    if max(lengths) > max_tokens:
        raise DataError(
            f"the longest example has {max(lengths)} tokens and does not fit into a batch of {max_tokens}. "
            "Allow more tokens in a batch, or cut texts shorter (max_length)."
        )
    fits = np.sort(max_tokens // np.maximum(lengths, 1))
    chunks, done = list[tuple[int, int]](), 0
    while done < len(fits):
        size = int(fits[done])
        count = int(np.searchsorted(fits, size, side="right")) - done
        chunks.append((min(math.ceil(count / size) * size, len(fits) - done), size))
        done += chunks[-1][0]
    return chunks


def token_batch_order(
    lengths: Sequence[int], max_tokens: int, *, shuffle: bool = True, seed: int = 0, epoch: int = 0
) -> list[list[int]]:
    """The examples of each batch of one epoch under a budget of tokens; the number of batches is always the same.

    Args:
        lengths: tokens per example.
        max_tokens: the most tokens that a batch may have, padding included.
        shuffle: random order. Without it the longest come first.
        seed: together with `epoch` it decides the order.
        epoch: the epoch, from 0.

    Raises:
        DataError: if the longest example alone is beyond the budget.
    """
    rng, of = np.random.default_rng((seed, epoch)), np.asarray(lengths)
    order = rng.permutation(len(of)) if shuffle else np.argsort(-of, kind="stable")
    order = order[np.argsort((max_tokens // np.maximum(of, 1))[order], kind="stable")]
    batches, done = list[list[int]](), 0
    for count, size in token_chunks(lengths, max_tokens):
        chunk, inner = order[done : done + count], int(rng.integers(2**31))
        cut = batch_order(count, size, lengths=of[chunk].tolist(), shuffle=shuffle, seed=inner)
        batches += [chunk[batch].tolist() for batch in cut]
        done += count
    return [batches[i] for i in rng.permutation(len(batches))] if shuffle else batches


class Batches:
    """Examples in batches, in an order that (seed, epoch) decides.

    Args:
        examples: anything with `len()` and `[index]`.
        collate: makes a list of examples a batch, a dictionary of tensors.
        batch_size: examples per batch.
        lengths: tokens per example, to put examples of similar length together.
        max_tokens: in place of `batch_size` as many examples per batch as fit into so many tokens, padding included.
        shuffle: a new random order each epoch; without it the order is fixed.
        seed: of the order.
        num_workers: processes that collate; 0 means this one.

    Raises:
        DataError: if there are no examples, the batch size is not positive, the lengths do not match, or the longest
            example is beyond `max_tokens`.
    """

    def __init__(
        self,
        examples: Any,
        collate: Callable[[list[Any]], dict[str, Any]],
        batch_size: int,
        *,
        lengths: Sequence[int] | None = None,
        max_tokens: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1 or len(examples) == 0:
            raise DataError(f"expected examples and a positive batch size; got {len(examples)} and {batch_size}.")
        if lengths is not None and len(lengths) != len(examples):
            raise DataError(f"{len(lengths)} lengths do not fit {len(examples)} examples.")
        self.examples, self.collate, self.batch_size = examples, collate, batch_size
        self.lengths, self.shuffle, self.seed, self.num_workers = lengths, shuffle, seed, num_workers
        self.max_tokens, self._num_batches = max_tokens, math.ceil(len(examples) / batch_size)
        if max_tokens is not None:
            if lengths is None:
                raise DataError("a budget of tokens needs to know the examples' lengths.")
            self._num_batches = sum(math.ceil(count / size) for count, size in token_chunks(lengths, max_tokens))

    @property
    def num_examples(self) -> int:
        """How many examples an epoch has."""
        return len(self.examples)

    def __len__(self) -> int:
        return self._num_batches

    def order(self, epoch: int = 0) -> list[list[int]]:
        """The indices of the examples in each batch of an epoch."""
        kinds: dict[str, Any] = {"shuffle": self.shuffle, "seed": self.seed, "epoch": epoch}
        if self.max_tokens is not None and self.lengths is not None:
            return token_batch_order(self.lengths, self.max_tokens, **kinds)
        return batch_order(len(self.examples), self.batch_size, lengths=self.lengths, **kinds)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of one epoch, from batch number `start` on; those before it are not made.

        Raises:
            ValueError: if `start` is not between 0 and the number of batches.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start must lie between 0 and {len(self)}, the batches of an epoch; got {start}.")
        generator = torch.Generator().manual_seed(self.seed)  # its own: the loader must not draw from the global one
        yield from DataLoader(
            _Epoch(self, epoch, self.order(epoch)),  # type: ignore[arg-type]  # it needs no more than [number]
            sampler=range(start, len(self)),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            generator=generator,
        )


@dataclass(frozen=True)
class _Epoch:
    """The batches of an epoch by number, each made where it is asked for: in this process, or in a worker.

    A worker knows nothing of the training's random numbers, nor of batches that were made before it began. So it
    draws from a stream of the batch's own, and random augmentation is the same whoever makes a batch after a break.
    """

    batches: Batches
    epoch: int
    order: list[list[int]]

    def __getitem__(self, number: int) -> dict[str, Any]:
        if get_worker_info() is not None:
            seeds = np.random.SeedSequence((self.batches.seed, self.epoch, number)).generate_state(2, np.uint32)
            torch.manual_seed(int(seeds[0]))
            random.seed(int(seeds[0]))
            np.random.seed(seeds[1])  # noqa: NPY002  # some transforms draw from the old generator
        examples, wanted = self.batches.examples, self.order[number]
        many = getattr(examples, "__getitems__", None)  # a table gives several rows at once
        return self.batches.collate(many(wanted) if callable(many) else [examples[i] for i in wanted])


def _as_it_is(batch: Any) -> Any:
    return batch

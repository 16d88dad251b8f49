# %% [markdown]
# # Data
#
# > Your own table, checked before training, in batches that waste no time on padding.
#
# At the end you can bring a CSV, a folder or a data frame into training, find the faults in it that would spoil a result without any error message, and say what padding costs and how to avoid it. Runs in about 20 s on a CPU.

# %%
#| default_exp data

# %%
#| export
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

# %%
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt

from ftnb.checks import check_text_labels

# %% [markdown]
# ## From a table to three splits
#
# A text classifier needs two columns: the text and its label. What they are called differs from file to file, so we name each column by its *role*: `columns={"text": "sentence", "label": "stars"}`. From there on every part of the project says `text` and `label`, and every row remembers its row number in the file, so that a message can say where to look. Reading tables is plumbing and sits in two plain modules, `ftnb.tables` and `ftnb.sources`; what is decided along the way is here.

# %% [markdown]
# Two texts are the same to a reader when they differ only in case, in spaces or in the way an accent is encoded. Many checks below, and the cut into splits, compare texts in this sense.

# %%
normalise_text("  A ﬁne  CAFE\u0301 "), normalise_text("a fine café")

# %%
assert normalise_text("  A ﬁne  CAFE\u0301 ") == normalise_text("a fine café")

# %% [markdown]
# If there is no validation split, we cut one from the training rows. Each class gives its share (*stratified*), so a rare class is not lost by chance; and rows with the same text go to the same side, or we would make the leak ourselves that we warn about below.

# %%
#| export
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

# %% [markdown]
# The result is a `Splits`: rows to train on, to choose by (*valid*), and to report on (*test*). A label may arrive as `1`, `1.0`, `"1"` or `True`; it becomes a string, a whole number without the `.0` that pandas adds to a column with a gap. A missing cell becomes an empty string, which the checks below will name.

# %%
#| export
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

# %% [markdown]
# A file as somebody might send it, with other column names and a gap. Nothing but its path and the two columns is needed.

# %%
folder = Path(tempfile.mkdtemp())
rows = [f"{['bad', 'good'][i % 2]} film number {i},{[1.0, 5.0][i % 2]}" for i in range(40)]
(folder / "films.csv").write_text("sentence,stars\n" + "\n".join(rows), encoding="utf-8")
films = load_splits(folder / "films.csv", columns={"text": "sentence", "label": "stars"})
films.notices, films.train[0], films.valid[0]

# %%
assert sorted([*films.train["row"], *films.valid["row"]]) == list(range(2, 42))
assert sorted(films.valid["label"]) == ["1.0", "1.0", "5.0", "5.0"]

# %% [markdown]
# The same call takes the built-in reviews, which this project generates. Their test split is special: its sentiment words never occur in the labelled training reviews.

# %%
reviews = load_splits("builtin:reviews")
{name: len(split) for name, split in reviews.items()}, reviews.train[0]

# %% [markdown]
# ### A quote that eats rows
#
# In a CSV file a double quote opens a field that may run over several lines. Sentences contain stray quotes. Read a tab-separated file of sentences as if it were a CSV, and two stray quotes swallow every row between them, with no error:

# %%
lines = ['" destined to be big\t1', "dull\t0", "a fine film\t1", '" art , he calls it\t0', "lovely\t1"]
(folder / "stray.tsv").write_text("\n".join(lines), encoding="utf-8")
usual = pd.read_csv(folder / "stray.tsv", sep="\t", header=None)
ours = load_splits({"train": folder / "stray.tsv", "valid": folder / "stray.tsv"}, columns={"text": 0, "label": 1})
len(usual), len(ours.train), usual[0][0]

# %% [markdown]
# So a `.tsv` is read without quoting here, a `.csv` with strict quoting: a row that does not fit is refused by line number.

# %%
(folder / "broken.csv").write_text('text,label\nfine,1\na "good", long film,1\nbad,0\n', encoding="utf-8")
try:
    load_splits(folder / "broken.csv")
except DataError as error:
    message = str(error)
message

# %%
assert len(usual) == 2 and len(ours.train) == 5 and "line 3" in message

# %% [markdown]
# ## What spoils a result silently
#
# Bad data rarely crashes a training. A label that occurs only in the test split can never be predicted; an empty text teaches that nothing is positive; a test text that is also in the training rows is remembered, not understood. All of that can be seen before the first step. What cannot be right is an *error*; what makes a result doubtful is a *warning*. Both name split, row and column. The checks are in the plain module `ftnb.checks`.

# %% [markdown]
# Six rows, and every one of these would have trained without complaint:

# %%
faulty = {
    "train": [
        {"text": "A fine film.", "label": "pos"},
        {"text": "a fine film. ", "label": "neg"},
        {"text": "Dull.", "label": "neg"},
        {"text": "Lovely.", "label": "Pos"},
    ],
    "valid": [{"text": "DULL.", "label": "neg"}, {"text": "So so.", "label": "pos"}],
}
[problem.message for problem in check_text_labels(load_splits(faulty))]

# %% [markdown]
# And two that stop it, both told at once:

# %%
faulty["valid"] = [{"text": "So so.", "label": "mixed"}, {"text": " ", "label": "neg"}]
try:
    check_text_labels(load_splits(faulty))
except DataError as error:
    message = str(error)
print(message)

# %%
assert "row 1" in message and "'mixed'" in message and "row 2" in message

# %% [markdown]
# ## Batches
#
# A batch is a rectangle: all texts in it are padded to one length. A padding token costs as much time as a real one and is then ignored. With lengths $n_i$ in a batch $B$ the share of work that was useful is
#
# $$\text{real-token share} = \frac{\sum_B \sum_{i \in B} n_i}{\sum_B |B| \max_{i \in B} n_i} .$$

# %%
#| export
def real_token_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of tokens that are not padding when each batch is padded to its longest example.

    Args:
        lengths: tokens per example.
        batches: indices of the examples in each batch.
    """
    of_batch = [np.asarray(lengths)[list(batch)] for batch in batches]
    return float(sum(n.sum() for n in of_batch) / sum(n.max() * len(n) for n in of_batch))

# %%
real_token_share([3, 9, 3, 9], [[0, 1], [2, 3]]), real_token_share([3, 9, 3, 9], [[0, 2], [1, 3]])

# %% [markdown]
# The second grouping wastes nothing: put examples of similar length together. But gradient descent wants *random* batches, and sorting the data set would give the model all short texts first. So we shuffle, cut the shuffled rows into *pools* of up to 50 batches, sort within each pool only (texts of equal length stay in random order), cut into batches, and shuffle the batches. A small data set is one pool, and its batches would hold the same company in every epoch: below 25 batches it becomes two. The order is a pure function of the seed and the epoch, so that a stopped run can go on where it was.

# %%
#| export
def pool_size(num_batches: int) -> int:
    """How many batches are sorted by length together: up to 50 in equal pools, and two pools for few batches."""
    num_pools = 2 if num_batches < 25 else math.ceil(num_batches / 50)
    return math.ceil(num_batches / num_pools)

# %%
pool_size(12), pool_size(47), pool_size(94)

# %%
#| export
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

# %% [markdown]
# ### A budget of tokens
#
# Sixteen texts of 70 tokens take five times the memory of sixteen texts of 14. Where memory is scarce (or where steps should take equally long) a batch holds as many texts as fit into a *budget* of $N$ tokens, padding included: $\lfloor N / n_i \rfloor$ texts of length $n_i$. Two things must not be lost: the order stays random, and the number of batches is the same in every epoch, since schedule and phases are planned by it. So the texts are sorted into classes by how many of their length fit. Each class is shuffled and cut into batches of that many; its last batch is filled up with texts drawn from the next class, which are shorter and therefore fit. How many are drawn does not depend on chance, only which ones.

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# Six texts in batches of two. A collate function makes a list of examples one padded tensor:

# %%
def collate(examples):
    longest = max(len(example["ids"]) for example in examples)
    rows = [example["ids"] + [0] * (longest - len(example["ids"])) for example in examples]
    return {"input_ids": torch.tensor(rows), "labels": torch.tensor([example["label"] for example in examples])}

texts = [{"ids": [7] * n, "label": n % 2} for n in (3, 8, 4, 9, 3, 5)]
batches = Batches(texts, collate, batch_size=2, lengths=[len(t["ids"]) for t in texts], shuffle=True)
[tuple(batch["input_ids"].shape) for batch in batches.epoch(0)], [tuple(batch["input_ids"].shape) for batch in batches.epoch(1)]

# %% [markdown]
# Starting at batch 1 gives the rest of the same epoch:

# %%
whole, rest = list(batches.epoch(3)), list(batches.epoch(3, start=1))
assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(whole[1:], rest, strict=True))

# %% [markdown]
# ## The experiment: what padding costs
#
# **Claim.** On texts of ordinary, uneven lengths most of what a model computes is padding if every text is padded to one maximum; padding each batch to its own longest text is better; batches of similar length are better still, at least 95 % real tokens, and the time follows. We measure a small random BERT forwards and backwards on texts whose lengths are like those of film-review sentences. It would be refuted if the share stayed below 0.95, or if the bucketed order were not the fastest in the median of seven interleaved rounds.

# %%
rng = np.random.default_rng(0)
lengths = np.clip(rng.lognormal(mean=3.2, sigma=0.5, size=3000), 3, 128).astype(int).tolist()
examples = [{"ids": rng.integers(5, 1000, n).tolist(), "label": i % 2} for i, n in enumerate(lengths)]

def collate_to_128(examples):
    batch = collate(examples)
    batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 128 - batch["input_ids"].shape[1]))
    return batch

orders = {
    "to the maximum": Batches(examples, collate_to_128, 16, shuffle=True),
    "per batch": Batches(examples, collate, 16, shuffle=True),
    "similar lengths": Batches(examples, collate, 16, shuffle=True, lengths=lengths),
}
shares = {name: real_token_share(lengths, b.order(0)) for name, b in orders.items()}
shares["to the maximum"] = float(np.mean(lengths)) / 128
shares

# %%
assert shares["similar lengths"] >= 0.95 > shares["per batch"] > shares["to the maximum"]

# %% [markdown]
# Each round times eight batches of each kind, one kind after the other, so that whatever else the machine is doing hits all three. What counts is the ratio within a round.

# %%
from transformers import BertConfig, BertForSequenceClassification

config = BertConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
model = BertForSequenceClassification(config)

def texts_per_second(batches: Batches, epoch: int, num_batches: int = 8) -> float:
    stream = batches.epoch(epoch)
    begin = time.perf_counter()
    for _ in range(num_batches):
        batch = next(stream)
        model(**batch, attention_mask=(batch["input_ids"] > 0).long()).loss.backward()
    return num_batches * 16 / (time.perf_counter() - begin)

for batches in orders.values():  # the first call of each shape is slower
    texts_per_second(batches, epoch=0, num_batches=2)
speed = {name: np.zeros(7) for name in orders}
for epoch in range(7):
    for name, batches in orders.items():
        speed[name][epoch] = texts_per_second(batches, epoch)

# %%
ratio = {name: speed[name] / speed["to the maximum"] for name in orders}
{name: f"{np.median(r):.2f}× ({r.min():.2f} to {r.max():.2f})" for name, r in ratio.items()}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), dpi=80, layout="constrained")
colours = ["tab:grey", "tab:orange", "tab:blue"]
left.barh(list(shares), list(shares.values()), color=colours)
left.set(xlim=(0, 1), xlabel="share of real tokens")
left.invert_yaxis()
right.barh(list(ratio), [np.median(r) for r in ratio.values()], color=colours, alpha=0.6)
for row, values in enumerate(ratio.values()):
    right.plot(values, [row] * len(values), "k.", ms=4)
right.set(xlabel="speed against padding to the maximum (7 rounds)", yticks=[])
right.invert_yaxis()
plt.show()

# %%
assert np.median(speed["similar lengths"] / speed["per batch"]) > 1 and np.median(ratio["per batch"]) > 1

# %% [markdown]
# And under a budget of 512 tokens, about as many as sixteen of these texts have? No batch goes beyond it, while the longest sixteen have several times as many; and every epoch has the same number of batches.

# %%
budget = Batches(examples, collate, 16, shuffle=True, lengths=lengths, max_tokens=512)

def tokens_per_batch(batches: Batches, epoch: int = 0) -> list[int]:
    return [len(batch) * max(lengths[i] for i in batch) for batch in batches.order(epoch)]

by_count, by_tokens = tokens_per_batch(orders["similar lengths"]), tokens_per_batch(budget)
max(by_count), max(by_tokens), real_token_share(lengths, budget.order(0)), {len(budget.order(epoch)) for epoch in range(20)}

# %%
fig, ax = plt.subplots(figsize=(6, 2.4), dpi=80, layout="constrained")
ax.hist([by_count, by_tokens], bins=24, label=["16 texts", "512 tokens"], color=["tab:blue", "tab:green"])
ax.set(xlabel="tokens in a batch, padding included", ylabel="batches")
ax.legend(frameon=False)
plt.show()

# %%
assert max(by_tokens) <= 512 < max(by_count) and {len(budget.order(epoch)) for epoch in range(20)} == {len(budget)}
assert real_token_share(lengths, budget.order(0)) > 0.95

# %% [markdown]
# Are these orders still random? Then over many epochs the shortest tenth of the texts comes as early or late as the longest, in the middle on average (0.5), and a text meets mostly other company in its next epoch:

# %%
def randomness(batches: Batches) -> tuple[float, float, float]:
    """Mean position of the shortest and of the longest tenth, and the share of a text's company that it meets again."""
    position = np.zeros((30, len(lengths)))
    for epoch in range(30):
        position[epoch, [i for batch in batches.order(epoch) for i in batch]] = np.linspace(0, 1, len(lengths))
    by_length = position[:, np.argsort(lengths)]
    company = [{(a, b) for batch in batches.order(e) for a in batch for b in batch if a < b} for e in (0, 1)]
    again = len(company[0] & company[1]) / len(company[0])
    return float(by_length[:, :300].mean()), float(by_length[:, -300:].mean()), again

random_enough = {"similar lengths": randomness(orders["similar lengths"]), "512 tokens": randomness(budget)}
random_enough

# %%
assert all(abs(place - 0.5) < 0.04 for *places, _ in random_enough.values() for place in places)
assert random_enough["similar lengths"][2] < 0.2 and random_enough["512 tokens"][2] < 0.3

# %% [markdown]
# A budget has a price of its own: the loss is a mean over a batch, so a long text, in a batch of few, pulls harder than a short one. (Accumulated micro-batches are weighted by what their means are of, so there it does not matter.) What is given up with both: within one batch all texts have about the same length. Where length and label go together, batches become less mixed; then compare with `lengths=None`.
#
# ## The story: a tenth of the test was in the training set
#
# In 2019 Barz and Denzler searched CIFAR-100, on which thousands of papers report, for near-duplicates: 10 % of its test images had one in the training set (3.3 % in CIFAR-10), and models lost up to 14 % of relative accuracy on a cleaned test. Nobody had cheated; the images were collected from the web and cut at random. The same with texts: a classifier that only remembers, by looking for the training review with the most words in common, on tests into which more and more training reviews have slipped.

# %%
from ftnb.builtin.reviews import labelled_reviews

def words_of(text: str) -> set[str]:
    return set(normalise_text(text).split())

def remembered(text: str, known: list[tuple[set[str], str]]) -> str:
    """The label of the known text that has the largest share of words in common with this one."""
    words = words_of(text)
    return max(known, key=lambda pair: len(words & pair[0]) / len(words | pair[0]))[1]

def leaky_accuracy(leaked: float, seed: int) -> float:
    known, test = labelled_reviews("train", 100, seed=seed), labelled_reviews("test", 100, seed=seed)
    slipped = int(leaked * len(test))
    test = test[slipped:] + [{**row, "text": row["text"].upper()} for row in known[:slipped]]
    memory = [(words_of(row["text"]), row["label"]) for row in known]
    return float(np.mean([remembered(row["text"], memory) == row["label"] for row in test]))

accuracies = {leaked: [leaky_accuracy(leaked, seed) for seed in range(5)] for leaked in (0.0, 0.1, 0.3)}
{f"{leaked:.0%} leaked": round(float(np.mean(values)), 2) for leaked, values in accuracies.items()}

# %%
assert np.mean(accuracies[0.3]) > np.mean(accuracies[0.1]) > np.mean(accuracies[0.0])

# %% [markdown]
# The check above would have told, even though the copies are in capitals:

# %%
known, test = labelled_reviews("train", 100), labelled_reviews("test", 100)
test[:10] = [{**row, "text": row["text"].upper()} for row in known[:10]]
leak = check_text_labels(load_splits({"train": known, "valid": labelled_reviews("valid"), "test": test}))
leak[0].message

# %%
assert leak[0].rows == tuple(range(1, 11))

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `tokens_computed`: how many tokens, padding included, a model computes in one epoch, given the lengths and the batches.

# %% tags=["exercise"]
def tokens_computed(lengths: list[int], batches: list[list[int]]) -> int:
    ...  # your code here

# %% tags=["solution"]
def tokens_computed(lengths: list[int], batches: list[list[int]]) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

# %%
order = orders["similar lengths"].order(0)
assert tokens_computed([3, 9, 4], [[0, 1], [2]]) == 22
assert abs(sum(lengths) / tokens_computed(lengths, order) - real_token_share(lengths, order)) < 1e-9

# %% [markdown]
# **2 (medium).** Equal texts are found above; *nearly* equal ones are not. Write `near_duplicates`: the positions in `test` of texts that share at least `share` of their three-word sequences with one text in `train`.

# %% tags=["exercise"]
def near_duplicates(train: list[str], test: list[str], share: float = 0.5) -> list[int]:
    ...  # your code here

# %% tags=["solution"]
def near_duplicates(train: list[str], test: list[str], share: float = 0.5) -> list[int]:
    def triples(text: str) -> set[tuple[str, ...]]:
        words = normalise_text(text).split()
        return set(zip(words, words[1:], words[2:], strict=False))

    known = [triples(text) for text in train]
    found = [(i, triples(text)) for i, text in enumerate(test)]
    return [i for i, of in found if of and max(len(of & other) for other in known) >= share * len(of)]

# %%
train_texts = ["the film was good and the cast was fine", "a dull evening with nothing to see"]
test_texts = ["The film was good and the cast was bad", "nothing to see here tonight", "a dull evening with nothing to see!"]
assert near_duplicates(train_texts, test_texts) == [0, 2]

# %% [markdown]
# ## Summary
# - Name the columns once by role; every message can then say split, row and column.
# - A `.tsv` of sentences is read without quoting, or stray quotes eat rows.
# - Before training, look for gaps, a single class, unknown labels (errors), and for leakage, contradictions, rare classes (warnings).
# - Put texts of similar length together, in random order: almost no padding, and nearly no loss of randomness.
# - A budget of tokens bounds the memory of a step and makes steps alike; the number of batches stays known.
#
# **What next:** a pretrained model to feed the batches to. To use data from the Hub, give its id: `load_splits("cornell-movie-review-data/rotten_tomatoes")`. **Sources:** Barz and Denzler (2020), "Do we train on test data? Purging CIFAR of near-duplicates"; Lewis et al. (2021), "Question and answer test-train overlap in open-domain question answering datasets"; the documentation of `datasets` and of Python's `csv`; for data checks beyond these, cleanlab.

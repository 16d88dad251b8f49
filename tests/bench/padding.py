"""How much padding is computed on real sentences, and what batches of equally many tokens change.

Three ways to make batches of the same sentences: in random order, of similar lengths (ours), and of similar lengths
under a budget of tokens that is what sixteen sentences have on average. Timed are whole epochs of a BERT of BERT-tiny's
shape, in turns.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ftnb.data import Batches, batch_order, real_token_share
from ftnb.step import Batch
from tests.bench.overhead import TINY, model_of
from tests.bench.race import ratio

Rows = list[list[int]]  # sentences as token numbers


def collate(rows: Rows) -> Batch:
    """Pad to the longest."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.zeros(len(ids), dtype=torch.long)}


def tokens_of(lengths: Sequence[int], order: Rows) -> list[int]:
    """Tokens in each batch, padding included."""
    return [len(batch) * max(lengths[i] for i in batch) for batch in order]


def an_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, epoch: int) -> tuple[float, float]:
    """Train on all batches of an epoch; returns seconds of the process and of the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in batches.epoch(epoch):
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - cpu, time.perf_counter() - wall


def padding(
    rows: Rows,
    pairs: int = 7,
    *,
    batch_size: int = 16,
    epochs: int = 20,
    timed: int = 768,
    sizes: dict[str, Any] | None = None,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The part "padding" of `bench.json`.

    Args:
        rows: sentences as token numbers, in the order of the file.
        pairs: timed epochs with and without the budget.
        batch_size: sentences in a batch.
        epochs: whose orders are looked at.
        timed: how many sentences an epoch that is timed has.
        sizes: of the model that is timed.
        say: told of every pair.

    Returns:
        "real_token_share" (the median over epochs, with its "_range"), that of random batches, and under "by_tokens"
        the budget, its share, the most tokens in a batch with and without it, and "speedup": an epoch's time without
        it over that with it, by the process's time and by the wall.
    """
    lengths = [len(row) for row in rows]
    order = [batch_order(len(rows), batch_size, lengths=lengths, epoch=epoch) for epoch in range(epochs)]
    shares = [real_token_share(lengths, of) for of in order]
    budget = max(round(statistics.mean(tokens_of(lengths, order[0]))), *lengths)
    by_tokens = Batches(rows, collate, batch_size, lengths=lengths, max_tokens=budget, shuffle=True)
    some = rows[:: max(1, len(rows) // timed)][:timed]
    kinds: dict[str, Any] = {"lengths": [len(row) for row in some], "shuffle": True}
    model = model_of(sizes or TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    fixed, filled = (Batches(some, collate, batch_size, max_tokens=most, **kinds) for most in (None, budget))
    seconds: dict[str, list[tuple[float, float]]] = {"fixed": [], "filled": []}
    for epoch in range(pairs + 1):  # the first pair warms up
        for name, batches in (("fixed", fixed), ("filled", filled)):
            seconds[name].append(an_epoch(model, optimizer, batches, epoch))
        say(f"an epoch in batches of {batch_size} / of {budget} tokens: {seconds['fixed'][-1][0]:.2f} / "
            f"{seconds['filled'][-1][0]:.2f} s of the process")  # fmt: skip
    speedup = {}
    for name, clock in (("speedup", 0), ("speedup_by_wall", 1)):
        pair = ([of[clock] for of in seconds[which][1:]] for which in ("fixed", "filled"))
        speedup[name], speedup[f"{name}_range"] = ratio(*pair)
    return {
        "real_token_share": statistics.median(shares),
        "_range": [min(shares), max(shares)],
        "random": real_token_share(lengths, batch_order(len(rows), batch_size)),
        "batch_size": batch_size,
        "by_tokens": {
            "max_tokens": budget,
            "real_token_share": real_token_share(lengths, by_tokens.order(0)),
            "most_tokens": max(tokens_of(lengths, by_tokens.order(0))),
            "most_tokens_of_fixed": max(tokens_of(lengths, order[0])),
            "pairs": pairs,
            **speedup,
        },
    }

"""Several examples in one row, none of which sees another; and rows as a batch."""

from collections.abc import Sequence
from typing import Any

import torch

from ftnb.language.examples import IGNORE
from ftnb.step import Batch


def first_fit(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Put examples into as few rows as first-fit by falling length finds; the examples of a row in their own order.

    Args:
        lengths: tokens of each example, none above `max_length`.
        max_length: tokens in a row.

    Source: Johnson (1973), "Near-optimal bin packing algorithms".
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[i]), None)
        if row is None:
            rows.append([i])
            room.append(max_length - lengths[i])
        else:
            rows[row].append(i)
            room[row] -= lengths[i]
    return [sorted(row) for row in rows]


def pack(input_ids: Sequence[list[int]], labels: Sequence[list[int]], max_length: int) -> dict[str, list[list[int]]]:
    """Join examples into rows.

    Positions count anew in each example: transformers keeps examples apart by them, where no attention mask is given.
    The first label of an example is −100, since what stands before it in the row is another example.

    Returns:
        "input_ids", "labels" and "position_ids" of each row.
    """
    packed: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in first_fit([len(ids) for ids in input_ids], max_length):
        packed["input_ids"].append([i for n in row for i in input_ids[n]])
        packed["labels"].append([i for n in row for i in [IGNORE, *labels[n][1:]]])
        packed["position_ids"].append([i for n in row for i in range(len(input_ids[n]))])
    return packed


def pad_rows(examples: Sequence[dict[str, Any]], pad_id: int, multiple: int = 1) -> Batch:
    """Examples or packed rows as one batch, filled up on the right; tensors of shape (batch, tokens).

    Args:
        examples: "input_ids", "labels", and for packed rows "position_ids".
        pad_id: the token to fill up with. The end token will do: that it is padding stands in the mask, not in the id.
        multiple: fill up to a multiple of it.

    Returns:
        "input_ids", "labels", and "attention_mask" (or, for packed rows, "position_ids", in which padding is one more
        example of its own); "num_answer_tokens" is a plain number, the weight of the batch.
    """
    length = max(len(example["input_ids"]) for example in examples)
    length = -(-length // multiple) * multiple
    gaps = [length - len(example["input_ids"]) for example in examples]
    columns: dict[str, list[list[int]]] = {
        "input_ids": [[*e["input_ids"], *[pad_id] * gap] for e, gap in zip(examples, gaps, strict=True)],
        "labels": [[*e["labels"], *[IGNORE] * gap] for e, gap in zip(examples, gaps, strict=True)],
    }
    if "position_ids" in examples[0]:
        columns["position_ids"] = [[*e["position_ids"], *range(gap)] for e, gap in zip(examples, gaps, strict=True)]
    else:
        columns["attention_mask"] = [[1] * (length - gap) + [0] * gap for gap in gaps]
    batch: Batch = {name: torch.tensor(rows) for name, rows in columns.items()}
    batch["num_answer_tokens"] = int((batch["labels"][:, 1:] != IGNORE).sum())
    return batch

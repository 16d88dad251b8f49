"""The plain script that ftnb is timed against: one model, one loop, everything a careful person would write by hand."""

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

Row = tuple[str, int]


def read_tsv(path: Path) -> list[Row]:
    """Rows of `sentence<TAB>label` without a header."""
    rows = (line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line)
    return [(text, int(label)) for text, label in rows]


def batches_of(encoded: list[list[int]], size: int, rng: random.Random | None) -> list[list[int]]:
    """Length buckets: shuffle, sort by length within pools of 50 batches, shuffle the batches."""
    order = list(range(len(encoded)))
    if rng is not None:
        rng.shuffle(order)
    pool = size * 50
    order = [i for k in range(0, len(order), pool) for i in sorted(order[k : k + pool], key=lambda i: len(encoded[i]))]
    batches = [order[k : k + size] for k in range(0, len(order), size)]
    if rng is not None:
        rng.shuffle(batches)
    return batches


def collate(encoded: list[list[int]], labels: list[int], batch: list[int]) -> dict[str, Tensor]:
    """Pad to the longest of the batch."""
    longest = max(len(encoded[i]) for i in batch)
    ids = torch.tensor([encoded[i] + [0] * (longest - len(encoded[i])) for i in batch])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([labels[i] for i in batch])}


def accuracy(model: nn.Module, encoded: list[list[int]], labels: list[int]) -> float:
    """Share of right predictions."""
    model.eval()
    right = 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for batch in batches_of(encoded, 32, None):
            inputs = collate(encoded, labels, batch)
            y = inputs.pop("labels")
            right += (model(**inputs).logits.argmax(-1) == y).sum().item()
    return right / len(labels)


def train_plain(
    folder: Path, train: list[Row], valid: list[Row], *, lr: float, num_epochs: int, batch_size: int, seed: int
) -> tuple[nn.Module, float]:
    """Fine-tune in bf16 with length buckets, clipping, warm-up and decay; returns the model and validation accuracy."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    encoded, labels = tokenizer([t for t, _ in train])["input_ids"], [y for _, y in train]
    valid_encoded, valid_labels = tokenizer([t for t, _ in valid])["input_ids"], [y for _, y in valid]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    num_steps = math.ceil(len(train) / batch_size) * num_epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, num_steps // 10, num_steps)
    score = 0.0
    for _ in range(num_epochs):
        model.train()
        for batch in batches_of(encoded, batch_size, rng):
            inputs = collate(encoded, labels, batch)
            y = inputs.pop("labels")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(**inputs).logits, y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        score = accuracy(model, valid_encoded, valid_labels)
    return model, score

"""Whole runs through a recipe, beside `plain.py`: two TSV files and a local model folder in, a saved model out.

Below about a thousand sentences the two cut their length buckets differently, and the ratio says more about that than
about the loop.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ftnb import Recipe, finetune
from tests.bench.plain import Row, accuracy, train_plain

NUMBERS: dict[str, Any] = {"lr": 1e-4, "batch_size": 32, "seed": 0}


def write_tsv(path: Path, rows: list[Row]) -> str:
    """Write rows as a person's own file; returns its path."""
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return str(path)


def ours(
    source: Path, folder: Path, num_epochs: int, train: list[Row], valid: list[Row], test: list[Row] | None = None
) -> tuple[float, float]:
    """One run through the public path; returns seconds and accuracy on test (or validation) data."""
    data = {
        "train": write_tsv(folder / "train.tsv", train),
        "valid": write_tsv(folder / "valid.tsv", valid),
        **({"test": write_tsv(folder / "test.tsv", test)} if test else {}),
    }
    recipe = Recipe(
        data=data, columns={"text": 0, "label": 1}, model=str(source), num_epochs=num_epochs, device="cpu",
        precision="bf16", **NUMBERS,
    )  # fmt: skip
    begin = time.perf_counter()
    run = finetune(recipe, folder=folder / "run" / str(time.time_ns()), progress=False)
    seconds = time.perf_counter() - begin
    return seconds, run.task.evaluate("test" if test else "valid")["accuracy"]


def plain(
    source: Path, num_epochs: int, train: list[Row], valid: list[Row], test: list[Row] | None = None
) -> tuple[float, float]:
    """The same by the plain script, which saves its model as well."""
    begin = time.perf_counter()
    model, score = train_plain(source, train, valid, num_epochs=num_epochs, **NUMBERS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
    seconds = time.perf_counter() - begin
    if test:
        encoded = AutoTokenizer.from_pretrained(source)([t for t, _ in test])["input_ids"]
        score = accuracy(model, encoded, [y for _, y in test])
    return seconds, score


def against_plain_script(
    pairs: int = 7,
    *,
    source: Path,
    train: list[Row],
    valid: list[Row],
    folder: Path,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The part "against_plain_script" of `bench.json`: paired ratios of whole runs of one epoch, by the wall.

    Timed are reading, tokenizing, training, evaluating, saving.

    Args:
        pairs: counted; one more warms up.
        source: folder of a BERT with its tokenizer.
        train: training sentences with 0 or 1.
        valid: a few more.
        folder: for files and runs.
        say: told of every pair.
    """
    ratios = []
    for number in range(pairs + 1):
        mine, theirs = ours(source, folder, 1, train, valid)[0], plain(source, 1, train, valid)[0]
        say(f"pair {number}: ftnb {mine:.1f} s, plain script {theirs:.1f} s, ratio {mine / theirs:.3f}")
        ratios.append(mine / theirs)
    counted = ratios[1:]
    figures = {"ratio": statistics.median(counted), "ratio_range": [min(counted), max(counted)]}
    return {**figures, "pairs": pairs, "examples": len(train)}


def rt_polarity(*, source: Path, train: list[Row], valid: list[Row], test: list[Row], folder: Path) -> dict[str, Any]:
    """The part "rt_polarity" of `bench.json`: one pair of the whole job, two epochs, judged on all of `test`."""
    mine, theirs = ours(source, folder, 2, train, valid, test), plain(source, 2, train, valid, test)
    return {"seconds_ours": mine[0], "accuracy_ours": mine[1], "seconds_plain": theirs[0], "accuracy_plain": theirs[1]}

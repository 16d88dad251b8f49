"""The benchmarks of the trunk cache, in a tiny mode: they run to their end and give what `bench.json` is made of."""

from pathlib import Path

from tests.bench.against_trainer import against_trainer
from tests.bench.cache import bound, cache_table
from tests.tiny import reviews, tiny_bert


def test_the_table_of_the_cache(tmp_path):
    rows, valid = reviews(32), reviews(8, seed=1)
    source = Path(tiny_bert(tmp_path / "bert"))
    table = cache_table(
        1, source=source, rows=rows, valid=valid, folder=tmp_path,
        cases=((2, 1, 6, 32), (3, 1, 6, 32), (2, 0, 3, 24)),
        say=len,
    )  # fmt: skip
    assert [(row["model"], row["L"], row["k"], row["E"]) for row in table] == [
        ("pretrained", 2, 1, 6),
        ("random, 3 layers", 3, 1, 6),
        ("pretrained", 2, 0, 3),
    ]
    for row in table:
        assert row["_range"][0] <= row["speedup"] <= row["_range"][1]
        assert 1 < row["counted"] <= row["bound"] + 1e-6
        assert row["max_abs_diff"] < 1e-4


def test_the_bound():
    assert round(bound(6, 1, 4), 2) == 2.15
    assert round(bound(12, 1, 10), 2) == 4.19
    assert bound(6, 0, 10) == 10


def test_the_comparison_with_the_trainer(tmp_path):
    figures = against_trainer(
        1, 2, source=Path(tiny_bert(tmp_path / "bert")), train=reviews(32), valid=reviews(8, seed=1),
        test=reviews(16, seed=2), folder=tmp_path / "trainer", paddings=("dynamic", "grouped"), say=len,
    )  # fmt: skip
    assert figures["precision"] == "fp32"  # a tiny model's own choice
    for of in (figures, figures["fp32"]):
        for padding in ("dynamic", "grouped"):
            low, high = of[f"{padding}_range"]
            assert 0 < low <= of[padding] <= high
        assert 0 <= of["accuracy_ours"] <= 1
    assert 0 <= figures["accuracy_trainer"] <= 1

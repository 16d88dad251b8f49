"""The benchmark in its tiny mode: every part runs and gives what `bench.json` promises. Times are not looked at."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.bench.__main__ import main
from tests.bench.parts import PARTS
from tests.bench.race import race

ELSEWHERE = ("cache", "against_trainer")  # their tests are in test_bench_cache.py


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> dict[str, Any]:
    """The file after a run of all parts, with one that was not run and keeps what it had."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    old = {"cache": [{"model": "old"}], "measured": {"cache": {"date": "2026-01-01"}}, "versions": {"torch": "0"}}
    out.write_text(json.dumps(old), encoding="utf-8")
    verbosity = transformers.logging.get_verbosity()
    parts = [word for part in PARTS if part not in ELSEWHERE for word in ("--part", part)]
    main(["--tiny", "--out", str(out), *parts])
    transformers.logging.set_verbosity(verbosity)
    return json.loads(out.read_text(encoding="utf-8"))


def assert_ratio(figures: dict[str, Any], name: str) -> None:
    low, high = figures[f"{name}_range"]
    assert low <= figures[name] <= high
    assert math.isfinite(high)


def test_what_others_read_is_there(bench):
    for name in ("ratio", "ms", "trainer"):
        assert_ratio(bench["overhead"], name)
    assert "lightning" in bench["overhead"]
    assert_ratio(bench["full_against_trainer"], "ratio")
    for who in ("ours", "trainer"):
        assert 0 <= bench["full_against_trainer"][f"accuracy_{who}"] <= 1
    assert 0 < bench["padding"]["real_token_share"] <= 1
    assert_ratio(bench["padding"]["by_tokens"], "speedup")
    assert_ratio(bench, "import_seconds")
    assert_ratio(bench["against_plain_script"], "ratio")
    assert bench["rt_polarity"]["seconds_ours"] > 0
    assert {"torch", "transformers", "lightning"} <= bench["versions"].keys()


def test_what_is_exact_is_exact(bench):
    for row in bench["numerics"]:
        assert row["ours"] <= 1e-12, row
    by_tokens = bench["padding"]["by_tokens"]
    assert by_tokens["most_tokens"] <= by_tokens["max_tokens"]


def test_a_part_that_was_not_run_keeps_its_figures_and_their_date(bench):
    assert bench["cache"] == [{"model": "old"}]
    assert bench["measured"]["cache"]["date"] == "2026-01-01"
    assert bench["measured"]["padding"]["date"] > "2026-01-01"
    assert bench["versions"]["torch"] != "0"


def test_the_committed_figures_are_in_the_schema():
    figures = json.loads((Path(__file__).parent / "bench" / "bench.json").read_text(encoding="utf-8"))
    assert set(figures) - {"measured", "versions", "import_seconds_range"} <= set(PARTS)
    assert set(figures["measured"]) <= set(PARTS)


def test_contenders_take_turns_and_draw_their_own_random_numbers():
    import torch

    seen: list[str] = []
    drawn: dict[str, list[float]] = {"a": [], "b": []}

    def contender(name: str, wanted: int = 7):
        def run(step):
            torch.manual_seed(5)
            for _ in range(wanted):
                seen.append(name)
                drawn[name].append(torch.rand(1).item())
                step()

        return run

    turns = race({"a": contender("a"), "b": contender("b")}, turns=2, steps=2)
    assert seen == ["a", "b"] * 6
    assert drawn["a"] == drawn["b"]
    assert [len(of.wall) for of in turns.values()] == [2, 2]
    with pytest.raises(RuntimeError, match="a contender failed") as failed:
        race({"a": contender("a", wanted=3), "b": contender("b")}, turns=2, steps=2)
    assert "a ended after 3 steps" in str(failed.value.__cause__)

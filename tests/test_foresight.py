"""The panel's line that says what a run will need: told once the panel is shown, of the last recipe asked about."""

from typing import Any

import pytest

from ftnb.recipe import Recipe
from ftnb.widgets import foresight
from ftnb.widgets.foresight import Foresight, at_hand
from tests.tiny import tiny_bert, write_csv


@pytest.fixture
def own(tmp_path, monkeypatch) -> dict[str, Any]:
    monkeypatch.setattr(foresight, "PATIENCE", 0.01)
    data, model = write_csv(tmp_path / "reviews.csv", 60), tiny_bert(tmp_path / "bert")
    return {"data": data, "model": model, "device": "cpu", "num_epochs": 10, "strategy": "head"}


def told(of: Foresight) -> str:
    """What the line says once nothing is counted any more."""
    thread = of._thread
    if thread is not None:
        thread.join(60)
        assert not thread.is_alive()
    return str(of.line.value)


def test_it_is_silent_until_it_is_shown_and_then_says_memory(own):
    need = Foresight()
    need.ask(Recipe(**own))
    assert told(need) == ""
    need.show(Recipe(**own))
    assert "Will need about" in told(need)
    assert "cache" not in need.line.value
    need.ask(None)
    assert told(need) == ""


def test_it_says_what_the_trunk_cache_will_save(own):
    need = Foresight()
    need.show(Recipe(**own, trunk_cache="memory"))
    assert "Trunk cache: head: embeddings – block 1 computed once" in told(need)
    assert "up to" in need.line.value
    need.ask(Recipe(**{**own, "strategy": "full"}, trunk_cache="memory"))
    assert "no cache; nothing at the bottom of the model is frozen." in told(need)


def test_a_start_has_it_forget(own):
    need = Foresight()
    need.show(Recipe(**own))
    need.settle()
    assert need._asked is None
    assert need._thread is not None
    assert not need._thread.is_alive()


def test_what_is_not_at_hand_is_not_fetched(own):
    assert at_hand(Recipe(**own))
    assert not at_hand(Recipe(**{**own, "model": "google-bert/bert-base-uncased"}))
    assert not at_hand(Recipe(**{**own, "data": "stanfordnlp/imdb"}))
    need = Foresight()
    need.show(Recipe(**{**own, "model": "google-bert/bert-base-uncased"}))
    assert told(need) == ""

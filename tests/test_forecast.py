"""What a recipe with a trunk cache will save is said before the start: by Python, the command line and the panel."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ftnb.forecast
from ftnb.cli import app
from ftnb.forecast import forecast
from ftnb.recipe import Recipe
from ftnb.run import Run
from ftnb.tasks import TASKS
from tests.test_task_matrix import TINY
from tests.tiny import tiny_bert, write_csv


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("forecast")
    return {
        "data": write_csv(folder / "reviews.csv", 60), "model": tiny_bert(folder / "bert"), "device": "cpu",
        "num_epochs": 10, "strategy": "head", "trunk_cache": "memory",
    }  # fmt: skip


def test_what_the_cache_will_save_is_what_it_then_keeps(own, tmp_path):
    told = forecast(Recipe(**own))
    (saving,) = told.savings
    assert saving.cut == "embeddings – block 1"
    assert 2 < saving.speedup <= 10
    run = Run(Recipe(**own), tmp_path / "run").start()
    assert run.wait(60) == "done"
    planned, kept = (event.new for event in run.events if getattr(event, "what", "") == "trunk_cache")
    assert planned == f"planned: {saving}"
    assert str(kept).startswith(saving.cut)
    assert told.kept == saving.num_bytes > 0
    assert told.point == told.estimate.point + told.kept


def test_the_whole_is_faster_and_larger_by_the_cache_and_without_one_nothing_is_said(own):
    numbers = torch.get_rng_state()
    with_it, without = (forecast(Recipe(**{**own, "trunk_cache": name})) for name in ("memory", "off"))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert without.savings == ()
    assert "cache" not in f"{without}{without.line()}"
    assert with_it.point > without.point
    on_disk = forecast(Recipe(**{**own, "trunk_cache": "disk"}), dry_run=False)
    assert on_disk.kept == 0
    assert on_disk.point == without.point


def test_every_phase_has_its_line_and_its_reason(own):
    told = forecast(Recipe(**{**own, "strategy": "lp-ft"}), dry_run=False)
    head, full = map(str, told.savings)
    assert "head: embeddings – block 1 computed once" in head
    assert "full: no cache; nothing at the bottom of the model is frozen." in full
    assert head in str(told)
    assert full in str(told)
    assert told.line().endswith(f"Trunk cache: {head}.")
    (nothing,) = forecast(Recipe(**{**own, "strategy": "full"}), dry_run=False).savings
    assert str(nothing) == full


def test_a_cache_beyond_its_room_is_said_before_the_start(own, monkeypatch, tmp_path):
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "not" / "there"))
    for name, where in (("memory", "of memory"), ("disk", "on the disk")):
        (saving,) = forecast(Recipe(**{**own, "trunk_cache": name, "trunk_cache_gb": 1e-7}), dry_run=False).savings
        assert f"{where} and may take 100 bytes" in saving.reason
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    (saving,) = forecast(Recipe(**{**own, "trunk_cache": "disk", "trunk_cache_gb": 1.0}), dry_run=False).savings
    assert "on the disk and may take 100 bytes" in saving.reason  # more is allowed, but there is no more


def test_no_weights_are_needed_to_know_it(own, monkeypatch):
    here = forecast(Recipe(**own), dry_run=False)
    monkeypatch.setattr(ftnb.forecast, "SMALL", -1)
    without = forecast(Recipe(**own), dry_run=False)
    assert without.savings[0].share == pytest.approx(here.savings[0].share)
    assert without.savings[0].num_bytes == here.savings[0].num_bytes
    monkeypatch.setattr(ftnb.forecast, "MOST_PARAMETERS", 10)
    too_large = forecast(Recipe(**own), dry_run=False)
    assert too_large.savings == ()
    for words in (str(too_large), too_large.line()):
        assert "what it saves is not known before the start" in words


def test_the_command_line_says_it(own):
    words = [part for key, value in own.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(app, ["estimate", *words])
    assert result.exit_code == 0, result.output
    assert "beside it the trunk cache, " in result.output
    assert "  head: embeddings – block 1 computed once" in result.output
    assert "up to" in result.output


def test_a_budget_of_tokens_counts_as_the_run_counts(own):
    recipe = Recipe(**{**own, "trunk_cache": "off", "batch_tokens": 64})
    small, large = (forecast(recipe.replace(batch_tokens=n), dry_run=False) for n in (64, 640))
    assert small.num_steps > large.num_steps
    assert small.estimate.worst.activations < large.estimate.worst.activations


WITHOUT_A_FOLDER = {
    "image-classification": ["torchvision:resnet18"],
    "object-detection": ["torchvision:resnet18", "torchvision:fcos_resnet50_fpn"],
    "image-segmentation": ["torchvision:lraspp_mobilenet_v3_large"],
}
MODELS = [(task, name) for task in TASKS for name in ("", *WITHOUT_A_FOLDER.get(task, []))]


@pytest.mark.parametrize(("task", "model"), MODELS)
def test_no_weights_are_read_or_fetched_for_a_forecast(task, model, tmp_path, monkeypatch):
    """The network is out of the question: whoever asks for numbers of a checkpoint fails here."""
    own = TINY[task](tmp_path)
    options = {"image_size": own["image_size"]} if "image_size" in own else {}
    options |= {"image_size": 64} if model else {}
    monkeypatch.setattr(ftnb.forecast, "SMALL", -1)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("a forecast asked for weights")

    for module in ("ftnb.vision.torchvision_models", "ftnb.vision.models", "ftnb.segmentation.torchvision_models"):
        monkeypatch.setattr(f"{module}.read_weights", refuse)
    monkeypatch.setattr("ftnb.detection.models.read_weights", refuse)
    monkeypatch.setattr("ftnb.detection.models.load_file", refuse)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    recipe = Recipe(task=task, data=own["data"], model=model or own["model"], batch_size=2, device="cpu", **options)
    assert forecast(recipe, dry_run=False).point > 0

"""A budget of tokens from the recipe to the training, for the tasks that read text."""

from typing import Any

import pytest
import torch

from ftnb.recipe import Recipe, RecipeError, make_learner, prepare_task
from ftnb.run import finetune
from ftnb.tables import DataError
from ftnb.tasks import TASKS
from ftnb.train import Training
from tests.bench.numerics import LIMITS, Case, difference
from tests.test_task_matrix import TINY

TEXT_TASKS = [name for name, entry in TASKS.items() if "batch_tokens" in entry.learner_options]
BUDGET = {"text-generation": 128}


def settings(task: str, own: dict[str, Any]) -> dict[str, Any]:
    return {"task": task, "data": own["data"], "model": own["model"], "device": "cpu", "num_epochs": 2, "lr": 1e-3}


def test_the_tasks_are_those_of_texts():
    assert TEXT_TASKS == ["text-classification", "token-classification", "text-generation"]
    with pytest.raises(RecipeError, match="batch_tokens is no setting of image-classification"):
        Recipe(task="image-classification", batch_tokens=512)


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_a_run_keeps_its_budget(tmp_path, task):
    budget = BUDGET.get(task, 40)
    recipe = Recipe(**settings(task, TINY[task](tmp_path)), batch_tokens=budget)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    learner = make_learner(prepare_task(recipe), recipe)
    for batches in (learner.train, learner.valid):
        assert max(batch["input_ids"].numel() for batch in batches.epoch(1)) <= budget
    sizes = {len(batch["input_ids"]) for batch in learner.train.epoch(0)}
    assert len(sizes) > 1, "short texts come in larger batches"
    run = finetune(recipe, folder=tmp_path / "run", progress=False)
    assert run.state == "done"
    assert run.history.step == 2 * len(learner.train)


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_the_gradient_of_an_epoch_is_the_same_under_a_budget(tmp_path, task):
    """Micro-batches of different sizes are weighted by what their losses are means of."""
    case = Case(task, tmp_path, torch.float64)
    whole = case.given([list(range(len(case.examples)))])
    of_lengths = {"lengths": case.learner.train.lengths[: len(case.examples)], "max_tokens": BUDGET.get(task, 40)}
    cut = type(case.learner.train)(case.examples, case.collate, 4, shuffle=True, **of_lengths)
    assert len({len(batch) for batch in cut.order(0)}) > 1
    assert difference(case.ours(cut), whole) <= LIMITS[torch.float64]


def test_a_training_resumes_in_the_middle_of_an_epoch(tmp_path):
    def training() -> Training:
        recipe = Recipe(**settings("text-classification", own), batch_tokens=40)
        return Training(make_learner(prepare_task(recipe), recipe), lr=1e-3, num_epochs=2, device="cpu")

    def weights(of: Training) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in of.model.parameters()])

    own = TINY["text-classification"](tmp_path)
    whole, first, second = training(), training(), training()
    steps = whole.plan.num_steps
    for _ in range(steps):
        whole.step()
    for _ in range(steps // 3):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(steps - steps // 3):
        second.step()
    assert torch.equal(weights(whole), weights(second))


def test_a_budget_below_the_longest_text_is_refused_before_training(tmp_path):
    recipe = Recipe(**settings("text-classification", TINY["text-classification"](tmp_path)), batch_tokens=6)
    with pytest.raises(DataError, match="does not fit into a batch of 6"):
        make_learner(prepare_task(recipe), recipe)

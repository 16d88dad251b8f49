"""How far the time that is told before a run is from what the run then takes, on the eight tasks' own data and models.

The training is timed as it would run: `forecast` computes one small batch and says how long all of it will take; then
the same recipe is trained, evaluations included, and the two are compared by the wall clock.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from ftnb.forecast import forecast
from ftnb.plan import Settings
from ftnb.recipe import Recipe, make_learner, prepare_task, training_settings
from ftnb.strategies import strategy_from
from ftnb.tasks import TASKS
from ftnb.train import Training

STRATEGIES = ("full", "top-k", "lora")


def seconds_of(recipe: Recipe) -> float:
    """How long the recipe trains, evaluations included; reading data and model is not counted."""
    learner = make_learner(prepare_task(recipe), recipe)
    numbers = training_settings(recipe)
    cache = numbers.pop("cache", None)
    training = Training(learner, strategy_from(recipe.strategy), Settings(**numbers), cache=cache)
    begin = time.perf_counter()
    for _ in training:
        pass
    return time.perf_counter() - begin


def estimate_time(
    tasks: Sequence[str] = tuple(TASKS),
    strategies: Sequence[str] = STRATEGIES,
    num_epochs: int = 1,
    *,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The table "estimate_time" of `bench.json`.

    Args:
        tasks: by name; each with the data and model that it has by itself.
        strategies: by name.
        num_epochs: of each training.
        say: told of every training.

    Returns:
        "ratio": predicted seconds over measured ones, the median, with its "_range"; "within_2x" the share of
        trainings whose prediction was off by less than a factor of two; and "rows".
    """
    rows = []
    for task in tasks:
        for strategy in strategies:
            recipe = Recipe(task=task).replace(strategy=strategy, num_epochs=num_epochs)
            predicted, measured = forecast(recipe).seconds, seconds_of(recipe)
            if predicted is not None:
                rows.append({"task": task, "strategy": strategy, "predicted": predicted, "measured": measured})
                say(f"{task}, {strategy}: {predicted:.1f} s predicted, {measured:.1f} s measured")
    ratios = [row["predicted"] / row["measured"] for row in rows]
    return {
        "ratio": statistics.median(ratios),
        "_range": [min(ratios), max(ratios)],
        "within_2x": sum(0.5 < ratio < 2 for ratio in ratios) / len(ratios),
        "rows": rows,
    }

"""Runs steered by hand, done again from their journals; and branches."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from ftnb.events import Stepped
from ftnb.replay import difference, replay
from ftnb.run import Run
from tests.chaos.runs import tiny_recipe

Act = Callable[[Run], object]

HANDS: dict[str, tuple[dict[str, Any], dict[int, list[Act]]]] = {
    "two rates": ({}, {2: [lambda run: run.set_lr(3e-3)], 9: [lambda run: run.set_lr(2e-4)]}),
    "an evaluation asked for, lp-ft": ({"strategy": "lp-ft"}, {5: [lambda run: run.evaluate()]}),
    "stopped, lora, accumulation": (
        {"strategy": {"name": "lora", "rank": 2}, "accumulation": 2},
        {3: [lambda run: run.set_lr(2e-3)], 7: [lambda run: run.stop()]},
    ),
    "stopped in a hurry": ({}, {6: [lambda run: run.stop(), lambda run: run.stop()]}),
    "trunk cache, gradual, rate": (
        {"strategy": "gradual", "trunk_cache": "memory", "num_epochs": 4},
        {4: [lambda run: run.set_lr(2e-3)]},
    ),
}


def steered(run: Run, hands: dict[int, list[Act]]) -> Run:
    """A run at which hands are laid after certain steps, from its own thread."""

    def listen(event: object) -> None:
        for act in hands.get(event.step, []) if isinstance(event, Stepped) else []:
            act(run)

    off = run.subscribe(listen)
    run.start().wait()
    off()
    return run


def replay_table(only: int | None = None, say: Callable[[str], object] = print) -> list[dict[str, Any]]:
    """Rows of the table "replay": how far the last weights are from those of the first time."""
    rows = []

    def add(case: str, difference: float) -> None:
        rows.append({"case": case, "max_abs_diff": difference})
        say(f"  replay, {case}: {difference:.1e}")

    with tempfile.TemporaryDirectory() as name, mock.patch.dict("os.environ", {"FTNB_RUNS": f"{name}/runs"}):
        place = Path(name)
        for case, (settings, hands) in list(HANDS.items())[:only]:
            run = steered(Run(tiny_recipe(place, **settings)), hands)
            add(case, replay(run).max_abs_diff)
        if only is not None:
            return rows
        run = steered(Run(tiny_recipe(place, keep_snapshots=20)), {2: [lambda run: run.set_lr(3e-3)]})
        same = run.branch(9)
        same.wait()
        add("a branch without a change, against its run", difference(run.folder, same.folder))
        other = run.branch(9, lr=5e-3, num_epochs=4)
        hands_off = other.subscribe(lambda e: other.set_lr(1e-3) if isinstance(e, Stepped) and e.step == 15 else None)
        other.wait()
        hands_off()
        add("a branch with another rate and length, steered", replay(other).max_abs_diff)
    return rows

"""Runs done again from their journals, and branches off them."""

from pathlib import Path

import pytest
import torch

from ftnb.events import (
    Changed,
    Evaluate,
    Evaluated,
    Finished,
    JournalError,
    Saved,
    SetLr,
    SetParts,
    Stepped,
    Stop,
    Warned,
)
from ftnb.recipe import Recipe, RecipeError
from ftnb.replay import difference, overlay, own_events, replay, script_of, weights_of
from ftnb.run import Run, RunError, finetune
from ftnb.runfolder import BEST, SNAPSHOTS, branched_at
from ftnb.snapshots import Snapshots


@pytest.fixture
def recipe(recipe) -> Recipe:
    return recipe.replace(num_epochs=3, accumulation=2, batch_size=4, snapshot_every=4, keep_snapshots=9)


def steered(recipe: Recipe, hands: dict[int, list]) -> Run:
    """A run at which hands are laid after certain steps, from its own thread."""
    run = Run(recipe)

    def listen(event) -> None:
        for act in hands.get(event.step, []) if isinstance(event, Stepped) else []:
            act(run)

    hands_off = run.subscribe(listen)
    run.start().wait()
    hands_off()
    return run


HANDS = {
    "nobody": {},
    "rates": {2: [lambda run: run.set_lr(3e-3)], 7: [lambda run: run.set_lr(2e-4)]},
    "two rates at once": {3: [lambda run: run.set_lr(3e-3), lambda run: run.set_lr(5e-4)]},
    "an evaluation": {5: [lambda run: run.evaluate()]},
    "stopped": {3: [lambda run: run.set_lr(2e-3)], 8: [lambda run: run.stop()]},
    "stopped in a hurry": {6: [lambda run: run.stop(), lambda run: run.stop()]},
    "everything": {
        1: [lambda run: run.set_lr(2e-3)],
        4: [lambda run: run.evaluate(), lambda run: run.set_lr(1e-3)],
        9: [lambda run: run.stop()],
    },
}


def story(run: Run) -> list[tuple]:
    """What happened, without times and names."""
    kept = (Stepped, Evaluated, Finished)
    return [
        (e.kind, e.step, getattr(e, "loss", None), getattr(e, "lr", None)) for e in run.events if isinstance(e, kept)
    ]


TWICE = [(hands, "full") for hands in HANDS] + [("everything", "lp-ft"), ("everything", {"name": "lora", "rank": 2})]


@pytest.mark.parametrize(("hands", "strategy"), TWICE)
def test_a_steered_run_is_done_again_bit_for_bit(recipe, hands, strategy):
    run = steered(recipe.replace(strategy=strategy), HANDS[hands])
    again = run.replay()
    assert again.max_abs_diff == 0.0
    assert story(again.run) == story(run)
    assert again.run.history.best == run.history.best
    assert (run.folder / BEST).exists() == (again.run.folder / BEST).exists() == (run.history.best is not None)
    if run.history.best is not None:
        one, other = (weights_of(of.folder, BEST) for of in (run, again.run))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert {e.by for e in again.run.events if isinstance(e, Changed)} <= {"replay", "strategy"}
    assert "bit for bit" in str(again)


def test_after_a_return_to_a_snapshot_only_what_counts_is_done_again(recipe):
    run = steered(recipe, {6: [lambda run: run.set_lr(5e-3), lambda run: run.stop()]})
    Snapshots(run.folder / SNAPSHOTS).path(6).rename(run.folder / "elsewhere")  # the newest: as if a crash came before
    run.resume()
    run.wait()
    assert [e.step for e in run.events if isinstance(e, Changed) and e.what == "restored"] == [4]
    assert script_of(run.events) == [], "the rate was changed after the snapshot, and that is undone"
    assert replay(run).max_abs_diff == 0.0


def test_a_script_says_when_things_took_effect():
    def changed(step, what, **fields):
        return Changed(step=step, what=what, **fields)

    events = [
        changed(0, "phase", new="head", by="strategy"),
        changed(2, "lr", old=1e-3, new=2e-3, group="head"),
        changed(2, "evaluate"),
        changed(3, "parts", old=1, new=2, by="memory"),
        changed(3, "pause"),
        changed(3, "resume"),
        Evaluated(step=3, epoch=1.0, loss=1.0, metrics={}),
        Warned(step=3, code="x", message="y"),
        changed(4, "stop"),
        Finished(step=5, reason="stopped"),
    ]
    assert script_of(events) == [(2, SetLr(2e-3, "head")), (3, Evaluate()), (3, SetParts(2)), (5, Stop())]
    for what, nonsense in (("lr", 0), ("lr", float("nan")), ("parts", 0), ("parts", float("inf"))):
        with pytest.raises(JournalError, match=f"{what} after step 1"):
            script_of([changed(1, what, new=nonsense)])
    failed = [*events[:-2], Finished(step=4, reason="failed")]
    assert script_of(failed)[-2:] == [(4, Stop()), (4, Stop())]


def test_what_cannot_be_done_again_says_why(recipe, tmp_path):
    run = Run(recipe)
    with pytest.raises(RunError, match="no end in its journal"):
        run.replay()
    done = finetune(recipe, num_epochs=1, progress=False)
    other = finetune(recipe, num_epochs=1, seed=1, progress=False)
    assert difference(done.folder, other.folder) > 0
    for file in (done.folder / "model-last").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(RunError, match="no weights to compare"):
        done.replay()


# Branches


def test_a_branch_without_a_change_is_the_run_itself(recipe):
    run = steered(recipe, {2: [lambda run: run.set_lr(3e-3)]})
    branch = run.branch(4)
    assert branch.wait() == "done"
    assert difference(run.folder, branch.folder) == 0.0
    assert branched_at(branch.folder) == 4


def test_a_branch_goes_another_way_from_its_step_on(recipe):
    run = finetune(recipe, progress=False)
    branch = run.branch(4, lr=4e-3)
    branch.wait()
    assert difference(run.folder, branch.folder) > 1e-4
    lrs = [{e.step: e.lr for e in one.events if isinstance(e, Stepped)} for one in (run, branch)]
    assert all(lrs[0][step] == lrs[1][step] for step in range(1, 5))
    assert all(lrs[1][step] == pytest.approx(4 * lrs[0][step]) for step in range(5, len(lrs[0]) + 1))
    said = {(e.what, e.by) for e in branch.events if isinstance(e, Changed)}
    assert {("branched", "user"), ("restored", "user"), ("lr", "settings")} <= said
    assert branch.history.step == run.history.step
    assert Recipe.load(branch.folder) == recipe.replace(lr=4e-3)
    assert overlay([run, branch]).axes[0].lines


def test_a_branch_may_train_longer_and_decay_more(recipe):
    run = finetune(recipe, progress=False)
    branch = run.branch(num_epochs=5, weight_decay=0.3)
    branch.wait()
    assert branch.history.step == 5 * run.history.started.steps_per_epoch
    changed = {(e.what, e.old, e.new) for e in branch.events if isinstance(e, Changed) and e.by == "settings"}
    assert changed == {("num_epochs", 3, 5), ("weight_decay", 0.01, 0.3)}


@pytest.mark.parametrize("change", [{"lr": 4e-3}, {"num_epochs": 4, "schedule": "cosine"}])
def test_a_branch_is_done_again_too(recipe, change):
    run = steered(recipe, {2: [lambda run: run.set_lr(3e-3)]})
    branch = run.branch(4, **change, keep_snapshots=1)
    branch.subscribe(lambda e: branch.set_lr(7e-4) if isinstance(e, Stepped) and e.step == 8 else None)
    branch.wait()
    assert Snapshots(branch.folder / SNAPSHOTS).steps()[0] == 4, "what it began with stays"
    del run
    again = Run.open(branch.folder).replay()
    assert again.max_abs_diff == 0.0


def test_a_branch_of_a_branch(recipe):
    first = finetune(recipe, progress=False)
    second = first.branch(4, lr=2e-3)
    second.wait()
    third = second.branch(8, lr=5e-4)
    third.wait()
    assert third.replay().max_abs_diff == 0.0
    assert [e.what for e in third.events if isinstance(e, Changed)].count("branched") == 2


def test_what_cannot_branch_says_why_and_leaves_nothing(recipe, tmp_path):
    run = finetune(recipe, progress=False)
    with pytest.raises(RecipeError, match="batch_size cannot change on the way"):
        run.branch(4, batch_size=2)
    with pytest.raises(RunError, match="no snapshot of step 5; there are 4, 8"):
        run.branch(5)
    with pytest.raises(RecipeError, match="unknown setting 'learning_rate'"):
        run.branch(4, learning_rate=1)
    Path(recipe.data).rename(tmp_path / "gone.csv")
    try:
        with pytest.raises(ValueError, match=r"reviews\.csv"):
            run.branch(4, folder=tmp_path / "branch")
    finally:
        (tmp_path / "gone.csv").rename(recipe.data)
    assert not (tmp_path / "branch").exists()


# What is damaged on the disk


def spoil(run: Run, *, torn: bool = False, only: str = "") -> int:
    """Damage the journal: its last line is cut short, or the first line that holds some text; returns its number."""
    path = run.folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = len(lines) - 1 if torn else next(i for i, line in enumerate(lines) if only in line)
    lines[at] = lines[at][:20] + ("" if torn else "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return at + 1


def test_a_branch_of_a_run_with_a_damaged_journal_takes_what_can_be_read_and_says_what_is_missing(recipe):
    run = finetune(recipe, progress=False)
    number = spoil(run, only='"step": 2, ')
    spoil(run, torn=True)
    branch = run.branch(4)
    assert branch.wait() == "done"
    assert difference(run.folder, branch.folder) == 0.0
    said = [e.message for e in branch.events if isinstance(e, Warned) and e.code == "journal_damaged"]
    assert f"line {number}, is passed over" in said[0]
    assert "it was cut short" in said[1]


def test_a_replay_says_which_lines_it_could_not_read(recipe):
    run = steered(recipe, {3: [lambda run: run.set_lr(3e-3)]})
    number = spoil(run, only='"what": "lr"')
    again = Run.open(run.folder).replay()
    assert again.max_abs_diff > 0
    assert f"line {number}, is passed over" in str(again)
    assert "was not done again" in str(again)
    assert any(isinstance(e, Warned) and e.code == "journal_damaged" for e in again.run.events)
    spoil(run, torn=True)
    with pytest.raises(RunError, match=r"no end in its journal(.|\n)*it was cut short"):
        run.replay()


def test_a_damaged_note_of_a_branch_is_made_good_from_the_journal_or_refused(recipe):
    run = finetune(recipe, progress=False)
    branch = run.branch(4, lr=2e-3)
    branch.wait()
    note = branch.folder / "branch.json"
    whole = note.read_text()
    for text in ("", '{"run": "x"', '{"run": "x", "step": "four"}', '{"run": "x", "step": -1}', "[]"):
        note.write_text(text)
        assert branched_at(branch.folder) == 4
    assert branch.replay().max_abs_diff == 0.0
    note.unlink()
    assert branched_at(branch.folder) == 4
    assert branched_at(run.folder) is None

    spoil(branch, only='"what": "branched"')
    note.write_text(whole)
    with pytest.raises(JournalError, match=r"no line of its journal(.|\n)*is passed over"):
        branch.replay()
    note.write_text("{")
    with pytest.raises(JournalError, match="branch.json should say .* is damaged"):
        branch.replay()


def test_who_asked_is_written_down(recipe):
    run = steered(recipe, {6: [lambda run: run.stop(by="somebody")]})
    run.resume(by="a panel")
    run.wait()
    branch = run.branch(4, by="a script")
    branch.wait()
    assert [e.by for e in run.events if isinstance(e, Changed)] == ["somebody", "a panel"]
    assert [e.by for e in branch.events if isinstance(e, Changed)] == ["a script", "a script"]
    again = branch.replay()
    assert {e.by for e in own_events(again.run.events) if isinstance(e, Changed)} == {"replay"}


# Going on


def test_a_stopped_branch_goes_on(recipe):
    whole = finetune(recipe, progress=False)
    branch = whole.branch(4)
    branch.subscribe(lambda e: branch.stop() if isinstance(e, Stepped) and e.step == 7 else None)
    branch.wait()
    branch.resume()
    branch.wait()
    assert difference(whole.folder, branch.folder) == 0.0
    assert [e for e in branch.events if isinstance(e, Saved) and e.what == "snapshot"]


def test_a_branch_may_take_no_snapshots_of_its_own(recipe):
    whole = finetune(recipe, progress=False)
    branch = whole.branch(4, keep_snapshots=0)
    assert branch.wait() == "done"
    assert difference(whole.folder, branch.folder) == 0.0
    assert Snapshots(branch.folder / SNAPSHOTS).steps() == [4]

"""Snapshots: what is in them, what is checked, what stays on the disk, and going on exactly from them."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from ftnb.events import Changed, Saved, SetLr, Stepped, Stop, Warned, read_journal, what_counts
from ftnb.recipe import Recipe
from ftnb.run import Run, RunError, finetune
from ftnb.runfolder import JOURNAL, SNAPSHOTS, hold_folder
from ftnb.snapshots import MANIFEST, STATE, SnapshotError, Snapshots, read_state
from ftnb.train import Training, TrainingError
from tests.test_train import HeadThenFull
from tests.tiny import write_csv
from tests.toys import Net, points, toy_learner, weights

ROOT = Path(__file__).parent.parent
FAST = {"lr": 1e-2, "num_epochs": 3, "device": "cpu"}


def training(strategy=None, seed: int = 0, **changes) -> Training:
    return Training(toy_learner(seed=seed), strategy, **{**FAST, **changes})


def finish(training: Training) -> torch.Tensor:
    for _ in training:
        pass
    return weights(training.model)


@pytest.mark.parametrize("strategy", [None, HeadThenFull()])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("at", [1, 3, 7, 8])
def test_going_on_from_the_disk_is_bitwise_the_same(tmp_path, strategy, accumulation, at):
    whole, first = (training(strategy, accumulation=accumulation) for _ in range(2))
    for _ in range(at):
        first.step()
    Snapshots(tmp_path).save(first)
    second = training(strategy, accumulation=accumulation)
    with torch.no_grad():  # as a fresh head would be, had its seed been another
        [p.add_(1.0) for p in second.model.head.parameters()]
    assert Snapshots(tmp_path).load(second).step == at
    assert torch.equal(finish(second), finish(whole))
    assert (second.best.value, second.best.step) == (whole.best.value, whole.best.step)
    second.load_best(), whole.load_best()
    assert torch.equal(weights(second.model), weights(whole.model))


def test_a_live_rate_and_the_best_model_travel_with_it(tmp_path):
    whole, first = training(), training()
    for one in (whole, first):
        for _ in range(9):
            one.step()
        one.request(SetLr(lr=3e-2))
        one.step()
    Snapshots(tmp_path).save(first)
    second = training()
    Snapshots(tmp_path).load(second)
    assert second.rates.lr == 3e-2
    assert second.best.step == 7
    assert torch.equal(finish(second), finish(whole))


def test_what_was_planned_for_later_travels_with_it(tmp_path):
    whole, first = training(), training()
    for one in (whole, first):
        one.request(SetLr(lr=3e-2), at=9, by="plan")
        one.request(Stop(), at=15, by="plan")
        for _ in range(4):
            one.step()
    Snapshots(tmp_path).save(first)
    second = training()
    Snapshots(tmp_path).load(second)
    assert torch.equal(finish(second), finish(whole))
    assert (second.reason, second.position.step) == ("stopped", 15)


def test_in_the_middle_of_a_step_it_is_the_last_completed_one(tmp_path):
    """BatchNorm's statistics have moved by then; what is written is what they were."""
    whole, first = training(accumulation=3), training(accumulation=3)
    first.step()
    first.work()
    assert first.in_hand is not None
    Snapshots(tmp_path).save(first)
    second = training(accumulation=3)
    Snapshots(tmp_path).load(second)
    assert torch.equal(finish(second), finish(whole))


def test_what_never_trains_is_not_written_but_must_be_the_same(tmp_path):
    class Head(HeadThenFull):
        def phases(self, model, new_parameters):
            phase = super().phases(model, new_parameters)[0]
            return [type(phase)("head", 1.0, phase.groups)]

    first = training(Head())
    first.step()
    path = Snapshots(tmp_path).save(first)
    assert {name for name in read_state(path)["model"] if name.startswith("trunk.0")} == set()
    other = training(Head(), seed=5)
    with pytest.raises(SnapshotError, match="frozen weights are not those"):
        Snapshots(tmp_path).load(other)


def test_other_data_another_model_and_other_settings_are_refused(tmp_path):
    first = training()
    first.step()
    snapshots = Snapshots(tmp_path)
    snapshots.save(first)
    learner = toy_learner()
    learner.train.examples = points(50, seed=9)
    with pytest.raises(SnapshotError, match="training data is not that of the snapshot"):
        Snapshots(tmp_path).load(Training(learner, **FAST))
    with pytest.raises(TrainingError, match="other settings: accumulation"):
        Snapshots(tmp_path).load(training(accumulation=2))
    learner = toy_learner()
    learner.model.head = nn.Linear(16, 3)
    with pytest.raises(TrainingError, match=r"another model; head\.bias and 1 more"):
        Snapshots(tmp_path).load(Training(learner, **FAST))


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.again = self.head

    def build() -> Training:
        torch.manual_seed(0)
        return Training(toy_learner(model=Tied()), **FAST)

    first, second = build(), build()
    for _ in range(3):
        first.step()
    state = read_state(Snapshots(tmp_path).save(first))
    assert not [name for name in state["model"] if name.startswith("again")]
    Snapshots(tmp_path).load(second)
    assert torch.equal(second.model.head.weight, first.model.head.weight)
    assert second.model.again is second.model.head


def three(folder: Path, keep: int = 3) -> tuple[Snapshots, Training]:
    snapshots, first = Snapshots(folder, keep=keep), training()
    for _ in range(3):
        first.step()
        snapshots.save(first)
    return snapshots, first


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "a flipped bit in the weights": lambda p: flip_a_bit(p / "model.safetensors"),
    "a flipped bit in the moments": lambda p: flip_a_bit(p / "optimizer.safetensors"),
    "a flipped bit in the state": lambda p: flip_a_bit(p / STATE),
    "a cut file": lambda p: os.truncate(p / "model.safetensors", 50),
    "an empty file": lambda p: os.truncate(p / STATE, 0),
    "a missing file": lambda p: (p / "optimizer.safetensors").unlink(),
    "a missing manifest": lambda p: (p / MANIFEST).unlink(),
    "a manifest that is no JSON": lambda p: (p / MANIFEST).write_text("{"),
    "a manifest of nothing": lambda p: (p / MANIFEST).write_text("[]"),
    "a newer format": lambda p: (p / MANIFEST).write_text(json.dumps({"format": 99, "files": {}})),
    "a foreign file": lambda p: (p / "evil.pkl").write_bytes(b"cos\nsystem\n"),
    "an empty folder": lambda p: [file.unlink() for file in list(p.iterdir())],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_and_says_so(tmp_path, damage):
    snapshots, first = three(tmp_path)
    DAMAGES[damage](snapshots.path(3))
    second = training()
    restored = snapshots.load(second)
    assert restored.step == 2
    assert "step-00000003" in restored.skipped[0]
    assert torch.equal(finish(second), finish(first))


def rewrite(path: Path, change) -> None:
    """Change a snapshot's state and make its manifest right again, as a faulty program would."""
    plain = json.loads((path / STATE).read_text())
    change(plain)
    (path / STATE).write_text(json.dumps(plain))
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][STATE] = hashlib.sha256((path / STATE).read_bytes()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))


def put(*keys: str, value):
    """A change of the entry that keys lead to; below the first, dictionaries are pairs."""

    def change(plain) -> None:
        if len(keys) == 1:
            plain[keys[0]] = value
        else:
            next(pair for pair in plain[keys[0]]["dict"] if pair[0] == keys[1])[1] = value

    return change


IMPOSSIBLE = {
    "a step before the first": put("position", "step", value=-1),
    "a step that is text": put("position", "step", value="3"),
    "more batches than there are": put("position", "batch", value=10**6),
    "a phase that there is not": put("position", "phase", value=7),
    "no position": put("position", value=None),
    "a rate that is text": put("rates", "lr", value="fast"),
    "a rate beyond all floats": put("rates", "lr", value=2**2000),
    "no rate": put("rates", "lr", value=float("nan")),
    "a best value beyond all floats": put("best", "value", value=2**2000),
    "a best value that is text": put("best", "value", value="0.9"),
    "weights that are nowhere": put("model", "head.bias", value={"tensor": "nowhere"}),
    "no weights": put("model", value={"dict": []}),
    "no optimizer": put("optimizer", value=None),
    "no moments": put("optimizer", "state", value={"dict": [[0, {"dict": []}]]}),
    "a time that is none": put("time", value=float("inf")),
    "settings that are none": put("settings", value=True),
}


@pytest.mark.parametrize("change", IMPOSSIBLE)
def test_content_that_no_training_wrote_falls_back_too(tmp_path, change):
    snapshots, first = three(tmp_path)
    rewrite(snapshots.path(3), IMPOSSIBLE[change])
    second = training()
    restored = snapshots.load(second)
    assert restored.step == 2
    assert "step-00000003 cannot be read" in restored.skipped[0]
    assert torch.equal(finish(second), finish(first))


def test_numbers_of_the_optimizer_come_from_the_settings(tmp_path):
    snapshots, first = three(tmp_path)

    def change(plain) -> None:
        for group in dict(plain["optimizer"]["dict"])["param_groups"]:
            for pair in group["dict"]:
                pair[1] = pair[1] if pair[0] == "params" else "nonsense"

    rewrite(snapshots.path(3), change)
    second = training()
    assert snapshots.load(second).step == 3
    assert torch.equal(finish(second), finish(first))


def test_nothing_whole_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(SnapshotError, match="no snapshot to go on from"):
        Snapshots(tmp_path / "none").load(training())
    snapshots, _ = three(tmp_path, keep=2)
    for step in snapshots.steps():
        flip_a_bit(snapshots.path(step) / STATE)
    with pytest.raises(SnapshotError, match=r"(?s)step-00000003.*damaged.*step-00000002.*damaged"):
        snapshots.load(training())


def test_what_is_kept_and_how_much_room_it_takes(tmp_path):
    snapshots, first = three(tmp_path, keep=2)
    assert snapshots.steps() == [2, 3]
    size = sum(path.stat().st_size for path in snapshots.path(3).iterdir())
    roomy = Snapshots(tmp_path, keep=5, max_bytes=2 * size + size // 2)
    for _ in range(3):
        first.step()
        roomy.save(first)
    assert roomy.steps() == [5, 6], "the cap holds, whatever may be kept"
    first.step()
    with pytest.raises(SnapshotError, match=r"takes .* MB and 0\.0 MB are allowed"):
        Snapshots(tmp_path, max_bytes=100).save(first)
    assert roomy.steps() == [5, 6]


def test_a_full_disk_costs_no_snapshot(tmp_path, monkeypatch):
    snapshots, first = three(tmp_path, keep=1)
    first.step()
    monkeypatch.setattr("ftnb.snapshots.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(SnapshotError, match="left"):
        snapshots.save(first)
    monkeypatch.undo()
    monkeypatch.setattr("ftnb.snapshots.save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        snapshots.save(first)
    assert snapshots.steps() == [3]
    monkeypatch.undo()
    snapshots.save(first)
    assert snapshots.steps() == [4]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"], "nothing half-done is left"


def test_no_pickle_is_read():
    source = (ROOT / "ftnb" / "snapshots.py").read_text()
    assert "torch.load" not in source
    assert "pickle" not in source


# Runs


@pytest.fixture
def recipe(recipe) -> Recipe:
    return recipe.replace(num_epochs=3, snapshot_every=2)


def final(run: Run) -> torch.Tensor:
    from safetensors.torch import load_file

    return torch.cat(
        [t.flatten() for _, t in sorted(load_file(run.folder / "model-last" / "model.safetensors").items())]
    )


def test_a_stopped_run_goes_on_in_its_folder(recipe):
    whole = finetune(recipe, progress=False)
    run = Run(recipe)
    run.subscribe(lambda e: run.stop() if isinstance(e, Stepped) and e.step == 7 else None)
    run.start().wait()
    assert (run.state, run.can_go_on, run.history.step) == ("stopped", True, 7)
    run.resume()
    assert run.wait() == "done"
    assert torch.equal(final(run), final(whole))
    assert [e.step for e in what_counts(run.events) if isinstance(e, Stepped)] == list(range(1, 16))
    assert run.history.step == 15
    with pytest.raises(RunError, match="done"):
        run.resume()


def test_a_failed_run_goes_on_once_the_cause_is_gone(recipe):
    whole = finetune(recipe, progress=False)
    run = Run(recipe)
    run.start()
    learner = run._background.training.learner
    healthy, calls = learner.loss, []

    def breaks(model, batch):
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("a cosmic ray")
        return healthy(model, batch)

    learner.loss = breaks
    with pytest.raises(RunError, match="cosmic ray"):
        run.wait()
    again = Run.open(run.folder)
    assert again is run
    again.resume()
    assert again.wait() == "done"
    assert torch.equal(final(again), final(whole))


KILLED = """
import os, signal, sys
from ftnb import Recipe, Run
from ftnb.events import Saved, Stepped
run = Run(Recipe.load(sys.argv[1]), sys.argv[2])
at = int(sys.argv[3])
run.subscribe(lambda e: os.kill(os.getpid(), signal.SIGKILL) if isinstance(e, Stepped) and e.step == at else None)
run.start().wait()
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_goes_on_in_another_one(recipe, tmp_path):
    whole = finetune(recipe, progress=False)
    recipe.save(tmp_path / "recipe.toml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "recipe.toml"), str(tmp_path / "run"), "6"]
    process = subprocess.run(words, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr
    run = Run.open(tmp_path / "run")
    assert (run.state, run.error) == ("failed", "the process that trained it was ended.")
    assert Snapshots(run.folder / SNAPSHOTS).steps() == [2, 4]
    run.resume(by="me")
    assert run.wait() == "done"
    assert torch.equal(final(run), final(whole))
    (back,) = (e for e in run.events if isinstance(e, Changed) and e.what == "restored")
    assert (back.step, back.old) == (4, 6)
    assert [e.step for e in what_counts(read_journal(run.folder / JOURNAL)) if isinstance(e, Stepped)] == list(
        range(1, 16)
    )
    assert run.history.step == 15


def test_a_damaged_journal_does_not_keep_a_run_from_going_on(recipe, tmp_path):
    whole = finetune(recipe, progress=False)
    run = Run(recipe, tmp_path / "run")
    run.subscribe(lambda e: run.stop() if isinstance(e, Stepped) and e.step == 7 else None)
    run.start().wait()
    lines = (run.folder / JOURNAL).read_text().split("\n")
    lines[0], lines[4] = lines[0][3:], lines[4].replace('"', "'")
    shutil.copytree(run.folder, tmp_path / "copy")
    (tmp_path / "copy" / JOURNAL).write_text("\n".join(lines))
    again = Run.open(tmp_path / "copy")
    again.resume()
    assert again.wait() == "done"
    assert torch.equal(final(again), final(whole))
    said = [e.message for e in again.events if isinstance(e, Warned) and e.code == "journal_damaged"]
    assert ["line 1," in said[0], "line 5," in said[1]] == [True, True]


def test_two_processes_do_not_train_in_one_folder(recipe, tmp_path):
    run = Run(recipe, tmp_path / "run")
    run.subscribe(lambda e: run.stop() if isinstance(e, Stepped) and e.step == 3 else None)
    run.start().wait()
    lock = hold_folder(run.folder)
    with pytest.raises(FileExistsError, match="another process is training"):
        run.resume()
    assert run.state == "stopped", "as it was"
    lock.release()
    run.resume()
    assert run.wait() == "done"


def test_changed_data_is_noticed_before_training(recipe, tmp_path):
    table = Path(write_csv(tmp_path / "own.csv"))
    run = Run(recipe.replace(data=str(table)), tmp_path / "run")
    run.subscribe(lambda e: run.stop() if isinstance(e, Stepped) and e.step == 3 else None)
    run.start().wait()
    table.write_text(table.read_text().replace("good", "fine"))
    with pytest.raises(SnapshotError, match="training data is not that of the snapshot"):
        run.resume()
    assert run.state == "stopped"
    assert run.predict(["the film was good"]), "and its model still answers"


def test_a_run_without_snapshots_says_that_there_is_nothing_to_go_on_from(recipe, tmp_path):
    run = Run(recipe.replace(keep_snapshots=0), tmp_path / "run")
    run.subscribe(lambda e: run.stop() if isinstance(e, Stepped) and e.step == 3 else None)
    run.start().wait()
    assert not (run.folder / SNAPSHOTS).exists()
    with pytest.raises(RunError, match="no snapshot"):
        run.resume()


def test_a_snapshot_that_cannot_be_written_is_a_warning(recipe, tmp_path):
    run = finetune(recipe.replace(snapshot_gb=1e-6), folder=tmp_path / "run", progress=False)
    assert run.state == "done"
    warnings = [e.message for e in run.events if isinstance(e, Warned)]
    assert any("no snapshot could be written" in message and "are allowed" in message for message in warnings)
    assert not [e for e in run.events if isinstance(e, Saved) and e.what == "snapshot"]


def test_a_pause_takes_a_snapshot(recipe, tmp_path):
    run = Run(recipe.replace(snapshot_every=None), tmp_path / "run")
    run.subscribe(lambda e: run.pause() if isinstance(e, Stepped) and e.step == 3 else None)
    run.subscribe(lambda e: run.resume() if isinstance(e, Saved) and e.what == "snapshot" and e.step == 3 else None)
    run.start().wait()
    assert [e.step for e in run.events if isinstance(e, Saved) and e.what == "snapshot"] == [3, 15]


def test_stop_is_no_part_of_a_state(tmp_path):
    first = training()
    first.step()
    first.request(Stop())
    finish(first)
    Snapshots(tmp_path).save(first)
    second = training()
    Snapshots(tmp_path).load(second)
    assert torch.equal(finish(second), finish(training()))

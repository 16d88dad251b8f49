"""A training in a thread: what can be asked of it and when, and what is left when something goes wrong."""

import gc
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from ftnb.background import ENDED, BackgroundTraining, Record, RunError
from ftnb.events import Changed, Evaluated, Finished, Saved, Stepped, Warned, read_journal
from ftnb.runfolder import BEST, JOURNAL, LAST
from ftnb.train import Training, TrainingError
from tests.toys import loss, toy_learner, until, weights

FAST = {"lr": 1e-2, "num_epochs": 3, "device": "cpu"}


def make(folder: Path, learner=None, write=None, **changes) -> BackgroundTraining:
    learner = learner or toy_learner()
    training = Training(learner, **{**FAST, **changes})
    write = write or (lambda place: save_model(learner.model, str(place / "model.safetensors")))
    return BackgroundTraining(training, folder, write)


def finish(background: BackgroundTraining) -> str:
    assert background.ended.wait(30), f"still {background.state}"
    return background.state


def at(background: BackgroundTraining, step: int, action) -> None:
    """Do something in the training's own thread, right after a step: races become repeatable."""
    background.record.subscribe(lambda e: action() if isinstance(e, Stepped) and e.step == step else None)


def events(background: BackgroundTraining) -> list:
    return read_journal(background.folder / JOURNAL)


def changes(background: BackgroundTraining) -> list[tuple[str, int, str]]:
    return [(e.what, e.step, e.by) for e in events(background) if isinstance(e, Changed)]


def saved(folder: Path, name: str) -> torch.Tensor:
    tensors = load_file(folder / name / "model.safetensors")
    model = toy_learner().model
    model.load_state_dict(tensors)
    return weights(model)


def test_undisturbed_it_ends_with_the_same_weights_as_in_the_foreground(tmp_path):
    foreground = toy_learner()
    for _ in (training := Training(foreground, **FAST)):
        pass
    last = weights(foreground.model)
    training.load_best()
    learner = toy_learner()
    background = make(tmp_path, learner).start()
    assert finish(background) == "done"
    assert torch.equal(saved(tmp_path, LAST), last)
    assert torch.equal(saved(tmp_path, BEST), weights(foreground.model))
    assert torch.equal(weights(learner.model), weights(foreground.model)), "the best weights are in memory afterwards"
    told = [e.kind for e in training.log]
    assert [e.kind for e in events(background) if not isinstance(e, Saved)] == told
    assert isinstance(events(background)[-1], Finished)
    assert background.training is None, "the optimizer's memory is free"


def test_a_pause_in_the_middle_of_a_step_and_of_an_evaluation_changes_nothing(tmp_path):
    plain, held = toy_learner(), toy_learner()
    for name in "ab":
        (tmp_path / name).mkdir()
    finish(make(tmp_path / "a", plain, accumulation=2).start())
    calls = []

    def watched(model, batch):
        calls.append(model.training)
        if len(calls) in (3, 6, 9) or (not model.training and calls[-2]):  # mid-step, and first of an evaluation
            background.pause()
        return loss(model, batch)

    held.loss = watched
    background = make(tmp_path / "b", held, accumulation=2)
    background.start()  # not in the line above: the thread may ask for a pause before that line has given it its name
    pauses = 0
    while background.state not in ENDED:
        if background.state == "paused":
            pauses += 1
            before = weights(held.model).clone()
            time.sleep(0.01)
            assert torch.equal(before, weights(held.model)), "paused means at rest"
            background.resume()
            while len(changes(background)) < 2 * pauses:  # the state is "paused" until the thread wakes
                time.sleep(0.001)
        time.sleep(0.001)
    assert finish(background) == "done"
    assert pauses >= 6
    assert torch.equal(weights(plain.model), weights(held.model))
    whats = [what for what, _, _ in changes(background)]
    assert whats == ["pause", "resume"] * pauses
    times = [e.time for e in events(background)]
    assert times == sorted(times), "one clock for the training's events and the thread's"


def test_commands_are_journalled_with_step_and_who_asked(tmp_path):
    background = make(tmp_path)
    at(background, 3, lambda: background.set_lr(1e-3, by="panel"))
    at(background, 5, lambda: background.evaluate(by="script"))
    at(background, 8, lambda: (background.pause(by="panel"), background.resume(by="panel")))  # undone before it began
    at(background, 9, lambda: background.pause(by="me"))
    at(background, 10, lambda: background.stop(by="panel"))
    background.start()
    until(lambda: background.state == "paused")
    background.resume(by="you")
    assert finish(background) == "stopped"
    expected = [("lr", 3, "panel"), ("evaluate", 5, "script"), ("pause", 9, "me"), ("resume", 9, "you")]
    assert changes(background) == [*expected, ("stop", 10, "panel")]
    assert [e.step for e in events(background) if isinstance(e, Evaluated)] == [5, 7, 10]
    assert {BEST, LAST} <= {path.name for path in tmp_path.iterdir()}
    assert events(background)[-1].reason == "stopped"


@pytest.mark.parametrize("command", ["stop", "pause_stop"])
def test_right_after_the_start(tmp_path, command):
    background = make(tmp_path).start()
    if command == "pause_stop":
        background.pause()
    background.stop()
    background.stop()  # and once more, without the last evaluation
    assert finish(background) == "stopped"
    assert (tmp_path / LAST / "model.safetensors").exists()
    background.stop()  # after the end: no mistake


def test_pause_right_after_the_start_holds_before_the_first_step(tmp_path):
    background = make(tmp_path)
    background.pause() if background.state == "running" else None
    background.start()
    background.pause()
    until(lambda: background.state == "paused")
    step = background.record.step
    time.sleep(0.05)
    assert background.record.step == step
    background.set_lr(2e-2)  # takes effect afterwards
    background.resume()
    assert finish(background) == "done"
    assert ("lr", step, "user") in changes(background)


def test_stop_wakes_a_pause(tmp_path):
    background = make(tmp_path)
    at(background, 4, background.pause)
    background.start()
    until(lambda: background.state == "paused")
    background.stop()
    assert finish(background) == "stopped"
    assert [what for what, _, _ in changes(background)] == ["pause", "resume", "stop"]


def test_what_is_asked_at_the_wrong_time_is_refused(tmp_path):
    background = make(tmp_path)
    for ask in (background.pause, background.resume, background.stop, background.evaluate):
        with pytest.raises(RunError, match="idle"):
            ask()
    at(background, 2, background.pause)
    background.start()
    with pytest.raises(RunError):
        background.start()
    until(lambda: background.state == "paused")
    with pytest.raises(TrainingError, match="no layer group"):
        background.set_lr(1e-3, group="heads")
    with pytest.raises(ValueError, match="positive"):
        background.set_lr(-1.0)
    background.stop()
    finish(background)
    for ask in (background.pause, background.resume, background.evaluate, lambda: background.set_lr(1e-3)):
        with pytest.raises(RunError, match="It runs once"):
            ask()


def test_commands_from_many_threads_at_once(tmp_path):
    background = make(tmp_path, num_epochs=40).start()

    def nag(number: int) -> None:
        for i in range(30):
            try:
                (background.pause, background.resume, background.evaluate)[(number + i) % 3]()
                background.set_lr(1e-3 * (1 + i))
            except RunError:
                return

    threads = [threading.Thread(target=nag, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if background.state not in ENDED:
        background.stop()
    assert finish(background) in ("stopped", "done")
    assert isinstance(events(background)[-1], Finished)


def test_an_error_ends_the_run_with_its_words_and_keeps_the_model(tmp_path):
    learner = toy_learner()
    steps = []

    def failing(model, batch):
        steps.append(model.training)
        if sum(steps) == 12:
            raise KeyError("a column")
        return loss(model, batch)

    learner.loss = failing
    background = make(tmp_path, learner).start()
    assert finish(background) == "failed"
    assert background.error == "KeyError: 'a column'"
    assert "in failing" in background.traceback
    last = events(background)[-1]
    assert (last.reason, last.message, last.step) == ("failed", background.error, 11)
    assert torch.equal(saved(tmp_path, BEST), weights(learner.model))
    assert (tmp_path / LAST).exists()


def test_an_error_does_not_keep_the_memory_of_the_failed_batch(tmp_path):
    learner, kept = toy_learner(), []

    def failing(model, batch):
        activation = torch.zeros(10)
        kept.append(weakref.ref(activation))
        raise RuntimeError("out of memory")

    learner.loss = failing
    background = make(tmp_path, learner).start()
    assert finish(background) == "failed"
    until(lambda: f"ftnb-{tmp_path.name}" not in {t.name for t in threading.enumerate()})
    gc.collect()
    assert kept[0]() is None


def test_a_loss_that_is_no_number_fails_after_a_warning_with_the_last_good_weights(tmp_path):
    learner = toy_learner()

    def nan_from_step_eight(model, batch):
        value, outputs = loss(model, batch)
        return (value * float("nan") if model.training and background.record.step >= 8 else value), outputs

    learner.loss = nan_from_step_eight
    background = make(tmp_path, learner, num_epochs=10)
    background.start()  # the loss needs the name
    assert finish(background) == "failed"
    assert "TrainingError" in background.error
    assert torch.isfinite(saved(tmp_path, LAST)).all()
    assert [e.code for e in events(background) if isinstance(e, Warned)] == ["non_finite"]


def test_a_listener_that_fails_is_dropped_and_the_training_goes_on(tmp_path):
    background = make(tmp_path)
    seen = []
    at(background, 2, lambda: 1 / 0)
    end = background.record.subscribe(seen.append)
    background.start()
    assert finish(background) == "done"
    assert [e.code for e in seen if isinstance(e, Warned)] == ["listener_failed"]
    end()
    end()  # twice is fine


def test_a_disk_full_for_a_while_costs_a_warning_and_not_the_best_model(tmp_path):
    learner, full = toy_learner(), True

    def write(place):
        if full:
            raise OSError("no space left on device")
        save_model(learner.model, str(place / "model.safetensors"))

    def make_room():
        nonlocal full
        full = False

    background = make(tmp_path, learner, write=write, num_epochs=1, eval_every=4)
    at(background, 7, make_room)  # the last step; the best so far may be of step 4
    background.start()
    assert finish(background) == "done", background.traceback
    assert "not_saved" in [e.code for e in events(background) if isinstance(e, Warned)]
    assert torch.equal(saved(tmp_path, BEST), weights(learner.model))


def test_a_model_that_cannot_be_saved_at_all_is_an_error(tmp_path):
    background = make(tmp_path, write=lambda place: 1 / 0).start()
    assert finish(background) == "failed"
    assert "could not be saved" in background.error
    assert not (tmp_path / BEST).exists()


def test_a_journal_that_cannot_be_written_does_not_stop_the_training(tmp_path, monkeypatch):
    background = make(tmp_path)

    def full(event):
        raise OSError("no space left on device")

    at(background, 2, lambda: monkeypatch.setattr(background.record.journal, "append", full))
    background.start()
    assert finish(background) == "done"
    assert background.record.lost


def test_two_at_once(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    both = [make(folder, toy_learner(seed=i)).start() for i, folder in enumerate(folders)]
    assert [finish(b) for b in both] == ["done", "done"]
    for background in both:
        steps = [e.step for e in events(background) if isinstance(e, Stepped)]
        assert steps == list(range(1, 22))


def test_warnings_before_the_journal_are_in_it_later(tmp_path):
    record = Record()
    record.warn("data", "early")
    record.open(tmp_path / JOURNAL, time.perf_counter)
    record.warn("data", "late")
    record.close()
    assert [e.message for e in read_journal(tmp_path / JOURNAL)] == ["early", "late"]


def test_an_evaluation_that_fails_keeps_what_was_trained(tmp_path):
    learner = toy_learner()

    def failing(model: nn.Module, batch):
        if not model.training:
            raise ValueError("labels out of range")
        return loss(model, batch)

    learner.loss = failing
    assert finish(background := make(tmp_path, learner).start()) == "failed"
    assert not (tmp_path / BEST).exists()
    assert torch.equal(saved(tmp_path, LAST), weights(learner.model))
    assert background.record.history.finished.reason == "failed"

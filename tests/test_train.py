"""The training loop: what can be asked of it, and what survives when something goes wrong."""

import os
import signal
import threading

import pytest
import torch
from torch import nn

from ftnb.events import Changed, Evaluate, Evaluated, Finished, Pause, SetLr, Started, Stepped, Stop, Warned
from ftnb.step import ParamGroup, Phase
from ftnb.train import Training, TrainingError
from tests.toys import Net, loss, toy_learner, weights

FAST = {"lr": 1e-2, "num_epochs": 3, "device": "cpu"}


class HeadThenFull:
    """Two phases, as linear probing before fine-tuning has."""

    def phases(self, model: Net, new_parameters: frozenset[str]) -> list[Phase]:
        def groups(trunk: float) -> list[ParamGroup]:
            return [
                ParamGroup("trunk", list(model.trunk.parameters()), trunk, [model.trunk]),
                ParamGroup("head", list(model.head.parameters()), 1.0, [model.head]),
            ]

        return [Phase("head", 1 / 3, groups(0.0)), Phase("full", 2 / 3, groups(0.1))]


def run(**changes) -> Training:
    training = Training(toy_learner(), **{**FAST, **changes})
    for _ in training:
        pass
    return training


def kinds(training: Training) -> list[str]:
    return [event.kind for event in training.log]


def test_a_training_tells_its_story_in_order():
    training = run()
    log = training.log
    assert isinstance(log[0], Started)
    assert isinstance(log[-1], Finished)
    assert (log[0].num_steps, log[0].steps_per_epoch, log[0].num_examples) == (21, 7, 50)
    assert [e.step for e in log if isinstance(e, Stepped)] == list(range(1, 22))
    assert [e.step for e in log if isinstance(e, Evaluated)] == [7, 14, 21]
    assert [e.epoch for e in log if isinstance(e, Evaluated)] == [1.0, 2.0, 3.0]
    assert log[-1].reason == "done"
    assert [e.time for e in log] == sorted(e.time for e in log)
    assert not training.model.training, "a trained model is ready to predict"


def test_it_learns_and_the_best_weights_come_back():
    training = run(num_epochs=10)
    best = max(e.metrics["accuracy"] for e in training.log if isinstance(e, Evaluated))
    assert best > 0.8
    training.load_best()
    valid = next(iter(training.learner.valid.epoch(0)))
    training.learner.metrics.reset()
    for batch in training.learner.valid.epoch(0):
        training.learner.metrics.update(training.learner.loss(training.model, batch)[1], batch)
    assert training.learner.metrics.compute()["accuracy"] == pytest.approx(best)
    assert valid is not None


@pytest.mark.parametrize("accumulation", [1, 3])
def test_two_runs_from_one_seed_are_bitwise_equal(accumulation):
    a, b = run(accumulation=accumulation), run(accumulation=accumulation)
    assert torch.equal(weights(a.model), weights(b.model))
    assert not torch.equal(weights(a.model), weights(run(accumulation=accumulation, seed=1).model))


def test_drawing_random_numbers_between_events_changes_nothing():
    training = Training(toy_learner(), **FAST)
    for _ in training:
        torch.rand(17)
    assert torch.equal(weights(training.model), weights(run().model))


def test_stepping_by_hand_is_the_same_training():
    training = Training(toy_learner(), **FAST)
    steps = []
    while (event := training.step()) is not None:
        steps.append(event.step)
    assert steps == list(range(1, 22))
    assert training.finished
    assert torch.equal(weights(training.model), weights(run().model))
    assert kinds(training) == kinds(run())


def test_predicting_in_between_does_not_leave_the_model_in_evaluation_mode():
    training = Training(toy_learner(), **FAST)
    for event in training:
        if isinstance(event, Stepped):
            training.model.eval()
    assert torch.equal(weights(training.model), weights(run().model))


def test_accumulation_counts_steps_and_examples():
    training = run(accumulation=3)
    assert training.log[0].steps_per_epoch == 3
    assert training.log[-1].step == 9


class Broken(nn.Module):
    """Raises at its n-th call, once."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.inner, self.calls, self.at = model, 0, at

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("a bad example")
        return self.inner(x)


@pytest.mark.parametrize("at", [1, 2, 9, 10, 11, 24])
def test_an_exception_loses_nothing(at):
    """Raised in a first, a middle or a last micro-batch, or in an evaluation: going on gives the same weights."""

    def build(at: int) -> Training:
        torch.manual_seed(0)
        return Training(toy_learner(model=Broken(Net(), at)), **FAST, accumulation=2)

    undisturbed, training = build(-1), build(at)
    for _ in undisturbed:
        pass
    with pytest.raises(RuntimeError, match="a bad example"):
        for _ in training:
            pass
    for _ in training:  # go on
        pass
    assert torch.equal(weights(training.model), weights(undisturbed.model))
    assert kinds(training) == kinds(undisturbed)


def test_interrupt_is_held_to_the_step_boundary_and_the_training_goes_on():
    learner, seen = toy_learner(), []

    def interrupting(model, batch):
        seen.append(1)
        if len(seen) == 4:  # in the middle of an accumulated step
            signal.raise_signal(signal.SIGINT)
        return loss(model, batch)

    learner.loss = interrupting
    training = Training(learner, **FAST, accumulation=3)
    with pytest.raises(KeyboardInterrupt):
        for _ in training:
            pass
    assert training.position.step == 2, "the step in hand was completed first"
    for _ in training:
        pass
    assert training.finished
    assert torch.equal(weights(training.model), weights(run(accumulation=3).model))
    assert [e.step for e in training.log if isinstance(e, Stepped)] == list(range(1, 10))


def test_a_second_interrupt_is_raised_at_once():
    learner = toy_learner()

    def interrupting(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch)

    training = Training(learner, **FAST, accumulation=3)
    learner.loss = interrupting
    with pytest.raises(KeyboardInterrupt):
        training.step()
    assert training.position.step == 0
    learner.loss = loss
    for _ in training:
        pass
    assert torch.equal(weights(training.model), weights(run(accumulation=3).model))


def test_stop_keeps_what_was_reached():
    training = Training(toy_learner(), **FAST)
    for event in training:
        if isinstance(event, Stepped) and event.step == 4:
            training.request(Stop())
    assert training.log[-1].reason == "stopped"
    assert [e.step for e in training.log if isinstance(e, Evaluated)] == [4], "a last evaluation"
    assert training.best.step == 4


def test_stop_before_the_first_step_and_stop_twice():
    training = Training(toy_learner(), **FAST)
    training.request(Stop())
    assert [e.kind for e in training] == ["started", "changed", "finished"]
    hurried = Training(toy_learner(), **FAST)
    hurried.step()
    hurried.request(Stop())
    hurried.request(Stop())
    assert not any(isinstance(e, Evaluated) for e in hurried), "asked twice: without the last evaluation"
    assert hurried.reason == "stopped"


def test_a_live_rate_takes_effect_at_the_next_step_and_is_said():
    training = Training(toy_learner(), **FAST, schedule="constant", warmup=0.0)
    training.step()
    training.request(SetLr(lr=5e-2))
    assert training.step().lr == pytest.approx(5e-2)
    changed = next(e for e in training.log if isinstance(e, Changed))
    assert (changed.what, changed.old, changed.new, changed.step) == ("lr", 1e-2, 5e-2, 1)


def test_a_live_rate_keeps_the_schedules_shape():
    training = Training(toy_learner(), **FAST, schedule="linear", warmup=0.0)
    plain = [e.lr for e in run(schedule="linear", warmup=0.0).log if isinstance(e, Stepped)]
    training.request(SetLr(lr=2e-2))
    doubled = [e.lr for e in training if isinstance(e, Stepped)]
    assert doubled == pytest.approx([2 * lr for lr in plain])


def test_a_rate_for_one_group_and_unknown_groups():
    training = Training(toy_learner(), HeadThenFull(), **FAST)
    with pytest.raises(TrainingError, match=r"'tail'.*trunk, head"):
        training.request(SetLr(lr=1.0, group="tail"))
    training.request(SetLr(lr=5e-3, group="head"))
    training.step()
    assert training.optimizer.param_groups[0]["name"] == "head"
    assert training.optimizer.param_groups[0]["lr"] < 5.1e-3


def test_evaluate_on_request_and_pause_is_recorded():
    training = Training(toy_learner(), **FAST)
    training.step()
    training.request(Evaluate())
    training.request(Pause())
    training.step()
    assert [e.step for e in training.log if isinstance(e, Evaluated)] == [1]
    assert [e.what for e in training.log if isinstance(e, Changed)] == ["evaluate", "pause"]


def test_eval_every_and_early_stopping():
    assert [e.step for e in run(eval_every=5).log if isinstance(e, Evaluated)] == [5, 10, 15, 20, 21]
    tired = run(lr=1e-7, num_epochs=50, patience=2)
    assert tired.log[-1].reason == "early_stopping"
    assert tired.log[-1].step < 50 * 7


def test_phases_freeze_and_thaw():
    training = Training(toy_learner(), HeadThenFull(), **FAST)
    trunk = weights(training.model.trunk)
    for event in training:
        if isinstance(event, Stepped) and event.step <= 7:
            assert torch.equal(weights(training.model.trunk), trunk), "a frozen trunk moved"
    assert not torch.equal(weights(training.model.trunk), trunk)
    assert [(e.new, e.step) for e in training.log if isinstance(e, Changed)] == [("head", 0), ("full", 7)]
    assert training.log[0].num_trainable == 34
    assert all(p.requires_grad for p in training.model.parameters()), "flags are put back at the end"


@pytest.mark.parametrize("strategy", [None, HeadThenFull()])
@pytest.mark.parametrize("at", [0, 3, 7, 10])
def test_going_on_from_a_state_is_bitwise_the_same(strategy, at):
    whole = Training(toy_learner(), strategy, **FAST)
    first = Training(toy_learner(), strategy, **FAST)
    for _ in range(at):
        whole.step()
        first.step()
    if at == 10:
        whole.request(SetLr(lr=3e-3))
        first.request(SetLr(lr=3e-3))
        whole.step(), first.step()
    second = Training(toy_learner(seed=5), strategy, **FAST)
    second.learner.train.seed = 0  # the toy's seed also orders the data
    second.load_state_dict(first.state_dict())
    for _ in whole:
        pass
    for _ in second:
        pass
    assert torch.equal(weights(whole.model), weights(second.model))
    assert second.best.value == whole.best.value


def test_a_state_of_other_settings_is_refused():
    with pytest.raises(TrainingError, match="accumulation"):
        Training(toy_learner(), **FAST).load_state_dict(Training(toy_learner(), **FAST, accumulation=2).state_dict())


def test_bad_numbers_are_said_and_never_poison_the_weights():
    learner, calls = toy_learner(), []

    def sometimes_nan(model, batch):
        calls.append(1)
        value, outputs = loss(model, batch)
        return (value * float("nan") if len(calls) == 3 else value), outputs

    learner.loss = sometimes_nan
    training = Training(learner, **FAST)
    for _ in training:
        pass
    assert torch.isfinite(weights(training.model)).all()
    warned = [e for e in training.log if isinstance(e, Warned)]
    assert [(e.code, e.step) for e in warned] == [("non_finite", 3)]
    step = next(e for e in training.log if isinstance(e, Stepped) and e.step == 3)
    assert step.loss != step.loss, "a loss that is not a number is told as such"


def test_only_bad_numbers_end_the_training_with_advice():
    learner = toy_learner()
    learner.loss = lambda model, batch: (loss(model, batch)[0] * float("nan"), loss(model, batch)[1])
    before = weights(learner.model.head)
    with pytest.raises(TrainingError, match="Lower the learning rate"):
        for _ in Training(learner, **FAST):
            pass
    assert torch.equal(weights(learner.model.head), before)


def test_somebody_elses_dice_are_noticed_in_a_thread():
    training, done = Training(toy_learner(), **FAST), threading.Event()

    def train():
        while not training.finished:
            training.advance()
            torch.rand(1)  # as another cell would, at the same time
        done.set()

    threading.Thread(target=train, daemon=True).start()
    assert done.wait(20)
    assert "rng_disturbed" in [e.code for e in training.log if isinstance(e, Warned)]


def test_a_thread_left_alone_raises_no_alarm():
    training = Training(toy_learner(), **FAST)

    def train():
        while not training.finished:
            training.advance()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(20)
    assert training.finished
    assert not any(isinstance(e, Warned) for e in training.log)


def test_bf16_on_the_cpu_trains():
    assert run(precision="bf16", num_epochs=8).best.value > 0.7


def test_nothing_to_restore_before_the_first_evaluation():
    with pytest.raises(TrainingError, match="no evaluation has finished"):
        Training(toy_learner(), **FAST).load_best()

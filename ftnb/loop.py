# Exported from nbs/18_loop.py: edit the lesson, then run `make export`.
"""The whole loop on one screen: an object that does one piece of work at a time and can be left at any point."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftnb.devices import choose_device, choose_precision, free_cached_memory, out_of_memory, to_device
from ftnb.events import Changed, Evaluated, Event, Finished, Started, Warned
from ftnb.live import EventBuffer, GeneratorWatch
from ftnb.plan import Best, Plan, Rates, Settings, TrainingError
from ftnb.schedule import lr_factor
from ftnb.step import (
    Arithmetic,
    Batch,
    Learner,
    StepInHand,
    Strategy,
    batch_size,
    build_optimizer,
    cut_batch,
    micro_batches,
    moving_buffers,
    seed_generators,
    set_modes,
    set_trainable,
)

__all__ = [
    "Position",
    "EvaluationInHand",
    "Cache",
    "Loop",
]


@dataclass
class Position:
    """Where a training is: completed steps, the epoch, batches consumed in it, the phase, the last evaluation.

    `parts` says into how many parts every batch is cut, because memory ran out with fewer.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    phase: int = -1
    evaluated_at: int = 0
    parts: int = 1


@dataclass
class EvaluationInHand:
    """One pass over the validation data, possibly half done. `loss` is a weighted sum on the device."""

    stream: Iterator[Batch]
    loss: Tensor | float = 0.0
    weight: int = 0
    seconds: float = 0.0


class Cache(Protocol):
    """What the loop needs of a cache of frozen layers."""

    def enter(self, loop: "Loop") -> None:
        """A phase begins, or goes on from a loaded state: whatever was cached may no longer fit."""
        ...

    def learner(self, loop: "Loop") -> Learner | None:
        """The learner for the next step: `loop.plain`, or one that replays; None if a piece of filling was done."""
        ...


class Loop:
    """Train a learner piece by piece: `work()` until `finished`. What happens is put into `buffer` as events."""

    def __init__(
        self, learner: Learner, strategy: Strategy, settings: Settings, cache: Cache | None = None
    ) -> None:
        self.learner, self.plain, self.settings, self.cache = learner, learner, settings, cache
        self.device = choose_device(settings.device)
        self.model = learner.model.to(self.device)
        self.precision = choose_precision(settings.precision, self.device, self.model)
        with torch.random.fork_rng(devices=[]):  # a strategy may add weights that start from random numbers
            seed_generators(torch.device("cpu"), settings.seed, -2)
            self.phases = strategy.phases(self.model, learner.new_parameters)
        shares = tuple(phase.share for phase in self.phases)
        self.plan = Plan(len(learner.train), settings.accumulation, settings.num_epochs, shares)
        self.arithmetic = Arithmetic(self.device, self.precision, settings.max_grad_norm)
        self.rates, self.position, self.best = Rates(settings.lr), Position(), Best(learner.metrics.higher_is_better)
        self.buffer = EventBuffer(eager=self.device.type == "cpu")
        self.optimizer: torch.optim.AdamW | None = None
        self.in_hand: StepInHand | None = None
        self.evaluation: EvaluationInHand | None = None
        self.reason: str | None = None  # why it finished
        self.stopping = self.evaluation_asked = False
        self._stream: Iterator[Batch] | None = None
        self._watch = GeneratorWatch()
        self._required_grad = {p: p.requires_grad for p in self.model.parameters()}
        self._began: float | None = None
        self._batch_norm = True  # whether the model has layers whose buffers move
        self._largest = 0  # examples in the largest part of the piece in hand

    def work(self) -> None:
        """Do one piece of work. An exception leaves the last completed step in place."""
        if self._began is None:
            self._start()
        full = ""
        try:
            self._piece()
        except BaseException as error:
            self.forget()
            if not out_of_memory(error):
                raise
            full = f"{type(error).__name__}: {error}"  # its words; the error holds the memory of all it passed through
        if full:
            self._use_less_memory(full)
        self._watch.mark()

    def _piece(self) -> None:
        """A micro-batch, a batch of an evaluation, or the end."""
        if self.in_hand is None and self.evaluation is None and self._evaluation_due():
            self.model.eval()
            self.learner.metrics.to(self.device)
            self.learner.metrics.reset()
            self.evaluation = EvaluationInHand(self.learner.valid.epoch(0))
        if self.evaluation is not None:
            self._evaluate(self.evaluation)
        elif self.in_hand is None and self._over():
            self._finish()
        else:
            self._train()

    def _train(self) -> None:
        """One micro-batch; after the last one of a step, the update."""
        begin = time.perf_counter()
        self.in_hand = work = self.in_hand or self._next_step()
        if work is None:
            return
        seed_generators(self.device, self.settings.seed, self.position.step, work.done)
        share = work.weights[work.done] / max(1, sum(work.weights))
        if share > 0 or not any(work.weights):  # the mean of no terms is no number
            with self.arithmetic.autocast():
                loss, _ = self.learner.loss(self.model, to_device(work.batches[work.done], self.device))
            self.arithmetic.backward(loss, share)
            work.loss = work.loss + loss.detach() * share
        work.done += 1
        norm = self._update() if work.complete else None
        work.seconds += time.perf_counter() - begin
        if norm is not None:
            self._complete(work, norm)

    def _update(self) -> Tensor:
        """Set the rates and let the optimizer step; returns the gradients' norm before clipping."""
        assert self.optimizer is not None
        s = self.settings
        factor = lr_factor(self.plan.progress(self.position.step), warmup=s.warmup, schedule=s.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates.peak(group["name"], group["multiplier"]) * factor
        norm = self.arithmetic.update(self.optimizer)
        if self.in_hand is not None:
            self.in_hand.settle(norm)
        return norm

    def _next_step(self) -> StepInHand | None:
        """Fetch the micro-batches of the next step; enter the phase it belongs to. None while a cache is filled."""
        p, s = self.position, self.settings
        if (phase := self.plan.phase_at(p.step)) != p.phase:
            self._enter(phase)
        if not self.model.training:  # after an evaluation, or when somebody predicted in between
            set_modes(self.model, self.phases[p.phase], s.batch_norm)
        if self._watch.disturbed():
            self.warn("rng_disturbed", "another cell drew random numbers while training; a repetition may differ.")
        if self.cache is not None:
            if (learner := self.cache.learner(self)) is None:
                return None
            if learner is not self.learner:
                self.learner, self._stream = learner, None
        self._stream = self._stream or self.learner.train.epoch(p.epoch, start=p.batch)
        draw = partial(seed_generators, self.device, s.seed, p.step, -1)  # for random augmentation
        batches = micro_batches(self._stream, s.accumulation, draw)
        if not batches:
            raise TrainingError(f"the training data ended after {p.batch} of {self.plan.num_batches} batches.")
        parts = [part for batch in batches for part in cut_batch(batch, p.parts)]
        weights = [self.learner.weight(part) for part in parts]
        self._largest = max(map(batch_size, parts))
        buffers = moving_buffers(self.model) if self._batch_norm else []  # looking for them takes 0.1 ms a step
        return StepInHand(parts, weights, buffers, len(batches))

    def _complete(self, work: StepInHand, norm: Tensor) -> None:
        """The step is done: move on and note it."""
        assert self.optimizer is not None
        assert isinstance(work.loss, Tensor)
        p = self.position
        p.step, p.batch, self.in_hand = p.step + 1, p.batch + work.num_batches, None
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        fields = {"step": p.step, "time": self.clock(), "epoch": p.epoch + p.batch / self.plan.num_batches, "lr": lr}
        self.buffer.add_step(fields, work.loss, norm, sum(map(batch_size, work.batches)), work.seconds)
        if p.batch >= self.plan.num_batches:
            p.epoch, p.batch, self._stream = p.epoch + 1, 0, None

    def _evaluate(self, evaluation: EvaluationInHand) -> None:
        """One batch of an evaluation; after the last one, its result."""
        begin = time.perf_counter()
        batch = next(evaluation.stream, None)
        if batch is None:
            self._conclude(evaluation)
            return
        parts = cut_batch(batch, self.position.parts)
        self._largest = max(map(batch_size, parts))
        for part in parts:
            weight, on_device = self.learner.weight(part), to_device(part, self.device)
            with torch.no_grad(), self.arithmetic.autocast():
                loss, outputs = self.learner.loss(self.model, on_device)
                self.learner.metrics.update(outputs, on_device)
            evaluation.loss = evaluation.loss + (loss.float() * weight if weight else 0.0)
            evaluation.weight += weight
        evaluation.seconds += time.perf_counter() - begin

    def _use_less_memory(self, full: str) -> None:
        """Memory ran out: from here on cut every batch into twice as many parts, with the same gradient."""
        p = self.position
        if self._largest <= 1:
            raise TrainingError(
                f"memory is full even with one example at a time ({full.splitlines()[0]}). Use shorter inputs, a "
                "smaller model, fewer layers to train (strategies 'head', 'top-k', 'lora'), or precision='bf16'."
            )
        free_cached_memory(self.device)
        old, p.parts = p.parts, 2 * p.parts
        self.add(Changed, what="parts", old=old, new=p.parts, by="memory")
        self.warn("out_of_memory", f"memory was full; from here on, batches are computed in {p.parts} parts.")

    def _conclude(self, evaluation: EvaluationInHand) -> None:
        """An evaluation is complete: note it, and keep the weights if it is the best so far."""
        p, metrics = self.position, self.learner.metrics.compute()
        best = self.best.offer(metrics[self.learner.metrics.main], p.step)
        if best:
            trained = {parameter for phase in self.phases for parameter in phase.trainable}
            self.best.keep(self.model, {name for name, q in self.model.named_parameters() if q in trained})
        self.evaluation, self.evaluation_asked, p.evaluated_at = None, False, p.step
        loss, epoch = float(evaluation.loss) / max(1, evaluation.weight), p.epoch + p.batch / self.plan.num_batches
        self.add(Evaluated, epoch=epoch, loss=loss, metrics=metrics, seconds=evaluation.seconds, best=best)

    def _start(self) -> None:
        """The first event; a training that goes on from a state has already said it."""
        self._began = time.perf_counter()
        first, metrics, plan = self.phases[0], self.learner.metrics, self.plan
        self.add(
            Started,
            num_steps=plan.num_steps,
            steps_per_epoch=plan.steps_per_epoch,
            num_epochs=plan.num_epochs,
            num_examples=self.learner.train.num_examples,
            num_parameters=sum(p.numel() for p in self.model.parameters()),
            num_trainable=sum(p.numel() for p in first.trainable),
            device=str(self.device),
            precision=self.precision,
            metric=metrics.main,
            higher_is_better=metrics.higher_is_better,
            groups=tuple(group.name for group in first.groups),
        )

    def _enter(self, index: int) -> torch.optim.AdamW:
        """Begin a phase: what trains, and a new optimizer (moments of parameters that go on training are kept)."""
        phase, old = self.phases[index], self.optimizer
        set_trainable(phase)
        set_modes(self.model, phase, self.settings.batch_norm)
        self.optimizer = build_optimizer(phase, self.settings.weight_decay, self.device)
        self._batch_norm = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in self.model.modules())
        if old is not None:
            mine = {p for group in self.optimizer.param_groups for p in group["params"]}
            self.optimizer.state.update({p: state for p, state in old.state.items() if p in mine})
        previous = self.phases[self.position.phase].name if self.position.phase >= 0 else None
        self.position.phase = index
        if len(self.phases) > 1:
            self.add(Changed, what="phase", old=previous, new=phase.name, by="strategy")
        if self.cache is not None:
            self.learner, self._stream = self.plain, None
            self.cache.enter(self)
        return self.optimizer

    def _evaluation_due(self) -> bool:
        p, every = self.position, self.settings.eval_every
        if self.evaluation_asked or p.step == p.evaluated_at:
            return self.evaluation_asked
        periodic = p.step % every == 0 if every else p.batch == 0
        return periodic or p.step == self.plan.num_steps or self.stopping

    def _over(self) -> bool:
        patience = self.settings.patience
        tired = patience is not None and self.best.misses >= patience
        return self.stopping or tired or self.position.step >= self.plan.num_steps

    def _finish(self) -> None:
        """The end: flags as they were, the model ready to predict, the last event."""
        for parameter, flag in self._required_grad.items():
            parameter.requires_grad_(flag)
        self.model.eval()
        complete = self.position.step >= self.plan.num_steps
        self.reason = "done" if complete else "stopped" if self.stopping else "early_stopping"
        self.add(Finished, reason=self.reason, best_step=self.best.step, best_value=self.best.value)

    def forget(self) -> None:
        """Throw a half-done piece of work away; the last completed step stays."""
        if self.in_hand is not None:
            self.in_hand.forget(self.model)
        self.in_hand = self.evaluation = self._stream = None
        self.model.zero_grad(set_to_none=True)

    def add(self, kind: type[Event], **fields: Any) -> None:
        """Note an event that happens now."""
        self.buffer.waiting.append(kind(step=self.position.step, time=self.clock(), **fields))

    def warn(self, code: str, message: str) -> None:
        """Note a warning."""
        self.add(Warned, code=code, message=message)

    def clock(self) -> float:
        """Seconds since the start, pauses included; goes on where a loaded state left off."""
        return time.perf_counter() - self._began if self._began is not None else 0.0

"""What a recipe will need, said before it starts: memory by lesson 24's count, and time by a short dry run.

With a trunk cache (lesson 23) it also says what each phase's cache will hold and save.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftnb.cache_forecast import savings_of
from ftnb.data import Batches
from ftnb.devices import choose_device, free_memory, to_device
from ftnb.estimate import Estimate, estimate, longest_batch
from ftnb.ledger import shares, with_numbers
from ftnb.plan import Plan, Settings
from ftnb.pretrained import ModelError, find_model
from ftnb.recipe import IN_MEMORY, Recipe, make_learner, prepare_task, training_settings
from ftnb.step import Arithmetic, Learner, build_optimizer, set_modes, set_trainable
from ftnb.strategies import NamedStrategy, strategy_from
from ftnb.tasks import TASKS, task_class
from ftnb.trunk_cache import Saving, TrunkCache
from ftnb.trunk_fill import in_words

SMALL = 200e6  # bytes of a checkpoint on disk; below it, the weights are read: they say which layers start new
DRY_RUN = 3e9  # multiplications and additions of a dry run, about half a second on one core
MOST_PARAMETERS = 3e8  # of a model that is made with random numbers for a dry run


@dataclass(frozen=True)
class Forecast:
    """What a run of a recipe will need.

    Attributes:
        estimate: of the memory.
        free: bytes of memory that are free on the device now; None where the system does not say.
        seconds: about how long it will train and evaluate; None if that is not known.
        num_steps: optimizer steps.
        savings: what the trunk cache does for each phase; empty without a cache, or if the model is too large to try.
        untried: whether there is a cache and nobody knows what it will save, since the model is too large to try.
        kept: bytes that the cache will hold in the device's memory; they are in `point` and `bound`.
    """

    estimate: Estimate
    free: int | None
    seconds: float | None
    num_steps: int
    savings: tuple[Saving, ...] = ()
    untried: bool = False
    kept: int = 0

    @property
    def point(self) -> int:
        """Bytes that it will need, as likely too high as too low."""
        return self.estimate.point + self.kept

    @property
    def bound(self) -> int:
        """Bytes that will hardly be exceeded."""
        return self.estimate.bound + self.kept

    @property
    def fits(self) -> bool | None:
        """Whether the safe bound is free; None if the estimate alone is, or nobody knows what is free."""
        if self.free is None:
            return None
        return True if self.bound <= self.free else False if self.point > self.free else None

    def line(self) -> str:
        """One or two sentences."""
        words = {True: "", None: " (it may be too much)", False: " (more than is free)"}
        room = words[self.fits if self.free else True]
        lasts = f", about {duration(self.seconds)}" if self.seconds is not None else ""
        useful = [str(saving) for saving in self.savings if not saving.reason] or self._cache_lines()[:1]
        cached = f" Trunk cache: {'; '.join(text.rstrip('.') for text in useful)}." if useful else ""
        return f"Will need about {in_words(self.point)} of memory, at most {in_words(self.bound)}{room}{lasts}.{cached}"

    def __str__(self) -> str:
        e, phase = self.estimate, self.estimate.worst
        free = f"; {in_words(self.free)} free" if self.free is not None else ""
        size = f"about {in_words(self.point)}, at most {in_words(self.bound)}"
        lines = [f"memory: {size} ({e.device}, {e.precision}{free})"]
        lines += [f"most is alive in {phase.worst}, {in_words(phase.peak)}:"]
        lines += [f"  {kind:<22} {in_words(part):>9}" for kind, part in shares(phase.parts)]
        lines += [f"beside it the trunk cache, {in_words(self.kept)}"] if self.kept else []
        if self.fits is False:
            lines += ["This is more than is free: a smaller batch with accumulation, a shorter max_length, or 'lora'."]
        lasts = f"about {duration(self.seconds)}" if self.seconds is not None else "not known before the first steps"
        lines += [f"time: {lasts} ({self.num_steps:,} steps)"]
        cached = self._cache_lines()
        return "\n".join([*lines, *(["trunk cache:"] if cached else []), *(f"  {text}" for text in cached)])

    def _cache_lines(self) -> list[str]:
        unknown = ["what it saves is not known before the start: the model is too large to try it."]
        return unknown if self.untried else [str(saving) for saving in self.savings]


def duration(seconds: float) -> str:
    """Seconds for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(recipe: Recipe, *, dry_run: bool = True) -> Forecast:
    """What a run of a recipe will need. Data are read and checked; weights are not downloaded.

    Args:
        recipe: the recipe.
        dry_run: compute one small batch for real, to know the time.

    Raises:
        ValueError: a mistake in the recipe, its data or its model, as a run would raise it.
    """
    task = prepare_without_weights(recipe)
    learner = make_learner(task, recipe)
    for batches in (learner.train, learner.valid):
        if batches.max_tokens is not None:  # most is alive in the batch of the longest texts
            batches.batch_size = batches.max_tokens // max(batches.lengths)
    numbers = training_settings(recipe)
    cache = numbers.pop("cache", None)
    return forecast_of(learner, strategy_from(recipe.strategy), Settings(**numbers), cache, dry_run=dry_run)


def forecast_of(
    learner: Learner,
    strategy: NamedStrategy,
    settings: Settings,
    cache: TrunkCache | None = None,
    *,
    dry_run: bool = True,
) -> Forecast:
    """What a training of a learner will need; its model stays as it is."""
    device = choose_device(settings.device)
    found = estimate(learner, strategy, settings)
    num_steps = Plan(len(learner.train), settings.accumulation, settings.num_epochs).num_steps
    seconds = time_of(learner, strategy, settings, found) if dry_run else None
    small = sum(p.numel() for p in learner.model.parameters()) <= MOST_PARAMETERS
    saved = savings_of(learner, strategy, settings, cache) if cache is not None and small else []
    if seconds is not None and saved:
        shares = [phase.share for phase, _ in saved]
        seconds *= sum(share / s.speedup for share, (_, s) in zip(shares, saved, strict=True)) / sum(shares)
    kept = max((s.num_bytes for _, s in saved), default=0)
    in_memory = cache is not None and cache.where == "memory" and device.type == "cpu"
    rows = tuple(saving for _, saving in saved)
    untried = cache is not None and not rows
    return Forecast(found, free_memory(device), seconds, num_steps, rows, untried, kept if in_memory else 0)


def prepare_without_weights(recipe: Recipe) -> Any:
    """The task object of a recipe, with a model without numbers unless a small checkpoint is at hand.

    Raises:
        ValueError: as a run would raise it.
    """
    gone = isinstance(recipe.data, str) and recipe.data.startswith(IN_MEMORY)
    if gone or _at_hand(recipe.model):
        return prepare_task(recipe)
    options = {name: getattr(recipe, name) for name in TASKS[recipe.task].options}
    problem: Exception | None = None
    for place in (torch.device("meta"), nullcontext()):  # some models compute with numbers while they are made
        try:
            with place:
                return task_class(recipe.task).prepare(
                    recipe.data, recipe.model, columns=recipe.columns or None, seed=recipe.seed, scratch=True, **options
                )
        except (RuntimeError, NotImplementedError, ModelError) as error:
            problem = error
    assert problem is not None
    raise problem


def _at_hand(model: str) -> bool:
    if model.startswith("torchvision:"):  # its weights may have to be fetched
        return False
    try:
        place, source = find_model(model)
    except ModelError:
        return True  # a run's own words are best
    if source == "hub":
        return False
    return sum(path.stat().st_size for path in Path(place).glob("*.safetensors")) <= SMALL


def time_of(learner: Learner, strategy: NamedStrategy, settings: Settings, found: Estimate) -> float | None:
    """Seconds that the training and its evaluations will take; None if a dry run would be too long.

    A batch of a few of the longest examples is computed twice with random numbers, and the second time gives the speed;
    operations are in proportion to padded size. A strategy with phases is timed by the phase that needs most memory.
    """
    step_flops, valid_flops = found.worst.flops
    size = sum(p.numel() for p in learner.model.parameters())
    full = min(learner.train.batch_size, learner.train.num_examples)
    count = min(full, int(DRY_RUN * full / max(1, step_flops)))
    if step_flops == 0 or count < 1 or size > MOST_PARAMETERS:
        return None
    device = choose_device(settings.device)
    arithmetic = Arithmetic(device, found.precision, settings.max_grad_norm)
    few = Batches(learner.train.examples, learner.train.collate, count, lengths=learner.train.lengths)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = with_numbers(learner.model, device)
        phase = next(p for p in strategy.phases(model, learner.new_parameters) if p.name == found.worst.name)
        set_trainable(phase)
        set_modes(model, phase, settings.batch_norm)
        optimizer = build_optimizer(phase, settings.weight_decay, device)
        computing = updating = 0.0
        for _ in range(2):  # the first time, libraries are still settling in
            begin = time.perf_counter()
            with arithmetic.autocast():
                loss, _ = learner.loss(model, to_device(longest_batch(few), device))
            arithmetic.backward(loss, 1.0)
            _wait(device)
            computing, begin = time.perf_counter() - begin, time.perf_counter()
            arithmetic.update(optimizer)
            _wait(device)
            updating = time.perf_counter() - begin
    a_batch = computing * full / count * mean_share(learner.train)
    passes = settings.num_epochs * len(learner.train)
    num_steps = Plan(len(learner.train), settings.accumulation, settings.num_epochs).num_steps
    evaluations = num_steps // settings.eval_every if settings.eval_every else settings.num_epochs
    of_valid = computing * full / count * valid_flops / step_flops * mean_share(learner.valid) * len(learner.valid)
    return passes * a_batch + num_steps * updating + evaluations * of_valid


def mean_share(batches: Batches) -> float:
    """The mean padded size of a batch, as a share of that of the longest examples' batch."""
    lengths = batches.lengths
    sizes = [len(b) * (max(lengths[i] for i in b) if lengths is not None else 1) for b in batches.order()]
    largest = min(batches.batch_size, batches.num_examples) * (max(lengths) if lengths is not None else 1)
    return float(np.mean(sizes)) / largest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

# Exported from nbs/23_trunk_cache.py: edit the lesson, then run `make export`.
"""What frozen layers make of an example never changes: compute it once, keep it, and train only what is above."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftnb.adapter_layers import is_adapter_layer
from ftnb.data import Batches
from ftnb.devices import free_memory, to_device
from ftnb.events import Changed
from ftnb.layers import layer_groups
from ftnb.loop import Loop
from ftnb.nested import take_apart
from ftnb.step import Arithmetic, Batch, Learner, Phase, seed_generators
from ftnb.strategies import apply
from ftnb.trunk_checks import (
    NoCache,
    Outcome,
    outcome,
    refuse_random,
    three_examples,
    undisturbed,
)
from ftnb.trunk_cut import (
    Cut,
    ReplayedBatches,
    Unit,
    full_leaves,
    replayed,
    replaying_learner,
    trunk_hash,
    trunk_leaves,
)
from ftnb.trunk_fill import MASK, Shelf, SplitFilling, in_words, prepare_folder, unread_parts

__all__ = [
    "speedup",
    "find_units",
    "crossing",
    "Saving",
    "Plan",
    "MIN_SPEEDUP",
    "TOLERANCE",
    "plan_cache",
    "cut_name",
    "TrunkCache",
    "named_cache",
    "cache_folder",
    "savings",
]


def speedup(share: float, num_epochs: float) -> float:
    """How much faster a training becomes if a share of each step's work is done once for all epochs.

    Source: Amdahl (1967), with the serial part being what still has to be done in every step.
    """
    return 1 / (1 - share + share / num_epochs)


def find_units(model: nn.Module, run: Callable[[], object], num_examples: int) -> tuple[list[Unit], list[Tensor]]:
    """The largest modules whose output for an example never changes, in the order in which they are computed.

    Such a module has only frozen parameters, is in eval mode with all it holds, is called once, puts out one row per
    example, and no gradient could pass through its output: nothing before it trains.

    Args:
        model: with the modes and flags of a phase.
        run: makes one forward pass with gradients; others do not count.
        num_examples: in its batch, at least 2.

    Returns:
        The modules, and what they put out in this pass.
    """
    seen: dict[nn.Module, list[_Seen]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            tensors, template = take_apart(output)
            made = [(t.detach().clone(), t.requires_grad) for t in tensors]  # somebody may change them in place
            seen.setdefault(module, []).append((made, template))

    frozen = [m for m in model.modules() if _is_frozen(m)]
    hooks = [module.register_forward_hook(note) for module in frozen]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    order = {module: i for i, module in enumerate(seen)}
    chosen = sorted(_largest(model, "", seen, num_examples), key=lambda pair: order[pair[1]])
    units, leaves = list[Unit](), list[Tensor]()
    for name, module in chosen:
        made, template = seen[module][0]
        units.append(Unit(name, module, template, range(len(leaves), len(leaves) + len(made))))
        leaves += [tensor for tensor, _ in made]
    return units, leaves


_Seen = tuple[list[tuple[Tensor, bool]], Any]  # tensors, each with whether a gradient could pass, and the structure


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    trains = any(p.requires_grad for p in parameters) or any(m.training for m in module.modules())
    return bool(parameters) and not trains


def _largest(
    module: nn.Module, name: str, seen: Mapping[nn.Module, list[_Seen]], num_examples: int
) -> Iterator[tuple[str, nn.Module]]:
    """The frozen modules inside a module that do not lie in a larger one; adapters are not looked into."""
    calls = seen.get(module, [])
    made = calls[0][0] if len(calls) == 1 else []
    if made and all(t.ndim and len(t) == num_examples and not trains for t, trains in made):
        yield name, module
    elif not is_adapter_layer(module):
        for child_name, child in module.named_children():
            yield from _largest(child, f"{name}.{child_name}".strip("."), seen, num_examples)


def crossing(
    leaves: Sequence[Tensor], whole: Outcome, outcome_of: Callable[[Sequence[Tensor]], Outcome]
) -> list[bool]:
    """Which leaves are needed above the frozen modules: those whose poisoning with NaN changes what comes out.

    Args:
        leaves: what the frozen modules put out for a batch.
        whole: loss, gradients and outputs of that batch.
        outcome_of: the same with leaves replayed.
    """

    @cache
    def enough(kept: tuple[bool, ...]) -> bool:
        try:
            return outcome_of([v if k else v * torch.nan for v, k in zip(leaves, kept, strict=True)]).same(whole)
        except Exception:  # noqa: BLE001  # a model may refuse NaN in any way
            return False

    kept = [not leaf.is_floating_point() for leaf in leaves]
    decimals = [i for i, is_kept in enumerate(kept) if not is_kept]
    for i in reversed(decimals):  # the last one is needed nearly always, and often alone
        if enough(tuple(kept)):
            break
        kept[i] = True
    for i in (i for i in decimals if kept[i]):
        kept[i] = False
        kept[i] = not enough(tuple(kept))
    return kept


@dataclass(frozen=True)
class Saving:
    """What a cache does for one phase.

    Attributes:
        phase: its name.
        cut: the frozen layers that are computed once; "" if there is no cache.
        num_bytes: what it will hold for all examples, estimated from three.
        share: the part of a step's work that is not done again, by counted multiplications.
        num_epochs: how often the phase sees each example.
        reason: why there is no cache; "" if there is one.
    """

    phase: str
    cut: str = ""
    num_bytes: int = 0
    share: float = 0.0
    num_epochs: float = 1.0
    reason: str = ""

    @property
    def speedup(self) -> float:
        """How much faster the phase's steps become, filling included, if multiplications were all that takes time."""
        return speedup(self.share, self.num_epochs)

    def __str__(self) -> str:
        if self.reason:
            return f"{self.phase}: no cache; {self.reason}"
        what = f"{self.cut} computed once ({in_words(self.num_bytes)})"
        return f"{self.phase}: {what}, up to {self.speedup:.2f} times as fast"


@dataclass(frozen=True)
class Plan:
    """A cut that was tried out on three examples, what it will save, and what of an example nobody else reads."""

    cut: Cut
    saving: Saving
    unread: list[str]


MIN_SPEEDUP = 1.05  # below it, a cache costs more memory and trouble than it saves
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.2}  # of a gradient, relative: examples computed alone or padded


def plan_cache(
    learner: Learner,
    phase: Phase,
    arithmetic: Arithmetic,
    num_epochs: float = 1.0,
    low: bool = False,
    min_speedup: float = MIN_SPEEDUP,
) -> Plan:
    """Find what a phase freezes at the bottom, and prove on three examples that replaying it gives the same.

    Args:
        learner: its model has the modes and flags of the phase.
        phase: what trains.
        arithmetic: how the training computes.
        num_epochs: how often the phase sees each example.
        low: whether decimal numbers are kept in bf16.
        min_speedup: below it, a cache is refused.

    Raises:
        NoCache: saying why there cannot be a cache, or why it is not worth having.
    """
    device, picks = arithmetic.device, three_examples(learner.train)
    refuse_random(learner.train, picks)
    examples = [learner.train.examples[i] for i in picks]
    batch = to_device(learner.train.collate(examples), device)
    units, leaves, whole = _tried(learner, batch, len(picks), arithmetic)

    def replay(leaves: Sequence[Tensor], batch: Batch = batch, count: bool = False) -> Outcome:
        with replayed(units, leaves):
            return outcome(learner, batch, arithmetic, count=count)

    again = replay(leaves, count=True)
    if not again.same(whole):
        raise NoCache("replaying the frozen layers does not give the same: the model does more than call them once.")
    cut = Cut(units, [leaf.dtype for leaf in leaves], crossing(leaves, whole, replay))
    if not any(cut.kept):
        raise NoCache("nothing above the frozen layers reads what they put out.")
    run = partial(trunk_leaves, cut, learner, arithmetic)
    filling = SplitFilling(Batches(examples, learner.train.collate, 1), run, Shelf(cut.kept, cut.dtypes, low))
    filling.finish()
    values, shapes = filling.store.batch(range(len(picks)), batch.get(MASK))
    known = {i: value.to(device) for i, value in enumerate(values) if value is not None}
    off = float("inf")
    with suppress(RuntimeError, ValueError, IndexError):  # shapes that do not fit
        off = replay(full_leaves(cut, known, shapes)).distance(whole)
    if not off <= TOLERANCE["bf16" if low else arithmetic.precision]:
        raise NoCache(
            "what the frozen layers make of an example depends on how far its batch is padded (its gradient is "
            f"{off:.1%} off), so there is no single value to keep. A norm over time does this."
        )
    share = 1 - again.flops / max(1, whole.flops)
    name, num_bytes = cut_name(learner, cut), filling.bytes_of(learner.train, learner.valid, picks)
    if speedup(share, num_epochs) < min_speedup:
        frozen = f"{name}, all that is frozen at the bottom, is {share:.1%} of a step's work"
        epochs = f"{num_epochs:.3g} epoch{'s' * (num_epochs != 1)}"
        raise NoCache(f"{frozen}, and the phase has {epochs}: too little to save.")

    def same_without(light: list[Any]) -> bool:
        try:
            return replay(leaves, to_device(learner.train.collate(light), device)).same(whole)
        except Exception:  # noqa: BLE001  # a loss that misses something may complain in any way
            return False

    saving = Saving(phase.name, name, num_bytes, share, num_epochs)
    return Plan(cut, saving, unread_parts(examples, same_without))


def _tried(
    learner: Learner, batch: Batch, num_examples: int, arithmetic: Arithmetic
) -> tuple[list[Unit], list[Tensor], Outcome]:
    """The frozen modules, what they put out for a batch, and what the batch gives; refuses what is random."""
    whole: list[Outcome] = []
    compute = partial(outcome, learner, batch, arithmetic, count=True)
    units, leaves = find_units(learner.model, lambda: whole.append(compute()), num_examples)
    if not units:
        raise NoCache("nothing at the bottom of the model is frozen.")
    cut = Cut(units, [leaf.dtype for leaf in leaves], [True] * len(leaves))
    with undisturbed(learner.model, arithmetic.device):
        seed_generators(arithmetic.device, 1)
        again = trunk_leaves(cut, learner, arithmetic, batch)
    pairs = [(a.float(), b.float()) for a, b in zip(leaves, again, strict=True)]
    if not all((a - b).norm() <= 0.01 * b.norm() + 1e-6 for a, b in pairs):
        raise NoCache("what the frozen layers put out is random: there is a mask or dropout between them.")
    return units, leaves, whole[0]


def cut_name(learner: Learner, cut: Cut) -> str:
    """The layer groups that are wholly inside the frozen modules: "embeddings – block 4"."""
    inside = {p for unit in cut.units for p in unit.module.parameters()}
    groups = layer_groups(learner.model, learner.new_parameters)
    names = [g.name for g in groups if inside.issuperset(map(learner.model.get_parameter, g.parameters))]
    names = names or [unit.name for unit in cut.units]
    return names[0] if len(names) == 1 else f"{names[0]} – {names[-1]}"


class TrunkCache:
    """Keeps what frozen layers put out for every example; a training asks it at each phase.

    Args:
        where: "memory" or "disk".
        max_gb: the most it may hold, in GB; None is half of what is free.
        low: keep decimal numbers in bf16, in half the space.
        min_speedup: a phase that would gain less has no cache.
        folder: for files; None is the folder `ftnb/trunks` in the user's cache. Files used longest ago make room.

    Attributes:
        saving: what it does for the present phase.
        seconds: time spent on planning and filling for it.
    """

    def __init__(
        self,
        where: str = "memory",
        *,
        max_gb: float | None = None,
        low: bool = False,
        min_speedup: float = MIN_SPEEDUP,
        folder: Path | None = None,
    ) -> None:
        if where not in ("memory", "disk"):
            raise ValueError(f"where must be 'memory' or 'disk', got {where!r}.")
        self.where, self.max_gb, self.low, self.folder = where, max_gb, low, folder or cache_folder()
        self.min_speedup = min_speedup
        self.saving: Saving | None = None
        self.seconds = 0.0
        self._phase: Phase
        self._plan: Plan | None = None
        self._learner: Learner | None = None
        self._fillings: list[SplitFilling] = []
        self._told: str | None = None  # what was said of it last
        self._served = False  # whether some phase had a cache

    def foretell(self, loop: Loop) -> list[Saving]:
        """What it would do for each phase of a training; nothing is kept, and the model is left as it was."""
        return savings(loop, low=self.low)

    def enter(self, loop: Loop) -> None:
        """Forget what was kept for another phase; the plan for this one is made before its first step."""
        self._abandon()
        self._phase = loop.phases[loop.position.phase]
        self.saving, self.seconds, self._plan, self._learner, self._fillings = None, 0.0, None, None, []

    def learner(self, loop: Loop) -> Learner | None:
        """The learner for the next step; None after a piece of planning or filling."""
        if self._learner is not None:
            return self._learner
        begin = time.perf_counter()
        try:
            self._learner = self._work(loop)
        except (NoCache, OSError, torch.OutOfMemoryError) as reason:  # OSError: the disk
            self._abandon()
            self.saving, self._learner = Saving(self._phase.name, reason=str(reason)), loop.plain
            if self._served:  # a phase before this one had a cache: no surprise
                self._tell(loop, str(self.saving))
            else:
                loop.warn("no_trunk_cache", str(self.saving))
        self.seconds += time.perf_counter() - begin
        if self._learner is not None and self._learner is not loop.plain:
            self._say(loop)
        return self._learner

    def _work(self, loop: Loop) -> Learner | None:
        """One piece of planning or filling."""
        if self._plan is None:
            num_epochs = self._phase.share * loop.plan.num_epochs
            self._plan = plan_cache(loop.plain, self._phase, loop.arithmetic, num_epochs, self.low, self.min_speedup)
            self.saving = self._plan.saving
            self._fillings = [self._filling(loop, loop.plain.train, self._budget())]
            self._tell(loop, f"planned: {self.saving}")
        elif self._fillings[-1].work():
            if len(self._fillings) == 2:
                train, valid = (ReplayedBatches(f.light_batches(), f.store) for f in self._fillings)
                return replaying_learner(loop.plain, self._plan.cut, train, valid)
            left = self._fillings[0].shelf.budget - self._fillings[0].store.num_bytes
            self._fillings.append(self._filling(loop, loop.plain.valid, left))
        return None

    def _filling(self, loop: Loop, batches: Batches, budget: int) -> SplitFilling:
        assert self._plan is not None
        cut, folder, key = self._plan.cut, None, ""
        if self.where == "disk":
            scope = f"{loop.precision} {loop.device} {torch.__version__} {torch.get_num_threads()} threads"
            folder, key = self.folder, f"{trunk_hash(cut)} {self.low} {scope}"
        shelf = Shelf(cut.kept, cut.dtypes, self.low, budget, folder, key)
        return SplitFilling(batches, partial(trunk_leaves, cut, loop.plain, loop.arithmetic), shelf, self._plan.unread)

    def _budget(self) -> int:
        """Bytes that may be filled, checked before anything is.

        Raises:
            NoCache: if the estimate is above them.
        """
        assert self.saving is not None
        if self.where == "disk":
            return prepare_folder(self.folder, self.saving.num_bytes, self.max_gb)
        free = free_memory(torch.device("cpu")) or 2**40
        budget = int(self.max_gb * 1e9) if self.max_gb is not None else free // 2
        if self.saving.num_bytes > budget:
            raise NoCache(
                f"it would need {in_words(self.saving.num_bytes)} of memory and may take {in_words(budget)}. "
                "Keep it on the disk, or in bf16, or allow more."
            )
        return budget

    def _say(self, loop: Loop) -> None:
        """Tell what is kept, since it changes the arithmetic (within rounding)."""
        assert self.saving is not None
        held, fillings = sum(f.store.num_bytes for f in self._fillings), self._fillings
        if any(f.damaged for f in fillings):
            loop.warn("trunk_cache_damaged", f"a file in {self.folder} was damaged; it was made again.")
        how = "in bf16 " if self.low else ""
        how += "read from the disk" if all(f.from_file for f in fillings) else f"filled in {self.seconds:.1f} s"
        new = f"{self.saving.cut} kept {'on the disk' if self.where == 'disk' else 'in memory'}"
        self._tell(loop, f"{new}: {in_words(held)} {how}")
        self._served = True

    def _tell(self, loop: Loop, new: str) -> None:
        loop.add(Changed, what="trunk_cache", old=self._told, new=new, by="training")
        self._told = new

    def _abandon(self) -> None:
        for filling in self._fillings:
            filling.abandon()


def named_cache(name: str, max_gb: float | None = None) -> TrunkCache:
    """A cache by the name that a recipe has for it: "memory", "disk", "memory-bf16" or "disk-bf16"."""
    return TrunkCache(name.removesuffix("-bf16"), max_gb=max_gb, low=name.endswith("-bf16"))


def cache_folder() -> Path:
    """Where files go when nobody says otherwise."""
    root = os.environ.get("FTNB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ftnb"
    return Path(root).expanduser() / "trunks"


def savings(training: Loop, *, low: bool = False) -> list[Saving]:
    """What a cache would do for each phase of a training, before it starts; the model is left as it was."""
    rows = []
    for phase in training.phases:
        undo = apply(phase, training.model)
        try:
            num_epochs = phase.share * training.plan.num_epochs
            rows.append(plan_cache(training.plain, phase, training.arithmetic, num_epochs, low).saving)
        except NoCache as reason:
            rows.append(Saving(phase.name, reason=str(reason)))
        finally:
            undo()
    return rows

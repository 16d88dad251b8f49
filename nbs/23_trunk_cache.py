# %% [markdown]
# # Never compute a frozen layer twice
#
# > What frozen layers make of an example never changes: compute it once, keep it, and train only what is above.
#
# At the end you can say how much faster a training becomes if its frozen layers are computed once, build such a cache by hand in twenty lines, use ours on any model, and tell from its words when there cannot be one. Runs in about 30 s on a CPU.

# %%
#| default_exp trunk_cache

# %%
#| export
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

# %%
import statistics
import tempfile

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from ftnb.adapters import LoRA
from ftnb.builtin.reviews import labelled_reviews
from ftnb.events import Warned
from ftnb.layers import what_is_training
from ftnb.metrics import classification_metrics
from ftnb.pretrained import load_pretrained
from ftnb.strategies import LPFT, Full, Head, TopK
from ftnb.train import Training

torch.set_num_threads(1)

# %% [markdown]
# ## The same numbers, epoch after epoch
#
# Train the head and the last block of BERT for ten epochs. The blocks below are frozen: no dropout, no gradient, always the same weights. For one review they put out the same numbers in epoch 1, in epoch 2, … and most of the time of every step goes into computing them again. Put them away in the first pass, and read them afterwards.
#
# By hand, for a BERT of two blocks with the first one frozen. What the last block receives crosses the **cut**: everything below it is the **trunk**. Each review is computed alone, so that only real tokens are kept and no padding.

# %%
LABELS = ["negative", "positive"]
start = load_pretrained("builtin:bert-reviews", "text-classification", LABELS)
bert, tokenizer = start.model.eval(), start.processor

def tokens(reviews: list[dict[str, str]]) -> list[dict[str, Any]]:
    ids = tokenizer([review["text"] for review in reviews])["input_ids"]
    return [{"input_ids": i, "labels": LABELS.index(r["label"])} for i, r in zip(ids, reviews, strict=True)]

def pad(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return dict(tokenizer.pad(examples, return_tensors="pt"))

examples = tokens(labelled_reviews("train"))
[len(example["input_ids"]) for example in examples[:8]]

# %%
kept: dict[int, Tensor] = {}

def fill(i: int) -> None:
    def keep(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[i] = inputs[0][0]  # (tokens, width)

    hook = bert.bert.encoder.layer[1].register_forward_pre_hook(keep)
    with torch.no_grad():
        bert(**pad([examples[i]]))
    hook.remove()

for i in range(len(examples)):
    fill(i)
kept[0].shape, in_words(sum(tensor.nbytes for tensor in kept.values()))

# %% [markdown]
# To replay them, the two frozen modules stop computing and hand out what is kept, filled up with zeros as the batch is. What zeros stand where padding was does not matter: the attention mask hides it. Attention to padding gets weight 0, not a small number.

# %%
def replay(numbers: list[int]) -> Tensor:
    crossing = nn.utils.rnn.pad_sequence([kept[i] for i in numbers], batch_first=True)  # (batch, tokens, width)
    frozen = (bert.bert.embeddings, bert.bert.encoder.layer[0])
    for module in frozen:
        module.forward = lambda *_, **__: crossing
    logits = bert(**pad([examples[i] for i in numbers])).logits
    for module in frozen:
        del module.forward  # the class's own is back
    return logits

with torch.no_grad():
    replayed_logits, logits = replay(list(range(16))), bert(**pad(examples[:16])).logits
(replayed_logits - logits).abs().max().item()

# %%
assert (replayed_logits - logits).abs().max() < 1e-5

# %% [markdown]
# Not zero, since sums over 16 rows of one length and of another are rounded otherwise; but rounding is all there is.
#
# ## What it can save
#
# Say a block's forward pass costs 1. Its backward pass costs 2: one for the gradient of its weights, one for the gradient of its input. With $L$ blocks of which the last $k$ train, a step costs $L$ forward and $2k$ backward, less 1 if the first block that trains needs no gradient of its input. With the cache there are only the $k$ upper blocks, $k + 2k - 1$, and the trunk's $L-k$ once for all $E$ epochs:
#
# $$\text{speed-up} \le \frac{L+2k-1}{3k-1+(L-k)/E} = \frac{1}{1-s+s/E}, \qquad s = \frac{L-k}{L+2k-1}.$$
#
# This is Amdahl's law with $s$ the share of a step that is not done again. If the head alone trains, $s = 1$ and the bound is $E$.

# %%
#| export
def speedup(share: float, num_epochs: float) -> float:
    """How much faster a training becomes if a share of each step's work is done once for all epochs.

    Source: Amdahl (1967), with the serial part being what still has to be done in every step.
    """
    return 1 / (1 - share + share / num_epochs)

# %%
def block_share(num_layers: int, k: int) -> float:
    return (num_layers - k) / (num_layers + 2 * k - 1) if k else 1.0

{(L, k, E): round(speedup(block_share(L, k), E), 2) for L, k, E in ((6, 1, 4), (12, 1, 10), (12, 4, 10), (12, 0, 10))}

# %%
assert round(speedup(block_share(6, 1), 4), 2) == 2.15 and speedup(1.0, 10) == 10

# %% [markdown]
# The bound is kind in one place: even the first block that trains needs most of its input gradients, since inside it everything but three matrices (queries, keys, values: 3 of its 12 parts) lies behind something that trains. Counting multiplications tells how kind. Here is a BERT of six blocks with random weights, and what one batch costs with and without what is frozen.

# %%
def small_bert(num_layers: int = 6, width: int = 192) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=num_layers, num_labels=2, **sizes))

def learner(model: nn.Module, num_train: int = 128, num_valid: int = 16, batch_size: int = 16) -> Learner:
    def batches(split: str, n: int, shuffle: bool) -> Batches:
        rows = tokens(labelled_reviews(split, n))
        return Batches(rows, pad, batch_size, lengths=[len(row["input_ids"]) for row in rows], shuffle=shuffle)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**batch)
        return outputs.loss, outputs

    head = frozenset(name for name, _ in model.named_parameters() if name.startswith("classifier"))
    return Learner(model, batches("train", num_train, True), batches("valid", num_valid, False), loss, classification_metrics(2), new_parameters=head)

# %%
def counted(model: nn.Module, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return counter.get_total_flops()

six, batch = small_bert().eval(), pad(examples[:16])
undo = apply(TopK(1).phases(six, learner(six).new_parameters)[0], six)
whole = counted(six, batch)
once = whole - counted(small_bert(1).requires_grad_(True), batch)  # a single block that trains, on embeddings that do
f"bound: {block_share(6, 1):.3f} of a step; counted: about {once / whole:.3f}"

# %% [markdown]
# About: the single block above also computes the gradient of its input. The exact count comes below, where the same model is run with its trunk replayed.
#
# ## Where to cut, on any model
#
# By hand it was easy: we knew BERT. For a ResNet, a wav2vec 2.0, or a detector with a pyramid on four levels of its backbone we want the model itself to say it. A module's output never changes if
#
# 1. all its parameters are frozen, and it and all inside it are in eval mode;
# 2. nothing before it trains. PyTorch knows: run a forward pass *with* gradients; if the output does not require one, no trained weight had a hand in it.
#
# We take the largest such modules. Adapters need no special rule: a block with LoRA inside has weights that train, so it is not frozen, and neither is what comes after it.

# %%
#| export
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

# %%
def units_of(model: nn.Module, strategy: Any, inputs: dict[str, Tensor]) -> list[str]:
    undo = apply(strategy.phases(model, frozenset(n for n, _ in model.named_parameters() if "classifier" in n))[0], model)
    units, leaves = find_units(model, lambda: model(**inputs), 2)
    undo()
    return [f"{unit.name} {[tuple(leaves[i].shape) for i in unit.leaves]}" for unit in units]

undo()
two = pad(examples[:2])
units_of(small_bert(3), TopK(1), two)

# %%
units_of(small_bert(3), Head(), two)  # the whole backbone is one module: tokens, and a pooled vector

# %%
resnet = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic"))
units_of(resnet, TopK(1), {"pixel_values": torch.randn(2, 3, 32, 32)})

# %%
units_of(small_bert(3), LoRA(rank=2), two)

# %%
assert len(units_of(small_bert(3), TopK(1), two)) == 3 and len(units_of(small_bert(3), LoRA(rank=2), two)) == 1
assert units_of(small_bert(3), Full(), two) == []

# %% [markdown]
# ## What crosses the cut
#
# Only some of what these modules put out is read above. Keeping the rest would cost memory: of a whole BERT under a classifier, the pooled vector is needed, not the numbers of every token. Which tensors matter is found by **poison**: replay all, but put NaN in the place of one. NaN spoils everything that it touches, so if loss, gradients and outputs stay equal bit for bit, nobody read it. The modules themselves are then replaced by stand-ins that give kept tensors, or zeros of the right shape (`ftnb.trunk_cut`).

# %%
#| export
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

# %%
def what_crosses(model: nn.Module, strategy: Any) -> dict[str, bool]:
    of, arithmetic = learner(model), Arithmetic(torch.device("cpu"))
    undo = apply(strategy.phases(model, of.new_parameters)[0], model)
    found: list[Outcome] = []
    units, leaves = find_units(model, lambda: found.append(outcome(of, two, arithmetic)), 2)

    def outcome_of(leaves: Sequence[Tensor]) -> Outcome:
        with replayed(units, leaves):
            return outcome(of, two, arithmetic)

    needed = crossing(leaves, found[0], outcome_of)
    undo()
    return {f"{unit.name} {tuple(leaves[i].shape)}": needed[i] for unit in units for i in unit.leaves}

what_crosses(small_bert(3), TopK(1))

# %%
what_crosses(small_bert(3), Head())

# %%
assert list(what_crosses(small_bert(3), TopK(1)).values()) == [False, False, True]
assert list(what_crosses(small_bert(3), Head()).values()) == [False, True]

# %% [markdown]
# A detector's or a segmenter's pyramid reads several levels of its backbone; then several tensors are kept (lessons 34 and 35 train such models).
#
# ## Proof before the start
#
# A cache that is wrong is worse than none, and it would be wrong in silence. So before a phase begins, a plan is tried out on three examples, a short, a middle and a long one. It must give the same loss, gradients and outputs bit for bit when the trunk's own numbers are replayed; the trunk must give the same under other random numbers; examples that were computed alone must give the same, up to rounding, as in their padded batch. If one of these fails, there is a reason in words and no cache. The same trial counts multiplications, so that what the cache will save is known before it is filled.

# %%
#| export
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

# %%
#| export
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

# %%
#| export
def cut_name(learner: Learner, cut: Cut) -> str:
    """The layer groups that are wholly inside the frozen modules: "embeddings – block 4"."""
    inside = {p for unit in cut.units for p in unit.module.parameters()}
    groups = layer_groups(learner.model, learner.new_parameters)
    names = [g.name for g in groups if inside.issuperset(map(learner.model.get_parameter, g.parameters))]
    names = names or [unit.name for unit in cut.units]
    return names[0] if len(names) == 1 else f"{names[0]} – {names[-1]}"

# %% [markdown]
# ## The cache
#
# The rest is bookkeeping. The loop of lesson 18 asks before each step for the learner to take it with. `TrunkCache` plans, fills a little whenever it is asked (so that one can pause or stop meanwhile), and then gives a learner whose batches carry the kept tensors. A new phase has another cut, so everything begins anew; a phase without anything frozen gets no cache.
#
# In `ftnb.trunk_fill` examples of equal shape are computed together, without any padding. What comes out is a function of weights, data, batch size and number format alone: filled again, it is the same bit for bit, and a run that goes on after a stop fills it again. Files (`ftnb.trunk_store`) are named by a hash of all that, carry a hash of their bytes, and stay within a budget that is checked first.

# %%
#| export
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

# %%
#| export
def named_cache(name: str, max_gb: float | None = None) -> TrunkCache:
    """A cache by the name that a recipe has for it: "memory", "disk", "memory-bf16" or "disk-bf16"."""
    return TrunkCache(name.removesuffix("-bf16"), max_gb=max_gb, low=name.endswith("-bf16"))


def cache_folder() -> Path:
    """Where files go when nobody says otherwise."""
    root = os.environ.get("FTNB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ftnb"
    return Path(root).expanduser() / "trunks"

# %%
#| export
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

# %%
for saving in savings(Training(learner(small_bert(6)), LPFT(), num_epochs=20, device="cpu")):
    print(saving)

# %% [markdown]
# The table of lesson 20 says it, too, when it is given a training with a cache; `ftnb estimate` and the panel say it for a recipe.

# %%
told = what_is_training(Training(learner(small_bert(6)), TopK(1), num_epochs=4, device="cpu", cache=TrunkCache()))
told

# %%
assert "block 4 computed once" in told.notes[0] and "times as fast" in told.notes[0]

# %%
exact = savings(Training(learner(small_bert(6)), TopK(1), num_epochs=4, device="cpu"))[0]
f"share of a step that is not done again: bound {block_share(6, 1):.3f}, counted {exact.share:.3f}"

# %%
assert 0.9 * block_share(6, 1) < exact.share < block_share(6, 1)

# %% [markdown]
# ## The experiment: is it the same, and how fast?
#
# **Claim 1.** With and without the cache a training ends with the same weights, up to rounding; two trainings with it end with the same, bit for bit.

# %%
def trained(strategy: Any, cache: TrunkCache | None) -> Training:
    model = load_pretrained("builtin:bert-reviews", "text-classification", LABELS).model
    training = Training(learner(model), strategy, lr=1e-3, num_epochs=4, device="cpu", cache=cache)
    list(training)
    return training

without_it, with_it, once_more = (trained(TopK(1), of) for of in (None, TrunkCache(), TrunkCache()))
print(*(event.new for event in with_it.log if isinstance(event, Changed)), sep="\n")
pairs = zip(without_it.model.named_parameters(), with_it.model.parameters(), strict=True)
sorted(((p - q).abs().max().item(), name) for (name, p), q in pairs)[:-4:-1]

# %% [markdown]
# All but one agree to the last digits, and one is far off: the bias of the keys. Adding one vector to every key adds the same number to all scores of a query, and a softmax does not see that: in exact arithmetic this bias has no gradient. What it gets is rounding noise, which AdamW divides by its own size and takes a full step along. It does nothing, so nothing is lost; but whoever compares two trainings weight by weight should know it. We leave it out.

# %%
def weights(training: Training, every: bool = False) -> Tensor:
    named = training.model.named_parameters()
    return torch.cat([p.detach().flatten() for name, p in named if every or not name.endswith("key.bias")])

difference = (weights(without_it) - weights(with_it)).abs().max().item()
difference, torch.equal(weights(with_it, every=True), weights(once_more, every=True))

# %%
assert difference < 1e-5 and torch.equal(weights(with_it, every=True), weights(once_more, every=True))

# %% [markdown]
# **Claim 2.** The speed-up grows with the number of epochs along the counted curve. Two trainings, with the cache and without, take turns step by step, so that whatever else the machine does hits both; after each epoch we note the seconds that each has used so far, planning, filling and evaluating included. It would be refuted if the cached one were not clearly faster in the end.

# %%
def ratio_after_each_epoch(strategy: Any, num_epochs: int) -> list[float]:
    pair = [Training(learner(small_bert(6), 80), strategy, num_epochs=num_epochs, device="cpu", cache=of) for of in (None, TrunkCache())]
    seconds, ratios = [0.0, 0.0], []
    while not pair[0].finished:
        for i, training in enumerate(pair):
            begin, step = time.process_time(), training.position.step
            while training.position.step == step and not training.finished:
                training.work()
            seconds[i] += time.process_time() - begin
        if pair[0].position.batch == 0 and len(ratios) < pair[0].position.epoch:
            ratios.append(seconds[0] / seconds[1])
    return ratios

E, NUM_PAIRS = 4, {1: 3, 0: 2}
measured = {k: [ratio_after_each_epoch(TopK(k) if k else Head(), E) for _ in range(n)] for k, n in NUM_PAIRS.items()}
{k: [round(statistics.median(of), 2) for of in zip(*runs, strict=True)] for k, runs in measured.items()}

# %%
counted_share = {k: savings(Training(learner(small_bert(6)), TopK(k) if k else Head(), num_epochs=E, device="cpu"))[0].share for k in (1, 0)}
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9), dpi=80, layout="constrained")
for ax, (k, runs) in zip(axes, measured.items(), strict=True):
    epochs, columns = range(1, E + 1), list(zip(*runs, strict=True))
    ax.plot(epochs, [speedup(counted_share[k], n) for n in epochs], "C0-", lw=3, alpha=0.4, label="counted before the start")
    ax.plot(epochs, [speedup(block_share(6, k), n) for n in epochs], "k:", label="bound")
    ax.plot(epochs, [statistics.median(of) for of in columns], "C1o-", ms=4, label="measured")
    ax.fill_between(epochs, list(map(min, columns)), list(map(max, columns)), color="C1", alpha=0.25)
    ax.axhline(1, color="0.8", lw=0.8, zorder=0)
    ax.set(xlabel="epochs", ylabel="times as fast", title="last block and head train" if k else "head alone trains")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %%
last = {k: statistics.median(run[-1] for run in runs) for k, runs in measured.items()}
{k: f"{last[k]:.2f} times as fast after {E} epochs; counted {speedup(counted_share[k], E):.2f}, bound {speedup(block_share(6, k), E):.2f}" for k in last}

# %%
assert last[1] > 1.1 and last[0] > 1.3

# %% [markdown]
# The measured curve lies below the counted one, for two reasons that both weigh more the smaller the job is. A step also pays for what is no multiplication (dropout, norms, AdamW, collating, Python), and that stays. And the first epoch pays for planning and filling: here an epoch has only five steps, and planning costs about as much as some of them. `make bench` measures the same on a pretrained MiniLM and real sentences. With a single epoch there is nothing to gain, and no cache is made.

# %% [markdown]
# ## Where it fails, in its own words
#
# The cache stands back whenever it cannot be right or is not worth it, before the first step, and the training goes on without it.

# %%
def refusal(strategy: Any, cache: TrunkCache, **kinds: Any) -> str:
    training = Training(learner(small_bert(3, 64)), strategy, device="cpu", cache=cache, **kinds)
    training.step()
    return next(event.message for event in training.log if isinstance(event, Warned))

for why in (
    refusal(Full(), TrunkCache()),
    refusal(LoRA(rank=2), TrunkCache()),
    refusal(TopK(1), TrunkCache(), num_epochs=1),
    refusal(TopK(1), TrunkCache(max_gb=1e-4)),
):
    print(why)

# %% [markdown]
# Memory is the price: a token of a BERT-base takes 768 numbers, 3 KB, or half of it in bf16 (`low=True`, which is no longer the same up to rounding); 25,000 reviews of 250 tokens come to 19 GB. If the head alone trains, one vector for each review is left, 77 MB. Pictures that are flipped or cropped at random have no single value to keep: the cache refuses them, and keeping several views of each would multiply the memory.
#
# A file that is not what it was is noticed:

# %%
folder = Path(tempfile.mkdtemp())
trained(TopK(1), TrunkCache("disk", folder=folder))
file = next(folder.glob("*.trunk"))
data = bytearray(file.read_bytes())
data[1000] ^= 1  # one bit
file.write_bytes(data)
after = trained(TopK(1), TrunkCache("disk", folder=folder))
[event.message if isinstance(event, Warned) else event.new for event in after.log if isinstance(event, Warned | Changed)]

# %%
assert torch.equal(weights(after, every=True), weights(with_it, every=True))

# %% [markdown]
# ## The story: frozen, but not constant
#
# For years Keras had a trap. `layer.trainable = False` froze a BatchNorm layer's weights, but in training the layer still normalised with the *batch's* mean, not with its stored one. What a "frozen" network made of a picture depended on the other pictures in the batch; models that had trained well were useless afterwards (V. Vryniotis, "The Batch Normalization layer of Keras is broken", 2018). Since TensorFlow 2.0 a frozen BatchNorm layer runs in inference mode. PyTorch still leaves it to you: `requires_grad_(False)` says nothing of the mode. Such a layer's output is no function of the example, so no cache may keep it.

# %%
torch.manual_seed(0)
frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False).train()
picture, others = torch.randn(1, 4), torch.randn(2, 7, 4)
[frozen(torch.cat([picture, of]))[0].tolist()[:2] for of in others]  # the same picture in two batches

# %%
model = nn.Sequential(frozen, nn.Linear(4, 2))
in_train_mode, _ = find_units(model, lambda: model(others[0]), 7)
frozen.eval()
in_eval_mode, _ = find_units(model, lambda: model(others[0]), 7)
[unit.name for unit in in_train_mode], [unit.name for unit in in_eval_mode]

# %%
assert "0.1" not in [unit.name for unit in in_train_mode] and [unit.name for unit in in_eval_mode] == ["0"]

# %% [markdown]
# ## Exercises
#
# **1 (easy).** From how many epochs on is a training at least `wanted` times as fast, going by the bound? None if it never is.

# %% tags=["exercise"]
def epochs_for(wanted: float, num_layers: int, k: int) -> int | None:
    ...  # your code here

# %% tags=["solution"]
def epochs_for(wanted: float, num_layers: int, k: int) -> int | None:
    share = block_share(num_layers, k)
    if speedup(share, 10**9) <= wanted:
        return None
    return next(n for n in range(1, 10**6) if speedup(share, n) >= wanted)

# %%
assert epochs_for(2.0, 6, 1) == 4 and epochs_for(3.0, 12, 1) == 5 and epochs_for(4.0, 6, 1) is None

# %% [markdown]
# **2 (medium).** How many bytes does the cache of lesson 22's kind of task take? Write it for texts of the given lengths, a width, and 4 or 2 bytes a number; `head_only` keeps one vector for each text.

# %% tags=["exercise"]
def bytes_needed(lengths: list[int], width: int, num_bytes: int = 4, head_only: bool = False) -> int:
    ...  # your code here

# %% tags=["solution"]
def bytes_needed(lengths: list[int], width: int, num_bytes: int = 4, head_only: bool = False) -> int:
    return width * num_bytes * (len(lengths) if head_only else sum(lengths))

# %%
assert bytes_needed([len(e["input_ids"]) for e in examples], bert.config.hidden_size) == sum(t.nbytes for t in kept.values())
assert bytes_needed([250] * 25_000, 768, head_only=True) == 76_800_000

# %% [markdown]
# **3 (harder).** A strategy may freeze *more* as it goes on (Egeria does). Write the speed-up of a training of $E$ epochs whose first `warm` epochs train everything ($3L - 1$ each) and whose others train the last `k` blocks with a cache, against training everything all the time.

# %% tags=["exercise"]
def freezing_speedup(num_layers: int, k: int, num_epochs: int, warm: int) -> float:
    ...  # your code here

# %% tags=["solution"]
def freezing_speedup(num_layers: int, k: int, num_epochs: int, warm: int) -> float:
    everything = 3 * num_layers - 1
    rest = (num_epochs - warm) * (3 * k - 1) + (num_layers - k)
    return num_epochs * everything / (warm * everything + rest)

# %%
assert round(freezing_speedup(12, 2, 10, 2), 2) == 2.92

# %% [markdown]
# ## Summary
# - Frozen means constant, if it also means eval mode: then a trunk's output can be computed once and replayed.
# - The bound is Amdahl's law: $1/(1-s+s/E)$ with $s = (L-k)/(L+2k-1)$. It pays with few trained layers and several epochs.
# - The model itself tells where to cut (no gradient passes) and what crosses (NaN does).
# - A cache is proved on three examples before it is filled, stands back with a reason, and changes rounding only.
#
# **What next:** lesson 24 estimates memory and time before a start; in a recipe (lesson 50) it is `trunk_cache = "memory"`. Try `strategy = "head"` on `google-bert/bert-base-uncased`. **Sources:** Liu et al. (2021), "AutoFreeze" (arXiv:2102.01386, up to 2.55 times); He et al. (2021), "PipeTransformer" (arXiv:2102.03161, up to 2.83 times); Wang et al. (2023), "Egeria" (EuroSys, 19 to 43 % faster); Amdahl (1967).

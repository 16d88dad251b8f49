# %% [markdown]
# # Strategies
#
# > Which layers train, when, and at which rate: full, head, top-k, layer-wise decay, and head-then-full.
#
# At the end you can choose among five ways to fine-tune the same model, say what each keeps and changes, see why a random head is a bad guide, and write your own. Runs in about 15 s on a CPU.

# %%
#| default_exp strategies

# %%
#| export
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar, Protocol

from torch import nn

from ftnb.adapter_layers import adapter_parameters
from ftnb.layers import LayerGroup, layer_groups
from ftnb.step import ParamGroup, Phase, Strategy, set_modes, set_trainable

# %%
import matplotlib.pyplot as plt
import torch

from ftnb.builtin.reviews import labelled_reviews
from ftnb.data import Batches
from ftnb.layers import what_is_training
from ftnb.metrics import classification_metrics
from ftnb.pretrained import Pretrained, load_pretrained
from ftnb.step import Learner
from ftnb.train import Training

# %% [markdown]
# ## One shape for all
#
# A strategy is data: a small frozen dataclass that a recipe can store. Given a model, it returns *phases*; a phase names parameter groups, each with a multiplier $m$ of the learning rate. At a point of training where the schedule's factor is $f$, group $i$ moves at
#
# $$\eta_i = \eta \, m_i \, f, \qquad m_i = 0 \text{ means frozen: no gradient, and } \texttt{eval()}.$$
#
# Weight decay is not a strategy's business: the optimizer leaves it off for biases and norm weights (tensors with fewer than two axes) in every group.

# %%
#| export
class StrategyError(ValueError):
    """A strategy that does not exist, has impossible numbers, or does not fit the model."""


def _title(run: list[LayerGroup], groups: list[LayerGroup]) -> str:
    """Name neighbouring layer groups that share a rate: "backbone" for all but the head, else "first – last"."""
    if run == [group for group in groups if group.name not in ("adapters", "head")]:
        return "backbone"
    return run[0].name if len(run) == 1 else f"{run[0].name} – {run[-1].name}"


def modules_of(model: nn.Module, run: list[LayerGroup]) -> list[nn.Module]:
    """The modules of layer groups, and those around them that hold nothing else (a whole encoder, say)."""
    inside = {model.get_parameter(name) for group in run for name in group.parameters}
    added = adapter_parameters(model)  # these have a group of their own, inside the blocks
    held = {m: set(m.parameters()) - added for m in model.modules() if m is not model}
    own = {model.get_submodule(name): None for group in run for name in group.modules}
    return [*{**own, **{m: None for m, parameters in held.items() if parameters and parameters <= inside}}]

# %% [markdown]
# All five are a rule "layer groups → multipliers". Neighbours with equal multipliers become one group, named for people: these are the names under which a rate can be changed while training.

# %%
#| export
def build_phase(
    name: str,
    share: float,
    model: nn.Module,
    new_parameters: frozenset[str],
    rule: Callable[[list[LayerGroup]], list[float]],
) -> Phase:
    """Turn a rule "layer groups → multipliers" into a phase; neighbours with equal multipliers become one group.

    Args:
        name: the phase's name.
        share: its part of all steps.
        model: any model that `layer_groups` can cut.
        new_parameters: as for `layer_groups`.
        rule: takes all layer groups, returns for each what to multiply its learning rate by; 0 freezes it.

    Raises:
        StrategyError: if nothing would train.
    """
    groups = layer_groups(model, new_parameters)
    runs: list[tuple[float, list[LayerGroup]]] = []
    for group, value in zip(groups, rule(groups), strict=True):
        if runs and runs[-1][0] == value and group.name != "head":
            runs[-1][1].append(group)
        else:
            runs.append((value, [group]))
    if not any(value > 0 for value, _ in runs):
        raise StrategyError(
            f"phase {name!r} would train nothing: {type(model).__name__} has no head of its own (a language model's "
            "output weights are often its embeddings). Use 'full', 'top-k', 'layer-decay' or 'lora'."
        )
    members = [[model.get_parameter(p) for group in run for p in group.parameters] for _, run in runs]
    return Phase(
        name,
        share,
        [
            ParamGroup(_title(run, groups), parameters, value, modules_of(model, run))
            for (value, run), parameters in zip(runs, members, strict=True)
        ],
    )

# %% [markdown]
# ## Full and Head
#
# `Full` trains everything: the most adaptable, the most expensive, and the easiest to overfit. `Head` trains only the new layers: the backbone is a fixed function, each epoch costs one forward pass less its backward, and nothing that pretraining learned can be lost, nor improved.

# %%
#| export
def finite_number(strategy: Any, name: str) -> None:
    """Make a setting a float, or say that it is no number."""
    value = getattr(strategy, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise StrategyError(f"{name} must be a finite number, got {value!r}.")
    object.__setattr__(strategy, name, float(value))  # the dataclass is frozen, and this is its __post_init__


def positive(strategy: Any, *names: str) -> None:
    """Make settings floats above 0, or say which is not."""
    for name in names:
        finite_number(strategy, name)
        if not getattr(strategy, name) > 0:
            raise StrategyError(f"{name} must be above 0, got {getattr(strategy, name)}.")


def whole_number(strategy: Any, name: str, what: str = "", least: int = 1) -> None:
    """Say that a setting is no whole number from `least`; `what` says what it is, as in "counts the blocks and "."""
    value = getattr(strategy, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise StrategyError(f"{name} {what}must be a whole number from {least}, got {value!r}.")


def as_data(strategy: Any) -> dict[str, Any]:
    """A strategy as plain data: its name and its settings."""
    return {"name": strategy.name, **asdict(strategy)}

# %%
#| export
@dataclass(frozen=True)
class Full:
    """Everything trains, at one rate."""

    name: ClassVar[str] = "full"

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """One phase that trains all layer groups."""
        return [build_phase("full", 1.0, model, new_parameters, lambda groups: [1.0] * len(groups))]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)


@dataclass(frozen=True)
class Head:
    """Only the head trains; the backbone is a fixed function (a linear probe, if the head is linear)."""

    name: ClassVar[str] = "head"

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """One phase that trains the head.

        Raises:
            StrategyError: if the model has no head of its own.
        """
        return [build_phase("head", 1.0, model, new_parameters, lambda gs: [float(g.name == "head") for g in gs])]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
pretrained = load_pretrained("builtin:bert-reviews", "text-classification", ["negative", "positive"])
model, new = pretrained.model, pretrained.new_parameters
[(group.name, group.multiplier) for group in Head().phases(model, new)[0].groups]

# %%
assert {p.shape for p in Head().phases(model, new)[0].trainable} == {p.shape for p in model.classifier.parameters()}

# %% [markdown]
# ## Between the two: TopK and LayerDecay
#
# Lower layers hold what all texts have in common, upper ones what the pretraining task asked for (Howard and Ruder, 2018). `TopK` draws a line: blocks above it train, blocks below are frozen. `LayerDecay` draws a slope: with $L$ blocks, block $\ell$ moves at $\eta\,d^{\,L-\ell}$, the embeddings at $\eta\,d^{\,L+1}$.

# %%
#| export
@dataclass(frozen=True)
class TopK:
    """The head and the last `k` blocks train; what lies below is frozen."""

    name: ClassVar[str] = "top-k"
    k: int = field(default=1, metadata={"help": "how many of the last blocks train, with the head"})

    def __post_init__(self) -> None:
        whole_number(self, "k", "counts the blocks that train and ")

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """One phase that trains the head and the last `k` blocks.

        Raises:
            StrategyError: if the model has fewer blocks.
        """
        blocks = [g.name for g in layer_groups(model, new_parameters) if g.name.startswith("block")]
        if self.k > len(blocks):
            what = f"{type(model).__name__} has {len(blocks)} block{'s' if len(blocks) != 1 else ''}"
            raise StrategyError(f"k={self.k} is too large: {what}. Choose k from 1 to {len(blocks)}, or 'full'.")
        trained = {"head", *blocks[-self.k :]}
        return [build_phase("top-k", 1.0, model, new_parameters, lambda gs: [float(g.name in trained) for g in gs])]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
#| export
@dataclass(frozen=True)
class LayerDecay:
    """Everything trains; each layer group's rate is `decay` times that of the one above it. The head has the peak.

    Source: Howard and Ruder (2018), "discriminative fine-tuning"; Clark et al. (2020), layer-wise decay in ELECTRA.
    """

    name: ClassVar[str] = "layer-decay"
    decay: float = field(default=0.9, metadata={"help": "rate of a layer over that of the layer above it"})

    def __post_init__(self) -> None:
        finite_number(self, "decay")
        if not 0 < self.decay <= 1:
            raise StrategyError(f"decay must be above 0 and at most 1, got {self.decay}. (1 is the strategy 'full'.)")

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """One phase in which the rate falls from the head to the embeddings."""

        def rule(groups: list[LayerGroup]) -> list[float]:
            return [self.decay**above for above in reversed(range(len(groups)))]

        return [build_phase("layer-decay", 1.0, model, new_parameters, rule)]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
[(group.name, round(group.multiplier, 3)) for group in LayerDecay(0.5).phases(model, new)[0].groups]

# %% [markdown]
# A wrong number is refused before anything trains:

# %%
try:
    TopK(12).phases(model, new)
except StrategyError as error:
    message = str(error)
message

# %%
assert "k=12 is too large" in message and "2 blocks" in message

# %% [markdown]
# ## Two phases: LPFT
#
# A fresh head is random. In the first steps its random directions are what the loss pushes into the backbone, which then changes to serve a head that is itself about to change. So train the head first, with the backbone frozen, and only then everything. The head alone bears, and needs, a higher rate: `head_lr` multiplies it.

# %%
#| export
@dataclass(frozen=True)
class LPFT:
    """First only the head (linear probing), then everything (fine-tuning): the backbone never sees a random head.

    Source: Kumar et al. (2022), "Fine-tuning can distort pretrained features and underperform out-of-distribution".
    """

    name: ClassVar[str] = "lp-ft"
    head_share: float = field(default=0.3, metadata={"help": "share of all steps in which only the head trains"})
    head_lr: float = field(default=10.0, metadata={"help": "times the learning rate while only the head trains"})
    full_lr: float = field(default=1.0, metadata={"help": "times the learning rate once everything trains"})

    def __post_init__(self) -> None:
        finite_number(self, "head_share")
        positive(self, "head_lr", "full_lr")
        if not 0 < self.head_share < 1:
            raise StrategyError(f"head_share is a share of all steps, between 0 and 1, got {self.head_share}.")

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """Two phases: the head alone, then everything.

        Raises:
            StrategyError: if the model has no head of its own.
        """
        head = Head().phases(model, new_parameters)[0]
        full = Full().phases(model, new_parameters)[0]
        return [_scaled(head, self.head_share, self.head_lr), _scaled(full, 1 - self.head_share, self.full_lr)]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)


def _scaled(phase: Phase, share: float, factor: float) -> Phase:
    """A phase with another share and with all its rates multiplied."""
    groups = [replace(group, multiplier=group.multiplier * factor) for group in phase.groups]
    return replace(phase, share=share, groups=groups)

# %%
[(phase.name, phase.share, [(g.name, g.multiplier) for g in phase.groups]) for phase in LPFT().phases(model, new)]

# %% [markdown]
# ## By name, and by hand
#
# A recipe stores a strategy as its name or as a small table; `strategy_from` reads both. Adapters, which the next lesson defines, are known here by their place only and loaded when somebody asks for one. `apply` sets a phase on a model outside the training loop and returns the function that undoes it.

# %%
#| export
class NamedStrategy(Strategy, Protocol):
    """A strategy that a recipe can store: a dataclass with a name, whose fields are its settings."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        ...


STRATEGIES: dict[str, type[NamedStrategy] | str] = {  # a class, or "module:class" of one that is loaded when asked for
    **{strategy.name: strategy for strategy in (Full, Head, TopK, LayerDecay, LPFT)},
    "gradual": "ftnb.more_strategies:Gradual",
    "surgical": "ftnb.more_strategies:Surgical",
    "bitfit": "ftnb.more_strategies:BitFit",
    "reinit": "ftnb.more_strategies:Reinit",
    "lora": "ftnb.adapters:LoRA",
    "dora": "ftnb.adapters:DoRA",
    "adapter": "ftnb.adapters:Adapter",
}

# %%
#| export
def nearest(word: str, known: Iterable[str]) -> str:
    """A hint "Did you mean …?", or the list of what there is."""
    known = list(known)
    near = get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There is {', '.join(known) or 'none'}."


def strategy_class(name: Any) -> type[Any]:
    """The class of a strategy, for example `strategy_class("top-k")`.

    Raises:
        StrategyError: if there is no strategy of that name; the nearest one is suggested.
    """
    if not isinstance(name, str) or name not in STRATEGIES:
        raise StrategyError(f"unknown strategy {name!r}. {nearest(str(name), STRATEGIES)}")
    known = STRATEGIES[name]
    if not isinstance(known, str):
        return known
    module, _, attribute = known.partition(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def strategy_from(data: str | Mapping[str, Any]) -> NamedStrategy:
    """Build a strategy from its name, or from a mapping with its name and settings.

    Args:
        data: for example "full", or `{"name": "top-k", "k": 2}`; the inverse of a strategy's `to_dict()`.

    Raises:
        StrategyError: if there is no such strategy or setting, or a setting's value is impossible.
    """
    settings = {"name": data} if isinstance(data, str) else dict(data)
    name = settings.pop("name", None)
    of: Any = strategy_class(name)
    for key in settings:
        if key not in (known := [f.name for f in fields(of)]):
            raise StrategyError(f"the strategy {name!r} has no setting {key!r}. {nearest(str(key), known)}")
    for f in fields(of):
        if f.name not in settings and f.default is MISSING:
            raise StrategyError(f"the strategy {name!r} needs {f.name}: {f.metadata.get('help', '')}.")
    strategy: NamedStrategy = of(**settings)
    return strategy

# %%
#| export
def apply(phase: Phase, model: nn.Module) -> Callable[[], None]:
    """Freeze and unfreeze a model as a phase says, outside the training loop; returns the function that undoes it.

    Sets `requires_grad` of every parameter, training mode for what trains, and `eval()` for what is frozen. Undoing
    restores each flag and mode as it was; weights are touched by neither.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    set_trainable(phase)
    set_modes(model, phase)

    def undo() -> None:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode

    return undo

# %%
strategy_from({"name": "top-k", "k": 1}), LPFT(head_share=0.2).to_dict()

# %%
assert all(strategy_from(kind().to_dict()) == kind() for kind in (Full, Head, TopK, LayerDecay, LPFT))

# %%
undo = apply(TopK(1).phases(model, new)[0], model)
frozen = [g.name for g in layer_groups(model, new) if not model.get_parameter(g.parameters[0]).requires_grad]
undo()
frozen, all(p.requires_grad for p in model.parameters())

# %% [markdown]
# Does it do what it says? One step, looked at from all sides ([lesson 20](20_layers.ipynb)):

# %%
reviews = labelled_reviews("train", 8)
batch = dict(pretrained.processor([r["text"] for r in reviews], padding=True, return_tensors="pt"))
batch["labels"] = torch.tensor([int(r["label"] == "positive") for r in reviews])
table = what_is_training(model, batch, strategy=TopK(1), lr=5e-4, new_parameters=new)
table

# %%
assert table.surprises == [] and [row.moved > 0 for row in table.rows] == [False, False, True, True]

# %% [markdown]
# ## The story: fine-tuning can distort pretrained features
#
# In 2022 Kumar and colleagues reported something unexpected about the method most people used. Over ten data sets with a shifted test, full fine-tuning beat training the head alone in distribution, and *lost* to it out of distribution. Their explanation: gradients change the features of the examples at hand, to suit a head that is still random; other inputs keep their old features, and the head that was learned with the changed ones does not fit them. Training the head first removes the cause, and it won on both counts: +1 point in distribution and +10 out of it, on average.
#
# ## The experiment: where does a random head pull?
#
# The cause can be seen in one step. In which direction does the loss pull the backbone in the first step of full fine-tuning? We take the gradient on the same eight reviews under two different random heads and look at the angle between the two pulls; then again with two heads that started differently and were trained alone first. A cosine of 1 means the same direction, 0 means unrelated.
#
# **Claim.** Two trained heads agree more than any two random ones. It would be refuted by one pair of random heads above one pair of trained ones. Six pairs of seeds.

# %%
LABELS = ["negative", "positive"]
tokenizer = pretrained.processor

def as_batches(reviews: list[dict[str, str]], batch_size: int, seed: int = 0, shuffle: bool = False) -> Batches:
    ids = tokenizer([review["text"] for review in reviews])["input_ids"]
    examples = [{"input_ids": i, "labels": LABELS.index(r["label"])} for i, r in zip(ids, reviews, strict=True)]
    return Batches(examples, lambda rows: dict(tokenizer.pad(rows, return_tensors="pt")), batch_size, lengths=[len(i) for i in ids], shuffle=shuffle, seed=seed)

def model_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    outputs = model(**batch)
    return outputs.loss, outputs

def learner(start: Pretrained, seed: int) -> Learner:
    train = as_batches(labelled_reviews("train", seed=seed), 8, seed, shuffle=True)
    valid = as_batches(labelled_reviews("valid", 32), 32)
    return Learner(start.model, train, valid, model_loss, classification_metrics(2), new_parameters=start.new_parameters)

# %%
def pull(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval().zero_grad()
    model_loss(model, batch)[0].backward()
    return torch.cat([p.grad.flatten() for p in model.bert.parameters() if p.grad is not None])

def agreement(one: int, other: int, head_first: bool) -> float:
    pulls = []
    for seed in (one, other):
        start = load_pretrained("builtin:bert-reviews", "text-classification", LABELS, seed=seed)
        if head_first:
            list(Training(learner(start, seed=50), Head(), lr=5e-3, num_epochs=2, seed=seed, device="cpu"))
        pulls.append(pull(start.model.requires_grad_(True), batch))
    return nn.functional.cosine_similarity(*pulls, dim=0).item()

pairs = [(seed, seed + 1) for seed in range(21, 33, 2)]
agreements = {name: [round(agreement(*pair, first), 2) for pair in pairs] for name, first in (("random heads", False), ("trained heads", True))}
agreements

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.2), dpi=80, layout="constrained")
for row, (name, values) in enumerate(agreements.items()):
    ax.plot(values, [row] * len(values), "o", ms=7, alpha=0.6, color=f"C{row}")
ax.axvline(0, color="0.7", lw=1)
ax.set(xlim=(-1, 1), ylim=(-0.6, 1.6), yticks=range(len(agreements)), xlabel="cosine of the angle between two heads' pulls on the backbone", ylabel="heads", title="Six pairs of heads, the same eight reviews")
ax.set_yticklabels(["random", "trained"])
plt.show()

# %%
assert min(agreements["trained heads"]) > max(agreements["random heads"])

# %% [markdown]
# Two random heads pull the same backbone, on the same reviews, in directions that have nothing to do with each other; two trained heads largely agree. So the first steps of full fine-tuning follow a coin toss, and head-then-full spares the backbone that. Whether it then shows in the accuracy is another matter: [lesson 25](25_more_strategies.ipynb) measures all strategies side by side.

# %% [markdown]
# ## Exercises
#
# **1 (easy).** How many layer groups train under `TopK(k)` in a model with 12 blocks? Write the rule that `build_phase` would take.

# %% tags=["exercise"]
def rule(groups: list[LayerGroup], k: int) -> list[float]:
    ...  # your code here

# %% tags=["solution"]
def rule(groups: list[LayerGroup], k: int) -> list[float]:
    return [0.0] * (len(groups) - k - 1) + [1.0] * (k + 1)

# %%
twelve = [LayerGroup(name, (), ()) for name in ("embeddings", *(f"block {i}" for i in range(12)), "head")]
assert rule(twelve, 2) == [0.0] * 11 + [1.0] * 3

# %% [markdown]
# **2 (medium).** A strategy of your own: only biases and the head train. It needs no base class, only `phases`. One phase, two groups: "biases and head" with multiplier 1, "rest" frozen. Which modules belong in `eval()`? None here: every block holds a bias that trains. (The method is BitFit, by Ben Zaken et al., 2022; lesson 25 has it for any model, BatchNorm and all.)

# %% tags=["exercise"]
@dataclass(frozen=True)
class OnlyBiases:
    def phases(self, model: nn.Module, new_parameters: frozenset[str]) -> list[Phase]:
        ...  # your code here

# %% tags=["solution"]
@dataclass(frozen=True)
class OnlyBiases:
    def phases(self, model: nn.Module, new_parameters: frozenset[str]) -> list[Phase]:
        head = {n for g in layer_groups(model, new_parameters) if g.name == "head" for n in g.parameters}
        parts: tuple[list, list] = ([], [])
        for name, p in model.named_parameters():
            parts[name.endswith("bias") or name in head].append(p)
        return [Phase("biases", 1.0, [ParamGroup("rest", parts[0], 0.0), ParamGroup("biases and head", parts[1], 1.0)])]

# %%
table = what_is_training(model, batch, strategy=OnlyBiases(), new_parameters=new)
assert 0 < sum(row.moved for row in table.rows) < sum(row.tensors for row in table.rows)
share = sum(p.numel() for p in OnlyBiases().phases(model, new)[0].trainable) / sum(p.numel() for p in model.parameters())
assert share < 0.02

# %% [markdown]
# ## Summary
# - A strategy is data: a rule from layer groups to multipliers of the rate, phase by phase. Multiplier 0 means frozen, and frozen means constant.
# - `Head` and `TopK` save the backward pass of what is frozen; `LayerDecay` and `LPFT` cost as much as `Full` while everything trains.
# - A random head pulls the backbone in a random direction; a head that was trained first does not.
#
# **What next:** adapters ([22](22_adapters.ipynb)) add a few weights instead of choosing among the old ones; [25](25_more_strategies.ipynb) has four strategies more, and the table of all; [50](50_recipe.ipynb) stores a strategy in a recipe. With a real model: `finetune(model="google-bert/bert-base-uncased", strategy={"name": "layer-decay", "decay": 0.9}, lr=5e-5)`.
#
# **Sources:** Howard and Ruder (2018), arXiv:1801.06146; Clark et al. (2020), arXiv:2003.10555; Kumar et al. (2022), arXiv:2202.10054; Ben Zaken et al. (2022), arXiv:2106.10199.

# %% [markdown]
# # More strategies
#
# > Thaw from the top, train the first layers only, only the biases, or blocks that start anew; and all strategies in one table.
#
# At the end you can use gradual unfreezing, surgical fine-tuning, BitFit and re-initialised blocks on any model, and say from one table what each of twelve strategies costs, changes and brings. Runs in about 45 s on a CPU.

# %%
#| default_exp more_strategies

# %%
#| export
import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftnb.adapter_layers import adapter_layers, remove_adapters
from ftnb.layers import LayerGroup, layer_groups
from ftnb.step import ParamGroup, Phase
from ftnb.strategies import (
    StrategyError,
    as_data,
    build_phase,
    finite_number,
    modules_of,
    positive,
    strategy_from,
    whole_number,
)

# %%
import time

import matplotlib.pyplot as plt
from transformers import AutoModelForMaskedLM

from ftnb.adapters import DoRA, LoRA, merge
from ftnb.builtin.reviews import labelled_reviews, unlabelled_reviews
from ftnb.data import Batches
from ftnb.layers import what_is_training
from ftnb.metrics import classification_metrics
from ftnb.pretrained import Pretrained, find_model, load_pretrained, quiet_transformers
from ftnb.step import Learner
from ftnb.strategies import LPFT, Full, Head, LayerDecay, NamedStrategy, TopK
from ftnb.train import Training

# %% [markdown]
# ## Thaw from the top
#
# Head-then-full ([lesson 21](21_strategies.ipynb)) has two phases. Gradual unfreezing has as many as there are layer groups: each begins when the groups above have had time to settle, so that what is general (the lower layers) moves last and least. With $G$ groups and $n$ more in each phase, phase $p = 0, 1, \dots$ trains the top $\min(1 + pn,\, G)$ of them; every phase has an equal share of the steps, and the schedule starts anew in each.

# %%
#| export
def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


@dataclass(frozen=True)
class Gradual:
    """First the head trains, then in each phase the next `groups` layer groups below as well, until all do.

    The phases have equal shares of the steps; Adam's moments of what goes on training are kept. With a `decay` below 1
    each layer group's rate is also that times the rate of the one above. Without a head the top groups come first.

    Source: Howard and Ruder (2018), "Universal language model fine-tuning for text classification", section 3.3.
    """

    name: ClassVar[str] = "gradual"
    groups: int = field(default=1, metadata={"help": "how many layer groups thaw at the start of each phase"})
    decay: float = field(default=1.0, metadata={"help": "rate of a layer over that of the layer above it"})

    def __post_init__(self) -> None:
        whole_number(self, "groups", "counts what thaws in a phase and ")
        finite_number(self, "decay")
        if not 0 < self.decay <= 1:
            raise StrategyError(f"decay must be above 0 and at most 1 (all layers alike), got {self.decay}.")

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """One phase for each number of groups from the top.

        Raises:
            StrategyError: if fewer layer groups than `groups` lie below the head.
        """
        found = layer_groups(model, new_parameters)
        below = sum(group.name != "head" for group in found)
        if self.groups > below:
            what = f"{type(model).__name__} has {_plural(below, 'layer group')} below the head"
            raise StrategyError(f"groups={self.groups} is too large: {what}. Choose from 1 to {below}.")
        first = len(found) - below or self.groups
        counts = [*range(first, len(found), self.groups), len(found)]

        def phase(count: int) -> Phase:
            lowest = found[-count].name
            rates = [self.decay**above if above < count else 0.0 for above in reversed(range(len(found)))]
            name = "head" if lowest == "head" else f"down to {lowest}"
            return build_phase(name, 1 / len(counts), model, new_parameters, lambda _: rates)

        return [phase(count) for count in counts]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
LABELS = ["negative", "positive"]
pretrained = load_pretrained("builtin:bert-reviews", "text-classification", LABELS)
model, new, tokenizer = pretrained.model, pretrained.new_parameters, pretrained.processor
phases = Gradual(decay=0.5).phases(model, new)
[(phase.name, phase.share, {group.name: group.multiplier for group in phase.groups}) for phase in phases]

# %%
trained = [sum(p.numel() for p in phase.trainable) for phase in phases]
assert trained == sorted(set(trained)) and trained[-1] == sum(p.numel() for p in model.parameters())
assert sum(phase.share for phase in phases) == 1

# %% [markdown]
# ## The first layers only
#
# Most strategies take it for granted that the upper layers must change. Lee and colleagues (2023) asked which *one* block to tune, for several kinds of shift. Where the inputs had changed (noise, blur), tuning the first block beat tuning everything; where the labels had a new meaning, the last did. The reason: if only the input looks different, the features above are still right, once they get what they are used to. Their heads were trained already; ours is mostly new, so it trains too unless `head_lr=0` says no.

# %%
#| export
@dataclass(frozen=True)
class Surgical:
    """A few neighbouring layer groups train, the first ones by default, and the head; all others are frozen.

    Source: Lee et al. (2023), "Surgical fine-tuning improves adaptation to distribution shifts".
    """

    name: ClassVar[str] = "surgical"
    k: int = field(default=2, metadata={"help": "how many neighbouring layer groups train"})
    start: int = field(default=0, metadata={"help": "the lowest of them, counted from the input: 0 is the embeddings"})
    head_lr: float = field(default=1.0, metadata={"help": "times the learning rate, for the head; 0 freezes it"})

    def __post_init__(self) -> None:
        whole_number(self, "k", "counts the layer groups that train and ")
        whole_number(self, "start", "counts layer groups from the input and ", least=0)
        finite_number(self, "head_lr")
        if self.head_lr < 0:
            raise StrategyError(f"head_lr must be 0 (the head is frozen) or above, got {self.head_lr}.")

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """One phase that trains the chosen layer groups and the head.

        Raises:
            StrategyError: if there are not so many layer groups, or a new head would stay as random as it is.
        """
        found = layer_groups(model, new_parameters)
        body = [group.name for group in found if group.name != "head"]
        if self.start + self.k > len(body):
            places = ", ".join(f"{i} {name}" for i, name in enumerate(body))
            raise StrategyError(
                f"start={self.start} and k={self.k} go beyond the layer groups of {type(model).__name__} ({places}). "
                f"Choose them so that start + k is at most {len(body)}."
            )
        if self.head_lr == 0 and new_parameters.intersection(*(g.parameters for g in found if g.name == "head")):
            raise StrategyError("head_lr=0 would leave the head random: no checkpoint filled it. Choose 1.")
        chosen = dict.fromkeys(body[self.start : self.start + self.k], 1.0) | {"head": self.head_lr}
        return [build_phase(self.name, 1.0, model, new_parameters, lambda gs: [chosen.get(g.name, 0.0) for g in gs])]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
reviews = labelled_reviews("train", 8)
batch = dict(tokenizer([r["text"] for r in reviews], padding=True, return_tensors="pt"))
batch["labels"] = torch.tensor([LABELS.index(r["label"]) for r in reviews])
table = what_is_training(model, batch, strategy=Surgical(), lr=5e-4, new_parameters=new)
table

# %%
assert [row.moved > 0 for row in table.rows] == [True, True, False, True] and table.surprises == []

# %% [markdown]
# What it saves: the update, the moments and the gradients of the frozen weights. What it does not save: the backward pass must still go through the frozen layers to reach the first. Head and top-k save that, too.
#
# ## Only the biases
#
# A linear layer computes $W x + b$. BitFit trains the $b$s and leaves every $W$ alone: a thousandth of a large BERT's weights, and yet near full fine-tuning in its paper, with little data. Norms have a bias, too. It needs a higher rate, as adapters do, so `bias_lr` multiplies the recipe's.
#
# In which mode is a module whose weight is frozen and whose bias trains? "Frozen is in `eval()`" does not say. Our decision, by what would surprise a user:
#
# - **Training mode**, dropout included, for every layer group in which a bias trains. Dropout is there to regularise what is being fitted, and this is being fitted.
# - **`eval()` for BatchNorm**, although its bias trains. Its running statistics are no biases; if they moved, the result would differ from the checkpoint in more than its biases and head.
# - **`eval()`** for a layer group without any bias, as for everything that is frozen.

# %%
#| export
def _is_bias(name: str, parameter: nn.Parameter) -> bool:
    """A vector whose own name says so: `bias`, `in_proj_bias`, `q_bias`, `bias_ih_l0`."""
    return parameter.ndim == 1 and "bias" in re.split(r"[._]", name.rpartition(".")[2])


@dataclass(frozen=True)
class BitFit:
    """Only the bias vectors and the head train.

    Layer groups in which a bias trains are in training mode (dropout is on), except for BatchNorm layers: their bias
    trains, but their statistics stay the checkpoint's, so that nothing but biases and head can change. Layer groups
    without a bias are frozen, in evaluation mode.

    Source: Ben Zaken et al. (2022), "BitFit: Simple parameter-efficient fine-tuning for transformer-based masked
    language-models".
    """

    name: ClassVar[str] = "bitfit"
    bias_lr: float = field(default=10.0, metadata={"help": "times the learning rate, for the biases"})
    head_lr: float = field(default=1.0, metadata={"help": "times the learning rate, for the head"})

    def __post_init__(self) -> None:
        positive(self, "bias_lr", "head_lr")

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """One phase that trains biases and head.

        Raises:
            StrategyError: if the backbone has no bias vectors (most recent language models have none).
        """
        found = layer_groups(model, new_parameters)
        body, head = [g for g in found if g.name != "head"], [g for g in found if g.name == "head"]
        named = {n: model.get_parameter(n) for g in body for n in g.parameters}
        biases = {n: p for n, p in named.items() if _is_bias(n, p)}
        if not biases:
            raise StrategyError(
                f"the backbone of {type(model).__name__} has no bias vectors, so 'bitfit' has nothing to train. "
                "Use 'lora', which adds few weights to any model, or 'top-k'."
            )
        without = [group for group in body if biases.keys().isdisjoint(group.parameters)]
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        frozen = ParamGroup("weights", [p for n, p in named.items() if n not in biases], 0.0)
        frozen.modules.extend([*norms, *modules_of(model, without)])
        groups = [frozen, ParamGroup("biases", list(biases.values()), self.bias_lr)]
        for group in head:
            parameters = [model.get_parameter(n) for n in group.parameters]
            groups.append(ParamGroup("head", parameters, self.head_lr, modules_of(model, head)))
        return [Phase(self.name, 1.0, groups)]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
bitfit = BitFit().phases(model, new)[0]
sizes = {group.name: sum(p.numel() for p in group.parameters) for group in bitfit.groups}
sizes

# %%
table = what_is_training(model, batch, strategy=BitFit(), lr=5e-4, new_parameters=new)
table

# %%
assert all(0 < row.moved < row.tensors and row.mode == "train" for row in table.rows[:-1])
assert sizes["biases"] < 0.02 * sum(sizes.values())

# %% [markdown]
# ## Blocks that start anew
#
# The top blocks of a pretrained model are specialised in its pretraining: they turn features back into guesses of hidden words. Zhang and colleagues (2021) threw the last few away, filled them with fresh random numbers, and fine-tuned everything: on small data sets BERT became better and varied less with the seed. Such a strategy changes weights before training, so it must be repeatable (the numbers follow from the recipe's seed) and can be taken back.
#
# Which random numbers? Those that the model's own library would use for a new model: `_init_weights` in transformers, `reset_parameters` of a layer elsewhere. To be sure that nothing pretrained is left, a copy is filled with NaN first: what the initialiser does not know stays NaN, and is an error.

# %%
#| export
def _last_blocks(model: nn.Module, count: int, new_parameters: frozenset[str]) -> list[LayerGroup]:
    blocks = [group for group in layer_groups(model, new_parameters) if group.name.startswith("block")]
    if count > len(blocks):
        what = f"{type(model).__name__} has {_plural(len(blocks), 'block')}"
        raise StrategyError(f"blocks={count} is too large: {what}. Choose from 1 to {len(blocks)}.")
    return blocks[-count:]


def _owner(model: nn.Module, path: str) -> PreTrainedModel | None:
    """The innermost transformers model around a module: it knows how its parts start."""
    names = path.split(".")
    around = (model.get_submodule(".".join(names[:end])) for end in reversed(range(len(names))))
    return next((module for module in around if isinstance(module, PreTrainedModel)), None)


def _new_twin(module: nn.Module, owner: PreTrainedModel | None) -> nn.Module:
    """A copy of a module on the CPU, filled as its library fills a new one; what nobody fills is NaN."""
    twin = copy.deepcopy(module).cpu()

    def start(part: nn.Module) -> None:  # children come before their parents, who may know better
        if owner is not None:
            owner._init_weights(part)
        reset: Any = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if reset is not None and any(p.isnan().any() for p in part.parameters(recurse=False)):
            reset()
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.reset_running_stats()

    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(torch.nan)
            vars(parameter).pop("_is_hf_initialized", None)  # transformers would pass over it
        twin.apply(start)
    return twin

# %%
#| export
def reinitialise(model: nn.Module, blocks: int = 1, new_parameters: frozenset[str] = frozenset()) -> None:
    """Fill the last blocks with fresh random numbers, as a new model has them; `undo` takes it back.

    The numbers come from torch's CPU generator on every device. BatchNorm statistics start anew, too. What was replaced
    is kept in main memory, as a note on the model; while it is there, the same call changes nothing (so a second
    training of the model goes on with what the first one learned).

    Args:
        model: any model that `layer_groups` can cut; one on the meta device, without numbers, stays as it is.
        blocks: how many of the last blocks; what trails them, such as a pretrained pooler, belongs to the last.
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if the model has fewer blocks, holds a parameter that nobody knows how to start, or was
            re-initialised with another number of blocks.
    """
    groups = _last_blocks(model, blocks, new_parameters)
    names = [name for group in groups for name in group.parameters]
    if (note := vars(model).get("replaced_weights")) is not None:
        if {name for name, _ in model.named_parameters() if name in note} == set(names):
            return
        raise StrategyError("other blocks of the model were re-initialised before. Call undo(model) first.")
    if any(p.is_meta for p in model.parameters()):
        return
    fresh: dict[str, Tensor] = {}
    for path in (path for group in groups for path in group.modules):
        twin = _new_twin(model.get_submodule(path), _owner(model, path))
        norms = [n for n, m in twin.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        own = {f"{path}.{n}": t for n, t in twin.named_parameters()}
        fresh |= {name: t for name, t in own.items() if name in names}
        fresh |= {f"{path}.{n}": b for n, b in twin.named_buffers() if n.rpartition(".")[0] in norms}
    if lost := [name for name in names if name not in fresh or fresh[name].isnan().any()]:
        raise StrategyError(f"{type(model).__name__} does not say how {lost[0]} starts, so 'reinit' cannot be used.")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    kept = {name: tensors[name].detach().to("cpu", copy=True) for name in fresh}
    model.replaced_weights = kept  # type: ignore[assignment]  # a note, not a module
    _copy_into(model, fresh)


def undo(model: nn.Module) -> None:
    """Put back, bit for bit, the weights that `reinitialise` replaced; what else was trained stays as it is."""
    _copy_into(model, vars(model).pop("replaced_weights", {}))


def _copy_into(model: nn.Module, values: dict[str, Tensor]) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)

# %% [markdown]
# As a strategy it does that first and then trains by another one, which must train the new blocks: a random block that stays random is refused.

# %%
#| export
@dataclass(frozen=True)
class Reinit:
    """The last `blocks` blocks start from random numbers; then the model trains by another strategy, usually "full".

    Source: Zhang et al. (2021), "Revisiting few-sample BERT fine-tuning".
    """

    name: ClassVar[str] = "reinit"
    blocks: int = field(default=1, metadata={"help": "how many of the last blocks start anew"})
    then: Any = field(default="full", metadata={"help": "the strategy it then trains by: a name, or a table with one"})

    def __post_init__(self) -> None:
        whole_number(self, "blocks", "counts the blocks that start anew and ")
        then = self.then.to_dict() if hasattr(self.then, "to_dict") else self.then
        if not isinstance(then, str | Mapping):
            raise StrategyError(f"then must be a strategy's name, or a table with one, got {then!r}.")
        data = strategy_from(then).to_dict()
        if data["name"] == self.name:
            raise StrategyError("then must be another strategy than 'reinit', such as 'full' or 'layer-decay'.")
        object.__setattr__(self, "then", data if len(data) > 1 else data["name"])  # plain data, for a recipe

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """Re-initialise the blocks; the phases are those of the other strategy.

        Raises:
            StrategyError: if `reinitialise` cannot, or some of the new weights would never train.
        """
        adapted = bool(adapter_layers(model))
        fresh = [model.get_parameter(n) for g in _last_blocks(model, self.blocks, new_parameters) for n in g.parameters]
        phases = strategy_from(self.then).phases(model, new_parameters)
        trained = {parameter for phase in phases for parameter in phase.trainable}
        if not trained.issuperset(fresh):
            remove_adapters(model) if not adapted else None
            what, last = self.then if isinstance(self.then, str) else self.then["name"], _plural(self.blocks, "block")
            raise StrategyError(f"then={what!r} does not train all of the last {last}: random weights would stay.")
        reinitialise(model, self.blocks, new_parameters)
        return phases

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
torch.manual_seed(0)
Reinit(1).phases(model, new)
changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
undo(model)
len(changed), {name.partition(".layer.")[2].partition(".")[0] or name for name in changed}

# %%
assert all(".layer.1." in name or "pooler" in name for name in changed)
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

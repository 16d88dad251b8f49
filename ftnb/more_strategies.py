# Exported from nbs/25_more_strategies.py: edit the lesson, then run `make export`.
"""Thaw from the top, train only first layers or only biases, start blocks anew; all strategies in one table."""

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

__all__ = [
    "Gradual",
    "Surgical",
    "BitFit",
    "reinitialise",
    "undo",
    "Reinit",
]


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

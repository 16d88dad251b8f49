# Exported from nbs/21_strategies.py: edit the lesson, then run `make export`.
"""Which layers train, when, and at which rate: full, head, top-k, layer-wise decay, and head-then-full."""

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

__all__ = [
    "StrategyError",
    "modules_of",
    "build_phase",
    "finite_number",
    "positive",
    "whole_number",
    "as_data",
    "Full",
    "Head",
    "TopK",
    "LayerDecay",
    "LPFT",
    "NamedStrategy",
    "STRATEGIES",
    "nearest",
    "strategy_class",
    "strategy_from",
    "apply",
]


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

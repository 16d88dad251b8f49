# Exported from nbs/22_adapters.py: edit the lesson, then run `make export`.
"""Train a few added weights beside frozen ones, then fold them in: LoRA, DoRA and any such method of peft."""

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from ftnb.adapter_layers import adapter_layers, remove_adapters, without_adapters
from ftnb.layers import LayerGroup, layer_groups
from ftnb.peft_methods import config_as_data, config_from_data, refuse
from ftnb.step import Phase
from ftnb.strategies import StrategyError, as_data, build_phase, finite_number, nearest, positive, whole_number

__all__ = [
    "target_layers",
    "merge",
    "undo",
    "merged",
    "inject",
    "ADAPTER_LR",
    "HEAD_LR",
    "LoRA",
    "DoRA",
    "Adapter",
    "PREFIX",
    "WEIGHTS",
    "save_adapter",
    "load_adapter",
]


_FUSED = ("MultiheadAttention", "TransformerEncoderLayer", "ShiftedWindowAttention", "ShiftedWindowAttentionV2")


def _within(path: str, outer: list[str]) -> bool:
    return any(path.startswith(f"{name}.") for name in outer)


def _adaptable(model: nn.Module, new_parameters: frozenset[str]) -> dict[str, nn.Module]:
    """The linear and convolutional layers inside the blocks, by path, that an adapter can be put around."""
    groups = layer_groups(model, new_parameters)
    plain = without_adapters(model)
    inside = {model.get_parameter(n) for g in groups if g.name.startswith("block") for n in g.parameters}
    fused = [name for name, module in plain.named_modules() if type(module).__name__ in _FUSED]
    return {
        name: module
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | Conv1D)
        and getattr(module, "groups", 1) == 1
        and not is_parametrized(module)
        and not _within(name, fused)
        and inside.issuperset(module.parameters())
    }


def target_layers(model: nn.Module, targets: str = "all", new_parameters: frozenset[str] = frozenset()) -> list[str]:
    """Paths of the layers that adapters are put around.

    Args:
        model: any model that `layer_groups` can cut.
        targets: "all" (every linear and convolutional layer inside the blocks), "attention" (the linear ones of the
            attention), or names of layers with commas between, such as "query, value".
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if there is no such layer. Left out are grouped convolutions and layers whose weights another
            module computes with directly (torch's own multi-head attention), where an adapter would have no effect.
    """
    known = _adaptable(model, new_parameters)
    words = targets.replace(",", " ").split()
    if words == ["attention"]:
        around = [name for name, module in model.named_modules() if "Attention" in type(module).__name__]
        chosen = [name for name, module in known.items() if _within(name, around) and not hasattr(module, "stride")]
    else:
        chosen = [name for name in known if words == ["all"] or any(f".{name}".endswith(f".{word}") for word in words)]
        ends = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
        for word in words if words != ["all"] else ():
            if not any(f".{name}".endswith(f".{word}") for name in known):
                raise StrategyError(
                    f"targets names {word!r}, but no block of {type(model).__name__} has a linear or convolutional "
                    f"layer of that name. {nearest(word, ends)} Or 'all', or 'attention'."
                )
    if not chosen:
        raise StrategyError(f"no layer in the blocks of {type(model).__name__} fits targets={targets!r}. Try 'all'.")
    return chosen


def merge(model: nn.Module) -> None:
    """Fold all adapters into the weights; modules and names are then those of the original model."""
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            layer.merge()
    remove_adapters(model)


def undo(model: nn.Module) -> None:
    """Take all adapters out; the backbone is bit for bit what it was before."""
    remove_adapters(model)


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """A plain model inside the `with` block, with the adapters folded in; afterwards everything is as it was before.

    Weights come back bit for bit: the adapted layers are copied to main memory meanwhile, since subtracting what was
    added would leave rounding errors. Without adapters it does nothing.
    """
    layers = adapter_layers(model)
    kept = [(p, p.detach().to("cpu", copy=True)) for m in layers.values() for p in m.base_layer.parameters()]
    notes = {name: vars(model)[name] for name in ("peft_config", "adapter_settings") if name in vars(model)}
    try:
        with torch.no_grad():
            for layer in layers.values():
                layer.merge()
        remove_adapters(model)
        yield model
    finally:
        with torch.no_grad(), _without_warnings():  # "unmerging may be inaccurate": the copies below are exact
            for name, layer in layers.items():
                model.set_submodule(name, layer)
                layer.unmerge()
            for parameter, value in kept:
                parameter.copy_(value)
        for name, note in notes.items():
            setattr(model, name, note)


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inject(model: nn.Module, config: Any, new_parameters: frozenset[str] = frozenset()) -> None:
    """Put adapters into a model, in place: its class, its forward pass and its head stay what they are.

    Which parameters require a gradient stays as it was; that is a phase's business. Doing it again with an equal config
    changes nothing.

    Args:
        model: any model that `layer_groups` can cut.
        config: a `peft.PeftConfig`; without `target_modules` it is for all layers of `target_layers`.
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if the method cannot be put into a model, does not fit this one, or another one is in it already.
    """
    settings = config_as_data(config)
    if adapter_layers(model):
        if vars(model).get("adapter_settings") == settings:
            return
        raise StrategyError("the model has other adapters already. Call merge(model) or undo(model) first.")
    refuse(config)
    config = copy.deepcopy(config)  # peft writes into it
    if settings["peft_type"] != "LN_TUNING" and getattr(config, "target_modules", "") is None:
        config.target_modules = target_layers(model, "all", new_parameters)
    if getattr(config, "feedforward_modules", "") is None:  # of IA3
        config.feedforward_modules = []
    flags = {p: p.requires_grad for p in model.parameters()}
    heads = [group for group in layer_groups(model, new_parameters) if group.name == "head"]
    head = {model.get_parameter(name) for group in heads for name in group.parameters}
    try:
        with _without_warnings():  # such as how a layer stores its matrix, which peft then does right
            import_module("peft").inject_adapter_in_model(config, model)
        _check_injected(model, head)
    except Exception as error:  # peft's methods complain in many ways
        remove_adapters(model)
        if isinstance(error, StrategyError):
            raise
        raise StrategyError(f"{settings['peft_type']} does not fit {type(model).__name__}: {error}") from error
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    model.adapter_settings = settings  # type: ignore[assignment]  # a note, not a module


def _check_injected(model: nn.Module, head: set[nn.Parameter]) -> None:
    layers = adapter_layers(model)
    fused = [name for name, module in model.named_modules() if type(module).__name__ in _FUSED]
    for name, layer in layers.items():
        if not head.isdisjoint(layer.base_layer.parameters()):
            raise StrategyError(f"{name} belongs to the head, which trains by itself. Name layers of the backbone.")
        if type(layer.base_layer).__name__ in _FUSED or _within(name, fused):
            raise StrategyError(f"an adapter at {name} would have no effect: its weights are used without it.")
    if not layers:
        raise StrategyError(f"nothing in {type(model).__name__} fits target_modules.")
    with merged(model):  # a method that cannot do this would leave models that only peft can load
        pass


def _phase(name: str, model: nn.Module, new_parameters: frozenset[str], adapter_lr: float, head_lr: float) -> Phase:
    """Adapters and head train, each at its own rate; everything else is frozen."""

    def rule(groups: list[LayerGroup]) -> list[float]:
        return [{"adapters": adapter_lr, "head": head_lr}.get(group.name, 0.0) for group in groups]

    return build_phase(name, 1.0, model, new_parameters, rule)


ADAPTER_LR = {"help": "times the learning rate, for the adapters"}
HEAD_LR = {"help": "times the learning rate, for the head"}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters and the head train; the backbone is frozen.

    Source: Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models".
    """

    name: ClassVar[str] = "lora"
    rank: int = field(default=8, metadata={"help": "rank of the change: more can learn more and costs more"})
    alpha: float = field(default=16.0, metadata={"help": "the change is scaled by alpha / rank"})
    dropout: float = field(default=0.0, metadata={"help": "dropout of what goes into the adapters"})
    targets: str = field(default="all", metadata={"help": "all, attention, or names of layers: query, value"})
    adapter_lr: float = field(default=10.0, metadata=ADAPTER_LR)
    head_lr: float = field(default=1.0, metadata=HEAD_LR)

    def __post_init__(self) -> None:
        whole_number(self, "rank")
        targets: Any = self.targets  # from a recipe it may be anything
        if not isinstance(targets, str) or not targets.replace(",", " ").split():
            raise StrategyError(f"targets must be 'all', 'attention' or names such as 'query, value', got {targets!r}.")
        positive(self, "alpha", "adapter_lr", "head_lr")
        finite_number(self, "dropout")
        if not 0 <= self.dropout < 1:
            raise StrategyError(f"dropout must be at least 0 and below 1, got {self.dropout}.")

    def peft_config(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> Any:
        """The `peft.LoraConfig` for a model.

        Raises:
            StrategyError: if the model has no such layers.
        """
        return import_module("peft").LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, use_dora=self.name == "dora",
            target_modules=target_layers(model, self.targets, new_parameters),
        )  # fmt: skip

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """Put the adapters into the model; one phase that trains them and the head.

        Raises:
            StrategyError: if the model has no such layers, or other adapters already.
        """
        inject(model, self.peft_config(model, new_parameters), new_parameters)
        return [_phase(self.name, model, new_parameters, self.adapter_lr, self.head_lr)]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA that changes a weight's direction, beside trained lengths of its rows.

    Source: Liu et al. (2024), "DoRA: Weight-Decomposed Low-Rank Adaptation".
    """

    name: ClassVar[str] = "dora"


@dataclass(frozen=True)
class Adapter:
    """Any method of peft that adds weights to layers, by its own config; the head trains, the backbone is frozen.

    Args:
        config: a `peft.PeftConfig`, or what it says as data: `{"peft_type": "IA3", "target_modules": ["key"]}`.
            Without `target_modules` it is for every linear and convolutional layer inside the blocks.
    """

    name: ClassVar[str] = "adapter"
    config: Any = field(metadata={"help": "a peft config, or its settings with peft_type"})
    adapter_lr: float = field(default=10.0, metadata=ADAPTER_LR)
    head_lr: float = field(default=1.0, metadata=HEAD_LR)

    def __post_init__(self) -> None:
        positive(self, "adapter_lr", "head_lr")
        if isinstance(self.config, Mapping):
            config = config_from_data(self.config)
        elif dataclasses.is_dataclass(self.config) and getattr(self.config, "peft_type", None):
            config = self.config
        else:
            raise StrategyError(f"config must be a peft config or a table with its peft_type, got {self.config!r}.")
        refuse(config)
        object.__setattr__(self, "config", config_as_data(config))  # plain data, for a recipe

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """Put the adapters into the model; one phase that trains them and the head.

        Raises:
            StrategyError: if the method does not fit the model.
        """
        inject(model, config_from_data(self.config), new_parameters)
        return [_phase(self.name, model, new_parameters, self.adapter_lr, self.head_lr)]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)


PREFIX, WEIGHTS = "base_model.model.", "adapter_model.safetensors"  # peft's: before each name, and the file


def _own_state(model: nn.Module, new_parameters: frozenset[str]) -> dict[str, Tensor]:
    """What belongs to adapters and head, by its name in the model."""
    added = tuple(f"{name}." for name in adapter_layers(model))
    head = [group for group in layer_groups(model, new_parameters) if group.name == "head"]
    inside = tuple(n for group in head for n in (*(f"{name}." for name in group.modules), *group.parameters))
    return {
        name.replace(".default", ""): tensor
        for name, tensor in model.state_dict().items()
        if (name.startswith(added) and ".base_layer." not in name) or name.startswith(inside)
    }


def save_adapter(model: nn.Module, folder: str | Path, new_parameters: frozenset[str] = frozenset()) -> Path:
    """Save adapters and head alone, in peft's layout: adapter_model.safetensors and adapter_config.json.

    Args:
        model: with adapters in it.
        folder: made if it is not there.
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if the model has no adapters.
    """
    if "adapter_settings" not in vars(model):
        raise StrategyError("the model has no adapters that could be saved; it was merged, or never had any.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, added = _own_state(model, new_parameters), tuple(adapter_layers(model))
    config: Any = copy.copy(model.peft_config["default"])  # type: ignore[index]
    config.modules_to_save = sorted({n.rpartition(".")[0] for n in state if not n.startswith(added)})
    config.save_pretrained(str(folder))
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def load_adapter(model: nn.Module, folder: str | Path, new_parameters: frozenset[str] = frozenset()) -> None:
    """Put saved adapters and their head into a model like the one they were trained in.

    Args:
        model: without adapters, with the same backbone and as many outputs.
        folder: what `save_adapter` wrote.
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if the folder holds no adapter, or it does not fit the model.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise StrategyError(f"{folder} holds no {WEIGHTS}; save_adapter writes it.")
    config = import_module("peft").PeftConfig.from_pretrained(str(folder))
    config.modules_to_save, config.inference_mode = None, False
    saved = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    inject(model, config, new_parameters)
    own = _own_state(model, new_parameters)
    wrong = [n for n in own.keys() | saved.keys() if n not in own or n not in saved or own[n].shape != saved[n].shape]
    if wrong:
        undo(model)
        raise StrategyError(f"{folder} does not fit {type(model).__name__}: {len(wrong)} tensors, as {min(wrong)}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
